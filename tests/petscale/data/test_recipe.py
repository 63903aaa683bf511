"""A cohort as a recipe: several sources in one file, kept in the cohort without names, its split taken by runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petscale import config as configs
from petscale.cli import main
from petscale.splits import SplitConfig, stated_split
from petscale.training.planning import plan_run
from storage import nifti
from storage.phantom import PhantomConfig, phantom
from storage.reader import open_cohort
from storage.source import SUV, ArraySource

BODY = PhantomConfig(shape=(24, 32, 32), spacing_mm=(40.0, 14.0, 14.0), num_lesions=1)
RECIPE = """
sources:
  - path: one
    pet: full.nii.gz
    low: {20: D20.nii.gz}
    exclude: [DOE_JANE]
  - path: two
    layout: patterns
    pet: "{patient}/F.nii.gz"
    low: ["{drf}={patient}/D{drf}.nii.gz"]
split: {folds: 2, seed: 5}
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources that name their files differently and have a patient's folder of one name."""
    folder = tmp_path_factory.mktemp("sources")
    for number, (patient, full) in enumerate(
        (("one/p1", "full"), ("one/p2", "full"), ("one/DOE_JANE", "full"), ("two/p1", "F"), ("two/p9", "F"))
    ):
        activity = phantom(replace(BODY, seed=number)).activity
        noisy = activity.read(0, 24) * np.random.default_rng(number).normal(1, 0.05, BODY.shape).astype(np.float32)
        nifti.write_nifti(folder / patient / f"{full}.nii.gz", activity.grid, activity.read)
        low = ArraySource(np.maximum(noisy, 0), activity.grid, SUV)
        nifti.write_nifti(folder / patient / "D20.nii.gz", activity.grid, low.read)
    (folder / "cohort.yaml").write_text(RECIPE)
    return folder


def test_several_sources_become_one_cohort_that_keeps_its_recipe(sources: Path, tmp_path: Path) -> None:
    main(["ingest", str(sources / "cohort.yaml"), str(tmp_path / "cohort")])
    cohort = open_cohort(tmp_path / "cohort")
    assert len(cohort.cases) == 4
    assert all(cohort.case(name).images == ("body", "full", "low_drf20") for name in cohort.cases)
    kept = json.loads((tmp_path / "cohort/RECIPE.json").read_bytes())
    assert [source["path"] for source in kept["sources"]] == ["one", "two"]
    assert kept["sources"][0]["exclude"] == 1
    assert "DOE" not in (tmp_path / "cohort/RECIPE.json").read_text()
    main(["verify", str(tmp_path / "cohort")])
    for part in ("2/2", "1/2"):
        main(["ingest", str(sources / "cohort.yaml"), str(tmp_path / "parts"), "--part", part])
    assert (tmp_path / "parts/CATALOG.json").read_bytes() == (tmp_path / "cohort/CATALOG.json").read_bytes()


def test_a_run_takes_the_recipes_split_unless_it_says_its_own(sources: Path, tmp_path: Path) -> None:
    main(["ingest", str(sources / "cohort.yaml"), str(tmp_path / "cohort")])
    settings = ["feed.source=low_drf20", "recipe.rois=()", "recipe.patch=24,24,24", "recipe.patches_per_case=1"]
    base = configs.override(configs.RunConfig(), settings)
    plan = plan_run(tmp_path / "cohort", tmp_path / "run", base)
    assert plan.config.split == SplitConfig(folds=2, seed=5)
    cohort = open_cohort(tmp_path / "cohort")
    subjects = {name: cohort.case(name).subject for name in cohort.cases}
    assert len(set(subjects.values())) == 3, "p1 of both sources is taken for one patient: never on two sides"
    sides = [{subjects[name] for name in side} for side in (plan.job.roles.test, plan.job.roles.train)]
    assert sides[0].isdisjoint(sides[1])
    own = plan_run(tmp_path / "cohort", tmp_path / "own", configs.override(base, ["split.seed=1"]))
    assert own.config.split == SplitConfig(seed=1)
    assert stated_split(tmp_path, SplitConfig()) == SplitConfig()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("names: folder\n", "CFG_SOURCES"),
        ("sources: []\n", "CFG_SOURCES"),
        ("sources: [{layout: udpet}]\n", "CFG_SOURCES"),
        ("sources: [{path: one, pett: full.nii.gz}]\n", "CFG_FIELD"),
        ("sources: [{path: one, pet: 3}]\n", "CFG_VALUE"),
        ("sources: [{path: one, pet: full.nii.gz}]\nsplit: {fold: 2}\n", "CFG_RANGE"),
        ("sources: [{path: one, pet: full.nii.gz}]\nsplits: {}\n", "CFG_FIELD"),
        ("sources: [{path: one, pet: full.nii.gz}]\nnames: mine\n", "CFG_VALUE"),
        ("sources: [{path: none, pet: full.nii.gz}]\n", "IMG_NO_FILE"),
        ("sources: [{path: one, pet: full.nii.gz}, {path: one, pet: full.nii.gz}]\n", "SET_CASE_COLLISION"),
        ("sources: [{path: one, pet: full.nii.gz, weight_kg: 70}]\n", "CFG_MANY_PATIENTS"),
        ("{", "CFG_JSON"),
    ],
)
def test_a_wrong_recipe_is_one_coded_line(
    text: str, code: str, sources: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = sources / f"{tmp_path.name}.yaml"
    path.write_text(text)
    assert refused("ingest", path, tmp_path / "cohort").split()[0] == code
    assert refused("ingest", sources / "cohort.yaml", tmp_path / "cohort", "--pet", "x").startswith("CFG_CONTRADICTION")
    assert not (tmp_path / "cohort").exists()
