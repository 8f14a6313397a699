-- One group role for each of vidflow's processes, with the minimal privileges that it needs. Run this with `vidflow db roles` or psql,
-- as the user that owns the tables. Creating the roles needs CREATEROLE, once per server. The file may be run again at any time, and
-- `vidflow db migrate` and `vidflow db restore` run it if the roles exist. A process logs in as a user that you create:
--   CREATE ROLE relay LOGIN PASSWORD '...' IN ROLE vidflow_relay;
-- An api that hosts the inbox needs both roles. Migrations, backups and restores run as the owner.

DO $$
DECLARE
    role text;
    name text;
BEGIN
    FOREACH role IN ARRAY ARRAY['vidflow_api', 'vidflow_relay', 'vidflow_orchestrator', 'vidflow_inbox'] LOOP
        IF to_regrole(role) IS NULL THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), role);
        -- Revoke everything first, so that privileges that this file no longer grants do not remain.
        FOR name IN SELECT oid::regclass FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace
                                                         AND relowner = current_user::regrole LOOP
            EXECUTE format('REVOKE ALL ON %s FROM %I', name, role);
        END LOOP;
    END LOOP;
END $$;

-- Every process waits for the schema when it starts.
GRANT SELECT ON schema_checksums TO vidflow_api, vidflow_relay, vidflow_orchestrator, vidflow_inbox;

-- The api creates and deletes scenarios, requests shutdowns and reads. It reads partitions of the results through their parent.
GRANT SELECT, INSERT, UPDATE, DELETE ON scenarios TO vidflow_api;
GRANT INSERT ON deleted_scenarios TO vidflow_api;
GRANT SELECT, INSERT ON scenario_history, scenario_progress, outbox TO vidflow_api;
GRANT SELECT ON scenario_results, scenario_gaps, results_removed, inbox_partitions, lease, runners, tokens TO vidflow_api;
GRANT UPDATE (last_used_at) ON tokens TO vidflow_api;
GRANT INSERT ON audit TO vidflow_api;
GRANT SELECT, INSERT, UPDATE ON idempotency_keys TO vidflow_api;
-- Triggers on scenarios update the totals with the privileges of the current user.
GRANT SELECT, INSERT, UPDATE, DELETE ON queue_totals, owner_totals TO vidflow_api, vidflow_orchestrator;

-- The relay publishes the messages of the outbox and then deletes them.
GRANT SELECT, UPDATE (error), DELETE ON outbox TO vidflow_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON lease TO vidflow_relay;

-- The orchestrator changes the state of scenarios, sends commands and deletes expired rows. It inserts no results.
GRANT SELECT, UPDATE, DELETE ON scenarios, scenario_progress TO vidflow_orchestrator;
GRANT SELECT, INSERT, DELETE ON scenario_history TO vidflow_orchestrator;
GRANT SELECT, DELETE ON scenario_gaps, scenario_results, scenario_results_default, deleted_scenarios TO vidflow_orchestrator;
GRANT SELECT ON inbox_partitions TO vidflow_orchestrator;
GRANT SELECT, DELETE ON audit, idempotency_keys TO vidflow_orchestrator;
GRANT SELECT, INSERT ON outbox TO vidflow_orchestrator;
GRANT SELECT, INSERT, UPDATE ON results_removed, lease TO vidflow_orchestrator;
GRANT SELECT, INSERT, UPDATE, DELETE ON runners TO vidflow_orchestrator;
GRANT EXECUTE ON FUNCTION make_results_partition, detach_results_partition, drop_results_partition TO vidflow_orchestrator;

-- The inbox stores results and its positions. It neither updates nor deletes results, and deletes no gap. A gap may grow.
GRANT SELECT, INSERT ON scenario_results, scenario_gaps TO vidflow_inbox;
GRANT UPDATE ON scenario_gaps TO vidflow_inbox;
GRANT SELECT, UPDATE ON scenario_progress TO vidflow_inbox;
GRANT SELECT, INSERT, UPDATE ON inbox_partitions TO vidflow_inbox;
GRANT INSERT ON outbox TO vidflow_inbox;
