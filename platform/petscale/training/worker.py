"""One training process: builds the system, its engines and its feed from plain JSON, and runs the loop."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from petscale import config as configs
from petscale import likeness
from petscale.folders import CHECKPOINTS, STOPPED, WEIGHTS
from petscale.training.job import WorkerJob
from petscale.training.metrics_export import sending
from petscale.training.pictures import picture
from petscale.training.progress import Reporter
from storage import integrity, remote
from storage.errors import InputError
from storage.joined import open_cohorts
from storage.reader import Case, Cases
from trainers import checkpoint, feed, first_weights, loop
from trainers.engine import deepspeed_engines
from trainers.feed_config import as_stored
from trainers.habits import Engines
from trainers.recipe import EngineFactory, Recipe, Validated
from trainers.systems import RECIPES
from trainers.time_limit import TimeLimit
from trainers.validation import CHOSEN, Patches

FENCE_S = 240.0  # a node that is cut off takes minutes to notice; less than the other ranks wait (300 s)


def _silent(record: Mapping[str, Any]) -> None:
    """What other ranks than 0 report."""


@contextmanager
def _brought(job: WorkerJob) -> Iterator[tuple[Path, Path, Callable[[], None]]]:
    """The cohort and the run on this node, and what rank 0 calls after each commit; paths are mounted by all nodes.

    Every rank resumes from what is published, nothing else: nodes must not differ in their newest checkpoint.
    """
    cohort, run = Path(job.cohort), Path(job.run)
    publish: Callable[[], None] = _nothing
    with ExitStack() as stack:
        if job.lease:
            held = remote.Lease(**job.lease)
            if dist.get_rank() == 0:
                held = stack.enter_context(remote.succession(held))  # an attempt still dying publishes no more
            _together(_nothing)
            run = _together(partial(remote.fetch, held.url, held=held))
            publish = partial(remote.publish, run, held.url, held)
        if job.cohort_url:
            cohort = _together(partial(remote.fetch, job.cohort_url))
        yield cohort, run, publish


def _together(work: Callable[[], Any]) -> Any:
    """Do ``work`` on all ranks; who is done waits for the others, however long, without a collective timing out.

    Raises:
        InputError: the same on every rank: what was refused on any.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        busy = torch.ones(1, device="cuda" if dist.get_backend() == "nccl" else "cpu")
        while busy.item():
            wait([future], timeout=5)
            busy.fill_(not future.done())
            dist.all_reduce(busy, op=dist.ReduceOp.MAX)
    refused: list[BaseException | None] = [None] * dist.get_world_size()
    dist.all_gather_object(refused, future.exception())
    for error in filter(None, refused):
        raise error
    return future.result()


def _nothing() -> None:
    """Where all nodes mount one path there is nothing to bring."""


def _publishing(report: loop.Report, publish: Callable[[], None]) -> loop.Report:
    """A report that publishes after each committed checkpoint; one that cannot be brought comes with the next."""

    def told(record: dict[str, Any]) -> None:
        report(record)
        if record["event"] == "checkpoint":
            try:
                publish()
            except InputError as error:
                if error.code != "CLU_UNREACHABLE":
                    raise
                print(f"petscale: checkpoint not published yet ({error})", file=sys.stderr)

    return told


@contextmanager
def _fence(run: Path) -> Iterator[None]:
    """Hold the checkpoints alone.  Whoever does not let go in time is no user's mistake: the workers start again."""
    with ExitStack() as stack:
        try:
            stack.enter_context(integrity.exclusive(run / CHECKPOINTS, purpose="this attempt", wait_s=FENCE_S))
        except InputError as error:
            if error.code == "STORE_BUSY":
                raise RuntimeError(str(error)) from None
            raise
        yield


@dataclass(frozen=True)
class Training:
    """One worker's part of a training.

    Args:
        recipe: the system with its engines.
        engines: what is done to all of them.
        source: batches to train on.
        validation: batches of validation patients, for a system whose schedule follows their scores.
        gains: scores of what a synthesizer makes of validation patients, where the loop asks for them.
        shown: the case that pictures are made of.
    """

    recipe: Recipe
    engines: Engines
    source: feed.Feed
    validation: feed.Feed | None
    gains: Patches | None
    shown: Case

    def close(self) -> None:
        """Stop reading ahead."""
        for one in (self.source, self.validation):
            if one:
                one.close()


def prepare(
    job: WorkerJob,
    cohort: Cases,
    *,
    rank: int,
    world: int,
    device: torch.device,
    around: Callable[[EngineFactory], EngineFactory] = lambda make: make,
) -> Training:
    """Build one worker's part of a training; the process group is up.

    Args:
        around: what is put around the factory of the system's engines.
    """
    config = configs.from_json(job.used)
    engines = Engines(deepspeed_engines(config.engine, device=device), config.engine)
    build = partial(RECIPES[config.recipe].build, config.model, patches_per_step=config.patches_per_step)
    make: EngineFactory = engines.make
    if job.init:
        placed, _ = first_weights.places(lambda plain: build(make_engine=plain))
        tensors, _ = checkpoint.read_weights(Path(job.init))
        make = first_weights.starting_from(make, tensors, placed)
    recipe = build(make_engine=around(make))
    reads = partial(feed.Feed, cohort, rank=rank, world=world, device=device)
    source = reads(job.roles.streams, config.feed, recipe.batch_spec)
    validation = None
    if isinstance(recipe, Validated):
        spec = recipe.validation_batch
        plain = as_stored(config.feed)
        validation = reads({"paired": job.roles.validation}, plain, lambda batch: spec)
    gains = None
    if config.loop.validate_every:
        number = config.loop.validation_patches
        kept = cohort, job.roles.validation, config.feed, number
        gains = Patches(*kept, rank=rank, world=world, device=device)
    shown = cohort.case((job.roles.test or job.roles.train)[0])
    return Training(recipe, engines, source, validation, gains, shown)


def train_worker(content: Mapping[str, Any]) -> None:
    """One worker: the process group is up; everything else is built here from a ``WorkerJob`` as JSON.

    What it refuses stands in the run's ``error.json`` afterwards.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    job = WorkerJob.from_json(content)
    config, run = configs.from_json(job.used), Path(job.run)
    publish: Callable[[], None] = _nothing
    rank, world = dist.get_rank(), dist.get_world_size()
    device = (
        torch.device("cuda", torch.cuda.current_device()) if config.cluster.device == "cuda" else torch.device("cpu")
    )
    torch.set_num_threads(config.cluster.cpus_per_worker)
    torch.manual_seed(config.loop.seed)  # the networks' first weights
    limit = TimeLimit.told(job.stop_in_s, job.told_at)
    try:
        with ExitStack() as stack:
            place, run, publish = stack.enter_context(_brought(job))
            if rank == 0:  # an attempt that is still dying must have let go of the checkpoints before this touches them
                stack.enter_context(_fence(run))
                report = _publishing(stack.enter_context(sending(run, config.recipe, Reporter(run))), publish)
            else:
                report = _silent
            cohort = open_cohorts([place, *map(Path, job.others)])
            training = prepare(job, cohort, rank=rank, world=world, device=device)
            recipe = training.recipe
            about = {"recipe": config.recipe, "config": json.dumps(job.recorded)}
            about |= {"starts_from": json.dumps(job.starts_from), "drfs": json.dumps(job.drfs)}
            about |= job.proof
            origin = dict(about)
            best = loop.fit(
                recipe,
                training.source,
                config.loop,
                folder=run / CHECKPOINTS,
                meta=job.identity,
                report=report,
                picture=picture(run / "pictures", training.shown, config.feed, device),
                patches_per_step=config.patches_per_step,
                engines=training.engines,
                validation=training.validation,
                gains=training.gains,
                export=lambda name, tensors: checkpoint.write_weights(run / f"{name}.safetensors", tensors, origin),
                until=job.until,
                limit=limit,
            )
            if limit and limit.stopped_at is not None:
                if rank == 0:
                    integrity.write_json(run / STOPPED, {"step": limit.stopped_at, "steps": recipe.num_steps})
                    publish()
                return
            weights = best.weights or recipe.weights()
            if best.weights:
                about |= {CHOSEN: json.dumps({"step": best.step, "gain_db": best.gain_db})}
            if rank == 0:
                trained = (*job.roles.train, *job.roles.unpaired)
                about |= {likeness.FACT: json.dumps(likeness.learn(cohort, trained, config.feed.source).to_json())}
                checkpoint.write_weights(run / WEIGHTS, weights, about)
                publish()
    except InputError as error:
        # Told to the user once by the driver, not retried: it would fail again.
        if rank == 0 or not (run / "error.json").exists():
            facts = {"code": error.code, "where": error.where, "found": error.found, "remedy": error.remedy}
            integrity.write_json(run / "error.json", facts)
            if rank == 0:
                with suppress(InputError):  # the driver may have lost the lease, or the store be away
                    publish()
