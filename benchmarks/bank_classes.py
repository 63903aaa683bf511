"""What the classes of the adaptive filter are worth: PSNR in the body and in lesions, cross-validated over patients.

    python -m benchmarks.bank_classes COHORT --low low_drf20 [--folds 3]

COHORT holds full doses, the low dose named and labels of lesions; `petscale phantom` makes one.  Every patient is
filtered by what was fitted on the other folds' patients: the linear filter, the classes of before, those of now, and
both with lesions that count for as many further voxels as named, each lesion alike; and last what a baseline is, the
classes and the ridge that serve training patients best which were left out.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import label

from benchmarks.conditions import commit, hardware
from petscale.evaluation.filters import bank, bank_halo
from storage.reader import Case, open_cohort
from trainers.filter_bank import (
    COARSE,
    FINE,
    Classing,
    NormalEquations,
    adaptive_filter,
    chosen_filter,
    classing_of,
    combined,
    linear_filter,
    no_voxels,
    normal_equations,
)
from trainers.metrics.image import psnr_of
from trainers.metrics.slabs import read_reflected

WEIGHTS = (0.0, 250.0, 1000.0)  # further voxels that a lesion counts for
FEWEST = 8  # voxels that a lesion counts as having at least, as in trainers.systems.restore


@dataclass(frozen=True, eq=False)
class Patient:
    """Voxels of a body: members of the bank (m, n), full dose (n,), number of the lesion (n,), 0 outside of lesions."""

    members: torch.Tensor
    full: NDArray[np.float32]
    lesion: NDArray[np.int32]
    classes: dict[Classing, torch.Tensor]

    @property
    def peak(self) -> float:
        """The largest value of the full dose."""
        return float(self.full.max())

    def weight(self, lesions: float) -> torch.Tensor:
        """How much an error counts: 1 / peak^2, and more in lesions."""
        sizes = np.bincount(self.lesion, minlength=self.lesion.max() + 1).clip(FEWEST).astype(float)
        sizes[0] = np.inf
        return torch.from_numpy((1 + lesions / sizes[self.lesion]) / self.peak**2)


def patient(case: Case, low: str) -> Patient:
    """Read one case whole."""
    source, full = case.image(low), case.image("full")
    depth, spacing = full.grid.shape[0], full.grid.spacing_mm
    members = bank(read_reflected(source, 0, depth, bank_halo(spacing)).astype(np.float32), spacing)
    inside = case.image("body").read(0, depth) > 0.5
    marked = [number for number, name in case.labels.items() if name.startswith("lesion")]
    lesions = label(np.isin(case.image("labels").read(0, depth), marked))[0] if marked else np.zeros(inside.shape, int)
    where = torch.from_numpy(inside)
    classes = {way: way.of(members)[0][where] for way in (COARSE, FINE)}
    return Patient(members[0][:, where], full.read(0, depth)[inside], lesions[inside].astype(np.int32), classes)


def fitted(patients: Sequence[Patient], way: Classing, lesions: float) -> NormalEquations:
    """Add up the normal equations of training patients."""
    total = no_voxels(way)
    for one in patients:
        target = torch.from_numpy(one.full)
        total += normal_equations(one.members, one.classes[way], target, one.weight(lesions), way)
    return total


def scored(one: Patient, coefficients: NDArray[np.float64], way: Classing) -> tuple[float, float, float]:
    """Return the PSNR in the body, the mean PSNR of lesions and their mean bias of SUVmean in percent."""
    chosen = torch.from_numpy(coefficients).float()
    voxels, classed = one.members[None, :, :, None, None], one.classes[way][None, :, None, None]
    image = combined(voxels, chosen, classed)[0, 0, :, 0, 0].numpy()
    error = np.square(image.astype(np.float64) - one.full)
    places = [one.lesion == number for number in range(1, one.lesion.max() + 1)]
    places = [place for place in places if place.any()]
    found = [psnr_of(float(error[place].mean()), one.peak) for place in places]
    bias = [100 * (float(image[place].mean() / one.full[place].mean()) - 1) for place in places]
    return psnr_of(float(error.mean()), one.peak), float(np.mean(found)), float(np.mean(bias))


def rows(patients: Sequence[Patient], folds: int) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield what was fitted and its mean scores over all patients."""
    ways = [("linear filter", COARSE, 0.0, linear_filter)]
    ways += [(f"{way.count} classes", way, lesions, adaptive_filter) for way in (COARSE, FINE) for lesions in WEIGHTS]
    for name, way, lesions, solve in ways:
        found = []
        for fold in range(folds):
            rest = [one for number, one in enumerate(patients) if number % folds != fold]
            coefficients = solve(fitted(rest, way, lesions))
            found += [scored(one, coefficients, way) for one in patients[fold::folds]]
        yield name + (f", a lesion counts for {lesions:g} further voxels" if lesions else ""), np.mean(found, axis=0)
    found, ways_taken = [], Counter()
    for fold in range(folds):
        rest = [one for number, one in enumerate(patients) if number % folds != fold]
        coefficients = chosen_filter({way: [fitted([one], way, 0.0) for one in rest] for way in (COARSE, FINE)})
        ways_taken[len(coefficients)] += 1
        found += [scored(one, coefficients, classing_of(len(coefficients))) for one in patients[fold::folds]]
    told = ", ".join(f"{classes} in {times}" for classes, times in ways_taken.items())
    yield f"**chosen by patients left out** ({told} of {folds} folds)", np.mean(found, axis=0)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--low", default="low_drf20")
    parser.add_argument("--folds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cohort = open_cohort(given.cohort)
    patients = [patient(cohort.case(name), given.low) for name in cohort.cases]
    print(f"{len(patients)} patients, {given.folds} folds; commit {commit()}, {hardware()}\n")
    print("| fitted | body [dB] | lesions [dB] | lesions' SUVmean [%] |\n|---|---|---|---|")
    for name, (body, lesions, bias) in rows(patients, given.folds):
        print(f"| {name} | {body:.2f} | {lesions:.2f} | {bias:+.1f} |", flush=True)


if __name__ == "__main__":
    main()
