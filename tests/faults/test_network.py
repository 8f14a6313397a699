"""The connection between one role and a server is cut, refused or slow, while all others work."""

from __future__ import annotations

import datetime
import re
import threading
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import pytest
from tests.faults import checks, workloads
from tests.faults.injection import workers_of
from tests.faults.proxied_stack import ProxiedStack, RoleProxies, role_proxies
from tests.faults.system_under_test import SystemUnderTest, run_system
from tests.faults.violation import violation
from tests.faults.workloads import Workload
from tests.integration.server_owner import wait_until

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(300)]

TAKEOVER_LIMIT_S = 60.0
PAST_LEASES_S = 6.0
CUT_OFF_LIMIT_S = 60.0
DELAY_S = 0.03
KAFKA_DELAY_S = 0.3
"""A round trip of at least 0.6 s: well below a runner's lease, far above that of a real network."""
LEASE_ACQUIRED_LINE = re.compile(r"(orchestrator-\d): (\S+) info lease lease_acquired lease=leader ")
SCENARIO_MOVED_LINE = re.compile(
    r"(orchestrator-\d): \S+ info orchestrator scenario_moved scenario_uuid=(\S+) to=(\S+) .*?epoch=(\d+)"
)


@pytest.fixture(scope="module")
def proxies() -> Iterator[RoleProxies]:
    with role_proxies() as started:
        yield started


@pytest.fixture(scope="module")
def system(proxies: RoleProxies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemUnderTest]:
    folder = tmp_path_factory.mktemp("network")
    with run_system(
        folder / "data", [workloads.slow(folder, 300)], stack_factory=partial(ProxiedStack, proxies=proxies)
    ) as started:
        assert proxies.all_in_use()
        yield started


@pytest.fixture
def work(system: SystemUnderTest) -> Workload:
    [work] = system.reference_frames
    return work


def read_leader_terms(system: SystemUnderTest) -> list[tuple[datetime.datetime, str]]:
    """Return the orchestrators that became leader, in order, each with the time."""
    today = datetime.datetime.now(datetime.UTC).date()
    matches = [match for line in system.log_lines if (match := LEASE_ACQUIRED_LINE.match(line))]
    times = [datetime.time.fromisoformat(match[2]).replace(tzinfo=datetime.UTC) for match in matches]
    return [(datetime.datetime.combine(today, time), match[1]) for time, match in zip(times, matches, strict=True)]


def check_4_single_writer(system: SystemUnderTest) -> None:
    """Every transition was written by the orchestrator that was the last to become leader at that time."""
    terms = read_leader_terms(system)
    written = defaultdict(list)
    with system.connect() as connection:
        query = "SELECT scenario_uuid, to_state, epoch, at FROM scenario_history"
        for uuid, to_state, epoch, written_at in connection.execute(query):
            written[str(uuid), to_state, str(epoch)].append(written_at)
    moves = [match for line in system.log_lines if (match := SCENARIO_MOVED_LINE.match(line))]
    assert moves
    for match in moves:
        times = written[match[2], match[3], match[4]]
        leaders = {terms[bisect(terms, (written_at, "~")) - 1][1] for written_at in times}
        if match[1] not in leaders:
            raise violation(4, f"{match[0]}: written while {leaders} led")


def wait_for_takeover(system: SystemUnderTest, terms_before: int) -> str:
    """Wait until there are more leader terms than `terms_before`. Return the name of the new leader."""
    wait_until(lambda: len(read_leader_terms(system)) > terms_before, "a takeover", TAKEOVER_LIMIT_S)
    return read_leader_terms(system)[-1][1]


def runner_1(system: SystemUnderTest) -> int:
    """Return the pid of the runner whose connection to Kafka goes through a proxy."""
    return system.processes.pids()["runner"][0]


def occupy_slots(system: SystemUnderTest, work: Workload) -> list[str]:
    """Fill all slots. Return the scenarios once all of them are running."""
    system.wait_until_recovered()
    uuids = [system.create_scenario(work) for _ in range(4)]
    for uuid in uuids:
        system.wait_until_running(uuid)
    assert workers_of(runner_1(system))
    return uuids


def count_requeued(system: SystemUnderTest, uuids: list[str]) -> int:
    """Return how many times these scenarios were lost or requeued."""
    with system.connect() as connection:
        [(count,)] = connection.execute(
            "SELECT count(*) FROM scenario_history"
            " WHERE from_state IS NOT NULL AND to_state = 'init_startup' AND scenario_uuid = ANY(%s::uuid[])",
            (uuids,),
        ).fetchall()
    return int(count)


def keep_cut(seconds: float) -> None:
    """Wait during a cut. There is no event to wait for."""
    threading.Event().wait(seconds)


def check_recovered(system: SystemUnderTest) -> checks.CheckTotals:
    system.wait_until_recovered()
    totals = checks.check_all(system)
    check_4_single_writer(system)
    return totals


def test_invariant_4_a_leader_cut_off_from_the_database_is_replaced_and_two_never_write(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    occupy_slots(system, work)
    terms = read_leader_terms(system)
    with proxies.postgres[terms[-1][1]].cut():
        assert wait_for_takeover(system, len(terms)) != terms[-1][1]
    check_recovered(system)


def test_invariant_4_a_leader_whose_database_connections_are_refused_is_replaced(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    occupy_slots(system, work)
    terms = read_leader_terms(system)
    with proxies.postgres[terms[-1][1]].refusing():
        assert wait_for_takeover(system, len(terms)) != terms[-1][1]
    check_recovered(system)


def test_invariant_8_a_slow_connection_to_the_database_only_delays_the_leader(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    terms = read_leader_terms(system)
    proxy = proxies.postgres[terms[-1][1]]
    proxy.delay_s = DELAY_S
    try:
        occupy_slots(system, work)
        check_recovered(system)
    finally:
        proxy.delay_s = 0.0


@pytest.mark.parametrize("fault", ["cut", "refusing"])
def test_invariant_8_an_inbox_cut_off_from_the_database_continues_where_it_was(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload, fault: str
) -> None:
    occupy_slots(system, work)
    with getattr(proxies.postgres["inbox"], fault)():
        keep_cut(PAST_LEASES_S)
    check_recovered(system)


def test_invariant_8_a_slow_connection_to_kafka_only_delays_a_runner(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    proxies.kafka.delay_s = KAFKA_DELAY_S
    try:
        occupy_slots(system, work)
        assert check_recovered(system).losses == 0
    finally:
        proxies.kafka.delay_s = 0.0


def test_invariant_8_work_of_a_runner_cut_off_from_kafka_continues_on_another_runner(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    uuids = occupy_slots(system, work)
    with proxies.kafka.cut():
        wait_until(
            lambda: count_requeued(system, uuids) > 0, "its work is assigned to the other runner", CUT_OFF_LIMIT_S
        )
    assert check_recovered(system).losses > 0


def test_invariant_8_a_runner_cut_off_too_long_ends_its_workers_and_works_again_afterwards(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    occupy_slots(system, work)
    first_line = len(system.log_lines)
    with proxies.kafka.cut():
        wait_until(lambda: workers_of(runner_1(system)) == [], "its workers have ended", CUT_OFF_LIMIT_S)
        assert any("cut_off" in line for line in system.log_lines[first_line:])
    check_recovered(system)
    occupy_slots(system, work)
    check_recovered(system)
