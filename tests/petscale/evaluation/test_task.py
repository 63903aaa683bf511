"""Lesions that are put in: where, how much activity, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petscale.evaluation import task
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.reader import Case, open_cohort
from storage.source import LABEL, SUV, ArraySource, Grid

GRID = Grid((30, 32, 34), np.diag([-4.0, -4.0, 5.0, 1.0]))
CONFIG = task.TaskConfig(lesion_mm=12.0, lesion_contrast=3.0, places=4, seed=2)


def marks(label: int = 7) -> ArraySource:
    inside = np.zeros(GRID.shape, np.float32)
    inside[3:28, 2:30, 3:31] = label
    return ArraySource(inside, GRID, LABEL)


@pytest.mark.parametrize(("diameter_mm", "spacing"), [(10.0, (3.0, 2.0, 2.5)), (30.0, (4.0, 4.0, 4.0))])
def test_a_sphere_has_its_volume_and_its_centre(diameter_mm: float, spacing: tuple[float, float, float]) -> None:
    ball = task.sphere(diameter_mm, spacing)
    assert float(ball.sum()) * np.prod(spacing) == pytest.approx(np.pi / 6 * diameter_mm**3, rel=0.02)
    np.testing.assert_array_equal(ball, ball[::-1, ::-1, ::-1])
    assert ball[tuple(n // 2 for n in ball.shape)] == 1


@pytest.mark.parametrize("organ", [7, None])
def test_places_lie_inside_apart_and_are_drawn_from_the_seed(organ: int | None) -> None:
    where = marks(7 if organ else 1)
    found = task.places(where, organ, CONFIG)
    assert len(found) == 4
    np.testing.assert_array_equal(found, task.places(where, organ, CONFIG))
    assert not np.array_equal(found, task.places(where, organ, replace(CONFIG, seed=3)))
    spacing = np.array(GRID.spacing_mm)
    apart = [np.linalg.norm((a - b) * spacing) for n, a in enumerate(found) for b in found[:n]]
    assert min(apart) >= 2 * task.HALF_MM
    for centre in found:
        for axis, (low, high) in enumerate(((3, 28), (2, 30), (3, 31))):
            assert (centre[axis] - low + 1) * spacing[axis] > 12 / 2 + task.GUARD_MM
            assert (high - centre[axis]) * spacing[axis] > 12 / 2 + task.GUARD_MM
    assert task.places(where, 8, CONFIG).shape == (0, 3)
    for too_large in (110.0, 900.0, 1e12):  # told at once, whatever its size
        assert task.places(where, organ, replace(CONFIG, lesion_mm=too_large)).shape == (0, 3)
    assert len(task.places(where, organ, replace(CONFIG, lesion_mm=60.0, places=1))) == 1


@pytest.mark.parametrize("slices", [1, 7, 30])
def test_lesions_add_their_activity_once_whatever_the_slabs(slices: int) -> None:
    truth = ArraySource(np.full(GRID.shape, 2.0, np.float32), GRID, SUV)
    centres = task.places(marks(), 7, CONFIG)
    added = np.array([4.0, 1.0, 2.0, 3.0])
    with_lesions = task._WithLesions(truth, centres, added, 12.0)
    parts = [with_lesions.read(z, min(z + slices, 30)) for z in range(0, 30, slices)]
    voxels = np.concatenate(parts)
    ball = task.sphere(12.0, GRID.spacing_mm)
    assert float((voxels - 2).sum()) == pytest.approx(added.sum() * ball.sum(), rel=1e-5)
    for centre, suv in zip(centres, added, strict=True):
        assert voxels[tuple(centre)] == 2 + suv
    assert (truth.voxels == 2).all()


def test_a_cube_beyond_a_face_repeats_it() -> None:
    image = ArraySource(np.random.default_rng(1).random(GRID.shape, dtype=np.float32), GRID, SUV)
    cube = task._cube(image, np.array([0, 31, 5]), (2, 2, 1))
    assert cube.shape == (5, 5, 3)
    np.testing.assert_array_equal(cube[0], cube[2])
    np.testing.assert_array_equal(cube[:, 2], cube[:, 4])
    np.testing.assert_array_equal(cube[2:, :3, :], image.voxels[:3, 29:32, 4:7])


def real(cohort: Path, folder: Path) -> Case:
    """A case of the same images that no simulation has made."""
    case = open_cohort(cohort).case("phantom-000")

    def plan(scratch: Path) -> CasePlan:
        images = {name: case.image(name).read(0, case.image(name).grid.shape[0]) for name in ("full", "low_drf20")}
        sources = {name: ArraySource(voxels, case.image(name).grid, SUV) for name, voxels in images.items()}
        return CasePlan(sources, "ann", "real")

    ingest(folder, {"a": plan}, strict=True, workers=1)
    return open_cohort(folder).case("a")


def test_cases_without_truth_or_room_and_scans_that_are_ct_are_refused(cohort: Path, tmp_path: Path) -> None:
    case = open_cohort(cohort).case("phantom-000")
    with pytest.raises(InputError, match="SET_NO_IMAGE case a: no simulated scan"):
        task.plan(real(cohort, tmp_path / "real"), "low_drf20", CONFIG)
    with pytest.raises(InputError, match=r"SET_NO_LABELS case phantom-000: no room.*choose a smaller --lesion-mm"):
        task.plan(case, "low_drf20", task.TaskConfig(lesion_mm=400))
    with pytest.raises(InputError, match="CFG_NO_EFFECT --task"):
        task.plan(case, "ct", CONFIG)
    for wrong in ({"lesion_contrast": 1.0}, {"lesion_mm": 0.0}, {"scans": 0}):
        with pytest.raises(InputError, match="CFG_RANGE"):
            task.TaskConfig(**wrong)
