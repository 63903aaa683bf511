"""``petscale submission``: a folder of low-dose PET scans in Bq/mL in, the same names with estimated full doses out.

The folders are those of the Ultra-Low-Dose PET challenge's test sets: flat ``.nii.gz`` files and a CSV table with each
file's weight and dose.  A NIfTI file states neither, and a network starts from SUV.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petscale.batch import Work, make_all, read_record
from petscale.console import console
from petscale.data.ingest import Files, open_pet, suv_factor
from petscale.inference import Estimator, scratch_beside, synthesize_image
from storage import integrity, nifti, suv
from storage.errors import InputError, printable
from storage.source import HU, Dose

# Columns of the challenge's table of 2025; others are not read.
NAME, WEIGHT, DOSE = "NiftiFileName", "PatientWeight_kg", "RadionuclideTotalDose_Bq"
UNITS, CORRECTION = "ImageUnits", "DecayCorrection"
DELAY, HALF_LIFE = "TimeFromInjectionToAcquisition_s", "RadionuclideHalfLife_s"
DRF = "DoseReductionFactor"
SPACINGS = ("SliceThickness_mm", "PixelSpacing_y_mm", "PixelSpacing_x_mm")  # along (z, y, x)
SPACING_TOLERANCE = 0.01  # of a voxel's edge: the table's digits are rounded, a wrong column is off by far more


@dataclass(frozen=True)
class Entry:
    """What the table says of one file.

    Args:
        weight_kg: of the patient.
        dose_mbq: decayed to the time that the voxels are corrected to.
        spacing_mm: voxel edge lengths (z, y, x), NaN where the table has none.
        drf: dose reduction factor, NaN where the table has none.
    """

    weight_kg: float
    dose_mbq: float
    spacing_mm: tuple[float, float, float]
    drf: float


def submit_folder(estimator: Estimator, source: Path, output: Path, table: Path | None = None) -> list[Path]:
    """Synthesize every ``.nii.gz`` of a folder into another one, on the same grid and in Bq/mL.

    Run it again to continue: a file that is there whole, from the same weights and input, is kept.

    Args:
        estimator: a run that starts from low-dose PET, or several whose images are averaged.
        source: the folder of scans.
        output: a new folder, or one that this function has written to.
        table: CSV with a row per file; None for the only ``.csv`` in the source folder.

    Returns:
        The files of the output folder, by name.

    Raises:
        InputError: IMG_NO_FILE, TAB_ codes, PET_WEIGHT, PET_DOSE, PET_UNITS, SET_WRONG_UNITS, DISK_EXISTS before
            anything is synthesized; SET_REFUSED when some files were refused; what is wrong with the only one.
    """
    if estimator.on.units == HU:
        raise InputError(
            "SET_WRONG_UNITS",
            where=estimator.config.recipe,
            found="a run that starts from CT",
            remedy="use a run that was trained on low-dose PET",
        )
    scans = _scans(source)
    entries = read_table(table or _only_table(source), [scan.name for scan in scans])
    record = read_record(output, estimator.weights, [scan.name for scan in scans])
    return make_all(output, [_work(estimator, scan, entries[scan.name]) for scan in scans], record)


def _work(estimator: Estimator, scan: Path, entry: Entry) -> Work:
    wanted = {"input": integrity.file_digest(scan), "weight_kg": entry.weight_kg, "dose_mbq": entry.dose_mbq}
    return Work(scan.name, wanted, lambda place: _synthesize(estimator, scan, entry, place))


def read_table(path: Path, names: Sequence[str]) -> dict[str, Entry]:
    """Read what a table says of some files.

    Args:
        path: CSV with the columns of the challenge; of these, file name, weight and dose must be filled in.
        names: of the files.

    Raises:
        InputError: IMG_NO_FILE, TAB_UNREADABLE, TAB_NO_KEY, TAB_NO_MATCH, TAB_CELL; PET_WEIGHT, PET_DOSE, PET_UNITS,
            PET_NOT_DECAY_CORRECTED naming file and column.
    """
    rows = _rows(path)
    found = {}
    for name in names:
        mine = [row for row in rows if row[NAME] == name]
        if len(mine) != 1:
            raise InputError(
                "TAB_NO_MATCH",
                where=path.name,
                found=f"{len(mine) or 'no'} rows for {name}",
                remedy=f"give every file one row; column {NAME} holds its name",
            )
        found[name] = _entry(path.name, name, mine[0])
    return found


def _entry(table: str, name: str, row: Mapping[str, str]) -> Entry:
    where = f"{table}, {name}"
    if row.get(UNITS, "").upper() not in ("", "BQML", "BQ/ML"):
        raise InputError(
            "PET_UNITS", where=f"{where}, {UNITS}", found="another unit than BQML", remedy="give scans in Bq/mL"
        )
    numbers = {column: _number(where, column, row.get(column, "")) for column in (WEIGHT, DOSE, DELAY, HALF_LIFE)}
    for column, code in ((WEIGHT, "PET_WEIGHT"), (DOSE, "PET_DOSE")):
        if math.isnan(numbers[column]):
            raise InputError(
                code,
                where=f"{where}, {column}",
                found="missing, and this run starts from SUV",
                remedy="fill in the table; it is never guessed",
            )
    dose_bq = numbers[DOSE]
    correction = row.get(CORRECTION, "").upper() or "START"
    if correction == "START":
        dose_bq *= _decayed(where, numbers)
    elif correction != "ADMIN":
        raise InputError(
            "PET_NOT_DECAY_CORRECTED",
            where=f"{where}, {CORRECTION}",
            found="neither START nor ADMIN",
            remedy="give decay-corrected scans",
        )
    suv.suv_factor_decay_corrected(numbers[WEIGHT], dose_bq)  # refuses what no patient has
    z, y, x = (_number(where, column, row.get(column, "")) for column in SPACINGS)
    return Entry(numbers[WEIGHT], dose_bq / 1e6, (z, y, x), _number(where, DRF, row.get(DRF, "")))


def _decayed(where: str, numbers: Mapping[str, float]) -> float:
    """The part of the dose that is left at the start of the scan, which voxels of START are corrected to."""
    for column in (DELAY, HALF_LIFE):
        if not numbers[column] >= (1.0 if column == HALF_LIFE else 0.0):
            raise InputError(
                "PET_DOSE",
                where=f"{where}, {column}",
                found="missing or impossible, and the dose must be decayed to the start of the scan",
                remedy=f"fill in the table, or say ADMIN in {CORRECTION} for a dose at the time of the voxels",
            )
    return suv.decay(numbers[DELAY], numbers[HALF_LIFE])


def _number(where: str, column: str, text: str) -> float:
    if not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise InputError("TAB_CELL", where=f"{where}, {column}", found="no number", remedy="correct the table")
    return value


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise InputError("IMG_NO_FILE", where=path.name, found="no such table", remedy="name a CSV file by --table")
    try:
        text = path.read_text("utf-8-sig")
    except ValueError:
        raise InputError("TAB_UNREADABLE", where=path.name, found="not UTF-8 text", remedy="save it as CSV") from None
    reader = csv.DictReader(io.StringIO(text), restval="")
    columns = reader.fieldnames or []
    if NAME not in columns:
        raise InputError(
            "TAB_NO_KEY",
            where=path.name,
            found=f"no column {NAME}",
            remedy=f"give the columns {NAME}, {WEIGHT} and {DOSE}",
        )
    return [{str(column): (row[column] or "").strip() for column in columns} for row in reader]


def _scans(source: Path) -> list[Path]:
    scans = sorted(path for path in source.glob("*.nii.gz") if path.is_file()) if source.is_dir() else []
    if not scans:
        raise InputError(
            "IMG_NO_FILE",
            where=source.name,
            found="no .nii.gz file in this folder",
            remedy="name the folder that holds the scans, not their archive",
        )
    return scans


def _only_table(source: Path) -> Path:
    tables = sorted(source.glob("*.csv"))
    if len(tables) != 1:
        raise InputError(
            "IMG_NO_FILE",
            where=source.name,
            found=f"{len(tables) or 'no'} .csv files in this folder",
            remedy="name the table with weights and doses by --table",
        )
    return tables[0]


def _synthesize(estimator: Estimator, scan: Path, entry: Entry, place: Path) -> None:
    """One file; it appears only when it is whole."""
    overrides = suv.Overrides(weight_kg=entry.weight_kg, dose_mbq=entry.dose_mbq)
    files = Files(pet=scan, units="Bq/mL", units_from="layout", overrides=overrides)
    with scratch_beside(place) as scratch:
        source, _ = open_pet(files, scratch)
        for sentence in _other_spacing(entry, source.grid.spacing_mm):
            console.print(f"warning: {printable(scan.name)}: {sentence}", markup=False, soft_wrap=True)
        dose = Dose(entry.drf, "thinned", None)
        result = synthesize_image(estimator, source, scratch, where=scan.name, dose=dose).mean
        factor = np.float32(suv_factor(files))
        nifti.write_nifti(place, source.grid, lambda z0, z1: result.read(z0, z1) / factor)


def _other_spacing(entry: Entry, spacing_mm: Sequence[float]) -> Iterator[str]:
    for column, told, real in zip(SPACINGS, entry.spacing_mm, spacing_mm, strict=True):
        if abs(told / real - 1) > SPACING_TOLERANCE:
            yield f"{column} {told:g} in the table, {real:g} in the file's header, which is used"
