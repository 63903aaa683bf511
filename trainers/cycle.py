"""Cycle-consistent GANs (Zhu et al. 2017, arXiv 1703.10593): what the systems that learn both directions share.

Low dose to full dose and back: two generators, a discriminator for the images of each dose.  Both generators are one
network of one engine, as they have one optimizer in the authors' code, and so are both discriminators: in a step every
network then runs forward once for its own update.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trainers import assembly
from trainers.assembly import Phases, WindowSynthesizer
from trainers.losses import gradient_penalty, least_squares_discriminator_loss, least_squares_generator_loss
from trainers.recipe import Batch, BatchSpec, Engine, EngineFactory, Metrics, State, Tiling

TO_FULL = "to_full."  # what the names of the weights begin with that inference needs
SAMPLER = {"body": 0.95, "uniform": 0.05}  # air must be learnt, and is the same everywhere

INSTANCE_NORM = (
    "Instance norm: what is made in a window depends on the window's own mean, so that uptake may be biased; look at "
    "the bias in organs and lesions."
)  # what a report on such a generator must say


class Generators(nn.Module):
    """G of low dose to full dose, F of full dose to low dose.

    Args:
        to_full: G, an image to an image of the same size.
        to_low: F.
        identity: whether G is shown full doses too, and F low doses, for the identity loss.
    """

    def __init__(self, to_full: nn.Module, to_low: nn.Module, *, identity: bool) -> None:
        super().__init__()
        self.to_full, self.to_low, self.identity = to_full, to_low, identity

    def forward(
        self, low: Float[Tensor, "b 1 *space"], full: Float[Tensor, "b 1 *space"], *, again: bool = True
    ) -> tuple[Tensor, ...]:
        """Return G(low), F(full), F(G(low)), G(F(full)) and, for the identity loss, G(full) and F(low).

        Args:
            again: False for the first two alone.
        """
        made_full, made_low = self.to_full(low), self.to_low(full)
        if not again:
            return made_full, made_low
        images = made_full, made_low, self.to_low(made_full), self.to_full(made_low)
        return (*images, self.to_full(full), self.to_low(low)) if self.identity else images


class Discriminators(nn.Module):
    """D of low doses and D of full doses; no image of a batch may change the scores of another.

    Args:
        of_low: an image to scores.
        of_full: the same for full doses.
    """

    def __init__(self, of_low: nn.Module, of_full: nn.Module) -> None:
        super().__init__()
        self.of_low, self.of_full = of_low, of_full

    def forward(
        self, low: Float[Tensor, "b 1 *space"], full: Float[Tensor, "b 1 *space"], *between: Float[Tensor, "n 1 *space"]
    ) -> tuple[Tensor, ...]:
        """Return the scores of both doses and, where images of both doses ``between`` are given, a gradient penalty."""
        scores = self.of_low(low), self.of_full(full)
        if not between:
            return scores
        penalties = [gradient_penalty(D(at), at) for D, at in zip((self.of_low, self.of_full), between, strict=True)]
        return (*scores, sum_of(penalties))


def cycle_losses(images: tuple[Tensor, ...], low: Tensor, full: Tensor) -> dict[str, Tensor]:
    """Return the terms of what ``Generators`` made: ``cycle`` (Eq. 2) and, where it was shown them, ``identity``.

    Each is the sum of both doses' mean absolute differences (identity: Sec. 5.2).
    """
    _, _, low_again, full_again, *same = images
    terms = {"cycle": F.l1_loss(low_again, low) + F.l1_loss(full_again, full)}
    if same:
        terms["identity"] = F.l1_loss(same[0], full) + F.l1_loss(same[1], low)
    return terms


class ImagePool:
    """Generated images of earlier steps, which a discriminator sees in place of half of the new ones (Sec. 4).

    Shrivastava et al. 2017, arXiv 1612.07828, Sec. 2.3, as in CycleGAN's code: while there is room a new image is kept
    and given; then it is given itself, or takes the place of a kept one that is given, with equal chances from torch's
    generator.  Its images belong to a run's state.

    Args:
        size: images that all ranks keep together, each its share; 0 for none.
    """

    def __init__(self, size: int) -> None:
        self.room = size // (dist.get_world_size() if dist.is_initialized() else 1)
        self.images = torch.zeros(0)

    def exchange(self, new: Float[Tensor, "b 1 *space"]) -> Float[Tensor, "b 1 *space"]:
        """Return as many images as are given; none takes a gradient."""
        given = []
        kept = list(self.images.to(new.device))
        for image in new.detach():
            if len(kept) < self.room:
                kept.append(image)
                given.append(image)
            elif kept and torch.rand(()) < 0.5:
                place = int(torch.randint(len(kept), ()))
                given.append(kept[place])
                kept[place] = image
            else:
                given.append(image)
        self.images = torch.stack(kept) if kept else self.images
        return torch.stack(given)

    def state(self) -> dict[str, Tensor]:
        """Return the images of all ranks in their order (collective)."""
        return {"images": torch.cat(assembly.of_all_ranks(self.images.cpu()))}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take this rank's share of what ``state`` returned, at any number of ranks."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.images = state["images"].tensor_split(world)[rank][: self.room].clone()


@dataclass(frozen=True)
class LeastSquares:
    """One step of CycleGAN's training (Sec. 4): both generators, then both discriminators on images of the pools.

    Args:
        G: of ``Generators``.
        D: of ``Discriminators``.
        pools: of generated low doses and of generated full doses.
        lambda_cycle: lambda of Eq. 3.
        lambda_identity: weight of the identity loss, 0 where ``Generators`` makes no images for it.
        rate: learning rate of every step.
        seen: from a batch's images (b, 1, z, y, x) to what the networks take.
        kept: name -> further loss of a low dose and the full dose made from it, weighed already.
    """

    G: Engine
    D: Engine
    pools: tuple[ImagePool, ImagePool]
    lambda_cycle: float
    lambda_identity: float
    rate: Callable[[int], float]
    seen: Callable[[Tensor], Tensor]
    kept: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)

    def __call__(self, batch: Batch, step: int) -> Metrics:
        low, full = self.seen(batch.source), self.seen(batch.target)
        for engine in (self.G, self.D):
            engine.set_lr(self.rate(step))
            engine.module.train()
        images = self.G(low, full)
        made_full, made_low = images[:2]
        terms = cycle_losses(images, low, full)
        with self.D.frozen() as D:
            terms["adversarial"] = sum_of(least_squares_generator_loss(scores) for scores in D(made_low, made_full))
            loss = terms["adversarial"] + self.lambda_cycle * terms["cycle"]  # Eq. 3, with Sec. 4's least squares
            if self.lambda_identity:
                loss = loss + self.lambda_identity * terms["identity"]
            further = {name: of(low, made_full) for name, of in self.kept.items()}
            loss = sum_of([loss, *further.values()])
            self.G.backward(loss)
        self.G.step()

        earlier_low, earlier_full = (
            pool.exchange(made) for pool, made in zip(self.pools, (made_low, made_full), strict=True)
        )
        scores = self.D(torch.cat([low, earlier_low]), torch.cat([full, earlier_full]))
        wrong = sum_of(least_squares_discriminator_loss(*of_dose.chunk(2)) for of_dose in scores)
        self.D.backward(wrong)
        self.D.step()
        metrics = {"generators": loss, "discriminators": wrong, **terms, **further}
        return {name: value.detach() for name, value in metrics.items()}


@dataclass(frozen=True)
class Cycle:
    """A system of two generators and two discriminators in training: ``trainers.recipe.Recipe``.

    Args:
        G: of ``Generators``.
        D: of ``Discriminators``.
        update: makes the updates of one step.
        specs: which patches steps read, by turns.
        tiling: of inference.
        phases: in which ``update`` is made.
        restored: from a network of one direction and a tiling to the inference side.
        pools: name -> pool, where ``update`` uses any.
    """

    G: Engine
    D: Engine
    update: Callable[[Batch, int], Metrics]
    specs: Sequence[BatchSpec]
    tiling: Tiling
    phases: Phases
    restored: Callable[[nn.Module, Tiling], WindowSynthesizer]
    pools: Mapping[str, ImagePool]

    @property
    def num_steps(self) -> int:
        return self.phases.num_steps

    @property
    def phase_starts(self) -> dict[str, int]:
        return self.phases.starts

    def phase(self, step: int) -> str:
        return self.phases.at(step)

    def batch_spec(self, step: int) -> BatchSpec:
        return self.specs[step % len(self.specs)]

    def step(self, batch: Batch, step: int) -> Metrics:
        return self.update(batch, step)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of low dose to full dose."""
        return assembly.weights_of(self.G, under=TO_FULL)

    def synthesizer(self) -> WindowSynthesizer:
        network = self.G.module.to_full
        assert isinstance(network, nn.Module)
        return self.restored(network, self.tiling)

    def state(self) -> State:
        """Return the states of both engines, and the images of the pools."""
        pools = {name: pool.state() for name, pool in self.pools.items()}
        return assembly.states({"generators": self.G, "discriminators": self.D}) | pools

    def load(self, state: State) -> None:
        assembly.load_states({"generators": self.G, "discriminators": self.D}, state)
        for name, pool in self.pools.items():
            pool.load(state[name])


class Settings(Protocol):
    """What ``trained_by_least_squares`` reads of a system's Config."""

    @property
    def lambda_cycle(self) -> float: ...
    @property
    def lambda_identity(self) -> float: ...
    @property
    def pool(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def samples(self) -> int: ...
    @property
    def decay_samples(self) -> int: ...


def trained_by_least_squares(
    config: Settings,
    generator: Callable[[], nn.Module],
    discriminator: Callable[[], nn.Module],
    *,
    make_engine: EngineFactory,
    samples_per_step: int,
    spec: BatchSpec,
    tiling: Tiling,
    seen: Callable[[Tensor], Tensor],
    restored: Callable[[nn.Module, Tiling], WindowSynthesizer],
) -> Cycle:
    """Build the engines and the whole recipe of CycleGAN, one Adam for both directions (Sec. 4).

    Args:
        config: ``lambda_identity`` counts in parts of ``lambda_cycle`` (Sec. 5.2).
        generator: makes a network of one direction.
        discriminator: makes a network of one dose.
        samples_per_step: of one dose, by all ranks.
        spec: which patches every step reads.
        tiling: as of ``Cycle``.
        seen: as of ``LeastSquares``.
        restored: as of ``Cycle``.
    """
    c = config
    optimizer = partial(torch.optim.Adam, lr=c.lr, betas=c.betas)
    G = make_engine(Generators(generator(), generator(), identity=c.lambda_identity > 0), optimizer)
    D = make_engine(Discriminators(discriminator(), discriminator()), optimizer)
    constant, decay = (assembly.steps_of(samples, samples_per_step) for samples in (c.samples, c.decay_samples))
    pools = ImagePool(c.pool), ImagePool(c.pool)
    update = LeastSquares(
        G,
        D,
        pools,
        lambda_cycle=c.lambda_cycle,
        lambda_identity=c.lambda_cycle * c.lambda_identity,
        rate=partial(constant_then_linear, constant=constant, decay=decay, lr=c.lr),
        seen=seen,
    )
    phases = Phases({"train": constant + decay})
    named = dict(zip(("generated low", "generated full"), pools, strict=True))
    return Cycle(G, D, update, (spec,), tiling, phases, restored, named)


def sum_of(terms: Iterable[Tensor]) -> Float[Tensor, ""]:
    """Return the sum of scalars."""
    return torch.stack(list(terms)).sum()


def as_they_are(images: Tensor) -> Tensor:
    """Return the images, for networks that take them as a batch holds them."""
    return images


def constant_then_linear(step: int, *, constant: int, decay: int, lr: float) -> float:
    """Return ``lr`` for ``constant`` steps, which then falls linearly to 0 over ``decay`` steps (Sec. 4).

    >>> [constant_then_linear(step, constant=2, decay=4, lr=1.0) for step in range(6)]
    [1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    return lr * min(1.0, (constant + decay - step) / max(decay, 1))
