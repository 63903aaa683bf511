"""Memory that a training will hold, told before it starts by networks and batches of shapes without data."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.engine import EngineConfig, plain_engine, plain_engines
from trainers.recipe import Batch, BatchSpec, Engine, EngineFactory, OptimizerFactory, Recipe

Build = Callable[[EngineFactory], Recipe]


@dataclass(frozen=True)
class Held:
    """What the networks of a run hold on one worker, bytes.

    Args:
        weights: parameters and buffers, with the fp32 copy of its share that ZeRO steps on, and averaged weights.
        gradients: of all parameters.
        optimizer: its moments.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.gradients + self.optimizer


def held(build: Build, config: EngineConfig, workers: int) -> Held:
    """Return what a run's networks hold, by networks without data that are updated once.

    ZeRO 1 divides the optimizer's moments among the workers, and gives each worker a copy of its share of the weights;
    ZeRO 2 divides the gradients too.

    Args:
        build: builds the recipe with a factory of engines.
    """
    made: list[tuple[nn.Module, optim.Optimizer]] = []

    def make(net: nn.Module, optimizer: OptimizerFactory) -> Engine:
        kept: list[optim.Optimizer] = []

        def noted(parameters: Any) -> optim.Optimizer:
            kept.append(optimizer(parameters))
            return kept[0]

        engine = plain_engine(net, noted)
        made.append((net, kept[0]))
        return engine

    with torch.device("meta"):
        build(make)
        own = {id(p): p for net, _ in made for p in net.parameters()}
        for parameter in own.values():
            parameter.grad = torch.empty_like(parameter)
        for _, optimizer in made:
            optimizer.step()
    parameters = sum(_bytes(p) for p in own.values())
    buffers = sum(_bytes(b) for b in {id(b): b for net, _ in made for b in net.buffers()}.values())
    moments = sum(_bytes(t) for _, one in made for state in one.state.values() for t in state.values() if _sized(t))
    share = workers if config.zero_stage else 1
    copies = (parameters // share if config.zero_stage else 0) + (parameters if config.ema_decay else 0)
    return Held(
        weights=parameters + buffers + copies,
        gradients=parameters // (share if config.zero_stage == 2 else 1),
        optimizer=moments // share,
    )


def _sized(value: Any) -> bool:
    """Whether it is as large as a parameter: counts of steps are not."""
    return isinstance(value, Tensor) and value.ndim > 0


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def step_peak(build: Build, config: EngineConfig, cases: int) -> int | None:
    """Return the most bytes that a step holds beside weights and the optimizer's moments; None where it cannot be told.

    That is its batch, its gradients and what its forward passes keep for the backward ones, in the phase that holds
    most.  Fake tensors have shapes and no data: a system that decides by values, as one that fits a start to its
    patches, cannot be run on them.  What a library reserves inside one operation is not seen.

    Args:
        build: builds the recipe with a factory of engines.
        cases: groups of patches that a worker sees in a step.
    """
    most = 0
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _Live() as live:
            recipe = build(plain_engines(config))
            for start in recipe.phase_starts.values():
                kinds = [start]
                if start + 1 < recipe.num_steps and recipe.batch_spec(start + 1) != recipe.batch_spec(start):
                    kinds.append(start + 1)  # pairs and others take turns
                for step in (*kinds, *kinds):  # the first time the moments come, to stay
                    before = live.restart()
                    batch = _blank(recipe.batch_spec(step), cases)
                    recipe.step(batch, step)
                    del batch
                    most = max(most, live.most - before - max(0, live.now - before))
    except (RuntimeError, TypeError):  # an operation that needs values
        return None
    return most


def _blank(need: BatchSpec, cases: int) -> Batch:
    """A batch of the shapes that a step reads."""
    count, (z, y, x) = cases * need.patches_per_case, need.patch
    grown = [edge + 2 * halo for edge, halo in zip(need.patch, need.halo, strict=True)]
    none = (count, 1, 0, 0, 0)
    source = none if need.images == "target" else (count, 1 + len(need.beside), *grown)
    target = none if need.images == "source" else (count, 1, z, y, x)
    edge = need.overview
    return Batch(
        source=torch.ones(source),
        target=torch.ones(target),
        masks=torch.ones(count, len(need.rois) + len(need.marked), z, y, x),
        overview=torch.ones(cases, 1, edge, edge, edge),
        drf=torch.ones(count),
        cases=cases,
        places=("",) * count,
        spacing_mm=torch.ones(count, 3),
        shared=torch.ones(count),
        peak=torch.ones(count),
        units=need.units,
    )


class _Live(TorchDispatchMode):
    """Bytes of all tensors that are alive, and the most there have been."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}  # storage, as long as it lives -> bytes

    def restart(self) -> int:
        """Forget the most there have been; returns what is alive."""
        self.most = self.now
        return self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self._sizes:
            self._sizes[id(storage)] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, id(storage))

    def _drop(self, storage: int) -> None:
        self.now -= self._sizes.pop(storage)
