"""Scores are of the weights that they name: whatever clocks and copies say of files, no others are shown."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import untrained_runs

from petscale.evaluation.current import weights_of
from petscale.evaluation.run import evaluate_run, read_evaluations
from petscale.evaluation.scores import Evaluation
from petscale.folders import CONFIG, EVALUATION, SYNTHESIS, WEIGHTS
from storage.reader import open_cohort
from trainers.metrics.presets import BODY_PSNR


def network_psnr_db(evaluation: Evaluation) -> float:
    return float(np.mean(list(evaluation.values("synthesized", BODY_PSNR, "body").values())))


@pytest.mark.parametrize("age_s", [-(10**9), 10**9])
def test_a_retrained_run_is_scored_anew_whatever_the_clock_says(age_s: int, tmp_path: Path, cohort: Path) -> None:
    opened = open_cohort(cohort)
    run = untrained_runs.red_cnn(tmp_path / "run", 1, cohort=opened, test=["phantom-000"])
    anew = untrained_runs.red_cnn(tmp_path / "anew", 2, cohort=opened, test=["phantom-000"])
    first, expected = evaluate_run(run, cohort)["low_drf4"], evaluate_run(anew, cohort)["low_drf4"]
    scores = run / EVALUATION / "low_drf4" / "scores.json"
    assert json.loads(scores.read_bytes())["metadata"]["weights"] == weights_of([run])
    shutil.copy(anew / WEIGHTS, run / WEIGHTS)
    when = scores.stat().st_mtime + age_s
    os.utime(run / WEIGHTS, (when, when))
    second = read_evaluations(run, cohort)["low_drf4"]
    assert network_psnr_db(second) == network_psnr_db(expected) != network_psnr_db(first)
    assert json.loads(scores.read_bytes())["metadata"]["weights"] == weights_of([run])
    # Scores that are there are read, and written by nobody.
    before = scores.stat().st_mtime_ns
    assert read_evaluations(run, cohort)["low_drf4"].rows == second.rows
    assert scores.stat().st_mtime_ns == before


def test_scores_of_before_are_believed_where_the_images_are_of_these_weights(tmp_path: Path, cohort: Path) -> None:
    opened = open_cohort(cohort)
    run = untrained_runs.red_cnn(tmp_path / "run", 1, cohort=opened, test=["phantom-000"])
    evaluate_run(run, cohort)
    scores = run / EVALUATION / "low_drf4" / "scores.json"
    content = json.loads(scores.read_bytes())
    del content["metadata"]["weights"], content["digest"]
    content["metadata"]["made"] = "before"
    scores.write_text(json.dumps(content))
    os.utime(scores, (0, 0))
    assert read_evaluations(run, cohort)["low_drf4"].metadata["made"] == "before"
    other = untrained_runs.red_cnn(tmp_path / "other", 2, cohort=opened, test=["phantom-000"])
    shutil.copy(other / WEIGHTS, run / WEIGHTS)
    os.utime(run / WEIGHTS, (0, 0))
    assert "made" not in read_evaluations(run, cohort)["low_drf4"].metadata


def test_without_its_images_a_run_is_evaluated_anew(tmp_path: Path, cohort: Path) -> None:
    run = untrained_runs.red_cnn(tmp_path / "run", 1, cohort=open_cohort(cohort), test=["phantom-000"])
    evaluate_run(run, cohort)
    shutil.rmtree(run / SYNTHESIS)
    assert read_evaluations(run, cohort)["low_drf4"].cases == ("phantom-000",)
    assert (run / SYNTHESIS / "low_drf4").is_dir()
    assert (run / CONFIG).is_file()
