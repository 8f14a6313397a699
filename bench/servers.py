"""PostgreSQL and Kafka for a benchmark, in a temporary folder that is deleted at its end."""

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
    """Start both servers. Yield the URL of a migrated database, and the settings of a broker with all topics."""
    with tempfile.TemporaryDirectory(prefix="vidflow-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # a server that runs as another user must be able to reach its folder
        postgres = EmbeddedPostgres(Path(folder, "postgres"), notify=_notify, stop=Stop())
        broker = EmbeddedKafka(Path(folder, "kafka"), notify=_notify, stop=Stop())
        try:
            url, settings = postgres.start().url, broker.start().settings
            migrate(url, _notify)
            topics.create_topics(settings)
            yield url, settings
        finally:
            broker.stop()
            postgres.stop()


def fdatasync_us() -> float:
    """Return the microseconds of one small write to this disk. Any figure of a database depends on it."""
    with tempfile.NamedTemporaryFile() as file:
        durations_s = []
        for _ in range(50):
            file.write(b"x" * 8192)
            file.flush()
            began_s = time.perf_counter()
            os.fdatasync(file.fileno())
            durations_s.append(time.perf_counter() - began_s)
    return median(durations_s) * 1e6


def print_comparison(name: str, rates: list[float], baseline_name: str, baseline_rates: list[float]) -> None:
    """Print both rates of each run, and the median and spread of the ratio."""
    ratios = [rate / baseline_rate for rate, baseline_rate in zip(rates, baseline_rates, strict=True)]
    print(f"{'run':>4} {name:>24} {baseline_name:>24} {'ratio':>7}")
    for number, (rate, baseline_rate, ratio) in enumerate(zip(rates, baseline_rates, ratios, strict=True), 1):
        print(f"{number:>4} {rate:>22,.0f}/s {baseline_rate:>22,.0f}/s {ratio:>7.2f}")
    print(
        f"median {median(rates):,.0f}/s vs {median(baseline_rates):,.0f}/s: ratio {median(ratios):.2f}"
        f" ({min(ratios):.2f}-{max(ratios):.2f})"
    )
    print(f"{os.cpu_count()} cores, fdatasync {fdatasync_us():.0f} us; shared by clients and servers")


def _notify(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
