"""From stored PET values to body-weight SUV: the reference-time rule, and the factor of every stored unit.

Pure functions on plain numbers, after the PET module (DICOM PS3.3 C.8.9) and the IBSI SUV computation manual (2026).
What a single field may be is in ``storage.pet_fields``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from storage.errors import InputError
from storage.nuclides import NUCLIDES, decay, mean_count_delay_s
from storage.pet_fields import (
    ANIMAL_KG,
    CONTRADICTION,
    DAY_S,
    DOSE_BQ,
    MBQ_PER_MCI,
    WEIGHT_KG,
    Frame,
    Overrides,
    PetHeader,
    Stated,
    apply_overrides,
    check_animal,
    check_corrections,
    check_rescale,
    complete,
    correction_notes,
    dates_error,
    dose_error,
    dose_of,
    height_error,
    height_of,
    injection_of,
    latest_injection,
    nuclide_of,
    seconds_of,
    time_missing,
    uptake_notes,
    weight_error,
    weight_of,
)

# The header's fields belong to this interface: whoever forms SUV needs them.
__all__ = [
    "CONTRADICTION", "DAY_S", "DOSE_BQ", "MBQ_PER_MCI", "NUCLIDES", "WEIGHT_KG", "Frame", "Overrides", "PetHeader",
    "ReferenceTime", "Stated", "SuvConversion", "apply_overrides", "body_surface_m2", "check_rescale", "complete",
    "decay", "lean_body_kg", "mean_count_delay_s", "reference_time", "seconds_of", "suv_conversion",
    "suv_factor_decay_corrected",
]  # fmt: skip

STATED = "decay_correction_date_time"  # the rule by which an enhanced object's own statement is the reference time
TOLERANCE_S = 1.0  # header times are written to the second: later by less than this is not later
SPREAD_WARNING_PERCENT = 1.0


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


def suv_factor_decay_corrected(weight_kg: float, dose_bq_at_reference: float) -> float:
    """Return SUVbw per Bq/mL: body weight in g over the dose in Bq decayed to the reference time of the voxels.

    Raises:
        InputError: ``PET_WEIGHT``, ``PET_DOSE`` out of the range of a patient.
    """
    if not ANIMAL_KG[0] <= weight_kg <= WEIGHT_KG[1]:
        raise weight_error(f"{weight_kg:g} kg")
    if not 0 < dose_bq_at_reference <= DOSE_BQ[1]:
        raise dose_error(f"{dose_bq_at_reference:g} Bq at the reference time")
    check_animal(weight_kg, dose_bq_at_reference)
    return weight_kg * 1000.0 / dose_bq_at_reference


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
    check_corrections(header)
    n = len(frames)
    if header.units == "CNTS" and header.counts_to_suv:
        told = _philips_notes(header, frames)
        return _done(header, SuvConversion((_philips(header.counts_to_suv),) * n, notes=told))
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
        raise time_missing("(0008,0032) AcquisitionTime", "no override replaces it; export the series again")
    A = min(times)
    if max(times) - A > DAY_S:
        raise dates_error("slices acquired more than a day apart")
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
        raise dates_error(f"{name} and the acquisition lie {abs(A - time_s) / DAY_S:.0f} days apart")

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
    nuclide, half_life, nuclide_notes = nuclide_of(header)
    weight, weight_notes = weight_of(header)
    dose, dose_notes = dose_of(header, weight)
    known = SuvConversion((), nuclide, half_life, weight, dose)
    notes = (*header.doubts, *correction_notes(header), *nuclide_notes, *weight_notes, *dose_notes)
    if header.decay_correction == "ADMIN":
        return replace(known, factors=(weight * 1000.0 / dose,) * len(frames), notes=notes)

    times = [f.acquisition_s for f in frames if f.acquisition_s is not None]
    if header.decay_correction == "NONE":
        if len(times) < len(frames):
            raise time_missing("(0008,0032) AcquisitionTime", "no override replaces it; export the series again")
        if max(times) - min(times) > DAY_S:
            raise dates_error("slices acquired more than a day apart")
        injection, injection_notes = injection_of(header, times, half_life)
        uptake_notes(max(times) - injection, half_life)
        told = uptake_notes(min(times) - injection, half_life, latest_injection(header, times) - injection)
        factors = []
        for f in frames:
            assert f.acquisition_s is not None
            if not f.duration_s:
                raise time_missing("(0018,1242) ActualFrameDuration", "export the decay-corrected series")
            # Value is the mean over the frame; the activity at its start, brought back to the administration.
            mean = mean_count_delay_s(f.duration_s, half_life)
            factors.append(weight * 1000.0 / dose / decay(mean + f.acquisition_s - injection, half_life))
        notes += (*injection_notes, *told, "decay_corrected_here")
        return replace(known, factors=tuple(factors), injection_s=injection, notes=notes)

    reference = reference_time(header, frames, half_life)
    times = times or [reference.time_s]
    injection, injection_notes = injection_of(header, times, half_life)
    uptake_s = reference.time_s - injection
    if reference.rule != STATED or abs(uptake_s) > TOLERANCE_S:  # else corrected to the administration, as by ADMIN
        left = latest_injection(header, times) - injection
        notes += (*injection_notes, *uptake_notes(uptake_s, half_life, left))
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
    weight, notes = weight_of(header)
    height = height_of(header)
    if header.sex not in ("M", "F", "O"):
        raise InputError(
            "PET_SEX",
            where="(0010,0040) PatientSex",
            found="not M, F or O",
            remedy=f"SUVType {header.suv_type} needs it; export the series in BQML",
        )
    mass = lean_body_kg(header.suv_type, weight, height, header.sex)
    if mass <= 0:
        raise height_error("a height and weight that give no lean body mass")
    return SuvConversion((weight / mass,) * n, weight_kg=weight, notes=(*notes, "normalised_to_body_weight"))


def _from_body_surface(header: PetHeader, n: int) -> SuvConversion:
    """CM2ML: divided by dose and multiplied by the body surface in cm^2."""
    if header.suv_type not in ("", "BSA"):
        raise _suv_type_error()
    weight, notes = weight_of(header)
    area_cm2 = body_surface_m2(weight, height_of(header)) * 1e4
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
        nuclide, half_life, notes = (
            nuclide_of(header) if header.half_life_s or header.nuclide_code else (None, None, ())
        )
        notes = (*header.doubts, *notes, *conversion.notes)
        conversion = replace(conversion, nuclide=nuclide, half_life_s=half_life, notes=notes)
    return replace(conversion, overridden=header.overridden, completed=header.completed)


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


def _philips_notes(header: PetHeader, frames: Sequence[Frame]) -> tuple[str, ...]:
    """Say that the activity factor, with weight, dose and times, gives another SUV than the SUV factor does."""
    if not header.counts_to_bqml or not header.counts_to_suv:
        return ()
    try:
        other = _from_activity(header, frames).factors[0] * header.counts_to_bqml
    except InputError:  # what the activity factor needs is not there; the SUV factor needs none of it
        return ()
    return ("philips_factors_contradict",) * (abs(other / header.counts_to_suv - 1.0) > CONTRADICTION)


def _philips(factor: float) -> float:
    if math.isfinite(factor) and factor > 0:
        return factor
    raise InputError(
        "PET_UNITS",
        where="(7053,1000) SUV factor or (7053,1009) activity factor",
        found="not a positive finite number",
        remedy="export the series in BQML",
    )


def _suv_type_error() -> InputError:
    return InputError(
        "PET_UNITS",
        where="(0054,1006) SUVType",
        found="not a type that goes with Units",
        remedy="export the series in BQML or as SUVType BW",
    )
