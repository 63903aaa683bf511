"""Whose convention a score follows: one dict from a preset's name to its rules.

``native`` is the project's own.  ``sgsgan`` is Zhou et al. 2022 (IEEE TMI, arXiv 2205.08887) as far as its tables allow
it to be read: the paper multiplies images by an organ's mask and states neither data range nor denominator, so both
readings of the organ scores are given and absolute MAEs (in unknown intensity units) are no target.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from trainers.metrics.image import (
    INSIDE,
    MASK_BOTH,
    MAX_REFERENCE,
    MAX_REFERENCE_BODY,
    MAX_REFERENCE_REGION,
    NO_MASK,
    RMS_REFERENCE,
    SSIM_WINDOW,
    Rule,
)


def _rules(region: Literal["whole", "body", "ROI"], mask: str, data_range: str, preset: str) -> tuple[Rule, Rule, Rule]:
    mae = Rule("MAE", region, mask, "SUVbw", preset=preset)
    psnr = replace(mae, metric="PSNR", units="dB", data_range=data_range)
    return psnr, replace(psnr, metric="SSIM", units="1", window=SSIM_WINDOW), mae


def _nrmse(region: Literal["whole", "body", "ROI"], mask: str) -> Rule:
    return Rule("NRMSE", region, mask, "1", normalisation=RMS_REFERENCE)


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
}

BODY_PSNR, BODY_SSIM = PRESETS["native"][4:6]  # the headline scores: inside the body, where air flatters nobody
