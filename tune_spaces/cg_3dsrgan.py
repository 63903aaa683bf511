"""What to search in CG-3DSRGAN."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {"patch_edge": lambda config: config.patch[0]}


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The four weights; Adam sees their ratios alone, so L1, which anchors them, has the narrowest range."""
    return {
        # a factor of 3 either way; its pull follows the intensity scale, which the paper does not give
        "recipe.lambda_l1": trial.suggest_float("recipe.lambda_l1", 100, 1000, log=True),
        # starts at ln(doses) times the weight: 16 at the paper's 10; a hint to the encoder at 1, its first aim at 100
        "recipe.lambda_class": trial.suggest_float("recipe.lambda_class", 1, 100, log=True),
        # all that ties the refined image to its target: a decade either way of 10, never 0
        "recipe.lambda_perceptual": trial.suggest_float("recipe.lambda_perceptual", 1, 100, log=True),
        # a decade either way of 1: Contextual-Net weighs it against the perceptual term alone
        "recipe.lambda_adversarial": trial.suggest_float("recipe.lambda_adversarial", 0.1, 10, log=True),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate and its decay, what is fed, and what R's output is added to."""
    edge = trial.suggest_int("patch_edge", 32, 128, step=32)  # voxels: R halves five times; 128 takes 2.4 times 96
    return {
        # a factor of 4 to 5 either way; far above stop_lr, which ends the phase
        "recipe.lr": trial.suggest_float("recipe.lr", 5e-5, 1e-3, log=True),
        # a decade either way of 1e-5; more shrinks the last layers, which carry the intensity scale
        "recipe.weight_decay": trial.suggest_float("recipe.weight_decay", 1e-6, 1e-4, log=True),
        # epochs put up with: 2 cut at the noise of a few validation batches, 10 spend a tenth of max_epochs on a cut
        "recipe.plateau_patience": trial.suggest_int("recipe.plateau_patience", 2, 10),
        "recipe.patch": (edge, edge, edge),
        # two of a case save reading, and halve the number of cases behind as many patches
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 2),
        # nothing as published; the Gaussian of the dose makes the start as good as the best Gaussian filter
        "recipe.residual": trial.suggest_categorical("recipe.residual", ["none", "gaussian"]),
    }
