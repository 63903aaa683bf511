"""Every space holds the paper's values and nothing that a recipe would refuse."""

import inspect
from dataclasses import fields, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FixedTrial

from storage.errors import InputError
from trainers.systems import BUILT_IN, RECIPES
from tune_spaces import COMPOSED, SPACES, Settings, paper, present_names, spaces_of

EVERY = [(recipe, name) for recipe, spaces in SPACES.items() for name in spaces]
Sample = tuple[Settings, dict[str, Any], dict[str, BaseDistribution]]


def apply(config: Any, settings: Settings) -> Any:
    return replace(config, **{key.removeprefix("recipe."): value for key, value in settings.items()})


@cache
def samples(recipe: str, name: str) -> list[Sample]:
    """(settings, parameters, distributions) of 200 random trials."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(200)]
    return [(SPACES[recipe][name](trial), trial.params, trial.distributions) for trial in trials]


def test_every_recipe_has_spaces() -> None:
    assert SPACES.keys() == BUILT_IN.keys()
    assert COMPOSED.keys() <= RECIPES.keys()
    assert all("losses" in spaces for spaces in SPACES.values())
    assert "masking" in SPACES["s3pet"]
    assert "depth" in SPACES["cascade"]


@pytest.mark.parametrize(("recipe", "name"), EVERY)
def test_the_paper_lies_in_the_space_and_comes_back(recipe: str, name: str) -> None:
    config = RECIPES[recipe].Config()
    params = paper(recipe, name, config)
    assert params
    settings = SPACES[recipe][name](FixedTrial(params))  # an out-of-range value would warn, and warnings are errors
    assert apply(config, settings) == config


def test_the_papers_values() -> None:
    assert paper("s3pet", "masking", RECIPES["s3pet"].Config()) == {
        "recipe.mask_full": 0.60,
        "mask_low_rise": pytest.approx(0.375),  # of the 40 % visible at full dose, 15 more are hidden at low dose
    }
    assert paper("cascade", "depth", RECIPES["cascade"].Config()) == {"recipe.stages": 1}
    dense = replace(RECIPES["cascade"].Config(), stages=2, dense="images", loss_at="all")
    assert paper("cascade", "depth", dense) == {
        "recipe.stages": 2,
        "recipe.dense": "images",
        "recipe.loss_at": "all",
    }


@pytest.mark.parametrize(("recipe", "name"), EVERY)
def test_random_and_outermost_trials_are_valid(recipe: str, name: str) -> None:
    config = RECIPES[recipe].Config()
    trials = samples(recipe, name)
    ranges = {key: kind for _, _, kinds in trials for key, kind in kinds.items()}

    def corner(index: int) -> dict[str, Any]:
        return {
            key: kind.choices[index] if isinstance(kind, CategoricalDistribution) else (kind.low, kind.high)[index]  # type: ignore[attr-defined]
            for key, kind in ranges.items()
        }

    outermost = [SPACES[recipe][name](FixedTrial(corner(index))) for index in (0, -1)]
    for settings in [*outermost, *(settings for settings, _, _ in trials)]:
        apply(config, settings)  # refuses what is out of range, and a name that is no field


@pytest.mark.parametrize(("recipe", "name"), EVERY)
def test_names_are_fields_and_ranges_stand_still(recipe: str, name: str) -> None:
    known = {f"recipe.{field.name}" for field in fields(RECIPES[recipe].Config)}
    ranges: dict[str, BaseDistribution] = {}
    for settings, params, kinds in samples(recipe, name):
        assert settings.keys() <= known
        for key, value in params.items():
            assert settings[key] == value if key in known else key in COMPOSED[recipe]
        for key, kind in kinds.items():
            assert ranges.setdefault(key, kind) == kind, "a range that moves breaks what Optuna learns across trials"


def test_low_dose_is_masked_no_less_than_full_dose() -> None:
    for settings, _, _ in samples("s3pet", "masking"):
        assert settings["recipe.mask_full"] <= settings["recipe.mask_low"] <= 0.95 + 1e-9
    for mask_full in (0.3, 0.1 + 0.2, 0.60, 0.7, 0.8):
        settings = SPACES["s3pet"]["masking"](FixedTrial({"recipe.mask_full": mask_full, "mask_low_rise": 0.0}))
        assert settings["recipe.mask_low"] == mask_full


@pytest.mark.parametrize("recipe", ["cascade", "virtual_pet"])
def test_trials_with_and_without_a_discriminator_are_drawn(recipe: str) -> None:
    weights = [settings["recipe.lambda_adversarial"] for settings, _, _ in samples(recipe, "losses")]
    assert 0.3 < weights.count(0.0) / len(weights) < 0.7
    assert all(weight == 0 or 0.3 <= weight <= 3 for weight in weights)
    alone = replace(RECIPES[recipe].Config(), lambda_adversarial=0.0)
    settings = SPACES[recipe]["losses"](FixedTrial(paper(recipe, "losses", alone)))
    assert apply(RECIPES[recipe].Config(), settings) == alone


def test_one_stage_has_nothing_to_connect() -> None:
    trials = [(settings, params) for settings, params, _ in samples("cascade", "depth")]
    assert {settings["recipe.stages"] for settings, _ in trials} == set(range(1, 11))
    for settings, params in trials:
        assert ("recipe.dense" in params) == (settings["recipe.stages"] > 1)
    settings = SPACES["cascade"]["depth"](FixedTrial({"recipe.stages": 1}))
    dense = replace(RECIPES["cascade"].Config(), stages=2, dense="images", loss_at="all")
    assert apply(dense, settings).stages == 1


@pytest.mark.parametrize(
    ("recipe", "name", "change"),
    [
        ("s3pet", "training", {"lr": 1.0}),
        ("s3pet", "masking", {"mask_low": 0.5}),
        ("cg_3dsrgan", "training", {"patch": (96, 96, 64)}),
        ("sgsgan", "training", {"patch": (24, 24, 24)}),
    ],
)
def test_a_configuration_outside_is_refused(recipe: str, name: str, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="CFG_RANGE") as refusal:
        paper(recipe, name, replace(RECIPES[recipe].Config(), **change))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["recipe.lambda_gan", "lambda_gan"])
def test_a_space_that_names_what_the_recipe_lacks_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only one branch does."""

    def space(trial: optuna.trial.BaseTrial) -> Settings:
        clip = trial.suggest_float("recipe.clip", 0.005, 0.05)
        return {"recipe.clip": clip} if clip < 0.04 else {"recipe.clip": clip, key: 1.0}

    monkeypatch.setitem(SPACES["sgsgan"], "odd", space)
    with pytest.raises(InputError, match=f"TUNE_SPACE space 'odd' of sgsgan: it sets {key}, which the system lacks"):
        paper("sgsgan", "odd", RECIPES["sgsgan"].Config())


def test_spaces_are_found_by_name_in_their_module() -> None:
    """A worker imports what it is told to call; a lambda or a closure it could not."""
    for recipe, name in EVERY:
        space = SPACES[recipe][name]
        assert getattr(inspect.getmodule(space), space.__name__) is space
        assert space.__doc__


def test_a_system_without_a_space_is_refused() -> None:
    for module in (SimpleNamespace(), SimpleNamespace(SPACES={}), SimpleNamespace(SPACES={"losses": 1})):
        with pytest.raises(InputError, match="TUNE_SPACE system 'other'"):
            spaces_of("other", module)


def test_a_system_may_bring_its_spaces() -> None:
    own = SimpleNamespace(SPACES={"losses": SPACES["sgsgan"]["losses"]})
    assert spaces_of("other", own) == own.SPACES
    assert spaces_of("sgsgan", own) is SPACES["sgsgan"]


def test_a_former_name_is_the_same_space() -> None:
    assert present_names(("practice", "masking")) == ("training", "masking")
    assert "practice" not in {name for _, name in EVERY}
