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
from tests.explorer.breaks import HERE, Break, broken_code
from tests.explorer.rules import RULES
from tests.explorer.statements import STATEMENTS
from tests.faults import broken_cases as c
from tests.faults import works
from tests.faults.broken_cases import Case, Works
from tests.faults.scene import Frames, Scene, environment, scene
from tests.faults.works import Work
from tests.integration import odd_models
from tests.integration.delivery import remake_topics

from vidflow.commands.dev import Stack
from vidflow.domain.errors import VidflowError
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.process.stopping import Stop, start_thread

of = {one.rule: one for one in (*RULES, *STATEMENTS)}
SOUND: Final = Break("no rule: all holds", ())
NO_TORCH: Final = ("roles/runner/forkservers.py", "TORCH_AFTER_S: Final = 3.0", "TORCH_AFTER_S: Final = 1e9")
"""No work here needs it, and each runner would import it for seconds."""


class Felt(NamedTuple):
    """A break, and the cases of which one should feel it."""

    broken: Break
    cases: tuple[Case, ...]


FELT: Final = tuple(
    Felt(of[one], cases)
    for one, *cases_of in (
        ("the fence names the holder", c.RESTORED),
        ("a fence in each transaction", c.LEADER_STILL),
        ("transaction_timeout below the lease's term", c.LEADER_STILL),
        ("a lease that is over is renewed by nobody", c.LEADER_STILL),
        ("the api moves the row", c.SHUT_DOWN),
        ("a birth and its message are one statement", c.UNDISTURBED),
        ("a move is written where the scenario is as it was read", c.SLOW_LOOKS),
        ("closed goes with inactive", c.UNDISTURBED),
        ("the resume point is read under the progress row's lock", c.RUNNER_STILL_SLOW),
        ("no command is given again while a copy waits unpublished", c.RELAYS_STILL),
        ("no cursor over ids", c.SLOW_WRITES),
        ("a backlog passes no row that appears below it", c.SLOW_WRITES),
        ("a row overtakes none of its key", c.RELAYS_STILL),
        ("nothing is removed that was not acknowledged", c.RELAYS_END),
        ("of a key only what lies before its first failure is removed", c.RELAYS_END),
        ("the position moves in the transaction that stores the rows", c.INBOX_DIES),
        ("a position moves from the value that the inbox holds", c.RESTORED),
        ("a partition that was never caught up with says no", c.UNDISTURBED),
        ("complete is said behind the last row alone", c.UNDISTURBED),
        ("caught up before acting on a loss", c.INBOX_STILL),
        ("drained waits for caught up", c.INBOX_STILL),
        ("every way back waits for the inbox", c.RUNNER_DRAINS),
        ("whole needs next_frame = last + 1, both its nets", c.RESULTS_EMPTIED),
        ("what stands behind a hole is not stored", c.RESULTS_EMPTIED),
        ("a hole of an older epoch is none", c.RESULTS_EMPTIED),
        ("inactive takes no rows", c.MACHINE_STILL),
        ("an older epoch stores nothing", c.RUNNER_STILL),
        ("attempts restart only past resume_frame", c.POISON),
        ("attempts restart where a frame was stored", c.WORKER_DIES),
        ("ended handed over goes back uncounted", c.RUNNER_DRAINS),
        ("ended cut off goes back uncounted", c.KAFKA_STILL_LONG),
        ("stop is given again", c.COMMANDS_LOST),
        ("ended entries stay listed", c.POISON),
        ("forget only when unwanted", c.POISON),
        ("what runs unwanted is stopped", c.RUNNER_STILL),
        ("a newer epoch ends the older one's worker first", c.ONLY_RUNNER_STILL),
        ("a draining runner takes no deploy", c.RUNNER_DRAINS),
        ("a draining runner hands its work over", c.RUNNER_DRAINS),
        ("a silent runner is lost", c.RUNNER_DIES),
        ("a lease runs only while the probes are heard", c.KAFKA_STILL),
        ("after an outage every runner has a whole lease anew", c.KAFKA_STILL),
        ("30 s of stops end a shutdown", c.SHUT_DOWN),
        ("a shutdown waits out what is not listed yet", c.SHUT_DOWN),
        ("the epoch comes from the clock", c.RESTORED),
        ("an epoch rises also where the clock does not", c.UNDISTURBED),
    )
    for cases in (tuple(cases_of),)
)  # fmt: skip


class OnServers(Stack):
    """The roles alone, by servers that outlive them; what is broken is not waited for at its end."""

    servers: Servers

    def __init__(self, *arguments: Any, servers: Servers) -> None:
        super().__init__(*arguments)
        self.servers = servers

    def pids(self) -> dict[str, list[int]]:
        return {**super().pids(), "kafka": [self.servers.kafka.pid or 0]}

    def stop(self) -> None:
        self._stop.request()
        for keepers in self._keepers.values():
            for keeper in keepers:
                if keeper._process is not None:
                    keeper._process.kill()
        super().stop()


class Servers:
    """PostgreSQL and Kafka for all breaks."""

    def __init__(self, folder: Path, end: ExitStack) -> None:
        self.postgres = EmbeddedPostgres(folder / "postgres", say=print, stop=Stop())
        end.callback(self.postgres.stop)
        self.postgres.start()
        self.kafka = EmbeddedKafka(folder / "kafka", say=print, stop=Stop())
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

    def database(self) -> str:
        name = f"broken_{uuid.uuid4().hex}"
        with psycopg.connect(self.postgres.url, autocommit=True) as tables:
            tables.execute(f"CREATE DATABASE {name}")
        url = urlsplit(self.postgres.url)._replace(path=f"/{name}").geturl()
        migrate(url, print)
        return url


class Bench:
    """Plays one break after the other; what undisturbed runs of the work saw is known from sound code."""

    def __init__(self, folder: Path, end: ExitStack) -> None:
        self.folder = folder
        self.servers = Servers(folder, end)
        self.works = Works(
            works.slow(folder, 160), works.sampled(folder, 40), works.slow(folder, 400), works.slow(folder, 800),
            Work(clips.constant_rate(folder / "deadly.mp4"), "deadly", "all", 50),
        )  # fmt: skip
        (folder / "models").mkdir()
        odd_models.install(folder / "models")
        self.undisturbed: Mapping[Work, Frames] = {}
        compileall.compile_dir(HERE / "src", quiet=1)  # once, and not by each process of each break
        with self.scene(SOUND, c.UNDISTURBED) as now:
            now.run_undisturbed(self.works[:4])
            self.undisturbed = now.undisturbed

    @contextmanager
    def scene(self, one: Break, case: Case) -> Iterator[Scene]:
        """Roles that run the code without the rule, with the places where the case lets them be slow or die."""
        remake_topics(self.servers.kafka.settings)
        url = self.servers.database()
        altered = one._replace(changes=(*one.changes, *case.changes, NO_TORCH))
        data = self.folder / uuid.uuid4().hex
        with broken_code(altered) as source:
            path = f"{source}:{self.folder / 'models'}"
            variables = {"PYTHONPATH": path, "VIDFLOW_ATTEMPTS": str(c.ATTEMPTS), **dict(case.variables)}
            made_by = partial(OnServers, servers=self.servers)
            kafka = self.servers.kafka.settings
            with environment(**variables), scene(data, made_by=made_by, database_url=url, kafka=kafka) as now:
                now.undisturbed = dict(self.undisturbed)
                yield now

    def feels(self, one: Break, case: Case) -> str | None:
        """What the case says of the break; None where all of it holds."""
        try:
            with redirect_stdout(io.StringIO()), self.scene(one, case) as now:  # a scene that fails shows its log
                case.body(now, self.works)
        except (AssertionError, VidflowError, psycopg.Error) as error:
            return " ".join(str(error).split()) or type(error).__name__
        return None


def chosen(words: str) -> list[Felt]:
    """All, or those whose rule has one of the comma-separated words in it."""
    wanted = [word.strip() for word in words.split(",")]
    return [felt for felt in FELT if any(word in felt.broken.rule for word in wanted)]


def sound(of_these: Iterable[Felt]) -> list[Felt]:
    """Each case that is used, with no rule broken."""
    cases = dict.fromkeys(case for felt in of_these for case in felt.cases)
    return [Felt(SOUND, (case,)) for case in cases]


def play(bench: Bench, these: Sequence[Felt]) -> Iterator[tuple[Felt, Case, str | None, float]]:
    """Each break in its cases until one feels it: the break, the case, what that said, how long it took."""
    for felt in these:
        for case in felt.cases:
            began_s = time.monotonic()
            said = bench.feels(felt.broken, case)
            yield felt, case, said, time.monotonic() - began_s
            if said is not None:
                break


def line(felt: Felt, case: Case, said: str | None, seconds: float) -> str:
    return f"{felt.broken.rule:62} {case.name:44} {seconds:5.0f}  {'held' if said is None else said[:150]}"
