"""Dead letters from the inbox and the relay to an operator's commands."""

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
    read_progress,
    read_topic,
    recreate_topics,
    running_role,
    send_results,
    stored_frame_numbers,
)
from tests.integration.server_owner import wait_until

from vidflow.commands import dlq
from vidflow.domain.messages import DeadLetter, encode
from vidflow.domain.topics import DEAD_LETTERS, RESULTS
from vidflow.infra.kafka import admin, clients, offsets
from vidflow.infra.kafka.dead_letters import PendingDeadLetter, read_pending_dead_letters, why_not_replayable
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres.connection import Connection
from vidflow.roles import inbox, relay
from vidflow.settings import InboxOptions, RelayOptions

ESCAPE = "\x1b[31m"
NEWER = b'{"type":"frame","made_by":"a newer version"}'


@pytest.fixture
def broker(kafka_settings: KafkaSettings) -> KafkaSettings:
    recreate_topics(kafka_settings)
    return kafka_settings


def deliver_all(connection: Connection, database_url: str, settings: KafkaSettings) -> None:
    """Run an inbox until it has processed all results, then a relay until it has published all dead letters."""
    ends = offsets.read_end_offsets(admin.create_admin(settings), RESULTS)
    query = "SELECT coalesce(sum(position), 0)::int FROM inbox_partitions"
    with running_role(inbox.run, InboxOptions(database_url=database_url, kafka=settings)):
        wait_until(
            lambda: connection.execute(query).fetchone() == (sum(ends.values()),), "the inbox has processed all results"
        )
    with running_role(relay.run, RelayOptions(database_url=database_url, kafka=settings)):
        wait_until(lambda: count_unpublished(connection) == 0, "the relay has published all dead letters")


def put(settings: KafkaSettings, *messages: tuple[str | bytes, bytes | None]) -> None:
    """Write messages, each a key and a value, directly to the dead letters' topic."""
    producer = clients.create_producer(settings, client_id="writes-letters")
    clients.fetch_topic_metadata(producer, DEAD_LETTERS)
    for key, value in messages:
        producer.produce(DEAD_LETTERS, value, key)
    assert producer.flush(10) == 0


def build_letter(number: int, **fields: Any) -> DeadLetter:
    return DeadLetter(RESULTS, 0, number, **{"error": "not a message", "key": b"k", "value": b"v", **fields})


def send_letter(settings: KafkaSettings, number: int, **fields: Any) -> DeadLetter:
    letter = build_letter(number, **fields)
    put(settings, (letter.place, encode(letter)))
    return letter


def places(settings: KafkaSettings) -> list[str]:
    return [pending.place for pending in read_pending_dead_letters(settings)]


def place_of(message: Message) -> str:
    return f"{message.topic()}/{message.partition()}/{message.offset()}"


def test_a_dead_letter_has_the_place_key_value_and_headers_of_its_message(
    connection: Connection, database_url: str, broker: KafkaSettings
) -> None:
    uuid = insert_progress(connection)
    send_results(broker, frame(uuid, 0))
    send_results(broker, NEWER, key=uuid, headers=WORKER_HEADERS)
    send_results(broker, frame(uuid, 1))
    deliver_all(connection, database_url, broker)
    original = read_topic(broker, RESULTS)[1]
    [pending] = read_pending_dead_letters(broker)
    assert pending.place == place_of(original)
    assert pending.letter is not None
    assert (pending.letter.key, pending.letter.value) == (uuid.encode(), NEWER)
    assert list(pending.letter.headers) == original.headers() == WORKER_HEADERS
    assert "frame" in pending.error or "field" in pending.error


def test_the_dead_letter_of_a_row_that_postgresql_rejects_has_its_headers(
    connection: Connection, database_url: str, broker: KafkaSettings
) -> None:
    uuid = insert_progress(connection)
    send_results(broker, encode(frame(uuid, 0)).replace(b"Z", b"\\u0000"), key=uuid, headers=WORKER_HEADERS)
    deliver_all(connection, database_url, broker)
    [pending] = read_pending_dead_letters(broker)
    assert pending.letter is not None
    assert list(pending.letter.headers) == WORKER_HEADERS


def test_the_topic_is_compacted_so_that_letters_are_kept_without_a_time_limit(broker: KafkaSettings) -> None:
    from confluent_kafka.admin import ConfigResource, ResourceType  # noqa: PLC0415

    client = admin.create_admin(broker)
    resource = ConfigResource(ResourceType.TOPIC, DEAD_LETTERS)
    settings = client.describe_configs([resource])[resource].result()
    assert settings["cleanup.policy"].value == "compact"


def test_a_letter_that_was_written_twice_is_listed_once(broker: KafkaSettings) -> None:
    """This happens if a relay dies before it removes a published row, or an inbox reads again after a restore."""
    first, other = build_letter(1), build_letter(2)
    put(broker, *[(letter.place, encode(letter)) for letter in (first, other, first)])
    assert places(broker) == [other.place, first.place]


def test_a_dropped_letter_is_gone_and_the_others_stay(
    broker: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = send_letter(broker, 1), send_letter(broker, 2)
    dlq.drop(broker, [first.place], "table", all_letters=False)
    assert places(broker) == [other.place]
    assert capsys.readouterr().out == f"dropped {first.place}\n"
    dlq.drop(broker, [], "table", all_letters=True)
    assert places(broker) == []


def test_a_replayed_message_equals_the_original(broker: KafkaSettings, capsys: pytest.CaptureFixture[str]) -> None:
    uuid = "01999999-0000-7000-8000-000000000000"
    send_results(broker, b"\x00\xff", key=uuid, headers=[(clients.KIND_HEADER, b"frame"), ("empty", None)])
    [original] = read_topic(broker, RESULTS)
    headers = tuple(original.headers())
    letter = send_letter(broker, 7, key=original.key(), value=original.value(), headers=headers)
    dlq.replay(broker, [letter.place], "json", all_letters=False)
    replayed = read_topic(broker, RESULTS)[1]
    assert (replayed.key(), replayed.value()) == (original.key(), original.value())
    assert replayed.headers() == original.headers()
    assert replayed.partition() == original.partition()
    assert json.loads(capsys.readouterr().out) == [{"place": letter.place, "now_at": place_of(replayed)}]
    assert places(broker) == []


def test_a_letter_stays_if_its_message_cannot_be_sent(broker: KafkaSettings) -> None:
    """The message's topic does not exist."""
    letter = send_letter(broker, 1)
    client = admin.create_admin(broker)
    client.delete_topics([RESULTS])[RESULTS].result()
    wait_until(lambda: RESULTS not in client.list_topics(timeout=10).topics, "the topic is gone")
    end = run_command("dlq", "replay", letter.place, "--kafka", broker.bootstrap)
    assert end.returncode == 4, end.stderr
    assert len(end.stderr.splitlines()) == 1
    assert places(broker) == [letter.place]


def test_many_letters_are_replayed_together(broker: KafkaSettings) -> None:
    letters = [build_letter(number, key=str(number).encode(), value=str(number).encode()) for number in range(500)]
    put(broker, *[(letter.place, encode(letter)) for letter in letters])
    dlq.replay(broker, [], "table", all_letters=True)
    assert places(broker) == []
    assert sorted(int(message.value()) for message in read_topic(broker, RESULTS)) == list(range(500))


def test_letters_that_cannot_be_replayed_stay_and_are_reported(broker: KafkaSettings) -> None:
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


def test_the_reason_why_a_letter_cannot_be_replayed_is_known_beforehand(broker: KafkaSettings) -> None:
    send_letter(broker, 1)
    [pending] = read_pending_dead_letters(broker)
    assert why_not_replayable(pending) is None
    cut = PendingDeadLetter(pending.key, pending.at, "", send_letter(broker, 2, cut=True))
    assert "too long" in (why_not_replayable(cut) or "")


class TestAfterAReplay:
    """Effects of a replay on the scenario of the replayed frame."""

    @pytest.fixture
    def lost(self, connection: Connection, database_url: str, broker: KafkaSettings) -> tuple[str, str]:
        """A scenario whose frame 1 of epoch 1 is a dead letter, and the letter's place."""
        uuid = insert_progress(connection)
        connection.execute(
            f"ALTER TABLE scenario_results ADD CONSTRAINT picky CHECK (frame_number <> 1 OR scenario_uuid <> '{uuid}')"
        )
        send_results(broker, *frames(uuid, range(4)))
        try:
            deliver_all(connection, database_url, broker)
        finally:
            connection.execute("ALTER TABLE scenario_results DROP CONSTRAINT picky")
        assert stored_frame_numbers(connection, uuid) == [0]
        [place] = places(broker)
        return uuid, place

    def test_a_frame_that_is_still_missing_is_stored(
        self, connection: Connection, database_url: str, broker: KafkaSettings, lost: tuple[str, str]
    ) -> None:
        uuid, place = lost
        dlq.replay(broker, [place], "table", all_letters=False)
        deliver_all(connection, database_url, broker)
        assert stored_frame_numbers(connection, uuid) == [0, 1]

    def test_invariant_5_a_frame_that_a_later_epoch_has_stored_changes_nothing(
        self, connection: Connection, database_url: str, broker: KafkaSettings, lost: tuple[str, str]
    ) -> None:
        uuid, place = lost
        connection.execute("UPDATE scenario_progress SET epoch = 2 WHERE scenario_uuid = %s", (uuid,))
        send_results(broker, *frames(uuid, range(1, 4), epoch=2))
        deliver_all(connection, database_url, broker)
        before = connection.execute("SELECT * FROM scenario_results ORDER BY frame_number").fetchall()
        progress = read_progress(connection, [uuid])
        dlq.replay(broker, [place], "table", all_letters=False)
        deliver_all(connection, database_url, broker)
        assert connection.execute("SELECT * FROM scenario_results ORDER BY frame_number").fetchall() == before
        assert read_progress(connection, [uuid]) == progress
        assert [row[2] for row in before] == [1, 2, 2, 2]

    def test_invariant_6_a_frame_of_a_closed_scenario_changes_nothing(
        self, connection: Connection, database_url: str, broker: KafkaSettings, lost: tuple[str, str]
    ) -> None:
        uuid, place = lost
        connection.execute("UPDATE scenario_progress SET closed = true WHERE scenario_uuid = %s", (uuid,))
        dlq.replay(broker, [place], "table", all_letters=False)
        deliver_all(connection, database_url, broker)
        assert stored_frame_numbers(connection, uuid) == [0]

    @pytest.mark.long
    def test_a_message_that_still_cannot_be_stored_becomes_a_letter_of_its_new_place(
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
    """The output of `vidflow dlq` for people and for programs."""

    def test_the_list_is_a_table_for_people_and_an_array_for_programs(self, broker: KafkaSettings) -> None:
        first, other = send_letter(broker, 1), send_letter(broker, 2, error=f"odd {ESCAPE}\nwords", value=None)
        end = run_command("dlq", "list", "--kafka", broker.bootstrap)
        assert (end.returncode, end.stderr) == (0, "")
        heading, *lines = end.stdout.splitlines()
        assert heading.split() == ["PLACE", "SINCE", "KEY", "BYTES", "ERROR"]
        assert [line.split()[0] for line in lines] == [first.place, other.place]
        assert ESCAPE not in end.stdout
        items = json.loads(run_command("dlq", "list", "--output", "json", "--kafka", broker.bootstrap).stdout)
        assert [(item["place"], item["key"], item["bytes"], item["replayable"]) for item in items] == [
            (first.place, "k", 1, True),
            (other.place, "k", 0, True),
        ]
        assert items[1]["error"] == other.error

    def test_a_letter_is_shown_with_its_headers_and_the_start_of_a_long_value(self, broker: KafkaSettings) -> None:
        headers = ((clients.KIND_HEADER, b"frame"), ("odd", b"\x00" + ESCAPE.encode()))
        letter = send_letter(broker, 1, value=f"{ESCAPE}{{}}\n".encode() + b"x" * 100_000, headers=headers)
        end = run_command("dlq", "show", letter.place, "--kafka", broker.bootstrap)
        assert (end.returncode, end.stderr) == (0, "")
        assert "error    not a message" in end.stdout
        assert f"header   {clients.KIND_HEADER}: frame" in end.stdout
        assert "\\x1b[31m{}\nxxx" in end.stdout
        assert ESCAPE not in end.stdout
        assert len(end.stdout) < 3000
        assert "(100008 bytes in total, see --output json)" in end.stdout
        end = run_command("dlq", "show", letter.place, "--output", "json", "--kafka", broker.bootstrap)
        item = json.loads(end.stdout)
        assert item["text"].encode() == letter.value
        assert item["headers"][0] == [clients.KIND_HEADER, "ZnJhbWU="]

    def test_an_empty_list_is_a_sentence_for_people_and_an_empty_array_for_programs(
        self, broker: KafkaSettings
    ) -> None:
        end = run_command("dlq", "list", "--kafka", broker.bootstrap)
        assert (end.returncode, end.stdout, end.stderr) == (0, "", "no dead letters\n")
        for command in (["list"], ["drop", "--all"], ["replay", "--all"]):
            end = run_command("dlq", *command, "--output", "json", "--kafka", broker.bootstrap)
            assert (end.returncode, end.stdout, end.stderr) == (0, "[]\n", "")

    def test_an_unknown_place_is_reported_and_no_letter_is_changed(self, broker: KafkaSettings) -> None:
        letter = send_letter(broker, 1)
        for command in ("show", "drop", "replay"):
            known = [] if command == "show" else [letter.place]
            end = run_command("dlq", command, *known, f"{RESULTS}/9/9", "--kafka", broker.bootstrap)
            assert end.returncode == 2
            assert (
                end.stderr
                == f"vidflow: No dead letter at {RESULTS}/9/9. List the dead letters with: vidflow dlq list\n"
            )
        assert places(broker) == [letter.place]

    @pytest.mark.parametrize("command", [["drop"], ["replay"], ["drop", "--all", "a/0/0"]])
    def test_a_command_without_places_or_with_places_and_all_is_refused(
        self, broker: KafkaSettings, command: list[str]
    ) -> None:
        letter = send_letter(broker, 1)
        end = run_command("dlq", *command, "--kafka", broker.bootstrap)
        assert end.returncode == 2
        assert end.stderr == "vidflow: Give either the places of dead letters (see vidflow dlq list) or --all.\n"
        assert places(broker) == [letter.place]

    def test_a_missing_topic_is_reported_with_the_command_that_creates_it(self, broker: KafkaSettings) -> None:
        client = admin.create_admin(broker)
        client.delete_topics([DEAD_LETTERS])[DEAD_LETTERS].result()
        wait_until(lambda: DEAD_LETTERS not in client.list_topics(timeout=10).topics, "the topic is gone")
        end = run_command("dlq", "list", "--kafka", broker.bootstrap)
        assert end.returncode == 4
        [line] = end.stderr.splitlines()
        assert line.endswith("Create the topics with: vidflow topics create")
