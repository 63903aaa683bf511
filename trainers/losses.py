"""Losses that more than one system uses: pure functions of tensors, every reduction a mean.

Terms that PyTorch already has (L1, L2, binary cross-entropy from logits) are used from there.  Weights, signs inside a
total and the order of updates belong to the papers' files.
"""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def critic_loss(real: Float[Tensor, "*scores"], fake: Float[Tensor, "*scores"]) -> Float[Tensor, ""]:
    """Return mean(fake) - mean(real), which a Wasserstein critic minimises (WGAN, arXiv 1701.07875, algorithm 1).

    Its negative is the critic's estimate of the Wasserstein distance, up to the critic's Lipschitz constant.
    """
    return fake.mean() - real.mean()


def generator_loss(fake: Float[Tensor, "*scores"]) -> Float[Tensor, ""]:
    """Return -mean(fake), which a generator minimises against a Wasserstein critic (arXiv 1701.07875, algorithm 1)."""
    return -fake.mean()


def logistic_discriminator_loss(real: Float[Tensor, "*scores"], fake: Float[Tensor, "*scores"]) -> Float[Tensor, ""]:
    """Return half the cross-entropy of logits of real and generated images (arXiv 1611.07004, Eq. 1 and Sec. 3.3)."""
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def logistic_generator_loss(fake: Float[Tensor, "*scores"]) -> Float[Tensor, ""]:
    """Return mean(-log D), the generator's non-saturating part against logits (arXiv 1611.07004, Sec. 3.3)."""
    return F.softplus(-fake).mean()


def least_squares_discriminator_loss(
    real: Float[Tensor, "*scores"], fake: Float[Tensor, "*scores"]
) -> Float[Tensor, ""]:
    """Return half of mean((real - 1)^2) + mean(fake^2) (LSGAN, arXiv 1611.04076, Eq. 9)."""
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def least_squares_generator_loss(fake: Float[Tensor, "*scores"]) -> Float[Tensor, ""]:
    """Return mean((fake - 1)^2), which a generator minimises (LSGAN, arXiv 1611.04076, Eq. 9, without its 1/2)."""
    return (fake - 1).square().mean()


def soft_dice_loss(
    probabilities: Float[Tensor, "b k z y x"], masks: Float[Tensor, "b k z y x"], eps: float = 1e-6
) -> Float[Tensor, ""]:
    """Return the mean of 1 - 2 |p m| / (|p| + |m| + eps) over the (sample, organ) pairs whose mask is not empty.

    An organ that a patch does not hold would add a constant 1 without gradient and only dilute the others; it is left
    out, and without any organ the loss is 0.  On whole bodies, where every organ is present, nothing is left out.

    Args:
        probabilities: values in [0, 1].
        masks: 0 or 1.
        eps: keeps the quotient finite.

    Returns:
        A value in [0, 1].
    """
    space = (2, 3, 4)
    size = masks.sum(space)  # (b, k)
    overlap = (probabilities * masks).sum(space)
    loss = 1 - 2 * overlap / (probabilities.sum(space) + size + eps)
    present = size > 0
    return torch.where(present, loss, 0.0).sum() / present.sum().clamp(min=1)


def sobel_magnitude(image: Float[Tensor, "b 1 z y x"], eps: float = 1e-12) -> Float[Tensor, "b 1 z-2 y-2 x-2"]:
    """Return the length of the 3D Sobel gradient, per voxel, scaled so that a unit ramp along an axis gives 1.

    Voxels at the border, whose neighbourhood is not known, are left out.  ``eps`` under the root keeps the derivative
    finite where the image is flat.
    """
    kernel = _sobel().to(image.device, image.dtype)
    return (F.conv3d(image, kernel).square().sum(1, keepdim=True) + eps).sqrt()


def gradient_difference(
    synthesized: Float[Tensor, "b 1 z y x"], target: Float[Tensor, "b 1 z y x"]
) -> Float[Tensor, ""]:
    """Return the mean absolute difference of the two Sobel magnitudes (Ea-GAN's edge term, in 3D)."""
    return F.l1_loss(sobel_magnitude(synthesized), sobel_magnitude(target))


@cache
def _sobel() -> Tensor:
    slope, smooth = torch.tensor([-0.5, 0.0, 0.5]), torch.tensor([0.25, 0.5, 0.25])
    axes = [(slope, smooth, smooth), (smooth, slope, smooth), (smooth, smooth, slope)]
    return torch.stack([torch.einsum("i,j,k->ijk", *axis) for axis in axes]).unsqueeze(1)  # (3, 1, 3, 3, 3)
