"""A system's inference as a graph: one tile as a module that torch.export can follow; facts of the scan are inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from storage.errors import InputError
from storage.source import HU
from trainers.recipe import BatchSpec, Graphed, Scan, Tiling
from trainers.synthesize import InSuv

Edges = tuple[int, int, int]
TILE = (64, 96, 96)  # edges of a graph's tiles along axes where any will do; half a gigabyte of memory for ``restore``
UNBOUNDED = 1024  # voxels; a tile that is longer than this means as much of a slice as there is


@dataclass(frozen=True)
class Windows:
    """How a graph wants a volume to be cut; all in voxels (z, y, x).

    Args:
        tile: what a window gives.
        halo: what a window holds on either side of its tile.
        overlap: of neighbouring tiles, which are blended; 0 where tiles equal the whole.
        multiple: tiles start at multiples of it.
        whole: whether one tile must hold the whole axis, filled up to a multiple and no further.
    """

    tile: Edges
    halo: Edges
    overlap: Edges
    multiple: Edges
    whole: tuple[bool, bool, bool]

    @property
    def window(self) -> Edges:
        """Edges of a window."""
        z, y, x = (edge + 2 * halo for edge, halo in zip(self.tile, self.halo, strict=True))
        return z, y, x


class TileGraph(nn.Module):
    """A synthesizer's tile: ``forward(window, *facts)``, in SUVbw or HU and SUVbw.

    ``facts`` names the facts of the scan that it takes, in order; () for none.

    Args:
        synthesizer: of a run.
    """

    def __init__(self, synthesizer: InSuv) -> None:
        super().__init__()
        inner = synthesizer.inner
        self.facts: tuple[str, ...] = ()
        self._of: Callable[..., Tensor] = lambda window: inner(window, {})
        if isinstance(inner, Graphed):
            self.facts, self._of = inner.facts, inner.graphed()
        self._in_suv = synthesizer

    def forward(self, window: Tensor, *facts: Tensor) -> Tensor:
        """Synthesize one tile (1, 1, z, y, x) of a window (1, 1 + k, z + 2 halo_z, y + 2 halo_y, x + 2 halo_x)."""
        return self._of(self._in_suv.scaled(window), *facts) * self._in_suv.suv_scale


def check_alone(synthesizer: InSuv, where: str) -> None:
    """Refuse a system whose tiles share what only the whole scan tells.

    Args:
        where: what the error calls the weights.

    Raises:
        InputError: CKPT_GRAPH.
    """
    spec = synthesizer.context_batch
    if spec is not None and not isinstance(synthesizer.inner, Graphed):
        raise InputError(
            "CKPT_GRAPH",
            where=where,
            found=f"a network whose tiles share statistics of {spec.patches_per_case} patches of the whole scan, which "
            "no graph of one tile holds",
            remedy="use petscale apply, or a system without such statistics",
        )


def windows_of(synthesizer: InSuv, asked: Edges | None) -> Windows:
    """Choose how a graph is to cut volumes, whose edges it fixes.

    Args:
        asked: edges of tiles (z, y, x) for the axes along which they are free; None for ``TILE``.

    Raises:
        InputError: CFG_RANGE for edges that do not suit the system.
    """
    tiling = synthesizer.tiling
    whole = tuple(edge > UNBOUNDED for edge in tiling.tile)
    if any(whole) and asked is None:
        raise _wrong_edges("none are given, and this system sees whole slices", tiling)
    edges = []
    for axis, (own, overlap, multiple) in enumerate(zip(tiling.tile, tiling.overlap, tiling.multiple, strict=True)):
        usual = own if overlap else min(own, -(-TILE[axis] // multiple) * multiple)
        edge = usual if asked is None else asked[axis]
        if not 0 < edge <= own or edge % multiple or (overlap and edge != own):
            raise _wrong_edges(" x ".join(map(str, asked or ())), tiling)
        edges.append(edge)
    z, y, x = edges
    return Windows((z, y, x), tiling.halo, tiling.overlap, tiling.multiple, (whole[0], whole[1], whole[2]))


def _wrong_edges(found: str, tiling: Tiling) -> InputError:
    along = [
        f"{own}" if overlap else f"any multiple of {multiple}" if own <= UNBOUNDED else f"a slice, to {multiple} voxels"
        for own, overlap, multiple in zip(tiling.tile, tiling.overlap, tiling.multiple, strict=True)
    ]
    return InputError(
        "CFG_RANGE",
        where="--tile",
        found=found,
        remedy=f"give edges in voxels, z: {along[0]}, y: {along[1]}, x: {along[2]}",
    )


def channels_of(spec: BatchSpec | None) -> int:
    """Return the images that a window holds."""
    return 1 + (len(spec.beside) if spec else 0)


def example(synthesizer: InSuv, windows: Windows, device: torch.device) -> tuple[Tensor, ...]:
    """Return inputs of a graph, window and facts, as a scan may have them; the same ones every time."""
    spec = synthesizer.context_batch
    shape = (1, channels_of(spec), *windows.window)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if synthesizer.units == HU:
        values = 2000 * values - 1000
    else:
        values[:, :1] *= 5
        values[:, 1:] = 2000 * values[:, 1:] - 1000  # a CT beside it
    scan = Scan((4.0, 3.0, 3.0), 20.0, 0.05)
    facts = synthesizer.inner.facts if isinstance(synthesizer.inner, Graphed) else ()
    return values.to(device), *(torch.tensor(getattr(scan, name), device=device) for name in facts)
