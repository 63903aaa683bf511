"""The training loop of every system: steps, ranks, checkpoints, and the check that losses are finite."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from storage.errors import InputError
from storage.randomness import Stream
from storage.ranges import Range, check_ranges
from trainers import checkpoint
from trainers.feed import Feed
from trainers.recipe import Exporting, Followed, Metrics, Recipe, Synthesizer, Validated
from trainers.time_limit import TimeLimit
from trainers.validation import Best


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How often the loop does what.

    Args:
        log_every: steps between log records.
        save_every: steps between checkpoints; what a crash can cost.
        picture_every: steps between validation pictures, 0 for none.
        keep: newest checkpoints that stay.
        seed: of everything random inside a step (SGSGAN's noise).
        validate_every: steps between validations on patients that are not trained on, 0 for none; the weights that
            did best there are then the run's.  Not for a system that follows validation scores on a schedule of its
            own.
        validation_patches: patches that every validation restores, the same ones each time.
        patience: validations without a better score after which training ends, 0 for never; for a system whose last
            phase alone trains what restores, or that says that they count there alone (``recipe.Followed``).
    """

    log_every: Annotated[int, Range(1)] = 10
    save_every: Annotated[int, Range(1)] = 200
    picture_every: Annotated[int, Range(0)] = 200
    keep: Annotated[int, Range(1)] = 2
    seed: Annotated[int, Range(0)] = 0
    validate_every: Annotated[int, Range(0)] = 0
    validation_patches: Annotated[int, Range(1)] = 16
    patience: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        check_ranges(self, "loop")
        if self.patience and not self.validate_every:
            raise InputError(
                "CFG_RANGE",
                where="loop.patience",
                found=f"{self.patience} validations, and none is made",
                remedy="validate (--set loop.validate_every=500), or use --set loop.patience=0",
            )


class Leading(Protocol):
    """What the loop does to all engines of a run: ``trainers.habits.Engines``."""

    def begin(self, step: int, num_steps: int) -> None:
        """Prepare the updates of ``step``, of a run of ``num_steps`` steps."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Let every network hold its averaged weights for a while, where averages are kept."""
        ...


class AsTheyAre:
    """Engines that nothing is done to: ``Leading``."""

    def begin(self, step: int, num_steps: int) -> None:
        """Nothing depends on the step."""

    def averaged(self) -> AbstractContextManager[None]:
        """Keep the weights."""
        return nullcontext()


AS_THEY_ARE = AsTheyAre()
VALIDATION = "validation"  # of a checkpoint's state, what is the loop's own
Report = Callable[[dict[str, Any]], None]
Picture = Callable[[int, Synthesizer], None]
Gains = Callable[[Synthesizer], torch.Tensor]
Export = Callable[[str, Mapping[str, torch.Tensor]], None]


def fit(
    recipe: Recipe,
    feed: Feed,
    config: LoopConfig,
    *,
    folder: Path,
    meta: Mapping[str, Any],
    report: Report,
    picture: Picture,
    patches_per_step: int,
    engines: Leading = AS_THEY_ARE,
    validation: Feed | None = None,
    gains: Gains | None = None,
    export: Export = lambda name, tensors: None,
    until: int | None = None,
    limit: TimeLimit | None = None,
) -> Best:
    """Train ``recipe`` to its last step, from the newest whole checkpoint in ``folder`` on.

    Args:
        meta: recipe name, configuration and cases; a checkpoint made under others is refused.
        report: gets one record per log interval and per checkpoint, on rank 0.
        picture: gets (step, synthesizer) now and then, on rank 0.
        engines: the recipe's, where something is done to all of them.
        validation: batches of patients that are not trained on, for a recipe whose schedule follows their scores.
        gains: scores of what a synthesizer makes of validation patients, ``trainers.validation.Patches``; asked for
            every ``config.validate_every`` steps, and after the last one, in phases that train what restores.
        export: gets (name, tensors) of networks that a recipe wants kept at the end of a phase, on rank 0.
        until: stop, committed, once so many steps are made; a later call continues.
        limit: stop, committed, before this time is over, after one step at least; it tells afterwards whether it was
            so.  A later call continues.

    Returns:
        The weights that did best on validation patients; none where there was no validation.

    Raises:
        InputError: the same on every rank: TRAIN_NONFINITE naming the patches, STORE_DAMAGED, CKPT_RECIPE, CKPT_DRIFT.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    saved, warnings = checkpoint.newest(folder)
    best = Best()
    if saved:
        checkpoint.check_same_run(saved.meta["run"], meta)
        best = Best.of(saved.state.pop(VALIDATION)) if gains else best
        recipe.load(saved.state)
    step = saved.step if saved else 0
    last = recipe.num_steps if until is None else min(until, recipe.num_steps)
    if rank == 0:
        report({"event": "start", "step": step, "steps": last, "world": world, "warnings": warnings})
    totals: dict[str, torch.Tensor] = {}
    times: dict[str, int] = {}  # a step of one kind may measure what another does not
    count, begin, failure = 0, perf_counter(), None
    places: tuple[str, ...] = ()
    stopping = False
    while step < last and not _in_vain(best, config) and not stopping:
        started = perf_counter()
        try:
            batch = feed.batch(step, last)
            places = batch.places
        except InputError as error:
            failure = error
        _agree(failure, world)
        # Keyed by step and rank: a resumed run draws the same noise without any generator state in the checkpoint.
        key = np.random.SeedSequence((config.seed, Stream.STEP_NOISE, step, rank)).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(key))
        engines.begin(step, recipe.num_steps)
        metrics = recipe.step(batch, step)
        failure = _finite(metrics, step, places)
        for name, value in metrics.items():
            totals[name] = totals[name] + value if name in totals else value
            times[name] = times.get(name, 0) + 1
        count += 1
        made, phase = step, recipe.phase(step)
        step += 1
        if validation and isinstance(recipe, Validated) and step % recipe.validate_every == 0:
            _agree(failure, world)
            with engines.averaged():
                scores = _scores(recipe, validation, world)
            step = _observe(recipe, scores, step, report if rank == 0 else lambda record: None)
        whole = step >= recipe.num_steps
        if gains and (step % config.validate_every == 0 or whole) and recipe.batch_spec(made).restores:
            _agree(failure, world)
            paused = perf_counter()
            best, record = _best_after(best, recipe, gains, engines, step, world)
            begin += perf_counter() - paused  # no part of the training's speed
            if rank == 0:
                report({**record, "phase": phase})
        ends = step >= last or _in_vain(best, config)
        phase_ends = ends or recipe.phase(step) != phase
        if limit:
            limit.stepped(perf_counter() - started)
            stopping = not ends and _any(limit.near, world)
        if step % config.log_every == 0 or phase_ends or stopping:
            _agree(failure, world)
            means = {f"loss/{name}": value for name, value in _mean_over_ranks(totals, times, world).items()}
            now = perf_counter()
            if rank == 0:
                speed = patches_per_step * count / (now - begin)
                timing = {"patches_per_s": speed, "wait_share": feed.waited_s / (now - begin), "time_s": now - begin}
                report({"event": "log", "step": step, "phase": phase, **timing, **means})
            totals, times, count, begin, feed.waited_s = {}, {}, 0, perf_counter(), 0.0
        if phase_ends and isinstance(recipe, Exporting):
            _agree(failure, world)
            for name, tensors in recipe.exports(step).items():
                if rank == 0:
                    export(name, tensors)
        if step % config.save_every == 0 or ends or stopping:
            _agree(failure, world)  # weights behind a non-finite loss are never committed
            started = perf_counter()
            state = recipe.state() | ({VALIDATION: best.state()} if gains else {})
            if rank == 0:
                try:
                    checkpoint.save(folder, step, state, {"run": dict(meta), "world": world}, keep=config.keep)
                    report({"event": "checkpoint", "step": step})
                except InputError as error:
                    failure = error
            _agree(failure, world)  # a barrier too: nobody runs ahead of an uncommitted checkpoint
            if limit:
                limit.saved(perf_counter() - started)
        if config.picture_every and step % config.picture_every == 0 and rank == 0:
            with engines.averaged():
                picture(step, recipe.synthesizer())
    if limit and stopping:
        limit.stopped_at = step
    for source in (feed, validation):
        if source:
            source.close()
    return best


def _in_vain(best: Best, config: LoopConfig) -> bool:
    """Whether so many validations brought nothing better that training ends."""
    return 0 < config.patience <= best.since


def _best_after(
    best: Best, recipe: Recipe, gains: Gains, engines: Leading, step: int, world: int
) -> tuple[Best, dict[str, Any]]:
    """Restore the same patches as ever and keep the weights where they are better than before (collective).

    Returns:
        The best so far, and the record of this validation.
    """
    weights = recipe.weights()  # first: ranks then share one running mean and variance, which the score is of, too
    failure = None
    try:
        with engines.averaged():
            found = gains(recipe.synthesizer())
    except InputError as error:
        failure = error
    _agree(failure, world)
    if world > 1:
        dist.all_reduce(found)
    gain_db = float(found.mean())
    counted = not isinstance(recipe, Followed) or recipe.phase(step - 1) == recipe.followed
    best = best.after(gain_db, step, weights, counted=int(counted))
    return best, {"event": "validation", "step": step, "validation/gain_db": gain_db, "best_step": best.step}


def _scores(recipe: Validated, feed: Feed, world: int) -> dict[str, float]:
    """Score the same batches as ever."""
    totals: dict[str, torch.Tensor] = {}
    failure = None
    for number in range(recipe.validate_batches):
        try:
            scores = recipe.validate(feed.batch(number, recipe.validate_batches))
        except InputError as error:
            failure = error
            break
        for name, value in scores.items():
            totals[name] = totals[name] + value if name in totals else value
    _agree(failure, world)
    return _mean_over_ranks(totals, dict.fromkeys(totals, recipe.validate_batches), world)


def _observe(recipe: Validated, scores: Mapping[str, float], step: int, report: Report) -> int:
    """Let the recipe say where to go on."""
    after = recipe.observe(step, scores)
    report({"event": "validation", "step": step, **{f"validation/{name}": value for name, value in scores.items()}})
    return after


def _finite(metrics: Metrics, step: int, places: tuple[str, ...]) -> InputError | None:
    if bool(torch.isfinite(torch.stack([value.float() for value in metrics.values()])).all()):
        return None
    bad = ", ".join(name for name, value in metrics.items() if not torch.isfinite(value))
    return InputError(
        "TRAIN_NONFINITE",
        where=f"step {step}, patches {'; '.join(places)}",
        found=f"{bad} is not finite",
        remedy="look at these patches; a smaller learning rate or another intensity scale may help",
    )


def _agree(failure: InputError | None, world: int) -> None:
    """Raise on every rank what went wrong on any, so that none waits for another for ever."""
    if world == 1:
        if failure:
            raise failure
        return
    if _any(failure is not None, world):
        found: list[InputError | None] = [None] * world
        dist.all_gather_object(found, failure)
        raise next(error for error in found if error)


def _any(here: bool, world: int) -> bool:
    """Whether it is so on any rank: the same on all of them (collective)."""
    if world == 1:
        return here
    flag = torch.tensor([int(here)])
    if dist.get_backend() == "nccl":
        flag = flag.cuda()
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def _mean_over_ranks(totals: Mapping[str, torch.Tensor], times: Mapping[str, int], world: int) -> dict[str, float]:
    names = sorted(totals)
    values = torch.stack([totals[name].detach().float() / times[name] for name in names])
    if world > 1:
        dist.all_reduce(values)
        values = values / world
    return dict(zip(names, values.tolist(), strict=True))
