"""What to search in Cycle-GAN."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {"patch_edge": lambda config: config.patch[1]}


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The weights beside an adversarial loss of weight 1."""
    return {
        # a factor of 5 either way of 10; an L1 follows the intensity scale, the adversarial loss does not
        "recipe.lambda_cycle": trial.suggest_float("recipe.lambda_cycle", 2, 50, log=True),
        # in parts of the cycle's: 0 lets intensities drift, 1 keeps them as strictly as what comes back
        "recipe.lambda_identity": trial.suggest_float("recipe.lambda_identity", 0, 1),
        # images: none shows the discriminators the newest alone, and 200 show them what was long overcome
        "recipe.pool": trial.suggest_int("recipe.pool", 0, 200, step=50),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, size, and what is fed."""
    edge = trial.suggest_int("patch_edge", 64, 192, step=32)  # voxels: half to one and a half of 128
    return {
        # a factor of 5 either way of 2e-4; discriminators follow it too
        "recipe.lr": trial.suggest_float("recipe.lr", 4e-5, 1e-3, log=True),
        # published for 128 and for 256 pixels are 6 and 9; PET is smoother than photographs
        "recipe.blocks": trial.suggest_int("recipe.blocks", 3, 9),
        "recipe.patch": (1, edge, edge),
        # windows of one case: more read cheaper, and show a step fewer patients
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 8, log=True),
    }
