"""The database of a complete vidflow is restored to an earlier time, while Kafka and the runners hold later state."""

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

from vidflow.domain.messages import decode_result
from vidflow.domain.topics import RESULTS
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.postgres import backup, retention
from vidflow.infra.postgres.connection import connect
from vidflow.infra.process.stopping import Stop

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(900)]

CLIP, FPS = "videos/one-by-one-person.mp4", 3


class ProgressAfterBackup(msgspec.Struct):
    """The state before a restore: the scenarios of the backup, one created after it, and the newest epochs in Kafka.

    `frames` is what every scenario of the clip must contain.
    """

    backed_up: list[str]
    created_later: str
    frames: list[dict[str, Any]]
    epochs: dict[str, int]


def wait_until_stored(vidflow: VidflowClient, uuid: str, frames: int) -> None:
    wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] >= frames, f"{uuid} has {frames} frames", DONE_LIMIT_S)


def run_past_backup(vidflow: VidflowClient, shared: Path, folder: Path) -> ProgressAfterBackup:
    """Make a backup with one completed, two running and one queued scenario, and continue until a later one is running.

    A restore loses the later scenario, as everything after the backup.
    """
    clip = shared / CLIP
    completed = vidflow.create_scenario(clip, "motion", FPS)
    assert vidflow.wait_until_inactive(completed)["outcome"] == "completed"
    frames = vidflow.frames(completed)
    first = vidflow.create_scenario(clip, "motion", FPS, priority=10)
    second = vidflow.create_scenario(clip, "motion", FPS)
    waiting = vidflow.create_scenario(clip, "motion", FPS, priority=-10)
    wait_until_stored(vidflow, first, 20)
    wait_until_stored(vidflow, second, 5)
    backup.write_backup(vidflow.stack.database_url, folder, replace=False, notify=print)
    assert vidflow.wait_until_inactive(first)["outcome"] == "completed"
    created_later = vidflow.create_scenario(clip, "motion", FPS, priority=10)
    wait_until_stored(vidflow, created_later, 5)
    backed_up = [completed, first, second, waiting]
    return ProgressAfterBackup(backed_up, created_later, frames, newest_epochs(vidflow))


def newest_epochs(vidflow: VidflowClient) -> dict[str, int]:
    newest: dict[str, int] = {}
    for message in read_topic(vidflow.stack.kafka, RESULTS):
        result = decode_result(message.value())
        newest[result.scenario_uuid] = max(newest.get(result.scenario_uuid, 0), result.epoch)
    return newest


def assert_reconciled(vidflow: VidflowClient, before_restore: ProgressAfterBackup) -> None:
    for uuid in before_restore.backed_up:
        end = vidflow.wait_until_inactive(uuid)
        assert (end["outcome"], end["error"]) == ("completed", None), uuid
        assert vidflow.frames(uuid) == before_restore.frames
    assert vidflow.http.get(f"/scenario/{before_restore.created_later}").status_code == 404
    wait_until(lambda: nothing_left(vidflow), "the outbox and the runners are empty", DONE_LIMIT_S)
    with connect(vidflow.stack.database_url, name="test") as connection:
        assert retention.default_span_ms(connection) is None  # all results are in the partitions the leader creates


def nothing_left(vidflow: VidflowClient) -> bool:
    with psycopg.connect(vidflow.stack.database_url) as connection:
        [(waiting,)] = connection.execute("SELECT count(*) FROM outbox").fetchall()
        [(used,)] = connection.execute(
            "SELECT coalesce(sum(used), 0) FROM runners WHERE last_seen_at > now() - interval '3 s'"
        ).fetchall()
    return bool(waiting == 0 and used == 0)


def database_time(url: str) -> datetime.datetime:
    with psycopg.connect(url) as connection:
        [(now,)] = connection.execute("SELECT clock_timestamp()").fetchall()
    assert isinstance(now, datetime.datetime)
    return now


def assert_no_epoch_twice(
    vidflow: VidflowClient, before_restore: ProgressAfterBackup, restored_at: datetime.datetime
) -> None:
    """Every epoch assigned after the restore is newer than all epochs that were in Kafka before it."""
    with psycopg.connect(vidflow.stack.database_url) as connection:
        for uuid in before_restore.backed_up:
            moves = connection.execute(
                "SELECT epoch, at > %s FROM scenario_history WHERE scenario_uuid = %s ORDER BY number",
                (restored_at, uuid),
            ).fetchall()
            epochs = [epoch for epoch, _ in moves]
            assert epochs == sorted(epochs)
            assigned = {epoch for epoch, new in moves if new} - {epoch for epoch, new in moves if not new}
            assert all(epoch > before_restore.epochs.get(uuid, 0) for epoch in assigned), (
                uuid,
                assigned,
                before_restore.epochs,
            )


def restore_while_stopped(folder: Path, backup_folder: Path) -> datetime.datetime:
    server = EmbeddedPostgres(folder / "postgres", notify=print, stop=Stop())
    try:
        server.start()
        restored_at = database_time(server.url)
        backup.restore(server.url, backup_folder, replace=True, notify=print)
        return restored_at
    finally:
        server.stop()


def test_invariants_4_and_7_a_restore_of_a_stopped_vidflow_leaves_nothing_stuck(tmp_path: Path, shared: Path) -> None:
    with running_vidflow(tmp_path / "data") as vidflow:
        before_restore = run_past_backup(vidflow, shared, tmp_path / "backup")
    restored_at = restore_while_stopped(tmp_path / "data", tmp_path / "backup")
    with running_vidflow(tmp_path / "data") as vidflow:
        assert_reconciled(vidflow, before_restore)
        assert_no_epoch_twice(vidflow, before_restore, restored_at)


def test_invariants_4_and_7_a_restore_under_a_running_vidflow_leaves_nothing_stuck(
    tmp_path: Path, shared: Path
) -> None:
    """Leader, relay, inbox and runner keep running with state from after the restored time."""
    with running_vidflow(tmp_path / "data") as vidflow:
        before_restore = run_past_backup(vidflow, shared, tmp_path / "backup")
        restored_at = database_time(vidflow.stack.database_url)
        backup.restore(vidflow.stack.database_url, tmp_path / "backup", replace=True, notify=print)
        assert_reconciled(vidflow, before_restore)
        assert_no_epoch_twice(vidflow, before_restore, restored_at)
