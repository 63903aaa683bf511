"""Validation of any system: what a patch gains, which patches are restored, and which weights are kept."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from storage.randomness import generator
from storage.reader import open_cohort
from trainers.assembly import WindowSynthesizer
from trainers.feed_config import FeedConfig
from trainers.recipe import Tiling
from trainers.validation import Best, Patches, gain_db, place

TILING = Tiling(tile=(16, 16, 16), halo=(2, 2, 2), multiple=(4, 4, 4))
CPU = torch.device("cpu")


def restoring(factor: float = 1.0) -> WindowSynthesizer:
    """Multiplies what it is given."""
    return WindowSynthesizer(nn.Identity(), TILING, run=lambda source: factor * source[:, :, 2:-2, 2:-2, 2:-2])


def patches(cohort: Path, *, rank: int = 0, world: int = 1, number: int = 6, **settings: Any) -> Patches:
    opened = open_cohort(cohort)
    config = FeedConfig(**{"source": ("low_drf4", "low_drf20"), "suv_scale": 4.0, **settings})
    return Patches(opened, opened.cases[2:], config, number, rank=rank, world=world, device=CPU)


def test_the_image_that_is_given_gains_nothing_and_the_wanted_one_much(cohort: Path) -> None:
    assert torch.equal(patches(cohort)(restoring()), torch.zeros(6, dtype=torch.float64))
    assert (patches(cohort, source=("full",))(restoring()) == 0).all()
    worse = patches(cohort)(restoring(2.0))
    assert (worse < 0).all()


def test_a_ct_is_compared_with_an_empty_image(cohort: Path) -> None:
    of_ct = patches(cohort, source=("ct",), suv_scale=1.0)
    assert torch.equal(of_ct(restoring(0.0)), torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("world", [2, 3, 8])
def test_all_ranks_together_score_what_one_would(cohort: Path, world: int) -> None:
    alone = patches(cohort)(restoring(0.9))
    together = [patches(cohort, rank=rank, world=world)(restoring(0.9)) for rank in range(world)]
    assert torch.equal(torch.stack(together).sum(0), alone)


def test_patches_are_the_same_every_time_and_follow_the_seed(cohort: Path) -> None:
    one = patches(cohort)
    first = one(restoring(0.9))
    assert torch.equal(one(restoring(0.9)), first)
    assert torch.equal(patches(cohort)(restoring(0.9)), first)
    assert not torch.equal(patches(cohort, seed=1)(restoring(0.9)), first)
    # The first ones stay when more are asked for.
    assert torch.equal(patches(cohort, number=9)(restoring(0.9))[:6], first)


def test_a_patch_lies_where_the_tiling_allows() -> None:
    body = np.ones((5, 4, 4), dtype=np.float32)
    maps: Any = SimpleNamespace(shape=(40, 28, 28), body=body, uptake=body, rois={})
    for number in range(20):
        box = place(TILING, maps, generator(0, number))
        assert all(a % 4 == 0 and 0 <= a < size for a, size in zip(box.start, maps.shape, strict=True))


def test_a_gain_is_a_ratio_of_squared_errors_in_db() -> None:
    wanted = torch.zeros(1, 2, 2)
    assert gain_db(wanted + 1, wanted + 0.1, wanted) == pytest.approx(20)
    assert gain_db(wanted + 0.1, wanted + 1, wanted) == pytest.approx(-20)
    assert gain_db(wanted + 1, wanted + math.nan, wanted) == -math.inf


@given(st.lists(st.floats(-5, 5) | st.just(-math.inf), min_size=1, max_size=12))
def test_the_best_is_the_first_of_the_highest_scores(scores: list[float]) -> None:
    best = Best()
    for step, score in enumerate(scores, 1):
        best = best.after(score, step, {"w": torch.tensor([float(step)])})
        again = Best.of(best.state())
        assert (again.gain_db, again.step, again.since) == (best.gain_db, best.step, best.since)
        assert torch.equal(again.weights["w"], best.weights["w"])
    assert best.gain_db == max(scores)
    assert best.step == scores.index(max(scores)) + 1
    assert best.since == len(scores) - best.step
    assert best.weights["w"].item() == best.step


def test_kept_weights_do_not_follow_the_training() -> None:
    weights: dict[str, Tensor] = {"w": torch.zeros(2)}
    best = Best().after(1.0, 1, weights)
    weights["w"] += 1
    assert not best.weights["w"].any()
