"""Trials of a sweep as its page needs them: objectives, the paper's trial, the Pareto front, importances."""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna

Direction = Literal["minimize", "maximize"]

INTERRUPTED = "interrupted"  # by what killed the sweep; another trial has gone on with it

COMPLETE, PRUNED, FAILED = "COMPLETE", "PRUNED", "FAIL"  # Optuna's names of a trial's end

PAPER = 0  # number of the trial that holds the paper's values

MIN_TRIALS = 10  # below this no importance is told

MOST_ON_FRONT = 12  # trials beside each other in the table of the front; the CSV holds all
BEST_GROUP = 5  # trials that PED-ANOVA's best group must hold, as Optuna advises


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
        return number_text(value) + ("" if self.units in ("", "1") else f" {self.units}")

    def gain(self, value: float, over: float) -> float:
        """How much better ``value`` is than ``over``: positive is better, whichever way the objective runs."""
        return value - over if self.direction == "maximize" else over - value


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


def trial_of(told: Mapping[str, Any]) -> Trial:
    """Return one entry of ``tuning.trials.history`` as a trial."""
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


def number_text(value: float) -> str:
    """Write a number to four significant digits."""
    return f"{value:.5g}".replace("-", "−")


def value_text(value: object) -> str:
    """A parameter's value as the page shows it."""
    match value:
        case None | bool() | str() | int():
            return str(value)
        case float():
            return number_text(value)
    return json.dumps(value, default=str)
