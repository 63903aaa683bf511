"""What to search in Auto-Context CNN."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {"patch_edge": lambda config: config.patch[1]}


def losses(trial: BaseTrial) -> dict[str, Any]:
    """What stands beside the squared error."""
    # 1e-7 is Caffe's 5e-4 beside a mean; two decades either way, where it is nothing or flattens the networks
    return {"recipe.weight_decay": trial.suggest_float("recipe.weight_decay", 1e-9, 1e-5, log=True)}


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, number and width of networks, and what is fed."""
    edge = trial.suggest_int("patch_edge", 64, 192, step=64)  # pixels: 24 are lost by three networks, 40 by five
    return {
        # a decade either way of 1e-4; there is no norm that would bear more
        "recipe.lr": trial.suggest_float("recipe.lr", 1e-5, 1e-3, log=True),
        # one shows what the context adds; after three little is left to refine
        "recipe.stages": trial.suggest_int("recipe.stages", 1, 5),
        # a quarter of the published width to twice of it
        "recipe.channels": trial.suggest_int("recipe.channels", 16, 128, step=16),
        "recipe.patch": (1, edge, edge),
        # slices of one case: more read cheaper, and show a step fewer patients
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 16, log=True),
    }
