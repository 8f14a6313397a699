"""Serves the clients of an inference process: a thread reads each one's requests, and others, the lanes, run them in batches.

A GPU has one lane. On a CPU there are as many as cores, each with one thread of the runtime: two networks side by side are faster than
one with two threads. What waits is bounded: a client has one request at a time, and its next one is read only once that is answered.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final, NamedTuple

from vidflow.domain.batching import FairShare, NextBatch, WaitingRequest, choose_batch
from vidflow.domain.errors import ErrorInfo, Unavailable, VidflowError, build_error_info, sanitize_text
from vidflow.infra.inference.messages import Infer, Ready, Refused
from vidflow.infra.inference.regions import RegionError
from vidflow.infra.inference.sockets import is_of_this_user
from vidflow.infra.models.tensors import Tensor
from vidflow.infra.models.thread_budget import ThreadBudget
from vidflow.infra.process.crashpoint import crashpoint
from vidflow.infra.telemetry.logs import log
from vidflow.roles.inference.batches import BatchRunner, Outputs
from vidflow.roles.inference.client import Client, InvalidRequest
from vidflow.roles.inference.link import InferenceAlive

LINGER_S: Final = 30.0
"""How long the model stays loaded without clients, as the next video may need it soon."""
REFUSED_LINGER_S: Final = 1.0
"""The same for a model that cannot be loaded: the next client gets another try."""
ACTIVE_S: Final = 0.1
"""A client that has sent nothing for so long after its last answer is not waited for."""
MAX_CLIENTS: Final = 1000
"""The largest number of slots of a runner."""
_log = log("inference")


class _Request(NamedTuple):
    waiting: WaitingRequest
    client: Client
    tensor: Tensor


class InferenceServer:
    """Answers the requests of all clients until there has been none for a while. `run` is for the main thread."""

    def __init__(
        self,
        listener: socket.socket,
        greeting: Ready | Refused,
        size: tuple[int, int] | None,
        batches: BatchRunner | None,
        lanes: int,
        budget: ThreadBudget,
    ) -> None:
        """`size`: (height, width) of the model's tensor; None if `greeting` has the sizes. `batches` is None if the model cannot be loaded.

        `lanes`: the most batches that run at once; as many as the budget has threads do.
        """
        self._listener, self._greeting, self._size, self._batches = listener, greeting, size, batches
        self._lanes, self._budget = lanes, budget
        self._changed = threading.Condition()  # guards what follows
        self._clients: dict[int, Client] = {}
        self._waiting: dict[int, _Request] = {}
        self._running: dict[int, _Request] = {}
        self._running_since_s: dict[int, float] = {}  # of batches, by their first client
        self._answered_s: dict[int, float] = {}  # when each client had its last answer
        self._in_use: set[Client] = set()  # by a lane, which closes those that end meanwhile
        self._shares = FairShare()
        self._numbers = 0
        self._error: Exception | None = None
        self._idle_since_s = time.monotonic()
        self._batch_count = self._frame_count = 0

    def run(self) -> None:
        """Serve until no client has been connected for a while. Raises the error of any of its threads."""
        threading.Thread(target=self._keep_error, args=(self._accept,), name="clients", daemon=True).start()
        for number in range(1, self._lanes):
            threading.Thread(
                target=self._keep_error, args=(self._run_lane,), name=f"lane {number}", daemon=True
            ).start()
        self._run_lane()

    def read_activity(self) -> InferenceAlive:
        """Return what happened since the last call, and how long the oldest batch has been running."""
        with self._changed:
            now_s = time.monotonic()
            running_s = max((now_s - since_s for since_s in self._running_since_s.values()), default=0.0)
            alive = InferenceAlive(
                is_loaded=True, running_s=running_s, batches=self._batch_count, frames=self._frame_count
            )
            self._batch_count = self._frame_count = 0
            return alive

    def _keep_error(self, body: Callable[[], None]) -> None:
        """Run a thread's body. Its error ends the process, which the runner starts again."""
        try:
            body()
        except Exception as error:  # noqa: BLE001 - raised again by the main thread
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _run_lane(self) -> None:
        while batch := self._wait_for_batch():
            self._run_batch(batch)

    def _wait_for_batch(self) -> list[_Request]:
        """Return the requests to run next, none if the process has been idle long enough."""
        linger_s = LINGER_S if self._batches is not None else REFUSED_LINGER_S
        max_frames = 1 if self._batches is None else self._batches.max_frames
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                now_s = time.monotonic()
                choice = self._choose(max_frames, now_s)
                if choice.requests:
                    batch = [self._waiting.pop(request.client) for request in choice.requests]
                    self._running |= {request.waiting.client: request for request in batch}
                    self._running_since_s[batch[0].waiting.client] = now_s
                    self._in_use |= {request.client for request in batch}
                    self._shares = self._shares.advance(choice.requests)
                    return batch
                until_s = choice.wait_until_s
                if not self._clients:
                    until_s = self._idle_since_s + linger_s
                    if now_s >= until_s:
                        return []
                self._changed.wait(None if until_s is None else max(0.0, until_s - now_s))

    def _choose(self, max_frames: int, now_s: float) -> NextBatch:
        if len(self._running_since_s) >= self._budget.threads:
            return NextBatch()
        waiting = [request.waiting for request in self._waiting.values()]
        running = [request.waiting for request in self._running.values()]
        recent = (client for client, answered_s in self._answered_s.items() if now_s - answered_s < ACTIVE_S)
        active = len({*self._waiting, *self._running, *recent})
        return choose_batch(waiting, active, max_frames, now_s, running)

    def _run_batch(self, batch: list[_Request]) -> None:
        assert self._batches is not None  # no request is accepted without it
        for request in batch:
            request.client.set_running(running=True)
        crashpoint("inference.in_batch")
        results = self._batches.run([request.tensor for request in batch])
        for request in batch:
            request.client.set_running(running=False)
        crashpoint("inference.after_batch")
        with self._changed:
            del self._running_since_s[batch[0].waiting.client]
            for request in batch:
                del self._running[request.waiting.client]
                if request.waiting.client in self._clients:
                    self._answered_s[request.waiting.client] = time.monotonic()
            self._batch_count, self._frame_count = self._batch_count + 1, self._frame_count + _count_frames(batch)
            self._changed.notify_all()
        for request, result in zip(batch, results, strict=True):
            _answer(request.client, result)
        with self._changed:
            clients = {request.client for request in batch}
            self._in_use -= clients
            ended = [client for client in clients if client.number not in self._clients]
        for client in ended:
            client.close()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if not is_of_this_user(connection):
                _log.warning("client_of_another_user")
                connection.close()
                continue
            with self._changed:
                self._numbers += 1
                client = Client(self._numbers, connection)
                if len(self._clients) >= MAX_CLIENTS:
                    client.close()
                    continue
                self._clients[client.number] = client
            threading.Thread(target=self._serve, args=(client,), name=f"client {client.number}", daemon=True).start()

    def _serve(self, client: Client) -> None:
        """Read a client's requests until it is gone, or sends something that it must not send."""
        uuid = None
        try:
            uuid = client.receive_hello().scenario_uuid
            client.greet(self._greeting)
            while True:
                self._enqueue(client, client.receive_request())
        except (EOFError, OSError):
            pass  # it has ended, or was killed
        except InvalidRequest as error:
            _log.warning("client_sends_nonsense", scenario_uuid=uuid, error=str(error))
        finally:
            self._remove(client)

    def _enqueue(self, client: Client, infer: Infer) -> None:
        if not isinstance(self._greeting, Ready):
            raise InvalidRequest("it sends a request although the model is refused")
        if self._greeting.fixed_batch not in {None, infer.frames}:
            raise InvalidRequest(f"it sends {infer.frames} frames to a model that takes {self._greeting.fixed_batch}")
        sizes = self._greeting.sizes
        if not (infer.size == self._size if sizes is None else sizes.allows((infer.size[1], infer.size[0]))):
            raise InvalidRequest(f"it sends pictures of {infer.size}")
        tensor = client.tensor(infer.frames, self._greeting.form, infer.size)
        with self._changed:
            if client.number in self._waiting or client.number in self._running:
                raise InvalidRequest("it sends a request before the last one is answered")
            self._shares, start = self._shares.admit(client.number, infer.frames)
            waiting = WaitingRequest(client.number, infer.frames, start, time.monotonic(), infer.crashes)
            self._waiting[client.number] = _Request(waiting, client, tensor)
            self._changed.notify_all()

    def _remove(self, client: Client) -> None:
        with self._changed:
            del self._clients[client.number]
            self._waiting.pop(client.number, None)
            self._answered_s.pop(client.number, None)
            self._shares = self._shares.forget(client.number)
            self._idle_since_s = time.monotonic()
            is_in_use = client in self._in_use
            self._changed.notify_all()
        if not is_in_use:
            client.close()


def report_alive(send: Callable[[InferenceAlive], None], server: InferenceServer, interval_s: float) -> None:
    """Report what the server does, until the runner is gone."""
    with contextlib.suppress(OSError):
        while True:
            send(server.read_activity())
            time.sleep(interval_s)


def _answer(client: Client, result: Outputs | Exception) -> None:
    """Send the result. A client that is gone by now needs none."""
    with contextlib.suppress(OSError):
        if not isinstance(result, Exception):
            try:
                client.answer(result)
            except RegionError as error:
                client.fail(ErrorInfo("inference_failed", f"The model returned {error}."))
            return
        if isinstance(result, VidflowError):
            client.fail(build_error_info(result), blames_frames=not isinstance(result, Unavailable))
        else:
            traceback.print_exception(result)
            text = sanitize_text(f"{type(result).__name__}: {result}")[:1000]
            client.fail(ErrorInfo("inference_failed", f"The model failed on a frame ({text})."))


def _count_frames(batch: list[_Request]) -> int:
    return sum(request.waiting.frames for request in batch)
