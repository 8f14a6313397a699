"""The options of all commands, each with its help, bounds, choices and environment variables. A command adds the default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vidflow.cli.completion import complete_model
from vidflow.domain.access import Rights
from vidflow.domain.sandbox import SandboxMode
from vidflow.settings import InferenceMode, OutputFormat

_MAX_PORT = 65535


def _option(
    name: str,
    text: str,
    *more_variables: str,
    variable: str | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    complete: Any = None,  # noqa: ANN401 - what typer.Option takes
) -> Any:  # noqa: ANN401 - what typer.Option returns
    """Return an option that is also read from the environment variables VIDFLOW_<NAME> (or `variable`) and `more_variables`."""
    variables = [variable or _variable(name), *more_variables]
    return typer.Option(
        f"--{name}", help=text, envvar=variables, show_default=True, min=at_least, max=at_most, autocompletion=complete
    )


def _switch(name: str, text: str) -> Any:  # noqa: ANN401 - what typer.Option returns
    """Return an option --NAME and --no-NAME that is also read from the environment variable VIDFLOW_<NAME>."""
    return typer.Option(f"--{name}/--no-{name}", help=text, envvar=[_variable(name)])


def _variable(name: str) -> str:
    return "VIDFLOW_" + name.replace("-", "_").upper()


# Servers

DatabaseUrl = Annotated[str, _option("database-url", "PostgreSQL, as postgresql://user:password@host/database.")]
KafkaServers = Annotated[str, _option("kafka", "Kafka's bootstrap servers, as host:port,host:port.")]
KafkaProperties = Annotated[
    Path | None,
    _option(
        "kafka-properties",
        "File of librdkafka properties, one name=value per line. Variables such as VIDFLOW_KAFKA_SASL_USERNAME override it.",
    ),
]
DataDir = Annotated[Path | None, _option("data-dir", "Folder of the data of PostgreSQL and Kafka.")]

# Roles

LogFormat = Annotated[Literal["text", "json"], _option("log-format", "Log format: text for people, json for programs.")]
MetricsPort = Annotated[
    int | None, _option("metrics-port", "Port to serve Prometheus metrics on.", at_least=1, at_most=_MAX_PORT)
]
MetricsHost = Annotated[str, _option("metrics-host", "Address to serve the metrics on.")]
MediaRoot = Annotated[Path | None, _option("media-root", "Folder of the local videos that scenarios may name.")]
AnyFile = Annotated[bool, _switch("any-file", "Let scenarios name any video file that this user can read.")]
ModelsDir = Annotated[Path | None, _option("models-dir", "Folder of model specs. Each model has the name of its file.")]
AnyOnnx = Annotated[
    bool,
    _switch("any-onnx", "Without --models-dir, let scenarios name any ONNX model or spec that this user can read."),
]
DeviceName = Annotated[
    str,
    _option("device", "Device to run models on: cpu, cuda:N, or auto, which is cuda:0 if the model can use it."),
]
VideoFps = Annotated[
    str,
    _option(
        "video-fps",
        "Frames per second to keep if a scenario specifies none: a number, a fraction such as 30000/1001, or all.",
        "VIDEO_FPS",
    ),
]
MaxWorkers = Annotated[
    int,
    _option(
        "max-workers", "Number of scenarios that a runner processes at once.", "MAX_WORKERS", at_least=1, at_most=1000
    ),
]
SourceCaFile = Annotated[
    Path | None,
    _option("source-ca-file", "File of certificate authorities (PEM) that sources may have, besides the system's."),
]
InsecureSources = Annotated[bool, _switch("insecure-sources", "Accept any certificate of a source, valid or not.")]
AllowSourceNetwork = Annotated[
    list[str] | None,
    _option(
        "allow-source-network", "Network whose addresses sources may have besides public ones, such as 10.0.0.0/8."
    ),
]
AllowDevice = Annotated[
    list[str] | None,
    _option(
        "allow-device", "Camera of a runner's machine that scenarios may name in the same way, such as /dev/video0."
    ),
]

# The api

Host = Annotated[str, _option("host", "Address to listen on.")]
Port = Annotated[
    int, _option("port", "Port of the HTTP API. With 0, a free one is chosen.", at_least=0, at_most=_MAX_PORT)
]
AllowedHosts = Annotated[
    str,
    _option(
        "allowed-hosts",
        "Hosts that requests may name besides localhost, such as api.example.org,*.example.org,10.0.0.0/8. Any host: *",
    ),
]
Auth = Annotated[
    bool, _switch("auth", "Ask for a token. On a loopback address, only once one was created (vidflow token create).")
]
OwnerScenarios = Annotated[
    int | None, _option("owner-scenarios", "Scenarios of one owner that may wait and run at once.", at_least=1)
]
OwnerRequestsPerS = Annotated[
    float | None, _option("owner-requests-per-s", "Requests a second of one owner to this api.", at_least=0.01)
]
CorsOrigins = Annotated[
    str,
    _option("cors-origins", "Origins of other sites whose pages may use the API, such as https://app.example.org."),
]
TrustedProxies = Annotated[
    str,
    _option("trusted-proxies", "Addresses or networks of proxies whose X-Forwarded-For says who sent a request."),
]
MaxConnections = Annotated[
    int,
    _option("max-connections", "Maximum number of client connections. Health checks have their own.", at_least=1),
]
RunInbox = Annotated[bool, _switch("inbox", "Run the inbox in this process.")]
PoolSize = Annotated[int, _option("pool-size", "Maximum number of database connections.", at_least=1)]
QueueLimit = Annotated[int, _option("queue-limit", "Maximum number of waiting scenarios.", at_least=1)]
QueueLimitBytes = Annotated[
    int, _option("queue-limit-bytes", "Maximum total size of the waiting scenarios in bytes.", at_least=1)
]
MinFreeBytes = Annotated[
    int,
    _option("min-free-bytes", "Refuse new scenarios while less than this is free in --data-dir.", at_least=0),
]

# The inbox

GroupProtocol = Annotated[
    Literal["consumer", "classic"],
    _option("group-protocol", "Kafka's group protocol: classic for brokers without the newer one."),
]

# The orchestrator

Attempts = Annotated[
    int, _option("attempts", "Consecutive losses at one frame after which a scenario fails.", at_least=1)
]
KeepResultsDays = Annotated[
    int | None,
    _option("keep-results-days", "Days after the end of a scenario until its results are removed.", at_least=1),
]
KeepScenariosDays = Annotated[
    int | None,
    _option(
        "keep-scenarios-days",
        "Days after the end of a scenario until it is removed with its history.",
        at_least=1,
    ),
]
KeepAuditDays = Annotated[int, _option("keep-audit-days", "Days until an entry of the audit is removed.", at_least=1)]
ResultsPartitionDays = Annotated[int, _option("results-partition-days", "Days of results in a partition.", at_least=1)]

# The runner

Pool = Annotated[str, _option("pool", "Name of a runner pool.")]
GraceS = Annotated[float, _option("grace-s", "Seconds that a draining runner has to finish.", at_least=0)]
StartDeadlineS = Annotated[float, _option("start-deadline-s", "Seconds that a worker may take to start.", at_least=1)]
InferenceDeadlineS = Annotated[
    float, _option("inference-deadline-s", "Seconds that a worker may take for a batch.", at_least=1)
]
Cores = Annotated[
    int | None,
    _option(
        "cores",
        "Cores that the workers share: each model uses its part of them. By default all that the runner may use.",
        at_least=1,
    ),
]
Inference = Annotated[
    InferenceMode,
    _option(
        "inference",
        "Where models run: in each worker, or shared: in one process for all workers that use the same model. auto: shared on a GPU.",
    ),
]
Sandbox = Annotated[
    SandboxMode,
    _option(
        "sandbox",
        "Whether workers give up all rights that they do not need: as far as the system can, completely or not start (require), or not.",
    ),
]
WorkerMemoryBytes = Annotated[
    int | None,
    _option(
        "worker-memory-bytes",
        "Memory limit of a worker in bytes; 0 for none. By default its share of 80% of all memory, and at least 2 GiB.",
        at_least=0,
    ),
]

# dev

Runners = Annotated[int, _option("runners", "Number of runners.", at_least=0)]
Orchestrators = Annotated[int, _option("orchestrators", "Number of orchestrators.", at_least=0)]
Relays = Annotated[int, _option("relays", "Number of relays.", at_least=0)]

# run

Video = Annotated[
    str,
    typer.Argument(
        help="A file, a URL, a camera (/dev/video0), or a sample: sample:bikes, sample:bigbuckbunny, sample:carphone."
    ),
]
ModelName = Annotated[
    str, _option("model", "Name of a model, or the path of a spec or an .onnx file.", complete=complete_model)
]
Fps = Annotated[str, _option("fps", "Frames per second to keep: a number, a fraction such as 30000/1001, or all.")]
RunOutput = Annotated[OutputFormat, _option("output", "Output format: table for people, the others for programs.")]
Url = Annotated[str | None, _option("url", "URL of a running vidflow to use instead of starting one.")]
Token = Annotated[
    str | None, _option("token", "Token for --url. Set the variable instead: command lines are visible to others.")
]
Score = Annotated[float | None, _option("score", "Leave out detections below this score.", at_least=0, at_most=1)]
Labels = Annotated[
    str | None, _option("labels", "Labels to keep, separated by commas. One that contains a comma is quoted.")
]
LabelsFile = Annotated[
    str | None,
    _option(
        "labels-file",
        "File with one label a line, for an .onnx file that does not name its classes; or coco80 or coco91.",
    ),
]

# bench

BenchSource = Annotated[
    str,
    _option("source", "Video to measure: a file, or a sample such as sample:bikes. Use one like those of the cameras."),
]
BenchOutput = Annotated[
    Literal["text", "json"],
    _option("output", "Output format: text for people, json for programs.", variable="VIDFLOW_BENCH_OUTPUT"),
]
Seconds = Annotated[
    float,
    _option(
        "seconds",
        "Time to measure, besides the start.",
        variable="VIDFLOW_BENCH_SECONDS",
        at_least=1,
        at_most=3600,
    ),
]

# db

Phase = Annotated[
    Literal["pre", "post", "all"],
    _option("phase", "Migrations to apply: pre before the roles are upgraded, post after it, or all."),
]
Replace = Annotated[bool, _switch("replace", "Replace the existing backup or database.")]
Verify = Annotated[bool, _switch("verify", "Restore the backup into a temporary database and count its rows.")]
BackupFolder = Annotated[Path, typer.Argument(help="Folder of the backup.")]

# models

ModelArgument = Annotated[
    str,
    typer.Argument(help="Name of a model, or the path of a spec or an .onnx file.", autocompletion=complete_model),
]

CheckedImage = Annotated[
    str | None,
    _option(
        "image",
        "Picture (JPEG, PNG), video or sample to run the model on. A picture with what is found is written beside it.",
    ),
]
WriteSpec = Annotated[
    bool,
    typer.Option(
        "--write-spec", help="Write the spec of an .onnx file beside it, with its digest. Nothing is replaced."
    ),
]
"""Without a variable: one that is left in the environment would write files."""

# token

_OWNER = _option("owner", "Owner of scenarios, such as a person or a service.")
Owner = Annotated[str, _OWNER]
OnlyOwner = Annotated[str | None, _OWNER]
TokenRights = Annotated[
    Rights,
    _option(
        "rights",
        "What it allows: read, write (and read), or admin: everything, for the scenarios of all owners.",
        variable="VIDFLOW_TOKEN_RIGHTS",
    ),
]
ExpiresDays = Annotated[
    int | None,
    _option(
        "expires-days",
        "Days until it expires. By default it does not.",
        variable="VIDFLOW_TOKEN_EXPIRES_DAYS",
        at_least=1,
        at_most=36_500,
    ),
]
TokenNote = Annotated[str, _option("note", "What it is for, for the list.", variable="VIDFLOW_TOKEN_NOTE")]
TokenId = Annotated[str, typer.Argument(help="Id of the token, as listed by vidflow token list.")]

# topics

Pools = Annotated[list[str] | None, _option("pool", "Name of a runner pool.")]
ReplicationFactor = Annotated[
    int | None,
    _option("replication-factor", "Replicas of each new topic. By default, the brokers decide.", at_least=1),
]
MinInsyncReplicas = Annotated[
    int | None,
    _option("min-insync-replicas", "Replicas that must have a message before it is acknowledged.", at_least=1),
]

# outbox

Limit = Annotated[int, _option("limit", "Maximum number of items to list.", at_least=1)]
OutboxIds = Annotated[list[int], typer.Argument(help="Ids of the messages, as listed by vidflow outbox list.")]

# dlq

DlqOutput = Annotated[
    Literal["table", "json"],
    _option("output", "Output format: table for people, json for programs.", variable="VIDFLOW_DLQ_OUTPUT"),
]
DeadLetterPlace = Annotated[
    str, typer.Argument(help="Place of the dead letter, topic/partition/offset, as listed by vidflow dlq list.")
]
DeadLetterPlaces = Annotated[
    list[str] | None, typer.Argument(help="Places of the dead letters, as listed by vidflow dlq list.")
]
AllDeadLetters = Annotated[bool, typer.Option("--all", help="Select all dead letters.")]
"""Without a variable: one that is left in the environment would delete all dead letters."""
