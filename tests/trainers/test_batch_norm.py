"""Batch norm over ranks: as batch norm of one process on the joint batch, in values, gradients and statistics."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor, nn

from trainers.batch_norm import over_ranks

Make = Callable[[], nn.Module]
KINDS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "3D": (lambda: nn.BatchNorm3d(3), (2, 3, 4, 4, 4)),
    "2D, mean of all batches": (lambda: nn.BatchNorm2d(3, momentum=None), (3, 3, 5, 4)),
    "2D, no weights": (lambda: nn.BatchNorm2d(3, affine=False), (1, 3, 5, 4)),
    "3D, no running statistics": (lambda: nn.BatchNorm3d(3, track_running_stats=False), (1, 3, 4, 4, 4)),
}


def network(make: Make) -> nn.Module:
    norm = make()
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    return norm.double()


def batch(shape: tuple[int, ...], rank: int, step: int) -> Tensor:
    """Ranks that see very different values."""
    random = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(shape, generator=random, dtype=torch.float64) * (1 + 3 * rank) + 5 * rank


def loss(x: Tensor, norm: nn.Module) -> Tensor:
    """One that is no sum over patches, and holds the square of a gradient, as a critic's penalty does."""
    y = norm(x)
    (slope,) = torch.autograd.grad(y.pow(3).mean(), x, create_graph=True)
    return y.sin().mean() + slope.square().mean() * 100


def alone(make: Make, shape: tuple[int, ...], world: int) -> tuple[nn.Module, Tensor]:
    """The same on the joint batch in one process; ranks have the mean loss of equal shares."""
    norm = network(make)
    for step in range(2):
        x = torch.cat([batch(shape, rank, step) for rank in range(world)]).requires_grad_()
        norm.zero_grad()
        y = norm(x)
        (slope,) = torch.autograd.grad(y.pow(3).mean(), x, create_graph=True)
        # A rank's own slope is that of its own mean: all ranks' together, and so ``world`` times the joint one's.
        (y.sin().mean() + (world * slope).square().mean() * 100).backward()
    assert x.grad is not None
    return norm, x.grad


def _rank(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        for make, shape in KINDS.values():
            _equals(rank, world, make, shape)
    finally:
        dist.destroy_process_group()


def _equals(rank: int, world: int, make: Make, shape: tuple[int, ...]) -> None:
    norm = over_ranks(network(make))
    for step in range(2):
        norm.zero_grad()
        x = batch(shape, rank, step).requires_grad_()
        loss(x, norm).backward()
    assert x.grad is not None
    wanted, gradient = alone(make, shape, world)
    share = slice(rank * shape[0], (rank + 1) * shape[0])
    torch.testing.assert_close(x.grad / world, gradient[share])
    for name, parameter in wanted.named_parameters():
        found = norm.get_parameter(name).grad
        assert found is not None
        dist.all_reduce(found)
        torch.testing.assert_close(found / world, parameter.grad)
    for name, value in wanted.named_buffers():
        torch.testing.assert_close(norm.get_buffer(name), value)
    everyone: list[dict[str, Tensor]] = [{} for _ in range(world)]
    dist.all_gather_object(everyone, dict(norm.named_buffers()))
    assert all(torch.equal(value, everyone[0][name]) for name, value in norm.named_buffers()), "the same bits"
    if norm.track_running_stats and rank == 0:  # in evaluation a rank may run alone
        x = batch(shape, 0, 2)
        torch.testing.assert_close(norm.eval()(x), wanted.eval()(x))


def test_two_ranks_norm_as_one_process_would(tmp_path: Path) -> None:
    run_ranks(_rank, 2, 2, str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_norms_by_torchs_own_bits(kind: str) -> None:
    make, shape = KINDS[kind]
    ours, torchs = over_ranks(network(make)), network(make)
    x = batch(shape, 0, 0)
    assert torch.equal(ours(x), torchs(x))
    assert all(torch.equal(value, ours.get_buffer(name)) for name, value in torchs.named_buffers())
    assert torch.equal(ours.eval()(x), torchs.eval()(x))


def test_it_finds_every_batch_norm_and_keeps_names_and_weights() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ModuleDict({"norm": nn.BatchNorm3d(2)}), nn.GroupNorm(1, 2))
    before = network.state_dict()
    assert over_ranks(network) is network
    assert isinstance(network.get_submodule("1.norm"), nn.BatchNorm3d)
    assert type(network.get_submodule("1.norm")) is not nn.BatchNorm3d
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
