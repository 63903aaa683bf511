"""Tilts of training patches: what a tilt is, what must be read for it, and that images of one centre stay together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.patches import PatchLocation
from trainers.augment import Tilt, draw_tilt

SPACING_MM = (3.0, 2.0, 2.0)


def draw(seed: int, degrees: float = 15.0, scaling: float = 0.15) -> Tilt:
    return draw_tilt(np.random.default_rng(seed), SPACING_MM, degrees=degrees, scaling=scaling)


def in_mm(tilt: Tilt) -> np.ndarray:
    """The matrix between places in mm."""
    steps = np.array(SPACING_MM)
    return tilt.matrix * steps[:, None] / steps


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_tilt_is_a_rotation_in_mm_and_a_scale_within_their_limits(seed: int) -> None:
    matrix = in_mm(draw(seed))
    scale = np.linalg.det(matrix) ** (1 / 3)
    np.testing.assert_allclose(matrix @ matrix.T, scale**2 * np.eye(3), atol=1e-12)
    assert 1 / 1.15 <= scale <= 1.15
    about_one_axis = in_mm(draw_tilt(np.random.default_rng(seed), SPACING_MM, degrees=15.0, scaling=0.0))
    assert np.linalg.det(about_one_axis) == pytest.approx(1)
    assert np.rad2deg(np.arccos((np.trace(about_one_axis) - 1) / 2)) <= 15 * np.sqrt(3) + 1e-6


def test_nothing_drawn_leaves_every_voxel() -> None:
    still = draw(0, degrees=0.0, scaling=0.0)
    box = PatchLocation((3, 4, 5), (6, 7, 8))
    assert still.box(box) == box
    voxels = np.random.default_rng(0).random(box.shape, dtype=np.float32)
    np.testing.assert_allclose(still.of(voxels, box.shape), voxels, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_what_is_read_holds_all_that_a_tilted_patch_shows(seed: int) -> None:
    """A linear ramp is then exact up to the patch's corners; an edge that was repeated would break it."""
    tilt, box = draw(seed), PatchLocation((10, 20, 30), (8, 10, 12))
    read = tilt.box(box)
    assert [(a + b) / 2 for a, b in zip(read.start, read.stop, strict=True)] == [14, 25, 36]
    places = np.stack(np.meshgrid(*(np.arange(n) for n in read.shape), indexing="ij"), axis=-1)
    centre = (np.array(read.shape) - 1) / 2
    for axis in range(3):
        ramp = (places[..., axis] - centre[axis]).astype(np.float32)
        offsets = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in box.shape), indexing="ij"), axis=-1)
        np.testing.assert_allclose(tilt.of(ramp, box.shape), offsets @ tilt.matrix[axis], atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_patch_and_its_halo_show_the_same_place(seed: int) -> None:
    volume = np.random.default_rng(9).random((40, 40, 40), dtype=np.float32)
    tilt, box = draw(seed), PatchLocation((16, 16, 16), (8, 8, 8))

    def read(wanted: PatchLocation) -> np.ndarray:
        inside = tilt.box(wanted)
        z, y, x = (slice(a, b) for a, b in zip(inside.start, inside.stop, strict=True))
        return tilt.of(volume[z, y, x], wanted.shape)

    np.testing.assert_allclose(read(box.grown((2, 3, 4)))[2:-2, 3:-3, 4:-4], read(box), atol=1e-5)


def test_labels_stay_labels() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (20, 20, 20)).astype(np.float32) * 7
    tilt, box = draw(4), PatchLocation((6, 6, 6), (8, 8, 8))
    read = tilt.box(box)
    z, y, x = (slice(a, b) for a, b in zip(read.start, read.stop, strict=True))
    assert set(np.unique(tilt.of(labels[z, y, x], box.shape, order=0))) <= {0.0, 7.0, 14.0}
