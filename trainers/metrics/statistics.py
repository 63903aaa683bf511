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


@dataclass(frozen=True)
class Agreement:
    """How far measurements lie from a reference, with several measurements per patient.

    Args:
        mean: over patients, of a patient's mean difference.
        interval: 95 % interval of that mean; patients are the unit.
        limits: 95 % limits of agreement of one measurement.
        num: measurements.
        num_patients: patients that they are of.
    """

    mean: float
    interval: Interval
    limits: Interval
    num: int
    num_patients: int


def agreement(patients: Sequence[NDArray[np.float64]]) -> Agreement:
    """Return mean and limits of agreement of differences of which a patient may have several.

    The limits rest on the variance between patients and within them, from a one-way analysis of variance, as for a true
    value that varies (Bland, Altman, J. Biopharm. Stat. 17, 2007, 571, section 3): lesions of one patient are alike.

    Args:
        patients: (lesions,) finite differences of each patient, at least one of each and one patient.
    """
    means = np.array([values.mean() for values in patients])
    sizes = np.array([values.size for values in patients], float)
    total, count = float(sizes.sum()), len(patients)
    pooled = np.concatenate(patients)
    if total < 2:
        variance = float("nan")
    elif count == 1 or total == count:  # one patient, or one lesion of each: nothing to part
        variance = float(pooled.var(ddof=1))
    else:
        within = sum(float(np.square(values - values.mean()).sum()) for values in patients) / (total - count)
        between = float((sizes * np.square(means - pooled.mean())).sum()) / (count - 1)
        alike = (total**2 - float(np.square(sizes).sum())) / ((count - 1) * total)
        variance = within + max(between - within, 0.0) / alike
    mean, half = float(means.mean()), 1.96 * float(np.sqrt(variance))
    return Agreement(mean, mean_interval(means), (mean - half, mean + half), int(total), count)


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
