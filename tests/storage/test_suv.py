"""The reference-time rule, the units and the refusals of storage.suv."""

import datetime
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InputError
from storage.suv import (
    DAY_S,
    Frame,
    Overrides,
    PetHeader,
    apply_overrides,
    body_surface_m2,
    check_rescale,
    decay,
    lean_body_kg,
    mean_count_delay_s,
    suv_conversion,
    suv_factor_decay_corrected,
)

T = 6588.0
NOON = 700000 * DAY_S + 12 * 3600.0
BEDS = (0.0, 240.0, 480.0)  # start of each bed after the first
MEAN = mean_count_delay_s(180.0, T)
HEADER = PetHeader(
    units="BQML",
    decay_correction="START",
    corrected=frozenset({"DECY", "ATTN", "SCAT"}),
    weight_kg=70.0,
    height_m=1.75,
    sex="M",
    dose_bq=370e6,
    half_life_s=T,
    injection_s=NOON - 3600.0,
    series_s=NOON,
)


def beds(reference_s: float = NOON, acquisition: tuple[float, ...] = BEDS, start: float = NOON) -> list[Frame]:
    """One frame per bed, each of which says truly how long after ``reference_s`` its mean count time is."""
    return [Frame(start + a, 180.0, start + a + MEAN - reference_s, decay(-(a + MEAN), T)) for a in acquisition]


def expected(reference_s: float, header: PetHeader = HEADER) -> float:
    return header.weight_kg * 1000 / (header.dose_bq * decay(reference_s - header.injection_s, T))


def test_decay_halves_in_a_half_life() -> None:
    assert decay(T, T) == pytest.approx(0.5)
    assert decay(-T, T) == pytest.approx(2.0)


@given(duration=st.floats(1e-3, 1e5))
def test_activity_at_the_mean_count_time_is_the_mean_over_the_frame(duration: float) -> None:
    rate = math.log(2) / T
    mean = -math.expm1(-rate * duration) / (rate * duration)
    assert decay(mean_count_delay_s(duration, T), T) == pytest.approx(mean, rel=1e-9)


def test_a_dose_spread_evenly_is_suv_one() -> None:
    left = 370e6 * decay(3600, T)
    concentration_bqml = left / 70000
    assert concentration_bqml * suv_factor_decay_corrected(70.0, left) == pytest.approx(1.0)


# What a series says -> which time must be used.  ``late`` series were reprocessed: their series time is no witness.
LATE = replace(HEADER, series_s=NOON + 1800)
GE = [replace(f, acquisition_s=NOON, reference_s=a) for f, a in zip(beds(), BEDS, strict=True)]
RULES = {
    "siemens, a time per bed": (HEADER, beds(), "series", NOON),
    "ge, one time and bed offsets": (HEADER, GE, "series", NOON),
    "series later by rounding": (replace(HEADER, series_s=NOON + 5e-6), beds(), "series", NOON),
    "series long before": (replace(HEADER, series_s=NOON - 1284), beds(NOON - 1284), "series", NOON - 1284),
    "late, true frame times": (LATE, beds(NOON - 100), "back_computed", NOON - 100),
    "late, frame times 0": (LATE, [replace(f, reference_s=0.0) for f in beds(acquisition=(0.0,))], "acquisition", NOON),
    "late, bed offsets": (LATE, GE, "acquisition", NOON),
    "late, no frame times": (LATE, [replace(f, reference_s=None) for f in beds()], "acquisition", NOON),
    "no series time": (replace(HEADER, series_s=None), beds(NOON - 9), "back_computed", NOON - 9),
    "ge private": (replace(LATE, private_s=NOON - 60), beds(), "private", NOON - 60),
}


@pytest.mark.parametrize("case", RULES)
def test_reference_time_rule(case: str) -> None:
    header, frames, rule, reference_s = RULES[case]
    conversion = suv_conversion(header, frames)
    assert conversion.reference.rule == rule
    assert conversion.factors == pytest.approx([expected(reference_s)] * len(frames), rel=1e-8)


@pytest.mark.parametrize("case", RULES)
def test_order_of_slices_does_not_matter(case: str) -> None:
    header, frames, _, _ = RULES[case]
    assert suv_conversion(header, frames[::-1]).factors == pytest.approx(suv_conversion(header, frames).factors)


def test_every_candidate_is_told_with_the_spread() -> None:
    reference = suv_conversion(HEADER, GE).reference
    assert reference.candidates_s["series"] == 0
    assert reference.candidates_s["back_computed_first"] == pytest.approx(MEAN - BEDS[-1])
    assert reference.candidates_s["back_computed_last"] == pytest.approx(MEAN)
    assert reference.candidates_s["decay_factor"] == pytest.approx(0.0, abs=1e-6)
    worst = max(abs(decay(-t, T) - 1) for t in reference.candidates_s.values())
    assert reference.spread_percent == pytest.approx(100 * worst)
    assert "reference_spread_above_1_percent" in suv_conversion(HEADER, GE).notes
    assert "reference_spread_above_1_percent" not in suv_conversion(HEADER, beds()).notes


def test_admin_needs_no_time_and_is_not_decayed_twice() -> None:
    header = replace(HEADER, decay_correction="ADMIN", injection_s=None, series_s=None)
    assert suv_conversion(header, [Frame()] * 2).factors == pytest.approx([70000 / 370e6] * 2)


def test_uncorrected_beds_are_each_brought_back_to_the_injection() -> None:
    header = replace(HEADER, decay_correction="NONE", corrected=frozenset({"ATTN"}))
    frames = beds()
    # what a scanner would measure of a body that holds the dose evenly, without any decay correction
    measured = [370e6 / 70000 * decay(f.acquisition_s - header.injection_s + MEAN, T) for f in frames]
    suv = [m * f for m, f in zip(measured, suv_conversion(header, frames).factors, strict=True)]
    assert suv == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    ("header", "note"),
    [
        (replace(HEADER, dose_bq=370.0), "dose_read_as_MBq"),
        (replace(HEADER, weight_kg=70000.0), "weight_read_as_g"),
        (replace(HEADER, injection_s=None, injection_clock_s=11 * 3600.0), None),
        (replace(HEADER, half_life_s=None, nuclide_code="C-111A1"), None),
    ],
)
def test_other_ways_to_say_the_same(header: PetHeader, note: str | None) -> None:
    conversion = suv_conversion(header, beds())
    assert conversion.factors[0] == pytest.approx(expected(NOON), rel=2e-4)
    assert note is None or note in conversion.notes


def test_injection_before_midnight() -> None:
    after_midnight = 700000 * DAY_S + 600.0
    header = replace(HEADER, series_s=after_midnight, injection_s=None, injection_clock_s=DAY_S - 3000.0)
    conversion = suv_conversion(header, beds(after_midnight, start=after_midnight))
    assert conversion.factors[0] == pytest.approx(70000 / (370e6 * decay(3600.0, T)))
    assert "injection_on_previous_day" in conversion.notes


def test_gallium_decays_with_its_own_half_life() -> None:
    header = replace(HEADER, half_life_s=4057.0, nuclide_code="C-131A3")
    conversion = suv_conversion(header, beds())
    assert conversion.nuclide == "Ga-68"
    assert conversion.factors[0] == pytest.approx(70000 / (370e6 * decay(3600.0, 4057.0)))


@pytest.mark.parametrize("suv_type", ["", "BW"])
def test_normalised_values_are_taken_as_they_are(suv_type: str) -> None:
    header = PetHeader("GML", "ADMIN", frozenset({"DECY", "ATTN"}), suv_type=suv_type)
    assert suv_conversion(header, [Frame()] * 2).factors == (1.0, 1.0)


@pytest.mark.parametrize(
    ("suv_type", "sex", "mass_kg"),
    [
        ("LBM", "M", 1.10 * 70 - 120 * 0.16),
        ("LBM", "F", 1.07 * 70 - 148 * 0.16),
        ("LBMJAMES128", "M", 1.10 * 70 - 128 * 0.16),
        ("LBMJANMA", "F", 9270 * 70 / (8780 + 244 * 70 / 1.75**2)),
        ("IBW", "O", (48.0 + 1.06 * 23 + 45.5 + 0.91 * 23) / 2),
    ],
)
def test_lean_body_values_go_back_to_body_weight(suv_type: str, sex: str, mass_kg: float) -> None:
    assert lean_body_kg(suv_type, 70.0, 1.75, sex) == pytest.approx(mass_kg)
    header = replace(HEADER, units="GML", suv_type=suv_type, sex=sex)
    assert suv_conversion(header, beds()).factors[0] == pytest.approx(70.0 / mass_kg)


def test_body_surface_values_go_back_to_body_weight() -> None:
    assert body_surface_m2(70.0, 1.75) == pytest.approx(1.848, abs=1e-3)
    factor = suv_conversion(replace(HEADER, units="CM2ML", suv_type="BSA"), beds()).factors[0]
    assert factor == pytest.approx(70000 / (1.848e4), rel=1e-3)


def test_philips_counts() -> None:
    suv_only = replace(HEADER, units="CNTS", counts_to_suv=5e-4, counts_to_bqml=None)
    assert suv_conversion(suv_only, beds()).factors == (5e-4,) * 3
    both = replace(suv_only, counts_to_bqml=1.6)
    assert suv_conversion(both, beds()).factors == (5e-4,) * 3
    activity_only = replace(both, counts_to_suv=0.0)
    assert suv_conversion(activity_only, beds()).factors[0] == pytest.approx(1.6 * expected(NOON))
    bqml = replace(both, units="BQML")
    assert suv_conversion(bqml, beds()).factors[0] == pytest.approx(expected(NOON))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("PET_UNITS", {"units": "CNTS"}),
        ("PET_UNITS", {"units": "CNTS", "counts_to_suv": 0.0, "counts_to_bqml": 0.0}),
        ("PET_UNITS", {"units": "PROPCNTS"}),
        ("PET_UNITS", {"units": "CPS"}),
        ("PET_UNITS", {"units": "1CM"}),
        ("PET_UNITS", {"units": ""}),
        ("PET_UNITS", {"units": "GML", "suv_type": "XYZ"}),
        ("PET_NOT_CORRECTED", {"corrected": frozenset({"DECY"})}),
        ("PET_NOT_CORRECTED", {"corrected": frozenset({"ATTN"})}),
        ("PET_NOT_DECAY_CORRECTED", {"decay_correction": ""}),
        ("PET_NOT_DECAY_CORRECTED", {"decay_correction": "NONE", "units": "GML"}),
        ("PET_WEIGHT", {"weight_kg": None}),
        ("PET_WEIGHT", {"weight_kg": 0.0}),
        ("PET_WEIGHT", {"weight_kg": 0.3}),
        ("PET_WEIGHT", {"weight_kg": 700.0}),
        ("PET_WEIGHT", {"weight_kg": math.nan}),
        ("PET_DOSE", {"dose_bq": None}),
        ("PET_DOSE", {"dose_bq": 0.0}),
        ("PET_DOSE", {"dose_bq": -370e6}),
        ("PET_DOSE", {"dose_bq": 370e3}),
        ("PET_DOSE", {"dose_bq": 370e12}),
        ("PET_HEIGHT", {"units": "GML", "suv_type": "LBM", "height_m": None}),
        ("PET_HEIGHT", {"units": "CM2ML", "height_m": 175.0}),
        ("PET_SEX", {"units": "GML", "suv_type": "LBM", "sex": ""}),
        ("PET_NUCLIDE", {"half_life_s": None}),
        ("PET_NUCLIDE", {"half_life_s": 574300.0}),  # Lu-177, a SPECT series stored as PT
        ("PET_NUCLIDE", {"units": "GML", "half_life_s": 574300.0}),
        ("PET_NUCLIDE", {"nuclide_code": "C-131A3"}),  # says Ga-68, decays like F-18
        ("PET_TIME_MISSING", {"injection_s": None}),
        ("PET_TIME_ORDER", {"injection_s": NOON + 60}),
        ("PET_TIME_ORDER", {"injection_s": NOON - 3 * DAY_S}),
        ("PET_TIME_ORDER", {"injection_s": None, "injection_clock_s": 12 * 3600.0 + 600}),
    ],
)
def test_refuses_what_it_would_have_to_guess(code: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        suv_conversion(replace(HEADER, **changes), beds())
    assert error.value.code == code
    assert "\n" not in str(error.value)


def test_refuses_a_series_without_acquisition_times() -> None:
    with pytest.raises(InputError, match="PET_TIME_MISSING"):
        suv_conversion(HEADER, [Frame()])


@pytest.mark.parametrize(
    ("slope", "intercept", "code"),
    [
        *((slope, 0.0, "PET_BAD_SLOPE") for slope in (0.0, -1.0, math.nan, math.inf)),
        (1.0, -1024.0, "PET_BAD_INTERCEPT"),
    ],
)
def test_rescale(slope: float, intercept: float, code: str) -> None:
    with pytest.raises(InputError, match=code):
        check_rescale(slope, intercept, "a.dcm")
    check_rescale(1.7, 0.0, "a.dcm")


def test_overrides_stand_in_and_are_recorded() -> None:
    bare = replace(HEADER, weight_kg=None, dose_bq=None, injection_s=None)
    header = apply_overrides(bare, Overrides(weight_kg=70.0, dose_mbq=370.0, injection_time="11:00:00"))
    conversion = suv_conversion(header, beds())
    assert conversion.factors[0] == pytest.approx(expected(NOON))
    assert conversion.provenance()["overridden"] == ["weight_kg", "dose_mbq", "injection_time"]
    day = datetime.date.fromordinal(700000).isoformat()
    dated = apply_overrides(bare, Overrides(70.0, 370.0, f"{day}T11:00:00"))
    assert suv_conversion(dated, beds()).factors == conversion.factors


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        (Overrides(weight_kg=0.0), "PET_WEIGHT"),
        (Overrides(weight_kg=math.nan), "PET_WEIGHT"),
        (Overrides(dose_mbq=370e6), "PET_DOSE"),
        (Overrides(injection_time="noon"), "PET_TIME_ORDER"),
    ],
)
def test_impossible_overrides(overrides: Overrides, code: str) -> None:
    with pytest.raises(InputError, match=code):
        apply_overrides(HEADER, overrides)


def test_provenance_is_json_without_times_of_day_weight_or_dose() -> None:
    facts = json.dumps(suv_conversion(HEADER, GE).provenance())
    for number in (HEADER.weight_kg, HEADER.dose_bq, NOON, HEADER.injection_s, int(NOON)):
        assert str(number) not in facts


FACTORS = {
    "SIEMENS": 0.00042748316187197236,
    "GE_MEDICAL_AND_BQML": 0.0005367387681819742,
    "PHILIPS_BQML": 0.0007463747013889488,
    "PHILIPS_CNTS_AND_BQML_SUV": 0.000551,
    "PHILIPS_CNTS_AND_SUV": 0.000728,
    "BQML_AC_DT_lessThan_S_DT_SIEMENS": 0.0004069156854009332,
    "CPS_AND_BQML_AC_DT_-_S_DT": 0.00026503312764157046,
    "RADIOPHARM_DATETIME_UNDEFINED": 0.0003721089202818729,
}


def _clock(text: str) -> float:
    whole = text.strip().replace(":", "")
    return int(whole[:2]) * 3600 + int(whole[2:4]) * 60 + float(whole[4:])


def _moment(date: str, clock: str) -> float:
    return datetime.datetime.strptime(date, "%Y%m%d").toordinal() * DAY_S + _clock(clock)


@pytest.mark.skipif("PETSCALE_REAL_DATA" not in os.environ, reason="PETSCALE_REAL_DATA names no data folder")
@pytest.mark.parametrize("case", FACTORS)
def test_vendor_headers(case: str) -> None:
    path = Path(os.environ["PETSCALE_REAL_DATA"], "calculate_suv_metadata", f"{case}-instances.json")
    instances = json.loads(path.read_text())
    first = instances[0]
    philips = first["PhilipsPETPrivateGroup"]
    stated = first.get("RadiopharmaceuticalStartDateTime", "").strip()
    header = PetHeader(
        units=first["Units"],
        decay_correction=first["DecayCorrection"],
        corrected=frozenset(first["CorrectedImage"]),
        weight_kg=first["PatientWeight"],
        dose_bq=first["RadionuclideTotalDose"],
        half_life_s=first["RadionuclideHalfLife"],
        injection_s=_moment(stated[:8], stated[8:]) if stated else None,
        injection_clock_s=_clock(first["RadiopharmaceuticalStartTime"]),
        series_s=_moment(first["SeriesDate"], first["SeriesTime"]),
        counts_to_suv=float(philips["SUVScaleFactor"]) if "SUVScaleFactor" in philips else None,
        counts_to_bqml=float(philips["ActivityConcentrationScaleFactor"])
        if "ActivityConcentrationScaleFactor" in philips
        else None,
    )
    frames = [
        Frame(
            _moment(i["AcquisitionDate"], i["AcquisitionTime"]),
            i["ActualFrameDuration"] / 1000,
            i["FrameReferenceTime"] / 1000,
        )
        for i in instances
    ]
    assert suv_conversion(header, frames).factors == pytest.approx([FACTORS[case]] * 3, rel=1e-6)


# -- what a header leaves open, and what it contradicts ----------------------------------------------------------------


def test_a_small_animal_has_the_suv_of_its_weight() -> None:
    mouse = replace(HEADER, weight_kg=0.025, dose_bq=7e6)
    conversion = suv_conversion(mouse, beds())
    assert conversion.factors[0] == pytest.approx(expected(NOON, mouse))
    assert "small_animal" in conversion.notes


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("PET_WEIGHT", {"weight_kg": 0.07, "dose_bq": 250e6}),  # 70 kg in tonnes
        ("PET_WEIGHT", {"weight_kg": 0.001}),
        ("PET_DOSE", {"weight_kg": 0.025, "dose_bq": 7e4}),
        ("PET_DOSE", {"dose_bq": 10.0}),  # mCi
        ("PET_DOSE", {"dose_bq": 0.37e6}),  # of a mouse, for a patient of 70 kg
        ("PET_DATES", {"series_s": NOON - 37 * DAY_S, "injection_s": NOON - 37 * DAY_S - 3600}),
        ("PET_DATES", {"private_s": NOON - 2 * DAY_S}),
        ("PET_NUCLIDE", {"nuclide_meaning": "Gallium-68"}),
        ("PET_NUCLIDE", {"nuclide_code": "C-131A3", "nuclide_meaning": "^68^Gallium"}),
        ("PET_NUCLIDE", {"half_life_s": None, "nuclide_code": "C-131A3", "nuclide_meaning": "^18^Fluorine"}),
        ("PET_TIME_ORDER", {"injection_s": NOON + 3 * 3600, "series_type": "DYNAMIC"}),
    ],
)
def test_fields_that_contradict_each_other_are_refused(code: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        suv_conversion(replace(HEADER, **changes), beds())
    assert error.value.code == code
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("meaning", ["^18^Fluorine", "Fluorine F^18^", "F-18", "18F", "Fluorine-18", "F18 FDG"])
def test_two_of_three_fields_decide_the_nuclide(meaning: str) -> None:
    conversion = suv_conversion(replace(HEADER, nuclide_code="C-131A3", nuclide_meaning=meaning), beds())
    assert conversion.nuclide == "F-18"
    assert conversion.factors[0] == pytest.approx(expected(NOON))
    assert "nuclide_code_contradicts_meaning_and_half_life" in conversion.notes
    said = suv_conversion(replace(HEADER, nuclide_code="C-111A1", nuclide_meaning=meaning), beds())
    assert not said.notes


def test_a_tracer_of_another_nuclide_is_noted() -> None:
    header = replace(HEADER, tracer="FDG", half_life_s=4062.6)
    assert "tracer_contradicts_nuclide" in suv_conversion(header, beds()).notes
    assert "tracer_contradicts_nuclide" not in suv_conversion(replace(HEADER, tracer="FDG"), beds()).notes
    assert "tracer_contradicts_nuclide" not in suv_conversion(replace(header, tracer="PSMA"), beds()).notes


@pytest.mark.parametrize("days", [-37, -13, -1, 1, 4, -45000])
def test_a_date_of_the_injection_that_cannot_be_is_replaced_by_its_time_of_day(days: int) -> None:
    """De-identification moved it and not the others; where there is no time of day beside it, it is refused."""
    header = replace(HEADER, injection_s=NOON - 3600 + days * DAY_S, injection_clock_s=11 * 3600.0)
    conversion = suv_conversion(header, beds())
    assert conversion.factors[0] == pytest.approx(expected(NOON))
    assert "injection_date_impossible" in conversion.notes
    with pytest.raises(InputError, match="PET_TIME_ORDER"):
        suv_conversion(replace(header, injection_clock_s=None), beds())
    with pytest.raises(InputError, match="PET_TIME_ORDER"):
        suv_conversion(replace(header, injection_clock_s=13 * 3600.0, injection_s=NOON + 3600 + days * DAY_S), beds())


@pytest.mark.parametrize("zone", [False, True])
def test_two_injection_times_are_noted_and_the_one_with_a_date_is_used(zone: bool) -> None:
    header = replace(HEADER, injection_clock_s=10 * 3600.0 + 1234, injection_zone=zone)
    conversion = suv_conversion(header, beds())
    assert conversion.factors[0] == pytest.approx(expected(NOON))
    assert "injection_times_contradict" in conversion.notes


def test_reprocessing_days_later_is_no_contradiction() -> None:
    """The series time is no witness then: the mean count times are, and what is days off is noted, not a percentage."""
    later = replace(HEADER, series_s=NOON + 5 * DAY_S)
    conversion = suv_conversion(later, beds())
    assert conversion.factors[0] == pytest.approx(expected(NOON))
    assert "dates_days_apart" in conversion.notes
    assert conversion.reference is not None
    assert conversion.reference.spread_percent < 1


def test_an_injection_after_the_series_time_and_before_the_scan() -> None:
    """SUV = C W / (D 2^(+20 s / T)): the voxels are corrected to a time before there was any activity."""
    header = replace(HEADER, injection_s=NOON + 20)
    frames = beds(start=NOON + 3000)
    conversion = suv_conversion(header, frames)
    assert conversion.factors[0] == pytest.approx(70000 / (370e6 * 2 ** (20 / T)), rel=1e-9)
    assert "injection_after_reference_time" in conversion.notes
    by_clock = replace(header, injection_s=None, injection_clock_s=12 * 3600.0 + 20)
    assert suv_conversion(by_clock, frames).factors == conversion.factors


@pytest.mark.parametrize("start", [NOON, 700000 * DAY_S - 30.0])  # at noon, and half a minute before midnight
@pytest.mark.parametrize("dated", [True, False])
def test_a_dynamic_scan_is_started_before_the_injection(start: float, dated: bool) -> None:
    injection = start + 60
    told = {"injection_s": injection} if dated else {"injection_s": None, "injection_clock_s": injection % DAY_S}
    header = replace(HEADER, series_s=start, series_type="DYNAMIC", **told)
    conversion = suv_conversion(header, beds(start, start=start))
    assert conversion.factors[0] == pytest.approx(70000 / (370e6 * 2 ** (60 / T)), rel=1e-9)


@pytest.mark.parametrize("hours", [-5, 1, 2, 5.5])
def test_an_injection_in_another_zone_is_at_the_time_of_day_that_the_scanner_told(hours: float) -> None:
    header = replace(HEADER, injection_s=NOON - 3600 + hours * 3600, injection_clock_s=11 * 3600.0, injection_zone=True)
    conversion = suv_conversion(header, beds())
    assert conversion.factors[0] == pytest.approx(expected(NOON))
    assert "injection_time_of_day_used" in conversion.notes
