"""CycleWGAN: low dose to full dose and back by a Wasserstein distance, with pairs or without.

Zhou, Schaefferkoetter, Tham, Huang, Yan 2020, Supervised learning with CycleGAN for low-dose FDG PET image denoising,
Medical Image Analysis 65, 101770, doi 10.1016/j.media.2020.101770: a method that SGSGAN (arXiv 2205.08887) compares
with.  No code was published and the text is closed: losses are what the abstract names (cycle consistency, Wasserstein
distance, supervision), and everything else is a reading.

Readings: SGSGAN counts 115.62 M parameters, which no layout that was tried gives.  Generators are pix2pix's U-Net in 3D
with five halvings, 32 channels and instance norm, critics its PatchGAN without sigmoid: 55.4 M altogether.  Weights 10
(cycle), 5 (identity) and 10 (supervision).  Weight clipping and RMSprop are SGSGAN's, to which it is compared; a
gradient penalty (Gulrajani et al. 2017, arXiv 1704.00028) is the other choice.  One critic update per step.

Deviations: the input is added to what a generator makes, since instance norm forgets the scale of SUV.  At inference
windows of the training size overlap by half and are blended.  Without pairs the supervised loss falls away.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from storage.ranges import Range
from trainers import assembly, cycle
from trainers.assembly import WindowSynthesizer
from trainers.blocks import PatchGAN, UNet
from trainers.cycle import Cycle, Discriminators, Generators, cycle_losses, sum_of
from trainers.feed_config import FeedConfig
from trainers.losses import between, critic_loss, generator_loss
from trainers.recipe import Batch, BatchSpec, Engine, EngineFactory, Metrics

FEED = FeedConfig()  # as SGSGAN
PRESET = "sgsgan"
ROLES: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Config:
    """The supervised system; ``images`` makes it one that learns without pairs.

    Args:
        images: low and full dose of one place, or of different patients.
        width: channels of a generator's first convolution, doubled up to three times.
        downs: halvings of a generator.
        critic_width: channels of a critic's first convolution.
        lipschitz: how a critic is kept from growing: clipped weights, or a penalty on its gradient.
        clip: bound of a critic's weights (``clip``).
        lambda_penalty: weight of the gradient penalty (``penalty``; arXiv 1704.00028).
        lambda_cycle: weight of the cycle-consistency loss.
        lambda_identity: weight of the identity loss; 0 for none.
        lambda_supervised: weight of the L1 of generated images and their partners (``paired``).
        lr: RMSprop's learning rate.
        samples: patches of each dose seen; as many as SGSGAN's first phase.
        patch: edge lengths (z, y, x) in voxels, multiples of 2^downs.
        patches_per_case: patches of one case in a step.
    """

    images: Literal["paired", "unpaired"] = "paired"
    width: Annotated[int, Range(1)] = 32
    downs: Annotated[int, Range(2, 8)] = 5
    critic_width: Annotated[int, Range(1)] = 64
    lipschitz: Literal["clip", "penalty"] = "clip"
    clip: Annotated[float, Range(above=0)] = 0.01
    lambda_penalty: Annotated[float, Range(0)] = 10.0
    lambda_cycle: Annotated[float, Range(0)] = 10.0
    lambda_identity: Annotated[float, Range(0)] = 5.0
    lambda_supervised: Annotated[float, Range(0)] = 10.0
    lr: Annotated[float, Range(above=0)] = 1e-4
    samples: Annotated[int, Range(1)] = 240_000
    patch: tuple[int, int, int] = (64, 64, 64)
    patches_per_case: Annotated[int, Range(1)] = 1

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "cycle_wgan")
        edge = 2**self.downs
        fits = all(n % edge == 0 and n >= 24 for n in self.patch)
        require(fits, "CFG_PATCH_SIZE", "patch", f"use multiples of {edge} of at least 24 voxels")


class Generator(nn.Module):
    """One direction: the input, and what a U-Net adds; 16,653,505 parameters at 32 channels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.net = UNet(1, 1, width=config.width, downs=config.downs, dims=3, norm="instance")

    def forward(self, image: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1 z y x"]:
        made: Tensor = image + self.net(image)
        return made


def critic(config: Config) -> PatchGAN:
    """Build one critic of regions of 70^3 voxels; 11,047,873 parameters at 64 channels."""
    return PatchGAN(1, width=config.critic_width, dims=3, norm="instance")


@dataclass(frozen=True)
class Wasserstein:
    """One step: both critics on what the generators make, then both generators against the updated critics."""

    config: Config
    G: Engine
    D: Engine

    def __call__(self, batch: Batch, step: int) -> Metrics:
        c, low, full = self.config, batch.source, batch.target
        self.G.module.train()
        images = self.G(low, full)
        made_full, made_low = images[:2]
        metrics = self._critics(low, made_low.detach(), full, made_full.detach())

        terms = cycle_losses(images, low, full)
        if c.images == "paired":
            terms["supervised"] = F.l1_loss(made_full, full) + F.l1_loss(made_low, low)
        with self.D.frozen() as D:
            terms["adversarial"] = sum_of(generator_loss(scores) for scores in D(made_low, made_full))
            weights = {"cycle": c.lambda_cycle, "identity": c.lambda_identity, "supervised": c.lambda_supervised}
            loss = sum_of(weights.get(name, 1.0) * term for name, term in terms.items())
            self.G.backward(loss)
        self.G.step()
        metrics |= {"generators": loss, **terms}
        return {name: value.detach() for name, value in metrics.items()}

    def _critics(self, low: Tensor, made_low: Tensor, full: Tensor, made_full: Tensor) -> Metrics:
        c = self.config
        both = torch.cat([low, made_low]), torch.cat([full, made_full])
        lines = (between(low, made_low), between(full, made_full)) if c.lipschitz == "penalty" else ()
        of_low, of_full, *penalty = self.D(*both, *lines)
        wrong = sum_of(critic_loss(*scores.chunk(2)) for scores in (of_low, of_full))
        self.D.backward(sum_of([wrong, *(c.lambda_penalty * term for term in penalty)]))
        self.D.step()
        if c.lipschitz == "clip":
            self.D.clip_weights(c.clip)
        return {"critics": wrong} | ({"penalty": penalty[0]} if penalty else {})


check, files = assembly.accept_any_feed, assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what this implementation rests on, and what its norm does to intensities."""
    places = "pairs" if config.images == "paired" else "patches of different patients, without the supervised loss"
    return (
        "CycleWGAN: a re-implementation; layers and weights are not the paper's, whose text and code are closed, and "
        f"the 115.62 M parameters that SGSGAN counts are not reproduced. Trained on {places}; critics by "
        f"{'clipped weights' if config.lipschitz == 'clip' else 'a gradient penalty'}.",
        cycle.INSTANCE_NORM,
    )


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> Cycle:
    """Build networks and engines; ``patches_per_step`` counts the patches of all ranks."""
    c, optimizer = config, partial(torch.optim.RMSprop, lr=config.lr)
    G = make_engine(Generators(Generator(c), Generator(c), identity=c.lambda_identity > 0), optimizer)
    D = make_engine(Discriminators(critic(c), critic(c)), optimizer)
    spec = BatchSpec(c.patch, (0, 0, 0), c.patches_per_case, cycle.SAMPLER, images=c.images)
    phases = assembly.Phases({"train": assembly.steps_of(c.samples, patches_per_step)})
    tiling = assembly.half_overlapping(c.patch)
    return Cycle(G, D, Wasserstein(c, G, D), (spec,), tiling, phases, assembly.windows, {})


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    network = assembly.with_weights(partial(Generator, config), weights, "weights of CycleWGAN")
    return assembly.windows(network, assembly.half_overlapping(config.patch))
