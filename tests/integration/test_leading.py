"""A real orchestrator that loses what it leads by, and leads again. What it decides: tests/unit/test_reconcile.py."""

from __future__ import annotations

import pytest
from tests.integration.delivery import cut_off, remake_topics, running
from tests.integration.embedded import wait_until

from vidflow.infra.postgres import Connection
from vidflow.roles.orchestrator import run
from vidflow.settings import OrchestratorOptions


def is_at_work(tables: Connection, term: int) -> bool:
    """Whether the holding of this term reads the tables: what a leader does in each tick."""
    query = """
        SELECT FROM lease, pg_stat_activity
         WHERE name = 'leader' AND term = %s AND application_name = 'vidflow leader reads'
           AND datname = current_database()
    """
    return bool(tables.execute(query, (term,)).fetchall())


@pytest.mark.fault
def test_invariant_7_a_leader_that_lost_its_connection_leads_again_while_its_lease_is_renewed(
    tables: Connection, database_url: str, kafka_bootstrap: str
) -> None:
    remake_topics(kafka_bootstrap)
    with running(run, OrchestratorOptions(database_url=database_url, kafka=kafka_bootstrap)):
        wait_until(lambda: is_at_work(tables, 1), "it leads")
        cut_off(tables, "vidflow leader reads")
        wait_until(lambda: is_at_work(tables, 2), "it leads again")
