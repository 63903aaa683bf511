"""``petscale export``: read back by others, an image has the same values, place and unit; mistakes are named."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import zarr

import petscale
from petscale.cli import main
from petscale.data.sidecars import units_beside
from petscale.folders import CONFIG
from storage import dicom, nifti
from storage.dicom_seg import open_seg
from storage.ingest import CasePlan, ingest
from storage.label_maps import LabelMap, open_labels
from storage.reader import open_cohort
from storage.source import HU, LABEL, SUV, ArraySource, Grid

Refused = Callable[..., str]
SHAPE = (9, 7, 5)
TURN = np.deg2rad(20)
AFFINE = np.array(  # turned about z, voxels of 5 x 4 x 3 mm along (z, y, x)
    [
        [3 * np.cos(TURN), -4 * np.sin(TURN), 0, -31],
        [3 * np.sin(TURN), 4 * np.cos(TURN), 0, 12],
        [0, 0, 5, -700],
        [0, 0, 0, 1],
    ]
)
GRID = Grid(SHAPE, AFFINE)
VOXELS = {
    "full": np.random.default_rng(0).gamma(2.0, 1.0, SHAPE).astype(np.float32),
    "ct": np.random.default_rng(1).uniform(-1000, 1000, SHAPE).astype(np.float32),
    "labels": np.random.default_rng(2).integers(0, 3, SHAPE).astype(np.float32),
}
UNITS = {"full": SUV, "ct": HU, "labels": LABEL}


def stored(folder: Path, images: dict[str, ArraySource]) -> Path:
    """A cohort of one case."""
    names = {1: "liver", 2: "spleen"} if "labels" in images else {}
    plan = CasePlan(images, "0123456789abcdef", "made here", labels=names)
    ingest(folder, {"p01": lambda _: plan}, strict=True, workers=1)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = {name: ArraySource(voxels, GRID, UNITS[name]) for name, voxels in VOXELS.items()}
    return stored(tmp_path_factory.mktemp("export") / "cohort", images)


@pytest.mark.parametrize(("image", "ending"), [("full", ".nii.gz"), ("ct", ".nii"), ("labels", ".nii.gz")])
def test_nibabel_reads_what_was_stored(small: Path, tmp_path: Path, image: str, ending: str) -> None:
    file = tmp_path / f"p01{ending}"
    main(["export", str(small), "p01", str(file), "--image", image])
    read = nibabel.load(file)
    np.testing.assert_array_equal(read.get_fdata(), VOXELS[image].transpose(2, 1, 0))
    np.testing.assert_allclose(read.affine, AFFINE, atol=1e-4)
    assert read.header.get_xyzt_units()[0] == "mm"
    said = json.loads((tmp_path / "p01.json").read_text())
    assert said["Units"] == UNITS[image]
    assert said.get("Labels") == ({"1": "liver", "2": "spleen"} if image == "labels" else None)


def test_the_unit_of_an_exported_pet_is_known_again(small: Path, tmp_path: Path) -> None:
    petscale.export(small, "p01", tmp_path / "scan.nii.gz")
    assert units_beside(tmp_path / "scan.nii.gz") == SUV


@pytest.mark.parametrize(("image", "modality", "step"), [("full", "PT", 2e-4), ("ct", "CT", 0.5001)])
def test_pydicom_and_petscale_read_the_series(
    small: Path, tmp_path: Path, image: str, modality: Literal["PT", "CT"], step: float
) -> None:
    """Values to half a step of 16 bits; the place of every slice is that of the affine, in LPS."""
    folder = tmp_path / "series"
    main(["export", str(small), "p01", str(folder), "--image", image])
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    assert {(one.Modality, one.get("Units"), one.get("RescaleType")) for one in slices} == {
        ("PT", "GML", None) if image == "full" else ("CT", None, "HU")
    }
    assert {(str(one.PatientID), str(one.PatientName)) for one in slices} == {("0123456789abcdef", "p01")}
    for z, one in enumerate(slices):
        values = one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept)
        np.testing.assert_allclose(values, VOXELS[image][z], atol=step)
        place = AFFINE @ [0, 0, z, 1]
        np.testing.assert_allclose(one.ImagePositionPatient, [-place[0], -place[1], place[2]], atol=1e-4)
        np.testing.assert_allclose(one.PixelSpacing, [4.0, 3.0], atol=1e-4)
        turned = [-np.cos(TURN), -np.sin(TURN), 0, np.sin(TURN), -np.cos(TURN), 0]
        np.testing.assert_allclose(one.ImageOrientationPatient, turned, atol=1e-6)
    read = dicom.open_series(folder, modality=modality)
    assert (read.units, read.grid.matches(GRID)) == (UNITS[image], True)
    np.testing.assert_allclose(read.read(0, SHAPE[0]), VOXELS[image], atol=step)


def test_images_of_one_scan_share_study_and_place(small: Path, tmp_path: Path) -> None:
    for image in ("full", "ct"):
        petscale.export(small, "p01", tmp_path / image, image)
    full, ct = (pydicom.dcmread(next((tmp_path / image).iterdir())) for image in ("full", "ct"))
    assert (full.StudyInstanceUID, full.FrameOfReferenceUID) == (ct.StudyInstanceUID, ct.FrameOfReferenceUID)
    assert full.SeriesInstanceUID != ct.SeriesInstanceUID


def test_a_series_is_the_same_whenever_it_is_exported(small: Path, tmp_path: Path) -> None:
    """A viewer that has it takes the second for the first, and labels refer to either."""
    for name in ("one", "two"):
        petscale.export(small, "p01", tmp_path / name)
    assert [file.read_bytes() for file in sorted((tmp_path / "one").iterdir())] == [
        file.read_bytes() for file in sorted((tmp_path / "two").iterdir())
    ]


@pytest.mark.parametrize("image", ["full", "ct"])
def test_labels_are_a_segmentation_over_the_series_of_the_case(image: str, tmp_path: Path) -> None:
    """Over the full dose, or over a CT alone; who drew labels that were given is not known."""
    images = {name: ArraySource(VOXELS[name], GRID, UNITS[name]) for name in (image, "labels")}
    cohort = stored(tmp_path / "cohort", images)
    main(["export", str(cohort), "p01", str(tmp_path / "seg"), "--image", "labels"])
    petscale.export(cohort, "p01", tmp_path / "series", image)
    (seg,) = (pydicom.dcmread(path) for path in (tmp_path / "seg").iterdir())
    slices = [pydicom.dcmread(path) for path in (tmp_path / "series").iterdir()]
    (referred,) = seg.ReferencedSeriesSequence
    assert (seg.Modality, seg.SegmentationType) == ("SEG", "BINARY")
    assert {(one.SeriesInstanceUID, one.StudyInstanceUID, one.FrameOfReferenceUID) for one in slices} == {
        (referred.SeriesInstanceUID, seg.StudyInstanceUID, seg.FrameOfReferenceUID)
    }
    named = {one.ReferencedSOPInstanceUID for one in referred.ReferencedInstanceSequence}
    assert named == {one.SOPInstanceUID for one in slices}
    assert (str(seg.PatientID), str(seg.PatientName)) == ("0123456789abcdef", "p01")
    assert {one.SegmentAlgorithmName for one in seg.SegmentSequence} == {"not known: labels were given"}
    found = open_labels([LabelMap(tmp_path / "seg")], grid=GRID, workdir=tmp_path / "work")
    assert found.names == {1: "liver", 2: "spleen"}
    np.testing.assert_array_equal(found.image.read(0, SHAPE[0]), VOXELS["labels"])


def test_the_outline_is_a_segment_that_petscale_drew(small: Path, tmp_path: Path) -> None:
    (folder,) = petscale.export(small, "p01", tmp_path / "outline", "body")
    (file,) = folder.iterdir()
    (segment,) = pydicom.dcmread(file).SegmentSequence
    assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "petscale")
    found = open_seg(file)
    assert found.names == {1: "body"}
    drawn = open_cohort(small).case("p01").image("body").read(0, SHAPE[0])
    labels = open_labels([LabelMap(file)], grid=GRID, workdir=tmp_path / "work")
    np.testing.assert_array_equal(labels.image.read(0, SHAPE[0]), drawn)


def test_exported_labels_are_ingested_and_scored_as_the_files_they_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and voxels pass from a NIfTI map to a cohort, a SEG and another cohort; scores are those of NIfTI."""
    monkeypatch.chdir(tmp_path)
    main(["phantom", "cohort", "--cases", "1", "--drf", "20", "--workers", "1", "--body.spacing-mm", "16", "16", "16"])
    for image, place in (("full", "full/p"), ("low_drf20", "tool/p"), ("labels", "labels/p")):
        (tmp_path / place).parent.mkdir()
        main(["export", "cohort", "phantom-000", place, "--image", image])
    main(["ingest", "full/p", "again", "--labels", "labels/p", "--case", "p01"])
    before, after = open_cohort(tmp_path / "cohort").case("phantom-000"), open_cohort(tmp_path / "again").case("p01")
    assert after.labels == before.labels
    wanted, found = (case.image("labels") for case in (before, after))
    voxels = found.read(0, found.grid.shape[0])
    in_order = wanted.grid.matches(found.grid)
    np.testing.assert_array_equal(voxels if in_order else voxels[::-1], wanted.read(0, wanted.grid.shape[0]))
    (tmp_path / "nifti").mkdir()
    main(["export", "cohort", "phantom-000", "nifti/p.nii.gz", "--image", "labels"])
    names = ",".join(f"{value}={name}" for value, name in before.labels.items())
    main(["score", "full", "tool", "--labels", "labels", "--output", "by_seg"])
    main(["score", "full", "tool", "--labels", "nifti", "--names", names, "--output", "by_nifti"])
    scores = (tmp_path / "by_seg/scores.csv").read_text()
    assert scores == (tmp_path / "by_nifti/scores.csv").read_text()
    assert {"body", "bladder", "lesion 1"} <= {row["region"] for row in csv.DictReader(scores.splitlines())}


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    """A run that has synthesized the case from one image."""
    run = tmp_path / "run"
    stored(run / "synthesis" / "low_drf20", {"synth_low_drf20": ArraySource(2 * VOXELS["full"], GRID, SUV)})
    (run / CONFIG).write_text("{}")
    return run


@pytest.mark.parametrize("image", ["full", "ct", "labels"])
def test_itk_reads_a_metaimage_as_it_was_stored(small: Path, tmp_path: Path, image: str) -> None:
    file = tmp_path / "p01.mha"
    main(["export", str(small), "p01", str(file), "--image", image])
    read = SimpleITK.ReadImage(str(file))
    voxels = SimpleITK.GetArrayFromImage(read)
    np.testing.assert_array_equal(voxels, VOXELS[image])
    assert voxels.dtype == (np.uint16 if image == "labels" else np.float32)
    for index in ((0, 0, 0), (4, 6, 8)):
        expected = np.diag([-1, -1, 1]) @ (AFFINE @ (*index, 1))[:3]
        np.testing.assert_allclose(read.TransformIndexToPhysicalPoint(index), expected, atol=1e-9)
    assert read.GetMetaData("Units") == UNITS[image]
    assert not read.HasMetaDataKey("Label_1") or read.GetMetaData("Label_1") == "liver"
    assert read.HasMetaDataKey("Label_1") == (image == "labels")


def test_an_ome_zarr_has_place_orientation_and_labels(small: Path, tmp_path: Path) -> None:
    """Values by hand: voxels of 5 x 4 x 3 mm; x leads to the right (turned by 20 degrees), y to the front, z up."""
    main(["export", str(small), "p01", str(tmp_path / "p01.ome.zarr")])
    root = zarr.open_group(tmp_path / "p01.ome.zarr", mode="r")
    assert root.metadata.zarr_format == 3
    ome: Any = root.attrs["ome"]
    (scales,) = ome["multiscales"]
    assert ome["version"] == "0.5"
    sides = ["inferior-to-superior", "posterior-to-anterior", "left-to-right"]
    assert [axis["orientation"] for axis in scales["axes"]] == [{"type": "anatomical", "value": side} for side in sides]
    assert [(axis["name"], axis["type"], axis["unit"]) for axis in scales["axes"]] == [
        (name, "space", "millimeter") for name in "zyx"
    ]
    (level,) = scales["datasets"]
    scale, shift = level["coordinateTransformations"]
    np.testing.assert_allclose(scale["scale"], [5, 4, 3])
    x, y = np.array([np.cos(TURN), np.sin(TURN)]), np.array([-np.sin(TURN), np.cos(TURN)])
    along = np.array([y, x]) @ np.array([-31.0, 12.0])
    np.testing.assert_allclose(shift["translation"], [-700.0, *along.tolist()], atol=1e-6)
    array = root[level["path"]]
    np.testing.assert_array_equal(array[:], VOXELS["full"])
    assert array.metadata.dimension_names == ("z", "y", "x")
    facts: Any = root.attrs["petscale"]
    assert facts["units"] == SUV
    np.testing.assert_array_equal(facts["affine_ras_mm"], AFFINE)
    listed: Any = root["labels"].attrs["ome"]
    assert listed["labels"] == ["labels"]
    marked: Any = root["labels/labels"].attrs["ome"]
    assert marked["multiscales"][0]["datasets"] == scales["datasets"]
    assert marked["image-label"] == {
        "properties": [{"label-value": 1, "name": "liver"}, {"label-value": 2, "name": "spleen"}],
        "source": {"image": "../../"},
    }
    np.testing.assert_array_equal(root["labels/labels/0"][:], VOXELS["labels"])
    assert root["labels/labels/0"].dtype == np.uint16


def test_labels_alone_are_an_ome_zarr_with_their_names(small: Path, tmp_path: Path) -> None:
    written = petscale.export(small, "p01", tmp_path / "labels.zarr", "labels")
    root = zarr.open_group(written[0], mode="r")
    ome: Any = root.attrs["ome"]
    assert [one["name"] for one in ome["image-label"]["properties"]] == ["liver", "spleen"]
    assert "labels" not in root


def test_of_a_run_its_result_is_written(a_run: Path, tmp_path: Path, refused: Refused) -> None:
    petscale.export(a_run, "p01", tmp_path / "made.nii.gz")
    read = nifti.open_nifti(tmp_path / "made.nii.gz", units="SUVbw", workdir=tmp_path)
    np.testing.assert_array_equal(read.read(0, SHAPE[0]), 2 * VOXELS["full"])
    said = refused("export", a_run, "p02", tmp_path / "other.nii.gz")
    assert said.startswith("SET_NO_CASE case p02: run run has synthesized p01;")
    shutil.rmtree(a_run / "synthesis")
    assert "run run has synthesized no case" in refused("export", a_run, "p01", tmp_path / "other.nii.gz")


def test_of_several_results_one_must_be_named(a_run: Path, tmp_path: Path, refused: Refused) -> None:
    stored(a_run / "synthesis" / "ct", {"synth_ct": ArraySource(VOXELS["full"], GRID, SUV)})
    said = refused("export", a_run, "p01", tmp_path / "made.nii.gz")
    assert said.startswith("SET_NO_IMAGE case p01: several images and none is called full; there are ")
    assert "synth_ct" in said
    assert "synth_low_drf20" in said
    written, _ = petscale.export(a_run, "p01", tmp_path / "made.nii.gz", "synth_ct")
    np.testing.assert_array_equal(nibabel.load(written).get_fdata(), VOXELS["full"].transpose(2, 1, 0))


def test_what_cannot_be_exported_is_refused_by_name(small: Path, tmp_path: Path, refused: Refused) -> None:
    there = tmp_path / "there.nii.gz"
    there.write_bytes(b"mine")
    (tmp_path / "beside.json").write_text("{}")
    (tmp_path / "there.mha").touch()
    (tmp_path / "there.zarr").mkdir()
    for words, said in (
        (("p02", tmp_path / "a.nii.gz"), "SET_NO_CASE case p02"),
        (
            ("p01", tmp_path / "a.nii.gz", "--image", "low_drf4"),
            "SET_NO_IMAGE case p01: no image 'low_drf4'; there are ",
        ),
        (("p01", there), "DISK_EXISTS there.nii.gz"),
        (("p01", tmp_path / "beside.nii.gz"), "DISK_EXISTS beside.json"),
        (("p01", tmp_path / "there.zarr"), "DISK_EXISTS there.zarr"),
        (("p01", tmp_path / "there.mha"), "DISK_EXISTS there.mha"),
        (("p01", tmp_path / "a.nrrd"), "IMG_FORMAT a.nrrd: no format that is written ends in .nrrd"),
        (("p01", tmp_path / "there.zarr", "--image", "labels"), "DISK_EXISTS there.zarr"),
        (("p01", tmp_path / "labels.dcm", "--image", "labels"), "IMG_FORMAT labels.dcm: no format that is written"),
        (("p01", tmp_path / "series", "--image", "organs"), "SET_NO_IMAGE case p01: no image 'organs'"),
    ):
        assert refused("export", small, *words).startswith(said)
    assert refused("export", tmp_path, "p01", tmp_path / "a.nii.gz").startswith("STORE_NONE")
    assert there.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "beside.json",
        "there.mha",
        "there.nii.gz",
        "there.zarr",
    ]
