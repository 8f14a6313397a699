"""Tokens over HTTP: who is let in, what each may reach, and what is recorded of it."""
# ruff: noqa: S104 - addresses to refuse, and tokens of tests

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
import pytest
from litestar.plugins.problem_details import ProblemDetailsException
from tests.integration.api_server import (
    SOURCE_URL,
    UNKNOWN_UUID,
    assert_problem,
    create_scenario,
    ready_api,
    wait_until,
    write_completion,
    write_results,
)
from tests.integration.cli_process import run_command
from tests.integration.delivery import emptied_database
from tests.integration.raw_http import send_raw_request

from vidflow.commands import tokens as commands
from vidflow.domain.access import Rights, WriteScope
from vidflow.domain.errors import SetupError, UserError
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.process.stopping import Stop
from vidflow.roles.api import run
from vidflow.roles.api.quotas import ScenarioQuota
from vidflow.settings import ApiOptions

PUBLIC_PATHS = {"/health/live", "/health/ready"}


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with emptied_database(database_url) as connection:
        yield connection


@pytest.fixture
def create_token(
    connection: Connection,  # noqa: ARG001 - empties the tables first
    database_url: str,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    def create(owner: str = "anna", rights: str = "write", expires_days: int | None = None) -> str:
        capsys.readouterr()
        commands.create_token(database_url, owner, Rights(rights), expires_days, "")
        return capsys.readouterr().out.strip()

    return create


@pytest.fixture
def client(connection: Connection, database_url: str) -> Iterator[httpx.Client]:  # noqa: ARG001 - empties the tables first
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@contextmanager
def logged_in(client: httpx.Client, token: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=client.base_url, headers=bearer(token), timeout=15) as other:
        yield other


def requests_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the method and path of each operation in the OpenAPI document."""
    return [
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item
        if method in {"get", "post", "put", "patch", "delete"}
    ]


def ask(client: httpx.Client, method: str, path: str, scenario_uuid: str) -> httpx.Response:
    """Send a request that names this scenario, in the path or as a parameter, with a body if there may be one."""
    params = {"scenario_uuid": scenario_uuid} if path == "/prediction" else {}
    body: dict[str, object] | None = {"source": SOURCE_URL, "model": "motion"} if path == "/scenario/init" else None
    if method == "PATCH":
        body = {"priority": 1}
    return client.request(method, re.sub(r"\{scenario_uuid[^}]*\}", scenario_uuid, path), params=params, json=body)


def test_without_a_token_only_public_paths_answer_once_there_is_one(client: httpx.Client, create_token: Any) -> None:
    assert client.get("/scenario").status_code == 200
    create_token()
    wait_until(lambda: client.get("/scenario").status_code == 401, "the api asks for a token")
    operations = requests_of(client.get("/docs/openapi.json").json())
    assert len(operations) > 9
    for method, path in [*operations, ("GET", "/metrics")]:
        response = ask(client, method, path, UNKNOWN_UUID)
        if path in PUBLIC_PATHS:
            assert response.status_code == 200, path
        elif path == "/health/system":
            assert_problem(response, 503, "not_running")
        else:
            assert_problem(response, 401, "token_missing")
            assert response.headers["www-authenticate"] == 'Bearer realm="vidflow"'
    for path in ("/", "/docs", "/docs/openapi.json", "/docs/assets/swagger-ui.css"):
        assert client.get(path).status_code in {200, 307, 302}, path


def test_each_request_with_a_token_is_served(client: httpx.Client, create_token: Any) -> None:
    with logged_in(client, create_token()) as anna:
        uuid = create_scenario(anna)["scenario_uuid"]
        for path in (
            "/scenario",
            f"/scenario/{uuid}",
            f"/prediction?scenario_uuid={uuid}",
            "/models",
            "/health/system",
            "/metrics",
        ):
            assert anna.get(path).status_code in {200, 503}, path
        assert anna.get(f"/scenario/{uuid}").json()["owner"] == "anna"
        assert anna.post(f"/scenario/{uuid}/shutdown").json()["outcome"] == "stopped"


def test_another_owners_scenario_is_unknown_at_every_endpoint(
    client: httpx.Client, create_token: Any, database_url: str
) -> None:
    with logged_in(client, create_token("anna")) as anna, logged_in(client, create_token("ben")) as ben:
        uuid = create_scenario(anna)["scenario_uuid"]
        write_results(database_url, uuid, range(3))
        operations = [
            (method, path)
            for method, path in requests_of(client.get("/docs/openapi.json").json())
            if "scenario_uuid" in path or path == "/prediction"
        ]
        assert len(operations) >= 5
        for method, path in operations:
            problem = assert_problem(ask(ben, method, path, uuid), 404, "scenario_unknown")
            unknown = assert_problem(ask(ben, method, path, UNKNOWN_UUID), 404, "scenario_unknown")
            assert problem["detail"].replace(uuid, UNKNOWN_UUID) == unknown["detail"]
        assert ben.get("/scenario").json()["items"] == []
        assert ben.get("/scenario", params={"state": "init_startup"}).json()["items"] == []
        assert [item["scenario_uuid"] for item in anna.get("/scenario").json()["items"]] == [uuid]
        assert anna.get(f"/scenario/{uuid}").json()["state"] == "init_startup"
        for method, path in operations:
            assert ask(anna, method, path, uuid).status_code in {200, 409}, path  # 409: it cannot be deleted yet


def test_an_owners_list_has_all_its_scenarios_and_no_other(
    client: httpx.Client, create_token: Any, database_url: str
) -> None:
    with logged_in(client, create_token("anna")) as anna, logged_in(client, create_token("ben")) as ben:
        own = [create_scenario(anna if number % 2 else ben)["scenario_uuid"] for number in range(14)][1::2]
        for uuid in own[:3]:
            write_completion(database_url, uuid)
        for state, expected in ((None, own), ("inactive", own[:3]), ("init_startup", own[3:]), ("active", [])):
            listed: list[str] = []
            after = None
            while True:
                params = {"limit": 2} | ({"state": state} if state else {}) | ({"after": after} if after else {})
                page = anna.get("/scenario", params=params).json()
                listed += [item["scenario_uuid"] for item in page["items"]]
                if (after := page["next"]) is None:
                    break
            assert listed == expected[::-1], state


def test_an_admin_reaches_the_scenarios_of_all(client: httpx.Client, create_token: Any) -> None:
    with logged_in(client, create_token("anna")) as anna, logged_in(client, create_token("root", "admin")) as root:
        uuid = create_scenario(anna)["scenario_uuid"]
        own = create_scenario(root)["scenario_uuid"]
        assert [item["scenario_uuid"] for item in root.get("/scenario").json()["items"]] == [own, uuid]
        assert root.get(f"/scenario/{uuid}").json()["owner"] == "anna"
        assert root.post(f"/scenario/{uuid}/shutdown").status_code == 200
        assert_problem(anna.get(f"/scenario/{own}"), 404, "scenario_unknown")


def test_a_token_for_reading_changes_nothing(client: httpx.Client, create_token: Any, connection: Connection) -> None:
    with logged_in(client, create_token("anna")) as anna, logged_in(client, create_token("anna", "read")) as reader:
        uuid = create_scenario(anna)["scenario_uuid"]
        before = connection.execute("SELECT count(*) FROM audit").fetchall()
        assert_problem(reader.post("/scenario/init", json={"source": SOURCE_URL}), 403, "token_read_only")
        assert_problem(reader.post(f"/scenario/{uuid}/shutdown"), 403, "token_read_only")
        assert reader.get(f"/scenario/{uuid}").json()["state"] == "init_startup"
        assert connection.execute("SELECT count(*) FROM scenarios").fetchall() == [(1,)]
        assert connection.execute("SELECT count(*) FROM audit").fetchall() == before


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer ", "Bearer x", "Bearer {}x", "Bearer x{}", "bearer {} {}", "Bearer \xff", "Bearer " + "A" * 20_000,
     "Bearer {changed}"],
)  # fmt: skip
def test_what_is_no_valid_token_is_refused(client: httpx.Client, create_token: Any, header: str) -> None:
    token = create_token()
    changed = token[:-1] + ("A" if token[-1] != "A" else "Q")
    value = header.replace("{changed}", changed).replace("{}", token)
    response = send_raw_request(
        client, f"GET /scenario HTTP/1.1\r\nHost: localhost\r\nAuthorization: {value}\r\n\r\n".encode("latin-1")
    )
    assert response.status == 401, response
    assert token[21:] not in response.body.decode("latin-1")


def test_a_header_of_another_scheme_is_no_token(client: httpx.Client, create_token: Any) -> None:
    basic = {"Authorization": "Basic YW5uYTpzZWNyZXQ="}
    assert client.get("/scenario", headers=basic).status_code == 200  # such as a proxy's, while there is no token
    create_token()
    wait_until(lambda: client.get("/scenario", headers=basic).status_code == 401, "the api asks for a token")


def test_several_authorization_headers_are_refused(client: httpx.Client, create_token: Any) -> None:
    token = create_token()
    head = f"GET /scenario HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n\r\n"
    assert send_raw_request(client, head.encode()).status == 401


def test_a_revoked_token_is_refused_soon(
    client: httpx.Client, create_token: Any, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    token = create_token()
    token_id = token.split("_")[1]
    assert client.get("/scenario", headers=bearer(token)).status_code == 200
    commands.revoke_token(database_url, token_id)
    wait_until(lambda: client.get("/scenario", headers=bearer(token)).status_code == 401, "the token is refused", 10)
    problem = assert_problem(client.get("/scenario", headers=bearer(token)), 401, "token_invalid")
    assert token_id in problem["detail"]
    assert "revoked" in problem["detail"]
    assert_problem(client.get("/scenario"), 401, "token_missing")  # the api does not open again
    commands.list_tokens(database_url, None)
    assert f"{token_id}  revoked  write  anna" in capsys.readouterr().out
    with pytest.raises(UserError, match="no token"):
        commands.revoke_token(database_url, token_id)


def test_a_token_expires(client: httpx.Client, create_token: Any, connection: Connection) -> None:
    token = create_token(expires_days=1)
    assert client.get("/scenario", headers=bearer(token)).status_code == 200
    connection.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    wait_until(lambda: client.get("/scenario", headers=bearer(token)).status_code == 401, "the token is refused", 10)
    assert "expired" in client.get("/scenario", headers=bearer(token)).json()["detail"]


def test_only_a_hash_of_a_token_is_stored(create_token: Any, connection: Connection) -> None:
    token = create_token()
    [(row,)] = connection.execute("SELECT (t.*)::text FROM tokens t").fetchall()
    assert token.split("_")[1] in row
    assert token[20:] not in row
    [(entry,)] = connection.execute("SELECT (a.*)::text FROM audit a").fetchall()
    assert token[20:] not in entry


def test_the_last_use_of_a_token_is_noted_once_a_minute(
    client: httpx.Client, create_token: Any, connection: Connection, database_url: str
) -> None:
    token = create_token()
    read = "SELECT last_used_at FROM tokens"
    assert connection.execute(read).fetchall() == [(None,)]
    client.get("/scenario", headers=bearer(token))
    [(first,)] = connection.execute(read).fetchall()
    assert first is not None
    with ready_api(ApiOptions(database_url=database_url)) as second:
        second.get("/scenario", headers=bearer(token))  # another process, which looks the token up again
        assert connection.execute(read).fetchall() == [(first,)]
        connection.execute("UPDATE tokens SET last_used_at = last_used_at - interval '61 s'")
        wait_until(
            lambda: (
                second.get("/scenario", headers=bearer(token)).is_success
                and connection.execute(f"SELECT last_used_at >= %s FROM ({read})", (first,)).fetchall() == [(True,)]
            ),
            "the use is noted",
        )


def test_the_audit_says_who_changed_what(
    client: httpx.Client, create_token: Any, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    token = create_token("anna")
    with logged_in(client, token) as anna:
        uuid = create_scenario(anna)["scenario_uuid"]
        for _ in range(2):  # the second changes nothing
            anna.post(f"/scenario/{uuid}/shutdown")
    capsys.readouterr()
    commands.list_audit(database_url, "anna", 100)
    shutdown, created = capsys.readouterr().out.splitlines()
    by = rf"{uuid}  anna, token {token.split('_')[1]}  from 127\.0\.0\.1"
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC  shutdown_requested  {by}", shutdown)
    assert re.fullmatch(rf"\S+ \S+ UTC  scenario_created  {by}", created)
    commands.list_audit(database_url, None, 3)
    assert "token_created" in capsys.readouterr().out.splitlines()[2]


@pytest.mark.parametrize(
    ("trusted", "address"), [((), "127.0.0.1"), (("127.0.0.1",), "203.0.113.7"), (("10.0.0.0/8",), "127.0.0.1")]
)
def test_only_a_trusted_proxy_says_where_a_request_came_from(
    connection: Connection, database_url: str, trusted: tuple[str, ...], address: str
) -> None:
    with ready_api(ApiOptions(database_url=database_url, trusted_proxies=trusted)) as client:
        client.post("/scenario/init", json={"source": SOURCE_URL}, headers={"X-Forwarded-For": "203.0.113.7"})
    assert connection.execute("SELECT address FROM audit").fetchall() == [(address,)]


def test_others_are_not_served_without_a_token(connection: Connection, database_url: str, create_token: Any) -> None:
    options = ApiOptions(database_url=database_url, host="0.0.0.0", port=0, inbox=False)
    with pytest.raises(SetupError, match="vidflow token create"):
        _run(options)
    token = create_token()
    with ready_api(options) as client:
        assert_problem(client.get("/scenario"), 401, "token_missing")
        assert client.get("/scenario", headers=bearer(token)).status_code == 200
    connection.execute("DELETE FROM tokens")
    with ready_api(ApiOptions(database_url=database_url, host="0.0.0.0", auth=False)) as client:
        assert client.get("/scenario").status_code == 200


def _run(options: ApiOptions) -> None:
    stop = Stop()
    run(options, stop)
    assert stop.error is not None
    raise stop.error


def test_pages_of_other_sites_are_let_in_by_their_origin_alone(connection: Connection, database_url: str) -> None:  # noqa: ARG001
    origin = "https://app.example.org"
    options = ApiOptions(database_url=database_url, cors_origins=(origin,))
    body = {"source": SOURCE_URL}
    with ready_api(options) as client:
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        preflight = client.options("/scenario/init", headers=asked)
        assert preflight.is_success
        assert preflight.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in preflight.headers
        answer = client.post("/scenario/init", json=body, headers={"Origin": origin})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (201, origin)
        for other in ("https://app.example.org.evil", "http://app.example.org", "https://appxexample.org", "null"):
            assert (
                "access-control-allow-origin"
                not in client.options("/scenario/init", headers=asked | {"Origin": other}).headers
            )
            assert "access-control-allow-origin" not in client.get("/scenario", headers={"Origin": other}).headers
            assert_problem(
                client.post("/scenario/init", json=body, headers={"Origin": other}), 403, "origin_not_allowed"
            )
    with ready_api(ApiOptions(database_url=database_url)) as client:
        assert not [
            name
            for name in client.options("/scenario/init", headers=asked).headers
            if name.startswith("access-control")
        ]
        assert_problem(client.post("/scenario/init", json=body, headers={"Origin": origin}), 403, "origin_not_allowed")


@pytest.mark.parametrize(
    "origin", ["*", "app.example.org", "https://", "https://*.example.org", "null", "https://a/b", "ftp://a"]
)
def test_an_invalid_origin_is_reported_at_the_start(database_url: str, origin: str) -> None:
    with pytest.raises(SetupError, match="--cors-origins"):
        run(ApiOptions(database_url=database_url, cors_origins=(origin,), inbox=False), Stop())


class TestQuotas:
    """What an owner may use at most."""

    def test_an_owner_has_no_more_unfinished_scenarios_than_its_quota(
        self, connection: Connection, database_url: str, create_token: Any
    ) -> None:
        options = ApiOptions(database_url=database_url, owner_scenarios=3)
        with (
            ready_api(options) as client,
            logged_in(client, create_token("anna")) as anna,
            logged_in(client, create_token("ben")) as ben,
            logged_in(client, create_token("root", "admin")) as root,
        ):
            uuids = [create_scenario(anna)["scenario_uuid"] for _ in range(3)]
            problem = assert_problem(anna.post("/scenario/init", json={"source": SOURCE_URL}), 429, "quota_reached")
            assert "anna has 3 scenarios" in problem["detail"]
            create_scenario(ben)
            for _ in range(4):
                create_scenario(root)
            anna.post(f"/scenario/{uuids[0]}/shutdown")
            assert connection.execute("SELECT sum(scenarios) FROM owner_totals WHERE owner = 'anna'").fetchall() == [
                (3,)
            ]
            write_completion(database_url, uuids[0])
            wait_until(
                lambda: anna.post("/scenario/init", json={"source": SOURCE_URL}).status_code == 201, "there is room"
            )
            assert_problem(anna.post("/scenario/init", json={"source": SOURCE_URL}), 429, "quota_reached")

    def test_requests_that_come_together_do_not_exceed_the_quota(
        self, connection: Connection, database_url: str, create_token: Any
    ) -> None:
        options = ApiOptions(database_url=database_url, owner_scenarios=5)
        with (
            ready_api(options) as client,
            logged_in(client, create_token("anna")) as anna,
            ThreadPoolExecutor(16) as threads,
        ):
            answers = [threads.submit(anna.post, "/scenario/init", json={"source": SOURCE_URL}) for _ in range(40)]
            codes = Counter(answer.result().status_code for answer in answers)
        assert codes == {201: 5, 429: 35}
        assert connection.execute("SELECT count(*) FROM scenarios").fetchall() == [(5,)]

    def test_an_administrator_of_the_same_name_does_not_end_what_an_owner_has_in_progress(
        self, connection: Connection
    ) -> None:
        quota = ScenarioQuota(ApiOptions(owner_scenarios=2), refresh_s=0.0)
        anna, admin = (WriteScope(owner="anna", is_for_all=is_for_all) for is_for_all in (False, True))
        quota.begin(connection, anna)
        quota.begin(connection, admin)
        quota.end(admin)
        quota.begin(connection, anna)
        with pytest.raises(ProblemDetailsException, match="anna has 2 scenarios"):
            quota.begin(connection, anna)
        quota.end(anna)
        quota.begin(connection, anna)

    def test_the_counts_of_owners_follow_every_change(self, connection: Connection, database_url: str) -> None:
        insert = "INSERT INTO scenarios (source, model, fps, owner, state, outcome) VALUES ('s', 'm', '1', %s, %s, %s)"
        with connection.cursor() as cursor:
            cursor.executemany(insert, [(f"o{number % 3}", "init_startup", None) for number in range(30)])
            cursor.executemany(insert, [("o1", "inactive", "stopped")] * 5)
        changes = [
            "UPDATE scenarios SET state = 'inactive', outcome = 'stopped' WHERE owner = 'o1'",
            "UPDATE scenarios SET owner = 'o2' WHERE owner = 'o0'",
            "UPDATE scenarios SET state = 'inactive', outcome = 'stopped' WHERE random() < 0.5",
            "DELETE FROM scenarios WHERE random() < 0.5",
            "TRUNCATE scenarios",
        ]
        counted = """
            SELECT owner, sum(scenarios)::bigint FROM owner_totals GROUP BY owner HAVING sum(scenarios) <> 0 ORDER BY owner
        """
        stored = "SELECT owner, count(*) FROM scenarios WHERE state <> 'inactive' GROUP BY owner ORDER BY owner"
        for change in changes:
            with psycopg.connect(database_url) as other:  # another backend, which has another shard
                other.execute(change)
            assert connection.execute(counted).fetchall() == connection.execute(stored).fetchall(), change

    def test_an_owner_that_sends_too_many_requests_is_told_when_to_go_on(
        self,
        database_url: str,
        create_token: Any,
        connection: Connection,  # noqa: ARG002 - empties the tables first
    ) -> None:
        options = ApiOptions(database_url=database_url, owner_requests_per_s=0.5)
        with ready_api(options) as client, logged_in(client, create_token("anna")) as anna:
            answer = anna.get("/models")
            assert (answer.status_code, answer.headers["ratelimit"]) == (200, '"requests";r=0;t=2')
            refused = anna.get("/models")
            assert_problem(refused, 429, "rate_limited")
            assert (refused.headers["retry-after"], refused.headers["ratelimit-policy"]) == ("2", '"requests";q=1;w=2')
            with logged_in(client, create_token("root", "admin")) as root:
                for _ in range(5):
                    answer = root.get("/models")
                    assert answer.status_code == 200
                    assert "ratelimit" not in answer.headers
            assert client.get("/health/ready").status_code == 200


class TestCommands:
    """The commands of operators and of `vidflow run`, as processes."""

    def test_a_created_token_is_the_only_line_of_the_output(self, connection: Connection, database_url: str) -> None:
        variables = {"VIDFLOW_DATABASE_URL": database_url}
        created = run_command("token", "create", "--owner", "anna", "--expires-days", "3", variables=variables)
        assert created.returncode == 0, created.stderr
        assert re.fullmatch(r"vf_[0-9a-f]{16}_[\w-]{43}\n", created.stdout)
        assert "cannot be shown again" in created.stderr
        assert created.stdout.strip() not in created.stderr
        [row] = connection.execute("SELECT owner, rights, expires_at - created_at FROM tokens").fetchall()
        assert row[:2] == ("anna", "write")
        assert row[2].days in {2, 3}
        listed = run_command("token", "list", variables=variables).stdout
        assert "valid    write  anna" in listed
        assert created.stdout.strip().split("_", 2)[2] not in listed

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["create", "--owner", "a b"], "Invalid owner 'a b'"),
            (["create", "--owner", "a", "--note", "x" * 201], "Invalid --note"),
            (["create", "--owner", "a", "--note", "x\n"], "Invalid --note"),
            (["create", "--owner", "a", "--rights", "root"], "'root'"),
            (["revoke", "0001020304050607"], "There is no token '0001020304050607'"),
        ],
    )
    def test_a_mistake_is_one_line_and_changes_nothing(
        self, connection: Connection, database_url: str, arguments: list[str], message: str
    ) -> None:
        ended = run_command("token", *arguments, variables={"VIDFLOW_DATABASE_URL": database_url})
        assert ended.returncode == 2, ended.stderr
        assert message in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
        assert connection.execute("SELECT FROM tokens").fetchall() == []
        assert connection.execute("SELECT FROM audit").fetchall() == []

    def test_a_run_on_another_server_sends_its_token(self, client: httpx.Client, create_token: Any) -> None:
        command = ("run", SOURCE_URL, "--model", "motion", "--url", str(client.base_url))
        token = create_token("anna", "read")
        wait_until(lambda: client.get("/scenario").status_code == 401, "the api asks for a token")
        for variables, reason in (
            ({}, "needs a token"),
            ({"VIDFLOW_TOKEN": token}, "may only read"),
            ({"VIDFLOW_TOKEN": "x"}, "VIDFLOW_TOKEN (--token) is not a token"),
        ):
            ended = run_command(*command, variables=variables)
            assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
            assert reason in ended.stderr
            assert token[20:] not in ended.stderr


def test_the_check_of_the_system_answers_without_a_token_but_lists_no_pools(
    client: httpx.Client, create_token: Any, connection: Connection
) -> None:
    connection.execute("INSERT INTO runners SELECT 'r1', now(), 2, 1, 0, false, false, 'secret-pool', '1'")
    connection.execute(
        "INSERT INTO lease SELECT name, uuidv7(), 1, now() + interval '1 h' FROM unnest('{leader}'::text[]) AS name"
    )
    connection.execute(
        "INSERT INTO lease SELECT 'outbox/' || n, uuidv7(), 1, now() + interval '1 h' FROM generate_series(0, 15) AS n"
    )
    connection.execute(
        "INSERT INTO inbox_partitions SELECT 'results', 'id', n, 0, now(), now() FROM generate_series(0, 7) AS n"
    )
    assert [pool["pool"] for pool in client.get("/health/system").json()["pools"]] == ["secret-pool"]
    token = create_token("anna", "read")
    wait_until(lambda: client.get("/scenario").status_code == 401, "the api asks for a token")
    anonymous = client.get("/health/system")
    assert (anonymous.status_code, anonymous.json()["status"], anonymous.json()["pools"]) == (200, "ok", [])
    assert "secret-pool" not in anonymous.text
    assert [pool["pool"] for pool in client.get("/health/system", headers=bearer(token)).json()["pools"]] == [
        "secret-pool"
    ]
    assert_problem(client.get("/health/system", headers=bearer(token[:-1])), 401, "token_invalid")
