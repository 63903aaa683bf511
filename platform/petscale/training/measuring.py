"""A few steps of a run, measured in processes of their own: their time part by part, and the memory that they take.

The processes are set up as a run's workers are, without Ray; nothing of them stays but the figures.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from petscale import config as configs
from petscale.cluster.session import worker_environment
from petscale.training.job import WorkerJob
from petscale.training.pictures import picture
from petscale.training.planning import Plan
from petscale.training.worker import Training, prepare
from storage import integrity
from storage.errors import InputError, printable
from storage.joined import open_cohorts
from trainers import checkpoint
from trainers.loop import VALIDATION
from trainers.profiling import PhaseTime, Stopwatch, all_reduce_timed, phase_lengths, time_phase, timed
from trainers.recipe import Validated
from trainers.validation import Best

JOB, TRACE = "job.json", "trace.json"
ENOUGH_S, MANY = 8.0, 200  # of a phase, where nobody says how many steps are measured
CONVOLUTION = tuple(
    f"aten::{name}"
    for name in (
        "conv",
        "_convolution",
        "mkldnn_convolution",
        "cudnn_convolution",
        "slow_conv",
        "_slow_conv",
        "thnn_conv",
    )
)
CONVOLUTIONS = "convolutions"  # all of them together
LARGEST = 5  # operations that are told by name


@dataclass(frozen=True)
class Beside:
    """What a run does beside its steps.

    Args:
        name: checkpoint, validation or picture.
        number: how many there are in the whole run.
        seconds: that one takes.
    """

    name: str
    number: int
    seconds: float


@dataclass(frozen=True)
class Memory:
    """Bytes of a worker: of its process on a CPU, of what it has on its GPU.

    Args:
        built: once the networks are built, before the first step.
        steps: the most during the measured steps.
        most: the most at all, checkpoint, validation and picture included.
    """

    built: int
    steps: int
    most: int


@dataclass(frozen=True)
class Measured:
    """What measured steps told.

    Args:
        phases: in order.
        beside: what is done between steps.
        memory: of the worker that took most.
        operations: phase -> operation -> its part of the phase's steps, the largest few; only where asked for.
            ``convolutions`` is all of them together.
    """

    phases: tuple[PhaseTime, ...]
    beside: tuple[Beside, ...]
    memory: Memory
    operations: Mapping[str, Mapping[str, float]]

    @property
    def total_s(self) -> float:
        """Time of the whole run on as many workers, without its start."""
        return self.left_s(0)

    def left_s(self, made: int) -> float:
        """Return the time of what follows the first ``made`` steps."""
        whole = sum(phase.steps for phase in self.phases)
        between = sum(one.number * one.seconds for one in self.beside) * (1 - made / whole)
        spent, ahead = 0.0, made
        for phase in self.phases:
            spent += max(0, phase.steps - ahead) * phase.step_s
            ahead = max(0, ahead - phase.steps)
        return between + spent


def measure(plan: Plan, *, workers: int, steps: int | None = None, trace: Path | None = None) -> Measured | None:
    """Make a few steps of every phase of a run on this machine; None where they did not fit in its memory.

    Args:
        plan: a run that passed its checks; nothing is written into its folder.
        workers: processes, each on ``cpus_per_worker`` cores or a GPU of its own.
        steps: how many of each phase to measure, one before and two after them not counted; None for as many as take
            some seconds, and no parts or operations.
        trace: where to write what ``torch.profiler`` saw of the two.

    Raises:
        InputError: what a worker refuses; TRAIN_FAILED where one ends otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="petscale-measured-") as name:
        folder = Path(name)
        job = replace(plan.job, run=str(folder / "run"), lease=None, cohort_url="")
        integrity.write_json(folder / JOB, {"job": job.to_json(), "world": workers, "steps": steps})
        codes = _run(folder, plan, workers)
        if (folder / "refused.json").is_file():
            told = integrity.read_json(folder / "refused.json", "code", "where", "found", "remedy")
            raise InputError(told["code"], where=told["where"], found=told["found"], remedy=told["remedy"])
        if -signal.SIGKILL in codes or any(_out_of_memory(folder, rank) for rank, code in enumerate(codes) if code):
            return None
        for rank, code in enumerate(codes):
            if code:
                last = (_log(folder, rank).read_text(errors="replace").strip().splitlines() or [f"exit code {code}"])[
                    -1
                ]
                raise InputError(
                    "TRAIN_FAILED",
                    where="the measured steps",
                    found=printable(last[:200]),
                    remedy="check this machine (petscale doctor), and run the same command again",
                )
        if trace is not None:
            integrity.write_bytes(trace, (folder / TRACE).read_bytes())
        return _read(folder, workers)


def _run(folder: Path, plan: Plan, workers: int) -> list[int]:
    """Start the processes and wait for them; returns their exit codes, after the first failure those of killed ones."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    cards = visible.split(",")
    started = []
    try:
        for rank in range(workers):
            environment = os.environ | worker_environment(plan.config)
            environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
            if plan.config.cluster.device == "cuda":
                environment["CUDA_VISIBLE_DEVICES"] = cards[rank]
            with _log(folder, rank).open("wb") as log:
                words = [sys.executable, "-m", "petscale.training.measuring", str(folder), str(rank)]
                started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))  # noqa: S603  (ourselves)
        for process in started:
            if process.wait():
                break  # the others wait for it in vain
        return [process.poll() or 0 for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()


def _log(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.log"


def _out_of_memory(folder: Path, rank: int) -> bool:
    told = _log(folder, rank).read_text(errors="replace")
    return any(words in told for words in ("OutOfMemoryError", "can't allocate memory", "MemoryError"))


def _read(folder: Path, workers: int) -> Measured:
    told = [integrity.parse_json((folder / f"{rank}.json").read_text()) for rank in range(workers)]
    memory = [Memory(**one["memory"]) for one in told]
    return Measured(
        phases=tuple(PhaseTime(**one) for one in told[0]["phases"]),
        beside=tuple(Beside(**one) for one in told[0]["beside"]),
        memory=max(memory, key=lambda one: one.most),
        operations=told[0]["operations"],
    )


# ---- in a process of its own ----------------------------------------------------------------------------------------


def main(folder: Path, rank: int) -> None:
    """Measure as one rank; the figures are written beside the job."""
    told = integrity.read_json(folder / JOB, "job", "world", "steps")
    job, world = WorkerJob.from_json(told["job"]), int(told["world"])
    config = configs.from_json(job.used)
    device = torch.device(config.cluster.device)
    torch.set_num_threads(config.cluster.cpus_per_worker)
    torch.manual_seed(config.loop.seed)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_RANK": "0"}  # or DeepSpeed looks for MPI
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=rank, world_size=world)
    try:
        found = _measured(job, folder, rank=rank, world=world, steps=told["steps"], device=device)
        integrity.write_json(folder / f"{rank}.json", found)
    except InputError as error:
        facts = {"code": error.code, "where": error.where, "found": error.found, "remedy": error.remedy}
        integrity.write_json(folder / "refused.json", facts)
        raise SystemExit(2) from None
    finally:
        dist.destroy_process_group()


def _measured(
    job: WorkerJob, folder: Path, *, rank: int, world: int, steps: int | None, device: torch.device
) -> dict[str, Any]:
    watch = _watch_of(device)
    around = (lambda make: timed(make, watch)) if steps else (lambda make: make)
    cohort = open_cohorts([Path(job.cohort), *map(Path, job.others)])
    training = prepare(job, cohort, rank=rank, world=world, device=device, around=around)
    enough = (lambda count, _: count >= steps) if steps else _some_seconds
    seen = _Seen(device, watch) if steps else None
    built = _memory_now(device, most=False)
    phases = []
    with all_reduce_timed(watch):
        for name, those in phase_lengths(training.recipe).items():
            traced = seen.phase(name) if seen else None
            phases.append(
                time_phase(
                    name, those, training.recipe, training.source, training.engines, watch, enough=enough, traced=traced
                )
            )
    after = _memory_now(device, most=True)
    beside = _beside(training, job, folder, rank, watch)
    training.close()
    if seen and rank == 0:
        integrity.write_json(folder / TRACE, seen.trace)
    return {
        "phases": [asdict(phase) for phase in phases],
        "beside": [asdict(one) for one in beside],
        "memory": {"built": built, "steps": after, "most": _memory_now(device, most=True)},
        "operations": seen.operations if seen else {},
    }


def _watch_of(device: torch.device) -> Stopwatch:
    return Stopwatch(settle=torch.cuda.synchronize) if device.type == "cuda" else Stopwatch()


def _some_seconds(count: int, spent_s: float) -> bool:
    """Steps of one kind may cost what others do not: pairs of them, and the same number on every rank."""
    often = count % 2 == 0 and (spent_s >= ENOUGH_S or count >= MANY)
    if dist.get_world_size() == 1:
        return often
    flag = torch.tensor([int(often)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(flag, 0)
    return bool(flag)


def _memory_now(device: torch.device, *, most: bool) -> int:
    """Bytes that this process holds, or the most since it was asked what it holds."""
    if device.type == "cuda":
        if most:
            return torch.cuda.max_memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_reserved()
    if not most:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the most there has been starts anew
    lines = Path("/proc/self/status").read_text().splitlines()
    told = next(line for line in lines if line.startswith("VmHWM:" if most else "VmRSS:"))
    return int(told.split()[1]) * 1024


def _beside(training: Training, job: WorkerJob, folder: Path, rank: int, watch: Stopwatch) -> list[Beside]:
    """Measure what the loop does between steps, once each (collective)."""
    config, recipe = configs.from_json(job.used), training.recipe
    loop = config.loop
    found = []

    def seconds(work: Callable[[], None]) -> float:
        begin = watch.read()
        work()
        return watch.read() - begin

    def saved() -> None:
        best = {VALIDATION: Best().after(0.0, 0, recipe.weights()).state()} if training.gains else {}
        state = recipe.state() | best
        if rank == 0:
            checkpoint.save(folder / "checkpoints", 1, state, {"run": dict(job.identity), "world": 1}, keep=1)

    steps = recipe.num_steps  # checkpoints and validations are made after the last one too
    found.append(Beside("checkpoint", math.ceil(steps / loop.save_every), seconds(saved)))
    if training.gains:
        gains = training.gains

        def validated() -> None:
            recipe.weights()
            with training.engines.averaged():
                gains(recipe.synthesizer())

        found.append(Beside("validation", math.ceil(steps / loop.validate_every), seconds(validated)))
    if training.validation and isinstance(recipe, Validated):
        source, number = training.validation, recipe.validate_batches

        def scored() -> None:
            with training.engines.averaged():
                recipe.validate(source.batch(0, 1))

        found.append(Beside("validation", steps // recipe.validate_every, number * seconds(scored)))
    if loop.picture_every and steps >= loop.picture_every:
        draw = picture(folder / "pictures", training.shown, config.feed, torch.device(config.cluster.device))

        def drawn() -> None:
            with training.engines.averaged():
                draw(0, recipe.synthesizer())

        if rank == 0:
            drawn()  # a run loads what draws once
            found.append(Beside("picture", steps // loop.picture_every, seconds(drawn)))
    return found


class _Seen:
    """What ``torch.profiler`` saw of some steps of every phase."""

    def __init__(self, device: torch.device, watch: Stopwatch) -> None:
        self._device, self._watch = device, watch
        self.trace: dict[str, Any] = {}
        self.operations: dict[str, dict[str, float]] = {}

    def phase(self, name: str) -> Callable[[], Any]:
        """Return the context in which steps of a phase are seen."""
        return lambda: self._see(name)

    @contextmanager
    def _see(self, name: str) -> Iterator[None]:
        from torch.profiler import ProfilerActivity, profile, record_function

        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._device.type == "cuda" else [])
        with profile(activities=kinds) as profiler:
            begin = self._watch.read()
            with record_function(f"phase {name}"):
                yield
            whole = self._watch.read() - begin
        key = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        own = {one.key: getattr(one, key) / 1e6 / whole for one in profiler.key_averages() if one.key[:6] == "aten::"}
        largest = sorted(own, key=lambda one: -own[one])
        convolutions = sum(part for one, part in own.items() if one.startswith(CONVOLUTION))
        others = [one for one in largest if not one.startswith(CONVOLUTION)][:LARGEST]
        self.operations[name] = {CONVOLUTIONS: convolutions, **{one: own[one] for one in others}}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / TRACE
            profiler.export_chrome_trace(str(file))
            seen = json.loads(file.read_bytes())
        events = [*self.trace.get("traceEvents", ()), *seen["traceEvents"]]
        kept = ("schemaVersion", "displayTimeUnit", "baseTimeNanoseconds")  # not the name of this file
        self.trace = {**{one: seen[one] for one in kept if one in seen}, "traceEvents": events}


if __name__ == "__main__":
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory is short, this is what ends
    main(Path(sys.argv[1]), int(sys.argv[2]))
