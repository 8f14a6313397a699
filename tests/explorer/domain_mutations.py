"""The rules that carry weight, and for each the text of the code without it: what `breaks` makes, one at a time."""
# ruff: noqa: E501 - texts of the code

from __future__ import annotations

from typing import Final

from tests.explorer.mutations import Mutation

LEADER, JUDGEMENT, RECONCILE = "domain/leader.py", "domain/assessment.py", "domain/reconcile.py"
PROGRESS, RUNNER, SCENARIO = "domain/progress.py", "domain/runner.py", "domain/scenario.py"
MESSAGES, LEASE = "domain/messages.py", "domain/lease.py"


def domain_mutation(name: str, file: str, old: str, new: str, *worlds: str, tests: tuple[str, ...] = ()) -> Mutation:
    return Mutation(name, ((file, old, new),), worlds, tests)


WAITS: Final = (
    domain_mutation(
        "caught up before acting on a loss", LEADER,
        'return self.snapshot.caught_up_db_s is not None and self.snapshot.caught_up_db_s >= finding.since_db_s', "return True",
        "file, no fault", "live, kill",
    ),
    domain_mutation(
        "the same, live", LEADER,
        'return self.snapshot.caught_up_db_s is not None and self.snapshot.caught_up_db_s >= finding.since_db_s', "return True",
        "live, kill",
    ),
    domain_mutation(
        "drained waits for caught up", JUDGEMENT,
        "finding.cause is Cause.UNLISTED or not tick.is_caught_up(finding):", "finding.cause is Cause.UNLISTED:",
        "live, no fault", "live, crash",
    ),
    domain_mutation(
        "every way back waits for the inbox", JUDGEMENT,
        "if not settled or finding.cause is Cause.UNLISTED:",
        "if (not settled and (finding.cause is Cause.LEASE_OVER or (entry and entry.reason not in NON_FAILURE_REASONS))) or finding.cause is Cause.UNLISTED:",
        "live, drain",
    ),
    domain_mutation(
        "an entry that no retry mends waits for the inbox", JUDGEMENT,
        "if settled and entry and entry.fatal and entry.error:", "if finding and entry and entry.fatal and entry.error:",
        "file, a fatal error", tests=("tests/unit/test_reconcile.py",),
    ),
)  # fmt: skip

RESULTS: Final = (
    domain_mutation(
        "whole needs next_frame = last + 1, an end no hole below it", PROGRESS,
        "        and progress.next_frame == progress.end_last_frame + 1\n", "",
        "file, emptied", tests=("tests/unit/test_progress.py::test_progress_is_not_complete_otherwise",),
    ),
    Mutation(
        "whole needs next_frame = last + 1, both its nets",
        (
            (PROGRESS, "        and progress.next_frame == progress.end_last_frame + 1\n", ""),
            (PROGRESS, "if number > progress.next_frame:", "if number > progress.next_frame and not isinstance(message, End):"),
        ),
        ("file, emptied",),
    ),
    domain_mutation(
        "an end marker behind a hole is a hole", PROGRESS,
        "if number > progress.next_frame:", "if number > progress.next_frame and not isinstance(message, End):",
        "file, emptied", tests=("tests/unit/test_progress.py",),
    ),
    domain_mutation(
        "what stands behind a hole is not stored", PROGRESS,
        "if number > progress.next_frame:", "if number > progress.next_frame and not isinstance(message, Frame):",
        "file, emptied",
    ),
    domain_mutation(
        "a hole is a loss", PROGRESS, "return progress.hole_epoch == progress.epoch", "return False",
        "live, emptied",
    ),
    domain_mutation(
        "a hole of an older epoch is none", PROGRESS,
        "return progress.hole_epoch == progress.epoch", "return progress.hole_epoch is not None",
        "file, emptied", "live, emptied",
    ),
    domain_mutation(
        "an end of an older epoch ends nothing", PROGRESS,
        "return progress.end_epoch == progress.epoch", "return progress.end_epoch is not None",
        "live, drain", "file, crash and drain",
    ),
    domain_mutation(
        "inactive takes no rows", PROGRESS, "if progress.closed or message.epoch", "if message.epoch",
        "file, a shutdown at any moment", "live, frozen", "live, deaf for ever, two runners", "live, slip",
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
        "a newer epoch than the table's stores too (after a restore)", PROGRESS,
        "message.epoch < progress.epoch:", "message.epoch != progress.epoch:",
        "file, restore", tests=("tests/unit/test_progress.py", "tests/invariants/test_7_restored.py"),
    ),
    domain_mutation(
        "whole is judged before anything else", JUDGEMENT, '    if is_complete(progress):\n', "    if is_complete(progress) and not scenario.runner:\n",
        "file, no fault",
    ),
)  # fmt: skip

LOSSES: Final = (
    domain_mutation(
        "attempts restart only past resume_frame", SCENARIO,
        "attempt = 1 if loss.next_frame > scenario.resume_frame else", "attempt = 1 if loss.next_frame > 0 else",
        "file, a poisonous frame",
    ),
    domain_mutation(
        "attempts restart where a frame was stored", SCENARIO,
        "attempt = 1 if loss.next_frame > scenario.resume_frame else scenario.attempt + 1", "attempt = scenario.attempt + 1",
        "file, crash twice",
    ),
    domain_mutation(
        "a frame stored since it came back restarts the attempts", RECONCILE,
        "attempt=0 if next_frame > scenario.resume_frame else None,", "",
        "file, silence and a crash", tests=("tests/unit/test_reconcile.py", "tests/invariants/test_8_faults.py"),
    ),
    domain_mutation(
        "not taken costs no attempt", JUDGEMENT,
        '        return _declare_requeue(scenario_view, tick, Cause.NOT_TAKEN)',
        '        return _declare_loss(scenario_view, tick, "not taken")',
        "file, lost", "file, lost twice", "file, deaf",
    ),
    *(
        domain_mutation(
            f"ended {reason.replace('_', ' ')} goes back uncounted", MESSAGES,
            "frozenset({EndReason.STOPPED, EndReason.REFUSED, EndReason.HANDED_OVER, EndReason.CUT_OFF})",
            f'frozenset({{EndReason.STOPPED, EndReason.REFUSED, EndReason.HANDED_OVER, EndReason.CUT_OFF}} - {{"{reason}"}})',
            *worlds,
        )
        for reason, *worlds in (
            ("stopped", "live, restore", "file, restore, stopped"),
            ("refused", "file, drain"),
            ("handed_over", "file, drain"),
            ("cut_off", "file, away"),
        )
    ),
    domain_mutation(
        "ended stopped goes back", JUDGEMENT,
        'if entry is not None and not entry.is_running:', 'if entry is not None and not entry.is_running and entry.reason != "stopped":',
        "live, restore", "file, restore, stopped",
    ),
    domain_mutation(
        "what a runner that left did not list goes back uncounted", JUDGEMENT,
        "return Cause.LEFT  #", "pass  #",
        "file, drain",
    ),
    domain_mutation(
        "a way back leaves the attempts", SCENARIO,
        "attempt = 0 if next_frame > scenario.resume_frame else None", "attempt = scenario.attempt + 1",
        "file, crash and drain",
    ),
    domain_mutation(
        "skips behind one frame add up", SCENARIO,
        "return (*skips[:-1], Skip(skip.after_pts, skips[-1].frames + skip.frames))", "return (*skips[:-1], skip)",
        "file, two poisonous frames, skipped",
    ),
    domain_mutation(
        "an error that no retry mends fails at once", JUDGEMENT,
        "if settled and entry and entry.fatal and entry.error:", "if False:",
        "file, a fatal error", tests=("tests/unit/test_reconcile.py",),
    ),
)  # fmt: skip

COMMANDS: Final = (
    domain_mutation(
        "stop is given again", RECONCILE,
        'else tick.timing.resend_s', 'else float("inf") if command.kind == "stop" else tick.timing.resend_s',
        "live, lost", "live, emptied", "file, lost twice", "live, lost twice",
    ),
    domain_mutation(
        "forget is given again", RECONCILE,
        'else tick.timing.resend_s', 'else float("inf") if command.kind == "forget" else tick.timing.resend_s',
        "file, lost",
    ),
    domain_mutation(
        "forget only when unwanted", RECONCILE,
        'if place in wanted or (place in shutting_down and not entry.is_running):', "if place in wanted and entry.is_running:",
        "file, a poisonous frame", "file, no fault", "file, crash",
    ),
    domain_mutation(
        "an ended entry is kept while its scenario shuts down", RECONCILE,
        'if place in wanted or (place in shutting_down and not entry.is_running):', "if place in wanted:",
        "live, no fault", "live, crash", tests=("tests/unit/test_reconcile.py",),
    ),
    domain_mutation(
        "ended entries stay listed", RUNNER,
        '    return _put_entry(state, msgspec.structs.replace(entry, reason=reason, error=error, fatal=fatal, detail=tail))',
        "    return msgspec.structs.replace(state, entries=tuple(other for other in state.entries if other is not entry))",
        "file, a poisonous frame", "file, crash",
    ),
    domain_mutation(
        "what runs unwanted is stopped", RECONCILE,
        "        for entry in view.report.entries:\n", "        for entry in view.report.entries:\n            if entry.is_running:\n                continue\n",
        "live, lost",
    ),
    domain_mutation(
        "deploy is given again", JUDGEMENT,
        "return finding.cause is Cause.UNLISTED and is_overdue and not scenario_view.deploy_waits", "return False",
        "file, lost", tests=("tests/unit/test_reconcile.py",),
    ),
    domain_mutation(
        "a runner's time begins once its deploy is published", JUDGEMENT,
        'if scenario_view.deploy_waits and reported_s < timing.resend_deploy_s:', "if False:",
        tests=("tests/unit/test_reconcile.py",),
    ),
    domain_mutation(
        "a runner remembers the epochs that it has seen", RUNNER,
        '        seen = _find_row(self.seen_epochs, scenario_uuid)\n', "        seen = self.entry(scenario_uuid)\n",
        "live, copy and crash",
    ),
    domain_mutation(
        "a stop makes the deploys before it old", RUNNER,
        '    state = _record_epoch(state, uuid, epoch, now_s)\n    if entry is not None and entry.is_running', '    if entry is not None and entry.is_running',
        "live, copy", tests=("tests/unit/test_runner_charge.py",),
    ),
    domain_mutation(
        "a stop of an epoch stops no newer one", RUNNER,
        'entry.is_running and entry.epoch <= epoch:', 'entry.is_running:',
        "live, copy", tests=("tests/unit/test_runner_charge.py",),
    ),
    domain_mutation(
        "a newer epoch ends the older one's worker first", RUNNER,
        'replaces = older.epoch if older is not None and older.is_running else None', "replaces = None",
        "file, frozen", "live, frozen", "file, slip",
    ),
    domain_mutation(
        "a runner has no more workers than slots", RUNNER,
        "return not self.draining and busy < self.capacity", "return not self.draining",
        "file, two on one slot", "file, two on one slot, kill",
    ),
    domain_mutation(
        "an older epoch's worker ends nothing of a newer one", RUNNER,
        'if entry is None or not entry.is_running or entry.epoch != epoch:\n        return state\n    tail', "if entry is None or not entry.is_running:\n        return state\n    tail",
        tests=("tests/unit/test_runner_charge.py",),
    ),
    domain_mutation(
        "a draining runner takes no deploy", RUNNER,
        "return not self.draining and busy < self.capacity", "return busy < self.capacity",
        "live, drain", tests=("tests/unit/test_runner_charge.py",),
    ),
    domain_mutation(
        "a draining runner hands its work over", RUNNER,
        'for entry in state.entries if entry.is_running\n    )', "for entry in state.entries if False\n    )",
        "live, drain", tests=("tests/unit/test_runner_charge.py",),
    ),
)  # fmt: skip

SILENCE: Final = (
    domain_mutation(
        "a marked runner gets nothing new", RECONCILE,
        "report.draining or view.mark is not None:", "report.draining:",
        "file, deaf",
    ),
    domain_mutation(
        "a marked runner is pinged", RECONCILE,
        "if view.mark is not None and not tick.is_silent(view):", "if False:",
        "file, lost twice", "file, deaf",
    ),
    domain_mutation(
        "a mark goes when commands are taken", LEADER,
        "view.mark is not None and report.taken <= view.mark else None", "view.mark is not None else None",
        "file, lost twice", "file, deaf",
    ),
    domain_mutation(
        "a mark stays while none is taken", LEADER,
        "view.mark is not None and report.taken <= view.mark else None", "False else None",
        "file, deaf",
    ),
    domain_mutation(
        "a draining runner is given nothing", RECONCILE,
        "report is None or report.draining or", "report is None or",
        "file, drain", "live, drain",
    ),
    domain_mutation(
        "a silent runner is given nothing", RECONCILE,
        'if snapshot.probes_received_since_s is None or snapshot.now_s - view.last_seen_s >= tick.timing.runner_lease_s:', "if False:",
        "file, frozen", "file, away", "file, kill", tests=("tests/unit/test_reconcile.py",),
    ),
    domain_mutation(
        "a silent runner is lost", LEADER,
        '        return is_runner_lease_expired(', "        return False and is_runner_lease_expired(",
        "file, kill",
    ),
    domain_mutation(
        "a lease runs only while the probes are heard", LEASE,
        'return probes_received_since_s is not None and now_s - max(last_seen_s, probes_received_since_s) >= lease_s',
        "return now_s - max(last_seen_s, probes_received_since_s or last_seen_s) >= lease_s",
        "file, away", "live, away",
    ),
    domain_mutation(
        "after an outage every runner has a whole lease anew", LEASE,
        'now_s - max(last_seen_s, probes_received_since_s) >= lease_s', "now_s - last_seen_s >= lease_s",
        "file, away", "live, away",
    ),
    domain_mutation(
        "a report that was overtaken changes nothing", LEADER,
        "if view and view.report and report.number <= view.report.number:", "if False:",
        "file, stale", "live, stale", tests=("tests/unit/test_reconcile.py",),
    ),
    domain_mutation(
        "30 s of stops end a shutdown", JUDGEMENT,
        'if tick.reported_for_s(finding, runner_view) < timeout_s:', "if True:",
        "live, deaf for ever, two runners",
    ),
    domain_mutation(
        "a shutdown waits out what is not listed yet", JUDGEMENT,
        "if finding is None or finding.cause is Cause.UNLISTED or not", "if finding is None or not",
        "live, no fault", "file, a shutdown at any moment", tests=("tests/unit/test_reconcile.py",),
    ),
)  # fmt: skip

EPOCHS: Final = (
    domain_mutation(
        "the epoch comes from the clock", SCENARIO, "return max(epoch + 1, database_ms)", "return epoch + 1",
        "file, restore",
    ),
    domain_mutation(
        "an epoch rises also where the clock does not", SCENARIO, "return max(epoch + 1, database_ms)", "return database_ms",
        tests=("tests/unit/test_scenario.py",),
    ),
    domain_mutation(
        "an event of another epoch decides nothing", SCENARIO,
        "if event.epoch is not None and event.epoch != scenario.epoch:", "if False:",
        tests=("tests/unit/test_scenario.py",),
    ),
    domain_mutation(
        "completed is an end of the counting epoch", PROGRESS,
        "        and progress.end_epoch == progress.epoch\n", "",
        "file, emptied", "file, restore", tests=("tests/unit/test_progress.py",),
    ),
    domain_mutation(
        "an entry of another epoch is not this one's", JUDGEMENT,
        "return entry if entry and entry.epoch == scenario.epoch else None", "return entry",
        "file, crash", "file, frozen",
    ),
)  # fmt: skip

CLOCKS: Final = (
    domain_mutation(
        "what is due in longer than any pause is due", SCENARIO, 'return not 0 < due_in_s <= RetryPolicy().max_backoff_s', "return due_in_s <= 0",
        tests=("tests/unit/test_scenario.py",),
    ),
    domain_mutation(
        "nothing was found at a moment to come", JUDGEMENT,
        '    previous = previous and previous.clamp_to(tick.snapshot.now_db_s)\n', "",
        tests=("tests/unit/test_reconcile.py",),
    ),
)  # fmt: skip

DOMAIN_MUTATIONS: Final = (*WAITS, *RESULTS, *LOSSES, *COMMANDS, *SILENCE, *EPOCHS, *CLOCKS)
