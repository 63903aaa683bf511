"""Charts of a sweep as PNG: history, parallel coordinates, importances, slices, Pareto front, budgets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from petscale.reporting.charts import COLORS, FAINT, INK, dress, figure_png, new_figure
from petscale.reporting.sweep_trials import (
    MOST_ON_FRONT,
    PRUNED,
    Objective,
    Trial,
    number_text,
    paper_trial,
    value_text,
)

LOG_DECADES = 2.0  # a range wider than this is drawn on a logarithmic axis

BLUE, GREY, AMBER, RED = COLORS[2], COLORS[0], COLORS[1], COLORS[5]

COLORMAP = "viridis"

MISSING = -0.14  # place of a parameter that a trial does not have, below its axis


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
            return cls("category", tuple(dict.fromkeys(sorted(map(value_text, values)))))
        low, high = float(min(values)), float(max(values))
        wide = low > 0 and math.log10(high / low) > LOG_DECADES
        return cls("log" if wide else "linear", (), low, high)

    def place(self, value: object) -> float:
        """Where ``value`` lies; a scale of one value has it in the middle."""
        if self.kind == "category":
            return (self.categories.index(value_text(value)) + 0.5) / len(self.categories)
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


def draw_history(trials: Sequence[Trial], objectives: Sequence[Objective], index: int) -> str:
    """Draw the value over the trial's number, the best so far, pruned trials hollow at their last rung."""
    goal = objectives[index]
    complete = [(trial.number, trial.values[index]) for trial in trials if trial.values]
    pruned = [(trial.number, trial.rungs[-1][1]) for trial in _pruned(trials, objectives)]
    failed = [trial.number for trial in trials if trial.told == "failed"]
    if not complete and not pruned:
        return ""
    figure = new_figure(9.2, 2.6)
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
    dress(axes, "", "trial", goal.label)
    return figure_png(figure)


def _pruned(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Pruned trials with a value to draw; of two objectives Optuna takes none on the way."""
    return [t for t in trials if t.state == PRUNED and t.rungs] if len(objectives) == 1 else []


def draw_parallel(
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
    figure = new_figure(max(6.0, min(11.0, 1.5 * (len(used) + 1))), 3.3)
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
    dress(axes, "", "", "")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(axis="x", length=0)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.02, fraction=0.03)
    bar.set_label(goal.label, fontsize=7.5, color=INK)
    bar.ax.tick_params(labelsize=6.5)
    return figure_png(figure)


def draw_importances(told: Mapping[str, Mapping[str, float]]) -> str:
    """Draw the shares as bars, one panel per objective."""
    if not told:
        return ""
    longest = max(len(shares) for shares in told.values())
    figure = new_figure(4.9 * len(told), 0.6 + 0.24 * longest)
    panels = figure.subplots(1, len(told), squeeze=False)[0]
    for axes, (objective, shares) in zip(panels, told.items(), strict=True):
        ranked = sorted(shares.items(), key=lambda item: item[1])
        axes.barh([name for name, _ in ranked], [share for _, share in ranked], color=BLUE, height=0.62)
        for place, (_, share) in enumerate(ranked):
            axes.text(share + 0.01, place, f"{share:.2f}", va="center", fontsize=7, color=INK)
        axes.set_xlim(0, 1.08 * max(share for _, share in ranked) + 0.04)
        dress(axes, objective if len(told) > 1 else "", "share of importance", "")
        axes.tick_params(axis="y", length=0)
    return figure_png(figure)


def draw_slices(trials: Sequence[Trial], names: Sequence[str], objectives: Sequence[Objective], index: int) -> str:
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
    figure = new_figure(2.75 * columns, 2.05 * num_rows)
    grid = figure.subplots(num_rows, columns, squeeze=False, sharey=True)
    paper = paper_trial(trials)
    for axes, name in zip(grid.flat, used, strict=False):
        have = [trial for trial in complete if name in trial.params]
        lost = [trial for trial in pruned if name in trial.params]
        scale = Scale.of([trial.params[name] for trial in (*have, *lost)])
        is_word = scale.kind == "category"

        def x(trial: Trial) -> Any:
            value = trial.params[name]  # noqa: B023  (called in this turn only)
            return scale.categories.index(value_text(value)) if is_word else float(value)  # noqa: B023

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
            axes.set_xticks([scale.low], [number_text(scale.low)])
        else:
            whole = all(isinstance(trial.params[name], int) for trial in (*have, *lost))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
        dress(axes, "", name, goal.label if axes in grid[:, 0] else "")
    for axes in list(grid.flat)[len(used) :]:
        axes.set_visible(False)
    return figure_png(figure)


def draw_front(
    complete: Sequence[Trial], front: Sequence[Trial], paper: Trial | None, objectives: Sequence[Objective]
) -> str:
    """Draw the trials in the plane of the two objectives and the steps of their front."""
    if not complete:
        return ""
    figure = new_figure(5.6, 3.8)
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
    dress(axes, "", *(f"{goal.label}, {how} is better" for goal, how in zip(objectives, better, strict=True)))
    return figure_png(figure)


def draw_budgets(trials: Sequence[Trial], best: Sequence[Trial], objectives: Sequence[Objective]) -> str:
    """Draw the values that a trial reported on its way, where it reported any."""
    told = [trial for trial in trials if trial.rungs] if any(len(trial.rungs) > 1 for trial in trials) else []
    if not told or len(objectives) > 1:
        return ""
    limits = _shown_range([value for trial in told for _, value in trial.rungs], objectives[0])
    figure = new_figure(9.2, 2.8)
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
    dress(axes, "", "rung", objectives[0].label)
    return figure_png(figure)
