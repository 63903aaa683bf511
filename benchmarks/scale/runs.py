"""Trainings of this machine, predicted from their parts and made by petscale's worker, in turns.

The machine is shared: whole trainings one after the other would each see another machine.  So a training is made in
pieces, as trials of a sweep are, and the same steps are made with nothing side by side before or after each piece.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.scale.parts import SOURCE, TARGET
from benchmarks.scale.simulation import Outcome, Setup, replayed, simulate
from petscale import config as configs
from petscale.config import RunConfig
from petscale.folders import METRICS
from petscale.training.planning import plan_run
from petscale.training.progress import read_metrics
from petscale.training.worker import Training, prepare
from petscale.tuning.trial import train_until
from storage.reader import open_cohort
from trainers import checkpoint, feed, loop
from trainers.loop import _finite

COMMON = {
    "feed.source": (SOURCE,),
    "feed.target": TARGET,
    "cluster.workers": 1,
    "feed.cases_per_step": 2,
    "loop.picture_every": 0,
    "loop.log_every": 1000,
    "split.validation_fraction": 0.0,
}
UNET = {"recipe.channels": (4, 8), "recipe.patch": (24, 24, 24), "recipe.margin": (4, 4, 4)}
RED_CNN = {
    "recipe.channels": 1,
    "recipe.patches_per_case": 20,
    "feed.cases_per_step": 1,
    "feed.tilt_deg": 45.0,
    "loop.save_every": 15,
}
Clock = Callable[[], float]
PIECE, PIECES = 20, 6  # steps of a piece, and how many there are
RUNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "unet: the step is the longest part": ("unet", UNET | {"loop.save_every": 15}),
    "unet: a checkpoint every 2 steps": ("unet", UNET | {"loop.save_every": 2}),
    "red_cnn of 1 channel, patches tilted": ("red_cnn", RED_CNN),
    "the same, nothing read ahead, by processor time": ("red_cnn", RED_CNN | {"feed.read_ahead": 0}),
}


@dataclass(frozen=True)
class Series:
    """What was measured of a piece of a training with nothing side by side.

    Args:
        read_s: of each step's batch.
        step_s: of each step.
        save_s: of one checkpoint.
    """

    read_s: NDArray[np.float64]
    step_s: NDArray[np.float64]
    save_s: float


def configured(recipe: str, fields: Mapping[str, Any]) -> RunConfig:
    """Return a run's configuration, the paper's where nothing is said."""
    base = configs.from_json({"recipe": {"name": recipe, "defaults": "paper"}})
    return configs.with_fields(base, {**COMMON, **fields})


def clock_of(config: RunConfig) -> Clock:
    """Return the processor's time where nothing is side by side: it is that of a machine with nothing else to do."""
    return time.perf_counter if config.feed.read_ahead else time.process_time


def measure(training: Training, steps: range, config: RunConfig, scratch: Path) -> Series:
    """Make steps of a run in this process, reading each batch when it is needed, and a checkpoint."""
    now = clock_of(config)
    reads, own = [], []
    for step in steps:
        begin = now()
        batch = training.source.batch(step, steps.stop)
        middle = now()
        training.engines.begin(step, training.recipe.num_steps)
        assert _finite(training.recipe.step(batch, step), step, batch.places) is None
        reads.append(middle - begin)
        own.append(now() - middle)
    begin = now()
    checkpoint.save(scratch, steps.stop, training.recipe.state(), {}, keep=config.loop.keep)
    return Series(np.array(reads), np.array(own), now() - begin)


def predict(config: RunConfig, series: Series) -> Outcome:
    """Simulate a piece of a training of one worker, without the checkpoint at its end, which no log counts."""
    steps = len(series.step_s)
    setup = Setup(read_ahead=config.feed.read_ahead, save_every=config.loop.save_every, save_s=series.save_s)
    found = simulate(setup, steps, step_s=replayed(series.step_s), read_s=replayed(series.read_s))
    return replace(found, total_s=found.total_s - series.save_s, save_s=found.save_s - series.save_s)


def compare(cohort: Path, name: str) -> dict[str, Any]:
    """Train in pieces and predict each; the two take turns in being first."""
    recipe, fields = RUNS[name]
    config = configured(recipe, fields)
    config = configs.with_fields(config, {"recipe.samples": PIECE * PIECES * config.patches_per_step})
    found: list[Series] = []
    predicted: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_run(cohort, Path(folder) / "run", config)
        assert plan.num_steps == PIECE * PIECES
        plan.run.mkdir()
        at_need = {**plan.job.used, "feed": {**plan.job.used["feed"], "read_ahead": 0}}
        job = replace(plan.job, used=at_need)

        def alone(piece: int) -> None:
            training = prepare(job, open_cohort(cohort), rank=0, world=1, device=torch.device("cpu"))
            steps = range(piece * PIECE, (piece + 1) * PIECE)
            found.append(measure(training, steps, config, Path(folder) / "saved"))
            predicted.append(predict(config, found[-1]))
            training.close()

        for piece in range(PIECES):
            if piece % 2:
                alone(piece)
            with (
                patch.object(loop, "perf_counter", clock_of(config)),
                patch.object(feed, "perf_counter", clock_of(config)),
            ):
                train_until(plan, (piece + 1) * PIECE)
            if not piece % 2:
                alone(piece)
        logged = [record for record in read_metrics(plan.run / METRICS) if record["event"] == "log"]
    pieces = [(one["time_s"], one["wait_share"] * one["time_s"]) for one in logged]
    return {
        "steps": plan.num_steps,
        "read_s": float(np.mean([one.read_s for one in found])),
        "step_s": float(np.mean([one.step_s for one in found])),
        "save_s": float(np.mean([one.save_s for one in found])),
        "trained": {"total_s": [total for total, _ in pieces], "wait_s": [wait for _, wait in pieces]},
        "predicted": {"total_s": [one.total_s for one in predicted], "wait_s": [one.wait_s for one in predicted]},
    }
