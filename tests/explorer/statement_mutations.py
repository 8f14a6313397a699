"""Mutations of rules in SQL statements and roles, which the explorer does not reach, and the tests that catch them."""
# ruff: noqa: E501 - quoted lines of code

from __future__ import annotations

from typing import Final

from tests.explorer.mutations import Mutation

INTEGRATION: Final = "tests/integration"


def statement_mutation(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, ((file, old, new),), (), tests)


STATEMENT_MUTATIONS: Final = (
    statement_mutation(
        "the fence checks the holder", "infra/postgres/lease.py",
        "         WHERE l.holder = %(holder)s\n         ORDER BY l.name", "         ORDER BY l.name",
        f"{INTEGRATION}/test_lease.py::test_a_former_holder_with_the_same_term_in_a_restored_database_cannot_write",
    ),
    statement_mutation(
        "a fence in every transaction", "infra/postgres/lease.py",
        "    if lost:\n        leases =", "    if False:\n        leases =",
        f"{INTEGRATION}/test_lease.py::test_a_former_holder_cannot_write",
    ),
    statement_mutation(
        "transaction_timeout is shorter than the lease", "infra/postgres/connection.py",
        "int(FENCED_TRANSACTION_S * 1000)", "int(FENCED_TRANSACTION_S * 100_000)",
        f"{INTEGRATION}/test_lease.py::test_a_holder_frozen_in_a_transaction_does_not_block_a_takeover_forever",
    ),
    statement_mutation(
        "an expired lease cannot be renewed", "infra/postgres/lease.py",
        "AND l.term = h.term AND l.expires_at > clock_timestamp()\n     RETURNING", "AND l.term = h.term\n     RETURNING",
        f"{INTEGRATION}/test_lease.py::test_an_expired_lease_cannot_be_renewed",
    ),
    statement_mutation(
        "no lease outlasts a clock that steps back", "infra/postgres/lease.py",
        "WHERE expires_at > clock_timestamp() + make_interval(secs => %(lease_s)s)\n", "WHERE false\n",
        f"{INTEGRATION}/test_lease.py::test_an_expiry_from_before_the_database_clock_stepped_back_is_capped",
    ),
    statement_mutation(
        "a caught-up time in the future is ignored", "infra/postgres/inbox_partitions.py",
        "           AND caught_up_at <= clock_timestamp()\n", "",
        f"{INTEGRATION}/test_inbox.py::test_a_caught_up_time_in_the_future_is_ignored_and_replaced",
    ),
    statement_mutation(
        "the API writes the transition it reports", "roles/api/scenarios.py",
        '        if decision.after is None or _try_move(connection, scope, decision):',
        "        if True or _try_move(connection, scope, decision):",
        f"{INTEGRATION}/test_api_scenarios.py::test_a_shutdown_is_accepted_in_every_state",
    ),
    statement_mutation(
        "a scenario and its message are created in one statement", "infra/postgres/scenarios.py",
        "scenario_uuid::text), 'UTF8')\n              FROM generated", "scenario_uuid::text), 'UTF8')\n              FROM generated WHERE false",
        f"{INTEGRATION}/test_api_scenarios.py::test_a_scenario_is_created_with_its_progress_history_and_message",
    ),
    statement_mutation(
        "a transition is written only to a row that is unchanged", "infra/postgres/lifecycle.py",
        "WHERE s.scenario_uuid = n.scenario_uuid AND s.state = n.state_read AND s.epoch = n.epoch_read", "WHERE s.scenario_uuid = n.scenario_uuid",
        f"{INTEGRATION}/test_lifecycle.py::test_of_two_decisions_on_the_same_state_only_the_first_takes_effect",
    ),
    statement_mutation(
        "closed is set together with inactive", "infra/postgres/progress.py",
        "SET closed = true", "SET closed = false",
        f"{INTEGRATION}/test_lifecycle.py::test_each_transition_has_a_history_row_in_order",
    ),
    statement_mutation(
        "the resume point is read under the progress row's lock", "infra/postgres/lifecycle.py",
        "SET resume_frame = raised.next_frame\n", "SET resume_frame = s.resume_frame\n",
        f"{INTEGRATION}/test_lifecycle.py::test_a_deployment_resumes_after_the_rows_stored_when_it_is_written",
    ),
    statement_mutation(
        "no command is sent again while a copy waits unpublished", "infra/postgres/outbox.py",
        "               OFFSET 0)  -- an index", "                 AND false\n               OFFSET 0)  -- an index",
        f"{INTEGRATION}/test_outbox.py::test_a_command_with_a_pending_copy_is_not_added_again",
    ),
    Mutation(
        "no cursor over ids",
        (("roles/relay.py", '        if failed or not max_in_flight:\n            self._backlog_cursor = 0\n', ""),
         ("roles/relay.py", "if _is_full(batch) else 0", "if batch else self._backlog_cursor"),
         ("roles/relay.py", '= self._read(excluded_topics=held_back), ', "= self._read(after=self._backlog_cursor, excluded_topics=held_back), ")),
        (), (f"{INTEGRATION}/test_relay.py::test_a_row_that_becomes_visible_after_later_ones_is_published",),
    ),
    statement_mutation(
        "a backlog skips no row that appears below it", "roles/relay.py", "pending == in_flight else None", "True else None",
        f"{INTEGRATION}/test_relay.py::test_invariant_2_a_row_that_appears_below_the_cursor_is_published_before_later_rows_of_its_key",
    ),
    statement_mutation(
        "a row overtakes no row of its key", "infra/postgres/outbox.py",
        "AND ((SELECT id FROM start) <= 0 OR", "AND (true OR",
        f"{INTEGRATION}/test_outbox.py::test_a_window_leaves_out_rows_that_would_overtake_an_older_row_of_their_key",
    ),
    statement_mutation(
        "only acknowledged rows are removed", "infra/kafka/publisher.py",
        'answers.failed[row.key] = "not acknowledged before it was purged"', "answers.acknowledged.append(row.id)",
        "tests/unit/test_publisher.py::test_a_row_without_an_answer_is_not_acknowledged",
    ),
    statement_mutation(
        "only rows before the first failure of their key are removed", "infra/kafka/publisher.py",
        "        if row.key in answers.failed:\n            continue\n", "",
        "tests/unit/test_publisher.py::test_after_a_failure_only_earlier_rows_of_its_key_are_removed",
    ),
    statement_mutation(
        "the position moves in the transaction that stores the rows", "roles/inbox/storing.py",
        '        crashpoint("inbox.before_position")\n', '    with transaction(connection) as tx:\n        crashpoint("inbox.before_position")\n',
        f"{INTEGRATION}/test_inbox.py::test_an_inbox_killed_at_a_crash_point_is_followed_by_one_that_stores_every_frame_once",
    ),
    statement_mutation(
        "a position moves only from the value the inbox holds", "infra/postgres/inbox_partitions.py",
        "AND p.partition = n.partition AND p.position = n.before", "AND p.partition = n.partition",
        f"{INTEGRATION}/test_inbox.py::test_an_inbox_continues_from_a_position_that_was_moved_back",
    ),
    statement_mutation(
        "a partition that was never read is not caught up", "infra/postgres/inbox_partitions.py",
        "        HAVING count(caught_up_at) = cardinality(%(partitions)s::int[])\n", "        HAVING count(caught_up_at) > 0\n",
        f"{INTEGRATION}/test_inbox.py::test_a_partition_that_was_never_read_has_no_caught_up_time",
    ),
    statement_mutation(
        "a shutdown whose entry has ended is always read", "infra/postgres/leader_tables.py",
        "FROM unnest(%(ended)s::uuid[]) AS ended (scenario_uuid)", "FROM unnest(ARRAY[]::uuid[]) AS ended (scenario_uuid)",
        f"{INTEGRATION}/test_leader_tables.py::test_a_shutdown_that_a_runner_lists_as_ended_is_always_read",
    ),
    statement_mutation(
        "of many shutdowns the longest waiting are read", "infra/postgres/leader_tables.py",
        "                 ORDER BY state_changed_at\n", "                 ORDER BY state_changed_at DESC\n",
        f"{INTEGRATION}/test_leader_tables.py::test_of_many_shutdowns_the_oldest_are_read",
    ),
    statement_mutation(
        "a scenario in backoff is not in the queue", "infra/postgres/leader_tables.py",
        "WHERE q.state = 'init_startup' AND q.due_at <= q.state_changed_at AND q.pool", "WHERE q.state = 'init_startup' AND q.pool",
        f"{INTEGRATION}/test_leader_tables.py::test_a_scenario_in_backoff_is_not_in_the_queue_until_its_backoff_is_over",
    ),
    statement_mutation(
        "no backoff outlasts a clock that steps back", "infra/postgres/leader_tables.py",
        "AND due_at > now() + make_interval(", "AND false AND due_at > now() + make_interval(",
        f"{INTEGRATION}/test_leader_tables.py::test_a_backoff_from_before_the_database_clock_stepped_back_is_over",
    ),
    statement_mutation(
        "the queue is ordered by priority, then age", "infra/postgres/leader_tables.py",
        "ORDER BY q.priority DESC, q.created_at, q.scenario_uuid", "ORDER BY q.created_at, q.scenario_uuid",
        f"{INTEGRATION}/test_leader_tables.py::test_the_queue_is_ordered_by_priority_then_age",
    ),
    statement_mutation(
        "each pool has its own queue", "infra/postgres/leader_tables.py", " AND q.pool = room.pool\n", "\n",
        f"{INTEGRATION}/test_leader_tables.py::test_each_pool_has_its_own_queue",
    ),
    statement_mutation(
        "a runner gets scenarios of its own pool only", "domain/reconcile.py",
        'place_scenarios(waiting[pool], slots[pool], tick', "place_scenarios(waiting[pool], find_free_slots(tick), tick",
        "tests/unit/test_reconcile.py",
    ),
    statement_mutation(
        "a plan is written in chunks", "roles/orchestrator/leader.py",
        'yield plan.events[start : start + CHUNK_SIZE], plan.commands[start : start + CHUNK_SIZE]', "yield plan.events, plan.commands",
        "tests/unit/test_leader_pace.py",
    ),
    statement_mutation(
        "an unwritten event keeps its finding", "domain/leader.py",
        "{**plan.memory.findings, **kept}", "plan.memory.findings", "tests/unit/test_leader_memory.py",
    ),
    statement_mutation(
        "an unwritten command does not count as sent", "domain/leader.py",
        "if key not in withheld}", "if key}", "tests/unit/test_leader_memory.py",
    ),
    statement_mutation(
        "probes are sent and received between ticks", "roles/orchestrator/listener.py",
        "left_s = self._probe()", "left_s = self._probe() if self._wakeup.is_set() else 0.1",
        f"{INTEGRATION}/test_listener.py::test_probes_arrive_without_a_break_during_a_long_tick",
    ),
    statement_mutation(
        "complete is reported only after the last row", "infra/postgres/results.py",
        "complete=state == State.INACTIVE and not more", "complete=state == State.INACTIVE",
        f"{INTEGRATION}/test_api_predictions.py::test_consecutive_pages_have_no_gap",
    ),
)  # fmt: skip

QUICK_STATEMENT_MUTATIONS: Final = tuple(
    mutation
    for mutation in STATEMENT_MUTATIONS
    if not any(
        test.startswith((f"{INTEGRATION}/test_inbox", f"{INTEGRATION}/test_relay", f"{INTEGRATION}/test_listener"))
        for test in mutation.tests
    )
)
"""The mutations whose tests need no Kafka: one or two seconds each with a shared PostgreSQL."""
