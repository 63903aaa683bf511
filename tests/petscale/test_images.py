"""Images in memory: voxels bit for bit and the geometry to a millionth, whatever library they pass through."""

import io
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from petscale.images import Image
from storage.errors import InputError
from storage.phantom import PhantomConfig, phantom
from storage.source import Grid

TOLERANCE_MM = 1e-6


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Small volumes on oblique grids with anisotropic voxels and any handedness."""
    shape = tuple(draw(st.integers(1, 5)) for _ in range(3))
    angles = [draw(st.floats(-np.pi, np.pi)) for _ in range(3)]
    spacing = [draw(st.floats(0.3, 20.0)) for _ in range(3)]
    flips = [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    affine = np.eye(4)
    for (a, b), angle in zip(((0, 1), (1, 2), (0, 2)), angles, strict=True):
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        affine[:3, :3] = affine[:3, :3] @ turn
    affine[:3, :3] *= np.array(spacing) * flips
    affine[:3, 3] = [draw(st.floats(-900.0, 900.0)) for _ in range(3)]
    voxels = np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape).astype(np.float32)
    return Image(voxels, Grid((shape[0], shape[1], shape[2]), affine))


def of_numbers(voxels: Any, grid: Grid, units: str = "SUVbw") -> Image:
    """An image of an array of any number type."""
    return Image(voxels, grid, units)


def same(one: Image, other: Image) -> None:
    assert one.voxels.dtype == other.voxels.dtype == np.float32
    np.testing.assert_array_equal(one.voxels, other.voxels)
    np.testing.assert_allclose(one.grid.affine, other.grid.affine, rtol=0, atol=TOLERANCE_MM)
    assert one.grid.shape == other.grid.shape
    assert one.units == other.units


def corner(image: Image) -> tuple[tuple[int, int, int], Any]:
    """The last voxel's index (x, y, z) and its place in RAS+ millimetres."""
    z, y, x = (n - 1 for n in image.grid.shape)
    return (x, y, z), (image.grid.affine @ [x, y, z, 1.0])[:3]


@given(image=images())
def test_nibabel_and_back(image: Image) -> None:
    volume = image.to_nibabel()
    (x, y, z), place = corner(image)
    assert volume.dataobj[x, y, z] == image.voxels[z, y, x]
    np.testing.assert_allclose((volume.affine @ [x, y, z, 1.0])[:3], place, rtol=0, atol=TOLERANCE_MM)
    assert volume.header.get_xyzt_units()[0] == "mm"
    same(Image.from_nibabel(volume), image)


@given(image=images())
def test_simpleitk_and_back(image: Image) -> None:
    volume = image.to_sitk()
    index, place = corner(image)
    assert volume[index] == image.voxels[index[::-1]]
    left_posterior = np.array(volume.TransformIndexToPhysicalPoint(index))
    np.testing.assert_allclose(left_posterior * [-1, -1, 1], place, rtol=0, atol=TOLERANCE_MM)
    np.testing.assert_allclose(volume.GetSpacing()[::-1], image.grid.spacing_mm)
    same(Image.from_sitk(volume), image)


@given(image=images())
def test_torch_and_back(image: Image) -> None:
    tensor = image.to_torch()
    assert tensor.shape == image.grid.shape
    same(Image.from_torch(tensor, image.grid), image)
    before = image.voxels.copy()
    tensor += 1
    np.testing.assert_array_equal(image.voxels, before)


@given(image=images())
@settings(max_examples=30, deadline=None)
def test_nibabel_and_simpleitk_agree(image: Image) -> None:
    same(Image.from_sitk(Image.from_nibabel(image.to_nibabel()).to_sitk()), image)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_saved_file_is_read_alike_by_all(name: str, tmp_path: Path) -> None:
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) * [2.0, 3.0, 4.0]
    affine = np.vstack([np.column_stack([turn, [10, -20, 30]]), [0, 0, 0, 1]])
    image = of_numbers(np.random.default_rng(0).gamma(2, 1, (5, 4, 3)), Grid((5, 4, 3), affine))
    image.save(tmp_path / name)
    for again in (
        Image.open(tmp_path / name),
        Image.from_nibabel(nibabel.load(tmp_path / name)),
        Image.from_sitk(SimpleITK.ReadImage(str(tmp_path / name))),
    ):
        np.testing.assert_array_equal(again.voxels, image.voxels)
        np.testing.assert_allclose(again.grid.affine, affine, atol=1e-4)  # a header holds float32
    assert Image.open(tmp_path / name, units="HU").units == "HU"


def test_other_types_and_units_of_length_become_ours() -> None:
    volume = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([0.002, 0.002, 0.003, 1]))
    volume.header.set_xyzt_units("meter")
    image = Image.from_nibabel(volume, units="HU")
    assert image.grid.spacing_mm == pytest.approx((3.0, 2.0, 2.0))
    assert image.voxels[3, 2, 1] == 23
    stored = SimpleITK.GetImageFromArray(np.arange(24, dtype=np.uint8).reshape(4, 3, 2))
    assert Image.from_sitk(stored).voxels[3, 2, 1] == 23
    learnt = torch.ones(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert Image.from_torch(learnt, image.grid).voxels.dtype == np.float32


def test_an_image_is_a_value_and_a_source() -> None:
    source = phantom(PhantomConfig(shape=(20, 16, 18), spacing_mm=(40.0, 25.0, 24.0)))
    image = Image.of(source.activity)
    assert (image.grid.shape, image.units) == ((20, 16, 18), "SUVbw")
    np.testing.assert_array_equal(image.read(3, 9), source.activity.read(3, 9))
    again = Image.of(image)
    same(again, image)
    assert again.provenance == dict(source.activity.provenance)
    with pytest.raises(ValueError, match="read-only"):
        image.voxels[0, 0, 0] = 1
    mine = np.zeros((2, 2, 2), np.float32)
    kept = Image(mine, Grid((2, 2, 2), np.eye(4)))
    mine += 1
    assert not kept.voxels.any()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda grid: of_numbers(np.zeros((2, 3)), grid), "IMG_SHAPE"),
        (lambda grid: of_numbers(np.zeros((4, 3, 2)), grid), "IMG_SHAPE"),
        (lambda grid: of_numbers(np.full((2, 3, 4), np.nan), grid), "IMG_NONFINITE"),
        (lambda grid: of_numbers(np.full((2, 3, 4), 1e300), grid), "IMG_NONFINITE"),
        (lambda grid: of_numbers(np.zeros((2, 3, 4)), grid, "g/mL"), "IMG_UNITS"),
        (lambda grid: Image.from_torch(torch.zeros(1, 2, 3, 4), grid), "IMG_SHAPE"),
        (lambda grid: Image.from_nibabel(nibabel.Nifti1Image(np.zeros((2, 2, 2, 2)), np.eye(4))), "IMG_SHAPE"),
        (lambda grid: Image.from_sitk(SimpleITK.Image(2, 2, SimpleITK.sitkFloat32)), "IMG_SHAPE"),
        (lambda grid: Image.from_sitk(SimpleITK.Image([2, 2, 2], SimpleITK.sitkVectorFloat32, 3)), "IMG_SHAPE"),
        (lambda grid: of_numbers(np.zeros((2, 3, 4)), grid).save("image.png"), "IMG_FORMAT"),
        (lambda grid: Image.open("nowhere.nii"), "IMG_NO_FILE"),
    ],
)
def test_mistakes_have_codes(make: Any, code: str) -> None:
    with pytest.raises(InputError) as refused:
        make(Grid((2, 3, 4), np.eye(4)))
    assert refused.value.code == code


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r"CFG_PACKAGE SimpleITK: not installed; .*petscale\[simpleitk\]"):
        of_numbers(np.zeros((2, 3, 4)), Grid((2, 3, 4), np.eye(4))).to_sitk()


def test_a_notebook_shows_the_front_of_the_patient() -> None:
    """A hot spot in the head on the patient's right is drawn dark, above and on the left; the window is fixed."""
    affine = np.diag([10.0, 10.0, 10.0, 1.0])  # indices grow towards right, anterior, superior
    voxels = np.zeros((30, 12, 20), np.float32)
    voxels[25, 6, 17] = 70.0
    spot = Image(voxels, Grid((30, 12, 20), affine))
    png = spot._repr_png_()
    assert png is not None
    picture = np.asarray(PIL.Image.open(io.BytesIO(png)).convert("L"))
    assert picture.shape == (30, 20)
    assert np.argwhere(picture < 128).tolist() == [[4, 2]]
    brighter = Image(voxels * 10, spot.grid)._repr_png_()
    assert brighter == png
    assert Image(voxels, spot.grid, "Bq/mL")._repr_png_() is None
    for units in ("HU", "label"):
        shown = Image(voxels, spot.grid, units)._repr_png_()
        assert shown is not None
        assert shown.startswith(b"\x89PNG")
