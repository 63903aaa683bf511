"""CG-3DSRGAN: a classification guided 3D GAN with super resolution refinement, from several low doses to full dose.

Xue, Peng, Bi, Feng, Kim 2023, arXiv 2304.00725.  No code was published; this is written from the text.  Letters: x low
dose, y full dose, M = ML-Net (3D U-Net R, classification head on its encoder), y1 = R(x) coarse, C Contextual-Net,
y2 = C(y1) refined, D discriminator on pairs (x, .), phi the frozen network of the perceptual loss.

This file holds the configuration, networks, losses, phases and the order of updates; ``perceptual`` holds phi.  Random
numbers come from torch's default generator, which the loop seeds per step.

Errors of the print, corrected:
    Sec. III-B  "lambda1 = 300, lambda1 = 10, lambda1 = 10, lambda4 = 1" is 300, 10, 10, 1 for lambda1 to lambda4.
    Sec. III-B  stopping "when the learning rate exceeds 2e-6" would stop at once: it falls below.
    Eq. 4   is D's loss; inside eq. 5 it would make M and C help D.  They minimise mean (D(x, y2) - 1)^2 instead.
    Eq. 1   is a mean over voxels, as in pix2pix: a sum would weigh 300 times 10^6; eq. 2 is summed over classes.

Readings where the text is silent or contradicts itself:
    Head    "three-dimensional vector" with five dose reduction factors in the data: one class per factor fed
            (``doses``).  Mean over space, then 256 hidden: a flattened head would be tied to one patch size.
    R       pix2pix's U-Net of five levels, 64-128-256-512-512, kernel 3: no activation before the first convolution, no
            norm in the first, innermost and last block (BN on the output would rescale activity by its batch), linear
            output; output_padding 1, so that every level doubles exactly.
    C       32 channels; "the final output is incorporated with the input" is a skip over all of it, and its last
            convolution starts at 0: y2 = y1 at first, which anchors a y2 that has no pixel loss of its own.
    D       pix2pix's discriminator of 70^3 regions, no sigmoid; real and fake pairs are normed apart, always by the
            batch at hand.  It never evaluates, so its batch norm keeps no running statistics.
    Eq. 3   relu1_2, 2_2, 3_3, 4_3 alike; C_i H_i W_i without a depth means slices: eight random ones with signal per
            axis and sample, grey in three channels, SUV 0 to 10 as [0, 1] and not clamped, or hot voxels would lose
            their gradient.  ``feed.suv_scale`` 10 makes network units just that.
    "linearly decreased with a factor of 0.1 and patience of 5" is ReduceLROnPlateau, as only that has a patience: a cut
            when more than five epochs in a row were no better, by NRMSE of y2 on patients kept apart, for both
            optimizers.  An epoch is 1000 steps of 4 patches: 100 full passes over the data are out of reach.
    "second-stage" and "end-to-end": one joint phase; y2's gradients reach R unless ``detach_coarse``.
    Weights start as Kaiming's, of transposed convolutions by fan_out (by PyTorch's default, fan_in, y1 starts with a
            spread of 26 SUV, by this with 2.4), batch norm's gains as N(1, 0.02); Adam: betas 0.5, 0.999, decay 1e-5.
    The masked autoencoder has LeakyReLUs: with ReLUs, y2's activity drifted in the trial that overfits two patches.

Deviations:
    Two short phases frame the paper's one.  "backbone", only where ``perceptual`` is "masked", trains phi on the run's
    full-dose patches, for those without ImageNet weights.  "statistics" makes batch norm's running statistics anew, as
    plain means, so that the model depends on neither the last batches nor a momentum.
    The class term leaves out patches with less than 5 % of voxels above SUV 0.1 (at SUV / 10): air shows no dose.
    The model kept is the last, not the best on validation patients, whom it would then be fitted to.
    Batch norm in training sees the patches of a step, and wants two or more of them.
    Inference runs in windows on R's grid of 32 voxels, with a margin beyond which they equal the whole volume.
    A patch may be longer than a small volume: air lies beyond it, as at inference.

Not the paper's, off by default (it names residual estimation as its future work, Sec. IV):
    residual  R's output is added to the low dose smoothed by the Gaussian of its dose, times the noise of the case, and
            starts at 0: R, whose first layer halves the resolution, need not learn the identity.  The Gaussian
            (``trainers.dose_gaussian``) is chosen per dose on training patches, in a phase of its own before all
            others; the noise is told by the low dose alone: by the patches of the case at hand in training, frozen
            per case at inference.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from storage.errors import InputError
from storage.ranges import Range
from trainers import assembly, dose_gaussian, perceptual
from trainers.assembly import WindowSynthesizer, cropped
from trainers.dose_gaussian import Widths
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, BatchSpec, Doses, Engine, EngineFactory, Metrics, Scan, State, Synthesizer, Tiling

FEED = FeedConfig(
    source=("low_drf4", "low_drf10", "low_drf20", "low_drf50", "low_drf100"), suv_scale=10.0, cases_per_step=4
)
PRESET = "udpet2022"
ROLES = frozenset({"validation"})
LATER = frozenset({"residual", "gaussian_samples"})
LEVELS = 5  # of R: an output depends on the position of its window modulo 2^5
HALO, REACH = 48, 7  # voxels: of a window around its tile (39 would do), and receptive radius of C
AIR, FOREGROUND = 0.01, 0.05  # network units; the share of voxels above that shows a dose
BETTER = 1e-4  # PyTorch's relative threshold of an improvement
GAUSSIAN = "gaussian"  # the first phase where there is a residual, and what its weights' names begin with
AROUND = dose_gaussian.REACH  # voxels read around a patch for its Gaussian
CONTEXT_PATCHES = 16  # that freeze a case's noise at inference


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published system; the rows of the paper's ablation (Table II) are three switches.

    Baseline: none of ``classify``, ``adversarial``, ``refine``; baseline + CG: the first; CG-3DGAN: the first two, with
    y1 before D; CG-3DSRGAN: all three.

    Args:
        doses: dose reduction factors of the low-dose images fed, one class each (Sec. III-A).
        mlnet_channels: of R's first level (64, pix2pix).
        head_hidden: hidden width of the classification head.
        contextual_channels: of Contextual-Net.
        discriminator_channels: of D's first layer (64, pix2pix).
        classify: classification head and eq. 2.
        adversarial: D and eq. 4.
        refine: Contextual-Net and eq. 3.
        lambda_l1: weight of eq. 1 on y1 (Sec. III-B).
        lambda_class: weight of eq. 2 (Sec. III-B).
        lambda_perceptual: weight of eq. 3 on y2 (Sec. III-B).
        lambda_adversarial: weight of G's part of eq. 4 (Sec. III-B).
        perceptual: phi is the paper's VGG16, or an autoencoder trained on masked full-dose patches of the run.
        vgg16_file: safetensors file of VGG16's ImageNet weights, named as torchvision's.
        vgg16_sha256: SHA-256 of that file.
        detach_coarse: losses of y2 stop before R (the other reading of "second-stage").
        lr: Adam's learning rate at first (Sec. III-B).
        betas: Adam's.
        weight_decay: Adam's.
        plateau_factor: of a cut of the learning rate (Sec. III-B).
        plateau_patience: epochs without improvement that are put up with (Sec. III-B).
        stop_lr: the joint phase ends when the learning rate falls below (Sec. III-B).
        epoch_samples: patches of an epoch, after which validation scores are made; counted from the run's first step.
        max_epochs: longest joint phase (Sec. III-B).
        backbone_samples: patches that pre-train phi where ``perceptual`` is "masked".
        calibration_samples: patches of the last phase; 0 leaves batch norm's moving averages as they are.
        patch: edge lengths (z, y, x) in voxels, multiples of 32.
        patches_per_case: patches of one case in a step.
        validate_batches: batches behind one validation score.
        residual: what R's output is added to: nothing, as published, or the low dose smoothed by the Gaussian of its
            dose; R then starts at 0.
        gaussian_samples: patches that the Gaussians are chosen on, where there is a residual.
    """

    doses: Annotated[tuple[float, ...], Range(above=0)] = (4.0, 10.0, 20.0, 50.0, 100.0)
    mlnet_channels: Annotated[int, Range(1)] = 64
    head_hidden: Annotated[int, Range(1)] = 256
    contextual_channels: Annotated[int, Range(1)] = 32
    discriminator_channels: Annotated[int, Range(1)] = 64
    classify: bool = True
    adversarial: bool = True
    refine: bool = True
    lambda_l1: Annotated[float, Range(0)] = 300.0
    lambda_class: Annotated[float, Range(0)] = 10.0
    lambda_perceptual: Annotated[float, Range(0)] = 10.0
    lambda_adversarial: Annotated[float, Range(0)] = 1.0
    perceptual: Literal["vgg16", "masked"] = "vgg16"
    vgg16_file: str = ""
    vgg16_sha256: str = ""
    detach_coarse: bool = False
    lr: Annotated[float, Range(above=0)] = 2e-4
    betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.5, 0.999)
    weight_decay: Annotated[float, Range(0)] = 1e-5
    plateau_factor: Annotated[float, Range(above=0, below=1)] = 0.1
    plateau_patience: Annotated[int, Range(0)] = 5
    stop_lr: Annotated[float, Range(above=0)] = 2e-6
    epoch_samples: Annotated[int, Range(1)] = 4000
    max_epochs: Annotated[int, Range(1)] = 100
    backbone_samples: Annotated[int, Range(1)] = 20_000
    calibration_samples: Annotated[int, Range(0)] = 800
    patch: tuple[int, int, int] = (96, 96, 96)
    patches_per_case: Annotated[int, Range(1)] = 1
    validate_batches: Annotated[int, Range(1)] = 16
    residual: Literal["none", "gaussian"] = "none"
    gaussian_samples: Annotated[int, Range(1)] = 100

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "cg_3dsrgan")
        require(self.stop_lr <= self.lr, "CFG_RANGE", "stop_lr", "use a number up to lr")
        require(
            len(set(self.doses)) == len(self.doses),
            "CFG_RANGE",
            "doses",
            "name every dose reduction factor once",
        )
        require(
            len(self.doses) > 1 or not self.classify,
            "CFG_RANGE",
            "doses",
            "name two or more dose reduction factors, or train without the class term: --set recipe.classify=False",
        )
        require(
            not self.refine or self.lambda_perceptual > 0 or (self.adversarial and self.lambda_adversarial > 0),
            "CFG_RANGE",
            "lambda_perceptual",
            "Contextual-Net needs a loss: use a weight above 0, or --set recipe.refine=False",
        )
        require(
            all(edge >= 32 and edge % 32 == 0 for edge in self.patch),
            "CFG_PATCH_SIZE",
            "patch",
            "use multiples of 32 voxels: R halves five times",
        )

    @property
    def perceives(self) -> bool:
        """Whether eq. 3 is a part of the loss."""
        return self.refine and self.lambda_perceptual > 0

    @property
    def around(self) -> int:
        """Voxels read around a patch: those of the Gaussian that R's output is added to, 0 without a residual."""
        return 0 if self.residual == "none" else AROUND

    @property
    def pretrains(self) -> bool:
        """Whether the run trains its own phi."""
        return self.perceives and self.perceptual == "masked"


# Sec. II-A  ML-Net


class MLNet(nn.Module):
    """R and, where classes are told apart, the head on its encoder.  R has 28,101,697 parameters, the head 132,613.

    Args:
        channels: of the first level; they double up to eight times as many.
        hidden: width of the head.
        classes: of doses, 0 for no head.
    """

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        widths = [channels * min(2**level, 8) for level in range(LEVELS)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (before, after) in enumerate(zip([1, *widths], widths, strict=False)):
            block: list[nn.Module] = [nn.LeakyReLU(0.2)] if level else []
            block.append(nn.Conv3d(before, after, 3, 2, 1))
            self.down.append(nn.Sequential(*block, *([nn.BatchNorm3d(after)] if 0 < level < LEVELS - 1 else [])))
        for level in reversed(range(LEVELS)):
            before, after = widths[level] * (1 if level == LEVELS - 1 else 2), widths[level - 1] if level else 1
            conv = nn.ConvTranspose3d(before, after, 3, 2, 1, output_padding=1)
            self.up.append(nn.Sequential(nn.ReLU(), conv, *([nn.BatchNorm3d(after)] if level else [])))
        self.head = (
            nn.Sequential(nn.Linear(widths[-1], hidden), nn.ReLU(), nn.Linear(hidden, classes)) if classes else None
        )

    def forward(self, low: Float[Tensor, "b 1 z y x"]) -> tuple[Float[Tensor, "b 1 z y x"], Float[Tensor, "b k"]]:
        """Return y1 and the classes' logits; edges are multiples of 32."""
        if any(edge % 2**LEVELS for edge in low.shape[2:]):
            raise ValueError(f"ML-Net takes edges that are multiples of {2**LEVELS}, not {tuple(low.shape[2:])}")
        maps = [low]
        for down in self.down:
            maps.append(down(maps[-1]))
        deepest = x = maps.pop()
        for up in self.up:
            x = up(x)
            if len(maps) > 1:
                x = torch.cat([x, maps.pop()], 1)
        if self.head is None:
            return x, low.new_zeros(len(low), 0)
        return x, self.head(F.leaky_relu(deepest, 0.2).mean((2, 3, 4)))


# Sec. II-B  Contextual-Net


class ResidualBlock(nn.Module):
    """Conv - ReLU - Conv, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = partial(nn.Conv3d, channels, channels, 3, padding=1)
        self.body = nn.Sequential(conv(), nn.ReLU(), conv())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class ContextualNet(nn.Module):
    """Conv - RB - RB - Conv - Conv, added to the coarse image.  140,161 parameters at 32 channels; reach 7 voxels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = partial(nn.Conv3d, kernel_size=3, padding=1)
        self.body = nn.Sequential(
            conv(1, channels), ResidualBlock(channels), ResidualBlock(channels), conv(channels, channels)
        )
        self.tail = conv(channels, 1)

    def forward(self, coarse: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1 z y x"]:
        refined: Tensor = coarse + self.tail(self.body(coarse))
        return refined


class Generator(nn.Module):
    """M and C: what is trained by one optimizer, exported and run at inference.  28,374,471 parameters."""

    def __init__(self, mlnet: MLNet, contextual: ContextualNet | None, detach_coarse: bool) -> None:
        super().__init__()
        self.mlnet, self.contextual, self.detach_coarse = mlnet, contextual, detach_coarse

    def forward(
        self,
        low: Float[Tensor, "b 1 z y x"],
        start: Float[Tensor, "b 1 z y x"] | None = None,
        noise: Float[Tensor, "b 1 1 1 1"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y1, logits (b, k; k = 0 without a head) and y2, which is y1 where nothing refines.

        Args:
            low: edges are multiples of 32.
            start: what R's output times ``noise`` is added to, None for no residual.
        """
        image, logits = self.mlnet(low)
        coarse = image if start is None or noise is None else start + noise * image
        if self.contextual is None:
            return coarse, logits, coarse
        return coarse, logits, self.contextual(coarse.detach() if self.detach_coarse else coarse)

    def synthesize(
        self,
        low: Float[Tensor, "b 1 zh yh xh"],
        halo: int,
        start: Float[Tensor, "b 1 zs ys xs"] | None = None,
        noise: Float[Tensor, "1 1 1 1 1"] | None = None,
    ) -> Float[Tensor, "b 1 z y x"]:
        """Return y2 without its ``halo``; C, which costs more than R, reads no more of it than it reaches.

        Args:
            start: as in ``forward``, ``REACH`` voxels larger than the tile on every side.
        """
        image, _ = self.mlnet(low)
        coarse = cropped(image, (halo - REACH,) * 3)
        if start is not None and noise is not None:
            coarse = start + noise * coarse
        return cropped(coarse if self.contextual is None else self.contextual(coarse), (REACH,) * 3)


def generator(config: Config) -> Generator:
    """Build M and C with fresh weights; C starts as the identity, and a residual at 0."""
    classes = len(config.doses) if config.classify else 0
    mlnet = MLNet(config.mlnet_channels, config.head_hidden, classes)
    contextual = ContextualNet(config.contextual_channels) if config.refine else None
    G = Generator(mlnet, contextual, config.detach_coarse)
    G.apply(_initialise)
    if contextual is not None:
        nn.init.zeros_(contextual.tail.weight)
    if config.residual == "gaussian":
        for parameter in mlnet.up[-1].parameters():
            nn.init.zeros_(parameter)
    return G


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    elif isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)):
        # PyTorch takes a transposed convolution's fans the wrong way round, which would start y1 at tens of SUV.
        fan: Literal["fan_in", "fan_out"] = "fan_out" if isinstance(module, nn.ConvTranspose3d) else "fan_in"
        nn.init.kaiming_normal_(module.weight, mode=fan)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Sec. II-C  Discriminator


class Discriminator(nn.Module):
    """pix2pix's patch discriminator in 3D: scores of regions of 70^3 voxels.  11,053,761 parameters.

    Patches of 32, 64, 96 voxels give 2^3, 6^3, 10^3 scores.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        layers: list[nn.Module] = [nn.Conv3d(2, c, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after, stride in ((c, 2 * c, 2), (2 * c, 4 * c, 2), (4 * c, 8 * c, 1)):
            norm = nn.BatchNorm3d(after, track_running_stats=False)
            layers += [nn.Conv3d(before, after, 4, stride, 1), norm, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv3d(8 * c, 1, 4, 1, 1))
        self.apply(_initialise)

    def forward(self, low: Float[Tensor, "b 1 z y x"], *images: Float[Tensor, "b 1 z y x"]) -> tuple[Tensor, ...]:
        """Return the scores of every image's pair with ``low``, each batch of pairs normed by itself."""
        return tuple(self.layers(torch.cat([low, image], 1)) for image in images)


# Eq. 2 and 4  (eq. 1 is PyTorch's L1, eq. 3 perceptual.feature_loss)


def class_loss(
    logits: Float[Tensor, "b k"], classes: Int[Tensor, " b"], shown: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Eq. 2: cross entropy, averaged over the patches that show their dose (``shown`` 1, others 0); 0 without any."""
    return (F.cross_entropy(logits, classes, reduction="none") * shown).sum() / shown.sum().clamp(min=1)


def discriminator_loss(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Eq. 4, as D minimises it."""
    return (real - 1).square().mean() + fake.square().mean()


def adversarial_loss(fake: Tensor) -> Float[Tensor, ""]:
    """Eq. 4 as M and C minimise it: the fake pair is to score as a real one."""
    return (fake - 1).square().mean()


def dose_classes(drf: Float[Tensor, " b"], doses: Sequence[float]) -> Int[Tensor, " b"]:
    """Return every patch's class, the place of its dose reduction factor in ``doses``.

    Raises:
        InputError: CFG_DOSES.
    """
    same = torch.isclose(drf[:, None], drf.new_tensor(doses))
    if not bool(same.any(1).all()):
        raise _wrong_doses(f"a patch of a dose reduction factor that is none of {_list(doses)}")
    return same.int().argmax(1)


# Sec. III-B  Schedule


@dataclass(frozen=True)
class Plateau:
    """A learning rate that is cut when scores stop falling (PyTorch's ReduceLROnPlateau, relative threshold 1e-4)."""

    lr: float
    best: float = math.inf
    bad: int = 0

    def after(self, score: float, config: Config) -> "Plateau":
        """Return the schedule after one more epoch with ``score``, lower being better."""
        if score < self.best * (1 - BETTER):
            return replace(self, best=score, bad=0)
        if self.bad < config.plateau_patience:
            return replace(self, bad=self.bad + 1)
        return replace(self, lr=self.lr * config.plateau_factor, bad=0)


class CG3DSRGAN:
    """The system in training: ``trainers.recipe.Recipe`` and ``trainers.recipe.Validated``."""

    def __init__(
        self,
        config: Config,
        M: Engine,
        D: Engine | None,
        phi: Engine | None,
        vgg16: perceptual.VGG16 | None,
        patches_per_step: int,
    ) -> None:
        self.config = config
        self.M, self.D, self.phi = M, D, phi
        self.engines = assembly.present({"M": M, "D": D, "phi": phi})
        self.vgg16 = vgg16  # in no engine: neither trained nor part of any state
        self.validate_every = assembly.steps_of(config.epoch_samples, patches_per_step)
        self.validate_batches = config.validate_batches
        self.validation_batch = BatchSpec(
            patch=config.patch,
            halo=(config.around,) * 3,
            patches_per_case=config.patches_per_case,
            sampler={"body": 1.0},
            beyond=True,
        )
        self._phases = assembly.Phases(
            {
                GAUSSIAN: assembly.steps_of(config.gaussian_samples, patches_per_step) if config.around else 0,
                "backbone": assembly.steps_of(config.backbone_samples, patches_per_step) if config.pretrains else 0,
                "joint": config.max_epochs * self.validate_every,  # at most: it may end early
                "statistics": assembly.steps_of(config.calibration_samples, patches_per_step),
            }
        )
        phases = self._phases
        self.num_steps, self.phase_starts, self.phase = phases.num_steps, phases.starts, phases.at
        self._plateau = Plateau(config.lr)
        self.errors = dose_gaussian.Errors()
        self.widths: Widths | None = None  # chosen when the first patch is restored

    def batch_spec(self, step: int) -> BatchSpec:
        """Return which patches every step reads: pairs of patches in the body."""
        return self.validation_batch

    def step(self, batch: Batch, step: int) -> Metrics:
        """Update phi, or D and then M with C, or batch norm's statistics alone; before, the Gaussians' errors."""
        phase = self.phase(step)
        if phase == GAUSSIAN:
            metrics = self._gaussian_step(batch)
        elif phase == "backbone":
            metrics = self._backbone_step(batch)
        elif phase == "joint":
            metrics = self._joint_step(batch)
        else:
            metrics = self._statistics_step(batch, first=step == self.phase_starts["statistics"])
        return {name: value.detach() for name, value in metrics.items()}

    def _gaussian_step(self, batch: Batch) -> Metrics:
        images = dose_gaussian.smoothed(batch.source, batch.spacing_mm, AROUND)
        self.widths = None
        return {GAUSSIAN: self.errors.add(images, batch).min()}

    def _seen(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What R sees of a batch, and what its output is added to (collective when it is asked for first)."""
        if not self.config.around:
            return batch.source, {}
        if self.widths is None:
            self.widths = dose_gaussian.fitted(self.errors.state())
        start = self.widths.smooth(batch.source, batch.spacing_mm, batch.drf, AROUND)
        low = cropped(batch.source, (AROUND,) * 3)
        return low, {"start": start, "noise": dose_gaussian.noise(low - start, batch.cases)}

    def _backbone_step(self, batch: Batch) -> Metrics:
        assert self.phi is not None
        hidden = perceptual.draw_mask(batch.target)
        loss = perceptual.restoration_loss(self.phi(batch.target, hidden), batch.target, hidden)
        self.phi.backward(loss)
        self.phi.step()
        return {"restoration": loss}

    def _joint_step(self, batch: Batch) -> Metrics:
        c = self.config
        self.M.module.train()
        low, added_to = self._seen(batch)
        coarse, logits, refined = self.M(low, **added_to)  # once: a second pass would count twice in batch norm
        metrics = {}
        if self.D is not None:
            real, fake = self.D(low, batch.target, refined.detach())
            metrics["discriminator"] = discriminator_loss(real, fake)
            self.D.backward(metrics["discriminator"])
            self.D.step()

        # Eq. 5 for M and C, against the updated D.
        terms = {"l1": F.l1_loss(coarse, batch.target)}  # Eq. 1
        if c.classify:
            classes = dose_classes(batch.drf, c.doses)
            shown = ((batch.target > AIR).float().mean((1, 2, 3, 4)) >= FOREGROUND).float()
            terms["class"] = class_loss(logits, classes, shown)
            metrics["accuracy"] = ((logits.argmax(1) == classes) * shown).sum() / shown.sum().clamp(min=1)
        if c.perceives:
            terms["perceptual"] = self._perceptual(refined, batch.target)
        with nullcontext() if self.D is None else self.D.frozen() as D:
            if D is not None:
                (score,) = D(low, refined)
                terms["adversarial"] = adversarial_loss(score)
            loss = torch.stack([getattr(c, f"lambda_{name}") * term for name, term in terms.items()]).sum()
            self.M.backward(loss)
        self.M.step()
        # No pixel loss holds y2's scale: this ratio tells when it drifts.
        activity = refined.sum() / batch.target.sum().clamp(min=1.0)
        return {**terms, **metrics, "generator": loss, "activity_ratio": activity}

    def _perceptual(self, image: Tensor, full: Tensor) -> Tensor:
        """Eq. 3."""
        if self.phi is None:
            assert self.vgg16 is not None
            return perceptual.slice_loss(self.vgg16, image, full)
        with self.phi.frozen() as net:
            with torch.no_grad():
                targets = net(full)
            return perceptual.feature_loss(net(image), targets)

    @torch.no_grad()
    def _statistics_step(self, batch: Batch, *, first: bool) -> Metrics:
        self.M.module.train()
        for norm in self.M.module.modules():
            if isinstance(norm, nn.BatchNorm3d):
                norm.momentum = None  # a cumulative mean; it counts batches in a buffer, which a resumed run finds
                if first:
                    norm.reset_running_stats()
        low, added_to = self._seen(batch)
        with self.M.frozen() as M:
            coarse, _, _ = M(low, **added_to)
        return {"l1": F.l1_loss(coarse, batch.target)}

    @torch.no_grad()
    def validate(self, batch: Batch) -> Metrics:
        """Score y2 of one batch, as at inference."""
        self.M.module.eval()
        low, added_to = self._seen(batch)
        with self.M.frozen() as M:
            _, _, refined = M(low, **added_to)
        return {"squared_error": F.mse_loss(refined, batch.target), "reference_power": batch.target.square().mean()}

    def observe(self, step: int, scores: Mapping[str, float]) -> int:
        """Cut the learning rates on a plateau of NRMSE; where they fall below ``stop_lr``, leave the joint phase."""
        if self.phase(step - 1) != "joint":
            return step
        nrmse = math.sqrt(scores["squared_error"] / max(scores["reference_power"], 1e-12))
        self._plateau = self._plateau.after(nrmse, self.config)
        self._set_lr()
        ends = self._plateau.lr < self.config.stop_lr * (1 - 1e-6)  # 2e-4 * 0.1 * 0.1 is no exact 2e-6
        return self._phases.end("joint") if ends else step

    def _set_lr(self) -> None:
        for engine in (self.M, self.D):
            if engine is not None:
                engine.set_lr(self._plateau.lr)

    def weights(self) -> dict[str, Tensor]:
        """Return M's and C's weights and running statistics, as ``weights_to_synthesizer`` takes them.

        With a residual, the Gaussians too.
        """
        found = assembly.weights_of(self.M)
        if not self.config.around:
            return found
        widths = dose_gaussian.fitted(self.errors.state())
        return found | {f"{GAUSSIAN}.{name}": value for name, value in vars(widths).items()}

    def synthesizer(self) -> Synthesizer:
        """Return M and C at inference, sharing their current weights."""
        module = self.M.module
        assert isinstance(module, Generator)
        if not self.config.around:
            return synthesizer_of(module)
        # Pictures are made by one rank alone, which must not wait for others: while errors grow it uses its own.
        return residual_of(module, self.config, self.widths or dose_gaussian.fitted(self.errors.own()))

    def state(self) -> State:
        """Return the states of M (with C), D and phi, as far as there are any, the schedule's and the Gaussians'."""
        p = self._plateau
        numbers = {"lr": p.lr, "best": p.best, "bad": p.bad}
        schedule = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        own = {GAUSSIAN: self.errors.state()} if self.config.around else {}
        return assembly.states(self.engines) | {"schedule": schedule} | own

    def load(self, state: State) -> None:
        """Continue from ``state``."""
        assembly.load_states(self.engines, state)
        schedule = {name: float(value) for name, value in state["schedule"].items()}
        self._plateau = Plateau(schedule["lr"], schedule["best"], int(schedule["bad"]))
        self._set_lr()
        if self.config.around:
            self.errors.load(state[GAUSSIAN])
            self.widths = None


TILING = Tiling(tile=(64, 64, 64), halo=(HALO,) * 3, multiple=(2**LEVELS,) * 3)


def synthesizer_of(G: Generator) -> WindowSynthesizer:
    """Return M and C at inference.

    Windows of tile + 2 * 48 voxels lie on R's grid of 32; from 39 voxels inside their faces on they equal any larger
    window, up to rounding.
    """
    return WindowSynthesizer(G, TILING, run=partial(G.synthesize, halo=HALO))


@dataclass(frozen=True)
class ResidualSynthesizer:
    """M and C at inference, added to the Gaussian of one scan: ``trainers.recipe.Synthesizer`` and ``ScanAware``.

    A context holds the noise of the case, (1, 1, 1, 1, 1).

    Args:
        generator: M and C.
        context_batch: patches that freeze the noise of a case.
        widths: of the Gaussians.
        scan: what is known of the scan.
        tiling: how a volume is cut.
    """

    generator: Generator
    context_batch: BatchSpec
    widths: Widths
    scan: Scan = dose_gaussian.NO_SCAN
    tiling: Tiling = TILING

    def for_scan(self, scan: Scan) -> "ResidualSynthesizer":
        """Return the synthesizer of one scan."""
        return replace(self, scan=scan)

    def remark(self, context: Mapping[str, Tensor]) -> str:
        """Return nothing: a scan of a dose that is not known is restored as those trained on."""
        return ""

    @torch.no_grad()
    def context(self, overview: Tensor, low: Float[Tensor, "n 1 zh yh xh"]) -> dict[str, Float[Tensor, "1 1 1 1 1"]]:
        """Freeze the noise of a case, which its context patches show."""
        return _noise_of(low, self.widths.smooth_scan(low, self.scan, AROUND))

    @torch.no_grad()
    def __call__(self, low: Float[Tensor, "b 1 zh yh xh"], context: Mapping[str, Tensor]) -> Float[Tensor, "b 1 z y x"]:
        """Synthesize tiles; negatives are left in, to be clipped on export."""
        start = self.widths.smooth_scan(cropped(low, (HALO - REACH - AROUND,) * 3), self.scan, AROUND)
        return self.generator.eval().synthesize(low, HALO, start, context["noise"])

    @property
    def facts(self) -> tuple[str, ...]:
        """What the Gaussian depends on."""
        return dose_gaussian.FACTS

    @property
    def unknown(self) -> tuple[str, ...]:
        """The dose need not be known."""
        return dose_gaussian.UNKNOWN

    @property
    def short_patches(self) -> Literal["cut", "filled"]:
        """Beyond a volume there is no noise."""
        return "cut"

    def graphed_context(self) -> Callable[..., dict[str, Tensor]]:
        """Return what freezes the noise of a case."""
        smooth = self.widths.graphed()

        def context(overview: Tensor, low: Tensor, *facts: Tensor) -> dict[str, Tensor]:
            return _noise_of(low, smooth(low, AROUND, *facts))

        return context

    def graphed_tile(self) -> Callable[..., Tensor]:
        """Return what synthesizes one tile."""
        smooth, G = self.widths.graphed(), self.generator.eval()

        def tile(low: Tensor, context: Mapping[str, Tensor], *facts: Tensor) -> Tensor:
            start = smooth(cropped(low, (HALO - REACH - AROUND,) * 3), AROUND, *facts)
            return G.synthesize(low, HALO, start, context["noise"])

        return tile


def _noise_of(low: Tensor, start: Tensor) -> dict[str, Tensor]:
    return {"noise": dose_gaussian.noise(cropped(low, (AROUND,) * 3) - start, 1)[:1]}


def residual_of(G: Generator, config: Config, widths: Widths) -> ResidualSynthesizer:
    """Return M and C at inference where there is a residual; windows are those of ``synthesizer_of``."""
    spec = BatchSpec(config.patch, (AROUND,) * 3, CONTEXT_PATCHES, {"body": 1.0})
    return ResidualSynthesizer(G, spec, widths)


def check(config: Config, feed: FeedConfig, doses: Doses) -> None:
    """Refuse images without a dose reduction factor, and classes that are not those of the images fed.

    Raises:
        InputError: CFG_DOSES; CFG_CHOICE, as ``assembly.check_air_beyond``.
    """
    assembly.check_air_beyond(config, feed, doses)
    if not config.classify:
        return
    factors = frozenset().union(*doses.values())
    if any(map(math.isnan, factors)):
        raise _wrong_doses("an image that states no dose reduction factor")
    if factors != set(config.doses):
        raise _wrong_doses(f"images of {_list(sorted(factors))}, recipe.doses {_list(config.doses)}")


def _wrong_doses(found: str) -> InputError:
    return InputError(
        "CFG_DOSES",
        where="feed.source",
        found=found,
        remedy="feed images of exactly these factors (--set feed.source=low_drf4,low_drf20 recipe.doses=4,20), or "
        "train without classes (--set recipe.classify=False)",
    )


def _list(doses: Sequence[float]) -> str:
    return ", ".join(f"{dose:g}" for dose in dict.fromkeys(doses))


def _lonely() -> InputError:
    return InputError(
        "CFG_RANGE",
        where="feed.cases_per_step",
        found="one patch per step, of which batch norm would make an instance norm",
        remedy="use two patches per step or more (--set feed.cases_per_step=4)",
    )


def files(config: Config) -> dict[str, Path]:
    """Return VGG16's file where the loss needs one.

    Raises:
        InputError: CFG_BACKBONE.
    """
    if not config.perceives or config.perceptual != "vgg16":
        return {}
    file = Path(config.vgg16_file)
    perceptual.check_vgg16(file, config.vgg16_sha256)
    return {"vgg16_file": file}


def caveats(config: Config) -> tuple[str, ...]:
    """Say what the perceptual loss, the classes and the model kept are."""
    backbone = "none"
    if config.perceives and config.perceptual == "vgg16":
        backbone = f"VGG16 on slices, SHA-256 {config.vgg16_sha256}"
    elif config.perceives:
        backbone = "an autoencoder trained on masked full-dose patches of the run (not the paper's VGG16)"
    switches = {"classify": "classes", "adversarial": "discriminator", "refine": "Contextual-Net"}
    parts = [name for field, name in switches.items() if getattr(config, field)]
    added = ("R's output is added to the Gaussian of the dose, which is not the paper's.",) if config.around else ()
    return (
        f"CG-3DSRGAN: ML-Net{''.join(f' + {part}' for part in parts)}; perceptual loss: {backbone}.",
        f"Dose classes: {_list(config.doses) if config.classify else 'none'}.",
        "The model kept is the last one, not the best on validation patients.",
        *added,
    )


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> CG3DSRGAN:
    """Build networks and engines, one Adam each; ``patches_per_step`` counts the patches of all ranks.

    Raises:
        InputError: CFG_BACKBONE; CFG_RANGE where batch norm would see one patch.
    """
    if patches_per_step < 2:
        raise _lonely()
    optimizer = partial(torch.optim.Adam, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    M = make_engine(generator(config), optimizer)
    D = make_engine(Discriminator(config.discriminator_channels), optimizer) if config.adversarial else None
    phi = make_engine(perceptual.MaskedAutoencoder(), optimizer) if config.pretrains else None
    vgg16 = None
    # A dry run on the meta device computes nothing; ``files`` has checked the file by then.
    if config.perceives and not config.pretrains and torch.get_default_device().type != "meta":
        vgg16 = perceptual.read_vgg16(Path(config.vgg16_file), config.vgg16_sha256)
    return CG3DSRGAN(config, M, D, phi, vgg16, patches_per_step)


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> Synthesizer:
    """Build the inference side from M's and C's weights, named as in ``state()["M"]`` without the prefix ``weight/``.

    With a residual they hold the Gaussians too, ``gaussian.drf`` and ``gaussian.fwhm_mm``.

    Raises:
        InputError: CKPT_CONFIG.
    """
    own, widths = dose_gaussian.split_weights(weights, GAUSSIAN if config.around else "", "weights of M")
    G = assembly.with_weights(partial(generator, config), own, "weights of M")
    return residual_of(G, config, widths) if widths else synthesizer_of(G)
