"""The servers that a benchmark runs against: PostgreSQL and Kafka of its own, in a temporary folder, gone at its end."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.kafka import topics
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.process.stopping import Stop


@contextmanager
def servers() -> Iterator[tuple[str, KafkaSettings]]:
    """A migrated database's URL and the settings for a broker with all topics."""
    with tempfile.TemporaryDirectory(prefix="vidflow-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # a server that runs as another user must find its own folder in it
        postgres = EmbeddedPostgres(Path(folder, "postgres"), notify=_say, stop=Stop())
        broker = EmbeddedKafka(Path(folder, "kafka"), notify=_say, stop=Stop())
        try:
            url, settings = postgres.start().url, broker.start().settings
            migrate(url, _say)
            topics.create_topics(settings)
            yield url, settings
        finally:
            broker.stop()
            postgres.stop()


def fdatasync_us() -> float:
    """What one small write to this disk costs: no figure of a database means anything without it."""
    with tempfile.NamedTemporaryFile() as file:
        took = []
        for _ in range(50):
            file.write(b"x" * 8192)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return median(took) * 1e6


def print_comparison(what: str, ours: list[float], bare: str, theirs: list[float]) -> None:
    """Prints both rates of each run, and the ratio's median and spread."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    print(f"{'run':>4} {what:>24} {bare:>24} {'ratio':>7}")
    for number, (one, other, ratio) in enumerate(zip(ours, theirs, ratios, strict=True), 1):
        print(f"{number:>4} {one:>22,.0f}/s {other:>22,.0f}/s {ratio:>7.2f}")
    print(
        f"median {median(ours):,.0f}/s against {median(theirs):,.0f}/s: ratio {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    )
    print(f"{os.cpu_count()} cores, fdatasync {fdatasync_us():.0f} us; clients and servers share them")


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
