"""What the JSON file beside a NIfTI PET says (BIDS-PET): its unit, the activity given, and how much of it was left."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from petscale.data.examination import FrameTimes, Stated
from storage import suv
from storage.errors import InputError
from storage.source import BQML

MBQ = {"mbq": 1.0, "bq": 1e-6, "kbq": 1e-3, "gbq": 1e3, "mci": suv.MBQ_PER_MCI, "uci": suv.MBQ_PER_MCI / 1000}
UNITS: Mapping[str, Literal["SUVbw", "Bq/mL"]] = {
    **dict.fromkeys(("bq/ml", "bqml"), "Bq/mL"),
    **dict.fromkeys(("suv", "suvbw", "g/ml", "gml"), "SUVbw"),
}  # as storage.source.BQML and SUV
OTHER_UNIT = re.compile(r"bq|ci/|count|cnt|cps|propc|cm2|hu|hounsfield")  # kBq/mL, nCi/cc, counts, ...


def unit_of(where: str, said: Mapping[str, Any]) -> str:
    """Return the unit that a sidecar states.

    Raises:
        InputError: BIDS_SIDECAR where it states none, or one that is neither Bq/mL nor SUV.
    """
    told = _squeezed(said.get("Units", ""))
    if told not in UNITS:
        found = "no Units" if not told else "Units that are neither Bq/mL nor SUV"
        raise wrong(where, found, "convert the image, and state Bq/mL")
    return UNITS[told]


def stated_by(where: str, said: Mapping[str, Any]) -> Stated:
    """Return the activity given, and the time from it to the one that the voxels are corrected to.

    Raises:
        InputError: BIDS_SIDECAR where the sidecar lacks a value, or a value is no number.
    """
    if said.get("ImageDecayCorrected") is not True:
        raise wrong(where, "ImageDecayCorrected is not true", "give the decay-corrected image")
    unit = str(said.get("InjectedRadioactivityUnits", "")).lower()
    if unit not in MBQ:
        raise wrong(f"{where}, InjectedRadioactivityUnits", "missing, or no unit of activity", "state MBq")
    numbers = {}
    for name in ("InjectedRadioactivity", "ImageDecayCorrectionTime", "InjectionStart"):
        value = said.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise wrong(f"{where}, {name}", "missing, or no number", "state it; times are seconds after TimeZero")
        numbers[name] = float(value)
    half_life_s = half_life_of(said)
    if half_life_s is None:
        raise wrong(f"{where}, TracerRadionuclide", "no positron emitter that petscale knows", "state F18, Ga68, ...")
    uptake = numbers["ImageDecayCorrectionTime"] - numbers["InjectionStart"]
    if uptake < 0 and not _during_the_scan(numbers["InjectionStart"], said):
        raise wrong(where, "voxels corrected to a time before the injection", "correct InjectionStart")
    return Stated(
        dose_mbq=numbers["InjectedRadioactivity"] * MBQ[unit],
        uptake_s=uptake,
        half_life_s=half_life_s,
        origin=dict.fromkeys(("dose_mbq", "uptake_s", "half_life_s"), "sidecar"),
    )


def units_beside(path: Path) -> Literal["SUVbw", "Bq/mL"] | None:
    """Return the unit that the JSON file beside a NIfTI PET states, None where there is none or it states none.

    Raises:
        InputError: NII_UNITS for a unit that is neither Bq/mL nor SUV.
    """
    said = _beside(path)
    if said is None or not (told := _squeezed(said.get("Units", ""))):
        return None
    if OTHER_UNIT.search(told) and told not in UNITS:
        raise _other_unit(path)
    return UNITS.get(told)


def _other_unit(path: Path) -> InputError:
    return InputError(
        "NII_UNITS",
        where=path.name,
        found="its sidecar states Units that are neither Bq/mL nor SUV",
        remedy="convert the image to Bq/mL or SUV, and state that in the sidecar",
    )


def _squeezed(told: object) -> str:
    return str(told).replace(" ", "").lower()


def check_beside(path: Path, units: str, left_mbq: float | None) -> None:
    """Refuse a NIfTI PET whose sidecar states another unit, or another dose, than those it is taken for.

    A file beside it that is no such sidecar, or that lacks a value of BIDS-PET, says nothing.

    Args:
        path: of the PET.
        units: what it is taken for.
        left_mbq: the activity used for SUV, at the time that the voxels are corrected to; None where none is used.

    Raises:
        InputError: NII_UNITS, NII_DOSE.
    """
    said = _beside(path)
    if said is None:
        return
    stated_unit = _squeezed(said.get("Units", ""))
    if OTHER_UNIT.search(stated_unit) and stated_unit not in UNITS:
        raise _other_unit(path)
    told = UNITS.get(stated_unit)
    if told is not None and told != units:
        raise InputError(
            "NII_UNITS",
            where=path.name,
            found=f"its sidecar states {told}, and it is taken for {units}",
            remedy=f"give --units {told}" + (" with weight and dose, or --layout bids" if told == BQML else ""),
        )
    try:
        stated = stated_by(sidecar_of(path).name, said)
    except InputError:
        return
    if left_mbq is None or not stated.dose_mbq:
        return
    left = stated.dose_mbq * suv.decay(stated.uptake_s or 0.0, stated.half_life_s or 0.0)
    if abs(left_mbq / left - 1.0) > suv.CONTRADICTION:
        raise InputError(
            "NII_DOSE",
            where=path.name,
            found=f"SUV would be made with {left_mbq:.1f} MBq, and by its sidecar {left:.1f} MBq were left at the time "
            f"that the voxels are corrected to ({stated.dose_mbq:.1f} MBq were given)",
            remedy=f"give --dose-mbq {left:.1f}, use --layout bids, or correct the sidecar",
        )


def _during_the_scan(injection_s: float, said: Mapping[str, Any]) -> bool:
    """Whether the injection lies before the last of several frames: a dynamic scan often starts before it."""
    starts = said.get("FrameTimesStart")
    later = [s for s in starts if isinstance(s, int | float) and s > injection_s] if isinstance(starts, list) else []
    return bool(later)


def frame_times(where: str, said: Mapping[str, Any]) -> FrameTimes:
    """Return when the frames of a 4D PET were measured, as far as a sidecar states it.

    Raises:
        InputError: BIDS_SIDECAR for a list that holds no times, and for voxels that are not corrected for decay.
    """
    if said.get("ImageDecayCorrected", True) is not True:
        raise wrong(where, "ImageDecayCorrected is not true", "give the decay-corrected image")
    starts, durations = (_seconds(where, name, said) for name in ("FrameTimesStart", "FrameDuration"))
    if durations is not None and min(durations, default=0) <= 0:
        raise wrong(f"{where}, FrameDuration", "a duration that is not above 0", "state s for every frame")
    return FrameTimes(starts_s=starts, durations_s=durations, half_life_s=half_life_of(said))


def times_beside(path: Path) -> FrameTimes:
    """Return what the JSON file of a NIfTI's own name says of its frames; nothing where there is none.

    Raises:
        InputError: BIDS_SIDECAR, as ``frame_times``.
    """
    said = _beside(path)
    return FrameTimes() if said is None else frame_times(sidecar_of(path).name, said)


def _seconds(where: str, name: str, said: Mapping[str, Any]) -> tuple[float, ...] | None:
    value = said.get(name)
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        raise wrong(f"{where}, {name}", "no list of numbers", "state s for every frame")
    return tuple(float(v) for v in values)


def half_life_of(said: Mapping[str, Any]) -> float | None:
    """Return the half-life in s of a sidecar's TracerRadionuclide; None where it is missing or unknown."""
    letters = re.sub(r"[^A-Za-z]", "", str(said.get("TracerRadionuclide", "")))
    digits = re.sub(r"[^0-9]", "", str(said.get("TracerRadionuclide", "")))
    nuclide = next((known for known in suv.NUCLIDES if known.upper() == f"{letters}-{digits}".upper()), None)
    return None if nuclide is None else suv.NUCLIDES[nuclide][0]


def sidecar_of(path: Path) -> Path:
    """Return where the JSON file of a NIfTI's own name would be."""
    return path.with_name(path.name[: path.name.lower().index(".nii")] + ".json")


def _beside(path: Path) -> dict[str, Any] | None:
    """What the JSON file of a NIfTI's own name holds; None where it is no such object."""
    sidecar = sidecar_of(path)
    try:
        said: Any = json.loads(sidecar.read_text("utf-8-sig")) if sidecar.is_file() else None
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def wrong(where: str, found: str, remedy: str) -> InputError:
    """What a sidecar lacks."""
    return InputError("BIDS_SIDECAR", where=where, found=found, remedy=remedy)
