"""Names of labels: as a user writes them, as a BIDS table or a segmentation program has them, as a file says them.

A label's name stands in cohorts, reports and tables.  It is lower-case letters, digits and underscores, begins with a
letter, and names an organ or a lesion, never a patient.
"""

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from storage.errors import InputError

LABEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
LESION = "lesion"
HIGHEST = 65535  # label maps are stored as uint16
LISTED = 8  # values or names in one sentence
DRAWN = ("MANUAL", "SEMIAUTOMATIC", "AUTOMATIC")  # how, as a SEG and an RTSTRUCT say it (PS3.3 C.8.20.4, C.8.8.5)

_VERTEBRAE = ["S1", *(f"L{n}" for n in range(5, 0, -1)), *(f"T{n}" for n in range(12, 0, -1))]
_VERTEBRAE += [f"C{n}" for n in range(7, 0, -1)]
# Task `total` of TotalSegmentator version 2 (github.com/wasserth/TotalSegmentator, Apache-2.0), values from 1 on.
# fmt: off
_TOTAL = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas", "adrenal_gland_right",
    "adrenal_gland_left", "lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right",
    "lung_middle_lobe_right", "lung_lower_lobe_right", "esophagus", "trachea", "thyroid_gland", "small_bowel",
    "duodenum", "colon", "urinary_bladder", "prostate", "kidney_cyst_left", "kidney_cyst_right", "sacrum",
    *(f"vertebrae_{name.lower()}" for name in _VERTEBRAE),
    "heart", "aorta", "pulmonary_vein", "brachiocephalic_trunk", "subclavian_artery_right", "subclavian_artery_left",
    "common_carotid_artery_right", "common_carotid_artery_left", "brachiocephalic_vein_left",
    "brachiocephalic_vein_right", "atrial_appendage_left", "superior_vena_cava", "inferior_vena_cava",
    "portal_vein_and_splenic_vein", "iliac_artery_left", "iliac_artery_right", "iliac_vena_left", "iliac_vena_right",
    "humerus_left", "humerus_right", "scapula_left", "scapula_right", "clavicula_left", "clavicula_right",
    "femur_left", "femur_right", "hip_left", "hip_right", "spinal_cord", "gluteus_maximus_left",
    "gluteus_maximus_right", "gluteus_medius_left", "gluteus_medius_right", "gluteus_minimus_left",
    "gluteus_minimus_right", "autochthon_left", "autochthon_right", "iliopsoas_left", "iliopsoas_right", "brain",
    "skull", *(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)), "sternum", "costal_cartilages",
)
# What a structure may be called inside a file that was written for one patient; other words are not taken over.
_WORDS = {
    *re.findall(r"[a-z]+", " ".join(_TOTAL)),
    "abnormal", "altered", "anal", "anatomical", "arm", "artery", "bladder", "bone", "bones", "bowel", "brainstem",
    "breast", "bronchus", "carcinoma", "cavity", "cerebellum", "cord", "ct", "ctv", "cyst", "edema", "eye", "eyes",
    "fat", "gland", "glands", "gtv", "head", "itv", "kidneys", "larynx", "leg", "lens", "lesion", "lesions",
    "liver", "lumbar", "lungs", "lymph", "lymphoma", "malignant", "mandible", "marrow", "mass", "mediastinum",
    "metastases", "metastasis", "morphologically", "mr", "muscle", "muscles", "myocardium", "neck", "neoplasm",
    "nerve", "node", "nodes", "nodule", "oesophagus", "optic", "oral", "organ", "ovary", "parotid", "pelvis",
    "penile", "pet", "pharynx", "primary", "ptv", "rectum", "salivary", "secondary", "skin", "spine", "structure",
    "submandibular", "testis", "thorax", "tissue", "tongue", "tonsil", "tumor", "tumors", "tumour", "tumours",
    "uptake", "uterus", "vein", "ventricle", "vertebra", "whole",
}
# fmt: on

TABLES: Mapping[str, Mapping[int, str]] = {
    "totalsegmentator": dict(enumerate(_TOTAL, start=1)),
    "autopet": {1: LESION},
}


def is_lesion(name: str) -> bool:
    """Whether a label holds lesions: evaluation and samplers go by the beginning of its name."""
    return name.startswith(LESION)


def parse_names(text: str, *, where: str = "names") -> dict[int, str]:
    """Return value -> name of ``1=liver,5=brain``; the name of a table, or several, may stand before the pairs.

    A pair stands instead of a table's name for that value: ``totalsegmentator,2=kidneys,3=kidneys``.  Two values may
    have one name; they become one label.

    Args:
        where: the option that errors name.

    Raises:
        InputError: ``LBL_NAMES_EMPTY``, ``LBL_NAMES_FORM``, ``LBL_NAMES_NUMBER``, ``LBL_NAMES_NAME``,
            ``LBL_NAMES_TWICE``.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    names: dict[int, str] = {}
    typed: set[int] = set()
    for part in parts:
        value, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals:
            if part.lower() not in TABLES:
                tables = ", ".join(TABLES)
                raise InputError(
                    "LBL_NAMES_FORM",
                    where=where,
                    found="a part that is neither value=name nor a table",
                    remedy=f"write 1=liver,5=brain, or one of {tables}, or the path of a .tsv or .csv file",
                )
            names = {**TABLES[part.lower()], **names}
            continue
        number = _number(value, where)
        if not LABEL_NAME.fullmatch(name):
            raise InputError(
                "LBL_NAMES_NAME",
                where=where,
                found=f"the name of value {number} is not lower-case letters, digits and '_' (64 at most)",
                remedy="write it like liver or kidney_left; it is stored, so it must not identify a patient",
            )
        if number in typed:
            raise _twice(number, where)
        typed.add(number)
        names[number] = name
    if not names:
        raise InputError("LBL_NAMES_EMPTY", where=where, found="no name at all", remedy="write 1=liver,5=brain")
    return names


def read_dseg(path: Path) -> dict[int, str]:
    """Return value -> name of a BIDS ``*_dseg.tsv``: a header line with ``index`` and ``name``, then a line per label.

    Tabs, commas or semicolons separate; other columns (abbreviation, color, mapping) are passed by.  Names are brought
    into the form of labels: ``Left-Cerebral-White-Matter`` is ``left_cerebral_white_matter``.  Index 0 is background.

    Raises:
        InputError: ``IMG_NO_FILE``, ``IMG_UNREADABLE``, ``LBL_TABLE``, ``LBL_NAMES_EMPTY``, ``LBL_NAMES_NUMBER``,
            ``LBL_NAMES_NAME``, ``LBL_NAMES_TWICE``.
    """
    if not path.is_file():
        raise InputError("IMG_NO_FILE", where=path.name, found="no such file", remedy="check the path")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError:
        raise InputError(
            "IMG_UNREADABLE", where=path.name, found="a file that may not be read", remedy="check its permissions"
        ) from None
    except UnicodeDecodeError:
        raise _table_error(path, "text that is not UTF-8") from None
    lines = [line for line in text.splitlines() if line.strip()]
    header = lines[0] if lines else ""
    separator = max("\t,;", key=header.count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    except csv.Error:
        raise _table_error(path, "rows that cannot be read") from None
    columns = [cell.lower() for cell in rows[0]] if rows else []
    if "index" not in columns or "name" not in columns:
        raise _table_error(path, "no columns index and name in its first line")
    index, name = columns.index("index"), columns.index("name")
    names: dict[int, str] = {}
    for line, row in enumerate(rows[1:], start=2):
        if len(row) <= max(index, name):
            raise _table_error(path, f"row {line} has {len(row)} of {len(columns)} cells")
        if re.fullmatch(r"0+(\.0+)?", row[index]):
            continue
        number = _number(re.sub(r"\.0+$", "", row[index]), path.name)
        if number in names:
            raise _twice(number, path.name)
        names[number] = plain_name(row[name])
        if not names[number]:
            raise InputError(
                "LBL_NAMES_NAME",
                where=path.name,
                found=f"the name of value {number} holds no letter",
                remedy="give every label a name",
            )
    if not names:
        raise InputError("LBL_NAMES_EMPTY", where=path.name, found="no name at all", remedy="give a row per label")
    return names


def names_from(text: str, *, where: str = "names") -> dict[int, str]:
    """Return value -> name of what a user gives: pairs, a table's name, or the path of a BIDS ``dseg.tsv``.

    Raises:
        InputError: as ``parse_names`` and ``read_dseg``.
    """
    if text.lower().endswith((".tsv", ".csv")):
        return read_dseg(Path(text))
    return parse_names(text, where=where)


def plain_name(text: str) -> str:
    """Bring words into the form of a label's name, ``Neoplasm, Primary`` into ``neoplasm_primary``; may be empty."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    while words and not words[0][0].isalpha():  # a name begins with a letter
        words.pop(0)
    return "_".join(words)[:64].rstrip("_")


def known_name(text: str) -> str:
    """Return the name that free text of a patient's file gives a label, empty unless every word is one of anatomy.

    Whoever drew a structure may have called it after the patient, so only words that are known here are taken over;
    numbers are left out.
    """
    words = re.findall(r"[a-z]+", text.lower())
    return "_".join(words)[:64].rstrip("_") if words and all(word in _WORDS for word in words) else ""


def listed(things: Iterable[object]) -> str:
    """Return things as one sentence lists them: the first few, and how many more there are."""
    told = [str(thing) for thing in things]
    return ", ".join(told[:LISTED]) + (f" and {len(told) - LISTED} more" if len(told) > LISTED else "")


def _number(text: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= HIGHEST:
        raise InputError(
            "LBL_NAMES_NUMBER",
            where=where,
            found=f"a value that is not a whole number from 1 to {HIGHEST}",
            remedy="write the value of the label in the file; 0 is background and has no name",
        )
    return int(text)


def _twice(number: int, where: str) -> InputError:
    return InputError("LBL_NAMES_TWICE", where=where, found=f"value {number} twice", remedy="name each value once")


def _table_error(path: Path, found: str) -> InputError:
    return InputError(
        "LBL_TABLE", where=path.name, found=found, remedy="give a table with the columns index and name, as BIDS does"
    )
