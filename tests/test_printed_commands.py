"""Every command line that a page, a cluster file or an error prints is one that petscale takes, and can plan.

A page's commands are composed into their whole configuration; those that train or search are planned as well, on
patients who have all that the pages speak of.  ``test_readme.py`` runs those that a new user starts with.
"""

import ast
import io
import itertools
import re
import shlex
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from petscale import cli
from petscale.cluster import session as sessions
from petscale.commands import COMMANDS
from petscale.config import RunConfig
from petscale.training import driver, planning
from petscale.tuning import sweep as sweeps
from storage import ingest
from storage.source import HU, SUV, ArraySource, Dose, Grid

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name not in ("CHANGELOG.md", "how-to-add-a-system.md")  # what was; test_outside_system.py follows the other
)
FILES = sorted(
    path
    for pattern in ("*.yaml", "deploy/**/*.yaml", "deploy/**/*.yml", "deploy/**/*.sbatch", "deploy/**/Dockerfile")
    for path in ROOT.glob(pattern)
)
CODE = sorted(
    path for room in ("platform", "storage", "trainers", "tune_spaces") for path in ROOT.glob(f"{room}/**/*.py")
)
SHAPE = (96, 128, 128)
DOSES = {"low_drf4": 4, "low_drf6": 6, "low_drf10": 10, "low_drf20": 20, "low_frame20": np.nan}


def _joined(text: str) -> str:
    return re.sub(r"\\\n#?\s*", " ", text)


def printed(path: Path) -> list[str]:
    """Command lines as a reader would copy them: of a page's blocks, of a file's first comments, of a job's field."""
    text = path.read_text()
    if path.suffix == ".md":
        bodies = re.findall(r"^ *```(?:sh|bash|console)\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
        lines = [line.strip() for body in bodies for line in _joined(body).splitlines()]
        if any("$ " in body for body in bodies):
            consoles = re.findall(r"^ *```console\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
            answers = {line.strip() for body in consoles for line in body.splitlines() if not re.match(r" *\$ ", line)}
            lines = [line.removeprefix("$ ") for line in lines if line not in answers]
    else:
        lines = re.findall(r"^#   (\S.*)$", _joined(text), flags=re.MULTILINE)
        lines += re.findall(r"^ *entrypoint: (.*)$", text, flags=re.MULTILINE)
    return [line for line in lines if line and line[0] != "#"]


def commands(line: str) -> Iterator[list[str]]:
    """The petscale commands in a line of shell: of each of its programs, also what is submitted or run by Slurm."""
    with suppress(ValueError):  # a quote left open: prose, or a program in several lines
        for words in _programs(shlex.split(line, comments=True)):
            words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
            if [Path(word).name for word in words[:1]] == ["petscale"]:
                yield words[1:]
            elif words[1:3] == ["-m", "petscale"]:
                yield words[3:]
            elif words[:1] == ["sbatch"]:
                yield words[next(i for i, word in enumerate(words) if word.endswith(".sbatch")) + 1 :]


def _programs(words: list[str]) -> Iterator[list[str]]:
    for is_end, part in itertools.groupby(words, lambda word: word in ("&&", ";", "|", "||", ">")):
        if not is_end:
            yield list(part)


def told() -> Iterator[tuple[str, list[str]]]:
    for path in (*PAGES, *FILES):
        for line in printed(path):
            for words in commands(line):
                if words and not words[0].startswith("--"):
                    yield str(path.relative_to(ROOT)), words


def innermost(words: list[str]) -> list[str]:
    """What a ``submit`` submits; any other command as it stands."""
    while words[0] == "submit" and any(word in COMMANDS for word in words[1:]):
        words = words[next(i for i, word in enumerate(words[1:], 1) if word in COMMANDS) :]
    return words


def test_the_lines_are_found() -> None:
    """Those that were refused as printed before, each in the kind of file it stood in."""
    lines = {(page, *words[:3]) for page, words in told()}
    assert ("cluster.yaml", "submit", "train", "/srv/petscale/cohort") in lines
    assert ("deploy/README.md", "submit", "--cluster", "deploy/aws.yaml") in lines
    assert ("deploy/kubernetes/train-job.yaml", "train", "/srv/petscale/cohort", "--run") in lines
    assert ("deploy/slurm/petscale.sbatch", "train", "/shared/cohort", "--run") in lines
    assert ("docs/how-to-cluster.md", "submit", "train", "cohort") in lines
    assert ("README.md", "ingest", "scans", "cohort") in lines
    assert len(lines) > 100
    assert {innermost(words)[0] for _, words in told()} >= {*COMMANDS} - {"demo", "submit"}


@pytest.mark.parametrize("path", [*PAGES, *FILES], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_is_composed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into its whole configuration, also what is only submitted: a wrong option or value ends in an error."""
    monkeypatch.chdir(tmp_path)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in printed(path):
        if line.startswith("make "):
            assert set(line.split()[1:]) <= targets, line
        for words in commands(line):
            if words and not words[0].startswith("--"):
                _configured(tmp_path, words)
                cli.parse(words)
                found = cli.parse(innermost(words))[1]
                assert isinstance(found.get("config", RunConfig()), RunConfig)


def _configured(folder: Path, words: list[str]) -> None:
    """Leave an empty configuration where a command reads one that the page speaks of."""
    for option, name in itertools.pairwise(words):
        if option == "--config":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_have_the_options_that_pages_give_them(path: Path) -> None:
    for line in printed(path):
        if script := re.match(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?python3? (\S+\.py)(.*)", line):
            source = (ROOT / script[1]).read_text()
            for name in re.findall(r" --([a-z-]+)", script[2]):
                assert name in source or name.replace("-", "_") in source, line


# ---- options that sentences name: between backticks on a page, in a docstring or a remedy ------------------------


@cache
def helped(name: str) -> str:
    shown = io.StringIO()
    with redirect_stdout(shown), pytest.raises(SystemExit):
        cli.parse([name, "--help"])
    return shown.getvalue()


def sentences(path: Path) -> Iterator[str]:
    if path.suffix == ".md":
        yield from re.findall(r"`(petscale [^`]*)`", path.read_text().replace("\n", " "))
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"petscale [a-z]+ [^`.;,()]*", node.value.replace("\n", " "))


@pytest.mark.parametrize("paths", [PAGES, CODE], ids=["pages", "code"])
def test_sentences_name_options_that_commands_have(paths: list[Path]) -> None:
    wrong = []
    for path in paths:
        for sentence in sentences(path):
            name, *rest = innermost(sentence.split()[1:] or ["--"])
            if name in COMMANDS:
                options = [word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)]
                wrong += [(path.name, sentence) for option in options if option not in helped(name)]
    assert not wrong


# ---- planned -----------------------------------------------------------------------------------------------------


def make_cohort(folder: Path, names: list[str]) -> Path:
    """Patients with every image and label that the pages speak of, large enough for the largest patch they name."""
    from trainers.systems import RECIPES

    grid = Grid(SHAPE, np.diag([-4.0, -4.0, 4.0, 1.0]))
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    body = ((y - 64) ** 2 + (x - 64) ** 2 < 50**2) & (z >= 0)
    rois = {organ for spec in RECIPES.values() for organ in getattr(spec.Config(), "rois", ())}
    organs = sorted({"liver", "brain", "kidneys", "bladder", "lesion", *rois})
    labels = np.zeros(SHAPE, np.float32)
    for number, _ in enumerate(organs, 1):
        labels[8 * number : 8 * number + 6, 48:80, 48:80] = number

    def plan(name: str) -> Callable[[Path], ingest.CasePlan]:
        def open_plan(scratch: Path) -> ingest.CasePlan:
            activity = np.where(body, 1 + 0.01 * zlib.crc32(name.encode()) / 2**32, 0).astype(np.float32)
            pet = ArraySource(activity + 3 * (labels > 0), grid, SUV, {"tracer": "FDG"})
            ct = ArraySource(np.where(body, 40, -1000).astype(np.float32), grid, HU)
            doses: dict[str, Dose | None] = {"full": Dose(1, "full", None)}
            doses |= {image: Dose(drf, "thinned", True) for image, drf in DOSES.items()}
            images = {"full": pet, **dict.fromkeys(DOSES, pet), "ct": ct, "labels": ArraySource(labels, grid, "label")}
            return ingest.CasePlan(
                images=images,
                subject=ingest.subject_hash(name, b"nobody at all here"),
                fingerprint=name,
                labels=dict(enumerate(organs, 1)),
                doses=doses,
            )

        return open_plan

    done = ingest.ingest(folder, {name: plan(name) for name in names}, strict=True)
    assert done.committed
    return folder


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages' cohorts: all are one, but the second of two that are trained on together."""
    folder = tmp_path_factory.mktemp("cohorts")
    first = make_cohort(folder / "first", [f"p{number:02d}" for number in range(1, 10)])
    return {"": first, "ge": make_cohort(folder / "ge", ["g01"])}


class PlannedError(Exception):
    """All checks are over, and a training would start."""


def planned(*_: object, **__: object) -> None:
    raise PlannedError


PLANNED = {
    " ".join(innermost(words)): (page, innermost(words))
    for page, words in told()
    if innermost(words)[0] in ("train", "tune", "folds")
    or (innermost(words)[0] == "experiment" and "--cohort" in words)
}


FIRST_TRAINING = {
    "train": (driver, "train_on_ray"),
    "tune": (sweeps, "run_trials"),
    "folds": (driver, "train"),
    "experiment": (driver, "train"),
}


@pytest.mark.parametrize("line", PLANNED)
def test_what_trains_is_planned(
    line: str, cohorts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the first training: roles of patients, images, doses, patches, steps, spaces."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(*FIRST_TRAINING[line.split()[0]], planned)
    monkeypatch.setattr(sessions, "session", lambda *_: nullcontext())
    for place in (driver, sweeps):  # a page may speak of another machine than this one
        monkeypatch.setattr(place, "require_resources", lambda *_: None)
    _, words = PLANNED[line]
    _configured(tmp_path, words)
    command, found = cli.parse(words)
    if "options" in found:
        options = found["options"]
        here = {
            "cohort": cohorts[""],
            "others": tuple(cohorts[name.name] for name in options.others),
            "study" if hasattr(options, "study") else "run": tmp_path / "made",
        }
        found["options"] = replace(options, **here)
        if getattr(options, "init", None):  # weights that a page speaks of; test_first.py has real ones
            options.init.touch()
            monkeypatch.setattr(planning, "check_init", lambda *_: ())
    else:
        found["cohort"] = cohorts[""]
        if found.get("external"):
            found["external"] = cohorts["ge"]
    with pytest.raises(PlannedError):
        cli.run(command, found)
