"""Scoring of a case, summaries, paired tests and files."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import wilcoxon
from volumes import GRID, ellipse, noisy, source

from petscale.evaluation.baselines import INPUT, best_gaussian
from petscale.evaluation.scores import REFERENCE, SYNTHESIZED, Evaluation, read_evaluation
from petscale.evaluation.scoring import score_case
from storage.errors import InputError
from storage.source import LABEL
from trainers.metrics.definitions import Region, Score
from trainers.metrics.identifiers import ABOVE_41, sentence
from trainers.metrics.presets import BODY_PSNR, PRESETS
from trainers.metrics.unet_score import MEAN, UNION
from trainers.organ_segmenter import OrganSegmenter, OrganSegmenterConfig

NAMES = {1: "body", 2: "liver", 3: "lesion"}
CPU = torch.device("cpu")


def truth() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    z, y, x = np.indices(GRID.shape)
    labels = ellipse().astype(np.float32)
    labels[10:20, 8:16, 6:14] = 2
    for centre in ((30, 12, 10), (30, 12, 20)):
        labels[sum((a - b) ** 2 for a, b in zip((z, y, x), centre, strict=True)) < 9] = 3
    return labels, np.choose(labels.astype(int), (0.0, 1.0, 3.0, 8.0))


def rows(seed: int = 0) -> tuple[list[Score], tuple[str, ...]]:
    labels, activity = truth()
    full, low = noisy(activity, 0.05, seed), noisy(activity, 0.6, seed + 100)
    body, marks = source(labels > 0, LABEL), source(labels, LABEL)
    choice = best_gaussian([(low, full, body)], (3.0, 6.0, 12.0))
    better = source(0.7 * activity + 0.3 * low.voxels)
    candidates = {**choice.beside(low), SYNTHESIZED: better}
    return score_case(f"case-{seed:06d}", full, candidates, body=body, labels=marks, label_names=NAMES), tuple(
        candidates
    )


def test_a_case_is_scored_in_volume_body_organs_and_each_lesion() -> None:
    scores, images = rows()
    assert {(s.region, s.kind) for s in scores} == {
        ("whole volume", "whole"),
        ("body", "body"),
        ("liver", "organ"),
        ("lesion 1", "lesion"),
        ("lesion 2", "lesion"),
    }
    assert tuple(dict.fromkeys(s.image for s in scores if s.definition in PRESETS["native"])) == images
    assert all(("training case" in s.image_rule) == s.image.startswith("Gaussian") for s in scores)


def made_up(gains: Sequence[float], name: str = "Gaussian 5 mm") -> Evaluation:
    """An evaluation whose PSNR gains over the input are given."""
    score = Score("", "", "body", "body", BODY_PSNR, 0.0, 8.0)
    scores = []
    for index, gain in enumerate(gains):
        for image, value in ((INPUT, 30.0), (name, 30.5), (SYNTHESIZED, 30.0 + gain)):
            scores.append(replace(score, case=f"case-{index}", image=image, value=value))
    return Evaluation(tuple(scores), (INPUT, name, SYNTHESIZED), tuple(f"case-{i}" for i in range(len(gains))))


def test_gain_is_paired_and_tested_from_six_cases_on() -> None:
    gains = [0.5, 1.0, 0.8, -0.2, 1.4, 0.9, 1.1]
    gain = made_up(gains).gain(INPUT)
    assert gain.mean == pytest.approx(np.mean(gains))
    assert gain.sd == pytest.approx(np.std(gains, ddof=1))
    assert (gain.num_better, gain.num_cases) == (6, 7)
    assert gain.p_value == pytest.approx(wilcoxon(gains).pvalue)
    assert made_up(gains[:5]).gain(INPUT).p_value is None
    assert made_up(gains).gain("no such image") is None


def test_lesions_are_summed_up_per_case_first() -> None:
    score = Score("a", INPUT, "lesion 1", "lesion", PRESETS["native"][8], 10.0)
    scores = (score, replace(score, region="lesion 2", value=20.0), replace(score, case="b", value=30.0))
    (line,) = Evaluation(scores, (INPUT, SYNTHESIZED), ("a", "b")).summary()
    assert (line.region, line.mean, line.num_cases) == ("lesions", 22.5, 2)


def test_files_hold_every_row_with_its_rule_and_no_infinity(tmp_path: Path) -> None:
    scores, images = rows()
    infinite = replace(scores[0], value=math.inf)
    evaluation = Evaluation((infinite, *scores[1:]), images, ("case-000000",), {"drf": 20})
    evaluation.write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.csv", "scores.json"]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text())))
    assert len(lines) == len(scores)
    assert float(lines[1]["value"]) == scores[1].value
    for column in ("metric", "units", "data_range", "mask", "clip", "dimensionality", "aggregation", "preset"):
        assert column in lines[0]
    content = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert content["scores"][0]["value"] is None
    assert content["metadata"] == {"drf": 20}


def test_scores_are_read_back(tmp_path: Path) -> None:
    scores, images = rows()
    written = Evaluation(tuple(scores), images, ("case-000000",), {"drf": 20})
    written.write(tmp_path)
    read = read_evaluation(tmp_path)
    assert (read.rows, read.images, read.cases, read.metadata) == (tuple(scores), images, written.cases, {"drf": 20})
    content = json.loads((tmp_path / "scores.json").read_text())  # as earlier versions stored it: sentences
    content["rules"] = [{"judge": "", **sentences_of(rule)} for rule in content["rules"]]
    (tmp_path / "scores.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="SET_EVALUATION"):  # changed, and of the same digest
        read_evaluation(tmp_path)
    del content["digest"]
    (tmp_path / "scores.json").write_text(json.dumps(content))
    assert read_evaluation(tmp_path).rows == read.rows
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(InputError, match="SET_EVALUATION"):
        read_evaluation(tmp_path)


def sentences_of(rule: Mapping[str, str]) -> dict[str, str]:
    """A rule as earlier versions stored it; what they did not know yet stays an identifier."""
    return {name: text if text == ABOVE_41 else sentence(text) for name, text in rule.items() if name != "segmenter"}


def test_table_shows_every_image_beside_the_input() -> None:
    scores, images = rows()
    text = shown(Evaluation(tuple(scores), images, ("case-000000",)).table())
    for word in (*images, "PSNR [dB]", "MAE [SUVbw]", "gain [dB]", "body", "lesions"):
        assert word in text


def shown(table: Table | None) -> str:
    screen = io.StringIO()
    Console(width=200, file=screen).print(table)
    return screen.getvalue()


def test_the_segmenter_is_asked_about_every_image_and_the_full_dose_first() -> None:
    labels, activity = truth()
    full, low = noisy(activity, 0.01, 0), noisy(activity, 2.0, 1)
    config = OrganSegmenterConfig(rois=("liver", "lesion"), patch=(16, 16, 16), halo=4)
    segmenter = OrganSegmenter(config, 1.0, lambda image: torch.cat([1 - (image - 3).abs(), image - 6], dim=1), CPU)
    scores = score_case(
        "c",
        full,
        {INPUT: low, SYNTHESIZED: full},
        body=source(labels > 0, LABEL),
        labels=source(labels, LABEL),
        label_names=NAMES,
        presets=("udpet2022", "s3pet"),
        segmenter=segmenter,
    )
    asked = [score for score in scores if score.definition.metric == "Unet-score"]
    assert list(dict.fromkeys(score.image for score in asked)) == [REFERENCE, INPUT, SYNTHESIZED]
    assert list(dict.fromkeys(score.region for score in asked)) == ["liver", "lesion", UNION, MEAN]
    assert {s.region for s in scores if s.definition.metric == "MAPE"} == {"liver", "whole volume"}
    evaluation = Evaluation(tuple(scores), (INPUT, SYNTHESIZED), ("c",))
    dice = {
        image: evaluation.values(image, config.definition, "liver")["c"] for image in (REFERENCE, INPUT, SYNTHESIZED)
    }
    assert dice[REFERENCE] == dice[SYNTHESIZED] == 1.0 > dice[INPUT]
    text = shown(evaluation.unet_table())
    for word in (REFERENCE, INPUT, SYNTHESIZED, "liver", UNION, "1.0000"):
        assert word in text
    assert evaluation.table() is not None  # the project's own rules were not asked for: an empty one
    assert made_up([1.0]).unet_table() is None


def test_regions_need_no_labels() -> None:
    labels, activity = truth()
    full = source(activity)
    scores = score_case("c", full, {SYNTHESIZED: full}, body=source(labels > 0, LABEL))
    assert {s.kind for s in scores} == {"whole", "body"}
    assert Region("body", "body").is_scored_by(scores[-1].definition)
