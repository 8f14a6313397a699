-- transactional: false
-- Gaps are unique by the same columns in the order in which they are paged. Each statement can be given again.

DROP INDEX CONCURRENTLY IF EXISTS scenario_gaps_next;

CREATE UNIQUE INDEX CONCURRENTLY scenario_gaps_next ON scenario_gaps (scenario_uuid, after_frame, from_s, reason);

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conname = 'scenario_gaps_in_order' AND conrelid = 'scenario_gaps'::regclass) THEN
        ALTER TABLE scenario_gaps
            ADD CONSTRAINT scenario_gaps_in_order UNIQUE USING INDEX scenario_gaps_next,
            DROP CONSTRAINT IF EXISTS scenario_gaps_scenario_uuid_after_frame_reason_from_s_key;
    END IF;
END
$$;

DROP INDEX CONCURRENTLY IF EXISTS scenario_gaps_next;
