"""Leases in the database: table `lease`. The module lease_holder.py renews a lease and runs a role's work under it.

The holder fences each of its transactions by a key-share lock on the lease row. Because of UNIQUE (name, term), a takeover waits for that
lock and a renewal does not. `transaction_timeout` bounds how long a frozen holder can delay a takeover.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Final

from vidflow.domain.errors import Unavailable
from vidflow.domain.lease import LEASE_S
from vidflow.infra.postgres.connection import Connection

LEADER_LEASE: Final = "leader"
SHARD_PREFIX: Final = "outbox/"
"""Prefix of the leases of the outbox's shards. The shard's number follows."""
RELAY_PREFIX: Final = "relay/"
"""Prefix of the leases by which relays announce themselves. The holder follows."""

Terms = Mapping[str, int]
"""Terms of held leases by name."""


class LeaseLost(Unavailable):
    """A lease has another holder, or may have one. Nothing was written. `names` are the names of the lost leases."""

    default_code = "lease_lost"

    def __init__(self, message: str, names: Iterable[str]) -> None:
        super().__init__(message)
        self.names = frozenset(names)


def acquire(tx: Connection, name: str, holder: uuid.UUID) -> int | None:
    """Acquire the lease if it has expired or already belongs to `holder`. Return the new term, or None if another process holds it."""
    row = tx.execute(
        """
        WITH taken AS (
            UPDATE lease
               SET holder = %(holder)s, term = term + 1, expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
             WHERE name = %(name)s AND (expires_at <= clock_timestamp() OR holder = %(holder)s)
         RETURNING term
        ), made AS (
            INSERT INTO lease (name, holder, term, expires_at)
            SELECT %(name)s, %(holder)s, 1, clock_timestamp() + make_interval(secs => %(lease_s)s)
             WHERE NOT EXISTS (SELECT FROM lease WHERE name = %(name)s)
                ON CONFLICT DO NOTHING
         RETURNING term
        )
        SELECT term FROM taken
         UNION ALL
        SELECT term FROM made
        """,
        {"name": name, "holder": holder, "lease_s": LEASE_S},
    ).fetchone()
    return row[0] if row else None


def cap_expiry(tx: Connection) -> None:
    """Let every lease expire at most LEASE_S from now. Later expiry times were written before the database clock stepped back.

    Otherwise a dead holder would not be replaced until the clock has caught up. No lease ends before its holder stops trusting it: it was
    renewed earlier and is trusted for less than LEASE_S. Locked rows are skipped, because they are being renewed.
    """
    tx.execute(
        """
        UPDATE lease l
           SET expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
          FROM (SELECT name
                  FROM lease
                 WHERE expires_at > clock_timestamp() + make_interval(secs => %(lease_s)s)
                   FOR NO KEY UPDATE SKIP LOCKED) AS late
         WHERE l.name = late.name
        """,
        {"lease_s": LEASE_S},
    )


def renew(tx: Connection, terms: Terms, holder: uuid.UUID) -> set[str]:
    """Renew the leases and return their names. A lease that is not returned has expired or has another holder."""
    rows = tx.execute(
        """
        UPDATE lease l
           SET expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
          FROM unnest(%(names)s::text[], %(terms)s::bigint[]) AS h (name, term)
         WHERE l.name = h.name AND l.holder = %(holder)s AND l.term = h.term AND l.expires_at > clock_timestamp()
     RETURNING l.name
        """,
        {"names": list(terms), "terms": list(terms.values()), "holder": holder, "lease_s": LEASE_S},
    ).fetchall()
    return {name for (name,) in rows}


def release(tx: Connection, terms: Terms, holder: uuid.UUID) -> None:
    """Let the leases expire now, so that a standby can take over at once."""
    tx.execute(
        """
        UPDATE lease l
           SET expires_at = clock_timestamp()
          FROM unnest(%(names)s::text[], %(terms)s::bigint[]) AS h (name, term)
         WHERE l.name = h.name AND l.holder = %(holder)s AND l.term = h.term
        """,
        {"names": list(terms), "terms": list(terms.values()), "holder": holder},
    )


def fence(tx: Connection, terms: Terms, holder: uuid.UUID) -> None:
    """Make takeovers of these leases wait until this transaction has ended. Raises LeaseLost if one has been taken over.

    The holder is compared as well, because a database restored to an earlier time may assign the same term again.
    """
    rows = tx.execute(
        """
        SELECT l.name
          FROM lease l
          JOIN unnest(%(names)s::text[], %(terms)s::bigint[]) AS h (name, term) ON h.name = l.name AND h.term = l.term
         WHERE l.holder = %(holder)s
         ORDER BY l.name
           FOR KEY SHARE OF l
        """,
        {"names": list(terms), "terms": list(terms.values()), "holder": holder},
    ).fetchall()
    lost = set(terms) - {name for (name,) in rows}
    if lost:
        leases = ", ".join(f"{name} (term {terms[name]})" for name in sorted(lost))
        raise LeaseLost(f"Lease held by another process: {leases}", lost)


def read_live_names(tx: Connection) -> list[str]:
    """Return the names of all leases that are held."""
    rows = tx.execute(
        """
        SELECT name
          FROM lease
         WHERE expires_at > clock_timestamp()
        """
    ).fetchall()
    return [name for (name,) in rows]


def delete_dead_relays(tx: Connection) -> None:
    """Delete the announcements of relays that ended, since each start of a relay adds one."""
    tx.execute(
        """
        DELETE FROM lease
         WHERE starts_with(name, %(prefix)s) AND expires_at < clock_timestamp() - interval '1 minute'
        """,
        {"prefix": RELAY_PREFIX},
    )
