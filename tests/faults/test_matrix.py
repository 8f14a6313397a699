"""A short selection of the fault matrix: every victim is killed, and most are also frozen or terminated, in some phase.

Cameras are read through a few of the faults, and through the others in the `whole` suite. The whole matrix with all checks after
each case: `python -m tests.faults matrix`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from tests.faults import checks, matrix, workloads
from tests.faults.injection import Fault, Victim, inject, wait_for_victim
from tests.faults.matrix import MatrixCase, ScenarioPhase, Source, inject_with_retries
from tests.faults.system_under_test import SystemUnderTest, run_system
from tests.faults.workloads import Workload
from tests.integration.api_server import free_port
from tests.rtsp.camera import Camera, is_installed

pytestmark = [pytest.mark.long, pytest.mark.fault, pytest.mark.timeout(420)]

SEED = 5
FREEZE_S = 5.0
"""Longer than the leases of leader, relay and runner, and than a consumer's session."""
KILL, FREEZE, TERM = Fault.KILL, Fault.FREEZE, Fault.TERM
STARTING, RUNNING, SHUTTING_DOWN = ScenarioPhase.STARTING, ScenarioPhase.RUNNING, ScenarioPhase.SHUTTING_DOWN
SHORT_MATRIX = [
    MatrixCase(KILL, Victim.API, STARTING),
    MatrixCase(KILL, Victim.RELAY, RUNNING),
    MatrixCase(FREEZE, Victim.LEADER, STARTING),
    MatrixCase(KILL, Victim.WORKER, STARTING),
    MatrixCase(TERM, Victim.RUNNER, RUNNING),
    MatrixCase(KILL, Victim.LEADER, SHUTTING_DOWN),
    MatrixCase(KILL, Victim.INBOX, RUNNING),
    MatrixCase(FREEZE, Victim.RUNNER, RUNNING),
    MatrixCase(TERM, Victim.LEADER, RUNNING),
    MatrixCase(KILL, Victim.RUNNER, SHUTTING_DOWN),
    MatrixCase(KILL, Victim.STANDBY, RUNNING),
    MatrixCase(FREEZE, Victim.INBOX, SHUTTING_DOWN),
    MatrixCase(KILL, Victim.POSTGRES, RUNNING),
    MatrixCase(TERM, Victim.INBOX, RUNNING),
    MatrixCase(KILL, Victim.MACHINE, STARTING),
    MatrixCase(FREEZE, Victim.KAFKA, RUNNING),
    MatrixCase(TERM, Victim.RELAY, SHUTTING_DOWN),
    MatrixCase(FREEZE, Victim.POSTGRES, STARTING),
    MatrixCase(KILL, Victim.KAFKA, SHUTTING_DOWN),
    MatrixCase(KILL, Victim.INFERENCE, RUNNING, Source.SHARED),
    MatrixCase(KILL, Victim.WORKER, RUNNING, Source.SHARED),
    MatrixCase(FREEZE, Victim.INFERENCE, SHUTTING_DOWN, Source.SHARED),
]

CAMERA_SERIES = [(KILL, Victim.WORKER), (FREEZE, Victim.MACHINE), (FREEZE, Victim.KAFKA), (KILL, Victim.RUNNER)]


class FaultedSystem(NamedTuple):
    """A running vidflow, its workloads of files, one of them with a shared model, and those of one camera."""

    system: SystemUnderTest
    slow: Workload
    sampled: Workload
    shared: Workload
    cameras: list[Workload]


@pytest.fixture(scope="module")
def faulted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultedSystem]:
    folder = tmp_path_factory.mktemp("matrix")
    camera = Camera(free_port(), workloads.CAMERA_RATE)
    files = workloads.slow(folder, 160), workloads.sampled(folder, 40), workloads.shared(folder, 160)
    cameras = [workloads.watched(camera), workloads.watched_now_and_then(camera)]
    with run_system(folder / "data", [*files, *cameras], inference="shared") as system:
        if is_installed():
            camera.start()
        try:
            yield FaultedSystem(system, *files, cameras)
        finally:
            camera.kill()


def test_the_short_matrix_kills_every_victim_and_covers_every_phase() -> None:
    assert {case.victim for case in SHORT_MATRIX if case.fault is KILL} == set(Victim)
    assert {(case.fault, case.phase) for case in SHORT_MATRIX} == {
        (fault, phase) for fault in Fault for phase in ScenarioPhase
    } - {(TERM, STARTING)}


def test_invariants_1_to_8_hold_after_a_series_of_faults(faulted: FaultedSystem) -> None:
    system, chance = faulted.system, random.Random(SEED)  # noqa: S311
    for case in SHORT_MATRIX:
        system.create_scenario(faulted.sampled)
        disturbed = faulted.shared if case.source is Source.SHARED else faulted.slow
        inject_with_retries(system, case, disturbed, chance, FREEZE_S)
    system.wait_until_recovered()
    totals = checks.check_all(system)
    assert totals.scenarios >= 2 * len(SHORT_MATRIX)
    assert totals.duplicate_frames > 0 or totals.losses > 0  # otherwise no fault had an effect


@pytest.mark.usefixtures("rtsp_server")
def test_cameras_are_read_through_a_series_of_faults_and_each_frame_is_stored_or_in_a_gap(
    faulted: FaultedSystem,
) -> None:
    system, chance = faulted.system, random.Random(SEED)  # noqa: S311
    uuids = [system.create_scenario(camera) for camera in faulted.cameras]
    for uuid in uuids:
        system.wait_until_running(uuid)
    for fault, victim in CAMERA_SERIES:
        inject(fault, victim, wait_for_victim(system.processes, victim, chance), FREEZE_S)
        system.wait_until_advanced(uuids)
    system.shut_down_live()
    system.wait_until_recovered()
    assert checks.check_all(system).losses >= 2  # otherwise no fault had an effect


@pytest.mark.usefixtures("rtsp_server")
@pytest.mark.whole
@pytest.mark.parametrize("case", matrix.cases("camera"), ids=str)
def test_invariants_1_to_8_hold_after_a_fault_while_a_camera_is_read(faulted: FaultedSystem, case: MatrixCase) -> None:
    works = [*faulted.cameras, faulted.sampled]
    [row] = matrix.run_cases(faulted.system, [case], works, SEED, FREEZE_S)
    assert row.frames > (faulted.sampled.frames or 0)
