"""A report stays within its byte limit whatever its texts contain, and its texts are cut fairly."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidflow.domain.errors import ErrorInfo, sanitize_text
from vidflow.domain.messages import (
    MAX_SAFE_INTEGER,
    EndReason,
    Entry,
    Report,
    StopWork,
    WorkerWait,
    decode_runner_event,
    encode,
)
from vidflow.domain.report_size import (
    FULL_ENTRY_BYTES,
    LISTED_BYTES,
    PLAIN_ENTRY_BYTES,
    REPORT_BYTES,
    compute_fair_share_bytes,
    encode_report,
    fits_one_more_entry,
    keep_end,
    keep_start,
)
from vidflow.domain.runner import DETAIL_CHARACTERS, RunnerState, apply_command, build_report, record_worker_end

CLIENT_LIMIT = 1_000_000
"""The default message.max.bytes of librdkafka."""
ODD = ["\x01", "\x1b", '"', "\\", "\n", "\N{GRINNING FACE}", "é", "\x7f", "\u2028", "\N{REPLACEMENT CHARACTER}", "a"]
hostile = st.text(st.sampled_from(ODD), max_size=300) | st.text(max_size=100).map(sanitize_text)


def uuid(number: int) -> str:
    return f"01930000-0000-7000-8000-{number:012x}"


def failed(number: int, message: str, detail: str | None, code: str = "worker_failed") -> Entry:
    error = ErrorInfo(code, message, MAX_SAFE_INTEGER)
    return Entry(
        uuid(number),
        MAX_SAFE_INTEGER,
        MAX_SAFE_INTEGER,
        WorkerWait.INFERENCE,
        EndReason.HANDED_OVER,
        error,
        fatal=True,
        detail=detail,
    )


def report_of(*entries: Entry) -> Report:
    return Report(
        "r" * 200,
        "p" * 200,
        MAX_SAFE_INTEGER,
        65535,
        MAX_SAFE_INTEGER,
        draining=False,
        entries=entries,
        version="v" * 200,
    )


def decode_entries(value: bytes) -> tuple[Entry, ...]:
    event = decode_runner_event(value)
    assert isinstance(event, Report)
    return event.entries


def json_bytes(text: str) -> int:
    return len(msgspec.json.encode(text)) - 2


def is_start(text: str, original: str) -> bool:
    return text == original or (text.endswith("…") and original.startswith(text[:-1])) or not text


def is_end(text: str | None, original: str | None) -> bool:
    return text == original or not text or (text.startswith("…") and (original or "").endswith(text[1:]))


@settings(max_examples=50)
@given(st.lists(st.tuples(hostile, hostile | st.none(), hostile), max_size=12), st.integers(3000, 20_000))
def test_a_report_stays_within_its_budget_and_lists_every_entry(
    texts: list[tuple[str, str | None, str]], budget: int
) -> None:
    entries = [failed(number, message, detail, code) for number, (message, detail, code) in enumerate(texts)]
    budget = max(budget, 1000 + len(entries) * FULL_ENTRY_BYTES)
    value = encode_report(report_of(*entries), budget)
    assert len(value) <= budget
    for before, after in zip(entries, decode_entries(value), strict=True):
        assert before.error is not None
        assert after.error is not None
        assert is_start(after.error.code, before.error.code)
        assert is_start(after.error.message, before.error.message)
        assert is_end(after.detail, before.detail or None)
        bare = {"error": None, "detail": None}
        assert msgspec.structs.replace(after, **bare) == msgspec.structs.replace(before, **bare)


@given(hostile, st.integers(-5, 700))
def test_a_text_is_cut_to_the_longest_part_that_fits(text: str, limit: int) -> None:
    start, end = keep_start(text, limit), keep_end(text, limit)
    assert is_start(start, text)
    assert is_end(end, text)
    for cut, longer in ((start, text[: len(start)] + "…"), (end, "…" + text[len(text) - len(end) :])):
        if json_bytes(text) <= limit:
            assert cut == text
        else:
            assert json_bytes(cut) <= max(limit, 0)
            assert limit < 3 or (cut.strip("…") != text and json_bytes(longer) > limit)


@given(st.lists(st.integers(0, 5000), max_size=40), st.integers(-100, 50_000))
def test_shares_are_fair_and_use_the_available_bytes(sizes: list[int], room: int) -> None:
    share = compute_fair_share_bytes(sizes, room)
    used = sum(min(size, share) for size in sizes)
    assert used <= max(room, 0)
    cut = sum(size > share for size in sizes)
    assert not cut or max(room, 0) - used < len(sizes), "no bytes are left that could be shared"


def test_a_report_that_fits_is_not_changed() -> None:
    report = report_of(failed(1, "message", "detail" * 1000), failed(2, "x" * 500, None))
    assert encode_report(report) == encode(report)


@pytest.mark.parametrize("odd", [*ODD, "Traceback: in a line of a file\n"])
def test_five_hundred_failures_with_long_odd_texts_fit(odd: str) -> None:
    text = sanitize_text((odd * 8192)[:8192])
    entries = [failed(number, text[:4000], text[:DETAIL_CHARACTERS]) for number in range(500)]
    value = encode_report(report_of(*entries))
    assert CLIENT_LIMIT * 0.85 < len(value) <= REPORT_BYTES, "the available bytes are used"
    for entry in decode_entries(value):
        assert entry.error is not None
        assert entry.error.code == "worker_failed"
        assert json_bytes(entry.error.message) > 600
        assert json_bytes(entry.detail or "") > 600
        assert (entry.detail or "").endswith(text[-1])


def test_short_texts_stay_complete_beside_long_ones() -> None:
    long = [failed(number, "m" * 4000, "d" * 8192) for number in range(300)]
    short = [failed(number, "the model is missing", "last output") for number in range(300, 600)]
    after = decode_entries(encode_report(report_of(*long, *short)))
    assert list(after[300:]) == short
    assert len({(entry.error and len(entry.error.message), len(entry.detail or "")) for entry in after[:300]}) == 1


def test_an_entry_takes_at_most_the_bytes_reserved_for_it() -> None:
    full = failed(1, "\x01" * 4000, "\x01" * 8192, code="\x01" * 4000)
    (cut,) = decode_entries(encode_report(report_of(full), 1500))
    assert len(msgspec.json.encode(cut)) <= 1500
    bare = report_of(*[failed(number, "m" * 50, "d" * 50, code="c" * 64) for number in range(2)])
    assert len(encode(bare)) - len(encode(report_of(bare.entries[0]))) <= FULL_ENTRY_BYTES
    plain = Entry(uuid(1), MAX_SAFE_INTEGER, MAX_SAFE_INTEGER, WorkerWait.INFERENCE, EndReason.HANDED_OVER)
    assert len(msgspec.json.encode(plain)) < PLAIN_ENTRY_BYTES


def test_the_maximum_number_of_entries_fits_with_the_oddest_texts() -> None:
    max_entries = LISTED_BYTES // FULL_ENTRY_BYTES
    assert max_entries >= 2000
    entries = [failed(number, "\x01" * 600, "\x1b" * 1000, code="\x02" * 1000) for number in range(max_entries)]
    assert not fits_one_more_entry(entries)
    assert fits_one_more_entry(entries[1:])
    value = encode_report(report_of(*entries))
    assert len(value) <= REPORT_BYTES
    assert all(entry.error and entry.error.code.startswith("\x02") for entry in decode_entries(value))
    assert all(entry.error and entry.error.message and entry.detail for entry in decode_entries(value))


def test_thousands_of_entries_from_commands_alone_always_fit() -> None:
    stopped = tuple(Entry(uuid(number), MAX_SAFE_INTEGER, reason=EndReason.STOPPED) for number in range(4000))
    state = RunnerState(2, entries=stopped)
    for number in range(4000, 5000):
        state, _ = apply_command(state, StopWork(uuid(number), MAX_SAFE_INTEGER), 0.0)
    assert 4000 < len(state.entries) < 5000
    assert state.taken == 1000
    assert state.highest_seen_epoch(uuid(4999)) == MAX_SAFE_INTEGER, "its deploy is outdated anyway"
    report = build_report(state, runner="r", pool="p", number=1, version="1")
    assert len(encode_report(report)) <= REPORT_BYTES
    assert len(decode_entries(encode_report(report))) == len(state.entries)


def test_an_ended_entry_is_never_dropped_from_the_report() -> None:
    max_entries = LISTED_BYTES // FULL_ENTRY_BYTES
    state = RunnerState(
        max_entries, entries=tuple(Entry(uuid(number), 1, waits_for=WorkerWait.SOURCE) for number in range(max_entries))
    )
    for number in range(0, max_entries, 10):
        error = ErrorInfo("c" * 4000, "\x01" * 4000)
        state = record_worker_end(state, uuid(number), 1, EndReason.ERROR, error, detail="\x01" * 20_000)
    value = encode_report(build_report(state, runner="r", pool="p", number=1, version="1"))
    assert len(value) <= REPORT_BYTES
    assert [entry.scenario_uuid for entry in decode_entries(value)] == [uuid(number) for number in range(max_entries)]
