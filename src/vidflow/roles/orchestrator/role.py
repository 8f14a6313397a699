"""The orchestrator: leads while it holds the lease, stands by while another does."""

from __future__ import annotations

from typing import Final

from vidflow.infra.kafka.admin import wait_for_broker
from vidflow.infra.kafka.errors import KafkaAway
from vidflow.infra.postgres.connection import ANSWER_LIMIT_S, connect
from vidflow.infra.postgres.lease import Lease, keep
from vidflow.infra.postgres.migrations import wait_for_schema
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.outage import kafka_outage, require_kafka, require_postgres
from vidflow.roles.orchestrator.hearing import Hearing
from vidflow.roles.orchestrator.keeping import keep_tables, prepare
from vidflow.roles.orchestrator.leader import Leader
from vidflow.settings import OrchestratorOptions

LEASE: Final = "leader"
RETRY_S: Final = 0.2


def run(options: OrchestratorOptions, stop: Stop) -> None:
    """Leads while it holds the lease, stands by while another does, until it is to stop."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    options.keeping.checked()
    wait_for_schema(options.database_url, stop)
    exported = metrics.registry_of("orchestrator", metrics.ORCHESTRATOR)
    with metrics.served(exported, options.metrics_port, options.metrics_host):
        keep(options.database_url, LEASE, stop, lambda lease: lead(options, lease, stop))


def lead(options: OrchestratorOptions, lease: Lease, stop: Stop) -> None:
    """Ticks until the lease is lost or a stop is requested. What it remembers ends with it: the next leader starts empty."""
    prepare(options.database_url, lease, options.keeping)
    keeping = start_thread(
        "leader keeps", lambda: keep_tables(options.database_url, lease, options.keeping, stop), stop
    )
    hearing = Hearing(options.kafka, str(lease.holder), stop)
    try:
        if not (wait_for_broker(options.kafka, stop) and _opened(hearing, lease, stop)):
            return
        with connect(options.database_url, name="vidflow leader reads", answer_limit_s=ANSWER_LIMIT_S) as tables:
            metrics.LEADS.set(1)
            Leader(lease, hearing, tables, options.attempts).run(lambda: lease.held() and not stop.requested)
    finally:
        metrics.LEADS.set(0)
        # First, so that others can lead while this one waits for its threads, one of which may be asking a broker that is away.
        lease.end()
        hearing.close()
        keeping.join()


def _opened(hearing: Hearing, lease: Lease, stop: Stop) -> bool:
    """Waits for Kafka and its topics; False where the lease or the process ends before they are there."""
    outage = kafka_outage()
    while lease.held() and not stop.requested:
        try:
            hearing.open()
        except KafkaAway as error:
            outage.away(error)
            stop.wait(RETRY_S)
        else:
            outage.back()
            return True
    return False
