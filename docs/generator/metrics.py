"""The metrics of each role, from the registries that export them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from docs.generator.markdown import GENERATED, code, table
from prometheus_client import CollectorRegistry

from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.outage import Outage
from vidflow.roles.api.metrics import API, TABLES

REGISTRIES: Final = {
    "api": (API, TABLES),
    "inbox": (metrics.INBOX_REGISTRY,),
    "relay": (metrics.RELAY_REGISTRY,),
    "orchestrator": (metrics.ORCHESTRATOR_REGISTRY,),
    "runner": (metrics.RUNNER_REGISTRY,),
}
_LABELS: Final = {
    "vidflow_build_info": ("version", "role", "python"),
    "vidflow_outages_total": ("server",),
    "vidflow_outage_seconds_total": ("server",),
}
"""Labels of the collectors that do not list them."""
_INTRODUCTION: Final = """# Metrics

Each role exports its own Prometheus metrics. The api serves them at `GET /metrics`; with `--metrics-port` it serves them on that
port instead. The other roles serve none until they get a `--metrics-port`. A metrics port listens on 127.0.0.1 unless
`--metrics-host` (`VIDFLOW_METRICS_HOST`) names another address: whoever reaches it can read the metrics.

```sh
vidflow runner --metrics-port 9101
```

- Workers live as long as one scenario and are not scraped. They report what they measured to their runner, at most once a second
  and at their end, and the runner adds it up. What a killed worker measured in its last second is lost.
- No label contains a scenario, a runner, a model, a source or anything else that a client chooses, so the number of series is
  bounded. The label `path` is the template of a route, `other` for paths that do not exist. The pools without runners are one,
  `other`.
- A scrape of the api reads a bounded number of rows, however many scenarios exist. It counts at most 10,000 of each: a value of
  10,000 means "10,000 or more". While the database is unavailable, what is read from it is left out, and `vidflow_database_up` is 0.
- An api that hosts the inbox (the default outside of `vidflow dev`) exports the inbox's metrics, too.
- Every role also exports the `process_…` and `python_info` metrics of the Prometheus client.

"""


class Family(NamedTuple):
    """A metric as it is exported."""

    role: str
    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def build_page() -> str:
    """Return the page of all metrics."""
    rows = [
        (code(family.name), family.kind, ", ".join(map(code, family.labels)), family.role, family.meaning)
        for family in families()
    ]
    return GENERATED + _INTRODUCTION + table(("name", "type", "labels", "role", "meaning"), rows)


def families() -> list[Family]:
    """Return all metrics of vidflow's own, those of every role first, then by role."""
    Outage("Kafka", "start it")  # the outage metrics exist once there is an outage to observe
    every = _families("every", metrics.build_role_registry("every"))
    return [
        *every,
        *(family for role, parts in REGISTRIES.items() for part in parts for family in _families(role, part)),
    ]


def _families(role: str, registry: CollectorRegistry) -> Iterator[Family]:
    found = {}
    for collector in set(registry._collector_to_names):  # noqa: SLF001 - the only place that knows the labels
        labels = tuple(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            if name.startswith("vidflow_"):
                meaning = family.documentation.strip()
                found[name] = Family(role, name, family.type, labels or _LABELS.get(name, ()), meaning)
    for name in sorted(found):
        yield found[name]
