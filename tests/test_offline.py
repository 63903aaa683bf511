"""The page about an installation without a network: pip takes its commands, and what they name is there."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pip._internal.commands import create_command
from pip._vendor.packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/how-to-offline.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    for line in block.splitlines()
    if line
]
PIP = [line for line in LINES if " -m pip " in line]


def parsed(line: str) -> tuple[str, dict[str, Any], list[str]]:
    """pip's subcommand, its options and what it is given; pip itself refuses what it does not know."""
    name, *words = shlex.split(line.partition(" -m pip ")[2])
    options, given = create_command(name, isolated=True).parse_args(words)
    return name, vars(options), given


def extras(words: list[str]) -> list[set[str]]:
    """The extras of every mention of petscale itself."""
    own = [re.sub(r"^\.", "petscale", word) for word in words if word.startswith((".", "petscale"))]
    return [Requirement(word).extras for word in own]


@pytest.mark.parametrize("line", PIP)
def test_pip_takes_the_commands_and_the_files_are_there(line: str) -> None:
    name, options, given = parsed(line)
    assert name in ("wheel", "install")
    constraints: str = options["constraints"][-1]  # a machine may have others of its own
    assert (ROOT / constraints.removeprefix("wheelhouse/")).is_file()
    if constraints.startswith("wheelhouse/"):
        assert f"cp {Path(constraints).name} wheelhouse/" in LINES
    assert all(found <= PROJECT["optional-dependencies"].keys() for found in extras(given))


def test_what_is_collected_is_what_is_installed() -> None:
    commands = [parsed(line) for line in PIP]
    collected = [(options, given) for name, options, given in commands if name == "wheel"]
    ((_, installing, wanted),) = [command for command in commands if command[0] == "install"]
    assert {str(options["wheel_dir"]) for options, _ in collected} == {"wheelhouse"}
    assert installing["no_index"]
    assert installing["find_links"][-1] == "wheelhouse"
    assert collected[0][1] == ["torch"], "before all others, so that they take this one"
    assert collected[-1][0]["find_links"][-1] == "wheelhouse"
    assert extras(wanted) == extras(collected[-1][1])


def test_the_rest_of_the_page_is_true() -> None:
    text = PAGE.read_text()
    assert f"Python ({PROJECT['requires-python'].removeprefix('>=')} or newer" in text
    development = re.search(r'collect `hatchling "\.\[(\w+)\]"`', text)
    assert development
    assert development[1] in PROJECT["optional-dependencies"]
    assert ".venv/.installed" in (ROOT / "README.md").read_text() + (ROOT / "docs/how-to-cluster.md").read_text()
    assert f'-e ".[{development[1]}]"' in (ROOT / "Makefile").read_text(), "what make asks for was collected"
