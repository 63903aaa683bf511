"""Search spaces over the systems' Config fields, by Optuna trial; no torch, no Ray.

A space is a function of a trial, one suggestion per line with the reason for its range, that returns settings as
``--set`` takes them.  A plain value is suggested under its setting's own name; a composed one under a name without a
dot, and ``COMPOSED`` says how it is read back from a Config.  Ranges never depend on another suggestion, or Optuna
could not learn across trials.  A space does not depend on how a trial runs, for how long, or what is scored.

A system from outside the tree brings ``SPACES``, name -> space, and if it needs to ``COMPOSED`` in its own module.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import BaseTrial, FixedTrial

from storage.errors import InputError
from trainers.systems import RECIPES
from tune_spaces import (
    ar_gan,
    auto_context,
    cascade,
    cg_3dsrgan,
    cgan_3d,
    cvt_gan,
    cycle_gan,
    cycle_gan_3d,
    cycle_wgan,
    dsg_gan,
    medgan,
    red_cnn,
    restore,
    restore_ct,
    s3pet,
    semipet,
    sgsgan,
    unet,
    unet_3d,
    virtual_pet,
)

Settings = dict[str, Any]
Space = Callable[[BaseTrial], Settings]

SPACES: dict[str, dict[str, Space]] = {
    "restore": {"losses": restore.losses, "training": restore.training},
    "restore_ct": {"losses": restore_ct.losses, "training": restore_ct.training},
    "sgsgan": {"losses": sgsgan.losses, "training": sgsgan.training},
    "cg_3dsrgan": {"losses": cg_3dsrgan.losses, "training": cg_3dsrgan.training},
    "s3pet": {"losses": s3pet.losses, "masking": s3pet.masking, "tokens": s3pet.tokens, "training": s3pet.training},
    "cascade": {"losses": cascade.losses, "depth": cascade.depth, "training": cascade.training},
    "virtual_pet": {"losses": virtual_pet.losses, "training": virtual_pet.training},
    "red_cnn": {"losses": red_cnn.losses, "training": red_cnn.training},
    "cycle_gan": {"losses": cycle_gan.losses, "training": cycle_gan.training},
    "cycle_gan_3d": {"losses": cycle_gan_3d.losses, "training": cycle_gan_3d.training},
    "cycle_wgan": {"losses": cycle_wgan.losses, "training": cycle_wgan.training},
    "semipet": {"losses": semipet.losses, "training": semipet.training},
    "unet": {"losses": unet.losses, "training": unet.training},
    "unet_3d": {"losses": unet_3d.losses, "training": unet_3d.training},
    "cgan_3d": {"losses": cgan_3d.losses, "training": cgan_3d.training},
    "auto_context": {"losses": auto_context.losses, "training": auto_context.training},
    "ar_gan": {"losses": ar_gan.losses, "training": ar_gan.training},
    "cvt_gan": {"losses": cvt_gan.losses, "training": cvt_gan.training},
    "medgan": {"losses": medgan.losses, "training": medgan.training},
    "dsg_gan": {"losses": dsg_gan.losses, "training": dsg_gan.training},
}
COMPOSED: dict[str, dict[str, Callable[[Any], Any]]] = {
    "restore": restore.COMPOSED,
    "restore_ct": restore_ct.COMPOSED,
    "sgsgan": sgsgan.COMPOSED,
    "cg_3dsrgan": cg_3dsrgan.COMPOSED,
    "s3pet": s3pet.COMPOSED,
    "cascade": cascade.COMPOSED,
    "virtual_pet": virtual_pet.COMPOSED,
    "red_cnn": red_cnn.COMPOSED,
    "cycle_gan": cycle_gan.COMPOSED,
    "cycle_gan_3d": cycle_gan_3d.COMPOSED,
    "cycle_wgan": cycle_wgan.COMPOSED,
    "semipet": semipet.COMPOSED,
    "unet": unet.COMPOSED,
    "auto_context": auto_context.COMPOSED,
}
FORMER = {"practice": "training"}  # former name -> name of a space, for commands and studies made before


def spaces_of(recipe: str, module: object) -> Mapping[str, Space]:
    """Return name -> space of a system: of ``SPACES`` here, or those that its own module brings.

    Args:
        recipe: the system's name.
        module: the system itself, ``RECIPES[recipe]``.

    Raises:
        InputError: TUNE_SPACE where there is none.
    """
    spaces = SPACES.get(recipe) or getattr(module, "SPACES", None)
    if not isinstance(spaces, Mapping) or not spaces or not all(callable(space) for space in spaces.values()):
        raise InputError(
            "TUNE_SPACE",
            where=f"system '{recipe}'",
            found="it brings no search space" if not spaces else "its SPACES does not map names to functions",
            remedy="give its module SPACES (docs/how-to-add-a-system.md), or train it without a search",
        )
    return spaces


def present_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of spaces as they are called now.

    >>> present_names(["losses", "practice"])
    ('losses', 'training')
    """
    return tuple(FORMER.get(name, name) for name in names)


def paper(recipe: str, name: str, config: Any) -> dict[str, Any]:
    """Return the parameters under which space ``name`` of ``recipe`` gives ``config``, which is to be the first trial.

    Args:
        recipe: a system's name.
        name: a key of its ``spaces_of``.
        config: the system's Config; as it comes, it holds the paper's values.

    Raises:
        InputError: TUNE_SPACE where the space sets what the recipe lacks, CFG_RANGE where it does not hold ``config``.
    """
    module = RECIPES[recipe]
    space = spaces_of(recipe, module)[name]
    composed = COMPOSED.get(recipe) or getattr(module, "COMPOSED", {})
    values = {f"recipe.{field.name}": getattr(config, field.name) for field in dataclasses.fields(config)}
    trial = FixedTrial(values | {key: read(config) for key, read in composed.items()})
    where, remedy = f"space '{name}' of {recipe}", "start from a configuration inside it, or search another space"
    if unknown := sorted({key for settings in _drawn(space) for key in settings} - values.keys()):
        found = f"it sets {', '.join(unknown)}, which the system lacks"
        raise InputError("TUNE_SPACE", where=where, found=found, remedy="correct the space, or search another")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of a number out of range; of a word Optuna raises
            settings = space(trial)
    except (UserWarning, ValueError) as error:
        raise InputError("CFG_RANGE", where=where, found=str(error).rstrip("."), remedy=remedy) from None
    for key, value in settings.items():
        same = math.isclose(value, values[key]) if isinstance(value, float) else value == values[key]
        if not same:
            raise InputError("CFG_RANGE", where=where, found=f"no trial gives {key}={values[key]}", remedy=remedy)
    return trial.params


def _drawn(space: Space) -> list[Settings]:
    """Settings of random trials, enough to have met every branch of a space of a few choices."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), sampler=sampler)
    return [space(study.ask()) for _ in range(50)]
