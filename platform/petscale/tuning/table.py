"""Progress of a sweep: a live table on a terminal, elsewhere a line per event and a summary every minute.

Progress comes from each trial's records.  A screen with too few lines shows the running and the best trials.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from petscale.console import console
from petscale.folders import METRICS
from petscale.reporting.sweep_trials import Objective
from petscale.training.progress import Records

SUMMARY_S = 60.0  # between two summaries where there is no terminal

RUNNING = "running"

STATES = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "interrupted"}


@dataclass
class _Row:
    settings: str
    state: str
    rung: int = 0  # budgets after which it has been scored
    values: Sequence[float] = ()
    records: Records | None = None
    step: int = 0
    steps: int = 0
    patches_per_s: float = 0.0

    def look(self) -> None:
        """Take in what the trial has recorded since the last look."""
        for record in self.records.new() if self.records else ():
            self.step = int(record["step"])
            self.steps = int(record.get("steps", self.steps))
            self.patches_per_s = float(record.get("patches_per_s", self.patches_per_s))

    @property
    def progress(self) -> str:
        return f"{self.step}/{self.steps} {self.step / self.steps:.0%}" if self.steps else ""


@dataclass
class TrialTable:
    """What is known of every trial of a study.

    Args:
        objectives: in the order of values.
        rungs: number of budgets.
        wanted: finished trials wanted.
    """

    objectives: Sequence[Objective]
    rungs: int
    wanted: int
    _rows: dict[int, _Row] = field(default_factory=dict)

    def earlier(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Take in the trials of earlier sessions, as ``study.history`` tells them; those still queued are not told."""
        for trial in history:
            if (state := STATES.get(trial["state"])) and trial["note"] != "interrupted":
                rung = len(trial["intermediate"]) or (self.rungs if trial["values"] else 0)
                self._rows[trial["number"]] = _Row(shown(trial["settings"]), state, rung, trial["values"] or ())

    def began(self, number: int, folder: Path, settings: Mapping[str, Any]) -> None:
        """A trial starts, or continues in the folder of one that was interrupted."""
        told = shown(settings)
        self._rows[number] = _Row(told, RUNNING, records=Records(folder / METRICS))
        console.print(f"trial {number}: {told}", markup=False, soft_wrap=True)

    def heard(self, number: int, rung: int, values: Mapping[str, float]) -> None:
        """A trial has been scored at a budget, counted from 0."""
        self._rows[number].rung, self._rows[number].values = rung + 1, tuple(values.values())
        told = ", ".join(f"{name} {short(value)}" for name, value in values.items())
        console.print(f"trial {number}, budget {rung + 1} of {self.rungs}: {told}", markup=False, soft_wrap=True)

    def ended(self, number: int, state: str, note: str) -> None:
        """A trial is over, in one of ``STATES``."""
        self._rows[number].state = STATES[state]
        if note:
            console.print(f"trial {number}: {note}", markup=False, soft_wrap=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Show the trials until the block ends; the whole table stands below then."""
        if console.is_terminal:
            with Live(console=console, get_renderable=lambda: self.table(console.height - 6), refresh_per_second=2):
                yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._summaries, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            console.print(self.table())

    def _summaries(self, ended: threading.Event) -> None:
        while not ended.wait(SUMMARY_S):
            console.print(self.summary(), markup=False, soft_wrap=True)

    def summary(self) -> str:
        """One line: how many are finished, the best of them, and how far the running ones are."""
        return "; ".join([self._counted(), *(f"trial {n}: {r.progress}" for n, r in self._running() if r.progress)])

    def table(self, lines: int | None = None) -> Table:
        """The trials in order; where only so many lines are free, the running ones and the best of the others."""
        running, ranked = self._running(), self._ranked()
        others = [number for number, _ in self._all() if number not in dict(running)]
        if lines is not None and len(self._rows) > lines:
            best_first = ranked + sorted(set(others) - set(ranked), reverse=True)
            others = best_first[: max(0, lines - len(running))]
        chosen = sorted([*dict(running), *others])
        table = Table(title=self._counted(), title_justify="left")
        for name in ("trial", "state", "budgets", "steps", "patches/s", *(o.name for o in self.objectives)):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        table.add_column("settings")
        for number in chosen:
            row = self._rows[number]
            values = [short(value) for value in row.values] or ["" for _ in self.objectives]
            speed = f"{row.patches_per_s:.1f}" if row.state == RUNNING and row.patches_per_s else ""
            best = "bold green" if number in ranked[:1] else None
            cells = (str(number), row.state, f"{row.rung}/{self.rungs}", row.progress, speed, *values, row.settings)
            table.add_row(*cells, style=best)
        return table

    def _all(self) -> list[tuple[int, _Row]]:
        """A copy: a terminal is refreshed by another thread than the one that hears of trials."""
        return list(self._rows.items())

    def _running(self) -> list[tuple[int, _Row]]:
        running = [(number, row) for number, row in self._all() if row.state == RUNNING]
        for _, row in running:
            row.look()
        return running

    def _ranked(self) -> list[int]:
        """Finished trials, best first by the first objective."""
        sign = -1 if self.objectives[0].direction == "maximize" else 1
        whole = {number: row for number, row in self._all() if row.state == STATES["COMPLETE"] and row.values}
        return sorted(whole, key=lambda number: (sign * whole[number].values[0], number))

    def _counted(self) -> str:
        over = sum(row.state in ("finished", "stopped early") for _, row in self._all())
        told = f"{time.strftime('%H:%M')}  {over} of {self.wanted} trials over"
        if ranked := self._ranked():
            told += f", best {self.objectives[0].name} {short(self._rows[ranked[0]].values[0])} (trial {ranked[0]})"
        return told


def shown(settings: Mapping[str, Any]) -> str:
    """Settings without the section's name, numbers to four digits."""
    return ", ".join(f"{name.partition('.')[2]} {short(value)}" for name, value in settings.items())


def short(value: Any) -> str:
    """A number to four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
