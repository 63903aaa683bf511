"""From a CT to a PET: a study's folder in, training by either system, a bare CT synthesized, lesions found."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from untrained_runs import prove

from petscale import config as configs
from petscale.cli import main
from petscale.data.ingest import open_case
from petscale.data.layouts.options import Options
from petscale.data.phantom import phantom_plans
from petscale.data.sources import find_examinations
from petscale.evaluation.baselines import BY_HEIGHT, BY_HU, BY_ORGAN
from petscale.evaluation.scores import SYNTHESIZED, read_evaluation
from petscale.folders import CONFIG, EVALUATION, REPORT, WEIGHTS
from storage import dicom, geometry, integrity, nifti
from storage.ingest import ingest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.reader import open_cohort
from storage.source import HU, SUV, ArraySource
from trainers import checkpoint
from trainers.engine import plain_engine
from trainers.systems import RECIPES

SPACING_MM = (25.0, 15.0, 14.0)  # what the run below says that it was trained at: the CT of ``scans`` is finer
TINY = {
    "cascade": {
        "mode": "2.5d",
        "patch": (3, 32, 32),
        "width": 2,
        "downs": 3,
        "critic_width": 2,
        "critic_strides": (2, 1),
        "epoch_samples": 4,
        "epochs": 2,
        "validate_batches": 1,
    },
    "virtual_pet": {
        "patch": (1, 32, 32),
        "fcn_widths": (2, 2, 4, 4, 4),
        "fcn_fc": 4,
        "fcn_fc6_kernel": 3,
        "generator_width": 2,
        "generator_downs": 3,
        "critic_width": 2,
        "critic_strides": (2, 1),
        "blend_levels": 1,
        "fcn_samples": 8,
        "cgan_samples": 8,
        "epoch_samples": 4,
        "validate_batches": 1,
    },
}


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms with hot and cold spots in the liver, CT and full dose; read only."""
    body = PhantomConfig(
        shape=(20, 30, 36), spacing_mm=(14.0, 9.0, 9.0), axial_coverage=(0.3, 0.62), num_lesions=3,
        lesion_organs=("liver",), lesion_hu=(10.0, 40.0), num_cysts=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("patients")
    scan = LowDoseConfig(million_prompts_per_bed=20.0, iterations=1)
    ingest(folder, phantom_plans(4, body, scan, []), strict=True)
    return folder


@pytest.fixture(params=list(TINY))
def ct_run(request: pytest.FixtureRequest, tmp_path: Path, patients: Path) -> Path:
    """What training leaves behind, its weights fresh; tested on one patient."""
    torch.manual_seed(0)
    spec = RECIPES[request.param]
    config = configs.RunConfig(recipe=request.param, model=spec.Config(**TINY[request.param]))
    recipe = spec.build(config.model, make_engine=plain_engine, patches_per_step=config.patches_per_step)
    opened = open_cohort(patients)
    folder = tmp_path / "run"
    folder.mkdir()
    facts = {"config": configs.to_json(config), "command": "petscale train", "cohort": "patients", "unpaired": []}
    facts |= {"train": opened.cases[1:], "validation": [], "test": opened.cases[:1]}
    facts["cases"] = {name: integrity.manifest(opened.case(name).folder)["root"] for name in opened.cases}
    (folder / CONFIG).write_text(json.dumps(facts))
    about = {"recipe": request.param, "config": json.dumps(facts["config"])}
    about["starts_from"] = json.dumps({"units": HU, "spacing_mm": SPACING_MM})
    checkpoint.write_weights(folder / WEIGHTS, recipe.weights(), about)
    prove(folder)
    return folder


# ---- in -------------------------------------------------------------------------------------------------------------


def test_a_study_in_one_folder_gives_its_pet_and_the_ct_of_its_frame(scans: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    for series in ("pet", "ct"):
        shutil.copytree(scans / series, study / series)
    main(["ingest", str(study), str(tmp_path / "one"), "--ct", str(study)])
    main(["ingest", str(tmp_path), str(tmp_path / "many"), "--pet", "pet", "--ct", ".", "--names", "folder"])
    one, many = (open_cohort(tmp_path / name) for name in ("one", "many"))
    first, second = one.case(one.cases[0]), many.case("study")
    for image in ("full", "ct"):
        a, b = (case.image(image) for case in (first, second))
        np.testing.assert_array_equal(a.read(0, a.grid.shape[0]), b.read(0, b.grid.shape[0]))


def test_the_pet_goes_onto_the_grid_of_the_ct_where_that_is_chosen(
    scans: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    words = ["ingest", str(scans / "pet"), str(tmp_path / "cohort"), "--case", "one", "--grid", "ct"]
    assert refused(*words).startswith("SET_NO_CT pet")
    assert not (tmp_path / "cohort").exists()
    main([*words, "--ct", str(scans / "ct")])
    case = open_cohort(tmp_path / "cohort").case("one")
    ct, pet = dicom.open_series(scans / "ct", modality="CT"), dicom.open_series(scans / "pet", modality="PT")
    depth = ct.grid.shape[0]
    assert case.image("full").grid.matches(ct.grid)
    np.testing.assert_array_equal(case.image("ct").read(0, depth), ct.read(0, depth))
    expected = geometry.Resampled(pet, ct.grid, outside=0.0).read(0, depth)
    np.testing.assert_allclose(case.image("full").read(0, depth), expected, atol=1e-4)
    activity = [
        float(image.read(0, image.grid.shape[0]).sum()) * image.grid.voxel_ml for image in (case.image("full"), pet)
    ]
    assert activity[0] == pytest.approx(activity[1], rel=0.02)


def test_images_go_onto_another_grid_by_splines_where_that_is_chosen(scans: Path, tmp_path: Path) -> None:
    options = Options(ct=str(scans / "ct"), grid="ct", interpolation="cubic")
    (named,), _ = find_examinations(scans / "pet", "", options, None, "one", "hash")
    files = named.examination.files
    plan, before = open_case(files, tmp_path), open_case(replace(files, interpolation="linear"), tmp_path)
    assert plan.images["full"].provenance["resampled"] == "cubic"
    assert before.images["full"].provenance["resampled"] == "linear"
    assert plan.fingerprint != before.fingerprint
    fine, linear = (one.images["full"].read(10, 14) for one in (plan, before))
    assert fine.min() >= 0.0
    assert not np.allclose(fine, linear, atol=0.01)
    onto_pet = open_case(replace(files, grid="pet"), tmp_path)
    assert onto_pet.images["ct"].provenance["resampled"] == "cubic"


def test_a_ct_that_is_not_in_hu_is_refused(scans: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    ct = dicom.open_series(scans / "ct", modality="CT")
    values_hu = ct.read(0, ct.grid.shape[0])
    for name, voxels in (("unit", (values_hu + 1000) / 3000), ("shifted", values_hu + 1024)):
        path = tmp_path / f"{name}.nii"
        nifti.write_nifti(path, ct.grid, ArraySource(voxels.astype(np.float32), ct.grid, HU).read)
        told = refused("ingest", scans / "suv.nii.gz", tmp_path / "cohort", "--ct", path)
        assert told.startswith("CT_UNITS")
        assert not (tmp_path / "cohort").exists()


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["feed.suv_scale=7"], "CFG_SCALE feed.suv_scale"),
        (["feed.source=ct,full"], "CFG_INPUTS feed.source"),
        (["feed.source=low_drf4"], "SET_NO_IMAGE case phantom-000"),
        (["feed.source=full"], "SET_WRONG_UNITS case phantom-"),
        (["feed.target=ct"], "SET_WRONG_UNITS case phantom-"),
        (["split.validation_fraction=0"], "SET_NO_VALIDATION split"),
    ],
)
@pytest.mark.parametrize("recipe", list(TINY))
def test_what_a_ct_system_cannot_use_is_refused_before_the_cluster_starts(
    recipe: str,
    settings: list[str],
    told: str,
    patients: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    no_ray: None,
) -> None:
    words = ["train", patients, "--run", tmp_path / "run", "--recipe", recipe, "--set", *_settings(recipe), *settings]
    assert refused(*words).startswith(told.replace("phantom-000", "phantom-"))
    assert not (tmp_path / "run").exists()


def test_a_low_dose_system_refuses_a_ct(
    cohort: Path, tmp_path: Path, refused: Callable[..., str], no_ray: None
) -> None:
    words = [
        "train",
        cohort,
        "--run",
        tmp_path / "run",
        "--set",
        "feed.source=ct",
        "recipe.rois=()",
        "recipe.patch=24,24,24",
    ]
    assert refused(*words).startswith("SET_WRONG_UNITS")


def _settings(recipe: str) -> list[str]:
    return [f"recipe.{field}={value}" for field, value in TINY[recipe].items()]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", list(TINY))
def test_from_training_to_the_report(recipe: str, patients: Path, scans: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    chosen = [*_settings(recipe), "feed.cases_per_step=2", "loop.picture_every=3", "split.test_fraction=0.5"]
    main(["train", str(patients), "--run", str(run), "--recipe", recipe, "--set", *chosen])
    facts = json.loads((run / CONFIG).read_bytes())
    assert len(facts["validation"]) == 1
    assert any(line["event"] == "validation" for line in map(json.loads, (run / "metrics.jsonl").open()))
    assert list((run / "pictures").glob("*.png"))
    _, about = checkpoint.read_weights(run / WEIGHTS)
    assert json.loads(about["starts_from"]) == {"units": HU, "spacing_mm": [14.0, 9.0, 9.0]}
    main(["evaluate", str(run), str(patients), "--detect", "lesion", "--within", "liver", "cyst"])
    main(["report", str(run), str(patients)])
    page = (run / REPORT).read_text()
    assert f"<h1>{recipe}: CT to PET</h1>" in page
    assert "<h3>Lesion detection</h3>" in page
    assert 'alt="Anterior MIP of CT' in page
    main(["synthesize", str(run), str(scans / "ct"), "--output", str(tmp_path / "pet")])
    assert dicom.open_series(tmp_path / "pet", modality="PT").units == SUV


# ---- out ------------------------------------------------------------------------------------------------------------


def test_a_ct_alone_becomes_a_pet_at_the_spacing_of_the_run(ct_run: Path, scans: Path, tmp_path: Path) -> None:
    ct = dicom.open_series(scans / "ct", modality="CT")
    nifti.write_nifti(tmp_path / "ct.nii", ct.grid, ct.read)
    main(["synthesize", str(ct_run), str(tmp_path / "ct.nii"), "--output", str(tmp_path / "pet.nii.gz")])
    main(["synthesize", str(ct_run), str(scans / "ct"), "--output", str(tmp_path / "series")])
    grid = geometry.coarser_grid(ct.grid, SPACING_MM)
    made = nibabel.load(tmp_path / "pet.nii.gz")
    assert made.shape == grid.shape[::-1]
    np.testing.assert_allclose(made.affine, grid.affine, atol=1e-4)
    wanted = np.asarray(made.dataobj).T
    assert wanted.min() >= 0

    series = [pydicom.dcmread(file) for file in sorted((tmp_path / "series").iterdir())]
    original = pydicom.dcmread(next((scans / "ct").iterdir()))
    assert {(ds.Modality, ds.Units, ds.SUVType) for ds in series} == {("PT", "GML", "BW")}
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert {ds[keyword].value for ds in series} == {original[keyword].value}
    source = dicom.open_series(tmp_path / "series", modality="PT")
    assert source.grid.matches(grid)
    bound = 1e-3 * max(float(wanted.max()), 1e-3)
    assert np.abs(source.read(0, grid.shape[0]) - wanted).max() <= bound
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    assert np.abs(SimpleITK.GetArrayFromImage(reader.Execute()) - wanted).max() <= bound


def test_a_pet_is_no_ct(ct_run: Path, scans: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "out"
    assert refused("synthesize", ct_run, scans / "pet", "--output", out).startswith("DCM_NONE")
    assert refused("synthesize", ct_run, scans / "suv.nii.gz", "--output", f"{out}.nii").startswith("CT_UNITS")
    assert refused("synthesize", ct_run, scans / "ct", "--output", f"{out}.nii").startswith("IMG_FORMAT")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_a_run_is_scored_beside_the_table_and_searched_for_lesions(ct_run: Path, patients: Path) -> None:
    main(["evaluate", str(ct_run), str(patients), "--detect", "lesion", "--within", "liver", "cyst"])
    evaluation = read_evaluation(ct_run / EVALUATION / "ct")
    assert evaluation.images == (BY_HU, BY_HEIGHT, BY_ORGAN, SYNTHESIZED)
    found = evaluation.metadata["detection"]
    assert isinstance(found, dict)
    assert list(found["images"]) == [BY_HU, BY_HEIGHT, BY_ORGAN, SYNTHESIZED]
    told = found["images"][SYNTHESIZED]["overlap"]
    lesions = next(row.value for row in evaluation.rows if row.definition.metric == "lesions")
    assert (told["num_scans"], told["num_lesions"]) == (1, lesions)
    if "cascade" in (ct_run / CONFIG).read_text():
        assert {"MS-SSIM", "CB 2"} <= {row.definition.metric for row in evaluation.rows}


def test_detection_without_labels_is_refused_before_anything_is_synthesized(
    ct_run: Path, patients: Path, refused: Callable[..., str]
) -> None:
    for words in (["--detect", "tumour"], ["--detect", "lesion", "--within", "pancreas"]):
        assert refused("evaluate", ct_run, patients, *words).startswith("SET_NO_LABELS")
    assert refused("evaluate", ct_run, patients, "--within", "liver").startswith("CFG_SET --within")
    assert not (ct_run / "synthesis").exists()
