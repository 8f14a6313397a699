-- One group role for each of vidflow's processes, with the rights that it needs and no others. Run by `vidflow db roles`, or by
-- psql, as the user that owns the tables; making the roles needs CREATEROLE, once a server. Can be given again at any time.
-- `vidflow db migrate` and `vidflow db restore` grant again where the roles exist. A process logs in by a user of yours:
--   CREATE ROLE relay LOGIN PASSWORD '...' IN ROLE vidflow_relay;
-- An api that hosts the inbox needs both roles. Migrations, backups and restores are the owner's.

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
        -- What an earlier version granted and this one does not need.
        FOR name IN SELECT oid::regclass FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace
                                                         AND relowner = current_user::regrole LOOP
            EXECUTE format('REVOKE ALL ON %s FROM %I', name, role);
        END LOOP;
    END LOOP;
END $$;

-- Each waits at its start for the schema.
GRANT SELECT ON schema_checksums TO vidflow_api, vidflow_relay, vidflow_orchestrator, vidflow_inbox;

-- The api creates scenarios, asks for shutdowns and reads; partitions of the results are read through their parent.
GRANT SELECT, INSERT, UPDATE ON scenarios TO vidflow_api;
GRANT SELECT, INSERT ON scenario_history, scenario_progress, outbox TO vidflow_api;
GRANT SELECT ON scenario_results, scenario_gaps, results_removed, inbox_partitions, lease, runners TO vidflow_api;
-- Triggers on scenarios count the queue, with the rights of whom they run for.
GRANT SELECT, INSERT, UPDATE, DELETE ON queue_totals TO vidflow_api, vidflow_orchestrator;

-- The relay publishes the outbox and removes what was published.
GRANT SELECT, UPDATE (error), DELETE ON outbox TO vidflow_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON lease TO vidflow_relay;

-- The orchestrator moves scenarios, gives commands and removes what has outlived its time. It makes no rows of results.
GRANT SELECT, UPDATE, DELETE ON scenarios, scenario_progress TO vidflow_orchestrator;
GRANT SELECT, INSERT, DELETE ON scenario_history TO vidflow_orchestrator;
GRANT SELECT, DELETE ON scenario_gaps, scenario_results_default TO vidflow_orchestrator;
GRANT SELECT ON inbox_partitions TO vidflow_orchestrator;
GRANT SELECT, INSERT ON outbox TO vidflow_orchestrator;
GRANT SELECT, INSERT, UPDATE ON results_removed, lease TO vidflow_orchestrator;
GRANT SELECT, INSERT, UPDATE, DELETE ON runners TO vidflow_orchestrator;
GRANT EXECUTE ON FUNCTION make_results_partition, detach_results_partition, drop_results_partition TO vidflow_orchestrator;

-- The inbox stores results and how far it has read. It neither changes nor deletes a stored row.
GRANT SELECT, INSERT ON scenario_results, scenario_gaps TO vidflow_inbox;
GRANT SELECT, UPDATE ON scenario_progress TO vidflow_inbox;
GRANT SELECT, INSERT, UPDATE ON inbox_partitions TO vidflow_inbox;
GRANT INSERT ON outbox TO vidflow_inbox;
