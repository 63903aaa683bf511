"""How noisy an image is: the figure of 1371 published scans, coefficients of variation, and noise power spectra.

The figure is that of KUL-recon-lab/2025_ud_pet_kul:noise_metric.py.  With v = log1p(SUV) and s = v smoothed by a
Gaussian of 2 voxels standard deviation, it is the sum of |v - s| over *all* voxels, those of air too, over the number
of voxels with s > 0.1.  It rises with noise from a floor, which is the patient's own detail: edges of organs and skin.
It is a figure per voxel, so only images of the same voxel size may be compared; the published ones have 1.65 mm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from storage.errors import InputError
from storage.source import SUV, ImageSource
from trainers.metrics.image import Mask
from trainers.metrics.slabs import SLAB_VOXELS, read_reflected, slabs

FIGURE_SPACING_MM = 1.65  # voxels along all three axes of the published images
_SIGMA_VOXELS = 2.0
_REACH_VOXELS = 8  # the Gaussian ends at 4 standard deviations
_COUNTED_ABOVE = 0.1  # of the smoothed logarithm

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """The noise figures of many scans at one dose: 5th percentile, median, 95th percentile."""

    low: float
    median: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies between the percentiles."""
        return self.low <= value <= self.high


# Scanner -> DRF -> figures of its scans in the UDPET challenge's data, 994 and 377 of them
# (KUL-recon-lab/2025_ud_pet_kul:data_stats/data_stats.csv).
PUBLISHED: dict[str, dict[float, Band]] = {
    "uexplorer": {
        1.0: Band(0.038, 0.0432, 0.048),
        4.0: Band(0.048, 0.0534, 0.060),
        10.0: Band(0.059, 0.0672, 0.077),
        20.0: Band(0.072, 0.0838, 0.097),
        50.0: Band(0.106, 0.1243, 0.143),
        100.0: Band(0.156, 0.1801, 0.202),
    },
    "quadra": {
        1.0: Band(0.044, 0.0485, 0.054),
        4.0: Band(0.055, 0.0607, 0.071),
        10.0: Band(0.069, 0.0760, 0.092),
        20.0: Band(0.086, 0.0947, 0.117),
        50.0: Band(0.115, 0.1297, 0.170),
        100.0: Band(0.146, 0.1640, 0.238),
    },
}


def noise_figure(image: ImageSource, *, slab_voxels: int = SLAB_VOXELS) -> float:
    """Return the noise figure of a whole image, read slab by slab.

    Args:
        image: a PET in SUVbw; its voxels should be ``FIGURE_SPACING_MM`` wide where published figures are compared.
        slab_voxels: voxels read at once; the result depends on it in the last digits only.

    Returns:
        The figure, without unit, above 0.

    Raises:
        InputError: ``IMG_UNITS`` if the image is not in SUVbw; ``IMG_NAN`` if a value is not finite, or -1 SUV or
            less; ``IMG_EMPTY`` if no voxel counts as body.
    """
    total, counted = 0.0, 0
    for z0, z1 in slabs(image.grid.shape, slab_voxels):
        difference, voxels = figure_sums(image, z0, z1)
        total, counted = total + difference, counted + voxels
    return figure_of(total, counted)


def figure_sums(image: ImageSource, z0: int, z1: int) -> tuple[float, int]:
    """Return the two sums of ``noise_figure`` over the slices ``z0 <= z < z1``; the 8 slices on either side are read.

    Sums of several slabs may be added, as of a few parts of a body that together stand for the whole.

    Returns:
        The sum of \\|v - s\\|, and the number of voxels with s > 0.1.

    Raises:
        InputError: ``IMG_UNITS``, ``IMG_NAN``, as ``noise_figure``.
    """
    if image.units != SUV:
        raise InputError(
            "IMG_UNITS", where="noise figure", found=f"units {image.units}", remedy="convert it to SUVbw at ingest"
        )
    suv = read_reflected(image, z0, z1, _REACH_VOXELS)
    if not (suv > -1).all() or not np.isfinite(suv).all():
        found = "values that are not finite, or -1 SUV or less, which have no logarithm"
        raise InputError("IMG_NAN", where="noise figure", found=found, remedy="repair the image first")
    values = np.log1p(suv)
    smooth = ndimage.gaussian_filter(values, _SIGMA_VOXELS, mode="reflect", truncate=_REACH_VOXELS / _SIGMA_VOXELS)
    inner = slice(_REACH_VOXELS, -_REACH_VOXELS)
    return float(np.abs(values - smooth)[inner].sum()), int((smooth[inner] > _COUNTED_ABOVE).sum())


def figure_of(total: float, counted: int) -> float:
    """Return the noise figure of sums that ``figure_sums`` gave.

    Raises:
        InputError: ``IMG_EMPTY`` if no voxel was counted.
    """
    if not counted:
        found = f"no voxel whose smoothed log1p(SUV) exceeds {_COUNTED_ABOVE}"
        raise InputError("IMG_EMPTY", where="noise figure", found=found, remedy="check the SUV conversion")
    return total / counted


def noise_of_pair(first: NDArray[Any], second: NDArray[Any]) -> Values:
    """Return the noise of one scan from two independent ones: their difference over the square root of 2.

    What both scans share, the object and a bias, cancels.  The shapes are equal, the unit is that of the scans.
    """
    return np.asarray((first.astype(np.float64) - second) / np.sqrt(2))


def coefficient_of_variation(first: NDArray[Any], second: NDArray[Any], where: Mask) -> float:
    """Return the noise of a voxel in ``where`` over the mean there, in %, from two independent scans of one object.

    The standard deviation over mean inside a region, which is often given, holds the region's own texture as well.

    Args:
        first: a scan, (z, y, x) in SUVbw.
        second: another one of the same object, independent of it.
        where: the voxels asked about; their mean must be positive.

    Raises:
        InputError: ``IMG_EMPTY`` if ``where`` is empty or its mean is not positive.
    """
    mean = float((first[where].mean(dtype=np.float64) + second[where].mean(dtype=np.float64)) / 2) if where.any() else 0
    if not mean > 0:
        raise InputError("IMG_EMPTY", where="noise", found="no uptake in the region", remedy="choose another region")
    return 100 * float(noise_of_pair(first[where], second[where]).std()) / mean


def power_spectrum(noise: NDArray[Any], spacing_mm: Sequence[float]) -> Values:
    """Return the noise power spectrum over the last axes of ``noise``, averaged over the axes before them.

    NPS(f) = d1 ... dk / (n1 ... nk) <|DFT(noise - its mean)|^2>, so its integral over frequency is the variance
    (Siewerdsen, Cunningham and Jaffray, Med. Phys. 29 (2002) 2655).

    Args:
        noise: (..., n1, ..., nk), a stationary part of an image without its object, as ``noise_of_pair`` gives it.
        spacing_mm: k distances between neighbours along the last k axes.

    Returns:
        (n1, ..., nk) in SUV^2 mm^k at the frequencies of ``numpy.fft.fftfreq(n, spacing)`` in 1/mm.

    Raises:
        InputError: ``IMG_SHAPE`` if ``noise`` has fewer axes than ``spacing_mm``.
    """
    axes = tuple(range(-len(spacing_mm), 0))
    if noise.ndim < len(axes):
        found, remedy = f"{noise.ndim} axes, {len(axes)} spacings", "give a spacing per axis of the spectrum"
        raise InputError("IMG_SHAPE", where="power spectrum", found=found, remedy=remedy)
    about_zero = noise - noise.mean(axis=axes, keepdims=True, dtype=np.float64)
    power = np.square(np.abs(np.fft.fftn(about_zero, axes=axes)))
    size = float(np.prod([noise.shape[axis] for axis in axes]))
    leading = tuple(range(noise.ndim - len(axes)))
    return np.asarray(power.mean(axis=leading) * (float(np.prod(spacing_mm)) / size), dtype=np.float64)


def radial_spectrum(power: Values, spacing_mm: Sequence[float]) -> tuple[Values, Values]:
    """Average a power spectrum over rings or shells of equal frequency, up to the smallest Nyquist frequency.

    Args:
        power: as ``power_spectrum`` returns it; the zero frequency, which is 0 there, is left out.
        spacing_mm: as given there.

    Returns:
        Mean frequencies in 1/mm and mean powers, both ascending in frequency; a ring is as wide as the coarsest
        step of frequency.
    """
    axes = [np.fft.fftfreq(n, d) for n, d in zip(power.shape, spacing_mm, strict=True)]
    frequency = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij")))
    width = max(1 / (n * d) for n, d in zip(power.shape, spacing_mm, strict=True))
    ring = np.rint(frequency / width).astype(np.intp)
    used = (ring > 0) & (frequency <= min(0.5 / d for d in spacing_mm))
    members = np.bincount(ring[used])
    filled = members > 0
    mean_frequency, mean_power = (
        np.bincount(ring[used], weights=what[used])[filled] / members[filled] for what in (frequency, power)
    )
    return mean_frequency, mean_power
