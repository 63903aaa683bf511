"""Runs and folds compared patient by patient: the best named with margin and p, and on whose scores that rests."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import untrained_runs
from scipy.stats import wilcoxon

from petscale import config as configs
from petscale.cli import main
from petscale.crossvalidation.best import rank
from petscale.evaluation.current import weights_of
from petscale.evaluation.scores import Evaluation
from petscale.folders import CONFIG, EVALUATION, FOLDS, WEIGHTS
from storage import integrity
from storage.reader import open_cohort
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR

Refused = Callable[..., str]
PATIENTS = [f"p{n}" for n in range(8)]
GAINS = [0.1, 0.3, 0.2, 0.5, 0.4, 0.7, -0.1, 0.6]


def scores(place: Path, psnr_db: Mapping[str, float], **about: object) -> None:
    """Scores of every patient inside the body, and 5 dB less in one lesion."""
    rows = [
        Score(case, image, region, kind, BODY_PSNR, value - less)
        for case, value in psnr_db.items()
        for image, less in (("low-dose input", 3.0), ("synthesized", 0.0))
        for region, kind in (("body", "body"), ("lesion 1", "lesion"))
        for less in [less + (5.0 if kind == "lesion" else 0.0)]
    ]
    place.mkdir(parents=True)
    Evaluation(tuple(rows), ("low-dose input", "synthesized"), tuple(psnr_db), about).write(place)


def a_run(folder: Path, psnr_db: Sequence[float], *, cases: Sequence[str] = (*PATIENTS, "trained")) -> Path:
    """A run whose test patients have these scores."""
    folder.mkdir(parents=True)
    whole = configs.to_json(configs.from_json({"recipe": "red_cnn", "feed": {"source": ["low_drf4"]}}))
    facts = {"config": whole, "command": "petscale train", "train": ["trained"], "validation": [], "test": PATIENTS}
    facts |= {"cases": {case: f"digest of {case}" for case in cases}, "subjects": {case: case for case in cases}}
    (folder / CONFIG).write_text(json.dumps(facts))
    (folder / WEIGHTS).write_bytes(folder.name.encode())
    if psnr_db:
        scores(
            folder / EVALUATION / "low_drf4", dict(zip(PATIENTS, psnr_db, strict=True)), weights=weights_of([folder])
        )
    return folder


def folds(folder: Path, psnr_db: Sequence[float], *, tested_in: Sequence[str] = PATIENTS) -> Path:
    """Two folds whose patients have these scores."""
    folder.mkdir(parents=True)
    halves = {"fold-0": tested_in[::2], "fold-1": tested_in[1::2]}
    for name in halves:
        (folder / name).mkdir()
        (folder / name / WEIGHTS).write_bytes(f"{folder.name} {name}".encode())
    whole = configs.to_json(configs.from_json({"recipe": "red_cnn", "feed": {"source": ["low_drf4"]}}))
    record = {"folds": list(halves), "config": whole, "cases": dict.fromkeys(PATIENTS, "digest")}
    roles = {name: {"train": [p for p in PATIENTS if p not in half], "test": half} for name, half in halves.items()}
    (folder / FOLDS).write_text(json.dumps(record | {"roles": roles, "subjects": {p: p for p in PATIENTS}}))
    judged = weights_of(folder / name for name in halves)
    scores(folder / EVALUATION / "low_drf4", dict(zip(PATIENTS, psnr_db, strict=True)), weights=judged)
    return folder


def mean_of(folders: Sequence[Path], psnr_db: Sequence[float], axes: Sequence[str] = ()) -> None:
    """A scored mean, beside the first one's scores."""
    runs = [path for folder in folders for path in sorted(folder.glob(f"**/{WEIGHTS}"))]
    about = {"weights": [integrity.file_digest(run) for run in runs], "mirrored_along": list(axes)}
    place = folders[0] / EVALUATION / f"mean-{len(runs)}{''.join(axes)}" / "low_drf4"
    scores(place, dict(zip(PATIENTS, psnr_db, strict=True)), average=about, external=None)


def above(values: Sequence[float], gain: float = 1.0) -> list[float]:
    return [30.0 + gain * value for value in values]


def test_the_best_of_single_runs_is_said_to_be_chosen_on_test_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, high = a_run(tmp_path / "low", [30.0] * 8), a_run(tmp_path / "high", above(GAINS))
    middle = a_run(tmp_path / "middle", above(GAINS, 0.5))
    main(["best", *map(str, (low, high, middle)), "--json", str(tmp_path / "best.json")])
    said = capsys.readouterr()
    assert said.out.split() == [str(high)]
    lines = said.err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("│")] == ["high", "middle", "low"]
    assert any(line.startswith("WARNING: compared by the 8 test patients of a single split") for line in lines)
    p_value = wilcoxon([0.5 * gain for gain in GAINS]).pvalue
    assert f"best: high, +0.17 dB over middle, better in 7 of 8 patients (p {p_value:.3g})" in lines
    kept = json.loads((tmp_path / "best.json").read_bytes())
    assert [gain["over"] for gain in kept["margins_db"]] == ["middle", "low"]
    assert kept["margins_db"][1]["mean"] == pytest.approx(sum(GAINS) / 8)
    assert kept["lesion_margins_db"][1]["mean"] == pytest.approx(sum(GAINS) / 8)
    assert kept["candidates"][0]["lesions_db"]["p0"] == pytest.approx(25.1)
    assert str(tmp_path) not in (tmp_path / "best.json").read_text()


def test_folds_are_compared_by_all_patients_and_a_scored_mean_takes_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = folds(tmp_path / "one", [30.0] * 8), folds(tmp_path / "two", above(GAINS))
    found = rank([one, two])
    assert [candidate.name for candidate in found.candidates] == ["two", "one"]
    assert "each scored by a run that never saw him or her" in found.statement
    assert "WARNING" not in found.statement
    mean_of([one, two], above(GAINS, 2.0))
    mean_of([two], above(GAINS, 1.5), axes=["x"])
    found = rank([one, two])
    names = ["mean of one and two", "two, mirrored along x", "two", "one"]
    assert [candidate.name for candidate in found.candidates] == names
    main(["best", str(one), str(two)])
    said = capsys.readouterr()
    assert said.out.split() == [str(one), str(two)]
    assert "to use it: petscale synthesize one SCAN --output RESULT --runs two" in said.err.splitlines()
    # Of runs that were trained anew since, a mean says nothing.
    (two / "fold-1" / WEIGHTS).write_bytes(b"other weights")
    shutil.rmtree(two / EVALUATION / "low_drf4")
    judged = weights_of(two / f"fold-{number}" for number in range(2))
    scores(two / EVALUATION / "low_drf4", dict(zip(PATIENTS, above(GAINS), strict=True)), weights=judged)
    assert [candidate.name for candidate in rank([one, two]).candidates] == ["two", "one"]


def test_a_difference_that_may_be_chance_is_said_so(tmp_path: Path) -> None:
    uneven = [1.0, -0.9, 0.8, -1.1, 0.7, -0.6, 0.9, -0.5]
    found = rank([a_run(tmp_path / "a", [30.0] * 8), a_run(tmp_path / "b", above(uneven))])
    assert found.verdict().startswith("best: b, +0.04 dB over a, better in 4 of 8 patients (p ")
    assert found.verdict().endswith("which may be chance)")


def test_single_runs_are_compared_by_validation_patients_where_a_cohort_is_given(cohort: Path, tmp_path: Path) -> None:
    opened = open_cohort(cohort)
    runs = [untrained_runs.red_cnn(tmp_path / name, n, cohort=opened) for n, name in enumerate("ab")]
    for run in runs:
        facts = json.loads((run / CONFIG).read_bytes())
        (run / CONFIG).write_text(json.dumps(facts | {"train": facts["train"][1:], "validation": facts["train"][:1]}))
        untrained_runs.prove(run)
    found = rank(runs, cohort)
    assert {candidate.name: list(candidate.psnr_db) for candidate in found.candidates} == {
        "a": ["phantom-000"],
        "b": ["phantom-000"],
    }
    assert found.statement.startswith("compared by 1 validation patient; no test patient was looked at")
    assert found.margins[0].mean > 0
    assert "no test: fewer than 6 patients" in found.verdict()


def test_what_cannot_be_compared_is_refused(tmp_path: Path, cohort: Path, refused: Refused) -> None:
    one, bare = a_run(tmp_path / "one", [30.0] * 8), a_run(tmp_path / "bare", [])
    other = a_run(tmp_path / "other", [31.0] * 8, cases=(*PATIENTS, "trained", "more"))
    crossed = folds(tmp_path / "crossed", [30.0] * 8)
    turned = folds(tmp_path / "turned", [30.0] * 8, tested_in=PATIENTS[::-1])
    old = a_run(tmp_path / "old", [32.0] * 8)
    (old / WEIGHTS).write_bytes(b"trained anew")
    os.utime(old / WEIGHTS, (0, 0))
    for words, told in (
        ([one], "CFG_RANGE RUN: 1 to compare"),
        ([one, one], "CFG_RANGE RUN: 1 to compare"),
        ([one, bare], "SET_EVALUATION bare/evaluation/low_drf4: no scores"),
        ([one, old], "SET_EVALUATION old/evaluation/low_drf4: scores of other weights"),
        ([one, other], "SET_RUNS_DIFFER other: was trained on other cases"),
        ([one, crossed], "SET_RUNS_DIFFER crossed: scored by folds, one by test"),
        ([crossed, turned], "SET_RUNS_DIFFER turned: keeps other patients apart than crossed"),
        ([crossed, turned, "--cohort", cohort], "CFG_NO_EFFECT --cohort"),
        ([one, other, "--cohort", cohort], "SET_NO_VALIDATION run one"),
        ([one, tmp_path / "absent"], "CFG_RUN_FOLDER absent: no such folder"),
    ):
        assert refused("best", *words).startswith(told)
