"""The options that commands have in common: each with its help, its bounds and its environment variables. Not the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

MAX_PORT = 65535


def option(name: str, text: str, *more: str, at_least: float | None = None, at_most: float | None = None) -> Any:  # noqa: ANN401 - what typer.Option returns
    """An option and its environment variable, VIDFLOW_ and its name; `more` variables are understood too."""
    variable = "VIDFLOW_" + name.strip("-").replace("-", "_").upper()
    return typer.Option(f"--{name}", help=text, envvar=[variable, *more], show_default=True, min=at_least, max=at_most)


DatabaseUrl = Annotated[str, option("database-url", "PostgreSQL, as postgresql://user:password@host:port/database.")]
KafkaServers = Annotated[str, option("kafka", "Kafka's bootstrap servers, as host:port,host:port.")]
KafkaProperties = Annotated[
    Path | None,
    option(
        "kafka-properties",
        "A file of librdkafka properties, name=value a line; also VIDFLOW_KAFKA_SASL_USERNAME and the like.",
    ),
]
LogFormat = Annotated[Literal["text", "json"], option("log-format", "text for people, json for machines.")]
MetricsPort = Annotated[
    int | None, option("metrics-port", "Serve Prometheus metrics on this port.", at_least=1, at_most=MAX_PORT)
]
MetricsHost = Annotated[str, option("metrics-host", "Where to serve the metrics.")]
MediaRoot = Annotated[Path | None, option("media-root", "The folder of the local files that scenarios may name.")]
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
        help="Without --models-dir: let scenarios name any ONNX model or its spec that this user can read.",
        envvar="VIDFLOW_ANY_ONNX",
    ),
]
ModelsDir = Annotated[
    Path | None, option("models-dir", "A folder of model specs; each is a model named after its file.")
]
PoolName = Annotated[str, option("pool", "The pool of runners.")]
MaxWorkers = Annotated[
    int, option("max-workers", "How many scenarios a runner works on at once.", "MAX_WORKERS", at_least=1, at_most=1000)
]
VideoFps = Annotated[
    str,
    option(
        "video-fps", "Frames a second to keep where a scenario does not say: a number, a fraction or all.", "VIDEO_FPS"
    ),
]

KeepResultsDays = Annotated[
    int | None, option("keep-results-days", "Remove results of scenarios that ended longer ago.", at_least=1)
]
KeepScenariosDays = Annotated[
    int | None, option("keep-scenarios-days", "Then remove these scenarios too, with their history.", at_least=1)
]
ResultsPartitionDays = Annotated[
    int, option("results-partition-days", "How many days of results a partition takes.", at_least=1)
]

AllowedHostList = Annotated[
    str,
    option(
        "allowed-hosts",
        "Hosts that requests may name beside localhost, as api.example.org,*.example.org,10.0.0.0/8; * for any.",
    ),
]
MaxConnections = Annotated[
    int, option("max-connections", "Connections of clients; more are kept for health checks.", at_least=1)
]
QueueLimitBytes = Annotated[
    int, option("queue-limit-bytes", "How many bytes the waiting scenarios may take together.", at_least=1)
]
