"""Mutations of the rules in domain/, and the worlds and unit tests that catch them."""
# ruff: noqa: E501 - quoted lines of code

from __future__ import annotations

from typing import Final

from tests.explorer.mutations import Mutation

LEADER, ASSESSMENT, RECONCILE = "domain/leader.py", "domain/assessment.py", "domain/reconcile.py"
PROGRESS, RUNNER, SCENARIO = "domain/progress.py", "domain/runner.py", "domain/scenario.py"
MESSAGES, LEASE = "domain/messages.py", "domain/lease.py"


def domain_mutation(name: str, file: str, old: str, new: str, *worlds: str, tests: tuple[str, ...] = ()) -> Mutation:
    return Mutation(name, ((file, old, new),), worlds, tests)


WAITS: Final = (
    domain_mutation(
        "a loss is acted on only after the inbox has caught up", LEADER,
        'return self.snapshot.caught_up_db_s is not None and self.snapshot.caught_up_db_s >= finding.since_db_s', "return True",
        "file, no fault", "live, kill",
    ),
    domain_mutation(
        "a loss is acted on only after catching up, live stream", LEADER,
        'return self.snapshot.caught_up_db_s is not None and self.snapshot.caught_up_db_s >= finding.since_db_s', "return True",
        "live, kill",
    ),
    domain_mutation(
        "a shutdown completes only after the inbox has caught up", ASSESSMENT,
        "finding.cause is Cause.UNLISTED or not tick.is_caught_up(finding):", "finding.cause is Cause.UNLISTED:",
        "live, no fault", "live, crash",
    ),
    domain_mutation(
        "every requeue waits for the inbox", ASSESSMENT,
        "if not settled or finding.cause is Cause.UNLISTED:",
        "if (not settled and (finding.cause is Cause.LEASE_OVER or (entry and entry.reason not in NON_FAILURE_REASONS))) or finding.cause is Cause.UNLISTED:",
        "live, drain",
    ),
    domain_mutation(
        "a non-retryable error waits for the inbox", ASSESSMENT,
        "if settled and entry and entry.fatal and entry.error:", "if finding and entry and entry.fatal and entry.error:",
        "file, fatal error", tests=("tests/unit/test_reconcile.py",),
    ),
)  # fmt: skip

RESULTS: Final = (
    domain_mutation(
        "complete requires next_frame = last + 1", PROGRESS,
        "        and progress.next_frame == progress.end_last_frame + 1\n", "",
        "file, Kafka emptied", tests=("tests/unit/test_progress.py::test_progress_is_not_complete_otherwise",),
    ),
    Mutation(
        "complete requires next_frame = last + 1, both checks",
        (
            (PROGRESS, "        and progress.next_frame == progress.end_last_frame + 1\n", ""),
            (PROGRESS, "if number > progress.next_frame:", "if number > progress.next_frame and not isinstance(message, End):"),
        ),
        ("file, Kafka emptied",),
    ),
    domain_mutation(
        "an end marker after a hole counts as a hole", PROGRESS,
        "if number > progress.next_frame:", "if number > progress.next_frame and not isinstance(message, End):",
        "file, Kafka emptied", tests=("tests/unit/test_progress.py",),
    ),
    domain_mutation(
        "results after a hole are not stored", PROGRESS,
        "if number > progress.next_frame:", "if number > progress.next_frame and not isinstance(message, Frame):",
        "file, Kafka emptied",
    ),
    domain_mutation(
        "a hole is a loss", PROGRESS, "return progress.hole_epoch == progress.epoch", "return False",
        "live, Kafka emptied",
    ),
    domain_mutation(
        "a hole of an older epoch is ignored", PROGRESS,
        "return progress.hole_epoch == progress.epoch", "return progress.hole_epoch is not None",
        "file, Kafka emptied", "live, Kafka emptied",
    ),
    domain_mutation(
        "an end marker of an older epoch is ignored", PROGRESS,
        "return progress.end_epoch == progress.epoch", "return progress.end_epoch is not None",
        "live, drain", "file, crash and drain",
    ),
    domain_mutation(
        "an inactive scenario stores no rows", PROGRESS, "if progress.closed or message.epoch", "if message.epoch",
        "file, shutdown at any moment", "live, frozen", "live, never receiving, two runners", "live, delay",
    ),
    domain_mutation(
        "an older epoch stores nothing", PROGRESS,
        "if progress.closed or message.epoch < progress.epoch:", "if progress.closed:", "live, frozen", "file, frozen",
    ),
    domain_mutation(
        "a stored frame is not rewritten", PROGRESS, "if number < progress.next_frame:", "if False:",
        "file, re-read",
    ),
    domain_mutation(
        "an epoch newer than the table's is stored (after a restore)", PROGRESS,
        "message.epoch < progress.epoch:", "message.epoch != progress.epoch:",
        "file, restore", tests=("tests/unit/test_progress.py", "tests/invariants/test_7_restored.py"),
    ),
    domain_mutation(
        "gaps are stored with the message after them", PROGRESS,
        "return message.gaps if message.previous_frame + 1 == progress.next_frame else ()", "return ()",
        "live with an end, no fault",
    ),
    domain_mutation(
        "gaps before an end marker that another epoch has passed are not stored", PROGRESS,
        "return message.gaps if message.previous_frame + 1 == progress.next_frame else ()", "return message.gaps",
        tests=("tests/unit/test_progress.py",),
    ),
    domain_mutation(
        "completion is checked before anything else", ASSESSMENT, '    if is_complete(progress):\n', "    if is_complete(progress) and not scenario.runner:\n",
        "file, no fault",
    ),
)  # fmt: skip

LOSSES: Final = (
    domain_mutation(
        "attempts are reset only by frames past resume_frame", SCENARIO,
        "attempt = 1 if loss.next_frame > scenario.resume_frame else", "attempt = 1 if loss.next_frame > 0 else",
        "file, poison frame",
    ),
    domain_mutation(
        "attempts are reset when a frame was stored", SCENARIO,
        "attempt = 1 if loss.next_frame > scenario.resume_frame else scenario.attempt + 1", "attempt = scenario.attempt + 1",
        "file, crash twice",
    ),
    domain_mutation(
        "a frame stored since the requeue resets the attempts", RECONCILE,
        "attempt=0 if next_frame > scenario.resume_frame else None,", "",
        "file, frozen and crash", tests=("tests/unit/test_reconcile.py", "tests/invariants/test_8_faults.py"),
    ),
    domain_mutation(
        "a deploy that is not taken costs no attempt", ASSESSMENT,
        '        return _declare_requeue(scenario_view, tick, ReasonCode.DEPLOY_NOT_TAKEN, Cause.NOT_TAKEN)', '        return _declare_loss(scenario_view, tick, ReasonCode.DEPLOY_NOT_TAKEN, "not taken")',
        "file, lost command", "file, lost command twice", "file, not receiving",
    ),
    *(
        domain_mutation(
            f"end reason {reason} costs no attempt", MESSAGES,
            "frozenset({EndReason.STOPPED, EndReason.REFUSED, EndReason.HANDED_OVER, EndReason.CUT_OFF})",
            f'frozenset({{EndReason.STOPPED, EndReason.REFUSED, EndReason.HANDED_OVER, EndReason.CUT_OFF}} - {{"{reason}"}})',
            *worlds,
        )
        for reason, *worlds in (
            ("stopped", "live, restore", "file, restore, stopped"),
            ("refused", "file, drain"),
            ("handed_over", "file, drain"),
            ("cut_off", "file, Kafka unreachable"),
        )
    ),
    domain_mutation(
        "work with end reason stopped is requeued", ASSESSMENT,
        'if entry is not None and not entry.is_running:', 'if entry is not None and not entry.is_running and entry.reason != "stopped":',
        "live, restore", "file, restore, stopped",
    ),
    domain_mutation(
        "work not listed by a drained runner costs no attempt", ASSESSMENT,
        "return Cause.LEFT  #", "pass  #",
        "file, drain",
    ),
    domain_mutation(
        "a requeue does not change the attempts", SCENARIO,
        "attempt = 0 if next_frame > scenario.resume_frame else None", "attempt = scenario.attempt + 1",
        "file, crash and drain",
    ),
    domain_mutation(
        "skips after the same frame add up", SCENARIO,
        "return (*skips[:-1], Skip(skip.after_pts, skips[-1].frames + skip.frames))", "return (*skips[:-1], skip)",
        "file, two poison frames, skipped",
    ),
    domain_mutation(
        "a non-retryable error fails the scenario at once", ASSESSMENT,
        "if settled and entry and entry.fatal and entry.error:", "if False:",
        "file, fatal error", tests=("tests/unit/test_reconcile.py",),
    ),
)  # fmt: skip

COMMANDS: Final = (
    domain_mutation(
        "a stop is sent again", RECONCILE,
        'else tick.timing.resend_s', 'else float("inf") if command.kind == "stop" else tick.timing.resend_s',
        "live, lost command", "live, Kafka emptied", "file, lost command twice", "live, lost command twice",
    ),
    domain_mutation(
        "a forget is sent again", RECONCILE,
        'else tick.timing.resend_s', 'else float("inf") if command.kind == "forget" else tick.timing.resend_s',
        "file, lost command",
    ),
    domain_mutation(
        "only unwanted entries are forgotten", RECONCILE,
        'if place in wanted or (place in shutting_down and not entry.is_running):', "if place in wanted and entry.is_running:",
        "file, poison frame", "file, no fault", "file, crash",
    ),
    domain_mutation(
        "an ended entry is kept while its scenario shuts down", RECONCILE,
        'if place in wanted or (place in shutting_down and not entry.is_running):', "if place in wanted:",
        "live, no fault", "live, crash", tests=("tests/unit/test_reconcile.py",),
    ),
    domain_mutation(
        "ended entries stay listed until forgotten", RUNNER,
        '    return _put_entry(state, msgspec.structs.replace(entry, reason=reason, error=error, fatal=fatal, detail=tail))',
        "    return msgspec.structs.replace(state, entries=tuple(other for other in state.entries if other is not entry))",
        "file, poison frame", "file, crash",
    ),
    domain_mutation(
        "unwanted work is stopped", RECONCILE,
        "        for entry in view.report.entries:\n", "        for entry in view.report.entries:\n            if entry.is_running:\n                continue\n",
        "live, lost command",
    ),
    domain_mutation(
        "a deploy is sent again", ASSESSMENT,
        "return finding.cause is Cause.UNLISTED and is_overdue and not scenario_view.deploy_waits", "return False",
        "file, lost command", tests=("tests/unit/test_reconcile.py",),
    ),
    domain_mutation(
        "the take timeout starts once the deploy is published", ASSESSMENT,
        'if scenario_view.deploy_waits and reported_s < timing.resend_deploy_s:', "if False:",
        tests=("tests/unit/test_reconcile.py",),
    ),
    domain_mutation(
        "a runner remembers the epochs it has seen", RUNNER,
        '        seen = _find_row(self.seen_epochs, scenario_uuid)\n', "        seen = self.entry(scenario_uuid)\n",
        "live, copied command and crash",
    ),
    domain_mutation(
        "a stop outdates earlier deploys", RUNNER,
        '    state = _record_epoch(state, uuid, epoch, now_s)\n    if entry is not None and entry.is_running', '    if entry is not None and entry.is_running',
        "live, copied command", tests=("tests/unit/test_runner_charge.py",),
    ),
    domain_mutation(
        "a stop does not end a newer epoch's worker", RUNNER,
        'entry.is_running and entry.epoch <= epoch:', 'entry.is_running:',
        "live, copied command", tests=("tests/unit/test_runner_charge.py",),
    ),
    domain_mutation(
        "a newer epoch ends the older epoch's worker first", RUNNER,
        'replaces = older.epoch if older is not None and older.is_running else None', "replaces = None",
        "file, frozen", "live, frozen", "file, delay",
    ),
    domain_mutation(
        "a runner has no more workers than slots", RUNNER,
        "return not self.draining and busy < self.capacity", "return not self.draining",
        "file, two on one slot", "file, two on one slot, kill",
    ),
    domain_mutation(
        "the end of an older epoch's worker ends no newer entry", RUNNER,
        'if entry is None or not entry.is_running or entry.epoch != epoch:\n        return state\n    tail', "if entry is None or not entry.is_running:\n        return state\n    tail",
        tests=("tests/unit/test_runner_charge.py",),
    ),
    domain_mutation(
        "a draining runner takes no deploy", RUNNER,
        "return not self.draining and busy < self.capacity", "return busy < self.capacity",
        "live, drain", tests=("tests/unit/test_runner_charge.py",),
    ),
    domain_mutation(
        "a draining runner hands over its work", RUNNER,
        'for entry in state.entries if entry.is_running\n    )', "for entry in state.entries if False\n    )",
        "live, drain", tests=("tests/unit/test_runner_charge.py",),
    ),
)  # fmt: skip

SILENCE: Final = (
    domain_mutation(
        "a marked runner is assigned nothing new", RECONCILE,
        "report.draining or view.mark is not None:", "report.draining:",
        "file, not receiving",
    ),
    domain_mutation(
        "a marked runner is pinged", RECONCILE,
        "if view.mark is not None and not tick.is_silent(view):", "if False:",
        "file, lost command twice", "file, not receiving",
    ),
    domain_mutation(
        "a mark is cleared when commands are taken", LEADER,
        "view.mark is not None and report.taken <= view.mark else None", "view.mark is not None else None",
        "file, lost command twice", "file, not receiving",
    ),
    domain_mutation(
        "a mark stays while no command is taken", LEADER,
        "view.mark is not None and report.taken <= view.mark else None", "False else None",
        "file, not receiving",
    ),
    domain_mutation(
        "a draining runner is assigned nothing", RECONCILE,
        "report is None or report.draining or", "report is None or",
        "file, drain", "live, drain",
    ),
    domain_mutation(
        "a silent runner is assigned nothing", RECONCILE,
        'if snapshot.probes_received_since_s is None or snapshot.now_s - view.last_seen_s >= tick.timing.runner_lease_s:', "if False:",
        "file, frozen", "file, Kafka unreachable", "file, kill", tests=("tests/unit/test_reconcile.py",),
    ),
    domain_mutation(
        "a silent runner is declared lost", LEADER,
        '        return is_runner_lease_expired(', "        return False and is_runner_lease_expired(",
        "file, kill",
    ),
    domain_mutation(
        "a runner's lease runs only while probes are received", LEASE,
        'return probes_received_since_s is not None and now_s - max(last_seen_s, probes_received_since_s) >= lease_s',
        "return now_s - max(last_seen_s, probes_received_since_s or last_seen_s) >= lease_s",
        "file, Kafka unreachable", "live, Kafka unreachable",
    ),
    domain_mutation(
        "after an outage every runner gets a full lease", LEASE,
        'now_s - max(last_seen_s, probes_received_since_s) >= lease_s', "now_s - last_seen_s >= lease_s",
        "file, Kafka unreachable", "live, Kafka unreachable",
    ),
    domain_mutation(
        "an outdated report changes nothing", LEADER,
        "if view and view.report and report.number <= view.report.number:", "if False:",
        "file, stale report", "live, stale report", tests=("tests/unit/test_reconcile.py",),
    ),
    domain_mutation(
        "a shutdown ends after 30 s of stops", ASSESSMENT,
        'if tick.reported_for_s(finding, runner_view) < timeout_s:', "if True:",
        "live, never receiving, two runners",
    ),
    domain_mutation(
        "a shutdown does not end while its entry is not listed yet", ASSESSMENT,
        "if finding is None or finding.cause is Cause.UNLISTED or not tick.is_caught_up(finding):\n"
        "        return Assessment(finding=finding)\n"
        "    return _build_drained(scenario, DRAIN_CODES[finding.cause],",
        "if finding is None or not tick.is_caught_up(finding):\n"
        "        return Assessment(finding=finding)\n"
        "    return _build_drained(scenario, DRAIN_CODES.get(finding.cause, ReasonCode.WORKER_ENDED),",
        "live, no fault", "file, shutdown at any moment", tests=("tests/unit/test_reconcile.py",),
    ),
)  # fmt: skip

EPOCHS: Final = (
    domain_mutation(
        "an epoch comes from the clock", SCENARIO, "return max(epoch + 1, database_ms)", "return epoch + 1",
        "file, restore",
    ),
    domain_mutation(
        "an epoch rises even if the clock does not", SCENARIO, "return max(epoch + 1, database_ms)", "return database_ms",
        tests=("tests/unit/test_scenario.py",),
    ),
    domain_mutation(
        "an event of another epoch has no effect", SCENARIO,
        "if event.epoch is not None and event.epoch != scenario.epoch:", "if False:",
        tests=("tests/unit/test_scenario.py",),
    ),
    domain_mutation(
        "completed requires an end marker of the current epoch", PROGRESS,
        "        and progress.end_epoch == progress.epoch\n", "",
        "file, Kafka emptied", "file, restore", tests=("tests/unit/test_progress.py",),
    ),
    domain_mutation(
        "an entry of another epoch is ignored", ASSESSMENT,
        "return entry if entry and entry.epoch == scenario.epoch else None", "return entry",
        "file, crash", "file, frozen",
    ),
)  # fmt: skip

CLOCKS: Final = (
    domain_mutation(
        "a due time beyond the longest backoff is due now", SCENARIO, 'return not 0 < due_in_s <= RetryPolicy().max_backoff_s', "return due_in_s <= 0",
        tests=("tests/unit/test_scenario.py",),
    ),
    domain_mutation(
        "a finding is never dated in the future", ASSESSMENT,
        '    previous = previous and previous.clamp_to(tick.snapshot.now_db_s)\n', "",
        tests=("tests/unit/test_reconcile.py",),
    ),
)  # fmt: skip

DOMAIN_MUTATIONS: Final = (*WAITS, *RESULTS, *LOSSES, *COMMANDS, *SILENCE, *EPOCHS, *CLOCKS)
