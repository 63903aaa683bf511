"""Short identifiers of how scores are computed, and one table of what they mean.

Definitions of scores are compared and stored by identifiers ("max_reference", "inside").  ``SENTENCES`` is for showing
alone, so that a sentence can be reworded without changing what a stored score is.
"""

import re
from collections.abc import Callable, Mapping, Sequence

MAX_REFERENCE = "max_reference"
MAX_REFERENCE_BODY = "max_reference_body"
MAX_REFERENCE_REGION = "max_reference_region"
ONE, TWO = "1", "2"
NO_MASK, INSIDE, MASK_BOTH, NONZERO = "none", "inside", "mask_both", "nonzero_reference"
DICE_MASK = "dice_above_half"
ABOVE_41 = "inside_above_41_percent_of_maximum"
RING_CORRELATION, INSIDE_POWER = "axial_ring_correlation", "axial_power_inside"
GRADIENT_ENERGY, HIGH_FREQUENCY_POWER = "gradient_energy", "high_frequency_power"
BODY_BOX = "body_box_of_multiples_of_8"
RMS_REFERENCE, POWER_REFERENCE = "rms_reference", "sum_of_squares_reference"
RANGE_REFERENCE, REFERENCE_VALUE = "range_reference", "reference_value"
SSIM_WINDOW, UNIFORM_WINDOW, SLICE_WINDOW = "gaussian_11_3d", "uniform_7_3d", "gaussian_11_2d"
NO_CLIP, CLIP_0_TO_20 = "none", "suv_0_to_20"
NO_SCALE, OWN_MAXIMA, FROM_0_TO_1, SUV_OVER_20 = "none", "own_maxima", "reference_0_to_1", "suv_over_20"
VOLUMES, AXIAL = "3D", "axial_slices"
ONE_PER_CASE = "one_per_case"
MEAN_OVER_SLICES, MEAN_OVER_NONZERO_SLICES = "mean_over_slices", "mean_over_nonzero_slices"
MEAN_OVER_BODY_SLICES, MEAN_OVER_NONZERO_BODY_SLICES = "mean_over_body_slices", "mean_over_nonzero_body_slices"
FEATURE_MEAN, FEATURE_MEAN_OVER_ORGANS = "udpet_feature_mean", "udpet_feature_mean_over_organs"
CHALLENGE_SCORE = "udpet_score"
EVERYWHERE = "*"  # in place of organs: the whole body mask
BOTH_LOSSES = "bce+dice"
LOSSES: Mapping[str, str] = {"bce": "BCE", "dice": "Dice", BOTH_LOSSES: "BCE + Dice"}  # of a U-Net that finds organs


def checkerboard_aggregation(period: int) -> str:
    """Return the identifier of how power at a ``period`` of pixels becomes one value."""
    return f"checkerboard_{period}"


def ms_ssim_window(scales: int) -> str:
    """Return the identifier of the window of an MS-SSIM with ``scales`` of five scales."""
    return f"{SLICE_WINDOW}_{scales}_of_5_scales"


def detection_key(
    matching: str, *, threshold_suv: float, organs: Sequence[str], lesion: str, tolerance_mm: float, focus_ml: float
) -> str:
    """Return the identifier of what counts as a found lesion, for instance ``overlap>2.5;liver+cyst;lesion;0mm;0.2ml``.

    Args:
        matching: ``overlap`` or ``peak``.
        threshold_suv: a lesion is seen above it.
        organs: labels that are searched; none for the whole body mask.
        lesion: label of lesions.
        tolerance_mm: how far beyond a lesion a hit may lie.
        focus_ml: the smallest focus in mL.
    """
    where = _joined(organs, " and ") or EVERYWHERE
    return f"{matching}>{threshold_suv:g};{where};{lesion};{tolerance_mm:g}mm;{focus_ml:g}ml"


def segmenter_key(
    channels: tuple[int, int],
    *,
    rois: Sequence[str],
    lr: float,
    samples: int,
    patch: Sequence[int],
    halo: int,
    loss: str = BOTH_LOSSES,
) -> str:
    """Return the identifier of a U-Net that finds organs and of its training.

    Args:
        channels: of its finest and its coarsest level.
        rois: organs.
        lr: learning rate of RMSprop.
        samples: patches seen in training.
        patch: edge lengths (z, y, x) in voxels.
        halo: voxels at a window's inner faces that are decided by the neighbouring window.
        loss: what it was trained with, a key of ``LOSSES``; named only where it is not both.
    """
    edges = "x".join(map(str, patch))
    organs = _joined(rois, ", ")
    trained = "" if loss == BOTH_LOSSES else f";loss={loss}"
    return f"unet_{channels[0]}_{channels[1]};{organs};lr={lr:g};samples={samples};patch={edges};halo={halo}{trained}"


def _joined(names: Sequence[str], separator: str) -> str:
    """Names joined by ``+``; a name that holds the old sentences' separator counts as two, as it did in them."""
    return "+".join(names).replace(separator, "+")


# ---- what they mean -------------------------------------------------------------------------------------------------

_GAUSSIAN_2D = (
    "Gaussian, sigma 1.5, 11 x 11 pixels, K1 0.01, K2 0.03, population covariance, mean over windows inside the slice"
)
_FEATURES = (
    "mean over features, weighted SUVmean 0.20, SUVmax 0.20, total metabolism 0.15, root mean square 0.05, "
    "90th percentile 0.05, median 0.05, weights divided by their sum"
)
_SLICES = "one value per case and region"


def _checkerboard(period: int) -> str:
    return (
        f"power of the residual at period {period} over the mean power 3 to 6 bins around it; residual: image - full "
        f"dose, its slice's mean removed, Hann window; spectra averaged over slices; none with fewer than 16 slices or "
        f"a side below {7 * period} voxels; above 6 dB is a pattern"
    )


SENTENCES: Mapping[str, str] = {
    MAX_REFERENCE: "maximum of the full-dose volume",
    MAX_REFERENCE_BODY: "maximum of the full-dose image inside the body",
    MAX_REFERENCE_REGION: "maximum of the full-dose image inside the region",
    TWO: "2 (the default of older scikit-image for floating-point images)",
    INSIDE: "voxels inside the region",
    MASK_BOTH: "both images multiplied by the region, full grid",
    NONZERO: "voxels of the region whose full dose is not 0",
    DICE_MASK: "Dice of p > 0.5 against the organ's mask, whole volume",
    ABOVE_41: "voxels inside the region at or above 41 % of the image's own maximum there (EANM 2015)",
    RING_CORRELATION: (
        "axial slices, at most 64 spread evenly over the body, Hann window over the body's box; 1 over the frequency "
        "at which the Fourier ring correlation with the full dose falls below 0.5, not below twice the pixel"
    ),
    INSIDE_POWER: (
        "axial slices, at most 64 spread evenly over the body; voxels inside the region, each slice's plane of best "
        "fit removed; mean frequency of the power spectrum"
    ),
    GRADIENT_ENERGY: "sum of squared gradients",
    HIGH_FREQUENCY_POWER: "power above half Nyquist, axial slices",
    BODY_BOX: "the body's bounding box, sides cut to multiples of 8",
    RMS_REFERENCE: "root mean square of the full-dose image in the region",
    POWER_REFERENCE: "sum of squares of the full-dose image in the region",
    RANGE_REFERENCE: "maximum minus minimum of the full-dose image in the region",
    REFERENCE_VALUE: "the full dose's value",
    SSIM_WINDOW: "Gaussian, sigma 1.5, 11 x 11 x 11 voxels, K1 0.01, K2 0.03, edges reflected",
    UNIFORM_WINDOW: (
        "uniform, 7 x 7 x 7 voxels, K1 0.01, K2 0.03, sample covariance, mean over windows inside the volume"
    ),
    SLICE_WINDOW: _GAUSSIAN_2D,
    **{ms_ssim_window(scales): f"{_GAUSSIAN_2D}; {scales} of 5 scales" for scales in range(6)},
    CLIP_0_TO_20: "SUV from 0 to 20",
    OWN_MAXIMA: "each image divided by its own maximum",
    FROM_0_TO_1: "both images from the full dose's minimum and maximum to 0 and 1",
    SUV_OVER_20: "SUV / 20",
    AXIAL: "2D, axial slices",
    ONE_PER_CASE: "one value per case and region",
    MEAN_OVER_SLICES: f"mean over the slices: {_SLICES}",
    MEAN_OVER_NONZERO_SLICES: f"mean over the slices whose full dose is not 0 everywhere: {_SLICES}",
    MEAN_OVER_BODY_SLICES: f"mean over the slices that meet the body: {_SLICES}",
    MEAN_OVER_NONZERO_BODY_SLICES: (
        f"mean over the slices whose full dose is not 0 everywhere inside the body: {_SLICES}"
    ),
    FEATURE_MEAN: _FEATURES,
    FEATURE_MEAN_OVER_ORGANS: f"{_FEATURES}; mean over organs",
    CHALLENGE_SCORE: (
        f"0.5 (0.4 PSNR + 0.2 SSIM (range 2) - 0.4 NRMSE) - 0.5 MAPE; MAPE: {_FEATURES}; mean over organs"
    ),
    **{checkerboard_aggregation(period): _checkerboard(period) for period in (2, 4, 8)},
}


def _detection_sentence(key: re.Match[str]) -> str:
    matching, threshold, organs, lesion, tolerance, focus = key.groups()
    where = f"{organs.replace('+', ' and ')} with the lesions that touch it"
    return (
        f"{matching}: SUV above {threshold} in {'the whole body mask' if organs == EVERYWHERE else where}; lesions: "
        f"label {lesion}, 26-connected, real SUVmax above {threshold}; tolerance {tolerance} mm; "
        f"foci of {focus} mL or more"
    )


def _segmenter_sentence(key: re.Match[str]) -> str:
    finest, coarsest, organs, lr, samples, patch, halo, loss = key.groups()
    patch, trained = patch.replace("x", " x "), LOSSES[loss or BOTH_LOSSES]
    return (
        f"3D U-Net of {finest} to {coarsest} channels for {organs.replace('+', ', ')}, "
        f"trained with {trained} and RMSprop at {lr} on {samples} full-dose patches of {patch} voxels "
        f"of the training cases, then fixed; windows of {patch} voxels, halo {halo}"
    )


# Identifiers that hold settings: how they are written, and the sentence made of one.
SENTENCES_WITH_SETTINGS: Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = (
    (re.compile(r"(overlap|peak)>([^;]*);(.*);(.*);([^;]*)mm;([^;]*)ml"), _detection_sentence),
    (
        re.compile(r"unet_(\d+)_(\d+);(.*);lr=([^;]*);samples=(\d+);patch=([\dx]+);halo=(\d+)(?:;loss=(bce|dice))?"),
        _segmenter_sentence,
    ),
)


def sentence(identifier: str) -> str:
    """Return what an identifier means; the identifier itself where it needs no explanation ("none", "3D")."""
    for pattern, told in SENTENCES_WITH_SETTINGS:
        if found := pattern.fullmatch(identifier):
            return told(found)
    return SENTENCES.get(identifier, identifier)
