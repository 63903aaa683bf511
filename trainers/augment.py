"""What is done to training patches: mirrored, turned by quarters, tilted by small angles, and scaled.

A way is drawn once per patch, and done to all of its images alike: the source with its halo, the target and the masks
have one centre.  Mirror images and quarter turns move voxels and change none; a tilt interpolates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from storage.patches import PatchLocation, Shape

Voxels = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Tilt:
    """A rotation about a patch's centre and a scale.

    Args:
        matrix: (3, 3) from an offset to the patch's centre in voxels (z, y, x) to where the patient is read.
    """

    matrix: NDArray[np.float64]

    def box(self, wanted: PatchLocation) -> PatchLocation:
        """Return the box that must be read for ``wanted``: with its centre, and large enough."""
        half = np.abs(self.matrix) @ ((np.array(wanted.shape) - 1) / 2)
        z, y, x = (max(0, math.ceil(reach - (edge - 1) / 2)) for reach, edge in zip(half, wanted.shape, strict=True))
        return wanted.grown((z, y, x))

    def of(self, read: Voxels, shape: Shape, order: int = 1) -> Voxels:
        """Return a patch of ``shape`` (z, y, x) from the voxels of its ``box``.

        Args:
            order: 1 interpolates linearly, 0 takes the nearest voxel, for labels.
        """
        centre = (np.array(read.shape) - 1) / 2
        offset = centre - self.matrix @ ((np.array(shape) - 1) / 2)
        tilted = affine_transform(read, self.matrix, offset, output_shape=shape, order=order, mode="nearest")
        return np.asarray(tilted, dtype=np.float32)


def draw_tilt(
    rng: np.random.Generator, spacing_mm: tuple[float, float, float], *, degrees: float, scaling: float
) -> Tilt:
    """Draw a tilt.

    Args:
        spacing_mm: voxel edge lengths (z, y, x): a rotation is one in mm.
        degrees: largest angle about each of the axes z, y and x, uniform either way.
        scaling: the patient is up to this part larger, or smaller to the same factor; uniform in the logarithm.
    """
    turned = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(rng.uniform(-degrees, degrees, 3))):
        first, second = (other for other in range(3) if other != axis)
        one = np.eye(3)
        one[first, first] = one[second, second] = math.cos(angle)
        one[first, second], one[second, first] = -math.sin(angle), math.sin(angle)
        turned = turned @ one
    limit = math.log1p(scaling)
    steps = np.array(spacing_mm)
    return Tilt(turned * steps / steps[:, None] * math.exp(rng.uniform(-limit, limit)))


Turn = Callable[[Voxels], Voxels]  # of the last three axes, (z, y, x)
FLIPPED = {"none": (), "left_right": (3,), "flips": (1, 2, 3), "flips_and_turns": (1, 2, 3)}  # of (channel, z, y, x)


def draw_turn(rng: np.random.Generator, augment: str, *, square: bool) -> Turn:
    """Draw which axes are mirrored, and by how many quarters the plane (y, x) is turned.

    Args:
        augment: a key of ``FLIPPED``.
        square: whether a quarter turn leaves the patch's shape and the size of its voxels.
    """
    # All is drawn whatever is used of it, so that seeds give the same patches as they always did.
    drawn, quarters = rng.integers(2, size=3), int(rng.integers(4))
    flipped = tuple(axis for axis, flips in zip((1, 2, 3), drawn, strict=True) if flips and axis in FLIPPED[augment])
    turns = quarters if augment == "flips_and_turns" and square else 0
    return lambda patch: np.rot90(np.flip(patch, flipped), turns, axes=(2, 3))
