"""A run against its test cases: what no network made is scored once, the Unet-score's U-Net is made once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from untrained_runs import prove

from petscale.evaluation import run as evaluating
from petscale.evaluation.scores import REFERENCE
from petscale.folders import CONFIG, EVALUATION
from storage import integrity
from storage.errors import InputError
from storage.reader import open_cohort
from storage.source import ImageSource
from trainers.metrics import streaming
from trainers.metrics.definitions import Score
from trainers.organ_segmenter import OrganSegmenterConfig


@pytest.fixture
def tested(run: Path, cohort: Path) -> Path:
    """The run of nobody's training, with a split."""
    opened = open_cohort(cohort)
    facts = json.loads((run / CONFIG).read_bytes())
    facts |= {"train": opened.cases[1:], "unpaired": [], "test": opened.cases[:1]}
    facts["cases"] = {name: integrity.manifest(opened.case(name).folder)["root"] for name in opened.cases}
    (run / CONFIG).write_text(json.dumps(facts))
    prove(run)
    return run


def test_scores_of_untrained_images_are_taken_over_and_not_made_again(
    tested: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluating.evaluate_run(tested, cohort)
    asked: list[list[str]] = []
    real = streaming.stream_scores

    def watched(
        case: str, reference: ImageSource, candidates: Mapping[str, ImageSource], *rest: Any, **options: Any
    ) -> list[Score]:
        asked.append(list(candidates))
        return real(case, reference, candidates, *rest, **options)

    monkeypatch.setattr("petscale.evaluation.scoring.stream_scores", watched)
    again = evaluating.evaluate_run(tested, cohort, known=whole)["low_drf4"]
    assert asked == [["synthesized"]]
    assert again.images == whole["low_drf4"].images
    assert sorted(map(repr, again.rows)) == sorted(map(repr, whole["low_drf4"].rows))


def test_a_gaussian_of_another_width_is_scored_anew(tested: Path, cohort: Path) -> None:
    whole = evaluating.evaluate_run(tested, cohort)
    path = tested / EVALUATION / "low_drf4" / "baseline.json"
    content = json.loads(path.read_bytes())
    width = 3.0 if content["fwhm_mm"] != 3.0 else 4.0
    path.write_text(json.dumps({**content, "fwhm_mm": width}))
    again = evaluating.evaluate_run(tested, cohort, known=whole)["low_drf4"]
    assert f"Gaussian {width:g} mm" in again.images
    assert {row.image for row in again.rows} - {REFERENCE} == set(again.images)


def test_the_segmenter_learns_from_the_training_cases_and_scores_every_image(tested: Path, cohort: Path) -> None:
    config = OrganSegmenterConfig(
        rois=("liver",), channels=1, patch=(24, 24, 24), halo=0, samples=4, patches_per_case=1
    )
    segmenter = evaluating.make_segmenter(tested, cohort, config)
    assert segmenter.cases == open_cohort(cohort).cases[1:]
    evaluation = evaluating.evaluate_run(tested, cohort, segmenter=segmenter)["low_drf4"]
    assert {row.image for row in evaluation.rows if row.definition == config.definition} == {
        REFERENCE,
        *evaluation.images,
    }
    weights = tested / EVALUATION / "judge" / "judge.safetensors"
    made = weights.stat().st_mtime_ns
    evaluating.make_segmenter(tested, cohort, config)
    assert weights.stat().st_mtime_ns == made
    with pytest.raises(InputError, match="SET_NO_LABELS"):
        evaluating.make_segmenter(tested, cohort, OrganSegmenterConfig(rois=("thyroid",)))
