"""A step of every system beside its convolutions and matrix products alone: writes docs/results/roofline.md.

python -m benchmarks.roofline [--page] [--only unet red_cnn]
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import commit, hardware
from benchmarks.roofline.page import KEPT, PAGE, page
from benchmarks.roofline.products import Recorded, adam_updates, again, in_turns
from petscale import config as configs
from petscale.cluster.session import worker_environment
from petscale.data.phantom import phantom_plans
from petscale.tuning.trial import _join_alone
from storage.ingest import ingest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.reader import Cohort, open_cohort
from trainers.engine import EngineConfig, deepspeed_engines
from trainers.feed import Feed
from trainers.profiling import phase_lengths
from trainers.recipe import Recipe
from trainers.systems import RECIPES

# Widths of the papers or nearly so, on patches that a CPU makes in seconds.
SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "sgsgan": {
        "patch": (32, 32, 32),
        "patches_per_case": 1,
        "context_patches": 2,
        "rois": (),
        "phase_samples": (50, 0, 0, 0),
    },
    "cg_3dsrgan": {
        "doses": (4.0, 20.0),
        "patches_per_case": 2,
        "patch": (32, 32, 32),
        "mlnet_channels": 8,
        "contextual_channels": 8,
        "discriminator_channels": 8,
        "perceptual": "masked",
        "backbone_samples": 50,
        "epoch_samples": 50,
        "max_epochs": 3,
        "calibration_samples": 4,
        "validate_batches": 1,
    },
    "s3pet": {"low_samples": 100, "full_samples": 100, "swap_samples": 100},
    "cascade": {"patch": (1, 96, 96), "downs": 5, "epoch_samples": 50, "epochs": 2, "validate_batches": 1},
    "virtual_pet": {
        "patch": (1, 96, 96),
        "fcn_fc": 256,
        "generator_downs": 5,
        "table_samples": 4,
        "fcn_samples": 50,
        "cgan_samples": 50,
        "epoch_samples": 50,
        "validate_batches": 1,
    },
    "restore": {"patches_per_case": 1, "bank_samples": 4, "samples": 100},
    "red_cnn": {"patches_per_case": 2, "samples": 100},
    "unet": {"patches_per_case": 1, "samples": 100},
}
LARGEST = 4  # operations beside the products that are told by name


def measured(name: str, cohort: Cohort, rounds: int) -> dict[str, Any]:
    """Measure every phase of one system.

    Returns:
        Phase -> median seconds of a step and of its products alone, the median of their ratios, and operation -> its
        part of the step.
    """
    spec = RECIPES[name]
    config = spec.Config(**SYSTEMS[name])
    source = spec.FEED.source if spec.FEED.source == ("ct",) else ("low_drf4", "low_drf20")[-len(spec.FEED.source) :]
    fed = replace(spec.FEED, source=source, cases_per_step=1)
    device = torch.device("cpu")
    torch.manual_seed(0)
    make = deepspeed_engines(EngineConfig(), device=device)
    recipe: Recipe = spec.build(config, make_engine=make, patches_per_step=config.patches_per_case)
    streams = dict.fromkeys(("paired", "source", "target", "unpaired"), cohort.cases)
    feed = Feed(cohort, streams, fed, recipe.batch_spec, rank=0, world=1, device=device)
    found = {}
    for phase, steps in phase_lengths(recipe).items():
        if not steps:
            continue
        recipe.step(feed.batch(steps.start, steps.stop), steps.start)  # what a phase does once
        number = steps.start + (len(steps) > 1)
        batch = feed.batch(number, number + 1)

        def step(batch: Any = batch, number: int = number) -> None:
            recipe.step(batch, number)

        step()
        with Recorded() as recorded:
            step()
        times = in_turns({"step": step, "products": partial(again, recorded.calls)}, rounds)
        ratios = [a / b for a, b in zip(times["step"], times["products"], strict=True) if b]
        found[phase] = {
            "step_s": statistics.median(times["step"]),
            "products_s": statistics.median(times["products"]),
            "ratio": statistics.median(ratios) if ratios else None,
            "products": len(recorded.calls),
            "rest": _rest(step),
        }
    feed.close()
    return found


def _rest(step: Any) -> dict[str, float]:
    """Operation -> its own part of the processor time of operations, products left out; the largest few."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    own = {one.key: one.self_cpu_time_total for one in profiler.key_averages()}
    whole = sum(own.values())
    products = (
        "conv",
        "mkldnn_conv",
        "_conv",
        "slow_conv",
        "_slow_conv",
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "_scaled_dot",
    )
    rest = {
        name.removeprefix("aten::"): spent / whole
        for name, spent in own.items()
        if name.startswith("aten::") and not name.removeprefix("aten::").startswith(products)
    }
    return dict(sorted(rest.items(), key=lambda one: -one[1])[:LARGEST])


def _about(rounds: int) -> dict[str, Any]:
    return {
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[2],
        "rounds": rounds,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", action="store_true", help="make the page of the kept results, and measure nothing")
    parser.add_argument("--only", nargs="*", choices=SYSTEMS, help="measure these again; the others stay as they are")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not options.page:
        wanted = worker_environment(configs.from_json({}))
        if any(os.environ.get(name) != value for name, value in wanted.items()):
            os.execve(sys.executable, [sys.executable, "-m", "benchmarks.roofline", *sys.argv[1:]], os.environ | wanted)
        torch.set_num_threads(1)
        _join_alone()
        kept = json.loads(KEPT.read_text())["systems"] if options.only is not None else {}
        with tempfile.TemporaryDirectory() as folder:
            body = PhantomConfig(shape=(96, 160, 160), spacing_mm=(9.0, 3.5, 3.5))
            ingest(Path(folder), phantom_plans(2, body, LowDoseConfig(iterations=1), [4.0, 20.0]), strict=True)
            cohort = open_cohort(Path(folder))
            for name in SYSTEMS if options.only is None else options.only:
                kept[name] = measured(name, cohort, options.rounds)
                print(name, json.dumps(kept[name]), file=sys.stderr, flush=True)
        systems = {name: kept[name] for name in SYSTEMS if name in kept}
        found = {"about": _about(options.rounds), "adam": adam_updates(10**6, 25), "systems": systems}
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(json.loads(KEPT.read_text())))


if __name__ == "__main__":
    main()
