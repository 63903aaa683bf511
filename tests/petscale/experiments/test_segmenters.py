"""A table of organ segmenters: trained once per row and fold, shared with the runs they score, no system trained."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petscale.config import RunConfig
from petscale.evaluation import run as evaluating
from petscale.experiments import EXPERIMENTS
from petscale.experiments.design import Column, Experiment, Order, PhantomCohort, SegmenterRow
from petscale.experiments.runner import run_experiment, run_on_cohort
from petscale.experiments.segmenters import segmenter_folder
from petscale.training import driver
from storage import integrity
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.reader import open_cohort
from trainers import organ_segmenter
from trainers.feed_config import FeedConfig
from trainers.metrics.unet_score import UNION
from trainers.organ_segmenter import OrganSegmenterConfig
from trainers.systems import sgsgan

TINY = OrganSegmenterConfig(rois=("liver",), channels=1, patch=(16, 16, 16), halo=4, samples=4, patches_per_case=2)
DICE = Column(label="Unet-score all", metric="Unet-score", region=UNION)
PHANTOMS = PhantomCohort(
    name="c",
    patients=6,
    body=PhantomConfig(shape=(32, 28, 30), spacing_mm=(25.0, 15.0, 14.0)),
    scan=LowDoseConfig(million_prompts_per_bed=1.0),
    drfs=(6.0,),
)


def table(*, name: str = "tiny", segmenter: OrganSegmenterConfig = TINY) -> Experiment:
    like = RunConfig(model=sgsgan.Config(rois=()), feed=FeedConfig(source=("low_drf6",)))
    rows = (
        SegmenterRow(name="BCE", config=replace(segmenter, loss="bce"), like=like, paper={DICE.label: (0.9, None)}),
        SegmenterRow(name="both", config=segmenter, like=like, paper={DICE.label: (0.95, None)}, against="BCE"),
    )
    return Experiment(
        name=name,
        title="A tiny table of segmenters",
        published_in="nobody",
        cohort=PHANTOMS,
        sources=("full",),
        columns=(DICE,),
        rows=(),
        segmenters=rows,
        untrained={},
        orders=(Order("both", "BCE", DICE.label),),
        folds=2,
    )


def read(path: Path) -> Any:
    return json.loads((path.parent / "table.json").read_text())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of experiments in which no system may be trained."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a system was trained")

    monkeypatch.setattr(driver, "train", never)
    return tmp_path / "experiments"


def test_every_patient_is_scored_once_by_the_network_of_the_fold_and_nothing_is_done_twice(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    fit = organ_segmenter.train_segmenter

    def counting(folder: Path, *words: Any, **more: Any) -> Any:
        trained.append((folder.name, words[2].loss))
        return fit(folder, *words, **more)

    monkeypatch.setattr(evaluating, "train_segmenter", counting)
    path = run_experiment(table(), home, command="petscale experiment tiny")
    assert [loss for _, loss in trained] == ["bce", "bce", "bce+dice", "bce+dice"]
    assert len({folder for folder, _ in trained}) == 4
    first = read(path)
    assert first["complete"]
    assert [row["name"] for row in first["rows"]] == ["BCE", "both"]
    for row in first["rows"]:
        dice = row["columns"][DICE.label]["patients"]
        assert len(dice) == 6
        assert all(0 <= value <= 1 for value in dice.values())
    assert first["rows"][0]["config"]["loss"] == "bce"
    assert first["rows"][1]["columns"][DICE.label]["gain"]["over"] == "BCE"
    mean = np.mean(list(first["rows"][1]["columns"][DICE.label]["patients"].values()))
    assert f"| both | {mean:.4f} ± " in path.read_text()
    assert {str(Path(run).parent.name) for runs in first["facts"]["runs"].values() for run in runs} == {"judges"}
    again = run_experiment(table(name="other"), home, command="petscale experiment other")
    assert len(trained) == 4
    assert [row["columns"] for row in read(again)["rows"]] == [row["columns"] for row in first["rows"]]


def test_runs_and_tables_of_one_fold_share_the_segmenter(home: Path) -> None:
    path = run_experiment(table(), home, command="x")
    (place,) = (home / run for run in read(path)["facts"]["runs"]["both"][:1])
    seen = json.loads((place / "full-dose" / "scores.json").read_bytes())["metadata"]["scored"]
    cohort = open_cohort(place.parent.parent / "cohort")
    digests = {name: integrity.manifest(cohort.case(name).folder)["root"] for name in cohort.cases}
    trained_on = {name: digest for name, digest in digests.items() if name not in seen}
    assert segmenter_folder(place.parent.parent, TINY, FeedConfig(source=("any",)), trained_on) == place


def test_a_cohort_of_the_users_needs_organs_and_a_full_dose_and_no_low_dose(home: Path) -> None:
    phantoms = run_experiment(table(), home, command="x")
    cohort = next(home.glob("c-*/cohort"))
    path = run_on_cohort(table(), cohort, home / "own", command="x")
    assert [r["columns"] for r in read(path)["rows"]] == [r["columns"] for r in read(phantoms)["rows"]]
    assert "its low doses are" not in path.read_text()
    assert not any(math.isnan(v) for r in read(path)["rows"] for v in r["columns"][DICE.label]["patients"].values())


def test_the_paper_size_is_the_papers_network() -> None:
    small, paper = (EXPERIMENTS["sgsgan_table9"](size) for size in ("small", "paper"))
    assert [row.config.loss for row in small.segmenters] == [row.config.loss for row in paper.segmenters]
    assert paper.segmenters[-1].config == OrganSegmenterConfig()
