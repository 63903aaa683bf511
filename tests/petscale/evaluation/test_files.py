"""Images that any tool made: matched by name, refused case by case, scored as a run's own, compared over patients."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from volumes import GRID, ellipse, noisy, source

import petscale
from petscale.cli import main
from petscale.data.table import read_table
from petscale.evaluation.files import Reading, score_files, volumes_in
from petscale.evaluation.scoring import score_case
from storage import dicom_write, nifti
from storage.errors import InputError
from storage.source import LABEL, ArraySource, Grid
from trainers.metrics.presets import BODY_PSNR, LESION_PSNR

SUVS = Reading(units="SUVbw")
LESION = (slice(18, 22), slice(10, 14), slice(12, 16))


def activity(patient: int = 0) -> NDArray[np.float64]:
    """An elliptic body of SUV 1 with a lesion of 8, and one place of the patient's own."""
    made = ellipse().astype(np.float64)
    made[LESION] = 8.0
    made[30 + patient % 5, 12, 14] = 3.0
    return made


def put(path: Path, image: ArraySource) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write_nifti(path, image.grid, image.read)
    return path


def folder(place: Path, sd: float, names: Sequence[str], *, seed: int = 0) -> Path:
    for number, name in enumerate(names):
        put(place / f"{name}.nii.gz", noisy(activity(number), sd, 100 * seed + number))
    return place


def refusal(*arguments: object, **more: object) -> InputError:
    with pytest.raises(InputError) as refused:
        score_files(*arguments, **more)  # type: ignore[arg-type]
    return refused.value


def test_two_tools_are_scored_and_tested_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seven patients; the better tool has half the noise; a cell that begins like a formula stays text."""
    names = ["=p0", *(f"p{n}" for n in range(1, 7))]
    full = folder(tmp_path / "full", 0.0, names)
    fine, coarse = folder(tmp_path / "fine", 0.1, names, seed=1), folder(tmp_path / "coarse", 0.2, names, seed=2)
    put(fine / "p9.nii.gz", source(activity()))
    marks = np.zeros(GRID.shape)
    marks[LESION] = 1
    for name in names:
        put(tmp_path / "labels" / f"{name}.nii.gz", source(marks, LABEL))
    words = ["score", str(full), str(fine), str(coarse), "--units", "SUVbw", "--labels", str(tmp_path / "labels")]
    main([*words, "--page", str(tmp_path / "page.html")])
    said = capsys.readouterr()
    place = tmp_path / "full-scores"
    assert str(place) in said.out.splitlines()
    assert "highest mean PSNR inside the body: fine" in said.out
    assert "PSNR [dB]" in said.out
    assert "left out: SET_NO_COUNTERPART p9: no volume of this name in full, coarse" in said.err
    kept = json.loads((place / "scores.json").read_bytes())
    assert (kept["candidates"], len(kept["patients"])) == (["fine", "coarse"], 7)
    psnr = next(one for one in kept["tests"] if kept["rules"][one["rule"]] == BODY_PSNR.to_json())
    assert psnr["gain"]["mean"] == pytest.approx(20 * np.log10(2), abs=0.3)  # half the noise
    assert psnr["p_holm"] == psnr["gain"]["p_value"] == pytest.approx(2 / 2**7)  # one pair: nothing to correct
    assert {one["region"] for one in kept["tests"]} == {"body", "lesions"}
    rows = list(csv.DictReader((place / "scores.csv").open()))
    assert {row["case"] for row in rows} == {"'=p0", *names[1:]}
    means = list(csv.DictReader((place / "means.csv").open()))
    mine = next(m for m in means if (m["candidate"], m["region"], m["metric"]) == ("fine", "body", "PSNR"))
    assert float(mine["low_95"]) < float(mine["mean"]) < float(mine["high_95"])
    assert (tmp_path / "page.html").read_text().count("<img") == 2 * 3 * len(names)


def test_scores_and_pages_are_not_written_over(tmp_path: Path) -> None:
    """Neither is begun before both are known to be new; from Python nothing is written unless it is asked for."""
    full, tool = folder(tmp_path / "full", 0.0, ["p0"]), folder(tmp_path / "tool", 0.1, ["p0"], seed=1)
    before = sorted(tmp_path.iterdir())
    found = petscale.score(full, tool, units="SUVbw")
    assert (found.names, found.patients, found.left_out, found.refused) == (("tool",), ("p0",), {}, {})
    assert sorted(tmp_path.iterdir()) == before
    place, page = tmp_path / "scores", tmp_path / "page.html"
    place.mkdir()
    petscale.score(full, [tool], units="SUVbw", output=place, page=page)
    kept, drawn = (place / "means.csv").read_bytes(), page.read_bytes()
    for again in ({"output": place}, {"page": page}, {"output": page}, {"output": tmp_path / "new", "page": page}):
        with pytest.raises(InputError, match="DISK_EXISTS"):
            petscale.score(full, tool, units="SUVbw", **again)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
    assert (kept, drawn) == ((place / "means.csv").read_bytes(), page.read_bytes())
    (mean,) = found.means().query("metric == 'PSNR' and region == 'body' and preset == 'native'").itertuples()
    assert mean.mean == pytest.approx(found.compared.scores.values("tool", BODY_PSNR, "body")["p0"])


def test_scores_are_those_of_a_run_s_images(tmp_path: Path) -> None:
    full, made = source(activity()), noisy(activity(), 0.2, 5)
    found = score_files(put(tmp_path / "full.nii", full), [put(tmp_path / "tool.nii", made)], SUVS).compared.scores
    one = found.values("tool.nii", BODY_PSNR, "body")["full"]
    whole = score_case("x", full, {"tool": made}, body=source(np.ones(GRID.shape), LABEL))
    peak = next(row.range_value for row in whole if row.definition == BODY_PSNR)
    assert peak == 8.0
    # The outline is drawn in blocks of 4 mm, smoothed: nearly the ellipse itself.
    mse = float(np.square(made.voxels - full.voxels)[ellipse()].mean())
    assert one == pytest.approx(10 * np.log10(64 / mse), abs=0.6)


def test_the_same_voxels_in_another_order_of_axes_are_the_same_image(tmp_path: Path) -> None:
    full, made = source(activity()), noisy(activity(), 0.2, 5)
    straight = put(tmp_path / "a" / "p0.nii", made).parent
    turned = nibabel.as_closest_canonical(nibabel.load(straight / "p0.nii"))
    (tmp_path / "b").mkdir()
    nibabel.save(turned, tmp_path / "b" / "p0.nii")
    assert not np.array_equal(turned.affine, GRID.affine)
    put(tmp_path / "full" / "p0.nii", full)
    compared = score_files(tmp_path / "full", [straight, tmp_path / "b"], SUVS).compared
    scores = compared.scores
    assert scores.values("a", BODY_PSNR, "body") == scores.values("b", BODY_PSNR, "body")
    assert compared.remarks() == ["one patient: no interval and no test"]
    assert all(np.isnan(one.low) for one in compared.means)
    assert all(one.p_holm is None for one in compared.tests)


@pytest.mark.parametrize("kind", ["grid", "nan", "unit", "patient"])
def test_what_does_not_fit_is_refused_and_the_others_are_scored(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, tool = folder(tmp_path / "full", 0.0, ["p0", "p1"]), folder(tmp_path / "tool", 0.1, ["p0", "p1"])
    voxels = activity()
    code = {"grid": "PAIR_GRID_MISMATCH", "nan": "IMG_NONFINITE", "unit": "PAIR_SCALE", "patient": ""}[kind]
    if kind == "grid":
        moved = GRID.affine.copy()
        moved[0, 3] += 1.0
        put(tool / "p0.nii.gz", ArraySource(voxels.astype(np.float32), Grid(GRID.shape, moved), "SUVbw"))
    elif kind == "nan":
        voxels[3, 3, 3] = np.nan
        nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), GRID.affine), tool / "p0.nii.gz")
    elif kind == "unit":
        put(tool / "p0.nii.gz", source(5000 * voxels))
    else:
        code = "PAIR_PATIENT_MISMATCH"
        for place, person in ((full, "ONE"), (tool, "OTHER")):
            (place / "p0.nii.gz").unlink()
            dicom_write.write_series(place / "p0", source(voxels), patient_id=person)
    with pytest.raises(SystemExit) as ended:
        main(["score", str(full), str(tool), "--units", "SUVbw"])
    said = capsys.readouterr()
    assert ended.value.code == 2
    lines = said.err.splitlines()
    assert any(line.startswith(f"refused p0: {code} tool: ") for line in lines), said.err
    assert lines[-1].startswith("petscale: SET_REFUSED full: 1 volume refused, the others are scored")
    assert json.loads((tmp_path / "full-scores" / "scores.json").read_bytes())["patients"] == ["p1"]
    (full / "p1.nii.gz").unlink()
    assert refusal(full, [tool], Reading() if kind == "patient" else SUVS).code == code  # none is left


def test_a_dicom_series_is_scored_beside_a_nifti_file_of_it(tmp_path: Path) -> None:
    """In SUV by its own header; stored in the opposite order of slices."""
    full, made = source(activity()), noisy(activity(), 0.2, 5)
    dicom_write.write_series(tmp_path / "full" / "p0", full)
    dicom_write.write_series(tmp_path / "dicom" / "p0", made)
    put(tmp_path / "nifti" / "p0" / "image.nii.gz", made)
    scores = score_files(tmp_path / "full", [tmp_path / "dicom", tmp_path / "nifti"], SUVS).compared.scores
    ours, theirs = (scores.values(name, BODY_PSNR, "body")["p0"] for name in ("dicom", "nifti"))
    assert ours == pytest.approx(theirs, abs=0.01)  # int16 with a slope per slice
    assert refusal(tmp_path / "full", [tmp_path / "dicom"], SUVS).code == "CFG_NO_EFFECT"


def test_bq_per_ml_becomes_suv_by_a_table(tmp_path: Path) -> None:
    full, tool = folder(tmp_path / "full", 0.0, ["p0"]), folder(tmp_path / "tool", 0.1, ["p0"])
    in_suv = score_files(full, [tool], SUVS).compared.scores.csv()
    for place in (full, tool):
        image = nifti.open_nifti(place / "p0.nii.gz", units="SUVbw", workdir=tmp_path)
        voxels = image.read(0, GRID.shape[0]) * np.float32(300e6 / 75e3)
        put(place / "p0.nii.gz", ArraySource(voxels, GRID, "Bq/mL"))
    assert refusal(full, [tool], Reading(units="Bq/mL")).code == "PET_WEIGHT"
    (tmp_path / "doses.csv").write_text("file,weight_kg,dose_mbq\np0.nii.gz,75,300\n")
    told = Reading(units="Bq/mL", table=read_table(tmp_path / "doses.csv"))
    again = score_files(full, [tool], told).compared.scores.csv()
    ours, theirs = ([float(row["value"]) for row in csv.DictReader(text.splitlines())] for text in (again, in_suv))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_patient_s_scans_count_as_one(tmp_path: Path) -> None:
    names = ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]
    full, tool = folder(tmp_path / "full", 0.0, names), folder(tmp_path / "tool", 0.2, names)
    found = score_files(full, [tool], SUVS).compared.scores
    assert found.cases == ("sub-01_ses-1+sub-01_ses-2", "sub-02_ses-1")
    assert len(score_files(full, [tool], Reading(units="SUVbw", patient="{patient}")).compared.scores.cases) == 3
    for pattern in ("{study}_*", "{patient}-*-*-*"):
        assert refusal(full, [tool], Reading(units="SUVbw", patient=pattern)).code == "CFG_PATTERN"


def test_names_of_labels_make_regions_and_a_case_without_labels_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, tool = folder(tmp_path / "full", 0.0, ["p0", "p1"]), folder(tmp_path / "tool", 0.2, ["p0", "p1"])
    marks = np.zeros(GRID.shape)
    marks[LESION], marks[5:9, 10:14, 12:16] = 2, 1
    put(tmp_path / "labels" / "p0.nii.gz", source(marks, LABEL))
    reading = Reading(units="SUVbw", label_names={1: "liver", 2: "lesion"})
    found = score_files(full, [tool], reading, labels=tmp_path / "labels").compared.scores
    assert {row.region for row in found.rows} == {"whole volume", "body", "liver", "lesion 1"}
    assert set(found.values("tool", LESION_PSNR, "lesions")) == {"p0"}
    assert "scored without labels: p1" in capsys.readouterr().err


def test_folders_that_cannot_be_matched(tmp_path: Path) -> None:
    full, tool = folder(tmp_path / "full", 0.0, ["p0"]), folder(tmp_path / "tool", 0.1, ["q0"])
    assert refusal(full, [tool], SUVS).code == "SET_NO_COUNTERPART"
    assert refusal(full, [full], SUVS).code == "CFG_CONTRADICTION"
    assert refusal(full, [], SUVS).code == "CFG_RANGE"
    assert refusal(full, [tmp_path / "none"], SUVS).code == "IMG_NO_FILE"
    (tmp_path / "empty" / "p0").mkdir(parents=True)
    assert refusal(full, [tmp_path / "empty"], SUVS).code == "IMG_NO_FILE"
    named = folder(tmp_path / "full dose", 0.0, ["p0"])
    assert refusal(full, [named], SUVS).code == "CFG_NAME"
    put(tool / "q0.nii", source(activity()))
    with pytest.raises(InputError, match="SET_VOLUMES"):
        volumes_in(tool)
    put(full / "p1" / "a.nii", source(activity()))
    assert list(volumes_in(full)) == ["p0", "p1"]
    put(full / "p1" / "b.nii", source(activity()))
    with pytest.raises(InputError, match="SET_VOLUMES"):
        volumes_in(full)
