"""``petscale remove``: no byte of a case stays, whenever it was killed, and who saw the case is named."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from petscale.cli import main
from petscale.data.removal import remove_cases
from petscale.folders import CONFIG, EVALUATION, FOLDS, PICTURES, SYNTHESIS
from storage import integrity, layout
from storage.errors import InputError
from storage.ingest import ingest
from storage.integrity import exclusive
from storage.reader import open_cohort
from storage.verification import read_catalog, verify

GONE = "phantom-001"
Refused = Callable[..., str]


@pytest.fixture
def copied(cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cohort, tmp_path / "cohort"))


@pytest.fixture
def run(copied: Path, tmp_path: Path) -> Path:
    """A run that tested on ``phantom-001`` and trained on the others, with all that such a run derives."""
    folder = tmp_path / "first"
    cases = open_cohort(copied).cases
    roles: dict[str, Any] = {"train": [name for name in cases if name != GONE], "test": [GONE]}
    digests = read_catalog(copied)
    store = folder / SYNTHESIS / "low_drf4"
    shutil.copytree(copied, store)  # synthesized volumes are a cohort, with the same patients
    for place in (folder / EVALUATION / "low_drf4", folder / PICTURES):
        place.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps({"config": {}, "cases": digests, **roles}))
    (folder / EVALUATION / "low_drf4" / "scores.csv").write_text(f"case,value\n{GONE},3\n")
    (folder / EVALUATION / "low_drf4" / "scores.json").write_text(json.dumps({"cases": [GONE]}))
    (folder / EVALUATION / "low_drf4" / "baseline.json").write_text(json.dumps({"fwhm_mm": 8}))
    (folder / EVALUATION / "low_drf4" / f"{GONE}.nii.gz").write_bytes(b"voxels")
    (folder / "report.html").write_text(f"<h3>{GONE}</h3>")
    (folder / PICTURES / "step-0000008.png").write_bytes(b"pixels")
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def mentions(folder: Path, name: str) -> set[str]:
    """Files below a folder that hold a name, in their text or in their path."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (name in str(path.relative_to(folder)) or name.encode() in path.read_bytes())
    }


def test_no_byte_is_left_and_verify_is_clean(copied: Path) -> None:
    assert mentions(copied, GONE)
    (copied / layout.STAGING / "abc" / GONE).mkdir(parents=True)  # of a killed ingest
    (copied / layout.STAGING / "abc" / GONE / "0").write_bytes(b"voxels")
    others = [name for name in open_cohort(copied).cases if name != GONE]
    assert remove_cases(copied, [GONE]) == ["cohort: removed phantom-001"]
    assert not mentions(copied, GONE)
    assert not (copied / layout.STAGING).exists()
    assert list(open_cohort(copied).cases) == others
    assert sorted(read_catalog(copied)) == others
    assert not verify(copied)
    ingest(copied, {}, strict=True)  # a later ingest does not bring the entry back
    assert sorted(read_catalog(copied)) == others


def test_a_case_deleted_by_hand_is_lost_to_verify_until_its_entry_is_taken_out(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "cases" / GONE)
    with pytest.raises(SystemExit):
        main(["verify", str(copied)])
    told = capsys.readouterr().err
    assert f"damaged: {GONE}/: the whole case is missing" in told
    assert "petscale remove" in told
    main(["remove", str(copied), GONE])
    assert "its folder was gone" in capsys.readouterr().out
    main(["verify", str(copied)])


def test_a_removal_killed_anywhere_is_continued_by_the_same_command(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    steps = [(os, "replace"), (integrity, "fsync_folder"), (integrity, "write_json"), (shutil, "rmtree")]
    for number, (module, name) in enumerate(steps):
        for when in ("before", "after"):
            folder = Path(shutil.copytree(cohort, tmp_path / f"{number}-{when}"))
            real = getattr(module, name)

            def dies(*words: Any, real: Any = real, when: str = when, **more: Any) -> None:
                if when == "after":
                    real(*words, **more)
                raise KilledError

            with monkeypatch.context() as patched:
                patched.setattr(module, name, dies)
                with pytest.raises(KilledError):
                    remove_cases(folder, [GONE])
            left = bool(mentions(folder, GONE))
            if left:
                remove_cases(folder, [GONE])
            assert left or (name, when) == ("rmtree", "after")
            assert not mentions(folder, GONE)
            assert not verify(folder)
            assert len(open_cohort(folder).cases) == 3


def test_copies_in_a_run_go_and_the_run_is_named(copied: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["remove", str(copied), GONE, "--runs", str(run)])
    assert mentions(run, GONE) == {CONFIG}  # the record of what the run saw
    assert not (run / PICTURES / "step-0000008.png").exists()
    kept = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and SYNTHESIS not in path.parts}
    assert kept - {".lock"} == {CONFIG, "metrics.jsonl", f"{EVALUATION}/low_drf4/baseline.json"}
    assert not verify(run / SYNTHESIS / "low_drf4")
    assert len(open_cohort(run / SYNTHESIS / "low_drf4").cases) == 3
    told = capsys.readouterr().out
    assert "first: kept it for testing; the weights have not seen it (phantom-001)" in told
    assert "first: removed 1 synthesized case(s) and 5 file(s)" in told


def test_weights_that_were_trained_on_a_case_are_told(copied: Path, run: Path) -> None:
    told = remove_cases(copied, ["phantom-000"], [run])
    assert any("first: was trained on it; weights cannot be cleaned" in line for line in told)
    assert (run / PICTURES / "step-0000008.png").exists()  # of another case
    assert (run / "report.html").exists()


def test_runs_can_be_named_after_the_case_was_removed(copied: Path, run: Path) -> None:
    remove_cases(copied, [GONE])
    assert mentions(run, GONE) != {CONFIG}
    remove_cases(copied, [GONE], [run])
    assert mentions(run, GONE) == {CONFIG}


def test_a_study_is_searched_by_its_trials(copied: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "study/trials").mkdir(parents=True)
    run.rename(tmp_path / "study/trials/3")
    told = remove_cases(copied, [GONE], [tmp_path / "study"])
    assert any(line.startswith("study/trials/3: kept it for testing") for line in told)
    assert mentions(tmp_path / "study", GONE) == {f"trials/3/{CONFIG}"}


def test_a_folder_of_folds_is_cleaned_with_its_runs(copied: Path, run: Path, tmp_path: Path) -> None:
    folder, name = tmp_path / "cv", "fold-0"
    shutil.copytree(run / EVALUATION, folder / EVALUATION)
    shutil.copytree(run / SYNTHESIS / "low_drf4", folder / SYNTHESIS / "mean-0123456789ab" / "low_drf4")
    record = json.loads((run / CONFIG).read_bytes())
    (folder / FOLDS).write_text(json.dumps({"folds": [name], "cases": record["cases"]}))
    run.rename(folder / name)
    told = remove_cases(copied, [GONE], [folder])
    assert any(line.startswith("fold-0: kept it for testing") for line in told)
    assert any(line.startswith("cv: removed 1 synthesized case(s)") for line in told)
    assert mentions(folder, GONE) == {FOLDS, f"{name}/{CONFIG}"}


def test_a_case_of_the_same_name_in_another_cohort_is_left(copied: Path, run: Path) -> None:
    record = json.loads((run / CONFIG).read_bytes())
    record["cases"][GONE] = "0" * 64
    (run / CONFIG).write_text(json.dumps(record))
    store = run / SYNTHESIS / "low_drf4" / "cases" / GONE / "zarr.json"
    content = json.loads(store.read_bytes())
    content["attributes"]["petscale"]["subject"] = "0" * 16
    store.write_text(json.dumps(content))
    before = mentions(run, GONE)
    told = remove_cases(copied, [GONE], [run])
    assert told[1:] == ["first: saw a case named phantom-001 with other voxels, not this one; it was left as it is"]
    assert mentions(run, GONE) == before


def test_a_run_over_several_cohorts_is_cleaned_of_the_case_by_its_name_there(copied: Path, run: Path) -> None:
    there = f"cohort.{GONE}"
    record = json.loads((run / CONFIG).read_bytes())
    record["cases"][there] = record["cases"].pop(GONE)
    record["test"] = [there]
    (run / CONFIG).write_text(json.dumps(record))
    store = run / SYNTHESIS / "low_drf4" / "cases"
    (store / GONE).rename(store / there)
    scores = run / EVALUATION / "low_drf4" / "scores.csv"
    scores.write_text(f"case,value\n{there},3\n")
    told = remove_cases(copied, [GONE], [run])
    assert told[-1] == f"first: kept it for testing; the weights have not seen it ({there})"
    assert not (store / there).exists()
    assert not scores.exists()
    assert not (run / PICTURES / "step-0000008.png").exists()


def test_names_that_begin_alike_are_told_apart(copied: Path, run: Path) -> None:
    longer = run / EVALUATION / "low_drf4" / "others.csv"
    longer.write_text(f"case\n{GONE}-b\n{GONE}2\n{GONE}.1\na.{GONE}\n")
    remove_cases(copied, [GONE], [run])
    assert longer.exists()


@pytest.fixture
def nothing_changes(copied: Path) -> Iterator[None]:
    before = {str(path): path.stat().st_mtime_ns for path in copied.rglob("*") if path.name != ".lock"}
    yield
    assert {str(path): path.stat().st_mtime_ns for path in copied.rglob("*") if path.name != ".lock"} == before


@pytest.mark.usefixtures("nothing_changes")
def test_what_cannot_be_removed_is_refused(copied: Path, tmp_path: Path, refused: Refused) -> None:
    assert refused("remove", copied, GONE, "nobody").startswith("SET_NO_CASE case nobody")
    assert refused("remove", copied).startswith("SET_NO_CASE")
    assert refused("remove", copied, "../cases").startswith("CFG_NAME")
    assert refused("remove", tmp_path / "none", GONE).startswith("STORE_NONE")
    (tmp_path / "other").mkdir()
    assert refused("remove", copied, GONE, "--runs", tmp_path / "other").startswith("CFG_RUN_FOLDER other")
    with exclusive(copied, purpose="ingest"), pytest.raises(InputError, match="STORE_BUSY"):
        remove_cases(copied, [GONE])
