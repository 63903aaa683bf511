"""Atomic writes, manifests with digests, and one writer at a time.

A directory is committed when its ``MANIFEST.json`` is there; the rename that puts it there is the only commit point.
Codec checksums find a flipped bit in a chunk that is read.  The manifest also finds a missing, emptied, truncated,
swapped or stale file, and names it.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from storage.errors import InputError

MANIFEST = "MANIFEST.json"
UNFINISHED = ".partial"  # ends the name of what is being made
SYNCING = 8  # files at a time that are made durable: a disk answers to all at once what waits for it together
FAILING = (errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ENODEV)  # of a disk, or of a file system that is mounted


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable.

    Raises:
        InputError: those of ``disk_errors``.
    """
    with disk_errors(folder):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a hidden file beside ``path`` that takes its place when the block ends well, and is removed when not.

    A crash leaves the old file or the new one; the new one is durable when the block has ended.  A file that is new can
    be read by its user alone; one that takes another's place may be read by whoever could before.

    Raises:
        InputError: DISK_FULL or DISK_DENIED.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{UNFINISHED}")
    try:
        with disk_errors(path):
            forget_unfinished(path)
            with os.fdopen(_claimed(partial), "wb") as file:
                with suppress(FileNotFoundError):
                    os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, path)  # while it is held
            fsync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def forget_unfinished(path: Path) -> None:
    """Remove what killed processes were making to take the place of ``path``: hidden files or folders beside it."""
    _forget(path.parent, f".{path.name}.")


def _forget(folder: Path, prefix: str) -> None:
    names: list[str] = []
    with suppress(OSError):  # what may be written may not always be listed
        names = os.listdir(folder)
    for name in names:
        if not (name.startswith(prefix) and name.endswith(UNFINISHED)):
            continue
        left = folder / name
        with suppress(OSError):  # it has just ended, it is another user's, or this file system knows no locks
            handle = os.open(left, os.O_RDONLY)
            try:
                # Its name may be another's by now, and what we opened the finished file.
                if _try_lock(handle) and os.path.samestat(os.stat(left), os.fstat(handle)):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(handle)


@contextmanager
def scratch(place: Path | None = None, prefix: str = "petscale-") -> Iterator[Path]:
    """Give a folder for what is needed meanwhile, removed at the end; those of killed processes are removed before.

    Args:
        place: in which folder; None for the system's own for temporary files.
        prefix: of its name.
    """
    home = Path(tempfile.gettempdir()) if place is None else place
    _forget(home, prefix)
    folder, handle = claimed_folder(home, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def claimed_folder(home: Path, prefix: str, suffix: str = UNFINISHED) -> tuple[Path, int]:
    """Make a folder that is claimed as long as the handle, which is returned with it, is open."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=home))
        with suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY)
            if claim(handle) and folder.exists():  # nobody took it for a dead one's before it was claimed
                return folder, handle
            os.close(handle)


def claim(handle: int) -> bool:
    """Say that what is open is being made by a process that lives; the kernel forgets it when the process dies.

    Returns:
        Whether it is ours: False where somebody is just removing it.  A file system without locks refuses nobody.
    """
    try:
        return _try_lock(handle)
    except OSError:
        return True


def _claimed(partial: Path) -> int:
    """Make a file that is claimed from when others can see it: one that was removed in between is made again."""
    while True:
        handle = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with suppress(FileNotFoundError):
            if claim(handle) and os.path.samestat(os.stat(partial), os.fstat(handle)):
                return handle
        os.close(handle)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside ``folder`` that takes its name when the block ends well, and is gone when not.

    Raises:
        InputError: DISK_EXISTS.
    """
    if folder.exists():
        raise InputError("DISK_EXISTS", where=folder.name, found="it exists already", remedy="give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    forget_unfinished(folder)
    partial, handle = claimed_folder(folder.parent, f".{folder.name}.")
    try:
        yield partial
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(handle)
    fsync_folder(folder.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` so that a crash leaves the old file or the new one, durable when this returns."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as ``write_bytes`` does."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: object) -> bytes:
    """Return JSON as petscale's files have it."""
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def parse_json(content: bytes | str) -> Any:
    """Return what JSON holds.

    Raises:
        ValueError: no JSON, also where it is nested so deeply that no parser follows.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, *fields: str) -> dict[str, Any]:
    """Read a file of fields by name that petscale wrote.

    Args:
        path: of the file.
        fields: those that it must have.

    Raises:
        InputError: STORE_DAMAGED.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content.keys() >= set(fields):
        raise not_ours(path)
    return content


def not_ours(path: Path) -> InputError:
    """Return the error for a small file that petscale did not write so."""
    return InputError(
        "STORE_DAMAGED",
        where=path.name,
        found="not what petscale wrote there",
        remedy="restore it from a copy, or remove it and run the command that made it again",
    )


def json_safe(content: object) -> object:
    """Return ``content`` with null in place of numbers that JSON does not have: infinities and NaN; tuples as lists."""
    match content:
        case float() if not math.isfinite(content):
            return None
        case dict():
            return {key: json_safe(value) for key, value in content.items()}
        case list() | tuple():
            return [json_safe(value) for value in content]
        case _:
            return content


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's error about a full disk, a read-only folder or a failing disk into one line.

    Raises:
        InputError: DISK_FULL, DISK_DENIED or DISK_ERROR.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free_mib = shutil.disk_usage(_existing(path)).free / 2**20
            raise InputError(
                "DISK_FULL",
                where=path.name,
                found=f"no space left while writing ({free_mib:.0f} MiB free)",
                remedy="free space or choose another folder, then run the same command again: committed work is kept",
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise InputError(
                "DISK_DENIED", where=path.name, found="not writable", remedy="choose a folder you may write to"
            ) from None
        if error.errno in FAILING:
            raise InputError(
                "DISK_ERROR",
                where=path.name,
                found=f"{error.strerror}: what was being written may not be on the disk",
                remedy="check the disk or its server, then run the same command again: committed work is kept",
            ) from None
        raise


def check_new(path: Path, option: str) -> None:
    """Refuse to write over anything.

    Args:
        path: of the file or folder that is to be made.
        option: what it is called on the command line.

    Raises:
        InputError: DISK_EXISTS.
    """
    if path.exists():
        raise InputError("DISK_EXISTS", where=path.name, found="exists already", remedy=f"choose another {option}")


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse before the work starts when ``folder``'s disk cannot hold ``needed_bytes``.

    Raises:
        InputError: DISK_FULL.
    """
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed_bytes:
        raise InputError(
            "DISK_FULL",
            where=folder.name,
            found=f"{free / 2**20:.0f} MiB free, about {needed_bytes / 2**20:.0f} MiB needed",
            remedy="free space or choose another folder",
        )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


@contextmanager
def exclusive(folder: Path, *, purpose: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold ``folder`` for writing; the kernel frees it when the process dies, so no stale lock can block anyone.

    Args:
        folder: made if it does not exist.
        purpose: what has to wait, for the message.
        wait_s: how long to wait for another writer that is about to end.

    Raises:
        InputError: STORE_BUSY when another process still writes there.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while not _try_lock(handle):
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise _busy(folder, purpose)
        yield
    finally:
        os.close(handle)


@contextmanager
def alongside(folder: Path, *, purpose: str) -> Iterator[None]:
    """Hold ``folder`` for writing beside others that do so in parts of their own; nobody holds it alone meanwhile.

    Args:
        folder: made if it does not exist.
        purpose: what has to wait, for the message.

    Raises:
        InputError: STORE_BUSY when another process holds it alone.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if not _try_lock(handle, fcntl.LOCK_SH):
            raise _busy(folder, purpose)
        yield
    finally:
        os.close(handle)


def _busy(folder: Path, purpose: str) -> InputError:
    return InputError(
        "STORE_BUSY",
        where=folder.name,
        found=f"another process is writing here ({purpose} must wait)",
        remedy="wait for it to end, or stop it, then run the same command again",
    )


def _try_lock(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Damage:
    """One thing that ``verify`` found wrong: ``key`` is the file below the committed folder."""

    key: str
    problem: str


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[str]:
    keys = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(key for key in keys if key != MANIFEST)


def root_digest(entries: Mapping[str, object], facts: Mapping[str, object]) -> str:
    """Digest of a whole folder: every key, size and digest, and the manifest's own facts."""
    return hashlib.sha256(json.dumps([entries, facts], sort_keys=True).encode()).hexdigest()


def commit(folder: Path, facts: Mapping[str, object]) -> str:
    """Make every file below ``folder`` durable, list it with size and digest, and write the manifest last.

    Args:
        facts: what else the manifest states, for instance the case name.

    Returns:
        The root digest.
    """
    keys = _files(folder)
    with ThreadPoolExecutor(SYNCING) as pool:
        entries = dict(zip(keys, pool.map(_durable, [folder / key for key in keys]), strict=True))
        list(pool.map(fsync_folder, sorted({(folder / key).parent for key in keys})))
    root = root_digest(entries, facts)
    write_json(folder / MANIFEST, {"facts": facts, "files": entries, "root": root})
    return root


def _durable(path: Path) -> dict[str, object]:
    """Make one file durable; returns its entry of a manifest."""
    with disk_errors(path), path.open("rb") as file:
        entry = {
            "size": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }
        os.fsync(file.fileno())
    return entry


def manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest and check it against its own root digest.

    Raises:
        InputError: STORE_UNCOMMITTED when there is none, STORE_DAMAGED when it does not agree with itself.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            "STORE_UNCOMMITTED",
            where=folder.name,
            found="no manifest",
            remedy="restore it from a copy, or remove the folder and run the command that makes it again",
        )
    try:
        content: dict[str, Any] = parse_json(path.read_bytes())
        whole = content["root"] == root_digest(content["files"], content["facts"]) and _listed(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(
            "STORE_DAMAGED",
            where=f"{folder.name}/{MANIFEST}",
            found="the manifest does not agree with its own digest",
            remedy="restore the folder from a copy or make it again",
        )
    return content


def _listed(content: Mapping[str, Any]) -> bool:
    """Whether a manifest lists files below its folder, each with size and digest, and facts by name."""
    return isinstance(content["facts"], dict) and all(
        isinstance(entry["size"], int)
        and isinstance(entry["sha256"], str)
        and not key.startswith("/")
        and ".." not in key.split("/")
        for key, entry in content["files"].items()
    )


def check_presence(folder: Path) -> dict[str, Any]:
    """Quick check at opening: every file of the manifest is there in its full size, and metadata is as committed.

    A missing shard would otherwise read as zeros, and a flipped bit in a shape, a unit or an affine would pass: only
    chunks carry checksums of their own.

    Raises:
        InputError: STORE_DAMAGED naming the file.
    """
    content = manifest(folder)
    for key, entry in content["files"].items():
        path = folder / key
        size = path.stat().st_size if path.is_file() else -1
        if size != entry["size"]:
            raise InputError(
                "STORE_DAMAGED",
                where=f"{folder.name}/{key}",
                found="missing" if size < 0 else f"{size} bytes instead of {entry['size']}",
                remedy="run `petscale verify`, then restore the case from a copy, or remove and ingest it again",
            )
        if path.name == "zarr.json" and file_digest(path) != entry["sha256"]:
            raise InputError(
                "STORE_DAMAGED",
                where=f"{folder.name}/{key}",
                found="content differs from what was committed",
                remedy="run `petscale verify`, then restore the case from a copy, or remove and ingest it again",
            )
    return content


def verify(folder: Path) -> list[Damage]:
    """Read every byte below ``folder`` and name whatever differs from its manifest."""
    try:
        content = manifest(folder)
    except InputError as error:
        return [Damage(MANIFEST, error.found)]
    damage = []
    present = set(_files(folder))
    for key, entry in content["files"].items():
        path = folder / key
        if key not in present:
            damage.append(Damage(key, "missing"))
        elif path.stat().st_size != entry["size"]:
            damage.append(Damage(key, f"{path.stat().st_size} bytes instead of {entry['size']}"))
        elif file_digest(path) != entry["sha256"]:
            damage.append(Damage(key, "content differs from what was committed (flipped, swapped or stale)"))
    damage.extend(Damage(key, "was never committed") for key in sorted(present - content["files"].keys()))
    return damage
