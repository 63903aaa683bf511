"""pix2pix's networks and CycleGAN's: counts and sizes, fields of view, initial values, what a bottleneck can learn."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_facts import count
from torch import Tensor, nn

from trainers.blocks import DROPOUT, OfPairs, PatchGAN, ResNetGenerator, UNet, Upsample

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def on_meta(network: type[nn.Module], *args: Any, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return network(*args, **options)


# Counts.


def test_every_layer_has_the_published_number_of_parameters() -> None:
    """Paper 4's Table 1, completed by pix2pix: weights, bias and batch norm of every layer, 3 -> 3 channels."""
    unet = on_meta(UNet, 3, 3)
    assert isinstance(unet, UNet)
    deep = 4_194_304
    encoder = [3_072, 131_328, 524_800, 2_098_176, deep + 1_024, deep + 1_024, deep + 1_024, deep]
    decoder = [deep + 1_024, *[2 * deep + 1_024] * 3, deep + 512, 1_048_832, 262_272]
    assert [count(block) for block in unet.encoder] == encoder
    assert [count(block) for block in unet.decoder] == decoder
    assert count(unet.image) == 6_147
    assert count(unet) == 54_413_955
    assert not [m for m in unet.encoder[-1].modules() if isinstance(m, nn.BatchNorm2d)]
    dropped = [any(isinstance(m, nn.Dropout) and m.p == DROPOUT for m in block.modules()) for block in unet.decoder]
    assert dropped == [True] * 3 + [False] * 4


@pytest.mark.parametrize(
    ("channels", "options", "expected"),
    [
        (1, {}, 54_407_809),
        (3, {"upsample": "resize3"}, 39_157_763),
        (3, {"upsample": "resize4"}, 54_413_955),
        *((1, {"downs": n}, k) for n, k in ((4, 6_165_121), (5, 16_652_929), (6, 29_237_889), (7, 41_822_849))),
        *((1, {"downs": n, "width": 32}, k) for n, k in ((4, 1_542_465), (5, 4_164_929), (8, 13_605_185))),
        *((1, {"downs": n, "dims": 3}, k) for n, k in ((4, 24_655_489), (5, 66_600_577))),
        *((1, {"downs": 5, "dims": 3, "width": w}, k) for w, k in ((32, 16_654_145), (16, 4_165_537))),
    ],
)
def test_unets_of_other_sizes_have_their_number_of_parameters(
    channels: int, options: dict[str, Any], expected: int
) -> None:
    assert count(on_meta(UNet, channels, channels, **options)) == expected


@pytest.mark.parametrize(
    ("inputs", "options", "expected"),
    [
        (6, {}, 2_768_705),
        (2, {}, 2_764_609),
        (2, {"strides": (2, 1)}, 135_489),
        (2, {"width": 32, "dims": 3}, 2_773_921),
        (1, {"norm": "instance"}, 2_762_689),
        (1, {"norm": "instance", "dims": 3}, 11_047_873),
    ],
)
def test_discriminators_have_their_number_of_parameters(inputs: int, options: dict[str, Any], expected: int) -> None:
    assert count(on_meta(PatchGAN, inputs, **options)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 7_825_153),
        ({"blocks": 9}, 11_365_633),
        ({"dims": 3, "blocks": 9}, 34_121_985 - 2 * 5_248),
        ({"dims": 3}, 23_500_545 - 2 * 3_712),
        ({"dims": 3, "blocks": 9, "width": 32}, 8_545_409 - 2 * 2_624),
    ],
)
def test_cyclegan_generators_have_their_number_of_parameters(options: dict[str, Any], expected: int) -> None:
    """In 3D, those that the public port counts with batch norm, less its scales and shifts."""
    assert count(on_meta(ResNetGenerator, **options)) == expected


# Sizes and fields of view.


def test_a_slice_of_256_pixels_is_halved_to_one_and_doubled_back() -> None:
    with torch.device("meta"):
        unet, x = UNet(3, 3), torch.zeros(1, 3, 256, 256)
        *skips, bottleneck = unet.encode(x)
        image, own = unet.decode(bottleneck, skips[::-1])
    assert [s.shape[-1] for s in (*skips, bottleneck)] == [128, 64, 32, 16, 8, 4, 2, 1]
    assert [s.shape[-1] for s in own] == [2, 4, 8, 16, 32, 64, 128]
    assert [o.shape for o in own] == [s.shape for s in skips[::-1]]
    assert image.shape == x.shape


@pytest.mark.parametrize("upsample", ["deconv", "deconv2", "resize3", "resize4"])
@pytest.mark.parametrize("dims", [2, 3])
def test_images_keep_their_size_whatever_doubles_them(upsample: Upsample, dims: Any) -> None:
    x = torch.rand(1, 2, *(16, 32, 24)[:dims])
    assert UNet(2, 1, width=2, downs=3, dims=dims, upsample=upsample)(x).shape == (1, 1, *x.shape[2:])


@pytest.mark.parametrize("dims", [2, 3])
def test_cyclegan_generators_keep_the_size_and_give_every_norm_what_is_given(dims: Any) -> None:
    seen: list[Tensor] = []

    class Doubling(nn.Module):
        def forward(self, x: Tensor, given: Tensor) -> Tensor:
            seen.append(given)
            return 2 * x

    x, given = torch.rand(1, 1, *(8, 16, 12)[:dims]), torch.ones(1)
    network = ResNetGenerator(width=2, blocks=2, dims=dims, norm=lambda channels: Doubling())
    assert network(x, given).shape == x.shape
    assert len(seen) == 3 + 2 * 2 + 2
    assert all(one is given for one in seen)


def test_a_cyclegan_generator_has_its_published_layers() -> None:
    """c7s1-4, d8, d16, R16, u8, u4, c7s1-1 with mirrored borders, written out with PyTorch's functions."""
    network = ResNetGenerator(width=4, blocks=1)
    x = torch.randn(2, 1, 16, 12)
    conv = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}
    w = [(m.weight, m.bias) for m in conv.values()]

    def mirrored(image: Tensor, edge: int) -> Tensor:
        return F.pad(image, (edge,) * 4, mode="reflect")

    h = F.instance_norm(F.conv2d(mirrored(x, 3), *w[0])).relu()
    h = F.instance_norm(F.conv2d(h, *w[1], stride=2, padding=1)).relu()
    h = F.instance_norm(F.conv2d(h, *w[2], stride=2, padding=1)).relu()
    r = F.instance_norm(F.conv2d(mirrored(h, 1), *w[3])).relu()
    h = h + F.instance_norm(F.conv2d(mirrored(r, 1), *w[4]))
    h = F.instance_norm(F.conv_transpose2d(h, *w[5], stride=2, padding=1, output_padding=1)).relu()
    h = F.instance_norm(F.conv_transpose2d(h, *w[6], stride=2, padding=1, output_padding=1)).relu()
    torch.testing.assert_close(network(x), x + F.conv2d(mirrored(h, 3), *w[7]))


@pytest.mark.parametrize(("strides", "field"), [((2, 2, 2, 1), 70), ((2, 2, 1), 34), ((2, 1), 16)])
def test_a_logit_sees_its_field_and_nothing_else(strides: tuple[int, ...], field: int) -> None:
    network = PatchGAN(1, width=2, strides=strides).eval()
    x = torch.rand(1, 1, 96, 96, requires_grad=True)
    logits = network(x)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    assert x.grad is not None
    seen = (x.grad[0, 0] != 0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [field, field]


def test_the_published_discriminator_gives_these_maps() -> None:
    with torch.device("meta"):
        network = PatchGAN(6)
        found = [network(torch.zeros(1, 3, n, n), torch.zeros(1, 3, n, n)).shape[-1] for n in (64, 96, 128, 192, 256)]
    assert found == [6, 10, 14, 22, 30]


def test_two_taps_never_overlap() -> None:
    """A voxel of the image comes from one voxel below: values a block of two apart do not meet."""
    last = UNet(1, 1, width=2, downs=2, upsample="deconv2").image
    x = torch.zeros(1, 4, 4, 4)
    x[:, :, 1, 2] = 1
    changed = (last(x) - last(torch.zeros_like(x)))[0, 0] != 0
    assert changed.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_images_beside_one_condition_are_normed_apart() -> None:
    of_pairs = OfPairs(PatchGAN(2, width=2, strides=(2, 2)))
    condition, real, fake = torch.rand(3, 2, 1, 32, 32)
    alone, both = of_pairs(condition, real), of_pairs(condition, real, fake)
    assert torch.equal(alone[0], both[0])
    assert not torch.equal(both[0], both[1])


# Values.


def test_weights_start_as_in_the_published_code() -> None:
    unet = UNet(3, 3, width=16, downs=4)
    _, conv, norm = unet.encoder[2].children()
    last = unet.image[-1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(last, nn.ConvTranspose2d)
    assert last.bias is not None
    assert conv.weight.detach().std() == pytest.approx(0.02, rel=0.05)
    assert norm.weight.detach().mean() == pytest.approx(1, abs=0.02)
    assert 0.01 < norm.weight.std() < 0.03
    assert not norm.bias.any()
    assert not last.bias.any()


def test_at_inference_a_batch_changes_nothing_and_nothing_is_random() -> None:
    unet = UNet(1, 1, width=2, downs=5)
    x = torch.rand(3, 1, 32, 32)
    assert not torch.equal(unet(x), unet(x))  # dropout
    unet.eval()
    together = unet(x)
    assert torch.equal(together, unet(x))
    for i in range(3):
        torch.testing.assert_close(unet(x[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-7)


def taps(edge: int) -> list[int]:
    """How many of 16 taps learn something of images of ``edge`` pixels, in the two layers at the bottleneck."""
    unet = UNet(1, 1, width=2, downs=3)
    unet(torch.rand(2, 1, edge, edge)).square().sum().backward()
    found = []
    for layer in (list(block.children())[1] for block in (unet.encoder[-1], unet.decoder[0])):
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        assert layer.weight.grad is not None
        found.append(int((layer.weight.grad.abs().sum((0, 1)) > 0).sum()))
    return found


def test_a_bottleneck_of_one_pixel_learns_a_quarter_of_its_taps() -> None:
    """Why a network is never run on larger images than it was trained on."""
    assert taps(8) == [4, 4]
    assert taps(16) == [16, 16]


def checkerboard(images: Tensor) -> float:
    """Power at the three frequencies of period 2 over that around them, in dB; images are (n, y, x)."""
    n = images.shape[-1]
    window = torch.hann_window(n, periodic=False)
    power = torch.fft.fft2((images - images.mean((1, 2), keepdim=True)) * window[:, None] * window).abs().square()
    power = power.mean(0)
    rows, columns = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    peaks, rings = [], []
    for y, x in ((n // 2, 0), (0, n // 2), (n // 2, n // 2)):
        dy, dx = ((axis - at + n // 2) % n - n // 2 for axis, at in ((rows, y), (columns, x)))
        distance = torch.maximum(dy.abs(), dx.abs())
        peaks.append(power[y, x])
        rings.append(power[(distance >= 3) & (distance <= 6)].mean())
    return float(10 * torch.log10(torch.stack(peaks).mean() / torch.stack(rings).mean()))


def test_a_fresh_transposed_convolution_draws_checkerboards_and_a_resized_one_does_not() -> None:
    noise = torch.randn(16, 1, 64, 64)
    smooth = torch.nn.functional.avg_pool2d(noise, 9, stride=1, padding=4)
    found = {}
    for upsample in ("deconv", "resize3"):
        torch.manual_seed(1)
        with torch.no_grad():
            found[upsample] = checkerboard(UNet(1, 1, width=8, downs=5, upsample=upsample)(smooth)[:, 0])
    assert abs(checkerboard(noise[:, 0])) < 3
    assert found["deconv"] > 12
    assert found["resize3"] < 6
