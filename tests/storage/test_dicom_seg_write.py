"""A label map written as SEG lies over its series, says what is in it, and is read back by us and by others."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray

from storage.dicom import open_series
from storage.dicom_seg import open_seg
from storage.dicom_seg_write import StoredLabels, write_seg
from storage.dicom_write import StoredSeries, write_stored_series
from storage.errors import InputError
from storage.label_maps import LabelMap, LesionMask, open_labels
from storage.source import HU, LABEL, SUV, ArraySource, Grid

SHAPE = (20, 7, 5)  # more slices than are read at once
TURN = np.deg2rad(20)
STRAIGHT = np.diag([-4.0, -5.0, 3.0, 1.0])
TURNED = np.array(
    [
        [3 * np.cos(TURN), -4 * np.sin(TURN), 0, -31],
        [3 * np.sin(TURN), 4 * np.cos(TURN), 0, 12],
        [0, 0, 5, -700],
        [0, 0, 0, 1],
    ]
)
TILT = np.eye(4)
TILT[1:3, 1:3] = [[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]]
AFFINES = {
    "straight": STRAIGHT,
    "turned": TURNED,
    "oblique": TILT @ TURNED,
    "from the feet": STRAIGHT @ np.diag([1.0, 1, -1, 1]),
    "mirrored": STRAIGHT @ np.diag([-1.0, 1, 1, 1]),
}
NAMES = {1: "liver", 2: "kidney_left", 4: "lesion", 7: "a_part_with_a_long_name_of_its_own_3"}


def series(affine: NDArray[Any] = STRAIGHT, units: str = SUV) -> StoredSeries:
    voxels = np.random.default_rng(0).gamma(2.0, 1.0, SHAPE).astype(np.float32)
    image = ArraySource(voxels, Grid(SHAPE, affine), units)
    return StoredSeries(image, "0123456789abcdef", "p01", "scan", f"image {units}", "image full")


def labels(affine: NDArray[Any] = STRAIGHT, values: tuple[int, ...] = (0, 1, 2, 4, 7), **said: Any) -> StoredLabels:
    voxels = np.random.default_rng(1).choice(values, SHAPE).astype(np.float32)
    return StoredLabels(ArraySource(voxels, Grid(SHAPE, affine), LABEL), **{"names": NAMES, **said}, **ABOUT)


ABOUT: dict[str, Any] = {"content": "image labels", "description": "image labels"}


def voxels_of(marked: StoredLabels) -> NDArray[Any]:
    return marked.labels.read(0, SHAPE[0])


def segment_of(folder: Path) -> pydicom.Dataset:
    (file,) = folder.iterdir()
    return pydicom.dcmread(file)


@pytest.mark.parametrize("units", [SUV, HU])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_it_comes_back_on_its_grid_with_its_names(tmp_path: Path, affine: NDArray[Any], units: str) -> None:
    over, marked = series(affine, units), labels(affine)
    assert write_seg(tmp_path / "seg", marked, over) == dict(enumerate(NAMES.values(), start=1))
    write_stored_series(tmp_path / "series", over)
    shown = open_series(tmp_path / "series", modality="PT" if units == SUV else "CT")
    expected = np.select([voxels_of(marked) == value for value in NAMES], [1, 2, 3, 4])
    reversed_order = not shown.grid.matches(marked.labels.grid)  # left-handed in LPS
    for grid, wanted in ((marked.labels.grid, expected), (shown.grid, expected[::-1] if reversed_order else expected)):
        found = open_labels(
            [LabelMap(tmp_path / "seg")],
            grid=grid,
            workdir=tmp_path / "work",
            frame_of_reference=shown.frame_of_reference,
        )
        assert found.names == dict(enumerate(NAMES.values(), start=1))
        assert found.notes == ()
        np.testing.assert_array_equal(found.image.read(0, SHAPE[0]), wanted)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_it_refers_to_the_slices_it_lies_on(tmp_path: Path, affine: NDArray[Any]) -> None:
    """Study, patient and place are those of the series; each frame names the slice at its position."""
    over = series(affine)
    write_seg(tmp_path / "seg", labels(affine), over)
    write_stored_series(tmp_path / "series", over)
    seg = segment_of(tmp_path / "seg")
    slices = {str(one.SOPInstanceUID): one for one in map(pydicom.dcmread, (tmp_path / "series").iterdir())}
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate", "StudyID"):
        assert {one[keyword].value for one in slices.values()} == {seg[keyword].value}
    (referred,) = seg.ReferencedSeriesSequence
    assert {one.SeriesInstanceUID for one in slices.values()} == {referred.SeriesInstanceUID}
    assert {one.ReferencedSOPInstanceUID for one in referred.ReferencedInstanceSequence} == slices.keys()
    assert seg.SeriesInstanceUID != referred.SeriesInstanceUID
    turned = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        beneath = slices[source.ReferencedSOPInstanceUID]
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(place, beneath.ImagePositionPatient, atol=1e-6)
        np.testing.assert_allclose(turned, beneath.ImageOrientationPatient, atol=1e-6)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_highdicom_and_itk_read_the_voxels(tmp_path: Path, affine: NDArray[Any]) -> None:
    """ITK knows no segments: the frames of one are a volume of 0 and 255, where a frame fills its bytes (8 x 5)."""
    shape = (4, 8, 5)
    grid = Grid(shape, affine)
    voxels = np.random.default_rng(4).integers(0, 2, shape).astype(np.float32)
    image = ArraySource(voxels, grid, SUV)
    marked = StoredLabels(ArraySource(voxels, grid, LABEL), {1: "liver"}, **ABOUT)
    write_seg(tmp_path / "seg", marked, StoredSeries(image, "ab12", "p01", "scan", "full", "image full"))
    file = tmp_path / "seg" / "00001.dcm"
    volume = highdicom.seg.segread(file).get_volume(combine_segments=True)
    read = SimpleITK.ReadImage(str(file))
    found = SimpleITK.GetArrayFromImage(read)
    assert found.shape == volume.array.shape == shape
    for index in np.ndindex(shape):
        place = (np.diag([-1.0, -1, 1, 1]) @ affine @ [*index[::-1], 1])[:3]
        at = np.rint(volume.map_reference_to_indices(place[None])[0]).astype(int)
        assert volume.array[tuple(at)] == voxels[index]
        by_itk = read.TransformPhysicalPointToIndex(place.tolist())
        assert found[by_itk[::-1]] == 255 * voxels[index]


def test_segments_say_what_they_are(tmp_path: Path) -> None:
    """Codes by hand (SNOMED CT, PS3.16 CID 7151); what is not in the standard has a code of our own."""
    write_seg(tmp_path / "seg", labels(), series())
    segments = segment_of(tmp_path / "seg").SegmentSequence
    assert [(int(one.SegmentNumber), one.SegmentLabel) for one in segments] == [*enumerate(NAMES.values(), start=1)]
    kinds = [one.SegmentedPropertyTypeCodeSequence[0] for one in segments]
    assert [(kind.get("CodeValue"), kind.CodingSchemeDesignator, kind.CodeMeaning) for kind in kinds] == [
        ("10200004", "SCT", "Liver"),
        ("64033007", "SCT", "Kidney"),
        ("52988006", "SCT", "Lesion"),
        (None, "99PETSCALE", "a part with a long name of its own 3"),
    ]
    assert kinds[3].LongCodeValue == NAMES[7]
    (side,) = kinds[1].SegmentedPropertyTypeModifierCodeSequence
    assert (side.CodeValue, side.CodingSchemeDesignator, side.CodeMeaning) == ("7771000", "SCT", "Left")
    categories = [one.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning for one in segments]
    assert categories == ["Anatomical Structure"] * 2 + ["Morphologically Abnormal Structure", "Tissue"]


def test_who_drew_a_segment_is_said_only_where_it_is_known(tmp_path: Path) -> None:
    drawn = {"liver": "MANUAL", "lesion": "SEMIAUTOMATIC"}
    write_seg(tmp_path / "given", labels(drawn=drawn), series())
    write_seg(tmp_path / "ours", labels(algorithm="petscale"), series())

    def said(name: str) -> list[tuple[str, str | None]]:
        segments = segment_of(tmp_path / name).SegmentSequence
        return [(one.SegmentAlgorithmType, one.get("SegmentAlgorithmName")) for one in segments]

    unknown = "not known: labels were given"
    automatic = ("AUTOMATIC", unknown)
    assert said("given") == [("MANUAL", None), automatic, ("SEMIAUTOMATIC", unknown), automatic]
    assert said("ours") == [("AUTOMATIC", "petscale")] * 4
    back = open_labels([LabelMap(tmp_path / "given")], grid=series().source.grid, workdir=tmp_path / "work")
    assert back.image.provenance["drawn"] == {
        "liver": "MANUAL", "kidney_left": "AUTOMATIC", "lesion": "SEMIAUTOMATIC", NAMES[7]: "AUTOMATIC"
    }  # fmt: skip


def test_equal_content_is_equal_files_and_other_content_has_other_identifiers(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_seg(tmp_path / name, labels(), series())
    assert (tmp_path / "one/00001.dcm").read_bytes() == (tmp_path / "two/00001.dcm").read_bytes()
    other = StoredLabels(labels().labels, NAMES, "changed", "image labels")
    write_seg(tmp_path / "three", other, series())
    one, three = (segment_of(tmp_path / name) for name in ("one", "three"))
    assert one.SOPInstanceUID != three.SOPInstanceUID
    assert one.SeriesInstanceUID != three.SeriesInstanceUID
    assert one.StudyInstanceUID == three.StudyInstanceUID


def test_nothing_in_it_is_of_today_or_of_this_machine(tmp_path: Path) -> None:
    write_seg(tmp_path / "seg", labels(), series())
    for element in segment_of(tmp_path / "seg").iterall():
        if element.VR in ("DA", "TM", "DT"):
            assert element.value in ("19000101", "000000", "")
    seg = segment_of(tmp_path / "seg")
    assert (seg.PatientIdentityRemoved, seg.PatientBirthDate, seg.AccessionNumber) == ("YES", "", "")
    assert "not for clinical use" in seg.SeriesDescription
    meant = [one.PurposeOfReferenceCodeSequence[0].CodeMeaning for one in seg.ContributingEquipmentSequence]
    assert "Acquisition Equipment" not in meant  # petscale is no scanner


def test_values_without_a_name_are_numbered_segments(tmp_path: Path) -> None:
    assert write_seg(tmp_path / "seg", labels(names={2: "liver"}), series()) == {
        1: "segment_1", 2: "liver", 3: "segment_4", 4: "segment_7"
    }  # fmt: skip
    assert open_seg(tmp_path / "seg/00001.dcm").names == {1: "segment_1", 2: "liver", 3: "segment_4", 4: "segment_7"}


@pytest.mark.parametrize("values", [(0, 1), (0,)])
def test_a_name_without_a_voxel_stays(tmp_path: Path, values: tuple[int, ...]) -> None:
    """A patient without lesions has a label lesion without a voxel, which is no mistake."""
    write_seg(tmp_path / "seg", labels(values=values, names={1: "liver", 2: "lesion"}), series())
    assert open_seg(tmp_path / "seg/00001.dcm").names == {1: "liver", 2: "lesion"}
    found = open_labels([LesionMask(tmp_path / "seg")], grid=series().source.grid, workdir=tmp_path / "work")
    assert found.names == {1: "lesion"}
    np.testing.assert_array_equal(found.image.read(0, SHAPE[0]), voxels_of(labels(values=values)))


def test_nothing_at_all_and_what_exists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"LBL_VALUES image labels: neither a name nor a voxel above 0"):
        write_seg(tmp_path / "seg", labels(values=(0,), names={}), series())
    assert not [*tmp_path.iterdir()]
    (tmp_path / "seg").mkdir()
    with pytest.raises(InputError, match="DISK_EXISTS seg"):
        write_seg(tmp_path / "seg", labels(), series())
    with pytest.raises(ValueError, match="grid of its series"):
        write_seg(tmp_path / "other", labels(TURNED), series())
    assert [path.name for path in tmp_path.iterdir()] == ["seg"]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (apt-get install dicom3tools)")
@pytest.mark.parametrize("units", [SUV, HU])
@pytest.mark.parametrize("values", [(0, 1, 2, 4, 7), (0, 2), (0,)])
def test_dciodvfy_finds_no_error(tmp_path: Path, units: str, values: tuple[int, ...]) -> None:
    marked = labels(TURNED, values=values, drawn={"liver": "MANUAL"})
    write_seg(tmp_path / "seg", marked, series(TURNED, units))
    words = ["dciodvfy", "-new", str(tmp_path / "seg/00001.dcm")]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stderr.splitlines()
    assert "Segmentation" in said  # the kind that it was checked as
    assert not [line for line in said if line.startswith("Error")]
