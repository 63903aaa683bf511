"""Whole volumes from any recipe's synthesizer: one context per case, tiles in order, a slab of memory."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from storage.patches import PatchLocation, draw, generator
from storage.reader import Case
from storage.stitch import stitch
from trainers.recipe import Synthesizer, Tiling

_CONTEXT = 4  # purpose of the draws behind a case's context, beside the feed's and the loop's


@torch.no_grad()
def synthesize(
    synthesizer: Synthesizer,
    case: Case,
    image: str,
    write: Callable[[int, NDArray[np.float32]], object],
    *,
    suv_scale: float,
    device: torch.device,
    batch: int = 1,
    seed: int = 0,
    progress: Callable[[int], object] = lambda tiles: None,
) -> None:
    """Synthesize a full-dose volume from one stored low-dose image.

    Args:
        case: a committed case.
        image: name of its low-dose image.
        write: gets z0 and a finished slab (dz, y, x) in SUV, in order, each voxel once.
        suv_scale: the run's intensity scale.
        batch: tiles at a time.
        seed: of the patches that the case's context is drawn from.
        progress: gets the number of tiles just done.
    """
    low = case.image(image)

    def patches(boxes: list[PatchLocation], halo: tuple[int, int, int]) -> torch.Tensor:
        arrays = [low.patch(box.grown(halo))[None] for box in boxes]
        return torch.from_numpy(np.stack(arrays) / np.float32(suv_scale)).to(device)

    context = case_context(synthesizer, case, image, suv_scale=suv_scale, device=device, seed=seed)
    tiling = synthesizer.tiling

    def tiles(boxes: list[PatchLocation]) -> Iterator[NDArray[np.float32]]:
        output = synthesizer(patches(boxes, tiling.halo), context).float().cpu().numpy() * np.float32(suv_scale)
        progress(len(boxes))
        yield from output[:, 0]

    depth, height, width = low.grid.shape

    def write_inside(z0: int, slab: NDArray[np.float32]) -> None:
        if z0 < depth:
            write(z0, np.ascontiguousarray(slab[: depth - z0, :height, :width]))

    covered, tile = fitted(tiling, low.grid.shape)
    stitch(covered, tile, tiling.overlap, tiles, write_inside, batch=batch)


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
    synthesizer: Synthesizer, case: Case, image: str, *, suv_scale: float, device: torch.device, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Compute what all tiles of a case share, from the low-dose image alone."""
    spec = synthesizer.context_batch
    if spec is None:
        return {}
    low = case.image(image)
    # A patch longer than a small volume is cut to it: at inference there is no batch that shapes must fit.
    z, y, x = (min(edge, size) for edge, size in zip(spec.patch, low.grid.shape, strict=True))
    rng = generator(seed, _CONTEXT)
    boxes = [draw(case.aids, (z, y, x), spec.sampler, rng) for _ in range(spec.patches_per_case)]
    arrays = np.stack([low.patch(box.grown(spec.halo))[None] for box in boxes]) / np.float32(suv_scale)
    overview = case.overview(image)[None, None] / np.float32(suv_scale)
    return dict(synthesizer.context(torch.from_numpy(overview).to(device), torch.from_numpy(arrays).to(device)))
