"""Parts that systems are assembled from: checked settings, phases, states and weights, windows of inference.

What a paper adds stands in its file of ``trainers/systems``; what several systems repeat stands here, as functions and
small classes to be used, not inherited from.  Two are whole recipes: ``Supervised``, one network, one loss, one phase;
and ``Assembled``, several networks that one function updates.
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
from trainers.compiler import postpone_compiler
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, BatchSpec, Doses, Engine, Metrics, State, Synthesizer, Tiling

postpone_compiler()

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


def check_air_beyond(config: Any, feed: FeedConfig, doses: Doses) -> None:
    """``RecipeSpec.check`` of a system whose windows may pass a volume: low and full dose hold the same beyond it.

    Raises:
        InputError: CFG_CHOICE where the low dose would hold its mirror image there and the full dose air.
    """
    if feed.beyond == "mirror":
        raise InputError(
            "CFG_CHOICE",
            where="feed.beyond",
            found="'mirror'; windows of this system may pass a volume, and the full dose is air there",
            remedy="use --set feed.beyond=air or feed.beyond=mirror_any",
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


def second_half_to_zero(step: int, num_steps: int) -> float:
    """Return the factor on a rate that stays for half of a phase and then falls linearly to 0 (pix2pix's code).

    >>> [second_half_to_zero(step, 8) for step in (0, 4, 6, 7)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return min(1.0, 2 * (1 - step / num_steps))


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
        raise another_configuration(where)
    network.load_state_dict(dict(weights), assign=True)
    return network


def another_configuration(where: str) -> InputError:
    """Return the error for weights that are not those of the configuration."""
    return InputError(
        "CKPT_CONFIG",
        where=where,
        found="names or shapes of another configuration",
        remedy="use the configuration saved with the run",
    )


def networks_of(
    weights: Mapping[str, Tensor], builds: Mapping[str, Callable[[], nn.Module]], where: str
) -> dict[str, nn.Module]:
    """Build the networks that ``weights`` hold, as ``with_weights``; names begin with a network's name and a dot.

    Args:
        builds: name -> what makes the network; those without any weight are left out.

    Raises:
        InputError: CKPT_CONFIG where names or shapes are not these networks'.
    """
    own = {
        name: {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")} for name in builds
    }
    if not weights or sum(map(len, own.values())) != len(weights):
        raise another_configuration(where)
    return {name: with_weights(builds[name], held, where) for name, held in own.items() if held}


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


# A whole recipe of several networks


def update_discriminator(
    D: Engine, condition: Tensor, real: Tensor, fake: Tensor, loss: Callable[..., Tensor]
) -> Float[Tensor, ""]:
    """Update a discriminator of pairs (``blocks.OfPairs``) once on a real and a generated image; returns its loss.

    Args:
        fake: the generated image; no gradient reaches it.
        loss: of what D returns, the logits of the real and of the generated image.
    """
    D.module.train()
    value = loss(*D(condition, real, fake.detach()))
    D.backward(value)
    D.step()
    return value


class Assembled:
    """Several networks that one function updates, for a fixed number of steps.

    ``trainers.recipe.Recipe``, and ``trainers.recipe.Followed``: validations end a run in its last phase alone.

    Args:
        engines: by name.
        update: makes the updates of a batch and a step; returns scalars, the same ones in every step of a phase, which
            are detached here.
        spec: which patches every step reads.
        phases: in order.
        begins: name of every engine whose network is used at inference -> phase in which its training begins; until
            then the network is not used, so that a fresh one spoils no image.
        inference: from the networks that are used, by name, to the synthesizer.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        update: Callable[[Batch, int], Metrics],
        spec: BatchSpec,
        phases: Phases,
        begins: Mapping[str, str],
        inference: Callable[[Mapping[str, nn.Module]], Synthesizer],
    ) -> None:
        self.engines, self._update, self._spec = engines, update, spec
        self._begins, self._inference = begins, inference
        self.num_steps, self.phase_starts, self.phase = phases.num_steps, phases.starts, phases.at
        self._step = 0  # of the last update, or the first

    @property
    def followed(self) -> str:
        """Name of the last phase."""
        return list(self.phase_starts)[-1]

    def batch_spec(self, step: int) -> BatchSpec:
        """Return which patches every step reads."""
        return self._spec

    def step(self, batch: Batch, step: int) -> Metrics:
        """Make the updates of one step."""
        self._step = step
        return {name: value.detach() for name, value in self._update(batch, step).items()}

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the networks used at inference, names behind the network's and a dot (collective)."""
        return {f"{n}.{key}": v for n in self._used() for key, v in weights_of(self.engines[n]).items()}

    def synthesizer(self) -> Synthesizer:
        """Return the inference of the networks used, sharing their current weights."""
        return self._inference({name: self.engines[name].module for name in self._used()})

    def state(self) -> State:
        """Return the states of all engines, and the step that tells which networks are used."""
        return states(self.engines) | {"progress": {"step": torch.tensor(self._step)}}

    def load(self, state: State) -> None:
        """Continue from ``state``."""
        load_states(self.engines, state)
        self._step = int(state["progress"]["step"])

    def _used(self) -> list[str]:
        return [name for name, phase in self._begins.items() if self.phase_starts.get(phase, 0) <= self._step]
