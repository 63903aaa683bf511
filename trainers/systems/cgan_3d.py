"""3D-cGAN: conditional GANs in 3D, each refining what the one before it made, from low dose to full dose.

Wang, Yu, Wang, Zu, Lalush, Lin, Wu, Zhou, Shen, Zhou 2018, "3D conditional generative adversarial networks for
high-quality PET image estimation at low dose", NeuroImage 174, 550-562, doi 10.1016/j.neuroimage.2018.03.045.  This is
written from the abstract, from notes of readers and from the parameter count of SGSGAN's Table I, not from the authors'
code.  Its stages: G_1 takes the low dose, G_k the image of G_{k-1}; each has a D of its own.

Readings: G has six convolutions 4^3 and six up-convolutions 2^3 of stride 2, 64 to 512 channels, batch norm and skips
that are concatenated: the one layout found that gives the 53.62 M of SGSGAN's table.  Dropout stands where pix2pix has
it, and is off at inference.  D has four convolutions 4^3 of stride 2 and one linear layer, and sees an image beside
what its G saw.  Cross-entropy, its half for D; L1 with weight 300, Adam at 2e-4 with beta1 0.5, 200 epochs whose second
half lowers the rate to 0 (from memory or a sister code, not checked against the print).  Stages are trained one after
the other; those before are then as at inference and do not move.  Two stages: the paper tries one and more.

Deviations: windows of whole bodies in SUV, drawn in the body, where the paper cuts 125 patches of a brain; at inference
they overlap by half and are blended, all stages inside one window.
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
from trainers import assembly, blocks, losses
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, BatchSpec, Engine, EngineFactory, Metrics, Tiling

FEED = FeedConfig(suv_scale=5.0, cases_per_step=4)
PRESET = "native"
ROLES: frozenset[str] = frozenset()
HALVED = 16  # voxels that D's four convolutions make one


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published networks.

    Args:
        stages: GANs in a row.
        width: channels of G's first convolution, doubled up to three times.
        downs: halvings of G.
        critic_width: channels of D's first convolution, doubled up to three times.
        lambda_l1: weight of the estimation error.
        lr: Adam's learning rate, constant for half of a stage's steps and then linear to 0.
        betas: Adam's.
        samples: patches that every stage sees: 200 epochs of 125 patches of 16 patients.
        patch: edge lengths (z, y, x) in voxels, multiples of 16 and of what G halves to one.
        patches_per_case: patches of one case in a step.
    """

    stages: Annotated[int, Range(1, 4)] = 2
    width: Annotated[int, Range(1)] = 64
    downs: Annotated[int, Range(2, 8)] = 6
    critic_width: Annotated[int, Range(1)] = 64
    lambda_l1: Annotated[float, Range(0)] = 300.0
    lr: Annotated[float, Range(above=0)] = 2e-4
    betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.5, 0.999)
    samples: Annotated[int, Range(1)] = 400_000
    patch: tuple[int, int, int] = (64, 64, 64)
    patches_per_case: Annotated[int, Range(1)] = 1

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "cgan_3d")
        unit = max(HALVED, 2**self.downs)
        fits = all(edge >= unit and edge % unit == 0 for edge in self.patch)
        require(fits, "CFG_PATCH_SIZE", "patch", f"use multiples of {unit} voxels, or fewer halvings (recipe.downs)")
        deepest = math.prod(edge // HALVED for edge in self.patch) * self.patches_per_case
        require(deepest > 1, "CFG_RANGE", "patches_per_case", "use 2 or more, or a longer patch: D's norms need voxels")


def generator(config: Config) -> nn.Module:
    """Build one G; 53,619,329 parameters."""
    return blocks.UNet(1, 1, width=config.width, downs=config.downs, dims=3, upsample="deconv2")


class Discriminator(nn.Module):
    """One score of a pair; 11,053,889 parameters for windows of 64^3."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        *_, deepest = blocks.encoder_widths(config.critic_width, 4)
        z, y, x = (edge // HALVED for edge in config.patch)
        self.layers = blocks.PatchGAN(2, width=config.critic_width, strides=(2, 2, 2, 2), dims=3).layers[:-1]
        self.score = nn.Linear(deepest * z * y * x, 1)

    def forward(self, *images: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1"]:
        score: Tensor = self.score(self.layers(torch.cat(images, dim=1)).flatten(1))
        return score


def update(config: Config, engines: Mapping[str, Engine], phases: assembly.Phases, batch: Batch, step: int) -> Metrics:
    """Update D and then G of one stage, on what the stages before it make."""
    phase = phases.at(step)
    G, D = engines[f"G{phase}"], engines[f"D{phase}"]
    first = phases.starts[phase]
    for engine in (G, D):
        engine.set_lr(config.lr * assembly.second_half_to_zero(step - first, phases.end(phase) - first))
    x = batch.source
    for earlier in range(1, int(phase)):
        engines[f"G{earlier}"].module.eval()
        with torch.no_grad(), engines[f"G{earlier}"].frozen() as before:
            x = before(x)
    G.module.train()
    image = G(x)
    critic = assembly.update_discriminator(D, x, batch.target, image, losses.logistic_discriminator_loss)
    with D.frozen() as judge:
        (score,) = judge(x, image)
        adversarial, l1 = losses.logistic_generator_loss(score), F.l1_loss(image, batch.target)
        loss = adversarial + config.lambda_l1 * l1
        G.backward(loss)
    G.step()
    return {"discriminator": critic, "adversarial": adversarial, "l1": l1, "generator": loss}


def inference(config: Config, networks: Mapping[str, nn.Module]) -> assembly.WindowSynthesizer:
    """Return the stages in a row, in windows of the training size that overlap by half."""
    z, y, x = config.patch
    return assembly.windows(
        nn.Sequential(*networks.values()), Tiling(config.patch, (0, 0, 0), (z // 2, y // 2, x // 2))
    )


check, files = assembly.accept_any_feed, assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what this implementation rests on."""
    return (
        f"3D-cGAN of {config.stages} stage(s): a re-implementation from the abstract, readers' notes and a published "
        "parameter count; the discriminator and the weights of the losses are not checked against the print.",
    )


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> assembly.Assembled:
    """Build two networks and their engines per stage; ``patches_per_step`` counts the patches of all ranks."""
    adam = partial(torch.optim.Adam, lr=config.lr, betas=config.betas)
    stages = [str(number) for number in range(1, config.stages + 1)]
    engines = {f"G{stage}": make_engine(generator(config), adam) for stage in stages}
    engines |= {f"D{stage}": make_engine(blocks.OfPairs(Discriminator(config)), adam) for stage in stages}
    spec = BatchSpec(config.patch, (0, 0, 0), config.patches_per_case, {"body": 1.0})
    phases = assembly.Phases(dict.fromkeys(stages, assembly.steps_of(config.samples, patches_per_step)))
    begins = {f"G{stage}": stage for stage in stages}
    step = partial(update, config, engines, phases)
    return assembly.Assembled(engines, step, spec, phases, begins, partial(inference, config))


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> assembly.WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    builds = {f"G{number}": partial(generator, config) for number in range(1, config.stages + 1)}
    return inference(config, assembly.networks_of(weights, builds, "weights of 3D-cGAN"))
