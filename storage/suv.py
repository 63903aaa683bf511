"""From stored PET values to body-weight SUV: decay, the reference-time rule, and the factor of every stored unit.

Pure functions on plain numbers, after the PET module (DICOM PS3.3 C.8.9) and the IBSI SUV computation manual (2026).  A
weight, a dose or a time is never guessed: what is missing ends in an ``InputError``.

Times are seconds on one clock of the series with an arbitrary origin that lies at a midnight, so that differences and
times of day can be formed and no date is ever needed.
"""

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from storage.errors import InputError

DAY_S = 86400.0
STATED = "decay_correction_date_time"  # the rule by which an enhanced object's own statement is the reference time
TOLERANCE_S = 1.0  # header times are written to the second: later by less than this is not later
SPREAD_WARNING_PERCENT = 1.0
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


@dataclass(frozen=True)
class ReferenceTime:
    """The time to which the voxels are decay-corrected, and how sure that is.

    Args:
        rule: the witness used: ``decay_correction_date_time``, ``private``, ``series``, ``back_computed``,
            ``acquisition``.
        time_s: the reference time.
        candidates_s: every witness there was, in s after the earliest acquisition; ``back_computed`` as its earliest
            and latest bed, ``decay_factor`` from the DecayFactor of the first bed.
        spread_percent: largest change of the SUV if another candidate were used.
    """

    rule: str
    time_s: float
    candidates_s: Mapping[str, float]
    spread_percent: float


@dataclass(frozen=True)
class SuvConversion:
    """SUVbw = factor * rescaled value, one factor per slice.

    ``weight_kg``, ``dose_bq`` and ``injection_s`` are those used, ``None`` where the unit needs none.
    """

    factors: tuple[float, ...]
    nuclide: str | None = None
    half_life_s: float | None = None
    weight_kg: float | None = None
    dose_bq: float | None = None
    injection_s: float | None = None
    reference: ReferenceTime | None = None
    overridden: tuple[str, ...] = ()
    completed: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def provenance(self) -> dict[str, object]:
        """Return the facts that may be stored: no weight, dose, date or time of day."""
        facts: dict[str, object] = {"nuclide": self.nuclide, "half_life_s": self.half_life_s}
        factors = sorted(self.factors)
        facts["suv_per_unit"] = factors[
            len(factors) // 2
        ]  # of an image that is not decay-corrected each slice has its own
        if self.reference is not None:
            facts["reference_rule"] = self.reference.rule
            facts["reference_candidates_s"] = {k: round(v, 3) for k, v in self.reference.candidates_s.items()}
            facts["reference_spread_percent"] = round(self.reference.spread_percent, 3)
        if self.overridden:
            facts["overridden"] = list(self.overridden)
        if self.completed:
            facts["completed"] = list(self.completed)
        return facts


def decay(elapsed_s: float, half_life_s: float) -> float:
    """Return the fraction of activity left after ``elapsed_s``: exp(-l t), l = ln 2 / half-life."""
    return math.exp(min(-math.log(2.0) / half_life_s * elapsed_s, 700.0))  # a wrong date must not overflow


def mean_count_delay_s(duration_s: float, half_life_s: float) -> float:
    """Return when within a frame the activity equals its mean over the frame: T_ave = ln(lT / (1 - e^-lT)) / l."""
    rate = math.log(2.0) / half_life_s
    x = rate * duration_s
    return 0.0 if x == 0 else math.log(x / -math.expm1(-x)) / rate


def suv_factor_decay_corrected(weight_kg: float, dose_bq_at_reference: float) -> float:
    """Return SUVbw per Bq/mL: body weight in g over the dose in Bq decayed to the reference time of the voxels.

    Raises:
        InputError: ``PET_WEIGHT``, ``PET_DOSE`` out of the range of a patient.
    """
    if not ANIMAL_KG[0] <= weight_kg <= WEIGHT_KG[1]:
        raise _weight_error(f"{weight_kg:g} kg")
    if not 0 < dose_bq_at_reference <= DOSE_BQ[1]:
        raise _dose_error(f"{dose_bq_at_reference:g} Bq at the reference time")
    _check_animal(weight_kg, dose_bq_at_reference)
    return weight_kg * 1000.0 / dose_bq_at_reference


def apply_overrides(header: PetHeader, overrides: Overrides) -> PetHeader:
    """Return ``header`` with the user's values in place, and their names recorded.

    Raises:
        InputError: ``PET_WEIGHT``, ``PET_DOSE``, ``PET_TIME_ORDER`` if an override itself is not possible.
    """
    names = []
    if overrides.weight_kg is not None:
        if not ANIMAL_KG[0] <= overrides.weight_kg <= WEIGHT_KG[1]:
            raise _weight_error(f"override of {overrides.weight_kg:g} kg")
        header = replace(header, weight_kg=overrides.weight_kg)
        names.append("weight_kg")
    if overrides.dose_mbq is not None:
        if not ANIMAL_DOSE_BQ[0] <= overrides.dose_mbq * 1e6 <= DOSE_BQ[1]:
            raise _dose_error(f"override of {overrides.dose_mbq:g} MBq")
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


def suv_conversion(header: PetHeader, frames: Sequence[Frame]) -> SuvConversion:
    """Return the factors from rescaled stored values to SUVbw.

    Args:
        header: of the series, overrides already applied.
        frames: one per slice; the factors come in this order.

    Returns:
        positive factors; units per factor: SUVbw per unit of ``header.units``.

    Raises:
        InputError: ``PET_UNITS``, ``PET_NOT_CORRECTED``, ``PET_NOT_DECAY_CORRECTED``, ``PET_NUCLIDE``, ``PET_WEIGHT``,
            ``PET_HEIGHT``, ``PET_SEX``, ``PET_DOSE``, ``PET_TIME_MISSING``, ``PET_TIME_ORDER``; ``CFG_NO_EFFECT``
            for an override that the values do not need.

    Source: IBSI SUV computation manual (2026); DICOM PS3.3 C.8.9.1.
    """
    _check_corrections(header)
    n = len(frames)
    if header.units == "CNTS" and header.counts_to_suv:
        return _done(header, SuvConversion((_philips(header.counts_to_suv),) * n))
    if header.units == "GML":
        return _done(header, _from_normalised(header, n))
    if header.units == "CM2ML":
        return _done(header, _from_body_surface(header, n))
    if header.units == "CNTS" and header.counts_to_bqml:
        bqml = _from_activity(header, frames)
        scale = _philips(header.counts_to_bqml)
        return _done(header, replace(bqml, factors=tuple(scale * f for f in bqml.factors)))
    if header.units == "BQML":
        return _done(header, _from_activity(header, frames))
    if header.units == "CNTS":
        raise InputError(
            "PET_UNITS",
            where="(0054,1001) Units",
            found="CNTS without the Philips factors (7053,1000) and (7053,1009)",
            remedy="export the series again with its private tags, or in BQML",
        )
    known = header.units if header.units in ("CPS", "PROPCNTS", "PROPCPS", "1CM", "NONE", "CM2", "PCNT") else ""
    raise InputError(
        "PET_UNITS",
        where="(0054,1001) Units",
        found=known or ("no value that is known" if header.units else "missing"),
        remedy="SUV needs BQML, GML, CM2ML or Philips CNTS; export the corrected reconstruction",
    )


def reference_time(header: PetHeader, frames: Sequence[Frame], half_life_s: float) -> ReferenceTime:
    """Find the time to which the voxels of a DecayCorrection = START series are corrected.

    An enhanced object states that time: then it is the rule, and the others are only told.  Else there are witnesses.

    Witnesses: S, the series time; A, the earliest acquisition of all slices; B, back-computed per slice as
    acquisition + T_ave - FrameReferenceTime; G, GE's private scan time.  The rule: G if there is one; else S if it is
    not after A; else B if the beds agree and it is not after A; else A.  The reference of a START series cannot lie
    after the first acquisition, and B after A (or beds that disagree) means that FrameReferenceTime holds bed offsets.

    Raises:
        InputError: ``PET_TIME_MISSING`` if no slice has an acquisition time and there is neither that time nor G;
            ``PET_DATES`` if the reference and the acquisition, or two acquisitions, lie more than a day apart.
    """
    times = [f.acquisition_s for f in frames if f.acquisition_s is not None]
    D, G, S = header.decay_corrected_to_s, header.private_s, header.series_s
    if not times:
        if D is not None:
            return ReferenceTime(STATED, D, {}, 0.0)
        if G is not None:
            return ReferenceTime("private", G, {}, 0.0)
        raise _time_missing("(0008,0032) AcquisitionTime", "no override replaces it; export the series again")
    A = min(times)
    if max(times) - A > DAY_S:
        raise _dates_error("slices acquired more than a day apart")
    B = [
        f.acquisition_s + mean_count_delay_s(f.duration_s, half_life_s) - f.reference_s
        for f in frames
        if f.acquisition_s is not None and f.duration_s and f.reference_s is not None
    ]
    B_usable = len(B) == len(frames) and max(B) - min(B) <= TOLERANCE_S and max(B) <= A + TOLERANCE_S
    if D is not None:
        rule, time_s = STATED, D
    elif G is not None:
        rule, time_s = "private", G
    elif S is not None and S <= A + TOLERANCE_S:
        rule, time_s = "series", S
    elif B_usable:
        rule, time_s = "back_computed", sorted(B)[len(B) // 2]
    else:
        rule, time_s = "acquisition", A
    if abs(A - time_s) > DAY_S:
        name = {"private": "the scanner's scan time", "series": "(0008,0021) SeriesDate"}.get(
            rule, "FrameReferenceTime"
        )
        raise _dates_error(f"{name} and the acquisition lie {abs(A - time_s) / DAY_S:.0f} days apart")

    candidates = {"acquisition": A}
    if S is not None:
        candidates["series"] = S
    if D is not None:
        candidates[STATED] = D
    if G is not None:
        candidates["private"] = G
    if B:
        candidates |= {"back_computed_first": min(B), "back_computed_last": max(B)}
    witness = _from_decay_factor(frames, A, half_life_s)
    if witness is not None:
        candidates["decay_factor"] = witness
    # A date that is days off says nothing of the time of day; it is noted, not turned into a percentage.
    near = [t for t in candidates.values() if abs(t - time_s) <= DAY_S]
    spread = max(abs(decay(time_s - t, half_life_s) - 1.0) for t in near)
    return ReferenceTime(rule, time_s, {k: t - A for k, t in candidates.items()}, 100.0 * spread)


def lean_body_kg(suv_type: str, weight_kg: float, height_m: float, sex: str) -> float:
    """Return the normalising mass F of a GML image, in kg, so that SUVbw = value * weight / F.

    Sex ``O`` has no consensus: the mean of the two sexes.  Formulae: IBSI SUV computation manual (2026).
    """
    W, H = weight_kg, height_m * 100.0
    bmi = W / height_m**2
    male_female = {
        "LBM": (1.10 * W - 120 * (W / H) ** 2, 1.07 * W - 148 * (W / H) ** 2),
        "LBMJAMES128": (1.10 * W - 128 * (W / H) ** 2, 1.07 * W - 148 * (W / H) ** 2),
        "LBMJANMA": (9270 * W / (6680 + 216 * bmi), 9270 * W / (8780 + 244 * bmi)),
        "IBW": (48.0 + 1.06 * (H - 152), 45.5 + 0.91 * (H - 152)),
    }[suv_type]
    if sex == "O":
        return sum(male_female) / 2
    return male_female[0 if sex == "M" else 1]


def body_surface_m2(weight_kg: float, height_m: float) -> float:
    """Return the body surface area in m^2 after Du Bois: 0.007184 H^0.725 W^0.425, H in cm, W in kg."""
    return float(0.007184 * (height_m * 100.0) ** 0.725 * weight_kg**0.425)


# -- the units --------------------------------------------------------------------------------------------------------


def _from_activity(header: PetHeader, frames: Sequence[Frame]) -> SuvConversion:
    """SUVbw = value * W / D_ref, for values in Bq/mL."""
    nuclide, half_life, nuclide_notes = _nuclide(header)
    weight, weight_notes = _weight(header)
    dose, dose_notes = _dose(header, weight)
    known = SuvConversion((), nuclide, half_life, weight, dose)
    notes = (*header.doubts, *nuclide_notes, *weight_notes, *dose_notes)
    if header.decay_correction == "ADMIN":
        return replace(known, factors=(weight * 1000.0 / dose,) * len(frames), notes=notes)

    times = [f.acquisition_s for f in frames if f.acquisition_s is not None]
    if header.decay_correction == "NONE":
        if len(times) < len(frames):
            raise _time_missing("(0008,0032) AcquisitionTime", "no override replaces it; export the series again")
        if max(times) - min(times) > DAY_S:
            raise _dates_error("slices acquired more than a day apart")
        injection, injection_notes = _injection(header, times, half_life)
        _uptake_notes(max(times) - injection, half_life)
        uptake_notes = _uptake_notes(min(times) - injection, half_life, _latest_injection(header, times) - injection)
        factors = []
        for f in frames:
            assert f.acquisition_s is not None
            if not f.duration_s:
                raise _time_missing("(0018,1242) ActualFrameDuration", "export the decay-corrected series")
            # Value is the mean over the frame; the activity at its start, brought back to the administration.
            mean = mean_count_delay_s(f.duration_s, half_life)
            factors.append(weight * 1000.0 / dose / decay(mean + f.acquisition_s - injection, half_life))
        notes += (*injection_notes, *uptake_notes, "decay_corrected_here")
        return replace(known, factors=tuple(factors), injection_s=injection, notes=notes)

    reference = reference_time(header, frames, half_life)
    times = times or [reference.time_s]
    injection, injection_notes = _injection(header, times, half_life)
    uptake_s = reference.time_s - injection
    if reference.rule != STATED or abs(uptake_s) > TOLERANCE_S:  # else corrected to the administration, as by ADMIN
        left = _latest_injection(header, times) - injection
        notes += (*injection_notes, *_uptake_notes(uptake_s, half_life, left))
    if any(abs(t) > DAY_S for t in reference.candidates_s.values()):
        notes += ("dates_days_apart",)
    if reference.rule != STATED and reference.spread_percent > SPREAD_WARNING_PERCENT:
        notes += ("reference_spread_above_1_percent",)
    if reference.rule == "acquisition":
        notes += ("reference_is_earliest_acquisition",)
    factor = suv_factor_decay_corrected(weight, dose * decay(reference.time_s - injection, half_life))
    return replace(known, factors=(factor,) * len(frames), injection_s=injection, reference=reference, notes=notes)


def _from_normalised(header: PetHeader, n: int) -> SuvConversion:
    """GML: already divided by dose and a mass; only the mass may have to be changed to the body weight."""
    if header.suv_type in ("", "BW"):
        return SuvConversion((1.0,) * n)
    if header.suv_type not in ("LBM", "LBMJAMES128", "LBMJANMA", "IBW"):
        raise _suv_type_error()
    weight, notes = _weight(header)
    height = _height(header)
    if header.sex not in ("M", "F", "O"):
        raise InputError(
            "PET_SEX",
            where="(0010,0040) PatientSex",
            found="not M, F or O",
            remedy=f"SUVType {header.suv_type} needs it; export the series in BQML",
        )
    mass = lean_body_kg(header.suv_type, weight, height, header.sex)
    if mass <= 0:
        raise _height_error("a height and weight that give no lean body mass")
    return SuvConversion((weight / mass,) * n, weight_kg=weight, notes=(*notes, "normalised_to_body_weight"))


def _from_body_surface(header: PetHeader, n: int) -> SuvConversion:
    """CM2ML: divided by dose and multiplied by the body surface in cm^2."""
    if header.suv_type not in ("", "BSA"):
        raise _suv_type_error()
    weight, notes = _weight(header)
    area_cm2 = body_surface_m2(weight, _height(header)) * 1e4
    factor = weight * 1000.0 / area_cm2
    return SuvConversion((factor,) * n, weight_kg=weight, notes=(*notes, "normalised_to_body_weight"))


def _done(header: PetHeader, conversion: SuvConversion) -> SuvConversion:
    used = {"weight_kg": conversion.weight_kg, "dose_mbq": conversion.dose_bq, "injection_time": conversion.injection_s}
    if needless := [name for name in header.overridden if used[name] is None]:
        corrected = ", decay-corrected to the administration" if header.decay_correction == "ADMIN" else ""
        raise InputError(
            "CFG_NO_EFFECT",
            where=f"--{needless[0].replace('_', '-')}",
            found=f"the series' values ({header.units}{corrected}) become SUVbw without it",
            remedy="leave it out; if SUV is wrong, export the series again in BQML",
        )
    if conversion.nuclide is None:
        # The values need no half-life, but a "PT" series of a single-photon nuclide is still not PET.
        nuclide, half_life, notes = _nuclide(header) if header.half_life_s or header.nuclide_code else (None, None, ())
        notes = (*header.doubts, *notes, *conversion.notes)
        conversion = replace(conversion, nuclide=nuclide, half_life_s=half_life, notes=notes)
    return replace(conversion, overridden=header.overridden, completed=header.completed)


# -- single fields ----------------------------------------------------------------------------------------------------


def _check_corrections(header: PetHeader) -> None:
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


def _nuclide(header: PetHeader) -> tuple[str, float, tuple[str, ...]]:
    """The positron emitter, the half-life to use, notes: the header's own, checked, or that of the nuclide's code."""
    by_code = {name for name, (_, codes) in NUCLIDES.items() if header.nuclide_code in codes}
    by_meaning = _named(header.nuclide_meaning)
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


def _named(text: str) -> set[str]:
    """Nuclides that a text names: F-18, 18F, ^18^Fluorine, Fluorine 18, Ga68."""
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


def _tracer_notes(header: PetHeader, nuclide: str) -> tuple[str, ...]:
    """Say that the tracer is made with another nuclide only: FDG with the half-life of Ga-68."""
    usual = TRACER_NUCLIDES.get(header.tracer, (nuclide,))
    return () if nuclide in usual else ("tracer_contradicts_nuclide",)


def _nuclide_error(found: str, remedy: str) -> InputError:
    return InputError("PET_NUCLIDE", where="(0018,1075) RadionuclideHalfLife", found=found, remedy=remedy)


def _weight(header: PetHeader) -> tuple[float, tuple[str, ...]]:
    weight = header.weight_kg
    if weight is None or not math.isfinite(weight) or weight <= 0:
        raise _weight_error("missing, zero or not a number")
    notes: tuple[str, ...] = ()
    if weight > 1000:
        weight, notes = weight / 1000.0, ("weight_read_as_g",)
    if not ANIMAL_KG[0] <= weight <= WEIGHT_KG[1]:
        raise _weight_error(f"outside {ANIMAL_KG[0]:g} to {WEIGHT_KG[1]:g} kg")
    return weight, notes + ("small_animal",) * (weight < ANIMAL_KG[1])


def _check_animal(weight_kg: float, dose_bq: float) -> None:
    """Refuse a weight below a kilogram with a dose that no small animal is given: it is a wrong weight."""
    if weight_kg < ANIMAL_KG[1] and dose_bq / 1e6 / weight_kg > ANIMAL_MBQ_PER_KG:
        found = f"{weight_kg:g} kg with {dose_bq / 1e6:.3g} MBq, more than {ANIMAL_MBQ_PER_KG:g} MBq per kg"
        raise _weight_error(found)


def _height(header: PetHeader) -> float:
    height = header.height_m
    if height is None or not 0.3 <= height <= 2.7:
        raise _height_error("missing, or outside 0.3 to 2.7 m")
    return height


def _dose(header: PetHeader, weight_kg: float) -> tuple[float, tuple[str, ...]]:
    dose = header.dose_bq
    if dose is None or not math.isfinite(dose) or dose <= 0:
        raise _dose_error("missing, zero or not a number")
    notes: tuple[str, ...] = ()
    if dose < 1e4:  # real headers have two peaks, near 4e2 and near 4e8: the first is MBq
        animal = weight_kg < ANIMAL_KG[1]
        low, high = (0.0, ANIMAL_MBQ_PER_KG) if animal else MBQ_PER_KG_OF_A_GUESS
        if not low <= dose / weight_kg <= high:
            raise _dose_error(f"{dose:g}, which is no Bq, and as MBq {dose / weight_kg:.3g} per kg: mCi?")
        dose, notes = dose * 1e6, ("dose_read_as_MBq",)
    low, high = ANIMAL_DOSE_BQ if weight_kg < ANIMAL_KG[1] else DOSE_BQ
    if not low <= dose <= high:
        kind = "a small animal" if weight_kg < ANIMAL_KG[1] else "a patient"
        if weight_kg < ANIMAL_KG[1] and dose > high:
            _check_animal(weight_kg, dose)
        raise _dose_error(f"{dose / 1e6:.3g} MBq, outside {low / 1e6:g} to {high / 1e6:g} MBq for {kind}")
    _check_animal(weight_kg, dose)
    return dose, notes


def _injection(header: PetHeader, times: Sequence[float], half_life_s: float) -> tuple[float, tuple[str, ...]]:
    """The time of injection; a time of day is put on the day of the acquisition, or the evening before it."""
    acquisition_s, clock = min(times), header.injection_clock_s
    midnight = math.floor(acquisition_s / DAY_S) * DAY_S
    if header.injection_s is not None:
        told = header.injection_s
        apart = 0.0 if clock is None else (clock - told % DAY_S + DAY_S / 2) % DAY_S - DAY_S / 2
        if abs(decay(apart, half_life_s) - 1.0) <= CONTRADICTION:
            earliest = acquisition_s - MAX_HALF_LIVES * half_life_s
            possible = earliest <= told <= _latest_injection(header, times)
            if not possible and clock is not None and clock <= acquisition_s - midnight:
                # De-identification has moved its date and not those of the series; the time of day says what it was.
                return midnight + clock, ("injection_date_impossible",)
            return told, ("injection_zone_ignored",) * (header.injection_zone and clock is None)
        if header.injection_zone and abs(apart - round(apart / 900.0) * 900.0) < 1.0:
            # In another zone than the series, which states none: the time of day is the scanner's own clock.
            return told + apart, ("injection_time_of_day_used",)
        return told, ("injection_times_contradict",)
    if clock is None:
        raise _time_missing("(0018,1078) RadiopharmaceuticalStartDateTime", "give --injection-time")
    injection = midnight + clock
    latest = _latest_injection(header, times)
    if injection + DAY_S <= latest:  # a dynamic scan that was started before midnight, and the injection after it
        return injection + DAY_S, ()
    if injection <= latest:
        return injection, ()
    injection -= DAY_S
    if acquisition_s - injection > OVERNIGHT_UPTAKE_S:
        raise _time_order("(0018,1072) RadiopharmaceuticalStartTime", "an injection after the acquisition")
    return injection, ("injection_on_previous_day",)


def _latest_injection(header: PetHeader, times: Sequence[float]) -> float:
    """Until when a patient may have been injected: before the scan, or while a dynamic one went on."""
    during = min(max(times) - min(times), LATE_INJECTION_S) if header.series_type == "DYNAMIC" else 0.0
    return min(times) + max(during, header.dynamic_s)


def _uptake_notes(uptake_s: float, half_life_s: float, left_s: float = 0.0) -> tuple[str, ...]:
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


def _from_decay_factor(frames: Sequence[Frame], A: float, half_life_s: float) -> float | None:
    """Reference time by DecayFactor: ln(DF) / l runs from it to the mean count time, here of the first bed."""
    first = min(
        (f for f in frames if f.decay_factor is not None and f.decay_factor > 0 and f.duration_s is not None),
        key=lambda f: f.decay_factor or math.inf,
        default=None,
    )
    if first is None or first.decay_factor is None or first.duration_s is None:
        return None
    elapsed = math.log(first.decay_factor) / math.log(2.0) * half_life_s
    return A + mean_count_delay_s(first.duration_s, half_life_s) - elapsed


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


def _philips(factor: float) -> float:
    if math.isfinite(factor) and factor > 0:
        return factor
    raise InputError(
        "PET_UNITS",
        where="(7053,1000) SUV factor or (7053,1009) activity factor",
        found="not a positive finite number",
        remedy="export the series in BQML",
    )


# -- the errors -------------------------------------------------------------------------------------------------------


def _weight_error(found: str) -> InputError:
    return InputError("PET_WEIGHT", where="(0010,1030) PatientWeight", found=found, remedy="give --weight-kg")


def _dose_error(found: str) -> InputError:
    return InputError("PET_DOSE", where="(0018,1074) RadionuclideTotalDose", found=found, remedy="give --dose-mbq")


def _height_error(found: str) -> InputError:
    return InputError(
        "PET_HEIGHT",
        where="(0010,1020) PatientSize",
        found=found,
        remedy="export the series in BQML or as SUVType BW",
    )


def _suv_type_error() -> InputError:
    return InputError(
        "PET_UNITS",
        where="(0054,1006) SUVType",
        found="not a type that goes with Units",
        remedy="export the series in BQML or as SUVType BW",
    )


def _time_missing(field_name: str, remedy: str) -> InputError:
    return InputError("PET_TIME_MISSING", where=field_name, found="missing", remedy=remedy)


def _dates_error(found: str) -> InputError:
    return InputError(
        "PET_DATES",
        where="(0008,0022) AcquisitionDate and the reference time",
        found=found,
        remedy="shift all dates of the series alike when it is de-identified, or export it again",
    )


def _time_order(field_name: str, found: str) -> InputError:
    return InputError("PET_TIME_ORDER", where=field_name, found=found, remedy="give --injection-time")
