"""The laptop's size: between the small and the paper's one in every respect, and every row of every table can start."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from petscale.experiments import EXPERIMENTS
from petscale.experiments.design import PhantomCohort, Row
from petscale.experiments.rows import Size, by_size, shrunk
from petscale.training.planning import plan_run
from storage.ingest import CasePlan, ingest
from storage.phantom import LABEL_NAMES
from storage.reader import open_cohort
from storage.source import HU, LABEL, SUV, ArraySource, Dose, Grid
from trainers.engine import plain_engine
from trainers.feed import check_cases
from trainers.systems import RECIPES

PATIENTS = 8


def like(cohort: PhantomCohort, folder: Path) -> Path:
    """A cohort with the grid, images, doses and labels of some phantoms, drawn in no time."""
    shape, (dz, dy, dx) = cohort.body.shape, cohort.body.spacing_mm
    grid = Grid(shape, np.diag([-dx, -dy, dz, 1.0]))
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    body = ((y / shape[1] - 0.5) ** 2 + (x / shape[2] - 0.5) ** 2 < 0.2) & (z >= 0)
    marks = np.where(body, 1 + (z + 0 * y + 0 * x) * len(LABEL_NAMES) // shape[0], 0).astype(np.float32)
    lows = {name: drf for drf in cohort.drfs for name in cohort.sources_at(drf)}

    def plan(number: int, scratch: Path) -> CasePlan:
        pet = ArraySource(np.where(body, 1.0 + 0.1 * number, 0).astype(np.float32), grid, SUV)
        images = {"full": pet, **dict.fromkeys(lows, pet)}
        images["ct"] = ArraySource(np.where(body, 40, -1000).astype(np.float32), grid, HU)
        images["labels"] = ArraySource(marks, grid, LABEL)
        doses = {"full": Dose(1.0, "full", None), **{name: Dose(drf, "simulated", True) for name, drf in lows.items()}}
        return CasePlan(
            images, f"patient {number}", f"made up {number}", dict(enumerate(LABEL_NAMES.values(), 1)), doses
        )

    ingest(folder, {f"p{n}": partial(plan, n) for n in range(PATIENTS)}, strict=True, workers=1)
    return folder


@pytest.fixture(scope="module")
def cohort_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[PhantomCohort], Path]:
    """Cohorts by their grids and doses, each made once."""
    there: dict[object, Path] = {}

    def made(phantoms: PhantomCohort) -> Path:
        key = (phantoms.body.shape, phantoms.drfs)
        if key not in there:
            there[key] = like(phantoms, tmp_path_factory.mktemp("cohorts") / phantoms.name)
        return there[key]

    return made


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_row_is_planned_up_to_its_first_step(
    name: str, cohort_of: Callable[[PhantomCohort], Path], tmp_path: Path
) -> None:
    table = EXPERIMENTS[name]("laptop")
    assert isinstance(table.cohort, PhantomCohort)
    cohort = cohort_of(table.cohort)
    for row in table.rows:
        if row.resized is None:
            split = replace(row.config.split, folds=table.folds)
            plan = plan_run(cohort, tmp_path / "run", replace(row.config, split=split))
            assert plan.num_steps >= 100, row.name
    opened = open_cohort(cohort)
    for segmenter in table.segmenters:
        spec = segmenter.config.batch_spec
        check_cases(opened, {"target": opened.cases}, segmenter.like.feed, [spec])
    assert not (tmp_path / "run").exists()


def parameters(row: Row) -> int:
    """Of the networks that a row leaves behind."""
    spec = RECIPES[row.config.recipe]
    recipe = spec.build(row.config.model, make_engine=plain_engine, patches_per_step=row.config.patches_per_step)
    return sum(value.numel() for value in recipe.weights().values())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_laptops_table_lies_between_the_small_and_the_papers(name: str) -> None:
    small, laptop, paper = (EXPERIMENTS[name](size) for size in ("small", "laptop", "paper"))
    assert small.folds <= laptop.folds <= paper.folds
    cohorts = [table.cohort for table in (small, laptop, paper)]
    patients, voxels, prompts = [], [], []
    for cohort in cohorts:
        assert isinstance(cohort, PhantomCohort)
        patients.append(cohort.patients)
        voxels.append(np.prod(cohort.body.spacing_mm))
        prompts.append(cohort.scan.million_prompts_per_bed)
    assert patients[0] < patients[1] < patients[2]
    assert voxels[0] > voxels[1] >= voxels[2]
    assert prompts[0] <= prompts[1] <= prompts[2]
    for rows in zip(small.rows, laptop.rows, paper.rows, strict=True):
        fields = [dataclasses.asdict(row.config.model) for row in rows]
        for field in fields[0]:
            lengths = [np.atleast_1d(one[field]) for one in fields]
            if {one.shape for one in lengths} == {lengths[0].shape} and np.issubdtype(lengths[0].dtype, np.number):
                low, middle, high = lengths
                assert np.all((middle - low) * (high - middle) >= 0), (rows[0].name, field)
        assert parameters(rows[0]) <= parameters(rows[1]), rows[0].name  # equal for DCITN, which is as published
    networks = [[dataclasses.replace(row.config, loss="bce") for row in table.segmenters] for table in (small, laptop)]
    assert not networks[0] or networks[0] != networks[1]


@pytest.mark.parametrize(("size", "want"), [("small", 1), ("laptop", 2), ("paper", 3)])
def test_what_holds_at_a_size(size: Size, want: int) -> None:
    assert by_size(size, small=1, laptop=2, paper=3) == want
    assert shrunk(size, width=(1, 2)) == ({} if size == "paper" else {"width": want})


def test_runs_of_a_laptop_use_its_two_cores() -> None:
    runs = [row.config for name in EXPERIMENTS for row in EXPERIMENTS[name]("laptop").rows]
    assert {(run.cluster.workers, run.cluster.cpus_per_worker, run.cluster.device) for run in runs} == {(1, 2, "cpu")}
