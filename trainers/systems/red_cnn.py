"""RED-CNN: a residual encoder-decoder of convolutions on slices, from low dose to full dose.

Chen, Zhang, Kalra, Lin, Chen, Liao, Zhou, Wang 2017, IEEE Transactions on Medical Imaging 36(12), 2524-2535, doi
10.1109/TMI.2017.2715284, arXiv 1702.00288; written for low-dose CT, trained here on PET as a method to compare with.
This is written from the text and from what public implementations agree on, not from the authors' code.

Readings: a shortcut is added before the ReLU: the activation of convolution 4 to transposed convolution 1, that of
convolution 2 to transposed convolution 3, the input to the last.  The last ReLU keeps the image from falling below 0.
MSE by Adam at a constant 1e-4, weights as PyTorch starts them; learning rate and batch size are not checked against
the print.

Deviations: slices of 64 x 64 voxels, drawn in the body, where the paper cuts 55 x 55 pixels at a stride of 4.  Kernels
are (1, 5, 5), so that a volume is a stack of slices.  At inference windows are read with the receptive radius of 20
voxels around them and equal the whole slice.
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

FEED = FeedConfig(suv_scale=5.0, cases_per_step=8)
PRESET = "native"
ROLES: frozenset[str] = frozenset()
LAYERS, KERNEL = 5, (1, 5, 5)
LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}
TILING = Tiling(tile=(16, 128, 128), halo=(0, 4 * LAYERS, 4 * LAYERS))


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published network.

    Args:
        channels: of every layer.
        loss: the paper's MSE, or L1, by which later comparisons train the network.
        lr: Adam's learning rate.
        samples: patches seen.
        patch: edge lengths (z, y, x) in voxels; y and x of at least 21, of which five convolutions leave 1.
        patches_per_case: patches of one case in a step.
    """

    channels: Annotated[int, Range(1)] = 96
    loss: Literal["mse", "l1"] = "mse"
    lr: Annotated[float, Range(above=0)] = 1e-4
    samples: Annotated[int, Range(1)] = 1_000_000
    patch: tuple[int, int, int] = (1, 64, 64)
    patches_per_case: Annotated[int, Range(1)] = 4

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "red_cnn")
        fits = self.patch[0] >= 1 and min(self.patch[1:]) > 4 * LAYERS
        require(fits, "CFG_PATCH_SIZE", "patch", "use (slices, y, x) with y and x of at least 21 voxels")


class REDCNN(nn.Module):
    """Five convolutions, five transposed ones, no padding; 1,848,865 parameters at 96 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        ins = (1, *[channels] * (LAYERS - 1))
        self.down = nn.ModuleList(nn.Conv3d(n, channels, KERNEL) for n in ins)
        self.up = nn.ModuleList(nn.ConvTranspose3d(channels, n, KERNEL) for n in ins[::-1])

    def forward(self, low: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1 z y x"]:
        x, maps = low, [low]
        for conv in self.down:
            x = F.relu(conv(x))
            maps.append(x)
        for number, conv in enumerate(self.up):
            x = conv(x)
            if number % 2 == 0:
                x = x + maps[LAYERS - 1 - number]
            x = F.relu(x)
        return x


check, files = assembly.accept_any_feed, assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what this implementation rests on."""
    return ("RED-CNN: a re-implementation from the paper's text and public implementations, trained on PET slices.",)


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> assembly.Supervised:
    """Build the network and its engine; ``patches_per_step`` counts the patches of all ranks."""
    engine = make_engine(REDCNN(config.channels), partial(torch.optim.Adam, lr=config.lr))
    spec = BatchSpec(config.patch, (0, 0, 0), config.patches_per_case, {"body": 1.0})
    phases = assembly.Phases({"train": assembly.steps_of(config.samples, patches_per_step)})
    return assembly.Supervised(engine, LOSSES[config.loss], spec, TILING, phases)


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> assembly.WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    network = assembly.with_weights(partial(REDCNN, config.channels), weights, "weights of RED-CNN")
    return assembly.windows(network, TILING)
