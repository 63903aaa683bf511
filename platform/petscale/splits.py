"""Which patients train, validate and test a run: drawn by patient, never by scan or slice, from a seed."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated

from storage.errors import InputError
from storage.randomness import Stream, generator
from storage.ranges import Range, check_ranges
from storage.reader import Cohort


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which patients are kept for testing; always whole patients, never scans or slices.

    Args:
        test: names of test cases; every other case of their patients is left out of training too.
        test_fraction: part of the patients drawn for testing when ``test`` is empty.
        folds: number of parts for cross-validation by patient, 0 for none; part ``fold`` is then tested on.
        fold: which part, counted from 0.
        validation_fraction: part of the other patients kept for validation, where a recipe's schedule needs them.
        unpaired: names of cases whose full dose is used without its pair, where a recipe wants such.
        unpaired_fraction: part of the training patients drawn for that when ``unpaired`` is empty (S3PET: 120 of 150).
        seed: of these draws.
    """

    test: tuple[str, ...] = ()
    test_fraction: Annotated[float, Range(0, below=1)] = 0.25
    folds: Annotated[int, Range(0)] = 0
    fold: Annotated[int, Range(0)] = 0
    validation_fraction: Annotated[float, Range(0, below=1)] = 0.1
    unpaired: tuple[str, ...] = ()
    unpaired_fraction: Annotated[float, Range(0, below=1)] = 0.8
    seed: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        check_ranges(self, "split")
        for field, found, good, wanted in (
            ("folds", self.folds, self.folds != 1, "2 or more, or 0 for none"),
            ("fold", self.fold, self.fold < max(self.folds, 1), "a number from 0 to below split.folds"),
        ):
            if not good:
                raise InputError("CFG_RANGE", where=f"split.{field}", found=repr(found), remedy=f"give {wanted}")


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
        """The cases behind every kind of ``BatchSpec.images``."""
        return {"paired": self.train, "source": self.train, "target": self.unpaired}

    @property
    def everyone(self) -> tuple[str, ...]:
        """All cases that the run touches."""
        return (*self.train, *self.unpaired, *self.validation, *self.test)


def split_cases(cohort: Cohort, config: SplitConfig, *, unpaired: bool = False, validation: bool = False) -> Roles:
    """Give every patient a role; those for unpaired scans and for validation only where a recipe asks for them.

    Raises:
        InputError: SET_NO_CASE, SET_TOO_SMALL.
    """
    subjects = {name: cohort.case(name).subject for name in cohort.cases}
    people = sorted(set(subjects.values()))
    order = [people[int(i)] for i in generator(config.seed, Stream.SPLIT).permutation(len(people))]
    if config.folds:
        tested = set(order[config.fold :: config.folds])
    elif config.test:
        tested = {_subject(cohort, name) for name in config.test}
    else:
        tested = set(order[: _share(config.test_fraction, len(people))])
    rest = [person for person in order if person not in tested]
    spare = max(len(rest) - 1, 0)  # one patient at least stays to be trained on
    validated = set(rest[: min(spare, _share(config.validation_fraction, len(rest)))]) if validation else set()
    rest = [person for person in rest if person not in validated]
    if not unpaired:
        alone = set()
    elif config.unpaired:
        alone = {_subject(cohort, name) for name in config.unpaired} & set(rest)
    else:
        alone = set(rest[: min(max(len(rest) - 1, 0), _share(config.unpaired_fraction, len(rest)))])

    def cases(group: Collection[str]) -> tuple[str, ...]:
        return tuple(name for name, subject in subjects.items() if subject in group)

    test = tuple(sorted(config.test)) if config.test and not config.folds else cases(tested)
    roles = Roles(cases(set(rest) - alone), cases(alone), cases(validated), test)
    if not roles.train:
        raise InputError(
            "SET_TOO_SMALL",
            where="split",
            found=f"{len(subjects)} cases of {len(people)} patients leave none to train on",
            remedy="ingest more patients or keep fewer for testing (--set split.test_fraction=...)",
        )
    return roles


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


def _subject(cohort: Cohort, name: str) -> str:
    return cohort.case(name).subject


def _share(fraction: float, count: int) -> int:
    """How many of ``count`` patients a fraction makes: one at least, none for 0."""
    return max(1, round(fraction * count)) if fraction > 0 else 0
