"""The mean over several runs and over mirror images: which runs take part, and their images averaged slab by slab.

One run's weights are in memory at a time, and one slab of the mean: what is in between lies on disk.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from petscale import config as configs
from petscale.calibrations import NOT_CALIBRATED, Kept
from petscale.calibrations import read as read_calibration
from petscale.config import RunConfig
from petscale.console import console
from petscale.folders import FOLDS, SYNTHESIS, WEIGHTS
from petscale.inference import (
    CALIBRATED,
    Estimate,
    Estimator,
    Lazy,
    Spool,
    Trained,
    comment_of,
    describe,
    load_run,
    open_run,
    run_case,
    scratch_beside,
    store_result,
)
from petscale.plausibility import VOXEL_WARNING, TrainedOn, check_scan
from storage import integrity, nifti, remote
from storage.errors import InputError
from storage.reader import Case, StoredImage
from storage.source import HU, Grid
from trainers.synthesize import mirrors

Axis = Literal["z", "y", "x"]
AXES: tuple[Axis, ...] = ("z", "y", "x")


@dataclass(frozen=True)
class Member:
    """A finished run of several, without its networks: these are read when it is the run's turn.

    Args:
        folder: of the run.
        name: by which messages tell it from the others.
        config: its configuration.
        on: what its training cases are like.
        weights: digest of its weights.
    """

    folder: Path
    name: str
    config: RunConfig
    on: TrainedOn
    weights: str


@dataclass(frozen=True)
class Ensemble:
    """Runs whose images are averaged, each over mirror images too: an ``Estimator``.

    Every image is the one that its run alone would give, negatives clipped; all of them count alike.

    Args:
        members: one run or more, that start from one kind of scan and were trained to give one image.
        flips: axes of (z, y, x), by number, along which the scan is mirrored; all of their mirror images are averaged.
        calibration: of the standard deviation of these images; None for one that is not calibrated.
    """

    members: tuple[Member, ...]
    flips: tuple[int, ...] = ()
    calibration: Kept | None = None

    @property
    def config(self) -> RunConfig:
        """The first run's configuration."""
        return self.members[0].config

    @property
    def on(self) -> TrainedOn:
        """What the first run's training cases are like."""
        return self.members[0].on

    @property
    def count(self) -> int:
        """How many images are averaged."""
        return len(self.members) * len(mirrors(self.flips))

    @property
    def weights(self) -> str:
        """Digest of all weights and of the mirror images; the order of the runs does not matter."""
        parts = [sorted(member.weights for member in self.members), sorted(self.flips)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def folder(self) -> str:
        """Name of the folders that hold its results, in a run's ``synthesis`` and ``evaluation``."""
        return f"mean-{self.weights[:12]}"

    @property
    def recipe(self) -> str:
        """The systems that take part."""
        return " + ".join(dict.fromkeys(member.config.recipe for member in self.members))

    @property
    def description(self) -> str:
        """How an image was made."""
        runs, copies = len(self.members), len(mirrors(self.flips))
        parts = [*([f"{runs} runs"] if runs > 1 else []), *([f"{copies} mirror images"] if copies > 1 else [])]
        return f"mean of {' x '.join(parts)}, {describe(self.recipe, self.on.units)}"

    def check(self, case: Case, image: str, where: str = "") -> tuple[str, ...]:
        """Tell in what a scan differs from those trained on, each sentence once, after the runs that it is true of.

        Raises:
            InputError: those of ``check_scan``, naming the run.
        """
        found: dict[str, list[str]] = {}
        for member in self.members:
            place = where or f"case {case.name}, image {image}"
            place = f"{place}, run {member.name}" if len(self.members) > 1 else place
            for sentence in check_scan(member.on, case, image, where=place):
                found.setdefault(sentence, []).append(member.name)
        if len(self.members) == 1:
            return tuple(found)
        return tuple(f"{', '.join(names)}: {sentence}" for sentence, names in found.items())

    def estimate(self, case: Case, image: str, scratch: Path, differences: Sequence[str]) -> Estimate:
        """Synthesize by every run from every mirror image; one network is held at a time."""
        average = Average(scratch, case.image(image).grid, self._provenance(image, differences))
        for member in self.members:
            trained = load_run(member.folder)
            for mirrored in mirrors(self.flips):
                average.begin()
                seen = f"mirrored along {' '.join(AXES[axis] for axis in mirrored)}" if mirrored else ""
                run_case(trained, case, image, average.put, mirrored=mirrored, told=f"{member.name} {seen}".strip())
            del trained
        return average.estimate(self.calibration)

    def store(
        self, home: Path, case: Case, image: str, differences: Sequence[str], deviation: Path | None = None
    ) -> StoredImage:
        """Keep the mean in ``home``'s own results, unless it is there; the deviation is written when asked for.

        Raises:
            InputError: SET_NO_IMAGE, DISK_EXISTS.
        """
        grid = case.image(image).grid
        if deviation is not None:
            integrity.check_new(deviation, "--deviation")
        with integrity.scratch(home, ".spool-") as scratch:
            made = cache(lambda: self.estimate(case, image, scratch, differences))
            result = Lazy(grid, self._provenance(image, differences), lambda: made().mean)
            stored = store_result(home / SYNTHESIS / self.folder / image, case, image, result, self.weights)
            if deviation is not None:
                spread = made().deviation
                assert spread is not None, "check_deviation refuses one image"
                with scratch_beside(deviation):  # its folder's errors are told as such
                    nifti.write_nifti(deviation, grid, spread.read, comment=comment_of(spread.provenance))
        return stored

    def _provenance(self, image: str, differences: Sequence[str]) -> dict[str, object]:
        facts: dict[str, object] = {
            "kind": "synthesized",
            "recipe": self.recipe,
            "from": image,
            "runs": len(self.members),
            "mirrored_along": [AXES[axis] for axis in self.flips],
            "images_averaged": self.count,
            "weights": [member.weights for member in self.members],
        }
        return facts | ({"differs_from_training": list(differences)} if differences else {})


class Average:
    """Mean and standard deviation of volumes that come one after another, slab by slab; both lie on disk.

    Welford's update (Technometrics 4, 1962, 419): equal volumes have a deviation of exactly 0, and one volume is its
    own mean, bit for bit.
    """

    def __init__(self, folder: Path, grid: Grid, provenance: dict[str, object]) -> None:
        """Start without a volume.

        Args:
            folder: holds the two files; the caller removes it.
        """
        self._mean = Spool(folder / "mean.f32", grid, provenance)
        self._squares = Spool(folder / "squares.f32", grid)
        self._count = 0
        self._facts = provenance

    def begin(self) -> None:
        """Start the next volume."""
        self._count += 1

    def put(self, z0: int, slab: NDArray[np.float32]) -> None:
        """Take in a slab (dz, y, x) of the present volume, in SUV; in any order, each voxel once."""
        values = np.maximum(slab, 0)  # as the run alone would export it
        if self._count == 1:
            self._mean.put(z0, values)
            self._squares.put(z0, np.zeros_like(values))
            return
        z1 = z0 + len(values)
        mean = self._mean.read(z0, z1)
        step = values - mean
        moved = mean + step / np.float32(self._count)
        self._squares.put(z0, self._squares.read(z0, z1) + step * (values - moved))
        self._mean.put(z0, moved)

    def estimate(self, calibration: Kept | None = None) -> Estimate:
        """Return the mean, and the deviation where there were several volumes: calibrated, or as it is (ddof 1)."""
        if self._count < 2:
            return Estimate(self._mean)
        said = calibration.statement if calibration else NOT_CALIBRATED
        facts = {**self._facts, "kind": "deviation", CALIBRATED: said}
        deviation = Deviation(self._squares, self._count, facts)
        if calibration is None:
            return Estimate(self._mean, deviation)
        return Estimate(self._mean, CalibratedDeviation(self._mean, deviation, calibration))


@dataclass(frozen=True)
class Deviation:
    """The standard deviation in SUV of volumes, from the sum of their squared distances to the mean.

    Args:
        squares: that sum, in SUV^2.
        count: volumes, two or more.
        provenance: facts about the image.
    """

    squares: Spool
    count: int
    provenance: dict[str, object]

    @property
    def grid(self) -> Grid:
        """That of the volumes."""
        return self.squares.grid

    @property
    def units(self) -> str:
        """SUVbw, as the volumes."""
        return self.squares.units

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1``, with ddof 1."""
        variance: NDArray[np.float32] = self.squares.read(z0, z1) / np.float32(self.count - 1)
        return np.sqrt(variance)


@dataclass(frozen=True)
class CalibratedDeviation:
    """A standard deviation in SUV that was calibrated by the mean that it belongs to.

    Args:
        mean: in SUVbw.
        deviation: as it is.
        calibration: what it becomes.
    """

    mean: Spool
    deviation: Deviation
    calibration: Kept

    @property
    def grid(self) -> Grid:
        """That of the mean."""
        return self.mean.grid

    @property
    def units(self) -> str:
        """SUVbw, as the mean."""
        return self.mean.units

    @property
    def provenance(self) -> dict[str, object]:
        """Facts about the image."""
        return self.deviation.provenance

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1``."""
        return self.calibration.calibration.spread(self.mean.read(z0, z1), self.deviation.read(z0, z1))


def open_estimator(run: Path, more: Sequence[Path] = (), flips: Sequence[Axis] = ()) -> Estimator:
    """Open a run, or all the runs whose images are to be averaged.

    Args:
        run: folder of a run, or of ``petscale folds``, which stands for all of its folds.
        more: further ones; a run that is named twice counts once.
        flips: axes along which the scan is mirrored too.

    Raises:
        InputError: those of ``open_run`` for each run; SET_RUNS_DIFFER for runs that cannot be averaged; STORE_DAMAGED
            of the first folder's calibration.
    """
    folders = runs_of([run, *more])
    axes = tuple(index for index, axis in enumerate(AXES) if axis in flips)
    if len(folders) == 1 and not axes:
        return open_run(folders[0])
    whole = Ensemble(open_members(folders), axes)
    return replace(whole, calibration=read_calibration(run, whole.folder, whole.weights))


def open_members(runs: Sequence[Path]) -> tuple[Member, ...]:
    """Open runs whose images are to be averaged.

    Every run's weights are read now, and again at its turn: a damaged file is told before an hour's work, not after.

    Raises:
        InputError: those of ``open_run`` for each run; SET_RUNS_DIFFER.
    """
    members = tuple(_member(run, name) for run, name in zip(runs, names_of(runs), strict=True))
    _check_alike(members)
    return members


def runs_of(folders: Iterable[Path]) -> list[Path]:
    """Return the runs that folders of runs and of folds stand for, each once, in order.

    Raises:
        InputError: CLU_URL.
    """
    found: dict[Path, Path] = {}
    for folder in itertools.chain.from_iterable(map(_runs_in, folders)):
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _runs_in(folder: Path) -> Iterator[Path]:
    if url := remote.url_of(folder):
        raise InputError(
            "CLU_URL",
            where=url,
            found="several runs are read from folders",
            remedy="copy them to shared storage, or name one run alone",
        )
    if not (folder / FOLDS).is_file():
        yield folder
        return
    record = integrity.read_json(folder / FOLDS, "folds")
    yield from (folder / name for name in record["folds"])


def names_of(folders: Sequence[Path]) -> list[str]:
    """Name folders by their last component, and by the one above it where folds or namesakes are among them."""
    short = [folder.name for folder in folders]
    if len(set(short)) == len(short):
        return short
    return [f"{folder.absolute().parent.name}/{folder.name}" for folder in folders]


def _member(folder: Path, name: str) -> Member:
    if not (folder / WEIGHTS).is_file():
        configs.require_run(folder)
    try:
        trained: Trained = open_run(folder)
    except InputError as error:
        raise InputError(
            error.code, where=f"run {name}, {error.where}", found=error.found, remedy=error.remedy
        ) from None
    return Member(folder, name, trained.config, trained.on, trained.weights)


def _check_alike(members: Sequence[Member]) -> None:
    """Refuse runs whose images are not of one kind, or not on one grid.

    Raises:
        InputError: SET_RUNS_DIFFER.
    """
    first = members[0]
    for other in members[1:]:
        for what, ours, theirs in (
            ("starts from", first.on.units, other.on.units),
            ("was trained to give image", first.config.feed.target, other.config.feed.target),
        ):
            if ours != theirs:
                raise _differ(other.name, f"{what} {theirs}, {first.name} {ours}")
        if first.on.units == HU:
            ours_mm, theirs_mm = first.on.spacing_mm or (), other.on.spacing_mm or ()
            off = max(max(a / b, b / a) - 1 for a, b in zip(ours_mm, theirs_mm, strict=True))
            if off > VOXEL_WARNING:
                raise _differ(other.name, f"gives voxels of {_mm(theirs_mm)} mm, {first.name} of {_mm(ours_mm)} mm")


def _differ(where: str, found: str) -> InputError:
    return InputError(
        "SET_RUNS_DIFFER",
        where=where,
        found=found,
        remedy="average runs that start from one kind of scan and give one kind of image, at one voxel size",
    )


def _mm(spacing_mm: Sequence[float]) -> str:
    return " x ".join(f"{mm:.3g}" for mm in spacing_mm)


def check_deviation(estimator: Estimator, deviation: Path | None, *, where: str = "--deviation") -> None:
    """Refuse to write the deviation of one image.

    Raises:
        InputError: CFG_NO_EFFECT.
    """
    if deviation is not None and not isinstance(estimator, Ensemble):
        raise InputError(
            "CFG_NO_EFFECT",
            where=where,
            found="one run and no mirror images: one image has no deviation",
            remedy="name several runs (--runs), or axes (--flips z y x)",
        )


def tell_calibration(estimator: Estimator) -> None:
    """Print how the deviation that is to be written is calibrated, or how it would be."""
    kept = estimator.calibration if isinstance(estimator, Ensemble) else None
    said = kept.statement if kept else f"{NOT_CALIBRATED}; petscale calibrate learns it from validation patients"
    console.print(f"note: standard deviation {said}", markup=False, soft_wrap=True)
