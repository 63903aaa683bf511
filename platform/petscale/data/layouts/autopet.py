"""autoPET / FDG-PET-CT-Lesions as downloaded: the NIfTI tree, nnU-Net's flat form, and DICOM studies with SEG.

    PETCT_<patient>/<study>/SUV.nii.gz, CTres.nii.gz, SEG.nii.gz    PET in SUV, CT on its grid, lesions
    imagesTr/<case>_0000.nii.gz, <case>_0001.nii.gz; labelsTr/      CT, PET in SUV; lesions
    FDG-PET-CT-Lesions/<patient>/<study>/<series>/*.dcm             told apart by their headers

All studies of one patient's folder are one patient's.  In the flat form the patient is the second part of names such as
``fdg_0011_01-01-2003``; a name without parts is a patient of its own, and that is said.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from petscale.data.examination import Examination, Files, Tree
from petscale.data.layouts.options import Options
from petscale.data.layouts.study import studies
from storage.errors import InputError
from storage.label_maps import LesionMask

CASE = re.compile(r"(?P<case>.+)_0001\.nii(\.gz)?")
PATIENT = re.compile(r"(?:fdg|psma|petct)_(?P<patient>[A-Za-z0-9]+)(?:_.+)?", re.IGNORECASE)
OWN_SUV = "SUV of the data set's own conversion, which took the time of an arbitrary slice (up to some percent)"


def autopet(root: Path, options: Options) -> Tree:
    """Find examinations in whichever of the three forms there is.

    Raises:
        InputError: IMG_NO_FILE, SET_NO_PET.
    """
    if not root.is_dir():
        raise InputError("IMG_NO_FILE", where=root.name, found="no such folder", remedy="name an existing folder")
    found = _tree(root, options) or _flat(root, options)
    if found:
        return Tree(tuple(found))
    if any(path.suffix.lower() == ".dcm" for path in root.rglob("*")):
        tree = studies(root, options)
        return replace(tree, examinations=tuple(_lesions(one) for one in tree.examinations))
    raise InputError(
        "SET_NO_PET",
        where=root.name,
        found="no SUV.nii.gz, no imagesTr with _0001 files, no DICOM file",
        remedy="give the folder that was downloaded, or another --layout",
    )


def _lesions(one: Examination) -> Examination:
    """The data set's segmentations hold lesions and nothing else."""
    return replace(one, files=replace(one.files, labels=tuple(LesionMask(found.path) for found in one.files.labels)))


def _files(pet: Path, ct: Path | None, lesions: Path | None, options: Options) -> Files:
    return Files(
        pet=pet,
        ct=ct,
        mask=lesions,
        grid=options.grid,
        other_grids=options.other_grids,
        units="SUVbw",
        overrides=options.overrides,
    )


def _tree(root: Path, options: Options) -> list[Examination]:
    examinations = []
    for pet in sorted(root.rglob("SUV.nii.gz")):
        study = pet.parent
        ct, lesions = ((study / f"{name}.nii.gz") for name in ("CTres", "SEG"))
        if not os.path.lexists(ct):
            ct = study / "CT.nii.gz"
        examinations.append(
            Examination(
                key=study.relative_to(root).as_posix(),
                files=_files(
                    pet, ct if os.path.lexists(ct) else None, lesions if os.path.lexists(lesions) else None, options
                ),
                patient=study.parent.name if study.parent != root else study.name,
                doubts=(OWN_SUV,),
            )
        )
    return examinations


def _flat(root: Path, options: Options) -> list[Examination]:
    examinations = []
    for pet in sorted(path for path in root.rglob("*_0001.nii*") if CASE.fullmatch(path.name)):
        found = CASE.fullmatch(pet.name)
        assert found is not None
        case, suffix = found["case"], pet.name.removeprefix(f"{found['case']}_0001")
        labels = pet.parent.parent / pet.parent.name.replace("images", "labels") / f"{case}{suffix}"
        ct = pet.with_name(f"{case}_0000{suffix}")
        known = PATIENT.fullmatch(case)
        doubts = () if known else ("its name names no patient: counted as one patient; give a --table otherwise",)
        examinations.append(
            Examination(
                key=case,
                files=_files(
                    pet, ct if os.path.lexists(ct) else None, labels if os.path.lexists(labels) else None, options
                ),
                patient=known["patient"] if known else case,
                doubts=doubts,
            )
        )
    return examinations
