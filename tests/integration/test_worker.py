"""Workers on real clips with real models, started by a real runner: what they send to Kafka and how they end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests import clips
from tests.broadcast import Broadcast
from tests.http_server import Habits, serving
from tests.integration import faulty_models
from tests.integration.api_server import free_port
from tests.integration.faulty_models import BAD_FRAME, BATCH, SECRET_IN_ERRORS
from tests.integration.runner_harness import (
    ControlPlane,
    RunnerProcess,
    make_deploy,
    new_uuid,
    resume_after,
    running_runner,
)
from tests.rtsp.camera import Camera
from tests.rtsp.relay import Relay

from vidflow.domain.messages import (
    CaptureClock,
    ClockChanges,
    CorruptPolicy,
    End,
    EndReason,
    Entry,
    Frame,
    Gap,
    GapReason,
    Parameters,
    ResumePoint,
    SourceLost,
    SourceOpened,
    StopWork,
    WorkerWait,
)
from vidflow.domain.progress import Progress, advance
from vidflow.domain.scenario import Skip
from vidflow.domain.warnings import WarningCode
from vidflow.infra.kafka.settings import KafkaSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def media(folder: Path) -> Path:
    """A media root with a clip, next to a clip that must not be readable."""
    root = folder / "media"
    root.mkdir()
    clips.constant_rate(root / "clip.mp4")
    clips.constant_rate(folder / "outside.mp4")
    (root / "link.mp4").symlink_to(folder / "outside.mp4")
    return root


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return clips.constant_rate(folder / "plain.mp4", frames=20)


@pytest.fixture(scope="module")
def runner_process(kafka_settings: KafkaSettings, folder: Path) -> Iterator[RunnerProcess]:
    """A runner that may read any file and has the faulty models, and the shared models if they exist."""
    shared = Path(__file__).parents[3] / "shared" / "models"
    models = ["--models-dir", str(shared)] if shared.is_dir() else []
    ControlPlane(kafka_settings).close()
    environment = faulty_models.install(folder)
    with running_runner(
        kafka_settings,
        folder,
        "--any-file",
        "--allow-source-network",
        "127.0.0.1",
        "--max-workers",
        "4",
        *models,
        environment=environment,
    ) as process:
        yield process


@pytest.fixture(scope="module")
def runner_id(runner_process: RunnerProcess, control_plane: ControlPlane) -> str:
    return runner_process.wait_for_id(control_plane)


def numbers(frames: list[Frame]) -> list[int]:
    return [frame.frame_number for frame in frames]


def comparable(frames: list[Frame]) -> list[object]:
    """Return what must be the same in every run: everything except the epoch and the time of inference."""
    return [(frame.frame_number, frame.pts, frame.time_s, frame.detections) for frame in frames]


def test_a_result_arrives_while_the_model_is_busy_with_later_frames(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, clip: Path
) -> None:
    """It waits a moment for others, but not until they are there."""
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "endless_inference"))
    control_plane.wait_until(lambda: len(control_plane.frames(uuid)) == 1 + BATCH, "frames before the endless batch")

    def is_reported() -> bool:
        running = control_plane.entry(runner_id, uuid)
        return running is not None and (running.next_frame, running.waits_for) == (1 + BATCH, WorkerWait.INFERENCE)

    control_plane.wait_until(is_reported, "the runner knows that the worker is in the endless batch")
    [pid] = runner_process.workers()
    os.kill(pid, signal.SIGKILL)
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert (entry.reason, entry.waits_for) == (EndReason.CRASHED, WorkerWait.INFERENCE)


def test_secrets_of_the_source_are_not_reported(control_plane: ControlPlane, runner_id: str, clip: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(clip.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uuid = new_uuid()
        source = (
            f"http://admin:{SECRET_IN_ERRORS}@127.0.0.1:{server.server_port}/{clip.name}?loginpas={SECRET_IN_ERRORS}"
        )
        control_plane.send_command(runner_id, make_deploy(uuid, source, "secret_leak"))
        entry = control_plane.wait_until_ended(runner_id, uuid)
        server.shutdown()
    assert entry.error is not None
    assert "(ValueError: http://h/?jwt=*** or ***: xxx" in entry.error.message
    assert "option value: ***" in (entry.detail or "")
    assert "Hunter" not in f"{entry.error.message} {entry.detail}"


def test_a_video_gives_opened_then_all_frames_then_the_end_marker(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip))
    end = control_plane.wait_for_end_marker(uuid)
    first, *frames, last = control_plane.results_of(uuid)
    assert isinstance(first, SourceOpened)
    assert (first.width, first.height, first.frames_expected) == (clips.WIDTH, clips.HEIGHT, 20)
    assert (first.live, first.device) == (False, "cpu")
    assert numbers(control_plane.frames(uuid)) == list(range(20))
    assert len(frames) == 20
    assert (end.last_frame, end.reason, last) == (19, EndReason.FINISHED, end)
    assert control_plane.wait_until_ended(runner_id, uuid).reason is EndReason.FINISHED


@pytest.mark.parametrize("fps", ["5", "5005/1001"])
def test_a_frame_rate_keeps_the_first_frame_of_each_cell(
    control_plane: ControlPlane, runner_id: str, clip: Path, fps: str
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, fps=fps))
    control_plane.wait_for_end_marker(uuid)
    assert [frame.time_s for frame in control_plane.frames(uuid)] == pytest.approx([0.0, 0.2, 0.4, 0.6])


def test_a_duration_ends_a_file_early(control_plane: ControlPlane, runner_id: str, clip: Path) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, fps="5", parameters=Parameters(duration_s=0.5)))
    assert control_plane.wait_for_end_marker(uuid).reason is EndReason.FINISHED
    assert [frame.time_s for frame in control_plane.frames(uuid)] == pytest.approx([0.0, 0.2, 0.4])
    assert [opened.frames_expected for opened in control_plane.opened(uuid)] == [3]


def test_yolox_finds_two_bottles(control_plane: ControlPlane, runner_id: str, shared: Path) -> None:
    uuid = new_uuid()
    control_plane.send_command(
        runner_id, make_deploy(uuid, shared / "videos/bottle-detection.mp4", "yolox_nano", fps="1")
    )
    assert control_plane.wait_for_end_marker(uuid).last_frame == 39
    tenth = control_plane.frames(uuid)[10]
    assert [detection.label for detection in tenth.detections] == ["bottle", "bottle"]
    assert all(detection.score > 0.9 for detection in tenth.detections)


@pytest.mark.long
def test_the_parameters_of_a_scenario_are_applied(control_plane: ControlPlane, runner_id: str, shared: Path) -> None:
    uuid = new_uuid()
    parameters = Parameters(score_threshold=0.99)
    control_plane.send_command(
        runner_id,
        make_deploy(uuid, shared / "videos/bottle-detection.mp4", "yolox_nano", fps="1", parameters=parameters),
    )
    control_plane.wait_for_end_marker(uuid)
    assert all(frame.detections == () for frame in control_plane.frames(uuid))


@pytest.mark.parametrize(("rate", "last"), [("all", 40), ("all", 3), ("7", 17), ("2", 6)])
def test_a_resumed_run_of_a_stateful_model_gives_the_results_of_an_uninterrupted_run(
    control_plane: ControlPlane, runner_id: str, folder: Path, rate: str, last: int
) -> None:
    source = clips.long_gop_with_b_frames(folder / f"long-{rate}-{last}.mp4")
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, source, fps=rate))
    control_plane.wait_for_end_marker(uuid)
    uninterrupted, [opened] = control_plane.frames(uuid), control_plane.opened(uuid)
    control_plane.send_command(
        runner_id, make_deploy(uuid, source, fps=rate, epoch=2, resume=resume_after(uninterrupted[last], opened))
    )
    end = control_plane.wait_for_end_marker(uuid, epoch=2)
    assert any(frame.detections for frame in uninterrupted)
    assert comparable(control_plane.frames(uuid, epoch=2)) == comparable(uninterrupted[last + 1 :])
    assert end.last_frame == uninterrupted[-1].frame_number


@pytest.mark.long
def test_a_resumed_run_on_a_real_clip_gives_the_results_of_an_uninterrupted_run(
    control_plane: ControlPlane, runner_id: str, shared: Path
) -> None:
    uuid, source = new_uuid(), shared / "videos/vtest.avi"
    control_plane.send_command(runner_id, make_deploy(uuid, source, fps="2"))
    control_plane.wait_for_end_marker(uuid)
    uninterrupted, [opened] = control_plane.frames(uuid), control_plane.opened(uuid)
    control_plane.send_command(
        runner_id, make_deploy(uuid, source, fps="2", epoch=2, resume=resume_after(uninterrupted[120], opened))
    )
    control_plane.wait_for_end_marker(uuid, epoch=2)
    assert comparable(control_plane.frames(uuid, epoch=2)) == comparable(uninterrupted[121:])


def test_a_retry_gives_the_same_frames(control_plane: ControlPlane, runner_id: str, clip: Path) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip))
    control_plane.send_command(runner_id, make_deploy(other := new_uuid(), clip, attempt=2))
    control_plane.wait_for_end_marker(uuid)
    control_plane.wait_for_end_marker(other)
    assert comparable(control_plane.frames(other)) == comparable(control_plane.frames(uuid))


def test_a_resumed_run_without_remaining_frames_ends_at_once(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip))
    control_plane.wait_for_end_marker(uuid)
    resume = resume_after(control_plane.frames(uuid)[-1], control_plane.opened(uuid)[0])
    control_plane.send_command(runner_id, make_deploy(uuid, clip, epoch=2, resume=resume))
    end = control_plane.wait_for_end_marker(uuid, epoch=2)
    assert (end.last_frame, end.reason, control_plane.frames(uuid, epoch=2)) == (19, EndReason.FINISHED, [])


def test_a_stopped_worker_sends_an_end_marker_with_its_last_frame(
    control_plane: ControlPlane, runner_id: str, folder: Path
) -> None:
    uuid = new_uuid()
    source = clips.constant_rate(folder / "endless.mp4", frames=3000)
    control_plane.send_command(runner_id, make_deploy(uuid, source, "slow_inference"))
    control_plane.wait_until(lambda: len(control_plane.frames(uuid)) > 3, "its worker sends frames")
    control_plane.send_command(runner_id, StopWork(uuid, 1))
    end = control_plane.wait_for_end_marker(uuid)
    assert (end.last_frame, end.reason) == (control_plane.frames(uuid)[-1].frame_number, EndReason.STOPPED)
    assert numbers(control_plane.frames(uuid)) == list(range(end.last_frame + 1))
    assert control_plane.wait_until_ended(runner_id, uuid).reason is EndReason.STOPPED


def test_a_worker_is_stopped_while_it_waits_for_a_server(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid, habits = new_uuid(), Habits(clip.read_bytes(), answers=[(503, {"Retry-After": "60"})])
    with serving(habits) as url:
        control_plane.send_command(runner_id, make_deploy(uuid, url))
        control_plane.wait_until(
            lambda: (uuid, WorkerWait.SOURCE) in waits(control_plane.reports[-1].entries), "it waits for the server"
        )
        control_plane.send_command(runner_id, StopWork(uuid, 1))
        end = control_plane.wait_for_end_marker(uuid)
    assert (end.last_frame, end.reason) == (-1, EndReason.STOPPED)
    assert control_plane.wait_until_ended(runner_id, uuid).reason is EndReason.STOPPED


def waits(entries: tuple[Entry, ...]) -> list[tuple[str, WorkerWait | None]]:
    return [(entry.scenario_uuid, entry.waits_for) for entry in entries]


def test_a_busy_server_is_waited_for(control_plane: ControlPlane, runner_id: str, clip: Path) -> None:
    uuid, habits = new_uuid(), Habits(clip.read_bytes(), answers=[(429, {"Retry-After": "1"})] * 2)
    with serving(habits) as url:
        control_plane.send_command(runner_id, make_deploy(uuid, url))
        end = control_plane.wait_for_end_marker(uuid)
    assert (end.last_frame, end.reason) == (19, EndReason.FINISHED)


def test_a_skip_is_reported_as_a_gap_and_uses_no_frame_number(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip))
    control_plane.wait_for_end_marker(uuid)
    unskipped = control_plane.frames(uuid)
    skips = (Skip(unskipped[4].pts, 2),)
    control_plane.send_command(runner_id, make_deploy(other := new_uuid(), clip, skips=skips))
    end = control_plane.wait_for_end_marker(other)
    frames = control_plane.frames(other)
    [gap] = control_plane.gaps(other)
    assert [frame.pts for frame in frames] == [frame.pts for frame in unskipped[:5] + unskipped[7:]]
    assert numbers(frames) == list(range(18))
    assert (gap.after_frame, gap.frames, gap.reason, gap.from_s) == (4, 2, GapReason.SKIPPED, unskipped[5].time_s)
    assert end.last_frame == 17
    for last in (4, 9):  # resumed right before the skip, and after it
        resumed_uuid = new_uuid()
        control_plane.send_command(
            runner_id,
            make_deploy(
                resumed_uuid, clip, skips=skips, resume=resume_after(frames[last], control_plane.opened(other)[0])
            ),
        )
        control_plane.wait_for_end_marker(resumed_uuid)
        assert comparable(control_plane.frames(resumed_uuid)) == comparable(frames[last + 1 :])


def test_what_is_missing_before_a_frame_that_fails_is_sent_with_an_end_marker(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    control_plane.send_command(runner_id, make_deploy(uuid := new_uuid(), clip))
    control_plane.wait_for_end_marker(uuid)
    before, skipped = control_plane.frames(uuid)[BAD_FRAME - 2 : BAD_FRAME]
    skips = (Skip(before.pts, 1),)
    control_plane.send_command(runner_id, make_deploy(other := new_uuid(), clip, "inference_error", skips=skips))
    wait_until_failed(control_plane, runner_id, other)
    end = control_plane.wait_for_end_marker(other)
    gap = Gap(skipped.time_s, skipped.time_s, GapReason.SKIPPED, 1)
    assert end == End(other, 1, BAD_FRAME - 2, EndReason.ERROR, (gap,))


def test_jumps_of_the_clock_after_the_last_frame_are_in_the_end_marker(
    control_plane: ControlPlane, runner_id: str, tmp_path: Path
) -> None:
    whole, hour = clips.constant_rate(tmp_path / "whole.mp4"), 3_600 * 16_000
    path = clips.with_wild_times(whole, tmp_path / "wild.mp4", {44: 10 * hour, 49: 20 * hour})
    cases: dict[str, tuple[dict[str, Any], int, ClockChanges | None]] = {
        new_uuid(): ({}, 9, ClockChanges(1.96, jumps=1)),
        new_uuid(): ({"parameters": Parameters(duration_s=1.7)}, 8, ClockChanges(1.7, jumps=1)),
        new_uuid(): ({"parameters": Parameters(duration_s=1.5)}, 7, None),
        new_uuid(): ({"skips": (Skip(40 * 40 * 16, 1),)}, 8, ClockChanges(1.96, jumps=2)),
    }
    for uuid, (fields, _, _) in cases.items():
        control_plane.send_command(runner_id, make_deploy(uuid, path, fps="5", **fields))
    for uuid, (_, last_frame, changes) in cases.items():
        end = control_plane.wait_for_end_marker(uuid)
        assert (end.last_frame, end.reason, end.clock) == (last_frame, EndReason.FINISHED, changes)
    assert [frame.clock_jumps for frame in control_plane.frames(next(iter(cases)))] == [0] * 9 + [1]


@pytest.fixture(scope="module")
def damaged_clip(folder: Path) -> Path:
    whole = clips.write(folder / "noise.mp4", (clips.noise(i) for i in range(20)), [40 * i for i in range(20)])
    return clips.with_concealed_damage(whole, folder / "damaged.mp4", [5, 6, 12])


def test_a_frame_with_concealed_damage_is_sent_with_a_mark(
    control_plane: ControlPlane, runner_id: str, damaged_clip: Path
) -> None:
    control_plane.send_command(runner_id, make_deploy(uuid := new_uuid(), damaged_clip))
    assert control_plane.wait_for_end_marker(uuid).last_frame == 19
    assert [frame.frame_number for frame in control_plane.frames(uuid) if frame.corrupt] == [5, 6, 12]
    assert control_plane.gaps(uuid) == []


def test_a_scenario_that_skips_damaged_frames_has_gaps_instead_and_resumes_exactly(
    control_plane: ControlPlane, runner_id: str, damaged_clip: Path
) -> None:
    skip = Parameters(on_corrupt=CorruptPolicy.SKIP)
    control_plane.send_command(runner_id, make_deploy(uuid := new_uuid(), damaged_clip, parameters=skip))
    assert control_plane.wait_for_end_marker(uuid).last_frame == 16
    frames = control_plane.frames(uuid)
    assert numbers(frames) == list(range(17))
    gaps = [(gap.after_frame, gap.frames, gap.reason) for gap in control_plane.gaps(uuid)]
    assert gaps == [(4, 2, GapReason.CORRUPT), (9, 1, GapReason.CORRUPT)]
    for last in (4, 5, 9, 12):
        resume = resume_after(frames[last], control_plane.opened(uuid)[0])
        control_plane.send_command(
            runner_id, make_deploy(resumed := new_uuid(), damaged_clip, resume=resume, parameters=skip)
        )
        control_plane.wait_for_end_marker(resumed)
        assert comparable(control_plane.frames(resumed)) == comparable(frames[last + 1 :])
        again = [(gap.after_frame, gap.frames, gap.reason) for gap in control_plane.gaps(resumed)]
        assert again == [gap for gap in gaps if gap[0] >= last]


def wait_until_failed(control_plane: ControlPlane, name: str, uuid: str, epoch: int = 1) -> tuple[Entry, str]:
    entry = control_plane.wait_until_ended(name, uuid, epoch)
    assert entry.reason is EndReason.ERROR
    assert entry.error is not None
    return entry, entry.error.code


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "source_missing"),
        (b"this is not a video\n" * 100, "source_not_video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/hostname\n", "source_not_video"),
        ("no packet", "no_frames"),
        ("sound", "source_no_video_stream"),
    ],
)
def test_a_bad_source_is_a_permanent_error(
    control_plane: ControlPlane, runner_id: str, tmp_path: Path, content: object, code: str
) -> None:
    uuid, source = new_uuid(), tmp_path / "clip.mp4"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content == "no packet":
        clips.no_packet(source)
    elif content == "sound":
        source = clips.cover_picture(tmp_path / "sound.mp3")
    control_plane.send_command(runner_id, make_deploy(uuid, source))
    entry, error_code = wait_until_failed(control_plane, runner_id, uuid)
    assert (error_code, entry.fatal, control_plane.frames(uuid)) == (code, True, [])


def test_a_changed_file_is_a_permanent_error(control_plane: ControlPlane, runner_id: str, tmp_path: Path) -> None:
    uuid, source = new_uuid(), clips.constant_rate(tmp_path / "clip.mp4")
    control_plane.send_command(runner_id, make_deploy(uuid, source))
    control_plane.wait_for_end_marker(uuid)
    resume = resume_after(control_plane.frames(uuid)[5], control_plane.opened(uuid)[0])
    clips.constant_rate(source, frames=40)
    control_plane.send_command(runner_id, make_deploy(uuid, source, epoch=2, resume=resume))
    entry, code = wait_until_failed(control_plane, runner_id, uuid, epoch=2)
    assert (code, entry.fatal) == ("source_changed", True)


def test_a_growing_file_is_followed(control_plane: ControlPlane, runner_id: str, tmp_path: Path) -> None:
    content = clips.constant_rate(tmp_path / "whole.ts", frames=100).read_bytes()
    path = tmp_path / "growing.ts"
    path.write_bytes(content[: len(content) // 3])
    parameters = Parameters(follow=True, follow_s=2.0)
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, path, parameters=parameters))
    control_plane.wait_until(
        lambda: (uuid, WorkerWait.SOURCE) in waits(control_plane.reports[-1].entries), "it waits for the file"
    )
    with path.open("ab") as file:
        file.write(content[len(content) // 3 :])
    end = control_plane.wait_for_end_marker(uuid)
    assert (end.last_frame, end.reason, control_plane.gaps(uuid)) == (99, EndReason.FINISHED, [])


@pytest.mark.parametrize(
    ("model", "parameters", "code"),
    [
        ("no-such-model", Parameters(), "model_unknown"),
        ("motion", Parameters(labels=("unicorn",)), "parameter_invalid"),
    ],
)
def test_an_invalid_model_or_parameter_is_a_permanent_error(
    control_plane: ControlPlane, runner_id: str, clip: Path, model: str, parameters: Parameters, code: str
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, model, parameters=parameters))
    entry, error_code = wait_until_failed(control_plane, runner_id, uuid)
    assert (error_code, entry.fatal) == (code, True)


def test_an_invalid_frame_rate_is_a_permanent_error(control_plane: ControlPlane, runner_id: str, clip: Path) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, fps="often"))
    entry, code = wait_until_failed(control_plane, runner_id, uuid)
    assert (code, entry.fatal) == ("parameter_invalid", True)


@pytest.mark.parametrize("model", ["inference_error", "model_bug"])
def test_a_retry_names_the_frame_at_which_it_fails(
    control_plane: ControlPlane, runner_id: str, clip: Path, model: str
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, model))
    entry, error_code = wait_until_failed(control_plane, runner_id, uuid)
    assert (error_code, entry.fatal, entry.waits_for) == ("inference_failed", False, WorkerWait.INFERENCE)
    stored = control_plane.frames(uuid)
    assert numbers(stored) == list(range(5))  # the first alone, then a batch of four; the next batch has the bad frame

    resume = resume_after(stored[-1], control_plane.opened(uuid)[0])
    control_plane.send_command(runner_id, make_deploy(uuid, clip, model, epoch=2, attempt=1, resume=resume))
    entry, _ = wait_until_failed(control_plane, runner_id, uuid, epoch=2)
    assert entry.error is not None
    assert entry.error.frame_number == BAD_FRAME
    assert numbers(control_plane.frames(uuid, epoch=2)) == [5]


def test_a_result_that_the_inbox_could_not_read_is_not_sent_and_its_frame_is_named(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "invalid_label", attempt=1))
    entry, code = wait_until_failed(control_plane, runner_id, uuid)
    assert (code, entry.fatal, entry.waits_for) == ("message_invalid", False, WorkerWait.INFERENCE)
    assert entry.error is not None
    assert "The model or the source returned data that cannot be stored" in entry.error.message
    assert numbers(control_plane.frames(uuid)) == list(range(BAD_FRAME))


def test_a_model_of_another_package_that_cannot_be_loaded_is_a_permanent_error(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "load_failure"))
    entry, code = wait_until_failed(control_plane, runner_id, uuid)
    assert (code, entry.fatal) == ("model_refused", True)
    assert entry.error is not None
    assert "'load_failure' cannot be loaded (AttributeError: " in entry.error.message


def test_a_bug_in_a_model_is_reported_with_its_traceback(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "model_bug"))
    entry, _ = wait_until_failed(control_plane, runner_id, uuid)
    assert "ZeroDivisionError: a mistake of the model's author" in (entry.detail or "")


def test_a_crash_in_native_code_is_reported_with_its_signal_and_stack(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, "segfault", attempt=1))
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert entry.reason is EndReason.CRASHED
    assert entry.error is not None
    assert signal.SIGSEGV.name in entry.error.message
    assert "Segmentation fault" in (entry.detail or "")
    assert "faulty_models.py" in (entry.detail or "")


@pytest.fixture(scope="module")
def confined_runner_id(
    kafka_settings: KafkaSettings, folder: Path, media: Path, control_plane: ControlPlane
) -> Iterator[str]:
    """The id of a runner that may read only the media root."""
    with running_runner(kafka_settings, folder, "--media-root", str(media)) as process:
        yield process.wait_for_id(control_plane)


def test_a_source_is_a_path_relative_to_the_media_root(control_plane: ControlPlane, confined_runner_id: str) -> None:
    uuid = new_uuid()
    control_plane.send_command(confined_runner_id, make_deploy(uuid, "clip.mp4", fps="1"))
    assert control_plane.wait_for_end_marker(uuid).reason is EndReason.FINISHED


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("../outside.mp4", "source_forbidden"),
        ("link.mp4", "source_forbidden"),
        ("/etc/passwd", "source_forbidden"),
        ("/no/such/file", "source_forbidden"),
        ("file:///etc/passwd", "source_forbidden"),
        ("concat:clip.mp4|clip.mp4", "source_missing"),
        ("nowhere.mp4", "source_missing"),
    ],
)
def test_no_source_leads_out_of_the_media_root(
    control_plane: ControlPlane, confined_runner_id: str, source: str, code: str
) -> None:
    uuid = new_uuid()
    control_plane.send_command(confined_runner_id, make_deploy(uuid, source))
    entry, error_code = wait_until_failed(control_plane, confined_runner_id, uuid)
    assert (error_code, entry.fatal, control_plane.opened(uuid)) == (code, True, [])


def test_a_killed_worker_is_reported_as_crashed(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, folder: Path
) -> None:
    uuid = new_uuid()
    source = clips.constant_rate(folder / "killed.mp4", frames=3000)
    control_plane.send_command(runner_id, make_deploy(uuid, source, "slow_inference"))
    control_plane.wait_until(lambda: control_plane.frames(uuid), "its worker sends frames")
    [pid] = runner_process.workers()
    os.kill(pid, signal.SIGKILL)
    entry = control_plane.wait_until_ended(runner_id, uuid)
    assert entry.reason is EndReason.CRASHED
    assert entry.error is not None
    assert "SIGKILL" in entry.error.message


@pytest.mark.long
def test_a_killed_worker_of_an_endless_http_stream_is_followed_by_one_that_goes_on_at_once(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str
) -> None:
    uuid = new_uuid()
    habits = Habits(b"", headers={"Content-Type": "video/mp2t"}, live=Broadcast("mpegts", "mpeg2video"))
    with serving(habits, name="live.ts") as url:
        control_plane.send_command(runner_id, make_deploy(uuid, url))
        control_plane.wait_until(lambda: len(control_plane.frames(uuid)) > 20, "its worker sends frames")
        [pid] = runner_process.workers()
        os.kill(pid, signal.SIGKILL)
        control_plane.wait_until_ended(runner_id, uuid)
        opened, last = control_plane.opened(uuid)[0], control_plane.frames(uuid)[-1]
        resume = resume_after(last, opened)
        control_plane.send_command(runner_id, make_deploy(uuid, url, epoch=2, attempt=1, resume=resume))
        control_plane.wait_until(lambda: control_plane.frames(uuid, epoch=2), "its next worker sends frames")
        control_plane.send_command(runner_id, StopWork(uuid, 2))
        control_plane.wait_until_ended(runner_id, uuid, epoch=2)
    assert (opened.live, opened.device) == (True, "cpu")
    following = control_plane.frames(uuid, epoch=2)[0]
    gaps = [gap for gap in control_plane.gaps(uuid, epoch=2) if gap.after_frame == last.frame_number]
    assert following.frame_number == last.frame_number + 1
    # The server first sends what it has stored since the last keyframe, which the model passes over.
    assert {gap.reason for gap in gaps} <= {GapReason.REDEPLOYED, GapReason.DROPPED}
    missing = sum(gap.frames or 0 for gap in gaps)
    assert missing + 1 == pytest.approx((following.time_s - last.time_s) * 25, abs=2)


def test_a_resume_point_without_pts_is_followed_by_its_frame_number(
    control_plane: ControlPlane, runner_id: str, clip: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, clip, resume=ResumePoint(next_frame=12)))
    control_plane.wait_for_end_marker(uuid)
    assert numbers(control_plane.frames(uuid)) == list(range(12, 20))


@pytest.mark.long
@pytest.mark.usefixtures("rtsp_server")
def test_what_is_wrong_with_a_camera_and_its_clock_reaches_the_scenario(
    control_plane: ControlPlane, runner_id: str
) -> None:
    uuid = new_uuid()
    with Camera(free_port()) as camera, Relay(camera, offset_s=3600) as relay:
        control_plane.send_command(runner_id, make_deploy(uuid, relay.url, fps="5"))
        control_plane.wait_until(
            lambda: any(frame.captured_by is CaptureClock.RTCP for frame in control_plane.frames(uuid)), "a camera time"
        )
        relay.jump(600)
        control_plane.wait_until(lambda: any(frame.clock_jumps for frame in control_plane.frames(uuid)), "a jump")
        camera.kill()
        control_plane.wait_until(
            lambda: any(isinstance(result, SourceLost) for result in control_plane.results_of(uuid)), "a lost source"
        )
        control_plane.send_command(runner_id, StopWork(uuid, 1))
        control_plane.wait_for_end_marker(uuid)
    progress = Progress()
    for result in control_plane.results_of(uuid):
        progress, _ = advance(progress, result)
    assert {warning.code: warning.count for warning in progress.warnings} == {
        WarningCode.CLOCK_DRIFT: 1, WarningCode.TIME_ADJUSTED: 1,
    }  # fmt: skip
    drift = next(warning for warning in progress.warnings if warning.code is WarningCode.CLOCK_DRIFT)
    assert drift.offset_s == pytest.approx(3600, abs=60)
    assert progress.lost is not None
    assert progress.next_frame == len(control_plane.frames(uuid))
