"""What to search in 3D-CycleGAN."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {"patch_edge": lambda config: config.patch[0]}


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The weights beside an adversarial loss of weight 1."""
    return {
        # a factor of 5 either way of 10; an L1 follows the intensity scale, the adversarial loss does not
        "recipe.lambda_cycle": trial.suggest_float("recipe.lambda_cycle", 2, 50, log=True),
        # in parts of the cycle's: 0 lets intensities drift, 1 keeps them as strictly as what comes back
        "recipe.lambda_identity": trial.suggest_float("recipe.lambda_identity", 0, 1),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, size, and what is fed."""
    edge = trial.suggest_int("patch_edge", 32, 96, step=32)  # voxels: half to one and a half of 64
    return {
        # a factor of 5 either way of 2e-4; discriminators follow it too
        "recipe.lr": trial.suggest_float("recipe.lr", 4e-5, 1e-3, log=True),
        # half to twice 32 channels; weights grow with the square
        "recipe.width": trial.suggest_int("recipe.width", 16, 64, step=16),
        # none of fewer than Cycle-GAN's smallest network's half, none of more than its largest's
        "recipe.blocks": trial.suggest_int("recipe.blocks", 3, 9),
        "recipe.patch": (edge, edge, edge),
    }
