"""Invariant 2: every outbox row reaches Kafka at least once, and the rows of one key in commit order, with any number of relays.

The relays, their leases and the outbox are the real ones on PostgreSQL. Only the broker is simulated, so that each delivery, each lost
acknowledgement and each late one is a step of a schedule. Batches and windows are small, so that schedules reach all kinds of reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.integration.delivery import emptied_database, outbox_row

from vidflow.infra.kafka.publisher import InFlightBatch
from vidflow.infra.postgres import lease, outbox, shard_leases
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.postgres.outbox import PendingMessage
from vidflow.infra.postgres.shard_leases import HeldLease, ShardLeases
from vidflow.infra.process.stopping import Stop
from vidflow.roles import relay as relay_role
from vidflow.roles.relay import Relay

KEYS = ("a", "b", "c", "d")
WRITERS = 2
MAX_RELAYS = 3
LEASE_S = 3600.0
SETTLE_STEPS = 200
INDEX = st.integers(0, 7)


class SimulatedPublisher:
    """A producer of Kafka. What it was given stays in its queue until the broker takes it, in order, unless it is purged."""

    def __init__(self, log: list[tuple[str, int]]) -> None:
        self._log = log
        self._queue: list[tuple[PendingMessage, InFlightBatch]] = []
        self.connected = True
        self.acknowledged = True
        """Whether acknowledgements reach the producer."""

    def find_missing_topics(self, _topics: Collection[str]) -> set[str]:
        return set()

    def poll(self) -> None:
        pass

    def send(self, batch: Sequence[PendingMessage]) -> InFlightBatch:
        flight = InFlightBatch(batch)
        self._queue += [(row, flight) for row in batch]
        return flight

    def deliver(self, count: int) -> None:
        """Let the broker take the next messages."""
        delivered, self._queue = self._queue[:count], self._queue[count:]
        for row, flight in delivered:
            self._log.append((row.key, int(row.payload)))
            if self.acknowledged:
                flight.record_delivery(row.id, None, None)

    def wait_for_delivery(self, flight: InFlightBatch, keep_waiting: Callable[[], bool]) -> None:
        if self.connected and keep_waiting():
            self.deliver(len(self._queue))
        if flight.unanswered:
            self._queue = []  # purged


class SimulatedRelay:
    """A relay that takes single steps: a real one, but for its publisher and its threads."""

    def __init__(self, url: str, connection: Connection, log: list[tuple[str, int]]) -> None:
        self._connection = connection
        self.publisher = SimulatedPublisher(log)
        self.leases = ShardLeases(url)
        self.frozen = False
        publisher: Any = self.publisher
        self._relay = Relay(self.leases, publisher, connection, Stop())

    def rebalance(self) -> None:
        self.leases.rebalance(self._connection)

    def step(self) -> None:
        self._relay.step()

    def let_leases_expire(self) -> None:
        """Let more time pass than a lease lasts."""
        self._connection.execute(
            "UPDATE lease SET expires_at = clock_timestamp() WHERE holder = %s", (self.leases.holder,)
        )
        self.leases._held = {name: HeldLease(held.term, 0.0) for name, held in self.leases._held.items()}
        self.leases._renewed_s = float("-inf")

    def let_a_second_pass(self) -> None:
        self._relay._swept_s = float("-inf")


class Writer:
    """A session that adds rows to the outbox. It holds the lock of each key until its transaction ends, as the roles do."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.rows: list[tuple[str, int]] = []

    def end(self, *, commit: bool) -> list[tuple[str, int]]:
        """End the transaction and return the rows that it has committed."""
        if commit:
            self.connection.commit()
        else:
            self.connection.rollback()
        committed, self.rows = self.rows if commit else [], []
        return committed


class Publishing(RuleBasedStateMachine):
    """Writers and relays without faults. Each committed row reaches the log, once, and in the order of its key."""

    url: ClassVar[str]
    connection: ClassVar[Connection]
    sessions: ClassVar[list[Connection]]

    def __init__(self) -> None:
        super().__init__()
        self.connection.execute("TRUNCATE outbox, lease")
        self.log: list[tuple[str, int]] = []
        self.committed: list[tuple[str, int]] = []
        self.written = 0
        self.faults = 0
        self.writers = [Writer(session) for session in self.sessions]
        self.relays: list[SimulatedRelay] = []
        self.stopped: list[SimulatedRelay] = []
        self.start_relay()

    def pick_relay(self, index: int) -> SimulatedRelay:
        return self.relays[index % len(self.relays)]

    # --- writers

    @rule(writer=INDEX, key=st.sampled_from(KEYS), count=st.integers(1, 4))
    def add(self, writer: int, key: str, count: int) -> None:
        writing = self.writers[writer % WRITERS]
        if any(key == locked for other in self.writers if other is not writing for locked, _ in other.rows):
            return
        rows = [(key, self.written + number) for number in range(count)]
        self.written += count
        outbox.add_messages(writing.connection, [outbox_row(key, str(number).encode()) for key, number in rows])
        writing.rows += rows

    @rule(writer=INDEX)
    def commit(self, writer: int) -> None:
        self.committed += self.writers[writer % WRITERS].end(commit=True)

    @rule(writer=INDEX)
    def roll_back(self, writer: int) -> None:
        self.writers[writer % WRITERS].end(commit=False)

    # --- relays

    @precondition(lambda self: len(self.relays) < MAX_RELAYS)
    @rule()
    def start_relay(self) -> None:
        relay = SimulatedRelay(self.url, self.connection, self.log)
        self.relays.append(relay)
        relay.rebalance()

    @rule(relay=INDEX, steps=st.integers(1, 4))
    def step(self, relay: int, steps: int) -> None:
        for _ in range(steps):
            self._step(self.pick_relay(relay))

    def _step(self, relay: SimulatedRelay) -> None:
        if not relay.frozen:
            relay.step()

    @rule(relay=INDEX)
    def rebalance(self, relay: int) -> None:
        if not self.pick_relay(relay).frozen:
            self.pick_relay(relay).rebalance()

    @rule(relay=INDEX, count=st.integers(1, 4))
    def deliver(self, relay: int, count: int) -> None:
        self.pick_relay(relay).publisher.deliver(count)

    @rule()
    def a_second_passes(self) -> None:
        for relay in self.relays:
            relay.let_a_second_pass()

    # --- checks

    @invariant()
    def rows_are_in_the_order_of_their_key(self) -> None:
        for key in KEYS:
            committed = [number for other, number in self.committed if other == key]
            published = [number for other, number in self.log if other == key]
            first = list(dict.fromkeys(published))
            assert first == committed[: len(first)], (key, published, committed)
            assert self.faults or first == published, ("published twice without a fault", key, published)

    def teardown(self) -> None:
        """End all faults. Then everything that was committed is published and removed."""
        for number in range(WRITERS):
            self.commit(number)
        for relay in self.relays:
            relay.publisher.connected = relay.publisher.acknowledged = True
            relay.frozen = False
        for _ in range(SETTLE_STEPS):
            for relay in self.relays:
                relay.let_a_second_pass()
                relay.rebalance()
                relay.step()
                relay.publisher.deliver(len(self.committed))
            self.rows_are_in_the_order_of_their_key()
            if not outbox.read_pending_messages(self.connection, 1):
                break
        for relay in (*self.relays, *self.stopped):
            relay.leases.close()
        assert outbox.read_pending_messages(self.connection, 100) == []
        assert set(self.log) == set(self.committed)


class PublishingWithFaults(Publishing):
    """Adds relays that die or freeze, and a broker that is away or whose acknowledgements are lost."""

    @rule(relay=INDEX, delivered=st.integers(0, 4))
    def kill(self, relay: int, delivered: int) -> None:
        """A relay dies while the broker takes some of its messages."""
        killed = self.pick_relay(relay)
        killed.publisher.deliver(delivered)
        killed.let_leases_expire()
        self.relays.remove(killed)
        self.stopped.append(killed)
        self.faults += 1
        if not self.relays:
            self.start_relay()

    @rule(relay=INDEX)
    def freeze(self, relay: int) -> None:
        """A relay freezes for longer than its leases last. The broker may take its messages later."""
        frozen = self.pick_relay(relay)
        frozen.frozen = True
        frozen.let_leases_expire()
        self.faults += 1

    @rule(relay=INDEX)
    def thaw(self, relay: int) -> None:
        self.pick_relay(relay).frozen = False

    @rule(relay=INDEX, connected=st.booleans(), acknowledged=st.booleans())
    def change_connection(self, relay: int, connected: bool, acknowledged: bool) -> None:
        publisher = self.pick_relay(relay).publisher
        publisher.connected, publisher.acknowledged = connected, acknowledged
        self.faults += not (connected and acknowledged)


@pytest.fixture(scope="module")
def publishing(database_url: str) -> Iterator[None]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay_role, "BATCH_ROWS", 3)
        patch.setattr(outbox, "WINDOW", 4)
        # A lease ends only where a schedule says so, however slow the machine is.
        patch.setattr(lease, "LEASE_S", LEASE_S)
        patch.setattr(shard_leases, "compute_trusted_until", lambda attempted_s: attempted_s + LEASE_S)
        Publishing.url = database_url
        Publishing.connection = stack.enter_context(emptied_database(database_url))
        Publishing.sessions = [
            stack.enter_context(connect(database_url, name=f"writer {number}")) for number in range(WRITERS)
        ]
        for session in Publishing.sessions:
            session.autocommit = False
        yield


@pytest.mark.parametrize("machine", [Publishing, PublishingWithFaults])
@pytest.mark.usefixtures("publishing")
def test_rows_are_published_in_order_and_none_is_lost(machine: type[Publishing]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            phases=[Phase.generate],  # each step costs milliseconds, so shrinking would take minutes
            stateful_step_count=30,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
