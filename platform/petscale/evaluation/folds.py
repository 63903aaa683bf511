"""Scores of all folds as one evaluation: every patient once, scored by the run that never saw him or her."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from petscale.evaluation.current import OF_WEIGHTS
from petscale.evaluation.scores import REFERENCE, Evaluation, region_group
from trainers.metrics.definitions import Score


def gather(folds: Mapping[str, Evaluation], subjects: Mapping[str, str]) -> Evaluation:
    """Join the test scores of all folds, a row of every score per patient.

    Args:
        folds: run of the fold -> its scores; no case stands in two.
        subjects: case -> its patient.

    Returns:
        Scores whose cases are patients, called by the names of their cases; several scans of one are averaged, lesions
        within each scan first.  A baseline that every fold has chosen anew, a Gaussian of another width for instance,
        is one image; one that a fold lacks is left out.
    """
    called = names_in_all(folds)
    cases: dict[str, list[str]] = {}
    for fold in folds.values():
        for case in fold.cases:
            cases.setdefault(subjects[case], []).append(case)
    patients = {case: "+".join(names) for names in cases.values() for case in names}
    rows: list[Score] = []
    for name, fold in folds.items():
        names = called[name]
        rows += [replace(row, image=names[row.image]) for row in fold.rows if row.image in names]
    name, first = next(iter(folds.items()))
    images = [called[name][image] for image in first.images if image in called[name]]
    members = {patients[case]: name for name, fold in folds.items() for case in fold.cases}
    made_by = [fold.metadata.get(OF_WEIGHTS) for fold in folds.values()]
    about = {
        "source": first.metadata.get("source"),
        "baseline": {name: fold.metadata.get("baseline") for name, fold in folds.items()},
        "folds": members,
        "patients": {patients[names[0]]: names for names in cases.values()},
    }
    if all(isinstance(one, list) for one in made_by):
        about[OF_WEIGHTS] = sorted({digest for one in made_by if isinstance(one, list) for digest in one})
    return Evaluation(tuple(_per_patient(rows, patients)), tuple(images), tuple(members), about)


def names_in_all(folds: Mapping[str, Evaluation]) -> dict[str, dict[str, str]]:
    """Return for every fold: name of an image there -> its name in the whole, for images that all folds have."""
    stems = {name: {_stem(image): image for image in fold.images} for name, fold in folds.items()}
    found: dict[str, dict[str, str]] = {name: {REFERENCE: REFERENCE} for name in folds}
    for stem in next(iter(stems.values())):
        names = {fold: held[stem] for fold, held in stems.items() if stem in held}
        if len(names) == len(folds):
            whole = f"{stem}, chosen in each fold" if len(set(names.values())) > 1 else next(iter(names.values()))
            for fold, name in names.items():
                found[fold][name] = whole
    return found


def _stem(image: str) -> str:
    """An image's name without the numbers that it ends in: what is chosen anew in every fold differs there."""
    return re.sub(r"\s+[\d.]+( \w+)?$", "", image)


def _per_patient(rows: Sequence[Score], patients: Mapping[str, str]) -> list[Score]:
    """Every score once per patient; rows of a patient with one case stay as they are."""
    several = {patient for patient in patients.values() if "+" in patient}
    found = [replace(row, case=patients[row.case]) for row in rows if patients[row.case] not in several]
    grouped: dict[tuple[object, ...], dict[str, list[Score]]] = {}
    for row in rows:
        if (patient := patients[row.case]) in several:
            key = (patient, row.image, row.kind, region_group(row), row.definition)
            grouped.setdefault(key, {}).setdefault(row.case, []).append(row)
    for scans in grouped.values():
        first = next(iter(scans.values()))[0]
        means = [float(np.mean([row.value for row in same])) for same in scans.values()]
        found.append(replace(first, case=patients[first.case], region=region_group(first), value=float(np.mean(means))))
    return found
