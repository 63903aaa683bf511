"""petscale's commands killed at random moments, each followed by the same command: is the result as if nothing was?

Every command runs as a user runs it, a process of its own.  What it must leave was left by a run that nobody killed.
"""

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pydicom

from petscale.folders import BEST, METRICS, WEIGHTS
from petscale.tuning.study import read_study
from petscale.tuning.trials import history
from storage import dicom_write, integrity
from storage.phantom import PhantomConfig, phantom
from storage.verification import verify

SHAPE, SPACING_MM = (24, 32, 32), (40.0, 14.0, 14.0)
PATIENTS = 4
SMALL = (
    *("recipe.channels=2", "recipe.patch=1,24,24", "recipe.patches_per_case=1", "recipe.samples=48"),
    *("feed.source=low_drf4", "feed.cases_per_step=2"),
    *("loop.log_every=1", "loop.save_every=4", "loop.picture_every=0"),
)
ENDS_S = 600.0  # a command that takes so long hangs
GONE_S = 180.0  # processes of a killed command end by themselves within; Ray's agents look for their cluster for long
COMMAND, ALL, ONE = "the command", "all its processes", "one of its processes"

OTHERS = r"torchinductor_|pymp-"  # what torch, and Python where it is killed, leave in TMPDIR

Content = Mapping[str, str]


@dataclass(frozen=True)
class Stage:
    """A command that is killed.

    Args:
        words: its arguments; paths are relative to the folder it runs in.
        needs: what it reads, as earlier commands left it.
        makes: folder or file that it writes, also what is compared.
        content: that path -> name -> digest of what must be equal.
        killed: what may be killed; one of a command's processes only where others bring it back.
    """

    words: tuple[str, ...]
    needs: tuple[str, ...]
    makes: str
    content: Callable[[Path], Content]
    killed: tuple[str, ...] = (COMMAND, ALL)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def cohort_content(cohort: Path) -> Content:
    """Digests of all cases; what does not verify is named."""
    found = {path.name: integrity.manifest(path)["root"] for path in sorted((cohort / "cases").glob("*/"))}
    catalog = json.loads((cohort / "CATALOG.json").read_bytes())
    return found | {"wrong": str(verify(cohort)), "catalog": str(sorted(map(str, catalog.get("cases", catalog))))}


def run_content(run: Path) -> Content:
    """Digest of the weights, and the losses of all steps, each step once."""
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    losses = [
        sorted((key, value) for key, value in record.items() if key == "step" or key.startswith("loss/"))
        for record in records
        if record["event"] == "log"
    ]
    return {"weights": _digest((run / WEIGHTS).read_bytes()), "losses": str(losses)}


def study_content(study: Path) -> Content:
    """How many trials have an end, and what those that were to be tried first scored."""
    found = history(read_study(study))
    done = [trial for trial in found if trial["state"] == "COMPLETE"]
    first = str(sorted(done[0]["settings"].items()))
    scores = {str(sorted(trial["settings"].items())): str(trial["values"]) for trial in done}
    states = sorted({trial["state"] for trial in found} - {"COMPLETE", "FAIL"})
    told = json.loads((study / BEST).read_bytes())
    return {"finished": str(len(done)), "other ends": str(states), first: scores[first], "best": str(sorted(told))}


def scores_content(run: Path) -> Content:
    """Digests of all scores."""
    return {
        str(path.relative_to(run)): _digest(path.read_bytes())
        for path in sorted((run / "evaluation").glob("**/*.json"))
    }


def file_content(path: Path) -> Content:
    """Digest of a file."""
    return {path.name: _digest(path.read_bytes())}


def page_content(run: Path) -> Content:
    """Digest of a page but for the day on which it was made."""
    text = re.sub(r"\d{4}-\d\d-\d\d( \d\d:\d\d)?", "", (run / "report.html").read_text())
    return {"report.html": _digest(text.encode())}


STAGES: dict[str, Stage] = {
    "ingest": Stage(("ingest", "scans", "cohort", "--pet", "pet", "--ct", "ct"), ("scans",), "cohort", cohort_content),
    "simulate": Stage(
        ("simulate", "cohort", "lowdose", "--drf", "4", "--scan.iterations", "1"),
        ("cohort",),
        "lowdose",
        cohort_content,
    ),
    "train": Stage(
        ("train", "lowdose", "--run", "run", "--recipe", "red_cnn", "--set", *SMALL),
        ("lowdose",),
        "run",
        run_content,
        (COMMAND, ALL, ONE),
    ),
    "tune": Stage(
        (
            *("tune", "lowdose", "--study", "study", "--recipe", "red_cnn", "--spaces", "losses", "--trials", "3"),
            *("--at-once", "1", "--sampler", "random", "--set", *SMALL, "split.validation_fraction=0.25"),
        ),
        ("lowdose",),
        "study",
        study_content,
    ),
    "synthesize": Stage(
        ("synthesize", "run", "scans/p00/pet", "--output", "restored"),
        ("scans", "run"),
        "restored",
        lambda folder: {path.name: _digest(_voxels(path)) for path in sorted(folder.iterdir())},
    ),
    "evaluate": Stage(("evaluate", "run", "lowdose"), ("lowdose", "run"), "run", scores_content),
    "report": Stage(("report", "run", "lowdose"), ("lowdose", "run"), "run", page_content),
}
QUICK = ("ingest", "simulate", "synthesize", "evaluate", "report")  # that start no cluster


def _voxels(path: Path) -> bytes:
    """A slice's voxels; its UIDs are new in every series."""
    return bytes(pydicom.dcmread(path).PixelData)


def make_scans(folder: Path) -> None:
    """Write DICOM series of PET and CT for each patient."""
    for seed in range(PATIENTS):
        body = phantom(PhantomConfig(shape=SHAPE, spacing_mm=SPACING_MM, seed=seed))
        own = folder / "scans" / f"p{seed:02d}"
        own.mkdir(parents=True)
        dicom_write.write_series(own / "pet", body.activity, patient_id=own.name)
        dicom_write.write_series(own / "ct", body.ct, patient_id=own.name, series_number=2)


@dataclass(frozen=True)
class Finding:
    """What became of one result whose command was killed.

    Args:
        stage: which command.
        kills: what was killed, and at which part of the time that the command takes by itself.
        wrong: what was not as it must be; empty when all was.
    """

    stage: str
    kills: tuple[tuple[str, float], ...]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Undisturbed:
    """What commands leave that nobody disturbed.

    Args:
        folder: of everything; ``before`` in it holds what each command needs, as it was when the command began.
        took_s: stage -> seconds.
        content: stage -> what must be equal.
        names: stage -> files that it leaves.
    """

    folder: Path
    took_s: Mapping[str, float]
    content: Mapping[str, Content]
    names: Mapping[str, frozenset[str]]


def prepare(folder: Path, stages: Sequence[str]) -> Undisturbed:
    """Make the scans, and every result that ``stages`` need or make, undisturbed."""
    make_scans(folder)
    there = {"scans": folder / "scans"}
    took, content, names = dict[str, float](), dict[str, Content](), dict[str, frozenset[str]]()
    wanted = {*stages}
    for name, stage in reversed(STAGES.items()):
        later = {need for one in wanted for need in STAGES[one].needs} - {*STAGES[name].needs}
        wanted |= {name} if stage.makes in later else set()
    for name, stage in STAGES.items():
        if name in wanted:
            before, desk = folder / "before" / name, folder / "whole" / name
            for need in stage.needs:
                shutil.copytree(there[need], before / need)
            shutil.copytree(before, desk)
            begin = time.monotonic()
            done = _start(desk, folder, stage.words)
            said = done.communicate(timeout=ENDS_S)[1]
            assert done.returncode == 0, said
            took[name] = time.monotonic() - begin
            content[name], names[name] = stage.content(desk / stage.makes), _names(desk, stage)
            there[stage.makes] = desk / stage.makes
    return Undisturbed(folder, took, content, names)


def disturb(undisturbed: Undisturbed, name: str, rng: random.Random, most: int = 3) -> Finding:
    """Kill a command up to ``most`` times, each time starting it again, then let it end; say what is not as it was."""
    stage, desk = STAGES[name], undisturbed.folder / "desk"
    shutil.rmtree(desk, ignore_errors=True)
    shutil.copytree(undisturbed.folder / "before" / name, desk)
    kills: list[tuple[str, float]] = []
    processes: set[psutil.Process] = set()
    ended = False
    for _ in range(rng.randint(1, most)):
        share, target = rng.uniform(0.05, 1.0), rng.choice(stage.killed)
        process = _start(desk, undisturbed.folder, stage.words)
        children = _kill(process, share * undisturbed.took_s[name], target, rng)
        if ended := children is None:
            break
        kills.append((target, round(share, 3)))
        processes |= children or set()
    wrong = [f"left alive: {_called(one)}" for one in psutil.wait_procs(list(processes), timeout=GONE_S)[1]]
    if not ended:
        process = _start(desk, undisturbed.folder, stage.words)
        try:
            said = process.communicate(timeout=ENDS_S)[1]
        except subprocess.TimeoutExpired:
            _kill(process, 0, ALL, rng)
            return Finding(name, tuple(kills), (*wrong, "the same command hangs"))
        # A volume is never written over: where only the command's end was killed, the next one says that it is there.
        if process.returncode and not (name == "synthesize" and "DISK_EXISTS" in said):
            return Finding(name, tuple(kills), (*wrong, f"exit code {process.returncode}: {said.strip()[-300:]}"))
    must, found = undisturbed.content[name], stage.content(desk / stage.makes)
    wrong += [f"{key} differs" for key in sorted({*must, *found}) if must.get(key) != found.get(key)]
    extra = {one for one in _names(desk, stage) ^ undisturbed.names[name] if name != "tune" or "trials/" not in one}
    if extra:  # a trial that was killed keeps its folder
        wrong.append(f"left or missing: {', '.join(sorted(extra))}")
    if kept := sorted(path.name for path in (undisturbed.folder / "t").iterdir() if not re.match(OTHERS, path.name)):
        wrong.append(f"left in TMPDIR: {', '.join(kept)}")
        shutil.rmtree(undisturbed.folder / "t")
    return Finding(name, tuple(kills), tuple(wrong))


def findings_of(folder: Path, kills: int, seed: int, stages: Sequence[str]) -> Iterator[Finding]:
    """Disturb the commands one after another until there were so many kills; a seed tries the same moments again."""
    undisturbed, rng, done = prepare(folder, stages), random.Random(seed), 0
    for name in itertools.cycle(stages):
        if done >= kills:
            return
        found = disturb(undisturbed, name, rng)
        done += len(found.kills)
        yield found


def _start(desk: Path, folder: Path, words: Sequence[str]) -> subprocess.Popen[str]:
    scratch = folder / "t"
    scratch.mkdir(exist_ok=True)
    own = {"TMPDIR": str(scratch), "PETSCALE_SITE_KEY": str(folder / "site.key"), "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "petscale", *words],
        cwd=desk,
        env={**os.environ, **own},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _kill(
    process: subprocess.Popen[str], after_s: float, target: str, rng: random.Random
) -> set[psutil.Process] | None:
    """Kill a command, or some of its processes, after a time; returns its children, None where it had ended before."""
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=after_s)
        return None
    with suppress(psutil.NoSuchProcess):
        processes = sorted(psutil.Process(process.pid).children(recursive=True), key=lambda one: one.pid)
        chosen = {ALL: processes, ONE: processes and [rng.choice(processes)], COMMAND: []}[target]
        for one in chosen:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        if target != ONE:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=ENDS_S)  # it goes on, or ends with a code, where it lost a process of its own
        process.kill()
        return set(processes)
    process.communicate()
    return None


def _called(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())[:200]
    return "one that has just ended"


def _names(desk: Path, stage: Stage) -> frozenset[str]:
    """Files that are there beside what the command only reads, but for the random parts of their names."""
    read = {*stage.needs} - {stage.makes}
    made = [path.relative_to(desk) for path in desk.rglob("*") if path.is_file()]
    names = (str(path) for path in made if path.parts[0] not in read)
    return frozenset(re.sub(r"(?<=events\.out\.tfevents\.).*|(?<=checkpoints/\d{9}\.)\w+", "", name) for name in names)
