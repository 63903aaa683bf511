"""The page of ``petscale inspect --page``: a cohort's facts, and pictures of every case, in one HTML file."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from petscale.console import Terminal, bar
from petscale.data.inspection import Inspection
from petscale.data.inspection_table import PIPE_WIDTH, show
from petscale.reporting.pictures import BONE_HU, GREY, anterior_mip, coronal_slice
from petscale.reporting.templates import template
from petscale.training.pictures import CT_HU
from storage.integrity import write_bytes
from storage.reader import Case, open_cohort
from storage.source import HU, LABEL

WINDOW_SUV = (0.0, 7.0)


@dataclass(frozen=True)
class Pictured:
    """One image of a case: its name, its unit, and two pictures as PNG data URIs."""

    name: str
    units: str
    mip: str
    slice: str


def write_cohort_page(path: Path, cohort: Path, inspection: Inspection) -> None:
    """Write the page; every PET and CT of the cohort is read once per picture, slab by slab.

    Pictures: anterior MIP and the coronal slice through the middle of the grid, patient's right on the left; PET in SUV
    0 (white) to 7 (black), CT in HU.

    Raises:
        InputError: STORE_DAMAGED, DISK_FULL.
    """
    opened = open_cohort(cohort)
    pictured = {}
    with bar("pictures", len(inspection.cases)) as advance:
        for number, case in enumerate(inspection.cases):
            advance(number, case.case)
            pictured[case.case] = list(_pictures(opened.case(case.case)))
        advance(len(inspection.cases), "")
    console = Terminal(record=True, highlight=False, width=PIPE_WIDTH, file=io.StringIO())
    show(inspection, console, each=False)
    text = template("cohort.html.j2").render(title=inspection.cohort, told=console.export_text(), cases=pictured)
    write_bytes(path, text.encode())


def _pictures(case: Case) -> Iterator[Pictured]:
    for name in case.images:
        image = case.image(name)
        if image.units == LABEL:
            continue
        projected, sliced = (BONE_HU, CT_HU) if image.units == HU else (WINDOW_SUV, WINDOW_SUV)
        colours = "gray" if image.units == HU else GREY
        yield Pictured(
            name, image.units, anterior_mip(image, projected, colours), coronal_slice(image, sliced, colours)
        )
