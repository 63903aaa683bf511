"""B4, an image put on another grid.  Noise, fixed seed."""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn.functional import conv1d, interpolate

from benchmarks.performance.measure import Benchmark
from storage.geometry import Resampled, coarser_grid
from storage.source import SUV, ArraySource, Grid

Shape = tuple[int, int, int]


def resampling(shape: Shape, to: Shape) -> Benchmark:
    """B4: linear, with axes that shrink smoothed first, as ``Resampled``; torch's plain interpolation beside it."""
    voxels = np.random.default_rng(0).random(shape, dtype=np.float32)
    grid = Grid(shape, np.diag([1.0, 1.0, 1.0, 1.0]))
    factors = [n / m for n, m in zip(shape, to, strict=True)]
    image = Resampled(ArraySource(voxels, grid, SUV), coarser_grid(grid, (factors[0], factors[1], factors[2])))
    sigma = [np.sqrt(max(f**2 - 1.0, 0.0)) / 2.355 for f in factors]
    tensor = torch.from_numpy(voxels)[None, None]

    def by_scipy() -> NDArray[np.float32]:
        smoothed = ndimage.gaussian_filter(voxels, sigma, mode="nearest")
        offset = [(f - 1) / 2 + 1 for f in factors]
        padded = np.pad(smoothed, 1, mode="edge")
        found: NDArray[np.float32] = ndimage.affine_transform(padded, factors, offset, to, np.float32, order=1)
        return found

    def by_torch() -> NDArray[np.float32]:
        found = tensor
        for axis, s in enumerate(sigma):
            reach = int(4.0 * s + 0.5)
            if reach:
                weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / s) ** 2)
                lines = found.movedim(2 + axis, -1)
                flat = torch.nn.functional.pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), mode="replicate")
                found = conv1d(flat, (weights / weights.sum())[None, None]).reshape(lines.shape).movedim(-1, 2 + axis)
        return interpolate(found, size=to, mode="trilinear", align_corners=False)[0, 0].numpy()

    return Benchmark(
        name="B4 order 1",
        does=f"{' x '.join(map(str, shape))} float32 to {' x '.join(map(str, to))}, smoothed where it shrinks, linear",
        ours=lambda: image.read(0, to[0]),
        peers={"scipy: gaussian_filter, affine_transform": by_scipy, "torch: conv1d, interpolate": by_torch},
        bounds={"copy of the source": voxels.copy},
        # torch computes places in float32: 256 voxels from the first, one is exact to 2e-5 of a voxel.
        agree=partial(np.testing.assert_allclose, atol=3e-5),
        others={
            "torch: interpolate alone, which aliases": partial(
                interpolate, tensor, size=to, mode="trilinear", align_corners=False
            )
        },
    )
