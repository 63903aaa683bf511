"""``petscale evaluate``: synthesize a run's test cases and score them beside the baselines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from petscale import config as configs
from petscale.config import RunConfig
from petscale.console import bar, console
from petscale.evaluation import detection
from petscale.evaluation.baselines import Baseline, baseline_from_json, best_gaussian, mean_suv_by_hu
from petscale.evaluation.detection import PRESET, as_json, detect_case, search_case, table
from petscale.evaluation.scores import SYNTHESIZED, Evaluation, read_evaluation
from petscale.evaluation.scoring import score_stored_case
from petscale.folders import CONFIG, EVALUATION, SEGMENTER, WEIGHTS
from petscale.inference import open_run, synthesize_case
from storage import integrity
from storage.errors import InputError
from storage.reader import Case, open_cohort
from storage.source import HU, ImageSource
from trainers.metrics.definitions import Score
from trainers.metrics.detection import DetectionConfig
from trainers.organ_segmenter import OrganSegmenter, OrganSegmenterConfig, train_segmenter
from trainers.systems import RECIPES


def run_facts(run: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Read a run's configuration and its record: command, split, digests.

    Raises:
        InputError: CFG_RUN_FOLDER.
    """
    config = configs.read(run / CONFIG)
    facts: dict[str, Any] = json.loads((run / CONFIG).read_bytes())
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
    return {**baseline.beside(case.image(source)), SYNTHESIZED: synthesized}


def baseline_of(run: Path, cohort: Path, source: str, folder: Path | None = None) -> Baseline:
    """What needs no network, fitted on the run's training cases once per run (or ``folder``) and image."""
    config, facts = run_facts(run)
    path = (folder or run / EVALUATION) / source / "baseline.json"
    if path.is_file():
        return baseline_from_json(json.loads(path.read_bytes()))
    opened = open_cohort(cohort)
    cases = [opened.case(name) for name in facts["train"] if name in opened.cases]
    with bar("baseline", len(cases)) as advance:

        def images(*names: str) -> Any:
            for number, case in enumerate(cases):
                advance(number, case.name)
                yield tuple(case.image(name) for name in names)
            advance(len(cases), "")

        found: Baseline
        if cases and cases[0].image(source).units == HU:
            found = mean_suv_by_hu(images(source, config.feed.target))
        else:
            found = best_gaussian(images(source, config.feed.target, "body"))
    path.parent.mkdir(parents=True, exist_ok=True)
    integrity.write_json(path, found.to_json())
    return found


def make_segmenter(run: Path, cohort: Path, config: OrganSegmenterConfig, folder: Path | None = None) -> OrganSegmenter:
    """Train the U-Net behind the Unet-score on the full-dose images of the run's training cases, or read it back.

    Args:
        folder: the segmenter's, shared by runs of the same training cases; default: one in the run's evaluation.
    """
    _, facts = run_facts(run)
    cases = [*facts["train"], *facts.get("unpaired", ())]
    trained = configs.read(run / CONFIG)
    device = torch.device("cuda" if trained.cluster.device == "cuda" and torch.cuda.is_available() else "cpu")
    with bar("organ segmenter", 1) as advance:

        def follow(record: dict[str, Any]) -> None:
            if record["event"] == "log":
                advance(0, f"step {record['step']}, loss {record['loss/segmentation']:.3f}")

        place = folder or run / EVALUATION / SEGMENTER
        made = train_segmenter(
            place, open_cohort(cohort), cases, config, feed=trained.feed, device=device, report=follow
        )
        advance(1, "")
    return made


def evaluate_run(
    run: Path,
    cohort: Path,
    *,
    segmenter: OrganSegmenter | None = None,
    lesions: DetectionConfig | None = None,
    sources: Sequence[str] = (),
    baselines: Path | None = None,
    known: Mapping[str, Evaluation] = MappingProxyType({}),
) -> dict[str, Evaluation]:
    """Score every test case from every image fed; tables to the terminal, CSV and JSON to the run's folder.

    Args:
        segmenter: a U-Net trained on the run's training cases, for the Unet-score.
        lesions: what is to be detected where, None for nothing.
        sources: some of the images that the run starts from; () for all.
        baselines: where what needs no network is kept for runs of the same training cases; default: in the run.
        known: image that the run starts from -> scores of the same cases by the same rules and segmenter, from
            another run; those of images that no network made are taken from there.

    Raises:
        InputError: SET_NO_TEST, SET_NO_LABELS, CKPT_NONE, STORE_DAMAGED and their kin.
    """
    config, facts = run_facts(run)
    trained = open_run(run)
    opened = open_cohort(cohort)
    tests = [name for name in facts["test"] if name in opened.cases]
    if not tests:
        raise InputError(
            "SET_NO_TEST",
            where=cohort.name,
            found="none of the run's test cases is in this cohort",
            remedy="evaluate on the cohort of the run, or train with --set split.test_fraction=0.25",
        )
    if lesions is not None:
        for name in tests:  # refused before anything is synthesized
            search_case(opened.case(name), lesions)
    results = {}
    for source in sources or config.feed.source:
        baseline = baseline_of(run, cohort, source, baselines)
        rows = []
        scans = []
        images: tuple[str, ...] = ()
        for name in tests:
            case = opened.case(name)
            _check_unchanged(case, facts["cases"])
            candidates = candidates_of(case, source, baseline, synthesize_case(trained, run, case, source))
            images = tuple(candidates)
            if lesions is not None:
                scans.append(detect_case(case, case.image(config.feed.target), candidates, lesions))
                rows += detection.scores(scans[-1], lesions)
            held = _known(known.get(source), name, images)
            for image in {row.image for row in held}:
                del candidates[image]
            with bar("evaluate", 1) as advance:
                advance(0, f"{name} {source}")
                rows += held + score_stored_case(
                    case, config.feed.target, candidates, preset=RECIPES[config.recipe].PRESET, segmenter=segmenter
                )
                advance(1, f"{name} {source}")
        about: dict[str, Any] = {"source": source, "baseline": baseline.rule}
        if lesions is not None:
            about["detection"] = as_json(scans, lesions)
        results[source] = Evaluation(tuple(rows), images, tuple(tests), about)
        (run / EVALUATION / source).mkdir(parents=True, exist_ok=True)
        results[source].write(run / EVALUATION / source)
        console.print(results[source].table())
        if (found := results[source].unet_table()) is not None:
            console.print(found)
        if lesions is not None:
            console.print(table(about["detection"]))
    return results


def _known(evaluation: Evaluation | None, case: str, images: Sequence[str]) -> list[Score]:
    """Scores of a case's images that no network made."""
    untrained = images[:-1]
    rows = evaluation.rows if evaluation else ()
    return [r for r in rows if r.case == case and r.image in untrained and r.definition.preset != PRESET]


def _check_unchanged(case: Case, digests: Mapping[str, str]) -> None:
    if integrity.manifest(case.folder)["root"] != digests[case.name]:
        raise InputError(
            "SET_CASE_CHANGED",
            where=f"case {case.name}",
            found="its voxels are not those that the run's split was made with",
            remedy="evaluate on the run's own cohort, or train anew on this one",
        )


def read_evaluations(run: Path, cohort: Path) -> dict[str, Evaluation]:
    """Read what ``evaluate_run`` wrote for the run's present weights, or evaluate it now."""
    config, _ = run_facts(run)
    folders = {source: run / EVALUATION / source for source in config.feed.source}
    weights = (run / WEIGHTS).stat().st_mtime if (run / WEIGHTS).exists() else float("inf")
    scores = [folder / "scores.json" for folder in folders.values()]
    if all(path.is_file() and path.stat().st_mtime > weights for path in scores):
        return {source: read_evaluation(folder) for source, folder in folders.items()}
    return evaluate_run(run, cohort)
