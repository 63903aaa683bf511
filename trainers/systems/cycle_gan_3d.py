"""3D-CycleGAN: Cycle-GAN with three-dimensional networks, from several low doses to full dose.

Zhu, Park, Isola, Efros 2017, arXiv 1703.10593, made three-dimensional: a method that CG-3DSRGAN (Xue et al. 2023, arXiv
2304.00725) compares with, and of which it tells nothing but the name.  Losses, pools and the order of updates are in
``trainers.cycle``, as of ``cycle_gan``.

Readings: unpaired, since that is what the cited work is for; every training patient gives low doses and, beside those
of others, the full dose.  Nine residual blocks and instance norm, as in a public three-dimensional port.  Half of its
64 channels, by which a step of 64^3 voxels fits into a card's memory: 8,540,161 parameters of a generator instead of
34,111,489 (``width`` 64).

Deviations: as of ``cycle_gan``: a linear end, to which the input is added; patches counted instead of epochs; windows
of the training size that overlap by half at inference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from torch import Tensor

from storage.ranges import Range
from trainers import assembly, cycle
from trainers.assembly import WindowSynthesizer
from trainers.blocks import PatchGAN, ResNetGenerator
from trainers.cycle import Cycle
from trainers.feed_config import FeedConfig
from trainers.recipe import BatchSpec, EngineFactory

FEED = FeedConfig(
    source=("low_drf4", "low_drf10", "low_drf20", "low_drf50", "low_drf100"), suv_scale=10.0, cases_per_step=2
)  # as CG-3DSRGAN
PRESET = "udpet2022"
ROLES: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Config:
    """Cycle-GAN's weights, and networks of the size that fits.

    Args:
        width: channels of a generator's first convolution.
        blocks: residual blocks of a generator.
        output: a generator makes what is added to its input, or the image itself.
        critic_width: channels of a discriminator's first convolution.
        lambda_cycle: weight of the cycle-consistency loss (Sec. 4).
        lambda_identity: weight of the identity loss, in parts of ``lambda_cycle`` (Sec. 5.2); 0 for none.
        pool: generated patches of each dose that are kept for the discriminators (Sec. 4); 0 for none.
        lr: Adam's learning rate (Sec. 4).
        betas: Adam's (the authors' code).
        samples: patches of each dose seen at the constant learning rate.
        decay_samples: patches of each dose seen after that, while the rate falls linearly to 0 (Sec. 4).
        patch: edge lengths (z, y, x) in voxels, multiples of 4.
        patches_per_case: patches of one case in a step.
    """

    width: Annotated[int, Range(1)] = 32
    blocks: Annotated[int, Range(1)] = 9
    output: Literal["residual", "image"] = "residual"
    critic_width: Annotated[int, Range(1)] = 64
    lambda_cycle: Annotated[float, Range(0)] = 10.0
    lambda_identity: Annotated[float, Range(0)] = 0.5
    pool: Annotated[int, Range(0)] = 50
    lr: Annotated[float, Range(above=0)] = 2e-4
    betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.5, 0.999)
    samples: Annotated[int, Range(1)] = 40_000
    decay_samples: Annotated[int, Range(0)] = 40_000
    patch: tuple[int, int, int] = (64, 64, 64)
    patches_per_case: Annotated[int, Range(1)] = 1

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "cycle_gan_3d")
        fits = all(edge % 4 == 0 and edge >= 24 for edge in self.patch)
        require(fits, "CFG_PATCH_SIZE", "patch", "use multiples of 4 of at least 24 voxels")


check, files = assembly.accept_any_feed, assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what this implementation rests on, and what its norm does to intensities."""
    return (
        "3D-CycleGAN: a re-implementation; CG-3DSRGAN's paper, which compares with it, tells nothing but its name. "
        f"Trained on patches of different patients, {config.blocks} residual blocks, {config.width} channels.",
        cycle.INSTANCE_NORM,
    )


def generator(config: Config) -> ResNetGenerator:
    """Build one generator; 34,111,489 parameters at 64 channels."""
    return ResNetGenerator(width=config.width, blocks=config.blocks, dims=3, output=config.output)


def discriminator(config: Config) -> PatchGAN:
    """Build one discriminator of regions of 70^3 voxels; 11,047,873 parameters at 64 channels."""
    return PatchGAN(1, width=config.critic_width, dims=3, norm="instance")


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> Cycle:
    """Build networks and engines; ``patches_per_step`` counts the patches of all ranks."""
    return cycle.trained_by_least_squares(
        config,
        partial(generator, config),
        partial(discriminator, config),
        make_engine=make_engine,
        samples_per_step=patches_per_step,
        spec=BatchSpec(config.patch, (0, 0, 0), config.patches_per_case, cycle.SAMPLER, images="unpaired"),
        tiling=assembly.half_overlapping(config.patch),
        seen=cycle.as_they_are,
        restored=assembly.windows,
    )


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    network = assembly.with_weights(partial(generator, config), weights, "weights of 3D-CycleGAN")
    return assembly.windows(network, assembly.half_overlapping(config.patch))
