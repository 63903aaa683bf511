"""restore: petscale's own system; a bias-free residual network on a fitted bank of Gaussians, one for all doses.

No paper; docs/results/restore.md has the measurements behind every default.  Its parts and where they come from:

1. *Bank* (``trainers.filter_bank``): the best adaptive filter of every dose, fitted by least squares in the first
   phase; between doses its coefficients are interpolated over the logarithm of the dose reduction factor.
2. *Network*: x = x0 + g f(u), where x0 is the bank's answer and g the local level.  u and f(u) have no unit, and f has
   no additive constant: it follows the scale of SUV and the level of noise by construction (Mohan, Kadkhodaie,
   Simoncelli, Fernandez-Granda, ICLR 2020, arXiv 1906.05478), also at doses that were never trained.  The last layer
   starts at zero, so that training starts at the bank.
3. *Count gate*: a low dose that was thinned from the full dose's own counts holds the share 1/DRF of its noise.  The
   best answer to the full dose is low/DRF + (1 - 1/DRF) E[truth | low]; network and bank learn E[truth | low] alone.
4. *Loss* in SUV: squared errors over the noise that is expected, weighted by the source alone but for lesions, which
   are rare and would be averaged away.  Local means and local maxima in windows of 5 and 9 voxels are further terms,
   off by default (after LeqMod, PMC12910708, github.com/mhxiaaa/LeqMod_PET_denoising).
5. *CT*, off by default: as two further inputs, lung to bone and soft tissue, each times the noise of the dose, so
   that without noise the network still changes nothing.
6. *Blind*: where a scan's dose is not known, its DRF is estimated from its noise, by what the doses trained on had.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from storage.errors import InputError
from storage.ranges import Range
from trainers import assembly, filter_bank
from trainers.engine import EngineConfig
from trainers.feed_config import FeedConfig
from trainers.filter_bank import COARSE, MEMBERS, NormalEquations
from trainers.recipe import Batch, BatchSpec, Doses, Engine, EngineFactory, Metrics, Scan, State, Tiling
from trainers.residual_unet import MULTIPLE, RADIUS, ResidualUNet

FEED = FeedConfig(
    source=("low_drf4", "low_drf20", "low_drf100"), cases_per_step=2, beyond="mirror", augment="flips_and_turns"
)
ENGINE = EngineConfig(ema_decay=0.995, warm_up_steps=150, lr_decay="cosine", gradient_clipping=1.0)
PRESET = "native"
ROLES: frozenset[str] = frozenset()

LEVEL = 1 + filter_bank.FWHMS_MM.index(14.0)  # the member of the bank that gives the local level
MEAN_10, MEAN_7 = 1 + filter_bank.FWHMS_MM.index(10.0), 1 + filter_bank.FWHMS_MM.index(7.0)
LEAST_SUV = 0.1
INPUTS = MEMBERS + 1
CT_RANGES_HU = ((-1000.0, 1000.0), (-160.0, 240.0))  # of the two inputs of a CT
TILE = (96, 128, 128)
NOISE_PATCHES = 12
FEWEST = 8  # voxels that a lesion counts as having at least, so that none outweighs a patch
NO_SCAN = Scan((4.0, 4.0, 4.0), math.nan, 0.0)  # until ``Synthesizer.for_scan`` has told which


@dataclass(frozen=True, kw_only=True)
class Config:
    """What was found to serve best.

    Args:
        start: where the network starts: the adaptive bank, the linear one, or the low dose itself.
        channels: of the network's two levels.
        constants: whether convolutions have additive constants: ``none`` keeps the network free of any scale.
        count_gate: ``shared`` where a pair shares counts, ``off`` never.
        loss: ``l1`` or ``squared``, of the difference in SUV.
        quantification: weight of the local means and maxima.
        beside: what the network sees beside the low dose: nothing, or the CT of the case, which every case then needs.
        lr: Adam's learning rate.
        bank_samples: patches that the bank is fitted on, and the noise of every dose is measured on.
        samples: patches that the network is trained on.
        patch: edge lengths (z, y, x) in voxels, multiples of 4.
        patches_per_case: patches of one case in a step.
        margin: voxels (z, y, x) read around a window for the bank; Gaussians that are wider end there.
        lesion_weight: how many further voxels the lesions of a patch count for, together and whatever their size, where
            a case has lesion labels.  Lesions are rare: at 0 the mean of all that a faint spot may be is mostly no
            lesion.
        uptake_share: part of the patches that are drawn by uptake, hot places first.
        lesion_share: part of the patches that are drawn at lesions, where a case has any; the rest lie in the body.
    """

    start: Literal["adaptive", "linear", "low"] = "adaptive"
    channels: tuple[int, int] = (32, 48)
    constants: Literal["none", "additive"] = "none"
    count_gate: Literal["shared", "off"] = "shared"
    loss: Literal["squared", "l1"] = "squared"
    quantification: Annotated[float, Range(0)] = 0.0
    beside: Literal["none", "ct"] = "none"
    lr: Annotated[float, Range(above=0)] = 1e-3
    bank_samples: Annotated[int, Range(1)] = 400
    samples: Annotated[int, Range(1)] = 60_000
    patch: tuple[int, int, int] = (32, 32, 32)
    patches_per_case: Annotated[int, Range(1)] = 2
    margin: tuple[int, int, int] = (10, 10, 10)
    lesion_weight: Annotated[float, Range(0)] = 250.0
    uptake_share: Annotated[float, Range(0, 1)] = 0.3
    lesion_share: Annotated[float, Range(0, 1)] = 0.3

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "restore")
        fits = all(edge >= 2 * MULTIPLE and edge % MULTIPLE == 0 for edge in self.patch)
        require(fits, "CFG_PATCH_SIZE", "patch", "use multiples of 4 voxels, 8 at least")
        require(min(self.margin) >= 1, "CFG_RANGE", "margin", "use at least 1 voxel along each axis")
        require(min(self.channels) >= 1, "CFG_RANGE", "channels", "use at least 1 channel on each level")
        remedy = "use shares of uptake and lesions that are at most 1 together"
        require(self.uptake_share + self.lesion_share <= 1, "CFG_RANGE", "lesion_share", remedy)

    @property
    def images_beside(self) -> tuple[str, ...]:
        """Names of the images that are read beside the low dose."""
        return () if self.beside == "none" else (self.beside,)

    @property
    def inputs(self) -> int:
        """Channels that the network takes."""
        return INPUTS + len(CT_RANGES_HU) * len(self.images_beside)


# The network


Residual = partial(ResidualUNet, INPUTS)  # f; 269,568 parameters with 32 and 48 channels


def level(bank: Float[Tensor, "b m z y x"]) -> Float[Tensor, "b 1 z y x"]:
    """Return g, the local level in SUV, above 0."""
    return bank[:, LEVEL : LEVEL + 1].clamp(min=0) + LEAST_SUV


def inputs(
    bank: Float[Tensor, "b m z y x"], x0: Float[Tensor, "b 1 z y x"], g: Float[Tensor, "b 1 z y x"]
) -> Float[Tensor, "b c z y x"]:
    """Return u: differences of neighbouring members of the bank, of low dose and x0, of x0 and a mean; all over g."""
    steps = bank[:, :-1] - bank[:, 1:]
    return torch.cat([steps, bank[:, :1] - x0, x0 - bank[:, MEAN_10 : MEAN_10 + 1]], dim=1) / g


def ct_inputs(
    beside: Float[Tensor, "b k zm ym xm"], noise: Float[Tensor, " b"], margin: tuple[int, int, int]
) -> Float[Tensor, "b c z y x"]:
    """Return two inputs of a CT in HU, from -1 to 1, times the relative noise of the dose; none without a CT."""
    hu = assembly.cropped(beside, margin)
    parts = [((hu - low) / (high - low)).clamp(0, 1) * 2 - 1 for low, high in CT_RANGES_HU]
    return torch.cat(parts, dim=1) * noise[:, None, None, None, None]


# The bank of every dose


@dataclass(frozen=True, eq=False)
class Bank:
    """Coefficients of every dose trained on, and how noisy it was.

    Args:
        drf: (doses,) dose reduction factors, rising; NaN for one that is not known, the last.
        coefficients: (doses, classes, members).
        noise: (doses,) mean logarithm of the relative noise.
    """

    drf: Tensor
    coefficients: Tensor
    noise: Tensor

    def at(self, drf: float) -> Float[Tensor, "k m"]:
        """Return the coefficients at a dose: interpolated over log DRF, the nearest beyond the doses trained on."""
        known = torch.nonzero(self.drf.isfinite())[:, 0]
        if len(known) == 0 or math.isnan(drf):
            return self.coefficients[-1]
        doses = self.drf[known].log()
        at = min(max(math.log(drf), float(doses[0])), float(doses[-1]))
        right = min(max(int(torch.searchsorted(doses, at)), 1), len(known) - 1) if len(known) > 1 else 0
        if right == 0:
            return self.coefficients[known[0]]
        share = (at - doses[right - 1]) / (doses[right] - doses[right - 1])
        return torch.lerp(self.coefficients[known[right - 1]], self.coefficients[known[right]], share)

    def noise_at(self, drf: float) -> float:
        """Return the mean logarithm of the relative noise of scans of a dose, interpolated over log DRF."""
        known = torch.nonzero(self.drf.isfinite())[:, 0]
        if len(known) == 0 or math.isnan(drf):
            return float(self.noise.nanmean())
        return float(np.interp(math.log(drf), self.drf[known].log().cpu().numpy(), self.noise[known].cpu().numpy()))

    def graphed(self) -> Callable[[Tensor], tuple[Float[Tensor, "k m"], Float[Tensor, ""]]]:
        """Return ``at`` and ``noise_at`` together, of a dose () that is known and whose value is not read."""
        known = torch.nonzero(self.drf.isfinite())[:, 0]
        if len(known) == 0:
            same = self.coefficients[-1], self.noise.nanmean()
            return lambda drf: same
        doses, coefficients, noise = self.drf[known].log(), self.coefficients[known], self.noise[known]

        def at(drf: Tensor) -> tuple[Tensor, Tensor]:
            shares = ((drf.log() - doses[:-1]) / doses.diff()).clamp(0, 1)  # of every step between doses, its part
            steps = (shares[:, None, None] * coefficients.diff(dim=0)).sum(0)
            return coefficients[0] + steps, noise[0] + (shares * noise.diff()).sum()

        return at

    def estimated_drf(self, noise: float) -> float:
        """Return the DRF at which scans trained on had this (logarithm of) relative noise, within their range."""
        known = torch.nonzero(self.drf.isfinite())[:, 0]
        if len(known) == 0 or math.isnan(noise):
            return math.nan
        found = np.interp(noise, self.noise[known].cpu().numpy(), self.drf[known].log().cpu().numpy())
        return float(np.exp(found))


def relative_noise(bank: Float[Tensor, "b m z y x"]) -> Float[Tensor, " b"]:
    """Return log of the median of |low - 7 mm mean| / level over the voxels above 0.3 SUV; NaN where there are none."""
    g = bank[:, LEVEL]
    found = []
    for image, inside, scale in zip(bank, g > 0.3, g, strict=True):
        ratio = ((image[0] - image[MEAN_7]).abs() / scale)[inside]
        found.append(ratio.median().log() if ratio.numel() else torch.tensor(math.nan, device=bank.device))
    return torch.stack(found)


@dataclass
class Sums:
    """What the first phase adds up for every dose: normal equations, and the noise of its patches.

    Args:
        doses: dose reduction factor, as it is written, -> its sums.
    """

    doses: dict[float, tuple[NormalEquations, float, float]] = field(default_factory=dict)

    def add(self, drf: float, equations: NormalEquations, noise: float) -> None:
        """Add one patch."""
        key = 0.0 if math.isnan(drf) else drf  # NaN is no key
        known, total, count = self.doses.get(key, (filter_bank.no_voxels(COARSE), 0.0, 0.0))
        told = 0.0 if math.isnan(noise) else 1.0
        self.doses[key] = (known + equations, total + (noise if told else 0.0), count + told)

    def own(self) -> dict[str, Tensor]:
        """Return what this rank has added up."""
        return _as_tensors(self.doses)

    def state(self) -> dict[str, Tensor]:
        """Return what ``load`` takes, of all ranks together (collective)."""
        whole: dict[float, tuple[NormalEquations, float, float]] = {}
        for part in assembly.of_all_ranks({key: _flat(value) for key, value in self.doses.items()}):
            for key, flat in part.items():
                whole[key] = _unflat(flat + _flat(whole[key])) if key in whole else _unflat(flat)
        return _as_tensors(whole)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``: rank 0 takes all of it, the others start at nothing."""
        self.doses = {}
        if assembly.first_rank():
            rows = zip(state["drf"].tolist(), state["sums"].cpu().numpy(), strict=True)
            self.doses = {0.0 if math.isnan(drf) else drf: _unflat(flat.copy()) for drf, flat in rows}


_FLAT = COARSE.count * MEMBERS * (MEMBERS + 1) + 2


def _as_tensors(doses: Mapping[float, tuple[NormalEquations, float, float]]) -> dict[str, Tensor]:
    keys = sorted(doses, key=lambda key: key or math.inf)  # the dose that is not known is the last
    drf = torch.tensor([key or math.nan for key in keys], dtype=torch.float64)
    sums = np.stack([_flat(doses[key]) for key in keys]) if keys else np.zeros((0, _FLAT))
    return {"drf": drf, "sums": torch.from_numpy(sums)}


def _flat(sums: tuple[NormalEquations, float, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    equations, total, count = sums
    return np.concatenate([equations.products.ravel(), equations.targets.ravel(), [total, count]])


def _unflat(flat: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[NormalEquations, float, float]:
    cut = COARSE.count * MEMBERS * MEMBERS
    products, targets = flat[:cut].reshape(-1, MEMBERS, MEMBERS), flat[cut:-2].reshape(-1, MEMBERS)
    return NormalEquations(products, targets), float(flat[-2]), float(flat[-1])


def fitted(start: str, state: Mapping[str, Tensor]) -> Bank:
    """Solve for the coefficients of every dose, from what ``Sums.state`` returned."""
    coefficients, noise = [], []
    for flat in state["sums"].cpu().numpy():
        equations, total, count = _unflat(flat)
        solve = {"adaptive": filter_bank.adaptive_filter, "linear": filter_bank.linear_filter, "low": _low_dose}[start]
        coefficients.append(torch.from_numpy(solve(equations)))
        noise.append(total / count if count else math.nan)
    if not coefficients:
        return Bank(torch.tensor([math.nan]), torch.from_numpy(_low_dose())[None].float(), torch.tensor([math.nan]))
    return Bank(state["drf"].float(), torch.stack(coefficients).float(), torch.tensor(noise))


def _low_dose(equations: NormalEquations | None = None) -> Any:
    return np.eye(MEMBERS)[np.zeros(COARSE.count, dtype=int)]


# The whole answer


def restored(
    network: Any,
    bank: Float[Tensor, "b m z y x"],
    coefficients: Float[Tensor, "b k m"],
    shared: Float[Tensor, " b"],
    beside: Float[Tensor, "b c z y x"] | None = None,
) -> tuple[Float[Tensor, "b 1 z y x"], Float[Tensor, "b 1 z y x"]]:
    """Return the answer nearest to the full dose, and g.

    Args:
        network: f, from u to what is added to x0, over g.
        bank: ``filter_bank.members`` of the low dose in SUV.
        coefficients: of every image's dose.
        shared: part of the full dose's counts that the low dose holds, 0 for an answer nearest to the truth.
        beside: ``ct_inputs``, where the network has been given a CT.
    """
    classed = COARSE.of(bank)
    parts = [
        filter_bank.combined(one[None], used, at[None])
        for one, used, at in zip(bank, coefficients, classed, strict=True)
    ]
    x0, g = torch.cat(parts), level(bank)
    u = inputs(bank, x0, g)
    truth = x0 + g * network(u if beside is None else torch.cat([u, beside], dim=1))
    own = shared[:, None, None, None, None].to(bank)
    return own * bank[:, :1] + (1 - own) * truth, g


def beside_of(config: Config, source: Float[Tensor, "b k1 zm ym xm"], noise: Float[Tensor, " b"]) -> Tensor | None:
    """Return the inputs of the CT that windows hold after the source; None where the network takes none."""
    return ct_inputs(source[:, 1:], noise.to(source), config.margin) if config.images_beside else None


def difference(
    image: Float[Tensor, "b 1 z y x"],
    target: Float[Tensor, "b 1 z y x"],
    g: Float[Tensor, "b 1 z y x"],
    noise: Float[Tensor, " b"],
    weight: Float[Tensor, "b 1 z y x"],
    config: Config,
) -> dict[str, Tensor]:
    """Return the terms of the loss.

    Squared errors are divided by the noise that the dose has, by the level here and by the mean level of the patch:
    all are read off the source, so that no level of the target is favoured.
    """
    scale = (noise[:, None, None, None, None] * g * g.mean((2, 3, 4), keepdim=True)).sqrt()
    error = (image - target) / scale
    terms = {"difference": (weight * (error.square() if config.loss == "squared" else error.abs())).mean()}
    if config.quantification:
        for window in (5, 9):
            pool, peak = (
                partial(F.avg_pool3d, kernel_size=window, stride=2),
                partial(F.max_pool3d, kernel_size=window, stride=2),
            )
            here = pool(scale)
            means, peaks = (pool(image) - pool(target)) / here, (peak(image) - peak(target)) / here
            terms[f"mean_{window}"] = config.quantification * means.abs().mean()
            terms[f"peak_{window}"] = config.quantification * peaks.abs().mean()
    return terms


@dataclass
class Restore:
    """The system while it is trained: ``trainers.recipe.Recipe``."""

    config: Config
    engine: Engine
    phases: assembly.Phases
    sums: Sums = field(default_factory=Sums)
    bank: Bank | None = None

    @property
    def num_steps(self) -> int:
        return self.phases.num_steps

    @property
    def phase_starts(self) -> dict[str, int]:
        return self.phases.starts

    def phase(self, step: int) -> str:
        return self.phases.at(step)

    @property
    def followed(self) -> str:
        """The bank's sums grow on their own: more of them is no better network."""
        return "network"

    def batch_spec(self, step: int) -> BatchSpec:
        c = self.config
        shares = {"uptake": c.uptake_share, "lesion": c.lesion_share, "body": 1 - c.uptake_share - c.lesion_share}
        return BatchSpec(c.patch, c.margin, c.patches_per_case, shares, marked=("lesion",), beside=c.images_beside)

    def step(self, batch: Batch, step: int) -> Metrics:
        """Add to the bank's sums, or update the network once."""
        return self._fit(batch) if self.phase(step) == "bank" else self._train(batch)

    def _fit(self, batch: Batch) -> Metrics:
        bank = filter_bank.members(batch.source[:, :1], batch.spacing_mm, self.config.margin)
        noise = relative_noise(bank)
        shared = self._shared(batch)
        classed = COARSE.of(bank)
        for i, drf in enumerate(batch.drf.tolist()):
            own = float(shared[i])
            inside = (bank[i, MEAN_10] > LEAST_SUV).flatten()
            wanted = (batch.target[i] - own * bank[i, :1]) / max(1 - own, 1e-6)  # what other counts alone have measured
            weight = ((1 - own) / batch.peak[i]) ** 2 * self._weight(batch.masks[i])
            equations = filter_bank.normal_equations(
                bank[i].flatten(1)[:, inside],
                classed[i].flatten()[inside],
                wanted.flatten()[inside],
                weight.flatten()[inside],
                COARSE,
            )
            self.sums.add(drf, equations, float(noise[i]))
        return {"noise": noise.nanmean()}

    def _train(self, batch: Batch) -> Metrics:
        bank = filter_bank.members(batch.source[:, :1], batch.spacing_mm, self.config.margin)
        known = self._bank()
        coefficients = torch.stack([known.at(drf) for drf in batch.drf.tolist()])
        noise = torch.tensor([known.noise_at(drf) for drf in batch.drf.tolist()], device=bank.device).exp()
        beside = beside_of(self.config, batch.source, noise)
        self.engine.module.train()
        image, g = restored(self.engine, bank, coefficients.to(bank), self._shared(batch), beside)
        terms = difference(image, batch.target, g, noise, self._weight(batch.masks), self.config)
        loss = torch.stack(list(terms.values())).sum()
        self.engine.backward(loss)
        self.engine.step()
        return {name: value.detach() for name, value in terms.items()}

    def _shared(self, batch: Batch) -> Tensor:
        return batch.shared if self.config.count_gate == "shared" else torch.zeros_like(batch.shared)

    def _weight(self, masks: Tensor) -> Tensor:
        """How much an error counts, from the masks of lesions (..., z, y, x)."""
        size = masks.sum((-3, -2, -1), keepdim=True).clamp(min=FEWEST)
        return 1 + self.config.lesion_weight / size * masks

    def _bank(self) -> Bank:
        if self.bank is None:
            self.bank = fitted(self.config.start, self.sums.state())
        return self.bank

    def weights(self) -> dict[str, Tensor]:
        bank = fitted(self.config.start, self.sums.state())
        network = {f"network.{name}": value for name, value in assembly.weights_of(self.engine).items()}
        return network | {f"bank.{name}": value for name, value in vars(bank).items()}

    def synthesizer(self) -> "Synthesizer":
        # Pictures are made by one rank alone, which must not wait for others: while sums grow it uses its own.
        bank = self.bank or fitted(self.config.start, self.sums.own())
        return Synthesizer(self.config, self.engine.module, bank)

    def state(self) -> State:
        return assembly.states({"network": self.engine}) | {"bank": self.sums.state()}

    def load(self, state: State) -> None:
        assembly.load_states({"network": self.engine}, state)
        self.sums.load(state["bank"])
        self.bank = None


@dataclass(frozen=True)
class Synthesizer:
    """The system at inference: ``trainers.recipe.Synthesizer``, of one scan once ``for_scan`` has told which."""

    config: Config
    network: nn.Module
    bank: Bank
    scan: Scan = NO_SCAN

    @property
    def tiling(self) -> Tiling:
        z, y, x = (margin + RADIUS for margin in self.config.margin)
        return Tiling(TILE, (z, y, x), multiple=(MULTIPLE,) * 3)

    @property
    def context_batch(self) -> BatchSpec:
        """Patches of the body, whose noise tells the dose where it is not known."""
        c = self.config
        return BatchSpec(c.patch, c.margin, NOISE_PATCHES, {"body": 1.0}, beside=c.images_beside)

    def for_scan(self, scan: Scan) -> "Synthesizer":
        return replace(self, scan=scan)

    def remark(self, context: Mapping[str, Tensor]) -> str:
        """Say which dose was estimated, nothing where the scan told its own."""
        if not math.isnan(self.scan.drf) or math.isnan(float(context["drf"])):
            return ""
        return f"its dose is not known; by its noise it is restored as one of DRF {float(context['drf']):.3g}"

    def context(self, overview: Tensor, source: Float[Tensor, "n k1 zh yh xh"]) -> dict[str, Tensor]:
        """Return the dose reduction factor that is used: the scan's own, or else an estimate from its noise."""
        if not math.isnan(self.scan.drf):
            return {"drf": torch.tensor(self.scan.drf)}
        noise = relative_noise(self._members(source))
        return {"drf": torch.tensor(self.bank.estimated_drf(float(noise.nanmean())))}

    @torch.no_grad()
    def __call__(
        self, source: Float[Tensor, "b k1 zh yh xh"], context: Mapping[str, Tensor]
    ) -> Float[Tensor, "b 1 z y x"]:
        """Restore tiles in SUV."""
        self.network.eval()
        bank = self._members(source)
        b = len(source)
        shared = self.scan.shared if self.config.count_gate == "shared" else 0.0
        coefficients = self.bank.at(float(context["drf"])).to(bank).expand(b, -1, -1)
        noise = torch.full((b,), self.bank.noise_at(float(context["drf"])), device=bank.device).exp()
        beside = beside_of(self.config, source, noise)
        image, _ = restored(self.network, bank, coefficients, torch.full((b,), shared), beside)
        return assembly.cropped(image, (RADIUS,) * 3)

    @property
    def facts(self) -> tuple[str, ...]:
        """What bank and gate depend on."""
        return ("spacing_mm", "drf", "shared")

    def graphed(self) -> Callable[..., Tensor]:
        """Return what restores one tile of a scan whose dose is known."""
        at = self.bank.graphed()
        self.network.eval()

        def tile(source: Tensor, spacing_mm: Tensor, drf: Tensor, shared: Tensor) -> Tensor:
            bank = filter_bank.members_in_graph(source[:, :1], spacing_mm, self.config.margin)
            coefficients, noise = at(drf)
            beside = beside_of(self.config, source, noise.exp()[None])
            gate = shared if self.config.count_gate == "shared" else torch.zeros_like(shared)
            image, _ = restored(self.network, bank, coefficients[None], gate[None], beside)
            return assembly.cropped(image, (RADIUS,) * 3)

        return tile

    def _members(self, source: Tensor) -> Tensor:
        spacing_mm = torch.tensor([self.scan.spacing_mm] * len(source))
        return filter_bank.members(source[:, :1], spacing_mm, self.config.margin)


def check(config: Config, feed: FeedConfig, doses: Doses) -> None:
    """Refuse another scale than SUV, in which the classes of the bank are defined; raises InputError CFG_SCALE."""
    if feed.suv_scale != 1:
        found = f"{feed.suv_scale:g}; this system works in SUV"
        raise InputError("CFG_SCALE", where="feed.suv_scale", found=found, remedy="use --feed.suv-scale 1")


files = assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what its images hold."""
    told = "restore: petscale's own system, not a published one."
    if config.count_gate == "shared":
        told += " Where a low dose holds counts of the full dose, its image keeps that share of the low dose's noise."
    return (told,)


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> Restore:
    """Build the network and its engine; ``patches_per_step`` counts the patches of all ranks."""
    engine = make_engine(
        ResidualUNet(config.inputs, config.channels, config.constants), partial(torch.optim.Adam, lr=config.lr)
    )
    bank = 0 if config.start == "low" and not config.bank_samples else config.bank_samples
    steps = {
        "bank": assembly.steps_of(bank, patches_per_step),
        "network": assembly.steps_of(config.samples, patches_per_step),
    }
    return Restore(config, engine, assembly.Phases(steps))


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> Synthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "bank": {}}
    for name, value in weights.items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = value
    build_network = partial(ResidualUNet, config.inputs, config.channels, config.constants)
    network = assembly.with_weights(build_network, parts["network"], "weights of restore")
    bank = Bank(**parts["bank"])
    if bank.coefficients.shape[1:] != (COARSE.count, MEMBERS):
        raise assembly.another_configuration("weights of restore")
    return Synthesizer(config, network, bank)
