"""What `vidflow run` shows on standard error: a progress bar on a terminal, otherwise a line per change of state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from vidflow.contract import ScenarioResponse
from vidflow.infra.telemetry.logs import safe_line

_REFRESHES_PER_SECOND: Final = 5


class Display(ABC):
    """Shows the steps of the start, then the progress of the scenario. Several threads may call it."""

    def __init__(self) -> None:
        self._starting = True
        self._lacks_source = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def step(self, line: str) -> None:
        """Show a step of the start. After it, print the line, which reports that a process died or was restarted."""
        if self._starting:
            self._show_step(line)
        else:
            self.print(line)

    def begin(self, line: str) -> None:
        """End the start, and print which scenario runs."""
        self._starting = False
        self.hide()
        self.print(line)

    def update(self, scenario: ScenarioResponse) -> None:
        """Show the progress of the scenario, and each loss and return of its source."""
        error = scenario.source_error
        if (error is not None) is not self._lacks_source:
            self._lacks_source = error is not None
            self.print("the source sends frames" if error is None else f"waiting for the source: {error.message}")
        self._show(scenario)

    @abstractmethod
    def _show(self, scenario: ScenarioResponse) -> None: ...

    @abstractmethod
    def print(self, line: str) -> None:
        """Print a line that stays."""

    @abstractmethod
    def hide(self) -> None:
        """Remove what does not stay, so that rows can be printed on the same terminal. The next update shows it again."""

    @abstractmethod
    def _show_step(self, line: str) -> None: ...


def open_display(err: TextIO) -> Display:
    """Return the display for this standard error."""
    console = Console(file=err, highlight=False)
    return ProgressBar(console) if err.isatty() and console.is_interactive else StateLines(err)


class ProgressBar(Display):
    """One line at the bottom of the terminal, redrawn in place."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._progress = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            refresh_per_second=_REFRESHES_PER_SECOND,
        )
        self._task = self._progress.add_task("", total=None)

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(Text(safe_line(line)), soft_wrap=True)

    def hide(self) -> None:
        """Erase the bar."""
        self._progress.stop()

    def _show_step(self, line: str) -> None:
        self._progress.update(self._task, description=safe_line(line))
        self._progress.start()

    def _show(self, scenario: ScenarioResponse) -> None:
        self._progress.update(
            self._task,
            description=_describe(scenario),
            completed=scenario.frames_stored,
            total=scenario.frames_expected or None,
        )
        self._progress.start()


class StateLines(Display):
    """A line per change of the scenario's state and of what it waits for. Frame counts alone are not reported."""

    def __init__(self, err: TextIO) -> None:
        super().__init__()
        self._err = err
        self._steps: set[str] = set()
        self._state = ""
        self._waits: set[str | None] = set()

    def print(self, line: str) -> None:
        """Print a line."""
        self._err.write(safe_line(line) + "\n")
        self._err.flush()

    def hide(self) -> None:
        """Do nothing, since all lines stay."""

    def _show_step(self, line: str) -> None:
        """Print a step once. Its details after a colon, such as how much was downloaded, change each second."""
        step = line.partition(":")[0]
        if step not in self._steps:
            self._steps.add(step)
            self.print(line)

    def _show(self, scenario: ScenarioResponse) -> None:
        if scenario.state != self._state:
            self._state = scenario.state
            self._waits = set()
        if scenario.waiting_for not in self._waits:
            self._waits.add(scenario.waiting_for)
            self.print(_describe(scenario))


def _describe(scenario: ScenarioResponse) -> str:
    total = f" of {scenario.frames_expected}" if scenario.frames_expected else ""
    waiting = f", waiting for {scenario.waiting_for}" if scenario.waiting_for else ""
    device = f", on {scenario.device}" if scenario.device else ""
    return safe_line(f"{scenario.state}: {scenario.frames_stored}{total} frames{device}{waiting}")
