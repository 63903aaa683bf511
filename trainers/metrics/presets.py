"""Whose convention a score follows: one dict from a preset's name to its definitions.

``native`` is the project's own.  ``sgsgan`` is Zhou et al. 2022 (IEEE TMI, arXiv 2205.08887) as far as its tables allow
it to be read: the paper multiplies images by an organ's mask and states neither data range nor denominator, so both
readings of the organ scores are given and absolute MAEs (in unknown intensity units) are no target.  Nor does it define
bias and variance "based on SUV" (Table VI): here they are the magnitude of the mean error and the variance of the error
over the voxels of a volume, so that bias^2 + variance is the mean squared error.

``udpet2022`` is the global part of the Ultra-Low-Dose PET challenge's evaluator of 2022, which CG-3DSRGAN's tables
follow with NRMSE in per cent: the whole volume, no mask.  Its SSIM call names no data range; scikit-image of that time
took 2 for floating-point images, and 1, the range the images really have, is given beside it.  An image's own maximum
divides it there, so SSIM cannot see an error of scale.

``s3pet`` is read from the public test scripts of S3PET's laboratory, since the paper gives formulas only: PSNR over the
voxels with uptake on images scaled by the full dose's minimum and maximum.  SSIM is in three dimensions, where those
scripts differ, with scikit-image's default window, which is this project's choice.  The definitions that the paper's
text alone suggests (every voxel, range the full dose's maximum) stand beside them.  Where the full dose's minimum is
0, as in most PET, both SSIMs are one number.

``cascade`` is Deng et al.'s cascade of U-Nets from CT to PET: axial slices of images in [0, 1], one mean over slices.
The paper masks nothing and names no intensity scale; 20 SUV is this project's choice, and scores inside the body stand
beside the paper's, because air raises every score.  ``metrics.slices`` computes them and adds MS-SSIM and the
checkerboards.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from trainers.metrics.definitions import ScoreDefinition
from trainers.metrics.identifiers import (
    AXIAL,
    CLIP_0_TO_20,
    FROM_0_TO_1,
    INSIDE,
    MASK_BOTH,
    MAX_REFERENCE,
    MAX_REFERENCE_BODY,
    MAX_REFERENCE_REGION,
    MEAN_OVER_BODY_SLICES,
    MEAN_OVER_NONZERO_BODY_SLICES,
    MEAN_OVER_NONZERO_SLICES,
    MEAN_OVER_SLICES,
    NO_MASK,
    NO_SCALE,
    NONZERO,
    ONE,
    OWN_MAXIMA,
    POWER_REFERENCE,
    RANGE_REFERENCE,
    RMS_REFERENCE,
    SLICE_WINDOW,
    SSIM_WINDOW,
    SUV_OVER_20,
    TWO,
    UNIFORM_WINDOW,
)


def _quality(
    region: Literal["whole", "body", "ROI"], mask: str, data_range: str, preset: str
) -> tuple[ScoreDefinition, ScoreDefinition, ScoreDefinition]:
    mae = ScoreDefinition("MAE", region, mask, "SUVbw", preset=preset)
    psnr = replace(mae, metric="PSNR", units="dB", data_range=data_range)
    return psnr, replace(psnr, metric="SSIM", units="1", window=SSIM_WINDOW), mae


def _nrmse(region: Literal["whole", "body", "ROI"], mask: str) -> ScoreDefinition:
    return ScoreDefinition("NRMSE", region, mask, "1", normalisation=RMS_REFERENCE)


def _whole(
    metric: str, units: str, preset: str, *, mask: str = NO_MASK, data_range: str = "", scale: str = NO_SCALE
) -> ScoreDefinition:
    window = UNIFORM_WINDOW if metric == "SSIM" else ""
    return ScoreDefinition(metric, "whole", mask, units, data_range, window=window, scale=scale, preset=preset)


SUV_CEILING = 20.0  # of CLIP_0_TO_20 and SUV_OVER_20


def _sliced(
    metric: str,
    units: str,
    aggregation: str,
    *,
    region: Literal["whole", "body"] = "whole",
    data_range: str = ONE,
    window: str = "",
) -> ScoreDefinition:
    return ScoreDefinition(
        metric,
        region,
        INSIDE if region == "body" else NO_MASK,
        units,
        data_range,
        window=window,
        clip=CLIP_0_TO_20,
        scale=SUV_OVER_20,
        dimensionality=AXIAL,
        aggregation=aggregation,
        preset="cascade",
    )


PRESETS: Mapping[str, tuple[ScoreDefinition, ...]] = {
    "native": (
        *_quality("whole", NO_MASK, MAX_REFERENCE_BODY, "native"),
        _nrmse("whole", NO_MASK),
        *_quality("body", INSIDE, MAX_REFERENCE_BODY, "native"),
        _nrmse("body", INSIDE),
        *_quality("ROI", INSIDE, MAX_REFERENCE_BODY, "native"),
        _nrmse("ROI", INSIDE),
    ),
    "sgsgan": (
        *_quality("whole", NO_MASK, MAX_REFERENCE, "sgsgan"),
        *_quality("ROI", MASK_BOTH, MAX_REFERENCE_REGION, "sgsgan"),
        *_quality("ROI", INSIDE, MAX_REFERENCE_REGION, "sgsgan"),
        ScoreDefinition("bias", "whole", NO_MASK, "SUVbw", preset="sgsgan"),
        ScoreDefinition("variance", "whole", NO_MASK, "SUVbw^2", preset="sgsgan"),
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
        _sliced("PSNR", "dB", MEAN_OVER_NONZERO_SLICES),
        _sliced("SSIM", "1", MEAN_OVER_SLICES, window=SLICE_WINDOW),
        _sliced("MAE", "1", MEAN_OVER_SLICES, data_range=""),
        _sliced("PSNR", "dB", MEAN_OVER_NONZERO_BODY_SLICES, region="body"),
        _sliced("MAE", "1", MEAN_OVER_BODY_SLICES, region="body", data_range=""),
    ),
}

BODY_PSNR, BODY_SSIM = PRESETS["native"][4:6]  # the headline scores: inside the body, without air
LESION_PSNR = PRESETS["native"][8]  # of organs too, over the same maximum as the body's
