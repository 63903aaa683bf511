"""PSNR, MAE, MSE, NRMSE, bias and variance of two arrays of any shape; ``ssim`` has SSIM, ``streaming`` volumes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


def mae(reference: Real, image: Real, mask: Mask | None = None) -> float:
    """Mean absolute error over ``mask`` (all voxels if None), in the units of the images; arrays of one shape."""
    return float(np.abs(_error(reference, image, mask)).mean())


def mse(reference: Real, image: Real, mask: Mask | None = None) -> float:
    """Mean squared error over ``mask`` (all voxels if None), in squared units of the images."""
    return float(np.square(_error(reference, image, mask)).mean())


def psnr(reference: Real, image: Real, *, data_range: float, mask: Mask | None = None) -> float:
    """Peak signal-to-noise ratio, 10 log10(data_range^2 / MSE), in dB; infinite for equal images."""
    return psnr_of(mse(reference, image, mask), data_range)


def nrmse(reference: Real, image: Real, mask: Mask | None = None) -> float:
    """Root mean square error divided by the root mean square of the reference over the same voxels (a fraction)."""
    power = float(np.square(reference if mask is None else reference[mask], dtype=np.float64).mean())
    return float(np.sqrt(mse(reference, image, mask) / power)) if power > 0 else float("nan")


def bias(reference: Real, image: Real, mask: Mask | None = None) -> float:
    """Magnitude of the mean error over ``mask`` (all voxels if None), in the units of the images.

    Example:
        >>> bias(np.array([0.0, 0, 0, 0]), np.array([1.0, -1, 4, 0]))
        1.0
    """
    return abs(float(_error(reference, image, mask).mean()))


def variance(reference: Real, image: Real, mask: Mask | None = None) -> float:
    """Population variance of the error over ``mask`` (all voxels if None), in squared units of the images.

    With the bias it makes up the mean squared error: ``bias^2 + variance = mse``.

    Example:
        >>> variance(np.array([0.0, 0, 0, 0]), np.array([1.0, -1, 4, 0]))
        3.5
    """
    return float(_error(reference, image, mask).var())


def psnr_of(mean_square: float, data_range: float) -> float:
    """Return the PSNR in dB of a mean squared error; infinite for 0."""
    return float(10 * np.log10(data_range**2 / mean_square)) if mean_square != 0 else float("inf")


def _error(reference: Real, image: Real, mask: Mask | None) -> NDArray[np.float64]:
    difference = image.astype(np.float64) - reference
    return difference if mask is None else difference[mask]
