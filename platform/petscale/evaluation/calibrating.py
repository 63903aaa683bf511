"""``petscale calibrate``: standard deviations, calibrated on validation patients and checked on test patients."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from petscale.averages import Axis, Ensemble, check_deviation, open_estimator, runs_of
from petscale.calibrations import Kept
from petscale.console import console
from petscale.evaluation.external import check_unchanged
from petscale.evaluation.run import run_facts
from petscale.proof import trained_before
from storage import integrity
from storage.errors import InputError
from storage.joined import open_cohorts
from storage.reader import Cases
from trainers.metrics.calibration import (
    AIM,
    EDGES_SUV,
    FEWEST_PATIENTS,
    FEWEST_VOXELS,
    LEVEL,
    Calibration,
    Counts,
    Coverage,
    check,
    learn,
    tally,
)

HEADINGS = ("SUV of the image", "noise, SUV", "factor", "validation", "test", "of a patient", "patients")


def calibrate(
    folders: Sequence[Path], cohort: Path, *, flips: Sequence[Axis] = (), others: Sequence[Path] = ()
) -> tuple[str, Kept]:
    """Learn how a mean's standard deviation is calibrated, and look at how well that holds.

    Args:
        folders: of runs or of folds that are averaged.
        cohort: the one that they were trained on.
        flips: axes along which every scan is mirrored too.
        others: further cohorts, read as one with the first.

    Returns:
        Name of the mean's results, and the calibration, which is not written yet.

    Raises:
        InputError: CFG_NO_EFFECT for one run without flips; SET_NO_VALIDATION where not even two patients are left that
            all runs kept for validation; SET_CASE_CHANGED, and those of ``open_estimator``.
    """
    whole = open_estimator(folders[0], folders[1:], flips)
    check_deviation(whole, Path("deviation"), where="calibrate")
    assert isinstance(whole, Ensemble), "just checked"
    mean = Ensemble(whole.members, whole.flips)
    opened = open_cohorts([cohort, *others])
    facts = [run_facts(run)[1] for run in runs_of(folders)]
    people = {role: _people(role, opened, facts) for role in ("validation", "test")}
    if len(people["validation"]) < FEWEST_PATIENTS:
        raise _no_validation(facts, len(people["validation"]))
    tallies = {role: [_patient(mean, opened, cases) for cases in some.values()] for role, some in people.items()}
    calibration = learn(tallies["validation"])
    if calibration is None:
        raise InputError(
            "SET_NO_VALIDATION",
            where=cohort.name,
            found=f"fewer than {FEWEST_VOXELS} voxels inside the body of a validation patient",
            remedy="ingest whole scans",
        )
    kept = Kept(
        calibration,
        weights=mean.weights,
        members=tuple(member.weights for member in mean.members),
        description=mean.description,
        images=mean.config.feed.source,
        patients=len(people["validation"]),
        learned=check(calibration, tallies["validation"]),
        checked=check(calibration, tallies["test"]),
        checked_patients=len(people["test"]),
    )
    return mean.folder, kept


def _people(role: str, cohort: Cases, facts: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Patient -> the cases that have a role in every run, of patients whom none was trained on or has started from."""
    seen = {digest for one in facts for digest in trained_before(one)}
    people = set()
    for one in facts:
        for name in (*one["train"], *one.get("unpaired", ())):
            seen.add(one["cases"][name])
            people.add(one.get("subjects", {}).get(name))
    found: dict[str, list[str]] = {}
    for name in facts[0].get(role, ()):
        digest = facts[0]["cases"][name]
        everywhere = all(name in one.get(role, ()) and one["cases"][name] == digest for one in facts)
        if name in cohort.cases and everywhere and digest not in seen and cohort.case(name).subject not in people:
            check_unchanged(cohort, name, facts[0])
            found.setdefault(cohort.case(name).subject, []).append(name)
    return found


def _patient(mean: Ensemble, cohort: Cases, names: Sequence[str]) -> Counts:
    """The tally of one patient, from every image of his or her cases that the runs start from."""
    config = mean.config
    counts = []
    for name in names:
        case = cohort.case(name)
        for source in config.feed.source:
            differences = mean.check(case, source)
            with integrity.scratch() as scratch:
                made = mean.estimate(case, source, scratch, differences)
                assert made.deviation is not None, "several images"
                counts.append(tally(made.mean, made.deviation, case.image(config.feed.target), case.image("body")))
    summed: Counts = np.sum(counts, axis=0)
    return summed


def _no_validation(facts: Sequence[dict[str, Any]], found: int) -> InputError:
    kept = any(one.get("validation") for one in facts)
    said = f"{found} patient{'' if found == 1 else 's'} in this cohort that every run kept for validation"
    return InputError(
        "SET_NO_VALIDATION",
        where="calibrate",
        found=said if kept else "the run kept no patients for validation",
        remedy=f"train with --loop.validate-every and --split.validation-fraction so that {FEWEST_PATIENTS} patients "
        "or more are kept, and give the run's own cohort",
    )


def lines(kept: Kept) -> list[tuple[str, ...]]:
    """A line per band of SUV for the screen and the report, under ``HEADINGS``; coverage in %."""
    held = [{one.low_suv: one for one in some} for some in (kept.learned, kept.checked)]
    found: list[tuple[str, ...]] = []
    for name, band in zip(names(kept.calibration), kept.calibration.bands, strict=True):
        learned, checked = (one.get(band.low_suv) for one in held)
        cells = (f"{band.noise_suv:.3g}", f"{band.factor:.2f}", _percent(learned), _percent(checked))
        spread = f"{100 * checked.least:.1f} to {100 * checked.most:.1f}" if checked else "–"
        found.append((name, *cells, spread, f"{band.patients} + {checked.patients if checked else 0}"))
    return found


def names(calibration: Calibration) -> list[str]:
    """Return the bands as they are called, ``0.5 to 1``, the last one ``above 8``."""
    starts = [band.low_suv for band in calibration.bands]
    named = [f"{low:g} to {high:g}" for low, high in pairwise(starts)]
    return [*named, f"above {starts[-1]:g}" if starts[-1] > EDGES_SUV[0] else "all"]


def verdict(kept: Kept) -> str:
    """Say whether the intervals hold as much of the test scans as they should, with as much certainty as there is."""
    aim = f"{AIM[0]:.0%} to {AIM[1]:.0%}"
    if not kept.checked:
        return f"Not checked: no test patient. Intervals of {LEVEL:.0%} were to hold {aim} of a band's voxels."
    bands = dict(zip((band.low_suv for band in kept.calibration.bands), names(kept.calibration), strict=True))
    outside = [f"SUV {bands[one.low_suv]} ({one.at_level:.1%})" for one in kept.checked if not one.within_aim]
    number = f"{kept.checked_patients} test patient{'' if kept.checked_patients == 1 else 's'}"
    if not outside:
        return f"Intervals of {LEVEL:.0%} held {aim} of the voxels of {number} in every band of SUV."
    return f"Intervals of {LEVEL:.0%} did not hold {aim} of the voxels of {number}: {', '.join(outside)}."


def show(kept: Kept) -> None:
    """Print what was learned and how well it holds."""
    table = Table(title=f"standard deviation, {kept.description}: coverage of {LEVEL:.0%} intervals in %", box=None)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for line in lines(kept):
        table.add_row(*line)
    console.print(table)
    console.print(verdict(kept), markup=False, soft_wrap=True)


def _percent(coverage: Coverage | None) -> str:
    return f"{100 * coverage.at_level:.1f}" if coverage else "–"
