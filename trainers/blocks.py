"""Networks that several systems share: pix2pix's U-Net and PatchGAN, and CycleGAN's generator.

Isola et al. 2017, arXiv 1611.07004, Sec. 6.1; Zhu et al. 2017, arXiv 1703.10593, Sec. 7.2.  Layers are those of the
authors' code, in two or three dimensions.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Upsample = Literal["deconv", "deconv2", "resize3", "resize4"]
Norm = Literal["batch", "instance"]
DROPOUT, SLOPE, INITIAL_SD = 0.5, 0.2, 0.02


def encoder_widths(width: int, downs: int) -> tuple[int, ...]:
    """Channels after every halving: ``width`` doubled up to three times (C64-C128-C256-C512-C512-...)."""
    return tuple(width * 2 ** min(level, 3) for level in range(downs))


class UNet(nn.Module):
    """pix2pix's generator: ``downs`` strided convolutions, as many upsamplings, skips between equal sizes.

    54,413,955 parameters with 3 -> 3 channels, 8 halvings and 64 channels.  No last non-linearity: papers differ there.

    Args:
        inputs: channels in; ``outputs`` are channels out.
        width: channels of the first convolution.
        downs: halvings of every axis; edges must be multiples of 2^downs.
        dims: 2 or 3.
        upsample: ``deconv`` as published, 4 taps with stride 2; ``deconv2`` 2 taps, which do not overlap; ``resize3``
            and ``resize4`` repeat voxels and then convolve with 3 or 4 taps, which starts without the checkerboards of
            a transposed convolution (Odena et al. 2016, doi 10.23915/distill.00003).
        decoder: channels of the upsampling layers.  One fewer than halvings (default: pix2pix's code): the last
            upsampling makes the image.  As many: a 1 x 1 convolution makes it.
        norm: batch norm as published, or instance norm without scale and shift, where a network sees images of several
            kinds whose running statistics would mix; every convolution then has a bias.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 64,
        downs: int = 8,
        dims: Literal[2, 3] = 2,
        upsample: Upsample = "deconv",
        decoder: Sequence[int] = (),
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        down, biased = encoder_widths(width, downs), norm == "instance"
        after_layer = instance_norm(dims) if biased else _norm(dims)
        ups = tuple(decoder) or down[-2::-1]
        self.encoder = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise((inputs, *down))):
            normed = 0 < level < downs - 1  # at the bottleneck one voxel is left, whose variance is 0
            self.encoder.append(
                nn.Sequential(
                    nn.Identity() if level == 0 else nn.LeakyReLU(SLOPE),
                    _conv(dims)(before, after, 4, stride=2, padding=1, bias=biased),
                    after_layer(after) if normed else nn.Identity(),
                )
            )
        self.decoder = nn.ModuleList()
        before = down[-1]
        for level, after in enumerate(ups):
            dropped = level < 3 and after == 8 * width  # CD512-CD512-CD512
            self.decoder.append(
                nn.Sequential(
                    nn.ReLU(),
                    *_up(dims, upsample, before, after, bias=biased),
                    after_layer(after),
                    nn.Dropout(DROPOUT) if dropped else nn.Identity(),
                )
            )
            before = after + (down[downs - 2 - level] if level < downs - 1 else 0)
        last = [_conv(dims)(before, outputs, 1)] if len(ups) == downs else _up(dims, upsample, before, outputs, True)
        self.image = nn.Sequential(nn.ReLU(), *last)
        self.apply(_initialise)

    def encode(self, x: Float[Tensor, "b c *space"]) -> list[Tensor]:
        """Return what every halving leaves behind, the largest first."""
        features = []
        for block in self.encoder:
            x = block(x)
            features.append(x)
        return features

    def decode(self, bottleneck: Tensor, skips: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the image, and every upsampling's own output, the smallest first.

        Args:
            skips: what is concatenated to these, the smallest first; one fewer than halvings.
        """
        x, own = bottleneck, []
        for level, block in enumerate(self.decoder):
            x = block(x)
            own.append(x)
            if level < len(skips):
                x = torch.cat([x, skips[level]], dim=1)
        return self.image(x), own

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b o *space"]:
        *skips, bottleneck = self.encode(x)
        image, _ = self.decode(bottleneck, skips[::-1])
        return image


class PatchGAN(nn.Module):
    """pix2pix's discriminator; every logit scores one window.  No last non-linearity.

    Args:
        inputs: channels of condition and image together.
        width: channels of the first convolution, doubled up to three times.
        strides: of the convolutions before the last; (2, 2, 2, 1) sees 70 voxels, (2, 1) 16, (2, 2, 1) 34.
        dims: 2 or 3.
        norm: batch norm, or CycleGAN's instance norm without scale and shift, by which no image of a batch depends on
            another; 2,762,689 parameters with 1 channel.
    """

    def __init__(
        self,
        inputs: int,
        *,
        width: int = 64,
        strides: Sequence[int] = (2, 2, 2, 1),
        dims: Literal[2, 3] = 2,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = encoder_widths(width, len(strides))
        for level, (stride, before, after) in enumerate(zip(strides, (inputs, *widths), widths, strict=False)):
            biased = level == 0 or norm == "instance"
            layers.append(_conv(dims)(before, after, 4, stride=stride, padding=1, bias=biased))
            layers += [(_norm(dims) if norm == "batch" else instance_norm(dims))(after)] if level else []
            layers.append(nn.LeakyReLU(SLOPE))
        self.layers = nn.Sequential(*layers, _conv(dims)(widths[-1], 1, 4, padding=1))
        self.apply(_initialise)

    def forward(self, *images: Float[Tensor, "b _ *space"]) -> Float[Tensor, "b 1 *logits"]:
        logits: Tensor = self.layers(torch.cat(images, dim=1))
        return logits


class Normed(nn.Module):
    """A convolution, a norm and an activation; what ``given`` is beside the maps is the norm's."""

    def __init__(self, layers: Sequence[nn.Module], norm: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm, self.activation = nn.Sequential(*layers), norm, activation

    def forward(self, x: Float[Tensor, "b c *space"], *given: Tensor) -> Float[Tensor, "b d *space"]:
        after: Tensor = self.activation(self.norm(self.layers(x), *given))
        return after


class Residual(nn.Module):
    """What two layers make, added to their input."""

    def __init__(self, first: Normed, second: Normed) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Float[Tensor, "b c *space"], *given: Tensor) -> Float[Tensor, "b c *space"]:
        after: Tensor = x + self.second(self.first(x, *given), *given)
        return after


class ResNetGenerator(nn.Module):
    """CycleGAN's generator: two halvings, residual blocks, two doublings.

    Beyond borders lies the mirror image, and 0 where a layer has a stride.  c7s1-64, d128, d256, R256 x blocks, u128,
    u64, c7s1-1 (Sec. 7.2): 7,825,153 parameters with 6 blocks in 2D, 11,365,633 with 9.  No last non-linearity.

    Args:
        width: channels of the first convolution.
        blocks: residual blocks; 6 for images of 128 pixels, 9 from 256 on (Sec. 7.2).
        dims: 2 or 3; edges must be multiples of 4, of 8 voxels at least.
        output: ``residual`` adds the input to what the layers make, ``image`` leaves it out, as published.
        norm: from channels to the norm after every convolution but the last; None for instance norm.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        blocks: int = 6,
        dims: Literal[2, 3] = 2,
        output: Literal["residual", "image"] = "residual",
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        conv, normed, self.output = _conv(dims), norm or instance_norm(dims), output
        deconv, mirror = (
            (nn.ConvTranspose2d, nn.ReflectionPad2d) if dims == 2 else (nn.ConvTranspose3d, nn.ReflectionPad3d)
        )

        def block(channels: int, activation: nn.Module) -> Normed:
            return Normed([mirror(1), conv(channels, channels, 3)], normed(channels), activation)

        layers: list[nn.Module] = [Normed([mirror(3), conv(1, width, 7)], normed(width), nn.ReLU())]
        for n in (width, 2 * width):
            layers.append(Normed([conv(n, 2 * n, 3, stride=2, padding=1)], normed(2 * n), nn.ReLU()))
        layers += [Residual(block(4 * width, nn.ReLU()), block(4 * width, nn.Identity())) for _ in range(blocks)]
        for n in (4 * width, 2 * width):
            doubled = deconv(n, n // 2, 3, stride=2, padding=1, output_padding=1)
            layers.append(Normed([doubled], normed(n // 2), nn.ReLU()))
        self.layers = nn.ModuleList(layers)
        self.image = nn.Sequential(mirror(3), conv(width, 1, 7))
        self.apply(_initialise)

    def forward(self, image: Float[Tensor, "b 1 *space"], *given: Tensor) -> Float[Tensor, "b 1 *space"]:
        """Return an image of the same size; ``given`` goes to every norm."""
        x = image
        for layer in self.layers:
            x = layer(x, *given)
        made: Tensor = self.image(x)
        return image + made if self.output == "residual" else made


def instance_norm(dims: int) -> type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]:
    """Return instance norm in 2 or 3 dimensions, which by default has no scale and shift."""
    return nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d


class OfPairs(nn.Module):
    """A discriminator of pairs, condition and image: every image is put beside the same condition, and normed apart.

    Args:
        net: from (condition, image) to logits.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, condition: Float[Tensor, "b c *space"], *images: Float[Tensor, "b _ *space"]
    ) -> tuple[Tensor, ...]:
        """Return the logits of every image."""
        return tuple(self.net(condition, image) for image in images)


def _conv(dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if dims == 2 else nn.Conv3d


def _norm(dims: int) -> type[nn.BatchNorm2d] | type[nn.BatchNorm3d]:
    return nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d


def _up(dims: int, upsample: Upsample, before: int, after: int, bias: bool) -> list[nn.Module]:
    deconv = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
    if upsample == "deconv":
        return [deconv(before, after, 4, stride=2, padding=1, bias=bias)]
    if upsample == "deconv2":
        return [deconv(before, after, 2, stride=2, bias=bias)]
    doubled = nn.Upsample(scale_factor=2, mode="nearest")
    if upsample == "resize3":
        return [doubled, _conv(dims)(before, after, 3, padding=1, bias=bias)]
    return [doubled, _Uneven(dims), _conv(dims)(before, after, 4, bias=bias)]


class _Uneven(nn.Module):
    """Padding for 4 taps at stride 1: one voxel before, two after."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.padding = (1, 2) * dims

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.padding)


def _initialise(module: nn.Module) -> None:
    """Weights N(0, 0.02), scales of batch norm N(1, 0.02), biases 0 (the authors' code)."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.normal_(module.weight, 0.0, INITIAL_SD)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, INITIAL_SD)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
