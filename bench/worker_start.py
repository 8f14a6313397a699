"""From Process.start() to a worker's first result: a forkserver that has imported everything against a process from nothing.

    python bench/worker_start.py [--kafka HOST:PORT] [--models-dir DIR] [--model NAME]... [--starts N]

Both ways are taken in turn in the same run, on the sample clip `bikes`. Without --kafka it starts a broker of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

from vidflow.commands.run.source import resolve_video
from vidflow.domain.messages import Deploy
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.kafka.topics import create_topics
from vidflow.infra.process.memory import resident_bytes
from vidflow.infra.process.stopping import Stop
from vidflow.roles.runner.forkservers import TORCH_PRELOAD_MODULE, without_main
from vidflow.roles.worker import link
from vidflow.roles.worker.start import do_nothing, run_worker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka")
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--model", action="append")
    parser.add_argument("--starts", type=int, default=7)
    given = parser.parse_args()
    with broker(given.kafka) as settings:
        create_topics(settings)
        forkserver, spawn = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
        print(f"forkserver with everything imported: ready after {measure_forkserver_s(forkserver):.2f} s")
        print(f"{'model':<16}{'way':<12}{'median s':>9}{'least':>8}{'most':>8}{'resident MB':>13}")
        for model in given.model or ["motion"]:
            taken: dict[str, list[tuple[float, int]]] = {"forkserver": [], "spawn": []}
            for _ in range(given.starts):
                taken["forkserver"].append(measure_first_result(forkserver, settings, model, given.models_dir))
                taken["spawn"].append(measure_first_result(spawn, settings, model, given.models_dir))
            for way, starts in taken.items():
                times = [seconds for seconds, _ in starts]
                megabytes = statistics.median(size for _, size in starts) / 1e6
                print(
                    f"{model:<16}{way:<12}{statistics.median(times):>9.2f}{min(times):>8.2f}{max(times):>8.2f}{megabytes:>13.0f}"
                )


@contextmanager
def broker(bootstrap: str | None) -> Iterator[KafkaSettings]:
    if bootstrap:
        yield KafkaSettings(bootstrap)
        return
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedKafka(Path(folder), notify=print, stop=Stop())
        try:
            yield server.start().settings
        finally:
            server.stop()


def measure_forkserver_s(context: ForkServerContext) -> float:
    """Seconds until the forkserver has made its first child."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    context.set_forkserver_preload([TORCH_PRELOAD_MODULE])
    since_s = time.perf_counter()
    child = context.Process(target=do_nothing)
    with without_main():
        child.start()
    child.join()
    return time.perf_counter() - since_s


def measure_first_result(
    context: ForkServerContext | SpawnContext, settings: KafkaSettings, model: str, models_dir: Path | None
) -> tuple[float, int]:
    """Seconds from start() until the worker has handed its first result to Kafka, and its resident memory then."""
    deploy = Deploy(str(uuid.uuid4()), 1, resolve_video("sample:bikes"), model, fps="1")
    hear, told = context.Pipe(duplex=False)
    orders, _order = context.Pipe(duplex=False)
    _stderr, stderr = context.Pipe(duplex=False)
    task = link.Task(deploy, settings, any_file=True, models_dir=models_dir)
    worker = context.Process(target=run_worker, args=(task, told, orders, stderr))
    since_s = time.perf_counter()
    with without_main():
        worker.start()
    for theirs in (told, orders, stderr):
        theirs.close()
    while True:
        said = link.receive_message(hear)
        assert isinstance(said, link.WorkerProgress), said
        if said.next_frame:
            break
    taken_s, size = time.perf_counter() - since_s, resident_bytes(worker.pid or 0)
    worker.kill()
    worker.join()
    return taken_s, size


if __name__ == "__main__":
    main()
