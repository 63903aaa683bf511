"""A residual 3D U-Net, supervised: the plain network that any other has to beat, from low dose to full dose.

petscale's own choice of layers: the network of two levels that ``restore`` trains, here on the low dose alone, without
fitted filters, without the dose and with additive constants.  Its image is the low dose plus a learnt correction, which
is 0 until it is trained.  L1 by Adam at a constant rate.  Poolings tie windows to multiples of 4 voxels; with the
receptive radius around them, tiles equal the whole volume.
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
from trainers import assembly
from trainers.feed_config import FeedConfig
from trainers.recipe import BatchSpec, EngineFactory, Tiling
from trainers.residual_unet import MULTIPLE, RADIUS, ResidualUNet

FEED = FeedConfig(suv_scale=5.0, cases_per_step=4)
PRESET = "native"
ROLES: frozenset[str] = frozenset()
LOSSES = {"l1": F.l1_loss, "mse": F.mse_loss}
TILING = Tiling(tile=(64, 64, 64), halo=(RADIUS,) * 3, multiple=(MULTIPLE,) * 3)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the network; none is published.

    Args:
        channels: of the network's two levels.
        loss: L1, or MSE, which blurs more and raises PSNR.
        lr: Adam's learning rate.
        samples: patches seen.
        patch: edge lengths (z, y, x) in voxels, multiples of 4.
        margin: voxels (z, y, x) of the low dose read around a patch, multiples of 4, so that less of what the losses
            see is made from the zeros beyond a window.
        patches_per_case: patches of one case in a step.
    """

    channels: Annotated[tuple[int, int], Range(1)] = (32, 48)
    loss: Literal["l1", "mse"] = "l1"
    lr: Annotated[float, Range(above=0)] = 1e-3
    samples: Annotated[int, Range(1)] = 100_000
    patch: tuple[int, int, int] = (32, 32, 32)
    margin: tuple[int, int, int] = (8, 8, 8)
    patches_per_case: Annotated[int, Range(1)] = 2

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "unet")
        fits = all(edge >= MULTIPLE and edge % MULTIPLE == 0 for edge in self.patch)
        require(fits, "CFG_PATCH_SIZE", "patch", "use multiples of 4 voxels: the network halves twice")
        fits = all(edge >= 0 and edge % MULTIPLE == 0 for edge in self.margin)
        require(fits, "CFG_RANGE", "margin", "use multiples of 4 voxels, or 0: the network halves twice")


class UNet(nn.Module):
    """The low dose plus what ``ResidualUNet`` makes of it; 214,472 parameters with 32 and 48 channels."""

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        self.correction = ResidualUNet(1, channels, "additive")

    def forward(self, low: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1 z y x"]:
        image: Tensor = low + self.correction(low)
        return image


check, files = assembly.accept_any_feed, assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say that this is no published system."""
    wide, deep = config.channels
    return (
        f"A plain residual 3D U-Net of {wide} and {deep} channels trained by {config.loss}: what other systems are "
        "compared with, no published system.",
    )


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> assembly.Supervised:
    """Build the network and its engine; ``patches_per_step`` counts the patches of all ranks."""
    engine = make_engine(UNet(config.channels), partial(torch.optim.Adam, lr=config.lr))
    spec = BatchSpec(config.patch, config.margin, config.patches_per_case, {"body": 1.0})
    phases = assembly.Phases({"train": assembly.steps_of(config.samples, patches_per_step)})
    return assembly.Supervised(engine, LOSSES[config.loss], spec, TILING, phases)


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> assembly.WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    network = assembly.with_weights(partial(UNet, config.channels), weights, "weights of the U-Net")
    return assembly.windows(network, TILING)
