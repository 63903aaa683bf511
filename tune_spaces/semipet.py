"""What to search in the SemiPET-like system."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {"patch_edge": lambda config: config.patch[1]}


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The weights of both kinds of steps, and what regions are."""
    return {
        # a decade either way of 100, against Adam's steps on different patients
        "recipe.lambda_supervised": trial.suggest_float("recipe.lambda_supervised", 10, 1000, log=True),
        # a factor of 5 either way of 10, as Cycle-GAN
        "recipe.lambda_cycle": trial.suggest_float("recipe.lambda_cycle", 2, 50, log=True),
        # a decade either way of 1
        "recipe.lambda_structure": trial.suggest_float("recipe.lambda_structure", 0.1, 10, log=True),
        # medians: 2 takes in the liver, 6 leaves brain, bladder and lesions
        "recipe.hot": trial.suggest_float("recipe.hot", 2, 6),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, size, and what is fed."""
    edge = trial.suggest_int("patch_edge", 64, 192, step=32)  # voxels: half to one and a half of 128
    return {
        # a factor of 5 either way of 2e-4; discriminators follow it too
        "recipe.lr": trial.suggest_float("recipe.lr", 4e-5, 1e-3, log=True),
        # half to one and a half of Cycle-GAN's 6
        "recipe.blocks": trial.suggest_int("recipe.blocks", 3, 9),
        # four slices, as S3PET
        "recipe.patch": (4, edge, edge),
    }
