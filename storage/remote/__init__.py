"""Cohorts and runs at an URL: a local mirror that is brought up to date before use and published after commits.

Patches are read at native resolution from local files, so voxels are never read over the network: a node fetches what
is committed, proves it against its manifests, and reads its mirror.  How a store is asked stands in ``store``, who may
write in ``writer``.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from storage import integrity, layout
from storage.errors import InputError
from storage.integrity import MANIFEST
from storage.remote.store import (
    Store,
    check_writable,
    home_of,
    mirror,
    name_of,
    origin,
    store_errors,
    url_of,
    visible,
    writable,
)
from storage.remote.writer import Lease, holding, lease, succession, written_here

__all__ = [
    "Lease",
    "check_writable",
    "fetch",
    "holding",
    "lease",
    "mirror",
    "origin",
    "publish",
    "succession",
    "url_of",
    "writing",
]

TABLE = "synced.json"  # beside the mirror: what it and the store agreed on last
_UNIT = re.compile(rf"((?:.*?/)?(?:{layout.CASES}|checkpoints)/[^/]+)/(.+)")  # folders that exist by their manifest
_FIRST = ("zarr.json", "config.json")  # without these, what stands beside them is not known for what it is
_TRANSFERS = 8
_PATIENCE_S = 86400.0  # another process of this node may be fetching a cohort; the kernel tells when it dies


def _split(key: str) -> tuple[str, str]:
    """The committed folder that a key belongs to, empty for a plain object, and the rest."""
    match = _UNIT.fullmatch(key)
    return (match.group(1), match.group(2)) if match else ("", key)


class _WrongError(Exception):
    """An object is not what its manifest says."""


def fetch(url: str, *, only: Sequence[str] = ("*",), held: Lease | None = None) -> Path:
    """Bring the mirror up to date with what is committed at ``url``, and return it; nothing else stands in it then.

    A manifest appears when every file of it is there and proven.  What is right already is kept, so an interrupted
    fetch continues.  Processes of one node share a mirror and wait for each other; while one of them writes there, the
    mirror is ahead of the store, and others are given it as it is.

    Args:
        only: patterns of committed folders (``cases/p01``, ``checkpoints/*``) and of plain objects (``*.json``).
        held: the lease of whoever writes here, or for whom it does: what was not published is given up.

    Raises:
        InputError: STORE_DAMAGED naming folder and file; DISK_FULL; CLU_ codes.
    """
    store, folder, home = Store(url), mirror(url), home_of(url)
    if held is None and written_here(url):
        return folder
    with store_errors(url), integrity.disk_errors(folder):
        folder.mkdir(exist_ok=True, mode=0o700)
        with integrity.exclusive(home, purpose="fetch", wait_s=_PATIENCE_S):
            table = _Table(home / TABLE)
            try:
                # Objects first, then a new listing: every case that the catalogue names is in it.
                listed = {key: version for key, version in store.listing().items() if not _split(key)[0]}
                _fetch_objects(store, folder, table, {k: v for k, v in listed.items() if _chosen(k, only)})
                units = {unit for unit, name in map(_split, store.listing()) if unit and name == MANIFEST}
                # Names of checkpoints begin with their step: the newest comes first.
                for unit in sorted((unit for unit in units if _chosen(unit, only)), reverse=True):
                    _fetch_unit(store, folder, table, unit)
                _forget(folder, table, units, listed.keys(), only)
            finally:
                table.save()
    return folder


def _chosen(name: str, only: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in only)


class _Table:
    """Key -> the version in the store and the digest here that were the same thing, as of the last transfer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._rows: dict[str, list[str]] = json.loads(path.read_bytes())
        except (OSError, ValueError):
            self._rows = {}
        self._saved = dict(self._rows)

    def save(self) -> None:
        if self._rows != self._saved:
            integrity.write_json(self._path, self._rows)
            self._saved = dict(self._rows)

    def note(self, key: str, version: str, digest: str) -> None:
        self._rows[key] = [version, digest]

    def same(self, key: str, version: str | None, digest: str) -> bool:
        return self._rows.get(key) == [version, digest]

    def moved_on(self, key: str, version: str | None) -> bool:
        """Whether the store's object was made, changed or removed since."""
        return (self._rows[key][0] if key in self._rows else None) != version

    def forget(self, name: str) -> None:
        """Drop an object's row, or those of a folder."""
        self._rows = {key: row for key, row in self._rows.items() if key != name and not key.startswith(f"{name}/")}


def _digest(path: Path) -> str:
    """SHA-256 of a file, empty when there is none."""
    return integrity.file_digest(path) if path.is_file() else ""


def _each(work: Any, items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """(item, result) in the order in which several threads are done; the first error ends it."""
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        futures = {pool.submit(work, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()


def _download(store: Store, key: str, path: Path) -> str:
    """Get one object beside its place and return its digest."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = _partial(path)
    store.fs.get_file(store.at(key), str(partial))
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    return _digest(partial)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _fetch_objects(store: Store, folder: Path, table: _Table, objects: Mapping[str, str]) -> None:
    def get(key: str) -> tuple[str, str]:
        version = objects[key]
        for _ in range(5):
            digest = _download(store, key, folder / key)
            now = store.version(key)
            if now == version:  # a large object comes in parts, which must be of one version
                os.replace(_partial(folder / key), folder / key)
                return version, digest
            version = now
        remedy = "run the same command again when its writer has ended"
        raise InputError("STORE_BUSY", where=key, found="it changes faster than it can be read", remedy=remedy)

    stale = [key for key, version in objects.items() if not table.same(key, version, _digest(folder / key))]
    for key, (version, digest) in _each(get, stale):
        table.note(key, version, digest)


def _fetch_unit(store: Store, folder: Path, table: _Table, unit: str) -> None:
    proof = f"{unit}/{MANIFEST}"
    for _ in range(3):
        raw = b""
        try:
            version = store.version(proof)
            if table.same(proof, version, _digest(folder / proof)) and _present(folder / unit):
                return
            raw = store.read(proof)
            _fetch_files(store, folder, unit, raw)
        except (FileNotFoundError, _WrongError) as error:
            with suppress(FileNotFoundError):
                if store.read(proof) == raw:  # nobody is exchanging it
                    raise _damaged(unit, str(error)) from None
            continue
        table.note(proof, version, _digest(folder / proof))
        return
    _drop(folder / unit)  # it is being exchanged or went away: not committed now


def _drop(folder: Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)  # first, so that a kill leaves no half that is believed
    shutil.rmtree(folder, ignore_errors=True)


def _present(folder: Path) -> bool:
    try:
        integrity.check_presence(folder)
    except InputError:
        return False
    return True


def _damaged(unit: str, problem: str) -> InputError:
    key, _, found = problem.partition(": ")
    where, remedy = f"{name_of(unit)}/{key}", "restore the object, or remove its folder there and make it again"
    return InputError("STORE_DAMAGED", where=where, found=f"{found} in the object store", remedy=remedy)


def _fetch_files(store: Store, folder: Path, unit: str, raw: bytes) -> None:
    target = folder / unit
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (target / MANIFEST).exists() and (target / MANIFEST).read_bytes() != raw:
        (target / MANIFEST).unlink()  # the files that it lists are about to change
    files = _proven(folder.parent, unit, raw)["files"]

    def get(key: str) -> None:
        entry, path = files[key], target / key
        if path.is_file() and path.stat().st_size == entry["size"] and _digest(path) == entry["sha256"]:
            return
        try:
            digest = _download(store, f"{unit}/{key}", path)
        except FileNotFoundError:
            raise _WrongError(f"{key}: missing") from None
        if digest != entry["sha256"]:
            _partial(path).unlink()
            raise _WrongError(f"{key}: content differs from what was committed")
        os.replace(_partial(path), path)

    for _ in _each(get, list(files)):
        pass
    for path in [path for path in target.rglob("*") if path.is_file()]:
        if str(path.relative_to(target)) not in files and path.name != MANIFEST:
            path.unlink()
    for parent in {(target / key).parent for key in files}:
        integrity.fsync_folder(parent)
    integrity.write_bytes(target / MANIFEST, raw)


def _proven(scratch: Path, unit: str, raw: bytes) -> dict[str, Any]:
    """The manifest in ``raw``; its keys are the store's and must not lead out of the folder."""
    place = scratch / ".manifest" / name_of(unit)
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        (place / MANIFEST).write_bytes(raw)
        content = integrity.manifest(place)
    finally:
        shutil.rmtree(place.parent)
    if not all(isinstance(key, str) and visible(key) for key in content["files"]):
        raise _damaged(unit, f"{MANIFEST}: names of files that petscale does not write,")
    return content


def _forget(folder: Path, table: _Table, units: set[str], objects: Any, only: Sequence[str]) -> None:
    """Remove what is gone from the store."""
    for key in _local(folder):
        unit, _ = _split(key)
        if unit and unit not in units and _chosen(unit, only):
            _drop(folder / unit)
            table.forget(unit)
        elif not unit and key not in objects and _chosen(key, only):
            (folder / key).unlink()
            table.forget(key)


def _local(folder: Path) -> list[str]:
    keys = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(key for key in keys if visible(key))


def publish(folder: Path, url: str, held: Lease, *, without: Sequence[str] = ()) -> None:
    """Upload what is new or changed below ``folder``; killed at any point, the same call continues.

    A committed folder's manifest is put when all its files are there, and taken away before any of them is exchanged.
    Checkpoints that are gone here are removed there when a newer one is committed; nothing else is, unless it is named.

    Args:
        held: the lease of ``url``; looked at again before every commit.
        without: objects that are removed there, such as the error of an earlier attempt.

    Raises:
        InputError: STORE_BUSY when the lease was lost; STORE_DAMAGED when a file here is not what its manifest says;
            CLU_ codes.
    """
    _publish(folder, url, held, lambda table, key, version: False)
    with store_errors(url):
        for key in without:
            Store(url).remove(key)


@contextmanager
def writing(url: str, purpose: str) -> Iterator[tuple[Path, Lease]]:
    """Hold ``url``, bring its mirror up to date, and publish what the block has made of it, also when it fails.

    What an earlier block committed and could not publish is published first.  What changed in the store meanwhile, by
    other commands or by workers of this one, is left as it is there.

    Raises:
        InputError: STORE_BUSY, and those of ``fetch`` and ``publish``.
    """
    with lease(url, purpose) as held:
        _publish(mirror(url), url, held, _Table.moved_on)
        folder = fetch(url, held=held)
        try:
            yield folder, held
        except BaseException:
            with suppress(Exception), succession(held) as last:  # the block's error is the one to tell
                _publish(folder, url, last, _Table.moved_on)
            raise
        with succession(held) as last:
            _publish(folder, url, last, _Table.moved_on)


def _publish(folder: Path, url: str, held: Lease, leave: Callable[[_Table, str, str | None], bool]) -> None:
    store, home = writable(url), home_of(url)
    with store_errors(url), integrity.exclusive(home, purpose="publish", wait_s=_PATIENCE_S):
        upload = _Upload(folder, store, held, _Table(home / TABLE), store.listing())
        local = [(key, *_split(key)) for key in _local(folder)]
        proofs = {unit: key for key, unit, name in local if unit and name == MANIFEST}
        ours = [unit for unit, key in proofs.items() if not leave(upload.table, key, upload.there.get(key))]
        objects = [key for key, unit, _ in local if not unit and not leave(upload.table, key, upload.there.get(key))]
        try:
            upload.objects([key for key in objects if name_of(key) in _FIRST])
            for unit in ours:
                upload.unit(unit)
            upload.objects([key for key in objects if name_of(key) not in _FIRST])
            for unit in _outlived(proofs.keys(), ours, upload.there):
                upload.remove(unit)
        finally:
            upload.table.save()


@dataclass(frozen=True)
class _Upload:
    folder: Path
    store: Store
    held: Lease
    table: _Table
    there: Mapping[str, str]  # key -> version, as it was at first

    def objects(self, keys: Sequence[str]) -> None:
        digests = {key: _digest(self.folder / key) for key in keys}
        changed = [key for key in keys if digests[key] and not self.table.same(key, self.there.get(key), digests[key])]
        if changed:
            self.held.check()
        for key, version in _each(lambda key: self.store.put(key, self.folder / key), changed):
            self.table.note(key, version, digests[key])

    def unit(self, unit: str) -> None:
        proof, folder = f"{unit}/{MANIFEST}", self.folder / unit
        raw, found = (folder / MANIFEST).read_bytes(), self.there.get(proof)
        digest = hashlib.sha256(raw).hexdigest()
        if self.table.same(proof, found, digest):
            return
        self.held.check()
        if found is not None:
            if self.store.read(proof) == raw:
                self.table.note(proof, found, digest)
                return
            self.store.remove(proof)  # from here on readers see no such folder, never a mixture
        files = {f"{unit}/{key}": entry["sha256"] for key, entry in integrity.manifest(folder)["files"].items()}
        for key in self._below(unit):
            if key not in files and key != proof:
                self.store.remove(key)

        def put(key: str) -> str:
            if _digest(self.folder / key) != files[key]:
                raise InputError(
                    "STORE_DAMAGED",
                    where=f"{name_of(unit)}/{key.removeprefix(unit)[1:]}",
                    found="missing here, or content differs from what was committed; it was not published",
                    remedy="run `petscale verify`, then restore the folder from a copy or make it again",
                )
            return self.store.put(key, self.folder / key)

        wanted = [key for key in files if not self.table.same(key, self.there.get(key), files[key])]
        for key, version in _each(put, wanted):
            self.table.note(key, version, files[key])
            self.table.save()  # a killed publish continues from here
        self.held.check()
        version = self.store.put(proof, folder / MANIFEST)
        self.table.forget(unit)
        self.table.note(proof, version, digest)

    def remove(self, unit: str) -> None:
        self.held.check()
        self.store.remove(f"{unit}/{MANIFEST}")
        for key in self._below(unit):
            self.store.remove(key)
        self.table.forget(unit)

    def _below(self, unit: str) -> list[str]:
        return [key for key in self.there if key.startswith(f"{unit}/")]


def _outlived(local: Collection[str], ours: Sequence[str], there: Collection[str]) -> list[str]:
    """Checkpoints in the store, whole or half, that are gone here, beside a newer one that is ours here and there."""
    newest: dict[PurePosixPath, str] = {}
    for unit in map(PurePosixPath, ours):
        newest[unit.parent] = max(newest.get(unit.parent, ""), unit.name)
    gone = {PurePosixPath(unit) for unit, _ in map(_split, there) if unit and unit not in local}
    old = (unit for unit in gone if unit.parent.name == "checkpoints" and unit.name < newest.get(unit.parent, ""))
    return sorted(map(str, old))
