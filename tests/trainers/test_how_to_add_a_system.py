"""The page how-to-add-a-system.md, followed to the letter: its files make a distribution whose system works."""

import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from optuna.trial import FixedTrial

from storage.reader import open_cohort
from trainers.engine import plain_engine
from trainers.feed import Feed
from trainers.recipe import Recipe
from trainers.synthesize import InSuv, synthesize
from trainers.systems import GROUP, RECIPES
from tune_spaces import paper, spaces_of

PAGE = Path(__file__).parents[2] / "docs/how-to-add-a-system.md"
SMALL = {"channels": 2, "samples": 12, "patch": (8, 8, 8), "patches_per_case": 1}


def block(language: str) -> str:
    """The one fenced block of the page in ``language``."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Install the page's distribution on ``sys.path``; the name of its system."""
    site = tmp_path_factory.mktemp("site")
    project = tomllib.loads(block("toml"))["project"]
    ((system, module),) = project["entry-points"][GROUP].items()
    (site / f"{module}.py").write_text(block("python"))
    facts = site / f"{project['name']}-{project['version']}.dist-info"
    facts.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (facts / "METADATA").write_text(head)
    (facts / "entry_points.txt").write_text(f"[{GROUP}]\n{system} = {module}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield system
    sys.modules.pop(module, None)


def build(name: str) -> Recipe:
    torch.manual_seed(0)
    return RECIPES[name].build(RECIPES[name].Config(**SMALL), make_engine=plain_engine, patches_per_step=4)


def run(cohort: Path, name: str, recipe: Recipe, begin: int, end: int) -> None:
    opened = open_cohort(cohort)
    feed = Feed(
        opened,
        {"paired": opened.cases},
        RECIPES[name].FEED,
        recipe.batch_spec,
        rank=0,
        world=1,
        device=torch.device("cpu"),
    )
    for step in range(begin, end):
        torch.manual_seed(step)
        metrics = recipe.step(feed.batch(step, end), step)
        assert all(torch.isfinite(value) for value in metrics.values())
    feed.close()


def test_the_example_is_short() -> None:
    assert len(block("python").splitlines()) <= 110


def test_the_system_is_found_by_its_entry_point(name: str) -> None:
    assert name in RECIPES
    assert list(RECIPES)[-1] == name
    module = RECIPES[name]
    assert isinstance(module, ModuleType)
    config = module.Config()
    module.check(config, module.FEED, {})
    assert module.files(config) == {}
    assert all(module.caveats(config))


def test_it_trains_and_resumes_bit_equal(name: str, cohort: Path) -> None:
    whole, first, second = build(name), build(name), build(name)
    assert whole.num_steps == 3
    run(cohort, name, whole, 0, 3)
    run(cohort, name, first, 0, 1)
    second.load(first.state())
    run(cohort, name, second, 1, 3)
    expected, found = whole.state(), second.state()
    assert all(torch.equal(value, found[e][k]) for e, tensors in expected.items() for k, value in tensors.items())


def test_its_exported_weights_synthesize_and_tiles_equal_the_whole(name: str, cohort: Path) -> None:
    recipe, module = build(name), RECIPES[name]
    run(cohort, name, recipe, 0, 3)
    case = open_cohort(cohort).case("phantom-000")
    alone = module.weights_to_synthesizer(module.Config(**SMALL), recipe.weights())
    small = replace(alone, tiling=replace(alone.tiling, tile=(10, 12, 16)))  # type: ignore[type-var]

    def volume(synthesizer: object) -> NDArray[np.float32]:
        slabs: dict[int, NDArray[np.float32]] = {}
        in_suv = InSuv(synthesizer, module.FEED.suv_scale)  # type: ignore[arg-type]
        synthesize(in_suv, case, "low_drf20", slabs.__setitem__, device=torch.device("cpu"))
        return np.concatenate([slabs[z] for z in sorted(slabs)])

    whole = volume(alone)
    assert whole.shape == case.image("full").grid.shape
    assert np.isfinite(whole).all()
    assert np.array_equal(whole, volume(recipe.synthesizer()))
    np.testing.assert_allclose(volume(small), whole, rtol=0, atol=1e-4)


def test_its_search_spaces_are_accepted(name: str) -> None:
    module = RECIPES[name]
    config = module.Config()
    for space_name, space in spaces_of(name, module).items():
        first = paper(name, space_name, config)
        settings = space(FixedTrial(first))
        assert replace(config, **{key.removeprefix("recipe."): value for key, value in settings.items()}) == config
