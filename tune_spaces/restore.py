"""What to search in restore."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {
    "wide": lambda config: config.channels[0],
    "deep": lambda config: config.channels[1],
    "patch_edge": lambda config: config.patch[0],
}


def losses(trial: BaseTrial) -> dict[str, Any]:
    """What counts as an error, and where patches are drawn."""
    return {
        # the mean of a noisy target is what squares find; L1 finds its median, which lies lower where noise is skewed
        "recipe.loss": trial.suggest_categorical("recipe.loss", ("squared", "l1")),
        # 0 leaves local maxima to the squares alone; above 1 they outweigh them
        "recipe.quantification": trial.suggest_float("recipe.quantification", 0.0, 1.0),
        # none of either, to almost all of both
        "recipe.uptake_share": trial.suggest_float("recipe.uptake_share", 0.0, 0.4),
        "recipe.lesion_share": trial.suggest_float("recipe.lesion_share", 0.0, 0.6),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, width, and what is fed."""
    edge = trial.suggest_int("patch_edge", 16, 64, step=8)  # small crops hold 24 voxels, whole bodies any
    return {
        # a decade around the default; the last layer starts at zero and bears high rates
        "recipe.lr": trial.suggest_float("recipe.lr", 1e-4, 1e-2, log=True),
        # a quarter to twice the default; time grows with the square
        "recipe.channels": (
            trial.suggest_int("wide", 8, 64, step=8),
            trial.suggest_int("deep", 8, 96, step=8),
        ),
        "recipe.patch": (edge, edge, edge),
        # patches of one case: more read cheaper, and show a step fewer patients
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 8, log=True),
    }
