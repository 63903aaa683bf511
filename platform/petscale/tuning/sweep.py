"""``petscale tune``: checks a sweep, runs its trials, writes the best configuration and the report.

The study is the only record.  Ray Tune's own state is neither saved nor restored: it is a pickle, and it would be a
second record of what is finished.  A trial's folder is a run's folder; an interrupted trial continues in it from its
last checkpoint, and budgets at which it was scored are not trained again."""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import torch

from petscale import config as configs
from petscale.cluster import nodes
from petscale.cluster.placement import machine_cpus
from petscale.cluster.session import require_resources
from petscale.cluster.shared_storage import require_path
from petscale.config import RunConfig
from petscale.console import console
from petscale.environment import environment
from petscale.folders import BEST, REPORT, ROLES, TRIALS
from petscale.reporting.doubts import doubts_of_run
from petscale.reporting.sweep import SweepData, write_sweep
from petscale.reporting.sweep_trials import Objective as Shown
from petscale.reporting.sweep_trials import importances
from petscale.training.cohorts import open_together
from petscale.training.planning import Plan, fitted, plan_run, recorded_roles
from petscale.tuning.objectives import Objective, objective
from petscale.tuning.search import SCRATCH, SweepConfig, run_trials
from petscale.tuning.study import hold, open_study
from petscale.tuning.table import TrialTable
from petscale.tuning.trial import TrialJob, Work, ends, train_and_score
from petscale.tuning.trials import best, enqueue_first, finished, history, requeue
from storage import integrity
from storage.errors import InputError
from storage.reader import Cases
from trainers.systems import RECIPES
from trainers.time_limit import TimeLimit
from tune_spaces import Settings, Space, paper, present_names, spaces_of


def sweep(
    cohort: Path,
    folder: Path,
    base: RunConfig,
    config: SweepConfig,
    *,
    command: str,
    work: Work = train_and_score,
    others: Sequence[Path] = (),
    time_limit_s: float | None = None,
) -> list[Path]:
    """Search, or continue an interrupted search.

    Args:
        cohort: a committed cohort; its test patients are never read.
        folder: of the study.
        base: the run that trials vary.
        config: what is searched.
        command: what the user typed, for the record.
        work: trains and scores one budget of a trial.
        others: further cohorts, read as one with the first.
        time_limit_s: seconds from now in which to end: trials that run stop, with a checkpoint, and no other begins;
            None for no limit.

    Returns:
        The best trial's configuration and the report; the report alone where no trial was completed; the folder where
        the time was over before.

    Raises:
        InputError: any mistake, before a trial starts.
    """
    limit = None if time_limit_s is None else TimeLimit(time_limit_s)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what a sweep does is told by petscale, once
    cohorts, folder = [place.absolute() for place in (cohort, *others)], folder.absolute()
    config = replace(config, spaces=present_names(config.spaces))
    _check_ranges(config)
    if base.cluster.least_workers:
        raise InputError(
            "CFG_RANGE",
            where="cluster.least_workers",
            found=f"{base.cluster.least_workers}: trials side by side would take each other's room",
            remedy="give one number of workers: --set cluster.least_workers=0",
        )
    require_path(*cohorts, folder)
    base = replace(base, loop=replace(base.loop, picture_every=0))  # pictures are of test patients
    base = fitted(open_together(cohorts), base)  # spaces and records have it, not the trials alone
    space, first = _joined(base, config.spaces)
    objectives = [objective(name) for name in config.objectives]
    # A study that exists goes on with the roles that it recorded, also when its cohort has grown since.
    roles = recorded_roles(folder / ROLES, base)
    plan = plan_run(cohorts[0], folder / TRIALS / "none", base, validation=True, roles=roles, others=cohorts[1:])
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    _check_validation(plan, open_together(cohorts), objectives)
    if not nodes.joined():
        require_resources({"CPU": machine_cpus(), "GPU": torch.cuda.device_count()}, base)
    with hold(folder):
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
        opened = open_study(
            folder,
            storage=config.storage,
            identity=identity,
            objectives=objectives,
            sampler=config.sampler,
            seed=config.seed,
        )
        if roles is None:
            integrity.write_json(folder / ROLES, plan.facts)
        enqueue_first(opened, first)
        requeue(opened)
        if len(finished(opened)) < config.trials:
            common = TrialJob(
                cohort=str(cohorts[0]),
                folder=str(folder / TRIALS),
                base=configs.to_json(base),
                settings={},
                objectives=config.objectives,
                rungs=len(budgets),
                factor=config.factor,
                roles=asdict(plan.job.roles),
                others=tuple(map(str, cohorts[1:])),
            )
            table = TrialTable([Shown(o.name, o.direction) for o in objectives], len(budgets), config.trials)
            table.earlier(history(opened))
            with table.watching():
                run_trials(opened, space, base, config, common, table, work, limit)
            if limit and (over := len(finished(opened))) < config.trials:
                console.print(
                    f"stopped in time after {over} of {config.trials} trials; the same command continues",
                    markup=False,
                    soft_wrap=True,
                )
                return [folder]
        return _write(folder, opened, cohorts, base, config, objectives, plan, command)


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
    known = spaces_of(base.recipe, RECIPES[base.recipe])
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


def _check_validation(plan: Plan, cohort: Cases, objectives: Sequence[Objective]) -> None:
    """Refuse a sweep whose trials cannot be scored.

    Raises:
        InputError: SET_NO_VALIDATION, SET_NO_LABELS.
    """
    validation = plan.facts["validation"]
    if not validation:
        raise InputError(
            "SET_NO_VALIDATION",
            where="split",
            found="trials are scored on validation patients, and there are none",
            remedy="give it some (--set split.validation_fraction=0.2), or ingest more patients",
        )
    for wanted in objectives:
        if wanted.region in ("lesions", "organs") and not any(cohort.case(name).labels for name in validation):
            raise InputError(
                "SET_NO_LABELS",
                where=f"objective {wanted.name}",
                found="no validation patient has labels",
                remedy="ingest labels (--mask), or choose an objective of the whole volume or the body",
            )


def _write(
    folder: Path,
    opened: optuna.Study,
    cohorts: Sequence[Path],
    base: RunConfig,
    config: SweepConfig,
    objectives: Sequence[Objective],
    plan: Plan,
    command: str,
) -> list[Path]:
    """Write the best configuration and the report."""
    written = []
    commands = []
    for place, trial in enumerate(best(opened)):
        chosen = configs.with_fields(base, trial.user_attrs["settings"])
        path = folder / (BEST if place == 0 else f"best-{place + 1}.json")
        integrity.write_json(path, configs.to_json(chosen))
        # The report may be handed on, and folders may name a patient; the terminal's line is to be repeated as it is.
        commands.append(
            f"petscale train {' '.join(c.name for c in cohorts)} --config {path.name} --run runs/best-{trial.number}"
        )
        if place == 0:
            words = ["petscale", "train", *map(_from_here, cohorts), "--config", _from_here(path)]
            console.print(shlex.join([*words, "--run", f"runs/best-{trial.number}"]), markup=False, soft_wrap=True)
        written.append(path)
    page = folder / REPORT
    doubts = doubts_of_run(open_together(cohorts), plan.facts, (), (base.feed.target, *base.feed.source))
    shown = [Shown(o.name, o.direction) for o in objectives]
    write_sweep(
        page,
        SweepData(
            title=f"{base.recipe}: {' and '.join(config.spaces)}",
            recipe=base.recipe,
            spaces=config.spaces,
            objectives=shown,
            trials=history(opened),
            importances=importances(opened, shown),
            command=command,
            best_commands=commands,
            cohort_digest=integrity.root_digest(plan.facts["cases"], {}),
            environment=environment(),
            notes=[
                f"Scored on {len(plan.facts['validation'])} validation patient(s); the "
                f"{len(plan.facts['test'])} test patient(s) were not read.",
                *(f"Noted of the data: {doubt}" for doubt in doubts),
            ],
        ),
    )
    return [*written[:1], page]


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
