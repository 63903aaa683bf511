"""SSIM in three dimensions: windows, windowed moments, and the map of two arrays.

Wang et al. 2004 (doi 10.1109/TIP.2003.819861) with a three-dimensional window, K1 = 0.01 and K2 = 0.03.  The project's
own window has Gaussian weights over 11 voxels, sigma 1.5, and population covariance; edges are reflected, as in
scikit-image, and a score is the mean of the SSIM map over every voxel of its region.  ``UNIFORM_WINDOW`` is
scikit-image's default instead.
"""

from collections.abc import Iterator, Mapping
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
_PART = 16_384  # voxels of which similarities are made at a time, for the same reason
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
        found[z : z + _SLICES] = similarity_of(x, y, WINDOW, data_range)
    return found


def _reflected(index: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Indices beyond either end of an axis as those of its mirror images, which have a period of twice its length."""
    index = index % (2 * length)
    return np.where(index < length, index, 2 * length - 1 - index)


Scale = tuple[float, float]  # (a, s): a value v is scored as (v - a) / s
UNSCALED: Scale = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Seen:
    """A reference under an SSIM window: trimmed to the window's halo, with its windowed mean and variance."""

    window: Window
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[np.float64], window: Window, halo: int) -> "Seen":
        """Take the moments of a slab that has ``halo`` slices beyond either face."""
        x = _trimmed(x, window, halo)
        mean, variance = blur(x, window), blur(x * x, window)
        _centre(variance, mean, mean, window)
        return cls(window, x, mean, variance)

    def beside(self, y: NDArray[np.float64], halo: int) -> "Moments":
        """Return the moments of the reference and of a candidate's slab with the same ``halo``."""
        y = _trimmed(y, self.window, halo)
        mean, variance, covariance = (blur(v, self.window) for v in (y, y * y, self.x * y))
        _centre(variance, mean, mean, self.window)
        _centre(covariance, self.mean, mean, self.window)
        return Moments(self.mean, mean, self.variance, variance, covariance)


def _trimmed(v: NDArray[np.float64], window: Window, halo: int) -> NDArray[np.float64]:
    spare = halo - window.radius
    return v[spare : v.shape[0] - spare]


def _centre(
    product: NDArray[np.float64], mean_x: NDArray[np.float64], mean_y: NDArray[np.float64], window: Window
) -> None:
    """Make a windowed mean of a product of two images their covariance, in its place."""
    for plane, x, y in zip(product, mean_x, mean_y, strict=True):
        plane -= x * y
    if window.bias != 1.0:
        product *= window.bias


@dataclass(frozen=True, eq=False)
class Moments:
    """Windowed means, variances and covariance of two images."""

    mean_x: NDArray[np.float64]
    mean_y: NDArray[np.float64]
    variance_x: NDArray[np.float64]
    variance_y: NDArray[np.float64]
    covariance: NDArray[np.float64]

    def scaled(self, x: Scale, y: Scale) -> "Moments":
        """Return the moments that images have once they are scaled, each by its own offset and divisor."""
        if x == y == UNSCALED:
            return self
        return Moments(
            (self.mean_x - x[0]) / x[1],
            (self.mean_y - y[0]) / y[1],
            self.variance_x / x[1] ** 2,
            self.variance_y / y[1] ** 2,
            self.covariance / (x[1] * y[1]),
        )

    def at(self, box: tuple[slice, slice, slice], where: Mask) -> "Moments":
        """Return the moments of the voxels ``where`` of a box."""
        return Moments(*(moment[box][where] for moment in self._held))

    def parts(self) -> Iterator[tuple[slice, "Moments"]]:
        """Cut the voxels, in their order, into parts so small that what is made of them stays in a core's cache."""
        flat = [moment.reshape(-1) for moment in self._held]
        for start in range(0, flat[0].size, _PART):
            part = slice(start, start + _PART)
            yield part, Moments(*(moment[part] for moment in flat))

    @property
    def _held(self) -> tuple[NDArray[np.float64], ...]:
        return self.mean_x, self.mean_y, self.variance_x, self.variance_y, self.covariance


def similarity(
    moments: Moments, data_range: float, of_x: Scale = UNSCALED, of_y: Scale = UNSCALED
) -> NDArray[np.float64]:
    """SSIM of windowed moments (Wang et al. 2004, eq. 13).

    Args:
        moments: of the images as they are.
        data_range: of the images once they are scaled.
        of_x: how the first is scaled.
        of_y: how the second is.
    """
    found = np.empty(moments.mean_x.shape)
    flat = found.reshape(-1)
    for part, m in moments.parts():
        m = m.scaled(of_x, of_y)
        _similarity(m.mean_x, m.mean_y, m.variance_x + m.variance_y, m.covariance, data_range, flat[part])
    return found


def similarity_of(
    x: NDArray[np.float64], y: NDArray[np.float64], window: Window, data_range: float
) -> NDArray[np.float64]:
    """SSIM of two slabs that have the window's halo along z: of both variances no more is made than their sum."""
    squares = x * x
    squares += y * y
    mean_x, mean_y, variances, covariance = (blur(v, window) for v in (x, y, squares, x * y))
    _centre(variances, mean_x, mean_x, window)
    for plane, mean in zip(variances, mean_y, strict=True):
        plane -= window.bias * mean * mean
    _centre(covariance, mean_x, mean_y, window)
    found = np.empty(mean_x.shape)
    for planes in zip(mean_x, mean_y, variances, covariance, found, strict=True):
        _similarity(*planes[:4], data_range, planes[4])
    return found


def _similarity(
    mean_x: NDArray[np.float64],
    mean_y: NDArray[np.float64],
    variances: NDArray[np.float64],
    covariance: NDArray[np.float64],
    data_range: float,
    out: NDArray[np.float64],
) -> None:
    """Write SSIM of a few voxels; ``variances``, the sum of both, is used up."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    below = mean_x * mean_x
    below += mean_y * mean_y
    below += c1
    variances += c2
    below *= variances
    above = mean_x * mean_y
    above *= 2
    above += c1
    above *= 2 * covariance + c2
    np.divide(above, below, out=out)


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
        _blur_planes(along_z, window, made)
    return means


def blur_slices(slices: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    """Window means of (slices, y, x) by slices that know nothing of each other; y and x are reflected."""
    means = np.empty(slices.shape)
    for z in range(0, len(slices), _PLANES):
        _blur_planes(slices[z : z + _PLANES], window, means[z : z + _PLANES])
    return means


def _blur_planes(planes: NDArray[np.float64], window: Window, out: NDArray[np.float64]) -> None:
    along_y = np.empty(planes.shape)
    for to, of, weights in _bands(window, planes.shape[1]):
        np.matmul(weights, planes[:, of], out=along_y[:, to])
    for to, of, weights in _bands(window, planes.shape[2]):
        np.matmul(along_y[:, :, of], weights.T, out=out[:, :, to])


@lru_cache(maxsize=8)
def _unpadded(window: Window, length: int) -> NDArray[np.float64]:
    """Matrix (length, length + 2 radius) that makes window means along an axis and uses its halo up."""
    weights = np.zeros((length, length + 2 * window.radius))
    for row in range(length):
        weights[row, row : row + len(window.taps)] = window.taps
    return weights


@lru_cache(maxsize=32)
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


def whole_windows(
    window: Window, shape: tuple[int, int, int], box: tuple[slice, slice, slice], z0: int
) -> tuple[slice, slice, slice]:
    """Which part of a slab's ``box``, in the box's own indices, enters the mean of the SSIM map."""
    margin = window.radius if window.inside else 0
    z, y, x = (
        slice(max(margin - s.start - a, 0), max(min(s.stop - s.start, n - margin - s.start - a), 0))
        for s, a, n in zip(box, (z0, 0, 0), shape, strict=True)
    )
    return z, y, x
