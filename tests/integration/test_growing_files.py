"""Local files that change while they are read, and growing files that are followed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests import clips
from tests.http_server import Pauses

from vidflow.domain.errors import SourceError, Unavailable, VidflowError
from vidflow.domain.messages import ClockChanges, ResumePoint
from vidflow.infra.video import FrameGap, KeptFrame, ReadingStopped, Video, open_video, read_kept_frames

FRAMES = 120
KINDS = {
    "ts": None,
    "mkv": {"live": "1"},
    "mp4": {"movflags": "empty_moov+frag_keyframe+default_base_moof"},
    "flv": {"flvflags": "no_duration_filesize"},
}
"""Formats that a recorder may append to, with the options of the muxer."""


@pytest.fixture(scope="module", params=KINDS)
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished recording of a format that may be read while it is written."""
    path = tmp_path_factory.mktemp("recordings") / f"whole.{request.param}"
    pictures = (clips.quarters(320, 240) if i % 2 else clips.moving_square(i, 320, 240) for i in range(FRAMES))
    options = {"g": "10", "bf": "0"}
    return clips.write(path, pictures, range(0, 40 * FRAMES, 40), options=options, muxer=KINDS[request.param])


def write_part(recording: Path, folder: Path, share: float, age_s: float = 60.0) -> Path:
    """Write the beginning of a recording, as if it had been written some time ago."""
    path = folder / f"part{recording.suffix}"
    content = recording.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    modified_s = path.stat().st_mtime - age_s
    os.utime(path, (modified_s, modified_s))
    return path


def append_rest(recording: Path, path: Path) -> None:
    with path.open("ab") as file:
        file.write(recording.read_bytes()[path.stat().st_size :])


Step = KeptFrame | FrameGap | ClockChanges


def list_frames(steps: list[Step]) -> list[tuple[int, int]]:
    return [(step.frame_number, step.pts) for step in steps if isinstance(step, KeptFrame)]


def read_whole(recording: Path) -> list[tuple[int, int]]:
    with open_video(str(recording), interruption=Pauses()) as video:
        frames = list_frames(list(read_kept_frames(video)))
    assert len(frames) == FRAMES
    return frames


def read_until_error(video: Video, steps: list[Step]) -> VidflowError:
    with pytest.raises((SourceError, Unavailable)) as raised:
        steps.extend(read_kept_frames(video))
    return raised.value


@pytest.mark.parametrize("share", [0.37, 0.6])
def test_a_file_that_grows_while_it_is_read_never_ends_normally_and_a_retry_reads_on(
    tmp_path: Path, recording: Path, share: float
) -> None:
    whole, path = read_whole(recording), write_part(recording, tmp_path, share)
    steps: list[Step] = []
    pauses = Pauses()

    def grow_by_a_little(timeout: float | None = None) -> bool:
        with path.open("ab") as file:
            file.write(recording.read_bytes()[path.stat().st_size :][:1000])
        return Pauses.wait(pauses, timeout)

    pauses.wait = grow_by_a_little  # type: ignore[method-assign]
    os.utime(path)
    with open_video(str(path), interruption=pauses) as video:
        identity = video.source.identity
        error = read_until_error(video, steps)
    assert (error.code, isinstance(error, Unavailable)) == ("source_growing", True)
    frames = list_frames(steps)
    assert 20 < len(frames) < FRAMES
    assert len(steps) == len(frames), "there must be no gap: the frames may still come"
    assert frames == whole[: len(frames)]

    append_rest(recording, path)
    last = next(step for step in reversed(steps) if isinstance(step, KeptFrame))
    resume = ResumePoint(len(frames), last.origin_pts, str(last.time_base), last.pts, last.time_s, identity)
    with open_video(str(path), expected_identity=identity, interruption=Pauses()) as video:
        assert list_frames(list(read_kept_frames(video, None, resume))) == whole[len(frames) :]


def test_a_recording_that_was_just_written_is_watched_before_it_counts_as_complete(recording: Path) -> None:
    os.utime(recording)
    pauses = Pauses()
    with open_video(str(recording), interruption=pauses) as video:
        assert len(list(read_kept_frames(video))) == FRAMES
    assert pauses.seconds == pytest.approx([2.0], abs=1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_file_whose_header_says_where_it_ends_is_not_watched(tmp_path: Path, suffix: str) -> None:
    pauses = Pauses()
    with open_video(str(clips.constant_rate(tmp_path / f"clip.{suffix}")), interruption=pauses) as video:
        assert len(list(read_kept_frames(video))) == 50
    assert pauses.seconds == []


@pytest.mark.parametrize("frames", [49, 50, 200])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_file_that_is_overwritten_in_place_is_not_mixed(tmp_path: Path, suffix: str, frames: int) -> None:
    path = clips.constant_rate(tmp_path / f"clip.{suffix}", 50)
    other = clips.constant_rate(tmp_path / f"other.{suffix}", frames, first_ms=80)
    with open_video(str(path), interruption=Pauses()) as video:
        steps = read_kept_frames(video)
        next(steps)
        path.write_bytes(other.read_bytes())
        with pytest.raises(SourceError) as raised:
            list(steps)
    assert raised.value.code == "source_changed"


def test_a_file_whose_name_is_given_to_another_one_is_read_whole_but_not_again(tmp_path: Path) -> None:
    path, other = clips.constant_rate(tmp_path / "clip.mp4", 50), clips.constant_rate(tmp_path / "other.mp4", 20)
    with open_video(str(path)) as video:
        steps = read_kept_frames(video)
        next(steps)
        other.replace(path)
        assert len(list(steps)) == 49
        with pytest.raises(SourceError) as raised:
            video.restart()
    assert raised.value.code == "source_changed"


def test_another_file_of_the_same_size_and_time_is_noticed_by_its_contents(tmp_path: Path) -> None:
    path = clips.constant_rate(tmp_path / "clip.ts", 50)
    status = path.stat()
    with open_video(str(path), interruption=Pauses()) as video:
        identity = video.source.identity
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 4] + bytes(len(content) - len(content) // 4))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(SourceError) as raised:
        open_video(str(path), expected_identity=identity)
    assert raised.value.code == "source_changed"


# --- following


@contextmanager
def recorder(recording: Path, path: Path, seconds: float = 2.0, steps: int = 25) -> Iterator[None]:
    """Write the file bit by bit, from its first bytes on."""
    content, stop = recording.read_bytes(), threading.Event()
    path.write_bytes(content[:500])

    def write() -> None:
        size = -(-len(content) // steps)
        with path.open("r+b", buffering=0) as file:
            for at in range(0, len(content), size):
                file.write(content[at : at + size])
                if stop.wait(seconds / steps):
                    return

    thread = threading.Thread(target=write, name="recorder")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.long
def test_a_growing_file_is_followed_until_it_has_been_still(tmp_path: Path, recording: Path) -> None:
    whole, path = read_whole(recording), tmp_path / f"live{recording.suffix}"
    with recorder(recording, path), open_video(str(path), follow_s=3.0) as video:
        assert (video.source.duration_s, video.source.frames_expected) == (None, None)
        steps = list(read_kept_frames(video))
    assert len(steps) == FRAMES, "there must be no gap"
    assert list_frames(steps) == whole


@pytest.mark.long
def test_a_followed_file_is_resumed_after_a_stored_frame(tmp_path: Path, recording: Path) -> None:
    whole, path = read_whole(recording), tmp_path / f"live{recording.suffix}"
    with recorder(recording, path):
        with open_video(str(path), follow_s=3.0) as video:
            identity, steps = video.source.identity, read_kept_frames(video)
            last = [next(steps) for _ in range(30)][-1]
        assert isinstance(last, KeptFrame)
        resume = ResumePoint(30, last.origin_pts, str(last.time_base), last.pts, last.time_s, identity)
        with open_video(str(path), expected_identity=identity, follow_s=3.0) as video:
            assert list_frames(list(read_kept_frames(video, None, resume))) == whole[30:]


def test_following_a_file_that_is_complete_for_long_ends_soon(tmp_path: Path, recording: Path) -> None:
    path, began_s = write_part(recording, tmp_path, 1.0), time.monotonic()
    with open_video(str(path), follow_s=30.0) as video:
        assert list_frames(list(read_kept_frames(video))) == read_whole(recording)
    assert time.monotonic() - began_s < 10


def test_following_is_stopped_at_once(tmp_path: Path, recording: Path) -> None:
    path, stop = write_part(recording, tmp_path, 0.5, age_s=0), threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(ReadingStopped), open_video(str(path), follow_s=600.0, interruption=stop) as video:
        list(read_kept_frames(video))


def test_a_followed_file_that_is_overwritten_is_not_mixed(tmp_path: Path, recording: Path) -> None:
    path = write_part(recording, tmp_path, 0.5, age_s=0)
    with open_video(str(path), follow_s=1.0) as video:
        steps = read_kept_frames(video)
        next(steps)
        path.write_bytes(b"\0" * (path.stat().st_size + 1000))
        with pytest.raises(SourceError) as raised:
            list(steps)
    assert raised.value.code == "source_changed"
