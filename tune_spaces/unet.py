"""What to search in the plain residual U-Net."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {
    "wide": lambda config: config.channels[0],
    "deep": lambda config: config.channels[1],
    "patch_edge": lambda config: config.patch[0],
}


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The one loss."""
    # L1 keeps edges; MSE is what PSNR asks for
    return {"recipe.loss": trial.suggest_categorical("recipe.loss", ("l1", "mse"))}


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, width, and what is fed."""
    edge = trial.suggest_int("patch_edge", 16, 64, step=16)  # voxels: small crops hold 16, whole bodies any
    return {
        # a decade around the default; the last layer starts at zero and bears high rates
        "recipe.lr": trial.suggest_float("recipe.lr", 1e-4, 1e-2, log=True),
        # a quarter of the default to twice of it; time grows with the square
        "recipe.channels": (
            trial.suggest_int("wide", 8, 64, step=8),
            trial.suggest_int("deep", 8, 96, step=8),
        ),
        "recipe.patch": (edge, edge, edge),
        # patches of one case: more read cheaper, and show a step fewer patients
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 8, log=True),
    }
