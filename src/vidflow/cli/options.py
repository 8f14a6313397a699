"""Options shared by several commands, with their help, bounds and environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

MAX_PORT = 65535


def option(name: str, text: str, *variables: str, at_least: float | None = None, at_most: float | None = None) -> Any:  # noqa: ANN401 - what typer.Option returns
    """Return an option that is also read from the environment variables VIDFLOW_<NAME> and `variables`."""
    own = "VIDFLOW_" + name.strip("-").replace("-", "_").upper()
    return typer.Option(f"--{name}", help=text, envvar=[own, *variables], show_default=True, min=at_least, max=at_most)


DatabaseUrl = Annotated[str, option("database-url", "PostgreSQL: postgresql://user:password@host:port/database.")]
KafkaServers = Annotated[str, option("kafka", "Kafka bootstrap servers: host:port,host:port.")]
KafkaProperties = Annotated[
    Path | None,
    option(
        "kafka-properties",
        "File of librdkafka properties, one name=value per line; see also VIDFLOW_KAFKA_SASL_USERNAME etc.",
    ),
]
LogFormat = Annotated[Literal["text", "json"], option("log-format", "text for people, json for machines.")]
MetricsPort = Annotated[
    int | None, option("metrics-port", "Serve Prometheus metrics on this port.", at_least=1, at_most=MAX_PORT)
]
MetricsHost = Annotated[str, option("metrics-host", "Address to serve the metrics on.")]
MediaRoot = Annotated[Path | None, option("media-root", "Folder of the local files that scenarios may name.")]
AnyFile = Annotated[
    bool,
    typer.Option(
        "--any-file/--no-any-file",
        help="Let scenarios name any video file that this user can read.",
        envvar="VIDFLOW_ANY_FILE",
    ),
]
AnyOnnx = Annotated[
    bool,
    typer.Option(
        "--any-onnx/--no-any-onnx",
        help="Without --models-dir: let scenarios name any ONNX model or spec that this user can read.",
        envvar="VIDFLOW_ANY_ONNX",
    ),
]
ModelsDir = Annotated[Path | None, option("models-dir", "Folder of model specs; each model is named after its file.")]
PoolName = Annotated[str, option("pool", "Name of the runner pool.")]
MaxWorkers = Annotated[
    int,
    option(
        "max-workers",
        "Maximum number of scenarios that a runner processes at once.",
        "MAX_WORKERS",
        at_least=1,
        at_most=1000,
    ),
]
VideoFps = Annotated[
    str,
    option(
        "video-fps", "Frames per second to keep if a scenario specifies none: a number, a fraction or all.", "VIDEO_FPS"
    ),
]

KeepResultsDays = Annotated[
    int | None, option("keep-results-days", "Remove the results of scenarios that ended longer ago.", at_least=1)
]
KeepScenariosDays = Annotated[
    int | None, option("keep-scenarios-days", "Remove scenarios that ended longer ago, with their history.", at_least=1)
]
ResultsPartitionDays = Annotated[int, option("results-partition-days", "Days of results in a partition.", at_least=1)]

AllowedHostList = Annotated[
    str,
    option(
        "allowed-hosts",
        "Hosts that requests may name besides localhost: api.example.org,*.example.org,10.0.0.0/8; * for any.",
    ),
]
MaxConnections = Annotated[
    int,
    option("max-connections", "Maximum number of client connections; more are reserved for health checks.", at_least=1),
]
QueueLimitBytes = Annotated[
    int, option("queue-limit-bytes", "Maximum total size of the waiting scenarios.", at_least=1)
]
