"""A paper's table on a cohort of the user's: what the table needs of it, and the same table with its images."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from petscale.experiments.design import Experiment, PhantomCohort, Row, UserCohort
from storage import integrity
from storage.errors import InputError
from storage.layout import low_name
from storage.reader import Case, Cohort, open_cohort
from storage.source import HU

DOSE_TOLERANCE = 0.01  # of a dose reduction factor: a table's dose is nominal


def on_cohort(
    experiment: Experiment, folder: Path, sources: Sequence[str] = (), external: Path | None = None
) -> Experiment:
    """Return a table that is asked of a user's cohort, its rows starting from that cohort's images.

    Args:
        folder: the cohort.
        sources: images that take the place of the table's low doses, one per dose in the table's order; () for images
            whose dose is the same.
        external: the cohort that a table of external validation is tested on; its images have the cohort's names.

    Raises:
        InputError: SET_TABLE_NEEDS, naming all that the cohorts lack; CFG_NO_EFFECT for an external cohort of a table
            that tests on the cohort's own patients.
    """
    if external is not None and experiment.external is None:
        raise InputError(
            "CFG_NO_EFFECT",
            where="--external",
            found=f"{experiment.name} is tested on the cohort's own patients",
            remedy="leave it out, or repeat sgsgan_table5 or sgsgan_table6",
        )
    phantoms = experiment.cohort
    assert isinstance(phantoms, PhantomCohort), "tables are written for phantoms"
    cohort = open_cohort(folder)
    cases = [cohort.case(name) for name in cohort.cases]
    patients = len({case.subject for case in cases})
    chosen, lacking = _images(experiment, phantoms, cases, sources)
    target = experiment.feed.target
    lacking += [f"an image '{target}' in every case"] if any(target not in case.images for case in cases) else []
    held = set.intersection(*(set(case.labels.values()) for case in cases)) if cases else set()
    if missing := [label for label in _labels(experiment) if label not in held]:
        lacking.append(f"labels of {', '.join(missing)} in every case")
    if patients < experiment.folds:
        lacking.append(f"{experiment.folds} patients, one per fold (it has {patients})")
    tested = None
    if experiment.external is not None:
        tested, absent = _tested_on(external, {*chosen.values(), target}, {case.subject for case in cases})
        lacking += absent
    if lacking:
        raise InputError(
            "SET_TABLE_NEEDS",
            where=f"{experiment.name} on {folder.name}",
            found=f"the table needs {'; '.join(lacking)}",
            remedy="add what is missing, choose other images by --source, or repeat another table",
        )
    low = () if experiment.segmenters else chosen.values()
    relations = {dose.relation for name in low if (dose := cases[0].image(name).dose)}
    return replace(
        experiment,
        cohort=_described(folder, cases, relations),
        external=tested,
        sources=_renamed(experiment.sources, chosen),
        columns=tuple(replace(one, source=chosen.get(one.source, "")) for one in experiment.columns),
        rows=tuple(_row(row, chosen) for row in experiment.rows),
        # Tables without the score name its organ segmenter only to share runs with those that show it.
        unet_score=experiment.unet_score if _shows_unet(experiment) else None,
        caveats=tuple(caveat for caveat in experiment.caveats if caveat not in experiment.of_phantoms),
    )


def _described(folder: Path, cases: Sequence[Case], relations: Collection[str]) -> UserCohort:
    digests = {case.name: {"root": integrity.manifest(case.folder)["root"]} for case in cases}
    return UserCohort(
        name=folder.absolute().name,
        patients=len({case.subject for case in cases}),
        cases=len(cases),
        low_doses=tuple(sorted(relations)),
        digest=integrity.root_digest(digests, {}),
    )


def _tested_on(
    folder: Path | None, images: Collection[str], patients: Collection[str]
) -> tuple[UserCohort | None, list[str]]:
    """The external cohort, and what there is not: its images have the names of the cohort's, and nobody is in both."""
    if folder is None:
        return None, ["a second cohort to be tested on, by --external"]
    cohort = open_cohort(folder)
    cases = [cohort.case(name) for name in cohort.cases]
    lacking = [
        f"an image '{image}' in every case of {cohort.name}"
        for image in sorted(images)
        if not cases or any(image not in case.images for case in cases)
    ]
    if seen := sorted(case.name for case in cases if case.subject in patients):
        lacking.append(f"other patients in {cohort.name} ({', '.join(seen)} are of patients of the cohort)")
    if lacking:
        return None, lacking
    relations = {dose.relation for image in images for case in cases[:1] if (dose := case.image(image).dose)}
    return _described(folder, cases, relations - {"full"}), []


def patients_of(cohort: Cohort) -> dict[str, str]:
    """Case -> what a table calls its patient: the name of the patient's first case."""
    first: dict[str, str] = {}
    return {name: first.setdefault(cohort.case(name).subject, name) for name in cohort.cases}


def _images(
    experiment: Experiment, phantoms: PhantomCohort, cases: Sequence[Case], sources: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """The table's image -> the cohort's, and what there is not; realisations of a dose become one image."""
    if experiment.segmenters:
        refused = ["no image by --source: its networks see the full dose alone"] if sources else []
        return dict.fromkeys(experiment.sources, experiment.feed.target), refused
    if sources and len(sources) != len(phantoms.drfs):
        return {}, [f"{len(phantoms.drfs)} images by --source, one per dose ({len(sources)} are given)"]
    if not phantoms.drfs:
        whole = bool(cases) and all("ct" in case.images and case.image("ct").units == HU for case in cases)
        return {"ct": "ct"}, [] if whole else ["a CT in every case"]
    chosen: dict[str, str] = {}
    lacking: list[str] = []
    missing = []
    for place, drf in enumerate(phantoms.drfs):
        found = sources[place] if sources else _at_dose(cases, drf)
        if not found:
            missing.append(f"{drf:g}")
        elif any(found not in case.images for case in cases):
            lacking.append(f"an image '{found}' in every case")
        chosen |= dict.fromkeys((low_name(drf, draw) for draw in range(phantoms.realisations)), found)
    if missing:
        what = "images at dose reduction factors" if len(missing) > 1 else "an image at dose reduction factor"
        lacking.append(f"{what} {', '.join(missing)} in every case (it has {_doses(cases) or 'none'})")
    return chosen, lacking


def _at_dose(cases: Sequence[Case], drf: float) -> str:
    """The image of a dose that every case has, the one of the usual name first; empty for none."""
    names = set.intersection(*(set(case.images) for case in cases)) if cases else set()
    there = [name for name in sorted(names) if all(_is_at(case, name, drf) for case in cases)]
    return low_name(drf) if low_name(drf) in there else next(iter(there), "")


def _is_at(case: Case, name: str, drf: float) -> bool:
    dose = case.image(name).dose
    return dose is not None and abs(dose.drf / drf - 1) <= DOSE_TOLERANCE


def _doses(cases: Sequence[Case]) -> str:
    doses = [case.image(name).dose for case in cases for name in case.images]
    return ", ".join(f"{drf:g}" for drf in sorted({dose.drf for dose in doses if dose and not math.isnan(dose.drf)}))


def _labels(experiment: Experiment) -> list[str]:
    """Labels that rows are guided by, and that organs are scored or searched by."""
    wanted = [label for row in experiment.rows for label in getattr(row.config.model, "rois", ())]
    wanted += [label for row in experiment.segmenters for label in row.config.rois]
    if experiment.unet_score is not None and _shows_unet(experiment):
        wanted += experiment.unet_score.rois
    if experiment.lesions is not None:
        wanted += [experiment.lesions.lesion, *experiment.lesions.organs]
    return list(dict.fromkeys(wanted))


def _shows_unet(experiment: Experiment) -> bool:
    return any(column.metric == "Unet-score" for column in experiment.columns)


def _row(row: Row, chosen: Mapping[str, str]) -> Row:
    feed = replace(row.config.feed, source=_renamed(row.config.feed.source, chosen))
    return replace(row, config=replace(row.config, feed=feed))


def _renamed(images: Sequence[str], chosen: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chosen[image] for image in images))
