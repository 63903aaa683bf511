"""``petscale inspect``: what a cohort holds, from its small metadata files alone; no voxel is read.

Nothing is proven either: that is ``petscale verify``.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from petscale.splits import one_patient_by_name, same_scans
from storage import layout
from storage.integrity import json_safe
from storage.reader import case_attributes, image_attributes, open_cohort, shape_of
from storage.source import HU, LABEL, SUV
from storage.verification import read_catalog

OUTLYING = 3.5  # modified z-score from which Iglewicz and Hoaglin (1993) call a value an outlier
FEWEST = 5  # cases from which on a value can lie far from the others
ALIKE = 0.01  # relative difference that is never pointed out, however alike the other cases are
RULE = (
    f"modified z-score above {OUTLYING}: 0.6745 * distance from the median / median distance (Iglewicz and Hoaglin "
    f"1993; 0.7979 / mean distance where the median distance is 0), logarithms of values; from {FEWEST} cases on"
)


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What one image states.

    Args:
        units: SUVbw, HU or label.
        dose: as ``layout.dose_attribute`` has it, None where the image has none.
        tracer: as ingest knows it, empty when unknown.
        nuclide: of the tracer, empty when unknown.
        scanner: manufacturer and model, empty when unknown.
        statistics: name -> value in units: min, max, mean, and what else was stored.
        notes: what ingest noted of it, and of the image that a simulation started from.
        spread_percent: between candidates of the SUV reference time, in percent of the SUV; None where there was one.
    """

    units: str
    dose: Mapping[str, Any] | None
    tracer: str
    nuclide: str
    scanner: str
    statistics: Mapping[str, float]
    notes: tuple[str, ...]
    spread_percent: float | None


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """What one case states.

    Args:
        case: its name.
        subject: keyed hash of the patient.
        shape: voxels (z, y, x) of its grid.
        spacing_mm: voxel edges (z, y, x).
        images: name of an image -> what it states; without the body mask.
        labels: names of the labels.
        tags: what else is known of the case.
        voxels: digest of the voxels of its best PET, empty if unknown.
    """

    case: str
    subject: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    images: Mapping[str, ImageFacts]
    labels: tuple[str, ...]
    tags: Mapping[str, str]
    voxels: str = ""


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """A value that lies far from those of the other cases: ``score`` is its modified z-score."""

    case: str
    fact: str
    value: float
    median: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a cohort holds.

    Args:
        cohort: name of its folder.
        cases: in order of their names.
        outliers: farthest first.
        doubts: sentences about what somebody should look at.
    """

    cohort: str
    cases: tuple[CaseFacts, ...]
    outliers: tuple[Outlier, ...]
    doubts: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return counts and ranges over all cases as JSON values."""
        images: dict[str, list[tuple[CaseFacts, ImageFacts]]] = defaultdict(list)
        for case in self.cases:
            for name, image in case.images.items():
                images[name].append((case, image))
        return {
            "cohort": self.cohort,
            "cases": len(self.cases),
            "patients": len({case.subject for case in self.cases}),
            "images": {name: _image_summary([image for _, image in held]) for name, held in sorted(images.items())},
            "grids": [
                {"voxels": list(shape), "spacing_mm": list(spacing), "cases": count}
                for (shape, spacing), count in Counter((c.shape, c.spacing_mm) for c in self.cases).most_common()
            ],
            "labels": dict(sorted(Counter(name for case in self.cases for name in case.labels).items())),
            "tags": _counted(f"{fact}={value}" for case in self.cases for fact, value in case.tags.items()),
            "notes": _note_summary(self.cases),
            "outlier_rule": RULE,
            "outliers": [asdict(outlier) for outlier in self.outliers],
            "doubts": list(self.doubts),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the summary, and under ``each`` what every case states, as JSON values."""
        content = json_safe({**self.summary(), "each": [asdict(case) for case in self.cases]})
        assert isinstance(content, dict)
        return content


def inspect_cohort(folder: Path) -> Inspection:
    """Read what the cases of a cohort state.

    Raises:
        InputError: STORE_NONE, STORE_SCHEMA; STORE_DAMAGED for metadata that cannot be read.
    """
    cohort = open_cohort(folder)
    cases = tuple(_facts_of(name, f"{folder}/{layout.CASES}/{name}") for name in cohort.cases)
    return Inspection(
        cohort=folder.absolute().name,
        cases=cases,
        outliers=tuple(outliers(cases)),
        doubts=tuple(_doubts(folder, cases)),
    )


def _facts_of(case: str, folder: str) -> CaseFacts:
    """Read one case's small files, as plain values: a thousand cases are read in a second."""
    about = case_attributes(folder)
    images = {name: image_attributes(f"{folder}/{name}") for name in sorted(about["images"]) if name != "body"}
    first = next(iter(images))  # all images of a case have one grid
    return CaseFacts(
        case=case,
        subject=about["subject"],
        shape=shape_of(f"{folder}/{first}/0"),
        spacing_mm=_spacing_mm(images[first]["affine_ras_mm"]),
        images={name: _image_facts(facts) for name, facts in images.items()},
        labels=tuple(about["labels"].values()),
        tags=about.get("tags", {}),
        voxels=about.get("voxels", ""),
    )


def _spacing_mm(affine: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Voxel edges (z, y, x) in mm of an affine to RAS+ mm."""
    x, y, z = (round(math.hypot(*column), 3) for column in list(zip(*affine[:3], strict=True))[:3])
    return z, y, x


def _image_facts(facts: Mapping[str, Any]) -> ImageFacts:
    known_of = origins(facts["provenance"])
    known: dict[str, Any] = {}
    for origin in known_of[::-1]:  # what an image states itself comes last, and counts
        known |= {fact: value for fact, value in origin.items() if value}
    return ImageFacts(
        units=facts["units"],
        dose=layout.dose_attribute(layout.read_dose(facts)),
        tracer=known.get("tracer", ""),
        nuclide=known.get("nuclide", ""),
        scanner=known.get("scanner", ""),
        statistics=facts["statistics"],
        notes=tuple(dict.fromkeys(note for origin in known_of for note in noted(origin))),
        spread_percent=known.get("reference_spread_percent"),
    )


def origins(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The provenance of an image, then that of the image that a simulation took as its truth."""
    truth = provenance.get("truth")
    return [provenance, *(origins(truth) if isinstance(truth, dict) else ())]


def noted(provenance: Mapping[str, Any]) -> Iterator[str]:
    """Return the notes of an image, and which of its fields the user or a table has given."""
    for fact, before in (("notes", ""), ("overridden", "overridden_"), ("completed", "completed_")):
        names = provenance.get(fact)  # fields that the user, or a table, has given are told as notes are
        if isinstance(names, list):
            yield from (f"{before}{name}" for name in names)


def _counted(values: Iterator[str]) -> dict[str, int]:
    """How often each value occurs, an unknown one as ``unknown``."""
    return dict(Counter(value or "unknown" for value in values).most_common())


def _image_summary(images: Sequence[ImageFacts]) -> dict[str, Any]:
    kinds: Counter[tuple[Any, ...]] = Counter(tuple(i.dose.values()) if i.dose else () for i in images)
    held = sorted({name for image in images for name in image.statistics})
    found: dict[str, Any] = {"cases": len(images), "units": _counted(image.units for image in images)}
    if any(image.units == SUV for image in images):
        found["doses"] = [
            {**dict(zip(("drf", "relation", "shares_noise"), kind, strict=False)), "cases": count}
            for kind, count in kinds.most_common()
        ]
        found["tracers"] = _counted(image.tracer for image in images)
        found["nuclides"] = _counted(image.nuclide for image in images)
    if any(image.scanner for image in images):
        found["scanners"] = _counted(image.scanner for image in images)
    if all(image.units != LABEL for image in images):
        found["statistics"] = {
            name: {"lowest": min(values), "median": statistics.median(values), "highest": max(values)}
            for name in held
            if (values := [image.statistics[name] for image in images if name in image.statistics])
        }
    return found


def _note_summary(cases: Sequence[CaseFacts]) -> dict[str, dict[str, Any]]:
    """Note -> with how many cases carry it; that on reference times with the largest spread among them."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        for note in dict.fromkeys(note for image in case.images.values() for note in image.notes):
            told = found.setdefault(note, {"cases": 0})
            told["cases"] += 1
            spreads = [i.spread_percent for i in case.images.values() if note in i.notes and i.spread_percent]
            if note.startswith("reference_spread") and spreads:
                told["largest_percent"] = max(told.get("largest_percent", 0.0), *spreads)
    return dict(sorted(found.items(), key=lambda item: (-item[1]["cases"], item[0])))


def outliers(cases: Sequence[CaseFacts]) -> list[Outlier]:
    """Return values that lie far from those of the other cases by ``RULE``, farthest first."""
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for case in cases:
        for axis, voxels, mm in zip(("slices", "rows", "columns"), case.shape, case.spacing_mm, strict=True):
            values[axis][case.case] = voxels
            values[f"voxel size along {axis} [mm]"][case.case] = mm
        voxel_ml = math.prod(case.spacing_mm) / 1000
        for name, image in case.images.items():
            if image.units == LABEL:
                continue
            if image.units == HU:
                values[f"{name} mean [HU + 1024]"][case.case] = image.statistics["mean"] + 1024
                continue
            values[f"{name} mean [SUV]"][case.case] = image.statistics["mean"]
            values[f"{name} max [SUV]"][case.case] = image.statistics["max"]
            values[f"{name} uptake [SUV mL]"][case.case] = image.statistics["mean"] * math.prod(case.shape) * voxel_ml
    found = [one for fact, of in values.items() for one in _far(fact, of)]
    return sorted(found, key=lambda one: (-one.score, one.case, one.fact))


def _far(fact: str, values: Mapping[str, float]) -> Iterator[Outlier]:
    if len(values) < FEWEST:
        return
    # A wrong unit or dose is a factor: logarithms make twice and half equally far.  Below 0 is far from anything.
    logs = {case: math.log(max(value, 1e-6)) for case, value in values.items()}
    median = statistics.median(logs.values())
    distances = {case: abs(value - median) for case, value in logs.items()}
    half = statistics.median(distances.values())
    mean = statistics.fmean(distances.values())
    scale = half / 0.6745 if half > 0 else mean / 0.7979
    for case, distance in distances.items():
        if distance > ALIKE and distance / scale > OUTLYING:
            yield Outlier(
                case=case,
                fact=fact,
                value=values[case],
                median=math.exp(median),
                score=round(distance / scale, 1),
            )


def _doubts(folder: Path, cases: Sequence[CaseFacts]) -> Iterator[str]:
    try:
        catalog: Mapping[str, str] = read_catalog(folder)
    except ValueError:
        catalog = {}
        if cases:
            yield f"{layout.CATALOG} is missing or not readable: run petscale verify"
    names = {case.case for case in cases}
    if lost := sorted(set(catalog) - names):
        yield (
            f"{len(lost)} committed case(s) are missing: {', '.join(lost)}; restore them, or take their entries out "
            "with petscale remove"
        )
    yield from same_scan_lines({case.case: (case.subject, case.voxels) for case in cases})
    for group in one_patient_by_name({case.case: case.subject for case in cases}):
        yield (
            f"{', '.join(group)} look like scans of one patient by their names, but are of different patients by "
            "their IDs: scans of one patient must not lie on both sides of a split"
        )


def same_scan_lines(cases: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Say which cases hold one and the same scan.

    Args:
        cases: name -> (patient, digest of the voxels, empty if unknown).
    """
    for group in same_scans({name: voxels for name, (_, voxels) in cases.items()}):
        patients = len({cases[name][0] for name in group})
        told = f"of {patients} patients" if patients > 1 else "of one patient"
        yield (
            f"{', '.join(group)} hold one and the same scan, voxel for voxel, as cases {told}: take all but one out "
            "with petscale remove, or use split.leave_out"
        )
