"""What is written opens elsewhere with the same geometry, and comes back with the same SUV."""

import math
import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray

from storage.dicom import DicomSource, open_series
from storage.dicom_pairs import check_pair
from storage.dicom_write import (
    StoredSeries,
    write_derived_series,
    write_series,
    write_stored_series,
    write_synthetic_pet,
)
from storage.errors import InputError
from storage.source import HU, LABEL, SUV, ArraySource, Grid
from storage.suv import Overrides

SHAPE = (20, 6, 5)  # more slices than one slab of the writer
AFFINE = np.array([[-4.0, 0, 0, 30], [0, -5.0, 0, 20], [0, 0, 3.0, -100], [0, 0, 0, 1]])


@pytest.fixture
def pet() -> ArraySource:
    rng = np.random.Generator(np.random.Philox(11))
    return ArraySource(10 * rng.random(SHAPE, dtype=np.float32), Grid(SHAPE, AFFINE), SUV)


@pytest.fixture
def template(tmp_path: Path, pet: ArraySource) -> DicomSource:
    write_series(tmp_path / "template", pet)
    return open_series(tmp_path / "template", modality="PT")


def restored(template: DicomSource) -> NDArray[Any]:
    """A volume with negative values, an empty slice and a hot one."""
    suv = template.read(0, SHAPE[0]) * 0.7 - 0.5
    suv[3] = 0
    suv[4] *= 100
    return suv


def read_with_itk(folder: Path) -> tuple[NDArray[Any], Grid]:
    image = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = SimpleITK.GetArrayFromImage(image)
    return voxels, Grid(voxels.shape, np.diag([-1.0, -1, 1, 1]) @ affine)


def test_derived_series_comes_back(tmp_path: Path, template: DicomSource) -> None:
    suv = restored(template)
    write_derived_series(tmp_path / "out", template, lambda a, b: suv[a:b], description="low dose restored")
    back = open_series(tmp_path / "out", modality="PT")
    error = np.abs(back.read(0, SHAPE[0]) - suv).max(axis=(1, 2))
    assert np.all(error <= 1e-3 * np.abs(suv).max(axis=(1, 2)) + 1e-12)
    assert back.grid.matches(template.grid, 1e-6)
    assert back.factors == template.factors
    assert back.patient_id == template.patient_id
    assert back.frame_of_reference == template.frame_of_reference


def test_simpleitk_reads_the_same_volume(tmp_path: Path, template: DicomSource) -> None:
    suv = restored(template)
    write_derived_series(tmp_path / "out", template, lambda a, b: suv[a:b], description="x")
    bqml, grid = read_with_itk(tmp_path / "out")
    assert grid.matches(template.grid, 1e-3)
    assert np.allclose(bqml * template.factors[0], suv, atol=1e-3 * np.abs(suv).max(axis=(1, 2), keepdims=True))


def test_derived_series_says_what_it_is(tmp_path: Path, template: DicomSource) -> None:
    write_derived_series(tmp_path / "out", template, template.read, description="y" * 100)
    written = [pydicom.dcmread(f) for f in sorted((tmp_path / "out").iterdir())]
    source = pydicom.dcmread(template.slices[0].file)
    assert len({ds.SOPInstanceUID for ds in written}) == SHAPE[0]
    assert {ds.SeriesInstanceUID for ds in written}.isdisjoint({source.SeriesInstanceUID})
    for ds in written:
        assert list(ds.ImageType) == ["DERIVED", "PRIMARY", "PETSCALE"]
        assert "petscale" in ds.SeriesDescription
        assert "not for clinical use" in ds.SeriesDescription
        assert len(ds.SeriesDescription) <= 64
        assert ds.StudyInstanceUID == source.StudyInstanceUID
        assert ds.PatientName == "PHANTOM^PETSCALE"
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


@pytest.fixture
def ct(tmp_path: Path, pet: ArraySource) -> DicomSource:
    """A CT of finer slices than the PET's, with a header that identifies its patient and its scanner."""
    voxels = np.rint(100 * pet.voxels.repeat(2, 0)) - 1000
    affine = AFFINE @ np.diag([1, 1, 0.5, 1]) - np.outer([0, 0, 0.75, 0], [0, 0, 0, 1])

    def scanner(z: int, ds: pydicom.Dataset) -> None:
        ds.PatientName, ds.AccessionNumber, ds.InstitutionName = "CANARY^NAME", "A17", "CANARY HOSPITAL"
        ds.PatientWeight, ds.ImageComments, ds.Manufacturer = "71", "CANARY COMMENT", "CANARY CT"
        del ds.SeriesDate

    write_series(tmp_path / "ct", ArraySource(voxels, Grid((40, 6, 5), affine), HU), edit=scanner)
    return open_series(tmp_path / "ct", modality="CT")


def test_a_synthetic_pet_comes_back_in_suv(tmp_path: Path, ct: DicomSource, pet: ArraySource) -> None:
    suv = pet.voxels.copy()
    suv[3], suv[4] = 0, suv[4] * 100
    write_synthetic_pet(tmp_path / "out", ct, pet.grid, lambda a, b: suv[a:b], description="vpet")
    back = open_series(tmp_path / "out", modality="PT")
    step = suv.max(axis=(1, 2), keepdims=True) / 32767
    assert back.units == SUV
    assert back.factors == (1.0,) * SHAPE[0]
    assert back.provenance["stored_units"] == "GML"
    assert np.all(np.abs(back.read(0, SHAPE[0]) - suv) <= 0.51 * step + 1e-12)
    assert back.grid.matches(pet.grid, 1e-6)
    check_pair(back, ct)
    assert back.patient_id == ct.patient_id
    voxels, grid = read_with_itk(tmp_path / "out")
    assert grid.matches(pet.grid, 1e-3)
    assert np.allclose(voxels, suv, atol=1e-3 * suv.max())


def test_a_synthetic_pet_says_what_it_is_and_whose(tmp_path: Path, ct: DicomSource, pet: ArraySource) -> None:
    write_synthetic_pet(tmp_path / "out", ct, pet.grid, pet.read, description="vpet " + "y" * 100)
    written = [pydicom.dcmread(f) for f in sorted((tmp_path / "out").iterdir())]
    sources = [pydicom.dcmread(s.file) for s in ct.slices]
    assert len({ds.SOPInstanceUID for ds in written}) == SHAPE[0]
    for z, ds in enumerate(written):
        assert (ds.Modality, ds.Units, ds.SUVType, ds.PatientWeight) == ("PT", "GML", "BW", 71)
        assert list(ds.ImageType) == ["DERIVED", "PRIMARY", "PETSCALE"]
        assert "synthetic PET from CT" in ds.SeriesDescription
        assert "not for clinical use" in ds.SeriesDescription
        assert len(ds.SeriesDescription) <= 64
        assert len(ds.RadiopharmaceuticalInformationSequence) == 0
        assert ds.SeriesInstanceUID != sources[0].SeriesInstanceUID
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "AccessionNumber"):
            assert ds[keyword] == sources[0][keyword]
        assert ds.SeriesDate == ds.StudyDate
        source = ds.SourceImageSequence[0]
        assert source.ReferencedSOPClassUID == sources[0].SOPClassUID
        assert source.ReferencedSOPInstanceUID in {s.SOPInstanceUID for s in sources[2 * z : 2 * z + 2]}
        assert not {"KVP", "RescaleType", "InstitutionName", "ImageComments"} & set(ds.dir())
        assert ds.Manufacturer == "petscale"
    assert {(ds.ActualFrameDuration, ds.FrameReferenceTime, ds.AcquisitionTime) for ds in written} == {(0, 0, "")}


def every_kind(folder: Path) -> dict[str, Path]:
    """One series of everything that is written, two slices each."""
    rng = np.random.default_rng(0)
    grid = Grid((2, 6, 5), AFFINE)
    pet = ArraySource(10 * rng.random((2, 6, 5), dtype=np.float32), grid, SUV)
    ct = ArraySource(np.rint(rng.uniform(-1000, 900, (2, 6, 5))).astype(np.float32), grid, HU)

    def bare(z: int, ds: pydicom.Dataset) -> None:
        del ds.CollimatorType, ds.PatientPosition

    made = {
        name: folder / name for name in ("pet", "bare", "ct", "stored_pet", "stored_ct", "restored", "again", "from_ct")
    }
    write_series(made["pet"], pet)
    write_series(made["bare"], pet, patient_id="BARE", edit=bare)
    write_series(made["ct"], ct)
    for source, name in ((pet, "stored_pet"), (ct, "stored_ct")):
        write_stored_series(made[name], StoredSeries(source, "ab12", "p01", "scan", name, "image"))
    for name, of in (("restored", "pet"), ("again", "bare")):
        template = open_series(made[of], modality="PT")
        write_derived_series(made[name], template, template.read, description="restore", weights="0" * 64)
    template = open_series(made["ct"], modality="CT")
    write_synthetic_pet(made["from_ct"], template, grid, pet.read, description="vpet", weights="0" * 64)
    return made


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (apt-get install dicom3tools)")
def test_dciodvfy_finds_no_error(tmp_path: Path) -> None:
    for name, series in every_kind(tmp_path).items():
        for file in series.iterdir():
            said = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, check=False).stderr
            assert {"PETImage", "CTImage"} & {*said.splitlines()}, said  # the kind that it was checked as
            assert not [line for line in said.splitlines() if line.startswith("Error")], name


def test_every_series_states_what_its_kind_must(tmp_path: Path) -> None:
    """PS3.3: C.7.3.1 and C.8.9 of a PET, C.8.2.1 of a CT; values by hand."""
    for name, series in every_kind(tmp_path).items():
        ds = pydicom.dcmread(min(series.iterdir()))
        assert ds.Laterality == "", name
        if ds.Modality == "CT":
            assert ds.AcquisitionNumber is None
            assert ds.ImageType[2] == "AXIAL"
            continue
        assert ds.ImageType[1] == "PRIMARY", name
        assert (ds.ImageType[0] == "DERIVED") == (name not in ("pet", "bare")), name
        assert ds.CollimatorType == ("RING" if name in ("pet", "restored") else ""), name
        assert ds.NumberOfSlices == 2
        assert "PatientPosition" not in ds
        lay, gantry = ds.PatientOrientationCodeSequence, ds.PatientGantryRelationshipCodeSequence
        assert len(lay) == len(gantry) == (0 if name in ("bare", "again", "stored_pet") else 1), name
        for item in lay:  # HFS
            assert item.CodeValue == "102538003"
            assert item.PatientOrientationModifierCodeSequence[0].CodeMeaning == "supine"
            assert gantry[0].CodeValue == "102540008"
        made = ds.get("ContributingEquipmentSequence", [])
        assert len(made) == (name in ("restored", "again", "from_ct"))
        for item in made:
            assert item.SoftwareVersions == version("petscale")
            assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "109103"
            assert item.ContributionDescription.endswith("; weights SHA-256 " + "0" * 64)
            assert (
                ds.Manufacturer == "petscale"
            )  # of the template, a phantom; of a PET from CT, for nothing measured it


def test_a_result_in_its_source_s_folder_is_passed_by(tmp_path: Path, template: DicomSource) -> None:
    write_derived_series(
        tmp_path / "template/out", template, lambda a, b: template.read(a, b) / np.float32(2), description="x"
    )
    both = open_series(tmp_path / "template", modality="PT")
    assert np.array_equal(both.read(0, 4), template.read(0, 4))


def test_each_result_needs_its_own_kind_of_template(tmp_path: Path, ct: DicomSource, template: DicomSource) -> None:
    with pytest.raises(ValueError, match="CT template"):
        write_synthetic_pet(tmp_path / "out", template, template.grid, template.read, description="x")
    with pytest.raises(ValueError, match="PET template"):
        write_derived_series(tmp_path / "out", ct, ct.read, description="x")
    with pytest.raises(ValueError, match="a slab of shape"):
        write_synthetic_pet(tmp_path / "out", ct, template.grid, lambda a, b: ct.read(a, b)[1:], description="x")
    assert not (tmp_path / "out").exists()


def test_overrides_are_written_down(tmp_path: Path, pet: ArraySource) -> None:
    def bare(z: int, ds: pydicom.Dataset) -> None:
        del ds.PatientWeight
        del ds.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose
        del ds.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime
        del ds.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartTime

    write_series(tmp_path / "bare", pet, edit=bare)
    template = open_series(
        tmp_path / "bare", modality="PT", overrides=Overrides(weight_kg=81.5, dose_mbq=222.0, injection_time="11:15")
    )
    write_derived_series(tmp_path / "out", template, template.read, description="x")
    assert open_series(tmp_path / "out", modality="PT").factors == pytest.approx(template.factors, rel=1e-9)


def test_private_fields_that_suv_needs_survive(tmp_path: Path, pet: ArraySource) -> None:
    def counts(z: int, ds: pydicom.Dataset) -> None:
        ds.Units = "CNTS"
        block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
        block.add_new(0x00, "DS", "0.25")
        block.add_new(0x33, "LO", "some other secret")

    write_series(tmp_path / "counts", pet, edit=counts)
    template = open_series(tmp_path / "counts", modality="PT")
    write_derived_series(tmp_path / "out", template, template.read, description="x")
    assert open_series(tmp_path / "out", modality="PT").factors == template.factors
    assert b"some other secret" not in next((tmp_path / "out").iterdir()).read_bytes()


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, template: DicomSource) -> None:
    def fails(z0: int, z1: int) -> NDArray[Any]:
        if z0:
            raise RuntimeError("device lost")
        return template.read(z0, z1)

    with pytest.raises(RuntimeError, match="device lost"):
        write_derived_series(tmp_path / "out", template, fails, description="x")
    with pytest.raises(InputError, match="IMG_NONFINITE"):
        write_derived_series(tmp_path / "out", template, lambda a, b: template.read(a, b) * math.nan, description="x")
    with pytest.raises(InputError, match="DISK_EXISTS"):
        write_derived_series(tmp_path / "template", template, template.read, description="x")
    assert [p.name for p in tmp_path.iterdir()] == ["template"]


def test_phantom_series_are_repeatable_and_open_in_simpleitk(tmp_path: Path, pet: ArraySource) -> None:
    write_series(tmp_path / "a", pet)
    write_series(tmp_path / "b", pet)
    for a, b in zip(sorted((tmp_path / "a").iterdir()), sorted((tmp_path / "b").iterdir()), strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert read_with_itk(tmp_path / "a")[1].matches(pet.grid, 1e-3)


def test_phantom_ct_and_pet_share_their_frame(tmp_path: Path, pet: ArraySource) -> None:
    write_series(tmp_path / "pt", pet)
    write_series(tmp_path / "ct", ArraySource(np.rint(pet.voxels * 100), pet.grid, HU))
    pt, ct = open_series(tmp_path / "pt", modality="PT"), open_series(tmp_path / "ct", modality="CT")
    assert pt.frame_of_reference == ct.frame_of_reference
    assert pt.patient_id == ct.patient_id


def test_labels_are_no_dicom_image(tmp_path: Path, pet: ArraySource) -> None:
    with pytest.raises(ValueError, match="label"):
        write_series(tmp_path / "x", ArraySource(pet.voxels, pet.grid, LABEL))


@pytest.mark.skipif("PETSCALE_REAL_DATA" not in os.environ, reason="PETSCALE_REAL_DATA names no data folder")
def test_real_series_as_template(tmp_path: Path) -> None:
    template = open_series(Path(os.environ["PETSCALE_REAL_DATA"], "mirp/sts_001_wholebody_pet/image"), modality="PT")
    write_derived_series(tmp_path / "out", template, template.read, description="copy")
    back = open_series(tmp_path / "out", modality="PT")
    assert back.factors == template.factors
    assert back.provenance["reference_candidates_s"] == template.provenance["reference_candidates_s"]
    a, b = template.read(0, 267), back.read(0, 267)
    assert np.all(np.abs(a - b).max(axis=(1, 2)) <= 1e-4 * a.max(axis=(1, 2)))
