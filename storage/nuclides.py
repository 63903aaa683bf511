"""Positron emitters: half-lives, codes, names, the tracers made with them, and what is left of them after a time."""

import math
import re
from collections.abc import Mapping

# Half-lives in s (ENSDF) and the codes of CID 4020, SNOMED-RT and SNOMED-CT.  Ge-68: phantoms and rod sources.
NUCLIDES: Mapping[str, tuple[float, tuple[str, ...]]] = {
    "F-18": (6586.2, ("C-111A1", "77004003")),
    "Ga-68": (4062.6, ("C-131A3", "35337001")),
    "C-11": (1221.8, ("C-105A1", "40565003")),
    "N-13": (597.9, ("C-107A1", "21576001")),
    "O-15": (122.24, ("C-B1038", "129504001")),
    "Rb-82": (75.45, ("C-159A2", "79197006")),
    "Cu-64": (45721.0, ("C-127A2", "3932008")),
    "Zr-89": (282276.0, ("C-168A4", "63360001")),
    "I-124": (360806.0, ("C-114A5", "40937006")),
    "Cu-61": (12020.0, ("C-127A1", "71425003")),
    "Cu-62": (580.4, ("C-127A5", "422934004")),
    "Y-86": (53064.0, ("C-162A3", "10738001")),
    "Y-90": (230580.0, ("C-162A7", "14691008")),
    "Br-76": (58320.0, ("C-113A2", "79523006")),
    "Ti-45": (11088.0, ("C-166A2", "75696008")),
    "Mn-52": (483062.0, ("C-149A1", "37225000")),
    "Ge-68": (23410000.0, ("C-128A2", "53315004")),
    "Na-22": (82110000.0, ("C-155A1", "71633006")),
    "Ga-66": (34160.0, ("C-131A1", "79477007")),
    "Sc-44": (14551.0, ("126600",)),
}

ELEMENTS = {
    "F": "Fluorine", "Ga": "Gallium", "C": "Carbon", "N": "Nitrogen", "O": "Oxygen", "Rb": "Rubidium", "Cu": "Copper",
    "Zr": "Zirconium", "I": "Iodine", "Y": "Yttrium", "Br": "Bromine", "Ti": "Titanium", "Mn": "Manganese",
    "Ge": "Germanium", "Na": "Sodium", "Sc": "Scandium",
}  # fmt: skip
# Tracers that are made with these nuclides only; PSMA, DOTA, FAPI and choline have several.
TRACER_NUCLIDES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("FDG", "FLT", "FET", "FES", "FDOPA", "fluciclovine", "florbetapir", "florbetaben", "flutemetamol", "fluoride"),
        ("F-18",),
    ),
    "PiB": ("C-11",),
    "methionine": ("C-11",),
    "rubidium": ("Rb-82",),
    "ammonia": ("N-13",),
    "water": ("O-15",),
}


def decay(elapsed_s: float, half_life_s: float) -> float:
    """Return the fraction of activity left after ``elapsed_s``: exp(-l t), l = ln 2 / half-life."""
    return math.exp(min(-math.log(2.0) / half_life_s * elapsed_s, 700.0))  # a wrong date must not overflow


def mean_count_delay_s(duration_s: float, half_life_s: float) -> float:
    """Return when within a frame the activity equals its mean over the frame: T_ave = ln(lT / (1 - e^-lT)) / l."""
    rate = math.log(2.0) / half_life_s
    x = rate * duration_s
    return 0.0 if x == 0 else math.log(x / -math.expm1(-x)) / rate


def named(text: str) -> set[str]:
    """Return the nuclides that a text names: F-18, 18F, ^18^Fluorine, Fluorine 18, Ga68."""
    told = set()
    for name in NUCLIDES:
        symbol, mass = name.split("-")
        element = rf"(?:{symbol}|{ELEMENTS[symbol]})"
        between = r"[\s^\-_\[\]]*"
        if re.search(
            rf"(?<![A-Z0-9])(?:{element}{between}{mass}|{mass}{between}{element})(?![A-Z0-9])", text, re.IGNORECASE
        ):
            told.add(name)
    return told
