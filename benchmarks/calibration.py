"""How often calibrated intervals of ``petscale calibrate`` hold the full dose on test patients: restore on phantoms.

    python benchmarks/calibration.py FOLDER [--patients 24] [--cohort COHORT] [--flips x]

A cohort of the demo's phantoms (or COHORT), a third of them kept for testing and a third of the rest for validation;
``restore`` as ``petscale demo`` trains it.  Counts of each scan stay in FOLDER: the same command continues.
docs/results/calibration.md has its tables.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from petscale.averages import AXES, Ensemble, open_estimator
from petscale.data.cohorts import fill_cohort
from petscale.data.phantom import phantom_plans
from petscale.evaluation.run import run_facts
from petscale.experiments.runs import DEMO_DRFS, demo, demo_phantom, demo_scan
from petscale.training import driver
from storage import integrity
from storage.reader import open_cohort
from trainers.metrics.calibration import (
    EDGES_SUV,
    FEWEST_VOXELS,
    LEVEL,
    LEVELS,
    Band,
    Calibration,
    Counts,
    check,
    learn,
    tally,
)

THIRDS = ("least", "middle", "most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", type=int, default=24)
    parser.add_argument("--cohort", type=Path)
    parser.add_argument("--flips", nargs="+", choices=AXES, default=["x"])
    options = parser.parse_args()
    cohort, run = options.cohort or options.folder / "cohort", options.folder / "run"
    if options.cohort is None:
        plans = phantom_plans(options.patients, demo_phantom(), demo_scan(), DEMO_DRFS)
        fill_cohort("phantoms", cohort, plans, strict=True, workers=None)
    config = demo()
    config = replace(
        config,
        split=replace(config.split, test_fraction=0.34, validation_fraction=0.33),
        loop=replace(config.loop, validate_every=100),
    )
    driver.train(cohort, run, config, command="benchmarks/calibration.py")
    _, facts = run_facts(run)
    whole = open_estimator(run, (), options.flips)
    assert isinstance(whole, Ensemble)
    counted = {
        role: [counts_of(whole, cohort, name, options.folder / "counts" / whole.folder) for name in facts[role]]
        for role in ("validation", "test")
    }
    tell(counted)


def counts_of(mean: Ensemble, cohort: Path, name: str, folder: Path) -> Counts:
    """The tally of a case, counted once."""
    place = folder / f"{name}.npy"
    if not place.is_file():
        case, (source, *_) = open_cohort(cohort).case(name), mean.config.feed.source
        with integrity.scratch() as scratch:
            made = replace(mean, calibration=None).estimate(case, source, scratch, ())
            assert made.deviation is not None
            found = tally(made.mean, made.deviation, case.image("full"), case.image("body"))
        folder.mkdir(parents=True, exist_ok=True)
        with integrity.replacing(place) as file:
            np.save(file, found)
    counts: Counts = np.load(place)
    return counts


def tell(counted: Mapping[str, Sequence[Counts]]) -> None:
    learned = learn(counted["validation"])
    if learned is None:
        raise SystemExit("fewer than two validation patients: nothing is learned")
    print(f"validation: {len(counted['validation'])} patients, test: {len(counted['test'])}\n")
    print("| SUV | noise, SUV | factor | validation | test | of a patient |\n|---|---|---|---|---|---|")
    test = check(learned, counted["test"])
    for band, one, two in zip(learned.bands, check(learned, counted["validation"]), test, strict=True):
        print(
            f"| from {band.low_suv:g} | {band.noise_suv:.3f} | {band.factor:.2f} | {one.at_level:.1%} "
            f"| {two.at_level:.1%} | {two.least:.1%} to {two.most:.1%} |"
        )
    print(f"\n| SUV | {' | '.join(f'{level:.0%}' for level in LEVELS)} |\n|---|{'---|' * len(LEVELS)}")
    for one in test:
        print(f"| from {one.low_suv:g} | {' | '.join(f'{share:.1%}' for share in one.observed)} |")
    kinds = {
        "noise and factor": learned,
        "factor alone": scaled(learned, counted["validation"], noise=0.0, factor=1.0),
        "noise alone": scaled(learned, counted["validation"], noise=1.0, factor=0.0),
    }
    print(f"\n| SUV | {' | '.join(f'{kind}, {third}' for kind in kinds for third in THIRDS)} |")
    print(f"|---|{'---|' * len(kinds) * len(THIRDS)}")
    for low in EDGES_SUV:
        cells = [covered(kind, counted["test"], low, third) for kind in kinds.values() for third in range(3)]
        print(f"| from {low:g} | {' | '.join(f'{cell:.1%}' for cell in cells)} |")


def scaled(like: Calibration, patients: Sequence[Counts], *, noise: float, factor: float) -> Calibration:
    """A calibration of one number per band, so that 90 % are held on the same patients."""
    low, high = np.full(len(like.bands), 1e-3), np.full(len(like.bands), 1e3)
    while np.any(high / low > 1.001):
        middle = np.sqrt(low * high)
        held = [one.at_level for one in check(_of(like, middle, noise, factor), patients)]
        low, high = np.where(np.less(held, LEVEL), middle, low), np.where(np.less(held, LEVEL), high, middle)
    return _of(like, high, noise, factor)


def _of(like: Calibration, scales: Sequence[float], noise: float, factor: float) -> Calibration:
    pairs = zip(like.bands, scales, strict=True)
    return Calibration(tuple(Band(band.low_suv, noise * one, factor * one, band.patients) for band, one in pairs))


def covered(calibration: Calibration, patients: Sequence[Counts], low_suv: float, third: int) -> float:
    """Coverage where the deviation is among the least, middle or most third of a band; mean over patients."""
    place = EDGES_SUV.index(low_suv)
    summed = np.sum(patients, axis=0)[place].sum(axis=1)
    share = (np.cumsum(summed) - summed / 2) / summed.sum()
    chosen = []
    for counts in patients:
        part = np.zeros_like(counts)
        part[place] = np.where((np.floor(3 * share) == third)[:, None], counts[place], 0)
        chosen.append(part)
    enough = [part for part in chosen if part.sum() >= FEWEST_VOXELS]
    found = {one.low_suv: one.at_level for one in check(calibration, enough)}
    return found.get(low_suv, float("nan"))


if __name__ == "__main__":
    main()
