"""DICOM studies as a scanner or an archive exports them: any depth, told apart by their headers.

Files are grouped by patient and study.  A study with a PET is an examination; its CT is the one of the PET's frame of
reference, its labels are the study's segmentations and structure sets.  A study without a PET is passed by.
"""

import os
from collections import defaultdict
from pathlib import Path

from petscale.data.examination import Examination, Files, Tree
from petscale.data.layouts.options import Options
from storage.dicom_header import stated_study
from storage.errors import InputError
from storage.label_maps import LabelMap


def studies(root: Path, options: Options) -> Tree:
    """Find the studies below a folder by the headers of all its files.

    Raises:
        InputError: IMG_NO_FILE; SET_NO_PET where no study has a PET.
    """
    if not root.is_dir():
        raise InputError("IMG_NO_FILE", where=root.name, found="no such folder", remedy="name an existing folder")
    places: dict[tuple[str, str], list[tuple[Path, str]]] = defaultdict(list)
    passed_by: dict[str, str] = {}
    for folder, subfolders, below in os.walk(root):
        subfolders.sort()
        for name in sorted(below):
            path = Path(folder, name)
            about = stated_study(path)
            if about is None:
                continue
            patient, study, modality = about
            places[patient, study].append((path, modality))
    examinations = []
    for (patient, _), found in sorted(places.items(), key=lambda item: str(item[1][0][0])):
        shared = Path(os.path.commonpath([path.parent for path, _ in found]))
        where = shared.relative_to(root).as_posix()
        modalities = {modality for _, modality in found}
        if "PT" not in modalities:
            passed_by[where] = "no PET (" + ", ".join(sorted(modalities)) + " alone)"
            continue
        files = Files(
            pet=shared,
            ct=shared if "CT" in modalities else None,
            labels=tuple(LabelMap(path) for path, modality in found if modality in ("SEG", "RTSTRUCT")),
            grid=options.grid,
            other_grids=options.other_grids,
            overrides=options.overrides,
            frames=options.wanted,
            choices=options.choices(),
        )
        examinations.append(Examination(key=where if where != "." else root.name, files=files, patient=patient))
    if not examinations:
        raise InputError(
            "SET_NO_PET", where=root.name, found="no DICOM study with a PET", remedy="give the folder of the export"
        )
    return Tree(tuple(examinations), passed_by)
