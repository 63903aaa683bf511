"""The pages of docs/ name files, headings, settings and commands that exist."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from petscale.commands import COMMANDS
from petscale.config import RunConfig
from trainers.systems import RECIPES

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *sorted(ROOT.glob("docs/**/*.md")),
]


def anchors(page: Path) -> set[str]:
    """Anchors as renderers make them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        if name.startswith("http"):
            continue
        there = (page.parent / name) if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:platform|storage|trainers|tune_spaces|tests|benchmarks|docs)/[\w./-]+)`", page.read_text()
    ):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_tests_exist(page: Path) -> None:
    tests = {
        name for file in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))
    assert named <= tests, named - tests


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_settings_exist(page: Path) -> None:
    """Settings are written ``section.field=value``, or alone between backticks."""
    config = RunConfig()
    models = {field.name for spec in RECIPES.values() for field in dataclasses.fields(spec.Config)}
    sections = "recipe|feed|loop|engine|split|cluster"
    for before, section, field, after in re.findall(rf"(\W)({sections})\.(\w+)([`=])", page.read_text()):
        if (after == "=" or before == "`") and not (ROOT / f"{section}.{field}").is_file():  # cluster.yaml
            known = models if section == "recipe" else {f.name for f in dataclasses.fields(getattr(config, section))}
            assert field in known, f"{section}.{field}"


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = [*project["dependencies"], *extras["dev"], *extras["docs"]]
    rows = [line for line in (ROOT / "docs/decisions.md").read_text().splitlines() if line.startswith("| ")]
    told = " ".join(row.split("|")[1] for row in rows)
    assert {re.sub(r"[\[<>=].*", "", name) for name in names} <= set(re.findall(r"[\w-]+", told))


def test_every_command_is_told() -> None:
    told = " ".join(page.read_text() for page in PAGES)
    assert not [name for name in COMMANDS if f"petscale {name}" not in told and f"make {name}" not in told]
