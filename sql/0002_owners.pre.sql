-- Owners of scenarios, the tokens by which they are known, the record of what they changed, the answers
-- to repeated requests, and the scenarios that were deleted.

ALTER TABLE scenarios ADD COLUMN owner text NOT NULL DEFAULT 'local';

-- A client's list of its own scenarios: all of them, and those of one state. Most scenarios are inactive, for which the first serves.
CREATE INDEX scenarios_of_owner ON scenarios (owner, scenario_uuid DESC);
CREATE INDEX scenarios_of_owner_by_state ON scenarios (owner, state, scenario_uuid DESC) WHERE state <> 'inactive';

-- The number of scenarios that have not ended, by owner, as sums over all shards. Kept as queue_totals is, by the same triggers. Has a row for
-- each owner and shard.
CREATE TABLE owner_totals (
    owner     text     NOT NULL,
    shard     smallint NOT NULL,
    scenarios bigint   NOT NULL,
    PRIMARY KEY (owner, shard)
) WITH (fillfactor = 50);

INSERT INTO owner_totals SELECT owner, 0, count(*) FROM scenarios WHERE state <> 'inactive' GROUP BY owner;

CREATE OR REPLACE FUNCTION count_queue() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    more_scenarios bigint := 0;
    more_bytes     bigint := 0;
BEGIN
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        SELECT count(*), coalesce(sum(size_bytes), 0)
          INTO more_scenarios, more_bytes
          FROM rows_after
         WHERE state = 'init_startup';
    END IF;
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        SELECT more_scenarios - count(*), more_bytes - coalesce(sum(size_bytes), 0)
          INTO more_scenarios, more_bytes
          FROM rows_before
         WHERE state = 'init_startup';
    END IF;
    IF more_scenarios <> 0 OR more_bytes <> 0 THEN
        INSERT INTO queue_totals AS t
        VALUES (pg_backend_pid() & 15, more_scenarios, more_bytes)
            ON CONFLICT (shard) DO UPDATE
           SET scenarios = t.scenarios + EXCLUDED.scenarios, bytes = t.bytes + EXCLUDED.bytes;
    END IF;
    -- In the order of owners, so that two statements cannot wait for each other.
    IF TG_OP = 'INSERT' THEN
        INSERT INTO owner_totals AS t
        SELECT owner, pg_backend_pid() & 15, count(*) FROM rows_after WHERE state <> 'inactive' GROUP BY owner ORDER BY owner
            ON CONFLICT (owner, shard) DO UPDATE SET scenarios = t.scenarios + EXCLUDED.scenarios;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO owner_totals AS t
        SELECT owner, pg_backend_pid() & 15, -count(*) FROM rows_before WHERE state <> 'inactive' GROUP BY owner ORDER BY owner
            ON CONFLICT (owner, shard) DO UPDATE SET scenarios = t.scenarios + EXCLUDED.scenarios;
    ELSE
        INSERT INTO owner_totals AS t
        SELECT owner, pg_backend_pid() & 15, sum(change)
          FROM (SELECT owner, 1 AS change FROM rows_after WHERE state <> 'inactive'
                 UNION ALL
                SELECT owner, -1 FROM rows_before WHERE state <> 'inactive') AS changes
         GROUP BY owner
        HAVING sum(change) <> 0
         ORDER BY owner
            ON CONFLICT (owner, shard) DO UPDATE SET scenarios = t.scenarios + EXCLUDED.scenarios;
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION empty_queue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM queue_totals;
    DELETE FROM owner_totals;
    RETURN NULL;
END
$$;

-- Only the SHA-256 of a token is stored. A row is never deleted: once there is one, each request needs a token.
CREATE TABLE tokens (
    token_id     text        PRIMARY KEY,
    token_sha256 bytea       NOT NULL,
    owner        text        NOT NULL,
    rights       text        NOT NULL CHECK (rights IN ('read', 'write', 'admin')),
    note         text        NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
);

-- Who changed what. `address` is that of the client, or null for a command of the operator, whose `owner` is their database user.
CREATE TABLE audit (
    id            bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    scenario_uuid uuid,
    action        text        NOT NULL,
    owner         text        NOT NULL,
    token_id      text,
    address       text,
    detail        text
);

-- Answers to requests with an Idempotency-Key, so that a repeated request gets the same answer. Kept for 24 hours.
CREATE TABLE idempotency_keys (
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    status         integer     NOT NULL,
    owner          text        NOT NULL,
    key            text        NOT NULL,
    request_sha256 bytea       NOT NULL,
    body           bytea       NOT NULL,
    location       text,
    PRIMARY KEY (owner, key)
);
-- The oldest, to delete them.
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

-- Scenarios that clients have deleted and whose results, gaps, history and progress the leader's housekeeping still has to delete.
CREATE TABLE deleted_scenarios (
    scenario_uuid uuid        PRIMARY KEY,
    deleted_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
