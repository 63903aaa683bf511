"""3D CVT-GAN: a GAN in 3D of convolutional vision transformers, from low dose to full dose.

Zeng, Zhou, Zu, Zeng, Jiao, Wu, Zhou, Shen, Wang 2022, "3D CVT-GAN: a 3D convolutional vision transformer-GAN for PET
reconstruction", MICCAI 2022, doi 10.1007/978-3-031-16446-0_49.  Layers, heads and rates are those of the authors'
public code, which carries no licence and was read for facts alone; both networks have its number of parameters.

Readings: queries, keys and values are depth-wise convolutions, keys and values at half the resolution; scores are
scaled by the whole width, not by a head's; no position is embedded.  The dropout of the second CVT stage stands after
attention and after the MLP.  D's map of scores is averaged, as its cross-entropy is; its loss is halved.  70 epochs of
125 patches of 16 scans, the rate times 0.4 after the 50th and the 60th.

Deviations: the code scales low and full dose of every batch to [0, 1] apart, which breaks their common scale; here both
are SUV.  Windows drawn in the body, where the code cuts 64^3 patches at a stride of 9 or 16 voxels; at inference they
overlap by half and are blended.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from storage.ranges import Range
from trainers import assembly, blocks, losses
from trainers.feed_config import FeedConfig
from trainers.recipe import Batch, BatchSpec, Engine, EngineFactory, Metrics, Tiling

FEED = FeedConfig(suv_scale=5.0, cases_per_step=5)
PRESET = "s3pet"  # whose Table I compares with it
ROLES = frozenset({"unpaired"})  # of nobody unless asked: S3PET's table gives every row the same pairs
HALVED = 16  # voxels that both networks' four strides make one
DROPS, DROP = (50 / 70, 60 / 70), 0.4  # of the rate, in parts of a run


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published networks.

    Args:
        width: channels of G's first convolution, doubled three times; even.
        critic_width: channels of D's first convolution, doubled three times.
        lambda_l1: weight of L1.
        lr: Adam's learning rate for G.
        critic_lr: and for D.
        samples: patches seen.
        patch: edge lengths (z, y, x) in voxels, multiples of 16.
        patches_per_case: patches of one case in a step.
    """

    width: Annotated[int, Range(2)] = 64
    critic_width: Annotated[int, Range(1)] = 8
    lambda_l1: Annotated[float, Range(0)] = 100.0
    lr: Annotated[float, Range(above=0)] = 2e-4
    critic_lr: Annotated[float, Range(above=0)] = 2e-4
    samples: Annotated[int, Range(1)] = 140_000
    patch: tuple[int, int, int] = (64, 64, 64)
    patches_per_case: Annotated[int, Range(1)] = 1

    def __post_init__(self) -> None:
        require = assembly.check_fields(self, "cvt_gan")
        require(
            self.width % 2 == 0, "CFG_RANGE", "width", "use an even number: twice of it is divided among four heads"
        )
        fits = all(edge >= HALVED and edge % HALVED == 0 for edge in self.patch)
        require(fits, "CFG_PATCH_SIZE", "patch", "use multiples of 16 voxels: both networks halve four times")
        deepest = math.prod(-(-edge // (2 * HALVED)) for edge in self.patch) * self.patches_per_case
        remedy = "use 2 or more, or a longer patch: the norms of the deepest keys need voxels"
        require(deepest > 1, "CFG_RANGE", "patches_per_case", remedy)


class Attention(nn.Module):
    """Attention between the voxels of a map, projected by depth-wise convolutions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        self.project = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(width, width, 3, stride, padding=1, groups=width, bias=False), nn.BatchNorm3d(width)
            )
            for stride in (1, 2, 2)
        )
        self.linear = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b d z y x"]) -> Float[Tensor, "b n d"]:
        q, k, v = (
            linear(tokens(project(x))).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, linear in zip(self.project, self.linear, strict=True)
        )
        seen = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        mixed: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention and an MLP, each normed before and added to what it got; 12 d^2 + 97 d parameters of width d."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b d z y x"]) -> Float[Tensor, "b d z y x"]:
        space, t = x.shape[2:], tokens(x)
        t = t + self.drop(self.attention(volume(self.norms[0](t), space)))
        t = t + self.drop(self.mlp(self.norms[1](t)))
        return volume(t, space)


def tokens(x: Float[Tensor, "b d z y x"]) -> Float[Tensor, "b n d"]:
    """Return the voxels of a map in one row."""
    return x.flatten(2).transpose(1, 2)


def volume(t: Float[Tensor, "b n d"], space: torch.Size) -> Float[Tensor, "b d z y x"]:
    """Undo ``tokens``."""
    image: Tensor = t.transpose(1, 2).unflatten(2, space)
    return image


class Stage(nn.Module):
    """CVT or TCVT: a strided or transposed convolution, a norm over channels, and blocks."""

    def __init__(self, embed: nn.Module, width: int, depth: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed, self.norm = embed, nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)))

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b d *half"]:
        x = self.embed(x)
        mixed: Tensor = self.blocks(volume(self.norm(tokens(x)), x.shape[2:]))
        return mixed


class ResidualConv(nn.Module):
    """A convolution with LeakyReLU and norm, plus a 1 x 1 x 1 convolution of the same map."""

    def __init__(self, before: int, after: int, dropout: float = 0.0) -> None:
        super().__init__()
        dropped = nn.Dropout3d(dropout) if dropout else nn.Identity()
        self.main = nn.Sequential(conv3(before, after), dropped, nn.LeakyReLU(blocks.SLOPE), nn.BatchNorm3d(after))
        self.short = nn.Conv3d(before, after, 1)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b d *space"]:
        both: Tensor = self.main(x) + self.short(x)
        return both


def conv3(before: int, after: int, stride: int = 1) -> nn.Conv3d:
    """Return a convolution of three taps."""
    return nn.Conv3d(before, after, 3, stride, padding=1)


def doubled(before: int, after: int) -> nn.ConvTranspose3d:
    """Return a transposed convolution of two taps, which do not overlap."""
    return nn.ConvTranspose3d(before, after, 2, stride=2)


class Generator(nn.Module):
    """G: four halvings, three of them CVT, and four doublings, two of them TCVT; 28,288,801 parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        a, b, c, d = blocks.encoder_widths(width, 4)
        leaky = nn.LeakyReLU(blocks.SLOPE)
        self.encoder = nn.ModuleList(
            [
                nn.Sequential(conv3(1, a, 2), leaky, nn.BatchNorm3d(a)),
                Stage(conv3(a, b, 2), b, depth=1, heads=2),
                Stage(conv3(b, c, 2), c, depth=2, heads=4, dropout=0.2),
                Stage(conv3(c, d, 2), d, depth=2, heads=4),
            ]
        )
        self.decoder = nn.ModuleList(
            [
                nn.Sequential(ResidualConv(d, d), Stage(doubled(d, c), c, depth=2, heads=4)),
                nn.Sequential(ResidualConv(2 * c, c, 0.2), Stage(doubled(c, b), b, depth=1, heads=4)),
                nn.Sequential(ResidualConv(2 * b, b), doubled(b, a)),
                nn.Sequential(conv3(2 * a, a), conv3(a, a // 2), doubled(a // 2, 1), leaky),
            ]
        )
        self.apply(_initialise)

    def forward(self, low: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 1 z y x"]:
        x, maps = low, []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        x = self.decoder[0](maps.pop())
        for stage in self.decoder[1:]:
            x = stage(torch.cat([x, maps.pop()], dim=1))
        image: Tensor = x + low
        return image


class Discriminator(nn.Module):
    """D: logits of a pair, one for every 16^3 voxels and every channel; 294,872 parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((2, width, 2), (width, 2 * width, 1), (2 * width, 4 * width, 2)):
            dropped = nn.Dropout3d(0.2) if after == 4 * width else nn.Identity()
            layers += [conv3(before, after, stride), dropped, nn.LeakyReLU(blocks.SLOPE), nn.BatchNorm3d(after)]
        layers += [Stage(conv3(n * width, 8 * width, 2), 8 * width, depth=1, heads=2) for n in (4, 8)]
        self.layers = nn.Sequential(*layers, nn.Dropout(0.3))
        self.apply(_initialise)

    def forward(self, *images: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b c *sixteenth"]:
        logits: Tensor = self.layers(torch.cat(images, dim=1))
        return logits


def _initialise(module: nn.Module) -> None:
    """Convolutions N(0, 0.02), linear layers Xavier's (the authors' code)."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.normal_(module.weight, 0.0, blocks.INITIAL_SD)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)


def update(config: Config, G: Engine, D: Engine, num_steps: int, batch: Batch, step: int) -> Metrics:
    """Update D and then G."""
    factor = DROP ** sum(step >= share * num_steps for share in DROPS)
    G.set_lr(config.lr * factor)
    D.set_lr(config.critic_lr * factor)
    G.module.train()
    image = G(batch.source)
    critic = assembly.update_discriminator(D, batch.source, batch.target, image, losses.logistic_discriminator_loss)
    with D.frozen() as judge:
        (scores,) = judge(batch.source, image)
        adversarial, l1 = losses.logistic_generator_loss(scores), F.l1_loss(image, batch.target)
        loss = adversarial + config.lambda_l1 * l1
        G.backward(loss)
    G.step()
    return {"discriminator": critic, "adversarial": adversarial, "l1": l1, "generator": loss}


def inference(config: Config, networks: Mapping[str, nn.Module]) -> assembly.WindowSynthesizer:
    """Return G, in windows of the training size that overlap by half."""
    z, y, x = config.patch
    return assembly.windows(networks["G"], Tiling(config.patch, (0, 0, 0), (z // 2, y // 2, x // 2)))


check, files = assembly.accept_any_feed, assembly.no_files


def caveats(config: Config) -> tuple[str, ...]:
    """Say what this implementation rests on."""
    return ("3D CVT-GAN: a re-implementation of the layers of the authors' public code, trained on SUV.",)


def build(config: Config, *, make_engine: EngineFactory, patches_per_step: int) -> assembly.Assembled:
    """Build networks and engines, one Adam each; ``patches_per_step`` counts the patches of all ranks."""
    G = make_engine(Generator(config.width), partial(torch.optim.Adam, lr=config.lr))
    D = make_engine(blocks.OfPairs(Discriminator(config.critic_width)), partial(torch.optim.Adam, lr=config.critic_lr))
    spec = BatchSpec(config.patch, (0, 0, 0), config.patches_per_case, {"body": 1.0})
    phases = assembly.Phases({"train": assembly.steps_of(config.samples, patches_per_step)})
    step = partial(update, config, G, D, phases.num_steps)
    return assembly.Assembled({"G": G, "D": D}, step, spec, phases, {"G": "train"}, partial(inference, config))


def weights_to_synthesizer(config: Config, weights: Mapping[str, Tensor]) -> assembly.WindowSynthesizer:
    """Build the inference side from what a run exported; raises InputError CKPT_CONFIG."""
    builds = {"G": partial(Generator, config.width)}
    return inference(config, assembly.networks_of(weights, builds, "weights of 3D CVT-GAN"))
