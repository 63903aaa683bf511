"""Cascades and dense cascades, small enough to train in a test: configurations, and weights off their start."""

from typing import Any

import torch
from torch import Tensor, nn

from trainers.systems.cascade import Config

SMALL: dict[str, Any] = {
    "patch": (1, 32, 32),
    "width": 4,
    "downs": 4,
    "critic_width": 4,
    "critic_strides": (2, 1),
    "epoch_samples": 4,
    "epochs": 3,
    "validate_batches": 1,
}
SMALL_3D: dict[str, Any] = {"mode": "3d", "patch": (8, 16, 16), "downs": 3}
DENSE: dict[str, Any] = {"stages": 2, "dense": "images", "loss_at": "all"}
VARIANTS: dict[str, dict[str, Any]] = {
    "one stage": {},
    "cascade": {"stages": 3},
    "A": DENSE,
    "B": {**DENSE, "stages": 3, "dense": "images+skips"},
    "C": {**DENSE, "stages": 3, "dense": "replace_skips"},
    "apart": {**DENSE, "dense": "images+skips", "stop_gradient_between_stages": True},
    "2.5d": {"mode": "2.5d", "patch": (3, 32, 32)},
    "3d": {**SMALL_3D, **DENSE},
    "lsgan": {"gan_mode": "lsgan", "out_act": "linear", "upsample": "resize3"},
    "no discriminator": {"lambda_adversarial": 0.0, "upsample": "resize4"},
}


def small(**changes: Any) -> Config:
    return Config(**{**SMALL, **changes})


def perturb(network: nn.Module) -> None:
    """Move every weight and statistic off its initial value, so that no zero hides a mistake."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for name, b in network.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.3 * torch.randn_like(b))
            if name.endswith("running_var"):
                b.copy_(0.5 + torch.rand_like(b))


class Fixed(nn.Module):
    """A stage that gives one image, whatever it sees."""

    def __init__(self, image: Tensor, features: list[Tensor]) -> None:
        super().__init__()
        self.image, self.features = image, features

    def forward(self, x: Tensor, before: Any) -> tuple[Tensor, list[Tensor]]:
        return self.image, self.features
