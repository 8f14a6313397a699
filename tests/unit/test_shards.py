from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.shards import SHARDS, ShardChange, compute_fair_shard_count, plan_shard_change

NAMES = st.lists(st.uuids().map(str), min_size=1, max_size=20, unique=True)


def test_a_single_relay_owns_all_shards() -> None:
    assert compute_fair_shard_count(["a"], "a") == SHARDS


def test_an_unknown_relay_owns_no_shards() -> None:
    assert compute_fair_shard_count(["a", "b"], "c") == 0


@given(NAMES)
def test_shares_are_even_and_add_up_to_all_shards(relays: list[str]) -> None:
    shares = [compute_fair_shard_count(relays, relay) for relay in relays]
    assert sum(shares) == SHARDS
    assert max(shares) - min(shares) <= 1


@given(NAMES)
def test_a_share_does_not_depend_on_the_order_of_the_relays(relays: list[str]) -> None:
    assert [compute_fair_shard_count(relays, relay) for relay in relays] == [
        compute_fair_shard_count(relays[::-1], relay) for relay in relays
    ]


def test_shards_above_the_fair_share_are_given_up_and_none_claimed() -> None:
    assert plan_shard_change({0, 1, 2, 3}, {8}, fair=2) == ShardChange(give_up=(2, 3))


def test_no_more_shards_are_claimed_than_the_fair_share() -> None:
    assert plan_shard_change({0}, range(1, 16), fair=3) == ShardChange(claim=(1, 2))


def test_only_free_shards_are_claimed() -> None:
    assert plan_shard_change({0}, {5}, fair=3) == ShardChange(claim=(5,))


def test_a_relay_with_its_fair_share_changes_nothing() -> None:
    assert plan_shard_change({0, 1}, {2}, fair=2) == ShardChange()


@given(st.integers(1, 20), st.sets(st.integers(0, SHARDS - 1)))
def test_relays_reach_even_shares_within_two_rounds(count: int, held_by_first: set[int]) -> None:
    relays = [f"r{number:02}" for number in range(count)]
    owned: dict[str, set[int]] = {relay: set() for relay in relays}
    owned[relays[0]] = held_by_first
    for _ in range(2):
        for relay in relays:
            free = set(range(SHARDS)) - set().union(*owned.values())
            change = plan_shard_change(owned[relay], free, compute_fair_shard_count(relays, relay))
            owned[relay] = (owned[relay] | set(change.claim)) - set(change.give_up)
    assert sorted(shard for shards in owned.values() for shard in shards) == list(range(SHARDS))
    assert [len(owned[relay]) for relay in relays] == [compute_fair_shard_count(relays, relay) for relay in relays]
