"""Short fault scenarios for mutation testing. Each injects faults into a vidflow and makes all checks.

All checks hold if no rule is removed. Each case should fail for some of the mutations, see mutation_testing.py.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from tests.faults import checks, trail_checks
from tests.faults.injection import Fault, Victim, frozen, inject, wait_for_victim, workers_of
from tests.faults.system_under_test import SystemUnderTest
from tests.faults.violation import violation
from tests.faults.workloads import Workload
from tests.integration.delivery import empty_topic, read_topic
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import decode_result
from vidflow.domain.topics import RESULTS, commands_topic
from vidflow.infra.postgres import backup

SETTLE_LIMIT_S: Final = 60.0
RANDOM: Final = random.Random(5)  # noqa: S311 - picks among equal victims
PAST_LEASES_S: Final = 6.0
ATTEMPTS: Final = 3
CRASH_FRAME: Final = 6
"""The frame at which the model `segfault` of tests/integration/faulty_models.py kills its worker."""


class Workloads(NamedTuple):
    """The workloads: some seconds, quick, ten seconds, twenty seconds, and one whose frame 6 kills its worker."""

    slow: Workload
    sampled: Workload
    long: Workload
    longest: Workload
    crashing: Workload


CaseBody = Callable[[SystemUnderTest, Workloads], None]


class FaultCase(NamedTuple):
    """A fault to inject, followed by checks.

    `changes` to the code make a process slow, or stop it at a certain place. They remove no rule. `variables` are environment
    variables of the roles.
    """

    name: str
    body: CaseBody
    changes: tuple[tuple[str, str, str], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


def check_settled(
    system: SystemUnderTest, *, no_losses: bool = False, all_stored: bool = False, limit_s: float = SETTLE_LIMIT_S
) -> checks.CheckTotals:
    """Wait until every scenario is inactive and make all checks.

    With `no_losses`, no deployment may be lost. With `all_stored`, every frame that was sent must be stored.
    """
    system.wait_until_all_inactive(limit_s)
    system.wait_until_recovered()
    totals = checks.check_all(system)
    if no_losses and totals.losses:
        raise violation(8, f"{totals.losses} losses not explained by a fault: {dict(trail_checks.reasons(system))}")
    if all_stored:
        trail_checks.check_8_all_stored(system)
    return totals


def wait_until_inactive(system: SystemUnderTest, uuid: str, description: str, limit_s: float = SETTLE_LIMIT_S) -> None:
    wait_until(lambda: system.vidflow.scenario(uuid)["state"] == "inactive", description, limit_s)


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def run_without_faults(system: SystemUnderTest, works: Workloads) -> None:
    for work in (works.slow, works.sampled):
        system.create_scenario(work)
    check_settled(system, no_losses=True, all_stored=True)


def shut_down_at_several_moments(system: SystemUnderTest, works: Workloads) -> None:
    for moment_s in (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5):
        uuid = system.create_scenario(works.slow)
        pause(moment_s)
        system.ensure_shut_down(uuid)
    for _ in range(2):
        uuid = system.create_scenario(works.long)
        system.wait_until_running(uuid)
        system.ensure_shut_down(uuid)
    check_settled(system, no_losses=True, all_stored=True)


def freeze_inbox(system: SystemUnderTest, works: Workloads) -> None:
    """The inbox is frozen while two workers finish and one scenario is shut down."""
    uuids = [system.create_scenario(works.slow) for _ in range(3)]
    for uuid in uuids:
        system.wait_until_running(uuid, frames=20)
    with frozen(system.processes.pids()["inbox"]):
        system.ensure_shut_down(uuids[0])
        pause(10)
    check_settled(system, no_losses=True, all_stored=True)


def crash_inbox_repeatedly(system: SystemUnderTest, works: Workloads) -> None:
    for work in (works.slow, works.sampled):
        system.create_scenario(work)
    check_settled(system, no_losses=True, all_stored=True)
    trail_checks.check_5_no_repeats(system)


def freeze_kafka(system: SystemUnderTest, works: Workloads) -> None:
    for _ in range(2):
        system.wait_until_running(system.create_scenario(works.slow))
    with frozen(system.processes.pids()["kafka"]):
        pause(PAST_LEASES_S + 2)
    check_settled(system, no_losses=True)


def freeze_kafka_past_all_timeouts(system: SystemUnderTest, works: Workloads) -> None:
    system.wait_until_running(system.create_scenario(works.long))
    with frozen(system.processes.pids()["kafka"]):
        pause(45)
    check_settled(system, no_losses=True, limit_s=2 * SETTLE_LIMIT_S)


def kill_worker_repeatedly(system: SystemUnderTest, works: Workloads) -> None:
    uuid = system.create_scenario(works.long)
    for number in range(ATTEMPTS + 1):
        system.wait_until_running(uuid, frames=20 + 40 * number)
        if system.vidflow.scenario(uuid)["state"] == "inactive":
            break  # the checks decide whether this is correct
        for worker in wait_for_victim(system.processes, Victim.WORKER, RANDOM):
            os.kill(worker, signal.SIGKILL)
    if (losses := check_settled(system, all_stored=True).losses) > ATTEMPTS + 1:
        raise violation(8, f"{losses} losses after {ATTEMPTS + 1} kills")


def read_poison_frame(system: SystemUnderTest, works: Workloads) -> None:
    uuid = system.create_scenario(works.crashing)
    wait_until_inactive(system, uuid, "invariant 9: the scenario fails")
    scenario = system.vidflow.scenario(uuid)
    if scenario["outcome"] != "failed" or scenario["error"]["frame_number"] != CRASH_FRAME:
        raise violation(9, f"outcome {scenario['outcome']}, error {scenario['error']}")


def kill_runner(system: SystemUnderTest, works: Workloads) -> None:
    for _ in range(3):
        system.wait_until_running(system.create_scenario(works.slow))
    inject(Fault.KILL, Victim.RUNNER, wait_for_victim(system.processes, Victim.RUNNER, RANDOM), 0)
    check_settled(system, all_stored=True)


def freeze_runner(system: SystemUnderTest, works: Workloads) -> None:
    """The frozen runner's workers continue while the other runner is given their work."""
    for _ in range(3):
        system.wait_until_running(system.create_scenario(works.long))
    inject(Fault.FREEZE, Victim.RUNNER, wait_for_victim(system.processes, Victim.RUNNER, RANDOM), 8)
    check_settled(system)


def freeze_machine(system: SystemUnderTest, works: Workloads) -> None:
    """Two scenarios are shut down while a machine is frozen, and become inactive before its workers continue."""
    uuids = [system.create_scenario(works.long) for _ in range(3)]
    for uuid in uuids:
        system.wait_until_running(uuid)
    with frozen(wait_for_victim(system.processes, Victim.MACHINE, RANDOM)):
        for uuid in uuids[:2]:
            system.ensure_shut_down(uuid)
        for uuid in uuids[:2]:
            wait_until_inactive(system, uuid, f"{uuid} is inactive")
        pause(2)
    check_settled(system)


def freeze_only_runner(system: SystemUnderTest, works: Workloads) -> None:
    """The work is assigned to the same runner again while its workers still run. No scenario may have two workers."""
    for pid in system.processes.pids()["runner"][1:]:
        os.kill(pid, signal.SIGSTOP)
    uuids = [system.create_scenario(works.long) for _ in range(2)]
    for uuid in uuids:
        system.wait_until_running(uuid)
    [runner, *others] = system.processes.pids()["runner"]
    with frozen([runner]):
        pause(PAST_LEASES_S)
    pause(2.5)
    counts = []
    for _ in range(10):
        counts.append(len(workers_of(runner)))
        pause(0.1)
    for pid in others:
        os.kill(pid, signal.SIGCONT)
    if min(counts) > len(uuids):
        raise violation(4, f"{min(counts)} workers for {len(uuids)} scenarios")
    check_settled(system)


def drain_runner(system: SystemUnderTest, works: Workloads) -> None:
    """A runner drains while the inbox is frozen: its results must be stored before another runner continues the work."""
    for _ in range(3):
        system.wait_until_running(system.create_scenario(works.long))
    with frozen(system.processes.pids()["inbox"]):
        inject(Fault.TERM, Victim.RUNNER, wait_for_victim(system.processes, Victim.RUNNER, RANDOM), 0)
        pause(3)
    check_settled(system, no_losses=True, all_stored=True)


def empty_results(system: SystemUnderTest, works: Workloads) -> None:
    system.history_lost = True
    for work in (works.slow, works.long):
        system.wait_until_running(system.create_scenario(work))
    with frozen(system.processes.pids()["inbox"]):
        pause(1)
        empty_topic(system.processes.kafka, RESULTS)
    check_settled(system)


def lose_commands(system: SystemUnderTest, works: Workloads) -> None:
    """A deploy and a stop are published while the runners are frozen, and deleted before they are read."""
    system.history_lost = True
    running = system.create_scenario(works.longest)
    system.wait_until_running(running)
    with frozen(system.processes.pids()["runner"]):
        system.create_scenario(works.slow)
        system.ensure_shut_down(running)
        pause(1)
        empty_topic(system.processes.kafka, commands_topic("default"))
    wait_until_inactive(system, running, "invariant 7: the scenario is stopped", 12)
    check_settled(system, no_losses=True)


def restore_database(system: SystemUnderTest, works: Workloads) -> None:
    """Restore the database under running roles to a time before a worker was killed and its scenario redeployed.

    The rows may belong to an epoch that the restore lost, so not all checks apply.
    """
    uuid = system.create_scenario(works.long)
    system.wait_until_running(uuid, frames=20)
    with tempfile.TemporaryDirectory() as folder:
        backup.write_backup(system.processes.database_url, Path(folder, "backup"), replace=False, notify=print)
        for worker in wait_for_victim(system.processes, Victim.WORKER, RANDOM):
            os.kill(worker, signal.SIGKILL)
        system.wait_until_running(uuid, frames=system.vidflow.scenario(uuid)["frames_stored"] + 20)
        newest = max(decode_result(message.value()).epoch for message in read_topic(system.processes.kafka, RESULTS))
        backup.restore(system.processes.database_url, Path(folder, "backup"), replace=True, notify=print)
    with system.connect() as connection:
        [(restored_at,)] = connection.execute("SELECT clock_timestamp()").fetchall()
    system.wait_until_all_inactive(SETTLE_LIMIT_S)
    checks.check_frames(
        uuid, system.vidflow.scenario(uuid)["outcome"], system.vidflow.frames(uuid), system.reference_frames[works.long]
    )
    with system.connect() as connection:
        assigned = connection.execute(
            "SELECT epoch FROM scenario_history WHERE to_state = 'in_startup_processing' AND at > %s", (restored_at,)
        ).fetchall()
    if any(epoch <= newest for (epoch,) in assigned):
        raise violation(4, f"epochs {assigned} assigned after {newest}")


def stop_relays_while_kafka_is_frozen(system: SystemUnderTest, works: Workloads) -> None:
    """Stop the relays while the broker is frozen, then kill it: what was in its connections is lost."""
    system.wait_until_running(system.create_scenario(works.slow))
    [broker] = system.processes.pids()["kafka"]
    with frozen([broker]):
        for _ in range(3):
            system.create_scenario(works.sampled)
        pause(0.5)
        for pid in system.processes.pids()["relay"]:
            os.kill(pid, signal.SIGTERM)
        pause(9)
        os.kill(broker, signal.SIGKILL)
    check_settled(system)


def freeze_relays(system: SystemUnderTest, works: Workloads) -> None:
    """The relays are frozen while the leader wants to send a stop again and again."""
    uuids = [system.create_scenario(works.long) for _ in range(2)]
    for uuid in uuids:
        system.wait_until_running(uuid)
    with frozen(system.processes.pids()["relay"]):
        for uuid in uuids:
            system.ensure_shut_down(uuid)
        pause(PAST_LEASES_S + 2)
    check_settled(system, no_losses=True, all_stored=True)


def freeze_leader_in_transaction(system: SystemUnderTest, works: Workloads) -> None:
    """A leader freezes itself in a fenced transaction, see `STOP_AT_CRASHPOINT`. Another one must take over."""
    system.create_scenario(works.slow)
    wait_until(lambda: bool(stopped_orchestrators(system)), "a leader is frozen in a transaction", SETTLE_LIMIT_S)
    try:
        uuid = system.create_scenario(works.sampled)
        wait_until(
            lambda: system.vidflow.scenario(uuid)["epoch"] > 0, "invariant 8: another leader places the scenario", 15
        )
    finally:
        resume_orchestrators(system)

    def all_inactive() -> bool:
        resume_orchestrators(system)
        return system.count_unfinished() == 0

    wait_until(all_inactive, "all scenarios are inactive", SETTLE_LIMIT_S)
    check_settled(system)


def stopped_orchestrators(system: SystemUnderTest) -> list[int]:
    """Return the pids of the orchestrators that are stopped (process state T)."""
    pids = system.processes.pids()["orchestrator"]
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"]


def resume_orchestrators(system: SystemUnderTest) -> None:
    """Resume the stopped orchestrators. Each of them stops itself once."""
    for pid in stopped_orchestrators(system):
        os.kill(pid, signal.SIGCONT)


STOP_AT_CRASHPOINT: Final = (
    "infra/process/crashpoint.py",
    "os.kill(os.getpid(), signal.SIGKILL)",
    "_armed.pop(name), os.kill(os.getpid(), signal.SIGSTOP)",
)
SLOW_LEADER: Final = (
    "roles/orchestrator/leader.py", "            moved = self._write(plan)\n",
    "            time.sleep(0.3)\n            moved = self._write(plan)\n",
)  # fmt: skip
SLOW_TRANSACTION: Final = (
    "roles/orchestrator/leader.py", '            crashpoint("orchestrator.before_commit")\n',
    '            crashpoint("orchestrator.before_commit")\n            time.sleep(0.3)\n',
)  # fmt: skip

UNDISTURBED: Final = FaultCase("no fault", run_without_faults)
SHUT_DOWN: Final = FaultCase("shut down at any moment", shut_down_at_several_moments)
SLOW_LEADER_CASE: Final = FaultCase(
    "shut down at any moment, slow leader", shut_down_at_several_moments, (SLOW_LEADER,)
)
SLOW_TRANSACTION_CASE: Final = FaultCase(
    "shut down at any moment, slow transactions", shut_down_at_several_moments, (SLOW_TRANSACTION,)
)
INBOX_FROZEN: Final = FaultCase("inbox frozen", freeze_inbox)
INBOX_KILLED: Final = FaultCase(
    "inbox killed repeatedly", crash_inbox_repeatedly, (), (("VIDFLOW_CRASHPOINTS", "inbox.before_position:12"),)
)
KAFKA_FROZEN: Final = FaultCase("Kafka frozen", freeze_kafka)
KAFKA_FROZEN_LONG: Final = FaultCase("Kafka frozen for 45 s", freeze_kafka_past_all_timeouts)
WORKER_KILLED: Final = FaultCase("worker killed repeatedly", kill_worker_repeatedly)
POISON_FRAME: Final = FaultCase("poison frame", read_poison_frame)
RUNNER_KILLED: Final = FaultCase("runner killed", kill_runner)
RUNNER_FROZEN: Final = FaultCase("runner frozen", freeze_runner)
RUNNER_FROZEN_SLOW_LEADER: Final = FaultCase("runner frozen, slow leader", freeze_runner, (SLOW_LEADER,))
MACHINE_FROZEN: Final = FaultCase("machine frozen", freeze_machine)
ONLY_RUNNER_FROZEN: Final = FaultCase("only runner frozen", freeze_only_runner)
RUNNER_DRAINED: Final = FaultCase("runner drained, inbox frozen", drain_runner)
RESULTS_EMPTIED: Final = FaultCase("results topic emptied", empty_results)
COMMANDS_LOST: Final = FaultCase("commands lost", lose_commands)
DATABASE_RESTORED: Final = FaultCase("database restored", restore_database)
RELAYS_STOPPED: Final = FaultCase("relays stopped, Kafka frozen, then killed", stop_relays_while_kafka_is_frozen)
RELAYS_FROZEN: Final = FaultCase("relays frozen", freeze_relays)
LEADER_FROZEN: Final = FaultCase(
    "leader frozen in a transaction", freeze_leader_in_transaction, (STOP_AT_CRASHPOINT,),
    (("VIDFLOW_CRASHPOINTS", "orchestrator.before_commit:4"),),
)  # fmt: skip
