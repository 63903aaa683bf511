"""Every system as an ONNX graph: its difference from torch, or why there is none; the table of docs/results/onnx.md.

Networks are the smallest ones of the tests, untrained.  Some minutes on one core:
    python benchmarks/onnx_systems.py
"""

import importlib.util
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petscale.cards.graph import graph_of
from petscale.config import RunConfig
from petscale.inference import Trained
from petscale.plausibility import TrainedOn
from storage.errors import InputError
from storage.source import HU, SUV
from trainers.synthesize import InSuv
from trainers.systems import RECIPES

ROOT = Path(__file__).parents[1]


def small_systems() -> Any:
    """The module that knows the smallest honest size of every system."""
    sys.path.insert(0, str(ROOT / "tests/lab"))
    found = importlib.util.spec_from_file_location("every_recipe", ROOT / "tests/trainers/test_every_recipe.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules["every_recipe"] = module
    found.loader.exec_module(module)
    return module


def moved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that are 0 in a fresh network, as those of a last layer, become small ones."""
    torch.manual_seed(1)
    return {
        name: value
        if not value.is_floating_point() or value.any() or "." not in name or name[:5] == "bank."
        else 0.1 * torch.randn_like(value)
        for name, value in weights.items()
    }


def row(name: str, small: Any) -> str:
    spec, feed = RECIPES[name], small.feed_config(name)
    units = HU if feed.source == ("ct",) else SUV
    weights = moved(small.build(name).weights())
    settings = dict(small.SMALL[name])
    if "context_patches" in settings:  # as by default: a norm over two voxels multiplies torch's own rounding
        settings["context_patches"] = 16
    own = spec.weights_to_synthesizer(spec.Config(**settings), weights)
    in_suv = InSuv(own, feed.suv_scale, units, feed.beyond)
    tiling = own.tiling
    tile = [
        edge if overlap else -(-8 // multiple) * multiple
        for edge, overlap, multiple in zip(tiling.tile, tiling.overlap, tiling.multiple, strict=True)
    ]
    trained = Trained(RunConfig(), in_suv, torch.device("cpu"), TrainedOn(units, None, frozenset()))
    began = time.process_time()
    try:
        content, difference = graph_of(replace(trained), name, {}, (tile[0], tile[1], tile[2]))
    except InputError as error:
        found = str(error).removeprefix(f"CKPT_GRAPH {name}: ").rpartition(";")[0]
        return f"| `{name}` | refused | | | {found.replace('|', '/')} |"
    seconds = time.process_time() - began
    return f"| `{name}` | yes | {difference:.1e} | {seconds:.0f} | {len(content) / 1e6:.1f} MB |"


def main() -> None:
    small = small_systems()
    head = (ROOT / "docs/results/onnx.md").read_text().partition("| system |")[0]
    lines = [
        "| system | graph | largest difference from torch [SUV] | export [s of a core] | size, or why not |",
        "|---|---|---|---|---|",
    ]
    for name in RECIPES:
        lines.append(row(name, small))
        print(lines[-1], flush=True)
    (ROOT / "docs/results/onnx.md").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
