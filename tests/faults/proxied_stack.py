"""A vidflow some of whose roles reach PostgreSQL or Kafka through a proxy of their own, so that one of them alone can be cut off."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tests.faults.proxy import Proxy

from vidflow.commands.dev import Stack
from vidflow.infra.embedded.child_process import find_free_ports
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.settings import read_environment_variable

POSTGRES_PROXIED_ROLES: Final = ("orchestrator-1", "orchestrator-2", "inbox")
KAFKA_PROXIED_ROLE: Final = "runner-1"
"""Whose wire to Kafka goes through a proxy. One alone: a broker tells all clients of a listener the same address."""


class KafkaBehindProxy(EmbeddedKafka):
    """The broker with one more listener, which tells its clients that it is where the proxy is."""

    def __init__(self, folder: Path, *, proxy_port: int, **more: Any) -> None:
        super().__init__(folder, **more)
        self._proxy_port = proxy_port
        [self.proxied_port] = find_free_ports(1)

    def _properties(self, data: Path) -> str:
        lines = super()._properties(data).splitlines()
        added = {
            "listeners": f"PROXIED://127.0.0.1:{self.proxied_port}",
            "advertised.listeners": f"PROXIED://127.0.0.1:{self._proxy_port}",
            "listener.security.protocol.map": "PROXIED:PLAINTEXT",
        }
        names = [line.partition("=")[0] for line in lines]
        return "\n".join(
            f"{line},{added[name]}" if name in added else line for name, line in zip(names, lines, strict=True)
        )


class ProxiedStack(Stack):
    """A Stack whose roles of these names are given the proxies' addresses instead of the servers'."""

    def __init__(self, *arguments: Any, proxies: RoleProxies) -> None:
        super().__init__(*arguments)
        self._wires = proxies
        self._starting = threading.local()

    def _create_kafka(self, folder: Path) -> EmbeddedKafka:
        cache = read_environment_variable("VIDFLOW_CACHE_DIR")
        port = self._wires.kafka.port
        server = KafkaBehindProxy(folder / "kafka", proxy_port=port, notify=self._notify, stop=self._stop, cache=cache)
        self._wires.kafka_port = server.proxied_port
        self._clean_up.callback(server.stop)
        return server

    def _start_role(self, kind: str, name: str) -> None:
        self._starting.name = name
        super()._start_role(kind, name)

    def _variables(self, kind: str) -> Mapping[str, str]:
        return {**super()._variables(kind), **self._wires.variables(self._starting.name, self.database_url)}


class RoleProxies:
    """The proxies by the names of the roles that go through them."""

    def __init__(self, exit_stack: ExitStack) -> None:
        self.kafka_port = 0
        self._postgres_port = 0
        self.kafka = exit_stack.enter_context(Proxy(lambda: self.kafka_port))
        self.postgres = {
            name: exit_stack.enter_context(Proxy(lambda: self._postgres_port)) for name in POSTGRES_PROXIED_ROLES
        }

    def variables(self, name: str, database_url: str) -> dict[str, str]:
        """What is to be different in the environment of this role."""
        if name == KAFKA_PROXIED_ROLE:
            return {"VIDFLOW_KAFKA": f"127.0.0.1:{self.kafka.port}"}
        if name not in self.postgres:
            return {}
        url = urlsplit(database_url)
        self._postgres_port = url.port or 0
        place = url.netloc.rpartition(":")[0]
        return {"VIDFLOW_DATABASE_URL": url._replace(netloc=f"{place}:{self.postgres[name].port}").geturl()}

    def all_in_use(self) -> bool:
        """Whether each proxy has carried something: else a test cuts what nobody uses."""
        return all(proxy.connections_accepted for proxy in (self.kafka, *self.postgres.values()))


@contextmanager
def role_proxies() -> Iterator[RoleProxies]:
    """The proxies, until the block ends."""
    with ExitStack() as proxies:
        yield RoleProxies(proxies)
