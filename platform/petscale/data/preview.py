"""What would be ingested, before anything is written: told from headers alone."""

import math
from collections.abc import Sequence

from petscale.data.examination import Files, Tree
from petscale.data.ingest import check_grid, is_nifti, label_files, open_other, open_pet_series, suv_factor
from petscale.data.sources import Named
from storage import nifti
from storage.errors import InputError
from storage.ingest import site_key, subject_hash
from storage.layout import dose_attribute
from storage.source import Dose, Grid


def preview(named: Sequence[Named], tree: Tree) -> tuple[list[str], int]:
    """Return lines that tell the examinations as they would be ingested, and how many would be refused.

    Headers are read and voxels are not: damage inside a file shows when it is ingested.  Folders are named as they are,
    so that each can be found: the lines are for the screen, not for a file that is kept.
    """
    lines: list[str] = []
    refused = 0
    for one in named:
        about = one.examination
        try:
            grid, tracer, patient, notes = _look(about.files)
        except InputError as error:
            refused += 1
            lines += [f"{one.case}  {about.key}", f"    images   {_images(about.files)}", f"    refused  {error}"]
            continue
        known = patient or about.patient
        who = f"patient {subject_hash(known, site_key())[:6]}" if known else "patient unknown: give --patient"
        lines += [f"{one.case}  {about.key}  {who}", f"    images   {_images(about.files)}"]
        lines.append(f"    grid     {grid}" + (f"; {tracer}" if tracer else ""))
        lines += [f"    note     {note}" for note in (*about.doubts, *notes)]
    for left in tree.examinations:
        if left.excluded:
            lines.append(f"left out     {left.key}: {left.excluded}")
    lines += [f"passed by    {place.strip()}: {why}" for place, why in tree.passed_by.items()]
    return lines, refused


def _look(files: Files) -> tuple[str, str, str, list[str]]:
    """Grid, tracer, patient and notes of an examination by its headers.

    Raises:
        InputError: what is wrong with a header.
    """
    if is_nifti(files.pet):
        suv_factor(files)
        grid = nifti.grid_of(files.pet)
        for other in files.others:
            check_grid(files, other, nifti.grid_of(other.path), grid)
        return _grid(grid), files.tags.get("tracer", ""), "", []
    series = open_pet_series(files)
    for other in files.others:
        check_grid(files, other, open_other(files, other, series, files.pet).grid, series.grid)
    notes = series.provenance["notes"]
    assert isinstance(notes, list)
    tracer = str(series.provenance.get("tracer") or series.provenance.get("nuclide") or "")
    return _grid(series.grid), tracer, series.patient_id, notes


def _grid(grid: Grid) -> str:
    voxels, sizes = (" x ".join(f"{n:.4g}" for n in numbers) for numbers in (grid.shape, grid.spacing_mm))
    return f"{voxels} voxels (z, y, x) of {sizes} mm"


def _images(files: Files) -> str:
    listed = [_dose(files.name, files.dose), *(_dose(other.name, other.dose) for other in files.others)]
    listed += ["ct"] if files.ct is not None else []
    listed += ["labels"] if label_files(files) or files.boxes is not None else []
    return ", ".join(listed)


def _dose(name: str, dose: Dose) -> str:
    facts = dose_attribute(dose)
    if facts is None or dose.relation == "full":
        return name
    return f"{name} (DRF {'unknown' if math.isnan(dose.drf) else f'{dose.drf:g}'}, {dose.relation})"
