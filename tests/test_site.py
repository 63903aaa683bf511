"""The site: its index lists every page, it builds without a warning, and its pages load nothing from a network."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}


def leaves(nav: object) -> Iterator[str]:
    """Pages of mkdocs.yml's ``nav``: strings, lists of entries, or titles with either."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for entry in nav.values():
            yield from leaves(entry)
    elif isinstance(nav, list):
        for entry in nav:
            yield from leaves(entry)


class Loads(HTMLParser):
    """Addresses that a browser fetches when it opens a page, and the page's text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name == LOADS.get(tag) and value]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it; a warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_stands_in_the_index_once() -> None:
    listed = list(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted(PAGES)


def test_every_page_is_built(site: Path) -> None:
    assert {str(path.relative_to(site).with_suffix(".md")) for path in site.rglob("*.html")} - {"404.md"} == PAGES


def test_pages_load_nothing_from_a_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text())
        assert loads.addresses, page.name
        assert not [address for address in loads.addresses if re.match(r"(?:\w+:)?//", address)], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


def test_markdown_becomes_lists_and_tables(site: Path) -> None:
    """Python-Markdown wants an empty line before a list or a table, which other renderers do not."""
    for page in site.rglob("*.html"):
        body = re.sub(r"<(pre|code)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
        loads = Loads()
        loads.feed(re.sub(r"<(script|style)\b.*?</\1>", "", body, flags=re.DOTALL))
        lines = "".join(loads.text).splitlines()
        assert not [line for line in lines if re.match(r"\s*(?:- |\d+\. |\|.*\|\s*$)", line)], page.name
