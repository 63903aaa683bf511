"""``petscale report`` of a folder of folds: one page about all patients, each by the run that never saw him or her."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from petscale import config as configs
from petscale.console import bar
from petscale.environment import environment
from petscale.evaluation.folds import gather, names_in_all
from petscale.evaluation.run import baseline_of, candidates_of, read_evaluations
from petscale.evaluation.scores import Evaluation
from petscale.folders import FOLDS, METRICS, REPORT, SYNTHESIS
from petscale.proof import read_proven
from petscale.reporting import CaseImages, ReportData, write_report
from petscale.reporting.data_facts import data_table, length_doubt
from petscale.reporting.doubts import doubts_of
from petscale.reporting.options import ReportOptions
from petscale.reporting.pdf import write_pdf
from petscale.reporting.run import anatomy, notes_of, suv_rule, title_of
from petscale.training.progress import read_metrics, told_apart
from storage import integrity
from storage.joined import open_cohorts
from storage.reader import Case, Cases, open_cohort
from storage.source import HU, ImageSource
from trainers.systems import RECIPES


def report_folds(
    folder: Path,
    cohort: Path,
    *,
    others: Sequence[Path] = (),
    options: ReportOptions = ReportOptions(),  # noqa: B008  (frozen)
) -> Path:
    """Write the pages of all folds, one per source image; returns the first one's path.

    Args:
        folder: of ``petscale folds``, every fold of it trained; a fold without scores is evaluated first.
        others: further cohorts that it was called with.
        options: what may be chosen.

    Raises:
        InputError: CKPT_NONE for a fold that is not trained yet, and those of ``evaluate_run``, ``ReportOptions`` and
            ``write_pdf``.
    """
    record = integrity.read_json(folder / FOLDS, "folds", "config", "cases", "command", "subjects")
    opened = open_cohorts([cohort, *others])
    runs = {name: folder / name for name in record["folds"]}
    found = {name: read_evaluations(run, cohort, others=others) for name, run in runs.items()}
    unproven = [f"{name}: {note}." for name, run in runs.items() for note in read_proven(run).notes]
    config = configs.from_json(record["config"])
    options.check_cases([case for one in found.values() for scores in one.values() for case in scores.cases])
    paths = []
    with bar("report", len(config.feed.source)) as advance, integrity.scratch() as scratch:
        for number, source in enumerate(config.feed.source):
            folds = {name: evaluations[source] for name, evaluations in found.items()}
            whole = gather(folds, record["subjects"])
            first = opened.case(next(iter(folds.values())).cases[0])
            scored = {case: opened.case(case) for fold in folds.values() for case in fold.cases}
            path = folder / (REPORT if number == 0 else f"report-{source}.html")
            people = f"{len(whole.cases)} patients in {len(runs)} folds"
            said = f"{people}, each scored by the run that never saw him or her; several scans of one are averaged."
            rules = {name: suv_rule(case.image(config.feed.target).provenance) for name, case in scored.items()}
            data = ReportData(
                title=f"{title_of(config.recipe, first, source)}, {len(runs)} folds",
                evaluation=whole,
                images=_images(
                    runs,
                    folds,
                    opened,
                    source,
                    config.feed.target,
                    whole,
                    lambda case: options.deviation(case.name, case.image("body").grid, scratch),
                ),
                command=str(record["command"]),
                config=record["config"],
                environment=environment(),
                trained_with=told_apart({name: read_metrics(run / METRICS) for name, run in runs.items()}),
                cohort_digest=integrity.root_digest(record["cases"], {}),
                suv_rules={name: rule for name, rule in rules.items() if rule},
                notes=[
                    said,
                    *unproven,
                    *configs.defaults_said(config),
                    *RECIPES[config.recipe].caveats(config.model),
                    *notes_of(first, source),
                ],
                doubts=[
                    *doubts_of(scored, config.feed.target, source, what="test"),
                    *length_doubt(opened, list(scored), config.feed.target),
                ],
                data=data_table(opened, {"trained and scored on": list(scored)}, config.feed.target, source),
                page_mb=options.page_mb,
                deviations_said=options.said(list(scored)),
            )
            write_report(path, data)
            if options.pdf:
                write_pdf(path, path.with_suffix(".pdf"))
            paths.append(path)
            advance(number + 1, path.name)
    return paths[0]


def _images(
    runs: Mapping[str, Path],
    folds: Mapping[str, Evaluation],
    opened: Cases,
    source: str,
    target: str,
    whole: Evaluation,
    deviation: Callable[[Case], ImageSource | None],
) -> dict[str, CaseImages]:
    """What is pictured of every patient: his or her first scan, by the fold that tested it."""
    called = names_in_all(folds)
    about: Mapping[str, Any] = whole.metadata
    found = {}
    for patient, fold in about["folds"].items():
        name = about["patients"][patient][0]
        case, run = opened.case(name), runs[fold]
        result = open_cohort(run / SYNTHESIS / source).case(name).image(f"synth_{source}")
        candidates = candidates_of(case, source, baseline_of(run, opened, source), result)
        start = case.image(source)
        found[patient] = CaseImages(
            case.image(target),
            {
                name: made
                for image, made in candidates.items()
                if (name := called[fold].get(image)) in whole.pictured and name is not None
            },
            case.image("body"),
            ct=start if start.units == HU else None,
            anatomy=anatomy(case),
            deviation=deviation(case),
            labels=case.image("labels") if case.labels else None,
            label_names=case.labels,
        )
    return found
