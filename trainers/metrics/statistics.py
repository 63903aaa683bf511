"""Statistics of scores over cases: means with intervals, paired gains with tests, Holm's correction; proportions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, chi2, t, wilcoxon

Interval = tuple[float, float]
FEWEST_FOR_A_TEST = 6  # two-sided Wilcoxon cannot fall below 0.05 with five pairs (smallest p is 2 / 2**n)


@dataclass(frozen=True)
class Gain:
    """How much better one image is than another, case by case.

    Args:
        over: name of the image it is compared with.
        mean: mean over cases of the difference of scores; sd over cases (ddof 1; NaN for one case).
        num_better: cases in which the difference is positive.
        num_cases: cases that both images have.
        p_value: two-sided Wilcoxon signed-rank test, None with fewer than ``FEWEST_FOR_A_TEST`` cases, without any
            difference, or where a difference is not finite.
    """

    over: str
    mean: float
    sd: float
    num_better: int
    num_cases: int
    p_value: float | None


def paired_gain(ours: Mapping[str, float], theirs: Mapping[str, float], *, over: str, sign: int = 1) -> Gain | None:
    """Return how much better one image is than another over the cases that both have, None without such a case.

    Args:
        ours: case -> score of the one.
        theirs: case -> score of the other.
        over: name of the other.
        sign: 1 where higher is better, -1 where lower is.
    """
    gains = np.array([sign * (ours[case] - theirs[case]) for case in ours if case in theirs])
    if not gains.size:
        return None
    tested = len(gains) >= FEWEST_FOR_A_TEST and bool(np.isfinite(gains).all()) and bool(gains.any())
    p_value = float(wilcoxon(gains).pvalue) if tested else None
    mean, sd = mean_sd(gains)
    return Gain(over, mean, sd, int((gains > 0).sum()), len(gains), p_value)


def mean_sd(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and the standard deviation (ddof 1) of at least one value.

    The standard deviation is NaN for one value and where a value is not finite.
    """
    if not np.isfinite(values).all():
        return float(values.mean()), float("nan")
    return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else float("nan")


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """Return the 95 % interval of a mean by Student's t; NaN for one value and where a value is not finite."""
    mean, sd = mean_sd(values)
    half = float(t.ppf(0.975, max(values.size - 1, 1))) * sd / float(np.sqrt(values.size))
    return mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down procedure (Scand. J. Statist. 6, 1979, 65).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below the one before it or above 1.
    """
    found = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        found[index] = highest
    return found


def clopper_pearson(successes: int, trials: int) -> Interval:
    """Return the exact 95 % interval of a proportion."""
    low = float(beta.ppf(0.025, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(0.975, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def poisson_interval(events: int, scans: int) -> Interval:
    """Return the exact 95 % interval of a rate per scan (Garwood)."""
    low = float(chi2.ppf(0.025, 2 * events)) / 2 if events else 0.0
    return low / scans, float(chi2.ppf(0.975, 2 * events + 2)) / 2 / scans
