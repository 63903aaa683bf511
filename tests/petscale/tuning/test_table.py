"""What is seen of a sweep while it runs: how far trials are, which is best, and no more lines than a screen has."""

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from petscale.folders import METRICS
from petscale.reporting.sweep_trials import Objective
from petscale.tuning import table as table_module
from petscale.tuning.table import TrialTable

PSNR = [Objective("psnr_body", "maximize")]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], io.StringIO]:
    """What is printed, on a terminal of 120 x 20 or into a file."""

    def make(terminal: bool) -> io.StringIO:
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=120, height=20, color_system=None)
        monkeypatch.setattr(table_module, "console", console)
        return out

    return make


def text(table: TrialTable, lines: int | None = None) -> str:
    out = io.StringIO()
    Console(file=out, width=140).print(table.table(lines))
    return out.getvalue()


def wait_for(words: str, out: io.StringIO) -> None:
    until = time.monotonic() + 20
    while words not in out.getvalue() and time.monotonic() < until:
        time.sleep(0.02)


def record(folder: Path, **facts: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / METRICS).open("a") as file:
        file.write(json.dumps(facts) + "\n")


def test_a_running_trial_tells_how_far_it_is(tmp_path: Path, screen: Callable[[bool], io.StringIO]) -> None:
    screen(False)
    table = TrialTable(PSNR, rungs=2, wanted=3)
    table.began(0, tmp_path, {"recipe.clip": 0.012345, "recipe.dense": "images"})
    assert table.summary().endswith("0 of 3 trials over")
    record(tmp_path, event="start", step=0, steps=40)
    record(tmp_path, event="log", step=10, patches_per_s=7.25)
    shown = text(table)
    assert all(part in shown for part in ("running", "0/2", "10/40 25%", "7.2", "clip 0.01235, dense images"))
    assert "trial 0: 10/40 25%" in table.summary()
    table.heard(0, 0, {"psnr_body": 27.123456})
    assert "1/2" in text(table)
    assert "27.12" in text(table)
    table.ended(0, "COMPLETE", "")
    assert table.summary().endswith("1 of 3 trials over, best psnr_body 27.12 (trial 0)")


@pytest.mark.parametrize(("direction", "best"), [("maximize", 3), ("minimize", 1)])
def test_the_best_is_the_best_of_whole_trials(
    direction: str, best: int, screen: Callable[[bool], io.StringIO], tmp_path: Path
) -> None:
    screen(False)
    table = TrialTable([Objective("x", direction)], rungs=1, wanted=9)  # type: ignore[arg-type]
    for number, (value, state) in enumerate(
        [(9.0, "PRUNED"), (1.0, "COMPLETE"), (2.0, "COMPLETE"), (3.0, "COMPLETE"), (0.0, "FAIL")]
    ):
        table.began(number, tmp_path, {})
        table.heard(number, 0, {"x": value})
        table.ended(number, state, "")
    assert table.summary().endswith(f"(trial {best})")
    assert "4 of 9 trials over" in table.summary(), "a failed one is tried again"


def test_a_screen_shows_what_runs_and_the_best(tmp_path: Path, screen: Callable[[bool], io.StringIO]) -> None:
    screen(False)
    table = TrialTable(PSNR, rungs=1, wanted=60)
    for number in range(50):
        table.began(number, tmp_path, {"recipe.lr": float(number)})
        table.heard(number, 0, {"psnr_body": float(number % 30)})
        if number != 5:
            table.ended(number, "COMPLETE", "")
    numbers = [int(found) for found in re.findall(r"^│ +(\d+) │", text(table, 6), re.M)]
    assert numbers == [5, 25, 26, 27, 28, 29]
    assert len(text(table).splitlines()) > 50


def test_earlier_trials_are_there_and_interrupted_ones_are_not_told_twice() -> None:
    table = TrialTable(PSNR, rungs=2, wanted=4)
    common = {"settings": {"recipe.lr": 0.1}, "note": ""}
    table.earlier(
        [
            {**common, "number": 0, "state": "COMPLETE", "values": [20.0], "intermediate": {0: 18.0, 1: 20.0}},
            {**common, "number": 1, "state": "FAIL", "values": None, "intermediate": {}, "note": "interrupted"},
            {**common, "number": 2, "state": "PRUNED", "values": None, "intermediate": {0: 11.0}},
            {**common, "number": 3, "state": "WAITING", "values": None, "intermediate": {}},
        ]
    )
    shown = text(table)
    assert "2 of 4 trials over, best psnr_body 20 (trial 0)" in shown
    assert "stopped early" in shown
    assert "interrupted" not in shown


def test_a_terminal_is_kept_up_to_date(tmp_path: Path, screen: Callable[[bool], io.StringIO]) -> None:
    out = screen(True)
    table = TrialTable(PSNR, rungs=1, wanted=1)
    with table.watching():
        table.began(0, tmp_path, {"recipe.lr": 0.1})
        record(tmp_path, event="log", step=3, steps=8, patches_per_s=1.0)
        wait_for("3/8 38%", out)
    assert "3/8 38%" in out.getvalue()


def test_a_log_has_a_summary_now_and_then_and_the_table_at_the_end(
    tmp_path: Path, screen: Callable[[bool], io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = screen(False)
    monkeypatch.setattr(table_module, "SUMMARY_S", 0.05)
    table = TrialTable(PSNR, rungs=1, wanted=1)
    with table.watching():
        table.began(0, tmp_path, {"recipe.lr": 0.1})
        record(tmp_path, event="log", step=3, steps=8, patches_per_s=1.0)
        wait_for("trial 0: 3/8", out)
        table.heard(0, 0, {"psnr_body": 20.0})
        table.ended(0, "COMPLETE", "")
    assert "trial 0: 3/8 38%" in out.getvalue()
    assert "┏" in out.getvalue().rpartition("budget 1 of 1")[2]
