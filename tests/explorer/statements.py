"""Rules that live in statements and roles, out of the explorer's reach: what the code is without them, and the tests that notice."""
# ruff: noqa: E501 - texts of the code

from __future__ import annotations

from typing import Final

from tests.explorer.breaks import Break

IT: Final = "tests/integration"


def rule(name: str, file: str, old: str, new: str, *tests: str) -> Break:
    return Break(name, ((file, old, new),), (), tests)


STATEMENTS: Final = (
    rule(
        "the fence names the holder", "infra/postgres/lease.py",
        "         WHERE l.holder = %(holder)s\n         ORDER BY l.name", "         ORDER BY l.name",
        f"{IT}/test_lease.py::test_a_holder_of_the_same_term_in_a_restored_database_writes_nothing",
    ),
    rule(
        "a fence in each transaction", "infra/postgres/lease.py",
        "    if lost:\n        raise LeaseLost(f\"held by", "    if False:\n        raise LeaseLost(f\"held by",
        f"{IT}/test_lease.py::test_a_former_holder_writes_nothing_more",
    ),
    rule(
        "transaction_timeout below the lease's term", "infra/postgres/connection.py",
        "int(FENCED_TRANSACTION_S * 1000)", "int(FENCED_TRANSACTION_S * 100_000)",
        f"{IT}/test_lease.py::test_a_holder_frozen_in_a_transaction_does_not_block_a_takeover_for_ever",
    ),
    rule(
        "a lease that is over is renewed by nobody", "infra/postgres/lease.py",
        "AND l.term = h.term AND l.expires_at > clock_timestamp()\n     RETURNING", "AND l.term = h.term\n     RETURNING",
        f"{IT}/test_lease.py::test_a_lease_that_is_over_cannot_be_renewed",
    ),
    rule(
        "no lease outlasts a clock that goes back", "infra/postgres/lease.py",
        "WHERE expires_at > clock_timestamp() + make_interval(secs => %(lease_s)s)\n", "WHERE false\n",
        f"{IT}/test_lease.py::test_a_lease_from_before_the_databases_clock_went_back_lasts_for_a_whole_one_at_most",
    ),
    rule(
        "a mark of a moment to come is none", "infra/postgres/inbox_partitions.py",
        "           AND caught_up_at <= clock_timestamp()\n", "",
        f"{IT}/test_inbox.py::test_a_mark_from_before_the_databases_clock_went_back_says_nothing_and_is_replaced",
    ),
    rule(
        "the api moves the row", "roles/api/scenarios.py",
        "        if decision.after is None or _moved(connection, decision):", "        if True or _moved(connection, decision):",
        f"{IT}/test_api_scenarios.py::test_a_shutdown_is_answered_in_every_state",
    ),
    rule(
        "a birth and its message are one statement", "infra/postgres/scenarios.py",
        "scenario_uuid::text), 'UTF8')\n              FROM given", "scenario_uuid::text), 'UTF8')\n              FROM given WHERE false",
        f"{IT}/test_api_scenarios.py::test_a_scenario_is_born_with_its_progress_its_history_and_its_message",
    ),
    rule(
        "a move is written where the scenario is as it was read", "infra/postgres/lifecycle.py",
        "WHERE s.scenario_uuid = n.scenario_uuid AND s.state = n.state_read AND s.epoch = n.epoch_read", "WHERE s.scenario_uuid = n.scenario_uuid",
        f"{IT}/test_lifecycle.py::test_of_two_decisions_about_the_same_reading_the_first_counts",
    ),
    rule(
        "closed goes with inactive", "infra/postgres/lifecycle.py",
        "SET closed = true", "SET closed = false",
        f"{IT}/test_lifecycle.py::test_each_move_has_its_row_of_history_in_order",
    ),
    rule(
        "the resume point is read under the progress row's lock", "infra/postgres/lifecycle.py",
        "SET resume_frame = raised.next_frame\n", "SET resume_frame = s.resume_frame\n",
        f"{IT}/test_lifecycle.py::test_a_deployment_resumes_where_the_rows_end_at_that_moment_not_where_they_did_when_it_was_decided",
    ),
    rule(
        "no command is given again while a copy waits unpublished", "infra/postgres/outbox.py",
        "               OFFSET 0)  -- an index", "                 AND false\n               OFFSET 0)  -- an index",
        f"{IT}/test_outbox.py::test_a_command_of_which_a_copy_waits_is_not_written_again",
    ),
    Break(
        "no cursor over ids",
        (("roles/relay.py", "        if failed or not left:\n            self._sent = 0\n", ""),
         ("roles/relay.py", "if _is_full(batch) else 0", "if batch else self._sent"),
         ("roles/relay.py", "= self._read(without=without), ", "= self._read(after=self._sent, without=without), ")),
        (), (f"{IT}/test_relay.py::test_a_row_that_becomes_visible_behind_later_ones_is_published",),
    ),
    rule(
        "a backlog passes no row that appears below it", "roles/relay.py", "== known else None", "== known or True else None",
        f"{IT}/test_relay.py::test_invariant_2_a_row_that_appears_below_what_was_sent_comes_before_the_next_of_its_key",
    ),
    rule(
        "a row overtakes none of its key", "infra/postgres/outbox.py",
        "AND ((SELECT id FROM start) <= 0 OR", "AND (true OR",
        f"{IT}/test_outbox.py::test_a_look_at_the_last_ids_leaves_out_what_would_overtake_an_older_row_of_its_key",
    ),
    rule(
        "nothing is removed that was not acknowledged", "infra/kafka/publisher.py",
        'answers.failed[row.key] = "taken back before it was answered"', "answers.acknowledged.append(row.id)",
        "tests/unit/test_publisher.py::test_a_row_without_an_answer_is_not_acknowledged",
    ),
    rule(
        "of a key only what lies before its first failure is removed", "infra/kafka/publisher.py",
        "        if row.key in answers.failed:\n            continue\n", "",
        "tests/unit/test_publisher.py::test_a_failure_lets_only_the_rows_before_it_of_its_key_be_removed",
    ),
    rule(
        "the position moves in the transaction that stores the rows", "roles/inbox/storing.py",
        "        batch = _write(connection, messages, meanwhile)\n", "        batch = judge({}, messages)\n    batch = _write(connection, messages, meanwhile)\n    with connection.transaction():\n",
        f"{IT}/test_inbox.py::test_an_inbox_killed_at_any_place_loses_nothing_and_stores_nothing_twice",
    ),
    rule(
        "a position moves from the value that the inbox holds", "infra/postgres/inbox_partitions.py",
        "AND p.partition = n.partition AND p.position = n.before", "AND p.partition = n.partition",
        f"{IT}/test_inbox.py::test_a_position_that_was_moved_back_is_where_it_begins_again",
    ),
    rule(
        "a partition that was never caught up with says no", "infra/postgres/inbox_partitions.py",
        "        HAVING count(caught_up_at) = cardinality(%(partitions)s::int[])\n", "        HAVING count(caught_up_at) > 0\n",
        f"{IT}/test_inbox.py::test_a_partition_that_was_never_read_is_not_caught_up_with",
    ),
    rule(
        "a shutdown that is listed as ended is read", "infra/postgres/leader_tables.py",
        "FROM unnest(%(ended)s::uuid[]) AS ended (scenario_uuid)", "FROM unnest(ARRAY[]::uuid[]) AS ended (scenario_uuid)",
        f"{IT}/test_leader_tables.py::test_a_shutdown_whose_runner_lists_it_as_ended_is_read_however_many_are_before_it",
    ),
    rule(
        "of many shutdowns the longest waiting are read", "infra/postgres/leader_tables.py",
        "                 ORDER BY state_changed_at\n", "                 ORDER BY state_changed_at DESC\n",
        f"{IT}/test_leader_tables.py::test_of_many_shutdowns_the_longest_waiting_are_read",
    ),
    rule(
        "a scenario in backoff is not in the queue", "infra/postgres/leader_tables.py",
        "WHERE q.state = 'init_startup' AND q.due_at <= q.state_changed_at AND q.pool", "WHERE q.state = 'init_startup' AND q.pool",
        f"{IT}/test_leader_tables.py::test_a_scenario_in_backoff_is_not_in_the_queue_until_its_backoff_is_over",
    ),
    rule(
        "no backoff outlasts a clock that goes back", "infra/postgres/leader_tables.py",
        "AND due_at > now() + make_interval(", "AND false AND due_at > now() + make_interval(",
        f"{IT}/test_leader_tables.py::test_a_backoff_that_was_set_before_the_databases_clock_went_back_is_over",
    ),
    rule(
        "the queue goes by priority, then age", "infra/postgres/leader_tables.py",
        "ORDER BY q.priority DESC, q.created_at, q.scenario_uuid", "ORDER BY q.created_at, q.scenario_uuid",
        f"{IT}/test_leader_tables.py::test_the_queue_is_read_from_its_head_by_priority_then_age",
    ),
    rule(
        "each pool has its own queue", "infra/postgres/leader_tables.py", " AND q.pool = room.pool\n", "\n",
        f"{IT}/test_leader_tables.py::test_each_pool_has_its_own_queue",
    ),
    rule(
        "each pool's runners get its scenarios alone", "domain/reconcile.py",
        "place(waiting[pool], slots[pool], tick", "place(waiting[pool], free_slots(tick), tick",
        "tests/unit/test_reconcile.py",
    ),
    rule(
        "a plan is written in portions", "roles/orchestrator/leader.py",
        "yield plan.events[start : start + CHUNK], plan.commands[start : start + CHUNK]", "yield plan.events, plan.commands",
        "tests/unit/test_leader_pace.py",
    ),
    rule(
        "what was not written keeps its finding", "domain/leader.py",
        "{**plan.memory.findings, **kept}", "plan.memory.findings", "tests/unit/test_leader_memory.py",
    ),
    rule(
        "what was not written is not taken for given", "domain/leader.py",
        "if key not in withheld}", "if key}", "tests/unit/test_leader_memory.py",
    ),
    rule(
        "probes are sent and heard while nobody looks", "roles/orchestrator/hearing.py",
        "left_s = self._probe()", "left_s = self._probe() if self._news.is_set() else 0.1",
        f"{IT}/test_hearing.py::test_probes_are_heard_without_a_break_while_nobody_looks",
    ),
    rule(
        "complete is said behind the last row alone", "infra/postgres/predictions.py",
        "complete=state == State.INACTIVE and not more", "complete=state == State.INACTIVE",
        f"{IT}/test_api_predictions.py::test_pages_follow_one_another_without_a_hole",
    ),
)  # fmt: skip
"""A text that is found no more is an error: who changes a statement changes its break."""

QUICK: Final = tuple(
    one
    for one in STATEMENTS
    if not any(test.startswith((f"{IT}/test_inbox", f"{IT}/test_relay", f"{IT}/test_hearing")) for test in one.tests)
)
"""Those whose tests need no Kafka: a second or two each where they share a PostgreSQL."""
