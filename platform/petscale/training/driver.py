"""``petscale train``: from a checked plan to trained weights through Ray Train; the same command resumes."""

import importlib
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from petscale.cluster import session as sessions
from petscale.cluster.nodes import joined
from petscale.cluster.placement import machine_cpus, room_for
from petscale.cluster.session import require_resources
from petscale.config import RunConfig
from petscale.console import console
from petscale.folders import STOPPED, WEIGHTS
from petscale.splits import Roles
from petscale.training.controller import run_here
from petscale.training.planning import Plan, plan_run
from petscale.training.progress import Watch
from petscale.training.worker import train_worker
from storage import integrity, remote
from storage.errors import InputError
from storage.internals import internal

ROOM_TRIES = 5  # times that workers are waited for, a minute each by Ray's default; a lost node may come back


def train(
    cohort: Path,
    run: Path,
    config: RunConfig,
    *,
    command: str,
    others: Sequence[Path] = (),
    roles: Roles | None = None,
    time_limit_s: float | None = None,
    init: Path | None = None,
) -> Path:
    """Train, or continue training, and return the exported weights, or the run's folder where its time was over.

    Args:
        cohort: a committed cohort.
        run: the run's folder; made if it does not exist, continued if it does.
        command: what the user typed, for the record.
        others: further cohorts that are trained on too, as one with the first.
        roles: of a new run, where they were drawn before, as for folds; None to draw them.
        time_limit_s: seconds from now in which to end: training stops before, with a checkpoint; None for no limit.
        init: exported weights, or a card, that the networks start from; None for random ones.

    Raises:
        InputError: any mistake, before the cluster starts where it can be seen then; TRAIN_FAILED when workers keep
            dying.
    """
    began = time.monotonic()
    plan = plan_run(cohort, run, config, others=others, roles=roles, init=init)
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if not joined():
        require_resources({"CPU": machine_cpus(), "GPU": torch.cuda.device_count()}, config)
    with integrity.exclusive(plan.run, purpose="train"):
        plan.record(command)
        each = config.cluster.cpus_per_worker
        most = [count for count in config.worker_counts if count * each <= machine_cpus()] or config.worker_counts[-1:]
        cores = most[0] * each  # of this machine, where there is no cluster
        read = [folder / "zarr.json" for folder in (cohort, *others)]
        with Watch(plan.run, plan.num_steps), sessions.session(config, cores, plan.run, *read):
            left_s = None if time_limit_s is None else time_limit_s - (time.monotonic() - began)
            train_on_ray(plan, left_s=left_s)
    if (plan.run / STOPPED).is_file():
        told = integrity.read_json(plan.run / STOPPED, "step", "steps")
        console.print(
            f"stopped in time after step {told['step']} of {told['steps']}; the same command continues",
            markup=False,
            soft_wrap=True,
        )
        return plan.run
    return plan.run / WEIGHTS


def train_on_ray(plan: Plan, *, until: int | None = None, left_s: float | None = None) -> None:
    """Train by Ray Train's workers on the cluster that is there, to the end, or until a step or a time.

    A run of one number of workers leaves it to Ray to start them again.  Ray's own range of workers knows no numbers
    that divide a step, and changes a group that runs; here the number is chosen whenever workers start, and only then.

    Raises:
        InputError: what a worker refused; CLU_NO_ROOM; TRAIN_FAILED when workers keep dying.
    """
    from ray.train import ControllerError, FailureConfig

    cluster, counts = plan.config.cluster, plan.config.worker_counts
    plan = replace(plan, job=replace(plan.job, until=until, stop_in_s=left_s, told_at=time.time()))
    guarded = until is not None or bool(joined())
    if not cluster.least_workers:
        whole = FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=ROOM_TRIES - 1)
        failure = _attempt(plan, counts[0], whole, guarded=guarded)
        if failure:
            raise _ended(plan, failure, room=isinstance(failure, ControllerError))
        return
    once = FailureConfig(max_failures=0, controller_failure_limit=0)
    worker = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.device == "cuda" else {})
    died = crowded = 0
    failure = None
    while True:
        count = room_for(counts, worker, 60.0 * ROOM_TRIES)
        if count is None:
            raise _ended(plan, failure, room=True)
        console.print(f"{count} workers, of {cluster.least_workers} to {cluster.workers}", soft_wrap=True)
        failure = _attempt(plan, count, once, guarded=guarded)
        if failure is None:
            return
        crowded += isinstance(failure, ControllerError)  # others were faster
        died += not isinstance(failure, ControllerError)
        if died > cluster.max_failures or crowded >= ROOM_TRIES:
            raise _ended(plan, failure, room=isinstance(failure, ControllerError))


def _attempt(plan: Plan, workers: int, retries: Any, *, guarded: bool) -> Exception | None:
    """Train by so many workers; returns why it ended, where it did not end well.

    Args:
        retries: Ray's ``FailureConfig``: how often it starts the same number of workers again.
        guarded: whether Ray's controller is a process of its own, and the workers' place given back where it dies.

    Raises:
        InputError: what a worker refused.
    """
    import ray
    from ray.train import RunConfig as RayRunConfig
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from petscale.training.ranks import ByFile

    # Cases are read from Zarr by the workers themselves: the actor that hands out Ray's own data sets would only cost a
    # process.  Who gives the workers' place back when the controller dies asks the dashboard every second.  A private
    # cluster has one for a sweep's trials alone, and ends with its driver anyway.
    needless = [_callback("datasets", "DatasetsCallback")]
    if not guarded:
        needless.append(_callback("placement_group_callback", "PlacementGroupCleanerCallback"))
    for name in ("_create_default_callbacks", "_initialize_and_run_controller"):
        internal(TorchTrainer, name, "ray")

    class Trainer(TorchTrainer):  # type: ignore[misc,unused-ignore]
        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if not isinstance(c, tuple(needless))]

        def _initialize_and_run_controller(self, **words: Any) -> Any:
            return (super()._initialize_and_run_controller if guarded else run_here)(**words)

    run, cluster = plan.run, plan.config.cluster
    meeting = "" if joined() else sessions.own_folder()
    trainer = Trainer(
        train_worker,
        train_loop_config=plan.job.to_json(),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=cluster.device == "cuda",
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.device == "cuda" else {}),
        ),
        torch_config=ByFile(timeout_s=300, folder=meeting) if meeting else TorchConfig(timeout_s=300),
        run_config=RayRunConfig(
            # A fresh name: Ray's own notion of a latest checkpoint is never asked, our manifests are.
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(run / "ray"),
            failure_config=retries,
        ),
    )
    failure: Exception | None = None
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        failure = error
    finally:
        shutil.rmtree(run / "ray", ignore_errors=True)
        if meeting:
            shutil.rmtree(meeting, ignore_errors=True)
    if held := remote.holding(remote.origin(run)):  # what rank 0 published, maybe from another node
        remote.fetch(held.url, held=held)
    raise_refusal(run)
    return failure


def _ended(plan: Plan, failure: Exception | None, *, room: bool) -> InputError:
    """Keep what Ray told, and return the line for it."""
    cluster, run = plan.config.cluster, plan.run
    (run / "failure.log").write_text(str(failure or "no room"))
    if room:
        return InputError(
            "CLU_NO_ROOM",
            where=run.name,
            found=f"{plan.config.worker_counts[-1]} workers could not be started within {ROOM_TRIES} minutes; see "
            "failure.log",
            remedy="bring lost nodes back (ray up), or run the same command with fewer workers: it continues",
        )
    return InputError(
        "TRAIN_FAILED",
        where=run.name,
        found=f"workers died {cluster.max_failures + 1} times; the first error is in failure.log",
        remedy="run the same command again to continue from the last checkpoint",
    )


def _callback(module: str, name: str) -> Any:
    """One of the callbacks that Ray Train gives every trainer."""
    return internal(importlib.import_module(f"ray.train.v2._internal.callbacks.{module}"), name, "ray")


def raise_refusal(run: Path) -> None:
    """Raise what a worker refused, if any did (InputError)."""
    if (run / "error.json").is_file():
        told = integrity.read_json(run / "error.json", "code", "where", "found", "remedy")
        raise InputError(told["code"], where=told["where"], found=told["found"], remedy=told["remedy"])
