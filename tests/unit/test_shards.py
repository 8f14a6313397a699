from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.shards import SHARDS, ShardChange, compute_fair_shard_count, plan_shard_change

NAMES = st.lists(st.uuids().map(str), min_size=1, max_size=20, unique=True)


def test_one_relay_has_all() -> None:
    assert compute_fair_shard_count(["a"], "a") == SHARDS


def test_a_relay_that_nobody_knows_yet_has_none() -> None:
    assert compute_fair_shard_count(["a", "b"], "c") == 0


@given(NAMES)
def test_shares_are_even_and_sum_up_to_all(relays: list[str]) -> None:
    shares = [compute_fair_shard_count(relays, one) for one in relays]
    assert sum(shares) == SHARDS
    assert max(shares) - min(shares) <= 1


@given(NAMES)
def test_a_share_does_not_depend_on_the_order_in_which_relays_are_seen(relays: list[str]) -> None:
    assert [compute_fair_shard_count(relays, one) for one in relays] == [
        compute_fair_shard_count(relays[::-1], one) for one in relays
    ]


def test_what_is_above_the_share_is_given_up_and_nothing_claimed() -> None:
    assert plan_shard_change({0, 1, 2, 3}, {8}, fair=2) == ShardChange(give_up=(2, 3))


def test_no_more_is_claimed_than_the_share() -> None:
    assert plan_shard_change({0}, range(1, 16), fair=3) == ShardChange(claim=(1, 2))


def test_what_is_another_s_is_not_claimed() -> None:
    assert plan_shard_change({0}, {5}, fair=3) == ShardChange(claim=(5,))


def test_at_its_share_a_relay_does_nothing() -> None:
    assert plan_shard_change({0, 1}, {2}, fair=2) == ShardChange()


@given(st.integers(1, 20), st.sets(st.integers(0, SHARDS - 1)))
def test_relays_that_come_and_go_agree_on_even_shares_in_as_many_rounds_as_there_are_relays(
    count: int, held_by_the_first: set[int]
) -> None:
    relays = [f"r{number:02}" for number in range(count)]
    owned: dict[str, set[int]] = {one: set() for one in relays}
    owned[relays[0]] = held_by_the_first
    for _ in range(2):
        for one in relays:
            free = set(range(SHARDS)) - set().union(*owned.values())
            step = plan_shard_change(owned[one], free, compute_fair_shard_count(relays, one))
            owned[one] = (owned[one] | set(step.claim)) - set(step.give_up)
    assert sorted(shard for shards in owned.values() for shard in shards) == list(range(SHARDS))
    assert [len(owned[one]) for one in relays] == [compute_fair_shard_count(relays, one) for one in relays]
