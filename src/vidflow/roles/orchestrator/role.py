"""The orchestrator: leads while it holds the lease, stands by while another does."""

from __future__ import annotations

from typing import Final

from vidflow.infra.kafka.admin import wait_for_broker
from vidflow.infra.kafka.errors import KafkaAway
from vidflow.infra.postgres.connection import RESPONSE_TIMEOUT_S, connect
from vidflow.infra.postgres.lease import Lease, run_as_holder
from vidflow.infra.postgres.migrations import wait_for_schema
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.outage import kafka_outage, require_kafka, require_postgres
from vidflow.roles.orchestrator.housekeeping import create_missing_partitions, run_retention
from vidflow.roles.orchestrator.leader import Leader
from vidflow.roles.orchestrator.listener import LeaderListener
from vidflow.settings import OrchestratorOptions

LEASE: Final = "leader"
RETRY_S: Final = 0.2


def run(options: OrchestratorOptions, stop: Stop) -> None:
    """Leads while it holds the lease, stands by while another does, until it is to stop."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    options.retention.validate()
    wait_for_schema(options.database_url, stop)
    exported = metrics.build_role_registry("orchestrator", metrics.ORCHESTRATOR_REGISTRY)
    with metrics.served(exported, options.metrics_port, options.metrics_host):
        run_as_holder(options.database_url, LEASE, stop, lambda lease: lead(options, lease, stop))


def lead(options: OrchestratorOptions, lease: Lease, stop: Stop) -> None:
    """Ticks until the lease is lost or a stop is requested. What it remembers ends with it: the next leader starts empty."""
    create_missing_partitions(options.database_url, lease, options.retention)
    keeping = start_thread(
        "leader keeps", lambda: run_retention(options.database_url, lease, options.retention, stop), stop
    )
    hearing = LeaderListener(options.kafka, str(lease.holder), stop)
    try:
        if not (wait_for_broker(options.kafka, stop) and _open_listener(hearing, lease, stop)):
            return
        with connect(
            options.database_url, name="vidflow leader reads", response_timeout_s=RESPONSE_TIMEOUT_S
        ) as tables:
            metrics.LEADS.set(1)
            Leader(lease, hearing, tables, options.attempts).run(lambda: lease.is_held() and not stop.requested)
    finally:
        metrics.LEADS.set(0)
        # First, so that others can lead while this one waits for its threads, one of which may be asking a broker that is away.
        lease.close()
        hearing.close()
        keeping.join()


def _open_listener(hearing: LeaderListener, lease: Lease, stop: Stop) -> bool:
    """Waits for Kafka and its topics; False where the lease or the process ends before they are there."""
    outage = kafka_outage()
    while lease.is_held() and not stop.requested:
        try:
            hearing.open()
        except KafkaAway as error:
            outage.begin(error)
            stop.wait(RETRY_S)
        else:
            outage.end()
            return True
    return False
