"""Pairs of a low and a full dose for tests of systems: batches, training, resuming, and volumes in tiles."""

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.recipe import Batch, Recipe, Synthesizer


def pair(low: Tensor, full: Tensor) -> Batch:
    """Return the batch of low doses and their full doses (b, 1, z, y, x) of as many cases."""
    b = len(low)
    nothing, overview = torch.zeros(b, 0, *full.shape[2:]), torch.zeros(b, 1, 0, 0, 0)
    return Batch(low, full, nothing, overview, torch.full((b,), 20.0), b, ("case image 0,0,0",) * b)


def noisy(patch: Sequence[int], seed: int = 0, margin: Sequence[int] = (0, 0, 0)) -> Batch:
    """Return two images of smooth blobs, and the same with noise and ``margin`` voxels more on either side."""
    random = torch.Generator().manual_seed(seed)
    z, y, x = (edge + 2 * m for edge, m in zip(patch, margin, strict=True))
    coarse = torch.rand(2, 1, max(1, z // 4), y // 4, x // 4, generator=random)
    whole = 4 * F.interpolate(coarse, (z, y, x), mode="trilinear")
    low = (whole + 0.4 * torch.randn(whole.shape, generator=random)).clamp(min=0)
    a, b, c = margin
    return pair(low, whole[:, :, a : z - a, b : y - b, c : x - c])


def train(recipe: Recipe, batch: Batch, begin: int, end: int) -> list[dict[str, float]]:
    """Take steps on one batch, torch seeded by the step as the loop does; returns what they measured."""
    found = []
    for step in range(begin, end):
        torch.manual_seed(step)
        found.append({name: float(value) for name, value in recipe.step(batch, step).items()})
    return found


def flat(recipe: Recipe) -> dict[str, Tensor]:
    """Return the whole state under one level of names."""
    return {f"{owner}|{key}": value for owner, state in recipe.state().items() for key, value in state.items()}


def check_resumes(build: Callable[[], Recipe], batch: Batch, middle: int, end: int) -> None:
    """Assert that a run resumed at ``middle`` ends bit for bit as an uninterrupted one."""
    whole, first, second = build(), build(), build()
    expected = train(whole, batch, 0, end)
    train(first, batch, 0, middle)
    second.load(first.state())
    assert train(second, batch, middle, end) == expected[middle:]
    found = flat(second)
    assert flat(whole).keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in flat(whole).items())


def check_tiles_equal_the_whole(
    synthesizer: Synthesizer, low: Tensor, tile: Sequence[int], *, atol: float = 1e-12
) -> None:
    """Assert that a volume in tiles is the volume at once; edges of ``low`` without halo are multiples of ``tile``.

    Args:
        low: (1, 1, z, y, x) with the halo on either side.
    """
    halo = synthesizer.tiling.halo
    whole = synthesizer(low, {})
    edges = [edge - 2 * h for edge, h in zip(low.shape[2:], halo, strict=True)]
    assert list(whole.shape[2:]) == edges
    for start in itertools.product(*(range(0, edge, n) for edge, n in zip(edges, tile, strict=True))):
        (a, z), (b, y), (c, x) = zip(start, tile, strict=True)
        window = low[:, :, a : a + z + 2 * halo[0], b : b + y + 2 * halo[1], c : c + x + 2 * halo[2]]
        part = whole[:, :, a : a + z, b : b + y, c : c + x]
        torch.testing.assert_close(synthesizer(window, {}), part, rtol=0, atol=atol)
