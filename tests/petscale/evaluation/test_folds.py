"""Scores of all folds joined: patients are the unit, and a baseline chosen in each fold is one image."""

from dataclasses import replace

import pytest

from petscale.evaluation.folds import gather
from petscale.evaluation.scores import Evaluation
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR


def fold(width: float, values: dict[str, float], *, more: tuple[str, ...] = ()) -> Evaluation:
    images = ("low-dose input", f"Gaussian {width:g} mm", *more, "synthesized")
    rows = [
        Score(case, image, region, kind, BODY_PSNR, value + place + added)
        for case, value in values.items()
        for place, image in enumerate(images)
        for region, kind, added in (("body", "body", 0.0), ("lesion 1", "lesion", 10.0), ("lesion 2", "lesion", 30.0))
    ]
    return Evaluation(tuple(rows), images, tuple(values), {"source": "low_drf4", "baseline": f"{width:g}"})


SUBJECTS = {"a": "A", "b1": "B", "b2": "B", "c": "C"}


def test_a_patient_of_two_scans_counts_once_and_lesions_are_averaged_within_a_scan_first() -> None:
    second = fold(5, {"c": 40.0, "b1": 20.0, "b2": 30.0})
    # one lesion alone in the second scan: within scans 40 and 40, over all lesions together 43.3
    kept = [row for row in second.rows if (row.case, row.region) != ("b2", "lesion 2")]
    whole = gather({"fold-0": fold(5, {"a": 10.0}), "fold-1": replace(second, rows=tuple(kept))}, SUBJECTS)
    assert whole.cases == ("a", "c", "b1+b2")
    assert whole.values("low-dose input", BODY_PSNR, "body") == {"a": 10.0, "c": 40.0, "b1+b2": 25.0}
    lesions = whole.values("low-dose input", BODY_PSNR, "lesions")
    assert lesions == {"a": 30.0, "c": 60.0, "b1+b2": pytest.approx((40.0 + 40.0) / 2)}
    assert whole.metadata["folds"] == {"a": "fold-0", "c": "fold-1", "b1+b2": "fold-1"}
    assert whole.metadata["patients"] == {"a": ["a"], "c": ["c"], "b1+b2": ["b1", "b2"]}
    gain = whole.gain("low-dose input")
    assert gain is not None
    assert gain.num_cases == 3


def test_a_gaussian_of_another_width_in_every_fold_is_one_image_and_what_a_fold_lacks_is_left_out() -> None:
    folds = {"fold-0": fold(5, {"a": 10.0}, more=("non-local means",)), "fold-1": fold(6.5, {"c": 20.0})}
    whole = gather(folds, SUBJECTS)
    assert whole.images == ("low-dose input", "Gaussian, chosen in each fold", "synthesized")
    assert {row.image for row in whole.rows} == set(whole.images)
    assert whole.values("Gaussian, chosen in each fold", BODY_PSNR, "body") == {"a": 11.0, "c": 21.0}
    assert whole.metadata["baseline"] == {"fold-0": "5", "fold-1": "6.5"}
