"""Tiles become the volume they were cut from: every voxel once, in order, a tile's depth at a time."""

import tracemalloc
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.patches import PatchLocation
from storage.stitch import stitch, window


def cut(volume: NDArray[Any], location: PatchLocation) -> NDArray[Any]:
    """The tile, with numbers that must not matter where it passes the volume."""
    tile = np.full(location.shape, 1e6, np.float32)
    inside = tuple(slice(a, min(b, n)) for a, b, n in zip(location.start, location.stop, volume.shape, strict=True))
    part = volume[inside]
    tile[tuple(slice(0, n) for n in part.shape)] = part
    return tile


def run(
    volume: NDArray[Any], tile: Any, overlap: Any, batch: int = 1, synthesize: Any = None
) -> list[tuple[int, NDArray[Any]]]:
    slabs = []
    stitch(
        volume.shape,
        tile,
        overlap,
        synthesize or (lambda group: [cut(volume, location) for location in group]),
        lambda z0, slab: slabs.append((z0, slab.copy())),
        batch=batch,
    )
    return slabs


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_what_is_cut_up_comes_back(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 26)] * 3))
    tile = data.draw(st.tuples(*[st.integers(1, 18)] * 3))
    overlap = tuple(data.draw(st.integers(0, edge - 1)) for edge in tile)
    batch = data.draw(st.integers(1, 5))
    volume = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=shape).astype(np.float32)
    slabs = run(volume, tile, overlap, batch)
    covered = [z for z0, slab in slabs for z in range(z0, z0 + len(slab))]
    assert covered == list(range(shape[0])), "every slice once, in order"
    assert max(len(slab) for _, slab in slabs) <= tile[0]
    assert all(slab.dtype == np.float32 and slab.shape[1:] == shape[1:] for _, slab in slabs)
    np.testing.assert_allclose(np.concatenate([slab for _, slab in slabs]), volume, rtol=1e-6, atol=1e-6)


def test_a_slab_stays_what_it_was_when_it_is_kept() -> None:
    volume = np.random.default_rng(1).normal(size=(20, 6, 6)).astype(np.float32)
    kept = []
    stitch(volume.shape, (8, 6, 6), (4, 4, 4), lambda g: [cut(volume, x) for x in g], lambda z, slab: kept.append(slab))
    np.testing.assert_allclose(np.concatenate(kept), volume, atol=1e-6)


@given(st.integers(1, 40), st.data())
def test_the_window_is_symmetric_positive_and_flat_inside(edge: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, edge - 1))
    w = window(edge, overlap)
    assert (w > 0).all()
    assert (w <= 1).all()
    assert (w == w[::-1]).all()
    assert (w[overlap : edge - overlap] == 1).all()


@pytest.mark.parametrize("overlap", [2, 5, 8])
def test_neighbouring_ramps_sum_to_one(overlap: int) -> None:
    w = window(20, overlap)
    np.testing.assert_allclose(w[-overlap:] + w[:overlap], 1.0, atol=1e-6)


def test_a_step_between_tiles_becomes_a_ramp() -> None:
    """Tiles that disagree by one blend without a jump larger than the ramp's slope."""
    overlap = 7
    numbers = iter([0.0, 1.0])
    slabs = run(
        np.zeros((10, 10, 33), np.float32), (10, 10, 20), (0, 0, overlap),
        synthesize=lambda group: [np.full(location.shape, next(numbers), np.float32) for location in group],
    )  # fmt: skip
    line = slabs[0][1][5, 5]
    assert line[0] == 0.0
    assert line[-1] == 1.0
    assert np.diff(line).min() >= -1e-6
    assert np.diff(line).max() <= 1 / (overlap + 1) + 1e-6


def test_batches_are_full_and_hold_one_row_of_tiles() -> None:
    groups = []

    def synthesize(group: Sequence[PatchLocation]) -> Iterable[NDArray[Any]]:
        groups.append(group)
        return (np.zeros(location.shape, np.float32) for location in group)

    run(np.zeros((16, 16, 16), np.float32), (8, 8, 8), (0, 0, 0), batch=3, synthesize=synthesize)
    assert [len(group) for group in groups] == [3, 1, 3, 1]
    assert all(len({location.start[0] for location in group}) == 1 for group in groups)


def test_too_few_tiles_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        run(np.zeros((8, 8, 8), np.float32), (8, 8, 8), (0, 0, 0), synthesize=lambda group: [])


def test_memory_is_a_few_slabs_and_not_the_volume() -> None:
    shape, tile = (800, 64, 64), (16, 32, 32)
    zeros = np.zeros(tile, np.float32)
    tracemalloc.start()
    stitch(shape, tile, (4, 4, 4), lambda group: [zeros for _ in group], lambda z0, slab: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    slab = tile[0] * shape[1] * shape[2] * 4
    assert peak < 6 * slab + 2**20
    assert peak < 0.3 * np.prod(shape) * 4
