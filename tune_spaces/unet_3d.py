"""What to search in 3D-UNet."""

from typing import Any

from optuna.trial import BaseTrial


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The content loss, its weight, and the clipping that sets how strong the critic beside it is."""
    return {
        # Table VIII
        "recipe.content": trial.suggest_categorical("recipe.content", ("l1", "l2", "gde", "l1+gde")),
        # as SGSGAN's: a mean over patches of the body is 5 to 10 times one over the paper's volumes with their air
        "recipe.lambda_content": trial.suggest_float("recipe.lambda_content", 10, 300, log=True),
        # half to five times the paper's
        "recipe.clip": trial.suggest_float("recipe.clip", 0.005, 0.05, log=True),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, width, and how many patches share a norm."""
    return {
        # a factor of 4 to 5 either way, as SGSGAN's
        "recipe.lr": trial.suggest_float("recipe.lr", 2e-5, 4e-4, log=True),
        # a third of the published width to the published one; memory grows alike
        "recipe.channels": trial.suggest_int("recipe.channels", 16, 48, step=8),
        # patches over which the norm's statistics are joint
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 8, log=True),
    }
