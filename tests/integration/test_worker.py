"""Workers on real clips with real models, started by a real runner: what they send to Kafka, and how they end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests import clips
from tests.integration import odd_models
from tests.integration.odd_models import BAD_FRAME, HIDDEN
from tests.integration.runners import RunnerProcess, Stage, deploy, new_uuid, resume_behind, runner

from vidflow.domain.messages import EndReason, Entry, Frame, GapReason, Opened, Parameters, Resume, StopWork, Waiting
from vidflow.domain.scenario import Skip
from vidflow.infra.kafka.settings import KafkaSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def media(folder: Path) -> Path:
    """A media root with a clip in it, and one beside it that must stay out of reach."""
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
def free(kafka_settings: KafkaSettings, folder: Path) -> Iterator[RunnerProcess]:
    """A runner that may read any file and has the odd models; and the shared ones, where they are."""
    shared = Path(__file__).parents[3] / "shared" / "models"
    models = ["--models-dir", str(shared)] if shared.is_dir() else []
    Stage(kafka_settings).close()
    environment = odd_models.install(folder)
    with runner(
        kafka_settings, folder, "--any-file", "--max-workers", "4", *models, environment=environment
    ) as process:
        yield process


@pytest.fixture(scope="module")
def name(free: RunnerProcess, stage: Stage) -> str:
    return free.id_on(stage)


def numbers(frames: list[Frame]) -> list[int]:
    return [frame.frame_number for frame in frames]


def seen(frames: list[Frame]) -> list[object]:
    """What must be the same at every run: all but the epoch and the clock."""
    return [(frame.frame_number, frame.pts, frame.time_s, frame.detections) for frame in frames]


def test_what_a_worker_says_of_its_source_s_secrets_is_not_reported(stage: Stage, name: str, clip: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(clip.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uuid = new_uuid()
        source = f"http://admin:{HIDDEN}@127.0.0.1:{server.server_port}/{clip.name}?loginpas={HIDDEN}"
        stage.command(name, deploy(uuid, source, "indiscreet"))
        entry = stage.ended(name, uuid)
        server.shutdown()
    assert entry.error is not None
    assert "(ValueError: http://h/?jwt=*** or ***: xxx" in entry.error.message
    assert "option value: ***" in (entry.detail or "")
    assert "Hunter" not in f"{entry.error.message} {entry.detail}"


def test_a_video_comes_as_opened_then_dense_frames_then_the_end(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip))
    end = stage.whole(uuid)
    first, *frames, last = stage.said(uuid)
    assert isinstance(first, Opened)
    assert (first.width, first.height, first.frames_expected, first.live) == (clips.WIDTH, clips.HEIGHT, 20, False)
    assert numbers(stage.frames(uuid)) == list(range(20))
    assert len(frames) == 20
    assert (end.last_frame, end.reason, last) == (19, EndReason.FINISHED, end)
    assert stage.ended(name, uuid).reason is EndReason.FINISHED


@pytest.mark.parametrize("fps", ["5", "5005/1001"])
def test_a_frame_rate_keeps_the_first_frame_of_each_cell(stage: Stage, name: str, clip: Path, fps: str) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, fps=fps))
    stage.whole(uuid)
    assert [frame.time_s for frame in stage.frames(uuid)] == pytest.approx([0.0, 0.2, 0.4, 0.6])


def test_yolox_finds_the_two_bottles(stage: Stage, name: str, shared: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, shared / "videos/bottle-detection.mp4", "yolox_nano", fps="1"))
    assert stage.whole(uuid).last_frame == 39
    tenth = stage.frames(uuid)[10]
    assert [detection.label for detection in tenth.detections] == ["bottle", "bottle"]
    assert all(detection.score > 0.9 for detection in tenth.detections)


def test_a_scenarios_parameters_are_in_force(stage: Stage, name: str, shared: Path) -> None:
    uuid = new_uuid()
    parameters = Parameters(score_threshold=0.99)
    stage.command(
        name, deploy(uuid, shared / "videos/bottle-detection.mp4", "yolox_nano", fps="1", parameters=parameters)
    )
    stage.whole(uuid)
    assert all(frame.detections == () for frame in stage.frames(uuid))


@pytest.mark.parametrize(("rate", "last"), [("all", 40), ("all", 3), ("7", 17), ("2", 6)])
def test_a_resumed_run_of_a_stateful_model_sees_what_an_undisturbed_one_sees(
    stage: Stage, name: str, folder: Path, rate: str, last: int
) -> None:
    source = clips.long_gop_with_b_frames(folder / f"long-{rate}-{last}.mp4")
    uuid = new_uuid()
    stage.command(name, deploy(uuid, source, fps=rate))
    stage.whole(uuid)
    undisturbed, [opened] = stage.frames(uuid), stage.opened(uuid)
    stage.command(name, deploy(uuid, source, fps=rate, epoch=2, resume=resume_behind(undisturbed[last], opened)))
    end = stage.whole(uuid, epoch=2)
    assert any(frame.detections for frame in undisturbed)
    assert seen(stage.frames(uuid, epoch=2)) == seen(undisturbed[last + 1 :])
    assert end.last_frame == undisturbed[-1].frame_number


def test_a_resumed_run_on_a_real_clip_sees_what_an_undisturbed_one_sees(stage: Stage, name: str, shared: Path) -> None:
    uuid, source = new_uuid(), shared / "videos/vtest.avi"
    stage.command(name, deploy(uuid, source, fps="2"))
    stage.whole(uuid)
    undisturbed, [opened] = stage.frames(uuid), stage.opened(uuid)
    stage.command(name, deploy(uuid, source, fps="2", epoch=2, resume=resume_behind(undisturbed[120], opened)))
    stage.whole(uuid, epoch=2)
    assert seen(stage.frames(uuid, epoch=2)) == seen(undisturbed[121:])


def test_an_attempt_after_a_loss_gives_the_same_frames(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip))
    stage.command(name, deploy(other := new_uuid(), clip, attempt=2))
    stage.whole(uuid)
    stage.whole(other)
    assert seen(stage.frames(other)) == seen(stage.frames(uuid))


def test_a_resumed_run_that_finds_nothing_left_ends_at_once(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip))
    stage.whole(uuid)
    resume = resume_behind(stage.frames(uuid)[-1], stage.opened(uuid)[0])
    stage.command(name, deploy(uuid, clip, epoch=2, resume=resume))
    end = stage.whole(uuid, epoch=2)
    assert (end.last_frame, end.reason, stage.frames(uuid, epoch=2)) == (19, EndReason.FINISHED, [])


def test_a_stop_ends_with_what_was_sent_and_says_so(stage: Stage, name: str, folder: Path) -> None:
    uuid = new_uuid()
    source = clips.constant_rate(folder / "endless.mp4", frames=3000)
    stage.command(name, deploy(uuid, source, "patient"))
    stage.until(lambda: len(stage.frames(uuid)) > 3, "it is at work")
    stage.command(name, StopWork(uuid, 1))
    end = stage.whole(uuid)
    assert (end.last_frame, end.reason) == (stage.frames(uuid)[-1].frame_number, EndReason.STOPPED)
    assert numbers(stage.frames(uuid)) == list(range(end.last_frame + 1))
    assert stage.ended(name, uuid).reason is EndReason.STOPPED


def test_a_skip_is_told_as_a_gap_and_takes_no_number(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip))
    stage.whole(uuid)
    plain = stage.frames(uuid)
    skips = (Skip(plain[4].pts, 2),)
    stage.command(name, deploy(other := new_uuid(), clip, skips=skips))
    end = stage.whole(other)
    frames = stage.frames(other)
    [gap] = stage.gaps(other)
    assert [frame.pts for frame in frames] == [frame.pts for frame in plain[:5] + plain[7:]]
    assert numbers(frames) == list(range(18))
    assert (gap.after_frame, gap.frames, gap.reason, gap.from_s) == (4, 2, GapReason.SKIPPED, plain[5].time_s)
    assert end.last_frame == 17
    for last in (4, 9):  # resumed right before the skip, and behind it
        again = new_uuid()
        stage.command(
            name, deploy(again, clip, skips=skips, resume=resume_behind(frames[last], stage.opened(other)[0]))
        )
        stage.whole(again)
        assert seen(stage.frames(again)) == seen(frames[last + 1 :])


def failed(stage: Stage, name: str, uuid: str, epoch: int = 1) -> tuple[Entry, str]:
    entry = stage.ended(name, uuid, epoch)
    assert entry.reason is EndReason.ERROR
    assert entry.error is not None
    return entry, entry.error.code


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "source_missing"),
        (b"hello, I am no video\n" * 100, "source_not_video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/hostname\n", "source_not_video"),
        ("no packet", "no_frames"),
        ("sound", "source_no_video_stream"),
    ],
)
def test_a_bad_source_is_an_error_that_no_retry_mends(
    stage: Stage, name: str, tmp_path: Path, content: object, code: str
) -> None:
    uuid, source = new_uuid(), tmp_path / "clip.mp4"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content == "no packet":
        clips.no_packet(source)
    elif content == "sound":
        source = clips.cover_picture(tmp_path / "sound.mp3")
    stage.command(name, deploy(uuid, source))
    entry, found = failed(stage, name, uuid)
    assert (found, entry.fatal, stage.frames(uuid)) == (code, True, [])


def test_a_file_that_changed_is_another_video(stage: Stage, name: str, tmp_path: Path) -> None:
    uuid, source = new_uuid(), clips.constant_rate(tmp_path / "clip.mp4")
    stage.command(name, deploy(uuid, source))
    stage.whole(uuid)
    resume = resume_behind(stage.frames(uuid)[5], stage.opened(uuid)[0])
    clips.constant_rate(source, frames=40)
    stage.command(name, deploy(uuid, source, epoch=2, resume=resume))
    entry, code = failed(stage, name, uuid, epoch=2)
    assert (code, entry.fatal) == ("source_changed", True)


@pytest.mark.parametrize(
    ("model", "parameters", "code"),
    [
        ("no-such-model", Parameters(), "model_unknown"),
        ("motion", Parameters(labels=("unicorn",)), "parameter_invalid"),
    ],
)
def test_a_model_or_parameter_that_cannot_be_is_no_matter_for_a_retry(
    stage: Stage, name: str, clip: Path, model: str, parameters: Parameters, code: str
) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, model, parameters=parameters))
    entry, found = failed(stage, name, uuid)
    assert (found, entry.fatal) == (code, True)


def test_a_frame_rate_that_is_none_is_an_error(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, fps="often"))
    entry, code = failed(stage, name, uuid)
    assert (code, entry.fatal) == ("parameter_invalid", True)


@pytest.mark.parametrize("model", ["poisonous", "buggy"])
def test_after_a_loss_the_frame_at_which_it_falls_is_named(stage: Stage, name: str, clip: Path, model: str) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, model))
    entry, found = failed(stage, name, uuid)
    assert (found, entry.fatal, entry.waits_for) == ("inference_failed", False, Waiting.INFERENCE)
    stored = stage.frames(uuid)
    assert numbers(stored) == list(range(5))  # the first alone, then four, and the next four hold the bad one

    resume = resume_behind(stored[-1], stage.opened(uuid)[0])
    stage.command(name, deploy(uuid, clip, model, epoch=2, attempt=1, resume=resume))
    entry, _ = failed(stage, name, uuid, epoch=2)
    assert entry.error is not None
    assert entry.error.frame_number == BAD_FRAME
    assert numbers(stage.frames(uuid, epoch=2)) == [5]


def test_what_no_inbox_could_read_is_not_sent_and_its_frame_is_named(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, "mumbling", attempt=1))
    entry, code = failed(stage, name, uuid)
    assert (code, entry.fatal, entry.waits_for) == ("message_invalid", False, Waiting.INFERENCE)
    assert entry.error is not None
    assert "the model or the source gave what cannot be stored" in entry.error.message
    assert numbers(stage.frames(uuid)) == list(range(BAD_FRAME))


def test_a_model_of_another_package_that_cannot_be_loaded_is_refused(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, "unloadable"))
    entry, code = failed(stage, name, uuid)
    assert (code, entry.fatal) == ("model_refused", True)
    assert entry.error is not None
    assert "'unloadable' cannot be loaded (AttributeError: " in entry.error.message


def test_a_bug_in_a_model_tells_its_traceback(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, "buggy"))
    entry, _ = failed(stage, name, uuid)
    assert "ZeroDivisionError: a mistake of the model's author" in (entry.detail or "")


def test_a_crash_in_native_code_tells_the_signal_and_where(stage: Stage, name: str, clip: Path) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, "deadly", attempt=1))
    entry = stage.ended(name, uuid)
    assert entry.reason is EndReason.CRASHED
    assert entry.error is not None
    assert signal.SIGSEGV.name in entry.error.message
    assert "Segmentation fault" in (entry.detail or "")
    assert "odd_models.py" in (entry.detail or "")


@pytest.fixture(scope="module")
def confined(kafka_settings: KafkaSettings, folder: Path, media: Path, stage: Stage) -> Iterator[str]:
    """The name of a runner that may read the media root and nothing else."""
    with runner(kafka_settings, folder, "--media-root", str(media)) as process:
        yield process.id_on(stage)


def test_a_source_under_the_media_root_is_named_relative_to_it(stage: Stage, confined: str) -> None:
    uuid = new_uuid()
    stage.command(confined, deploy(uuid, "clip.mp4", fps="1"))
    assert stage.whole(uuid).reason is EndReason.FINISHED


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
def test_nothing_leads_out_of_the_media_root(stage: Stage, confined: str, source: str, code: str) -> None:
    uuid = new_uuid()
    stage.command(confined, deploy(uuid, source))
    entry, found = failed(stage, confined, uuid)
    assert (found, entry.fatal, stage.opened(uuid)) == (code, True, [])


def test_a_worker_that_is_ended_by_hand_is_a_crash(stage: Stage, free: RunnerProcess, name: str, folder: Path) -> None:
    uuid = new_uuid()
    source = clips.constant_rate(folder / "by-hand.mp4", frames=3000)
    stage.command(name, deploy(uuid, source, "patient"))
    stage.until(lambda: stage.frames(uuid), "it is at work")
    [pid] = free.workers()
    os.kill(pid, signal.SIGKILL)
    entry = stage.ended(name, uuid)
    assert entry.reason is EndReason.CRASHED
    assert entry.error is not None
    assert "SIGKILL" in entry.error.message


def test_a_resume_is_taken_as_it_is_said_even_where_nothing_is_known_of_the_pts(
    stage: Stage, name: str, clip: Path
) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, clip, resume=Resume(next_frame=12)))
    stage.whole(uuid)
    assert numbers(stage.frames(uuid)) == list(range(12, 20))
