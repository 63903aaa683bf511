"""The tutorial runs from its first cell to its last in an empty folder, and can be opened as a notebook."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs/tutorial.py"


def cells() -> list[tuple[str, str]]:
    """(kind, text) of every cell, as jupytext splits the percent format."""
    parts = re.split(r"^# %%(.*)\n", TUTORIAL.read_text(), flags=re.MULTILINE)[1:]
    return [(kind.strip(), text.strip()) for kind, text in zip(parts[::2], parts[1::2], strict=True)]


def test_it_alternates_words_and_code() -> None:
    kinds = [kind for kind, _ in cells()]
    assert set(kinds) == {"", "[markdown]"}
    assert kinds[0] == "[markdown]"
    for kind, text in cells():
        assert text
        if kind:
            assert all(line.startswith("#") for line in text.splitlines()), text
        else:
            ast.parse(text)


@pytest.mark.slow
def test_it_runs_in_an_empty_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(TUTORIAL)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "SUVmean of the liver" in done.stdout
    assert (tmp_path / "restored.nii.gz").is_file()
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
