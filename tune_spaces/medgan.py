"""What to search in MedGAN."""

from typing import Any

from optuna.trial import BaseTrial


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The weight of the perceptual loss; style and content need a file and are left as they are given."""
    # a decade either way of 20
    return {"recipe.lambda_perceptual": trial.suggest_float("recipe.lambda_perceptual", 2, 200, log=True)}


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, depth, width, and how often D is updated."""
    return {
        # down to below the 3e-5 of a re-implementation, up to twice the paper's
        "recipe.lr": trial.suggest_float("recipe.lr", 2e-5, 4e-4, log=True),
        # one is pix2pix with other losses; memory grows alike
        "recipe.stages": trial.suggest_int("recipe.stages", 1, 6),
        # a quarter of the published width to the published one
        "recipe.width": trial.suggest_int("recipe.width", 16, 64, step=16),
        # updates of CasNet for one of D
        "recipe.g_steps": trial.suggest_int("recipe.g_steps", 1, 5),
    }
