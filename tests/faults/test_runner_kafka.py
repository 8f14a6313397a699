"""A runner and its workers while Kafka is unreachable: briefly, for too long, and after its topic has been recreated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests import clips
from tests.faults.injection import frozen
from tests.integration import faulty_models
from tests.integration.delivery import remove_topics
from tests.integration.runner_harness import ControlPlane, RunnerProcess, make_deploy, new_uuid, running_runner
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import EndReason
from vidflow.domain.topics import RESULTS, commands_topic
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.kafka import admin, errors, offsets, topics
from vidflow.infra.process.stopping import Stop
from vidflow.settings import read_environment_variable

pytestmark = [pytest.mark.long, pytest.mark.fault, pytest.mark.timeout(240)]

FREEZE_S = 30.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedKafka]:
    """A broker for one test, which may freeze or kill it."""
    broker = EmbeddedKafka(
        tmp_path / "kafka", notify=print, stop=Stop(), cache=read_environment_variable("VIDFLOW_CACHE_DIR")
    )
    try:
        yield broker.start()
    finally:
        broker.stop()


@pytest.fixture
def control_plane(broker: EmbeddedKafka) -> Iterator[ControlPlane]:
    with closing(ControlPlane(broker.settings)) as control_plane:
        yield control_plane


@pytest.fixture
def runner_process(broker: EmbeddedKafka, control_plane: ControlPlane, tmp_path: Path) -> Iterator[RunnerProcess]:  # noqa: ARG001
    with running_runner(
        broker.settings, tmp_path, "--any-file", environment=faulty_models.install(tmp_path)
    ) as process:
        yield process


def start_slow_worker(control_plane: ControlPlane, runner: str, folder: Path, frames: int) -> str:
    """Deploy a new scenario to the runner, and wait until its worker sends frames. Return its uuid."""
    uuid = new_uuid()
    control_plane.send_command(
        runner, make_deploy(uuid, clips.constant_rate(folder / "clip.mp4", frames=frames), "slow_inference")
    )
    control_plane.wait_until(lambda: control_plane.frames(uuid), "the worker is running")
    return uuid


@contextmanager
def frozen_broker(broker: EmbeddedKafka) -> Iterator[None]:
    """Freeze the broker while the block runs."""
    assert broker.pid is not None
    with frozen([broker.pid]):
        yield


def test_a_short_freeze_of_the_broker_loses_no_frames(
    broker: EmbeddedKafka, control_plane: ControlPlane, runner_process: RunnerProcess, tmp_path: Path
) -> None:
    name = runner_process.wait_for_id(control_plane)
    uuid = start_slow_worker(control_plane, name, tmp_path, frames=400)
    with frozen_broker(broker), pytest.raises(AssertionError, match="silence"):
        wait_until(lambda: False, "silence", limit_s=8)
    end = control_plane.wait_for_end_marker(uuid)
    assert [frame.frame_number for frame in control_plane.frames(uuid)] == list(range(400))
    assert (end.last_frame, end.reason) == (399, EndReason.FINISHED)


@pytest.mark.whole
@pytest.mark.timeout(400)
def test_an_admin_client_gets_answers_again_soon_after_each_long_freeze(broker: EmbeddedKafka) -> None:
    """Freeze three times: after 30 s only about one client in three stays without answers for minutes."""
    topics.create_topics(broker.settings)
    client = admin.ReplacingAdmin(broker.settings)
    answered: list[bool] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.5):
            try:
                client.call(offsets.read_end_offsets, RESULTS)
                answered.append(True)
            except errors.KafkaAway:
                answered.append(False)

    thread = threading.Thread(target=ask, name="admin requests")
    thread.start()
    try:
        for _ in range(3):
            wait_until(lambda: answered[-3:] == [True] * 3, "the client gets answers")
            with frozen_broker(broker), pytest.raises(AssertionError, match="silence"):
                wait_until(lambda: False, "silence", limit_s=FREEZE_S)
            answered.clear()
            wait_until(lambda: answered[-3:] == [True] * 3, "the client gets answers again", limit_s=20)
    finally:
        over.set()
        thread.join()


def test_a_runner_that_was_cut_off_ends_its_workers_and_reports_it_afterwards(
    broker: EmbeddedKafka, control_plane: ControlPlane, runner_process: RunnerProcess, tmp_path: Path
) -> None:
    name = runner_process.wait_for_id(control_plane)
    uuid = start_slow_worker(control_plane, name, tmp_path, frames=9000)
    with frozen_broker(broker):
        wait_until(lambda: "cut_off" in runner_process.log, "the runner is cut off", limit_s=60)
        wait_until(lambda: runner_process.workers() == [], "its worker has ended")
    entry = control_plane.wait_until_ended(name, uuid)
    assert entry.reason is EndReason.CUT_OFF
    assert entry.error is None
    next_uuid = new_uuid()
    control_plane.send_command(name, make_deploy(next_uuid, clips.constant_rate(tmp_path / "short.mp4")))
    assert control_plane.wait_for_end_marker(next_uuid).last_frame == 49


def test_a_runner_whose_topic_is_recreated_hands_over_and_exits(
    broker: EmbeddedKafka, control_plane: ControlPlane, runner_process: RunnerProcess, tmp_path: Path
) -> None:
    name = runner_process.wait_for_id(control_plane)
    uuid = start_slow_worker(control_plane, name, tmp_path, frames=9000)
    topic = commands_topic("default")
    remove_topics(broker.settings, [topic])
    topics.create_topics(broker.settings)
    assert runner_process.process.wait(60) != 0
    assert control_plane.wait_until_ended(name, uuid).reason is EndReason.HANDED_OVER
    assert "deleted and created again" in runner_process.log
