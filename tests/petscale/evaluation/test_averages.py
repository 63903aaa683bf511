"""A mean is scored on cases that none of its runs has seen: of folds by the one that tests the case, else by all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import untrained_runs

import petscale
from petscale.cli import main
from petscale.evaluation.scores import read_evaluation
from petscale.evaluation.scoring import score_stored_case
from petscale.folders import EVALUATION, EXTERNAL, FOLDS, SYNTHESIS
from petscale.inference import open_run
from storage.reader import open_cohort
from storage.source import ArraySource
from trainers.metrics.presets import BODY_PSNR

Refused = Callable[..., str]


@pytest.fixture
def crossed(cohort: Path, tmp_path: Path) -> Path:
    """Two folds of a cohort, each of which tests one of its patients; the two others are nobody's."""
    opened = open_cohort(cohort)
    folder, tests = tmp_path / "crossed", opened.cases[:2]
    for number, case in enumerate(tests):
        run = untrained_runs.red_cnn(folder / f"fold-{number}", number, cohort=opened, test=[case])
        facts = json.loads((run / "config.json").read_bytes())
        known = {key: {name: facts[key][name] for name in tests} for key in ("cases", "subjects")}
        train = [name for name in tests if name != case]
        (run / "config.json").write_text(json.dumps({**facts, **known, "train": train}))
        untrained_runs.prove(run)
    (folder / FOLDS).write_text(json.dumps({"folds": ["fold-0", "fold-1"]}))
    return folder


def test_the_mean_of_runs_of_one_split_is_scored_on_their_test_case(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_cohort(cohort)
    name = opened.cases[0]
    runs = [untrained_runs.red_cnn(tmp_path / one, n, cohort=opened, test=[name]) for n, one in enumerate("ab")]
    main(["evaluate", str(runs[0]), str(cohort), "--runs", str(runs[1])])
    assert "mean of 2 runs, red_cnn full-dose estimate, from low_drf4: 1 patient(s)" in capsys.readouterr().err
    place = next((runs[0] / EVALUATION).glob("mean-*")) / "low_drf4"
    found = read_evaluation(place)
    images = [petscale.synthesize(run, (cohort, name)) for run in runs]
    mean = ArraySource(np.mean([image.voxels for image in images], axis=0), images[0].grid, "SUVbw")
    wanted = score_stored_case(opened.case(name), "full", {"synthesized": mean}, presets=["native"])
    psnr_db = next(row.value for row in wanted if (row.definition, row.region) == (BODY_PSNR, "body"))
    assert found.values("synthesized", BODY_PSNR, "body")[name] == pytest.approx(psnr_db, abs=1e-3)
    assert "'runs': ['a', 'b']" in str(found.metadata["average"])
    assert (place / "scores.csv").is_file()


def test_of_folds_the_one_that_never_saw_a_case_takes_part_and_on_another_cohort_all_do(
    crossed: Path, cohort: Path, tmp_path: Path
) -> None:
    scores = petscale.evaluate(crossed, cohort, flips=["x"])["low_drf4"]
    names = open_cohort(cohort).cases
    assert scores.cases == names[:2]
    assert scores.evaluation.metadata["folds"] == {names[0]: "fold-0", names[1]: "fold-1"}
    weights = [open_run(crossed / f"fold-{number}").weights for number in range(2)]
    for store in (crossed / SYNTHESIS).glob("mean-*/low_drf4"):
        made = open_cohort(store)
        for case in made.cases:
            facts = made.case(case).image("synth_low_drf4").provenance
            assert (facts["weights"], facts["mirrored_along"]) == ([weights[names.index(case)]], ["x"])

    other = tmp_path / "other"
    shutil.copytree(cohort, other)
    for case in names[:2]:
        shutil.rmtree(other / "cases" / case)
    scores = petscale.evaluate(crossed, other)["low_drf4"]
    assert scores.cases == names[2:]
    assert str(scores.evaluation.metadata["external"]).startswith("external validation on 2 cases of 2 patients")
    stored = next((crossed / EXTERNAL / "other" / SYNTHESIS).glob("mean-*/low_drf4"))
    facts = open_cohort(stored).case(names[2]).image("synth_low_drf4").provenance
    assert facts["weights"] == weights


def test_a_mean_of_runs_that_have_seen_each_others_test_cases_is_refused(
    crossed: Path, cohort: Path, refused: Refused
) -> None:
    one, two = crossed / "fold-0", crossed / "fold-1"
    assert refused("evaluate", one, cohort, "--runs", two).startswith("SET_NO_TEST")
    told = refused("evaluate", one, cohort, "--flips", "x", "--detect", "lesion")
    assert told.startswith("CFG_NO_EFFECT --detect")
