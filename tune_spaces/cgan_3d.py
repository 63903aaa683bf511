"""What to search in 3D-cGAN."""

from typing import Any

from optuna.trial import BaseTrial


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The weight of L1 beside the adversarial loss."""
    # a decade either way of 300
    return {"recipe.lambda_l1": trial.suggest_float("recipe.lambda_l1", 30, 3000, log=True)}


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, width and number of stages."""
    return {
        # a factor of 4 either way of pix2pix's
        "recipe.lr": trial.suggest_float("recipe.lr", 5e-5, 8e-4, log=True),
        # a quarter of the published width to the published one; memory grows alike
        "recipe.width": trial.suggest_int("recipe.width", 16, 64, step=16),
        # each costs as many steps again
        "recipe.stages": trial.suggest_int("recipe.stages", 1, 3),
    }
