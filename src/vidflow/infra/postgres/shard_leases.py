"""Outbox shards that a relay owns. Each shard has a lease; a thread renews them and shares the shards evenly with the other live relays.

A relay announces itself by a lease, too, named after its holder. The rows of the shards are published in roles/relay.py.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import msgspec

from vidflow.domain.lease import RENEW_S, STANDBY_POLL_S, compute_trusted_until
from vidflow.domain.shards import SHARDS, compute_fair_shard_count, plan_shard_change
from vidflow.infra.postgres.connection import (
    FENCED_RESPONSE_TIMEOUT_S,
    Connection,
    ReconnectingConnection,
    fenced_transaction,
    run_with_reconnect,
)
from vidflow.infra.postgres.lease import (
    RELAY_PREFIX,
    SHARD_PREFIX,
    LeaseLost,
    acquire,
    cap_expiry,
    delete_dead_relays,
    fence,
    read_live_names,
    release,
    renew,
)
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry.logs import log

_ASYNC_COMMIT: Final = "synchronous_commit = off"
"""After a crash of the server removed rows may reappear. They are published again, as after a crash of the relay."""
_log = log("relay")


class HeldLease(msgspec.Struct, frozen=True):
    """The term of a lease, and the monotonic time until which this process trusts it."""

    term: int
    trusted_until_s: float


class ShardLeases:
    """The shard leases of one relay. A thread claims and renews them and determines the surplus, which the publishing thread releases."""

    def __init__(self, url: str) -> None:
        self.holder = uuid.uuid4()
        self._me = f"{RELAY_PREFIX}{self.holder}"
        self._url = url
        self._closed = Stop()
        self._lock = threading.Lock()
        self._held: Mapping[str, HeldLease] = {}
        self._surplus: frozenset[int] = frozenset()
        self._writer = ReconnectingConnection(url, "vidflow relay")
        self._renewed_s = float("-inf")
        self._logged: frozenset[int] = frozenset()

    def owned_shards(self) -> frozenset[int]:
        """Return the shards whose rows this relay may read and publish now, judged by its own clock."""
        now_s = time.monotonic()
        return _shards(name for name, held in self._held.items() if now_s < held.trusted_until_s) - self._surplus

    def owns(self, shards: Collection[int]) -> bool:
        """Return whether this relay still owns all of these shards. Surplus shards count until they are released."""
        return _all_trusted(self._held, [_name(shard) for shard in shards])

    @property
    def surplus(self) -> frozenset[int]:
        """Return the shards to release once none of their messages is in flight."""
        return self._surplus

    def release_surplus(self, tx: Connection) -> None:
        """Release the shards above this relay's share."""
        with self._lock:
            self._release(tx, {_name(shard) for shard in self._surplus})
            self._surplus = frozenset()

    @contextmanager
    def fenced(self, shards: Collection[int]) -> Iterator[Connection]:
        """Run the body in a transaction that commits only if these shards are still owned.

        Raises LeaseLost. The transaction must end within FENCED_TRANSACTION_S.
        """
        names = [_name(shard) for shard in shards]
        held = self._held  # read once, because the other thread replaces it
        if not _all_trusted(held, names):
            raise LeaseLost(f"Leases not renewed in time: {', '.join(names)}", names)
        terms = {name: held[name].term for name in names}
        with fenced_transaction(self._writer.connection(), _ASYNC_COMMIT) as tx:
            try:
                fence(tx, terms, self.holder)
            except LeaseLost as lost:
                self._drop_lost(lost.names)
                raise
            yield tx

    def run(self) -> None:
        """Claim and renew leases until `close`. Runs on its own thread."""
        run_with_reconnect(
            self._url,
            name="vidflow relay lease",
            stop=self._closed,
            pause_s=STANDBY_POLL_S,
            body=self._run_connected,
            response_timeout_s=FENCED_RESPONSE_TIMEOUT_S,
        )

    def _run_connected(self, connection: Connection) -> None:
        while not self._closed.wait(self._pause_s()):
            self.rebalance(connection)
        with self._lock:
            self._release(connection, set(self._held))

    def _pause_s(self) -> float:
        """Return the time between two rounds. A relay that owns all shards has nothing to claim and only renews."""
        return RENEW_S if len(_shards(self._held)) == SHARDS else STANDBY_POLL_S

    def rebalance(self, connection: Connection) -> None:
        """Renew due leases, find the live relays and free shards, claim shards up to the fair share, and determine the surplus."""
        with self._lock:
            if time.monotonic() - self._renewed_s >= RENEW_S:
                self._renew(connection)
            if self._me not in self._held:
                self._claim(connection, self._me)
                delete_dead_relays(connection)
            cap_expiry(connection)
            live = read_live_names(connection)
            relays = [name for name in live if name.startswith(RELAY_PREFIX)]
            step = plan_shard_change(
                _shards(self._held), set(range(SHARDS)) - _shards(live), compute_fair_shard_count(relays, self._me)
            )
            for shard in step.claim:
                self._claim(connection, _name(shard))
            self._surplus = frozenset(step.give_up)
        self._log_owned()

    def close(self) -> None:
        """End the thread, which releases all leases if the database is reachable. No message may be in flight."""
        self._closed.request()
        self._writer.close()

    def _renew(self, connection: Connection) -> None:
        attempted_s = time.monotonic()
        renewed = renew(connection, {name: held.term for name, held in self._held.items()}, self.holder)
        until_s = compute_trusted_until(attempted_s)
        self._held = {name: HeldLease(held.term, until_s) for name, held in self._held.items() if name in renewed}
        self._renewed_s = attempted_s

    def _claim(self, connection: Connection, name: str) -> None:
        attempted_s = time.monotonic()
        term = acquire(connection, name, self.holder)
        if term is not None:
            self._held = {**self._held, name: HeldLease(term, compute_trusted_until(attempted_s))}

    def _release(self, connection: Connection, names: Collection[str]) -> None:
        terms = {name: held.term for name, held in self._held.items() if name in names}
        self._held = {name: held for name, held in self._held.items() if name not in names}
        release(connection, terms, self.holder)

    def _drop_lost(self, names: Collection[str]) -> None:
        with self._lock:
            self._held = {name: held for name, held in self._held.items() if name not in names}

    def _log_owned(self) -> None:
        if (owned := self.owned_shards()) != self._logged:
            _log.info("shards_owned", shards=len(owned), holder=self.holder)
            self._logged = owned


@contextmanager
def maintain_shard_leases(url: str, stop: Stop) -> Iterator[ShardLeases]:
    """Provide a relay's shard leases for the body, and release them afterwards."""
    leases = ShardLeases(url)
    thread = start_thread("relay shard leases", leases.run, stop)
    try:
        yield leases
    finally:
        leases.close()
        thread.join()


def _all_trusted(held: Mapping[str, HeldLease], names: Collection[str]) -> bool:
    """Return whether all of these leases are held and trusted now."""
    now_s = time.monotonic()
    return all((lease := held.get(name)) is not None and now_s < lease.trusted_until_s for name in names)


def _name(shard: int) -> str:
    return f"{SHARD_PREFIX}{shard}"


def _shards(names: Iterable[str]) -> frozenset[int]:
    """Return the shards among names of leases of any kind."""
    return frozenset(int(name.removeprefix(SHARD_PREFIX)) for name in names if name.startswith(SHARD_PREFIX))
