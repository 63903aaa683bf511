"""S3PET: semi-supervised standard-dose PET by dose-aware token swap.

Cui, Zeng, Xu, Wu, Zhou, Wang, 2024, arXiv 2407.20878.  No code was published; this is written from the text.  Letters
are the paper's, with M for its transfer module (its T counts blocks): x low or full dose slices, E encoders, P
projectors, D decoders; e tokens of an encoder, ``di`` dose-invariant and ``ds`` dose-specific ones, ``l`` of low and
``s`` of full (standard) dose; ``h`` is a hat.

Stage I trains one masked autoencoder (DsMAE) per dose on images that need no partner.  Stage II fine-tunes both
encoders on pairs, splits their tokens, and decodes each dose from the other's invariant tokens.  Inference is E_L, P_L,
P_I, M and D_S, from the low dose alone.  Random numbers (initial weights, masks) come from torch's default generator,
which the loop seeds from (seed, step, rank) before each step.  The only file read is the
one named by ``encoders``.

Errors of the print: D = {L, D} is {L, S} (Sec. III-A); decoders are "linear-based" (Sec. III-B) and "CNN-based" (Dose
Decoders, which gives their layers and is followed); DKD and DKL are "shared" as a whole, then only the invariant
projectors are, which is followed: specific projectors must tell doses apart.  Table I's caption promises parameter
counts and gives none: those tested are of this reading.  The gain over SemiPET is 0.404 dB, not 0.44.

Readings where the text is silent or says two things:
    Stage I  every position enters the encoder, masked ones as a learned token: with visible ones alone, as in MAE, the
            linear decoder's answer at a masked place could not depend on the image.  r% is the share kept ("sample r%
            patches while masking the remaining"): 0.75 (low) and 0.60 (full) are masked, low dose more, as in Sec.
            III-A.  The loss is over all pixels, as in Eq. 1.
    Tokens  patches of 8 x 8: three up-samplings take a 16 x 16 grid to 128 x 128.  Width 384, 6 heads, MLP x4,
            pre-norm, no class token; positions are fixed sines and cosines, relative to the window.
    JS      of softmax over the embedding axis, natural logarithm, mean over tokens: bounded by ln 2, and near 0.05 at
            the start, in proportion with 5 * L1.  It does not see a constant added to a token.  No gradient is
            stopped: P_S has no other teacher than Eq. 3.
    Swap    D_S gets M(l_ds) in training as at inference ("the transferred dose-specific tokens"), D_L the real l_ds.
            Decoding the swapped s_ds in training, as the first sentences on DKL may mean, fails at inference: JS of a
            softmax does not make two token sets interchangeable.  ``also_decode_swapped`` decodes both: s_ds then has a
            second teacher, the image.
    D       concatenates both token sets and ends in a 1 x 1 convolution: BN-ReLU as the last layer would tie a
            quantitative image to a running variance.  Bilinear up-sampling, 3 x 3 kernels, 256...32 channels.
    L1 is a mean; gamma weighs the full dose.  Adam as PyTorch has it, constant rate, encoders not frozen, the last
    step's weights.  Encoders start as MAE's (Xavier-uniform, mask token N(0, 0.02)), all else as PyTorch's.
    Table II  without DKD (V0, V1) the branches share no weight, so only the main one exists; with DKD alone (V2) each
            decoder gets both token sets of its own branch.

Deviations, because this trains on whole volumes at native resolution:
    A slice is a window of an axial slice, and a step holds 32 from 32 places, as shuffled slices would be.  With
    ``slices`` neighbours are read as one slab and enter the batch as slices: less to read, but fewer places; 8 slabs
    of 4 cost 0.9 to 1.5 dB after 250 to 300 steps.  95 % of the windows are centred in the body, 5 % lie anywhere: air
    must be learnt, but windows of air alone are trivial to unmask and pull batch norm's statistics down.
    ``residual`` is not the paper's.
    Intensities are SUV on one fixed scale for both doses; batch norm takes its statistics over the whole step.  At
    inference windows overlap by half and are blended; all have the training size, since positions are relative to them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from storage.errors import InputError
from storage.ranges import Range
from trainers import assembly, checkpoint
from trainers.assembly import WindowSynthesizer, as_slices, slicewise
from trainers.feed_config import FeedConfig
from trainers.recipe import (
    Batch,
    BatchSpec,
    Departure,
    Doses,
    Engine,
    EngineFactory,
    Metrics,
    State,
    Synthesizer,
    Tiling,
)

FEED = FeedConfig(source=("low_drf10",), suv_scale=5.0, cases_per_step=32)  # the paper's batch of 32 slices
PRESET = "s3pet"
ROLES = frozenset({"unpaired"})
LATER = frozenset({"residual", "also_decode_swapped"})
PRACTICE = (Departure("recipe.patch_size", 0, "a size of tokens that follows the voxels"),)
IMAGES: Mapping[str, Literal["paired", "source", "target"]] = {
    "low encoder": "source",  # Sec. III-A
    "full encoder": "target",
    "token swap": "paired",  # Sec. III-B
}
SAMPLER = {"body": 0.95, "uniform": 0.05}
Dose = Literal["low", "full"]
COARSE_MM = 20.0  # 8 voxels of 2.5 mm; a token of the paper's is 13 mm long
PAPER_MM = (1.65, 1.65, 1.65)  # voxels of the paper's scanner
FINER = 3  # decoder blocks for tokens of 4 x 4 voxels
TILE_SLICES = 16  # of one window at a time: under a quarter of a GB of feature maps


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published system at native resolution; every ablation of Table II is a field.

    Args:
        window: edge length in voxels of the square window of an axial slice (Sec. IV-A).
        slices: neighbouring slices read as one slab.
        patch_size: edge length of the patch behind a token, a power of 2 that the decoders undo; 8 voxels are 13 mm at
            the 1.65 mm of the paper's scanner.  0 leaves it to the voxels trained on: 4 where these are above 2.5 mm
            within slices, and the decoders then end after three blocks; else what all blocks undo.
        dim: d, channels of a token.
        blocks: T, transformer blocks of an encoder (Sec. IV-A).
        heads: attention heads of a block.
        mlp_ratio: width of a block's MLP in multiples of d.
        mask_low: share of a low-dose slice's tokens that is masked in Stage I; more than of full dose (Sec. III-A).
        mask_full: share of a full-dose slice's tokens that is masked in Stage I.
        pretrained: the encoders come from Stage I (Table II, DsMAE).
        decouple: dose knowledge decouple module and with it the auxiliary branch (Table II, DKD).
        transfer: token swap and transfer module (Table II, DKL); needs ``decouple``.
        also_decode_swapped: D_S decodes the full dose's own specific tokens s_ds beside M(l_ds) in training, and both
            images are compared with the full dose; D_S's running statistics are of both.  Needs ``transfer``.
        encoders: file of encoders that an earlier run saved, which then replace Stage I; empty to train them here.
        residual: what D_S's output is added to: nothing, as published, or the low dose, and D_S then starts at 0.
        decoder_channels: channels of the decoders' blocks; one block more than up-samplings (four, Sec. III-B).
        gamma: weight of the full dose in Eq. 4 (Sec. IV-A).
        lambda_transfer: lambda_1 of Eq. 5 (Sec. IV-A).
        lambda_rec: lambda_2 of Eq. 5 (Sec. IV-A).
        lr: Adam's learning rate in both stages (Sec. IV-A).
        low_samples: slices that Stage I sees of low dose: 300 epochs of 30 scans of 128 slices (Sec. IV-A).
        full_samples: slices that Stage I sees of full dose: 300 epochs of 120 scans.
        swap_samples: pairs of slices that Stage II sees: 100 epochs of 30 scans; 0 to train the encoders alone.
        patches_per_case: slabs that one group holds, all of one case.
    """

    window: Annotated[int, Range(1)] = 128
    slices: Annotated[int, Range(1)] = 1
    patch_size: int = 8
    dim: Annotated[int, Range(1)] = 384
    blocks: Annotated[int, Range(1)] = 4
    heads: Annotated[int, Range(1)] = 6
    mlp_ratio: Annotated[int, Range(1)] = 4
    mask_low: Annotated[float, Range(0, below=1)] = 0.75
    mask_full: Annotated[float, Range(0, below=1)] = 0.60
    pretrained: bool = True
    decouple: bool = True
    transfer: bool = True
    also_decode_swapped: bool = False
    encoders: str = ""
    residual: Literal["none", "low"] = "none"
    decoder_channels: Annotated[tuple[int, ...], Range(1)] = (256, 128, 64, 32)
    gamma: Annotated[float, Range(0)] = 1.0
    lambda_transfer: Annotated[float, Range(0)] = 1.0
    lambda_rec: Annotated[float, Range(0)] = 5.0
    lr: Annotated[float, Range(above=0)] = 2e-4
    low_samples: Annotated[int, Range(0)] = 1_152_000
    full_samples: Annotated[int, Range(0)] = 4_608_000
    swap_samples: Annotated[int, Range(0)] = 384_000
    patches_per_case: Annotated[int, Range(1)] = 1

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "s3pet")
        widths, undone = self.decoder_channels, 2 ** (len(self.decoder_channels) - 1)
        require(len(widths) > 0, "CFG_RANGE", "decoder_channels", "give the channels of one block or more")
        remedy = f"use {undone}: {len(widths)} decoder blocks double the token grid between them"
        require(self.patch_size in (0, undone), "CFG_PATCH_SIZE", "patch_size", remedy)
        remedy = f"use a multiple of patch_size ({undone})"
        require(self.window % undone == 0, "CFG_PATCH_SIZE", "window", remedy)
        remedy = f"use a multiple of 4 (positions) and of heads ({self.heads})"
        require(self.dim % self.heads == 0 and self.dim % 4 == 0, "CFG_RANGE", "dim", remedy)
        remedy = "set decouple=True too, whose tokens it swaps, or transfer=False"
        require(self.decouple or not self.transfer, "CFG_RANGE", "transfer", remedy)
        remedy = "set transfer=True too, whose tokens are swapped"
        require(self.transfer or not self.also_decode_swapped, "CFG_RANGE", "also_decode_swapped", remedy)
        remedy = "leave it empty, or use the encoders with --set recipe.pretrained=True"
        require(self.pretrained or not self.encoders, "CFG_STAGE", "encoders", remedy)
        remedy = (
            "a stage II without a stage I: give samples, or encoders of an earlier run (--set recipe.encoders=...), "
            "or go without (--set recipe.pretrained=False)"
        )
        for phase, samples in self.phase_samples.items():
            require(samples > 0 or phase == "token swap", "CFG_STAGE", f"{phase.split()[0]}_samples", remedy)
        remedy = "nothing would be trained: give samples"
        require(self.swap_samples > 0 or len(self.phase_samples) > 1, "CFG_STAGE", "swap_samples", remedy)

    @property
    def doses(self) -> tuple[Dose, ...]:
        """Doses that have an encoder."""
        return ("low", "full") if self.decouple else ("low",)

    @property
    def phase_samples(self) -> dict[str, int]:
        """Slices that every phase of the run sees, in order; encoders from elsewhere have no phase."""
        here = self.doses if self.pretrained and not self.encoders else ()
        stage_1 = {f"{dose} encoder": int(getattr(self, f"{dose}_samples")) for dose in here}
        return stage_1 | {"token swap": self.swap_samples}

    @property
    def variant(self) -> str:
        """Row of Table II."""
        parts = {"DsMAE": self.pretrained, "DKD": self.decouple, "DKL": self.transfer}
        return "S3PET" if all(parts.values()) else " + ".join(["baseline", *(name for name, on in parts.items() if on)])


# Sec. III-A  Dose encoder and DsMAE


def patchify(x: Float[Tensor, "b 1 y x"], size: int) -> Float[Tensor, "b n pixels"]:
    """Cut images into square patches, row by row, and flatten each row by row."""
    patches: Tensor = F.pixel_unshuffle(x, size).flatten(2).transpose(1, 2)
    return patches


def unpatchify(patches: Float[Tensor, "b n pixels"]) -> Float[Tensor, "b 1 y x"]:
    """Inverse of ``patchify`` for square images."""
    image: Tensor = F.pixel_shuffle(_to_map(patches), math.isqrt(patches.shape[2]))
    return image


def _to_map(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d gy gx"]:
    b, n, d = tokens.shape
    grid = math.isqrt(n)
    return tokens.transpose(1, 2).reshape(b, d, grid, grid)


@cache
def positions(grid: int, dim: int, device: torch.device) -> Float[Tensor, "n d"]:
    """Sines and cosines of the row (first half of the channels) and column of every token of a square window (MAE)."""
    with torch.inference_mode(False):
        rates = 10000.0 ** -(torch.arange(dim // 4, device=device, dtype=torch.float64) / (dim // 4))
        angles = torch.arange(grid, device=device, dtype=torch.float64)[:, None] * rates
        axis = torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (grid, dim / 2)
        rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
        return torch.cat([rows, columns], dim=2).flatten(0, 1)


class Block(nn.Module):
    """Pre-norm transformer block; 12 d^2 + 13 d parameters at ``ratio`` 4."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = self.qkv(self.norm_1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        mixed: Tensor = tokens + self.mlp(self.norm_2(tokens))
        return mixed


class Encoder(nn.Module):
    """E: linear embedding of patches, T blocks, a final norm; without masks, positions or a head among its weights."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.embedding = nn.Linear(config.patch_size**2, config.dim)
        self.blocks = nn.Sequential(*(Block(config.dim, config.heads, config.mlp_ratio) for _ in range(config.blocks)))
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.apply(_xavier)

    def embed(self, x: Float[Tensor, "b 1 y x"]) -> Float[Tensor, "b n d"]:
        """Return one token per patch, computed from its patch alone."""
        tokens: Tensor = self.embedding(patchify(x, self.patch_size))
        return tokens

    def mix(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Add positions and let the tokens see each other."""
        _, n, dim = tokens.shape
        mixed: Tensor = self.norm(self.blocks(tokens + positions(math.isqrt(n), dim, tokens.device)))
        return mixed

    def forward(self, x: Float[Tensor, "b 1 y x"]) -> Float[Tensor, "b n d"]:
        return self.mix(self.embed(x))


class DsMAE(nn.Module):
    """Masked autoencoder of one dose; its head and mask token end with Stage I."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.mask_token = nn.Parameter(torch.zeros(config.dim))
        self.head = nn.Linear(config.dim, config.patch_size**2)
        nn.init.normal_(self.mask_token, std=0.02)
        self.head.apply(_xavier)

    def forward(self, x: Float[Tensor, "b 1 y x"], masked: Bool[Tensor, "b n"]) -> Float[Tensor, "b 1 y x"]:
        tokens = torch.where(masked[..., None], self.mask_token, self.encoder.embed(x))
        return unpatchify(self.head(self.encoder.mix(tokens)))


def draw_mask(images: int, tokens: int, ratio: float, device: torch.device) -> Bool[Tensor, "images tokens"]:
    """Mask exactly round(ratio * tokens) tokens of every image, every choice equally likely."""
    chosen = torch.rand(images, tokens, device=device).argsort(dim=1)[:, : round(ratio * tokens)]
    return torch.zeros(images, tokens, dtype=torch.bool, device=device).scatter_(1, chosen, True)


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


# Sec. III-B  Bilateral network


class Decoder(nn.Module):
    """D: token sets side by side as a map, Conv-BN-ReLU blocks with up-sampling between them, a 1 x 1 convolution."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in pairwise((channels, *widths)):
            if layers:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, *tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b 1 y x"]:
        image: Tensor = self.layers(_to_map(torch.cat(tokens, dim=2)))
        return image


def full_decoder(config: Config, channels: int) -> Decoder:
    """D_S; where its output is added to the low dose it gives 0 at the start."""
    decoder = Decoder(channels, config.decoder_channels)
    if config.residual == "low":
        for parameter in decoder.layers[-1].parameters():
            nn.init.zeros_(parameter)
    return decoder


class Baseline(nn.Module):
    """Without DKD (V0, V1 of Table II): an encoder and a decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.residual = config.residual
        self.E_L = Encoder(config)
        self.D_S = full_decoder(config, config.dim)

    def forward(self, x_l: Float[Tensor, "b 1 y x"]) -> Float[Tensor, "b 1 y x"]:
        image: Tensor = self.D_S(self.E_L(x_l))
        return image if self.residual == "none" else x_l + image


class MainBranch(nn.Module):
    """What inference needs: full dose from low dose."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.E_L = Encoder(config)
        d = config.dim
        self.P_L, self.P_I = nn.Linear(d, d), nn.Linear(d, d)
        self.M = nn.Linear(d, d) if config.transfer else nn.Identity()
        self.residual = config.residual
        self.D_S = full_decoder(config, 2 * d)

    def image(
        self, x_l: Float[Tensor, "b 1 y x"], l_di: Float[Tensor, "b n d"], sh_ds: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b 1 y x"]:
        """Return xh_s from invariant and transferred specific tokens."""
        image: Tensor = self.D_S(l_di, sh_ds)
        return image if self.residual == "none" else x_l + image

    def forward(self, x_l: Float[Tensor, "b 1 y x"]) -> Float[Tensor, "b 1 y x"]:
        e_l = self.E_L(x_l)
        return self.image(x_l, self.P_I(e_l), self.M(self.P_L(e_l)))


class Bilateral(nn.Module):
    """Main and auxiliary branch; P_I is one module in both, P_L and P_S are not."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.swap, self.also_swapped = config.transfer, config.also_decode_swapped
        self.main = MainBranch(config)
        self.E_S = Encoder(config)
        self.P_S = nn.Linear(config.dim, config.dim)
        self.D_L = Decoder(2 * config.dim, config.decoder_channels)

    def forward(self, x_l: Float[Tensor, "b 1 y x"], x_s: Float[Tensor, "b 1 y x"]) -> tuple[Tensor, ...]:
        """Return the images xh_s and xh_l, the tokens l_di, s_di, s_ds and sh_ds, and xh_s of s_ds if asked for."""
        main = self.main
        e_l, e_s = main.E_L(x_l), self.E_S(x_s)
        l_ds, l_di = main.P_L(e_l), main.P_I(e_l)
        s_ds, s_di = self.P_S(e_s), main.P_I(e_s)
        sh_ds = main.M(l_ds)
        swapped = (main.image(x_l, l_di, s_ds),) if self.also_swapped else ()
        images = main.image(x_l, l_di, sh_ds), self.D_L(s_di, l_ds if self.swap else s_ds)
        return *images, l_di, s_di, s_ds, sh_ds, *swapped


# Sec. III-C  Objective function


def js_divergence(u: Float[Tensor, "b n d"], v: Float[Tensor, "b n d"]) -> Float[Tensor, ""]:
    """Return the Jensen-Shannon divergence of softmax over d, mean over tokens, in [0, ln 2]; in fp32 logarithms."""
    log_p, log_q = F.log_softmax(u.float(), dim=-1), F.log_softmax(v.float(), dim=-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1).mean() / 2


def swap_losses(
    config: Config, outputs: Sequence[Tensor], x_l: Float[Tensor, "b 1 y x"], x_s: Float[Tensor, "b 1 y x"]
) -> dict[str, Tensor]:
    """Return the terms of Eq. 5 that the variant has, from what its network returned."""
    terms = {"full": F.l1_loss(outputs[0], x_s)}  # Eq. 4, second line
    if config.decouple:
        _, xh_l, l_di, s_di, s_ds, sh_ds, *swapped = outputs
        terms |= {"low": F.l1_loss(xh_l, x_l), "align": js_divergence(l_di, s_di)}  # Eq. 4, first line; Eq. 2
        if config.transfer:
            terms["transfer"] = js_divergence(s_ds, sh_ds)  # Eq. 3
        if config.also_decode_swapped:
            terms["swapped"] = F.l1_loss(swapped[0], x_s)
    return terms


def total(config: Config, terms: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Return Eq. 5: L_align + lambda_1 L_transfer + lambda_2 (L1 of low dose + gamma L1 of full dose)."""
    c = config
    factors = {"full": c.lambda_rec * c.gamma, "low": c.lambda_rec, "align": 1.0, "transfer": c.lambda_transfer}
    factors["swapped"] = factors["full"]
    return torch.stack([factors[name] * value for name, value in terms.items()]).sum()


# Sec. IV-A  Training


class S3PET:
    """The system in training: ``trainers.recipe.Recipe`` and ``Exporting``.

    Args:
        autoencoders: engine of the DsMAE of every dose that Stage I trains here; empty without Stage I.
        network: engine of the Stage II network.
    """

    def __init__(
        self, config: Config, autoencoders: Mapping[str, Engine], network: Engine, patches_per_step: int
    ) -> None:
        self.config = config
        self.autoencoders, self.network = autoencoders, network
        self.engines = {f"{dose} encoder": engine for dose, engine in autoencoders.items()} | {"network": network}
        slices = patches_per_step * config.slices
        steps = {name: assembly.steps_of(samples, slices) for name, samples in config.phase_samples.items()}
        phases = assembly.Phases(steps)
        self.num_steps, self.phase_starts, self.phase = phases.num_steps, phases.starts, phases.at
        # First step of Stage II, or the end of a run without one; 0 without Stage I.
        self._stage_1_end = phases.num_steps - steps["token swap"] if autoencoders else 0
        self._trained: Dose | None = None  # whose autoencoder the last step trained; None for the network's

    def batch_spec(self, step: int) -> BatchSpec:
        """Return which patches ``step`` reads: slabs of one dose in Stage I, of both in Stage II."""
        c = self.config
        return BatchSpec(
            patch=(c.slices, c.window, c.window),
            halo=(0, 0, 0),
            patches_per_case=c.patches_per_case,
            sampler=SAMPLER,
            images=IMAGES[self.phase(step)],
        )

    def step(self, batch: Batch, step: int) -> Metrics:
        """Update one DsMAE (Stage I), or both branches (Stage II)."""
        images = IMAGES[self.phase(step)]
        self._trained = None if images == "paired" else "low" if images == "source" else "full"
        if self._trained is None:
            if self.autoencoders and step == self._stage_1_end:
                self._hand_over()
            metrics = self._swap_step(as_slices(batch.source), as_slices(batch.target))
        else:
            x = batch.source if self._trained == "low" else batch.target
            metrics = self._encoder_step(self._trained, as_slices(x))
        return {name: value.detach() for name, value in metrics.items()}

    def _encoder_step(self, dose: Dose, x: Float[Tensor, "b 1 y x"]) -> Metrics:
        c, engine = self.config, self.autoencoders[dose]
        engine.module.train()
        masked = mask_of(c, dose, x)
        xh = engine(x, masked)
        loss = F.l1_loss(xh, x)  # Eq. 1
        engine.backward(loss)
        engine.step()
        unseen = patchify((xh.detach() - x).abs(), c.patch_size).mean(2) * masked
        return {"masked_autoencoder": loss, "masked_patches": unseen.sum() / masked.sum().clamp(min=1)}

    def _swap_step(self, x_l: Float[Tensor, "b 1 y x"], x_s: Float[Tensor, "b 1 y x"]) -> Metrics:
        self.network.module.train()
        outputs = self.network(x_l, x_s) if self.config.decouple else (self.network(x_l),)
        terms = swap_losses(self.config, outputs, x_l, x_s)
        loss = total(self.config, terms)
        self.network.backward(loss)
        self.network.step()
        # Eq. 3 alone teaches s_ds; it is minimal as well where both token sets collapse, as their spread would show.
        spread = dict(zip(("l_di", "s_di", "s_ds", "sh_ds"), outputs[2:], strict=False))
        variances = {f"variance_{name}": t.detach().flatten(0, 1).var(0).mean() for name, t in spread.items()}
        return {"total": loss, **terms, **variances}

    def _hand_over(self) -> None:
        """Start Stage II's encoders where Stage I ended."""
        placed = {dose: _place(self.config, dose) for dose in self.autoencoders}
        encoders = {f"{place}.{k}": v for dose, place in placed.items() for k, v in self._encoder(dose).items()}
        assembly.set_weights(self.network, encoders)

    def _encoder(self, dose: str) -> dict[str, Tensor]:
        """Return what Stage I has made of an encoder so far, without head and mask token (collective)."""
        return assembly.weights_of(self.autoencoders[dose], under="encoder.")

    def _trained_encoders(self) -> dict[str, Tensor]:
        named = {f"{dose}.{name}": v for dose in self.autoencoders for name, v in self._encoder(dose).items()}
        return named | {"settings": torch.tensor(list(_settings(self.config).values()))}

    def exports(self, step: int) -> dict[str, dict[str, Tensor]]:
        """Return the trained encoders at the end of Stage I, for ``encoders`` of other runs (collective)."""
        return {"encoders": self._trained_encoders()} if self.autoencoders and step == self._stage_1_end else {}

    def weights(self) -> dict[str, Tensor]:
        """Return what ``weights_to_synthesizer`` takes; the encoders of a run without Stage II."""
        if not self.config.swap_samples:
            return self._trained_encoders()
        return assembly.weights_of(self.network, under="main." if self.config.decouple else "")

    def synthesizer(self) -> Synthesizer:
        """Return the main branch at inference, sharing its current weights; untrained until Stage II.

        In Stage I it shows what the autoencoder at hand makes of a masked slice.
        """
        module = self.network.module
        inner = slicewise(module.main if isinstance(module, Bilateral) else module, tiling_of(self.config))
        if self._trained is None:
            return inner
        autoencoder = self.autoencoders[self._trained].module
        assert isinstance(autoencoder, DsMAE)
        return Stage1(inner, self.config, self._trained, autoencoder)

    def state(self) -> State:
        """Return the states of Stage I's autoencoders and of Stage II's network."""
        return assembly.states(self.engines)

    def load(self, state: State) -> None:
        """Continue from ``state``."""
        assembly.load_states(self.engines, state)


@dataclass(frozen=True)
class Stage1:
    """Stage II's network, untrained as yet, and what Stage I trains: ``Synthesizer`` and ``Illustrated``.

    Args:
        inner: the network that Stage II will train.
        config: of the run.
        dose: whose slices the autoencoder restores.
        autoencoder: of that dose.
    """

    inner: WindowSynthesizer
    config: Config
    dose: Dose
    autoencoder: DsMAE
    context_batch: None = None

    @property
    def tiling(self) -> Tiling:
        """As Stage II's."""
        return self.inner.tiling

    def context(self, overview: Tensor, source: Tensor) -> dict[str, Tensor]:
        """Return nothing: a window depends on no other."""
        return {}

    def __call__(self, source: Float[Tensor, "b 1 z y x"], context: Mapping[str, Tensor]) -> Float[Tensor, "b 1 z y x"]:
        """Synthesize tiles by weights that are not trained yet."""
        return self.inner(source, context)

    @torch.no_grad()
    def shown(
        self, source: Float[Tensor, "b 1 z y x"], target: Float[Tensor, "b 1 z y x"]
    ) -> dict[str, Float[Tensor, "b 1 z y x"]]:
        """Return the slices of a dose with masked patches as 0, what the autoencoder makes of them, and the slices.

        The mask is the same in every picture.
        """
        x = as_slices(source if self.dose == "low" else target)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            masked = mask_of(self.config, self.dose, x)
        seen = patchify(x, self.config.patch_size).masked_fill(masked[..., None], 0.0)
        named = {
            f"{self.dose} dose, masked": unpatchify(seen),
            "reconstructed": self.autoencoder.eval()(x, masked),
            f"{self.dose} dose": x,
        }
        return {name: image.reshape(source.shape) for name, image in named.items()}


def mask_of(config: Config, dose: Dose, x: Float[Tensor, "b 1 y x"]) -> Bool[Tensor, "b n"]:
    """Draw the mask of Stage I for slices of a dose (Sec. III-A)."""
    ratio = config.mask_low if dose == "low" else config.mask_full
    return draw_mask(len(x), (config.window // config.patch_size) ** 2, ratio, x.device)


def _place(config: Config, dose: str) -> str:
    """Where the encoder of a dose lies in Stage II's network."""
    return "E_S" if dose == "full" else "main.E_L" if config.decouple else "E_L"


def _settings(config: Config) -> dict[str, int]:
    """What an encoder's shapes alone do not tell, or tell badly."""
    return {name: getattr(config, name) for name in ("window", "patch_size", "dim", "blocks", "heads", "mlp_ratio")}


def tiling_of(config: Config) -> Tiling:
    """Return windows of the training size that overlap by half; z may be anything."""
    half = config.window // 2
    return Tiling(tile=(TILE_SLICES, config.window, config.window), halo=(0, 0, 0), overlap=(0, half, half))


# What the registry reads


def check(config: Config, feed: FeedConfig, doses: Doses) -> None:
    """Refuse several dose reduction factors: one low-dose encoder learns one dose (Sec. III-A).

    Raises:
        InputError: CFG_DOSES.
    """
    factors = sorted(frozenset().union(*doses.values()), key=str)
    unknown = any(map(math.isnan, factors))
    if len(factors) > 1 or (len(feed.source) > 1 and unknown):
        named = ", ".join("unknown" if math.isnan(drf) else f"{drf:g}" for drf in factors)
        raise InputError(
            "CFG_DOSES",
            where="feed.source",
            found=f"images of the dose reduction factors {named}; S3PET learns one",
            remedy="name the images of one dose (--set feed.source=low_drf10), and train a run per dose",
        )


def files(config: Config) -> dict[str, Path]:
    """Return the file of encoders that replaces Stage I, if any.

    Raises:
        InputError: CKPT_NONE.
    """
    if not config.encoders:
        return {}
    path = Path(config.encoders)
    if not path.is_file():
        raise InputError(
            "CKPT_NONE",
            where=path.name,
            found="s3pet.encoders names no file",
            remedy="give the encoders.safetensors that a run with Stage I wrote (--set recipe.encoders=...)",
        )
    return {"encoders": path}


def at_voxels(config: Config, spacing_mm: tuple[float, float, float]) -> Config:
    """Return the configuration with the size of tokens that suits voxels of ``spacing_mm``, where it is left to them.

    >>> [at_voxels(Config(patch_size=0), (3.0, mm, mm)).patch_size for mm in (2.5, 4.0)]
    [8, 4]
    """
    if config.patch_size:
        return config
    widths = config.decoder_channels
    if 8 * max(spacing_mm[1:]) > COARSE_MM:
        widths = widths[:FINER]
    return replace(config, patch_size=2 ** (len(widths) - 1), decoder_channels=widths)


def remarks(config: Config, spacing_mm: tuple[float, float, float]) -> tuple[str, ...]:
    """Say how large tokens are in mm where that is much more than the paper's 13 mm, and how to make them smaller."""
    _, y_mm, x_mm = (config.patch_size * edge for edge in spacing_mm)
    if max(y_mm, x_mm) <= COARSE_MM or config.patch_size <= 4:
        return ()
    blocks = " ".join(map(str, config.decoder_channels[:FINER]))
    return (
        f"a token of {config.patch_size} x {config.patch_size} voxels is {y_mm:.0f} x {x_mm:.0f} mm here, 13 mm on the "
        "scanner of S3PET's paper: smaller ones keep more detail and take longer "
        f"(--recipe.patch-size 4 --recipe.decoder-channels {blocks})",
    )


def caveats(config: Config) -> tuple[str, ...]:
    """Say which row of Table II was trained, where its encoders came from, and what must not be concluded."""
    here = f"trained in this run on {config.low_samples} low-dose" + (
        f" and {config.full_samples} full-dose slices" if config.decouple else " slices"
    )
    origin = ("trained by an earlier run" if config.encoders else here) if config.pretrained else "not pre-trained"
    caution = (
        "No loss forces specific tokens to hold the dose alone: a better image is no proof of disentanglement. What "
        "was learnt from unpaired full dose reaches inference only through the alignment and transfer losses."
    )
    added = "What D_S decodes is added to the low dose, which is not the paper's."
    return (
        f"S3PET variant: {config.variant}; encoders {origin}.",
        *([caution] if config.decouple else []),
        *(["In training D_S also decodes the full dose's own tokens."] if config.also_decode_swapped else []),
        *([added] if config.residual == "low" else []),
    )


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> S3PET:
    """Build networks and engines; ``patches_per_step`` counts the slabs of all ranks.

    Raises:
        InputError: CKPT_NONE, CKPT_DAMAGED, CKPT_CONFIG of the file ``config.encoders``.
    """
    config = at_voxels(config, PAPER_MM)  # a run's is fitted to its own voxels by then
    optimizer = partial(torch.optim.Adam, lr=config.lr)  # Sec. IV-A; betas and eps are PyTorch's
    doses = [name.split()[0] for name in config.phase_samples if IMAGES[name] != "paired"]
    autoencoders = {dose: make_engine(DsMAE(config), optimizer) for dose in doses}
    network = Bilateral(config) if config.decouple else Baseline(config)
    if config.encoders:
        _start_from(files(config)["encoders"], config, network)
    return S3PET(config, autoencoders, make_engine(network, optimizer), patches_per_step)


@torch.no_grad()
def _start_from(path: Path, config: Config, network: nn.Module) -> None:
    """Give Stage II's encoders, before an engine takes them over, the weights that an earlier run saved."""
    saved, _ = checkpoint.read_weights(path)
    settings = _settings(config)
    found = dict(zip(settings, saved["settings"].tolist(), strict=False)) if "settings" in saved else {}
    differing = [
        f"{name} {found.get(name)} (here {value})" for name, value in settings.items() if found.get(name) != value
    ]
    for dose in config.doses:
        wanted = network.get_submodule(_place(config, dose)).state_dict()
        given = {key.removeprefix(f"{dose}."): value for key, value in saved.items() if key.startswith(f"{dose}.")}
        if differing or {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in given.items()}:
            raise InputError(
                "CKPT_CONFIG",
                where=path.name,
                found=", ".join(differing) or f"no encoder of {dose} dose of these settings",
                remedy="use encoders trained with the same settings, or change this run's to theirs",
            )
        for name, value in wanted.items():
            value.copy_(given[name])


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> WindowSynthesizer:
    """Build the inference side alone from what ``S3PET.weights`` returned.

    Raises:
        InputError: CFG_STAGE for a run that trained encoders alone; CKPT_CONFIG.
    """
    if not config.swap_samples:
        raise InputError(
            "CFG_STAGE",
            where="s3pet.swap_samples",
            found="0: the run holds encoders only, which make no image",
            remedy="train a run with Stage II on them: --set recipe.encoders=RUN/encoders.safetensors",
        )
    build_network = MainBranch if config.decouple else Baseline
    network = assembly.with_weights(partial(build_network, config), weights, "weights of S3PET")
    return slicewise(network, tiling_of(config))
