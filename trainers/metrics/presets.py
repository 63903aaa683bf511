"""Whose convention a score follows: one dict from a preset's name to its rules.

``native`` is the project's own.  ``sgsgan`` is Zhou et al. 2022 (IEEE TMI, arXiv 2205.08887) as far as its tables allow
it to be read: the paper multiplies images by an organ's mask and states neither data range nor denominator, so both
readings of the organ scores are given and absolute MAEs (in unknown intensity units) are no target.

``udpet2022`` is the global part of the Ultra-Low-Dose PET challenge's evaluator of 2022, which CG-3DSRGAN's tables
follow with NRMSE in per cent: the whole volume, no mask.  Its SSIM call names no data range; scikit-image of that time
took 2 for floating-point images, and 1, the range the images really have, is given beside it.  An image's own maximum
divides it there, so SSIM cannot see an error of scale.

``s3pet`` is read from the public test scripts of S3PET's laboratory, since the paper gives formulas only: PSNR over the
voxels with uptake on images scaled by the full dose's minimum and maximum.  SSIM is in three dimensions, where those
scripts differ, with scikit-image's default window, which is this project's choice.  The rules that the paper's text
alone suggests (every voxel, range the full dose's maximum) stand beside them.  Where the full dose's minimum is 0, as
in most PET, both SSIMs are one number.

``cascade`` is Deng et al.'s cascade of U-Nets from CT to PET: axial slices of images in [0, 1], one mean over slices.
The paper masks nothing and names no intensity scale; 20 SUV is this project's choice, and scores inside the body stand
beside the paper's, because air flatters.  ``metrics.slices`` computes them and adds MS-SSIM and the checkerboards.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from trainers.metrics.image import (
    FROM_0_TO_1,
    INSIDE,
    MASK_BOTH,
    MAX_REFERENCE,
    MAX_REFERENCE_BODY,
    MAX_REFERENCE_REGION,
    NO_MASK,
    NONZERO,
    ONE,
    OWN_MAXIMA,
    POWER_REFERENCE,
    RANGE_REFERENCE,
    RMS_REFERENCE,
    SSIM_WINDOW,
    TWO,
    UNIFORM_WINDOW,
    Rule,
)


def _rules(region: Literal["whole", "body", "ROI"], mask: str, data_range: str, preset: str) -> tuple[Rule, Rule, Rule]:
    mae = Rule("MAE", region, mask, "SUVbw", preset=preset)
    psnr = replace(mae, metric="PSNR", units="dB", data_range=data_range)
    return psnr, replace(psnr, metric="SSIM", units="1", window=SSIM_WINDOW), mae


def _nrmse(region: Literal["whole", "body", "ROI"], mask: str) -> Rule:
    return Rule("NRMSE", region, mask, "1", normalisation=RMS_REFERENCE)


def _whole(
    metric: str, units: str, preset: str, *, mask: str = NO_MASK, data_range: str = "", scale: str = "none"
) -> Rule:
    window = UNIFORM_WINDOW if metric == "SSIM" else ""
    return Rule(metric, "whole", mask, units, data_range, window=window, scale=scale, preset=preset)


AXIAL = "2D, axial slices"
SUV_CEILING = 20.0
SLICE_WINDOW = (
    "Gaussian, sigma 1.5, 11 x 11 pixels, K1 0.01, K2 0.03, population covariance, mean over windows inside the slice"
)


def _sliced(
    metric: str,
    units: str,
    slices: str,
    *,
    region: Literal["whole", "body"] = "whole",
    data_range: str = ONE,
    window: str = "",
) -> Rule:
    return Rule(
        metric,
        region,
        INSIDE if region == "body" else NO_MASK,
        units,
        data_range,
        window=window,
        clip=f"SUV from 0 to {SUV_CEILING:g}",
        scale=f"SUV / {SUV_CEILING:g}",
        dimensionality=AXIAL,
        aggregation=f"mean over the {slices}: one value per case and region",
        preset="cascade",
    )


PRESETS: Mapping[str, tuple[Rule, ...]] = {
    "native": (
        *_rules("whole", NO_MASK, MAX_REFERENCE_BODY, "native"),
        _nrmse("whole", NO_MASK),
        *_rules("body", INSIDE, MAX_REFERENCE_BODY, "native"),
        _nrmse("body", INSIDE),
        *_rules("ROI", INSIDE, MAX_REFERENCE_BODY, "native"),
        _nrmse("ROI", INSIDE),
    ),
    "sgsgan": (
        *_rules("whole", NO_MASK, MAX_REFERENCE, "sgsgan"),
        *_rules("ROI", MASK_BOTH, MAX_REFERENCE_REGION, "sgsgan"),
        *_rules("ROI", INSIDE, MAX_REFERENCE_REGION, "sgsgan"),
    ),
    "udpet2022": (
        _whole("PSNR", "dB", "udpet2022", data_range=MAX_REFERENCE),
        _whole("SSIM", "1", "udpet2022", data_range=TWO, scale=OWN_MAXIMA),
        _whole("SSIM", "1", "udpet2022", data_range=ONE, scale=OWN_MAXIMA),
        replace(_whole("NRMSE", "%", "udpet2022"), normalisation=RANGE_REFERENCE),
    ),
    "s3pet": (
        _whole("PSNR", "dB", "s3pet", mask=NONZERO, data_range=ONE, scale=FROM_0_TO_1),
        _whole("SSIM", "1", "s3pet", data_range=ONE, scale=FROM_0_TO_1),
        replace(_whole("NMSE", "1", "s3pet"), normalisation=POWER_REFERENCE),
        _whole("PSNR", "dB", "s3pet", data_range=MAX_REFERENCE),
        _whole("SSIM", "1", "s3pet", data_range=MAX_REFERENCE),
    ),
    "cascade": (
        _sliced("PSNR", "dB", "slices whose full dose is not 0 everywhere"),
        _sliced("SSIM", "1", "slices", window=SLICE_WINDOW),
        _sliced("MAE", "1", "slices", data_range=""),
        _sliced("PSNR", "dB", "slices whose full dose is not 0 everywhere inside the body", region="body"),
        _sliced("MAE", "1", "slices that meet the body", region="body", data_range=""),
    ),
}

BODY_PSNR, BODY_SSIM = PRESETS["native"][4:6]  # the headline scores: inside the body, where air flatters nobody
