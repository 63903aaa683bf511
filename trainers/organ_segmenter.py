"""The U-Net that finds organs for the Unet-score (Zhou et al. 2022, arXiv 2205.08887, Sec. IV-B): training and use.

It is trained on full-dose images and organ masks of the training cases alone, never on a low dose or a synthesized
image, and its weights are then fixed, so that every image is segmented by the same network.  A segmenter that has seen
a test case scores its images too high: the caller gives the training cases only.

Readings where the text is silent:
    Network  the paper says "the most commonly used Unet": the layout of its guidance network S, of the same size.
    Training  S's: BCE + Dice, which Table IX finds best, RMSprop at 1e-4, 100 epochs of 200 images.
    Patches  the paper shrinks bodies to 64^3.  Here the U-Net sees patches at native resolution; half of them are
        centred in an organ, a quarter in the body and a quarter lie anywhere, since it is later shown every part of the
        volume.  Windows in use are as large as these patches, because the statistics of instance norm are theirs.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from storage import integrity
from storage.errors import InputError
from storage.patches import PatchLocation, grid
from storage.ranges import Range, check_ranges
from storage.reader import Cases
from storage.source import ImageSource
from trainers import checkpoint
from trainers.assembly import with_weights
from trainers.engine import plain_engine
from trainers.feed import Feed, channel_values, check_cases
from trainers.feed_config import FeedConfig, as_stored
from trainers.loop import LoopConfig, Report, fit
from trainers.metrics.definitions import ScoreDefinition
from trainers.metrics.identifiers import segmenter_key
from trainers.metrics.unet_score import GUIDE, UNET, unet_score_definition
from trainers.recipe import Batch, BatchSpec, Engine, Metrics, State, Synthesizer
from trainers.systems import sgsgan
from trainers.systems.sgsgan import segmentation_losses
from trainers.systems.sgsgan.networks import Segmenter

NAME, WEIGHTS, CHECKPOINTS = "unet-score", "judge.safetensors", "checkpoints"  # as folders of earlier runs hold them
DEEPEST = 8  # voxels that the coarsest level of the U-Net lumps together along an axis
SAMPLER = {"roi": 0.5, "body": 0.25, "uniform": 0.25}


@dataclass(frozen=True, kw_only=True)
class OrganSegmenterConfig:
    """The organ segmenter and its training; the defaults are those of the paper's guidance network S.

    Args:
        rois: organs to be found (Sec. IV-A.2).
        channels: b; the U-Net's levels have 2b, 4b, 8b, 16b channels.
        patch: edge lengths (z, y, x) in voxels of patches in training and of windows in use; multiples of 8.
        halo: voxels at a window's inner faces that are decided by the neighbouring window.
        samples: patches seen in training (100 epochs of 200 images, as S in Sec. IV-C.1).
        patches_per_case: patches read from a case at a time.
        lr: RMSprop's learning rate, fixed (Sec. IV-C.3).
        loss: what it is trained with, the terms of Eq. 7 (Table IX).

    Raises:
        InputError: CFG_ROI, CFG_PATCH_SIZE, CFG_RANGE.
    """

    rois: tuple[str, ...] = ("liver", "brain", "kidneys", "bladder")
    channels: Annotated[int, Range(1)] = 16
    patch: tuple[int, int, int] = (64, 64, 64)
    halo: int = 8
    samples: Annotated[int, Range(1)] = 20_000
    patches_per_case: Annotated[int, Range(1)] = 4
    lr: Annotated[float, Range(above=0)] = 1e-4
    loss: Literal["bce", "dice", "bce+dice"] = "bce+dice"

    def __post_init__(self) -> None:
        for field, good, code, remedy in (
            ("rois", self.rois and len(set(self.rois)) == len(self.rois), "CFG_ROI", "name organs, every one once"),
            (
                "patch",
                all(edge % DEEPEST == 0 and edge >= 2 * DEEPEST for edge in self.patch),
                "CFG_PATCH_SIZE",
                f"use multiples of {DEEPEST} of at least {2 * DEEPEST} voxels",
            ),
            ("halo", 0 <= 2 * self.halo < min(self.patch), "CFG_RANGE", "use less than half of the patch, 0 or more"),
        ):
            if not good:
                found = repr(getattr(self, field))
                raise InputError(code, where=f"unet_score.{field}", found=found, remedy=remedy)
        check_ranges(self, "unet_score")

    @property
    def batch_spec(self) -> BatchSpec:
        """Full-dose patches with the masks of the organs."""
        return BatchSpec(
            patch=self.patch,
            halo=(0, 0, 0),
            patches_per_case=self.patches_per_case,
            sampler=SAMPLER,
            rois=self.rois,
            images="target",
        )

    @property
    def stored(self) -> dict[str, Any]:
        """The fields as a segmenter's folder and digest hold them: those of before ``loss`` hold none, by default."""
        fields = asdict(self)
        if fields["loss"] == OrganSegmenterConfig.loss:
            del fields["loss"]
        return fields

    @property
    def key(self) -> str:
        """What makes two Unet-scores comparable, as a short stable text (``identifiers.segmenter_key``)."""
        return segmenter_key(
            (2 * self.channels, 16 * self.channels),
            rois=self.rois,
            lr=self.lr,
            samples=self.samples,
            patch=self.patch,
            halo=self.halo,
            loss=self.loss,
        )

    @property
    def definition(self) -> ScoreDefinition:
        """How the Dice of one organ comes about."""
        return unet_score_definition(self.key)


class SegmenterTraining:
    """The training of an organ segmenter: ``trainers.recipe.Recipe``."""

    phase_starts: Mapping[str, int] = {NAME: 0}

    def __init__(self, config: OrganSegmenterConfig, engine: Engine, patches_per_step: int) -> None:
        self.config = config
        self.engine = engine
        self.num_steps = math.ceil(config.samples / patches_per_step)

    def phase(self, step: int) -> str:
        """Return the name of the only phase."""
        return NAME

    def batch_spec(self, step: int) -> BatchSpec:
        """Return the same needs for every step."""
        return self.config.batch_spec

    def step(self, batch: Batch, step: int) -> Metrics:
        """Update the U-Net on full-dose patches and their masks (Eq. 7)."""
        terms = segmentation_losses(self.engine(batch.target), batch.masks, self.config.loss)
        loss = torch.stack(list(terms.values())).sum()
        self.engine.backward(loss)
        self.engine.step()
        return {name: value.detach() for name, value in {"segmentation": loss, **terms}.items()}

    def weights(self) -> dict[str, Tensor]:
        """Return the U-Net's weights."""
        return {key.removeprefix("weight/"): v for key, v in self.engine.state().items() if key.startswith("weight/")}

    def synthesizer(self) -> Synthesizer:
        """Not available: a segmenter makes no PET, and its training draws no pictures."""
        raise AssertionError("a segmenter makes no PET")

    def state(self) -> State:
        """Return the state of the U-Net's engine."""
        return {"U": self.engine.state()}

    def load(self, state: State) -> None:
        """Continue from ``state``."""
        self.engine.load(state["U"])


@dataclass(frozen=True, eq=False)
class OrganSegmenter:
    """A trained U-Net whose weights are fixed.

    Args:
        config: what it is and how it was trained.
        suv_scale: SUV that was 1 in its training.
        network: (b, 1, z, y, x) images to (b, k, z, y, x) logits, in evaluation mode.
        device: where it lies.
        cases: those it was trained on, which it must not be used on.
        metric: what its Dice is called.
    """

    config: OrganSegmenterConfig
    suv_scale: float
    network: Callable[[Float[Tensor, "b 1 z y x"]], Float[Tensor, "b k z y x"]]
    device: torch.device
    cases: tuple[str, ...] = ()
    metric: str = UNET

    @property
    def rois(self) -> tuple[str, ...]:
        """Names of the organs it finds."""
        return self.config.rois

    @property
    def definition(self) -> ScoreDefinition:
        """How the Dice of one organ comes about."""
        return unet_score_definition(self.config.key, self.metric)

    def label_values(self, label_names: Mapping[int, str], case: str) -> list[list[int]]:
        """Return the label values that make up every organ, in the order of ``rois``.

        Raises:
            InputError: SET_NO_LABELS where the labels do not name an organ.
        """
        return label_values(label_names, self.config.rois, case)

    @torch.no_grad()
    def masks(self, image: ImageSource) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Find the organs of a whole volume, holding one row of windows at a time.

        Windows lie inside the volume, as the patches of training did, zeros beyond a volume shorter than a window; a
        voxel in several of them is decided by one that does not see it at a face of its own.

        Yields:
            z0 and (k, dz, y, x) masks of the slab ``z0 <= z < z0 + dz``, in order, every voxel once.

        Raises:
            InputError: IMG_NAN.
        """
        shape, patch, halo = image.grid.shape, self.config.patch, self.config.halo
        rows: dict[int, list[PatchLocation]] = {}
        for window in grid(shape, patch, (2 * halo,) * 3):
            rows.setdefault(window.start[0], []).append(window)
        done = 0
        for z0, windows in rows.items():
            slab = np.zeros(
                (patch[0], *(max(n, edge) for n, edge in zip(shape[1:], patch[1:], strict=True))), np.float32
            )
            values = image.read(z0, min(z0 + patch[0], shape[0]))
            if not np.isfinite(values).all():
                raise InputError(
                    "IMG_NAN", where="image", found="values that are not finite", remedy="repair the image first"
                )
            slab[: values.shape[0], : shape[1], : shape[2]] = values / np.float32(self.suv_scale)
            found = np.zeros((len(self.config.rois), *slab.shape), dtype=bool)
            for window in windows:
                z, y, x = (
                    slice(a, b) for a, b in zip((0, *window.start[1:]), (patch[0], *window.stop[1:]), strict=True)
                )
                logits = self.network(torch.from_numpy(slab[z, y, x].copy())[None, None].to(self.device))[0]
                _, ky, kx = kept = _kept(window, shape, halo)
                inner = tuple(slice(s.start - a, s.stop - a) for s, a in zip(kept, window.start, strict=True))
                found[:, inner[0], ky, kx] = (logits > 0).cpu().numpy()[:, *inner]
            stop = _kept(windows[0], shape, halo)[0].stop
            yield done, found[:, done - z0 : stop - z0, : shape[1], : shape[2]]
            done = stop


def _kept(window: PatchLocation, shape: tuple[int, int, int], halo: int) -> tuple[slice, slice, slice]:
    """The voxels of the volume that a window decides: all but a halo, which is kept only at the volume's faces."""
    z, y, x = (
        slice(a + (halo if a > 0 else 0), min(b, n) - (halo if b < n else 0))
        for a, b, n in zip(window.start, window.stop, shape, strict=True)
    )
    return z, y, x


def train_segmenter(
    folder: Path,
    cohort: Cases,
    cases: Sequence[str],
    config: OrganSegmenterConfig,
    *,
    feed: FeedConfig,
    device: torch.device | None = None,
    report: Report = lambda record: None,
) -> OrganSegmenter:
    """Train a segmenter, continue an interrupted training, or read a finished one.

    Args:
        folder: the segmenter's own; made where it does not exist.
        cohort: holds the cases.
        cases: training cases only.
        config: the segmenter and its training.
        feed: full-dose image, intensity scale, seed and groups per step of the run that is scored; its low doses are
            not used.
        device: where it is trained and used; the CPU if None.
        report: gets the loop's records.

    Raises:
        InputError: SET_TOO_SMALL, SET_NO_LABELS, SET_NO_IMAGE, IMG_TOO_SMALL before anything is trained; CKPT_DRIFT
            where the folder holds a segmenter of other cases or settings; as ``trainers.loop.fit`` does.
    """
    device = device or torch.device("cpu")
    if not cases:
        raise InputError(
            "SET_TOO_SMALL", where="Unet-score", found="no case to train on", remedy="name the run's training cases"
        )
    for name in cases:
        label_values(cohort.case(name).labels, config.rois, name)
    check_cases(cohort, {"target": cases}, feed, [config.batch_spec])
    identity = _identity(cohort, cases, config, feed)
    with integrity.exclusive(folder, purpose="the organ segmenter's training"):
        if not (folder / WEIGHTS).is_file():
            weights = _train(folder / CHECKPOINTS, cohort, cases, config, feed, device, report, identity)
            meta = {"recipe": NAME, "identity": json.dumps(identity, sort_keys=True)}
            checkpoint.write_weights(folder / WEIGHTS, weights, meta)
        weights, meta = checkpoint.read_weights(folder / WEIGHTS)
    checkpoint.check_same_run(json.loads(meta.get("identity", "{}")), identity)
    return _made(config, feed, weights, device, cases)


def read_segmenter(
    folder: Path, config: OrganSegmenterConfig, *, feed: FeedConfig, device: torch.device
) -> OrganSegmenter:
    """Read a finished segmenter, for cases of another cohort than the one it was trained on.

    It names no case: that none of those it scores was trained on is to be told by their digests, not by their names.

    Args:
        folder: as for ``train_segmenter``; config and feed too.
        device: where it is used.

    Raises:
        InputError: CKPT_NONE without one; CKPT_DRIFT where it has other settings; CKPT_DAMAGED.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            "CKPT_NONE",
            where="Unet-score",
            found="no organ segmenter yet, and this is not the cohort that the run was trained on",
            remedy="evaluate the run with the same --unet-score on its own cohort first: that trains it",
        )
    weights, meta = checkpoint.read_weights(folder / WEIGHTS)
    found = json.loads(meta.get("identity", "{}"))
    checkpoint.check_same_run(found, _settings(config, feed) | {"cases": found.get("cases")})
    return _made(config, feed, weights, device, ())


def _made(
    config: OrganSegmenterConfig,
    feed: FeedConfig,
    weights: Mapping[str, Tensor],
    device: torch.device,
    cases: Sequence[str],
) -> OrganSegmenter:
    with torch.device("meta"):  # no random numbers for weights that are replaced at once
        network = Segmenter(config.channels, len(config.rois))
    network.load_state_dict(weights, assign=True)
    return OrganSegmenter(config, feed.suv_scale, network.to(device).eval(), device, tuple(sorted(cases)))


def guide_of(
    config: sgsgan.Config, weights: Mapping[str, Tensor], *, suv_scale: float, device: torch.device
) -> OrganSegmenter:
    """Return SGSGAN's segmentation network S as phase 4 left it, for the Unet-score-SG of what G makes (Sec. IV-B).

    Args:
        config: of the run that trained it.
        weights: as ``SGSGAN.exports`` gave them.
        suv_scale: SUV that was 1 in its training.

    Raises:
        InputError: CKPT_CONFIG.
    """
    phases = dict(zip(sgsgan.PHASES, config.phase_samples, strict=True))
    own = OrganSegmenterConfig(
        rois=config.rois,
        channels=config.segmenter_channels,
        patch=config.patch,
        samples=max(1, phases["segmenter"] + phases["final segmenter"]),
        lr=config.lr,
        loss=config.seg_loss,
    )
    network = with_weights(partial(Segmenter, own.channels, len(own.rois)), weights, "weights of S")
    return OrganSegmenter(own, suv_scale, network.to(device).eval(), device, metric=GUIDE)


def _identity(cohort: Cases, cases: Sequence[str], config: OrganSegmenterConfig, feed: FeedConfig) -> dict[str, Any]:
    """What makes two segmenters the same, as JSON gives it back."""
    digests = {name: integrity.manifest(cohort.case(name).folder)["root"] for name in sorted(cases)}
    return _settings(config, feed) | {"cases": digests}


def _settings(config: OrganSegmenterConfig, feed: FeedConfig) -> dict[str, Any]:
    facts = asdict(feed)
    seen = {name: facts[name] for name in ("target", "suv_scale", "seed", "cases_per_step")}
    content: dict[str, Any] = json.loads(json.dumps({"recipe": NAME, "unet_score": config.stored, "feed": seen}))
    return content


def _train(
    folder: Path,
    cohort: Cases,
    cases: Sequence[str],
    config: OrganSegmenterConfig,
    feed: FeedConfig,
    device: torch.device,
    report: Report,
    identity: Mapping[str, Any],
) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(feed.seed)
        network: nn.Module = Segmenter(config.channels, len(config.rois)).to(device)
        patches_per_step = feed.cases_per_step * config.patches_per_case
        engine = plain_engine(network, partial(torch.optim.RMSprop, lr=config.lr))
        training = SegmenterTraining(config, engine, patches_per_step)
        unturned = as_stored(feed)  # a measure, the same for runs that turn their patches
        fit(
            training,
            Feed(cohort, {"target": cases}, unturned, training.batch_spec, rank=0, world=1, device=device),
            LoopConfig(picture_every=0, seed=feed.seed),
            folder=folder,
            meta=identity,
            report=report,
            picture=lambda step, synthesizer: None,
            patches_per_step=patches_per_step,
        )
    return training.weights()


def label_values(label_names: Mapping[int, str], rois: Sequence[str], case: str) -> list[list[int]]:
    """Return the label values that make up every organ.

    Raises:
        InputError: SET_NO_LABELS where the labels do not name an organ.
    """
    organs = [channel_values(dict(label_names), roi) for roi in rois]
    for roi, values in zip(rois, organs, strict=True):
        if not values:
            raise InputError(
                "SET_NO_LABELS",
                where=f"case {case}",
                found=f"no ROI '{roi}' for the Unet-score (there are: {', '.join(label_names.values()) or 'none'})",
                remedy="ingest labels that have it, or leave it out of the organ segmenter's organs",
            )
    return organs
