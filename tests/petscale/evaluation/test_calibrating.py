"""``petscale calibrate``: learned on validation patients alone, kept for these weights, applied where it is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import pytest
import untrained_runs
from numpy.typing import NDArray

import petscale
from petscale import calibrations
from petscale.averages import Ensemble, open_estimator
from petscale.calibrations import Kept
from petscale.cli import main
from petscale.evaluation.calibrating import HEADINGS, lines, names, verdict
from petscale.folders import CALIBRATION, CONFIG, WEIGHTS
from petscale.reporting.options import ReportOptions
from storage import nifti
from storage.errors import InputError
from storage.integrity import file_digest
from storage.reader import open_cohort

Refused = Callable[..., str]
VALIDATION, TEST = ("phantom-000", "phantom-001"), ("phantom-002",)


@pytest.fixture(scope="module")
def run(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody trained, with two patients for validation and one to test; calibrated by --flips x."""
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    untrained_runs.red_cnn(folder, 0, cohort=open_cohort(cohort), test=TEST, validation=VALIDATION)
    main(["calibrate", str(folder), str(cohort), "--flips", "x"])
    return folder


def voxels(path: Path) -> NDArray[np.float32]:
    return np.asarray(nibabel.load(path).dataobj)


def test_it_is_learned_on_validation_patients_and_checked_on_test_patients(run: Path) -> None:
    kept = calibration_of(run, "x")
    assert kept is not None
    assert (kept.patients, kept.checked_patients, kept.images) == (2, 1, ("low_drf4",))
    assert all(one.at_level == pytest.approx(0.9, abs=1e-3) for one in kept.learned)
    assert {one.patients for one in kept.checked} == {1}
    assert all(len(line) == len(HEADINGS) for line in lines(kept))
    assert names(kept.calibration)[0].startswith("0 to ")
    assert "1 test patient" in verdict(kept)


def test_the_deviation_that_is_written_is_the_calibrated_one_and_says_so(
    run: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(run, plain)
    shutil.rmtree(plain / CALIBRATION)
    found = {}
    for folder in (run, plain):
        place = tmp_path / folder.name / "deviations" / f"{TEST[0]}.nii.gz"
        words = ["--case", TEST[0], "--flips", "x", "--deviation"]
        main(["synthesize", str(folder), str(cohort), *words, str(place)])
        found[folder] = voxels(place), nifti.comment_of(place), capsys.readouterr().err
    image = petscale.average(plain, (cohort, TEST[0]), flips=["x"])
    kept = calibrations.read_all(run, file_digest(run / WEIGHTS))[0]
    wanted = kept.calibration.spread(image.mean.voxels, image.deviation.voxels)
    np.testing.assert_allclose(found[run][0].T, wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[plain][0].T, image.deviation.voxels, rtol=1e-3, atol=1e-5)
    assert found[run][1] == f"standard deviation {kept.statement}"
    assert found[plain][1].startswith("standard deviation not calibrated")
    assert f"note: standard deviation {kept.statement}" in found[run][2]
    assert "petscale calibrate learns it" in found[plain][2]
    for folder, said in ((run, kept.statement), (plain, "not calibrated: what share")):
        told = ReportOptions(deviations=tmp_path / folder.name / "deviations").said([*TEST, "phantom-003"])
        assert len(told) == 1
        assert told[0].startswith(f"Standard deviation of 1 case(s): {said}")


def calibration_of(run: Path, *flips: Literal["z", "y", "x"]) -> Kept | None:
    estimator = open_estimator(run, (), flips)
    assert isinstance(estimator, Ensemble)
    return estimator.calibration


def test_other_mirror_images_and_other_weights_are_not_calibrated(run: Path, cohort: Path, tmp_path: Path) -> None:
    assert calibration_of(run, "x") is not None
    assert calibration_of(run, "y") is None
    opened = open_cohort(cohort)
    again = untrained_runs.red_cnn(tmp_path / "again", 1, cohort=opened, test=TEST, validation=VALIDATION)
    shutil.copytree(run / CALIBRATION, again / CALIBRATION)
    names = [path.name for path in (again / CALIBRATION).iterdir()]
    present = open_estimator(again, (), ["x"])
    assert isinstance(present, Ensemble)
    (again / CALIBRATION / names[0]).rename(again / CALIBRATION / f"{present.folder}.json")
    assert calibration_of(again, "x") is None
    assert calibrations.read_all(again, file_digest(again / WEIGHTS)) == []


def test_what_a_run_has_trained_on_calibrates_nothing(
    run: Path, cohort: Path, tmp_path: Path, refused: Refused
) -> None:
    """Not even where another run has kept it for validation, or where the weights were started from it."""
    line = refused("calibrate", run, cohort)
    assert line.startswith("CFG_NO_EFFECT")
    nobody = untrained_runs.red_cnn(tmp_path / "nobody", 0, cohort=open_cohort(cohort), test=TEST)
    line = refused("calibrate", nobody, cohort, "--flips", "x")
    assert line.startswith("SET_NO_VALIDATION calibrate: the run kept no patients for validation; ")
    other = untrained_runs.red_cnn(
        tmp_path / "other", 1, cohort=open_cohort(cohort), test=TEST, validation=(VALIDATION[0], "phantom-003")
    )
    line = refused("calibrate", run, cohort, "--runs", other)
    assert line.startswith("SET_NO_VALIDATION calibrate: 1 patient in this cohort that every run kept")
    record = json.loads((other / CONFIG).read_bytes())
    record |= {"train": ["phantom-003"], "validation": list(VALIDATION)}  # one of these names has other voxels
    record["cases"] |= {VALIDATION[0]: record["cases"][TEST[0]]}
    (other / CONFIG).write_text(json.dumps(record))
    untrained_runs.prove(other)
    assert "1 patient in this cohort" in refused("calibrate", run, cohort, "--runs", other)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    record = json.loads((copy / CONFIG).read_bytes())
    seen = record["cases"][VALIDATION[0]]
    (copy / CONFIG).write_text(json.dumps({**record, "trained_before": [seen]}))
    untrained_runs.prove(copy)
    with pytest.raises(InputError, match="1 patient in this cohort"):
        petscale.calibrate(copy, cohort, flips=["x"])
