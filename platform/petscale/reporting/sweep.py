"""The page of a sweep: every trial, what it scored, and how little that proves.

The page shows the charts, tables and sentences that the trials of a study allow.  It claims nothing that a
difference of one seed on validation patients does not support.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petscale.reporting.page import script_json
from petscale.reporting.sweep_charts import (
    draw_budgets,
    draw_front,
    draw_history,
    draw_importances,
    draw_parallel,
    draw_slices,
)
from petscale.reporting.sweep_trials import (
    MIN_TRIALS,
    MOST_ON_FRONT,
    Objective,
    Trial,
    number_text,
    paper_trial,
    pareto,
    trial_of,
    value_text,
)
from petscale.reporting.templates import template
from petscale.spreadsheet import csv_text
from storage.integrity import json_safe, write_bytes


@dataclass(frozen=True, eq=False)
class SweepData:
    """Everything a sweep's page says.

    Args:
        title: heading of the page.
        recipe: the published system tuned.
        spaces: names of the spaces searched.
        objectives: one or two.
        trials: as ``study.history`` tells them; the first one holds the paper's values.
        importances: objective -> parameter -> share, as made by ``importances``.
        command: the exact command of the sweep, shown as given, so it must name no patient.
        best_commands: what trains the best configuration, or each one of the Pareto front, at full length.
        cohort_digest: root digest of the cohort.
        environment: name -> fact: versions, hardware, sampler, seed, kind of data.
        notes: limits of this sweep to be said beside the verdict.
    """

    title: str
    recipe: str
    spaces: Sequence[str]
    objectives: Sequence[Objective]
    trials: Sequence[Mapping[str, Any]]
    importances: Mapping[str, Mapping[str, float]]
    command: str
    best_commands: Sequence[str] = ()
    cohort_digest: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_sweep(path: Path, data: SweepData) -> None:
    """Write the page to ``path`` (.html), whole or not at all.

    Raises:
        InputError: ``DISK_FULL`` and its kin, if the file cannot be written.
    """
    write_bytes(path, render(data).encode())


def render(data: SweepData) -> str:
    """Return the page as HTML text."""
    trials = sorted(map(trial_of, data.trials), key=lambda trial: trial.number)
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    complete = [trial for trial in trials if trial.values]
    best = pareto(complete, data.objectives)
    paper = paper_trial(trials)
    content, table = _numbers(data, trials, names)
    return template("sweep.html.j2").render(
        data=data,
        verdict=verdict(data.objectives, trials),
        counts=_counts(trials),
        history=[draw_history(trials, data.objectives, index) for index in range(len(data.objectives))],
        parallel=[
            draw_parallel(complete, paper, names, data.objectives, index) for index in range(len(data.objectives))
        ],
        importances=draw_importances(data.importances),
        min_trials=MIN_TRIALS,
        slices=[draw_slices(trials, names, data.objectives, index) for index in range(len(data.objectives))],
        front=draw_front(complete, best, paper, data.objectives) if len(data.objectives) > 1 else "",
        rungs=draw_budgets(trials, best, data.objectives),
        best=_best_table(best, paper, names, data.objectives),
        num_best=len(best),
        trials=_trial_table(trials, names, best),
        names=names,
        numbers=script_json(content),
        csv_uri="data:text/csv;base64," + base64.b64encode(table.encode()).decode(),
    )


@dataclass(frozen=True)
class Verdict:
    """What the trials allow to be said: ``better`` than the paper's values, ``mixed`` or ``worse``, and why."""

    state: str
    headline: str
    sentences: tuple[str, ...]


def verdict(objectives: Sequence[Objective], trials: Sequence[Trial]) -> Verdict:
    """Compare the best trials against the paper's, without calling one seed's difference an improvement."""
    complete = [trial for trial in trials if trial.values]
    counts = ", ".join(f"{number} {told}" for told, number in _counts(trials).items())
    tally = f"{_plural(len(trials))}: {counts}." if trials else "No trial has started."
    if not complete:
        return Verdict("worse", "No trial is complete: there is nothing to choose.", (tally,))
    best, paper = pareto(complete, objectives), paper_trial(trials)
    if len(objectives) == 1:
        state, headline, sentences = _one(objectives[0], best[0], paper)
    else:
        state, headline, sentences = _several(objectives, complete, best, paper)
    sentences.append(tally)
    sentences.append(
        "Every trial is one training with one seed, scored on the validation patients: small differences are noise, "
        "and the best of many looks better than it is. Repeat it with other seeds, and score it on the test patients, "
        "before believing it."
    )
    return Verdict(state, headline, tuple(sentences))


def _one(goal: Objective, best: Trial, paper: Trial | None) -> tuple[str, str, list[str]]:
    headline = f"Best {goal.name}: {goal.text(best.values[0])} (trial {best.number})"
    if paper is None:
        return "mixed", headline + ".", ["The trial of the paper's values is not complete: nothing to compare with."]
    over = goal.gain(best.values[0], paper.values[0])
    told = f"The paper's values (trial {paper.number}) reach {goal.text(paper.values[0])}."
    if over <= 0:
        return "mixed", headline + ": no trial beats the paper's values.", [told]
    higher = "above" if goal.direction == "maximize" else "below"
    return "better", f"{headline}, {goal.text(float(f'{over:.3g}'))} {higher} the paper's values.", [told]


def _several(
    goals: Sequence[Objective], complete: Sequence[Trial], front: Sequence[Trial], paper: Trial | None
) -> tuple[str, str, list[str]]:
    names = " and ".join(goal.name for goal in goals)
    headline = f"{len(front)} of {len(complete)} complete trials are on the Pareto front of {names}."
    sentences = []
    for index, goal in enumerate(goals):
        best = front[0]
        for trial in front:
            best = trial if goal.gain(trial.values[index], best.values[index]) > 0 else best
        beside = "" if paper is None else f"; the paper's values reach {goal.text(paper.values[index])}"
        sentences.append(f"Best {goal.name}: {goal.text(best.values[index])} (trial {best.number}){beside}.")
    if paper is None:
        return "mixed", headline, [*sentences, "The trial of the paper's values is not complete."]
    if paper in front:
        return "mixed", headline, [*sentences, "The paper's values are on the front: no trial beats them in both."]
    better = [
        trial.number
        for trial in front
        if min(goal.gain(a, b) for goal, a, b in zip(goals, trial.values, paper.values, strict=True)) >= 0
    ]
    return "better", headline, [*sentences, f"No worse than the paper's values in both: {_numbered(better)}."]


def _counts(trials: Sequence[Trial]) -> dict[str, int]:
    counts = {"complete": 0, "pruned": 0, "failed": 0}
    for trial in trials:
        counts[trial.told] = counts.get(trial.told, 0) + 1
    return counts


def _plural(number: int) -> str:
    return "1 trial" if number == 1 else f"{number} trials"


def _numbered(numbers: Sequence[int]) -> str:
    return ("trial " if len(numbers) == 1 else "trials ") + ", ".join(map(str, numbers))


def _texts(trial: Trial, names: Sequence[str]) -> list[str]:
    return [value_text(trial.params[name]) if name in trial.params else "" for name in names]


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f}"


def _trial_table(trials: Sequence[Trial], names: Sequence[str], best: Sequence[Trial]) -> list[dict[str, object]]:
    return [
        {
            "number": trial.number,
            "state": trial.told,
            "values": [number_text(value) for value in trial.values],
            "params": _texts(trial, names),
            "seconds": _seconds(trial.seconds),
            "folder": trial.folder,
            "note": trial.note,
            "ours": trial in best,
        }
        for trial in trials
    ]


def _best_table(
    best: Sequence[Trial], paper: Trial | None, names: Sequence[str], objectives: Sequence[Objective]
) -> dict[str, object]:
    """The best trials side by side with the paper's: a line per objective and parameter, a column per trial."""
    shown = list(best[:MOST_ON_FRONT])
    if len(objectives) > 1:
        shown.sort(key=lambda trial: -objectives[0].gain(trial.values[0], 0.0))
    columns = shown if paper is None or paper in shown else [paper, *shown]
    lines: list[tuple[str, list[str]]] = [
        (goal.label, [number_text(trial.values[index]) for trial in columns]) for index, goal in enumerate(objectives)
    ]
    lines += [
        (name, [_texts(trial, [name])[0] for trial in columns])
        for name in names
        if any(name in trial.params for trial in columns)
    ]
    heads = [f"trial {trial.number}" + (" (paper)" if trial is paper else "") for trial in columns]
    return {"heads": heads, "lines": lines, "num_objectives": len(objectives), "left_out": len(best) - len(shown)}


def _numbers(data: SweepData, trials: Sequence[Trial], names: Sequence[str]) -> tuple[dict[str, object], str]:
    """Every number as JSON, and the trials as CSV."""
    told = [
        {
            **trial,
            "values": [json_safe(value) for value in trial["values"] or ()],
            "intermediate": {str(step): json_safe(value) for step, value in (trial["intermediate"] or {}).items()},
        }
        for trial in data.trials
    ]
    content: dict[str, object] = {
        "recipe": data.recipe,
        "spaces": list(data.spaces),
        "objectives": [
            {"name": goal.name, "direction": goal.direction, "units": goal.units} for goal in data.objectives
        ],
        "importances": {name: dict(shares) for name, shares in data.importances.items()},
        "trials": told,
    }
    columns = ["number", "state", *(goal.name for goal in data.objectives), *names, "seconds", "folder", "note"]
    rows: list[list[object]] = []
    for trial in trials:
        values = trial.values or ("",) * len(data.objectives)
        params = [trial.params.get(name, "") for name in names]
        seconds = "" if trial.seconds is None else trial.seconds
        rows.append([trial.number, trial.told, *values, *params, seconds, trial.folder, trial.note])
    return content, csv_text(columns, rows)
