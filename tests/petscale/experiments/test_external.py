"""A table of external validation: every fold's network scores every external patient, and is trained only once."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from untrained_runs import prove

from petscale import config as configs
from petscale.config import RunConfig
from petscale.evaluation import run as evaluating
from petscale.evaluation.baselines import INPUT
from petscale.evaluation.scores import read_evaluation
from petscale.experiments import EXPERIMENTS
from petscale.experiments.cohorts import make_cohort
from petscale.experiments.design import BEST_BY, CONTENT, Column, Experiment, Order, PhantomCohort, Row, UserCohort
from petscale.experiments.runner import averaged, run_experiment, run_on_cohort
from petscale.experiments.user_cohort import on_cohort
from petscale.folders import CONFIG, EVALUATION, EXTERNAL, WEIGHTS
from petscale.splits import split_cases
from petscale.training import driver
from storage import integrity
from storage.errors import InputError
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.reader import open_cohort
from storage.source import SUV
from trainers import checkpoint
from trainers.engine import plain_engine
from trainers.feed_config import FeedConfig
from trainers.loop import LoopConfig
from trainers.systems import RECIPES, red_cnn

LOW = "low_drf6"
OWN = PhantomCohort(
    name="own",
    patients=4,
    body=PhantomConfig(shape=(32, 28, 30), spacing_mm=(25.0, 15.0, 14.0)),
    scan=LowDoseConfig(million_prompts_per_bed=1.0),
    drfs=(6.0,),
)
ELSEWHERE = replace(
    OWN, name="elsewhere", patients=2, body=replace(OWN.body, seed=1000), scan=replace(OWN.scan, psf_fwhm_mm=8.0)
)
COLUMNS = (
    Column(label="PSNR", metric="PSNR", preset="sgsgan"),
    Column(label="bias", metric="bias", preset="sgsgan"),
    Column(label="CD", metric=CONTENT),
)


def table(name: str = "tiny") -> Experiment:
    feed = FeedConfig(source=(LOW,), suv_scale=5.0)
    rows = tuple(
        Row(
            name=row,
            config=RunConfig(
                recipe="red_cnn",
                model=red_cnn.Config(channels=2, patch=(1, 24, 24)),
                feed=feed,
                loop=LoopConfig(seed=place),
            ),
            paper={"CD": (0.0050 - 0.0003 * place, None)},
            against=("a" if place else INPUT),
        )
        for place, row in enumerate("ab")
    )
    return Experiment(
        name=name,
        title="A tiny external validation",
        published_in="nobody",
        cohort=OWN,
        sources=(LOW,),
        columns=COLUMNS,
        rows=rows,
        untrained={INPUT: {}},
        orders=(Order("b", "a", "PSNR"),),
        folds=2,
        external=ELSEWHERE,
    )


@pytest.fixture(scope="module")
def made() -> Iterator[SimpleNamespace]:
    """Runs with fresh weights, written at once; notes trainings and scorings."""
    counts = SimpleNamespace(trained=[], scored=[])

    def train(cohort: Path, run: Path, config: RunConfig, *, command: str) -> Path:
        opened = open_cohort(cohort)
        roles = split_cases(opened, config.split)
        torch.manual_seed(10 * config.loop.seed + config.split.fold)
        spec = RECIPES[config.recipe]
        weights = spec.build(config.model, make_engine=plain_engine, patches_per_step=1).weights()
        cases = {name: opened.case(name) for name in roles.everyone}
        facts = {"config": configs.to_json(config), "command": command, "cohort": cohort.name}
        facts |= {role: list(getattr(roles, role)) for role in ("train", "unpaired", "validation", "test")}
        facts["cases"] = {name: integrity.manifest(case.folder)["root"] for name, case in cases.items()}
        facts["subjects"] = {name: case.subject for name, case in cases.items()}
        run.mkdir(parents=True)
        (run / CONFIG).write_text(json.dumps(facts))
        about = {"recipe": config.recipe, "config": json.dumps(facts["config"])}
        about["starts_from"] = json.dumps({"units": SUV, "spacing_mm": None})
        checkpoint.write_weights(run / WEIGHTS, weights, about)
        prove(run)
        counts.trained.append((config.loop.seed, config.split.fold))
        return run / WEIGHTS

    score = evaluating.evaluate_run

    def evaluate(run: Path, cohort: Path, **asked: Any) -> Any:
        counts.scored.append(cohort.name)
        return score(run, cohort, **asked)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(driver, "train", train)
        patched.setattr(evaluating, "evaluate_run", evaluate)
        yield counts


@pytest.fixture(scope="module")
def whole(made: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the table."""
    return run_experiment(table(), tmp_path_factory.mktemp("experiments"), command="x")


def read(path: Path) -> Any:
    return json.loads((path.parent / "table.json").read_text(), parse_constant=pytest.fail)


def test_every_network_scores_every_external_patient_and_their_mean_is_compared(
    made: SimpleNamespace, whole: Path
) -> None:
    folder, found = whole.parent.parent, read(whole)
    assert made.trained[:4] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    (cohort,) = {*made.scored[:4]}
    assert cohort.startswith("elsewhere-")
    assert open_cohort(folder / cohort).cases == ("phantom-1000", "phantom-1001")
    for line in found["rows"]:
        if line["name"] not in "ab":
            continue
        for column in COLUMNS[:2]:
            by_network = []
            for run in found["facts"]["runs"][line["name"]]:
                scored = read_evaluation(folder / run / EXTERNAL / cohort / EVALUATION / LOW)
                (rule,) = {row.definition for row in scored.rows if _is_of(row.definition, column)}
                by_network.append(scored.values(scored.synthesized, rule, "whole volume"))
            assert by_network[0] != by_network[1]
            assert line["columns"][column.label]["patients"] == pytest.approx(
                {patient: (by_network[0][patient] + by_network[1][patient]) / 2 for patient in by_network[0]}
            )
            assert set(by_network[0]) == set(open_cohort(folder / cohort).cases)
    text = whole.read_text()
    assert "2 simulated patients" in text
    assert "the networks are those of 2 folds of 4 simulated patients" in text
    assert "All patients share the networks of 2 folds" in text
    assert f"## Every row against the best baseline: {found['best_baseline']}" in text
    content = text.split("## CD")[1].split("##")[0]  # nobody's score of ours, the paper's stands there
    assert "| b | - | 0.0047 | - | a | - |" in content


def _is_of(rule: Any, column: Column) -> bool:
    return (rule.metric, rule.preset, rule.region) == (column.metric, column.preset, "whole")


def test_nothing_is_trained_or_scored_again_by_another_table_of_the_same_runs(
    made: SimpleNamespace, whole: Path
) -> None:
    folder, before = whole.parent.parent, (len(made.trained), len(made.scored))
    again = run_experiment(table("other"), folder, command="x")
    assert (len(made.trained), len(made.scored)) == before
    assert read(again)["rows"] == read(whole)["rows"]
    # The same rows, tested on their own cohort, are the same runs too.
    one = table("own patients")
    own = replace(one, external=None, columns=COLUMNS[:1], rows=one.rows[:1], orders=())
    runs = read(run_experiment(own, folder, command="x"))["facts"]["runs"]
    assert (len(made.trained), len(made.scored)) == (before[0], before[1] + 2)
    assert runs["a"] == read(whole)["facts"]["runs"]["a"]


def test_baselines_are_those_of_the_training_patients_of_each_fold(whole: Path) -> None:
    folder = whole.parent.parent
    for run in read(whole)["facts"]["runs"]["a"]:
        (told,) = {
            json.loads(one.read_bytes())["metadata"]["baseline"]
            for one in (folder / run / EXTERNAL).glob(f"*/{EVALUATION}/{LOW}/scores.json")
        }
        assert "training" in told
    assert len(list(folder.glob(f"own-*/baselines/*/{LOW}/baseline.json"))) == 2


def test_scores_are_averaged_over_networks_patient_by_patient() -> None:
    one = {"a": {"PSNR": {"p": 30.0, "q": 20.0}}, INPUT: {"PSNR": {"p": 10.0}}}
    other = {"a": {"PSNR": {"p": 33.0, "q": 22.0}}, INPUT: {"PSNR": {"p": 10.0}}}
    assert averaged([one, other]) == {"a": {"PSNR": {"p": 31.5, "q": 21.0}}, INPUT: {"PSNR": {"p": 10.0}}}
    assert averaged([one]) == one


@pytest.fixture(scope="module")
def clinics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two cohorts of different people, and one that shares a person with the first."""
    folder = tmp_path_factory.mktemp("clinics")
    shared = replace(ELSEWHERE, body=replace(OWN.body, seed=OWN.patients - 1))
    plans = {"home": OWN, "away": ELSEWHERE, "both": shared, "dose_4": replace(ELSEWHERE, drfs=(4.0,))}
    return {name: make_cohort(cohort, folder / name) for name, cohort in plans.items()}


def test_a_users_networks_are_tested_on_the_users_second_cohort(
    made: SimpleNamespace, tmp_path: Path, clinics: dict[str, Path]
) -> None:
    before = len(made.scored)
    one = replace(table(), rows=table().rows[:1], orders=())
    path = run_on_cohort(one, clinics["home"], tmp_path, command="x", external=clinics["away"])
    assert made.scored[before:] == ["away", "away"]
    assert path.parent.name.startswith("tiny-on-away-")
    (row,) = (line for line in read(path)["rows"] if line["name"] == "a")
    values = row["columns"]["PSNR"]["patients"]
    assert set(values) == {"phantom-1000", "phantom-1001"}
    assert np.isfinite(list(values.values())).all()
    assert "cohort away, which the user gave" in path.read_text()
    asked = on_cohort(table(), clinics["home"], external=clinics["away"])
    assert isinstance(asked.external, UserCohort)
    assert (asked.external.patients, asked.external.low_doses) == (2, ("simulated",))


@pytest.mark.parametrize(
    ("external", "told"),
    [
        ("", "the table needs a second cohort to be tested on, by --external"),
        ("both", "other patients in both (phantom-003 are of patients of the cohort)"),
        ("dose_4", "an image 'low_drf6' in every case of dose_4"),
    ],
)
def test_a_second_cohort_must_be_of_other_patients_with_the_same_images(
    external: str, told: str, clinics: dict[str, Path]
) -> None:
    with pytest.raises(InputError, match="SET_TABLE_NEEDS") as refused:
        on_cohort(table(), clinics["home"], external=clinics[external] if external else None)
    assert told in refused.value.found


def test_the_command_says_where_a_second_cohort_belongs(
    clinics: dict[str, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    words = ["--folder", tmp_path / "out", "--external", clinics["away"]]
    assert refused("experiment", "sgsgan_table5", *words).startswith("CFG_SET --external: given alone")
    line = refused("experiment", "sgsgan_table3", "--cohort", clinics["home"], *words)
    assert line.startswith("CFG_NO_EFFECT --external: sgsgan_table3 is tested on the cohort's own patients")
    line = refused("experiment", "sgsgan_table5", "--cohort", clinics["home"], "--folder", tmp_path / "out")
    assert line.startswith("SET_TABLE_NEEDS")
    assert "by --external" in line
    assert not (tmp_path / "out").exists()


def test_the_best_baseline_is_collected_for_external_patients_too() -> None:
    assert BEST_BY in EXPERIMENTS["sgsgan_table6"]("small").collected
