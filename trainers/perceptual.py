"""Perceptual losses (Johnson et al., arXiv 1603.08155): images compared by the features of a frozen network.

Two such networks: VGG16 trained on ImageNet, for slices, its weights in a file that the user gives and names by digest;
and a small 3D encoder-decoder, trained to restore masked blocks of the run's own full-dose patches.  Images are on
the run's intensity scale.  Nothing is downloaded.  Random numbers (slices, masks) come from torch's default generator
on the CPU, so that every device draws the same.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from storage.errors import InputError

BLOCKS = (2, 2, 3, 3)  # 3x3 convolutions before each pooling of VGG16, up to relu4_3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SLICES = 8  # drawn per axis and sample: all of a 96^3 patch would cost 40 times ML-Net
SIGNAL = 0.01  # network units (SUV 0.1 at SUV / 10); a slice that nowhere exceeds it is air
BLOCK, HIDDEN = 8, 0.6  # edge of a masked block in voxels; share of the blocks
GAIN = 10.0  # brings SUV / 10 to order one, and so the features near VGG's on standardised images
REMEDY = (
    "give torchvision's ImageNet weights as a safetensors file with its digest (--set recipe.vgg16_file=... "
    "recipe.vgg16_sha256=...), or train a substitute on the run's own images (--set recipe.perceptual=masked)"
)
CONVERT = (
    'convert it once: python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('vgg16.pth', weights_only=True), 'vgg16.safetensors')\", and give that file with its digest"
)


def feature_loss(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the sum over layers of mean squared differences, in fp32.

    With maps (slices, c, h, w) it is the mean over slices of sum_i |a_i - b_i|^2 / (C_i H_i W_i), CG-3DSRGAN's eq. 3.
    """
    return torch.stack([F.mse_loss(a.float(), b.float()) for a, b in zip(maps, targets, strict=True)]).sum()


# VGG16 on slices


class VGG16(nn.Module):
    """Simonyan and Zisserman's VGG16 (arXiv 1409.1556) up to relu4_3, layers and names as torchvision's.  7,635,264.

    Args:
        channels: of the first block; they double per block (64 in VGG16).
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before, self.taps = 3, set[int]()
        for level, convolutions in enumerate(BLOCKS):
            layers += [nn.MaxPool2d(2)] if level else []
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, channels << level, 3, padding=1), nn.ReLU()]
                before = channels << level
            self.taps.add(len(layers) - 1)  # relu1_2, relu2_2, relu3_3, relu4_3: 3, 8, 15, 22
        self.features = nn.Sequential(*layers)

    def forward(self, slices: Float[Tensor, "n 1 h w"]) -> list[Tensor]:
        """Return the four maps of grey slices whose window SUV 0 to 10 is [0, 1]; values beyond are not clamped."""
        mean, std = (slices.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        x = (slices - mean) / std
        maps = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                maps.append(x)
        return maps


def draw_slices(reference: Float[Tensor, "b 1 z y x"], axis: int, count: int = SLICES) -> Int[Tensor, "b n"]:
    """Draw different slices across ``axis`` (0 is z) for every sample: those with signal first, then any."""
    other = [a for a in (1, 2, 3) if a != axis + 1]
    signal = reference[:, 0].amax(other) > SIGNAL
    keys = torch.rand(signal.shape, device="cpu").to(reference.device) + signal
    return keys.topk(min(count, keys.shape[1])).indices


def take_slices(image: Float[Tensor, "b 1 z y x"], axis: int, index: Int[Tensor, "b n"]) -> Float[Tensor, "bn 1 h w"]:
    """Return the slices ``index`` of every sample across ``axis``."""
    stack = image[:, 0].movedim(axis + 1, 1)
    return stack[torch.arange(len(stack), device=stack.device)[:, None], index].flatten(0, 1)[:, None]


def slice_loss(
    net: nn.Module, image: Float[Tensor, "b 1 z y x"], reference: Float[Tensor, "b 1 z y x"], count: int = SLICES
) -> Float[Tensor, ""]:
    """Return ``feature_loss`` of random slices, the same ones of both images, averaged over the three axes.

    Patches with an edge below 32 voxels, where slices across the other axes are too thin for relu4_3, give axial
    slices only.  Gradients reach ``image`` alone; ``net`` follows it to its device.

    Args:
        net: ``VGG16``, frozen.
        image: network units, SUV / 10: the fixed window SUV 0 to 10 is [0, 1] as it comes.
        reference: of the same shape and scale.
        count: slices per axis and sample.
    """
    net.to(image.device)
    terms = []
    for axis in range(3) if min(image.shape[2:]) >= 32 else range(1):
        index = draw_slices(reference, axis, count)
        with torch.no_grad():
            targets = net(take_slices(reference, axis, index))
        terms.append(feature_loss(net(take_slices(image, axis, index)), targets))
    return torch.stack(terms).mean()


def read_vgg16(file: Path, sha256: str, remedy: str = REMEDY) -> VGG16:
    """Build VGG16, frozen, from ``features.N.weight`` and ``.bias`` of a safetensors file; other tensors are ignored.

    Raises:
        InputError: CFG_BACKBONE, as ``check_vgg16``.
    """
    from safetensors import safe_open

    check_vgg16(file, sha256, remedy)
    with torch.device("meta"):
        net = VGG16()
    with safe_open(file, framework="pt", device="cpu") as tensors:
        net.load_state_dict({name: tensors.get_tensor(name).float() for name in net.state_dict()}, assign=True)
    return net.eval().requires_grad_(False)


def check_vgg16(file: Path, sha256: str, remedy: str = REMEDY) -> None:
    """Refuse a file that does not hold VGG16, as ``check_tensors``; ``remedy`` names the system's own fields.

    Raises:
        InputError: CFG_BACKBONE.
    """
    with torch.device("meta"):
        check_tensors(file, sha256, {name: value.shape for name, value in VGG16().state_dict().items()}, remedy)


def check_tensors(file: Path, sha256: str, wanted: Mapping[str, Sequence[int]], remedy: str) -> None:
    """Refuse a file that is not there, is a pickle, is not the one that the digest names, or lacks wanted tensors.

    Only the header is read for the names and shapes of ``wanted``.

    Raises:
        InputError: CFG_BACKBONE, with ``remedy`` unless the file is a pickle, which can be converted.
    """
    from safetensors import SafetensorError, safe_open

    name = file.name or "recipe.vgg16_file"
    if not file.is_file():
        missing = "no such file" if file.name else "no file named; petscale contains no VGG16 and fetches none"
        raise InputError("CFG_BACKBONE", where=name, found=missing, remedy=remedy)
    with file.open("rb") as stream:
        begin = stream.read(2)
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if file.suffix != ".safetensors" or begin in (b"PK", b"\x80\x02"):
        raise InputError("CFG_BACKBONE", where=name, found="a pickle, which can run code when read", remedy=CONVERT)
    if not sha256:
        raise InputError("CFG_BACKBONE", where=name, found="no digest to hold it against", remedy=remedy)
    if digest != sha256.lower():
        raise InputError("CFG_BACKBONE", where=name, found=f"its SHA-256 is {digest}, not the one given", remedy=remedy)
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            held = {key: tensors.get_slice(key).get_shape() for key in tensors.keys() if key in wanted}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError("CFG_BACKBONE", where=name, found="not a safetensors file", remedy=remedy) from error
    for key, shape in wanted.items():
        if held.get(key) != list(shape):
            found = f"no '{key}' of shape {tuple(shape)}"
            raise InputError("CFG_BACKBONE", where=name, found=found, remedy=remedy)


# The substitute, trained on the run's own images


class MaskedAutoencoder(nn.Module):
    """A 3D encoder with features at three depths, and the decoder that its training needs.  No norm, no skips.

    Without norms, features keep the intensity scale and do not depend on the batch; without skips, whatever the decoder
    restores had to pass the encoder.  LeakyReLUs, since a map that is off must still see an image drift: with ReLUs,
    nothing held the activity of CG-3DSRGAN's refined image (-6 times the true one, against 0.9 to 1.1).

    Args:
        channels: of the first depth; they double with every halving.
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        c = channels

        def double(before: int, after: int, stride: int) -> nn.Sequential:
            first = nn.Conv3d(before, after, 3, stride, 1)
            return nn.Sequential(first, nn.LeakyReLU(0.2), nn.Conv3d(after, after, 3, 1, 1), nn.LeakyReLU(0.2))

        def enlarge(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(nn.ConvTranspose3d(before, after, 4, 2, 1), nn.LeakyReLU(0.2))

        self.encoder = nn.ModuleList([double(1, c, 1), double(c, 2 * c, 2), double(2 * c, 4 * c, 2)])
        self.decoder = nn.Sequential(enlarge(4 * c, 2 * c), enlarge(2 * c, c), nn.Conv3d(c, 1, 3, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=0.2)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(
        self, image: Float[Tensor, "b 1 z y x"], hidden: Bool[Tensor, "b 1 z y x"] | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the feature maps of an image, or, with ``hidden`` voxels set to 0, its restoration."""
        x = GAIN * (image if hidden is None else image.masked_fill(hidden, 0.0))
        maps = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        if hidden is None:
            return tuple(maps)
        restored: Tensor = self.decoder(x) / GAIN
        return restored


def draw_mask(image: Float[Tensor, "b 1 z y x"]) -> Bool[Tensor, "b 1 z y x"]:
    """Hide blocks of 8^3 voxels, each with probability 0.6; edges are multiples of 8."""
    blocks = torch.rand(len(image), 1, *(edge // BLOCK for edge in image.shape[2:]), device="cpu") < HIDDEN
    for axis in (2, 3, 4):
        blocks = blocks.repeat_interleave(BLOCK, axis)
    return blocks.to(image.device)


def restoration_loss(
    restored: Float[Tensor, "b 1 z y x"], image: Float[Tensor, "b 1 z y x"], hidden: Bool[Tensor, "b 1 z y x"]
) -> Float[Tensor, ""]:
    """Return the mean absolute difference over the hidden voxels."""
    return ((restored - image).abs() * hidden).sum() / hidden.sum().clamp(min=1)
