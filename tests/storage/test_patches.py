"""Where patches lie: inside, the same for the same key, by the sampler that was asked for, and nothing left out."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage import patches
from storage.patches import CELL, SAMPLERS, PatchLocation, SamplingMaps
from storage.randomness import generator

DRAWS = 4000
ONE = (1, 1, 1)  # a patch of one voxel is its own centre, so frequencies show the sampler itself


def sampling_maps(
    shape: tuple[int, int, int] = (32, 24, 20), body: Any = None, uptake: Any = None, **rois: Any
) -> SamplingMaps:
    cells = tuple(-(-n // CELL) for n in shape)
    rng = np.random.default_rng(1)
    return SamplingMaps(
        shape=shape,
        body=rng.random(cells, dtype=np.float32) if body is None else body,
        uptake=rng.random(cells, dtype=np.float32) if uptake is None else uptake,
        rois=rois,
    )


def cell_of(location: PatchLocation) -> tuple[int, ...]:
    return tuple(a // CELL for a in location.start)


def frequencies(
    known: SamplingMaps, sampler: str, draws: int = DRAWS, shape: tuple[int, int, int] = ONE
) -> NDArray[Any]:
    counts = np.zeros(known.body.shape)
    for i in range(draws):
        counts[cell_of(patches.draw(known, shape, {sampler: 1.0}, generator(7, i)))] += 1
    return counts / draws


def agree(found: NDArray[Any], sampler: Any, draws: int = DRAWS) -> None:
    """Every cell within five standard deviations of its probability, and none where it is zero."""
    sampler = sampler / sampler.sum()
    assert (found[sampler == 0] == 0).all()
    assert (np.abs(found - sampler) <= 5 * np.sqrt(sampler * (1 - sampler) / draws) + 1e-9).all()


def single(cells: tuple[int, ...], *where: tuple[int, ...]) -> NDArray[Any]:
    region = np.zeros(cells, np.float32)
    for cell in where:
        region[cell] = 1.0
    return region


@given(st.tuples(*[st.integers(-9, 90)] * 3), st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(0, 9)] * 3))
def test_a_location_grows_around_its_middle(
    start: tuple[int, int, int], shape: tuple[int, int, int], halo: tuple[int, int, int]
) -> None:
    location = PatchLocation(start, shape)
    grown = location.grown(halo)
    assert grown.start == tuple(a - h for a, h in zip(start, halo, strict=True))
    assert grown.stop == tuple(b + h for b, h in zip(location.stop, halo, strict=True))
    assert grown.grown(tuple(-h for h in halo)) == location  # type: ignore[arg-type]
    assert str(location).count(":") == 3


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(SAMPLERS)), st.integers(0, 2**31))
def test_every_draw_lies_inside_and_repeats(data: st.DataObject, sampler: str, key: int) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 40)] * 3))
    patch: Any = tuple(data.draw(st.integers(1, n)) for n in shape)
    cells = tuple(-(-n // CELL) for n in shape)
    known = sampling_maps(shape, lesion_1=single(cells, (0, 0, 0)), liver=single(cells, tuple(n - 1 for n in cells)))
    location = patches.draw(known, patch, {sampler: 1.0}, generator(key))
    assert location.shape == patch
    assert all(a >= 0 for a in location.start)
    assert all(b <= n for b, n in zip(location.stop, shape, strict=True))
    assert patches.draw(known, patch, {sampler: 1.0}, generator(key)) == location


def test_order_of_draws_does_not_matter() -> None:
    known = sampling_maps()
    forward = [patches.draw(known, (8, 8, 8), {"body": 1.0}, generator(3, i)) for i in range(20)]
    backward = [patches.draw(known, (8, 8, 8), {"body": 1.0}, generator(3, i)) for i in reversed(range(20))]
    assert forward == backward[::-1]
    assert len(set(forward)) > 10


def test_uniform_reaches_every_start_alike() -> None:
    known = sampling_maps((6, 5, 4))
    counts = np.zeros((4, 3, 3))
    for i in range(DRAWS):
        counts[patches.draw(known, (3, 3, 2), {"uniform": 1.0}, generator(1, i)).start] += 1
    agree(counts / DRAWS, np.ones((4, 3, 3)))


def test_body_follows_the_mask() -> None:
    known = sampling_maps((32, 24, 16))
    known.body[1] = 0
    agree(frequencies(known, "body"), known.body)


def test_centres_that_are_drawn_before_a_case_are_those_of_its_patches() -> None:
    """So that another program, which has the centres and a body, reads the same patches."""
    known = sampling_maps((64, 48, 40))
    centres, rng = patches.body_centres(20, generator(3)), generator(3)
    total = np.cumsum(known.body, dtype=np.float64)
    for centre in centres:
        cell = np.unravel_index(np.argmax(total > centre.share * total[-1]), known.body.shape)
        z, y, x = (int(c) * CELL + v for c, v in zip(cell, centre.voxel, strict=True))
        assert patches.draw(known, ONE, patches.BODY, rng) == PatchLocation((z, y, x), ONE)


def test_uptake_follows_the_root_of_the_suv_in_the_body() -> None:
    known = sampling_maps((32, 24, 16), uptake=np.linspace(0, 25, 24, dtype=np.float32).reshape(4, 3, 2))
    known.body[0] = 0
    agree(frequencies(known, "uptake"), known.body * np.sqrt(known.uptake))


def test_regions_come_up_alike_whatever_their_size() -> None:
    cells = (4, 3, 2)
    big = single(cells, *itertools.product((0, 1), range(3), range(2)))
    known = sampling_maps((32, 24, 16), liver=big, lesion_1=single(cells, (3, 2, 1)), lesion_2=single(cells, (2, 0, 0)))
    agree(frequencies(known, "roi"), big / big.sum() + known.rois["lesion_1"] + known.rois["lesion_2"])
    agree(frequencies(known, "lesion"), known.rois["lesion_1"] + known.rois["lesion_2"])


@pytest.mark.parametrize("sampler", ["roi", "lesion"])
def test_without_regions_the_body_is_drawn(sampler: str) -> None:
    empty = {"lesion_0": np.zeros((4, 3, 2), np.float32)}
    for rois in ({}, empty):
        known = sampling_maps((32, 24, 16), **rois)
        agree(frequencies(known, sampler), known.body)


def test_an_empty_body_is_drawn_uniformly() -> None:
    known = sampling_maps((32, 24, 16), body=np.zeros((4, 3, 2), np.float32))
    agree(frequencies(known, "body"), np.ones((4, 3, 2)))


def test_laws_mix_by_their_probabilities() -> None:
    cells = (4, 3, 2)
    known = sampling_maps(
        (32, 24, 16),
        body=single(cells, (0, 0, 0)),
        lesion_1=single(cells, (3, 2, 1)),
        uptake=np.ones(cells, np.float32),
    )
    counts = np.zeros(cells)
    for i in range(DRAWS):
        location = patches.draw(known, ONE, {"lesion": 3.0, "body": 1.0, "uniform": 0.0}, generator(9, i))
        counts[cell_of(location)] += 1
    agree(counts / DRAWS, 0.25 * known.body + 0.75 * known.rois["lesion_1"])


def test_a_small_lesion_is_always_in_its_patch() -> None:
    cells = (8, 8, 8)
    for cell in ((0, 0, 0), (7, 7, 7), (3, 0, 7)):
        known = sampling_maps((64, 64, 64), lesion_1=single(cells, cell))
        for i in range(50):
            location = patches.draw(known, (16, 16, 16), {"lesion": 1.0}, generator(i))
            centre = [(a + b) / 2 for a, b in zip(location.start, location.stop, strict=True)]
            assert all(abs(c - (n * CELL + CELL / 2)) <= CELL for c, n in zip(centre, cell, strict=True))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_patch_longer_than_the_volume_starts_with_it_there(axis: int) -> None:
    patch = [4, 4, 4]
    patch[axis] = 40
    for sampler in patches.SAMPLERS:
        location = patches.draw(sampling_maps(), tuple(patch), {sampler: 1.0}, generator(1))  # type: ignore[arg-type]
        assert location.shape == tuple(patch)
        assert location.start[axis] == 0


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_grid_covers_every_voxel(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 30)] * 3))
    tile = data.draw(st.tuples(*[st.integers(1, 20)] * 3))
    overlap: Any = tuple(data.draw(st.integers(0, edge - 1)) for edge in tile)
    seen = np.zeros(shape, dtype=int)
    locations = list(patches.grid(shape, tile, overlap))
    for location in locations:
        assert location.shape == tile
        inside = tuple(slice(a, b) for a, b in zip(location.start, location.stop, strict=True))
        assert all(a >= 0 for a in location.start)
        for a, b, n, edge in zip(location.start, location.stop, shape, tile, strict=True):
            assert b <= n or (a == 0 and edge > n)
        seen[inside] += 1
    assert (seen > 0).all()
    assert len(set(locations)) == len(locations)
    assert [loc.start for loc in locations] == sorted(loc.start for loc in locations), "z slowest"
