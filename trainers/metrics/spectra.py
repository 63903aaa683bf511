"""Spatial frequencies of an image: how fine the detail is that it shares with the full dose, and its noise's texture.

The *Fourier ring correlation* of two images is their correlation at one spatial frequency (Saxton and Baumeister, J.
Microsc. 127 (1982) 127; for PET, its falling below 0.5 marks the finest detail that both show).  The *noise power
spectrum* of an organ tells coarse noise from fine: smoothing lowers its level and moves it to low frequencies
(Siewerdsen, Cunningham and Jaffray, Med. Phys. 29 (2002) 2655).  In a patient it holds the organ's own texture as well.

Both are of axial slices, of at most ``MOST_SLICES`` that are spread evenly over the body, in bins of equal frequency.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from storage.source import ImageSource
from trainers.metrics.definitions import Region, Score, ScoreDefinition
from trainers.metrics.identifiers import AXIAL, INSIDE_POWER, RING_CORRELATION
from trainers.metrics.image import Mask
from trainers.metrics.slabs import SLAB_VOXELS, region_slabs, slabs

MOST_SLICES = 64
BIN_PER_MM = 0.01
BINS = 40  # up to 0.4 / mm, the Nyquist frequency of pixels of 1.25 mm
FREQUENCIES_PER_MM = (np.arange(BINS) + 0.5) * BIN_PER_MM
LEAST_SIDE = 16  # pixels of a slice's box
LEAST_PIXELS = 64  # of an organ in a slice
HALF = 0.5
Curve = NDArray[np.float64]

DETAIL = ScoreDefinition(
    "finest common detail", "body", RING_CORRELATION, "mm", dimensionality=AXIAL, preset="clinical"
)
TEXTURE = ScoreDefinition("noise frequency", "ROI", INSIDE_POWER, "1/mm", dimensionality=AXIAL, preset="clinical")


@dataclass
class _Rings:
    """Sums over rings of frequency: power of either image and their common power."""

    own: Curve = field(default_factory=lambda: np.zeros(BINS))
    reference: Curve = field(default_factory=lambda: np.zeros(BINS))
    common: Curve = field(default_factory=lambda: np.zeros(BINS))


@dataclass
class _Noise:
    """Sums over rings of frequency of an organ's power, its number of samples, and its sums over all frequencies."""

    power: Curve = field(default_factory=lambda: np.zeros(BINS))
    samples: Curve = field(default_factory=lambda: np.zeros(BINS))
    total: float = 0.0
    weighted: float = 0.0


@dataclass(frozen=True, eq=False)
class Spectra:
    """Spectra of one image of a case at ``FREQUENCIES_PER_MM``; NaN where a case has no such frequency.

    Args:
        correlation: Fourier ring correlation with the reference, from -1 to 1; all NaN for the reference itself.
        detail_mm: 1 over the frequency at which it falls below 0.5; NaN where it never reaches that.
        noise: organ -> noise power spectrum in SUV^2 mm^2.
        noise_per_mm: organ -> mean frequency of its noise in 1/mm.
    """

    correlation: Curve
    detail_mm: float
    noise: Mapping[str, Curve]
    noise_per_mm: Mapping[str, float]


def stream_spectra(
    reference: ImageSource,
    images: Mapping[str, ImageSource],
    organs: Sequence[Region],
    *,
    body: ImageSource,
    labels: ImageSource | None = None,
    slab_voxels: int = SLAB_VOXELS,
) -> dict[str, Spectra]:
    """Measure the spectra of images of one case, a slab at a time.

    Args:
        reference: the full-dose image, (z, y, x); images, body and labels lie on its grid.
        images: name -> image; the reference may be among them.
        organs: where noise is measured.
        body: greater than 0.5 inside the patient.
        labels: integers; needed where organs are given.
        slab_voxels: size of the slabs; the spectra do not depend on it.
    """
    rings = {name: _Rings() for name in images}
    noise = {name: {organ.name: _Noise() for organ in organs} for name in images}
    _, dy, dx = reference.grid.spacing_mm
    for inside, mark, x, planes in _slices(reference, images, body, labels if organs else None, slab_voxels):
        box = _box(inside)
        if min(s.stop - s.start for s in box) >= LEAST_SIDE:
            window = np.outer(*(np.hanning(s.stop - s.start + 2)[1:-1] for s in box))
            ring = _ring(window.shape, (dy, dx))
            first = fft.fft2(x[box] * window)
            for name, plane in planes.items():
                second = fft.fft2(plane[box] * window)
                sums = rings[name]
                sums.reference += _binned(ring, np.square(np.abs(first)))
                sums.own += _binned(ring, np.square(np.abs(second)))
                sums.common += _binned(ring, (first * second.conj()).real)
        for organ in organs:
            assert mark is not None
            where = mark == organ.label
            if np.count_nonzero(where) >= LEAST_PIXELS:
                for name, plane in planes.items():
                    _add_noise(noise[name][organ.name], plane, where, (dy, dx))
    return {
        name: _spectra(rings[name], noise[name], nyquist=0.5 / max(dy, dx), same=image is reference)
        for name, image in images.items()
    }


def spectral_scores(
    case: str, images: Mapping[str, ImageSource], spectra: Mapping[str, Spectra], *, reference_name: str = "full dose"
) -> list[Score]:
    """Return the finest detail that each image shares with the full dose, and the frequency of its noise in organs."""
    scores = []
    for name, found in spectra.items():
        how = str(images[name].provenance.get("rule", "")) if name in images else ""
        if name != reference_name:
            scores.append(Score(case, name, "body", "body", DETAIL, found.detail_mm, None, how))
        scores += [
            Score(case, name, organ, "organ", TEXTURE, value, None, how) for organ, value in found.noise_per_mm.items()
        ]
    return scores


def _slices(
    reference: ImageSource,
    images: Mapping[str, ImageSource],
    body: ImageSource,
    labels: ImageSource | None,
    slab_voxels: int,
) -> Iterator[tuple[Mask, NDArray[np.int32] | None, Curve, dict[str, Curve]]]:
    """Give the body, the labels, the reference and every image in each of the slices that are measured."""
    shape = reference.grid.shape
    met = [z0 + z for z0, z1 in slabs(shape, slab_voxels) for z in np.flatnonzero(_meets(body, z0, z1)).tolist()]
    chosen = {met[at] for at in np.linspace(0, len(met) - 1, min(MOST_SLICES, len(met))).round().astype(int).tolist()}
    for z0, z1 in slabs(shape, slab_voxels):
        wanted = sorted(z - z0 for z in chosen if z0 <= z < z1)
        if not wanted:
            continue
        inside, mark = region_slabs(body, labels, z0, z1)
        x = reference.read(z0, z1)
        planes = {name: x if image is reference else image.read(z0, z1) for name, image in images.items()}
        for z in wanted:
            own = {name: slab[z].astype(np.float64) for name, slab in planes.items()}
            yield inside[z], None if mark is None else mark[z], x[z].astype(np.float64), own


def _meets(body: ImageSource, z0: int, z1: int) -> Mask:
    return np.asarray((body.read(z0, z1) > 0.5).any(axis=(1, 2)))


def _box(where: Mask) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _frequency(shape: tuple[int, ...], spacing_mm: tuple[float, float]) -> Curve:
    """Return the frequency of every sample of a 2D spectrum in 1/mm."""
    y, x = (np.fft.fftfreq(n, d) for n, d in zip(shape, spacing_mm, strict=True))
    return np.asarray(np.hypot(y[:, None], x[None]))


def _ring(shape: tuple[int, ...], spacing_mm: tuple[float, float]) -> NDArray[np.intp]:
    """Return the bin of every sample of a 2D spectrum; ``BINS`` for the mean and beyond the Nyquist frequency."""
    frequency = _frequency(shape, spacing_mm)
    ring = (frequency / BIN_PER_MM).astype(np.intp)
    return np.where((frequency > 0) & (frequency <= 0.5 / max(spacing_mm)), ring, BINS).clip(max=BINS)


def _binned(ring: NDArray[np.intp], values: Curve) -> Curve:
    return np.bincount(ring.ravel(), weights=values.ravel(), minlength=BINS + 1)[:BINS].astype(np.float64)


def _add_noise(sums: _Noise, plane: Curve, where: Mask, spacing_mm: tuple[float, float]) -> None:
    """Take in an organ's slice: what is left of it about its plane of best fit, its power over its area."""
    box = _box(where)
    inside = where[box]
    y, x = np.nonzero(inside)
    slope = np.stack([np.ones(len(y)), y, x], axis=1)
    values = plane[box][inside]
    values = values - slope @ np.linalg.lstsq(slope, values, rcond=None)[0]
    alone = np.zeros(inside.shape)
    alone[inside] = values
    power = np.square(np.abs(fft.fft2(alone))) * (spacing_mm[0] * spacing_mm[1] / len(values))
    frequency = _frequency(alone.shape, spacing_mm)
    ring = _ring(alone.shape, spacing_mm)
    sums.power += _binned(ring, power)
    sums.samples += _binned(ring, np.ones(power.shape))
    sums.total += float(power[ring < BINS].sum())
    sums.weighted += float((power * frequency)[ring < BINS].sum())


def _spectra(rings: _Rings, noise: Mapping[str, _Noise], *, nyquist: float, same: bool) -> Spectra:
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = rings.common / np.sqrt(rings.own * rings.reference)
        measured = {organ: sums for organ, sums in noise.items() if sums.total > 0}
        curves = {
            organ: sums.power / np.where(sums.samples > 0, sums.samples, np.nan) for organ, sums in measured.items()
        }
    return Spectra(
        np.full(BINS, np.nan) if same else correlation,
        float("nan") if same else detail_mm(correlation, nyquist),
        curves,
        {organ: sums.weighted / sums.total for organ, sums in measured.items()},
    )


def detail_mm(correlation: Curve, nyquist_per_mm: float) -> float:
    """Return 1 over the frequency at which a ring correlation first falls below 0.5, in mm.

    Args:
        correlation: at ``FREQUENCIES_PER_MM``, NaN where there is no such frequency.
        nyquist_per_mm: of the image: no finer detail can be told.

    Returns:
        1 over the Nyquist frequency where it never falls so low; NaN where it begins below 0.5, or is not known.
    """
    known = np.flatnonzero(np.isfinite(correlation))
    if not len(known) or correlation[known[0]] < HALF:
        return float("nan")
    below = known[correlation[known] < HALF]
    if not len(below):
        return 1 / nyquist_per_mm
    right = int(below[0])
    left = int(known[known < right][-1])
    share = (correlation[left] - HALF) / (correlation[left] - correlation[right])
    frequency = FREQUENCIES_PER_MM[left] + share * (FREQUENCIES_PER_MM[right] - FREQUENCIES_PER_MM[left])
    return 1 / min(float(frequency), nyquist_per_mm)
