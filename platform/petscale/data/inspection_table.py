"""What ``petscale inspect`` shows on a terminal: tables of an inspection, and what should be looked at below them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from petscale.console import Terminal
from petscale.data.inspection import RULE, Inspection
from storage.notes import NOTES, sentence
from storage.source import SUV

PIPE_WIDTH = 160  # characters of a line where there is no terminal
WORST = 20  # outliers that are shown; a file holds all
GRIDS = 8  # grids that are shown, those of most cases; --cases shows every case's


def screen() -> Console:
    """Return what a command's result is printed on: standard output, also a pipe, without cutting names."""
    console = Terminal(highlight=False)
    return console if console.is_terminal else Terminal(highlight=False, width=PIPE_WIDTH)


def show(inspection: Inspection, console: Console, *, each: bool) -> None:
    """Print an inspection; ``each`` adds a line per case."""
    found = inspection.summary()
    console.print(f"{found['cohort']}: {found['cases']} cases of {found['patients']} patients", markup=False)
    console.print()
    _print(console, _images(found["images"]))
    _print(console, _grids(found["grids"]))
    for title, counts in (("label", found["labels"]), ("fact", found["tags"])):
        _print(console, _counts(title, counts))
    _print(console, _notes(found["notes"]))
    if each:
        _print(console, _cases(inspection))
    if inspection.outliers:
        _print(console, _outliers(inspection))
        console.print(f"outlier: {RULE}", markup=False)
    for doubt in inspection.doubts:
        console.print(f"look at: {doubt}", markup=False, soft_wrap=True)


def _print(console: Console, table: Table) -> None:
    if table.row_count:
        console.print(table, markup=False)
        console.print()


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _images(images: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("image", "cases", "unit", "dose", "tracer", "scanner", "min, mean, max (lowest to highest)", "noise")
    for name, told in images.items():
        held = dict(told.get("statistics", {}))
        usual = ", ".join(_range(held.pop(key)) for key in ("min", "mean", "max") if key in held)
        tracers = told.get("tracers", {})
        known = tracers if set(tracers) != {"unknown"} else told.get("nuclides", {})
        table.add_row(
            name,
            str(told["cases"]),
            _listed(told["units"]),
            "; ".join(_dose(dose, told["cases"]) for dose in told.get("doses", ())),
            _listed(known) if SUV in told["units"] else "",
            _listed(told.get("scanners", {})),
            usual,
            ", ".join(f"{key} {_range(value)}" for key, value in held.items()),
        )
    return table


def _range(values: Mapping[str, float]) -> str:
    low, high = f"{values['lowest']:.3g}", f"{values['highest']:.3g}"
    return low if low == high else f"{low} to {high}"


def _listed(counts: Mapping[str, int]) -> str:
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{value} ({n})" for value, n in counts.items())


def _dose(dose: Mapping[str, Any], cases: int) -> str:
    """``DRF 20, simulated, shares noise``: with the number of cases where it is not that of all."""
    told = "no dose"
    if "relation" in dose:
        drf = "unknown DRF" if dose["drf"] is None else f"DRF {dose['drf']:g}"
        noise = {None: "", True: ", shares noise", False: ", noise of its own"}[dose["shares_noise"]]
        told = f"{drf}, {dose['relation']}{noise}"
    return told if dose["cases"] == cases else f"{told} ({dose['cases']})"


def _grids(grids: Sequence[Mapping[str, Any]]) -> Table:
    """The grids that most cases have; of crops each has its own."""
    table = _table("voxels (z, y, x)", "voxel size [mm]", "cases")
    for grid in grids[:GRIDS]:  # the most common come first
        size = " x ".join(f"{mm:g}" for mm in grid["spacing_mm"])
        table.add_row(" x ".join(map(str, grid["voxels"])), size, str(grid["cases"]))
    if rest := grids[GRIDS:]:
        table.add_row(f"{len(rest)} other grids: --cases", "", str(sum(grid["cases"] for grid in rest)))
    return table


def _counts(title: str, counts: Mapping[str, int]) -> Table:
    table = _table(title, "cases")
    for name, count in counts.items():
        table.add_row(name, str(count))
    return table


def _notes(notes: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("note", "cases", "", "what it says")
    for name, told in notes.items():
        largest = f"largest {told['largest_percent']:.3g} %" if "largest_percent" in told else ""
        table.add_row(name, str(told["cases"]), largest, sentence(name) if name in NOTES else "")
    return table


def _cases(inspection: Inspection) -> Table:
    table = _table("case", "patient", "voxels (z, y, x)", "voxel size [mm]", "images", "labels", "notes")
    for case in inspection.cases:
        table.add_row(
            case.case,
            case.subject,
            " x ".join(map(str, case.shape)),
            " x ".join(f"{mm:g}" for mm in case.spacing_mm),
            ", ".join(case.images),
            str(len(case.labels)),
            ", ".join(dict.fromkeys(note for image in case.images.values() for note in image.notes)),
        )
    return table


def _outliers(inspection: Inspection) -> Table:
    table = _table("outlier", "fact", "value", "median", "score")
    for one in inspection.outliers[:WORST]:
        table.add_row(one.case, one.fact, f"{one.value:.4g}", f"{one.median:.4g}", f"{one.score:g}")
    if len(inspection.outliers) > WORST:
        table.add_row(f"and {len(inspection.outliers) - WORST} more: --json", "", "", "", "")
    return table
