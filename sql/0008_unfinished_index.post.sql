-- transactional: false
-- The leader of the version before read all that was unfinished.

DROP INDEX CONCURRENTLY IF EXISTS scenarios_unfinished;
