"""Runs that nobody trained, small enough to synthesize from in a test: folders as ``petscale train`` leaves them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from petscale import config as configs
from petscale.folders import CONFIG, WEIGHTS
from petscale.proof import FORM, PROOF, carried
from petscale.splits import Roles
from storage import integrity
from storage.reader import Cases
from storage.source import HU, SUV
from trainers import checkpoint
from trainers.engine import plain_engine
from trainers.feed_config import FeedConfig
from trainers.systems import RECIPES

CASCADE = {
    "mode": "2.5d", "patch": (3, 32, 32), "width": 2, "downs": 3, "critic_width": 2, "critic_strides": (2, 1)
}  # fmt: skip


def red_cnn(
    folder: Path,
    seed: int,
    *,
    cohort: Cases | None = None,
    test: Sequence[str] = (),
    source: str = "low_drf4",
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """Write a run of RED-CNN, two channels wide.

    Args:
        seed: of its weights, unless they are given.
        cohort: holds its cases; None for none.
        test: cases that it tests on; all the others train.
        source: image that it starts from.
    """
    config = configs.RunConfig(recipe="red_cnn", model=RECIPES["red_cnn"].Config(channels=2))
    return _written(
        folder, replace(config, feed=FeedConfig(source=(source,), suv_scale=5.0)), seed, cohort, test, weights
    )


def cascade(folder: Path, seed: int, spacing_mm: tuple[float, float, float]) -> Path:
    """Write a run of a cascade that starts from CT, trained at a voxel size."""
    spec = RECIPES["cascade"]
    config = configs.RunConfig(recipe="cascade", model=spec.Config(**CASCADE))
    return _written(folder, config, seed, None, (), None, {"units": HU, "spacing_mm": spacing_mm})


def _written(
    folder: Path,
    config: configs.RunConfig,
    seed: int,
    cohort: Cases | None,
    test: Sequence[str],
    weights: dict[str, Tensor] | None,
    start: dict[str, object] | None = None,
) -> Path:
    torch.manual_seed(seed)
    recipe = RECIPES[config.recipe].build(
        config.model, make_engine=plain_engine, patches_per_step=config.patches_per_step
    )
    cases = cohort.cases if cohort else ()
    whole = configs.to_json(config)
    facts = {"config": whole, "command": "petscale train", "cohort": "cohort", "unpaired": [], "validation": []}
    facts |= {"test": list(test), "train": [name for name in cases if name not in test]}
    opened = {name: cohort.case(name) for name in cases} if cohort else {}
    facts["cases"] = {name: integrity.manifest(case.folder)["root"] for name, case in opened.items()}
    facts["subjects"] = {name: case.subject for name, case in opened.items()}
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(facts))
    told = {"recipe": config.recipe, "config": json.dumps(whole)}
    told["starts_from"] = json.dumps(start or {"units": SUV, "spacing_mm": None})
    checkpoint.write_weights(folder / WEIGHTS, weights or recipe.weights(), told)
    prove(folder)
    return folder


def prove(run: Path) -> None:
    """Let a run's weights carry what its record says, as those that `petscale train` writes do."""
    record = json.loads((run / CONFIG).read_bytes())
    tensors, facts = checkpoint.read_weights(run / WEIGHTS)
    facts |= {"config": json.dumps(record["config"])} | carried(
        Roles.recorded(record), record["cases"], record.get("subjects", {})
    )
    checkpoint.write_weights(run / WEIGHTS, tensors, facts)
    (run / CONFIG).write_text(json.dumps({**record, PROOF: FORM}))
