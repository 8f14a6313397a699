"""Limits the encoded size of a report, whatever error texts its entries contain.

A report lists every entry in one message, and brokers refuse messages above a size limit. The texts of the entries therefore
share the available bytes: short texts stay complete, long ones are cut to the same encoded size. Nothing else is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Entry, Report, encode

REPORT_BYTES: Final = 900_000
"""Below the default limits of Kafka clients (1,000,000) and brokers (1,048,588), with room for keys and framing."""
CODE_BYTES: Final = 64
"""Longer than any of vidflow's codes. A compromised worker may report a longer one."""
PLAIN_ENTRY_BYTES: Final = 200
"""Upper bound for an ended entry without an error."""
FULL_ENTRY_BYTES: Final = 440
"""Upper bound for the space reserved for any entry: with an error, the start of its message and the end of its detail."""
LISTED_BYTES: Final = REPORT_BYTES - 10_000
"""Limit for all entries together; the rest is for the report's other fields."""
_CUT: Final = "…"
_CUT_BYTES: Final = len(_CUT.encode())
_DETAIL_KEY_BYTES: Final = len(b',"detail":""')
_encoder: Final = msgspec.json.Encoder()


def fits_one_more_entry(entries: Sequence[Entry]) -> bool:
    """Return whether a report can list one more entry besides these, however the running ones end."""
    if (len(entries) + 1) * FULL_ENTRY_BYTES <= LISTED_BYTES:
        return True
    return sum(_estimate_bytes(entry) for entry in entries) + FULL_ENTRY_BYTES <= LISTED_BYTES


def encode_report(report: Report, budget_bytes: int = REPORT_BYTES) -> bytes:
    """Encode the report in at most `budget_bytes`, provided that `fits_one_more_entry` allowed each of its entries.

    Texts are cut only if necessary. Codes and messages keep their start, details their end.
    """
    if sum(len(entry.detail or "") for entry in report.entries) <= budget_bytes:
        value = encode(report)
        if len(value) <= budget_bytes:
            return value
    bare = [_strip_texts(entry) for entry in report.entries]
    room = budget_bytes - len(encode(msgspec.structs.replace(report, entries=tuple(bare))))
    texts = [_EntryTexts(entry) for entry in report.entries]
    share = compute_fair_share_bytes([text.size for text in texts], room)
    entries = tuple(text.cut_to(share, entry) for text, entry in zip(texts, bare, strict=True))
    return encode(msgspec.structs.replace(report, entries=entries))


def compute_fair_share_bytes(sizes: Sequence[int], room: int) -> int:
    """Return the largest share for which the sizes, each capped at the share, fit into `room`."""
    left = max(room, 0)
    for index, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - index)
        if size > share:
            return share
        left -= size
    return max(sizes, default=0)


def keep_start(text: str, limit_bytes: int) -> str:
    """Return the text, cut at its end to `limit_bytes` in JSON including an ellipsis."""
    if _fits(text, limit_bytes):
        return text
    kept = _find_longest(len(text), limit_bytes - _CUT_BYTES, lambda count: text[:count])
    return "" if kept is None else text[:kept] + _CUT


def keep_end(text: str, limit_bytes: int) -> str:
    """Return the text, cut at its start to `limit_bytes` in JSON including an ellipsis."""
    if _fits(text, limit_bytes):
        return text
    kept = _find_longest(len(text), limit_bytes - _CUT_BYTES, lambda count: text[len(text) - count :])
    return "" if kept is None else _CUT + text[len(text) - kept :]


class _EntryTexts:
    """The texts of an entry and their encoded size in bytes."""

    def __init__(self, entry: Entry) -> None:
        self._message = entry.error.message if entry.error is not None else ""
        self._detail = entry.detail or ""
        self._message_bytes = _measure_bytes(self._message)
        self._detail_bytes = _measure_bytes(self._detail) + _DETAIL_KEY_BYTES if self._detail else 0
        self.size = self._message_bytes + self._detail_bytes

    def cut_to(self, share: int, bare: Entry) -> Entry:
        """Return the bare entry with its texts cut to the share: half for each, or more if the other is short."""
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
    return len(text) <= limit_bytes and _measure_bytes(text) <= limit_bytes  # a character has at least one byte


def _measure_bytes(text: str) -> int:
    """Return the size of a text in JSON without its quotes. A control character takes six bytes, a quote two."""
    return len(_encoder.encode(text)) - 2


def _find_longest(length: int, limit_bytes: int, part: Callable[[int], str]) -> int | None:
    """Return the largest count up to `length` for which `part` fits into `limit_bytes`, None if not even count 0 does."""
    if limit_bytes < 0:
        return None
    low, high = 0, min(length, limit_bytes)
    while low < high:
        middle = (low + high + 1) // 2
        if _measure_bytes(part(middle)) <= limit_bytes:
            low = middle
        else:
            high = middle - 1
    return low
