"""Two images become one through Laplacian pyramids (Burt and Adelson, ACM Trans. Graphics 2, 217, 1983).

Along any axes of a tensor, on any number of levels.

A voxel reaches ``4 (2^levels - 1)`` voxels far, and levels keep every second voxel counted from the first one.  So a
tile with that much around it whose first voxel lies on a multiple of ``2^levels`` is blended bit for bit as the whole.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # Burt and Adelson's family of kernels at a = 0.375


def reach(levels: int) -> int:
    """Return how many voxels away a voxel can change the blended image."""
    return 4 * ((1 << levels) - 1)


def blend(
    a: Float[Tensor, "*shape"],
    b: Float[Tensor, "*shape"],
    mask: Float[Tensor, "*shape"],
    levels: int,
    axes: Sequence[int],
) -> Float[Tensor, "*shape"]:
    """Return ``a`` where ``mask`` is 1 and ``b`` where it is 0; the finer a detail, the sharper its seam.

    Args:
        mask: 0 to 1.
        levels: halvings along ``axes``; without any this is hard pasting.
    """
    shares = gaussian(mask, levels, axes)
    pairs = zip(shares, laplacian(a, levels, axes), laplacian(b, levels, axes), strict=True)
    return collapse([share * of_a + (1 - share) * of_b for share, of_a, of_b in pairs], axes)


def gaussian(image: Float[Tensor, "*shape"], levels: int, axes: Sequence[int]) -> list[Tensor]:
    """Return the image and its ``levels`` halvings, the largest first."""
    pyramid = [image]
    for _ in range(levels):
        pyramid.append(reduce(pyramid[-1], axes))
    return pyramid


def laplacian(image: Float[Tensor, "*shape"], levels: int, axes: Sequence[int]) -> list[Tensor]:
    """Return what every halving loses, and the smallest halving; ``collapse`` undoes it."""
    pyramid = gaussian(image, levels, axes)
    return [fine - expand(coarse, fine.shape, axes) for fine, coarse in pairwise(pyramid)] + pyramid[-1:]


def collapse(pyramid: Sequence[Tensor], axes: Sequence[int]) -> Tensor:
    """Return the image whose ``laplacian`` pyramid this is."""
    *finer, image = pyramid
    for detail in reversed(finer):
        image = detail + expand(image, detail.shape, axes)
    return image


def reduce(image: Float[Tensor, "*shape"], axes: Sequence[int]) -> Tensor:
    """Blur with ``KERNEL`` and keep even voxels; edges are mirrored, the edge voxel itself not repeated."""
    for axis in axes:
        length = image.shape[axis]
        even = torch.arange(0, length, 2, device=image.device)
        taps = [weight * _at(image, axis, even + k - 2, length) for k, weight in enumerate(KERNEL)]
        image = taps[0] + taps[1] + taps[2] + taps[3] + taps[4]
    return image


def expand(image: Float[Tensor, "*coarse"], shape: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Double to ``shape``: voxels go to even places, zeros between them, then twice ``KERNEL`` is applied."""
    outer, near, centre = (2 * weight for weight in KERNEL[:3])
    for axis in axes:
        length = shape[axis]
        if length == 1:  # mirrored, the one voxel would be counted at every tap
            continue
        size = list(image.shape)
        size[axis] = length
        fine = image.new_empty(size)
        even = torch.arange(0, length, 2, device=image.device)
        odd = torch.arange(1, length, 2, device=image.device)
        a, b, c = (_at(image, axis, even + k, length, step=2) for k in (-2, 0, 2))
        fine.index_copy_(axis, even, outer * a + centre * b + outer * c)
        a, b = (_at(image, axis, odd + k, length, step=2) for k in (-1, 1))
        fine.index_copy_(axis, odd, near * a + near * b)
        image = fine
    return image


def _at(image: Tensor, axis: int, places: Tensor, length: int, step: int = 1) -> Tensor:
    """Return the voxels of ``image`` at ``places`` of an axis of ``length``, of which it holds every ``step``-th."""
    period = max(2 * (length - 1), 1)
    inside = places % period
    return image.index_select(axis, torch.minimum(inside, period - inside) // step)
