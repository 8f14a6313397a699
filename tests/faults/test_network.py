"""The wire between one role and a server is cut, hung up or slow, while all others have theirs."""

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
"""A round trip of 0.6 s and more: well below a runner's lease, far above what a network has."""
LEASE_ACQUIRED_LINE = re.compile(r"(orchestrator-\d): (\S+) info lease lease_acquired lease=leader ")
SCENARIO_MOVED_LINE = re.compile(
    r"(orchestrator-\d): \S+ info orchestrator scenario_moved scenario_uuid=(\S+) to=(\S+) .*?epoch=(\d+)"
)


@pytest.fixture(scope="module")
def proxies() -> Iterator[RoleProxies]:
    with role_proxies() as wired:
        yield wired


@pytest.fixture(scope="module")
def system(proxies: RoleProxies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemUnderTest]:
    folder = tmp_path_factory.mktemp("network")
    with run_system(
        folder / "data", [workloads.slow(folder, 300)], stack_factory=partial(ProxiedStack, proxies=proxies)
    ) as now:
        assert proxies.all_in_use()
        yield now


@pytest.fixture
def work(system: SystemUnderTest) -> Workload:
    [work] = system.reference_frames
    return work


def read_leader_terms(now: SystemUnderTest) -> list[tuple[datetime.datetime, str]]:
    """When which orchestrator began to lead."""
    today = datetime.datetime.now(datetime.UTC).date()
    found = [match for line in now.log_lines if (match := LEASE_ACQUIRED_LINE.match(line))]
    times = [datetime.time.fromisoformat(match[2]).replace(tzinfo=datetime.UTC) for match in found]
    return [(datetime.datetime.combine(today, time), match[1]) for time, match in zip(times, found, strict=True)]


def check_4_single_writer(now: SystemUnderTest) -> None:
    """Whoever moved a scenario was the last who had come to lead when the move was written."""
    led = read_leader_terms(now)
    written = defaultdict(list)
    with now.connect() as tables:
        for uuid, to, epoch, at in tables.execute("SELECT scenario_uuid, to_state, epoch, at FROM scenario_history"):
            written[str(uuid), to, str(epoch)].append(at)
    moves = [match for line in now.log_lines if (match := SCENARIO_MOVED_LINE.match(line))]
    assert moves
    for match in moves:
        leaders = {led[bisect(led, (at, "~")) - 1][1] for at in written[match[2], match[3], match[4]]}
        if match[1] not in leaders:
            raise violation(4, f"{match[0]}: written while {leaders} led")


def wait_for_takeover(now: SystemUnderTest, led: int) -> str:
    """Who leads, once there was one more holding than `led`."""
    wait_until(lambda: len(read_leader_terms(now)) > led, "another one leads", TAKEOVER_LIMIT_S)
    return read_leader_terms(now)[-1][1]


def runner_1(now: SystemUnderTest) -> int:
    """The runner whose wire to Kafka can be cut."""
    return now.processes.pids()["runner"][0]


def occupy_slots(now: SystemUnderTest, work: Workload) -> list[str]:
    """Fills all slots; the scenarios, once each is under way."""
    now.wait_until_recovered()
    uuids = [now.create_scenario(work) for _ in range(4)]
    for uuid in uuids:
        now.wait_until_running(uuid)
    assert workers_of(runner_1(now))
    return uuids


def count_requeued(now: SystemUnderTest, uuids: list[str]) -> int:
    """How many of these scenarios came back to be deployed again."""
    with now.connect() as tables:
        [(count,)] = tables.execute(
            "SELECT count(*) FROM scenario_history"
            " WHERE from_state IS NOT NULL AND to_state = 'init_startup' AND scenario_uuid = ANY(%s::uuid[])",
            (uuids,),
        ).fetchall()
    return int(count)


def keep_cut(seconds: float) -> None:
    """The time that a cut lasts, which nothing tells."""
    threading.Event().wait(seconds)


def check_recovered(now: SystemUnderTest) -> checks.CheckTotals:
    now.wait_until_recovered()
    sums = checks.check_all(now)
    check_4_single_writer(now)
    return sums


def test_invariant_4_a_leader_cut_off_from_the_database_is_followed_and_two_never_write(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    occupy_slots(system, work)
    led = read_leader_terms(system)
    with proxies.postgres[led[-1][1]].cut():
        assert wait_for_takeover(system, len(led)) != led[-1][1]
    check_recovered(system)


def test_invariant_4_a_leader_whose_connections_are_hung_up_leads_on_or_is_followed(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    occupy_slots(system, work)
    led = read_leader_terms(system)
    with proxies.postgres[led[-1][1]].refusing():
        assert wait_for_takeover(system, len(led)) != led[-1][1]
    check_recovered(system)


def test_invariant_8_a_slow_wire_to_the_database_costs_the_leader_nothing_but_time(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    led = read_leader_terms(system)
    proxy = proxies.postgres[led[-1][1]]
    proxy.delay_s = DELAY_S
    try:
        occupy_slots(system, work)
        check_recovered(system)
    finally:
        proxy.delay_s = 0.0


@pytest.mark.parametrize("how", ["cut", "refusing"])
def test_invariant_8_an_inbox_cut_off_from_the_database_goes_on_where_it_was(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload, how: str
) -> None:
    occupy_slots(system, work)
    with getattr(proxies.postgres["inbox"], how)():
        keep_cut(PAST_LEASES_S)
    check_recovered(system)


def test_invariant_8_a_slow_wire_to_kafka_costs_a_runner_nothing_but_time(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    proxies.kafka.delay_s = KAFKA_DELAY_S
    try:
        occupy_slots(system, work)
        assert check_recovered(system).losses == 0
    finally:
        proxies.kafka.delay_s = 0.0


def test_invariant_8_work_of_a_runner_cut_off_from_kafka_goes_on_elsewhere_and_its_return_changes_nothing(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    uuids = occupy_slots(system, work)
    with proxies.kafka.cut():
        wait_until(
            lambda: count_requeued(system, uuids) > 0, "some of its work is given to the other runner", CUT_OFF_LIMIT_S
        )
    assert check_recovered(system).losses > 0


def test_invariant_8_a_runner_cut_off_past_its_patience_ends_its_workers_and_serves_again_afterwards(
    system: SystemUnderTest, proxies: RoleProxies, work: Workload
) -> None:
    occupy_slots(system, work)
    said = len(system.log_lines)
    with proxies.kafka.cut():
        wait_until(lambda: workers_of(runner_1(system)) == [], "its workers are ended", CUT_OFF_LIMIT_S)
        assert any("cut_off" in line for line in system.log_lines[said:])
    check_recovered(system)
    occupy_slots(system, work)
    check_recovered(system)
