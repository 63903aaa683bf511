"""A run's whole configuration, in one language for the command line, for YAML and JSON files and for search spaces.

A field is named ``section.field``: ``recipe.lambda_content``, ``feed.cases_per_step``.  ``recipe`` is the chosen
system's own section; the other sections are the same for every system.  A file holds the same names, nested or dotted:

    recipe: {name: sgsgan, lambda_content: 50}
    feed.cases_per_step: 4

What a file leaves out has the defaults of the paper, or with ``recipe: {name: sgsgan, defaults: practice}`` those that
its system states beside them (``PRACTICE`` of the system's module).  They are filled in when the file is read: a run
records every setting itself, and what an earlier version recorded keeps its meaning.
"""

import ast
import dataclasses
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from petscale.folders import CONFIG, FOLD, FOLDS, ROLES, TRIALS
from petscale.plain_values import bad_value, build, read_file, unknown
from petscale.splits import SplitConfig
from storage.errors import InputError
from storage.ranges import Range, check_ranges
from trainers.engine import EngineConfig
from trainers.feed_config import FORMER, FeedConfig
from trainers.loop import LoopConfig
from trainers.recipe import Departure
from trainers.systems import RECIPES

_SPLIT_AT_FIRST: tuple[str, ...] = ("test", "test_fraction", "folds", "fold", "validation_fraction")
_SPLIT_AT_FIRST += ("unpaired", "unpaired_fraction", "seed")
_STATED: Mapping[str, frozenset[str]] = {
    "feed": frozenset(("source", "target", "suv_scale", "seed", "cases_per_step")),
    "engine": frozenset(("zero_stage", "precision", "gradient_clipping")),
    "split": frozenset(_SPLIT_AT_FIRST),
    "loop": frozenset(),
}
"""Section -> the settings that every run's identity states.

One that came later is stated where it is not its class's default, which leaves results as they were before it came.
"""
_UNSTATED = {"feed": ("read_ahead",), "loop": ("log_every", "save_every", "picture_every", "keep", "seed")}
"""Section -> the settings that decide speed and records, never the result; the loop's seed is stated on its own."""
SECTIONS = ("recipe", "feed", "loop", "engine", "split", "cluster")
Defaults = Literal["paper", "practice"]


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a run may use.

    Args:
        workers: training processes; with ``least_workers`` the most of them.
        least_workers: 0 for exactly ``workers``, else the fewest that a run goes on with: whenever its workers start,
            it uses as many as the cluster has room for then and as divide ``feed.cases_per_step``.
        cpus_per_worker: cores each may use; fixes the number of threads, and with it the last bits of a result.
        device: cpu or cuda.
        max_failures: times that crashed workers are started again from the last checkpoint.
    """

    workers: Annotated[int, Range(1)] = 1
    least_workers: Annotated[int, Range(0)] = 0
    cpus_per_worker: Annotated[int, Range(1)] = 1
    device: Literal["cpu", "cuda"] = "cpu"
    max_failures: Annotated[int, Range(0)] = 3

    def __post_init__(self) -> None:
        check_ranges(self, "cluster")
        if self.least_workers > self.workers:
            raise InputError(
                "CFG_RANGE",
                where="cluster.least_workers",
                found=f"{self.least_workers}, and cluster.workers is {self.workers}",
                remedy="give the fewest first: --workers 2:8",
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's result, but the cohort's voxels.

    Args:
        recipe: name of the system.
        model: the system's own Config, section ``recipe`` of files and options.
        feed: which voxels a run sees; None for the system's own.
        loop: how often the loop does what; None for the system's own.
        engine: how networks are trained; None for the system's own.
        split: which patients train, validate and test.
        cluster: what a run may use.
    """

    recipe: str = "sgsgan"
    model: Any = None
    feed: FeedConfig = None  # type: ignore[assignment]  # the recipe's own, as the next two
    loop: LoopConfig = None  # type: ignore[assignment]
    engine: EngineConfig = None  # type: ignore[assignment]
    split: SplitConfig = field(default_factory=SplitConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise unknown("CFG_RECIPE", "recipe", self.recipe, list(RECIPES))
        if self.model is None:
            object.__setattr__(self, "model", RECIPES[self.recipe].Config())
        for section, own in system_defaults(self.recipe).items():
            if getattr(self, section) is None:
                object.__setattr__(self, section, own)
        if not self.feed.source:
            raise InputError(
                "CFG_RANGE", where="feed.source", found="()", remedy="give one image at least to start from"
            )
        if not self.worker_counts:
            least, most = self.cluster.least_workers, self.cluster.workers
            raise InputError(
                "CFG_WORKERS",
                where="cluster.workers",
                found=f"{self.feed.cases_per_step} groups per step cannot be shared evenly by "
                f"{f'{least} to {most}' if least else most} workers",
                remedy="choose a number of workers that divides feed.cases_per_step, or for a new run set it to a "
                f"multiple of them (--feed.cases-per-step {self._even_cases()})",
            )

    def _even_cases(self) -> int:
        """The least multiple of the workers that is no fewer groups than the run has."""
        return -(-self.feed.cases_per_step // self.cluster.workers) * self.cluster.workers

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """Numbers of workers that the run may have, the largest first."""
        most = self.cluster.workers
        counts = range(most, (self.cluster.least_workers or most) - 1, -1)
        return tuple(count for count in counts if self.feed.cases_per_step % count == 0)

    @property
    def patches_per_step(self) -> int:
        """Patches that all ranks together see in one step."""
        return self.feed.cases_per_step * int(self.model.patches_per_case)

    @property
    def sections(self) -> dict[str, Any]:
        """Section -> its configuration, under the names of files and options."""
        return {"recipe": self.model, **{name: getattr(self, name) for name in SECTIONS[1:]}}

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on: all but where the run is computed and how often it logs."""
        whole = to_json(self)
        name = whole["recipe"].pop("name")
        stated = {section: self._stated(section, whole[section]) for section in _STATED}
        if not stated["loop"]:  # as in runs of before a setting of the loop decided a result
            del stated["loop"]
        later: frozenset[str] = getattr(RECIPES[self.recipe], "LATER", frozenset())
        defaults = {field.name: field.default for field in dataclasses.fields(self.model)}
        model = {
            key: value
            for key, value in whole["recipe"].items()
            if key not in later or getattr(self.model, key) != defaults[key]
        }
        return {"recipe": name, "model": model, "seed": self.loop.seed} | stated

    def _stated(self, section: str, content: Mapping[str, Any]) -> dict[str, Any]:
        own = getattr(self, section)
        return {
            field.name: content[field.name]
            for field in dataclasses.fields(own)
            if field.name not in _UNSTATED.get(section, ())
            and (field.name in _STATED[section] or getattr(own, field.name) != field.default)
        }


def system_defaults(recipe: str) -> dict[str, Any]:
    """Return the sections whose defaults a system may state, each as it has it: ``feed``, ``loop``, ``engine``."""
    spec = RECIPES[recipe]
    return {
        "feed": spec.FEED,
        "loop": getattr(spec, "LOOP", LoopConfig()),
        "engine": getattr(spec, "ENGINE", EngineConfig()),
    }


def practice_of(recipe: str) -> tuple[Departure, ...]:
    """Return a system's departures from its paper for everyday use; none for most."""
    return getattr(RECIPES[recipe], "PRACTICE", ())


def defaults_said(config: RunConfig) -> list[str]:
    """Say which of a system's departures from its paper a run makes; nothing for a system without any."""
    paper = RunConfig(recipe=config.recipe).sections
    made: list[str] = []
    left: list[str] = []
    for departure in practice_of(config.recipe):
        section, _, name = departure.name.partition(".")
        same = getattr(config.sections[section], name) == getattr(paper[section], name)
        (left if same else made).append(departure.words)
    said = [f"{config.recipe} with {_listed(made)}, which its paper does not have."] if made else []
    return said + ([f"{config.recipe} as in its paper: without {_listed(left)}."] if left else [])


def _listed(words: Sequence[str]) -> str:
    """Several things in one sentence.

    >>> _listed(["borders", "weights", "a residual"])
    'borders, weights and a residual'
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def workers_of(text: str) -> tuple[int, int]:
    """Return ``cluster.least_workers`` and ``cluster.workers`` of what is typed as ``--workers``.

    Raises:
        InputError: CFG_VALUE; CFG_RANGE for a range from 0.

    >>> workers_of("4"), workers_of("2:8")
    ((0, 4), (2, 8))
    """
    found = re.fullmatch(r"(?:(\d{1,6}):)?(-?\d{1,6})", text)
    if not found:
        raise InputError(
            "CFG_VALUE",
            where="--workers",
            found=repr(text),
            remedy="give a number, or the fewest and the most of them: --workers 2:8",
        )
    if found[1] is None:
        return 0, int(found[2])
    if int(found[1]) < 1:
        raise InputError("CFG_RANGE", where="--workers", found=text, remedy="let the fewest be 1 or more")
    return int(found[1]), int(found[2])


def to_json(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain JSON values, under the names that options have."""
    sections = {name: dataclasses.asdict(section) for name, section in config.sections.items()}
    sections["recipe"] = {"name": config.recipe, **sections["recipe"]}
    content: dict[str, Any] = json.loads(json.dumps(sections))
    return content


def from_json(content: Mapping[str, Any]) -> RunConfig:
    """Inverse of ``to_json``; what is left out has the system's defaults, with ``recipe.defaults`` those of practice.

    Also reads what petscale wrote before: ``recipe`` as a word beside the section ``model``, and ``feed.low`` and
    ``feed.full`` for the source and the target.

    Raises:
        InputError: CFG_RECIPE, CFG_FIELD, CFG_VALUE, CFG_RANGE and the system's own; CFG_CONTRADICTION.
    """
    sections = _sections(content)
    recipe = sections["recipe"].pop("name", "sgsgan")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise unknown("CFG_RECIPE", "recipe", str(recipe), list(RECIPES))
    defaults = sections["recipe"].pop("defaults", "paper")
    if defaults not in typing.get_args(Defaults):
        raise unknown("CFG_VALUE", "recipe.defaults", str(defaults), list(typing.get_args(Defaults)))
    for departure in practice_of(recipe) if defaults == "practice" else ():
        section, _, name = departure.name.partition(".")
        sections[section].setdefault(name, departure.value)
    kinds: dict[str, Any] = {"recipe": RECIPES[recipe].Config, "feed": FeedConfig, "loop": LoopConfig}
    kinds |= {"engine": EngineConfig, "split": SplitConfig, "cluster": ClusterConfig}
    for section, own in system_defaults(recipe).items():
        sections[section] = dataclasses.asdict(own) | sections[section]
    parts = {name: build(name, kind, sections[name]) for name, kind in kinds.items()}
    return RunConfig(recipe=recipe, model=parts.pop("recipe"), **parts)


def _sections(content: Any) -> dict[str, dict[str, Any]]:
    """Section -> field -> value, whether names were nested or dotted; the system's name is ``recipe.name``."""
    if not isinstance(content, Mapping):
        raise bad_value("configuration", content, "sections of fields")
    found: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for key, value in content.items():
        section, dot, name = str(key).partition(".")
        section = {"model": "recipe"}.get(section, section)
        if section not in found:
            raise unknown("CFG_FIELD", "configuration", section, list(SECTIONS))
        if dot:
            fields: Mapping[str, Any] = {name: value}
        elif key == "recipe" and isinstance(value, str):
            fields = {"name": value}
        elif isinstance(value, Mapping):
            fields = value
        elif key == "recipe":
            raise unknown("CFG_RECIPE", "recipe", str(value), list(RECIPES))
        else:
            raise bad_value(section, value, "fields")
        for former, one in fields.items():
            name = FORMER.get(former, former) if section == "feed" else former
            if name in found[section] and found[section][name] != one:
                raise contradiction(f"{section}.{name}", found[section][name], one)
            found[section][str(name)] = one
    return found


def contradiction(where: str, one: object, other: object) -> InputError:
    """Return the error for two different values of one field in one command."""
    return InputError(
        "CFG_CONTRADICTION", where=where, found=f"both {one!r} and {other!r}", remedy="say it once, or say the same"
    )


def read(path: Path) -> RunConfig:
    """Read a configuration from a YAML or JSON file, or from the record of a run.

    Raises:
        InputError: CFG_NO_FILE, CFG_JSON, and those of ``from_json``.
    """
    content = read_file(path)
    record = isinstance(content, dict) and isinstance(content.get("config"), dict)
    return from_json(content["config"] if record else content)


def require_run(run: Path) -> None:
    """Refuse a folder in which no training has begun, and say what it holds instead.

    Raises:
        InputError: CFG_RUN_FOLDER.
    """
    if (run / CONFIG).is_file():
        return
    found, remedy = "no run in this folder", "name the folder that `petscale train` wrote, or train first"
    if not run.exists():
        found = "no such folder"
    elif not run.is_dir():
        found = "a file, and no folder of a run"
    elif (run / FOLDS).is_file():
        found, remedy = "the folds of several runs", f"name one run in it: {FOLD.format(0)}"
    elif (run / ROLES).is_file():
        found, remedy = "a study, and no run", f"name the run of one of its trials: {TRIALS}/0"
    elif (run / "zarr.json").is_file():
        found = "a cohort, and no run"
        remedy = "name the folder of a run; where a command takes both, the run comes first"
    raise InputError("CFG_RUN_FOLDER", where=run.name or str(run), found=found, remedy=remedy)


def read_record(path: Path) -> dict[str, Any]:
    """Return a run's whole record, ``config.json``: its configuration, roles, digests of cases and their patients.

    Raises:
        InputError: CFG_NO_FILE, CFG_JSON; CFG_RUN_FOLDER for a record that no run has written.
    """
    content = read_file(path)
    if not isinstance(content, dict) or (wrong := next(_wrong_in(content), "")):
        raise InputError(
            "CFG_RUN_FOLDER",
            where=path.name,
            found=f"no record of a run: {wrong if isinstance(content, dict) else 'not fields by name'}",
            remedy="name the folder of a run of `petscale train`, or restore the file from a copy",
        )
    return content


def _wrong_in(record: Mapping[str, Any]) -> Iterator[str]:
    """The fields of a run's record that are not what a run writes; those that are missing are none of them."""
    for name in ("cases", "subjects", "files"):
        told = record.get(name, {})
        if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
            yield f"{name} are not texts by name"
            return
    for name in ("train", "unpaired", "validation", "test", "cohorts", "trained_before"):
        told = record.get(name, [])
        if not isinstance(told, list) or not all(isinstance(value, str) for value in told):
            yield f"{name} is no list of names"
            return
    if unknown := {name for role in ("train", "unpaired", "validation", "test") for name in record.get(role, ())} - {
        *record.get("cases", {})
    }:
        yield f"cases lack {', '.join(sorted(unknown))}"
    if not isinstance(record.get("config", {}), dict):
        yield "config is no configuration"


_NOT_A_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)  # all that literal_eval may raise


def with_fields(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with some fields set.

    Args:
        values: ``section.field`` -> value.

    Raises:
        InputError: CFG_SET, CFG_FIELD with the nearest name, CFG_VALUE, CFG_RANGE.
    """
    content = to_json(config)
    for name, value in values.items():
        section, dot, key = name.partition(".")
        if not dot:
            raise _no_field(name)
        key = FORMER.get(key, key) if section == "feed" else key
        if section not in SECTIONS:
            raise unknown("CFG_FIELD", "--set", section, list(SECTIONS))
        if key not in content[section] or (section, key) == ("recipe", "name"):
            raise unknown("CFG_FIELD", f"--set {section}", key, [name for name in content[section] if name != "name"])
        content[section][key] = value
    return from_json(content)


def override(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Apply settings written ``section.field=value``; several values are separated by commas.

    Raises:
        InputError: as ``with_fields``.
    """
    return with_fields(config, dict(parsed(setting) for setting in settings))


def parsed(setting: str) -> tuple[str, Any]:
    """Read one ``section.field=value``.

    Raises:
        InputError: CFG_SET.

    >>> parsed("recipe.patch=32,32,32"), parsed("feed.cases_per_step=4"), parsed("recipe.rois=()")
    (('recipe.patch', (32, 32, 32)), ('feed.cases_per_step', 4), ('recipe.rois', ()))
    """
    name, equals, text = setting.partition("=")
    if not equals or "." not in name:
        raise _no_field(setting)
    try:
        return name, ast.literal_eval(text)
    except _NOT_A_LITERAL:
        return name, [_word(word) for word in text.split(",")] if "," in text else text


def _no_field(found: str) -> InputError:
    return InputError(
        "CFG_SET", where="--set", found=f"'{found}'", remedy="write section.field=value, as in loop.log_every=20"
    )


def _word(word: str) -> Any:
    """Read one element of a comma list: a number when it is one, else the word."""
    try:
        return ast.literal_eval(word)
    except _NOT_A_LITERAL:
        return word.strip()
