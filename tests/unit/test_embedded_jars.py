"""Kafka's jars in the cache: complete or absent, verified, and fetched by one process at a time."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vidflow.domain.errors import Unavailable
from vidflow.infra.embedded.child_process import StartCancelled
from vidflow.infra.embedded.jars import JAR_LIST, Jar, ensure_jars, parse_jar_list
from vidflow.infra.process.stopping import Stop


def jar_of(artifact: str, content: bytes) -> Jar:
    return Jar("org.example", artifact, "1.0", len(content), hashlib.sha256(content).hexdigest())


CONTENTS = {"alpha": b"first jar", "beta": b"second, longer jar"}
JARS = tuple(jar_of(artifact, content) for artifact, content in CONTENTS.items())


class Registry:
    """A source of jars with fixed contents. It records the requests."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.requested: list[str] = []

    def fetch(self, jar: Jar, scratch: Path) -> Path:
        self.requested.append(jar.artifact)
        if jar.artifact not in self.contents:
            raise Unavailable(f"{jar.file_name} cannot be fetched")
        file = scratch / f"fetched-{jar.file_name}"
        file.write_bytes(self.contents[jar.artifact])
        return file


def provide_jars(cache: Path, registry: Registry, *, messages: list[str] | None = None) -> list[Path]:
    return ensure_jars(JARS, cache, registry.fetch, (messages if messages is not None else []).append, Stop())


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def test_the_jar_list_has_46_jars_with_kafka_its_clients_and_a_logger() -> None:
    jars = parse_jar_list(JAR_LIST.read_text())
    assert len(jars) == 46
    assert {"kafka_2.13-4.3.0.jar", "kafka-clients-4.3.0.jar", "log4j-slf4j-impl-2.25.4.jar"} <= {
        jar.file_name for jar in jars
    }
    assert all(len(jar.sha256) == 64 for jar in jars)


def test_a_cached_jar_is_not_fetched_again(tmp_path: Path) -> None:
    registry = Registry(CONTENTS)
    first = provide_jars(tmp_path, registry)
    assert [file.read_bytes() for file in first] == list(CONTENTS.values())
    assert provide_jars(tmp_path, registry) == first
    assert sorted(registry.requested) == ["alpha", "beta"]


def test_progress_messages_count_up_to_all_jars(tmp_path: Path) -> None:
    messages: list[str] = []
    provide_jars(tmp_path, Registry(CONTENTS), messages=messages)
    assert messages[0].startswith("fetching Kafka's jars: 0 of 2")
    assert messages[-1].startswith("fetching Kafka's jars: 2 of 2")


def test_a_jar_with_the_wrong_contents_is_refused_by_name_and_nothing_is_kept(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"beta-1\.0\.jar has SHA-256 .* instead of"):
        provide_jars(tmp_path, Registry({**CONTENTS, "beta": b"something else"}))
    assert folders(tmp_path) == []


def test_after_a_failed_fetch_nothing_is_kept_and_the_next_start_succeeds(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="beta"):
        provide_jars(tmp_path, Registry({"alpha": CONTENTS["alpha"]}))
    assert folders(tmp_path) == []
    assert all(file.exists() for file in provide_jars(tmp_path, Registry(CONTENTS)))


def test_a_missing_or_truncated_jar_is_fetched_again(tmp_path: Path) -> None:
    alpha, beta = provide_jars(tmp_path, Registry(CONTENTS))
    alpha.unlink()
    assert provide_jars(tmp_path, Registry(CONTENTS))[0].exists()
    beta.write_bytes(b"half")
    assert provide_jars(tmp_path, Registry(CONTENTS))[1].read_bytes() == CONTENTS["beta"]


def test_leftovers_of_a_crash_are_not_used_and_are_removed(tmp_path: Path) -> None:
    [folder] = {file.parent for file in provide_jars(tmp_path, Registry(CONTENTS))}
    leftover = folder.rename(tmp_path / f"{folder.name}.new-crashed")
    registry = Registry(CONTENTS)
    provide_jars(tmp_path, registry)
    assert sorted(registry.requested) == ["alpha", "beta"]
    assert not leftover.exists()


def test_of_two_concurrent_callers_one_fetches_and_the_other_reports_that_it_waits(tmp_path: Path) -> None:
    registry, messages = Registry(CONTENTS), list[str]()
    begun, waiting = threading.Event(), threading.Event()

    def fetch_slowly(jar: Jar, scratch: Path) -> Path:
        begun.set()
        assert waiting.wait(10), "the second caller did not report that it waits"
        return registry.fetch(jar, scratch)

    def record_message(message: str) -> None:
        messages.append(message)
        waiting.set()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(ensure_jars, JARS, tmp_path, fetch_slowly, print, Stop())
        assert begun.wait(10)
        second = pool.submit(ensure_jars, JARS, tmp_path, fetch_slowly, record_message, Stop())
        assert first.result(10) == second.result(10)
    assert sorted(registry.requested) == ["alpha", "beta"]
    assert messages == ["waiting for another process that fetches Kafka's jars"]


def test_a_stop_cancels_the_fetch_and_nothing_is_kept(tmp_path: Path) -> None:
    stop = Stop()

    def fetch_and_stop(jar: Jar, scratch: Path) -> Path:
        stop.request()
        return Registry(CONTENTS).fetch(jar, scratch)

    with pytest.raises(StartCancelled):
        ensure_jars(JARS, tmp_path, fetch_and_stop, print, stop)
    assert folders(tmp_path) == []
