"""The image-quality phantom: its sizes, its uptake, and background regions that touch nothing."""

import itertools

import numpy as np
import pytest

from storage.errors import InputError
from storage.nema import BACKGROUND_OFFSETS_MM, nema_phantom
from storage.source import HU, SUV

PHANTOM = nema_phantom(3.0, contrast=4.0, background_suv=0.8)


def test_body_and_spheres_have_the_volumes_of_the_standard() -> None:
    depth, height, width = PHANTOM.activity.grid.shape
    plane = PHANTOM.activity.read(2, 3)[0]  # no sphere reaches this far
    area_mm2 = plane.sum() / 0.8 * 9
    expected = np.pi * 147**2 / 2 + np.pi * 77**2 / 2 + 140 * 77
    assert area_mm2 == pytest.approx(expected, rel=0.002)
    hot = PHANTOM.activity.read(0, depth) - plane
    volumes = sum(np.pi / 6 * sphere.diameter_mm**3 for sphere in PHANTOM.spheres)
    assert hot.sum() * 27 / (3.2 - 0.8) == pytest.approx(volumes, rel=0.01)
    assert (plane[[0, -1]] == 0).all()
    assert (plane[:, [0, -1]] == 0).all()
    assert height * width * 9 < 1.6 * expected


def test_every_sphere_lies_where_it_is_said_to() -> None:
    volume = PHANTOM.activity.read(0, PHANTOM.activity.grid.shape[0])
    for sphere in PHANTOM.spheres:
        centre = tuple(round(mm / 3.0) for mm in sphere.centre_mm)
        assert volume[centre] == pytest.approx(3.2)
        assert sphere.suv == pytest.approx(3.2)
    gaps = [np.hypot(a.centre_mm[1] - b.centre_mm[1], a.centre_mm[2] - b.centre_mm[2])
            for a, b in itertools.pairwise([*PHANTOM.spheres, PHANTOM.spheres[0]])]  # fmt: skip
    np.testing.assert_allclose(gaps, 57.2)
    assert [sphere.diameter_mm for sphere in PHANTOM.spheres] == [37, 28, 22, 17, 13, 10]


def test_background_regions_hold_background_alone() -> None:
    assert len(PHANTOM.background_mm) == 12
    (depth, height, width), (z, _, _) = PHANTOM.activity.grid.shape, PHANTOM.spheres[0].centre_mm
    y, x = np.arange(height)[:, None] * 3.0, np.arange(width) * 3.0
    volume = PHANTOM.activity.read(0, depth)
    for offset in BACKGROUND_OFFSETS_MM:
        plane = volume[round((z + offset) / 3.0)]
        for cy, cx in PHANTOM.background_mm:
            near = np.hypot(y - cy, x - cx) <= 18.5 + 12  # 15 mm to everything, less a voxel
            np.testing.assert_allclose(plane[near], 0.8, rtol=1e-6)


def test_the_ct_is_water_in_air_on_the_same_grid() -> None:
    assert (PHANTOM.activity.units, PHANTOM.ct.units) == (SUV, HU)
    assert PHANTOM.ct.grid.matches(PHANTOM.activity.grid)
    plane = PHANTOM.ct.read(0, 1)[0]
    assert plane.min() == -1000
    assert plane.max() == pytest.approx(0)


@pytest.mark.parametrize(
    "wrong", [{"spacing_mm": 0.0}, {"contrast": 1.0}, {"background_suv": 0.0}, {"length_mm": float("nan")}]
)
def test_a_wrong_number_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))) as error:
        nema_phantom(**wrong)
    assert error.value.code == "CFG_RANGE"
