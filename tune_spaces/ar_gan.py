"""What to search in AR-GAN."""

from typing import Any

from optuna.trial import BaseTrial


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The weights of the three terms beside the adversarial one."""
    return {
        # a decade either way of the re-implementations' values, which no print confirms
        "recipe.lambda_l1": trial.suggest_float("recipe.lambda_l1", 10, 1000, log=True),
        "recipe.lambda_residual": trial.suggest_float("recipe.lambda_residual", 1, 100, log=True),
        # the spectrum alone would allow any place: never more than L1
        "recipe.lambda_spectrum": trial.suggest_float("recipe.lambda_spectrum", 0.1, 100, log=True),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate and widths."""
    return {
        # a factor of 4 either way of pix2pix's
        "recipe.lr": trial.suggest_float("recipe.lr", 5e-5, 8e-4, log=True),
        # a quarter of the published width to the published one
        "recipe.width": trial.suggest_int("recipe.width", 16, 64, step=16),
        # the two widths found, and those between
        "recipe.rectifier_width": trial.suggest_int("recipe.rectifier_width", 16, 64, step=16),
        # slices of one case: more read cheaper, and tell batch norm of fewer patients
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 16, log=True),
    }
