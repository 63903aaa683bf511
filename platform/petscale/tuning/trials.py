"""Trials of a study: asked for, reported, ended, queued again after an interruption, and listed."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from petscale.tuning.study import JOURNAL, unreached
from storage.integrity import disk_errors

RETRIES = 1  # of a trial that failed by itself; an interrupted one continues as often as it is interrupted


def enqueue_first(study: optuna.Study, params: Mapping[str, Any]) -> None:
    """Let the first trial of a study that has none be ``params``, the paper's values; otherwise do nothing."""
    with _telling():
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(dict(params))


def requeue(study: optuna.Study, *, alive: Collection[int] = ()) -> list[int]:
    """Queue again what a dead driver left running and what failed less than ``RETRIES`` times; return their numbers.

    Each is taken up once, with its parameters, what it reported, and its run folder.  The successor is queued before
    the interrupted trial is told failed: a death between the two leaves a trial that has its successor already.

    Args:
        study: open in this driver alone.
        alive: numbers of running trials that are this driver's own.
    """
    again = []
    with _telling():
        trials = study.get_trials(deepcopy=False)
        taken_up = {trial.user_attrs.get("restarts") for trial in trials}
        for trial in trials:
            interrupted = trial.state is TrialState.RUNNING and trial.number not in alive
            failures = trial.user_attrs.get("failures", 0)
            failed = trial.state is TrialState.FAIL and failures > 0
            params = _params(trial)
            if (interrupted or failed) and failures <= RETRIES and trial.number not in taken_up and params:
                places = {"continues": folder_of(trial), "restarts": trial.number}
                study.enqueue_trial(params, user_attrs={**places, "failures": failures, "rungs": _rungs(trial)})
                again.append(trial.number)
            if interrupted:
                study.tell(trial.number, state=TrialState.FAIL)
    return again


def ask(
    study: optuna.Study, space: Callable[[optuna.trial.BaseTrial], dict[str, Any]]
) -> tuple[optuna.Trial, dict[str, Any]]:
    """Return the next trial, queued ones first, and the settings that ``space`` makes of it."""
    with _telling():
        trial = study.ask()
        settings = space(trial)
        trial.set_user_attr("settings", settings)
        if len(study.directions) == 1:  # what an interrupted trial has reported counts for its successor
            for rung, value in trial.user_attrs.get("rungs", {}).items():
                trial.report(value, int(rung))
    return trial, settings


def report(trial: optuna.Trial, rung: int, value: float) -> None:
    """Keep what a trial scores at ``rung`` (the scheduler's measure of budget), once; not what is not finite."""
    with _telling():
        known = _rungs(trial.study.get_trials(deepcopy=False)[trial.number])
        if str(rung) in known or not math.isfinite(value):
            return
        if len(trial.study.directions) == 1:
            trial.report(value, rung)
        else:  # Optuna keeps none where there are two objectives
            trial.set_user_attr("rungs", {**known, str(rung): value})


def tell(
    study: optuna.Study,
    trial: optuna.Trial,
    values: Sequence[float] | None = None,
    *,
    state: Literal["COMPLETE", "PRUNED", "FAIL"] = "COMPLETE",
    note: str = "",
) -> str:
    """End a trial and return the state it ended in.

    A complete trial whose value is not finite becomes PRUNED without a value: to TPE it is then worse than any that
    ended, a failed one would be forgotten and its neighbours tried again, and an invented penalty would enter
    importances and plots as if it had been measured.  It is not retried, for it would diverge again.

    After ``DISK_FULL`` the journal may end in a torn line: end the driver; the next ``open_study`` repairs it.

    Args:
        study: the study.
        trial: from ``ask``.
        values: one per objective, in order; None unless ``state`` is COMPLETE.
        state: COMPLETE; PRUNED when it was stopped early; FAIL when it broke and may be tried again.
        note: one line for the report; nothing that identifies a patient or a path.
    """
    if state == "COMPLETE" and not all(math.isfinite(value) for value in values or ()):
        state, values, note = "PRUNED", None, note or "diverged: the objective is not finite"
    with _telling():
        if note or state == "FAIL":
            trial.set_user_attr("note", note or "failed")
        if state == "FAIL":
            trial.set_user_attr("failures", trial.user_attrs.get("failures", 0) + 1)
        study.tell(trial, values, state=TrialState[state])
    return state


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that need no more work: complete, stopped early, diverged, or failed once more than ``RETRIES``."""
    return [
        trial
        for trial in study.get_trials()
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        or (trial.state is TrialState.FAIL and trial.user_attrs.get("failures", 0) > RETRIES)
    ]


def best(study: optuna.Study) -> list[FrozenTrial]:
    """The best complete trial, or the Pareto front of two objectives, best by the first of them first; none yet: []."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    if len(study.directions) == 1:
        return [study.best_trial]
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    return sorted(study.best_trials, key=lambda trial: (sign * trial.values[0], trial.number))


def folder_of(trial: FrozenTrial | optuna.Trial) -> int:
    """Number of the trial in whose run folder this one works: its own, unless it continues an interrupted one."""
    return int(trial.user_attrs.get("continues", trial.number))


def history(study: optuna.Study) -> list[dict[str, Any]]:
    """Return every trial as JSON-able facts, in order.

    ``values`` are those of complete trials: a value at a smaller budget is no value, and stands in ``intermediate``.
    ``seconds`` are of this attempt alone, None where nobody saw it end.  ``folder`` is as ``folder_of`` says.
    """
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "params": _params(trial),
            "settings": trial.user_attrs.get("settings", {}),
            "values": list(trial.values) if trial.state is TrialState.COMPLETE else None,
            "intermediate": {int(rung): value for rung, value in _rungs(trial).items()},
            "seconds": _seconds(trial),
            "folder": folder_of(trial),
            "note": _note(trial),
        }
        for trial in study.get_trials()
    ]


def _params(trial: FrozenTrial) -> dict[str, Any]:
    """What was suggested, and what a queued trial has not asked for yet."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _rungs(trial: FrozenTrial) -> dict[str, float]:
    """Rung -> value, including those of the trials that this one continues; keys as JSON has them."""
    return {**trial.user_attrs.get("rungs", {}), **{str(k): v for k, v in sorted(trial.intermediate_values.items())}}


def _interrupted(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.FAIL and "note" not in trial.user_attrs


def _seconds(trial: FrozenTrial) -> float | None:
    return None if trial.duration is None or _interrupted(trial) else trial.duration.total_seconds()


def _note(trial: FrozenTrial) -> str:
    return "interrupted" if _interrupted(trial) else str(trial.user_attrs.get("note", ""))


@contextmanager
def _telling() -> Iterator[None]:
    """A store that is lost while a sweep runs ends in one line too; a mistake of the caller's does not."""
    try:
        with disk_errors(Path(JOURNAL)):
            yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise unreached(
            "of this study", f"lost while the sweep ran ({type(error).__name__})", "run the same command again"
        ) from None
