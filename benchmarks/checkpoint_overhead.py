"""What checkpoints and validation cost a training: the share of its time in which its loop waits for them.

The same small system is trained several times by petscale's own loop, in this process, on plain engines, each time from
the same weights on the same patches: with a checkpoint every 200 steps, the default, with a validation at the same
places, and with neither.  The three ways take turns, so that whatever else the machine does falls on all alike.
Waiting is what lies between two steps where a checkpoint or a validation is due, beyond the median of what lies between
two other steps.  No step is made meanwhile, so that none is slowed down.

    python benchmarks/checkpoint_overhead.py [--rounds 5] [--steps 401] [--channels 32]
"""

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petscale.data.phantom import phantom_plans
from storage.ingest import ingest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.reader import Cases, open_cohort
from trainers import checkpoint
from trainers.engine import plain_engine
from trainers.feed import Feed
from trainers.feed_config import FeedConfig
from trainers.loop import LoopConfig, fit
from trainers.systems import red_cnn
from trainers.validation import Patches

EVERY = LoopConfig().save_every
WAYS: Mapping[str, Mapping[str, int]] = {
    "neither": {},
    "checkpoints": {"save_every": EVERY},
    "validation": {"validate_every": EVERY},
}


@dataclass
class Seen:
    """Begin and end of what happened in one training, in seconds of one clock."""

    steps: list[tuple[float, float]] = field(default_factory=list)
    writes: list[tuple[float, float]] = field(default_factory=list)
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def due(self) -> int:
        """Places between two steps at multiples of ``EVERY``."""
        return (len(self.steps) - 1) // EVERY

    def waited(self) -> float:
        """Seconds between two steps at multiples of ``EVERY``, beyond those between other steps."""
        gaps = [after[0] - before[1] for before, after in zip(self.steps, self.steps[1:], strict=False)]
        others = [gap for number, gap in enumerate(gaps, 1) if number % EVERY]
        return sum(gaps[EVERY - 1 :: EVERY]) - self.due * statistics.median(others)

    def total(self) -> float:
        """Seconds from the first step's begin to the last one's end."""
        return self.steps[-1][1] - self.steps[0][0]


def timed(work: Callable[..., Any], into: list[tuple[float, float]]) -> Callable[..., Any]:
    """The same work, noting when it was done."""

    def noted(*given: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return work(*given, **named)
        finally:
            into.append((begin, time.perf_counter()))

    return noted


def train(cohort: Cases, options: argparse.Namespace, folder: Path, settings: Mapping[str, int]) -> Seen:
    """One training.  The checkpoint at its end, which every training makes, lies behind all steps."""
    config = red_cnn.Config(channels=options.channels, patch=(1, 32, 32), samples=4 * options.steps)
    torch.manual_seed(0)
    recipe = red_cnn.build(config, make_engine=plain_engine, patches_per_step=4)
    seen = Seen()
    object.__setattr__(recipe, "step", timed(recipe.step, seen.steps))  # it is frozen
    device = torch.device("cpu")
    feed_config = FeedConfig(source=("low_drf20",), cases_per_step=1)
    streams = {"paired": cohort.cases[:2]}
    feed = Feed(cohort, streams, feed_config, recipe.batch_spec, rank=0, world=1, device=device)
    loop = LoopConfig(**{"save_every": 10**9, "picture_every": 0, **settings})
    gains = None
    if loop.validate_every:
        gains = Patches(cohort, cohort.cases[2:], feed_config, loop.validation_patches, rank=0, world=1, device=device)
    save = checkpoint.save
    checkpoint.save = timed(save, seen.writes)
    try:
        fit(
            recipe,
            feed,
            loop,
            folder=folder,
            meta={"recipe": "red_cnn"},
            report=lambda record: None,
            picture=lambda step, synthesizer: None,
            patches_per_step=4,
            gains=gains,
        )
    finally:
        checkpoint.save = save
    seen.weights = recipe.weights()
    return seen


def interval(values: Sequence[float]) -> str:
    """The mean, and the 95 % interval of 10,000 bootstrap means, in percent."""
    drawn = np.random.default_rng(0).choice(np.array(values), (10_000, len(values))).mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{100 * np.mean(values):.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2 * EVERY + 1)
    parser.add_argument("--channels", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[Seen]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        body = PhantomConfig(shape=(48, 80, 80), spacing_mm=(9.0, 5.5, 5.5))
        ingest(home / "cohort", phantom_plans(4, body, LowDoseConfig(iterations=1), [20.0]), strict=True)
        cohort = open_cohort(home / "cohort")
        for number in range(options.rounds):
            order = list(WAYS)
            for way in order[number % 3 :] + order[: number % 3]:
                found[way].append(train(cohort, options, home / f"{way}-{number}", WAYS[way]))
        size = next((home / "checkpoints-0").glob(f"*/{checkpoint.STATE}")).stat().st_size
    first = found["neither"][0].weights
    for way, runs in found.items():
        same = all(torch.equal(one.weights[key], first[key]) for one in runs for key in first)
        assert same, f"{way}: other weights"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cores = len(os.sched_getaffinity(0))
    print(
        f"commit {commit.stdout.strip()}, {platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}, {options}"
    )
    lengths = [1e3 * (end - begin) for runs in found.values() for one in runs for begin, end in one.steps]
    print(f"a step: median {statistics.median(lengths):.0f} ms; a checkpoint: {size / 1e6:.1f} MB; weights bit-equal")
    for way in ("checkpoints", "validation"):
        shares = [one.waited() / one.total() for one in found[way]]
        each = statistics.mean(one.waited() / one.due for one in found[way])
        print(f"{way}, one per {EVERY} steps: {1e3 * each:.0f} ms each, {interval(shares)} of the time")
    writes = [1e3 * (end - begin) for one in found["checkpoints"] for begin, end in one.writes[:-1]]
    print(f"of a checkpoint, writing it: median {statistics.median(writes):.0f} ms, at most {max(writes):.0f} ms")


if __name__ == "__main__":
    main()
