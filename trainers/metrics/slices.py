"""Scores of axial slices in [0, 1]: the cascade's PSNR, SSIM and MAE, MS-SSIM, and a measure of checkerboards.

    SSIM     Wang et al. 2004 with an 11 x 11 Gaussian window; windows that pass the slice's edge are left out.
    MS-SSIM  Wang et al. 2003: contrast and structure at every scale, luminance at the coarsest; 2 x 2 means between
             scales, an odd last row or column dropped; a negative mean of a scale counts as 0.
    CB p     Power of the residual at period p over the power around it.  Transposed convolutions of stride 2 leave
             period 2 (the last layer), 4 (the one before), 8; more than 6 dB is a pattern.

A slice without uptake has no PSNR: there it would be infinite for any image that is 0 too.  The full dose alone decides
which slices these are, so that every image is scored on the same ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError
from storage.source import SUV, ImageSource
from trainers.metrics.definitions import Region, Score, ScoreDefinition
from trainers.metrics.identifiers import BODY_BOX, checkerboard_aggregation, ms_ssim_window
from trainers.metrics.image import Mask, Real
from trainers.metrics.presets import PRESETS, SUV_CEILING
from trainers.metrics.slabs import SLAB_VOXELS, slabs, survey
from trainers.metrics.ssim import K1, K2, WINDOW, blur_slices

PSNR, SSIM, MAE, BODY_PSNR, BODY_MAE = PRESETS["cascade"]
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest first
PERIODS = (2, 4, 8)
ALARM_DB = 6.0
FEWEST_SLICES = 16  # fewer leave the noise of a spectrum's bins too large for ALARM_DB

CHECKERBOARDS: Mapping[int, ScoreDefinition] = {
    period: replace(
        MAE,
        metric=f"CB {period}",
        region="body",
        mask=BODY_BOX,
        units="dB",
        aggregation=checkerboard_aggregation(period),
    )
    for period in PERIODS
}


def ms_ssim_definition(scales: int) -> ScoreDefinition:
    """Return the definition of an MS-SSIM with ``scales`` scales: slices of other sizes may have another."""
    return replace(SSIM, metric="MS-SSIM", window=ms_ssim_window(scales))


def scales_that_fit(shape: tuple[int, int]) -> int:
    """How many of the five scales of MS-SSIM fit into a (y, x) slice; 0 below 11 pixels."""
    return sum(min(shape) >= len(WINDOW.taps) * 2**scale for scale in range(len(SCALE_WEIGHTS)))


# ---- on arrays ------------------------------------------------------------------------------------------------------


def ssim_2d(reference: Real, image: Real) -> float:
    """Mean SSIM of (y, x) or (slices, y, x) images in [0, 1]; NaN where no window of 11 x 11 fits."""
    return float(_structure(_pyramid(_stack(reference))[0], _stack(image))[0].mean())


def ms_ssim(reference: Real, image: Real) -> float:
    """Mean MS-SSIM of (y, x) or (slices, y, x) images in [0, 1], with as many of five scales as fit.

    The weights of the scales that fit are divided by their sum; NaN where none fits.
    """
    return float(_similarities(_pyramid(_stack(reference)), _stack(image))[1].mean())


def checkerboard_db(residual: Real, period: int) -> float:
    """Power at ``period`` (2, 4 or 8) pixels over the power around it, in dB; 0 for white noise, whatever its scale.

    Args:
        residual: (slices, y, x), synthesized - full dose; 16 slices or more, or chance moves it by decibels.
        period: pixels; sides below 7 periods give NaN, as does a residual without power.
    """
    _, height, width = residual.shape
    even = residual[:, : height // 8 * 8, : width // 8 * 8].astype(np.float64)
    return _peak_over_ring(_power(even), period)


# ---- on sources -----------------------------------------------------------------------------------------------------


def slice_scores(
    case: str,
    reference: ImageSource,
    candidates: Mapping[str, ImageSource],
    *,
    body: ImageSource,
    slab_voxels: int = SLAB_VOXELS,
) -> list[Score]:
    """Score every candidate by the preset ``cascade``, MS-SSIM and the checkerboards, a slab at a time.

    Args:
        case: the case's alias.
        reference: the full-dose image in SUVbw, finite; candidates (SUVbw, finite) and body lie on its grid.
        candidates: name to image, in the order wanted.
        body: greater than 0.5 inside the patient.
        slab_voxels: size of the slabs; the scores do not depend on it beyond rounding.

    Raises:
        InputError: ``IMG_UNITS`` if an image is not in SUVbw; ``IMG_NAN`` if the reference is not finite.
    """
    for name, source in {"reference": reference, **candidates}.items():
        if source.units != SUV:
            raise InputError(
                "IMG_UNITS", where=name, found=f"units {source.units}", remedy="convert it to SUVbw at ingest"
            )
    shape = reference.grid.shape
    multiscale = ms_ssim_definition(scales_that_fit(shape[1:]))
    within = Region("body", "body")
    box = survey(reference, [within], body=body, labels=None, slab_voxels=slab_voxels)[within].box
    z, y, x = box or (slice(0, 0),) * 3
    even_y, even_x = ((side.stop - side.start) // 8 * 8 for side in (y, x))
    crop = (slice(y.start, y.start + even_y), slice(x.start, x.start + even_x))
    spectra: dict[str, NDArray[np.float64] | float] = dict.fromkeys(candidates, 0.0)
    values: dict[tuple[str, ScoreDefinition], list[NDArray[np.float64]]] = {}  # one value per slice
    for z0, z1 in slabs(shape, slab_voxels):
        full = _scaled(reference, z0, z1)
        inside = body.read(z0, z1) > 0.5
        uptake, uptake_inside = full.any(axis=(1, 2)), (full * inside).any(axis=(1, 2))
        rows = slice(max(z.start - z0, 0), max(z.stop - z0, 0))
        known = _pyramid(full)
        for name, candidate in candidates.items():
            image = _scaled(candidate, z0, z1)
            error = image - full
            spectra[name] += len(error[rows]) * _power(error[rows, *crop])
            similar, similar_at_scales = _similarities(known, image)
            squares, distances = error * error, np.abs(error)
            mean_square, mean_square_inside = _means(squares), _means(squares, inside)
            for definition, found in {
                PSNR: np.where(uptake, _decibels(mean_square), np.nan),
                SSIM: similar,
                multiscale: similar_at_scales,
                MAE: _means(distances),
                BODY_PSNR: np.where(uptake_inside, _decibels(mean_square_inside), np.nan),
                BODY_MAE: _means(distances, inside),
            }.items():
                values.setdefault((name, definition), []).append(found)
    scores = []
    for name, candidate in candidates.items():
        how = str(candidate.provenance.get("rule", ""))
        found_of = {
            definition: _mean_of_defined(np.concatenate(values[name, definition]))
            for n, definition in values
            if n == name
        }
        enough = z.stop - z.start >= FEWEST_SLICES
        for period, definition in CHECKERBOARDS.items():
            found_of[definition] = _peak_over_ring(np.asarray(spectra[name]), period) if enough else float("nan")
        for definition, value in found_of.items():
            region = ("whole volume", "whole") if definition.region == "whole" else ("body", "body")
            scores.append(Score(case, name, *region, definition, value, 1.0 if definition.data_range else None, how))
    return scores


def _scaled(source: ImageSource, z0: int, z1: int) -> NDArray[np.float64]:
    return np.clip(source.read(z0, z1).astype(np.float64), 0.0, SUV_CEILING) / SUV_CEILING


def _means(values: NDArray[np.float64], mask: Mask | None = None) -> NDArray[np.float64]:
    """Mean of every slice over its ``mask``; NaN where that is empty."""
    if mask is None:
        return np.asarray(values.mean(axis=(1, 2)))
    count = mask.sum(axis=(1, 2))
    return np.where(count > 0, (values * mask).sum(axis=(1, 2)) / np.maximum(count, 1), np.nan)


def _decibels(mean_square: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):  # equal slices: infinite
        return np.asarray(-10 * np.log10(mean_square))


def _mean_of_defined(values: NDArray[np.float64]) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


# ---- structural similarity ------------------------------------------------------------------------------------------


def _stack(image: Real) -> NDArray[np.float64]:
    return image.astype(np.float64).reshape(-1, *image.shape[-2:])


Seen = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # an image, its windowed moments


def _pyramid(x: NDArray[np.float64]) -> list[Seen]:
    """Slices (slices, y, x) at every scale that fits, one at least, with windowed mean and mean square."""
    found = []
    for scale in range(max(scales_that_fit(x.shape[1:]), 1)):
        x = _halved(x) if scale else x
        found.append((x, _windowed(x), _windowed(x * x)))
    return found


def _similarities(reference: Sequence[Seen], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """SSIM and MS-SSIM of every slice of (slices, y, x) images (Wang et al. 2003, eq. 7)."""
    scales = scales_that_fit(y.shape[1:])
    weights = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[: max(scales, 1)])
    finest, contrast = _structure(reference[0], y)
    similar, product = finest, np.full(len(y), 1.0 if scales else np.nan)
    for scale, weight in enumerate(weights):
        if scale:
            y = _halved(y)
            similar, contrast = _structure(reference[scale], y)
        product *= np.maximum(similar if scale == scales - 1 else contrast, 0.0) ** weight
    return finest, product


def _structure(reference: Seen, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the windows inside every slice of SSIM, and of its contrast-structure factor alone."""
    if min(y.shape[1:]) < len(WINDOW.taps):
        return np.full(len(y), np.nan), np.full(len(y), np.nan)
    found = [_structure_of_slice(*(held[n : n + 1] for held in (*reference, y))) for n in range(len(y))]
    similar, contrast = np.array(found).reshape(-1, 2).T
    return similar, contrast


def _structure_of_slice(
    x: NDArray[np.float64], mean_x: NDArray[np.float64], square_x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[float, float]:
    """The same of one slice, whose arrays a core's cache holds."""
    mean_y, covariance, variances = _windowed(y), _windowed(x * y), _windowed(y * y)
    means, powers = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    covariance -= means
    variances += square_x
    variances -= powers
    contrast = (2 * covariance + K2**2) / (variances + K2**2)
    luminance = (2 * means + K1**2) / (powers + K1**2)
    return float((luminance * contrast).mean()), float(contrast.mean())


def _windowed(v: NDArray[np.float64]) -> NDArray[np.float64]:
    r = WINDOW.radius
    return blur_slices(v, WINDOW)[:, r:-r, r:-r]


def _halved(v: NDArray[np.float64]) -> NDArray[np.float64]:
    n, height, width = v.shape[0], v.shape[1] // 2, v.shape[2] // 2
    return np.asarray(v[:, : 2 * height, : 2 * width].reshape(n, height, 2, width, 2).mean(axis=(2, 4)))


# ---- checkerboards --------------------------------------------------------------------------------------------------


def _power(residual: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean power spectrum of (slices, y, x), every slice's mean removed, under a Hann window; 0 without a slice."""
    slices, height, width = residual.shape
    if residual.size == 0:
        return np.zeros((height, width))
    window = np.hanning(height + 1)[:-1, None] * np.hanning(width + 1)[:-1]  # periodic: side lobes end at bin 2
    spectrum = np.fft.fft2((residual - residual.mean(axis=(1, 2), keepdims=True)) * window)
    return np.asarray(np.square(np.abs(spectrum)).sum(axis=0) / slices)


def _peak_over_ring(power: NDArray[np.float64], period: int) -> float:
    height, width = power.shape
    if min(height, width) < 7 * period:  # a peak's ring would hold another peak
        return float("nan")
    peaks = np.array([(i, j) for i in range(period) for j in range(period) if (i, j) != (0, 0)])
    if period > 2:
        peaks = peaks[(peaks % 2).any(axis=1)]  # both even: a peak of half the period
    at = peaks * (height // period, width // period)
    near = np.stack(np.meshgrid(np.arange(-6, 7), np.arange(-6, 7)), axis=-1).reshape(-1, 2)
    ring = (at[:, None] + near[np.abs(near).max(axis=1) >= 3]) % (height, width)
    around = power[ring[..., 0], ring[..., 1]].mean()
    peak = power[at[:, 0], at[:, 1]].mean()
    if around == 0:
        return float("nan") if peak == 0 else float("inf")
    return float(10 * np.log10(peak / around)) if peak > 0 else float("-inf")
