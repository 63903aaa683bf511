"""Run an experiment: train and score every row on every fold, then write one table beside the paper's.

Below one folder: ``<cohort>-<digest>/cohort``, ``<cohort>-<digest>/runs/<digest>-<row>/fold-<k>``, and
``<experiment>/table.md`` and ``table.json``; of a user's cohort, these in its ``<cohort>-<digest>``.  A cohort that is
only tested on is ``<cohort>-<digest>`` itself.  A run's digest is that of its configuration and of its cohort's voxels:
tables share the runs they have in common, and a changed setting is another run, never an outdated number.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from petscale import config as configs
from petscale.cluster.shared_storage import require_path
from petscale.config import RunConfig
from petscale.console import console
from petscale.environment import commit, environment
from petscale.evaluation import run as evaluating
from petscale.evaluation.baselines import INPUT
from petscale.evaluation.current import OF_WEIGHTS, is_current, weights_of
from petscale.evaluation.scores import (
    REFERENCE,
    SYNTHESIZED,
    Evaluation,
    read_evaluation,
    region_group,
)
from petscale.evaluation.scoring import presets_of, score_stored_case
from petscale.experiments.cohorts import make_cohort, make_resized
from petscale.experiments.design import (
    CONTENT,
    GAUSSIAN,
    Column,
    Experiment,
    PhantomCohort,
    Row,
    Scores,
    SegmenterRow,
    UserCohort,
)
from petscale.experiments.digests import digest_of
from petscale.experiments.segmenters import score_segmenter, segmenter_folder
from petscale.experiments.table import as_json, headline, markdown
from petscale.experiments.user_cohort import on_cohort, patients_of
from petscale.folders import CONFIG, EVALUATION, GUIDE, SYNTHESIS, WEIGHTS
from petscale.inference import open_run, synthesize_case
from petscale.training import driver
from petscale.training.planning import plan_run
from storage import geometry, integrity
from storage.phantom import facts_of
from storage.reader import Cohort, open_cohort
from storage.source import ImageSource
from trainers.metrics.presets import PRESETS
from trainers.metrics.unet_score import GUIDE as GUIDED
from trainers.systems import RECIPES


def run_experiment(experiment: Experiment, folder: Path, *, command: str, settings: Sequence[str] = ()) -> Path:
    """Train and score what is not there yet and write the table after every finished row.

    Args:
        folder: where cohorts, runs and tables of all experiments of one size go.
        command: what the user typed, for the record.
        settings: ``section.field=value`` for every run, as ``petscale train --set`` takes them.

    Returns:
        The path of ``table.md``.

    Raises:
        InputError: as ``driver.train`` and ``evaluating.evaluate_run`` do; run the same command again to continue.
    """
    require_path(folder)
    assert isinstance(experiment.cohort, PhantomCohort), "a user's cohort is there already"
    home = folder / _named(experiment.cohort)
    cohort = make_cohort(experiment.cohort, home / "cohort")
    external = None
    if isinstance(experiment.external, PhantomCohort):  # runs keep its scores under the name of its folder
        external = make_cohort(experiment.external, folder / _named(experiment.external))
    return _run_rows(experiment, cohort, home, folder / experiment.name, command, settings, external)


def _named(cohort: PhantomCohort) -> str:
    recorded = asdict(cohort) | {"body": facts_of(cohort.body)}
    return f"{cohort.name}-{digest_of(recorded)}"


def run_on_cohort(
    experiment: Experiment,
    cohort: Path,
    folder: Path,
    *,
    command: str,
    settings: Sequence[str] = (),
    sources: Sequence[str] = (),
    external: Path | None = None,
) -> Path:
    """Repeat a table on a cohort of the user's, with the table's rows, folds by patient and paired tests.

    Args:
        cohort: its patients take the place of the phantoms.
        folder: as for ``run_experiment``; this cohort's runs and tables stand in a sub-folder of its own.
        command: what the user typed, for the record.
        settings: ``section.field=value`` for every run.
        sources: images that take the place of the table's low doses, one per dose; () for images of the same doses.
        external: a second cohort, of other patients, that takes the place of a table's external phantoms.

    Returns:
        The path of ``table.md``.

    Raises:
        InputError: SET_TABLE_NEEDS, CFG_NO_EFFECT for an external cohort that the table does not ask for, and what
            ``planning.plan_run`` refuses of any row, before anything is trained.
    """
    require_path(folder)
    asked = on_cohort(experiment, cohort, sources, external)
    assert isinstance(asked.cohort, UserCohort), "on_cohort has just put it there"
    home = folder / f"{asked.cohort.name}-{asked.cohort.digest[:12]}"
    for row in asked.rows:
        if not row.resized:
            config = configs.override(row.config, settings)
            split = replace(config.split, folds=asked.folds, fold=0)  # no fold leaves fewer patients to train on
            run = run_folder(home / "runs", row.name, config, asked.folds, cohort) / "fold-0"
            plan_run(cohort, run, replace(config, split=split))
    place = home / asked.name
    if isinstance(asked.external, UserCohort):
        place = home / f"{asked.name}-on-{asked.external.name}-{asked.external.digest[:12]}"
    return _run_rows(asked, cohort, home, place, command, settings, external)


def _run_rows(
    experiment: Experiment,
    cohort: Path,
    home: Path,
    place: Path,
    command: str,
    settings: Sequence[str],
    external: Path | None,
) -> Path:
    """Train and score every row on a cohort that is there, and write the table into ``place``."""
    if experiment.seeds > 1:
        place = place.with_name(f"{place.name}-{experiment.seeds}-seeds")
    folder = home.parent
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    patients = patients_of(open_cohort(external or cohort))
    scores: Scores = {}
    networks: dict[str, dict[str, Scores]] = {}
    runs: dict[str, list[str]] = {}
    known: dict[int, dict[str, Evaluation]] = {}  # a fold's input and Gaussian are scored once
    for number, row in enumerate(experiment.trained, 1):
        console.print(f"{experiment.name}: row {number} of {len(experiment.trained)}, {row.name}", markup=False)
        first = configs.override(row.config if isinstance(row, Row) else row.like, settings)
        made = networks.setdefault(row.name, {})
        for seed, fold in product(range(experiment.seeds), range(experiment.folds)):
            config = replace(first, loop=replace(first.loop, seed=first.loop.seed + seed))
            own = made.setdefault(f"fold {fold}, seed {config.loop.seed}", {})
            if isinstance(row, SegmenterRow):
                found = score_segmenter(row, config, experiment.folds, fold, cohort, home)
                runs.setdefault(row.name, []).append(f"{home.name}/judges/{found.metadata['segmenter']}")
                _collect(own, experiment, row, {experiment.sources[0]: found}, patients)
                continue
            before = known.get(fold, {})
            run, evaluations = _run_fold(experiment, row, config, fold, cohort, home, command, before, external)
            if not row.resized:
                known[fold] = evaluations
            runs.setdefault(row.name, []).append(str(run.relative_to(folder)))
            _collect(own, experiment, row, evaluations, patients)
        scores |= averaged([*made.values()])
        facts = {"command": command, "runs": runs, **_facts()}
        integrity.write_bytes(place / "table.md", markdown(experiment, scores, facts, networks).encode())
        integrity.write_json(place / "table.json", as_json(experiment, scores, facts, networks))
    console.print(headline(experiment, scores))
    return place / "table.md"


def _run_fold(
    experiment: Experiment,
    row: Row,
    config: RunConfig,
    fold: int,
    native: Path,
    home: Path,
    command: str,
    known: Mapping[str, Evaluation],
    external: Path | None,
) -> tuple[Path, dict[str, Evaluation]]:
    """Train one row on one fold unless its weights are there, and score it unless its scores are."""
    cohort = make_resized(native, home / f"resized-{row.resized}") if row.resized else native
    run = run_folder(home / "runs", row.name, config, experiment.folds, cohort) / f"fold-{fold}"
    if not (run / WEIGHTS).is_file():
        split = replace(config.split, folds=experiment.folds, fold=fold)
        driver.train(cohort, run, replace(config, split=split), command=command)
    if row.resized:
        return run, _evaluate_resized(run, open_cohort(cohort), open_cohort(native))
    if external is not None:
        return run, _evaluate_external(run, native, external, experiment, home, known)
    return run, _evaluate(run, native, experiment, home, known)


def run_folder(runs: Path, row: str, config: RunConfig, folds: int, cohort: Path) -> Path:
    """Folder of a row's folds, named by what decides its results; a row of another table may have made it."""
    opened = open_cohort(cohort)
    voxels = {name: integrity.manifest(opened.case(name).folder)["root"] for name in opened.cases}
    split = replace(config.split, folds=folds, fold=0)
    digest = digest_of({"run": replace(config, split=split).identity(), "voxels": voxels})
    there = sorted(runs.glob(f"{digest}-*"))
    return there[0] if there else runs / f"{digest}-{re.sub('[^a-z0-9]+', '-', row.lower()).strip('-')}"


def _evaluate(
    run: Path, cohort: Path, experiment: Experiment, home: Path, known: Mapping[str, Evaluation]
) -> dict[str, Evaluation]:
    """Read a run's scores, or make them; the same baselines and organ segmenter serve every row of a fold."""
    unet_score = experiment.unet_score
    found = {source: _scored(run, source, source) for source in experiment.sources}
    whole = {
        source: there
        for source, there in found.items()
        if there is not None and _has_all_scores(there, experiment, run)
    }
    if len(whole) == len(found):
        return whole
    config, facts = configs.read(run / CONFIG), configs.read_record(run / CONFIG)
    seen = {name: facts["cases"][name] for name in (*facts["train"], *facts["unpaired"])}
    segmenter = None
    if unet_score is not None:
        place = segmenter_folder(home, unet_score, config.feed, seen)
        segmenter = evaluating.make_segmenter(run, cohort, unet_score, place)
    return evaluating.evaluate_run(
        run,
        cohort,
        segmenter=segmenter,
        guide=evaluating.guide_of_run(run) if _is_guided(run, experiment) else None,
        lesions=experiment.lesions,
        sources=experiment.sources,
        baselines=_baselines_of(run, home),
        known=known,
        presets=presets_in(experiment),
    )


def _evaluate_external(
    run: Path, cohort: Path, external: Path, experiment: Experiment, home: Path, known: Mapping[str, Evaluation]
) -> dict[str, Evaluation]:
    """Read a run's scores on the external cohort, or make them, beside baselines of the run's training patients."""
    there = evaluating.read_external(run, external)
    if all(source in there and _shows_columns(there[source], experiment) for source in experiment.sources):
        return there
    baselines = _baselines_of(run, home)
    for source in experiment.sources:
        evaluating.baseline_of(run, open_cohort(cohort), source, baselines)
    return evaluating.evaluate_run(
        run,
        external,
        sources=experiment.sources,
        baselines=baselines,
        known=known,
        presets=presets_in(experiment),
    )


def _shows_columns(evaluation: Evaluation, experiment: Experiment) -> bool:
    columns = [column for column in experiment.collected if column.metric != CONTENT]
    return all(_values(evaluation, evaluation.synthesized, column) for column in columns)


def _baselines_of(run: Path, home: Path) -> Path:
    """Where what needs no network is kept for the runs of one fold's training patients."""
    facts = configs.read_record(run / CONFIG)
    return home / "baselines" / digest_of({name: facts["cases"][name] for name in facts["train"]})


def presets_in(experiment: Experiment) -> list[str]:
    """Conventions of scoring that the columns ask for, whatever a row's system has of its own."""
    return sorted({column.preset for column in experiment.columns if column.preset in PRESETS})


def _scored(run: Path, name: str, source: str) -> Evaluation | None:
    """The scores in one folder of a run's evaluation, None where there are none of its present weights."""
    folder = run / EVALUATION / name
    if not (folder / "scores.json").is_file():
        return None
    evaluation = read_evaluation(folder)
    return evaluation if is_current(evaluation, {run: run / SYNTHESIS / source}) else None


def _has_all_scores(evaluation: Evaluation, wanted: Experiment, run: Path) -> bool:
    segmenter, lesions = wanted.unet_score, wanted.lesions
    has_organs = segmenter is None or any(row.definition == segmenter.definition for row in evaluation.rows)
    has_guide = not _is_guided(run, wanted) or any(row.definition.metric == GUIDED for row in evaluation.rows)
    has_lesions = lesions is None or any(row.definition.mask == lesions.key for row in evaluation.rows)
    return has_organs and has_guide and has_lesions


def _is_guided(run: Path, experiment: Experiment) -> bool:
    """Whether a table shows the Unet-score-SG and a run has the network for it; runs of before have none."""
    return (run / GUIDE).is_file() and any(column.metric == GUIDED for column in experiment.columns)


def _evaluate_resized(run: Path, resized: Cohort, native: Cohort) -> dict[str, Evaluation]:
    """Put a run's 64^3 results back on the native grid and score them there as a native run's are.

    Beside them stand the images that merely went down and up: the low-dose input, from whose noise resizing itself
    takes away, and the full dose, whose loss of resolution no network at 64^3 can make good.
    """
    facts = json.loads((run / CONFIG).read_bytes())
    config = configs.read(run / CONFIG)
    trained = None
    results = {}
    for source in config.feed.source:
        if (there := _scored(run, f"{source}-native", source)) is not None:
            results[source] = there
            continue
        trained = trained or open_run(run)
        rows = []
        for name in facts["test"]:
            case, small = native.case(name), resized.case(name)
            back = partial(geometry.Resampled, grid=case.image(config.feed.target).grid, outside=0.0)
            candidates: dict[str, ImageSource] = {
                INPUT: case.image(source),
                f"{INPUT}, resized and back": back(small.image(source)),
                f"{REFERENCE}, resized and back": back(small.image(config.feed.target)),
                SYNTHESIZED: back(synthesize_case(trained, run, small, source)),
            }
            presets = presets_of(RECIPES[config.recipe].PRESET)
            rows += score_stored_case(case, config.feed.target, candidates, presets=presets)
        how = "by area to the network's volume and back by linear interpolation"
        about = {"source": source, "resized": how, OF_WEIGHTS: weights_of([run])}
        results[source] = Evaluation(tuple(rows), tuple(candidates), tuple(facts["test"]), about)
        folder = run / EVALUATION / f"{source}-native"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        results[source].write(folder)
    return results


def _collect(
    scores: Scores,
    experiment: Experiment,
    row: Row | SegmenterRow,
    evaluations: Mapping[str, Evaluation],
    patients: Mapping[str, str],
) -> None:
    """Add one fold's patients, the cases of each averaged.

    Baselines are the same in every row of a fold and are taken once.
    """
    first = evaluations[experiment.sources[0]]
    gaussians = [image for image in first.images if image.startswith("Gaussian ")]  # whatever their widths
    for place, image in enumerate((*first.images, REFERENCE)):  # the full dose itself has some scores too
        name = row.name if image == first.synthesized else GAUSSIAN if image in gaussians else image
        for column in experiment.collected:
            # A patient's realisations are averaged before patients are compared: they are no independent patients.
            chosen = [evaluations[column.source]] if column.source else [evaluations[s] for s in experiment.sources]
            drawn = [_values(e, (*e.images, REFERENCE)[place], column) for e in chosen]
            found: dict[str, list[float]] = {}
            for case in drawn[0]:
                value = float(np.mean([values[case] for values in drawn if case in values]))
                found.setdefault(patients[case], []).append(value)
            for patient, values in found.items():
                scores.setdefault(name, {}).setdefault(column.label, {})[patient] = float(np.mean(values))


def averaged(of_networks: Sequence[Scores]) -> Scores:
    """Average every patient's scores over several networks, before patients are compared.

    Args:
        of_networks: the scores by each.

    Example:
        >>> averaged([{"row": {"PSNR": {"p": 30.0}}}, {"row": {"PSNR": {"p": 32.0}}}])
        {'row': {'PSNR': {'p': 31.0}}}
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for scores in of_networks:
        for name, columns in scores.items():
            for label, patients in columns.items():
                for patient, value in patients.items():
                    found.setdefault(name, {}).setdefault(label, {}).setdefault(patient, []).append(value)
    return {
        name: {
            label: {patient: float(np.mean(values)) for patient, values in patients.items()}
            for label, patients in columns.items()
        }
        for name, columns in found.items()
    }


def _values(evaluation: Evaluation, image: str, column: Column) -> dict[str, float]:
    for score in evaluation.rows:
        rule = score.definition
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


def _facts() -> dict[str, str]:
    return {"date": datetime.now(UTC).date().isoformat(), "commit": commit() or "unknown", **environment()}
