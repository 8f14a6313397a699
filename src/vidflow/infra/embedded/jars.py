"""Fetch Kafka's jars once, by jgo, into a cache folder and check them against the list in kafka.jars.

The list has the name, size and SHA-256 of each jar, so that every machine runs the same files, even after a new release of a
dependency. `python -m vidflow.infra.embedded.jars` resolves COORDINATE and prints a new list, for an upgrade.
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
    # Without an explicit kafka-clients, Maven resolves an older version, with which the broker fails.
    "org.apache.kafka:kafka_2.13:4.3.0+org.apache.kafka:kafka-clients:4.3.0+org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
)
JAR_LIST: Final = Path(__file__).with_name("kafka.jars")

_PARALLEL_DOWNLOADS: Final = 8
_NOTIFY_INTERVAL_S: Final = 1.0
_LOCK_POLL_S: Final = 0.1
_BYTES_PER_MB: Final = 1_000_000


class Jar(msgspec.Struct, frozen=True):
    """An entry of the list. `group`, `artifact` and `version` are its Maven coordinates."""

    group: str
    artifact: str
    version: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The name of its file, in the registry and in the cache."""
        return f"{self.artifact}-{self.version}.jar"


Fetch = Callable[[Jar, Path], Path]
"""Downloads a jar to a path in a scratch folder and returns the path. Called from several threads."""


def parse_jar_list(text: str) -> tuple[Jar, ...]:
    """Parse a list with a line `group:artifact:version size sha256` for each jar. Raises ValueError for any other line."""
    jars = []
    for line in text.splitlines():
        name, size, sha256 = line.split()
        group, artifact, version = name.split(":")
        jars.append(Jar(group, artifact, version, int(size), sha256))
    return tuple(jars)


def cache_folder(path: str | Path | None = None) -> Path:
    """Return the folder for downloaded files: `path`, or vidflow's folder in the user's cache."""
    return Path(path or platformdirs.user_cache_dir("vidflow"))


def ensure_kafka_jars(cache: Path, notify: Notify, stop: Stop) -> list[Path]:
    """Return the files of Kafka's class path, fetching those that the cache lacks.

    Raises Unavailable if a download fails, MissingExtra if jgo is not installed, StartCancelled on a stop.
    """
    return ensure_jars(parse_jar_list(JAR_LIST.read_text()), cache, _fetch_with_jgo, notify, stop)


def ensure_jars(jars: tuple[Jar, ...], cache: Path, fetch: Fetch, notify: Notify, stop: Stop) -> list[Path]:
    """Return the jars' files in `cache`, downloading them with `fetch` if they are missing.

    The name of their folder has a hash of the list. The folder is renamed to it after all jars were checked, so that the remains
    of a crash are never used. If another process is fetching, this one waits for it.
    """
    folder = cache / f"kafka-{_digest(jars)}"
    if not _has_all_jars(folder, jars):
        cache.mkdir(parents=True, exist_ok=True)
        with _acquire_fetch_lock(cache / f"{folder.name}.lock", notify, stop):
            if not _has_all_jars(folder, jars):  # another process may have fetched them meanwhile
                _populate_folder(folder, jars, fetch, notify, stop)
    return [folder / jar.file_name for jar in jars]


def _digest(jars: tuple[Jar, ...]) -> str:
    return hashlib.sha256(" ".join(jar.sha256 for jar in jars).encode()).hexdigest()[:12]


def _has_all_jars(folder: Path, jars: tuple[Jar, ...]) -> bool:
    """Return whether each jar exists with the right size. Its hash was checked when it was fetched."""
    try:
        return all((folder / jar.file_name).stat().st_size == jar.size_bytes for jar in jars)
    except FileNotFoundError:
        return False


def _acquire_fetch_lock(path: Path, notify: Notify, stop: Stop) -> filelock.BaseFileLock:
    """Wait for the lock on fetching and return it acquired. The system releases it if its holder dies."""
    lock = filelock.FileLock(path)
    notified = False
    while not stop.requested:
        try:
            return lock.acquire(timeout=0).lock
        except filelock.Timeout:
            if not notified:
                notify("waiting for another process that fetches Kafka's jars")
                notified = True
            stop.wait(_LOCK_POLL_S)
    raise StartCancelled("Waiting for Kafka's jars was cancelled by a stop request.")


def _populate_folder(folder: Path, jars: tuple[Jar, ...], fetch: Fetch, notify: Notify, stop: Stop) -> None:
    for leftover in folder.parent.glob(f"{folder.name}.new-*"):  # of a crashed process, because we hold the lock
        shutil.rmtree(leftover)
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.new-", dir=folder.parent))
    try:
        complete = scratch / "complete"
        complete.mkdir()
        _fetch_all(jars, scratch, complete, fetch, notify, stop)
        shutil.rmtree(folder, ignore_errors=True)  # if it exists, it is incomplete
        complete.rename(folder)
    finally:
        shutil.rmtree(scratch)


def _fetch_all(jars: tuple[Jar, ...], scratch: Path, target: Path, fetch: Fetch, notify: Notify, stop: Stop) -> None:
    """Fetch several jars at once and report progress each second. The first failure or a stop ends all downloads."""
    abandoned = threading.Event()

    def fetch_one(jar: Jar) -> int:
        if not abandoned.is_set():
            _verify_checksum(jar, fetch(jar, scratch)).rename(target / jar.file_name)
        return jar.size_bytes

    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS, thread_name_prefix="jar") as pool:
        pending = {pool.submit(fetch_one, jar) for jar in jars}
        done: set[Future[int]] = set()
        try:
            while pending:
                notify(_format_progress(done, len(jars), sum(jar.size_bytes for jar in jars)))
                ended, pending = wait(pending, timeout=_NOTIFY_INTERVAL_S)
                done |= ended
                _raise_first(ended)
                if stop.requested:
                    raise StartCancelled("Fetching Kafka's jars was cancelled by a stop request.")
        finally:
            abandoned.set()
    notify(_format_progress(done, len(jars), sum(jar.size_bytes for jar in jars)))


def _format_progress(done: set[Future[int]], count: int, size_bytes: int) -> str:
    fetched_mb = sum(future.result() for future in done) / _BYTES_PER_MB
    return f"fetching Kafka's jars: {len(done)} of {count}, {fetched_mb:.0f} of {size_bytes / _BYTES_PER_MB:.0f} MB"


def _raise_first(ended: Iterable[Future[int]]) -> None:
    for future in ended:
        future.result()


def _verify_checksum(jar: Jar, file: Path) -> Path:
    with file.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if actual != jar.sha256:
        raise Unavailable(
            f"{jar.file_name} has SHA-256 {actual[:12]}… instead of {jar.sha256[:12]}…. "
            "A proxy may have changed it. Try again, or from another network."
        )
    return file


def _fetch_with_jgo(jar: Jar, scratch: Path) -> Path:
    """Download a jar with jgo. Its cache is in `scratch`, because jgo would trust an incomplete file in its usual cache."""
    component = _maven(scratch / "maven").project(jar.group, jar.artifact).at_version(jar.version)
    try:
        return Path(component.artifact().resolve())
    except (OSError, RuntimeError) as error:  # errors of requests are OSErrors, jgo's own are RuntimeErrors
        raise Unavailable(
            f"Kafka's {jar.file_name} cannot be fetched ({type(error).__name__}). Connect this machine to the network "
            "for this one time, or use a running Kafka (--kafka, VIDFLOW_KAFKA)."
        ) from error


def _maven(repository: Path) -> Any:  # noqa: ANN401 - a type of jgo, which is imported only for a download
    try:
        from jgo.maven import MavenContext  # noqa: PLC0415 - takes half a second, and is needed once per machine
    except ImportError as error:
        raise MissingExtra(
            f"Kafka's jars are fetched by jgo, which is missing. {format_install_hint('embedded')}."
        ) from error
    return MavenContext(repo_cache=repository)


def _resolve_list() -> Iterable[str]:
    """Yield the lines of the list for COORDINATE as Maven resolves it now."""
    from jgo.parse import Endpoint  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        maven = _maven(Path(scratch))
        requested = [maven.create_dependency(coordinate) for coordinate in Endpoint.parse(COORDINATE).coordinates]
        direct, transitive = maven.resolver.resolve(requested)
        for dependency in {*direct, *(each for each in transitive if each.scope in {"compile", "runtime"})}:
            file = Path(dependency.artifact.resolve())
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            coordinates = f"{dependency.groupId}:{dependency.artifactId}:{dependency.version}"
            yield f"{coordinates} {file.stat().st_size} {sha256}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(sorted(_resolve_list())) + "\n")
