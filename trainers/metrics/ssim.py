"""SSIM in three dimensions: windows, windowed moments, and the map of two arrays.

Wang et al. 2004 (doi 10.1109/TIP.2003.819861) with a three-dimensional window, K1 = 0.01 and K2 = 0.03.  The project's
own window has Gaussian weights over 11 voxels, sigma 1.5, and population covariance; edges are reflected, as in
scikit-image, and a score is the mean of the SSIM map over every voxel of its region.  ``UNIFORM_WINDOW`` is
scikit-image's default instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trainers.metrics.identifiers import SSIM_WINDOW, UNIFORM_WINDOW
from trainers.metrics.image import Mask, Real

K1, K2 = 0.01, 0.03
WINDOW_RADIUS = 5
_PLANES = 8  # that are blurred at a time: what lies between two axes stays in a core's cache
_BLOCK = 16  # voxels along an axis that one matrix makes of their neighbours: a larger one multiplies more zeros
_SLICES = 8  # whose moments ``ssim_map`` holds at a time
_TAPS = np.exp(-0.5 * (np.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1) / 1.5) ** 2)


@dataclass(frozen=True, eq=False)
class Window:
    """An SSIM window: the same taps along z, y and x.

    Args:
        taps: weights along one axis, an odd number of them, summing to 1.
        bias: what a windowed variance is multiplied by: 1, or n / (n - 1) for the sample's.
        inside: whether voxels whose window passes the volume are left out of a score.
    """

    taps: NDArray[np.float64]
    bias: float
    inside: bool

    @property
    def radius(self) -> int:
        """Voxels on either side of the centre."""
        return len(self.taps) // 2


WINDOW = Window(_TAPS / _TAPS.sum(), 1.0, False)
WINDOWS: Mapping[str, Window] = {
    SSIM_WINDOW: WINDOW,
    UNIFORM_WINDOW: Window(np.full(7, 1 / 7), 7**3 / (7**3 - 1), True),
}


def ssim(reference: Real, image: Real, *, data_range: float, mask: Mask | None = None) -> float:
    """Mean of the SSIM map over ``mask`` (all voxels if None); ``data_range`` in the units of the images."""
    found = ssim_map(reference, image, data_range=data_range)
    return float((found if mask is None else found[mask]).mean())


def ssim_map(reference: Real, image: Real, *, data_range: float) -> NDArray[np.float64]:
    """SSIM at every voxel of two (z, y, x) volumes, edges reflected (Wang et al. 2004, eq. 13)."""
    depth = reference.shape[0]
    beyond = _reflected(np.arange(-WINDOW_RADIUS, depth + WINDOW_RADIUS), depth)
    found = np.empty(reference.shape)
    for z in range(0, depth, _SLICES):
        slices = beyond[z : z + _SLICES + 2 * WINDOW_RADIUS]
        x, y = reference[slices].astype(np.float64), image[slices].astype(np.float64)
        found[z : z + _SLICES] = similarity(Moments.of_both(x, y, WINDOW), data_range)
    return found


def _reflected(index: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Indices beyond either end of an axis as those of its mirror images, which have a period of twice its length."""
    index = index % (2 * length)
    return np.where(index < length, index, 2 * length - 1 - index)


Scale = tuple[float, float]  # (a, s): a value v is scored as (v - a) / s


@dataclass(frozen=True, eq=False)
class Seen:
    """A reference under an SSIM window: scaled, trimmed to the window's halo, with its windowed first two moments."""

    window: Window
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    mean_square: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[np.float64], view: tuple[str, str], halo: int, scale: Scale) -> "Seen":
        """Scale a slab that has ``halo`` slices beyond either face and take its moments; ``view``: window and scale."""
        window = WINDOWS[view[0]]
        x = _viewed(x, window, halo, scale)
        return cls(window, x, blur(x, window), blur(x * x, window))

    def beside(self, y: NDArray[np.float64], halo: int, scale: Scale) -> "Moments":
        """Return the moments of the reference and of a candidate's slab with the same ``halo``."""
        return Moments.of(self.mean, self.mean_square, self.x, _viewed(y, self.window, halo, scale), self.window)


def _viewed(v: NDArray[np.float64], window: Window, halo: int, scale: Scale) -> NDArray[np.float64]:
    spare = halo - window.radius
    v = v[spare : v.shape[0] - spare]
    return v if scale == (0.0, 1.0) else (v - scale[0]) / scale[1]


@dataclass(frozen=True, eq=False)
class Moments:
    """Windowed means, variances and covariance of two images."""

    mean_x: NDArray[np.float64]
    mean_y: NDArray[np.float64]
    variance_sum: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        mean_x: NDArray[np.float64],
        mean_xx: NDArray[np.float64],
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        window: Window,
    ) -> "Moments":
        """Return the moments of ``x``, whose means and mean squares are known, and ``y``."""
        return cls._central(mean_x, blur(y, window), mean_xx + blur(y * y, window), blur(x * y, window), window)

    @classmethod
    def of_both(cls, x: NDArray[np.float64], y: NDArray[np.float64], window: Window) -> "Moments":
        """Return the moments of two slabs that have the window's halo along z."""
        squares = x * x
        squares += y * y
        return cls._central(blur(x, window), blur(y, window), blur(squares, window), blur(x * y, window), window)

    @classmethod
    def _central(
        cls,
        mean_x: NDArray[np.float64],
        mean_y: NDArray[np.float64],
        squares: NDArray[np.float64],
        product: NDArray[np.float64],
        window: Window,
    ) -> "Moments":
        """Central moments of raw ones; ``squares`` (of both images, summed) and ``product`` are used up."""
        squares -= mean_x * mean_x
        squares -= mean_y * mean_y
        product -= mean_x * mean_y
        if window.bias != 1.0:
            squares *= window.bias
            product *= window.bias
        return cls(mean_x, mean_y, squares, product)

    def at(self, box: tuple[slice, slice, slice], where: Mask) -> "Moments":
        """Return the moments of the voxels ``where`` of a box."""
        return Moments(
            self.mean_x[box][where], self.mean_y[box][where], self.variance_sum[box][where], self.covariance[box][where]
        )


def similarity(m: Moments, data_range: float) -> NDArray[np.float64]:
    """SSIM of windowed moments (Wang et al. 2004, eq. 13)."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    means = m.mean_x * m.mean_x
    means += m.mean_y * m.mean_y
    means += c1
    means *= m.variance_sum + c2
    top = m.mean_x * m.mean_y
    top *= 2
    top += c1
    top *= 2 * m.covariance + c2
    top /= means
    return top


def blur(padded: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    """Window means; the z halo of the window's radius on either side is used up, y and x are reflected.

    Each axis is a product with a banded matrix, cut into blocks along the band.
    """
    depth, height, width = padded.shape[0] - 2 * window.radius, *padded.shape[1:]
    means = np.empty((depth, height, width))
    for z in range(0, depth, _PLANES):
        planes = padded[z : z + _PLANES + 2 * window.radius]
        made = means[z : z + _PLANES]
        along_z = (_unpadded(window, len(made)) @ planes.reshape(len(planes), -1)).reshape(made.shape)
        along_y = np.empty(made.shape)
        for to, of, weights in _bands(window, height):
            np.matmul(weights, along_z[:, of], out=along_y[:, to])
        for to, of, weights in _bands(window, width):
            np.matmul(along_y[:, :, of], weights.T, out=made[:, :, to])
    return means


@lru_cache(maxsize=8)
def _unpadded(window: Window, length: int) -> NDArray[np.float64]:
    """Matrix (length, length + 2 radius) that makes window means along an axis and uses its halo up."""
    weights = np.zeros((length, length + 2 * window.radius))
    for row in range(length):
        weights[row, row : row + len(window.taps)] = window.taps
    return weights


@lru_cache(maxsize=8)
def _bands(window: Window, length: int) -> tuple[tuple[slice, slice, NDArray[np.float64]], ...]:
    """Matrices that make window means along a reflected axis: which voxels each makes, of which, and its weights."""
    whole = np.zeros((length, length))
    rows = np.repeat(np.arange(length), len(window.taps))
    columns = _reflected(rows + np.tile(np.arange(len(window.taps)) - window.radius, length), length)
    np.add.at(whole, (rows, columns), np.tile(window.taps, length))
    bands = []
    for start in range(0, length, _BLOCK):
        to = slice(start, min(start + _BLOCK, length))
        of = slice(max(start - window.radius, 0), min(to.stop + window.radius, length))
        bands.append((to, of, np.ascontiguousarray(whole[to, of])))
    return tuple(bands)


def whole_windows(window: Window, shape: tuple[int, int, int], box: tuple[slice, slice, slice], z0: int) -> Mask:
    """Which voxels of a slab's ``box`` enter the mean of the SSIM map; broadcasts over the box."""
    if not window.inside:
        return np.ones((1, 1, 1), dtype=bool)
    first = (z0, 0, 0)
    z, y, x = (
        (np.arange(s.start, s.stop) + a >= window.radius) & (np.arange(s.start, s.stop) + a < n - window.radius)
        for s, a, n in zip(box, first, shape, strict=True)
    )
    return z[:, None, None] & y[:, None] & x
