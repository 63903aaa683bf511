"""What would be ingested, before anything is written: a table from headers alone."""

import math
from collections.abc import Sequence

from rich.table import Table

from petscale.data.examination import Files, Tree
from petscale.data.ingest import is_nifti
from petscale.data.sources import Named
from storage import dicom, nifti
from storage.errors import InputError
from storage.ingest import site_key, subject_hash
from storage.layout import dose_attribute
from storage.source import Dose, Grid


def preview(named: Sequence[Named], tree: Tree) -> tuple[Table, int]:
    """Return the table of examinations as they would be ingested, and how many would be refused.

    Headers are read and voxels are not: damage inside a file shows when it is ingested.
    """
    table = Table("case", "where", "patient", "images", "grid (z, y, x), mm", "tracer", "notes", title_justify="left")
    refused = 0
    for one in named:
        about = one.examination
        try:
            grid, tracer, patient, notes = _look(about.files)
        except InputError as error:
            refused += 1
            table.add_row(one.case, about.key, "", _images(about.files), "", "", f"refused: {error}")
            continue
        who = subject_hash(patient or about.patient, site_key())[:6] if patient or about.patient else "unknown"
        table.add_row(one.case, about.key, who, _images(about.files), grid, tracer, "; ".join([*about.doubts, *notes]))
    for left in tree.examinations:
        if left.excluded:
            table.add_row("", left.key, "", _images(left.files), "", "", f"left out: {left.excluded}")
    for place, why in tree.passed_by.items():
        table.add_row("", place, "", "", "", "", f"passed by: {why}")
    return table, refused


def _look(files: Files) -> tuple[str, str, str, list[str]]:
    """Grid, tracer, patient and notes of an examination by its headers.

    Raises:
        InputError: what is wrong with a header.
    """
    for other in files.others:
        if is_nifti(other.path):
            nifti.grid_of(other.path)
    if is_nifti(files.pet):
        return _grid(nifti.grid_of(files.pet)), files.tags.get("tracer", ""), "", []
    series = dicom.open_series(
        files.pet,
        modality="PT",
        overrides=files.overrides,
        stated=files.stated.for_header(),
        choice=files.choices.get("pet", ""),
    )
    notes = series.provenance["notes"]
    assert isinstance(notes, list)
    tracer = str(series.provenance.get("tracer") or series.provenance.get("nuclide") or "")
    return _grid(series.grid), tracer, series.patient_id, notes


def _grid(grid: Grid) -> str:
    voxels = " x ".join(str(n) for n in grid.shape)
    return f"{voxels}, " + " x ".join(f"{mm:.3g}" for mm in grid.spacing_mm)


def _images(files: Files) -> str:
    listed = [_dose(files.name, files.dose), *(_dose(other.name, other.dose) for other in files.others)]
    listed += ["ct"] if files.ct is not None else []
    listed += ["labels"] if files.mask is not None or files.boxes is not None else []
    return ", ".join(listed)


def _dose(name: str, dose: Dose) -> str:
    facts = dose_attribute(dose)
    if facts is None or dose.relation == "full":
        return name
    return f"{name} (DRF {'unknown' if math.isnan(dose.drf) else f'{dose.drf:g}'}, {dose.relation})"
