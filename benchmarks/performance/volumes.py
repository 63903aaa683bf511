"""Volumes that compress as PET does: air, a body with Poisson noise, smooth as a reconstruction, integers as a file."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from storage.ingest import CasePlan, ingest
from storage.reader import Cohort, open_cohort
from storage.source import SUV, ArraySource, Grid

Shape = tuple[int, int, int]
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
LEVELS = 32767  # a scanner's files hold 16-bit integers and a slope


def pet_like(shape: Shape, seed: int = 0) -> NDArray[np.float32]:
    """Return (z, y, x) in SUV: an ellipse of activity, seven tenths of the volume air, 20 counts per voxel."""
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    inside = ((y[:, None] / 0.5) ** 2 + (x / 0.75) ** 2 < 1)[None] & (np.abs(z) < 0.95)[:, None, None]
    activity = (1 + 0.5 * np.sin(9 * z)[:, None, None] * np.cos(7 * x)) * inside
    counts = np.random.default_rng(seed).poisson(20 * activity).astype(np.float32)
    near = gaussian_filter(inside.astype(np.float32), 1.0) > 1e-3
    smooth = gaussian_filter(counts, 1.0, mode="nearest") / 20 * near
    slope = np.float32(smooth.max() / LEVELS)
    return np.round(smooth / slope).astype(np.float32) * slope


def cohort(folder: Path, cases: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> Cohort:
    """Write case -> image -> voxels in SUV as a cohort."""

    def plan(case: str) -> CasePlan:
        images = {name: ArraySource(voxels, Grid(voxels.shape, AFFINE), SUV) for name, voxels in cases[case].items()}
        return CasePlan(images, case, case)

    ingest(folder, {case: lambda _, case=case: plan(case) for case in cases}, strict=True, workers=1)
    return open_cohort(folder)


def missing(**libraries: str) -> tuple[str, ...]:
    """Return what is not installed, ``library="the way that needs it"``, by way."""
    return tuple(way for library, way in libraries.items() if find_spec(library) is None)
