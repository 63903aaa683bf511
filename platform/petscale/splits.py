"""Which patients train, validate and test a run: drawn by patient, never by scan or slice, from a seed."""

from collections.abc import Collection
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


def _subject(cohort: Cohort, name: str) -> str:
    return cohort.case(name).subject


def _share(fraction: float, count: int) -> int:
    """How many of ``count`` patients a fraction makes: one at least, none for 0."""
    return max(1, round(fraction * count)) if fraction > 0 else 0
