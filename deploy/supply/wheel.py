"""A wheel of petscale alone: hatchling's build hook, which moves a checkout's other three packages into petscale.

In a checkout ``storage``, ``trainers`` and ``tune_spaces`` stand beside petscale.  In an environment that is shared
with other software these names are anybody's.  So hatchling makes its wheel of the four packages, and then this hook
writes it anew: the three are put into ``petscale/_rooms``, and the names of their modules are completed in all files.

Names are completed where Python's grammar has them: in import statements, in strings that are the whole name of a
module, in docstrings and their examples.  A string that holds such a name among other text is refused, for nobody could
tell what it will be used for.  An editable installation is left as it is.
"""

import ast
import base64
import copy
import csv
import doctest
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOMS = ("storage", "trainers", "tune_spaces")
INSIDE = "petscale._rooms"
FOLDER = INSIDE.replace(".", "/")
INIT = '"""The packages that stand beside petscale in a checkout.  Nothing in here keeps its name."""\n'
NAMED = re.compile(rf"(?<![\w./-])({'|'.join(ROOMS)})((?:\.\w+)+)")
IMPORTED = re.compile(rf"^(\s*>>> (?:from|import) )({'|'.join(ROOMS)})(?= import )")  # in a docstring's example
STATEMENT = re.compile(rf"\b(?:from|import)\s+(?:{'|'.join(ROOMS)})\b")
BY_NAME = ("__import__", "import_module", "find_spec", "run_module")  # functions that are given a module's name

Insertions = list[tuple[int, int, str]]  # line from 1, column in bytes of UTF-8, text


class Wheel(BuildHookInterface[Any]):
    """What hatchling calls when it has built a wheel."""

    PLUGIN_NAME = "custom"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Write a finished wheel anew; an editable one holds no code."""
        if version == "standard":
            path = Path(artifact_path)
            whole = path.read_bytes()
            path.unlink()  # a wheel that is refused must not stay
            path.write_bytes(moved(whole))


def moved(wheel: bytes) -> bytes:
    """Return a wheel of four packages as a wheel of petscale alone.

    Raises:
        ValueError: a file that cannot be moved, with its line and what to write instead.
    """
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(wheel)) as before, zipfile.ZipFile(made, "w") as after:
        infos = before.infolist()
        modules = {module_of(info.filename) for info in infos if info.filename.endswith(".py")}
        record = next(info for info in infos if info.filename.endswith(".dist-info/RECORD"))
        first = copy.copy(next(info for info in infos if info.filename == "petscale/__init__.py"))
        first.filename = f"{FOLDER}/__init__.py"
        files = [(first, INIT.encode())]
        for info in infos:
            if info is not record:
                text = before.read(info)
                if info.filename.endswith(".py"):
                    text = completed(text.decode(), modules, info.filename).encode()
                files.append((renamed(info), text))
        rows = io.StringIO()
        lines = csv.writer(rows, lineterminator="\n")
        for info, text in sorted(files, key=lambda one: (".dist-info/" in one[0].filename, one[0].filename)):
            after.writestr(info, text)
            lines.writerow((info.filename, digest(text), len(text)))
        lines.writerow((record.filename, "", ""))
        after.writestr(copy.copy(record), rows.getvalue())
    return made.getvalue()


def module_of(name: str) -> str:
    """Return the module that a file of a wheel holds.

    >>> module_of("storage/remote/__init__.py"), module_of("storage/suv.py")
    ('storage.remote', 'storage.suv')
    """
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def renamed(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """Return what a wheel says of a file (its time, its rights), with the name that the file will have."""
    there = copy.copy(info)
    if info.filename.split("/")[0] in ROOMS:
        there.filename = f"{FOLDER}/{info.filename}"
    return there


def digest(data: bytes) -> str:
    """Return the SHA-256 as RECORD has it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def completed(source: str, modules: set[str], name: str = "source") -> str:
    """Return a module's source with the full names of the modules that are moved; lines stay where they are.

    Args:
        source: Python.
        modules: names of all modules of the checkout.
        name: of the file, for errors.

    Raises:
        ValueError: a name that cannot be completed, or an import that would still need the checkout.
    """
    tree = ast.parse(source)
    docstrings = {id(node) for node in docstrings_of(tree)}
    insertions: Insertions = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            insertions += of_import_from(node, source)
        elif isinstance(node, ast.Import):
            insertions += [one for alias in node.names for one in of_alias(alias)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            of_string = of_docstring if id(node) in docstrings else of_constant
            insertions += of_string(node, source, modules, name)
        elif isinstance(node, ast.Call) and node.args and called(node) in BY_NAME:
            told = node.args[0]
            if isinstance(told, ast.Constant) and told.value in ROOMS:
                raise refusal(name, told, f"import {told.value} by a statement")
    lines = source.encode().splitlines(keepends=True)
    for line, column, text in sorted(insertions, reverse=True):
        lines[line - 1] = lines[line - 1][:column] + text.encode() + lines[line - 1][column:]
    done = b"".join(lines).decode()
    for text, line in (done, 1), *examples_of(done):
        for node in ast.walk(ast.parse(text)):
            if left := [one for one in imported(node) if one.split(".")[0] in ROOMS]:
                raise ValueError(f"{name}:{line + node.lineno - 1}: {left[0]} is still imported")  # type: ignore[attr-defined]
    return done


def docstrings_of(tree: ast.AST) -> Iterator[ast.Constant]:
    """Strings that stand as statements of their own: of modules, classes, functions, and below attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def of_import_from(node: ast.ImportFrom, source: str) -> Insertions:
    """Complete ``from storage.x import y``; a relative import needs nothing."""
    if node.level or not node.module or node.module.split(".")[0] not in ROOMS:
        return []
    # Between the word and the module there may be more than one blank, even the end of a line behind a backslash.
    segment = source.encode().splitlines(keepends=True)[node.lineno - 1 :]
    rest = segment[0][node.col_offset + len("from") :], *segment[1:]
    line = next(number for number, text in enumerate(rest) if text.strip() not in (b"", b"\\"))
    column = len(rest[line]) - len(rest[line].lstrip()) + (node.col_offset + len("from") if line == 0 else 0)
    return [(node.lineno + line, column, f"{INSIDE}.")]


def of_alias(alias: ast.alias) -> Insertions:
    """Complete one name of an ``import`` statement, which binds what it bound before."""
    room = alias.name.split(".")[0]
    if room not in ROOMS:
        return []
    assert alias.end_lineno
    assert alias.end_col_offset
    before = (alias.lineno, alias.col_offset, f"{INSIDE}.")
    if alias.asname:
        return [before]
    after = f" as {room}" if alias.name == room else f" as {room}, {INSIDE}.{room} as {room}"
    return [before, (alias.end_lineno, alias.end_col_offset, after)]


def of_constant(node: ast.Constant, source: str, modules: set[str], name: str) -> Insertions:
    """Complete a string that is the whole name of a module, and refuse one that holds a name among other text."""
    text = str(node.value)
    if text.split(".")[0] in ROOMS and "." in text and text in modules:
        if (ast.get_source_segment(source, node) or "")[1:-1] != text:
            raise refusal(name, node, f'write "{text}" in one piece')
        return [(node.lineno, node.col_offset + 1, f"{INSIDE}.")]
    if any(known(found, modules) for found in NAMED.finditer(text)) or STATEMENT.search(text):
        raise refusal(name, node, "a string may only be the whole name of a module")
    return []


def of_docstring(node: ast.Constant, source: str, modules: set[str], name: str) -> Insertions:
    """Complete the names of modules in a docstring, in its text as in its examples."""
    assert node.end_lineno
    found: Insertions = []
    lines = source.encode().splitlines()[node.lineno - 1 : node.end_lineno]
    for number, line in enumerate(map(bytes.decode, lines), node.lineno):
        starts = {match.start() for match in NAMED.finditer(line) if known(match, modules)}
        starts |= {match.start(2) for match in IMPORTED.finditer(line)}
        found += [(number, len(line[:start].encode()), f"{INSIDE}.") for start in starts]
    return found


def known(found: re.Match[str], modules: set[str]) -> bool:
    """Whether a dotted name begins with the name of a module."""
    return ".".join(found[0].split(".")[:2]) in modules


def called(node: ast.Call) -> str:
    """Return the last part of the name of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def imported(node: ast.AST) -> list[str]:
    """Names of the modules that a statement imports, but for relative ones."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def examples_of(source: str) -> Iterator[tuple[str, int]]:
    """Source and line of every example in a docstring."""
    for node in docstrings_of(ast.parse(source)):
        for example in doctest.DocTestParser().get_examples(str(node.value)):
            yield example.source, node.lineno + example.lineno


def refusal(name: str, node: ast.expr, remedy: str) -> ValueError:
    """Return the error that a wheel cannot be made of a file."""
    return ValueError(f"{name}:{node.lineno}: a module that a wheel moves is named in a string; {remedy}")
