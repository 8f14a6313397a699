"""A real runner: its commands, its reports and the supervision of its workers. test_worker.py tests what workers send."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import clips
from tests.integration import faulty_models
from tests.integration.delivery import send_with_header
from tests.integration.faulty_models import BAD_FRAME, BATCH
from tests.integration.processes import is_alive
from tests.integration.runner_harness import ControlPlane, RunnerProcess, make_deploy, new_uuid, running_runner
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import EndReason, Forget, Parameters, Ping, StopWork, WorkerWait
from vidflow.domain.topics import commands_topic
from vidflow.infra.kafka.settings import KafkaSettings

pytestmark = pytest.mark.long  # starting runners takes long


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runner")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return clips.constant_rate(folder / "short.mp4", frames=20)


@pytest.fixture(scope="module")
def endless(folder: Path) -> Path:
    """A clip that keeps the model `slow_inference` busy for longer than any test."""
    return clips.constant_rate(folder / "endless.mp4", frames=6000)


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    return faulty_models.install(folder)


@pytest.fixture(scope="module")
def runner_process(
    kafka_settings: KafkaSettings,
    folder: Path,
    environment: dict[str, str],
    control_plane: ControlPlane,  # noqa: ARG001
) -> Iterator[RunnerProcess]:
    """A runner with two slots and short deadlines, shared by tests that leave no entries in it."""
    limits = ["--inference-deadline-s", "8", "--worker-memory-bytes", "1200000000"]
    with running_runner(kafka_settings, folder, "--any-file", *limits, environment=environment) as process:
        yield process


@pytest.fixture(scope="module")
def runner_id(runner_process: RunnerProcess, control_plane: ControlPlane) -> str:
    return runner_process.wait_for_id(control_plane)


@pytest.fixture
def own_runner(
    kafka_settings: KafkaSettings,
    folder: Path,
    environment: dict[str, str],
    control_plane: ControlPlane,  # noqa: ARG001
) -> Iterator[RunnerProcess]:
    """A runner for one test only."""
    with running_runner(kafka_settings, folder, "--any-file", environment=environment) as process:
        yield process


def count_taken(control_plane: ControlPlane, name: str) -> int:
    report = control_plane.last_report(name)
    return report.taken if report else 0


def start_busy_scenario(control_plane: ControlPlane, name: str, source: Path, epoch: int = 1) -> str:
    """Deploy a scenario and return its uuid once its worker has sent frames."""
    uuid = new_uuid()
    control_plane.send_command(name, make_deploy(uuid, source, "slow_inference", epoch))
    control_plane.wait_until(lambda: control_plane.frames(uuid, epoch), "its worker sends frames")
    return uuid


def stop_and_forget(control_plane: ControlPlane, name: str, *uuids: str) -> None:
    """Stop the scenarios and make the runner forget them."""
    for uuid in uuids:
        control_plane.send_command(name, StopWork(uuid, 9))
    control_plane.wait_until(
        lambda: all((entry := control_plane.entry(name, uuid)) and not entry.is_running for uuid in uuids),
        "they have ended",
    )
    for uuid in uuids:
        control_plane.send_command(name, Forget(uuid, 9))
    control_plane.wait_until(lambda: not any(control_plane.entry(name, uuid) for uuid in uuids), "they are forgotten")


def test_an_idle_runner_reports_every_second(control_plane: ControlPlane, runner_id: str) -> None:
    first = control_plane.last_report(runner_id)
    assert first is not None
    control_plane.wait_until(
        lambda: (last := control_plane.last_report(runner_id)) and last.number >= first.number + 2,
        "two more reports arrive",
        limit_s=10,
    )
    assert (first.capacity, first.draining, first.pool) == (2, False, "default")
    assert first.version


def test_a_ping_is_counted(control_plane: ControlPlane, runner_id: str) -> None:
    before = count_taken(control_plane, runner_id)
    control_plane.send_command(runner_id, Ping(runner_id))
    control_plane.wait_until(lambda: count_taken(control_plane, runner_id) == before + 1, "it is counted")


def test_an_unreadable_command_is_counted_and_blocks_no_other(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, clip: Path
) -> None:
    before, uuid = count_taken(control_plane, runner_id), new_uuid()
    for value in (b"", b"{", b"\xff\xfe", b'{"type":"deploy"}', b'{"type":"dance"}', b"[" * 100_000):
        control_plane.send_command(runner_id, value)
    control_plane.send_command(runner_id, make_deploy(uuid, clip))
    control_plane.wait_for_end_marker(uuid)
    control_plane.wait_until(lambda: count_taken(control_plane, runner_id) == before + 7, "all commands are counted")
    assert runner_process.log.count("command_unreadable") == 6
    stop_and_forget(control_plane, runner_id, uuid)


def test_commands_for_other_runners_are_ignored(control_plane: ControlPlane, runner_id: str, clip: Path) -> None:
    before, uuid = count_taken(control_plane, runner_id), new_uuid()
    control_plane.send_command("another-runner", make_deploy(uuid, clip))
    control_plane.send_command(runner_id, Ping(runner_id))
    control_plane.wait_until(
        lambda: count_taken(control_plane, runner_id) == before + 1, "only its own command is counted"
    )
    assert control_plane.entry(runner_id, uuid) is None


def test_a_message_with_a_header_name_that_is_not_text_is_ignored(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, kafka_settings: KafkaSettings
) -> None:
    before = count_taken(control_plane, runner_id)
    send_with_header(kafka_settings, commands_topic("default"), b"noise", name=b"\xff\xfe", count=50)
    control_plane.send_command(runner_id, Ping(runner_id))
    control_plane.wait_until(
        lambda: count_taken(control_plane, runner_id) == before + 1, "only its own command is counted"
    )
    assert runner_process.process.poll() is None


def test_a_repeated_deploy_starts_one_worker(control_plane: ControlPlane, runner_id: str, clip: Path) -> None:
    before, uuid = count_taken(control_plane, runner_id), new_uuid()
    for _ in range(3):
        control_plane.send_command(runner_id, make_deploy(uuid, clip))
    control_plane.wait_for_end_marker(uuid)
    control_plane.wait_until_ended(runner_id, uuid)
    control_plane.send_command(runner_id, make_deploy(uuid, clip))
    control_plane.send_command(runner_id, Ping(runner_id))
    control_plane.wait_until(lambda: count_taken(control_plane, runner_id) == before + 5, "all commands are counted")
    assert len(control_plane.opened(uuid)) == 1
    stop_and_forget(control_plane, runner_id, uuid)


def test_a_full_runner_refuses_a_deploy(control_plane: ControlPlane, runner_id: str, clip: Path, endless: Path) -> None:
    first, second, uuid = (
        start_busy_scenario(control_plane, runner_id, endless),
        start_busy_scenario(control_plane, runner_id, endless),
        new_uuid(),
    )
    control_plane.send_command(runner_id, make_deploy(uuid, clip))
    assert control_plane.wait_until_ended(runner_id, uuid).reason is EndReason.REFUSED
    stop_and_forget(control_plane, runner_id, first, second, uuid)


def test_a_newer_epoch_ends_the_worker_of_the_older_one(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, endless: Path
) -> None:
    uuid = start_busy_scenario(control_plane, runner_id, endless)
    [old_worker] = runner_process.workers()
    control_plane.send_command(runner_id, make_deploy(uuid, endless, "slow_inference", epoch=2))
    control_plane.wait_until(lambda: control_plane.frames(uuid, epoch=2), "the newer worker sends frames")
    assert not is_alive(old_worker)
    assert len(runner_process.workers()) == 1
    stop_and_forget(control_plane, runner_id, uuid)


def test_a_stop_that_arrives_before_its_deploy_prevents_it(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, StopWork(uuid, 3))
    control_plane.send_command(runner_id, make_deploy(uuid, clip, epoch=3))
    assert control_plane.wait_until_ended(runner_id, uuid, epoch=3).reason is EndReason.STOPPED
    assert control_plane.results_of(uuid, epoch=3) == []
    stop_and_forget(control_plane, runner_id, uuid)


def test_progress_is_reported(control_plane: ControlPlane, runner_id: str, endless: Path) -> None:
    uuid = start_busy_scenario(control_plane, runner_id, endless)
    control_plane.wait_until(
        lambda: (entry := control_plane.entry(runner_id, uuid)) and entry.next_frame > 20, "its frames are reported"
    )
    stop_and_forget(control_plane, runner_id, uuid)


def test_a_killed_worker_is_reported_at_once(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "endless_inference", attempt=1))
    control_plane.wait_until(
        lambda: (
            (entry := control_plane.entry(runner_id, uuid))
            and entry.waits_for is WorkerWait.INFERENCE
            and entry.next_frame == BAD_FRAME // BATCH * BATCH
        ),
        "it is in inference",
        20,
    )
    [pid] = runner_process.workers()
    since_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    entry = control_plane.wait_until_ended(runner_id, uuid)
    sys.stdout.write(f"a killed worker was reported after {1000 * (time.monotonic() - since_s):.0f} ms\n")
    assert (entry.reason, entry.waits_for) == (EndReason.CRASHED, WorkerWait.INFERENCE)
    stop_and_forget(control_plane, runner_id, uuid)


def test_a_model_that_hangs_is_killed_at_the_inference_deadline(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "endless_inference", attempt=1))
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert (entry.reason, entry.waits_for) == (EndReason.HUNG, WorkerWait.INFERENCE)
    assert runner_process.workers() == []
    stop_and_forget(control_plane, runner_id, uuid)


def test_a_model_that_hangs_is_killed_although_the_next_frames_are_not_there_yet(
    control_plane: ControlPlane, runner_id: str, folder: Path
) -> None:
    path = clips.constant_rate(folder / "growing.ts", frames=60)  # the reader waits for more of it
    uuid, parameters = new_uuid(), Parameters(follow=True, follow_s=3600.0)
    control_plane.send_command(runner_id, make_deploy(uuid, path, "endless_inference", parameters=parameters))
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert (entry.reason, entry.waits_for) == (EndReason.HUNG, WorkerWait.INFERENCE)
    stop_and_forget(control_plane, runner_id, uuid)


def count_threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_cores_are_divided_again_when_workers_come_and_go(
    kafka_settings: KafkaSettings, folder: Path, control_plane: ControlPlane, endless: Path
) -> None:
    def start(runner: str) -> str:
        uuid = new_uuid()
        control_plane.send_command(runner, make_deploy(uuid, endless, "yolox_nano"))
        return uuid

    with running_runner(kafka_settings, folder, "--any-file", "--cores", "8", "--max-workers", "2") as process:
        name = process.wait_for_id(control_plane)
        first_uuid = start(name)
        control_plane.wait_until(process.workers, "the first worker runs")
        [first] = process.workers()
        control_plane.wait_until(lambda: len(control_plane.frames(first_uuid)) > 20, "it sends results")
        alone = count_threads(first)
        second_uuid = start(name)
        control_plane.wait_until(lambda: count_threads(first) == alone - 4, "it uses its half of the cores")
        control_plane.send_command(name, StopWork(second_uuid, 1))
        control_plane.wait_until_ended(name, second_uuid)
        control_plane.wait_until(lambda: count_threads(first) == alone, "it uses all cores again")


def test_a_model_that_exceeds_the_memory_cap_is_killed(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "memory_hog", attempt=1))
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert (entry.reason, entry.error and entry.error.code) == (EndReason.MEMORY, "worker_memory")
    assert entry.error is not None
    assert "cap of 1200000000 bytes" in entry.error.message
    assert "--worker-memory-bytes" in entry.error.message
    assert runner_process.workers() == []
    stop_and_forget(control_plane, runner_id, uuid)


def test_an_error_with_text_that_cannot_be_stored_is_reported(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "unprintable_error", attempt=1))
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert entry.error is not None
    assert "(ValueError: a NUL \N{REPLACEMENT CHARACTER}, half of a pair ?, a bell \x07)" in entry.error.message
    stop_and_forget(control_plane, runner_id, uuid)


def test_a_worker_that_writes_endlessly_does_not_block_others(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid, other, before = new_uuid(), new_uuid(), count_taken(control_plane, runner_id)
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "endless_stderr", attempt=1))
    control_plane.wait_until(lambda: len(control_plane.frames(uuid)) >= 4, "the batch with the bad frame is next")
    control_plane.send_command(runner_id, make_deploy(other, clip))
    control_plane.send_command(runner_id, Ping(runner_id))
    control_plane.wait_for_end_marker(other)
    control_plane.wait_until(lambda: count_taken(control_plane, runner_id) == before + 3, "it still takes commands")
    assert control_plane.wait_until_ended(runner_id, uuid).reason is EndReason.HUNG
    stop_and_forget(control_plane, runner_id, uuid, other)


def test_a_cap_of_0_means_no_cap_and_the_oom_killer_prefers_workers_to_their_runner(
    kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str], control_plane: ControlPlane, endless: Path
) -> None:
    with running_runner(
        kafka_settings, folder, "--any-file", "--worker-memory-bytes", "0", environment=environment
    ) as process:
        start_busy_scenario(control_plane, process.wait_for_id(control_plane), endless)
        assert "worker_memory_bytes=none" in process.log
        [worker] = process.workers()
        scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (worker, process.process.pid)]
        assert scores[0] > scores[1]


def test_the_workers_of_a_killed_runner_die_with_it(
    control_plane: ControlPlane, own_runner: RunnerProcess, endless: Path
) -> None:
    name = own_runner.wait_for_id(control_plane)
    start_busy_scenario(control_plane, name, endless)
    start_busy_scenario(control_plane, name, endless)
    workers = own_runner.workers()
    assert len(workers) == 2
    own_runner.kill()
    wait_until(lambda: not any(map(is_alive, workers)), "its workers are gone")


def test_the_worker_of_a_killed_frozen_runner_dies_with_it(
    control_plane: ControlPlane, own_runner: RunnerProcess, endless: Path
) -> None:
    name = own_runner.wait_for_id(control_plane)
    start_busy_scenario(control_plane, name, endless)
    [worker] = own_runner.workers()
    own_runner.process.send_signal(signal.SIGSTOP)
    own_runner.kill()
    wait_until(lambda: not is_alive(worker), "its worker is gone")


def test_a_draining_runner_hands_over_and_exits_after_the_forget_commands(
    control_plane: ControlPlane, own_runner: RunnerProcess, endless: Path
) -> None:
    name = own_runner.wait_for_id(control_plane)
    uuid = start_busy_scenario(control_plane, name, endless)
    own_runner.process.send_signal(signal.SIGTERM)
    end = control_plane.wait_for_end_marker(uuid)
    assert (end.reason, end.last_frame) == (EndReason.HANDED_OVER, control_plane.frames(uuid)[-1].frame_number)
    entry = control_plane.wait_until_ended(name, uuid)
    assert entry.reason is EndReason.HANDED_OVER
    control_plane.send_command(name, make_deploy(late := new_uuid(), endless))
    assert control_plane.wait_until_ended(name, late).reason is EndReason.REFUSED
    control_plane.send_command(name, Forget(uuid, 1))
    control_plane.send_command(name, Forget(late, 1))
    assert own_runner.process.wait(10) == 0
    control_plane.wait_until(
        lambda: (last := control_plane.last_report(name)) and last.draining and not last.entries,
        "its last report is draining and empty",
    )


def test_an_idle_draining_runner_exits_at_once(control_plane: ControlPlane, own_runner: RunnerProcess) -> None:
    name = own_runner.wait_for_id(control_plane)
    own_runner.process.send_signal(signal.SIGTERM)
    assert own_runner.process.wait(10) == 0
    control_plane.wait_until(
        lambda: (last := control_plane.last_report(name)) and last.draining, "it reports that it drains"
    )
    last = control_plane.last_report(name)
    assert last is not None
    assert last.entries == ()


def test_a_draining_runner_exits_after_its_grace_period(
    kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str], control_plane: ControlPlane, endless: Path
) -> None:
    with running_runner(kafka_settings, folder, "--any-file", "--grace-s", "1", environment=environment) as process:
        start_busy_scenario(control_plane, process.wait_for_id(control_plane), endless)
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(15) == 0


def test_a_suspended_worker_of_a_draining_runner_is_handed_over(
    kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str], control_plane: ControlPlane, endless: Path
) -> None:
    with running_runner(kafka_settings, folder, "--any-file", "--grace-s", "2", environment=environment) as process:
        name = process.wait_for_id(control_plane)
        uuid = start_busy_scenario(control_plane, name, endless)
        [worker] = process.workers()
        os.kill(worker, signal.SIGSTOP)
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(15) == 0
        entry = control_plane.wait_until_ended(name, uuid)
        assert entry.reason is EndReason.HANDED_OVER
        assert not is_alive(worker)


def test_a_signal_to_the_whole_process_group_lets_workers_hand_over(
    control_plane: ControlPlane, own_runner: RunnerProcess, endless: Path
) -> None:
    name = own_runner.wait_for_id(control_plane)
    uuid = start_busy_scenario(control_plane, name, endless)
    for pid in (*own_runner.workers(), own_runner.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert control_plane.wait_until_ended(name, uuid).reason is EndReason.HANDED_OVER
    control_plane.send_command(name, Forget(uuid, 1))
    assert own_runner.process.wait(10) == 0


def test_a_runner_killed_right_after_it_started_a_worker_leaves_no_orphan(
    kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str], control_plane: ControlPlane, endless: Path
) -> None:
    crash = "runner.after_launch"
    with running_runner(kafka_settings, folder, "--any-file", environment=environment, crash_at=crash) as process:
        uuid = new_uuid()
        control_plane.send_command(process.wait_for_id(control_plane), make_deploy(uuid, endless, "slow_inference"))
        assert process.process.wait(20) == -signal.SIGKILL
        source = str(folder / "endless.mp4")
        wait_until(lambda: not [pid for pid in _all_pids() if _has_open(pid, source)], "its worker is gone")


@pytest.mark.fault
@pytest.mark.parametrize("place", ["worker.before_frame", "worker.after_frame:3", "worker.before_end"])
def test_a_crash_point_of_a_worker_kills_it_once(
    kafka_settings: KafkaSettings, folder: Path, control_plane: ControlPlane, clip: Path, place: str
) -> None:
    with running_runner(kafka_settings, folder, "--any-file", crash_at=place) as process:
        name, uuid = process.wait_for_id(control_plane), new_uuid()
        control_plane.send_command(name, make_deploy(uuid, clip))
        assert control_plane.wait_until_ended(name, uuid).reason is EndReason.CRASHED
        control_plane.send_command(name, make_deploy(uuid, clip, epoch=2))
        assert control_plane.wait_for_end_marker(uuid, epoch=2).reason is EndReason.FINISHED


def test_a_runner_without_kafka_logs_it_once_and_waits(folder: Path) -> None:
    process = RunnerProcess(KafkaSettings("127.0.0.1:1"), folder / "alone.log")
    try:
        wait_until(lambda: "VIDFLOW_KAFKA" in process.log, "it logs what it needs", limit_s=60)
        assert process.log.count("VIDFLOW_KAFKA") == 1
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(20) == 0
    finally:
        process.kill()


def test_the_runner_process_imports_no_heavy_library() -> None:
    heavy = "{'av', 'numpy', 'torch', 'onnxruntime', 'scipy'}"
    code = f"import sys, vidflow.roles.runner; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _has_open(pid: int, path: str) -> bool:
    try:
        return any(str(link.readlink()) == path for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
