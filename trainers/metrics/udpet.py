"""The local part of the Ultra-Low-Dose PET challenge's evaluator of 2022: errors of organs' features, and SCORE.

The organs are those of the labels; the evaluator has spheres in liver, heart and kidneys.

    MAPE   weighted mean of |p - r| / |r| x 100 over the features of an organ, then the mean over organs.
    SCORE  0.5 (0.4 PSNR + 0.2 SSIM - 0.4 NRMSE) - 0.5 MAPE; NRMSE as a fraction, SSIM at range 2, MAPE in per cent.

Corrected here, so that neither number is the challenge's own:
    The evaluator's SUV lacks decay; this one's is petscale's.
    It divides by 10 after weighting, although its weights sum to 1.
    Its total lesion metabolism counts voxels, not mL; the error is the same.
Left out, the weights divided by the sum of the rest (0.70):
    "PSNR" of an organ (0.15), which compares either image with the mask, not with the other.
    Three texture features (0.05 each: high grey-level run emphasis, zone percentage, joint average).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from storage.source import ImageSource
from trainers.metrics.definitions import Region, Score, ScoreDefinition
from trainers.metrics.identifiers import (
    CHALLENGE_SCORE,
    FEATURE_MEAN,
    FEATURE_MEAN_OVER_ORGANS,
    INSIDE,
    NO_MASK,
    REFERENCE_VALUE,
)
from trainers.metrics.presets import PRESETS
from trainers.metrics.slabs import SLAB_VOXELS, slabs

PSNR, SSIM, _, NRMSE = PRESETS["udpet2022"]  # SSIM at range 2

WEIGHTS = {
    "SUVmean": 0.20,
    "SUVmax": 0.20,
    "total metabolism": 0.15,
    "root mean square": 0.05,
    "90th percentile": 0.05,
    "median": 0.05,
}
ORGAN_MAPE = ScoreDefinition(
    "MAPE",
    "ROI",
    INSIDE,
    "%",
    normalisation=REFERENCE_VALUE,
    aggregation=FEATURE_MEAN,
    preset="udpet2022",
)
MAPE = replace(ORGAN_MAPE, region="whole", aggregation=FEATURE_MEAN_OVER_ORGANS)
SCORE = ScoreDefinition("SCORE", "whole", NO_MASK, "1", aggregation=CHALLENGE_SCORE, preset="udpet2022")


def organ_features(
    image: ImageSource, labels: ImageSource, organs: Sequence[Region], *, slab_voxels: int = SLAB_VOXELS
) -> dict[Region, dict[str, float]]:
    """Return the weighted features of every organ that has a voxel; the organs' voxels are held, never the volume."""
    parts: dict[Region, list[NDArray[np.float64]]] = {organ: [] for organ in organs}
    for z0, z1 in slabs(image.grid.shape, slab_voxels):
        mark = np.rint(labels.read(z0, z1)).astype(np.int32)
        present = set(np.flatnonzero(np.bincount(mark.ravel())).tolist())
        if wanted := [organ for organ in organs if organ.label in present]:
            slab = image.read(z0, z1).astype(np.float64)
            for organ in wanted:
                parts[organ].append(slab[mark == organ.label])
    return {organ: _features(np.concatenate(part), image.grid.voxel_ml) for organ, part in parts.items() if part}


def _features(values: NDArray[np.float64], voxel_ml: float) -> dict[str, float]:
    mean = float(values.mean())
    return {
        "SUVmean": mean,
        "SUVmax": float(values.max()),
        "total metabolism": mean * values.size * voxel_ml,
        "root mean square": float(np.sqrt(np.square(values).mean())),
        "90th percentile": float(np.percentile(values, 90)),
        "median": float(np.median(values)),
    }


def mape(reference: Mapping[str, float], features: Mapping[str, float]) -> float:
    """Weighted mean of the features' absolute errors in % of the reference; NaN where a reference value is 0."""
    if any(reference[name] == 0 for name in WEIGHTS):
        return float("nan")
    errors = {name: 100 * abs(features[name] - reference[name]) / abs(reference[name]) for name in WEIGHTS}
    return sum(weight * errors[name] for name, weight in WEIGHTS.items()) / sum(WEIGHTS.values())


def udpet_scores(
    case: str,
    reference: ImageSource,
    candidates: Mapping[str, ImageSource],
    organs: Sequence[Region],
    quality: Sequence[Score],
    *,
    labels: ImageSource,
    slab_voxels: int = SLAB_VOXELS,
) -> list[Score]:
    """Return MAPE of every organ and over organs, and SCORE, for every candidate; nothing where no organ has a voxel.

    Args:
        case: the case's alias.
        reference: the full-dose image in SUVbw; candidates and labels lie on its grid.
        candidates: name to image.
        organs: regions of kind ``organ``.
        quality: the candidates' scores by the preset ``udpet2022``.
        labels: integers.
        slab_voxels: size of the slabs.
    """
    truth = organ_features(reference, labels, organs, slab_voxels=slab_voxels)
    if not truth:
        return []
    scores = []
    for name, image in candidates.items():
        how = str(image.provenance.get("rule", ""))
        features = organ_features(image, labels, organs, slab_voxels=slab_voxels)
        errors = {organ: mape(truth[organ], features[organ]) for organ in truth}
        overall = sum(errors.values()) / len(errors)
        mine = {score.definition: score.value for score in quality if score.image == name}
        total = 0.5 * (0.4 * mine[PSNR] + 0.2 * mine[SSIM] - 0.4 * mine[NRMSE] / 100) - 0.5 * overall
        scores += [Score(case, name, o.name, o.kind, ORGAN_MAPE, error, None, how) for o, error in errors.items()]
        scores += [
            Score(case, name, "whole volume", "whole", definition, value, None, how)
            for definition, value in ((MAPE, overall), (SCORE, total))
        ]
    return scores
