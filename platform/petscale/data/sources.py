"""From what a user says of a source to plans of cases: layout, table, exclusions, names, parts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

from petscale.data.cohorts import Plans
from petscale.data.examination import Examination, Tree
from petscale.data.ingest import alias, plan_examination
from petscale.data.layouts import LAYOUTS, check_options
from petscale.data.layouts.options import Options
from petscale.data.table import apply_table, read_table
from storage import suv
from storage.errors import InputError
from storage.ingest import CasePlan

PART = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Named:
    """An examination with the name of its case; ``refusal`` says why it cannot be ingested under this name."""

    case: str
    examination: Examination
    refusal: InputError | None = None


def find_examinations(
    source: Path,
    layout: str,
    options: Options,
    table: Path | None,
    case: str | None,
    names: Literal["hash", "folder"],
    *,
    before: str = "",
) -> tuple[tuple[Named, ...], Tree]:
    """Find the examinations of a source and name their cases.

    Args:
        layout: one of ``LAYOUTS``; empty: ``folders`` where ``options.pet`` is given, else ``one``.
        table: what headers lack.
        case: name of a single case.
        names: of many cases.
        before: what cases are named after beside their key, where there are several sources.

    Returns:
        those that are to be ingested, and all that was found with what was passed by.

    Raises:
        InputError: CFG_LAYOUT, CFG_NO_EFFECT, CFG_MANY_PATIENTS, SET_NO_EXAMINATION, SET_CASE_COLLISION; those of the
            layout and of ``petscale.data.table``.
    """
    chosen = layout or ("folders" if options.pet else "one")
    if chosen not in LAYOUTS:
        raise InputError(
            "CFG_LAYOUT", where="--layout", found=chosen, remedy=f"choose one of {', '.join(sorted(LAYOUTS))}"
        )
    check_options(chosen, options)
    tree = LAYOUTS[chosen].find(source, options)
    if table is not None:
        tree = apply_table(tree, read_table(table))
    tree = _without(tree, options)
    wanted = [
        replace(one, files=replace(one.files, interpolation=options.interpolation))
        for one in tree.examinations
        if not one.excluded
    ]
    if not wanted:
        raise InputError(
            "SET_NO_EXAMINATION",
            where=source.name,
            found=f"all {len(tree.examinations)} examinations are left out",
            remedy="look at --dry-run; --keep takes one in again",
        )
    _check_overrides(options.overrides, wanted)
    named: dict[str, Named] = {}
    for one in wanted:
        # One examination has always been named after its file or folder.
        called = f"{before}/{one.key}" if before else one.key
        refusal = None
        try:
            name = case if case and len(wanted) == 1 else alias(called, "hash" if chosen == "one" else names)
        except InputError as error:  # an unusable name refuses its folder, not the others
            name, refusal = alias(called, "hash"), error
        if name in named:
            raise InputError(
                "SET_CASE_COLLISION",
                where=f"case {name}",
                found="two examinations whose names differ in case only",
                remedy="rename one, or use --names hash",
            )
        named[name] = Named(name, one, refusal)
    if case and len(wanted) > 1:
        raise InputError(
            "CFG_MANY_PATIENTS",
            where="--case",
            found=f"one name for {len(wanted)} examinations",
            remedy="leave it out; --names folder keeps the folders' names",
        )
    return tuple(named.values()), tree


def _without(tree: Tree, options: Options) -> Tree:
    """Leave out what the user names, and take in what the user wants in spite of a list.

    Raises:
        InputError: SET_NO_EXAMINATION for a name that no examination has.
    """
    known = {part for one in tree.examinations for part in (one.key, *one.key.split("/"))}
    for option in ("exclude", "keep"):
        if unknown := sorted({*getattr(options, option)} - known):
            raise InputError(
                "SET_NO_EXAMINATION",
                where=f"--{option}",
                found=f"{len(unknown)} of its names are no examination here",
                remedy="give names of folders below the source, as --dry-run lists them",
            )

    def decided(one: Examination) -> Examination:
        parts = {one.key, *one.key.split("/")}
        if parts & {*options.exclude}:
            return replace(one, excluded="--exclude")
        return replace(one, excluded="") if parts & {*options.keep} else one

    return replace(tree, examinations=tuple(decided(one) for one in tree.examinations))


def _check_overrides(overrides: suv.Overrides, examinations: Sequence[Examination]) -> None:
    """Refuse one patient's weight, dose or injection time for several examinations.

    Raises:
        InputError: CFG_MANY_PATIENTS.
    """
    given = [field.name for field in fields(overrides) if getattr(overrides, field.name) is not None]
    if given and len(examinations) > 1:
        raise InputError(
            "CFG_MANY_PATIENTS",
            where=f"--{given[0].replace('_', '-')}",
            found=f"one value for {len(examinations)} examinations",
            remedy="give a --table with a row per patient (columns weight_kg, dose_mbq, ...)",
        )


def plans_of(named: Sequence[Named], part: str = "") -> Plans:
    """Return plans of cases, all or those of one part.

    Args:
        part: ``3/20``: the third of twenty parts that do not overlap and together are all, whatever their order.

    Raises:
        InputError: CFG_PART.
    """
    plans = {one.case: one for one in named}
    names = sorted(plans)
    if part:
        match = PART.fullmatch(part)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError("CFG_PART", where="--part", found=part, remedy="write 3/20 for the third of twenty parts")
        names = names[int(match[1]) - 1 :: int(match[2])]
    return {name: partial(_plan, plans[name]) for name in names}


def _plan(named: Named, scratch: Path) -> CasePlan:
    if named.refusal is not None:
        raise named.refusal
    return plan_examination(named.examination, scratch)


def part_name(part: str) -> str:
    """Return what a part is called on disk."""
    return part.replace("/", "-of-")


def doubts(named: Sequence[Named], tree: Tree) -> list[str]:
    """Return what a user should know of the examinations that were found, each doubt once: lines without a folder."""
    said: dict[str, int] = {}
    for one in named:
        for doubt in one.examination.doubts:
            said[doubt] = said.get(doubt, 0) + 1
    lines = [f"note {doubt} ({count} of {len(named)} examinations)" for doubt, count in said.items()]
    left: dict[str, int] = {}
    for one_left in tree.examinations:
        if one_left.excluded:
            left[one_left.excluded] = left.get(one_left.excluded, 0) + 1
    lines += [f"left out {count} examinations: {why}" for why, count in left.items()]
    passed: dict[str, int] = {}
    for why in tree.passed_by.values():
        passed[why] = passed.get(why, 0) + 1
    return lines + [f"passed by {count} places: {why}" for why, count in passed.items()]
