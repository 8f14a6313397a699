"""The bodies of the HTTP API: their JSON form, and the raw frames of a page of predictions."""

from __future__ import annotations

import datetime
import json

import msgspec

from vidflow import contract
from vidflow.domain import detections
from vidflow.domain.messages import CaptureClock
from vidflow.infra.postgres.results import FrameRow, ResultPage
from vidflow.roles.api.bodies import build_prediction_page


def test_a_frame_result_has_the_documented_json_form() -> None:
    detection = contract.Detection("person", 0.88, (1.0, 2.0, 3.0, 4.5))
    result = contract.FrameResult(12, 3, 2.4, 640, 480, (detection,))
    assert json.loads(msgspec.json.encode(result)) == {
        "frame_number": 12,
        "epoch": 3,
        "time_s": 2.4,
        "width": 640,
        "height": 480,
        "detections": [{"label": "person", "score": 0.88, "box": [1.0, 2.0, 3.0, 4.5]}],
    }


def test_stored_detections_have_exactly_the_fields_of_the_contract() -> None:
    """They are copied into the page without decoding, so that only this test compares the two forms."""
    keypoints = ((1.0, 2.5, 0.75), (3.0, 4.0, 0.0))
    mask = detections.Mask((480, 640), "0\\u0000o")  # no escape of JSON: a backslash and five characters
    corners = ((-1.0, 2.0), (3.0, 2.0), (3.0, 4.5), (-1.0, 4.5))
    stored = msgspec.json.encode(
        [detections.Detection('per"son\\ü', 0.88, (1.0, 2.0, 3.0, 4.5), keypoints, corners, mask)]
    ).decode()
    page = ResultPage(
        [
            FrameRow(0, 3, 0.0, 640, 480, False, None, None, "[]"),
            FrameRow(1, 4, 1e-7, 640, 480, True, "2026-11-28T12:00:00.000250Z", "arrival", stored),
        ],
        1,
        False,
        False,
    )
    body = msgspec.json.encode(build_prediction_page(page))
    decoded = msgspec.json.decode(body, type=contract.PredictionPage)
    assert (decoded.items[1].time_s, decoded.items[1].detections[0].label) == (1e-7, 'per"son\\ü')
    assert decoded.items[1].detections[0].keypoints == list(keypoints)
    assert decoded.items[1].detections[0].corners == list(corners)
    assert decoded.items[1].detections[0].mask == contract.Mask((480, 640), "0\\u0000o")
    assert contract.Detection.__struct_fields__ == detections.Detection.__struct_fields__
    assert [(frame.epoch, frame.corrupt, frame.captured_by) for frame in decoded.items] == [
        (3, False, None), (4, True, CaptureClock.ARRIVAL),
    ]  # fmt: skip
    assert decoded.items[1].captured_at == datetime.datetime(2026, 11, 28, 12, 0, 0, 250, datetime.UTC)
    assert (decoded.next, decoded.complete) == ("1", False)
    assert json.loads(msgspec.json.encode(decoded)) == json.loads(body)


def test_a_complete_page_has_no_cursor() -> None:
    page = build_prediction_page(ResultPage([FrameRow(0, 1, 0.0, 640, 480, False, None, None, "[]")], 0, True, False))
    assert (page.next, page.complete) == (None, True)
