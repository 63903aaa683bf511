"""Geometry of voxel grids: one image put or resampled onto another's grid, area-exact shrinking, the body's outline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from storage.errors import InputError
from storage.source import AIR_HU, BODY_SUV, HU, LABEL, SUV, Grid, ImageSource, Interpolation

BODY_HU = -400.0  # between air and fat
SAME_VOXEL_MM = 0.05  # as ``Grid.matches``
ORDINARY_MM = 1.0  # voxels of clinical scanners have an edge of at least this
ANIMAL_ACROSS_MM = 200.0  # no clinical field of view is narrower, no preclinical one much wider
CLINICAL_ACROSS_MM = 600.0  # that the radii of a person's outline are made for
PARALLEL_VOXELS = 1e-6  # how far axes of one direction may part over a whole volume, by rounding
SPLINE_REACH = 12  # voxels; beyond, a coefficient's weights are below 1e-6 of its largest
# Samples to coefficients of B-splines of order 3: sqrt(3) z^|k| with z = sqrt(3) - 2 (Unser 1999, box 2)
SPLINE_FILTER = np.sqrt(3.0) * (np.sqrt(3.0) - 2.0) ** np.abs(np.arange(-SPLINE_REACH, SPLINE_REACH + 1))
MAX_REACH = 8  # voxels of a ball's radius; of coarse voxels of 2.75 mm and more the largest ball reaches 3


def index_map(source: Grid, target: Grid) -> NDArray[np.float64]:
    """4x4 matrix from the target's (z, y, x, 1) voxel index to the source's."""
    flip = np.eye(4)[[2, 1, 0, 3]]
    return flip @ np.linalg.inv(source.affine) @ target.affine @ flip


@dataclass(frozen=True)
class Placement:
    """Where an image lies in a grid that has the very same voxels, stored in another order of axes or directions.

    Args:
        axes: for each axis (z, y, x) of the image, the axis of the grid that it runs along.
        steps: 1 where it runs in the grid's direction, -1 where against it; 2, 3, ... where it has every second, third,
            ... slice only; by axis of the image.
        first: where along the grid's axis its index 0 lies; by axis of the image.
        shape: of the image.
    """

    axes: tuple[int, int, int]
    steps: tuple[int, int, int]
    first: tuple[int, int, int]
    shape: tuple[int, int, int]

    @property
    def reordered(self) -> bool:
        """Whether axes are exchanged or reversed."""
        return self.axes != (0, 1, 2) or min(self.steps) < 0

    def view(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """Return the image's part of an array on the grid, a view with the image's axes and directions."""
        cut = []
        for start, step, count in zip(self.first, self.steps, self.shape, strict=True):
            stop = start + step * count
            cut.append(slice(start, stop if stop >= 0 else None, step))
        return voxels.transpose(self.axes)[tuple(cut)]


def place(image: Grid, grid: Grid, tolerance_mm: float = SAME_VOXEL_MM) -> Placement | None:
    """Find where the voxels of ``image`` lie in ``grid``; None unless every one is a voxel of it.

    The image may be a part of the grid: a DICOM SEG leaves empty slices out.
    """
    axes, steps = _orientation(image, grid)
    if sorted(axes) != [0, 1, 2]:
        return None
    start = np.rint(index_map(grid, image)[:3, 3]).astype(int)
    first = tuple(int(start[axis]) for axis in axes)
    last = [f + step * (n - 1) for f, step, n in zip(first, steps, image.shape, strict=True)]
    if any(min(f, e) < 0 or max(f, e) >= grid.shape[a] for f, e, a in zip(first, last, axes, strict=True)):
        return None
    exact = np.zeros((4, 4))  # the image's index (z, y, x, 1) to the grid's
    exact[axes, range(3)] = steps
    exact[axes, 3] = first
    exact[3, 3] = 1
    corners = np.array([(k, j, i, 1.0) for k in (0, 1) for j in (0, 1) for i in (0, 1)])
    corners[:, :3] *= np.array(image.shape) - 1
    turn = np.eye(4)[[2, 1, 0, 3]]
    gap = (image.affine @ turn - grid.affine @ turn @ exact) @ corners.T
    if np.abs(gap).max() > tolerance_mm:
        return None
    return Placement(axes, steps, first, image.shape)  # type: ignore[arg-type]


def difference(image: Grid, grid: Grid) -> str:
    """Tell how two grids differ: shapes, voxel sizes, the distance between the voxels that should be one."""
    axes, steps = _orientation(image, grid)
    corner = np.array([0.0, 0.0, 0.0, 1.0])
    for axis, step in zip(axes, steps, strict=True):
        corner[axis] = 0 if step > 0 else grid.shape[axis] - 1
    turn = np.eye(4)[[2, 1, 0, 3]]
    x, y, z = (image.affine[:, 3] - grid.affine @ turn @ corner)[:3]
    sizes = [
        f"{' x '.join(str(n) for n in g.shape)} voxels of {' x '.join(f'{mm:.4g}' for mm in g.spacing_mm)} mm (z, y, x)"
        for g in (image, grid)
    ]
    off = f"its first voxel lies {np.linalg.norm([x, y, z]):.2f} mm off (x {x:+.2f}, y {y:+.2f}, z {z:+.2f} mm)"
    directions = [g.affine[:3, :3] / np.linalg.norm(g.affine[:3, :3], axis=0) for g in (image, grid)]
    cosine = np.abs(directions[0].T @ directions[1]).max(axis=1).min()
    angle = np.degrees(np.arccos(min(1.0, float(cosine))))
    order = ", stored in another order or direction of its axes" if axes != (0, 1, 2) or min(steps) < 0 else ""
    turned = f", its axes are turned by {angle:.1f} degrees" if angle > 0.05 else ""
    return f"{sizes[0]} for {sizes[1]}, {off}{order}{turned}"


def _orientation(image: Grid, grid: Grid) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each axis of the image the nearest axis of the grid, and its step there in whole voxels, never 0."""
    matrix = index_map(grid, image)[:3, :3]
    axes = np.abs(matrix * np.array(grid.spacing_mm)[:, None]).argmax(axis=0)
    steps = matrix[axes, range(3)]
    whole = np.sign(steps) * np.maximum(np.rint(np.abs(steps)), 1)
    return tuple(int(a) for a in axes), tuple(int(n) for n in whole)


@dataclass(frozen=True, eq=False)
class Resampled:
    """An image on another grid, interpolated, with the finer grid smoothed first so that nothing aliases.

    Cubic are the interpolating B-splines of order 3 (Unser, IEEE Signal Process. Mag. 16(6), 1999, 22): they keep more
    of small peaks than linear interpolation does, and overshoot beside steps.  A PET is therefore cut off at 0; a CT
    stays as the splines make it.

    Args:
        source: the image as it was read; no labels, whose values are names.
        grid: the grid to put it on, usually the PET's.
        outside: value beyond the source, in its units; unless given, air in a CT and 0 in a PET.
        interpolation: how values between voxels are found.
    """

    source: ImageSource
    grid: Grid
    outside: float | None = None
    interpolation: Interpolation = "linear"

    def __post_init__(self) -> None:
        if self.source.units == LABEL:
            raise InputError(
                "PAIR_GRID_MISMATCH",
                where="labels",
                found=f"not on the grid that they are to have: {difference(self.source.grid, self.grid)}",
                remedy="give labels on the voxels of the image that the case is on; labels are never resampled",
            )
        z, y, x = self.grid.shape
        corners = np.array([(i, j, k, 1.0) for i in (0, z - 1) for j in (0, y - 1) for k in (0, x - 1)])
        found = (corners @ index_map(self.source.grid, self.grid).T)[:, :3]
        if np.any(found.max(0) < 0) or np.any(found.min(0) > np.array(self.source.grid.shape) - 1):
            raise InputError(
                "PAIR_NO_OVERLAP",
                where="CT and PET",
                found="the two images share no volume in the patient",
                remedy="check that both belong to one examination and keep their geometry",
            )

    @property
    def units(self) -> str:
        """Those of the source."""
        return self.source.units

    @property
    def provenance(self) -> Mapping[str, object]:
        """Facts of the source, and how and from which spacing it was resampled."""
        spacing = [round(v, 4) for v in self.source.grid.spacing_mm]
        return {**self.source.provenance, "resampled": self.interpolation, "native_spacing_mm": spacing}

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1`` of the target grid."""
        outside = self.outside if self.outside is not None else AIR_HU if self.units == HU else 0.0
        whole = index_map(self.source.grid, self.grid)
        # The ratio of spacings decides the smoothing.
        sigma = np.sqrt(np.maximum(np.abs(whole[:3, :3]).sum(1) ** 2 - 1.0, 0.0)) / 2.355
        apart = (np.abs(whole[:3, :3] - np.diag(whole.diagonal()[:3])) * (np.array(self.grid.shape) - 1)).sum(1)
        parallel = apart.max() <= PARALLEL_VOXELS
        made = (self._along_axes if parallel else self._oblique)(z0, z1, whole, sigma, outside)
        if self.interpolation == "cubic" and self.units == SUV:
            np.maximum(made, 0.0, out=made)
        return made

    def _along_axes(
        self, z0: int, z1: int, whole: NDArray[np.float64], sigma: NDArray[np.float64], outside: float
    ) -> NDArray[np.float32]:
        """Return a slab of a grid whose axes are the source's: smoothing and reading are then one matrix along each."""
        ranges = ((z0, z1), *((0, n) for n in self.grid.shape[1:]))
        (along_z, z), (along_y, y), (along_x, x) = (
            _weights(self.interpolation, length, whole[axis, axis] * np.arange(*rows) + whole[axis, 3], sigma[axis])
            for axis, (length, rows) in enumerate(zip(self.source.grid.shape, ranges, strict=True))
        )
        if not (z.any() and y.any() and x.any()):
            return np.full((len(z), len(y), len(x)), outside, dtype=np.float32)
        first, last = int(along_z.indices.min()), int(along_z.indices.max()) + 1
        slab = self.source.read(first, last)
        planes = np.empty((last - first, len(y), len(x)), dtype=np.float32)
        for plane, stored in zip(planes, slab, strict=True):  # a plane stays in a core's cache
            plane.T[...] = along_x @ (along_y @ stored).T
        lines = along_z[:, first:last] @ planes.reshape(len(planes), -1)
        made: NDArray[np.float32] = lines.reshape(len(z), len(y), len(x))
        made[~z] = outside
        made[:, ~y] = outside
        made[:, :, ~x] = outside
        return made

    def _oblique(
        self, z0: int, z1: int, whole: NDArray[np.float64], sigma: NDArray[np.float64], outside: float
    ) -> NDArray[np.float32]:
        """Return a slab of a grid that is turned against the source's."""
        _, y, x = self.grid.shape
        corners = np.array([(i, j, k, 1.0) for i in (z0, z1 - 1) for j in (0, y - 1) for k in (0, x - 1)])
        depth = (corners @ whole.T)[:, 0]
        cubic = self.interpolation == "cubic"
        # How far smoothing and splines reach decides how many more slices are read.
        margin = int(np.ceil(4 * sigma[0])) + 2 + (SPLINE_REACH if cubic else 0)
        first = max(0, int(np.floor(depth.min())) - margin)
        last = min(self.source.grid.shape[0], int(np.ceil(depth.max())) + margin + 1)
        if first >= last:
            return np.full((z1 - z0, y, x), outside, dtype=np.float32)
        slab = self.source.read(first, last)
        if sigma.any():
            slab = ndimage.gaussian_filter(slab, sigma, mode="nearest")
        # The outermost voxels reach half a voxel beyond their centres, and rounding must not make a border slice air.
        beyond = 3 if cubic else 1  # a spline of order 3 reaches two voxels further
        slab = np.pad(slab, beyond, mode="edge")
        if cubic:
            for axis in range(3):
                slab = ndimage.correlate1d(slab, SPLINE_FILTER, axis, mode="nearest")
        start = (whole @ np.array([z0, 0, 0, 1.0]))[:3]
        shape = (z1 - z0, y, x)
        result: NDArray[np.float32] = ndimage.affine_transform(
            slab,
            whole[:3, :3],
            start - np.array([first, 0, 0]) + beyond,
            shape,
            np.float32,
            order=3 if cubic else 1,
            prefilter=False,
            mode="constant",
            cval=outside,
        )
        if cubic:
            result[~_within(self.source.grid.shape, whole[:3, :3], start, shape)] = outside
        return result


def _within(
    source: tuple[int, int, int], matrix: NDArray[np.float64], start: NDArray[np.float64], shape: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """Which voxels of a slab lie on a source, or less than a voxel beyond: as linear interpolation takes them."""
    inside = np.ones(shape, dtype=bool)
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    for length, row, first in zip(source, matrix, start, strict=True):
        at = first + row[0] * z + row[1] * y + row[2] * x
        inside &= (at >= -1) & (at <= length)
    return inside


def _weights(
    interpolation: Interpolation, length: int, at: NDArray[np.float64], sigma: float
) -> tuple[sparse.csr_array, NDArray[np.bool_]]:
    """Matrix that smooths an axis and reads it between its voxels, and which of its rows lie on the axis.

    As ``_oblique``: beyond the axis lies its last smoothed voxel, for as far as a voxel; the Gaussian ends at 4 sigma.

    Args:
        interpolation: linear: by both neighbours.  Cubic: by the B-splines of four coefficients, each of which is
            made of the smoothed voxels within ``SPLINE_REACH``.
        length: of the axis, in voxels.
        at: places along it, in voxels.
        sigma: of the Gaussian, in voxels.

    Returns:
        the matrix, float32, (places, length), whose rows sum to 1; and which places lie on the axis.
    """
    reach = int(4.0 * sigma + 0.5)
    steps = np.arange(-reach, reach + 1)
    gauss = np.exp(-0.5 * (steps / sigma) ** 2) if sigma else np.ones(1)
    below = np.floor(at)
    t = at - below
    if interpolation == "linear":
        share, neighbours = np.stack([1.0 - t, t], axis=1), below[:, None] + np.arange(2)
    else:
        splines = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3]
        share = np.zeros((len(at), 4 + 2 * SPLINE_REACH))
        for k, spline in enumerate(splines):
            share[:, k : k + len(SPLINE_FILTER)] += spline[:, None] / 6 * SPLINE_FILTER
        neighbours = below[:, None] - 1 - SPLINE_REACH + np.arange(share.shape[1])
    neighbours = np.clip(neighbours, 0, length - 1)
    columns = neighbours[:, :, None] + steps  # (places, neighbours, steps)
    weights = share[:, :, None] * (gauss / gauss.sum())
    row_starts = np.arange(len(at) + 1) * weights[:1].size
    columns = np.clip(columns, 0, length - 1).astype(np.intp)
    if interpolation == "linear":
        stored = (weights.astype(np.float32).ravel(), columns.ravel(), row_starts)
        matrix = sparse.csr_array(stored, shape=(len(at), length))
    else:  # many of the weights are of one voxel, and are added up once
        matrix = sparse.csr_array((weights.ravel(), columns.ravel(), row_starts), shape=(len(at), length))
        matrix.sum_duplicates()
        matrix = matrix.astype(np.float32)
    return matrix, (at >= -1) & (at <= length)


def coverage(source: Grid, target: Grid, edges: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Tell which blocks of ``edges`` voxels (z, y, x) of ``target`` have their middle inside ``source``.

    Half a voxel beyond the outermost centres belongs to the source, as in ``Resampled``.
    """
    counts = [-(-n // edge) for n, edge in zip(target.shape, edges, strict=True)]
    matrix = index_map(source, target)
    middles = [np.arange(n) * edge + (edge - 1) / 2 for n, edge in zip(counts, edges, strict=True)]
    inside = np.ones(counts, dtype=bool)
    for axis, length in enumerate(source.shape):
        z, y, x = (matrix[axis, k] * middles[k] for k in range(3))
        place = matrix[axis, 3] + z[:, None, None] + y[None, :, None] + x[None, None, :]
        inside &= (place >= -0.5) & (place <= length - 0.5)
    return inside


def coarser_grid(grid: Grid, spacing_mm: tuple[float, float, float]) -> Grid:
    """Return the grid of another spacing over the same volume: same middle, same directions.

    Its outer borders (of voxels, not their centres) agree with those of ``grid`` to a quarter of a new voxel: the
    spacing is kept to the letter, and an extent need not be a whole number of voxels.

    Args:
        spacing_mm: voxel edge lengths along (z, y, x) of the new grid.
    """
    z, y, x = (
        max(1, round(n * old / new)) for n, old, new in zip(grid.shape, grid.spacing_mm, spacing_mm, strict=True)
    )
    affine = grid.affine.copy()
    affine[:3, :3] *= np.array(spacing_mm[::-1]) / np.array(grid.spacing_mm[::-1])
    before, after = ((np.array(shape[::-1]) - 1) / 2 for shape in (grid.shape, (z, y, x)))
    affine[:3, 3] += grid.affine[:3, :3] @ before - affine[:3, :3] @ after
    return Grid((z, y, x), affine)


def area_weights(length: int, size: int) -> NDArray[np.float32]:
    """Matrix (size, length) whose rows average the voxels that a coarser cell covers, by the length they share."""
    edges = np.arange(size + 1) * (length / size)
    voxel = np.arange(length)
    shared = np.minimum(edges[1:, None], voxel + 1) - np.maximum(edges[:-1, None], voxel)
    weights = np.clip(shared, 0.0, None)
    result: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return result


def shrink_slab(slab: NDArray[np.float32], z0: int, shape: tuple[int, int, int], size: int) -> NDArray[np.float32]:
    """One slab's share of a whole volume resized to size^3 by area; the shares of all slabs add up to it.

    Args:
        slab: (dz, y, x), the voxels from ``z0`` on of a volume of ``shape``.
    """
    wz, wy, wx = (area_weights(n, size) for n in shape)
    return _along(0, wz[:, z0 : z0 + len(slab)], _along(2, wx, _along(1, wy, slab)))


def _along(axis: int, weights: NDArray[np.float32], voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply a matrix along one axis.  Sparse: the last bits of a dense product depend on the processor's threads."""
    lines = np.moveaxis(voxels, axis, 0)
    product = sparse.csr_array(weights) @ lines.reshape(len(lines), -1)
    return np.moveaxis(product.reshape(-1, *lines.shape[1:]), 0, axis)


def block_means(slab: NDArray[np.float32], edges: tuple[int, int, int]) -> NDArray[np.float32]:
    """Mean of each block of ``edges`` voxels (z, y, x); blocks cut off by the border average what they have."""
    means: NDArray[np.float32] = slab
    for axis, edge in enumerate(edges):
        if edge == 1:
            continue
        whole = means.shape[axis] // edge * edge
        parts = [_sums_along(axis, edge, _part(means, axis, slice(whole))) / np.float32(edge)]
        if whole < means.shape[axis]:
            parts.append(_part(means, axis, slice(whole, None)))
            parts[1] = np.add.reduceat(parts[1], [0], axis=axis) / np.float32(parts[1].shape[axis])
        means = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
    return means


def _sums_along(axis: int, edge: int, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sums of ``edge`` voxels each along an axis, in the order in which ``reduceat`` adds them."""
    if edge > 8:  # numpy adds so many in another order
        return np.add.reduceat(voxels, np.arange(0, voxels.shape[axis], edge), axis=axis)
    # Whole planes at a time: reduceat goes from block to block, which takes ten times as long.
    first, second, *others = (_part(voxels, axis, slice(k, None, edge)) for k in range(edge))
    rest = second.copy()
    for more in others:
        rest += more
    rest += first
    return rest


def _part(voxels: NDArray[np.float32], axis: int, where: slice) -> NDArray[np.float32]:
    return voxels[(slice(None),) * axis + (where,)]


def body_scale(grid: Grid) -> float:
    """Return how large a body a grid is made for, 1 for a person; by it the lengths of the outline are multiplied.

    A mouse is 25 mm wide where a person has 400, and its scanner's field of view is smaller by as much.  Only a volume
    that is less than 200 mm across, with voxels below 1 mm along every axis, is one of an animal (or a cut of a fine
    CT): then the lengths are to its width as a person's are to 600 mm, for 100 mm a sixth.
    """
    across_mm = min(n * mm for n, mm in zip(grid.shape[1:], grid.spacing_mm[1:], strict=True))
    if max(grid.spacing_mm) >= ORDINARY_MM or across_mm >= ANIMAL_ACROSS_MM:
        return 1.0
    return across_mm / CLINICAL_ACROSS_MM


def body_mask(
    image: NDArray[np.float32], units: str, spacing_mm: tuple[float, float, float], scale: float = 1.0
) -> NDArray[np.bool_]:
    """Outline the body on a coarse PET (SUVbw) or CT (HU): the largest piece above air, holes filled slice by slice.

    Args:
        image: (z, y, x), voxels of a few mm times ``scale``; memory and time grow with their number only.
        units: ``HU`` or ``SUVbw``.
        spacing_mm: voxel edges along (z, y, x).
        scale: by ``body_scale``.
    """
    if units == "HU":
        # A CT is sharp, so the table is taken off by an opening of about 8 mm; lungs come back with the holes.
        inside = _within_borders(_opening, image > BODY_HU, 8.0 * scale, spacing_mm)
    else:
        inside = ndimage.gaussian_filter(image, [min(4.0 * scale / mm, MAX_REACH) for mm in spacing_mm]) > BODY_SUV
    pieces, count = ndimage.label(inside)
    if count == 0:
        return np.ones(image.shape, dtype=bool)
    largest = pieces == 1 + int(np.argmax(np.bincount(pieces[inside])[1:]))
    # Neither adds a voxel outside the box around the piece; a rim of air keeps what is a hole in it as it is.
    ball = _ball(10.0 * scale, spacing_mm)
    box = tuple(
        slice(max(0, found.start - n // 2), found.stop + n // 2)
        for found, n in zip(ndimage.find_objects(largest.view(np.uint8))[0], ball.shape, strict=True)
    )
    closed = _within_borders(_closing, largest[box], 10.0 * scale, spacing_mm)
    mask = np.zeros(image.shape, dtype=bool)
    mask[box] = _without_holes(closed)
    return mask


def _without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill, slice by slice, what is not connected with the slice's border."""
    rim = np.pad(mask, [(0, 0), (1, 1), (1, 1)])
    within_slices = ndimage.generate_binary_structure(3, 1)
    within_slices[[0, 2]] = False
    pieces, _ = ndimage.label(~rim, within_slices)
    filled: NDArray[np.bool_] = pieces != pieces[:, :1, :1]  # a slice's corner is outside
    return filled[:, 1:-1, 1:-1]


def _opening(mask: NDArray[np.bool_], ball: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """As ``ndimage.binary_opening``, faster."""
    return _dilation(~_dilation(~mask, ball, beyond=True), ball, beyond=False)


def _closing(mask: NDArray[np.bool_], ball: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """As ``ndimage.binary_closing``, faster."""
    return ~_dilation(~_dilation(mask, ball, beyond=False), ball, beyond=True)


def _dilation(mask: NDArray[np.bool_], ball: NDArray[np.bool_], beyond: bool) -> NDArray[np.bool_]:
    """Dilate by a ball: whole volumes are shifted, the voxels of a line of the ball at once.

    Args:
        beyond: what lies beyond the borders.
    """
    (rz, ry, rx), (nz, ny, nx) = (n // 2 for n in ball.shape), mask.shape
    padded = np.pad(mask, [(rz, rz), (ry, ry), (rx, rx)], constant_values=beyond)
    widths = ball.sum(2)  # of the ball's lines along x, 0 or odd
    made = np.zeros_like(mask)
    lines = padded[:, :, rx : rx + nx].copy()
    for reach in range(rx + 1):
        if reach:
            lines |= padded[:, :, rx - reach : rx - reach + nx]
            lines |= padded[:, :, rx + reach : rx + reach + nx]
        for z, y in np.argwhere(widths == 2 * reach + 1):
            made |= lines[z : z + nz, y : y + ny]
    return made


def _within_borders(
    operation: Callable[[NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.bool_]],
    mask: NDArray[np.bool_],
    radius_mm: float,
    spacing_mm: tuple[float, float, float],
) -> NDArray[np.bool_]:
    """Open or close with the border repeated: a body that leaves the field of view is not rounded off there."""
    ball = _ball(radius_mm, spacing_mm)
    reach = [n // 2 for n in ball.shape]
    padded = np.pad(mask, [(n, n) for n in reach], mode="edge")
    return operation(padded, ball)[tuple(slice(n, -n) for n in reach)]


def _ball(radius_mm: float, spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    reach = [min(max(1, int(radius_mm / mm)), MAX_REACH) for mm in spacing_mm]
    axes = np.ogrid[tuple(slice(-n, n + 1) for n in reach)]
    return sum((axis / n) ** 2 for axis, n in zip(axes, reach, strict=True)) <= 1.0  # type: ignore[return-value]
