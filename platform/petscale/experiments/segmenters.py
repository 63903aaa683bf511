"""Organ segmenters as the rows of a table: trained on full doses, and scored on those of the test patients."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from petscale.config import RunConfig
from petscale.console import bar
from petscale.evaluation.run import fit_segmenter
from petscale.evaluation.scores import REFERENCE, Evaluation, read_evaluation
from petscale.experiments.design import SegmenterRow
from petscale.experiments.digests import digest_of
from petscale.splits import split_cases
from storage import integrity
from storage.reader import open_cohort
from trainers.feed_config import FeedConfig
from trainers.metrics.definitions import Score
from trainers.metrics.unet_score import unet_scores
from trainers.organ_segmenter import OrganSegmenterConfig
from trainers.systems import RECIPES

SCORED = "full-dose"  # in a segmenter's folder: its scores


def segmenter_folder(home: Path, config: OrganSegmenterConfig, feed: FeedConfig, seen: Mapping[str, str]) -> Path:
    """Folder of an organ segmenter, named by what decides it; every run and table of the same patients shares it.

    Args:
        home: of the cohort.
        config: the segmenter.
        feed: of the runs that are scored.
        seen: case -> digest, of the cases that it is trained on.
    """
    own = [feed.target, feed.seed, feed.suv_scale, feed.cases_per_step]
    return home / "judges" / digest_of([config.stored, own, dict(seen)])


def score_segmenter(
    row: SegmenterRow, config: RunConfig, folds: int, fold: int, cohort: Path, home: Path
) -> Evaluation:
    """Train a row's segmenter on one fold's training patients and score it on the full dose of its test patients.

    Args:
        row: whose segmenter it is.
        config: the run whose patients, feed and device it shares.
        folds: parts of the cross-validation; ``fold`` is the one tested on.
        cohort: all patients.
        home: where segmenters of this cohort stand.

    Returns:
        The Dice of every organ, the full dose in the place of the image under test.

    Raises:
        InputError: as ``organ_segmenter.train_segmenter`` does.
    """
    opened = open_cohort(cohort)
    spec = RECIPES[config.recipe]
    roles = split_cases(
        opened,
        replace(config.split, folds=folds, fold=fold),
        unpaired="unpaired" in spec.ROLES,
        validation="validation" in spec.ROLES or config.loop.validate_every > 0,
    )
    digests = {name: str(integrity.manifest(opened.case(name).folder)["root"]) for name in roles.everyone}
    cases = (*roles.train, *roles.unpaired)
    place = segmenter_folder(home, row.config, config.feed, {name: digests[name] for name in cases})
    about: dict[str, Any] = {"segmenter": place.name, "scored": {name: digests[name] for name in roles.test}}
    if (place / SCORED / "scores.json").is_file():
        there = read_evaluation(place / SCORED)
        if there.metadata == about:
            return there
    segmenter = fit_segmenter(place, opened, cases, row.config, config)
    rows: list[Score] = []
    with bar("Unet-score", len(roles.test)) as advance:
        for name in roles.test:
            case = opened.case(name)
            full = {REFERENCE: case.image(config.feed.target)}
            rows += unet_scores(segmenter, name, full, case.image("labels"), case.labels)
            advance(1, name)
    found = Evaluation(tuple(rows), (REFERENCE,), tuple(roles.test), about)
    (place / SCORED).mkdir(exist_ok=True, mode=0o700)
    found.write(place / SCORED)
    return found
