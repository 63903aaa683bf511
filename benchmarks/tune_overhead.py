"""What a trial costs beside its own work: `petscale tune`, plain Optuna in two threads, stock Ray Tune with Optuna.

Every system runs the same short trials (a wait and a parabola of two parameters), two side by side, with TPE and a
journal file.  A trial's own work is noted by the trial itself, so a system's cost per trial is

    (end of the last trial - begin of the first) x slots / trials - work of a trial

which leaves out what is paid once (a cluster's start, imports), told in a column of its own.  The three take turns.

    python benchmarks/tune_overhead.py [--trials 24] [--work 0.3] [--rounds 3]
"""

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna

from petscale import config as configs
from petscale.data.phantom import phantom_plans
from petscale.tuning.search import SweepConfig
from petscale.tuning.sweep import sweep
from petscale.tuning.trial import TrialJob
from storage.ingest import ingest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig

SLOTS = 2


def note(log: Path, begin: float) -> None:
    """One line per trial, written by whichever process ran it."""
    with log.open("a") as file:
        file.write(f"{begin} {time.time()}\n")


def ours(folder: Path, log: Path, trials: int, work_s: float) -> None:
    """`petscale tune` with work that trains nothing."""
    body = PhantomConfig(shape=(32, 24, 24), spacing_mm=(30.0, 15.0, 15.0))
    scan = LowDoseConfig(million_prompts_per_bed=20.0, iterations=1)
    ingest(folder / "cohort", phantom_plans(4, body, scan, [20.0]), strict=True)

    def work(job: TrialJob, rung: int) -> dict[str, float]:
        begin = time.time()
        time.sleep(work_s)
        note(log, begin)
        return {"psnr_body": -sum((value - 0.5) ** 2 for value in job.settings.values())}

    base = configs.override(
        configs.from_json({"recipe": "s3pet"}),
        ["recipe.window=16", "feed.source=low_drf20", "feed.cases_per_step=2", "split.unpaired_fraction=0.4"],
    )
    config = SweepConfig(spaces=("masking",), trials=trials, at_once=SLOTS)
    sweep(folder / "cohort", folder / "study", base, config, command="benchmark", work=work)


def plain_optuna(folder: Path, log: Path, trials: int, work_s: float) -> None:
    """`study.optimize` in two threads."""

    def objective(trial: optuna.Trial) -> float:
        begin = time.time()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        time.sleep(work_s)
        note(log, begin)
        return -((x - 0.5) ** 2) - (y - 0.5) ** 2

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "journal")))
    study = optuna.create_study(storage=storage, direction="maximize")
    study.optimize(objective, n_trials=trials, n_jobs=SLOTS)


def stock_tune(folder: Path, log: Path, trials: int, work_s: float) -> None:
    """Ray Tune as its documentation shows it: a function, OptunaSearch, a process per trial."""
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    def trainable(config: dict[str, float]) -> dict[str, float]:
        begin = time.time()
        time.sleep(work_s)
        note(log, begin)
        return {"value": -((config["x"] - 0.5) ** 2) - (config["y"] - 0.5) ** 2}

    ray.init(num_cpus=SLOTS, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    try:
        tune.Tuner(
            trainable,
            param_space={"x": tune.uniform(0, 1), "y": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(
                metric="value",
                mode="max",
                num_samples=trials,
                max_concurrent_trials=SLOTS,
                search_alg=OptunaSearch(study_name="benchmark"),
            ),
            run_config=tune.RunConfig(name="stock", storage_path=str(folder / "tune"), verbose=0),
        ).fit()
    finally:
        ray.shutdown()


SYSTEMS: dict[str, Callable[[Path, Path, int, float], None]] = {
    "petscale tune": ours,
    "Optuna, n_jobs=2": plain_optuna,
    "Ray Tune + OptunaSearch": stock_tune,
}


def measure(system: Callable[[Path, Path, int, float], None], trials: int, work_s: float) -> tuple[float, float]:
    """Return the cost per trial and everything else but the trials, in seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name), Path(name) / "log"
        begin = time.perf_counter()
        system(folder, log, trials, work_s)
        whole = time.perf_counter() - begin
        spans = [tuple(map(float, line.split())) for line in log.read_text().splitlines()]
    assert len(spans) == trials
    span = max(end for _, end in spans) - min(start for start, _ in spans)
    work = statistics.mean(end - start for start, end in spans)
    return span * SLOTS / trials - work, whole - span


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--work", type=float, default=0.3, help="seconds of a trial's own work")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "RAY_AUTH_MODE": "disabled"}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SYSTEMS}
    for _ in range(chosen.rounds):
        for name, system in SYSTEMS.items():
            found[name].append(measure(system, chosen.trials, chosen.work))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(f"commit {commit.stdout.strip()}, {platform.machine()}, {os.cpu_count()} cores; {chosen.trials} trials of")
    print(f"{chosen.work} s, {SLOTS} side by side, median of {chosen.rounds} rounds")
    print("| | s per trial beside its work | range | once, s |")
    print("|---|---|---|---|")
    for name, pairs in found.items():
        costs, once = zip(*pairs, strict=True)
        print(
            f"| {name} | {statistics.median(costs):.3f} | {min(costs):.3f} to {max(costs):.3f} | "
            f"{statistics.median(once):.1f} |"
        )


if __name__ == "__main__":
    main()
