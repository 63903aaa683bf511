"""The fields of a PET header that SUV depends on: what they may be, what they contradict, and how they are read.

A weight, a dose or a time is never guessed: what is missing ends in an ``InputError``, and what is read in spite of a
doubt in a note (``storage.notes``).  Times are seconds on one clock of the series with an arbitrary origin that lies at
a midnight, so that differences and times of day can be formed and no date is ever needed.
"""

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from storage.errors import InputError
from storage.nuclides import NUCLIDES, TRACER_NUCLIDES, decay, named

DAY_S = 86400.0
WEIGHT_KG = (1.0, 500.0)  # what a patient may weigh
DOSE_BQ = (1e6, 1e10)  # what a patient may be given
ANIMAL_KG = (0.005, 1.0)  # a mouse pup to a rat; heavier animals are within the range of patients
ANIMAL_DOSE_BQ = (1e5, 5e8)
ANIMAL_MBQ_PER_KG = 1000.0  # 20 MBq for a mouse of 20 g; a patient's dose for less than a kilogram is a wrong weight
MBQ_PER_KG_OF_A_GUESS = (0.3, 100.0)  # a dose below 1e4 is read as MBq within this; 10 mCi for 70 kg are 0.14
OVERNIGHT_UPTAKE_S = 12 * 3600.0  # a time-only injection may be the evening before, not the same hour the day before
UPTAKE_BAND_S = (300.0, 6 * 3600.0)  # outside it the uptake is kept but noted
MBQ_PER_MCI = 37.0
CONTRADICTION = 0.01  # two statements of one weight or dose that differ by more are not one value rounded twice
HEADER_FIELDS = {
    "weight_kg": "(0010,1030) PatientWeight",
    "dose_mbq": "(0018,1074) RadionuclideTotalDose",
    "half_life_s": "(0018,1075) RadionuclideHalfLife",
    "injection_time": "(0018,1078) RadiopharmaceuticalStartDateTime",
}
LATE_INJECTION_S = 1800.0  # a list-mode scan is started before the injection, by seconds or minutes
MAX_HALF_LIVES = 10.0  # later than this nothing is left to measure: a wrong date, not a late scan


@dataclass(frozen=True)
class Frame:
    """The timing of one slice.

    Args:
        acquisition_s: AcquisitionDate + AcquisitionTime.
        duration_s: ActualFrameDuration.
        reference_s: FrameReferenceTime, from the series reference to the mean count time (or a bed offset: see B).
        decay_factor: DecayFactor, which the voxels were multiplied with.
    """

    acquisition_s: float | None = None
    duration_s: float | None = None
    reference_s: float | None = None
    decay_factor: float | None = None


@dataclass(frozen=True)
class PetHeader:
    """What one PET series says about itself, as read: nothing is checked yet, ``None`` is missing.

    Args:
        units: Units (0054,1001).  suv_type: SUVType (0054,1006).  decay_correction: DecayCorrection (0054,1102).
        corrected: CorrectedImage (0028,0051).
        weight_kg: PatientWeight.  height_m: PatientSize.  sex: PatientSex.
        dose_bq: RadionuclideTotalDose.  half_life_s: RadionuclideHalfLife.  nuclide_code: its CodeValue.
        nuclide_meaning: its CodeMeaning.  tracer: as ``storage.dicom_words`` knows it.
        injection_s: injection with its date.  injection_clock_s: time of day only, in s after midnight.
        injection_zone: whether the date-time states an offset from UTC that the series does not, so that the hours that
            lie between them are unknown.
        series_type: SeriesType (0054,1000), its first value.
        series_s: SeriesDate + SeriesTime.  private_s: GE's scan date-time (0009,100D).
        decay_corrected_to_s: DecayCorrectionDateTime (0018,9701) of an enhanced object.
        counts_to_suv, counts_to_bqml: Philips (7053,1000) and (7053,1009).
        dynamic_s: of a dynamic series, from its first acquisition to its last: the injection may lie between them.
        overridden: the fields that the user has given instead of the header.
        completed: the fields that the header lacks and a table or a sidecar states.
        doubts: how fields were read that the header leaves open; they become notes.
    """

    units: str
    decay_correction: str
    corrected: frozenset[str]
    suv_type: str = ""
    weight_kg: float | None = None
    height_m: float | None = None
    sex: str = ""
    dose_bq: float | None = None
    half_life_s: float | None = None
    nuclide_code: str = ""
    nuclide_meaning: str = ""
    tracer: str = ""
    injection_s: float | None = None
    injection_clock_s: float | None = None
    injection_zone: bool = False
    series_type: str = ""
    series_s: float | None = None
    private_s: float | None = None
    decay_corrected_to_s: float | None = None
    counts_to_suv: float | None = None
    counts_to_bqml: float | None = None
    dynamic_s: float = 0.0
    overridden: tuple[str, ...] = ()
    completed: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overrides:
    """What the user states instead of the header; ``injection_time`` is ``HH:MM[:SS]`` or an ISO date-time."""

    weight_kg: float | None = None
    dose_mbq: float | None = None
    injection_time: str | None = None


@dataclass(frozen=True)
class Stated:
    """What a table states about a scan, for what its header lacks."""

    weight_kg: float | None = None
    dose_mbq: float | None = None
    injection_time: str | None = None
    half_life_s: float | None = None


def apply_overrides(header: PetHeader, overrides: Overrides) -> PetHeader:
    """Return ``header`` with the user's values in place, and their names recorded.

    Raises:
        InputError: ``PET_WEIGHT``, ``PET_DOSE``, ``PET_TIME_ORDER`` if an override itself is not possible.
    """
    names = []
    if overrides.weight_kg is not None:
        if not ANIMAL_KG[0] <= overrides.weight_kg <= WEIGHT_KG[1]:
            raise weight_error(f"override of {overrides.weight_kg:g} kg")
        header = replace(header, weight_kg=overrides.weight_kg)
        names.append("weight_kg")
    if overrides.dose_mbq is not None:
        if not ANIMAL_DOSE_BQ[0] <= overrides.dose_mbq * 1e6 <= DOSE_BQ[1]:
            raise dose_error(f"override of {overrides.dose_mbq:g} MBq")
        header = replace(header, dose_bq=overrides.dose_mbq * 1e6)
        names.append("dose_mbq")
    if overrides.injection_time is not None:
        injection_s, clock_s = _parse_injection(overrides.injection_time)
        header = replace(header, injection_s=injection_s, injection_clock_s=clock_s, injection_zone=False)
        names.append("injection_time")
    return replace(header, overridden=(*header.overridden, *names))


def complete(header: PetHeader, stated: Stated) -> PetHeader:
    """Return ``header`` with what it lacks filled in from a row of a table about the same examination.

    Raises:
        InputError: ``TAB_CONTRADICTS`` where both state a value and the SUV would differ by more than 1 %: one of the
            two is wrong, and nobody here can know which.  Those of ``apply_overrides`` for a value out of range.
    """
    weight = header.weight_kg and header.weight_kg / (1000.0 if header.weight_kg > 1000 else 1.0)  # as ``_weight``
    dose = header.dose_bq and header.dose_bq / (1.0 if header.dose_bq < 1e4 else 1e6)  # as ``_dose``
    for name, told, given in (
        ("weight_kg", weight, stated.weight_kg),
        ("dose_mbq", dose, stated.dose_mbq),
        ("half_life_s", header.half_life_s, stated.half_life_s),
    ):
        if told and given and abs(given / told - 1.0) > (0.02 if name == "half_life_s" else CONTRADICTION):
            raise _contradiction(name, f"they differ by {abs(given / told - 1.0):.0%}")
    if stated.injection_time is not None and (apart := _apart_s(header, stated.injection_time)) is not None:
        half_life = header.half_life_s or stated.half_life_s or NUCLIDES["F-18"][0]
        if abs(decay(apart, half_life) - 1.0) > CONTRADICTION:
            raise _contradiction("injection_time", f"they lie {abs(apart) / 60:.0f} minutes apart")
    injected = header.injection_s is not None or header.injection_clock_s is not None
    missing = Overrides(
        weight_kg=None if header.weight_kg else stated.weight_kg,
        dose_mbq=None if header.dose_bq else stated.dose_mbq,
        injection_time=None if injected else stated.injection_time,
    )
    filled = apply_overrides(replace(header, overridden=()), missing)
    names = filled.overridden
    if not header.half_life_s and not header.nuclide_code and stated.half_life_s:
        filled, names = replace(filled, half_life_s=stated.half_life_s), (*names, "half_life_s")
    return replace(filled, overridden=header.overridden, completed=names)


def _apart_s(header: PetHeader, text: str) -> float | None:
    """From the header's injection to the stated one, by their dates where both have one; None without the first."""
    moment, clock = _parse_injection(text)
    if header.injection_s is not None and moment is not None:
        return moment - header.injection_s
    told = header.injection_clock_s if header.injection_s is None else header.injection_s % DAY_S
    if told is None:
        return None
    given = clock if clock is not None else (moment or 0.0) % DAY_S
    return (given - told + DAY_S / 2) % DAY_S - DAY_S / 2


def _contradiction(name: str, found: str) -> InputError:
    return InputError(
        "TAB_CONTRADICTS",
        where=f"{HEADER_FIELDS[name]} and the table's {name}",
        found=found,
        remedy="correct or empty the table's cell, or leave the case out; a header is replaced by --weight-kg, "
        "--dose-mbq or --injection-time alone",
    )


def check_rescale(slope: float, intercept: float, where: str) -> None:
    """Refuse what no PET slice may have: a slope that is not positive, an intercept that is not 0 (PS3.3 C.8.9.4)."""
    if not (math.isfinite(slope) and slope > 0):
        raise InputError(
            "PET_BAD_SLOPE",
            where=f"{where} (0028,1053) RescaleSlope",
            found="not a positive finite number",
            remedy="export the series again",
        )
    if intercept != 0:
        raise InputError(
            "PET_BAD_INTERCEPT",
            where=f"{where} (0028,1052) RescaleIntercept",
            found=f"{intercept:g}",
            remedy="a PET slice must have intercept 0; export the series again",
        )


# -- single fields ----------------------------------------------------------------------------------------------------


def correction_notes(header: PetHeader) -> tuple[str, ...]:
    """Say that CorrectedImage holds DECY and DecayCorrection says NONE: one of the two is wrong."""
    contradict = header.decay_correction == "NONE" and "DECY" in header.corrected
    return ("decay_correction_contradicts_corrected_image",) * contradict


def check_corrections(header: PetHeader) -> None:
    """Refuse values that are not corrected for attenuation, or whose decay correction is unknown."""
    if header.decay_correction not in ("START", "ADMIN", "NONE"):
        raise InputError(
            "PET_NOT_DECAY_CORRECTED",
            where="(0054,1102) DecayCorrection",
            found="missing" if not header.decay_correction else "not START, ADMIN or NONE",
            remedy="export the series again with its PET tags",
        )
    needed = {"ATTN"} if header.decay_correction == "NONE" else {"ATTN", "DECY"}
    missing = needed - header.corrected
    if missing:
        raise InputError(
            "PET_NOT_CORRECTED",
            where="(0028,0051) CorrectedImage",
            found=f"no {' and no '.join(sorted(missing))}",
            remedy="export the attenuation- and decay-corrected reconstruction",
        )
    if header.decay_correction == "NONE" and header.units not in ("BQML", "CNTS"):
        raise InputError(
            "PET_NOT_DECAY_CORRECTED",
            where="(0054,1102) DecayCorrection",
            found="NONE on values that are already normalised",
            remedy="export the decay-corrected series",
        )


def nuclide_of(header: PetHeader) -> tuple[str, float, tuple[str, ...]]:
    """The positron emitter, the half-life to use, notes: the header's own, checked, or that of the nuclide's code."""
    by_code = {name for name, (_, codes) in NUCLIDES.items() if header.nuclide_code in codes}
    by_meaning = named(header.nuclide_meaning)
    half_life = header.half_life_s
    if half_life is None:
        stated = by_code & by_meaning if by_code and by_meaning else by_code | by_meaning
        if not stated:
            raise _nuclide_error(
                "missing, and (0054,0300) names "
                + ("two nuclides by its code and its meaning" if by_code else "no known positron emitter"),
                "export the series again with its radiopharmaceutical",
            )
        name = min(stated)
        return name, NUCLIDES[name][0], _tracer_notes(header, name)
    by_half_life = {name for name, (T, _) in NUCLIDES.items() if abs(half_life / T - 1.0) < 0.02}
    if not by_half_life:
        remedy = "a SPECT series stored as PT is not PET; else export the series again"
        raise _nuclide_error(f"{half_life:g} s, no positron emitter's", remedy)
    names = by_half_life & by_code if by_code else by_half_life
    notes: tuple[str, ...] = ()
    if not names and by_half_life & by_meaning:
        # Two of three fields agree on another nuclide than the code does: the code is the slip.
        names, notes = by_half_life & by_meaning, ("nuclide_code_contradicts_meaning_and_half_life",)
    elif not names:
        raise _nuclide_error(f"{half_life:g} s, against the nuclide's code", "export the series again")
    elif by_meaning and not names & by_meaning:
        if not by_code:
            raise _nuclide_error(f"{half_life:g} s, against the nuclide's name", "export the series again")
        notes = ("nuclide_meaning_contradicts_code_and_half_life",)
    name = min(names & by_meaning or names)
    return name, half_life, (*notes, *_tracer_notes(header, name))


def _tracer_notes(header: PetHeader, nuclide: str) -> tuple[str, ...]:
    """Say that the tracer is made with another nuclide only: FDG with the half-life of Ga-68."""
    usual = TRACER_NUCLIDES.get(header.tracer, (nuclide,))
    return () if nuclide in usual else ("tracer_contradicts_nuclide",)


def _nuclide_error(found: str, remedy: str) -> InputError:
    return InputError("PET_NUCLIDE", where="(0018,1075) RadionuclideHalfLife", found=found, remedy=remedy)


def weight_of(header: PetHeader) -> tuple[float, tuple[str, ...]]:
    """Return the weight in kg, and notes."""
    weight = header.weight_kg
    if weight is None or not math.isfinite(weight) or weight <= 0:
        raise weight_error("missing, zero or not a number")
    notes: tuple[str, ...] = ()
    if weight > 1000:
        weight, notes = weight / 1000.0, ("weight_read_as_g",)
    if not ANIMAL_KG[0] <= weight <= WEIGHT_KG[1]:
        raise weight_error(f"outside {ANIMAL_KG[0]:g} to {WEIGHT_KG[1]:g} kg")
    return weight, notes + ("small_animal",) * (weight < ANIMAL_KG[1])


def check_animal(weight_kg: float, dose_bq: float) -> None:
    """Refuse a weight below a kilogram with a dose that no small animal is given: it is a wrong weight."""
    if weight_kg < ANIMAL_KG[1] and dose_bq / 1e6 / weight_kg > ANIMAL_MBQ_PER_KG:
        found = f"{weight_kg:g} kg with {dose_bq / 1e6:.3g} MBq, more than {ANIMAL_MBQ_PER_KG:g} MBq per kg"
        raise weight_error(found)


def height_of(header: PetHeader) -> float:
    """Return the body height in m."""
    height = header.height_m
    if height is None or not 0.3 <= height <= 2.7:
        raise height_error("missing, or outside 0.3 to 2.7 m")
    return height


def dose_of(header: PetHeader, weight_kg: float) -> tuple[float, tuple[str, ...]]:
    """Return the dose in Bq, and notes."""
    dose = header.dose_bq
    if dose is None or not math.isfinite(dose) or dose <= 0:
        raise dose_error("missing, zero or not a number")
    notes: tuple[str, ...] = ()
    if dose < 1e4:  # real headers have two peaks, near 4e2 and near 4e8: the first is MBq
        animal = weight_kg < ANIMAL_KG[1]
        low, high = (0.0, ANIMAL_MBQ_PER_KG) if animal else MBQ_PER_KG_OF_A_GUESS
        if not low <= dose / weight_kg <= high:
            raise dose_error(f"{dose:g}, which is no Bq, and as MBq {dose / weight_kg:.3g} per kg: mCi?")
        dose, notes = dose * 1e6, ("dose_read_as_MBq",)
    low, high = ANIMAL_DOSE_BQ if weight_kg < ANIMAL_KG[1] else DOSE_BQ
    if not low <= dose <= high:
        kind = "a small animal" if weight_kg < ANIMAL_KG[1] else "a patient"
        if weight_kg < ANIMAL_KG[1] and dose > high:
            check_animal(weight_kg, dose)
        raise dose_error(f"{dose / 1e6:.3g} MBq, outside {low / 1e6:g} to {high / 1e6:g} MBq for {kind}")
    check_animal(weight_kg, dose)
    return dose, notes


def injection_of(header: PetHeader, times: Sequence[float], half_life_s: float) -> tuple[float, tuple[str, ...]]:
    """The time of injection; a time of day is put on the day of the acquisition, or the evening before it."""
    acquisition_s, clock = min(times), header.injection_clock_s
    midnight = math.floor(acquisition_s / DAY_S) * DAY_S
    if header.injection_s is not None:
        told = header.injection_s
        apart = 0.0 if clock is None else (clock - told % DAY_S + DAY_S / 2) % DAY_S - DAY_S / 2
        if abs(decay(apart, half_life_s) - 1.0) <= CONTRADICTION:
            earliest = acquisition_s - MAX_HALF_LIVES * half_life_s
            possible = earliest <= told <= latest_injection(header, times)
            if not possible and clock is not None and clock <= acquisition_s - midnight:
                # De-identification has moved its date and not those of the series; the time of day says what it was.
                return midnight + clock, ("injection_date_impossible",)
            return told, ("injection_zone_ignored",) * (header.injection_zone and clock is None)
        if header.injection_zone and abs(apart - round(apart / 900.0) * 900.0) < 1.0:
            # In another zone than the series, which states none: the time of day is the scanner's own clock.
            return told + apart, ("injection_time_of_day_used",)
        return told, ("injection_times_contradict",)
    if clock is None:
        raise time_missing("(0018,1078) RadiopharmaceuticalStartDateTime", "give --injection-time")
    injection = midnight + clock
    latest = latest_injection(header, times)
    if injection + DAY_S <= latest:  # a dynamic scan that was started before midnight, and the injection after it
        return injection + DAY_S, ()
    if injection <= latest:
        return injection, ()
    injection -= DAY_S
    if acquisition_s - injection > OVERNIGHT_UPTAKE_S:
        raise _time_order("(0018,1072) RadiopharmaceuticalStartTime", "an injection after the acquisition")
    return injection, ("injection_on_previous_day",)


def latest_injection(header: PetHeader, times: Sequence[float]) -> float:
    """Until when a patient may have been injected: before the scan, or while a dynamic one went on."""
    during = min(max(times) - min(times), LATE_INJECTION_S) if header.series_type == "DYNAMIC" else 0.0
    return min(times) + max(during, header.dynamic_s)


def uptake_notes(uptake_s: float, half_life_s: float, left_s: float = 0.0) -> tuple[str, ...]:
    """Check the time from the injection to the one that the voxels are corrected to.

    Args:
        left_s: from the injection to the latest time that it may have been given.  Where it is not negative, voxels may
            be corrected to a time before the injection: the scan was started with it or before.
    """
    where = "(0018,1078) RadiopharmaceuticalStartDateTime"
    if uptake_s < 0 and left_s >= 0 and (left_s > 0 or uptake_s + left_s >= 0) and -uptake_s <= LATE_INJECTION_S:
        return ("injection_after_reference_time",)
    if uptake_s < 0:
        raise _time_order(where, "an injection after the time the voxels are decay-corrected to")
    if uptake_s > MAX_HALF_LIVES * half_life_s:
        raise _time_order(where, f"an injection more than {MAX_HALF_LIVES:g} half-lives before the scan")
    return () if UPTAKE_BAND_S[0] <= uptake_s <= UPTAKE_BAND_S[1] else ("uptake_unusual",)


def _parse_injection(text: str) -> tuple[float | None, float | None]:
    """Return (date and time, time of day): the one that was given."""
    try:
        clock = datetime.time.fromisoformat(text)
        return None, _seconds(clock)
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise _time_order("injection_time", "neither HH:MM[:SS] nor an ISO date-time") from None
    return seconds_of(moment), None


def seconds_of(moment: datetime.datetime) -> float:
    """Return a wall-clock date-time on the clock of this file."""
    return moment.toordinal() * DAY_S + _seconds(moment.time())


def _seconds(clock: datetime.time) -> float:
    return clock.hour * 3600.0 + clock.minute * 60.0 + clock.second + clock.microsecond * 1e-6


# -- the errors -------------------------------------------------------------------------------------------------------


def weight_error(found: str) -> InputError:
    """Return the error about a weight."""
    return InputError("PET_WEIGHT", where="(0010,1030) PatientWeight", found=found, remedy="give --weight-kg")


def dose_error(found: str) -> InputError:
    """Return the error about a dose."""
    return InputError("PET_DOSE", where="(0018,1074) RadionuclideTotalDose", found=found, remedy="give --dose-mbq")


def height_error(found: str) -> InputError:
    """Return the error about a height."""
    return InputError(
        "PET_HEIGHT",
        where="(0010,1020) PatientSize",
        found=found,
        remedy="export the series in BQML or as SUVType BW",
    )


def time_missing(field_name: str, remedy: str) -> InputError:
    """Return the error about a time that is not there."""
    return InputError("PET_TIME_MISSING", where=field_name, found="missing", remedy=remedy)


def dates_error(found: str) -> InputError:
    """Return the error about dates that contradict each other."""
    return InputError(
        "PET_DATES",
        where="(0008,0022) AcquisitionDate and the reference time",
        found=found,
        remedy="shift all dates of the series alike when it is de-identified, or export it again",
    )


def _time_order(field_name: str, found: str) -> InputError:
    return InputError("PET_TIME_ORDER", where=field_name, found=found, remedy="give --injection-time")
