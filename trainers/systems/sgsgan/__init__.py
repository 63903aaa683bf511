"""SGSGAN: 3D segmentation guided style-based generative adversarial networks for PET synthesis.

Zhou, Yang, Zhang, Chang, Fan, Xu, IEEE Transactions on Medical Imaging 2022, arXiv 2205.08887.  No code was published;
this is written from the text.  Capital letters are the paper's: G generator, D critic, S segmenter, x low dose
(``low``), y full dose (``full``), W style vector (``style``), P noise scales, A affine maps.

This file holds the configuration, the losses, the four phases and their order of updates; ``networks`` holds G, D and
S.  Random numbers (initial weights, noise) come from torch's default generator, which the loop seeds from (seed, step,
rank) before each step, so that a resumed run draws what an uninterrupted one would have drawn.

``residual`` and ``gaussian_samples`` are not the paper's: see ``PRACTICE``.

Errors of the print, corrected:
    Eq. 8   one formula for D and G would make G's images *more* fake: D minimises mean D(G(x)) - mean D(y), G minimises
            -mean D(G(x)), as WGAN does.
    Eq. 5   lacks its minus sign.
    Eq. 5, 9  sums over voxels would outweigh the adversarial term 10^5-fold; every loss is a mean, as pix2pix's L1.

Readings where the text is silent:
    Fig. 3  stem of 2k channels, k = 8, four dense units, AdaIN on those four: the only natural layout that gives both
            published counts, 0.03 M and 0.59 M.  Modulating every layer would give 0.61 M.
    3D-UNet widths 48...512, style on encoder levels 0-2: one of many layouts of 49.40 M and 50.28 M (low confidence).
    Mapping "the input is normalized first": divided by its root mean square over the whole overview.
    LeakyReLU 0.2 after AdaIN, linear output, no global residual, P starts at 1, biased variance with eps 1e-5.
    D       instance norm without affine, since a gain clipped to 0.01 would switch the adversarial term off.
    Weights at the start are Kaiming's, D's N(0, 0.02) as pix2pix.  DCITN starts near the identity: on two synthetic
            patches, 108 steps at lr 1e-4 lowered L1 from the input's 0.15 to 0.03; a Kaiming start got to 0.07.
    S       the 3D U-Net (arXiv 1606.06650) with instance norm and one sigmoid channel per organ.
    Phase 4 resumes S ("restart the training"); it has no effect on G, and is what the Unet-score-SG asks (Sec. IV-B).

Deviations, because the paper shrinks whole bodies to 64^3 and this trains on patches at native resolution:
    W comes from an overview, the whole low-dose volume resized: the paper's input, one W per volume, hence no seams.
    Statistics of AdaIN (and of the 3D-UNet's batch norm, equal in parameters) are joint over the patches of one case in
    training, and frozen per case at inference: tiles with a halo of the receptive field then equal the whole volume.
    The low-dose patch is read with that halo: zero padding inside the body would leave a rim that D learns at once.
    Dice leaves absent organs out; half of the patches of phases 2-4 are centred in an organ.  The case statistics of
    phase 3 therefore see more organ voxels than those at inference, which are drawn in the body alone.

Not the paper's, off by default:
    residual  G's output is added to the low dose smoothed by the Gaussian of its dose, times the noise of the case, and
            starts at 0.  The Gaussian (``trainers.dose_gaussian``) is chosen per dose on training patches, in a phase
            of its own before the paper's; the noise is the standard deviation of what the Gaussian takes away, over
            the same patches as AdaIN's statistics, hence known from the low dose alone.

With ``patch`` (64, 64, 64), ``patches_per_case`` 1, ``context_patches`` 1 and ``halo`` 0, fed with whole volumes
resized to 64^3, all of this reduces to the published system.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from storage.errors import InputError
from storage.ranges import Range
from trainers import assembly, dose_gaussian, losses
from trainers.dose_gaussian import Widths
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, BatchSpec, Departure, Doses, Engine, EngineFactory, Metrics, Scan, State, Tiling
from trainers.systems.sgsgan.networks import (
    DCITN,
    Critic,
    FixedFactors,
    Generator,
    MappingNetwork,
    Modulation,
    Noise,
    Segmenter,
    UNet3D,
    kaiming,
)

FEED = FeedConfig()  # SUV as they are: see ``FeedConfig.suv_scale``
PRESET = "sgsgan"
ROLES: frozenset[str] = frozenset()
LATER = frozenset({"residual", "gaussian_samples"})
PRACTICE = (
    Departure("feed.beyond", "mirror", "mirrored borders"),
    Departure("engine.ema_decay", 0.998, "averaged weights"),
    Departure("recipe.residual", "gaussian", "a residual on the Gaussian of the dose"),
)
PHASES = ("gan", "segmenter", "guided gan", "final segmenter")  # Sec. III-C (1) to (4)
GAUSSIAN = "gaussian"  # the phase before them where there is a residual, and what its weights' names begin with
GUIDE = "segmenter"  # stem of the file that S is exported to
HALVED = 32  # voxels that the 3D-UNet's five halvings make one
EXACT_TILE = (64, 64, 64)  # a quarter of a GB of feature maps; larger ones save little of the halo
CONTENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "gde": losses.gradient_difference,
}  # Table VIII


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published system at native resolution; every ablation of the paper's tables is a field.

    Args:
        synthesis: synthesis network (Table I).
        growth: k, channels that a dense unit of DCITN adds (Fig. 3).
        units: dense units of DCITN (fixed by the published count).
        stem_channels: channels of DCITN's first convolution, None for 2 * growth (DCSRN's rule; fixed by the count).
        concat_input: DCITN's input joins the dense concatenation too (a reading that the published count excludes).
        unet_channels: channels of 3D-UNet's level 0; they double per level up to 512 (48 gives the published count).
        modulated: layers with noise and AdaIN; DCITN: 0 the stem, i unit i; 3D-UNet: encoder levels.  None for the
            layers that the published counts single out: all units, and levels 0 to 2.
        style_dim: length of W (Sec. III-A.1).
        use_noise: noise module (Sec. III-A.2, Table III).
        use_adain: mapping network and AdaIN (Sec. III-A.1 and 3, Table III).
        noise_std: standard deviation of Z on the run's intensity scale (Sec. IV-C.2).
        critic_channels: channels of D's first layer (pix2pix).
        segmenter_channels: b of S; its levels have 2b, 4b, 8b, 16b channels (16, half of the 3D U-Net's 32).
        rois: organs that guide G (Sec. IV-A.2, Table IV); () for no guidance, which leaves phase 1 alone.
        lambda_content: weight of the content loss (Sec. IV-C.3).
        lambda_seg: weight of the segmentation loss in phase 3 (Sec. IV-C.3).
        content: content loss (Table VIII).
        seg_loss: segmentation loss (Table IX).
        lr: RMSprop's learning rate for all networks, fixed (Sec. IV-C.3).
        clip: bound c of D's weights (Sec. IV-C.3).
        phase_samples: patches that each phase sees: 1200, 100, 300, 100 epochs of 200 image tuples (Sec. IV-C.1).
        overview: edge length of the resized whole volume that the mapping network sees (64, Sec. IV-A.3).
        patch: edge lengths (z, y, x) in voxels; multiples of 8, at least 24, of 32 for the 3D-UNet.
        patches_per_case: patches over which AdaIN's statistics are joint in training.
        context_patches: patches that freeze a case's statistics at inference.
        halo: voxels read around a low-dose patch, None for DCITN's receptive radius units + 2 (0 for the 3D-UNet).
            Less is faster, zero padded inside the body, and blended over overlapping tiles.
        roi_fraction: share of the patches of phases 2-4 that are centred in a guiding organ.
        lesion_fraction: share of all training patches that are centred in a lesion.
        residual: what G's output is added to: nothing, as published, or the low dose smoothed by the Gaussian of its
            dose; G then starts at 0.
        gaussian_samples: patches that the Gaussians are chosen on, where there is a residual.
    """

    synthesis: Literal["dcitn", "unet3d"] = "dcitn"
    growth: Annotated[int, Range(1)] = 8
    units: Annotated[int, Range(1)] = 4
    stem_channels: Annotated[int | None, Range(1)] = None
    concat_input: bool = False
    unet_channels: Annotated[int, Range(1)] = 48
    modulated: tuple[int, ...] | None = None
    style_dim: Annotated[int, Range(1)] = 512
    use_noise: bool = True
    use_adain: bool = True
    noise_std: Annotated[float, Range(0)] = 0.01
    critic_channels: Annotated[int, Range(1)] = 64
    segmenter_channels: Annotated[int, Range(1)] = 16
    rois: tuple[str, ...] = ("liver", "brain", "kidneys", "bladder")
    lambda_content: Annotated[float, Range(0)] = 100.0
    lambda_seg: Annotated[float, Range(0)] = 1.0
    content: Literal["l1", "l2", "gde", "l1+gde"] = "l1"
    seg_loss: Literal["bce", "dice", "bce+dice"] = "bce+dice"
    lr: Annotated[float, Range(above=0)] = 1e-4
    clip: Annotated[float, Range(above=0)] = 0.01
    phase_samples: Annotated[tuple[int, int, int, int], Range(0)] = (240_000, 20_000, 60_000, 20_000)
    overview: int = 64
    patch: tuple[int, int, int] = (64, 64, 64)
    patches_per_case: Annotated[int, Range(1)] = 4
    context_patches: Annotated[int, Range(1)] = 16
    halo: Annotated[int | None, Range(0)] = None
    roi_fraction: Annotated[float, Range(0)] = 0.5
    lesion_fraction: Annotated[float, Range(0)] = 0.0
    residual: Literal["none", "gaussian"] = "none"
    gaussian_samples: Annotated[int, Range(1)] = 100

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "sgsgan")
        edge = 8 if self.synthesis == "dcitn" else HALVED  # S halves three times, the 3D-UNet five times
        require(
            all(e % edge == 0 and e >= 24 for e in self.patch),
            "CFG_PATCH_SIZE",
            "patch",
            f"use multiples of {edge} of at least 24 voxels (D's smallest input)",
        )
        require(
            self.overview >= 16 and self.overview % 16 == 0,
            "CFG_RANGE",
            "overview",
            "use a multiple of 16: the mapping network halves it four times",
        )
        require(self.synthesis == "dcitn" or self.margin == 0, "CFG_RANGE", "halo", "use 0 with the 3D-UNet")
        top = self.units if self.synthesis == "dcitn" else 5
        require(
            all(0 <= layer <= top for layer in self.layers)
            and len(set(self.layers)) == len(self.layers)
            and bool(self.layers or not (self.use_noise or self.use_adain)),
            "CFG_RANGE",
            "modulated",
            f"name different layers from 0 to {top}, or switch use_noise and use_adain off",
        )
        require(
            len(self.phase_samples) == 4 and self.phase_samples[0] > 0,
            "CFG_RANGE",
            "phase_samples",
            "give four numbers of patches, the first above 0",
        )
        require(len(set(self.rois)) == len(self.rois), "CFG_ROI", "rois", "name every organ once")
        require(
            self.roi_fraction + self.lesion_fraction <= 1,
            "CFG_RANGE",
            "roi_fraction",
            "use shares that make at most 1 with lesion_fraction",
        )

    @property
    def radius(self) -> int:
        """Receptive radius of G in voxels; 0 where it exceeds any window (3D-UNet)."""
        if self.synthesis != "dcitn":
            return 0
        return max(self.units + 2, dose_gaussian.REACH if self.residual == "gaussian" else 0)

    @property
    def margin(self) -> int:
        """Voxels read around a low-dose patch."""
        return self.radius if self.halo is None else self.halo

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with noise and AdaIN."""
        if self.modulated is not None:
            return self.modulated
        return tuple(range(1, self.units + 1)) if self.synthesis == "dcitn" else (0, 1, 2)


# Sec. III-A  Style-based generator


def generator(config: Config) -> Generator:
    """Build G with fresh weights: Kaiming, biases 0, P = 1, A(W) around gamma = 1 and beta = 0; DCITN near identity."""

    def factors(channels: int) -> nn.Module | None:
        if not config.use_adain:
            return None if config.synthesis == "dcitn" else FixedFactors(channels)
        affine = nn.Linear(config.style_dim, 2 * channels)
        with torch.no_grad():
            affine.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))
        return affine

    def modulation(name: str, channels: int) -> Modulation:
        return Modulation(name, Noise(channels, config.noise_std) if config.use_noise else None, factors(channels))

    modulated = config.layers if config.use_noise or config.use_adain else ()
    synthesis: DCITN | UNet3D
    if config.synthesis == "dcitn":
        synthesis = DCITN(
            growth=config.growth,
            units=config.units,
            stem_channels=2 * config.growth if config.stem_channels is None else config.stem_channels,
            concat_input=config.concat_input,
            halo=config.margin,
            modulated=modulated,
            modulation=modulation,
        )
    else:
        synthesis = UNet3D(channels=config.unet_channels, modulated=modulated, modulation=modulation)
    G = Generator(synthesis, MappingNetwork(config.overview, config.style_dim) if config.use_adain else None)
    G.apply(kaiming)
    if config.residual == "gaussian":
        for parameter in synthesis.out.parameters():
            nn.init.zeros_(parameter)
    elif isinstance(synthesis, DCITN):
        synthesis.start_near_identity()
    return G


# Eq. 5 to 7  Losses of S


def segmentation_losses(
    logits: Float[Tensor, "b k z y x"], masks: Float[Tensor, "b k z y x"], names: str
) -> dict[str, Tensor]:
    """Return the terms of Eq. 7 that ``names`` ("bce", "dice", "bce+dice") asks for; L_Seg is their sum."""
    terms = {}
    if "bce" in names:
        terms["bce"] = F.binary_cross_entropy_with_logits(logits, masks)  # Eq. 5
    if "dice" in names:
        terms["dice"] = losses.soft_dice_loss(torch.sigmoid(logits), masks)  # Eq. 6
    return terms


# Sec. III-C and IV-C  Alternate training


class SGSGAN:
    """The system in training: ``trainers.recipe.Recipe`` and, for S, ``Exporting``."""

    def __init__(self, config: Config, G: Engine, D: Engine, S: Engine | None, patches_per_step: int) -> None:
        self.config = config
        self.G, self.D, self.S = G, D, S
        self.engines = assembly.present({"G": G, "D": D, "S": S})
        samples = config.phase_samples if config.rois else config.phase_samples[:1]
        if config.residual == "gaussian":
            lengths = {GAUSSIAN: config.gaussian_samples, **dict(zip(PHASES, samples, strict=False))}
        else:
            lengths = dict(zip(PHASES, samples, strict=False))
        phases = assembly.Phases({name: assembly.steps_of(n, patches_per_step) for name, n in lengths.items()})
        self.num_steps, self.phase_starts, self.phase = phases.num_steps, phases.starts, phases.at
        self.errors = dose_gaussian.Errors()
        self.widths: Widths | None = None  # chosen when the first network is trained

    def batch_spec(self, step: int) -> BatchSpec:
        """Return which patches ``step`` reads: of the body, and from phase 2 on of organs with their masks."""
        c = self.config
        guided = self.phase(step) not in (GAUSSIAN, "gan")
        roi = c.roi_fraction if guided else 0.0
        shares = {"body": 1 - roi - c.lesion_fraction, "roi": roi, "lesion": c.lesion_fraction}
        return BatchSpec(
            patch=c.patch,
            halo=(c.margin,) * 3,
            patches_per_case=c.patches_per_case,
            sampler={name: share for name, share in shares.items() if share > 0},
            rois=c.rois if guided else (),
            unlabelled="train without guidance: --set recipe.rois=()",
            overview=c.overview if c.use_adain else 0,
        )

    def step(self, batch: Batch, step: int) -> Metrics:
        """Update D and then G (phases 1 and 3), or S (phases 2 and 4); before them, add to the Gaussians' errors."""
        phase = self.phase(step)
        if phase == GAUSSIAN:
            return self._gaussian_step(batch)
        if phase in ("gan", "guided gan"):
            return self._gan_step(batch, guide=self.S if phase == "guided gan" else None)
        return self._segmenter_step(batch)

    def _gaussian_step(self, batch: Batch) -> Metrics:
        images = dose_gaussian.smoothed(batch.source, batch.spacing_mm, self.config.margin)
        errors = self.errors.add(images, batch)
        self.widths = None
        return {GAUSSIAN: errors.min()}

    def _start(self, batch: Batch) -> Tensor | None:
        """What G's output is added to, None for nothing (collective when it is asked for first)."""
        if self.config.residual == "none":
            return None
        if self.widths is None:
            self.widths = dose_gaussian.fitted(self.errors.state())
        return self.widths.smooth(batch.source, batch.spacing_mm, batch.drf, self.config.margin)

    def _gan_step(self, batch: Batch, guide: Engine | None) -> Metrics:
        c = self.config
        self.G.module.train()
        self.D.module.train()
        yh = self.G(batch.source, batch.overview, cases=batch.cases, start=self._start(batch))

        # Eq. 8 for D.  One forward for both, since a network may run forward for its own update once per step.
        real, fake = self.D(torch.cat([batch.target, yh.detach()])).chunk(2)
        critic = losses.critic_loss(real, fake)
        self.D.backward(critic)
        self.D.step()
        self.D.clip_weights(c.clip)

        # Eq. 10 for G, against the updated D.  A view of yh for every loss keeps the gradients apart, at no cost.
        to_critic, to_content = yh.view_as(yh), yh.view_as(yh)
        to_critic.retain_grad()
        to_content.retain_grad()
        terms = {name: CONTENT[name](to_content, batch.target) for name in c.content.split("+")}
        content = torch.stack(list(terms.values())).sum()  # Eq. 9
        with self.D.frozen() as D:
            adversarial = losses.generator_loss(D(to_critic))
            loss = adversarial + c.lambda_content * content
            if guide is not None:
                guide.module.eval()
                with guide.frozen() as S:
                    seg = segmentation_losses(S(yh), batch.masks, c.seg_loss)
                loss = loss + c.lambda_seg * torch.stack(list(seg.values())).sum()
                terms |= seg
            self.G.backward(loss)
        self.G.step()
        assert to_critic.grad is not None
        assert to_content.grad is not None
        metrics = {
            "critic": critic,
            "wasserstein": -critic,
            "adversarial": adversarial,
            "content": content,
            "generator": loss,
            "adversarial_to_content_gradient": to_critic.grad.norm() / to_content.grad.norm().clamp(min=1e-30),
            **terms,
        }
        return {name: value.detach() for name, value in metrics.items()}

    def _segmenter_step(self, batch: Batch) -> Metrics:
        assert self.S is not None
        self.G.module.eval()  # S must see what inference produces: no noise
        self.S.module.train()
        with torch.no_grad(), self.G.frozen() as G:
            yh = G(batch.source, batch.overview, cases=batch.cases, start=self._start(batch))
        terms = segmentation_losses(self.S(yh), batch.masks, self.config.seg_loss)
        loss = torch.stack(list(terms.values())).sum()  # Eq. 7
        self.S.backward(loss)
        self.S.step()
        return {name: value.detach() for name, value in {"segmentation": loss, **terms}.items()}

    def weights(self) -> dict[str, Tensor]:
        """Return G's weights and, with a residual, the Gaussians, as ``weights_to_synthesizer`` takes them."""
        found = assembly.weights_of(self.G)
        if self.config.residual == "none":
            return found
        widths = dose_gaussian.fitted(self.errors.state())
        return found | {f"{GAUSSIAN}.{name}": value for name, value in vars(widths).items()}

    def exports(self, step: int) -> dict[str, dict[str, Tensor]]:
        """Return S once phase 4 has ended, for the Unet-score-SG (Sec. IV-B) (collective).

        S is the one that phase 4 leaves, for the images of the G that phase 3 leaves.
        """
        ends = step == self.num_steps and PHASES[-1] in self.phase_starts
        return {GUIDE: assembly.weights_of(self.S)} if ends and self.S is not None else {}

    def synthesizer(self) -> "StyleSynthesizer":
        """Return G at inference, sharing its current weights."""
        module = self.G.module
        assert isinstance(module, Generator)
        # Pictures are made by one rank alone, which must not wait for others: while errors grow it uses its own.
        widths = self.widths or dose_gaussian.fitted(self.errors.own())
        return _synthesizer(self.config, module, widths if self.config.residual == "gaussian" else None)

    def state(self) -> State:
        """Return the states of G, D and, where organs guide, S; with a residual, the Gaussians' errors."""
        own = {GAUSSIAN: self.errors.state()} if self.config.residual == "gaussian" else {}
        return assembly.states(self.engines) | own

    def load(self, state: State) -> None:
        """Continue from ``state``."""
        assembly.load_states(self.engines, state)
        if self.config.residual == "gaussian":
            self.errors.load(state[GAUSSIAN])
            self.widths = None


@dataclass(frozen=True)
class StyleSynthesizer:
    """G at inference, noise off: ``trainers.recipe.Synthesizer``, with a residual of one scan (``for_scan``).

    A context holds W and the statistics of every normalised layer, each (1, channels).

    Args:
        generator: G.
        tiling: how a volume is cut.
        context_batch: patches that freeze a case's statistics, None for none.
        widths: of the Gaussians that G's output is added to, None for no residual.
        scan: what is known of the scan.
    """

    generator: Generator
    tiling: Tiling
    context_batch: BatchSpec | None
    widths: Widths | None = None
    scan: Scan = dose_gaussian.NO_SCAN

    def for_scan(self, scan: Scan) -> "StyleSynthesizer":
        """Return the synthesizer of one scan."""
        return replace(self, scan=scan)

    def remark(self, context: Mapping[str, Tensor]) -> str:
        """Return nothing: a scan of a dose that is not known is restored as those trained on."""
        return ""

    @torch.no_grad()
    def context(
        self, overview: Float[Tensor, "1 1 o o o"], low: Float[Tensor, "n 1 zh yh xh"]
    ) -> dict[str, Float[Tensor, "1 channels"]]:
        """Freeze W and the statistics of a case from its overview and its context patches.

        Patches of a volume that is smaller than a tile are filled up with air, as its tiles are, for the 3D-UNet, which
        takes multiples of 32 voxels alone.
        """
        if isinstance(self.generator.synthesis, UNet3D):
            z, y, x = (max(0, edge - n) for edge, n in zip(self.tiling.tile, low.shape[2:], strict=True))
            low = F.pad(low, (0, x, 0, y, 0, z))
        return self.generator.eval().context(low, overview, self._start(low))

    @torch.no_grad()
    def __call__(self, low: Float[Tensor, "b 1 zh yh xh"], context: Mapping[str, Tensor]) -> Float[Tensor, "b 1 z y x"]:
        """Synthesize tiles of any size; negatives are left in, to be clipped on export."""
        return self.generator.eval().synthesize(low, context, self._start(low))

    @property
    def facts(self) -> tuple[str, ...]:
        """What the Gaussian depends on; nothing where there is none."""
        return dose_gaussian.FACTS if self.widths else ()

    @property
    def unknown(self) -> tuple[str, ...]:
        """The dose need not be known."""
        return dose_gaussian.UNKNOWN if self.widths else ()

    @property
    def short_patches(self) -> Literal["cut", "filled"]:
        """As ``context`` has it."""
        return "filled" if isinstance(self.generator.synthesis, UNet3D) else "cut"

    def graphed_context(self) -> Callable[..., dict[str, Tensor]]:
        """Return what freezes W and the statistics of a case."""
        start, G = self._graphed_start(), self.generator.eval()

        def context(overview: Tensor, low: Tensor, *facts: Tensor) -> dict[str, Tensor]:
            return G.context(low, overview, start(low, *facts))

        return context

    def graphed_tile(self) -> Callable[..., Tensor]:
        """Return what synthesizes one tile."""
        start, G = self._graphed_start(), self.generator.eval()

        def tile(low: Tensor, context: Mapping[str, Tensor], *facts: Tensor) -> Tensor:
            return G.synthesize(low, context, start(low, *facts))

        return tile

    def _graphed_start(self) -> Callable[..., Tensor | None]:
        if self.widths is None:
            return lambda low: None
        smooth, halo = self.widths.graphed(), self.tiling.halo[0]
        return lambda low, *facts: smooth(low, halo, *facts)

    def _start(self, low: Tensor) -> Tensor | None:
        if self.widths is None:
            return None
        return self.widths.smooth_scan(low, self.scan, self.tiling.halo[0])


def _synthesizer(config: Config, G: Generator, widths: Widths | None) -> StyleSynthesizer:
    normed = config.use_adain or config.synthesis == "unet3d" or config.residual == "gaussian"
    exact = 0 < config.radius <= config.margin
    overlap = 0 if exact else min(config.patch) // 2
    return StyleSynthesizer(
        generator=G,
        tiling=Tiling(
            # With its whole receptive field a tile of any size equals the volume; without, half of it is blended.
            tile=EXACT_TILE if exact else config.patch,
            halo=(config.margin,) * 3,
            overlap=(overlap, overlap, overlap),
        ),
        context_batch=BatchSpec(
            patch=config.patch,
            halo=(config.margin,) * 3,
            patches_per_case=config.context_patches,
            sampler={"body": 1.0},
            overview=config.overview if config.use_adain else 0,
        )
        if normed
        else None,
        widths=widths,
    )


def check(config: Config, feed: FeedConfig, doses: Doses) -> None:
    """Take images of one dose or of several; refuse to train a 3D-UNet whose deepest norm sees one voxel of a case.

    Such a norm gives 0 in training and something else at inference.  Runs of before are still read and used.

    Raises:
        InputError: CFG_RANGE.
    """
    deepest = math.prod(edge // HALVED for edge in config.patch) * config.patches_per_case
    if config.synthesis == "unet3d" and deepest == 1:
        raise InputError(
            "CFG_RANGE",
            where="sgsgan.patches_per_case",
            found=f"{config.patches_per_case}; five halvings leave one voxel of a patch of {HALVED}^3 for a norm",
            remedy="use 2 or more, or a longer patch (--recipe.patch 64 64 64)",
        )


files = assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say which organs guided the generator."""
    return (f"SGSGAN-{config.synthesis}; guidance: {', '.join(config.rois) or 'none'}.",)


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> SGSGAN:
    """Build networks and engines, one RMSprop each; ``patches_per_step`` counts the patches of all ranks."""
    optimizer = partial(torch.optim.RMSprop, lr=config.lr)  # Sec. IV-C.3; alpha 0.99 and eps 1e-8 are PyTorch's
    G = make_engine(generator(config), optimizer)
    D = make_engine(Critic(config.critic_channels), optimizer)
    S = make_engine(Segmenter(config.segmenter_channels, len(config.rois)), optimizer) if config.rois else None
    return SGSGAN(config, G, D, S, patches_per_step)


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> StyleSynthesizer:
    """Build the inference side from G's weights, named as in ``state()["G"]`` without the prefix ``weight/``.

    With a residual they hold the Gaussians too, ``gaussian.drf`` and ``gaussian.fwhm_mm``.

    Raises:
        InputError: CKPT_CONFIG where names or shapes are not those of the configuration.
    """
    under = GAUSSIAN if config.residual == "gaussian" else ""
    own, widths = dose_gaussian.split_weights(weights, under, "weights of G")
    G = assembly.with_weights(partial(generator, config), own, "weights of G")
    return _synthesizer(config, G, widths)
