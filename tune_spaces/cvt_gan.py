"""What to search in 3D CVT-GAN."""

from typing import Any

from optuna.trial import BaseTrial


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The weight of L1 beside the adversarial loss."""
    # a decade either way of 100
    return {"recipe.lambda_l1": trial.suggest_float("recipe.lambda_l1", 10, 1000, log=True)}


def training(trial: BaseTrial) -> dict[str, Any]:
    """Both learning rates, and the width."""
    return {
        # a factor of 4 either way
        "recipe.lr": trial.suggest_float("recipe.lr", 5e-5, 8e-4, log=True),
        # the code's comments give D a tenth of its default
        "recipe.critic_lr": trial.suggest_float("recipe.critic_lr", 2e-5, 4e-4, log=True),
        # a quarter of the published width to the published one
        "recipe.width": trial.suggest_int("recipe.width", 16, 64, step=16),
    }
