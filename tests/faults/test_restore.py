"""A database that was restored to an earlier moment, while Kafka and the runners know what came later. A whole real vidflow."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from tests.integration.delivery import read_topic
from tests.integration.server_owner import wait_until
from tests.integration.vidflow_process import DONE_LIMIT_S, VidflowClient, running_vidflow

from vidflow.domain.messages import RESULTS, decode_result
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.postgres import backup, retention
from vidflow.infra.postgres.connection import connect
from vidflow.infra.process.stopping import Stop

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(900)]

CLIP, FPS = "videos/one-by-one-person.mp4", 3


class ProgressAfterBackup(msgspec.Struct):
    """What a vidflow had done when its database was set back: the scenarios of the backup, and the newest epochs in Kafka."""

    backed_up: list[str]
    created_later: str
    frames: list[dict[str, Any]]
    epochs: dict[str, int]


def wait_until_stored(vidflow: VidflowClient, uuid: str, frames: int) -> None:
    wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] >= frames, f"{uuid} has {frames} frames", DONE_LIMIT_S)


def run_past_backup(vidflow: VidflowClient, shared: Path, folder: Path) -> ProgressAfterBackup:
    """Of the scenarios of the backup one has ended, two are under way, one waits; it goes on until a later one is under way.

    That one, born behind the backup, is lost with everything else that came later: this is what restoring means.
    """
    clip = shared / CLIP
    ended = vidflow.create_scenario(clip, "motion", FPS)
    assert vidflow.wait_until_inactive(ended)["outcome"] == "completed"
    frames = vidflow.frames(ended)
    short = vidflow.create_scenario(clip, "motion", FPS, priority=10)
    beside = vidflow.create_scenario(clip, "motion", FPS)
    waiting = vidflow.create_scenario(clip, "motion", FPS, priority=-10)
    wait_until_stored(vidflow, short, 20)
    wait_until_stored(vidflow, beside, 5)
    backup.write_backup(vidflow.stack.database_url, folder, replace=False, notify=print)
    assert vidflow.wait_until_inactive(short)["outcome"] == "completed"
    born_later = vidflow.create_scenario(clip, "motion", FPS, priority=10)
    wait_until_stored(vidflow, born_later, 5)
    return ProgressAfterBackup([ended, short, beside, waiting], born_later, frames, newest_epochs(vidflow))


def newest_epochs(vidflow: VidflowClient) -> dict[str, int]:
    newest: dict[str, int] = {}
    for message in read_topic(vidflow.stack.kafka, RESULTS):
        result = decode_result(message.value())
        newest[result.scenario_uuid] = max(newest.get(result.scenario_uuid, 0), result.epoch)
    return newest


def assert_reconciled(vidflow: VidflowClient, later: ProgressAfterBackup) -> None:
    for uuid in later.backed_up:
        end = vidflow.wait_until_inactive(uuid)
        assert (end["outcome"], end["error"]) == ("completed", None), uuid
        assert vidflow.frames(uuid) == later.frames
    assert vidflow.http.get(f"/scenario/{later.created_later}").status_code == 404
    wait_until(lambda: nothing_left(vidflow), "outbox and runners are empty", DONE_LIMIT_S)
    with connect(vidflow.stack.database_url, name="test") as tables:
        assert retention.default_span_ms(tables) is None  # all results lie in the leader's partitions


def nothing_left(vidflow: VidflowClient) -> bool:
    with psycopg.connect(vidflow.stack.database_url) as tables:
        [(waiting,)] = tables.execute("SELECT count(*) FROM outbox WHERE published_at IS NULL").fetchall()
        [(used,)] = tables.execute(
            "SELECT coalesce(sum(used), 0) FROM runners WHERE last_seen_at > now() - interval '3 s'"
        ).fetchall()
    return bool(waiting == 0 and used == 0)


def database_time(url: str) -> datetime.datetime:
    with psycopg.connect(url) as tables:
        [(now,)] = tables.execute("SELECT clock_timestamp()").fetchall()
    assert isinstance(now, datetime.datetime)
    return now


def assert_no_epoch_twice(vidflow: VidflowClient, later: ProgressAfterBackup, restored_at: datetime.datetime) -> None:
    """Every epoch that was given out behind the restore is newer than all that Kafka held by then."""
    with psycopg.connect(vidflow.stack.database_url) as tables:
        for uuid in later.backed_up:
            moves = tables.execute(
                "SELECT epoch, at > %s FROM scenario_history WHERE scenario_uuid = %s ORDER BY number",
                (restored_at, uuid),
            ).fetchall()
            epochs = [epoch for epoch, _ in moves]
            assert epochs == sorted(epochs)
            given_out = {epoch for epoch, new in moves if new} - {epoch for epoch, new in moves if not new}
            assert all(epoch > later.epochs.get(uuid, 0) for epoch in given_out), (uuid, given_out, later.epochs)


def restore_while_stopped(folder: Path, backup_folder: Path) -> datetime.datetime:
    server = EmbeddedPostgres(folder / "postgres", notify=print, stop=Stop())
    try:
        server.start()
        at = database_time(server.url)
        backup.restore(server.url, backup_folder, replace=True, notify=print)
        return at
    finally:
        server.stop()


def test_invariants_4_and_7_a_restore_of_a_stopped_vidflow_leaves_nothing_stuck(tmp_path: Path, shared: Path) -> None:
    with running_vidflow(tmp_path / "data") as vidflow:
        later = run_past_backup(vidflow, shared, tmp_path / "backup")
    restored_at = restore_while_stopped(tmp_path / "data", tmp_path / "backup")
    with running_vidflow(tmp_path / "data") as vidflow:
        assert_reconciled(vidflow, later)
        assert_no_epoch_twice(vidflow, later, restored_at)


def test_invariants_4_and_7_a_restore_under_a_running_vidflow_leaves_nothing_stuck(
    tmp_path: Path, shared: Path
) -> None:
    """Leader, relay, inbox and runner live on, with what they know of a time that has not been."""
    with running_vidflow(tmp_path / "data") as vidflow:
        later = run_past_backup(vidflow, shared, tmp_path / "backup")
        restored_at = database_time(vidflow.stack.database_url)
        backup.restore(vidflow.stack.database_url, tmp_path / "backup", replace=True, notify=print)
        assert_reconciled(vidflow, later)
        assert_no_epoch_twice(vidflow, later, restored_at)
