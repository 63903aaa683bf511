"""A folder of scans in Bq/mL in, a folder of the same names out: unit, grid, resuming, and what a table must hold."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from petscale import inference, submission
from petscale.batch import RECORD
from petscale.cli import main
from petscale.folders import WEIGHTS
from petscale.inference import Estimate, Trained
from storage.errors import InputError
from storage.source import ImageSource
from trainers import checkpoint

Refused = Callable[..., str]
NAMES = ("Anonymous-01_DRF-4.nii.gz", "Anonymous-31_DRF-100.nii.gz")
ROW = {
    "SubjectID": "Anonymous-01",
    "DoseReductionFactor": "4",
    "PatientWeight_kg": "70",
    "ImageUnits": "BQML",
    "PixelSpacing_x_mm": "14",
    "PixelSpacing_y_mm": "15",
    "SliceThickness_mm": "25",
    "TimeFromInjectionToAcquisition_s": "6586.2",
    "RadionuclideTotalDose_Bq": "600e6",
    "RadionuclideHalfLife_s": "6586.2",
    "DecayCorrection": "START",
}  # the dose has halved: 300 MBq at the time of the voxels, as conftest's files have it


def write_table(folder: Path, *rows: dict[str, str], name: str = "info.csv") -> Path:
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


@pytest.fixture
def flat(scans: Path, tmp_path: Path) -> Path:
    """Two scans of one patient, in Bq/mL, and their table."""
    folder = tmp_path / "test-set"
    folder.mkdir()
    image = nibabel.load(scans / "bqml.nii")
    for name in NAMES:
        nibabel.save(image, folder / name)
    write_table(folder, *({**ROW, "NiftiFileName": name} for name in NAMES))
    return folder


def test_the_results_are_those_of_synthesize_under_the_same_names(
    run: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["submission", str(run), str(flat), str(out)])
    shown = capsys.readouterr()
    assert shown.out.split() == [str(out / name) for name in NAMES]
    assert {path.name for path in out.iterdir()} == {*NAMES, RECORD}
    lines = shown.err.splitlines()
    assert [line for line in lines if line.endswith(": written")] == [
        f"{n}/2 {name}: written" for n, name in enumerate(NAMES, 1)
    ]
    assert lines[-1] == "out: 2 written, 0 already there, 0 refused"
    words = ["--units", "Bq/mL", "--weight-kg", "70", "--dose-mbq", "300"]
    main(["synthesize", str(run), str(flat / NAMES[0]), "--output", str(tmp_path / "one.nii.gz"), *words])
    wanted, before = nibabel.load(tmp_path / "one.nii.gz"), nibabel.load(flat / NAMES[0])
    for name in NAMES:
        made = nibabel.load(out / name)
        assert made.get_data_dtype() == np.float32
        np.testing.assert_array_equal(made.affine, before.affine)
        np.testing.assert_allclose(np.asarray(made.dataobj), np.asarray(wanted.dataobj), rtol=1e-5)


def test_what_is_whole_is_kept_and_the_rest_is_made_again(
    run: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, asked = inference.synthesize_image, []

    def watched(trained: Trained, source: ImageSource, scratch: Path, **more: object) -> Estimate:
        asked.append(more["where"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(trained, source, scratch, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(submission, "synthesize_image", watched)
    out = tmp_path / "out"
    words = ["submission", str(run), str(flat), str(out)]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 130
    assert {path.name for path in out.iterdir()} == {NAMES[0], RECORD}
    first = (out / NAMES[0]).read_bytes()
    main(words)
    assert asked == [NAMES[0], NAMES[1], NAMES[1]]
    assert (out / NAMES[0]).read_bytes() == first
    (out / NAMES[1]).write_bytes((out / NAMES[1]).read_bytes()[:-100])
    main(words)
    assert asked[3:] == [NAMES[1]]
    assert nibabel.load(out / NAMES[1]).get_fdata().shape == nibabel.load(flat / NAMES[1]).shape
    assert f"1/2 {NAMES[0]}: kept" in capsys.readouterr().err


def test_a_wrong_spacing_in_the_table_is_told_and_the_header_used_and_so_is_another_dose(
    run: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, facts = checkpoint.read_weights(run / WEIGHTS)
    checkpoint.write_weights(run / WEIGHTS, tensors, {**facts, "drfs": "[10.0, 20.0]"})
    (flat / NAMES[1]).unlink()
    write_table(flat, {**ROW, "NiftiFileName": NAMES[0], "SliceThickness_mm": "3"})
    main(["submission", str(run), str(flat), str(tmp_path / "out")])
    told = f"warning: {NAMES[0]}: SliceThickness_mm 3 in the table, 25 in the file's header, which is used"
    lines = capsys.readouterr().err.splitlines()
    assert told in lines
    assert f"warning: {NAMES[0]}: dose reduction factor 4, the run was trained at 10, 20" in lines
    made, before = (nibabel.load(folder / NAMES[0]) for folder in (tmp_path / "out", flat))
    np.testing.assert_array_equal(made.affine, before.affine)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"PatientWeight_kg": ""}, "PET_WEIGHT info.csv, Anonymous-01_DRF-4.nii.gz, PatientWeight_kg"),
        ({"PatientWeight_kg": "0.07"}, "PET_WEIGHT"),
        ({"RadionuclideTotalDose_Bq": " "}, "PET_DOSE info.csv, Anonymous-01_DRF-4.nii.gz, RadionuclideTotalDose_Bq"),
        ({"RadionuclideTotalDose_Bq": "much"}, "TAB_CELL info.csv"),
        ({"RadionuclideTotalDose_Bq": "inf"}, "TAB_CELL info.csv"),
        ({"RadionuclideHalfLife_s": ""}, "PET_DOSE info.csv, Anonymous-01_DRF-4.nii.gz, RadionuclideHalfLife_s"),
        ({"TimeFromInjectionToAcquisition_s": "-1"}, "PET_DOSE"),
        ({"DecayCorrection": "NONE"}, "PET_NOT_DECAY_CORRECTED"),
        ({"ImageUnits": "CNTS"}, "PET_UNITS"),
        ({"NiftiFileName": "another.nii.gz"}, "TAB_NO_MATCH info.csv: no rows for Anonymous-01_DRF-4.nii.gz"),
        ({"NiftiFileName": NAMES[1]}, "TAB_NO_MATCH info.csv"),
    ],
)
def test_a_table_that_does_not_say_enough_is_refused_before_anything_starts(
    change: dict[str, str], told: str, run: Path, flat: Path, tmp_path: Path, refused: Refused
) -> None:
    write_table(flat, {**ROW, "NiftiFileName": NAMES[0], **change}, {**ROW, "NiftiFileName": NAMES[1]})
    line = refused("submission", run, flat, tmp_path / "out")
    assert line.startswith(told), line
    assert not (tmp_path / "out").exists()


def test_wrong_folders_and_tables(run: Path, flat: Path, scans: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    assert refused("submission", run, tmp_path / "absent", out).startswith("IMG_NO_FILE absent")
    assert refused("submission", run, scans, out).startswith("IMG_NO_FILE")  # DICOM folders, one .nii.gz, no table
    assert refused("submission", run, flat, out, "--table", tmp_path / "no.csv").startswith("IMG_NO_FILE no.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    assert refused("submission", run, flat, out, "--table", tmp_path / "binary.csv").startswith("TAB_UNREADABLE")
    nameless = write_table(tmp_path, {"PatientWeight_kg": "70"})
    assert refused("submission", run, flat, out, "--table", nameless).startswith("TAB_NO_KEY info.csv")
    write_table(flat, ROW, name="second.csv")
    assert refused("submission", run, flat, out).startswith("IMG_NO_FILE test-set: 2 .csv files")
    assert not out.exists()


def test_an_administered_dose_is_not_decayed_again(tmp_path: Path) -> None:
    at_injection = {**ROW, "NiftiFileName": "a.nii.gz", "DecayCorrection": "ADMIN", "RadionuclideHalfLife_s": ""}
    entry = submission.read_table(write_table(tmp_path, at_injection), ["a.nii.gz"])["a.nii.gz"]
    assert (entry.weight_kg, entry.dose_mbq, entry.drf) == (70.0, 600.0, 4.0)
    at_start = write_table(tmp_path, {**ROW, "NiftiFileName": "a.nii.gz"})
    assert submission.read_table(at_start, ["a.nii.gz"])["a.nii.gz"].dose_mbq == pytest.approx(300.0)


def test_results_of_other_weights_or_of_someone_else_stay(
    run: Path, flat: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / NAMES[0]).write_text("a submission of last year")
    assert refused("submission", run, flat, out).startswith("DISK_EXISTS out")
    assert (out / NAMES[0]).read_text() == "a submission of last year"
    shutil.rmtree(out)
    (flat / NAMES[1]).unlink()
    write_table(flat, {**ROW, "NiftiFileName": NAMES[0]})
    main(["submission", str(run), str(flat), str(out)])
    tensors, facts = checkpoint.read_weights(run / WEIGHTS)
    checkpoint.write_weights(run / WEIGHTS, tensors, {**facts, "drfs": "[4.0]"})
    assert "results of other weights" in refused("submission", run, flat, out)


def test_one_damaged_file_does_not_stop_the_others(
    run: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (flat / NAMES[0]).write_bytes(b"")
    with pytest.raises(SystemExit):
        main(["submission", str(run), str(flat), str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert f"refused {NAMES[0]}: NII_EMPTY" in err
    assert "petscale: SET_REFUSED out: 1 of 2 files" in err
    assert (tmp_path / "out" / NAMES[1]).is_file()


def test_a_run_from_ct_makes_no_submission(run: Path, flat: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from petscale.inference import open_run
    from petscale.plausibility import TrainedOn

    trained = replace(open_run(run), on=TrainedOn("HU", (1.0, 1.0, 1.0)))
    with pytest.raises(InputError, match="SET_WRONG_UNITS"):
        submission.submit_folder(trained, flat, tmp_path / "out")
