"""3D-UNet: the plain rows of SGSGAN's Tables I to III, a 3D U-Net trained as a Wasserstein GAN with L1.

Network: Cui et al. 2019, European Journal of Nuclear Medicine and Molecular Imaging 46(13), 2780-2789, doi
10.1007/s00259-019-04468-4, who fit it to one patient's noisy scan; Zhou et al. 2022 (arXiv 2205.08887, Sec. IV-D) take
its generator alone to compare with and train it, as every network of their tables, by WGAN and L1 (Sec. IV-C.3).

Everything is SGSGAN's: this is its 3D-UNet without noise, AdaIN and guidance, and that file tells the readings.  Its
widths are one of many layouts of the 49.40 M published (49,395,937 here), and its norm is over the patches of a case in
training, frozen per case at inference.

Refused besides: patches whose deepest level holds one voxel of one patch per case, which the norm would make 0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from storage.ranges import Range
from trainers import assembly
from trainers.recipe import EngineFactory
from trainers.systems import sgsgan

FEED, PRESET, ROLES = sgsgan.FEED, sgsgan.PRESET, sgsgan.ROLES
HALVED = 32  # voxels that five halvings make one


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published comparison; fields are SGSGAN's.

    Args:
        channels: of level 0; they double per level up to 512 (48 gives the published count).
        critic_channels: channels of D's first layer.
        lambda_content: weight of the content loss (Sec. IV-C.3).
        content: content loss (Table VIII).
        lr: RMSprop's learning rate, fixed (Sec. IV-C.3).
        clip: bound c of D's weights (Sec. IV-C.3).
        samples: patches seen: 1200 epochs of 200 image pairs (Sec. IV-C.1).
        patch: edge lengths (z, y, x) in voxels, multiples of 32.
        patches_per_case: patches of one case in a step, over which the norm's statistics are joint.
        context_patches: patches that freeze a case's statistics at inference.
    """

    channels: Annotated[int, Range(1)] = 48
    critic_channels: Annotated[int, Range(1)] = 64
    lambda_content: Annotated[float, Range(0)] = 100.0
    content: Literal["l1", "l2", "gde", "l1+gde"] = "l1"
    lr: Annotated[float, Range(above=0)] = 1e-4
    clip: Annotated[float, Range(above=0)] = 0.01
    samples: Annotated[int, Range(1)] = 240_000
    patch: tuple[int, int, int] = (64, 64, 64)
    patches_per_case: Annotated[int, Range(1)] = 4
    context_patches: Annotated[int, Range(1)] = 16

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "unet_3d")
        fits = all(edge >= HALVED and edge % HALVED == 0 for edge in self.patch)
        require(fits, "CFG_PATCH_SIZE", "patch", "use multiples of 32 voxels: the network halves five times")
        deepest = math.prod(edge // HALVED for edge in self.patch) * self.patches_per_case
        remedy = "use 2 or more, or a longer patch: the deepest norm needs more than one voxel"
        require(deepest > 1, "CFG_RANGE", "patches_per_case", remedy)


def published(config: Config) -> sgsgan.Config:
    """Return the configuration of SGSGAN that is this network."""
    c = config
    return sgsgan.Config(
        synthesis="unet3d",
        unet_channels=c.channels,
        use_noise=False,
        use_adain=False,
        rois=(),
        critic_channels=c.critic_channels,
        lambda_content=c.lambda_content,
        content=c.content,
        lr=c.lr,
        clip=c.clip,
        phase_samples=(c.samples, 0, 0, 0),
        patch=c.patch,
        patches_per_case=c.patches_per_case,
        context_patches=c.context_patches,
    )


check, files = assembly.accept_any_feed, assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what this implementation rests on."""
    return (
        "3D-UNet: a re-implementation of SGSGAN's comparison, trained by WGAN and L1; its widths are one of many "
        "layouts of the published number of parameters.",
    )


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> sgsgan.SGSGAN:
    """Build G, D and their engines; ``patches_per_step`` counts the patches of all ranks."""
    return sgsgan.build(published(config), make_engine=make_engine, patches_per_step=patches_per_step)


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> sgsgan.StyleSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    return sgsgan.weights_to_synthesizer(published(config), weights)
