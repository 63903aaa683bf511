"""The network that learns a residual: where it starts, which voxels it sees, and voxels that are channels."""

import pytest
import torch

from trainers import residual_unet
from trainers.residual_unet import MULTIPLE, RADIUS, Beyond, ResidualUNet


def test_voxels_become_channels_and_back() -> None:
    x = torch.randn(2, 1, 8, 12, 4)
    there = residual_unet.voxels_to_channels(x)
    assert there.shape == (2, 8, 4, 6, 2)
    assert torch.equal(there[:, 5], x[:, 0, 1::2, 0::2, 1::2])  # 5 = 1, 0, 1: odd z, even y, odd x
    assert torch.equal(residual_unet.channels_to_voxels(there), x)


@pytest.mark.parametrize("constants", ["none", "additive"])
def test_its_output_is_nothing_until_it_is_trained(constants: str) -> None:
    torch.manual_seed(0)
    image = ResidualUNet(3, (4, 6), constants)(torch.randn(1, 3, 8, 12, 8))
    assert image.shape == (1, 1, 8, 12, 8)
    assert not image.any()


def test_no_voxel_sees_further_than_the_radius() -> None:
    torch.manual_seed(0)
    network = ResidualUNet(1, (4, 4), "additive")
    torch.nn.init.normal_(network.out.weight)
    u = torch.randn(1, 1, MULTIPLE * 16, MULTIPLE, MULTIPLE)
    other = u.clone()
    other[:, :, : MULTIPLE * 16 - RADIUS - 4] += 1
    assert torch.equal(network(u)[:, :, -4:], network(other)[:, :, -4:])
    other[:, :, MULTIPLE * 16 - RADIUS :] += 1
    assert not torch.equal(network(u)[:, :, -4:], network(other)[:, :, -4:])


@pytest.mark.parametrize(("beyond", "alike"), [("zeros", False), ("replicate", True)])
def test_repeated_voxels_beyond_a_window_leave_a_uniform_image_uniform(beyond: Beyond, alike: bool) -> None:
    """At 2 x 2 x 2 voxels as channels, every second voxel is of one kind."""
    torch.manual_seed(0)
    network = ResidualUNet(1, (4, 4), "additive", beyond=beyond)
    torch.nn.init.normal_(network.out.weight)
    image = network(torch.ones(1, 1, 16, 16, 16))[:, :, ::2, ::2, ::2]
    assert torch.allclose(image, image[:, :, :1, :1, :1].expand_as(image), atol=1e-5) == alike


def test_no_activation_can_fall_silent_for_good() -> None:
    """With ReLU a step that made all activations negative would have been the last one: no gradient came back."""
    torch.manual_seed(0)
    network = ResidualUNet(1, (4, 4), "none")
    torch.nn.init.normal_(network.out.weight)
    with torch.no_grad():
        network.above.weight.copy_(-network.above.weight.abs())
        for conv in (*network.stem, *network.below):
            conv.weight.abs_()
    network(torch.rand(1, 1, 8, 8, 8)).square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in network.parameters())
