"""Plans of cases become a cohort: storage's Dask graph run with a bar, here or spread over a cluster."""

import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from petscale.cluster import nodes
from petscale.cluster.nodes import joined
from petscale.cluster.placement import fewest_cpus, machine_cpus
from petscale.console import bar, console
from petscale.data.ingest_table import note_lines, repeated_lines, show_ingested
from storage import integrity, layout, remote
from storage.errors import InputError, printable
from storage.ingest import CasePlan, Doubts, Outcome, Spread, ingest, one_after_another, site_key

Plans = Mapping[str, Callable[[Path], CasePlan]]


def fill_cohort(
    title: str,
    cohort: Path,
    plans: Plans,
    *,
    strict: bool,
    workers: int | None,
    part: str = "",
    folders: Mapping[str, str] | None = None,
    doubts: Doubts = "note",
    hashes_patients: bool = False,
) -> Outcome:
    """Ingest with a bar over all tasks, then say what was committed, kept and refused.

    Raises:
        InputError: as ``fill_what_can_be``; SET_REFUSED when only some cases were refused.
    """
    outcome = fill_what_can_be(
        title,
        cohort,
        plans,
        strict=strict,
        workers=workers,
        part=part,
        folders=folders,
        doubts=doubts,
        hashes_patients=hashes_patients,
    )
    if outcome.refused:
        raise InputError(
            "SET_REFUSED",
            where=cohort.name,
            found=f"{len(outcome.refused)} of {len(plans)} cases were refused, the others are committed",
            remedy="see the lines above, fix these cases and run the same command again",
        )
    return outcome


def fill_what_can_be(
    title: str,
    cohort: Path,
    plans: Plans,
    *,
    strict: bool,
    workers: int | None,
    part: str = "",
    folders: Mapping[str, str] | None = None,
    doubts: Doubts = "note",
    hashes_patients: bool = False,
) -> Outcome:
    """Ingest with a bar over all tasks; cases that are refused beside others are in the outcome, and on the terminal.

    Args:
        part: name of the part that this is, where other parts may be ingested at the same time.
        folders: case -> where its files are, for the terminal only.
        doubts: what becomes of cases that carry a note of weight.
        hashes_patients: the plans hash patients with the site's key, which all nodes of a cluster must then share;
            phantoms and simulations need none.

    Raises:
        InputError: the first refusal when nothing was committed or kept, so that a single mistake is told as itself;
            the cohort's folder is then as it was before.
    """
    if workers is not None and workers < 1:
        raise InputError("CFG_RANGE", where="--workers", found=str(workers), remedy="give 1 or more")
    if workers is not None and not joined() and workers > machine_cpus():
        found = f"{workers} wanted, this machine has {machine_cpus()} cores"
        raise InputError("CFG_RESOURCES", where="--workers", found=found, remedy="ask for fewer")
    with _restored_when_empty(cohort):
        return _fill(title, cohort, plans, strict, workers, part, folders or {}, doubts, hashes_patients)


def _fill(
    title: str,
    cohort: Path,
    plans: Plans,
    strict: bool,
    workers: int | None,
    part: str,
    folders: Mapping[str, str],
    doubts: Doubts,
    hashes_patients: bool,
) -> Outcome:
    done: set[str] = set()
    with bar(title, len(plans)) as advance, _spread(cohort, workers, hashes_patients) as spread:

        def progress(case: str, tasks: int, total: int) -> None:
            done.update([case] if tasks == total else [])
            advance(len(done), f"{case} {tasks}/{total} tasks")

        outcome = ingest(
            cohort,
            plans,
            strict=strict,
            doubts=doubts,
            workers=workers,
            progress=progress,
            spread=spread,
            part=part,
        )
        if outcome.committed or outcome.kept:
            advance(len(plans), "")
    told = None if outcome.committed or outcome.kept else next(iter(outcome.refused.values()), None)
    for case, error in outcome.refused.items():
        if error is not told:
            # On a screen only: what goes into a pipe is kept, and a folder may name a patient.
            folder = f" ({printable(folders[case])})" if case in folders and console.is_terminal else ""
            console.print(f"refused {case}{folder}: {error}", soft_wrap=True, markup=False)
    if told:
        raise told
    summary = f"{cohort}: {len(outcome.committed)} committed, {len(outcome.kept)} already there"
    console.print(summary, soft_wrap=True, markup=False)
    if folders and outcome.committed:
        show_ingested(console, cohort, outcome.committed, folders)
    for line in (*note_lines(cohort, outcome.committed), *repeated_lines(cohort, outcome.committed)):
        console.print(line, soft_wrap=True, markup=False)
    return outcome


@contextmanager
def _spread(cohort: Path, workers: int | None, hashes_patients: bool) -> Iterator[Spread]:
    """One case after another on this machine; in a cluster's job, all nodes at once, a case each.

    Raises:
        InputError: CLU_SITE_KEY where nodes would call one patient by different names; those of ``launch.session``.
    """
    if not joined() or remote.origin(cohort):  # what is written for an object store is published from one node
        yield one_after_another
        return
    if hashes_patients and "PETSCALE_SITE_KEY" not in os.environ:
        raise InputError(
            "CLU_SITE_KEY",
            where="PETSCALE_SITE_KEY",
            found="not set: every node would hash patients with a key of its own",
            remedy="let it name one file that all nodes read, as cluster.yaml does",
        )
    from petscale.cluster.session import session
    from petscale.config import RunConfig

    read = []
    if hashes_patients:
        site_key()  # made if need be, before every node must find it
        read = [Path(os.environ["PETSCALE_SITE_KEY"])]
    cohort.mkdir(parents=True, exist_ok=True, mode=0o700)
    with session(RunConfig(), 0, cohort, *read):
        yield partial(nodes.spread, cpus=workers or min(4, fewest_cpus()))


@contextmanager
def _restored_when_empty(cohort: Path) -> Iterator[None]:
    """When the block fails and has committed nothing to a new cohort, take away what it made."""
    held = {path.name for path in cohort.iterdir()} if cohort.is_dir() else None
    try:
        yield
    except BaseException:
        if cohort.is_dir() and "zarr.json" not in (held or ()):
            _take_away(cohort, held)
        raise


def _take_away(cohort: Path, held: set[str] | None) -> None:
    try:
        with integrity.exclusive(cohort, purpose="clean-up"):
            if any(cohort.glob(f"{layout.CASES}/*/{integrity.MANIFEST}")):
                return
            for path in cohort.iterdir():
                if path.name not in (held or ()):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if held is None:
                cohort.rmdir()
    except InputError:
        return  # someone else is filling it


def fingerprint(key: bytes, *parts: object) -> str:
    """Keyed, so that a public file's digest does not tell which patient it is."""
    return hmac.new(key or b"petscale", json.dumps(parts, sort_keys=True).encode(), hashlib.sha256).hexdigest()
