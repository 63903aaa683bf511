"""A model observer: how well a known lesion can be told from its absence, by a channelized Hotelling observer.

Channels are differences of Gaussians in spatial frequency, alike in all directions, as the eye's are taken to be
(Abbey and Barrett, J. Opt. Soc. Am. A 18 (2001) 473; sparse, Q = 2, alpha = 2).  The observer is the best linear one on
their outputs (Barrett and Myers, Foundations of Image Science, 2004, ch. 14).  It is trained on other patients than it
judges, so that it cannot know their noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from trainers.metrics.statistics import Interval

LOWEST_PER_MM = 0.006  # sigma of the lowest channel's inner Gaussian
ALPHA, Q, CHANNELS = 2.0, 2.0, 4
SENSITIVITY = 0.8
DRAWS = 1000
Values = NDArray[np.float64]


def channels(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Values:
    """Return the channels as templates in space, (channels, z, y, x), centred on the voxel ``shape // 2``.

    Args:
        shape: of a cube about a lesion.
        spacing_mm: voxel edges (z, y, x).
    """
    axes = [np.fft.fftfreq(n, d) for n, d in zip(shape, spacing_mm, strict=True)]
    square = sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij"))
    found = []
    for number in range(CHANNELS):
        sigma = LOWEST_PER_MM * ALPHA**number
        gain = np.exp(-square / (2 * (Q * sigma) ** 2)) - np.exp(-square / (2 * sigma**2))
        found.append(np.fft.fftshift(np.fft.ifftn(gain).real))
    return np.stack(found)


@dataclass(frozen=True)
class Detectability:
    """How well lesions are told from their absence.

    Args:
        auc: area under the ROC curve, 0.5 for guessing.
        interval: its 95 % interval, by a bootstrap over groups; NaN for fewer than three.
        d_prime: the distance of two Gaussians that have this area.
        false_at_80: part of places without a lesion that are called one where 80 % of lesions are.
    """

    auc: float
    interval: Interval
    d_prime: float
    false_at_80: float


def ratings(present: Values, absent: Values, groups: Sequence[str]) -> tuple[Values, Values]:
    """Rate every place with and without a lesion by an observer that was trained on the other groups.

    Args:
        present: (places, channels), outputs where a lesion is.
        absent: the same places without one.
        groups: of every place, which patient (or place) it is of; two different ones at least.

    Returns:
        Ratings of both, in standard deviations of the training places' ratings, higher for a lesion.
    """
    names = np.array(groups)
    rated = np.zeros((2, len(names)))
    for name in dict.fromkeys(groups):
        held = names == name
        with_lesion, without = present[~held], absent[~held]
        difference = with_lesion.mean(axis=0) - without.mean(axis=0)
        spread = _covariance(with_lesion) + _covariance(without)
        spread += np.eye(len(difference)) * (1e-6 * np.trace(spread) / len(difference) + 1e-30)
        template = np.linalg.solve(spread / 2, difference)
        scale = np.sqrt(max(float(template @ difference), 1e-30))
        middle = (with_lesion.mean(axis=0) + without.mean(axis=0)) / 2
        rated[0, held] = (present[held] - middle) @ template / scale
        rated[1, held] = (absent[held] - middle) @ template / scale
    return rated[0], rated[1]


def _covariance(rows: Values) -> Values:
    centred = rows - rows.mean(axis=0)
    return np.asarray(centred.T @ centred / max(len(rows) - 1, 1))


def detectability(present: Values, absent: Values, groups: Sequence[str]) -> Detectability:
    """Sum up ratings, as ``ratings`` returns them."""
    area = auc(present, absent)
    draws = _draws(groups)
    areas = [auc(present[one], absent[one]) for one in draws]
    threshold = float(np.quantile(present, 1 - SENSITIVITY))
    d_prime = float(np.sqrt(2) * norm.ppf(np.clip(area, 1e-6, 1 - 1e-6)))
    return Detectability(area, _central(areas), d_prime, float(np.mean(absent >= threshold)))


def difference(
    ours: tuple[Values, Values], theirs: tuple[Values, Values], groups: Sequence[str]
) -> tuple[float, Interval]:
    """Return our area less theirs on the same places, and its 95 % interval by a bootstrap over groups."""
    draws = _draws(groups)
    gains = [auc(ours[0][one], ours[1][one]) - auc(theirs[0][one], theirs[1][one]) for one in draws]
    return auc(*ours) - auc(*theirs), _central(gains)


def auc(present: Values, absent: Values) -> float:
    """Return the part of all pairs in which the lesion is rated higher; a tie counts half (Mann and Whitney)."""
    ranks = rankdata(np.concatenate([present, absent]))
    n, m = len(present), len(absent)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def _draws(groups: Sequence[str]) -> list[NDArray[np.intp]]:
    """Places of groups drawn with replacement; none for fewer than three groups."""
    names = list(dict.fromkeys(groups))
    if len(names) < 3:
        return []
    members = [np.flatnonzero(np.array(groups) == name) for name in names]
    rng = np.random.Generator(np.random.Philox(0))
    return [np.concatenate([members[one] for one in rng.integers(0, len(names), len(names))]) for _ in range(DRAWS)]


def _central(values: Sequence[float]) -> Interval:
    if not values:
        return float("nan"), float("nan")
    low, high = np.quantile(values, (0.025, 0.975)).tolist()
    return low, high
