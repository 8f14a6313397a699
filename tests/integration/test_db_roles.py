"""Each process works with its own database user, which has only the privileges that it needs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import errors
from tests import clips
from tests.integration.vidflow_process import READY_LIMIT_S, VidflowClient

from vidflow.commands.dev import Stack
from vidflow.domain.errors import SetupError
from vidflow.domain.messages import End, EndReason, Gap, GapReason
from vidflow.infra.postgres import backup, db_roles, gaps, migrations
from vidflow.infra.postgres.connection import connect
from vidflow.infra.process.stopping import Stop
from vidflow.settings import DevOptions

KINDS = ("api", "relay", "orchestrator", "inbox")
UUID = "00000000-0000-0000-0000-000000000001"

FORBIDDEN: Mapping[str, tuple[str, ...]] = {
    "api": (
        "DELETE FROM scenario_history",
        "DELETE FROM scenario_results",
        "DELETE FROM audit",
        "UPDATE tokens SET owner = ''",
        "INSERT INTO scenario_results SELECT * FROM scenario_results",
        "UPDATE scenario_progress SET next_frame = 0",
        "DELETE FROM outbox",
        "UPDATE lease SET term = term",
        "UPDATE inbox_partitions SET position = 0",
        "UPDATE runners SET used = 0",
        "SELECT * FROM scenario_results_default",
        "SELECT drop_results_partition('scenario_results_20200101_removed')",
    ),
    "relay": (
        "SELECT * FROM scenarios",
        "SELECT * FROM scenario_results",
        "INSERT INTO outbox (topic, key, kind, epoch, payload) VALUES ('t', 'k', 'k', 0, '')",
        "UPDATE outbox SET payload = ''",
        "SELECT * FROM inbox_partitions",
        "SELECT detach_results_partition('scenario_results_20200101')",
    ),
    "orchestrator": (
        "INSERT INTO scenarios (source, model, fps) VALUES ('s', 'm', 'all')",
        "INSERT INTO scenario_progress (scenario_uuid) VALUES (uuidv7())",
        "INSERT INTO scenario_results SELECT * FROM scenario_results",
        "UPDATE scenario_results_default SET detections = '[]'",
        "DELETE FROM outbox",
        "DELETE FROM lease",
        "UPDATE inbox_partitions SET position = 0",
        "DROP TABLE scenario_results",
        "ALTER TABLE scenario_results DETACH PARTITION scenario_results_default",
        "CREATE TABLE mine ()",
    ),
    "inbox": (
        "SELECT * FROM scenarios",
        "UPDATE scenario_results SET detections = '[]'",
        "DELETE FROM scenario_results",
        "DELETE FROM scenario_gaps",
        "INSERT INTO scenario_progress (scenario_uuid) VALUES (uuidv7())",
        "DELETE FROM inbox_partitions",
        "SELECT * FROM outbox",
        "SELECT * FROM lease",
    ),
}
FORBIDDEN_FOR_ALL = (
    "DROP TABLE outbox",
    "ALTER TABLE scenarios ADD COLUMN more text",
    "CREATE TABLE mine ()",
    "UPDATE schema_checksums SET sha256 = ''",
    "TRUNCATE scenarios",
    "CREATE ROLE another",
)


def with_user(url: str, user: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:secret@{parts.hostname}:{parts.port}").geturl()


def create_users(url: str) -> dict[str, str]:
    """Create a login role for each process and return the URL of each. The names are random, since roles belong to the whole server."""
    db_roles.create_roles(url)
    users = {kind: f"{kind}_{uuid.uuid4().hex[:8]}" for kind in KINDS}
    with psycopg.connect(url) as server:
        for kind, user in users.items():
            server.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'secret' IN ROLE vidflow_{kind}")
    return {kind: with_user(url, user) for kind, user in users.items()}


@pytest.fixture(scope="module")
def urls(database_url: str) -> Iterator[dict[str, str]]:
    urls = create_users(database_url)
    try:
        yield urls
    finally:
        with psycopg.connect(database_url, autocommit=True) as server:
            for role in (*(urlsplit(url).username for url in urls.values()), *migrations.GROUP_ROLES):
                server.execute(f"DROP OWNED BY {role}")
                server.execute(f"DROP ROLE {role}")  # otherwise migrations of other tests would grant privileges


@pytest.mark.parametrize(
    ("kind", "statement"), [(kind, statement) for kind in KINDS for statement in (*FORBIDDEN[kind], *FORBIDDEN_FOR_ALL)]
)
def test_a_process_has_only_the_privileges_that_it_needs(urls: dict[str, str], kind: str, statement: str) -> None:
    with connect(urls[kind], name="test") as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(statement)


def test_the_inbox_may_lengthen_a_gap(urls: dict[str, str]) -> None:
    with connect(urls["inbox"], name="test") as connection:
        for epoch in (1, 2):
            gap = Gap(0.0, float(epoch), GapReason.SKIPPED, epoch)
            assert gaps.add_gaps(connection, [End(UUID, epoch, 0, EndReason.STOPPED, (gap,))]) == 1


@pytest.mark.usefixtures("urls")
def test_every_table_is_readable_by_a_role(database_url: str) -> None:
    """A table of a new migration needs a line in sql/roles.sql."""
    with connect(database_url, name="test") as connection:
        unreadable = connection.execute(
            """
            SELECT relname
              FROM pg_class
             WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace AND relname !~ 'yoyo'
               AND NOT EXISTS (SELECT FROM unnest(%s::text[]) AS role WHERE has_table_privilege(role, oid, 'SELECT'))
            """,
            (list(migrations.GROUP_ROLES),),
        ).fetchall()
    assert unreadable == []


def test_the_partition_functions_accept_only_partitions(urls: dict[str, str]) -> None:
    with connect(urls["orchestrator"], name="test") as connection:
        for statement in (
            f"SELECT make_results_partition('runners', '{UUID}', '{UUID}')",
            f"SELECT make_results_partition('scenario_results_x; DROP TABLE runners', '{UUID}', '{UUID}')",
            "SELECT detach_results_partition('scenario_results_default')",
            "SELECT drop_results_partition('scenario_results')",
            "SELECT drop_results_partition('runners_removed')",
        ):
            with pytest.raises(errors.InvalidParameterValue):
                connection.execute(statement)


def test_a_missing_privilege_to_create_roles_is_reported(urls: dict[str, str]) -> None:
    with pytest.raises(SetupError, match="Use the user that owns the tables and give it CREATEROLE"):
        db_roles.create_roles(urls["api"])


class StackWithUsers(Stack):
    """A Stack in which each process logs in as its own user."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._users: dict[str, str] = {}

    def _variables(self, kind: str) -> Mapping[str, str]:
        if kind == "runner":
            return super()._variables(kind)
        if not self._users:
            self._users = create_users(self.database_url)
        return {**super()._variables(kind), "VIDFLOW_DATABASE_URL": self._users[kind]}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_all_processes_work_with_their_own_users_before_and_after_a_restore(tmp_path: Path) -> None:
    log_lines: list[str] = []
    options = DevOptions(port=0, data_dir=tmp_path / "data")
    stack = StackWithUsers(options, print, lambda name, line: log_lines.append(f"{name}: {line}"), Stop())
    clip = clips.constant_rate(tmp_path / "clip.mp4", frames=20)
    try:
        stack.start()
        stack.wait_until_ready(READY_LIMIT_S)
        vidflow = VidflowClient(stack)
        with vidflow.http:
            uuid_ = vidflow.create_scenario(clip, "motion", "all")
            assert vidflow.wait_until_inactive(uuid_)["outcome"] == "completed"
            assert len(vidflow.frames(uuid_)) == 20
            stopped = vidflow.create_scenario(clip, "motion", "all")
            assert vidflow.http.post(f"/scenario/{stopped}/shutdown").status_code == 200
            assert vidflow.wait_until_inactive(stopped)["outcome"] in {"stopped", "completed"}
            backup.write_backup(stack.database_url, tmp_path / "backup", replace=False, notify=print)
            backup.restore(stack.database_url, tmp_path / "backup", replace=True, notify=print)
            assert vidflow.wait_until_inactive(vidflow.create_scenario(clip, "motion", "all"))["outcome"] == "completed"
        assert [line for line in log_lines if "permission" in line or "Traceback" in line] == []
        with connect(stack.database_url, name="test") as connection:  # created by the leader, whose user owns no tables
            rows = connection.execute("SELECT count(*) FROM pg_inherits WHERE inhparent = 'scenario_results'::regclass")
            assert rows.fetchall() == [(5,)]
    except BaseException:
        print("\n".join(log_lines[-100:]))  # noqa: T201 - pytest shows the output of a failed test
        raise
    finally:
        stack.stop()
