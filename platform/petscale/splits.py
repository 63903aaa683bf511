"""Which patients train, validate and test a run: drawn by patient, never by scan or slice, from a seed."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from storage.errors import InputError
from storage.randomness import Stream, generator
from storage.ranges import Range, check_ranges
from storage.reader import Case, Cases

RECIPE = "RECIPE.json"  # in a cohort that was made by one

_FACTS, _NAMED_FACTS = ("drf", "tracer", "scanner", "voxel_size"), ("label", "tag")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which patients are kept for testing; always whole patients, never scans or slices.

    Args:
        test: names of test cases; every other case of their patients is left out of training too.
        test_fraction: part of the patients drawn for testing when ``test`` is empty.
        folds: number of parts for cross-validation by patient, 0 for none; part ``fold`` is then tested on.
        fold: which part, counted from 0.
        fold_tag: tag of the cases that holds their fold, as a table's column fold gives it; nothing is drawn then, and
            the cases of ``fold`` are tested on.
        validation_fraction: part of the other patients kept for validation, where a recipe's schedule or
            ``loop.validate_every`` needs them.
        unpaired: names of cases whose full dose is used without its pair, where a recipe wants such.
        unpaired_fraction: part of the training patients drawn for that when ``unpaired`` is empty.  S3PET's paper has
            0.8, 120 of 150; by default nobody's pair is given away, and full doses alone are those of the pairs.
        leave_out: names of cases that are never used, not even opened.
        stratify: facts of which every drawn part gets its share: drf, tracer, scanner, voxel_size, label:NAME or
            tag:NAME.
        seed: of these draws.
    """

    test: tuple[str, ...] = ()
    test_fraction: Annotated[float, Range(0, below=1)] = 0.25
    folds: Annotated[int, Range(0)] = 0
    fold: Annotated[int, Range(0)] = 0
    fold_tag: str = ""
    validation_fraction: Annotated[float, Range(0, below=1)] = 0.1
    unpaired: tuple[str, ...] = ()
    unpaired_fraction: Annotated[float, Range(0, below=1)] = 0.0
    leave_out: tuple[str, ...] = ()
    stratify: tuple[str, ...] = ()
    seed: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        check_ranges(self, "split")
        for field, found, good, wanted in (
            ("folds", self.folds, self.folds != 1, "2 or more, or 0 for none"),
            (
                "fold",
                self.fold,
                bool(self.fold_tag) or self.fold < max(self.folds, 1),
                "a number from 0 to below split.folds",
            ),
        ):
            if not good:
                raise InputError("CFG_RANGE", where=f"split.{field}", found=repr(found), remedy=f"give {wanted}")
        if both := sorted({*self.test, *self.unpaired} & set(self.leave_out)):
            raise InputError(
                "CFG_CONTRADICTION",
                where="split.leave_out",
                found=f"{', '.join(both)} is to be left out, and to be used by split.test or split.unpaired",
                remedy="name it in one of them",
            )
        for fact in self.stratify:
            kind, _, name = fact.partition(":")
            if kind not in (*_FACTS, *_NAMED_FACTS) or bool(name) != (kind in _NAMED_FACTS):
                raise InputError(
                    "CFG_CHOICE",
                    where="split.stratify",
                    found=repr(fact),
                    remedy=f"choose among {', '.join(_FACTS)}, label:NAME and tag:NAME",
                )


@dataclass(frozen=True)
class Roles:
    """Which cases do what in a run; no patient has two roles.

    Args:
        train: paired low and full dose.
        unpaired: full dose alone.
        validation: cases whose scores steer a recipe's schedule.
        test: kept for the end.
    """

    train: tuple[str, ...]
    unpaired: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def streams(self) -> dict[str, tuple[str, ...]]:
        """The cases behind every kind of ``BatchSpec.images``; of unpaired ones, those that give targets."""
        both = (*self.train, *self.unpaired)
        return {"paired": self.train, "source": self.train, "target": self.unpaired or self.train, "unpaired": both}

    @property
    def everyone(self) -> tuple[str, ...]:
        """All cases that the run touches."""
        return (*self.train, *self.unpaired, *self.validation, *self.test)

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> "Roles":
        """Read the roles that a run's record holds beside other facts; one without a role has nobody in it."""
        return cls(**{role.name: tuple(record.get(role.name, ())) for role in fields(cls)})


def split_cases(cohort: Cases, config: SplitConfig, *, unpaired: bool = False, validation: bool = False) -> Roles:
    """Give every patient a role; those for unpaired scans and for validation only where a recipe asks for them.

    Raises:
        InputError: SET_NO_CASE, SET_TOO_SMALL, SET_NO_FACT.
    """
    names = cohort.cases
    if absent := sorted(set(config.leave_out) - set(names)):
        raise InputError(
            "SET_NO_CASE",
            where="split.leave_out",
            found=f"{', '.join(absent)}: not in the cohort ({len(names)} cases)",
            remedy="list the cases with `petscale inspect --cases`",
        )
    used = {name: cohort.case(name) for name in names if name not in config.leave_out}
    subjects = {name: case.subject for name, case in used.items()}
    strata = _strata(used, config.stratify)
    people = sorted(set(subjects.values()))
    order = [people[int(i)] for i in generator(config.seed, Stream.SPLIT).permutation(len(people))]
    order.sort(key=strata.__getitem__)  # as drawn within a stratum, and altogether where there is one stratum only

    def drawn(among: Sequence[str], count: int) -> set[str]:
        """The first ones as drawn; of several strata, evenly spaced ones of their sequence: each gives its share."""
        if not config.stratify:
            return set(among[:count])
        return {among[(2 * place + 1) * len(among) // (2 * count)] for place in range(count)}

    if config.fold_tag:
        tested = _tagged(used, config)
    elif config.folds:
        tested = set(order[config.fold :: config.folds])
    elif config.test:
        tested = {_subject(cohort, name) for name in config.test}
    else:
        tested = drawn(order, _share(config.test_fraction, len(people)))
    rest = [person for person in order if person not in tested]
    spare = max(len(rest) - 1, 0)  # one patient at least stays to be trained on
    validated = drawn(rest, min(spare, _share(config.validation_fraction, len(rest)))) if validation else set()
    rest = [person for person in rest if person not in validated]
    if not unpaired:
        alone = set()
    elif config.unpaired:
        alone = {_subject(cohort, name) for name in config.unpaired} & set(rest)
    else:
        alone = drawn(rest, min(max(len(rest) - 1, 0), _share(config.unpaired_fraction, len(rest))))

    def cases(group: Collection[str]) -> tuple[str, ...]:
        return tuple(name for name, subject in subjects.items() if subject in group)

    test = tuple(sorted(config.test)) if config.test and not (config.folds or config.fold_tag) else cases(tested)
    roles = Roles(cases(set(rest) - alone), cases(alone), cases(validated), test)
    if not roles.train:
        raise InputError(
            "SET_TOO_SMALL",
            where="split",
            found=f"{len(subjects)} cases of {len(people)} patients leave none to train on",
            remedy="ingest more patients or keep fewer for testing (--set split.test_fraction=...)",
        )
    return roles


def same_scans(voxels: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return cases that hold one and the same scan, voxel for voxel.

    Args:
        voxels: name of a case -> digest of its voxels, empty if unknown.

    >>> same_scans({"a": "1", "b": "2", "c": "1", "d": ""})
    [('a', 'c')]
    """
    held: dict[str, list[str]] = {}
    for name, digest in sorted(voxels.items()):
        if digest:
            held.setdefault(digest, []).append(name)
    return [tuple(names) for names in held.values() if len(names) > 1]


def _strata(cases: Mapping[str, Case], facts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Patient -> what his or her cases state of the facts, all of them together.

    Raises:
        InputError: SET_NO_FACT for a fact that no case states.
    """
    stated: dict[str, dict[str, set[str]]] = {case.subject: {fact: set() for fact in facts} for case in cases.values()}
    for case in cases.values():
        for fact in facts:
            stated[case.subject][fact] |= _stated(case, fact)
    for fact in facts:
        if not any(held[fact] for held in stated.values()):
            raise InputError(
                "SET_NO_FACT",
                where="split.stratify",
                found=f"no case states '{fact}'",
                remedy="petscale inspect shows what the cases state",
            )
    return {person: tuple(", ".join(sorted(held[fact])) for fact in facts) for person, held in stated.items()}


def _stated(case: Case, fact: str) -> set[str]:
    """What a case states of one fact, nothing where it does not know it.

    A label counts where its voxels are, not where a table of names lists it.
    """
    kind, _, name = fact.partition(":")
    if kind == "label":
        parts = {label for label in case.labels.values() if label == name or label.startswith((f"{name} ", f"{name}_"))}
        return {name} if any(case.sampling_maps.rois[label].any() for label in parts) else set()
    if kind == "tag":
        return {case.tags[name]} if name in case.tags else set()
    images = [case.image(image) for image in case.images if image != "body"]
    if kind == "drf":
        return {f"{image.dose.drf:g}" for image in images if image.dose is not None}
    if kind == "voxel_size":
        return {" x ".join(f"{mm:.1f}" for mm in images[0].grid.spacing_mm)}
    wanted = ("tracer", "nuclide") if kind == "tracer" else (kind,)
    return {str(known) for image in images if (known := _origin(image.provenance, wanted))}


def _origin(provenance: Mapping[str, object], facts: Sequence[str]) -> object:
    """The first of some facts that an image states, or else the image that a simulation started from."""
    found = next((provenance[fact] for fact in facts if provenance.get(fact)), None)
    truth = provenance.get("truth")
    return _origin(truth, facts) if found is None and isinstance(truth, Mapping) else found


SHARED_STEM = 8  # names of more cases than this share a site's or a study's prefix, not a patient
_OCCASION = re.compile(  # how a name says which of a patient's scans it is
    r"(baseline|base|follow|followup|fup|fu|up|pre|post|before|after|interim|end|early|late|delayed|first|second|third|"
    r"scan|visit|session|ses|exam|timepoint|time|repeat|rep|run|test|retest|day|week|month|year|acq|"
    r"(?:t|v|s|d|w|m|y|tp|fu|ses|scan|visit|week|day|month|year|rep|run)\d{1,3})"
)


def one_patient_by_name(subjects: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Point out cases that look like scans of one patient by their names, though their patients differ.

    A name's stem is what is left of it without the words and numbers at its end that say which scan it is; a number
    only belongs to these where another number stands before it (``p01-2``).

    Args:
        subjects: name of a case -> its patient.

    Returns:
        Names with one stem, sorted.

    >>> one_patient_by_name({"p01-baseline": "a", "p01-followup": "b", "p02": "c", "p03": "d"})
    [('p01-baseline', 'p01-followup')]
    >>> one_patient_by_name({"p01-1": "a", "p01-2": "a", "phantom-000": "c", "phantom-001": "d"})
    []
    """
    stems: dict[str, list[str]] = {}
    for name in sorted(subjects):
        stems.setdefault(_stem(name), []).append(name)
    groups = [tuple(names) for names in stems.values() if len(names) <= SHARED_STEM]
    return [names for names in groups if len({subjects[name] for name in names}) > 1]


def _stem(name: str) -> str:
    words = re.split(r"[-_.]", name)
    while len(words) > 1:
        numbered = words[-1].isdigit() and any(character.isdigit() for word in words[:-1] for character in word)
        if not numbered and not _OCCASION.fullmatch(words[-1]):
            break
        words.pop()
    return "-".join(words)


def _tagged(cases: Mapping[str, Case], config: SplitConfig) -> set[str]:
    """The patients whose cases hold the fold that is tested.

    Raises:
        InputError: SET_NO_FACT for a case without the tag, and where no case has the fold; CFG_CONTRADICTION for a
            patient in two folds.
    """
    where = f"split.fold_tag={config.fold_tag}"
    folds: dict[str, str] = {}
    for name, case in cases.items():
        fold = case.tags.get(config.fold_tag)
        if fold is None:
            raise InputError(
                "SET_NO_FACT",
                where=where,
                found=f"case {name} has no such tag",
                remedy="give every case one (a table's column), or name the case in split.leave_out",
            )
        if folds.setdefault(case.subject, fold) != fold:
            raise InputError(
                "CFG_CONTRADICTION",
                where=where,
                found=f"case {name} is of a patient whose other case lies in another fold",
                remedy="give all cases of one patient one fold",
            )
    tested = {subject for subject, fold in folds.items() if fold == str(config.fold)}
    if not tested:
        raise InputError(
            "SET_NO_FACT",
            where=where,
            found=f"no case lies in fold {config.fold} (there are {', '.join(sorted(set(folds.values())))})",
            remedy="choose one of these by split.fold",
        )
    return tested


def _subject(cohort: Cases, name: str) -> str:
    return cohort.case(name).subject


def _share(fraction: float, count: int) -> int:
    """How many of ``count`` patients a fraction makes: one at least, none for 0."""
    return max(1, round(fraction * count)) if fraction > 0 else 0


def stated_split(cohort: Path, config: SplitConfig) -> SplitConfig:
    """Return the split that a cohort's recipe states where a run says nothing about it, else the run's own.

    Raises:
        InputError: STORE_DAMAGED for a recipe that cannot be read.
    """
    if config != SplitConfig() or not (cohort / RECIPE).is_file():
        return config
    try:
        split = json.loads((cohort / RECIPE).read_bytes())["split"]
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in (split or {}).items()
        }
        return SplitConfig(**values)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            "STORE_DAMAGED",
            where=f"{cohort.name}/{RECIPE}",
            found="not readable",
            remedy="run the same petscale ingest with the recipe again",
        ) from None
