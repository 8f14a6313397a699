"""A complete vidflow in processes, for tests: a client of its API, and ways to kill and freeze its processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.integration.processes import children
from tests.integration.server_owner import wait_until

from vidflow.commands.dev import Stack
from vidflow.infra.process.stopping import Stop
from vidflow.settings import DevOptions

READY_LIMIT_S = 110.0
DONE_LIMIT_S = 300.0


class VidflowClient:
    """A client of a running vidflow, which can also kill and freeze its processes."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.http = httpx.Client(base_url=stack.url, timeout=20)

    def create_scenario(self, source: Path, model: str, fps: float | str, **fields: Any) -> str:
        response = self.http.post("/scenario/init", json={"source": str(source), "model": model, "fps": fps, **fields})
        assert response.status_code == 201, response.text
        return str(response.json()["scenario_uuid"])

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Return the JSON of a response, retrying while the api is away, as any client of a service would."""
        responses: list[httpx.Response] = []

        def is_answered() -> bool:
            try:
                responses.append(self.http.get(path, params=query))
            except httpx.TransportError:
                return False
            return responses[-1].status_code == 200

        wait_until(is_answered, f"GET {path} is answered", DONE_LIMIT_S)
        return dict(responses[-1].json())

    def scenario(self, uuid: str) -> dict[str, Any]:
        return self.get(f"/scenario/{uuid}")

    def wait_until_inactive(self, uuid: str) -> dict[str, Any]:
        wait_until(lambda: self.scenario(uuid)["state"] == "inactive", f"{uuid} ends", DONE_LIMIT_S)
        return self.scenario(uuid)

    def frames(self, uuid: str) -> list[dict[str, Any]]:
        """Return all frames, without their epochs, which differ in each run."""
        items: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while True:
            page = self.get("/prediction", scenario_uuid=uuid, limit="100", **after)
            items += [{name: value for name, value in item.items() if name != "epoch"} for item in page["items"]]
            if page["complete"] or not page["items"]:
                assert page["complete"]
                return items
            after = {"after": page["next"]}

    def kill(self, kind: str) -> None:
        os.kill(self.stack.pids()[kind][0], signal.SIGKILL)

    def kill_workers(self) -> None:
        """Kill all running workers, which are the children of the runner's forkservers."""
        [runner] = self.stack.pids()["runner"]
        for pid in [worker for forkserver in children(runner) for worker in children(forkserver)]:
            os.kill(pid, signal.SIGKILL)

    @contextmanager
    def frozen(self, kind: str) -> Iterator[None]:
        """Suspend the only process of a kind until the block ends."""
        [pid] = self.stack.pids()[kind]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def running_vidflow(folder: Path, **options: Any) -> Iterator[VidflowClient]:
    """Run a complete vidflow with its data in the folder until the block ends. It is ready when the block begins."""
    stack = Stack(DevOptions(port=0, data_dir=folder, **options), print, print, Stop())
    try:
        stack.start()
        stack.wait_until_ready(READY_LIMIT_S)
        vidflow = VidflowClient(stack)
        with vidflow.http:
            yield vidflow
    finally:
        stack.stop()
