"""The contract that every recipe in the registry keeps; a new paper is tested here before anything else."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doses import stated

from storage.ingest import CasePlan, ingest
from storage.reader import Case, open_cohort
from storage.source import ArraySource, ImageSource
from trainers import first_weights
from trainers.engine import EngineConfig, plain_engine
from trainers.feed import Feed
from trainers.feed_config import FeedConfig
from trainers.habits import Engines
from trainers.metrics.presets import PRESETS
from trainers.recipe import EngineFactory, Recipe, State, Synthesizer, Validated
from trainers.synthesize import InSuv, case_context, synthesize
from trainers.systems import RECIPES

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
    "cg_3dsrgan": {
        "doses": (4.0, 20.0),
        "patch": (32, 32, 32),
        "mlnet_channels": 2,
        "head_hidden": 4,
        "contextual_channels": 2,
        "discriminator_channels": 2,
        "perceptual": "masked",
        "backbone_samples": 4,
        "epoch_samples": 2,
        "max_epochs": 3,
        "calibration_samples": 4,
        "validate_batches": 1,
    },
    "s3pet": {
        "window": 32,
        "slices": 2,
        "dim": 16,
        "blocks": 1,
        "heads": 2,
        "decoder_channels": (8, 4, 4, 4),
        "low_samples": 12,
        "full_samples": 12,
        "swap_samples": 12,
    },
    "cascade": {
        "stages": 2,
        "dense": "images",
        "loss_at": "all",
        "patch": (1, 64, 64),
        "width": 4,
        "downs": 5,
        "critic_width": 4,
        "critic_strides": (2, 1),
        "epoch_samples": 4,
        "epochs": 2,
        "validate_batches": 1,
    },
    "virtual_pet": {
        "patch": (1, 64, 64),
        "fcn_widths": (4, 4, 8, 8, 8),
        "fcn_fc": 8,
        "fcn_fc6_kernel": 3,
        "generator_width": 4,
        "generator_downs": 3,
        "critic_width": 4,
        "critic_strides": (2, 1),
        "blend_levels": 1,
        "fcn_samples": 6,
        "cgan_samples": 6,
        "epoch_samples": 2,
        "validate_batches": 1,
    },
    "restore": {
        "channels": (4, 4),
        "patch": (16, 16, 16),
        "margin": (4, 4, 4),
        "patches_per_case": 1,
        "bank_samples": 4,
        "samples": 8,
    },
    "restore_ct": {
        "channels": (4, 4),
        "patch": (16, 16, 16),
        "patches_per_case": 1,
        "table_samples": 4,
        "samples": 8,
    },
    "red_cnn": {"channels": 4, "patch": (2, 24, 24), "patches_per_case": 1, "samples": 8},
    "cycle_gan": {
        "width": 2,
        "blocks": 1,
        "critic_width": 2,
        "pool": 3,
        "patch": (1, 24, 24),
        "samples": 6,
        "decay_samples": 6,
    },
    "cycle_gan_3d": {
        "width": 1,
        "blocks": 1,
        "critic_width": 1,
        "lambda_identity": 0.0,
        "pool": 3,
        "patch": (24, 24, 24),
        "samples": 4,
        "decay_samples": 4,
    },
    "semipet": {
        "width": 2,
        "blocks": 1,
        "critic_width": 2,
        "hidden": 2,
        "pool": 3,
        "patch": (1, 24, 24),
        "samples": 12,
    },
    "cycle_wgan": {"width": 2, "downs": 3, "critic_width": 2, "patch": (24, 24, 24), "samples": 6},
    "unet": {"channels": (4, 4), "patch": (16, 16, 16), "margin": (4, 4, 4), "patches_per_case": 1, "samples": 8},
    "unet_3d": {
        "channels": 2,
        "critic_channels": 2,
        "patch": (32, 32, 32),
        "patches_per_case": 2,
        "context_patches": 2,
        "samples": 8,
    },
    "cgan_3d": {"width": 2, "downs": 2, "critic_width": 2, "patch": (32, 32, 32), "patches_per_case": 2, "samples": 8},
    "auto_context": {
        "channels": 4,
        "patch": (2, 32, 32),
        "patches_per_case": 1,
        "stage_samples": 4,
        "joint_samples": 4,
    },
    "ar_gan": {
        "width": 2,
        "downs": 3,
        "rectifier_width": 2,
        "critic_width": 2,
        "patch": (1, 32, 32),
        "patches_per_case": 1,
        "samples": 6,
    },
    "cvt_gan": {"width": 2, "critic_width": 1, "patch": (32, 32, 32), "patches_per_case": 2, "samples": 8},
    "medgan": {
        "stages": 2,
        "width": 2,
        "downs": 3,
        "critic_width": 2,
        "lambda_style": 0.0,
        "lambda_content": 0.0,
        "patch": (1, 32, 32),
        "samples": 8,
    },
    "dsg_gan": {
        "width": 2,
        "downs": 3,
        "critic_width": 2,
        "patch": (1, 32, 32),
        "structure_samples": 6,
        "texture_samples": 6,
    },
}


def feed_config(name: str) -> FeedConfig:
    published = RECIPES[name].FEED
    low = published.source if published.source == ("ct",) else ("low_drf4", "low_drf20")[-len(published.source) :]
    return replace(published, source=low, cases_per_step=2)


def build(name: str, make_engine: EngineFactory = plain_engine) -> Recipe:
    torch.manual_seed(0)
    config = RECIPES[name].Config(**SMALL[name])
    RECIPES[name].check(config, feed_config(name), stated(*feed_config(name).source))
    return RECIPES[name].build(
        config, make_engine=make_engine, patches_per_step=config.patches_per_case * feed_config(name).cases_per_step
    )


def feed(cohort: Path, name: str, recipe: Recipe) -> Feed:
    opened = open_cohort(cohort)
    streams = dict.fromkeys(("paired", "source", "target", "unpaired"), opened.cases)
    return Feed(opened, streams, feed_config(name), recipe.batch_spec, rank=0, world=1, device=torch.device("cpu"))


def steps(cohort: Path, name: str, recipe: Recipe, begin: int, end: int) -> list[dict[str, float]]:
    source = feed(cohort, name, recipe)
    found = []
    for step in range(begin, end):
        torch.manual_seed(step)
        found.append({k: float(v) for k, v in recipe.step(source.batch(step, recipe.num_steps), step).items()})
    source.close()
    return found


def flat(recipe: Recipe) -> dict[str, torch.Tensor]:
    return {f"{engine}/{key}": v for engine, tensors in recipe.state().items() for key, v in tensors.items()}


@dataclass(frozen=True)
class Trained:
    """A recipe at its end: what it measured at every step, and its state one step into every phase."""

    recipe: Recipe
    metrics: list[dict[str, float]]
    states: dict[int, State]


@pytest.fixture(scope="module")
def trained(cohort: Path) -> Callable[[str], Trained]:
    """Train a recipe straight to its end, once for all tests; read only."""

    @cache
    def train(name: str) -> Trained:
        recipe = build(name)
        middles = [start + 1 for start in recipe.phase_starts.values()]
        metrics: list[dict[str, float]] = []
        states: dict[int, State] = {}
        for begin, end in pairwise([0, *middles, recipe.num_steps]):
            metrics += steps(cohort, name, recipe, begin, end)
            states[end] = copy.deepcopy(recipe.state())
        return Trained(recipe, metrics, {middle: states[middle] for middle in middles})

    return train


def test_every_recipe_has_a_small_size() -> None:
    assert SMALL.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_config_is_frozen_keyword_only_and_all_defaults(name: str) -> None:
    config = RECIPES[name].Config()
    assert dataclasses.is_dataclass(config)
    assert dataclasses.replace(config) == config  # type: ignore[type-var]
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, None)
    assert config.patches_per_case >= 1


@pytest.mark.parametrize("name", RECIPES)
def test_a_system_says_how_it_is_fed_scored_and_reported(name: str) -> None:
    spec = RECIPES[name]
    config = spec.Config(**SMALL[name])
    assert PRESETS[spec.PRESET]
    assert all(isinstance(caveat, str) and caveat for caveat in spec.caveats(config))
    assert spec.caveats(config)
    assert spec.files(config) == {}, "the small size needs no file from elsewhere"
    with torch.device("meta"):  # what is asked before a cluster starts costs no memory
        dry = spec.build(config, make_engine=plain_engine, patches_per_step=2)
    assert {dry.batch_spec(step).images for step in range(dry.num_steps)} <= {
        "paired",
        "source",
        "target",
        "unpaired",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_phase_steps_finitely_and_resumes_bit_equal_in_its_middle(
    name: str, cohort: Path, trained: Callable[[str], Trained]
) -> None:
    straight, expected = trained(name).recipe, trained(name).metrics
    total = straight.num_steps
    assert list(straight.phase_starts.values()) == sorted(straight.phase_starts.values())
    for phase, start in straight.phase_starts.items():
        assert straight.phase(start) == phase
    assert len(expected) == total
    assert all(np.isfinite(list(metrics.values())).all() for metrics in expected)
    assert len(trained(name).states) == len(straight.phase_starts)
    for middle, state in trained(name).states.items():
        second = build(name)
        second.load(state)
        assert steps(cohort, name, second, middle, total) == expected[middle:]
        found = flat(second)
        for key, value in flat(straight).items():
            assert torch.equal(value, found[key]), key


@pytest.mark.parametrize("name", RECIPES)
def test_averaged_weights_are_exported_and_are_those_that_a_synthesizer_uses(
    name: str, cohort: Path, trained: Callable[[str], Trained]
) -> None:
    engines = Engines(plain_engine, EngineConfig(ema_decay=0.9))
    averaged, bare = build(name, engines.make), trained(name).recipe
    expected = trained(name).metrics
    assert steps(cohort, name, averaged, 0, averaged.num_steps)[0] == expected[0]
    exported, current = averaged.weights(), bare.weights()
    assert exported.keys() == current.keys()
    assert any(not torch.equal(value, exported[key]) for key, value in current.items())
    alone = RECIPES[name].weights_to_synthesizer(RECIPES[name].Config(**SMALL[name]), exported)
    case = open_cohort(cohort).case("phantom-000")
    fed = feed_config(name)
    images = []
    for synthesizer in (averaged.synthesizer(), alone):
        in_suv = InSuv(synthesizer, fed.suv_scale, case.image(fed.source[0]).units)
        volume = np.zeros(case.image("full").grid.shape, dtype=np.float32)

        def write(z0: int, slab: np.ndarray) -> None:
            volume[z0 : z0 + len(slab)] = slab  # noqa: B023

        with engines.averaged():
            synthesize(in_suv, case, fed.source[0], write, device=torch.device("cpu"))
        images.append(volume)
    assert np.array_equal(*images)  # type: ignore[arg-type]


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

        def write(z0: int, slab: np.ndarray) -> None:
            volume[z0 : z0 + len(slab)] = slab  # noqa: B023
            covered[z0 : z0 + len(slab)] += 1  # noqa: B023

        fed = feed_config(name)
        in_suv = InSuv(synthesizer, fed.suv_scale, case.image(fed.source[0]).units)
        synthesize(in_suv, case, fed.source[0], write, device=torch.device("cpu"))
        assert (covered == 1).all()
        assert np.isfinite(volume).all()
        results.append(volume)
    assert np.array_equal(*results)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def backwards(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A patient mirrored along all axes, as a file of him or her would be."""
    case = open_cohort(cohort).case("phantom-000")
    images: dict[str, ImageSource] = {}
    for name in ("full", "low_drf4", "low_drf20", "ct"):
        image = case.image(name)
        voxels = np.flip(image.read(0, image.grid.shape[0])).copy()
        images[name] = ArraySource(voxels, image.grid, image.units)
    folder = tmp_path_factory.mktemp("backwards")
    ingest(folder, {"backwards": lambda _: CasePlan(images, "s", "f")}, strict=True)
    return open_cohort(folder).case("backwards")


@pytest.mark.parametrize("name", RECIPES)
def test_a_mirrored_case_is_synthesized_as_its_mirrored_file_would_be(name: str, cohort: Path, backwards: Case) -> None:
    """Also where windows are tied to positions; a context is drawn anew in another file, and given here."""
    fed, everywhere = feed_config(name), (0, 1, 2)
    case = open_cohort(cohort).case("phantom-000")
    in_suv = InSuv(build(name).synthesizer(), fed.suv_scale, case.image(fed.source[0]).units)
    context = case_context(in_suv, case, fed.source[0], device=torch.device("cpu"), mirrored=everywhere)

    def made(of: Case, synthesizer: Synthesizer, mirrored: tuple[int, ...]) -> np.ndarray:
        volume = np.full(of.image("full").grid.shape, np.nan, dtype=np.float32)

        def write(z0: int, slab: np.ndarray) -> None:
            assert np.isnan(volume[z0 : z0 + len(slab)]).all(), "a voxel was written twice"
            volume[z0 : z0 + len(slab)] = slab

        synthesize(synthesizer, of, fed.source[0], write, device=torch.device("cpu"), mirrored=mirrored)
        return volume

    @dataclass(frozen=True)
    class Given:
        """The system with the context of the case mirrored."""

        tiling = in_suv.tiling
        context_batch = None

        def context(self, overview: torch.Tensor, source: torch.Tensor) -> dict[str, torch.Tensor]:
            raise AssertionError("asks for no context")

        def __call__(self, source: torch.Tensor, _: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return in_suv(source, context)

    seen, filed = made(case, in_suv, everywhere), made(backwards, Given(), ())
    assert np.isfinite(seen).all()
    assert np.array_equal(np.flip(seen), filed)


@pytest.mark.parametrize("name", RECIPES)
def test_validation_trains_nothing_and_the_schedule_goes_forward(name: str, cohort: Path) -> None:
    recipe = build(name)
    if not isinstance(recipe, Validated):
        pytest.skip("its schedule follows no scores")
    steps(cohort, name, recipe, 0, recipe.num_steps // 2)
    source = feed(cohort, name, recipe)
    before = flat(recipe)
    scores = [recipe.validate(source.batch(0, 1)) for _ in range(2)]
    source.close()
    assert {k: float(v) for k, v in scores[0].items()} == {k: float(v) for k, v in scores[1].items()}
    after = flat(recipe)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    middle = recipe.num_steps // 2
    assert middle <= recipe.observe(middle, {k: float(v) for k, v in scores[0].items()}) <= recipe.num_steps


@pytest.mark.parametrize("name", RECIPES)
def test_its_networks_can_start_from_what_a_run_exported(name: str) -> None:
    drawn = torch.get_rng_state()
    placed, others = first_weights.places(lambda make: build(name, make))
    assert torch.equal(torch.get_rng_state(), drawn)
    numbers = torch.Generator().manual_seed(1)
    given = {
        key: torch.rand(value.shape, generator=numbers) if value.is_floating_point() else value + 3
        for key, value in build(name).weights().items()
    }
    first_weights.check_fits(given, placed, others, "weights")
    made = build(name, first_weights.starting_from(plain_engine, given, placed)).weights()
    assert placed
    assert all(torch.equal(made[key], given[key]) for key in placed)
    assert placed.keys() | others == made.keys()
    assert all(key.startswith(("bank.", "table.", "gaussian.")) for key in others)  # what every run fits itself
