"""Typed words become values, by tyro; words that do not fit end in one line with a code, as every mistake does."""

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

import tyro

from storage.errors import InputError

_RULE = re.compile(r"[─-]{4,}")
_DEEP = " " * 9  # before an argument's help


def value_typed(words: Sequence[str], name: str) -> str | None:
    """Return the value of an option before the parser is made, which depends on it; None if it was not typed."""
    for place, word in enumerate(words):
        if word == f"--{name}" and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def parsed(arguments: Any, words: Sequence[str], *, prog: str, description: str, config: Sequence[Any] = ()) -> Any:
    """Return what ``arguments`` makes of words.

    Args:
        arguments: a dataclass or a function, whose fields or parameters are the arguments.
        words: what was typed after the command's name.
        prog: how the command is called.
        description: what it does, for its help.
        config: markers of ``tyro.conf``.

    Raises:
        InputError: CFG_ARGUMENT for an argument that is missing, unknown or of another type.
        SystemExit: 0 after the help.
    """
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            return tyro.cli(arguments, prog=prog, description=description, args=words, config=config)
    except SystemExit as end:
        if not end.code:
            raise
    found, remedy = in_a_line(told.getvalue())
    raise InputError("CFG_ARGUMENT", where=prog, found=found, remedy=remedy or f"{prog} --help lists its arguments")


def in_a_line(box: str) -> tuple[str, str]:
    """Return what a box of tyro's says is wrong, and what it says to do, the latter empty where it only names the help.

    Args:
        box: a title, lines in a frame (of spaces where a terminal shows no other), the frame's end; rules part what is
            wrong from what is near it and from the help of the argument.
    """
    parts: list[list[str]] = [[]]
    for line in box.splitlines()[1:-1]:
        inside = line[1:].rstrip("│ ")
        if _RULE.fullmatch(inside.strip()):
            parts.append([])
        elif inside:
            parts[-1].append(inside)
    wrong, *others = [part for part in parts if part] or [[]]
    if wrong and wrong[0].strip().startswith("Missing from"):
        wrong = [line for line in wrong if not line.startswith(_DEEP)]  # less the arguments' own help
    told = next((wrong[:place] for place, line in enumerate(wrong) if "Got errors" in line), wrong)
    found = " ".join(line.strip() for line in told).rstrip(".")
    for title, *rest in others:
        if title.strip().startswith("Perhaps you meant") and rest:
            return found, f"did you mean {rest[0].strip()}?"
        if title.strip().startswith("Argument helptext") and rest:
            return found, f"give {rest[0].strip()}"
    return found, ""
