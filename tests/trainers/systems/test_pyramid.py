"""Laplacian pyramids: worked numbers, reconstruction, reach, tiles, and what blending leaves of a lesion."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from trainers.systems.virtual_pet import pyramid

SHAPES = [(7,), (8, 9), (1, 6, 5), (2, 3, 4), (6, 7, 8)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def axes_of(image: Tensor) -> list[int]:
    return list(range(image.ndim))


def test_worked_numbers() -> None:
    a, b = torch.tensor([0.0, 0, 4, 4, 0]), torch.ones(5)
    mask = (a > 2.5).float()
    assert pyramid.blend(a, b, mask, 0, [0]).tolist() == [1, 1, 4, 4, 1]
    assert pyramid.gaussian(mask, 1, [0])[1].tolist() == [0.125, 0.625, 0.625]
    assert pyramid.gaussian(a, 1, [0])[1].tolist() == [0.5, 2.5, 2.5]
    assert pyramid.laplacian(a, 1, [0])[0].tolist() == [-1, -1.5, 1.75, 1.5, -2.5]
    assert pyramid.blend(a, b, mask, 1, [0]).tolist() == [1.1875, 1.4375, 3.5625, 3.4375, 1.9375]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [0, 1, 3])
def test_a_pyramid_collapses_to_its_image_and_a_flat_one_has_no_detail(shape: tuple[int, ...], levels: int) -> None:
    image = noise(*shape)
    whole = pyramid.laplacian(image, levels, axes_of(image))
    assert len(whole) == levels + 1
    torch.testing.assert_close(pyramid.collapse(whole, axes_of(image)), image)
    *details, last = pyramid.laplacian(torch.full_like(image, 3.0), levels, axes_of(image))
    assert all(detail.abs().max() < 1e-12 for detail in details)
    torch.testing.assert_close(last, torch.full_like(last, 3.0))


@pytest.mark.parametrize("shape", [(9, 12), (5, 6, 7)])
def test_whole_masks_and_equal_images_give_the_images(shape: tuple[int, ...]) -> None:
    a, b = noise(*shape), noise(*shape, seed=1)
    axes = axes_of(a)
    torch.testing.assert_close(pyramid.blend(a, b, torch.ones_like(a), 3, axes), a)
    torch.testing.assert_close(pyramid.blend(a, b, torch.zeros_like(a), 3, axes), b)
    torch.testing.assert_close(pyramid.blend(a, a, (b > 0).double(), 3, axes), a)
    assert torch.equal(pyramid.blend(a, b, (b > 0).double(), 0, axes), torch.where(b > 0, a, b))


def test_axes_left_out_are_blended_apart() -> None:
    a, b = noise(3, 8, 8), noise(3, 8, 8, seed=1)
    mask = (a > 0.5).double()
    whole = pyramid.blend(a, b, mask, 2, [1, 2])
    for z in range(3):
        assert torch.equal(whole[z], pyramid.blend(a[z], b[z], mask[z], 2, [0, 1]))


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_a_voxel_reaches_as_far_as_said(levels: int) -> None:
    a, b, mask = noise(401), noise(401, seed=1), torch.zeros(401, dtype=torch.float64)
    before, far = pyramid.blend(a, b, mask, levels, [0]), 0
    for place in range(192, 208):  # every place on the grid of the smallest level
        mask = torch.zeros_like(mask)
        mask[place] = 1
        changed = torch.nonzero(pyramid.blend(a, b, mask, levels, [0]) != before)[:, 0]
        far = max(far, int((changed - place).abs().max()))
    assert far == pyramid.reach(levels) == {1: 4, 2: 12, 3: 28, 4: 60}[levels]


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_aligned_tiles_equal_the_whole_bit_for_bit(levels: int) -> None:
    a, b = noise(120, 6, 7).float(), noise(120, 6, 7, seed=1).float()
    mask, aligned = (a > 0.5).float(), 2**levels
    whole = pyramid.blend(a, b, mask, levels, [0, 1, 2])
    margin = -(-pyramid.reach(levels) // aligned) * aligned

    def tile(begin: int, edge: int) -> Tensor:
        first, last = max(0, begin - margin), min(120, begin + edge + margin)
        image = pyramid.blend(a[first:last], b[first:last], mask[first:last], levels, [0, 1, 2])
        return image[begin - first : begin - first + edge]

    for begin, edge in ((0, 40), (40, 16), (56, 24), (80, 40)):
        assert torch.equal(tile(begin, edge), whole[begin : begin + edge])
    if levels:
        assert not torch.equal(tile(41, 16), whole[41:57])


def disc(diameter: int, dims: int, edge: int) -> Tensor:
    grid = np.indices((edge,) * dims) - edge // 2
    inside = np.sqrt((grid**2).sum(0)) <= diameter / 2
    blurred = gaussian_filter(inside.astype(np.float64), 2 / np.sqrt(8 * np.log(2)))
    return torch.from_numpy(2 + 4 * blurred)


@pytest.mark.parametrize(
    ("diameter", "expected"),
    [(8, (6.00, 5.99, 5.53, 5.27, 5.23, 5.23)), (12, (6.00, 6.00, 5.75, 5.24, 5.12, 5.11))],
)
def test_what_blending_leaves_of_a_lesion(diameter: int, expected: tuple[float, ...]) -> None:
    hot = disc(diameter, 2, 129)
    for levels, suv_max in enumerate(expected):
        found = pyramid.blend(hot, torch.full_like(hot, 2.0), (hot > 2.5).double(), levels, [0, 1]).max()
        assert float(found) == pytest.approx(suv_max, abs=0.02)


@pytest.mark.parametrize(("levels", "expected"), [(2, 5.51), (3, 5.43)])
def test_what_blending_leaves_of_a_lesion_in_3d(levels: int, expected: float) -> None:
    hot = disc(8, 3, 49)
    found = pyramid.blend(hot, torch.full_like(hot, 2.0), (hot > 2.5).double(), levels, [0, 1, 2]).max()
    assert float(found) == pytest.approx(expected, abs=0.02)
