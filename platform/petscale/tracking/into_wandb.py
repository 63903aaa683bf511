"""Weights & Biases offline: a folder per copy, which leaves this machine only when the user calls `wandb sync`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petscale.tracking.copying import About, Tracker, loaded

PROJECT = "petscale"


class WandbRun:
    """A run of Weights & Biases: a ``Tracker``.

    Args:
        wandb: its module.
        run: what it returned.
    """

    def __init__(self, wandb: Any, run: Any) -> None:
        self._wandb, self._run = wandb, run

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def picture(self, step: int, name: str, file: Path) -> None:
        self._run.log({"step": step, name: self._wandb.Image(str(file))})

    def close(self) -> None:
        self._run.finish()


def open_wandb(store: Path, about: About) -> Tracker:
    """Begin an offline run; a later copy has the same identifier, so that `wandb sync` of the last one is enough.

    Raises:
        InputError: CFG_PACKAGE.
    """
    place = store.resolve()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    folders = {f"WANDB_{kind}_DIR": str(place / ".wandb") for kind in ("CACHE", "CONFIG", "DATA")}
    os.environ |= {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", **folders}  # no report of its own errors
    wandb = loaded("wandb", "wandb")
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_disable_meta=True,  # names of machine and user
    )
    run = wandb.init(
        project=PROJECT,
        id=about.key,
        name=about.name,
        dir=str(place),
        mode="offline",
        config={**about.settings, **{f"tag.{name}": value for name, value in about.tags.items()}},
        settings=settings,
    )
    run.define_metric("*", step_metric="step")
    return WandbRun(wandb, run)
