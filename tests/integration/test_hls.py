"""HLS: presentations on demand, which must be complete, live ones, and playlists that are not what they should be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
from tests import hls
from tests.http_server import LOOPBACK, Habits, serving
from tests.rtsp.reading import frames, has_frames, take_until

from vidflow.domain.errors import SourceError, Unavailable, VidflowError
from vidflow.domain.messages import CaptureClock, ClockChanges, ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.infra.video import FrameGap, KeptFrame, hls_file, hls_playlist, open_video, read_kept_frames
from vidflow.infra.video.hls_file import HlsPosition
from vidflow.infra.video.live import LiveReader
from vidflow.infra.video.live_detection import is_live

PATH = "index.m3u8"
TYPES = {"Content-Type": "application/vnd.apple.mpegurl"}


def serve(files: dict[str, bytes]) -> Habits:
    return Habits(b"", find=files.get, headers={})


def read(url: str) -> list[KeptFrame | FrameGap | ClockChanges]:
    with open_video(url, access=LOOPBACK) as video:
        assert not video.source.live
        return list(read_kept_frames(video))


def refusal(files: dict[str, bytes]) -> VidflowError:
    with serving(serve(files), name=PATH) as url, pytest.raises((SourceError, Unavailable)) as refused:
        read(url)
    return refused.value


def playlist_of(*lines: str, ended: bool = True) -> dict[str, bytes]:
    return hls.record(4) | {"/index.m3u8": hls.playlist(*lines, ended=ended)}


@pytest.mark.parametrize("kind", ["mpegts", "fmp4"])
def test_a_presentation_on_demand_is_read_to_its_end(kind: str) -> None:
    with serving(serve(hls.record(4, kind)), name=PATH) as url:
        kept = read(url)
        assert not is_live(url, LOOPBACK, threading.Event())
    assert [frame.time_s for frame in frames(kept)] == pytest.approx([number / 25 for number in range(100)])
    assert len(kept) == 100


def test_the_best_variant_of_a_master_playlist_is_read() -> None:
    lines = [
        "#EXTM3U", "#EXT-X-STREAM-INF:BANDWIDTH=900000,RESOLUTION=32x24", "poor.m3u8",
        '#EXT-X-STREAM-INF:BANDWIDTH=100,RESOLUTION=64x48,CODECS="avc1.42c00a,mp4a.40.2"', "index.m3u8",
        '#EXT-X-STREAM-INF:BANDWIDTH=128000,CODECS="mp4a.40.2"', "sound.m3u8",
    ]  # fmt: skip
    with serving(serve(hls.record(4) | {"/master.m3u8": "\n".join(lines).encode()}), name="master.m3u8") as url:
        assert len(read(url)) == 100


def test_byte_ranges_of_one_file_are_its_segments() -> None:
    segments = [hls.record(4)[f"/segment{number}.ts"] for number in range(4)]
    lines, first = [], 0
    for number, segment in enumerate(segments):
        place = f"@{first}" if number in {0, 2} else ""
        lines += ["#EXTINF:1,", f"#EXT-X-BYTERANGE:{len(segment)}{place}", "all.ts"]
        first += len(segment)
    files = {"/index.m3u8": hls.playlist(*lines), "/all.ts": b"".join(segments)}
    with serving(serve(files), name=PATH) as url:
        assert len(read(url)) == 100
    files["/all.ts"] = files["/all.ts"][:-1000]
    assert refusal(files).code == "source_unreadable"


def test_time_goes_on_after_a_discontinuity_whatever_the_new_times_and_format() -> None:
    other = {
        path.replace("segment", "other").replace("init", "begin"): data
        for path, data in hls.record(2, "fmp4", 99_000).items()
    }
    lines = [
        *hls.list_segments(0, 2), "#EXT-X-DISCONTINUITY", *hls.list_segments(1, 1), "#EXT-X-DISCONTINUITY",
        '#EXT-X-MAP:URI="begin.mp4"', "#EXTINF:1.0,", "other0.m4s", "#EXTINF:1.0,", "other1.m4s",
    ]  # fmt: skip
    with serving(serve(other | playlist_of(*lines)), name=PATH) as url:
        kept = read(url)
    assert [frame.time_s for frame in frames(kept)] == pytest.approx([number / 25 for number in range(125)], abs=0.002)
    assert sum(frame.clock_jumps for frame in frames(kept)) == 0


def test_a_resumed_run_reads_the_same_frames_after_a_discontinuity() -> None:
    lines = [*hls.list_segments(2, 2), "#EXT-X-DISCONTINUITY", *hls.list_segments(0, 2)]
    with serving(serve(playlist_of(*lines)), name=PATH) as url:
        with open_video(url, access=LOOPBACK) as video:
            whole = frames(list(read_kept_frames(video)))
            identity = video.source.identity
        last = whole[69]
        resume = ResumePoint(70, last.origin_pts, format_time_base(last.time_base), last.pts, last.time_s, identity)
        with open_video(url, access=LOOPBACK, expected_identity=identity) as video:
            rest = frames(list(read_kept_frames(video, resume=resume)))
    assert [(frame.frame_number, frame.pts) for frame in rest] == [
        (frame.frame_number, frame.pts) for frame in whole[70:]
    ]


def test_a_redirected_playlist_leads_to_segments_beside_its_new_place_with_the_login() -> None:
    files = {f"/moved{path}": data for path, data in hls.record(4).items()}
    habits = serve(files)
    habits.answers = [(302, {"Location": "/moved/index.m3u8"})]
    habits.accepts = "Basic "
    with serving(habits, name=PATH) as url:
        assert len(read(url.replace("127", "user:secret@127"))) == 100
    assert sum(path.startswith("/moved/segment") for path in habits.paths) >= 4


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda files: files.pop("/segment2.ts"), "source_not_found"),
        (lambda files: files.update({"/segment2.ts": b""}), "source_unreadable"),
    ],
)  # fmt: skip
def test_a_presentation_with_a_missing_segment_is_never_complete(
    damage: Callable[[dict[str, bytes]], object], code: str
) -> None:
    files = dict(hls.record(4))
    damage(files)
    assert refusal(files).code == code


def test_a_segment_that_breaks_off_is_continued_or_an_error() -> None:
    habits = serve(hls.record(4))
    habits.break_after = 3000
    with serving(habits, name=PATH) as url:
        assert len(read(url)) == 100
        habits.ranges = False
        with pytest.raises(Unavailable) as broken:
            read(url)
    assert broken.value.code == "source_unreadable"


def test_a_gap_in_a_playlist_on_demand_is_an_error() -> None:
    lines = [*hls.list_segments(0, 1), "#EXT-X-GAP", *hls.list_segments(1, 2)]
    assert refusal(playlist_of(*lines)).code == "source_not_found"


@pytest.mark.long
def test_a_playlist_that_is_still_written_is_read_on_if_the_scenario_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["#EXT-X-PLAYLIST-TYPE:EVENT", *hls.list_segments(0, 2)]
    files = playlist_of(*lines, ended=False)
    with serving(serve(files), name=PATH) as url:
        assert is_live(url, LOOPBACK, threading.Event())
        with open_video(url, access=LOOPBACK) as video:
            events = read_kept_frames(video)
            first = [next(events) for _ in range(30)]
            files["/index.m3u8"] = hls.playlist(*lines, *hls.list_segments(2, 2))
            assert len(first) + len(list(events)) == 100
        monkeypatch.setattr(hls_file, "STALE_S", 0.0)
        monkeypatch.setattr(hls_file, "STALE_TARGETS", 1)
        files["/index.m3u8"] = hls.playlist(*lines, ended=False)
        with pytest.raises(Unavailable) as stale:
            read(url)
    assert stale.value.code == "source_timeout"


def test_a_changed_presentation_is_not_continued() -> None:
    files = dict(hls.record(4))
    with serving(serve(files), name=PATH) as url:
        with open_video(url, access=LOOPBACK) as video:
            identity = video.source.identity
        with open_video(url, access=LOOPBACK, expected_identity=identity):
            pass
        files["/index.m3u8"] = hls.playlist(*hls.list_segments(0, 3))
        with pytest.raises(SourceError) as changed:
            open_video(url, access=LOOPBACK, expected_identity=identity)
    assert changed.value.code == "source_changed"


SEGMENT = "#EXTINF:1.0,"
MASTER = b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nmaster.m3u8"


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([SEGMENT, "file:///etc/passwd"], "source_denied"), ([SEGMENT, "rtsp://127.0.0.1/x"], "source_denied"),
        ([SEGMENT, "data:video/mp2t;base64,AAAA"], "source_denied"), ([SEGMENT, "concat:/etc/passwd"], "source_denied"),
        ([SEGMENT, "http://10.1.2.3/segment.ts"], "source_refused"), ([SEGMENT, "//169.254.169.254/x.ts"], "source_refused"),
        ([SEGMENT, "http://[::ffff:10.1.2.3]/x.ts"], "source_refused"), ([SEGMENT, "http://[/x.ts"], "source_denied"),
        (['#EXT-X-MAP:URI="file:///etc/passwd"', SEGMENT, "segment0.ts"], "source_denied"),
        (['#EXT-X-KEY:METHOD=AES-128,URI="key"', *hls.list_segments(0, 2)], "source_encrypted"),
        (["#EXTINF:-1,", "segment0.ts"], "source_not_video"), (["#EXTINF:nan,", "segment0.ts"], "source_not_video"),
        (["#EXTINF:x,", "segment0.ts"], "source_not_video"), (["#EXT-X-MEDIA-SEQUENCE:-1", SEGMENT, "segment0.ts"], "source_not_video"),
        (["#EXT-X-MEDIA-SEQUENCE:9" + "9" * 5000, SEGMENT, "segment0.ts"], "source_not_video"),
        (["#EXT-X-BYTERANGE:100", SEGMENT, "segment0.ts"], "source_not_video"),
        ([SEGMENT, "#EXT-X-BYTERANGE:-5@0", "segment0.ts"], "source_not_video"),
        (["#EXT-X-MAP:BYTERANGE=1@2", SEGMENT, "segment0.ts"], "source_not_video"),
        (["x" * 20_000], "source_too_large"), ([SEGMENT, "a"] * 50_001, "source_too_large"),
        (["#EXT-X-STREAM-INF:BANDWIDTH=1", "a.m3u8"] * 1001, "source_too_large"),
        (["#EXT-X-STREAM-INF:BANDWIDTH=1", "index.m3u8"], "source_not_video"), ([SEGMENT, "index.m3u8"], "source_not_video"),
        (["#EXT-X-STREAM-INF:BANDWIDTH=1", "http://10.0.0.1/a.m3u8"], "source_refused"), ([], "source_not_video"),
        (["#EXT-X-STREAM-INF:BANDWIDTH=1,RESOLUTION=axb", "index.m3u8"], "source_not_video"),
    ],
)  # fmt: skip
def test_a_hostile_playlist_is_refused(lines: list[str], code: str) -> None:
    assert refusal(playlist_of(*lines)).code == code


def test_a_playlist_that_is_no_playlist_or_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal({"/index.m3u8": b"<html>"}).code == "source_not_video"
    assert refusal({"/index.m3u8": b""}).code == "source_not_video"
    monkeypatch.setattr(hls_file, "MAX_PLAYLIST_BYTES", 100)
    assert refusal(dict(hls.record(4))).code == "source_too_large"


def test_an_endless_segment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hls_file, "MAX_SEGMENT_BYTES", 4000)
    assert refusal(dict(hls.record(4))).code == "source_too_large"


def test_many_tags_take_no_time() -> None:
    began_s = time.monotonic()
    text = "#EXTM3U\n" + "".join(f'#EXT-X-KEY:METHOD=NONE,X={n}\n#EXT-X-MAP:URI="{n}"\n' for n in range(20_000))
    hls_playlist.parse_playlist(text, "http://h/x.m3u8", LOOPBACK, "x")
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize(
    "lines", [["#EXT-X-PROGRAM-DATE-TIME:yesterday"], ["#EXT-X-TARGETDURATION:1.0"], ["#EXT-X-CUE-OUT:x"]]
)
def test_what_is_not_needed_may_be_wrong(lines: list[str]) -> None:
    with serving(serve(playlist_of(*lines, *hls.list_segments(0, 4))), name=PATH) as url:
        assert len(read(url)) == 100


def test_the_program_date_of_a_segment_is_read() -> None:
    text = "#EXTM3U\n#EXT-X-PROGRAM-DATE-TIME:2026-11-28T12:00:00.5Z\n" + "\n".join(hls.list_segments(0, 2))
    found = hls_playlist.parse_playlist(text, "http://h/x.m3u8", LOOPBACK, "x")
    assert isinstance(found, hls_playlist.MediaPlaylist)
    assert [segment.captured_at and segment.captured_at.isoformat() for segment in found.segments] == [
        "2026-11-28T12:00:00.500000+00:00", "2026-11-28T12:00:01.500000+00:00",
    ]  # fmt: skip


def test_a_live_presentation_begins_three_target_durations_before_its_end() -> None:
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n" + "".join(f"#EXTINF:2,\ns{number}.ts\n" for number in range(10))
    found = hls_playlist.parse_playlist(text, "http://h/x.m3u8", LOOPBACK, "x")
    assert isinstance(found, hls_playlist.MediaPlaylist)
    assert (found.find_edge(), found.is_ended) == (7, False)


@pytest.mark.long
def test_a_live_presentation_is_read_from_now_on_frame_by_frame_and_after_a_pause() -> None:
    presentation, position = hls.LivePresentation(), HlsPosition()
    with serving(Habits(b"", find=presentation.find, headers=TYPES), name=PATH) as url:
        assert is_live(url, LOOPBACK, threading.Event())
        opened = partial(open_video, url, live=True, hls_position=position, access=LOOPBACK)
        with LiveReader(opened, url, lambda _: False, None, ResumePoint(), 1) as live:
            taken = take_until(live, has_frames(60))
            steady = frames(taken)
            assert position.next_number is not None
            presentation.freeze()
            taken += take_until(live, lambda _: live.outage is not None)
            presentation.thaw()
            taken += take_until(live, has_frames(30))
    captured = [frame.captured for frame in steady if frame.captured is not None]
    assert {capture.clock for capture in captured} == {CaptureClock.PLAYLIST}
    since_us = [capture.at_us - presentation.began_at.timestamp() * 1e6 for capture in captured]
    assert since_us[0] == pytest.approx(2e6, abs=1.1e6)
    steps = [later.time_s - frame.time_s for frame, later in pairwise(steady)]
    assert sorted(steps)[len(steps) // 2] == pytest.approx(0.04, abs=0.02)
    times = [step.time_s if isinstance(step, KeptFrame) else step.from_s for step in taken]
    assert times == sorted(times)
    assert any(isinstance(step, FrameGap) and step.to_s - step.from_s > 1 for step in taken)


@pytest.mark.long
def test_a_live_segment_that_the_server_no_longer_has_is_left_out() -> None:
    presentation = hls.LivePresentation()
    missing = {"/segment5.ts", "/segment6.ts"}
    find = lambda path: None if path in missing else presentation.find(path)  # noqa: E731
    with serving(Habits(b"", find=find, headers=TYPES), name=PATH) as url:
        opened = partial(open_video, url, live=True, hls_position=HlsPosition(), access=LOOPBACK)
        with LiveReader(opened, url, lambda _: False, None, ResumePoint(), 1) as live:
            taken = take_until(live, has_frames(80))
    assert len(frames(taken)) >= 80
