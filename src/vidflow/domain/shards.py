"""Distribution of the outbox's shards over the live relays. infra/postgres/shard_leases.py stores the leases.

The shard of a row is a hash of its key. Since a shard has one owner at a time, the rows of a key keep their order with any
number of relays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

SHARDS: Final = 16
"""Must equal the number of shards in the outbox's column (sql/). It is a power of two, larger than any useful number of relays."""


class ShardChange(msgspec.Struct, frozen=True):
    """The shards that a relay should try to claim, and those that it should release once none of their rows is in flight."""

    claim: tuple[int, ...] = ()
    give_up: tuple[int, ...] = ()


def compute_fair_shard_count(relays: Sequence[str], me: str) -> int:
    """Return this relay's number of shards among the live relays. Shares differ by at most one and add up to SHARDS.

    A relay missing from `relays`, because its own lease is not written yet, gets none.
    """
    if me not in relays:
        return 0
    share, remainder = divmod(SHARDS, len(relays))
    return share + (sorted(relays).index(me) < remainder)


def plan_shard_change(owned: Collection[int], free: Collection[int], fair: int) -> ShardChange:
    """Return the change that brings a relay with the shards `owned` to its `fair` number of shards, given the `free` ones.

    Relays may see different states for a moment. This is harmless, since the lease decides each claim and a released shard is
    free for any relay.
    """
    if len(owned) > fair:
        return ShardChange(give_up=tuple(sorted(owned)[fair:]))
    return ShardChange(claim=tuple(sorted(set(free) - set(owned))[: fair - len(owned)]))
