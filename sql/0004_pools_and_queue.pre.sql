-- transactional: false
-- Pools of runners, and indexes for what the leader reads in each tick: what runners may have, and the head of the queue.
-- Each statement can be given again. An index that was interrupted while it was built is invalid, so it is dropped first.

ALTER TABLE scenarios ADD COLUMN IF NOT EXISTS pool text NOT NULL DEFAULT 'default';

DROP INDEX CONCURRENTLY IF EXISTS scenarios_deployed;
CREATE INDEX CONCURRENTLY scenarios_deployed ON scenarios (scenario_uuid) WHERE state IN ('in_startup_processing', 'active');

DROP INDEX CONCURRENTLY IF EXISTS scenarios_shutting_down;
CREATE INDEX CONCURRENTLY scenarios_shutting_down ON scenarios (state_changed_at)
    WHERE state IN ('init_shutdown', 'in_shutdown_processing');

DROP INDEX CONCURRENTLY IF EXISTS scenarios_queue;
CREATE INDEX CONCURRENTLY scenarios_queue ON scenarios (pool, priority DESC, created_at, scenario_uuid)
    WHERE state = 'init_startup' AND due_at <= state_changed_at;

DROP INDEX CONCURRENTLY IF EXISTS scenarios_in_backoff;
CREATE INDEX CONCURRENTLY scenarios_in_backoff ON scenarios (due_at) WHERE state = 'init_startup' AND due_at > state_changed_at;
