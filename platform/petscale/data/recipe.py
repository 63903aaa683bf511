"""A cohort as a recipe: its sources, tables, exclusions and split in one YAML or JSON file, kept in the cohort.

    sources:
      - path: udpet                  # below the folder of this file, or absolute
        layout: udpet
        exclude: [Subject_115-117]
      - path: ours
        pet: full.nii.gz
        low: {20: D20.nii.gz}        # or ["20=D20.nii.gz"]
        table: weights.tsv
    names: folder
    split: {folds: 5, seed: 1, stratify: [tracer]}

A source has the options of ``petscale ingest`` under their names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from petscale.data.examination import Examination, Tree
from petscale.data.layouts.options import Options, case_naming
from petscale.data.sources import Named, find_examinations
from petscale.plain_values import build, read_file
from petscale.splits import RECIPE, SplitConfig
from storage import integrity, suv
from storage.errors import InputError

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What a source has beside ``Options``."""

    path: str
    layout: str = ""
    table: str = ""
    weight_kg: float | None = None
    dose_mbq: float | None = None
    injection_time: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Whole:
    """The fields of the file itself; sources and split are read one by one."""

    sources: Mapping[str, Any]
    names: Literal["hash", "folder"] = "hash"
    split: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class CohortRecipe:
    """A recipe that was read.

    Args:
        sources: what each is, and its options.
        names: of cases.
        split: how patients are parted where a run does not say it itself; None where nothing is stated.
        folder: that relative paths start at.
    """

    sources: tuple[tuple[_Source, Options], ...]
    names: Literal["hash", "folder"]
    split: SplitConfig | None
    folder: Path


def read_recipe(path: Path) -> CohortRecipe:
    """Read and check a recipe.

    Raises:
        InputError: CFG_NO_FILE, CFG_JSON, CFG_FIELD, CFG_VALUE, CFG_RANGE, CFG_SOURCES.
    """
    content = read_file(path)
    sources = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(sources, list) or not sources or not all(isinstance(one, dict) for one in sources):
        raise InputError(
            "CFG_SOURCES",
            where=path.name,
            found="no list of sources",
            remedy="write sources: with a - path: for each, as docs/how-to-real-pairs.md shows",
        )
    whole = build(path.name, _Whole, {**content, "sources": {}})
    split = whole.split
    return CohortRecipe(
        tuple(_source(f"sources[{number}]", one) for number, one in enumerate(sources)),
        whole.names,
        None if split is None else build("split", SplitConfig, split),
        path.absolute().parent,
    )


def _source(where: str, content: Mapping[str, Any]) -> tuple[_Source, Options]:
    own = {field.name for field in fields(_Source)}
    if "path" not in content:
        raise InputError("CFG_SOURCES", where=where, found="no path", remedy="name the folder or file of the source")
    low = content.get("low")
    written = {key: value for key, value in content.items() if key not in own}
    if isinstance(low, Mapping):
        written["low"] = [f"{drf}={name}" for drf, name in low.items()]
    if isinstance(content.get("frames"), int):  # YAML's 3 is the command line's
        written["frames"] = str(content["frames"])
    if isinstance(pairs := content.get("frame_pairs"), list | int):
        written["frame_pairs"] = [str(one) for one in (pairs if isinstance(pairs, list) else [pairs])]
    source = build(where, _Source, {key: value for key, value in content.items() if key in own})
    overrides = suv.Overrides(source.weight_kg, source.dose_mbq, source.injection_time)
    return source, build(where, Options, {**written, "overrides": overrides})


def find_all(recipe: CohortRecipe) -> tuple[tuple[Named, ...], Tree]:
    """Find the examinations of all sources; a case is named after its source too where there are several.

    Raises:
        InputError: SET_CASE_COLLISION, and those of ``petscale.data.sources.find_examinations``.
    """
    found: list[Named] = []
    passed_by: dict[str, str] = {}
    examinations: list[Examination] = []
    for source, options in recipe.sources:
        root = recipe.folder / source.path
        table = recipe.folder / source.table if source.table else None
        before = root.name if len(recipe.sources) > 1 else ""
        named, tree = find_examinations(root, source.layout, options, table, None, recipe.names, before=before)
        found += named
        examinations += tree.examinations
        passed_by |= {f"{root.name}/{place}": why for place, why in tree.passed_by.items()}
    names = [one.case for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            "SET_CASE_COLLISION",
            where=f"case {twice[0]}",
            found="two sources of one name have examinations of one name",
            remedy="rename a source's folder",
        )
    return tuple(found), Tree(tuple(examinations), passed_by)


def find_source(
    source: Path, layout: str, options: Options, table: Path | None, case: str | None, names: Sequence[str]
) -> tuple[tuple[Named, ...], Tree, CohortRecipe | None]:
    """Find the examinations of one source, or of all those of a recipe, which is returned then.

    Raises:
        InputError: CFG_CONTRADICTION for options beside a recipe; those of ``find_examinations`` and ``find_all``.
    """
    if source.suffix.lower() not in SUFFIXES:
        return *find_examinations(source, layout, options, table, case, case_naming(names)), None
    if options != Options() or any((layout, case, table, names)):
        raise InputError(
            "CFG_CONTRADICTION",
            where=source.name,
            found="options of a source beside a recipe, which states its own",
            remedy="write them into the recipe; --part, --dry-run, --strict and --workers stay",
        )
    recipe = read_recipe(source)
    return *find_all(recipe), recipe


def keep_recipe(recipe: CohortRecipe, cohort: Path) -> None:
    """Write the recipe into its cohort; of paths and examinations only what a user calls data sets by.

    Folders may name patients: of a path its last part is kept, of exclusions their number.
    """
    sources = []
    for source, options in recipe.sources:
        told = {key: value for key, value in asdict(options).items() if value and key not in ("overrides", "patient")}
        for hidden in ("exclude", "keep"):
            told |= {hidden: len(told[hidden])} if hidden in told else {}
        for paths in ("pet", "ct", "mask", "labels"):
            told |= {paths: Path(told[paths]).name} if paths in told else {}
        told |= {"low": [f"{text.partition('=')[0]}={Path(text).name}" for text in options.low]} if options.low else {}
        sources.append({"path": Path(source.path).name, "layout": source.layout, "table": bool(source.table), **told})
    split = None if recipe.split is None else asdict(recipe.split)
    integrity.write_json(cohort / RECIPE, {"sources": sources, "names": recipe.names, "split": split})
