"""Dead letters as an operator deals with them: real letters, by a real inbox and a real relay, and the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka import Message
from tests.integration.cli_process import run_command
from tests.integration.delivery import (
    WORKER_HEADERS,
    count_unpublished,
    frame,
    frames,
    insert_progress,
    read_topic,
    recreate_topics,
    running_role,
    send_results,
    stored_frame_numbers,
)
from tests.integration.server_owner import wait_until

from vidflow.commands import dlq
from vidflow.domain.messages import DEAD_LETTERS, RESULTS, DeadLetter, encode
from vidflow.infra.kafka import admin, clients, offsets
from vidflow.infra.kafka.dead_letters import PendingDeadLetter, read_pending_dead_letters, why_not_replayable
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres import results
from vidflow.infra.postgres.connection import Connection
from vidflow.roles import inbox, relay
from vidflow.settings import InboxOptions, RelayOptions

ESCAPE = "\x1b[31m"
NEWER = b'{"type":"frame","made_by":"a newer version"}'


@pytest.fixture
def broker(kafka_settings: KafkaSettings) -> KafkaSettings:
    recreate_topics(kafka_settings)
    return kafka_settings


def deliver_all(tables: Connection, database_url: str, settings: KafkaSettings) -> None:
    """Lets an inbox take all that was sent, and a relay publish what it made of it."""
    ends = offsets.read_end_offsets(admin.create_admin(settings), RESULTS)
    query = "SELECT coalesce(sum(position), 0)::int FROM inbox_partitions"
    with running_role(inbox.run, InboxOptions(database_url=database_url, kafka=settings)):
        wait_until(lambda: tables.execute(query).fetchone() == (sum(ends.values()),), "the inbox has taken all")
    with running_role(relay.run, RelayOptions(database_url=database_url, kafka=settings)):
        wait_until(lambda: count_unpublished(tables) == 0, "the relay has published all")


def put(settings: KafkaSettings, *messages: tuple[str | bytes, bytes | None]) -> None:
    """Messages of the dead letters' topic, key and value, by whoever can write there."""
    producer = clients.create_producer(settings, client_id="writes-letters")
    clients.fetch_topic_metadata(producer, DEAD_LETTERS)
    for key, value in messages:
        producer.produce(DEAD_LETTERS, value, key)
    assert producer.flush(10) == 0


def made(number: int, **more: Any) -> DeadLetter:
    return DeadLetter(RESULTS, 0, number, **{"error": "not a message", "key": b"k", "value": b"v", **more})


def send_letter(settings: KafkaSettings, number: int, **more: Any) -> DeadLetter:
    one = made(number, **more)
    put(settings, (one.place, encode(one)))
    return one


def places(settings: KafkaSettings) -> list[str]:
    return [one.place for one in read_pending_dead_letters(settings)]


def place_of(message: Message) -> str:
    return f"{message.topic()}/{message.partition()}/{message.offset()}"


def test_what_an_inbox_cannot_take_waits_under_its_place_with_its_key_bytes_and_headers(
    connection: Connection, database_url: str, broker: KafkaSettings
) -> None:
    uuid = insert_progress(connection)
    send_results(broker, frame(uuid, 0))
    send_results(broker, NEWER, key=uuid, headers=WORKER_HEADERS)
    send_results(broker, frame(uuid, 1))
    deliver_all(connection, database_url, broker)
    lost = read_topic(broker, RESULTS)[1]
    [one] = read_pending_dead_letters(broker)
    assert one.place == place_of(lost)
    assert one.letter is not None
    assert (one.letter.key, one.letter.value) == (uuid.encode(), NEWER)
    assert list(one.letter.headers) == lost.headers() == WORKER_HEADERS
    assert "frame" in one.error or "field" in one.error


def test_a_row_that_postgresql_refuses_keeps_its_headers_too(
    connection: Connection, database_url: str, broker: KafkaSettings
) -> None:
    uuid = insert_progress(connection)
    send_results(broker, encode(frame(uuid, 0)).replace(b"Z", b"\\u0000"), key=uuid, headers=WORKER_HEADERS)
    deliver_all(connection, database_url, broker)
    [one] = read_pending_dead_letters(broker)
    assert one.letter is not None
    assert list(one.letter.headers) == WORKER_HEADERS


def test_the_topic_is_made_compacted_since_a_letter_waits_for_as_long_as_it_takes(broker: KafkaSettings) -> None:
    from confluent_kafka.admin import ConfigResource, ResourceType  # noqa: PLC0415

    client = admin.create_admin(broker)
    resource = ConfigResource(ResourceType.TOPIC, DEAD_LETTERS)
    settings = client.describe_configs([resource])[resource].result()
    assert settings["cleanup.policy"].value == "compact"


def test_a_letter_that_was_written_twice_waits_once(broker: KafkaSettings) -> None:
    """As when a relay died between publishing and marking, or an inbox reads again after a restore."""
    first, other = made(1), made(2)
    put(broker, *[(one.place, encode(one)) for one in (first, other, first)])
    assert places(broker) == [other.place, first.place]


def test_a_dropped_letter_waits_no_more_and_the_others_do(
    broker: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = send_letter(broker, 1), send_letter(broker, 2)
    dlq.drop(broker, [one.place], "table", all_letters=False)
    assert places(broker) == [other.place]
    assert capsys.readouterr().out == f"dropped {one.place}\n"
    dlq.drop(broker, [], "table", all_letters=True)
    assert places(broker) == []


def test_a_replayed_message_is_the_original_with_its_key_and_headers(
    broker: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    uuid = "01999999-0000-7000-8000-000000000000"
    send_results(broker, b"\x00\xff", key=uuid, headers=[(clients.KIND_HEADER, b"frame"), ("empty", None)])
    [original] = read_topic(broker, RESULTS)
    headers = tuple(original.headers())
    one = send_letter(broker, 7, key=original.key(), value=original.value(), headers=headers)
    dlq.replay(broker, [one.place], "json", all_letters=False)
    again = read_topic(broker, RESULTS)[1]
    assert (again.key(), again.value(), again.headers()) == (original.key(), original.value(), original.headers())
    assert again.partition() == original.partition()
    assert json.loads(capsys.readouterr().out) == [{"place": one.place, "now_at": place_of(again)}]
    assert places(broker) == []


def test_a_letter_is_dropped_only_once_its_message_was_taken(broker: KafkaSettings) -> None:
    """Its topic is gone: the letter waits as before."""
    one = send_letter(broker, 1)
    client = admin.create_admin(broker)
    client.delete_topics([RESULTS])[RESULTS].result()
    wait_until(lambda: RESULTS not in client.list_topics(timeout=10).topics, "the topic is gone")
    end = run_command("dlq", "replay", one.place, "--kafka", broker.bootstrap)
    assert end.returncode == 4, end.stderr
    assert len(end.stderr.splitlines()) == 1
    assert places(broker) == [one.place]


def test_many_letters_are_replayed_at_once(broker: KafkaSettings) -> None:
    letters = [made(number, key=str(number).encode(), value=str(number).encode()) for number in range(500)]
    put(broker, *[(one.place, encode(one)) for one in letters])
    dlq.replay(broker, [], "table", all_letters=True)
    assert places(broker) == []
    assert sorted(int(message.value()) for message in read_topic(broker, RESULTS)) == list(range(500))


def test_what_cannot_be_replayed_stays_and_is_told_and_the_others_are_replayed(broker: KafkaSettings) -> None:
    cut = send_letter(broker, 1, cut=True)
    send_letter(broker, 2)
    foreign = DeadLetter("to_deploy.default", 0, 3, "?", b"k", b"{}")
    put(broker, (foreign.place, encode(foreign)), (b"\xffnoise", b"no letter at all"))
    with pytest.raises(dlq.DeadLetterNotReplayable, match=r"cannot be replayed: 3, .* too long .* dlq drop"):
        dlq.replay(broker, [], "table", all_letters=True)
    assert places(broker) == [cut.place, foreign.place, "\\xffnoise"]
    assert len(read_topic(broker, RESULTS)) == 1
    assert offsets.read_end_offsets(admin.create_admin(broker), "to_deploy.default") == dict.fromkeys(range(4), 0)
    dlq.drop(broker, ["\\xffnoise", foreign.place], "table", all_letters=False)
    assert places(broker) == [cut.place]


def test_why_a_letter_cannot_be_sent_again_is_known_beforehand(broker: KafkaSettings) -> None:
    send_letter(broker, 1)
    [one] = read_pending_dead_letters(broker)
    assert why_not_replayable(one) is None
    assert "too long" in (
        why_not_replayable(PendingDeadLetter(one.key, one.at, "", send_letter(broker, 2, cut=True))) or ""
    )


class TestAfterAReplay:
    """What becomes of the scenario whose frame was a dead letter."""

    @pytest.fixture
    def lost(self, connection: Connection, database_url: str, broker: KafkaSettings) -> tuple[str, str]:
        """A scenario of which frame 1 of epoch 1 is a dead letter, and the letter's place."""
        uuid = insert_progress(connection)
        picky = (
            f"ALTER TABLE scenario_results ADD CONSTRAINT picky CHECK (frame_number <> 1 OR scenario_uuid <> '{uuid}')"
        )
        connection.execute(picky)
        send_results(broker, *frames(uuid, range(4)))
        try:
            deliver_all(connection, database_url, broker)
        finally:
            connection.execute("ALTER TABLE scenario_results DROP CONSTRAINT picky")
        assert stored_frame_numbers(connection, uuid) == [0]
        [place] = places(broker)
        return uuid, place

    def test_a_frame_that_nobody_has_redone_yet_is_stored(
        self, connection: Connection, database_url: str, broker: KafkaSettings, lost: tuple[str, str]
    ) -> None:
        uuid, place = lost
        dlq.replay(broker, [place], "table", all_letters=False)
        deliver_all(connection, database_url, broker)
        assert stored_frame_numbers(connection, uuid) == [0, 1]

    def test_invariant_5_one_that_was_redone_by_a_later_epoch_changes_nothing(
        self, connection: Connection, database_url: str, broker: KafkaSettings, lost: tuple[str, str]
    ) -> None:
        uuid, place = lost
        connection.execute("UPDATE scenario_progress SET epoch = 2 WHERE scenario_uuid = %s", (uuid,))
        send_results(broker, *frames(uuid, range(1, 4), epoch=2))
        deliver_all(connection, database_url, broker)
        before = connection.execute("SELECT * FROM scenario_results ORDER BY frame_number").fetchall()
        progress = results.read_progress(connection, [uuid])
        dlq.replay(broker, [place], "table", all_letters=False)
        deliver_all(connection, database_url, broker)
        assert connection.execute("SELECT * FROM scenario_results ORDER BY frame_number").fetchall() == before
        assert results.read_progress(connection, [uuid]) == progress
        assert [row[2] for row in before] == [1, 2, 2, 2]

    def test_invariant_6_one_of_a_scenario_that_is_closed_changes_nothing(
        self, connection: Connection, database_url: str, broker: KafkaSettings, lost: tuple[str, str]
    ) -> None:
        uuid, place = lost
        connection.execute("UPDATE scenario_progress SET closed = true WHERE scenario_uuid = %s", (uuid,))
        dlq.replay(broker, [place], "table", all_letters=False)
        deliver_all(connection, database_url, broker)
        assert stored_frame_numbers(connection, uuid) == [0]

    def test_one_that_still_cannot_be_taken_waits_again_at_its_new_place(
        self, connection: Connection, database_url: str, broker: KafkaSettings
    ) -> None:
        uuid = insert_progress(connection)
        send_results(broker, NEWER, key=uuid, headers=WORKER_HEADERS)
        deliver_all(connection, database_url, broker)
        [place] = places(broker)
        dlq.replay(broker, [place], "table", all_letters=False)
        deliver_all(connection, database_url, broker)
        assert places(broker) == [place_of(read_topic(broker, RESULTS)[1])] != [place]


class TestCommandLine:
    """What people read, and what programs read."""

    def test_the_list_is_a_line_a_letter_for_people_and_an_array_for_programs(self, broker: KafkaSettings) -> None:
        one, other = send_letter(broker, 1), send_letter(broker, 2, error=f"odd {ESCAPE}\nwords", value=None)
        end = run_command("dlq", "list", "--kafka", broker.bootstrap)
        assert (end.returncode, end.stderr) == (0, "")
        heading, *lines = end.stdout.splitlines()
        assert heading.split() == ["PLACE", "SINCE", "KEY", "BYTES", "ERROR"]
        assert [line.split()[0] for line in lines] == [one.place, other.place]
        assert ESCAPE not in end.stdout
        told = json.loads(run_command("dlq", "list", "--output", "json", "--kafka", broker.bootstrap).stdout)
        assert [(item["place"], item["key"], item["bytes"], item["replayable"]) for item in told] == [
            (one.place, "k", 1, True),
            (other.place, "k", 0, True),
        ]
        assert told[1]["error"] == other.error

    def test_a_letter_is_shown_with_its_headers_and_no_more_of_a_long_payload_than_one_reads(
        self, broker: KafkaSettings
    ) -> None:
        headers = ((clients.KIND_HEADER, b"frame"), ("odd", b"\x00" + ESCAPE.encode()))
        one = send_letter(broker, 1, value=f"{ESCAPE}{{}}\n".encode() + b"x" * 100_000, headers=headers)
        end = run_command("dlq", "show", one.place, "--kafka", broker.bootstrap)
        assert (end.returncode, end.stderr) == (0, "")
        assert "error    not a message" in end.stdout
        assert f"header   {clients.KIND_HEADER}: frame" in end.stdout
        assert "\\x1b[31m{}\nxxx" in end.stdout
        assert ESCAPE not in end.stdout
        assert len(end.stdout) < 3000
        assert "(100008 bytes in total, see --output json)" in end.stdout
        told = json.loads(run_command("dlq", "show", one.place, "--output", "json", "--kafka", broker.bootstrap).stdout)
        assert told["text"].encode() == one.value
        assert told["headers"][0] == [clients.KIND_HEADER, "ZnJhbWU="]

    def test_no_letter_is_a_word_for_people_and_an_empty_array_for_programs(self, broker: KafkaSettings) -> None:
        end = run_command("dlq", "list", "--kafka", broker.bootstrap)
        assert (end.returncode, end.stdout, end.stderr) == (0, "", "no dead letters\n")
        for command in (["list"], ["drop", "--all"], ["replay", "--all"]):
            end = run_command("dlq", *command, "--output", "json", "--kafka", broker.bootstrap)
            assert (end.returncode, end.stdout, end.stderr) == (0, "[]\n", "")

    def test_a_place_at_which_none_waits_is_told_and_no_other_is_touched(self, broker: KafkaSettings) -> None:
        one = send_letter(broker, 1)
        for command in ("show", "drop", "replay"):
            more = [] if command == "show" else [one.place]
            end = run_command("dlq", command, *more, f"{RESULTS}/9/9", "--kafka", broker.bootstrap)
            assert end.returncode == 2
            assert (
                end.stderr
                == f"vidflow: No dead letter at {RESULTS}/9/9. List the dead letters with: vidflow dlq list\n"
            )
        assert places(broker) == [one.place]

    @pytest.mark.parametrize("command", [["drop"], ["replay"], ["drop", "--all", "a/0/0"]])
    def test_what_is_to_be_dealt_with_must_be_said(self, broker: KafkaSettings, command: list[str]) -> None:
        one = send_letter(broker, 1)
        end = run_command("dlq", *command, "--kafka", broker.bootstrap)
        assert end.returncode == 2
        assert end.stderr == ("vidflow: Give either the places of dead letters (see vidflow dlq list) or --all.\n")
        assert places(broker) == [one.place]

    def test_a_missing_topic_is_said_with_what_to_type(self, broker: KafkaSettings) -> None:
        client = admin.create_admin(broker)
        client.delete_topics([DEAD_LETTERS])[DEAD_LETTERS].result()
        wait_until(lambda: DEAD_LETTERS not in client.list_topics(timeout=10).topics, "the topic is gone")
        end = run_command("dlq", "list", "--kafka", broker.bootstrap)
        assert end.returncode == 4
        assert [line.endswith("make the topics with: vidflow topics create") for line in end.stderr.splitlines()] == [
            True
        ]
