"""What a residual is added to, fitted by two ranks, is what one process fits to the batches of both."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import small_cascade
import small_cg_3dsrgan
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor

from trainers import dose_gaussian
from trainers.engine import plain_engine
from trainers.recipe import Batch, Recipe
from trainers.systems import cascade, cg_3dsrgan, virtual_pet

WORLD, STEPS, PATCHES = 2, 2, 4
SMALL_PYRAMID: dict[str, Any] = {
    "patch": (1, 32, 32),
    "generator_width": 4,
    "generator_downs": 3,
    "critic_width": 4,
    "critic_strides": (2, 1),
    "cgan_samples": 8,
}


class Batches(Protocol):
    def __call__(self, step: int, rank: int) -> Batch: ...


Made = tuple[Recipe, Batches]


def of_ct(around: tuple[int, int, int]) -> Batches:
    """Batches of CT and PET by step and rank; the ranks' tissues differ, and so do their SUV."""
    z, y, x = around

    def batch(step: int, rank: int) -> Batch:
        random = torch.Generator().manual_seed(10 * step + rank)
        shape = (PATCHES // WORLD, 1, 1, 32, 32)
        hu = 900 * torch.rand(*shape[:2], z, y, x, generator=random) - 900 + 300 * rank
        suv = (1 + 3 * rank) * torch.rand(shape, generator=random)
        return Batch(
            source=hu,
            target=suv,
            masks=torch.zeros(len(suv), 0, *suv.shape[2:]),
            overview=torch.zeros(len(suv), 1, 0, 0, 0),
            drf=torch.full((len(suv),), torch.nan),
            cases=len(suv),
            places=("",) * len(suv),
        )

    return batch


def of_doses(step: int, rank: int) -> Batch:
    """Rank 0 alone would choose 5 mm, and rank 1 another width for its weaker patches: together it is 5 mm or that."""
    batch = small_cg_3dsrgan.make_batch(10 * step + rank, around=6)
    smooth = dose_gaussian.smoothed(batch.source, batch.spacing_mm, 6, (5.0, 8.0)[rank : rank + 1])
    return dataclasses.replace(batch, target=smooth)


def made() -> dict[str, Made]:
    build: dict[str, Any] = {"make_engine": plain_engine, "patches_per_step": PATCHES}
    chain = small_cascade.small(residual="hu", table_samples=STEPS * PATCHES, suv_curve="sqrt")
    pyramid = virtual_pet.Config(residual="hu", table_samples=STEPS * PATCHES, networks="cgan", **SMALL_PYRAMID)
    refined = small_cg_3dsrgan.small(residual="gaussian", gaussian_samples=STEPS * PATCHES)
    return {
        "cascade": (cascade.build(chain, **build), of_ct((1, 32, 32))),
        "virtual PET": (virtual_pet.build(pyramid, **build), of_ct((1 + 2 * pyramid.halo, 32, 32))),
        "cg_3dsrgan": (cg_3dsrgan.build(refined, **build), of_doses),
    }


def joint(first: Batch, second: Batch) -> Batch:
    """The batch of one process that sees what two ranks see."""
    both = [vars(first), vars(second)]
    tensors: dict[str, Any] = {
        n: torch.cat([one[n] for one in both]) for n, value in both[0].items() if isinstance(value, Tensor)
    }
    return dataclasses.replace(first, **tensors, cases=first.cases + second.cases, places=first.places + second.places)


def fitted(recipe: Recipe, batch: Callable[[int], Batch]) -> dict[str, Tensor]:
    """What the phase has fitted, of the weights that are exported once the next phase has begun."""
    for step in range(STEPS + 1):
        torch.manual_seed(step)
        recipe.step(batch(step), step)
    names = ("table", "gaussian.")
    return {name: value for name, value in recipe.weights().items() if name.startswith(names)}


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    try:
        found = {name: fitted(recipe, partial(batch, rank=rank)) for name, (recipe, batch) in made().items()}
    finally:
        dist.destroy_process_group()
    torch.save(found, f"{folder}/rank{rank}.pt")


def test_two_ranks_fit_as_one_process_would(tmp_path: Path) -> None:
    run_ranks(_rank, WORLD, str(tmp_path))
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, (recipe, batch) in made().items():
            wanted = fitted(recipe, lambda step, batch=batch: joint(batch(step, 0), batch(step, 1)))  # type: ignore[misc]
            alone = fitted(made()[name][0], partial(batch, rank=rank))
            assert wanted.keys() == found[name].keys() != set()
            for part, value in wanted.items():
                torch.testing.assert_close(found[name][part], value, rtol=1e-6, atol=1e-6)
            assert any(not torch.equal(alone[part], value) for part, value in wanted.items()), name
