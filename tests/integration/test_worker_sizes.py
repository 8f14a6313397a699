"""Messages at Kafka's size limits: a result that is too large fails only its own scenario, with a clear error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import clips
from tests.integration import faulty_models
from tests.integration.delivery import limited_message_size
from tests.integration.faulty_models import BAD_FRAME
from tests.integration.runner_harness import ControlPlane, RunnerProcess, make_deploy, new_uuid, running_runner

from vidflow.domain.messages import EndReason, Entry, Parameters, PoisonPolicy, WorkerWait
from vidflow.domain.topics import RESULTS
from vidflow.infra.kafka.settings import KafkaSettings

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sizes")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return clips.constant_rate(folder / "clip.mp4", frames=20)


@pytest.fixture(scope="module")
def process(kafka_settings: KafkaSettings, folder: Path, control_plane: ControlPlane) -> Iterator[RunnerProcess]:  # noqa: ARG001
    with running_runner(kafka_settings, folder, "--any-file", environment=faulty_models.install(folder)) as process:
        yield process


@pytest.fixture(scope="module")
def runner_id(process: RunnerProcess, control_plane: ControlPlane) -> str:
    return process.wait_for_id(control_plane)


def names_bad_frame_as_too_large(entry: Entry) -> bool:
    assert entry.error is not None
    assert (entry.reason, entry.error.code) == (EndReason.ERROR, "result_too_large")
    assert "more than fit in one Kafka message. Raise score_threshold" in entry.error.message
    return entry.error.frame_number == BAD_FRAME


@pytest.mark.parametrize("model", ["oversized_result", "oversized_mask"])
def test_a_result_with_too_many_detections_or_too_large_a_mask_fails_its_scenario_at_once(
    control_plane: ControlPlane, runner_id: str, clip: Path, model: str
) -> None:
    uuid, other = new_uuid(), new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, model, attempt=1))
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert names_bad_frame_as_too_large(entry)
    assert entry.fatal
    assert [frame.frame_number for frame in control_plane.frames(uuid)] == list(range(BAD_FRAME))
    control_plane.send_command(runner_id, make_deploy(other, clip))
    assert control_plane.wait_for_end_marker(other).reason is EndReason.FINISHED


def test_a_result_that_is_too_large_is_a_poisonous_frame_if_those_are_skipped(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(
        runner_id,
        make_deploy(uuid, clip, "oversized_result", attempt=1, parameters=Parameters(on_poison=PoisonPolicy.SKIP)),
    )
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert names_bad_frame_as_too_large(entry)
    assert (entry.fatal, entry.waits_for, entry.next_frame) == (False, WorkerWait.INFERENCE, BAD_FRAME)


def test_a_result_above_the_limit_of_the_topic_fails_its_scenario_at_once(
    kafka_settings: KafkaSettings, control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    with limited_message_size(kafka_settings, RESULTS, 2000):
        control_plane.send_command(runner_id, make_deploy(uuid, clip, "large_result", attempt=1))
        entry = control_plane.wait_until_ended(runner_id, uuid)
    assert entry.error is not None
    assert (entry.error.code, entry.fatal) == ("result_too_large", True)
    sent = [frame.frame_number for frame in control_plane.frames(uuid)]
    contiguous = [number for place, number in enumerate(sent) if number == place]
    assert 4 <= len(contiguous) <= BAD_FRAME, "messages in the same Kafka batch may be rejected with it"
    # Later messages in flight may have been accepted. The inbox stores nothing after a hole (test_inbox.py).
    assert BAD_FRAME not in sent


def test_results_that_fit_one_by_one_are_accepted_however_fast_they_follow_each_other(
    kafka_settings: KafkaSettings, control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    """A request with all of them would be larger than the topic's limit, and the broker would reject it as a whole."""
    uuid = new_uuid()
    with limited_message_size(kafka_settings, RESULTS, 100_000):
        control_plane.send_command(runner_id, make_deploy(uuid, clip, "many_detections"))
        end = control_plane.wait_for_end_marker(uuid)
    assert end.reason is EndReason.FINISHED
    assert [frame.frame_number for frame in control_plane.frames(uuid)] == list(range(20))


def test_a_deploy_with_250_kb_of_labels_is_accepted(control_plane: ControlPlane, runner_id: str, clip: Path) -> None:
    uuid = new_uuid()
    labels = tuple(f"{number:04}" + '"' * 123 for number in range(1000))
    control_plane.send_command(
        runner_id, make_deploy(uuid, clip, "slow_inference", parameters=Parameters(labels=labels))
    )
    assert control_plane.wait_for_end_marker(uuid).reason is EndReason.FINISHED
    control_plane.send_command(
        runner_id, make_deploy(refused := new_uuid(), clip, parameters=Parameters(labels=labels))
    )
    entry = control_plane.wait_until_ended(runner_id, refused)
    assert entry.error is not None
    assert (entry.error.code, entry.fatal) == ("parameter_invalid", True)
