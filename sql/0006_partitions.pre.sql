-- The leader makes, detaches and drops partitions of the results by these functions, so that its user need not own the tables.
-- They run as the owner of the tables, and touch nothing but partitions of scenario_results.

CREATE FUNCTION make_results_partition(name text, from_uuid uuid, to_uuid uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF name !~ '^scenario_results_\w+$' OR name ~ '_(default|removed)$' THEN
        RAISE EXCEPTION '% is not the name of a partition of scenario_results', name USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE scenario_results INCLUDING ALL)', name);
    EXECUTE format('ALTER TABLE scenario_results ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, from_uuid, to_uuid);
END $$;

-- The table keeps its rows under another name; it is dropped later, when nobody waits.
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
