"""Contours become the voxels whose centres they enclose: areas, holes, planes between slices, directions, names."""

import contextlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

from storage.errors import InputError
from storage.label_maps import LabelFile, LabelMap, Labels, LesionMask, open_labels
from storage.rtstruct import CLASS, even_odd
from storage.source import Grid

SHAPE = (9, 40, 44)
AFFINE = np.array([[-4.0, 0, 0, 80], [0, -4.0, 0, 70], [0, 0, 3.0, -100], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)
FRAME = generate_uid()
TURN = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
Contour = tuple[float, NDArray[Any]]  # slice, points (n, 2) as (row, column) in voxels


def circle(row: float, column: float, radius: float, n: int = 200) -> NDArray[Any]:
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([row + radius * np.sin(angle), column + radius * np.cos(angle)], axis=1)


def square(first: float, last: float) -> NDArray[Any]:
    return np.array([(first, first), (first, last), (last, last), (last, first)], dtype=float)


def item(**fields: object) -> Dataset:
    ds = Dataset()
    for name, value in fields.items():
        setattr(ds, name, value)
    return ds


def save(
    path: Path,
    structures: Mapping[str, Sequence[Contour]],
    grid: Grid = GRID,
    axis: int = 0,
    kind: str = "CLOSED_PLANAR",
    frame: str = FRAME,
    stated: Sequence[str] = (),
    first: int = 1,
    file_syntax: UID = ExplicitVRLittleEndian,
) -> Path:
    """Write structures whose contours are given in voxels of a grid, across one of its axes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(CLASS), generate_uid()
    meta.TransferSyntaxUID = file_syntax
    ds = item(SOPClassUID=UID(CLASS), SOPInstanceUID=meta.MediaStorageSOPInstanceUID, PatientName="Smith^Jane")
    ds.file_meta = meta
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    rois, drawn = [], []
    for number, (name, contours) in enumerate(structures.items(), start=first):
        rois.append(item(ROINumber=number, ReferencedFrameOfReferenceUID=frame, ROIName=name))
        contour_items = []
        for place, points in contours:
            index = np.insert(points, axis, place, axis=1)[:, ::-1]
            lps = (np.c_[index, np.ones(len(index))] @ to_lps.T)[:, :3]
            contour_items.append(
                item(
                    ContourGeometricType=kind,
                    NumberOfContourPoints=len(lps),
                    ContourData=[f"{value:.6f}" for value in lps.ravel()],
                )
            )
        drawn.append(item(ReferencedROINumber=number, ContourSequence=contour_items))
    ds.StructureSetROISequence, ds.ROIContourSequence = rois, drawn
    ds.RTROIObservationsSequence = [
        item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType=kind)
        for number, kind in enumerate(stated, start=first)
    ]
    ds.save_as(path, enforce_file_format=True)
    return path


def opened(tmp_path: Path, *files: LabelFile, grid: Grid = GRID, frame: str = FRAME) -> Labels:
    return open_labels(files, grid=grid, workdir=tmp_path / "work", frame_of_reference=frame)


def voxels_of(labels: Labels) -> NDArray[Any]:
    return labels.image.read(0, labels.image.grid.shape[0])


def refused(tmp_path: Path, *files: LabelFile) -> InputError:
    with pytest.raises(InputError) as error:
        opened(tmp_path, *files)
    assert "\n" not in str(error.value)
    assert "smith" not in str(error.value).lower()
    return error.value


def test_how_a_structure_was_drawn_is_kept_where_the_file_says_it(tmp_path: Path) -> None:
    path = save(
        tmp_path / "s.dcm", {name: [(z, circle(10, 10, 4))] for z, name in enumerate(("liver", "brain", "heart"))}
    )
    ds = pydicom.dcmread(path)
    for roi, said in zip(ds.StructureSetROISequence, ("SEMIAUTOMATIC", "", "SMITH JANE"), strict=True):
        roi.ROIGenerationAlgorithm = said
    ds.save_as(path)
    assert opened(tmp_path, LabelMap(path)).image.provenance["drawn"] == {"liver": "SEMIAUTOMATIC"}


def centres(shape: tuple[int, int], row: float, column: float, radius: float) -> NDArray[Any]:
    rows, columns = np.indices(shape)
    inside: NDArray[Any] = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    return inside


# -- one plane --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.6, 3.3, 8.2, 14.7])
@pytest.mark.parametrize("middle", [(20, 20), (19.4, 21.7)])
def test_a_circle_has_its_area_to_a_voxel_per_voxel_of_its_edge(radius: float, middle: tuple[float, float]) -> None:
    mask = even_odd([circle(*middle, radius)], (40, 44))
    exact = centres((40, 44), *middle, radius)
    doubtful = np.count_nonzero(centres((40, 44), *middle, radius) != centres((40, 44), *middle, radius * 0.999))
    assert np.count_nonzero(mask != exact) <= doubtful
    assert abs(np.count_nonzero(mask) - np.pi * radius**2) <= 2 * np.pi * radius


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 23), st.integers(-3, 23)), min_size=3, max_size=9),
    st.integers(0, 8),
    st.booleans(),
)
def test_start_and_direction_of_a_contour_do_not_matter(
    points: list[tuple[int, int]], start: int, backwards: bool
) -> None:
    contour = np.array(points, dtype=float)
    other = np.roll(contour, start, axis=0)
    assert np.array_equal(even_odd([contour], (20, 20)), even_odd([other[::-1] if backwards else other], (20, 20)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 19), st.floats(0, 19)), min_size=3, max_size=9))
def test_the_rule_is_that_of_an_independent_polygon(points: list[tuple[float, float]]) -> None:
    """Away from edges every implementation agrees; matplotlib fills by winding, so triangles of a fan are compared."""
    from matplotlib.path import Path as Polygon

    contour = np.array(points)
    count = np.zeros((20, 20), dtype=int)
    near = np.zeros((20, 20), dtype=bool)
    where = np.argwhere(np.ones((20, 20)))
    for a, b in itertools.pairwise(contour[1:]):
        corners = np.array([contour[0], a, b])
        edge = np.stack([b - a, a - corners[0], corners[0] - b])
        if abs(np.cross(*np.pad(edge[:2], ((0, 0), (0, 1))))[2]) > 1e-9:
            count += Polygon(corners).contains_points(where).reshape(20, 20)
        for p, q in ((corners[0], a), (a, b), (b, corners[0])):
            along = np.clip(((where - p) @ (q - p)) / max(float((q - p) @ (q - p)), 1e-12), 0, 1)
            near |= (np.linalg.norm(where - (p + along[:, None] * (q - p)), axis=1) < 1e-6).reshape(20, 20)
    assert np.array_equal(even_odd([contour], (20, 20))[~near], (count % 2 == 1)[~near])


def test_areas_with_a_common_edge_share_no_voxel_and_leave_none() -> None:
    """An edge through voxel centres: one of the two has each voxel."""
    left, right = np.array([(2, 2), (2, 7), (9, 7), (9, 2.0)]), np.array([(2, 7), (2, 12), (9, 12), (9, 7.0)])
    both = np.array([(2, 2), (2, 12), (9, 12), (9, 2.0)])
    masks = [even_odd([c], (15, 15)) for c in (left, right)]
    assert not (masks[0] & masks[1]).any()
    assert np.array_equal(masks[0] | masks[1], even_odd([both], (15, 15)))
    assert np.count_nonzero(masks[0]) == 7 * 5


def test_an_inner_contour_is_a_hole_and_one_in_it_an_island() -> None:
    mask = even_odd([square(2, 17), square(5, 14), square(8, 11)], (20, 20))
    assert np.count_nonzero(mask) == 15**2 - 9**2 + 3**2
    assert (mask[3, 3], mask[6, 6], mask[9, 9]) == (True, False, True)


@pytest.mark.parametrize("row", [5, 7.25])
def test_a_hole_through_a_keyhole_is_a_hole_without_a_trace_of_the_channel(row: float) -> None:
    outer, inner = circle(9, 9, 8), circle(9, 9, 4)[::-1]
    keyhole = np.concatenate([outer[:1], outer[1:], outer[:1], inner[-1:], inner, inner[-1:]])
    moved = np.array([row - 9, 0])
    keyhole += moved
    apart = even_odd([outer + moved, inner + moved], (20, 20))
    assert np.array_equal(even_odd([keyhole], (20, 20)), apart)
    assert not apart[int(row), 9]


def test_a_contour_beyond_the_slice_is_cut_off() -> None:
    mask = even_odd([circle(0, 0, 5), circle(19, 30, 5)], (20, 20))
    assert np.array_equal(mask, centres((20, 20), 0, 0, 5))


# -- planes -----------------------------------------------------------------------------------------------------------


def test_a_sphere_of_contours_on_the_slices(tmp_path: Path) -> None:
    radius = 4.2
    contours = [(k, circle(20, 21, np.sqrt(radius**2 - (k - 4) ** 2))) for k in range(SHAPE[0]) if abs(k - 4) < radius]
    labels = opened(tmp_path, LabelMap(save(tmp_path / "rs.dcm", {"Liver": contours})))
    z, y, x = np.indices(SHAPE)
    ball = (z - 4) ** 2 + (y - 20) ** 2 + (x - 21) ** 2 < radius**2
    found = voxels_of(labels) == 1
    assert labels.names == {1: "liver"}
    assert labels.notes == ()
    assert np.count_nonzero(found != ball) <= 0.01 * ball.sum()


@pytest.mark.parametrize("offset", [-0.5, -0.4, -0.2, 0.2, 0.4, 0.5])
def test_planes_between_slices_go_to_the_nearest(tmp_path: Path, offset: float) -> None:
    contours = [(k + offset, square(10, 20)) for k in (3, 4, 5)]
    labels = opened(tmp_path, LesionMask(save(tmp_path / "rs.dcm", {"GTV": contours})))
    shift = -1 if offset == -0.5 else 0  # half way: the lower slice
    assert np.flatnonzero(voxels_of(labels).any(axis=(1, 2))).tolist() == [3 + shift, 4 + shift, 5 + shift]
    assert len(labels.notes) == 1
    assert f"{abs(offset):.2f} slices beside" in labels.notes[0]


def test_planes_closer_than_slices_are_not_mixed(tmp_path: Path) -> None:
    """Contours of a CT of 1 mm on a PET of 3 mm: a slice has the plane nearest to it."""
    contours = [(k / 3, square(10, 12 + k)) for k in range(3, 16)]
    mask = voxels_of(opened(tmp_path, LesionMask(save(tmp_path / "rs.dcm", {"GTV": contours}))))
    assert mask[1:6].sum(axis=(1, 2)).tolist() == [(2 + k) ** 2 for k in (3, 6, 9, 12, 15)]
    assert not mask[[0, 6]].any()


def test_planes_further_apart_than_slices_leave_no_gaps(tmp_path: Path) -> None:
    contours = [(k, square(10, 20)) for k in (1, 3, 5)]
    mask = voxels_of(opened(tmp_path, LesionMask(save(tmp_path / "rs.dcm", {"GTV": contours}))))
    assert mask.any(axis=(1, 2)).tolist() == [True] * 6 + [False] * 3
    assert mask.sum() == 3 * 2 * 100  # three slabs of two slices


def test_a_gap_between_two_lesions_stays(tmp_path: Path) -> None:
    contours = [(k, square(10, 20)) for k in (0, 1, 2, 6, 7)]
    mask = voxels_of(opened(tmp_path, LesionMask(save(tmp_path / "rs.dcm", {"GTV": contours}))))
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [0, 1, 2, 6, 7]


@pytest.mark.parametrize("place", [-0.5, 8.5])
def test_the_outermost_half_slices_belong_to_the_grid(tmp_path: Path, place: float) -> None:
    mask = voxels_of(opened(tmp_path, LesionMask(save(tmp_path / "rs.dcm", {"GTV": [(place, square(10, 20))]}))))
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [0 if place < 0 else 8]


@pytest.mark.parametrize(
    ("place", "points", "mm"),
    [(-1.5, square(10, 20), "3.0 mm"), (9.5, square(10, 20), "3.0 mm"), (4, square(10, 20) - 12.5, "8.0 mm")],
)
def test_contours_beyond_the_grid_are_refused_with_the_distance(
    tmp_path: Path, place: float, points: NDArray[Any], mm: str
) -> None:
    error = refused(tmp_path, LesionMask(save(tmp_path / "rs.dcm", {"GTV": [(place, points)]})))
    assert error.code == "LBL_OUTSIDE"
    assert f"{mm} beyond" in error.found


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
@pytest.mark.parametrize("turn", [np.eye(4), TURN], ids=["straight", "oblique"])
def test_contours_across_any_axis_of_any_grid(
    tmp_path: Path, axis: int, flips: tuple[int, int, int], turn: NDArray[Any]
) -> None:
    grid = Grid((20, 21, 22), turn @ AFFINE @ np.diag([*flips, 1]))
    contours = [(k, circle(9, 11, 5.3)) for k in (7, 8)]
    labels = opened(tmp_path, LesionMask(save(tmp_path / "rs.dcm", {"GTV": contours}, grid, axis)), grid=grid)
    mask = np.moveaxis(voxels_of(labels), axis, 0)
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [7, 8]
    assert np.array_equal(mask[7] > 0, centres(mask.shape[1:], 9, 11, 5.3))


def test_contours_that_are_not_parallel_to_slices_are_refused(tmp_path: Path) -> None:
    turned = Grid(SHAPE, AFFINE @ np.array([[0.8, 0, -0.6, 0], [0, 1, 0, 0], [0.6, 0, 0.8, 0], [0, 0, 0, 1]]))
    path = save(tmp_path / "rs.dcm", {"GTV": [(4, square(15, 20))]}, turned)
    assert refused(tmp_path, LesionMask(path)).code == "LBL_STRUCTURES"


# -- structures -------------------------------------------------------------------------------------------------------


def test_of_two_that_overlap_the_smaller_has_the_voxel(tmp_path: Path) -> None:
    for order in (("Brain", "GTV"), ("GTV", "Brain")):
        drawn = {"Brain": [(k, square(5, 30)) for k in range(9)], "GTV": [(4, square(10, 15))]}
        labels = opened(tmp_path, LabelMap(save(tmp_path / "rs.dcm", {name: drawn[name] for name in order})))
        numbers = {name: number for number, name in labels.names.items()}
        assert np.count_nonzero(voxels_of(labels) == numbers["gtv"]) == 25
        assert np.count_nonzero(voxels_of(labels) == numbers["brain"]) == 9 * 625 - 25
        assert labels.notes == ("label map: structures overlap: 25 voxels went to the smaller structure",)


def test_free_text_gives_a_name_only_if_it_is_anatomy(tmp_path: Path) -> None:
    drawn = {name: [(k, square(10, 15))] for k, name in enumerate(("Smith^Jane", "Kidney Left", "liver Smith"))}
    labels = opened(tmp_path, LabelMap(save(tmp_path / "rs.dcm", drawn)))
    assert labels.names == {1: "structure_1", 2: "kidney_left", 3: "structure_3"}
    assert len(labels.notes) == 1
    assert "for numbers 1, 3; name them, as 1=liver" in labels.notes[0]
    told = json.dumps([labels.notes, dict(labels.image.provenance), labels.names]) + repr(labels)
    assert not [word for word in ("smith", "jane", str(FRAME)) if word in told.lower()]


def test_names_by_number_choose_and_name(tmp_path: Path) -> None:
    drawn = {"Smith": [(1, square(10, 15))], "Kidney": [(2, square(10, 15))], "Table": [(3, square(-90, 90))]}
    labels = opened(tmp_path, LabelMap(save(tmp_path / "rs.dcm", drawn), {1: "lesion", 2: "kidneys"}))
    assert labels.names == {1: "lesion", 2: "kidneys"}
    assert voxels_of(labels).max() == 2
    assert labels.notes == ("label map: structures without a name are left out: 3",)
    assert refused(tmp_path, LabelMap(tmp_path / "rs.dcm", {9: "liver"})).code == "LBL_VALUES"


def test_organs_and_outlines_are_no_lesions(tmp_path: Path) -> None:
    drawn = {"Body": [(k, square(0, 39)) for k in range(9)], "GTV 1": [(4, square(10, 15))], "x": [(5, square(1, 4))]}
    path = save(tmp_path / "rs.dcm", drawn, stated=("EXTERNAL", "GTV", ""))
    labels = opened(tmp_path, LesionMask(path))
    assert voxels_of(labels).sum() == 25 + 9
    assert labels.notes == (
        "lesion mask: structures stated to be no lesions are left out: 1",
        "lesion mask: all of these are taken for lesions: gtv (2), structure_3 (3)",
    )
    path = save(tmp_path / "rs.dcm", drawn, stated=("EXTERNAL", "ORGAN", "PTV"))
    error = refused(tmp_path, LesionMask(path))
    assert (error.code, error.found) == ("LBL_VALUES", "all structures are stated to be no lesions: 1, 2, 3")


@pytest.mark.parametrize("first", [0, -1, 65536])
def test_numbers_that_are_no_labels_give_way_to_the_order(tmp_path: Path, first: int) -> None:
    drawn = {"Liver": [(1, square(10, 15))], "Brain": [(2, square(10, 15))]}
    path = save(tmp_path / "rs.dcm", drawn, first=first, stated=("ORGAN", "GTV"))
    labels = opened(tmp_path, LabelMap(path))
    assert labels.names == {1: "liver", 2: "brain"}
    assert voxels_of(labels).max(axis=(1, 2)).tolist() == [0, 1, 2, 0, 0, 0, 0, 0, 0]
    assert voxels_of(opened(tmp_path, LesionMask(path))).max(axis=(1, 2)).tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_no_mutation_of_a_file_ends_in_a_traceback(tmp_path: Path) -> None:
    drawn = {"Liver": [(k, circle(20, 20, 9, 12)) for k in range(2)], "GTV": [(1, circle(20, 20, 3, 12))]}
    good = save(tmp_path / "rs.dcm", drawn, stated=("ORGAN", "GTV")).read_bytes()
    rng = np.random.Generator(np.random.Philox(13))
    for _ in range(200):
        data = bytearray(good)
        at, n = int(rng.integers(128, len(good))), int(rng.integers(1, 8))
        kind = rng.integers(3)
        data[at : at + (n if kind else 0)] = rng.bytes(n) if kind < 2 else b""  # insert, replace, cut
        (tmp_path / "rs.dcm").write_bytes(data)
        with contextlib.suppress(InputError):
            opened(tmp_path, LabelMap(tmp_path / "rs.dcm"))


def test_points_and_open_contours_are_told(tmp_path: Path) -> None:
    path = save(tmp_path / "rs.dcm", {"Liver": [(4, square(10, 15))]}, kind="OPEN_PLANAR")
    labels = opened(tmp_path, LesionMask(path))
    assert labels.names == {1: "lesion"}
    assert labels.notes == (
        "lesion mask: points and open contours of structures 1 were passed by",
        "lesion mask: it is empty: no lesion in this patient",
    )


def test_another_frame_of_reference_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "rs.dcm", {"Liver": [(4, square(10, 15))]}, frame=generate_uid())
    assert refused(tmp_path, LabelMap(path)).code == "LBL_FRAME"
    assert opened(tmp_path, LabelMap(path), frame="").names == {1: "liver"}  # unknown: not compared


@pytest.mark.parametrize("value", ["nan", "1e999", "x"])
def test_a_point_that_is_nowhere_is_refused(tmp_path: Path, value: str) -> None:
    path = save(tmp_path / "rs.dcm", {"Liver": [(4, square(10, 15))]})
    data = path.read_bytes()
    at = data.index(b"\\", data.index(b"CLOSED_PLANAR")) + 1
    path.write_bytes(data[:at] + value.encode().ljust(data.index(b"\\", at) - at) + data[data.index(b"\\", at) :])
    assert refused(tmp_path, LabelMap(path)).code == "LBL_STRUCTURES"


@pytest.mark.parametrize("kept", [0.4, 0.9])
def test_a_damaged_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = save(tmp_path / "rs.dcm", {"Liver": [(k, circle(20, 20, 9)) for k in range(9)]})
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert refused(tmp_path, LabelMap(path)).code == "LBL_STRUCTURES"


def test_what_would_inflate_unseen_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "rs.dcm", {"Liver": [(4, square(1, 5))]}, file_syntax=DeflatedExplicitVRLittleEndian)
    assert refused(tmp_path, LabelMap(path)).code == "DCM_BOMB"


@pytest.mark.skipif("PETSCALE_REAL_DATA" not in os.environ, reason="PETSCALE_REAL_DATA names no data folder")
@pytest.mark.parametrize("image", ["PET", "CT"])
def test_published_contours_give_the_published_mask(tmp_path: Path, image: str) -> None:
    """IBSI's validation data: the same structure as contours and as a mask."""
    import nibabel

    data = Path(os.environ["PETSCALE_REAL_DATA"], "ibsi/ibsi_validation")
    mask = nibabel.load(data / f"nifti/STS_001/{image}_mask.nii.gz")
    voxels = np.asarray(mask.dataobj).T
    path = data / f"dicom/STS_001/{image}/mask/RS.dcm"
    frame = str(pydicom.dcmread(path).StructureSetROISequence[0].ReferencedFrameOfReferenceUID)
    labels = opened(tmp_path, LesionMask(path), grid=Grid(voxels.shape, mask.affine), frame=frame)
    assert np.array_equal(voxels_of(labels) > 0, voxels > 0)
