"""Run the mutations in real processes under real faults, to see which of them the fault suite catches.

All mutations share one PostgreSQL and one Kafka. Each has its own database, topics and roles.
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

MUTATIONS_BY_RULE = {mutation.rule: mutation for mutation in (*DOMAIN_MUTATIONS, *STATEMENT_MUTATIONS)}
NO_MUTATION: Final = Mutation("none", ())
NO_TORCH: Final = ("roles/runner/forkservers.py", "TORCH_AFTER_S: Final = 3.0", "TORCH_AFTER_S: Final = 1e9")
"""Keep runners from importing torch, which takes seconds and which no workload here needs."""


class MutationCases(NamedTuple):
    """A mutation, and the fault cases of which at least one should fail."""

    mutation: Mutation
    cases: tuple[FaultCase, ...]


MUTATION_CASES: Final = tuple(
    MutationCases(MUTATIONS_BY_RULE[rule], tuple(cases))
    for rule, *cases in (
        ("the fence checks the holder", c.DATABASE_RESTORED),
        ("a fence in every transaction", c.LEADER_FROZEN),
        ("transaction_timeout is shorter than the lease", c.LEADER_FROZEN),
        ("an expired lease cannot be renewed", c.LEADER_FROZEN),
        ("the API writes the transition it reports", c.SHUT_DOWN),
        ("a scenario and its message are created in one statement", c.UNDISTURBED),
        ("a transition is written only to a row that is unchanged", c.SLOW_LEADER_CASE),
        ("closed is set together with inactive", c.UNDISTURBED),
        ("the resume point is read under the progress row's lock", c.RUNNER_FROZEN_SLOW_LEADER),
        ("no command is sent again while a copy waits unpublished", c.RELAYS_FROZEN),
        ("no cursor over ids", c.SLOW_TRANSACTION_CASE),
        ("a backlog skips no row that appears below it", c.SLOW_TRANSACTION_CASE),
        ("a row overtakes no row of its key", c.RELAYS_FROZEN),
        ("only acknowledged rows are removed", c.RELAYS_STOPPED),
        ("only rows before the first failure of their key are removed", c.RELAYS_STOPPED),
        ("the position moves in the transaction that stores the rows", c.INBOX_KILLED),
        ("a position moves only from the value the inbox holds", c.DATABASE_RESTORED),
        ("a partition that was never read is not caught up", c.UNDISTURBED),
        ("complete is reported only after the last row", c.UNDISTURBED),
        ("a loss is acted on only after the inbox has caught up", c.INBOX_FROZEN),
        ("a shutdown completes only after the inbox has caught up", c.INBOX_FROZEN),
        ("every requeue waits for the inbox", c.RUNNER_DRAINED),
        ("complete requires next_frame = last + 1, both checks", c.RESULTS_EMPTIED),
        ("results after a hole are not stored", c.RESULTS_EMPTIED),
        ("a hole of an older epoch is ignored", c.RESULTS_EMPTIED),
        ("an inactive scenario stores no rows", c.MACHINE_FROZEN),
        ("an older epoch stores nothing", c.RUNNER_FROZEN),
        ("attempts are reset only by frames past resume_frame", c.POISON_FRAME),
        ("attempts are reset when a frame was stored", c.WORKER_KILLED),
        ("end reason handed_over costs no attempt", c.RUNNER_DRAINED),
        ("end reason cut_off costs no attempt", c.KAFKA_FROZEN_LONG),
        ("a stop is sent again", c.COMMANDS_LOST),
        ("ended entries stay listed until forgotten", c.POISON_FRAME),
        ("only unwanted entries are forgotten", c.POISON_FRAME),
        ("unwanted work is stopped", c.RUNNER_FROZEN),
        ("a newer epoch ends the older epoch's worker first", c.ONLY_RUNNER_FROZEN),
        ("a draining runner takes no deploy", c.RUNNER_DRAINED),
        ("a draining runner hands over its work", c.RUNNER_DRAINED),
        ("a silent runner is declared lost", c.RUNNER_KILLED),
        ("a runner's lease runs only while probes are received", c.KAFKA_FROZEN),
        ("after an outage every runner gets a full lease", c.KAFKA_FROZEN),
        ("a shutdown ends after 30 s of stops", c.SHUT_DOWN),
        ("a shutdown does not end while its entry is not listed yet", c.SHUT_DOWN),
        ("an epoch comes from the clock", c.DATABASE_RESTORED),
        ("an epoch rises even if the clock does not", c.UNDISTURBED),
    )
)  # fmt: skip


class SharedServersStack(Stack):
    """The roles only, with servers that outlive them. On stop, the roles are killed without a grace period."""

    servers: SharedServers

    def __init__(self, *arguments: Any, servers: SharedServers) -> None:
        super().__init__(*arguments)
        self.servers = servers

    def pids(self) -> dict[str, list[int]]:
        return {**super().pids(), "kafka": [self.servers.kafka.pid or 0]}

    def stop(self) -> None:
        self._stop.request()
        for supervisors in self._supervisors.values():
            for supervisor in supervisors:
                if supervisor._process is not None:
                    supervisor._process.kill()
        super().stop()


class SharedServers:
    """PostgreSQL and Kafka for all mutations."""

    def __init__(self, folder: Path, exit_stack: ExitStack) -> None:
        self.postgres = EmbeddedPostgres(folder / "postgres", notify=print, stop=Stop())
        exit_stack.callback(self.postgres.stop)
        self.postgres.start()
        self.kafka = EmbeddedKafka(folder / "kafka", notify=print, stop=Stop())
        exit_stack.callback(self.kafka.stop)
        self.kafka.start()
        self._stop = Stop()
        thread = start_thread("Kafka supervisor", self._restart_kafka, self._stop)
        exit_stack.callback(thread.join)
        exit_stack.callback(self._stop.request)

    def _restart_kafka(self) -> None:
        """Start Kafka again whenever a case has killed it."""
        while not self._stop.wait(0.2):
            if self.kafka.process is not None and self.kafka.process.poll() is not None:
                self.kafka.start()

    def create_database(self) -> str:
        name = f"mutation_{uuid.uuid4().hex}"
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        url = urlsplit(self.postgres.url)._replace(path=f"/{name}").geturl()
        migrate(url, print)
        return url


class MutationTester:
    """Run fault cases with mutations. The reference frames come from the code without a mutation."""

    def __init__(self, folder: Path, exit_stack: ExitStack) -> None:
        self.folder = folder
        self.servers = SharedServers(folder, exit_stack)
        self.works = Workloads(
            workloads.slow(folder, 160), workloads.sampled(folder, 40), workloads.slow(folder, 400), workloads.slow(folder, 800),
            Workload(clips.constant_rate(folder / "crashing.mp4"), "segfault", "all", 50),
        )  # fmt: skip
        (folder / "models").mkdir()
        faulty_models.install(folder / "models")
        self.reference_frames: Mapping[Workload, Frames] = {}
        compileall.compile_dir(ROOT / "src", quiet=1)  # once, and not in each process of each mutation
        with self.run_system(NO_MUTATION, c.UNDISTURBED) as system:
            system.run_references(self.works[:4])
            self.reference_frames = system.reference_frames

    @contextmanager
    def run_system(self, mutation: Mutation, case: FaultCase) -> Iterator[SystemUnderTest]:
        """Run roles from a copy of the code with the changes of the mutation and of the case."""
        recreate_topics(self.servers.kafka.settings)
        url = self.servers.create_database()
        changed = mutation._replace(changes=(*mutation.changes, *case.changes, NO_TORCH))
        data = self.folder / uuid.uuid4().hex
        with mutated_package(changed) as source:
            path = f"{source}:{self.folder / 'models'}"
            variables = {"PYTHONPATH": path, "VIDFLOW_ATTEMPTS": str(c.ATTEMPTS), **dict(case.variables)}
            stack_factory = partial(SharedServersStack, servers=self.servers)
            kafka = self.servers.kafka.settings
            with (
                environment_variables(**variables),
                run_system(data, stack_factory=stack_factory, database_url=url, kafka=kafka) as system,
            ):
                system.reference_frames = dict(self.reference_frames)
                yield system

    def run_case(self, mutation: Mutation, case: FaultCase) -> str | None:
        """Run the case with the mutation. Return the error of the check that failed, or None if all checks hold."""
        try:
            # A system that fails prints its log, which is not wanted here.
            with redirect_stdout(io.StringIO()), self.run_system(mutation, case) as system:
                case.body(system, self.works)
        except (AssertionError, VidflowError, psycopg.Error) as error:
            return " ".join(str(error).split()) or type(error).__name__
        return None


def select_cases(words: str) -> list[MutationCases]:
    """Return the mutations whose rule contains one of the comma-separated words. An empty string selects all."""
    wanted = [word.strip() for word in words.split(",")]
    return [tested for tested in MUTATION_CASES if any(word in tested.mutation.rule for word in wanted)]


def without_mutations(selected: Iterable[MutationCases]) -> list[MutationCases]:
    """Return each fault case used by the selected mutations, without a mutation."""
    cases = dict.fromkeys(case for tested in selected for case in tested.cases)
    return [MutationCases(NO_MUTATION, (case,)) for case in cases]


def run_mutation_cases(
    tester: MutationTester, selected: Sequence[MutationCases]
) -> Iterator[tuple[MutationCases, FaultCase, str | None, float]]:
    """Run each mutation in its cases until one fails. Yield the mutation, the case, the failure or None, and the seconds."""
    for tested in selected:
        for case in tested.cases:
            started_s = time.monotonic()
            failure = tester.run_case(tested.mutation, case)
            yield tested, case, failure, time.monotonic() - started_s
            if failure is not None:
                break


def line(tested: MutationCases, case: FaultCase, failure: str | None, seconds: float) -> str:
    return f"{tested.mutation.rule:62} {case.name:44} {seconds:5.0f}  {'held' if failure is None else failure[:150]}"
