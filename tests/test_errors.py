"""docs/errors.md explains every code that a user can meet, and no other."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from storage.errors import InputError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/errors.md").read_text()
FAMILIES = set(re.findall(r"^## .*`([A-Z]+)_`", PAGE, flags=re.M))
CODE = re.compile(r"([A-Z]+)_[A-Z0-9]+(_[A-Z0-9]+)*")


def documented() -> dict[str, list[str]]:
    """Code -> the other cells of its row."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")
    ]
    assert len({row[0] for row in rows}) == len(rows), "a code stands twice"
    return {row[0].strip("`"): row[1:] for row in rows}


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Strings and calls of a file."""
    tree = ast.walk(ast.parse(path.read_text()))
    return tuple(node for node in tree if isinstance(node, ast.Constant | ast.Call))


RAYS = "TUNE_DISABLE_SIGINT_HANDLER"  # an environment variable that looks like a code of ours


def raised() -> dict[str, str]:
    """Code -> a file that raises it: every argument, in the code of the packages, that is a code of a known family.

    Codes pass through small functions, so any string constant in a call, a tuple or a choice counts.
    """
    found = {}
    for package in ("platform/petscale", "storage", "trainers", "tune_spaces"):
        for path in (ROOT / package).rglob("*.py"):
            for node in nodes(path):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    match = CODE.fullmatch(node.value)
                    if match and match.group(1) in FAMILIES and node.value != RAYS:
                        found[node.value] = str(path.relative_to(ROOT))
                if (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "id", "") == "InputError"
                    and node.args
                    and isinstance(node.args[0], ast.JoinedStr)
                ):  # put together from parts: whatever is documented and fits
                    parts = [str(p.value) if isinstance(p, ast.Constant) else "[A-Z0-9]+" for p in node.args[0].values]
                    fitting = [code for code in documented() if re.fullmatch("".join(parts), code)]
                    assert fitting, f"a code of {path.name} is not explained"
                    found |= dict.fromkeys(fitting, path.name)
    return found


def direct() -> set[str]:
    """First arguments of ``InputError`` itself, of whatever family."""
    codes = set()
    for package in ("platform/petscale", "storage", "trainers", "tune_spaces"):
        for path in (ROOT / package).rglob("*.py"):
            for node in nodes(path):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError" and node.args:
                    codes |= {c.value for c in ast.walk(node.args[0]) if isinstance(c, ast.Constant)}
    return {code for code in codes if isinstance(code, str) and CODE.fullmatch(code)}


def test_every_code_is_explained_and_every_explained_code_exists() -> None:
    assert documented().keys() == raised().keys()


def test_every_family_is_a_section() -> None:
    assert {code.split("_")[0] for code in direct()} <= FAMILIES
    assert {code.split("_")[0] for code in documented()} == FAMILIES


def test_every_row_says_what_it_means_and_what_to_do() -> None:
    for code, cells in documented().items():
        assert len(cells) == 2, code
        assert all(cells), code


def test_an_error_is_one_line_of_its_four_parts() -> None:
    error = InputError("NII_EMPTY", where="scan.nii.gz", found="an empty file", remedy="copy it again")
    assert str(error) == "NII_EMPTY scan.nii.gz: an empty file; copy it again"
    assert (error.code, error.where, error.found, error.remedy) == error.__reduce__()[1]


def test_an_error_crosses_a_process_border_whole() -> None:
    rebuild, parts = InputError("DISK_FULL", where="cohort", found="no space", remedy="free some").__reduce__()
    assert callable(rebuild)
    assert isinstance(parts, tuple)
    with pytest.raises(InputError, match="DISK_FULL cohort: no space; free some"):
        raise rebuild(*parts)


def test_every_code_stands_in_a_test() -> None:
    """Some codes are put together from parts there, too: a family's name and what follows."""
    texts = (path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.name != "test_errors.py")
    assert not {*documented()} - {word for text in texts for word in re.findall(r"\w+", text)}
