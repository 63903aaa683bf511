"""Shards: what zarr wrote is read bit by bit as zarr reads it, and what is damaged is named, never a value."""

import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage import layout, shards
from storage.shards import ChunkError, open_shards

SHAPE = (70, 40, 37)
RNG = np.random.default_rng(5)
VOXELS = RNG.normal(size=SHAPE).astype(np.float32) * (np.arange(70) < 50)[:, None, None]
VOXELS[:, :32, :32][32:64] = 0  # one chunk is nothing but zeros


def write(folder: Path, voxels: NDArray[Any], depth: int | None = None) -> Path:
    layout.create_array(folder, voxels.shape, voxels.dtype, depth=depth)
    for z0 in range(0, len(voxels), depth or len(voxels)):
        layout.write_shard(folder, z0, voxels[z0 : z0 + (depth or len(voxels))])
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards") / "0", VOXELS, depth=32)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in SHAPE]))
def test_a_box_is_a_slice_across_chunks_and_shards(stored: Path, axes: tuple[tuple[int, int], ...]) -> None:
    box = tuple(slice(a, min(n, a + edge)) for (a, edge), n in zip(axes, SHAPE, strict=True))
    found = open_shards(stored).box(tuple(s.start for s in box), tuple(s.stop - s.start for s in box))
    assert found.flags.writeable
    assert found.flags.c_contiguous
    assert found.tobytes() == VOXELS[box].tobytes()


@pytest.mark.parametrize(
    "voxels",
    [
        RNG.integers(0, 9, (40, 33, 20)).astype(np.uint16),
        RNG.integers(0, 9, (3, 5, 6, 7)).astype(np.uint8),
        RNG.normal(size=(2, 5, 6, 7)).astype(np.float32),
        np.zeros((33, 1, 1), np.float32),
        np.full((33, 1, 1), -0.0, np.float32),  # another zero: its bits are not those of air
        np.full((40, 3, 3), np.nan, np.float32),
    ],
    ids=["labels", "shares", "4d", "zeros", "negative", "nan"],
)
def test_every_kind_of_array_is_read_whole_as_zarr_reads_it(tmp_path: Path, voxels: NDArray[Any]) -> None:
    layout.write_array(tmp_path / "a", voxels)
    found = open_shards(tmp_path / "a").whole()
    assert found.dtype == voxels.dtype
    assert found.tobytes() == voxels.tobytes() == np.asarray(zarr.open_array(tmp_path / "a")[...]).tobytes()


def test_air_is_not_decoded(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are those that zarr writes for zeros."""
    monkeypatch.setattr(shards, "_decoder", lambda: lambda coded, decoded: pytest.fail("it decodes"))
    found = open_shards(stored).box((32, 0, 0), (32, 32, 32))
    assert not found.any()
    with pytest.raises(pytest.fail.Exception):
        open_shards(stored).box((0, 0, 0), (1, 1, 1))


def _in_file(stored: Path, shard: int, change: Callable[[bytearray], bytearray | None]) -> None:
    path = stored / f"c/{shard}/0/0"
    raw = bytearray(path.read_bytes())
    path.write_bytes(change(raw) or raw)
    shards._opened.cache_clear()  # a test is faster than a file's time of change


def _flip(at: int) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        raw[at] ^= 1

    return change


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write(tmp_path / "0", VOXELS, depth=32)


def test_a_flipped_bit_is_told_by_shard_and_chunk_and_others_are_read(own: Path) -> None:
    array = open_shards(own)
    offset = shards._Shard(f"{own}/c/0/0/0", "0/0/0", (own / "c/0/0/0").stat().st_size, (1, 2, 2), 4 * 32**3)._places
    _in_file(own, 0, _flip(offset[2][0] + 700))  # chunk 0, 1, 0
    with pytest.raises(ChunkError, match=r"^shard 0/0/0, chunk 0, 1, 0$"):
        array.box((0, 0, 0), (8, 40, 8))
    assert (array.box((0, 0, 0), (8, 32, 37)) == VOXELS[:8, :32]).all()
    assert (array.box((32, 0, 0), (32, 40, 37)) == VOXELS[32:64]).all()


@pytest.mark.parametrize(
    "change",
    [_flip(-2), _flip(-30), lambda raw: raw[:-1], lambda raw: raw[:40], lambda raw: bytearray(b"\0")],
    ids=["checksum of the index", "index", "cut", "shorter than an index", "nothing in it"],
)
def test_a_damaged_index_is_told(own: Path, change: Callable[[bytearray], bytearray | None]) -> None:
    _in_file(own, 1, change)
    with pytest.raises(ChunkError, match=r"^shard 1/0/0, chunk \?$"):
        open_shards(own).box((30, 0, 0), (4, 4, 4))


def _crc(raw: bytes) -> bytes:
    return int(shards._checksum()(raw)).to_bytes(4, "little")


@pytest.mark.parametrize(
    "entry", [(2**64 - 1, 2**64 - 1), (0, 0), (0, 8), (10, 2**40), (2**63, 100)], ids=["missing", *"abcd"]
)
def test_an_index_that_points_elsewhere_is_never_followed(own: Path, entry: tuple[int, int]) -> None:
    def change(raw: bytearray) -> bytearray:
        index = raw[-(4 * 16 + 4) : -4]
        index[:16] = np.array(entry, "<u8").tobytes()
        return raw[: -(4 * 16 + 4)] + index + _crc(bytes(index))

    _in_file(own, 0, change)
    with pytest.raises(ChunkError, match=r"^shard 0/0/0, chunk 0, 0, 0$"):
        open_shards(own).box((0, 0, 0), (4, 4, 4))


@pytest.mark.parametrize(
    ("at", "value"), [(4, 64), (12, 99), (8, 0), (1, 77)], ids=["length", "size", "block", "codec"]
)
def test_a_header_that_lies_with_a_good_checksum_gives_no_values(own: Path, at: int, value: int) -> None:
    """Nothing of the chunk that was decoded before is left in the buffer."""

    def change(raw: bytearray) -> bytearray:
        offset, size = np.frombuffer(bytes(raw[-(4 * 16 + 4) : -4]), "<u8", 2).tolist()
        chunk = raw[offset : offset + size - 4]
        chunk[at : at + (1 if at == 1 else 4)] = value.to_bytes(1 if at == 1 else 4, "little")
        raw[offset : offset + size] = chunk + _crc(bytes(chunk))
        return raw

    _in_file(own, 0, change)
    with pytest.raises(ChunkError, match=r"^shard 0/0/0, chunk 0, 0, 0$"):
        open_shards(own).box((0, 0, 0), (4, 40, 4))


def test_what_changes_under_a_reader_is_read_anew_or_told(own: Path, tmp_path: Path) -> None:
    array = open_shards(own)
    assert array.box((0, 0, 0), (1, 40, 37)).tobytes() == VOXELS[:1].tobytes()
    other = write(tmp_path / "other", VOXELS + 1, depth=32)
    (other / "c/0/0/0").replace(own / "c/0/0/0")
    assert array.box((0, 0, 0), (1, 40, 37)).tobytes() == (VOXELS[:1] + 1).tobytes()
    (own / "c/0/0/0").write_bytes(b"")  # a map of it would end the process
    for _ in range(2):
        with pytest.raises(ChunkError, match=r"^shard 0/0/0, chunk \?$"):
            array.box((0, 0, 0), (1, 40, 37))
        (own / "c/0/0/0").unlink(missing_ok=True)


def test_threads_share_an_array_and_processes_get_it(stored: Path) -> None:
    array = pickle.loads(pickle.dumps(open_shards(stored)))
    with ThreadPoolExecutor(4) as pool:
        for z, found in enumerate(pool.map(lambda z: array.box((z, 0, 0), (1, 40, 37)), range(70))):
            assert found.tobytes() == VOXELS[z : z + 1].tobytes()


def test_shards_that_are_not_used_are_closed(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    close = os.close

    def counted(file: int) -> None:
        closed.append(file)
        close(file)

    monkeypatch.setattr("os.close", counted)
    shards._opened.cache_clear()
    array = open_shards(stored)
    array.whole()
    closed.clear()
    shards._opened.cache_clear()
    assert len(closed) == 3
    assert array.whole().tobytes() == VOXELS.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"codecs": []},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [33, 64, 64]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [32, 64]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 64, 64]}}},
        {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}}},
        {"chunk_key_encoding": None},
        {"data_type": "float64"},
        {"data_type": ["float32"]},
        {"shape": [70, 40, "37"]},
        {"shape": [70, 40, True]},
        {"shape": 70},
        {"zarr_format": 2},
    ],
    ids=str,
)
def test_metadata_of_another_array_is_refused(own: Path, change: dict[str, Any]) -> None:
    about = json.loads((own / "zarr.json").read_text())
    (own / "zarr.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(ValueError, match="not an array of a cohort"):
        open_shards(own)
