"""What tests ask of networks: their size, which weights a step moved, and seams in what they make."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def count(network: nn.Module | None) -> int:
    """Return the number of parameters, 0 for no network."""
    return sum(p.numel() for p in network.parameters()) if network else 0


def moved(before: dict[str, dict[str, Tensor]], after: dict[str, dict[str, Tensor]]) -> set[str]:
    return {e for e in before if any(not torch.equal(before[e][k], after[e][k]) for k in before[e])}


def seam_score(volume: NDArray[np.float32], stride: int) -> float:
    """Mean jump across window borders over the mean jump elsewhere."""
    jumps = np.abs(np.diff(volume, axis=2)).mean((0, 1))
    border = np.arange(1, volume.shape[2]) % stride == 0
    return float(jumps[border].mean() / jumps[~border].mean())
