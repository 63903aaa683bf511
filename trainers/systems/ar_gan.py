"""AR-GAN: a conditional GAN on slices, and a network that rectifies its image, compared in the spectrum as well.

Luo, Zhou, Zhan, Fei, Zhou, Wang, Shen 2022, "Adaptive rectification based generative adversarial network with spectrum
constraint for high-quality PET image synthesis", Medical Image Analysis 77, 102335.
This is written from the abstract and from public re-implementations that quote the paper's layers, not from its code.
PreNet makes the preliminary image from the low dose, AR-Net what is added to it.

Readings: PreNet has seven convolutions 4 x 4 and seven transposed ones of stride 2, pix2pix's widths, norms and
dropout.  AR-Net has eight blocks, two poolings, two transposed convolutions without bias and no skips, 64 to 512
channels (a sister system has 16 to 128), and its last tanh is multiplied by its input, which is preliminary image
minus low dose and takes no gradient; it is taught full dose minus preliminary image.  D scores the preliminary image
beside the low dose (70 pixels, least squares).  Spectrum: Durall, Keuper, Keuper 2020, arXiv 2003.01826, the power
averaged over every radius of frequency as a share of that at radius 0, by binary cross-entropy, of the final image.
Weights 100, 10 and 10, Adam at 2e-4 with beta1 0.5; batch size and length are not known.

Deviations: no pool of earlier images for D, which a re-implementation has.  Windows of 128 x 128 voxels in SUV; at
inference they overlap by half and are blended, since PreNet sees all of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from storage.ranges import Range
from trainers import assembly, blocks, losses
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, BatchSpec, Engine, EngineFactory, Metrics, Tiling

FEED = FeedConfig(suv_scale=5.0, cases_per_step=8)
PRESET = "s3pet"  # whose Table I compares with it
ROLES = frozenset({"unpaired"})  # of nobody unless asked: S3PET's table gives every row the same pairs
LEAST = 24  # pixels: D's smallest input
TILE_SLICES = 16


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published networks.

    Args:
        width: channels of PreNet's first convolution, doubled up to three times.
        downs: halvings of PreNet.
        rectifier_width: channels of AR-Net's first convolution, doubled three times.
        critic_width: channels of D's first convolution.
        lambda_l1: weight of L1 of the preliminary image.
        lambda_residual: weight of L1 of what AR-Net adds.
        lambda_spectrum: weight of the spectrum of the final image.
        lr: Adam's learning rate.
        betas: Adam's.
        samples: patches seen.
        patch: edge lengths (slices, y, x) in voxels; y and x multiples of 2^downs.  It may pass a volume.
        patches_per_case: patches of one case in a step.
    """

    width: Annotated[int, Range(1)] = 64
    downs: Annotated[int, Range(2, 10)] = 7
    rectifier_width: Annotated[int, Range(1)] = 64
    critic_width: Annotated[int, Range(1)] = 64
    lambda_l1: Annotated[float, Range(0)] = 100.0
    lambda_residual: Annotated[float, Range(0)] = 10.0
    lambda_spectrum: Annotated[float, Range(0)] = 10.0
    lr: Annotated[float, Range(above=0)] = 2e-4
    betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.5, 0.999)
    samples: Annotated[int, Range(1)] = 384_000
    patch: tuple[int, int, int] = (1, 128, 128)
    patches_per_case: Annotated[int, Range(1)] = 4

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "ar_gan")
        unit = 2**self.downs
        fits = self.patch[0] >= 1 and all(edge >= LEAST and edge % unit == 0 for edge in self.patch[1:])
        remedy = f"use (slices, y, x) with y and x multiples of {unit} of at least {LEAST} voxels, or fewer halvings"
        require(fits, "CFG_PATCH_SIZE", "patch", remedy)


class ARNet(nn.Module):
    """What is added to the preliminary image; 3,429,633 parameters with 64 channels, 215,361 with 16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        a, b, c, d = blocks.encoder_widths(width, 4)

        def block(before: int, after: int, activation: nn.Module) -> list[nn.Module]:
            return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), activation]

        def doubled(n: int) -> nn.Module:
            return nn.ConvTranspose2d(n, n, 2, stride=2, bias=False)

        leaky, relu = nn.LeakyReLU(blocks.SLOPE), nn.ReLU()
        encoder = [*block(1, a, leaky), nn.MaxPool2d(2), *block(a, b, leaky), nn.MaxPool2d(2)]
        encoder += [*block(b, c, leaky), *block(c, d, leaky)]
        decoder = [*block(d, c, relu), doubled(c), *block(c, b, relu), doubled(b), *block(b, a, relu)]
        self.layers = nn.Sequential(*encoder, *decoder, nn.Conv2d(a, 1, 3, padding=1), nn.Tanh())

    def forward(self, difference: Float[Tensor, "n 1 y x"]) -> Float[Tensor, "n 1 y x"]:
        rectified: Tensor = difference * self.layers(difference)
        return rectified


class Generator(nn.Module):
    """PreNet, 41,822,849 parameters, and AR-Net."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.preliminary = blocks.UNet(1, 1, width=config.width, downs=config.downs)
        self.rectify = ARNet(config.rectifier_width)

    def forward(self, low: Float[Tensor, "n 1 y x"]) -> tuple[Tensor, Tensor]:
        """Return the preliminary image and what is to be added to it."""
        image = self.preliminary(low)
        return image, self.rectify(image.detach() - low)


def spectrum(image: Float[Tensor, "n 1 y x"]) -> Float[Tensor, "n radii"]:
    """Return the mean power at every radius of frequency from 1 on, as a share of that at 0; from 0 to 1.

    A share above 1, which no image without negative values has, is 1.
    """
    power = torch.fft.fft2(image[:, 0]).abs().square().flatten(1)
    mean: Tensor = power @ _rings(image.shape[2], image.shape[3]).to(power)
    return torch.clamp(mean[:, 1:] / mean[:, :1].clamp(min=1e-6), max=1)


@cache
def _rings(height: int, width: int) -> Float[Tensor, "pixels radii"]:
    """Return the share of every pixel of a spectrum in the mean of its radius, up to the shorter edge's last one."""
    edge = min(height, width)
    y, x = (torch.fft.fftfreq(n)[:, None] * edge for n in (height, width))
    radius = (y.square() + x.T.square()).sqrt().round().flatten()
    inside: Tensor = (radius[:, None] == torch.arange(edge // 2)).float()
    return inside / inside.sum(0)


def spectrum_loss(image: Float[Tensor, "n 1 y x"], target: Float[Tensor, "n 1 y x"]) -> Float[Tensor, ""]:
    """Return the binary cross-entropy of the two spectra, the mean over radii (arXiv 2003.01826)."""
    return F.binary_cross_entropy(spectrum(image), spectrum(target))


def update(config: Config, G: Engine, D: Engine, batch: Batch, step: int) -> Metrics:
    """Update D and then both networks that make the image."""
    c = config
    low, full = assembly.as_slices(batch.source), assembly.as_slices(batch.target)
    G.module.train()
    image, residual = G(low)
    critic = assembly.update_discriminator(D, low, full, image, losses.least_squares_discriminator_loss)
    with D.frozen() as judge:
        (scores,) = judge(low, image)
        terms = {
            "adversarial": losses.least_squares_generator_loss(scores),
            "l1": F.l1_loss(image, full),
            "residual": F.l1_loss(residual, full - image.detach()),
            "spectrum": spectrum_loss(image + residual, full),
        }
        weights = (1.0, c.lambda_l1, c.lambda_residual, c.lambda_spectrum)
        loss = torch.stack([w * term for w, term in zip(weights, terms.values(), strict=True)]).sum()
        G.backward(loss)
    G.step()
    return {"discriminator": critic, **terms, "generator": loss}


def inference(config: Config, networks: Mapping[str, nn.Module]) -> assembly.WindowSynthesizer:
    """Return the final image, in windows of the training size that overlap by half."""
    _, y, x = config.patch
    tiling = Tiling((TILE_SLICES, y, x), (0, 0, 0), overlap=(0, y // 2, x // 2))

    def run(source: Tensor) -> Tensor:
        image, residual = networks["G"](assembly.as_slices(source))
        return (image + residual).reshape(source.shape)  # type: ignore[no-any-return]

    return assembly.WindowSynthesizer(networks["G"], tiling, run)


check, files = assembly.check_air_beyond, assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what this implementation rests on."""
    return (
        "AR-GAN: a re-implementation from the abstract and from public re-implementations; AR-Net's widths and the "
        "weights of the losses are not checked against the print.",
    )


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> assembly.Assembled:
    """Build networks and engines, one Adam each; ``patches_per_step`` counts the patches of all ranks."""
    adam = partial(torch.optim.Adam, lr=config.lr, betas=config.betas)
    G = make_engine(Generator(config), adam)
    D = make_engine(blocks.OfPairs(blocks.PatchGAN(2, width=config.critic_width)), adam)
    spec = BatchSpec(config.patch, (0, 0, 0), config.patches_per_case, {"body": 1.0}, beyond=True)
    phases = assembly.Phases({"train": assembly.steps_of(config.samples, patches_per_step)})
    step = partial(update, config, G, D)
    return assembly.Assembled({"G": G, "D": D}, step, spec, phases, {"G": "train"}, partial(inference, config))


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> assembly.WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    builds = {"G": partial(Generator, config)}
    return inference(config, assembly.networks_of(weights, builds, "weights of AR-GAN"))
