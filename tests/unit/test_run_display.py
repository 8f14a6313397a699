"""What `vidflow run` shows on a terminal, where rows and progress share the screen, and in a pipe."""

from __future__ import annotations

import datetime
import io
import os
import pty
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

import msgspec
import pytest

from vidflow.commands.run.display import Display, ProgressBar, StateLines, open_display
from vidflow.commands.run.output import WRITERS
from vidflow.contract import ErrorInfo, Parameters, ScenarioResponse
from vidflow.domain.scenario import State
from vidflow.domain.waiting import WaitingFor
from vidflow.settings import OutputFormat

FRAME_COUNT = 12
CREATED_AT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_CODE = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])")


class Screen:
    """The lines that a terminal shows after this output. Fails at a control sequence that it does not know."""

    def __init__(self, output: str) -> None:
        self.lines = [""]
        self._row = self._column = 0
        position = 0
        while position < len(output):
            if code := _CODE.match(output, position):
                self._control(*code.groups())
                position = code.end()
            else:
                self._put(output[position])
                position += 1

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._row += 1
            if self._row == len(self.lines):
                self.lines.append("")
        else:
            assert character.isprintable(), repr(character)
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1

    def _control(self, parameter: str, kind: str) -> None:
        if kind == "A":
            self._row = max(0, self._row - int(parameter or 1))
        elif kind == "K":
            assert parameter == "2"
            self.lines[self._row] = ""
        else:
            assert kind == "m" or parameter == "?25", (parameter, kind)


class Terminal:
    """A pseudo-terminal of 80 columns. Its output is read by a thread."""

    def __init__(self) -> None:
        self._leader, follower = pty.openpty()
        self.file: TextIO = os.fdopen(follower, "w", buffering=1)
        self._chunks: list[bytes] = []
        self._thread = threading.Thread(target=self._read, name="terminal")
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._leader, 65536)
            except OSError:  # the other side is closed
                return
            self._chunks.append(chunk)

    def close(self) -> str:
        """Close the terminal, and return all that was written to it."""
        self.file.close()
        self._thread.join()
        os.close(self._leader)
        return b"".join(self._chunks).decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def shown(output: str) -> list[str]:
    """Return the lines that a terminal shows after this output, without empty ones."""
    return [line.rstrip() for line in Screen(output).lines if line.strip()]


def scenario(
    state: str, frames_stored: int = 0, waiting_for: str | None = None, frames_expected: int | None = FRAME_COUNT
) -> ScenarioResponse:
    return ScenarioResponse(
        scenario_uuid="uuid", source="/clip.mp4", model="motion", fps="all", priority=0, parameters=Parameters(),
        state=State(state), outcome=None, error=None, epoch=1, attempt=0, runner="runner-1", pool="default", resume_frame=0,
        frames_stored=frames_stored, frames_expected=frames_expected, waiting_for=WaitingFor(waiting_for) if waiting_for else None,
        created_at=CREATED_AT, state_changed_at=CREATED_AT, skips=(),
    )  # fmt: skip


def frames(display: Display, pages: Sequence[Sequence[int]]) -> Iterator[msgspec.Raw]:
    """Yield frames page by page, with the progress shown between two pages, as `vidflow run` does."""
    for page in pages:
        display.update(scenario("active", page[0]))
        display.hide()
        for number in page:
            frame = {
                "frame_number": number,
                "epoch": 1,
                "time_s": number / 4,
                "width": 8,
                "height": 8,
                "detections": [],
            }
            yield msgspec.Raw(msgspec.json.encode(frame))
    display.hide()


def plain_rows(output: OutputFormat) -> list[str]:
    """Return the rows as they are printed without a display."""
    out = io.StringIO()
    WRITERS[output](frames(StateLines(io.StringIO()), PAGES), out)
    return out.getvalue().splitlines()


PAGES = [[0], [1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("output", WRITERS)
def test_rows_and_progress_on_one_terminal_do_not_overwrite_each_other(
    output: OutputFormat, terminal: Terminal
) -> None:
    with open_display(terminal.file) as display:
        assert isinstance(display, ProgressBar)
        display.step("starting PostgreSQL")
        display.step("starting Kafka")
        display.begin("scenario uuid: motion on clip.mp4")
        WRITERS[output](frames(display, PAGES), terminal.file)
        display.print("completed: 12 frames")
    written = terminal.close()
    assert "starting Kafka" in written
    assert "active: 5 of 12 frames" in written
    assert shown(written) == ["scenario uuid: motion on clip.mp4", *plain_rows(output), "completed: 12 frames"]


def test_a_line_that_stays_appears_above_the_bar(terminal: Terminal) -> None:
    with open_display(terminal.file) as display:
        display.begin("scenario uuid: motion on clip.mp4")
        display.update(scenario("active", 3))
        display.step("relay was killed by SIGKILL; restarting it in 0.2 s")
        display.update(scenario("active", 4))
        display.print("trying again for up to 30 s: [bold]no vidflow\x1b[2J answers " + "x" * 80)
    assert shown(terminal.close()) == [
        "scenario uuid: motion on clip.mp4",
        "relay was killed by SIGKILL; restarting it in 0.2 s",
        r"trying again for up to 30 s: [bold]no vidflow\x1b[2J answers " + "x" * 80,
    ]


def test_an_error_ends_the_bar(terminal: Terminal) -> None:
    with suppress(ZeroDivisionError), open_display(terminal.file) as display:
        display.update(scenario("active", 3))
        raise ZeroDivisionError
    written = terminal.close()
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is shown again
    assert shown(written) == []


def test_a_terminal_without_control_sequences_gets_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with open_display(terminal.file) as display:
        display.update(scenario("active", 3))
    assert terminal.close() == "active: 3 of 12 frames\r\n"


@contextmanager
def piped() -> Iterator[tuple[Display, io.StringIO]]:
    err = io.StringIO()
    with open_display(err) as display:
        assert isinstance(display, StateLines)
        yield display, err


def test_a_pipe_gets_a_line_per_change_of_state() -> None:
    with piped() as (display, err):
        for frames_stored, state, waiting_for in [
            (0, "init_startup", "orchestrator"),
            (0, "init_startup", "runner"),
            (0, "init_startup", "orchestrator"),
            (0, "in_startup_processing", "start"),
            (1, "active", None),
            (2, "active", None),
            (3, "active", "inbox"),
            (3, "active", None),
            (3, "init_startup", "runner"),
            (12, "active", None),
        ]:
            display.update(scenario(state, frames_stored, waiting_for))
    assert err.getvalue().splitlines() == [
        "init_startup: 0 of 12 frames, waiting for orchestrator",
        "init_startup: 0 of 12 frames, waiting for runner",
        "in_startup_processing: 0 of 12 frames, waiting for start",
        "active: 1 of 12 frames",
        "active: 3 of 12 frames, waiting for inbox",
        "init_startup: 3 of 12 frames, waiting for runner",
        "active: 12 of 12 frames",
    ]


def test_each_loss_and_return_of_the_source_is_printed() -> None:
    lost = ErrorInfo("source_unreachable", "rtsp://cam does not answer (Connection refused).")
    with piped() as (display, err):
        for error in (None, lost, lost, None, lost):
            waiting_for = WaitingFor.SOURCE if error else None
            display.update(msgspec.structs.replace(scenario("active", 1, waiting_for), source_error=error))
    line = f"waiting for the source: {lost.message}"
    assert err.getvalue().splitlines() == [
        "active: 1 of 12 frames",
        line,
        "active: 1 of 12 frames, waiting for source",
        "the source sends frames",
        line,
    ]


def test_a_pipe_gets_each_step_of_the_start_once_and_each_later_event() -> None:
    with piped() as (display, err):
        for count in range(3):
            display.step(f"fetching Kafka's jars: {count} of 46")
            display.step(f"starting part {count}")
        display.begin("scenario uuid: motion on clip.mp4")
        for _ in range(2):
            display.step("relay was killed by SIGKILL; restarting it in 0.2 s")
    assert err.getvalue().splitlines() == [
        "fetching Kafka's jars: 0 of 46",
        "starting part 0",
        "starting part 1",
        "starting part 2",
        "scenario uuid: motion on clip.mp4",
        "relay was killed by SIGKILL; restarting it in 0.2 s",
        "relay was killed by SIGKILL; restarting it in 0.2 s",
    ]
