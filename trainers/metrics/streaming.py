"""PSNR, SSIM, MAE, NRMSE, NMSE, bias and variance of volumes that are read slab by slab.

How an error is averaged, over which voxels, on which scale and against which data range stands in every score's
``ScoreDefinition``.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError
from storage.source import ImageSource
from trainers.metrics.definitions import Region, Score, ScoreDefinition
from trainers.metrics.identifiers import (
    FROM_0_TO_1,
    MASK_BOTH,
    MAX_REFERENCE,
    MAX_REFERENCE_BODY,
    MAX_REFERENCE_REGION,
    NO_SCALE,
    NONZERO,
    ONE,
    OWN_MAXIMA,
    RANGE_REFERENCE,
    TWO,
    VOLUMES,
)
from trainers.metrics.image import Mask, psnr_of
from trainers.metrics.slabs import (
    SLAB_VOXELS,
    Box,
    Survey,
    cut_box,
    read_reflected,
    region_mask,
    region_slabs,
    slabs,
    survey,
)
from trainers.metrics.ssim import (
    WINDOW,
    WINDOW_RADIUS,
    WINDOWS,
    Moments,
    Scale,
    Seen,
    similarity,
    similarity_of,
    whole_windows,
)

FIXED_RANGES = {ONE: 1.0, TWO: 2.0}
Job = tuple[Region, ScoreDefinition]


def stream_scores(
    case: str,
    reference: ImageSource,
    candidates: Mapping[str, ImageSource],
    definitions: Sequence[ScoreDefinition],
    regions: Sequence[Region],
    *,
    body: ImageSource,
    labels: ImageSource | None = None,
    slab_voxels: int = SLAB_VOXELS,
) -> list[Score]:
    """Score every candidate by every definition in every region it is meant for, holding a few slabs at a time.

    Args:
        case: the case's alias, copied into every score.
        reference: the full-dose image; candidates, body and labels lie on its grid.
        candidates: name to image, in the order wanted.
        definitions: which scores, see ``presets.PRESETS``; those of slices are left to ``slices.slice_scores``.
        regions: where; the whole volume and the body among them; regions without a voxel give no score.
        body: greater than 0.5 inside the patient.
        labels: integers; needed when a region is an organ or a lesion.
        slab_voxels: size of the slabs; the scores do not depend on it beyond rounding.

    Raises:
        InputError: ``IMG_GRID`` if an image lies on another grid than the reference; ``IMG_NAN`` if one is not finite;
            ``IMG_EMPTY`` if the body holds no uptake.
    """
    volumes = _Volumes(reference, body, labels, slab_voxels)
    _check_grids(reference, {**candidates, "body": body, **({"labels": labels} if labels else {})})
    surveys = survey(reference, regions, body=body, labels=labels, slab_voxels=slab_voxels)
    if any(region.kind == "body" and seen.maximum <= 0 for region, seen in surveys.items()):
        raise InputError(
            "IMG_EMPTY", where="body", found="no uptake inside the body mask", remedy="check the mask and the image"
        )
    regions = [region for region in regions if surveys[region].voxels]
    definitions = [definition for definition in definitions if definition.dimensionality == VOLUMES]
    jobs = [(region, definition) for region in regions for definition in definitions if region.is_scored_by(definition)]
    ranges = {job: _range_of(job[1], surveys[job[0]], surveys) for job in jobs}
    sums = _summed(volumes, candidates, regions, surveys, ranges)
    scores = []
    for name, candidate in candidates.items():
        how = str(candidate.provenance.get("rule", ""))
        for region, definition in jobs:
            known, peak = surveys[region], ranges[region, definition]
            if definition.metric != "SSIM":
                divisor = _scale_of(definition.scale, surveys)[1] if definition.mask == NONZERO else 1.0
                value = _error_score(definition, sums.errors[name, region], known, volumes.size, peak, divisor)
            elif definition.mask == MASK_BOTH:
                value = _ssim_masked(volumes, candidate, region, known, peak)
            else:
                total, voxels = sums.similar[name, region, definition]
                value = total / voxels if voxels else float("nan")
            used = peak if definition.data_range else None
            scores.append(Score(case, name, region.name, region.kind, definition, value, used, how))
    return scores


@dataclass(frozen=True, eq=False)
class _Volumes:
    """What every candidate is scored against, on one grid."""

    reference: ImageSource
    body: ImageSource
    labels: ImageSource | None
    slab_voxels: int

    @property
    def size(self) -> int:
        """Voxels of the grid."""
        return int(np.prod(self.reference.grid.shape))


def _check_grids(reference: ImageSource, others: Mapping[str, ImageSource]) -> None:
    for name, source in others.items():
        if not reference.grid.matches(source.grid):
            raise InputError(
                "IMG_GRID",
                where=name,
                found=f"shape {source.grid.shape} against the reference's {reference.grid.shape}, or another affine",
                remedy="score images on one grid: resample none of them silently",
            )


# ---- sums over slabs ------------------------------------------------------------------------------------------------


@dataclass
class _Errors:
    absolute: float = 0.0
    squared: float = 0.0
    squared_nonzero: float = 0.0  # where the reference is not 0
    signed: float = 0.0
    reference: float = 0.0

    def add(self, difference: NDArray[np.float64], reference: NDArray[np.float64], *, nonzero: bool) -> None:
        """Add voxels; ``nonzero``: also sum up those where the reference is not 0, which some scores ask for."""
        squares = np.square(difference)
        self.absolute += float(np.abs(difference).sum())
        self.squared += float(squares.sum())
        if nonzero:
            self.squared_nonzero += float(squares[reference != 0].sum())
        self.signed += float(difference.sum())
        self.reference += float(reference.sum())


@dataclass(frozen=True, eq=False)
class _Sums:
    """Of a candidate's name and a region: errors; with a definition too: sum of the SSIM map and voxels summed."""

    errors: dict[tuple[str, Region], _Errors]
    similar: dict[tuple[str, Region, ScoreDefinition], tuple[float, int]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Slab:
    """A slab of the reference with a halo of slices beyond either face, and the regions in it.

    Args:
        z0: the slab is ``z0 <= z < z1`` of the volume.
        x: the reference, (z1 - z0 + 2 halo, y, x).
        halo: slices.
        boxes: regions that have voxels in the slab and their bounding boxes there.
        masks: their voxels, each of its box's shape; None for all of the box.
    """

    z0: int
    z1: int
    x: NDArray[np.float64]
    halo: int
    boxes: Mapping[Region, Box]
    masks: Mapping[Region, Mask | None]

    @property
    def middle(self) -> slice:
        """Where ``x`` is the slab itself."""
        return slice(self.halo, self.halo + self.z1 - self.z0)


def _summed(
    volumes: _Volumes,
    candidates: Mapping[str, ImageSource],
    regions: Sequence[Region],
    surveys: Mapping[Region, Survey],
    ranges: Mapping[Job, float],
) -> _Sums:
    """Read the reference and every candidate once and sum up errors and SSIM maps over the regions."""
    sums = _Sums({(name, region): _Errors() for name in candidates for region in regions})
    local = [job for job in ranges if job[1].metric == "SSIM" and job[1].mask != MASK_BOTH]
    # Definitions of one window share its moments, whatever they scale; those of one view and range also the map.
    views: dict[tuple[str, str], list[Job]] = {}
    for job in local:
        views.setdefault((job[1].window, job[1].scale), []).append(job)
    windows = list(dict.fromkeys(window for window, _ in views))
    halo = max((WINDOWS[window].radius for window in windows), default=0)
    own = any(scale == OWN_MAXIMA for _, scale in views)
    nonzero = {region for region, definition in ranges if definition.mask == NONZERO}
    maxima = {name: _maximum(image, volumes.slab_voxels) if own else np.nan for name, image in candidates.items()}
    for z0, z1 in slabs(volumes.reference.grid.shape, volumes.slab_voxels):
        slab = _read_slab(volumes, regions, surveys, z0, z1, halo)
        seen = {window: Seen.of(slab.x, WINDOWS[window], halo) for window in windows}
        for name, candidate in candidates.items():
            y = _read_finite(name, candidate, z0, z1, halo)
            difference = (y - slab.x)[slab.middle]
            for region, box in slab.boxes.items():
                mask = slab.masks[region]
                full = _picked(slab.x[slab.middle], box, mask)
                sums.errors[name, region].add(_picked(difference, box, mask), full, nonzero=region in nonzero)
            moments = {window: seen[window].beside(y, halo) for window in windows}
            for (window, scale), jobs in views.items():
                scales = _scale_of(scale, surveys), _scale_of(scale, surveys, maxima[name])
                for (region, definition), got in _similar(moments[window], scales, slab, jobs, ranges, volumes):
                    total, voxels = sums.similar.get((name, region, definition), (0.0, 0))
                    sums.similar[name, region, definition] = total + float(got.sum()), voxels + got.size
    return sums


def _similar(
    moments: Moments,
    scales: tuple[Scale, Scale],
    slab: _Slab,
    jobs: Sequence[Job],
    ranges: Mapping[Job, float],
    volumes: _Volumes,
) -> Iterator[tuple[Job, NDArray[np.float64]]]:
    """SSIM at the voxels of every job's region in one slab, for jobs of one view.

    Of a data range that several jobs have the map is made once; a range of one region's own is asked there alone.
    """
    maps: dict[float, NDArray[np.float64]] = {}
    here = [job for job in jobs if job[0] in slab.boxes]
    often = Counter(ranges[job] for job in here)
    for job in here:
        region, peak = job[0], ranges[job]
        box, mask = slab.boxes[region], slab.masks[region]
        inside = whole_windows(WINDOWS[job[1].window], volumes.reference.grid.shape, box, slab.z0)
        box = _within(box, inside)
        mask = None if mask is None else mask[inside]
        if often[peak] == 1 and mask is not None:
            yield job, similarity(moments.at(box, mask), peak, *scales)
            continue
        if peak not in maps:
            maps[peak] = similarity(moments, peak, *scales)
        yield job, _picked(maps[peak], box, mask)


def _within(box: Box, part: Box) -> Box:
    """A part of a box, in the indices of what the box lies in."""
    z, y, x = (slice(b.start + p.start, b.start + p.stop) for b, p in zip(box, part, strict=True))
    return z, y, x


def _picked(values: NDArray[np.float64], box: Box, mask: Mask | None) -> NDArray[np.float64]:
    """Values of a region in its box; without a mask, of the whole box."""
    return values[box] if mask is None else values[box][mask]


def _read_slab(
    volumes: _Volumes, regions: Sequence[Region], surveys: Mapping[Region, Survey], z0: int, z1: int, halo: int
) -> _Slab:
    x = read_reflected(volumes.reference, z0, z1, halo)
    inside, mark = region_slabs(volumes.body, volumes.labels, z0, z1)
    boxes = {region: box for region in regions if (box := cut_box(surveys[region].box, z0, z1)) is not None}
    masks = {
        region: None
        if region.kind == "whole"
        else region_mask(region, inside[box], mark[box] if mark is not None else None)
        for region, box in boxes.items()
    }
    return _Slab(z0, z1, x, halo, boxes, masks)


def _read_finite(name: str, candidate: ImageSource, z0: int, z1: int, halo: int) -> NDArray[np.float64]:
    y = read_reflected(candidate, z0, z1, halo)
    if not np.isfinite(y).all():
        raise InputError(
            "IMG_NAN", where=name, found="values that are not finite", remedy="repair the image before scoring"
        )
    return y


# ---- one value ------------------------------------------------------------------------------------------------------


def _error_score(
    definition: ScoreDefinition, error: _Errors, known: Survey, everything: int, peak: float, divisor: float
) -> float:
    """PSNR, MAE, NRMSE, NMSE, bias, variance or the bias of the total activity of one region.

    Args:
        definition: which.
        error: sums over the region.
        known: the reference in the region.
        everything: voxels of the whole grid.
        peak: the data range.
        divisor: what intensities were divided by, where the mask is the reference's voxels that are not 0.
    """
    match definition.metric:
        case "PSNR" if definition.mask == NONZERO:
            mean_square = error.squared_nonzero / known.nonzero if known.nonzero else float("nan")
            return psnr_of(mean_square, peak * divisor)
        case "PSNR":
            return psnr_of(error.squared / (everything if definition.mask == MASK_BOTH else known.voxels), peak)
        case "MAE":
            return error.absolute / (everything if definition.mask == MASK_BOTH else known.voxels)
        case "NRMSE" if definition.normalisation == RANGE_REFERENCE:
            span = known.maximum - known.minimum
            return 100 * float(np.sqrt(error.squared / known.voxels)) / span if span > 0 else float("nan")
        case "NRMSE":
            return float(np.sqrt(error.squared / known.sum_squares)) if known.sum_squares > 0 else float("nan")
        case "NMSE":
            return error.squared / known.sum_squares if known.sum_squares > 0 else float("nan")
        case "bias":
            return abs(error.signed) / known.voxels
        case "variance":
            return max(error.squared / known.voxels - (error.signed / known.voxels) ** 2, 0.0)
        case "total activity bias":
            return 100 * error.signed / error.reference if error.reference > 0 else float("nan")
        case unknown:
            raise AssertionError(f"no such metric: {unknown}")


def _ssim_masked(volumes: _Volumes, candidate: ImageSource, region: Region, known: Survey, peak: float) -> float:
    """SSIM over the full grid of both images multiplied by a region.

    Away from the region both images are zero and SSIM is exactly 1, so only its box and a window's radius are computed.
    """
    assert volumes.labels is not None
    assert known.box is not None
    shape = volumes.reference.grid.shape
    _, y_box, x_box = grown = tuple(
        slice(max(s.start - WINDOW_RADIUS, 0), min(s.stop + WINDOW_RADIUS, n))
        for s, n in zip(known.box, shape, strict=True)
    )
    # A cut face must keep zeros beyond it: the reflection there mirrors voxels that are already outside the region.
    total, voxels = 0.0, 0
    for z0, z1 in slabs((grown[0].stop - grown[0].start, shape[1], shape[2]), volumes.slab_voxels):
        z0, z1 = z0 + grown[0].start, z1 + grown[0].start
        mark = read_reflected(volumes.labels, z0, z1, WINDOW_RADIUS)[:, y_box, x_box] == region.label
        x = read_reflected(volumes.reference, z0, z1, WINDOW_RADIUS)[:, y_box, x_box] * mark
        y = read_reflected(candidate, z0, z1, WINDOW_RADIUS)[:, y_box, x_box] * mark
        found = similarity_of(x, y, WINDOW, peak)
        total, voxels = total + float(found.sum()), voxels + found.size
    return (total + (volumes.size - voxels)) / volumes.size


def _range_of(definition: ScoreDefinition, seen: Survey, surveys: Mapping[Region, Survey]) -> float:
    match definition.data_range:
        case "":
            return float("nan")
        case text if text in FIXED_RANGES:
            return FIXED_RANGES[text]
        case text if text == MAX_REFERENCE_REGION:
            return seen.maximum
        case text if text in (MAX_REFERENCE, MAX_REFERENCE_BODY):
            kind = "whole" if text == MAX_REFERENCE else "body"
            return next(seen.maximum for region, seen in surveys.items() if region.kind == kind)
        case unknown:
            raise AssertionError(f"no such range definition: {unknown}")


def _scale_of(scale: str, surveys: Mapping[Region, Survey], own: float | None = None) -> Scale:
    """Offset and divisor of the reference, or of a candidate of maximum ``own``; NaN where that is not positive."""
    if scale == NO_SCALE:
        return 0.0, 1.0
    whole = next(seen for region, seen in surveys.items() if region.kind == "whole")
    match scale:
        case text if text == OWN_MAXIMA:
            maximum = whole.maximum if own is None else own
            return 0.0, maximum if maximum > 0 else float("nan")
        case text if text == FROM_0_TO_1:
            span = whole.maximum - whole.minimum
            return whole.minimum, span if span > 0 else float("nan")
        case unknown:
            raise AssertionError(f"no such scale: {unknown}")


def _maximum(source: ImageSource, slab_voxels: int) -> float:
    return max(float(source.read(z0, z1).max()) for z0, z1 in slabs(source.grid.shape, slab_voxels))
