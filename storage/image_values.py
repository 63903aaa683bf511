"""What the values of an image can be: SUV, HU, counts of one scan.  What cannot be is refused, the unusual noted."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError

PLATEAU_VOXELS = 8  # with the very same value at a limit of the stored type; noise has no two in a hot spot
SCALE_RATIO = 1.5  # between the uptake of two reconstructions of one scan; the smallest dose reduction factor is 2
IMPOSSIBLE = "no_suv"  # the note on values that cannot be SUV
HIGHEST_MEDIAN_SUV, USUAL_MEDIAN_SUV = 20.0, (0.1, 5.0)  # inside the body: what can be, and what is usual
MINIMUM_SUV, MAXIMUM_SUV, USUAL_MAXIMUM_SUV = -200.0, 1e5, 1000.0
NEGATIVE_SUV, NEGATIVE_SHARE = -5.0, 0.05  # below it no noise of a reconstruction lies; as share of the positive uptake
FAT_HU, SOFT_TISSUE_HU = -50.0, 20.0  # every CT of a patient holds voxels below the first and above the second


def suv_doubts(statistics: Mapping[str, float], positive: float, negative: float, *, full: bool) -> list[str]:
    """Note what is unusual, and of the PET of the highest dose what cannot be SUV.

    The median inside the body is 0.3 to 1 for FDG, some 5 in a brain; activity in Bq/mL is a thousand times that.

    Args:
        statistics: min, max and body_median in SUV.
        positive: sum of all values but those below ``NEGATIVE_SUV``.
        negative: sum of those.
        full: whether it is the PET of the highest dose.
    """
    median, highest = statistics["body_median"], statistics["max"]
    if full and (median > HIGHEST_MEDIAN_SUV or statistics["min"] <= MINIMUM_SUV or not 0 < highest <= MAXIMUM_SUV):
        return [IMPOSSIBLE]
    found = []
    if not USUAL_MEDIAN_SUV[0] <= median <= USUAL_MEDIAN_SUV[1]:
        found.append("suv_median_unusual")
    if highest > USUAL_MAXIMUM_SUV:
        found.append("suv_maximum_unusual")
    if -negative > 0 and -negative > NEGATIVE_SHARE * positive:
        found.append("negative_uptake")
    return found


def check_scales(
    case: str,
    pets: Sequence[str],
    sources: Mapping[str, tuple[str, Mapping[str, object], Mapping[str, object] | None]],
    totals: Mapping[str, float],
) -> None:
    """Refuse a low dose thinned from the full dose that holds another activity: it is in another unit, or unscaled.

    A patient's uptake does not depend on how many counts were used; reconstruction's bias at low counts is a few
    percent.  Counts left unscaled are off by the dose reduction factor.

    Raises:
        InputError: PAIR_SCALE.
    """
    for image in pets[1:]:
        dose = sources[image][2]
        if dose is None or dose["relation"] != "thinned" or totals[pets[0]] <= 0:
            continue
        ratio = totals[image] / totals[pets[0]]
        if not 1 / SCALE_RATIO < ratio < SCALE_RATIO:
            raise InputError(
                "PAIR_SCALE",
                where=f"case {case}, image {image}",
                found=f"its total uptake is {ratio:.3g} times that of {pets[0]}, whose counts it shares",
                remedy="give both in one unit and on one scale; a low dose is divided by its share of the counts",
            )


def check_hu(where: str, low: float, high: float) -> None:
    """Refuse a CT that holds neither fat nor air, or no soft tissue: whatever its values are, they are not HU.

    A CT in 0..1, in 0..255 or with an offset of 1024 left in has the first fault; 0..1 within air has the second.
    """
    if low <= FAT_HU and high >= SOFT_TISSUE_HU:
        return
    lacking = f"no fat and no air (below {FAT_HU:g})" if low > FAT_HU else f"no soft tissue (above {SOFT_TISSUE_HU:g})"
    raise InputError(
        "CT_UNITS",
        where=where,
        found=f"values of {low:g} to {high:g}: {lacking}",
        remedy="give the CT in Hounsfield units (air is -1000, water 0), neither scaled nor shifted",
    )


def at_limit(slab: NDArray[np.float32], limit: float, before: float) -> tuple[int, int]:
    """Voxels that are at a limit of the stored type, and those from ``before`` on that are short of it."""
    at = int(np.count_nonzero(slab == np.float32(limit)))
    beyond = slab >= before if limit > before else slab <= before
    return at, int(np.count_nonzero(beyond)) - at


def saturated(clipped: Sequence[tuple[tuple[int, int], ...]]) -> bool:
    """Whether an image was cut off where its stored type ends: a plateau there, and values that rise to it.

    A scan scaled to its type has one voxel at the limit; padding and masks have many, and none short of it.
    """
    found = [np.sum(ends, axis=0) for ends in zip(*clipped, strict=True)]
    return any(at >= PLATEAU_VOXELS and 10 * short >= at for at, short in found)
