"""A run's whole configuration: the rooms' own configs composed, to JSON and back, fields set by name."""

import ast
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from storage import patches
from storage.errors import InputError
from storage.reader import Cohort
from trainers.engine import EngineConfig
from trainers.feed import FeedConfig
from trainers.loop import LoopConfig
from trainers.systems import RECIPES


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which patients are kept for testing; always whole patients, never scans or slices.

    Args:
        test: names of test cases; every other case of their patients is left out of training too.
        test_fraction: part of the patients drawn for testing when ``test`` is empty.
        folds: number of parts for cross-validation by patient, 0 for none; part ``fold`` is then tested on.
        fold: which part, counted from 0.
        validation_fraction: part of the other patients that only a recipe's schedule listens to, where it does.
        unpaired: names of cases whose full dose is used without its pair, where a recipe wants such.
        unpaired_fraction: part of the training patients drawn for that when ``unpaired`` is empty (S3PET: 120 of 150).
        seed: of these draws.
    """

    test: tuple[str, ...] = ()
    test_fraction: float = 0.25
    folds: int = 0
    fold: int = 0
    validation_fraction: float = 0.1
    unpaired: tuple[str, ...] = ()
    unpaired_fraction: float = 0.8
    seed: int = 0


@dataclass(frozen=True)
class Roles:
    """Which cases do what in a run; no patient has two roles.

    Args:
        train: paired low and full dose.
        unpaired: full dose alone.
        validation: what a recipe's schedule listens to.
        test: kept for the end.
    """

    train: tuple[str, ...]
    unpaired: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def streams(self) -> dict[str, tuple[str, ...]]:
        """The cases behind every kind of ``BatchSpec.images``."""
        return {"paired": self.train, "low": self.train, "full": self.unpaired}

    @property
    def everyone(self) -> tuple[str, ...]:
        """All cases that the run touches."""
        return (*self.train, *self.unpaired, *self.validation, *self.test)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a run may use.

    Args:
        workers: training processes.
        cpus_per_worker: cores each may use; fixes the number of threads, and with it the last bits of a result.
        device: cpu or cuda.
        max_failures: times that crashed workers are started again from the last checkpoint.
    """

    workers: int = 1
    cpus_per_worker: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    max_failures: int = 3


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's result, but the cohort's voxels."""

    recipe: str = "sgsgan"
    model: Any = None
    feed: FeedConfig = None  # type: ignore[assignment]  # the recipe's own
    loop: LoopConfig = field(default_factory=LoopConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise _unknown("CFG_RECIPE", "recipe", self.recipe, list(RECIPES))
        if self.model is None:
            object.__setattr__(self, "model", RECIPES[self.recipe].Config())
        if self.feed is None:
            object.__setattr__(self, "feed", RECIPES[self.recipe].FEED)
        _check_ranges(self)

    @property
    def patches_per_step(self) -> int:
        """Patches that all ranks together see in one step."""
        return self.feed.cases_per_step * int(self.model.patches_per_case)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on: all but where the run is computed and how often it logs."""
        whole = to_json(self)
        del whole["feed"]["read_ahead"]  # speed, never the samples
        return {key: whole[key] for key in ("recipe", "model", "feed", "engine", "split")} | {
            "seed": self.loop.seed,
        }


def _check_ranges(config: RunConfig) -> None:
    """Refuse when it is composed what would fail in a worker."""
    feed, loop, split, cluster = config.feed, config.loop, config.split, config.cluster
    for where, found, good, wanted in (
        ("feed.low", feed.low, len(feed.low) > 0, "one low-dose image at least"),
        ("feed.suv_scale", feed.suv_scale, feed.suv_scale > 0, "a number above 0"),
        ("feed.seed", feed.seed, feed.seed >= 0, "0 or more"),
        ("feed.cases_per_step", feed.cases_per_step, feed.cases_per_step >= 1, "1 or more"),
        ("feed.read_ahead", feed.read_ahead, feed.read_ahead >= 0, "0 or more"),
        ("loop.log_every", loop.log_every, loop.log_every >= 1, "1 or more"),
        ("loop.save_every", loop.save_every, loop.save_every >= 1, "1 or more"),
        ("loop.picture_every", loop.picture_every, loop.picture_every >= 0, "0 or more"),
        ("loop.keep", loop.keep, loop.keep >= 1, "1 or more"),
        ("loop.seed", loop.seed, loop.seed >= 0, "0 or more"),
        (
            "engine.gradient_clipping",
            config.engine.gradient_clipping,
            config.engine.gradient_clipping >= 0,
            "0 or more",
        ),
        ("split.test_fraction", split.test_fraction, 0 <= split.test_fraction < 1, "a fraction from 0 to below 1"),
        ("split.folds", split.folds, split.folds == 0 or split.folds >= 2, "2 or more, or 0 for none"),
        ("split.fold", split.fold, 0 <= split.fold < max(split.folds, 1), "a number from 0 to below split.folds"),
        (
            "split.validation_fraction",
            split.validation_fraction,
            0 <= split.validation_fraction < 1,
            "a fraction from 0 to below 1",
        ),
        (
            "split.unpaired_fraction",
            split.unpaired_fraction,
            0 <= split.unpaired_fraction < 1,
            "a fraction from 0 to below 1",
        ),
        ("split.seed", split.seed, split.seed >= 0, "0 or more"),
        ("cluster.workers", cluster.workers, cluster.workers >= 1, "1 or more"),
        ("cluster.cpus_per_worker", cluster.cpus_per_worker, cluster.cpus_per_worker >= 1, "1 or more"),
        ("cluster.max_failures", cluster.max_failures, cluster.max_failures >= 0, "0 or more"),
    ):
        if not good:
            raise InputError("CFG_RANGE", where=where, found=repr(found), remedy=f"give {wanted}")
    if feed.cases_per_step % cluster.workers:
        raise InputError(
            "CFG_WORKERS",
            where="cluster.workers",
            found=f"{feed.cases_per_step} groups per step cannot be shared evenly by {cluster.workers} workers",
            remedy="choose a number of workers that divides feed.cases_per_step",
        )


def to_json(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain JSON values."""
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return content


def from_json(content: Mapping[str, Any]) -> RunConfig:
    """Inverse of ``to_json``.

    Raises:
        InputError: CFG_RECIPE, CFG_FIELD, CFG_VALUE.
    """
    if not isinstance(content, Mapping):
        raise _bad_value("configuration", content, "an object of rooms")
    recipe = content.get("recipe", "sgsgan")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise _unknown("CFG_RECIPE", "recipe", str(recipe), list(RECIPES))
    rooms: dict[str, Any] = {"model": RECIPES[recipe].Config}
    rooms |= {"feed": FeedConfig, "loop": LoopConfig, "engine": EngineConfig}
    rooms |= {"split": SplitConfig, "cluster": ClusterConfig}
    for key in content:
        if key not in {*rooms, "recipe"}:
            raise _unknown("CFG_FIELD", "configuration", key, [*rooms, "recipe"])
    defaults = dataclasses.asdict(RECIPES[recipe].FEED)
    content = {**content, "feed": {**defaults, **_object("feed", content.get("feed", {}))}}
    parts = {name: _build(name, room, content.get(name, {})) for name, room in rooms.items()}
    return RunConfig(recipe=recipe, **parts)


def read(path: Path) -> RunConfig:
    """Read a configuration file.

    Raises:
        InputError: IMG_NO_FILE, CFG_JSON, and those of ``from_json``.
    """
    if not path.is_file():
        where = path.name or str(path)
        raise InputError("CFG_NO_FILE", where=where, found="no such file", remedy="name an existing configuration")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InputError("CFG_JSON", where=path.name, found="not JSON", remedy="correct the file") from None
    return from_json(content.get("config", content) if isinstance(content, dict) else content)


_NOT_A_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)  # all that literal_eval may raise


def override(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Apply ``room.field=value`` settings; the rooms are recipe, feed, loop, engine, split and cluster.

    Raises:
        InputError: CFG_SET, CFG_FIELD with the nearest name, CFG_VALUE.
    """
    content = to_json(config)
    rooms = ["recipe", "feed", "loop", "engine", "split", "cluster"]
    for setting in settings:
        name, equals, text = setting.partition("=")
        room, dot, key = name.partition(".")
        if not equals or not dot:
            raise InputError(
                "CFG_SET", where="--set", found=f"'{setting}'", remedy="write room.field=value, as in loop.log_every=20"
            )
        if room not in rooms:
            raise _unknown("CFG_FIELD", "--set", room, rooms)
        part = content["model" if room == "recipe" else room]
        if key not in part:
            raise _unknown("CFG_FIELD", f"--set {room}", key, list(part))
        try:
            part[key] = ast.literal_eval(text)
        except _NOT_A_LITERAL:
            part[key] = [ast_word(word) for word in text.split(",")] if "," in text else text
    return from_json(content)


def ast_word(word: str) -> Any:
    """Read one element of a comma list: a number when it is one, else the word."""
    try:
        return ast.literal_eval(word)
    except _NOT_A_LITERAL:
        return word.strip()


def _unknown(code: str, where: str, found: str, known: list[str]) -> InputError:
    near = difflib.get_close_matches(found, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(sorted(known))}"
    return InputError(code, where=where, found=f"unknown '{found}'", remedy=hint)


def _object(name: str, content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise _bad_value(name, content, "an object of fields")
    return content


def _build(name: str, room: Any, content: Any) -> Any:
    _object(name, content)
    hints = typing.get_type_hints(room)
    fields = [f.name for f in dataclasses.fields(room)]
    for key in content:
        if key not in fields:
            raise _unknown("CFG_FIELD", name, key, fields)
    return room(**{key: _coerce(f"{name}.{key}", hints[key], value) for key, value in content.items()})


def _coerce(where: str, hint: Any, value: Any) -> Any:
    """Bring a JSON value to a field's type: lists to tuples, integers to floats, nothing else."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(where, next(a for a in args if a is not type(None)), value)
    if origin is Literal:
        if value not in args:
            raise _unknown("CFG_VALUE", where, str(value), [str(a) for a in args])
        return args[args.index(value)]  # True is no ZeRO stage 1
    if origin is tuple:
        values = [value] if isinstance(value, str) or not isinstance(value, list | tuple) else list(value)
        variadic = len(args) == 2 and args[1] is Ellipsis
        if not variadic and len(values) != len(args):
            raise _bad_value(where, value, f"{len(args)} values")
        return tuple(_coerce(where, args[0] if variadic else a, v) for a, v in _paired(args, values, variadic))
    if origin is not None:  # mappings
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float(value)
    if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
        raise _bad_value(where, value, hint.__name__)
    if isinstance(value, float) and not np.isfinite(value):
        raise _bad_value(where, value, "a finite number")
    return value


def _paired(args: tuple[Any, ...], values: list[Any], variadic: bool) -> list[tuple[Any, Any]]:
    return [(args[0], v) for v in values] if variadic else list(zip(args, values, strict=True))


def _bad_value(where: str, value: Any, wanted: str) -> InputError:
    return InputError("CFG_VALUE", where=where, found=repr(value), remedy=f"give {wanted}")


def split_cases(cohort: Cohort, config: SplitConfig, *, unpaired: bool = False, validation: bool = False) -> Roles:
    """Give every patient a role; those for unpaired scans and for validation only where a recipe asks for them.

    Raises:
        InputError: SET_NO_CASE, SET_TOO_SMALL.
    """
    subjects = {name: cohort.case(name).subject for name in cohort.cases}
    people = sorted(set(subjects.values()))
    order = [people[int(i)] for i in patches.generator(config.seed, 5).permutation(len(people))]
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
