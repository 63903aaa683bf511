"""All baselines of one image fitted together: what is measured on a case, how cases are put together, how it is kept.

What is measured on a case does not depend on other cases, so that folds of a cross-validation cost additions alone.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from itertools import count
from operator import add
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from petscale.evaluation.baselines import (
    ADAPTIVE,
    LINEAR,
    TRAINING,
    Anatomy,
    Baseline,
    GaussianChoice,
    choose_width,
    gaussian_from_json,
    gaussian_scores,
    no_training_case,
)
from petscale.evaluation.filters import (
    BLOCK_VOXELS,
    METHODS,
    bank,
    bank_halo,
    banked,
    denoised,
    installed,
    levelled,
    relative_noise,
)
from petscale.evaluation.from_ct import ELSEWHERE, HuTable, mean_suv_by_hu, organs_of, table_from_json
from storage.reader import Case
from storage.source import HU, ImageSource
from trainers.filter_bank import (
    CLASSES,
    COARSE,
    FINE,
    FWHMS_MM,
    Classing,
    NormalEquations,
    chosen_filter,
    linear_filter,
    no_voxels,
    normal_equations,
)
from trainers.metrics.image import psnr_of
from trainers.metrics.slabs import read_reflected, slabs

TUNED_ON = 4  # cases on which the slow filters are tuned, spread over the training cases
TUNED_SLICES, TUNED_VOXELS = 24, 200_000  # of the middle of each

Result = TypeVar("Result")
Strengths = Mapping[float, float]  # strength -> PSNR inside the body, dB


@dataclass(frozen=True)
class Strength:
    """The strength of a slow filter that restored some training cases best.

    Args:
        method: a key of ``filters.METHODS``.
        strength: in units of a scan's noise.
        psnr_db: mean PSNR per strength tried.
        num_cases: on how many cases.
    """

    method: str
    strength: float
    psnr_db: Strengths
    num_cases: int

    def rule(self, of: str) -> str:
        """How it was made and tuned, in words."""
        tried = ", ".join(f"{strength:g}" for strength in self.psnr_db)
        return (
            f"{METHODS[self.method].told}, of the image over its local level; strength {self.strength:g} times the "
            f"scan's own noise there, best mean PSNR in the middle slices of {self.num_cases} {of} among {tried}"
        )


@dataclass(frozen=True)
class Filters:
    """Every filter of a low dose that needs no network; a ``Baseline``.

    Args:
        gaussian: the best Gaussian.
        linear: the best combination of Gaussians, (members,); () in what earlier versions stored.
        adaptive: the best one of every class of voxels, (classes, members); () likewise.
        strengths: of the slow filters.
    """

    gaussian: GaussianChoice
    linear: tuple[float, ...] = ()
    adaptive: tuple[tuple[float, ...], ...] = ()
    strengths: tuple[Strength, ...] = ()

    @property
    def rule(self) -> str:
        """How all of them were fitted, in words."""
        told = [f"Gaussian: {self.gaussian.rule}"]
        told += [f"{name}: {rule}" for name, rule in self._bank_rules().items()]
        told += [f"{found.method}: {found.rule(self.gaussian.of)}" for found in self.strengths]
        return "; ".join(told)

    def _bank_rules(self) -> dict[str, str]:
        if not self.linear:
            return {}
        widths = ", ".join(f"{width:g}" for width in FWHMS_MM)
        fitted = f"least squares inside the body of {self.gaussian.num_cases} {self.gaussian.of}, each over its peak^2"
        of = f"combination of the image and Gaussians of {widths} mm FWHM"
        return {
            LINEAR: f"best {of}, {fitted}",
            ADAPTIVE: f"best {of} for each of {len(self.adaptive)} classes of local level and contrast, {fitted}; "
            "56 or 80 classes, and how much rare ones are drawn to the linear filter, as serves cases left out of the "
            "fit best",
        }

    def beside(self, source: ImageSource, anatomy: Anatomy | None = None) -> dict[str, ImageSource]:
        """Return the low dose as it is, and filtered by all that can run here."""
        found = self.gaussian.beside(source)
        rules = self._bank_rules()
        if rules:
            found[LINEAR] = banked(source, np.tile(self.linear, (CLASSES, 1)), rules[LINEAR])
            found[ADAPTIVE] = banked(source, np.array(self.adaptive), rules[ADAPTIVE])
        for chosen in self.strengths:
            if installed(chosen.method):
                rule = chosen.rule(self.gaussian.of)
                found[chosen.method] = levelled(source, chosen.method, chosen.strength, rule)
        return found

    def to_json(self) -> dict[str, object]:
        """Return what ``baseline_from_json`` takes; the Gaussian's entries are those of earlier versions."""
        content = self.gaussian.to_json()
        if self.linear:
            content |= {"linear_filter": list(self.linear), "adaptive_filter": [list(row) for row in self.adaptive]}
        if self.strengths:
            content["strengths"] = [
                {
                    "method": found.method,
                    "strength": found.strength,
                    "psnr_db": {f"{strength:g}": value for strength, value in found.psnr_db.items()},
                    "num_cases": found.num_cases,
                }
                for found in self.strengths
            ]
        return content


def baseline_from_json(content: Mapping[str, Any]) -> Baseline:
    """Return a baseline as its ``to_json`` wrote it, also by earlier versions: those know the Gaussian alone."""
    if "suv_by_hu" in content:
        return table_from_json(content)
    strengths = [
        Strength(
            found["method"],
            found["strength"],
            dict(sorted((float(strength), value) for strength, value in found["psnr_db"].items())),
            found["num_cases"],
        )
        for found in content.get("strengths", ())
    ]
    return Filters(
        gaussian_from_json(content),
        tuple(content.get("linear_filter", ())),
        tuple(tuple(row) for row in content.get("adaptive_filter", ())),
        tuple(strengths),
    )


# ---- one case -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measured:
    """What a case says of the fast filters.

    Args:
        gaussian: FWHM in mm -> PSNR inside the body.
        equations: of the banks, over the voxels of the body, each 1 / peak^2, for both ways of classing.
    """

    gaussian: Mapping[float, float]
    equations: Mapping[Classing, NormalEquations]


def measure(low: ImageSource, full: ImageSource, body: ImageSource) -> Measured:
    """Measure the fast filters on one case.

    Raises:
        InputError: as ``stream_scores`` does, for instance IMG_EMPTY where the body holds no uptake.
    """
    gaussian = gaussian_scores(low, full, body)
    peak = _peak(full, body)
    spacing = low.grid.spacing_mm
    equations = {way: no_voxels(way) for way in (COARSE, FINE)}
    for z0, z1 in slabs(low.grid.shape, BLOCK_VOXELS):
        inside = torch.from_numpy(body.read(z0, z1) > 0.5)
        slab = read_reflected(low, z0, z1, bank_halo(spacing)).astype(np.float32)
        members = bank(slab, spacing)
        target = torch.from_numpy(full.read(z0, z1))[inside]
        voxels = members[0][:, inside]
        for way in equations:
            equations[way] += normal_equations(voxels, way.of(members)[0][inside], target, peak**-2, way)
    return Measured(gaussian, equations)


def strengths(low: ImageSource, full: ImageSource, body: ImageSource) -> dict[str, Strengths]:
    """Return slow filter -> strength -> PSNR inside the body of the middle slices of one case.

    The peak is that of the whole body, the noise that of the whole scan.  A method that is not installed is left out.
    """
    depth, y, x = low.grid.shape
    slices = min(depth, TUNED_SLICES, max(1, TUNED_VOXELS // (y * x)))
    z0 = (depth - slices) // 2
    part, target, inside = (image.read(z0, z0 + slices) for image in (low, full, body))
    where = inside > 0.5
    peak, noise, spacing = _peak(full, body), relative_noise(low), low.grid.spacing_mm
    found: dict[str, Strengths] = {}
    for name, method in METHODS.items():
        if installed(name) and where.any():
            found[name] = {
                strength: _psnr(denoised(part, spacing, name, strength * noise), target, where, peak)
                for strength in method.strengths
            }
    return found


def _psnr(image: NDArray[np.float32], target: NDArray[np.float32], where: NDArray[np.bool_], peak: float) -> float:
    return psnr_of(float(np.square(image[where].astype(np.float64) - target[where]).mean()), peak)


def _peak(full: ImageSource, body: ImageSource) -> float:
    """The largest full-dose value in the body."""
    return max(
        float(np.where(body.read(z0, z1) > 0.5, full.read(z0, z1), -np.inf).max()) for z0, z1 in slabs(full.grid.shape)
    )


# ---- cases together -------------------------------------------------------------------------------------------------


def fit_filters(
    cases: Sequence[str],
    measured: Callable[[str], Measured],
    tuned: Callable[[str], Mapping[str, Strengths]],
    *,
    of: str = TRAINING,
) -> Filters:
    """Fit every filter on training cases; sums are taken in the order of the cases.

    Args:
        cases: names of TRAINING cases.
        measured: case -> ``measure`` of it.
        tuned: case -> ``strengths`` of it; asked for at most ``TUNED_ON`` of the cases, spread evenly.
        of: which cases these are, where they are no training cases.

    Raises:
        InputError: ``SET_EMPTY`` without a case.
    """
    if not cases:
        raise no_training_case()
    found = at_once(measured, cases)
    equations = {way: [one.equations[way] for one in found] for way in (COARSE, FINE)}
    chosen = [cases[i * len(cases) // min(TUNED_ON, len(cases))] for i in range(min(TUNED_ON, len(cases)))]
    slow = at_once(tuned, chosen)
    return Filters(
        choose_width([one.gaussian for one in found], of=of),
        tuple(linear_filter(reduce(add, equations[COARSE]))[0].tolist()),
        tuple(tuple(row) for row in chosen_filter(equations).tolist()),
        tuple(_strongest(method, slow) for method in METHODS if any(method in one for one in slow)),
    )


def at_once(work: Callable[[str], Result], cases: Sequence[str]) -> list[Result]:
    """Return what is found of each case, in their order; as many threads as there are cores, four at most."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="fit") as pool:
        return list(pool.map(work, cases))


def _strongest(method: str, slow: Sequence[Mapping[str, Strengths]]) -> Strength:
    known = [one[method] for one in slow if method in one]
    means = {strength: float(np.mean([one[strength] for one in known])) for strength in known[0]}
    return Strength(method, max(means, key=lambda strength: means[strength]), means, len(known))


def anatomy_of(case: Case) -> Anatomy:
    """Return what a stored case says of where its voxels lie."""
    return Anatomy(case.image("body"), case.image("labels") if case.labels else None, case.labels)


def common_organs(cases: Sequence[Case]) -> tuple[str, ...]:
    """Return the organs that every case has labels of, in one order."""
    sets = [set(organs_of(case.labels)) for case in cases]
    return tuple(sorted(set.intersection(*sets))) if sets else ()


def suited(baseline: Baseline, cases: Sequence[Case]) -> Baseline:
    """Return a baseline that can be made of all of some cases: organs are left out where one has no labels of them."""
    if isinstance(baseline, HuTable) and not {*baseline.organs} - {ELSEWHERE} <= {*common_organs(cases)}:
        return replace(baseline, organs={})
    return baseline


def fit_baseline(
    cases: Sequence[Case],
    source: str,
    target: str,
    *,
    of: str = TRAINING,
    scored: Sequence[Case] = (),
    advance: Callable[[int, str], None] = lambda number, case: None,
) -> Baseline:
    """Fit what needs no network on training cases.

    Args:
        cases: training cases.
        source: the image to start from, a low dose or a CT.
        target: the full dose.
        of: which cases these are, where they are no training cases.
        scored: the cases that will be scored: organs are told apart only where these have them too.
        advance: called with the number of cases done and the case at hand.

    Raises:
        InputError: ``SET_EMPTY`` without a case, SET_NO_IMAGE, or as ``stream_scores`` does.
    """
    named = {case.name: case for case in cases}

    def images(name: str) -> tuple[ImageSource, ImageSource, ImageSource]:
        case = named[name]
        return case.image(source), case.image(target), case.image("body")

    if cases and cases[0].image(source).units == HU:

        def pairs() -> Iterator[tuple[ImageSource, ImageSource, Anatomy]]:
            for number, case in enumerate(cases):
                advance(number, case.name)
                yield case.image(source), case.image(target), anatomy_of(case)

        found: Baseline = mean_suv_by_hu(pairs(), of=of, organs=common_organs([*cases, *scored]))
    else:
        begun = count()
        telling = Lock()

        def measured(name: str) -> Measured:
            with telling:
                advance(next(begun), name)
            return measure(*images(name))

        found = fit_filters(list(named), measured, lambda name: strengths(*images(name)), of=of)
    advance(len(cases), "")
    return found
