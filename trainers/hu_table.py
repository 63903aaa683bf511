"""Tables from HU to SUV: the mean SUV of the voxels of every range of HU, alone or in finer classes.

What a CT value tells of uptake without a network.  Tables are sums over voxels, hence over cases: folds and further
patients cost an addition.  Networks may learn what a table leaves, on SUV itself or on its square root.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from trainers import assembly

SuvCurve = Literal["linear", "sqrt"]
HU_EDGES = np.array([-1024.0, *range(-1000, 301, 20), 400.0, 600.0, 1000.0, 1600.0, 3072.0])
RANGES = len(HU_EDGES) - 1
MEAN_EDGES_HU = (-900, -700, -500, -300, -200, -150, -110, -80, -50, -25, 0, 20, 40, 60, 100, 200)  # of a local mean
MEANS = len(MEAN_EDGES_HU) + 1


def ranges(hu: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return the range of every voxel, 0 to ``RANGES`` - 1; values beyond the edges belong to the outermost ranges."""
    edges = torch.as_tensor(HU_EDGES, dtype=hu.dtype, device=hu.device)
    return (torch.bucketize(hu.contiguous(), edges, right=True) - 1).clamp(0, RANGES - 1)


def mean_ranges(hu: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return the range of a mean HU of the surroundings, 0 to ``MEANS`` - 1; coarser, to tell tissues apart."""
    edges = torch.tensor(MEAN_EDGES_HU, dtype=hu.dtype, device=hu.device)
    return torch.bucketize(hu.contiguous(), edges, right=True)


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over voxels from which the means of every cell of a table follow; those of two cases can be added.

    Args:
        weight: sum of the voxels' weights, in any shape; its number of voxels where all weigh 1.
        suv: sum of weight * SUV, in the same shape.
    """

    weight: NDArray[np.float64]
    suv: NDArray[np.float64]

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.weight + other.weight, self.suv + other.suv)

    def over(self, axis: int | tuple[int, ...]) -> "Sums":
        """Return the sums of a coarser table."""
        return Sums(self.weight.sum(axis), self.suv.sum(axis))


def no_voxels(shape: Sequence[int]) -> Sums:
    """Return the sums over no voxel, of a table of ``shape``."""
    return Sums(np.zeros(shape), np.zeros(shape))


def sums(cells: NDArray[np.integer], suv: NDArray[np.floating], shape: Sequence[int], weight: float = 1.0) -> Sums:
    """Sum over voxels, in double precision and in their order.

    Args:
        cells: of every voxel, its place in the flattened table.
        suv: what these voxels hold, as many.
        shape: of the table.
        weight: of these voxels.
    """
    size = int(np.prod(shape))
    count = np.bincount(cells.ravel(), minlength=size).reshape(shape)
    total = np.bincount(cells.ravel(), suv.ravel().astype(np.float64), size).reshape(shape)
    return Sums(np.float64(weight) * count, np.float64(weight) * total)


@dataclass
class RunningSums:
    """What a phase of training adds up, a table of any shape.

    Args:
        cells: of the patches seen so far.
        voxels: their number.
    """

    cells: Sums
    voxels: int = 0

    def add(self, cells: Int[Tensor, "*shape"], suv: Float[Tensor, "*shape"], weight: float = 1.0) -> None:
        """Add the voxels of one patch: of every voxel its place in the flattened table, and its SUV."""
        shape = self.cells.weight.shape
        self.cells += sums(cells.cpu().numpy(), suv.cpu().numpy(), shape, weight)
        self.voxels += suv.numel()

    def own(self) -> dict[str, Tensor]:
        """Return what this rank has added up."""
        return {
            "weight": torch.from_numpy(self.cells.weight.copy()),
            "suv": torch.from_numpy(self.cells.suv.copy()),
            "voxels": torch.tensor(self.voxels),
        }

    def state(self) -> dict[str, Tensor]:
        """Return what ``load`` takes, of all ranks together (collective)."""
        first, *others = assembly.of_all_ranks(self.own())
        for other in others:
            first = {name: value + other[name] for name, value in first.items()}
        return first

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``: rank 0 takes all of it, the others start at nothing."""
        self.cells, self.voxels = no_voxels(self.cells.weight.shape), 0
        if assembly.first_rank():
            weight, suv = (state[name].cpu().numpy().copy() for name in ("weight", "suv"))
            self.cells, self.voxels = Sums(weight, suv), int(state["voxels"])


def on_curve(suv: Tensor, curve: SuvCurve) -> Tensor:
    """Return SUV on the curve; activity is never negative."""
    return suv if curve == "linear" else suv.clamp(min=0).sqrt()


def off_curve(value: Tensor, curve: SuvCurve) -> Tensor:
    """Inverse of ``on_curve``."""
    return value if curve == "linear" else value.clamp(min=0).square()


def means(of: Sums) -> NDArray[np.float64]:
    """Return the mean SUV of every range of HU, (ranges,); ranges without a voxel take the nearest one that has some.

    Where no range has any, all are 0.
    """
    known = np.flatnonzero(of.weight)
    if not known.size:
        return np.zeros_like(of.suv)
    nearest = known[np.abs(np.arange(len(of.weight))[:, None] - known).argmin(axis=1)]
    return np.asarray(of.suv[nearest] / of.weight[nearest])


def table_of(state: Mapping[str, Tensor]) -> Float[Tensor, " ranges"]:
    """Return the mean SUV of every range of HU, from what ``RunningSums.state`` returned of a table of ranges alone."""
    cells = Sums(state["weight"].cpu().numpy(), state["suv"].cpu().numpy())
    return torch.from_numpy(means(cells)).float()


def finer_means(of: Sums, coarser: NDArray[np.float64], fewest: float) -> NDArray[np.float64]:
    """Return the means of a finer table, and those of the coarser one where there is too little weight.

    Args:
        coarser: means that ``of``'s shape can be broadcast with.
        fewest: weight that a mean of its own needs.
    """
    return np.where(of.weight >= fewest, of.suv / np.maximum(of.weight, 1e-300), coarser)


def drawn_means(of: Sums, coarser: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """Return the means of a finer table, each drawn to that of the coarser one as ``strength`` more weight would."""
    return np.asarray((of.suv + strength * coarser) / np.maximum(of.weight + strength, 1e-300))
