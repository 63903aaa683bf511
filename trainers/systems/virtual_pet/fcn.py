"""FCN-4s on VGG16: a trunk of five poolings whose scores are summed from coarse to fine; also FCN-8s, 16s and 32s.

Long, Shelhamer, Darrell 2015 (arXiv 1411.4038) stop at the third pooling (FCN-8s); here the second is scored as well.
VGG16 is Simonyan's and Zisserman's (arXiv 1409.1556).  Convolutions are padded by 1 and the first fully connected layer
by half its kernel, where the authors' code pads the image by 100 and crops: sizes are exact, and weights fit both.
ImageNet weights are read from a file that the user has.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trainers import perceptual

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of VGG16's blocks
SKIPS = 3  # poolings scored beside the last in FCN-4s
REMEDY = (
    "give torchvision's ImageNet weights as a safetensors file with its digest (--set recipe.fcn_weights=... "
    "recipe.fcn_weights_sha256=...), or train from scratch (--set recipe.fcn_weights=)"
)


class FCN(nn.Module):
    """134,265,540 parameters and 112 weights of upsampling at VGG16's size; layers of VGG16 are named as torchvision's.

    Score layers start at 0, and so the image; upsamplings start bilinear, the last one stays so.

    Args:
        widths: channels of the blocks: VGG16's five, or four without its last.
        fc: channels of the two layers that were fully connected.
        fc6_kernel: odd edge length of the first of them.
        norm: ``none``, as VGG16, or ``batch``, torchvision's variant.
        skips: poolings scored beside the last, from the coarsest: 3 for FCN-4s, 2, 1 and 0 for FCN-8s, 16s and 32s.
    """

    def __init__(
        self, widths: Sequence[int], fc: int, fc6_kernel: int, norm: Literal["none", "batch"], skips: int = SKIPS
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, convolutions in zip((3, *widths), widths, CONVOLUTIONS, strict=False):
            for first, second in pairwise((before, *[after] * convolutions)):
                layers.append(nn.Conv2d(first, second, 3, padding=1))
                layers += [nn.BatchNorm2d(after)] if norm == "batch" else []
                layers.append(nn.ReLU())
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        fc6 = nn.Conv2d(widths[-1], fc, fc6_kernel, padding=fc6_kernel // 2)
        self.classifier = nn.Sequential(fc6, nn.ReLU(), nn.Dropout(), nn.Conv2d(fc, fc, 1), nn.ReLU(), nn.Dropout())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.scores = nn.ModuleList(nn.Conv2d(n, 1, 1) for n in (fc, *widths[-2 : -2 - skips : -1]))
        for weight in self.scores.parameters():
            nn.init.zeros_(weight)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(1, 1, 4, 2, 1, bias=False) for _ in range(skips))
        for weight in self.ups.parameters():
            weight.data.copy_(bilinear(2))
        self.factor = 2 ** (len(widths) - skips)
        self.last: Tensor
        self.register_buffer("last", bilinear(self.factor))

    def forward(self, x: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b 1 y x"]:
        """Return the image, unbounded; edges must be multiples of 2^blocks."""
        pools = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pools.append(x)
        image = self.scores[0](self.classifier(x))
        for up, score, pool in zip(self.ups, self.scores[1:], pools[-2::-1], strict=False):
            image = up(image) + score(pool)
        return F.conv_transpose2d(image, self.last, stride=self.factor, padding=self.factor // 2)


def bilinear(factor: int) -> Float[Tensor, "1 1 k k"]:
    """Return the kernel of a transposed convolution that enlarges ``factor`` times; for 2: .25, .75, .75, .25."""
    ramp = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
    return torch.outer(ramp, ramp)[None, None]


@torch.no_grad()
def read_weights(file: Path, sha256: str, network: FCN) -> None:
    """Give ``network`` VGG16's weights from a safetensors file: convolutions, and fc6 and fc7 where they fit.

    Raises:
        InputError: CFG_BACKBONE, as ``check_weights``.
    """
    from safetensors.torch import load_file

    check_weights(file, sha256, network)
    given = load_file(file)
    for name, value in network.state_dict().items():
        found = given.get(name, torch.empty(0)) if _is_vgg16s(name) else torch.empty(0)
        if (found.shape[:1], found.numel()) == (value.shape[:1], value.numel()):
            value.copy_(found.reshape(value.shape))  # a fully connected layer reads its map channel by channel


def _is_vgg16s(name: str) -> bool:
    return name.startswith(("features.", "classifier.")) and not name.endswith("num_batches_tracked")


def check_weights(file: Path, sha256: str, network: FCN) -> None:
    """Refuse a file that is not there, is a pickle, is not the one that the digest names, or lacks convolutions.

    Raises:
        InputError: CFG_BACKBONE.
    """
    own = {name: value.shape for name, value in network.state_dict().items()}
    wanted = {name: shape for name, shape in own.items() if name.startswith("features.") and _is_vgg16s(name)}
    perceptual.check_tensors(file, sha256, wanted, REMEDY)
