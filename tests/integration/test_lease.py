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
from vidflow.infra.postgres.lease import Lease, LeaseLost, run_as_holder
from vidflow.infra.process.stopping import Stop

ONE, OTHER = uuid.uuid4(), uuid.uuid4()


def expire(tables: Connection) -> None:
    """The lease's two seconds are over."""
    tables.execute("UPDATE lease SET expires_at = clock_timestamp()")


def test_the_first_holder_has_term_one(connection: Connection) -> None:
    assert leases.acquire(connection, "leader", ONE) == 1


def test_a_lease_that_is_held_is_given_to_no_other(connection: Connection) -> None:
    leases.acquire(connection, "leader", ONE)
    assert leases.acquire(connection, "leader", OTHER) is None


def test_leases_of_other_names_are_free(connection: Connection) -> None:
    leases.acquire(connection, "leader", ONE)
    assert leases.acquire(connection, "relay", OTHER) == 1


def test_each_holding_has_a_new_term(connection: Connection) -> None:
    leases.acquire(connection, "leader", ONE)
    expire(connection)
    assert leases.acquire(connection, "leader", OTHER) == 2


def test_a_lease_that_is_over_cannot_be_renewed(connection: Connection) -> None:
    leases.acquire(connection, "leader", ONE)
    assert leases.renew(connection, {"leader": 1}, ONE)
    expire(connection)
    assert not leases.renew(connection, {"leader": 1}, ONE)


def test_a_lease_that_was_given_up_is_free_at_once(connection: Connection) -> None:
    leases.acquire(connection, "leader", ONE)
    leases.release(connection, {"leader": 1}, ONE)
    assert leases.acquire(connection, "leader", OTHER) == 2


def test_a_lease_from_before_the_databases_clock_went_back_lasts_for_a_whole_one_at_most(
    connection: Connection,
) -> None:
    leases.acquire(connection, "leader", ONE)
    connection.execute("UPDATE lease SET expires_at = clock_timestamp() + interval '1 hour'")
    leases.cap_expiry(connection)
    [(left_s,)] = connection.execute(
        "SELECT extract(epoch FROM expires_at - clock_timestamp())::float8 FROM lease"
    ).fetchall()
    assert LEASE_S - 0.5 < left_s <= LEASE_S
    assert leases.acquire(connection, "leader", OTHER) is None
    assert leases.renew(connection, {"leader": 1}, ONE)


def test_a_lease_that_ends_in_time_is_not_made_shorter(connection: Connection) -> None:
    leases.acquire(connection, "leader", ONE)
    before = connection.execute("SELECT expires_at FROM lease").fetchone()
    leases.cap_expiry(connection)
    assert connection.execute("SELECT expires_at FROM lease").fetchone() == before


def test_a_holder_that_died_before_the_databases_clock_went_back_is_followed(
    connection: Connection, database_url: str
) -> None:
    leases.acquire(connection, "leader", OTHER)
    connection.execute("UPDATE lease SET expires_at = clock_timestamp() + interval '1 hour'")
    stop = Stop()
    holdings: list[Lease] = []
    thread = running_keeper(database_url, stop, holdings)
    wait_until(lambda: bool(holdings), "it is followed", 5 * LEASE_S)
    stop.request()
    thread.join(10)


def test_a_former_holder_writes_nothing_more(connection: Connection, database_url: str) -> None:
    leases.acquire(connection, "leader", ONE)
    zombie = Lease(database_url, "leader", ONE, 1, time.monotonic())
    expire(connection)
    leases.acquire(connection, "leader", OTHER)
    with pytest.raises(LeaseLost), zombie.fenced() as tx:
        outbox.add_messages(tx, [outbox_row("a")])
    assert outbox.read_pending_messages(connection, 10) == []
    assert not zombie.is_held()
    zombie.close()


def test_a_holder_of_the_same_term_in_a_restored_database_writes_nothing(
    connection: Connection, database_url: str
) -> None:
    """The restored database gives term 1 out a second time: only the holder's uuid tells the two apart."""
    zombie = Lease(database_url, "leader", ONE, 1, time.monotonic())
    leases.acquire(connection, "leader", OTHER)
    with pytest.raises(LeaseLost), zombie.fenced():
        pass
    zombie.close()


def test_a_takeover_waits_for_a_fenced_transaction_and_a_renewal_does_not(
    connection: Connection, database_url: str
) -> None:
    leases.acquire(connection, "leader", ONE)
    holder = Lease(database_url, "leader", ONE, 1, time.monotonic())
    taken: list[int | None] = []

    def take() -> None:
        with connect(database_url, name="standby") as standby:
            taken.append(leases.acquire(standby, "leader", OTHER))

    with holder.fenced() as tx:
        assert leases.renew(connection, {"leader": 1}, ONE)
        expire(connection)
        standby = threading.Thread(target=take, name="standby")
        standby.start()
        wait_until(lambda: waits_for_a_lock(connection), "the takeover waits")
        outbox.add_messages(tx, [outbox_row("a")])
        assert taken == []
    standby.join(10)
    assert taken == [2]
    assert len(outbox.read_pending_messages(connection, 10)) == 1
    holder.close()


def waits_for_a_lock(tables: Connection) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'standby' AND wait_event_type = 'Lock'"
    return tables.execute(query).fetchone() == (1,)


def test_a_holder_frozen_in_a_transaction_does_not_block_a_takeover_for_ever(
    connection: Connection, database_url: str
) -> None:
    leases.acquire(connection, "leader", ONE)
    frozen = Lease(database_url, "leader", ONE, 1, time.monotonic())
    with pytest.raises(psycopg.Error, match=r"transaction timeout|closed the connection"), frozen.fenced() as tx:  # noqa: PT012
        expire(connection)
        connection.execute("SET lock_timeout = '10s'")  # what blocks for that long blocks for ever
        began_s = time.monotonic()
        assert leases.acquire(connection, "leader", OTHER) == 2
        print_figure(
            f"a takeover past a frozen transaction: {time.monotonic() - began_s:.2f} s (its limit: {FENCED_TRANSACTION_S} s)"
        )
        outbox.add_messages(tx, [outbox_row("a")])
    assert outbox.read_pending_messages(connection, 10) == []
    frozen.close()


def test_no_write_fails_by_a_connection_that_the_server_closed_between_two(
    connection: Connection, database_url: str
) -> None:
    leases.acquire(connection, "leader", ONE)
    holder = Lease(database_url, "leader", ONE, 1, time.monotonic())
    with holder.fenced():
        pass
    assert terminate_connections(connection, "vidflow leader") == 1
    wait_until(lambda: terminate_connections(connection, "vidflow leader") == 0, "the session is gone")
    with holder.fenced() as tx:
        outbox.add_messages(tx, [outbox_row("a")])
    assert len(outbox.read_pending_messages(connection, 10)) == 1
    holder.close()


def running_keeper(database_url: str, stop: Stop, holdings: list[Lease], name: str = "leader") -> threading.Thread:
    """Keeps the lease on a thread, and notes each holding."""

    def lead(lease: Lease) -> None:
        holdings.append(lease)
        while lease.is_held() and not stop.requested:
            stop.wait(0.01)

    thread = threading.Thread(target=lambda: run_as_holder(database_url, name, stop, lead), name="keeper")
    thread.start()
    return thread


@pytest.mark.usefixtures("connection")
def test_a_holder_that_stops_hands_over_at_once(database_url: str) -> None:
    first, second = Stop(), Stop()
    one: list[Lease] = []
    two: list[Lease] = []
    threads = [running_keeper(database_url, first, one)]
    wait_until(lambda: bool(one), "the first leads")
    threads.append(running_keeper(database_url, second, two))
    began_s = time.monotonic()
    first.request()
    wait_until(lambda: bool(two), "the second leads")
    print_figure(f"a handover: {time.monotonic() - began_s:.2f} s")
    second.request()
    for thread in threads:
        thread.join(10)
    assert (one[0].term, two[0].term) == (1, 2)


@pytest.mark.usefixtures("connection")
def test_a_lease_lasts_longer_than_its_two_seconds_while_it_is_renewed(database_url: str) -> None:
    stop = Stop()
    holdings: list[Lease] = []
    thread = running_keeper(database_url, stop, holdings)
    wait_until(lambda: bool(holdings), "it leads")
    until_s = time.monotonic() + LEASE_S + 0.5
    wait_until(lambda: time.monotonic() > until_s, "more than a lease has passed")
    assert holdings[0].is_held()
    stop.request()
    thread.join(10)
    assert len(holdings) == 1


def test_a_holder_steps_down_when_another_has_the_lease(connection: Connection, database_url: str) -> None:
    stop = Stop()
    holdings: list[Lease] = []
    thread = running_keeper(database_url, stop, holdings)
    wait_until(lambda: bool(holdings), "it leads")
    connection.execute(
        "UPDATE lease SET holder = %s, term = term + 1, expires_at = now() + interval '1 hour'", (OTHER,)
    )
    wait_until(lambda: not holdings[0].is_held(), "it steps down")
    stop.request()
    thread.join(10)
    assert connection.execute("SELECT holder, term FROM lease").fetchone() == (OTHER, 2)


def test_a_holder_whose_connection_was_cut_goes_on(connection: Connection, database_url: str) -> None:
    stop = Stop()
    holdings: list[Lease] = []
    thread = running_keeper(database_url, stop, holdings)
    wait_until(lambda: bool(holdings), "it leads")

    def expiry() -> datetime.datetime:
        [(at,)] = connection.execute("SELECT expires_at FROM lease").fetchall()
        assert isinstance(at, datetime.datetime)
        return at

    before = expiry()
    assert terminate_connections(connection, "vidflow leader lease") == 1
    wait_until(lambda: expiry() > before, "it renews by another connection")
    assert holdings[0].is_held()
    stop.request()
    thread.join(10)


def test_no_two_holders_ever_have_the_same_term(connection: Connection, database_url: str) -> None:
    """Five standbys; whoever leads is replaced, by its end or by force, until a dozen terms are over."""
    stops = [Stop() for _ in range(5)]
    holdings: list[Lease] = []
    threads = [running_keeper(database_url, stop, holdings) for stop in stops]
    for number in range(12):
        wait_until(lambda wanted=number: len(holdings) > wanted, "somebody leads")
        expire(connection)
    for stop in stops:
        stop.request()
    for thread in threads:
        thread.join(10)
    terms = [holding.term for holding in holdings]
    assert len(set(terms)) == len(terms) >= 12


def test_an_error_of_the_work_is_not_swallowed(connection: Connection, database_url: str) -> None:
    def lead(_lease: Lease) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_as_holder(database_url, "leader", Stop(), lead)
    assert leases.acquire(connection, "leader", OTHER) == 2
