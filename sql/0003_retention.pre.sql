-- transactional: false
-- Results by ranges of time. Each statement can be given again: a death midway is followed by the whole file once more.

-- Whose results are gone, so that nobody takes their absence for their being none: ranges of scenario_uuid, which are ranges of time.
CREATE TABLE IF NOT EXISTS results_removed (
    from_uuid  uuid        PRIMARY KEY,
    to_uuid    uuid        NOT NULL,
    removed_at timestamptz NOT NULL DEFAULT now()
);

-- The DEFAULT partition is looked through, under a lock, for each range that is made. So where it holds rows already, it becomes
-- the first range itself, up to a midnight that is still to come, and an empty one takes its place. That all of its rows lie
-- below that midnight is proven beforehand, by a constraint that is validated while others read and write.
ALTER TABLE scenario_results_default DROP CONSTRAINT IF EXISTS lies_below_the_ranges;

DO $$
DECLARE
    midnight uuid := lpad(to_hex((floor(extract(epoch FROM now()) / 86400)::bigint + 2) * 86400000), 12, '0') || repeat('0', 20);
BEGIN
    IF EXISTS (SELECT FROM scenario_results_default) AND to_regclass('scenario_results_first') IS NULL THEN
        EXECUTE format('ALTER TABLE scenario_results_default ADD CONSTRAINT lies_below_the_ranges CHECK (scenario_uuid < %L) NOT VALID', midnight);
        COMMIT;
        ALTER TABLE scenario_results_default VALIDATE CONSTRAINT lies_below_the_ranges;
        COMMIT;
        ALTER TABLE scenario_results DETACH PARTITION scenario_results_default;
        ALTER TABLE scenario_results_default RENAME TO scenario_results_first;
        ALTER TABLE scenario_results_first
            RENAME CONSTRAINT scenario_results_default_scenario_uuid_frame_number_key TO scenario_results_first_scenario_uuid_frame_number_key;
        EXECUTE format('ALTER TABLE scenario_results ATTACH PARTITION scenario_results_first FOR VALUES FROM (MINVALUE) TO (%L)', midnight);
        ALTER TABLE scenario_results_first DROP CONSTRAINT lies_below_the_ranges;
        CREATE TABLE scenario_results_default PARTITION OF scenario_results DEFAULT;
    END IF;
END
$$;
