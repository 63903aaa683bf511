"""Filters without a network: their voxels do not depend on slabs, they scale with a scan's noise and take it away."""

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from volumes import GRID, ellipse, noisy, source

from petscale.evaluation import filters
from petscale.evaluation.baselines import BM4D, NON_LOCAL_MEANS, TOTAL_VARIATION
from petscale.evaluation.filters import BlockedSource, banked, denoised, installed, levelled, relative_noise
from trainers import filter_bank
from trainers.filter_bank import CLASSES, MEMBERS

DEPTH = GRID.shape[0]


def activity() -> NDArray[np.float64]:
    return np.where(ellipse(), 1.0 + (np.indices(GRID.shape)[2] > 14), 0.0)


def coefficients() -> NDArray[np.float64]:
    rng = np.random.Generator(np.random.Philox(3))
    found = rng.random((CLASSES, MEMBERS))
    return np.asarray(found / found.sum(1, keepdims=True))


def made(name: str, block_voxels: int) -> BlockedSource:
    low = noisy(activity(), 0.4, 1)
    image = banked(low, coefficients(), "") if name == "bank" else levelled(low, name, 1.0, "")
    return BlockedSource(low, image.make, image.halo, image.rule, block_voxels)


@pytest.mark.parametrize("name", ["bank", NON_LOCAL_MEANS, TOTAL_VARIATION])
def test_voxels_do_not_depend_on_the_slabs_read(name: str) -> None:
    block = 17 * GRID.shape[1] * GRID.shape[2]
    whole = made(name, block).read(0, DEPTH)
    for order in (range(DEPTH), reversed(range(DEPTH))):
        image = made(name, block)
        slices = {z: image.read(z, z + 1) for z in order}
        np.testing.assert_array_equal(np.concatenate([slices[z] for z in range(DEPTH)]), whole)
    assert whole.dtype == np.float32


def test_a_bank_of_blocks_is_that_of_the_whole() -> None:
    np.testing.assert_allclose(
        made("bank", 5 * GRID.shape[1] * GRID.shape[2]).read(0, DEPTH), made("bank", 10**9).read(0, DEPTH), atol=1e-5
    )


def test_a_block_is_computed_once() -> None:
    asked: list[int] = []

    def make(slab: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(len(slab))
        return slab[2:-2] * 2

    image = BlockedSource(noisy(activity(), 0.4, 1), make, 2, "twice", 10 * GRID.shape[1] * GRID.shape[2])
    for _ in range(2):
        np.testing.assert_array_equal(image.read(5, 25), 2 * image.source.read(5, 25))
    assert asked == [14, 14, 14]
    assert image.provenance["rule"] == "twice"


def test_a_bank_of_the_image_alone_is_the_image() -> None:
    alone = np.zeros((CLASSES, MEMBERS))
    alone[:, 0] = 1
    low = noisy(activity(), 0.4, 1)
    np.testing.assert_array_equal(banked(low, alone, "").read(0, DEPTH), low.voxels)


def test_a_filter_of_before_is_used_by_its_own_classes() -> None:
    """Each class gives its number: a fitted filter that was stored with 56 classes means those."""
    low = source(activity())
    margin = filter_bank.reach(GRID.spacing_mm)
    grown = np.pad(low.voxels, [(edge, edge) for edge in margin], mode="symmetric")
    bank = filter_bank.members(torch.from_numpy(grown)[None, None], torch.tensor([GRID.spacing_mm]), margin)
    for way in (filter_bank.COARSE, filter_bank.FINE):
        numbers = np.zeros((way.count, MEMBERS))
        numbers[:, -1] = np.arange(way.count)  # times the widest mean
        expected = way.of(bank)[0] * bank[0, -1]
        np.testing.assert_allclose(banked(low, numbers, "").read(0, DEPTH), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", [NON_LOCAL_MEANS, TOTAL_VARIATION])
def test_noise_is_taken_away_and_uptake_stays(method: str) -> None:
    truth = activity()
    low = noisy(truth, 0.4, 1)
    image = levelled(low, method, 0.5, "").read(0, DEPTH)
    inside = ellipse()
    assert np.square(image - truth)[inside].mean() < 0.5 * np.square(low.voxels - truth)[inside].mean()
    assert image[inside].mean() == pytest.approx(low.voxels[inside].mean(), rel=0.04)


def test_noise_is_measured_over_the_local_level_and_not_over_the_scale_of_uptake() -> None:
    rng = np.random.Generator(np.random.Philox(1))
    noise = rng.normal(0, 0.2, GRID.shape)
    found = [relative_noise(source(scale * (1 + noise))) for scale in (2.0, 20.0)]
    assert 0.15 < found[0] < 0.2  # a Gaussian of 7 mm keeps a part of the noise
    assert found[1] == pytest.approx(found[0], rel=0.1)
    assert relative_noise(source(np.zeros(GRID.shape))) == 0.0


def test_an_image_without_noise_stays_as_it_is() -> None:
    empty = source(np.zeros(GRID.shape))
    np.testing.assert_array_equal(levelled(empty, NON_LOCAL_MEANS, 1.0, "").read(0, DEPTH), empty.voxels)


def test_bm4d_is_used_where_the_user_has_installed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not installed(BM4D)
    assert installed(NON_LOCAL_MEANS)
    asked: list[float] = []

    def bm4d(image: NDArray[np.float32], sigma: float) -> NDArray[np.float64]:
        asked.append(sigma)
        return np.ones(image.shape)

    stand_in = ModuleType("bm4d")
    stand_in.bm4d = bm4d  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bm4d", stand_in)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: stand_in)
    assert installed(BM4D)
    slab = noisy(activity(), 0.4, 1).voxels
    found = denoised(slab, GRID.spacing_mm, BM4D, 0.3)
    assert asked == [0.3]
    np.testing.assert_array_equal(found, filters.denoised(slab, GRID.spacing_mm, BM4D, 0.5))  # its level
    assert found.dtype == np.float32
