"""Opening sources: their properties, and which sources are refused with which errors."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
from tests import clips
from tests.http_server import LOOPBACK

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.domain.messages import FileIdentity
from vidflow.infra.video import open_video
from vidflow.infra.video.frames import read_kept_frames

DASH = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static">
<Period><AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{clip}</BaseURL></Representation>
</AdaptationSet></Period></MPD>
"""


def refusal(source: str | Path, expected_identity: FileIdentity | None = None) -> SourceError:
    with pytest.raises(SourceError) as caught:
        open_video(str(source), expected_identity=expected_identity, access=LOOPBACK)
    return caught.value


def test_the_properties_of_a_file_are_read(tmp_path: Path) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4", 50)
    with open_video(str(clip)) as video:
        source = video.source
    assert (source.width, source.height, source.rotation) == (96, 64, 0)
    assert (source.average_rate, source.time_base) == (Fraction(25), Fraction(1, 16_000))
    assert (source.duration_s, source.frames_expected, source.codec) == (2.0, 50, "h264")
    status = clip.stat()
    assert source.identity is not None
    assert (source.identity.size_bytes, source.identity.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert not source.live


def test_a_file_url_opens_the_file(tmp_path: Path) -> None:
    clip = clips.constant_rate(tmp_path / "a clip.mp4", 2)
    with open_video(clip.as_uri()) as video:
        assert video.source.frames_expected == 2


def test_tags_that_are_not_utf8_are_ignored(tmp_path: Path) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mkv", 2)
    (tmp_path / "tagged.mkv").write_bytes(clip.read_bytes().replace(b"Lavf", b"\xff\xfe\x80\xe9"))
    with open_video(str(tmp_path / "tagged.mkv")) as video:
        assert video.source.frames_expected is None
        assert sum(1 for _ in read_kept_frames(video)) == 2


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_the_duration_is_counted_from_the_first_frame(tmp_path: Path, suffix: str) -> None:
    with open_video(str(clips.constant_rate(tmp_path / f"late.{suffix}", 50, first_ms=5_000))) as video:
        assert video.source.duration_s == pytest.approx(2.0, abs=0.05)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path / "absent.mp4")
    assert error.code == "source_missing"
    assert "No such file" in error.message
    assert "Check that the file exists" in error.message


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).code == "source_missing"


def test_a_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert refusal(tmp_path / "pipe.mp4").code == "source_missing"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4", 2)
    clip.chmod(0)
    error = refusal(clip)
    assert (error.code, "Permission denied" in error.message) == ("source_missing", True)


@pytest.mark.parametrize("path", ["a\0b.mp4", "x" * 5_000])
def test_an_impossible_path_is_reported_as_a_missing_file(path: str) -> None:
    assert refusal(path).code == "source_missing"


@pytest.mark.parametrize("content", [b"", b"hello\n" * 1_000, bytes(range(256)) * 40])
def test_a_file_that_is_not_a_video_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.mp4"
    path.write_bytes(content)
    assert refusal(path).code == "source_not_video"


def test_an_mp4_truncated_before_its_index_is_refused(tmp_path: Path) -> None:
    whole = clips.constant_rate(tmp_path / "whole.mp4")
    error = refusal(clips.write_truncated(whole, tmp_path / "cut.mp4"))
    assert (error.code, "Invalid data" in error.message) == ("source_not_video", True)


def test_an_mp4_without_packets_has_no_frames(tmp_path: Path) -> None:
    assert refusal(clips.no_packet(tmp_path / "empty.mp4")).code == "no_frames"


def test_a_video_without_a_decodable_packet_has_no_frames(tmp_path: Path) -> None:
    whole = clips.constant_rate(tmp_path / "whole.mp4", 20)
    error = refusal(clips.write_damaged(whole, tmp_path / "ruined.mp4", range(20)))
    assert (error.code, "20 packets" in error.message) == ("no_frames", True)


def test_a_cover_picture_does_not_count_as_a_video(tmp_path: Path) -> None:
    assert refusal(clips.cover_picture(tmp_path / "song.mp3")).code == "source_no_video_stream"


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
def test_a_playlist_opens_no_other_file(tmp_path: Path, name: str) -> None:
    clip = clips.constant_rate(tmp_path / "clip.ts", 5)
    (tmp_path / name).write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n")
    assert refusal(tmp_path / name).code == "source_not_video"


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile {clip}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        DASH,
    ],
    ids=["concat", "sdp", "dash"],
)
def test_a_text_that_refers_to_other_sources_is_refused_whatever_its_name(tmp_path: Path, text: str) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4", 5)
    (tmp_path / "video.mp4").write_text(text.format(clip=clip))
    assert refusal(tmp_path / "video.mp4").code == "source_not_video"


@pytest.mark.parametrize(
    "name",
    ["concat:clip.mp4|clip.mp4", "frame%03d.png", "lavfi", "pipe:0", "data:,x", "subfile,,start,0,end,0,,:clip.mp4"],
)
def test_ffmpegs_protocols_and_patterns_are_taken_as_plain_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    clips.constant_rate(tmp_path / "clip.mp4", 5)
    monkeypatch.chdir(tmp_path)
    assert refusal(name).code == "source_missing"


@pytest.mark.parametrize("url", ["ftp://host/a.mp4", "lavfi://testsrc", "srt://host:1", "concat://a", "://"])
def test_other_url_schemes_are_forbidden(url: str) -> None:
    assert refusal(url).code == "source_forbidden"


def test_a_still_picture_is_refused(tmp_path: Path) -> None:
    picture = clips.write(
        tmp_path / "still.png", [clips.plain(0)], [0], codec="png", pixel_format="rgb24", format_name="image2"
    )
    assert refusal(picture).code == "source_not_video"


def test_frames_above_the_size_limit_are_refused_with_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clips.write(tmp_path / "clip.mp4", (clips.plain(i, 640, 360) for i in range(5)), range(0, 200, 40))
    monkeypatch.setattr("vidflow.infra.video.video_stream.MAX_PIXELS", 640 * 360 - 1)
    error = refusal(clip)
    assert (error.code, "640x360" in error.message) == ("source_too_large", True)
    monkeypatch.setattr("vidflow.infra.video.video_stream.MAX_PIXELS", 640 * 360)
    with open_video(str(clip)) as video:
        assert len(list(read_kept_frames(video))) == 5


def test_a_huge_frame_is_not_decoded_even_if_the_header_has_no_size(tmp_path: Path) -> None:
    wide = clips.write(
        tmp_path / "wide.mkv", [clips.plain(0, 16_384, 5_376)], [0], codec="mjpeg", pixel_format="yuvj420p"
    )
    error = refusal(wide)
    assert (error.code, "larger than" in error.message) == ("no_frames", True)


def test_a_file_changed_since_the_first_attempt_is_refused(tmp_path: Path) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4", 5)
    with open_video(str(clip)) as video:
        identity = video.source.identity
    for expected in (identity, FileIdentity(), None):  # an attempt may have recorded none
        with open_video(str(clip), expected_identity=expected) as video:
            assert video.source.identity == identity
    clips.constant_rate(clip, 6)
    error = refusal(clip, expected_identity=identity)
    assert (error.code, "Start a new scenario" in error.message) == ("source_changed", True)


def test_closing_a_video_closes_its_files(tmp_path: Path) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4", 5)
    refused = clips.no_packet(tmp_path / "empty.mp4")
    open_files = len(list(Path("/dev/fd").iterdir()))
    for _ in range(20):
        with open_video(str(clip)) as video:
            next(read_kept_frames(video))
        refusal(refused)
    assert len(list(Path("/dev/fd").iterdir())) <= open_files + 1


# --- sources at a URL


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing, to keep the test output readable."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path))) as httpd:
        thread = threading.Thread(target=partial(httpd.serve_forever, poll_interval=0.01), name="clips over http")
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def test_a_video_is_read_over_http(tmp_path: Path, server: str) -> None:
    clips.constant_rate(tmp_path / "clip.mp4", 10)
    with open_video(f"{server}/clip.mp4", access=LOOPBACK) as video:
        assert video.source.identity is not None
        assert video.source.identity.size_bytes == (tmp_path / "clip.mp4").stat().st_size
        assert len(list(read_kept_frames(video))) == 10


def test_a_playlist_at_a_url_that_names_a_local_file_is_refused(tmp_path: Path, server: str) -> None:
    clip = clips.constant_rate(tmp_path / "clip.ts", 5)
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{clip}\n#EXT-X-ENDLIST\n"
    )
    assert refusal(f"{server}/list.m3u8").code == "source_denied"


def test_the_error_for_a_url_not_found_hides_the_secrets(server: str) -> None:
    error = refusal(server.replace("//", "//user:hunter2@") + "/absent.mp4?token=hunter3")
    assert error.code == "source_not_found"
    assert "/absent.mp4" in error.message
    assert "hunter" not in error.message


def test_an_unreachable_server_is_a_temporary_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(Unavailable, match="does not answer") as caught:
        open_video(f"http://user:hunter2@127.0.0.1:{port}/clip.mp4", access=LOOPBACK)
    assert (caught.value.code, "hunter2" in str(caught.value)) == ("source_unreachable", False)


def test_a_video_stream_is_chosen_by_its_index_or_else_the_largest(tmp_path: Path) -> None:
    source = str(clips.two_videos(tmp_path / "two.mp4"))
    for stream, width in ((None, clips.WIDTH), (0, clips.WIDTH), (1, clips.WIDTH // 2)):
        with open_video(source, stream=stream) as video:
            assert video.source.width == width


def test_a_video_stream_that_is_not_there_is_refused_with_a_list_of_those_that_are(tmp_path: Path) -> None:
    source = str(clips.two_videos(tmp_path / "two.mp4"))
    with pytest.raises(
        SourceError, match=rf"no video stream 2. It has: 0 \(h264, {clips.WIDTH}x{clips.HEIGHT}\), 1 \(h264, "
    ) as raised:
        open_video(source, stream=2)
    assert raised.value.code == "source_no_video_stream"
