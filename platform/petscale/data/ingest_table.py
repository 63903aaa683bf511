"""What an ingest shows in the end: a row per case that is new, and every note in a sentence."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from petscale.console import Terminal
from petscale.data.inspection import same_scan_lines
from storage import notes
from storage.errors import printable
from storage.reader import Case, open_cohort
from storage.source import HU, LABEL, SUV

HARMLESS = {"activity_scaled_to_suv"}  # what a user has asked for
PIPE_WIDTH = 200  # characters of a line where there is no terminal
ROWS = 40  # `petscale inspect --cases` has them all


def show_ingested(console: Console, cohort: Path, cases: Sequence[str], folders: Mapping[str, str]) -> None:
    """Print a table of cases: folder, case, SUV factor, voxel size, tracer, images, notes.

    The folder may name a patient: it is shown on the screen of whoever owns the files alone, and stored nowhere.

    Args:
        folders: case -> where its files are.
    """
    opened = open_cohort(cohort)
    table = Table(box=None, pad_edge=False)
    where = ("folder",) if console.is_terminal else ()  # what goes into a pipe is kept
    for column in (*where, "case", "SUV factor", "voxel size [mm]", "tracer", "images", "notes"):
        table.add_column(column, overflow="fold")
    for name in cases[:ROWS]:
        case = opened.case(name)
        told = {note: None for image in case.images for note in noted(case, image)}
        table.add_row(
            *([printable(folders.get(name, ""))] if where else []),
            name,
            _factor(case),
            " x ".join(f"{mm:.4g}" for mm in case.image(case.images[0]).grid.spacing_mm),
            _tracer(case),
            ", ".join(image for image in case.images if image != "body"),
            ", ".join(told),
        )
    wide = console if console.is_terminal else Terminal(file=console.file, highlight=False, width=PIPE_WIDTH)
    wide.print(table, markup=False)
    if len(cases) > ROWS:
        console.print(f"and {len(cases) - ROWS} more: petscale inspect --cases", markup=False)


def noted(case: Case, image: str) -> list[str]:
    """Return the notes of an image, that on reference times with the percentage of SUV that it is about."""
    facts = case.image(image).provenance
    spread = facts.get("reference_spread_percent")
    return [
        f"{name} ({spread:.3g} %)" if name.startswith("reference_spread") and isinstance(spread, float) else name
        for name in notes.of(facts)
        if name not in HARMLESS
    ]


def note_lines(cohort: Path, cases: Sequence[str]) -> list[str]:
    """Return what was noted of cases: each note once, with how many cases have it, and what it says."""
    found: dict[str, list[str]] = {}
    opened = open_cohort(cohort) if cases else None
    for case in cases:
        assert opened is not None
        for image in opened.case(case).images:
            for note in notes.of(opened.case(case).image(image).provenance):
                if note not in HARMLESS:
                    found.setdefault(f"{image}: {note}", []).append(case)
    return [
        f"note {note} ({len(names)} of {len(cases)} cases: {', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        + _said(note.partition(": ")[2])
        for note, names in found.items()
    ]


def repeated_lines(cohort: Path, cases: Sequence[str]) -> list[str]:
    """Return a line for every scan that is in the cohort twice, once at least by one of ``cases``."""
    if not cases:
        return []
    opened = open_cohort(cohort)
    held = {name: (opened.case(name).subject, opened.case(name).voxels) for name in opened.cases}
    new = {held[name][1] for name in cases}
    return [f"look at: {line}" for line in same_scan_lines({n: of for n, of in held.items() if of[1] in new})]


def _said(note: str) -> str:
    return f": {notes.sentence(note)}" if note in notes.NOTES else ""


def _factor(case: Case) -> str:
    """SUV per stored unit of the first PET, empty where the values were SUV already."""
    for image in case.images:
        factor = case.image(image).provenance.get("suv_per_unit")
        if case.image(image).units == SUV and isinstance(factor, float):
            return f"{factor:.5g}"
    return ""


def _tracer(case: Case) -> str:
    for image in case.images:
        if case.image(image).units not in (LABEL, HU):
            facts = case.image(image).provenance
            if known := facts.get("tracer") or facts.get("nuclide"):
                return str(known)
    return ""
