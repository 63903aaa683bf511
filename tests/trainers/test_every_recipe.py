"""The contract that every recipe in the registry keeps; a new paper is tested here before anything else."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.reader import open_cohort
from trainers import RECIPES
from trainers.engine import plain_engine
from trainers.feed import Feed, FeedConfig
from trainers.recipe import Recipe
from trainers.synthesize import synthesize

# The smallest honest size of each system: every phase, seconds on one core.
SMALL: dict[str, dict[str, Any]] = {
    "sgsgan": {
        "patch": (24, 24, 24),
        "patches_per_case": 1,
        "context_patches": 2,
        "critic_channels": 2,
        "segmenter_channels": 2,
        "phase_samples": (4, 4, 4, 4),
    },
}
FEED = FeedConfig(low=("low_drf4",), cases_per_step=2)


def build(name: str) -> Recipe:
    torch.manual_seed(0)
    config = RECIPES[name].Config(**SMALL[name])
    return RECIPES[name].build(
        config, make_engine=plain_engine, patches_per_step=config.patches_per_case * FEED.cases_per_step
    )


def feed(cohort: Path, recipe: Recipe) -> Feed:
    opened = open_cohort(cohort)
    return Feed(
        opened,
        {"paired": opened.cases, "low": opened.cases, "full": opened.cases},
        FEED,
        recipe.needs,
        rank=0,
        world=1,
        device=torch.device("cpu"),
    )


def steps(cohort: Path, recipe: Recipe, begin: int, end: int) -> list[dict[str, float]]:
    source = feed(cohort, recipe)
    found = []
    for step in range(begin, end):
        torch.manual_seed(step)
        found.append({k: float(v) for k, v in recipe.step(source.batch(step, recipe.num_steps), step).items()})
    source.close()
    return found


def flat(recipe: Recipe) -> dict[str, torch.Tensor]:
    return {f"{engine}/{key}": v for engine, tensors in recipe.state().items() for key, v in tensors.items()}


def test_every_recipe_has_a_small_size() -> None:
    assert SMALL.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_config_is_frozen_keyword_only_and_all_defaults(name: str) -> None:
    config = RECIPES[name].Config()
    assert dataclasses.is_dataclass(config)
    assert dataclasses.replace(config) == config
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, None)
    assert config.patches_per_case >= 1


@pytest.mark.parametrize("name", RECIPES)
def test_every_phase_steps_finitely_and_resumes_bit_equal_in_its_middle(name: str, cohort: Path) -> None:
    straight = build(name)
    total = straight.num_steps
    assert list(straight.phase_starts.values()) == sorted(straight.phase_starts.values())
    for phase, start in straight.phase_starts.items():
        assert straight.phase(start) == phase
    expected = steps(cohort, straight, 0, total)
    assert all(np.isfinite(list(metrics.values())).all() for metrics in expected)
    for middle in (start + 1 for start in straight.phase_starts.values()):
        first, second = build(name), build(name)
        steps(cohort, first, 0, middle)
        second.load(first.state())
        assert steps(cohort, second, middle, total) == expected[middle:]
        found = flat(second)
        for key, value in flat(straight).items():
            assert torch.equal(value, found[key]), key


@pytest.mark.parametrize("name", RECIPES)
def test_exported_weights_synthesize_a_whole_volume_as_the_recipe_does(name: str, cohort: Path) -> None:
    recipe = build(name)
    config = RECIPES[name].Config(**SMALL[name])
    alone = RECIPES[name].weights_to_synthesizer(config, recipe.weights())
    case = open_cohort(cohort).case("phantom-000")
    shape = case.image("full").grid.shape
    results = []
    for synthesizer in (recipe.synthesizer(), alone):
        covered = np.zeros(shape[0], dtype=int)
        volume = np.full(shape, np.nan, dtype=np.float32)

        def write(z0: int, slab: np.ndarray) -> None:  # type: ignore[type-arg]
            volume[z0 : z0 + len(slab)] = slab  # noqa: B023
            covered[z0 : z0 + len(slab)] += 1  # noqa: B023

        synthesize(synthesizer, case, "low_drf4", write, suv_scale=1.0, device=torch.device("cpu"))
        assert (covered == 1).all()
        assert np.isfinite(volume).all()
        results.append(volume)
    assert np.array_equal(*results)
