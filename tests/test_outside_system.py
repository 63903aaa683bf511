"""The commands of how-to-add-a-system.md, run on the page's own system: nothing of the tree is touched."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from petscale.folders import BEST, CHECKPOINTS, EVALUATION, METRICS, REPORT, TRIALS, WEIGHTS
from petscale.training.progress import read_metrics
from storage import nifti
from storage.integrity import MANIFEST
from storage.reader import open_cohort
from trainers.systems import GROUP

PAGE = Path(__file__).parents[1] / "docs/how-to-add-a-system.md"
SMALL = [
    "--recipe.channels",
    "2",
    "--recipe.patch",
    "8",
    "8",
    "8",
    "--loop.save-every",
    "1",
    "--loop.picture-every",
    "0",
]


def block(language: str) -> str:
    """The one fenced block of the page in ``language``."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, the page's distribution installed beside it."""
    site = tmp_path / "site"
    project = tomllib.loads(block("toml"))["project"]
    facts = site / f"{project['name']}-{project['version']}.dist-info"
    facts.mkdir(parents=True)
    ((system, module),) = project["entry-points"][GROUP].items()
    (site / f"{module}.py").write_text(block("python"))
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (facts / "METADATA").write_text(head)
    (facts / "entry_points.txt").write_text(f"[{GROUP}]\n{system} = {module}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
    (tmp_path / "desk").mkdir()
    return tmp_path / "desk"


def petscale(words: list[str]) -> list[str]:
    """What starts a command in a process of its own."""
    return [sys.executable, "-W", "ignore", "-m", "petscale", *words]


@pytest.mark.slow
@pytest.mark.beside
def test_the_pages_commands_train_resume_tune_synthesize_and_report(desk: Path) -> None:
    lines = [
        shlex.split(line.removeprefix("$ ")) for line in block("console").splitlines() if line.startswith("$ pets")
    ]
    assert [words[1] for words in lines] == ["phantom", "train", "tune", "synthesize", "evaluate", "report"]
    for words in lines:
        program, *given = words
        shorter = {"--trials": "2", "--recipe.samples": "64"}  # than the page's, for the clock
        given = [given[0], *(shorter.get(before, word) for before, word in pairwise(given))]
        assert program == "petscale"
        command = given[0]
        more = SMALL if command in ("train", "tune") else []
        if command == "phantom":
            more = ["--body.shape", "32", "24", "24", "--body.spacing-mm", "30", "18", "18", "--scan.iterations", "1"]
        if command == "train":  # ended from outside in its middle, then given again
            with subprocess.Popen(petscale([*given, *more]), cwd=desk, start_new_session=True) as begun:
                until = time.monotonic() + 240
                while not list((desk / "runs/try" / CHECKPOINTS).glob(f"*/{MANIFEST}")):
                    assert begun.poll() is None, "it ended before its first checkpoint"
                    assert time.monotonic() < until
                    time.sleep(0.05)
                os.killpg(begun.pid, signal.SIGKILL)
        if command == "synthesize":
            image = open_cohort(desk / "cohort").case("phantom-000").image("low_drf20")
            nifti.write_nifti(desk / "scan.nii.gz", image.grid, image.read)
        subprocess.run(petscale([*given, *more]), cwd=desk, check=True, stdout=subprocess.DEVNULL)
    starts = [r["step"] for r in read_metrics(desk / "runs/try" / METRICS) if r["event"] == "start"]
    assert starts[0] == 0
    assert (desk / "runs/try" / WEIGHTS).is_file()
    assert (desk / "runs/try" / REPORT).stat().st_size > 10_000
    assert (desk / "runs/try" / EVALUATION / "low_drf20/scores.json").is_file()
    assert (desk / "restored.nii.gz").is_file()
    assert (desk / "studies/try" / BEST).is_file()
    assert len(list((desk / "studies/try" / TRIALS).iterdir())) == 2
