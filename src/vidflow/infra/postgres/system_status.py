"""Read from the tables whether the processes of vidflow are alive, and whether each pool serves its queue."""

from __future__ import annotations

from typing import Final

import msgspec
from psycopg.rows import class_row

from vidflow.domain.scenario import DEFAULT_POOL
from vidflow.domain.shards import SHARDS
from vidflow.domain.topics import RESULTS
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.lease import LEADER_LEASE, SHARD_PREFIX
from vidflow.infra.postgres.outbox import MAX_COUNTED_MESSAGES

STALE_AFTER_S: Final = 5
"""Age from which a process counts as dead. Live processes write to the tables at least once a second."""
OUTBOX_STUCK_S: Final = 30
"""Age of the oldest message in the outbox from which the relays count as stuck, even if their leases are held."""
POOLS: Final = 100
"""Maximum number of pools that are listed."""
MAX_COUNTED_IN_POOL: Final = 1000
"""Maximum number of waiting scenarios that are counted per pool."""

_HELD: Final = "expires_at > clock_timestamp()"
_LEADS: Final = f"EXISTS (SELECT FROM lease WHERE name = '{LEADER_LEASE}' AND {_HELD})"
_RELAYS: Final = f"(SELECT count(*) = {SHARDS} FROM lease WHERE starts_with(name, '{SHARD_PREFIX}') AND {_HELD})"  # noqa: S608 - constants
# Times in the future were written before the database clock stepped back. They do not count.
_SEEN: Final = f"last_seen_at > clock_timestamp() - interval '{STALE_AFTER_S} s' AND last_seen_at <= clock_timestamp()"
_FREE_SLOT: Final = f"""
    EXISTS (SELECT FROM runners r WHERE r.pool = s.pool AND {_SEEN} AND NOT draining AND NOT marked AND used < capacity)"""
_EMPTY_POOL: Final = f"""
    s.pool <> '{DEFAULT_POOL}' AND NOT EXISTS (SELECT FROM runners r WHERE r.pool = s.pool AND {_SEEN})"""
_CAUGHT_UP_AT: Final = "CASE WHEN caught_up_at <= clock_timestamp() THEN caught_up_at END"
_HELD_AT: Final = f"greatest({_CAUGHT_UP_AT}, CASE WHEN seen_at <= clock_timestamp() THEN seen_at END)"
# The current topic is the one that an inbox held last. Rows of deleted topics remain in the table.
_PARTITIONS: Final = f"""
       FROM inbox_partitions
      WHERE topic = '{RESULTS}'
        AND topic_id = (SELECT topic_id
                          FROM inbox_partitions
                         WHERE topic = '{RESULTS}' AND {_HELD_AT} IS NOT NULL
                         ORDER BY {_HELD_AT} DESC
                         LIMIT 1)"""  # noqa: S608 - constant names
_INBOX_LAG: Final = f"""
    (SELECT extract(epoch FROM clock_timestamp() - min(coalesce({_CAUGHT_UP_AT}, '-infinity')))::float8 {_PARTITIONS})"""  # noqa: S608 - constant fragments
_INBOX_ALIVE: Final = f"""
    (SELECT coalesce(min(coalesce({_HELD_AT}, '-infinity')) > clock_timestamp() - interval '{STALE_AFTER_S} s', false)
       {_PARTITIONS})"""

# The oldest by id, since there is no index by time. The two orders differ by the length of a transaction.
_WAITS: Final = "FROM outbox WHERE error IS NULL"
_OUTBOX: Final = f"""
    (SELECT count(*) FROM (SELECT {_WAITS} ORDER BY id LIMIT {MAX_COUNTED_MESSAGES}) AS waiting) AS outbox_waiting,
    coalesce((SELECT extract(epoch FROM clock_timestamp() - created_at) {_WAITS} ORDER BY id LIMIT 1), 0)::float8
        AS outbox_oldest_s"""  # noqa: S608 - constant fragments

COMPONENT_STATUS_COLUMNS: Final = f"""
    {_LEADS} AS leads, {_RELAYS} AS relays, {_FREE_SLOT} AS free_slot, coalesce({_INBOX_LAG} < {STALE_AFTER_S}, false) AS caught_up,
    {_EMPTY_POOL} AS empty_pool"""
"""The columns of a ComponentStatus, for a statement in which `s` is a scenario."""

# For each pool, one lookup in the queue's index and at most as many entries as are counted.
_POOLS: Final = f"""
    WITH RECURSIVE queues AS (
        (SELECT min(pool) AS pool FROM scenarios WHERE state = 'init_startup' AND due_at <= state_changed_at)
         UNION ALL
        SELECT (SELECT q.pool
                  FROM scenarios q
                 WHERE q.state = 'init_startup' AND q.due_at <= q.state_changed_at AND q.pool > queues.pool
                 ORDER BY q.pool
                 LIMIT 1)
          FROM queues
         WHERE queues.pool IS NOT NULL
    ), queue AS (
        SELECT pool FROM queues WHERE pool IS NOT NULL LIMIT %(pools)s
    ), served AS (
        SELECT pool, count(*) AS runners, sum(capacity) AS slots, sum(used) AS used
          FROM runners
         WHERE {_SEEN}
         GROUP BY pool
    )
    SELECT pool, coalesce(runners, 0) AS runners, coalesce(slots, 0)::bigint AS slots, coalesce(used, 0)::bigint AS used,
           (SELECT count(*)
              FROM (SELECT
                      FROM scenarios s
                     WHERE s.state = 'init_startup' AND s.due_at <= s.state_changed_at AND s.pool = queue.pool
                     LIMIT %(counted)s) AS waiting) AS waiting
      FROM queue
      FULL JOIN served USING (pool)
     ORDER BY pool
     LIMIT %(pools)s"""  # noqa: S608 - constant fragments


class PoolStatus(msgspec.Struct, frozen=True):
    """A pool: its live runners, their slots, the slots in use, and the number of scenarios in its queue.

    `waiting` is counted up to MAX_COUNTED_IN_POOL.
    """

    pool: str
    runners: int
    slots: int
    used: int
    waiting: int

    @property
    def is_empty(self) -> bool:
        """Return whether scenarios wait although the pool has no runners."""
        return self.waiting > 0 and self.runners == 0


class SystemStatus(msgspec.Struct, frozen=True):
    """The processes that are alive, and their lag.

    `has_inbox` is True if each partition of the results topic is held by an inbox. `inbox_lag_s` is the age of the latest time up to which
    all results are known to be stored, or None if there is no such time. `outbox_waiting` is counted up to MAX_COUNTED_MESSAGES, and
    `outbox_oldest_s` is the age of the oldest waiting message.
    """

    has_leader: bool
    has_relays: bool
    runners: int
    has_inbox: bool
    inbox_lag_s: float | None
    outbox_waiting: int
    outbox_oldest_s: float

    @property
    def missing(self) -> list[str]:
        """Return the names of the processes that scenarios need and that are not alive or, for relays, stuck."""
        relays = self.has_relays and self.outbox_oldest_s < OUTBOX_STUCK_S
        parts = {"orchestrator": self.has_leader, "relay": relays, "runner": self.runners > 0, "inbox": self.has_inbox}
        return [part for part, alive in parts.items() if not alive]

    @property
    def is_behind(self) -> bool:
        """Return whether recent results may not be stored yet, because there is no inbox or it has not caught up."""
        return self.inbox_lag_s is None or self.inbox_lag_s >= STALE_AFTER_S


def check_tables(tx: Connection) -> None:
    """Raise psycopg.Error if the database does not answer or lacks vidflow's tables."""
    tx.execute("SELECT FROM scenarios LIMIT 0")


def read_system_status(tx: Connection) -> SystemStatus:
    """Return which processes are alive, and their lag."""
    query = f"""
        SELECT {_LEADS} AS has_leader, {_RELAYS} AS has_relays,
               (SELECT count(*) FROM runners WHERE {_SEEN}) AS runners, {_INBOX_ALIVE} AS has_inbox,
               (SELECT nullif(lag_s, 'infinity') FROM (SELECT {_INBOX_LAG} AS lag_s) AS inbox) AS inbox_lag_s,
               {_OUTBOX}
    """  # noqa: S608 - constant fragments
    row = tx.cursor(row_factory=class_row(SystemStatus)).execute(query).fetchone()
    assert row is not None
    return row


def read_pool_status(tx: Connection) -> list[PoolStatus]:
    """Return the pools that have runners or a queue, by name, at most POOLS of them."""
    cursor = tx.cursor(row_factory=class_row(PoolStatus))
    return cursor.execute(_POOLS, {"pools": POOLS, "counted": MAX_COUNTED_IN_POOL}).fetchall()
