"""Kafka's jars: fetched once by jgo into a cache folder, checked against the list that lies beside this module (kafka.jars).

The list names each jar, its size and its SHA-256, so that every machine runs the same bytes, and a newer release of some
dependency changes nothing. `python -m vidflow.infra.embedded.jars` resolves COORDINATE anew and prints the list for another version.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

import filelock
import msgspec
import platformdirs

from vidflow.domain.errors import MissingExtra, Unavailable, format_install_hint
from vidflow.infra.embedded.child_process import Notify, StartCancelled
from vidflow.infra.process.stopping import Stop

COORDINATE: Final = (
    # Without the clients named, older ones are resolved and the broker dies.
    "org.apache.kafka:kafka_2.13:4.3.0+org.apache.kafka:kafka-clients:4.3.0+org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
)
JAR_LIST: Final = Path(__file__).with_name("kafka.jars")

_DOWNLOADS_AT_ONCE: Final = 8
_NOTIFY_INTERVAL_S: Final = 1.0
_LOCK_POLL_S: Final = 0.1
_BYTES_PER_MB: Final = 1_000_000


class Jar(msgspec.Struct, frozen=True):
    """A jar of the list: group, artifact and version as Maven names them."""

    group: str
    artifact: str
    version: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """How its file is called, at the registry and in the cache."""
        return f"{self.artifact}-{self.version}.jar"


Fetch = Callable[[Jar, Path], Path]
"""Brings a jar to somewhere below a scratch folder and returns where. Called from several threads."""


def parse_jar_list(text: str) -> tuple[Jar, ...]:
    """The jars of a list: `group:artifact:version size sha256` a line. Raises ValueError for anything else."""
    jars = []
    for line in text.splitlines():
        name, size, sha256 = line.split()
        group, artifact, version = name.split(":")
        jars.append(Jar(group, artifact, version, int(size), sha256))
    return tuple(jars)


def cache_folder(path: str | Path | None = None) -> Path:
    """Where what was fetched is kept: the given folder, or the user's cache folder by the habits of the system."""
    return Path(path or platformdirs.user_cache_dir("vidflow"))


def ensure_kafka_jars(cache: Path, notify: Notify, stop: Stop) -> list[Path]:
    """The files of Kafka's class path, fetched now where the cache lacks them.

    Raises Unavailable where they cannot be fetched, MissingExtra without jgo, GivenUp at a stop.
    """
    return ensure_jars(parse_jar_list(JAR_LIST.read_text()), cache, _fetch_with_jgo, notify, stop)


def ensure_jars(jars: tuple[Jar, ...], cache: Path, fetch: Fetch, notify: Notify, stop: Stop) -> list[Path]:
    """The jars' files below `cache`, by way of `fetch` where they are missing.

    The folder carries the list's hash in its name, and gets that name by one rename once every jar in it was checked: what a
    crash leaves behind is never taken for whole. A process that comes while another one fetches waits for it.
    """
    folder = cache / f"kafka-{_digest(jars)}"
    if not _has_all_jars(folder, jars):
        cache.mkdir(parents=True, exist_ok=True)
        with _acquire_fetch_lock(cache / f"{folder.name}.lock", notify, stop):
            if not _has_all_jars(folder, jars):  # another process may have made it meanwhile
                _populate_folder(folder, jars, fetch, notify, stop)
    return [folder / jar.file_name for jar in jars]


def _digest(jars: tuple[Jar, ...]) -> str:
    return hashlib.sha256(" ".join(jar.sha256 for jar in jars).encode()).hexdigest()[:12]


def _has_all_jars(folder: Path, jars: tuple[Jar, ...]) -> bool:
    """Whether each jar is there with its size: the hash was checked when the folder was made."""
    try:
        return all((folder / jar.file_name).stat().st_size == jar.size_bytes for jar in jars)
    except FileNotFoundError:
        return False


def _acquire_fetch_lock(path: Path, say: Notify, stop: Stop) -> filelock.BaseFileLock:
    """The lock of who fetches, held when it is returned; the system frees it when its holder dies."""
    lock = filelock.FileLock(path)
    told = False
    while not stop.requested:
        try:
            return lock.acquire(timeout=0).lock
        except filelock.Timeout:
            if not told:
                say("another process fetches Kafka's jars: waiting for it")
                told = True
            stop.wait(_LOCK_POLL_S)
    raise StartCancelled("Kafka's jars were not waited for: a stop was asked for")


def _populate_folder(folder: Path, jars: tuple[Jar, ...], fetch: Fetch, say: Notify, stop: Stop) -> None:
    for leftover in folder.parent.glob(f"{folder.name}.new-*"):  # of a crash: the lock is ours
        shutil.rmtree(leftover)
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.new-", dir=folder.parent))
    try:
        made = scratch / "made"
        made.mkdir()
        _fetch_all(jars, scratch, made, fetch, say, stop)
        shutil.rmtree(folder, ignore_errors=True)  # one that is not whole
        made.rename(folder)
    finally:
        shutil.rmtree(scratch)


def _fetch_all(jars: tuple[Jar, ...], scratch: Path, made: Path, fetch: Fetch, say: Notify, stop: Stop) -> None:
    """Fetches several at once, and says each second how far it is. The first failure or a stop ends it."""
    abandoned = threading.Event()

    def one(jar: Jar) -> int:
        if not abandoned.is_set():
            _verify_checksum(jar, fetch(jar, scratch)).rename(made / jar.file_name)
        return jar.size_bytes

    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="jar") as pool:
        waiting = {pool.submit(one, jar) for jar in jars}
        done: set[Future[int]] = set()
        try:
            while waiting:
                say(_format_progress(done, len(jars), sum(jar.size_bytes for jar in jars)))
                ended, waiting = wait(waiting, timeout=_NOTIFY_INTERVAL_S)
                done |= ended
                _raise_first(ended)
                if stop.requested:
                    raise StartCancelled("Kafka's jars were not fetched: a stop was asked for")
        finally:
            abandoned.set()
    say(_format_progress(done, len(jars), sum(jar.size_bytes for jar in jars)))


def _format_progress(done: set[Future[int]], count: int, size_bytes: int) -> str:
    have = sum(each.result() for each in done) / _BYTES_PER_MB
    return f"fetching Kafka's jars: {len(done)} of {count}, {have:.0f} of {size_bytes / _BYTES_PER_MB:.0f} MB"


def _raise_first(ended: Iterable[Future[int]]) -> None:
    for each in ended:
        each.result()


def _verify_checksum(jar: Jar, file: Path) -> Path:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != jar.sha256:
        raise Unavailable(
            f"{jar.file_name} is not the file it should be (SHA-256 {found[:12]}…, not {jar.sha256[:12]}…): "
            "a proxy may have changed it; try again, or from another network"
        )
    return file


def _fetch_with_jgo(jar: Jar, scratch: Path) -> Path:
    """Fetches from where jgo looks by default. Its own cache would believe in half a file, so it gets a scratch folder."""
    component = _maven(scratch / "maven").project(jar.group, jar.artifact).at_version(jar.version)
    try:
        return Path(component.artifact().resolve())
    except (OSError, RuntimeError) as error:  # requests' errors are OSErrors; jgo's own a RuntimeError
        raise Unavailable(
            f"{jar.file_name} of Kafka cannot be fetched ({type(error).__name__}): connect this machine to the network "
            "for this once, or give a Kafka that runs already (--kafka, VIDFLOW_KAFKA)"
        ) from error


def _maven(repository: Path) -> Any:  # noqa: ANN401 - jgo's own type, imported only where jars are fetched
    try:
        from jgo.maven import MavenContext  # noqa: PLC0415 - half a second, and needed once a machine
    except ImportError as error:
        raise MissingExtra(f"Kafka's jars are fetched by jgo: {format_install_hint('embedded')}") from error
    return MavenContext(repo_cache=repository)


def _resolve_list() -> Iterable[str]:
    """The list for COORDINATE as Maven resolves it today."""
    from jgo.parse import Endpoint  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        maven = _maven(Path(scratch))
        wanted = [maven.create_dependency(each) for each in Endpoint.parse(COORDINATE).coordinates]
        named, more = maven.resolver.resolve(wanted)
        for each in {*named, *(each for each in more if each.scope in {"compile", "runtime"})}:
            file = Path(each.artifact.resolve())
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            yield f"{each.groupId}:{each.artifactId}:{each.version} {file.stat().st_size} {sha256}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(sorted(_resolve_list())) + "\n")
