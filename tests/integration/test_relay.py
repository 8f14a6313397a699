from __future__ import annotations

import logging
import os
import signal
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message
from tests.integration.delivery import (
    count_unpublished,
    limited_message_size,
    outbox_row,
    print_figure,
    read_topic,
    recreate_topics,
    remove_topics,
    role_process,
    running_role,
    terminate_connections,
    write_outbox_rows,
)
from tests.integration.disks import logged_outages, simulated_full_disk
from tests.integration.server_owner import wait_until

from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.kafka import clients, offsets, topics
from vidflow.infra.kafka.publisher import DeliveryResults, Publisher, add_delivery_results
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.postgres.lease import LeaseLost
from vidflow.infra.postgres.shard_leases import HeldLease, ShardLeases, maintain_shard_leases
from vidflow.infra.process.stopping import Stop
from vidflow.roles.relay import BATCH_ROWS, Relay, run
from vidflow.settings import RelayOptions, read_environment_variable

COMMANDS = "to_deploy.default"
FULL_S = 3.0
"""Longer than a lease."""


@pytest.fixture
def empty_topics(kafka_settings: KafkaSettings) -> KafkaSettings:
    recreate_topics(kafka_settings)
    return kafka_settings


@pytest.fixture
def options(database_url: str, empty_topics: KafkaSettings) -> RelayOptions:
    return RelayOptions(database_url=database_url, kafka=empty_topics)


def by_key(messages: list[Message]) -> dict[str, list[int]]:
    """The numbers in the payloads, by key, in the order of the log."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for message in messages:
        numbers[message.key().decode()].append(int(message.value()))
    return numbers


def last_of_each(numbers: list[int]) -> list[int]:
    """The numbers in the order of their last appearance: what remains for a reader that believes the newest."""
    return sorted(set(numbers), key=lambda number: len(numbers) - 1 - numbers[::-1].index(number))


def test_every_row_is_published_once_in_the_order_of_its_key(connection: Connection, options: RelayOptions) -> None:
    write_outbox_rows(connection, keys=20, rows_per_key=150)
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "all is published")
    assert by_key(read_topic(options.kafka, COMMANDS)) == {f"key-{key}": list(range(150)) for key in range(20)}


def test_a_message_has_its_key_its_bytes_and_its_headers(connection: Connection, options: RelayOptions) -> None:
    outbox.add_messages(connection, [outbox_row("key", b"\x00bytes", kind="stop", epoch=7, runner="r1")])
    [waiting] = outbox.read_pending_messages(connection, 10)
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "it is published")
    [message] = read_topic(options.kafka, COMMANDS)
    assert (message.key(), message.value()) == (b"key", b"\x00bytes")
    assert dict(message.headers()) == {
        clients.MESSAGE_ID_HEADER: str(waiting.message_id).encode(),
        clients.EPOCH_HEADER: b"7",
        clients.KIND_HEADER: b"stop",
        clients.RUNNER_HEADER: b"r1",
    }


def test_a_row_that_becomes_visible_behind_later_ones_is_published(
    connection: Connection, options: RelayOptions, database_url: str
) -> None:
    with running_role(run, options), connect(database_url, name="late") as late:
        with late.transaction():
            outbox.add_messages(late, [outbox_row("late", b"0")])
            write_outbox_rows(connection, keys=3, rows_per_key=5)
            wait_until(lambda: count_unpublished(connection) == 0, "the later ones are published")
        wait_until(lambda: count_unpublished(connection) == 0, "the late one too")
    assert by_key(read_topic(options.kafka, COMMANDS)).keys() == {"late", "key-0", "key-1", "key-2"}


def test_invariant_2_a_row_that_appears_below_what_was_sent_comes_before_the_next_of_its_key(
    connection: Connection, options: RelayOptions, database_url: str
) -> None:
    stop, publisher = Stop(), Publisher(options.kafka, client_id="test")
    with maintain_shard_leases(database_url, stop) as shares, connect(database_url, name="late") as late:
        wait_until(lambda: len(shares.owned_shards()) == 16, "it owns all shards")
        relay = Relay(shares, publisher, connection, stop)
        with late.transaction():
            outbox.add_messages(late, [outbox_row("late", b"0")])
            write_outbox_rows(connection, keys=10, rows_per_key=BATCH_ROWS // 10)
            relay.step()
        outbox.add_messages(connection, [outbox_row("late", b"1")])
        while count_unpublished(connection):
            relay.step()
        publisher.close()
    assert by_key(read_topic(options.kafka, COMMANDS))["late"] == [0, 1]


def test_rows_that_come_while_it_runs_are_published(connection: Connection, options: RelayOptions) -> None:
    waits_s = []
    with running_role(run, options):
        wait_until(lambda: owners(connection) == [16], "it owns all shards")
        for _ in range(20):
            outbox.add_messages(connection, [outbox_row("key", b"1")])
            began_s = time.monotonic()
            wait_until(lambda: count_unpublished(connection) == 0, "it is published")
            waits_s.append(time.monotonic() - began_s)
    print_figure(f"from insert to removed, seen by polling at 20 ms: median {sorted(waits_s)[10] * 1000:.0f} ms")
    assert len(read_topic(options.kafka, COMMANDS)) == 20


@pytest.mark.fault
def test_a_relay_that_cannot_remove_on_a_full_disk_publishes_nothing_twice_and_says_so_once(
    connection: Connection, options: RelayOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vidflow")
    write_outbox_rows(connection, keys=5, rows_per_key=10)
    with running_role(run, options):
        with simulated_full_disk(connection, "outbox", "DELETE"):
            wait_until(lambda: "disk_full" in logged_outages(caplog), "it has noticed")
            until_s = time.monotonic() + FULL_S
            wait_until(lambda: time.monotonic() > until_s, "it tries again and again")
        wait_until(lambda: count_unpublished(connection) == 0, "all is removed")
    assert len(read_topic(options.kafka, COMMANDS)) == 50
    assert logged_outages(caplog) == ["disk_full", "back"]


@pytest.mark.fault
@pytest.mark.parametrize("place", ["relay.before_publish", "relay.after_publish", "relay.after_mark"])
def test_a_relay_killed_at_any_place_loses_nothing_and_breaks_no_order(
    connection: Connection, options: RelayOptions, place: str
) -> None:
    write_outbox_rows(connection, keys=10, rows_per_key=1500)
    with role_process("relay", options.database_url, options.kafka, crash_at=f"{place}:2") as child:
        child.wait(30)
        assert child.returncode == -9, f"{place} was hit"
    assert count_unpublished(connection) > 0
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "the next relay publishes the rest")
    for key, numbers in by_key(read_topic(options.kafka, COMMANDS)).items():
        assert last_of_each(numbers) == list(range(1500)), f"{key} in {place}"


@pytest.mark.fault
def test_a_relay_that_died_between_publishing_and_removing_is_followed_by_one_that_publishes_again(
    connection: Connection, options: RelayOptions
) -> None:
    write_outbox_rows(connection, keys=1, rows_per_key=5)
    with role_process("relay", options.database_url, options.kafka, crash_at="relay.after_publish") as child:
        child.wait(30)
    assert count_unpublished(connection) == 5
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "all is removed")
    assert by_key(read_topic(options.kafka, COMMANDS)) == {"key-0": [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]}


def owners(tables: Connection) -> list[int]:
    """How many shards each relay owns, of those that own any."""
    rows = tables.execute(
        "SELECT count(*) FROM lease WHERE name LIKE 'outbox/%' AND expires_at > clock_timestamp() GROUP BY holder"
    ).fetchall()
    return sorted(count for (count,) in rows)


def test_relays_share_the_shards_evenly_and_take_over_what_one_leaves(
    connection: Connection, options: RelayOptions
) -> None:
    with running_role(run, options):
        wait_until(lambda: owners(connection) == [16], "one owns all")
        with running_role(run, options), running_role(run, options):
            wait_until(lambda: owners(connection) == [5, 5, 6], "three own a third each")
        began_s = time.monotonic()
        wait_until(lambda: owners(connection) == [16], "one owns all again")
        print_figure(f"shards of relays that stopped, taken over: {time.monotonic() - began_s:.2f} s")
    assert owners(connection) == []


def test_invariant_2_rows_keep_the_order_of_their_key_while_relays_come_and_go(
    connection: Connection, options: RelayOptions
) -> None:
    write_outbox_rows(connection, keys=40, rows_per_key=100)
    with running_role(run, options):
        for start in range(100, 500, 100):
            with running_role(run, options):
                outbox.add_messages(
                    connection,
                    [outbox_row(f"key-{key}", b"%d" % n) for n in range(start, start + 100) for key in range(40)],
                )
                wait_until(lambda: len(owners(connection)) == 2, "two share the work")
        wait_until(lambda: count_unpublished(connection) == 0, "all is published")
    assert by_key(read_topic(options.kafka, COMMANDS)) == {f"key-{key}": list(range(500)) for key in range(40)}


@pytest.mark.fault
def test_invariant_2_a_killed_relay_is_followed_by_those_that_live(
    connection: Connection, options: RelayOptions
) -> None:
    with role_process("relay", options.database_url, options.kafka) as first:
        wait_until(lambda: owners(connection) == [16], "the first owns all")
        with running_role(run, options):
            wait_until(lambda: owners(connection) == [8, 8], "two share the work")
            write_outbox_rows(connection, keys=40, rows_per_key=10)
            wait_until(lambda: count_unpublished(connection) == 0, "both publish")
            first.kill()
            began_s = time.monotonic()
            outbox.add_messages(connection, [outbox_row(f"key-{key}", b"10") for key in range(40)])
            wait_until(lambda: count_unpublished(connection) == 0, "the second publishes all")
            print_figure(
                f"a takeover from a killed relay, to the last message removed: {time.monotonic() - began_s:.2f} s"
            )
    assert by_key(read_topic(options.kafka, COMMANDS)) == {f"key-{key}": list(range(11)) for key in range(40)}


@pytest.mark.fault
def test_invariant_2_a_relay_that_was_frozen_removes_nothing_that_is_another_s(
    connection: Connection, options: RelayOptions
) -> None:
    with role_process("relay", options.database_url, options.kafka) as first:
        wait_until(lambda: owners(connection) == [16], "the first owns all")
        first.send_signal(signal.SIGSTOP)
        with running_role(run, options):
            write_outbox_rows(connection, keys=20, rows_per_key=50)
            wait_until(lambda: count_unpublished(connection) == 0, "the second publishes all")
            first.send_signal(signal.SIGCONT)
            wait_until(lambda: owners(connection) == [8, 8], "the first is back")
            outbox.add_messages(connection, [outbox_row(f"key-{key}", b"50") for key in range(20)])
            wait_until(lambda: count_unpublished(connection) == 0, "both publish")
            assert first.poll() is None
    for numbers in by_key(read_topic(options.kafka, COMMANDS)).values():
        assert last_of_each(numbers) == list(range(51))


def test_a_relay_that_is_to_stop_ends_its_batch_and_leaves_its_shards(
    connection: Connection, options: RelayOptions
) -> None:
    write_outbox_rows(connection, keys=20, rows_per_key=500)
    with role_process("relay", options.database_url, options.kafka) as first:
        wait_until(lambda: count_unpublished(connection) < 10_000, "it is at work")
        first.terminate()
        assert first.wait(10) == 0
    assert owners(connection) == []
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "the next publishes the rest")
    assert by_key(read_topic(options.kafka, COMMANDS)) == {f"key-{key}": list(range(500)) for key in range(20)}


def test_a_topic_that_takes_no_large_messages_refuses_the_large_row_alone(
    connection: Connection, options: RelayOptions
) -> None:
    payloads = [os.urandom(2000) for _ in range(300)]
    payloads[150] = os.urandom(60_000)
    outbox.add_messages(
        connection, [outbox_row(f"key-{number % 3}", payload) for number, payload in enumerate(payloads)]
    )
    with limited_message_size(options.kafka, COMMANDS, 20_000), running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "all but one are published", limit_s=60)
        wait_until(lambda: len(outbox.list_set_aside(connection, 10)) == 1, "that one is set aside")
    [aside] = outbox.list_set_aside(connection, 10)
    assert aside.size_bytes == 60_000
    arrived: dict[bytes, list[bytes]] = defaultdict(list)
    for message in read_topic(options.kafka, COMMANDS):
        arrived[message.key()].append(message.value())
    for number in range(3):
        wanted = [payload for place, payload in enumerate(payloads) if place % 3 == number and place != 150]
        got = arrived[f"key-{number}".encode()]
        assert list(dict.fromkeys(reversed(got)))[::-1] == wanted, "in the order of the key, repeats aside"


def test_a_row_too_large_for_kafka_is_set_aside_and_blocks_nothing(
    connection: Connection, options: RelayOptions
) -> None:
    outbox.add_messages(
        connection,
        [outbox_row("a", b"1"), outbox_row("a", b"x" * 2_000_000), outbox_row("a", b"2"), outbox_row("b", b"3")],
    )
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "the others are published")
    assert by_key(read_topic(options.kafka, COMMANDS)) == {"a": [1, 2], "b": [3]}
    [(error,)] = connection.execute("SELECT error FROM outbox WHERE published_at IS NULL").fetchall()
    assert "large" in error.lower()


def test_a_missing_topic_holds_up_no_other_and_is_served_once_it_is_made(
    connection: Connection, options: RelayOptions
) -> None:
    outbox.add_messages(
        connection, [outbox_row("a", b"1", topic="dead_letters"), *[outbox_row(f"key-{n}", b"2") for n in range(10)]]
    )
    remove_topics(options.kafka, ["dead_letters"])
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 1, "the others are published")
        topics.create_topics(options.kafka)
        wait_until(lambda: count_unpublished(connection) == 0, "it is published too")
    assert [message.value() for message in read_topic(options.kafka, "dead_letters")] == [b"1"]


@pytest.mark.long
def test_a_topic_that_is_deleted_while_it_is_published_to_is_looked_for_anew(
    connection: Connection, options: RelayOptions
) -> None:
    outbox.add_messages(connection, [outbox_row("a", b"1", topic="dead_letters")])
    publisher = Publisher(options.kafka, client_id="relay-under-test")
    try:
        wait_until(lambda: publisher.find_missing_topics(["dead_letters"]) == set(), "the topic is known")
        remove_topics(options.kafka, ["dead_letters"])
        assert publisher.find_missing_topics(["dead_letters"]) == set()  # nothing tells it
        answers, flight = DeliveryResults(), publisher.send(outbox.read_pending_messages(connection, 10))
        publisher.wait_for_delivery(flight, lambda: True)
        add_delivery_results(answers, flight)
        assert list(answers.failed) == ["a"]
        assert publisher.find_missing_topics(["dead_letters"]) == {"dead_letters"}
    finally:
        publisher.close()


def test_a_lost_connection_to_the_database_loses_nothing(connection: Connection, options: RelayOptions) -> None:
    with running_role(run, options):
        for number in range(10):
            write_outbox_rows(connection, keys=3, rows_per_key=50)
            terminate_connections(
                connection,
                ["vidflow relay", "vidflow relay reads", "vidflow relay lease", "vidflow relay care"][number % 4],
            )
        wait_until(lambda: count_unpublished(connection) == 0, "all is published")
    for numbers in by_key(read_topic(options.kafka, COMMANDS)).values():
        assert set(numbers) == set(range(50))
        assert len(numbers) >= 500


def test_a_share_that_is_lost_in_the_middle_of_a_look_is_a_lease_lost(database_url: str) -> None:
    """The thread that renews replaces what is held at any moment."""

    class Replaced(ShardLeases):
        full: Mapping[str, HeldLease]

        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.reads = 0

        def __getattribute__(self, name: str) -> Any:
            if name != "_held":
                return super().__getattribute__(name)
            self.reads += 1
            return self.full if self.reads == 1 else {}

    shares = Replaced(database_url)
    shares.full = {"outbox/3": HeldLease(1, time.monotonic() + 60)}
    with pytest.raises(LeaseLost, match="outbox/3"), shares.fenced([3]):
        pass
    shares.close()


def test_time_limits_of_the_server_end_no_relay(
    connection: Connection, options: RelayOptions, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = connection.info.dbname
    with connect(database_url, name="locks") as other:
        connection.execute(f"ALTER DATABASE {name} SET statement_timeout = '200ms'")
        try:
            with running_role(run, options):
                wait_until(lambda: owners(connection) == [16], "it owns all shards")
                with other.transaction():
                    other.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
                    wait_until(lambda: "timed_out" in [one.getMessage() for one in caplog.records], "it has noticed")
                write_outbox_rows(connection, keys=3, rows_per_key=10)
                wait_until(lambda: count_unpublished(connection) == 0, "all is published")
        finally:
            connection.execute(f"ALTER DATABASE {name} RESET statement_timeout")


@pytest.mark.long
def test_a_relay_s_memory_is_bounded_whatever_the_size_of_what_waits(
    connection: Connection, options: RelayOptions
) -> None:
    large, size = 400, 900_000
    connection.execute(
        """
        INSERT INTO outbox (topic, key, kind, epoch, payload)
        SELECT 'dead_letters', n::text, 'dead_letter', 0, convert_to(rpad(n::text, %s, 'x'), 'UTF8') FROM generate_series(1, %s) AS n
        """,
        (size, large),
    )
    with role_process("relay", options.database_url, options.kafka) as child:
        wait_until(lambda: count_unpublished(connection) == 0, "all is published", 60)
        peak = peak_bytes(child.pid)
    print_figure(f"a relay's memory at its most, {large} dead letters of {size} bytes: {peak / 1e6:.0f} MB")
    assert peak < large * size * 0.6
    assert sum(1 for _ in offsets.read_log(options.kafka, "dead_letters")) == large


def peak_bytes(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.long
@pytest.mark.fault
def test_rows_wait_while_kafka_is_away_and_are_published_in_order_when_it_is_back(
    connection: Connection, database_url: str, tmp_path: Path
) -> None:
    broker = EmbeddedKafka(
        tmp_path, notify=print, stop=Stop(), cache=read_environment_variable("VIDFLOW_CACHE_DIR")
    ).start()
    try:
        topics.create_topics(broker.settings)
        with running_role(run, RelayOptions(database_url=database_url, kafka=broker.settings)):
            write_outbox_rows(connection, keys=3, rows_per_key=10)
            wait_until(lambda: count_unpublished(connection) == 0, "the first rows are published")
            assert broker.process is not None
            broker.process.kill()
            broker.process.wait()
            outbox.add_messages(connection, [outbox_row("key-0", str(number).encode()) for number in range(10, 20)])
            until_s = time.monotonic() + 3
            wait_until(lambda: time.monotonic() > until_s, "more than a lease has passed")
            assert count_unpublished(connection) == 10
            broker.start()
            wait_until(lambda: count_unpublished(connection) == 0, "the rest is published")
        assert last_of_each(by_key(read_topic(broker.settings, COMMANDS))["key-0"]) == list(range(20))
    finally:
        broker.stop()
