"""Cycle-GAN: low dose to full dose from images of different patients, slice by slice.

Zhu, Park, Isola, Efros 2017, Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, ICCV,
arXiv 1703.10593, with the layers of the authors' code; written for photographs, trained here on PET as a method to
compare with (S3PET's Table I).  Losses, pools and the order of updates are in ``trainers.cycle``.

Readings: full doses are those of every training patient and of the patients who give a full dose alone, as far as they
are not the one whose low dose is seen beside them; S3PET's text says only that Cycle-GAN is trained without pairs.
The identity loss, which Sec. 5.2 adds where colours must stay, has its weight of there: intensities must stay.

Deviations: no tanh at the end, since SUV have no largest value.  Instance norm makes what is made in a window depend on
the window's own mean, so that a network alone forgets the scale of SUV; ``output`` adds the input back, and ``image``
is the published network.  Windows of 128 x 128 voxels, of which 5 % lie anywhere, two in a step instead of one; counted
in windows, not in epochs.  At inference windows of that size overlap by half and are blended.
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
from trainers.recipe import BatchSpec, EngineFactory, Tiling

FEED = FeedConfig(source=("low_drf10",), suv_scale=5.0, cases_per_step=2)
PRESET = "s3pet"
ROLES = frozenset({"unpaired"})  # as S3PET, with which it is compared: some patients give their full dose alone
TILE_SLICES = 16


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published networks and weights.

    Args:
        width: channels of a generator's first convolution (Sec. 7.2).
        blocks: residual blocks of a generator; 6 for windows of 128 pixels, 9 from 256 on (Sec. 7.2).
        output: a generator makes what is added to its input, or the image itself, as published.
        critic_width: channels of a discriminator's first convolution (Sec. 7.2).
        lambda_cycle: weight of the cycle-consistency loss (Sec. 4).
        lambda_identity: weight of the identity loss, in parts of ``lambda_cycle`` (Sec. 5.2); 0 for none.
        pool: generated images of each dose that are kept for the discriminators (Sec. 4); 0 for none.
        lr: Adam's learning rate (Sec. 4).
        betas: Adam's (the authors' code).
        samples: windows of each dose seen at the constant learning rate; half of S3PET's 384,000.
        decay_samples: windows of each dose seen after that, while the rate falls linearly to 0 (Sec. 4).
        patch: edge lengths (slices, y, x) in voxels; slices enter a batch one by one.
        patches_per_case: patches of one case in a step.
    """

    width: Annotated[int, Range(1)] = 64
    blocks: Annotated[int, Range(1)] = 6
    output: Literal["residual", "image"] = "residual"
    critic_width: Annotated[int, Range(1)] = 64
    lambda_cycle: Annotated[float, Range(0)] = 10.0
    lambda_identity: Annotated[float, Range(0)] = 0.5
    pool: Annotated[int, Range(0)] = 50
    lr: Annotated[float, Range(above=0)] = 2e-4
    betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.5, 0.999)
    samples: Annotated[int, Range(1)] = 192_000
    decay_samples: Annotated[int, Range(0)] = 192_000
    patch: Annotated[tuple[int, int, int], Range(1)] = (1, 128, 128)
    patches_per_case: Annotated[int, Range(1)] = 1

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "cycle_gan")
        fits = all(edge % 4 == 0 and edge >= 24 for edge in self.patch[1:])
        require(fits, "CFG_PATCH_SIZE", "patch", "use (slices, y, x) with y and x multiples of 4 of at least 24 voxels")


check, files = assembly.accept_any_feed, assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what this implementation rests on, and what its norm does to intensities."""
    made = "added to the low dose" if config.output == "residual" else "the image itself, as published"
    return (
        "Cycle-GAN: a re-implementation from the paper's text and its authors' code, trained on PET slices of "
        f"different patients; what the network makes is {made}.",
        cycle.INSTANCE_NORM,
    )


def generator(config: Config) -> ResNetGenerator:
    """Build one generator; 7,825,153 parameters as published."""
    return ResNetGenerator(width=config.width, blocks=config.blocks, output=config.output)


def discriminator(config: Config) -> PatchGAN:
    """Build one discriminator of windows of 70 x 70 voxels; 2,762,689 parameters as published."""
    return PatchGAN(1, width=config.critic_width, norm="instance")


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> Cycle:
    """Build networks and engines; ``patches_per_step`` counts the patches of all ranks."""
    return cycle.trained_by_least_squares(
        config,
        partial(generator, config),
        partial(discriminator, config),
        make_engine=make_engine,
        samples_per_step=patches_per_step * config.patch[0],
        spec=BatchSpec(config.patch, (0, 0, 0), config.patches_per_case, cycle.SAMPLER, images="unpaired"),
        tiling=tiling_of(config),
        seen=assembly.as_slices,
        restored=assembly.slicewise,
    )


def tiling_of(config: Config) -> Tiling:
    """Return windows of the training size that overlap by half; z may be anything."""
    _, y, x = config.patch
    return Tiling(tile=(TILE_SLICES, y, x), halo=(0, 0, 0), overlap=(0, y // 2, x // 2))


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    network = assembly.with_weights(partial(generator, config), weights, "weights of Cycle-GAN")
    return assembly.slicewise(network, tiling_of(config))
