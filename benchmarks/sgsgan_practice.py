"""SGSGAN by its paper's settings and by those of practice, as long and on the same patches: what the latter bring.

    python benchmarks/sgsgan_practice.py FOLDER paper
    python benchmarks/sgsgan_practice.py FOLDER practice

Each trains the demo's SGSGAN in this process, on one core, on the demo's phantoms, which the first call makes, and
prints the gain over the untreated input and over the best baseline.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

from petscale import config as configs
from petscale.config import ClusterConfig, RunConfig
from petscale.data.cohorts import fill_cohort
from petscale.data.phantom import phantom_plans
from petscale.evaluation.run import evaluate_run
from petscale.experiments import runs
from petscale.training.planning import plan_run
from petscale.tuning.trial import train_until


def by(defaults: str) -> RunConfig:
    """The demo's SGSGAN, with the settings of practice or without."""
    config = replace(runs.DEMOS["sgsgan"](0), cluster=ClusterConfig(workers=1))
    if defaults == "paper":
        return config
    return configs.override(config, [f"{one.name}={one.value}" for one in configs.practice_of("sgsgan")])


def main() -> None:
    """Train, synthesize, score."""
    folder, defaults = Path(sys.argv[1]), sys.argv[2]
    cohort, run = folder / "cohort", folder / defaults
    if not cohort.exists():
        plans = phantom_plans(runs.DEMO_PATIENTS, runs.demo_phantom(), runs.demo_scan(), runs.DEMO_DRFS)
        fill_cohort("phantoms", cohort, plans, strict=True, workers=1)
    plan = plan_run(cohort, run, by(defaults))
    begun = time.process_time()
    train_until(plan, plan.num_steps)
    spent_s = time.process_time() - begun
    (found,) = evaluate_run(run, cohort).values()
    over_input, over_best = found.gain(found.images[0]), found.gain(found.best_baseline)
    assert over_input
    assert over_best
    print(
        f"{defaults}: {plan.num_steps} steps in {spent_s:.0f} s of processor time; {over_input.mean:+.2f} dB over the "
        f"input, {over_best.mean:+.2f} dB over {found.best_baseline} ({over_best.num_cases} test cases)"
    )


if __name__ == "__main__":
    main()
