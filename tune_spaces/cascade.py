"""What to search in the cascaded U-Nets and dense cascades."""

from typing import Any

from optuna.trial import BaseTrial


def losses(trial: BaseTrial) -> dict[str, Any]:
    """The weights of G's two losses, of which Adam sees the ratio alone; and whether there is a discriminator."""
    return {
        # a decade either way of 100: the published PSNR puts the MSE times 100 at the adversarial loss near balance
        "recipe.lambda_mse": trial.suggest_float("recipe.lambda_mse", 10, 1000, log=True),
        "recipe.lambda_adversarial": _lambda_adversarial(trial),
    }


def _lambda_adversarial(trial: BaseTrial) -> float:
    # of few patients, a generator without a discriminator learns more, in half the time
    if not trial.suggest_categorical("adversarial", (True, False)):
        return 0.0
    # a factor of 3 either way, as the ratio is spanned above
    return trial.suggest_float("recipe.lambda_adversarial", 0.3, 3, log=True)


COMPOSED = {"adversarial": lambda config: config.lambda_adversarial > 0}


def depth(trial: BaseTrial) -> dict[str, Any]:
    """Number of stages, and where there are several, what connects and scores them."""
    stages = trial.suggest_int("recipe.stages", 1, 10)  # Table 4; time and memory grow alike
    if stages == 1:
        return {"recipe.stages": stages, "recipe.dense": "none"}
    return {
        "recipe.stages": stages,
        # the plain cascade and the three readings of the dense connections
        "recipe.dense": trial.suggest_categorical("recipe.dense", ("none", "images", "images+skips", "replace_skips")),
        # cascade or segmented optimisation: the last image's gradient thins out on its way through many stages
        "recipe.loss_at": trial.suggest_categorical("recipe.loss_at", ("last", "all")),
    }


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rate and the layers that the paper's checkerboards and silences put in question."""
    return {
        # mostly below the published 1e-3: it is five times pix2pix's, and deep cascades show spikes at it
        "recipe.lr": trial.suggest_float("recipe.lr", 1e-4, 2e-3, log=True),
        # deconvolutions as published, and both ways without the checkerboards of Sec. 4
        "recipe.upsample": trial.suggest_categorical("recipe.upsample", ("deconv", "resize3", "resize4")),
        # the paper is silent; least squares keep a gradient where cross-entropy is saturated
        "recipe.gan_mode": trial.suggest_categorical("recipe.gan_mode", ("vanilla", "lsgan")),
        # what the stages make, and what that is added to: nothing as published; few patients tell little beyond a table
        "recipe.suv_curve": trial.suggest_categorical("recipe.suv_curve", ("linear", "sqrt")),
        "recipe.residual": trial.suggest_categorical("recipe.residual", ("none", "hu")),
        # halvings: 8 leave one pixel of a window of 256, 6 leave 4; any window that 8 halve, fewer halve as well
        "recipe.downs": trial.suggest_int("recipe.downs", 6, 8),
        # windows of one case: more read cheaper, and tell batch norm of fewer patients
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 4, log=True),
    }
