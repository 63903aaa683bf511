"""One trial: trained up to a budget, then scored on validation patients."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from petscale import config as configs
from petscale.evaluation.kept_cases import CaseScores, keep, kept
from petscale.evaluation.scores import SYNTHESIZED
from petscale.evaluation.scoring import presets_of, score_stored_case
from petscale.folders import CASES, SCORED, STOPPED
from petscale.inference import open_run
from petscale.splits import Roles
from petscale.training import driver, metrics_export
from petscale.training.driver import raise_refusal
from petscale.training.planning import Plan, plan_run
from petscale.training.worker import FENCE_S, train_worker
from petscale.tuning.objectives import objective, value_of
from storage import integrity
from storage.joined import open_cohorts
from storage.reader import Cases
from storage.source import SUV, ArraySource
from trainers.metrics.definitions import Score
from trainers.synthesize import synthesize
from trainers.systems import RECIPES
from trainers.time_limit import OutOfTimeError, Pieces, TimeLimit


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What a trial needs; travels as plain JSON.

    Args:
        cohort: absolute path of the cohort's folder.
        folder: absolute path of the trial's run folder.
        base: the configuration as JSON that trials vary.
        settings: name of a field -> value, as a space suggests them.
        objectives: names of what it is scored by.
        rungs: number of budgets.
        factor: each budget is so many times the one before.
        roles: role -> cases, the same for all trials of a study; None to draw them.
        others: absolute paths of further cohorts' folders, read as one with the first.
        stop_in_s: seconds after ``told_at`` in which the sweep has to end, None for no limit.
        told_at: when the driver said so, in seconds since 1970.
    """

    cohort: str
    folder: str
    base: Mapping[str, Any]
    settings: Mapping[str, Any]
    objectives: tuple[str, ...]
    rungs: int
    factor: int
    roles: Mapping[str, Any] | None = None
    others: tuple[str, ...] = ()
    stop_in_s: float | None = None
    told_at: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TrialJob":
        """Inverse of ``to_json``."""
        return cls(**dict(content) | {name: tuple(content[name]) for name in ("objectives", "others")})


Work = Callable[[TrialJob, int], dict[str, float] | None]  # None where the sweep's time is over before


def ends(num_steps: int, rungs: int, factor: int) -> list[int]:
    """Steps after which a trial is scored, the last one the whole run's; budgets too small to differ become one."""
    return sorted({max(1, num_steps // factor**left) for left in range(rungs)})


def train_until(plan: Plan, until: int, limit: TimeLimit | None = None) -> bool:
    """Train a trial up to a step: here where it has one worker, else as a Ray Train job.

    Returns:
        Whether it has come so far: False where its time was over before.

    Raises:
        InputError: what a worker refused.
    """
    # The study is ours alone: whoever holds the run is this trial's last attempt, on a node that is lost.
    with integrity.exclusive(plan.run, purpose="train", wait_s=FENCE_S):
        plan.record("petscale tune")
        left_s = limit.left_s if limit else None
        if plan.config.cluster.workers > 1:
            driver.train_on_ray(plan, until=until, left_s=left_s)
        else:
            _join_alone()
            train_worker(replace(plan.job, until=until, stop_in_s=left_s, told_at=time.time()).to_json())
            raise_refusal(plan.run)
    return _stopped_at(plan.run) is None


def _stopped_at(run: Path) -> int | None:
    """The step after which a trial's time was over, None where it was not."""
    return int(integrity.read_json(run / STOPPED, "step")["step"]) if (run / STOPPED).is_file() else None


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


def validation_scores(
    run: Path, cohort: Cases, cases: Sequence[str], *, folder: Path | None = None, pieces: Pieces | None = None
) -> list[Score]:
    """Synthesize and score the validation patients of a run; a whole volume is held in memory.

    Args:
        folder: where the scores of single cases are kept until the caller has those of all; None to keep none.
        pieces: ends the work between two images where its time is over; the next call goes on with those that are left.

    Raises:
        OutOfTimeError: only with ``pieces``.
    """
    trained = open_run(run)
    config = trained.config
    presets = presets_of(RECIPES[config.recipe].PRESET)
    rows: list[Score] = []
    for name in cases:
        case = cohort.case(name)
        made_of = {"case": str(integrity.manifest(case.folder)["root"]), "weights": trained.weights}
        for source in config.feed.source:
            before = kept(folder / source, name, made_of) if folder else None
            if before is not None:
                rows += before.rows
                continue
            if pieces is not None:
                pieces.begin()
            grid = case.image(source).grid
            volume = np.empty(grid.shape, dtype=np.float32)

            def put(z0: int, slab: NDArray[np.float32]) -> None:
                volume[z0 : z0 + len(slab)] = np.maximum(slab, 0)  # noqa: B023

            synthesize(trained.synthesizer, case, source, put, device=trained.device)
            made = {SYNTHESIZED: ArraySource(volume, grid, SUV)}
            scored = score_stored_case(case, config.feed.target, made, presets=presets, alias=f"{name} {source}")
            if folder is not None:
                keep(folder / source, name, [SYNTHESIZED], CaseScores(rows=scored), made_of)
            rows += scored
    return rows


def train_and_score(job: TrialJob, rung: int) -> dict[str, float] | None:
    """Train a trial up to one of its budgets and score it; what was scored before is read back.

    Args:
        job: the trial.
        rung: which budget, from 0.

    Returns:
        Objective's name -> value on validation patients; None where the sweep's time is over, and all that was trained
        is in a checkpoint.

    Raises:
        InputError: a configuration that cannot be trained, or training that failed.
    """
    run = Path(job.folder)
    scored: dict[str, dict[str, float]] = integrity.read_json(run / SCORED) if (run / SCORED).is_file() else {}
    if str(rung) not in scored:
        config = configs.with_fields(configs.from_json(job.base), job.settings)
        roles = None if job.roles is None else Roles.recorded(job.roles)
        others = [Path(other) for other in job.others]
        plan = plan_run(Path(job.cohort), run, config, validation=True, roles=roles, others=others)
        run.mkdir(parents=True, exist_ok=True, mode=0o700)
        limit = TimeLimit.told(job.stop_in_s, job.told_at)
        until = ends(plan.num_steps, job.rungs, job.factor)[rung]
        waiting = _stopped_at(run) == until  # for its scores alone: made at once, so that every command gets on
        if not train_until(plan, until, limit):
            return None
        opened, place = open_cohorts([Path(job.cohort), *others]), run / CASES / str(rung)
        try:
            pieces = Pieces(limit, made=not waiting)
            rows = validation_scores(run, opened, plan.facts["validation"], folder=place, pieces=pieces)
        except OutOfTimeError:
            integrity.write_json(run / STOPPED, {"step": until, "steps": plan.num_steps})
            return None
        wanted = [objective(name) for name in job.objectives]
        scored[str(rung)] = {o.name: value_of(o, rows, SYNTHESIZED) for o in wanted}
        integrity.write_json(run / SCORED, scored)
        shutil.rmtree(run / CASES, ignore_errors=True)
        metrics_export.send_scores(run, config.recipe, scored[str(rung)])
    return scored[str(rung)]
