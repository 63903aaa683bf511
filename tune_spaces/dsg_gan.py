"""What to search in DSG-GAN after its abstract."""

from typing import Any

from optuna.trial import BaseTrial


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The weights of the two stages' losses, none of which is known."""
    return {
        # G1: MSE beside an SSIM of weight 1; a decade either way
        "recipe.lambda_mse": trial.suggest_float("recipe.lambda_mse", 10, 1000, log=True),
        # G2: L1 beside an adversarial loss of weight 1; a decade either way of pix2pix's
        "recipe.lambda_l1": trial.suggest_float("recipe.lambda_l1", 10, 1000, log=True),
        # D's hidden maps: up to as much as L1 has
        "recipe.lambda_features": trial.suggest_float("recipe.lambda_features", 1, 100, log=True),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, width and halvings."""
    return {
        # a factor of 4 to 5 either way of pix2pix's
        "recipe.lr": trial.suggest_float("recipe.lr", 5e-5, 1e-3, log=True),
        # a quarter of pix2pix's width to that width
        "recipe.width": trial.suggest_int("recipe.width", 16, 64, step=16),
        # halvings: 8 leave one pixel of a window of 256; any window that 8 halve, fewer halve as well
        "recipe.downs": trial.suggest_int("recipe.downs", 6, 8),
    }
