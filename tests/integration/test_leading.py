"""A real orchestrator that loses its connection or its disk space. tests/unit/test_reconcile.py tests its decisions."""

from __future__ import annotations

import logging

import pytest
from tests.integration.delivery import recreate_topics, running_role, terminate_connections
from tests.integration.disks import logged_outages, simulated_full_disk
from tests.integration.server_owner import wait_until
from tests.scopes import EVERYTHING

from vidflow.domain.messages import Parameters
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres import scenarios
from vidflow.infra.postgres.connection import Connection
from vidflow.roles.orchestrator import run
from vidflow.settings import OrchestratorOptions

NEW = scenarios.NewScenario(
    source="http://a/b.mp4", model="motion", model_sha256=None, fps="all", priority=0, parameters=Parameters()
)


def is_leading(connection: Connection, term: int) -> bool:
    """Return whether the leader of this term has the connection with which it reads the tables in each tick."""
    query = """
        SELECT FROM lease, pg_stat_activity
         WHERE name = 'leader' AND term = %s AND application_name = 'vidflow leader reads'
           AND datname = current_database()
    """
    return bool(connection.execute(query, (term,)).fetchall())


@pytest.mark.long
@pytest.mark.fault
def test_invariant_7_a_leader_that_lost_its_connection_leads_again_while_its_lease_is_renewed(
    connection: Connection, database_url: str, kafka_settings: KafkaSettings
) -> None:
    recreate_topics(kafka_settings)
    with running_role(run, OrchestratorOptions(database_url=database_url, kafka=kafka_settings)):
        wait_until(lambda: is_leading(connection, 1), "it leads")
        terminate_connections(connection, "vidflow leader reads")
        wait_until(lambda: is_leading(connection, 2), "it leads again")


@pytest.mark.long
@pytest.mark.fault
def test_a_leader_with_a_full_disk_keeps_leading_and_logs_the_outage_once(
    connection: Connection, database_url: str, kafka_settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vidflow")
    recreate_topics(kafka_settings)
    with running_role(run, OrchestratorOptions(database_url=database_url, kafka=kafka_settings)):
        wait_until(lambda: is_leading(connection, 1), "it leads")
        uuid = scenarios.insert_scenario(connection, EVERYTHING, NEW).scenario_uuid
        with simulated_full_disk(connection, "scenario_history", "INSERT"):
            connection.execute(
                "UPDATE scenarios SET state = 'init_shutdown', outcome = 'stopped' WHERE scenario_uuid = %s", (uuid,)
            )
            expected_rollbacks = rollbacks(connection) + 5
            wait_until(lambda: rollbacks(connection) >= expected_rollbacks, "it keeps trying")
        wait_until(lambda: "back" in logged_outages(caplog), "it writes again")
        assert is_leading(connection, 1)
    assert logged_outages(caplog) == ["disk_full", "back"]


def rollbacks(connection: Connection) -> int:
    query = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    [(count,)] = connection.execute(query).fetchall()
    return int(count)
