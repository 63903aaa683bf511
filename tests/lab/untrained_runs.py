"""Runs that nobody trained, small enough to synthesize from in a test: folders as ``petscale train`` leaves them."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from petscale import config as configs
from petscale.folders import CONFIG, WEIGHTS
from petscale.proof import FORM, PROOF, carried, trained_before
from petscale.splits import Roles
from storage import integrity
from storage.reader import Cases
from storage.source import HU, SUV
from trainers import checkpoint
from trainers.engine import plain_engine
from trainers.feed_config import FeedConfig
from trainers.filter_bank import COARSE, MEMBERS
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
    validation: Sequence[str] = (),
    source: str = "low_drf4",
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """Write a run of RED-CNN, two channels wide.

    Args:
        seed: of its weights, unless they are given.
        cohort: holds its cases; None for none.
        test: cases that it tests on.
        validation: cases kept for validation; all the others train.
        source: image that it starts from.
    """
    config = configs.RunConfig(recipe="red_cnn", model=RECIPES["red_cnn"].Config(channels=2))
    return _written(
        folder,
        replace(config, feed=FeedConfig(source=(source,), suv_scale=5.0)),
        seed,
        cohort,
        test,
        weights,
        validation=validation,
    )


def cascade(folder: Path, seed: int, spacing_mm: tuple[float, float, float]) -> Path:
    """Write a run of a cascade that starts from CT, trained at a voxel size."""
    spec = RECIPES["cascade"]
    config = configs.RunConfig(recipe="cascade", model=spec.Config(**CASCADE))
    return _written(folder, config, seed, None, (), None, {"units": HU, "spacing_mm": spacing_mm})


def restore(folder: Path, seed: int) -> Path:
    """Write a run of restore of two doses, whose network and bank change an image."""
    spec = RECIPES["restore"]
    model, weights = restore_weights(seed)
    config = configs.RunConfig(recipe="restore", model=model, feed=spec.FEED)
    facts: dict[str, object] = {"units": SUV, "spacing_mm": (25.0, 15.0, 14.0)}
    return _written(folder, config, seed, None, (), weights, facts)


def restore_weights(seed: int) -> tuple[Any, dict[str, Tensor]]:
    """A small configuration of restore with random weights, doses 1/4 and 1/20."""
    spec = RECIPES["restore"]
    model = spec.Config(channels=(2, 2), patch=(8, 8, 8), margin=(4, 4, 4))
    rng = torch.Generator().manual_seed(seed)
    network = spec.build(model, make_engine=plain_engine, patches_per_step=1).weights()
    weights = {name: 0.2 * torch.randn(value.shape, generator=rng) for name, value in network.items()}
    coefficients = torch.rand(2, COARSE.count, MEMBERS, generator=rng)
    weights |= {
        "bank.drf": torch.tensor([4.0, 20.0]),
        "bank.coefficients": coefficients / coefficients.sum(2, keepdim=True),
        "bank.noise": torch.tensor([-2.0, -1.0]),
    }
    return model, weights


def cgan_3d(folder: Path, seed: int) -> Path:
    """Write a run of 3D-cGAN, whose windows overlap along all axes; its weights are those of a fresh one, times 3."""
    spec = RECIPES["cgan_3d"]
    model = spec.Config(width=2, downs=2, critic_width=2, patch=(16, 16, 16), patches_per_case=2)
    config = configs.RunConfig(recipe="cgan_3d", model=model, feed=spec.FEED)
    torch.manual_seed(seed)
    fresh = spec.build(model, make_engine=plain_engine, patches_per_step=1).weights()
    return _written(folder, config, seed, None, (), {name: 3 * value for name, value in fresh.items()})


def unet_3d(folder: Path, seed: int) -> Path:
    """Write a run of the 3D-UNet, whose norms are over patches of the scan."""
    spec = RECIPES["unet_3d"]
    model = spec.Config(channels=2, critic_channels=2, patch=(32, 32, 32), patches_per_case=2, context_patches=5)
    config = configs.RunConfig(recipe="unet_3d", model=model, feed=spec.FEED)
    return _written(folder, config, seed, None, (), None)


def sgsgan(folder: Path, seed: int, *, residual: Literal["none", "gaussian"]) -> Path:
    """Write a run of SGSGAN, whose style is of the whole scan and whose norms are over patches of it."""
    spec = RECIPES["sgsgan"]
    small = {"growth": 2, "style_dim": 4, "critic_channels": 2, "segmenter_channels": 2, "patch": (24, 24, 24)}
    model = spec.Config(**small, patches_per_case=2, context_patches=3, residual=residual)
    config = configs.RunConfig(recipe="sgsgan", model=model, feed=spec.FEED)
    return _written(folder, config, seed, None, (), _of_gaussians(config, seed))


def cg_3dsrgan(folder: Path, seed: int) -> Path:
    """Write a run of CG-3DSRGAN with a residual, whose noise is that of patches of the scan."""
    spec = RECIPES["cg_3dsrgan"]
    small = {"mlnet_channels": 2, "head_hidden": 4, "contextual_channels": 2, "discriminator_channels": 2}
    model = spec.Config(**small, doses=(4.0, 20.0), patch=(32, 32, 32), residual="gaussian", perceptual="masked")
    config = configs.RunConfig(recipe="cg_3dsrgan", model=model, feed=spec.FEED)
    return _written(folder, config, seed, None, (), _of_gaussians(config, seed))


def _of_gaussians(config: configs.RunConfig, seed: int) -> dict[str, Tensor]:
    """Weights of a fresh network, those that are 0 moved, and where it adds to Gaussians three of these."""
    torch.manual_seed(seed)
    fresh = RECIPES[config.recipe].build(config.model, make_engine=plain_engine, patches_per_step=2).weights()
    weights = {
        name: value if not value.is_floating_point() or value.any() else 0.1 * torch.randn(value.shape)
        for name, value in fresh.items()
    }
    if config.model.residual == "gaussian":
        weights |= {
            "gaussian.drf": torch.tensor([4.0, 20.0, math.nan]),
            "gaussian.fwhm_mm": torch.tensor([15.0, 40.0, 25.0]),  # of voxels as wide as these runs are tried on
        }
    return weights


def _written(
    folder: Path,
    config: configs.RunConfig,
    seed: int,
    cohort: Cases | None,
    test: Sequence[str],
    weights: dict[str, Tensor] | None,
    start: dict[str, object] | None = None,
    validation: Sequence[str] = (),
) -> Path:
    torch.manual_seed(seed)
    recipe = RECIPES[config.recipe].build(
        config.model, make_engine=plain_engine, patches_per_step=config.patches_per_step
    )
    cases = cohort.cases if cohort else ()
    whole = configs.to_json(config)
    facts = {"config": whole, "command": "petscale train", "cohort": "cohort", "unpaired": []}
    facts |= {"test": list(test), "validation": list(validation)}
    facts["train"] = [name for name in cases if name not in (*test, *validation)]
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
        Roles.recorded(record), record["cases"], record.get("subjects", {}), trained_before(record)
    )
    checkpoint.write_weights(run / WEIGHTS, tensors, facts)
    (run / CONFIG).write_text(json.dumps({**record, PROOF: FORM}))
