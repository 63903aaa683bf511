"""An enhanced multi-frame object gives the values, grid and SUV of the classic series that says the same."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
import pytest
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
from storage.dicom_write import write_series
from storage.errors import InputError
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
            code = item(CodeValue=unit, CodingSchemeDesignator="UCUM", CodeMeaning=unit)
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
