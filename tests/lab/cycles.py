"""Systems of two directions under test: batches of noisy and of smooth images, and which networks an update moves."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.cycle import Cycle
from trainers.recipe import Batch, Engine

PARTS = {"G": "to_full.", "F": "to_low.", "D of low": "of_low.", "D of full": "of_full."}


def batch(seed: int, size: tuple[int, int, int], *, images: int = 2, paired: bool = False) -> Batch:
    """Noisy images of half the brightness, and as many smooth ones, of the same patients or of others."""
    random = torch.Generator().manual_seed(seed)
    z, y, x = size
    window = (min(z, 8) + 1 - z % 2 if z > 1 else 1, 9, 9)
    grown = (z + window[0] - 1, y + 8, x + 8)
    first, second = (F.avg_pool3d(torch.rand(images, 1, *grown, generator=random) * 4, window, 1) for _ in range(2))
    full = first if paired else second
    low = 0.5 * first + 0.2 * torch.randn(first.shape, generator=random)
    nothing, places = torch.zeros(images, 0, *size), tuple(f"case {number}" for number in range(images))
    drf, spacing_mm = torch.full((images,), 20.0), torch.full((images, 3), 4.0)
    return Batch(low, full, nothing, torch.zeros(images, 1, 0, 0, 0), drf, images, places, spacing_mm)


def parts(G: Engine, D: Engine) -> dict[str, Tensor]:
    """All weights of every direction's generator and every dose's discriminator."""
    weights = {**G.module.state_dict(), **D.module.state_dict()}
    return {
        part: torch.cat([value.flatten() for key, value in weights.items() if key.startswith(start)]).clone()
        for part, start in PARTS.items()
    }


def moves(recipe: Any, given: Batch, step: int = 0) -> list[set[str]]:
    """Train one step; the parts that each engine's update moves, in the order of updates."""
    seen: list[dict[str, Tensor]] = []
    for engine in (recipe.G, recipe.D):
        stepped = engine.step

        def update(stepped: Any = stepped) -> None:
            seen.append(parts(recipe.G, recipe.D))
            stepped()
            seen.append(parts(recipe.G, recipe.D))

        object.__setattr__(engine, "step", update)
    recipe.step(given, step)
    return [
        {part for part in before if not torch.equal(before[part], after[part])}
        for before, after in zip(seen[::2], seen[1::2], strict=True)
    ]


def resumes_bit_equal(whole: Any, first: Any, second: Any, batches: list[Batch]) -> bool:
    """Train one recipe through all batches, and another through half of them, whose state a third goes on with."""

    def train(recipe: Cycle, begin: int, end: int) -> None:
        for step in range(begin, end):
            torch.manual_seed(step)
            recipe.step(batches[step], step)

    middle, end = len(batches) // 2, len(batches)
    train(whole, 0, end)
    train(first, 0, middle)
    second.load(first.state())
    train(second, middle, end)
    found = second.state()
    return all(
        torch.equal(value, found[name][key])
        for name, tensors in whole.state().items()
        for key, value in tensors.items()
    )
