"""Sentences that files of earlier versions hold in place of identifiers.

They are read and never written.  Nothing here changes when a sentence of ``identifiers.SENTENCES`` is reworded.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from trainers.metrics.identifiers import (
    AXIAL,
    BODY_BOX,
    CHALLENGE_SCORE,
    CLIP_0_TO_20,
    DICE_MASK,
    FEATURE_MEAN,
    FEATURE_MEAN_OVER_ORGANS,
    FROM_0_TO_1,
    GRADIENT_ENERGY,
    HIGH_FREQUENCY_POWER,
    INSIDE,
    MASK_BOTH,
    MAX_REFERENCE,
    MAX_REFERENCE_BODY,
    MAX_REFERENCE_REGION,
    MEAN_OVER_BODY_SLICES,
    MEAN_OVER_NONZERO_BODY_SLICES,
    MEAN_OVER_NONZERO_SLICES,
    MEAN_OVER_SLICES,
    NONZERO,
    ONE_PER_CASE,
    OWN_MAXIMA,
    POWER_REFERENCE,
    RANGE_REFERENCE,
    REFERENCE_VALUE,
    RMS_REFERENCE,
    SLICE_WINDOW,
    SSIM_WINDOW,
    SUV_OVER_20,
    TWO,
    UNIFORM_WINDOW,
    checkerboard_aggregation,
    detection_key,
    ms_ssim_window,
    segmenter_key,
)

_STORED: Mapping[str, str] = {
    "maximum of the full-dose volume": MAX_REFERENCE,
    "maximum of the full-dose image inside the body": MAX_REFERENCE_BODY,
    "maximum of the full-dose image inside the region": MAX_REFERENCE_REGION,
    "2 (the default of older scikit-image for floating-point images)": TWO,
    "voxels inside the region": INSIDE,
    "both images multiplied by the region, full grid": MASK_BOTH,
    "voxels of the region whose full dose is not 0": NONZERO,
    "Dice of p > 0.5 against the organ's mask, whole volume": DICE_MASK,
    "sum of squared gradients": GRADIENT_ENERGY,
    "power above half Nyquist, axial slices": HIGH_FREQUENCY_POWER,
    "the body's bounding box, sides cut to multiples of 8": BODY_BOX,
    "root mean square of the full-dose image in the region": RMS_REFERENCE,
    "sum of squares of the full-dose image in the region": POWER_REFERENCE,
    "maximum minus minimum of the full-dose image in the region": RANGE_REFERENCE,
    "the full dose's value": REFERENCE_VALUE,
    "Gaussian, sigma 1.5, 11 x 11 x 11 voxels, K1 0.01, K2 0.03, edges reflected": SSIM_WINDOW,
    "uniform, 7 x 7 x 7 voxels, K1 0.01, K2 0.03, sample covariance, mean over windows inside the volume": (
        UNIFORM_WINDOW
    ),
    "SUV from 0 to 20": CLIP_0_TO_20,
    "each image divided by its own maximum": OWN_MAXIMA,
    "both images from the full dose's minimum and maximum to 0 and 1": FROM_0_TO_1,
    "SUV / 20": SUV_OVER_20,
    "2D, axial slices": AXIAL,
    "one value per case and region": ONE_PER_CASE,
    "mean over the slices: one value per case and region": MEAN_OVER_SLICES,
    "mean over the slices whose full dose is not 0 everywhere: one value per case and region": (
        MEAN_OVER_NONZERO_SLICES
    ),
    "mean over the slices that meet the body: one value per case and region": MEAN_OVER_BODY_SLICES,
    "mean over the slices whose full dose is not 0 everywhere inside the body: one value per case and region": (
        MEAN_OVER_NONZERO_BODY_SLICES
    ),
}
_STORED_2D = (
    "Gaussian, sigma 1.5, 11 x 11 pixels, K1 0.01, K2 0.03, population covariance, mean over windows inside the slice"
)
_STORED_FEATURES = (
    "mean over features, weighted SUVmean 0.20, SUVmax 0.20, total metabolism 0.15, root mean square 0.05, "
    "90th percentile 0.05, median 0.05, weights divided by their sum"
)
_STORED_FORMS: Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = (
    (re.compile(re.escape(_STORED_2D)), lambda found: SLICE_WINDOW),
    (re.compile(re.escape(_STORED_2D) + "; ([0-5]) of 5 scales"), lambda found: ms_ssim_window(int(found[1]))),
    (re.compile(re.escape(_STORED_FEATURES)), lambda found: FEATURE_MEAN),
    (re.compile(re.escape(_STORED_FEATURES) + "; mean over organs"), lambda found: FEATURE_MEAN_OVER_ORGANS),
    (
        re.compile(
            re.escape("0.5 (0.4 PSNR + 0.2 SSIM (range 2) - 0.4 NRMSE) - 0.5 MAPE; MAPE: ")
            + re.escape(_STORED_FEATURES)
            + "; mean over organs"
        ),
        lambda found: CHALLENGE_SCORE,
    ),
    (
        re.compile(
            r"power of the residual at period ([248]) over the mean power 3 to 6 bins around it; residual: image - "
            r"full dose, its slice's mean removed, Hann window; spectra averaged over slices; none with fewer than 16 "
            r"slices or a side below \d+ voxels; above 6 dB is a pattern"
        ),
        lambda found: checkerboard_aggregation(int(found[1])),
    ),
    (
        re.compile(
            r"(overlap|peak): SUV above (\S+) in (?:(.*) with the lesions that touch it|the whole body mask); "
            r"lesions: label (.*), 26-connected, real SUVmax above \2; tolerance (\S+) mm; foci of (\S+) mL or more"
        ),
        lambda found: detection_key(
            found[1],
            threshold_suv=float(found[2]),
            organs=(found[3],) if found[3] else (),
            lesion=found[4],
            tolerance_mm=float(found[5]),
            focus_ml=float(found[6]),
        ),
    ),
    (
        re.compile(
            r"3D U-Net of (\d+) to (\d+) channels for (.*), trained with BCE \+ Dice and RMSprop at (\S+) on (\d+) "
            r"full-dose patches of (\d+ x \d+ x \d+) voxels of the training cases, then fixed; windows of \6 voxels, "
            r"halo (\d+)"
        ),
        lambda found: segmenter_key(
            (int(found[1]), int(found[2])),
            rois=(found[3],),
            lr=float(found[4]),
            samples=int(found[5]),
            patch=[int(edge) for edge in found[6].split(" x ")],
            halo=int(found[7]),
        ),
    ),
)


def identifier_of(stored: str) -> str:
    """Return the identifier of a stored sentence; what is no such sentence is an identifier already."""
    for pattern, read in _STORED_FORMS:
        if found := pattern.fullmatch(stored):
            return read(found)
    return _STORED.get(stored, stored)
