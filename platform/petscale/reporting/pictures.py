"""Pictures in the manner of nuclear medicine: projections and slices of sources, one fixed window, true millimetres.

An image's affine turns its array into an anterior or lateral view; values become pixels and PNG text.
The window is given by the caller and never chosen from an image's own values.
"""

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from PIL import Image
from skimage.transform import resize

from petscale.training.pictures import CT_HU
from storage.source import Grid, ImageSource
from trainers.metrics.slabs import slabs

Picture = NDArray[np.float32]

Slabs = Callable[[], Iterator[NDArray[np.float32]]]

GREY, DIVERGING = "gray_r", "RdBu_r"  # white background; blue-white-red is told apart by colour-blind readers

BONE_HU = (0.0, 1000.0)  # shown black and white in MIPs of a CT

MAX_PIXELS_HIGH = 440


@dataclass(frozen=True)
class Frame:
    """Which array axis is which anatomical axis, and which way it runs.

    Args:
        axes: array axes nearest to (left-right, posterior-anterior, inferior-superior).
        positive: whether the index grows towards right, anterior, superior.
    """

    axes: tuple[int, int, int]
    positive: tuple[bool, bool, bool]

    @classmethod
    def of(cls, grid: Grid) -> "Frame":
        """Read the frame off an affine; oblique grids take the nearest axes."""
        codes = io_orientation(grid.affine)  # row v: anatomical axis of voxel axis v of (x, y, z), and its direction
        voxel_axis = [int(np.flatnonzero(codes[:, 0] == anatomical)[0]) for anatomical in range(3)]
        lr, pa, si = (2 - v for v in voxel_axis)
        right, front, up = (bool(codes[v, 1] > 0) for v in voxel_axis)
        return cls((lr, pa, si), (right, front, up))

    def upright(self, plane: Picture, across: int, columns: int) -> Picture:
        """Turn a picture made across one array axis head up, patient's right (or front) on the left.

        Args:
            plane: (the two other array axes, ascending).
            across: anatomical axis looked along: 0 left-right, 1 posterior-anterior.
            columns: anatomical axis that becomes the columns.
        """
        rest = [axis for axis in range(3) if axis != self.axes[across]]
        picture = plane if rest[0] == self.axes[2] else plane.T
        picture = picture[::-1] if self.positive[2] else picture
        return np.ascontiguousarray(picture[:, ::-1] if self.positive[columns] else picture)


def mip(source: ImageSource, axis: int) -> Picture:
    """Maximum along array axis ``axis`` of a source, reading one slab at a time; the two other axes in order."""
    return _reduce(lambda: _read(source), axis, np.maximum)


def signed_extreme(image: ImageSource, reference: ImageSource, axis: int) -> Picture:
    """Along ``axis``, the value of ``image - reference`` that is farthest from zero, with its sign."""
    low, high = (_reduce(lambda: _differences(image, reference), axis, ufunc) for ufunc in (np.minimum, np.maximum))
    return np.asarray(np.where(high >= -low, high, low))


def plane(source: ImageSource, axis: int, index: int) -> Picture:
    """The slice at ``index`` of array axis ``axis``, reading one slab at a time."""
    if axis == 0:
        return np.asarray(source.read(index, index + 1)[0])
    return np.concatenate([slab.take(index, axis=axis) for slab in _read(source)])


def middle(body: ImageSource, axis: int) -> int:
    """Index along ``axis`` of the centre of mass of a body mask."""
    weights = np.zeros(body.grid.shape[axis])
    z0 = 0
    for slab in _read(body):
        counts = (slab > 0.5).sum(axis=tuple(a for a in range(3) if a != axis))
        if axis == 0:
            weights[z0 : z0 + len(slab)] += counts
        else:
            weights += counts
        z0 += len(slab)
    if not weights.any():
        return len(weights) // 2
    return int(np.rint(np.average(np.arange(len(weights)), weights=weights)))


@dataclass(frozen=True)
class Row:
    """One row of pictures: what it shows, the marks at its left and right edge, and a PNG per column as data URI."""

    title: str
    left: str
    right: str
    images: Mapping[str, str]
    width_px: int
    height_px: int
    width_mm: float


def case_rows(
    images: Mapping[str, ImageSource],
    body: ImageSource,
    *,
    image: str,
    reference: str,
    window: tuple[float, float],
    difference_window: float,
    ct: ImageSource | None = None,
) -> list[Row]:
    """Draw anterior and lateral MIP and the central coronal slice of every image, and the signed difference.

    Args:
        images: column title to source, all on one grid.
        body: mask, used to crop air and to find the central slice, the same for all columns.
        image: title of the image whose difference from ``reference`` is drawn in the column ``difference``.
        reference: title of the full-dose image.
        window: SUV drawn white and black in every panel.
        difference_window: SUV drawn in the strongest colours, symmetric about zero.
        ct: drawn first, in windows of its own.
    """
    frame = Frame.of(body.grid)
    spacing = body.grid.spacing_mm
    centre = middle(body, frame.axes[1])
    rows = []
    for title, across, columns, sliced in (
        ("Anterior MIP", 1, 0, False),
        ("Lateral MIP", 0, 1, False),
        ("Central coronal slice", 1, 0, True),
    ):
        axis = frame.axes[across]
        mm = (spacing[frame.axes[2]], spacing[frame.axes[columns]])
        drawn = {name: plane(source, axis, centre) if sliced else mip(source, axis) for name, source in images.items()}
        if sliced:
            difference = drawn[image] - drawn[reference]
        else:
            difference = signed_extreme(images[image], images[reference], axis)
        crop = _crop(frame.upright(mip(body, axis), across, columns), mm)

        def shown(picture: Picture) -> Picture:
            return _to_pixels(frame.upright(picture, across, columns)[crop], mm)  # noqa: B023  (called in this turn only)

        urls = {}
        if ct is not None:
            bones = plane(ct, axis, centre) if sliced else mip(ct, axis)
            urls["CT"] = png(shown(bones), CT_HU if sliced else BONE_HU, "gray")
        urls |= {name: png(shown(picture), window, GREY) for name, picture in drawn.items()}
        urls["difference"] = png(shown(difference), (-difference_window, difference_window), DIVERGING)
        height, width = shown(difference).shape
        width_mm = frame.upright(difference, across, columns)[crop].shape[1] * mm[1]
        marks = ("R", "L") if columns == 0 else ("A", "P")
        rows.append(Row(title, *marks, urls, width, height, width_mm))
    return rows


def anterior_mip(source: ImageSource, window: tuple[float, float], colormap: str) -> str:
    """Return the whole anterior maximum intensity projection of a source as a data URI, patient's right on the left."""
    frame, spacing = Frame.of(source.grid), source.grid.spacing_mm
    picture = frame.upright(mip(source, frame.axes[1]), 1, 0)
    return png(_to_pixels(picture, (spacing[frame.axes[2]], spacing[frame.axes[0]])), window, colormap)


def coronal_slice(source: ImageSource, window: tuple[float, float], colormap: str) -> str:
    """Return the coronal slice in the middle of the grid as a data URI, patient's right on the left."""
    frame, spacing = Frame.of(source.grid), source.grid.spacing_mm
    axis = frame.axes[1]
    picture = frame.upright(plane(source, axis, source.grid.shape[axis] // 2), 1, 0)
    return png(_to_pixels(picture, (spacing[frame.axes[2]], spacing[frame.axes[0]])), window, colormap)


def png(picture: Picture, window: tuple[float, float], colormap: str) -> str:
    """Return a picture as a data URI: 8-bit PNG with the colormap as its palette, values outside the window clipped."""
    low, high = window
    pixels = np.rint(255 * np.clip((picture - low) / (high - low), 0, 1)).astype(np.uint8)
    image = Image.fromarray(pixels)
    palette = np.rint(255 * colormaps[colormap](np.arange(256))[:, :3]).astype(np.uint8)
    image.putpalette(palette.tobytes())
    return data_uri(image)


def colour_bar(colormap: str) -> str:
    """Return the 256 colours of a colormap as a data URI, one pixel high."""
    return png(np.arange(256, dtype=np.float32)[None], (0, 255), colormap)


def _read(source: ImageSource) -> Iterator[NDArray[np.float32]]:
    for z0, z1 in slabs(source.grid.shape):
        yield source.read(z0, z1)


def _differences(image: ImageSource, reference: ImageSource) -> Iterator[NDArray[np.float32]]:
    for ours, theirs in zip(_read(image), _read(reference), strict=True):
        yield ours - theirs


def _reduce(read: Slabs, axis: int, ufunc: np.ufunc) -> Picture:
    parts = [ufunc.reduce(slab, axis=axis) for slab in read()]  # one plane, or a strip of it, per slab
    return np.asarray(ufunc.reduce(parts, axis=0) if axis == 0 else np.concatenate(parts), dtype=np.float32)


def _crop(mask: Picture, mm: tuple[float, float], margin_mm: float = 15.0) -> tuple[slice, slice]:
    """The rows and columns that hold the body and a margin; everything where there is no body."""
    found = []
    for axis, step in enumerate(mm):
        filled = np.flatnonzero((mask > 0.5).any(axis=1 - axis))
        margin = int(margin_mm / step)
        if filled.size:
            found.append(slice(max(int(filled[0]) - margin, 0), int(filled[-1]) + 1 + margin))
        else:
            found.append(slice(None))
    return found[0], found[1]


def _to_pixels(picture: Picture, mm: tuple[float, float]) -> Picture:
    """Resample to square pixels, as many as the data hold but no more than a page shows."""
    extent = picture.shape[0] * mm[0], picture.shape[1] * mm[1]
    step = max(min(mm), extent[0] / MAX_PIXELS_HIGH)
    shape = max(1, round(extent[0] / step)), max(1, round(extent[1] / step))
    if shape == picture.shape:
        return picture
    shrinks = any(new < old for new, old in zip(shape, picture.shape, strict=True))
    return np.asarray(resize(picture, shape, order=1, anti_aliasing=shrinks, preserve_range=True), dtype=np.float32)


def data_uri(image: Image.Image) -> str:
    """Return an image as a PNG data URI."""
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
