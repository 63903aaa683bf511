"""Cascaded U-Nets from CT to PET, and dense cascades: every stage sees all images before it, every image is scored.

Deng, Nagamune, Takada, "v31 Medical Image Synthesis from CT to PET using Convolutional Neural Network".  No code was
published; this is written from the text.  Letters: x CT, y real PET, N stages, G_k stage k, yhat_k its output, D the
discriminator on pairs (x, .).  The plain cascade is yhat_1 = G_1(x), yhat_k = G_k(yhat_{k-1}): from stage 2 on the CT
is seen through yhat_{k-1} alone.  Only yhat_N is scored.

This file holds the configuration, networks, losses, the order of updates and the choice of the epoch that is kept.
Random numbers (initial weights, dropout) come from torch's default generator, which the loop seeds per step.

Errors of the print, corrected:
    Table 1     Encoder 3 gives 512 channels where Encoder 4 takes 256: it gives 256, as Decoder 5 needs.
    Sec. 3      the text's block (two 3 x 3 convolutions, max pooling) is U-Net's; only pix2pix's layers (4 x 4, stride
                2) have Table 2's number of parameters: N times 54,413,955, within 0.003 % of every printed number.
    Sec. 4      the split counts images, two of which are a pair: 400 pairs for training, 64 for test.

Readings where the text is silent:
    Visual Block  "another non-linearity" is pix2pix's tanh, every stage has one, and images lie in [-1, 1].  Sigmoid is
                not offered: brought to [-1, 1] it is tanh of half its argument.
    Images      CT by one window of HU, PET by one SUV, grey in three channels (the coloured artefacts of Sec. 4 show
                that there were three); a PET is the mean of the three.  A window per image would destroy SUV.
    Losses      "MSE and adversarial loss": pix2pix's with MSE for its L1, 100 : 1; D is its PatchGAN of 70 pixels.
    Dense       Table 4 has a network "DSGGAN" with "dense connections and segmented optimisation at the output of every
                stage".  Read literally: every stage sees the CT and all images before it, every image is scored, one D
                scores all.  The paper gives neither wiring nor N; two more wirings examine its sentence that skips are
                "replaced by depth-aware connections".  These are called dense cascades here: the name in the table is
                more likely that of DSG-GAN, a published network of two stages (``dsg_gan``).
    Epochs      Table 4 is the best of more than 200 epochs on the test set, for each score another.  Here one epoch is
                kept, that of the best PSNR on validation patients.  SSIM, PSNR and MAE of every epoch (Fig. 2 to 4) are
                told for training and for validation patients.

Deviations, because this trains on whole volumes at native resolution:
    Windows of slices at the PET's own spacing; half of them centred by uptake, the others in the body or anywhere.
    Batch norm uses running statistics at inference and dropout is off, where pix2pix has both as in training: a voxel
            is to depend on its window alone, and twice the same.  A step sees eight windows (the paper's number is not
            known), since the statistics of one image are not those that running ones become.
    At inference the network runs at the size of its training windows only; larger slices are covered by windows that
            overlap by half and are blended.  Of a larger image it would see more than ever in training; where the
            bottleneck is one pixel, as published, 12 of the 16 taps of its layers would even be as they were drawn.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from storage.ranges import Range
from storage.source import HU
from trainers import assembly, hu_table
from trainers.blocks import INITIAL_SD, PatchGAN, UNet, Upsample, encoder_widths
from trainers.feed_config import FeedConfig
from trainers.hu_table import RANGES, RunningSums, SuvCurve
from trainers.losses import (
    SSIM_EDGE,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    logistic_discriminator_loss,
    logistic_generator_loss,
    ssim,
)
from trainers.recipe import Batch, BatchSpec, Departure, Doses, Engine, EngineFactory, Metrics, State, Tiling

FEED = FeedConfig(source=("ct",), suv_scale=1.0, cases_per_step=8)
PRESET = "cascade"
ROLES = frozenset({"validation"})
LATER = frozenset({"suv_curve", "residual", "table_samples"})
PRACTICE = (
    Departure("feed.tilt_deg", 15.0, "tilts"),
    Departure("feed.scaling", 0.15, "changes of scale"),
    Departure("recipe.suv_curve", "sqrt", "the square root of SUV"),
    Departure("recipe.residual", "hu", "a residual on the mean SUV of every HU"),
)
TABLE = "table"  # the phase before the training where there is a residual, and the buffer of G that it fills
SAMPLER = {"uptake": 0.5, "body": 0.4, "uniform": 0.1}
SLICES = 3  # channels of a 2D stage
TILE_SLICES, SLICES_AT_ONCE = 16, 2  # of a tile, and in the network: 0.1 GB of feature maps at 256 x 256 pixels
WIRINGS = {"images": "A (images)", "images+skips": "B (images and skips)", "replace_skips": "C (replaced skips)"}

Mode = Literal["2d", "2.5d", "3d"]
Dense = Literal["none", "images", "images+skips", "replace_skips"]
LossAt = Literal["last", "all"]
GanMode = Literal["vanilla", "lsgan"]
OutAct = Literal["tanh", "linear"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published system with one stage; ``Config(stages=2, dense="images", loss_at="all")`` is a dense cascade.

    Args:
        stages: N, encoder-decoders in a chain, 1 to 10 (Table 4).
        mode: ``2d`` one slice in three equal channels (Table 1: 3 channels); ``2.5d`` a slice and its two neighbours,
            the same network; at inference a slice's three predictions are averaged, 1/4, 1/2, 1/4; ``3d`` one channel
            and 3D convolutions.  The paper has the first alone.
        patch: edge lengths (z, y, x) in voxels of the windows; z is 1 in 2d and 3 in 2.5d.  The paper is silent: 256
            is what its eight halvings reduce to one pixel.  A window may pass the volume but in 3d, where CT continues
            beyond a scan's ends and PET does not.
        width: channels of the first convolution (Table 1).
        downs: halvings (Table 1).
        upsample: ``deconv`` as published, ``deconv2`` as 3D-cGAN has it; ``resize3`` and ``resize4`` start without the
            checkerboards of the first (Sec. 4 has them at 3, 4, 5 and 7 stages).
        dense: what stage k sees beside yhat_{k-1}: ``images`` the CT and all images before (wiring A);
            ``images+skips`` besides, skips mixed by 1 x 1 convolutions from all encoders up to its own (B);
            ``replace_skips`` as A, with the decoder of stage k-1 in place of its own encoder in the skips (C).
        loss_at: images that are scored, the ``last`` (Sec. 3.1) or ``all`` alike ("segmented optimisation").
        stop_gradient_between_stages: every stage learns by its own loss alone, the other reading of that term.
        lambda_mse: weight of the MSE; the paper is silent (pix2pix's weight of its L1).
        lambda_adversarial: weight of the adversarial loss; the paper is silent (pix2pix's).  0 trains without D.
        gan_mode: ``vanilla`` cross-entropy (pix2pix) or ``lsgan`` least squares; the paper is silent.
        out_act: after every Visual Block; ``linear`` also lets the images pass suv_max.
        lr: Adam's learning rate (Sec. 4), constant.
        betas: Adam's; the paper is silent (pix2pix's).
        ct_window: HU that become -1 and 1; the paper is silent.
        suv_max: SUV that becomes 1, clipped above with ``tanh``; the paper is silent.
        suv_curve: what of SUV / suv_max the networks make, itself or its square root (not the paper's), in which the
            body is not all near -1; a synthesized PET is in SUV either way.
        residual: what the image of every stage is added to: nothing, as published, or the mean SUV of the voxel's HU in
            the training cases (not the paper's), fitted in a phase of its own; stages then start at 0.
        table_samples: windows that this table is fitted on, where there is a residual.
        critic_width: channels of D's first convolution; the paper is silent (pix2pix's).
        critic_strides: of D's convolutions but the last; the paper is silent (pix2pix's: 70 pixels).
        activation_checkpointing: make feature maps again in the backward pass, which keeps those of one stage at a time
            in memory for a third more time; changes no number.
        epoch_samples: windows of an epoch, after which validation scores are made (Table 3: 400 pairs).
        epochs: epochs trained (Sec. 4: more than 200).
        patches_per_case: windows of one case in a step.
        validate_batches: batches behind one validation score (64 windows with ``FEED``, Table 3's 64 test pairs).
    """

    stages: Annotated[int, Range(1, 10)] = 1
    mode: Mode = "2d"
    patch: tuple[int, int, int] = (1, 256, 256)
    width: Annotated[int, Range(1)] = 64
    downs: Annotated[int, Range(2, 10)] = 8
    upsample: Upsample = "deconv"
    dense: Dense = "none"
    loss_at: LossAt = "last"
    stop_gradient_between_stages: bool = False
    lambda_mse: Annotated[float, Range(0)] = 100.0
    lambda_adversarial: Annotated[float, Range(0)] = 1.0
    gan_mode: GanMode = "vanilla"
    out_act: OutAct = "tanh"
    lr: Annotated[float, Range(above=0)] = 1e-3
    betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.5, 0.999)
    ct_window: tuple[float, float] = (-1000.0, 400.0)
    suv_max: Annotated[float, Range(above=0)] = 20.0
    suv_curve: SuvCurve = "linear"
    residual: Literal["none", "hu"] = "none"
    table_samples: Annotated[int, Range(1)] = 200
    critic_width: Annotated[int, Range(1)] = 64
    critic_strides: tuple[int, ...] = (2, 2, 2, 1)
    activation_checkpointing: bool = False
    epoch_samples: Annotated[int, Range(1)] = 400
    epochs: Annotated[int, Range(1)] = 200
    patches_per_case: Annotated[int, Range(1)] = 1
    validate_batches: Annotated[int, Range(1)] = 8

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "cascade")
        remedy = "nothing would be learnt: give lambda_mse or lambda_adversarial a weight above 0"
        require(self.lambda_mse + self.lambda_adversarial > 0, "CFG_RANGE", "lambda_mse", remedy)
        lower, upper = self.ct_window
        require(lower < upper, "CFG_RANGE", "ct_window", "give the lower HU first: (-1000, 400)")
        remedy = "connections need stages to connect: --set recipe.stages=2, or recipe.dense=none"
        require(self.dense == "none" or self.stages > 1, "CFG_RANGE", "dense", remedy)
        remedy = "stages before the last would learn nothing: --set recipe.loss_at=all"
        stopped = self.stop_gradient_between_stages and self.stages > 1 and self.loss_at == "last"
        require(not stopped, "CFG_RANGE", "stop_gradient_between_stages", remedy)
        self._require_patch(require)

    def _require_patch(self, require: Callable[[bool, str, str, str], None]) -> None:
        """Refuse windows that the networks cannot halve."""
        z, y, x = self.patch
        depth = {"2d": 1, "2.5d": SLICES}.get(self.mode, z)
        remedy = f"{self.mode} trains on {depth} slices: --set recipe.patch={depth},{y},{x}"
        require(z == depth, "CFG_PATCH_SIZE", "patch", remedy)
        unit = 2**self.downs
        fits = max((n for n in range(2, self.downs) if all(edge % 2**n == 0 for edge in self.halved)), default=0)
        remedy = f"use multiples of {unit}, as {self.downs} halvings need" + (
            f", or --set recipe.downs={fits}" if fits else ""
        )
        require(all(edge >= unit and edge % unit == 0 for edge in self.halved), "CFG_PATCH_SIZE", "patch", remedy)
        strides = self.critic_strides
        remedy = "use strides of 1 and 2, as (2, 1) of 16 pixels"
        require(len(strides) > 0 and set(strides) <= {1, 2}, "CFG_RANGE", "critic_strides", remedy)
        remedy = f"D would have nothing left of a window of {min(self.halved)}: use fewer or smaller strides, as (2, 1)"
        require(logits(min(self.halved), strides) >= 1, "CFG_RANGE", "critic_strides", remedy)

    @property
    def halved(self) -> tuple[int, ...]:
        """Edges that the networks halve."""
        return self.patch if self.mode == "3d" else self.patch[1:]

    @property
    def dims(self) -> Literal[2, 3]:
        """Dimensions of the convolutions."""
        return 3 if self.mode == "3d" else 2

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return 1 if self.mode == "3d" else SLICES

    @property
    def stage_weights(self) -> tuple[float, ...]:
        """w_k, the share of every stage's image in the loss."""
        return (1.0,) * self.stages if self.loss_at == "all" else (0.0,) * (self.stages - 1) + (1.0,)

    @property
    def variant(self) -> str:
        """Which of the paper's networks this is, as far as the paper tells them apart."""
        if self.dense != "none" and self.loss_at == "all":
            name = f"dense cascade, wiring {WIRINGS[self.dense]}, {self.stages} stages"
        else:
            name = f"cascade of {self.stages} stage{'s' if self.stages > 1 else ''}"
            name += f" with dense wiring {WIRINGS[self.dense]}" if self.dense != "none" else ""
            name += ", loss at every stage" if self.loss_at == "all" and self.stages > 1 else ""
        name += ", every stage trained by its own loss" if self.stop_gradient_between_stages else ""
        name += f", {self.mode}" if self.mode != "2d" else ""
        return name + ("" if self.lambda_adversarial else ", without discriminator")


def logits(edge: int, strides: Sequence[int]) -> int:
    """Return how many windows D scores along an axis of ``edge`` voxels: 30 of 256 with pix2pix's strides."""
    for stride in (*strides, 1):
        edge = (edge - 2) // stride + 1
    return edge


# Images


def ct_to_unit(hu: Tensor, window: tuple[float, float]) -> Tensor:
    """Bring HU to [-1, 1], clipped to the window."""
    lower, upper = window
    return 2 * (hu.clamp(lower, upper) - lower) / (upper - lower) - 1


def unit_to_hu(ct: Tensor, window: tuple[float, float]) -> Tensor:
    """Undo ``ct_to_unit``, inside the window."""
    lower, upper = window
    return lower + (upper - lower) * (ct + 1) / 2


def pet_to_unit(suv: Tensor, suv_max: float, act: OutAct = "tanh", curve: SuvCurve = "linear") -> Tensor:
    """Bring SUV to [-1, 1]: 2 clip(SUV, 0, suv_max) / suv_max - 1, not clipped above where outputs are not bounded.

    With ``sqrt`` the root of the quotient takes its place.
    """
    clipped = suv.clamp(0, suv_max if act == "tanh" else None)
    return 2 * clipped / suv_max - 1 if curve == "linear" else 2 * (clipped / suv_max).sqrt() - 1


def unit_to_suv(image: Tensor, suv_max: float, curve: SuvCurve = "linear") -> Tensor:
    """Undo ``pet_to_unit``."""
    return suv_max * (image + 1) / 2 if curve == "linear" else suv_max * ((image.clamp(min=-1) + 1) / 2).square()


def to_channels(volume: Float[Tensor, "b 1 z y x"], mode: Mode) -> Tensor:
    """Return windows as the networks take them: (b, 3, y, x), in 3d as they are."""
    if mode == "3d":
        return volume
    slices = volume[:, 0]
    return slices.expand(-1, SLICES, -1, -1) if mode == "2d" else slices


# Sec. 3.1  Cascade


class Stage(nn.Module):
    """One encoder-decoder (Fig. 1, Table 1): 54,413,955 parameters in 2D where it sees one image.

    Args:
        number: k, from 1.
    """

    def __init__(self, config: Config, number: int) -> None:
        super().__init__()
        c = config
        self.dense, self.act = c.dense, c.out_act
        inputs = c.channels * (1 if c.dense == "none" else number)
        self.unet = UNet(inputs, c.channels, width=c.width, downs=c.downs, dims=c.dims, upsample=c.upsample)
        self.mixes = nn.ModuleList()
        if c.dense == "images+skips" and number > 1:
            conv = nn.Conv2d if c.dims == 2 else nn.Conv3d
            for channels in encoder_widths(c.width, c.downs)[-2::-1]:
                mix = conv(number * channels, channels, 1)
                nn.init.normal_(mix.weight, 0.0, INITIAL_SD)
                nn.init.zeros_(mix.bias)  # type: ignore[arg-type]
                self.mixes.append(mix)

    def forward(
        self, x: Float[Tensor, "b c *space"], before: Sequence[Sequence[Tensor]]
    ) -> tuple[Float[Tensor, "b o *space"], list[Tensor]]:
        """Return the image, and the feature maps that later stages ask for, the smallest first.

        Args:
            before: these maps of every stage before.
        """
        *features, bottleneck = self.unet.encode(x)
        own = skips = features[::-1]
        if before and self.dense == "images+skips":
            skips = [mix(torch.cat(level, dim=1)) for mix, *level in zip(self.mixes, *before, own, strict=True)]
        elif before and self.dense == "replace_skips":
            skips = list(before[-1])
        image, decoded = self.unet.decode(bottleneck, skips)
        image = torch.tanh(image) if self.act == "tanh" else image
        return image, {"images+skips": own, "replace_skips": decoded}.get(self.dense, [])


class Cascade(nn.Module):
    """G: the stages in a chain.  Parameters of N = 3, 6, 10: 163,241,865; 326,483,730; 544,139,550 (Table 2)."""

    table: Tensor | None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense, self.stop = config.dense, config.stop_gradient_between_stages
        self.again, self.ct_window = config.activation_checkpointing, config.ct_window
        self.stages = nn.ModuleList(Stage(config, number) for number in range(1, config.stages + 1))
        # On the scale of ``pet_to_unit``; filled when its phase ends.
        self.register_buffer(TABLE, torch.zeros(RANGES) if config.residual == "hu" else None)
        if config.residual == "hu":
            for stage in self.stages:
                assert isinstance(stage, Stage)
                for parameter in stage.unet.image.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, ct: Float[Tensor, "b c *space"]) -> tuple[Tensor, ...]:
        """Return yhat_1 to yhat_N, each (b, c, *space) on the scale of ``pet_to_unit``."""
        images: list[Tensor] = []
        seen: list[Tensor] = []  # the images as later stages see them
        before: list[list[Tensor]] = []
        for stage in self.stages:
            x = torch.cat([ct, *seen], dim=1) if self.dense != "none" else seen[-1] if seen else ct
            image, features = self._run(stage, x, before)
            if self.table is not None:
                image = self.table[hu_table.ranges(unit_to_hu(ct, self.ct_window))] + image
            images.append(image)
            seen.append(image.detach() if self.stop else image)
            if features:
                before = [*before, [f.detach() for f in features] if self.stop else features]
        return tuple(images)

    def _run(self, stage: nn.Module, x: Tensor, before: list[list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        if self.again and torch.is_grad_enabled():
            contexts = partial(_second_pass, stage)
            result = checkpoint(stage, x, before, use_reentrant=False, context_fn=contexts)
        else:
            result = stage(x, before)
        image, features = result
        return image, features


def _second_pass(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _kept_statistics(stage)


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Let a second forward pass count into copies: batch norm's running statistics have had this batch already."""
    buffers = [(owner, name, value) for owner in module.modules() for name, value in owner.named_buffers(recurse=False)]
    for owner, name, value in buffers:
        setattr(owner, name, value.clone())
    try:
        yield
    finally:
        for owner, name, value in buffers:
            setattr(owner, name, value)


class Discriminator(nn.Module):
    """D: pix2pix's PatchGAN on CT and PET side by side; 2,768,705 parameters in 2D.  Every image is normed apart."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = config
        self.net = PatchGAN(2 * c.channels, width=c.critic_width, strides=c.critic_strides, dims=c.dims)

    def forward(self, ct: Float[Tensor, "b c *space"], *images: Float[Tensor, "b c *space"]) -> tuple[Tensor, ...]:
        """Return the logits of every image, each (b, 1, *windows)."""
        return tuple(self.net(ct, image) for image in images)


# Losses


def discriminator_loss(real: Tensor, fakes: Sequence[Tensor], mode: GanMode) -> Float[Tensor, ""]:
    """Return D's loss, half of what real and generated images cost it, the mean over the scored stages."""
    if mode == "vanilla":
        losses = [logistic_discriminator_loss(real, fake) for fake in fakes]
    else:
        losses = [least_squares_discriminator_loss(real, fake) for fake in fakes]
    return torch.stack(losses).mean()


def adversarial_loss(fake: Tensor, mode: GanMode) -> Float[Tensor, ""]:
    """Return what a generated image costs G: -log D, or (D - 1)^2."""
    return logistic_generator_loss(fake) if mode == "vanilla" else least_squares_generator_loss(fake)


def total(config: Config, mse: Sequence[Tensor], adversarial: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return sum_k w_k (lambda_mse L_mse(k) + lambda_adversarial L_adv(k)) over the scored stages, in their order.

    Args:
        adversarial: empty without D.
    """
    c = config
    weights = [weight for weight in c.stage_weights if weight]
    loss = torch.stack([w * c.lambda_mse * term for w, term in zip(weights, mse, strict=True)]).sum()
    for w, term in zip(weights, adversarial, strict=False):
        loss = loss + w * c.lambda_adversarial * term
    return loss


def scores(image: Float[Tensor, "b c *space"], target: Float[Tensor, "b c *space"]) -> Metrics:
    """Return PSNR in dB, SSIM and MAE of images in [0, 1] (Table 4), means over images; SSIM is that of axial slices.

    Without SSIM where a slice is smaller than its window of 11 x 11.
    """
    found = {"psnr": psnr(image, target), "mae": F.l1_loss(image, target)}
    if min(image.shape[-2:]) >= SSIM_EDGE:
        found["ssim"] = ssim(image, target)
    return found


def psnr(image: Float[Tensor, "b c *space"], target: Float[Tensor, "b c *space"]) -> Float[Tensor, ""]:
    """Return 10 log10(1 / MSE) in dB of images in [0, 1], the mean over images (Sec. 2, Table 4); at most 100."""
    mse = (image - target).square().flatten(2).mean(2)
    return -10 * mse.clamp(min=1e-10).log10().mean()


# Sec. 4  Training


class CascadeGAN:
    """The system in training: ``trainers.recipe.Recipe`` and ``trainers.recipe.Validated``."""

    def __init__(self, config: Config, G: Engine, D: Engine | None, patches_per_step: int) -> None:
        self.config = config
        self.G, self.D = G, D
        self.engines = assembly.present({"G": G, "D": D})
        c = config
        self.validate_every = assembly.steps_of(c.epoch_samples, patches_per_step)
        self.validate_batches = c.validate_batches
        spec = partial(
            BatchSpec,
            patch=c.patch,
            halo=(0, 0, 0),
            patches_per_case=c.patches_per_case,
            units=HU,
            # Beyond a scan's ends CT is repeated and PET is 0, which would teach that a body has no uptake.
            beyond=c.mode != "3d",
        )
        self._batch_spec = spec(sampler=SAMPLER)
        self.validation_batch = spec(sampler={"body": 1.0})
        self._best: dict[str, Tensor] = {}  # weights of the best epoch
        self._best_psnr, self._best_step = -math.inf, 0
        steps = assembly.steps_of(c.table_samples, patches_per_step) if c.residual == "hu" else 0
        phases = assembly.Phases({TABLE: steps, "train": c.epochs * self.validate_every})
        self.sums = RunningSums(hu_table.no_voxels((RANGES,)))
        self.num_steps, self.phase_starts, self.phase = phases.num_steps, phases.starts, phases.at

    def batch_spec(self, step: int) -> BatchSpec:
        """Return which patches every step reads: windows of CT in HU and of PET."""
        return self._batch_spec

    def step(self, batch: Batch, step: int) -> Metrics:
        """Update D on detached images, then G against the updated D (pix2pix's order); before, add to the table."""
        c = self.config
        if self.phase(step) == TABLE:
            return self._table_step(batch)
        if c.residual == "hu" and step == self.phase_starts["train"]:
            suv = hu_table.table_of(self.sums.state())
            assembly.set_weights(self.G, {TABLE: pet_to_unit(suv, c.suv_max, c.out_act, c.suv_curve)})
        self.G.module.train()
        ct, pet = self._images(batch)
        images = self.G(ct)  # once: a second pass would count twice in the running statistics
        scored = [image for image, weight in zip(images, c.stage_weights, strict=True) if weight]
        metrics: Metrics = {}
        if self.D is not None:
            real, *fakes = self.D(ct, pet, *(image.detach() for image in scored))
            metrics["discriminator"] = discriminator_loss(real, fakes, c.gan_mode)
            self.D.backward(metrics["discriminator"])
            self.D.step()
        mse = [F.mse_loss(image, pet) for image in scored]
        adversarial: list[Tensor] = []
        with nullcontext() if self.D is None else self.D.frozen() as D:
            if D is not None:
                adversarial = [adversarial_loss(logits, c.gan_mode) for logits in D(ct, *scored)]
                metrics["adversarial"] = adversarial[-1]
            loss = total(c, mse, adversarial)
            self.G.backward(loss)
        self.G.step()
        clipped = (batch.target > c.suv_max).float().mean()
        metrics |= {"mse": mse[-1], "generator": loss, "clipped": clipped}
        metrics |= scores(*(self._grey(t.detach()) for t in (images[-1], pet)))
        return {name: value.detach() for name, value in metrics.items()}

    def _table_step(self, batch: Batch) -> Metrics:
        c = self.config
        hu = unit_to_hu(ct_to_unit(batch.source, c.ct_window), c.ct_window)  # as G sees it, to the last bit
        self.sums.add(hu_table.ranges(hu), batch.target)
        return {"suv": batch.target.mean()}

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return x and y as the networks take them."""
        c = self.config
        ct = to_channels(ct_to_unit(batch.source, c.ct_window), c.mode)
        return ct, to_channels(pet_to_unit(batch.target, c.suv_max, c.out_act, c.suv_curve), c.mode)

    def _grey(self, image: Tensor) -> Tensor:
        """Return a synthesized or real PET as SUV / suv_max in [0, 1], without colour."""
        image = image.mean(1, keepdim=True) if self.config.mode == "2d" else image
        share = (image.clamp(-1, 1) + 1) / 2
        return share if self.config.suv_curve == "linear" else share.square()

    @torch.no_grad()
    def validate(self, batch: Batch) -> Metrics:
        """Score yhat_N of one batch as at inference, images in [0, 1]; in 2d also how far its channels differ, in SUV.

        The coloured artefacts of Sec. 4 are such a difference; the synthesized PET is the channels' mean.
        """
        c = self.config
        self.G.module.eval()
        ct, pet = self._images(batch)
        with self.G.frozen() as G:
            image = G(ct)[-1]
        colour = {}
        if c.mode == "2d":
            spread = image if c.suv_curve == "linear" else unit_to_suv(image, 2.0, c.suv_curve)
            colour["colour_suv"] = c.suv_max / 2 * spread.std(1, correction=0).mean()
        image, pet = self._grey(image), self._grey(pet)
        return {**scores(image, pet), "mse": F.mse_loss(image, pet), **colour}

    def observe(self, step: int, scores: Mapping[str, float]) -> int:
        """Keep this epoch's weights where its PSNR is the best so far (collective)."""
        if self.phase(step - 1) == TABLE:
            return step
        if scores["psnr"] > self._best_psnr:
            self._best = {name: value.cpu() for name, value in assembly.weights_of(self.G).items()}
            self._best_psnr, self._best_step = scores["psnr"], step
        return step

    def weights(self) -> dict[str, Tensor]:
        """Return G's weights and running statistics of the best epoch, or the present ones before any was scored."""
        return dict(self._best) or assembly.weights_of(self.G)

    def synthesizer(self) -> "CascadeSynthesizer":
        """Return G at inference, sharing its current weights."""
        return CascadeSynthesizer(self.G.module, self.config)

    def state(self) -> State:
        """Return the states of G and D, the best epoch's weights with its score and step, and the table's sums."""
        numbers = {"psnr": self._best_psnr, "step": self._best_step}
        best = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        own = {TABLE: self.sums.state()} if self.config.residual == "hu" else {}
        return (
            assembly.states(self.engines)
            | {"best": best | {f"weight/{name}": value for name, value in self._best.items()}}
            | own
        )

    def load(self, state: State) -> None:
        """Continue from ``state``."""
        assembly.load_states(self.engines, state)
        best = state["best"]
        self._best_psnr, self._best_step = float(best["psnr"]), int(best["step"])
        start = "weight/"
        self._best = {key.removeprefix(start): v.clone() for key, v in best.items() if key.startswith(start)}
        if self.config.residual == "hu":
            self.sums.load(state[TABLE])


@dataclass(frozen=True)
class CascadeSynthesizer:
    """The cascade at inference: ``trainers.recipe.Synthesizer``, from HU to SUV.

    The whole cascade runs inside one window of the training size: stitching between stages would show later ones what
    they were not trained on.  A slice that fits is one window.
    """

    network: nn.Module
    config: Config
    context_batch: None = None

    @property
    def tiling(self) -> Tiling:
        """Windows of the training size that overlap by half; slices do not, but 2.5d reads two more at either end."""
        z, y, x = self.config.patch
        if self.config.mode == "3d":
            return Tiling(tile=(z, y, x), halo=(0, 0, 0), overlap=(z // 2, y // 2, x // 2))
        halo = 2 if self.config.mode == "2.5d" else 0
        return Tiling(tile=(TILE_SLICES, y, x), halo=(halo, 0, 0), overlap=(0, y // 2, x // 2))

    def context(self, overview: Tensor, low: Tensor) -> dict[str, Tensor]:
        """Nothing is shared: batch norm is a fixed affine map at inference."""
        return {}

    @torch.no_grad()
    def __call__(self, low: Float[Tensor, "b 1 zh y x"], context: Mapping[str, Tensor]) -> Float[Tensor, "b 1 z y x"]:
        """Synthesize windows in SUV; smaller ones are filled up as what lies beyond a volume is."""
        c = self.config
        self.network.eval()
        depth, height, width = low.shape[2:]
        ct = self._filled(ct_to_unit(low, c.ct_window))
        if c.mode == "3d":
            image = self.network(ct)[-1]
            return unit_to_suv(image[:, :, :depth, :height, :width], c.suv_max, c.suv_curve)
        slices = ct[:, 0]
        if c.mode == "2d":
            predicted = self._predict(slices.flatten(0, 1)[:, None].expand(-1, SLICES, -1, -1))
            image = predicted.mean(1).reshape(slices.shape)
        else:
            threes = slices.unfold(1, SLICES, 1).permute(0, 1, 4, 2, 3)  # (b, z + 2, 3, y, x), of z + 4 slices
            predicted = self._predict(threes.flatten(0, 1)).reshape(threes.shape)
            below, centre, above = predicted.unbind(2)  # of a slice and its neighbours; slice j is centre j + 1 here
            image = (above[:, :-2] + 2 * centre[:, 1:-1] + below[:, 2:]) / 4
        return unit_to_suv(image[:, None, :, :height, :width], c.suv_max, c.suv_curve)

    def _predict(self, windows: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n 3 y x"]:
        return torch.cat([self.network(part)[-1] for part in windows.split(SLICES_AT_ONCE)])

    def _filled(self, ct: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1 z y x"]:
        """Add air beside the window, and its last slice again beyond it, up to the training size."""
        deep, high, wide = (max(0, edge - n) for edge, n in zip(self.config.patch, ct.shape[2:], strict=True))
        ct = F.pad(ct, (0, wide, 0, high, 0, 0), value=-1.0)
        return F.pad(ct, (0, 0, 0, 0, 0, deep), mode="replicate") if self.config.mode == "3d" else ct


# What the registry reads


def check(config: Config, feed: FeedConfig, doses: Doses) -> None:
    """Refuse a scaled feed, whose HU and SUV would not be such, and more than one image to start from.

    Raises:
        InputError: CFG_SCALE, CFG_INPUTS.
    """
    assembly.check_ct_to_suv(feed)


files = assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say which network was trained, how the epoch was chosen and what its PET cannot show."""
    c = config
    lines = [
        f"Variant: {c.variant}; windows of {' x '.join(map(str, c.patch))} voxels (z, y, x).",
        "The epoch with the best PSNR is kept: epoch chosen on validation patients, not on test patients as the paper "
        "did, so a score is no maximum over epochs on the test set, as those of its Table 4 are.",
        "Batch norm uses running statistics and dropout is off at inference: a PET is the same every time.",
    ]
    if c.out_act == "tanh":
        lines.append(f"SUV above {c.suv_max:g} cannot be synthesized.")
    if c.suv_curve == "sqrt":
        lines.append("The networks make the square root of SUV, which is not the paper's.")
    if c.residual == "hu":
        lines.append("Every stage's image is added to the mean SUV of every HU, which is not the paper's.")
    if c.dense != "none":
        lines.append(
            "The paper tells neither the wiring of its dense network (DSGGAN) nor its number of stages: scores belong "
            "to the variant named."
        )
    return tuple(lines)


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> CascadeGAN:
    """Build networks and engines, one Adam each; ``patches_per_step`` counts the windows of all ranks."""
    optimizer = partial(torch.optim.Adam, lr=config.lr, betas=config.betas)
    G = make_engine(Cascade(config), optimizer)
    D = make_engine(Discriminator(config), optimizer) if config.lambda_adversarial else None
    return CascadeGAN(config, G, D, patches_per_step)


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> CascadeSynthesizer:
    """Build the inference side alone from what ``CascadeGAN.weights`` returned.

    Raises:
        InputError: CKPT_CONFIG.
    """
    network = assembly.with_weights(partial(Cascade, config), weights, "weights of the cascade")
    return CascadeSynthesizer(network, config)
