"""Parse the metadata entries that exporters write as Python literals: labels, names of keypoints and the size of pictures.

Nothing is evaluated.
"""

from __future__ import annotations

import re
from typing import Final

from vidflow.domain.detections import MAX_KEYPOINTS
from vidflow.infra.models.spec import MAX_LABELS

_TEXT: Final = r"""('[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*")"""
_DICT_ITEM: Final = re.compile(rf"""\s*["']?(\d{{1,6}})["']?\s*:\s*{_TEXT}\s*(,|\Z)""", re.ASCII | re.DOTALL)
_LIST_ITEM: Final = re.compile(rf"\s*(){_TEXT}\s*(,|\Z)", re.ASCII | re.DOTALL)
_LIST_KEY: Final = re.compile(r"""\s*["']?\d{1,6}["']?\s*:\s*\[""", re.ASCII)
_LISTED: Final = re.compile(rf"\s*{_TEXT}\s*([,\]])", re.ASCII | re.DOTALL)
_SEPARATOR: Final = re.compile(r"\s*(,|\Z)", re.ASCII)
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_SIMPLE_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}
_SIZE: Final = re.compile(r"[\[(]?\s*(\d{1,5})\s*(?:,\s*(\d{1,5})\s*)?,?\s*[\])]?", re.ASCII)


def parse_names(text: str) -> tuple[str, ...] | None:
    """Return the labels in a text such as `{0: 'person', 1: 'cat'}` or `['person', 'cat']`, by their number.

    None if it is not such a text, a number is missing or repeated, or there are no labels or more than MAX_LABELS.
    """
    stripped = text.strip()
    item = {"{": _DICT_ITEM, "[": _LIST_ITEM}.get(stripped[:1])
    if item is None or stripped[-1] != {"{": "}", "[": "]"}[stripped[0]]:
        return None
    labels: dict[int, str] = {}
    place, end = 1, len(stripped) - 1
    while place < end and len(labels) <= MAX_LABELS:
        match = item.match(stripped, place, end)
        label = _unescape(match[2][1:-1]) if match is not None else None
        if match is None or label is None:
            return None
        number = int(match[1]) if match[1] else len(labels)
        if number in labels:
            return None
        labels[number] = label
        place = match.end()
    if not 1 <= len(labels) <= MAX_LABELS or set(labels) != set(range(len(labels))):
        return None
    return tuple(labels[number] for number in range(len(labels)))


def parse_keypoint_names(text: str) -> tuple[str, ...] | None:
    """Return the names of keypoints in a text such as `{0: ['nose', 'left_eye']}`: a list for each class.

    None if it is not such a text, has more than MAX_KEYPOINTS names, or the lists of its classes differ.
    """
    stripped = text.strip()
    if stripped[:1] != "{" or stripped[-1:] != "}":
        return None
    lists: set[tuple[str, ...]] = set()
    place, end = 1, len(stripped) - 1
    while place < end:
        key = _LIST_KEY.match(stripped, place, end)
        names, place = _parse_list(stripped, key.end(), end) if key is not None else (None, end)
        separator = _SEPARATOR.match(stripped, place, end)
        if names is None or separator is None:
            return None
        lists.add(names)
        place = separator.end()
    return lists.pop() if len(lists) == 1 else None


def _parse_list(text: str, place: int, end: int) -> tuple[tuple[str, ...] | None, int]:
    """Return the texts of a list that starts before `place`, None if it is no such list, and the place after it."""
    names: list[str] = []
    while len(names) < MAX_KEYPOINTS:
        item = _LISTED.match(text, place, end)
        name = _unescape(item[1][1:-1]) if item is not None else None
        if item is None or name is None:
            break
        names.append(name)
        place = item.end()
        if item[2] == "]":
            return tuple(names), place
    return None, place


def parse_size(text: str) -> tuple[int, int] | None:
    """Return height and width in a text such as `[640, 640]` or `640`, None if it is not such a text."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    return int(match[1]), int(match[2] or match[1])


def _unescape(text: str) -> str | None:
    """Return the text with its escapes replaced. None if an escape is unknown or is no character."""
    faults: list[str] = []

    def replace(match: re.Match[str]) -> str:
        digits = match[1] or match[2] or match[3]
        if digits is None:
            character = _SIMPLE_ESCAPES.get(match[4])
        else:
            code = int(digits, 16)
            character = chr(code) if code < 0xD800 or 0xE000 <= code < 0x110000 else None
        if character is None:
            faults.append(match[0])
        return character or ""

    result = _ESCAPE.sub(replace, text)
    return None if faults else result
