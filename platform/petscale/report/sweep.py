"""The page of a sweep: every trial, what it scored, and how little that proves.

What it knows: which charts, tables and sentences the trials of a study allow.  What it refuses to know: how trials are
chosen, run or stored, and any claim that a difference of one seed on validation patients does not support.
"""

import base64
import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from jinja2 import Environment, StrictUndefined
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from petscale.report.page import _script_json
from petscale.report.pictures import COLORS, FAINT, INK, _dress, _figure, figure_png
from storage.integrity import json_safe, write_bytes

Direction = Literal["minimize", "maximize"]

INTERRUPTED = "interrupted"  # by what killed the sweep; another trial has gone on with it
COMPLETE, PRUNED, FAILED = "COMPLETE", "PRUNED", "FAIL"  # Optuna's names of a trial's end
PAPER = 0  # number of the trial that holds the paper's values
MIN_TRIALS = 10  # below this no importance is told
BEST_GROUP = 5  # trials that PED-ANOVA's best group must hold, as Optuna advises
LOG_DECADES = 2.0  # a range wider than this is drawn on a logarithmic axis
BLUE, GREY, AMBER, RED = COLORS[2], COLORS[0], COLORS[1], COLORS[5]
COLORMAP = "viridis"
MOST_ON_FRONT = 12  # trials beside each other in the table of the front; the CSV holds all
MISSING = -0.14  # place of a parameter that a trial does not have, below its axis


@dataclass(frozen=True)
class Objective:
    """What a trial is scored by on the validation patients."""

    name: str
    direction: Direction
    units: str = "1"

    @property
    def label(self) -> str:
        """Name and units."""
        return self.name if self.units in ("", "1") else f"{self.name} [{self.units}]"

    def text(self, value: float) -> str:
        """A value with its units."""
        return _number(value) + ("" if self.units in ("", "1") else f" {self.units}")

    def gain(self, value: float, over: float) -> float:
        """How much better ``value`` is than ``over``: positive is better, whichever way the objective runs."""
        return value - over if self.direction == "maximize" else over - value


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


@dataclass(frozen=True, eq=False)
class Trial:
    """One trial as the page needs it; ``values`` is empty unless it is complete and every value is finite."""

    number: int
    state: str
    params: Mapping[str, Any]
    values: tuple[float, ...]
    rungs: tuple[tuple[int, float], ...]
    seconds: float | None
    folder: str
    note: str

    @property
    def told(self) -> str:
        """The state in the words of the page."""
        if self.note == INTERRUPTED:
            return self.note
        return {COMPLETE: "complete", PRUNED: "pruned", FAILED: "failed"}.get(self.state, self.state.lower())


def write_sweep(path: Path, data: SweepData) -> None:
    """Write the page to ``path`` (.html), whole or not at all.

    Raises:
        InputError: ``DISK_FULL`` and its kin, if the file cannot be written.
    """
    write_bytes(path, render(data).encode())


def render(data: SweepData) -> str:
    """Return the page as HTML text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("petscale.report").joinpath("sweep.html.j2").read_text("utf-8"))
    trials = sorted(map(_trial, data.trials), key=lambda trial: trial.number)
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    complete = [trial for trial in trials if trial.values]
    best = pareto(complete, data.objectives)
    paper = paper_trial(trials)
    content, table = _numbers(data, trials, names)
    return template.render(
        data=data,
        verdict=verdict(data.objectives, trials),
        counts=_counts(trials),
        history=[_history(trials, data.objectives, index) for index in range(len(data.objectives))],
        parallel=[_parallel(complete, paper, names, data.objectives, index) for index in range(len(data.objectives))],
        importances=_importances(data.importances),
        min_trials=MIN_TRIALS,
        slices=[_slices(trials, names, data.objectives, index) for index in range(len(data.objectives))],
        front=_front(complete, best, paper, data.objectives) if len(data.objectives) > 1 else "",
        rungs=_rungs(trials, best, data.objectives),
        best=_best_table(best, paper, names, data.objectives),
        num_best=len(best),
        trials=_trial_table(trials, names, best),
        names=names,
        numbers=_script_json(content),
        csv_uri="data:text/csv;base64," + base64.b64encode(table.encode()).decode(),
    )


def importances(study: optuna.Study, objectives: Sequence[Objective]) -> dict[str, dict[str, float]]:
    """Return for every objective the share of each parameter in reaching the best trials; empty where untold.

    PED-ANOVA (Watanabe et al., IJCAI 2023): how far a parameter's distribution among the best tenth, but at least five
    trials, is from the one among all complete trials; shares add up to 1.  Untold with fewer than ``MIN_TRIALS``
    complete trials, with values all alike, or where no parameter varies.
    """
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    told: dict[str, dict[str, Any]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            told.setdefault(name, {})[str(value)] = value
    varied = [name for name, values in told.items() if len(values) > 1]
    found = {}
    for index, objective in enumerate(objectives):
        values = [trial.values[index] for trial in trials if math.isfinite(trial.values[index])]
        if len(values) < MIN_TRIALS or len(set(values)) == 1 or not varied:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna reminds of the sign of `target`, which is right here
            shares = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(
                    target_quantile=max(0.1, BEST_GROUP / len(values))
                ),
                params=varied,
                target=_lower_is_better(index, objective.direction),
            )
        if len(shares) == 1 or len(set(shares.values())) > 1:  # all equal: the best group is all trials
            found[objective.name] = {name: float(share) for name, share in shares.items()}
    return found


def _lower_is_better(index: int, direction: Direction) -> Callable[[optuna.trial.FrozenTrial], float]:
    sign = -1.0 if direction == "maximize" else 1.0
    return lambda trial: sign * trial.values[index]


def pareto(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """The trials that no other beats in one objective without losing in another; for one objective the first best."""
    best = []
    for trial in trials:
        gains = [
            [goal.gain(other, mine) for goal, other, mine in zip(objectives, rival.values, trial.values, strict=True)]
            for rival in trials
            if rival is not trial
        ]
        if not any(min(gain) >= 0 and max(gain) > 0 for gain in gains):
            best.append(trial)
    return best[:1] if len(objectives) == 1 else best


def paper_trial(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial of the paper's values: the first one, or where that was interrupted its repetition."""
    first = next((trial for trial in trials if trial.number == PAPER), None)
    if first is None:
        return None
    return next((trial for trial in trials if trial.values and trial.params == first.params), None)


def _trial(told: Mapping[str, Any]) -> Trial:
    values = tuple(float(value) for value in told["values"] or () if value is not None)
    finite = told["state"] == COMPLETE and bool(values) and all(map(math.isfinite, values))
    rungs = sorted((int(step), float(value)) for step, value in (told["intermediate"] or {}).items())
    return Trial(
        number=told["number"],
        state=told["state"],
        params=told["params"],
        values=values if finite else (),
        rungs=tuple((step, value) for step, value in rungs if math.isfinite(value)),
        seconds=told["seconds"],
        folder=str(told["folder"]),
        note=told["note"],
    )


# ---- words ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What the trials allow to be said: ``better`` than the paper's values, ``mixed`` or ``worse``, and why."""

    state: str
    headline: str
    sentences: tuple[str, ...]


def verdict(objectives: Sequence[Objective], trials: Sequence[Trial]) -> Verdict:
    """Judge the best trials against the paper's, without calling one seed's difference an improvement."""
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


def _number(value: float) -> str:
    return f"{value:.5g}".replace("-", "−")


def _text(value: object) -> str:
    """A parameter's value as the page shows it."""
    match value:
        case None | bool() | str() | int():
            return str(value)
        case float():
            return _number(value)
    return json.dumps(value, default=str)


def _texts(trial: Trial, names: Sequence[str]) -> list[str]:
    return [_text(trial.params[name]) if name in trial.params else "" for name in names]


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f}"


# ---- tables ---------------------------------------------------------------------------------------------------------


def _trial_table(trials: Sequence[Trial], names: Sequence[str], best: Sequence[Trial]) -> list[dict[str, object]]:
    return [
        {
            "number": trial.number,
            "state": trial.told,
            "values": [_number(value) for value in trial.values],
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
        (goal.label, [_number(trial.values[index]) for trial in columns]) for index, goal in enumerate(objectives)
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["number", "state", *(goal.name for goal in data.objectives), *names, "seconds", "folder", "note"])
    for trial in trials:
        values = trial.values or ("",) * len(data.objectives)
        params = [trial.params.get(name, "") for name in names]
        seconds = "" if trial.seconds is None else trial.seconds
        writer.writerow([trial.number, trial.told, *values, *params, seconds, trial.folder, trial.note])
    return content, text.getvalue()


# ---- charts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scale:
    """Where values of a parameter lie on an axis from 0 to 1: linear, logarithmic, or one place per category."""

    kind: Literal["linear", "log", "category"]
    categories: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, values: Sequence[Any]) -> "Scale":
        """Choose by the values themselves; words, booleans and lists are categories."""
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return cls("category", tuple(dict.fromkeys(sorted(map(_text, values)))))
        low, high = float(min(values)), float(max(values))
        wide = low > 0 and math.log10(high / low) > LOG_DECADES
        return cls("log" if wide else "linear", (), low, high)

    def place(self, value: object) -> float:
        """Where ``value`` lies; a scale of one value has it in the middle."""
        if self.kind == "category":
            return (self.categories.index(_text(value)) + 0.5) / len(self.categories)
        number, low, high = float(value), self.low, self.high  # type: ignore[arg-type]
        if self.kind == "log":
            number, low, high = math.log(number), math.log(low), math.log(high)
        return (number - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels."""
        if self.kind == "category":
            return [(self.place(name), name) for name in self.categories]
        if self.low == self.high:
            return [(0.5, f"{self.low:.3g}")]
        middle = math.sqrt(self.low * self.high) if self.kind == "log" else (self.low + self.high) / 2
        return [(self.place(value), f"{value:.3g}") for value in (self.low, middle, self.high)]


def _shown_range(values: Sequence[float], goal: Objective) -> tuple[float, float]:
    """Limits of a value axis: all values, less those so bad that the good ones would fall on one line."""
    data = np.array(values)
    best = float(data.max() if goal.direction == "maximize" else data.min())
    span = 4 * abs(best - float(np.median(data)))
    kept = data[np.abs(data - best) <= span] if span > 0 else data
    low, high = float(kept.min()), float(kept.max())
    margin = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return low - margin, high + margin


def _clipped(axes: Axes, values: Sequence[float], limits: tuple[float, float]) -> NDArray[np.float64]:
    """Values brought to the edge where they lie beyond it, with a word on how many did."""
    data = np.array(values, dtype=float)
    beyond = int(((data < limits[0]) | (data > limits[1])).sum())
    if beyond:
        axes.text(
            1, 1.01, f"{beyond} off scale, at the edge", transform=axes.transAxes, fontsize=7, color=INK, ha="right"
        )
    axes.set_ylim(*limits)
    return np.asarray(np.clip(data, *limits))


def _history(trials: Sequence[Trial], objectives: Sequence[Objective], index: int) -> str:
    """Draw the value over the trial's number, the best so far, pruned trials hollow at their last rung."""
    goal = objectives[index]
    complete = [(trial.number, trial.values[index]) for trial in trials if trial.values]
    pruned = [(trial.number, trial.rungs[-1][1]) for trial in _pruned(trials, objectives)]
    failed = [trial.number for trial in trials if trial.told == "failed"]
    if not complete and not pruned:
        return ""
    figure = _figure(9.2, 2.6)
    axes = figure.subplots()
    everything = [value for _, value in (*complete, *pruned)]
    limits = _shown_range(everything, goal)
    shown = dict(zip([n for n, _ in (*complete, *pruned)], _clipped(axes, everything, limits), strict=True))
    if complete:
        numbers, values = zip(*complete, strict=True)
        best = (np.maximum if goal.direction == "maximize" else np.minimum).accumulate(values)
        axes.step(numbers, best, where="post", color=BLUE, linewidth=1.1, alpha=0.7, label="best so far")
        axes.plot(numbers, [shown[n] for n in numbers], "o", color=BLUE, markersize=4.5, label="complete")
    if pruned:
        numbers = tuple(number for number, _ in pruned)
        axes.plot(
            numbers, [shown[n] for n in numbers], "o", color=GREY, fillstyle="none", markersize=4.5,
            label="pruned, last rung",
        )  # fmt: skip
    if failed:
        axes.plot(
            failed, [0.03] * len(failed), "x", color=RED, markersize=5, label="failed",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    paper = paper_trial(trials)
    if paper:
        axes.axhline(paper.values[index], color=AMBER, linewidth=0.9, linestyle="--", zorder=0)
        axes.plot(paper.number, shown[paper.number], "D", color=AMBER, markersize=6, label="the paper's values")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _dress(axes, "", "trial", goal.label)
    return figure_png(figure)


def _pruned(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Pruned trials with a value to draw; of two objectives Optuna takes none on the way."""
    return [t for t in trials if t.state == PRUNED and t.rungs] if len(objectives) == 1 else []


def _parallel(
    complete: Sequence[Trial],
    paper: Trial | None,
    names: Sequence[str],
    objectives: Sequence[Objective],
    index: int,
) -> str:
    """Draw every complete trial as a line through its parameters, in the colour of its value; the paper's in amber."""
    goal = objectives[index]
    used = [name for name in names if any(name in trial.params for trial in complete)]
    if not used:
        return ""
    values = [trial.values[index] for trial in complete]
    low, high = _shown_range(values, goal)
    scales = [Scale.of([t.params[name] for t in complete if name in t.params]) for name in used]
    figure = _figure(max(6.0, min(11.0, 1.5 * (len(used) + 1))), 3.3)
    axes = figure.subplots()
    # Good values are dark on white and drawn last, whichever way the objective runs.
    colours = colormaps[COLORMAP if goal.direction == "minimize" else f"{COLORMAP}_r"]
    norm = Normalize(low, high, clip=True)
    for trial in sorted(complete, key=lambda trial: goal.gain(trial.values[index], 0.0)):
        places = [
            scale.place(trial.params[name]) if name in trial.params else MISSING
            for name, scale in zip(used, scales, strict=True)
        ]
        places.append((min(max(trial.values[index], low), high) - low) / (high - low))
        how: dict[str, Any] = {"color": colours(norm(trial.values[index])), "linewidth": 1.1, "alpha": 0.85}
        if trial is paper:
            how = {"color": AMBER, "linewidth": 1.8, "linestyle": "--", "zorder": 3}
        axes.plot(range(len(places)), places, marker="o", markersize=2.5, **how)
    missing = any(name not in trial.params for trial in complete for name in used)
    ends = [value for value in sorted({min(values), max(values)}) if low <= value <= high]
    value_ticks = [((value - low) / (high - low), f"{value:.4g}") for value in ends]
    for place, ticks in enumerate([*(scale.ticks() for scale in scales), value_ticks]):
        axes.axvline(place, color=FAINT, linewidth=0.9, zorder=0)
        for where, label in ticks:
            axes.annotate(
                label, (place, where), xytext=(4, 0), textcoords="offset points", fontsize=6.5, color=INK, va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
            )  # fmt: skip
    if missing:
        axes.annotate(
            "not in\nthis trial", (0, MISSING), xytext=(-8, 0), textcoords="offset points", fontsize=6.5, color=INK,
            ha="right", va="center",
        )  # fmt: skip
    labels = [name.replace(".", ".\n", 1) for name in used]
    labels = [f"{name}\n(log)" if scale.kind == "log" else name for name, scale in zip(labels, scales, strict=True)]
    axes.set_xticks(range(len(used) + 1), [*labels, goal.label])
    axes.set_ylim((MISSING if missing else 0.0) - 0.06, 1.06)
    axes.set_yticks([])
    _dress(axes, "", "", "")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(axis="x", length=0)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.02, fraction=0.03)
    bar.set_label(goal.label, fontsize=7.5, color=INK)
    bar.ax.tick_params(labelsize=6.5)
    return figure_png(figure)


def _importances(told: Mapping[str, Mapping[str, float]]) -> str:
    """Draw the shares as bars, one panel per objective."""
    if not told:
        return ""
    longest = max(len(shares) for shares in told.values())
    figure = _figure(4.9 * len(told), 0.6 + 0.24 * longest)
    panels = figure.subplots(1, len(told), squeeze=False)[0]
    for axes, (objective, shares) in zip(panels, told.items(), strict=True):
        ranked = sorted(shares.items(), key=lambda item: item[1])
        axes.barh([name for name, _ in ranked], [share for _, share in ranked], color=BLUE, height=0.62)
        for place, (_, share) in enumerate(ranked):
            axes.text(share + 0.01, place, f"{share:.2f}", va="center", fontsize=7, color=INK)
        axes.set_xlim(0, 1.08 * max(share for _, share in ranked) + 0.04)
        _dress(axes, objective if len(told) > 1 else "", "share of importance", "")
        axes.tick_params(axis="y", length=0)
    return figure_png(figure)


def _slices(trials: Sequence[Trial], names: Sequence[str], objectives: Sequence[Objective], index: int) -> str:
    """Draw the value against every parameter, later trials darker, pruned ones hollow."""
    goal = objectives[index]
    complete = [trial for trial in trials if trial.values]
    used = [name for name in names if any(name in trial.params for trial in complete)]
    if not used:
        return ""
    pruned = _pruned(trials, objectives)
    reached = [trial.values[index] for trial in complete] + [trial.rungs[-1][1] for trial in pruned]
    limits = _shown_range(reached, goal)
    columns = min(4, len(used))
    num_rows = -(-len(used) // columns)
    figure = _figure(2.75 * columns, 2.05 * num_rows)
    grid = figure.subplots(num_rows, columns, squeeze=False, sharey=True)
    paper = paper_trial(trials)
    for axes, name in zip(grid.flat, used, strict=False):
        have = [trial for trial in complete if name in trial.params]
        lost = [trial for trial in pruned if name in trial.params]
        scale = Scale.of([trial.params[name] for trial in (*have, *lost)])
        is_word = scale.kind == "category"

        def x(trial: Trial) -> Any:
            value = trial.params[name]  # noqa: B023  (called in this turn only)
            return scale.categories.index(_text(value)) if is_word else float(value)  # noqa: B023

        axes.set_ylim(*limits)
        values = np.clip([trial.values[index] for trial in have], *limits)
        axes.scatter(
            [x(t) for t in have], values, c=[t.number for t in have], cmap="Blues", vmin=-len(trials), vmax=len(trials),
            s=15, zorder=2,
        )  # fmt: skip
        rungs = np.clip([trial.rungs[-1][1] for trial in lost], *limits)
        axes.plot([x(t) for t in lost], rungs, "o", color=GREY, fillstyle="none", markersize=4)
        if paper and name in paper.params:
            axes.plot(x(paper), np.clip(paper.values[index], *limits), "D", color=AMBER, markersize=5)
        if is_word:
            axes.set_xticks(range(len(scale.categories)), scale.categories)
            axes.set_xlim(-0.6, len(scale.categories) - 0.4)
        elif scale.kind == "log":
            axes.set_xscale("log")
        elif scale.low == scale.high:
            axes.set_xticks([scale.low], [_number(scale.low)])
        else:
            whole = all(isinstance(trial.params[name], int) for trial in (*have, *lost))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
        _dress(axes, "", name, goal.label if axes in grid[:, 0] else "")
    for axes in list(grid.flat)[len(used) :]:
        axes.set_visible(False)
    return figure_png(figure)


def _front(
    complete: Sequence[Trial], front: Sequence[Trial], paper: Trial | None, objectives: Sequence[Objective]
) -> str:
    """Draw the trials in the plane of the two objectives and the steps of their front."""
    if not complete:
        return ""
    figure = _figure(5.6, 3.8)
    axes = figure.subplots()
    axes.plot(*zip(*(trial.values for trial in complete), strict=True), "o", color=GREY, markersize=4, label="complete")
    steps = sorted(trial.values for trial in front)
    # Between two trials of the front the second objective is the one's that is no worse in the first.
    where: Literal["pre", "post"] = "post" if objectives[0].direction == "minimize" else "pre"
    axes.step(*zip(*steps, strict=True), where=where, color=BLUE, linewidth=1.1)
    axes.plot(*zip(*steps, strict=True), "o", color=BLUE, markersize=6, label="Pareto front")
    if paper:
        axes.plot(*paper.values, "D", color=AMBER, markersize=6.5, label="the paper's values")
    for trial in front[:MOST_ON_FRONT]:
        x, y = trial.values
        axes.annotate(str(trial.number), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7, color=INK)
    axes.margins(0.08)
    axes.legend(fontsize=7, frameon=False)
    better = ["higher" if goal.direction == "maximize" else "lower" for goal in objectives]
    _dress(axes, "", *(f"{goal.label}, {how} is better" for goal, how in zip(objectives, better, strict=True)))
    return figure_png(figure)


def _rungs(trials: Sequence[Trial], best: Sequence[Trial], objectives: Sequence[Objective]) -> str:
    """Draw the values that a trial reported on its way, where it reported any."""
    told = [trial for trial in trials if trial.rungs] if any(len(trial.rungs) > 1 for trial in trials) else []
    if not told or len(objectives) > 1:
        return ""
    limits = _shown_range([value for trial in told for _, value in trial.rungs], objectives[0])
    figure = _figure(9.2, 2.8)
    axes = figure.subplots()
    seen: set[str] = set()
    for trial in sorted(told, key=lambda trial: trial in best):
        how = "best" if trial in best else trial.told
        colour = {"best": BLUE, "complete": "#8fbcdb", "failed": RED}.get(how, GREY)
        width, style = (1.8, "-") if how == "best" else (0.9, "-" if how == "complete" else "--")
        steps, values = zip(*trial.rungs, strict=True)
        axes.plot(
            steps, np.clip(values, *limits), style, color=colour, linewidth=width, marker="o", markersize=3,
            fillstyle="none" if how == "pruned" else "full", label=None if how in seen else how,
        )  # fmt: skip
        seen.add(how)
    axes.set_ylim(*limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _dress(axes, "", "rung", objectives[0].label)
    return figure_png(figure)
