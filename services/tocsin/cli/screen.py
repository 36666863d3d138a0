"""What a person sees while the demo runs: stages, counts, latencies, and the story as it happens.

On a terminal it is one live screen; elsewhere each moment is a line.
"""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tocsin.cli.story import Moment
from tocsin.contracts.operations import Figures

STAGES = ("start", "input", "alert", "analysis", "decision", "response", "mission", "report")
RECENT_LINES = 14
MARKS = {"waiting": ("·", "dim"), "running": ("▶", "cyan"), "done": ("✓", "green"), "failed": ("✗", "red")}


class Screen:
    """Shows the run. Use as a context manager."""

    def __init__(self, console: Console, *, title: str) -> None:
        self._console = console
        self._title = title
        self._begun = time.monotonic()
        self._states = dict.fromkeys(STAGES, "waiting")
        self._details = dict.fromkeys(STAGES, "")
        self._seconds: dict[str, float] = {}
        self._entered: dict[str, float] = {}
        self._recent: deque[Text] = deque(maxlen=RECENT_LINES)
        self._processes: dict[str, str] = {}
        self._counts = ""
        self._live = Live(self, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for stage, state in self._states.items():
                if state == "running":
                    self._states[stage] = "failed"
        if self._console.is_terminal:
            self._live.stop()
            self._console.print(self._stages())

    def process(self, name: str, state: str) -> None:
        """Show a process's state."""
        if self._processes.get(name) == state:
            return
        self._processes[name] = state
        if state == "ready":
            self._add("start", f"{name} is ready")
        ready = sum(1 for s in self._processes.values() if s == "ready")
        waiting = [name for name, s in self._processes.items() if s == "starting"]
        agents = f", {self._processes['agents']} agents" if "agents" in self._processes else ""
        self._details["start"] = f"{ready} services ready{agents}" + (
            f", waiting for {', '.join(waiting)}" if waiting else ""
        )

    def begin(self, stage: str, detail: str = "") -> None:
        """Show a stage as running; the stages before it are done."""
        if self._states[stage] != "waiting":
            return
        for earlier in STAGES[: STAGES.index(stage)]:
            if self._states[earlier] == "running":
                self._finish(earlier)
        self._states[stage] = "running"
        self._entered[stage] = time.monotonic()
        if detail:
            self._details[stage] = detail

    def done(self, stage: str, detail: str = "") -> None:
        """Show a stage as done."""
        self.begin(stage)
        self._finish(stage)
        if detail:
            self._details[stage] = detail

    def tell(self, moment: Moment) -> None:
        """Show a moment of the story."""
        if moment.stage in self._states:
            self.begin(moment.stage)
            if moment.headline or not self._details[moment.stage]:
                self._details[moment.stage] = moment.text
        self._add(moment.stage, moment.text)

    def _add(self, stage: str, text: str) -> None:
        elapsed = time.monotonic() - self._begun
        line = Text.assemble((f"{elapsed:6.2f}s ", "dim"), (f"{stage:9}", "bold"), text)
        line.no_wrap = True
        line.overflow = "ellipsis"
        self._recent.append(line)
        if not self._console.is_terminal:
            self._console.print(line, soft_wrap=True)

    def figures(self, figures: Figures) -> None:
        """Show the monitor's sums."""
        total = figures.totals
        signed, made = total.get("envelopes_signed", 0), max(1, total.get("signatures_made", 0))
        rejected = sum(value for name, value in total.items() if name.startswith("rejected."))
        self._counts = (
            f"envelopes signed {signed:,} (batches of {signed / made:.1f})  verified "
            f"{total.get('envelopes_verified', 0):,}  rejected {rejected:,}  processes {len(figures.processes)}"
        )

    def __rich__(self) -> Group:
        """Draw the live screen."""
        elapsed = f"{time.monotonic() - self._begun:.1f} s"
        story = Group(*self._recent) if self._recent else Text("starting …", style="dim")
        return Group(
            self._stages(),
            Panel(story, title="what happens", title_align="left", border_style="dim"),
            Text(f"{self._counts}  ·  {elapsed}" if self._counts else elapsed, style="dim"),
        )

    def _stages(self) -> Table:
        table = Table(title=self._title, title_justify="left", title_style="bold", box=None, expand=True)
        table.add_column("", width=1, no_wrap=True)
        table.add_column("stage", width=9, no_wrap=True)
        table.add_column("time", justify="right", width=8, no_wrap=True)
        table.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)
        for stage in STAGES:
            mark, style = MARKS[self._states[stage]]
            seconds = self._seconds.get(stage)
            if seconds is None and stage in self._entered:
                seconds = time.monotonic() - self._entered[stage]
            shown = "" if seconds is None else f"{seconds:.2f} s"
            table.add_row(Text(mark, style=style), Text(stage, style=style), shown, Text(self._details[stage]))
        return table

    def _finish(self, stage: str) -> None:
        if self._states[stage] == "running":
            self._states[stage] = "done"
            self._seconds[stage] = time.monotonic() - self._entered[stage]
