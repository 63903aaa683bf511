"""B1, random patches of one volume, its file in the memory of the system, every chunk decoded anew."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import zarr
from numcodecs import blosc
from numpy.typing import NDArray

from benchmarks.performance.measure import Benchmark
from benchmarks.performance.volumes import Shape, cohort, missing, pet_like
from storage.layout import CHUNK
from storage.patches import PatchLocation

NNUNET_CHUNK, NNUNET_BLOCK = 128, 32  # its layout of a volume in blosc2, for patches of 64 and 128 voxels
BLOSC2 = "blosc2, nnU-Net's layout"

Read = Callable[[Shape], NDArray[np.float32]]


def patches(folder: Path, shape: Shape, *, edge: int, count: int) -> Benchmark:
    """Make B1: every way reads the same ``count`` places."""
    voxels = pet_like(shape)
    image = cohort(folder / "cohort", {"a": {"full": voxels}}).case("a").image("full")
    rng = np.random.default_rng(1)
    places = [tuple(int(rng.integers(n - edge + 1)) for n in shape) for _ in range(count)]
    np.save(folder / "raw.npy", voxels)
    raw = np.load(folder / "raw.npy", mmap_mode="r")
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": 1}})
    kept = {"driver": "file", "path": str((image.folder / "0").absolute())}
    by_tensorstore = tensorstore.open({"driver": "zarr3", "kvstore": kept}, read=True, context=context).result()
    by_zarr = zarr.open_array(image.folder / "0", mode="r")
    readers: dict[str, Read] = {
        "tensorstore, the same files": lambda at: by_tensorstore[_box(at, edge)].read().result(),
        "zarr-python, the same files": lambda at: np.asarray(by_zarr[_box(at, edge)]),
    }
    absent = missing(blosc2=BLOSC2)
    if not absent:
        for name, filtered in ((BLOSC2, "SHUFFLE"), (f"{BLOSC2}, no filter", "NOFILTER")):
            readers[name] = _blosc2(folder / f"{filtered}.b2nd", voxels, filtered, edge)
    shape_of_patch = (edge, edge, edge)
    return Benchmark(
        name="B1 patches",
        does=f"{count} random patches of {edge}^3 of {' x '.join(map(str, shape))} float32, PET-like, chunks decoded "
        "anew, files in memory",
        ours=partial(_all, lambda at: image.patch(PatchLocation(at, shape_of_patch)), places),
        peers={name: partial(_all, read, places) for name, read in readers.items()},
        bounds={
            "LZ4 alone: the chunks decoded, nothing read, checked or copied": _decoding(voxels, places, edge),
            "a mapped file of float32": partial(_all, lambda at: np.array(raw[_box(at, edge)]), places),
        },
        agree=_equal,
        others={},
        absent=absent,
    )


def _box(at: Shape, edge: int) -> tuple[slice, ...]:
    return tuple(slice(a, a + edge) for a in at)


def _all(read: Read, places: list[Shape]) -> list[NDArray[np.float32]]:
    """Read every place; of each patch some voxels are kept, of the last all: to hold them all is the system's time."""
    found = []
    for at in places:
        patch = read(at)
        found.append(patch[::5, ::7, ::3].copy())
    return [*found, patch]


def _equal(ours: list[NDArray[np.float32]], theirs: list[NDArray[np.float32]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def _blosc2(file: Path, voxels: NDArray[np.float32], filtered: str, edge: int) -> Read:
    """Return a reader of a file as nnU-Net has it, kept open, mapped, one thread."""
    blosc2: Any = import_module("blosc2")
    chunks, blocks = (tuple(min(n, most) for n in voxels.shape) for most in (NNUNET_CHUNK, NNUNET_BLOCK))
    how = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter[filtered]], "nthreads": 1}
    blosc2.asarray(voxels, chunks=chunks, blocks=blocks, urlpath=str(file), mode="w", cparams=how)
    opened = blosc2.open(str(file), mmap_mode="r", dparams={"nthreads": 1})
    return lambda at: opened[_box(at, edge)]


def _decoding(voxels: NDArray[np.float32], places: list[Shape], edge: int) -> Callable[[], None]:
    """Return what decodes the chunks that the places touch, held compressed in memory, all into one buffer."""
    padded = np.pad(voxels, [(0, -n % CHUNK) for n in voxels.shape])
    coded: dict[Shape, bytes] = {}
    order = []
    for at in places:
        low = [a // CHUNK for a in at]
        for more in np.ndindex(*((a + edge - 1) // CHUNK + 1 - b for a, b in zip(at, low, strict=True))):
            z, y, x = (a + b for a, b in zip(low, more, strict=True))
            chunk = np.ascontiguousarray(padded[_box((z * CHUNK, y * CHUNK, x * CHUNK), CHUNK)])
            coded.setdefault((z, y, x), blosc.compress(chunk, b"lz4", 5, blosc.SHUFFLE))
            order.append((z, y, x))
    buffer = np.empty((CHUNK, CHUNK, CHUNK), np.float32)

    def decode() -> None:
        for which in order:
            blosc.decompress(coded[which], buffer)

    return decode
