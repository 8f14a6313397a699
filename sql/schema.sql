-- The complete current schema, for reading. A test checks that the migrations in this folder produce it.
-- Requires PostgreSQL 18 or newer (uuidv7()). Fixed-width columns come first in a row, wide and nullable ones last.

CREATE TABLE scenarios (
    scenario_uuid    uuid        PRIMARY KEY DEFAULT uuidv7(),
    created_at       timestamptz NOT NULL DEFAULT now(),
    state_changed_at timestamptz NOT NULL DEFAULT now(),
    due_at           timestamptz NOT NULL DEFAULT now(),
    epoch            bigint      NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    resume_frame     bigint      NOT NULL DEFAULT 0 CHECK (resume_frame >= 0),
    size_bytes       integer     NOT NULL DEFAULT 0,
    attempt          integer     NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    requeues         integer     NOT NULL DEFAULT 0 CHECK (requeues >= 0),
    priority         integer     NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100),
    state            text        NOT NULL DEFAULT 'init_startup' CHECK (state IN (
                                     'init_startup', 'in_startup_processing', 'active',
                                     'init_shutdown', 'in_shutdown_processing', 'inactive')),
    outcome          text        CHECK (outcome IN ('completed', 'stopped', 'failed')),
    source           text        NOT NULL,
    model            text        NOT NULL,
    model_sha256     text,
    fps              text        NOT NULL,
    pool             text        NOT NULL DEFAULT 'default',
    runner           text,
    parameters       jsonb       NOT NULL DEFAULT '{}',
    skips            jsonb       NOT NULL DEFAULT '[]',
    error            jsonb,
    owner            text        NOT NULL DEFAULT 'local',
    -- Reject what the lifecycle rules out: an outcome before the shutdown or none from then on, an error without a failure, and a
    -- deployment without an epoch and a runner.
    CONSTRAINT outcome_belongs_to_the_shutdown
        CHECK ((outcome IS NOT NULL) = (state IN ('init_shutdown', 'in_shutdown_processing', 'inactive'))),
    CONSTRAINT error_belongs_to_a_failure
        CHECK ((error IS NOT NULL) = (outcome IS NOT DISTINCT FROM 'failed')),
    CONSTRAINT deployed_means_epoch_and_runner
        CHECK (state NOT IN ('in_startup_processing', 'active') OR (epoch > 0 AND runner IS NOT NULL)),
    CONSTRAINT never_deployed_means_no_runner
        CHECK ((epoch = 0) = (runner IS NULL))
);
-- leader_tables.py, SCENARIOS_ON_RUNNERS: scenarios that may be on runners. Has as many rows as there are slots in use.
CREATE INDEX scenarios_deployed ON scenarios (scenario_uuid) WHERE state IN ('in_startup_processing', 'active');
-- leader_tables.py, SCENARIOS_ON_RUNNERS: the scenarios that have been in shutdown for longest.
CREATE INDEX scenarios_shutting_down ON scenarios (state_changed_at) WHERE state IN ('init_shutdown', 'in_shutdown_processing');
-- leader_tables.py, HEAD_OF_QUEUE: the first scenarios of each pool. system_status.py, read_pool_status: the pools that have a queue.
CREATE INDEX scenarios_queue ON scenarios (pool, priority DESC, created_at, scenario_uuid)
    WHERE state = 'init_startup' AND due_at <= state_changed_at;
-- leader_tables.py, end_backoffs: a scenario whose due_at is later than its last state change is in backoff and not in the queue.
CREATE INDEX scenarios_in_backoff ON scenarios (due_at) WHERE state = 'init_startup' AND due_at > state_changed_at;
-- scenarios.py, read_scenario_page and count_scenarios_by_state: scenarios of one state, newest first. Without a state the primary key
-- serves, since version 7 uuids are ordered by time.
CREATE INDEX scenarios_by_state ON scenarios (state, scenario_uuid DESC);
-- scenarios.py, read_scenario_page: a client's list of its own scenarios: all of them, and those of one state. Most scenarios are inactive,
-- for which the first serves.
CREATE INDEX scenarios_of_owner ON scenarios (owner, scenario_uuid DESC);
CREATE INDEX scenarios_of_owner_by_state ON scenarios (owner, state, scenario_uuid DESC) WHERE state <> 'inactive';

-- The number of scenarios that wait for a runner (init_startup) and their size, as sums over all shards. Triggers update them in the
-- transaction that changes the queue. A backend always uses the same shard, so that a transaction locks one row. The low fillfactor leaves
-- room in the page for the versions of a row that changes often.
CREATE TABLE queue_totals (
    shard     smallint PRIMARY KEY,
    scenarios bigint   NOT NULL,
    bytes     bigint   NOT NULL
) WITH (fillfactor = 10);

-- The number of scenarios that have not ended, by owner, as sums over all shards. Kept as queue_totals is, by the same triggers. Has a row for
-- each owner and shard.
CREATE TABLE owner_totals (
    owner     text     NOT NULL,
    shard     smallint NOT NULL,
    scenarios bigint   NOT NULL,
    PRIMARY KEY (owner, shard)
) WITH (fillfactor = 50);

CREATE FUNCTION measure_scenario() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.size_bytes := octet_length(NEW.source) + octet_length(NEW.model) + octet_length(NEW.parameters::text);
    RETURN NEW;
END
$$;

CREATE FUNCTION count_queue() RETURNS trigger LANGUAGE plpgsql AS $$
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

CREATE FUNCTION empty_queue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM queue_totals;
    DELETE FROM owner_totals;
    RETURN NULL;
END
$$;

CREATE TRIGGER measure BEFORE INSERT ON scenarios
    FOR EACH ROW EXECUTE FUNCTION measure_scenario();
-- Triggers per statement, since each update of a total leaves a row version that later reads have to skip.
CREATE TRIGGER queue_after_insert AFTER INSERT ON scenarios REFERENCING NEW TABLE AS rows_after
    FOR EACH STATEMENT EXECUTE FUNCTION count_queue();
CREATE TRIGGER queue_after_update AFTER UPDATE ON scenarios REFERENCING OLD TABLE AS rows_before NEW TABLE AS rows_after
    FOR EACH STATEMENT EXECUTE FUNCTION count_queue();
CREATE TRIGGER queue_after_delete AFTER DELETE ON scenarios REFERENCING OLD TABLE AS rows_before
    FOR EACH STATEMENT EXECUTE FUNCTION count_queue();
CREATE TRIGGER queue_after_truncate AFTER TRUNCATE ON scenarios
    FOR EACH STATEMENT EXECUTE FUNCTION empty_queue();

CREATE TABLE scenario_history (
    scenario_uuid uuid        NOT NULL,
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    epoch         bigint      NOT NULL,
    number        integer     NOT NULL,
    attempt       integer     NOT NULL,
    from_state    text,
    to_state      text        NOT NULL,
    reason        text        NOT NULL,
    reason_code   text        NOT NULL,
    runner        text,
    detail        text,
    PRIMARY KEY (scenario_uuid, number)
);

-- The inbox and the leader synchronize on the lock of this row. No index on changing columns, and a low fillfactor, keep updates HOT.
CREATE TABLE scenario_progress (
    scenario_uuid  uuid        PRIMARY KEY,
    epoch          bigint      NOT NULL DEFAULT 0,
    next_frame     bigint      NOT NULL DEFAULT 0 CHECK (next_frame >= 0),
    repeats        bigint      NOT NULL DEFAULT 0,
    origin_pts     bigint,
    last_pts       bigint,
    last_time_s    double precision,
    end_epoch      bigint,
    end_last_frame bigint,
    hole_epoch     bigint,
    closed         boolean     NOT NULL DEFAULT false,
    time_base      text,
    end_reason     text,
    opened         jsonb,
    warnings       jsonb       NOT NULL DEFAULT '[]',
    lost           jsonb
) WITH (fillfactor = 50);

-- A version 7 uuid begins with its time, so that a range of uuids is a range of time and old results are dropped by partition. The
-- DEFAULT partition accepts rows outside all ranges. There is no foreign key, because one rejected row would fail its whole batch.
CREATE TABLE scenario_results (
    scenario_uuid uuid             NOT NULL,
    frame_number  bigint           NOT NULL CHECK (frame_number >= 0),
    epoch         bigint           NOT NULL,
    pts           bigint           NOT NULL,
    time_s        double precision NOT NULL,
    width         integer          NOT NULL,
    height        integer          NOT NULL,
    corrupt       boolean          NOT NULL DEFAULT false,
    captured_at   timestamptz,
    captured_by   text,
    at            text             NOT NULL,
    detections    jsonb            NOT NULL,
    UNIQUE (scenario_uuid, frame_number)
) PARTITION BY RANGE (scenario_uuid);
CREATE TABLE scenario_results_default PARTITION OF scenario_results DEFAULT;

-- Ranges of scenario_uuid whose results were removed, to tell removed results from scenarios that had none.
CREATE TABLE results_removed (
    from_uuid  uuid        PRIMARY KEY,
    to_uuid    uuid        NOT NULL,
    removed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE scenario_gaps (
    scenario_uuid uuid             NOT NULL,
    epoch         bigint           NOT NULL,
    after_frame   bigint           NOT NULL CHECK (after_frame >= -1),
    from_s        double precision NOT NULL,
    to_s          double precision NOT NULL,
    frames        bigint,
    reason        text             NOT NULL,
    -- gaps.py, read_gap_page: the order in which gaps are read.
    CONSTRAINT scenario_gaps_in_order UNIQUE (scenario_uuid, after_frame, from_s, reason)
);

-- The position of the inbox in each partition, the database time up to which all messages are stored, and when an inbox last held it.
CREATE TABLE inbox_partitions (
    topic        text    NOT NULL,
    topic_id     text    NOT NULL,
    partition    integer NOT NULL,
    position     bigint  NOT NULL DEFAULT 0 CHECK (position >= 0),
    caught_up_at timestamptz,
    seen_at      timestamptz,
    PRIMARY KEY (topic, topic_id, partition)
);

-- Messages to publish. The relay deletes a row once the broker has acknowledged it, or sets it aside with the broker's error.
CREATE TABLE outbox (
    id         bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY (CACHE 1),
    created_at timestamptz NOT NULL DEFAULT now(),
    epoch      bigint      NOT NULL,
    message_id uuid        NOT NULL DEFAULT uuidv7(),
    shard      smallint    NOT NULL GENERATED ALWAYS AS (hashtextextended(key, 0) & 15) STORED,
    topic      text        NOT NULL,
    key        text        NOT NULL,
    kind       text        NOT NULL,
    runner     text,
    payload    bytea       NOT NULL,
    error      text
);
-- outbox.py, read_pending_messages: pending rows in order of id, for any set of shards. Rows that were set aside are not in it.
CREATE INDEX outbox_pending ON outbox (id, shard) WHERE error IS NULL;
-- outbox.py, read_lag, list_set_aside and count_set_aside: rows that the broker rejected.
CREATE INDEX outbox_set_aside ON outbox (id) WHERE error IS NOT NULL;
-- outbox.py, add_commands: whether a copy of a command is pending.
CREATE INDEX outbox_waiting_commands ON outbox (key, kind, epoch) WHERE error IS NULL;

-- UNIQUE (name, term) makes a takeover a key update, which waits for fenced transactions. A renewal is not a key update and does not wait.
CREATE TABLE lease (
    name       text        PRIMARY KEY,
    holder     uuid        NOT NULL,
    term       bigint      NOT NULL,
    expires_at timestamptz NOT NULL,
    UNIQUE (name, term)
) WITH (fillfactor = 50);

-- Information for people and health checks, written by the leader. The leader itself decides from its memory.
CREATE TABLE runners (
    runner       text        PRIMARY KEY,
    last_seen_at timestamptz NOT NULL,
    capacity     integer     NOT NULL,
    used         integer     NOT NULL,
    taken        bigint      NOT NULL,
    draining     boolean     NOT NULL,
    marked       boolean     NOT NULL,
    pool         text        NOT NULL,
    version      text        NOT NULL
);

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
-- idempotency.py, delete_expired: the oldest.
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

-- Scenarios that clients have deleted and whose results, gaps, history and progress the leader's housekeeping still has to delete.
CREATE TABLE deleted_scenarios (
    scenario_uuid uuid        PRIMARY KEY,
    deleted_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The leader creates, detaches and drops partitions of the results by these functions, so that its user need not own the tables. They run
-- as the owner of the tables and accept only partitions of scenario_results.

CREATE FUNCTION make_results_partition(name text, from_uuid uuid, to_uuid uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF name !~ '^scenario_results_\w+$' OR name ~ '_(default|removed)$' THEN
        RAISE EXCEPTION '% is not the name of a partition of scenario_results', name USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE scenario_results INCLUDING ALL)', name);
    EXECUTE format('ALTER TABLE scenario_results ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, from_uuid, to_uuid);
END $$;

-- The detached table keeps its rows under a new name and is dropped later, without locking scenario_results.
CREATE FUNCTION detach_results_partition(name text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF name !~ '^scenario_results_\w+$' OR name ~ '_(default|removed)$' THEN
        RAISE EXCEPTION '% is not the name of a partition of scenario_results', name USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('ALTER TABLE scenario_results DETACH PARTITION %I', name);
    EXECUTE format('ALTER TABLE %I RENAME TO %I', name, name || '_removed');
END $$;

CREATE FUNCTION drop_results_partition(name text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF name !~ '^scenario_results_\w+_removed$' THEN
        RAISE EXCEPTION '% is not the name of a detached partition of scenario_results', name USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('DROP TABLE %I', name);
END $$;

REVOKE ALL ON FUNCTION make_results_partition, detach_results_partition, drop_results_partition FROM PUBLIC;
