"""What would be ingested, before anything is written: told from headers alone."""

import math
from collections.abc import Mapping, Sequence

from petscale.data import frames
from petscale.data.examination import Files, Tree
from petscale.data.ingest import check_grid, is_nifti, label_files, open_other, open_pet_series, suv_factor
from petscale.data.sources import Named
from storage import nifti
from storage.errors import InputError
from storage.ingest import site_key, subject_hash
from storage.layout import dose_attribute
from storage.source import Dose, Grid, ImageSource


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
            grid, tracer, patient, notes, doses = _look(about.files)
        except InputError as error:
            refused += 1
            lines += [f"{one.case}  {about.key}", f"    images   {_images(about.files, {})}", f"    refused  {error}"]
            continue
        known = patient or about.patient
        who = f"patient {subject_hash(known, site_key())[:6]}" if known else "patient unknown: give --patient"
        lines += [f"{one.case}  {about.key}  {who}", f"    images   {_images(about.files, doses)}"]
        lines.append(f"    grid     {grid}" + (f"; {tracer}" if tracer else ""))
        lines += [f"    note     {note}" for note in (*about.doubts, *notes)]
    for left in tree.examinations:
        if left.excluded:
            lines.append(f"left out     {left.key}: {left.excluded}")
    lines += [f"passed by    {place.strip()}: {why}" for place, why in tree.passed_by.items()]
    return lines, refused


def _look(files: Files) -> tuple[str, str, str, list[str], Mapping[str, Dose]]:
    """Grid, tracer, patient and notes of an examination by its headers; and the PETs that are made of its frames.

    Raises:
        InputError: what is wrong with a header.
    """
    if is_nifti(files.pet):
        suv_factor(files)
        tracer = files.tags.get("tracer", "")
        if files.frames:
            expected = frames.expect_nifti(files)
            return _grid(expected.grid), tracer, "", [], expected.doses
        try:
            grid = nifti.grid_of(files.pet)
        except InputError as error:
            raise frames.with_durations(error, files) from None
        for other in files.others:
            check_grid(files, other, nifti.grid_of(other.path), grid)
        return _grid(grid), tracer, "", [], {}
    if files.frames:
        opened = frames.open_dicom(files)
        return *_seen(opened.images[files.name]), opened.patient, _notes(opened.images[files.name]), opened.doses
    series = open_pet_series(files)
    for other in files.others:
        check_grid(files, other, open_other(files, other, series, files.pet).grid, series.grid)
    return *_seen(series), series.patient_id, _notes(series), {}


def _seen(source: ImageSource) -> tuple[str, str]:
    """Grid and tracer of a DICOM series."""
    return _grid(source.grid), str(source.provenance.get("tracer") or source.provenance.get("nuclide") or "")


def _notes(source: ImageSource) -> list[str]:
    notes = source.provenance["notes"]
    assert isinstance(notes, list)
    return notes


def _grid(grid: Grid) -> str:
    voxels, sizes = (" x ".join(f"{n:.4g}" for n in numbers) for numbers in (grid.shape, grid.spacing_mm))
    return f"{voxels} voxels (z, y, x) of {sizes} mm"


def _images(files: Files, of_frames: Mapping[str, Dose]) -> str:
    doses = of_frames or {files.name: files.dose, **{other.name: other.dose for other in files.others}}
    listed = [_dose(name, dose) for name, dose in doses.items()]
    listed += ["ct"] if files.ct is not None else []
    listed += ["labels"] if label_files(files) or files.boxes is not None else []
    return ", ".join(listed)


def _dose(name: str, dose: Dose) -> str:
    facts = dose_attribute(dose)
    if facts is None or dose.relation == "full":
        return name
    return f"{name} (DRF {'unknown' if math.isnan(dose.drf) else f'{dose.drf:g}'}, {dose.relation})"
