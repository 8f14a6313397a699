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
from tests.faults import checks, works
from tests.faults.broken import broken
from tests.faults.scene import Scene, scene
from tests.faults.strikes import workers_of
from tests.faults.wires import Wired, Wires, wires
from tests.faults.works import Work
from tests.integration.embedded import wait_until

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(300)]

TAKEN_OVER_S = 60.0
LONGER_THAN_LEASES_S = 6.0
PATIENCE_IS_OVER_S = 60.0
DELAY_S = 0.03
KAFKA_DELAY_S = 0.3
"""A round trip of 0.6 s and more: well below a runner's lease, far above what a network has."""
LEADS = re.compile(r"(orchestrator-\d): (\S+) info lease lease_acquired lease=leader ")
MOVES = re.compile(
    r"(orchestrator-\d): \S+ info orchestrator scenario_moved scenario_uuid=(\S+) to=(\S+) .*?epoch=(\d+)"
)


@pytest.fixture(scope="module")
def wired() -> Iterator[Wires]:
    with wires() as wired:
        yield wired


@pytest.fixture(scope="module")
def now(wired: Wires, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("network")
    with scene(folder / "data", [works.slow(folder, 300)], made_by=partial(Wired, wires=wired)) as now:
        assert wired.all_in_use()
        yield now


@pytest.fixture
def work(now: Scene) -> Work:
    [work] = now.undisturbed
    return work


def holdings(now: Scene) -> list[tuple[datetime.datetime, str]]:
    """When which orchestrator began to lead."""
    today = datetime.datetime.now(datetime.UTC).date()
    found = [match for line in now.said if (match := LEADS.match(line))]
    times = [datetime.time.fromisoformat(match[2]).replace(tzinfo=datetime.UTC) for match in found]
    return [(datetime.datetime.combine(today, time), match[1]) for time, match in zip(times, found, strict=True)]


def check_4_one_writes(now: Scene) -> None:
    """Whoever moved a scenario was the last who had come to lead when the move was written."""
    led = holdings(now)
    written = defaultdict(list)
    with now.tables() as tables:
        for uuid, to, epoch, at in tables.execute("SELECT scenario_uuid, to_state, epoch, at FROM scenario_history"):
            written[str(uuid), to, str(epoch)].append(at)
    moves = [match for line in now.said if (match := MOVES.match(line))]
    assert moves
    for match in moves:
        leaders = {led[bisect(led, (at, "~")) - 1][1] for at in written[match[2], match[3], match[4]]}
        if match[1] not in leaders:
            raise broken(4, f"{match[0]}: written while {leaders} led")


def taken_over(now: Scene, led: int) -> str:
    """Who leads, once there was one more holding than `led`."""
    wait_until(lambda: len(holdings(now)) > led, "another one leads", TAKEN_OVER_S)
    return holdings(now)[-1][1]


def runner_1(now: Scene) -> int:
    """The runner whose wire to Kafka can be cut."""
    return now.parts.pids()["runner"][0]


def busy(now: Scene, work: Work) -> list[str]:
    """Fills all slots; the scenarios, once each is under way."""
    now.until_whole()
    uuids = [now.begin(work) for _ in range(4)]
    for uuid in uuids:
        now.under_way(uuid)
    assert workers_of(runner_1(now))
    return uuids


def lost(now: Scene, uuids: list[str]) -> int:
    """How many of these scenarios came back to be deployed again."""
    with now.tables() as tables:
        [(count,)] = tables.execute(
            "SELECT count(*) FROM scenario_history"
            " WHERE from_state IS NOT NULL AND to_state = 'init_startup' AND scenario_uuid = ANY(%s::uuid[])",
            (uuids,),
        ).fetchall()
    return int(count)


def while_cut(seconds: float) -> None:
    """The time that a cut lasts, which nothing tells."""
    threading.Event().wait(seconds)


def all_hold(now: Scene) -> checks.Sums:
    now.until_whole()
    sums = checks.all_hold(now)
    check_4_one_writes(now)
    return sums


def test_invariant_4_a_leader_cut_off_from_the_database_is_followed_and_two_never_write(
    now: Scene, wired: Wires, work: Work
) -> None:
    busy(now, work)
    led = holdings(now)
    with wired.postgres[led[-1][1]].cut():
        assert taken_over(now, len(led)) != led[-1][1]
    all_hold(now)


def test_invariant_4_a_leader_whose_connections_are_hung_up_leads_on_or_is_followed(
    now: Scene, wired: Wires, work: Work
) -> None:
    busy(now, work)
    led = holdings(now)
    with wired.postgres[led[-1][1]].refusing():
        assert taken_over(now, len(led)) != led[-1][1]
    all_hold(now)


def test_invariant_8_a_slow_wire_to_the_database_costs_the_leader_nothing_but_time(
    now: Scene, wired: Wires, work: Work
) -> None:
    led = holdings(now)
    proxy = wired.postgres[led[-1][1]]
    proxy.delay_s = DELAY_S
    try:
        busy(now, work)
        all_hold(now)
    finally:
        proxy.delay_s = 0.0


@pytest.mark.parametrize("how", ["cut", "refusing"])
def test_invariant_8_an_inbox_cut_off_from_the_database_goes_on_where_it_was(
    now: Scene, wired: Wires, work: Work, how: str
) -> None:
    busy(now, work)
    with getattr(wired.postgres["inbox"], how)():
        while_cut(LONGER_THAN_LEASES_S)
    all_hold(now)


def test_invariant_8_a_slow_wire_to_kafka_costs_a_runner_nothing_but_time(now: Scene, wired: Wires, work: Work) -> None:
    wired.kafka.delay_s = KAFKA_DELAY_S
    try:
        busy(now, work)
        assert all_hold(now).losses == 0
    finally:
        wired.kafka.delay_s = 0.0


def test_invariant_8_work_of_a_runner_cut_off_from_kafka_goes_on_elsewhere_and_its_return_changes_nothing(
    now: Scene, wired: Wires, work: Work
) -> None:
    uuids = busy(now, work)
    with wired.kafka.cut():
        wait_until(lambda: lost(now, uuids) > 0, "some of its work is given to the other runner", PATIENCE_IS_OVER_S)
    assert all_hold(now).losses > 0


def test_invariant_8_a_runner_cut_off_past_its_patience_ends_its_workers_and_serves_again_afterwards(
    now: Scene, wired: Wires, work: Work
) -> None:
    busy(now, work)
    said = len(now.said)
    with wired.kafka.cut():
        wait_until(lambda: workers_of(runner_1(now)) == [], "its workers are ended", PATIENCE_IS_OVER_S)
        assert any("cut_off" in line for line in now.said[said:])
    all_hold(now)
    busy(now, work)
    all_hold(now)
