"""Where patches lie: index arithmetic and seeded draws.  No voxel is read and no tensor is made here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
CELL = 8  # edge length in voxels of the cells that the sampling maps describe


@dataclass(frozen=True)
class PatchLocation:
    """A box of voxels; ``start`` may be negative and the end may pass the volume where a halo is read.

    Args:
        start: first voxel (z, y, x).
        shape: edge lengths (z, y, x).
    """

    start: Shape
    shape: Shape

    @property
    def stop(self) -> Shape:
        """One past the last voxel (z, y, x)."""
        z, y, x = (a + n for a, n in zip(self.start, self.shape, strict=True))
        return z, y, x

    def grown(self, halo: Shape) -> "PatchLocation":
        """Return the box with ``halo`` (z, y, x) more voxels on either side."""
        z, y, x = (a - h for a, h in zip(self.start, halo, strict=True))
        depth, height, width = (n + 2 * h for n, h in zip(self.shape, halo, strict=True))
        return PatchLocation((z, y, x), (depth, height, width))

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True, eq=False)
class SamplingMaps:
    """What is known of a case without reading its voxels, on cells of ``CELL`` voxels edge.

    Args:
        shape: voxels (z, y, x).
        body: (gz, gy, gx) fraction of each cell inside the body mask, 0 to 1.
        uptake: (gz, gy, gx) mean SUV of each cell, at least 0.
        rois: name -> (gz, gy, gx) fraction of each cell inside that organ or lesion.
    """

    shape: Shape
    body: NDArray[np.float32]
    uptake: NDArray[np.float32]
    rois: Mapping[str, NDArray[np.float32]]


def grid(shape: Shape, tile: Shape, overlap: Shape) -> Iterator[PatchLocation]:
    """Cover a volume with equal tiles, z slowest; the last tile of an axis is moved back inside.

    Args:
        shape: voxels (z, y, x) of the volume; a tile longer than an axis starts at 0 and passes the end.
        overlap: voxels (z, y, x) shared by neighbours, less than the tile's edges.
    """
    starts = [_starts(*axis) for axis in zip(shape, tile, overlap, strict=True)]
    for z, y, x in product(*starts):
        yield PatchLocation((z, y, x), tile)


def _starts(length: int, edge: int, overlap: int) -> list[int]:
    if edge >= length:
        return [0]
    return [*range(0, length - edge, edge - overlap), length - edge]


@dataclass(frozen=True)
class Centre:
    """Where a patch is centred, before a case is known.

    Args:
        share: of the sum of all cells' weights, 0 to 1; the centre's cell is the first, in the order of the array, up
            to which the weights sum to more.
        voxel: of that cell (z, y, x), each below ``CELL``.
    """

    share: float
    voxel: Shape


def _drawn(rng: np.random.Generator) -> Centre:
    share = rng.random()
    z, y, x = (int(rng.integers(CELL)) for _ in range(3))
    return Centre(share, (z, y, x))


def _centred(maps: SamplingMaps, shape: Shape, weight: NDArray[np.float32], rng: np.random.Generator) -> PatchLocation:
    """Draw a cell by its weight, a voxel uniformly in it, and centre the patch there as far as the volume allows."""
    total = np.cumsum(weight, dtype=np.float64)
    if total[-1] <= 0:
        return uniform(maps, shape, rng)
    drawn = _drawn(rng)
    flat = int(np.searchsorted(total, drawn.share * total[-1], side="right"))
    cell = np.unravel_index(min(flat, weight.size - 1), weight.shape)
    centre = [int(c) * CELL + voxel for c, voxel in zip(cell, drawn.voxel, strict=True)]
    z, y, x = (
        int(np.clip(c - n // 2, 0, max(0, size - n))) for c, n, size in zip(centre, shape, maps.shape, strict=True)
    )
    return PatchLocation((z, y, x), shape)


def uniform(maps: SamplingMaps, shape: Shape, rng: np.random.Generator) -> PatchLocation:
    """Every start with equal probability."""
    z, y, x = (int(rng.integers(max(0, size - n) + 1)) for n, size in zip(shape, maps.shape, strict=True))
    return PatchLocation((z, y, x), shape)


def body(maps: SamplingMaps, shape: Shape, rng: np.random.Generator) -> PatchLocation:
    """Centre in the body, every part of it alike."""
    return _centred(maps, shape, maps.body, rng)


def uptake(maps: SamplingMaps, shape: Shape, rng: np.random.Generator) -> PatchLocation:
    """Centre in the body, in proportion to the square root of the SUV: bladder and brain do not get most patches."""
    return _centred(maps, shape, maps.body * np.sqrt(maps.uptake), rng)


def roi(maps: SamplingMaps, shape: Shape, rng: np.random.Generator) -> PatchLocation:
    """Centre in a labelled region, regions with equal probability; in the body where the case has none."""
    return _in_roi(maps, shape, sorted(name for name, cells in maps.rois.items() if cells.any()), rng)


def lesion(maps: SamplingMaps, shape: Shape, rng: np.random.Generator) -> PatchLocation:
    """Centre in a lesion, lesions with equal probability; in the body where the case has none."""
    names = sorted(name for name, cells in maps.rois.items() if name.startswith("lesion") and cells.any())
    return _in_roi(maps, shape, names, rng)


def _in_roi(maps: SamplingMaps, shape: Shape, names: Sequence[str], rng: np.random.Generator) -> PatchLocation:
    if not names:
        return body(maps, shape, rng)
    return _centred(maps, shape, maps.rois[names[int(rng.integers(len(names)))]], rng)


Sampler = Callable[[SamplingMaps, Shape, np.random.Generator], PatchLocation]
SAMPLERS: dict[str, Sampler] = {"uniform": uniform, "body": body, "uptake": uptake, "roi": roi, "lesion": lesion}
BODY = MappingProxyType({"body": 1.0})  # patches of the body alone


def draw(maps: SamplingMaps, shape: Shape, samplers: Mapping[str, float], rng: np.random.Generator) -> PatchLocation:
    """Draw one patch by one of ``samplers``: names of ``SAMPLERS`` with their weights.

    A patch longer than the volume along an axis starts at its first voxel there and passes its end.
    """
    return SAMPLERS[_chosen(samplers, rng)](maps, shape, rng)


def _chosen(samplers: Mapping[str, float], rng: np.random.Generator) -> str:
    names = sorted(samplers)
    return names[int(rng.choice(len(names), p=np.array([samplers[name] for name in names]) / sum(samplers.values())))]


def body_centres(count: int, rng: np.random.Generator) -> list[Centre]:
    """Return where ``count`` calls of ``draw`` by ``BODY`` centre their patches in any case that has a body."""
    found = []
    for _ in range(count):
        _chosen(BODY, rng)  # takes a number too
        found.append(_drawn(rng))
    return found
