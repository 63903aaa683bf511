"""``petscale remove``: a withdrawn consent leaves no byte of a case, neither in a cohort nor in copies that runs made.

The rename of a case's folder out of ``cases/`` is the commit point: from then on no reader sees it.  Then the catalog
forgets it, copies in runs go, and last the folder itself, so that the same command continues a killed one.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petscale.folders import CONFIG, EVALUATION, FOLDS, PICTURES, SYNTHESIS, TRIALS
from storage import integrity, layout, remote
from storage.errors import InputError
from storage.reader import attributes, open_cohort
from storage.verification import read_catalog

REMOVED = "removed"  # in the staging folder: cases on their way out
_TEXT = (".json", ".csv", ".html", ".log")  # what a run writes that may name cases
_SAW = {
    "train": "was trained on it; weights cannot be cleaned of a patient: train again without it",
    "unpaired": "was trained on its full dose; weights cannot be cleaned of a patient: train again without it",
    "validation": "was steered by its scores; the weights were not trained on it, but depend on it",
    "test": "kept it for testing; the weights have not seen it",
}


@dataclass(frozen=True)
class _Known:
    """Root digest and patient of a case, each empty where nothing is left that states it."""

    root: str
    subject: str


def remove_cases(cohort: Path, cases: Sequence[str], runs: Sequence[Path] = ()) -> list[str]:
    """Remove cases from a cohort, and what runs derived from them.

    Args:
        cohort: folder of the cohort.
        cases: names; also of a case whose folder was deleted by hand and that the catalog still lists.
        runs: folders of runs, of folds, or of studies.  Synthesized volumes, scores, reports and pictures of the cases
            are removed from them; weights, checkpoints and the run's record stay.

    Returns:
        A sentence for each thing that was done, and for each run that saw a case.

    Raises:
        InputError: before anything is removed, SET_NO_CASE, CFG_NAME, CFG_RUN_FOLDER, STORE_NONE, STORE_BUSY, and
            CLU_URL for an object store; DISK_DENIED.
    """
    for folder in (cohort, *runs):
        _check_local(folder)
    open_cohort(cohort)
    if not cases:
        raise InputError(
            "SET_NO_CASE", where=cohort.name, found="no case is named", remedy="name the cases that are to be removed"
        )
    records = {run: _record(run) for folder in runs for run in _runs_in(folder)}
    with integrity.exclusive(cohort, purpose="remove"), integrity.disk_errors(cohort):
        known = {name: _known(cohort, name) for name in dict.fromkeys(cases)}
        for name, found in known.items():
            if found is None and not any(name in record.get("cases", {}) for record in records.values()):
                raise InputError(
                    "SET_NO_CASE",
                    where=f"case {name}",
                    found="neither in the cohort nor in its catalog; nothing was removed",
                    remedy="list the cases with `petscale inspect --cases`",
                )
        told = [line for name, found in known.items() if found is not None for line in _take_out(cohort, name)]
        for run, record in records.items():
            with integrity.exclusive(run, purpose="remove"):
                told += [line for name, found in known.items() for line in _clean(run, record, name, found)]
        if (
            cohort / layout.STAGING
        ).exists():  # also what a killed ingest has left of the case; nobody else writes here
            shutil.rmtree(cohort / layout.STAGING)
    return told


def _check_local(folder: Path) -> None:
    if url := remote.url_of(folder) or remote.origin(folder):
        raise InputError(
            "CLU_URL",
            where=url,
            found="an object store may keep copies and versions that petscale does not see",
            remedy="remove the case there with the store's own tools, or from a cohort in a folder",
        )


def _runs_in(folder: Path) -> Iterator[Path]:
    """A run's folder itself, the runs of a study's trials, or a folder of folds and the runs in it."""
    if (folder / FOLDS).is_file():
        yield from sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if (folder / TRIALS).is_dir():
        yield from sorted(path.parent for path in (folder / TRIALS).glob(f"*/{CONFIG}"))
        return
    yield folder


def _record(run: Path) -> dict[str, Any]:
    try:
        place = run / (FOLDS if (run / FOLDS).is_file() else CONFIG)
        record: dict[str, Any] = json.loads(place.read_bytes())
        record["cases"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            "CFG_RUN_FOLDER",
            where=run.name,
            found="no record of a run",
            remedy="name folders of `petscale train` or `petscale tune`; nothing was removed",
        ) from None
    return record


def _known(cohort: Path, name: str) -> _Known | None:
    """What is left of a case, in place, on its way out after a killed removal, or in the catalog alone."""
    layout.check_case_name(name)
    places = (cohort / layout.CASES / name, cohort / layout.STAGING / REMOVED / name)
    folder = next((place for place in places if place.is_dir()), None)
    root, subject = "", ""
    with suppress(ValueError):
        root = read_catalog(cohort).get(name, "")
    if folder is None:
        return _Known(root, "") if root else None
    with suppress(InputError, KeyError):
        subject = attributes(folder)["petscale"]["subject"]
    with suppress(InputError):
        root = root or integrity.manifest(folder)["root"]
    return _Known(root, subject)


def _take_out(cohort: Path, name: str) -> Iterator[str]:
    folder, out = cohort / layout.CASES / name, cohort / layout.STAGING / REMOVED / name
    there = folder.is_dir()
    if there:
        if out.exists():  # a removal was killed, and the case was ingested again since
            shutil.rmtree(out)
        out.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.replace(folder, out)
        integrity.fsync_folder(folder.parent)
    with suppress(ValueError):
        catalog = read_catalog(cohort)
        if catalog.pop(name, None) is not None:
            integrity.write_json(cohort / layout.CATALOG, catalog)
    gone = "" if there or out.exists() else "; its folder was gone, its entry in the catalog is too now"
    yield f"{cohort.name}: removed {name}{gone}"
    for path in sorted(cohort.iterdir()):
        if path.is_file() and path.suffix in (".json", ".yaml", ".yml", ".csv") and _names(path, name):
            yield f"{cohort.name}/{path.name} still names {name}: take it out there before it is used again"


def _clean(run: Path, record: Mapping[str, Any], name: str, known: _Known | None) -> Iterator[str]:
    """Remove a run's copies of a case, and say what the run did with it."""
    called = f"{run.parent.parent.name}/{TRIALS}/{run.name}" if run.parent.name == TRIALS else run.name
    root, subject = (known.root, known.subject) if known else ("", "")
    recorded: Mapping[str, str] = record["cases"]
    # A run over several cohorts may call the case by its cohort too: its content tells which it is.
    names = {other for other, digest in recorded.items() if digest == root}
    names |= {name} if name in recorded and not root else set()
    copies = [
        folder
        for pattern in ("*", "*/*")
        for other in sorted({name, *names})
        for folder in run.glob(f"{SYNTHESIS}/{pattern}/{layout.CASES}/{other}")
        if not subject or _subject(folder) in (subject, "")
    ]
    if name in recorded and not names and not copies:
        yield f"{called}: saw a case named {name} with other voxels, not this one; it was left as it is"
    if not names and not copies:
        return
    for folder in copies:
        remove_cases(folder.parent.parent, [folder.name])
    derived = {path for other in {*names, *(folder.name for folder in copies)} for path in _derived(run, record, other)}
    for path in derived:
        path.unlink()
    if copies or derived:
        yield f"{called}: removed {len(copies)} synthesized case(s) and {len(derived)} file(s) with scores or pictures"
    for other in sorted(names):
        for role, told in _SAW.items():
            if other in record.get(role, ()):
                yield f"{called}: {told} ({other})"


def _subject(case: Path) -> str:
    """The patient of a stored case, empty where the case does not say it any more."""
    with suppress(InputError, KeyError):
        return str(attributes(case)["petscale"]["subject"])
    return ""


def _derived(run: Path, record: Mapping[str, Any], name: str) -> Iterator[Path]:
    """Files of a run that show a case or hold a score of it; scores that are means over cases too."""
    for path in sorted((run / EVALUATION).rglob("*")):
        if path.is_file():
            called = any(part == name or part.startswith(f"{name}.") for part in path.relative_to(run).parts)
            if called or (path.suffix in _TEXT and _names(path, name)):
                yield path
    others = [path for path in sorted(run.iterdir()) if path.suffix in _TEXT and path.name not in (CONFIG, FOLDS)]
    yield from (path for path in others if _names(path, name))
    shown = [*record.get("test", ()), *record.get("train", ())][:1]  # during training one case is pictured
    if shown == [name]:
        yield from sorted((run / PICTURES).glob("*.png"))


def _names(path: Path, name: str) -> bool:
    """Whether a text names a case, and not another one whose name begins or ends so."""
    text = path.read_text("utf-8", errors="replace")
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?!\.?[\w-])", text) is not None
