"""The orchestrator process: it leads while it holds the lease and stands by while another process does."""

from __future__ import annotations

from vidflow.infra.kafka.admin import retry_while_away, wait_for_broker
from vidflow.infra.postgres.connection import RESPONSE_TIMEOUT_S, connect
from vidflow.infra.postgres.lease import LEADER_LEASE
from vidflow.infra.postgres.lease_holder import Lease, run_as_holder
from vidflow.infra.postgres.migrations import wait_for_schema
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.outage import require_kafka, require_postgres
from vidflow.roles.orchestrator.housekeeping import create_missing_partitions, run_retention
from vidflow.roles.orchestrator.leader import Leader
from vidflow.roles.orchestrator.listener import LeaderListener
from vidflow.settings import OrchestratorOptions


def run(options: OrchestratorOptions, stop: Stop) -> None:
    """Lead while this process holds the lease, stand by otherwise, until a stop is requested."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    options.retention.validate()
    wait_for_schema(options.database_url, stop)
    exported = metrics.build_role_registry("orchestrator", metrics.ORCHESTRATOR_REGISTRY)
    with metrics.served(exported, options.metrics_port, options.metrics_host):
        run_as_holder(options.database_url, LEADER_LEASE, stop, lambda lease: lead(options, lease, stop))


def lead(options: OrchestratorOptions, lease: Lease, stop: Stop) -> None:
    """Tick until the lease is lost or a stop is requested. The leader's state ends with the term; the next one starts empty."""
    create_missing_partitions(options.database_url, lease, options.retention)
    retention = start_thread(
        "leader retention", lambda: run_retention(options.database_url, lease, options.retention, stop), stop
    )
    listener = LeaderListener(options.kafka, str(lease.holder), stop)
    try:
        wait_for_broker(options.kafka, stop)
        retry_while_away(listener.open, stop, is_needed=lease.is_held)
        if not lease.is_held() or stop.requested:
            return
        with connect(
            options.database_url, name="vidflow leader reads", response_timeout_s=RESPONSE_TIMEOUT_S
        ) as connection:
            metrics.LEADS.set(1)
            Leader(lease, listener, connection, options.attempts).run(lambda: lease.is_held() and not stop.requested)
    finally:
        metrics.LEADS.set(0)
        # Release the lease first: joining the threads may take long, since one of them may be waiting for an unavailable broker.
        lease.close()
        listener.close()
        retention.join()
