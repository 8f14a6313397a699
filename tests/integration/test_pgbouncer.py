"""All roles work behind PgBouncer in transaction mode. Skipped if PgBouncer is not installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests import clips
from tests.integration.api_server import assert_problem, create_scenario, ready_api
from tests.integration.pgbouncer import running_pgbouncer
from tests.integration.vidflow_process import READY_LIMIT_S, VidflowClient

from vidflow.commands.dev import Stack
from vidflow.domain.errors import SetupError
from vidflow.infra.postgres import backup, migrations
from vidflow.infra.postgres.connection import connect, is_behind_pooler
from vidflow.infra.process.stopping import Stop
from vidflow.roles.api import database
from vidflow.settings import ApiOptions, DevOptions

pytestmark = pytest.mark.long
SHOWN_LINES = 100


@pytest.fixture(scope="module")
def pgbouncer_url(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_pgbouncer(database_url, tmp_path_factory.mktemp("pgbouncer")) as url:
        yield url


def test_a_pooler_is_detected(pgbouncer_url: str, database_url: str) -> None:
    with connect(pgbouncer_url, name="test") as pooled, connect(database_url, name="test") as direct:
        assert is_behind_pooler(pooled)
        assert not is_behind_pooler(direct)


def test_commands_that_need_a_session_reject_a_pooler(pgbouncer_url: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="A migration needs a direct connection to PostgreSQL"):
        migrations.migrate(pgbouncer_url, print)
    with pytest.raises(SetupError, match="A backup needs a direct connection to PostgreSQL"):
        backup.write_backup(pgbouncer_url, tmp_path / "b", replace=False, notify=print)


def test_requests_succeed_or_time_out_and_change_no_session_setting(
    pgbouncer_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "STATEMENT_TIMEOUT_S", 0.5)
    with ready_api(ApiOptions(database_url=pgbouncer_url)) as client:
        uuid = create_scenario(client)["scenario_uuid"]
        paths = [f"/scenario/{uuid}", "/scenario", f"/scenario/{uuid}/history", f"/prediction?scenario_uuid={uuid}"]
        assert {client.get(path).status_code for path in paths * 30} == {200}
        assert client.post(f"/scenario/{uuid}/shutdown").status_code == 200
        with connect(database_url, name="test") as other, other.transaction():
            other.execute("LOCK TABLE scenarios IN ACCESS EXCLUSIVE MODE")
            assert_problem(client.get(f"/scenario/{uuid}"), 503, "database_timeout")
    with connect(pgbouncer_url, name="test") as connection:
        for _ in range(20):
            assert connection.execute("SELECT current_setting('statement_timeout')").fetchone() == ("0",)


class StackThroughPgbouncer(Stack):
    """A Stack whose roles connect to its PostgreSQL through PgBouncer."""

    def __init__(self, *arguments: Any, folder: Path) -> None:
        super().__init__(*arguments)
        self._pgbouncer_folder = folder
        self._pgbouncer_url = ""

    def _variables(self, kind: str) -> Mapping[str, str]:
        variables = super()._variables(kind)
        if kind == "runner":
            return variables
        if not self._pgbouncer_url:
            self._pgbouncer_url = self._clean_up.enter_context(
                running_pgbouncer(self.database_url, self._pgbouncer_folder)
            )
        return {**variables, "VIDFLOW_DATABASE_URL": self._pgbouncer_url}


@pytest.mark.timeout(300)
def test_all_roles_work_behind_a_pooler(tmp_path: Path) -> None:
    log_lines: list[str] = []
    folder = tmp_path / "pgbouncer"
    folder.mkdir()
    options = DevOptions(port=0, data_dir=tmp_path / "data", orchestrators=2, relays=2)
    stack = StackThroughPgbouncer(
        options, print, lambda name, line: log_lines.append(f"{name}: {line}"), Stop(), folder=folder
    )
    try:
        stack.start()
        stack.wait_until_ready(READY_LIMIT_S)
        vidflow = VidflowClient(stack)
        with vidflow.http:
            clip = clips.constant_rate(tmp_path / "clip.mp4", frames=20)
            uuids = [vidflow.create_scenario(clip, "motion", "all") for _ in range(3)]
            assert {vidflow.http.get(f"/scenario/{uuid}").status_code for uuid in uuids * 30} == {200}
            for uuid in uuids:
                assert vidflow.wait_until_inactive(uuid)["outcome"] == "completed"
                assert len(vidflow.frames(uuid)) == 20
        problems = [line for line in log_lines if " error " in line or " warning " in line or "Traceback" in line]
        assert [line for line in problems if "server=Kafka" not in line] == []
    except BaseException:
        print("\n".join(log_lines[-SHOWN_LINES:]))  # noqa: T201 - pytest shows the output of a failed test
        raise
    finally:
        stack.stop()
