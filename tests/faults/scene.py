"""A whole vidflow of which several parts may die at once, the clients' side of it, and what an undisturbed run of each work saw."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import psycopg
from tests.faults import slow_motion
from tests.faults.works import Work
from tests.integration.embedded import wait_until
from tests.integration.vidflows import READY_S, Vidflow

from vidflow.infra.stopping import Stop
from vidflow.roles.dev import Stack
from vidflow.settings import DevOptions

WHOLE_S: Final = 90.0
SETTLED_S: Final = 180.0
ASK_S: Final = 5.0
SHOWN: Final = 300
TWO_OF_EACH: Final[Mapping[str, int]] = {"runners": 2, "orchestrators": 2, "relays": 2}

Frames = list[dict[str, Any]]


class Parts(Protocol):
    """What a scene needs to know of the processes: a `Stack`, or what takes its place."""

    database_url: str
    kafka: str

    @property
    def url(self) -> str: ...

    def pids(self) -> dict[str, list[int]]: ...


class Scene:
    """The processes, what clients were told, and what an undisturbed run saw."""

    def __init__(self, parts: Parts, said: list[str]) -> None:
        self.parts = parts
        self.said = said
        self.vidflow = Vidflow(parts)  # type: ignore[arg-type]
        self.full = {kind: len(pids) for kind, pids in parts.pids().items()}
        self.born: dict[str, Work] = {}
        """Whatever a client was told that it exists."""
        self.outcomes: dict[str, str] = {}
        """What the answer to a request for a shutdown said."""
        self.undisturbed: dict[Work, Frames] = {}
        self.checked: set[str] = set()
        self.past_is_lost = False
        """Whether Kafka or the database forgot something: the traces of it are not looked for then."""

    def run_undisturbed(self, works: Sequence[Work]) -> None:
        """Runs each work once, before the faults, to compare with."""
        uuids = {work: self.begin(work) for work in works}
        for work, uuid in uuids.items():
            end = self.vidflow.ended(uuid)
            assert (end["outcome"], end["error"]) == ("completed", None)
            self.undisturbed[work] = self.vidflow.frames(uuid)
            assert [frame["frame_number"] for frame in self.undisturbed[work]] == list(range(work.frames))

    def ask(self, work: Work) -> str | None:
        """Asks for a scenario once; None where nobody answered or it was refused for now."""
        body = {"source": str(work.source), "model": work.model, "fps": work.fps}
        try:
            answer = self.vidflow.http.post("/scenario/init", json=body, timeout=ASK_S)
        except httpx.TransportError:
            return None
        if answer.status_code in {429, 503}:
            return None
        assert answer.status_code == 201, answer.text
        uuid = str(answer.json()["scenario_uuid"])
        self.born[uuid] = work
        return uuid

    def begin(self, work: Work) -> str:
        """Asks until a scenario is born, as a client of a service does that may be killed."""
        born: list[str] = []

        def is_born() -> bool:
            uuid = self.ask(work)
            born.extend([uuid] if uuid else [])
            return bool(born)

        wait_until(is_born, "a scenario is born", WHOLE_S)
        return born[0]

    def shut_down(self, uuid: str) -> None:
        """Asks once for its end. The answer counts, where there is one."""
        try:
            answer = self.vidflow.http.post(f"/scenario/{uuid}/shutdown", timeout=ASK_S)
        except httpx.TransportError:
            return
        if answer.status_code == 200:
            self.outcomes[uuid] = answer.json()["outcome"]

    def until_shut_down(self, uuid: str) -> None:
        """Asks until it is answered: a client that got no answer asks again."""

        def answered() -> bool:
            self.shut_down(uuid)
            return uuid in self.outcomes

        wait_until(answered, f"the shutdown of {uuid} is answered", WHOLE_S)

    def under_way(self, uuid: str, frames: int = 5) -> None:
        """Returns once it has stored that many frames, or has ended before one looked."""

        def is_under_way() -> bool:
            scenario = self.vidflow.scenario(uuid)
            return scenario["frames_stored"] > frames or scenario["state"] == "inactive"

        wait_until(is_under_way, f"{uuid} is under way", SETTLED_S)

    def until_whole(self) -> None:
        """Returns once every process runs again and a scenario could run to its end."""
        wait_until(self._is_full, "all processes run again", WHOLE_S)
        wait_until(self._is_ready, "all is ready again", WHOLE_S)

    def until_settled(self, limit_s: float = SETTLED_S) -> None:
        """Returns once every scenario is inactive."""
        wait_until(lambda: self.unfinished() == 0, "all scenarios are inactive", limit_s)

    def unfinished(self) -> int | None:
        """How many scenarios are not inactive; None while the database is away."""
        try:
            with self.tables() as tables:
                [(count,)] = tables.execute("SELECT count(*) FROM scenarios WHERE state <> 'inactive'").fetchall()
        except psycopg.OperationalError:
            return None
        return int(count)

    @contextmanager
    def tables(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.parts.database_url, autocommit=True, connect_timeout=5) as connection:
            yield connection

    def _is_full(self) -> bool:
        now = self.parts.pids()
        return all(len(now.get(kind, ())) >= count for kind, count in self.full.items())

    def _is_ready(self) -> bool:
        try:
            return self.vidflow.http.get("/health/system", timeout=ASK_S).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def scene(
    folder: Path,
    works: Sequence[Work] = (),
    *,
    log: Path | None = None,
    made_by: Callable[..., Stack] = Stack,
    **options: Any,
) -> Iterator[Scene]:
    """A vidflow with two of what there can be two of, ready, each work run once; until the block ends.

    What it said goes to the file `log`, or is shown where the block fails.
    """
    said: list[str] = []

    def show(name: str, line: str) -> None:
        said.append(f"{name}: {line}")

    def say(sentence: str) -> None:
        show("dev", sentence)

    with slow_models():
        stack = made_by(DevOptions(port=0, data_dir=folder, **{**TWO_OF_EACH, **options}), say, show, Stop())
        try:
            stack.start()
            stack.wait_until_ready(READY_S)
            now = Scene(stack, said)
            with now.vidflow.http:
                now.until_whole()
                now.run_undisturbed(works)
                yield now
        except BaseException:
            print("\n".join(said[-SHOWN:]))  # noqa: T201 - pytest shows it with the failure
            raise
        finally:
            stack.stop()
            if log is not None:
                log.write_text("\n".join(said))


@contextmanager
def slow_models() -> Iterator[None]:
    """Lets the roles that are started in the block find the slow model; theirs is this process's environment."""
    with tempfile.TemporaryDirectory(prefix="vidflow-models-") as folder:
        Path(folder).chmod(0o755)
        where = os.pathsep.join(filter(None, [str(slow_motion.install(Path(folder))), os.environ.get("PYTHONPATH")]))
        with environment(PYTHONPATH=where):
            yield


@contextmanager
def environment(**given: str) -> Iterator[None]:
    """Sets variables of this process for as long as the block lasts; what is started in it has them."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            with contextlib.suppress(KeyError):
                del os.environ[name]
            if value is not None:
                os.environ[name] = value
