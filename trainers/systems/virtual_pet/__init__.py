"""Virtual PET from CT: an FCN that finds hot lesions and a conditional GAN that looks real, blended.

Ben-Cohen et al. 2017, arXiv 1707.09585.  No code was published; this is written from the text.  Letters: x CT, y PET in
SUV, F the FCN, G and D the conditional GAN (pix2pix, arXiv 1611.07004), u_F and u_G their images in SUV, u the virtual
PET.

F and (G, D) are trained apart, in the phases "fcn" and "cgan"; nothing is shared, so either alone is a row of the
comparison.  At inference F's image is taken where it exceeds SUV 2.5 and G's elsewhere, through Laplacian pyramids
(``pyramid``).  Random numbers (initial weights, dropout) come from torch's default generator, which the loop seeds from
(seed, step, rank).  The only file read is that of VGG16's weights.

Errors of the print:
    Sec. 2.3  patches of 70 x 70 and "C64-C128-C256-C512 downsample by 2" exclude each other: with stride 2 in all four
            D sees 94.  70, as in pix2pix's code, is the default; ``critic_strides`` (2, 2, 2, 2) is the sentence.
    Sec. 2.3  the decoder CD512-CD512-CD512-C512-C512-C256-C128-C64 is that of pix2pix's network without skips.  Its
            code (one 512 fewer, then the image) is the default, the list as printed is ``decoder`` "listed".

Readings where the text is silent:
    F       FCN-4s on VGG16 (Long et al. 2015, arXiv 1411.4038, one skip further): convolutions padded by 1 and fc6 by 3
            instead of 100 voxels at the start and crops, so that sizes are exact; weights fit both.  Score layers start
            at 0, so u_F does too; inner upsamplings start bilinear and learn, the last one stays.  Linear output,
            negatives cut at inference.  VGG16's weights only from a file that the user has; else He's initialisation.
    Weight  the true SUV, clipped as the target is: w = max(SUV, floor)^gamma, over a constant.  The constant is a
            field, not measured: a batch's own mean would make accumulated and parallel steps differ from one large
            batch and fail on air, and Adam is blind to it.  1 is the SUV of a body that keeps all activity, evenly.
            With ``suv_weight_floor`` 0 (the paper) what is predicted where SUV is 0 costs nothing: try 0.1 on whole
            bodies.
    G       L2 times 100, pix2pix's weight of L1, without SUV weights: "the FCN with weighted regression loss".  Dropout
            off and running statistics at inference: a scan gives one image.
    Blend   a 5-tap kernel, a binary mask, three levels, which suit voxels of 1 mm; at 3 to 4 mm use two.  Levels and
            lesion size decide how much of F's SUVmax remains.
    Scale   CT -160 to 240 HU is 0 to 1 for F and -1 to 1 for G; SUV 0 to 20 is 0 to 1 for F and -1 to 1 for G.
    Adam    for both, F's at a constant 1e-4 (not given); G's and D's as pix2pix, the second half linearly to 0.
    The F kept is the best of its epochs, by its loss on patients kept apart where there are any; G is the last one.

Deviations:
    Whole volumes, not the region of the liver; ``rois`` ("liver",) trains on the paper's slices.  A window holds a
    whole slice where ``patch`` is as large, beyond it is air; three neighbouring slices are the channels of both
    networks (``mode`` "2d" is the paper's).  The grid is the run's.
    At inference a network sees whole slices.  Where no gradient reaches some of its weights in a window of ``patch``
    voxels (a kernel of 4 on a map of one voxel uses 4 of its 16 weights), these weights would be used in larger slices
    as they were drawn: such a network runs in windows of ``patch`` voxels that overlap by half and are averaged.
    Blending is 3D and sees the whole volume; beyond its first and last slice it sees these slices again.

Not the paper's, off by default, both for G:
    suv_curve   G makes the square root of SUV / 20, in which a body is not all near -1, where tanh is flat.
    residual    G's output is added to the mean SUV of every voxel's HU in the training cases, and starts at 0.  That
            table (``trainers.hu_table``) is fitted in a phase of its own, before the others.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from storage.errors import InputError
from storage.patches import grid
from storage.ranges import Range
from storage.source import HU
from storage.stitch import window
from trainers import assembly, hu_table, perceptual
from trainers.blocks import PatchGAN, UNet, encoder_widths
from trainers.feed_config import FeedConfig
from trainers.hu_table import RANGES, RunningSums, SuvCurve, off_curve, on_curve
from trainers.losses import logistic_discriminator_loss, logistic_generator_loss
from trainers.recipe import Batch, BatchSpec, Departure, Doses, Engine, EngineFactory, Metrics, State, Tiling
from trainers.systems.virtual_pet import pyramid
from trainers.systems.virtual_pet.fcn import FCN, SKIPS, check_weights, read_weights

FEED = FeedConfig(source=("ct",), suv_scale=1.0, cases_per_step=4)
PRESET = "native"  # the paper scores no image
ROLES = frozenset({"validation"})
PRACTICE = (
    Departure("feed.tilt_deg", 15.0, "tilts"),
    Departure("feed.scaling", 0.15, "changes of scale"),
    Departure("recipe.suv_curve", "sqrt", "the square root of SUV"),
    Departure("recipe.residual", "hu", "a residual on the mean SUV of every HU"),
    Departure("recipe.networks", "cgan", "the generator alone, without the FCN's hot places"),
)
LATER = frozenset({"rois", "fcn_skips", "lambda_adversarial", "suv_curve", "residual", "table_samples"})
PHASES = ("fcn", "cgan")
BEST_G = "best G"  # of a state
TABLE = "table"  # the phase before them where there is a residual, and what its weight's name begins with
WHOLE = 4096  # pixels: longer than the edge of any slice
SLICES = {"2d": 16, "3d": 128}  # of a tile; blending in 3D computes up to 32 beside it


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published system on native slices; its comparison partners are fields.

    F alone and G alone: ``networks``; no SUV weight: ``suv_weight_gamma`` 0; hard pasting: ``blend_levels`` 0.

    Args:
        patch: edge lengths (z, y, x) in voxels of the windows trained on: z slices, of a whole slice's size, beyond
            which is air, or smaller.  At inference slices are padded to a multiple of y and x.
        rois: labels whose slices are trained on, every label as often; ("liver",) is the paper's region.  None: slices
            anywhere in the body.  Every case must have these labels.
        mode: channels of F and G: the slice, or the slice between its two neighbours.
        networks: what is trained and synthesized: both, blended, or one alone.
        ct_window: HU that become 0 and 1 (Sec. 2.1).
        suv_max: SUV at which PET is clipped (Sec. 2.1).
        fcn_widths: channels of F's blocks, five as in VGG16, or four without its last, for voxels of 3 to 4 mm.
        fcn_fc: channels of fc6 and fc7.
        fcn_fc6_kernel: odd edge length of fc6 in cells of F's coarsest map; 7, or 3 for voxels of 3 to 4 mm.
        fcn_skips: poolings scored beside the last: 3 for FCN-4s (Sec. 2.2), 2, 1 and 0 for FCN-8s, 16s and 32s, where
            ``fcn_widths`` has five blocks.
        fcn_norm: none (VGG16), or batch norm after every convolution, which trains faster from scratch.
        fcn_weights: safetensors file of VGG16's ImageNet weights, named as torchvision's; empty for none.
        fcn_weights_sha256: SHA-256 of that file.
        suv_weight_gamma: power of the SUV that weighs a voxel (1 in Sec. 2.4); 0 for no weight.
        suv_weight_floor: least SUV that weighs.
        suv_weight_mean: what weights are divided by.
        cgan_suv_weighted: weigh G's L2 by SUV as well (the other reading of Sec. 2.4).
        lambda_l2: weight of G's L2.
        lambda_adversarial: weight of G's adversarial loss (pix2pix's); 0 trains G by its L2 alone, without D.
        suv_curve: what of SUV / suv_max G makes, itself as published, or its square root.
        residual: what G's output is added to: nothing, as published, or the mean SUV of the voxel's HU; G then starts
            at 0.
        table_samples: slices that this table is fitted on, where there is a residual.
        generator_width: channels of G's first convolution (Sec. 2.3).
        generator_downs: halvings of G (8, Sec. 2.3).
        decoder: of G, pix2pix's code or the list as printed.
        critic_width: channels of D's first convolution (Sec. 2.3).
        critic_strides: of D's convolutions before the last; (2, 2, 2, 1) sees 70 voxels, (2, 1) 16.
        fcn_lr: Adam's learning rate for F.
        fcn_betas: Adam's for F.
        cgan_lr: Adam's learning rate for G and D, falling linearly to 0 over the phase's second half (pix2pix).
        cgan_betas: Adam's for G and D (pix2pix).
        blend: 3D, or slice by slice, where slices lie more than twice as far apart as voxels within them.
        blend_threshold_suv: F's image is used above it (Sec. 2.5).
        blend_levels: halvings of the pyramids: 2^levels voxels should be about 8 mm.
        fcn_samples: slices that F sees: 100 epochs of 17 scans with some 50 slices of the liver each (not given).
        cgan_samples: slices that G and D see: 200 epochs (pix2pix).
        epoch_samples: slices of an epoch, after which validation scores are made; counted from the run's first step.
        validate_batches: batches behind one validation score.
        patches_per_case: patches of one case in a step.
    """

    patch: tuple[int, int, int] = (1, 256, 256)
    rois: tuple[str, ...] = ()
    mode: Literal["2d", "2.5d"] = "2.5d"
    networks: Literal["both", "fcn", "cgan"] = "both"
    ct_window: tuple[float, float] = (-160.0, 240.0)
    suv_max: Annotated[float, Range(above=0)] = 20.0
    fcn_widths: Annotated[tuple[int, ...], Range(1)] = (64, 128, 256, 512, 512)
    fcn_fc: Annotated[int, Range(1)] = 4096
    fcn_fc6_kernel: int = 7
    fcn_skips: Annotated[int, Range(0, SKIPS)] = SKIPS
    fcn_norm: Literal["none", "batch"] = "none"
    fcn_weights: str = ""
    fcn_weights_sha256: str = ""
    suv_weight_gamma: Annotated[float, Range(0)] = 1.0
    suv_weight_floor: Annotated[float, Range(0)] = 0.0
    suv_weight_mean: Annotated[float, Range(above=0)] = 1.0
    cgan_suv_weighted: bool = False
    lambda_l2: Annotated[float, Range(0)] = 100.0
    lambda_adversarial: Annotated[float, Range(0)] = 1.0
    suv_curve: SuvCurve = "linear"
    residual: Literal["none", "hu"] = "none"
    table_samples: Annotated[int, Range(1)] = 400
    generator_width: Annotated[int, Range(1)] = 64
    generator_downs: Annotated[int, Range(2)] = 8
    decoder: Literal["pix2pix", "listed"] = "pix2pix"
    critic_width: Annotated[int, Range(1)] = 64
    critic_strides: tuple[int, ...] = (2, 2, 2, 1)
    fcn_lr: Annotated[float, Range(above=0)] = 1e-4
    fcn_betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.9, 0.999)
    cgan_lr: Annotated[float, Range(above=0)] = 2e-4
    cgan_betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.5, 0.999)
    blend: Literal["2d", "3d"] = "3d"
    blend_threshold_suv: float = 2.5
    blend_levels: Annotated[int, Range(0)] = 3
    fcn_samples: int = 85_000
    cgan_samples: int = 170_000
    epoch_samples: Annotated[int, Range(1)] = 850
    validate_batches: Annotated[int, Range(1)] = 25
    patches_per_case: Annotated[int, Range(1)] = 1

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "virtual_pet")
        require(self.ct_window[0] < self.ct_window[1], "CFG_RANGE", "ct_window", "give the lower bound first")
        remedy = "give 4 or 5 numbers of channels"
        require(len(self.fcn_widths) in (4, 5), "CFG_RANGE", "fcn_widths", remedy)
        require(self.fcn_fc6_kernel % 2 == 1, "CFG_RANGE", "fcn_fc6_kernel", "use an odd number")
        require(len(set(self.rois)) == len(self.rois), "CFG_ROI", "rois", "name every organ once")
        remedy = "nothing would be learnt: give lambda_l2 or lambda_adversarial a weight above 0"
        learns = not self.trains("cgan") or self.lambda_l2 + self.lambda_adversarial > 0
        require(learns, "CFG_RANGE", "lambda_l2", remedy)
        remedy = "give strides of 1 or 2"
        require(set(self.critic_strides) in ({1}, {2}, {1, 2}), "CFG_RANGE", "critic_strides", remedy)
        step = 2 ** max(len(self.fcn_widths) if self.trains("fcn") else 0, self.downs)
        remedy = f"use (slices, y, x) with y and x multiples of {step}: the networks halve them as often"
        z, *plane = self.patch
        require(z >= 1 and all(n >= step and n % step == 0 for n in plane), "CFG_PATCH_SIZE", "patch", remedy)
        seen = min(plane)
        for stride in (*self.critic_strides, 1):
            seen = (seen - 2) // stride + 1
        remedy = "use fewer or smaller strides: D has no place left in the window"
        require(seen >= 1, "CFG_PATCH_SIZE", "critic_strides", remedy)
        for phase in PHASES:
            remedy = "give samples, or leave the network out (--set recipe.networks=...)"
            require(not self.trains(phase) or self.samples(phase) > 0, "CFG_STAGE", f"{phase}_samples", remedy)

    @property
    def halo(self) -> int:
        """Neighbours on either side of a slice that F and G see."""
        return 0 if self.mode == "2d" else 1

    @property
    def downs(self) -> int:
        """Halvings of G, 0 where there is none."""
        return self.generator_downs if self.trains("cgan") else 0

    def trains(self, phase: str) -> bool:
        """Whether the run has ``phase``."""
        return self.networks in ("both", phase)

    def reaches(self, phase: str) -> bool:
        """Whether windows of ``patch`` voxels bring a gradient to every weight of the network that ``phase`` trains."""
        if phase == "cgan":
            return min(self.patch[1:]) >> self.downs >= 2  # kernels of 4 with stride 2
        return min(self.patch[1:]) >> len(self.fcn_widths) >= max(2, self.fcn_fc6_kernel // 2 + 1)

    @property
    def starts_at_table(self) -> bool:
        """Whether G's output is added to the table of HU."""
        return self.residual == "hu" and self.trains("cgan")

    def samples(self, phase: str) -> int:
        """Slices that ``phase`` sees."""
        if phase == TABLE:
            return self.table_samples if self.starts_at_table else 0
        return int(getattr(self, f"{phase}_samples")) if self.trains(phase) else 0


# Sec. 2.1  What the networks see


def stacks(volume: Float[Tensor, "b 1 zh y x"], halo: int) -> Float[Tensor, "bz c y x"]:
    """Return every slice of a volume with its ``halo`` neighbours on either side as channels, in order."""
    return volume[:, 0].unfold(1, 2 * halo + 1, 1).movedim(-1, 2).flatten(0, 1)


def window_ct(config: Config, hu: Tensor) -> Tensor:
    """Return CT in HU as 0 to 1, saturated outside the window."""
    low, high = config.ct_window
    return (hu.clamp(low, high) - low) / (high - low)


def fcn_input(config: Config, hu: Float[Tensor, "b c y x"]) -> Float[Tensor, "b 3 y x"]:
    """Return what F sees: three channels, on ImageNet's scale where its weights come from there."""
    x = window_ct(config, hu).expand(-1, 3, -1, -1)
    if not config.fcn_weights:
        return x
    mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (perceptual.IMAGENET_MEAN, perceptual.IMAGENET_STD))
    return (x - mean) / std


def cgan_input(config: Config, hu: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
    """Return what G and D see of CT: -1 to 1."""
    return 2 * window_ct(config, hu) - 1


def fcn_target(config: Config, suv: Tensor) -> Tensor:
    """Return PET as F gives it: 0 to 1."""
    return suv.clamp(0, config.suv_max) / config.suv_max


def cgan_target(config: Config, suv: Tensor) -> Tensor:
    """Return PET as G gives it: -1 to 1."""
    return 2 * on_curve(fcn_target(config, suv), config.suv_curve) - 1


def fcn_suv(config: Config, output: Tensor) -> Tensor:
    """Return F's output in SUV."""
    return config.suv_max * output.clamp(min=0)


def cgan_suv(config: Config, output: Tensor) -> Tensor:
    """Return G's output in SUV, at least 0."""
    output = output.clamp(min=-1)  # which a sum with the table may pass
    if config.suv_curve == "linear":
        return config.suv_max * (output + 1) / 2
    return config.suv_max * off_curve((output + 1) / 2, config.suv_curve)


def table_image(config: Config, table: Float[Tensor, " ranges"], hu: Float[Tensor, "b c y x"]) -> Tensor:
    """Return what G's output is added to, (b, 1, y, x): the table's SUV of the middle slice, as G gives PET."""
    middle = hu[:, config.halo : config.halo + 1]
    return cgan_target(config, table.to(hu)[hu_table.ranges(middle)])


# Sec. 2.2 and 2.3  Networks


def fcn_of(config: Config) -> FCN:
    """Build F with fresh weights."""
    return FCN(config.fcn_widths, config.fcn_fc, config.fcn_fc6_kernel, config.fcn_norm, config.fcn_skips)


class Generator(nn.Module):
    """G: 54,407,809 parameters with one channel, 54,409,857 with three; "listed" 61,419,201 with one."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, downs = config.generator_width, config.generator_downs
        decoder = encoder_widths(width, downs)[::-1] if config.decoder == "listed" else ()
        self.net = UNet(2 * config.halo + 1, 1, width=width, downs=downs, decoder=decoder)
        if config.residual == "hu":
            for parameter in self.net.image.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self, x: Float[Tensor, "b c y x"], start: Float[Tensor, "b 1 y x"] | None = None
    ) -> Float[Tensor, "b 1 y x"]:
        """Return G's image, which is added to ``start`` (``table_image``) where it is given."""
        image: Tensor = self.net(x).tanh()
        return image if start is None else start + image


class Discriminator(nn.Module):
    """D: pairs of CT and any number of images, each normed apart.  2,764,609 parameters with one channel of CT."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.net = PatchGAN(2 * config.halo + 2, width=config.critic_width, strides=config.critic_strides)

    def forward(self, x: Float[Tensor, "b c y x"], *images: Float[Tensor, "b 1 y x"]) -> tuple[Tensor, ...]:
        return tuple(self.net(x, image) for image in images)


# Sec. 2.4  Loss weights


def suv_weights(config: Config, suv: Tensor) -> Tensor:
    """Return every voxel's weight by its true SUV, over the constant ``suv_weight_mean``."""
    weighed = suv.clamp(0, config.suv_max).clamp(min=config.suv_weight_floor).pow(config.suv_weight_gamma)
    return weighed / config.suv_weight_mean


def weighted_l2(
    image: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], weights: Float[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """Return the mean of weight times squared difference, over all voxels."""
    return (weights * (image - target).square()).mean()


# Sec. 2.5  Blending


def blended(config: Config, u_f: Float[Tensor, "b 1 z y x"], u_g: Float[Tensor, "b 1 z y x"]) -> Tensor:
    """Return u: ``u_f`` where it exceeds the threshold, ``u_g`` elsewhere; not below 0."""
    mask = (u_f > config.blend_threshold_suv).to(u_f)
    axes = (2, 3, 4) if config.blend == "3d" else (3, 4)
    return pyramid.blend(u_f, u_g, mask, config.blend_levels, axes).clamp(min=0)


# Training


class VirtualPET:
    """The system in training: ``trainers.recipe.Recipe`` and ``Validated``.

    Args:
        F: engine of the FCN, or None where G is trained alone; G and D likewise, and D where nothing weighs it.
    """

    def __init__(self, config: Config, F: Engine | None, G: Engine | None, D: Engine | None, patches: int) -> None:
        self.config = config
        self.F, self.G, self.D = F, G, D
        self.engines = assembly.present({"F": F, "G": G, "D": D})
        slices = patches * config.patch[0]
        phases = assembly.Phases(
            {phase: assembly.steps_of(config.samples(phase), slices) for phase in (TABLE, *PHASES)}
        )
        self.num_steps, self.phase_starts, self.phase = phases.num_steps, phases.starts, phases.at
        self._cgan_steps = phases.steps["cgan"]
        self._best: tuple[float, dict[str, Tensor]] = (math.inf, {})  # F's, by its loss on validation patients
        self._best_G: tuple[float, dict[str, Tensor]] = (math.inf, {})  # by its L2, kept where it starts at a table
        self.sums = RunningSums(hu_table.no_voxels((RANGES,)))
        self._table: Tensor | None = None  # fitted when G is first asked
        self.validate_every = assembly.steps_of(config.epoch_samples, slices)
        self.validate_batches = config.validate_batches
        self.validation_batch = BatchSpec(
            patch=config.patch,
            halo=(config.halo, 0, 0),
            patches_per_case=config.patches_per_case,
            sampler={"roi": 1.0} if config.rois else {"body": 1.0},
            rois=config.rois,
            unlabelled="train on slices of the whole body: --set recipe.rois=()",
            units=HU,
            beyond=True,
        )

    def batch_spec(self, step: int) -> BatchSpec:
        """Return which patches every step reads: slices of the body or of ``rois``, CT with PET."""
        return self.validation_batch

    def step(self, batch: Batch, step: int) -> Metrics:
        """Update F, or D and then G; before them, add to the table's sums."""
        hu, suv = stacks(batch.source, self.config.halo), stacks(batch.target, 0)
        phase = self.phase(step)
        if phase == TABLE:
            metrics = self._table_step(hu, suv)
        else:
            metrics = self._fcn_step(hu, suv) if phase == "fcn" else self._cgan_step(hu, suv, step)
        metrics["clipped_share"] = (suv > self.config.suv_max).float().mean()
        return {name: value.detach() for name, value in metrics.items()}

    def _table_step(self, hu: Float[Tensor, "b c y x"], suv: Float[Tensor, "b 1 y x"]) -> Metrics:
        c = self.config
        self.sums.add(hu_table.ranges(hu[:, c.halo : c.halo + 1]), suv.clamp(0, c.suv_max))
        self._table = None
        return {"suv": suv.mean()}

    def _start(self, hu: Float[Tensor, "b c y x"]) -> tuple[Tensor, ...]:
        """What G takes besides the CT: what its output is added to, or nothing (collective when asked for first)."""
        if not self.config.starts_at_table:
            return ()
        if self._table is None:
            self._table = hu_table.table_of(self.sums.state())
        return (table_image(self.config, self._table, hu),)

    def _fcn_step(self, hu: Float[Tensor, "b c y x"], suv: Float[Tensor, "b 1 y x"]) -> Metrics:
        c = self.config
        assert self.F is not None
        self.F.module.train()
        weights = suv_weights(c, suv)
        loss = weighted_l2(self.F(fcn_input(c, hu)), fcn_target(c, suv), weights)
        self.F.backward(loss)
        self.F.step()
        return {"fcn": loss, "suv_weight": weights.mean()}  # near 1 where suv_weight_mean is the cohort's own

    def _cgan_step(self, hu: Float[Tensor, "b c y x"], suv: Float[Tensor, "b 1 y x"], step: int) -> Metrics:
        c = self.config
        assert self.G is not None
        self.G.module.train()
        lr = c.cgan_lr * self._cgan_lr_factor(step)
        self.G.set_lr(lr)
        x, target = cgan_input(c, hu), cgan_target(c, suv)
        image = self.G(x, *self._start(hu))
        metrics: Metrics = {}
        if self.D is not None:
            self.D.module.train()
            self.D.set_lr(lr)
            real, fake = self.D(x, target, image.detach())
            metrics["discriminator"] = logistic_discriminator_loss(real, fake)
            self.D.backward(metrics["discriminator"])
            self.D.step()

        weights = suv_weights(c, suv) if c.cgan_suv_weighted else torch.ones_like(suv)
        metrics["l2"] = weighted_l2(image, target, weights)
        loss = c.lambda_l2 * metrics["l2"]
        with nullcontext() if self.D is None else self.D.frozen() as D:  # the updated D
            if D is not None:
                (score,) = D(x, image)
                metrics["adversarial"] = logistic_generator_loss(score)
                loss = loss + c.lambda_adversarial * metrics["adversarial"]
            self.G.backward(loss)
        self.G.step()
        return metrics | {"generator": loss}

    def _cgan_lr_factor(self, step: int) -> float:
        """1 in the first half of the phase, then linearly to 0 after its last step (pix2pix's code)."""
        return min(1.0, 2 * (self.num_steps - step) / self._cgan_steps)

    @torch.no_grad()
    def validate(self, batch: Batch) -> Metrics:
        """Score one batch by the terms that F and G minimise against PET, as at inference."""
        c = self.config
        hu, suv = stacks(batch.source, c.halo), stacks(batch.target, 0)
        scores = {}
        if self.F is not None:
            self.F.module.eval()
            with self.F.frozen() as network:
                scores["fcn"] = weighted_l2(network(fcn_input(c, hu)), fcn_target(c, suv), suv_weights(c, suv))
        if self.G is not None:
            self.G.module.eval()
            with self.G.frozen() as network:
                scores["l2"] = F.mse_loss(network(cgan_input(c, hu), *self._start(hu)), cgan_target(c, suv))
        return scores

    def observe(self, step: int, scores: Mapping[str, float]) -> int:
        """Keep F where it is better than ever (collective); no phase ends early.

        With a residual G is kept likewise, from before its own phase on: there it is the table yet, which few patients
        may not better.
        """
        phase = self.phase(step - 1)
        if phase == "fcn" and scores["fcn"] < self._best[0]:
            assert self.F is not None
            self._best = scores["fcn"], _weights(self.F)
        if self.config.starts_at_table and phase != TABLE and scores["l2"] < self._best_G[0]:
            assert self.G is not None
            self._best_G = scores["l2"], _weights(self.G)
        return step

    def weights(self) -> dict[str, Tensor]:
        """Return the best F, the last one where there was no validation, and the last G.

        With a residual, the best G and the table.
        """
        named = {}
        if self.F is not None:
            named["F"] = self._best[1] or _weights(self.F)
        if self.G is not None:
            named["G"] = self._best_G[1] or _weights(self.G)
        if self.config.starts_at_table:
            named[TABLE] = {"suv": hu_table.table_of(self.sums.state())}
        return {f"{name}.{key}": value for name, tensors in named.items() for key, value in tensors.items()}

    def synthesizer(self) -> "BlendSynthesizer":
        """Return F and G at inference, sharing their current weights."""
        fcn, generator = (engine.module if engine else None for engine in (self.F, self.G))
        # Pictures are made by one rank alone, which must not wait for others: while sums grow it uses its own.
        table = hu_table.table_of(self.sums.own()) if self._table is None else self._table
        return BlendSynthesizer(self.config, fcn, generator, table if self.config.starts_at_table else None)

    def state(self) -> State:
        """Return the states of F, G and D, as far as there are any, the best F so far, and the table's sums.

        With a residual, the best G too.
        """
        own = {TABLE: self.sums.state(), BEST_G: _kept(self._best_G)} if self.config.starts_at_table else {}
        return assembly.states(self.engines) | {"best": _kept(self._best)} | own

    def load(self, state: State) -> None:
        """Continue from ``state``."""
        assembly.load_states(self.engines, state)
        self._best = _best_of(state["best"])
        if self.config.starts_at_table:
            self.sums.load(state[TABLE])
            self._table = None
            if BEST_G in state:  # a run that began before there was one goes on with its last G
                self._best_G = _best_of(state[BEST_G])


def _kept(best: tuple[float, dict[str, Tensor]]) -> dict[str, Tensor]:
    score, tensors = best
    return {"score": torch.tensor(score, dtype=torch.float64)} | tensors


def _best_of(kept: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    tensors = dict(kept)
    return float(tensors.pop("score")), tensors


def _weights(engine: Engine) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in assembly.weights_of(engine).items()}


# Inference


@dataclass(frozen=True)
class BlendSynthesizer:
    """F and G at inference, blended: ``trainers.recipe.Synthesizer``.

    F and G run slice by slice, a slice being one window or several of the size trained on (``in_windows``); the mask
    and the pyramids see so many slices around a tile that its voxels are those of the whole volume, bit for bit.

    Args:
        table: mean SUV of every range of HU, that G's output is added to; None for nothing.
    """

    config: Config
    fcn: nn.Module | None
    generator: nn.Module | None
    table: Tensor | None = None
    context_batch: None = None

    @property
    def tiling(self) -> Tiling:
        """Whole slices; where blending is 3D, tiles on the grid of the pyramids' smallest level."""
        c = self.config
        aligned = 1 << c.blend_levels if self._margin else 1
        depth = SLICES["3d" if self._margin else "2d"]
        multiple = (aligned, *c.patch[1:])
        return Tiling(tile=(depth, WHOLE, WHOLE), halo=(self._margin + c.halo, 0, 0), multiple=multiple)

    @property
    def _margin(self) -> int:
        """Slices around a tile that blending needs, a multiple of 2^levels."""
        c = self.config
        if self.fcn is None or self.generator is None or c.blend == "2d":
            return 0
        aligned = 1 << c.blend_levels
        return -(-pyramid.reach(c.blend_levels) // aligned) * aligned

    def context(self, overview: Tensor, low: Tensor) -> dict[str, Tensor]:
        """Nothing is shared: windows and scales are fixed."""
        return {}

    @torch.no_grad()
    def __call__(self, low: Float[Tensor, "b 1 zh y x"], context: Mapping[str, Tensor]) -> Float[Tensor, "b 1 z y x"]:
        """Synthesize tiles of CT in HU; returns SUV, at least 0."""
        c, u_f, u_g = self.config, [], []
        for hu in stacks(low, c.halo).split(1):  # one at a time: rounding depends on the size of a batch
            if self.fcn is not None:
                u_f.append(fcn_suv(c, self._image("fcn", self.fcn.eval(), fcn_input(c, hu))))
            if self.generator is not None:
                u_g.append(cgan_suv(c, self._generated(self.generator.eval(), hu)))
        images = [_volumes(slices, len(low)) for slices in (u_f, u_g) if slices]
        image = blended(c, *images) if len(images) == 2 else images[0]
        return image.narrow(2, self._margin, image.shape[2] - 2 * self._margin)

    def _generated(self, network: nn.Module, hu: Float[Tensor, "1 c y x"]) -> Float[Tensor, "1 1 y x"]:
        x = cgan_input(self.config, hu)
        if self.table is None:
            return self._image("cgan", network, x)
        both = torch.cat([x, table_image(self.config, self.table, hu)], dim=1)  # a window needs its part of either
        return self._image("cgan", lambda part: network(part[:, :-1], part[:, -1:]), both)

    def _image(
        self, phase: str, network: Callable[[Tensor], Tensor], x: Float[Tensor, "1 c y x"]
    ) -> Float[Tensor, "1 1 y x"]:
        edges = x.shape[2:] if self.config.reaches(phase) else self.config.patch[1:]
        return in_windows(network, x, (edges[0], edges[1]))


def in_windows(
    network: Callable[[Tensor], Tensor], x: Float[Tensor, "1 c y x"], edges: tuple[int, int]
) -> Float[Tensor, "1 1 y x"]:
    """Run a network on windows of ``edges`` (y, x) voxels that overlap by half, and average them.

    A window weighs less towards its borders, as in ``storage.stitch``.
    """
    if tuple(x.shape[2:]) == edges:
        return network(x)
    overlap = (0, edges[0] // 2, edges[1] // 2)
    weight = torch.outer(*(torch.from_numpy(window(n, shared)) for n, shared in zip(edges, overlap[1:], strict=True)))
    weight = weight.to(x)
    total, weights = x.new_zeros(1, 1, *x.shape[2:]), x.new_zeros(x.shape[2:])
    for box in grid((1, x.shape[2], x.shape[3]), (1, *edges), overlap):
        _, rows, columns = (slice(a, b) for a, b in zip(box.start, box.stop, strict=True))
        total[..., rows, columns] += weight * network(x[..., rows, columns])
        weights[rows, columns] += weight
    return total / weights


def _volumes(slices: Sequence[Float[Tensor, "1 1 y x"]], volumes: int) -> Float[Tensor, "b 1 z y x"]:
    stack = torch.cat(list(slices))
    return stack.reshape(volumes, 1, -1, *stack.shape[2:])


# What the registry reads


def check(config: Config, feed: FeedConfig, doses: Doses) -> None:
    """Refuse a scale beside the recipe's own, several images to start from, and weights for an FCN that is left out.

    Raises:
        InputError: CFG_SCALE, CFG_INPUTS, CFG_CONTRADICTION.
    """
    assembly.check_ct_to_suv(feed)
    if config.fcn_weights and not config.trains("fcn"):
        raise InputError(
            "CFG_CONTRADICTION",
            where="recipe.fcn_weights",
            found=f"weights for the FCN, where recipe.networks={config.networks} trains none",
            remedy="add --recipe.networks both, or leave the weights out",
        )


def remarks(config: Config, spacing_mm: tuple[float, float, float]) -> tuple[str, ...]:
    """Say which settings have no effect, because the network that they are of is left out."""
    if config.networks != "cgan":
        return ()
    of_fcn = ("fcn_", "blend") if config.cgan_suv_weighted else ("fcn_", "blend", "suv_weight_")
    idle = [
        one.name
        for one in fields(config)
        if one.name.startswith(of_fcn) and getattr(config, one.name) != getattr(Config(), one.name)
    ]
    if not idle:
        return ()
    named = ", ".join(f"recipe.{name}" for name in idle)
    return (f"no effect: {named}; recipe.networks=cgan trains no FCN, --recipe.networks both does",)


def files(config: Config) -> dict[str, Path]:
    """Return the file of VGG16's weights, if F starts from one.

    Raises:
        InputError: CFG_BACKBONE.
    """
    if not config.fcn_weights or not config.trains("fcn"):
        return {}
    file = Path(config.fcn_weights)
    with torch.device("meta"):
        check_weights(file, config.fcn_weights_sha256, fcn_of(config))
    return {"fcn_weights": file}


def caveats(config: Config) -> tuple[str, ...]:
    """Say what was trained, where F's weights come from, how images were blended and what must not be compared."""
    c = config
    names = {"both": "FCN and conditional GAN, blended", "fcn": "FCN alone", "cgan": "conditional GAN alone"}
    region = f"trained on slices of {', '.join(c.rois)} alone" if c.rois else "not the liver alone"
    lines = [f"Virtual PET variant: {names[c.networks]}; {c.mode} on whole slices, {region}."]
    if c.trains("fcn"):
        origin = "He's random initialisation, no ImageNet weights"
        if c.fcn_weights:
            origin = (
                f"VGG16's weights, SHA-256 {c.fcn_weights_sha256} (fc6 and fc7 where the file has them and they fit)"
            )
        weighed = f"weighted by SUV^{c.suv_weight_gamma:g}, at least SUV {c.suv_weight_floor:g}"
        weighed = weighed if c.suv_weight_gamma else "not weighted by SUV"
        stride = 2 ** (len(c.fcn_widths) - c.fcn_skips)
        lines.append(
            f"FCN-{stride}s: from {origin}; L2 {weighed}; the best epoch on validation patients where there are any."
        )
    if c.trains("cgan"):
        weighed = "" if c.cgan_suv_weighted else "not "
        kind = "Conditional GAN" if c.lambda_adversarial else "Generator without discriminator"
        lines.append(f"{kind}: L2 {weighed}weighted by SUV; the last step's weights.")
        if c.suv_curve == "sqrt":
            lines.append("G makes the square root of SUV, which is not the paper's.")
        if c.residual == "hu":
            lines.append("G's output is added to the mean SUV of every HU, which is not the paper's.")
    if c.networks == "both":
        lines.append(
            f"Blending: {c.blend}, {c.blend_levels} levels, FCN above SUV {c.blend_threshold_suv:g}; what remains of "
            "a lesion's SUVmax depends on the levels and on its size in voxels."
        )
    lines.append(f"PET is clipped at SUV {c.suv_max:g}; SUVmax and detection figures belong to the grid they are on.")
    return tuple(lines)


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> VirtualPET:
    """Build networks and engines; ``patches_per_step`` counts the patches of all ranks.

    Raises:
        InputError: CFG_BACKBONE.
    """
    fcn_adam = partial(torch.optim.Adam, lr=config.fcn_lr, betas=config.fcn_betas)
    cgan_adam = partial(torch.optim.Adam, lr=config.cgan_lr, betas=config.cgan_betas)
    fcn, generator, critic = None, None, None
    if config.trains("fcn"):
        network = fcn_of(config)
        # A dry run on the meta device computes nothing; ``files`` has checked the file by then.
        if config.fcn_weights and torch.get_default_device().type != "meta":
            read_weights(Path(config.fcn_weights), config.fcn_weights_sha256, network)
        fcn = make_engine(network, fcn_adam)
    if config.trains("cgan"):
        generator = make_engine(Generator(config), cgan_adam)
        critic = make_engine(Discriminator(config), cgan_adam) if config.lambda_adversarial else None
    return VirtualPET(config, fcn, generator, critic, patches_per_step)


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> BlendSynthesizer:
    """Build the inference side from F's and G's weights, as ``VirtualPET.weights`` names them.

    Raises:
        InputError: CKPT_CONFIG.
    """

    def networks() -> nn.ModuleDict:
        builders = {"F": ("fcn", fcn_of), "G": ("cgan", Generator)}
        return nn.ModuleDict({name: make(config) for name, (phase, make) in builders.items() if config.trains(phase)})

    name = f"{TABLE}.suv"
    own = {key: value for key, value in weights.items() if key != name or not config.starts_at_table}
    if config.starts_at_table and name not in weights:
        raise assembly.another_configuration("weights of virtual PET")
    named = dict(assembly.with_weights(networks, own, "weights of virtual PET"))
    table = weights[name] if config.starts_at_table else None
    return BlendSynthesizer(config, named.get("F"), named.get("G"), table)
