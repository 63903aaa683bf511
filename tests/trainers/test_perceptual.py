import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from storage.errors import InputError
from trainers import perceptual
from trainers.perceptual import (
    VGG16,
    MaskedAutoencoder,
    draw_mask,
    draw_slices,
    feature_loss,
    read_vgg16,
    restoration_loss,
    slice_loss,
    take_slices,
)

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def weights(**changes: Tensor) -> dict[str, Tensor]:
    """Tensors named as in torchvision's VGG16, deeper layers and classifier (cut short) included."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in VGG16().state_dict().items()}
    found = {name: 0.03 * torch.randn(shape) for name, shape in shapes.items()}
    deeper = {"features.24.weight": torch.zeros(1), "classifier.0.weight": torch.zeros(1)}
    return {**found, **deeper, **{name.replace("__", "."): value for name, value in changes.items()}}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.safetensors"
    save_file(weights(), path)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Eq. 3


def test_hand_worked_feature_loss() -> None:
    a, b = torch.tensor([3.0, 1.0]).view(1, 1, 1, 2), torch.tensor([1.0, 1.0]).view(1, 1, 1, 2)
    c, d = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)
    assert feature_loss([a], [b]).item() == 2.0
    assert feature_loss([c], [d]).item() == 2.5
    assert feature_loss([a, c], [b, d]).item() == 4.5
    # A second slice of loss 1.5: the mean over slices.
    less = torch.tensor([1.0 + 3**0.5, 1.0]).view(1, 1, 1, 2)
    assert feature_loss([torch.cat([a, less]), torch.cat([c, d])], [torch.cat([b, b]), torch.cat([d, d])]).item() == (
        pytest.approx((4.5 + 1.5) / 2)
    )


# VGG16


def test_vgg16_is_the_published_one_up_to_relu4_3() -> None:
    with torch.device("meta"):
        net = VGG16()
    assert sum(p.numel() for p in net.parameters()) == 7_635_264
    assert sorted(net.taps) == [3, 8, 15, 22]
    assert all(isinstance(net.features[tap], nn.ReLU) for tap in net.taps)
    convolutions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21]  # torchvision's places
    assert list(net.state_dict()) == [f"features.{n}.{part}" for n in convolutions for part in ("weight", "bias")]


def test_maps_halve_and_grey_is_repeated_under_imagenets_statistics() -> None:
    net = VGG16(channels=2)
    maps = net(torch.rand(3, 1, 32, 32))
    assert [tuple(m.shape) for m in maps] == [(3, 2, 32, 32), (3, 4, 16, 16), (3, 8, 8, 8), (3, 16, 4, 4)]
    assert all((m >= 0).all() for m in maps)
    seen: list[Tensor] = []
    net.features[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net(torch.full((1, 1, 16, 16), 0.485 + 0.229))
    assert seen[0].shape == (1, 3, 16, 16)
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([1.0, 0.258 / 0.224, 0.308 / 0.225]))


def test_slices_are_those_of_the_axis() -> None:
    image = torch.arange(2 * 4 * 5 * 6.0).view(2, 1, 4, 5, 6)
    index = torch.tensor([[1, 3], [0, 2]])
    for axis in range(3):
        taken = take_slices(image, axis, index)
        for sample in range(2):
            for n in range(2):
                wanted = image[sample, 0].select(axis, int(index[sample, n]))
                assert torch.equal(taken[2 * sample + n, 0], wanted)


def test_slices_with_signal_come_first_then_any_without_repeats() -> None:
    reference = torch.zeros(2, 1, 12, 4, 4)
    reference[0, 0, 3:6] = 1.0
    for _ in range(20):
        few = draw_slices(reference, axis=0, count=3)
        assert set(few[0].tolist()) == {3, 4, 5}
        eight = draw_slices(reference, axis=0)
        assert {3, 4, 5} <= set(eight[0].tolist())
        assert all(len(set(row)) == 8 for row in eight.tolist())
    assert draw_slices(reference, axis=1).shape == (2, 4)  # no more than there are
    draws = {tuple(sorted(draw_slices(reference, axis=0, count=1)[1].tolist())) for _ in range(60)}
    assert len(draws) > 6  # air: any slice


def test_slice_loss_is_a_symmetric_distance_that_feels_scale_and_not_the_order_of_samples() -> None:
    net = VGG16(channels=2).requires_grad_(False)
    a, b = torch.rand(2, 2, 1, 32, 32, 32)
    every = 32  # all slices: no draw is left
    assert slice_loss(net, a, a, every) == 0
    loss = slice_loss(net, a, b, every)
    assert loss > 0
    torch.testing.assert_close(slice_loss(net, b, a, every), loss)
    torch.testing.assert_close(slice_loss(net, a.flip(0), b.flip(0), every), loss)
    for module in net.features:
        if isinstance(module, nn.Conv2d):  # a turned volume shows turned slices: the same to symmetric filters
            module.weight.copy_((module.weight + module.weight.transpose(2, 3)) / 2)
    loss = slice_loss(net, a, b, every)
    turned = slice_loss(net, a.permute(0, 1, 3, 4, 2), b.permute(0, 1, 3, 4, 2), every)
    torch.testing.assert_close(turned, loss)
    assert slice_loss(net, 1.1 * a, a, every) > 0
    hot = 5.0 + a  # SUV 50 to 60: not clamped
    assert slice_loss(net, hot, hot + 0.1, every) > 0


def test_a_thin_patch_gives_axial_slices_only() -> None:
    net = VGG16(channels=2).requires_grad_(False)
    a, b = torch.rand(2, 1, 1, 16, 40, 40)
    index = torch.arange(16)[None]
    axial = feature_loss(net(take_slices(a, 0, index)), net(take_slices(b, 0, index)))
    torch.testing.assert_close(slice_loss(net, a, b, 16), axial)


def test_gradients_reach_the_image_alone() -> None:
    net = VGG16(channels=2).requires_grad_(False)
    a, b = torch.rand(1, 1, 32, 32, 32, requires_grad=True), torch.rand(1, 1, 32, 32, 32, requires_grad=True)
    slice_loss(net, a, b).backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0
    assert b.grad is None
    assert all(p.grad is None for p in net.parameters())


def test_the_same_seed_draws_the_same_slices() -> None:
    net = VGG16(channels=2).requires_grad_(False)
    a, b = torch.rand(2, 1, 1, 32, 32, 32)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(slice_loss(net, a, b, 2))
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


# Its file


def test_the_file_becomes_a_frozen_network(file: Path) -> None:
    net = read_vgg16(file, digest(file).upper())
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    wanted = weights()
    assert all(torch.equal(value, wanted[name]) for name, value in net.state_dict().items())
    image = torch.rand(1, 1, 16, 16)
    by_hand = (image.expand(-1, 3, -1, -1) - torch.tensor(perceptual.IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(
        perceptual.IMAGENET_STD
    ).view(1, 3, 1, 1)
    for place in (0, 2):
        by_hand = F.relu(
            F.conv2d(by_hand, wanted[f"features.{place}.weight"], wanted[f"features.{place}.bias"], padding=1)
        )
    torch.testing.assert_close(net(image)[0], by_hand)


def refused(path: Path, sha256: str) -> str:
    with pytest.raises(InputError) as error:
        read_vgg16(path, sha256)
    assert error.value.code == "CFG_BACKBONE"
    assert "\n" not in str(error.value)
    assert str(path.parent) not in str(error.value) or path.parent == Path()
    return str(error.value)


def test_a_missing_file_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    for path in (Path(""), tmp_path / "nowhere.safetensors"):
        line = refused(path, "0" * 64)
        assert "--set recipe.vgg16_file=" in line
        assert "recipe.vgg16_sha256=" in line
        assert "--set recipe.perceptual=masked" in line


def test_a_digest_is_asked_for_and_held_against_the_file(file: Path) -> None:
    assert "no digest" in refused(file, "")
    assert digest(file) in refused(file, "0" * 64)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    for name in ("vgg16.pth", "renamed.safetensors"):
        path = tmp_path / name
        torch.save({"features.0.weight": torch.zeros(1)}, path)
        line = refused(path, digest(path))
        assert "pickle" in line
        assert "save_file" in line


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    save_file(weights(features__5__weight=torch.zeros(3)), path)
    assert "features.5.weight" in refused(path, digest(path))
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    assert "features.0.bias" in refused(path, digest(path))
    path.write_bytes(b"not tensors at all")
    assert "not a safetensors file" in refused(path, digest(path))


# The substitute


def test_masks_hide_whole_blocks_at_the_stated_share() -> None:
    hidden = draw_mask(torch.zeros(4, 1, 64, 64, 96))
    assert hidden.dtype == torch.bool
    share = F.avg_pool3d(hidden.float(), 8)
    assert set(share.unique().tolist()) == {0.0, 1.0}
    assert share.mean().item() == pytest.approx(0.6, abs=0.03)


def test_restoration_counts_hidden_voxels_alone() -> None:
    image, hidden = torch.zeros(1, 1, 8, 8, 16), torch.zeros(1, 1, 8, 8, 16, dtype=torch.bool)
    hidden[..., :8] = True
    restored = torch.ones_like(image)
    restored[..., :8] = 0.25
    assert restoration_loss(restored, image, hidden).item() == 0.25
    assert restoration_loss(restored, image, ~hidden).item() == 1.0
    assert restoration_loss(restored, image, torch.zeros_like(hidden)).item() == 0.0


def test_the_autoencoder_restores_from_what_it_sees_alone() -> None:
    net = MaskedAutoencoder(channels=2)
    image = torch.rand(1, 1, 16, 16, 16)
    hidden = draw_mask(image)
    restored = net(image, hidden)
    assert restored.shape == image.shape
    assert torch.equal(net(torch.where(hidden, 9.0, image), hidden), restored)
    assert [tuple(m.shape) for m in net(image)] == [(1, 2, 16, 16, 16), (1, 4, 8, 8, 8), (1, 8, 4, 4, 4)]


def test_the_autoencoder_learns() -> None:
    net = MaskedAutoencoder(channels=4)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    image = F.interpolate(torch.rand(2, 1, 4, 4, 4), size=(16, 16, 16), mode="trilinear")
    history = []
    for _ in range(60):
        hidden = draw_mask(image)
        loss = restoration_loss(net(image, hidden), image, hidden)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-5:]) < 0.5 * sum(history[:5])
