"""A card applied to files: what synthesize writes of them, without run and cohort; and what does not fit is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from petscale import inference
from petscale.batch import RECORD
from petscale.cards.card import CARD
from petscale.cli import main
from petscale.folders import WEIGHTS
from storage import integrity
from trainers import checkpoint

Refused = Callable[..., str]


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def edited(card: Path, place: Path, change: Callable[[dict[str, str]], object]) -> Path:
    """A copy with other facts, and a digest that agrees with them."""
    tensors, facts = checkpoint.read_weights(card)
    change(facts)
    checkpoint.write_weights(place, tensors, facts)
    return place


def told(**values: object) -> Callable[[dict[str, str]], object]:
    """Facts of other values, and in the card's JSON those that stand there."""

    def change(facts: dict[str, str]) -> None:
        content = json.loads(facts[CARD])
        facts |= {name: json.dumps(value) for name, value in values.items() if name not in content}
        facts[CARD] = json.dumps(content | {name: value for name, value in values.items() if name in content})

    return change


def test_what_is_written_is_what_synthesize_writes(
    named: Path, card: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["apply", str(card), str(scans / "suv.nii.gz"), str(scans / "pet"), "--output", str(out)])
    assert capsys.readouterr().out.split() == [str(out / "suv.nii.gz"), str(out / "pet")]
    main(["synthesize", str(named), str(scans / "suv.nii.gz"), "--output", str(tmp_path / "suv.nii.gz")])
    main(["synthesize", str(named), str(scans / "pet"), "--output", str(tmp_path / "pet")])
    ours, theirs = (nibabel.load(folder / "suv.nii.gz") for folder in (out, tmp_path))
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_array_equal(ours.affine, nibabel.load(scans / "suv.nii.gz").affine)
    for mine, wanted in zip(sorted((out / "pet").iterdir()), sorted((tmp_path / "pet").iterdir()), strict=True):
        found, other = pydicom.dcmread(mine), pydicom.dcmread(wanted)
        assert found.PixelData == other.PixelData
        assert (found.StudyInstanceUID, found.SeriesDescription) == (other.StudyInstanceUID, other.SeriesDescription)
    record = json.loads((out / RECORD).read_bytes())
    assert record["weights"] == integrity.file_digest(card)
    assert record["files"]["suv.nii.gz"]["output"] == integrity.file_digest(out / "suv.nii.gz")
    assert {path.name for path in out.iterdir()} == {"suv.nii.gz", "pet", RECORD}


def test_a_file_in_activity_comes_back_in_activity(card: Path, scans: Path, tmp_path: Path) -> None:
    """By options for one scan, and by a table; both are what SUV gives, scaled."""
    (tmp_path / "doses.csv").write_text("file,weight_kg,dose_mbq\nbqml.nii,70,300\nsuv.nii.gz,70,300\n")
    one, many = tmp_path / "one", tmp_path / "many"
    units = ["--units", "Bq/mL"]
    words = ["--weight-kg", "70", "--dose-mbq", "300"]
    main(["apply", str(card), str(scans / "bqml.nii"), "--output", str(one), *units, *words])
    words = ["--table", str(tmp_path / "doses.csv")]
    main(["apply", str(card), str(scans / "bqml.nii"), "--output", str(many), *units, *words])
    main(["apply", str(card), str(scans / "suv.nii.gz"), "--output", str(tmp_path / "suv")])
    activity, tabled = (np.asarray(nibabel.load(folder / "bqml.nii").dataobj) for folder in (one, many))
    suv = np.asarray(nibabel.load(tmp_path / "suv" / "suv.nii.gz").dataobj)
    np.testing.assert_array_equal(activity, tabled)
    np.testing.assert_allclose(activity, suv * (300e6 / 70e3), rtol=1e-3, atol=0.02 * activity.mean())


def test_a_ct_becomes_pet_at_the_voxels_trained_on(from_ct: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["apply", str(from_ct), str(scans / "ct"), "--output", str(out)])
    series = [pydicom.dcmread(file) for file in sorted((out / "ct").iterdir())]
    assert {(ds.Modality, ds.Units) for ds in series} == {("PT", "GML")}
    assert {tuple(map(float, ds.PixelSpacing)) for ds in series} == {(7.5, 7.0)}


def test_the_same_command_continues(
    card: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, asked = inference.run_case, []

    def once(*args: object, **words: object) -> None:
        asked.append(args)
        if len(asked) == 2:
            raise KeyboardInterrupt
        real(*args, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "run_case", once)
    shutil.copy(scans / "suv.nii.gz", tmp_path / "second.nii.gz")
    out = tmp_path / "out"
    words = ["apply", str(card), str(scans / "suv.nii.gz"), str(tmp_path / "second.nii.gz"), "--output", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 130
    assert {path.name for path in out.iterdir()} == {"suv.nii.gz", RECORD}
    first = (out / "suv.nii.gz").stat().st_mtime_ns
    main(words)
    assert len(asked) == 3
    assert (out / "suv.nii.gz").stat().st_mtime_ns == first
    assert "1/2 suv.nii.gz: kept" in shown(capsys)
    main([*words, "--drf", "4"])  # made from another statement
    assert len(asked) == 5


def test_doubts_are_told(card: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = edited(
        card,
        tmp_path / "other.safetensors",
        told(nuclides={"Ga-68": 2}, tracers={}, starts_from={"units": "SUVbw", "spacing_mm": [20.0, 15.0, 14.0]}),
    )
    scan = [str(scans / "suv.nii.gz"), "--output"]
    main(["apply", str(other), str(scans / "pet"), *scan, str(tmp_path / "a"), "--drf", "10"])
    lines = shown(capsys)
    assert "warning: pet: nuclide F-18, the run was trained on Ga-68" in lines
    assert "warning: pet: dose reduction factor 10, the run was trained at 4, 20" in lines
    assert any(line.startswith("warning: pet: voxels of 25 x 15 x 14 mm") for line in lines)
    said = "a NIfTI file states no tracer, the weights were trained on Ga-68: see that it is this"
    assert f"warning: suv.nii.gz: {said}" in lines
    assert not any("warning: pet: a NIfTI" in line for line in lines)
    silent = edited(card, tmp_path / "silent.safetensors", told(tracers={}, nuclides={}))
    main(["apply", str(silent), *scan, str(tmp_path / "b")])
    said = "nothing states on which tracer the weights were trained: see that it is this scan's"
    assert f"warning: suv.nii.gz: {said}" in shown(capsys)


def test_a_refused_scan_does_not_stop_the_others(
    card: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nibabel.load(scans / "suv.nii.gz")
    voxels = np.asarray(image.dataobj).copy()
    voxels[3, 4, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), tmp_path / "nan.nii.gz")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["apply", str(card), str(tmp_path / "nan.nii.gz"), str(scans / "suv.nii.gz"), "--output", str(out)])
    assert ended.value.code == 2
    lines = shown(capsys)
    assert any(line.startswith("refused nan.nii.gz: IMG_NONFINITE nan.nii.gz") for line in lines)
    assert lines[-1].startswith("petscale: SET_REFUSED out: 1 of 2")
    assert {path.name for path in out.iterdir()} == {"suv.nii.gz", RECORD}


WRONG: dict[str, tuple[str, str]] = {  # what was done -> how the line begins
    "absent card": ("card.absent", "IMG_NO_FILE card.absent"),
    "folder": ("folder", "CKPT_CARD folder: a folder"),
    "weights of a run": ("weights.safetensors", "CKPT_CARD weights.safetensors: weights without a card"),
    "an image": (
        "suv.nii.gz",
        "CKPT_CARD suv.nii.gz: no file of weights; name a file that `petscale card RUN FILE` wrote",
    ),
    "half a card": ("half.safetensors", "CKPT_DAMAGED half.safetensors"),
    "empty": ("empty.safetensors", "CKPT_DAMAGED empty.safetensors"),
    "unknown system": ("unknown.safetensors", "CFG_RECIPE recipe"),
    "other networks": ("other.safetensors", "CKPT_CONFIG"),
    "newer form": ("newer.safetensors", "STORE_SCHEMA newer.safetensors: a card of form 99"),
    "odd card": ("odd.safetensors", "CKPT_CARD odd.safetensors: a card that cannot be read"),
    "no digest": ("bare.safetensors", "CKPT_DAMAGED bare.safetensors: a card without its digest"),
}


@pytest.fixture
def wrong(card: Path, named: Path, scans: Path, tmp_path: Path) -> Path:
    """A folder with one file of every kind of ``WRONG``."""
    place = tmp_path / "wrong"
    (place / "folder").mkdir(parents=True)
    shutil.copy(named / WEIGHTS, place)
    shutil.copy(scans / "suv.nii.gz", place)
    content = card.read_bytes()
    (place / "half.safetensors").write_bytes(content[: len(content) // 2])
    (place / "empty.safetensors").write_bytes(b"")

    def system(**recipe: object) -> Callable[[dict[str, str]], object]:
        def change(facts: dict[str, str]) -> None:
            facts["config"] = json.dumps(json.loads(facts["config"]) | {"recipe": recipe})

        return change

    edited(card, place / "unknown.safetensors", system(name="of_another_hospital"))
    edited(card, place / "other.safetensors", system(name="red_cnn", channels=3))
    edited(card, place / "newer.safetensors", lambda facts: facts.update({CARD: json.dumps({"form": 99})}))
    edited(card, place / "odd.safetensors", lambda facts: facts.update({CARD: json.dumps({"form": 1, "drfs": []})}))
    _, facts = checkpoint.read_weights(card)
    import safetensors.torch

    told_now = {name: value for name, value in facts.items() if name != checkpoint.DIGEST}
    tensors, _ = checkpoint.read_weights(card)
    safetensors.torch.save_file(tensors, place / "bare.safetensors", {"petscale": json.dumps(told_now)})
    return place


def test_another_file_is_refused_by_apply_and_inspect(wrong: Path, scans: Path, refused: Refused) -> None:
    for name, begins in WRONG.values():
        line = refused("apply", wrong / name, scans / "suv.nii.gz", "--output", wrong / "out")
        assert line.startswith(begins), line
        assert not (wrong / "out").exists()
    for name in ("weights.safetensors", "half.safetensors", "newer.safetensors", "card.safetensors"):
        refused("inspect", wrong / name)


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["absent.nii.gz"], "IMG_NO_FILE absent.nii.gz"),
        (["suv.nii.gz", "absent"], "IMG_NO_FILE absent"),
        (["suv.nii.gz", "again/suv.nii.gz"], "SET_CASE_COLLISION suv.nii.gz: 2 scans"),
        (["pet", "again/PET"], "SET_CASE_COLLISION"),
        (["ct"], "DCM_NONE"),
        (["hu.nii.gz"], "NII_UNITS hu.nii.gz"),
        (["bqml.nii"], "NII_UNITS bqml.nii"),
        (["bqml.nii", "--units", "SUVbw"], "IMG_UNITS bqml.nii"),
        (["bqml.nii", "--units", "Bq/mL"], "PET_WEIGHT bqml.nii"),
        (["bqml.nii", "suv.nii.gz", "--weight-kg", "70"], "CFG_MANY_PATIENTS --weight-kg"),
        (["suv.nii.gz", "--units", "SUVbw", "--weight-kg", "70"], "CFG_NO_EFFECT --weight-kg"),
        (["pet", "--units", "SUVbw"], "CFG_NO_EFFECT --units"),
        (["suv.nii.gz", "--table", "none.csv"], "IMG_NO_FILE none.csv"),
        (["suv.nii.gz", "--drf", "100"], "CKPT_DOSES card.safetensors: trained at dose reduction factor 4, 20"),
        (["suv.nii.gz", "--drf", "2"], "CKPT_DOSES"),
        (["suv.nii.gz", "--drf", "0"], "CFG_RANGE --drf"),
        (["suv.nii.gz", "--drf", "nan"], "CFG_RANGE --drf"),
        (["coarse.nii.gz"], "IMG_VOXEL_SIZE coarse.nii.gz"),
        (["empty.nii.gz"], "NII_EMPTY empty.nii.gz"),
        (["suv.nrrd"], "IMG_FORMAT"),
        (["empty"], "DCM_NONE"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    words: list[str], begins: str, card: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
) -> None:  # fmt: skip
    for path in scans.iterdir():
        (tmp_path / path.name).symlink_to(path)
    again = tmp_path / "again"
    again.mkdir()
    (again / "suv.nii.gz").symlink_to(scans / "suv.nii.gz")
    (again / "PET").symlink_to(scans / "pet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "suv.nrrd").write_bytes(b"NRRD0004\n")
    image = nibabel.load(scans / "suv.nii.gz")
    voxels = np.asarray(image.dataobj)
    coarse = nibabel.Nifti1Image(voxels, image.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))
    nibabel.save(coarse, tmp_path / "coarse.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.where(voxels > 0.2, 40.0, -1000.0), image.affine), tmp_path / "hu.nii.gz")
    monkeypatch.chdir(tmp_path)
    line = refused("apply", card, *words, "--output", "out")
    assert line.startswith(begins), line
    assert not Path("out").exists()
    assert not list(tmp_path.glob(".petscale*"))


def test_other_files_in_the_output_are_never_touched(card: Path, scans: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    words = ["apply", card, scans / "suv.nii.gz", "--output", out]
    assert refused(*words).startswith("DISK_EXISTS out: notes.txt is there already")
    (out / "notes.txt").unlink()
    main([str(word) for word in words])
    other = edited(card, tmp_path / "other.safetensors", told(drfs=[4.0]))
    assert "results of other weights" in refused("apply", other, scans / "suv.nii.gz", "--output", out)
    (out / RECORD).write_text("{")
    assert refused(*words).startswith("STORE_DAMAGED .petscale.json")
    assert refused(*words[:3], "--output", scans / "suv.nii.gz").startswith("DISK_EXISTS suv.nii.gz")
    assert refused("apply", card, scans / "pet", "--output", scans / "pet" / "new").startswith("CFG_OUTPUT new")


def test_from_ct_nothing_is_asked_of_a_pet(from_ct: Path, scans: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    for option, value in (("--units", "SUVbw"), ("--drf", "4"), ("--weight-kg", "70")):
        line = refused("apply", from_ct, scans / "ct", "--output", out, option, value)
        assert line.startswith(f"CFG_NO_EFFECT {option}"), line
    assert refused("apply", from_ct, scans / "pet", "--output", out).startswith("DCM_NONE")
    assert refused("apply", from_ct, scans / "suv.nii.gz", "--output", out).startswith("CT_UNITS")
    assert not out.exists()
