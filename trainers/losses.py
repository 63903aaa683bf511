"""Losses that more than one system uses: pure functions of tensors, every reduction a mean.

Terms that PyTorch already has (L1, L2, binary cross-entropy from logits) are used from there.  Weights, signs inside a
total and the order of updates belong to the papers' files.
"""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SSIM_EDGE, SSIM_SIGMA = 11, 1.5  # pixels, of the window


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


def between(real: Float[Tensor, "b _ *space"], fake: Float[Tensor, "b _ *space"]) -> Float[Tensor, "b _ *space"]:
    """Return a point of the line between every two images, from torch's generator; a leaf that takes gradients."""
    share = torch.rand(len(real), *(1 for _ in real.shape[1:]), device=real.device)
    return (share * real + (1 - share) * fake).detach().requires_grad_()


def gradient_penalty(scores: Float[Tensor, "b _ *scores"], at: Float[Tensor, "b _ *space"]) -> Float[Tensor, ""]:
    """Return the mean of (|gradient of an image's mean score| - 1)^2 (arXiv 1704.00028, algorithm 1).

    A critic's update goes through the gradient, which a network takes inside its own forward: DeepSpeed's engines do
    not let their outputs be differentiated twice, and through ``Engine.frozen`` a critic would learn nothing.

    Args:
        scores: of every image, which must not depend on the other images of the batch.
        at: the images, a leaf that takes gradients (``between``).
    """
    (gradient,) = torch.autograd.grad(scores.flatten(1).mean(1).sum(), at, create_graph=True)
    penalty: Tensor = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


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


def ssim(image: Float[Tensor, "b c *space"], target: Float[Tensor, "b c *space"]) -> Float[Tensor, ""]:
    """Return the mean SSIM of axial slices in [0, 1] (Wang et al. 2004, doi 10.1109/TIP.2003.819861, eq. 13).

    An 11 x 11 Gaussian window, K1 = 0.01, K2 = 0.03; windows that pass the slice's edge are left out, so a slice must
    have 11 x 11 pixels.  The same as ``trainers.metrics.slices.ssim_2d``, with a gradient.
    """
    x, y = (t.reshape(-1, 1, *t.shape[-2:]) for t in (image, target))
    steps = torch.arange(SSIM_EDGE, device=x.device, dtype=x.dtype) - SSIM_EDGE // 2
    taps = (-0.5 * (steps / SSIM_SIGMA) ** 2).softmax(0)

    def windowed(v: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(v, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))

    mean_x, mean_y = windowed(x), windowed(y)
    variances = windowed(x * x) + windowed(y * y) - mean_x**2 - mean_y**2
    contrast = (2 * (windowed(x * y) - mean_x * mean_y) + 0.03**2) / (variances + 0.03**2)
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return (luminance * contrast).mean()


@cache
def _sobel() -> Tensor:
    slope, smooth = torch.tensor([-0.5, 0.0, 0.5]), torch.tensor([0.25, 0.5, 0.25])
    axes = [(slope, smooth, smooth), (smooth, slope, smooth), (smooth, smooth, slope)]
    return torch.stack([torch.einsum("i,j,k->ijk", *axis) for axis in axes]).unsqueeze(1)  # (3, 1, 3, 3, 3)
