"""``petscale synthesize``: a run and a scan in, its full-dose estimate out, in the same kind of file.

A low-dose PET comes back on its own grid and in its own unit.  A CT comes back as PET in SUVbw, on a grid of the voxel
size that the run was trained at: a network knows sizes in voxels only.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from petscale import config as configs
from petscale import likeness, proof
from petscale.config import RunConfig
from petscale.console import bar, console
from petscale.data.ingest import Files, is_nifti, open_ct, open_pet, suv_factor
from petscale.folders import EVALUATION, PATIENTS, SYNTHESIS, WEIGHTS
from petscale.plausibility import TrainedOn, check_scan, tell
from storage import dicom, dicom_write, geometry, integrity, layout, nifti, suv
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.patches import grid as tile_grid
from storage.reader import Case, StoredImage, open_cohort
from storage.source import HU, SUV, Dose, Grid, ImageSource
from trainers.recipe import Synthesizer
from trainers.synthesize import InSuv, fitted, synthesize
from trainers.systems import RECIPES

CALIBRATED = "calibration"  # in a deviation's provenance: how it was calibrated, or that it was not
FROM_PET = json.dumps({"units": SUV, "spacing_mm": None})  # of weights from before they told


@dataclass(frozen=True)
class Estimate:
    """What was made of one scan, on disk; gone with the scratch folder it was made in.

    Args:
        mean: the estimated full-dose PET in SUVbw, 0 or above; of several images, their mean.
        deviation: the standard deviation of these images in SUVbw (ddof 1); None where there was one.
    """

    mean: ImageSource
    deviation: ImageSource | None = None


class Estimator(Protocol):
    """What makes full-dose estimates: a run, or several whose images are averaged (``petscale.averages``)."""

    @property
    def config(self) -> RunConfig:
        """The run's configuration, of several the first one's."""
        ...

    @property
    def on(self) -> TrainedOn:
        """What the training cases are like, of several runs the first one's; a CT is brought to their voxel size."""
        ...

    @property
    def weights(self) -> str:
        """Digest of all weights that take part."""
        ...

    @property
    def description(self) -> str:
        """How an image was made, a few words."""
        ...

    def check(self, case: Case, image: str, where: str = "") -> tuple[str, ...]:
        """Tell in what a scan differs from those trained on, as ``plausibility.check_scan`` does."""
        ...

    def estimate(self, case: Case, image: str, scratch: Path, differences: Sequence[str]) -> Estimate:
        """Synthesize from a stored image into a folder that the caller removes."""
        ...

    def store(
        self, home: Path, case: Case, image: str, differences: Sequence[str], deviation: Path | None
    ) -> StoredImage:
        """Synthesize from a cohort's case into ``home``'s own cohort of results, unless it is there already.

        Args:
            home: a run's folder, or that of its folds.
            deviation: a new NIfTI file for the standard deviation in SUVbw, None for none.
        """
        ...


@dataclass(frozen=True)
class Trained:
    """A finished run, ready for inference: an ``Estimator``.

    Args:
        synthesizer: takes images in its unit and gives SUVbw.
        on: what its training cases are like; a CT is brought to their voxel size.
        weights: digest of the file that the weights were read from.
        notes: what of the weights could not be checked, a sentence each.
    """

    config: RunConfig
    synthesizer: Synthesizer
    device: torch.device
    on: TrainedOn
    weights: str = ""
    notes: tuple[str, ...] = ()

    @property
    def units(self) -> str:
        """Unit of the images that it starts from, SUVbw or HU."""
        return self.on.units

    @property
    def description(self) -> str:
        """How an image was made."""
        return describe(self.config.recipe, self.units)

    def check(self, case: Case, image: str, where: str = "") -> tuple[str, ...]:
        """Tell in what a scan differs from those trained on; raises what ``check_scan`` raises."""
        return check_scan(self.on, case, image, where=where)

    def estimate(self, case: Case, image: str, scratch: Path, differences: Sequence[str]) -> Estimate:
        """Synthesize from a stored image into a folder that the caller removes."""
        spool = Spool(scratch / "spool.f32", case.image(image).grid, _provenance(self, image, differences))
        run_case(self, case, image, spool.put)
        return Estimate(spool)

    def store(
        self, home: Path, case: Case, image: str, differences: Sequence[str], deviation: Path | None
    ) -> StoredImage:
        """Synthesize into the run's own cohort of results; one image has no deviation."""
        assert deviation is None, "check_effect refuses it"
        return synthesize_case(self, home, case, image, differences=differences)


def open_run(run: Path) -> Trained:
    """Load a run's weights, and say on the terminal what of them could not be checked.

    Raises:
        InputError: those of ``proof.read_proven``; CKPT_CONFIG.
    """
    trained = load_run(run)
    tell_notes(run.name, trained.notes)
    return trained


def tell_notes(run: str, notes: Sequence[str]) -> None:
    """Print what of a run's weights could not be checked, a line each."""
    for note in notes:
        console.print(f"note: run {run}: {note}", markup=False, soft_wrap=True)


def load_run(run: Path) -> Trained:
    """Load a run's weights; what of them could not be checked is in the result's notes.

    Raises:
        InputError: those of ``proof.read_proven``; CKPT_CONFIG.
    """
    weights = proof.read_proven(run)
    patients = run / EVALUATION / PATIENTS
    nuclides = integrity.read_json(patients, "nuclides")["nuclides"] if patients.is_file() else []
    trained = with_networks(weights.tensors, weights.facts, WEIGHTS)
    return replace(
        trained,
        on=replace(trained.on, nuclides=frozenset(nuclides) or trained.on.nuclides),
        weights=integrity.file_digest(run / WEIGHTS),
        notes=weights.notes,
    )


def with_networks(tensors: Mapping[str, Tensor], facts: Mapping[str, str], where: str) -> Trained:
    """Build what synthesizes from exported weights and the facts that they carry; what they do not tell is not known.

    Args:
        tensors: by name.
        facts: what ``petscale train`` notes beside them: ``config``, ``starts_from``, ``drfs``, ``likeness``.
        where: name of the file they are from.

    Raises:
        InputError: CKPT_CONFIG; CFG_RECIPE and those of ``config.from_json``.
    """
    try:
        config = configs.from_json(json.loads(facts["config"]))
        units, spacing_mm = _starts_from(json.loads(facts.get("starts_from", FROM_PET)))
        drfs = frozenset(float(drf) for drf in json.loads(facts.get("drfs", "[]")) if drf is not None)
        like = likeness.from_json(json.loads(facts[likeness.FACT])) if likeness.FACT in facts else None
    except (AttributeError, KeyError, TypeError, RecursionError, OverflowError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise proof.no_configuration(where) from None
    device = torch.device("cuda" if config.cluster.device == "cuda" and torch.cuda.is_available() else "cpu")
    synthesizer = RECIPES[config.recipe].weights_to_synthesizer(
        config.model, {name: value.to(device) for name, value in tensors.items()}
    )
    in_suv = InSuv(synthesizer, config.feed.suv_scale, units, config.feed.beyond)
    beside = synthesizer.context_batch.beside if synthesizer.context_batch else ()
    on = TrainedOn(units, spacing_mm, drfs, beside=beside, like=like)
    if like:
        on = replace(on, nuclides=like.nuclides or None, tracers=like.tracers or None)
    return Trained(config, in_suv, device, on)


def _starts_from(told: Mapping[str, Any]) -> tuple[str, tuple[float, float, float] | None]:
    """Unit and voxel size in mm, (z, y, x), of the scans that weights start from.

    Raises:
        KeyError, TypeError, ValueError: not as ``petscale train`` writes it.
    """
    units, spacing_mm = told["units"], told["spacing_mm"]
    if units not in (SUV, HU) or (units == HU and spacing_mm is None):
        raise ValueError("no unit that a run starts from")
    if spacing_mm is None:
        return units, None
    z, y, x = map(float, spacing_mm)
    if not all(0 < edge < math.inf for edge in (z, y, x)):
        raise ValueError("no voxel size")
    return units, (z, y, x)


def run_case(
    trained: Trained,
    case: Case,
    image: str,
    write: Callable[[int, NDArray[np.float32]], object],
    *,
    mirrored: tuple[int, ...] = (),
    told: str = "",
) -> None:
    """Synthesize from one stored image with a bar.

    Args:
        write: gets finished slabs in SUV, as ``trainers.synthesize.synthesize`` says.
        mirrored: axes of (z, y, x) along which the network is shown the case mirrored.
        told: which run and mirror image it is, for the bar.
    """
    tiling = trained.synthesizer.tiling
    shape = case.image(image).grid.shape
    done = 0
    remarks: list[str] = []
    with bar("synthesize", sum(1 for _ in tile_grid(*fitted(tiling, shape), tiling.overlap))) as advance:

        def progress(tiles: int) -> None:
            nonlocal done
            done += tiles
            advance(done, f"{case.name} {image} {told}".rstrip())

        synthesize(
            trained.synthesizer,
            case,
            image,
            write,
            device=trained.device,
            mirrored=mirrored,
            progress=progress,
            told=remarks.append,
        )
    if not mirrored:  # what is true of a scan is said once
        tell(case.name, remarks)


class Spool:
    """A synthesized volume on disk, as an ``ImageSource``: every slab goes in once, any slab comes out.

    Plain writes, no memory map: on a full disk a map ends the process by a signal, a write by an error.
    """

    def __init__(self, path: Path, grid: Grid, provenance: Mapping[str, object] = MappingProxyType({})) -> None:
        self.grid, self.units, self.provenance = grid, SUV, provenance
        self._path, self._shape = path, grid.shape
        self._layer = grid.shape[1] * grid.shape[2]
        path.write_bytes(b"")

    def put(self, z0: int, slab: NDArray[np.float32]) -> None:
        # Uptake is never negative: clipped on export only, never in training or scoring of patches.
        with integrity.disk_errors(self._path), self._path.open("r+b") as file:
            file.seek(z0 * self._layer * 4)
            file.write(np.maximum(slab, 0).astype(np.float32).tobytes())

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        count, offset = (z1 - z0) * self._layer, z0 * self._layer * 4
        return np.fromfile(self._path, np.float32, count, offset=offset).reshape(z1 - z0, *self._shape[1:])


def synthesize_case(
    trained: Trained, run: Path, case: Case, image: str, *, into: Path | None = None, differences: Sequence[str] = ()
) -> StoredImage:
    """Synthesize a cohort's case into the run's own cohort of results, unless it is there already.

    Args:
        into: holds a cohort of results per image; default: the run's ``synthesis``.
        differences: what ``check_scan`` returned, for the result's provenance.

    Returns:
        The stored result, image ``synth_<image>``.
    """
    case.image(image)  # refused here, before anything is made under its name
    with integrity.scratch(run, ".spool-") as scratch:
        # Slabs are asked for only when they are stored: a case that is there already costs no synthesis.
        made = cache(lambda: trained.estimate(case, image, scratch, differences).mean)
        result = Lazy(case.image(image).grid, _provenance(trained, image, differences), made)
        return store_result((into or run / SYNTHESIS) / image, case, image, result, trained.weights)


def store_result(store: Path, case: Case, image: str, result: ImageSource, weights: str) -> StoredImage:
    """Store what was made of a case's image as image ``synth_<image>``, unless it is there from the same weights.

    A result of other weights, or of other voxels, is replaced once this one is whole.

    Args:
        store: a cohort of results.
        weights: digest of the weights.
    """
    name = f"synth_{image}"
    plan = CasePlan({name: result}, case.subject, fingerprint_of(case, weights))
    ingest(store, {case.name: lambda _: plan}, strict=True, changed="replace", workers=1)
    return open_cohort(store).case(case.name).image(name)


def fingerprint_of(case: Case, weights: str) -> str:
    """What a result was made from: a case, and the digest of weights."""
    return f"{case.fingerprint} {weights}"


def synthesize_told(
    estimator: Estimator, home: Path, case: Case, image: str | None, deviation: Path | None = None
) -> StoredImage:
    """Synthesize a cohort's case, and tell on the terminal in what its scan differs from those trained on.

    Args:
        home: folder of the run, or of the folds; it holds the result.
        image: what to start from; None for the first image that the run was trained on.
        deviation: a new NIfTI file for the standard deviation of several images.

    Raises:
        InputError: those of ``check_scan``; IMG_FORMAT, DISK_EXISTS of the deviation's file.
    """
    start = image or estimator.config.feed.source[0]
    if deviation is not None and not is_nifti(deviation):
        raise InputError(
            "IMG_FORMAT", where=deviation.name, found="no NIfTI file", remedy="name a .nii.gz: a case has no headers"
        )
    if deviation is not None:
        integrity.check_new(deviation, "--deviation")
    differences = estimator.check(case, start)
    tell(f"case {case.name}", differences)
    return estimator.store(home, case, start, differences, deviation)


class Lazy:
    """A synthesized volume that is computed when its first slab is asked for.

    Args:
        made: makes it, every time the same object.
    """

    def __init__(self, grid: Grid, provenance: Mapping[str, object], made: Callable[[], ImageSource]) -> None:
        self.grid, self.units, self.provenance = grid, SUV, provenance
        self._made = made

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        return self._made().read(z0, z1)


def check_effect(
    trained: Estimator, overrides: suv.Overrides, *, image: str | None, stored: bool, read: bool = False
) -> None:
    """Refuse what was given for a synthesis and would be passed over without a word.

    Args:
        trained: the run.
        overrides: weight, dose and injection time.
        image: name of a case's image.
        stored: whether the scan is a case of a cohort, in SUV or HU already.
        read: whether the scan is an image in memory, in SUV or HU already.

    Raises:
        InputError: CFG_NO_EFFECT.
    """
    if image is not None and not stored:
        raise InputError("CFG_NO_EFFECT", where="--image", found="given without --case", remedy="leave it out")
    given = [name for name, value in vars(overrides).items() if value is not None]
    units = trained.on.units
    if given and (stored or read or units == HU):
        found = f"this run starts from {units}" if units == HU else "the scan is in SUV already"
        raise InputError("CFG_NO_EFFECT", where=f"--{given[0].replace('_', '-')}", found=found, remedy="leave it out")


def synthesize_pet(
    estimator: Estimator, files: Files, output: Path, deviation: Path | None = None, *, dose: Dose | None = None
) -> None:
    """Synthesize a NIfTI file or a DICOM series of a low-dose PET into the same kind of file, unit and geometry.

    Args:
        files: the PET; its CT and mask are not used.
        output: a new ``.nii`` or ``.nii.gz`` for NIfTI, a new folder for DICOM.
        deviation: such another one for the standard deviation of several images, in the same unit.
        dose: with how many counts the PET was measured, where that is known.

    Raises:
        InputError: IMG_FORMAT, DISK_EXISTS, and whatever is wrong with the input.
    """
    with _scratch_for(files.pet, output, deviation) as scratch:
        source, _ = open_pet(files, scratch)
        factor = suv_factor(files)
        result = synthesize_image(estimator, source, scratch, where=files.pet.name, dose=dose)
        for place, image, what in _written(estimator, result, output, deviation):
            if isinstance(source, dicom.DicomSource):
                told = {"comment": comment_of(image.provenance), "weights": estimator.weights}
                dicom_write.write_derived_series(place, source, image.read, description=what, **told)
            else:
                nifti.write_nifti(place, source.grid, _in_unit(image, factor), comment=comment_of(image.provenance))


def _in_unit(image: ImageSource, suv_per_unit: float) -> Callable[[int, int], NDArray[np.float32]]:
    return lambda z0, z1: image.read(z0, z1) / np.float32(suv_per_unit)


def synthesize_ct(estimator: Estimator, ct: Path, output: Path, deviation: Path | None = None) -> None:
    """Synthesize a PET in SUVbw from a CT alone, at the voxel size that the run was trained at.

    Args:
        ct: a NIfTI file in HU or a DICOM series.
        output: a new ``.nii`` or ``.nii.gz`` for NIfTI, a new folder for DICOM.
        deviation: such another one for the standard deviation of several images.

    Raises:
        InputError: IMG_FORMAT, DISK_EXISTS, CT_UNITS, and whatever is wrong with the input.
    """
    with _scratch_for(ct, output, deviation) as scratch:
        source = open_ct(ct, scratch)
        result = synthesize_image(estimator, source, scratch, where=ct.name)
        for place, image, what in _written(estimator, result, output, deviation):
            if isinstance(source, dicom.DicomSource):
                told = {"comment": comment_of(image.provenance), "weights": estimator.weights}
                dicom_write.write_synthetic_pet(place, source, image.grid, image.read, description=what, **told)
            else:
                nifti.write_nifti(place, image.grid, image.read, comment=comment_of(image.provenance))


def _written(
    estimator: Estimator, result: Estimate, output: Path, deviation: Path | None
) -> Iterator[tuple[Path, ImageSource, str]]:
    """What is written where, and how it was made."""
    yield output, result.mean, estimator.description
    if deviation is not None:
        assert result.deviation is not None, "one image has none; check_deviation refuses it"
        yield deviation, result.deviation, f"standard deviation, {estimator.description}"


def synthesize_image(
    estimator: Estimator, source: ImageSource, scratch: Path, *, where: str = "scan", dose: Dose | None = None
) -> Estimate:
    """Synthesize one scan, from wherever it was read; what differs from the run's training is told on the terminal.

    Args:
        source: a low-dose PET in SUVbw or, for a run that starts from CT, a CT in HU.
        scratch: an empty folder that holds the result while it is read; the caller removes it.
        where: what messages call the scan.
        dose: with how many counts a PET was measured, where that is known.

    Returns:
        The estimated full-dose PET in SUVbw, 0 or above: on the grid of a PET, or for a CT over the same volume at the
        voxel size that the run was trained at.

    Raises:
        InputError: SET_NO_PET, CT_UNITS, IMG_TOO_SMALL, IMG_NONFINITE and their kin; those of ``check_scan``.
    """
    name = layout.low_name(1)
    if estimator.on.units == HU:
        name = estimator.config.feed.source[0]
        assert estimator.on.spacing_mm is not None, "weights that start from CT have always told it"
        source = geometry.Resampled(source, geometry.coarser_grid(source.grid, estimator.on.spacing_mm))
    # Stored as a case of its own, as the network's tiles are read from a store.
    doses = {name: dose} if dose else {}
    plan = CasePlan({name: source}, subject="scan", fingerprint="scan", doses=doses)
    ingest(scratch / "cohort", {"scan": lambda _: plan}, strict=True, workers=1)
    case = open_cohort(scratch / "cohort").case("scan")
    differences = estimator.check(case, name, where)
    tell(where, differences)
    return estimator.estimate(case, name, scratch, differences)


def _provenance(trained: Trained, image: str, differences: Sequence[str]) -> dict[str, object]:
    facts: dict[str, object] = {"kind": "synthesized", "recipe": trained.config.recipe, "from": image}
    return facts | ({"differs_from_training": list(differences)} if differences else {})


def comment_of(provenance: Mapping[str, object]) -> str:
    """What a result's header says of it: a deviation's calibration, and in what the scan differs from those trained on.

    Empty where neither is to be said.
    """
    told = provenance.get("differs_from_training")
    parts = [f"standard deviation {provenance[CALIBRATED]}"] if CALIBRATED in provenance else []
    parts += [f"differs from training: {'; '.join(map(str, told))}"] if isinstance(told, list) else []
    return ". ".join(parts)


def describe(recipe: str, units: str) -> str:
    """How an image was made, for a DICOM header."""
    return f"{recipe} {'PET from CT' if units == HU else 'full-dose estimate'}"


@contextmanager
def _scratch_for(source: Path, output: Path, deviation: Path | None) -> Iterator[Path]:
    """A folder on the output's disk, once the output is known to be possible."""
    if deviation is not None and deviation.absolute() == output.absolute():
        raise InputError("CFG_OUTPUT", where="--deviation", found="the same as --output", remedy="name another one")
    for place, option in ((output, "--output"), *([(deviation, "--deviation")] if deviation is not None else [])):
        integrity.check_new(place, option)
        if is_nifti(source) != is_nifti(place):
            raise InputError(
                "IMG_FORMAT",
                where=place.name,
                found="input and output are of different kinds",
                remedy="give a .nii.gz for NIfTI input and a folder for DICOM input",
            )
    with scratch_beside(output) as folder:
        yield folder


@contextmanager
def scratch_beside(output: Path) -> Iterator[Path]:
    """A folder on the output's disk, removed at the end."""
    # In a folder that is there: a refused input leaves no empty folders behind.
    place = next(parent for parent in output.absolute().parents if parent.exists())
    with integrity.disk_errors(output), integrity.scratch(place, ".petscale-") as folder:
        yield folder
