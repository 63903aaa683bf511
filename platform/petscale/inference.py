"""``petscale synthesize``: a run and a scan in, its full-dose estimate out, in the same kind of file.

A low-dose PET comes back on its own grid and in its own unit.  A CT comes back as PET in SUVbw, on a grid of the voxel
size that the run was trained at: a network knows sizes in voxels only.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from petscale import config as configs
from petscale.config import RunConfig
from petscale.console import bar
from petscale.data.ingest import Files, is_nifti, open_ct, open_pet, suv_factor
from petscale.folders import EVALUATION, PATIENTS, SYNTHESIS, WEIGHTS
from petscale.plausibility import TrainedOn, check_scan, tell
from storage import dicom, dicom_write, geometry, integrity, layout, nifti, suv
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.patches import grid as tile_grid
from storage.reader import Case, StoredImage, open_cohort
from storage.source import HU, SUV, Dose, Grid, ImageSource
from trainers import checkpoint
from trainers.recipe import Synthesizer
from trainers.synthesize import InSuv, fitted, synthesize
from trainers.systems import RECIPES

FROM_PET = json.dumps({"units": SUV, "spacing_mm": None})  # of weights from before they told


@dataclass(frozen=True)
class Trained:
    """A finished run, ready for inference.

    Args:
        synthesizer: takes images in its unit and gives SUVbw.
        on: what its training cases are like; a CT is brought to their voxel size.
    """

    config: RunConfig
    synthesizer: Synthesizer
    device: torch.device
    on: TrainedOn

    @property
    def units(self) -> str:
        """Unit of the images that it starts from, SUVbw or HU."""
        return self.on.units


def open_run(run: Path) -> Trained:
    """Load a run's weights.

    Raises:
        InputError: CKPT_NONE, CKPT_DAMAGED, CKPT_CONFIG.
    """
    weights, facts = checkpoint.read_weights(run / WEIGHTS)
    try:
        config = configs.from_json(json.loads(facts["config"]))
        start = json.loads(facts.get("starts_from", FROM_PET))
    except (KeyError, json.JSONDecodeError):
        raise InputError(
            "CKPT_CONFIG",
            where=WEIGHTS,
            found="weights without their configuration",
            remedy="use the file that `petscale train` wrote",
        ) from None
    device = torch.device("cuda" if config.cluster.device == "cuda" and torch.cuda.is_available() else "cpu")
    synthesizer = RECIPES[config.recipe].weights_to_synthesizer(
        config.model, {name: value.to(device) for name, value in weights.items()}
    )
    in_suv = InSuv(synthesizer, config.feed.suv_scale, start["units"], config.feed.beyond)
    spacing_mm = tuple(start["spacing_mm"]) if start["spacing_mm"] else None
    drfs = frozenset(drf for drf in json.loads(facts.get("drfs", "[]")) if drf is not None)
    patients = run / EVALUATION / PATIENTS
    nuclides = json.loads(patients.read_bytes())["nuclides"] if patients.is_file() else []
    return Trained(config, in_suv, device, TrainedOn(start["units"], spacing_mm, drfs, frozenset(nuclides)))


def run_case(trained: Trained, case: Case, image: str, write: Callable[[int, NDArray[np.float32]], object]) -> None:
    """Synthesize from one stored image with a bar; ``write`` gets finished slabs in SUV."""
    tiling = trained.synthesizer.tiling
    shape = case.image(image).grid.shape
    done = 0
    with bar("synthesize", sum(1 for _ in tile_grid(*fitted(tiling, shape), tiling.overlap))) as advance:

        def progress(tiles: int) -> None:
            nonlocal done
            done += tiles
            advance(done, f"{case.name} {image}")

        synthesize(
            trained.synthesizer,
            case,
            image,
            write,
            device=trained.device,
            progress=progress,
        )


class _Spool:
    """A synthesized volume on disk, as an ``ImageSource``: slabs go in in order, any slab comes out.

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
    name = f"synth_{image}"
    store = (into or run / SYNTHESIS) / image
    digest = hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(dir=run, prefix=".spool-") as scratch:

        def plan(_: Path) -> CasePlan:
            # Slabs are asked for only when they are stored: a case that is there already costs no synthesis.
            result = _Lazy(Path(scratch) / "spool.f32", trained, case, image, differences)
            return CasePlan({name: result}, case.subject, f"{case.fingerprint} {digest}")

        ingest(store, {case.name: plan}, strict=True, workers=1)
    return open_cohort(store).case(case.name).image(name)


def synthesize_told(trained: Trained, run: Path, case: Case, image: str | None) -> StoredImage:
    """Synthesize a cohort's case, and tell on the terminal in what its scan differs from those trained on.

    Args:
        image: what to start from; None for the first image that the run was trained on.

    Raises:
        InputError: those of ``check_scan``.
    """
    start = image or trained.config.feed.source[0]
    differences = check_scan(trained.on, case, start)
    tell(f"case {case.name}", differences)
    return synthesize_case(trained, run, case, start, differences=differences)


class _Lazy:
    """A synthesized volume that is computed when its first slab is asked for."""

    def __init__(self, path: Path, trained: Trained, case: Case, image: str, differences: Sequence[str]) -> None:
        self.grid, self.units = case.image(image).grid, SUV
        self.provenance = _provenance(trained, image, differences)
        self._path, self._trained, self._case, self._image = path, trained, case, image
        self._spool: _Spool | None = None

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        if self._spool is None:
            self._spool = _Spool(self._path, self.grid, self.provenance)
            run_case(self._trained, self._case, self._image, self._spool.put)
        return self._spool.read(z0, z1)


def check_effect(
    trained: Trained, overrides: suv.Overrides, *, image: str | None, stored: bool, read: bool = False
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
    if given and (stored or read or trained.units == HU):
        found = f"this run starts from {trained.units}" if trained.units == HU else "the scan is in SUV already"
        raise InputError("CFG_NO_EFFECT", where=f"--{given[0].replace('_', '-')}", found=found, remedy="leave it out")


def synthesize_pet(trained: Trained, files: Files, output: Path) -> None:
    """Synthesize a NIfTI file or a DICOM series of a low-dose PET into the same kind of file, unit and geometry.

    Args:
        files: the PET; its CT and mask are not used.
        output: a new ``.nii`` or ``.nii.gz`` for NIfTI, a new folder for DICOM.

    Raises:
        InputError: IMG_FORMAT, DISK_EXISTS, and whatever is wrong with the input.
    """
    with _scratch_for(files.pet, output) as scratch:
        source, _ = open_pet(files, scratch)
        factor = suv_factor(files)
        result = synthesize_image(trained, source, scratch, where=files.pet.name)
        if isinstance(source, dicom.DicomSource):
            dicom_write.write_derived_series(output, source, result.read, description=_description(trained))
            return
        nifti.write_nifti(output, source.grid, lambda z0, z1: result.read(z0, z1) / np.float32(factor))


def synthesize_ct(trained: Trained, ct: Path, output: Path) -> None:
    """Synthesize a PET in SUVbw from a CT alone, at the voxel size that the run was trained at.

    Args:
        ct: a NIfTI file in HU or a DICOM series.
        output: a new ``.nii`` or ``.nii.gz`` for NIfTI, a new folder for DICOM.

    Raises:
        InputError: IMG_FORMAT, DISK_EXISTS, CT_UNITS, and whatever is wrong with the input.
    """
    with _scratch_for(ct, output) as scratch:
        source = open_ct(ct, scratch)
        result = synthesize_image(trained, source, scratch, where=ct.name)
        if isinstance(source, dicom.DicomSource):
            what = _description(trained)
            dicom_write.write_synthetic_pet(output, source, result.grid, result.read, description=what)
            return
        nifti.write_nifti(output, result.grid, result.read)


def synthesize_image(
    trained: Trained, source: ImageSource, scratch: Path, *, where: str = "scan", dose: Dose | None = None
) -> ImageSource:
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
    if trained.units == HU:
        name = trained.config.feed.source[0]
        assert trained.on.spacing_mm is not None, "weights that start from CT have always told it"
        source = geometry.Resampled(source, geometry.coarser_grid(source.grid, trained.on.spacing_mm))
    # Stored as a case of its own, as the network's tiles are read from a store.
    doses = {name: dose} if dose else {}
    plan = CasePlan({name: source}, subject="scan", fingerprint="scan", doses=doses)
    ingest(scratch / "cohort", {"scan": lambda _: plan}, strict=True, workers=1)
    case = open_cohort(scratch / "cohort").case("scan")
    differences = check_scan(trained.on, case, name, where=where)
    tell(where, differences)
    spool = _Spool(scratch / "spool.f32", source.grid, _provenance(trained, name, differences))
    run_case(trained, case, name, spool.put)
    return spool


def _provenance(trained: Trained, image: str, differences: Sequence[str]) -> dict[str, object]:
    facts: dict[str, object] = {"kind": "synthesized", "recipe": trained.config.recipe, "from": image}
    return facts | ({"differs_from_training": list(differences)} if differences else {})


def _description(trained: Trained) -> str:
    return f"{trained.config.recipe} {'PET from CT' if trained.units == HU else 'full-dose estimate'}"


@contextmanager
def _scratch_for(source: Path, output: Path) -> Iterator[Path]:
    """A folder on the output's disk, once the output is known to be possible."""
    if output.exists():
        raise InputError("DISK_EXISTS", where=output.name, found="exists already", remedy="choose another --output")
    if is_nifti(source) != is_nifti(output):
        raise InputError(
            "IMG_FORMAT",
            where=output.name,
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
    with integrity.disk_errors(output), tempfile.TemporaryDirectory(dir=place, prefix=".petscale-") as folder:
        yield Path(folder)
