"""The recipe for Apptainer installs what the Dockerfile installs; the page's commands fit both."""

import re
import shlex
from pathlib import Path

import pytest

from petscale import cli
from petscale.commands import COMMANDS

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "deploy/apptainer/petscale.def").read_text()
DOCKER = (ROOT / "deploy/kubernetes/Dockerfile").read_text().replace("\\\n", " ")
PAGE = (ROOT / "docs/how-to-workstation.md").read_text()


def section(name: str) -> list[str]:
    """The lines of one section of the recipe, without comments."""
    found = re.search(rf"^%{name}\n((?:[ #].*\n|\n)*)", RECIPE, flags=re.M)
    assert found is not None
    lines = [line.strip() for line in found[1].splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_it_starts_from_the_same_system() -> None:
    head = dict(line.split(": ") for line in RECIPE.split("\n\n")[0].splitlines())
    assert head == {"Bootstrap": "docker", "From": re.findall(r"^FROM (\S+)", DOCKER, flags=re.M)[0]}


def test_it_holds_the_same_files() -> None:
    pairs = [line.split() for line in section("files")]
    copied = {word for line in DOCKER.splitlines() if line.startswith("COPY") for word in line.split()[1:-1]}
    assert {source for source, _ in pairs} == copied
    for source, target in pairs:
        assert (ROOT / source).exists()
        assert target == f"/opt/petscale/{source}"


def test_it_installs_the_same_packages_in_the_same_order() -> None:
    ours = [line for line in section("post") if line.startswith(("pip install", "apt-get install"))]
    theirs = re.findall(r"(?:RUN|&&) ((?:pip|apt-get) install [^&\n]*)", DOCKER)
    assert ours == [" ".join(line.split()) for line in theirs]


def test_its_environment_and_start_keep_secrets_as_the_image_does() -> None:
    told = dict(pair.split("=") for line in section("environment") for pair in line.removeprefix("export ").split())
    image = dict(pair.split("=") for pair in re.findall(r"^ENV (RAY\S+ RAY\S+)", DOCKER, flags=re.M)[0].split())
    assert told == image
    assert section("runscript") == ["umask 077", "ulimit -c 0", 'exec petscale "$@"']


@pytest.mark.parametrize("tool", ["docker run", "apptainer run"])
def test_commands_inside_containers_are_commands_of_petscale(tool: str) -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith(tool)]
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line)
        start = words.index("petscale:0.1.0") + 2 if tool.startswith("docker") else words.index("petscale.sif") + 1
        assert cli.parse(words[start:])[0] in COMMANDS.values()


def test_the_image_and_the_recipe_named_on_the_page_are_those_of_the_checkout() -> None:
    assert "--file deploy/kubernetes/Dockerfile" in PAGE
    assert "apptainer build petscale.sif deploy/apptainer/petscale.def" in PAGE
    assert "#   apptainer build petscale.sif deploy/apptainer/petscale.def" in RECIPE
