"""Run an experiment: every row on every fold, then one table beside the paper's, with a paired test per row.

What it knows: what an experiment is (``petscale.experiments`` holds them), which run belongs to which row and fold,
which are there already, how patients are compared and how a table is written.  What it refuses to know: how a run is
trained, an image scored, or what a row's settings mean.

Below one folder: ``<cohort>-<digest>/cohort``, ``<cohort>-<digest>/runs/<digest>-<row>/fold-<k>``, and
``<experiment>/table.md`` and ``table.json``.  A run's digest is that of its configuration and of its cohort's voxels,
so that tables share the runs they have in common, and a changed setting is another run, never a stale number.
"""

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import wilcoxon

from petscale import assess, detection, launch, nodes, prepare
from petscale import config as configs
from petscale.baselines import BY_HU, INPUT
from petscale.config import RunConfig
from petscale.evaluate import (
    FEWEST_FOR_A_TEST,
    REFERENCE,
    SYNTHESIZED,
    Evaluation,
    Gain,
    read_evaluation,
    region_group,
    score_case,
)
from petscale.progress import console
from petscale.synthesize import open_run, synthesize_case
from storage import geometry, integrity
from storage.ingest import CasePlan
from storage.layout import low_name
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.reader import Case, Cohort, open_cohort
from storage.source import LABEL, SUV, ArraySource, Grid, ImageSource
from trainers.metrics.detection import DetectionConfig, Matching, clopper_pearson, poisson_interval
from trainers.metrics.unet_score import UnetScoreConfig
from trainers.systems import RECIPES

GAUSSIAN = "best Gaussian"
SIGNIFICANT = 0.05
Scores = dict[str, dict[str, dict[str, float]]]  # image or row -> column label -> patient -> score, in our units

# ---- what an experiment is ------------------------------------------------------------------------------------------

Published = tuple[float, float | None]  # mean, and standard deviation where the paper prints one
_METRICS = {  # direction of the better, digits, units
    "PSNR": (1, 2, "dB"),
    "SSIM": (1, 4, ""),
    "MAE": (-1, 4, "SUVbw"),
    "MAE, cascade": (-1, 4, ""),  # of images in [0, 1]
    "NRMSE": (-1, 3, "%"),  # of the range, as udpet2022 has it
    "NMSE": (-1, 4, ""),
    "Unet-score": (1, 4, ""),
    "MS-SSIM": (1, 4, ""),
    "CB 2": (-1, 1, "dB"),
    "CB 4": (-1, 1, "dB"),
    detection.TPR: (1, 3, ""),
    detection.FALSE: (-1, 2, "per scan"),
    detection.SHARPNESS: (1, 2, "of the real PET's"),
    detection.HITS: (1, 1, "per scan"),
    detection.LESIONS: (1, 1, "per scan"),
}


@dataclass(frozen=True, kw_only=True)
class PhantomCohort:
    """Phantom patients, one case each, with simulated scans.

    Args:
        name: what its folder is called.
        patients: how many.
        body: the phantom; seeds count up from ``body.seed``.
        scan: the scanner and its counts.
        drfs: dose reduction factors.
        realisations: independent low-dose images of each patient and dose.
    """

    name: str
    patients: int
    body: PhantomConfig
    scan: LowDoseConfig
    drfs: tuple[float, ...]
    realisations: int = 1

    def lows(self, drf: float) -> tuple[str, ...]:
        """Names of the low-dose images of one dose."""
        return tuple(low_name(drf, number) for number in range(self.realisations))


@dataclass(frozen=True, kw_only=True)
class Column:
    """One score of a table.

    Args:
        label: what the table calls it.
        metric: ``Rule.metric`` of the scores it is read from.
        region: ``Score.region`` of these.
        preset: ``Rule.preset`` of these, empty for any.
        mask: ``Rule.mask`` of these, empty for any.
        data_range: ``Rule.data_range`` of these, empty for any.
    """

    label: str
    metric: str
    region: str = "whole volume"
    preset: str = ""
    mask: str = ""
    data_range: str = ""

    @property
    def _facts(self) -> tuple[int, int, str]:
        return _METRICS.get(f"{self.metric}, {self.preset}", _METRICS[self.metric])

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return self._facts[0]

    @property
    def places(self) -> int:
        """Digits after the point."""
        return self._facts[1]

    @property
    def units(self) -> str:
        """Ours; the paper's may be unknown."""
        return self._facts[2]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trained system of a table.

    Args:
        name: the paper's name of it.
        config: its run; folds are filled in from the experiment.
        paper: column label -> published value.
        against: the row that it is tested against, or what needs no network: the low-dose input, or the mean SUV by HU.
        resized: train on whole volumes resized to this edge length (by area) and score at the native grid; None for
            native patches.
    """

    name: str
    config: RunConfig
    paper: Mapping[str, Published]
    against: str = INPUT
    resized: int | None = None


@dataclass(frozen=True)
class Order:
    """The paper (or its open question) has ``better`` ahead of ``worse`` in ``column``."""

    better: str
    worse: str
    column: str


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One table.

    Args:
        name: the key in ``EXPERIMENTS``.
        title: what it asks.
        source: where the paper's numbers stand.
        cohort: whom it is asked of.
        lows: images that networks start from and whose scores enter the table; a patient's realisations are averaged
            first.
        columns: scores.
        rows: trained systems, in the paper's order.
        untrained: images that nobody trained, the low-dose input among them: column label -> published value.
        orders: the paper's orderings, each tested over patients.
        folds: parts of the cross-validation; every patient is tested once.
        unet_score: the judge of the Unet-score, None for none.  The tables of one cohort name the same, whether they
            show it or not, since they share runs and scores.
        lesions: what is to be detected where, None for nothing.
        caveats: what a reader of the table must know, one sentence each.
    """

    name: str
    title: str
    source: str
    cohort: PhantomCohort
    lows: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    untrained: Mapping[str, Mapping[str, Published]]
    orders: tuple[Order, ...]
    folds: int
    unet_score: UnetScoreConfig | None = None
    lesions: DetectionConfig | None = None
    caveats: tuple[str, ...] = ()

    @property
    def collected(self) -> tuple[Column, ...]:
        """The columns shown, and the counts that are pooled over patients."""
        if self.lesions is None:
            return self.columns
        return (*self.columns, *(count for rule in _RULES for count in _counted(self.lesions, rule)))


# ---- running one -----------------------------------------------------------------------------------------------------


def run_experiment(experiment: Experiment, folder: Path, *, command: str, settings: Sequence[str] = ()) -> Path:
    """Train and score what is not there yet and write the table after every finished row.

    Args:
        folder: where cohorts, runs and tables of all experiments of one size go.
        command: what the user typed, for the record.
        settings: ``room.field=value`` for every run, as ``petscale train --set`` takes them.

    Returns:
        The path of ``table.md``.

    Raises:
        InputError: as ``launch.train`` and ``assess.evaluate_run`` do; the same command then continues.
    """
    nodes.require_path(folder)
    place = folder / experiment.name
    place.mkdir(parents=True, exist_ok=True)
    home = folder / f"{experiment.cohort.name}-{_digest(asdict(experiment.cohort))}"
    cohort = make_cohort(experiment.cohort, home / "cohort")
    scores: Scores = {}
    runs: dict[str, list[str]] = {}
    known: dict[int, dict[str, Evaluation]] = {}  # a fold's input and Gaussian are scored once
    for number, row in enumerate(experiment.rows, 1):
        console.print(f"{experiment.name}: row {number} of {len(experiment.rows)}, {row.name}", markup=False)
        config = configs.override(row.config, settings)
        for fold in range(experiment.folds):
            run, evaluations = _run_fold(experiment, row, config, fold, cohort, home, command, known.get(fold, {}))
            if not row.resized:
                known[fold] = evaluations
            runs.setdefault(row.name, []).append(str(run.relative_to(folder)))
            _collect(scores, experiment, row, evaluations)
        facts = {"command": command, "runs": runs, **_facts()}
        integrity.write_bytes(place / "table.md", markdown(experiment, scores, facts).encode())
        integrity.write_json(place / "table.json", as_json(experiment, scores, facts))
    console.print(headline(experiment, scores))
    return place / "table.md"


# ---- cohorts --------------------------------------------------------------------------------------------------------


def make_cohort(cohort: PhantomCohort, folder: Path) -> Path:
    """Draw the phantoms and simulate their scans; those that are there stay."""
    plans = prepare.phantom_plans(cohort.patients, cohort.body, cohort.scan, cohort.drfs, cohort.realisations)
    prepare.run("phantoms", folder, plans, strict=True, workers=None)
    return folder


def make_resized(native: Path, folder: Path) -> Path:
    """Make a cohort of the native one's PETs as whole volumes resized to 64^3, as SGSGAN's paper trains on.

    PETs are resized by area (the paper: "bicubic"), which are the overviews stored with every case; labels take the
    nearest voxel.
    """
    opened = open_cohort(native)
    plans = {name: partial(_resized_plan, opened.case(name)) for name in opened.cases}
    prepare.run("resize", folder, plans, strict=True, workers=None)
    return folder


def _resized_plan(case: Case, scratch: Path) -> CasePlan:
    images: dict[str, Any] = {}
    for name in case.images:
        image = case.image(name)
        if image.units == SUV:
            voxels = case.overview(name)
            images[name] = ArraySource(voxels, resized_grid(image.grid, len(voxels)), SUV, {"kind": "resized by area"})
    edge = len(next(iter(images.values())).voxels)
    if case.labels:
        labels = case.image("labels")
        z, y, x = (((np.arange(edge) + 0.5) * n / edge).astype(int) for n in labels.grid.shape)
        voxels = labels.read(0, labels.grid.shape[0])[np.ix_(z, y, x)]
        images["labels"] = ArraySource(voxels, resized_grid(labels.grid, edge), LABEL, {"kind": "nearest voxel"})
    return CasePlan(images, case.subject, f"{case.fingerprint} resized to {edge}", case.labels)


def resized_grid(grid: Grid, edge: int) -> Grid:
    """Grid of ``edge``^3 voxels over the same extent: borders, not centres, of the outermost voxels stay in place."""
    ratio = np.array(grid.shape[::-1]) / edge  # (x, y, z), as the affine takes them
    scale = np.diag([*ratio, 1.0])
    scale[:3, 3] = (ratio - 1) / 2
    return Grid((edge, edge, edge), grid.affine @ scale)


# ---- runs -----------------------------------------------------------------------------------------------------------


def _run_fold(
    experiment: Experiment,
    row: Row,
    config: RunConfig,
    fold: int,
    native: Path,
    home: Path,
    command: str,
    known: Mapping[str, Evaluation],
) -> tuple[Path, dict[str, Evaluation]]:
    """Train one row on one fold unless its weights are there, and score it unless its scores are."""
    cohort = make_resized(native, home / f"resized-{row.resized}") if row.resized else native
    run = run_folder(home / "runs", row.name, config, experiment.folds, cohort) / f"fold-{fold}"
    if not (run / launch.WEIGHTS).is_file():
        split = replace(config.split, folds=experiment.folds, fold=fold)
        launch.train(cohort, run, replace(config, split=split), command=command)
    if row.resized:
        return run, _evaluate_resized(run, open_cohort(cohort), open_cohort(native))
    return run, _evaluate(run, native, experiment, home, known)


def run_folder(runs: Path, row: str, config: RunConfig, folds: int, cohort: Path) -> Path:
    """Folder of a row's folds, named by what decides its results; a row of another table may have made it."""
    opened = open_cohort(cohort)
    voxels = {name: integrity.manifest(opened.case(name).folder)["root"] for name in opened.cases}
    split = replace(config.split, folds=folds, fold=0)
    digest = _digest({"run": replace(config, split=split).identity(), "voxels": voxels})
    there = sorted(runs.glob(f"{digest}-*"))
    return there[0] if there else runs / f"{digest}-{re.sub('[^a-z0-9]+', '-', row.lower()).strip('-')}"


def _evaluate(
    run: Path, cohort: Path, experiment: Experiment, home: Path, known: Mapping[str, Evaluation]
) -> dict[str, Evaluation]:
    """Read a run's scores, or make them; one Gaussian and one judge of the Unet-score serve every row of a fold."""
    unet_score = experiment.unet_score
    found = {low: _scored(run, low) for low in experiment.lows}
    whole = {low: there for low, there in found.items() if there is not None and _judged_by(there, experiment)}
    if len(whole) == len(found):
        return whole
    config, facts = configs.read(run / launch.CONFIG), json.loads((run / launch.CONFIG).read_bytes())
    seen = {name: facts["cases"][name] for name in (*facts["train"], *facts["unpaired"])}
    judge = None
    if unet_score is not None:
        feed = [config.feed.full, config.feed.seed, config.feed.suv_scale, config.feed.cases_per_step]
        judge = assess.make_judge(run, cohort, unet_score, home / "judges" / _digest([asdict(unet_score), feed, seen]))
    baselines = home / "baselines" / _digest({name: seen[name] for name in facts["train"]})
    return assess.evaluate_run(
        run,
        cohort,
        judged_by=judge,
        lesions=experiment.lesions,
        lows=experiment.lows,
        baselines=baselines,
        known=known,
    )


def _scored(run: Path, name: str) -> Evaluation | None:
    """The scores in one folder of a run's evaluation, None where there are none or the weights are newer."""
    scores = run / assess.EVALUATION / name / "scores.json"
    fresh = scores.is_file() and scores.stat().st_mtime > (run / launch.WEIGHTS).stat().st_mtime
    return read_evaluation(scores.parent) if fresh else None


def _judged_by(evaluation: Evaluation, wanted: Experiment) -> bool:
    judge, lesions = wanted.unet_score, wanted.lesions
    judged = judge is None or any(row.rule == judge.rule for row in evaluation.rows)
    return judged and (lesions is None or any(row.rule.mask == lesions.text() for row in evaluation.rows))


def _evaluate_resized(run: Path, resized: Cohort, native: Cohort) -> dict[str, Evaluation]:
    """Put a run's 64^3 results back on the native grid and score them there as a native run's are.

    Beside them stand the images that merely went down and up: the low-dose input, from whose noise resizing itself
    takes away, and the full dose, whose loss of resolution no network at 64^3 can make good.
    """
    facts = json.loads((run / launch.CONFIG).read_bytes())
    config = configs.read(run / launch.CONFIG)
    trained = None
    results = {}
    for low in config.feed.low:
        if (there := _scored(run, f"{low}-native")) is not None:
            results[low] = there
            continue
        trained = trained or open_run(run)
        rows = []
        for name in facts["test"]:
            case, small = native.case(name), resized.case(name)
            back = partial(geometry.Resampled, grid=case.image(config.feed.full).grid, outside=0.0)
            candidates: dict[str, ImageSource] = {
                INPUT: case.image(low),
                f"{INPUT}, resized and back": back(small.image(low)),
                f"{REFERENCE}, resized and back": back(small.image(config.feed.full)),
                SYNTHESIZED: back(synthesize_case(trained, run, small, low)),
            }
            rows += score_case(
                name,
                case.image(config.feed.full),
                candidates,
                body=case.image("body"),
                labels=case.image("labels") if case.labels else None,
                label_names=case.labels,
                lesions=[label for label in case.labels.values() if label.startswith("lesion")],
                presets=tuple(dict.fromkeys(("native", RECIPES[config.recipe].PRESET))),
            )
        about = {"low": low, "resized": "by area to the network's volume and back by linear interpolation"}
        results[low] = Evaluation(tuple(rows), tuple(candidates), tuple(facts["test"]), about)
        folder = run / assess.EVALUATION / f"{low}-native"
        folder.mkdir(parents=True, exist_ok=True)
        results[low].write(folder)
    return results


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


# ---- scores ---------------------------------------------------------------------------------------------------------


def _collect(scores: Scores, experiment: Experiment, row: Row, evaluations: Mapping[str, Evaluation]) -> None:
    """Add one fold's patients.  Input and Gaussian are the same in every row of a fold and are taken once."""
    chosen = [evaluations[low] for low in experiment.lows]
    first = chosen[0]
    for place, image in enumerate((*first.images, REFERENCE)):  # the full dose itself has some scores too
        name = row.name if image == first.synthesized else GAUSSIAN if image.startswith("Gaussian") else image
        for column in experiment.collected:
            # A patient's realisations are averaged before patients are compared: they are no independent patients.
            drawn = [_values(e, (*e.images, REFERENCE)[place], column) for e in chosen]
            for patient in drawn[0]:
                value = float(np.mean([values[patient] for values in drawn if patient in values]))
                scores.setdefault(name, {}).setdefault(column.label, {})[patient] = value


def _values(evaluation: Evaluation, image: str, column: Column) -> dict[str, float]:
    for score in evaluation.rows:
        rule = score.rule
        if (rule.metric, region_group(score)) == (column.metric, column.region) and all(
            wanted in ("", found)
            for wanted, found in (
                (column.preset, rule.preset),
                (column.mask, rule.mask),
                (column.data_range, rule.data_range),
            )
        ):
            return evaluation.values(image, rule, column.region)
    return {}


def compare(scores: Scores, better: str, worse: str, column: Column) -> Gain | None:
    """How much better one row is than another, patient by patient, positive where ``column`` calls it better.

    Returns:
        Mean and sd (ddof 1) of the gain, patients in which it is positive, and the two-sided Wilcoxon signed-rank
        test, None with fewer than ``FEWEST_FOR_A_TEST`` patients or without any difference; None without scores.
    """
    ours, theirs = (scores.get(name, {}).get(column.label, {}) for name in (better, worse))
    gains = np.array([column.sign * (ours[patient] - theirs[patient]) for patient in ours if patient in theirs])
    if not gains.size:
        return None
    finite = bool(np.isfinite(gains).all())
    tested = len(gains) >= FEWEST_FOR_A_TEST and finite and bool(gains.any())
    p_value = float(wilcoxon(gains).pvalue) if tested else None
    sd = float(gains.std(ddof=1)) if finite and len(gains) > 1 else float("nan")
    return Gain(worse, float(gains.mean()), sd, int((gains > 0).sum()), len(gains), p_value)


def verdict(gain: Gain | None) -> str:
    """What the patients say about an ordering, in words."""
    if gain is None:
        return "not computed"
    if gain.p_value is None:
        return "not tested"
    if gain.p_value >= SIGNIFICANT:
        return "within noise"
    return "reproduced" if gain.mean > 0 else "not reproduced"


# ---- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """One row of a table: a trained one, or an image that nobody trained."""

    name: str
    paper: Mapping[str, Published]
    against: str


def _lines(experiment: Experiment, scores: Scores) -> list[_Line]:
    trained = [_Line(row.name, row.paper, row.against) for row in experiment.rows]
    published = [
        _Line(image, paper, "") for image, paper in experiment.untrained.items() if image == INPUT or image in scores
    ]
    known = {line.name for line in (*published, *trained)}
    others = [_Line(name, {}, "" if name in (REFERENCE, BY_HU) else INPUT) for name in scores if name not in known]
    return [*published, *others, *trained]


def _ours(scores: Scores, name: str, column: Column) -> str:
    values = np.array(list(scores.get(name, {}).get(column.label, {}).values()))
    if not values.size:
        return "-"
    mean = f"{values.mean():.{column.places}f}"
    spread = np.isfinite(values).all() and values.size > 1
    return f"{mean} ± {values.std(ddof=1):.{column.places}f}" if spread else mean


def _theirs(paper: Mapping[str, Published], column: Column) -> str:
    if column.label not in paper:
        return "-"
    mean, sd = paper[column.label]
    return f"{mean:g}" if sd is None else f"{mean:g} ± {sd:g}"


def _p(gain: Gain | None) -> str:
    if gain is None or gain.p_value is None:
        return "-"
    return f"{gain.p_value:.3f}" if gain.p_value >= 0.001 else f"{gain.p_value:.1e}"


def _gained(gain: Gain | None, column: Column) -> str:
    return "-" if gain is None else f"{gain.mean:+.{column.places}f} ({gain.num_better} of {gain.num_cases})"


def markdown(experiment: Experiment, scores: Scores, facts: Mapping[str, Any]) -> str:
    """Return the table as a page: per column ours beside the paper's, the gain over a row's reference and its p."""
    done = [row.name for row in experiment.rows if row.name in scores]
    patients = len({patient for columns in scores.values() for found in columns.values() for patient in found})
    text = [f"# {experiment.title}", ""]
    if len(done) < len(experiment.rows):
        text += [f"**Partial: {len(done)} of {len(experiment.rows)} rows are finished.**", ""]
    body = experiment.cohort.body
    shape, spacing = " x ".join(map(str, body.shape)), " x ".join(f"{mm:g}" for mm in body.spacing_mm)
    text += [
        f"Paper: {experiment.source}.  Ours: {patients} simulated patients (phantoms of {shape} voxels, {spacing} mm), "
        f"{experiment.folds} folds by patient, each patient tested once; scored on {', '.join(experiment.lows)}.",
        "",
        "Mean ± sd (ddof 1) over patients.  The gain is the mean difference, patient by patient, to the row named,"
        " positive where the row is better, with the number of patients in which it is; p: two-sided Wilcoxon"
        " signed-rank test over patients, not corrected for the number of tests.  The patients of a fold share one"
        " network, so p speaks of these networks and not of other trainings.",
        "",
        *(f"- {caveat}" for caveat in experiment.caveats),
        "",
    ]
    for column in experiment.columns:
        units = f" [{column.units}]" if column.units else ""
        text += [f"## {column.label}{units}, {'higher' if column.sign > 0 else 'lower'} is better", ""]
        text += ["| row | ours | paper | gain | over | p |", "|---|---|---|---|---|---|"]
        for line in _lines(experiment, scores):
            gain = compare(scores, line.name, line.against, column)
            cells = (_ours(scores, line.name, column), _theirs(line.paper, column), _gained(gain, column))
            text.append(f"| {' | '.join((line.name, *cells, line.against or '-', _p(gain)))} |")
        text.append("")
    if experiment.lesions:
        text += _pooled_table(experiment, scores)
    text += ["## The paper's orderings", ""] if experiment.orders else []
    for order, column, gain in _judged(experiment, scores):
        told = f": {_gained(gain, column)}, p {_p(gain)}" if gain else ""
        text.append(f"- {order.column}: {order.better} ahead of {order.worse}: **{verdict(gain)}**{told}")
    text += ["", "## How it was made", "", f"`{facts['command']}`", "", "| | |", "|---|---|"]
    text += [f"| {name} | {value} |" for name, value in facts.items() if isinstance(value, str) and name != "command"]
    return "\n".join(text) + "\n"


_RULES: tuple[Matching, ...] = ("overlap", "peak")


def _counted(lesions: DetectionConfig, rule: Matching) -> tuple[Column, Column, Column]:
    """Lesions found, lesions, and false positives of a patient by one rule."""
    told = replace(lesions, rule=rule).text()
    region = " and ".join(lesions.organs) or "body"
    hits, number, false = (
        Column(label=f"{metric}, {rule}", metric=metric, region=region, preset=detection.PRESET, mask=told)
        for metric in (detection.HITS, detection.LESIONS, detection.FALSE)
    )
    return hits, number, false


def _pooled_table(experiment: Experiment, scores: Scores) -> list[str]:
    """Lesions found of all lesions, and false positives of all scans, with exact 95 % intervals."""
    assert experiment.lesions is not None
    text = ["## Lesions of all patients together", "", f"{experiment.lesions.text()}.", ""]
    text += ["| row | found, overlap | false positives per scan | found, peak | false positives per scan, peak |"]
    text += ["|---|---|---|---|---|"]
    for line in _lines(experiment, scores):
        cells = []
        for rule in _RULES:
            counts = [scores.get(line.name, {}).get(c.label, {}) for c in _counted(experiment.lesions, rule)]
            hits, lesions, false = (round(sum(found.values())) for found in counts)
            scans = len(counts[2])
            found, alarms = clopper_pearson(hits, lesions) if lesions else None, poisson_interval(false, max(scans, 1))
            share = f"{hits}/{lesions} = {hits / lesions:.2f} ({found[0]:.2f} to {found[1]:.2f})" if found else "-"
            rate = f"{false / scans:.2f} ({alarms[0]:.2f} to {alarms[1]:.2f})" if scans else "-"
            cells += [share, rate]
        text.append(f"| {' | '.join((line.name, *cells))} |")
    return [*text, ""]


def _judged(experiment: Experiment, scores: Scores) -> list[tuple[Order, Column, Gain | None]]:
    columns = {column.label: column for column in experiment.columns}
    return [
        (order, columns[order.column], compare(scores, order.better, order.worse, columns[order.column]))
        for order in experiment.orders
    ]


def as_json(experiment: Experiment, scores: Scores, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything behind the table as JSON values: every patient's score, settings, tests and verdicts."""
    lines = []
    settings = {row.name: configs.to_json(row.config) for row in experiment.rows}
    for line in _lines(experiment, scores):
        cells = {}
        for column in experiment.columns:
            gain = compare(scores, line.name, line.against, column)
            values = scores.get(line.name, {}).get(column.label, {})
            cells[column.label] = {
                "patients": {patient: _finite(value) for patient, value in values.items()},
                "paper": line.paper.get(column.label),
                "gain": {key: _finite(value) for key, value in asdict(gain).items()} if gain else None,
            }
        lines.append({"name": line.name, "columns": cells, "config": settings.get(line.name)})
    return {
        "experiment": experiment.name,
        "source": experiment.source,
        "complete": all(row.name in scores for row in experiment.rows),
        "folds": experiment.folds,
        "lows": list(experiment.lows),
        "cohort": asdict(experiment.cohort),
        "columns": [{**asdict(c), "units": c.units, "higher_is_better": c.sign > 0} for c in experiment.columns],
        "rows": lines,
        "orders": [
            {**asdict(order), "verdict": verdict(gain), "p_value": gain.p_value if gain else None}
            for order, _, gain in _judged(experiment, scores)
        ],
        "facts": dict(facts),
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def headline(experiment: Experiment, scores: Scores) -> Table:
    """Return the scores of the whole volume for the terminal: ours, the paper's in brackets, p beside it."""
    table = Table(title=f"{experiment.title}: mean ± sd over patients (paper), p", title_justify="left")
    table.add_column("row")
    columns = [column for column in experiment.columns if column.region == "whole volume"]
    for column in columns:
        table.add_column(f"{column.label} \\[{column.units}]" if column.units else column.label, justify="right")
    for line in _lines(experiment, scores):
        cells = []
        for column in columns:
            gain = compare(scores, line.name, line.against, column)
            paper = f" ({_theirs(line.paper, column)})" if column.label in line.paper else ""
            p_value = f", p {_p(gain)}" if gain and gain.p_value is not None else ""
            cells.append(f"{_ours(scores, line.name, column)}{paper}{p_value}")
        table.add_row(line.name, *cells)
    return table


def _facts() -> dict[str, str]:
    return {"date": datetime.now(UTC).date().isoformat(), "commit": _commit(), **assess.environment()}


def _commit() -> str:
    """The commit of this very file's checkout; ``unknown`` for an installed package, even inside another checkout."""
    git: Callable[..., str] = partial(
        subprocess.check_output, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL
    )
    try:
        git(["git", "ls-files", "--error-unmatch", Path(__file__).name])
        return git(["git", "describe", "--always", "--dirty"]).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
