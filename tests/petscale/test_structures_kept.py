"""A structure set (RTSTRUCT) drawn on a scan: taken in with its study, and fitting what is made of the scan."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import untrained_runs
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

import petscale
from petscale.cli import main
from storage import dicom, dicom_write
from storage.errors import InputError
from storage.label_maps import LabelMap, open_labels
from storage.phantom import PhantomConfig, phantom
from storage.reader import open_cohort
from storage.rtstruct import CLASS
from storage.source import Grid

SHAPE = (32, 28, 30)
SLICES, ROWS, COLUMNS = slice(14, 17), slice(10, 15), slice(12, 18)  # of the box that is drawn


def item(**fields: object) -> Dataset:
    ds = Dataset()
    for name, value in fields.items():
        setattr(ds, name, value)
    return ds


def drawn(path: Path, first: Dataset, grid: Grid) -> Path:
    """Write a structure set of one box, as contours around whole voxels, into the study of a PET."""
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    low, high = (ROWS.start - 0.5, COLUMNS.start - 0.5), (ROWS.stop - 0.5, COLUMNS.stop - 0.5)
    contours = []
    for z in range(SLICES.start, SLICES.stop):
        corners = [(low[1], low[0]), (high[1], low[0]), (high[1], high[0]), (low[1], high[0])]
        lps = [(to_lps @ np.array([x, y, z, 1.0]))[:3] for x, y in corners]
        data = [f"{number:.4f}" for number in np.concatenate(lps)]
        contours.append(item(ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=4, ContourData=data))
    ds = item(SOPClassUID=CLASS, SOPInstanceUID=generate_uid(), Modality="RTSTRUCT", PatientID=first.PatientID)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = first.StudyInstanceUID, generate_uid()
    frame = first.FrameOfReferenceUID
    ds.StructureSetROISequence = [item(ROINumber=1, ReferencedFrameOfReferenceUID=frame, ROIName="GTV")]
    ds.ROIContourSequence = [item(ReferencedROINumber=1, ContourSequence=contours)]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = UID(CLASS), ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)
    return path


def opened(structures: Path, series: Path, work: Path, frame: str) -> NDArray[np.float32]:
    grid = dicom.open_series(series, modality="PT").grid
    labels = open_labels([LabelMap(structures)], grid=grid, workdir=work, frame_of_reference=frame)
    return labels.image.read(0, grid.shape[0])


def test_structures_of_a_study_become_labels_and_fit_the_result(tmp_path: Path) -> None:
    study, result = tmp_path / "study", tmp_path / "result"
    body = phantom(PhantomConfig(shape=SHAPE, spacing_mm=(25.0, 15.0, 14.0), num_lesions=1))
    dicom_write.write_series(study / "pet", body.activity, patient_id="P1")
    first = pydicom.dcmread(next((study / "pet").iterdir()), stop_before_pixels=True)
    grid = dicom.open_series(study / "pet", modality="PT").grid
    structures = drawn(study / "structures.dcm", first, grid)
    wanted = np.zeros(SHAPE, np.float32)
    wanted[SLICES, ROWS, COLUMNS] = 1

    (case,) = petscale.ingest(study, tmp_path / "cohort", layout="study").committed
    stored = open_cohort(tmp_path / "cohort").case(case)
    assert list(stored.labels.values()) == ["gtv"]  # as docs/how-to-labels.md says
    np.testing.assert_array_equal(stored.image("labels").read(0, SHAPE[0]) > 0, wanted > 0)

    run = untrained_runs.red_cnn(tmp_path / "run", 0)
    main(["synthesize", str(run), str(study / "pet"), "--output", str(result)])
    made = pydicom.dcmread(next(result.iterdir()), stop_before_pixels=True)
    assert made.StudyInstanceUID == first.StudyInstanceUID
    assert made.FrameOfReferenceUID == first.FrameOfReferenceUID
    np.testing.assert_array_equal(opened(structures, result, tmp_path, made.FrameOfReferenceUID) > 0, wanted > 0)
    with pytest.raises(InputError, match="LBL_FRAME"):
        opened(structures, result, tmp_path, generate_uid())
