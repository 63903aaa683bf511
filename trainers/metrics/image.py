"""PSNR, SSIM, MAE, NRMSE and NMSE in three dimensions, on arrays and on volumes that are read slab by slab.

How an error is averaged, over which voxels, on which scale and against which data range stands in every score's
``ScoreDefinition``.

SSIM is Wang et al. 2004 (doi 10.1109/TIP.2003.819861) with a three-dimensional window, K1 = 0.01 and K2 = 0.03.  The
project's own has Gaussian weights over 11 voxels, sigma 1.5, and population covariance; edges are reflected, as in
scikit-image, and a score is the mean of the SSIM map over every voxel of its region.  ``UNIFORM_WINDOW`` is
scikit-image's default instead.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, find_objects

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
    SSIM_WINDOW,
    TWO,
    UNIFORM_WINDOW,
    VOLUMES,
)

Real = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]

K1, K2 = 0.01, 0.03
WINDOW_RADIUS = 5
_TAPS = np.exp(-0.5 * (np.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1) / 1.5) ** 2)
SLAB_VOXELS = 3_000_000  # ~24 MB per float64 working array

FIXED_RANGES = {ONE: 1.0, TWO: 2.0}


@dataclass(frozen=True, eq=False)
class Window:
    """An SSIM window: the same taps along z, y and x.

    Args:
        taps: weights along one axis, an odd number of them, summing to 1.
        bias: what a windowed variance is multiplied by: 1, or n / (n - 1) for the sample's.
        inside: whether voxels whose window passes the volume are left out of a score.
    """

    taps: NDArray[np.float64]
    bias: float
    inside: bool

    @property
    def radius(self) -> int:
        """Voxels on either side of the centre."""
        return len(self.taps) // 2


WINDOW = Window(_TAPS / _TAPS.sum(), 1.0, False)
WINDOWS: Mapping[str, Window] = {
    SSIM_WINDOW: WINDOW,
    UNIFORM_WINDOW: Window(np.full(7, 1 / 7), 7**3 / (7**3 - 1), True),
}


# ---- on arrays ------------------------------------------------------------------------------------------------------


def mae(reference: Real, image: Real, mask: Mask | None = None) -> float:
    """Mean absolute error over ``mask`` (all voxels if None), in the units of the images; arrays of one shape."""
    return float(np.abs(_error(reference, image, mask)).mean())


def mse(reference: Real, image: Real, mask: Mask | None = None) -> float:
    """Mean squared error over ``mask`` (all voxels if None), in squared units of the images."""
    return float(np.square(_error(reference, image, mask)).mean())


def psnr(reference: Real, image: Real, *, data_range: float, mask: Mask | None = None) -> float:
    """Peak signal-to-noise ratio, 10 log10(data_range^2 / MSE), in dB; infinite for equal images."""
    return _psnr(mse(reference, image, mask), data_range)


def nrmse(reference: Real, image: Real, mask: Mask | None = None) -> float:
    """Root mean square error divided by the root mean square of the reference over the same voxels (a fraction)."""
    power = float(np.square(reference if mask is None else reference[mask], dtype=np.float64).mean())
    return float(np.sqrt(mse(reference, image, mask) / power)) if power > 0 else float("nan")


def ssim(reference: Real, image: Real, *, data_range: float, mask: Mask | None = None) -> float:
    """Mean of the SSIM map over ``mask`` (all voxels if None); ``data_range`` in the units of the images."""
    similarity = ssim_map(reference, image, data_range=data_range)
    return float((similarity if mask is None else similarity[mask]).mean())


def ssim_map(reference: Real, image: Real, *, data_range: float) -> NDArray[np.float64]:
    """SSIM at every voxel of two (z, y, x) volumes, edges reflected (Wang et al. 2004, eq. 13)."""
    pad = ((WINDOW_RADIUS, WINDOW_RADIUS), (0, 0), (0, 0))
    x = np.pad(reference.astype(np.float64), pad, mode="symmetric")
    y = np.pad(image.astype(np.float64), pad, mode="symmetric")
    return _ssim(_Moments.of(_blur(x, WINDOW), _blur(x * x, WINDOW), x, y, WINDOW), data_range)


# ---- on sources -----------------------------------------------------------------------------------------------------


@dataclass
class Survey:
    """What one reading of the reference tells about a region: size, extremes, power and bounding box."""

    voxels: int = 0
    nonzero: int = 0
    minimum: float = np.inf
    maximum: float = -np.inf
    sum_squares: float = 0.0
    box: Box | None = None

    def add(self, values: NDArray[np.float64], box: Box) -> None:
        """Take in a region's voxels of one slab; ``box`` is their bounding box in the volume."""
        self.voxels += values.size
        self.nonzero += int(np.count_nonzero(values))
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        self.sum_squares += float(np.square(values).sum())
        self.box = box if self.box is None else _hull(self.box, box)


@dataclass
class _Errors:
    absolute: float = 0.0
    squared: float = 0.0
    squared_nonzero: float = 0.0  # where the reference is not 0

    def add(self, difference: NDArray[np.float64], reference: NDArray[np.float64]) -> None:
        squares = np.square(difference)
        self.absolute += float(np.abs(difference).sum())
        self.squared += float(squares.sum())
        self.squared_nonzero += float(squares[reference != 0].sum())


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
    for name, source in {**candidates, "body": body, **({"labels": labels} if labels else {})}.items():
        if not reference.grid.matches(source.grid):
            raise InputError(
                "IMG_GRID",
                where=name,
                found=f"shape {source.grid.shape} against the reference's {reference.grid.shape}, or another affine",
                remedy="score images on one grid: resample none of them silently",
            )
    surveys = survey(reference, regions, body=body, labels=labels, slab_voxels=slab_voxels)
    if any(region.kind == "body" and seen.maximum <= 0 for region, seen in surveys.items()):
        raise InputError(
            "IMG_EMPTY", where="body", found="no uptake inside the body mask", remedy="check the mask and the image"
        )
    regions = [region for region in regions if surveys[region].voxels]
    definitions = [definition for definition in definitions if definition.dimensionality == VOLUMES]
    jobs = [(region, definition) for region in regions for definition in definitions if region.obeys(definition)]
    ranges = {job: _range_of(job[1], surveys[job[0]], surveys) for job in jobs}

    errors = {(name, region): _Errors() for name in candidates for region in regions}
    similar: dict[tuple[str, Region, ScoreDefinition], tuple[float, int]] = {}  # sum of the SSIM map, voxels summed
    local = [
        (region, definition)
        for region, definition in jobs
        if definition.metric == "SSIM" and definition.mask != MASK_BOTH
    ]
    views = list(
        dict.fromkeys((definition.window, definition.scale) for _, definition in local)
    )  # definitions of one view share moments
    halo = max((WINDOWS[window].radius for window, _ in views), default=0)
    own = any(scale == OWN_MAXIMA for _, scale in views)
    maxima = {name: _maximum(candidate, slab_voxels) if own else np.nan for name, candidate in candidates.items()}
    for z0, z1 in slabs(reference.grid.shape, slab_voxels):
        middle = slice(halo, halo + z1 - z0)
        x = read_reflected(reference, z0, z1, halo)
        inside, mark = _region_slabs(body, labels, z0, z1)
        boxes = {region: box for region in regions if (box := _cut(surveys[region].box, z0, z1)) is not None}
        masks = {
            region: region_mask(region, inside[box], mark[box] if mark is not None else None)
            for region, box in boxes.items()
        }
        seen = {view: _Seen.of(x, view, halo, _scale_of(view[1], surveys)) for view in views}
        for name, candidate in candidates.items():
            y = read_reflected(candidate, z0, z1, halo)
            if not np.isfinite(y).all():
                raise InputError(
                    "IMG_NAN", where=name, found="values that are not finite", remedy="repair the image before scoring"
                )
            difference = (y - x)[middle]
            for region, box in boxes.items():
                errors[name, region].add(difference[box][masks[region]], x[middle][box][masks[region]])
            for view in views:
                moments = seen[view].beside(y, halo, _scale_of(view[1], surveys, maxima[name]))
                for region, definition in local:
                    if region in boxes and view == (definition.window, definition.scale):
                        box = boxes[region]
                        kept = masks[region] & _whole_windows(WINDOWS[definition.window], reference.grid.shape, box, z0)
                        got = _ssim(moments.at(box, kept), ranges[region, definition])
                        total, voxels = similar.get((name, region, definition), (0.0, 0))
                        similar[name, region, definition] = total + float(got.sum()), voxels + got.size

    everything = int(np.prod(reference.grid.shape))
    scores = []
    for name, candidate in candidates.items():
        how = str(candidate.provenance.get("rule", ""))
        for region, definition in jobs:
            known, error, peak = surveys[region], errors[name, region], ranges[region, definition]
            match definition.metric:
                case "PSNR" if definition.mask == NONZERO:
                    mean_square = error.squared_nonzero / known.nonzero if known.nonzero else float("nan")
                    value = _psnr(mean_square, peak * _scale_of(definition.scale, surveys)[1])
                case "PSNR":
                    value = _psnr(error.squared / (everything if definition.mask == MASK_BOTH else known.voxels), peak)
                case "MAE":
                    value = error.absolute / (everything if definition.mask == MASK_BOTH else known.voxels)
                case "NRMSE" if definition.normalisation == RANGE_REFERENCE:
                    span = known.maximum - known.minimum
                    value = 100 * float(np.sqrt(error.squared / known.voxels)) / span if span > 0 else float("nan")
                case "NRMSE":
                    value = float(np.sqrt(error.squared / known.sum_squares)) if known.sum_squares > 0 else float("nan")
                case "NMSE":
                    value = error.squared / known.sum_squares if known.sum_squares > 0 else float("nan")
                case "SSIM" if definition.mask == MASK_BOTH:
                    assert labels is not None
                    assert known.box is not None
                    value = _ssim_masked(reference, candidate, labels, region, known.box, peak, slab_voxels)
                case "SSIM":
                    total, voxels = similar[name, region, definition]
                    value = total / voxels if voxels else float("nan")
                case unknown:
                    raise AssertionError(f"no such metric: {unknown}")
            used = peak if definition.data_range else None
            scores.append(Score(case, name, region.name, region.kind, definition, value, used, how))
    return scores


def survey(
    reference: ImageSource,
    regions: Collection[Region],
    *,
    body: ImageSource,
    labels: ImageSource | None,
    slab_voxels: int = SLAB_VOXELS,
) -> dict[Region, Survey]:
    """Read the reference once and return, per region, its size, maximum, power and bounding box."""
    surveys = {region: Survey() for region in regions}
    for z0, z1 in slabs(reference.grid.shape, slab_voxels):
        x = reference.read(z0, z1).astype(np.float64)
        if not np.isfinite(x).all():
            raise InputError(
                "IMG_NAN", where="reference", found="values that are not finite", remedy="repair the image first"
            )
        inside, mark = _region_slabs(body, labels, z0, z1)
        organs = find_objects(mark) if mark is not None else []
        full = (slice(0, z1 - z0), slice(0, x.shape[1]), slice(0, x.shape[2]))
        for region, seen in surveys.items():
            match region.kind:
                case "whole":
                    box: Box | None = full
                case "body":
                    box = _box_of(find_objects(inside.astype(np.uint8)), 1)
                case _:
                    box = _box_of(organs, region.label)
            if box is not None:
                where = region_mask(region, inside[box], mark[box] if mark is not None else None)
                seen.add(x[box][where], (slice(box[0].start + z0, box[0].stop + z0), box[1], box[2]))
    return surveys


def slabs(shape: tuple[int, int, int], voxels: int = SLAB_VOXELS) -> Iterator[tuple[int, int]]:
    """Cut a (z, y, x) shape into ranges ``z0 <= z < z1`` of at most ``voxels`` voxels (one slice at least)."""
    depth = max(1, voxels // (shape[1] * shape[2]))
    for z0 in range(0, shape[0], depth):
        yield z0, min(z0 + depth, shape[0])


def read_reflected(source: ImageSource, z0: int, z1: int, halo: int) -> NDArray[np.float64]:
    """Read ``z0 - halo <= z < z1 + halo`` as float64, slices beyond the volume reflected about its faces."""
    depth = source.grid.shape[0]
    index = np.arange(z0 - halo, z1 + halo)
    index %= 2 * depth  # the reflected image has period 2 * depth
    index = np.where(index < depth, index, 2 * depth - 1 - index)
    low, high = int(index.min()), int(index.max()) + 1
    slab = source.read(low, high).astype(np.float64)
    return slab if high - low == z1 - z0 + 2 * halo else np.ascontiguousarray(slab[index - low])


def region_mask(region: Region, inside: Mask, mark: NDArray[np.int32] | None) -> Mask:
    """Which voxels of a slab (or of a box of it) belong to ``region``."""
    if region.kind == "whole":
        return np.ones_like(inside)
    if region.kind == "body":
        return inside
    assert mark is not None, "an organ or a lesion needs a label image"
    return np.equal(mark, region.label)


Scale = tuple[float, float]  # (a, s): a value v is scored as (v - a) / s


@dataclass(frozen=True, eq=False)
class _Seen:
    """A reference under an SSIM window: scaled, trimmed to the window's halo, with its windowed first two moments."""

    window: Window
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    mean_square: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[np.float64], view: tuple[str, str], halo: int, scale: Scale) -> "_Seen":
        window = WINDOWS[view[0]]
        x = _viewed(x, window, halo, scale)
        return cls(window, x, _blur(x, window), _blur(x * x, window))

    def beside(self, y: NDArray[np.float64], halo: int, scale: Scale) -> "_Moments":
        return _Moments.of(self.mean, self.mean_square, self.x, _viewed(y, self.window, halo, scale), self.window)


def _viewed(v: NDArray[np.float64], window: Window, halo: int, scale: Scale) -> NDArray[np.float64]:
    spare = halo - window.radius
    v = v[spare : v.shape[0] - spare]
    return v if scale == (0.0, 1.0) else (v - scale[0]) / scale[1]


@dataclass(frozen=True, eq=False)
class _Moments:
    """Windowed means, variances and covariance of two images."""

    mean_x: NDArray[np.float64]
    mean_y: NDArray[np.float64]
    variance_sum: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        mean_x: NDArray[np.float64],
        mean_xx: NDArray[np.float64],
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        window: Window,
    ) -> "_Moments":
        mean_y = _blur(y, window)
        variance_sum = mean_xx + _blur(y * y, window) - mean_x**2 - mean_y**2
        covariance = _blur(x * y, window) - mean_x * mean_y
        return cls(mean_x, mean_y, window.bias * variance_sum, window.bias * covariance)

    def at(self, box: Box, where: Mask) -> "_Moments":
        return _Moments(
            self.mean_x[box][where], self.mean_y[box][where], self.variance_sum[box][where], self.covariance[box][where]
        )


def _ssim(m: _Moments, data_range: float) -> NDArray[np.float64]:
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    top = (2 * m.mean_x * m.mean_y + c1) * (2 * m.covariance + c2)
    return top / ((m.mean_x**2 + m.mean_y**2 + c1) * (m.variance_sum + c2))


def _blur(padded: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    """Window means; the z halo of the window's radius on either side is used up, y and x are reflected."""
    z = correlate1d(padded, window.taps, axis=0)[window.radius : padded.shape[0] - window.radius]
    y = correlate1d(z, window.taps, axis=1, mode="reflect")
    return np.asarray(correlate1d(y, window.taps, axis=2, mode="reflect"))


def _whole_windows(window: Window, shape: tuple[int, int, int], box: Box, z0: int) -> Mask:
    """Which voxels of a slab's ``box`` enter the mean of the SSIM map; broadcasts over the box."""
    if not window.inside:
        return np.ones((1, 1, 1), dtype=bool)
    first = (z0, 0, 0)
    z, y, x = (
        (np.arange(s.start, s.stop) + a >= window.radius) & (np.arange(s.start, s.stop) + a < n - window.radius)
        for s, a, n in zip(box, first, shape, strict=True)
    )
    return z[:, None, None] & y[:, None] & x


def _ssim_masked(
    reference: ImageSource,
    candidate: ImageSource,
    labels: ImageSource,
    region: Region,
    box: Box,
    peak: float,
    slab_voxels: int,
) -> float:
    """SSIM over the full grid of both images multiplied by a region.

    Away from the region both images are zero and SSIM is exactly 1, so only its box and a window's radius are computed.
    """
    shape = reference.grid.shape
    _, y_box, x_box = grown = tuple(
        slice(max(s.start - WINDOW_RADIUS, 0), min(s.stop + WINDOW_RADIUS, n)) for s, n in zip(box, shape, strict=True)
    )
    # A cut face must keep zeros beyond it: the reflection there mirrors voxels that are already outside the region.
    total, voxels = 0.0, 0
    for z0, z1 in slabs((grown[0].stop - grown[0].start, shape[1], shape[2]), slab_voxels):
        z0, z1 = z0 + grown[0].start, z1 + grown[0].start
        mark = read_reflected(labels, z0, z1, WINDOW_RADIUS)[:, y_box, x_box] == region.label
        x = read_reflected(reference, z0, z1, WINDOW_RADIUS)[:, y_box, x_box] * mark
        y = read_reflected(candidate, z0, z1, WINDOW_RADIUS)[:, y_box, x_box] * mark
        similarity = _ssim(_Moments.of(_blur(x, WINDOW), _blur(x * x, WINDOW), x, y, WINDOW), peak)
        total, voxels = total + float(similarity.sum()), voxels + similarity.size
    everything = int(np.prod(shape))
    return (total + (everything - voxels)) / everything


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


def _psnr(mean_square: float, data_range: float) -> float:
    return float(10 * np.log10(data_range**2 / mean_square)) if mean_square != 0 else float("inf")


def _error(reference: Real, image: Real, mask: Mask | None) -> NDArray[np.float64]:
    difference = image.astype(np.float64) - reference
    return difference if mask is None else difference[mask]


def _region_slabs(
    body: ImageSource, labels: ImageSource | None, z0: int, z1: int
) -> tuple[Mask, NDArray[np.int32] | None]:
    mark = None if labels is None else np.rint(labels.read(z0, z1)).astype(np.int32)
    return body.read(z0, z1) > 0.5, mark


def _box_of(found: Sequence[tuple[slice, ...] | None], label: int) -> Box | None:
    if not 1 <= label <= len(found):
        return None
    box = found[label - 1]
    return None if box is None else (box[0], box[1], box[2])


def _hull(a: Box, b: Box) -> Box:
    z, y, x = (slice(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(a, b, strict=True))
    return z, y, x


def _cut(box: Box | None, z0: int, z1: int) -> Box | None:
    """The part of a volume's ``box`` that lies in a slab, in the slab's own indices."""
    if box is None or box[0].stop <= z0 or box[0].start >= z1:
        return None
    return slice(max(box[0].start, z0) - z0, min(box[0].stop, z1) - z0), box[1], box[2]
