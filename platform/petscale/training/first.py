"""The weights that a run's networks start from: whether they are of its system, and saw nobody whom it tests."""

import json
from collections.abc import Collection
from pathlib import Path

from petscale import config as configs
from petscale.config import RunConfig
from petscale.proof import TRAINED_ON, no_configuration
from storage import integrity
from storage.errors import InputError, no_file
from storage.source import SUV
from trainers import checkpoint, first_weights
from trainers.systems import RECIPES

INIT = "init"  # among the files of a run's record: the digest of the weights that its networks started from


def check_init(path: Path, config: RunConfig, units: str, kept_apart: Collection[str]) -> tuple[str, ...]:
    """Refuse weights that a run cannot start from.

    Args:
        path: exported weights: of a run, or a card.
        config: of the run that is to start from them.
        units: of the images that this run starts from.
        kept_apart: digests of the cases that it validates and tests on.

    Returns:
        Digests of the cases that the weights were trained on.

    Raises:
        InputError: IMG_NO_FILE, CKPT_DAMAGED, CKPT_PROOF; CKPT_RECIPE, CKPT_CONFIG, CKPT_SCALE, SET_WRONG_UNITS for
            weights of something else; CKPT_LEAK.
    """
    if path.is_dir():
        raise InputError(
            "CKPT_CONFIG",
            where=path.name,
            found="a folder",
            remedy="name its weights.safetensors, or a file of petscale card",
        )
    if not path.is_file():
        raise no_file(path)
    tensors, facts = checkpoint.read_weights(path)
    if not {checkpoint.DIGEST, TRAINED_ON} <= facts.keys():
        raise InputError(
            "CKPT_PROOF",
            where=path.name,
            found="weights that do not say what they were trained on",
            remedy="use weights of a run of this petscale, or a file of petscale card",
        )
    try:
        seen = frozenset(map(str, json.loads(facts[TRAINED_ON])))
        theirs = configs.from_json(integrity.parse_json(facts["config"]))
        their_units = str(json.loads(facts["starts_from"])["units"]) if "starts_from" in facts else SUV
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise no_configuration(path.name) from None
    if theirs.recipe != config.recipe:
        raise InputError(
            "CKPT_RECIPE",
            where=path.name,
            found=f"weights of '{theirs.recipe}', this run is '{config.recipe}'",
            remedy=f"train that system (--recipe {theirs.recipe}), or leave --init out",
        )
    if their_units != units:
        raise InputError(
            "SET_WRONG_UNITS",
            where=path.name,
            found=f"weights that start from {their_units}, this run starts from {units}",
            remedy="use weights that were trained on this kind of scan",
        )
    if seen & set(kept_apart):
        raise InputError(
            "CKPT_LEAK",
            where=path.name,
            found="these weights were trained on cases that this run tests or validates on",
            remedy="use the split of the run that made them, or leave --init out",
        )
    check_scale(path.name, theirs, config)
    placed, others = first_weights.places(
        lambda make: RECIPES[config.recipe].build(
            config.model, make_engine=make, patches_per_step=config.patches_per_step
        )
    )
    first_weights.check_fits(tensors, placed, others, path.name)
    return tuple(sorted(seen))


def check_scale(where: str, theirs: RunConfig, ours: RunConfig) -> None:
    """Refuse networks that were trained on another intensity scale.

    Raises:
        InputError: CKPT_SCALE.
    """
    scale = theirs.feed.suv_scale
    if scale != ours.feed.suv_scale:
        raise InputError(
            "CKPT_SCALE",
            where=where,
            found=f"trained on SUV / {scale:g}, this run uses SUV / {ours.feed.suv_scale:g}",
            remedy=f"use the same scale (--set feed.suv_scale={scale:g}) or other weights",
        )
