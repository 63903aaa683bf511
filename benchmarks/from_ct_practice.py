"""The two published systems from CT, as published and with what `--defaults practice` adds, on ten real pairs.

    python benchmarks/from_ct_practice.py DATA FOLDER [--windows 2400] [--seeds 0 1] > rows.md

DATA and the folds are those of ``benchmarks/restore_ct.py``: 8 patients train, 2 of which choose the epoch, 2 are
tested.  Networks are small and trained in this process, on one core.  What is in FOLDER already is not made again.
"""

import argparse
import datetime
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.restore_ct import FOLDS, ROOT, kept, merged, print_table, real_pairs, trained, without_network
from trainers import loop
from trainers.engine import EngineConfig
from trainers.feed_config import FeedConfig

AUGMENTED = {"tilt_deg": 15.0, "scaling": 0.15}


@dataclass(frozen=True)
class Row:
    """One way to train: a system and what differs from its paper.

    Args:
        system: its key.
        fields: of its configuration.
        feed: of what it is fed.
        engine: of how it is trained.
    """

    system: str
    fields: dict[str, Any] = field(default_factory=dict)
    feed: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)


ROOT_SCALE, RESIDUAL, ALONE = {"suv_curve": "sqrt"}, {"residual": "hu"}, {"lambda_adversarial": 0.0}
ALL = {**ROOT_SCALE, **RESIDUAL}
AVERAGED = {"ema_decay": 0.99}
CASCADE = {
    "as published": Row("cascade"),
    "tilts and scales": Row("cascade", feed=AUGMENTED),
    "square root": Row("cascade", ROOT_SCALE),
    "residual on the table": Row("cascade", RESIDUAL),
    "no discriminator": Row("cascade", ALONE),
    "practice": Row("cascade", ALL, AUGMENTED),
    "practice, no discriminator": Row("cascade", {**ALL, **ALONE}, AUGMENTED),
    "practice, no discriminator, averaged weights": Row("cascade", {**ALL, **ALONE}, AUGMENTED, AVERAGED),
}
ROWS = {
    **{f"cascade, {name}": row for name, row in CASCADE.items()},
    **{f"virtual PET, {name}": Row("virtual_pet", row.fields, row.feed, row.engine) for name, row in CASCADE.items()},
}


def configured(row: Row, windows: int) -> dict[str, Any]:
    """Return a row's fields with networks and lengths that a core trains in a minute."""
    critic = {"critic_width": 12, "critic_strides": (2, 2, 1), "validate_batches": 4}
    if row.system == "cascade":
        nets = {"mode": "2.5d", "patch": (3, 48, 48), "downs": 4, "width": 12}
        return {**nets, **critic, "epoch_samples": windows // 8, "epochs": 8, **row.fields}
    fcn = {"fcn_widths": (16, 32, 64, 64), "fcn_fc": 64, "fcn_fc6_kernel": 3, "fcn_norm": "batch", "fcn_lr": 1e-3}
    nets = {"patch": (1, 48, 48), "generator_width": 12, "generator_downs": 4, "blend_levels": 1, **fcn}
    lengths = {"fcn_samples": windows // 2, "cgan_samples": windows // 2, "epoch_samples": windows // 8}
    return {**nets, **critic, "suv_weight_floor": 0.1, **lengths, **row.fields}


def main() -> None:
    """Ingest, train, score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--windows", type=int, default=2400, help="windows that one training sees")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    cases = real_pairs(given.data, given.folder)
    splits = [([c for i, c in enumerate(cases) if i % FOLDS != f], list(cases[f::FOLDS])) for f in range(FOLDS)]
    tables = [
        kept(given.folder / f"scores/tables-{f}.json", lambda s=split: without_network(*s))  # type: ignore[misc]
        for f, split in enumerate(splits)
    ]
    for seed in given.seeds:
        rows, seconds = merged(tables), {}
        for name in given.rows:
            row, folds = ROWS[name], []
            for f, (train, test) in enumerate(splits):
                stem = f"{name.replace(' ', '-').replace(',', '')}-{given.windows}-{seed}-{f}"
                place = given.folder / f"scores/{stem}.json"
                settings = (
                    configured(row, given.windows),
                    FeedConfig(source=("ct",), suv_scale=1.0, cases_per_step=4, **row.feed),
                    EngineConfig(**row.engine),
                    loop.LoopConfig(),
                )
                checkpoints = given.folder / "checkpoints" / stem
                if not place.exists():
                    made = trained(row.system, train, test, checkpoints, *settings, seed)
                    kept(place, lambda made=made: made)  # type: ignore[misc]
                folds.append(kept(place, dict))
            rows[name] = merged([{name: fold["scores"]} for fold in folds])[name]
            seconds[name] = float(np.mean([fold["seconds"] for fold in folds]))
            print(seed, name, f"{seconds[name]:.0f} s", file=sys.stderr, flush=True)
        today = datetime.datetime.now(datetime.UTC).date()
        print(f"Commit {commit}, {today}, one core ({platform.machine()}), {given.windows} windows, seed {seed}.\n")
        print_table(rows, seconds)


if __name__ == "__main__":
    main()
