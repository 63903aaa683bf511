"""The cohorts of experiments: phantoms, and their volumes resized to a fixed edge length."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from petscale.data.cohorts import fill_cohort
from petscale.data.phantom import phantom_plans
from petscale.experiments.design import PhantomCohort
from storage.ingest import CasePlan
from storage.reader import Case, open_cohort
from storage.source import LABEL, SUV, ArraySource, Grid


def make_cohort(cohort: PhantomCohort, folder: Path) -> Path:
    """Draw the phantoms and simulate their scans; those that are there stay."""
    plans = phantom_plans(cohort.patients, cohort.body, cohort.scan, cohort.drfs, cohort.realisations)
    fill_cohort("phantoms", folder, plans, strict=True, workers=None)
    return folder


def make_resized(native: Path, folder: Path) -> Path:
    """Make a cohort of the native one's PETs as whole volumes resized to 64^3, as SGSGAN's paper trains on.

    PETs are resized by area (the paper: "bicubic"), which are the overviews stored with every case; labels take the
    nearest voxel.
    """
    opened = open_cohort(native)
    plans = {name: partial(_resized_plan, opened.case(name)) for name in opened.cases}
    fill_cohort("resize", folder, plans, strict=True, workers=None)
    return folder


def _resized_plan(case: Case, scratch: Path) -> CasePlan:
    images: dict[str, Any] = {}
    doses = {}
    for name in case.images:
        image = case.image(name)
        if image.units == SUV:
            voxels, doses[name] = case.overview(name), image.dose
            images[name] = ArraySource(voxels, resized_grid(image.grid, len(voxels)), SUV, {"kind": "resized by area"})
    edge = len(next(iter(images.values())).voxels)
    if case.labels:
        labels = case.image("labels")
        z, y, x = (((np.arange(edge) + 0.5) * n / edge).astype(int) for n in labels.grid.shape)
        voxels = labels.read(0, labels.grid.shape[0])[np.ix_(z, y, x)]
        images["labels"] = ArraySource(voxels, resized_grid(labels.grid, edge), LABEL, {"kind": "nearest voxel"})
    return CasePlan(images, case.subject, f"{case.fingerprint} resized to {edge}", case.labels, doses)


def resized_grid(grid: Grid, edge: int) -> Grid:
    """Grid of ``edge``^3 voxels over the same extent: borders, not centres, of the outermost voxels stay in place."""
    ratio = np.array(grid.shape[::-1]) / edge  # (x, y, z), as the affine takes them
    scale = np.diag([*ratio, 1.0])
    scale[:3, 3] = (ratio - 1) / 2
    return Grid((edge, edge, edge), grid.affine @ scale)
