"""A Kafka cluster of three brokers on this machine, each also a controller, from the jars of the embedded Kafka."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.integration.server_owner import wait_until

from vidflow.infra.embedded.child_process import find_free_ports
from vidflow.infra.embedded.kafka import EmbeddedKafka, new_kafka_id
from vidflow.infra.kafka import admin
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop
from vidflow.settings import read_environment_variable

NODES: Final = 3
REPLICAS: Final = 3
MIN_IN_SYNC: Final = 2
SESSION_S: Final = 3.0
"""Time without a heartbeat after which the controller moves a broker's partitions to others."""

_CLUSTER_PROPERTIES: Final = {
    "controller.quorum.election.timeout.ms": "1000",
    "controller.quorum.fetch.timeout.ms": "2000",
    "default.replication.factor": str(REPLICAS),
    "min.insync.replicas": str(MIN_IN_SYNC),
    "offsets.topic.replication.factor": str(REPLICAS),
    "transaction.state.log.replication.factor": str(REPLICAS),
    "transaction.state.log.min.isr": str(MIN_IN_SYNC),
    "share.coordinator.state.topic.replication.factor": str(REPLICAS),
    "share.coordinator.state.topic.min.isr": str(MIN_IN_SYNC),
    "broker.session.timeout.ms": str(int(SESSION_S * 1000)),
    "broker.heartbeat.interval.ms": "500",
}


class Node(EmbeddedKafka):
    """One of the brokers. `ports` holds the broker port and the controller port of every node."""

    def __init__(self, folder: Path, number: int, ports: Sequence[tuple[int, int]], cluster_id: str) -> None:
        voters = ",".join(f"{node}@127.0.0.1:{controller}" for node, (_, controller) in enumerate(ports, 1))
        super().__init__(
            folder,
            notify=print,
            stop=Stop(),
            ports=ports[number - 1],
            cache=read_environment_variable("VIDFLOW_CACHE_DIR"),
            extra_properties={**_CLUSTER_PROPERTIES, "node.id": str(number), "controller.quorum.voters": voters},
            cluster_id=cluster_id,
        )
        self.number = number


class Cluster:
    """Three running nodes. A killed node stays down until its `start` is called."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    @property
    def settings(self) -> KafkaSettings:
        """Settings that name all nodes, because any of them may be down."""
        return KafkaSettings(",".join(node.bootstrap for node in self.nodes))

    def kill(self, node: Node) -> None:
        assert node.process is not None
        node.process.kill()
        node.process.wait()

    @contextmanager
    def frozen(self, node: Node) -> Iterator[None]:
        """Freeze one node while the block runs."""
        assert node.pid is not None
        os.kill(node.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(node.pid, signal.SIGCONT)

    def controller(self) -> Node:
        """Return the active controller, as recorded by the first node."""
        state = json.loads((self.nodes[0].folder / "data/__cluster_metadata-0/quorum-state").read_text())
        leader: int = state["leaderId"]
        return self.nodes[leader - 1]

    def leaders(self, topic: str) -> dict[int, int]:
        """Return the number of the node that leads each partition of a topic, or -1 for a partition without a leader."""
        client = admin.create_admin(self.settings)
        partitions = client.list_topics(topic, timeout=10).topics[topic].partitions
        return {number: partition.leader for number, partition in partitions.items()}

    def is_in_sync(self, topic: str) -> bool:
        """Return whether every partition of a topic has all replicas in sync."""
        client = admin.create_admin(self.settings)
        partitions = client.list_topics(topic, timeout=10).topics[topic].partitions.values()
        return all(len(partition.isrs) == REPLICAS for partition in partitions)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run a cluster with its data in a folder while the block runs."""
    ports = find_free_ports(2 * NODES)
    pairs = list(zip(ports[::2], ports[1::2], strict=True))
    cluster_id = new_kafka_id()
    nodes = [Node(folder / f"node-{number}", number, pairs, cluster_id) for number in range(1, NODES + 1)]
    try:
        with ThreadPoolExecutor(NODES) as threads:
            list(threads.map(Node.start, nodes))
        started = Cluster(nodes)
        wait_until(
            lambda: len(admin.create_admin(started.settings).list_topics(timeout=10).brokers) == NODES,
            "all brokers have joined",
        )
        yield started
    finally:
        for node in nodes:
            if node.process is not None:
                node.process.send_signal(signal.SIGCONT)
            node.stop()
