"""The shards of the outbox that this relay owns: a lease for each, kept on a thread, shared evenly with the relays that live.

A relay shows that it lives by a lease too, named by its holder. Not what is done with a shard's rows: roles/relay.py.
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
from vidflow.infra.postgres.lease import LeaseLost, acquire, cap_expiry, fence, release, renew
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry.logs import log

RELAY_PREFIX: Final = "relay/"
SHARD_PREFIX: Final = "outbox/"
_ASYNC_COMMIT: Final = "synchronous_commit = off"
"""A crash of the server may bring removed rows back: they are published again, as after a crash of the relay."""
_log = log("relay")


class HeldLease(msgspec.Struct, frozen=True):
    """One lease: its term, and until when this process trusts it, on its own clock."""

    term: int
    trusted_until_s: float


class ShardLeases:
    """What one relay owns. Its thread claims, renews and finds out what is too much; whoever publishes gives that up."""

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
        """The shards whose rows this relay may read and publish now, by its own clock alone."""
        now_s = time.monotonic()
        return _shards(name for name, held in self._held.items() if now_s < held.trusted_until_s) - self._surplus

    def owns(self, shards: Collection[int]) -> bool:
        """Whether all of them are this relay's still; what it is to give up is, until it has."""
        return _all_trusted(self._held, [_name(shard) for shard in shards])

    @property
    def surplus(self) -> frozenset[int]:
        """What is to be given up once nothing of it is on its way."""
        return self._surplus

    def release_surplus(self, tx: Connection) -> None:
        """Lets other relays have what is above this one's share."""
        with self._lock:
            self._release(tx, {_name(shard) for shard in self._surplus})
            self._surplus = frozenset()

    @contextmanager
    def fenced(self, shards: Collection[int]) -> Iterator[Connection]:
        """A transaction that commits only while these shards are owned. Raises LeaseLost; it must end within a second."""
        names = [_name(shard) for shard in shards]
        held = self._held  # one reading of it: the other thread replaces it
        if not _all_trusted(held, names):
            raise LeaseLost(f"not renewed in time: {', '.join(names)}", names)
        terms = {name: held[name].term for name in names}
        with fenced_transaction(self._writer.connection(), _ASYNC_COMMIT) as tx:
            try:
                fence(tx, terms, self.holder)
            except LeaseLost as lost:
                self._drop_lost(lost.names)
                raise
            yield tx

    def run(self) -> None:
        """Claims and renews until `close`. The body of a thread."""
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
        """A relay that has all shards has nothing to take over: it looks no oftener than it renews."""
        return RENEW_S if len(_shards(self._held)) == SHARDS else STANDBY_POLL_S

    def rebalance(self, connection: Connection) -> None:
        """Renews what is due, looks who lives and what is free, and claims what is missing to the fair share."""
        with self._lock:
            if time.monotonic() - self._renewed_s >= RENEW_S:
                self._renew(connection)
            if self._me not in self._held:
                self._claim(connection, self._me)
                _delete_dead_relays(connection)
            cap_expiry(connection)
            relays, taken = _read_live_leases(connection)
            step = plan_shard_change(
                _shards(self._held), set(range(SHARDS)) - taken, compute_fair_shard_count(relays, self._me)
            )
            for shard in step.claim:
                self._claim(connection, _name(shard))
            self._surplus = frozenset(step.give_up)
        self._log_owned()

    def close(self) -> None:
        """Ends the thread, which gives all up where the database can be asked to. Nothing may be on its way any more."""
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
        given = {name: held.term for name, held in self._held.items() if name in names}
        self._held = {name: held for name, held in self._held.items() if name not in names}
        release(connection, given, self.holder)

    def _drop_lost(self, names: Collection[str]) -> None:
        with self._lock:
            self._held = {name: held for name, held in self._held.items() if name not in names}

    def _log_owned(self) -> None:
        if (owned := self.owned_shards()) != self._logged:
            _log.info("shards_owned", shards=len(owned), holder=self.holder)
            self._logged = owned


@contextmanager
def maintain_shard_leases(url: str, stop: Stop) -> Iterator[ShardLeases]:
    """A relay's shares while the body runs, given up behind it."""
    shares = ShardLeases(url)
    keeping = start_thread("relay shares", shares.run, stop)
    try:
        yield shares
    finally:
        shares.close()
        keeping.join()


def _all_trusted(held: Mapping[str, HeldLease], names: Collection[str]) -> bool:
    """Whether all of these leases are held and trusted now."""
    now_s = time.monotonic()
    return all((one := held.get(name)) is not None and now_s < one.trusted_until_s for name in names)


def _name(shard: int) -> str:
    return f"{SHARD_PREFIX}{shard}"


def _shards(names: Iterable[str]) -> frozenset[int]:
    """Those that are named among leases of any kind."""
    return frozenset(int(name.removeprefix(SHARD_PREFIX)) for name in names if name.startswith(SHARD_PREFIX))


def _read_live_leases(tx: Connection) -> tuple[list[str], frozenset[int]]:
    """The relays that live, and the shards that are somebody's."""
    rows = tx.execute(
        """
        SELECT name
          FROM lease
         WHERE expires_at > clock_timestamp()
        """
    ).fetchall()
    names = [name for (name,) in rows]
    return [name for name in names if name.startswith(RELAY_PREFIX)], _shards(names)


def _delete_dead_relays(tx: Connection) -> None:
    """Deletes the signs of life of relays that are long gone: each start writes a new one."""
    tx.execute(
        """
        DELETE FROM lease
         WHERE starts_with(name, 'relay/') AND expires_at < clock_timestamp() - interval '1 minute'
        """
    )
