"""Short pieces of the fault suite, each of which feels some of the rules: what befalls a vidflow, and what must not come of it.

Each brings its own work, strikes, and makes all checks; all of them hold while no rule is broken.
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

from confluent_kafka import TopicPartition
from tests.faults import checks, trail_checks
from tests.faults.injection import Fault, Victim, frozen, inject, wait_for_victim, workers_of
from tests.faults.system_under_test import SystemUnderTest
from tests.faults.violation import violation
from tests.faults.workloads import Workload
from tests.integration.delivery import read_topic
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import RESULTS, commands_topic, decode_result
from vidflow.infra.kafka import admin, offsets
from vidflow.infra.postgres import backup

SETTLE_LIMIT_S: Final = 60.0
RANDOM: Final = random.Random(5)  # noqa: S311 - which of several that are alike
PAST_LEASES_S: Final = 6.0
ATTEMPTS: Final = 3
CRASH_FRAME: Final = 6
"""Where the model `crashing` dies of tests/integration/faulty_models.py."""


class Workloads(NamedTuple):
    """The work there is: of some seconds, quick, of ten seconds, of twenty, and one whose frame 6 kills its worker."""

    slow: Workload
    sampled: Workload
    long: Workload
    longest: Workload
    crashing: Workload


CaseBody = Callable[[SystemUnderTest, Workloads], None]


class FaultCase(NamedTuple):
    """`changes`: of the code, in which places a process is slow or dies there; no rule is broken by them."""

    name: str
    body: CaseBody
    changes: tuple[tuple[str, str, str], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


def check_settled(
    now: SystemUnderTest, *, no_losses: bool = False, all_stored: bool = False, limit_s: float = SETTLE_LIMIT_S
) -> checks.CheckTotals:
    """Waits until all is over and makes all checks; `no_losses`: no deployment was lost, `all_stored`: and all is stored."""
    now.wait_until_all_inactive(limit_s)
    now.wait_until_recovered()
    sums = checks.check_all(now)
    if no_losses and sums.losses:
        raise violation(8, f"{sums.losses} losses that no fault explains: {dict(trail_checks.reasons(now))}")
    if all_stored:
        trail_checks.check_8_all_stored(now)
    return sums


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def run_without_faults(now: SystemUnderTest, works: Workloads) -> None:
    for work in (works.slow, works.sampled):
        now.create_scenario(work)
    check_settled(now, no_losses=True, all_stored=True)


def shut_down_at_several_moments(now: SystemUnderTest, works: Workloads) -> None:
    for moment_s in (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5):
        uuid = now.create_scenario(works.slow)
        pause(moment_s)
        now.ensure_shut_down(uuid)
    for _ in range(2):
        uuid = now.create_scenario(works.long)
        now.wait_until_running(uuid)
        now.ensure_shut_down(uuid)
    check_settled(now, no_losses=True, all_stored=True)


def freeze_inbox(now: SystemUnderTest, works: Workloads) -> None:
    """The workers come to their ends meanwhile, and one is told to."""
    uuids = [now.create_scenario(works.slow) for _ in range(3)]
    for uuid in uuids:
        now.wait_until_running(uuid, frames=20)
    with frozen(now.processes.pids()["inbox"]):
        now.ensure_shut_down(uuids[0])
        pause(10)
    check_settled(now, no_losses=True, all_stored=True)


def crash_inbox_repeatedly(now: SystemUnderTest, works: Workloads) -> None:
    for work in (works.slow, works.sampled):
        now.create_scenario(work)
    check_settled(now, no_losses=True, all_stored=True)
    trail_checks.check_5_no_repeats(now)


def freeze_kafka(now: SystemUnderTest, works: Workloads) -> None:
    for _ in range(2):
        now.wait_until_running(now.create_scenario(works.slow))
    with frozen(now.processes.pids()["kafka"]):
        pause(PAST_LEASES_S + 2)
    check_settled(now, no_losses=True)


def freeze_kafka_past_all_timeouts(now: SystemUnderTest, works: Workloads) -> None:
    now.wait_until_running(now.create_scenario(works.long))
    with frozen(now.processes.pids()["kafka"]):
        pause(45)
    check_settled(now, no_losses=True, limit_s=2 * SETTLE_LIMIT_S)


def kill_worker_repeatedly(now: SystemUnderTest, works: Workloads) -> None:
    uuid = now.create_scenario(works.long)
    for number in range(ATTEMPTS + 1):
        now.wait_until_running(uuid, frames=20 + 40 * number)
        if now.vidflow.scenario(uuid)["state"] == "inactive":
            break  # the checks tell whether it may be
        for worker in wait_for_victim(now.processes, Victim.WORKER, RANDOM):
            os.kill(worker, signal.SIGKILL)
    if (losses := check_settled(now, all_stored=True).losses) > ATTEMPTS + 1:
        raise violation(8, f"{losses} losses of {ATTEMPTS + 1} deaths")


def read_poison_frame(now: SystemUnderTest, works: Workloads) -> None:
    uuid = now.create_scenario(works.crashing)
    wait_until(lambda: now.vidflow.scenario(uuid)["state"] == "inactive", "invariant 9: it fails", SETTLE_LIMIT_S)
    end = now.vidflow.scenario(uuid)
    if end["outcome"] != "failed" or end["error"]["frame_number"] != CRASH_FRAME:
        raise violation(9, f"{end['outcome']}, {end['error']}")


def kill_runner(now: SystemUnderTest, works: Workloads) -> None:
    for _ in range(3):
        now.wait_until_running(now.create_scenario(works.slow))
    inject(Fault.KILL, Victim.RUNNER, wait_for_victim(now.processes, Victim.RUNNER, RANDOM), 0)
    check_settled(now, all_stored=True)


def freeze_runner(now: SystemUnderTest, works: Workloads) -> None:
    """Its workers go on, unheard, while others are given their work."""
    for _ in range(3):
        now.wait_until_running(now.create_scenario(works.long))
    inject(Fault.FREEZE, Victim.RUNNER, wait_for_victim(now.processes, Victim.RUNNER, RANDOM), 8)
    check_settled(now)


def freeze_machine(now: SystemUnderTest, works: Workloads) -> None:
    """Two of its scenarios go elsewhere; one is shut down, and inactive before the worker goes on."""
    uuids = [now.create_scenario(works.long) for _ in range(3)]
    for uuid in uuids:
        now.wait_until_running(uuid)
    with frozen(wait_for_victim(now.processes, Victim.MACHINE, RANDOM)):
        for uuid in uuids[:2]:
            now.ensure_shut_down(uuid)
        for uuid in uuids[:2]:
            wait_until(lambda: now.vidflow.scenario(uuid)["state"] == "inactive", f"{uuid} ends", SETTLE_LIMIT_S)  # noqa: B023
        pause(2)
    check_settled(now)


def freeze_only_runner(now: SystemUnderTest, works: Workloads) -> None:
    """There is no other: its work comes back to it while its workers still go on. No scenario ever has two workers."""
    for pid in now.processes.pids()["runner"][1:]:
        os.kill(pid, signal.SIGSTOP)
    uuids = [now.create_scenario(works.long) for _ in range(2)]
    for uuid in uuids:
        now.wait_until_running(uuid)
    [runner, *others] = now.processes.pids()["runner"]
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
    check_settled(now)


def drain_runner(now: SystemUnderTest, works: Workloads) -> None:
    """While the inbox is behind: what was sent is to be stored before another goes on."""
    for _ in range(3):
        now.wait_until_running(now.create_scenario(works.long))
    with frozen(now.processes.pids()["inbox"]):
        inject(Fault.TERM, Victim.RUNNER, wait_for_victim(now.processes, Victim.RUNNER, RANDOM), 0)
        pause(3)
    check_settled(now, no_losses=True, all_stored=True)


def empty_results(now: SystemUnderTest, works: Workloads) -> None:
    now.history_lost = True
    for work in (works.slow, works.long):
        now.wait_until_running(now.create_scenario(work))
    with frozen(now.processes.pids()["inbox"]):
        pause(1)
        empty_topic(now, RESULTS)
    check_settled(now)


def lose_commands(now: SystemUnderTest, works: Workloads) -> None:
    """A deploy, and the stop of what runs: published while no runner reads, and gone by then."""
    now.history_lost = True
    runs = now.create_scenario(works.longest)
    now.wait_until_running(runs)
    with frozen(now.processes.pids()["runner"]):
        now.create_scenario(works.slow)
        now.ensure_shut_down(runs)
        pause(1)
        empty_topic(now, commands_topic("default"))
    wait_until(lambda: now.vidflow.scenario(runs)["state"] == "inactive", "invariant 7: it is stopped", 12)
    check_settled(now, no_losses=True)


def restore_database(now: SystemUnderTest, works: Workloads) -> None:
    """Under all that runs, to a moment before a scenario's worker died and was followed. (Its rows may be of a lost epoch.)"""
    uuid = now.create_scenario(works.long)
    now.wait_until_running(uuid, frames=20)
    with tempfile.TemporaryDirectory() as folder:
        backup.write_backup(now.processes.database_url, Path(folder, "backup"), replace=False, notify=print)
        for worker in wait_for_victim(now.processes, Victim.WORKER, RANDOM):
            os.kill(worker, signal.SIGKILL)
        now.wait_until_running(uuid, frames=now.vidflow.scenario(uuid)["frames_stored"] + 20)
        newest = max(decode_result(message.value()).epoch for message in read_topic(now.processes.kafka, RESULTS))
        backup.restore(now.processes.database_url, Path(folder, "backup"), replace=True, notify=print)
    with now.connect() as tables:
        [(at,)] = tables.execute("SELECT clock_timestamp()").fetchall()
    now.wait_until_all_inactive(SETTLE_LIMIT_S)
    checks.check_frames(
        uuid, now.vidflow.scenario(uuid)["outcome"], now.vidflow.frames(uuid), now.reference_frames[works.long]
    )
    with now.connect() as tables:
        given = tables.execute(
            "SELECT epoch FROM scenario_history WHERE to_state = 'in_startup_processing' AND at > %s", (at,)
        ).fetchall()
    if any(epoch <= newest for (epoch,) in given):
        raise violation(4, f"epochs {given} given out behind {newest}")


def stop_relays_while_kafka_is_frozen(now: SystemUnderTest, works: Workloads) -> None:
    """And it dies then: what lay in its connections is in no log."""
    now.wait_until_running(now.create_scenario(works.slow))
    [broker] = now.processes.pids()["kafka"]
    with frozen([broker]):
        for _ in range(3):
            now.create_scenario(works.sampled)
        pause(0.5)
        for pid in now.processes.pids()["relay"]:
            os.kill(pid, signal.SIGTERM)
        pause(9)
        os.kill(broker, signal.SIGKILL)
    check_settled(now)


def freeze_relays(now: SystemUnderTest, works: Workloads) -> None:
    """The leader gives a stop again and again meanwhile."""
    uuids = [now.create_scenario(works.long) for _ in range(2)]
    for uuid in uuids:
        now.wait_until_running(uuid)
    with frozen(now.processes.pids()["relay"]):
        for uuid in uuids:
            now.ensure_shut_down(uuid)
        pause(PAST_LEASES_S + 2)
    check_settled(now, no_losses=True, all_stored=True)


def freeze_leader_in_transaction(now: SystemUnderTest, works: Workloads) -> None:
    """It comes to lead, takes a fenced transaction, and stops there; another must follow all the same."""
    now.create_scenario(works.slow)
    wait_until(lambda: bool(stopped_orchestrators(now)), "a leader stands still in a transaction", SETTLE_LIMIT_S)
    try:
        uuid = now.create_scenario(works.sampled)
        wait_until(lambda: now.vidflow.scenario(uuid)["epoch"] > 0, "invariant 8: another leads, and places", 15)
    finally:
        resume_orchestrators(now)
    wait_until(
        lambda: resume_orchestrators(now) and now.count_unfinished() == 0, "all scenarios are inactive", SETTLE_LIMIT_S
    )
    check_settled(now)


def stopped_orchestrators(now: SystemUnderTest) -> list[int]:
    """The orchestrators that stand still."""
    pids = now.processes.pids()["orchestrator"]
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"]


def resume_orchestrators(now: SystemUnderTest) -> bool:
    """Lets them go on: each orchestrator stands still once."""
    for pid in stopped_orchestrators(now):
        os.kill(pid, signal.SIGCONT)
    return True


def empty_topic(now: SystemUnderTest, topic: str) -> None:
    """Deletes what the topic holds now, as its retention would."""
    client = admin.create_admin(now.processes.kafka)
    ends = offsets.read_end_offsets(client, topic)
    places = [TopicPartition(topic, number, end) for number, end in ends.items()]
    for answer in client.delete_records(places).values():
        answer.result()


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

UNDISTURBED: Final = FaultCase("undisturbed", run_without_faults)
SHUT_DOWN: Final = FaultCase("shut down at any moment", shut_down_at_several_moments)
SLOW_LEADER_CASE: Final = FaultCase("the same, a slow leader", shut_down_at_several_moments, (SLOW_LEADER,))
SLOW_TRANSACTION_CASE: Final = FaultCase(
    "the same, slow transactions", shut_down_at_several_moments, (SLOW_TRANSACTION,)
)
INBOX_FROZEN: Final = FaultCase("inbox frozen", freeze_inbox)
INBOX_KILLED: Final = FaultCase(
    "inbox killed again and again", crash_inbox_repeatedly, (), (("VIDFLOW_CRASHPOINTS", "inbox.before_position:12"),)
)
KAFKA_FROZEN: Final = FaultCase("Kafka frozen", freeze_kafka)
KAFKA_FROZEN_LONG: Final = FaultCase("Kafka frozen for 45 s", freeze_kafka_past_all_timeouts)
WORKER_KILLED: Final = FaultCase("worker killed again and again", kill_worker_repeatedly)
POISON_FRAME: Final = FaultCase("a poisonous frame", read_poison_frame)
RUNNER_KILLED: Final = FaultCase("runner killed", kill_runner)
RUNNER_FROZEN: Final = FaultCase("runner frozen", freeze_runner)
RUNNER_FROZEN_SLOW_LEADER: Final = FaultCase("runner frozen, a slow leader", freeze_runner, (SLOW_LEADER,))
MACHINE_FROZEN: Final = FaultCase("machine frozen", freeze_machine)
ONLY_RUNNER_FROZEN: Final = FaultCase("the only runner frozen", freeze_only_runner)
RUNNER_DRAINED: Final = FaultCase("runner told to leave, inbox frozen", drain_runner)
RESULTS_EMPTIED: Final = FaultCase("results emptied", empty_results)
COMMANDS_LOST: Final = FaultCase("commands lost", lose_commands)
DATABASE_RESTORED: Final = FaultCase("database restored", restore_database)
RELAYS_STOPPED: Final = FaultCase("relays told to end, Kafka frozen, then killed", stop_relays_while_kafka_is_frozen)
RELAYS_FROZEN: Final = FaultCase("relays frozen", freeze_relays)
LEADER_FROZEN: Final = FaultCase(
    "leader frozen in a transaction", freeze_leader_in_transaction, (STOP_AT_CRASHPOINT,),
    (("VIDFLOW_CRASHPOINTS", "orchestrator.before_commit:4"),),
)  # fmt: skip
