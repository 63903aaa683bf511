"""Whole volumes from any recipe's synthesizer: one context per case, tiles in order, a slab of memory; or mirrored."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from storage.patches import PatchLocation, draw
from storage.randomness import Stream, generator
from storage.reader import Beyond, Case, StoredImage
from storage.source import SUV
from storage.stitch import stitch
from trainers.feed import scan_of
from trainers.recipe import BatchSpec, Scan, ScanAware, Synthesizer, Tiling


@dataclass(frozen=True)
class InSuv:
    """A synthesizer that takes a PET in SUVbw or a CT in HU and gives SUVbw, around a system's own.

    Args:
        inner: in the units of the system's batches.
        suv_scale: SUV that is 1 there.
        units: of the images that it starts from; HU are never scaled.
        beyond: what a PET holds beyond its faces, as ``FeedConfig.beyond``.
    """

    inner: Synthesizer
    suv_scale: float
    units: str = SUV
    beyond: Beyond = "air"

    @property
    def tiling(self) -> Tiling:
        """How a volume is to be cut."""
        return self.inner.tiling

    @property
    def context_batch(self) -> BatchSpec | None:
        """Patches to draw for the context of a case, None for none."""
        return self.inner.context_batch

    def for_scan(self, scan: Scan) -> "InSuv":
        """Return the synthesizer of one scan; itself where the system's own asks for no facts."""
        return replace(self, inner=self.inner.for_scan(scan)) if isinstance(self.inner, ScanAware) else self

    def remark(self, context: Mapping[str, Tensor]) -> str:
        """Return what the user should know of how the scan was taken, or nothing."""
        return self.inner.remark(context) if isinstance(self.inner, ScanAware) else ""

    def context(
        self, overview: Float[Tensor, "1 1 o o o"], source: Float[Tensor, "n k1 zh yh xh"]
    ) -> Mapping[str, Tensor]:
        """Compute once per case whatever every tile of it must share."""
        return self.inner.context(self.scaled(overview), self.scaled(source))

    def __call__(
        self, source: Float[Tensor, "b k1 zh yh xh"], context: Mapping[str, Tensor]
    ) -> Float[Tensor, "b 1 z y x"]:
        """Synthesize tiles in SUVbw; the halo is cropped from the result."""
        return self.inner(self.scaled(source), context) * self.suv_scale

    def scaled(self, image: Float[Tensor, "b k1 zh yh xh"]) -> Float[Tensor, "b k1 zh yh xh"]:
        """Return images in the units of the system's batches."""
        if self.units != SUV:
            return image
        scaled = image[:, :1] / self.suv_scale  # images beside the source keep their units
        return torch.cat([scaled, image[:, 1:]], dim=1) if image.shape[1] > 1 else scaled


def mirrors(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return every mirror image that ``axes`` make, the image itself first: 2 of one axis, 4 of two, 8 of three.

    Args:
        axes: of a volume (z, y, x), each once: 0, 1 or 2.

    >>> mirrors((1, 2))
    ((), (1,), (2,), (1, 2))
    """
    return tuple(chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count))


@dataclass(frozen=True)
class Mirrored:
    """A stored image with its voxels counted from the other end along some axes.

    The whole volume is mirrored, not the window: tiles that are tied to positions (``Tiling.multiple``), or that lie
    where a volume ends, then lie as they would in a file of the mirrored patient.

    Args:
        image: in SUVbw or HU.
        axes: of (z, y, x), along which it is mirrored; () for none.
    """

    image: StoredImage
    axes: tuple[int, ...]

    def patch(self, box: PatchLocation, beyond: Beyond = "air") -> NDArray[np.float32]:
        """Read one box (z, y, x) of the mirrored volume; beyond it is what ``StoredImage.patch`` puts there."""
        return np.flip(self.image.patch(self.across(box), beyond), self.axes)

    def across(self, box: PatchLocation) -> PatchLocation:
        """Where a box of the mirrored volume lies in the volume, and the reverse."""
        ends = zip(box.start, box.stop, self.image.grid.shape, strict=True)
        z, y, x = (n - stop if axis in self.axes else start for axis, (start, stop, n) in enumerate(ends))
        return PatchLocation((z, y, x), box.shape)


class Rows:
    """The windows of a case's tiles, from a slab that is as deep as a window: neighbours share most of their voxels.

    A voxel is read and decoded once, not once for every window that holds it, which with halves that overlap are eight.

    Args:
        read: reads one box (images, z, y, x), which may pass the volume; what it gives at a place is always the same.
        covered: voxels (z, y, x) that the tiles cover.
        tile: edges of a tile.
        halo: what a window holds on either side of its tile.
    """

    def __init__(
        self,
        read: Callable[[PatchLocation], NDArray[np.float32]],
        covered: tuple[int, int, int],
        tile: tuple[int, int, int],
        halo: tuple[int, int, int],
    ) -> None:
        self._read, self._halo = read, halo
        _, height, width = (max(pair) for pair in zip(covered, tile, strict=True))
        self._across = PatchLocation((0, 0, 0), (tile[0], height, width)).grown(halo)
        self._start: int | None = None
        self._slab = np.empty((0, 0, 0, 0), np.float32)

    def window(self, tile: PatchLocation) -> NDArray[np.float32]:
        """Return the window (images, z, y, x) of one tile, which the next call may overwrite.

        Args:
            tile: of the volume's rows in order, each as deep as all.
        """
        box = tile.grown(self._halo)
        start, stop = box.start[0], box.stop[0]
        if self._start != start:
            self._move(start, stop)
        _, y0, x0 = (a - b for a, b in zip(box.start, self._across.start, strict=True))
        return self._slab[:, :, y0 : y0 + box.shape[1], x0 : x0 + box.shape[2]]

    def _move(self, start: int, stop: int) -> None:
        """Bring the slab to another depth; what it holds already is moved, not read again."""
        _, y, x = self._across.start
        _, height, width = self._across.shape
        depth = stop - start
        kept = 0 if self._start is None else max(0, depth - (start - self._start))
        new = self._read(PatchLocation((start + kept, y, x), (depth - kept, height, width)))
        if not kept:
            self._slab = new
        else:
            self._slab[:, :kept] = self._slab[:, -kept:].copy() if 2 * kept > depth else self._slab[:, -kept:]
            self._slab[:, kept:] = new
        self._start = start


@torch.no_grad()
def synthesize(
    synthesizer: Synthesizer,
    case: Case,
    image: str,
    write: Callable[[int, NDArray[np.float32]], object],
    *,
    device: torch.device,
    batch: int = 1,
    seed: int = 0,
    mirrored: tuple[int, ...] = (),
    progress: Callable[[int], object] = lambda tiles: None,
    told: Callable[[str], object] = lambda remark: None,
) -> None:
    """Synthesize a whole volume from one stored image.

    Args:
        case: a committed case.
        image: name of the image to start from, in SUVbw or HU.
        write: gets z0 and a finished slab (dz, y, x) in SUV, each voxel once; in order, from the last slab to the first
            where z is mirrored.
        batch: tiles at a time.
        seed: of the patches that the case's context is drawn from.
        mirrored: axes of (z, y, x) along which the network is shown the case mirrored; its result is mirrored back.
        progress: gets the number of tiles just done.
        told: gets what the user should know of how the scan was taken, where there is anything.
    """
    source = Mirrored(case.image(image), mirrored)
    synthesizer = for_scan(synthesizer, source.image)
    seen = [Mirrored(one, mirrored) for one in images_of(synthesizer, case, image)]

    context = case_context(synthesizer, case, image, device=device, seed=seed, mirrored=mirrored)
    if isinstance(synthesizer, ScanAware) and (remark := synthesizer.remark(context)):
        told(remark)
    tiling, shape = synthesizer.tiling, case.image(image).grid.shape
    covered, tile = fitted(tiling, shape)
    rows = Rows(lambda box: window(synthesizer, seen, box), covered, tile, tiling.halo)

    def tiles(boxes: list[PatchLocation]) -> Iterator[NDArray[np.float32]]:
        windows = torch.from_numpy(np.stack([rows.window(box) for box in boxes])).to(device)
        output = synthesizer(windows, context).float().cpu().numpy()
        progress(len(boxes))
        yield from output[:, 0]

    depth, height, width = shape

    def write_inside(z0: int, slab: NDArray[np.float32]) -> None:
        if z0 < depth:
            inside = slab[: depth - z0, :height, :width]
            z, _, _ = source.across(PatchLocation((z0, 0, 0), (len(inside), height, width))).start
            write(z, np.ascontiguousarray(np.flip(inside, mirrored)))

    stitch(covered, tile, tiling.overlap, tiles, write_inside, batch=batch)


def for_scan(synthesizer: Synthesizer, image: StoredImage) -> Synthesizer:
    """Return the synthesizer for a stored image, told what is known of it where that changes what it does."""
    return synthesizer.for_scan(scan_of(image)) if isinstance(synthesizer, ScanAware) else synthesizer


def images_of(synthesizer: Synthesizer, case: Case, image: str) -> tuple[StoredImage, ...]:
    """Return the images that windows hold: the source, and what the network sees beside it.

    Raises:
        InputError: SET_NO_IMAGE.
    """
    spec = synthesizer.context_batch
    return tuple(case.image(name) for name in (image, *(spec.beside if spec else ())))


def window(
    synthesizer: Synthesizer, images: Sequence[StoredImage | Mirrored], box: PatchLocation
) -> NDArray[np.float32]:
    """Read one window (images, z, y, x), beyond the faces as the run was trained."""
    beyond: Beyond = synthesizer.beyond if isinstance(synthesizer, InSuv) else "air"
    return np.stack([image.patch(box, beyond) for image in images])


def fitted(tiling: Tiling, shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Fit the tiling to a volume: along axes without overlap, tiles divide it evenly, so that none is computed twice.

    Returns:
        What the tiles cover, which is ``shape`` or passes it where tiles are tied to multiples, and the tile.
    """
    covered, tile = [], []
    for length, edge, overlap, multiple in zip(shape, tiling.tile, tiling.overlap, tiling.multiple, strict=True):
        units = -(-length // multiple)
        count = -(-units * multiple // edge)
        fit = edge if overlap else -(-units // count) * multiple
        tile.append(fit)
        covered.append(length if multiple == 1 else -(-length // fit) * fit)
    return (covered[0], covered[1], covered[2]), (tile[0], tile[1], tile[2])


@torch.no_grad()
def case_context(
    synthesizer: Synthesizer,
    case: Case,
    image: str,
    *,
    device: torch.device,
    seed: int = 0,
    mirrored: tuple[int, ...] = (),
) -> dict[str, torch.Tensor]:
    """Compute what all tiles of a case share, from the image that they start from alone.

    A mirrored case is drawn from at the same places of the patient: its context differs by what the network makes of
    mirror images, never by the draw.
    """
    spec = synthesizer.context_batch
    if spec is None:
        return {}
    source = case.image(image)
    # A patch longer than a small volume is cut to it: at inference there is no batch that shapes must fit.
    z, y, x = (min(edge, size) for edge, size in zip(spec.patch, source.grid.shape, strict=True))
    rng = generator(seed, Stream.CASE_CONTEXT)
    boxes = [draw(case.sampling_maps, (z, y, x), spec.sampler, rng) for _ in range(spec.patches_per_case)]
    seen = images_of(synthesizer, case, image)
    axes = tuple(1 + axis for axis in mirrored)
    arrays = np.stack([np.flip(window(synthesizer, seen, box.grown(spec.halo)), axes) for box in boxes])
    overview = np.flip(case.overview(image), mirrored).copy()[None, None]
    return dict(synthesizer.context(torch.from_numpy(overview).to(device), torch.from_numpy(arrays).to(device)))
