"""The metrics of each role: only its own. docs/reference/metrics.md lists them."""

from __future__ import annotations

import math
import re

import msgspec
import pytest
from docs.generator.metrics import REGISTRIES, Family, families
from prometheus_client import CollectorRegistry, generate_latest

from vidflow.domain.errors import SetupError
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.outage import Outage
from vidflow.roles.worker import link


def test_no_name_is_exported_by_two_roles() -> None:
    names = [family.name for family in families()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("role", REGISTRIES)
def test_a_role_exports_only_its_own_metrics(role: str) -> None:
    text = generate_latest(metrics.build_role_registry(role, *REGISTRIES[role])).decode()
    names = set(re.findall(r"^# TYPE (vidflow_\w+) ", text, re.MULTILINE))
    assert names == {family.name for family in families() if family.role in {role, "every"}}
    assert 'vidflow_build_info{python="' in text
    assert f'role="{role}"' in text
    assert "process_cpu_seconds_total" in text
    assert "_created" not in text


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_names_follow_the_conventions_of_prometheus(family: Family) -> None:
    """Base units, `_total` on counters only, no unit unknown to Prometheus."""
    _, name, kind, labels, _ = family
    assert name.endswith("_total") == (kind == "counter")
    assert not re.search(r"_(ms|millis|us|minutes|kb|mb|count|sum|bucket)(_|$)", name)
    assert kind != "histogram" or name.endswith("_seconds")
    assert not {"scenario", "scenario_uuid", "runner", "model", "source", "le", "quantile"} & set(labels)


def test_metrics_are_served_only_on_the_given_host() -> None:
    registry = metrics.build_role_registry("relay", metrics.RELAY_REGISTRY)
    with metrics.served(registry, 0, "127.0.0.2"):
        pass
    with metrics.served(registry, None, "127.0.0.1"):
        pass
    with pytest.raises(SetupError, match="--metrics-port or --metrics-host"), metrics.served(registry, 1, "192.0.2.1"):
        pass


def test_a_scrape_can_be_restricted_to_some_names() -> None:
    registry = metrics.build_role_registry("runner", metrics.RUNNER_REGISTRY)
    text = generate_latest(registry.restricted_registry(["vidflow_runner_slots"])).decode()
    assert "vidflow_runner_slots " in text


def test_the_measurements_of_workers_are_added_up() -> None:
    registry = CollectorRegistry()
    histogram = metrics.MergedHistogram("x_seconds", "X.", (0.1, 1.0), registry)
    histogram.add((1, 2, 0), 1.5)
    histogram.add((0, 1, 4), 40.0)
    text = generate_latest(registry).decode()
    assert 'x_seconds_bucket{le="0.1"} 1.0' in text
    assert 'x_seconds_bucket{le="1.0"} 4.0' in text
    assert 'x_seconds_bucket{le="+Inf"} 8.0' in text
    assert "x_seconds_count 8.0" in text
    assert "x_seconds_sum 41.5" in text


GOOD = {
    "type": "measured",
    "decode": [0] * link.BUCKETS,
    "decode_s": 0.5,
    "inference": [1] * link.BUCKETS,
    "inference_s": 1.0,
    "frames": 4,
}


def test_the_measurements_of_a_worker_fit_into_one_piece_of_its_pipe() -> None:
    most = (1_000_000,) * link.BUCKETS
    piece = msgspec.json.encode(link.WorkerMeasurements(most, 123456.123456789, most, 123456.123456789, 1_000_000))
    assert len(piece) < link.PIECE_BYTES
    assert isinstance(link._message_decoder.decode(msgspec.json.encode(GOOD)), link.WorkerMeasurements)


@pytest.mark.parametrize(
    "bad",
    [
        {"decode": [0]},
        {"decode": [-1] * link.BUCKETS},
        {"inference_s": -1.0},
        {"inference_s": 1e300},
        {"frames": 10**9},
        {"frames": None},
    ],
)
def test_invalid_measurements_of_a_worker_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(msgspec.DecodeError):
        link._message_decoder.decode(msgspec.json.encode(GOOD | bad))


def test_the_lag_of_a_revoked_partition_is_removed() -> None:
    def lags() -> dict[str, float]:
        samples = next(iter(metrics.INBOX_LAG.collect())).samples
        return {sample.labels["partition"]: sample.value for sample in samples}

    metrics.export_lag({0: 10, 1: 20}, {1: 5})
    assert lags() == {"0": 0, "1": 15}
    metrics.export_lag({1: 20}, {})
    assert lags() == {"1": 0}
    metrics.export_lag({}, {})
    assert lags() == {}


def test_the_time_to_the_first_frame_is_derived_from_the_scenario_uuid() -> None:
    before = first_frame_sum_s()
    metrics.observe_first_frame("019a0000-0000-7000-8000-000000000000", 0x019A00000000 / 1000 + 2.5)
    assert math.isclose(first_frame_sum_s() - before, 2.5, abs_tol=1e-3)
    metrics.observe_first_frame("00000000-0000-4000-8000-000000000000", 1e9)  # a version 4 uuid contains no time
    assert math.isclose(first_frame_sum_s() - before, 2.5, abs_tol=1e-3)


def first_frame_sum_s() -> float:
    return metrics.INBOX_REGISTRY.get_sample_value("vidflow_inbox_first_frame_seconds_sum") or 0.0


def test_an_outage_is_counted_once_and_lasts_until_all_parts_are_back() -> None:
    first, second = Outage("Somewhere", "start it"), Outage("Somewhere", "start it")
    assert outages() == (0, 0)
    first.begin(ConnectionError())
    second.begin(ConnectionError())
    first.begin(ConnectionError())
    count, seconds = outages()
    first.end()
    assert count == 1
    assert outages()[1] > seconds
    second.end()
    final = outages()
    assert final == outages()
    second.begin(ConnectionError())
    assert outages()[0] == 2
    del second
    assert outages() == outages()


def outages() -> tuple[float, float]:
    labels = {"server": "somewhere"}
    values = [
        metrics.PROCESS_REGISTRY.get_sample_value(f"vidflow_{name}_total", labels)
        for name in ("outages", "outage_seconds")
    ]
    return values[0] or 0, values[1] or 0
