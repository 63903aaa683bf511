"""Tables from HU to SUV: which range a voxel is in, sums that can be added, and means where there are few voxels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers import hu_table
from trainers.hu_table import HU_EDGES, MEAN_EDGES_HU, MEANS, RANGES, Sums


def random_sums(seed: int, shape: tuple[int, ...]) -> Sums:
    random = np.random.default_rng(seed)
    cells = random.integers(0, int(np.prod(shape)), 200)
    return hu_table.sums(cells, random.random(200), shape, weight=random.random())


@settings(max_examples=50, deadline=None)
@given(hu=st.floats(-3000, 5000, width=32))
def test_a_voxel_is_in_the_range_that_holds_its_hu(hu: float) -> None:
    found = int(hu_table.ranges(torch.tensor([hu])))
    assert 0 <= found < RANGES
    inside = min(max(hu, HU_EDGES[0]), np.nextafter(HU_EDGES[-1], 0))
    assert HU_EDGES[found] <= inside < HU_EDGES[found + 1]
    coarse = int(hu_table.mean_ranges(torch.tensor([hu])))
    assert 0 <= coarse < MEANS
    assert coarse == sum(edge <= hu for edge in MEAN_EDGES_HU)


def test_sums_of_two_cases_can_be_added_and_put_into_a_coarser_table() -> None:
    cells, suv = np.array([0, 5, 5, 3]), np.array([1.0, 2.0, 4.0, 8.0])
    both = hu_table.sums(cells, suv, (2, 3))
    parts = hu_table.sums(cells[:2], suv[:2], (2, 3)) + hu_table.sums(cells[2:], suv[2:], (2, 3))
    assert both.weight.tolist() == parts.weight.tolist() == [[1, 0, 0], [1, 0, 2]]
    assert both.suv.tolist() == parts.suv.tolist() == [[1, 0, 0], [8, 0, 6]]
    assert both.over(1).suv.tolist() == [1, 14]
    half = hu_table.sums(cells, suv, (2, 3), weight=0.5)
    assert half.suv.tolist() == [[0.5, 0, 0], [4, 0, 3]]


def test_a_range_without_a_voxel_takes_the_nearest_one() -> None:
    of = Sums(np.array([0.0, 2.0, 0.0, 0.0, 4.0]), np.array([0.0, 2.0, 0.0, 0.0, 12.0]))
    assert hu_table.means(of).tolist() == [1, 1, 1, 3, 3]
    assert hu_table.means(hu_table.no_voxels((3,))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_means_of_all_voxels_are_those_that_no_other_value_beats(seed: int) -> None:
    random = np.random.default_rng(seed)
    cells, suv = random.integers(0, 6, 300), random.random(300)
    found = hu_table.means(hu_table.sums(cells, suv, (6,)))
    error = np.square(found[cells] - suv).sum()
    for change in (-0.01, 0.01):
        assert np.square((found + change)[cells] - suv).sum() > error


def test_few_voxels_take_the_coarser_mean_or_are_drawn_to_it() -> None:
    of = Sums(np.array([[200.0, 2.0, 0.0]]), np.array([[400.0, 8.0, 0.0]]))
    coarser = np.array([[1.0]])
    assert hu_table.finer_means(of, coarser, 100).tolist() == [[2, 1, 1]]
    assert hu_table.drawn_means(of, coarser, 200).tolist() == [[1.5, 208 / 202, 1]]
    assert hu_table.drawn_means(of, coarser, 0).tolist() == [[2, 4, 0]]


def test_drawn_means_do_not_depend_on_the_unit_of_the_weight() -> None:
    of = random_sums(1, (4, 5))
    scaled = Sums(3 * of.weight, 3 * of.suv)
    coarser = np.full((4, 1), 0.5)
    np.testing.assert_allclose(hu_table.drawn_means(scaled, coarser, 6), hu_table.drawn_means(of, coarser, 2))
