"""CG-3DSRGAN, small enough to train in a test: configuration, batches, and weights off their initial values."""

from typing import Any

import torch
from torch import nn

from trainers.assembly import cropped
from trainers.engine import plain_engine
from trainers.recipe import Batch
from trainers.systems import cg_3dsrgan
from trainers.systems.cg_3dsrgan import CG3DSRGAN, Config

SMALL: dict[str, Any] = {
    "mlnet_channels": 4,
    "head_hidden": 8,
    "contextual_channels": 4,
    "discriminator_channels": 4,
    "perceptual": "masked",
    "epoch_samples": 4,
    "max_epochs": 2,
    "backbone_samples": 4,
    "calibration_samples": 6,
    "patch": (32, 32, 32),
    "validate_batches": 2,
}


def small(**changes: Any) -> Config:
    return Config(**{**SMALL, **changes})


def build(config: Config, seed: int = 0) -> CG3DSRGAN:
    torch.manual_seed(seed)
    return cg_3dsrgan.build(config, make_engine=plain_engine, patches_per_step=2)


def make_batch(seed: int, edge: int = 32, doses: tuple[float, ...] = (4.0, 100.0), around: int = 0) -> Batch:
    """Patches of cases of several doses, the low dose with ``around`` voxels on every side."""
    random = torch.Generator().manual_seed(seed)
    b, whole = len(doses), edge + 2 * around
    full = torch.rand(b, 1, whole, whole, whole, generator=random)
    return Batch(
        source=full + 0.2 * torch.randn(full.shape, generator=random),
        target=cropped(full, (around,) * 3),
        masks=torch.zeros(b, 0, edge, edge, edge),
        overview=torch.zeros(b, 1, 0, 0, 0),
        drf=torch.tensor(doses),
        cases=b,
        places=("",) * b,
        spacing_mm=torch.full((b, 3), 4.0),
        peak=torch.ones(b),
    )


def perturb(module: nn.Module) -> None:
    """Move every weight and statistic off its initial value, so that no zero hides a mistake."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn_like(p))
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.3 * torch.randn_like(b))
            if name.endswith("running_var"):
                b.copy_(0.5 + torch.rand_like(b))


def module(recipe: CG3DSRGAN) -> cg_3dsrgan.Generator:
    G = recipe.M.module
    assert isinstance(G, cg_3dsrgan.Generator)
    return G
