"""A vidflow in which some roles reach PostgreSQL or Kafka through their own proxy, so that a single role can be cut off."""

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
"""The only role that reaches Kafka through a proxy: a broker advertises one address to all clients of a listener."""


class KafkaBehindProxy(EmbeddedKafka):
    """A broker with an additional listener that advertises the address of the proxy."""

    def __init__(self, folder: Path, *, proxy_port: int, **options: Any) -> None:
        super().__init__(folder, **options)
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
    """A Stack that gives the proxied roles the addresses of their proxies instead of the servers'."""

    def __init__(self, *arguments: Any, proxies: RoleProxies) -> None:
        super().__init__(*arguments)
        self._proxies = proxies
        self._starting = _Starting()

    def _create_kafka(self, folder: Path) -> EmbeddedKafka:
        cache = read_environment_variable("VIDFLOW_CACHE_DIR")
        port = self._proxies.kafka.port
        server = KafkaBehindProxy(folder / "kafka", proxy_port=port, notify=self._notify, stop=self._stop, cache=cache)
        self._proxies.kafka_port = server.proxied_port
        self._clean_up.callback(server.stop)
        return server

    def _start_role(self, kind: str, name: str) -> None:
        self._starting.name = name
        super()._start_role(kind, name)

    def _variables(self, kind: str) -> Mapping[str, str]:
        variables = super()._variables(kind)
        if self._starting.name is None:  # the variables are for a file, not for a role
            return variables
        return {**variables, **self._proxies.variables(self._starting.name, self.database_url)}


class _Starting(threading.local):
    """The role that the current thread starts, if any."""

    name: str | None = None


class RoleProxies:
    """The proxies, by the names of the roles that use them."""

    def __init__(self, exit_stack: ExitStack) -> None:
        self.kafka_port = 0
        self._postgres_port = 0
        self.kafka = exit_stack.enter_context(Proxy(lambda: self.kafka_port))
        self.postgres = {
            name: exit_stack.enter_context(Proxy(lambda: self._postgres_port)) for name in POSTGRES_PROXIED_ROLES
        }

    def variables(self, name: str, database_url: str) -> dict[str, str]:
        """Return the environment variables that lead this role to its proxy."""
        if name == KAFKA_PROXIED_ROLE:
            return {"VIDFLOW_KAFKA": f"127.0.0.1:{self.kafka.port}"}
        if name not in self.postgres:
            return {}
        url = urlsplit(database_url)
        self._postgres_port = url.port or 0
        host = url.netloc.rpartition(":")[0]
        return {"VIDFLOW_DATABASE_URL": url._replace(netloc=f"{host}:{self.postgres[name].port}").geturl()}

    def all_in_use(self) -> bool:
        """Return whether every proxy has had a connection. Cutting an unused proxy would test nothing."""
        return all(proxy.connections_accepted for proxy in (self.kafka, *self.postgres.values()))


@contextmanager
def role_proxies() -> Iterator[RoleProxies]:
    """Run the proxies while the block runs."""
    with ExitStack() as exit_stack:
        yield RoleProxies(exit_stack)
