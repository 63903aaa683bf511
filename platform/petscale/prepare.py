"""Cohorts: phantoms drawn, scans simulated, files ingested; each runs storage's Dask graph, here or on a cluster."""

import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from petscale import nodes
from petscale.progress import bar, console
from storage import dicom, geometry, integrity, layout, nifti, phantom, remote, suv
from storage.errors import InputError
from storage.ingest import CasePlan, Outcome, Spread, ingest, one_after_another, site_key, subject_hash
from storage.lowdose import LowDoseConfig, LowDoseSource
from storage.reader import open_cohort
from storage.source import BQML, Dose, ImageSource

Plans = Mapping[str, Callable[[Path], CasePlan]]


def run(title: str, cohort: Path, plans: Plans, *, strict: bool, workers: int | None) -> Outcome:
    """Ingest with a bar over all tasks, then say what was committed, kept and refused.

    Raises:
        InputError: the first refusal when nothing was committed or kept, so that a single mistake is told as itself;
            the cohort's folder is then as it was before.  SET_REFUSED when only some cases were refused.
    """
    if workers is not None and workers < 1:
        raise InputError("CFG_RANGE", where="--workers", found=str(workers), remedy="give 1 or more")
    with _restored_when_empty(cohort):
        return _run(title, cohort, plans, strict=strict, workers=workers)


def _run(title: str, cohort: Path, plans: Plans, *, strict: bool, workers: int | None) -> Outcome:
    done: set[str] = set()
    with bar(title, len(plans)) as advance, _spread(cohort, workers) as spread:

        def progress(case: str, tasks: int, total: int) -> None:
            done.update([case] if tasks == total else [])
            advance(len(done), f"{case} {tasks}/{total} tasks")

        outcome = ingest(cohort, plans, strict=strict, workers=workers, progress=progress, spread=spread)
        if outcome.committed or outcome.kept:
            advance(len(plans), "")
    told = None if outcome.committed or outcome.kept else next(iter(outcome.refused.values()), None)
    for case, error in outcome.refused.items():
        if error is not told:
            console.print(f"refused {case}: {error}", soft_wrap=True, markup=False)
    if told:
        raise told
    summary = f"{cohort}: {len(outcome.committed)} committed, {len(outcome.kept)} already there"
    console.print(summary, soft_wrap=True, markup=False)
    if outcome.refused:
        raise InputError(
            "SET_REFUSED",
            where=cohort.name,
            found=f"{len(outcome.refused)} of {len(plans)} cases were refused, the others are committed",
            remedy="see the lines above, mend these cases and run the same command again",
        )
    return outcome


@contextmanager
def _spread(cohort: Path, workers: int | None) -> Iterator[Spread]:
    """One case after another on this machine; in a cluster's job, all nodes at once, a case each.

    Raises:
        InputError: CLU_SITE_KEY where nodes would call one patient by different names; those of ``launch.session``.
    """
    if not nodes.joined() or remote.origin(cohort):  # what is written for an object store is published from one node
        yield one_after_another
        return
    if "PETSCALE_SITE_KEY" not in os.environ:
        raise InputError(
            "CLU_SITE_KEY",
            where="PETSCALE_SITE_KEY",
            found="not set: every node would hash patients with a key of its own",
            remedy="let it name one file that all nodes read, as cluster.yaml does",
        )
    from petscale.config import RunConfig
    from petscale.launch import session

    site_key()  # made if need be, before every node must find it
    cohort.mkdir(parents=True, exist_ok=True)
    with session(RunConfig(), 0, cohort, Path(os.environ["PETSCALE_SITE_KEY"])):
        yield partial(nodes.spread, cpus=workers or min(4, nodes.fewest_cpus()))


@contextmanager
def _restored_when_empty(cohort: Path) -> Iterator[None]:
    """When the block fails and has committed nothing to a new cohort, take away what it made."""
    held = {path.name for path in cohort.iterdir()} if cohort.is_dir() else None
    try:
        yield
    except BaseException:
        if cohort.is_dir() and "zarr.json" not in (held or ()):
            _take_away(cohort, held)
        raise


def _take_away(cohort: Path, held: set[str] | None) -> None:
    try:
        with integrity.exclusive(cohort, purpose="clean-up"):
            if any(cohort.glob(f"{layout.CASES}/*/{integrity.MANIFEST}")):
                return
            for path in cohort.iterdir():
                if path.name not in (held or ()):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if held is None:
                cohort.rmdir()
    except InputError:
        return  # someone else is filling it


def _check_doses(scan: LowDoseConfig, drfs: Sequence[float], realisations: int) -> None:
    """Refuse before anything is opened.

    Raises:
        InputError: CFG_RANGE, CFG_NAME.
    """
    for drf in drfs:
        layout.check_name(layout.low_name(replace(scan, drf=drf).drf), "--drf")
    if realisations < 1:
        raise InputError("CFG_RANGE", where="--realisations", found=str(realisations), remedy="give 1 or more")


def low_doses(
    truth: ImageSource, ct: ImageSource | None, config: LowDoseConfig, drfs: Sequence[float], realisations: int
) -> dict[str, LowDoseSource]:
    """A full-dose scan of ``truth`` and its low-dose scans, all reconstructed alike."""
    images = {"full": LowDoseSource(truth, ct, replace(config, drf=1.0, realisation=0))}
    for drf in drfs:
        for number in range(realisations):
            images[layout.low_name(drf, number)] = LowDoseSource(truth, ct, replace(config, drf=drf, draw=number))
    return images


def _doses(scans: Mapping[str, LowDoseSource]) -> dict[str, Dose | None]:
    """The doses of what ``low_doses`` simulates, and of its truth, which is no scan of this case."""
    doses: dict[str, Dose | None] = {"truth": None}
    for name, scan in scans.items():
        same_scan = scan.config.mode == "thinning" and scan.config.realisation == scans["full"].config.realisation
        full = scan.config.drf == 1
        doses[name] = Dose(scan.config.drf, "full" if full else "simulated", None if full else same_scan)
    return doses


def phantom_plans(
    count: int,
    config: phantom.PhantomConfig,
    scan: LowDoseConfig,
    drfs: Sequence[float],
    realisations: int = 1,
) -> Plans:
    """Plan ``count`` phantom patients with their simulated scans.

    Raises:
        InputError: CFG_RANGE.
    """
    _check_doses(scan, drfs, realisations)
    if count < 1:
        raise InputError("CFG_RANGE", where="--cases", found=str(count), remedy="give 1 or more")

    def plan(seed: int) -> Callable[[Path], CasePlan]:
        def open_plan(scratch: Path) -> CasePlan:
            person = replace(config, seed=config.seed + seed)
            body = phantom.phantom(person)
            scans = low_doses(body.activity, body.ct, replace(scan, seed=scan.seed + seed), drfs, realisations)
            return CasePlan(
                images={**scans, "truth": body.activity, "ct": body.ct, "labels": body.labels},
                subject=subject_hash(f"phantom {person.seed}", b"phantoms are nobody"),
                fingerprint=_fingerprint(b"", asdict(person), asdict(scan), list(drfs), realisations),
                labels=body.label_names,
                doses=_doses(scans),
            )

        return open_plan

    return {f"phantom-{config.seed + seed:03d}": plan(seed) for seed in range(count)}


def simulation_plans(source: Path, truth: str, scan: LowDoseConfig, drfs: Sequence[float], realisations: int) -> Plans:
    """Plan a cohort of simulated scans whose truth is an image of another cohort; CT and labels come along.

    Raises:
        InputError: STORE_NONE, SET_TOO_SMALL, CFG_RANGE.
    """
    cohort = open_cohort(source)
    _check_doses(scan, drfs, realisations)
    if not drfs:
        raise InputError("CFG_RANGE", where="--drf", found="none", remedy="give 1 or more")
    if not cohort.cases:
        raise InputError("SET_TOO_SMALL", where=source.name, found="an empty cohort", remedy="ingest cases into it")

    def plan(name: str, number: int) -> Callable[[Path], CasePlan]:
        def open_plan(scratch: Path) -> CasePlan:
            case = cohort.case(name)
            image = case.image(truth)
            along: dict[str, ImageSource] = {
                other: case.image(other) for other in ("ct", "labels") if other in case.images
            }
            scans = low_doses(image, along.get("ct"), replace(scan, seed=scan.seed + number), drfs, realisations)
            return CasePlan(
                images={**scans, "truth": image, **along},
                subject=case.subject,
                fingerprint=_fingerprint(b"", case.fingerprint, truth, asdict(scan), number, list(drfs), realisations),
                labels=case.labels,
                doses=_doses(scans),
            )

        return open_plan

    return {name: plan(name, number) for number, name in enumerate(cohort.cases)}


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where the images of one examination are; each is a DICOM folder or file, or a NIfTI file.

    Args:
        pet: the PET that becomes image ``full``.
        ct: CT of the same examination; may be the folder that holds the PET too.
        mask: lesion or organ mask on the grid chosen, a NIfTI file of whole numbers.
        grid: whose grid the case has.  ``pet``: the CT is resampled.  ``ct``: the PET is, linearly, and its maxima are
            no longer those of the reconstruction.
        units: unit of a NIfTI PET; a DICOM series says its own.
        overrides: weight, dose and injection time that stand instead of a DICOM header's.
        labels: value in the mask -> name.
    """

    pet: Path
    ct: Path | None = None
    mask: Path | None = None
    grid: Literal["pet", "ct"] = "pet"
    units: nifti.Units = "SUVbw"
    overrides: suv.Overrides = field(default_factory=suv.Overrides)
    labels: Mapping[int, str] | None = None


def find_cases(root: Path, pet: str, ct: str, mask: str) -> dict[str, tuple[Path, Path | None, Path | None]]:
    """Find examinations in a plain folder tree: one case per sub-folder that holds ``pet``.

    Args:
        root: the tree.
        pet: name of the PET below a case's folder.
        ct: name of the CT there; a case may lack it.
        mask: name of the mask there; a case may lack it.

    Raises:
        InputError: IMG_NO_FILE, SET_NO_PET.
    """
    if not root.is_dir():
        raise InputError("IMG_NO_FILE", where=root.name, found="no such folder", remedy="name an existing folder")
    found = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if (folder / pet).exists():
            others = (folder / name if name and (folder / name).exists() else None for name in (ct, mask))
            found[folder.name] = (folder / pet, *others)
    for option, name, place in (("pet", pet, 0), ("ct", ct, 1), ("mask", mask, 2)):
        if name and not any(paths[place] for paths in found.values()):
            raise InputError(
                f"SET_NO_{option.upper()}",
                where=root.name,
                found=f"no sub-folder holds what --{option} names",
                remedy=f"give --{option} the name that it has inside each sub-folder",
            )
    return found  # type: ignore[return-value]


def open_case(files: Files, scratch: Path, *, subject: str | None = None) -> CasePlan:
    """Open one examination's files as a plan.

    Args:
        subject: who the patient is when the files do not say it (NIfTI); hashed before it is stored.

    Raises:
        InputError: whatever is wrong with the files.
    """
    key = site_key()
    pet, patient = open_pet(files, scratch)
    images: dict[str, ImageSource] = {"full": pet}
    if files.ct is not None:
        ct = open_ct(files.ct, scratch, pet)
        if files.grid == "pet":
            images["ct"] = geometry.Resampled(ct, pet.grid)
        else:
            images = {"full": geometry.Resampled(pet, ct.grid, outside=0.0), "ct": ct}
    elif files.grid == "ct":
        raise InputError(
            "SET_NO_CT", where=files.pet.name, found="--grid ct without a CT", remedy="give the CT with --ct"
        )
    if files.mask is not None:
        images["labels"] = nifti.open_nifti(files.mask, units="label", workdir=scratch)
    labels = dict(files.labels or {1: "lesion"}) if files.mask is not None else {}
    return CasePlan(
        images=images,
        subject=subject_hash(patient or subject or str(files.pet.resolve()), key),
        fingerprint=_fingerprint(
            key,
            *(_content(path) for path in (files.pet, files.ct, files.mask) if path is not None),
            files.units,
            asdict(files.overrides),
            {str(k): v for k, v in labels.items()},
            *([files.grid] if files.grid != "pet" else []),  # as before there was a choice
        ),
        labels=labels,
        doses={"full": Dose(1.0, "full", None)},
    )


def open_pet(files: Files, scratch: Path) -> tuple[ImageSource, str]:
    """Open the PET in SUVbw; returns it with the patient's ID, empty where the format has none.

    Raises:
        InputError: PET_WEIGHT, PET_DOSE, and whatever is wrong with the file.
    """
    if is_nifti(files.pet):
        return nifti.open_nifti(files.pet, units=files.units, workdir=scratch, scale=suv_factor(files)), ""
    series = dicom.open_series(files.pet, modality="PT", overrides=files.overrides)
    return series, series.patient_id


def suv_factor(files: Files) -> float:
    """What turns a NIfTI PET's unit into SUVbw; 1 for every other input.

    Raises:
        InputError: PET_WEIGHT, PET_DOSE: neither is ever guessed.
    """
    if files.units != BQML or not is_nifti(files.pet):
        return 1.0
    weight, dose = files.overrides.weight_kg, files.overrides.dose_mbq
    if not weight or not dose:
        raise InputError(
            "PET_DOSE" if weight else "PET_WEIGHT",
            where=files.pet.name,
            found="a NIfTI file in Bq/mL says neither weight nor dose",
            remedy="give --weight-kg and --dose-mbq (the dose decay-corrected to the scan's reference time)",
        )
    return suv.suv_factor_decay_corrected(weight, dose * 1e6)


def open_ct(path: Path, scratch: Path, pet: ImageSource | None = None) -> ImageSource:
    """Open a CT in HU; of several series in a folder, the one of the frame of reference of ``pet``.

    Raises:
        InputError: PAIR_PATIENT_MISMATCH, PAIR_FRAME_MISMATCH, PAIR_NO_OVERLAP, and whatever is wrong with the file.
    """
    if is_nifti(path):
        return nifti.open_nifti(path, units="HU", workdir=scratch)
    if not isinstance(pet, dicom.DicomSource):
        return dicom.open_series(path, modality="CT")
    ct = dicom.open_series(path, modality="CT", of=pet)
    dicom.check_pair(pet, ct)
    return ct


def is_nifti(path: Path) -> bool:
    """Whether a path is to be read as NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def alias(name: str, naming: str) -> str:
    """Case name for a folder: its own name where the user says that it identifies nobody, else a keyed hash.

    Args:
        naming: ``hash`` or ``folder``.
    """
    if naming == "folder":
        return layout.check_name(name.lower(), "case name")
    return "case-" + subject_hash(f"case {name}", site_key())[:10]


def _content(path: Path) -> str:
    """Digest of a file or of every file below a folder, whatever their order and place."""
    if not path.exists():
        raise InputError("IMG_NO_FILE", where=path.name, found="no such file or folder", remedy="name an existing one")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _fingerprint(key: bytes, *parts: object) -> str:
    """Keyed, so that a public file's digest does not tell which patient it is."""
    return hmac.new(key or b"petscale", json.dumps(parts, sort_keys=True).encode(), hashlib.sha256).hexdigest()
