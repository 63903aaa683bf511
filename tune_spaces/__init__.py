"""Search spaces over the papers' Config fields, by Optuna trial; no torch, no Ray.

A space is a function of a trial, one suggestion per line with the reason for its range, that returns settings as
``--set`` takes them.  A plain value is suggested under its setting's own name; a composed one under a name without a
room, and the space's module says in ``COMPOSED`` how a Config is read back.  Ranges never depend on another suggestion,
or Optuna could not learn across trials.  No space knows how a trial runs, for how long, or what is scored.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import BaseTrial, FixedTrial

from storage.errors import InputError
from tune_spaces import cascade, cg_3dsrgan, s3pet, sgsgan, virtual_pet

Settings = dict[str, Any]
Space = Callable[[BaseTrial], Settings]

SPACES: dict[str, dict[str, Space]] = {
    "sgsgan": {"losses": sgsgan.losses, "practice": sgsgan.practice},
    "cg_3dsrgan": {"losses": cg_3dsrgan.losses, "practice": cg_3dsrgan.practice},
    "s3pet": {"losses": s3pet.losses, "masking": s3pet.masking, "practice": s3pet.practice},
    "cascade": {"losses": cascade.losses, "depth": cascade.depth, "practice": cascade.practice},
    "virtual_pet": {"losses": virtual_pet.losses, "practice": virtual_pet.practice},
}
COMPOSED: dict[str, dict[str, Callable[[Any], Any]]] = {
    "sgsgan": sgsgan.COMPOSED,
    "cg_3dsrgan": cg_3dsrgan.COMPOSED,
    "s3pet": s3pet.COMPOSED,
}


def paper(recipe: str, name: str, config: Any) -> dict[str, Any]:
    """Return the parameters under which space ``name`` of ``recipe`` gives ``config``, which is to be the first trial.

    Args:
        recipe: a key of ``SPACES``.
        name: a key of ``SPACES[recipe]``.
        config: the recipe's Config; as it comes, it holds the paper's values.

    Raises:
        InputError: TUNE_SPACE where the space sets what the recipe lacks, CFG_RANGE where it does not hold ``config``.
    """
    values = {f"recipe.{field.name}": getattr(config, field.name) for field in dataclasses.fields(config)}
    trial = FixedTrial(values | {key: read(config) for key, read in COMPOSED.get(recipe, {}).items()})
    where, remedy = f"space '{name}' of {recipe}", "start from a configuration inside it, or search another space"
    if unknown := sorted({key for settings in _drawn(SPACES[recipe][name]) for key in settings} - values.keys()):
        found, mend = f"it sets {', '.join(unknown)}, which the system lacks", f"mend tune_spaces/{recipe}.py"
        raise InputError("TUNE_SPACE", where=where, found=found, remedy=mend)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of a number out of range; of a word Optuna raises
            settings = SPACES[recipe][name](trial)
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
