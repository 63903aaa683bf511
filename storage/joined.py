"""Several cohorts read as one: a case keeps its name, or is called by its cohort too where several have that name."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from storage import layout
from storage.errors import InputError
from storage.reader import Case, Cases, Cohort, open_cohort


@dataclass(frozen=True)
class JoinedCohort:
    """Committed cases of several cohorts.

    Args:
        cohorts: at least two, with folders of different names.
    """

    cohorts: tuple[Cohort, ...]

    @cached_property
    def _places(self) -> dict[str, tuple[Cohort, str]]:
        """Name here -> its cohort, and its name there."""
        counts = Counter(name for cohort in self.cohorts for name in cohort.cases)
        return {
            name if counts[name] == 1 else f"{_word(cohort)}.{name}": (cohort, name)
            for cohort in self.cohorts
            for name in cohort.cases
        }

    @cached_property
    def _opened(self) -> dict[str, Case]:
        return {}

    @property
    def name(self) -> str:
        """The names of the cohorts' folders, joined."""
        return "+".join(cohort.name for cohort in self.cohorts)

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the committed cases of all cohorts, sorted."""
        return tuple(sorted(self._places))

    def case(self, name: str) -> Case:
        """Open one case, as ``Cohort.case`` does, under its name here.

        Raises:
            InputError: SET_NO_CASE, STORE_DAMAGED, STORE_UNCOMMITTED.
        """
        if name not in self._places:
            raise InputError(
                "SET_NO_CASE",
                where=f"case {name}",
                found=f"in none of the cohorts ({len(self._places)} cases)",
                remedy="list the cases with `petscale inspect --cases`; a name of several cohorts is written "
                "cohort.case",
            )
        if name not in self._opened:
            cohort, theirs = self._places[name]
            self._opened[name] = replace(cohort.case(theirs), name=name)
        return self._opened[name]

    def cohort_of(self, name: str) -> str:
        """Return the name of the cohort's folder that a case is in."""
        return self._places[name][0].folder.name


def _word(cohort: Cohort) -> str:
    """The folder's name as a case's name may begin."""
    return re.sub(r"[^a-z0-9_-]+", "-", cohort.folder.name.lower()).strip("-_") or "cohort"


def open_cohorts(folders: Sequence[Path]) -> Cases:
    """Open one cohort, or several as one.

    Raises:
        InputError: STORE_NONE, STORE_DAMAGED, STORE_SCHEMA; SET_CASE_COLLISION for two folders of one name.
    """
    cohorts = tuple(open_cohort(folder) for folder in folders)
    if len(cohorts) == 1:
        return cohorts[0]
    words = Counter(map(_word, cohorts))
    if alike := [word for word, count in words.items() if count > 1]:
        raise InputError(
            "SET_CASE_COLLISION",
            where=alike[0],
            found="two cohorts whose folders have one name: their cases could not be told apart",
            remedy="give their folders different names, and each cohort once",
        )
    joined = JoinedCohort(cohorts)
    for name in joined.cases:
        layout.check_case_name(name)
    return joined
