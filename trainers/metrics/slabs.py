"""Volumes read slab by slab: how they are cut, where regions lie in a slab, and a first reading of a region."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from storage.errors import InputError
from storage.source import ImageSource
from trainers.metrics.definitions import Region
from trainers.metrics.image import Mask

Box = tuple[slice, slice, slice]
SLAB_VOXELS = 3_000_000  # ~24 MB per float64 working array


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


def region_slabs(
    body: ImageSource, labels: ImageSource | None, z0: int, z1: int
) -> tuple[Mask, NDArray[np.int32] | None]:
    """Read the body mask and the labels (None without) of the slab ``z0 <= z < z1``."""
    mark = None if labels is None else np.rint(labels.read(z0, z1)).astype(np.int32)
    return body.read(z0, z1) > 0.5, mark


def region_mask(region: Region, inside: Mask, mark: NDArray[np.int32] | None) -> Mask:
    """Which voxels of a slab (or of a box of it) belong to ``region``."""
    if region.kind == "whole":
        return np.ones_like(inside)
    if region.kind == "body":
        return inside
    assert mark is not None, "an organ or a lesion needs a label image"
    return np.equal(mark, region.label)


@dataclass
class Survey:
    """What the first reading of the reference gives of a region: size, extremes, power and bounding box."""

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
        inside, mark = region_slabs(body, labels, z0, z1)
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


def cut_box(box: Box | None, z0: int, z1: int) -> Box | None:
    """The part of a volume's ``box`` that lies in a slab, in the slab's own indices."""
    if box is None or box[0].stop <= z0 or box[0].start >= z1:
        return None
    return slice(max(box[0].start, z0) - z0, min(box[0].stop, z1) - z0), box[1], box[2]


def _box_of(found: Sequence[tuple[slice, ...] | None], label: int) -> Box | None:
    if not 1 <= label <= len(found):
        return None
    box = found[label - 1]
    return None if box is None else (box[0], box[1], box[2])


def _hull(a: Box, b: Box) -> Box:
    z, y, x = (slice(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(a, b, strict=True))
    return z, y, x
