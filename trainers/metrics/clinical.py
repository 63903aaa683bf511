"""Uptake in organs and lesions: SUVmean, SUVmax, SUVpeak, volume, MTV, TLG, noise, and the bias of each.

Images are in SUVbw; organs and lesions are outlined by a label image.

SUVpeak is the highest mean over a sphere of 1 mL (radius 6.2 mm) centred on any voxel of the region; voxels of the
sphere outside the region count, those outside the volume do not (IBSI global intensity peak, doi
10.1148/radiol.2020191145).  TLG = SUVmean x volume.

MTV is the volume inside the region at or above 41 % of its own SUVmax, and TLG41 the SUVmean there times MTV (EANM
guideline 2015, doi 10.1007/s00259-014-2961-x): both depend on the image, where the region's own volume does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from storage.errors import InputError
from storage.source import SUV, Grid, ImageSource
from trainers.metrics.definitions import Region, Score, ScoreDefinition
from trainers.metrics.identifiers import ABOVE_41, INSIDE
from trainers.metrics.slabs import SLAB_VOXELS, slabs

PEAK_RADIUS_MM = 10 * (3 / (4 * np.pi)) ** (1 / 3)  # of a sphere of 1 mL
MTV_SHARE = 0.41  # of a lesion's SUVmax, EANM 2015
_GATHER = 100_000  # sphere centres taken at once: bounds memory to a few MB


def _clinical(metric: str, units: str, mask: str = INSIDE) -> ScoreDefinition:
    return ScoreDefinition(metric, "ROI", mask, units, preset="clinical")


VOLUME, NOISE = _clinical("volume", "mL"), _clinical("CoV", "%")
QUANTITIES = {
    "SUVmean": _clinical("SUVmean", "SUVbw"),
    "SUVmax": _clinical("SUVmax", "SUVbw"),
    "SUVpeak": _clinical("SUVpeak", "SUVbw"),
    "TLG": _clinical("TLG", "SUVbw mL"),
    "MTV": _clinical("MTV", "mL", ABOVE_41),
    "TLG41": _clinical("TLG41", "SUVbw mL", ABOVE_41),
}
BIASES = {name: _clinical(f"{name} bias", "% of the full-dose value", rule.mask) for name, rule in QUANTITIES.items()}
ACTIVITY_BIAS = ScoreDefinition(
    "total activity bias", "body", INSIDE, "% of the full-dose value", preset="clinical"
)  # of the sum over the body; ``streaming.stream_scores`` computes it


@dataclass(frozen=True)
class Uptake:
    """What a region holds: volume in mL; mean, standard deviation, maximum and peak in SUV.

    ``mtv_ml`` and ``tlg41``, in mL and SUV mL, are of lesions; NaN for an organ, and where nothing is above 0.
    """

    volume_ml: float
    mean: float
    sd: float
    maximum: float
    peak: float
    mtv_ml: float = float("nan")
    tlg41: float = float("nan")

    def quantities(self, kind: str) -> dict[str, float]:
        """Return the quantities reported for a ``kind`` of region; volumes of uptake are for lesions only."""
        values = {"SUVmean": self.mean, "SUVmax": self.maximum, "SUVpeak": self.peak}
        if kind != "lesion":
            return values
        return {**values, "TLG": self.mean * self.volume_ml, "MTV": self.mtv_ml, "TLG41": self.tlg41}


def stream_uptake(
    image: ImageSource, labels: ImageSource, regions: Sequence[Region], *, slab_voxels: int = SLAB_VOXELS
) -> dict[Region, Uptake]:
    """Measure ``image`` in every organ or lesion of ``regions`` that has a voxel, slab by slab.

    Raises:
        InputError: ``IMG_UNITS`` if the image is not in SUVbw.
    """
    if image.units != SUV:
        raise InputError(
            "IMG_UNITS", where="image", found=f"units {image.units}", remedy="convert it to SUVbw at ingest"
        )
    offsets = _sphere(image.grid.spacing_mm)
    reach = offsets.max(axis=0)
    halo = int(reach[0])
    sums = {region: np.zeros(3) for region in regions}  # voxels, sum, sum of squares
    maxima = {region: np.array([-np.inf, -np.inf]) for region in regions}  # maximum, peak
    kept: dict[Region, list[NDArray[np.float32]]] = {region: [] for region in regions}  # a lesion's voxels
    depth = image.grid.shape[0]
    for z0, z1 in slabs(image.grid.shape, slab_voxels):
        mark = np.rint(labels.read(z0, z1)).astype(np.int32)
        boxes = dict(enumerate(find_objects(mark), 1))
        here = [(region, box) for region in regions if (box := boxes.get(region.label)) is not None]
        if not here:
            continue
        low = max(z0 - halo, 0)
        slab = image.read(low, min(z1 + halo, depth)).astype(np.float64)
        for region, box in here:
            # What a region's spheres see: its box and their reach, as far as the slab goes.
            start = np.array([part.start for part in box])
            start[0] += z0 - low
            first = np.maximum(start - reach, 0)
            last = start + [part.stop - part.start for part in box] + reach
            near = slab[tuple(slice(int(i), int(j)) for i, j in zip(first, last, strict=True))]
            at = np.argwhere(mark[box] == region.label) + (start - first)
            values = near[tuple(at.T)]
            sums[region] += values.size, values.sum(), np.square(values).sum()
            maxima[region] = np.maximum(maxima[region], (values.max(), _highest_sphere(near, at, offsets)))
            if region.kind == "lesion":
                kept[region].append(values.astype(np.float32))
    found = {}
    for region, (voxels, total, squares) in sums.items():
        if voxels:
            mean = total / voxels
            sd = float(np.sqrt(max(squares / voxels - mean**2, 0.0)))
            maximum, peak = maxima[region].tolist()
            told = Uptake(float(voxels) * image.grid.voxel_ml, float(mean), sd, maximum, peak)
            found[region] = _with_mtv(told, kept[region], image.grid.voxel_ml) if kept[region] else told
    return found


def _with_mtv(uptake: Uptake, kept: Sequence[NDArray[np.float32]], voxel_ml: float) -> Uptake:
    """Add MTV and TLG41, from a lesion's voxels."""
    if uptake.maximum <= 0:
        return uptake
    values = np.concatenate(kept).astype(np.float64)
    above = values[values >= MTV_SHARE * uptake.maximum]
    return replace(uptake, mtv_ml=above.size * voxel_ml, tlg41=float(above.sum()) * voxel_ml)


def uptake_scores(
    case: str,
    reference: ImageSource,
    candidates: Mapping[str, ImageSource],
    regions: Sequence[Region],
    *,
    labels: ImageSource,
    reference_name: str = "full dose",
    slab_voxels: int = SLAB_VOXELS,
) -> list[Score]:
    """Return uptake, noise and bias in every organ and lesion, of the reference and of every candidate."""
    regions = [region for region in regions if region.kind in ("organ", "lesion")]
    truth = stream_uptake(reference, labels, regions, slab_voxels=slab_voxels)
    scores = []
    for name, image in {reference_name: reference, **candidates}.items():
        how = str(image.provenance.get("rule", ""))
        measured = truth if image is reference else stream_uptake(image, labels, regions, slab_voxels=slab_voxels)
        for region, uptake in measured.items():
            values = {VOLUME: uptake.volume_ml}
            values[NOISE] = 100 * uptake.sd / uptake.mean if uptake.mean > 0 else float("nan")
            true = truth[region].quantities(region.kind)
            for quantity, value in uptake.quantities(region.kind).items():
                values[QUANTITIES[quantity]] = value
                if name != reference_name:
                    values[BIASES[quantity]] = bias_percent(true[quantity], value)
            scores += [
                Score(case, name, region.name, region.kind, definition, value, None, how)
                for definition, value in values.items()
            ]
    return scores


@dataclass(frozen=True, eq=False)
class Separated:
    """A label image in which every lesion has a number of its own.

    Only the lesions' voxels are held, as flat indices sorted ascending; ``numbers`` are their new labels.
    """

    labels: ImageSource
    indices: NDArray[np.intp]
    numbers: NDArray[np.int32]

    @property
    def grid(self) -> Grid:
        """The grid of the label image."""
        return self.labels.grid

    @property
    def units(self) -> str:
        """The unit of the label image."""
        return self.labels.units

    @property
    def provenance(self) -> Mapping[str, object]:
        """The provenance of the label image."""
        return self.labels.provenance

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1``."""
        slab = np.array(self.labels.read(z0, z1), dtype=np.float32, order="C")
        plane = slab.shape[1] * slab.shape[2]
        low, high = np.searchsorted(self.indices, (z0 * plane, z1 * plane)).tolist()
        slab.reshape(-1)[self.indices[low:high] - z0 * plane] = self.numbers[low:high]
        return slab


def separate(labels: ImageSource, label: int) -> Separated:
    """Number the connected lesions of ``label`` from above the image's largest label on (26-connectivity).

    The largest lesion comes first.  Slabs are read one at a time; memory grows with the voxels of lesions, not with
    the volume.
    """
    shape = labels.grid.shape
    plane = shape[1] * shape[2]
    slices, highest = [], 0
    for z0, z1 in slabs(shape):
        mark = np.rint(labels.read(z0, z1)).astype(np.int32)
        slices.append(np.flatnonzero(mark == label) + z0 * plane)
        highest = max(highest, int(mark.max()))
    indices = np.concatenate(slices)
    if not len(indices):
        return Separated(labels, indices, np.empty(0, dtype=np.int32))
    at = np.stack(np.unravel_index(indices, shape), axis=-1)
    heads, tails = [], []
    for offset in np.argwhere(np.ones((3, 3, 3))) - 1:
        step = int(offset @ (plane, shape[2], 1))
        if step <= 0:  # a neighbour behind: its own turn has linked the two
            continue
        neighbour = at + offset
        near = ((neighbour >= 0) & (neighbour < shape)).all(axis=1)
        found = np.minimum(np.searchsorted(indices, indices + step), len(indices) - 1)
        near &= indices[found] == indices + step
        heads.append(np.flatnonzero(near))
        tails.append(found[near])
    head, tail = np.concatenate(heads), np.concatenate(tails)
    links = coo_array((np.ones(len(head), dtype=np.uint8), (head, tail)), shape=(len(indices), len(indices)))
    _, component = connected_components(links, directed=False)
    rank = np.argsort(np.argsort(-np.bincount(component), kind="stable"), kind="stable")
    return Separated(labels, indices, (rank[component] + highest + 1).astype(np.int32))


def bias_percent(reference: float, value: float) -> float:
    """Return 100 (value - reference) / reference; NaN where the reference is not positive."""
    return 100 * (value - reference) / reference if reference > 0 else float("nan")


def _sphere(spacing_mm: tuple[float, float, float]) -> NDArray[np.intp]:
    """Voxel offsets (n, 3) whose centres lie within the 1 mL sphere; the centre itself at least."""
    reach = [int(PEAK_RADIUS_MM / step) for step in spacing_mm]
    grid = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    near = np.square(grid * np.array(spacing_mm)).sum(axis=1) <= PEAK_RADIUS_MM**2
    return np.asarray(grid[near])


def _highest_sphere(slab: NDArray[np.float64], centres: NDArray[np.intp], offsets: NDArray[np.intp]) -> float:
    """Highest mean over the sphere about any of ``centres``; the slab reaches as far as the sphere, or to a face."""
    # A frame of NaN-free zeros and a count of voxels that exist make faces exact without a branch per voxel.
    reach = offsets.max(axis=0)
    pad = [(int(r), int(r)) for r in reach]
    values = np.pad(slab, pad)
    exists = np.pad(np.ones(slab.shape, dtype=np.uint8), pad)
    steps = np.ravel_multi_index(tuple((offsets + reach).T), values.shape) - int(
        np.ravel_multi_index(tuple(reach), values.shape)
    )
    best = -np.inf
    flat, known = values.ravel(), exists.ravel()
    for start in range(0, len(centres), _GATHER):
        at = np.ravel_multi_index(tuple((centres[start : start + _GATHER] + reach).T), values.shape)
        total, count = np.zeros(len(at)), np.zeros(len(at))
        for step in steps:
            total += flat[at + step]
            count += known[at + step]
        best = max(best, float((total / count).max()))
    return best
