"""Unet-score (Zhou et al. 2022, arXiv 2205.08887, Sec. V): can a fixed U-Net still find the organs in a made image?

A U-Net is trained on full-dose images and organ masks of the training cases alone, never on a low dose or a synthesized
image, and then fixed: it judges every image alike, and its Dice on the full dose itself is what an image can reach.

What it knows: how the judge is trained, kept and asked.  What it refuses to know: which image is a network's, and who
the test cases are; a judge that has seen them flatters every image, so the caller gives the training fold only.

Readings where the text is silent:
    Network  the paper says "the most commonly used Unet": the layout of its guidance network S, of the same size.
    Training  S's: BCE + Dice, RMSprop at 1e-4, 100 epochs of 200 images.
    Patches  the paper shrinks bodies to 64^3.  Here the U-Net sees patches at native resolution; half of them are
        centred in an organ, a quarter in the body and a quarter lie anywhere, since it is later shown every part of the
        volume.  Windows at judgement are as large as these patches, because the statistics of instance norm are theirs.
    Dice  of p > 0.5 against the mask over the whole volume.  "All" of the tables exceeds every organ, so it is no mean:
        it is given as the Dice of the union of the organs, with the mean over the organs beside it.  An organ that a
        scan does not show has no Dice.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from storage import integrity
from storage.errors import InputError
from storage.patches import PatchLocation, grid
from storage.reader import Cohort
from storage.source import SUV, ImageSource
from trainers import checkpoint
from trainers.engine import plain_engine
from trainers.feed import Feed, FeedConfig, channel_values, check_cases
from trainers.loop import LoopConfig, Report, fit
from trainers.metrics.image import Rule, Score
from trainers.recipe import Batch, BatchSpec, Engine, Metrics, State, Synthesizer
from trainers.systems.sgsgan import segmentation_losses
from trainers.systems.sgsgan.networks import Segmenter

NAME, WEIGHTS, CHECKPOINTS = "unet-score", "judge.safetensors", "checkpoints"
UNION, MEAN = "all organs", "mean over organs"
DEEPEST = 8  # voxels that the coarsest level of the U-Net lumps together along an axis
LAWS = {"roi": 0.5, "body": 0.25, "uniform": 0.25}


@dataclass(frozen=True, kw_only=True)
class UnetScoreConfig:
    """The judge and its training; the defaults are those of the paper's guidance network S.

    Args:
        rois: organs to be found (Sec. IV-A.2).
        channels: b; the U-Net's levels have 2b, 4b, 8b, 16b channels.
        patch: edge lengths (z, y, x) in voxels of patches in training and of windows at judgement; multiples of 8.
        halo: voxels at a window's inner faces whose verdict is left to its neighbour.
        samples: patches seen in training (100 epochs of 200 images, as S in Sec. IV-C.1).
        patches_per_case: patches read from a case at a time.
        lr: RMSprop's learning rate, fixed (Sec. IV-C.3).

    Raises:
        InputError: CFG_ROI, CFG_PATCH_SIZE, CFG_RANGE.
    """

    rois: tuple[str, ...] = ("liver", "brain", "kidneys", "bladder")
    channels: int = 16
    patch: tuple[int, int, int] = (64, 64, 64)
    halo: int = 8
    samples: int = 20_000
    patches_per_case: int = 4
    lr: float = 1e-4

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
            ("channels", self.channels >= 1, "CFG_RANGE", "use 1 or more"),
            ("samples", self.samples >= 1, "CFG_RANGE", "use 1 or more"),
            ("patches_per_case", self.patches_per_case >= 1, "CFG_RANGE", "use 1 or more"),
            ("lr", self.lr > 0, "CFG_RANGE", "use a number above 0"),
        ):
            if not good:
                found = repr(getattr(self, field))
                raise InputError(code, where=f"unet_score.{field}", found=found, remedy=remedy)

    @property
    def batch_spec(self) -> BatchSpec:
        """Full-dose patches with the masks of the organs."""
        return BatchSpec(
            patch=self.patch,
            halo=(0, 0, 0),
            patches_per_case=self.patches_per_case,
            sampler=LAWS,
            rois=self.rois,
            images="full",
        )

    @property
    def rule(self) -> Rule:
        """How the Dice of one organ comes about."""
        patch = " x ".join(map(str, self.patch))
        judge = (
            f"3D U-Net of {2 * self.channels} to {16 * self.channels} channels for {', '.join(self.rois)}, "
            f"trained with BCE + Dice and RMSprop at {self.lr:g} on {self.samples} full-dose patches of {patch} voxels "
            f"of the training cases, then fixed; windows of {patch} voxels, halo {self.halo}"
        )
        mask = "Dice of p > 0.5 against the organ's mask, whole volume"
        return Rule("Unet-score", "ROI", mask, "1", judge=judge, preset="sgsgan")


class Training:
    """The judge in training: ``trainers.recipe.Recipe``."""

    phase_starts: Mapping[str, int] = {NAME: 0}

    def __init__(self, config: UnetScoreConfig, engine: Engine, patches_per_step: int) -> None:
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
        terms = segmentation_losses(self.engine(batch.full), batch.masks, "bce+dice")
        loss = torch.stack(list(terms.values())).sum()
        self.engine.backward(loss)
        self.engine.step()
        return {name: value.detach() for name, value in {"segmentation": loss, **terms}.items()}

    def weights(self) -> dict[str, Tensor]:
        """Return the U-Net's weights."""
        return {key.removeprefix("weight/"): v for key, v in self.engine.state().items() if key.startswith("weight/")}

    def synthesizer(self) -> Synthesizer:
        """A judge makes no image; nothing asks for one, since no pictures are drawn of it."""
        raise AssertionError("a judge makes no image")

    def state(self) -> State:
        """Return the state of the U-Net's engine."""
        return {"U": self.engine.state()}

    def load(self, state: State) -> None:
        """Continue from ``state``."""
        self.engine.load(state["U"])


@dataclass(frozen=True, eq=False)
class Judge:
    """A fixed U-Net.

    Args:
        config: what it is and how it was trained.
        suv_scale: SUV that was 1 in its training.
        network: (b, 1, z, y, x) images to (b, k, z, y, x) logits, in evaluation mode.
        device: where it lies.
        cases: those it was trained on, which it must not judge.
    """

    config: UnetScoreConfig
    suv_scale: float
    network: Callable[[Float[Tensor, "b 1 z y x"]], Float[Tensor, "b k z y x"]]
    device: torch.device
    cases: tuple[str, ...] = ()

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


def judge(
    folder: Path,
    cohort: Cohort,
    cases: Sequence[str],
    config: UnetScoreConfig,
    *,
    feed: FeedConfig,
    device: torch.device | None = None,
    report: Report = lambda record: None,
) -> Judge:
    """Train a judge, go on with one that was interrupted, or read a finished one.

    Args:
        folder: the judge's own; made where it does not exist.
        cohort: holds the cases.
        cases: training cases only.
        config: the judge.
        feed: full-dose image, intensity scale, seed and groups per step of the run that is judged; its low doses are
            not looked at.
        device: where it is trained and asked; the CPU if None.
        report: gets the loop's records.

    Raises:
        InputError: SET_TOO_SMALL, SET_NO_LABELS, SET_NO_IMAGE, IMG_TOO_SMALL before anything is trained; CKPT_DRIFT
            where the folder holds a judge of other cases or settings; as ``trainers.loop.fit`` does.
    """
    device = device or torch.device("cpu")
    if not cases:
        raise InputError(
            "SET_TOO_SMALL", where="Unet-score", found="no case to train on", remedy="name the run's training cases"
        )
    for name in cases:
        _organs(cohort.case(name).labels, config.rois, name)
    check_cases(cohort, {"full": cases}, feed, [config.batch_spec])
    identity = _identity(cohort, cases, config, feed)
    with integrity.exclusive(folder, purpose="the judge's training"):
        if not (folder / WEIGHTS).is_file():
            weights = _train(folder / CHECKPOINTS, cohort, cases, config, feed, device, report, identity)
            meta = {"recipe": NAME, "identity": json.dumps(identity, sort_keys=True)}
            checkpoint.write_weights(folder / WEIGHTS, weights, meta)
        weights, meta = checkpoint.read_weights(folder / WEIGHTS)
    checkpoint.check_same_run(json.loads(meta.get("identity", "{}")), identity)
    with torch.device("meta"):  # no random numbers for weights that are replaced at once
        network = Segmenter(config.channels, len(config.rois))
    network.load_state_dict(weights, assign=True)
    return Judge(config, feed.suv_scale, network.to(device).eval(), device, tuple(sorted(cases)))


def _identity(cohort: Cohort, cases: Sequence[str], config: UnetScoreConfig, feed: FeedConfig) -> dict[str, Any]:
    """What makes two judges the same, as JSON gives it back."""
    facts = asdict(feed)
    seen = {name: facts[name] for name in ("full", "suv_scale", "seed", "cases_per_step")}
    digests = {name: integrity.manifest(cohort.case(name).folder)["root"] for name in sorted(cases)}
    content: dict[str, Any] = json.loads(
        json.dumps({"recipe": NAME, "unet_score": asdict(config), "feed": seen, "cases": digests})
    )
    return content


def _train(
    folder: Path,
    cohort: Cohort,
    cases: Sequence[str],
    config: UnetScoreConfig,
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
        training = Training(config, engine, patches_per_step)
        fit(
            training,
            Feed(cohort, {"full": cases}, feed, training.batch_spec, rank=0, world=1, device=device),
            LoopConfig(picture_every=0, seed=feed.seed),
            folder=folder,
            meta=identity,
            report=report,
            picture=lambda step, synthesizer: None,
            patches_per_step=patches_per_step,
        )
    return training.weights()


def unet_scores(
    judge: Judge,
    case_name: str,
    candidates: Mapping[str, ImageSource],
    labels: ImageSource,
    label_names: Mapping[int, str],
) -> list[Score]:
    """Ask the judge about every image of a test case.

    Args:
        judge: one that has not seen the case.
        case_name: the case's alias, copied into every score.
        candidates: name to image in SUVbw; the full dose and the low-dose input belong among them.
        labels: integers, on the candidates' grid.
        label_names: what each label is.

    Returns:
        For every image the Dice of each organ, of the union of the organs (``UNION``) and the mean over the organs
        (``MEAN``); NaN where the labels hold no voxel of it.

    Raises:
        InputError: SET_NO_LABELS where the labels do not know an organ; CKPT_LEAK where the judge was trained on the
            case; IMG_GRID, IMG_UNITS, IMG_NAN.
    """
    if case_name in judge.cases:
        raise InputError(
            "CKPT_LEAK",
            where=f"case {case_name}",
            found="the judge of the Unet-score was trained on it",
            remedy="train the judge on the run's training cases alone",
        )
    organs = _organs(label_names, judge.config.rois, case_name)
    rule = judge.config.rule
    scores = []
    for name, image in candidates.items():
        _check(name, image, labels)
        counts = np.zeros((3, len(organs) + 1), dtype=np.int64)  # overlap, found, true; the union last
        for z0, found in judge.masks(image):
            mark = np.rint(labels.read(z0, z0 + found.shape[1]))
            true = np.stack([np.isin(mark, values) for values in organs])
            found, true = (np.concatenate([masks, masks.any(axis=0, keepdims=True)]) for masks in (found, true))
            counts += [masks.sum(axis=(1, 2, 3)) for masks in (found & true, found, true)]
        overlap, size_found, size_true = counts
        dice = np.where(size_true > 0, 2 * overlap / np.maximum(size_found + size_true, 1), np.nan).tolist()
        seen = [value for value in dice[:-1] if not math.isnan(value)]
        values = [*dice, sum(seen) / len(seen) if seen else math.nan]
        how = str(image.provenance.get("rule", ""))
        scores += [
            Score(case_name, name, region, "organ", rule, value, None, how)
            for region, value in zip((*judge.config.rois, UNION, MEAN), values, strict=True)
        ]
    return scores


def _organs(label_names: Mapping[int, str], rois: Sequence[str], case: str) -> list[list[int]]:
    """Label values of every ROI."""
    organs = [channel_values(dict(label_names), roi) for roi in rois]
    for roi, values in zip(rois, organs, strict=True):
        if not values:
            raise InputError(
                "SET_NO_LABELS",
                where=f"case {case}",
                found=f"no ROI '{roi}' for the Unet-score (there are: {', '.join(label_names.values()) or 'none'})",
                remedy="ingest labels that have it, or leave it out of the judge's organs",
            )
    return organs


def _check(name: str, image: ImageSource, labels: ImageSource) -> None:
    if not image.grid.matches(labels.grid):
        raise InputError(
            "IMG_GRID",
            where=name,
            found=f"shape {image.grid.shape} against the labels' {labels.grid.shape}, or another affine",
            remedy="score images on one grid: resample none of them silently",
        )
    if image.units != SUV:
        raise InputError("IMG_UNITS", where=name, found=f"units {image.units}", remedy="convert it to SUVbw at ingest")
