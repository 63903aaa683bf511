"""``petscale ingest``: the files of an examination (DICOM, NIfTI) opened as the plan of one case."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from petscale.data.cohorts import Plans, fingerprint
from storage import dicom, geometry, integrity, layout, nifti, suv
from storage.errors import InputError
from storage.ingest import CasePlan, site_key, subject_hash
from storage.source import BQML, Dose, ImageSource


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


def ingest_plans(
    source: Path,
    *,
    case: str | None,
    pet: str,
    ct: str,
    mask: str,
    grid: Literal["pet", "ct"],
    units: nifti.Units,
    names: Literal["hash", "folder"],
    overrides: suv.Overrides,
) -> Plans:
    """Plan one examination or, where ``pet`` names the PET inside each sub-folder, many; as ``petscale ingest`` says.

    Raises:
        InputError: IMG_NO_FILE, SET_NO_PET, SET_NO_CT, SET_NO_MASK; SET_CASE_COLLISION for two cases of one name.
    """
    if not pet:
        files = Files(
            pet=source,
            ct=Path(ct) if ct else None,
            mask=Path(mask) if mask else None,
            grid=grid,
            units=units,
            overrides=overrides,
        )
        return {case or alias(source.name, "hash"): partial(open_case, files)}
    plans: dict[str, Callable[[Path], CasePlan]] = {}
    for folder, (pet_path, ct_path, mask_path) in find_cases(source, pet, ct, mask).items():
        files = Files(pet=pet_path, ct=ct_path, mask=mask_path, grid=grid, units=units, overrides=overrides)
        name = alias(folder, names)
        if name in plans:
            raise InputError(
                "SET_CASE_COLLISION",
                where=f"case {name}",
                found="two folders whose names differ in case only",
                remedy="rename one, or use --names hash",
            )
        plans[name] = partial(open_case, files, subject=folder)
    return plans


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
        fingerprint=fingerprint(
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
        digests.append(integrity.file_digest(file))
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
