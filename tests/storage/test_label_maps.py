"""Labels of users' files: every value is named, told or refused, and lies where it was drawn."""

import itertools
import json
import os
import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from storage import label_maps
from storage.errors import InputError
from storage.geometry import difference, place
from storage.ingest import CasePlan, ingest
from storage.label_maps import LabelFile, LabelMap, Labels, LesionMask, open_labels
from storage.label_names import TABLES
from storage.reader import open_cohort
from storage.source import LABEL, SUV, ArraySource, Grid

SHAPE = (7, 6, 5)
TURN = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
STRAIGHT = np.array([[-4.0, 0, 0, 30], [0, -5.0, 0, 20], [0, 0, 3.0, -100], [0, 0, 0, 1]])
GRID = Grid(SHAPE, STRAIGHT)
ORDERS = [(axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)]


@pytest.fixture
def organs() -> NDArray[Any]:
    """(z, y, x) of 0, 1, 3 and 5."""
    rng = np.random.Generator(np.random.Philox(5))
    return rng.choice(np.array([0, 1, 3, 5], np.uint8), SHAPE)


def save(path: Path, voxels: NDArray[Any], affine: NDArray[Any] = STRAIGHT, dtype: Any = np.uint8) -> Path:
    """Write (z, y, x) voxels."""
    image = nibabel.Nifti1Image(np.ascontiguousarray(voxels.T).astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def stored_as(
    voxels: NDArray[Any], affine: NDArray[Any], axes: tuple[int, ...], flips: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same voxels (z, y, x) in another order of axes, some of them reversed, with the affine that says so."""
    out = voxels.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    back = np.zeros((4, 4))  # new index (z, y, x, 1) -> old
    back[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        back[old, new] = flip
        back[old, 3] = 0 if flip > 0 else voxels.shape[old] - 1
    turn = np.eye(4)[[2, 1, 0, 3]]
    return out, affine @ turn @ back @ turn


def opened(tmp_path: Path, *files: LabelFile, grid: Grid = GRID) -> Labels:
    return open_labels(files, grid=grid, workdir=tmp_path / "work")


def voxels_of(labels: Labels) -> NDArray[Any]:
    return labels.image.read(0, labels.image.grid.shape[0])


def refused(tmp_path: Path, *files: LabelFile, grid: Grid = GRID) -> InputError:
    with pytest.raises(InputError) as error:
        opened(tmp_path, *files, grid=grid)
    assert "\n" not in str(error.value)
    assert str(tmp_path) not in str(error.value)
    return error.value


# -- label maps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz"])
def test_named_values_keep_their_number_and_place(tmp_path: Path, organs: NDArray[Any], name: str) -> None:
    labels = opened(tmp_path, LabelMap(save(tmp_path / name, organs), {1: "spleen", 3: "liver", 5: "brain"}))
    assert labels.names == {1: "spleen", 3: "liver", 5: "brain"}
    assert labels.image.units == LABEL
    assert labels.image.grid is GRID
    assert np.array_equal(voxels_of(labels), organs)
    assert labels.notes == ()


def test_a_slab_is_a_part_of_the_whole_and_threads_may_read(tmp_path: Path, organs: NDArray[Any]) -> None:
    image = opened(tmp_path, LabelMap(save(tmp_path / "a.nii", organs), TABLES["totalsegmentator"])).image
    again = pickle.loads(pickle.dumps(image))
    with ThreadPoolExecutor(4) as pool:
        for part, z in zip(pool.map(lambda z: again.read(z, z + 2), range(6)), range(6), strict=True):
            assert part.dtype == np.float32
            assert part.flags.c_contiguous
            assert np.array_equal(part, organs[z : z + 2])


def test_values_without_a_name_are_told_with_their_voxels(tmp_path: Path, organs: NDArray[Any]) -> None:
    labels = opened(tmp_path, LabelMap(save(tmp_path / "a.nii", organs), {3: "liver", 8: "brain", 9: "heart"}))
    counts = {value: int((organs == value).sum()) for value in (1, 5)}
    assert labels.notes == (
        f"label map: values without a name are left out: 1 ({counts[1]} voxels), 5 ({counts[5]} voxels)",
        "label map: names without a voxel: brain (8), heart (9)",
    )
    assert labels.names == {3: "liver"}
    assert np.array_equal(voxels_of(labels), np.where(organs == 3, 3, 0))


def test_a_long_list_of_absent_names_is_shortened(tmp_path: Path, organs: NDArray[Any]) -> None:
    (note,) = opened(tmp_path, LabelMap(save(tmp_path / "a.nii", organs), TABLES["totalsegmentator"])).notes
    assert note.endswith("and 106 more")
    assert len(note) < 300


def test_two_values_of_one_name_are_one_label(tmp_path: Path, organs: NDArray[Any]) -> None:
    labels = opened(tmp_path, LabelMap(save(tmp_path / "a.nii", organs), {1: "liver", 3: "kidneys", 5: "kidneys"}))
    assert labels.names == {1: "liver", 3: "kidneys"}
    assert np.array_equal(voxels_of(labels), np.where(organs == 5, 3, organs))


def test_several_values_without_names_are_no_lesions(tmp_path: Path, organs: NDArray[Any]) -> None:
    error = refused(tmp_path, LabelMap(save(tmp_path / "a.nii", organs)))
    assert error.code == "LBL_VALUES"
    for value in (1, 3, 5):
        assert f"{value} ({int((organs == value).sum())} voxels)" in error.found


def test_names_that_fit_no_value_are_refused(tmp_path: Path, organs: NDArray[Any]) -> None:
    error = refused(tmp_path, LabelMap(save(tmp_path / "a.nii", organs), {7: "liver"}))
    assert error.code == "LBL_VALUES"
    assert "none of the names" in error.found


@pytest.mark.parametrize("value", [1, 7, 255])
def test_one_value_without_a_name_is_lesion_and_said_to_be(tmp_path: Path, organs: NDArray[Any], value: int) -> None:
    labels = opened(tmp_path, LabelMap(save(tmp_path / "a.nii", (organs == 3) * value)))
    assert labels.names == {value: "lesion"}
    assert np.array_equal(voxels_of(labels) == value, organs == 3)
    assert labels.notes == (f"label map: no names were given: its one value, {value}, is taken for lesions",)


def test_an_image_is_no_label_map(tmp_path: Path, organs: NDArray[Any]) -> None:
    assert refused(tmp_path, LabelMap(save(tmp_path / "a.nii", organs * 0.3, dtype=np.float32))).code == "NII_BAD_LABEL"


# -- lesion masks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("values", [(1, 1, 1), (255, 255, 255), (1, 2, 3), (7, 1, 200)])
def test_any_positive_value_is_lesion(tmp_path: Path, values: tuple[int, ...], dtype: Any) -> None:
    mask = np.zeros(SHAPE)
    mask[1, 2, 3], mask[3, 1:3, 1], mask[5] = values
    labels = opened(tmp_path, LesionMask(save(tmp_path / "a.nii.gz", mask, dtype=dtype)))
    assert labels.names == {1: "lesion"}
    assert np.array_equal(voxels_of(labels), mask > 0)
    told = (f"lesion mask: its {len(set(values))} values are all taken for lesions",) if len(set(values)) > 1 else ()
    assert labels.notes == told


def test_a_mask_scaled_by_its_header_is_a_mask(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.float32)
    mask[2] = 0.99999
    assert voxels_of(opened(tmp_path, LesionMask(save(tmp_path / "a.nii", mask, dtype=np.float32)))).sum() == 30


@pytest.mark.parametrize("values", [(-1, 1), (0.2, 0.7), (1, 0.5)])
def test_negative_or_interpolated_values_are_no_mask(tmp_path: Path, values: tuple[float, float]) -> None:
    mask = np.zeros(SHAPE, np.float32)
    mask[2], mask[4] = values
    assert refused(tmp_path, LesionMask(save(tmp_path / "a.nii", mask, dtype=np.float32))).code == "NII_BAD_LABEL"


def test_an_empty_lesion_mask_is_a_patient_without_lesions(tmp_path: Path) -> None:
    labels = opened(tmp_path, LesionMask(save(tmp_path / "a.nii", np.zeros(SHAPE))))
    assert labels.names == {1: "lesion"}
    assert not voxels_of(labels).any()
    assert labels.notes == ("lesion mask: it is empty: no lesion in this patient",)


# -- several files ----------------------------------------------------------------------------------------------------


def test_lesions_win_over_organs_and_numbers_do_not_collide(tmp_path: Path, organs: NDArray[Any]) -> None:
    lesions = np.zeros(SHAPE)
    lesions[3:5, 2:4, 1:4] = 255
    files: list[LabelFile] = [
        LabelMap(save(tmp_path / "organs.nii", organs), {1: "spleen", 3: "liver", 5: "brain"}),
        LesionMask(save(tmp_path / "lesions.nii", lesions)),
    ]
    both = int(((organs > 0) & (lesions > 0)).sum())
    for order in (files, files[::-1]):
        labels = opened(tmp_path, *order)
        assert labels.names == {1: "lesion", 2: "spleen", 3: "liver", 5: "brain"}
        assert np.array_equal(voxels_of(labels), np.where(lesions > 0, 1, np.where(organs == 1, 2, organs)))
        assert labels.notes == (f"{both} voxels of both an organ and a lesion are lesion",)


def test_two_maps_number_equal_names_alike_and_the_later_wins(tmp_path: Path) -> None:
    a, b = np.zeros(SHAPE), np.zeros(SHAPE)
    a[0:3], a[3] = 1, 2
    b[2:4], b[5] = 1, 9
    first = LabelMap(save(tmp_path / "a.nii", a), {1: "liver", 2: "lesion"})
    labels = opened(tmp_path, first, LabelMap(save(tmp_path / "b.nii", b), {1: "heart", 9: "liver"}))
    assert labels.names == {1: "liver", 2: "lesion", 3: "heart"}
    assert voxels_of(labels)[:, 0, 0].tolist() == [1, 1, 3, 2, 0, 1, 0]
    assert labels.notes == (
        "30 voxels of both an organ and a lesion are lesion",
        "30 voxels that two files name differently are what the later file says",
    )


def test_a_lesion_of_two_masks_is_counted_once(tmp_path: Path) -> None:
    masks = [np.zeros(SHAPE), np.zeros(SHAPE)]
    masks[0][1:4], masks[1][3:5] = 1, 1
    labels = opened(tmp_path, *(LesionMask(save(tmp_path / f"{i}.nii", m)) for i, m in enumerate(masks)))
    assert voxels_of(labels)[:, 0, 0].tolist() == [0, 1, 1, 1, 1, 0, 0]
    assert labels.notes == ()


def test_notes_of_several_masks_say_which(tmp_path: Path) -> None:
    empty = [LesionMask(save(tmp_path / f"{i}.nii", np.zeros(SHAPE))) for i in range(2)]
    assert [note.split(":")[0] for note in opened(tmp_path, *empty).notes] == ["lesion mask 1", "lesion mask 2"]


# -- order of axes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("affine", "lesions"), [(STRAIGHT, True), (TURN @ STRAIGHT, False)], ids=["straight", "oblique"]
)
def test_every_order_and_direction_of_axes_gives_the_same_labels(
    tmp_path: Path, organs: NDArray[Any], affine: NDArray[Any], lesions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_maps, "SLAB_VOXELS", 70)  # so that a file is read in several slabs
    grid = Grid(SHAPE, affine)
    assert len(ORDERS) == 48
    for axes, flips in ORDERS:
        voxels, theirs = stored_as(organs, affine, axes, flips)
        path = save(tmp_path / "a.nii", voxels > 0 if lesions else voxels, theirs)
        file = LesionMask(path) if lesions else LabelMap(path, {1: "a", 3: "b", 5: "c"})
        labels = opened(tmp_path, file, grid=grid)
        assert np.array_equal(voxels_of(labels), organs > 0 if lesions else organs), (axes, flips)
        assert len(labels.notes) == (0 if (axes, flips) == ((0, 1, 2), (1, 1, 1)) else 1)


def test_rows_that_another_converter_stored_bottom_up_are_the_same_voxels(tmp_path: Path) -> None:
    """A mask drawn on another converter's copy of the PET: its rows run the other way."""
    mask = np.zeros(SHAPE)
    mask[4, 1, 3] = 1
    flipped = np.diag([-4.0, 5.0, 3.0, 1.0])
    flipped[:3, 3] = [30, 20 - 5 * (SHAPE[1] - 1), -100]
    labels = opened(tmp_path, LesionMask(save(tmp_path / "a.nii", mask[:, ::-1], flipped)))
    assert np.argwhere(voxels_of(labels)).tolist() == [[4, 1, 3]]
    assert labels.notes == ("lesion mask: its voxels, stored in another order of axes, were put into the PET's",)


def moved(x: float = 0, y: float = 0, z: float = 0) -> NDArray[Any]:
    out = STRAIGHT.copy()
    out[:3, 3] += (x, y, z)
    return out


@pytest.mark.parametrize(
    ("affine", "told"),
    [
        (moved(z=3.0), "3.00 mm off (x +0.00, y +0.00, z +3.00 mm)"),
        (moved(x=-12, y=5, z=0.5), "13.01 mm off (x -12.00, y +5.00, z +0.50 mm)"),
        (moved(x=0.06), "0.06 mm off"),
        (STRAIGHT @ np.diag([1.25, 1, 1, 1]), "3 x 5 x 5 mm (z, y, x) for"),
        (TURN @ STRAIGHT, "its axes are turned by 36.9 degrees"),
    ],
)
def test_other_voxels_are_refused_with_the_difference(
    tmp_path: Path, organs: NDArray[Any], affine: NDArray[Any], told: str
) -> None:
    error = refused(tmp_path, LabelMap(save(tmp_path / "a.nii", organs, affine), {1: "liver"}))
    assert error.code == "PAIR_GRID_MISMATCH"
    assert told in error.found
    assert error.found.count("7 x 6 x 5 voxels of") == 2
    assert "7 x 6 x 5 voxels of 3 x 5 x 4 mm (z, y, x), its" in error.found


def test_a_flipped_and_shifted_mask_is_refused_with_the_shift_alone(tmp_path: Path, organs: NDArray[Any]) -> None:
    voxels, affine = stored_as(organs, STRAIGHT, (0, 1, 2), (1, -1, 1))
    affine[1, 3] += 7
    error = refused(tmp_path, LesionMask(save(tmp_path / "a.nii", voxels, affine)))
    assert "7.00 mm off (x +0.00, y +7.00, z +0.00 mm)" in error.found


def test_a_rounded_affine_is_the_same(tmp_path: Path, organs: NDArray[Any]) -> None:
    labels = opened(tmp_path, LabelMap(save(tmp_path / "a.nii", organs, moved(x=0.01, y=-0.01)), {3: "liver"}))
    assert labels.names == {3: "liver"}


@pytest.mark.parametrize("cut", [np.s_[1:], np.s_[:, :5], np.s_[:, :, :4]])
def test_a_part_or_more_of_the_voxels_is_refused(tmp_path: Path, organs: NDArray[Any], cut: Any) -> None:
    part = organs[cut]
    affine = moved(z=3.0) if part.shape[0] < SHAPE[0] else STRAIGHT
    error = refused(tmp_path, LesionMask(save(tmp_path / "a.nii", part, affine)))
    assert error.code == "PAIR_GRID_MISMATCH"
    assert " x ".join(str(n) for n in part.shape) in error.found
    whole = save(tmp_path / "b.nii", organs)
    assert refused(tmp_path, LesionMask(whole), grid=Grid((6, 6, 5), STRAIGHT)).code == "PAIR_GRID_MISMATCH"


def test_a_part_of_a_grid_is_placed_by_every_step() -> None:
    every_second = Grid((3, 6, 5), moved(z=3.0) @ np.diag([1, 1, 2, 1]))
    found = place(every_second, GRID)
    assert found is not None
    assert (found.steps, found.first) == ((2, 1, 1), (1, 0, 0))
    assert found.view(np.arange(7)[:, None, None] * np.ones(SHAPE))[:, 0, 0].tolist() == [1, 3, 5]
    assert place(Grid((4, 6, 5), every_second.affine), GRID) is None
    assert "voxels" in difference(every_second, GRID)


# -- a case -----------------------------------------------------------------------------------------------------------


def test_labels_become_those_of_a_committed_case(tmp_path: Path) -> None:
    grid = Grid((20, 12, 12), np.diag([-8.0, -8.0, 8.0, 1.0]))
    organs = np.zeros(grid.shape, np.uint8)
    organs[4:9, 3:9, 3:9], organs[12:15, 3:9, 3:9] = 1, 5
    files: list[LabelFile] = [
        LabelMap(save(tmp_path / "organs.nii", organs, grid.affine), TABLES["totalsegmentator"]),
        LesionMask(save(tmp_path / "lesions.nii", organs * 0, grid.affine)),
    ]
    pet = ArraySource(1.0 + organs.astype(np.float32), grid, SUV)

    def plan(scratch: Path) -> CasePlan:
        labels = open_labels(files, grid=grid, workdir=scratch)
        return CasePlan({"full": pet, "labels": labels.image}, "s", "f", labels=labels.names)

    ingest(tmp_path / "cohort", {"p": plan}, strict=True)
    case = open_cohort(tmp_path / "cohort").case("p")
    assert case.labels == {1: "lesion", 2: "spleen", 5: "liver"}
    assert np.array_equal(case.image("labels").read(0, 20), np.where(organs == 1, 2, organs))


# -- what is no label file, and what may not be said ------------------------------------------------------------------


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("labels")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path, LesionMask(tmp_path / "a.txt")).code == "LBL_FORMAT"
    assert refused(tmp_path, LesionMask(tmp_path / "empty")).code == "LBL_FORMAT"
    assert refused(tmp_path, LesionMask(tmp_path / "none.nii")).code == "IMG_NO_FILE"


def test_nothing_of_a_path_is_noted_or_stored(tmp_path: Path, organs: NDArray[Any]) -> None:
    folder = tmp_path / "Doe_Jane"
    names: Mapping[int, str] = {3: "liver", 9: "brain"}
    voxels, affine = stored_as(organs, STRAIGHT, (0, 1, 2), (1, -1, 1))
    labels = opened(
        tmp_path,
        LabelMap(save(folder / "jane.nii.gz", voxels, affine), names),
        LesionMask(save(folder / "doe.nii", organs * 0)),
    )
    assert len(labels.notes) == 4
    told = json.dumps([labels.notes, dict(labels.image.provenance)]) + repr(labels)
    assert not [word for word in ("jane", "doe", str(tmp_path)) if word.lower() in told.lower()]
    assert labels.image.provenance["notes"] == list(labels.notes)


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, organs: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert refused(tmp_path, LesionMask(save(tmp_path / "a.nii", organs))).code == "DISK_FULL"
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.skipif("PETSCALE_REAL_DATA" not in os.environ, reason="PETSCALE_REAL_DATA names no data folder")
def test_a_map_of_totalsegmentator_itself_is_named_whole(tmp_path: Path) -> None:
    path = Path(os.environ["PETSCALE_REAL_DATA"], "totalsegmentator/example_seg.nii.gz")
    image = nibabel.load(path)
    grid = Grid(image.shape[::-1], image.affine)
    labels = opened(tmp_path, LabelMap(path, TABLES["totalsegmentator"]), grid=grid)
    assert len(labels.names) == 41
    assert np.array_equal(voxels_of(labels), np.asarray(image.dataobj).T)
    assert [note.split(":")[1] for note in labels.notes] == [" names without a voxel"]
