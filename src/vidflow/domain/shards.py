"""How the relays that live share the outbox's shards. Not how a shard's lease is kept, nor what is done with its rows.

A row's shard is a hash of its key. As long as each shard has one owner at a time, the rows of a key keep their order with any
number of relays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

SHARDS: Final = 16
"""As the outbox's column says (sql/): a power of two, more than relays that anybody needs."""


class ShardChange(msgspec.Struct, frozen=True):
    """What a relay should try to claim, and what it should give up once nothing of it is on its way."""

    claim: tuple[int, ...] = ()
    give_up: tuple[int, ...] = ()


def compute_fair_shard_count(relays: Sequence[str], me: str) -> int:
    """How many shards are this relay's, of those that live: the shares differ by one at most, and their sum is all.

    A relay that is not among them (its own sign of life is not written yet) has none.
    """
    if me not in relays:
        return 0
    whole, rest = divmod(SHARDS, len(relays))
    return whole + (sorted(relays).index(me) < rest)


def plan_shard_change(mine: Collection[int], free: Collection[int], fair: int) -> ShardChange:
    """What brings a relay from the shards that are `mine` to its `fair` share, where `free` ones are to be had.

    Views may differ for a moment. That is harmless: a claim is decided by the lease, and what is given up here is free there.
    """
    if len(mine) > fair:
        return ShardChange(give_up=tuple(sorted(mine)[fair:]))
    return ShardChange(claim=tuple(sorted(set(free) - set(mine))[: fair - len(mine)]))
