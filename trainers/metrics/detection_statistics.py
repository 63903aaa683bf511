"""Lesions found on many scans together: sensitivity, false positives per scan, FROC, McNemar, bias of SUVmax."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from trainers.metrics.detection import DetectionConfig, Found, Matching
from trainers.metrics.statistics import Interval, clopper_pearson, poisson_interval

FALSE_POSITIVES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)  # per scan, where a FROC curve is read
RESAMPLES = 2000


@dataclass(frozen=True)
class Detection:
    """Sensitivity and false positives, pooled over scans; intervals are of 95 %.

    Args:
        rule: what counts as found.
        num_scans: scans, those without a lesion among them; ``num_patients`` is what was resampled.
        num_lesions: true lesions; num_found of them were found.
        num_left_out: lesions the real PET does not show above the threshold.
        tpr: found / lesions, None without a lesion; tpr_interval after Clopper and Pearson, which takes lesions for
            independent; tpr_bootstrap over patients, which does not.
        num_false: false positives; false_per_scan with its exact Poisson interval and the bootstrap's.
        hot_over_lesions: volume above the threshold over the volume of true lesions; 1 is ideal, None without a lesion.
        seed: of the bootstrap.
    """

    rule: str
    num_scans: int
    num_patients: int
    num_lesions: int
    num_found: int
    num_left_out: int
    tpr: float | None
    tpr_interval: Interval | None
    tpr_bootstrap: Interval | None
    num_false: int
    false_per_scan: float
    false_interval: Interval
    false_bootstrap: Interval
    hot_over_lesions: float | None
    seed: int

    def json(self) -> dict[str, object]:
        """Return everything as JSON-able values."""
        return asdict(self)


def summarise(
    founds: Sequence[Found], config: DetectionConfig, *, seed: int, patients: Sequence[str] | None = None
) -> Detection:
    """Pool at least one scan by ``config.rule``.

    Args:
        founds: one per scan, found with ``config``.
        config: ``rule`` may be either: both were computed.
        seed: of the patients' bootstrap.
        patients: whose scan each is (``Case.subject``); None: every scan is another patient's.
    """
    hits = np.array([sum(found.at.found(config.rule)) for found in founds])
    lesions = np.array([len(found.shown) for found in founds])
    false = np.array([found.at.false(config.rule) for found in founds])
    who = list(patients) if patients is not None else [str(index) for index in range(len(founds))]
    order = {name: index for index, name in enumerate(dict.fromkeys(who))}
    group = np.array([order[name] for name in who])
    per_patient = np.zeros((4, len(order)), dtype=np.intp)
    for row, values in enumerate((hits, lesions, false, np.ones_like(hits))):
        np.add.at(per_patient[row], group, values)
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = per_patient[:, rng.integers(len(order), size=(RESAMPLES, len(order)))].sum(axis=-1)
    with_lesions = drawn[:, drawn[1] > 0]  # a resample without a lesion has no sensitivity
    num_found, num_lesions, num_false = int(hits.sum()), int(lesions.sum()), int(false.sum())
    lesion_ml = sum(lesion.volume_ml for found in founds for lesion in found.shown)
    return Detection(
        rule=config.text(),
        num_scans=len(founds),
        num_patients=len(order),
        num_lesions=num_lesions,
        num_found=num_found,
        num_left_out=sum(len(found.lesions) - len(found.shown) for found in founds),
        tpr=num_found / num_lesions if num_lesions else None,
        tpr_interval=clopper_pearson(num_found, num_lesions) if num_lesions else None,
        tpr_bootstrap=_central(with_lesions[0] / with_lesions[1]) if num_lesions else None,
        num_false=num_false,
        false_per_scan=num_false / len(founds),
        false_interval=poisson_interval(num_false, len(founds)),
        false_bootstrap=_central(drawn[2] / drawn[3]),
        hot_over_lesions=sum(found.at.hot_ml for found in founds) / lesion_ml if lesion_ml else None,
        seed=seed,
    )


def _central(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, (2.5, 97.5)).tolist()
    return low, high


@dataclass(frozen=True)
class FrocPoint:
    """Pooled sensitivity (0 where no scan has a lesion) and false positives per scan at one threshold."""

    threshold_suv: float
    tpr: float
    false_per_scan: float


@dataclass(frozen=True)
class Froc:
    """Free-response curve.

    Args:
        rule: what counts as found; its threshold is the operating point.
        operating: the point at the rule's threshold.
        points: every threshold, ascending; false positives need not fall, for foci join at low ones.
        envelope: upper envelope, (false positives per scan, TPR), both ascending.
        tpr_at: (false positives per scan allowed, highest TPR of a threshold that keeps to it); 0 where none does.
    """

    rule: str
    operating: FrocPoint
    points: tuple[FrocPoint, ...]
    envelope: tuple[tuple[float, float], ...]
    tpr_at: tuple[tuple[float, float], ...]

    def json(self) -> dict[str, object]:
        """Return everything as JSON-able values."""
        return asdict(self)


def froc(founds: Sequence[Found], config: DetectionConfig) -> Froc:
    """Pool at least one scan at every threshold, by ``config.rule``."""
    lesions = sum(len(found.shown) for found in founds)
    points = []
    for counts in zip(*(found.counts for found in founds), strict=True):
        hits = sum(sum(count.found(config.rule)) for count in counts)
        false = sum(count.false(config.rule) for count in counts)
        points.append(FrocPoint(counts[0].threshold_suv, hits / lesions if lesions else 0.0, false / len(founds)))
    envelope: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p.false_per_scan, -p.tpr)):
        if not envelope or point.tpr > envelope[-1][1]:
            envelope.append((point.false_per_scan, point.tpr))
    allowed = tuple((rate, max((t for f, t in envelope if f <= rate), default=0.0)) for rate in FALSE_POSITIVES)
    operating = next(point for point in points if point.threshold_suv == config.threshold_suv)
    return Froc(config.text(), operating, tuple(points), tuple(envelope), allowed)


@dataclass(frozen=True)
class Discordance:
    """Lesions that only one of two systems finds, and McNemar's exact two-sided p."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[Found], second: Sequence[Found], rule: Matching) -> Discordance:
    """Compare two systems on the same lesions; lesions of a patient are taken for independent, so p is too small.

    Args:
        first: one system's findings, scan by scan; second: the other's on the same scans.
        rule: how lesions are found.

    Raises:
        ValueError: if the lesions are not the same ones.
    """
    pairs = [
        pair
        for a, b in zip(first, second, strict=True)
        for pair in zip(a.at.found(rule), b.at.found(rule), strict=True)
    ]
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    decided = only_first + only_second
    p_value = float(binomtest(only_first, decided).pvalue) if decided else 1.0
    return Discordance(only_first, only_second, p_value)


@dataclass(frozen=True)
class Agreement:
    """Bland and Altman: mean difference, its standard deviation and limits of agreement (mean -+ 1.96 sd), in SUV."""

    num_lesions: int
    mean: float
    sd: float | None
    limits: Interval | None


def suvmax_bias(founds: Sequence[Found]) -> Agreement | None:
    """Synthesized minus real SUVmax over the true lesions of all scans; None without one, no sd with one."""
    gaps = np.array([lesion.synthesized_suvmax - lesion.real_suvmax for found in founds for lesion in found.shown])
    if not gaps.size:
        return None
    mean = float(gaps.mean())
    if gaps.size == 1:
        return Agreement(1, mean, None, None)
    sd = float(gaps.std(ddof=1))
    return Agreement(gaps.size, mean, sd, (mean - 1.96 * sd, mean + 1.96 * sd))
