"""SGSGAN's networks: G with its mapping and synthesis networks, D and S, and nothing about how they are trained.

Everything is a plain ``nn.Module`` built from keyword arguments; readings and deviations are told in the package's
docstring.  Noise comes from torch's default generator.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

EPS = 1e-5  # under AdaIN's root

# Reads or computes (mean, biased variance), each (cases, c), of one layer's map (cases, n, c, z, y, x).
Moments = Callable[[str, Tensor], tuple[Tensor, Tensor]]


# Sec. III-A.1  Mapping network


class MappingNetwork(nn.Module):
    """Low-dose overview -> W.  Four blocks (2^3 convolution that doubles channels, 3^3 of stride 2), flatten, linear.

    535,400 parameters at 64^3 and 512.
    """

    def __init__(self, size: int, style_dim: int) -> None:
        super().__init__()
        self.size = size
        blocks = []
        for before, after in ((1, 2), (2, 4), (4, 8), (8, 16)):
            blocks += [nn.Conv3d(before, after, 2), nn.Conv3d(after, after, 3, 2, 1), nn.LeakyReLU(0.2)]
        self.blocks = nn.Sequential(*blocks)  # n -> n - 1 -> n // 2, four times: 64 -> 4
        self.linear = nn.Linear(16 * (size // 16) ** 3, style_dim)
        nn.init.kaiming_normal_(self.linear.weight, a=0.2)

    def forward(self, overview: Float[Tensor, "cases 1 o o o"]) -> Float[Tensor, "cases style"]:
        if overview.shape[1:] != (1, self.size, self.size, self.size):
            raise ValueError(f"the mapping network takes (cases, 1, {self.size}^3), not {tuple(overview.shape)}")
        # Over all voxels of the instance: over the channel axis it would return the sign of x and lose the image.
        scale = torch.rsqrt(overview.square().mean((1, 2, 3, 4), keepdim=True) + 1e-8)
        return F.leaky_relu(self.linear(self.blocks(overview * scale).flatten(1)), 0.2)


# Sec. III-A.2 and 3  Noise module and adaptive instance normalization


class Noise(nn.Module):
    """Eq. 1: f + P Z with one Gaussian Z per layer and sample, shared by its channels; in training only."""

    def __init__(self, channels: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.scale = nn.Parameter(torch.ones(channels))  # P; 1, so that the stated std is the injected one at first

    def forward(self, f: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        if not self.training:
            return f
        z = torch.randn((f.shape[0], 1, *f.shape[2:]), device=f.device, dtype=f.dtype).mul_(self.std)
        return torch.addcmul(f, self.scale.view(-1, 1, 1, 1), z)


@dataclass(frozen=True)
class Shared:
    """What all patches of a case share.

    Args:
        cases: number of cases; the patches of one are neighbours in a batch.
        style: W, (cases, style_dim), or None without AdaIN.
        moments: where the statistics of a layer come from.
    """

    cases: int
    style: Tensor | None
    moments: Moments


class FixedFactors(nn.Module):
    """Learned gamma and beta of a plain normalisation, in the form of A(W): the same for every case."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, style: Tensor | None) -> Float[Tensor, "1 factors"]:
        return torch.cat([self.weight, self.bias]).unsqueeze(0)


class Modulation(nn.Module):
    """What follows a convolution: noise (Eq. 1), then normalisation with factors that depend on W (Eq. 3 and 4).

    Args:
        name: name of the layer in a case's statistics.
        noise: noise module, or None.
        factors: A of Eq. 3 (style -> 2c), ``FixedFactors``, or None for no normalisation.
    """

    def __init__(self, name: str, noise: Noise | None, factors: nn.Module | None) -> None:
        super().__init__()
        self.name = name
        self.noise = noise
        self.factors = factors

    def forward(self, f: Float[Tensor, "b c z y x"], shared: Shared, margin: int) -> Float[Tensor, "b c z y x"]:
        """Return f modulated; the outer ``margin`` voxels take no part in live statistics."""
        with torch.autocast(f.device.type, enabled=False):  # statistics and factors in fp32 whatever the precision
            f = f.float()
            if self.noise is not None:
                f = self.noise(f)
            if self.factors is None:
                return f
            gamma, beta = self.factors(shared.style).chunk(2, dim=1)  # (cases or 1, c)
            case = f.unflatten(0, (shared.cases, -1))  # (cases, n, c, z, y, x)
            mean, var = shared.moments(self.name, _crop(case, margin))
            scale = gamma * torch.rsqrt(var + EPS)
            shift = beta - mean * scale
            return torch.addcmul(_per_channel(shift), case, _per_channel(scale)).flatten(0, 1)


def live_moments(layer: str, f: Float[Tensor, "cases n c z y x"]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per case and channel, joint over the patches of the case, with gradient."""
    var, mean = torch.var_mean(f, dim=(1, 3, 4, 5), correction=0)
    return mean, var


def recorded_moments(seen: dict[str, Tensor]) -> Moments:
    """Live moments that are also written to ``seen``."""

    def moments(layer: str, f: Tensor) -> tuple[Tensor, Tensor]:
        seen[f"mean/{layer}"], seen[f"var/{layer}"] = mean, var = live_moments(layer, f)
        return mean, var

    return moments


def frozen_moments(context: Mapping[str, Tensor]) -> Moments:
    """Moments that a case's context holds."""
    return lambda layer, _: (context[f"mean/{layer}"], context[f"var/{layer}"])


def _crop(f: Tensor, margin: int) -> Tensor:
    return f[..., margin:-margin, margin:-margin, margin:-margin] if margin else f


def _per_channel(factor: Tensor) -> Tensor:
    return factor[:, None, :, None, None, None]  # (cases, c) -> (cases, 1, c, 1, 1, 1)


# Sec. III-A.4  Synthesis networks


class DCITN(nn.Module):
    """Densely connected image translation network (Fig. 3): every convolution 3^3, linear output.  25,969 parameters.

    A dense unit reads all earlier maps.  Here each map, once made, is convolved at once for all its later readers and
    the results are summed: the same weights and the same function as concatenating, without keeping a concatenation per
    unit (48 channels to keep for backward in place of 160).  Convolutions use up the halo before they pad with zeros.

    Args:
        growth: channels that a unit adds.
        units: number of units.
        stem_channels: channels of the first convolution.
        concat_input: True where the units read the network's input as well.
        halo: voxels around the input that the output does not have.
        modulated: indices of the modulated layers, 0 for the stem, i for unit i.
        modulation: makes the modulation of a layer from its name and channels.
    """

    def __init__(
        self,
        *,
        growth: int,
        units: int,
        stem_channels: int,
        concat_input: bool,
        halo: int,
        modulated: tuple[int, ...],
        modulation: Callable[[str, int], Modulation],
    ) -> None:
        super().__init__()
        first = stem_channels + concat_input
        widths = [stem_channels] + [growth] * units
        self.halo = halo
        self.concat_input = concat_input
        self.stem = nn.Conv3d(1, stem_channels, 3)
        self.units = nn.ModuleList(nn.Conv3d(first + i * growth, growth, 3) for i in range(units))
        self.out = nn.Conv3d(first + units * growth, 1, 3)
        self.modulations = nn.ModuleList(
            modulation(f"layer{i}", width) if i in modulated else Modulation(f"layer{i}", None, None)
            for i, width in enumerate(widths)
        )

    @torch.no_grad()
    def start_near_identity(self) -> None:
        """Let the image through and damp all else: from there training only has to learn the correction."""
        self.out.weight.mul_(0.1)
        for weight in (self.stem.weight, self.out.weight):  # the first channel of all
            weight[0, 0] = 0
            weight[0, 0, 1, 1, 1] = 1

    def forward(self, low: Float[Tensor, "b 1 zh yh xh"], shared: Shared) -> Float[Tensor, "b 1 z y x"]:
        inner = low.shape[-1] - 2 * self.halo
        readers = [*self.units, self.out]
        weights = [reader.weight for reader in readers]
        sums: list[Tensor] = []  # for every reader still to come: bias and what the maps made so far contribute
        column = 0  # first input channel that the next map has in its readers' weights

        def offer(f: Tensor) -> None:
            nonlocal column
            end = column + f.shape[1]
            bias = None if sums else torch.cat([reader.bias for reader in readers])
            parts = _conv(f, torch.cat([w[:, column:end] for w in weights]), bias, inner)
            split = parts.split([len(w) for w in weights], dim=1)
            sums[:] = [_crop_to(s, part) + part for s, part in zip(sums, split, strict=True)] if sums else split
            column = end

        if self.concat_input:
            offer(low)
        f = _conv(low, self.stem.weight, self.stem.bias, inner)
        for modulation in self.modulations:
            offer(F.leaky_relu(modulation(f, shared, (f.shape[-1] - inner) // 2), 0.2))
            f = sums.pop(0)
            weights.pop(0)
        return _crop(f, (f.shape[-1] - inner) // 2)


def _conv(f: Tensor, weight: Tensor, bias: Tensor | None, inner: int) -> Tensor:
    """3^3 convolution that takes one voxel off every side, or pads where no halo is left."""
    return F.conv3d(f, weight, bias, padding=int(f.shape[-1] == inner))


def _crop_to(f: Tensor, smaller: Tensor) -> Tensor:
    return _crop(f, (f.shape[-1] - smaller.shape[-1]) // 2)


class UNet3D(nn.Module):
    """3D-UNet (after Cui et al. 2019): stride-2 convolutions down, trilinear up, skips added.  49,395,937 parameters.

    Batch norm is replaced by a norm over the patches of a case, of the same number of parameters: batches of patches
    are tiny, and a volume's tiles must share their statistics.

    Args:
        channels: width of level 0; it doubles per level, up to 512.
        modulated: encoder levels with style.
        modulation: makes the modulation of a layer from its name and channels.
    """

    def __init__(
        self, *, channels: int, modulated: tuple[int, ...], modulation: Callable[[str, int], Modulation]
    ) -> None:
        super().__init__()
        widths = [min(channels * 2**level, 512) for level in range(6)]

        def block(name: str, before: int, after: int, stride: int = 1) -> CBL:
            return CBL(before, after, stride, Modulation(name, None, FixedFactors(after)))

        self.encoder = nn.ModuleList(
            CBL(1 if level == 0 else width, width, 1, modulation(f"encoder{level}", width))
            if level in modulated
            else block(f"encoder{level}", 1 if level == 0 else width, width)
            for level, width in enumerate(widths)
        )
        self.down = nn.ModuleList(block(f"down{i}", widths[i], widths[i + 1], 2) for i in range(5))
        self.up = nn.ModuleList(block(f"up{i}", widths[i + 1], widths[i]) for i in reversed(range(5)))
        self.out = nn.Conv3d(widths[0], 1, 3, padding=1)

    def forward(self, low: Float[Tensor, "b 1 z y x"], shared: Shared) -> Float[Tensor, "b 1 z y x"]:
        f = self.encoder[0](low, shared)
        skips = []
        for down, encoder in zip(self.down, self.encoder[1:], strict=True):
            skips.append(f)
            f = encoder(down(f, shared), shared)
        for up in self.up:
            f = up(F.interpolate(f, scale_factor=2, mode="trilinear"), shared) + skips.pop()
        image: Tensor = self.out(f)
        return image


class CBL(nn.Module):
    """Convolution 3^3, normalisation, LeakyReLU 0.2."""

    def __init__(self, before: int, after: int, stride: int, modulation: Modulation) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, after, 3, stride, padding=1)
        self.modulation = modulation

    def forward(self, f: Float[Tensor, "b c z y x"], shared: Shared) -> Float[Tensor, "b d zd yd xd"]:
        return F.leaky_relu(self.modulation(self.conv(f), shared, 0), 0.2)


class Generator(nn.Module):
    """G: mapping network (None without AdaIN) and synthesis network.  594,233 parameters with DCITN.

    Where a start is given, G's image is added to it, times the noise of the case: the standard deviation of what the
    start lacks of the low dose.  It is a statistic of the case as AdaIN's are: live in training, frozen at inference.
    """

    def __init__(self, synthesis: nn.Module, mapping: MappingNetwork | None) -> None:
        super().__init__()
        self.synthesis = synthesis
        self.mapping = mapping

    def forward(
        self,
        low: Float[Tensor, "b 1 zh yh xh"],
        overview: Float[Tensor, "cases 1 o o o"],
        *,
        cases: int,
        start: Float[Tensor, "b 1 z y x"] | None = None,
    ) -> Float[Tensor, "b 1 z y x"]:
        """Synthesize the patches of ``cases`` cases with the statistics of these very patches."""
        return self._run(low, Shared(cases, self._style(overview), live_moments), start)

    def context(
        self,
        low: Float[Tensor, "n 1 zh yh xh"],
        overview: Float[Tensor, "1 1 o o o"],
        start: Float[Tensor, "n 1 z y x"] | None = None,
    ) -> dict[str, Float[Tensor, "1 channels"]]:
        """Return W and every layer's statistics over patches of one case: all that its tiles share."""
        style = self._style(overview)
        context = {} if style is None else {"style": style}
        self._run(low, Shared(1, style, recorded_moments(context)), start)
        return context

    def synthesize(
        self,
        low: Float[Tensor, "b 1 zh yh xh"],
        context: Mapping[str, Tensor],
        start: Float[Tensor, "b 1 z y x"] | None = None,
    ) -> Float[Tensor, "b 1 z y x"]:
        """Synthesize tiles of one case with the statistics of its context."""
        return self._run(low, Shared(1, context.get("style"), frozen_moments(context)), start)

    def _style(self, overview: Tensor) -> Tensor | None:
        return None if self.mapping is None else self.mapping(overview).float()

    def _run(self, low: Tensor, shared: Shared, start: Tensor | None) -> Tensor:
        image: Tensor = self.synthesis(low, shared)
        if start is None:
            return image
        lacking = _crop(low, (low.shape[-1] - start.shape[-1]) // 2) - start
        _, var = shared.moments("start", lacking.unflatten(0, (shared.cases, -1)))
        scaled: Tensor = image.float().unflatten(0, (shared.cases, -1)) * _per_channel(var.sqrt())
        return start + scaled.flatten(0, 1)


def kaiming(module: nn.Module) -> None:
    """Initialise convolutions for LeakyReLU 0.2, biases 0 (the text is silent)."""
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Sec. III-C  Critic D: 3D PatchGAN of pix2pix, unconditional, no sigmoid


class Critic(nn.Module):
    """D: scores of overlapping regions (receptive field 70), 6^3 of them for 64^3.  11,046,977 parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [1, channels, 2 * channels, 4 * channels, 8 * channels, 1]
        layers: list[nn.Module] = []
        for i in range(5):
            normed = 0 < i < 4
            layers.append(nn.Conv3d(widths[i], widths[i + 1], 4, stride=2 if i < 3 else 1, padding=1, bias=not normed))
            if normed:
                layers.append(nn.InstanceNorm3d(widths[i + 1]))
            if i < 4:
                layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv3d):
                nn.init.normal_(layer.weight, std=0.02)  # as pix2pix
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, image: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1 zs ys xs"]:
        scores: Tensor = self.layers(image)
        return scores


# Sec. III-B  Segmentation network S: 3D U-Net


class Segmenter(nn.Module):
    """S: logits, one channel per organ.  4,770,724 parameters for b = 16 and four organs.

    Args:
        b: levels have 2b, 4b, 8b, 16b channels.
        organs: number of organs.
    """

    def __init__(self, b: int, organs: int) -> None:
        super().__init__()
        widths = [2 * b, 4 * b, 8 * b, 16 * b]
        self.encoder = nn.ModuleList(
            _conv_norm_twice(before, width // 2, width) for before, width in zip([1, *widths], widths, strict=False)
        )
        below = widths[1:]
        self.up = nn.ModuleList(nn.ConvTranspose3d(width, width, 2, stride=2) for width in reversed(below))
        self.decoder = nn.ModuleList(
            _conv_norm_twice(lower + width, width, width)
            for lower, width in zip(reversed(below), reversed(widths[:-1]), strict=True)
        )
        self.out = nn.Conv3d(widths[0], organs, 1)
        self.apply(kaiming)

    def forward(self, image: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b k z y x"]:
        f = self.encoder[0](image)
        skips = []
        for encoder in self.encoder[1:]:
            skips.append(f)
            f = encoder(F.max_pool3d(f, 2))
        for up, decoder in zip(self.up, self.decoder, strict=True):
            f = decoder(torch.cat([skips.pop(), up(f)], dim=1))
        logits: Tensor = self.out(f)
        return logits


def _conv_norm_twice(before: int, between: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in ((before, between), (between, after)):
        layers += [nn.Conv3d(i, o, 3, padding=1), nn.InstanceNorm3d(o, affine=True), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
