"""Parts that systems are assembled from: checked settings, phases, states and weights, windows of inference.

What a paper adds stands in its file of ``trainers/systems``; what several systems repeat stands here, as functions and
small classes to be used, not inherited from.  ``Supervised`` is a whole recipe: one network, one loss, one phase.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from storage.errors import InputError
from storage.ranges import check_ranges
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, BatchSpec, Doses, Engine, Metrics, State, Tiling

Network = TypeVar("Network", bound=nn.Module)
Whatever = TypeVar("Whatever")
WEIGHT = "weight/"  # what the names of a network's weights and buffers begin with in an engine's state
AVERAGE = "average/"  # and those of its averaged weights, where the engine keeps an average


# Settings


def check_fields(config: Any, where: str) -> Callable[[bool, str, str, str], None]:
    """Refuse a configuration with a value that its field's type does not allow: ``Literal`` choices and ``Range``.

    Args:
        config: a dataclass instance.
        where: the system's name, before the field's name in errors.

    Returns:
        ``require(valid, code, field, remedy)`` for checks across fields, which raises InputError of ``code``.

    Raises:
        InputError: CFG_CHOICE, CFG_RANGE.
    """

    def require(valid: bool, code: str, field: str, remedy: str) -> None:
        if not valid:
            raise InputError(code, where=f"{where}.{field}", found=repr(getattr(config, field)), remedy=remedy)

    for field, allowed in _choices(config.__class__).items():
        require(getattr(config, field) in allowed, "CFG_CHOICE", field, f"use one of {', '.join(map(str, allowed))}")
    check_ranges(config, where)
    return require


@cache
def _choices(config: type[Any]) -> dict[str, tuple[Any, ...]]:
    hints = typing.get_type_hints(config)
    names = [field.name for field in dataclasses.fields(config)]
    return {name: typing.get_args(hints[name]) for name in names if typing.get_origin(hints[name]) is Literal}


def accept_any_feed(config: Any, feed: FeedConfig, doses: Doses) -> None:
    """``RecipeSpec.check`` of a system that takes any images, on any scale and of any dose."""


def check_ct_to_suv(feed: FeedConfig) -> None:
    """Refuse what a system that makes PET in SUV from one CT in HU, and scales both itself, cannot be fed.

    Raises:
        InputError: CFG_SCALE, CFG_INPUTS.
    """
    if feed.suv_scale != 1:
        raise InputError(
            "CFG_SCALE",
            where="feed.suv_scale",
            found=f"{feed.suv_scale:g}; this system scales HU and SUV itself",
            remedy="use --set feed.suv_scale=1",
        )
    if len(feed.source) != 1:
        raise InputError(
            "CFG_INPUTS",
            where="feed.source",
            found=f"{len(feed.source)} images; this system starts from one, the CT",
            remedy="use --set feed.source=ct",
        )


def no_files(config: Any) -> Mapping[str, Path]:
    """``RecipeSpec.files`` of a system that learns everything from the cohort."""
    return {}


# Schedule


def steps_of(samples: int, samples_per_step: int) -> int:
    """Return the steps in which at least ``samples`` samples are seen."""
    return math.ceil(samples / samples_per_step)


@dataclass(frozen=True)
class Phases:
    """The phases of a training in order; a phase of 0 steps is left out.

    Args:
        steps: name -> number of steps.

    >>> phases = Phases({"first": 2, "unused": 0, "last": 3})
    >>> phases.num_steps, phases.starts, phases.at(1), phases.at(2), phases.end("first")
    (5, {'first': 0, 'last': 2}, 'first', 'last', 2)
    """

    steps: Mapping[str, int]

    @property
    def num_steps(self) -> int:
        """Steps of all phases together."""
        return sum(self.steps.values())

    @property
    def starts(self) -> dict[str, int]:
        """First step of every phase that has steps, in order."""
        return {name: self.end(name) - steps for name, steps in self.steps.items() if steps}

    def end(self, name: str) -> int:
        """Return the step after the last one of phase ``name``."""
        return dict(zip(self.steps, accumulate(self.steps.values()), strict=True))[name]

    def at(self, step: int) -> str:
        """Return the name of the phase of ``step``.

        Raises:
            ValueError: there is no such step.
        """
        if not 0 <= step < self.num_steps:
            raise ValueError(f"step {step} is not one of {self.num_steps}")
        return next(name for name in self.steps if step < self.end(name))


# States and weights


def present(engines: Mapping[str, Engine | None]) -> dict[str, Engine]:
    """Return the engines that a configuration has, by name; the others are None."""
    return {name: engine for name, engine in engines.items() if engine is not None}


def states(engines: Mapping[str, Engine]) -> State:
    """Return the states of all engines by name (collective)."""
    return {name: engine.state() for name, engine in engines.items()}


def load_states(engines: Mapping[str, Engine], state: State) -> None:
    """Continue from what ``states`` returned (collective); other entries of ``state`` are left to the caller."""
    for name, engine in engines.items():
        engine.load(state[name])


def weights_of(engine: Engine, under: str = "") -> dict[str, Tensor]:
    """Return an engine's weights and buffers, whole on every rank (collective).

    Weights are the averaged ones where the engine keeps an average; buffers, batch norm's running statistics among
    them, are the current network's.

    Args:
        under: only those whose name begins with it, named without it.
    """
    state = engine.state()
    start = WEIGHT + under
    named = ((key.removeprefix(start), key.removeprefix(WEIGHT)) for key in state if key.startswith(start))
    return {short: state.get(AVERAGE + whole, state[WEIGHT + whole]) for short, whole in named}


def set_weights(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Replace some weights of an engine by name (collective); an average starts anew at what results.

    Through the state, since ZeRO steps on copies of weights.
    """
    state = {key: value for key, value in engine.state().items() if not key.startswith(AVERAGE)}
    engine.load(state | {WEIGHT + name: value for name, value in weights.items()})


def with_weights(build: Callable[[], Network], weights: Mapping[str, Tensor], where: str) -> Network:
    """Build a network that holds ``weights``, without memory or random numbers for weights of its own.

    Args:
        build: makes the network; called on the meta device.
        weights: every weight and buffer by name.
        where: what the weights are called in the error.

    Raises:
        InputError: CKPT_CONFIG where names or shapes are not the network's.
    """
    with torch.device("meta"):
        network = build()
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    if wanted != {name: value.shape for name, value in weights.items()}:
        raise InputError(
            "CKPT_CONFIG",
            where=where,
            found="names or shapes of another configuration",
            remedy="use the configuration saved with the run",
        )
    network.load_state_dict(dict(weights), assign=True)
    return network


# Ranks


def of_all_ranks(own: Whatever) -> list[Whatever]:
    """Return what every rank gave, in the order of ranks, so that sums round alike every time (collective).

    Args:
        own: this rank's, anything that pickles.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def first_rank() -> bool:
    """Whether this is the rank that takes over what all ranks have summed up before."""
    return not dist.is_initialized() or dist.get_rank() == 0


# Inference


def cropped(image: Float[Tensor, "b c z y x"], margin: Sequence[int]) -> Float[Tensor, "b c z-2m y-2m x-2m"]:
    """Return ``image`` without ``margin`` (z, y, x) voxels on either side."""
    z, y, x = (slice(m, edge - m) for m, edge in zip(margin, image.shape[2:], strict=True))
    return image[:, :, z, y, x]


@dataclass(frozen=True)
class WindowSynthesizer:
    """A network at inference in windows that share nothing: ``trainers.recipe.Synthesizer``.

    Args:
        network: what is set to inference mode before every window.
        tiling: how a volume is cut.
        run: from a window (b, 1, z + 2 halo_z, ...) to its tile (b, 1, z, y, x); uses ``network``.
    """

    network: nn.Module
    tiling: Tiling
    run: Callable[[Tensor], Tensor]
    context_batch: None = None

    def context(self, overview: Tensor, source: Tensor) -> dict[str, Tensor]:
        """Return nothing: a window depends on no other."""
        return {}

    @torch.no_grad()
    def __call__(
        self, source: Float[Tensor, "b 1 zh yh xh"], context: Mapping[str, Tensor]
    ) -> Float[Tensor, "b 1 z y x"]:
        """Synthesize tiles; negatives are left in, to be clipped on export."""
        self.network.eval()
        return self.run(source)


def as_slices(slabs: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "bz 1 y x"]:
    """Return every axial slice as an image of its own."""
    return slabs.flatten(0, 2).unsqueeze(1)


def slicewise(network: nn.Module, tiling: Tiling) -> WindowSynthesizer:
    """Return the inference of a network of slices, whose output is as large as its input and does not depend on its
    neighbours in the batch.
    """
    return WindowSynthesizer(network, tiling, run=lambda source: network(as_slices(source)).reshape(source.shape))


def windows(network: nn.Module, tiling: Tiling) -> WindowSynthesizer:
    """Return the inference of a network whose output is as large as its input; the halo is cropped."""
    return WindowSynthesizer(network, tiling, run=lambda source: cropped(network(source), tiling.halo))


def half_overlapping(patch: tuple[int, int, int]) -> Tiling:
    """Return windows of the training size that overlap by half along every axis and are blended."""
    z, y, x = patch
    return Tiling(tile=patch, halo=(0, 0, 0), overlap=(z // 2, y // 2, x // 2))


# A whole recipe


@dataclass(frozen=True)
class Supervised:
    """One network trained on pairs by one loss, for a fixed number of steps: ``trainers.recipe.Recipe``.

    Args:
        engine: of a network from (b, 1, z, y, x) to an image of the same size.
        loss: of (image, target), both (b, 1, z, y, x); a scalar.
        spec: which patches every step reads; what the network makes of their halo is cropped before the loss.
        tiling: of inference.
        phases: one phase.
    """

    engine: Engine
    loss: Callable[[Tensor, Tensor], Tensor]
    spec: BatchSpec
    tiling: Tiling
    phases: Phases

    @property
    def num_steps(self) -> int:
        return self.phases.num_steps

    @property
    def phase_starts(self) -> dict[str, int]:
        return self.phases.starts

    def phase(self, step: int) -> str:
        return self.phases.at(step)

    def batch_spec(self, step: int) -> BatchSpec:
        return self.spec

    def step(self, batch: Batch, step: int) -> Metrics:
        """Update the network once."""
        self.engine.module.train()
        loss = self.loss(cropped(self.engine(batch.source), self.spec.halo), batch.target)
        self.engine.backward(loss)
        self.engine.step()
        return {"loss": loss.detach()}

    def weights(self) -> dict[str, Tensor]:
        return weights_of(self.engine)

    def synthesizer(self) -> WindowSynthesizer:
        return windows(self.engine.module, self.tiling)

    def state(self) -> State:
        return states({"network": self.engine})

    def load(self, state: State) -> None:
        load_states({"network": self.engine}, state)
