"""petscale plan and petscale profile: what a run will take in time and memory, by a few of its steps."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from petscale import config as configs
from petscale.cluster.placement import machine_cpus
from petscale.cluster.session import require_resources
from petscale.config import RunConfig
from petscale.console import console as told
from petscale.durations import spoken
from petscale.folders import CHECKPOINTS
from petscale.training.measuring import Measured, measure
from petscale.training.planning import Plan, plan_run
from storage.errors import InputError
from storage.joined import open_cohorts
from trainers import checkpoint, footprint
from trainers.engine import plain_engine
from trainers.footprint import Held
from trainers.profiling import PARTS
from trainers.recipe import BatchSpec, EngineFactory, Recipe
from trainers.systems import RECIPES

GIB, MIB, KIB = 2**30, 2**20, 2**10
RESERVE = 0.1  # of the free memory, which an estimate leaves alone
RAY = GIB  # what the command itself and Ray's processes held beside the workers of a training of two
MOST_CASES = 4096

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Need:
    """Memory that one worker needs, bytes.

    Args:
        held: weights, gradients and the optimizer's moments.
        activations: what a step holds beside them at its fullest.
        process: the process itself with its libraries and batches read ahead.
        between: what a checkpoint, a validation or a picture holds more than a step.
        is_measured: whether these were measured, or only activations told by shapes.
    """

    held: Held
    activations: int
    process: int
    between: int
    is_measured: bool

    @property
    def total(self) -> int:
        """All of it together."""
        return self.held.total + self.activations + self.process + self.between


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Args:
        config: the run.
        workers: processes.
        num_steps: of all phases.
        made: steps that the run's folder holds already.
        held: what networks hold on one worker.
        need: memory of one worker; None where no step could be made and shapes alone do not tell it.
        free: bytes that all workers together may take, or each on its GPU.
        load: processes that wanted a core of this machine before a step was made, a mean over a minute.
        measured: time; None where no step was made.
        patch: the largest patch that would fit, an estimate; None where it cannot be told.
        cases_per_step: the largest ``feed.cases_per_step`` that would fit, an estimate; None where it cannot be told.
    """

    config: RunConfig
    workers: int
    num_steps: int
    made: int
    held: Held
    need: Need | None
    free: int
    load: float
    measured: Measured | None
    patch: tuple[int, ...] | None
    cases_per_step: int | None

    @property
    def fits(self) -> bool:
        """Whether the memory suffices, as far as is known."""
        return self.need is not None and self.need.total <= self.free_each

    @property
    def free_each(self) -> int:
        """Bytes that one worker may take."""
        return _each(self.config, self.free, self.workers)

    @property
    def left_s(self) -> float | None:
        """Time until the run ends, without its start; None where no step was made."""
        return None if self.measured is None else self.measured.left_s(self.made)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values; bytes and seconds."""
        need = self.need
        return {
            "recipe": self.config.recipe,
            "workers": self.workers,
            "device": self.config.cluster.device,
            "steps": self.num_steps,
            "steps_made": self.made,
            "memory_bytes": {
                "weights": self.held.weights,
                "gradients": self.held.gradients,
                "optimizer": self.held.optimizer,
                "activations": need.activations if need else None,
                "process": need.process if need else None,
                "between": need.between if need else None,
                "worker": need.total if need else None,
                "measured": need.is_measured if need else False,
                "free": self.free,
                "fits": self.fits,
            },
            "phases": [{"name": one.name, "steps": one.steps, "step_s": one.step_s} for one in self.measured.phases]
            if self.measured
            else [],
            "beside": [{"name": one.name, "number": one.number, "seconds": one.seconds} for one in self.measured.beside]
            if self.measured
            else [],
            "left_s": self.left_s,
            "load": self.load,
            "estimate": {"patch": self.patch, "cases_per_step": self.cases_per_step},
        }


def forecast(
    cohort: Path,
    config: RunConfig,
    *,
    others: Sequence[Path] = (),
    run: Path | None = None,
    init: Path | None = None,
    free_memory: int,
) -> Forecast:
    """Tell what a run will take on this machine, by its checks, by shapes, and by a few steps; nothing is written.

    Args:
        run: its folder, if it is to be continued or checked; None for a new run.
        init: weights that its networks start from, as for ``plan_run``.
        free_memory: bytes that workers on the CPU may take.

    Raises:
        InputError: what ``petscale train`` refuses before it starts, and what the measured steps meet.
    """
    load = os.getloadavg()[0]
    plan, workers = _checked(cohort, config, others, run, init)
    config = configs.from_json(plan.job.used)
    free = torch.cuda.mem_get_info()[0] if config.cluster.device == "cuda" else free_memory
    build = _builder(config)
    held = footprint.held(build, config.engine, workers)
    shapes = footprint.step_peak(build, config.engine, config.feed.cases_per_step // workers)
    need = None if shapes is None else Need(held, max(0, shapes - held.gradients), 0, 0, is_measured=False)
    each = _each(config, free, workers)
    measured = None
    if need is None or need.total <= each:  # else a step would only show it again
        measured = measure(plan, workers=workers)
        need = None  # what shapes told was too little where no step could be made
    if measured is not None:
        memory = measured.memory
        activations = max(0, memory.steps - memory.built - held.gradients - held.optimizer)
        process = max(0, memory.steps - activations - held.total)
        need = Need(held, activations, process, memory.most - memory.steps, is_measured=True)
    made = 0
    if run is not None:
        saved, _ = checkpoint.newest(plan.run / CHECKPOINTS)
        made = saved.step if saved else 0
    spec = _largest_spec(build)
    return Forecast(
        config=config,
        workers=workers,
        num_steps=plan.num_steps,
        made=made,
        held=held,
        need=need,
        free=free,
        load=load,
        measured=measured,
        patch=_largest_patch(config, spec, _bounds(plan), need, each),
        cases_per_step=_largest_cases(config, workers, need, each),
    )


def profile(
    cohort: Path, config: RunConfig, *, steps: int, others: Sequence[Path] = (), trace: Path | None = None
) -> Measured:
    """Measure where the time of a run's steps goes; nothing is written but the trace.

    Args:
        steps: that are measured of each phase, 1 or more.
        trace: where to write what ``torch.profiler`` saw.

    Raises:
        InputError: CFG_RANGE; CFG_OUTPUT where the trace has no folder; what ``petscale train`` refuses before it
            starts; CFG_RESOURCES where memory is short.
    """
    if steps < 1:
        raise InputError("CFG_RANGE", where="--steps", found=str(steps), remedy="measure 1 step at least")
    if trace is not None and not trace.absolute().parent.is_dir():
        found = f"no folder {trace.absolute().parent.name}"
        raise InputError("CFG_OUTPUT", where="--trace", found=found, remedy="make it first, or name another one")
    plan, workers = _checked(cohort, config, others, None)
    measured = measure(plan, workers=workers, steps=steps, trace=trace)
    if measured is None:
        raise InputError(
            "CFG_RESOURCES",
            where="recipe.patch",
            found="the measured steps did not fit into this machine's memory",
            remedy="choose a smaller patch or fewer patches per step; petscale plan says what would fit",
        )
    return measured


def _checked(
    cohort: Path, config: RunConfig, others: Sequence[Path], run: Path | None, init: Path | None = None
) -> tuple[Plan, int]:
    """Check a run as ``petscale train`` does, and say how many workers this machine gives it.

    Raises:
        InputError: whatever ``petscale train`` refuses before it starts.
    """
    with tempfile.TemporaryDirectory(prefix="petscale-planned-") as folder:
        plan = plan_run(cohort, run or Path(folder) / "run", config, others=others, init=init)
    for note in plan.notes:
        told.print(f"note: {note}", markup=False, soft_wrap=True)
    require_resources({"CPU": machine_cpus(), "GPU": torch.cuda.device_count()}, config)
    each = config.cluster.cpus_per_worker
    return plan, next(count for count in config.worker_counts if count * each <= machine_cpus())


def _each(config: RunConfig, free: int, workers: int) -> int:
    return free if config.cluster.device == "cuda" else max(0, free - RAY) // workers


def _builder(config: RunConfig) -> Callable[[EngineFactory], Recipe]:
    spec = RECIPES[config.recipe]
    return lambda make: spec.build(config.model, make_engine=make, patches_per_step=config.patches_per_step)


# ---- the largest that fits, by proportion ---------------------------------------------------------------------------


def _largest_spec(build: Callable[[EngineFactory], Recipe]) -> BatchSpec:
    """What the phase with the largest patches reads."""
    with torch.device("meta"):
        recipe = build(plain_engine)
    specs = [recipe.batch_spec(start) for start in recipe.phase_starts.values()]
    return max(specs, key=lambda spec: spec.patches_per_case * _voxels(spec.patch, spec.halo))


def _voxels(patch: Sequence[int], halo: Sequence[int]) -> int:
    return math.prod(edge + 2 * more for edge, more in zip(patch, halo, strict=True))


def _bounds(plan: Plan) -> tuple[int, ...]:
    """The edges that fit into every case of the run."""
    cohort = open_cohorts([Path(plan.job.cohort), *map(Path, plan.job.others)])
    shapes = [cohort.case(name).sampling_maps.shape for name in plan.job.roles.everyone]
    return tuple(map(min, zip(*shapes, strict=True)))


def patches_like(patch: Sequence[int], bounds: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Patches of the same proportions that lie within bounds, the smallest first; an edge of 1 stays.

    >>> list(patches_like((1, 8, 8), (9, 3, 9)))
    [(1, 1, 1), (1, 2, 2), (1, 3, 3)]
    >>> list(patches_like((8, 16, 16), (4, 9, 9)))
    [(1, 2, 2), (2, 4, 4), (3, 6, 6), (4, 8, 8)]
    """
    common = math.gcd(*(edge for edge in patch if edge > 1))
    times = 1
    while True:
        found = tuple(1 if edge == 1 else edge // common * times for edge in patch)
        if common == 0 or any(edge > bound for edge, bound in zip(found, bounds, strict=True)):
            return
        yield found
        times += 1


def largest(candidates: Sequence[Candidate], fits: Callable[[Candidate], bool]) -> Candidate | None:
    """Return the last of the candidates that fits, by bisection; none fits behind one that does not.

    >>> largest(range(1, 100), lambda edge: edge**3 < 1000), largest([4, 5], lambda edge: edge < 4)
    (9, None)
    """
    low, high = 0, len(candidates)  # those before ``low`` fit, those from ``high`` on do not
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(candidates[middle]) else (low, middle)
    return candidates[low - 1] if low else None


def _largest_patch(
    config: RunConfig, spec: BatchSpec, bounds: Sequence[int], need: Need | None, free: int
) -> tuple[int, ...] | None:
    """The largest patch of the same proportions that the system takes, every case holds, and memory would."""
    patch = getattr(config.model, "patch", None)
    if need is None or patch is None or tuple(patch) != spec.patch:
        return None
    now = _voxels(patch, spec.halo)

    def fits(candidate: tuple[int, ...]) -> bool:
        return _with_activations(need, _voxels(candidate, spec.halo) / now) <= (1 - RESERVE) * free

    return largest([one for one in patches_like(patch, bounds) if _takes(config, one)], fits)


def _takes(config: RunConfig, patch: tuple[int, ...]) -> bool:
    """Whether the system's configuration allows a patch."""
    with suppress(InputError):
        replace(config.model, patch=patch)
        return True
    return False


def _largest_cases(config: RunConfig, workers: int, need: Need | None, free: int) -> int | None:
    if need is None:
        return None

    def fits(cases: int) -> bool:
        return _with_activations(need, cases / config.feed.cases_per_step) <= (1 - RESERVE) * free

    return largest(range(workers, MOST_CASES + 1, workers), fits)


def _with_activations(need: Need, times: float) -> float:
    """Bytes of a worker whose steps see so many times the voxels."""
    return need.total + (times - 1) * need.activations


# ---- on the screen --------------------------------------------------------------------------------------------------


def show(found: Forecast, screen: Console, *, limit_s: float | None = None) -> None:
    """Print a forecast.

    Args:
        limit_s: the time limit that the run would be given.
    """

    def say(line: str) -> None:
        screen.print(line, markup=False, soft_wrap=True)

    config = found.config
    where = "on the GPU" if config.cluster.device == "cuda" else "on the CPU"
    plural = "" if found.workers == 1 else "s"
    say(
        f"{config.recipe}: {found.num_steps:,} steps of {config.patches_per_step} patches, "
        f"{found.workers} worker{plural} {where}"
    )
    screen.print()
    _print(screen, _memory(found))
    place = "the GPU has" if config.cluster.device == "cuda" else "this machine has"
    free = f"{place} {_size(found.free)} free"
    if found.need is None:
        say(f"memory does not suffice: no step could be made; {free}")
    else:
        times = "" if found.workers == 1 else f" x {found.workers}"
        more = "" if config.cluster.device == "cuda" else f"{times}, {_size(RAY)} for Ray"
        verdict = "suffices" if found.fits else "does not suffice"
        say(f"memory {verdict}: {_size(found.need.total)}{more}; {free}")
    screen.print()
    if found.measured is None:
        say("time: not measured, for no step was made")
    else:
        _print(screen, _times(found.measured))
        left_s = found.left_s or 0.0
        rest = f" for the {found.num_steps - found.made:,} steps that are left" if found.made else ""
        if found.made >= found.num_steps:
            say("to the end: nothing, this run has made all of its steps")
        else:
            say(f"to the end: about {spoken(left_s)} ({left_s / 3600:.2f} h){rest}, without the start of the workers")
        if found.load > machine_cpus() / 2:
            say(
                f"look at: {found.load:.1f} other processes want the {machine_cpus()} cores of this machine now; "
                "without them steps take less time"
            )
        if limit_s is not None and left_s:
            starts = max(1, math.ceil(left_s / limit_s))
            say(f"with --time-limit: {starts} start{'' if starts == 1 else 's'} of the same command")
    if found.patch is not None:
        say(f"largest recipe.patch that would fit (estimate): {','.join(map(str, found.patch))}")
    if found.cases_per_step is not None:
        say(f"largest feed.cases_per_step that would fit (estimate): {found.cases_per_step}")


def _print(screen: Console, table: Table) -> None:
    screen.print(table, markup=False)
    screen.print()


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in others:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _size(count: int) -> str:
    unit, name = (GIB, "GiB") if count >= GIB else (MIB, "MiB") if count >= MIB else (KIB, "KiB")
    return f"{count / unit:.1f} {name}"


def _memory(found: Forecast) -> Table:
    table = _table("memory of a worker", "", "")
    table.add_row("weights", _size(found.held.weights), "")
    table.add_row("gradients", _size(found.held.gradients), "")
    table.add_row("optimizer state", _size(found.held.optimizer), "")
    if (need := found.need) is not None:
        how = "measured" if need.is_measured else "estimate"
        table.add_row("activations", _size(need.activations), how)
        if need.is_measured:
            table.add_row("process and libraries", _size(need.process), how)
            table.add_row("checkpoint, picture, validation", _size(need.between), how)
        table.add_row("together", _size(need.total), "")
    return table


def _times(measured: Measured) -> Table:
    table = _table("time", "number", "ms each", "together")
    for phase in measured.phases:
        whole = spoken(phase.steps * phase.step_s)
        table.add_row(f"steps: {phase.name}", f"{phase.steps:,}", f"{1000 * phase.step_s:.1f}", whole)
    for one in measured.beside:
        whole = spoken(one.number * one.seconds)
        table.add_row(f"{one.name}s", f"{one.number:,}", f"{1000 * one.seconds:.1f}", whole)
    return table


def shares(measured: Measured) -> dict[str, dict[str, float]]:
    """Return phase -> part -> seconds of a step, in the order of a table; the parts of a phase sum to its steps' mean.

    What is done between steps is divided among them.
    """
    steps = sum(phase.steps for phase in measured.phases)
    beside = {one.name: one.number * one.seconds / steps for one in measured.beside}
    return {
        phase.name: {part: phase.parts_s[part] for part in PARTS} | {**beside, "other": phase.other_s}
        for phase in measured.phases
    }


def show_profile(measured: Measured, screen: Console) -> None:
    """Print where the time of steps goes, a table per phase."""
    found = shares(measured)
    for phase in measured.phases:
        parts = found[phase.name]
        whole = sum(parts.values())
        table = _table(f"{phase.name}: a step", "ms", "share")
        for part, seconds in parts.items():
            table.add_row(part, f"{1000 * seconds:.2f}", f"{seconds / whole:.1%}")
        table.add_row("together", f"{1000 * whole:.2f}", f"mean of {phase.measured}")
        _print(screen, table)
        _print(screen, _operations(measured.operations.get(phase.name, {})))


def _operations(parts: Mapping[str, float]) -> Table:
    table = _table("operation", "share of the step")
    for name in sorted(parts, key=lambda name: -parts[name]):
        table.add_row(name, f"{parts[name]:.1%}")
    return table
