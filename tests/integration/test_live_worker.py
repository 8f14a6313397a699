"""Workers of live sources, started by a real runner: what they wait for, how they end, and how soon they stop."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.integration import faulty_models
from tests.integration.api_server import free_port
from tests.integration.runner_harness import ControlPlane, RunnerProcess, make_deploy, new_uuid, running_runner
from tests.rtmp import refusing as rtmp
from tests.rtmp.publisher import Publisher
from tests.rtmp.server import RtmpServer
from tests.rtsp.bad_servers import camera_url, full, refusing, silent
from tests.rtsp.camera import Camera

from vidflow.domain.messages import (
    EndReason,
    Entry,
    Frame,
    Gap,
    GapReason,
    Parameters,
    SourceLost,
    StopWork,
    WorkerWait,
)
from vidflow.infra.kafka.settings import KafkaSettings

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("rtsp_server")]
FPS = 25
START_DEADLINE_S = 8.0
STOP_LIMIT_S = 2.0
"""A stop takes less than a second where this machine is not overloaded. Without the rules tested here it takes 8 s or more."""


@pytest.fixture(scope="module")
def runner_process(kafka_settings: KafkaSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerProcess]:
    """A runner that may read local cameras, with a start deadline that is shorter than what cameras are waited for."""
    ControlPlane(kafka_settings).close()
    folder = tmp_path_factory.mktemp("live")
    environment = faulty_models.install(folder)
    options = [
        "--allow-source-network",
        "127.0.0.1",
        "--max-workers",
        "12",
        "--start-deadline-s",
        str(START_DEADLINE_S),
    ]
    with running_runner(kafka_settings, folder, *options, environment=environment) as process:
        yield process


@pytest.fixture(scope="module")
def runner_id(runner_process: RunnerProcess, control_plane: ControlPlane) -> str:
    return runner_process.wait_for_id(control_plane)


def lost_codes(control_plane: ControlPlane, uuid: str) -> list[str]:
    return [result.error.code for result in control_plane.results_of(uuid) if isinstance(result, SourceLost)]


def running_entry(control_plane: ControlPlane, runner: str, uuid: str) -> Entry | None:
    entry = control_plane.entry(runner, uuid)
    return entry if entry is not None and entry.is_running else None


def stop_all(control_plane: ControlPlane, runner: str, uuids: list[str]) -> float:
    """Stop the scenarios and wait for their end markers. Return the seconds until the last one."""
    began_s = time.monotonic()
    for uuid in uuids:
        control_plane.send_command(runner, StopWork(uuid, 1))
    for uuid in uuids:
        assert control_plane.wait_for_end_marker(uuid).reason is EndReason.STOPPED
    return time.monotonic() - began_s


def end_of(step: Frame | Gap) -> float:
    return step.to_s if isinstance(step, Gap) else step.time_s + 1 / FPS


def assert_covered(steps: list[Frame | Gap], until_s: float) -> None:
    """Assert that frames and gaps follow one another from the first frame to the end."""
    assert isinstance(steps[0], Frame)
    reached_s = steps[0].time_s
    for step in steps:
        begins_s = step.time_s if isinstance(step, Frame) else step.from_s
        assert begins_s == pytest.approx(reached_s, abs=0.3 / FPS), step
        reached_s = end_of(step)
    assert reached_s == pytest.approx(until_s, abs=0.3 / FPS)


def test_sources_that_are_not_there_are_waited_for_beyond_the_start_deadline_and_stop_at_once(
    control_plane: ControlPlane, runner_id: str
) -> None:
    with ExitStack() as servers:
        expected = {
            camera_url(free_port()): "source_unreachable",
            servers.enter_context(silent()): "source_timeout",
            servers.enter_context(full()): "source_timeout",
            servers.enter_context(refusing("404 Not Found")): "source_not_found",
            servers.enter_context(refusing("503 Service Unavailable")): "source_unreachable",
            servers.enter_context(silent()).replace("rtsp:", "rtmp:") + "/stream": "source_timeout",
            servers.enter_context(rtmp.answering(rtmp.status("NetStream.Play.StreamNotFound"))): "source_not_found",
        }
        codes = {new_uuid(): (url, code) for url, code in expected.items()}
        for uuid, (url, _) in codes.items():
            control_plane.send_command(runner_id, make_deploy(uuid, url))
        for uuid, (_, code) in codes.items():
            control_plane.wait_until(
                lambda uuid=uuid, code=code: code in lost_codes(control_plane, uuid), f"{code} is reported"
            )
        since_s = time.monotonic()
        control_plane.wait_until(lambda: time.monotonic() - since_s > START_DEADLINE_S + 1, "the deadline has passed")
        for uuid, (url, _) in codes.items():
            entry = running_entry(control_plane, runner_id, uuid)
            assert entry is not None, url
            assert entry.waits_for is WorkerWait.SOURCE
        assert stop_all(control_plane, runner_id, list(codes)) < STOP_LIMIT_S


def test_what_no_waiting_mends_ends_the_scenario_at_once(control_plane: ControlPlane, runner_id: str) -> None:
    with (
        refusing("401 Unauthorized") as wants_login,
        refusing("403 Forbidden") as forbidden,
        rtmp.answering(rtmp.error(rtmp.LOGIN)) as wants_rtmp_login,
    ):
        expected = {
            new_uuid(): (wants_rtmp_login, "source_unauthorized"),
            new_uuid(): (wants_login, "source_unauthorized"),
            new_uuid(): (forbidden, "source_denied"),
            new_uuid(): ("rtsp://169.254.169.254/cam", "source_refused"),
        }
        for uuid, (url, _) in expected.items():
            control_plane.send_command(runner_id, make_deploy(uuid, url))
        for uuid, (_, code) in expected.items():
            entry = control_plane.wait_until_ended(runner_id, uuid)
            assert (entry.reason, entry.error and entry.error.code, entry.fatal) == (EndReason.ERROR, code, True)


def test_limits_end_a_scenario_whose_source_is_not_there(control_plane: ControlPlane, runner_id: str) -> None:
    url, given_up, ends = camera_url(free_port()), new_uuid(), new_uuid()
    end_at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3)
    control_plane.send_command(runner_id, make_deploy(given_up, url, parameters=Parameters(give_up_after_s=1.0)))
    control_plane.send_command(runner_id, make_deploy(ends, url, parameters=Parameters(end_at=end_at)))
    entry = control_plane.wait_until_ended(runner_id, given_up)
    assert (entry.error and entry.error.code, entry.fatal) == ("source_unreachable", True)
    end = control_plane.wait_for_end_marker(ends)
    assert (end.last_frame, end.reason) == (-1, EndReason.FINISHED)
    assert datetime.datetime.now(datetime.UTC) >= end_at


def test_cameras_that_were_read_end_on_time_or_stop_at_once_and_everything_is_accounted_for(
    control_plane: ControlPlane, runner_id: str
) -> None:
    with ExitStack() as stack:
        well, killed, frozen = (stack.enter_context(Camera(free_port(), FPS)) for _ in range(3))
        limited, reads, infers, reconnects, stalls = (new_uuid() for _ in range(5))
        control_plane.send_command(
            runner_id, make_deploy(limited, killed.url, parameters=Parameters(duration_s=4.0), fps="25")
        )
        for uuid, camera, model in (
            (reads, well, "motion"),
            (infers, well, "slow_inference"),
            (reconnects, killed, "motion"),
            (stalls, frozen, "motion"),
        ):
            control_plane.send_command(runner_id, make_deploy(uuid, camera.url, model))
        started = [limited, reads, infers, reconnects, stalls]
        control_plane.wait_until(lambda: all(control_plane.frames(uuid) for uuid in started), "all send frames")
        killed.kill()
        frozen.freeze()
        control_plane.wait_until(
            lambda: lost_codes(control_plane, reconnects) and lost_codes(control_plane, stalls), "both are noticed"
        )
        end = control_plane.wait_for_end_marker(limited)
        stop_s = stop_all(control_plane, runner_id, [reads, infers, reconnects, stalls])
    assert end.reason is EndReason.FINISHED
    for uuid in started:
        steps = [step for step in control_plane.results_of(uuid) if isinstance(step, Frame | Gap)]
        assert_covered(steps, 4.0 if uuid == limited else end_of(steps[-1]))
    assert control_plane.gaps(reconnects)[-1].reason is GapReason.RECONNECTING
    assert control_plane.gaps(stalls)[-1].reason is GapReason.STALLED
    assert control_plane.gaps(limited)[-1].reason is GapReason.RECONNECTING
    assert stop_s < STOP_LIMIT_S


@pytest.mark.usefixtures("rtmp_server")
def test_streams_of_an_rtmp_server_are_read_stop_at_once_and_their_keys_are_not_shown(
    control_plane: ControlPlane, runner_process: RunnerProcess, runner_id: str, tmp_path: Path
) -> None:
    key = "live_1234_AbCdEfGh5678"
    with RtmpServer(free_port(), tmp_path) as server:
        sent, never_sent = server.url, server.url.replace("//", "//user:secret@").replace("cam", key)
        reads, waits = new_uuid(), new_uuid()
        with Publisher(server.url):
            control_plane.send_command(runner_id, make_deploy(reads, sent))
            control_plane.send_command(runner_id, make_deploy(waits, never_sent))
            control_plane.wait_until(lambda: len(control_plane.frames(reads)) >= 10, "frames are sent")
            control_plane.wait_until(lambda: lost_codes(control_plane, waits) == ["source_timeout"], "it is waited for")
            assert stop_all(control_plane, runner_id, [reads, waits]) < STOP_LIMIT_S
    steps = [step for step in control_plane.results_of(reads) if isinstance(step, Frame | Gap)]
    assert_covered(steps, end_of(steps[-1]))
    shown = [result.error.message for result in control_plane.results_of(waits) if isinstance(result, SourceLost)]
    assert "/live/***" in shown[0]
    assert key not in (text := runner_process.log + "".join(shown))
    assert "secret" not in text


def test_a_partial_batch_does_not_wait_for_the_next_frame(control_plane: ControlPlane, runner_id: str) -> None:
    uuid = new_uuid()
    with Camera(free_port(), 1) as camera:
        control_plane.send_command(runner_id, make_deploy(uuid, camera.url, "slow_inference"))
        control_plane.wait_until(lambda: len(control_plane.frames(uuid)) >= 5, "a few frames are sent")
        stop_all(control_plane, runner_id, [uuid])
    delays_s = [
        datetime.datetime.fromisoformat(frame.at).timestamp() - frame.pts / 1e6 for frame in control_plane.frames(uuid)
    ]
    assert max(delays_s[-2:]) < 0.5  # FFmpeg keeps the first ones until it knows the source
