"""FCN-4s: published sizes, geometry, its start, and VGG16's weights from a file."""

import hashlib
from pathlib import Path

import pytest
import torch
from network_facts import count
from safetensors.torch import save_file
from torch import Tensor, nn

from storage.errors import InputError
from trainers.systems.virtual_pet.fcn import FCN, bilinear, check_weights, read_weights

SLIM = ((8, 16, 32, 64, 64), 64, 3, "none")


def slim(widths: tuple[int, ...] = SLIM[0]) -> FCN:
    torch.manual_seed(0)
    return FCN(widths, 64, 3, "none").eval()


def awake(network: FCN) -> FCN:
    """Give the score layers weights, so that there is an image."""
    for score in network.scores:
        assert isinstance(score, nn.Conv2d)
        nn.init.normal_(score.weight, std=0.1)
    return network


def test_sizes() -> None:
    with torch.device("meta"):
        full = FCN((64, 128, 256, 512, 512), 4096, 7, "none")
        small = FCN((64, 128, 256, 512), 1024, 3, "none")
        short = FCN((64, 128, 256, 512, 512), 1024, 3, "none")
    ups = count(full.ups) + full.last.numel()
    assert ups == 112
    assert count(full) + full.last.numel() == 134_265_652
    assert count(full) - count(full.ups) == 134_265_540
    assert count(full.features) == 14_714_688
    assert count(full.features) + count(full.classifier) + 1000 * 4097 == 138_357_544
    assert count(small) - count(small.ups) == 13_405_956
    assert count(short) - count(short.ups) == 20_485_828


@pytest.mark.parametrize("widths", [SLIM[0], SLIM[0][:4]])
def test_an_image_has_its_inputs_size_and_moves_with_it(widths: tuple[int, ...]) -> None:
    network = awake(slim(widths)).double()
    shift = 2 ** len(widths)
    x = torch.randn(1, 3, 512, 32, dtype=torch.float64)
    with torch.no_grad():
        image, moved = network(x), network(x.roll(shift, 2))
    assert image.shape == (1, 1, 512, 32)
    inside = slice(192, 320)
    torch.testing.assert_close(moved[:, :, 192 + shift : 320 + shift], image[:, :, inside])
    assert (network(x.roll(8, 2))[:, :, 200:328] - image[:, :, inside]).abs().max() > 1e-4


def test_it_starts_at_zero_and_enlarges_without_a_change_of_level() -> None:
    network = slim()
    x = torch.randn(2, 3, 64, 64)
    assert not network(x).any()
    constant = network.scores[0].bias
    assert isinstance(constant, Tensor)
    nn.init.constant_(constant, 2.0)
    with torch.no_grad():
        image = network(torch.randn(1, 3, 256, 256))
    torch.testing.assert_close(image[:, :, 64:-64, 64:-64], torch.full((1, 1, 128, 128), 2.0))
    assert torch.allclose(bilinear(2)[0, 0, 1] / 0.75, torch.tensor([0.25, 0.75, 0.75, 0.25]))
    ramp = torch.tensor([0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125])
    assert torch.allclose(bilinear(4)[0, 0], torch.outer(ramp, ramp))


@pytest.mark.parametrize(("number", "stride"), [(0, 32), (1, 16), (2, 8), (3, 4)])
@torch.no_grad()
def test_every_score_adds_an_image_of_its_own_stride(number: int, stride: int) -> None:
    """fc7, pool4, pool3 and pool2: what is left of FCN-4s without the finer ones is FCN-32s, 16s and 8s."""
    network = awake(slim()).double()
    x = torch.randn(1, 3, 768, 32, dtype=torch.float64)
    images = []
    for image in (x, x.roll(stride, 2), x.roll(stride // 2, 2)):
        with_it = network(image)
        score = network.scores[number]
        assert isinstance(score, nn.Conv2d)
        kept = score.weight.clone()
        score.weight.zero_()
        images.append(with_it - network(image))
        score.weight.copy_(kept)
    still, moved, off = (image[:, :, 320:448] for image in images)
    torch.testing.assert_close(moved[:, :, stride:], still[:, :, :-stride])
    assert (off[:, :, stride // 2 :] - still[:, :, : -(stride // 2)]).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("skips", [0, 1, 2])
def test_fewer_skips_are_fcn_32s_16s_and_8s(skips: int) -> None:
    torch.manual_seed(0)
    network = awake(FCN(SLIM[0], 64, 3, "none", skips)).eval()
    stride = 2 ** (5 - skips)
    assert network.factor == stride
    assert [score.weight.shape[1] for score in network.scores] == [64, 64, 32, 16][: skips + 1]
    assert network(torch.randn(1, 3, 64, 32)).shape == (1, 1, 64, 32)
    for score in network.scores:
        assert isinstance(score, nn.Conv2d)
        score.weight.zero_()
    finest = network.scores[skips].bias
    assert isinstance(finest, Tensor)
    finest.fill_(2.0)
    image = network(torch.randn(1, 3, 128, 128))
    inside = image[:, :, stride:-stride, stride:-stride]
    torch.testing.assert_close(inside, torch.full_like(inside, 2.0))


def test_every_weight_but_the_last_upsampling_learns() -> None:
    network = awake(slim()).train()
    network(torch.randn(1, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    assert "last" not in dict(network.named_parameters())
    assert "last" in network.state_dict()


def saved(folder: Path, tensors: dict[str, Tensor]) -> tuple[Path, str]:
    path = folder / "vgg16.safetensors"
    save_file(tensors, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def torchvision(fc6_kernel: int) -> dict[str, Tensor]:
    """Tensors of a narrow VGG16 as torchvision names and shapes them."""
    network = FCN(SLIM[0], 64, fc6_kernel, "none")
    parts = ("features.", "classifier.")
    tensors = {k: torch.randn(v.shape) for k, v in network.state_dict().items() if k.startswith(parts)}
    tensors["classifier.0.weight"] = tensors["classifier.0.weight"].flatten(1)
    tensors["classifier.3.weight"] = tensors["classifier.3.weight"].flatten(1)
    return tensors | {"classifier.6.weight": torch.zeros(10, 64), "classifier.6.bias": torch.zeros(10)}


def test_weights_of_a_file_replace_those_of_vgg16(tmp_path: Path) -> None:
    given = torchvision(7)
    path, digest = saved(tmp_path, given)
    network = FCN(SLIM[0], 64, 7, "none").eval()
    read_weights(path, digest, network)
    for name in ("features.0.weight", "features.28.bias", "classifier.3.bias"):
        assert torch.equal(network.state_dict()[name], given[name])
    # On a map of 7 x 7, the centre of the convolution is the fully connected layer.
    x = torch.randn(1, 64, 7, 7)
    linear = nn.functional.linear(x.flatten(1), given["classifier.0.weight"], given["classifier.0.bias"])
    torch.testing.assert_close(network.classifier[0](x)[:, :, 3, 3], linear, rtol=1e-4, atol=1e-3)
    assert not network(torch.randn(1, 3, 64, 64)).any()  # scores still start at 0

    other = FCN(SLIM[0], 64, 3, "none")  # its fc6 is of another size and keeps its own start
    before = other.state_dict()["classifier.0.weight"].clone()
    read_weights(path, digest, other)
    assert torch.equal(other.state_dict()["classifier.0.weight"], before)
    assert torch.equal(other.state_dict()["features.0.weight"], given["features.0.weight"])


def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path, digest = saved(tmp_path, torchvision(3))
    text = tmp_path / "text.safetensors"
    text.write_text("nothing")
    cases = [
        (tmp_path / "none.safetensors", digest, slim()),
        (path, "0" * 64, slim()),
        (path, "", slim()),
        (path, digest, FCN((4, 16, 32, 64, 64), 64, 3, "none")),
        (path, digest, FCN(SLIM[0], 64, 3, "batch")),
        (text, hashlib.sha256(text.read_bytes()).hexdigest(), slim()),
    ]
    for file, sha256, network in cases:
        for refuse in (check_weights, read_weights):
            with pytest.raises(InputError, match="CFG_BACKBONE") as error:
                refuse(file, sha256, network)
            assert "recipe.fcn_weights" in error.value.remedy
            assert "\n" not in str(error.value)
    pickled = tmp_path / "vgg16.pth"
    pickled.write_bytes(b"PK")
    with pytest.raises(InputError, match="a pickle") as error:
        check_weights(pickled, digest, slim())
    assert "convert it once" in error.value.remedy
