"""SSIM in three dimensions: windows, windowed moments, and the map of two arrays.

Wang et al. 2004 (doi 10.1109/TIP.2003.819861) with a three-dimensional window, K1 = 0.01 and K2 = 0.03.  The project's
own window has Gaussian weights over 11 voxels, sigma 1.5, and population covariance; edges are reflected, as in
scikit-image, and a score is the mean of the SSIM map over every voxel of its region.  ``UNIFORM_WINDOW`` is
scikit-image's default instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from trainers.metrics.identifiers import SSIM_WINDOW, UNIFORM_WINDOW
from trainers.metrics.image import Mask, Real

K1, K2 = 0.01, 0.03
WINDOW_RADIUS = 5
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
    pad = ((WINDOW_RADIUS, WINDOW_RADIUS), (0, 0), (0, 0))
    x = np.pad(reference.astype(np.float64), pad, mode="symmetric")
    y = np.pad(image.astype(np.float64), pad, mode="symmetric")
    return similarity(Moments.of(blur(x, WINDOW), blur(x * x, WINDOW), x, y, WINDOW), data_range)


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
        mean_y = blur(y, window)
        variance_sum = mean_xx + blur(y * y, window) - mean_x**2 - mean_y**2
        covariance = blur(x * y, window) - mean_x * mean_y
        return cls(mean_x, mean_y, window.bias * variance_sum, window.bias * covariance)

    def at(self, box: tuple[slice, slice, slice], where: Mask) -> "Moments":
        """Return the moments of the voxels ``where`` of a box."""
        return Moments(
            self.mean_x[box][where], self.mean_y[box][where], self.variance_sum[box][where], self.covariance[box][where]
        )


def similarity(m: Moments, data_range: float) -> NDArray[np.float64]:
    """SSIM of windowed moments (Wang et al. 2004, eq. 13)."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    top = (2 * m.mean_x * m.mean_y + c1) * (2 * m.covariance + c2)
    return top / ((m.mean_x**2 + m.mean_y**2 + c1) * (m.variance_sum + c2))


def blur(padded: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    """Window means; the z halo of the window's radius on either side is used up, y and x are reflected."""
    z = correlate1d(padded, window.taps, axis=0)[window.radius : padded.shape[0] - window.radius]
    y = correlate1d(z, window.taps, axis=1, mode="reflect")
    return np.asarray(correlate1d(y, window.taps, axis=2, mode="reflect"))


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
