"""Which cases of a cohort a run is scored on: its own test cases or, of another cohort, every case it has not seen.

A cohort is the run's own when it holds a test case of the run with its digest.  Any other cohort is an external
validation, whose results stand apart from those of the run's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petscale.folders import EVALUATION, EXTERNAL, PATIENTS
from petscale.plausibility import nuclide_of
from petscale.proof import trained_before
from storage import integrity
from storage.errors import InputError
from storage.reader import Cases

SEEN = "SET_SEEN"  # the code of a case that is left out
DIGESTS = "cohort.json"  # in an external validation's folder: the digests of the cohort's cases


@dataclass(frozen=True)
class Chosen:
    """The cases that a run is scored on.

    Args:
        folder: below it stand the results: the run's own folder, or one in its ``external``.
        cases: their names.
        cohort: name of the other cohort, empty for the run's own.
        left_out: case that the run has seen, or may have seen -> why.
        compared: whether patients could be compared, and not only voxels.
        digests: case -> root digest, of every case of the cohort.
    """

    folder: Path
    cases: tuple[str, ...]
    cohort: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    compared: bool = False
    digests: Mapping[str, str] = field(default_factory=dict)


def choose_cases(run: Path, facts: Mapping[str, Any], cohort: Cases) -> Chosen:
    """Decide which cases a run is scored on.

    Args:
        run: its folder.
        facts: its record: ``cases`` holds the digest of every case that it has trained, validated or tests on, and
            ``subjects`` the keyed hash of its patient.
        cohort: the run's own, or another one.

    Raises:
        InputError: SET_NO_TEST where there is nothing to score; SET_CASE_CHANGED for a test case of the run's own
            cohort with other voxels; SET_COHORT_NAME where another cohort of this name was scored before.
    """
    own: Mapping[str, str] = facts["cases"]
    tests = tuple(name for name in facts["test"] if name in cohort.cases)
    if any(_digest(cohort, name) == own[name] for name in tests):
        return Chosen(run, tests)
    digests = {name: _digest(cohort, name) for name in cohort.cases}
    subjects = {name: cohort.case(name).subject for name in digests}
    known = patients_of(run, facts)
    _check_all_given(facts, cohort, digests)
    for name in tests:
        if known.get(name, subjects[name]) == subjects[name]:
            raise _changed(name)
    seen = [name for name in own if name not in facts["test"]]
    left_out = _left_out(own, seen, known, digests, subjects)
    before = frozenset(trained_before(facts))
    left_out |= {
        name: "the weights that the run started from were trained on this case"
        for name, digest in digests.items()
        if digest in before and name not in left_out
    }
    cases = tuple(name for name in digests if name not in left_out)
    if not cases or not seen:
        found = "the run's record does not say what it was trained on"
        if not digests:
            found = "the cohort is empty"
        elif seen:
            found = f"no case of this cohort is new to the run: {next(iter(left_out.values()))}"
        raise InputError(
            "SET_NO_TEST",
            where=cohort.name,
            found=f"none of the run's test cases is in this cohort, and {found}",
            remedy="evaluate on the cohort of a run trained with --set split.test_fraction=0.25, or on other patients",
        )
    folder = run / EXTERNAL / cohort.name
    _check_name(folder, cohort.name, digests)
    return Chosen(folder, cases, cohort.name, left_out, bool(known), digests)


def patients_of(run: Path, facts: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the keyed hash of the patient of every case of a run; nothing where that is not known.

    Args:
        run: its folder.
        facts: its record; of a run whose record does not tell them, its evaluation has kept them.
    """
    kept = run / EVALUATION / PATIENTS
    told = facts.get("subjects") or (integrity.read_json(kept, "subjects")["subjects"] if kept.is_file() else {})
    known: Mapping[str, str] = told
    return known


def _check_all_given(facts: Mapping[str, Any], cohort: Cases, digests: Mapping[str, str]) -> None:
    """Refuse one of a run's several cohorts alone where its test cases have other names there than in the run.

    Raises:
        InputError: SET_NO_TEST.
    """
    tested = {facts["cases"][name]: name for name in facts["test"]}
    renamed = [f"{name} ({tested[digest]})" for name, digest in digests.items() if digest in tested]
    if facts.get("cohorts") and renamed:
        raise InputError(
            "SET_NO_TEST",
            where=cohort.name,
            found=f"test cases have other names in the run, which read several cohorts as one: {', '.join(renamed)}",
            remedy=f"give all of its cohorts, in one command: {', '.join(facts['cohorts'])}",
        )


def _left_out(
    own: Mapping[str, str],
    seen: list[str],
    known: Mapping[str, str],
    digests: Mapping[str, str],
    subjects: Mapping[str, str],
) -> dict[str, str]:
    """Cases of the cohort that a run has seen, by voxels and by patient, or by name where patients are not known."""
    people = {known[name] for name in seen if name in known}
    found = {}
    for name, digest in digests.items():
        if name in seen and digest == own[name]:
            found[name] = "the run was trained on this case"
        elif subjects[name] in people:
            found[name] = "the run was trained on this patient"
        elif name in seen and name not in known:
            found[name] = "the run was trained on a case of this name, and whether it is the same patient is not known"
    return found


def _check_name(folder: Path, name: str, digests: Mapping[str, str]) -> None:
    """Keep the results of two cohorts of one name apart; one that has grown or shrunk is still the same."""
    path = folder / DIGESTS
    before: Mapping[str, str] = integrity.read_json(path, "cases")["cases"] if path.is_file() else {}
    shared = [case for case in before if case in digests]
    if before and (not shared or any(before[case] != digests[case] for case in shared)):
        raise InputError(
            "SET_COHORT_NAME",
            where=f"{EXTERNAL}/{name}",
            found="scores of another cohort of this name, or of this one before its cases changed",
            remedy=f"rename the cohort's folder, or move {EXTERNAL}/{name} out of the run",
        )


def keep_patients(run: Path, facts: Mapping[str, Any], cohort: Cases, source: str) -> None:
    """Note who the run's patients are, as keyed hashes, and their nuclides, once its own cohort is at hand.

    An external validation tells by it whether a patient was trained on.  Nothing is written where the cohort lacks a
    case of the run.
    """
    own: Mapping[str, str] = facts["cases"]
    path = run / EVALUATION / PATIENTS
    if path.is_file() or not set(own) <= set(cohort.cases):
        return
    cases = {name: cohort.case(name) for name in own}
    if any(_digest(cohort, name) != own[name] for name in own):
        return
    images = [cases[name].image(source) for name in facts["train"]]
    nuclides = sorted({nuclide_of(image.provenance) for image in images} - {""})
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    subjects = {name: case.subject for name, case in cases.items()}
    integrity.write_json(path, {"subjects": subjects, "nuclides": nuclides})


def statement(cohort: Cases, chosen: Chosen, cases: tuple[str, ...]) -> str:
    """What screen, scores and report say of an external validation."""
    patients = len({cohort.case(name).subject for name in cases})
    of = f"external validation on {_count(len(cases), 'case')} of {_count(patients, 'patient')}"
    if chosen.compared:
        return f"{of}, none of which the run was trained on"
    return (
        f"{of}; none of these cases is one that the run was trained on, but whether a patient is could not be compared "
        "(petscale evaluate on the run's own cohort makes it possible)"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _changed(name: str) -> InputError:
    return InputError(
        "SET_CASE_CHANGED",
        where=f"case {name}",
        found="its voxels are not those that the run's split was made with",
        remedy="evaluate on the run's own cohort, or train anew on this one",
    )


def check_unchanged(cohort: Cases, case: str, facts: Mapping[str, Any]) -> None:
    """Refuse a test case whose voxels are no longer those of the run's split.

    Raises:
        InputError: SET_CASE_CHANGED.
    """
    if _digest(cohort, case) != facts["cases"][case]:
        raise _changed(case)


def _digest(cohort: Cases, case: str) -> str:
    return str(integrity.manifest(cohort.case(case).folder)["root"])
