"""Small volumes of made-up voxels on one grid."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage.source import SUV, ArraySource, Grid

GRID = Grid((40, 24, 28), np.diag([-4.0, -4.0, 3.0, 1.0]))  # (z, y, x); mm


def source(voxels: ArrayLike, units: str = SUV) -> ArraySource:
    """Voxels (z, y, x) of the shape of ``GRID`` as an image."""
    return ArraySource(np.asarray(voxels, np.float32), GRID, units)


def noisy(activity: NDArray[np.float64], sd: float, seed: int) -> ArraySource:
    """An image in SUV with Gaussian noise of standard deviation ``sd``, cut off at 0."""
    rng = np.random.Generator(np.random.Philox(seed))
    return source(np.clip(activity + rng.normal(0, sd, activity.shape), 0, None))


def ellipse() -> NDArray[np.bool_]:
    """(z, y, x): inside an elliptic cylinder along z, the body."""
    _, y, x = np.indices(GRID.shape)
    inside: NDArray[np.bool_] = ((y - 12) / 10) ** 2 + ((x - 14) / 12) ** 2 < 1
    return inside
