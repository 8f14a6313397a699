"""Which of the deliberate breaks the fault suite feels: real processes that run the code without the rule, struck as the suite strikes.

One PostgreSQL and one Kafka serve all; each break has a database, topics and roles of its own.
"""

from __future__ import annotations

import compileall
import io
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import psycopg
from tests import clips
from tests.explorer.domain_mutations import DOMAIN_MUTATIONS
from tests.explorer.mutations import ROOT, Mutation, mutated_package
from tests.explorer.statement_mutations import STATEMENT_MUTATIONS
from tests.faults import fault_cases as c
from tests.faults import workloads
from tests.faults.fault_cases import FaultCase, Workloads
from tests.faults.system_under_test import Frames, SystemUnderTest, environment_variables, run_system
from tests.faults.workloads import Workload
from tests.integration import faulty_models
from tests.integration.delivery import recreate_topics

from vidflow.commands.dev import Stack
from vidflow.domain.errors import VidflowError
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.process.stopping import Stop, start_thread

MUTATIONS_BY_RULE = {one.rule: one for one in (*DOMAIN_MUTATIONS, *STATEMENT_MUTATIONS)}
NO_MUTATION: Final = Mutation("no rule: all holds", ())
NO_TORCH: Final = ("roles/runner/forkservers.py", "TORCH_AFTER_S: Final = 3.0", "TORCH_AFTER_S: Final = 1e9")
"""No work here needs it, and each runner would import it for seconds."""


class MutationCases(NamedTuple):
    """A break, and the cases of which one should feel it."""

    mutation: Mutation
    cases: tuple[FaultCase, ...]


MUTATION_CASES: Final = tuple(
    MutationCases(MUTATIONS_BY_RULE[one], cases)
    for one, *cases_of in (
        ("the fence names the holder", c.DATABASE_RESTORED),
        ("a fence in each transaction", c.LEADER_FROZEN),
        ("transaction_timeout below the lease's term", c.LEADER_FROZEN),
        ("a lease that is over is renewed by nobody", c.LEADER_FROZEN),
        ("the api moves the row", c.SHUT_DOWN),
        ("a birth and its message are one statement", c.UNDISTURBED),
        ("a move is written where the scenario is as it was read", c.SLOW_LEADER_CASE),
        ("closed goes with inactive", c.UNDISTURBED),
        ("the resume point is read under the progress row's lock", c.RUNNER_FROZEN_SLOW_LEADER),
        ("no command is given again while a copy waits unpublished", c.RELAYS_FROZEN),
        ("no cursor over ids", c.SLOW_TRANSACTION_CASE),
        ("a backlog passes no row that appears below it", c.SLOW_TRANSACTION_CASE),
        ("a row overtakes none of its key", c.RELAYS_FROZEN),
        ("nothing is removed that was not acknowledged", c.RELAYS_STOPPED),
        ("of a key only what lies before its first failure is removed", c.RELAYS_STOPPED),
        ("the position moves in the transaction that stores the rows", c.INBOX_KILLED),
        ("a position moves from the value that the inbox holds", c.DATABASE_RESTORED),
        ("a partition that was never caught up with says no", c.UNDISTURBED),
        ("complete is said behind the last row alone", c.UNDISTURBED),
        ("caught up before acting on a loss", c.INBOX_FROZEN),
        ("drained waits for caught up", c.INBOX_FROZEN),
        ("every way back waits for the inbox", c.RUNNER_DRAINED),
        ("whole needs next_frame = last + 1, both its nets", c.RESULTS_EMPTIED),
        ("what stands behind a hole is not stored", c.RESULTS_EMPTIED),
        ("a hole of an older epoch is none", c.RESULTS_EMPTIED),
        ("inactive takes no rows", c.MACHINE_FROZEN),
        ("an older epoch stores nothing", c.RUNNER_FROZEN),
        ("attempts restart only past resume_frame", c.POISON_FRAME),
        ("attempts restart where a frame was stored", c.WORKER_KILLED),
        ("ended handed over goes back uncounted", c.RUNNER_DRAINED),
        ("ended cut off goes back uncounted", c.KAFKA_FROZEN_LONG),
        ("stop is given again", c.COMMANDS_LOST),
        ("ended entries stay listed", c.POISON_FRAME),
        ("forget only when unwanted", c.POISON_FRAME),
        ("what runs unwanted is stopped", c.RUNNER_FROZEN),
        ("a newer epoch ends the older one's worker first", c.ONLY_RUNNER_FROZEN),
        ("a draining runner takes no deploy", c.RUNNER_DRAINED),
        ("a draining runner hands its work over", c.RUNNER_DRAINED),
        ("a silent runner is lost", c.RUNNER_KILLED),
        ("a lease runs only while the probes are heard", c.KAFKA_FROZEN),
        ("after an outage every runner has a whole lease anew", c.KAFKA_FROZEN),
        ("30 s of stops end a shutdown", c.SHUT_DOWN),
        ("a shutdown waits out what is not listed yet", c.SHUT_DOWN),
        ("the epoch comes from the clock", c.DATABASE_RESTORED),
        ("an epoch rises also where the clock does not", c.UNDISTURBED),
    )
    for cases in (tuple(cases_of),)
)  # fmt: skip


class SharedServersStack(Stack):
    """The roles alone, by servers that outlive them; what is broken is not waited for at its end."""

    servers: SharedServers

    def __init__(self, *arguments: Any, servers: SharedServers) -> None:
        super().__init__(*arguments)
        self.servers = servers

    def pids(self) -> dict[str, list[int]]:
        return {**super().pids(), "kafka": [self.servers.kafka.pid or 0]}

    def stop(self) -> None:
        self._stop.request()
        for keepers in self._supervisors.values():
            for keeper in keepers:
                if keeper._process is not None:
                    keeper._process.kill()
        super().stop()


class SharedServers:
    """PostgreSQL and Kafka for all breaks."""

    def __init__(self, folder: Path, end: ExitStack) -> None:
        self.postgres = EmbeddedPostgres(folder / "postgres", notify=print, stop=Stop())
        end.callback(self.postgres.stop)
        self.postgres.start()
        self.kafka = EmbeddedKafka(folder / "kafka", notify=print, stop=Stop())
        end.callback(self.kafka.stop)
        self.kafka.start()
        self._stop = Stop()
        keeper = start_thread("keeps Kafka", self._keep_kafka, self._stop)
        end.callback(keeper.join)
        end.callback(self._stop.request)

    def _keep_kafka(self) -> None:
        """Starts it again where a case killed it."""
        while not self._stop.wait(0.2):
            if self.kafka.process is not None and self.kafka.process.poll() is not None:
                self.kafka.start()

    def create_database(self) -> str:
        name = f"broken_{uuid.uuid4().hex}"
        with psycopg.connect(self.postgres.url, autocommit=True) as tables:
            tables.execute(f"CREATE DATABASE {name}")
        url = urlsplit(self.postgres.url)._replace(path=f"/{name}").geturl()
        migrate(url, print)
        return url


class MutationTester:
    """Plays one break after the other; what undisturbed runs of the work saw is known from sound code."""

    def __init__(self, folder: Path, end: ExitStack) -> None:
        self.folder = folder
        self.servers = SharedServers(folder, end)
        self.works = Workloads(
            workloads.slow(folder, 160), workloads.sampled(folder, 40), workloads.slow(folder, 400), workloads.slow(folder, 800),
            Workload(clips.constant_rate(folder / "deadly.mp4"), "segfault", "all", 50),
        )  # fmt: skip
        (folder / "models").mkdir()
        faulty_models.install(folder / "models")
        self.reference_frames: Mapping[Workload, Frames] = {}
        compileall.compile_dir(ROOT / "src", quiet=1)  # once, and not by each process of each break
        with self.run_system(NO_MUTATION, c.UNDISTURBED) as now:
            now.run_references(self.works[:4])
            self.reference_frames = now.reference_frames

    @contextmanager
    def run_system(self, one: Mutation, case: FaultCase) -> Iterator[SystemUnderTest]:
        """Roles that run the code without the rule, with the places where the case lets them be slow or die."""
        recreate_topics(self.servers.kafka.settings)
        url = self.servers.create_database()
        altered = one._replace(changes=(*one.changes, *case.changes, NO_TORCH))
        data = self.folder / uuid.uuid4().hex
        with mutated_package(altered) as source:
            path = f"{source}:{self.folder / 'models'}"
            variables = {"PYTHONPATH": path, "VIDFLOW_ATTEMPTS": str(c.ATTEMPTS), **dict(case.variables)}
            made_by = partial(SharedServersStack, servers=self.servers)
            kafka = self.servers.kafka.settings
            with (
                environment_variables(**variables),
                run_system(data, stack_factory=made_by, database_url=url, kafka=kafka) as now,
            ):
                now.reference_frames = dict(self.reference_frames)
                yield now

    def run_case(self, one: Mutation, case: FaultCase) -> str | None:
        """What the case says of the break; None where all of it holds."""
        try:
            with redirect_stdout(io.StringIO()), self.run_system(one, case) as now:  # a scene that fails shows its log
                case.body(now, self.works)
        except (AssertionError, VidflowError, psycopg.Error) as error:
            return " ".join(str(error).split()) or type(error).__name__
        return None


def select_cases(words: str) -> list[MutationCases]:
    """All, or those whose rule has one of the comma-separated words in it."""
    wanted = [word.strip() for word in words.split(",")]
    return [felt for felt in MUTATION_CASES if any(word in felt.mutation.rule for word in wanted)]


def without_mutations(of_these: Iterable[MutationCases]) -> list[MutationCases]:
    """Each case that is used, with no rule broken."""
    cases = dict.fromkeys(case for felt in of_these for case in felt.cases)
    return [MutationCases(NO_MUTATION, (case,)) for case in cases]


def run_mutation_cases(
    bench: MutationTester, these: Sequence[MutationCases]
) -> Iterator[tuple[MutationCases, FaultCase, str | None, float]]:
    """Each break in its cases until one feels it: the break, the case, what that said, how long it took."""
    for felt in these:
        for case in felt.cases:
            began_s = time.monotonic()
            said = bench.run_case(felt.mutation, case)
            yield felt, case, said, time.monotonic() - began_s
            if said is not None:
                break


def line(felt: MutationCases, case: FaultCase, said: str | None, seconds: float) -> str:
    return f"{felt.mutation.rule:62} {case.name:44} {seconds:5.0f}  {'held' if said is None else said[:150]}"
