"""An enhanced multi-frame object gives the values, grid and SUV of the classic series that says the same."""

import json
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage, LegacyConvertedEnhancedPETImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from storage.dicom import open_series
from storage.dicom_dynamic import open_frames
from storage.dicom_header import text_of
from storage.dicom_series import find_series
from storage.dicom_slice import pixels_of, scan
from storage.dicom_write import write_derived_series, write_series
from storage.errors import InputError
from storage.frames import Wanted
from storage.source import HU, SUV, ArraySource, Grid

SHAPE = (8, 6, 5)
AFFINE = np.array([[-4.0, 0, 0, 30], [0, -5.0, 0, 20], [0, 0, 3.0, -100], [0, 0, 0, 1]])
PET, CT = "1.2.840.10008.5.1.4.1.1.130", "1.2.840.10008.5.1.4.1.1.2.1"
START = "20200101120000"  # the series time of what write_series makes
FLAGS = {"DECY": "DecayCorrected", "ATTN": "AttenuationCorrected", "SCAT": "ScatterCorrected"}
Edit = Callable[[Dataset], Any]


@pytest.fixture(scope="module")
def pet() -> ArraySource:
    rng = np.random.Generator(np.random.Philox(7))
    scale = np.linspace(0.1, 20, SHAPE[0], dtype=np.float32)[:, None, None]  # so that every slice has its own slope
    return ArraySource(rng.random(SHAPE, dtype=np.float32) * scale, Grid(SHAPE, AFFINE), SUV)


@pytest.fixture(scope="module")
def ct() -> ArraySource:
    rng = np.random.Generator(np.random.Philox(8))
    return ArraySource(rng.integers(-1024, 2000, SHAPE).astype(np.float32), Grid(SHAPE, AFFINE), HU)


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory, pet: ArraySource) -> Path:
    folder = tmp_path_factory.mktemp("classic") / "pt"
    write_series(folder, pet)
    return folder


def item(**values: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def enhance(
    classic: Path,
    out: Path,
    *,
    unit: str = "Bq/ml",
    reference: str = START,
    order: Sequence[int] = range(SHAPE[0]),
    syntax: str = ExplicitVRLittleEndian,
    edit: Edit = lambda ds: None,
) -> Path:
    """Write the slices of a classic series as one enhanced object: what they share is shared, the rest is per frame."""
    slices = [pydicom.dcmread(file) for file in sorted(classic.iterdir())]
    first, is_pet = slices[0], slices[0].Modality == "PT"
    ds = Dataset()
    for keyword in (
        *("PatientID", "PatientName", "PatientSex", "PatientWeight", "PatientSize", "StudyInstanceUID", "Modality"),
        *("FrameOfReferenceUID", "SeriesDate", "SeriesTime", "SeriesDescription", "Rows", "Columns", "BitsAllocated"),
        *("BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation"),
        *("RadiopharmaceuticalInformationSequence",),
    ):
        if keyword in first:
            ds[keyword] = first[keyword]
    ds.SOPClassUID, ds.SOPInstanceUID = PET if is_pet else CT, generate_uid(entropy_srcs=[out.name])
    ds.SeriesInstanceUID, ds.SeriesNumber = generate_uid(entropy_srcs=["series"]), 7
    ds.ImageType, ds.NumberOfFrames = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], len(order)
    if is_pet:
        for term, flag in FLAGS.items():
            setattr(ds, flag, "YES" if term in first.CorrectedImage else "NO")
        if ds.DecayCorrected == "YES":
            ds.DecayCorrectionDateTime = reference
    shared = Dataset()
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=first.ImageOrientationPatient)]
    shared.PixelMeasuresSequence = [item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for n, k in enumerate(order):
        s, group = slices[k], Dataset()
        content = item(FrameAcquisitionDateTime=s.AcquisitionDate + s.AcquisitionTime, TemporalPositionIndex=1)
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", k + 1, [1, n + 1]
        group.PlanePositionSequence = [item(ImagePositionPatient=s.ImagePositionPatient)]
        transform = item(RescaleSlope=s.RescaleSlope, RescaleIntercept=s.RescaleIntercept, RescaleType="HU")
        if is_pet:
            content.FrameAcquisitionDuration = float(s.ActualFrameDuration)
            transform = item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")
            code = item(CodingSchemeDesignator="UCUM", CodeMeaning=unit)
            setattr(code, "CodeValue" if len(unit) <= 16 else "LongCodeValue", unit)
            mapping = item(RealWorldValueSlope=float(s.RescaleSlope), RealWorldValueIntercept=0.0)
            mapping.MeasurementUnitsCodeSequence = [code]
            group.RealWorldValueMappingSequence = [mapping]
        group.FrameContentSequence, group.PixelValueTransformationSequence = [content], [transform]
        keyword = "PETFrameTypeSequence" if is_pet else "CTImageFrameTypeSequence"
        setattr(group, keyword, [item(FrameType=ds.ImageType)])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    stored = np.stack([slices[k].pixel_array for k in order])
    ds.PixelData = stored.astype(stored.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")).tobytes()
    ds["PixelData"].VR = "OW"
    with pydicom.config.disable_value_validation():
        edit(ds)
    out.parent.mkdir(parents=True, exist_ok=True)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = UID(ExplicitVRLittleEndian if syntax == RLELossless else syntax)
    if syntax == RLELossless:
        ds.compress(RLELossless)
    with pydicom.config.disable_value_validation():
        ds.save_as(out, enforce_file_format=True)
    return out


def refused(path: Path, modality: Literal["PT", "CT"] = "PT") -> InputError:
    with pytest.raises(InputError) as error:
        open_series(path, modality=modality)
    assert "\n" not in str(error.value)
    return error.value


def same(path: Path, classic: Path, modality: Literal["PT", "CT"] = "PT") -> None:
    """Assert that both give one image."""
    a, b = (open_series(p, modality=modality) for p in (path, classic))
    assert a.grid.matches(b.grid, 1e-6)
    assert a.units == b.units
    np.testing.assert_allclose(a.read(0, SHAPE[0]), b.read(0, SHAPE[0]), rtol=1e-6)
    assert np.array_equal(a.read(2, 5), a.read(0, SHAPE[0])[2:5])
    json.dumps(a.provenance)


def test_an_enhanced_pet_is_the_classic_series(tmp_path: Path, classic: Path) -> None:
    path = enhance(classic, tmp_path / "a.dcm")
    same(path, classic)
    source = open_series(path, modality="PT")
    assert source.provenance["reference_rule"] == "decay_correction_date_time"
    assert source.provenance["stored_units"] == "BQML"
    assert len({s.slope for s in source.slices}) == SHAPE[0]


def test_an_enhanced_ct_is_the_classic_series(tmp_path: Path, ct: ArraySource) -> None:
    write_series(tmp_path / "ct", ct)
    same(enhance(tmp_path / "ct", tmp_path / "a.dcm"), tmp_path / "ct", "CT")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_other_transfer_syntaxes(tmp_path: Path, classic: Path, syntax: str) -> None:
    same(enhance(classic, tmp_path / "a.dcm", syntax=syntax), classic)


def test_frames_in_any_order(tmp_path: Path, classic: Path) -> None:
    same(enhance(classic, tmp_path / "a.dcm", order=[3, 0, 7, 1, 6, 2, 5, 4]), classic)


def test_reference_times_and_units(tmp_path: Path, classic: Path, pet: ArraySource) -> None:
    """The same stored activity, said to be corrected to other times, is another SUV: by the decay between them."""
    half_life_s = 6586.2
    scan = open_series(classic, modality="PT").read(0, 8)
    for name, reference, elapsed_s in (("before", "20200101113000", -1800.0), ("after", "20200101121000", 600.0)):
        source = open_series(enhance(classic, tmp_path / name / "a.dcm", reference=reference), modality="PT")
        np.testing.assert_allclose(source.read(0, 8), scan * 2.0 ** (elapsed_s / half_life_s), rtol=1e-6)
        assert source.provenance["notes"] == []
        candidates = source.provenance["reference_candidates_s"]
        assert isinstance(candidates, dict)
        assert candidates["decay_correction_date_time"] == elapsed_s


def rewritten(classic: Path, out: Path, edit: Edit) -> Path:
    """A copy of a classic series with every header edited."""
    out.mkdir(parents=True)
    for file in classic.iterdir():
        ds = pydicom.dcmread(file)
        edit(ds)
        ds.save_as(out / file.name)
    return out


def test_corrected_to_the_administration(tmp_path: Path, classic: Path) -> None:
    admin = rewritten(classic, tmp_path / "classic", lambda ds: setattr(ds, "DecayCorrection", "ADMIN"))
    path = enhance(classic, tmp_path / "e" / "a.dcm", reference="20200101110000")
    same(path, admin)
    assert open_series(path, modality="PT").provenance["notes"] == []


def test_not_decay_corrected(tmp_path: Path, classic: Path) -> None:
    def none(ds: Dataset) -> None:
        ds.DecayCorrection, ds.CorrectedImage = "NONE", ["ATTN", "SCAT"]
        ds.AcquisitionTime = f"12{ds.InstanceNumber:02d}00"  # so that every slice has a factor of its own

    plain = rewritten(classic, tmp_path / "classic", none)
    same(enhance(plain, tmp_path / "e" / "a.dcm"), plain)
    assert len(set(open_series(tmp_path / "e", modality="PT").factors)) == SHAPE[0]


@pytest.mark.parametrize(
    ("unit", "units", "suv_type"),
    [
        ("g/ml", "GML", ""),
        ("{SUVbw}g/ml", "GML", "BW"),
        ("g/ml{SUVlbm}", "GML", "LBM"),
        ("{SUVlbm(Janma)}g/ml", "GML", "LBMJANMA"),
        ("{SUVibw}g/ml", "GML", "IBW"),
        ("{SUVbsa}cm2/ml", "CM2ML", "BSA"),
    ],
)
def test_normalised_units(tmp_path: Path, classic: Path, unit: str, units: str, suv_type: str) -> None:
    def edit(ds: Dataset) -> None:
        ds.Units, ds.PatientSize, ds.PatientSex = units, "1.7", "F"
        if suv_type:
            ds.SUVType = suv_type

    plain = rewritten(classic, tmp_path / "classic", edit)
    same(enhance(plain, tmp_path / "e" / "a.dcm", unit=unit), plain)


@pytest.mark.parametrize("unit", ["{counts}", "{propcounts}", "{counts}/s", "%"])
def test_units_without_suv(tmp_path: Path, classic: Path, unit: str) -> None:
    assert refused(enhance(classic, tmp_path / "a.dcm", unit=unit)).code == "PET_UNITS"


def test_a_unit_that_pet_has_not(tmp_path: Path, classic: Path) -> None:
    error = refused(enhance(classic, tmp_path / "a.dcm", unit="ml/min/g"))
    assert (error.code, error.where) == ("PET_ENHANCED_UNSUPPORTED", "a.dcm")
    assert "(0040,9096) RealWorldValueMappingSequence" in error.found


def per_frame(keyword: str, **values: Any) -> Edit:
    """Set fields in one macro of every frame."""

    def edit(ds: Dataset) -> None:
        for group in ds.PerFrameFunctionalGroupsSequence:
            for name, value in values.items():
                setattr(group[keyword][0], name, value)

    return edit


def second_mapping(unit: str, factor: float) -> Edit:
    def edit(ds: Dataset) -> None:
        for group in ds.PerFrameFunctionalGroupsSequence:
            (first,) = group.RealWorldValueMappingSequence
            mapping = item(RealWorldValueSlope=first.RealWorldValueSlope * factor, RealWorldValueIntercept=0.0)
            mapping.MeasurementUnitsCodeSequence = [item(CodeValue=unit, CodingSchemeDesignator="UCUM")]
            group.RealWorldValueMappingSequence = [mapping, first]

    return edit


def test_of_two_mappings_activity_is_taken(tmp_path: Path, classic: Path) -> None:
    same(enhance(classic, tmp_path / "a.dcm", edit=second_mapping("{SUVbw}g/ml", 1e-3)), classic)


def without(keyword: str) -> Edit:
    def edit(ds: Dataset) -> None:
        for groups in (ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence):
            for group in groups:
                if keyword in group:
                    del group[keyword]

    return edit


def one_frame(edit: Edit) -> Edit:
    return lambda ds: edit(ds.PerFrameFunctionalGroupsSequence[3])


BROKEN: dict[str, tuple[Edit, str]] = {
    "no functional groups": (lambda ds: ds.pop("PerFrameFunctionalGroupsSequence"), "PET_ENHANCED_UNSUPPORTED"),
    "no position": (without("PlanePositionSequence"), "SER_NO_GEOMETRY"),
    "no orientation": (without("PlaneOrientationSequence"), "SER_NO_GEOMETRY"),
    "no spacing": (without("PixelMeasuresSequence"), "SER_NO_GEOMETRY"),
    "one frame without position": (one_frame(lambda g: g.pop("PlanePositionSequence")), "SER_NO_GEOMETRY"),
    "no mapping": (without("RealWorldValueMappingSequence"), "PET_ENHANCED_UNSUPPORTED"),
    "no times": (without("FrameContentSequence"), ""),
    "no corrections": (lambda ds: [ds.pop(name) for name in FLAGS.values()], "PET_NOT_DECAY_CORRECTED"),
    "not attenuation-corrected": (lambda ds: setattr(ds, "AttenuationCorrected", "NO"), "PET_NOT_CORRECTED"),
    "two slopes": (per_frame("PixelValueTransformationSequence", RescaleSlope=3), "SER_INCONSISTENT_HEADER"),
    "two slopes of one unit": (second_mapping("Bq/ml", 1.02), "SER_INCONSISTENT_HEADER"),
    "slope NaN": (per_frame("RealWorldValueMappingSequence", RealWorldValueSlope=float("nan")), "DCM_BAD_NUMBER"),
    "slope 0": (per_frame("RealWorldValueMappingSequence", RealWorldValueSlope=0.0), "PET_BAD_SLOPE"),
    "intercept": (per_frame("RealWorldValueMappingSequence", RealWorldValueIntercept=5.0), "PET_BAD_INTERCEPT"),
    "time": (per_frame("FrameContentSequence", FrameAcquisitionDateTime="20200231120000"), "DCM_BAD_TIME"),
    "no reference time": (lambda ds: ds.pop("DecayCorrectionDateTime"), "PET_TIME_MISSING"),
    "0 frames": (lambda ds: setattr(ds, "NumberOfFrames", 0), "DCM_BAD_FRAMES"),
    "10^9 frames": (lambda ds: setattr(ds, "NumberOfFrames", 10**9), "DCM_BAD_FRAMES"),
    "more groups": (lambda ds: setattr(ds, "NumberOfFrames", 7), "DCM_BAD_FRAMES"),
    "pixels short": (lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2]), "DCM_PIXELS_SHORT"),
    "pixels long": (lambda ds: setattr(ds, "PixelData", ds.PixelData + bytes(60)), "DCM_PIXELS_LONG"),
    "1 bit": (lambda ds: setattr(ds, "BitsAllocated", 1), "DCM_GEOMETRY_INVALID"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_objects(tmp_path: Path, classic: Path, kind: str) -> None:
    edit, code = BROKEN[kind]
    path = enhance(classic, tmp_path / "a.dcm", edit=edit)
    if code:
        assert refused(path).code == code
    else:  # the stated reference time is all that SUV needs
        same(path, classic)


def test_an_odd_reference_time_changes_nothing_of_a_classic_slice(tmp_path: Path, classic: Path) -> None:
    odd = rewritten(classic, tmp_path / "odd", lambda ds: setattr(ds, "DecayCorrectionDateTime", "20200101090000"))
    same(odd, classic)


@pytest.mark.parametrize("outermost", ["undefined", "defined"])
def test_nested_too_deep(tmp_path: Path, classic: Path, outermost: str) -> None:
    """Whether the header's reader goes into them at once, or only the reader of one frame."""
    path = enhance(classic, tmp_path / "a.dcm", edit=lambda ds: ds.pop("SharedFunctionalGroupsSequence"))
    deep = b"\x40\x00\x75\x02SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    item_of = struct.pack("<HHL", 0xFFFE, 0xE000, len(deep)) + deep
    length = 0xFFFFFFFF if outermost == "undefined" else len(item_of)
    shared = struct.pack("<HH2sHL", 0x5200, 0x9229, b"SQ", 0, length) + item_of
    data = path.read_bytes()
    at = data.index(struct.pack("<HH2s", 0x5200, 0x9230, b"SQ"))
    path.write_bytes(data[:at] + shared + data[at:])
    assert refused(path).code == "DCM_TOO_DEEP"


def test_concatenation_and_beds_are_one_series(tmp_path: Path, classic: Path) -> None:
    enhance(classic, tmp_path / "e" / "a.dcm", order=[5, 6, 7])
    enhance(classic, tmp_path / "e" / "b.dcm", order=[0, 1, 2, 3, 4])
    same(tmp_path / "e", classic)
    (tmp_path / "e" / "a.dcm").unlink()
    assert open_series(tmp_path / "e", modality="PT").grid.shape == (5, *SHAPE[1:])


def test_oblique_grid(tmp_path: Path, pet: ArraySource) -> None:
    a, b = 0.3, 0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ AFFINE[:3, :3], (1.0, 2.0, 3.0)
    write_series(tmp_path / "pt", ArraySource(pet.voxels, Grid(SHAPE, affine), SUV))
    same(enhance(tmp_path / "pt", tmp_path / "e" / "a.dcm"), tmp_path / "pt")


def test_several_times_in_one_object(tmp_path: Path, classic: Path) -> None:
    def later(ds: Dataset) -> None:
        for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
            content = group.FrameContentSequence[0]
            content.TemporalPositionIndex = 1 + k // 8
            content.FrameAcquisitionDateTime = f"2020010112{k // 8:02d}00"
            content.FrameReferenceDateTime = f"2020010112{k // 8:02d}30.5"
        ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2] + bytes(len(ds.PixelData) // 2)

    path = enhance(classic, tmp_path / "a.dcm", order=[*range(8), *range(8)], edit=later)
    assert refused(path).code == "SER_DYNAMIC"
    whole = open_series(classic, modality="PT").read(0, 8)
    for wanted, share in ((Wanted("1"), 1.0), (Wanted("2"), 0.0)):
        ((_, chosen),) = open_frames(path, wanted)
        np.testing.assert_allclose(chosen.read(0, 8), share * whole, rtol=1e-6)
    (series,) = find_series(path, modality="PT")
    headers = [s.header for s in series.slices]
    assert {text_of(h, "SeriesType") for h in headers} == {"DYNAMIC\\IMAGE"}
    assert [text_of(h, "AcquisitionTime") for h in headers[7:9]] == ["120000.000000", "120100.000000"]
    assert [text_of(h, "FrameReferenceTime") for h in headers[7:9]] == ["30500.000", "90500.000"]
    assert text_of(headers[0], "ActualFrameDuration") == "180000"


@pytest.mark.parametrize(
    ("macro", "field"),
    [
        ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
        ("RespiratorySynchronizationSequence", "NominalRespiratoryTriggerDelayTime"),
    ],
)
def test_gates_in_one_object(tmp_path: Path, classic: Path, macro: str, field: str) -> None:
    def gated(ds: Dataset) -> None:
        for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
            setattr(group, macro, [item(**{field: 125.0 * (k // 8)})])
        ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2] + bytes(len(ds.PixelData) // 2)

    path = enhance(classic, tmp_path / "a.dcm", order=[*range(8), *range(8)], edit=gated)
    assert refused(path).code == "SER_DYNAMIC"
    (series,) = find_series(path, modality="PT")
    assert {text_of(s.header, "TriggerTime") for s in series.slices} == {"0.000", "125.000"}


def converted(classic: Path, out: Path, modality: Literal["PT", "CT"]) -> Path:
    """Highdicom's legacy-converted copy of a classic series."""
    make = {"PT": LegacyConvertedEnhancedPETImage, "CT": LegacyConvertedEnhancedCTImage}[modality]
    slices = [pydicom.dcmread(file) for file in sorted(classic.iterdir())]
    out.parent.mkdir(parents=True, exist_ok=True)
    make(slices, generate_uid(), 9, generate_uid(), 1).save_as(out)
    return out


@pytest.mark.parametrize("modality", ["PT", "CT"])
def test_legacy_converted_alone_and_beside_its_source(
    tmp_path: Path, pet: ArraySource, ct: ArraySource, modality: Literal["PT", "CT"]
) -> None:
    write_series(tmp_path / "study" / "classic", pet if modality == "PT" else ct)
    path = converted(tmp_path / "study" / "classic", tmp_path / "study" / "copy" / "a.dcm", modality)
    same(path, tmp_path / "study" / "classic", modality)
    both = open_series(tmp_path / "study", modality=modality)
    assert both.provenance["notes"] == ["enhanced_copy_passed_by"]
    assert both.provenance["files_skipped"] == SHAPE[0]
    assert {s.frame for s in both.slices} == {None}
    described = open_series(tmp_path / "study", modality=modality, choice="phantom")
    assert {s.frame for s in described.slices} == {None}
    asked = open_series(tmp_path / "study", modality=modality, choice="9")
    assert {s.frame for s in asked.slices} == {*range(SHAPE[0])}


def test_another_image_is_no_copy(tmp_path: Path, pet: ArraySource) -> None:
    write_series(tmp_path / "study" / "classic", pet)
    write_series(tmp_path / "other", ArraySource(pet.voxels * np.float32(1.1), pet.grid, SUV), series_number=3)
    converted(tmp_path / "other", tmp_path / "study" / "copy" / "a.dcm", "PT")
    assert refused(tmp_path / "study").code == "SER_AMBIGUOUS"


def test_an_object_that_cannot_be_read_beside_a_series_that_can(tmp_path: Path, classic: Path) -> None:
    folder = Path(shutil.copytree(classic, tmp_path / "study"))
    enhance(classic, folder / "z.dcm", edit=BROKEN["no functional groups"][0])
    source = open_series(folder, modality="PT")
    assert source.provenance["notes"] == ["enhanced_object_passed_by"]
    assert source.provenance["files_skipped"] == 1


def test_projections_are_not_meant(tmp_path: Path, classic: Path) -> None:
    def mip(ds: Dataset) -> None:
        ds.SeriesInstanceUID = generate_uid()
        per_frame("PETFrameTypeSequence", FrameType=["DERIVED", "PRIMARY", "VOLUME", "MAX_IP"])(ds)

    enhance(classic, tmp_path / "e" / "a.dcm")
    enhance(classic, tmp_path / "e" / "mip.dcm", edit=mip)
    same(tmp_path / "e", classic)


@pytest.mark.parametrize("reference", [START, "20200101121000"])
def test_a_derived_series_of_an_enhanced_template(tmp_path: Path, classic: Path, reference: str) -> None:
    path = enhance(classic, tmp_path / "a.dcm", reference=reference)
    template = open_series(path, modality="PT")
    write_derived_series(tmp_path / "out", template, template.read, description="test")
    derived = open_series(tmp_path / "out", modality="PT")
    assert derived.grid.matches(template.grid, 1e-6)
    values = template.read(0, 8)
    assert np.all(np.abs(derived.read(0, 8) - values) <= 0.51 * values.max(axis=(1, 2), keepdims=True) / 32767)
    source = pydicom.dcmread(next(iter(sorted((tmp_path / "out").iterdir())))).SourceImageSequence[0]
    assert source.ReferencedFrameNumber == 1


def test_two_thousand_frames(tmp_path: Path, classic: Path) -> None:
    def many(ds: Dataset) -> None:
        groups = ds.PerFrameFunctionalGroupsSequence
        ds.PerFrameFunctionalGroupsSequence = [groups[k % 8] for k in range(2000)]
        ds.NumberOfFrames, ds.PixelData = 2000, ds.PixelData * 250

    path = enhance(classic, tmp_path / "a.dcm", edit=many)
    slices = scan(path, "PT")
    assert [s.frame for s in slices] == [*range(2000)]
    assert len({s.offset for s in slices}) == 2000
    assert np.array_equal(pixels_of(slices[1003]), pixels_of(slices[3]))


def test_an_enhanced_object_of_the_other_modality_is_passed_by(tmp_path: Path, classic: Path) -> None:
    assert refused(enhance(classic, tmp_path / "a.dcm"), "CT").code == "DCM_NONE"
