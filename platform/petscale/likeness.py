"""Whether a scan's voxels look like those that a run was trained on: noise, uptake, size of the body, bank classes.

A few numbers are measured in every training scan, in the same way in a new one.  Of each number a run keeps the range
in its training scans, and wider bounds in which a further scan of the same kind is expected (a prediction interval).
No number depends on which way round a volume is stored, and none tells who a patient is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats

from petscale.data.inspection import origins
from storage import geometry
from storage.reader import Cases
from storage.source import SUV, ImageSource
from trainers import filter_bank

FACT = "likeness"  # among the facts that weights carry: a ``Likeness`` as JSON
BLOCK_MM = 5.0  # edge of the blocks in which a volume is measured
APART_MM = 4.0  # between a voxel and the neighbours that its noise is measured against
LEAST_SUV = 0.3  # noise is told in parts of the uptake: not where there is next to none
MOST_SCANS = 60  # that are measured for one run: more would change no bound by much, and large ones take seconds each
WRONG = 0.01  # share of scans of the same kind that may lie outside the bounds of any number
TOLERANCE = 1e-3  # in parts of half the bounds' distance: another machine rounds otherwise

# How many patients what is known beforehand of the spread counts for.  Few patients alone tell no spread: of three the
# bounds of a number would lie 38 of their standard deviations from their mean.
BEFOREHAND = 2

Bins = NDArray[np.float64]
Edges = tuple[float, float, float]


@dataclass(frozen=True)
class Measure:
    """One number.

    Args:
        words: what it is called.
        unit: of it, as it is shown.
        spread: standard deviation between patients of one protocol, as expected before any is seen; of the logarithm
            where ``log``.
        log: whether it is compared as a ratio.
    """

    words: str
    unit: str
    spread: float
    log: bool = True


MEASURES: Mapping[str, Measure] = {
    "noise": Measure("noise in parts of the uptake", "%", 0.1),
    "noise_hu": Measure("noise of soft tissue", "HU", 0.2),
    "tenth_suv": Measure("uptake of the body's coolest tenth", "SUV", 0.25),
    "median_suv": Measure("median uptake of the body", "SUV", 0.2),
    "ninetieth_suv": Measure("uptake of the body's hottest tenth", "SUV", 0.25),
    "hottest_suv": Measure("uptake of the body's hottest hundredth", "SUV", 0.4),
    "along": Measure("distance of the uptake from the body's middle along it", "% of its half length", 3.0, log=False),
    "hot_along": Measure(
        "distance of the hottest hundredth from the body's middle along it", "% of its half length", 8.0, log=False
    ),
    "hot_across": Measure("distance of the hottest hundredth from the body's axis", "% of its radius", 8.0, log=False),
    "lung": Measure("part of the body that is as thin as lung", "%", 4.0, log=False),
    "fat": Measure("part of the body that is as dense as fat", "%", 6.0, log=False),
    "bone": Measure("part of the body that is as dense as bone", "%", 2.0, log=False),
    "length": Measure("length of the body in the scan", "mm", 0.15),
    "section": Measure("mean cross-section of the body", "cm2", 0.2),
    "classes": Measure("distance (0 to 1) of its levels and contrasts from the training scans'", "", 0.03, log=False),
}


@dataclass(frozen=True)
class Measured:
    """What is measured in one scan.

    Args:
        numbers: by the names of ``MEASURES`` but for ``classes``; those that the scan does not have are missing.
        classes: share of the body's blocks in each of ``filter_bank``'s classes; None for a CT.
        spacing_mm: voxel edges (z, y, x).
    """

    numbers: Mapping[str, float]
    classes: Bins | None
    spacing_mm: Edges


@dataclass(frozen=True)
class Bounds:
    """Where a number lies.

    Args:
        low, high: in the training scans.
        least, most: in scans of the same kind, but for few.
    """

    low: float
    high: float
    least: float
    most: float


@dataclass(frozen=True)
class Likeness:
    """What training scans are like in numbers, and what they state of themselves.

    Args:
        cases: how many were measured.
        bounds: by the names of ``MEASURES``.
        classes: mean shares of the classes, of every kind of scan that the run starts from.
        lowest_mm, highest_mm: the range of their voxel edges (z, y, x).
        tracers, nuclides: that any of them states.
    """

    cases: int
    bounds: Mapping[str, Bounds]
    classes: tuple[tuple[float, ...], ...]
    lowest_mm: Edges
    highest_mm: Edges
    tracers: frozenset[str] = frozenset()
    nuclides: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, rounded to six digits."""
        bounds = {name: {k: _rounded(v) for k, v in asdict(one).items()} for name, one in self.bounds.items()}
        return {
            "cases": self.cases,
            "bounds": bounds,
            "classes": [[_rounded(share) for share in one] for one in self.classes],
            "lowest_mm": [_rounded(mm) for mm in self.lowest_mm],
            "highest_mm": [_rounded(mm) for mm in self.highest_mm],
            "tracers": sorted(self.tracers),
            "nuclides": sorted(self.nuclides),
        }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def from_json(content: Mapping[str, Any]) -> Likeness:
    """Inverse of ``Likeness.to_json``; numbers that this version does not measure are passed over.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: not what ``to_json`` gives.
    """
    bounds = {
        name: _checked(name, Bounds(**{key: _finite(one[key]) for key in ("low", "high", "least", "most")}))
        for name, one in content["bounds"].items()
        if name in MEASURES
    }
    classes = tuple(tuple(_finite(share) for share in one) for one in content["classes"])
    if any(len(one) != filter_bank.COARSE.count for one in classes):
        raise ValueError("other classes")
    return Likeness(
        int(content["cases"]),
        bounds,
        classes,
        _edges(content["lowest_mm"]),
        _edges(content["highest_mm"]),
        frozenset(map(str, content["tracers"])),
        frozenset(map(str, content["nuclides"])),
    )


def _checked(name: str, bounds: Bounds) -> Bounds:
    lowest = 0 if MEASURES[name].log else -math.inf
    if not lowest < bounds.least < bounds.most or bounds.most <= 0:
        raise ValueError("no bounds")
    return bounds


def _edges(value: Any) -> Edges:
    z, y, x = map(_finite, value)
    if min(z, y, x) <= 0:
        raise ValueError("no voxel size")
    return z, y, x


def _finite(value: Any) -> float:
    if not math.isfinite(found := float(value)):
        raise ValueError("no number")
    return found


# One scan


def measure(image: ImageSource) -> Measured:
    """Measure a PET in SUVbw or a CT in HU, slab by slab."""
    spacing_mm = image.grid.spacing_mm
    cuts = [_cuts(length, mm) for length, mm in zip(image.grid.shape, spacing_mm, strict=True)]
    rows = []
    for first in range(0, len(cuts[0]) - 1, 8):
        ends = cuts[0][first : first + 9]
        slab = image.read(ends[0], ends[-1])
        inner = ([cut - ends[0] for cut in ends], cuts[1], cuts[2])
        rows.append((_means(slab, inner), _means(_against_neighbours(slab, spacing_mm), inner)))
    coarse, squares = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    z, y, x = (n * mm / count for n, mm, count in zip(image.grid.shape, spacing_mm, coarse.shape, strict=True))
    inside = geometry.body_mask(coarse, image.units, (z, y, x), geometry.body_scale(image.grid))
    filled = int(np.count_nonzero(inside.any((1, 2))))
    numbers: dict[str, float] = {
        "length": filled * z,
        "section": np.count_nonzero(inside) / max(filled, 1) * y * x / 100,
    }
    if image.units == SUV:
        numbers |= _of_pet(coarse, squares, inside) | _places(coarse, inside, (y, x))
        classes: Bins | None = _classes(coarse, inside, (z, y, x))
    else:
        numbers |= _of_ct(coarse, squares, inside)
        classes = None
    usable = {name: float(v) for name, v in numbers.items() if math.isfinite(v) and (v > 0 or not MEASURES[name].log)}
    return Measured(usable, classes, spacing_mm)


def _of_pet(coarse: NDArray[np.float32], squares: NDArray[np.float32], inside: NDArray[np.bool_]) -> dict[str, float]:
    tenth, median, ninetieth, hottest = np.quantile(coarse[inside], (0.1, 0.5, 0.9, 0.99))
    level = ndimage.uniform_filter(coarse, 3)
    warm = inside & (level > LEAST_SUV)
    noise = 100 * float(np.median(np.sqrt(squares[warm]) / level[warm])) if warm.any() else math.nan
    return {
        "noise": noise,
        "tenth_suv": tenth,
        "median_suv": median,
        "ninetieth_suv": ninetieth,
        "hottest_suv": hottest,
    }


def _places(
    coarse: NDArray[np.float32], inside: NDArray[np.bool_], spacing_mm: tuple[float, float]
) -> dict[str, float]:
    """Where the uptake lies: along the body from its middle, and across it from the middle of each slice."""
    uptake = np.clip(coarse[inside], 0, None)
    z, y, x = np.nonzero(inside)
    along = np.abs(z - (z.min() + z.max()) / 2) / ((z.max() - z.min() + 1) / 2)
    area = np.bincount(z)
    middle = [np.bincount(z, places) / np.maximum(area, 1) for places in (y, x)]
    away = np.hypot((y - middle[0][z]) * spacing_mm[0], (x - middle[1][z]) * spacing_mm[1])
    radius = np.sqrt(area[z] * spacing_mm[0] * spacing_mm[1] / np.pi)
    hot = uptake >= np.quantile(uptake, 0.99)
    return {
        "along": 100 * float((uptake * along).sum() / uptake.sum()) if uptake.any() else math.nan,
        "hot_along": 100 * float(along[hot].mean()),
        "hot_across": 100 * float((away / radius)[hot].mean()),
    }


def _of_ct(coarse: NDArray[np.float32], squares: NDArray[np.float32], inside: NDArray[np.bool_]) -> dict[str, float]:
    hu = coarse[inside]
    soft = inside & (coarse > 0) & (coarse < 100)
    noise = float(np.median(np.sqrt(squares[soft]))) if soft.any() else math.nan
    return {
        "noise_hu": noise,
        "lung": 100 * float(np.mean(hu < -500)),
        "fat": 100 * float(np.mean((hu > -200) & (hu < -20))),
        "bone": 100 * float(np.mean(hu > 150)),
    }


def _cuts(length: int, spacing_mm: float) -> list[int]:
    """Cuts of an axis into blocks of about ``BLOCK_MM``; they are the same counted from the other end."""
    count = max(1, min(length, round(length * spacing_mm / BLOCK_MM)))
    count -= (length - count) % 2 if count > 1 and length % 2 else 0  # an odd length has no cut in its middle
    half = [index * length // count for index in range((count + 1) // 2 + (count % 2 == 0))]
    return sorted({*half, *(length - cut for cut in half)})


def _means(slab: NDArray[np.float32], cuts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Mean of every block between cuts along (z, y, x)."""
    sums: NDArray[np.float64] = slab.astype(np.float64)
    for axis, ends in enumerate(cuts):
        sums = np.add.reduceat(sums, ends[:-1], axis=axis)
        sums /= np.diff(ends).reshape([-1 if one == axis else 1 for one in range(3)])
    return sums.astype(np.float32)


def _against_neighbours(slab: NDArray[np.float32], spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """Square of a voxel's distance to the mean of the four neighbours in its slice that are about ``APART_MM`` away."""
    y, x = (max(1, round(APART_MM / mm)) for mm in spacing_mm[1:])
    around = np.pad(slab, ((0, 0), (y, y), (x, x)), mode="edge")
    neighbours = (
        around[:, : -2 * y, x:-x] + around[:, 2 * y :, x:-x] + around[:, y:-y, : -2 * x] + around[:, y:-y, 2 * x :]
    )
    return np.square(slab - neighbours / np.float32(4))


def _classes(coarse: NDArray[np.float32], inside: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> Bins:
    """Share of the body's blocks in each class."""
    box = ndimage.find_objects(inside.view(np.uint8))[0]
    body, cut = inside[box], torch.from_numpy(np.ascontiguousarray(coarse[box]))
    z, y, x = filter_bank.reach(spacing_mm)
    around = torch.nn.functional.pad(cut[None, None], (x, x, y, y, z, z), mode="replicate")
    bank = filter_bank.members(around, torch.tensor([spacing_mm]), (z, y, x))
    found = filter_bank.COARSE.of(bank)[0].numpy()[body]
    counts: Bins = np.bincount(found, minlength=filter_bank.COARSE.count) / len(found)
    return counts


# All training scans


def learn(cohort: Cases, cases: Iterable[str], images: Sequence[str]) -> Likeness:
    """Measure training scans.

    Args:
        cohort: holds them.
        cases: their names, in any order; where they have more than ``MOST_SCANS`` scans, some evenly among the names.
        images: that the run starts from; a case may lack some.
    """
    names = sorted(cases)
    most = max(1, MOST_SCANS // max(1, len(images)))
    names = [names[index * len(names) // most] for index in range(most)] if len(names) > most else names
    found: dict[str, list[Measured]] = {}
    stated: dict[str, set[str]] = {"tracer": set(), "nuclide": set()}
    count = 0
    for case in map(cohort.case, names):
        there = [name for name in images if name in case.images]
        count += bool(there)
        for name in there:
            found.setdefault(name, []).append(measure(case.image(name)))
            for facts in origins(case.image(name).provenance):
                for fact, values in stated.items():
                    values |= {str(facts[fact])} if facts.get(fact) else set()
    summary = summarised(list(found.values()), count)
    return replace(summary, tracers=frozenset(stated["tracer"]), nuclides=frozenset(stated["nuclide"]))


def summarised(kinds: Sequence[Sequence[Measured]], cases: int) -> Likeness:
    """Return the ranges and bounds of what was measured.

    Args:
        kinds: of every kind of image, as of every dose, what was measured in each case; one scan or more.
        cases: how many there are.
    """
    values = {name: [[one.numbers[name] for one in kind if name in one.numbers] for kind in kinds] for name in MEASURES}
    values["classes"] = [_distances(kinds)]
    there = {name: found for name, each in values.items() if (found := [kind for kind in each if kind])}
    bounds = {name: _bounds(MEASURES[name], found, WRONG / len(there)) for name, found in there.items()}
    means = [np.mean([one.classes for one in kind if one.classes is not None], axis=0) for kind in _with_classes(kinds)]
    edges = np.array([one.spacing_mm for kind in kinds for one in kind])
    low, high = edges.min(0).tolist(), edges.max(0).tolist()
    classes = tuple(tuple(mean.tolist()) for mean in means)
    return Likeness(cases, bounds, classes, (low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _with_classes(kinds: Sequence[Sequence[Measured]]) -> list[Sequence[Measured]]:
    return [kind for kind in kinds if kind and kind[0].classes is not None]


def _distances(kinds: Sequence[Sequence[Measured]]) -> list[float]:
    """How far each training scan's classes are from those of the others of its kind; none where a kind has one."""
    found = []
    for kind in _with_classes(kinds):
        shares = np.array([one.classes for one in kind])
        others = (shares.sum(0) - shares) / max(len(shares) - 1, 1)
        found += [_hellinger(one, rest) for one, rest in zip(shares, others, strict=True)] if len(shares) > 1 else []
    return found


def _hellinger(one: Bins, other: Bins) -> float:
    return math.sqrt(max(0.0, 1 - float(np.sqrt(one * np.asarray(other)).sum())))


def _bounds(of: Measure, kinds: Sequence[Sequence[float]], wrong: float) -> Bounds:
    """The range of all kinds together, and the bounds from the lowest kind's to the highest kind's.

    Of n values with mean m the next lies in m +- t s sqrt(1 + 1/n), with Student's t of as many degrees of freedom as
    the spread s was found with: n - 1 and ``BEFOREHAND``; but for a share ``wrong`` of them, half on either side.
    """
    least, most = [], []
    for values in kinds:
        told = np.log(values) if of.log else np.asarray(values)
        n, mean = len(told), float(told.mean())
        degrees = BEFOREHAND + n - 1
        spread = math.sqrt((BEFOREHAND * of.spread**2 + float(np.square(told - mean).sum())) / degrees)
        reach = stats.t.ppf(1 - wrong / 2, degrees) * spread * math.sqrt(1 + 1 / n)
        least.append(mean - reach)
        most.append(mean + reach)
    everything = [value for values in kinds for value in values]
    low, high = min(everything), max(everything)
    back = math.exp if of.log else float
    return Bounds(low, high, min(low, back(min(least))), max(high, back(max(most))))


# A new scan against them


def differences(known: Likeness, found: Measured) -> list[str]:
    """Say in what a scan is unlike the training scans, a sentence per number outside its bounds, the farthest first."""
    by = sorted(distances(known, found).items(), key=lambda one: -one[1])
    values = {**found.numbers, "classes": _nearest(known, found)}
    return [_sentence(name, values[name], known) for name, distance in by if distance > 1 + TOLERANCE]


def distances(known: Likeness, found: Measured) -> dict[str, float]:
    """How far each number of a scan is from the middle of its bounds: 1 at a bound, more beyond it."""
    values = {**found.numbers, "classes": _nearest(known, found)}
    result = {}
    for name, bounds in known.bounds.items():
        if name not in values or math.isnan(values[name]):
            continue
        told, least, most = (_told(name, one) for one in (values[name], bounds.least, bounds.most))
        if name == "classes":
            result[name] = told / most  # nearer than usual is no fault
        else:
            result[name] = abs(told - (least + most) / 2) / ((most - least) / 2)
    return result


def _told(name: str, value: float) -> float:
    return math.log(value) if MEASURES[name].log else value


def _nearest(known: Likeness, found: Measured) -> float:
    if found.classes is None or not known.classes:
        return math.nan
    return min(_hellinger(found.classes, np.array(mean)) for mean in known.classes)


def _sentence(name: str, value: float, known: Likeness) -> str:
    of, bounds = MEASURES[name], known.bounds[name]
    unit = f" {of.unit}" if of.unit else ""
    low, high = _shown(bounds.low), _shown(bounds.high)
    return f"{of.words} {_shown(value)}{unit}, trained on {low if low == high else f'{low} to {high}'}{unit}"


def _shown(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
