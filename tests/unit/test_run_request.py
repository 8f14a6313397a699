"""The request that `vidflow run` sends to the api."""

from __future__ import annotations

import pytest

from vidflow.commands.run.request import build_request
from vidflow.domain.errors import ParameterError
from vidflow.settings import RunOptions

VIDEO = "http://camera.example/video.mp4"


@pytest.mark.parametrize(
    ("typed", "sent"), [("all", "all"), ("2", 2), ("29.97", 29.97), ("30000/1001", "30000/1001"), ("1/2", 0.5)]
)
def test_the_frame_rate_is_sent_exactly_as_typed(typed: str, sent: object) -> None:
    assert build_request(RunOptions(video=VIDEO, fps=typed)).fps == sent


@pytest.mark.parametrize("typed", ["0", "1001", "1/0", "0x10", "9" * 500, ""])
def test_an_invalid_frame_rate_is_refused_with_the_accepted_forms(typed: str) -> None:
    with pytest.raises(ParameterError, match="Use a number above 0 and up to 1000, a fraction") as refusal:
        build_request(RunOptions(video=VIDEO, fps=typed))
    assert len(refusal.value.message) < 250
