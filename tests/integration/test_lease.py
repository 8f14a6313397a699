"""Leases: acquisition, renewal, fencing and takeover."""

from __future__ import annotations

import datetime
import threading
import time
import uuid

import psycopg
import pytest
from tests.integration.delivery import outbox_row, print_figure, terminate_connections
from tests.integration.server_owner import wait_until

from vidflow.domain.lease import LEASE_S
from vidflow.infra.postgres import lease as leases
from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import FENCED_TRANSACTION_S, Connection, connect
from vidflow.infra.postgres.lease import LEADER_LEASE, LeaseLost
from vidflow.infra.postgres.lease_holder import Lease, run_as_holder
from vidflow.infra.process.stopping import Stop

HOLDER, OTHER_HOLDER = uuid.uuid4(), uuid.uuid4()


def expire(connection: Connection) -> None:
    """Let all leases expire."""
    connection.execute("UPDATE lease SET expires_at = clock_timestamp()")


def test_the_first_holder_has_term_one(connection: Connection) -> None:
    assert leases.acquire(connection, LEADER_LEASE, HOLDER) == 1


def test_a_held_lease_cannot_be_acquired_by_another_holder(connection: Connection) -> None:
    leases.acquire(connection, LEADER_LEASE, HOLDER)
    assert leases.acquire(connection, LEADER_LEASE, OTHER_HOLDER) is None


def test_leases_with_different_names_are_independent(connection: Connection) -> None:
    leases.acquire(connection, LEADER_LEASE, HOLDER)
    assert leases.acquire(connection, "relay", OTHER_HOLDER) == 1


def test_each_acquisition_has_a_new_term(connection: Connection) -> None:
    leases.acquire(connection, LEADER_LEASE, HOLDER)
    expire(connection)
    assert leases.acquire(connection, LEADER_LEASE, OTHER_HOLDER) == 2


def test_an_expired_lease_cannot_be_renewed(connection: Connection) -> None:
    leases.acquire(connection, LEADER_LEASE, HOLDER)
    assert leases.renew(connection, {LEADER_LEASE: 1}, HOLDER)
    expire(connection)
    assert not leases.renew(connection, {LEADER_LEASE: 1}, HOLDER)


def test_a_released_lease_can_be_acquired_at_once(connection: Connection) -> None:
    leases.acquire(connection, LEADER_LEASE, HOLDER)
    leases.release(connection, {LEADER_LEASE: 1}, HOLDER)
    assert leases.acquire(connection, LEADER_LEASE, OTHER_HOLDER) == 2


def test_an_expiry_from_before_the_database_clock_stepped_back_is_capped(
    connection: Connection,
) -> None:
    leases.acquire(connection, LEADER_LEASE, HOLDER)
    connection.execute("UPDATE lease SET expires_at = clock_timestamp() + interval '1 hour'")
    leases.cap_expiry(connection)
    [(left_s,)] = connection.execute(
        "SELECT extract(epoch FROM expires_at - clock_timestamp())::float8 FROM lease"
    ).fetchall()
    assert LEASE_S - 0.5 < left_s <= LEASE_S
    assert leases.acquire(connection, LEADER_LEASE, OTHER_HOLDER) is None
    assert leases.renew(connection, {LEADER_LEASE: 1}, HOLDER)


def test_a_regular_expiry_is_not_capped(connection: Connection) -> None:
    leases.acquire(connection, LEADER_LEASE, HOLDER)
    before = connection.execute("SELECT expires_at FROM lease").fetchone()
    leases.cap_expiry(connection)
    assert connection.execute("SELECT expires_at FROM lease").fetchone() == before


@pytest.mark.long
def test_a_holder_that_died_before_the_database_clock_stepped_back_is_replaced(
    connection: Connection, database_url: str
) -> None:
    leases.acquire(connection, LEADER_LEASE, OTHER_HOLDER)
    connection.execute("UPDATE lease SET expires_at = clock_timestamp() + interval '1 hour'")
    stop = Stop()
    acquired: list[Lease] = []
    thread = start_holder(database_url, stop, acquired)
    wait_until(lambda: bool(acquired), "the standby acquires the lease", 5 * LEASE_S)
    stop.request()
    thread.join(10)


def test_a_former_holder_cannot_write(connection: Connection, database_url: str) -> None:
    leases.acquire(connection, LEADER_LEASE, HOLDER)
    former = Lease(database_url, LEADER_LEASE, HOLDER, 1, time.monotonic())
    expire(connection)
    leases.acquire(connection, LEADER_LEASE, OTHER_HOLDER)
    with pytest.raises(LeaseLost), former.fenced() as tx:
        outbox.add_messages(tx, [outbox_row("a")])
    assert outbox.read_pending_messages(connection, 10) == []
    assert not former.is_held()
    former.close()


def test_a_former_holder_with_the_same_term_in_a_restored_database_cannot_write(
    connection: Connection, database_url: str
) -> None:
    """The restored database assigns term 1 again, so that only the holder's uuid differs."""
    former = Lease(database_url, LEADER_LEASE, HOLDER, 1, time.monotonic())
    leases.acquire(connection, LEADER_LEASE, OTHER_HOLDER)
    with pytest.raises(LeaseLost), former.fenced():
        pass
    former.close()


def test_a_takeover_waits_for_a_fenced_transaction_and_a_renewal_does_not(
    connection: Connection, database_url: str
) -> None:
    leases.acquire(connection, LEADER_LEASE, HOLDER)
    holder = Lease(database_url, LEADER_LEASE, HOLDER, 1, time.monotonic())
    terms: list[int | None] = []

    def take_over() -> None:
        with connect(database_url, name="standby") as standby:
            terms.append(leases.acquire(standby, LEADER_LEASE, OTHER_HOLDER))

    with holder.fenced() as tx:
        assert leases.renew(connection, {LEADER_LEASE: 1}, HOLDER)
        expire(connection)
        standby = threading.Thread(target=take_over, name="standby")
        standby.start()
        wait_until(lambda: waits_for_a_lock(connection), "the takeover waits")
        outbox.add_messages(tx, [outbox_row("a")])
        assert terms == []
    standby.join(10)
    assert terms == [2]
    assert len(outbox.read_pending_messages(connection, 10)) == 1
    holder.close()


def waits_for_a_lock(connection: Connection) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'standby' AND wait_event_type = 'Lock'"
    return connection.execute(query).fetchone() == (1,)


def test_a_holder_frozen_in_a_transaction_does_not_block_a_takeover_forever(
    connection: Connection, database_url: str
) -> None:
    leases.acquire(connection, LEADER_LEASE, HOLDER)
    frozen = Lease(database_url, LEADER_LEASE, HOLDER, 1, time.monotonic())
    with pytest.raises(psycopg.Error, match=r"transaction timeout|closed the connection"), frozen.fenced() as tx:  # noqa: PT012
        expire(connection)
        connection.execute("SET lock_timeout = '10s'")  # longer than any bounded wait
        began_s = time.monotonic()
        assert leases.acquire(connection, LEADER_LEASE, OTHER_HOLDER) == 2
        print_figure(
            f"takeover from a holder frozen in a transaction: {time.monotonic() - began_s:.2f} s (limit: {FENCED_TRANSACTION_S} s)"
        )
        outbox.add_messages(tx, [outbox_row("a")])
    assert outbox.read_pending_messages(connection, 10) == []
    frozen.close()


def test_a_connection_closed_between_two_writes_does_not_fail_the_second_write(
    connection: Connection, database_url: str
) -> None:
    leases.acquire(connection, LEADER_LEASE, HOLDER)
    holder = Lease(database_url, LEADER_LEASE, HOLDER, 1, time.monotonic())
    with holder.fenced():
        pass
    assert terminate_connections(connection, "vidflow leader") == 1
    wait_until(lambda: terminate_connections(connection, "vidflow leader") == 0, "the session has ended")
    with holder.fenced() as tx:
        outbox.add_messages(tx, [outbox_row("a")])
    assert len(outbox.read_pending_messages(connection, 10)) == 1
    holder.close()


def start_holder(database_url: str, stop: Stop, acquired: list[Lease], name: str = LEADER_LEASE) -> threading.Thread:
    """Run a holder on a thread that records each lease it acquires."""

    def work(lease: Lease) -> None:
        acquired.append(lease)
        while lease.is_held() and not stop.requested:
            stop.wait(0.01)

    thread = threading.Thread(target=lambda: run_as_holder(database_url, name, stop, work), name="lease holder")
    thread.start()
    return thread


@pytest.mark.usefixtures("connection")
def test_a_holder_that_stops_releases_its_lease_at_once(database_url: str) -> None:
    first_stop, second_stop = Stop(), Stop()
    first: list[Lease] = []
    second: list[Lease] = []
    threads = [start_holder(database_url, first_stop, first)]
    wait_until(lambda: bool(first), "the first process holds the lease")
    threads.append(start_holder(database_url, second_stop, second))
    began_s = time.monotonic()
    first_stop.request()
    wait_until(lambda: bool(second), "the second process holds the lease")
    print_figure(f"handover: {time.monotonic() - began_s:.2f} s")
    second_stop.request()
    for thread in threads:
        thread.join(10)
    assert (first[0].term, second[0].term) == (1, 2)


@pytest.mark.long
@pytest.mark.usefixtures("connection")
def test_a_renewed_lease_outlasts_its_duration(database_url: str) -> None:
    stop = Stop()
    acquired: list[Lease] = []
    thread = start_holder(database_url, stop, acquired)
    wait_until(lambda: bool(acquired), "the lease is held")
    until_s = time.monotonic() + LEASE_S + 0.5
    wait_until(lambda: time.monotonic() > until_s, "more than the lease's duration has passed")
    assert acquired[0].is_held()
    stop.request()
    thread.join(10)
    assert len(acquired) == 1


def test_a_holder_stops_when_another_process_holds_the_lease(connection: Connection, database_url: str) -> None:
    stop = Stop()
    acquired: list[Lease] = []
    thread = start_holder(database_url, stop, acquired)
    wait_until(lambda: bool(acquired), "the lease is held")
    connection.execute(
        "UPDATE lease SET holder = %s, term = term + 1, expires_at = now() + interval '1 hour'", (OTHER_HOLDER,)
    )
    wait_until(lambda: not acquired[0].is_held(), "the holder stops")
    stop.request()
    thread.join(10)
    assert connection.execute("SELECT holder, term FROM lease").fetchone() == (OTHER_HOLDER, 2)


def test_a_holder_whose_connection_was_terminated_keeps_its_lease(connection: Connection, database_url: str) -> None:
    stop = Stop()
    acquired: list[Lease] = []
    thread = start_holder(database_url, stop, acquired)
    wait_until(lambda: bool(acquired), "the lease is held")

    def expiry() -> datetime.datetime:
        [(expires_at,)] = connection.execute("SELECT expires_at FROM lease").fetchall()
        assert isinstance(expires_at, datetime.datetime)
        return expires_at

    before = expiry()
    assert terminate_connections(connection, "vidflow leader lease") == 1
    wait_until(lambda: expiry() > before, "the lease is renewed on another connection")
    assert acquired[0].is_held()
    stop.request()
    thread.join(10)


def test_no_two_holders_ever_have_the_same_term(connection: Connection, database_url: str) -> None:
    """Five processes compete for a lease that expires again and again."""
    stops = [Stop() for _ in range(5)]
    acquired: list[Lease] = []
    threads = [start_holder(database_url, stop, acquired) for stop in stops]
    for number in range(12):
        wait_until(lambda count=number: len(acquired) > count, "the lease is held")
        expire(connection)
    for stop in stops:
        stop.request()
    for thread in threads:
        thread.join(10)
    terms = [lease.term for lease in acquired]
    assert len(set(terms)) == len(terms) >= 12


def test_an_error_of_the_work_is_raised(connection: Connection, database_url: str) -> None:
    def work(_lease: Lease) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_as_holder(database_url, LEADER_LEASE, Stop(), work)
    assert leases.acquire(connection, LEADER_LEASE, OTHER_HOLDER) == 2
