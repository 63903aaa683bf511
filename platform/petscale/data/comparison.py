"""``petscale compare``: which cases and patients two cohorts share, and in what their images differ; no voxel is read.

Content is compared by the digests of the manifests, so it is only as true as ``petscale verify`` finds both cohorts.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from petscale.data.inspection import Inspection, inspect_cohort
from petscale.folders import CONFIG, FOLDS
from storage import integrity, layout
from storage.errors import InputError

COHORT = "zarr.json"  # lies in every cohort's folder, and in no run's
SHOWN = 10  # names of a list on the screen
APART = 0.1  # relative difference of two cohorts' medians from which it is told


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A fact in which two cohorts differ, in words for each."""

    fact: str
    first: str
    second: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two cohorts share, and in what they differ.

    Args:
        first: name of one cohort's folder.
        second: name of the other's.
        only_first: names of cases that the second lacks.
        only_second: names of cases that the first lacks.
        equal: names of cases with equal content in both.
        changed: name of a case with different content -> the images, or other parts, that differ.
        renamed: name in the first -> name in the second of a case with equal content.
        patients: cases of one patient in both: keyed hash -> (names in the first, names in the second).
        differences: facts over all cases in which the two differ.
    """

    first: str
    second: str
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    equal: tuple[str, ...]
    changed: Mapping[str, tuple[str, ...]]
    renamed: Mapping[str, str]
    patients: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    differences: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return asdict(self)


def are_runs(folders: Sequence[Path]) -> bool:
    """Tell runs and folds from cohorts by what lies in their folders.

    Returns:
        False where no folder holds a run.

    Raises:
        InputError: CFG_KINDS for runs and cohorts together, or for more than two cohorts.
    """
    runs = [folder for folder in folders if (folder / CONFIG).is_file() or (folder / FOLDS).is_file()]
    cohorts = [folder for folder in folders if folder not in runs and (folder / COHORT).is_file()]
    if runs and cohorts:
        raise InputError(
            "CFG_KINDS",
            where="petscale compare",
            found=f"{runs[0].name} is a run, {cohorts[0].name} a cohort",
            remedy="compare runs with runs, or a cohort with a cohort; petscale evaluate scores a run on a cohort",
        )
    if not runs and len(folders) > 2:
        raise InputError(
            "CFG_KINDS",
            where="petscale compare",
            found=f"{len(folders)} folders, and none is a run",
            remedy="name two cohorts, or two runs and more",
        )
    return bool(runs)


def check_effect(external: str, page: Path | None) -> None:
    """Refuse what is given for cohorts and holds for runs alone.

    Raises:
        InputError: CFG_NO_EFFECT.
    """
    for option, given in (("--external", bool(external)), ("--page", page is not None)):
        if given:
            raise InputError("CFG_NO_EFFECT", where=option, found="given for cohorts, not runs", remedy="leave it out")


def compare_cohorts(first: Path, second: Path) -> Comparison:
    """Compare two cohorts.

    Raises:
        InputError: STORE_NONE, STORE_DAMAGED, STORE_SCHEMA.
    """
    ours, theirs = inspect_cohort(first), inspect_cohort(second)
    files = [_files(folder, found) for folder, found in ((first, ours), (second, theirs))]
    both = sorted(files[0].keys() & files[1].keys())
    changed = {name: _parts(files[0][name], files[1][name]) for name in both if files[0][name] != files[1][name]}
    only_first, only_second = (sorted(a.keys() - b.keys()) for a, b in (files, files[::-1]))
    contents = {_digest(files[1][name]): name for name in only_second}
    subjects = [_by_patient(found) for found in (ours, theirs)]
    return Comparison(
        first=ours.cohort,
        second=theirs.cohort,
        only_first=tuple(only_first),
        only_second=tuple(only_second),
        equal=tuple(name for name in both if name not in changed),
        changed=changed,
        renamed={name: contents[digest] for name in only_first if (digest := _digest(files[0][name])) in contents},
        patients={
            person: (subjects[0][person], subjects[1][person])
            for person in sorted(subjects[0].keys() & subjects[1].keys())
        },
        differences=tuple(differences(ours, theirs)),
    )


def _files(folder: Path, found: Inspection) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Case -> what its manifest lists."""
    return {case.case: integrity.manifest(folder / layout.CASES / case.case)["files"] for case in found.cases}


def _digest(files: Mapping[str, Any]) -> str:
    """Digest of a case's content, whatever it is called."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _parts(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, ...]:
    """Images whose files differ; ``case`` for the case's own facts, such as names of labels."""
    keys = (key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    return tuple(sorted({key.partition("/")[0] if "/" in key else "case" for key in keys} - {"aids"}))


def _by_patient(found: Inspection) -> dict[str, tuple[str, ...]]:
    people: dict[str, tuple[str, ...]] = {}
    for case in found.cases:
        people[case.subject] = (*people.get(case.subject, ()), case.case)
    return people


def differences(ours: Inspection, theirs: Inspection) -> Iterator[Difference]:
    """Say in what the images of two cohorts differ: voxel sizes, units, doses, tracers, scanners, SUV, labels."""
    facts = [_facts(found) for found in (ours, theirs)]
    for fact in dict.fromkeys((*facts[0], *facts[1])):
        first, second = (held.get(fact) for held in facts)
        if isinstance(first, float) and isinstance(second, float):
            if abs(first - second) > APART * max(abs(first), abs(second)):
                yield Difference(fact=fact, first=f"{first:.3g}", second=f"{second:.3g}")
        elif first != second:
            yield Difference(fact=fact, first=_told(first), second=_told(second))


def _told(value: object) -> str:
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _facts(found: Inspection) -> dict[str, str | float]:
    """Every fact of a cohort that another may differ in: numbers as medians over cases, names as sorted lists."""
    summary = found.summary()
    sizes = sorted({" x ".join(f"{mm:g}" for mm in grid["spacing_mm"]) for grid in summary["grids"]})
    facts: dict[str, str | float] = {"voxel size [mm]": ", ".join(sizes), "labels": ", ".join(summary["labels"])}
    for name, told in summary["images"].items():
        facts[f"{name}: unit"] = ", ".join(sorted(told["units"]))
        for key in ("tracers", "nuclides", "scanners"):
            if key in told:
                facts[f"{name}: {key}"] = ", ".join(sorted(told[key]))
        if "doses" in told:
            facts[f"{name}: doses"] = "; ".join(sorted(_dose(dose) for dose in told["doses"]))
        for key, values in told.get("statistics", {}).items():
            if key == "body_median":  # cohorts of earlier versions have none
                continue
            facts[f"{name}: {key}, median"] = float(values["median"])
    return facts


def _dose(dose: Mapping[str, Any]) -> str:
    if "relation" not in dose:
        return "none"
    drf = "unknown" if dose["drf"] is None else f"{dose['drf']:g}"
    return f"DRF {drf}, {dose['relation']}"


def show(found: Comparison, console: Console) -> None:
    """Print a comparison."""
    a, b = found.first, found.second
    console.print(
        f"cases: {len(found.equal)} equal in both, {len(found.changed)} with other content, "
        f"{len(found.only_first)} in {a} only, {len(found.only_second)} in {b} only",
        markup=False,
    )
    for name, parts in list(found.changed.items())[:SHOWN]:
        console.print(f"other content: {name}: {', '.join(parts)}", markup=False)
    for title, names in ((f"in {a} only", found.only_first), (f"in {b} only", found.only_second)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            console.print(f"{title}: {', '.join(names[:SHOWN])}{more}", markup=False)
    for name, other in found.renamed.items():
        console.print(f"equal content under another name: {name} is {other} in {b}", markup=False)
    console.print(
        f"patients: {len(found.patients)} in both (by hashes under one site key; those of two keys never agree)",
        markup=False,
    )
    for ours, theirs in found.patients.values():
        if ours != theirs:
            console.print(f"one patient: {', '.join(ours)} in {a}, {', '.join(theirs)} in {b}", markup=False)
    if not found.differences:
        console.print(
            "images: no difference in unit, voxel size, doses, tracers, scanners, labels or SUV", markup=False
        )
        return
    table = Table("differs in", a, b, box=None, pad_edge=False)
    for one in found.differences:
        table.add_row(one.fact, one.first or "none", one.second or "none")
    console.print()
    console.print(table, markup=False)
    console.print(f"medians over cases are told from a difference of {APART:.0%} on", markup=False)
