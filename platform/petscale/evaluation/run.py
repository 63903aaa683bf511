"""``petscale evaluate``: synthesize a run's test cases and score them beside the baselines."""

import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from petscale import config as configs
from petscale import proof
from petscale.config import RunConfig
from petscale.console import bar, console
from petscale.evaluation import ceiling, detection, spectra, task
from petscale.evaluation.baselines import SCORED_HERE, TRAINING, Baseline
from petscale.evaluation.current import OF_WEIGHTS, is_current, pictured
from petscale.evaluation.detection import PRESET, as_json, detect_case, search_case, table
from petscale.evaluation.external import DIGESTS, SEEN, Chosen, check_unchanged, choose_cases, keep_patients, statement
from petscale.evaluation.fitting import anatomy_of, baseline_from_json, fit_baseline, suited
from petscale.evaluation.kept_cases import CaseScores, keep, kept
from petscale.evaluation.scores import SYNTHESIZED, Evaluation, read_evaluation
from petscale.evaluation.scoring import presets_of, score_stored_case
from petscale.folders import CASES, CONFIG, EVALUATION, GUIDE, SEGMENTER, SYNTHESIS
from petscale.inference import Trained, open_run, synthesize_case, tell_notes
from petscale.plausibility import check_scan, tell, unlike
from storage import integrity
from storage.errors import InputError
from storage.joined import open_cohorts
from storage.reader import Case, Cases
from storage.source import LABEL, ImageSource
from trainers.metrics.definitions import Score
from trainers.metrics.detection import DetectionConfig
from trainers.metrics.unet_score import GUIDE as GUIDED
from trainers.metrics.unet_score import UNET, unet_scores
from trainers.organ_segmenter import (
    OrganSegmenter,
    OrganSegmenterConfig,
    guide_of,
    read_segmenter,
    train_segmenter,
)
from trainers.systems import RECIPES, sgsgan
from trainers.time_limit import Pieces

BASELINE = "baseline.json"


def run_facts(run: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Read a run's configuration and its record: command, split, digests.

    Raises:
        InputError: CFG_RUN_FOLDER.
    """
    configs.require_run(run)
    config, facts = configs.read(run / CONFIG), configs.read_record(run / CONFIG)
    if not {"config", "command", "train", "test", "cases"} <= facts.keys():
        raise InputError(
            "CFG_RUN_FOLDER",
            where=CONFIG,
            found="a configuration that no run has written",
            remedy="name the folder of a run of `petscale train`",
        )
    return config, facts


def candidates_of(case: Case, source: str, baseline: Baseline, synthesized: ImageSource) -> dict[str, ImageSource]:
    """Return name -> image of all that is scored beside the full dose: source, baselines, synthesized."""
    return {**baseline.beside(case.image(source), anatomy_of(case)), SYNTHESIZED: synthesized}


def baseline_of(run: Path, cohort: Cases, source: str, folder: Path | None = None) -> Baseline:
    """What needs no network, fitted on the run's training cases once per run (or ``folder``) and image."""
    config, facts = run_facts(run)
    path = (folder or run / EVALUATION) / source / BASELINE
    if path.is_file():
        return _kept(path)
    cases = [cohort.case(name) for name in facts["train"] if name in cohort.cases]
    tests = [cohort.case(name) for name in facts["test"] if name in cohort.cases]
    return _fitted(cases, source, config.feed.target, path, scored=tests)


def _fitted(
    cases: Sequence[Case], source: str, target: str, path: Path, *, of: str = TRAINING, scored: Sequence[Case] = ()
) -> Baseline:
    """Fit what needs no network on some cases, and write it."""
    with bar("baselines", len(cases)) as advance:
        found = fit_baseline(cases, source, target, of=of, scored=scored, advance=advance)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    integrity.write_json(path, found.to_json())
    return found


def _kept(path: Path) -> Baseline:
    """A baseline that was written before.

    Raises:
        InputError: STORE_DAMAGED.
    """
    try:
        return baseline_from_json(integrity.read_json(path))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise integrity.not_ours(path) from None


def external_baseline(
    run: Path, folder: Path, cases: Sequence[Case], source: str, target: str, baselines: Path | None = None
) -> Baseline:
    """What the run, or ``baselines``, has kept of its training cases or, without that, fitted on the scored cases.

    The second favours the baseline, never the network; its rule says so.
    """
    path, kept = folder / source / BASELINE, (baselines or run / EVALUATION) / source / BASELINE
    if kept.is_file():
        found = suited(_kept(kept), cases)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        integrity.write_json(path, found.to_json())
        return found
    return _fitted(cases, source, target, path, of=SCORED_HERE)


def make_segmenter(
    run: Path,
    cohort: Path,
    config: OrganSegmenterConfig,
    folder: Path | None = None,
    *,
    others: Sequence[Path] = (),
) -> OrganSegmenter:
    """Train the U-Net behind the Unet-score on the full-dose images of the run's training cases, or read it back.

    Cases of another cohort are scored by the one that was trained for the run's own.

    Args:
        folder: the segmenter's, shared by runs of the same training cases; default: one in the run's evaluation.
        others: further cohorts of the run.
    """
    _, facts = run_facts(run)
    cases = [*facts["train"], *facts.get("unpaired", ())]
    trained = configs.read(run / CONFIG)
    place = folder or run / EVALUATION / SEGMENTER
    opened = open_cohorts([cohort, *others])
    if choose_cases(run, facts, opened).cohort:
        return read_segmenter(place, config, feed=trained.feed, device=_device_of(trained))
    return fit_segmenter(place, opened, cases, config, trained)


def _device_of(config: RunConfig) -> torch.device:
    return torch.device("cuda" if config.cluster.device == "cuda" and torch.cuda.is_available() else "cpu")


def fit_segmenter(
    place: Path, cohort: Cases, cases: Sequence[str], config: OrganSegmenterConfig, scored: RunConfig
) -> OrganSegmenter:
    """Train an organ segmenter under a bar, or read it back.

    Args:
        place: its folder.
        cases: those of the cohort that it is trained on.
        config: the segmenter.
        scored: the run that it scores; feed and device are its.
    """
    with bar("organ segmenter", 1) as advance:

        def follow(record: dict[str, Any]) -> None:
            if record["event"] == "log":
                advance(0, f"step {record['step']}, loss {record['loss/segmentation']:.3f}")

        device = _device_of(scored)
        made = train_segmenter(place, cohort, cases, config, feed=scored.feed, device=device, report=follow)
        advance(1, "")
    return made


def guide_of_run(run: Path) -> OrganSegmenter:
    """Read the segmentation network that guided a run of SGSGAN, for the Unet-score-SG.

    Raises:
        InputError: CKPT_NONE where the run has none; those of ``proof.read_proven``.
    """
    config, _ = run_facts(run)
    model = config.model
    if not (run / GUIDE).is_file() or not isinstance(model, sgsgan.Config):
        raise InputError(
            "CKPT_NONE",
            where=GUIDE,
            found="no segmentation network: no organ guided this run, it is not finished, or is older than this file",
            remedy="name a run of --recipe sgsgan with --recipe.rois, or leave --unet-score-sg out",
        )
    weights = proof.read_proven(run, GUIDE)
    device = torch.device("cuda" if config.cluster.device == "cuda" and torch.cuda.is_available() else "cpu")
    return guide_of(model, weights.tensors, suv_scale=config.feed.suv_scale, device=device)


def evaluate_run(
    run: Path,
    cohort: Path,
    *,
    others: Sequence[Path] = (),
    segmenter: OrganSegmenter | None = None,
    guide: OrganSegmenter | None = None,
    lesions: DetectionConfig | None = None,
    put_in: task.TaskConfig | None = None,
    sources: Sequence[str] = (),
    presets: Sequence[str] = (),
    baselines: Path | None = None,
    known: Mapping[str, Evaluation] = MappingProxyType({}),
    pieces: Pieces | None = None,
) -> dict[str, Evaluation]:
    """Score a run from every image fed; tables to the terminal, CSV and JSON to the run's folder.

    On a cohort that holds its test cases, these are scored.  On any other one every case is, as an external
    validation with a folder of its own, but for those that the run has seen and those that it cannot start from.

    Args:
        others: further cohorts, read as one with the first: those that the run was trained on, or new ones.
        segmenter: a U-Net trained on the run's training cases, for the Unet-score.
        guide: the network that guided the run (``guide_of_run``), for the Unet-score-SG of what it synthesizes.
        lesions: what is to be detected where, None for nothing.
        put_in: lesions that are put into the truth and looked for by an observer, on simulated cases; None for none.
        sources: the images to start from; () for those that the run was trained on.
        presets: conventions of scoring beside the project's own and the system's.
        baselines: where what needs no network is kept for runs of the same training cases; default: in the run.
        known: image that the run starts from -> scores of the same cases by the same rules and segmenter, from
            another run; those of images that no network made are taken from there.
        pieces: ends the work between two cases where its time is over; the cases that were scored are kept, and the
            next call goes on with the others.

    Raises:
        OutOfTimeError: only with ``pieces``.
        InputError: SET_NO_TEST, SET_NO_LABELS, CFG_CHOICE, CKPT_NONE, STORE_DAMAGED and their kin; for another cohort
            SET_COHORT_NAME, and what is wrong with the first case where no case of it can be scored.
    """
    config, facts = run_facts(run)
    used = presets_of(RECIPES[config.recipe].PRESET, presets)
    trained = open_run(run)
    opened = open_cohorts([cohort, *others])
    chosen = choose_cases(run, facts, opened)
    started = {}
    planned: dict[str, list[task.Planned]] = {}
    for source in sources or config.feed.source:  # refused before anything is synthesized
        started[source] = (_startable if chosen.cohort else _own)(trained, opened, chosen, source)
        if put_in is not None:
            planned[source] = task.plan_all([opened.case(name) for name in started[source].cases], source, put_in)
        if lesions is not None:
            for name in started[source].cases:
                search_case(opened.case(name), lesions)
        if guide is not None:
            for name in started[source].cases:
                guide.label_values(opened.case(name).labels, name)
    if chosen.cohort:
        chosen.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        integrity.write_json(chosen.folder / DIGESTS, {"cases": dict(chosen.digests)})
    results = {}
    pieces = pieces or Pieces(None)
    # What the scores of a case depend on is then its voxels, the weights, the baselines and the presets alone.
    alone = lesions is None and segmenter is None and guide is None and not known
    for source, start in started.items():
        folder = chosen.folder / EVALUATION / source
        if not (folder / BASELINE).is_file():
            pieces.begin()
        if chosen.cohort:
            cases = [opened.case(name) for name in start.cases]
            baseline = external_baseline(run, folder.parent, cases, source, config.feed.target, baselines)
            _announce(opened, chosen, start)
        else:
            baseline = baseline_of(run, opened, source, baselines)
            keep_patients(run, facts, opened, source)
        rows = []
        scans = []
        ceilings: list[ceiling.Row] = []
        curves = []
        images: tuple[str, ...] = ()
        for name in start.cases:
            case = opened.case(name)
            if not chosen.cohort:
                check_unchanged(opened, name, facts)
            made_of = _made_of(case, trained, baseline, used)
            before = kept(folder, name, made_of) if alone else None
            if before is None:
                pieces.begin()
            else:
                console.print(f"evaluate: {name} {source} was scored before", markup=False, soft_wrap=True)
            into, differences = chosen.folder / SYNTHESIS, start.differences.get(name, ())
            made = synthesize_case(trained, run, case, source, into=into, differences=differences)
            candidates = candidates_of(case, source, baseline, made)
            images = tuple(candidates)
            if lesions is not None:
                scans.append(detect_case(case, case.image(config.feed.target), candidates, lesions))
                rows += detection.scores(scans[-1], lesions)
            if before is None:
                with bar("evaluate", 1) as advance:
                    advance(0, f"{name} {source}")
                    before = _measured(
                        case, source, config.feed.target, candidates, used, segmenter, guide, known.get(source)
                    )
                    advance(1, f"{name} {source}")
                if alone:
                    keep(folder, name, images, before, made_of)
            rows += before.rows
            ceilings += before.ceilings
            curves.append(before.spectra or {})
        about: dict[str, Any] = {"source": source, "baseline": baseline.rule, OF_WEIGHTS: [trained.weights]}
        if chosen.cohort:
            about["external"] = _external_facts(opened, chosen, start)
        if lesions is not None:
            about["detection"] = as_json(scans, lesions)
        about["spectra"] = spectra.as_json(curves)
        if ceilings:
            about["ceiling"] = ceiling.as_json(ceilings, opened.case(start.cases[0]), source)
        scored = Evaluation(tuple(rows), images, start.cases, about)
        if put_in is not None:
            seen = [task.look(one, source, trained, baseline, put_in) for one in planned[source]]
            about["task"] = task.summarise(seen, planned[source], put_in, scored.best_baseline)
        results[source] = scored
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        results[source].write(folder)
        console.print(results[source].table())
        unet, guided = (results[source].unet_table(metric) for metric in (UNET, GUIDED))
        for found in (unet, guided, ceiling.table(results[source])):
            if found is not None:
                console.print(found)
        if lesions is not None:
            console.print(table(about["detection"]))
        if put_in is not None:
            console.print(task.table(about["task"]))
    for source in started:  # not before all are written: the next call begins with the first again
        shutil.rmtree(chosen.folder / EVALUATION / source / CASES, ignore_errors=True)
    return results


def _measured(
    case: Case,
    source: str,
    target: str,
    candidates: Mapping[str, ImageSource],
    presets: Sequence[str],
    segmenter: OrganSegmenter | None,
    guide: OrganSegmenter | None,
    known: Evaluation | None,
) -> CaseScores:
    """Measure all images of a case, but for those that another run's evaluation holds."""
    ceilings = ceiling.ceiling_rows(case, source, target, *_unscored(known, case.name, candidates))
    held = _known(known, case.name, tuple(candidates))
    there = {row.image for row in held}
    others = {name: image for name, image in candidates.items() if name not in there}
    rows = held + score_stored_case(case, target, others, presets=presets, segmenter=segmenter)
    told, spectra_of = spectra.measure_stored(case, target, others)
    rows += told
    if guide is not None:
        made = {SYNTHESIZED: candidates[SYNTHESIZED]}
        rows += unet_scores(guide, case.name, made, case.image("labels"), case.labels)
    return CaseScores(rows=rows, ceilings=ceilings, spectra=spectra_of)


def _made_of(case: Case, trained: Trained, baseline: Baseline, presets: Sequence[str]) -> dict[str, str]:
    """All that the scores of a case depend on where nothing but its images is measured."""
    fitted = hashlib.sha256(integrity.json_bytes(baseline.to_json())).hexdigest()
    voxels = str(integrity.manifest(case.folder)["root"])
    return {"case": voxels, "weights": trained.weights, "baseline": fitted, "presets": " ".join(presets)}


@dataclass(frozen=True)
class _Started:
    """The cases that are scored from one image.

    Args:
        cases: their names.
        left_out: case -> why a network cannot start from it.
        differences: case -> in what its scan differs from those trained on.
    """

    cases: tuple[str, ...]
    left_out: Mapping[str, InputError] = field(default_factory=dict)
    differences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _own(trained: Trained, cohort: Cases, chosen: Chosen, source: str) -> _Started:
    """The run's test cases, and in what they are unlike those trained on."""
    found = {name: unlike(trained.on, cohort.case(name), source) for name in chosen.cases}
    for name, told in found.items():
        tell(f"case {name}", told)
    return _Started(chosen.cases, differences=found)


def _startable(trained: Trained, cohort: Cases, chosen: Chosen, source: str) -> _Started:
    """Tell which unseen cases of another cohort can be scored from one of their images.

    Raises:
        InputError: SET_NO_IMAGE where no case has the images; else the first refusal where every case has one.
    """
    left_out, differences = {}, {}
    target = trained.config.feed.target
    opened = [cohort.case(name) for name in chosen.cases]
    for image, remedy in (
        (source, "choose one of these by --source"),
        (target, "ingest it: scores need the full dose"),
    ):
        if not any(image in case.images for case in opened):
            found = f"no case has an image '{image}'; there are {_images(opened)}"
            raise InputError("SET_NO_IMAGE", where=chosen.cohort, found=found, remedy=remedy)
    for case in opened:
        try:
            case.image(target)
            differences[case.name] = check_scan(trained.on, case, source)
        except InputError as error:
            left_out[case.name] = error
    if not differences:
        raise next(iter(left_out.values()))
    return _Started(tuple(differences), left_out, {name: told for name, told in differences.items() if told})


def _images(cases: Sequence[Case]) -> str:
    """The PETs and CTs of some cases, with their doses."""
    found: dict[str, None] = {}
    for case in cases:
        for image in map(case.image, case.images):
            if image.units != LABEL:
                drf = image.dose.drf if image.dose else math.nan
                found[image.name if math.isnan(drf) else f"{image.name} (DRF {drf:g})"] = None
    return ", ".join(found)


def _announce(cohort: Cases, chosen: Chosen, start: _Started) -> None:
    """Say on the terminal that this is an external validation, whom it leaves out, and what differs."""
    sentence = statement(cohort, chosen, start.cases)
    console.print(f"{chosen.cohort}: {sentence}", markup=False, soft_wrap=True)
    for case, why in chosen.left_out.items():
        console.print(f"left out: {SEEN} case {case}: {why}", markup=False, soft_wrap=True)
    for error in start.left_out.values():
        console.print(f"left out: {error}", markup=False, soft_wrap=True)
    for told, cases in _by_difference(start).items():
        tell(f"{len(cases)} of {len(start.cases)} cases", [told])


def _by_difference(start: _Started) -> dict[str, list[str]]:
    """What differs -> the cases of which it is true."""
    found: dict[str, list[str]] = {}
    for case, differences in start.differences.items():
        for told in differences:
            found.setdefault(told, []).append(case)
    return found


def _external_facts(cohort: Cases, chosen: Chosen, start: _Started) -> dict[str, object]:
    """What scores and report keep of an external validation."""
    return {
        "cohort": chosen.cohort,
        "statement": statement(cohort, chosen, start.cases),
        "patients_compared": chosen.compared,
        "left_out": {**chosen.left_out, **{case: f"{e.code}: {e.found}" for case, e in start.left_out.items()}},
        "differs_from_training": _by_difference(start),
        "digest": _digest_of(chosen, start.cases),
    }


def _digest_of(chosen: Chosen, cases: Sequence[str]) -> str:
    return integrity.root_digest({name: {"root": chosen.digests[name]} for name in cases}, {})


def _known(evaluation: Evaluation | None, case: str, images: Sequence[str]) -> list[Score]:
    """Scores of a case's images that no network made."""
    untrained = images[:-1]
    rows = evaluation.rows if evaluation else ()
    return [r for r in rows if r.case == case and r.image in untrained and r.definition.preset != PRESET]


def _unscored(
    evaluation: Evaluation | None, case: str, candidates: Mapping[str, ImageSource]
) -> tuple[dict[str, ImageSource], list[ceiling.Row]]:
    """Candidates whose score against the truth is not known from another run, and the rows that are."""
    about: Any = evaluation.metadata.get("ceiling") if evaluation else None
    rows = [row for row in about["rows"] if row["image"] != SYNTHESIZED] if about else []
    there = {row["image"] for row in rows if row["case"] == case}
    return {name: image for name, image in candidates.items() if name not in there}, rows


def read_evaluations(
    run: Path, cohort: Path, *, others: Sequence[Path] = (), pieces: Pieces | None = None
) -> dict[str, Evaluation]:
    """Read what ``evaluate_run`` wrote of these cohorts for the run's present weights, or evaluate it now.

    Raises:
        OutOfTimeError: as ``evaluate_run``, with ``pieces``.
        InputError: those of ``proof.read_proven`` and of ``evaluate_run``.
    """
    config, facts = run_facts(run)
    opened = open_cohorts([cohort, *others])
    chosen = choose_cases(run, facts, opened)
    if chosen.cohort:
        return read_external(run, cohort, others=others) or evaluate_run(run, cohort, others=others, pieces=pieces)
    found = {source: _fresh(run, run, source, opened) for source in config.feed.source}
    whole = {source: evaluation for source, evaluation in found.items() if evaluation is not None}
    if len(whole) < len(found):
        return evaluate_run(run, cohort, others=others, pieces=pieces)
    tell_notes(run.name, proof.read_proven(run).notes)
    return whole


def read_external(run: Path, cohort: Path, *, others: Sequence[Path] = ()) -> dict[str, Evaluation]:
    """Read the scores of another cohort as it is now, from whatever images it was scored; empty where there are none.

    Raises:
        InputError: those of ``external.choose_cases`` and of ``proof.read_proven``.
    """
    opened = open_cohorts([cohort, *others])
    chosen = choose_cases(run, run_facts(run)[1], opened)
    found = {}
    for path in sorted((chosen.folder / EVALUATION).glob("*/scores.json")):
        evaluation = _fresh(run, chosen.folder, path.parent.name, opened)
        about: Any = evaluation.metadata["external"] if evaluation else {}
        if (
            evaluation is not None
            and {*evaluation.cases, *about["left_out"]} == set(chosen.digests)
            and about["patients_compared"] == chosen.compared
            and not set(evaluation.cases) & set(chosen.left_out)
            and about["digest"] == _digest_of(chosen, evaluation.cases)
        ):
            found[path.parent.name] = evaluation
    if found:
        tell_notes(run.name, proof.read_proven(run).notes)
    return found


def _fresh(run: Path, home: Path, source: str, cohort: Cases) -> Evaluation | None:
    """The scores in ``home`` if they are of the run's present weights and the images are there, else None."""
    if not (home / EVALUATION / source / "scores.json").is_file():
        return None
    evaluation = read_evaluation(home / EVALUATION / source)
    if not set(evaluation.cases) <= set(cohort.cases) or not pictured(evaluation, home / SYNTHESIS / source, cohort):
        return None
    return evaluation if is_current(evaluation, {run: home / SYNTHESIS / source}) else None
