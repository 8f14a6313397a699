"""Scenarios over HTTP: created, read, listed and shut down, with a real client, api and database."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg.types.json import Jsonb
from tests.integration.api_server import (
    SOURCE_URL,
    UNKNOWN_UUID,
    assert_problem,
    create_scenario,
    decode_body,
    is_lock_awaited,
    ready_api,
    wait_until,
    write_completion,
    write_deployment,
    write_results,
)

from vidflow.contract import GapPage, HistoryPage, ScenarioResponse, StoredGap
from vidflow.domain.messages import Start, decode_init_scenario
from vidflow.infra.models import registry
from vidflow.settings import ApiOptions

LABELLED = "ssdlite320_mobilenet_v3_large"
"""A model whose labels are unknown until it is loaded, so requests may name any label."""
SCRIPTS = ["क्\u200dष", "自動\u3000車", "a\u00a0b\u200cc"]
"""Labels with joiners and other spaces."""


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url, any_file=True, video_fps="5")) as client:
        yield client


def test_a_scenario_is_created_with_its_progress_history_and_message(client: httpx.Client, database_url: str) -> None:
    response = client.post(
        "/scenario/init",
        json={
            "source": SOURCE_URL, "model": LABELLED, "fps": 2.5, "priority": 7,
            "parameters": {
                "score_threshold": 0.25, "labels": ["person", "größe", *SCRIPTS], "on_poison": "skip", "on_corrupt": "skip",
                "duration_s": 3600, "end_at": "2099-01-01T01:00:00+01:00", "give_up_after_s": 60, "stream": 1, "live": True,
            },
        },
    )  # fmt: skip
    assert response.status_code == 201
    scenario = response.json()
    assert response.headers["location"] == f"/scenario/{scenario['scenario_uuid']}"
    assert uuid.UUID(scenario["scenario_uuid"]).version == 7
    assert scenario["created_at"].endswith("Z")
    expected = {
        "source": SOURCE_URL, "model": LABELLED, "fps": 2.5, "priority": 7, "state": "init_startup", "outcome": None, "error": None,
        "epoch": 0, "attempt": 0, "runner": None, "resume_frame": 0, "frames_stored": 0, "frames_expected": None, "device": None,
        "skips": [], "warnings": [],
        "parameters": {
            "score_threshold": 0.25, "labels": ["person", "größe", *SCRIPTS], "on_poison": "skip", "on_corrupt": "skip",
            "duration_s": 3600, "end_at": "2099-01-01T00:00:00Z", "give_up_after_s": 60, "stream": 1, "live": True,
        },
    }  # fmt: skip
    assert {name: scenario[name] for name in expected} == expected
    key = (scenario["scenario_uuid"],)
    with psycopg.connect(database_url) as connection:
        progress = connection.execute(
            "SELECT epoch, next_frame, closed FROM scenario_progress WHERE scenario_uuid = %s", key
        ).fetchall()
        history = connection.execute(
            "SELECT number, from_state, to_state FROM scenario_history WHERE scenario_uuid = %s", key
        ).fetchall()
        messages = connection.execute(
            "SELECT topic, kind, epoch, runner, payload FROM outbox WHERE key = %s", key
        ).fetchall()
    assert progress == [(0, 0, False)]
    assert history == [(0, None, "init_startup")]
    assert [message[:4] for message in messages] == [("init_scenario", "start", 0, None)]
    assert decode_init_scenario(messages[0][4]) == Start(scenario["scenario_uuid"])


def test_a_created_scenario_is_returned_unchanged(client: httpx.Client) -> None:
    created = create_scenario(client)
    assert client.get(f"/scenario/{created['scenario_uuid']}").json() == created


@pytest.mark.parametrize(
    ("requested", "returned", "stored"),
    [
        (None, 5, "5"), ("all", "all", "all"), (2, 2, "2"), (0.5, 0.5, "0.5"), (29.97, 29.97, "29.97"), (1000, 1000, "1000"),
        (0.001, 0.001, "0.001"), ("2", 2, "2"), ("29.97", 29.97, "29.97"), ("60/2", 30, "30"),
        ("30000/1001", "30000/1001", "30000/1001"), ("1/86400", "1/86400", "1/86400"), ("1/2", 0.5, "0.5"),
        (29.97002997002997, 29.97002997002997, "2997002997002997/100000000000000"),
    ],
)  # fmt: skip
def test_a_frame_rate_is_stored_exactly_and_returned_in_an_equivalent_form(
    client: httpx.Client, database_url: str, requested: object, returned: object, stored: str
) -> None:
    scenario = create_scenario(client, fps=requested)
    assert scenario["fps"] == returned
    assert create_scenario(client, fps=scenario["fps"])["fps"] == returned
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "SELECT fps FROM scenarios WHERE scenario_uuid = %s", (scenario["scenario_uuid"],)
        ).fetchone()
    assert row == (stored,)


def test_the_default_frame_rate_is_exact(database_url: str) -> None:
    with ready_api(ApiOptions(database_url=database_url, video_fps="30000/1001")) as client:
        assert create_scenario(client)["fps"] == "30000/1001"


def test_the_progress_of_a_running_scenario_is_returned(client: httpx.Client, database_url: str) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    write_deployment(database_url, uuid_)
    write_results(database_url, uuid_, range(3))
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE scenario_progress SET opened = %s WHERE scenario_uuid = %s",
            (Jsonb({"frames_expected": 80, "device": "cuda:1"}), uuid_),
        )
    scenario = client.get(f"/scenario/{uuid_}").json()
    names = ("state", "epoch", "runner", "frames_stored", "frames_expected", "device")
    assert [scenario[name] for name in names] == ["active", 5, "runner-1", 3, 80, "cuda:1"]


def test_warnings_say_what_is_assumed_or_wrong_where_and_how_often(client: httpx.Client, database_url: str) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    places = {"first_frame": 20, "first_s": 0.8, "last_frame": 60, "last_s": 2.4}
    expected = [
        {"code": code, "count": count} | places
        for code, count in (("time_adjusted", 1), ("frames_damaged", 2), ("clock_drift", 3))
    ]
    stored = [*expected[:2], expected[2] | {"offset_s": -3600.25}]
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE scenario_progress SET warnings = %s WHERE scenario_uuid = %s", (Jsonb(stored), uuid_)
        )
    response = client.get(f"/scenario/{uuid_}")
    decode_body(response, ScenarioResponse)
    warnings = response.json()["warnings"]
    messages = [warning.pop("message") for warning in warnings]
    assert warnings == expected
    assert "clock of the source jumped once, first at 0.800 s (frame 20)" in messages[0]
    assert "2 frames are damaged in the source, first at 0.800 s (frame 20)" in messages[1]
    assert "shows a time 3600.2 s before that of the runner (3 times), first at 0.800 s (frame 20)" in messages[2]
    assert client.get("/scenario").json()["items"][0]["warnings"] == response.json()["warnings"]


def test_a_waiting_scenario_names_what_it_waits_for(client: httpx.Client, database_url: str) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]

    def waiting_for() -> str | None:
        value: str | None = client.get(f"/scenario/{uuid_}").json()["waiting_for"]
        return value

    assert waiting_for() == "orchestrator"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO lease VALUES ('leader', uuidv7(), 1, now() + interval '1 h')")
        try:
            assert waiting_for() == "runner"
            connection.execute("INSERT INTO runners VALUES ('r', now(), 2, 1, 0, false, false, 'default', '1')")
            assert waiting_for() == "orchestrator"
            connection.execute(
                "UPDATE scenarios SET due_at = now() + interval '50 s' WHERE scenario_uuid = %s", (uuid_,)
            )
            assert waiting_for() == "backoff"
        finally:
            connection.execute("DELETE FROM lease")
            connection.execute("DELETE FROM runners")


def test_a_failed_scenario_has_its_error_without_secrets(client: httpx.Client, database_url: str) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    error = {"code": "no_frames", "message": "cannot read rtsp://me:hidden@camera/x", "frame_number": 3}
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE scenarios SET state = 'inactive', outcome = 'failed', error = %s WHERE scenario_uuid = %s",
            (Jsonb(error), uuid_),
        )
    scenario = client.get(f"/scenario/{uuid_}").json()
    assert scenario["error"] == error | {"message": "cannot read rtsp://***@camera/x"}


def test_an_unchanged_scenario_is_not_sent_again(client: httpx.Client, database_url: str) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    tag = client.get(f"/scenario/{uuid_}").headers["etag"]
    unchanged = client.get(f"/scenario/{uuid_}", headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
    write_deployment(database_url, uuid_)
    assert client.get(f"/scenario/{uuid_}", headers={"If-None-Match": tag}).status_code == 200


def test_scenarios_are_listed_newest_first_page_by_page(client: httpx.Client, database_url: str) -> None:
    uuids = [create_scenario(client)["scenario_uuid"] for _ in range(5)]
    for scenario_uuid in uuids[::2]:
        write_completion(database_url, scenario_uuid)
    listed: list[str] = []
    after: dict[str, str] = {}
    while len(listed) < 5:
        page = client.get("/scenario", params={"limit": 2, **after}).json()
        listed += [item["scenario_uuid"] for item in page["items"]]
        after = {"after": page["next"]}
    assert listed[:5] == uuids[::-1]
    finished = client.get("/scenario", params={"state": "inactive", "limit": 3}).json()["items"]
    assert [item["scenario_uuid"] for item in finished] == uuids[::-2]


def test_the_last_page_of_scenarios_has_no_cursor(client: httpx.Client) -> None:
    last_page = client.get("/scenario", params={"limit": 1000}).json()
    assert last_page["next"] is None
    next_page = client.get("/scenario", params={"after": last_page["items"][-1]["scenario_uuid"]}).json()
    assert next_page == {"items": [], "next": None}


@pytest.mark.parametrize(
    ("state", "outcome"),
    [("init_startup", None), ("in_startup_processing", None), ("active", None), ("inactive", "completed")],
)
def test_a_shutdown_is_accepted_in_every_state(
    client: httpx.Client, database_url: str, state: str, outcome: str | None
) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    if state == "inactive":
        write_completion(database_url, uuid_)
    elif state != "init_startup":
        write_deployment(database_url, uuid_, state)
    responses = [client.post(f"/scenario/{uuid_}/shutdown") for _ in range(2)]
    assert [response.status_code for response in responses] == [200, 200]
    assert responses[0].json() == responses[1].json()
    expected = ("inactive", outcome) if outcome else ("init_shutdown", "stopped")
    assert (responses[0].json()["state"], responses[0].json()["outcome"]) == expected
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM outbox WHERE key = %s AND kind = 'shutdown'", (uuid_,)
        ).fetchone()
    assert row == (0 if outcome else 1,)


def test_a_shutdown_that_loses_a_race_is_decided_again(client: httpx.Client, database_url: str) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    responses: list[httpx.Response] = []
    with psycopg.connect(database_url) as leader:
        leader.execute(
            "UPDATE scenarios SET state = 'active', epoch = 9, runner = 'r' WHERE scenario_uuid = %s", (uuid_,)
        )
        thread = threading.Thread(target=lambda: responses.append(client.post(f"/scenario/{uuid_}/shutdown")))
        thread.start()
        wait_until(lambda: is_lock_awaited(database_url), "the request waits for the leader")
        leader.commit()
        thread.join()
    assert responses[0].status_code == 200
    assert (responses[0].json()["state"], responses[0].json()["epoch"]) == ("init_shutdown", 9)
    transitions = client.get(f"/scenario/{uuid_}/history").json()["items"]
    assert [transition["from_state"] for transition in transitions] == [None, "active"]


def test_the_history_lists_every_transition(client: httpx.Client) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    client.post(f"/scenario/{uuid_}/shutdown")
    transitions = decode_body(client.get(f"/scenario/{uuid_}/history"), HistoryPage).items
    assert [(transition.number, transition.from_state, transition.to_state) for transition in transitions] == [
        (0, None, "init_startup"), (1, "init_startup", "init_shutdown"),
    ]  # fmt: skip
    assert [transition.reason_code for transition in transitions] == ["created", "shutdown_requested"]
    assert transitions[1].reason == "shutdown requested"
    assert transitions[1].at > transitions[0].at


def test_gaps_are_listed_in_the_order_of_the_video(client: httpx.Client, database_url: str) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    assert client.get(f"/scenario/{uuid_}/gaps").json() == {"items": [], "next": None}
    with psycopg.connect(database_url) as connection:
        for after_frame in (7, -1):
            connection.execute(
                "INSERT INTO scenario_gaps VALUES (%s, 1, %s, 0.5, 1.5, NULL, 'corrupt')", (uuid_, after_frame)
            )
    gaps = decode_body(client.get(f"/scenario/{uuid_}/gaps"), GapPage).items
    assert [gap.after_frame for gap in gaps] == [-1, 7]
    assert gaps[0] == StoredGap(after_frame=-1, from_s=0.5, to_s=1.5, frames=None, reason="corrupt", epoch=1)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/history"), ("GET", "/gaps"), ("POST", "/shutdown")],
)
def test_an_unknown_or_malformed_uuid_is_refused(client: httpx.Client, method: str, path: str) -> None:
    assert_problem(client.request(method, f"/scenario/{UNKNOWN_UUID}{path}"), 404, "scenario_unknown")
    for malformed in ("1", "nothing", f"{UNKNOWN_UUID}0", "' OR 1=1 --", "%00"):
        problem = assert_problem(client.request(method, f"/scenario/{malformed}{path}"), 400, "request_malformed")
        assert problem["errors"][0]["field"] == "scenario_uuid"


def test_a_scenario_without_a_model_gets_the_default_one(client: httpx.Client, database_url: str) -> None:
    body = {"source": SOURCE_URL, "parameters": {"labels": ["person", "car"]}}
    scenario = client.post("/scenario/init", json=body).json()
    assert scenario["model"] == "yolox_nano"
    with psycopg.connect(database_url) as connection:
        digest = connection.execute(
            "SELECT model_sha256 FROM scenarios WHERE scenario_uuid = %s", (scenario["scenario_uuid"],)
        ).fetchone()
    assert digest == (registry.resolve("yolox_nano").sha256,)
    refused = client.post("/scenario/init", json=body | {"parameters": {"labels": ["unicorn"]}})
    assert "Available: airplane" in assert_problem(refused, 422, "parameter_invalid")["detail"]


@pytest.mark.parametrize(
    "hostile", ["'); DROP TABLE scenarios; --", '" OR ""="', "$1 %(x)s %s {0}", "\\'; SELECT pg_sleep(9)"]
)
def test_hostile_text_is_stored_and_returned_as_text(client: httpx.Client, tmp_path: Path, hostile: str) -> None:
    video = tmp_path / hostile.replace("/", "")
    video.write_bytes(b"video")
    scenario = create_scenario(client, source=str(video), model=LABELLED, parameters={"labels": [hostile]})
    assert scenario["source"] == str(video)
    assert scenario["parameters"]["labels"] == [hostile]
    assert client.get(f"/scenario/{scenario['scenario_uuid']}").json() == scenario


def test_a_scenario_is_deleted_once_it_is_inactive(client: httpx.Client, database_url: str) -> None:
    uuid = create_scenario(client)["scenario_uuid"]
    path = f"/scenario/{uuid}"
    for state in ("init_startup", "in_startup_processing", "active"):
        if state != "init_startup":
            write_deployment(database_url, uuid, state)
        refused = assert_problem(client.delete(path), 409, "scenario_not_ended")
        assert state in refused["detail"]
        assert client.get(path).json()["state"] == state
    write_results(database_url, uuid, range(3))
    write_completion(database_url, uuid)
    listed = client.get("/scenario").json()["items"]
    assert uuid in {item["scenario_uuid"] for item in listed}
    answer = client.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    for response in (
        client.get(path),
        client.get(f"{path}/history"),
        client.get(f"{path}/gaps"),
        client.get("/prediction", params={"scenario_uuid": uuid}),
        client.post(f"{path}/shutdown"),
        client.delete(path),
    ):
        assert_problem(response, 404, "scenario_unknown")
    assert uuid not in {item["scenario_uuid"] for item in client.get("/scenario").json()["items"]}


def test_a_waiting_scenario_changes_its_priority_and_pool(client: httpx.Client) -> None:
    scenario = create_scenario(client)
    path = f"/scenario/{scenario['scenario_uuid']}"
    changed = client.patch(path, json={"priority": 7})
    assert (changed.status_code, changed.json()) == (
        200,
        scenario | {"priority": 7} | {"waiting_for": changed.json()["waiting_for"]},
    )
    assert client.patch(path, json={"pool": "gpu"}).json()["pool"] == "gpu"
    both = client.patch(path, json={"priority": -100, "pool": "default"}).json()
    assert (both["priority"], both["pool"]) == (-100, "default")
    for change in ({}, {"priority": None}, {"pool": None}):
        assert client.patch(path, json=change).json()["priority"] == -100
    assert client.get(path).json()["priority"] == -100


@pytest.mark.parametrize(
    "change", [{"priority": 101}, {"priority": "1"}, {"pool": ""}, {"pool": "a b"}, {"model": "motion"}, [], "x"]
)
def test_an_invalid_change_is_refused(client: httpx.Client, change: object) -> None:
    path = f"/scenario/{create_scenario(client)['scenario_uuid']}"
    assert_problem(client.patch(path, json=change), 422, "request_invalid")
    assert client.get(path).json()["priority"] == 0


def test_only_a_waiting_scenario_can_be_changed_and_its_pool_only_before_its_first_deployment(
    client: httpx.Client, database_url: str
) -> None:
    uuid = create_scenario(client)["scenario_uuid"]
    path = f"/scenario/{uuid}"
    write_deployment(database_url, uuid)
    refused = assert_problem(client.patch(path, json={"priority": 1}), 409, "scenario_not_changeable")
    assert "active" in refused["detail"]
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE scenarios SET state = 'init_startup' WHERE scenario_uuid = %s", (uuid,))
    refused = assert_problem(client.patch(path, json={"priority": 1, "pool": "gpu"}), 409, "scenario_not_changeable")
    assert "deployed in pool default" in refused["detail"]
    assert client.patch(path, json={"priority": 1, "pool": "default"}).json()["priority"] == 1
    assert_problem(client.patch(f"/scenario/{UNKNOWN_UUID}", json={"priority": 1}), 404, "scenario_unknown")
