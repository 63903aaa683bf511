"""Code of an earlier commit, taken from git and run beside today's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("platform", "storage", "trainers", "tune_spaces")


def run_at(commit: str, script: str, folder: Path, *arguments: str) -> None:
    """Run a Python script with the packages of ``commit``; skips where this is no checkout that holds it.

    Args:
        commit: its hash.
        script: source of the script.
        folder: where the commit's code is put, and where the script runs.
    """
    code = folder / "code"
    code.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", "--format=tar", commit, *CODE], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"commit {commit} is not in this checkout")
    subprocess.run(["tar", "-x", "-C", str(code)], input=archive.stdout, check=True)
    (folder / "script.py").write_text(script)
    path = os.pathsep.join((str(code), str(code / "platform")))
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "script.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-3000:]
