"""Lung-PET-CT-Dx as downloaded from TCIA: DICOM studies, boxes around tumours in XML files, cancer types by letter.

    manifest-<n>/Lung-PET-CT-Dx/Lung_Dx-A0001/<study>/<series>/1-13.dcm
    Annotation/A0001/<SOPInstanceUID of a CT slice>.xml                  Pascal VOC: xmin, ymin, xmax, ymax in pixels

Most subjects have a CT alone: these are passed by and counted.  Fused series are no PET and no CT, and are skipped.
"""

import re
from dataclasses import replace
from pathlib import Path

from petscale.data.examination import Examination, Tree
from petscale.data.layouts.options import Options
from petscale.data.layouts.study import studies

SUBJECT = re.compile(r"(?:Lung_Dx-)?(?P<subject>(?P<letter>[ABEG])\d{4})")
CANCER = {"A": "adenocarcinoma", "B": "small_cell", "E": "large_cell", "G": "squamous_cell"}


def lung(root: Path, options: Options) -> Tree:
    """Find the studies that have a PET, with their subject's boxes and cancer type.

    Raises:
        InputError: IMG_NO_FILE, SET_NO_PET.
    """
    tree = studies(root, options)
    boxes = {
        match["subject"]: folder
        for base in (root, root.parent)
        for folder in sorted([*base.glob("Annotation*/*"), *base.glob("*/Annotation*/*")])
        if folder.is_dir() and (match := SUBJECT.fullmatch(folder.name))
    }
    return replace(tree, examinations=tuple(_with_boxes(one, boxes) for one in tree.examinations))


def _with_boxes(one: Examination, boxes: dict[str, Path]) -> Examination:
    match = next((found for part in one.key.split("/") if (found := SUBJECT.fullmatch(part))), None)
    if match is None:
        return replace(one, doubts=(*one.doubts, "no folder is named as a subject of Lung-PET-CT-Dx"))
    files = replace(one.files, boxes=boxes.get(match["subject"]), tags={"cancer": CANCER[match["letter"]]})
    doubts = () if match["subject"] in boxes else ("no annotation",)
    return replace(one, files=files, doubts=(*one.doubts, *doubts))
