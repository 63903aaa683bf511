"""What to search in restore_ct."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {
    "wide": lambda config: config.channels[0],
    "deep": lambda config: config.channels[1],
    "patch_edge": lambda config: config.patch[0],
}


def losses(trial: BaseTrial) -> dict[str, Any]:
    """Where it starts, and what counts as an error."""
    return {
        # starting at no uptake is there to be compared with, never to be chosen
        "recipe.start": trial.suggest_categorical("recipe.start", ("surroundings", "hu")),
        # roots serve cold tissue, SUV itself hot spots and PSNR
        "recipe.suv_curve": trial.suggest_categorical("recipe.suv_curve", ("linear", "sqrt")),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, width, length, and what is fed."""
    edge = trial.suggest_int("patch_edge", 16, 64, step=8)  # small crops hold 24 voxels, whole bodies any
    return {
        # a decade around the default; the last layer starts at zero and bears high rates
        "recipe.lr": trial.suggest_float("recipe.lr", 1e-4, 1e-2, log=True),
        # half to four times the default: few patients are soon learnt by heart
        "recipe.channels": (
            trial.suggest_int("wide", 8, 64, step=8),
            trial.suggest_int("deep", 8, 96, step=8),
        ),
        "recipe.patch": (edge, edge, edge),
        # patches of one case: more read cheaper, and show a step fewer patients
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 8, log=True),
    }
