"""Segments that highdicom writes come back voxel for voxel, named by codes and by nothing that a person typed."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import DeflatedExplicitVRLittleEndian

from storage.dicom import open_series
from storage.dicom_seg import open_seg
from storage.dicom_write import write_series
from storage.errors import InputError
from storage.label_maps import LabelFile, LabelMap, Labels, LesionMask, open_labels
from storage.source import SUV, ArraySource, Grid

SHAPE = (8, 6, 5)
AFFINE = np.array([[-4.0, 0, 0, 30], [0, -5.0, 0, 20], [0, 0, 3.0, -100], [0, 0, 0, 1]])
LIVER, KIDNEY, TUMOUR = codes.SCT.Liver, codes.SCT.Kidney, Code("86049000", "SCT", "Neoplasm, Primary")
PRIVATE = Code("1", "99DOE", "Doe, Jane")


@pytest.fixture(scope="module")
def pet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seg") / "pt"
    rng = np.random.Generator(np.random.Philox(7))
    write_series(folder, ArraySource(rng.random(SHAPE, dtype=np.float32), Grid(SHAPE, AFFINE), SUV))
    return folder


@pytest.fixture
def segments() -> NDArray[Any]:
    """(z, y, x, segment), three that do not overlap."""
    rng = np.random.Generator(np.random.Philox(3))
    value = rng.integers(0, 4, SHAPE)
    return np.stack([value == n for n in (1, 2, 3)], axis=-1)


def save(
    path: Path,
    pet: Path,
    segments: NDArray[Any],
    kinds: tuple[Code, ...] = (LIVER, KIDNEY, TUMOUR),
    stored: str = "BINARY",
    side: Code | None = None,
) -> Path:
    """Write segments (z, y, x, segment) of a PET as a SEG; its free text names a person."""
    slices = sorted((pydicom.dcmread(f) for f in pet.glob("*.dcm")), key=lambda d: d.ImagePositionPatient[2])
    described = []
    for number, kind in enumerate(kinds, start=1):
        item = highdicom.seg.SegmentDescription(
            number, f"Doe^Jane {number}", codes.SCT.MorphologicallyAbnormalStructure, kind, "MANUAL"
        )
        if side:
            kept = item.SegmentedPropertyTypeCodeSequence[0]
            kept.SegmentedPropertyTypeModifierCodeSequence = [highdicom.sr.CodedConcept.from_code(side)]
        described.append(item)
    voxels = segments.astype(np.float32 if stored == "FRACTIONAL" else np.uint8)
    if stored == "LABELMAP":
        voxels = (segments * np.arange(1, len(kinds) + 1)).sum(axis=-1).astype(np.uint8)
    seg = highdicom.seg.Segmentation(
        slices, voxels, stored, described, highdicom.UID(), 1, highdicom.UID(), 1, "m", "m", "1", "0",
        content_label="DOE", content_description="Doe^Jane", series_description="Doe^Jane",
        **({"max_fractional_value": 255} if stored == "FRACTIONAL" else {}),
    )  # fmt: skip
    seg.save_as(path)
    return path


def grid_of(pet: Path) -> Grid:
    return open_series(pet, modality="PT").grid


def opened(tmp_path: Path, pet: Path, *files: LabelFile) -> Labels:
    series = open_series(pet, modality="PT")
    return open_labels(files, grid=series.grid, workdir=tmp_path / "work", frame_of_reference=series.frame_of_reference)


def voxels_of(labels: Labels) -> NDArray[Any]:
    return labels.image.read(0, SHAPE[0])


def refused(tmp_path: Path, pet: Path, *files: LabelFile) -> InputError:
    with pytest.raises(InputError) as error:
        opened(tmp_path, pet, *files)
    assert "\n" not in str(error.value)
    assert "doe" not in str(error.value).lower()
    return error.value


@pytest.mark.parametrize("stored", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_every_kind_reads_back_equal(tmp_path: Path, pet: Path, segments: NDArray[Any], stored: str) -> None:
    labels = opened(tmp_path, pet, LabelMap(save(tmp_path / "s.dcm", pet, segments, stored=stored)))
    assert labels.names == {1: "liver", 2: "kidney", 3: "neoplasm_primary"}
    assert np.array_equal(voxels_of(labels), (segments * (1, 2, 3)).sum(axis=-1))
    fractional = ("label map: fractional segments: 0.5 of the highest value and more is inside",)
    assert labels.notes == (fractional if stored == "FRACTIONAL" else ())


@pytest.mark.parametrize("stored", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("slices", [(3,), (0, 7), (1, 3), (1, 4, 7), (2, 3, 4), (0, 1, 6)])
def test_slices_that_were_left_out_are_empty(tmp_path: Path, pet: Path, slices: tuple[int, ...], stored: str) -> None:
    segments = np.zeros((*SHAPE, 1))
    segments[list(slices), 1:3, 4] = 1
    path = save(tmp_path / "s.dcm", pet, segments, (TUMOUR,), stored)
    whole = voxels_of(opened(tmp_path, pet, LesionMask(path)))
    assert np.array_equal(whole, segments[..., 0])
    ds = pydicom.dcmread(path)  # many writers leave the spacing out, which is not required
    del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    ds.save_as(path)
    assert np.array_equal(voxels_of(opened(tmp_path, pet, LesionMask(path))), whole)


@pytest.mark.parametrize("slices", [tuple(range(8)), (2, 3, 6)])
def test_slices_a_little_off_the_mean_spacing_are_the_same(tmp_path: Path, pet: Path, slices: tuple[int, ...]) -> None:
    """GE writes 3.19 and 3.29 mm at bed seams of 3.27 mm."""
    folder = tmp_path / "pt"
    shutil.copytree(pet, folder)
    for file in folder.glob("*.dcm"):
        ds = pydicom.dcmread(file)
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, float(z) + (0.03 if round((float(z) + 100) / 3) % 2 else 0)]
        ds.save_as(file)
    segments = np.zeros((*SHAPE, 1))
    segments[list(slices), 1:3, 4] = 1
    labels = opened(tmp_path, folder, LesionMask(save(tmp_path / "s.dcm", folder, segments, (TUMOUR,))))
    assert np.array_equal(voxels_of(labels), segments[..., 0])


def test_fractions_from_half_on_are_inside(tmp_path: Path, pet: Path) -> None:
    segments = np.zeros((*SHAPE, 1))
    segments[2, 0, :, 0] = (0.1, 0.49, 0.51, 0.9, 1)
    labels = opened(tmp_path, pet, LabelMap(save(tmp_path / "s.dcm", pet, segments, (LIVER,), "FRACTIONAL")))
    assert voxels_of(labels)[2, 0].tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("stored", ["BINARY", "FRACTIONAL"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_that_overlap_the_smaller_has_the_voxel(
    tmp_path: Path, pet: Path, stored: str, order: tuple[int, int]
) -> None:
    segments = np.zeros((*SHAPE, 2))
    segments[1:7, :, :, order[0]] = 1
    segments[3:5, 2:4, 2, order[1]] = 1
    labels = opened(tmp_path, pet, LabelMap(save(tmp_path / "s.dcm", pet, segments, (LIVER, KIDNEY), stored)))
    small = segments[..., order[1]] > 0
    assert np.all(voxels_of(labels)[small] == order[1] + 1)
    assert np.all(voxels_of(labels)[~small & (segments.sum(axis=-1) > 0)] == order[0] + 1)
    assert "label map: segments overlap: 4 voxels went to the smaller segment" in labels.notes


def test_the_side_is_part_of_the_name(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    path = save(tmp_path / "s.dcm", pet, segments[..., :1], (KIDNEY,), side=codes.SCT.Right)
    assert opened(tmp_path, pet, LabelMap(path)).names == {1: "kidney_right"}


@pytest.mark.parametrize(
    ("kind", "side", "label", "name"),
    [
        (KIDNEY, codes.SCT.Bilateral, "Doe^Jane", "kidneys"),
        (codes.SCT.UpperLobeOfLung, codes.SCT.Left, "Doe^Jane", "lung_upper_lobe_left"),
        (codes.SCT.T12Vertebra, None, "Doe^Jane", "vertebrae_t12"),
        (codes.SCT.SmallIntestine, None, "Doe^Jane", "small_bowel"),
        (codes.SCT.Bladder, None, "Doe^Jane", "bladder"),  # of two names of one code: as its meaning says
        (codes.SCT.Bladder, None, "urinary_bladder", "urinary_bladder"),  # or its label
        (Code("89837001", "SCT", "Harnblase"), None, "Doe^Jane", "urinary_bladder"),  # the code counts in any language
        (codes.SCT.Liver, None, "spleen", "liver"),
        (Code("89837001", "99DOE", "Doe, Jane"), None, "Doe^Jane", "segment_1"),  # a number of another scheme
        (Code("my_part_3", "99PETSCALE", "my part 3"), None, "Doe^Jane", "my_part_3"),
        (Code("Doe Jane", "99PETSCALE", "Doe, Jane"), None, "Doe^Jane", "segment_1"),
    ],
)
def test_a_code_has_one_name_whatever_else_is_said(
    tmp_path: Path, pet: Path, segments: NDArray[Any], kind: Code, side: Code | None, label: str, name: str
) -> None:
    path = save(tmp_path / "s.dcm", pet, segments[..., :1], (kind,), side=side)
    ds = pydicom.dcmread(path)
    ds.SegmentSequence[0].SegmentLabel = label
    ds.save_as(path)
    assert opened(tmp_path, pet, LabelMap(path)).names == {1: name}


def test_how_labels_were_drawn_is_kept_where_all_of_a_name_agree(
    tmp_path: Path, pet: Path, segments: NDArray[Any]
) -> None:
    path = save(tmp_path / "s.dcm", pet, segments)
    ds = pydicom.dcmread(path)
    for item, said in zip(ds.SegmentSequence, ("MANUAL", "AUTOMATIC", "DOE JANE"), strict=True):
        item.SegmentAlgorithmType = said
    ds.save_as(path)
    labels = opened(tmp_path, pet, LabelMap(path))
    assert labels.image.provenance["drawn"] == {"liver": "MANUAL", "kidney": "AUTOMATIC"}
    assert opened(tmp_path, pet, LabelMap(path, {1: "liver", 2: "liver"})).image.provenance.get("drawn") is None
    assert "drawn" not in opened(tmp_path, pet, LesionMask(path)).image.provenance
    twice = opened(tmp_path, pet, LabelMap(path, {1: "lesion"}), LesionMask(path))
    assert "drawn" not in twice.image.provenance


def test_what_is_only_tissue_is_called_by_its_label_if_that_is_anatomy(
    tmp_path: Path, pet: Path, segments: NDArray[Any]
) -> None:
    path = save(tmp_path / "s.dcm", pet, segments, (codes.SCT.Tissue,) * 3)
    ds = pydicom.dcmread(path)
    for item, label in zip(ds.SegmentSequence, ("Liver", "Doe^Jane", "Right kidney 2"), strict=True):
        item.SegmentLabel = label
    ds.save_as(path)
    assert opened(tmp_path, pet, LabelMap(path)).names == {1: "liver", 2: "segment_2", 3: "right_kidney"}


def test_segments_of_one_name_are_one_label_and_said_to_be(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    labels = opened(tmp_path, pet, LabelMap(save(tmp_path / "s.dcm", pet, segments, (TUMOUR, LIVER, TUMOUR))))
    assert labels.names == {1: "neoplasm_primary", 2: "liver"}
    assert np.array_equal(voxels_of(labels), (segments * (1, 2, 1)).sum(axis=-1))
    assert labels.notes == ("label map: numbers 1, 3 are all called neoplasm_primary and are one label",)


def test_every_segment_of_lesions_is_lesion(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    labels = opened(tmp_path, pet, LesionMask(save(tmp_path / "s.dcm", pet, segments)))
    assert labels.names == {1: "lesion"}
    assert np.array_equal(voxels_of(labels), segments.any(axis=-1))
    assert labels.notes == (
        "lesion mask: all of these are taken for lesions: liver (1), kidney (2), neoplasm_primary (3)",
    )


def test_names_by_number_choose_and_name(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    labels = opened(tmp_path, pet, LabelMap(save(tmp_path / "s.dcm", pet, segments), {3: "lesion", 2: "kidneys"}))
    assert labels.names == {2: "kidneys", 3: "lesion"}
    assert np.array_equal(voxels_of(labels), (segments * (0, 2, 3)).sum(axis=-1))
    assert labels.notes == ("label map: segments without a name are left out: 1",)


def test_names_of_no_segment_are_refused(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    error = refused(tmp_path, pet, LabelMap(save(tmp_path / "s.dcm", pet, segments), {9: "liver"}))
    assert error.code == "LBL_VALUES"
    assert "1, 2, 3" in error.found


def test_an_empty_segment_is_told(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    segments[..., 1] = False
    labels = opened(tmp_path, pet, LabelMap(save(tmp_path / "s.dcm", pet, segments)))
    assert labels.names == {1: "liver", 3: "neoplasm_primary"}
    assert labels.notes == ("label map: names without a voxel: kidney (2)",)


def test_no_lesion_at_all_is_told(tmp_path: Path, pet: Path) -> None:
    labels = opened(tmp_path, pet, LesionMask(save(tmp_path / "s.dcm", pet, np.zeros((*SHAPE, 1)), (TUMOUR,))))
    assert labels.names == {1: "lesion"}
    assert not voxels_of(labels).any()
    assert labels.notes == ("lesion mask: it is empty: no lesion in this patient",)


def test_no_free_text_becomes_a_name_or_a_note(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    labels = opened(tmp_path, pet, LabelMap(save(tmp_path / "s.dcm", pet, segments[..., :2], (PRIVATE, LIVER))))
    assert labels.names == {1: "segment_1", 2: "liver"}
    assert labels.notes == (
        "label map: nothing that petscale knows as a name is in the file for numbers 1; name them, as 1=liver",
    )
    told = json.dumps([labels.notes, dict(labels.image.provenance), labels.names]) + repr(labels)
    assert "doe" not in told.lower()
    assert "1.2." not in repr(open_seg(tmp_path / "s.dcm"))


def test_another_frame_of_reference_is_refused(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    path = save(tmp_path / "s.dcm", pet, segments)
    ds = pydicom.dcmread(path)
    ds.FrameOfReferenceUID = highdicom.UID()
    ds.save_as(path)
    error = refused(tmp_path, pet, LabelMap(path))
    assert error.code == "LBL_FRAME"
    assert str(ds.FrameOfReferenceUID) not in str(error)
    labels = open_labels([LabelMap(path)], grid=grid_of(pet), workdir=tmp_path / "work")  # unknown: not compared
    assert np.array_equal(voxels_of(labels), (segments * (1, 2, 3)).sum(axis=-1))


def test_other_voxels_are_refused_with_the_difference(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    path = save(tmp_path / "s.dcm", pet, segments)
    moved = AFFINE.copy()
    moved[0, 3] += 10
    with pytest.raises(InputError, match=r"PAIR_GRID_MISMATCH.*10\.00 mm off \(x -10\.00"):
        open_labels([LabelMap(path)], grid=Grid(SHAPE, moved), workdir=tmp_path / "work")


def test_the_one_seg_of_a_folder_is_found(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    folder = tmp_path / "study"
    shutil.copytree(pet, folder / "pt")
    save(folder / "1-1.dcm", pet, segments)
    assert opened(tmp_path, pet, LabelMap(folder)).names == {1: "liver", 2: "kidney", 3: "neoplasm_primary"}
    save(folder / "1-2.dcm", pet, segments)
    assert refused(tmp_path, pet, LabelMap(folder)).code == "LBL_FORMAT"


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_damaged_file_is_refused(tmp_path: Path, pet: Path, segments: NDArray[Any], kept: float) -> None:
    path = save(tmp_path / "s.dcm", pet, segments)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert refused(tmp_path, pet, LabelMap(path)).code == "LBL_SEG"


def test_what_would_inflate_unseen_is_refused(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    path = save(tmp_path / "s.dcm", pet, segments)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(path)
    assert refused(tmp_path, pet, LabelMap(path)).code == "DCM_BOMB"


def test_a_pet_is_no_label_file(tmp_path: Path, pet: Path) -> None:
    assert refused(tmp_path, pet, LesionMask(next(pet.glob("*.dcm")))).code == "LBL_FORMAT"


def test_no_mutation_of_a_file_ends_in_a_traceback(tmp_path: Path, pet: Path, segments: NDArray[Any]) -> None:
    good = save(tmp_path / "s.dcm", pet, segments[..., :1], (LIVER,)).read_bytes()
    grid = grid_of(pet)
    rng = np.random.Generator(np.random.Philox(13))
    for _ in range(40):
        data = bytearray(good)
        at, n = int(rng.integers(128, len(good))), int(rng.integers(1, 8))
        kind = rng.integers(3)
        data[at : at + (n if kind else 0)] = rng.bytes(n) if kind < 2 else b""  # insert, replace, cut
        (tmp_path / "s.dcm").write_bytes(data)
        with contextlib.suppress(InputError):
            open_labels([LabelMap(tmp_path / "s.dcm")], grid=grid, workdir=tmp_path / "work")
