"""A run's records as Ray metrics, for Prometheus to scrape on every node; the training never depends on them.

Each record of ``trainers.loop`` sets some of the metrics below.  Ray's agent forgets a value 20 s after it was set, so
values are sent again while a run lasts; those of a dead process end by themselves.  Cases, cohorts and paths are
never sent: a run or a study is named by the last part of its folder's name.

Ray prefixes every name with ``ray_`` and adds the node and the worker.  All are of Prometheus' type gauge: Ray's agent
never forgets a counter, and every trial of every sweep would be scraped for ever.

=====================================  =========  ================  ==================================================
metric                                 unit       own tags          what
=====================================  =========  ================  ==================================================
petscale_step                          steps                        steps made
petscale_steps                         steps                        steps wanted, of a trial up to its present budget
petscale_loss                          1          loss, phase       mean over ranks and steps since the last record
petscale_patches_per_second            1/s        phase             of all workers together
petscale_wait_share                    0 to 1     phase             share of the time rank 0 waited for patches
petscale_checkpoint_timestamp_seconds  s, Unix                      last commit, or start, of this attempt
petscale_gpu_memory_bytes              bytes      kind              rank 0's tensors: peak, and held by the allocator
petscale_validation_score              its own    score, of         of ``patches`` (a recipe's schedule) or ``volumes``
                                                                    (a trial's objectives)
=====================================  =========  ================  ==================================================

Every one has the tags run, trial (a number; empty outside of a sweep, whose study is then the run) and recipe.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from petscale.folders import TRIALS
from trainers.loop import Report

RESEND_S = 5.0  # Ray exports every 10 s, and its agent forgets a value after twice that

TAGS = {
    "petscale_step": (),
    "petscale_steps": (),
    "petscale_loss": ("loss", "phase"),
    "petscale_patches_per_second": ("phase",),
    "petscale_wait_share": ("phase",),
    "petscale_checkpoint_timestamp_seconds": (),
    "petscale_gpu_memory_bytes": ("kind",),
    "petscale_validation_score": ("score", "of"),
}

Readings = dict[str, dict[tuple[str, ...], float]]  # metric -> its own tags' values, in order -> value


@contextmanager
def sending(run: Path, recipe: str, report: Report) -> Iterator[Report]:
    """Send a run's records to Ray's metrics too while the context lasts; on rank 0, in any process of a Ray cluster.

    Args:
        run: its folder.
        recipe: its name.
        report: gets every record first.

    Returns:
        What to give to the loop instead of ``report``; raises only what ``report`` does.
    """
    sender = _Sender(run, recipe)
    ended = threading.Event()

    def send_again() -> None:
        while not ended.wait(RESEND_S):
            sender.hear(dict)

    def both(record: dict[str, Any]) -> None:
        report(record)
        sender.hear(lambda: readings(record))

    thread = threading.Thread(target=send_again, name="petscale-metrics", daemon=True)
    thread.start()
    try:
        yield both
    finally:
        ended.set()
        thread.join()


def send_scores(run: Path, recipe: str, values: Mapping[str, float]) -> None:
    """Send a trial's objectives, as scored on validation patients; never raises.

    Args:
        run: the trial's folder.
        recipe: its name.
        values: objective's name -> value.
    """
    _Sender(run, recipe).hear(
        lambda: {"petscale_validation_score": {(name, "volumes"): float(value) for name, value in values.items()}}
    )


def named(run: Path) -> tuple[str, str]:
    """Return the tags run and trial of a run's folder: its name and nothing, or its study's name and its number."""
    if run.parent.name == TRIALS and run.name.isdigit():
        return run.parent.parent.name, run.name
    return run.name, ""


def readings(record: Mapping[str, Any]) -> Readings:
    """Return what one record of the loop sets: metrics with all the values that they have from now on."""
    found: Readings = {"petscale_step": {(): float(record["step"])}}
    if record["event"] == "start":
        found["petscale_steps"] = {(): float(record["steps"])}
    if record["event"] in ("start", "checkpoint"):
        found["petscale_checkpoint_timestamp_seconds"] = {(): time.time()}
    if record["event"] == "log":
        phase = str(record["phase"])
        found["petscale_loss"] = {(name, phase): value for name, value in _under("loss/", record).items()}
        found["petscale_patches_per_second"] = {(phase,): float(record["patches_per_s"])}
        found["petscale_wait_share"] = {(phase,): float(record["wait_share"])}
        found["petscale_gpu_memory_bytes"] = _gpu_memory()
    if record["event"] == "validation":
        scores = _under("validation/", record)
        found["petscale_validation_score"] = {(name, "patches"): value for name, value in scores.items()}
    return found


def _under(prefix: str, record: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix(prefix): float(value) for name, value in record.items() if name.startswith(prefix)}


def _gpu_memory() -> dict[tuple[str, ...], float]:
    if not torch.cuda.is_initialized():
        return {}
    return {("peak",): float(torch.cuda.max_memory_allocated()), ("held",): float(torch.cuda.memory_reserved())}


class _Sender:
    """Sends values and repeats them; after the first failure, which is printed once, nothing more is sent."""

    def __init__(self, run: Path, recipe: str) -> None:
        name, trial = named(run)
        self._tags = {"run": name, "trial": trial, "recipe": recipe}
        self._metrics: dict[str, Any] = {}
        self._now: Readings = {}
        self._failed = False
        self._lock = threading.Lock()

    def hear(self, news: Callable[[], Readings]) -> None:
        """Replace the values of some metrics, and send those of all of them again."""
        with self._lock:
            if self._failed:
                return
            try:
                self._now |= news()
                for name, values in self._now.items():
                    for own, value in values.items():
                        tags = self._tags | dict(zip(TAGS[name], own, strict=True))
                        self._metric(name).set(value, tags)
            except Exception as error:  # whatever it is, a training is worth more
                self._failed = True
                print(f"petscale: metrics not sent ({type(error).__name__})", file=sys.stderr)

    def _metric(self, name: str) -> Any:
        if name not in self._metrics:
            from ray.util.metrics import Gauge

            about = f"See petscale.training.metrics_export: {name.removeprefix('petscale_').replace('_', ' ')}"
            self._metrics[name] = Gauge(name, about, (*self._tags, *TAGS[name]))
        return self._metrics[name]
