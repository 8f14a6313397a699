"""Encoding and decoding of messages. Bytes from a topic are untrusted."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidflow.contract import MAX_SOURCE_CHARACTERS
from vidflow.domain.detections import Detection
from vidflow.domain.errors import ErrorInfo, MessageError, SourceError, build_error_info
from vidflow.domain.messages import (
    MAX_SAFE_INTEGER,
    CaptureClock,
    ClockChanges,
    CorruptPolicy,
    DeadLetter,
    Deploy,
    End,
    EndReason,
    Entry,
    FileIdentity,
    Forget,
    Frame,
    Gap,
    GapReason,
    Message,
    Parameters,
    Ping,
    PoisonPolicy,
    Probe,
    Report,
    ResumePoint,
    Shutdown,
    SourceLost,
    SourceOpened,
    Start,
    StopWork,
    WorkerWait,
    decode_command,
    decode_init_scenario,
    decode_result,
    decode_runner_event,
    encode,
)
from vidflow.domain.runner import RunnerState, build_report, record_worker_end
from vidflow.domain.scenario import MAX_SKIPS, Skip
from vidflow.roles.api.requests import MAX_BODY_BYTES

UUID = "01930000-0000-7000-8000-000000000001"
DEPLOY = Deploy(
    UUID, 7, "clip.mp4", "yolox_nano", "ab" * 32, "2.5", Parameters(
        0.5, ("person", "été"), PoisonPolicy.SKIP, CorruptPolicy.SKIP, duration_s=60.5,
        end_at=datetime.datetime(2026, 12, 24, 18, tzinfo=datetime.UTC), give_up_after_s=30, stream=1,
    ),
    ResumePoint(12, -3, "1/90000", 2**63 - 1, 4.25, FileIdentity(1000, 2)), 3, (Skip(None, 1), Skip(90, 2)),
)  # fmt: skip
REPORT = Report(
    "r1", "default", 3, 4, 17, True,
    (
        Entry(UUID, 7, 12, WorkerWait.INFERENCE),
        Entry(UUID, 8, 12, WorkerWait.START, EndReason.ERROR, ErrorInfo("source_missing", "no such file", 0), True, "last words"),
    ),
    "0.1.0",
)  # fmt: skip
FRAME = Frame(
    UUID, 7, 12, -5, "1/90000", -(2**63), 0.125, "2026-01-01T00:00:00Z", 640, 480,
    (Detection("person", 0.875, (1.0, 2.0, 3.5, 4.25)),), True, 2, 1_800_000_000_000_250, CaptureClock.RTCP, 1,
)  # fmt: skip
OPENED = SourceOpened(UUID, 7, 65535, 1, 12.5, 300, "h264", "mp4", True, FileIdentity(1, 2), "cuda:1")
LOST = SourceLost(UUID, 7, ErrorInfo("source_timeout", "it sends nothing"))
GAPS = (Gap(0.0, 1.5, GapReason.DROPPED, 3), Gap(1.5, 2.5, GapReason.STALLED))
END = End(UUID, 7, -1, EndReason.FINISHED, GAPS, ClockChanges(2.5, 1, 2, -3.5))
RESULTS = [OPENED, LOST, FRAME, msgspec.structs.replace(FRAME, gaps=GAPS), END, End(UUID, 7, 12, EndReason.STOPPED)]
COMMANDS = [DEPLOY, Deploy(UUID, 7, "clip.mp4", "motion"), StopWork(UUID, 7), Forget(UUID, 0), Ping("r1")]
EVENTS = [REPORT, Report("r1", "default", 0, 0, 0, False), Probe("leader", 1.5)]
WAKE_UPS = [Start(UUID), Shutdown(UUID)]

Decode = Callable[[bytes | None], Any]
DECODERS: list[Decode] = [decode_init_scenario, decode_command, decode_runner_event, decode_result]
PAIRS: list[tuple[Decode, Message]] = [
    *((decode_init_scenario, message) for message in WAKE_UPS),
    *((decode_command, message) for message in COMMANDS),
    *((decode_runner_event, message) for message in EVENTS),
    *((decode_result, message) for message in RESULTS),
]


@pytest.mark.parametrize(("decode", "message"), PAIRS)
def test_a_message_survives_encoding_and_decoding(decode: Decode, message: Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", [message for _, message in PAIRS])
def test_a_message_is_an_object_with_its_type_first(message: Message) -> None:
    assert next(iter(json.loads(encode(message)))) == "type"


@pytest.mark.parametrize(("decode", "message"), PAIRS)
def test_a_field_of_a_newer_release_is_ignored(decode: Decode, message: Message) -> None:
    assert decode(json.dumps({**json.loads(encode(message)), "from_tomorrow": {"a": [1]}}).encode()) == message


@pytest.mark.parametrize(("decode", "message"), PAIRS)
def test_a_message_of_another_topic_is_refused(decode: Decode, message: Message) -> None:
    for other in DECODERS:
        if other is not decode:
            with pytest.raises(MessageError):
                other(encode(message))


@pytest.mark.parametrize(("decode", "message"), PAIRS)
def test_a_truncated_message_is_refused(decode: Decode, message: Message) -> None:
    value = encode(message)
    for length in range(len(value)):
        with pytest.raises(MessageError):
            decode(value[:length])


def test_the_message_of_a_runner_that_does_not_know_devices_is_accepted() -> None:
    old = f'{{"type":"opened","scenario_uuid":"{UUID}","epoch":7,"width":64,"height":48,"codec":"h264"}}'
    assert decode_result(old.encode()) == SourceOpened(UUID, 7, 64, 48, codec="h264", device=None)


def test_a_dead_letter_keeps_any_bytes() -> None:
    letter = DeadLetter("results", 3, 12, "not a message", b"\x00\xff", b"{")
    assert msgspec.json.decode(encode(letter), type=DeadLetter) == letter


HOSTILE: list[bytes | None] = [
    None,
    b"",
    b" ",
    b"\x00",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b'"report"',
    b"1e999",
    b"NaN",
    b"[" * 100_000,
    b'{"type":' * 50_000,
    b'{"type":"report","entries":' + b"[" * 100_000,
    b'{"type":"frame","detections":' + b'[{"label":' * 50_000,
    b'{"type":null}',
    b'{"type":1}',
    b'{"type":"launch_missiles"}',
    b'{"type":"' + b"x" * 1_000_000 + b'"}',
    b'{"type":"start"}',
    b'{"type":"ping","runner":"\xed\xa0\x80"}',
    b'{"type":"ping","runner":"\\ud800"}',
    b'{"type":"ping","runner":' + b"9" * 10_000 + b"}",
]


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_bytes_raise_a_message_error(decode: Decode, value: bytes | None) -> None:
    with pytest.raises(MessageError):
        decode(value)


def changed(message: Message, **fields: object) -> bytes:
    return json.dumps({**json.loads(encode(message)), **fields}).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"scenario_uuid": "../../etc/passwd"},
        {"scenario_uuid": UUID.upper().replace("0", "A")},
        {"scenario_uuid": UUID + "\n"},
        {"scenario_uuid": None},
        {"epoch": -1},
        {"epoch": 2**53},
        {"epoch": 10**400},
        {"epoch": 1.5},
        {"epoch": "7"},
        {"epoch": True},
        {"frame_number": -1},
        {"frame_number": MAX_SAFE_INTEGER + 1},
        {"pts": 2**63},
        {"time_s": float("nan")},
        {"time_s": float("inf")},
        {"time_s": "0"},
        {"width": 0},
        {"height": 65536},
        {"at": "x" * 201},
        {"at": "nul\x00"},
        {"at": "\\\\\x00"},
        {"detections": [{"label": "\x00", "score": 0.5, "box": [0, 0, 1, 1]}]},
        {"time_base": 90000},
        {"detections": {}},
        {"detections": [{"label": "", "score": 0.5, "box": [0, 0, 1, 1]}]},
        {"detections": [{"label": "x", "score": 1.5, "box": [0, 0, 1, 1]}]},
        {"detections": [{"label": "x", "score": float("nan"), "box": [0, 0, 1, 1]}]},
        {"detections": [{"label": "x", "score": 0.5, "box": [0, 0, 1]}]},
        {"detections": [{"label": "x", "score": 0.5, "box": [-1, 0, 1, 1]}]},
        {"detections": [[1, 2, 3]]},
        {"captured_us": -1},
        {"captured_us": 253_402_300_800_000_000},
        {"captured_us": 1.5},
        {"captured_us": "2026-01-01T00:00:00Z"},
        {"captured_by": "sundial"},
        {"clock_drifts": -1},
    ],
)
def test_a_frame_with_an_invalid_value_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(MessageError):
        decode_result(changed(FRAME, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"scenario_uuid": UUID + "\n"},
        {"epoch": -1},
        {"epoch": 2**53},
        {"error": None},
        {"error": "source_timeout"},
        {"error": {"code": "source_timeout"}},
        {"error": {"code": "nul\0", "message": ""}},
        {"error": {"code": "", "message": "nul\0"}},
    ],
)
def test_a_lost_source_with_an_invalid_value_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(MessageError):
        decode_result(changed(LOST, **fields))


@pytest.mark.parametrize("at", ["\\u0000", "\\\\u0000", "\\", '\n"', "u0000"])
def test_a_text_that_only_looks_like_a_nul_is_accepted(at: str) -> None:
    frame = decode_result(changed(FRAME, at=at))
    assert isinstance(frame, Frame)
    assert frame.at == at


@pytest.mark.parametrize("time_s", [b"1e400", b"-1e400", b"1e", b"Infinity"])
def test_a_time_that_is_not_a_finite_number_is_refused(time_s: bytes) -> None:
    with pytest.raises(MessageError):
        decode_runner_event(b'{"type":"probe","leader":"x","sent_s":' + time_s + b"}")


@pytest.mark.parametrize(
    "fields",
    [
        {"capacity": -1},
        {"number": -1},
        {"taken": 2**64},
        {"draining": 1},
        {"entries": [{"scenario_uuid": UUID}]},
        {"entries": [{"scenario_uuid": UUID, "epoch": 1, "reason": "bored"}]},
        {"entries": [{"scenario_uuid": UUID, "epoch": 1, "detail": "x" * 10_001}]},
        {"entries": [{"scenario_uuid": UUID, "epoch": 1, "error": "none"}]},
        {"version": "x" * 201},
        {"runner": "x" * 201},
        {"capacity": 2**31},
    ],
)
def test_a_report_with_an_invalid_value_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(MessageError):
        decode_runner_event(changed(REPORT, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"runner": "r\0"},
        {"pool": "\0"},
        {"version": "1\0"},
        {"entries": [{"scenario_uuid": UUID, "epoch": 1, "reason": "crashed", "detail": "last\0words"}]},
        {"entries": [{"scenario_uuid": UUID, "epoch": 1, "reason": "error", "error": {"code": "\0", "message": ""}}]},
        {"entries": [{"scenario_uuid": UUID, "epoch": 1, "reason": "error", "error": {"code": "", "message": "\0"}}]},
    ],
)
def test_a_report_with_a_nul_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(MessageError):
        decode_runner_event(changed(REPORT, **fields))


def test_the_output_of_a_worker_is_sanitized_before_it_is_reported() -> None:
    state = RunnerState(1, entries=(Entry(UUID, 7),))
    report = build_report(
        record_worker_end(state, UUID, 7, EndReason.CRASHED, build_error_info(SourceError("a\0b")), detail="c\0d"),
        runner="r1", pool="default", number=1, version="1",
    )  # fmt: skip
    decoded = decode_runner_event(encode(report))
    assert isinstance(decoded, Report)
    assert decoded.entries[0].detail == "c\ufffdd"
    assert decoded.entries[0].error == ErrorInfo("source_invalid", "a\ufffdb")


@pytest.mark.parametrize(
    "fields",
    [
        {"parameters": {"score_threshold": 2}},
        {"parameters": {"unheard_of": 1}},
        {"parameters": {"labels": [""]}},
        {"parameters": {"on_poison": "pray"}},
        {"resume": {"next_frame": -1}},
        {"skips": [{"after_pts": "x", "frames": 1}]},
        {"attempt": -1},
        {"source": None},
    ],
)
def test_a_deploy_with_an_invalid_value_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(MessageError):
        decode_command(changed(DEPLOY, **fields))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=200), st.sampled_from(DECODERS))
def test_random_bytes_are_refused(value: bytes, decode: Decode) -> None:
    with pytest.raises(MessageError):  # every message has a uuid or a name
        decode(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(PAIRS), st.data())
def test_any_value_in_any_field_is_decoded_or_refused(pair: tuple[Decode, Message], data: st.DataObject) -> None:
    decode, message = pair
    field = data.draw(st.sampled_from(sorted(json.loads(encode(message)))))
    try:
        decoded = decode(changed(message, **{field: data.draw(JSON)}))
    except MessageError:
        return
    assert decode(encode(decoded)) == decoded


@pytest.mark.parametrize("letter", ['"', "\\", "\x7f", "é", "\N{GRINNING FACE}"])
def test_the_largest_deploy_that_the_api_accepts_fits_into_a_message(letter: str) -> None:
    label_bytes = len(msgspec.json.encode(letter)) - 2
    labels = tuple([letter * min(200, MAX_BODY_BYTES // 1000 // label_bytes)] * 1000)
    source = letter * MAX_SOURCE_CHARACTERS
    request = {"source": source, "model": source, "parameters": {"labels": labels}}
    assert len(msgspec.json.encode(request)) > 0.8 * MAX_BODY_BYTES
    deploy = Deploy(
        UUID, MAX_SAFE_INTEGER, source, source, "0" * 64, "9" * 30, Parameters(0.123456789, labels),
        ResumePoint(MAX_SAFE_INTEGER, -(2**63), "1/90000", -(2**63), -1.7976931348623157e308, FileIdentity(MAX_SAFE_INTEGER, -(2**63))),
        MAX_SAFE_INTEGER,
        tuple(Skip(-(2**63), MAX_SAFE_INTEGER) for _ in range(MAX_SKIPS)),
    )  # fmt: skip
    assert len(encode(deploy)) < 500_000
