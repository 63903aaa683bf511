"""The contracts between the loop and a system: batches, engines, recipes, synthesizers, and a system's module."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn, optim

from storage.source import SUV
from trainers.feed_config import FeedConfig

Metrics = dict[str, Tensor]  # detached scalars; the loop averages them over ranks and checks that they are finite
Doses = Mapping[str, frozenset[float]]  # source image -> its dose reduction factors in the run's cases; NaN unknown
State = dict[str, dict[str, Tensor]]  # engine name -> tensors, complete and independent of ranks and ZeRO stage


@dataclass(frozen=True)
class BatchSpec:
    """Which patches one step of a recipe reads; a pure function of the step.

    Args:
        patch: edge lengths (z, y, x) in voxels of the patches the losses see.
        halo: extra voxels (z, y, x) read on either side of the patch that a network starts from.
        patches_per_case: patches that one group holds, all of one case.
        sampler: weights of the samplers of ``storage.patches.SAMPLERS``, summing to 1.
        rois: names of the organs whose masks are read; empty for none.
        unlabelled: what the system offers where cases lack these organs, as an error's remedy says it.
        marked: names of labels whose masks are read after those, and are 0 where a case has no such label.
        overview: edge length of the resized whole source volume, 0 for none.
        images: ``paired`` for source and target of one place; ``source`` or ``target`` for one alone, which may come
            from other patients (the run's unpaired ones for ``target``); ``unpaired`` for sources of some patients and
            targets of others in one step, where no group holds a source and a target of one patient.
        units: of the images that a network starts from, ``SUVbw`` or ``HU``.
        beyond: whether a patch may be longer than a volume, and then holds what lies beyond it.
        beside: names of further images that a network starts from, as a CT beside a low dose; each becomes a channel
            after the source, in its own unit.
    """

    patch: tuple[int, int, int]
    halo: tuple[int, int, int]
    patches_per_case: int
    sampler: Mapping[str, float]
    rois: tuple[str, ...] = ()
    marked: tuple[str, ...] = ()
    overview: int = 0
    images: Literal["paired", "source", "target", "unpaired"] = "paired"
    units: str = SUV
    beyond: bool = False
    beside: tuple[str, ...] = ()
    unlabelled: str = ""

    @property
    def restores(self) -> bool:
        """Whether such a step trains what restores, for which it takes sources and targets."""
        return self.images in ("paired", "unpaired")


@dataclass(frozen=True)
class Batch:
    """Groups of patches; the ``n`` patches of one case are neighbours, so b = cases * n.

    In an ``unpaired`` step a group's targets are of another patient; all but ``target`` and ``peak`` is the source's.

    Args:
        source: (b, 1 + k, z + 2 halo_z, y + 2 halo_y, x + 2 halo_x) what a network starts from: a PET on the run's
            intensity scale, or a CT in HU, and then the k images of ``BatchSpec.beside`` in their units;
            (b, 1, 0, 0, 0) where the target alone was asked for.
        target: (b, 1, z, y, x) the PET wanted, on the same scale; (b, 1, 0, 0, 0) where the source alone was asked for.
        masks: (b, k, z, y, x) 0 or 1, one channel per ROI and label asked for; k may be 0.
        overview: (cases, 1, o, o, o) the whole source volume resized, on the same scale.
        drf: (b,) dose reduction factor of every source patch, as its image states it; NaN where it states none, and
            where the target alone was asked for.
        spacing_mm: (b, 3) voxel edge lengths along z, y and x.
        shared: (b,) part of the target's counts that the source image holds: 1 / drf of a low dose that was thinned
            from the same scan, 0 where it is another scan or not known.
        peak: (b,) largest value of the target image of the case, on the scale of the batch; 1 where it is not read.
        units: of the source images, ``SUVbw`` or ``HU``.
        cases: number of groups.
        places: for every patch, "case image z,y,x": what an error message may name; both places where they differ.
    """

    source: Float[Tensor, "b k1 zh yh xh"]
    target: Float[Tensor, "b 1 z y x"]
    masks: Float[Tensor, "b k z y x"]
    overview: Float[Tensor, "cases 1 o o o"]
    drf: Float[Tensor, " b"]
    cases: int
    places: tuple[str, ...]
    spacing_mm: Float[Tensor, "b 3"] = torch.empty(0, 3)  # noqa: RUF009  (a constant)
    shared: Float[Tensor, " b"] = torch.empty(0)  # noqa: RUF009
    peak: Float[Tensor, " b"] = torch.empty(0)  # noqa: RUF009
    units: str = SUV


class Engine(Protocol):
    """One network with its own optimizer, wherever and however it is trained."""

    @property
    def module(self) -> nn.Module:
        """The bare network, for train() / eval() and for reading weights; never call it in a training step."""
        ...

    def __call__(self, *inputs: Tensor, **options: Any) -> Any:
        """Run the network forward for its own update; returns its tensor, or its tuple of tensors, in fp32."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate this network's gradients; once per step."""
        ...

    def step(self) -> None:
        """Update this network and forget its gradients."""
        ...

    def clip_weights(self, bound: float) -> None:
        """Clamp every weight to [-bound, bound], on the copy that the next step really uses."""
        ...

    def set_lr(self, lr: float) -> None:
        """Use another learning rate from the next update on; not part of ``state``."""
        ...

    def frozen(self) -> AbstractContextManager[Callable[..., Any]]:
        """Give the network's forward as a function through which gradients pass without touching its own weights."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Whole fp32 weights and optimizer state by name, equal on all ranks (collective)."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state`` returned, at any world size and ZeRO stage (collective)."""
        ...


OptimizerFactory = Callable[[Iterator[nn.Parameter]], optim.Optimizer]
EngineFactory = Callable[[nn.Module, OptimizerFactory], Engine]


@dataclass(frozen=True)
class Tiling:
    """How a synthesizer wants a volume to be cut.

    Args:
        tile: output edge lengths (z, y, x) in voxels; along an axis without overlap, smaller ones serve as well.
        halo: voxels (z, y, x) of context on either side of a tile that the network needs and crops.
        overlap: voxels (z, y, x) by which neighbouring output tiles overlap and are blended; 0 where tiles equal the
            whole.
        multiple: tiles start at, and are as long as, multiples of this many voxels (z, y, x); the last ones pass the
            volume.  For networks whose strides tie an output to the position of its window; where it is above 1, the
            axis has no overlap.
    """

    tile: tuple[int, int, int]
    halo: tuple[int, int, int]
    overlap: tuple[int, int, int] = (0, 0, 0)
    multiple: tuple[int, int, int] = (1, 1, 1)


class Synthesizer(Protocol):
    """A trained recipe at inference: one context per case, then any number of tiles in any order.

    A system's own takes and gives the units of its batches; ``trainers.synthesize.InSuv`` makes of it one that takes
    and gives SUV (or takes HU), which is what everyone else is given.
    """

    @property
    def tiling(self) -> Tiling: ...
    @property
    def context_batch(self) -> BatchSpec | None:
        """Patches to draw for the context of a case (rois and target are not read), or None when it needs none.

        Windows hold the images that it names ``beside`` as channels after the source.
        """
        ...

    def context(
        self, overview: Float[Tensor, "1 1 o o o"], source: Float[Tensor, "n k1 zh yh xh"], /
    ) -> Mapping[str, Tensor]:
        """Compute once per case whatever every tile of it must share."""
        ...

    def __call__(
        self, source: Float[Tensor, "b k1 zh yh xh"], context: Mapping[str, Tensor], /
    ) -> Float[Tensor, "b 1 z y x"]:
        """Synthesize tiles; the halo is cropped from the result."""
        ...


@dataclass(frozen=True)
class Scan:
    """What is known of one image before any of its voxels is read.

    Args:
        spacing_mm: voxel edge lengths along z, y and x.
        drf: dose reduction factor, NaN where it is not known.
        shared: as ``Batch.shared``.
    """

    spacing_mm: tuple[float, float, float]
    drf: float
    shared: float


@runtime_checkable
class ScanAware(Protocol):
    """What a synthesizer offers besides when what it does depends on facts of the scan."""

    def for_scan(self, scan: Scan) -> Synthesizer:
        """Return the synthesizer of one scan."""
        ...

    def remark(self, context: Mapping[str, Tensor]) -> str:
        """Return what the user should know of how the scan was taken, or nothing."""
        ...


@runtime_checkable
class Graphed(Protocol):
    """What a synthesizer offers besides whose tiles follow from facts of the scan as tensors.

    One exported graph then serves every scan (``trainers.graph``).
    """

    @property
    def facts(self) -> tuple[str, ...]:
        """Names of the fields of ``Scan`` that a tile depends on, in the order of their arguments."""
        ...

    def graphed(self) -> Callable[..., Tensor]:
        """Return what makes a tile (1, 1, z, y, x) of a window (1, 1 + k, zh, yh, xh) and the facts.

        It does what a call does and reads no value of a tensor on the way.  Facts are (3,) for ``spacing_mm`` and ()
        for the others; the dose reduction factor is known.
        """
        ...


@runtime_checkable
class GraphedInContext(Protocol):
    """What a synthesizer offers besides whose tiles follow from a context and from facts of the scan as tensors.

    One exported graph then serves every scan; it makes the context as well (``trainers.graph``).  A context's tensors
    are as many and as large for every scan.
    """

    @property
    def facts(self) -> tuple[str, ...]:
        """Names of the fields of ``Scan`` that context and tiles depend on, in the order of their arguments."""
        ...

    @property
    def unknown(self) -> tuple[str, ...]:
        """Those of them that may be NaN, for a scan of which they are not known."""
        ...

    @property
    def short_patches(self) -> Literal["cut", "filled"]:
        """What a context takes where a volume is shorter than a patch: less, or a patch that is filled up with 0."""
        ...

    def graphed_context(self) -> Callable[..., Mapping[str, Tensor]]:
        """Return what makes the context of an overview (1, 1, o, o, o), of patches (n, 1 + k, zh, yh, xh) and of facts.

        It does what ``context`` does and reads no value of a tensor on the way; edges of patches may be symbols where
        they are cut.  Facts are as for ``Graphed.graphed``.
        """
        ...

    def graphed_tile(self) -> Callable[..., Tensor]:
        """Return what makes a tile (1, 1, z, y, x) of a window (1, 1 + k, zh, yh, xh), a context and the facts."""
        ...


@runtime_checkable
class Illustrated(Protocol):
    """What a synthesizer offers besides while a recipe trains something else than what restores."""

    def shown(
        self, source: Float[Tensor, "b 1 z y x"], target: Float[Tensor, "b 1 z y x"]
    ) -> Mapping[str, Float[Tensor, "b 1 z y x"]]:
        """Return name -> image of what is trained at present, in the units of the batches, for pictures."""
        ...


class Recipe(Protocol):
    """A published system while it is trained."""

    @property
    def num_steps(self) -> int:
        """Steps of all phases together."""
        ...

    @property
    def phase_starts(self) -> Mapping[str, int]:
        """First step of every phase, in order."""
        ...

    def phase(self, step: int) -> str:
        """Return the name of the phase that ``step`` belongs to."""
        ...

    def batch_spec(self, step: int) -> BatchSpec:
        """Return which patches ``step`` reads."""
        ...

    def step(self, batch: Batch, step: int) -> Metrics:
        """Make every optimizer update of one iteration, in the paper's order."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return what ``RecipeSpec.weights_to_synthesizer`` needs, whole on every rank (collective)."""
        ...

    def synthesizer(self) -> Synthesizer:
        """Return what inference and validation use, sharing the current weights."""
        ...

    def state(self) -> State:
        """Return the engines' states by name, and whatever else a resumed run depends on."""
        ...

    def load(self, state: State) -> None:
        """Continue from ``state``."""
        ...


@runtime_checkable
class Validated(Protocol):
    """What a recipe offers besides when its schedule follows scores on patients that are not trained on.

    ``validate_every`` steps apart, ``validate_batches`` batches of ``validation_batch``, the same ones every time.
    """

    validate_every: int
    validate_batches: int
    validation_batch: BatchSpec

    def validate(self, batch: Batch) -> Metrics:
        """Score one batch without training; the loop averages over batches and ranks."""
        ...

    def observe(self, step: int, scores: Mapping[str, float]) -> int:
        """Take in the scores made after ``step`` steps; returns the step to go on with, later where a phase ends."""
        ...


@runtime_checkable
class Followed(Protocol):
    """What a recipe offers besides whose phases all see pairs, and whose last one alone trains what restores.

    Validations in its other phases may choose weights, but never count as made in vain (``LoopConfig.patience``).
    """

    @property
    def followed(self) -> str:
        """Name of the last phase."""
        ...


@runtime_checkable
class Exporting(Protocol):
    """What a recipe offers besides when networks made on the way are worth a file of their own."""

    def exports(self, step: int) -> Mapping[str, Mapping[str, Tensor]]:
        """Return file stem -> tensors, asked for after the last step (``step`` steps made) of a phase (collective)."""
        ...


@dataclass(frozen=True)
class Departure:
    """A setting other than the paper's, which a system states for everyday use.

    Args:
        name: ``section.field``.
        value: the setting.
        words: what it brings, as a report says it.
    """

    name: str
    value: Any
    words: str


class RecipeSpec(Protocol):
    """A system's module as the registry, the loop and the platform use it.

    Args:
        Config: the paper's configuration, its defaults the published values.
        FEED: which images and which intensity scale the paper trains on.
        PRESET: the paper's conventions of scoring, a key of ``trainers.metrics.presets.PRESETS``.
        ROLES: what patients do beside training in pairs and being tested: ``validation`` where a schedule follows
            their scores, ``unpaired`` where some give their full dose alone.  Every variant of a system splits alike,
            also one that leaves a role unused, so that ablations are compared on the same pairs.

    A module may also state ``LOOP`` (``trainers.loop.LoopConfig``) and ``ENGINE`` (``trainers.engine.EngineConfig``):
    defaults of a system that is trained with averaged weights, a schedule or validation.  Without them those of the
    classes hold, which are all off.  ``LATER`` names settings of ``Config`` that were added after runs had been made,
    and whose defaults leave these runs as they were.  ``PRACTICE`` holds the ``Departure``s from the paper that
    ``--defaults practice`` makes; without it there are none.  ``remarks(config, spacing_mm)`` returns what a user
    should know of settings that do not suit the voxel size (z, y, x) trained on, a sentence each.
    ``at_voxels(config, spacing_mm)`` returns ``Config`` with the settings that were left to that voxel size.
    """

    Config: type[Any]
    FEED: FeedConfig
    PRESET: str
    ROLES: frozenset[str]

    def check(self, config: Any, feed: FeedConfig, doses: Doses) -> None:
        """Refuse a configuration that does not fit the images fed, their scale and their doses (InputError)."""
        ...

    def files(self, config: Any) -> Mapping[str, Path]:
        """Return field -> file, for files from elsewhere that a run of ``config`` rests on, checked to be there."""
        ...

    def caveats(self, config: Any) -> Sequence[str]:
        """Return what every report on a run of ``config`` must say beside its scores."""
        ...

    def build(self, config: Any, *, make_engine: EngineFactory, patches_per_step: int) -> Recipe:
        """Build networks and engines; ``patches_per_step`` counts the patches of all ranks."""
        ...

    def weights_to_synthesizer(self, config: Any, weights: Mapping[str, Tensor]) -> Synthesizer:
        """Build the inference side alone from the exported weights of a run."""
        ...
