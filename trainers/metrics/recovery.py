"""How much of a small sphere's uptake an image shows: recovery coefficients, NEMA's contrast and its variability.

Definitions: contrast recovery and background variability are NEMA NU 2-2018, section 7.4.1, as fractions; the mean
above the threshold halfway between background and maximum, and the maximum, both over the true uptake, are those of
EARL and of gschramm/pynemaiqpet:pynemaiqpet/nema_wb.py.  A voxel belongs to a circle or sphere when its centre does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError
from storage.nema import BACKGROUND_OFFSETS_MM, Sphere
from storage.source import Grid, ImageSource

_AROUND_MM = 9.0  # the maximum and the threshold are looked for this far beyond the sphere, as pynemaiqpet does

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Recovery:
    """How one sphere is shown.

    Args:
        diameter_mm: of the sphere.
        contrast: (C_H / C_B - 1) / (a - 1): C_H the mean over the sphere's circle in its central slice, C_B that of the
            background regions of the same size, a the true ratio; 1 in a perfect image, 0 where nothing is seen.
        mean_a50: mean of the voxels above C_B + (maximum - C_B) / 2, over the true uptake.
        maximum: highest voxel over the true uptake; above 1 by noise and by the overshoot of a resolution model.
        variability: standard deviation of the means of the background regions over C_B.
    """

    diameter_mm: float
    contrast: float
    mean_a50: float
    maximum: float
    variability: float


def recoveries(
    image: ImageSource,
    spheres: Sequence[Sphere],
    *,
    background_suv: float,
    background_mm: Sequence[tuple[float, float]],
) -> list[Recovery]:
    """Measure spheres in an image of ``storage.nema.nema_phantom``, or of another body whose truth is known.

    Args:
        image: the image, in the unit of the spheres' uptake.
        spheres: where they lie and their true uptake.
        background_suv: true uptake around them, below theirs.
        background_mm: centres (y, x) of regions of pure background in five slices about a sphere's, in mm from the
            centre of voxel (0, 0, 0).

    Returns:
        One ``Recovery`` per sphere, in the order given.

    Raises:
        InputError: ``IMG_TOO_SMALL`` if a sphere's slice or one of the background's lies outside the image.
    """
    return [_recovery(image, sphere, background_suv, background_mm) for sphere in spheres]


def _recovery(
    image: ImageSource, sphere: Sphere, background_suv: float, background_mm: Sequence[tuple[float, float]]
) -> Recovery:
    z, y, x = sphere.centre_mm
    radius = sphere.diameter_mm / 2
    means = []
    for offset in BACKGROUND_OFFSETS_MM:
        plane = _plane(image, z + offset)
        means += [float(plane[_circle(image.grid, centre, radius)].mean()) for centre in background_mm]
    background = float(np.mean(means))
    hot = float(_plane(image, z)[_circle(image.grid, (y, x), radius)].mean())
    around = _ball(image, sphere, radius + _AROUND_MM)
    maximum = float(around.max())
    a50 = around[around >= background + (maximum - background) / 2].mean()
    return Recovery(
        sphere.diameter_mm,
        (hot / background - 1) / (sphere.suv / background_suv - 1),
        float(a50) / sphere.suv,
        maximum / sphere.suv,
        float(np.std(means, ddof=1)) / background,
    )


def _plane(image: ImageSource, z_mm: float) -> Values:
    """The slice nearest to ``z_mm``."""
    z = round(z_mm / image.grid.spacing_mm[0])
    if not 0 <= z < image.grid.shape[0]:
        found = f"no slice at {z_mm:.1f} mm in {image.grid.shape[0]} slices"
        raise InputError("IMG_TOO_SMALL", where="recovery", found=found, remedy="give the phantom with 20 mm around")
    return np.asarray(image.read(z, z + 1)[0], dtype=np.float64)


def _circle(grid: Grid, centre_mm: tuple[float, float], radius_mm: float) -> NDArray[np.bool_]:
    (_, ny, nx), (_, dy, dx) = grid.shape, grid.spacing_mm
    y, x = np.arange(ny) * dy - centre_mm[0], np.arange(nx) * dx - centre_mm[1]
    return np.asarray(y[:, None] ** 2 + x**2 <= radius_mm**2)


def _ball(image: ImageSource, sphere: Sphere, radius_mm: float) -> Values:
    """Voxels within ``radius_mm`` of a sphere's centre."""
    (nz, _, _), (dz, _, _) = image.grid.shape, image.grid.spacing_mm
    z, y, x = sphere.centre_mm
    low, high = max(int(np.ceil((z - radius_mm) / dz)), 0), min(int((z + radius_mm) / dz) + 1, nz)
    parts = [
        plane[_circle(image.grid, (y, x), float(np.sqrt(max(radius_mm**2 - (number * dz - z) ** 2, 0.0))))]
        for number, plane in enumerate(image.read(low, high), low)
    ]
    return np.concatenate(parts).astype(np.float64)
