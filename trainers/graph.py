"""A system's inference as a graph: one tile as a module that torch.export can follow; facts of the scan are inputs.

Where tiles share what the whole scan tells, patches of it are inputs too, and what they tell, the context, is an output
and an input: it is computed once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from storage.errors import InputError
from storage.patches import BODY, Centre, body_centres
from storage.randomness import Stream, generator
from storage.source import HU
from trainers.recipe import BatchSpec, Graphed, GraphedInContext, Scan, Tiling
from trainers.synthesize import InSuv

Edges = tuple[int, int, int]
TILE = (64, 96, 96)  # edges of a graph's tiles along axes where any will do; half a gigabyte of memory for ``restore``
CONTEXT = "context_out"  # what a graph computes its tile of, and gives back
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


@dataclass(frozen=True)
class Shared:
    """What a graph takes and gives of the whole scan: patches in, and the context that tiles share in and out.

    Args:
        patch: edges (z, y, x) in voxels of a patch of a volume that is not shorter.
        halo: voxels (z, y, x) that it holds besides on either side.
        short: as ``GraphedInContext.short_patches``.
        overview: edge of the volume resized, 0 where none is taken.
        centres: of the patches.
        tensors: names and shapes of what a context holds; all of it is one input after the other in a line.
    """

    patch: Edges
    halo: Edges
    short: Literal["cut", "filled"]
    overview: int
    centres: tuple[Centre, ...]
    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Numbers that a context holds."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    def joined(self, context: Mapping[str, Tensor]) -> Float[Tensor, " size"]:
        """Return a context in one line."""
        return torch.cat([context[name].flatten() for name, _ in self.tensors])

    def parted(self, line: Float[Tensor, " size"]) -> dict[str, Tensor]:
        """Return the context that ``joined`` has put in one line."""
        parts = line.split([math.prod(shape) for _, shape in self.tensors])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.tensors, parts, strict=True)}


class TileGraph(nn.Module):
    """A synthesizer's tile: ``forward(window, *facts)``, in SUVbw or HU and SUVbw; with a context, that is the last.

    ``inputs`` names all of them.  ``facts`` names those that are facts of the scan, and ``unknown`` those of these that
    may be NaN.

    Args:
        synthesizer: of a run, which ``check_graphed`` lets pass.
        shared: what its tiles share, None for nothing.
    """

    def __init__(self, synthesizer: InSuv, shared: Shared | None) -> None:
        super().__init__()
        inner = synthesizer.inner
        self.facts: tuple[str, ...] = ()
        self.unknown: tuple[str, ...] = ()
        self._of: Callable[..., Tensor] = lambda window: inner(window, {})
        if isinstance(inner, Graphed):
            self.facts, self._of = inner.facts, inner.graphed()
        elif isinstance(inner, GraphedInContext) and shared is not None:
            self.facts, self.unknown = inner.facts, inner.unknown
            tile = inner.graphed_tile()
            self._of = lambda window, *others: tile(window, shared.parted(others[-1]), *others[:-1])
        self.inputs = ("window", *self.facts, *(() if shared is None else (CONTEXT,)))
        self._in_suv = synthesizer

    def forward(self, window: Tensor, *others: Tensor) -> Tensor:
        """Synthesize one tile (1, 1, z, y, x) of a window (1, 1 + k, z + 2 halo_z, y + 2 halo_y, x + 2 halo_x)."""
        return self._of(self._in_suv.scaled(window), *others) * self._in_suv.suv_scale


class ContextGraph(nn.Module):
    """What tiles share, in a line (size,): ``forward(patches, *others)``; an overview where one is taken, and facts.

    Args:
        synthesizer: of a run, which ``check_graphed`` lets pass.
        shared: what its tiles share.
    """

    def __init__(self, synthesizer: InSuv, shared: Shared) -> None:
        super().__init__()
        inner = synthesizer.inner
        assert isinstance(inner, GraphedInContext)
        self.inputs = ("patches", *(("overview",) if shared.overview else ()), *inner.facts)
        self._of, self._scaled, self._shared = inner.graphed_context(), synthesizer.scaled, shared

    def forward(self, patches: Tensor, *others: Tensor) -> Tensor:
        """Compute it of patches (n, 1 + k, z + 2 halo_z, y + 2 halo_y, x + 2 halo_x), then an overview, then facts."""
        if self._shared.overview:
            overview, *facts = others
        else:
            overview, facts = patches.new_zeros(1, 1, 1, 1, 1), list(others)
        return self._shared.joined(self._of(self._scaled(overview), self._scaled(patches), *facts))


def shared_of(synthesizer: InSuv) -> Shared | None:
    """Return what the tiles of a scan share; None where that is nothing but facts."""
    spec, inner = synthesizer.context_batch, synthesizer.inner
    if spec is None or not isinstance(inner, GraphedInContext):
        return None
    centres = tuple(body_centres(spec.patches_per_case, generator(0, Stream.CASE_CONTEXT)))
    found = Shared(spec.patch, spec.halo, inner.short_patches, spec.overview, centres, ())
    inputs = example_of_scan(synthesizer, found)
    with torch.no_grad():
        context = synthesizer.context(inputs.get("overview", torch.zeros(1, 1, 1, 1, 1)), inputs["patches"][:1])
    return replace(found, tensors=tuple((name, tuple(value.shape)) for name, value in sorted(context.items())))


def check_graphed(synthesizer: InSuv, where: str) -> None:
    """Refuse a system whose tiles share a context that it does not offer as a part of a graph.

    Args:
        where: what the error calls the weights.

    Raises:
        InputError: CKPT_GRAPH.
    """
    spec, inner = synthesizer.context_batch, synthesizer.inner
    if spec is None or isinstance(inner, Graphed):
        return
    found = ""
    if not isinstance(inner, GraphedInContext):
        found = (
            f"a network whose tiles share what {spec.patches_per_case} patches of the whole scan tell, not as tensors"
        )
    elif dict(spec.sampler) != dict(BODY):
        found = "a network whose tiles share what patches tell that are not drawn from the body alone"
    elif synthesizer.units == HU or spec.beside:
        found = "a network whose tiles share what patches of a body tell that a CT outlines"
    if found:
        raise InputError("CKPT_GRAPH", where=where, found=found, remedy="use petscale apply, or another system")


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


def example(synthesizer: InSuv, windows: Windows, facts: Sequence[str]) -> dict[str, Tensor]:
    """Return a window and facts by name, as a scan may have them; the same ones every time."""
    shape = (1, channels_of(synthesizer.context_batch), *windows.window)
    scan = Scan((4.0, 3.0, 3.0), 20.0, 0.05)
    return {"window": _random(shape, synthesizer.units)} | {name: torch.tensor(getattr(scan, name)) for name in facts}


def example_of_scan(synthesizer: InSuv, shared: Shared) -> dict[str, Tensor]:
    """Return patches and, where one is taken, an overview by name, as ``example``."""
    edges = [edge + 2 * halo for edge, halo in zip(shared.patch, shared.halo, strict=True)]
    n = len(shared.centres)
    patches = _random((n, channels_of(synthesizer.context_batch), *edges), synthesizer.units)
    patches[:, :1] *= torch.linspace(0.2, 1, n)[:, None, None, None, None]  # as different as parts of a body
    overview = _random((1, 1, *(shared.overview,) * 3), synthesizer.units)
    return {"patches": patches, "overview": overview} if shared.overview else {"patches": patches}


def _random(shape: tuple[int, ...], units: str) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if units == HU:
        return 2000 * values - 1000
    values[:, :1] *= 5
    values[:, 1:] = 2000 * values[:, 1:] - 1000  # a CT beside it
    return values
