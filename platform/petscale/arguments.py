"""Command-line options made from configuration dataclasses: one per field, with its default, range, choices and help.

``--feed.cases-per-step 4`` sets the field ``cases_per_step`` of the section ``feed``.  The fields of a dataclass become
those of a twin with the same names, whose types carry the help text; the real dataclass is built from the twin, so that
a value outside its range is refused by the dataclass itself, with its code.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import docstring_parser
import tyro

from petscale import config as configs
from petscale.config import SECTIONS, RunConfig, contradiction, workers_of
from petscale.parsing import parsed, value_typed
from storage.errors import InputError
from storage.ranges import ranges_of

TITLES = {
    "recipe": "recipe: the system's own settings; defaults as --defaults says",
    "feed": "feed: which voxels are seen",
    "loop": "loop: how often what is done",
    "engine": "engine: how networks are trained",
    "split": "split: which patients train, validate and test",
    "cluster": "cluster: what a run may use",
}


def twin(config: type[Any], defaults: Any) -> type[Any]:
    """Return a dataclass with the fields of ``config`` whose help says what the docstring says, and the range.

    Args:
        config: a dataclass; its docstring's ``Args`` describe the fields.
        defaults: an instance, whose values become the defaults.
    """
    doc = docstring_parser.parse(config.__doc__ or "")
    told = {one.arg_name: " ".join((one.description or "").split()) for one in doc.params}
    ranges = ranges_of(config)
    hints = typing.get_type_hints(config)
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(config):
        text = told.get(field.name, "")
        if field.name in ranges:
            text = f"{text} ({ranges[field.name].text})".strip()
        kind: Any = hints[field.name]
        kind = Annotated[kind, tyro.conf.arg(help=text)]
        fields.append((field.name, kind, dataclasses.field(default=getattr(defaults, field.name))))
    made = dataclasses.make_dataclass(config.__name__, fields, frozen=True, kw_only=True)
    made.__doc__ = doc.short_description
    return made


def arguments_of(extra: type[Any], base: RunConfig) -> type[Any]:
    """Return the dataclass of a command's whole arguments.

    Args:
        extra: a dataclass with the command's other options.
        base: the configuration whose values are the defaults.
    """
    twins = {name: twin(type(section), section) for name, section in base.sections.items()}
    sections = dataclasses.make_dataclass(
        "Sections",
        [
            (
                f"section_{name}",
                Annotated[twins[name], tyro.conf.arg(name=name, help=TITLES[name])],
                dataclasses.field(default_factory=twins[name]),
            )
            for name in SECTIONS
        ],
    )
    command = ("command", Annotated[extra, tyro.conf.arg(name="", help="")])
    rest = ("sections", Annotated[sections, tyro.conf.arg(name="", help="")])
    return dataclasses.make_dataclass("Arguments", [command, rest])


def run_options(words: Sequence[str], extra: type[Any], *, prog: str, description: str) -> tuple[Any, RunConfig]:
    """Parse a command whose options include the fields of a run's configuration.

    Where a value comes from, the later over the earlier: the system's defaults (those of practice unless ``--defaults
    paper`` is given) or the file given by ``--config``, then settings given by ``--set``, and options of their own,
    which may not contradict each other.

    Args:
        words: what was typed after the command's name.
        extra: a dataclass with the command's other options; it has ``recipe``, ``defaults``, ``config``, ``set``,
            ``workers`` and ``device``.
        prog: how the command is called.
        description: what it does, for its help.

    Returns:
        An instance of ``extra``, and the configuration.

    Raises:
        InputError: CFG_ARGUMENT, CFG_RECIPE, CFG_SET, CFG_FIELD, CFG_VALUE, CFG_RANGE, CFG_CONTRADICTION,
            CFG_NO_EFFECT, and those of a file.
        SystemExit: 0 after the help.
    """
    words, settings = _without_settings(list(words))
    base = _base(words, settings)
    arguments = arguments_of(extra, base)
    bare = (tyro.conf.FlagConversionOff,)
    found = parsed(arguments, words, prog=prog, description=description, config=bare)
    kinds = {name: type(section) for name, section in base.sections.items()}
    values = {
        f"{name}.{field.name}": getattr(getattr(found.sections, f"section_{name}"), field.name)
        for name in SECTIONS
        for field in dataclasses.fields(kinds[name])
    }
    command = found.command
    for typed, (option, short) in _short(command).items():
        if _is_typed(words, typed) and values[typed] != short:
            raise contradiction(option, short, values[typed])
        values[typed] = short
    for name, value in settings.items():
        if name in values and _is_typed(words, name):
            section, _, key = name.partition(".")
            if getattr(base.sections[section], key) != values[name]:
                raise contradiction(name, value, values[name])
    parts = {
        name: kinds[name](**{field.name: values[f"{name}.{field.name}"] for field in dataclasses.fields(kinds[name])})
        for name in SECTIONS
    }
    return command, RunConfig(recipe=base.recipe, model=parts.pop("recipe"), **parts)


def _short(command: Any) -> dict[str, tuple[str, Any]]:
    """Fields of the configuration that have a short option too -> that option, and the value that it gives."""
    found: dict[str, tuple[str, Any]] = {}
    if command.device is not None:
        found["cluster.device"] = "--device", command.device
    if command.workers is not None:
        least, most = workers_of(str(command.workers))
        found["cluster.workers"] = "--workers", most
        found["cluster.least_workers"] = "--workers", least
    return found


def _is_typed(words: Sequence[str], name: str) -> bool:
    option = f"--{name}".replace("_", "-")
    return any(word.partition("=")[0].replace("_", "-") == option for word in words)


def _without_settings(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take the settings that follow ``--set`` out of the words; later ones win."""
    kept: list[str] = []
    found: dict[str, Any] = {}
    taking = False
    for word in words:
        if word == "--set" or word.startswith("--set="):
            taking = True
            word = word.removeprefix("--set").removeprefix("=")
            if not word:
                continue
        elif word.startswith("-"):
            taking = False
        if taking:
            name, value = configs.parsed(word)
            found[name] = value
        else:
            kept.append(word)
    return kept, found


def _base(words: Sequence[str], settings: Mapping[str, Any]) -> RunConfig:
    """The configuration before options: of the system, the file, and ``--set``."""
    recipe, file = value_typed(words, "recipe"), value_typed(words, "config")
    defaults = value_typed(words, "defaults")
    if file is not None:
        if defaults is not None:
            remedy = f"write it into the file instead: recipe: {{name: ..., defaults: {defaults}}}"
            raise InputError("CFG_NO_EFFECT", where="--defaults", found="given beside --config", remedy=remedy)
        base = configs.read(Path(file))
        if recipe is not None and recipe != base.recipe:
            raise contradiction("--recipe", recipe, base.recipe)
    else:
        named = {"name": recipe} if recipe is not None else {}
        base = configs.from_json({"recipe": {**named, "defaults": "practice" if defaults is None else defaults}})
    return configs.with_fields(base, settings) if settings else base
