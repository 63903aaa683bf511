"""MedGAN: six U-Nets in a row against a discriminator whose hidden maps compare images too, and style-transfer losses.

Armanious, Jiang, Fischer, Küstner, Hepp, Nikolaou, Gatidis, Yang 2020, "MedGAN: Medical image translation using GANs",
Computerized Medical Imaging and Graphics 79, 101684, arXiv 1806.06397.  This is written from readers' notes and public
re-implementations, not from the authors' code.  CasNet is the generator, D the discriminator of pairs with a low dose.

Readings: CasNet is pix2pix's U-Net six times, trained end to end; D has windows of 16 pixels.  Three updates of CasNet
for one of D: here D is updated in every third step, on the image that CasNet has just been updated for.  Cross-entropy,
its half for D; 20 times the perceptual loss (L1 of the images and of D's hidden maps), 1e-4 times style (Gram matrices)
and content; Adam at 2e-4 with beta1 0.5.  Weights and rates are those of re-implementations, not checked against the
print.

Deviations: style and content by VGG16 up to relu4_3, where the paper has VGG-19; its weights are a file that the user
gives, and without one both must be switched off.  Images are linear, since SUV have no largest value.  Eight slices in
a step where the paper has one, since batch norm's statistics of one image are not those that running ones become.  At
inference windows of the training size overlap by half and are blended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from storage.ranges import Range
from trainers import assembly, blocks, losses, perceptual
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, BatchSpec, Engine, EngineFactory, Metrics, Tiling

FEED = FeedConfig(suv_scale=10.0, cases_per_step=8)  # SUV 0 to 10 is VGG16's window of 0 to 1
PRESET = "native"
ROLES: frozenset[str] = frozenset()
HIDDEN = 2  # maps of D before its logits
LEAST = 8  # pixels: D's smallest input, in powers of 2
TILE_SLICES = 16
REMEDY = (
    "give torchvision's ImageNet weights as a safetensors file with its digest (--set recipe.vgg16_file=... "
    "recipe.vgg16_sha256=...), or train without them (--set recipe.lambda_style=0 recipe.lambda_content=0)"
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published networks.

    Args:
        stages: U-Nets in a row.
        width: channels of a U-Net's first convolution, doubled up to three times.
        downs: halvings of a U-Net.
        critic_width: channels of D's first convolution.
        lambda_perceptual: weight of L1 of images and of D's hidden maps.
        lambda_style: weight of the differences between Gram matrices; above 0 needs VGG16's weights.
        lambda_content: weight of the squared differences between VGG16's maps; above 0 needs its weights.
        vgg16_file: safetensors file of VGG16's ImageNet weights, named as torchvision's.
        vgg16_sha256: SHA-256 of that file.
        g_steps: updates of CasNet for one of D.
        lr: Adam's learning rate.
        betas: Adam's.
        samples: patches seen.
        patch: edge lengths (slices, y, x) in voxels; y and x multiples of 2^downs.  It may pass a volume.
        patches_per_case: patches of one case in a step.
    """

    stages: Annotated[int, Range(1, 10)] = 6
    width: Annotated[int, Range(1)] = 64
    downs: Annotated[int, Range(2, 10)] = 8
    critic_width: Annotated[int, Range(1)] = 64
    lambda_perceptual: Annotated[float, Range(0)] = 20.0
    lambda_style: Annotated[float, Range(0)] = 1e-4
    lambda_content: Annotated[float, Range(0)] = 1e-4
    vgg16_file: str = ""
    vgg16_sha256: str = ""
    g_steps: Annotated[int, Range(1)] = 3
    lr: Annotated[float, Range(above=0)] = 2e-4
    betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.5, 0.999)
    samples: Annotated[int, Range(1)] = 384_000
    patch: tuple[int, int, int] = (1, 256, 256)
    patches_per_case: Annotated[int, Range(1)] = 1

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "medgan")
        unit = max(LEAST, 2**self.downs)
        fits = self.patch[0] >= 1 and all(edge >= unit and edge % unit == 0 for edge in self.patch[1:])
        remedy = f"use (slices, y, x) with y and x multiples of {unit} voxels, or fewer halvings (recipe.downs)"
        require(fits, "CFG_PATCH_SIZE", "patch", remedy)

    @property
    def perceives(self) -> bool:
        """Whether VGG16 is needed."""
        return self.lambda_style + self.lambda_content > 0


def casnet(config: Config) -> nn.Sequential:
    """Build CasNet; 326,446,854 parameters."""
    c = config
    return nn.Sequential(*(blocks.UNet(1, 1, width=c.width, downs=c.downs) for _ in range(c.stages)))


class Discriminator(nn.Module):
    """D, which also shows its hidden maps; 135,489 parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = blocks.PatchGAN(2, width=width, strides=(2, 1)).layers

    def forward(self, low: Float[Tensor, "n 1 y x"], *images: Float[Tensor, "n 1 y x"]) -> tuple[Tensor, ...]:
        """Return the two hidden maps and the logits of every image, normed apart; three maps for each."""
        maps = []
        for image in images:
            x = torch.cat([low, image], dim=1)
            for layer in self.layers:
                x = layer(x)
                if isinstance(layer, nn.LeakyReLU):
                    maps.append(x)
            maps.append(x)
        return tuple(maps)


def discriminator_loss(*maps: Tensor) -> Float[Tensor, ""]:
    """Return D's loss from its maps of a real and a generated image."""
    return losses.logistic_discriminator_loss(maps[HIDDEN], maps[-1])


def perceptual_loss(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the sum of the mean absolute differences of images and of D's hidden maps."""
    return torch.stack([F.l1_loss(a, b) for a, b in zip(maps, targets, strict=True)]).sum()


def style_loss(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the sum over VGG16's maps of the squared differences of Gram matrices over 4 d^2, the mean over slices."""
    terms = []
    for a, b in zip(maps, targets, strict=True):
        squared = (gram(a) - gram(b)).square().sum((1, 2)).mean()
        terms.append(squared / (4 * a.shape[1] ** 2))
    return torch.stack(terms).sum()


def gram(maps: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d d"]:
    """Return V V^T / (h w d), what the channels of a map have in common wherever it is."""
    v = maps.flatten(2)
    products: Tensor = v @ v.transpose(1, 2)
    return products / (v.shape[1] * v.shape[2])


def update(config: Config, G: Engine, D: Engine, vgg16: nn.Module | None, batch: Batch, step: int) -> Metrics:
    """Update CasNet, and in every third step D on its image."""
    c = config
    low, full = assembly.as_slices(batch.source), assembly.as_slices(batch.target)
    G.module.train()
    image = G(low)
    with D.frozen() as judge:
        maps = judge(low, image, full)
        (*hidden, scores), (*wanted, real) = maps[: HIDDEN + 1], maps[HIDDEN + 1 :]
        terms = {
            "adversarial": losses.logistic_generator_loss(scores),
            "perceptual": perceptual_loss([image, *hidden], [full, *wanted]),
        }
        if vgg16 is not None:
            terms |= vgg16_losses(vgg16.to(image.device), image, full)
        weights = {"perceptual": c.lambda_perceptual, "style": c.lambda_style, "content": c.lambda_content}
        loss = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        G.backward(loss)
    G.step()
    if (step + 1) % c.g_steps == 0:
        assembly.update_discriminator(D, low, full, image, discriminator_loss)
    # D's loss before its update, told in every step: the loop divides what it sums by the number of steps.
    return {"discriminator": losses.logistic_discriminator_loss(real, scores), **terms, "generator": loss}


def vgg16_losses(
    net: nn.Module, image: Float[Tensor, "n 1 y x"], full: Float[Tensor, "n 1 y x"]
) -> dict[str, Float[Tensor, ""]]:
    """Return style and content of slices, in network units; gradients reach ``image`` alone."""
    with torch.no_grad():
        targets = net(full)
    maps = net(image)
    return {"style": style_loss(maps, targets), "content": perceptual.feature_loss(maps, targets)}


def inference(config: Config, networks: Mapping[str, nn.Module]) -> assembly.WindowSynthesizer:
    """Return CasNet on slices, in windows of the training size that overlap by half."""
    _, y, x = config.patch
    return assembly.slicewise(networks["G"], Tiling((TILE_SLICES, y, x), (0, 0, 0), (0, y // 2, x // 2)))


check = assembly.check_air_beyond


def files(config: Config) -> dict[str, Path]:
    """Return VGG16's file where a loss needs it; raises InputError CFG_BACKBONE."""
    if not config.perceives:
        return {}
    file = Path(config.vgg16_file)
    perceptual.check_vgg16(file, config.vgg16_sha256, REMEDY)
    return {"vgg16_file": file}


def caveats(config: Config) -> tuple[str, ...]:
    """Say what this implementation rests on, and which losses it has."""
    terms = f"VGG16, SHA-256 {config.vgg16_sha256}, for the paper's VGG-19" if config.perceives else "none"
    return (
        f"MedGAN of {config.stages} U-Nets: a re-implementation from readers' notes and public re-implementations; the "
        "weights of the losses are not checked against the print.",
        f"Network of the style and content losses: {terms}.",
    )


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> assembly.Assembled:
    """Build networks and engines, one Adam each; ``patches_per_step`` counts the patches of all ranks."""
    adam = partial(torch.optim.Adam, lr=config.lr, betas=config.betas)
    engines = {"G": make_engine(casnet(config), adam), "D": make_engine(Discriminator(config.critic_width), adam)}
    vgg16 = None
    # A dry run on the meta device computes nothing; ``files`` has checked the file by then.
    if config.perceives and torch.get_default_device().type != "meta":
        vgg16 = perceptual.read_vgg16(Path(config.vgg16_file), config.vgg16_sha256, REMEDY)
    spec = BatchSpec(config.patch, (0, 0, 0), config.patches_per_case, {"body": 1.0}, beyond=True)
    phases = assembly.Phases({"train": assembly.steps_of(config.samples, patches_per_step)})
    step = partial(update, config, engines["G"], engines["D"], vgg16)
    return assembly.Assembled(engines, step, spec, phases, {"G": "train"}, partial(inference, config))


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> assembly.WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    builds = {"G": partial(casnet, config)}
    return inference(config, assembly.networks_of(weights, builds, "weights of MedGAN"))
