"""A sweep: Ray Tune runs trials, an Optuna study remembers them, and the same command goes on after any death.

What it knows: how a trial is trained budget by budget, judged on validation patients after each, and stopped early.
What it refuses to know: what is suggested (``tune_spaces``), how a study is kept (``petscale.study``), test patients.

The study is the only truth.  Ray Tune's own state is neither saved nor restored: it is a pickle, and it would be a
second notion of what is finished.  A trial's folder is a run's; a trial that died goes on in it from its last
checkpoint, and budgets that it has been judged at are not trained again.

A trial of one worker trains inside Tune's actor, which the next trial reuses: processes start, libraries load and the
cohort is opened once per core, not once per trial.  A trial of several workers is a Ray Train job per budget.  Trials
stop between two budgets, never in the middle of one, so nothing has to be killed to stop one early.
"""

import json
import math
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from petscale import config as configs
from petscale import gauges, launch, nodes, study
from petscale.assess import REPORT, environment
from petscale.config import RunConfig
from petscale.evaluate import SYNTHESIZED, score_case
from petscale.progress import console
from petscale.report.sweep import Objective as Shown
from petscale.report.sweep import SweepData, importances, write_sweep
from petscale.study import Objective
from petscale.synthesize import open_run
from petscale.trial_table import TrialTable
from storage import integrity
from storage.errors import InputError
from storage.reader import Cohort, open_cohort
from storage.source import SUV, ArraySource
from trainers import RECIPES
from trainers.metrics.definitions import Score
from trainers.synthesize import synthesize
from tune_spaces import SPACES, Settings, Space, paper

JUDGED, TRIALS, BEST = "judged.json", "trials", "best.json"
SCRATCH = ".tune-"  # Ray Tune's own notes: where every node sees them, and of no use to anyone afterwards
DIED = "the trial's process died"
HALTING = ("CLU_", "DISK_", "STORE_")  # codes of what no trial is to blame for: the sweep ends, to go on when mended
Work = Callable[[Mapping[str, Any], int], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What is searched, by what, and how long.

    Args:
        spaces: names of the recipe's spaces, whose suggestions are joined.
        objectives: one or two names of ``study.objective``, judged on validation patients.
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


def ends(num_steps: int, rungs: int, factor: int) -> list[int]:
    """Steps after which a trial is judged, the last one the whole run's; budgets too small to differ fall together."""
    return sorted({max(1, num_steps // factor**left) for left in range(rungs)})


# ---- one trial ------------------------------------------------------------------------------------------------------


def train_until(plan: launch.Plan, until: int) -> None:
    """Train a trial up to a step: here where it has one worker, else as a Ray Train job.

    Raises:
        InputError: what a worker refused.
    """
    # The study is ours alone: whoever holds the run is this trial's last attempt, on a node that is lost.
    with integrity.exclusive(plan.run, purpose="train", wait_s=launch.FENCE_S):
        plan.record("petscale tune")
        if plan.config.cluster.workers > 1:
            launch.train_on_ray(plan, until=until)
            return
        _join_alone()
        launch.train_worker({**plan.settings, "until": until})
        launch.raise_refusal(plan.run)


def _join_alone() -> None:
    """Make a process group of this process only, as engines expect; it serves the actor's later trials too."""
    if not dist.is_initialized():
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        dist.init_process_group(
            "gloo",
            store=dist.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
        )


def validation_scores(run: Path, cohort: Cohort, cases: Sequence[str]) -> list[Score]:
    """Synthesize and score the validation patients of a run; a whole volume is held in memory."""
    trained = open_run(run)
    config = trained.config
    rows = []
    for name in cases:
        case = cohort.case(name)
        for low in config.feed.low:
            grid = case.image(low).grid
            volume = np.empty(grid.shape, dtype=np.float32)

            def put(z0: int, slab: NDArray[np.float32]) -> None:
                volume[z0 : z0 + len(slab)] = np.maximum(slab, 0)  # noqa: B023

            scale = config.feed.suv_scale
            synthesize(trained.synthesizer, case, low, put, suv_scale=scale, device=trained.device)
            rows += score_case(
                f"{name} {low}",
                case.image(config.feed.full),
                {SYNTHESIZED: ArraySource(volume, grid, SUV)},
                body=case.image("body"),
                labels=case.image("labels") if case.labels else None,
                label_names=case.labels,
                lesions=[label for label in case.labels.values() if label.startswith("lesion")],
                presets=tuple(dict.fromkeys(("native", RECIPES[config.recipe].PRESET))),
            )
    return rows


def train_and_judge(settings: Mapping[str, Any], rung: int) -> dict[str, float]:
    """Train a trial up to one of its budgets and judge it; what was judged before is read back.

    Args:
        settings: what ``sweep`` gives every trial, plain JSON.
        rung: which budget, from 0.

    Returns:
        Objective's name -> value on validation patients.

    Raises:
        InputError: a configuration that cannot be trained, or training that failed.
    """
    run = Path(settings["folder"])
    judged: dict[str, dict[str, float]] = json.loads((run / JUDGED).read_bytes()) if (run / JUDGED).is_file() else {}
    if str(rung) not in judged:
        config = configs.override(configs.from_json(settings["base"]), _words(settings["settings"]))
        plan = launch.plan_run(Path(settings["cohort"]), run, config, validation=True)
        run.mkdir(parents=True, exist_ok=True)
        train_until(plan, ends(plan.num_steps, settings["rungs"], settings["factor"])[rung])
        rows = validation_scores(run, open_cohort(Path(settings["cohort"])), plan.facts["validation"])
        wanted = [study.objective(name) for name in settings["objectives"]]
        judged[str(rung)] = {o.name: study.value_of(o, rows, SYNTHESIZED) for o in wanted}
        integrity.write_json(run / JUDGED, judged)
        gauges.judged(run, config.recipe, judged[str(rung)])
    return judged[str(rung)]


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as ``--set`` takes them; values are Python literals."""
    return [f"{name}={value!r}" for name, value in settings.items()]


# ---- Ray Tune -------------------------------------------------------------------------------------------------------


def _trainable(work: Work) -> type:
    """Tune's view of a trial: one step per budget; actors are reused, a step that fails as a user's mistake is told."""
    from ray import tune

    class Trial(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self._config, self._rung = config, 0

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            rung, self._rung = self._rung, self._rung + 1
            last = self._rung >= self._config["rungs"]
            result = {"budget": self._config["factor"] ** rung, "rung": rung, "done": last, "refused": ""}
            try:
                values = work(self._config, rung)
            except InputError as error:
                values = dict.fromkeys(self._config["objectives"], math.nan)
                told = {key: getattr(error, key) for key in ("code", "where", "found", "remedy")}
                result |= {"done": True, "refused": json.dumps(told)}
            return {**result, "values": json.dumps(values), "asha": _finite(values, self._config)}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing: a trial's folder is its checkpoint."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing, as above."""

    return Trial


def _finite(values: Mapping[str, float], config: Mapping[str, Any]) -> float:
    """The first objective, to be maximised, for the scheduler; a failed trial is the worst."""
    first = config["objectives"][0]
    sign = 1 if study.objective(first).direction == "maximize" else -1
    value = sign * values[first]
    return value if math.isfinite(value) else -1e30


@dataclass(frozen=True)
class _Asked:
    """A trial under way: Optuna's, and what it was told to try."""

    trial: optuna.Trial
    settings: Mapping[str, Any]


def _searcher(opened: optuna.Study, space: Space, trials: int, common: Mapping[str, Any], shown: TrialTable) -> Any:
    """Tune's view of the study: ask for the next trial, tell what became of it."""
    from ray.tune.search import Searcher

    class StudySearch(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(metric="asha", mode="max")
            self.asked: dict[str, _Asked] = {}
            self.halted: InputError | None = None  # by what no trial is to blame for

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its searcher; the study is kept elsewhere

        def suggest(self, trial_id: str) -> Any:
            with self._halting():
                if len(study.finished(opened)) + len(self.asked) >= trials:
                    return None if self.asked else Searcher.FINISHED
                asked = self.asked[trial_id] = _Asked(*study.ask(opened, space))
                folder = Path(common["place"]) / str(study.folder_of(asked.trial))
                shown.began(asked.trial.number, folder, asked.settings)
                return {**common, "settings": asked.settings, "folder": str(folder)}
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
            whole = not died and not refused and result["rung"] + 1 == common["rungs"]
            if self.halted and not whole:  # it stays as it is in the study, and the same command goes on with it
                shown.ended(asked.trial.number, "RUNNING", "")
                return
            note = str(refused) if refused else DIED if died else ""
            if died:
                told = study.tell(opened, asked.trial, state="FAIL", note=note)
            elif refused:  # it would be refused or diverge again, unless its processes died
                state: Literal["FAIL", "PRUNED"] = "FAIL" if refused.code == "TRAIN_FAILED" else "PRUNED"
                told = study.tell(opened, asked.trial, state=state, note=note)
            else:
                values = self._heard(asked, result)
                told = study.tell(
                    opened, asked.trial, values if whole else None, state="COMPLETE" if whole else "PRUNED"
                )
            if told == "FAIL":
                study.requeue(opened, alive=[other.trial.number for other in self.asked.values()])
            shown.ended(asked.trial.number, told, note)

        def _heard(self, asked: _Asked, result: dict[str, Any]) -> list[float]:
            values = json.loads(result["values"])
            study.report(asked.trial, result["rung"], values[common["objectives"][0]])
            shown.heard(asked.trial.number, result["rung"], values)
            return list(values.values())

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the study is kept elsewhere."""

    return StudySearch()


def _run(
    opened: optuna.Study,
    space: Space,
    base: RunConfig,
    config: SweepConfig,
    common: Mapping[str, Any],
    shown: TrialTable,
    work: Work,
) -> None:
    """Run trials until the study has as many as are wanted."""
    cluster = base.cluster
    cores = cluster.workers * cluster.cpus_per_worker
    room = config.at_once or max(1, (os.cpu_count() or 1) // cores)
    gpus = config.gpus if cluster.workers == 1 else 1
    worker = {"CPU": cluster.cpus_per_worker} | ({"GPU": gpus} if cluster.device == "cuda" else {})
    # Ctrl-C is the command line's to tell; Tune would end as if all were done.
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    folder, cohort = Path(common["place"]).parent, Path(common["cohort"])
    with (
        launch.session(base, room * cores, folder, cohort / "zarr.json", dashboard=True),
        nodes.asking([worker] * (config.at_once * cluster.workers)) as growing,  # trials begin as machines come
        tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch,
    ):
        # Tune does not see what the workers of a trial's own job take: more trials than fit would wait in vain.
        fit = max(1, nodes.times([worker] * cluster.workers))
        at_once = config.at_once if config.at_once and growing else min(config.at_once or fit, fit)
        from ray import tune  # not before the session has said how Ray authenticates
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

        scheduler: Any = FIFOScheduler()
        if common["rungs"] > 1:
            # Beyond the last budget, so that a trial ends by itself; milestones are then the budgets themselves.
            most = config.factor ** common["rungs"]
            scheduler = ASHAScheduler("budget", metric="asha", mode="max", max_t=most, reduction_factor=config.factor)
        searcher = _searcher(opened, space, config.trials, common, shown)

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


# ---- a sweep --------------------------------------------------------------------------------------------------------


def sweep(
    cohort: Path, folder: Path, base: RunConfig, config: SweepConfig, *, command: str, work: Work = train_and_judge
) -> list[Path]:
    """Search, or go on searching.

    Args:
        cohort: a committed cohort; its test patients are never read.
        folder: of the study.
        base: the run that trials vary.
        config: what is searched.
        command: what the user typed, for the record.
        work: trains and judges one budget of a trial.

    Returns:
        The best trial's configuration and the report; the report alone where no trial was completed.

    Raises:
        InputError: any mistake, before a trial starts.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what a sweep does is told by petscale, once
    cohort, folder = cohort.absolute(), folder.absolute()
    _check_ranges(config)
    nodes.require_path(cohort, folder)
    base = replace(base, loop=replace(base.loop, picture_every=0))  # pictures are of test patients
    space, first = _joined(base, config.spaces)
    objectives = [study.objective(name) for name in config.objectives]
    plan = launch.plan_run(cohort, folder / TRIALS / "none", base, validation=True)
    _check_judges(plan, open_cohort(cohort), objectives)
    if not nodes.joined():
        launch.require_resources({"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}, base)
    with study.hold(folder):
        budgets = ends(plan.num_steps, config.rungs, config.factor)
        identity = {
            "recipe": base.recipe,
            "spaces": list(config.spaces),
            "cases": plan.facts["cases"],
            "configuration": base.identity(),
            "budgets": budgets,
        }
        for left in folder.glob(f"{SCRATCH}*"):  # by a killed driver; we hold the folder
            shutil.rmtree(left, ignore_errors=True)
        opened = study.open_study(
            folder,
            storage=config.storage,
            identity=identity,
            objectives=objectives,
            sampler=config.sampler,
            seed=config.seed,
        )
        study.enqueue_first(opened, first)
        study.requeue(opened)
        if len(study.finished(opened)) < config.trials:
            common = {
                "cohort": str(cohort),
                "place": str(folder / TRIALS),
                "base": configs.to_json(base),
                "objectives": list(config.objectives),
                "rungs": len(budgets),
                "factor": config.factor,
            }
            table = TrialTable([Shown(o.name, o.direction) for o in objectives], len(budgets), config.trials)
            table.earlier(study.history(opened))
            with table.watching():
                _run(opened, space, base, config, common, table, work)
        return _write(folder, opened, cohort, base, config, objectives, plan, command)


def _check_ranges(config: SweepConfig) -> None:
    for where, found, good, wanted in (
        ("--trials", config.trials, config.trials >= 1, "1 or more"),
        ("--rungs", config.rungs, config.rungs >= 1, "1 or more"),
        ("--factor", config.factor, config.factor >= 2, "2 or more"),
        ("--at-once", config.at_once, config.at_once >= 0, "0 or more"),
        ("--gpus", config.gpus, 0 < config.gpus <= 1, "a share of a GPU, above 0 and up to 1"),
        ("--seed", config.seed, config.seed >= 0, "0 or more"),
        ("--spaces", config.spaces, 0 < len(set(config.spaces)) == len(config.spaces), "names, each once"),
    ):
        if not good:
            raise InputError("CFG_RANGE", where=where, found=repr(found), remedy=f"give {wanted}")


def _joined(base: RunConfig, names: Sequence[str]) -> tuple[Space, dict[str, Any]]:
    """The spaces as one, and the first trial's parameters: those of the run that trials vary.

    Raises:
        InputError: TUNE_SPACE; CFG_RANGE where that run lies outside a space.
    """
    known = SPACES[base.recipe]
    for name in names:
        if name not in known:
            raise InputError(
                "TUNE_SPACE",
                where="--spaces",
                found=f"{base.recipe} has no space '{name}'",
                remedy=f"choose among {', '.join(known)}",
            )
    first: dict[str, Any] = {}
    for name in names:
        first |= paper(base.recipe, name, base.model)

    def joined(trial: optuna.trial.BaseTrial) -> Settings:
        settings: Settings = {}
        for name in names:
            settings |= known[name](trial)
        return settings

    return joined, first


def _check_judges(plan: launch.Plan, cohort: Cohort, objectives: Sequence[Objective]) -> None:
    """Refuse a sweep that nobody could judge.

    Raises:
        InputError: SET_NO_VALIDATION, SET_NO_LABELS.
    """
    judges = plan.facts["validation"]
    if not judges:
        raise InputError(
            "SET_NO_VALIDATION",
            where="split",
            found="trials are judged on patients kept apart for that, and there are none",
            remedy="give it some (--set split.validation_fraction=0.2), or ingest more patients",
        )
    for objective in objectives:
        if objective.region in ("lesions", "organs") and not any(cohort.case(name).labels for name in judges):
            raise InputError(
                "SET_NO_LABELS",
                where=f"objective {objective.name}",
                found="no validation patient has labels",
                remedy="ingest labels (--mask), or choose an objective of the whole volume or the body",
            )


def _write(
    folder: Path,
    opened: optuna.Study,
    cohort: Path,
    base: RunConfig,
    config: SweepConfig,
    objectives: Sequence[Objective],
    plan: launch.Plan,
    command: str,
) -> list[Path]:
    """Write the best configuration and the report."""
    written = []
    commands = []
    for place, trial in enumerate(study.best(opened)):
        chosen = configs.override(base, _words(trial.user_attrs["settings"]))
        path = folder / (BEST if place == 0 else f"best-{place + 1}.json")
        integrity.write_json(path, configs.to_json(chosen))
        # The report may be handed on, and folders may name a patient; the terminal's line is to be repeated as it is.
        commands.append(f"petscale train {cohort.name} --config {path.name} --run runs/best-{trial.number}")
        if place == 0:
            words = ["petscale", "train", _from_here(cohort), "--config", _from_here(path)]
            console.print(shlex.join([*words, "--run", f"runs/best-{trial.number}"]), markup=False, soft_wrap=True)
        written.append(path)
    page = folder / REPORT
    shown = [Shown(o.name, o.direction) for o in objectives]
    write_sweep(
        page,
        SweepData(
            title=f"{base.recipe}: {' and '.join(config.spaces)}",
            recipe=base.recipe,
            spaces=config.spaces,
            objectives=shown,
            trials=study.history(opened),
            importances=importances(opened, shown),
            command=command,
            best_commands=commands,
            cohort_digest=integrity.root_digest(plan.facts["cases"], {}),
            environment=environment(),
            notes=[
                f"Judged on {len(plan.facts['validation'])} validation patient(s); the "
                f"{len(plan.facts['test'])} test patient(s) were not read.",
            ],
        ),
    )
    return [*written[:1], page]


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
