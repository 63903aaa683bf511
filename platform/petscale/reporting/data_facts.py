"""What a run was trained and scored on, in a report: tracers, scanners, voxels, lengths, doses, where SUV rests on."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from petscale.data.inspection import origins
from storage.reader import Case, Cases
from storage.source import Dose

UNLIKE_LENGTHS = 1.5  # longest over shortest, from which whole bodies and parts of them are averaged together


def data_table(
    opened: Cases, roles: Mapping[str, Sequence[str]], target: str, source: str
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the headings and the lines of a table: a fact, and what it is for the cases of every role.

    Args:
        opened: the cohort; roles whose cases are not all in it are left out.
        roles: heading -> names of cases.
        target: image that was aimed at.
        source: image that was started from.
    """
    held = {role: [opened.case(name) for name in names] for role, names in roles.items() if names}
    facts = {role: _facts(cases, target, source) for role, cases in held.items()}
    told = dict.fromkeys(fact for by_fact in facts.values() for fact in by_fact)
    lines = [(fact, [by_fact.get(fact, "–") for by_fact in facts.values()]) for fact in told]
    return list(facts), [line for line in lines if {*line[1]} != {"unknown"}]


def roles_of(opened: Cases, facts: Mapping[str, Any], tested: Sequence[str]) -> dict[str, Sequence[str]]:
    """Return heading -> cases: those that a run was trained on, where the cohort has them, and those of the page."""
    trained = [name for role in ("train", "unpaired") for name in facts.get(role, ())]
    roles = {"trained on": trained, "validated on": list(facts.get("validation", ())), "scored on": list(tested)}
    return {role: names for role, names in roles.items() if {*names} <= {*opened.cases}}


def length_doubt(opened: Cases, tested: Sequence[str], target: str) -> list[str]:
    """Say that whole bodies and parts of them are averaged together, where the scored cases differ so in length."""
    lengths = [_length_mm(opened.case(name), target) for name in tested]
    if not lengths or max(lengths) < UNLIKE_LENGTHS * min(lengths):
        return []
    return [
        f"scans of very different lengths are averaged together: {min(lengths):.0f} to {max(lengths):.0f} mm along the "
        "body; the table of every test case tells them apart."
    ]


def _facts(cases: Sequence[Case], target: str, source: str) -> dict[str, str]:
    scans = [case.image(target) for case in cases if target in case.images]
    known = [_known(scan.provenance) for scan in scans]
    starts = [case.image(source) for case in cases if source in case.images]
    spreads = [float(k["reference_spread_percent"]) for k in known if k.get("reference_spread_percent")]
    sizes = (_range((scan.grid.spacing_mm[axis] for scan in scans), 2) for axis in range(3))
    doses = [dose for start in starts if (dose := start.dose) is not None]
    found = {
        "cases": f"{len(cases)} of {len({case.subject for case in cases})} patient(s)",
        "tracer": _counted(str(k.get("tracer", "")) for k in known),
        "scanner": _counted(str(k.get("scanner", "")) for k in known),
        "voxel size (z, y, x) [mm]": " x ".join(sizes),
        "length along the body [mm]": _range((_length_mm(case, target) for case in cases if target in case.images), 0),
        f"dose of {source}": _counted(_dose(dose) for dose in doses) if doses else "unknown",
        "rule of the SUV reference time": _counted(str(k.get("reference_rule", "")) for k in known),
    }
    if spreads:
        found["another rule would change SUV by at most [%]"] = f"{max(spreads):.3g}"
    return found


def _known(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What an image states, and the scan that a simulation started from where it says nothing itself."""
    known: dict[str, Any] = {}
    for origin in origins(provenance)[::-1]:
        known |= {fact: value for fact, value in origin.items() if value}
    return known


def _dose(dose: Dose) -> str:
    return f"DRF {'unknown' if math.isnan(dose.drf) else f'{dose.drf:g}'}, {dose.relation}"


def _length_mm(case: Case, image: str) -> float:
    grid = case.image(image).grid
    return grid.shape[0] * grid.spacing_mm[0]


def _range(values: Iterable[float], digits: int) -> str:
    found = [f"{value:.{digits}f}" for value in sorted(values)]
    if not found:
        return "unknown"
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def _counted(values: Iterable[str]) -> str:
    counts = Counter(value or "unknown" for value in values)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({count})" for value, count in counts.most_common())
