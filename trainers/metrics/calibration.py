"""A standard deviation of several images, calibrated: how wide an interval holds the full dose as often as it says.

The standard deviation s over mirror images or runs says where these disagree.  It knows neither the noise of the full
dose, which no image foretells, nor the errors that all images share, and of two images it is near 0 now and then by
chance: a factor alone gives intervals that are far too narrow there (docs/results/calibration.md).  In every band of
SUV of their mean m,

    c = sqrt(noise^2 + (factor * s)^2)

takes its place.  It rises with s.  Both numbers come from validation patients: first the squared difference of m and
the full dose is regressed on s^2, then both are scaled so that m +- 1.645 c holds 90 % of the voxels, as the mean over
patients.  The interval is one for the full-dose *scan*, noise included, and not for the truth behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from storage.source import ImageSource
from trainers.metrics.slabs import slabs

EDGES_SUV = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # lower ends of the bands; the last one has no upper end
LEVEL = 0.9  # of the intervals that are calibrated
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # at which coverage is looked at
AIM = (0.87, 0.93)  # of the coverage at ``LEVEL``
FEWEST_PATIENTS = 2  # a band with one patient says nothing of the next one
FEWEST_VOXELS = 100  # of a patient in a band

Counts = NDArray[np.int64]

# Standard deviations and absolute differences in SUV, counted in bins of equal ratio: 10 % and 2 % wide.
_SPREAD = np.concatenate([[0.0], np.geomspace(1e-4, 1e2, 145)])
_ERROR = np.concatenate([[0.0], np.geomspace(1e-4, 1e3, 801)])
_S = np.concatenate([[0.0], np.sqrt(_SPREAD[1:-1] * _SPREAD[2:])])  # what a bin stands for
_E = np.concatenate([[0.5e-4], np.sqrt(_ERROR[1:-1] * _ERROR[2:])])


def tally(mean: ImageSource, deviation: ImageSource, full: ImageSource, body: ImageSource) -> Counts:
    """Count a scan's voxels inside the body, slab by slab.

    Args:
        mean: what was synthesized, in SUVbw; its bands are counted apart.
        deviation: its standard deviation, not calibrated, in SUV.
        full: the full dose in SUVbw.
        body: greater than 0.5 inside the patient.

    Returns:
        Voxels by (band of the mean, bin of the deviation, bin of |full dose - mean|).
    """
    found = np.zeros((len(EDGES_SUV), len(_S), len(_E)), np.int64)
    for z0, z1 in slabs(mean.grid.shape):
        inside = body.read(z0, z1) > 0.5
        m, s, x = (one.read(z0, z1)[inside].astype(np.float64) for one in (mean, deviation, full))
        bins = (
            np.searchsorted(EDGES_SUV, m, side="right") - 1,
            np.searchsorted(_SPREAD[1:-1], s, side="right"),
            np.searchsorted(_ERROR[1:-1], np.abs(x - m), side="right"),
        )
        np.add.at(found, bins, 1)
    return found


@dataclass(frozen=True)
class Band:
    """What a standard deviation becomes in one band of SUV.

    Args:
        low_suv: where the band begins; it ends where the next one begins.
        noise_suv: what c is where the images agree, in SUV.
        factor: of the standard deviation.
        patients: that both were learned from.
    """

    low_suv: float
    noise_suv: float
    factor: float
    patients: int


@dataclass(frozen=True)
class Calibration:
    """What a standard deviation becomes, band after band; the first one begins at SUV 0, the last one has no end.

    Args:
        bands: one or more, by rising SUV.
    """

    bands: tuple[Band, ...]

    def spread(self, mean: NDArray[np.float32], deviation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the calibrated standard deviation in SUV, of a mean and its deviation in SUV, all of one shape."""
        place = np.searchsorted([band.low_suv for band in self.bands[1:]], mean, side="right")
        noise = np.array([band.noise_suv for band in self.bands], np.float32)[place]
        factor = np.array([band.factor for band in self.bands], np.float32)[place]
        calibrated: NDArray[np.float32] = np.hypot(noise, factor * deviation)
        return calibrated


@dataclass(frozen=True)
class Coverage:
    """How often intervals held the full dose in one band.

    Args:
        low_suv: where the band begins.
        observed: at each of ``LEVELS``, the share of voxels, mean over patients.
        least: the smallest share of a patient at ``LEVEL``.
        most: the largest one.
        patients: with at least ``FEWEST_VOXELS`` voxels in the band.
    """

    low_suv: float
    observed: tuple[float, ...]
    least: float
    most: float
    patients: int

    @property
    def at_level(self) -> float:
        """The coverage at ``LEVEL``."""
        return self.observed[LEVELS.index(LEVEL)]

    @property
    def within_aim(self) -> bool:
        """Whether that lies in ``AIM``."""
        return AIM[0] <= self.at_level <= AIM[1]


def learn(patients: Sequence[Counts]) -> Calibration | None:
    """Learn a calibration; patients count alike, however many voxels or scans they have.

    A band with too few patients is learned together with the next ones above, the last one with the one below.

    Args:
        patients: the sum of the tallies of each one's scans.

    Returns:
        The calibration; None where fewer than ``FEWEST_PATIENTS`` have ``FEWEST_VOXELS`` voxels at all.
    """
    learned = [
        _learned(EDGES_SUV[first], [share for one in patients if (share := _share(one, first, end)) is not None])
        for first, end in _together(patients)
    ]
    return Calibration(tuple(learned)) if learned else None


def check(calibration: Calibration, patients: Sequence[Counts]) -> tuple[Coverage, ...]:
    """Look at how often the calibrated intervals hold the full dose, in every band of which patients have voxels."""
    found = []
    places = [*(EDGES_SUV.index(band.low_suv) for band in calibration.bands), len(EDGES_SUV)]
    for band, first, end in zip(calibration.bands, places[:-1], places[1:], strict=True):
        shares = [share for one in patients if (share := _share(one, first, end)) is not None]
        if shares:
            spread = np.hypot(band.noise_suv, band.factor * _S)
            summed = [_summed(share) for share in shares]
            each = np.array([[_held(one, spread, level) for level in LEVELS] for one in summed])
            at = each[:, LEVELS.index(LEVEL)]
            observed = tuple(map(float, each.mean(axis=0)))
            found.append(Coverage(band.low_suv, observed, float(at.min()), float(at.max()), len(shares)))
    return tuple(found)


def _together(patients: Sequence[Counts]) -> list[tuple[int, int]]:
    """Bands that are learned together, as (first, end): each has patients enough."""
    groups: list[tuple[int, int]] = []
    first = 0
    for end in range(1, len(EDGES_SUV) + 1):
        if sum(_share(one, first, end) is not None for one in patients) >= FEWEST_PATIENTS:
            groups.append((first, end))
            first = end
    if groups:
        groups[-1] = (groups[-1][0], len(EDGES_SUV))
    return groups


def _share(counts: Counts, first: int, end: int) -> NDArray[np.float64] | None:
    """Shares of some bands' voxels by (bin of the deviation, bin of the difference); None of too few voxels."""
    within = counts[first:end].sum(axis=0)
    shares: NDArray[np.float64] = within / max(int(within.sum()), 1)
    return shares if within.sum() >= FEWEST_VOXELS else None


def _learned(low_suv: float, shares: Sequence[NDArray[np.float64]]) -> Band:
    noise, slope = _regressed(np.mean(shares, axis=0))
    shape = np.sqrt(noise + slope * _S**2)
    summed = [_summed(share) for share in shares]
    low, high = 1e-3, 1e3
    for _ in range(40):  # coverage rises with the scale
        scale = float(np.sqrt(low * high))
        covered = np.mean([_held(one, scale * shape, LEVEL) for one in summed])
        low, high = (scale, high) if covered < LEVEL else (low, scale)
    return Band(low_suv, high * float(np.sqrt(noise)), high * float(np.sqrt(slope)), len(shares))


def _regressed(shares: NDArray[np.float64]) -> tuple[float, float]:
    """Regress the squared difference on the squared deviation: constant and slope, neither below 0.

    Weights fall with the deviation, as the squared difference varies the more the larger it is.
    """
    weight = shares.sum(axis=1)
    there = weight > 0
    x, weight = _S[there] ** 2, weight[there]
    y = shares[there] @ _E**2 / weight
    weight = weight / (float(x @ weight) + x + 1e-12) ** 2
    weight /= weight.sum()
    x_mean, y_mean = float(weight @ x), float(weight @ y)
    varied = float(weight @ (x - x_mean) ** 2)
    slope = max(float(weight @ ((x - x_mean) * (y - y_mean))) / varied, 0.0) if varied > 0 else 0.0
    least = max(0.01 * y_mean, 1e-12)  # no interval is empty where images happen to agree
    constant = y_mean - slope * x_mean
    return (constant, slope) if constant >= least else (least, (y_mean - least) / x_mean if x_mean > 0 else 0.0)


def _summed(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per bin of the deviation, the share of voxels whose difference is below each end of ``_ERROR``."""
    return np.concatenate([np.zeros((len(share), 1)), np.cumsum(share, axis=1)], axis=1)


def _held(summed: NDArray[np.float64], spread: NDArray[np.float64], level: float) -> float:
    """The share of voxels whose difference is within the interval of a level, by the spread in each bin."""
    half = norm.ppf((1 + level) / 2) * spread
    place = np.interp(half, _ERROR, np.arange(len(_ERROR)))  # within a bin, voxels are taken as spread evenly
    below = np.minimum(place.astype(int), len(_ERROR) - 2)
    rows = np.arange(len(summed))
    low, high = summed[rows, below], summed[rows, below + 1]
    return float((low + (place - below) * (high - low)).sum())
