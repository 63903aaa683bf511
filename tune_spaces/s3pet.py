"""What to search in S3PET."""

from collections.abc import Callable
from typing import Any

from optuna.trial import BaseTrial

COMPOSED: dict[str, Callable[[Any], Any]] = {
    "mask_low_rise": lambda config: (config.mask_low - config.mask_full) / (1 - config.mask_full)
}
DECODERS = {8: (256, 128, 64, 32), 4: (256, 128, 64)}  # a block more than the up-samplings that undo a patch


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The weights of Eq. 4 and 5, beside an alignment loss of weight 1."""
    return {
        # lambda_1: a decade either way; both divergences lie in [0, ln 2], so 1 is already a balance
        "recipe.lambda_transfer": trial.suggest_float("recipe.lambda_transfer", 0.1, 10, log=True),
        # lambda_2: a decade either way of 5; an L1 follows the intensity scale, which the paper does not tell
        "recipe.lambda_rec": trial.suggest_float("recipe.lambda_rec", 0.5, 50, log=True),
        # full dose, the image wanted, against the auxiliary low dose: a factor of 4 keeps both branches learning
        "recipe.gamma": trial.suggest_float("recipe.gamma", 0.25, 4, log=True),
    }


def masking(trial: BaseTrial) -> dict[str, Any]:
    """Shares of tokens masked in Stage I; of low dose never less than of full dose (Sec. III-A)."""
    # a third is filled in from neighbours without knowing anatomy; at 0.8 one token in five is left to know it from
    mask_full = trial.suggest_float("recipe.mask_full", 0.3, 0.8)
    # share of the tokens visible at full dose that low dose hides besides; 0 masks both alike, the most masks 0.95
    mask_low_rise = trial.suggest_float("mask_low_rise", 0, 0.75)
    return {
        "recipe.mask_full": mask_full,
        "recipe.mask_low": mask_full + mask_low_rise * (1 - mask_full),
    }


def tokens(trial: BaseTrial) -> dict[str, Any]:
    """What a token holds, and what the decoded image is added to: the strongest settings of a short training."""
    # voxels: 8 are 13 mm on the paper's scanner, but 40 mm where voxels are 5 mm; 4 were worth 1.6 to 4 dB there
    patch_size = trial.suggest_categorical("recipe.patch_size", [8, 4])
    return {
        "recipe.patch_size": patch_size,
        "recipe.decoder_channels": DECODERS[patch_size],
        # the paper's, half and a quarter: a token of 4 x 4 voxels holds less
        "recipe.dim": trial.suggest_categorical("recipe.dim", [384, 192, 96]),
        # nothing as published; the low dose makes the start as good as the input
        "recipe.residual": trial.suggest_categorical("recipe.residual", ["none", "low"]),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate, depth of the encoders, and what is fed."""
    return {
        # a factor of 4 to 5 either way; one rate for both stages, and transformers without warm-up tend to break above
        "recipe.lr": trial.suggest_float("recipe.lr", 5e-5, 1e-3, log=True),
        # T: half to twice the paper's four; time and weights grow alike
        "recipe.blocks": trial.suggest_int("recipe.blocks", 2, 8),
        # voxels: half to one and a half of the paper's 128; attention grows with the fourth power
        "recipe.window": trial.suggest_int("recipe.window", 64, 192, step=32),
        # slices of a slab: neighbours are near copies, so more read cheaper and tell batch norm less
        "recipe.slices": trial.suggest_int("recipe.slices", 1, 8, log=True),
        # slabs of one case: the same trade, across a body
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 4, log=True),
    }
