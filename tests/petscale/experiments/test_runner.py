"""Experiments from end to end with made-up runs: what is trained once, resumed, compared, scored and written."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from petscale import config as configs
from petscale.cli import main
from petscale.config import RunConfig
from petscale.evaluation import run as evaluating
from petscale.evaluation.baselines import INPUT
from petscale.evaluation.current import weights_of
from petscale.evaluation.scores import REFERENCE, SYNTHESIZED, Evaluation
from petscale.experiments import runner
from petscale.experiments.cohorts import make_resized, resized_grid
from petscale.experiments.design import GAUSSIAN, Column, Experiment, Order, PhantomCohort, Row, Scores
from petscale.experiments.runner import run_experiment, run_folder
from petscale.experiments.table import compare, headline, verdict
from petscale.folders import CONFIG, EVALUATION, WEIGHTS
from petscale.splits import split_cases
from petscale.training import driver
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.reader import Case, open_cohort
from storage.source import LABEL, SUV, ArraySource, Dose, Grid, ImageSource
from trainers.feed_config import FeedConfig
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR
from trainers.metrics.statistics import Gain
from trainers.organ_segmenter import OrganSegmenterConfig
from trainers.systems import sgsgan

Refused = Callable[..., str]
PATIENTS = 8
GRID = Grid((40, 24, 28), np.array([[-4.0, 0, 0, 50], [0, -4.0, 0, 60], [0, 0, 3.0, -70], [0, 0, 0, 1]]))
PSNR = Column(label="PSNR", metric="PSNR", region="body", preset="native")
UNET = Column(label="Unet-score", metric="Unet-score", region="liver")
MAE = replace(PSNR, label="MAE", metric="MAE")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small patients with labels, and two low-dose draws each."""
    folder = tmp_path_factory.mktemp("experiment") / "cohort"
    z, y, x = np.indices(GRID.shape)
    inside = ((y - 12) / 9) ** 2 + ((x - 14) / 11) ** 2 < 1
    liver = (z > 12) & (z < 26) & (abs(y - 12) < 5) & (abs(x - 11) < 5)
    truth = np.where(liver, 3.0, 1.0) * inside * (1 + 0.2 * np.sin(z / 6))

    def plan(number: int) -> CasePlan:
        rng = np.random.Generator(np.random.Philox(number))
        noise = rng.normal(0, 0.3, (2, *GRID.shape))
        images = {"full": truth, "low_drf6": truth + noise[0] * inside, "low_drf6_r1": truth + noise[1] * inside}
        sources = {n: ArraySource(np.clip(v, 0, None).astype(np.float32), GRID, SUV) for n, v in images.items()}
        sources["labels"] = ArraySource((inside + 0 + liver).astype(np.float32), GRID, LABEL)
        doses = {"full": Dose(1.0, "full", None), "low_drf6": Dose(6.0, "separate", False)}
        return CasePlan(sources, f"patient {number}", f"made up {number}", {1: "body", 2: "liver"}, doses)

    plans = {f"p{n}": lambda scratch, n=n: plan(n) for n in range(PATIENTS)}
    ingest(folder, plans, strict=True, workers=1)
    return folder


def run_config(noise_std: float = 0.01) -> RunConfig:
    return RunConfig(
        model=sgsgan.Config(rois=(), phase_samples=(8, 0, 0, 0), noise_std=noise_std),
        feed=FeedConfig(source=("low_drf6", "low_drf6_r1")),
    )


def experiment(*names: str, name: str = "tiny", noise: Sequence[float] = (0.01, 0.02, 0.03), **more: Any) -> Experiment:
    rows = [
        Row(
            name=row,
            config=run_config(noise[place]),
            paper={"PSNR": (30.0 + place, 0.5)},
            against=names[place - 1] if place else INPUT,
        )
        for place, row in enumerate(names)
    ]
    asked: dict[str, Any] = {
        "title": "A tiny table",
        "published_in": "nobody",
        "cohort": PhantomCohort(
            name="c", patients=PATIENTS, body=PhantomConfig(), scan=LowDoseConfig(), drfs=(6.0,), realisations=2
        ),
        "sources": ("low_drf6", "low_drf6_r1"),
        "columns": (PSNR, UNET),
        "untrained": {INPUT: {"PSNR": (25.0, None)}},
        "orders": tuple(Order(b, a, "PSNR") for a, b in zip((INPUT, *names), names, strict=False)),
        "folds": 2,
    }
    return Experiment(name=name, rows=tuple(rows), **(asked | more))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, cohort: Path) -> SimpleNamespace:
    """Runs that are made up at once; the list tells what was trained, and a name in ``fails`` stops there."""
    made = SimpleNamespace(runs=[], fails=set(), scored=0, segmenters=[])

    def train(cohort_folder: Path, run: Path, config: RunConfig, *, command: str) -> Path:
        if config.model.noise_std in made.fails:
            raise InputError("TRAIN_FAILED", where="run", found="a test", remedy="none")
        roles = split_cases(open_cohort(cohort_folder), config.split)
        run.mkdir(parents=True)
        facts = {"config": configs.to_json(config), "test": roles.test, "command": command}
        facts |= {"train": roles.train, "unpaired": roles.unpaired, "cases": dict.fromkeys(roles.everyone, "digest")}
        (run / CONFIG).write_text(json.dumps(facts))
        (run / WEIGHTS).write_bytes(b"w")
        made.runs.append((config.model.noise_std, config.split.fold))
        return run / WEIGHTS

    monkeypatch.setattr(driver, "train", train)

    def evaluate(
        run: Path,
        cohort_folder: Path,
        *,
        segmenter: OrganSegmenterConfig | None,
        guide: object,
        lesions: object,
        sources: object,
        baselines: object,
        known: object,
        presets: object,
    ) -> dict[str, Evaluation]:
        made.scored += 1
        found = evaluations(run, segmenter)
        for low, one in found.items():
            (run / EVALUATION / low).mkdir(parents=True, exist_ok=True)
            one.write(run / EVALUATION / low)
        return found

    def make_segmenter(
        run: Path, cohort_folder: Path, config: OrganSegmenterConfig, folder: Path
    ) -> OrganSegmenterConfig:
        made.segmenters.append(folder.name)
        return config

    monkeypatch.setattr(evaluating, "evaluate_run", evaluate)
    monkeypatch.setattr(evaluating, "make_segmenter", make_segmenter)
    monkeypatch.setattr(runner, "make_cohort", lambda phantoms, folder: cohort)
    return made


def made_up(patient: str, gain: float, draw: int) -> float:
    """PSNR of a patient's draw: patients differ by far more than rows do, and draws by more still."""
    number = int(patient[1:])
    return 20.0 + 3 * number + gain * (1 + 0.1 * number) + (5.0 if draw else -5.0)


def evaluations(run: Path, segmenter: OrganSegmenterConfig | None) -> dict[str, Evaluation]:
    facts = json.loads((run / CONFIG).read_bytes())
    noise = facts["config"]["recipe"]["noise_std"] * (1 + 0.1 * facts["config"]["loop"]["seed"])
    found = {}
    for draw, low in enumerate(facts["config"]["feed"]["source"]):
        images = (INPUT, f"Gaussian {4 + draw} mm", SYNTHESIZED)
        scores = [
            Score(patient, image, "body", "body", BODY_PSNR, made_up(patient, gain, draw))
            for patient in facts["test"]
            for image, gain in zip(images, (0.0, 0.5, 100 * noise), strict=True)
        ]
        if segmenter is not None:
            dice = {REFERENCE: 0.9, **dict.fromkeys(images, 0.7)}
            scores += [
                Score(p, i, "liver", "organ", segmenter.definition, v) for p in facts["test"] for i, v in dice.items()
            ]
        found[low] = Evaluation(tuple(scores), images, tuple(facts["test"]), {"weights": weights_of([run])})
    return found


def table(path: Path) -> Any:
    return json.loads((path.parent / "table.json").read_text(), parse_constant=pytest.fail)


def test_every_row_and_fold_once_and_nothing_on_a_second_call(trained: SimpleNamespace, tmp_path: Path) -> None:
    asked = experiment("a", "b")
    path = run_experiment(asked, tmp_path, command="petscale experiment tiny")
    assert trained.runs == [(0.01, 0), (0.01, 1), (0.02, 0), (0.02, 1)]
    first = table(path)
    run_experiment(asked, tmp_path, command="petscale experiment tiny")
    assert (len(trained.runs), trained.scored) == (4, 4)
    assert table(path) == first
    assert first["complete"]
    assert "Partial" not in path.read_text()
    (row,) = (r for r in first["rows"] if r["name"] == "b")
    assert set(row["columns"]["PSNR"]["patients"]) == {f"p{n}" for n in range(PATIENTS)}
    assert row["config"] == configs.to_json(asked.rows[1].config)
    assert all(len(runs) == 2 and not any(r.startswith("/") for r in runs) for runs in first["facts"]["runs"].values())


def test_a_stopped_experiment_leaves_a_partial_table_and_continues(trained: SimpleNamespace, tmp_path: Path) -> None:
    asked = experiment("a", "b", "c")
    trained.fails = {0.02}
    with pytest.raises(InputError, match="TRAIN_FAILED"):
        run_experiment(asked, tmp_path, command="first")
    path = tmp_path / "tiny" / "table.md"
    assert "**Partial: 1 of 3 rows" in path.read_text()
    assert not table(path)["complete"]
    verdicts = [order["verdict"] for order in table(path)["orders"]]
    assert verdicts == ["reproduced", "not computed", "not computed"]
    trained.fails = set()
    run_experiment(asked, tmp_path, command="second")
    assert [noise for noise, _ in trained.runs] == [0.01, 0.01, 0.02, 0.02, 0.03, 0.03]
    assert "Partial" not in path.read_text()


def test_tables_share_runs_of_equal_settings_whatever_the_rows_are_called(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    run_experiment(experiment("a", "b"), tmp_path, command="one")
    run_experiment(experiment("other name", "c", name="second", noise=(0.02, 0.03)), tmp_path, command="two")
    assert [noise for noise, _ in trained.runs] == [0.01, 0.01, 0.02, 0.02, 0.03, 0.03]


def test_a_run_is_another_when_a_setting_or_a_voxel_changes_but_not_by_where_it_is_computed(
    cohort: Path, tmp_path: Path
) -> None:
    def folder(config: RunConfig, folds: int = 2, where: Path = cohort) -> str:
        return run_folder(tmp_path, "row", config, folds, where).name

    config = run_config()
    assert folder(config) == folder(configs.override(config, ["cluster.workers=2", "loop.log_every=3"]))
    others = [folder(run_config(0.5)), folder(config, 4), folder(configs.override(config, ["loop.seed=1"]))]

    def changed(name: str, scratch: Path) -> CasePlan:
        case = open_cohort(cohort).case(name)
        return CasePlan({image: case.image(image) for image in case.images if image != "body"}, name, "changed")

    ingest(tmp_path / "other", {name: partial(changed, name) for name in ("p0", "p1")}, strict=True, workers=1)
    assert len({folder(config), *others, folder(config, where=tmp_path / "other")}) == 5


def test_folds_test_every_patient_once_and_settings_reach_every_run(trained: SimpleNamespace, tmp_path: Path) -> None:
    path = run_experiment(experiment("a"), tmp_path, command="x", settings=["cluster.workers=2"])
    tested = []
    for run in table(path)["facts"]["runs"]["a"]:
        content = json.loads((tmp_path / run / CONFIG).read_bytes())
        assert content["config"]["cluster"]["workers"] == 2
        tested += content["test"]
    assert sorted(tested) == [f"p{n}" for n in range(PATIENTS)]


def test_gains_are_paired_over_patients_whose_draws_are_averaged_first(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    path = run_experiment(experiment("a", "b"), tmp_path, command="x")
    rows = {row["name"]: row["columns"]["PSNR"] for row in table(path)["rows"]}
    assert list(rows) == [INPUT, GAUSSIAN, "a", "b"]
    numbers = np.arange(PATIENTS)
    assert [rows["b"]["patients"][f"p{n}"] for n in numbers] == pytest.approx(
        20 + 3 * numbers + 2 * (1 + 0.1 * numbers)
    )
    gains = 1 + 0.1 * numbers  # row b's over row a's
    assert rows["b"]["gain"]["mean"] == pytest.approx(gains.mean())
    assert rows["b"]["gain"]["sd"] == pytest.approx(gains.std(ddof=1))
    assert rows["b"]["gain"]["p_value"] == pytest.approx(wilcoxon(gains).pvalue)
    assert (rows["b"]["gain"]["num_better"], rows["b"]["gain"]["num_cases"]) == (PATIENTS, PATIENTS)
    assert rows["b"]["paper"] == [31.0, 0.5]
    assert rows[GAUSSIAN]["gain"]["over"] == INPUT
    text = path.read_text()
    ours = 20 + 3 * numbers + 2 * (1 + 0.1 * numbers)
    assert f"| b | {ours.mean():.2f} ± {ours.std(ddof=1):.2f} | 31 ± 0.5 | +1.35 (8 of 8) | a | 0.008 |" in text
    # The Gaussian is the best baseline: half a dB over the input, as row a is a whole one.
    assert f"## Every row against the best baseline: {GAUSSIAN}" in text
    over = rows["a"]["gain_over_best_baseline"]
    assert (over["over"], over["num_better"]) == (GAUSSIAN, PATIENTS)
    assert over["mean"] == pytest.approx(0.5 * gains.mean())
    assert over["p_value"] == pytest.approx(wilcoxon(gains).pvalue)
    assert table(path)["best_baseline"] == GAUSSIAN
    assert rows[GAUSSIAN]["gain_over_best_baseline"] is None
    assert "| low-dose input | 30.50 ± 7.35 | 25 | - | - | - |" in text
    assert "- PSNR: b ahead of a: **reproduced**" in text
    assert "`x`" in text


def test_seeds_are_averaged_per_patient_and_rows_compared_network_by_network_too(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    one = run_experiment(experiment("a", "b"), tmp_path, command="x")
    before = one.read_text()
    assert "by network" not in before
    path = run_experiment(experiment("a", "b", seeds=3), tmp_path, command="x")
    assert path.parent.name == "tiny-3-seeds"
    assert one.read_text() == before
    assert len(trained.runs) == 2 * 2 * 3, "the first seed's runs are those that were there"
    rows = {row["name"]: row["columns"]["PSNR"] for row in table(path)["rows"]}
    numbers, factors = np.arange(PATIENTS), np.array([1.0, 1.1, 1.2])
    gains = 1 + 0.1 * numbers  # of b over a, of the first seed
    assert [rows["b"]["gain"]["mean"], rows["b"]["gain"]["sd"]] == pytest.approx(
        [1.1 * gains.mean(), 1.1 * gains.std(ddof=1)]
    )
    tested = {
        fold: [int(name[1:]) for name in json.loads((tmp_path / runs / CONFIG).read_bytes())["test"]]
        for fold, runs in enumerate(table(path)["facts"]["runs"]["b"][:2])
    }
    expected = {
        f"fold {fold}, seed {seed}": factors[seed] * float(gains[places].mean())
        for seed in range(3)
        for fold, places in tested.items()
    }
    ours, theirs = rows["b"]["networks"], rows["a"]["networks"]
    assert {name: ours[name] - theirs[name] for name in ours} == pytest.approx(expected)
    by_network = rows["b"]["gain_by_network"]
    assert by_network["mean"] == pytest.approx(np.mean([*expected.values()]))
    assert (by_network["num_better"], by_network["num_cases"]) == (6, 6)
    assert by_network["p_value"] == pytest.approx(2 / 2**6)  # all of one sign
    over_input = rows["a"]["gain_by_network"]
    assert (over_input["over"], over_input["num_better"]) == (INPUT, 6)
    assert rows[INPUT]["gain_by_network"] is None
    mean = 1.1 * gains.mean()
    text = path.read_text()
    assert f"| +{mean:.2f} (8 of 8) | a | 0.008 | +{by_network['mean']:.2f} (6 of 6) | 0.031 |" in text
    assert f"b ahead of a: **reproduced**: +{mean:.2f} (8 of 8), p 0.008; by network +" in text
    assert "trained 3 times on every fold" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sgsgan_table3", "--seeds", "0"], "CFG_RANGE --seeds"),
        (["sgsgan_table9", "--seeds", "3"], "CFG_NO_EFFECT --seeds"),
    ],
)
def test_seeds_that_cannot_be_are_refused(words: list[str], told: str, refused: Refused) -> None:
    assert refused("experiment", *words).startswith(told)


def test_a_column_of_one_image_is_read_from_that_image_alone(trained: SimpleNamespace, tmp_path: Path) -> None:
    columns = (PSNR, *(replace(PSNR, label=low, source=low) for low in ("low_drf6", "low_drf6_r1")))
    path = run_experiment(experiment("a", columns=columns), tmp_path, command="x")
    (row,) = (row["columns"] for row in table(path)["rows"] if row["name"] == "a")
    for low, draw in (("low_drf6", 0), ("low_drf6_r1", 1)):
        assert row[low]["patients"] == {f"p{n}": made_up(f"p{n}", 1.0, draw) for n in range(PATIENTS)}
    assert row["PSNR"]["patients"]["p1"] == pytest.approx((row["low_drf6"]["patients"]["p1"] + 5), abs=1e-9)


def test_a_score_that_nobody_made_is_a_dash(trained: SimpleNamespace, tmp_path: Path) -> None:
    text = run_experiment(experiment("a"), tmp_path, command="x").read_text()
    section = text.split("## Unet-score")[1].split("##")[0]
    assert "| a | - | - | - | low-dose input | - |" in section


def test_one_segmenter_per_fold_serves_every_row_and_the_full_dose_stands_in_the_table(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    segmenter = OrganSegmenterConfig(rois=("liver",), samples=10)
    run_experiment(experiment("a", "b"), tmp_path, command="x")
    assert not trained.segmenters
    path = run_experiment(experiment("a", "b", unet_score=segmenter), tmp_path, command="x")
    assert (len(trained.runs), trained.scored) == (4, 8)
    assert len(trained.segmenters) == 4
    assert len(set(trained.segmenters)) == 2
    section = path.read_text().split("## Unet-score")[1].split("##")[0]
    assert "| full dose | 0.9000 ± 0.0000 | - | - | - | - |" in section
    assert "| a | 0.7000 ± 0.0000 | - | +0.0000 (0 of 8) | low-dose input | - |" in section
    run_experiment(experiment("a", "b", unet_score=segmenter), tmp_path, command="x")
    run_experiment(experiment("a", "b"), tmp_path, command="x")
    assert trained.scored == 8
    run_experiment(experiment("a", unet_score=replace(segmenter, samples=20)), tmp_path, command="x")
    assert trained.scored == 10
    assert len(set(trained.segmenters)) == 4


def scores(**columns: Sequence[float]) -> Scores:
    return {
        row: {"MAE": {f"p{n}": value for n, value in enumerate(values)}, "PSNR": {}} for row, values in columns.items()
    }


def test_lower_is_better_turns_the_sign_and_five_patients_are_too_few() -> None:
    one, other = [1.0, 1.2, 0.9, 1.4, 1.1, 1.3], [1.5, 1.4, 1.6, 1.2, 1.9, 2.0]
    gain = compare(scores(a=one, b=other), "a", "b", MAE)
    assert gain.mean == pytest.approx(np.mean(other) - np.mean(one))
    assert gain.num_better == 5
    assert gain.p_value == pytest.approx(wilcoxon(np.subtract(other, one)).pvalue)
    assert compare(scores(a=one[:5], b=other[:5]), "a", "b", MAE).p_value is None
    assert compare(scores(a=one, b=one), "a", "b", MAE).p_value is None
    assert compare(scores(a=one, b=[math.inf, *one[1:]]), "a", "b", MAE).p_value is None
    assert compare(scores(a=one, b=other), "a", "b", PSNR) is None
    assert compare(scores(a=one), "a", "b", MAE) is None


@pytest.mark.parametrize(
    ("mean", "p_value", "said"),
    [
        (1.0, 0.01, "reproduced"),
        (-1.0, 0.01, "not reproduced"),
        (1.0, 0.05, "within noise"),
        (-1.0, 0.8, "within noise"),
        (1.0, None, "not tested"),
    ],
)
def test_verdicts(mean: float, p_value: float | None, said: str) -> None:
    assert verdict(Gain("", mean, 1.0, 6, 8, p_value)) == said
    assert verdict(None) == "not computed"


def test_the_terminal_shows_whole_volume_scores_only() -> None:
    asked = experiment("a", columns=(PSNR, replace(PSNR, label="PSNR whole", region="whole volume")))
    shown = headline(asked, {"a": {"PSNR whole": {"p0": 31.0, "p1": 33.0}}})
    assert [column.header for column in shown.columns] == ["row", r"PSNR whole \[dB]"]
    of_each = [replace(PSNR, label=low, region="whole volume", source=low) for low in asked.sources]
    shown = headline(replace(asked, columns=tuple(of_each)), {})
    assert [column.header for column in shown.columns] == ["row", r"low_drf6_r1 \[dB]"]


def test_a_resized_grid_keeps_the_volumes_borders() -> None:
    small = resized_grid(GRID, 64)

    def border(grid: Grid, place: str) -> NDArray[np.float64]:
        z, y, x = grid.shape
        corner = [-0.5, -0.5, -0.5, 1] if place == "first" else [x - 0.5, y - 0.5, z - 0.5, 1]
        return grid.affine @ corner

    for place in ("first", "last"):
        np.testing.assert_allclose(border(small, place), border(GRID, place))


def test_a_resized_run_is_scored_at_native_resolution_beside_resizing_alone(
    monkeypatch: pytest.MonkeyPatch, cohort: Path, tmp_path: Path
) -> None:
    folder = make_resized(cohort, tmp_path / "resized-64")
    native, small = open_cohort(cohort).case("p3"), open_cohort(folder).case("p3")
    assert small.subject == native.subject
    assert small.image("full").grid.shape == (64, 64, 64)
    assert small.image("low_drf6").dose == Dose(6.0, "separate", False)
    assert small.image("full").dose == Dose(1.0, "full", None)
    np.testing.assert_allclose(small.image("full").read(0, 64), native.overview("full"), atol=1e-6)
    assert set(np.unique(small.image("labels").read(0, 64))) == {0, 1, 2}

    def share(case: Case) -> float:
        labels = case.image("labels")
        return float((labels.read(0, labels.grid.shape[0]) == 2).mean())

    assert share(small) == pytest.approx(share(native), rel=0.1)

    # A network that finds the full dose exactly: what is left is the loss of resolution.
    run = tmp_path / "run"
    run.mkdir()
    config = run_config()
    (run / CONFIG).write_text(json.dumps({"config": configs.to_json(config), "test": ["p3", "p5"]}))
    (run / WEIGHTS).write_bytes(b"w")
    asked = []

    def perfect(trained: object, place: object, case: Case, low: str) -> ImageSource:
        asked.append(low)
        return case.image("full")

    monkeypatch.setattr(runner, "open_run", lambda place: None)
    monkeypatch.setattr(runner, "synthesize_case", perfect)
    found = runner._evaluate_resized(run, open_cohort(folder), open_cohort(cohort))
    assert set(found) == {"low_drf6", "low_drf6_r1"}
    one = found["low_drf6"]
    assert one.images == (INPUT, f"{INPUT}, resized and back", f"{REFERENCE}, resized and back", SYNTHESIZED)
    psnr = {image: one.values(image, BODY_PSNR, "body") for image in one.images}
    assert psnr[SYNTHESIZED] == psnr[f"{REFERENCE}, resized and back"]
    assert psnr[SYNTHESIZED]["p3"] > psnr[INPUT]["p3"] + 3
    assert np.isfinite(list(psnr[SYNTHESIZED].values())).all()
    again = runner._evaluate_resized(run, open_cohort(folder), open_cohort(cohort))
    assert len(asked) == 4
    assert again["low_drf6"].rows == one.rows


def test_the_command_hands_on_name_size_folder_and_where_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}

    def run(asked: Experiment, folder: Path, *, command: str, settings: Sequence[str]) -> Path:
        seen.update(name=asked.name, folder=folder, settings=settings, words=command.split()[0])
        return folder / "table.md"

    monkeypatch.setattr(runner, "run_experiment", run)
    main(["experiment", "sgsgan_table3", "--size", "paper", "--folder", str(tmp_path), "--device", "cuda"])
    assert capsys.readouterr().out == f"{tmp_path / 'paper' / 'table.md'}\n"
    assert seen == {
        "name": "sgsgan_table3",
        "folder": tmp_path / "paper",
        "settings": ["cluster.device=cuda"],
        "words": "petscale",
    }
