"""A user's mistakes: one coded line, exit code 2, nothing half-written, and no cluster started for it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import EnhancedPETImageStorage

from petscale.cli import main
from petscale.cluster import session as sessions
from petscale.folders import CONFIG, WEIGHTS
from petscale.training import driver
from storage import dicom_write, integrity
from storage.phantom import PhantomConfig, phantom
from storage.source import HU, ArraySource, Grid
from trainers.systems import BUILT_IN

Refused = Callable[..., str]
SMALL = ("--set", "recipe.patch=24,24,24", "recipe.rois=()", "feed.source=low_drf4")

pytestmark = pytest.mark.usefixtures("no_ray")


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with size and time; the lock is no content."""
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.name != ".lock" and p.is_file()
    }


def copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def edited(scans: Path, target: Path, edit: Callable[[pydicom.Dataset], None]) -> Path:
    """A copy of the PET series whose every slice was edited."""
    for file in copy(scans / "pet", target).iterdir():
        ds = pydicom.dcmread(file)
        edit(ds)
        ds.save_as(file)
    return target


def drop(keyword: str) -> Callable[[pydicom.Dataset], None]:
    def edit(ds: pydicom.Dataset) -> None:
        inside = ds.RadiopharmaceuticalInformationSequence[0] if "Radionuclide" in keyword else ds
        del inside[keyword]

    return edit


# -- ingest -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bad(scans: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """Name of a mistake -> arguments of ``petscale ingest`` without the cohort."""
    suv = nibabel.load(scans / "suv.nii.gz")
    voxels = np.asarray(suv.dataobj, dtype=np.float32)

    def image(name: str, values: np.ndarray, affine: np.ndarray = suv.affine) -> str:
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / name)
        return str(tmp_path / name)

    def none() -> list[str]:
        return [str(tmp_path / "absent.nii.gz")]

    def no_folder() -> list[str]:
        return [str(tmp_path / "absent")]

    def no_dicom() -> list[str]:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "readme.txt").write_text("nothing here")
        return [str(tmp_path / "notes")]

    def ct_only() -> list[str]:
        return [str(scans / "ct")]

    def weight() -> list[str]:
        return [str(edited(scans, tmp_path / "pet", drop("PatientWeight")))]

    def dose() -> list[str]:
        return [str(edited(scans, tmp_path / "pet", drop("RadionuclideTotalDose")))]

    def two_series() -> list[str]:
        body = phantom(PhantomConfig(shape=(16, 16, 16), spacing_mm=(50.0, 25.0, 25.0)))
        dicom_write.write_series(tmp_path / "two" / "b", body.activity, patient_id="P1", series_number=7)
        copy(scans / "pet", tmp_path / "two" / "a")
        return [str(tmp_path / "two")]

    def missing_slice() -> list[str]:
        next(copy(scans / "pet", tmp_path / "pet").glob("*0012.dcm")).unlink()
        return [str(tmp_path / "pet")]

    def frames_lie() -> list[str]:
        def edit(ds: pydicom.Dataset) -> None:
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedPETImageStorage
            ds.NumberOfFrames, ds.PerFrameFunctionalGroupsSequence = 1000000000, [pydicom.Dataset()]

        return [str(edited(scans, tmp_path / "pet", edit))]

    def truncated() -> list[str]:
        (tmp_path / "cut.nii.gz").write_bytes((scans / "suv.nii.gz").read_bytes()[:-2000])
        return [str(tmp_path / "cut.nii.gz")]

    def empty_file() -> list[str]:
        (tmp_path / "empty.nii").touch()
        return [str(tmp_path / "empty.nii")]

    def not_nifti() -> list[str]:
        (tmp_path / "notes.nii").write_text("not an image" * 100)
        return [str(tmp_path / "notes.nii")]

    def trailing() -> list[str]:
        data = bytearray((scans / "bqml.nii").read_bytes())
        data[46:48] = (int.from_bytes(data[46:48], "little") - 1).to_bytes(2, "little")  # one slice fewer
        (tmp_path / "more.nii").write_bytes(data)
        return [str(tmp_path / "more.nii")]

    def sheared() -> list[str]:
        affine = suv.affine.copy()
        affine[0, 2] += 2
        return [image("sheared.nii.gz", voxels, affine)]

    def stretched() -> list[str]:
        data = bytearray((scans / "bqml.nii").read_bytes())
        data[252:254] = bytes(2)  # sform only, and its first axis is not as long as pixdim says
        data[80:84] = np.float32(3.5).tobytes()
        (tmp_path / "stretched.nii").write_bytes(data)
        return [str(tmp_path / "stretched.nii")]

    def metres() -> list[str]:
        data = bytearray((scans / "bqml.nii").read_bytes())
        data[123] = 1
        (tmp_path / "metres.nii").write_bytes(data)
        return [str(tmp_path / "metres.nii")]

    def nan() -> list[str]:
        values = voxels.copy()
        values[3, 4, 5] = np.nan
        return [image("nan.nii.gz", values)]

    def constant() -> list[str]:
        return [image("flat.nii.gz", np.ones_like(voxels))]

    def mask_shape() -> list[str]:
        return [str(scans / "suv.nii.gz"), "--mask", image("mask.nii.gz", np.ones((5, 6, 7), np.uint8))]

    def mask_place() -> list[str]:
        moved = suv.affine.copy()
        moved[0, 3] += 3
        mask = (voxels > 4).astype(np.uint8)
        return [str(scans / "suv.nii.gz"), "--mask", image("mask.nii.gz", mask, moved)]

    def mask_values() -> list[str]:
        return [str(scans / "suv.nii.gz"), "--mask", image("mask.nii.gz", voxels)]

    def mask_absent() -> list[str]:
        return [str(scans / "suv.nii.gz"), "--mask", str(tmp_path / "absent.nii.gz")]

    def ct_far() -> list[str]:
        far = suv.affine.copy()
        far[:3, 3] += 5000
        return [str(scans / "suv.nii.gz"), "--ct", image("ct.nii.gz", voxels, far)]

    def ct_of_another() -> list[str]:
        body = phantom(PhantomConfig(shape=(16, 16, 16), spacing_mm=(50.0, 25.0, 25.0)))
        dicom_write.write_series(tmp_path / "ct", body.ct, patient_id="P2", series_number=2)
        return [str(scans / "pet"), "--ct", str(tmp_path / "ct")]

    def ct_elsewhere() -> list[str]:
        grid = Grid((8, 16, 16), np.array([[-30.0, 0, 0, 0], [0, -30, 0, 0], [0, 0, 25, 9000], [0, 0, 0, 1]]))
        values = np.linspace(-1000, 500, 8 * 256, dtype=np.float32).reshape(grid.shape)
        dicom_write.write_series(tmp_path / "ct", ArraySource(values, grid, HU), patient_id="P1", series_number=2)
        return [str(scans / "pet"), "--ct", str(tmp_path / "ct")]

    def bqml_no_weight() -> list[str]:
        return [str(scans / "bqml.nii"), "--units", "Bq/mL", "--dose-mbq", "300"]

    def bqml_no_dose() -> list[str]:
        return [str(scans / "bqml.nii"), "--units", "Bq/mL", "--weight-kg", "70"]

    def bqml_grams() -> list[str]:
        return [str(scans / "bqml.nii"), "--units", "Bq/mL", "--weight-kg", "70000", "--dose-mbq", "300"]

    def hu_as_pet() -> list[str]:
        return [str(scans / "suv.nii.gz"), "--units", "HU"]

    def bad_name() -> list[str]:
        return [str(scans / "suv.nii.gz"), "--case", "Jane Doe"]

    def own_name() -> list[str]:
        return [str(scans / "suv.nii.gz"), "--case", "aids"]

    def no_workers() -> list[str]:
        return [str(scans / "suv.nii.gz"), "--workers", "0"]

    def no_pet_inside() -> list[str]:
        return [str(scans), "--pet", "PT.nii.gz"]

    def no_ct_inside() -> list[str]:
        (tmp_path / "many" / "a").mkdir(parents=True)
        shutil.copy(scans / "suv.nii.gz", tmp_path / "many" / "a" / "pet.nii.gz")
        return [str(tmp_path / "many"), "--pet", "pet.nii.gz", "--ct", "CT.nii.gz"]

    def no_tree() -> list[str]:
        return [str(tmp_path / "absent"), "--pet", "pet.nii.gz"]

    def collision() -> list[str]:
        for name in ("a", "A"):
            (tmp_path / "many" / name).mkdir(parents=True)
            shutil.copy(scans / "suv.nii.gz", tmp_path / "many" / name / "pet.nii.gz")
        return [str(tmp_path / "many"), "--pet", "pet.nii.gz", "--names", "folder"]

    def all_bad() -> list[str]:
        (tmp_path / "many" / "a").mkdir(parents=True)
        (tmp_path / "many" / "a" / "pet.nii.gz").write_bytes(b"\x1f\x8bnothing")
        return [str(tmp_path / "many"), "--pet", "pet.nii.gz"]

    makers = {name: maker for name, maker in locals().items() if callable(maker) and name != "image"}
    return lambda name: makers[name]()


INGEST = {
    "none": "IMG_NO_FILE absent.nii.gz",
    "no_folder": "IMG_NO_FILE absent",
    "no_dicom": "DCM_NONE notes",
    "ct_only": "DCM_NONE ct",
    "weight": "PET_WEIGHT",
    "dose": "PET_DOSE",
    "two_series": "SER_AMBIGUOUS two",
    "missing_slice": "SER_MISSING_SLICE pet",
    "frames_lie": "DCM_BAD_FRAMES 00001.dcm",
    "truncated": "NII_TRUNCATED cut.nii.gz",
    "empty_file": "NII_EMPTY empty.nii",
    "not_nifti": "NII_NOT_NIFTI notes.nii",
    "trailing": "NII_TRAILING more.nii",
    "sheared": "NII_BAD_AFFINE sheared.nii.gz",
    "stretched": "NII_AMBIGUOUS_AFFINE stretched.nii",
    "metres": "NII_BAD_SPACING metres.nii",
    "nan": "IMG_NONFINITE nan.nii.gz",
    "constant": "IMG_CONSTANT",
    "mask_shape": "PAIR_GRID_MISMATCH",
    "mask_place": "PAIR_GRID_MISMATCH",
    "mask_values": "NII_BAD_LABEL mask.nii.gz",
    "mask_absent": "IMG_NO_FILE absent.nii.gz",
    "ct_far": "PAIR_NO_OVERLAP",
    "ct_of_another": "PAIR_PATIENT_MISMATCH",
    "ct_elsewhere": "PAIR_NO_OVERLAP",
    "bqml_no_weight": "PET_WEIGHT bqml.nii",
    "bqml_no_dose": "PET_DOSE bqml.nii",
    "bqml_grams": "PET_WEIGHT",
    "hu_as_pet": "SET_NO_PET",
    "bad_name": "CFG_NAME",
    "own_name": "CFG_NAME",
    "no_workers": "CFG_RANGE --workers",
    "no_pet_inside": "SET_NO_PET",
    "no_ct_inside": "SET_NO_CT",
    "no_tree": "IMG_NO_FILE absent",
    "collision": "SET_CASE_COLLISION",
    "all_bad": "NII_",
}


@pytest.mark.parametrize("mistake", INGEST)
def test_ingest(mistake: str, bad: Callable[[str], list[str]], tmp_path: Path, refused: Refused) -> None:
    source, *options = bad(mistake)
    before = tree(tmp_path)
    line = refused("ingest", source, tmp_path / "cohort", *options)
    assert line.startswith(INGEST[mistake]), line
    assert str(tmp_path) not in line
    assert not (tmp_path / "cohort").exists()
    assert tree(tmp_path) == before


def test_what_may_be_wrong_is_noted(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be told from a lawful image is ingested, with a line that says so."""
    suv = nibabel.load(scans / "suv.nii.gz")
    voxels = np.asarray(suv.dataobj, dtype=np.float64)
    clipped = np.clip(np.rint(voxels / np.quantile(voxels, 0.97) * 32767), 0, 32767).astype(np.int16)
    long = np.rint(voxels / voxels.max() * 2e9).astype(np.int32)
    for note, values, slope in (("saturated", clipped, 1e-4), ("rounded_to_float32", long, 1e-8)):
        path = tmp_path / f"{note}.nii"
        nibabel.save(nibabel.Nifti1Image(values, suv.affine), path)
        data = bytearray(path.read_bytes())
        data[112:116] = np.float32(slope).tobytes()  # scl_slope
        path.write_bytes(data)
        main(["ingest", str(path), str(tmp_path / "cohort"), "--case", note, "--units", "SUVbw"])
        assert f"note full: {note} (1 of 1 cases" in capsys.readouterr().err


def test_names_that_differ_in_capitals_only_are_told(scans: Path, tmp_path: Path, refused: Refused) -> None:
    main(["ingest", str(scans / "suv.nii.gz"), str(tmp_path / "cohort"), "--case", "Patient01"])
    line = refused("ingest", scans / "pet", tmp_path / "cohort", "--case", "patient01")
    assert line.startswith("SET_CASE_COLLISION case patient01: case Patient01 is there already")


@pytest.mark.parametrize(("kind", "code"), [(RuntimeError, "SET_CASE_FAILED"), (MemoryError, "IMG_TOO_LARGE")])
def test_what_nobody_expected_is_one_line_without_its_words(
    scans: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], code: str
) -> None:
    def fails(*_: object) -> None:
        raise kind("DOE^JOHN")

    monkeypatch.setattr("petscale.data.sources.plan_examination", fails)
    line = refused("ingest", scans / "suv.nii.gz", tmp_path / "cohort", "--case", "one")
    assert line.startswith(f"{code} case one: ")
    assert "DOE" not in line
    assert not (tmp_path / "cohort").exists()


def test_a_refused_ingest_leaves_a_filled_cohort_as_it_was(scans: Path, tmp_path: Path, refused: Refused) -> None:
    cohort = tmp_path / "cohort"
    main(["ingest", str(scans / "suv.nii.gz"), str(cohort), "--case", "one"])
    before = tree(cohort)
    assert refused("ingest", tmp_path / "absent.nii", cohort).startswith("IMG_NO_FILE")
    line = refused("ingest", scans / "pet", cohort, "--case", "one")
    assert line.startswith("SET_CASE_EXISTS case one")
    assert tree(cohort) == before
    main(["verify", str(cohort)])


def test_a_folder_of_something_else_is_not_a_cohort(scans: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    assert refused("ingest", scans / "suv.nii.gz", tmp_path / "thesis").startswith("STORE_NOT_EMPTY thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    assert refused("ingest", scans / "suv.nii.gz", tmp_path / "thesis" / "chapter.tex").startswith("DISK_")


def test_a_batch_goes_on_and_names_the_refused_case(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    for name in ("good", "worse"):
        (tmp_path / "many" / name).mkdir(parents=True)
        shutil.copy(scans / "suv.nii.gz", tmp_path / "many" / name / "pet.nii.gz")
    whole = (scans / "suv.nii.gz").read_bytes()
    (tmp_path / "many" / "worse" / "pet.nii.gz").write_bytes(whole[:900])
    words = ["ingest", str(tmp_path / "many"), str(tmp_path / "cohort"), "--pet", "pet.nii.gz", "--names", "folder"]
    with pytest.raises(SystemExit, match="2"):
        main(words)
    told = capsys.readouterr().err
    assert "refused worse: NII_TRUNCATED" in told
    assert told.splitlines()[-1].startswith("petscale: SET_REFUSED cohort: 1 of 2 cases were refused")
    main(["verify", str(tmp_path / "cohort")])
    assert capsys.readouterr().out.splitlines()[0] == "good"
    words[2] = str(tmp_path / "strict")
    assert refused(*words, "--strict").startswith("NII_TRUNCATED")


@pytest.mark.parametrize("command", ["ingest", "train", "simulate"])
def test_a_cohort_that_someone_else_writes(
    command: str, scans: Path, cohort: Path, tmp_path: Path, refused: Refused
) -> None:
    busy = tmp_path / "busy"
    words = {
        "ingest": ["ingest", scans / "suv.nii.gz", busy],
        "simulate": ["simulate", cohort, busy, "--drf", "4"],
        "train": ["train", cohort, "--run", busy, *SMALL],
    }[command]
    with integrity.exclusive(busy, purpose="a test"):
        assert refused(*words).startswith("STORE_BUSY busy")
        assert [p.name for p in busy.iterdir()] == [".lock"]


def test_a_cohort_of_a_newer_schema(scans: Path, tmp_path: Path, refused: Refused, run: Path) -> None:
    cohort = tmp_path / "cohort"
    main(["ingest", str(scans / "suv.nii.gz"), str(cohort), "--case", "one"])
    facts = json.loads((cohort / "zarr.json").read_text())
    facts["attributes"]["petscale"]["schema"] = 99
    (cohort / "zarr.json").write_text(json.dumps(facts))
    before = tree(cohort)
    for words in (
        ["verify", cohort],
        ["ingest", scans / "suv.nii.gz", cohort, "--case", "two"],
        ["train", cohort, "--run", tmp_path / "new"],
        ["simulate", cohort, tmp_path / "new"],
        ["evaluate", run, cohort],
        ["synthesize", run, cohort, "--case", "one"],
    ):
        assert refused(*words).startswith("STORE_SCHEMA cohort"), words
    assert tree(cohort) == before
    assert not (tmp_path / "new").exists()


# -- simulate and phantom ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--drf", "0"], "CFG_RANGE LowDoseConfig.drf"),
        (["--drf", "0.5"], "CFG_RANGE LowDoseConfig.drf"),
        (["--drf", "nan"], "CFG_RANGE LowDoseConfig.drf"),
        (["--drf", "4", "1e9"], "CFG_RANGE LowDoseConfig.drf"),
        (["--realisations", "0"], "CFG_RANGE --realisations"),
        (["--truth", "labels"], "PAIR_UNITS"),
        (["--truth", "fulll"], "SET_NO_IMAGE"),
    ],
)
def test_simulate(options: list[str], code: str, cohort: Path, tmp_path: Path, refused: Refused) -> None:
    line = refused("simulate", cohort, tmp_path / "new", *options)
    assert line.startswith(code), line
    assert not (tmp_path / "new").exists()


def test_phantom_without_cases(tmp_path: Path, refused: Refused) -> None:
    assert refused("phantom", tmp_path / "new", "--cases", "0").startswith("CFG_RANGE --cases")
    assert not (tmp_path / "new").exists()


def empty_cohort(folder: Path) -> Path:
    from storage.ingest import create_cohort

    create_cohort(folder)
    return folder


def test_an_empty_cohort(tmp_path: Path, refused: Refused, run: Path) -> None:
    cohort = empty_cohort(tmp_path / "cohort")
    assert refused("train", cohort, "--run", tmp_path / "new").startswith("SET_TOO_SMALL")
    assert refused("simulate", cohort, tmp_path / "new").startswith("SET_TOO_SMALL")
    assert refused("evaluate", run, cohort).startswith("SET_NO_TEST")
    assert refused("synthesize", run, cohort, "--case", "one").startswith("SET_NO_CASE")
    assert not (tmp_path / "new").exists()


CG = ["--recipe", "cg_3dsrgan", "--set", "recipe.doses=4,20", "recipe.perceptual=masked", "recipe.patch=32,32,32"]
CG += ["feed.source=low_drf4,low_drf20"]
S3PET = ["--recipe", "s3pet", "--set", "recipe.window=32", "feed.source=low_drf4"]
CYCLE_GAN = ["--recipe", "cycle_gan", "--set", "recipe.patch=1,24,24", "feed.source=low_drf4"]

# -- train ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--recipe", "sgsgann"], "CFG_RECIPE recipe: unknown 'sgsgann'; did you mean 'sgsgan'?"),
        (["--set", "recipe.pach=32"], "CFG_FIELD --set recipe: unknown 'pach'; did you mean 'patch'?"),
        (["--set", "recpie.patch=32"], "CFG_FIELD --set: unknown 'recpie'; did you mean 'recipe'?"),
        (["--set", "loop.log_evry=3"], "CFG_FIELD --set loop: unknown 'log_evry'; did you mean 'log_every'?"),
        (["--set", "recipe.patch"], "CFG_SET"),
        (["--set", "patch=32,32,32"], "CFG_SET"),
        (["--set", "recipe.patch=32"], "CFG_VALUE recipe.patch"),
        (["--set", "recipe.patch=32,32"], "CFG_VALUE recipe.patch"),
        (["--set", "recipe.patch=a,b,c"], "CFG_VALUE recipe.patch"),
        (["--set", "recipe.patch=32.5,32,32"], "CFG_VALUE recipe.patch"),
        (["--set", "recipe.patch={[]:1}"], "CFG_VALUE recipe.patch"),
        (["--set", "recipe.lr=fast"], "CFG_VALUE recipe.lr"),
        (["--set", "recipe.lr=1e999"], "CFG_VALUE recipe.lr"),
        (["--set", "recipe.lr=" + "9" * 400], "CFG_VALUE recipe.lr"),
        (["--set", "recipe.lr=-1"], "CFG_RANGE"),
        (["--set", "recipe.use_noise=1"], "CFG_VALUE recipe.use_noise"),
        (["--set", "recipe.synthesis=dcitm"], "CFG_VALUE recipe.synthesis: unknown 'dcitm'; did you mean 'dcitn'?"),
        (["--set", "engine.zero_stage=3"], "CFG_VALUE engine.zero_stage"),
        (["--set", "recipe.patch=30,32,32"], "CFG_PATCH_SIZE"),
        (["--set", "recipe.patch=16,32,32"], "CFG_PATCH_SIZE"),
        (["--set", "recipe.patch=64,64,64", "recipe.rois=()", "feed.source=low_drf4"], "IMG_TOO_SMALL case phantom-"),
        ([*SMALL, "recipe.rois=livre"], "SET_NO_LABELS case phantom-"),
        ([*SMALL, "feed.source=low_drf7"], "SET_NO_IMAGE case phantom-"),
        ([*SMALL, "feed.source=()"], "CFG_RANGE feed.source"),
        ([*SMALL, "feed.suv_scale=0"], "CFG_RANGE feed.suv_scale"),
        ([*SMALL, "feed.cases_per_step=0"], "CFG_RANGE feed.cases_per_step"),
        ([*SMALL, "loop.log_every=0"], "CFG_RANGE loop.log_every"),
        ([*SMALL, "loop.seed=-1"], "CFG_RANGE loop.seed"),
        ([*SMALL, "split.test=nobody"], "SET_NO_CASE case nobody"),
        ([*SMALL, "split.test_fraction=1.5"], "CFG_RANGE split.test_fraction"),
        ([*SMALL, "split.test_fraction=0.99"], "SET_TOO_SMALL split"),
        ([*SMALL, "--workers", "3"], "CFG_WORKERS cluster.workers"),
        ([*SMALL, "--workers", "0"], "CFG_RANGE cluster.workers"),
        ([*SMALL, "--workers", "2", "--device", "cuda"], "CFG_RESOURCES cluster.workers: 2 GPU wanted"),
        ([*SMALL, "cluster.cpus_per_worker=4096"], "CFG_RESOURCES cluster.workers: 4096 CPU wanted"),
        ([*CG, "recipe.perceptual=vgg16"], "CFG_BACKBONE"),
        ([*CG, "recipe.doses=4,10,20"], "CFG_DOSES feed.source"),
        ([*CG, "split.validation_fraction=0"], "SET_NO_VALIDATION split"),
        ([*CG, "feed.source=low_drf4,low_drf50", "recipe.doses=4,50"], "SET_NO_IMAGE case phantom-"),
        (["--recipe", "cg_3dsrgan", "--set", "recipe.perceptual=masked"], "SET_NO_IMAGE case phantom-"),
        ([*S3PET, "feed.source=low_drf4,low_drf20"], "CFG_DOSES feed.source"),
        ([*S3PET, "recipe.low_samples=0"], "CFG_STAGE s3pet.low_samples"),
        ([*CYCLE_GAN, "split.test_fraction=0.75"], "SET_NO_UNPAIRED train"),
        ([*S3PET, "recipe.encoders=absent.safetensors"], "CKPT_NONE absent.safetensors"),
        (["--recipe", "s3pet", "--set", "feed.source=low_drf4"], "IMG_TOO_SMALL case phantom-"),
        (["--config", "absent.json"], "CFG_NO_FILE absent.json"),
        (["--config", "."], "CFG_NO_FILE .: a folder; name a file; a run's configuration is ./config.json"),
    ],
)
def test_train(
    options: list[str], told: str, cohort: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    before = tree(cohort)
    line = refused("train", cohort, "--run", tmp_path / "run", *options)
    assert line.startswith(told), line
    assert not (tmp_path / "run").exists()
    assert tree(cohort) == before


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("not json", "CFG_JSON mine.json"),
        ("[" * 100_000, "CFG_JSON mine.json"),
        ("[1]", "CFG_VALUE configuration"),
        ('{"feed": 3}', "CFG_VALUE feed"),
        ('{"recipe": ["sgsgan"]}', "CFG_RECIPE recipe"),
        ('{"recipe": "sgsgam"}', "CFG_RECIPE recipe: unknown 'sgsgam'; did you mean 'sgsgan'?"),
        ('{"fed": {}}', "CFG_FIELD configuration: unknown 'fed'; did you mean 'feed'?"),
        ('{"model": {"lrr": 1}}', "CFG_FIELD recipe: unknown 'lrr'; did you mean 'lr'?"),
        ('{"model": {"lr": NaN}}', "CFG_VALUE recipe.lr"),
        ('{"model": {"lr": "1e-4"}}', "CFG_VALUE recipe.lr"),
        ('{"model": {"patch": null}}', "CFG_VALUE recipe.patch"),
        ('{"loop": {"save_every": 1.5}}', "CFG_VALUE loop.save_every"),
        ('{"engine": {"zero_stage": "1"}}', "CFG_VALUE engine.zero_stage"),
        ('{"config": {"loop": {"kep": 1}}}', "CFG_FIELD loop: unknown 'kep'; did you mean 'keep'?"),
    ],
)
def test_a_configuration_file(content: str, code: str, cohort: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "mine.json").write_text(content)
    line = refused("train", cohort, "--run", tmp_path / "run", "--config", tmp_path / "mine.json")
    assert line.startswith(code), line
    assert not (tmp_path / "run").exists()


def test_train_without_a_cohort(tmp_path: Path, refused: Refused) -> None:
    assert refused("train", tmp_path / "absent", "--run", tmp_path / "run").startswith("STORE_NONE absent")
    page = tmp_path / "config.json"
    page.write_text("{}")
    assert refused("inspect", page).startswith("STORE_NONE config.json: a file, and no folder of a cohort")
    assert not (tmp_path / "run").exists()


OF_RUNS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "synthesize": lambda run, cohort, new: [run, cohort],
    "evaluate": lambda run, cohort, new: [run, cohort],
    "report": lambda run, cohort, new: [run, cohort],
    "calibrate": lambda run, cohort, new: [run, cohort, "--flips", "x"],
    "card": lambda run, cohort, new: [run, new / "new.safetensors"],
    "track": lambda run, cohort, new: [run, new / "store", "--tool", "mlflow"],
}


@pytest.mark.parametrize("command", OF_RUNS)
def test_another_folder_in_the_place_of_a_run_is_told_for_what_it_is(
    command: str, cohort: Path, tmp_path: Path, refused: Refused
) -> None:
    for kind, mark in (("study", "roles.json"), ("folds", "folds.json"), ("empty", "")):
        (tmp_path / kind).mkdir()
        if mark:
            (tmp_path / kind / mark).write_text("{}")
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    told = {
        tmp_path / "typo": "typo: no such folder; name the folder that `petscale train` wrote",
        tmp_path / "empty": "empty: no run in this folder; name the folder that `petscale train` wrote",
        tmp_path / "scan.nii.gz": "scan.nii.gz: a file, and no folder of a run",
        cohort: f"{cohort.name}: a cohort, and no run; name the folder of a run",
        tmp_path / "study": "study: a study, and no run; name the run of one of its trials: trials/0",
    }
    if command in ("card", "track"):  # the others take folds
        told[tmp_path / "folds"] = "folds: the folds of several runs; name one run in it: fold-0"
    for folder, words in told.items():
        line = refused(command, *OF_RUNS[command](folder, cohort, tmp_path))
        assert line.startswith("CFG_RUN_FOLDER "), line
        assert words in line


def test_another_folder_in_the_place_of_a_cohort_is_told_for_what_it_is(
    cohort: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    inside = cohort / "cases" / "phantom-000"
    for words in (["inspect"], ["verify"], ["train", "--run", tmp_path / "new"], ["tune", "--study", tmp_path / "new"]):
        line = refused(*words, tmp_path / "run")
        assert line.startswith("STORE_NONE run: a run, and no cohort; name a cohort"), line
        for folder in (cohort / "cases", inside / "full"):
            line = refused(*words, folder)
            assert line.startswith(
                f"STORE_NONE {folder.name}: a folder inside a cohort; name the cohort's own: {cohort.name}"
            )
    assert refused("train", cohort, "--run", tmp_path / "run/config.json").startswith(
        "CFG_RUN_FOLDER config.json: a file"
    )
    assert refused("train", cohort, "--run", cohort).startswith(f"CFG_RUN_FOLDER {cohort.name}: ")
    for folder, kind in ((cohort, "a cohort"), (tmp_path / "run", "a run")):
        line = refused("ingest", folder, tmp_path / "new")
        assert line.startswith(f"DCM_NONE {folder.name}: {kind} of petscale, and no scan"), line
    assert not (tmp_path / "new").exists()


def test_a_run_of_other_settings(
    cohort: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(sessions, "session", lambda *_: nullcontext())
    monkeypatch.setattr(driver, "train_on_ray", lambda plan, **_: None)
    main(["train", str(cohort), "--run", str(run), *SMALL])
    before = tree(run)
    line = refused("train", cohort, "--run", run, *SMALL, "recipe.lr=0.5")
    assert line.startswith("CKPT_DRIFT")
    assert "recipe.lr" in line
    assert refused("train", cohort, "--run", run, *SMALL, "feed.seed=3").startswith("CKPT_DRIFT")
    monkeypatch.setitem(BUILT_IN, "twin", BUILT_IN["sgsgan"])
    assert refused("train", cohort, "--run", run, "--recipe", "twin", *SMALL).startswith("CKPT_RECIPE")
    assert tree(run) == before
    # What does not decide the result may change.
    main(["train", str(cohort), "--run", str(run), *SMALL, "--workers", "2", "--set", "loop.log_every=3"])


def test_a_run_folder_that_holds_other_files(cohort: Path, tmp_path: Path, refused: Refused) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.tex").write_text("years of work")
    assert refused("train", cohort, "--run", run, *SMALL).startswith("CFG_RUN_FOLDER run")
    assert [p.name for p in run.iterdir()] == ["thesis.tex"]
    assert refused("train", cohort, "--run", run / "thesis.tex", *SMALL).startswith("CFG_RUN_FOLDER thesis.tex: a file")


# -- synthesize and evaluate ------------------------------------------------------------------------------------------


def test_no_run(tmp_path: Path, scans: Path, cohort: Path, refused: Refused) -> None:
    absent = tmp_path / "absent"
    out = tmp_path / "out.nii.gz"
    assert refused("synthesize", absent, scans / "suv.nii.gz", "--output", out).startswith("CFG_RUN_FOLDER absent")
    assert refused("evaluate", absent, cohort).startswith("CFG_RUN_FOLDER absent")
    assert refused("report", absent, cohort).startswith("CFG_RUN_FOLDER absent")
    assert refused("verify", absent).startswith("STORE_NONE absent")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "foreign", "garbled", "other model"])
def test_weights_that_are_not_the_runs(damage: str, tmp_path: Path, scans: Path, run: Path, refused: Refused) -> None:
    import torch
    from safetensors.torch import save

    from trainers import checkpoint

    weights = run / WEIGHTS
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "foreign":
        weights.write_bytes(save({"w": torch.zeros(2)}))
    elif damage == "garbled":
        weights.write_bytes(save({"w": torch.zeros(2)}, metadata={"config": "{"}))
    else:
        tensors, facts = checkpoint.read_weights(weights)
        tensors.popitem()
        checkpoint.write_weights(weights, tensors, facts)
    line = refused("synthesize", run, scans / "suv.nii.gz", "--output", tmp_path / "out.nii.gz")
    assert line.startswith("CKPT_"), line


def test_synthesize(tmp_path: Path, scans: Path, cohort: Path, run: Path, refused: Refused) -> None:
    there, old = tmp_path / "there", tmp_path / "old.nii.gz"
    there.mkdir()
    old.write_text("a result of last year")
    before = tree(tmp_path)
    new = tmp_path / "made" / "new"
    for words, code in (
        ([scans / "suv.nii.gz"], "CFG_OUTPUT"),
        ([scans / "suv.nii.gz", "--output", old], "DISK_EXISTS old.nii.gz"),
        ([scans / "pet", "--output", there], "DISK_EXISTS there"),
        ([scans / "suv.nii.gz", "--output", new], "IMG_FORMAT new"),
        ([scans / "pet", "--output", f"{new}.nii.gz"], "IMG_FORMAT new.nii.gz"),
        ([tmp_path / "absent.nii.gz", "--output", f"{new}.nii.gz"], "IMG_NO_FILE absent.nii.gz"),
        ([tmp_path / "absent", "--output", new], "IMG_NO_FILE absent"),
        ([scans / "ct", "--output", new], "DCM_NONE ct"),
        ([scans / "bqml.nii", "--units", "Bq/mL", "--output", f"{new}.nii"], "PET_WEIGHT bqml.nii"),
        ([scans / "bqml.nii", "--units", "HU", "--output", f"{new}.nii"], "SET_NO_PET"),
        ([scans / "suv.nii.gz", "--output", old / "new.nii.gz"], "DISK_"),
        ([cohort, "--case", "nobody"], "SET_NO_CASE case nobody"),
        ([cohort, "--case", "phantom-000", "--image", "../../low"], "SET_NO_IMAGE"),
        ([cohort, "--case", "phantom-000", "--output", new], "CFG_OUTPUT"),
        ([scans, "--case", "phantom-000"], "STORE_NONE"),
        ([cohort, "--case", "phantom-000", "--weight-kg", "70"], "CFG_NO_EFFECT --weight-kg"),
        ([scans / "suv.nii.gz", "--dose-mbq", "300", "--output", f"{new}.nii"], "CFG_NO_EFFECT --dose-mbq"),
        ([scans / "suv.nii.gz", "--image", "low", "--output", f"{new}.nii"], "CFG_NO_EFFECT --image"),
    ):
        line = refused("synthesize", run, *words)
        assert line.startswith(code), (words, line)
        assert tree(tmp_path) == before, words
        assert not new.parent.exists(), words


def test_evaluate_without_test_cases(cohort: Path, run: Path, tmp_path: Path, refused: Refused) -> None:
    before = tree(run)
    for command in ("evaluate", "report"):
        assert refused(command, run, cohort).startswith("SET_NO_TEST")
    (run / CONFIG).write_text("{}")
    assert refused("evaluate", run, cohort).startswith("CFG_RUN_FOLDER")
    (run / WEIGHTS).unlink()
    del before[WEIGHTS], before[CONFIG]
    assert tree(run).keys() == {*before, CONFIG}


# -- disks, processes, usage ------------------------------------------------------------------------------------------


def test_the_exit_of_a_real_process(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "petscale", "ingest", str(tmp_path / "absent.nii.gz"), str(tmp_path / "cohort")]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("petscale: IMG_NO_FILE absent.nii.gz: ")
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["ingestt", "a", "b"],
        ["ingest"],
        ["train", "cohort"],
        ["train", "cohort", "--run", "run", "--worker", "2"],
        ["phantom", "cohort", "--drf", "four"],
        ["phantom", "cohort", "--body.shape", "1", "1", "1"],
        ["ingest", "a", "b", "--units", "kBq"],
    ],
)
def test_usage(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir())


def on_a_full_disk(tmp_path: Path, size: str, command: list[str]) -> tuple[int, str, list[str]]:
    """Run a command with a tmpfs of ``size`` at tmp_path/disk; returns exit code, stderr and what is left on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    probe = ["unshare", "-Urm", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no user namespace in which a small disk could be mounted")
    script = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && shift 2 && "$@"; code=$?; find "$DISK" -type f; exit $code'
    ended = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", size, str(disk), sys.executable, "-m", "petscale", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DISK": str(disk), "OMP_NUM_THREADS": "1"},
    )
    return ended.returncode, ended.stderr, ended.stdout.splitlines()


@pytest.mark.parametrize("size", ["32k", "220k"])
def test_ingest_onto_a_full_disk(size: str, scans: Path, tmp_path: Path) -> None:
    words = ["ingest", str(scans / "bqml.nii"), str(tmp_path / "disk" / "cohort"), "--units", "Bq/mL"]
    code, err, left = on_a_full_disk(tmp_path, size, [*words, "--weight-kg", "70", "--dose-mbq", "300"])
    assert code == 2, err
    assert next(line for line in err.splitlines() if line.startswith("petscale:")).startswith("petscale: DISK_FULL ")
    assert "Traceback" not in err
    assert left == []


@pytest.mark.parametrize("size", ["40k", "300k"])
def test_synthesize_onto_a_full_disk(size: str, scans: Path, run: Path, tmp_path: Path) -> None:
    words = ["synthesize", str(run), str(scans / "suv.nii.gz"), "--output", str(tmp_path / "disk" / "out.nii.gz")]
    code, err, left = on_a_full_disk(tmp_path, size, words)
    assert code == 2, err
    assert "petscale: DISK_FULL " in err
    assert "Traceback" not in err
    assert left == []
