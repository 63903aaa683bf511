"""What to search in RED-CNN."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {"patch_edge": lambda config: config.patch[1]}


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The one loss."""
    # MSE is the paper's and blurs; L1, by which later comparisons train the network, keeps edges better
    return {"recipe.loss": trial.suggest_categorical("recipe.loss", ("mse", "l1"))}


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, width, and what is fed."""
    edge = trial.suggest_int("patch_edge", 32, 128, step=32)  # pixels: 21 are lost by the convolutions, 64 ours
    return {
        # a decade either way of 1e-4; there is no norm that would bear more
        "recipe.lr": trial.suggest_float("recipe.lr", 1e-5, 1e-3, log=True),
        # a third to the published 96; time and memory of a layer grow with the square
        "recipe.channels": trial.suggest_int("recipe.channels", 32, 96, step=16),
        "recipe.patch": (1, edge, edge),
        # slices of one case: more read cheaper, and show a step fewer patients
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 16, log=True),
    }
