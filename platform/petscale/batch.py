"""Many scans into one folder: a record beside the results says which weights made which of them from which input.

The same command therefore continues: what is whole is kept, what is missing is made, and what is of other weights, or
of anyone else, is never touched.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petscale.console import console
from petscale.data.ingest import content_digest
from storage import integrity
from storage.errors import InputError, printable

RECORD = ".petscale.json"  # in the output folder


@dataclass(frozen=True)
class Work:
    """One result that is wanted.

    Args:
        name: of the file or folder to write; no two are alike.
        wanted: what it is made from, as JSON values: a result of anything else is made again.
        make: writes it to a place where nothing is, whole or not at all.
    """

    name: str
    wanted: Mapping[str, Any]
    make: Callable[[Path], None]


def read_record(output: Path, weights: str, names: Iterable[str]) -> dict[str, Any]:
    """Return what was written before; a folder with results of other weights, or of anyone else, is refused.

    Args:
        weights: digest of the weights.
        names: what is to be written there, or must not be there unless it is ours.

    Raises:
        InputError: DISK_EXISTS; STORE_DAMAGED for a record that cannot be read.
    """
    path = output / RECORD
    record: dict[str, Any] = {"weights": weights, "files": {}}
    if path.is_file():
        record = integrity.read_json(path, *record)
        if not isinstance(record["files"], dict) or not all(isinstance(one, dict) for one in record["files"].values()):
            raise integrity.not_ours(path)
    foreign = [name for name in names if (output / name).exists() and name not in record["files"]]
    if record["weights"] != weights or foreign or output.is_file():
        found = f"{printable(foreign[0])} is there already" if foreign else "a file"
        raise InputError(
            "DISK_EXISTS",
            where=output.name,
            found="results of other weights" if record["weights"] != weights else found,
            remedy="name a new folder",
        )
    return record


def make_all(output: Path, works: Sequence[Work], record: dict[str, Any]) -> list[Path]:
    """Make every result that is not there whole yet, with a line each.

    Args:
        output: the folder of results; made with the first of them, and gone again where there is none.
        works: all results that are wanted.
        record: what ``read_record`` returned.

    Returns:
        All results, in the order of ``works``.

    Raises:
        InputError: what is wrong with the one scan where there is only one; SET_REFUSED where several were given and
            some were refused.
    """
    made, refused = 0, 0
    for number, work in enumerate(works, 1):
        place = output / work.name
        if _is_whole(place, record["files"].get(work.name, {}), work.wanted):
            _say(number, works, "kept")
            continue
        record["files"][work.name] = dict(work.wanted)  # before the file: one that is there is then known to be ours
        output.mkdir(parents=True, exist_ok=True, mode=0o700)
        integrity.write_json(output / RECORD, record)
        try:
            _remove(place)
            work.make(place)
        except InputError as error:
            refused += 1
            _forget(output, record, work.name)
            if len(works) == 1:
                raise
            console.print(f"refused {printable(work.name)}: {error}", markup=False, soft_wrap=True)
            continue
        record["files"][work.name] = {**work.wanted, "output": _digest(place)}
        integrity.write_json(output / RECORD, record)
        made += 1
        _say(number, works, "written")
    console.print(
        f"{output.name}: {made} written, {len(works) - made - refused} already there, {refused} refused",
        markup=False,
        soft_wrap=True,
    )
    if refused:
        raise InputError(
            "SET_REFUSED",
            where=output.name,
            found=f"{refused} of {len(works)} files were refused"
            + (", the others are written" if refused < len(works) else ""),
            remedy="see the lines above, fix these files and run the same command again",
        )
    return [output / work.name for work in works]


def _is_whole(place: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    same = all(held.get(key) == value for key, value in wanted.items())
    return same and place.exists() and _digest(place) == held.get("output")


def _digest(place: Path) -> str:
    return integrity.file_digest(place) if place.is_file() else content_digest(place)


def _remove(place: Path) -> None:
    """Remove what was made there from another input, or what is not whole."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _forget(output: Path, record: dict[str, Any], name: str) -> None:
    """Take a refused result out of the record, and the folder away where it holds nothing else."""
    del record["files"][name]
    if not record["files"] and {path.name for path in output.iterdir()} == {RECORD}:
        (output / RECORD).unlink()
        output.rmdir()
        return
    integrity.write_json(output / RECORD, record)


def _say(number: int, works: Sequence[Work], what: str) -> None:
    console.print(f"{number}/{len(works)} {printable(works[number - 1].name)}: {what}", markup=False, soft_wrap=True)
