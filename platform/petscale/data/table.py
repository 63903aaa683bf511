"""Tables about examinations (CSV, TSV, XLSX): weight, dose, times, DRF, fold, exclusion, each cell checked.

A column is found by its name, whatever its case and punctuation; a unit that the name states is used.  A row is about
one examination, one file of it, or all of one patient's.
"""

import csv
import datetime
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from petscale.data.examination import Examination, Files, OtherPet, Stated, Tree
from petscale.data.ingest import is_nifti
from storage import nifti
from storage.errors import InputError
from storage.source import BQML, SUV, Dose
from storage.suv import CONTRADICTION, DOSE_BQ, MBQ_PER_MCI, NUCLIDES, WEIGHT_KG

EMPTY = {"", "na", "n/a", "nan", "null", "-"}  # not "none", which DICOM says of a correction
MAX_ROWS = 1_000_000

# Our name of a value -> names of columns that hold it, in lower case without punctuation.
COLUMNS = {
    "patient": ("patient", "patientid", "participantid", "participant", "subject", "subjectid"),
    "case": ("case", "caseid", "examination", "study", "studyid", "session", "folder"),
    "file": ("file", "filename", "niftifilename", "path"),
    "weight_kg": ("weightkg", "weight", "patientweightkg", "patientweight", "bodyweight", "bodyweightkg"),
    "weight_g": ("weightg", "patientweightg"),
    "dose_mbq": ("dosembq", "injecteddosembq", "injectedradioactivitymbq", "injectedactivitymbq", "activitymbq"),
    "dose_bq": ("dosebq", "injecteddosebq", "radionuclidetotaldosebq", "radionuclidetotaldose", "activitybq"),
    "dose_mci": ("dosemci", "injecteddosemci", "activitymci"),
    "dose": ("dose", "injecteddose", "injectedradioactivity", "injectedactivity", "activity"),
    "injection_time": ("injectiontime", "timeofinjection", "injection", "injectiondatetime"),
    "scan_time": ("scantime", "acquisitiontime", "scanstart", "timeofscan", "referencetime", "scandatetime"),
    "uptake_s": ("uptakes", "timefrominjectiontoacquisitions", "uptaketimes"),
    "uptake_min": ("uptakemin", "uptaketimemin", "uptakeminutes", "timefrominjectiontoacquisitionmin"),
    "half_life_s": ("halflifes", "radionuclidehalflifes", "radionuclidehalflife", "halflife"),
    "nuclide": ("nuclide", "radionuclide", "isotope", "tracerradionuclide"),
    "drf": ("drf", "dosereductionfactor", "dosereduction"),
    "decay_correction": ("decaycorrection", "decaycorrected"),
    "units": ("units", "unit", "imageunits"),
    "spacing_z_mm": ("slicethicknessmm", "slicethickness", "spacingzmm"),
    "spacing_y_mm": ("pixelspacingymm", "spacingymm"),
    "spacing_x_mm": ("pixelspacingxmm", "spacingxmm"),
    "fold": ("fold", "split"),
    "exclude": ("exclude", "excluded", "exclusion"),
    "tag_cancer": ("cancer", "cancertype", "diagnosis"),
    "tag_sex": ("sex", "gender", "patientsex"),
}
KEYS = ("file", "case", "patient")


@dataclass(frozen=True)
class Row:
    """One row of a table: our names -> checked values; ``number`` as a spreadsheet counts, the header being 1."""

    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table's rows.

    Args:
        name: of its file.
        rows: at least one.
        ignored: columns that mean nothing to petscale.
    """

    name: str
    rows: tuple[Row, ...]
    ignored: tuple[str, ...]


def read_table(path: Path) -> Table:
    """Read and check a table.

    Args:
        path: a ``.csv`` (comma or semicolon), ``.tsv``/``.txt`` (tab) or ``.xlsx`` file, its first row the names.

    Raises:
        InputError: IMG_NO_FILE, TAB_UNREADABLE, TAB_NO_KEY, TAB_COLUMN_TWICE, TAB_CELL.
    """
    if not path.is_file():
        raise InputError("IMG_NO_FILE", where=path.name, found="no such table", remedy="check the path of --table")
    lines = _workbook(path) if path.suffix.lower() == ".xlsx" else _text(path)
    head = next(iter(lines), [])
    found: dict[int, str] = {}
    ignored = []
    for place, title in enumerate(head):
        name = _meaning(title)
        if not name:
            ignored += [title] if title.strip() else []
        elif name in found.values():
            raise InputError(
                "TAB_COLUMN_TWICE",
                where=path.name,
                found=f"two columns for {name}",
                remedy="keep one of them, or rename the other",
            )
        else:
            found[place] = name
    if not {*KEYS} & {*found.values()}:
        raise InputError(
            "TAB_NO_KEY",
            where=path.name,
            found="no column that tells which examination a row is about",
            remedy="name a column patient (or participant_id), case or file",
        )
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = {name: line[place].strip() for place, name in found.items() if place < len(line)}
        if values := _values(path.name, number, cells):
            rows.append(Row(number, values))
    if not rows:
        raise InputError("TAB_UNREADABLE", where=path.name, found="no row below its header", remedy="fill it in")
    return Table(path.name, tuple(rows), tuple(ignored))


def _text(path: Path) -> list[list[str]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_bytes().decode("latin-1")  # what a spreadsheet writes where it was not asked
    first = text.split("\n", 1)[0]
    separator = max("\t;,", key=first.count)
    try:
        lines = list(csv.reader(io.StringIO(text), delimiter=separator, strict=True))
    except csv.Error:
        raise _unreadable(path, "quotes or lines that do not end") from None
    if "\0" in text or len(lines) > MAX_ROWS:
        raise _unreadable(path, "no table of text")
    return [line for line in lines if any(cell.strip() for cell in line)]


def _workbook(path: Path) -> list[list[str]]:
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = [[_cell_text(cell) for cell in row] for row in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
    except Exception:  # a zip of XML can be damaged in any way its parsers know an error for
        raise _unreadable(path, "no workbook that can be opened") from None
    return [row for row in rows if any(cell.strip() for cell in row)]


def _cell_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _unreadable(path: Path, found: str) -> InputError:
    return InputError("TAB_UNREADABLE", where=path.name, found=found, remedy="save it as CSV, TSV or XLSX again")


def _meaning(title: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", title.lower())
    return next((name for name, titles in COLUMNS.items() if plain in titles), "")


# ---- cells ----------------------------------------------------------------------------------------------------------


def _values(table: str, number: int, cells: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in cells.items():
        if text.lower() in EMPTY:
            continue
        try:
            values |= PARSERS.get(name, _as_text)(name, text)
        except ValueError as error:
            raise InputError(
                "TAB_CELL",
                where=f"{table} row {number}, column {name}",
                found=str(error),
                remedy="correct the cell, or empty it where the value is not known",
            ) from None
    return values


def _number(text: str) -> float:
    plain = text.replace(" ", "")
    if re.fullmatch(r"[+-]?\d+,\d+", plain):  # a decimal comma; thousands are written by nobody here
        plain = plain.replace(",", ".")
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", plain):
        raise ValueError("no number")
    return float(plain)


def _within(value: float, low: float, high: float, unit: str) -> float:
    if not low <= value <= high:
        raise ValueError(f"a value outside {low:g} to {high:g} {unit}")
    return value


def _as_text(name: str, text: str) -> dict[str, Any]:
    return {name: text}


def _weight(name: str, text: str) -> dict[str, Any]:
    return {"weight_kg": _within(_number(text) / (1000.0 if name == "weight_g" else 1.0), *WEIGHT_KG, "kg")}


def _dose(name: str, text: str) -> dict[str, Any]:
    """A dose whose column names no unit is in Bq or MBq: the two ranges of a patient's dose do not overlap."""
    value = _number(text)
    low, high = (edge / 1e6 for edge in DOSE_BQ)
    if name == "dose":
        name = "dose_bq" if value > high else "dose_mbq"
    factor = {"dose_mbq": 1.0, "dose_bq": 1e-6, "dose_mci": MBQ_PER_MCI}[name]
    return {"dose_mbq": _within(value * factor, low, high, "MBq")}


def _time(name: str, text: str) -> dict[str, Any]:
    for read in (datetime.time.fromisoformat, datetime.datetime.fromisoformat):
        try:
            read(text)
        except ValueError:
            continue
        return {name: text}
    raise ValueError("neither HH:MM[:SS] nor an ISO date-time")


def _duration(name: str, text: str) -> dict[str, Any]:
    seconds = _number(text) * (60.0 if name == "uptake_min" else 1.0)
    return {"uptake_s": _within(seconds, 0.0, 86400.0, "s")}


def _half_life(name: str, text: str) -> dict[str, Any]:
    return {name: _within(_number(text), 10.0, 1e8, "s")}


def _nuclide(name: str, text: str) -> dict[str, Any]:
    letters, digits = re.sub(r"[^A-Za-z]", "", text), re.sub(r"[^0-9]", "", text)
    known = next((known for known in NUCLIDES if known.upper() == f"{letters}-{digits}".upper()), None)
    if known is None:
        raise ValueError("no positron emitter that petscale knows (F-18, Ga-68, ...)")
    return {"half_life_s": NUCLIDES[known][0]}


def _drf(name: str, text: str) -> dict[str, Any]:
    return {name: _within(_number(text.upper().removeprefix("DRF").lstrip("_- ")), 1.0, 1e4, "")}


def _correction(name: str, text: str) -> dict[str, Any]:
    """DICOM's words: START, to which the dose is decayed by the uptake time; ADMIN, to which it need not be."""
    if text.upper() not in ("START", "ADMIN"):
        raise ValueError("neither START nor ADMIN: voxels that are not decay-corrected")
    return {name: text.upper()}


def _units(name: str, text: str) -> dict[str, Any]:
    known = {"bqml": BQML, "bqcc": BQML, "suv": SUV, "suvbw": SUV, "gml": SUV}
    plain = re.sub(r"[^a-z]", "", text.lower())
    if plain not in known:
        raise ValueError("neither Bq/mL nor SUV")
    return {name: known[plain]}


def _spacing(name: str, text: str) -> dict[str, Any]:
    return {name: _within(_number(text), 1e-3, 1e3, "mm")}


def _fold(name: str, text: str) -> dict[str, Any]:
    value = _number(text)
    if value != int(value) or not 0 <= value < 1000:
        raise ValueError("no whole number from 0 to 999")
    return {name: int(value)}


def _exclude(name: str, text: str) -> dict[str, Any]:
    if text.lower() in ("0", "no", "false", "n"):
        return {}
    return {name: "the table excludes it"}


def _tag(name: str, text: str) -> dict[str, Any]:
    plain = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    if not plain or len(plain) > 40:
        raise ValueError("no short word")
    return {name: plain}


PARSERS: Mapping[str, Callable[[str, str], dict[str, Any]]] = {
    "weight_kg": _weight,
    "weight_g": _weight,
    "dose_mbq": _dose,
    "dose_bq": _dose,
    "dose_mci": _dose,
    "dose": _dose,
    "injection_time": _time,
    "scan_time": _time,
    "uptake_s": _duration,
    "uptake_min": _duration,
    "half_life_s": _half_life,
    "nuclide": _nuclide,
    "drf": _drf,
    "decay_correction": _correction,
    "units": _units,
    "spacing_z_mm": _spacing,
    "spacing_y_mm": _spacing,
    "spacing_x_mm": _spacing,
    "fold": _fold,
    "exclude": _exclude,
    "tag_cancer": _tag,
    "tag_sex": _tag,
}


# ---- rows and examinations ------------------------------------------------------------------------------------------


def apply_table(tree: Tree, table: Table) -> Tree:
    """Give every examination what the table says of it.

    Raises:
        InputError: TAB_NO_MATCH where no row is about any examination; TAB_AMBIGUOUS where rows about one examination
            say different things.
    """
    used: set[int] = set()
    examinations = []
    for one in tree.examinations:
        rows = _rows_about(one, table.rows)
        used |= {row.number for row in rows}
        examinations.append(_told(one, rows, table.name) if rows else one)
    if not used:
        raise InputError(
            "TAB_NO_MATCH",
            where=table.name,
            found=f"none of its {len(table.rows)} rows is about one of the {len(tree.examinations)} examinations",
            remedy="let its patient, case or file column hold the names of folders or files below the source",
        )
    without = [one.key for one in examinations if not one.excluded and not _rows_about(one, table.rows)]
    passed_by = dict(tree.passed_by)
    if unused := len(table.rows) - len(used):
        passed_by[table.name] = f"{unused} rows are about no examination here"
    if without:
        passed_by[f"{table.name} "] = f"says nothing of {len(without)} examinations"
    return Tree(tuple(examinations), passed_by)


def _names(one: Examination) -> dict[str, set[str]]:
    """What a row may call the examination, by column."""
    files = one.files
    paths = [files.pet, *(other.path for other in files.others)]
    parts = {one.key, *one.key.split("/")}
    bare = {re.sub(r"\.nii(\.gz)?$", "", path.name) for path in paths}
    return {
        "file": {path.name for path in paths} | bare,
        "case": parts,
        "patient": {one.patient} if one.patient else parts,
    }


def _rows_about(one: Examination, rows: Iterable[Row]) -> list[Row]:
    """The rows whose every key that is filled in names the examination."""
    names = _names(one)

    def about(row: Row) -> bool:
        keys = [key for key in KEYS if key in row.values]
        return bool(keys) and all(_matches(str(row.values[key]), names[key], key) for key in keys)

    return [row for row in rows if about(row)]


def _matches(text: str, names: set[str], key: str) -> bool:
    if key == "file":
        text = Path(text.replace("\\", "/")).name
        return text in names or re.sub(r"\.nii(\.gz)?$", "", text) in names
    return text in names or (key == "patient" and f"sub-{text}" in names)


def _told(one: Examination, rows: Sequence[Row], table: str) -> Examination:
    files = one.files
    first = [row for row in rows if _is_of(row, files.pet, files.dose)] or list(rows)
    said = _agreed(first, table)
    doubts = list(one.doubts)
    stated = _stated(files.stated, said)
    if is_nifti(files.pet):
        _check_units(files, said, table)
        doubts += _other_spacing(files, said)
    others = []
    for other in files.others:
        own = _agreed([row for row in rows if _is_of(row, other.path, other.dose)], table)
        others.append(_with_dose(other, own))
    if files.units == BQML and is_nifti(files.pet) and stated.dose_mbq and stated.uptake_s is None:
        doubts.append("the table's dose is taken as that of the scan's own time: it states no uptake time")
    tags = {name.removeprefix("tag_"): str(value) for name, value in said.items() if name.startswith("tag_")}
    if "fold" in said:
        tags["fold"] = str(said["fold"])
    dose = files.dose
    if "drf" in said and dose.relation != "full":
        dose = Dose(said["drf"], dose.relation, dose.shares_noise)
    files = replace(files, stated=stated, others=tuple(others), dose=dose, tags={**files.tags, **tags})
    excluded = one.excluded or str(said.get("exclude", ""))
    patient = str(said["patient"]) if "patient" in said and not _is_part(one, said["patient"]) else one.patient
    return replace(one, files=files, excluded=excluded, patient=patient, doubts=tuple(doubts))


def _check_units(files: Files, said: Mapping[str, Any], table: str) -> None:
    if files.units and said.get("units", files.units) != files.units:
        raise InputError(
            "TAB_CONTRADICTS",
            where=f"{table}, column units",
            found=f"{said['units']} for a scan that is taken for {files.units}",
            remedy=f"give --units {said['units']}, or correct the table",
        )


def _other_spacing(files: Files, said: Mapping[str, Any]) -> list[str]:
    """A voxel size that the file's own header contradicts: the header is used (a column of UDPET's table was wrong)."""
    try:
        real = nifti.grid_of(files.pet).spacing_mm
    except InputError:
        return []  # told when the file is opened
    names = ("spacing_z_mm", "spacing_y_mm", "spacing_x_mm")
    off = [name for name, mm in zip(names, real, strict=True) if abs(said.get(name, mm) / mm - 1.0) > CONTRADICTION]
    return [f"the table's {name} is not the file's, which is used" for name in off]


def _is_part(one: Examination, patient: object) -> bool:
    return bool(one.patient) and str(patient) in (one.patient, one.patient.removeprefix("sub-"))


def _is_of(row: Row, path: Path, dose: Dose) -> bool:
    """Whether a row that is about one file or one dose is about this one."""
    if "file" in row.values and not _matches(str(row.values["file"]), {path.name}, "file"):
        return False
    drf = row.values.get("drf")
    return drf is None or "file" in row.values or math.isclose(drf, dose.drf)


def _with_dose(other: OtherPet, own: Mapping[str, Any]) -> OtherPet:
    if "drf" not in own or not math.isnan(other.dose.drf):
        return other
    return replace(other, dose=Dose(own["drf"], other.dose.relation, other.dose.shares_noise))


def _agreed(rows: Sequence[Row], table: str) -> dict[str, Any]:
    """What rows say together.

    Raises:
        InputError: TAB_AMBIGUOUS.
    """
    said: dict[str, Any] = {}
    for row in rows:
        for name, value in row.values.items():
            if name in ("file", "drf", "case") and len(rows) > 1:
                continue
            if said.setdefault(name, value) != value:
                raise InputError(
                    "TAB_AMBIGUOUS",
                    where=f"{table} row {row.number}, column {name}",
                    found="another value than another row about the same examination",
                    remedy="correct one of them, or tell the rows apart in a column case or file",
                )
    return said


def _stated(before: Stated, said: Mapping[str, Any]) -> Stated:
    """A table stands above a sidecar: the user gave it."""
    names = ("weight_kg", "dose_mbq", "injection_time", "uptake_s", "half_life_s")
    new = {name: said[name] for name in names if name in said}
    if "uptake_s" not in new and {"injection_time", "scan_time"} <= said.keys():
        new["uptake_s"] = _between(str(said["injection_time"]), str(said["scan_time"]))
    if said.get("decay_correction") == "ADMIN":
        new["uptake_s"] = 0.0
    return replace(before, **new, origin={**before.origin, **dict.fromkeys(new, "table")})


def _between(injection: str, scan: str) -> float:
    """Seconds between two times of one kind; a scan before the injection is on the next day."""
    moments = []
    for text in (injection, scan):
        try:
            clock = datetime.time.fromisoformat(text)
            moments.append(datetime.datetime.combine(datetime.date(2000, 1, 1), clock))
        except ValueError:
            moments.append(datetime.datetime.fromisoformat(text))
    seconds = (moments[1] - moments[0]).total_seconds()
    return seconds + 86400.0 if -86400.0 < seconds < 0 and moments[0].year == moments[1].year == 2000 else seconds
