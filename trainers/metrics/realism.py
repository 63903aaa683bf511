"""How real a synthesized PET looks: its gradients and its high frequencies beside the real PET's."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.metrics.detection import Search, Volume
from trainers.metrics.image import Mask
from trainers.metrics.slabs import slabs


@dataclass(frozen=True)
class Realism:
    """How sharp and how noisy a synthesized PET is beside the real one: 1 is alike, less is smoother.

    Args:
        gradient_energy_ratio: sum of squared gradients (SUV/mm, between neighbours both in R), synthesized / real.
        high_frequency_ratio: power above half Nyquist in axial slices, synthesized / real; the slice's mean over R
            removed, 0 outside R, Hann window over R's box.
    """

    gradient_energy_ratio: float | None
    high_frequency_ratio: float | None


def realism(real: Volume, synthesized: Volume, where: Search) -> Realism:
    """Compare two images in R, both read by ``where.read``; None where the real one has no such power."""
    images = (synthesized, real)
    gradient = [_gradient_energy(image, where) for image in images]
    high = [_high_frequency_power(image, where.region) for image in images]
    return Realism(_ratio(*gradient), _ratio(*high))


def _ratio(value: float, reference: float) -> float | None:
    return value / reference if reference > 0 else None


def _gradient_energy(image: Volume, where: Search) -> float:
    total = 0.0
    for z0, z1 in slabs(where.region.shape):
        for axis, step in enumerate(where.grid.spacing_mm):
            rows = slice(z0, z1 + (axis == 0))  # one slice on, for the gap between slabs
            both = np.logical_and(*_neighbours(where.region[rows], axis))
            here, there = _neighbours(image[rows], axis)
            total += float(np.square((there - here)[both].astype(np.float64)).sum()) / step**2
    return total


def _neighbours(voxels: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    moved = np.moveaxis(voxels, axis, 0)
    return moved[:-1], moved[1:]


def _high_frequency_power(image: Volume, region: Mask) -> float:
    _, height, width = region.shape
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
    high = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) > 0.25  # cycles per voxel; Nyquist is 0.5
    total = 0.0
    for voxels, inside in zip(image, region, strict=True):
        if inside.any():
            about_zero = np.where(inside, voxels - voxels[inside].mean(dtype=np.float64), 0.0)
            total += float(np.square(np.abs(np.fft.fft2(about_zero * window))[high]).sum())
    return total
