"""A runner and its workers while Kafka is away: shortly, for longer than a runner's patience, and for good for one topic."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import clips
from tests.integration import faulty_models
from tests.integration.delivery import remove_topics
from tests.integration.runner_harness import ControlPlane, RunnerProcess, make_deploy, new_uuid, running_runner
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import RESULTS, EndReason, commands_topic
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.kafka import admin, errors, offsets, topics
from vidflow.infra.process.stopping import Stop
from vidflow.settings import read_environment_variable

pytestmark = [pytest.mark.long, pytest.mark.fault, pytest.mark.timeout(240)]

STANDSTILL_S = 30.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedKafka]:
    """A broker of the test's own, to be frozen and killed."""
    broker = EmbeddedKafka(
        tmp_path / "kafka", notify=print, stop=Stop(), cache=read_environment_variable("VIDFLOW_CACHE_DIR")
    )
    try:
        yield broker.start()
    finally:
        broker.stop()


@pytest.fixture
def stage(broker: EmbeddedKafka) -> Iterator[ControlPlane]:
    stage = ControlPlane(broker.settings)
    yield stage
    stage.close()


@pytest.fixture
def runner_process(broker: EmbeddedKafka, stage: ControlPlane, tmp_path: Path) -> Iterator[RunnerProcess]:  # noqa: ARG001
    with running_runner(
        broker.settings, tmp_path, "--any-file", environment=faulty_models.install(tmp_path)
    ) as process:
        yield process


def pid_of(broker: EmbeddedKafka) -> int:
    assert broker.pid is not None
    return broker.pid


def test_a_broker_that_stands_still_shortly_costs_nothing(
    broker: EmbeddedKafka, stage: ControlPlane, runner_process: RunnerProcess, tmp_path: Path
) -> None:
    name, uuid = runner_process.wait_for_id(stage), new_uuid()
    stage.send_command(
        name, make_deploy(uuid, clips.constant_rate(tmp_path / "clip.mp4", frames=400), "slow_inference")
    )
    stage.wait_until(lambda: stage.frames(uuid), "it is at work")
    os.kill(pid_of(broker), signal.SIGSTOP)
    try:
        with pytest.raises(AssertionError, match="silence"):
            wait_until(lambda: False, "silence", limit_s=8)
    finally:
        os.kill(pid_of(broker), signal.SIGCONT)
    end = stage.wait_for_end_marker(uuid)
    assert [frame.frame_number for frame in stage.frames(uuid)] == list(range(400))
    assert (end.last_frame, end.reason) == (399, EndReason.FINISHED)


@pytest.mark.whole
@pytest.mark.timeout(400)
def test_who_asks_a_broker_on_and_on_has_answers_again_soon_after_each_long_standstill(broker: EmbeddedKafka) -> None:
    """Three times: one client in three or so asks in vain for minutes behind a standstill of half a minute."""
    topics.create_topics(broker.settings)
    questions = admin.ReplacingAdmin(broker.settings)
    told: list[bool] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.5):
            try:
                questions.call(offsets.read_end_offsets, RESULTS)
                told.append(True)
            except errors.KafkaAway:
                told.append(False)

    asking = threading.Thread(target=ask, name="asks")
    asking.start()
    try:
        for _ in range(3):
            wait_until(lambda: told[-3:] == [True] * 3, "it has answers")
            os.kill(pid_of(broker), signal.SIGSTOP)
            try:
                with pytest.raises(AssertionError, match="silence"):
                    wait_until(lambda: False, "silence", limit_s=STANDSTILL_S)
            finally:
                os.kill(pid_of(broker), signal.SIGCONT)
            told.clear()
            wait_until(lambda: told[-3:] == [True] * 3, "it has answers again", limit_s=20)
    finally:
        over.set()
        asking.join()


def test_a_runner_that_is_cut_off_ends_its_workers_and_says_so_when_it_is_heard_again(
    broker: EmbeddedKafka, stage: ControlPlane, runner_process: RunnerProcess, tmp_path: Path
) -> None:
    name, uuid = runner_process.wait_for_id(stage), new_uuid()
    stage.send_command(
        name, make_deploy(uuid, clips.constant_rate(tmp_path / "clip.mp4", frames=9000), "slow_inference")
    )
    stage.wait_until(lambda: stage.frames(uuid), "it is at work")
    os.kill(pid_of(broker), signal.SIGSTOP)
    try:
        wait_until(lambda: "cut_off" in runner_process.log, "it is cut off", limit_s=60)
        wait_until(lambda: runner_process.workers() == [], "its worker is ended")
    finally:
        os.kill(pid_of(broker), signal.SIGCONT)
    entry = stage.wait_until_ended(name, uuid)
    assert entry.reason is EndReason.CUT_OFF
    assert entry.error is None
    again = new_uuid()
    stage.send_command(name, make_deploy(again, clips.constant_rate(tmp_path / "short.mp4")))
    assert stage.wait_for_end_marker(again).last_frame == 49


def test_a_runner_whose_topic_is_made_anew_says_so_hands_over_and_exits(
    broker: EmbeddedKafka, stage: ControlPlane, runner_process: RunnerProcess, tmp_path: Path
) -> None:
    name, uuid, topic = runner_process.wait_for_id(stage), new_uuid(), commands_topic("default")
    stage.send_command(
        name, make_deploy(uuid, clips.constant_rate(tmp_path / "clip.mp4", frames=9000), "slow_inference")
    )
    stage.wait_until(lambda: stage.frames(uuid), "it is at work")
    remove_topics(broker.settings, [topic])
    topics.create_topics(broker.settings)
    assert runner_process.process.wait(60) != 0
    assert stage.wait_until_ended(name, uuid).reason is EndReason.HANDED_OVER
    assert "deleted and created again" in runner_process.log
