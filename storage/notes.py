"""Notes: what a file leaves open, how it was read all the same, and whether that may change a result.

An image carries the names of its notes in its provenance.  What a name says stands here once, for the terminal, for
``petscale inspect`` and for reports.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """What a note says.

    Args:
        says: one sentence.
        of_weight: whether SUV, geometry or the number of slices may be wrong, so that ``--strict`` refuses the case.
    """

    says: str
    of_weight: bool


def _light(says: str) -> Note:
    return Note(says, of_weight=False)


def _heavy(says: str) -> Note:
    return Note(says, of_weight=True)


NOTES: Mapping[str, Note] = {
    # SUV
    "reference_spread_above_1_percent": _heavy(
        "the header's times allow several reference times; another choice would change SUV by the percentage given"
    ),
    "reference_is_earliest_acquisition": _heavy(
        "the series time is later than the acquisition; the earliest acquisition is taken as reference time"
    ),
    "dates_days_apart": _heavy("dates of the series lie days apart; those that agree are used"),
    "uptake_unusual": _heavy("the uptake time is below 5 minutes or above 6 hours"),
    "injection_after_reference_time": _light("the scan was started before the injection; SUV takes account of it"),
    "injection_on_previous_day": _light("the injection is taken to be of the evening before, by its time of day"),
    "injection_time_of_day_used": _heavy(
        "the injection's date-time is in a time zone that the series does not state; its time of day is used"
    ),
    "injection_zone_ignored": _heavy(
        "the injection's date-time states a time zone and the series none; it is read as the scanner's own time"
    ),
    "injection_date_impossible": _heavy(
        "the injection's date lies after the scan or more than ten half-lives before it; its time of day is used"
    ),
    "injection_times_contradict": _heavy(
        "time of day and date-time of the injection differ by more than 1 % of SUV; the date-time is used"
    ),
    "weight_read_as_g": _heavy("a weight above 1000 is read as grams"),
    "dose_read_as_MBq": _heavy("a dose below 10,000 is read as MBq"),
    "small_animal": _light("a weight below 1 kg: a small animal"),
    "nuclide_code_contradicts_meaning_and_half_life": _heavy(
        "the nuclide's code contradicts its name and its half-life, which agree and are used"
    ),
    "nuclide_meaning_contradicts_code_and_half_life": _heavy(
        "the nuclide's name contradicts its code and its half-life, which agree and are used"
    ),
    "tracer_contradicts_nuclide": _heavy("the tracer is made with another nuclide than the header states"),
    "philips_factors_contradict": _heavy(
        "Philips' activity factor, with weight, dose and times, gives another SUV than the SUV factor, which is used"
    ),
    "philips_factor_without_creator": _heavy(
        "Philips' private SUV or activity factor is used though its private creator is missing"
    ),
    "decay_corrected_here": _light("the series is not decay-corrected; each slice was, by its acquisition time"),
    "decay_correction_contradicts_corrected_image": _heavy(
        "DecayCorrection is NONE and CorrectedImage says DECY; the values were corrected here as if they were not yet"
    ),
    "normalised_to_body_weight": _light("values normalised by another mass or surface were turned to body weight"),
    "own_suv_factor_differs_above_1_percent": _heavy(
        "the low dose's own header gives another SUV factor than the full dose's, which is used"
    ),
    "own_suv_factor_unusable": _light("the low dose's own header gives no SUV factor; the full dose's is used"),
    "overridden_weight_kg": _light("the weight was given on the command line instead of the header's"),
    "overridden_dose_mbq": _light("the dose was given on the command line instead of the header's"),
    "overridden_injection_time": _light("the injection time was given on the command line instead of the header's"),
    "completed_weight_kg": _light("the weight is a table's, as the header has none"),
    "completed_dose_mbq": _light("the dose is a table's, as the header has none"),
    "completed_injection_time": _light("the injection time is a table's, as the header has none"),
    "completed_half_life_s": _light("the half-life is a table's, as the header has none"),
    "unit_taken_from_values": _light("the file states no unit; its values are those of SUV and are taken for it"),
    "activity_scaled_to_suv": _light("Bq/mL were scaled to SUV by the weight and the dose given"),
    "no_suv": _heavy("the values cannot be SUV: check unit, weight and dose"),
    "suv_median_unusual": _heavy("the median SUV inside the body is unusual: check unit, weight and dose"),
    "suv_maximum_unusual": _heavy("the highest SUV is above 1000: check unit, weight and dose"),
    "negative_uptake": _heavy("values below SUV -5 sum up to more than 5 % of the uptake"),
    # slices
    "intercept_applied": _light("signed values are stored as unsigned ones; the intercept was applied"),
    "identical_slices_dropped": _light("exact copies of slices were dropped"),
    "slice_spacing_irregular": _light("slice gaps differ by up to 2.5 %; the mean spacing is used"),
    "gaps_between_slices": _heavy("slices lie more than 1.5 times their thickness apart: every second may be lost"),
    "fewer_slices_than_header_says": _heavy("there are fewer slices than NumberOfSlices says: end slices may be lost"),
    "empty_files_passed_by": _heavy("empty files lie beside the slices: slices may be lost"),
    "zeroed_files_passed_by": _heavy("files of zeros lie beside the slices: slices may be lost"),
    "hidden_slices_passed_by": _heavy("hidden DICOM files, of an interrupted copy, lie beside the slices"),
    "broken_links_passed_by": _heavy("links to no file lie beside the slices: slices may be lost"),
    "pictures_in_series_passed_by": _light("localizers, projections or pages inside the series were passed by"),
    "pictures_passed_by": _light("pictures without a place in the patient were passed by"),
    "enhanced_object_passed_by": _light("an enhanced object that cannot be read lies beside the slices"),
    "enhanced_copy_passed_by": _light("an enhanced object that holds the same slices once more was passed by"),
    "damaged_series_passed_by": _heavy("another series of the folder cannot be read and was passed by"),
    # frames
    "uptake_may_differ_between_frames": _light(
        "low and full dose are other minutes of one scan: uptake may have changed"
    ),
    "motion_differs_between_gates": _light(
        "low and full dose are other gates of one scan: the body moved between them"
    ),
    "frame_starts_from_frame_reference_time": _light(
        "all frames state one acquisition time; their starts follow from FrameReferenceTime"
    ),
    "incomplete_frames_left_out": _heavy("frames of the series lack slices; they were not asked for"),
    # values
    "rounded_to_float32": _light("stored values have more digits than float32 holds, and were rounded"),
    "saturated": _heavy("values were cut off where the stored type ends"),
    # geometry
    "spatial_unit_missing_read_as_mm": _light("the NIfTI header states no spatial unit; mm are taken"),
    "spatial_unit_converted_to_mm": _light("the NIfTI header's spatial unit was converted to mm"),
    "scaled_by_scl_slope": _light("stored values were scaled by scl_slope and scl_inter"),
    "does_not_cover_body": _heavy(
        "the image was put on the case's grid and does not cover the whole body there; the body's outline goes on"
    ),
}


def of(provenance: Mapping[str, object]) -> tuple[str, ...]:
    """Return the notes of an image, by its provenance."""
    found = provenance.get("notes")
    return tuple(str(name) for name in found) if isinstance(found, list) else ()


def weighty(names: Iterable[str]) -> list[str]:
    """Return the notes among ``names`` that may change a result; one that is not known here is taken to."""
    return [name for name in dict.fromkeys(names) if name not in NOTES or NOTES[name].of_weight]


def sentence(name: str) -> str:
    """Return what a note says, its own name where it is not known: a cohort may be of a later version."""
    return NOTES[name].says if name in NOTES else name
