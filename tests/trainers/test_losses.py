import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.losses import (
    between,
    critic_loss,
    generator_loss,
    gradient_difference,
    gradient_penalty,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    sobel_magnitude,
    soft_dice_loss,
    ssim,
)
from trainers.metrics.slices import ssim_2d


def volume(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, 1, -1)


def test_critic_loss_and_its_gradients() -> None:
    real = torch.tensor([0.4, 0.2], requires_grad=True)
    fake = torch.tensor([0.1, -0.3], requires_grad=True)
    loss = critic_loss(real, fake)
    loss.backward()
    assert loss.item() == pytest.approx(-0.4)
    assert real.grad.tolist() == [-0.5, -0.5]
    assert fake.grad.tolist() == [0.5, 0.5]


def test_generator_loss_and_its_gradient() -> None:
    fake = torch.tensor([0.1, -0.3], requires_grad=True)
    loss = generator_loss(fake)
    loss.backward()
    assert loss.item() == pytest.approx(0.1)
    assert fake.grad.tolist() == [-0.5, -0.5]


def test_least_squares_losses() -> None:
    real, fake = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.4])
    assert least_squares_discriminator_loss(real, fake).item() == pytest.approx((0.125 + 0.08) / 2)
    assert least_squares_generator_loss(fake).item() == pytest.approx((1 + 0.36) / 2)


def test_the_gradient_penalty_of_linear_critics_is_known_and_teaches_them() -> None:
    """Scores w x summed over 4 voxels, two of them an image: the gradient of their mean is w at every voxel."""
    weight = torch.tensor(3.0, requires_grad=True)
    at = torch.zeros(2, 1, 4, requires_grad=True)
    scores = (weight * at).view(2, 2, 2).sum(2)
    penalty = gradient_penalty(scores, at)
    assert penalty.item() == pytest.approx((3 * 0.5 * 2 - 1) ** 2)  # four voxels of w / 2 each
    penalty.backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(2 * (3 - 1))  # of (w - 1)^2
    assert at.grad is None, "the critic alone is taught"


def test_images_between_two_lie_on_their_line_each_at_its_own_place() -> None:
    real, fake = torch.zeros(5, 1, 3, 3), torch.ones(5, 1, 3, 3)
    found = between(real, fake)
    assert found.is_leaf
    assert found.requires_grad
    shares = found.detach().flatten(1)
    assert torch.equal(shares, shares[:, :1].expand(-1, 9))
    assert len(set(shares[:, 0].tolist())) == 5
    assert ((shares > 0) & (shares < 1)).all()


def test_dice_has_the_plain_denominator() -> None:
    p, m = volume([0.9, 0.2, 0.6, 0.1]), volume([1, 0, 1, 0])
    assert soft_dice_loss(p, m).item() == pytest.approx(1 - 3 / 3.8, abs=1e-6)


@pytest.mark.parametrize(("p", "expected"), [([1, 0, 1, 0], 0.0), ([0, 1, 0, 1], 1.0)])
def test_dice_ranges_from_0_to_1(p: list[float], expected: float) -> None:
    assert soft_dice_loss(volume(p), volume([1, 0, 1, 0])).item() == pytest.approx(expected, abs=1e-6)


def test_absent_organs_give_no_dice_and_no_gradient() -> None:
    masks = torch.zeros(2, 3, 4, 4, 4)
    masks[0, 1, :2] = 1
    p = torch.rand(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = soft_dice_loss(p, masks)
    loss.backward()
    assert loss.item() == pytest.approx(soft_dice_loss(p[:1, 1:2], masks[:1, 1:2]).item())
    moved = p.grad.abs().sum((2, 3, 4)) > 0
    assert moved.nonzero().tolist() == [[0, 1]]


def test_without_any_organ_dice_is_zero_and_differentiable() -> None:
    p = torch.full((1, 2, 3, 3, 3), 0.5, requires_grad=True)
    loss = soft_dice_loss(p, torch.zeros(1, 2, 3, 3, 3))
    loss.backward()
    assert loss.item() == 0
    assert p.grad is not None
    assert torch.all(p.grad == 0)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_sobel_of_a_unit_ramp_is_1_along_every_axis(axis: int) -> None:
    shape = [1, 1, 1, 1, 1]
    shape[axis] = 6
    ramp = torch.arange(6.0).view(shape).expand(1, 1, 6, 6, 6)
    torch.testing.assert_close(sobel_magnitude(ramp), torch.ones(1, 1, 4, 4, 4))


def test_gradient_difference_sees_edges_and_not_levels() -> None:
    image = torch.rand(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    assert gradient_difference(image + 3, image).item() == pytest.approx(0, abs=1e-6)
    assert gradient_difference(2 * image, image).item() == pytest.approx(sobel_magnitude(image).mean().item(), rel=1e-5)


def test_gradient_difference_has_finite_gradients_in_flat_air() -> None:
    air = torch.zeros(1, 1, 5, 5, 5, requires_grad=True)
    gradient_difference(air, torch.rand(1, 1, 5, 5, 5)).backward()
    assert air.grad is not None
    assert torch.isfinite(air.grad).all()


def test_ssim_is_that_of_the_scores_and_teaches() -> None:
    rng = np.random.default_rng(0)
    target = rng.random((2, 3, 17, 12))
    image = np.clip(target + 0.2 * rng.standard_normal(target.shape), 0, 1)
    a, b = (torch.from_numpy(v).float() for v in (image, target))
    assert float(ssim(a, b)) == pytest.approx(ssim_2d(target.reshape(-1, 17, 12), image.reshape(-1, 17, 12)), abs=1e-5)
    assert float(ssim(b, b)) == pytest.approx(1)
    assert float(ssim(a[:, :1, None], b[:, :1, None])) == pytest.approx(float(ssim(a[:, :1], b[:, :1])))
    a.requires_grad_()
    (1 - ssim(a, b)).backward()
    assert a.grad is not None
    with torch.no_grad():
        assert ssim(a - 5 * a.grad, b) > ssim(a, b)
