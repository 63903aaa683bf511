"""A run against its test cases: what no network made is scored once, the Unet-score's U-Net is made once."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from untrained_runs import prove

from petscale import proof
from petscale.evaluation import run as evaluating
from petscale.evaluation import scoring, task
from petscale.evaluation.scores import REFERENCE
from petscale.folders import CASES, CONFIG, EVALUATION, GUIDE, WEIGHTS
from storage import integrity
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.reader import Case, open_cohort
from storage.source import ImageSource
from trainers import checkpoint
from trainers.metrics import streaming
from trainers.metrics.definitions import Score
from trainers.organ_segmenter import OrganSegmenterConfig
from trainers.systems.sgsgan.networks import Segmenter
from trainers.time_limit import OutOfTimeError, Pieces, TimeLimit


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


def test_scoring_that_is_broken_off_after_any_case_goes_on_and_ends_as_without(
    tested: Path,
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = open_cohort(cohort).cases
    facts = json.loads((tested / CONFIG).read_bytes()) | {"train": names[2:], "test": names[:2]}
    (tested / CONFIG).write_text(json.dumps(facts))
    prove(tested)
    straight = tmp_path / "straight"
    shutil.copytree(tested, straight)
    expected = evaluating.evaluate_run(straight, cohort)["low_drf4"]
    asked: list[str] = []
    real = scoring.score_stored_case

    def watched(case: Case, *rest: Any, **options: Any) -> list[Score]:
        asked.append(case.name)
        return real(case, *rest, **options)

    monkeypatch.setattr(evaluating, "score_stored_case", watched)
    folder = tested / EVALUATION / "low_drf4"
    done: tuple[tuple[str, ...], ...] = ((), names[:1])
    for scored in done:  # the baselines are the first piece of work
        with pytest.raises(OutOfTimeError):
            evaluating.read_evaluations(tested, cohort, pieces=Pieces(TimeLimit(0.0)))
        assert asked == list(scored)
        assert not (folder / "scores.json").exists()
    found = evaluating.read_evaluations(tested, cohort, pieces=Pieces(TimeLimit(0.0)))["low_drf4"]
    assert asked == list(names[:2]), "every case is scored once"
    assert f"evaluate: {names[0]} low_drf4 was scored before\n" in capsys.readouterr().err
    assert found.json() == expected.json()
    ours, theirs = (place / EVALUATION / "low_drf4" for place in (tested, straight))
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    assert (ours / "scores.json").read_bytes() == (theirs / "scores.json").read_bytes()


def test_with_two_images_to_start_from_every_case_is_scored_once(
    tested: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = scoring.score_stored_case

    def watched(case: Case, target: str, candidates: Mapping[str, ImageSource], **options: Any) -> list[Score]:
        asked.append(next(iter(candidates)))
        return real(case, target, candidates, **options)

    monkeypatch.setattr(evaluating, "score_stored_case", watched)
    sources = ("low_drf4", "full")  # each has its baselines and one case to score
    for _ in range(3):
        with pytest.raises(OutOfTimeError):
            evaluating.evaluate_run(tested, cohort, sources=sources, pieces=Pieces(TimeLimit(0.0)))
    found = evaluating.evaluate_run(tested, cohort, sources=sources, pieces=Pieces(TimeLimit(0.0)))
    assert tuple(found) == sources
    assert len(asked) == 2
    assert not list((tested / EVALUATION).glob(f"*/{CASES}"))


def test_a_gaussian_of_another_width_is_scored_anew(tested: Path, cohort: Path) -> None:
    whole = evaluating.evaluate_run(tested, cohort)
    path = tested / EVALUATION / "low_drf4" / "baseline.json"
    content = json.loads(path.read_bytes())
    width = 3.0 if content["fwhm_mm"] != 3.0 else 4.0
    path.write_text(json.dumps({**content, "fwhm_mm": width}))
    again = evaluating.evaluate_run(tested, cohort, known=whole)["low_drf4"]
    assert f"Gaussian {width:g} mm" in again.images
    assert {row.image for row in again.rows} - {REFERENCE} == set(again.images)


@pytest.fixture
def guided(tested: Path) -> Path:
    """The same run, guided by the liver, with a segmentation network of nobody's training."""
    record = json.loads((tested / CONFIG).read_bytes())
    record["config"]["recipe"] |= {"rois": ["liver"], "segmenter_channels": 1, "phase_samples": [4, 4, 4, 4]}
    (tested / CONFIG).write_text(json.dumps(record))
    prove(tested)
    torch.manual_seed(0)
    network = Segmenter(1, 1)
    assert network.out.bias is not None
    torch.nn.init.constant_(network.out.bias, 100.0)  # finds the organ everywhere
    checkpoint.write_weights(tested / GUIDE, network.state_dict(), checkpoint.facts(tested / WEIGHTS))
    return tested


def of_another_patient(cohort: Path, folder: Path) -> Path:
    """A cohort of one case, phantom-001, whose images are those of phantom-000, of a patient whom nobody knows."""

    def plan(scratch: Path) -> CasePlan:
        case = open_cohort(cohort).case("phantom-000")
        images = {name: case.image(name) for name in ("full", "low_drf4", "labels")}
        doses = {name: case.image(name).dose for name in images}
        return CasePlan(images, "ann", "another scan", dict(case.labels), doses)

    ingest(folder, {"phantom-001": plan}, strict=True, workers=1)
    return folder


def test_the_segmenter_learns_from_the_training_cases_and_scores_every_image_and_the_one_that_guided_its_own(
    guided: Path, cohort: Path, tmp_path: Path
) -> None:
    config = OrganSegmenterConfig(
        rois=("liver",), channels=1, patch=(24, 24, 24), halo=0, samples=4, patches_per_case=1
    )
    segmenter = evaluating.make_segmenter(guided, cohort, config)
    assert segmenter.cases == open_cohort(cohort).cases[1:]
    guide = evaluating.guide_of_run(guided)
    evaluation = evaluating.evaluate_run(guided, cohort, segmenter=segmenter, guide=guide)["low_drf4"]
    assert {row.image for row in evaluation.rows if row.definition == config.definition} == {
        REFERENCE,
        *evaluation.images,
    }
    weights = guided / EVALUATION / "judge" / "judge.safetensors"
    made = weights.stat().st_mtime_ns
    evaluating.make_segmenter(guided, cohort, config)
    assert weights.stat().st_mtime_ns == made
    with pytest.raises(InputError, match="SET_NO_LABELS"):
        evaluating.make_segmenter(guided, cohort, OrganSegmenterConfig(rois=("thyroid",)))
    another = of_another_patient(cohort, tmp_path / "clinic")  # whose case has the name of one trained on
    assert set(open_cohort(another).cases) < set(segmenter.cases)
    outside = evaluating.make_segmenter(guided, another, config)
    assert weights.stat().st_mtime_ns == made
    scored = evaluating.evaluate_run(guided, another, segmenter=outside)["low_drf4"]
    assert {row.case for row in scored.rows if row.definition == config.definition} == set(open_cohort(another).cases)

    rows = [row for row in evaluation.rows if row.definition.metric == "Unet-score-SG"]
    assert {row.image for row in rows} == {evaluation.synthesized}
    assert {row.region for row in rows} == {"liver", "all organs", "mean over organs"}
    case = open_cohort(cohort).case(evaluation.cases[0])
    labels = case.image("labels").read(0, case.image("labels").grid.shape[0])
    share = float(np.isin(labels, [value for value, name in case.labels.items() if name == "liver"]).mean())
    assert next(row.value for row in rows if row.region == "liver") == pytest.approx(2 * share / (1 + share))
    shown = evaluation.unet_table("Unet-score-SG")
    assert shown is not None
    assert str(shown.title).startswith("Unet-score-SG of 1 test case")
    assert evaluating.read_evaluations(guided, cohort)["low_drf4"].rows == evaluation.rows


def test_lesions_that_are_put_in_are_looked_for_in_every_image(tested: Path, cohort: Path) -> None:
    config = task.TaskConfig(lesion_mm=30.0, lesion_contrast=4.0, places=6, scans=1)
    evaluation = evaluating.evaluate_run(tested, cohort, put_in=config)["low_drf4"]
    found = evaluating.read_evaluations(tested, cohort)["low_drf4"].metadata["task"]
    assert isinstance(found, dict)
    images = {one["image"]: one for one in found["images"]}
    assert list(images) == [REFERENCE, *evaluation.images]
    assert images[REFERENCE]["auc"] > 0.8
    assert all(0 <= one["auc"] <= 1 and 0 <= one["false_at_80"] <= 1 for one in images.values())
    assert found["best_baseline"] == evaluation.best_baseline
    assert "6 with and as many without a lesion, at 6 places of 1 case(s)" in found["rule"]
    assert task.gain_sentence(found).startswith(f"synthesized against {evaluation.best_baseline}: ")
    few = task.TaskConfig(lesion_mm=30.0, places=3, scans=1)
    with pytest.raises(InputError, match="SET_TOO_SMALL --task: 3 places"):
        evaluating.evaluate_run(tested, cohort, put_in=few)


def test_a_network_that_guided_is_proven_as_weights_are(guided: Path) -> None:
    tensors, facts = checkpoint.read_weights(guided / GUIDE)
    checkpoint.write_weights(guided / GUIDE, tensors, {**facts, proof.COHORT: "another"})
    with pytest.raises(InputError, match=r"CKPT_FOREIGN segmenter\.safetensors"):
        evaluating.guide_of_run(guided)
    content = bytearray((guided / GUIDE).read_bytes())
    content[-3] ^= 1
    (guided / GUIDE).write_bytes(content)
    with pytest.raises(InputError, match=r"CKPT_DAMAGED segmenter\.safetensors"):
        evaluating.guide_of_run(guided)


def test_a_run_without_such_a_network_and_a_mean_of_runs_are_told_so(
    tested: Path, cohort: Path, refused: Callable[..., str]
) -> None:
    told = refused("evaluate", tested, cohort, "--unet-score-sg")
    assert told.startswith("CKPT_NONE segmenter.safetensors: no segmentation network: no organ guided this run")
    assert "--unet-score-sg" in refused("evaluate", tested, cohort, "--unet-score-sg", "--flips", "z")
