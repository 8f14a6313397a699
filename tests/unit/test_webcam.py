"""Which files are cameras, and who may name them. Nothing here is a camera."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vidflow.commands.run.source import is_camera_path
from vidflow.domain.errors import ParameterError, SourceError, Unavailable
from vidflow.domain.messages import Deploy, Parameters, ResumePoint
from vidflow.domain.source_access import SourceAccess, parse_devices
from vidflow.domain.source_schemes import is_camera_name
from vidflow.infra.video import open_video
from vidflow.roles.api.sources import check_live, require_followable, require_no_file, validate_source
from vidflow.roles.worker.read import is_live, open_live
from vidflow.roles.worker.source_path import resolve_source
from vidflow.settings import ApiOptions

CAMERA = "/dev/v4l/by-id/usb-046d_C920_1234ABCD-video-index0"
OPTIONS = ApiOptions(devices=(CAMERA,))
ACCESS = SourceAccess(devices=(CAMERA,))
NEVER = threading.Event()


def make_other_file(folder: Path, kind: str) -> Path:
    path = folder / "device"
    match kind:
        case "file":
            path.write_bytes(b"a video")
        case "pipe":
            os.mkfifo(path)
        case "link to another device":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["file", "pipe", "link to another device", "directory"])
def test_an_allowed_device_that_is_no_camera_is_refused_without_being_opened(tmp_path: Path, kind: str) -> None:
    path = str(make_other_file(tmp_path, kind))
    with pytest.raises(SourceError, match="is not a camera") as raised:
        open_video(path, access=SourceAccess(devices=(path,)))
    assert raised.value.code == "source_forbidden"
    assert not is_camera_path(path)


def test_a_device_that_does_not_exist_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "video0")
    with pytest.raises(Unavailable, match="Plug the camera in") as raised:
        open_video(path, access=SourceAccess(devices=(path,)))
    assert raised.value.code == "source_not_found"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/dev/video0", True), (CAMERA, True), ("/dev/video", False), ("/dev/shm/video0", False), ("/media/video0", False),
        ("dev/video0", False), ("/dev/video0/../sda", False),
    ],
)  # fmt: skip
def test_names_of_cameras(path: str, *, expected: bool) -> None:
    assert is_camera_name(path) is expected


@pytest.mark.parametrize("text", ["video0", "", "/dev/video0 /dev/video1", "/dev/\nvideo0"])
def test_a_device_is_named_by_its_absolute_path(text: str) -> None:
    with pytest.raises(ParameterError, match="Give its path, such as /dev/video0"):
        parse_devices([text])


# --- the api


@pytest.mark.parametrize("options", [ApiOptions(), ApiOptions(any_file=True), ApiOptions(media_root=Path("/"))])
def test_a_request_may_name_only_allowed_cameras(options: ApiOptions) -> None:
    with pytest.raises(SourceError, match="--allow-device") as raised:
        validate_source(CAMERA, options)
    assert raised.value.code == "source_forbidden"
    assert validate_source(CAMERA, OPTIONS) == CAMERA


def test_an_allowed_camera_has_the_parameters_of_live_sources() -> None:
    require_no_file(CAMERA, OPTIONS, "end_at")
    check_live(CAMERA, OPTIONS, live=True)
    with pytest.raises(ParameterError, match="always live"):
        check_live(CAMERA, OPTIONS, live=False)
    with pytest.raises(ParameterError, match="Only local files can be followed"):
        require_followable(CAMERA, OPTIONS)
    with pytest.raises(ParameterError, match="applies to live sources only"):
        require_no_file("/media/a.mp4", OPTIONS, "end_at")


# --- the worker


def test_an_allowed_camera_is_live_whatever_a_command_says() -> None:
    deploy = Deploy("", 1, CAMERA, "motion", parameters=Parameters(live=False), resume=ResumePoint(live=False))
    assert is_live(deploy, access=ACCESS, interruption=NEVER)
    open_live(deploy, 1, access=ACCESS, interruption=NEVER)


@pytest.mark.parametrize("path", ["/dev/video0", "/etc/passwd", "a.mp4"])
def test_a_command_cannot_have_another_path_read_as_live(path: str) -> None:
    deploy = Deploy("", 1, path, "motion", parameters=Parameters(live=True))
    with pytest.raises(SourceError, match="choose a pool whose runners have the camera") as raised:
        open_live(deploy, 1, access=ACCESS, interruption=NEVER)
    assert raised.value.code == "source_forbidden"


def test_a_worker_reads_no_camera_as_a_file() -> None:
    with pytest.raises(SourceError, match="Start it with --allow-device") as raised:
        resolve_source(CAMERA, Path("/"), any_file=True)
    assert raised.value.code == "source_forbidden"
