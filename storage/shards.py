"""Boxes of voxels out of shards, the files that ``layout`` writes: mapped, each chunk checked once, decoded in place.

A box of 64^3 voxels touches some 27 chunks, so what is done per chunk decides.  Chunks of nothing but zeros, the air
beside a patient, are recognised by their bytes and not decoded.  The others are decoded into one buffer that stays in
the processor's cache, and only the voxels that are wanted leave it.
"""

import mmap
import os
import weakref
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import integrity

OPEN = 128  # shards that a process holds open, two descriptors each
CHECKSUM = 4  # bytes of the crc32c behind each chunk and behind the index
RESIDUE = 0x48674BC7  # crc32c of any bytes with their crc32c behind them
HEADER = 16  # bytes of blosc's header

Span = tuple[int, slice, slice]  # number of a chunk along an axis, where its voxels go in a box, where they lie in it


class ChunkError(Exception):
    """Stored voxels are missing or not what was written; the text says where."""


@dataclass(frozen=True)
class Shards:
    """One stored array.

    Args:
        folder: of the array.
        shape: voxels along each axis.
        dtype: of the voxels.
        shard: edge lengths of a shard.
        chunk: edge lengths of a chunk, which divide those of a shard.
    """

    folder: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]

    def box(self, start: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[np.generic]:
        """Return the voxels of a box that lies in the array.

        Raises:
            ChunkError: with the place, ``shard 1/0/0, chunk 0, 2, 1``.
        """
        decompress, nothing = _decoder(), _nothing(self.chunk, self.dtype)
        found = np.empty(shape, self.dtype)
        decoded = np.empty(self.chunk, self.dtype)
        axes = [self._spans(axis, a, a + n) for axis, (a, n) in enumerate(zip(start, shape, strict=True))]
        for place in product(*axes):
            shard = self._open(place)
            for number, to, of in _pieces([spans[i] for spans, i in zip(axes, place, strict=True)], self._counts):
                coded = shard.chunk(number)
                if len(coded) == len(nothing) and coded.tobytes() == nothing:
                    found[to] = 0
                    continue
                try:
                    decompress(coded, decoded)
                except RuntimeError:
                    raise shard.error(number) from None
                found[to] = decoded[of]
        return found

    def whole(self) -> NDArray[np.generic]:
        """Return all voxels.

        Raises:
            ChunkError: as of a box.
        """
        return self.box((0,) * len(self.shape), self.shape)

    @property
    def _counts(self) -> tuple[int, ...]:
        """Chunks of a shard along each axis."""
        return tuple(n // edge for n, edge in zip(self.shard, self.chunk, strict=True))

    def _spans(self, axis: int, start: int, stop: int) -> dict[int, list[Span]]:
        """Return the chunks that hold ``start`` to ``stop`` of an axis, by the shard's number along it."""
        edge, count = self.chunk[axis], self.shard[axis] // self.chunk[axis]
        found: dict[int, list[Span]] = {}
        for chunk in range(start // edge, -(-stop // edge)):
            first, last = max(start, chunk * edge), min(stop, (chunk + 1) * edge)
            span = (
                chunk % count,
                slice(first - start, last - start),
                slice(first - chunk * edge, last - chunk * edge),
            )
            found.setdefault(chunk // count, []).append(span)
        return found

    def _open(self, place: tuple[int, ...]) -> "_Shard":
        name = "/".join(map(str, place))
        path = f"{self.folder}/c/{name}"
        try:
            # A file that was replaced, cut or removed while we read is another one, or none, and never read as before.
            status = os.stat(path)
            known = (status.st_size, status.st_ino, status.st_mtime_ns)
            return _opened(path, name, *known, self._counts, prod(self.chunk) * self.dtype.itemsize)
        except (OSError, ValueError):
            raise ChunkError(f"shard {name}, chunk ?") from None


def open_shards(folder: Path) -> Shards:
    """Open an array by its metadata; no shard is opened yet.

    Raises:
        ValueError, OSError: there is none, or it is not one as ``layout`` writes them.
    """
    try:
        with open(f"{folder}/zarr.json", "rb") as file:
            about = integrity.parse_json(file.read())
        (sharding,) = about["codecs"]
        inner = sharding["configuration"]
        grid, shape = about["chunk_grid"], tuple(about["shape"])
        shard, chunk = tuple(grid["configuration"]["chunk_shape"]), tuple(inner["chunk_shape"])
        names = [codec["name"] for codec in (sharding, *inner["codecs"], *inner["index_codecs"])]
        dtype: np.dtype[np.generic] = np.dtype({"float32": "<f4", "uint16": "<u2", "uint8": "u1"}[about["data_type"]])
        first = [codec.get("configuration", {}) for codec in (inner["codecs"][0], inner["index_codecs"][0])]
        separator = about["chunk_key_encoding"]["configuration"]["separator"]
        named = (about["zarr_format"], grid["name"], inner["index_location"], about["chunk_key_encoding"]["name"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise ValueError("not an array of a cohort") from None
    if (
        names != ["sharding_indexed", "bytes", "blosc", "crc32c", "bytes", "crc32c"]
        or (separator, named) != ("/", (3, "regular", "end", "default"))
        or any(bytes_.get("endian", "little") != "little" for bytes_ in first)  # bytes alone have none
        or not len(shape) == len(shard) == len(chunk) > 0
        or not all(type(n) is int and 0 < n < 2**31 for n in (*shape, *shard, *chunk))
        or any(n % edge for n, edge in zip(shard, chunk, strict=True))
    ):
        raise ValueError("not an array of a cohort")
    return Shards(str(folder.absolute()), shape, dtype, shard, chunk)


def _pieces(axes: list[list[Span]], counts: tuple[int, ...]) -> list[tuple[int, tuple[slice, ...], tuple[slice, ...]]]:
    """Return every chunk of a shard that a box touches: its number, where it goes, which part of it."""
    found: list[tuple[int, tuple[slice, ...], tuple[slice, ...]]] = [(0, (), ())]
    for spans, count in zip(axes, counts, strict=True):
        found = [(n * count + i, (*to, t), (*of, o)) for n, to, of in found for i, t, o in spans]
    return found


class _Shard:
    """One file, open: its bytes mapped, and the place of each chunk in it."""

    def __init__(self, path: str, name: str, size: int, counts: tuple[int, ...], decoded: int) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._name, self._counts, self._decoded = name, counts, decoded
        number = prod(counts)
        length = 16 * number + CHECKSUM
        if length > size:
            raise ValueError("shorter than its index")
        index = os.pread(self._file, length, size - length)
        if _checksum()(index) != RESIDUE:
            raise ValueError("the index fails its checksum")
        self._bytes = np.frombuffer(mmap.mmap(self._file, size, prot=mmap.PROT_READ), np.uint8)
        self._places: list[list[int]] = np.frombuffer(index, "<u8", 2 * number).reshape(number, 2).tolist()
        self._checked = bytearray(number)

    def chunk(self, number: int) -> NDArray[np.uint8]:
        """Return the bytes of a chunk, with its header and its checksum.

        Raises:
            ChunkError: they are missing, or fail the checksum.
        """
        offset, size = self._places[number]
        if not self._checked[number]:
            self._check(number, offset, size)
        return self._bytes[offset : offset + size]

    def error(self, number: int) -> ChunkError:
        """Return the error that names a chunk."""
        at = ", ".join(str(int(i)) for i in np.unravel_index(number, self._counts))
        return ChunkError(f"shard {self._name}, chunk {at}")

    def _check(self, number: int, offset: int, size: int) -> None:
        """Read a chunk for the first time: by a call, for where a disk fails the map would end the process."""
        if offset + size > len(self._bytes) or size < HEADER + CHECKSUM:
            raise self.error(number)
        try:
            coded = os.pread(self._file, size, offset)
        except OSError:
            raise self.error(number) from None
        if len(coded) < size or _checksum()(coded) != RESIDUE:
            raise self.error(number)
        decoded, _, encoded = np.frombuffer(coded, "<u4", 3, 4).tolist()
        if (decoded, encoded) != (self._decoded, size - CHECKSUM):  # else the buffer would keep another chunk's voxels
            raise self.error(number)
        self._checked[number] = 1


@lru_cache(maxsize=OPEN)
def _opened(
    path: str, name: str, size: int, inode: int, modified_ns: int, counts: tuple[int, ...], decoded: int
) -> _Shard:
    return _Shard(path, name, size, counts, decoded)


@cache
def _decoder() -> Any:
    from numcodecs import blosc  # a tenth of a second, and only those who read voxels need it

    blosc.use_threads = False  # as zarr does: a chunk is one block, and threads would wait for one lock
    return blosc.decompress


@cache
def _checksum() -> Any:
    import google_crc32c

    return google_crc32c.value


@cache
def _nothing(chunk: tuple[int, ...], dtype: np.dtype[np.generic]) -> bytes:
    """Return what ``layout`` writes for a chunk of zeros; another version of blosc may have written it otherwise."""
    from numcodecs import blosc

    coded = bytes(blosc.compress(np.zeros(chunk, dtype), b"lz4", 5, blosc.SHUFFLE))
    checksum: int = _checksum()(coded)
    return coded + checksum.to_bytes(CHECKSUM, "little")
