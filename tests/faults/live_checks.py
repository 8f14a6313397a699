"""What must hold for a camera's scenario after any fault: time goes on, each frame is stored or in a gap, and only a shutdown ends it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import psycopg
from tests.faults.system_under_test import Frames, SystemUnderTest
from tests.faults.violation import violation

from vidflow.domain.scenario import Outcome

TOLERANCE_FRAMES: Final = 2
"""Frames by which frames and gaps together may differ from the time that they cover."""
TOLERANCE_S: Final = 0.001
MAX_TAIL_S: Final = 2.0
"""How long before the shutdown the last frame or gap may end. Capture times may be this far from the times of arrival."""

Connection = psycopg.Connection[Any]


def read_gaps(system: SystemUnderTest, uuid: str) -> Frames:
    """Return the gaps that a client reads."""
    gaps: Frames = []
    after: dict[str, str] = {}
    while True:
        page = system.vidflow.get(f"/scenario/{uuid}/gaps", limit="100", **after)
        gaps += page["items"]
        if page["next"] is None:
            return gaps
        after = {"after": page["next"]}


def check_stopped(connection: Connection, uuid: str, outcome: str) -> None:
    """The scenario was stopped by a shutdown, and its frames or gaps reach up to it."""
    if outcome != Outcome.STOPPED:
        raise violation(6, f"{uuid} reads a camera, which has no end, but is {outcome}")
    query = """
        SELECT extract(epoch FROM h.at)::float8
               - (SELECT extract(epoch FROM to_timestamp(p.origin_pts / 1e6))::float8
                         + greatest(p.last_time_s, (SELECT max(g.to_s) FROM scenario_gaps g WHERE g.scenario_uuid = p.scenario_uuid))
                    FROM scenario_progress p
                   WHERE p.scenario_uuid = h.scenario_uuid) AS tail_s
          FROM scenario_history h
         WHERE h.scenario_uuid = %s AND h.to_state = 'init_shutdown'
    """
    tails = connection.execute(query, (uuid,)).fetchall()
    if len(tails) != 1:
        raise violation(6, f"{uuid} was shut down {len(tails)} times")
    if tails[0].tail_s is not None and tails[0].tail_s > MAX_TAIL_S:
        raise violation(
            8, f"{uuid}: nothing is stored or reported for the last {tails[0].tail_s:.1f} s before the shutdown"
        )


def check_covered(uuid: str, frames: Frames, gaps: Frames, rate: int) -> None:
    """Frames and gaps follow each other in time, and are together as many as there were in it."""
    if [frame["frame_number"] for frame in frames] != list(range(len(frames))):
        raise violation(5, f"{uuid}: frame numbers {[frame['frame_number'] for frame in frames]}")
    if not frames:
        return
    steps = sorted(
        [(frame["frame_number"], frame["time_s"], frame["time_s"], 1, "frame") for frame in frames]
        + [(gap["after_frame"] + 0.5, gap["from_s"], gap["to_s"], gap["frames"], gap["reason"]) for gap in gaps]
    )
    for earlier, later in pairwise(steps):
        if later[1] < earlier[2] - TOLERANCE_S or later[2] < later[1]:
            raise violation(8, f"{uuid}: {later} overlaps {earlier}")
    for frame, following in pairwise(frames):
        number = frame["frame_number"]
        reported = [gap for gap in gaps if gap["after_frame"] == number]
        missing = round((following["time_s"] - frame["time_s"]) * rate) - 1
        if following["time_s"] <= frame["time_s"]:
            raise violation(8, f"{uuid}: time does not go on after {frame}")
        if abs(missing - sum(gap["frames"] or 0 for gap in reported)) > 1:
            raise violation(8, f"{uuid}: {missing} frames are missing after {frame}, but the gaps are {reported}")
    covered = sum(step[3] or 0 for step in steps if step[0] >= 0)
    elapsed = (steps[-1][2] - frames[0]["time_s"]) * rate + (1 if steps[-1][4] == "frame" else 0)
    if abs(covered - elapsed) > TOLERANCE_FRAMES:
        raise violation(8, f"{uuid}: {covered} frames are stored or in gaps, but there were {elapsed:.1f} of them")
