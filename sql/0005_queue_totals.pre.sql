-- What waits for a runner, counted as it changes, so that admission costs the same however much waits.

-- Rows of before count 0 bytes.
ALTER TABLE scenarios ADD COLUMN size_bytes integer NOT NULL DEFAULT 0;

CREATE TABLE queue_totals (
    shard     smallint PRIMARY KEY,
    scenarios bigint   NOT NULL,
    bytes     bigint   NOT NULL
) WITH (fillfactor = 10);

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
    RETURN NULL;
END
$$;

CREATE FUNCTION empty_queue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM queue_totals;
    RETURN NULL;
END
$$;

CREATE TRIGGER measure BEFORE INSERT ON scenarios
    FOR EACH ROW EXECUTE FUNCTION measure_scenario();
-- A statement changes its total once, however many rows it has: each change leaves a version that the next must step over.
CREATE TRIGGER queue_after_insert AFTER INSERT ON scenarios REFERENCING NEW TABLE AS rows_after
    FOR EACH STATEMENT EXECUTE FUNCTION count_queue();
CREATE TRIGGER queue_after_update AFTER UPDATE ON scenarios REFERENCING OLD TABLE AS rows_before NEW TABLE AS rows_after
    FOR EACH STATEMENT EXECUTE FUNCTION count_queue();
CREATE TRIGGER queue_after_delete AFTER DELETE ON scenarios REFERENCING OLD TABLE AS rows_before
    FOR EACH STATEMENT EXECUTE FUNCTION count_queue();
CREATE TRIGGER queue_after_truncate AFTER TRUNCATE ON scenarios
    FOR EACH STATEMENT EXECUTE FUNCTION empty_queue();

INSERT INTO queue_totals SELECT 0, count(*), 0 FROM scenarios WHERE state = 'init_startup';
