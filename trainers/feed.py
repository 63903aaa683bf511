"""Patches become torch batches: which case and box a step sees is pure arithmetic, reading ahead is only speed.

The order of samples, and how each is flipped, turned or tilted, is a function of (seed, step) alone, so it is the same
on any number of workers, after any resume and with any read-ahead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import InputError
from storage.layout import OVERVIEW
from storage.patches import PatchLocation, SamplingMaps, draw
from storage.randomness import Stream, generator
from storage.reader import Beyond, Case, Cases, StoredImage
from storage.source import SUV
from trainers.augment import Tilt, Turn, draw_tilt, draw_turn
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, BatchSpec, Doses, Scan


def channel_values(labels: dict[int, str], roi: str) -> list[int]:
    """Label values that make up an ROI: the name itself and its parts ("lesion" covers "lesion 1", "lesion 2")."""
    return [value for value, name in labels.items() if name == roi or name.startswith((f"{roi} ", f"{roi}_"))]


SQUARE = 1e-3  # by which the edges of a voxel may differ, relative, where it is turned by 90 degrees

Streams = Mapping[str, Sequence[str]]  # a kind of ``BatchSpec.images`` -> the cases that it is read from; of
# ``unpaired``, those that give targets (the ones that have it), while ``source`` gives the sources


def _read_from(
    cohort: Cases, streams: Streams, config: FeedConfig, need: BatchSpec
) -> list[tuple[Sequence[str], list[tuple[str, str]]]]:
    """Cases that a step with ``need`` reads, each group with its images and the units that they must have."""
    source, target = [(image, need.units) for image in config.source], [(config.target, SUV)]
    if need.images == "unpaired":
        return [(streams.get("source", ()), source), (_having(cohort, streams.get("unpaired", ()), config), target)]
    images = {"paired": source + target, "source": source, "target": target}[need.images]
    return [(streams.get(need.images, ()), images)]


def _having(cohort: Cases, cases: Sequence[str], config: FeedConfig) -> list[str]:
    """Those of the cases that have the target: a patient may give a low dose alone."""
    return [name for name in cases if config.target in cohort.case(name).images]


def check_cases(cohort: Cases, streams: Streams, config: FeedConfig, needs: Sequence[BatchSpec]) -> None:
    """Refuse before anything is started what would fail in the middle.

    Raises:
        InputError: SET_TOO_SMALL, SET_NO_UNPAIRED, SET_NO_IMAGE, SET_WRONG_UNITS, SET_NO_LABELS, IMG_TOO_SMALL,
            STORE_DAMAGED, CFG_OVERVIEW.
    """
    for need in needs:
        if need.overview:
            _check_overview(need.overview)
        read = _read_from(cohort, streams, config, need)
        if not read[0][0] and need.images == "target":
            raise InputError(
                "SET_NO_UNPAIRED",
                where="train",
                found="the recipe learns from full-dose scans of patients without a pair, and there are none",
                remedy="give more patients to them: --set split.unpaired_fraction=0.8, or name them: split.unpaired",
            )
        if not read[0][0]:
            raise InputError(
                "SET_TOO_SMALL",
                where="train",
                found="no case to train on",
                remedy="ingest more cases or change the split",
            )
        if need.images == "unpaired":
            _check_others(cohort, read[0][0], read[1][0], config)
        for cases, images in read:
            beside = need.beside if images[0][0] in config.source else ()
            for name in cases:
                _check_case(cohort, name, images, beside, need)


def _check_others(cohort: Cases, sources: Sequence[str], targets: Sequence[str], config: FeedConfig) -> None:
    """Refuse a patient whose source would have no target of another patient beside it.

    Raises:
        InputError: SET_NO_UNPAIRED.
    """
    people = {cohort.case(name).subject for name in targets}
    for name in sources:
        if not people - {cohort.case(name).subject}:
            raise InputError(
                "SET_NO_UNPAIRED",
                where="train",
                found=f"the recipe sees the image {config.source[0]} of case {name} beside the image {config.target} "
                "of another patient, and no other patient to train on has one",
                remedy="ingest another patient into the cohort (petscale ingest), or keep fewer for testing "
                "(--set split.test_fraction=0.1)",
            )


def _check_case(
    cohort: Cases, name: str, images: Sequence[tuple[str, str]], beside: Sequence[str], need: BatchSpec
) -> None:
    """Refuse a case that lacks one of the images, has it in another unit, or is too small or without labels.

    Raises:
        InputError: SET_NO_IMAGE, SET_WRONG_UNITS, SET_NO_LABELS, IMG_TOO_SMALL, STORE_DAMAGED.
    """
    case = cohort.case(name)
    for image, wanted in images:
        if (found := case.image(image).units) != wanted:
            raise InputError(
                "SET_WRONG_UNITS",
                where=f"case {name}, image {image}",
                found=f"an image in {found}, the recipe takes {wanted} there",
                remedy="name the images that it is made for (--set feed.source=... feed.target=...), "
                "or another --recipe",
            )
    for image in beside:
        case.image(image)  # refused where it has none
    for roi in need.rois:
        if not channel_values(case.labels, roi):
            raise InputError(
                "SET_NO_LABELS",
                where=f"case {name}",
                found=f"no ROI '{roi}' (there are: {', '.join(case.labels.values()) or 'none'})",
                remedy="ingest labels of it (petscale ingest --labels MAP --names 1=liver)"
                + (f", or {need.unlabelled}" if need.unlabelled else ""),
            )
    if not need.beyond and any(n > size for n, size in zip(need.patch, case.sampling_maps.shape, strict=True)):
        raise InputError(
            "IMG_TOO_SMALL",
            where=f"case {name}",
            found=f"the patch {need.patch} (z, y, x) is larger than its {case.sampling_maps.shape} voxels",
            remedy="choose a smaller patch (--set recipe.patch=...) or leave the case out "
            f"(--set split.leave_out={name})",
        )


def drf_of(image: StoredImage) -> float:
    """Return the dose reduction factor that an image states, NaN where it states none."""
    return math.nan if image.dose is None else image.dose.drf


def scan_of(image: StoredImage) -> Scan:
    """Return what is known of a stored image before any of its voxels is read."""
    dose = image.dose
    shared = 1 / dose.drf if dose is not None and dose.shares_noise and dose.drf >= 1 else 0.0
    return Scan(image.grid.spacing_mm, drf_of(image), shared)


def doses_fed(cohort: Cases, cases: Sequence[str], config: FeedConfig) -> Doses:
    """Return source image -> its dose reduction factors in ``cases``, NaN among them where one is unknown."""
    unknown = math.nan  # one object, so that a set holds it once
    factors = {image: [drf_of(cohort.case(name).image(image)) for name in cases] for image in config.source}
    return {image: frozenset(unknown if math.isnan(x) else x for x in found) for image, found in factors.items()}


class Feed:
    """Batches of one rank, by step."""

    def __init__(
        self,
        cohort: Cases,
        streams: Streams,
        config: FeedConfig,
        needs: Callable[[int], BatchSpec],
        *,
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        if config.cases_per_step % world:
            raise InputError(
                "CFG_WORKERS",
                where="feed.cases_per_step",
                found=f"{config.cases_per_step} groups per step cannot be shared evenly by {world} workers",
                remedy="choose a number of workers that divides it, or change it for a new run",
            )
        self._config, self._needs, self._device = config, needs, device
        read = {"paired": config.source, "source": config.source, "target": (config.target,)}
        self._samples = {
            kind: [(case, image) for case in sorted(streams[kind]) for image in images]
            for kind, images in read.items()
            if kind in streams
        }
        self._others = sorted(_having(cohort, streams.get("unpaired", ()), config))
        self._cases = {name: cohort.case(name) for cases in streams.values() for name in cases}
        share = config.cases_per_step // world
        self._mine = range(rank * share, (rank + 1) * share)
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="feed")
        self._ahead: dict[int, Future[Batch]] = {}
        self.waited_s = 0.0

    def plan(self, step: int) -> list[tuple[str, str, list[PatchLocation]]]:
        """Say which (case, image, boxes) this rank reads for ``step``; a pure function.

        The image is the source, with the target of the same place where pairs are asked for, and with what ``others``
        says where unpaired ones are.
        """
        need = self._needs(step)
        samples = self._samples["source" if need.images == "unpaired" else need.images]
        groups = []
        for group in self._groups(step):
            epoch, turn = divmod(group, len(samples))
            order = generator(self._config.seed, Stream.SAMPLE_ORDER, epoch).permutation(len(samples))
            case, image = samples[int(order[turn])]
            maps = _guided(self._cases[case], need.rois)
            rng = generator(self._config.seed, Stream.PATCH_PLACE, group)
            boxes = [draw(maps, need.patch, need.sampler, rng) for _ in range(need.patches_per_case)]
            groups.append((case, image, boxes))
        return groups

    def others(self, step: int) -> list[tuple[str, list[PatchLocation]]]:
        """Say which (case, boxes) this rank reads the targets of an unpaired ``step`` from; a pure function.

        A group's case is of another patient than its source; every case has its turn in an epoch, or the one after it
        has where it is the source's.
        """
        need, cases = self._needs(step), self._others
        found = []
        for group, (source, _, _) in zip(self._groups(step), self.plan(step), strict=True):
            epoch, turn = divmod(group, len(cases))
            order = generator(self._config.seed, Stream.OTHER_ORDER, epoch).permutation(len(cases))
            turns = (cases[int(order[(turn + later) % len(cases)])] for later in range(len(cases)))
            subject = self._cases[source].subject
            case = next(name for name in turns if self._cases[name].subject != subject)
            maps = _guided(self._cases[case], need.rois)
            rng = generator(self._config.seed, Stream.OTHER_PLACE, group)
            found.append((case, [draw(maps, need.patch, need.sampler, rng) for _ in range(need.patches_per_case)]))
        return found

    def batch(self, step: int, last: int) -> Batch:
        """Return the batch of ``step``, having asked for the next ones (below ``last``) to be read."""
        for skipped in [ahead for ahead in self._ahead if ahead < step]:  # a phase that ended early
            self._ahead.pop(skipped).cancel()
        for ahead in range(step, min(step + 1 + self._config.read_ahead, last)):
            if ahead not in self._ahead:
                self._ahead[ahead] = self._pool.submit(self._read, ahead)
        begin = perf_counter()
        batch = self._ahead.pop(step).result()
        self.waited_s += perf_counter() - begin
        if self._device.type == "cpu":
            return batch
        names = ("source", "target", "masks", "overview", "drf", "spacing_mm", "shared", "peak")
        moved = {name: getattr(batch, name).pin_memory().to(self._device, non_blocking=True) for name in names}
        return replace(batch, **moved)

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _groups(self, step: int) -> list[int]:
        """Numbers of this rank's groups of ``step``, counted from the run's first."""
        return [step * self._config.cases_per_step + i for i in self._mine]

    def _turned(self, need: BatchSpec, spacing_mm: Sequence[float], group: int, place: int) -> Turn:
        """How a patch is turned, the source with its halo, the target and the masks alike; a pure function."""
        if self._config.augment == "none":
            return lambda patch: patch
        # An overview belongs to all patches of its group, which then lie as it does.
        rng = generator(self._config.seed, Stream.AUGMENT, group, 0 if need.overview else place)
        return draw_turn(rng, self._config.augment, square=_square(need, spacing_mm))

    def _tilted(self, spacing_mm: tuple[float, float, float], group: int, place: int) -> Tilt | None:
        """How a patch is tilted, all of its images alike; a pure function.  None for not at all."""
        degrees, scaling = self._config.tilt_deg, self._config.scaling
        if not degrees and not scaling:
            return None
        rng = generator(self._config.seed, Stream.TILT, group, place)
        return draw_tilt(rng, spacing_mm, degrees=degrees, scaling=scaling)

    def _beyond_target(self, tilt: Tilt | None) -> Beyond:
        """What a target holds beyond its faces: what its source holds there, where a corner of a tilted patch is."""
        return "air" if tilt is None and self._config.beyond == "mirror" else self._config.beyond

    def _read(self, step: int) -> Batch:
        need = self._needs(step)
        # Patches go straight into the batch: to hold them until all are read costs as much time as to read them.
        count = len(self._mine) * need.patches_per_case
        edges = tuple(n + 2 * h for n, h in zip(need.patch, need.halo, strict=True))
        nothing = (count, 1, 0, 0, 0)
        source = np.empty(nothing if need.images == "target" else (count, 1 + len(need.beside), *edges), np.float32)
        target = np.empty(nothing if need.images == "source" else (count, 1, *need.patch), np.float32)
        masks, overview = [], []
        places: list[str] = []
        scans: list[Scan] = []
        peak = []
        plan, apart = self.plan(step), need.images == "unpaired"
        ends = self.others(step) if apart else [(name, boxes) for name, _, boxes in plan]
        for group, (name, image, boxes), (other, there) in zip(self._groups(step), plan, ends, strict=True):
            case, giver = self._cases[name], self._cases[other]
            wanted = [channel_values(case.labels, name) for name in (*need.rois, *need.marked)]
            scan = scan_of(case.image(image))
            told = replace(scan, drf=math.nan, shared=0.0) if need.images == "target" else scan
            told = replace(told, shared=0.0) if apart else told
            turns = [self._turned(need, scan.spacing_mm, group, place) for place in range(len(boxes))]
            for place, (box, end_box) in enumerate(zip(boxes, there, strict=True)):
                turned, tilt = turns[place], self._tilted(scan.spacing_mm, group, place)
                at = len(places)
                if need.images != "target":
                    for channel, one in enumerate((image, *need.beside)):
                        start = _patch(case.image(one), box.grown(need.halo), tilt, self._config.beyond)
                        source[at, channel] = turned(start[None])[0]
                if any(wanted):
                    labels = _patch(case.image("labels"), box, tilt, order=0)
                    masks.append(turned(np.stack([np.isin(labels, values) for values in wanted]).astype(np.float32)))
                else:
                    masks.append(np.zeros((len(wanted), *box.shape), dtype=np.float32))
                scans.append(told)
                peak.append(1.0 if need.images == "source" else _peak(giver.image(self._config.target)))
                end_place = f" and {other} {self._config.target} {end_box}" if apart else ""
                places.append(f"{name} {image} {box}{end_place}")
                if apart:  # as it would lie without the source beside it
                    spacing_mm = giver.image(self._config.target).grid.spacing_mm
                    turned = self._turned(need, spacing_mm, group, len(boxes) + place)
                    tilt = self._tilted(spacing_mm, group, len(boxes) + place)
                if need.images != "source":
                    end = _patch(giver.image(self._config.target), end_box, tilt, self._beyond_target(tilt))
                    target[at] = turned(end[None])
            if need.overview:
                overview.append(turns[0](case.overview(image)[None]))
        scale = 1.0 / self._config.suv_scale
        empty = torch.zeros(len(self._mine), 1, 0, 0, 0)
        return Batch(
            source=_scaled(torch.from_numpy(source), scale if need.units == SUV else 1.0),
            target=torch.from_numpy(target).mul_(scale),
            masks=_tensor(masks),
            overview=_tensor(overview).mul_(scale) if overview else empty,
            drf=torch.tensor([scan.drf for scan in scans]),
            cases=len(self._mine),
            places=tuple(places),
            spacing_mm=torch.tensor([scan.spacing_mm for scan in scans]),
            shared=torch.tensor([scan.shared for scan in scans]),
            peak=torch.tensor(peak) * scale,
            units=need.units,
        )


def _patch(
    image: StoredImage, box: PatchLocation, tilt: Tilt | None, beyond: Beyond = "air", order: int = 1
) -> NDArray[np.float32]:
    """Read one box as it lies in the patient, or tilted about its centre."""
    if tilt is None:
        return image.patch(box, beyond)
    return tilt.of(image.patch(tilt.box(box), beyond), box.shape, order)


def _square(need: BatchSpec, spacing_mm: Sequence[float]) -> bool:
    """Whether a quarter turn in the plane (y, x) leaves the shape of a patch and the size of its voxels."""
    (_, height, width), (_, above, beside), (_, y_mm, x_mm) = need.patch, need.halo, spacing_mm
    return height == width and above == beside and abs(y_mm / x_mm - 1) <= SQUARE


def _scaled(source: Tensor, factor: float) -> Tensor:
    """Multiply the first channel of (b, 1 + k, z, y, x) by ``factor`` in place; images beside it keep their units."""
    source[:, :1].mul_(factor)
    return source


def _tensor(arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _peak(image: StoredImage) -> float:
    """Largest value of a stored image, positive."""
    return max(float(image.statistics["max"]), 1e-6)


def _check_overview(size: int) -> None:
    if size != OVERVIEW:
        raise InputError(
            "CFG_OVERVIEW",
            where="recipe.overview",
            found=f"{size}; cohorts store overviews of {OVERVIEW}^3",
            remedy=f"use {OVERVIEW}",
        )


def _guided(case: Case, rois: Sequence[str]) -> SamplingMaps:
    """Sampling maps of a case, their regions narrowed to the guided ones when there are any."""
    if not rois:
        return case.sampling_maps
    maps = case.sampling_maps
    names = {case.labels[value] for roi in rois for value in channel_values(case.labels, roi)}
    return replace(maps, rois={name: cells for name, cells in maps.rois.items() if name in names})
