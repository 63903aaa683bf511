"""A finished run against its test cases: synthesize, score beside what needs no network, write tables and report."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch

from petscale import baselines as plain
from petscale import config as configs
from petscale import detection
from petscale.baselines import Baseline
from petscale.config import RunConfig
from petscale.evaluate import SYNTHESIZED, Evaluation, read_evaluation, score_case
from petscale.launch import CONFIG, WEIGHTS
from petscale.progress import bar, console, read_metrics
from petscale.report import CaseImages, ReportData, write_report
from petscale.synthesize import SYNTHESIS, open_run, synthesize_case
from storage import integrity
from storage.errors import InputError
from storage.reader import Case, open_cohort
from storage.source import HU, ImageSource
from trainers.metrics.detection import DetectionConfig
from trainers.metrics.image import Score
from trainers.metrics.unet_score import Judge, UnetScoreConfig, judge
from trainers.systems import RECIPES

EVALUATION, REPORT = "evaluation", "report.html"


def _facts(run: Path) -> tuple[RunConfig, dict[str, Any]]:
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


def _candidates(case: Case, low: str, baseline: Baseline, synthesized: ImageSource) -> dict[str, ImageSource]:
    return {**baseline.beside(case.image(low)), SYNTHESIZED: synthesized}


def _baseline(run: Path, cohort: Path, low: str, folder: Path | None = None) -> Baseline:
    """What needs no network, fitted on the run's training cases once per run (or ``folder``) and image."""
    config, facts = _facts(run)
    path = (folder or run / EVALUATION) / low / "baseline.json"
    if path.is_file():
        return plain.from_json(json.loads(path.read_bytes()))
    opened = open_cohort(cohort)
    cases = [opened.case(name) for name in facts["train"] if name in opened.cases]
    with bar("baseline", len(cases)) as advance:

        def images(*names: str) -> Any:
            for number, case in enumerate(cases):
                advance(number, case.name)
                yield tuple(case.image(name) for name in names)
            advance(len(cases), "")

        found: Baseline
        if cases and cases[0].image(low).units == HU:
            found = plain.mean_suv_by_hu(images(low, config.feed.full))
        else:
            found = plain.best_gaussian(images(low, config.feed.full, "body"))
    path.parent.mkdir(parents=True, exist_ok=True)
    integrity.write_json(path, found.to_json())
    return found


def make_judge(run: Path, cohort: Path, config: UnetScoreConfig, folder: Path | None = None) -> Judge:
    """Train the U-Net behind the Unet-score on the full-dose images of the run's training cases, or read it back.

    Args:
        folder: the judge's, shared by runs of the same training cases; default: one in the run's evaluation.
    """
    _, facts = _facts(run)
    cases = [*facts["train"], *facts.get("unpaired", ())]
    trained = configs.read(run / CONFIG)
    device = torch.device("cuda" if trained.cluster.device == "cuda" and torch.cuda.is_available() else "cpu")
    with bar("judge", 1) as advance:

        def follow(record: dict[str, Any]) -> None:
            if record["event"] == "log":
                advance(0, f"step {record['step']}, loss {record['loss/segmentation']:.3f}")

        place = folder or run / EVALUATION / "judge"
        made = judge(place, open_cohort(cohort), cases, config, feed=trained.feed, device=device, report=follow)
        advance(1, "")
    return made


def evaluate_run(
    run: Path,
    cohort: Path,
    *,
    judged_by: Judge | None = None,
    lesions: DetectionConfig | None = None,
    lows: Sequence[str] = (),
    baselines: Path | None = None,
    known: Mapping[str, Evaluation] = MappingProxyType({}),
) -> dict[str, Evaluation]:
    """Score every test case from every image fed; tables to the terminal, CSV and JSON to the run's folder.

    Args:
        judged_by: a U-Net trained on the run's training cases, for the Unet-score.
        lesions: what is to be detected where, None for nothing.
        lows: some of the images that the run starts from; () for all.
        baselines: where what needs no network is kept for runs of the same training cases; default: in the run.
        known: image that the run starts from -> scores of the same cases by the same rules and judge, from another
            run; those of images that no network made are taken from there.

    Raises:
        InputError: SET_NO_TEST, SET_NO_LABELS, CKPT_NONE, STORE_DAMAGED and their kin.
    """
    config, facts = _facts(run)
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
            detection.search_case(opened.case(name), lesions)
    results = {}
    for low in lows or config.feed.low:
        baseline = _baseline(run, cohort, low, baselines)
        rows = []
        scans = []
        images: tuple[str, ...] = ()
        for name in tests:
            case = opened.case(name)
            _check_unchanged(case, facts["cases"])
            candidates = _candidates(case, low, baseline, synthesize_case(trained, run, case, low))
            images = tuple(candidates)
            if lesions is not None:
                scans.append(detection.detect_case(case, case.image(config.feed.full), candidates, lesions))
                rows += detection.scores(scans[-1], lesions)
            held = _known(known.get(low), name, images)
            for image in {row.image for row in held}:
                del candidates[image]
            with bar("evaluate", 1) as advance:
                advance(0, f"{name} {low}")
                rows += held + score_case(
                    name,
                    case.image(config.feed.full),
                    candidates,
                    body=case.image("body"),
                    labels=case.image("labels") if case.labels else None,
                    label_names=case.labels,
                    lesions=[label for label in case.labels.values() if label.startswith("lesion")],
                    presets=("native", RECIPES[config.recipe].PRESET),
                    judge=judged_by,
                )
                advance(1, f"{name} {low}")
        about: dict[str, Any] = {"low": low, "baseline": baseline.rule}
        if lesions is not None:
            about["detection"] = detection.as_json(scans, lesions)
        results[low] = Evaluation(tuple(rows), images, tuple(tests), about)
        (run / EVALUATION / low).mkdir(parents=True, exist_ok=True)
        results[low].write(run / EVALUATION / low)
        console.print(results[low].table())
        if (found := results[low].unet_table()) is not None:
            console.print(found)
        if lesions is not None:
            console.print(detection.table(about["detection"]))
    return results


def _known(evaluation: Evaluation | None, case: str, images: Sequence[str]) -> list[Score]:
    """Scores of a case's images that no network made."""
    untrained = images[:-1]
    rows = evaluation.rows if evaluation else ()
    return [r for r in rows if r.case == case and r.image in untrained and r.rule.preset != detection.PRESET]


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
    config, _ = _facts(run)
    folders = {low: run / EVALUATION / low for low in config.feed.low}
    weights = (run / WEIGHTS).stat().st_mtime if (run / WEIGHTS).exists() else float("inf")
    scores = [folder / "scores.json" for folder in folders.values()]
    if all(path.is_file() and path.stat().st_mtime > weights for path in scores):
        return {low: read_evaluation(folder) for low, folder in folders.items()}
    return evaluate_run(run, cohort)


def report_run(run: Path, cohort: Path, evaluations: Mapping[str, Evaluation]) -> Path:
    """Write the run's reports, one page per low dose; returns the first one's path.

    Args:
        evaluations: what ``evaluate_run`` returned.

    Raises:
        InputError: as ``evaluate_run``.
    """
    config, facts = _facts(run)
    opened = open_cohort(cohort)
    paths = []
    with bar("report", len(evaluations)) as advance:
        for number, (low, evaluation) in enumerate(evaluations.items()):
            baseline = _baseline(run, cohort, low)
            pictured = {}
            rules = {}
            for name in evaluation.cases:
                case = opened.case(name)
                result = open_cohort(run / SYNTHESIS / low).case(name).image(f"synth_{low}")
                start = case.image(low)
                pictured[name] = CaseImages(
                    case.image(config.feed.full),
                    _candidates(case, low, baseline, result),
                    case.image("body"),
                    ct=start if start.units == HU else None,
                )
                rules[name] = suv_rule(case.image(config.feed.full).provenance)
            path = run / (REPORT if number == 0 else f"report-{low}.html")
            write_report(
                path,
                ReportData(
                    title=f"{config.recipe}: {_task(opened.case(evaluation.cases[0]), low)}",
                    evaluation=evaluation,
                    images=pictured,
                    command=str(facts["command"]),
                    config=facts["config"],
                    metrics=[r for r in read_metrics(run / "metrics.jsonl") if r["event"] == "log"],
                    environment=environment(),
                    cohort_digest=integrity.root_digest(facts["cases"], {}),
                    suv_rules={name: rule for name, rule in rules.items() if rule},
                    notes=[
                        *RECIPES[config.recipe].caveats(config.model),
                        *_notes(opened.case(evaluation.cases[0]), low),
                    ],
                ),
            )
            paths.append(path)
            advance(number + 1, path.name)
    return paths[0]


def _task(case: Case, low: str) -> str:
    return "CT to PET" if case.image(low).units == HU else f"{low} to full dose"


def suv_rule(provenance: Mapping[str, object]) -> str:
    """The reference-time rule an image's SUV rests on, empty when it was not read from DICOM."""
    truth = provenance.get("truth")
    facts = truth if isinstance(truth, Mapping) else provenance
    return str(facts.get("reference_rule", ""))


def _notes(case: Case, low: str) -> list[str]:
    facts = case.image(low).provenance
    if facts.get("kind") != "simulated low dose":
        return []
    truth = facts.get("truth")
    of = "a phantom" if isinstance(truth, Mapping) and truth.get("kind") == "phantom" else "a given scan"
    return [f"The low dose is simulated from {of} (2D slices, no time of flight); its noise is not a scanner's."]


def environment() -> dict[str, str]:
    """Versions and hardware, nothing that names the machine or its user."""
    packages = ("petscale", "torch", "deepspeed", "ray", "zarr", "tensorstore")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "processor": platform.machine(),
        "cores": str(psutil.cpu_count()),
        **({"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }
