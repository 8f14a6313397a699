"""A small world around the real decisions of the domain: tables, outbox, Kafka, runners, inbox and leader, in memory.

Nothing in it decides: what a scenario, a runner, the inbox or the leader does is asked of vidflow.domain. What the world adds is
what lies between them and can go wrong. It keeps a ledger beside the tables, which no restore takes back, and `check` compares
the two with the invariants after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from tests.invariants.holds import all_hold, broken
from tests.invariants.parts import FATAL, PTS, Mode, Move, Runner, Source, Stored, Tables, Waits, Worker

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.leader import Given, Known, Memory, Plan, RunnerView, Timing, World, hear
from vidflow.domain.lease import runner_lease_over
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
    Resume,
    StopWork,
    Waiting,
    decode_command,
    decode_result,
    decode_runner_event,
    encode,
)
from vidflow.domain.progress import Progress, Verdict, advance
from vidflow.domain.reconcile import reconcile
from vidflow.domain.runner import (
    Action,
    Charge,
    Finish,
    Kill,
    Launch,
    drain,
    forget_old_epochs,
    is_empty,
    obey,
    report,
    worker_ended,
    worker_progressed,
)
from vidflow.domain.scenario import Event, Kind, Limits, Scenario, Send, State, decide

LIMITS: Final = Limits(attempts=3)
TIMING: Final = Timing()
EPOCH_0_S: Final = 1_000_000.0
"""What the database's clock shows when the leader's shows 0."""
PATIENCE_S: Final = 30.0
"""How long a runner bears to be cut off, or deaf."""
STEP_S: Final = 0.5


class Simulation:
    """All of it, and the faults that may befall it. A method is one step that the world may take at any moment."""

    def __init__(self, runners: int = 2, capacity: int = 2, limits: Limits = LIMITS) -> None:
        self.limits, self.capacity = limits, capacity
        self.now_s = 100.0
        self.tables = Tables()
        self.snapshot: Tables | None = None
        self.sources: dict[str, Source] = {}
        self.memory = Memory()
        self.hearing_since_s: float | None = 0.0
        self.results: dict[str, list[bytes]] = {}
        self.topic_id = 1
        self.noted: dict[str, tuple[int, int, float]] = {}
        self.late_commands: list[tuple[str, str, bytes]] = []
        self.late_reports: list[bytes] = []
        self.runners: dict[str, Runner] = {}
        self.names = 0
        self.sent = self.moments = 0
        # The ledger: what no restore takes back.
        self.epochs: set[tuple[str, int]] = set()
        self.losses: dict[str, int] = {}
        self.faults = 0
        self.closed_with: dict[str, tuple[Stored, ...]] = {}
        self.last_epoch: dict[str, int] = {}
        self.last_rows: dict[str, tuple[Stored, ...]] = {}
        for _ in range(runners):
            self.start_runner()

    # --- the client

    def init(self, source: Source) -> str:
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
            event = Event(kind=Kind.SHUTDOWN_REQUESTED, reason="shutdown requested")
            self._move(self.tables.scenarios[uuid], event)

    def state(self, uuid: str) -> State:
        return self.tables.scenarios[uuid].state

    # --- the leader

    def tick(self) -> None:
        self.write(self.look())

    def look(self) -> Plan:
        """What the leader makes of the world; what it decided may be overtaken before it is written."""
        known = [
            self._known(scenario) for scenario in self.tables.scenarios.values() if scenario.state != State.INACTIVE
        ]
        world = World(known, self.now_s, self.now_db_s, self._caught_up_db_s(), self.hearing_since_s)
        return reconcile(self.memory, world, self.limits, TIMING)

    def write(self, plan: Plan) -> None:
        for known, event in plan.events:
            self._move(known.scenario, event)
        for given in plan.commands:
            self._add_command(given)
        self.memory = plan.memory

    def take_over(self) -> None:
        """Another leader: it remembers nothing, so a runner that drained and left looks like one that died."""
        self.faults += any(scenario.runner not in {None, *self.runners} for scenario in self.tables.scenarios.values())
        self.memory = Memory()

    @property
    def now_db_s(self) -> float:
        return EPOCH_0_S + self.now_s

    def _known(self, scenario: Scenario) -> Known:
        uuid = scenario.scenario_uuid
        waits = scenario.state is State.IN_STARTUP_PROCESSING and any(
            (row.key, row.kind, row.epoch) == (uuid, "deploy", scenario.epoch) for row in self.tables.outbox
        )
        due = self.tables.due_s[uuid] <= self.now_s
        return Known(scenario, self.tables.progress[uuid], due=due, deploy_waits=waits)

    def _caught_up_db_s(self) -> float | None:
        """Of all partitions the least; a partition of which nothing is known under the present topic id says no."""
        found = [self.tables.caught_up.get(uuid, (0, 0.0)) for uuid in self.results]
        return min((at for _, at in found), default=None) if all(id_ == self.topic_id for id_, _ in found) else None

    def _add_command(self, given: Given) -> None:
        if given.kind == "deploy":
            scenario = self.tables.scenarios.get(given.scenario_uuid)
            if scenario is None or scenario.state not in {State.IN_STARTUP_PROCESSING, State.ACTIVE}:
                return
            row = self._deploy_row(scenario)
        else:
            assert given.command is not None
            row = Waits(given.runner, given.scenario_uuid, given.kind, given.epoch, encode(given.command))
        waiting = {(one.runner, one.key, one.kind, one.epoch) for one in self.tables.outbox}
        if (row.runner, row.key, row.kind, row.epoch) not in waiting:
            self._add(row)

    def _add(self, row: Waits) -> None:
        self.tables.outbox = (*self.tables.outbox, row)
        self.sent += 1

    def _deploy_row(self, scenario: Scenario) -> Waits:
        uuid, progress = scenario.scenario_uuid, self.tables.progress[scenario.scenario_uuid]
        resume = Resume(
            progress.next_frame, progress.origin_pts, progress.time_base, progress.last_pts, progress.last_time_s
        )
        deploy = Deploy(
            uuid, scenario.epoch, "clip", "motion", resume=resume, attempt=scenario.attempt, skips=scenario.skips
        )
        return Waits(scenario.runner or "", uuid, "deploy", scenario.epoch, encode(deploy))

    # --- the one statement that moves a scenario

    def _move(self, read: Scenario, event: Event) -> None:
        uuid = read.scenario_uuid
        decision = decide(read, event)
        now = self.tables.scenarios.get(uuid)
        if decision.after is None or now is None or (now.state, now.epoch) != (read.state, read.epoch):
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
        tables.history[uuid] = (*tables.history[uuid], Move(read.state, event.kind, after.state, after.epoch))
        if decision.send is Send.DEPLOY:
            self._add(self._deploy_row(after))
        if decision.send is Send.STOP:
            self._add(Waits(after.runner or "", uuid, "stop", after.epoch, encode(StopWork(uuid, after.epoch))))

    def _note_epoch(self, uuid: str, epoch: int) -> None:
        if (uuid, epoch) in self.epochs or epoch <= self.last_epoch.get(uuid, 0):
            raise broken(4, f"epoch {epoch} is given out behind {self.last_epoch.get(uuid, 0)}")
        self.epochs.add((uuid, epoch))
        self.last_epoch[uuid] = epoch

    def _note_loss(self, uuid: str, event: Event) -> None:
        if event.kind not in {Kind.LOST, Kind.SKIPPED, Kind.FAILED} or event.error == FATAL:
            return
        self.losses[uuid] += 1
        self.tables.losses_in_a_row[uuid] += 1
        in_a_row = self.tables.losses_in_a_row[uuid]
        if event.kind is not Kind.LOST and in_a_row < self.limits.attempts:
            raise broken(8, f"given up after {in_a_row} losses in a row: {event.reason}")
        if event.kind is Kind.SKIPPED:
            self.tables.losses_in_a_row[uuid] = 0

    # --- the relay and the topic of commands

    def publish(self, index: int = 0) -> None:
        """The first waiting row of a key, of the one that `index` picks."""
        if not self.tables.outbox or self.hearing_since_s is None:
            return
        key = self.tables.outbox[index % len(self.tables.outbox)].key
        row = next(row for row in self.tables.outbox if row.key == key)
        self.tables.outbox = tuple(one for one in self.tables.outbox if one is not row)
        self._into_topic(row.runner, row.key, row.command)

    def _into_topic(self, runner: str, key: str, command: bytes) -> None:
        if runner in self.runners:
            self.runners[runner].commands.append((key, command))

    def keep_copy(self, runner: Runner, index: int) -> None:
        """A relay was frozen in the midst of publishing: what is in the topic comes once more, later."""
        if runner.commands:
            key, command = runner.commands[index % len(runner.commands)]
            self.late_commands.append((runner.name, key, command))

    def release_copy(self, index: int) -> None:
        if self.late_commands:
            self._into_topic(*self.late_commands.pop(index % len(self.late_commands)))

    def lose_command(self, runner: Runner, index: int) -> None:
        if runner.commands:
            del runner.commands[index % len(runner.commands)]

    # --- runners and workers

    def start_runner(self) -> Runner:
        self.names += 1
        runner = Runner(f"r{self.names}", Charge(self.capacity), mode_since_s=self.now_s)
        self.runners[runner.name] = runner
        self.report(runner)
        return runner

    def take_command(self, runner: Runner, index: int = 0) -> None:
        """The first command of a key, of the one that `index` picks: partitions overtake each other, a key's messages do not."""
        if not runner.commands or runner.mode is not Mode.WELL or self.hearing_since_s is None:
            return
        key = runner.commands[index % len(runner.commands)][0]
        place = next(n for n, (other, _) in enumerate(runner.commands) if other == key)
        command: Command = decode_command(runner.commands.pop(place)[1])
        runner.charge, action = obey(runner.charge, command, self.now_s)
        self._act(runner, action)
        self.report(runner)

    def _act(self, runner: Runner, action: Action) -> None:
        match action:
            case Launch(deploy=deploy):
                at = 0 if deploy.resume.last_pts is None else deploy.resume.last_pts // PTS + 1
                uuid = deploy.scenario_uuid
                runner.workers[uuid] = Worker(uuid, deploy, deploy.resume.next_frame, at)
            case Finish(scenario_uuid=uuid, reason=reason):
                if uuid in runner.workers and runner.workers[uuid].finishing is None:
                    runner.workers[uuid].finishing = reason
            case Kill(scenario_uuid=uuid):
                runner.workers.pop(uuid, None)

    def work(self, runner: Runner, uuid: str) -> None:
        """The worker's next step: a frame, its end marker, or its end. Without Kafka it stands still."""
        worker = runner.workers.get(uuid)
        if worker is None or runner.mode is Mode.CUT or self.hearing_since_s is None:
            return
        source = self.sources[uuid]
        if worker.said_end:
            self._end(runner, worker, worker.finishing or EndReason.FINISHED)
        elif worker.finishing or (not source.live and worker.at >= source.frames):
            reason = worker.finishing or EndReason.FINISHED
            self._send(End(uuid, worker.deploy.epoch, worker.number - 1, reason))
            worker.said_end = True
        elif (skipped := self._skipped(worker)) > 0:
            self._send(
                Gap(
                    uuid,
                    worker.deploy.epoch,
                    worker.number - 1,
                    worker.at,
                    worker.at + skipped,
                    GapReason.SKIPPED,
                    skipped,
                )
            )
            worker.at += skipped
        elif worker.at in source.poison:
            self._end(runner, worker, EndReason.CRASHED, waits_for=Waiting.INFERENCE)
        elif worker.at == source.fatal:
            self._end(runner, worker, EndReason.ERROR, error=FATAL)
        else:
            self._send_frame(runner, worker, source)

    def _skipped(self, worker: Worker) -> int:
        last_pts = worker.at * PTS - PTS if worker.at else None
        return sum(skip.frames for skip in worker.deploy.skips if skip.after_pts == last_pts)

    def _send_frame(self, runner: Runner, worker: Worker, source: Source) -> None:
        self.moments += 1
        pts = self.moments if source.live else worker.at * PTS
        epoch, uuid = worker.deploy.epoch, worker.uuid
        self._send(Frame(uuid, epoch, worker.number, pts, "1/10", 0, pts / 10, "2026-01-01T00:00:00Z", 640, 480))
        worker.at, worker.number = worker.at + 1, worker.number + 1
        runner.charge = worker_progressed(runner.charge, uuid, epoch, worker.number, Waiting.SOURCE)

    def _send(self, message: Result) -> None:
        self.results[message.scenario_uuid].append(encode(message))

    def _end(
        self, runner: Runner, worker: Worker, reason: EndReason,
        error: ErrorInfo | None = None, waits_for: Waiting = Waiting.SOURCE,
    ) -> None:  # fmt: skip
        uuid, epoch = worker.uuid, worker.deploy.epoch
        charge = worker_progressed(runner.charge, uuid, epoch, worker.number, waits_for)
        runner.charge = worker_ended(charge, uuid, epoch, reason, error, fatal=error is not None)
        del runner.workers[uuid]
        self.report(runner)

    def report(self, runner: Runner) -> None:
        """The runner's report, heard at once. One that cannot be sent now is overtaken by the next that can."""
        if runner.mode in {Mode.CUT, Mode.FROZEN} or self.hearing_since_s is None:
            return
        runner.reports, runner.reported_s = runner.reports + 1, self.now_s
        sent = encode(report(runner.charge, runner=runner.name, pool="default", number=runner.reports, version="1"))
        self.hear(sent)
        if runner.charge.draining and is_empty(runner.charge):
            self.runners.pop(runner.name, None)

    def hear(self, sent: bytes) -> None:
        told = decode_runner_event(sent)
        assert isinstance(told, Report)
        self.memory = hear(self.memory, told, self.now_s)

    # --- the inbox

    def store(self, uuid: str, most: int = 1) -> None:
        """The inbox takes up to `most` messages of a partition, in order, and then looks whether it has caught up."""
        topic_id, position = self.tables.positions.get(uuid, (self.topic_id, 0))
        if topic_id != self.topic_id:
            position = 0
        for value in self.results[uuid][position : position + most]:
            self._store_one(decode_result(value))
            position += 1
        self.tables.positions[uuid] = (self.topic_id, position)
        noted = self.noted.get(uuid)
        if noted and noted[0] == self.topic_id and position >= noted[1]:
            self.tables.caught_up[uuid] = (noted[0], noted[2])
            del self.noted[uuid]

    def has_stored_all(self, uuid: str) -> bool:
        topic_id, position = self.tables.positions.get(uuid, (0, 0))
        return topic_id == self.topic_id and position >= len(self.results[uuid]) and uuid not in self.noted

    def note_end(self, uuid: str) -> None:
        """The inbox notes the time, then asks for the partition's end. It asks again once it has reached the last one."""
        self.noted.setdefault(uuid, (self.topic_id, len(self.results[uuid]), self.now_db_s))

    def _store_one(self, message: Result) -> None:
        uuid, tables = message.scenario_uuid, self.tables
        progress = tables.progress.get(uuid)
        if progress is None:
            return
        tables.progress[uuid], verdict = advance(progress, message)
        if verdict is not Verdict.STORED:
            return
        if progress.closed or message.epoch < progress.epoch:
            raise broken(4, f"epoch {message.epoch} stored something while {progress.epoch} counts")
        if isinstance(message, Frame):
            if message.frame_number != len(tables.rows[uuid]):
                raise broken(5, f"frame {message.frame_number} is stored behind {len(tables.rows[uuid])} rows")
            tables.rows[uuid] = (*tables.rows[uuid], Stored(message.pts, message.epoch))
            tables.losses_in_a_row[uuid] = 0
        if isinstance(message, Gap):
            tables.gaps[uuid] |= {(message.after_frame, message.from_s)}

    def read_again(self, uuid: str, back: int) -> None:
        """The inbox begins again at an earlier position."""
        topic_id, position = self.tables.positions.get(uuid, (self.topic_id, 0))
        self.tables.positions[uuid] = (topic_id, max(0, position - back))

    # --- time

    def pass_time(self, seconds: float) -> None:
        """Time goes by: who is well reports, who has been in trouble for too long gives up. Nothing else moves."""
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            for runner in list(self.runners.values()):
                self._grow_older(runner)

    def _grow_older(self, runner: Runner) -> None:
        runner.charge = forget_old_epochs(runner.charge, self.now_s)
        trouble_s = self.now_s - runner.mode_since_s
        if (runner.mode is Mode.CUT or self.hearing_since_s is None) and trouble_s > PATIENCE_S:
            for worker in list(runner.workers.values()):
                self._end(runner, worker, EndReason.CUT_OFF)
        if runner.mode is Mode.DEAF and trouble_s > PATIENCE_S:
            self.kill_runner(runner)
        elif self.now_s - runner.reported_s >= 1.0:
            self.report(runner)

    # --- faults. What may rightly cost a scenario an attempt is counted.

    def kill_runner(self, runner: Runner) -> None:
        self.faults += 1
        self.runners.pop(runner.name, None)
        self.start_runner()

    def crash_worker(self, runner: Runner, uuid: str) -> None:
        self.faults += 1
        self._end(runner, runner.workers[uuid], EndReason.CRASHED)

    def trouble(self, runner: Runner, mode: Mode) -> None:
        self.faults += mode is not Mode.WELL
        runner.mode, runner.mode_since_s = mode, self.now_s
        if mode is Mode.WELL:
            self.report(runner)

    def drain(self, runner: Runner) -> None:
        if runner.mode is not Mode.WELL or runner.charge.draining:
            return
        runner.charge, finishes = drain(runner.charge)
        for finish in finishes:
            self._act(runner, finish)
        self.start_runner()
        self.report(runner)

    def kafka_away(self) -> None:
        """The broker is away from all, for as long as it takes: no lease runs out, and no runner hears or says a thing."""
        self.hearing_since_s = None
        for runner in self.runners.values():
            runner.mode_since_s = (
                max(runner.mode_since_s, self.now_s) if runner.mode is Mode.WELL else runner.mode_since_s
            )

    def kafka_back(self) -> None:
        if self.hearing_since_s is not None:
            return
        self.hearing_since_s = self.now_s  # the runners report when it is their time

    def empty_kafka(self) -> None:
        """All topics are gone and are made anew: what no inbox has stored and no runner has read is lost."""
        self.faults += 1
        self.topic_id += 1
        self.results = {uuid: [] for uuid in self.results}
        self.noted, self.late_commands, self.late_reports = {}, [], []
        for runner in self.runners.values():
            runner.commands = []

    def back_up(self) -> None:
        self.snapshot = self.tables.backup()

    def restore(self) -> None:
        """The database is as it was at the backup; its clock, Kafka, the runners and what the leader remembers are not."""
        if self.snapshot is None:
            return
        self.faults += 1
        self.now_s += STEP_S  # a restore takes its time
        self.tables, self.snapshot = self.snapshot, None
        self.noted = {}
        self.closed_with = {u: rows for u, rows in self.closed_with.items() if self._is_inactive(u)}
        self.last_rows = {}

    def _is_inactive(self, uuid: str) -> bool:
        scenario = self.tables.scenarios.get(uuid)
        return scenario is not None and scenario.state is State.INACTIVE

    def keep_report(self, runner: Runner) -> None:
        """A copy of the runner's last report will be heard again later."""
        if runner.reports:
            kept = report(runner.charge, runner=runner.name, pool="default", number=runner.reports, version="1")
            self.late_reports.append(encode(kept))

    def release_report(self, index: int) -> None:
        if self.late_reports:
            self.hear(self.late_reports.pop(index % len(self.late_reports)))

    # --- everything goes well

    def flow(self, steps: int = 1) -> None:
        """Half a second in which all that waits is done, in the order of its way."""
        for _ in range(steps):
            for _ in self.round():
                pass

    def round(self) -> Iterator[None]:
        """The same, one small step at a time."""
        self.pass_time(STEP_S)
        yield
        self.tick()
        yield
        while self.tables.outbox and self.hearing_since_s is not None:
            self.publish()
            yield
        for runner in list(self.runners.values()):
            while runner.commands and runner.mode is Mode.WELL and self._is_there(runner):
                self.take_command(runner)
                yield
            for uuid in list(runner.workers):
                self.work(runner, uuid)
                yield
        for uuid in self.results if self.hearing_since_s is not None else ():
            self.note_end(uuid)
            yield
            for _ in range(len(self.results[uuid]) + 1):
                if self.has_stored_all(uuid):
                    break
                self.store(uuid)
                yield

    def _is_there(self, runner: Runner) -> bool:
        return self.hearing_since_s is not None and runner.name in self.runners

    def flow_inbox(self) -> None:
        if self.hearing_since_s is None:
            return
        for uuid, log in self.results.items():
            self.note_end(uuid)
            self.store(uuid, len(log) + 1)

    def until(self, reached: Callable[[], bool], most_s: float = 120.0) -> None:
        """Lets all go well until `reached`, which must come within `most_s`."""
        end_s = self.now_s + most_s
        while not reached():
            if self.now_s >= end_s:
                raise broken(7, f"stuck: {self.tables.scenarios}")
            self.flow()
            self.check()

    def settle(self) -> None:
        """No fault any more: every scenario ends, every runner's list gets empty, and then nothing is sent any more."""
        self.mend()
        for uuid, source in self.sources.items():
            if source.live:
                self.shutdown(uuid)
        self.until(self.is_quiet, 400.0)
        sent = self.sent
        for _ in range(20):
            self.flow()
        if self.sent != sent or not self.is_quiet():
            raise broken(7, "commands are sent though all is done")
        self.check()

    def mend(self) -> None:
        self.kafka_back()
        for runner in list(self.runners.values()):
            if runner.mode is not Mode.WELL:
                runner.mode = Mode.WELL
                self.report(runner)

    def is_quiet(self) -> bool:
        views = self.memory.runners.values()
        return (
            all(scenario.state is State.INACTIVE for scenario in self.tables.scenarios.values())
            and not self.tables.outbox
            and all(is_empty(runner.charge) and not runner.commands for runner in self.runners.values())
            and all(
                self._is_old(view) or (view.mark is None and not (view.report and view.report.entries))
                for view in views
            )
        )

    def _is_old(self, view: RunnerView) -> bool:
        return runner_lease_over(view.heard_s, self.hearing_since_s, self.now_s, TIMING.runner_lease_s)

    # --- what must always hold

    def check(self) -> None:
        all_hold(self)

    def workers(self) -> Iterator[tuple[Runner, str]]:
        for runner in self.runners.values():
            for uuid in runner.workers:
                yield runner, uuid
