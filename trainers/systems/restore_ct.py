"""restore_ct: petscale's own system from CT to PET; a network that learns what a fitted table of SUV by HU leaves.

No paper; docs/results/restore_ct.md has the measurements behind the defaults.  It follows ``trainers.systems.restore``:

1. *Table* (``trainers.hu_table``): the mean SUV of every range of HU, told apart by the mean HU of the surroundings.
   Fitted in the first phase, every patient weighted 1/peak^2, which makes its squared error that of the PSNR.
2. *Network*: x = x0 + f(u) on a curve of SUV, where x0 is the table's answer.  The last layer of f starts at zero, so
   that training starts at the table.
3. *Loss*: squared errors on that curve, weighted alike.  There is no adversarial term: it costs PSNR where patients are
   few (docs/results/from_ct.md).
4. *Validation* (``LOOP``): the weights that did best on patients kept apart are kept, those of the table alone among
   them.
5. *Augmentation*: patches are tilted and scaled as patients are (``FeedConfig``), since few patients are the rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from storage.ranges import Range
from storage.source import HU
from trainers import assembly, filter_bank, hu_table
from trainers.engine import EngineConfig
from trainers.feed_config import FeedConfig
from trainers.hu_table import MEANS, RANGES, RunningSums, Sums, SuvCurve, off_curve, on_curve
from trainers.loop import LoopConfig
from trainers.recipe import Batch, BatchSpec, Doses, Engine, EngineFactory, Metrics, Scan, State, Tiling
from trainers.residual_unet import MULTIPLE, RADIUS, ResidualUNet

FEED = FeedConfig(source=("ct",), cases_per_step=2, beyond="mirror_any", tilt_deg=15.0, scaling=0.15)
ENGINE = EngineConfig(ema_decay=0.99, warm_up_steps=50, lr_decay="cosine", gradient_clipping=1.0)
LOOP = LoopConfig(validate_every=25, validation_patches=2)  # few patients are soon learnt by heart
PRESET = "native"
ROLES: frozenset[str] = frozenset()

SURROUNDINGS_MM = 10.0  # FWHM of the Gaussian whose mean HU tells the surroundings
MEAN_OF_HU = (-1000.0, 300.0)  # metal and dense bone beyond it would outweigh the tissue around them
SOFT_HU, WIDE_HU = (-160.0, 240.0), (-1000.0, 1000.0)  # windows that the network sees
INPUTS = 4
STRENGTH = 200.0  # voxels with which a cell of the table is drawn to the mean of its HU alone
TILE = (96, 128, 128)
NO_SPACING_MM = (4.0, 4.0, 4.0)  # until ``Synthesizer.for_scan`` has told which


@dataclass(frozen=True, kw_only=True)
class Config:
    """What was found to serve best.

    Args:
        start: where the network starts: the table of HU and surroundings, that of HU alone, or no uptake.
        suv_curve: on which the residual is learnt and errors are counted: SUV itself, or its square root, which counts
            errors in cold tissue for more and hot spots for less.
        channels: of the network's two levels.
        lr: Adam's learning rate.
        table_samples: patches that the table is fitted on.
        samples: patches that the network is trained on.
        patch: edge lengths (z, y, x) in voxels, multiples of 4.
        patches_per_case: patches of one case in a step.
        margin: voxels (z, y, x) read around a window for the mean of the surroundings, which ends there.
    """

    start: Literal["surroundings", "hu", "zero"] = "surroundings"
    suv_curve: SuvCurve = "sqrt"
    channels: tuple[int, int] = (16, 24)
    lr: Annotated[float, Range(above=0)] = 1e-3
    table_samples: Annotated[int, Range(1)] = 200
    samples: Annotated[int, Range(1)] = 600
    patch: tuple[int, int, int] = (24, 24, 24)
    patches_per_case: Annotated[int, Range(1)] = 2
    margin: tuple[int, int, int] = (4, 4, 4)

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "restore_ct")
        fits = all(edge >= 2 * MULTIPLE and edge % MULTIPLE == 0 for edge in self.patch)
        require(fits, "CFG_PATCH_SIZE", "patch", "use multiples of 4 voxels, 8 at least")
        require(min(self.margin) >= 1, "CFG_RANGE", "margin", "use at least 1 voxel along each axis")
        require(min(self.channels) >= 1, "CFG_RANGE", "channels", "use at least 1 channel on each level")


# What is read off a CT


def surroundings(
    ct: Float[Tensor, "b 1 zm ym xm"], spacing_mm: Float[Tensor, "b 3"], margin: tuple[int, int, int]
) -> tuple[Float[Tensor, "b 1 z y x"], Float[Tensor, "b 1 z y x"]]:
    """Return the CT and its mean over the surroundings, both in HU and without the margin."""
    mean = filter_bank.members(ct.clamp(*MEAN_OF_HU), spacing_mm, margin, (SURROUNDINGS_MM,))[:, 1:]
    return assembly.cropped(ct, margin), mean


def surroundings_in_graph(
    ct: Float[Tensor, "1 1 zm ym xm"], spacing_mm: Float[Tensor, "3"], margin: tuple[int, int, int]
) -> tuple[Float[Tensor, "1 1 z y x"], Float[Tensor, "1 1 z y x"]]:
    """Return ``surroundings`` of one image, as ``filter_bank.members_in_graph`` makes them."""
    mean = filter_bank.members_in_graph(ct.clamp(*MEAN_OF_HU), spacing_mm, margin, (SURROUNDINGS_MM,))[:, 1:]
    return assembly.cropped(ct, margin), mean


def inputs(
    ct: Float[Tensor, "b 1 z y x"], mean: Float[Tensor, "b 1 z y x"], x0: Float[Tensor, "b 1 z y x"]
) -> Float[Tensor, "b c z y x"]:
    """Return u: the CT in two windows and its mean in one, each from -1 to 1, and the table's answer."""
    return torch.cat([_windowed(ct, SOFT_HU), _windowed(ct, WIDE_HU), _windowed(mean, SOFT_HU), x0], dim=1)


def _windowed(hu: Tensor, window: tuple[float, float]) -> Tensor:
    low, high = window
    return (hu.clamp(low, high) - (low + high) / 2) / ((high - low) / 2)


# The table


@dataclass(frozen=True, eq=False)
class Table:
    """The fitted table.

    Args:
        suv: (ranges of HU, ranges of the surroundings' mean) in SUV, at least 0.
        weight: mean weight of the voxels that it was fitted on, which is 1 for the loss.
    """

    suv: Tensor
    weight: Tensor

    def at(self, ct: Float[Tensor, "b 1 z y x"], mean: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1 z y x"]:
        """Return x0 in SUV."""
        return self.suv.to(ct)[hu_table.ranges(ct), hu_table.mean_ranges(mean)]


def fitted(start: str, state: Mapping[str, Tensor]) -> Table:
    """Return the table of what ``RunningSums.state`` returned; every value is 0 where nothing was added up."""
    cells = Sums(state["weight"].cpu().numpy(), state["suv"].cpu().numpy())
    weight = float(cells.weight.sum()) / max(int(state["voxels"]), 1)
    suv = np.maximum(_STARTS[start](cells, STRENGTH * weight), 0.0)
    return Table(torch.from_numpy(suv).float(), torch.tensor(weight or 1.0))


def _by_surroundings(cells: Sums, strength: float) -> NDArray[np.float64]:
    return hu_table.drawn_means(cells, _by_hu(cells, strength), strength)


def _by_hu(cells: Sums, strength: float) -> NDArray[np.float64]:
    return np.repeat(hu_table.means(cells.over(1))[:, None], MEANS, axis=1)


def _no_uptake(cells: Sums, strength: float) -> NDArray[np.float64]:
    return np.zeros_like(cells.suv)


_STARTS: Mapping[str, Callable[[Sums, float], NDArray[np.float64]]] = {
    "surroundings": _by_surroundings,
    "hu": _by_hu,
    "zero": _no_uptake,
}


# The whole answer


def synthesized(
    network: Any, ct: Float[Tensor, "b 1 z y x"], mean: Float[Tensor, "b 1 z y x"], table: Table, curve: SuvCurve
) -> Float[Tensor, "b 1 z y x"]:
    """Return the answer on the curve.

    Args:
        network: f, from u to what is added to x0.
    """
    x0 = table.at(ct, mean)
    image: Tensor = on_curve(x0, curve) + network(inputs(ct, mean, x0))
    return image


@dataclass
class RestoreCT:
    """The system while it is trained: ``trainers.recipe.Recipe``."""

    config: Config
    engine: Engine
    phases: assembly.Phases
    sums: RunningSums = field(default_factory=lambda: RunningSums(hu_table.no_voxels((RANGES, MEANS))))
    table: Table | None = None

    @property
    def num_steps(self) -> int:
        return self.phases.num_steps

    @property
    def phase_starts(self) -> dict[str, int]:
        return self.phases.starts

    def phase(self, step: int) -> str:
        return self.phases.at(step)

    def batch_spec(self, step: int) -> BatchSpec:
        c = self.config
        return BatchSpec(c.patch, c.margin, c.patches_per_case, {"body": 1.0}, units=HU)

    def step(self, batch: Batch, step: int) -> Metrics:
        """Add to the table's sums, or update the network once."""
        ct, mean = surroundings(batch.source, batch.spacing_mm, self.config.margin)
        if self.phase(step) == "table":
            for i, peak in enumerate(batch.peak.tolist()):
                cells = hu_table.ranges(ct[i]) * MEANS + hu_table.mean_ranges(mean[i])
                self.sums.add(cells, batch.target[i], 1 / peak**2)
            return {"suv": batch.target.mean()}
        table = self._table()
        self.engine.module.train()
        curve = self.config.suv_curve
        image = synthesized(self.engine, ct, mean, table, curve)
        # 1/peak^2 makes squared errors those of the PSNR; of roots they are of the order of SUV, not of its square.
        weight = on_curve(batch.peak.square().reciprocal() / table.weight.to(batch.peak), curve)
        errors = (image - on_curve(batch.target, curve)).square().mean((1, 2, 3, 4))
        loss = (weight * errors).mean()
        self.engine.backward(loss)
        self.engine.step()
        return {"loss": loss.detach()}

    def _table(self) -> Table:
        if self.table is None:
            self.table = fitted(self.config.start, self.sums.state())
        return self.table

    def weights(self) -> dict[str, Tensor]:
        table = fitted(self.config.start, self.sums.state())
        network = {f"network.{name}": value for name, value in assembly.weights_of(self.engine).items()}
        return network | {f"table.{name}": value for name, value in vars(table).items()}

    def synthesizer(self) -> "Synthesizer":
        # Pictures are made by one rank alone, which must not wait for others: while sums grow it uses its own.
        table = self.table or fitted(self.config.start, self.sums.own())
        return Synthesizer(self.config, self.engine.module, table)

    def state(self) -> State:
        return assembly.states({"network": self.engine}) | {"table": self.sums.state()}

    def load(self, state: State) -> None:
        assembly.load_states({"network": self.engine}, state)
        self.sums.load(state["table"])
        self.table = None


@dataclass(frozen=True)
class Synthesizer:
    """The system at inference: ``trainers.recipe.Synthesizer``, of one scan once ``for_scan`` has told which."""

    config: Config
    network: nn.Module
    table: Table
    spacing_mm: tuple[float, float, float] = NO_SPACING_MM
    context_batch: None = None

    @property
    def tiling(self) -> Tiling:
        z, y, x = (margin + RADIUS for margin in self.config.margin)
        return Tiling(TILE, (z, y, x), multiple=(MULTIPLE,) * 3)

    def for_scan(self, scan: Scan) -> "Synthesizer":
        return replace(self, spacing_mm=scan.spacing_mm)

    def remark(self, context: Mapping[str, Tensor]) -> str:
        """Nothing is estimated."""
        return ""

    def context(self, overview: Tensor, source: Tensor) -> dict[str, Tensor]:
        """Return nothing: a window depends on no other."""
        return {}

    @torch.no_grad()
    def __call__(
        self, source: Float[Tensor, "b 1 zh yh xh"], context: Mapping[str, Tensor]
    ) -> Float[Tensor, "b 1 z y x"]:
        """Synthesize tiles in SUV, from HU."""
        self.network.eval()
        spacing_mm = torch.tensor([self.spacing_mm] * len(source))
        return self._tile(*surroundings(source, spacing_mm, self.config.margin))

    @property
    def facts(self) -> tuple[str, ...]:
        """What the mean over the surroundings depends on."""
        return ("spacing_mm",)

    def graphed(self) -> Callable[..., Tensor]:
        """Return what synthesizes one tile."""
        self.network.eval()
        return lambda source, spacing_mm: self._tile(*surroundings_in_graph(source, spacing_mm, self.config.margin))

    def _tile(self, ct: Float[Tensor, "b 1 z y x"], mean: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1 z y x"]:
        image = synthesized(self.network, ct, mean, self.table, self.config.suv_curve)
        return assembly.cropped(off_curve(image, self.config.suv_curve), (RADIUS,) * 3)


def check(config: Config, feed: FeedConfig, doses: Doses) -> None:
    """Refuse another scale than SUV, and more than one image to start from; raises InputError CFG_SCALE, CFG_INPUTS."""
    assembly.check_ct_to_suv(feed)


files = assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what its images are."""
    return (
        "restore_ct: petscale's own system, not a published one. A CT hardly tells uptake: its PET is the mean of what "
        "is likely, in which a lesion that the CT does not show is missing. Not for reading.",
    )


def _residual(config: Config) -> ResidualUNet:
    return ResidualUNet(INPUTS, config.channels, "additive", beyond="replicate")


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> RestoreCT:
    """Build the network and its engine; ``patches_per_step`` counts the patches of all ranks."""
    network = _residual(config)
    engine = make_engine(network, partial(torch.optim.Adam, lr=config.lr))
    steps = {
        "table": assembly.steps_of(config.table_samples, patches_per_step),
        "network": assembly.steps_of(config.samples, patches_per_step),
    }
    return RestoreCT(config, engine, assembly.Phases(steps))


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> Synthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "table": {}}
    for name, value in weights.items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = value
    network = assembly.with_weights(partial(_residual, config), parts["network"], "weights of restore_ct")
    return Synthesizer(config, network, Table(**parts["table"]))
