"""The network that learns what a fitted start leaves: a small U-Net in 3D whose output is 0 until it is trained."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

RADIUS = 24  # voxels around an output voxel that it sees: 5 convolutions at 2, 2 at 4 voxels, and pooling
MULTIPLE = 4  # pooling ties windows to multiples of it

SLOPE = 0.1  # of activations below 0: at 0 a step or two could silence a whole layer, and nothing woke it again

Beyond = Literal["zeros", "replicate"]


class ResidualUNet(nn.Module):
    """A U-Net of two levels in 3D, on 2 x 2 x 2 voxels as channels, whose output is 0 until it is trained.

    Args:
        inputs: channels of the input.
        channels: of the two levels.
        constants: ``none`` leaves additive constants out, so that the output follows the input's scale; ``additive``.
        beyond: what convolutions see beyond a window: ``zeros``, or its last voxels again (``replicate``), so that
            small windows in training look more like the large ones at inference.
    """

    def __init__(self, inputs: int, channels: tuple[int, int], constants: str, beyond: Beyond = "zeros") -> None:
        super().__init__()
        wide, deep = channels
        conv = partial(nn.Conv3d, kernel_size=3, padding=1, bias=constants == "additive", padding_mode=beyond)
        self.stem = nn.ModuleList([conv(8 * inputs, wide), conv(wide, wide)])
        self.below = nn.ModuleList([conv(wide, deep), conv(deep, deep)])
        self.above = conv(wide + deep, wide)
        self.out = conv(wide, 8)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.out.weight)

    def forward(self, u: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b 1 z y x"]:
        """Return one channel; edges are multiples of ``MULTIPLE``."""
        x = voxels_to_channels(u)
        for conv in self.stem:
            x = _bent(conv(x))
        y = F.avg_pool3d(x, 2)
        for conv in self.below:
            y = _bent(conv(y))
        y = F.interpolate(y, scale_factor=2, mode="trilinear", align_corners=False)
        return channels_to_voxels(self.out(_bent(self.above(torch.cat([x, y], dim=1)))))


def _bent(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)  # follows any positive scale, as ReLU does


def voxels_to_channels(x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b 8c z/2 y/2 x/2"]:
    """Return 2 x 2 x 2 voxels as channels, the fastest of them along x."""
    b, c, *edges = x.shape
    z, y, x_ = (edge // 2 for edge in edges)
    return x.reshape(b, c, z, 2, y, 2, x_, 2).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, 8 * c, z, y, x_)


def channels_to_voxels(x: Float[Tensor, "b 8 z y x"]) -> Float[Tensor, "b 1 2z 2y 2x"]:
    """Inverse of ``voxels_to_channels``, to one channel."""
    b, _, z, y, x_ = x.shape
    return x.reshape(b, 1, 2, 2, 2, z, y, x_).permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, 1, 2 * z, 2 * y, 2 * x_)
