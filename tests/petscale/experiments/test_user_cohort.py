"""A table on a cohort of the user's: images by dose, patients before cases, and one line that names what is missing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from petscale import config as configs
from petscale.cli import main
from petscale.evaluation import run as evaluating
from petscale.evaluation.baselines import INPUT
from petscale.evaluation.scores import SYNTHESIZED, Evaluation
from petscale.experiments import EXPERIMENTS
from petscale.experiments.design import Column, Experiment, PhantomCohort, Row, UserCohort
from petscale.experiments.user_cohort import on_cohort, patients_of
from petscale.folders import CONFIG, EVALUATION, WEIGHTS
from petscale.splits import SplitConfig, split_cases
from petscale.training import driver
from petscale.training.planning import plan_run
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.reader import open_cohort
from storage.source import HU, LABEL, SUV, ArraySource, Dose, Grid
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR
from trainers.systems import sgsgan

GRID = Grid((32, 32, 32), np.diag([-4.0, -4.0, 4.0, 1.0]))
PATIENTS = ("ann", "ann", "bob", "cem", "dan")  # of the cases c0, c1, ...


def make(
    folder: Path,
    doses: dict[str, float],
    *,
    patients: Sequence[str] = PATIENTS,
    labels: Sequence[str] = (),
    ct: bool = False,
) -> Path:
    """A cohort with a full dose, low doses under any names, and labels that are all in one half."""
    z, y, x = np.indices(GRID.shape)
    inside = ((y - 16) ** 2 + (x - 16) ** 2 < 120) & (z > 3) & (z < 29)

    def plan(number: int, scratch: Path) -> CasePlan:
        rng = np.random.Generator(np.random.Philox(number))
        drawn = {name: inside * (1 + 0.2 * rng.random(GRID.shape)) for name in ("full", *doses)}
        images = {name: ArraySource(voxels.astype(np.float32), GRID, SUV) for name, voxels in drawn.items()}
        if labels:
            marks = np.where(inside & (z > 15), 1 + x % len(labels), 0).astype(np.float32)
            images["labels"] = ArraySource(marks, GRID, LABEL)
        if ct:
            images["ct"] = ArraySource(np.where(inside, 40, -1000).astype(np.float32), GRID, HU)
        stated = {"full": Dose(1.0, "full", None), **{name: Dose(drf, "thinned", True) for name, drf in doses.items()}}
        return CasePlan(images, patients[number], f"made up {number}", dict(enumerate(labels, 1)), stated)

    ingest(folder, {f"c{n}": partial(plan, n) for n in range(len(patients))}, strict=True, workers=1)
    return folder


@pytest.fixture(scope="module")
def udpet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients, one of them twice, at five doses whose images have names of their own."""
    doses = {f"dose_{drf:g}": drf for drf in (4.0, 10.0, 20.0, 50.0, 100.0)}
    return make(tmp_path_factory.mktemp("data") / "udpet", doses)


def test_rows_start_from_the_images_of_the_tables_doses_whatever_they_are_called(udpet: Path) -> None:
    asked = on_cohort(EXPERIMENTS["cg_3dsrgan_table2"]("small"), udpet)
    assert asked.sources == ("dose_100",)
    assert {row.config.feed.source for row in asked.rows} == {("dose_4", "dose_10", "dose_20", "dose_50", "dose_100")}
    cohort = asked.cohort
    assert isinstance(cohort, UserCohort)
    assert (cohort.name, cohort.patients, cohort.cases, cohort.low_doses) == ("udpet", 4, 5, ("thinned",))
    before = EXPERIMENTS["cg_3dsrgan_table2"]("small")
    assert [row.name for row in asked.rows] == [row.name for row in before.rows]
    assert (asked.folds, asked.orders, asked.columns) == (before.folds, before.orders, before.columns)
    assert not any("simulated" in caveat for caveat in asked.caveats)


def test_a_column_of_one_dose_is_read_from_the_cohorts_image_of_that_dose(udpet: Path) -> None:
    asked = on_cohort(EXPERIMENTS["cg_3dsrgan_table1"]("small"), udpet)
    assert asked.sources == ("dose_4", "dose_10", "dose_20", "dose_50", "dose_100")
    assert {column.source: column.label for column in asked.columns if column.metric == "PSNR"} == {
        f"dose_{drf}": f"PSNR DRF {drf}" for drf in (4, 10, 20, 50, 100)
    }


def test_every_row_of_a_table_by_dose_is_planned_up_to_its_first_step(udpet: Path, tmp_path: Path) -> None:
    asked = on_cohort(EXPERIMENTS["cg_3dsrgan_table1"]("small"), udpet)
    for row in asked.rows:
        plan = plan_run(udpet, tmp_path / row.name, replace(row.config, split=SplitConfig(folds=asked.folds)))
        assert plan.num_steps > 100
        assert plan.job.drfs == [4, 10, 20, 50, 100]
        assert not (tmp_path / row.name).exists()


def test_another_dose_is_taken_where_the_user_says_so_and_realisations_become_one_image(udpet: Path) -> None:
    table = replace(EXPERIMENTS["sgsgan_table3"]("paper"), folds=2)
    assert len(table.sources) == 2
    asked = on_cohort(table, udpet, ["dose_4"])
    assert asked.sources == ("dose_4",)
    assert {row.config.feed.source for row in asked.rows} == {("dose_4",)}
    assert asked.unet_score is None  # Table III shows none, and this cohort has no organs


@pytest.mark.parametrize(
    ("name", "sources", "told"),
    [
        ("sgsgan_table3", [], "an image at dose reduction factor 6 in every case (it has 1, 4, 10, 20, 50, 100)"),
        ("cg_3dsrgan_table2", ["dose_4"] * 3, "5 images by --source, one per dose (3 are given)"),
        ("cascade_table4", ["dose_4"], "0 images by --source, one per dose (1 are given)"),
        ("sgsgan_table3", ["dose_5"], "an image 'dose_5' in every case"),
        ("sgsgan_table3", ["dose_4", "dose_10"], "1 images by --source, one per dose (2 are given)"),
        ("sgsgan_table2", ["dose_4"], "labels of liver, brain, kidneys, bladder in every case"),
        ("sgsgan_table9", [], "labels of liver, brain, kidneys, bladder in every case"),
        ("sgsgan_table9", ["dose_4"], "no image by --source: its networks see the full dose alone"),
        ("s3pet_table2", [], ""),
        ("cascade_table4", [], "a CT in every case"),
        ("virtual_pet", [], "a CT in every case; labels of lesion, liver, cyst in every case"),
    ],
)
def test_one_line_names_all_that_a_table_lacks(name: str, sources: list[str], told: str, udpet: Path) -> None:
    table = EXPERIMENTS[name]("small")
    if not told:
        assert on_cohort(table, udpet, sources).sources == ("dose_10",)
        return
    with pytest.raises(InputError) as refused:
        on_cohort(table, udpet, sources)
    assert refused.value.code == "SET_TABLE_NEEDS"
    assert refused.value.where == f"{name} on udpet"
    assert told in refused.value.found


def test_missing_doses_are_named_together(tmp_path: Path) -> None:
    one = make(tmp_path / "one", {"low": 20.0}, patients=("ann", "bob"))
    with pytest.raises(InputError, match=r"factors 4, 10, 50, 100 in every case \(it has 1, 20\);"):
        on_cohort(EXPERIMENTS["cg_3dsrgan_table2"]("small"), one)


def test_there_must_be_a_patient_for_every_fold(udpet: Path) -> None:
    with pytest.raises(InputError, match="5 patients, one per fold \\(it has 4\\)"):
        on_cohort(EXPERIMENTS["cg_3dsrgan_table2"]("paper"), udpet)


def test_a_patient_is_called_by_the_first_case(udpet: Path) -> None:
    assert patients_of(open_cohort(udpet)) == {"c0": "c0", "c1": "c0", "c2": "c2", "c3": "c3", "c4": "c4"}


def test_refused_before_anything_starts_by_the_command_too(
    udpet: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(driver, "train", never)
    words = ["--folder", tmp_path / "out"]
    assert refused("experiment", "sgsgan_table2", "--cohort", udpet, *words).startswith("SET_TABLE_NEEDS")
    # What the table needs is there, but the volumes are smaller than the window of its rows.
    assert refused("experiment", "s3pet_table2", "--cohort", udpet, *words).startswith("IMG_TOO_SMALL case c")
    assert refused("experiment", "s3pet_table2", "--source", "x", *words).startswith("CFG_SET --source")
    assert not (tmp_path / "out").exists()


def tiny() -> Experiment:
    """Two rows of a system that fits into the cohort, at DRF 4."""
    model = sgsgan.Config(patch=(24, 24, 24), rois=(), critic_channels=2, phase_samples=(4, 0, 0, 0))
    low_dose = EXPERIMENTS["sgsgan_table3"]("small")
    config = replace(
        low_dose.rows[0].config, model=model, feed=replace(low_dose.rows[0].config.feed, source=("low_drf4",))
    )
    assert isinstance(low_dose.cohort, PhantomCohort)
    return replace(
        low_dose,
        cohort=replace(low_dose.cohort, drfs=(4.0,)),
        sources=("low_drf4",),
        columns=(Column(label="PSNR", metric="PSNR", region="body", preset="native"),),
        rows=tuple(
            Row(name=name, config=replace(config, model=replace(model, noise_std=std)), paper={})
            for name, std in (("a", 0.01), ("b", 0.02))
        ),
        untrained={INPUT: {}},
        orders=(),
    )


def test_the_table_of_a_cohort_stands_apart_and_averages_a_patients_cases(
    udpet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def train(cohort: Path, run: Path, config: object, *, command: str) -> Path:
        roles = split_cases(open_cohort(cohort), config.split)  # type: ignore[attr-defined]
        run.mkdir(parents=True)
        facts = {"train": roles.train, "unpaired": (), "test": roles.test, "cases": dict.fromkeys(roles.everyone, "d")}
        (run / CONFIG).write_text(json.dumps({**facts, "config": configs.to_json(config), "command": command}))  # type: ignore[arg-type]
        (run / WEIGHTS).write_bytes(b"w")
        trained.append((config.model.noise_std, set(roles.train) & set(roles.test)))  # type: ignore[attr-defined]
        return run / WEIGHTS

    def evaluate(run: Path, cohort: Path, **asked: object) -> dict[str, Evaluation]:
        assert asked["sources"] == ("dose_4",)
        facts = json.loads((run / CONFIG).read_bytes())
        rows = tuple(
            Score(case, image, "body", "body", BODY_PSNR, 30.0 + int(case[1]) + gain)
            for case in facts["test"]
            for image, gain in ((INPUT, 0.0), (SYNTHESIZED, 2.0))
        )
        found = Evaluation(rows, (INPUT, SYNTHESIZED), tuple(facts["test"]))
        (run / EVALUATION / "dose_4").mkdir(parents=True)
        found.write(run / EVALUATION / "dose_4")
        return {"dose_4": found}

    monkeypatch.setattr(driver, "train", train)
    monkeypatch.setattr(evaluating, "evaluate_run", evaluate)
    asked = tiny()
    monkeypatch.setitem(EXPERIMENTS, "sgsgan_table3", lambda size: asked)
    main(["experiment", "sgsgan_table3", "--cohort", str(udpet), "--folder", str(tmp_path)])
    (page,) = tmp_path.rglob("table.md")
    assert page.parent.name == "sgsgan_table3"
    assert page.parent.parent.name.startswith("udpet-")
    assert [std for std, _ in trained] == [0.01, 0.01, 0.02, 0.02]
    assert not any(shared for _, shared in trained)
    text = " ".join(page.read_text().split())
    assert "4 patients (5 cases) of the cohort udpet, which the user gave; no phantoms were made" in text
    assert "its low doses are thinned" in text
    (row,) = (line for line in json.loads((page.parent / "table.json").read_bytes())["rows"] if line["name"] == "b")
    assert row["columns"]["PSNR"]["patients"] == {"c0": 32.5, "c2": 34.0, "c3": 35.0, "c4": 36.0}
    assert [path for path in tmp_path.rglob("cohort") if path.is_dir()] == []
    assert len(list((page.parent.parent / "runs").glob("*/fold-*"))) == 4
