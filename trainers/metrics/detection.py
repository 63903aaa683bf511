"""Lesions found in one synthesized PET: where they are searched, and which of them are found.

Ben-Cohen et al. (arXiv 1707.09585): a tumour counts as found when the synthesized SUVmax in it exceeds 2.5.  What the
paper leaves open is a field of ``DetectionConfig``.  ``detection_statistics`` pools many scans.

A true lesion is a 26-connected component of the lesion label in region R whose SUVmax on the real PET exceeds the
threshold; others are left out and counted, and a hot prediction there is a false positive.  A focus is a 26-connected
component of {synthesized > threshold} in R of a smallest volume.

    overlap  A lesion is found if its highest synthesized voxel, or one within the tolerance, exceeds the threshold; a
             focus that touches no true lesion is a false positive.  This is the paper's rule, and an image of 3 SUV
             everywhere satisfies it: one focus touches every lesion.
    peak     A focus serves one lesion, the one its highest voxel lies in (of several highest, the voxel nearest their
             centroid); a lesion is found only so, and every other focus is a false positive.

Lesions have a label of their own, so an organ's voxels have holes where lesions lie: R is the organs together with
every lesion that touches them (26 neighbours), whole.  A lesion across an organ's border belongs to R therefore, and so
does one that only touches it from outside.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects, label

from storage.errors import InputError
from storage.source import SUV, Grid, ImageSource
from trainers.metrics.clinical import separate
from trainers.metrics.identifiers import detection_key, sentence
from trainers.metrics.image import Mask
from trainers.metrics.slabs import Box, slabs

Volume = NDArray[np.float32]
Matching = Literal["overlap", "peak"]

_CORNERS = np.ones((3, 3, 3), dtype=np.uint8)  # 26-connectivity
_NEIGHBOURS = np.array(list(product((-1, 0, 1), repeat=3)))


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """What counts as found.

    Args:
        threshold_suv: a lesion is seen above it, strictly, on the real and on the synthesized PET.
        organs: names of the labels that are searched, for instance the liver and its cysts; none: the whole body mask,
            as ``text`` says.
        lesion: name of the label that holds lesions.
        rule: how foci and lesions are matched, see the module.
        tolerance_mm: how far beyond a lesion's voxels a hit may lie, in R; for breathing.
        smallest_focus_ml: smaller foci are noise: neither hits by ``peak`` nor false positives; 0 keeps all.
        froc_thresholds_suv: where the FROC curve is computed besides ``threshold_suv``; none for no curve.
    """

    threshold_suv: float = 2.5
    organs: tuple[str, ...] = ()
    lesion: str = "lesion"
    rule: Matching = "overlap"
    tolerance_mm: float = 0.0
    smallest_focus_ml: float = 0.2
    froc_thresholds_suv: tuple[float, ...] = tuple(np.arange(0.5, 10.25, 0.25).tolist())

    @property
    def key(self) -> str:
        """What makes two counts comparable, as a short stable text: the ``mask`` of a score's definition."""
        return detection_key(
            self.rule,
            threshold_suv=self.threshold_suv,
            organs=self.organs,
            lesion=self.lesion,
            tolerance_mm=self.tolerance_mm,
            focus_ml=self.smallest_focus_ml,
        )

    def text(self) -> str:
        """Return the rule as one readable line."""
        return sentence(self.key)


# ---- where to look --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Search:
    """The region R of one scan and the lesions in it; images are read in its bounding box only.

    Args:
        box: the bounding box of R in the volume.
        region: voxels of R, (z, y, x) of the box.
        lesions: voxel indices (n, 3) in the box of every lesion, the largest first.
        grid: of the whole volume.
    """

    box: Box
    region: Mask
    lesions: tuple[NDArray[np.intp], ...]
    grid: Grid

    def read(self, image: ImageSource) -> Volume:
        """Return the box of an image on the scan's grid.

        Raises:
            InputError: ``IMG_GRID`` if the image lies on another grid; ``IMG_UNITS`` if it is not in SUVbw;
                ``IMG_NAN`` if it is not finite.
        """
        if not self.grid.matches(image.grid):
            raise InputError(
                "IMG_GRID",
                where="image",
                found=f"shape {image.grid.shape} against the labels' {self.grid.shape}, or another affine",
                remedy="search an image on the labels' grid",
            )
        if image.units != SUV:
            raise InputError(
                "IMG_UNITS", where="image", found=f"units {image.units}", remedy="convert it to SUVbw at ingest"
            )
        voxels = _read_box(image, self.box)
        if not np.isfinite(voxels).all():
            raise InputError(
                "IMG_NAN", where="image", found="values that are not finite", remedy="repair the image before scoring"
            )
        return voxels


def search(
    config: DetectionConfig, *, labels: ImageSource | None, label_names: Mapping[int, str], body: ImageSource
) -> Search:
    """Find R and its lesions, reading slab by slab; memory grows with R's bounding box, not with the volume.

    Args:
        config: which organs, or the body, and which label holds lesions.
        labels: integers, on the images' grid.
        label_names: what each label is.
        body: greater than 0.5 inside the patient.

    Raises:
        InputError: ``SET_NO_LABELS`` without a lesion label, or without a voxel of the organs.
    """
    lesion = _label_of(config.lesion, label_names if labels is not None else {})
    assert labels is not None
    organs = [_label_of(organ, label_names) for organ in config.organs]
    place = labels if organs else body

    def inside(slab: Volume) -> Mask:
        return np.isin(np.rint(slab), organs) if organs else slab > 0.5

    shape = labels.grid.shape
    box = _bounds(place, inside)
    if box is None:
        raise InputError(
            "SET_NO_LABELS",
            where="labels" if organs else "body",
            found=f"no voxel of {' or '.join(config.organs) or 'the body'} in this case",
            remedy=f"ingest a mask that holds it (petscale ingest --mask), or leave the organ out{_ELSE}",
        )
    separated = separate(labels, lesion)
    at = np.stack(np.unravel_index(separated.indices, shape), axis=-1)
    touching = _touching(at, inside(_read_box(place, box)), box)
    numbers = np.unique(separated.numbers[touching])  # ascending: the largest first
    lesions = [at[separated.numbers == number] for number in numbers]
    ends = np.array([[side.start for side in box], [side.stop for side in box]])
    for voxels in lesions:
        ends[0] = np.minimum(ends[0], voxels.min(axis=0))
        ends[1] = np.maximum(ends[1], voxels.max(axis=0) + 1)
    z, y, x = (slice(low, high) for low, high in ends.T.tolist())
    region = inside(_read_box(place, (z, y, x)))
    lesions = [voxels - ends[0] for voxels in lesions]
    for voxels in lesions:
        region[tuple(voxels.T)] = True
    return Search((z, y, x), region, tuple(lesions), labels.grid)


_ELSE = "; a phantom has labels of its own (petscale phantom)"


def _label_of(name: str, label_names: Mapping[int, str]) -> int:
    for number, known in label_names.items():
        if known == name:
            return number
    raise InputError(
        "SET_NO_LABELS",
        where="labels",
        found=f"no label '{name}' (there are: {', '.join(label_names.values()) or 'none'})",
        remedy=f"ingest a mask that names it (petscale ingest --mask){_ELSE}",
    )


def _read_box(source: ImageSource, box: Box) -> Volume:
    z, y, x = box
    voxels = np.empty([side.stop - side.start for side in box], dtype=np.float32)
    for z0, z1 in slabs((len(voxels), *source.grid.shape[1:])):
        voxels[z0:z1] = source.read(z.start + z0, z.start + z1)[:, y, x]
    return voxels


def _bounds(source: ImageSource, inside: Callable[[Volume], Mask]) -> Box | None:
    low, high = np.full(3, np.iinfo(np.intp).max), np.full(3, -1)
    for z0, z1 in slabs(source.grid.shape):
        (found,) = find_objects(inside(source.read(z0, z1)).astype(np.uint8)) or (None,)
        if found is not None:
            low = np.minimum(low, [found[0].start + z0, found[1].start, found[2].start])
            high = np.maximum(high, [found[0].stop + z0, found[1].stop, found[2].stop])
    if high[0] < 0:
        return None
    z, y, x = (slice(a, b) for a, b in np.stack([low, high], axis=-1).tolist())
    return z, y, x


def _touching(at: NDArray[np.intp], inside: Mask, box: Box) -> Mask:
    """Which of the voxels ``at`` lie in the mask of ``box`` or are one of its 26 neighbours."""
    found = np.zeros(len(at), dtype=bool)
    start = np.array([side.start for side in box])
    for offset in _NEIGHBOURS:
        spot = at + offset - start
        known = ((spot >= 0) & (spot < inside.shape)).all(axis=1)
        found[known] |= inside[tuple(spot[known].T)]
    return found


# ---- one scan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesion:
    """A lesion in R.

    Args:
        volume_ml: volume of its voxels.
        real_suvmax: highest value of the real PET in it.
        synthesized_suvmax: highest value of the synthesized PET in it.
        reached_suvmax: the same within the tolerance too, in R: what ``overlap`` compares.
        shown: whether the real PET shows it; if not, it is no true lesion.
    """

    volume_ml: float
    real_suvmax: float
    synthesized_suvmax: float
    reached_suvmax: float
    shown: bool


@dataclass(frozen=True)
class Count:
    """What one threshold finds in a scan.

    Args:
        threshold_suv: of the synthesized PET; the true lesions do not depend on it.
        overlap: for every lesion shown, whether it is found by that rule; peak likewise.
        false_overlap: false positives by that rule; ``false_peak`` likewise.
        hot_ml: volume in R above the threshold.
    """

    threshold_suv: float
    overlap: tuple[bool, ...]
    peak: tuple[bool, ...]
    false_overlap: int
    false_peak: int
    hot_ml: float

    def found(self, rule: Matching) -> tuple[bool, ...]:
        """Which of the lesions shown are found."""
        return self.overlap if rule == "overlap" else self.peak

    def false(self, rule: Matching) -> int:
        """Number of false positives."""
        return self.false_overlap if rule == "overlap" else self.false_peak


@dataclass(frozen=True)
class Found:
    """What was found in one scan: at ``threshold_suv`` and, for the FROC curve, at other thresholds, ascending."""

    threshold_suv: float
    lesions: tuple[Lesion, ...]
    counts: tuple[Count, ...]

    @property
    def shown(self) -> tuple[Lesion, ...]:
        """The true lesions."""
        return tuple(lesion for lesion in self.lesions if lesion.shown)

    @cached_property
    def at(self) -> Count:
        """What the threshold itself finds."""
        return next(count for count in self.counts if count.threshold_suv == self.threshold_suv)

    def json(self) -> dict[str, object]:
        """Return everything as JSON-able values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Reach:
    """Where a hit of a lesion may lie: distance in mm from its voxels, infinite beyond the tolerance or R."""

    box: Box
    distance: NDArray[np.float64]

    def of(self, at: NDArray[np.intp]) -> NDArray[np.float64]:
        """Distances of the voxels ``at`` (n, 3)."""
        spot = at - [side.start for side in self.box]
        known = ((spot >= 0) & (spot < self.distance.shape)).all(axis=1)
        distances = np.full(len(at), np.inf)
        distances[known] = self.distance[tuple(spot[known].T)]
        return distances


def detect(real: Volume, synthesized: Volume, where: Search, config: DetectionConfig) -> Found:
    """Find the lesions of one scan in a synthesized PET.

    Args:
        real: the real PET in ``where.box`` (``where.read``), SUV, finite; synthesized likewise.
        where: R and its lesions.
        config: what counts as found.
    """
    reaches = [_reach(voxels, where, config.tolerance_mm) for voxels in where.lesions]
    lesions = []
    for voxels, reach in zip(where.lesions, reaches, strict=True):
        highest = float(real[tuple(voxels.T)].max())
        reached = float(synthesized[reach.box][np.isfinite(reach.distance)].max())
        inside = float(synthesized[tuple(voxels.T)].max())
        shown = highest > _float32(config.threshold_suv)
        lesions.append(Lesion(len(voxels) * where.grid.voxel_ml, highest, inside, reached, shown))
    true = [(lesion, reach) for lesion, reach in zip(lesions, reaches, strict=True) if lesion.shown]
    thresholds = sorted({config.threshold_suv, *config.froc_thresholds_suv})
    counts = tuple(_count(synthesized, where, true, threshold, config) for threshold in thresholds)
    return Found(config.threshold_suv, tuple(lesions), counts)


def _reach(voxels: NDArray[np.intp], where: Search, tolerance_mm: float) -> _Reach:
    margin = np.ceil(tolerance_mm / np.array(where.grid.spacing_mm)).astype(np.intp)
    low = np.maximum(voxels.min(axis=0) - margin, 0)
    high = np.minimum(voxels.max(axis=0) + 1 + margin, where.region.shape)
    z, y, x = (slice(a, b) for a, b in np.stack([low, high], axis=-1).tolist())
    outside = np.ones(high - low, dtype=bool)
    outside[tuple((voxels - low).T)] = False
    distance = distance_transform_edt(outside, sampling=where.grid.spacing_mm)
    # A hair of tolerance: 2 voxels of 2.5 mm are 5 mm, whatever the affine's rounding.
    near = (distance <= tolerance_mm + 1e-6) & where.region[z, y, x]
    return _Reach((z, y, x), np.where(near, distance, np.inf))


def _count(
    synthesized: Volume, where: Search, true: Sequence[tuple[Lesion, _Reach]], threshold: float, config: DetectionConfig
) -> Count:
    hot = (synthesized > _float32(threshold)) & where.region
    foci, num_foci = label(hot, structure=_CORNERS)
    at = np.flatnonzero(hot)
    number = foci.reshape(-1)[at] - 1
    volumes = np.bincount(number, minlength=num_foci) * where.grid.voxel_ml
    kept = volumes >= config.smallest_focus_ml * (1 - 1e-9)
    touched = np.zeros(num_foci + 1, dtype=bool)  # the first for what is cold
    owner, nearest = np.full(num_foci, -1), np.full(num_foci, np.inf)
    peaks = _peaks(at, number, synthesized.reshape(-1)[at], num_foci, hot.shape)
    for index, (_, reach) in enumerate(true):
        touched[foci[reach.box][np.isfinite(reach.distance)]] = True
        distance = reach.of(peaks)
        closer = distance < nearest
        owner[closer], nearest[closer] = index, distance[closer]
    served = set(owner[kept].tolist())
    return Count(
        threshold,
        overlap=tuple(lesion.reached_suvmax > _float32(threshold) for lesion, _ in true),
        peak=tuple(index in served for index in range(len(true))),
        false_overlap=int((kept & ~touched[1:]).sum()),
        false_peak=int((kept & (owner < 0)).sum()),
        hot_ml=len(at) * where.grid.voxel_ml,
    )


def _peaks(
    at: NDArray[np.intp],
    number: NDArray[np.int32],
    values: NDArray[np.float32],
    num_foci: int,
    shape: tuple[int, ...],
) -> NDArray[np.intp]:
    """Index (z, y, x) of every focus's highest voxel, or of the voxel at the centroid of several highest."""
    highest = np.full(num_foci, -np.inf, dtype=np.float32)
    np.maximum.at(highest, number, values)
    top = values == highest[number]
    members = np.bincount(number[top], minlength=num_foci)
    axes = np.unravel_index(at[top], shape)
    centroids = [np.bincount(number[top], weights=axis, minlength=num_foci) / members for axis in axes]
    return np.rint(np.stack(centroids, axis=-1)).astype(np.intp)


def _float32(threshold: float) -> float:
    """The threshold as voxels see it, so that a focus and a lesion never disagree about a voxel of just that value."""
    return float(np.float32(threshold))
