"""Dataclasses made of the plain values of YAML and JSON files: each field by its type, a wrong one told by its name."""

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml

from petscale.folders import CONFIG
from storage.errors import InputError


def read_file(path: Path) -> Any:
    """Return what a YAML (``.yaml``, ``.yml``) or JSON file holds.

    Raises:
        InputError: CFG_NO_FILE, CFG_JSON.
    """
    if not path.is_file():
        found, remedy = "no such file", "name an existing configuration"
        if path.is_dir():
            found, remedy = "a folder", f"name a file; a run's configuration is {path.name or path}/{CONFIG}"
        raise InputError("CFG_NO_FILE", where=path.name or str(path), found=found, remedy=remedy)
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    try:
        return yaml.safe_load(path.read_bytes()) if is_yaml else json.loads(path.read_bytes())
    except (ValueError, RecursionError, yaml.YAMLError):
        kind = "YAML" if is_yaml else "JSON"
        raise InputError("CFG_JSON", where=path.name, found=f"not {kind}", remedy="correct the file") from None


def unknown(code: str, where: str, found: str, known: list[str]) -> InputError:
    """The error for a word that is none of those that are known, with the nearest of them."""
    near = difflib.get_close_matches(found, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(sorted(known))}"
    return InputError(code, where=where, found=f"unknown '{found}'", remedy=hint)


def build(name: str, kind: Any, content: Any) -> Any:
    """Return a dataclass made of JSON values.

    Args:
        name: what to call the place in an error.
        kind: the dataclass.
        content: field -> value.

    Raises:
        InputError: CFG_FIELD with the nearest name, CFG_VALUE, and whatever the dataclass refuses.
    """
    hints = typing.get_type_hints(kind)
    fields = [f.name for f in dataclasses.fields(kind)]
    for key in content:
        if key not in fields:
            raise unknown("CFG_FIELD", name, key, fields)
    return kind(**{key: _coerce(f"{name}.{key}", hints[key], value) for key, value in content.items()})


def _coerce(where: str, hint: Any, value: Any) -> Any:
    """Bring a JSON value to a field's type: lists to tuples, integers to floats, nothing else."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _coerce(where, args[0], value)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(where, next(a for a in args if a is not type(None)), value)
    if origin is Literal:
        if value not in args:
            raise unknown("CFG_VALUE", where, str(value), [str(a) for a in args])
        return args[args.index(value)]  # True is no ZeRO stage 1
    if origin is tuple:
        values = [value] if isinstance(value, str) or not isinstance(value, list | tuple) else list(value)
        variadic = len(args) == 2 and args[1] is Ellipsis
        if not variadic and len(values) != len(args):
            raise bad_value(where, value, f"{len(args)} values")
        return tuple(_coerce(where, args[0] if variadic else a, v) for a, v in _paired(args, values, variadic))
    if origin is not None:  # mappings
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float(value)
    if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
        raise bad_value(where, value, hint.__name__)
    if isinstance(value, float) and not np.isfinite(value):
        raise bad_value(where, value, "a finite number")
    return value


def _paired(args: tuple[Any, ...], values: list[Any], variadic: bool) -> list[tuple[Any, Any]]:
    return [(args[0], v) for v in values] if variadic else list(zip(args, values, strict=True))


def bad_value(where: str, value: Any, wanted: str) -> InputError:
    """The error for a value of another kind than a field takes."""
    return InputError("CFG_VALUE", where=where, found=repr(value), remedy=f"give {wanted}")
