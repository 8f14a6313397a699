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
from tests.faults import checks, trails
from tests.faults.broken import broken
from tests.faults.scene import Scene
from tests.faults.strikes import Fault, Victim, aim, frozen, strike, workers_of
from tests.faults.works import Work
from tests.integration.delivery import log_of
from tests.integration.embedded import wait_until

from vidflow.domain.messages import RESULTS, commands_topic, decode_result
from vidflow.infra.kafka import admin, offsets
from vidflow.infra.postgres import backup

SETTLED_S: Final = 60.0
CHANCE: Final = random.Random(5)  # noqa: S311 - which of several that are alike
LONGER_THAN_LEASES_S: Final = 6.0
ATTEMPTS: Final = 3
BAD_FRAME: Final = 6
"""Where the model `deadly` dies of tests/integration/odd_models.py."""


class Works(NamedTuple):
    """The work there is: of some seconds, quick, of ten seconds, of twenty, and one whose frame 6 kills its worker."""

    slow: Work
    sampled: Work
    long: Work
    longest: Work
    deadly: Work


Body = Callable[[Scene, Works], None]


class Case(NamedTuple):
    """`changes`: of the code, in which places a process is slow or dies there; no rule is broken by them."""

    name: str
    body: Body
    changes: tuple[tuple[str, str, str], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


def settled(
    now: Scene, *, costs_nothing: bool = False, left_nothing: bool = False, limit_s: float = SETTLED_S
) -> checks.Sums:
    """Waits until all is over and makes all checks; `costs_nothing`: no deployment was lost, `left_nothing`: and all is stored."""
    now.until_settled(limit_s)
    now.until_whole()
    sums = checks.all_hold(now)
    if costs_nothing and sums.losses:
        raise broken(8, f"{sums.losses} losses that no fault explains: {dict(trails.reasons(now))}")
    if left_nothing:
        trails.check_8_nothing_left(now)
    return sums


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def undisturbed(now: Scene, works: Works) -> None:
    for work in (works.slow, works.sampled):
        now.begin(work)
    settled(now, costs_nothing=True, left_nothing=True)


def shut_down_at_any_moment(now: Scene, works: Works) -> None:
    for moment_s in (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5):
        uuid = now.begin(works.slow)
        pause(moment_s)
        now.until_shut_down(uuid)
    for _ in range(2):
        uuid = now.begin(works.long)
        now.under_way(uuid)
        now.until_shut_down(uuid)
    settled(now, costs_nothing=True, left_nothing=True)


def inbox_stands_still(now: Scene, works: Works) -> None:
    """The workers come to their ends meanwhile, and one is told to."""
    uuids = [now.begin(works.slow) for _ in range(3)]
    for uuid in uuids:
        now.under_way(uuid, frames=20)
    with frozen(now.parts.pids()["inbox"]):
        now.until_shut_down(uuids[0])
        pause(10)
    settled(now, costs_nothing=True, left_nothing=True)


def inbox_dies_often(now: Scene, works: Works) -> None:
    for work in (works.slow, works.sampled):
        now.begin(work)
    settled(now, costs_nothing=True, left_nothing=True)
    trails.check_5_nothing_twice(now)


def kafka_stands_still(now: Scene, works: Works) -> None:
    for _ in range(2):
        now.under_way(now.begin(works.slow))
    with frozen(now.parts.pids()["kafka"]):
        pause(LONGER_THAN_LEASES_S + 2)
    settled(now, costs_nothing=True)


def kafka_stands_still_past_all_patience(now: Scene, works: Works) -> None:
    now.under_way(now.begin(works.long))
    with frozen(now.parts.pids()["kafka"]):
        pause(45)
    settled(now, costs_nothing=True, limit_s=2 * SETTLED_S)


def worker_dies_often(now: Scene, works: Works) -> None:
    uuid = now.begin(works.long)
    for number in range(ATTEMPTS + 1):
        now.under_way(uuid, frames=20 + 40 * number)
        if now.vidflow.scenario(uuid)["state"] == "inactive":
            break  # the checks tell whether it may be
        for worker in aim(now.parts, Victim.WORKER, CHANCE):
            os.kill(worker, signal.SIGKILL)
    if (losses := settled(now, left_nothing=True).losses) > ATTEMPTS + 1:
        raise broken(8, f"{losses} losses of {ATTEMPTS + 1} deaths")


def frame_is_poisonous(now: Scene, works: Works) -> None:
    uuid = now.begin(works.deadly)
    wait_until(lambda: now.vidflow.scenario(uuid)["state"] == "inactive", "invariant 9: it fails", SETTLED_S)
    end = now.vidflow.scenario(uuid)
    if end["outcome"] != "failed" or end["error"]["frame_number"] != BAD_FRAME:
        raise broken(9, f"{end['outcome']}, {end['error']}")


def runner_dies(now: Scene, works: Works) -> None:
    for _ in range(3):
        now.under_way(now.begin(works.slow))
    strike(Fault.KILL, Victim.RUNNER, aim(now.parts, Victim.RUNNER, CHANCE), 0)
    settled(now, left_nothing=True)


def runner_stands_still(now: Scene, works: Works) -> None:
    """Its workers go on, unheard, while others are given their work."""
    for _ in range(3):
        now.under_way(now.begin(works.long))
    strike(Fault.FREEZE, Victim.RUNNER, aim(now.parts, Victim.RUNNER, CHANCE), 8)
    settled(now)


def machine_stands_still(now: Scene, works: Works) -> None:
    """Two of its scenarios go elsewhere; one is shut down, and inactive before the worker goes on."""
    uuids = [now.begin(works.long) for _ in range(3)]
    for uuid in uuids:
        now.under_way(uuid)
    with frozen(aim(now.parts, Victim.MACHINE, CHANCE)):
        for uuid in uuids[:2]:
            now.until_shut_down(uuid)
        for uuid in uuids[:2]:
            wait_until(lambda: now.vidflow.scenario(uuid)["state"] == "inactive", f"{uuid} ends", SETTLED_S)  # noqa: B023
        pause(2)
    settled(now)


def only_runner_stands_still(now: Scene, works: Works) -> None:
    """There is no other: its work comes back to it while its workers still go on. No scenario ever has two workers."""
    for pid in now.parts.pids()["runner"][1:]:
        os.kill(pid, signal.SIGSTOP)
    uuids = [now.begin(works.long) for _ in range(2)]
    for uuid in uuids:
        now.under_way(uuid)
    [runner, *others] = now.parts.pids()["runner"]
    with frozen([runner]):
        pause(LONGER_THAN_LEASES_S)
    pause(2.5)
    counts = []
    for _ in range(10):
        counts.append(len(workers_of(runner)))
        pause(0.1)
    for pid in others:
        os.kill(pid, signal.SIGCONT)
    if min(counts) > len(uuids):
        raise broken(4, f"{min(counts)} workers for {len(uuids)} scenarios")
    settled(now)


def runner_drains(now: Scene, works: Works) -> None:
    """While the inbox is behind: what was sent is to be stored before another goes on."""
    for _ in range(3):
        now.under_way(now.begin(works.long))
    with frozen(now.parts.pids()["inbox"]):
        strike(Fault.TERM, Victim.RUNNER, aim(now.parts, Victim.RUNNER, CHANCE), 0)
        pause(3)
    settled(now, costs_nothing=True, left_nothing=True)


def results_are_emptied(now: Scene, works: Works) -> None:
    now.past_is_lost = True
    for work in (works.slow, works.long):
        now.under_way(now.begin(work))
    with frozen(now.parts.pids()["inbox"]):
        pause(1)
        empty(now, RESULTS)
    settled(now)


def commands_are_lost(now: Scene, works: Works) -> None:
    """A deploy, and the stop of what runs: published while no runner reads, and gone by then."""
    now.past_is_lost = True
    runs = now.begin(works.longest)
    now.under_way(runs)
    with frozen(now.parts.pids()["runner"]):
        now.begin(works.slow)
        now.until_shut_down(runs)
        pause(1)
        empty(now, commands_topic("default"))
    wait_until(lambda: now.vidflow.scenario(runs)["state"] == "inactive", "invariant 7: it is stopped", 12)
    settled(now, costs_nothing=True)


def database_is_restored(now: Scene, works: Works) -> None:
    """Under all that runs, to a moment before a scenario's worker died and was followed. (Its rows may be of a lost epoch.)"""
    uuid = now.begin(works.long)
    now.under_way(uuid, frames=20)
    with tempfile.TemporaryDirectory() as folder:
        backup.backup(now.parts.database_url, Path(folder, "backup"), replace=False, say=print)
        for worker in aim(now.parts, Victim.WORKER, CHANCE):
            os.kill(worker, signal.SIGKILL)
        now.under_way(uuid, frames=now.vidflow.scenario(uuid)["frames_stored"] + 20)
        newest = max(decode_result(message.value()).epoch for message in log_of(now.parts.kafka, RESULTS))
        backup.restore(now.parts.database_url, Path(folder, "backup"), replace=True, say=print)
    with now.tables() as tables:
        [(at,)] = tables.execute("SELECT clock_timestamp()").fetchall()
    now.until_settled(SETTLED_S)
    checks.same_frames(
        uuid, now.vidflow.scenario(uuid)["outcome"], now.vidflow.frames(uuid), now.undisturbed[works.long]
    )
    with now.tables() as tables:
        given = tables.execute(
            "SELECT epoch FROM scenario_history WHERE to_state = 'in_startup_processing' AND at > %s", (at,)
        ).fetchall()
    if any(epoch <= newest for (epoch,) in given):
        raise broken(4, f"epochs {given} given out behind {newest}")


def relays_end_while_kafka_stands_still(now: Scene, works: Works) -> None:
    """And it dies then: what lay in its connections is in no log."""
    now.under_way(now.begin(works.slow))
    [broker] = now.parts.pids()["kafka"]
    with frozen([broker]):
        for _ in range(3):
            now.begin(works.sampled)
        pause(0.5)
        for pid in now.parts.pids()["relay"]:
            os.kill(pid, signal.SIGTERM)
        pause(9)
        os.kill(broker, signal.SIGKILL)
    settled(now)


def relays_stand_still(now: Scene, works: Works) -> None:
    """The leader gives a stop again and again meanwhile."""
    uuids = [now.begin(works.long) for _ in range(2)]
    for uuid in uuids:
        now.under_way(uuid)
    with frozen(now.parts.pids()["relay"]):
        for uuid in uuids:
            now.until_shut_down(uuid)
        pause(LONGER_THAN_LEASES_S + 2)
    settled(now, costs_nothing=True, left_nothing=True)


def leader_is_frozen_in_a_transaction(now: Scene, works: Works) -> None:
    """It comes to lead, takes a fenced transaction, and stops there; another must follow all the same."""
    now.begin(works.slow)
    wait_until(lambda: bool(stopped(now)), "a leader stands still in a transaction", SETTLED_S)
    try:
        uuid = now.begin(works.sampled)
        wait_until(lambda: now.vidflow.scenario(uuid)["epoch"] > 0, "invariant 8: another leads, and places", 15)
    finally:
        wake(now)
    wait_until(lambda: wake(now) and now.unfinished() == 0, "all scenarios are inactive", SETTLED_S)
    settled(now)


def stopped(now: Scene) -> list[int]:
    """The orchestrators that stand still."""
    pids = now.parts.pids()["orchestrator"]
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"]


def wake(now: Scene) -> bool:
    """Lets them go on: each orchestrator stands still once."""
    for pid in stopped(now):
        os.kill(pid, signal.SIGCONT)
    return True


def empty(now: Scene, topic: str) -> None:
    """Deletes what the topic holds now, as its retention would."""
    client = admin.client(now.parts.kafka)
    ends = offsets.end_offsets(client, topic)
    places = [TopicPartition(topic, number, end) for number, end in ends.items()]
    for answer in client.delete_records(places).values():
        answer.result()


STOPS: Final = (
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

UNDISTURBED: Final = Case("undisturbed", undisturbed)
SHUT_DOWN: Final = Case("shut down at any moment", shut_down_at_any_moment)
SLOW_LOOKS: Final = Case("the same, a slow leader", shut_down_at_any_moment, (SLOW_LEADER,))
SLOW_WRITES: Final = Case("the same, slow transactions", shut_down_at_any_moment, (SLOW_TRANSACTION,))
INBOX_STILL: Final = Case("inbox frozen", inbox_stands_still)
INBOX_DIES: Final = Case(
    "inbox killed again and again", inbox_dies_often, (), (("VIDFLOW_CRASHPOINTS", "inbox.before_position:12"),)
)
KAFKA_STILL: Final = Case("Kafka frozen", kafka_stands_still)
KAFKA_STILL_LONG: Final = Case("Kafka frozen for 45 s", kafka_stands_still_past_all_patience)
WORKER_DIES: Final = Case("worker killed again and again", worker_dies_often)
POISON: Final = Case("a poisonous frame", frame_is_poisonous)
RUNNER_DIES: Final = Case("runner killed", runner_dies)
RUNNER_STILL: Final = Case("runner frozen", runner_stands_still)
RUNNER_STILL_SLOW: Final = Case("runner frozen, a slow leader", runner_stands_still, (SLOW_LEADER,))
MACHINE_STILL: Final = Case("machine frozen", machine_stands_still)
ONLY_RUNNER_STILL: Final = Case("the only runner frozen", only_runner_stands_still)
RUNNER_DRAINS: Final = Case("runner told to leave, inbox frozen", runner_drains)
RESULTS_EMPTIED: Final = Case("results emptied", results_are_emptied)
COMMANDS_LOST: Final = Case("commands lost", commands_are_lost)
RESTORED: Final = Case("database restored", database_is_restored)
RELAYS_END: Final = Case("relays told to end, Kafka frozen, then killed", relays_end_while_kafka_stands_still)
RELAYS_STILL: Final = Case("relays frozen", relays_stand_still)
LEADER_STILL: Final = Case(
    "leader frozen in a transaction", leader_is_frozen_in_a_transaction, (STOPS,),
    (("VIDFLOW_CRASHPOINTS", "orchestrator.before_commit:4"),),
)  # fmt: skip
