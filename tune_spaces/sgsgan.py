"""What to search in SGSGAN."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {"patch_edge": lambda config: config.patch[0]}


def losses(trial: BaseTrial) -> dict[str, Any]:
    """Weights of G's losses, and the clipping that sets how strong the critic beside them is."""
    return {
        # first of all: a mean over patches of the body is 5 to 10 times one over the paper's volumes with their air
        "recipe.lambda_content": trial.suggest_float("recipe.lambda_content", 10, 300, log=True),
        # a decade either way of 1: below, organs guide nothing; above, S draws them where its masks err
        "recipe.lambda_seg": trial.suggest_float("recipe.lambda_seg", 0.1, 10, log=True),
        # c scales the critic's last layer, so the adversarial loss grows with it: half to five times the paper's
        "recipe.clip": trial.suggest_float("recipe.clip", 0.005, 0.05, log=True),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, noise, width, and what is fed."""
    edge = trial.suggest_int("patch_edge", 32, 96, step=32)  # voxels: 32 is what both generators and D take, 64 ours
    return {
        # a factor of 4 to 5 either way; a step of RMSprop is about lr, and 25 of 4e-4 already cross the clip's 0.01
        "recipe.lr": trial.suggest_float("recipe.lr", 2e-5, 4e-4, log=True),
        # 0 leaves Table III's row without noise; P learns a scale per channel, so five times the paper's is far enough
        "recipe.noise_std": trial.suggest_float("recipe.noise_std", 0, 0.05),
        # half to twice the published k; memory grows alike, time faster
        "recipe.growth": trial.suggest_int("recipe.growth", 4, 16, step=4),
        "recipe.patch": (edge, edge, edge),
        # patches over which AdaIN's statistics are joint: 1 is the patch's own, 8 nears what inference freezes
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 8, log=True),
        # up to three patches in four; with lesions' share at most all, so that neither range waits for the other
        "recipe.roi_fraction": trial.suggest_float("recipe.roi_fraction", 0, 0.75),
        # lesions are rare voxels: a quarter of the patches already shows them far more often than the body does
        "recipe.lesion_fraction": trial.suggest_float("recipe.lesion_fraction", 0, 0.25),
    }
