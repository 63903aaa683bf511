"""``petscale report``: gather what a run's pages show, and write one page per source image."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from petscale import calibrations
from petscale import config as configs
from petscale.console import bar
from petscale.environment import environment
from petscale.evaluation.external import choose_cases
from petscale.evaluation.run import baseline_of, candidates_of, run_facts
from petscale.evaluation.scores import Evaluation
from petscale.folders import EVALUATION, METRICS, REPORT, SYNTHESIS, WEIGHTS
from petscale.proof import read_proven
from petscale.reporting import CaseImages, ReportData, write_report
from petscale.reporting.data_facts import data_table, length_doubt, roles_of
from petscale.reporting.doubts import doubts_of_run
from petscale.reporting.options import ReportOptions
from petscale.reporting.pdf import write_pdf
from petscale.training.progress import read_metrics, told_apart
from storage import integrity
from storage.joined import open_cohorts
from storage.reader import Case, StoredImage, open_cohort
from storage.source import HU
from trainers.systems import RECIPES
from trainers.validation import CHOSEN

EPOCH_SCORES = ("validation/psnr", "validation/ssim", "validation/mae")


def report_run(
    run: Path,
    cohort: Path,
    evaluations: Mapping[str, Evaluation],
    *,
    others: Sequence[Path] = (),
    options: ReportOptions = ReportOptions(),  # noqa: B008  (frozen)
) -> Path:
    """Write the run's reports, one page per source image; returns the first one's path.

    Args:
        evaluations: what ``evaluate_run`` returned.
        others: further cohorts that it was called with.
        options: what may be chosen.

    Raises:
        InputError: as ``evaluate_run``, ``ReportOptions`` and ``write_pdf``.
    """
    config, facts = run_facts(run)
    weights = read_proven(run)
    opened = open_cohorts([cohort, *others])
    chosen = choose_cases(run, facts, opened)
    options.check_cases([name for evaluation in evaluations.values() for name in evaluation.cases])
    paths = []
    with bar("report", len(evaluations)) as advance, integrity.scratch() as scratch:
        for number, (source, evaluation) in enumerate(evaluations.items()):
            baseline = baseline_of(run, opened, source, chosen.folder / EVALUATION)
            pictured = {}
            rules = {}
            unlike = []
            for name in evaluation.cases:
                case = opened.case(name)
                result = open_cohort(chosen.folder / SYNTHESIS / source).case(name).image(f"synth_{source}")
                start = case.image(source)
                candidates = candidates_of(case, source, baseline, result)
                pictured[name] = CaseImages(
                    case.image(config.feed.target),
                    {image: candidates[image] for image in evaluation.pictured},
                    case.image("body"),
                    ct=start if start.units == HU else None,
                    anatomy=anatomy(case),
                    deviation=options.deviation(name, case.image("body").grid, scratch),
                    labels=case.image("labels") if case.labels else None,
                    label_names=case.labels,
                )
                unlike += _unlike(name, result)
                rules[name] = suv_rule(case.image(config.feed.target).provenance)
            records = read_metrics(run / METRICS)
            path = chosen.folder / (REPORT if number == 0 else f"report-{source}.html")
            external = evaluation.metadata.get("external")
            about: Mapping[str, Any] = external if isinstance(external, Mapping) else {}
            write_report(
                path,
                ReportData(
                    title=title_of(config.recipe, opened.case(evaluation.cases[0]), source, about),
                    evaluation=evaluation,
                    images=pictured,
                    command=str(facts["command"]),
                    config=facts["config"],
                    metrics=[r for r in records if r.get("event") == "log" or "best_step" in r or EPOCH_SCORES[0] in r],
                    environment=environment(),
                    trained_with=told_apart({"": records}),
                    cohort_digest=about.get("digest") or integrity.root_digest(facts["cases"], {}),
                    suv_rules={name: rule for name, rule in rules.items() if rule},
                    notes=[
                        *_external_notes(about),
                        *(f"{note[0].upper()}{note[1:]}." for note in weights.notes),
                        *configs.defaults_said(config),
                        *RECIPES[config.recipe].caveats(config.model),
                        *chosen_step(weights.facts),
                        *best_epochs(records),
                        *notes_of(opened.case(evaluation.cases[0]), source),
                    ],
                    doubts=[
                        *([] if about else unlike),  # of another cohort the notes say it
                        *doubts_of_run(opened, facts, evaluation.cases, (config.feed.target, source)),
                        *length_doubt(opened, evaluation.cases, config.feed.target),
                    ],
                    data=data_table(opened, roles_of(opened, facts, evaluation.cases), config.feed.target, source),
                    page_mb=options.page_mb,
                    calibrations=calibrations.read_all(run, integrity.file_digest(run / WEIGHTS)),
                    deviations_said=options.said(evaluation.cases),
                ),
            )
            if options.pdf:
                write_pdf(path, path.with_suffix(".pdf"))
            paths.append(path)
            advance(number + 1, path.name)
    return paths[0]


def anatomy(case: Case) -> StoredImage | None:
    """A case's first CT, if it has any."""
    return next((image for image in map(case.image, case.images) if image.units == HU), None)


def title_of(recipe: str, case: Case, source: str, about: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The heading of a page about a system that starts from a case's image; ``about`` an external validation."""
    return f"{recipe}: {_task(case, source)}" + (f", external validation on {about['cohort']}" if about else "")


def _external_notes(about: Mapping[str, Any]) -> list[str]:
    """What a page on another cohort says first: whom the run is scored on, who is left out, what differs."""
    if not about:
        return []
    told = str(about["statement"])
    notes = [f"{told[0].upper()}{told[1:]}."]
    notes += [f"Left out: {case}: {why}." for case, why in about["left_out"].items()]
    notes += [f"{len(cases)} case(s): {what}." for what, cases in about["differs_from_training"].items()]
    return notes


def _unlike(case: str, result: StoredImage) -> list[str]:
    """Say in what a test case's scan is unlike those trained on, as its result has kept it."""
    told = result.provenance.get("differs_from_training")
    return [f"Case {case}: {what}." for what in told] if isinstance(told, list) else []


def chosen_step(facts: Mapping[str, str]) -> list[str]:
    """Say which step's weights a run exported, where validation chose them.

    Args:
        facts: what stands beside the weights.
    """
    if CHOSEN not in facts:
        return []
    chosen = json.loads(facts[CHOSEN])
    return [
        f"The weights are those of step {chosen['step']}, the best on patches of validation patients "
        f"({chosen['gain_db']:+.2f} dB of PSNR over what they start from)."
    ]


def best_epochs(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say each score's best epoch on validation patients beside the epoch kept, where every epoch had all of them.

    A table of best epochs, each score by itself, is what a paper may print; how far it lies above one epoch's scores is
    then seen.

    Args:
        records: of ``read_metrics``.
    """
    epochs = [record for record in records if all(name in record for name in EPOCH_SCORES)]
    if not epochs:
        return []
    psnr, ssim, mae = EPOCH_SCORES
    kept = max(epochs, key=lambda record: record[psnr])
    best = {psnr: kept, ssim: max(epochs, key=lambda record: record[ssim]), mae: min(epochs, key=lambda r: r[mae])}
    words = {psnr: ("PSNR", "{:.2f} dB"), ssim: ("SSIM", "{:.4f}"), mae: ("MAE", "{:.4f}")}

    def told(record_of: Mapping[str, Mapping[str, Any]], at: str) -> str:
        return ", ".join(
            f"{word} {form.format(record_of[name][name])}{at.format(record_of[name]['step'])}"
            for name, (word, form) in words.items()
        )

    return [
        f"Scores of {len(epochs)} epochs on validation patients: the best of each {told(best, ' at step {}')}; the "
        f"epoch of the best PSNR, step {kept['step']}, {told(dict.fromkeys(best, kept), '')}. The best of each score "
        "by itself is a maximum over all epochs, not what one network reaches."
    ]


def _task(case: Case, source: str) -> str:
    return "CT to PET" if case.image(source).units == HU else f"{source} to full dose"


def suv_rule(provenance: Mapping[str, object]) -> str:
    """The reference-time rule an image's SUV rests on, empty when it was not read from DICOM."""
    truth = provenance.get("truth")
    facts = truth if isinstance(truth, Mapping) else provenance
    return str(facts.get("reference_rule", ""))


def notes_of(case: Case, source: str) -> list[str]:
    """What must be said of a simulated low dose."""
    facts = case.image(source).provenance
    if facts.get("kind") != "simulated low dose":
        return []
    truth = facts.get("truth")
    of = "a phantom" if isinstance(truth, Mapping) and truth.get("kind") == "phantom" else "a given scan"
    return [f"The low dose is simulated from {of} (2D slices, no time of flight); its noise is not a scanner's."]
