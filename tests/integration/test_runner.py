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
from tests.integration import odd_models
from tests.integration.delivery import send_with_header
from tests.integration.embedded import wait_until
from tests.integration.odd_models import BAD_FRAME, BATCH
from tests.integration.processes import is_alive
from tests.integration.runners import RunnerProcess, Stage, deploy, new_uuid, runner

from vidflow.domain.messages import EndReason, Forget, Ping, StopWork, Waiting, commands_topic
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
    return odd_models.install(folder)


@pytest.fixture(scope="module")
def keeper(
    kafka_settings: KafkaSettings,
    folder: Path,
    environment: dict[str, str],
    stage: Stage,  # noqa: ARG001
) -> Iterator[RunnerProcess]:
    """A runner with two slots and short deadlines, for tests that leave it as they found it."""
    limits = ["--inference-deadline-s", "8", "--worker-memory-bytes", "1200000000"]
    with runner(kafka_settings, folder, "--any-file", *limits, environment=environment) as process:
        yield process


@pytest.fixture(scope="module")
def name(keeper: RunnerProcess, stage: Stage) -> str:
    return keeper.id_on(stage)


@pytest.fixture
def another(
    kafka_settings: KafkaSettings,
    folder: Path,
    environment: dict[str, str],
    stage: Stage,  # noqa: ARG001
) -> Iterator[RunnerProcess]:
    """A runner of the test's own."""
    with runner(kafka_settings, folder, "--any-file", environment=environment) as process:
        yield process


def taken(stage: Stage, name: str) -> int:
    report = stage.last_report(name)
    return report.taken if report else 0


def busy(stage: Stage, name: str, source: Path, epoch: int = 1) -> str:
    """A scenario whose worker is in the midst of its frames."""
    uuid = new_uuid()
    stage.command(name, deploy(uuid, source, "patient", epoch))
    stage.until(lambda: stage.frames(uuid, epoch), "it is at work")
    return uuid


def clear(stage: Stage, name: str, *uuids: str) -> None:
    """Stops the scenarios and lets the runner forget them."""
    for uuid in uuids:
        stage.command(name, StopWork(uuid, 9))
    stage.until(
        lambda: not any((entry := stage.entry(name, uuid)) and entry.running for uuid in uuids), "they are ended"
    )
    for uuid in uuids:
        stage.command(name, Forget(uuid, 9))
    stage.until(lambda: not any(stage.entry(name, uuid) for uuid in uuids), "they are forgotten")


def test_it_reports_each_second_with_nothing_to_do(stage: Stage, name: str) -> None:
    first = stage.last_report(name)
    assert first is not None
    stage.until(
        lambda: (last := stage.last_report(name)) and last.number >= first.number + 2, "two more reports", limit_s=10
    )
    assert (first.capacity, first.draining, first.pool) == (2, False, "default")
    assert first.version


def test_a_ping_is_counted(stage: Stage, name: str) -> None:
    before = taken(stage, name)
    stage.command(name, Ping(name))
    stage.until(lambda: taken(stage, name) == before + 1, "it is counted")


def test_a_command_that_cannot_be_read_is_counted_and_blocks_nothing(
    stage: Stage, keeper: RunnerProcess, name: str, clip: Path
) -> None:
    before, uuid = taken(stage, name), new_uuid()
    for nonsense in (b"", b"{", b"\xff\xfe", b'{"type":"deploy"}', b'{"type":"dance"}', b"[" * 100_000):
        stage.command(name, nonsense)
    stage.command(name, deploy(uuid, clip))
    stage.whole(uuid)
    stage.until(lambda: taken(stage, name) == before + 7, "all are counted")
    assert keeper.log.count("command_unreadable") == 6
    clear(stage, name, uuid)


def test_what_is_for_others_is_passed_by(stage: Stage, name: str, clip: Path) -> None:
    before, uuid = taken(stage, name), new_uuid()
    stage.command("somebody-else", deploy(uuid, clip))
    stage.command(name, Ping(name))
    stage.until(lambda: taken(stage, name) == before + 1, "only its own is counted")
    assert stage.entry(name, uuid) is None


def test_a_message_with_a_header_whose_name_is_no_text_is_passed_by(
    stage: Stage, keeper: RunnerProcess, name: str, kafka_settings: KafkaSettings
) -> None:
    before = taken(stage, name)
    send_with_header(kafka_settings, commands_topic("default"), b"noise", name=b"\xff\xfe", count=50)
    stage.command(name, Ping(name))
    stage.until(lambda: taken(stage, name) == before + 1, "it hears on, and counts its own alone")
    assert keeper.process.poll() is None


def test_a_deploy_given_again_starts_one_worker(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    for _ in range(3):
        stage.command(name, deploy(uuid, clip))
    stage.whole(uuid)
    stage.ended(name, uuid)
    stage.command(name, deploy(uuid, clip))
    stage.command(name, Ping(name))
    before = taken(stage, name)
    stage.until(lambda: taken(stage, name) >= before, "all are read")
    assert len(stage.opened(uuid)) == 1
    clear(stage, name, uuid)


def test_a_full_runner_refuses(stage: Stage, name: str, clip: Path, endless: Path) -> None:
    one, two, uuid = busy(stage, name, endless), busy(stage, name, endless), new_uuid()
    stage.command(name, deploy(uuid, clip))
    assert stage.ended(name, uuid).reason is EndReason.REFUSED
    clear(stage, name, one, two, uuid)


def test_a_newer_epoch_ends_the_older_ones_worker(
    stage: Stage, keeper: RunnerProcess, name: str, endless: Path
) -> None:
    uuid = busy(stage, name, endless)
    [old] = keeper.workers()
    stage.command(name, deploy(uuid, endless, "patient", epoch=2))
    stage.until(lambda: stage.frames(uuid, epoch=2), "the newer one is at work")
    assert not is_alive(old)
    assert len(keeper.workers()) == 1
    clear(stage, name, uuid)


def test_a_stop_that_comes_before_its_deploy_outdates_it(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, StopWork(uuid, 3))
    stage.command(name, deploy(uuid, clip, epoch=3))
    assert stage.ended(name, uuid, epoch=3).reason is EndReason.STOPPED
    assert stage.said(uuid, epoch=3) == []
    clear(stage, name, uuid)


def test_progress_is_reported(stage: Stage, name: str, endless: Path) -> None:
    uuid = busy(stage, name, endless)
    stage.until(lambda: (entry := stage.entry(name, uuid)) and entry.next_frame > 20, "its frames are counted")
    clear(stage, name, uuid)


def test_a_worker_that_is_killed_is_reported_at_once(
    stage: Stage, keeper: RunnerProcess, name: str, clip: Path
) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, "hanging", attempt=1))
    stage.until(
        lambda: (
            (entry := stage.entry(name, uuid))
            and entry.waits_for is Waiting.INFERENCE
            and entry.next_frame == BAD_FRAME // BATCH * BATCH
        ),
        "it is in inference",
        20,
    )
    [pid] = keeper.workers()
    since_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    entry = stage.ended(name, uuid)
    sys.stdout.write(f"a killed worker was reported after {1000 * (time.monotonic() - since_s):.0f} ms\n")
    assert (entry.reason, entry.waits_for) == (EndReason.CRASHED, Waiting.INFERENCE)
    clear(stage, name, uuid)


def test_a_model_that_hangs_is_ended_at_its_deadline(
    stage: Stage, keeper: RunnerProcess, name: str, clip: Path
) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, "hanging", attempt=1))
    entry = stage.ended(name, uuid)
    assert (entry.reason, entry.waits_for) == (EndReason.HUNG, Waiting.INFERENCE)
    assert keeper.workers() == []
    clear(stage, name, uuid)


def test_a_model_that_grows_past_the_cap_is_ended(stage: Stage, keeper: RunnerProcess, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, "greedy", attempt=1))
    entry = stage.ended(name, uuid)
    assert (entry.reason, entry.error and entry.error.code) == (EndReason.MEMORY, "worker_memory")
    assert entry.error is not None
    assert "cap of 1200000000 bytes" in entry.error.message
    assert "--worker-memory-bytes" in entry.error.message
    assert keeper.workers() == []
    clear(stage, name, uuid)


def test_an_error_whose_words_nobody_can_store_is_reported_all_the_same(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, "garbling", attempt=1))
    entry = stage.ended(name, uuid)
    assert entry.error is not None
    assert "(ValueError: a NUL \N{REPLACEMENT CHARACTER}, half of a pair ?, a bell \x07)" in entry.error.message
    clear(stage, name, uuid)


def test_a_worker_that_writes_without_end_holds_up_no_other(stage: Stage, name: str, clip: Path) -> None:
    flooding, other, before = new_uuid(), new_uuid(), taken(stage, name)
    stage.command(name, deploy(flooding, clip, "flooding", attempt=1))
    stage.until(lambda: len(stage.frames(flooding)) >= 4, "the batch with its flood comes next")
    stage.command(name, deploy(other, clip))
    stage.command(name, Ping(name))
    stage.whole(other)
    stage.until(lambda: taken(stage, name) == before + 3, "it hears on")
    assert stage.ended(name, flooding).reason is EndReason.HUNG
    clear(stage, name, flooding, other)


def test_a_cap_of_0_is_no_cap_and_a_worker_goes_before_its_runner_where_memory_runs_out(
    kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str], stage: Stage, endless: Path
) -> None:
    with runner(kafka_settings, folder, "--any-file", "--worker-memory-bytes", "0", environment=environment) as process:
        busy(stage, process.id_on(stage), endless)
        assert "worker_memory_bytes=none" in process.log
        [worker] = process.workers()
        scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (worker, process.process.pid)]
        assert scores[0] > scores[1]


def test_the_workers_of_a_killed_runner_die_with_it(stage: Stage, another: RunnerProcess, endless: Path) -> None:
    name = another.id_on(stage)
    busy(stage, name, endless)
    busy(stage, name, endless)
    workers = another.workers()
    assert len(workers) == 2
    another.kill()
    wait_until(lambda: not any(map(is_alive, workers)), "its workers are gone")


def test_a_worker_outlives_no_frozen_runner_that_is_killed(stage: Stage, another: RunnerProcess, endless: Path) -> None:
    name = another.id_on(stage)
    busy(stage, name, endless)
    workers = another.workers()
    another.process.send_signal(signal.SIGSTOP)
    another.kill()
    wait_until(lambda: not any(map(is_alive, workers)), "its worker is gone")


def test_a_draining_runner_hands_over_and_leaves_once_it_is_told_to_forget(
    stage: Stage, another: RunnerProcess, endless: Path
) -> None:
    name = another.id_on(stage)
    uuid = busy(stage, name, endless)
    another.process.send_signal(signal.SIGTERM)
    end = stage.whole(uuid)
    assert (end.reason, end.last_frame) == (EndReason.HANDED_OVER, stage.frames(uuid)[-1].frame_number)
    entry = stage.ended(name, uuid)
    assert entry.reason is EndReason.HANDED_OVER
    stage.command(name, deploy(late := new_uuid(), endless))
    assert stage.ended(name, late).reason is EndReason.REFUSED
    stage.command(name, Forget(uuid, 1))
    stage.command(name, Forget(late, 1))
    assert another.process.wait(10) == 0
    stage.until(
        lambda: (last := stage.last_report(name)) and last.draining and not last.entries,
        "its last report lists nothing",
    )


def test_a_draining_runner_that_has_nothing_leaves_at_once(stage: Stage, another: RunnerProcess) -> None:
    name = another.id_on(stage)
    another.process.send_signal(signal.SIGTERM)
    assert another.process.wait(10) == 0
    last = stage.last_report(name)
    stage.until(lambda: (last := stage.last_report(name)) and last.draining, "it says that it drains")
    assert last is None or last.entries == ()


def test_a_draining_runner_leaves_after_its_grace(
    kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str], stage: Stage, endless: Path
) -> None:
    with runner(kafka_settings, folder, "--any-file", "--grace-s", "1", environment=environment) as process:
        busy(stage, process.id_on(stage), endless)
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(15) == 0


def test_a_worker_that_stands_still_while_it_drains_is_handed_over_all_the_same(
    kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str], stage: Stage, endless: Path
) -> None:
    with runner(kafka_settings, folder, "--any-file", "--grace-s", "2", environment=environment) as process:
        name = process.id_on(stage)
        uuid = busy(stage, name, endless)
        [worker] = process.workers()
        os.kill(worker, signal.SIGSTOP)
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(15) == 0
        entry = stage.ended(name, uuid)
        assert entry.reason is EndReason.HANDED_OVER
        assert not is_alive(worker)


def test_a_signal_to_the_whole_group_lets_the_workers_hand_over(
    stage: Stage, another: RunnerProcess, endless: Path
) -> None:
    name = another.id_on(stage)
    uuid = busy(stage, name, endless)
    for pid in (*another.workers(), another.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert stage.ended(name, uuid).reason is EndReason.HANDED_OVER
    stage.command(name, Forget(uuid, 1))
    assert another.process.wait(10) == 0


def test_a_runner_killed_right_after_it_started_a_worker_leaves_none_behind(
    kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str], stage: Stage, endless: Path
) -> None:
    crash = "runner.after_launch"
    with runner(kafka_settings, folder, "--any-file", environment=environment, crash_at=crash) as process:
        uuid = new_uuid()
        stage.command(process.id_on(stage), deploy(uuid, endless, "patient"))
        assert process.process.wait(20) == -signal.SIGKILL
        mine = str(folder / "endless.mp4")
        wait_until(lambda: not [pid for pid in _all_pids() if _has_open(pid, mine)], "its worker is gone")


@pytest.mark.fault
@pytest.mark.parametrize("place", ["worker.before_frame", "worker.after_frame:3", "worker.before_end"])
def test_a_crash_point_of_a_worker_kills_it_once(
    kafka_settings: KafkaSettings, folder: Path, stage: Stage, clip: Path, place: str
) -> None:
    with runner(kafka_settings, folder, "--any-file", crash_at=place) as process:
        name, uuid = process.id_on(stage), new_uuid()
        stage.command(name, deploy(uuid, clip))
        assert stage.ended(name, uuid).reason is EndReason.CRASHED
        stage.command(name, deploy(uuid, clip, epoch=2))
        assert stage.whole(uuid, epoch=2).reason is EndReason.FINISHED


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
