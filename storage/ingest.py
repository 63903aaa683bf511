"""Ingest: one Dask graph per case writes its shards and sampling maps, then the case is committed by a rename.

A case is built in a staging folder, where no reader looks.  A killed ingest leaves that folder; the next ingest removes
it.  A committed case is never written again.
"""

import hashlib
import hmac
import math
import os
import secrets
import shutil
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dask
import numpy as np
from dask.callbacks import Callback
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from storage import geometry, image_values, integrity, layout, notes
from storage.errors import InputError
from storage.patches import CELL
from storage.reader import attributes, open_cohort
from storage.source import HU, LABEL, SUV, Dose, Grid, ImageSource, simulated_dose
from storage.verification import read_catalog

TURN_S = 600.0  # to wait for another part that writes what the cohort has once, which takes a second
UNCOVERED = 0.005  # share of the body's voxels outside an image from which on it is told


@dataclass(frozen=True, eq=False)
class CasePlan:
    """What one case is to hold.  All images share one grid: the caller puts a CT on it by ``geometry.Resampled``.

    Args:
        images: image name -> source; at least one in SUVbw, or ``ct`` in HU as the only scan.
        subject: keyed hash of the patient (``subject_hash``), equal for all of the patient's cases.
        labels: value in the image ``labels`` -> name; empty when there is none.
        fingerprint: digest of the inputs and options; equal fingerprints mean the committed case may stay.
        doses: name of a PET -> its dose, None for one that is no scan at any dose.  Of a simulated scan that is not
            named, its provenance tells; any other image that is not named has no dose.
        tags: what else is known of the case and may be told, for instance ``cancer`` -> ``adenocarcinoma``; nothing
            that identifies a patient.
    """

    images: Mapping[str, ImageSource]
    subject: str
    fingerprint: str
    labels: Mapping[int, str] = field(default_factory=dict)
    doses: Mapping[str, Dose | None] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def dose(self, image: str) -> Dose | None:
        """Return the dose of one image."""
        return self.doses[image] if image in self.doses else simulated_dose(self.images[image].provenance)


@dataclass
class Outcome:
    """What became of the cases of one ingest."""

    committed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: dict[str, InputError] = field(default_factory=dict)


Doubts = Literal["note", "refuse impossible", "refuse"]
Changed = Literal["refuse", "replace"]
Progress = Callable[[str, int, int], None]  # case, tasks done, tasks in all
Spread = Callable[[Callable[[str], bool], Sequence[str]], Iterator[tuple[str, bool | InputError]]]


def _silent(case: str, done: int, total: int) -> None:
    """Report nothing."""


def site_key() -> bytes:
    """The site's secret for hashing patients, kept outside every store; made on first use, readable by its owner only.

    ``PETSCALE_SITE_KEY`` names the file when several machines must agree.

    Raises:
        InputError: CFG_SITE_KEY when the key is too short to keep a secret, is not there and cannot be made, or
            ``PETSCALE_SITE_KEY`` names no file.
    """
    default = Path.home() / ".config" / "petscale" / "site.key"
    told = os.environ.get("PETSCALE_SITE_KEY", str(default))
    path = Path(told)
    if not told or path.is_dir():
        raise InputError(
            "CFG_SITE_KEY",
            where="PETSCALE_SITE_KEY",
            found="a folder" if told else "empty",
            remedy="let it name the key's file, or unset it",
        )
    try:
        if not path.is_file():
            _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise InputError(
            "CFG_SITE_KEY",
            where=path.name,
            found=f"it cannot be read, or made where it is missing ({error.strerror})",
            remedy="put the site's key where PETSCALE_SITE_KEY says; on Kubernetes it is a secret (deploy/README.md)",
        ) from None
    if len(key) < 16:
        raise InputError(
            "CFG_SITE_KEY", where=path.name, found=f"{len(key)} bytes", remedy="restore the site key, 16 bytes at least"
        )
    return key


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    handle = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_bytes(32))
    with suppress(FileExistsError):  # of two processes that make it at once, the first one's key holds for both
        os.link(partial, path)
    partial.unlink()


def subject_hash(patient: str, key: bytes) -> str:
    """Pseudonym of a patient: HMAC-SHA256 under the site key, because a plain hash of a short ID can be searched."""
    told = patient.encode("utf-8", "surrogateescape")  # a folder's name may be of any bytes
    return hmac.new(key, told, hashlib.sha256).hexdigest()[:16]


def create_cohort(folder: Path) -> None:
    """Make an empty cohort, or leave an existing one as it is.

    Raises:
        InputError: STORE_NOT_EMPTY when the folder holds something else.
    """
    if not (folder / "zarr.json").exists():
        others = [p.name for p in folder.iterdir() if not p.name.startswith(".")] if folder.exists() else []
        if others:
            raise InputError(
                "STORE_NOT_EMPTY",
                where=folder.name,
                found="the folder holds files that are not a cohort",
                remedy="choose a new or empty folder",
            )
        with integrity.disk_errors(folder):
            layout.create_group(folder, {"petscale": {"schema": layout.SCHEMA, "kind": "cohort"}})
    if not (folder / layout.CASES / "zarr.json").exists():  # also when a first ingest was killed between the two
        with integrity.disk_errors(folder):
            layout.create_group(folder / layout.CASES, {})
    open_cohort(folder)


def one_after_another(work: Callable[[str], bool], names: Sequence[str]) -> Iterator[tuple[str, bool | InputError]]:
    """Do the cases here, each with all of this machine: the spread of an ingest without a cluster."""
    for name in names:
        try:
            yield name, work(name)
        except InputError as error:
            yield name, error


def ingest(
    cohort: Path,
    plans: Mapping[str, Callable[[Path], CasePlan]],
    *,
    strict: bool = False,
    doubts: Doubts = "note",
    changed: Changed = "refuse",
    scheduler: str = "threads",
    workers: int | None = None,
    progress: Progress = _silent,
    spread: Spread = one_after_another,
    part: str = "",
) -> Outcome:
    """Commit every planned case, going on when one is refused.

    Args:
        cohort: folder of the cohort, made if it does not exist.
        plans: case name -> function that opens the sources, given a scratch folder that is removed afterwards.
        strict: raise on the first refused case.
        doubts: what becomes of a case whose images carry a note of weight (``storage.notes``): it stays noted; it is
            refused where its values cannot be SUV; it is refused.
        changed: what becomes of a planned case that was committed before from other inputs: this one is refused, or
            takes its place once it is whole, for what is made by a run anew.
        scheduler: Dask's local scheduler, ``threads`` or ``processes``.
        workers: tasks at a time; memory grows with them by a few shards each.  Default: the CPUs, 4 at most.
        progress: called after every task, or after every case where other machines do them.
        spread: does the cases, here or on other machines, and yields each one's name with whether it was new or with
            its refusal.
        part: name of the part of a cohort that this is; other parts may be ingested at the same time.

    Raises:
        InputError: STORE_BUSY, STORE_NOT_EMPTY, DISK_FULL; the first refusal when ``strict``.
    """
    outcome = Outcome()
    for name in plans:
        layout.check_case_name(name)
    staging = cohort / layout.STAGING / part
    with _held(cohort, part):
        with _alone(cohort, part):
            create_cohort(cohort)
        shutil.rmtree(staging, ignore_errors=True)  # we hold the lock, so no other process is staging there
        if not part:
            for partial_file in cohort.glob(".*.partial"):
                partial_file.unlink()
        report = progress if spread is one_after_another else _silent  # other machines cannot call it
        try:
            for name, new in spread(
                partial(_ingest_case, cohort, staging, plans, doubts, changed, scheduler, workers, report), list(plans)
            ):
                if not isinstance(new, InputError):
                    (outcome.committed if new else outcome.kept).append(name)
                    progress(name, 1, 1)
                elif strict or new.code.startswith(("DISK_", "STORE_BUSY")):
                    raise new
                else:
                    outcome.refused[name] = new
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        with _alone(cohort, part):
            _write_catalog(cohort, outcome.committed)
    return outcome


@contextmanager
def _held(cohort: Path, part: str) -> Iterator[None]:
    """Hold a cohort alone, or beside other parts, each of which only one process may do."""
    if not part:
        with integrity.exclusive(cohort, purpose="ingest"):
            yield
        return
    with (
        integrity.alongside(cohort, purpose="ingest"),
        integrity.exclusive(cohort / layout.STAGING / f"{part}.held", purpose="this part"),
    ):
        yield


def _write_catalog(cohort: Path, committed: list[str]) -> None:
    """Add what is new.  A case that was lost or exchanged since keeps its entry, so that ``verify`` still finds it."""
    try:
        before: dict[str, str] | None = read_catalog(cohort)
    except ValueError:
        before = None
    after = dict(before or {})
    for name in open_cohort(cohort).cases:
        if name in committed or name not in after:
            after[name] = integrity.manifest(cohort / layout.CASES / name)["root"]
    if after != before:
        integrity.write_json(cohort / layout.CATALOG, after)


@contextmanager
def _alone(cohort: Path, part: str) -> Iterator[None]:
    """For what a cohort has once: parts take turns."""
    if not part:
        yield
        return
    with integrity.exclusive(cohort / layout.STAGING, purpose="the catalog", wait_s=TURN_S):
        yield


def _ingest_case(
    cohort: Path,
    staging: Path,
    plans: Mapping[str, Callable[[Path], CasePlan]],
    doubts: Doubts,
    changed: Changed,
    scheduler: str,
    workers: int | None,
    progress: Progress,
    name: str,
) -> bool:
    """Commit one case; returns whether it was new."""
    staged = staging / uuid.uuid4().hex / name
    scratch = staged.parent / "scratch"
    try:
        with integrity.disk_errors(cohort):
            scratch.mkdir(parents=True, mode=0o700)
            plan = plans[name](scratch)
            final = cohort / layout.CASES / name
            _check_collision(final)
            if final.exists():
                if open_cohort(cohort).case(name).fingerprint == plan.fingerprint:
                    return False
                if changed == "refuse":
                    raise InputError(
                        "SET_CASE_EXISTS",
                        where=f"case {name}",
                        found="committed before from other inputs or options",
                        remedy="give this one another --case name, or ingest into another cohort",
                    )
            reference = _check(name, plan)
            integrity.require_space(cohort, int(1.5 * len(plan.images) * 4 * np.prod(reference.shape)))
            count = workers or min(4, os.cpu_count() or 1)
            # Our own pool, because leaving it waits: when one task fails, Dask's lets the others write on into the
            # staging folder while it is being removed.
            threads = ThreadPoolExecutor(count) if scheduler == "threads" else nullcontext()
            with _Counter(name, progress), threads as pool:
                dask.compute(case_graph(staged, name, plan), scheduler=scheduler, num_workers=count, pool=pool)
            if doubts != "note":
                _refuse_doubts(staged, name, plan, doubts)
            integrity.commit(staged, {"case": name, "schema": layout.SCHEMA})
            if final.exists():  # killed in between, the case is missing until the same command makes it again
                os.replace(final, staged.parent / "replaced")
            os.replace(staged, final)
            integrity.fsync_folder(final.parent)
    except InputError:
        raise
    except MemoryError:
        raise InputError(
            "IMG_TOO_LARGE",
            where=f"case {name}",
            found="more memory is needed than this machine gives",
            remedy="check the voxel size and the matrix; else use fewer --workers or a larger machine",
        ) from None
    except Exception as error:  # whatever is wrong with one case, the others are still to be ingested
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            "SET_CASE_FAILED",
            where=f"case {name}",
            found=f"an error that petscale did not expect: {type(error).__name__} at {Path(place.filename).name}, "
            f"line {place.lineno}",
            remedy="please report this line; the other cases are not affected",
        ) from error
    finally:
        shutil.rmtree(staged.parent, ignore_errors=True)
    return True


def _check_collision(final: Path) -> None:
    """Refuse a name that differs from a committed case's in capitals only: some file systems take both for one.

    Raises:
        InputError: SET_CASE_COLLISION.
    """
    if final.exists() or not final.parent.is_dir():
        return
    for other in final.parent.iterdir():
        if other.name != final.name and other.name.lower() == final.name.lower():
            raise InputError(
                "SET_CASE_COLLISION",
                where=f"case {final.name}",
                found=f"case {other.name} is there already: the names differ in capitals only",
                remedy="choose another --case name",
            )


def _refuse_doubts(folder: Path, name: str, plan: CasePlan, doubts: Doubts) -> None:
    """Refuse a case that was built and carries a note of weight, or whose values cannot be SUV.

    Raises:
        InputError: SET_DOUBT, PET_SUV_IMPLAUSIBLE.
    """
    for image in plan.images:
        facts = attributes(folder / image)["petscale"]
        provenance, told = facts["provenance"], facts["statistics"]
        if image_values.IMPOSSIBLE in notes.of(provenance):
            looks = "like HU" if told["min"] <= image_values.MINIMUM_SUV else "not like SUV"
            raise InputError(
                "PET_SUV_IMPLAUSIBLE",
                where=f"case {name}, image {image}",
                found=f"a median of {told['body_median']:.3g} inside the body, values of {told['min']:.3g} to "
                f"{told['max']:.3g}: {looks}",
                remedy="check unit, weight and dose: a NIfTI in Bq/mL needs --units Bq/mL, --weight-kg and --dose-mbq; "
                "for DICOM --weight-kg and --dose-mbq replace the header's",
            )
        found = notes.weighty(notes.of(provenance)) if doubts == "refuse" else []
        if found:
            raise InputError(
                "SET_DOUBT",
                where=f"case {name}, image {image}",
                found="; ".join(f"{one} ({notes.sentence(one)})" for one in found),
                remedy="correct the files, or leave --strict out to take the case with its notes",
            )


def _check(name: str, plan: CasePlan) -> Grid:
    """Return the case's grid: its PET's, or that of a CT alone.

    Raises:
        InputError: PAIR_GRID_MISMATCH, SET_NO_PET.
    """
    pets, cts = ([image for image, source in plan.images.items() if source.units == unit] for unit in (SUV, HU))
    if not pets and cts != ["ct"]:  # a CT that was given as the PET is no CT alone
        raise InputError(
            "SET_NO_PET",
            where=f"case {name}",
            found="neither a PET in SUVbw nor a CT alone",
            remedy="name the PET with --pet",
        )
    first = (pets or cts)[0]
    grid = plan.images[first].grid
    for image, source in plan.images.items():
        layout.check_name(image, "image name")
        if not source.grid.matches(grid):
            raise InputError(
                "PAIR_GRID_MISMATCH",
                where=f"case {name}, image {image}",
                found=f"not on the grid of {first}: {geometry.difference(source.grid, grid)}",
                remedy="give images of one reconstruction grid; a PET is put on it when asked (--other-grids "
                "resample), a CT always, labels never",
            )
    return grid


class _Counter(Callback):  # type: ignore[misc]
    """Count finished Dask tasks."""

    def __init__(self, case: str, progress: Progress) -> None:
        self.case, self.progress, self.done = case, progress, 0
        super().__init__(start=self._begin, posttask=self._advance)

    def _begin(self, dsk: Mapping[object, object]) -> None:
        self.total = len(dsk)

    def _advance(self, *_: object) -> None:
        self.done += 1
        self.progress(self.case, self.done, self.total)


@dataclass(frozen=True, eq=False)
class _Slab:
    """What is kept of a slab for statistics, body outline and sampling maps; all of it small."""

    low: float
    high: float
    total: float
    negative: float
    digest: bytes
    coarse: NDArray[np.float32]
    cells: NDArray[np.float32]
    overview: NDArray[np.float32] | None
    clipped: tuple[tuple[int, int], ...]  # for each limit of the stored type: voxels at it, and short of it


def case_graph(folder: Path, name: str, plan: CasePlan) -> Delayed:
    """Build the graph of one case; computing it leaves ``folder`` complete but uncommitted."""
    grid = next(iter(plan.images.values())).grid
    layout.stage_group(folder, {})
    layout.stage_group(folder / "aids", {})
    spans: dict[str, list[Delayed]] = {}
    halves: dict[str, list[Delayed]] = {}
    for image, source in plan.images.items():
        _prepare_image(folder / image, image, grid, source.units)
        dtype = layout.storage_dtype(source.units)
        # Not as an argument: Dask would look for tasks in every field of every file of the source.
        store = delayed(partial(_store_slab, folder / image, image, source, values=tuple(plan.labels)), nout=2)
        stored = [store(z0, z1) for z0, z1 in layout.slabs(grid.shape, dtype.itemsize)]
        spans[image], halves[image] = [slab for slab, _ in stored], [half for _, half in stored]
    pets = _best_pets(plan)
    cts = [image for image, source in plan.images.items() if source.units == HU]
    covered = _covered(plan, grid)
    shaping = [(image, plan.images[image].units) for image in (*cts[:1], *pets[:1])]
    outline = delayed(_outline)(shaping, covered, grid, spans, dict(plan.labels))
    _prepare_image(folder / "body", "body", grid, LABEL)
    stored = [
        delayed(_store_body, nout=2)(folder / "body", outline, grid, z0, z1)
        for z0, z1 in layout.slabs(grid.shape, layout.storage_dtype(LABEL).itemsize)
    ]
    body, halves["body"] = [cells for cells, _ in stored], [half for _, half in stored]
    # Not in the slabs' own results, which are kept to the end: halves are given up as soon as their levels are written.
    viewing = [delayed(_store_levels)(folder / image, parts, grid) for image, parts in halves.items()]
    facts = {
        "subject": plan.subject,
        "fingerprint": plan.fingerprint,
        "labels": {str(value): label for value, label in plan.labels.items()},
        "images": [*plan.images, "body"],
        **({"tags": dict(plan.tags)} if plan.tags else {}),
    }
    sources = {
        image: (source.units, dict(source.provenance), layout.dose_attribute(plan.dose(image)))
        for image, source in plan.images.items()
    }
    return delayed(_finish)(folder, name, grid, facts, sources, pets, spans, outline, covered, body, viewing)


def _prepare_image(path: Path, name: str, grid: Grid, units: str) -> None:
    layout.stage_group(path, layout.ome_attributes(name, grid))
    dtype = layout.storage_dtype(units)
    layout.create_array(path / "0", grid.shape, dtype, depth=layout.shard_depth(grid.shape, dtype.itemsize))


def coarse_edges(grid: Grid) -> tuple[int, int, int]:
    """Blocks of 1 to 32 voxels that come nearest to 5 mm: enough for an outline, and they divide every shard.

    An animal's blocks are smaller, as ``geometry.body_scale`` says.  From 0.5 mm on no block has more than 4 voxels.
    """
    most_mm = 5.5 * geometry.body_scale(grid)

    def edge(mm: float) -> int:
        return max(f for f in (1, 2, 4, 8, 16, 32) if f == 1 or (f * mm <= most_mm and (f <= 4 or mm < 0.5)))

    z, y, x = map(edge, grid.spacing_mm)
    return z, y, x


def _store_slab(
    path: Path, image: str, source: ImageSource, z0: int, z1: int, *, values: tuple[int, ...]
) -> tuple[_Slab, NDArray[np.generic]]:
    """Write one shard; returns what is kept of it, and its part of the next coarser level."""
    slab = source.read(z0, z1)
    bad = int(slab.size - np.count_nonzero(np.isfinite(slab)))
    if bad:
        raise InputError(
            "IMG_NONFINITE",
            where=f"image {image}, slices {z0} to {z1 - 1}",
            found=f"{bad} voxels are NaN or infinite",
            remedy="repair the image where it was made",
        )
    stored = slab.astype(layout.storage_dtype(source.units), copy=False)
    layout.write_shard(path / "0", z0, stored)
    cells = geometry.block_means(slab, (CELL, CELL, CELL))[None]
    if image == "labels" and values:
        cells = np.stack([geometry.block_means((slab == v).astype(np.float32), (CELL,) * 3) for v in values])
    kept = _Slab(
        low=float(slab.min()),
        high=float(slab.max()),
        total=float(slab.sum(dtype=np.float64)),
        negative=float(slab[slab < image_values.NEGATIVE_SUV].sum(dtype=np.float64)) if source.units == SUV else 0.0,
        digest=hashlib.sha256(slab.data).digest() if source.units in (SUV, HU) else b"",
        coarse=geometry.block_means(slab, coarse_edges(source.grid)),
        cells=cells,
        overview=geometry.shrink_slab(slab, z0, source.grid.shape, layout.OVERVIEW) if source.units == SUV else None,
        clipped=tuple(
            image_values.at_limit(slab, *ends) for ends in getattr(source, "limits", ())
        ),  # of a file's source only
    )
    return kept, _half(stored)


def _covered(plan: CasePlan, grid: Grid) -> dict[str, NDArray[np.bool_]]:
    """Where on the coarse grid each image lies that was put on the case's grid and ends before it does."""
    edges = coarse_edges(grid)
    found = {
        image: geometry.coverage(source.source.grid, grid, edges)
        for image, source in plan.images.items()
        if isinstance(source, geometry.Resampled)
    }
    return {image: covered for image, covered in found.items() if not covered.all()}


def _outline(
    images: Sequence[tuple[str, str]],
    covered: Mapping[str, NDArray[np.bool_]],
    grid: Grid,
    spans: Mapping[str, list[_Slab]],
    labels: Mapping[int, str],
) -> NDArray[np.bool_]:
    """Body mask on the coarse grid: from the first image; where that one ends, the outline of the next goes on.

    Args:
        images: (name, units): the CT where there is one, then the PET of the highest dose.
    """
    edges = coarse_edges(grid)
    z, y, x = (mm * edge for mm, edge in zip(grid.spacing_mm, edges, strict=True))

    def outline(image: str, units: str) -> NDArray[np.bool_]:
        coarse = np.concatenate([slab.coarse for slab in spans[image]])
        return geometry.body_mask(coarse, units, (z, y, x), geometry.body_scale(grid))

    mask = outline(*images[0])
    if images[0][0] in covered and len(images) > 1:
        mask = np.where(covered[images[0][0]], mask, outline(*images[1]))
    if labels:  # an organ is body wherever it lies
        mask |= np.concatenate([slab.coarse for slab in spans["labels"]]) > 0
    return mask


def _best_pets(plan: CasePlan) -> list[str]:
    """Names of the PETs, the highest dose first.  One without a dose counts as full dose, an unknown factor is last."""

    def rank(image: str) -> tuple[float, bool, str]:
        dose = plan.dose(image)
        drf = 1.0 if dose is None else dose.drf
        # Another reconstruction of the full dose shares its noise; of the full dose itself that is not asked.
        return (math.inf if math.isnan(drf) else drf, dose is not None and dose.shares_noise is not None, image)

    return sorted((image for image, source in plan.images.items() if source.units == SUV), key=rank)


def _store_body(
    path: Path, outline: NDArray[np.bool_], grid: Grid, z0: int, z1: int
) -> tuple[NDArray[np.float32], NDArray[np.generic]]:
    """Write one shard of the body; returns its share of every cell, and its part of the next coarser level."""
    edges = coarse_edges(grid)
    slab = outline[z0 // edges[0] : -(-z1 // edges[0])]
    for axis, edge in enumerate(edges):
        slab = slab.repeat(edge, axis)
    slab = slab[: z1 - z0, : grid.shape[1], : grid.shape[2]]
    stored = slab.astype(layout.storage_dtype(LABEL))
    layout.write_shard(path / "0", z0, stored)
    return geometry.block_means(slab.astype(np.float32), (CELL, CELL, CELL)), _half(stored)


def _half(finer: NDArray[np.generic]) -> NDArray[np.generic]:
    """The next coarser level of a slab that begins at an even slice: means, and for labels the corner voxel."""
    if finer.dtype == layout.storage_dtype(LABEL):
        return finer[::2, ::2, ::2].copy()
    return geometry.block_means(np.asarray(finer, dtype=np.float32), (2, 2, 2))


def _store_levels(path: Path, halves: Sequence[NDArray[np.generic]], grid: Grid) -> None:
    """Write the coarser levels, each from the one before.

    Args:
        halves: level 1 in parts along z, an eighth of the image's voxels.
    """
    level = np.concatenate(halves)
    for number in range(1, layout.num_levels(grid.shape)):
        depth = layout.shard_depth(layout.level_shape(grid.shape, number), level.dtype.itemsize)
        layout.create_array(path / str(number), level.shape, level.dtype, depth=depth)
        for z0 in range(0, len(level), depth):
            layout.write_shard(path / str(number), z0, level[z0 : z0 + depth])
        level = _half(level)


def _finish(
    folder: Path,
    name: str,
    grid: Grid,
    facts: Mapping[str, Any],
    sources: Mapping[str, tuple[str, Mapping[str, object], Mapping[str, object] | None]],
    pets: Sequence[str],
    spans: Mapping[str, list[_Slab]],
    outline: NDArray[np.bool_],
    covered: Mapping[str, NDArray[np.bool_]],
    body: list[NDArray[np.float32]],
    viewing: list[None],
) -> None:
    """Write sampling maps and attributes once every shard is there; ``pets`` names the PETs, the highest dose first."""
    del viewing  # ordering only
    size = float(np.prod(grid.shape))
    for image, (units, provenance, dose) in sources.items():
        parts = spans[image]
        statistics = {
            "min": min(p.low for p in parts),
            "max": max(p.high for p in parts),
            "mean": sum(p.total for p in parts) / size,
        }
        if statistics["min"] == statistics["max"] and units != LABEL:
            raise InputError(
                "IMG_CONSTANT",
                where=f"case {name}, image {image}",
                found=f"every voxel is {statistics['min']:g}",
                remedy="check the file: a scan is never constant",
            )
        if units == HU:
            image_values.check_hu(f"case {name}, image {image}", statistics["min"], statistics["max"])
        told = ["saturated"] if image_values.saturated([p.clipped for p in parts]) else []
        if units == SUV:
            statistics["body_median"] = float(np.median(np.concatenate([p.coarse for p in parts])[outline]))
            told += image_values.suv_doubts(
                statistics,
                positive=sum(p.total - p.negative for p in parts),
                negative=sum(p.negative for p in parts),
                full=image == pets[0],
            )
        if image in covered and np.count_nonzero(outline & ~covered[image]) > UNCOVERED * np.count_nonzero(outline):
            told.append("does_not_cover_body")
        provenance = {**provenance, "notes": [*notes.of(provenance), *told]} if told else provenance
        _describe(folder / image, units, grid, provenance, statistics, {"dose": dose} if units == SUV else {})
        if units == SUV:
            overview = np.stack([p.overview for p in parts if p.overview is not None]).sum(0)
            layout.write_array(folder / "aids" / f"overview_{image}", overview)
    image_values.check_scales(name, pets, sources, {image: sum(p.total for p in spans[image]) for image in pets})
    _describe(folder / "body", LABEL, grid, {}, {"min": 0.0, "max": 1.0}, {})
    inside = np.concatenate(body).astype(np.float32)
    uptake = np.concatenate([p.cells[0] for p in spans[pets[0]]]) if pets else np.zeros_like(inside)
    layout.write_array(folder / "aids" / "uptake", np.clip(uptake, 0, None).astype(np.float32))
    layout.write_array(folder / "aids" / "body", inside)
    if facts["labels"]:
        order = np.argsort([int(v) for v in facts["labels"]])
        cells = np.concatenate([p.cells for p in spans["labels"]], axis=1)[order]
        layout.write_array(folder / "aids" / "rois", np.ceil(cells * 255).astype(np.uint8))
    digest = hashlib.sha256(b"".join(p.digest for p in spans[pets[0] if pets else "ct"])).hexdigest()
    layout.stage_group(folder, {"petscale": {**facts, "voxels": digest}})


def _describe(
    path: Path,
    units: str,
    grid: Grid,
    provenance: Mapping[str, object],
    statistics: Mapping[str, float],
    more: Mapping[str, object],
) -> None:
    layout.stage_group(
        path,
        {
            "petscale": {
                "units": units,
                "affine_ras_mm": grid.affine.tolist(),
                "provenance": dict(provenance),
                "statistics": dict(statistics),
                **more,
            }
        },
    )
