"""B4 of order 3, an image put on another grid by B-splines.  Noise, fixed seed."""

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.performance.measure import Benchmark
from benchmarks.performance.volumes import Shape, missing
from storage.geometry import Resampled, coarser_grid
from storage.source import HU, ArraySource, Grid

SIMPLEITK = "SimpleITK: BSpline, which aliases"


def splines(shape: Shape, to: Shape) -> Benchmark:
    """Make B4 of order 3, with axes that shrink smoothed first, as ``Resampled``."""
    voxels = np.random.default_rng(0).random(shape, dtype=np.float32)
    grid = Grid(shape, np.eye(4))
    z, y, x = factors = [n / m for n, m in zip(shape, to, strict=True)]
    image = Resampled(ArraySource(voxels, grid, HU), coarser_grid(grid, (z, y, x)), interpolation="cubic")
    sigma = [np.sqrt(max(f**2 - 1.0, 0.0)) / 2.355 for f in factors]
    first = [(f - 1) / 2 for f in factors]

    def by_scipy(of: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = ndimage.affine_transform(of, factors, first, to, np.float32, 3, mode="nearest")
        return found

    def by_simpleitk() -> object:
        import SimpleITK

        wanted = SimpleITK.Image([*to[::-1]], SimpleITK.sitkFloat32)
        wanted.SetSpacing(factors[::-1])
        wanted.SetOrigin(first[::-1])
        source = SimpleITK.GetImageFromArray(voxels)
        return SimpleITK.Resample(source, wanted, SimpleITK.Transform(), SimpleITK.sitkBSpline3)

    absent = missing(SimpleITK=SIMPLEITK)
    return Benchmark(
        name="B4 order 3",
        does=f"{' x '.join(map(str, shape))} float32 to {' x '.join(map(str, to))}, smoothed where it shrinks, "
        "B-splines of order 3",
        ours=lambda: image.read(0, to[0]),
        peers={
            "scipy: gaussian_filter, affine_transform": lambda: by_scipy(
                ndimage.gaussian_filter(voxels, sigma, mode="nearest")
            )
        },
        bounds={"copy of the source": voxels.copy},
        agree=partial(np.testing.assert_allclose, atol=1e-5),
        others={
            "scipy: affine_transform alone, which aliases": lambda: by_scipy(voxels),
            **({} if absent else {SIMPLEITK: by_simpleitk}),
        },
        absent=absent,
    )
