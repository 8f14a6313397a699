"""An in-memory simulation of tables, outbox, Kafka, runners, inbox and leader around the decisions of vidflow.domain.

The simulation decides nothing itself. It adds what lies between the parts and can fail. Besides the tables it keeps a ledger,
which a restore does not reset. `check` compares both with the invariants after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from tests.invariants.simulation_checks import check_simulation, violation
from tests.invariants.simulation_state import (
    FATAL,
    PTS_STEP,
    HistoryRow,
    OutboxRow,
    RunnerMode,
    SimulatedDatabase,
    SimulatedRunner,
    SimulatedSource,
    SimulatedWorker,
    StoredFrame,
)

from vidflow.domain.errors import ErrorInfo, MessageError
from vidflow.domain.leader import (
    LeaderState,
    OutgoingCommand,
    Plan,
    RunnerView,
    ScenarioView,
    Snapshot,
    Timing,
    apply_reports,
)
from vidflow.domain.lease import is_runner_lease_expired
from vidflow.domain.messages import (
    Command,
    Deploy,
    End,
    EndReason,
    Frame,
    Gap,
    GapReason,
    Report,
    Result,
    ResumePoint,
    StopWork,
    WorkerWait,
    decode_command,
    decode_result,
    decode_runner_event,
    encode,
)
from vidflow.domain.progress import Progress, Verdict, advance, select_gaps
from vidflow.domain.reconcile import reconcile
from vidflow.domain.runner import (
    Action,
    Finish,
    Kill,
    Launch,
    RunnerState,
    apply_command,
    build_report,
    drain,
    forget_old_epochs,
    is_empty,
    record_worker_end,
    record_worker_progress,
)
from vidflow.domain.scenario import Event, Kind, RetryPolicy, Scenario, Send, State, build_shutdown_request, decide

RETRY_POLICY: Final = RetryPolicy(max_attempts=3)
TIMING: Final = Timing()
DATABASE_CLOCK_OFFSET_S: Final = 1_000_000.0
"""The database clock when the leader's clock is 0."""
GIVE_UP_S: Final = 30.0
"""How long a runner may be cut off or receive nothing before it gives up."""
STEP_S: Final = 0.5


class Simulation:
    """The simulated system and its faults. Each method is a step that may happen at any moment."""

    def __init__(self, runners: int = 2, capacity: int = 2, retry_policy: RetryPolicy = RETRY_POLICY) -> None:
        self.retry_policy, self.capacity = retry_policy, capacity
        self.now_s = 100.0
        self.tables = SimulatedDatabase()
        self.backup: SimulatedDatabase | None = None
        self.sources: dict[str, SimulatedSource] = {}
        self.memory = LeaderState()
        self.probes_received_since_s: float | None = 0.0
        self.results: dict[str, list[bytes]] = {}
        self.topic_id = 1
        self.noted_ends: dict[str, tuple[int, int, float]] = {}
        self.late_commands: list[tuple[str, str, bytes]] = []
        self.late_reports: list[bytes] = []
        self.runners: dict[str, SimulatedRunner] = {}
        self.names = 0
        self.commands_sent = self.live_frames_sent = 0
        # The ledger, which a restore does not reset.
        self.epochs: set[tuple[str, int]] = set()
        self.losses: dict[str, int] = {}
        self.faults = 0
        self.unreadable = 0
        self.rows_when_closed: dict[str, tuple[StoredFrame, ...]] = {}
        self.last_epoch: dict[str, int] = {}
        self.last_rows: dict[str, tuple[StoredFrame, ...]] = {}
        for _ in range(runners):
            self.start_runner()

    # --- the client

    def init(self, source: SimulatedSource) -> str:
        uuid = f"01930000-0000-7000-8000-{len(self.sources) * 0x515151515151 % 2**48:012x}"
        self.sources[uuid] = source
        self.results.setdefault(uuid, [])
        tables = self.tables
        tables.scenarios[uuid] = Scenario(uuid, skips_poison=source.skips)
        tables.due_s[uuid] = self.now_s
        tables.history[uuid] = ()
        tables.progress[uuid] = Progress()
        tables.rows[uuid] = ()
        tables.gaps[uuid] = frozenset()
        tables.losses_in_a_row[uuid] = 0
        self.losses[uuid] = 0
        return uuid

    def shutdown(self, uuid: str) -> None:
        if uuid in self.tables.scenarios:
            event = build_shutdown_request()
            self._apply_event(self.tables.scenarios[uuid], event)

    def state(self, uuid: str) -> State:
        return self.tables.scenarios[uuid].state

    # --- the leader

    def tick(self) -> None:
        self.write_plan(self.make_plan())

    def make_plan(self) -> Plan:
        """Return the leader's plan. Other steps may happen before it is written."""
        scenario_views = [
            self._read_scenario(scenario)
            for scenario in self.tables.scenarios.values()
            if scenario.state != State.INACTIVE
        ]
        snapshot = Snapshot(
            scenario_views, self.now_s, self.now_db_s, self._caught_up_db_s(), self.probes_received_since_s
        )
        return reconcile(self.memory, snapshot, self.retry_policy, TIMING)

    def write_plan(self, plan: Plan) -> None:
        for scenario_view, event in plan.events:
            self._apply_event(scenario_view.scenario, event)
        for command in plan.commands:
            self._send_command(command)
        self.memory = plan.memory

    def take_over(self) -> None:
        """Another leader takes over without memory, so a runner that drained and left looks like one that died."""
        self.faults += any(scenario.runner not in {None, *self.runners} for scenario in self.tables.scenarios.values())
        self.memory = LeaderState()

    @property
    def now_db_s(self) -> float:
        return DATABASE_CLOCK_OFFSET_S + self.now_s

    def _read_scenario(self, scenario: Scenario) -> ScenarioView:
        uuid = scenario.scenario_uuid
        waits = scenario.state is State.IN_STARTUP_PROCESSING and any(
            (row.key, row.kind, row.epoch) == (uuid, "deploy", scenario.epoch) for row in self.tables.outbox
        )
        due = self.tables.due_s[uuid] <= self.now_s
        return ScenarioView(scenario, self.tables.progress[uuid], due=due, deploy_waits=waits)

    def _caught_up_db_s(self) -> float | None:
        """Return the lowest time of all partitions, None if one is unknown under the current topic id."""
        found = [self.tables.caught_up.get(uuid, (0, 0.0)) for uuid in self.results]
        if any(topic_id != self.topic_id for topic_id, _ in found):
            return None
        return min((caught_up_s for _, caught_up_s in found), default=None)

    def _send_command(self, outgoing: OutgoingCommand) -> None:
        if outgoing.kind == "deploy":
            scenario = self.tables.scenarios.get(outgoing.scenario_uuid)
            if scenario is None or scenario.state not in {State.IN_STARTUP_PROCESSING, State.ACTIVE}:
                return
            row = self._deploy_row(scenario)
        else:
            assert outgoing.command is not None
            value = encode(outgoing.command)
            row = OutboxRow(outgoing.runner, outgoing.scenario_uuid, outgoing.kind, outgoing.epoch, value)
        waiting = {(other.runner, other.key, other.kind, other.epoch) for other in self.tables.outbox}
        if (row.runner, row.key, row.kind, row.epoch) not in waiting:
            self._add(row)

    def _add(self, row: OutboxRow) -> None:
        self.tables.outbox = (*self.tables.outbox, row)
        self.commands_sent += 1

    def _deploy_row(self, scenario: Scenario) -> OutboxRow:
        uuid, progress = scenario.scenario_uuid, self.tables.progress[scenario.scenario_uuid]
        resume = ResumePoint(
            progress.next_frame, progress.origin_pts, progress.time_base, progress.last_pts, progress.last_time_s
        )
        deploy = Deploy(
            uuid, scenario.epoch, "clip", "motion", resume=resume, attempt=scenario.attempt, skips=scenario.skips
        )
        return OutboxRow(scenario.runner or "", uuid, "deploy", scenario.epoch, encode(deploy))

    # --- the statement that applies an event

    def _apply_event(self, read: Scenario, event: Event) -> None:
        uuid = read.scenario_uuid
        decision = decide(read, event)
        current = self.tables.scenarios.get(uuid)
        if decision.after is None or current is None or (current.state, current.epoch) != (read.state, read.epoch):
            return
        after, tables = decision.after, self.tables
        if decision.send is Send.DEPLOY:
            progress = tables.progress[uuid]
            after = msgspec.structs.replace(after, resume_frame=progress.next_frame)
            tables.progress[uuid] = msgspec.structs.replace(progress, epoch=after.epoch)
            self._note_epoch(uuid, after.epoch)
        if after.state is State.INACTIVE:
            tables.progress[uuid] = msgspec.structs.replace(tables.progress[uuid], closed=True)
        self._note_loss(uuid, event)
        tables.scenarios[uuid] = after
        tables.due_s[uuid] = self.now_s + decision.delay_s
        tables.history[uuid] = (*tables.history[uuid], HistoryRow(read.state, event.kind, after.state, after.epoch))
        if decision.send is Send.DEPLOY:
            self._add(self._deploy_row(after))
        if decision.send is Send.STOP:
            self._add(OutboxRow(after.runner or "", uuid, "stop", after.epoch, encode(StopWork(uuid, after.epoch))))

    def _note_epoch(self, uuid: str, epoch: int) -> None:
        if (uuid, epoch) in self.epochs or epoch <= self.last_epoch.get(uuid, 0):
            raise violation(4, f"epoch {epoch} is assigned after {self.last_epoch.get(uuid, 0)}")
        self.epochs.add((uuid, epoch))
        self.last_epoch[uuid] = epoch

    def _note_loss(self, uuid: str, event: Event) -> None:
        if event.kind not in {Kind.LOST, Kind.SKIPPED, Kind.FAILED} or event.error == FATAL:
            return
        self.losses[uuid] += 1
        self.tables.losses_in_a_row[uuid] += 1
        in_a_row = self.tables.losses_in_a_row[uuid]
        if event.kind is not Kind.LOST and in_a_row < self.retry_policy.max_attempts:
            raise violation(8, f"given up after {in_a_row} consecutive losses: {event.reason}")
        if event.kind is Kind.SKIPPED:
            self.tables.losses_in_a_row[uuid] = 0

    # --- the relay and the topic of commands

    def publish(self, index: int = 0) -> None:
        """Publish the first waiting row of the key that `index` selects."""
        if not self.tables.outbox or self.probes_received_since_s is None:
            return
        key = self.tables.outbox[index % len(self.tables.outbox)].key
        row = next(row for row in self.tables.outbox if row.key == key)
        self.tables.outbox = tuple(other for other in self.tables.outbox if other is not row)
        self._deliver_command(row.runner, row.key, row.command)

    def _deliver_command(self, runner: str, key: str, command: bytes) -> None:
        if runner in self.runners:
            self.runners[runner].commands.append((key, command))

    def keep_copy(self, runner: SimulatedRunner, index: int) -> None:
        """A relay froze while publishing, so that a command in the topic arrives once more later."""
        if runner.commands:
            key, command = runner.commands[index % len(runner.commands)]
            self.late_commands.append((runner.name, key, command))

    def release_copy(self, index: int) -> None:
        if self.late_commands:
            self._deliver_command(*self.late_commands.pop(index % len(self.late_commands)))

    def lose_command(self, runner: SimulatedRunner, index: int) -> None:
        if runner.commands:
            del runner.commands[index % len(runner.commands)]

    # --- runners and workers

    def start_runner(self) -> SimulatedRunner:
        self.names += 1
        runner = SimulatedRunner(f"r{self.names}", RunnerState(self.capacity), mode_since_s=self.now_s)
        self.runners[runner.name] = runner
        self.report(runner)
        return runner

    def take_command(self, runner: SimulatedRunner, index: int = 0) -> None:
        """Take the first command of the key that `index` selects. Only messages of the same key keep their order."""
        if not runner.commands or runner.mode is not RunnerMode.HEALTHY or self.probes_received_since_s is None:
            return
        key = runner.commands[index % len(runner.commands)][0]
        position = next(n for n, (other, _) in enumerate(runner.commands) if other == key)
        try:
            command: Command = decode_command(runner.commands.pop(position)[1])
        except MessageError:
            self.unreadable += 1
            return
        runner.state, action = apply_command(runner.state, command, self.now_s)
        self._apply_action(runner, action)
        self.report(runner)

    def _apply_action(self, runner: SimulatedRunner, action: Action) -> None:
        match action:
            case Launch(deploy=deploy):
                index = 0 if deploy.resume.last_pts is None else deploy.resume.last_pts // PTS_STEP + 1
                uuid = deploy.scenario_uuid
                runner.workers[uuid] = SimulatedWorker(uuid, deploy, deploy.resume.next_frame, index)
            case Finish(scenario_uuid=uuid, reason=reason):
                if uuid in runner.workers and runner.workers[uuid].finishing is None:
                    runner.workers[uuid].finishing = reason
            case Kill(scenario_uuid=uuid):
                runner.workers.pop(uuid, None)

    def work(self, runner: SimulatedRunner, uuid: str) -> None:
        """The worker's next step: a frame, its end marker or its end. Without Kafka it does nothing."""
        worker = runner.workers.get(uuid)
        if worker is None or runner.mode is RunnerMode.CUT_OFF or self.probes_received_since_s is None:
            return
        source = self.sources[uuid]
        if worker.end_sent:
            self._end(runner, worker, worker.finishing or EndReason.FINISHED)
        elif worker.finishing or (not source.live and worker.source_index >= source.frames):
            reason = worker.finishing or EndReason.FINISHED
            self._send(End(uuid, worker.deploy.epoch, worker.next_frame - 1, reason, worker.gaps))
            worker.end_sent = True
        elif (skipped := self._skipped(worker)) > 0:
            worker.gaps = (Gap(worker.source_index, worker.source_index + skipped, GapReason.SKIPPED, skipped),)
            worker.source_index += skipped
        elif worker.source_index in source.poison:
            self._end(runner, worker, EndReason.CRASHED, waits_for=WorkerWait.INFERENCE)
        elif worker.source_index == source.fatal:
            self._end(runner, worker, EndReason.ERROR, error=FATAL)
        else:
            self._send_frame(runner, worker, source)

    def _skipped(self, worker: SimulatedWorker) -> int:
        last_pts = worker.source_index * PTS_STEP - PTS_STEP if worker.source_index else None
        return sum(skip.frames for skip in worker.deploy.skips if skip.after_pts == last_pts)

    def _send_frame(self, runner: SimulatedRunner, worker: SimulatedWorker, source: SimulatedSource) -> None:
        self.live_frames_sent += 1
        pts = self.live_frames_sent if source.live else worker.source_index * PTS_STEP
        epoch, uuid = worker.deploy.epoch, worker.uuid
        at = "2026-01-01T00:00:00Z"
        self._send(Frame(uuid, epoch, worker.next_frame, pts, "1/10", 0, pts / 10, at, 640, 480, gaps=worker.gaps))
        worker.gaps = ()
        worker.source_index, worker.next_frame = worker.source_index + 1, worker.next_frame + 1
        runner.state = record_worker_progress(runner.state, uuid, epoch, worker.next_frame, WorkerWait.SOURCE)

    def _send(self, message: Result) -> None:
        self.results[message.scenario_uuid].append(encode(message))

    def _end(
        self, runner: SimulatedRunner, worker: SimulatedWorker, reason: EndReason,
        error: ErrorInfo | None = None, waits_for: WorkerWait = WorkerWait.SOURCE,
    ) -> None:  # fmt: skip
        uuid, epoch = worker.uuid, worker.deploy.epoch
        state = record_worker_progress(runner.state, uuid, epoch, worker.next_frame, waits_for)
        runner.state = record_worker_end(state, uuid, epoch, reason, error, fatal=error is not None)
        del runner.workers[uuid]
        self.report(runner)

    def report(self, runner: SimulatedRunner) -> None:
        """Send the runner's report, which the leader receives at once. A report that cannot be sent now is dropped."""
        if runner.mode in {RunnerMode.CUT_OFF, RunnerMode.FROZEN} or self.probes_received_since_s is None:
            return
        runner.reports, runner.reported_s = runner.reports + 1, self.now_s
        value = encode(
            build_report(runner.state, runner=runner.name, pool="default", number=runner.reports, version="1")
        )
        self.receive_report(value)
        if runner.state.draining and is_empty(runner.state):
            self.runners.pop(runner.name, None)

    def receive_report(self, value: bytes) -> None:
        try:
            report = decode_runner_event(value)
        except MessageError:
            self.unreadable += 1
            return
        assert isinstance(report, Report)
        self.memory = apply_reports(self.memory, [(report, self.now_s)])

    # --- the inbox

    def store(self, uuid: str, limit: int = 1) -> None:
        """The inbox stores up to `limit` messages of a partition in order, then checks whether it has caught up."""
        topic_id, position = self.tables.positions.get(uuid, (self.topic_id, 0))
        if topic_id != self.topic_id:
            position = 0
        for value in self.results[uuid][position : position + limit]:
            self._try_store(value)
            position += 1
        self.tables.positions[uuid] = (self.topic_id, position)
        noted = self.noted_ends.get(uuid)
        if noted and noted[0] == self.topic_id and position >= noted[1]:
            self.tables.caught_up[uuid] = (noted[0], noted[2])
            del self.noted_ends[uuid]

    def has_stored_all(self, uuid: str) -> bool:
        topic_id, position = self.tables.positions.get(uuid, (0, 0))
        return topic_id == self.topic_id and position >= len(self.results[uuid]) and uuid not in self.noted_ends

    def note_end(self, uuid: str) -> None:
        """The inbox notes the time and then the partition's end. It does so again once it has reached that end."""
        self.noted_ends.setdefault(uuid, (self.topic_id, len(self.results[uuid]), self.now_db_s))

    def _try_store(self, value: bytes) -> None:
        """Store a message. One that cannot be decoded becomes a dead letter."""
        try:
            message = decode_result(value)
        except MessageError:
            self.unreadable += 1
        else:
            self._store_one(message)

    def _store_one(self, message: Result) -> None:
        uuid, tables = message.scenario_uuid, self.tables
        progress = tables.progress.get(uuid)
        if progress is None:
            return
        tables.progress[uuid], verdict = advance(progress, message)
        if verdict is not Verdict.STORED:
            return
        if progress.closed or message.epoch < progress.epoch:
            raise violation(4, f"epoch {message.epoch} stored something, but {progress.epoch} is current")
        if isinstance(message, Frame):
            if message.frame_number != len(tables.rows[uuid]):
                raise violation(5, f"frame {message.frame_number} is stored after {len(tables.rows[uuid])} rows")
            tables.rows[uuid] = (*tables.rows[uuid], StoredFrame(message.pts, message.epoch))
            tables.losses_in_a_row[uuid] = 0
        if isinstance(message, Frame | End):
            gaps = select_gaps(progress, message)
            tables.gaps[uuid] |= {(message.previous_frame, gap.from_s) for gap in gaps}

    def read_again(self, uuid: str, back: int) -> None:
        """The inbox continues at an earlier position."""
        topic_id, position = self.tables.positions.get(uuid, (self.topic_id, 0))
        self.tables.positions[uuid] = (topic_id, max(0, position - back))

    # --- time

    def pass_time(self, seconds: float) -> None:
        """Let time pass: healthy runners report, runners with a fault give up after GIVE_UP_S. Nothing else happens."""
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            for runner in list(self.runners.values()):
                self._age_runner(runner)

    def _age_runner(self, runner: SimulatedRunner) -> None:
        runner.state = forget_old_epochs(runner.state, self.now_s)
        fault_s = self.now_s - runner.mode_since_s
        if (runner.mode is RunnerMode.CUT_OFF or self.probes_received_since_s is None) and fault_s > GIVE_UP_S:
            for worker in list(runner.workers.values()):
                self._end(runner, worker, EndReason.CUT_OFF)
        if runner.mode is RunnerMode.NOT_RECEIVING and fault_s > GIVE_UP_S:
            self.kill_runner(runner)
        elif self.now_s - runner.reported_s >= 1.0:
            self.report(runner)

    # --- faults. Those that may cost a scenario an attempt are counted.

    def kill_runner(self, runner: SimulatedRunner) -> None:
        self.faults += 1
        self.runners.pop(runner.name, None)
        self.start_runner()

    def crash_worker(self, runner: SimulatedRunner, uuid: str) -> None:
        self.faults += 1
        self._end(runner, runner.workers[uuid], EndReason.CRASHED)

    def set_mode(self, runner: SimulatedRunner, mode: RunnerMode) -> None:
        self.faults += mode is not RunnerMode.HEALTHY
        runner.mode, runner.mode_since_s = mode, self.now_s
        if mode is RunnerMode.HEALTHY:
            self.report(runner)

    def drain(self, runner: SimulatedRunner) -> None:
        if runner.mode is not RunnerMode.HEALTHY or runner.state.draining:
            return
        runner.state, finishes = drain(runner.state)
        for finish in finishes:
            self._apply_action(runner, finish)
        self.start_runner()
        self.report(runner)

    def kafka_away(self) -> None:
        """The broker is unavailable to all until `kafka_back`. No lease expires, and runners neither receive nor send."""
        self.probes_received_since_s = None
        for runner in self.runners.values():
            runner.mode_since_s = (
                max(runner.mode_since_s, self.now_s) if runner.mode is RunnerMode.HEALTHY else runner.mode_since_s
            )

    def kafka_back(self) -> None:
        if self.probes_received_since_s is not None:
            return
        self.probes_received_since_s = self.now_s  # runners report at their next regular time

    def empty_kafka(self) -> None:
        """All topics are deleted and created again. Results not stored yet and commands not read yet are lost."""
        self.faults += 1
        self.topic_id += 1
        self.results = {uuid: [] for uuid in self.results}
        self.noted_ends, self.late_commands, self.late_reports = {}, [], []
        for runner in self.runners.values():
            runner.commands = []

    def back_up(self) -> None:
        self.backup = self.tables.backup()

    def restore(self) -> None:
        """Restore the tables of the backup. The clock, Kafka, the runners and the leader's memory are not reset."""
        if self.backup is None:
            return
        self.faults += 1
        self.now_s += STEP_S  # a restore takes time
        self.tables, self.backup = self.backup, None
        self.noted_ends = {}
        self.rows_when_closed = {u: rows for u, rows in self.rows_when_closed.items() if self._is_inactive(u)}
        self.last_rows = {}

    def _is_inactive(self, uuid: str) -> bool:
        scenario = self.tables.scenarios.get(uuid)
        return scenario is not None and scenario.state is State.INACTIVE

    def keep_report(self, runner: SimulatedRunner) -> None:
        """A copy of the runner's last report arrives again later."""
        if runner.reports:
            kept = build_report(runner.state, runner=runner.name, pool="default", number=runner.reports, version="1")
            self.late_reports.append(encode(kept))

    def release_report(self, index: int) -> None:
        if self.late_reports:
            self.receive_report(self.late_reports.pop(index % len(self.late_reports)))

    # --- runs without faults

    def run_rounds(self, steps: int = 1) -> None:
        """Run rounds of half a second in which all pending work is done, in the order in which it flows."""
        for _ in range(steps):
            for _ in self.run_round():
                pass

    def run_round(self) -> Iterator[None]:
        """Run one round in small steps. Yield after each."""
        self.pass_time(STEP_S)
        yield
        self.tick()
        yield
        while self.tables.outbox and self.probes_received_since_s is not None:
            self.publish()
            yield
        for runner in list(self.runners.values()):
            while runner.commands and runner.mode is RunnerMode.HEALTHY and self._is_reachable(runner):
                self.take_command(runner)
                yield
            for uuid in list(runner.workers):
                self.work(runner, uuid)
                yield
        for uuid in self.results if self.probes_received_since_s is not None else ():
            self.note_end(uuid)
            yield
            for _ in range(len(self.results[uuid]) + 1):
                if self.has_stored_all(uuid):
                    break
                self.store(uuid)
                yield

    def _is_reachable(self, runner: SimulatedRunner) -> bool:
        return self.probes_received_since_s is not None and runner.name in self.runners

    def run_inbox(self) -> None:
        if self.probes_received_since_s is None:
            return
        for uuid, log in self.results.items():
            self.note_end(uuid)
            self.store(uuid, len(log) + 1)

    def run_until(self, reached: Callable[[], bool], limit_s: float = 120.0) -> None:
        """Run without faults until `reached`, which must happen within `limit_s`."""
        end_s = self.now_s + limit_s
        while not reached():
            if self.now_s >= end_s:
                raise violation(7, f"stuck: {self.tables.scenarios}")
            self.run_rounds()
            self.check()

    def settle(self) -> None:
        """End all faults. Every scenario must end, every runner must become empty, and then no more commands may be sent."""
        self.end_all_faults()
        for uuid, source in self.sources.items():
            if source.live:
                self.shutdown(uuid)
        self.run_until(self.is_quiet, 400.0)
        sent = self.commands_sent
        for _ in range(20):
            self.run_rounds()
        if self.commands_sent != sent or not self.is_quiet():
            raise violation(7, "commands are sent although everything has ended")
        self.check()

    def end_all_faults(self) -> None:
        self.kafka_back()
        for runner in list(self.runners.values()):
            if runner.mode is not RunnerMode.HEALTHY:
                runner.mode = RunnerMode.HEALTHY
                self.report(runner)

    def is_quiet(self) -> bool:
        views = self.memory.runners.values()
        return (
            all(scenario.state is State.INACTIVE for scenario in self.tables.scenarios.values())
            and not self.tables.outbox
            and all(is_empty(runner.state) and not runner.commands for runner in self.runners.values())
            and all(
                self._is_lease_over(view) or (view.mark is None and not (view.report and view.report.entries))
                for view in views
            )
        )

    def _is_lease_over(self, view: RunnerView) -> bool:
        return is_runner_lease_expired(
            view.last_seen_s, self.probes_received_since_s, self.now_s, TIMING.runner_lease_s
        )

    # --- checks

    def check(self) -> None:
        check_simulation(self)

    def workers(self) -> Iterator[tuple[SimulatedRunner, str]]:
        for runner in self.runners.values():
            for uuid in runner.workers:
                yield runner, uuid
