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
"""How long the disk stays full: longer than a lease."""


@pytest.fixture
def empty_topics(kafka_settings: KafkaSettings) -> KafkaSettings:
    recreate_topics(kafka_settings)
    return kafka_settings


@pytest.fixture
def options(database_url: str, empty_topics: KafkaSettings) -> RelayOptions:
    return RelayOptions(database_url=database_url, kafka=empty_topics)


def by_key(messages: list[Message]) -> dict[str, list[int]]:
    """Return the numbers in the payloads by key, in the order of the log."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for message in messages:
        numbers[message.key().decode()].append(int(message.value()))
    return numbers


def order_by_last_appearance(numbers: list[int]) -> list[int]:
    """Return the numbers in the order of their last appearance, as a consumer that keeps the newest copy sees them."""
    return sorted(set(numbers), key=lambda number: len(numbers) - 1 - numbers[::-1].index(number))


def test_every_row_is_published_once_in_the_order_of_its_key(connection: Connection, options: RelayOptions) -> None:
    write_outbox_rows(connection, keys=20, rows_per_key=150)
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "all rows are published")
    assert by_key(read_topic(options.kafka, COMMANDS)) == {f"key-{key}": list(range(150)) for key in range(20)}


def test_a_message_has_the_key_payload_and_headers_of_its_row(connection: Connection, options: RelayOptions) -> None:
    outbox.add_messages(connection, [outbox_row("key", b"\x00bytes", kind="stop", epoch=7, runner="r1")])
    [row] = outbox.read_pending_messages(connection, 10)
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "the row is published")
    [message] = read_topic(options.kafka, COMMANDS)
    assert (message.key(), message.value()) == (b"key", b"\x00bytes")
    assert dict(message.headers()) == {
        clients.MESSAGE_ID_HEADER: str(row.message_id).encode(),
        clients.EPOCH_HEADER: b"7",
        clients.KIND_HEADER: b"stop",
        clients.RUNNER_HEADER: b"r1",
    }


def test_a_row_that_becomes_visible_after_later_ones_is_published(
    connection: Connection, options: RelayOptions, database_url: str
) -> None:
    with running_role(run, options), connect(database_url, name="late") as late:
        with late.transaction():
            outbox.add_messages(late, [outbox_row("late", b"0")])
            write_outbox_rows(connection, keys=3, rows_per_key=5)
            wait_until(lambda: count_unpublished(connection) == 0, "the later rows are published")
        wait_until(lambda: count_unpublished(connection) == 0, "the late row is published, too")
    assert by_key(read_topic(options.kafka, COMMANDS)).keys() == {"late", "key-0", "key-1", "key-2"}


def test_invariant_2_a_row_that_appears_below_the_cursor_is_published_before_later_rows_of_its_key(
    connection: Connection, options: RelayOptions, database_url: str
) -> None:
    stop, publisher = Stop(), Publisher(options.kafka, client_id="test")
    with maintain_shard_leases(database_url, stop) as leases, connect(database_url, name="late") as late:
        wait_until(lambda: len(leases.owned_shards()) == 16, "the relay owns all shards")
        relay = Relay(leases, publisher, connection, stop)
        with late.transaction():
            outbox.add_messages(late, [outbox_row("late", b"0")])
            write_outbox_rows(connection, keys=10, rows_per_key=BATCH_ROWS // 10)
            relay.step()
        outbox.add_messages(connection, [outbox_row("late", b"1")])
        while count_unpublished(connection):
            relay.step()
        publisher.close()
    assert by_key(read_topic(options.kafka, COMMANDS))["late"] == [0, 1]


def test_rows_inserted_while_a_relay_runs_are_published(connection: Connection, options: RelayOptions) -> None:
    waits_s = []
    with running_role(run, options):
        wait_until(lambda: shard_counts(connection) == [16], "the relay owns all shards")
        for _ in range(20):
            outbox.add_messages(connection, [outbox_row("key", b"1")])
            began_s = time.monotonic()
            wait_until(lambda: count_unpublished(connection) == 0, "the row is published")
            waits_s.append(time.monotonic() - began_s)
    print_figure(f"from insertion to removal, polled each 20 ms: median {sorted(waits_s)[10] * 1000:.0f} ms")
    assert len(read_topic(options.kafka, COMMANDS)) == 20


@pytest.mark.fault
@pytest.mark.long
def test_a_full_disk_is_logged_once_and_causes_no_duplicates(
    connection: Connection, options: RelayOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vidflow")
    write_outbox_rows(connection, keys=5, rows_per_key=10)
    with running_role(run, options):
        with simulated_full_disk(connection, "outbox", "DELETE"):
            wait_until(lambda: "disk_full" in logged_outages(caplog), "the relay has noticed the full disk")
            until_s = time.monotonic() + FULL_S
            wait_until(lambda: time.monotonic() > until_s, "the relay has retried for some time")
        wait_until(lambda: count_unpublished(connection) == 0, "all rows are removed")
    assert len(read_topic(options.kafka, COMMANDS)) == 50
    assert logged_outages(caplog) == ["disk_full", "back"]


@pytest.mark.fault
@pytest.mark.parametrize("place", ["relay.before_publish", "relay.after_publish", "relay.after_mark"])
@pytest.mark.long
def test_a_relay_killed_at_a_crash_point_loses_no_rows_and_keeps_their_order(
    connection: Connection, options: RelayOptions, place: str
) -> None:
    write_outbox_rows(connection, keys=10, rows_per_key=1500)
    with role_process("relay", options.database_url, options.kafka, crash_at=f"{place}:2") as child:
        child.wait(30)
        assert child.returncode == -9, f"the relay did not reach {place}"
    assert count_unpublished(connection) > 0
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "the next relay has published the rest")
    for key, numbers in by_key(read_topic(options.kafka, COMMANDS)).items():
        assert order_by_last_appearance(numbers) == list(range(1500)), f"order of {key} after a crash at {place}"


@pytest.mark.long
@pytest.mark.fault
def test_rows_that_a_relay_published_but_did_not_remove_are_published_again(
    connection: Connection, options: RelayOptions
) -> None:
    write_outbox_rows(connection, keys=1, rows_per_key=5)
    with role_process("relay", options.database_url, options.kafka, crash_at="relay.after_publish") as child:
        child.wait(30)
    assert count_unpublished(connection) == 5
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "all rows are removed")
    assert by_key(read_topic(options.kafka, COMMANDS)) == {"key-0": [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]}


def shard_counts(connection: Connection) -> list[int]:
    """Return the number of shards of each relay that owns any, in ascending order."""
    rows = connection.execute(
        "SELECT count(*) FROM lease WHERE name LIKE 'outbox/%' AND expires_at > clock_timestamp() GROUP BY holder"
    ).fetchall()
    return sorted(count for (count,) in rows)


def test_relays_share_the_shards_evenly_and_take_over_those_of_stopped_relays(
    connection: Connection, options: RelayOptions
) -> None:
    with running_role(run, options):
        wait_until(lambda: shard_counts(connection) == [16], "one relay owns all shards")
        with running_role(run, options), running_role(run, options):
            wait_until(lambda: shard_counts(connection) == [5, 5, 6], "three relays own a third each")
        began_s = time.monotonic()
        wait_until(lambda: shard_counts(connection) == [16], "one relay owns all shards again")
        print_figure(f"takeover of the shards of stopped relays: {time.monotonic() - began_s:.2f} s")
    assert shard_counts(connection) == []


@pytest.mark.long
def test_invariant_2_rows_keep_the_order_of_their_key_while_relays_start_and_stop(
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
                wait_until(lambda: len(shard_counts(connection)) == 2, "two relays share the shards")
        wait_until(lambda: count_unpublished(connection) == 0, "all rows are published")
    assert by_key(read_topic(options.kafka, COMMANDS)) == {f"key-{key}": list(range(500)) for key in range(40)}


@pytest.mark.fault
@pytest.mark.long
def test_invariant_2_another_relay_takes_over_the_shards_of_a_killed_relay(
    connection: Connection, options: RelayOptions
) -> None:
    with role_process("relay", options.database_url, options.kafka) as first:
        wait_until(lambda: shard_counts(connection) == [16], "the first relay owns all shards")
        with running_role(run, options):
            wait_until(lambda: shard_counts(connection) == [8, 8], "two relays share the shards")
            write_outbox_rows(connection, keys=40, rows_per_key=10)
            wait_until(lambda: count_unpublished(connection) == 0, "both relays have published their rows")
            first.kill()
            began_s = time.monotonic()
            outbox.add_messages(connection, [outbox_row(f"key-{key}", b"10") for key in range(40)])
            wait_until(lambda: count_unpublished(connection) == 0, "the second relay has published all rows")
            print_figure(
                f"takeover from a killed relay, until the last row is removed: {time.monotonic() - began_s:.2f} s"
            )
    assert by_key(read_topic(options.kafka, COMMANDS)) == {f"key-{key}": list(range(11)) for key in range(40)}


@pytest.mark.fault
@pytest.mark.long
def test_invariant_2_a_relay_that_was_frozen_removes_no_rows_of_its_successor(
    connection: Connection, options: RelayOptions
) -> None:
    with role_process("relay", options.database_url, options.kafka) as first:
        wait_until(lambda: shard_counts(connection) == [16], "the first relay owns all shards")
        first.send_signal(signal.SIGSTOP)
        with running_role(run, options):
            write_outbox_rows(connection, keys=20, rows_per_key=50)
            wait_until(lambda: count_unpublished(connection) == 0, "the second relay has published all rows")
            first.send_signal(signal.SIGCONT)
            wait_until(lambda: shard_counts(connection) == [8, 8], "the first relay owns shards again")
            outbox.add_messages(connection, [outbox_row(f"key-{key}", b"50") for key in range(20)])
            wait_until(lambda: count_unpublished(connection) == 0, "both relays have published their rows")
            assert first.poll() is None
    for numbers in by_key(read_topic(options.kafka, COMMANDS)).values():
        assert order_by_last_appearance(numbers) == list(range(51))


@pytest.mark.long
def test_a_stopping_relay_completes_its_batch_and_releases_its_shards(
    connection: Connection, options: RelayOptions
) -> None:
    write_outbox_rows(connection, keys=20, rows_per_key=500)
    with role_process("relay", options.database_url, options.kafka) as first:
        wait_until(lambda: count_unpublished(connection) < 10_000, "the relay publishes")
        first.terminate()
        assert first.wait(10) == 0
    assert shard_counts(connection) == []
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "the next relay has published the rest")
    assert by_key(read_topic(options.kafka, COMMANDS)) == {f"key-{key}": list(range(500)) for key in range(20)}


def test_only_the_row_above_a_topics_size_limit_is_set_aside(connection: Connection, options: RelayOptions) -> None:
    payloads = [os.urandom(2000) for _ in range(300)]
    payloads[150] = os.urandom(60_000)
    outbox.add_messages(
        connection, [outbox_row(f"key-{number % 3}", payload) for number, payload in enumerate(payloads)]
    )
    with limited_message_size(options.kafka, COMMANDS, 20_000), running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "all rows but one are published", limit_s=60)
        wait_until(lambda: len(outbox.list_set_aside(connection, 10)) == 1, "the large row is set aside")
    [aside] = outbox.list_set_aside(connection, 10)
    assert aside.size_bytes == 60_000
    arrived: dict[bytes, list[bytes]] = defaultdict(list)
    for message in read_topic(options.kafka, COMMANDS):
        arrived[message.key()].append(message.value())
    for number in range(3):
        expected = [payload for index, payload in enumerate(payloads) if index % 3 == number and index != 150]
        received = arrived[f"key-{number}".encode()]
        assert list(dict.fromkeys(reversed(received)))[::-1] == expected, "wrong order, not counting duplicates"


def test_a_row_too_large_for_kafka_is_set_aside_and_blocks_no_other(
    connection: Connection, options: RelayOptions
) -> None:
    outbox.add_messages(
        connection,
        [outbox_row("a", b"1"), outbox_row("a", b"x" * 2_000_000), outbox_row("a", b"2"), outbox_row("b", b"3")],
    )
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 0, "the other rows are published")
    assert by_key(read_topic(options.kafka, COMMANDS)) == {"a": [1, 2], "b": [3]}
    [(error,)] = connection.execute("SELECT error FROM outbox").fetchall()
    assert "large" in error.lower()


def test_a_missing_topic_delays_no_other_and_gets_its_messages_once_it_is_created(
    connection: Connection, options: RelayOptions
) -> None:
    outbox.add_messages(
        connection, [outbox_row("a", b"1", topic="dead_letters"), *[outbox_row(f"key-{n}", b"2") for n in range(10)]]
    )
    remove_topics(options.kafka, ["dead_letters"])
    with running_role(run, options):
        wait_until(lambda: count_unpublished(connection) == 1, "the rows of other topics are published")
        topics.create_topics(options.kafka)
        wait_until(lambda: count_unpublished(connection) == 0, "the last row is published, too")
    assert [message.value() for message in read_topic(options.kafka, "dead_letters")] == [b"1"]


@pytest.mark.long
def test_a_topic_that_is_deleted_during_publishing_is_found_missing(
    connection: Connection, options: RelayOptions
) -> None:
    outbox.add_messages(connection, [outbox_row("a", b"1", topic="dead_letters")])
    publisher = Publisher(options.kafka, client_id="relay-under-test")
    try:
        wait_until(lambda: publisher.find_missing_topics(["dead_letters"]) == set(), "the topic is known")
        remove_topics(options.kafka, ["dead_letters"])
        assert publisher.find_missing_topics(["dead_letters"]) == set()  # nothing has reported the deletion yet
        while not publisher.find_missing_topics(
            ["dead_letters"]
        ):  # a broker that was busy with the deletion answers the next time
            answers, flight = DeliveryResults(), publisher.send(outbox.read_pending_messages(connection, 10))
            publisher.wait_for_delivery(flight, lambda: True)
            add_delivery_results(answers, flight)
            assert list(answers.failed) == ["a"]
        assert publisher.find_missing_topics(["dead_letters"]) == {"dead_letters"}
    finally:
        publisher.close()


def test_lost_database_connections_lose_no_rows(connection: Connection, options: RelayOptions) -> None:
    with running_role(run, options):
        for number in range(10):
            write_outbox_rows(connection, keys=3, rows_per_key=50)
            terminate_connections(
                connection,
                ["vidflow relay", "vidflow relay reads", "vidflow relay lease", "vidflow relay care"][number % 4],
            )
        wait_until(lambda: count_unpublished(connection) == 0, "all rows are published")
    for numbers in by_key(read_topic(options.kafka, COMMANDS)).values():
        assert set(numbers) == set(range(50))
        assert len(numbers) >= 500


def test_a_lease_that_is_lost_during_a_check_raises_lease_lost(database_url: str) -> None:
    """The renewing thread may replace the held leases at any moment."""

    class LostAfterFirstRead(ShardLeases):
        held_at_first: Mapping[str, HeldLease]

        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.reads = 0

        def __getattribute__(self, name: str) -> Any:
            if name != "_held":
                return super().__getattribute__(name)
            self.reads += 1
            return self.held_at_first if self.reads == 1 else {}

    leases = LostAfterFirstRead(database_url)
    leases.held_at_first = {"outbox/3": HeldLease(1, time.monotonic() + 60)}
    with pytest.raises(LeaseLost, match="outbox/3"), leases.fenced([3]):
        pass
    leases.close()


def test_a_statement_timeout_of_the_server_does_not_end_a_relay(
    connection: Connection, options: RelayOptions, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = connection.info.dbname
    with connect(database_url, name="locks") as other:
        connection.execute(f"ALTER DATABASE {name} SET statement_timeout = '200ms'")
        try:
            with running_role(run, options):
                wait_until(lambda: shard_counts(connection) == [16], "the relay owns all shards")
                with other.transaction():
                    other.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
                    wait_until(lambda: "timed_out" in caplog.messages, "the relay has logged the timeout")
                write_outbox_rows(connection, keys=3, rows_per_key=10)
                wait_until(lambda: count_unpublished(connection) == 0, "all rows are published")
        finally:
            connection.execute(f"ALTER DATABASE {name} RESET statement_timeout")


@pytest.mark.long
def test_a_relays_memory_does_not_grow_with_its_backlog(connection: Connection, options: RelayOptions) -> None:
    count, size = 400, 900_000
    connection.execute(
        """
        INSERT INTO outbox (topic, key, kind, epoch, payload)
        SELECT 'dead_letters', n::text, 'dead_letter', 0, convert_to(rpad(n::text, %s, 'x'), 'UTF8') FROM generate_series(1, %s) AS n
        """,
        (size, count),
    )
    with role_process("relay", options.database_url, options.kafka) as child:
        wait_until(lambda: count_unpublished(connection) == 0, "all rows are published", 60)
        peak_bytes = read_peak_bytes(child.pid)
    print_figure(f"a relay's peak memory with {count} dead letters of {size} bytes: {peak_bytes / 1e6:.0f} MB")
    assert peak_bytes < count * size * 0.6
    assert sum(1 for _ in offsets.read_log(options.kafka, "dead_letters")) == count


def read_peak_bytes(pid: int) -> int:
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
            wait_until(lambda: time.monotonic() > until_s, "more than the term of a lease has passed")
            assert count_unpublished(connection) == 10
            broker.start()
            wait_until(lambda: count_unpublished(connection) == 0, "the other rows are published")
        assert order_by_last_appearance(by_key(read_topic(broker.settings, COMMANDS))["key-0"]) == list(range(20))
    finally:
        broker.stop()
