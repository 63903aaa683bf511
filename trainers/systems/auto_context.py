"""Auto-Context CNN: small networks on slices in a row, each seeing the image of the one before beside the low dose.

Xiang, Qiao, Nie, An, Lin, Wang, Shen 2017, "Deep auto-context convolutional neural networks for standard-dose PET image
estimation from low-dose PET/MRI", Neurocomputing 267, 406-416, doi 10.1016/j.neucom.2017.06.048.  This is written from
the abstract, from notes of readers and from a public implementation, not from the authors' code.

Readings: three networks of four convolutions 3 x 3 without padding, 64-64-64-1 channels, ReLU between them, the last
linear.  Network k > 1 sees the image of network k - 1 and the low dose cropped to its size.  Squared error of every
image against the full dose of its size; the weights' L2 of 5e-4 is Caffe's habit beside a sum over pixels, 1e-7 beside
the mean taken here.  Networks are trained one after the other, those before as they are, then all together on the sum
of the three errors.  Adam at 1e-4 on 32 slices; rate and batch size are not checked against the print.

Deviations: no MRI, which low-dose cohorts do not hold.  Kernels are (1, 3, 3), so that a volume is a stack of slices.
At inference windows are read with the 12 voxels around them that the convolutions take away, and equal the whole slice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from storage.ranges import Range
from trainers import assembly
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, BatchSpec, Engine, EngineFactory, Metrics, Tiling

FEED = FeedConfig(suv_scale=5.0, cases_per_step=8)
PRESET = "s3pet"  # whose Table I compares with it
ROLES = frozenset({"unpaired"})  # of nobody unless asked: S3PET's table gives every row the same pairs
LAYERS, KERNEL = 4, (1, 3, 3)
LOST = LAYERS  # voxels that one network takes off every side of a slice


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published networks.

    Args:
        stages: networks in a row.
        channels: of every layer but the last.
        lr: Adam's learning rate.
        weight_decay: L2 of the weights, beside the mean squared error.
        stage_samples: patches that every network is trained on by itself.
        joint_samples: patches that all are trained on together.
        patch: edge lengths (z, y, x) in voxels of what the first network sees; every network leaves 8 less of y and x.
            It may pass a volume.
        patches_per_case: patches of one case in a step.
    """

    stages: Annotated[int, Range(1, 10)] = 3
    channels: Annotated[int, Range(1)] = 64
    lr: Annotated[float, Range(above=0)] = 1e-4
    weight_decay: Annotated[float, Range(0)] = 1e-7
    stage_samples: Annotated[int, Range(1)] = 96_000
    joint_samples: Annotated[int, Range(0)] = 96_000
    patch: tuple[int, int, int] = (1, 128, 128)
    patches_per_case: Annotated[int, Range(1)] = 4

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "auto_context")
        least = 2 * LOST * self.stages + 1
        fits = self.patch[0] >= 1 and min(self.patch[1:]) >= least
        require(fits, "CFG_PATCH_SIZE", "patch", f"use (slices, y, x) with y and x of at least {least} voxels")


class CNN(nn.Sequential):
    """Four convolutions; 75,073 parameters with one input, 75,649 with two, 226,371 in three networks."""

    def __init__(self, inputs: int, channels: int) -> None:
        widths = (inputs, *[channels] * (LAYERS - 1), 1)
        layers = [[nn.Conv3d(before, after, KERNEL), nn.ReLU()] for before, after in pairwise(widths)]
        super().__init__(*[layer for block in layers for layer in block][:-1])


def beside(low: Float[Tensor, "b 1 z y x"], image: Tensor | None) -> Tensor:
    """Return what a network sees: the low dose, and before it the image of the network before, cropped alike."""
    return low if image is None else torch.cat([image, cropped_to(low, image)], dim=1)


def cropped_to(whole: Float[Tensor, "b 1 z y x"], image: Tensor) -> Tensor:
    """Return the middle of ``whole`` that is as large as ``image``."""
    return assembly.cropped(whole, [(n - m) // 2 for n, m in zip(whole.shape[2:], image.shape[2:], strict=True)])


class AutoContext(nn.Module):
    """Networks in a row; what they take off a slice is 4 voxels a side each."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, low: Float[Tensor, "b 1 z yh xh"]) -> Float[Tensor, "b 1 z y x"]:
        image: Tensor | None = None
        for network in self.networks.values():
            image = network(beside(low, image))
        assert image is not None
        return image


def update(engines: Mapping[str, Engine], phases: assembly.Phases, batch: Batch, step: int) -> Metrics:
    """Update one network on what those before it make, or all together."""
    phase = phases.at(step)
    if phase == "joint":
        return update_all(list(engines.values()), batch)
    image = None
    for name, engine in engines.items():
        if name == phase:
            break
        with torch.no_grad(), engine.frozen() as before:
            image = before(beside(batch.source, image))
    image = engines[phase](beside(batch.source, image))
    loss = F.mse_loss(image, cropped_to(batch.target, image))
    engines[phase].backward(loss)
    engines[phase].step()
    return {"loss": loss}


def update_all(engines: list[Engine], batch: Batch) -> Metrics:
    """Update all networks on the sum of their errors.

    Every engine has one backward pass of its own, from the last to the first: what a network is told by those after it
    is the gradient that they leave at its image.
    """
    seen: list[Tensor] = []  # images as the next network sees them
    images: list[Tensor] = []
    for engine in engines:
        images.append(engine(beside(batch.source, seen[-1] if seen else None)))
        seen.append(images[-1].detach().requires_grad_())
    losses = [F.mse_loss(image, cropped_to(batch.target, image)) for image in images]
    for engine, image, as_seen, loss in reversed(list(zip(engines, images, seen, losses, strict=True))):
        told = 0 if as_seen.grad is None else (image * as_seen.grad).sum()
        engine.backward(loss + told)
    for engine in engines:
        engine.step()
    return {"loss": losses[-1], "sum": torch.stack(losses).sum()}


def inference(networks: Mapping[str, nn.Module]) -> assembly.WindowSynthesizer:
    """Return the networks in a row, on windows with what they take away around them."""
    chain, halo = AutoContext(networks), LOST * len(networks)
    return assembly.WindowSynthesizer(chain, Tiling((16, 128, 128), (0, halo, halo)), run=chain)


check, files = assembly.check_air_beyond, assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what this implementation rests on."""
    return (
        "Auto-Context CNN: a re-implementation from the abstract, readers' notes and a public implementation, without "
        "the paper's MRI.",
    )


def networks(config: Config) -> dict[str, partial[CNN]]:
    """Return what makes every network, by the phase that trains it."""
    inputs = {f"stage{number}": min(number, 2) for number in range(1, config.stages + 1)}
    return {name: partial(CNN, count, config.channels) for name, count in inputs.items()}


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> assembly.Assembled:
    """Build the networks and their engines; ``patches_per_step`` counts the patches of all ranks."""
    adam = partial(torch.optim.Adam, lr=config.lr, weight_decay=config.weight_decay)
    engines = {name: make_engine(make(), adam) for name, make in networks(config).items()}
    steps = dict.fromkeys(engines, assembly.steps_of(config.stage_samples, patches_per_step))
    phases = assembly.Phases({**steps, "joint": assembly.steps_of(config.joint_samples, patches_per_step)})
    spec = BatchSpec(config.patch, (0, 0, 0), config.patches_per_case, {"body": 1.0}, beyond=True)
    begins = {name: name for name in engines}
    return assembly.Assembled(engines, partial(update, engines, phases), spec, phases, begins, inference)


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> assembly.WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    return inference(assembly.networks_of(weights, networks(config), "weights of Auto-Context CNN"))
