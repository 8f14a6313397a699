"""Measure from Process.start() to a worker's first result: forkserver with everything imported, compared with spawn.

    python bench/worker_start.py [--kafka HOST:PORT] [--models-dir DIR] [--model NAME]... [--starts N]

Both start methods alternate in the same run, on the sample clip `bikes`. Without --kafka it starts its own broker.
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
    args = parser.parse_args()
    with broker(args.kafka) as settings:
        create_topics(settings)
        forkserver, spawn = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
        print(f"forkserver with everything imported: ready after {measure_forkserver_s(forkserver):.2f} s")
        print(f"{'model':<16}{'method':<12}{'median s':>9}{'min':>8}{'max':>8}{'resident MB':>13}")
        for model in args.model or ["motion"]:
            starts: dict[str, list[tuple[float, int]]] = {"forkserver": [], "spawn": []}
            for _ in range(args.starts):
                starts["forkserver"].append(measure_first_result(forkserver, settings, model, args.models_dir))
                starts["spawn"].append(measure_first_result(spawn, settings, model, args.models_dir))
            for method, measured in starts.items():
                times_s = [seconds for seconds, _ in measured]
                resident_mb = statistics.median(size for _, size in measured) / 1e6
                print(
                    f"{model:<16}{method:<12}{statistics.median(times_s):>9.2f}{min(times_s):>8.2f}{max(times_s):>8.2f}"
                    f"{resident_mb:>13.0f}"
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
    """Return the seconds until the forkserver has started its first child."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    context.set_forkserver_preload([TORCH_PRELOAD_MODULE])
    began_s = time.perf_counter()
    child = context.Process(target=do_nothing)
    with without_main():
        child.start()
    child.join()
    return time.perf_counter() - began_s


def measure_first_result(
    context: ForkServerContext | SpawnContext, settings: KafkaSettings, model: str, models_dir: Path | None
) -> tuple[float, int]:
    """Return the seconds from start() until the worker has sent its first result, and its resident memory then in bytes."""
    deploy = Deploy(str(uuid.uuid4()), 1, resolve_video("sample:bikes"), model, fps="1")
    messages, worker_messages = context.Pipe(duplex=False)
    worker_orders, _orders = context.Pipe(duplex=False)
    _stderr, worker_stderr = context.Pipe(duplex=False)
    task = link.Task(deploy, settings, any_file=True, models_dir=models_dir)
    worker = context.Process(target=run_worker, args=(task, worker_messages, worker_orders, worker_stderr))
    began_s = time.perf_counter()
    with without_main():
        worker.start()
    for worker_end in (worker_messages, worker_orders, worker_stderr):
        worker_end.close()
    while True:
        message = link.receive_message(messages)
        assert isinstance(message, link.WorkerProgress), message
        if message.next_frame:
            break
    elapsed_s, size = time.perf_counter() - began_s, resident_bytes(worker.pid or 0)
    worker.kill()
    worker.join()
    return elapsed_s, size


if __name__ == "__main__":
    main()
