"""``petscale ingest``: the files of an examination (DICOM, NIfTI) opened as the plan of one case."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

from petscale.data import frames
from petscale.data.cohorts import fingerprint
from petscale.data.examination import FULL, Examination, Files, OtherPet, Stated
from petscale.data.sidecars import check_beside, units_beside
from petscale.data.units import units_by_values
from storage import boxes, dicom, dicom_pairs, geometry, integrity, layout, nifti, notes, suv
from storage.errors import InputError, no_file
from storage.ingest import CasePlan, site_key, subject_hash
from storage.label_maps import LabelFile, LabelMap, LesionMask, open_labels
from storage.source import BQML, Dose, Grid, ImageSource

__all__ = ["Files", "alias", "content_digest", "is_nifti", "open_case", "open_ct", "open_pet", "suv_factor"]


def plan_examination(examination: Examination, scratch: Path) -> CasePlan:
    """Open the files that a layout found as a plan.

    Raises:
        InputError: whatever is wrong with the files.
    """
    return open_case(examination.files, scratch, subject=examination.patient or None)


def open_case(files: Files, scratch: Path, *, subject: str | None = None) -> CasePlan:
    """Open one examination's files as a plan.

    Args:
        subject: who the patient is when the files do not say it (NIfTI); hashed before it is stored.

    Raises:
        InputError: whatever is wrong with the files.
    """
    key = site_key()
    files = with_units(files, scratch)
    images: dict[str, ImageSource]
    if files.frames:
        opened = open_dynamic(files, scratch)
        images, doses, patient = dict(opened.images), dict(opened.doses), opened.patient
        pet = images[files.name]
    else:
        pet, patient = open_pet(files, scratch)
        images, doses = {files.name: pet}, {files.name: files.dose}
    for other in files.others:
        images[other.name] = open_other(files, other, pet, scratch)
        doses[other.name] = other.dose
    ct: ImageSource | None = None
    if files.ct is not None:
        ct = open_ct(files.ct, scratch, pet, choice=files.choices.get("ct", ""))
        if files.grid == "pet":
            images["ct"] = geometry.Resampled(ct, pet.grid, interpolation=files.interpolation)
        else:
            images = {name: _resampled(files, image, ct.grid) for name, image in images.items()}
            images["ct"] = ct
    elif files.grid == "ct":
        raise InputError(
            "SET_NO_CT", where=files.pet.name, found="--grid ct without a CT", remedy="give the CT with --ct"
        )
    labels: dict[int, str] = {}
    if found := label_files(files):
        frame = pet.frame_of_reference if isinstance(pet, dicom.DicomSource) else ""
        read = open_labels(found, grid=images[files.name].grid, workdir=scratch, frame_of_reference=frame)
        images["labels"], labels = read.image, read.names
    elif files.boxes is not None and isinstance(ct, dicom.DicomSource):
        images["labels"], labels = boxes.open_boxes(files.boxes, ct, images[files.name].grid), {1: "lesion"}
    content = [content_digest(path) for path in (files.pet, files.ct, files.mask) if path is not None]
    return CasePlan(
        images=images,
        subject=subject_hash(patient or subject or f"content {content[0]}", key),
        fingerprint=fingerprint(
            key,
            *content,
            files.units,
            asdict(files.overrides),
            {str(k): v for k, v in labels.items()},
            *([files.grid] if files.grid != "pet" else []),  # as before there was a choice
            *_more(files),
        ),
        labels=labels,
        doses=doses,
        tags=files.tags,
    )


def label_files(files: Files) -> tuple[LabelFile, ...]:
    """All label files of an examination, its lesion mask last: a lesion stands above an organ."""
    return (*files.labels, *([LesionMask(files.mask)] if files.mask is not None else []))


def _more(files: Files) -> list[object]:
    """What a fingerprint holds of the options that were added since: nothing where none of them is used."""
    plain = Files(pet=files.pet)
    more: list[object] = [
        [name, value if isinstance(value, str | None) else dict(value)]
        for name in ("name", "other_grids", "interpolation", "choices", "tags")
        if (value := getattr(files, name)) != getattr(plain, name)
    ]
    if files.stated != Stated():
        more.append(asdict(files.stated))
    if files.dose != FULL:
        more.append(layout.dose_attribute(files.dose))
    if files.boxes is not None:
        more.append(content_digest(files.boxes))
    for one in files.labels:
        names = {str(k): v for k, v in (one.names or {}).items()} if isinstance(one, LabelMap) else "lesion"
        more.append([content_digest(one.path), names])
    if files.frames:
        more.append(["frames", files.frames.frames, list(files.frames.pairs)])
        if files.frame_times is not None:
            more.append(asdict(files.frame_times))
    for other in files.others:
        more.append([other.name, content_digest(other.path), layout.dose_attribute(other.dose), other.choice])
    return more


def open_dynamic(files: Files, scratch: Path) -> frames.Opened:
    """Open the images that are made of the frames of the first PET, in SUVbw.

    Raises:
        InputError: of the file or series, its values and the choice of frames; PET_WEIGHT, PET_DOSE.
    """
    if not is_nifti(files.pet):
        return frames.open_dicom(files)
    return frames.open_nifti(files, scratch, suv_factor(files), _told_of(files, ()))


def open_pet(files: Files, scratch: Path) -> tuple[ImageSource, str]:
    """Open the first PET in SUVbw; returns it with the patient's ID, empty where the format has none.

    Raises:
        InputError: PET_WEIGHT, PET_DOSE, and whatever is wrong with the file.
    """
    files = with_units(files, scratch)
    if is_nifti(files.pet):
        return _open_nifti(files, files.pet, scratch), ""
    series = open_pet_series(files)
    return series, series.patient_id


def with_units(files: Files, scratch: Path) -> Files:
    """Return the files with the unit of their PET: as stated, else by the file beside it, else by its own values.

    Raises:
        InputError: NII_UNITS where nobody states the unit and the values leave it open; CFG_NO_EFFECT for a unit of a
            DICOM series, which states its own; whatever is wrong with the file.
    """
    if not is_nifti(files.pet):
        if files.units and files.units_from == "user":
            raise InputError(
                "CFG_NO_EFFECT",
                where="--units",
                found=f"{files.units}, and a DICOM series states its own unit",
                remedy="leave it out; if the header's unit is wrong, export the series again",
            )
        return files if files.units else replace(files, units="SUVbw", units_from="layout")
    if files.units:
        return files
    if (told := units_beside(files.pet)) is not None:
        return replace(files, units=told, units_from="sidecar")
    _check_effect(replace(files, units="SUVbw"))
    if nifti.volumes_of(files.pet).count > 1 and not files.frames:
        return replace(files, units="SUVbw")  # refused as what it is, when it is opened
    return replace(files, units=units_by_values(files.pet, scratch), units_from="values")


def open_pet_series(files: Files) -> dicom.DicomSource:
    """Open the first PET of an examination of DICOM files; no voxel is read yet."""
    return dicom.open_series(
        files.pet,
        modality="PT",
        overrides=files.overrides,
        stated=files.stated.for_header(),
        choice=files.choices.get("pet", ""),
    )


def _open_nifti(files: Files, path: Path, scratch: Path) -> nifti.NiftiSource:
    """A NIfTI PET in SUVbw; its provenance says which values of its factor were stated, and where."""
    assert files.units
    check_beside(path, files.units, None)
    try:
        source = nifti.open_nifti(path, units=files.units, workdir=scratch, scale=suv_factor(files))
    except InputError as error:
        raise frames.with_durations(error, replace(files, pet=path)) from None
    return replace(source, provenance={**source.provenance, **_told_of(files, notes.of(source.provenance))})


def _told_of(files: Files, noted: tuple[str, ...]) -> dict[str, object]:
    """Which values of the factor of a NIfTI PET were stated, and where; and its notes, with that on its unit."""
    told: dict[str, object] = {"notes": [*noted, *("unit_taken_from_values",) * (files.units_from == "values")]}
    return {**told, "stated": dict(files.stated.origin)} if files.units == BQML and files.stated.origin else told


def open_other(files: Files, other: OtherPet, pet: ImageSource, scratch: Path) -> ImageSource:
    """Open another PET of the examination in SUVbw.

    One that holds counts of the same scan has the SUV scale of the first PET: one dose was given, to one patient.

    Raises:
        InputError: PAIR_FORMAT, PAIR_PATIENT_MISMATCH, PAIR_FRAME_MISMATCH, and whatever is wrong with the file.
    """
    try:
        source = _open_other(files, other, pet, scratch)
    except InputError as error:
        if error.code not in ("SER_DYNAMIC", "SER_PARTIAL_VOLUME", "NII_4D"):
            raise
        remedy = "give a static low dose, or make low doses of the first PET's own frames: --frame-pairs without --low"
        raise InputError(error.code, where=error.where, found=error.found, remedy=remedy) from None
    check_grid(files, other, source.grid, pet.grid)
    if source.grid.matches(pet.grid):
        return source
    return _resampled(files, source, pet.grid)


def _resampled(files: Files, pet: ImageSource, grid: Grid) -> geometry.Resampled:
    return geometry.Resampled(pet, grid, outside=0.0, interpolation=files.interpolation)


def _open_other(files: Files, other: OtherPet, pet: ImageSource, scratch: Path) -> ImageSource:
    if is_nifti(other.path) != is_nifti(files.pet):
        raise InputError(
            "PAIR_FORMAT",
            where=other.path.name,
            found="one of full and low dose is DICOM, the other NIfTI",
            remedy="give both in one format, so that both are on one scale",
        )
    if is_nifti(other.path):
        if _own_scale(other.dose) and files.units == BQML:
            raise InputError(
                "PAIR_FORMAT",
                where=other.path.name,
                found="a separate scan as NIfTI in Bq/mL: its weight, dose and time are its own",
                remedy="convert it to SUV, or give both scans as DICOM",
            )
        return _open_nifti(files, other.path, scratch)
    assert isinstance(pet, dicom.DicomSource)
    if _own_scale(other.dose):
        source = dicom.open_series(other.path, modality="PT", choice=other.choice)
    else:
        source = dicom_pairs.open_thinned(other.path, pet, choice=other.choice)
    dicom_pairs.check_pair(pet, source)
    return source


def check_grid(files: Files, other: OtherPet, grid: Grid, first: Grid) -> None:
    """Refuse a PET on another grid than the first, unless it is to be resampled.

    Raises:
        InputError: PAIR_GRID_MISMATCH.
    """
    if files.other_grids == "refuse" and not grid.matches(first):
        raise InputError(
            "PAIR_GRID_MISMATCH",
            where=f"image {other.name}",
            found=f"not on the grid of {files.name}: {geometry.difference(grid, first)}",
            remedy="give images of one reconstruction grid, or ask for it: --other-grids resample",
        )


def _own_scale(dose: Dose) -> bool:
    return dose.relation == "separate"


def suv_factor(files: Files) -> float:
    """What turns a NIfTI PET's unit into SUVbw; 1 for every other input.

    Raises:
        InputError: PET_WEIGHT, PET_DOSE: neither is ever guessed; NII_UNITS, NII_DOSE where the file's sidecar states
            another unit or dose; CFG_NO_EFFECT.
    """
    if not is_nifti(files.pet):
        return 1.0
    if not files.units:  # before a voxel is read
        files = replace(files, units=units_beside(files.pet) or "SUVbw")
    _check_effect(files)
    if files.units != BQML:
        check_beside(files.pet, files.units, None)
        return 1.0
    weight, left_mbq = _weight_and_dose(files)
    check_beside(files.pet, files.units, left_mbq)
    return suv.suv_factor_decay_corrected(weight, left_mbq * 1e6)


def _check_effect(files: Files) -> None:
    """Refuse what was given for the SUV of a NIfTI PET and would be passed over without a word."""
    given = files.overrides
    if given.injection_time is not None:
        raise InputError(
            "CFG_NO_EFFECT",
            where="--injection-time",
            found="a NIfTI file does not say when it was scanned",
            remedy="give the dose that was left at the scan's reference time by --dose-mbq, or a --table with columns "
            "dose_mbq and uptake_min",
        )
    needless = [name for name in ("weight_kg", "dose_mbq") if getattr(given, name) is not None]
    if files.units != BQML and needless:
        raise InputError(
            "CFG_NO_EFFECT",
            where=f"--{needless[0].replace('_', '-')}",
            found=f"{files.pet.name} is taken for {files.units}, which needs neither weight nor dose",
            remedy="leave it out, or give --units Bq/mL if the file holds activity",
        )


def _weight_and_dose(files: Files) -> tuple[float, float]:
    """The weight in kg, and the activity in MBq that was left at the time that the voxels are corrected to."""
    stated = files.stated
    weight = files.overrides.weight_kg or stated.weight_kg
    given = files.overrides.dose_mbq
    left = 1.0
    if given is None and stated.dose_mbq is not None:
        given = stated.dose_mbq
        if stated.uptake_s:
            left = suv.decay(stated.uptake_s, stated.half_life_s or _no_half_life(files.pet))
    if not weight or not given:
        raise InputError(
            "PET_DOSE" if weight else "PET_WEIGHT",
            where=files.pet.name,
            found="a NIfTI file in Bq/mL says neither weight nor dose",
            remedy="give --weight-kg and --dose-mbq (the dose decay-corrected to the scan's reference time), or a "
            "--table with columns weight_kg, dose_mbq and uptake_min",
        )
    return weight, given * left


def _no_half_life(path: Path) -> float:
    raise InputError(
        "PET_NUCLIDE",
        where=path.name,
        found="a dose at the time of injection, and nothing says which nuclide decayed since",
        remedy="give the table a column nuclide (F-18) or half_life_s",
    )


def open_ct(path: Path, scratch: Path, pet: ImageSource | None = None, *, choice: str = "") -> ImageSource:
    """Open a CT in HU; of several series in a folder, the one of the frame of reference of ``pet``.

    Raises:
        InputError: PAIR_PATIENT_MISMATCH, PAIR_FRAME_MISMATCH, PAIR_NO_OVERLAP, and whatever is wrong with the file.
    """
    if is_nifti(path):
        return nifti.open_nifti(path, units="HU", workdir=scratch)
    if not isinstance(pet, dicom.DicomSource):
        return dicom.open_series(path, modality="CT", choice=choice)
    ct = dicom.open_series(path, modality="CT", of=pet, choice=choice)
    dicom_pairs.check_pair(pet, ct)
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
        return layout.check_case_name(name.lower().replace("/", "-"))
    return "case-" + subject_hash(f"case {name}", site_key())[:10]


def content_digest(path: Path) -> str:
    """Digest of a file or of every file below a folder, whatever their order and place."""
    if not path.exists():
        raise no_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digests = []
    for file in files:
        digests.append(integrity.file_digest(file))
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
