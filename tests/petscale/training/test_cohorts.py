"""A run over several cohorts: one split, one feed; what the cohorts differ in is said or refused before it starts."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from petscale import config as configs
from petscale.cli import main, parse
from petscale.cluster import session as sessions
from petscale.data.phantom import phantom_plans
from petscale.folders import CONFIG
from petscale.training import driver
from petscale.training.job import WorkerJob
from petscale.training.planning import Plan, plan_run
from petscale.tuning import sweep as sweeps
from petscale.tuning import trial
from petscale.tuning.search import SweepConfig
from petscale.tuning.trial import TrialJob
from storage import integrity
from storage.errors import InputError
from storage.ingest import ingest
from storage.integrity import MANIFEST
from storage.joined import open_cohorts
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.reader import Cases, open_cohort
from trainers import feed
from trainers.metrics.definitions import Score
from trainers.recipe import BatchSpec

SMALL = ["recipe.patch=24,24,24", "recipe.rois=()", "feed.source=low_drf4"]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make another cohort of two patients with voxels of a given size, once."""
    made: dict[tuple[float, int], Path] = {}

    def cohort(edge_mm: float = 11.0, seed: int = 70) -> Path:
        if (edge_mm, seed) not in made:
            folder = tmp_path_factory.mktemp("made") / f"other{edge_mm:g}"
            body = PhantomConfig(shape=(48, 40, 40), spacing_mm=(20.0, edge_mm, edge_mm), num_lesions=1, seed=seed)
            scan = LowDoseConfig(million_prompts_per_bed=20.0, iterations=1)
            ingest(folder, phantom_plans(2, body, scan, [4.0]), strict=True)
            made[edge_mm, seed] = folder
        return made[edge_mm, seed]

    return cohort


def planned(cohorts: list[Path], run: Path, *settings: str) -> Plan:
    config = configs.override(configs.RunConfig(), [*SMALL, *settings])
    return plan_run(cohorts[0], run, config, others=cohorts[1:])


def test_one_split_and_one_feed_over_all(cohort: Path, make: Make, tmp_path: Path) -> None:
    plan = planned([cohort, make()], tmp_path / "run", "split.test_fraction=0.34")
    everyone = {*open_cohort(cohort).cases, *open_cohort(make()).cases}
    assert set(plan.job.roles.everyone) == everyone
    assert len(plan.job.roles.test) == 2
    assert plan.facts["cohorts"] == [cohort.name, "other11"]
    assert plan.notes == ()
    job = WorkerJob.from_json(json.loads(json.dumps(plan.job.to_json())))
    assert job == plan.job
    joined = open_cohorts([Path(job.cohort), *map(Path, job.others)])
    need = BatchSpec(patch=(24, 24, 24), halo=(0, 0, 0), patches_per_case=1, sampler={"body": 1.0})
    source = feed.Feed(
        joined, job.roles.streams, plan.config.feed, lambda step: need, rank=0, world=1, device=torch.device("cpu")
    )
    seen = {case for step in range(8) for case, _, _ in source.plan(step)}
    assert seen == set(job.roles.train)
    assert source.batch(0, 1).source.shape[-3:] == (24, 24, 24)
    source.close()


def test_a_run_of_one_cohort_says_nothing_of_cohorts(cohort: Path, tmp_path: Path) -> None:
    plan = planned([cohort], tmp_path / "run")
    assert "cohorts" not in plan.facts
    assert plan.job.others == ()


def test_voxel_sizes_apart_are_said_and_far_apart_refused(cohort: Path, make: Make, tmp_path: Path) -> None:
    (note,) = planned([cohort, make(13.0)], tmp_path / "run").notes
    assert "differ by a factor of 1.18" in note
    assert "other13: 20.00 x 13.00 x 13.00 mm" in note
    with pytest.raises(InputError, match=r"SET_VOXEL_SIZES train: .*factor of 1.64"):
        planned([cohort, make(18.0)], tmp_path / "run")


def test_another_tracer_is_said(cohort: Path, make: Make, tmp_path: Path) -> None:
    other = make(11.0, 80)
    for name in open_cohort(other).cases:
        folder = other / "cases" / name
        path = folder / "full" / "zarr.json"
        content = json.loads(path.read_bytes())
        content["attributes"]["petscale"]["provenance"]["truth"] |= {"nuclide": "Ga-68"}
        path.write_text(json.dumps(content))
        (folder / MANIFEST).unlink()
        integrity.commit(folder, {"case": name, "schema": 1})
    (note,) = planned([cohort, other], tmp_path / "run").notes
    assert f"({cohort.name}: unknown; other11: Ga-68)" in note


@pytest.mark.usefixtures("no_ray")
def test_another_unit_and_a_store_are_refused(
    cohort: Path, make: Make, tmp_path: Path, refused: Callable[..., str]
) -> None:
    words = ("train", cohort, make(), "--run", tmp_path / "run", "--set", *SMALL)
    assert refused(*words, "feed.source=ct").startswith("SET_WRONG_UNITS")
    assert refused("train", cohort, "s3://bucket/b", "--run", tmp_path / "run", "--set", *SMALL).startswith("CLU_URL")


def test_a_search_takes_several(cohort: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[TrialJob] = []
    scored: list[tuple[str, ...]] = []
    monkeypatch.setattr(sweeps, "run_trials", lambda *given: jobs.append(given[4]))
    settings = ["split.validation_fraction=0.3", "feed.cases_per_step=1", "recipe.patches_per_case=1"]
    base = configs.override(configs.RunConfig(), [*SMALL, *settings])
    study = tmp_path / "study"
    sweeps.sweep(cohort, study, base, SweepConfig(trials=1), command="petscale tune", others=[make()])
    (job,) = jobs
    assert (job.cohort, job.others) == (str(cohort), (str(make()),))
    assert job.roles is not None
    everyone = {name for role in ("train", "unpaired", "validation", "test") for name in job.roles[role]}
    assert everyone == {*open_cohort(cohort).cases, *open_cohort(make()).cases}
    # A trial trains and is scored on both.

    def train_until(plan: Plan, until: int, limit: object) -> bool:
        scored.append(tuple(plan.job.roles.train))
        return True

    monkeypatch.setattr(trial, "train_until", train_until)

    def validation_scores(run: Path, found: Cases, cases: Sequence[str], **_: object) -> list[Score]:
        scored.append(found.cases)
        return []

    monkeypatch.setattr(trial, "validation_scores", validation_scores)
    monkeypatch.setattr(trial, "value_of", lambda *given: 1.0)
    trial.train_and_score(replace(TrialJob.from_json(job.to_json()), folder=str(study / "trials/0")), 0)
    assert scored == [tuple(job.roles["train"]), open_cohorts([cohort, make()]).cases]
    _, found = parse(["tune", "a", "b", "--study", "s"])
    assert found["options"].others == (Path("b"),)


def test_the_command_takes_several(
    cohort: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = parse(["train", "a", "b", "c", "--run", "r"])
    assert (found["options"].cohort, found["options"].others) == (Path("a"), (Path("b"), Path("c")))
    plans: list[Plan] = []
    read: list[Any] = []
    monkeypatch.setattr(sessions, "session", lambda config, cores, *paths: read.extend(paths) or nullcontext())  # type: ignore[func-returns-value]
    monkeypatch.setattr(driver, "train_on_ray", lambda plan, **_: plans.append(plan))
    words = ["train", str(cohort), str(make(13.0)), "--run", str(tmp_path / "run"), "--set", *SMALL]
    main(words)
    assert json.loads((tmp_path / "run" / CONFIG).read_bytes())["cohorts"] == [cohort.name, "other13"]
    assert read == [tmp_path / "run", cohort / "zarr.json", make(13.0) / "zarr.json"]
    assert "differ by a factor of 1.18" in capsys.readouterr().err
    main(words)  # continued
    assert plans[1].job == plans[0].job
