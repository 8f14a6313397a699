"""A real runner: what it hears and says, and how it watches, ends and outlives its workers. What they send: test_worker.py."""

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

from vidflow.domain.messages import EndReason, Forget, Ping, StopWork, WorkerWait, commands_topic
from vidflow.infra.kafka.settings import KafkaSettings

pytestmark = pytest.mark.long  # each test starts a runner of its own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runner")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return clips.constant_rate(folder / "short.mp4", frames=20)


@pytest.fixture(scope="module")
def endless(folder: Path) -> Path:
    """A clip that keeps the model `patient` busy for longer than any test."""
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
    """A runner with two slots and short deadlines, for tests that leave it as they found it."""
    limits = ["--inference-deadline-s", "4", "--worker-memory-bytes", "1200000000"]
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
    """A runner of the test's own."""
    with running_runner(kafka_settings, folder, "--any-file", environment=environment) as process:
        yield process


def count_taken(stage: ControlPlane, name: str) -> int:
    report = stage.last_report(name)
    return report.taken if report else 0


def start_busy_scenario(stage: ControlPlane, name: str, source: Path, epoch: int = 1) -> str:
    """A scenario whose worker is in the midst of its frames."""
    uuid = new_uuid()
    stage.send_command(name, make_deploy(uuid, source, "patient", epoch))
    stage.wait_until(lambda: stage.frames(uuid, epoch), "it is at work")
    return uuid


def stop_and_forget(stage: ControlPlane, name: str, *uuids: str) -> None:
    """Stops the scenarios and lets the runner forget them."""
    for uuid in uuids:
        stage.send_command(name, StopWork(uuid, 9))
    stage.wait_until(
        lambda: not any((entry := stage.entry(name, uuid)) and entry.is_running for uuid in uuids), "they are ended"
    )
    for uuid in uuids:
        stage.send_command(name, Forget(uuid, 9))
    stage.wait_until(lambda: not any(stage.entry(name, uuid) for uuid in uuids), "they are forgotten")


def test_it_reports_each_second_with_nothing_to_do(control_plane: ControlPlane, runner_id: str) -> None:
    first = control_plane.last_report(runner_id)
    assert first is not None
    control_plane.wait_until(
        lambda: (last := control_plane.last_report(runner_id)) and last.number >= first.number + 2,
        "two more reports",
        limit_s=10,
    )
    assert (first.capacity, first.draining, first.pool) == (2, False, "default")
    assert first.version


def test_a_ping_is_counted(control_plane: ControlPlane, runner_id: str) -> None:
    before = count_taken(control_plane, runner_id)
    control_plane.send_command(runner_id, Ping(runner_id))
    control_plane.wait_until(lambda: count_taken(control_plane, runner_id) == before + 1, "it is counted")


def test_a_command_that_cannot_be_read_is_counted_and_blocks_nothing(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, clip: Path
) -> None:
    before, uuid = count_taken(control_plane, runner_id), new_uuid()
    for nonsense in (b"", b"{", b"\xff\xfe", b'{"type":"deploy"}', b'{"type":"dance"}', b"[" * 100_000):
        control_plane.send_command(runner_id, nonsense)
    control_plane.send_command(runner_id, make_deploy(uuid, clip))
    control_plane.wait_for_end_marker(uuid)
    control_plane.wait_until(lambda: count_taken(control_plane, runner_id) == before + 7, "all are counted")
    assert runner_process.log.count("command_unreadable") == 6
    stop_and_forget(control_plane, runner_id, uuid)


def test_what_is_for_others_is_passed_by(control_plane: ControlPlane, runner_id: str, clip: Path) -> None:
    before, uuid = count_taken(control_plane, runner_id), new_uuid()
    control_plane.send_command("somebody-else", make_deploy(uuid, clip))
    control_plane.send_command(runner_id, Ping(runner_id))
    control_plane.wait_until(lambda: count_taken(control_plane, runner_id) == before + 1, "only its own is counted")
    assert control_plane.entry(runner_id, uuid) is None


def test_a_message_with_a_header_whose_name_is_no_text_is_passed_by(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, kafka_settings: KafkaSettings
) -> None:
    before = count_taken(control_plane, runner_id)
    send_with_header(kafka_settings, commands_topic("default"), b"noise", name=b"\xff\xfe", count=50)
    control_plane.send_command(runner_id, Ping(runner_id))
    control_plane.wait_until(
        lambda: count_taken(control_plane, runner_id) == before + 1, "it hears on, and counts its own alone"
    )
    assert runner_process.process.poll() is None


def test_a_deploy_given_again_starts_one_worker(control_plane: ControlPlane, runner_id: str, clip: Path) -> None:
    uuid = new_uuid()
    for _ in range(3):
        control_plane.send_command(runner_id, make_deploy(uuid, clip))
    control_plane.wait_for_end_marker(uuid)
    control_plane.wait_until_ended(runner_id, uuid)
    control_plane.send_command(runner_id, make_deploy(uuid, clip))
    control_plane.send_command(runner_id, Ping(runner_id))
    before = count_taken(control_plane, runner_id)
    control_plane.wait_until(lambda: count_taken(control_plane, runner_id) >= before, "all are read")
    assert len(control_plane.opened(uuid)) == 1
    stop_and_forget(control_plane, runner_id, uuid)


def test_a_full_runner_refuses(control_plane: ControlPlane, runner_id: str, clip: Path, endless: Path) -> None:
    one, two, uuid = (
        start_busy_scenario(control_plane, runner_id, endless),
        start_busy_scenario(control_plane, runner_id, endless),
        new_uuid(),
    )
    control_plane.send_command(runner_id, make_deploy(uuid, clip))
    assert control_plane.wait_until_ended(runner_id, uuid).reason is EndReason.REFUSED
    stop_and_forget(control_plane, runner_id, one, two, uuid)


def test_a_newer_epoch_ends_the_older_ones_worker(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, endless: Path
) -> None:
    uuid = start_busy_scenario(control_plane, runner_id, endless)
    [old] = runner_process.workers()
    control_plane.send_command(runner_id, make_deploy(uuid, endless, "patient", epoch=2))
    control_plane.wait_until(lambda: control_plane.frames(uuid, epoch=2), "the newer one is at work")
    assert not is_alive(old)
    assert len(runner_process.workers()) == 1
    stop_and_forget(control_plane, runner_id, uuid)


def test_a_stop_that_comes_before_its_deploy_outdates_it(
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
        lambda: (entry := control_plane.entry(runner_id, uuid)) and entry.next_frame > 20, "its frames are counted"
    )
    stop_and_forget(control_plane, runner_id, uuid)


def test_a_worker_that_is_killed_is_reported_at_once(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "hanging", attempt=1))
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


def test_a_model_that_hangs_is_ended_at_its_deadline(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "hanging", attempt=1))
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert (entry.reason, entry.waits_for) == (EndReason.HUNG, WorkerWait.INFERENCE)
    assert runner_process.workers() == []
    stop_and_forget(control_plane, runner_id, uuid)


def test_a_model_that_grows_past_the_cap_is_ended(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "greedy", attempt=1))
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert (entry.reason, entry.error and entry.error.code) == (EndReason.MEMORY, "worker_memory")
    assert entry.error is not None
    assert "cap of 1200000000 bytes" in entry.error.message
    assert "--worker-memory-bytes" in entry.error.message
    assert runner_process.workers() == []
    stop_and_forget(control_plane, runner_id, uuid)


def test_an_error_whose_words_nobody_can_store_is_reported_all_the_same(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "garbling", attempt=1))
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert entry.error is not None
    assert "(ValueError: a NUL \N{REPLACEMENT CHARACTER}, half of a pair ?, a bell \x07)" in entry.error.message
    stop_and_forget(control_plane, runner_id, uuid)


def test_a_worker_that_writes_without_end_holds_up_no_other(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    flooding, other, before = new_uuid(), new_uuid(), count_taken(control_plane, runner_id)
    control_plane.send_command(runner_id, make_deploy(flooding, clip, "flooding", attempt=1))
    control_plane.wait_until(lambda: len(control_plane.frames(flooding)) >= 4, "the batch with its flood comes next")
    control_plane.send_command(runner_id, make_deploy(other, clip))
    control_plane.send_command(runner_id, Ping(runner_id))
    control_plane.wait_for_end_marker(other)
    control_plane.wait_until(lambda: count_taken(control_plane, runner_id) == before + 3, "it hears on")
    assert control_plane.wait_until_ended(runner_id, flooding).reason is EndReason.HUNG
    stop_and_forget(control_plane, runner_id, flooding, other)


def test_a_cap_of_0_is_no_cap_and_a_worker_goes_before_its_runner_where_memory_runs_out(
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


def test_a_worker_outlives_no_frozen_runner_that_is_killed(
    control_plane: ControlPlane, own_runner: RunnerProcess, endless: Path
) -> None:
    name = own_runner.wait_for_id(control_plane)
    start_busy_scenario(control_plane, name, endless)
    workers = own_runner.workers()
    own_runner.process.send_signal(signal.SIGSTOP)
    own_runner.kill()
    wait_until(lambda: not any(map(is_alive, workers)), "its worker is gone")


def test_a_draining_runner_hands_over_and_leaves_once_it_is_told_to_forget(
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
        "its last report lists nothing",
    )


def test_a_draining_runner_that_has_nothing_leaves_at_once(
    control_plane: ControlPlane, own_runner: RunnerProcess
) -> None:
    name = own_runner.wait_for_id(control_plane)
    own_runner.process.send_signal(signal.SIGTERM)
    assert own_runner.process.wait(10) == 0
    last = control_plane.last_report(name)
    control_plane.wait_until(
        lambda: (last := control_plane.last_report(name)) and last.draining, "it says that it drains"
    )
    assert last is None or last.entries == ()


def test_a_draining_runner_leaves_after_its_grace(
    kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str], control_plane: ControlPlane, endless: Path
) -> None:
    with running_runner(kafka_settings, folder, "--any-file", "--grace-s", "1", environment=environment) as process:
        start_busy_scenario(control_plane, process.wait_for_id(control_plane), endless)
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(15) == 0


def test_a_worker_that_stands_still_while_it_drains_is_handed_over_all_the_same(
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


def test_a_signal_to_the_whole_group_lets_the_workers_hand_over(
    control_plane: ControlPlane, own_runner: RunnerProcess, endless: Path
) -> None:
    name = own_runner.wait_for_id(control_plane)
    uuid = start_busy_scenario(control_plane, name, endless)
    for pid in (*own_runner.workers(), own_runner.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert control_plane.wait_until_ended(name, uuid).reason is EndReason.HANDED_OVER
    control_plane.send_command(name, Forget(uuid, 1))
    assert own_runner.process.wait(10) == 0


def test_a_runner_killed_right_after_it_started_a_worker_leaves_none_behind(
    kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str], control_plane: ControlPlane, endless: Path
) -> None:
    crash = "runner.after_launch"
    with running_runner(kafka_settings, folder, "--any-file", environment=environment, crash_at=crash) as process:
        uuid = new_uuid()
        control_plane.send_command(process.wait_for_id(control_plane), make_deploy(uuid, endless, "patient"))
        assert process.process.wait(20) == -signal.SIGKILL
        mine = str(folder / "endless.mp4")
        wait_until(lambda: not [pid for pid in _all_pids() if _has_open(pid, mine)], "its worker is gone")


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


def test_a_runner_without_kafka_says_so_once_and_waits(folder: Path) -> None:
    process = RunnerProcess(KafkaSettings("127.0.0.1:1"), folder / "alone.log")
    try:
        wait_until(lambda: "VIDFLOW_KAFKA" in process.log, "it says what it needs", limit_s=60)
        assert process.log.count("VIDFLOW_KAFKA") == 1
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(20) == 0
    finally:
        process.kill()


def test_the_runner_itself_loads_no_heavy_library() -> None:
    heavy = "{'av', 'numpy', 'torch', 'onnxruntime', 'scipy'}"
    code = f"import sys, vidflow.roles.runner; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _all_pids() -> list[int]:
    return [int(one.name) for one in Path("/proc").iterdir() if one.name.isdecimal()]


def _has_open(pid: int, path: str) -> bool:
    try:
        return any(str(link.readlink()) == path for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
