"""Ray Tune around a study: trials side by side, stopped early between budgets.

A trial of one worker trains inside Tune's actor, which the next trial reuses: processes start, libraries load and the
cohort is opened once per core, not once per trial.  A trial of several workers is a Ray Train job per budget.  Trials
stop between two budgets, never in the middle of one, so no process has to be killed to stop a trial early."""

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna

from petscale.cluster import session as sessions
from petscale.cluster.placement import asking, times
from petscale.config import RunConfig
from petscale.tuning.objectives import objective
from petscale.tuning.table import TrialTable
from petscale.tuning.trial import TrialJob, Work
from petscale.tuning.trials import ask, finished, folder_of, report, requeue, tell
from storage.errors import InputError
from trainers.time_limit import TimeLimit
from tune_spaces import Space

SCRATCH = ".tune-"  # Ray Tune's own notes: where every node sees them, and of no use to anyone afterwards

DIED = "the trial's process died"

HALTING = (
    "CLU_",
    "DISK_",
    "STORE_",
)  # errors that no trial caused end the sweep; once fixed, it continues


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What is searched, by what, and how long.

    Args:
        spaces: names of the recipe's spaces, whose suggestions are joined.
        objectives: one or two names of ``objective``, scored on validation patients.
        trials: finished trials wanted, those of earlier sessions included.
        sampler: tpe, random or nsga2.
        seed: of the sampler.
        rungs: budgets of a trial, each ``factor`` times the one before; the last is the run's whole length.  With one
            there is nothing to stop early at.
        factor: of budgets, and of the trials that ASHA stops at each: all but the best 1 / factor.
        at_once: trials side by side, 0 for as many as the cluster holds.
        gpus: of a trial of one worker; a fraction lets several share one.
        storage: of the study: empty for a journal file in its folder, sqlite, or a URL.
    """

    spaces: tuple[str, ...] = ("losses",)
    objectives: tuple[str, ...] = ("psnr_body",)
    trials: int = 16
    sampler: str = "tpe"
    seed: int = 0
    rungs: int = 1
    factor: int = 3
    at_once: int = 0
    gpus: float = 1.0
    storage: str = ""


def _trainable(work: Work) -> type:
    """Tune's view of a trial: one step per budget; actors are reused, a step that fails as a user's mistake is told."""
    from ray import tune

    class Trial(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self._job, self._rung = TrialJob.from_json(config), 0

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            rung, self._rung = self._rung, self._rung + 1
            last = self._rung >= self._job.rungs
            result = {"budget": self._job.factor**rung, "rung": rung, "done": last, "refused": "", "stopped": False}
            unknown = dict.fromkeys(self._job.objectives, math.nan)
            try:
                scored = work(self._job, rung)
                if scored is None:  # its time is over: below every budget, so that no other trial is measured by it
                    result |= {"budget": 0, "done": True, "stopped": True}
                values = scored or unknown
            except InputError as error:
                values = unknown
                told = {key: getattr(error, key) for key in ("code", "where", "found", "remedy")}
                result |= {"done": True, "refused": json.dumps(told)}
            return {**result, "values": json.dumps(values), "asha": _to_maximise(values, self._job.objectives[0])}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing: a trial's folder is its checkpoint."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing, as above."""

    return Trial


def _to_maximise(values: Mapping[str, float], first: str) -> float:
    """The first objective, to be maximised, for the scheduler; a failed trial is the worst."""
    sign = 1 if objective(first).direction == "maximize" else -1
    value = sign * values[first]
    return value if math.isfinite(value) else -1e30


@dataclass(frozen=True)
class _Asked:
    """A trial under way: Optuna's, and what it was told to try."""

    trial: optuna.Trial
    settings: Mapping[str, Any]


def _searcher(
    opened: optuna.Study,
    space: Space,
    trials: int,
    common: TrialJob,
    shown: TrialTable,
    limit: TimeLimit | None,
) -> Any:
    """Tune's view of the study: ask for the next trial, tell what became of it."""
    from ray.tune.search import Searcher

    class StudySearch(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(metric="asha", mode="max")
            self.asked: dict[str, _Asked] = {}
            self.halted: InputError | None = None  # by what no trial is to blame for
            self.begun = False

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its searcher; the study is kept elsewhere

        def suggest(self, trial_id: str) -> Any:
            with self._halting():
                over = self.begun and limit is not None and limit.near  # one begins, so that every command gets on
                if over or len(finished(opened)) + len(self.asked) >= trials:
                    return None if self.asked else Searcher.FINISHED
                self.begun = True
                asked = self.asked[trial_id] = _Asked(*ask(opened, space))
                folder = Path(common.folder) / str(folder_of(asked.trial))
                shown.began(asked.trial.number, folder, asked.settings)
                left_s = limit.left_s if limit else None
                job = replace(common, settings=asked.settings, folder=str(folder))
                return replace(job, stop_in_s=left_s, told_at=time.time()).to_json()
            return Searcher.FINISHED  # Tune looks whether to stop only when a trial tells something

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            with self._halting():
                self._heard(self.asked[trial_id], result)

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            with self._halting():
                self._ended(self.asked.pop(trial_id), result, died=error or not result)

        @contextmanager
        def _halting(self) -> Iterator[None]:
            """What the study's store refuses ends the sweep; Tune would log it and call again."""
            try:
                yield
            except InputError as error:
                self.halted = self.halted or error

        def _ended(self, asked: _Asked, result: Any, *, died: bool) -> None:
            refused = None if died or not result["refused"] else InputError(**json.loads(result["refused"]))
            if refused and refused.code.startswith(HALTING):
                self.halted = refused
            whole = not died and not refused and result["rung"] + 1 == common.rungs
            stopped = not died and result["stopped"]
            if stopped or (self.halted and not whole):  # it stays in the study, and the same command continues it
                shown.ended(asked.trial.number, "RUNNING", "")
                return
            note = str(refused) if refused else DIED if died else ""
            if died:
                told = tell(opened, asked.trial, state="FAIL", note=note)
            elif refused:  # it would be refused or diverge again, unless its processes died
                state: Literal["FAIL", "PRUNED"] = "FAIL" if refused.code == "TRAIN_FAILED" else "PRUNED"
                told = tell(opened, asked.trial, state=state, note=note)
            else:
                values = self._heard(asked, result)
                told = tell(opened, asked.trial, values if whole else None, state="COMPLETE" if whole else "PRUNED")
            if told == "FAIL":
                requeue(opened, alive=[other.trial.number for other in self.asked.values()])
            shown.ended(asked.trial.number, told, note)

        def _heard(self, asked: _Asked, result: dict[str, Any]) -> list[float]:
            values = json.loads(result["values"])
            report(asked.trial, result["rung"], values[common.objectives[0]])
            shown.heard(asked.trial.number, result["rung"], values)
            return list(values.values())

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the study is kept elsewhere."""

    return StudySearch()


def run_trials(
    opened: optuna.Study,
    space: Space,
    base: RunConfig,
    config: SweepConfig,
    common: TrialJob,
    shown: TrialTable,
    work: Work,
    limit: TimeLimit | None = None,
) -> None:
    """Run trials until the study has as many as are wanted, or the time is over.

    Args:
        common: what all trials share; its folder is the one that holds theirs.
        limit: near it no trial begins, and those that run stop by themselves, with a checkpoint.
    """
    cluster = base.cluster
    cores = cluster.workers * cluster.cpus_per_worker
    side_by_side = config.at_once or max(1, (os.cpu_count() or 1) // cores)
    gpus = config.gpus if cluster.workers == 1 else 1
    worker = {"CPU": cluster.cpus_per_worker} | ({"GPU": gpus} if cluster.device == "cuda" else {})
    # Ctrl-C is the command line's to tell; Tune would end as if all were done.
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    folder = Path(common.folder).parent
    read = [Path(cohort) / "zarr.json" for cohort in (common.cohort, *common.others)]
    with (
        sessions.session(base, side_by_side * cores, folder, *read, dashboard=True),
        asking([worker] * (config.at_once * cluster.workers)) as growing,  # trials begin as machines come
        tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch,
    ):
        # Tune does not see what the workers of a trial's own job take: more trials than fit would wait in vain.
        fit = max(1, times([worker] * cluster.workers))
        at_once = config.at_once if config.at_once and growing else min(config.at_once or fit, fit)
        from ray import tune  # not before the session has said how Ray authenticates
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

        scheduler: Any = FIFOScheduler()
        if common.rungs > 1:
            # Beyond the last budget, so that a trial ends by itself; milestones are then the budgets themselves.
            most = config.factor**common.rungs
            scheduler = ASHAScheduler("budget", metric="asha", mode="max", max_t=most, reduction_factor=config.factor)
        searcher = _searcher(opened, space, config.trials, common, shown, limit)

        class Halt(tune.Stopper):  # type: ignore[misc]
            def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
                return False

            def stop_all(self) -> bool:
                return searcher.halted is not None

            def __getstate__(self) -> dict[str, Any]:
                return {}  # Tune pickles it; nothing of Tune is ever restored

        tune.Tuner(
            tune.with_resources(_trainable(work), {"CPU": 0.01} if cluster.workers > 1 else worker),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
                stop=Halt(),
                verbose=0,
            ),
        ).fit()
        if searcher.halted:
            raise searcher.halted
