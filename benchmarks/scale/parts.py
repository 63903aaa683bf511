"""What one worker's parts deliver on this machine: patches, batches, checkpoints, engines, opening and writing cases.

By processor time, all threads of the process together, wherever it says ``core``: the machine is shared.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from petscale import config as configs
from petscale.data.phantom import phantom_plans
from storage import integrity, reader, shards
from storage.ingest import CasePlan, ingest, subject_hash
from storage.lowdose import LowDoseConfig
from storage.patches import draw
from storage.phantom import PhantomConfig
from storage.reader import Cohort, open_cohort
from storage.source import ArraySource
from trainers import checkpoint
from trainers.engine import EngineConfig, deepspeed_engines, plain_engine
from trainers.feed import Feed
from trainers.feed_config import FeedConfig
from trainers.recipe import BatchSpec, Engine, OptimizerFactory, Recipe
from trainers.systems import RECIPES

SOURCE, TARGET, EDGE = "low_drf20", "full", 64
NEED = BatchSpec(patch=(EDGE, EDGE, EDGE), halo=(0, 0, 0), patches_per_case=2, sampler={"body": 1.0})


def make_cohort(folder: Path, cases: int, shape: tuple[int, int, int]) -> Cohort:
    """Phantoms at full dose and a twentieth of it."""
    body = PhantomConfig(shape=shape, spacing_mm=(900 / shape[0], 560 / shape[1], 560 / shape[2]))
    ingest(folder, phantom_plans(cases, body, LowDoseConfig(iterations=1), [20.0]), strict=True)
    return open_cohort(folder)


def parts(cohort: Cohort, scratch: Path) -> dict[str, Any]:
    """Measure all parts.

    Args:
        cohort: of ``make_cohort``.
        scratch: an empty folder.
    """
    found: dict[str, Any] = {}
    found["patches"] = _patches(cohort, 150)
    found["pairs"] = _pairs(cohort, rounds=4, batches=12)
    found["open"] = _opening(cohort)
    found["store"] = _storing(cohort, scratch / "stored")
    found["checkpoint"] = _checkpoint(scratch / "checkpoints")
    found["engine"] = _engine(cohort)
    return found


def _patches(cohort: Cohort, number: int) -> dict[str, float]:
    """One thread reads patches of one image: what it gives, and what it asks the storage for."""
    image, maps = cohort.case(cohort.cases[0]).image(TARGET), cohort.case(cohort.cases[0]).sampling_maps
    rng = np.random.default_rng(0)
    boxes = [draw(maps, NEED.patch, NEED.sampler, rng) for _ in range(number)]
    for box in boxes[: number // 3]:
        image.patch(box)
    begin = time.process_time()
    for box in boxes:
        image.patch(box)
    spent = time.process_time() - begin
    read, calls = _asked()
    for box in boxes:  # of a cohort so large that none of its files is open: each is opened and each chunk asked for
        shards._opened.cache_clear()
        image.patch(box)
    read_after, calls_after = _asked()
    return {
        "per_core_s": number / spent,
        "bytes": (read_after - read) / number,
        "requests": (calls_after - calls) / number,
        "voxel_bytes": EDGE**3 * 4,
    }


def _asked() -> tuple[int, int]:
    """Bytes that this process has read from files, of the page cache too, and the calls that asked for them."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["rchar"]), int(told["syscr"])


def _pairs(cohort: Cohort, *, rounds: int, batches: int) -> dict[str, float]:
    """Pairs of one thread per second of processor time, flipped at random; what a second thread gives more."""
    roles, device = {"paired": cohort.cases}, torch.device("cpu")

    def config(ahead: int) -> FeedConfig:
        return FeedConfig(source=(SOURCE,), target=TARGET, cases_per_step=2, augment="flips", read_ahead=ahead)

    feeds = [Feed(cohort, roles, config(ahead), lambda step: NEED, rank=0, world=1, device=device) for ahead in (0, 1)]
    processor, clock = 0.0, [0.0, 0.0]
    for number in range(rounds + 1):
        steps = range(number * batches, (number + 1) * batches)
        for ahead, feed in enumerate(feeds):
            begin, used = time.perf_counter(), time.process_time()
            for step in steps:
                feed.batch(step, steps.stop)
            if number:  # not the first, which opens arrays
                clock[ahead] += time.perf_counter() - begin
                processor += 0.0 if ahead else time.process_time() - used
    for feed in feeds:
        feed.close()
    pairs = rounds * batches * 2 * NEED.patches_per_case
    return {"per_core_s": pairs / processor, "two_threads": clock[0] / clock[1]}


def _opening(cohort: Cohort) -> dict[str, float]:
    """What a worker takes of a core to open a case before its first patch, and how many files it looks at."""
    times = []
    for _ in range(5):
        reader._case.cache_clear()
        for name in cohort.cases:
            begin = time.process_time()
            case = cohort.case(name)
            maps = case.sampling_maps
            assert maps.shape == case.image(TARGET).grid.shape == case.image(SOURCE).grid.shape
            times.append(time.process_time() - begin)
    files = len(integrity.manifest(cohort.folder / "cases" / cohort.cases[0])["files"])
    held = (maps.body.nbytes + maps.uptake.nbytes) / float(np.prod(maps.shape))  # of a cohort without labels
    return {"s": statistics.median(times), "files": files, "maps_bytes": held}


def _storing(cohort: Cohort, folder: Path) -> dict[str, float]:
    """One image committed to a store, digests and fsync included; bytes on disk beside those of its voxels."""
    image = cohort.case(cohort.cases[0]).image(TARGET)
    voxels = image.read(0, image.grid.shape[0])
    plan = CasePlan({TARGET: ArraySource(voxels, image.grid, image.units)}, subject_hash("one", b"nobody"), "0")
    begin = time.process_time()
    ingest(folder, {"one": lambda scratch: plan}, strict=True)
    spent = time.process_time() - begin
    size = sum(file.stat().st_size for file in (image.folder / "0").rglob("*") if file.is_file())
    return {"bytes_per_core_s": voxels.nbytes / spent, "stored": size / voxels.nbytes}


def _checkpoint(folder: Path) -> dict[str, float]:
    """A checkpoint of SGSGAN at its paper's size, moments of the optimizers included."""
    config = configs.from_json({"recipe": "sgsgan"})
    made: list[Engine] = []

    def make(net: nn.Module, optimizer: OptimizerFactory) -> Engine:
        made.append(plain_engine(net, optimizer))
        return made[-1]

    recipe: Recipe = RECIPES["sgsgan"].build(config.model, make_engine=make, patches_per_step=config.patches_per_step)
    for engine in made:
        for weight in engine.module.parameters():
            weight.grad = torch.zeros_like(weight)
        engine.step()
    copies, saves, size = [], [], 0
    for step in range(1, 4):
        state = recipe.state()
        begin = time.process_time()
        flat = checkpoint.flatten(state)
        copies.append(time.process_time() - begin)
        size = sum(tensor.nbytes for tensor in flat.values())
        begin = time.perf_counter()
        checkpoint.save(folder, step, state, {}, keep=1)
        saves.append(time.perf_counter() - begin)
    weights = sum(weight.numel() for engine in made for weight in engine.module.parameters())
    return {
        "weights": weights,
        "bytes": size,
        "copy_s": statistics.median(copies),
        "save_s": statistics.median(saves),
    }


def _engine(cohort: Cohort) -> dict[str, Any]:
    """A small network's step with DeepSpeed's engine and without, taking turns: what the engine adds to any step.

    Steps of one kind are spread about their mean: every one of the former is told, relative to it.
    """
    fields = {"recipe.channels": (4, 8), "recipe.patch": (16, 16, 16), "recipe.patches_per_case": 1}
    config = configs.with_fields(configs.from_json({"recipe": "unet"}), fields)
    device = torch.device("cpu")
    makers = {"plain": plain_engine, "deepspeed": deepspeed_engines(EngineConfig(), device=device)}
    build: Callable[..., Recipe] = RECIPES["unet"].build
    recipes = {name: build(config.model, make_engine=make, patches_per_step=2) for name, make in makers.items()}
    spec = next(iter(recipes.values())).batch_spec
    told = FeedConfig(source=(SOURCE,), target=TARGET, cases_per_step=2)
    feed = Feed(cohort, {"paired": cohort.cases}, told, spec, rank=0, world=1, device=device)
    times: dict[str, list[float]] = {name: [] for name in makers}
    for step in range(60):
        batch = feed.batch(step, 60)
        for name in sorted(makers, reverse=bool(step % 2)):
            begin = time.process_time()
            recipes[name].step(batch, step)
            times[name].append(time.process_time() - begin)
    feed.close()
    steady = {name: np.array(spent[5:]) for name, spent in times.items()}
    plain, deepspeed = (float(np.median(steady[name])) for name in ("plain", "deepspeed"))
    spread = steady["deepspeed"] / steady["deepspeed"].mean()
    return {"plain_s": plain, "added_s": deepspeed - plain, "spread": spread.round(4).tolist()}


def cold_read(folder: Path, size: int) -> float:
    """Bytes a second of a file that is not in the page cache, where the file system can forget it."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(np.random.default_rng(0).bytes(size))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        at = 0
        while piece := os.pread(file.fileno(), 2**20, at):
            at += len(piece)
        return size / (time.perf_counter() - begin)
