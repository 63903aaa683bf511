"""What to search in virtual PET."""

from typing import Any

from optuna.trial import BaseTrial


def losses(trial: BaseTrial) -> dict[str, Any]:
    """How errors are weighed, and how the two networks' images are blended."""
    blended: dict[str, Any] = {}
    if (networks := _networks(trial)) == "both":
        blended = {
            # 0 weighs all voxels alike, 1 is the paper's; at 2 a voxel of SUV 10 weighs 25 times one of SUV 2, as liver
            "recipe.suv_weight_gamma": trial.suggest_float("recipe.suv_weight_gamma", 0, 2),
            # SUV: at 0 air weighs nothing, at 0.5 it weighs as much as fat
            "recipe.suv_weight_floor": trial.suggest_float("recipe.suv_weight_floor", 0, 0.5),
            # 0 pastes hard; 2^levels voxels should be about 8 mm, which 5 pass by far at any voxel of PET or CT
            "recipe.blend_levels": trial.suggest_int("recipe.blend_levels", 0, 5),
        }
    return {
        "recipe.networks": networks,
        # the paper is silent; an L2 pulls weakly once errors are small: a decade either way of pix2pix's 100
        "recipe.lambda_l2": trial.suggest_float("recipe.lambda_l2", 10, 1000, log=True),
        "recipe.lambda_adversarial": _lambda_adversarial(trial),
        **blended,
    }


def _networks(trial: BaseTrial) -> str:
    # the generator alone has the lower error, the blend with the FCN finds more lesions
    return str(trial.suggest_categorical("recipe.networks", ["both", "cgan"]))


def _lambda_adversarial(trial: BaseTrial) -> float:
    # of few patients, a generator without a discriminator learns more, in half the time
    if not trial.suggest_categorical("adversarial", (True, False)):
        return 0.0
    # a factor of 3 either way of pix2pix's, as lambda_l2 spans the ratio
    return trial.suggest_float("recipe.lambda_adversarial", 0.3, 3, log=True)


COMPOSED = {"adversarial": lambda config: config.lambda_adversarial > 0}


def training(trial: BaseTrial) -> dict[str, Any]:
    """Learning rates, where one network hands over to the other, what G makes, and what is fed."""
    blended: dict[str, Any] = {}
    if (networks := _networks(trial)) == "both":
        blended = {
            # poolings scored beside the last: FCN-8s and FCN-4s; coarser ones lose lesions of a few voxels
            "recipe.fcn_skips": trial.suggest_int("recipe.fcn_skips", 2, 3),
            # F: a factor of 5 either way; a VGG16 without batch norm does not start above
            "recipe.fcn_lr": trial.suggest_float("recipe.fcn_lr", 2e-5, 5e-4, log=True),
            # SUV: from just above the blood to where only hot lesions are left to F; 2.5 is the clinic's
            "recipe.blend_threshold_suv": trial.suggest_float("recipe.blend_threshold_suv", 1.5, 5),
        }
    return {
        "recipe.networks": networks,
        # G and D: a factor of 4 to 5 either way of pix2pix's
        "recipe.cgan_lr": trial.suggest_float("recipe.cgan_lr", 5e-5, 1e-3, log=True),
        # G's halvings: 8 leave one pixel of a window of 256, 6 leave 4; any window that 8 halve, fewer halve as well
        "recipe.generator_downs": trial.suggest_int("recipe.generator_downs", 6, 8),
        # what G makes, and what that is added to: nothing as published; few patients tell little beyond the table of HU
        "recipe.suv_curve": trial.suggest_categorical("recipe.suv_curve", ["linear", "sqrt"]),
        "recipe.residual": trial.suggest_categorical("recipe.residual", ["none", "hu"]),
        # slices of one case: more read cheaper, and tell G's batch norm of fewer patients
        "recipe.patches_per_case": trial.suggest_int("recipe.patches_per_case", 1, 4, log=True),
        **blended,
    }
