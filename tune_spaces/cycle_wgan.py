"""What to search in CycleWGAN."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {"patch_edge": lambda config: config.patch[0]}


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The weights beside an adversarial loss of weight 1, and how critics are bound."""
    return {
        # a factor of 5 either way of 10 and 5: readings, as the paper is closed
        "recipe.lambda_cycle": trial.suggest_float("recipe.lambda_cycle", 2, 50, log=True),
        "recipe.lambda_identity": trial.suggest_float("recipe.lambda_identity", 1, 25, log=True),
        # a decade either way of 10, up to the 100 of SGSGAN's content loss
        "recipe.lambda_supervised": trial.suggest_float("recipe.lambda_supervised", 1, 100, log=True),
        # SGSGAN's clipping, or what was proposed against its faults
        "recipe.lipschitz": trial.suggest_categorical("recipe.lipschitz", ("clip", "penalty")),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, size, and what is fed."""
    edge = trial.suggest_int("patch_edge", 32, 96, step=32)  # voxels: half to one and a half of 64; halved five times
    return {
        # a factor of 5 to 10 either way of 1e-4; critics follow it too
        "recipe.lr": trial.suggest_float("recipe.lr", 1e-5, 5e-4, log=True),
        # half to twice 32 channels; weights grow with the square
        "recipe.width": trial.suggest_int("recipe.width", 16, 64, step=16),
        "recipe.patch": (edge, edge, edge),
    }
