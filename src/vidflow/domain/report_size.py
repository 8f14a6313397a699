"""Keeps a report below a number of bytes, however many of its workers failed with however long and odd words.

A report lists every entry, in one message, and a broker takes no message above a limit. So the texts of its entries share what
room there is: short ones stay whole, long ones are cut to the same number of bytes as they are encoded. Nothing else is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Entry, Report, encode

REPORT_BYTES: Final = 900_000
"""Below the limits of a Kafka client (1,000,000) and a broker (1,048,588) by default, with room for keys and framing."""
CODE_BYTES: Final = 64
"""More than any code of ours has; a worker that was taken over may give any."""
PLAIN_ENTRY_BYTES: Final = 200
"""The most that an ended entry without an error takes."""
FULL_ENTRY_BYTES: Final = 440
"""The most that any entry needs: with an error, and the start of its message and the end of its detail."""
LISTED_BYTES: Final = REPORT_BYTES - 10_000
"""What all entries may need together, beside the report's own fields."""
_CUT: Final = "…"
_CUT_BYTES: Final = len(_CUT.encode())
_DETAIL_KEY_BYTES: Final = len(b',"detail":""')
_encoder: Final = msgspec.json.Encoder()


def fits_one_more_entry(entries: Sequence[Entry]) -> bool:
    """Return whether a report can list one more entry beside these, whatever becomes of those that run."""
    if (len(entries) + 1) * FULL_ENTRY_BYTES <= LISTED_BYTES:
        return True
    return sum(_estimate_bytes(entry) for entry in entries) + FULL_ENTRY_BYTES <= LISTED_BYTES


def encode_report(report: Report, budget_bytes: int = REPORT_BYTES) -> bytes:
    """Return the report as bytes, at most `budget_bytes` of them as long as its entries have their place there.

    Texts are cut only where that is needed: a code and a message keep their start, a detail its end.
    """
    if sum(len(entry.detail or "") for entry in report.entries) <= budget_bytes:
        whole = encode(report)
        if len(whole) <= budget_bytes:
            return whole
    bare = [_strip_texts(entry) for entry in report.entries]
    room = budget_bytes - len(encode(msgspec.structs.replace(report, entries=tuple(bare))))
    texts = [_EntryTexts(entry) for entry in report.entries]
    share = compute_fair_share_bytes([one.size for one in texts], room)
    entries = tuple(one.cut_to(share, entry) for one, entry in zip(texts, bare, strict=True))
    return encode(msgspec.structs.replace(report, entries=entries))


def compute_fair_share_bytes(sizes: Sequence[int], room: int) -> int:
    """Return the largest share such that all sizes, none counted above the share, fit into `room`."""
    left = max(room, 0)
    for place, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - place)
        if size > share:
            return share
        left -= size
    return max(sizes, default=0)


def keep_start(text: str, limit_bytes: int) -> str:
    """Return the text, or its longest start that has `limit_bytes` inside JSON with an ellipsis after it."""
    if _fits(text, limit_bytes):
        return text
    kept = _find_longest(len(text), limit_bytes - _CUT_BYTES, lambda count: text[:count])
    return "" if kept is None else text[:kept] + _CUT


def keep_end(text: str, limit_bytes: int) -> str:
    """Return the text, or its longest end that has `limit_bytes` inside JSON with an ellipsis before it."""
    if _fits(text, limit_bytes):
        return text
    kept = _find_longest(len(text), limit_bytes - _CUT_BYTES, lambda count: text[len(text) - count :])
    return "" if kept is None else _CUT + text[len(text) - kept :]


class _EntryTexts:
    """The texts of an entry and how many bytes they take in its encoded form."""

    def __init__(self, entry: Entry) -> None:
        self._message = entry.error.message if entry.error is not None else ""
        self._detail = entry.detail or ""
        self._message_bytes = _measure_bytes(self._message)
        self._detail_bytes = _measure_bytes(self._detail) + _DETAIL_KEY_BYTES if self._detail else 0
        self.size = self._message_bytes + self._detail_bytes

    def cut_to(self, share: int, bare: Entry) -> Entry:
        """Return the bare entry with as much of its texts as the share takes: half for each, or more where the other is short."""
        message = keep_start(self._message, max(share // 2, share - self._detail_bytes))
        detail = keep_end(self._detail, share - _measure_bytes(message) - _DETAIL_KEY_BYTES)
        error = None if bare.error is None else msgspec.structs.replace(bare.error, message=message)
        return msgspec.structs.replace(bare, error=error, detail=detail or None)


def _strip_texts(entry: Entry) -> Entry:
    error = entry.error
    if error is not None:
        error = ErrorInfo(keep_start(error.code, CODE_BYTES), "", error.frame_number)
    return msgspec.structs.replace(entry, error=error, detail=None)


def _estimate_bytes(entry: Entry) -> int:
    is_plain = not entry.is_running and entry.error is None and entry.detail is None
    return PLAIN_ENTRY_BYTES if is_plain else FULL_ENTRY_BYTES


def _fits(text: str, limit_bytes: int) -> bool:
    return len(text) <= limit_bytes and _measure_bytes(text) <= limit_bytes  # no character has less than a byte


def _measure_bytes(text: str) -> int:
    """The bytes of a text inside JSON, its quotes not counted: a control character has six, a quote two."""
    return len(_encoder.encode(text)) - 2


def _find_longest(most: int, limit_bytes: int, part: Callable[[int], str]) -> int | None:
    """The largest count up to `most` whose part has at most `limit_bytes`; None where not even an empty one fits."""
    if limit_bytes < 0:
        return None
    least = 0
    most = min(most, limit_bytes)
    while least < most:
        middle = (least + most + 1) // 2
        if _measure_bytes(part(middle)) <= limit_bytes:
            least = middle
        else:
            most = middle - 1
    return least
