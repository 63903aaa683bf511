"""SemiPET-like: few pairs and many unpaired images, norms by region of uptake, structure kept from low dose.

A stand-in for SemiPET (Jiang, Pan, Cui, Nie, Shen 2023, Semi-supervised standard-dose PET image generation via
region-adaptive normalization and structural consistency constraint, IEEE Transactions on Medical Imaging 42(10)), with
which S3PET's Table I compares.  Neither code nor text is open: this has the two parts that the title names, made in the
way of the works that they come from, and its scores are not the original's.

What it is: Cycle-GAN's generators of 6 residual blocks (``trainers.blocks``), every norm of which is by region.
    Regions  air, tissue and hot spots of a network's own input, smoothed: below ``air``, above, and above ``hot`` times
            the median of what is not air.  Statistics of features are of each region of an image by itself.
    Scale and shift  of every voxel from convolutions over the map of regions, as SPADE (Park et al. 2019, arXiv
            1903.07291); by region as SEAN (Zhu et al. 2020, arXiv 1911.12861).
    Structure  L1 of the Sobel magnitudes of the low dose and of the image made from it, both smoothed.
    Steps  by turns on pairs (L1 to the partner, both directions) and on images of different patients (least squares,
            cycle consistency, structure), 1 : 1, at one learning rate; all weights are recommendations.

Slices of windows of 128 x 128 voxels, 32 in a step, as S3PET; smoothing is in voxels of its scanner, 1.65 mm.  The
input is added to what a generator makes.  At inference windows overlap by half and are blended.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from storage.ranges import Range
from trainers import assembly, cycle
from trainers.assembly import WindowSynthesizer, as_slices
from trainers.blocks import PatchGAN, ResNetGenerator
from trainers.cycle import Cycle, Discriminators, Generators, ImagePool, LeastSquares
from trainers.feed_config import FeedConfig
from trainers.losses import sobel_magnitude
from trainers.recipe import Batch, BatchSpec, Engine, EngineFactory, Metrics, Tiling

FEED = FeedConfig(source=("low_drf10",), suv_scale=5.0, cases_per_step=8)  # 8 slabs of 4 slices, as S3PET
PRESET = "s3pet"
ROLES = frozenset({"unpaired"})
REGIONS = 3  # air, tissue, hot
TILE_SLICES = 16


@dataclass(frozen=True, kw_only=True)
class Config:
    """The stand-in; nothing of it is the paper's but the kinds of its parts.

    Args:
        width: channels of a generator's first convolution.
        blocks: residual blocks of a generator.
        critic_width: channels of a discriminator's first convolution.
        hidden: channels between the map of regions and the scales and shifts.
        air: largest value of air on the run's intensity scale; 0.2 SUV at the scale of 5.
        hot: smallest value of a hot spot, in medians of what is not air.
        region_fwhm_voxels: of the Gaussian before regions are told apart; 8 mm.
        structure_fwhm_voxels: of the Gaussian before edges are compared; 6 mm.
        lambda_supervised: weight of the L1 to the partner, on pairs.
        lambda_cycle: weight of the cycle-consistency loss, without pairs.
        lambda_structure: weight of the structural loss, without pairs.
        pool: generated slices of each dose that are kept for the discriminators; 0 for none.
        lr: Adam's learning rate.
        betas: Adam's.
        samples: slices of each dose seen, half of them in pairs; as many as S3PET's second stage.
        patch: edge lengths (slices, y, x) in voxels; slices enter a batch one by one.
        patches_per_case: patches of one case in a step.
    """

    width: Annotated[int, Range(1)] = 64
    blocks: Annotated[int, Range(1)] = 6
    critic_width: Annotated[int, Range(1)] = 64
    hidden: Annotated[int, Range(1)] = 32
    air: Annotated[float, Range(0)] = 0.04
    hot: Annotated[float, Range(1)] = 3.0
    region_fwhm_voxels: Annotated[float, Range(above=0)] = 4.8
    structure_fwhm_voxels: Annotated[float, Range(above=0)] = 3.6
    lambda_supervised: Annotated[float, Range(0)] = 100.0
    lambda_cycle: Annotated[float, Range(0)] = 10.0
    lambda_structure: Annotated[float, Range(0)] = 1.0
    pool: Annotated[int, Range(0)] = 50
    lr: Annotated[float, Range(above=0)] = 2e-4
    betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.5, 0.999)
    samples: Annotated[int, Range(1)] = 384_000
    patch: Annotated[tuple[int, int, int], Range(1)] = (4, 128, 128)
    patches_per_case: Annotated[int, Range(1)] = 1

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "semipet")
        fits = all(edge % 4 == 0 and edge >= 24 for edge in self.patch[1:])
        require(fits, "CFG_PATCH_SIZE", "patch", "use (slices, y, x) with y and x multiples of 4 of at least 24 voxels")


# Region-adaptive normalization


def gaussian(fwhm: float, device: torch.device) -> Float[Tensor, " taps"]:
    """Return the weights of a Gaussian out to three standard deviations; their sum is 1."""
    sd = fwhm / math.sqrt(8 * math.log(2))
    places = torch.arange(-math.ceil(3 * sd), math.ceil(3 * sd) + 1, device=device)
    weights = torch.exp(-(places**2) / (2 * sd**2))
    return weights / weights.sum()


def smoothed(image: Float[Tensor, "b 1 y x"], fwhm: float) -> Float[Tensor, "b 1 y x"]:
    """Return a slice convolved with a Gaussian of ``fwhm`` voxels; beyond its border the border is repeated."""
    taps = gaussian(fwhm, image.device).to(image.dtype)
    edge = len(taps) // 2
    grown = F.pad(image, (edge,) * 4, mode="replicate")
    found: Tensor = F.conv2d(F.conv2d(grown, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
    return found


def regions_of(image: Float[Tensor, "b 1 y x"], config: Config) -> Float[Tensor, "b 3 y x"]:
    """Return which voxels are air, tissue and hot, 1 in one of the three channels."""
    level = smoothed(image.float(), config.region_fwhm_voxels)
    air = level < config.air
    median = level.masked_fill(air, math.nan).flatten(1).nanmedian(dim=1).values.view(-1, 1, 1, 1)
    hot = ~air & (level > config.hot * median)
    return torch.cat([air, ~air & ~hot, hot], dim=1).to(image.dtype)


class RegionNorm(nn.Module):
    """Features less the mean and over the standard deviation of their region, times 1 + gamma, plus beta."""

    def __init__(self, channels: int, hidden: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.shared = nn.Conv2d(REGIONS, hidden, 3, padding=1)
        self.gamma, self.beta = (nn.Conv2d(hidden, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Float[Tensor, "b c y x"], regions: Float[Tensor, "b 3 high wide"]) -> Float[Tensor, "b c y x"]:
        inside = F.interpolate(regions, x.shape[2:]).to(x.dtype)
        voxels = inside.sum((2, 3)).clamp(min=1)[:, :, None]  # (b, 3, 1)
        mean = torch.einsum("bkyx,bcyx->bkc", inside, x) / voxels
        centred = x - torch.einsum("bkyx,bkc->bcyx", inside, mean)
        variance = torch.einsum("bkyx,bcyx->bkc", inside, centred.square()) / voxels
        normed = centred * torch.einsum("bkyx,bkc->bcyx", inside, (variance + self.eps).rsqrt())
        features = F.relu(self.shared(inside))
        adapted: Tensor = normed * (1 + self.gamma(features)) + self.beta(features)
        return adapted


class Generator(nn.Module):
    """One direction; 9,985,921 parameters at 64 channels and 6 blocks."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        norm = partial(RegionNorm, hidden=config.hidden)
        self.net = ResNetGenerator(width=config.width, blocks=config.blocks, norm=norm)

    def forward(self, image: Float[Tensor, "b 1 y x"]) -> Float[Tensor, "b 1 y x"]:
        made: Tensor = self.net(image, regions_of(image.detach(), self.config))
        return made


def discriminator(config: Config) -> PatchGAN:
    """Build Cycle-GAN's discriminator; 2,762,689 parameters at 64 channels."""
    return PatchGAN(1, width=config.critic_width, norm="instance")


# Structural consistency constraint


def structure_loss(low: Float[Tensor, "b 1 y x"], made: Float[Tensor, "b 1 y x"], fwhm: float) -> Float[Tensor, ""]:
    """Return the L1 of both images' Sobel magnitudes in the plane, each smoothed by ``fwhm`` voxels before."""

    def edges(image: Tensor) -> Tensor:  # three equal slices have no gradient along z, and one slice's in the plane
        return sobel_magnitude(smoothed(image, fwhm)[:, :, None].expand(-1, -1, 3, -1, -1))

    return F.l1_loss(edges(low), edges(made))


# Training


@dataclass(frozen=True)
class BothKinds:
    """One step: on pairs both generators alone, on different patients Cycle-GAN's step with the structural loss.

    Args:
        unpaired: Cycle-GAN's step.
    """

    config: Config
    G: Engine
    unpaired: LeastSquares

    def __call__(self, batch: Batch, step: int) -> Metrics:
        if step % 2:
            return self.unpaired(batch, step)
        self.G.module.train()
        low, full = as_slices(batch.source), as_slices(batch.target)
        made_full, made_low = self.G(low, full, again=False)
        supervised = F.l1_loss(made_full, full) + F.l1_loss(made_low, low)
        self.G.backward(self.config.lambda_supervised * supervised)
        self.G.step()
        return {"supervised": supervised.detach()}


check, files = assembly.accept_any_feed, assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say that this is a stand-in."""
    return (
        "SemiPET-like, not the original: a re-implementation of the parts that SemiPET's title names, since neither "
        "its code nor its text is open; layers, regions and weights are recommendations. Do not quote its scores as "
        "SemiPET's.",
    )


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> Cycle:
    """Build networks and engines, one Adam for both directions; ``patches_per_step`` counts those of all ranks."""
    c, optimizer = config, partial(torch.optim.Adam, lr=config.lr, betas=config.betas)
    G = make_engine(Generators(Generator(c), Generator(c), identity=False), optimizer)
    D = make_engine(Discriminators(discriminator(c), discriminator(c)), optimizer)
    pools = ImagePool(c.pool), ImagePool(c.pool)

    def structure(low: Tensor, made_full: Tensor) -> Tensor:
        return c.lambda_structure * structure_loss(low, made_full, c.structure_fwhm_voxels)

    unpaired = LeastSquares(
        G,
        D,
        pools,
        lambda_cycle=c.lambda_cycle,
        lambda_identity=0.0,
        rate=lambda step: c.lr,
        seen=as_slices,
        kept={"structure": structure},
    )
    spec = partial(BatchSpec, c.patch, (0, 0, 0), c.patches_per_case, cycle.SAMPLER)
    phases = assembly.Phases({"train": assembly.steps_of(c.samples, patches_per_step * c.patch[0])})
    named = dict(zip(("generated low", "generated full"), pools, strict=True))
    specs = spec(images="paired"), spec(images="unpaired")
    return Cycle(G, D, BothKinds(c, G, unpaired), specs, tiling_of(c), phases, assembly.slicewise, named)


def tiling_of(config: Config) -> Tiling:
    """Return windows of the training size that overlap by half; z may be anything."""
    _, y, x = config.patch
    return Tiling(tile=(TILE_SLICES, y, x), halo=(0, 0, 0), overlap=(0, y // 2, x // 2))


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    network = assembly.with_weights(partial(Generator, config), weights, "weights of the SemiPET-like system")
    return assembly.slicewise(network, tiling_of(config))
