"""DSG-GAN after its abstract: two generators one after the other, structure first and then texture, from CT to PET.

H. Wang, X. Wang, F. Liu, G. Zhang, G. Zhang, Q. Zhang, M. L. Lang 2024, "DSG-GAN: A dual-stage-generator-based GAN for
cross-modality synthesis from PET to CT", Computers in Biology and Medicine 172, 108296.  No code was published and the
article is not open: this is written from its abstract, which names four parts (staged generation, an objective divided
between the stages, deep perceptual skip connections, a context-aware local discriminator) and no layer.  Scores are
those of this reading.  Deng, Nagamune and Takada compare their cascade with a network "DSGGAN", most likely this one.

Letters: x CT, y PET, G1 and G2 the stages, yhat_1 = G1(x), yhat_2 = G2(x, yhat_1), D the discriminator of pairs (x, .).

Readings:
    Direction   from CT to PET, as the cascade's paper uses it; the original goes from PET to CT.
    Stages      pix2pix's U-Nets with other skips.  G1 is trained to its end, then G2 on what G1 makes; G1 stays as it
                is then.
    Objective   G1, overall structure: MSE and 1 - SSIM.  G2, texture: L1, the adversarial loss, and L1 of D's hidden
                maps, which is the perceptual loss that needs no file of weights.
    Skips       the skip of a level selects from its own map and all deeper ones: these are brought to its size, mixed
                by a 1 x 1 convolution, and weighed by a gate per channel and a gate per pixel.
    D           scores windows of 16 pixels, each beside what a second, coarser branch sees around it.
    Images      CT by one window of HU and PET by one SUV to [-1, 1], tanh; Adam and batch norm as the cascade has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from storage.ranges import Range
from storage.source import HU
from trainers import assembly, blocks, losses
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, BatchSpec, Doses, Engine, EngineFactory, Metrics, Tiling
from trainers.systems.cascade import SAMPLER, ct_to_unit, pet_to_unit, unit_to_suv

FEED = FeedConfig(source=("ct",), suv_scale=1.0, cases_per_step=8)
PRESET = "cascade"
ROLES: frozenset[str] = frozenset()
LEAST = 32  # pixels: D's coarse branch halves four times and must not end at one
LOCAL, CONTEXT = (2, 1), (2, 2, 2, 2)  # strides of D's branches
TILE_SLICES, SLICES_AT_ONCE = 16, 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """The reading of the abstract; no number is the paper's.

    Args:
        width: channels of a stage's first convolution, doubled up to three times.
        downs: halvings of a stage.
        critic_width: channels of the first convolutions of D.
        lambda_mse: weight of G1's MSE.
        lambda_ssim: weight of G1's 1 - SSIM.
        lambda_l1: weight of G2's L1.
        lambda_adversarial: weight of G2's adversarial loss.
        lambda_features: weight of the L1 of D's hidden maps.
        lr: Adam's learning rate.
        betas: Adam's.
        ct_window: HU that become -1 and 1.
        suv_max: SUV that becomes 1; above, PET is clipped.
        structure_samples: windows that G1 sees.
        texture_samples: windows that G2 and D see.
        patch: edge lengths (slices, y, x) in voxels; y and x multiples of 2^downs, from 32.  It may pass a volume.
        patches_per_case: windows of one case in a step.
    """

    width: Annotated[int, Range(1)] = 64
    downs: Annotated[int, Range(2, 10)] = 8
    critic_width: Annotated[int, Range(1)] = 64
    lambda_mse: Annotated[float, Range(0)] = 100.0
    lambda_ssim: Annotated[float, Range(0)] = 1.0
    lambda_l1: Annotated[float, Range(0)] = 100.0
    lambda_adversarial: Annotated[float, Range(above=0)] = 1.0
    lambda_features: Annotated[float, Range(0)] = 10.0
    lr: Annotated[float, Range(above=0)] = 2e-4
    betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.5, 0.999)
    ct_window: tuple[float, float] = (-1000.0, 400.0)
    suv_max: Annotated[float, Range(above=0)] = 20.0
    structure_samples: Annotated[int, Range(1)] = 40_000
    texture_samples: Annotated[int, Range(1)] = 40_000
    patch: tuple[int, int, int] = (1, 256, 256)
    patches_per_case: Annotated[int, Range(1)] = 1

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "dsg_gan")
        require(self.ct_window[0] < self.ct_window[1], "CFG_RANGE", "ct_window", "give the lower HU first")
        remedy = "nothing would be learnt: give lambda_mse or lambda_ssim a weight above 0"
        require(self.lambda_mse + self.lambda_ssim > 0, "CFG_RANGE", "lambda_mse", remedy)
        unit = max(LEAST, 2**self.downs)
        fits = self.patch[0] >= 1 and all(edge >= unit and edge % unit == 0 for edge in self.patch[1:])
        remedy = f"use (slices, y, x) with y and x multiples of {unit} voxels, or fewer halvings (recipe.downs)"
        require(fits, "CFG_PATCH_SIZE", "patch", remedy)


class DeepSkip(nn.Module):
    """A deep perceptual skip connection: a selection from a level's map and all deeper ones.

    Args:
        widths: channels of these maps, the level's own first.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        own, *deeper = widths
        self.projections = nn.ModuleList(nn.Conv2d(channels, own, 1) for channels in deeper)
        self.mix = nn.Conv2d(own * len(widths), own, 1)
        self.channels, self.places = nn.Conv2d(own, own, 1), nn.Conv2d(own, 1, 1)

    def forward(self, own: Float[Tensor, "b c y x"], *deeper: Tensor) -> Float[Tensor, "b c y x"]:
        enlarged = [
            F.interpolate(project(x), own.shape[2:]) for project, x in zip(self.projections, deeper, strict=True)
        ]
        mixed = self.mix(torch.cat([own, *enlarged], dim=1))
        of_channels = self.channels(mixed.mean((2, 3), keepdim=True)).sigmoid()
        selected: Tensor = mixed * of_channels * self.places(mixed).sigmoid()
        return selected


class Stage(nn.Module):
    """G1, which sees the CT, or G2, which sees it and G1's image; 63,593,864 and 63,594,888 parameters.

    Args:
        inputs: images seen.
    """

    def __init__(self, config: Config, inputs: int) -> None:
        super().__init__()
        self.unet = blocks.UNet(inputs, 1, width=config.width, downs=config.downs)
        widths = blocks.encoder_widths(config.width, config.downs)
        self.skips = nn.ModuleList(DeepSkip(widths[level:]) for level in range(config.downs - 1))

    def forward(self, *images: Float[Tensor, "b 1 y x"]) -> Float[Tensor, "b 1 y x"]:
        maps = self.unet.encode(torch.cat(images, dim=1))
        skips = [skip(*maps[level:]) for level, skip in enumerate(self.skips)]
        image, _ = self.unet.decode(maps[-1], skips[::-1])
        return image.tanh()


class Discriminator(nn.Module):
    """D: windows, each scored beside what is around it; 2,900,097 parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local, self.context = (
            blocks.PatchGAN(2, width=width, strides=strides).layers[:-1] for strides in (LOCAL, CONTEXT)
        )
        channels = sum(blocks.encoder_widths(width, len(strides))[-1] for strides in (LOCAL, CONTEXT))
        self.score = nn.Conv2d(channels, 1, 4, padding=1)
        nn.init.normal_(self.score.weight, 0.0, blocks.INITIAL_SD)

    def forward(self, ct: Float[Tensor, "b 1 y x"], *images: Float[Tensor, "b 1 y x"]) -> tuple[Tensor, ...]:
        """Return the hidden map and the logits of every image, normed apart; two tensors for each."""
        found: list[Tensor] = []
        for image in images:
            pair = torch.cat([ct, image], dim=1)
            near = self.local(pair)
            around = F.interpolate(self.context(pair), near.shape[2:])
            hidden = torch.cat([near, around], dim=1)
            found += [hidden, self.score(hidden)]
        return tuple(found)


def discriminator_loss(*maps: Tensor) -> Float[Tensor, ""]:
    """Return D's loss from its maps of a real and a generated image."""
    _, real, _, fake = maps
    return losses.logistic_discriminator_loss(real, fake)


def structure_losses(config: Config, image: Tensor, target: Tensor) -> Metrics:
    """Return G1's loss and its terms; SSIM is that of the images in [0, 1]."""
    mse, unlike = F.mse_loss(image, target), 1 - losses.ssim((image + 1) / 2, (target + 1) / 2)
    return {"mse": mse, "unlike": unlike, "generator": config.lambda_mse * mse + config.lambda_ssim * unlike}


def update(config: Config, engines: Mapping[str, Engine], phases: assembly.Phases, batch: Batch, step: int) -> Metrics:
    """Update G1; or D and then G2, on what G1 makes."""
    c = config
    ct = ct_to_unit(assembly.as_slices(batch.source), c.ct_window)
    pet = pet_to_unit(assembly.as_slices(batch.target), c.suv_max)
    G1, G2, D = (engines[name] for name in ("G1", "G2", "D"))
    if phases.at(step) == "structure":
        G1.module.train()
        terms = structure_losses(c, G1(ct), pet)
        G1.backward(terms["generator"])
        G1.step()
        return terms
    G1.module.eval()
    with torch.no_grad(), G1.frozen() as first:
        structure = first(ct)
    G2.module.train()
    image = G2(ct, structure)
    critic = assembly.update_discriminator(D, ct, pet, image, discriminator_loss)
    with D.frozen() as judge:
        hidden, score, wanted, _ = judge(ct, image, pet)
        adversarial, l1 = losses.logistic_generator_loss(score), F.l1_loss(image, pet)
        features = F.l1_loss(hidden, wanted.detach())
        loss = c.lambda_adversarial * adversarial + c.lambda_l1 * l1 + c.lambda_features * features
        G2.backward(loss)
    G2.step()
    return {"discriminator": critic, "adversarial": adversarial, "l1": l1, "features": features, "generator": loss}


class InARow(nn.Module):
    """The stages that are trained, at inference: from CT to the last one's image."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, ct: Float[Tensor, "b 1 y x"]) -> Float[Tensor, "b 1 y x"]:
        images = [ct]
        for stage in self.stages:
            images.append(stage(*images))
        return images[-1]


def inference(config: Config, networks: Mapping[str, nn.Module]) -> assembly.WindowSynthesizer:
    """Return the stages on slices of HU, giving SUV, in windows of the training size that overlap by half."""
    c = config
    network = InARow(list(networks.values()))

    def run(source: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1 z y x"]:
        slices = ct_to_unit(assembly.as_slices(source), c.ct_window)
        image = torch.cat([network(part) for part in slices.split(SLICES_AT_ONCE)])
        return unit_to_suv(image, c.suv_max).reshape(source.shape)

    _, y, x = c.patch
    return assembly.WindowSynthesizer(network, Tiling((TILE_SLICES, y, x), (0, 0, 0), (0, y // 2, x // 2)), run)


def check(config: Config, feed: FeedConfig, doses: Doses) -> None:
    """Refuse a scale beside the system's own, and several images to start from.

    Raises:
        InputError: CFG_SCALE, CFG_INPUTS.
    """
    assembly.check_ct_to_suv(feed)


files = assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what this implementation rests on."""
    return (
        "DSG-GAN after its abstract: the article is not open; layers, weights and lengths are this reading's, and it "
        "is used from CT to PET, where the original goes from PET to CT.",
        f"SUV above {config.suv_max:g} cannot be synthesized.",
    )


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> assembly.Assembled:
    """Build networks and engines, one Adam each; ``patches_per_step`` counts the windows of all ranks."""
    c = config
    adam = partial(torch.optim.Adam, lr=c.lr, betas=c.betas)
    engines = {name: make_engine(Stage(c, inputs), adam) for name, inputs in (("G1", 1), ("G2", 2))}
    engines["D"] = make_engine(Discriminator(c.critic_width), adam)
    spec = BatchSpec(c.patch, (0, 0, 0), c.patches_per_case, SAMPLER, units=HU, beyond=True)
    lengths = {"structure": c.structure_samples, "texture": c.texture_samples}
    phases = assembly.Phases({name: assembly.steps_of(n, patches_per_step) for name, n in lengths.items()})
    begins = {"G1": "structure", "G2": "texture"}
    step = partial(update, c, engines, phases)
    return assembly.Assembled(engines, step, spec, phases, begins, partial(inference, c))


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> assembly.WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    builds = {name: partial(Stage, config, inputs) for name, inputs in (("G1", 1), ("G2", 2))}
    return inference(config, assembly.networks_of(weights, builds, "weights of DSG-GAN"))
