"""Free text of a DICOM header that may be told: by allow-lists, word by word, because any of it may name a patient."""

import re

TRACERS = {
    "FDG": ("FDG", "FLUORODEOXYGLUCOSE", "FLUDEOXYGLUCOSE"),
    "PSMA": ("PSMA",),
    "DOTA": ("DOTA", "SOMATOSTATIN"),
    "FAPI": ("FAPI",),
    "FDOPA": ("FDOPA", "DOPA"),
    "FLT": ("FLT", "FLUOROTHYMIDINE"),
    "FET": ("FET", "FLUOROETHYLTYROSINE"),
    "FES": ("FES", "FLUOROESTRADIOL"),
    "fluciclovine": ("FLUCICLOVINE", "FACBC"),
    "choline": ("CHOLINE",),
    "methionine": ("METHIONINE",),
    "florbetapir": ("FLORBETAPIR",),
    "florbetaben": ("FLORBETABEN",),
    "flutemetamol": ("FLUTEMETAMOL",),
    "PiB": ("PIB", "PITTSBURGH"),
    "fluoride": ("FLUORIDE", "NAF"),
    "rubidium": ("RUBIDIUM",),
    "ammonia": ("AMMONIA",),
    "water": ("WATER",),
}
MAKERS = {
    "Siemens": ("SIEMENS", "CPS", "CTI"),
    "GE": ("GE MEDICAL", "GE HEALTHCARE", "GENERAL ELECTRIC"),
    "Philips": ("PHILIPS", "ADAC"),
    "United Imaging": ("UIH", "UNITED IMAGING"),
    "Canon": ("CANON", "TOSHIBA"),
    "Mediso": ("MEDISO",),
    "Bruker": ("BRUKER",),
}
MODELS = (
    "Vision Quadra", "Biograph Vision", "Biograph mCT", "Biograph Horizon", "Biograph TruePoint", "Biograph mMR",
    "Biograph", "uEXPLORER", "uMI", "uPMR", "Discovery MI", "Discovery IQ", "Discovery ST", "Discovery", "Omni Legend",
    "SIGNA", "Advance", "Vereos", "Ingenuity", "Gemini", "Cartesion", "Celesteion", "HR+", "HRRT",
)  # fmt: skip
_IMAGING = """
    PET PT CT WB AC NAC CTAC MRAC PSF TOF OSEM FBP HD UHD ULTRAHD MAC TRUEX BLOB QCLEAR VPFX VPHD SHARP STATIC DYNAMIC
    GATED LIST MODE RECON ITER ITERATIVE CORRECTED UNCORRECTED ATTENUATION BODY WHOLE HEAD NECK BRAIN CHEST THORAX
    ABDOMEN PELVIS LEGS HEART LIVER LUNG SOFT BONE STANDARD TISSUE LOW FULL DOSE NORMAL HALF QUARTER DRF MM THIN THICK
    AXIAL CONTRAST VENOUS ARTERIAL NATIVE PLAIN KERNEL
"""
TECHNICAL = {
    *_IMAGING.split(),
    *(f"D{drf}" for drf in (2, 4, 10, 20, 50, 100)),
    *(f"{letter}{number}F" for letter in "BIDH" for number in range(10, 91)),
    *(f"{n}I{s}S" for n in range(1, 13) for s in range(1, 43)),
}


def words(text: str) -> list[str]:
    """Return the words of a text in capitals, without what stands between them."""
    return [word for word in re.split(r"[^A-Z0-9]+", text.upper()) if word]


def technical(text: str) -> list[str]:
    """Return the words of a text that are words of imaging."""
    return [word for word in words(text) if word in TECHNICAL]


def tracer(text: str) -> str:
    """Return the tracer that a text names, empty where it names none that is known."""
    told = text.upper()
    return next((name for name, spellings in TRACERS.items() if any(spelt in told for spelt in spellings)), "")


def scanner(maker: str, model: str) -> str:
    """Return maker and model of a scanner as far as they are known."""
    made = next((name for name, spellings in MAKERS.items() if any(spelt in maker.upper() for spelt in spellings)), "")
    kind = next((name for name in MODELS if name.upper() in model.upper()), "")
    return " ".join(part for part in (made, kind) if part)
