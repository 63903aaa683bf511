"""The image-quality phantom of NEMA NU 2: a warm body of water with six hot spheres, as activity (SUVbw) and CT (HU).

Dimensions are those of the IEC body phantom (NEMA NU 2-2018, section 7): a half disc of 147 mm above a base with
corners of 77 mm, spheres of 10 to 37 mm centred on a ring of 57.2 mm in one transaxial slice.  Walls of glass and the
lung insert are left out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError
from storage.phantom import NEMA_DIAMETERS_MM
from storage.source import AIR_HU, HU, SUV, ArraySource, Grid

BACKGROUND_OFFSETS_MM = (-20.0, -10.0, 0.0, 10.0, 20.0)  # slices of the background regions, from the spheres' centres
_HALF_DISC_MM, _CORNER_MM, _HALF_BASE_MM = 147.0, 77.0, 70.0
_RING_MM = 57.2
_RING_ABOVE_MM = 35.0  # the ring's centre lies this far anterior of the half disc's
_MARGIN_MM = 12.0  # air beside the body
_POINTS = 5  # per axis and voxel, for the part of a voxel that a sphere or the body fills
# Centres of the 12 background regions, posterior and left of the ring's centre.  NEMA asks for 15 mm from the edge and
# from every sphere at 37 mm across, and leaves the places open; at 37 mm neighbours overlap by 3 mm at most.
_BACKGROUND_MM = (
    (-51.0, -72.0), (-49.0, 76.0), (-21.0, -98.0), (-21.0, 0.0), (9.0, 110.0), (13.0, -2.0), (17.0, -112.0),
    (39.0, -74.0), (45.0, 98.0), (61.0, -104.0), (77.0, -64.0), (77.0, 68.0),
)  # fmt: skip


@dataclass(frozen=True)
class Sphere:
    """A sphere of uniform uptake.

    Args:
        centre_mm: distance along (z, y, x) in mm from the centre of voxel (0, 0, 0).
        diameter_mm: inner diameter.
        suv: its uptake.
    """

    centre_mm: tuple[float, float, float]
    diameter_mm: float
    suv: float


@dataclass(frozen=True, eq=False)
class NemaPhantom:
    """The phantom's images on one grid, and where everything lies.

    Args:
        activity: in SUVbw.
        ct: water and air, in HU.
        spheres: the largest first.
        background_suv: uptake around them.
        background_mm: centres (y, x) of the 12 background regions, as ``Sphere.centre_mm`` counts.
    """

    activity: ArraySource
    ct: ArraySource
    spheres: tuple[Sphere, ...]
    background_suv: float
    background_mm: tuple[tuple[float, float], ...]


def nema_phantom(
    spacing_mm: float = 1.65, *, contrast: float = 4.0, background_suv: float = 1.0, length_mm: float = 90.0
) -> NemaPhantom:
    """Draw the phantom on cubic voxels, the spheres in its middle.

    Args:
        spacing_mm: voxel edge length, above 0 and up to 10.
        contrast: uptake of the spheres over the background's; NEMA asks for 4, and allows 8.
        background_suv: uptake of the background, above 0.
        length_mm: axial length, at least 50, so that the background's slices lie inside.

    Raises:
        InputError: ``CFG_RANGE`` when a value is outside its range.
    """
    for name, value, good, wanted in (
        ("spacing_mm", spacing_mm, 0 < spacing_mm <= 10, "above 0 and up to 10"),
        ("contrast", contrast, contrast > 1, "more than 1"),
        ("background_suv", background_suv, background_suv > 0, "above 0"),
        ("length_mm", length_mm, 50 <= length_mm <= 1000, "from 50 to 1000"),
    ):
        if not good:
            raise InputError("CFG_RANGE", where=f"nema_phantom.{name}", found=str(value), remedy=f"give {wanted}")
    extent_mm = (length_mm, _HALF_DISC_MM + _CORNER_MM + 2 * _MARGIN_MM, 2 * (_HALF_DISC_MM + _MARGIN_MM))
    nz, ny, nx = (int(np.ceil(mm / spacing_mm)) for mm in extent_mm)
    middle = tuple((n - 1) * spacing_mm / 2 for n in (nz, ny, nx))  # also the ring's centre: half the body's height
    spheres = tuple(
        Sphere(
            (middle[0], middle[1] + _RING_MM * np.sin(angle), middle[2] + _RING_MM * np.cos(angle)),
            diameter,
            contrast * background_suv,
        )
        for diameter, angle in zip(sorted(NEMA_DIAMETERS_MM, reverse=True), np.arange(6) * np.pi / 3, strict=True)
    )
    body = _body_fraction(ny, nx, spacing_mm)
    activity = np.repeat((background_suv * body)[None], nz, axis=0)
    for sphere in spheres:
        _paint(activity, sphere, background_suv, spacing_mm)
    grid = Grid((nz, ny, nx), np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0]))
    facts = {"kind": "NEMA image quality phantom", "contrast": contrast, "background_suv": background_suv}
    ct = np.repeat((AIR_HU * (1 - body))[None], nz, axis=0).astype(np.float32)
    background = tuple((middle[1] + y, middle[2] + x) for y, x in _BACKGROUND_MM)
    return NemaPhantom(
        ArraySource(activity, grid, SUV, facts), ArraySource(ct, grid, HU, facts), spheres, background_suv, background
    )


def _inside(y: NDArray[np.float64], x: NDArray[np.float64], inset_mm: float = 0.0) -> NDArray[np.bool_]:
    """Which points, in mm from the ring's centre, lie in the body, ``inset_mm`` or more from its edge."""
    y, x = y - _RING_ABOVE_MM, np.abs(x)  # from the half disc's centre; y runs to posterior
    beside = np.maximum(x - _HALF_BASE_MM, 0)
    base = np.where(x <= _HALF_BASE_MM, y <= _CORNER_MM - inset_mm, y**2 + beside**2 <= (_CORNER_MM - inset_mm) ** 2)
    return np.where(y <= 0, x**2 + y**2 <= (_HALF_DISC_MM - inset_mm) ** 2, base)


def _body_fraction(ny: int, nx: int, spacing_mm: float) -> NDArray[np.float32]:
    y, x = (
        ((np.arange(n * _POINTS) + 0.5) / _POINTS - n / 2) * spacing_mm  # voxels end half a voxel beyond their centres
        for n in (ny, nx)
    )
    inside = _inside(y[:, None], x[None, :])
    return np.asarray(inside.reshape(ny, _POINTS, nx, _POINTS).mean(axis=(1, 3), dtype=np.float32))


def _paint(activity: NDArray[np.float32], sphere: Sphere, background_suv: float, spacing_mm: float) -> None:
    radius = sphere.diameter_mm / 2
    box, squares = [], []
    for centre, count in zip(sphere.centre_mm, activity.shape, strict=True):
        start = max(int(np.floor((centre - radius) / spacing_mm)), 0)
        stop = min(int(np.ceil((centre + radius) / spacing_mm)) + 1, count)
        box.append(slice(start, stop))
        points = start - 0.5 + (np.arange((stop - start) * _POINTS) + 0.5) / _POINTS
        squares.append((points * spacing_mm - centre) ** 2)
    inside = squares[0][:, None, None] + squares[1][:, None] + squares[2] <= radius**2
    nz, ny, nx = (len(one) // _POINTS for one in squares)
    fraction = inside.reshape(nz, _POINTS, ny, _POINTS, nx, _POINTS).mean(axis=(1, 3, 5), dtype=np.float32)
    view = activity[tuple(box)]
    view += fraction * np.float32(sphere.suv - background_suv)
