"""Stitching of overlapping tiles into a volume, slab by slab: a separable window, divided by its sum at each voxel.

That sum is a product of three vectors, so no volume of weights is kept; only the slab that tiles still touch is in
memory.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.patches import PatchLocation, Shape, grid

PLANES = 8  # that a tile is weighted and added by: they stay in the processor's cache


def window(edge: int, overlap: int) -> NDArray[np.float32]:
    """Weights along one axis of a tile: 1 inside, a linear ramp over the overlap, never 0."""
    ramp = np.minimum(np.arange(edge) + 1, np.arange(edge, 0, -1)) / (overlap + 1)
    return np.minimum(ramp, 1.0).astype(np.float32)


def _axis_weight(length: int, edge: int, overlap: int) -> NDArray[np.float32]:
    """What the windows of all tiles along one axis sum to, per voxel."""
    total = np.zeros(max(length, edge), dtype=np.float32)
    for tile in grid((1, 1, length), (1, 1, edge), (0, 0, overlap)):
        total[tile.start[2] : tile.stop[2]] += window(edge, overlap)
    return total[:length]


def stitch(
    shape: Shape,
    tile: Shape,
    overlap: Shape,
    synthesize: Callable[[list[PatchLocation]], Iterable[NDArray[np.float32]]],
    write: Callable[[int, NDArray[np.float32]], Any],
    *,
    batch: int = 1,
) -> None:
    """Cover a volume with tiles and hand finished slabs on, in order, each exactly once.

    Args:
        shape: voxels (z, y, x) of the volume.
        tile: edge lengths (z, y, x) of the tiles.
        overlap: voxels (z, y, x) that neighbouring tiles share.
        synthesize: gets up to ``batch`` locations, yields their tiles (z, y, x) in the same order.
        write: gets z0 and a finished slab (dz, y, x) float32.
    """
    depth, height, width = tile
    wz, wy, wx = (window(n, shared) for n, shared in zip(tile, overlap, strict=True))
    of_tile = wz[:, None, None] * wy[:, None] * wx
    weighted = np.empty((PLANES, height, width), dtype=np.float32)
    weight = [_axis_weight(*axis) for axis in zip(shape, tile, overlap, strict=True)]
    of_plane = weight[1][:, None] * weight[2]
    open_slab = np.zeros((depth, *shape[1:]), dtype=np.float32)
    rows: dict[int, list[PatchLocation]] = {}
    for location in grid(shape, tile, overlap):
        rows.setdefault(location.start[0], []).append(location)
    starts = sorted(rows)
    for row, following in zip(starts, [*starts[1:], shape[0]], strict=True):
        for first in range(0, len(rows[row]), batch):
            group = rows[row][first : first + batch]
            for location, values in zip(group, synthesize(group), strict=True):
                _, y, x = location.start
                target = open_slab[:, y : y + height, x : x + width]
                _, rows_inside, columns_inside = target.shape
                for z in range(0, depth, PLANES):
                    some = slice(z, z + PLANES)
                    part = np.multiply(values[some], of_tile[some], out=weighted[: min(PLANES, depth - z)])
                    target[some] += part[:, :rows_inside, :columns_inside]
        done = min(following, shape[0]) - row
        finished = np.empty((done, *shape[1:]), dtype=np.float32)
        for z in range(done):
            np.divide(open_slab[z], weight[0][row + z] * of_plane, out=finished[z])
        write(row, finished)
        open_slab[:-done] = open_slab[done:]
        open_slab[-done:] = 0
