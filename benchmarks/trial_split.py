"""What a short trial's time is made of once its process is up, and what training several networks as one would save.

Prints two tables: the parts of a trial of `petscale tune` in an actor that has made trials before, by processor time;
and gradients of eight networks of one shape, one after the other and as one (`torch.func`), with their difference.

    OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu python benchmarks/trial_split.py [--steps 200]
"""

import argparse
import copy
import cProfile
import pstats
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from petscale import config as configs
from petscale.data.phantom import phantom_plans
from petscale.tuning.trial import TrialJob, train_and_score
from storage.ingest import ingest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from trainers.engine import plain_engine
from trainers.recipe import Engine, OptimizerFactory
from trainers.systems import RECIPES

PARTS = {  # function, the file it is in -> what it is in a table
    ("plan_run", "planning.py"): "checks before the training",
    ("prepare", "worker.py"): "networks, engines and feed built",
    ("fit", "loop.py"): "training: batches, steps, checkpoint",
    ("learn", "likeness.py"): "training scans measured, for warnings",
    ("environment", "environment.py"): "versions and hardware recorded",
    ("validation_scores", "trial.py"): "validation patients restored and scored",
}
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any], tuple[int, ...]]] = {
    "red_cnn, 8 channels, 8 patches of 32^2": ("red_cnn", {"channels": 8, "patch": (1, 32, 32)}, (8, 1, 1, 32, 32)),
    "red_cnn, 2 channels, 2 patches of 24^2": ("red_cnn", {"channels": 2, "patch": (1, 24, 24)}, (2, 1, 1, 24, 24)),
    "unet, 4 and 4 channels, 2 patches of 24^3": (
        "unet",
        {"channels": (4, 4), "patch": (16, 16, 16), "margin": (4, 4, 4)},
        (2, 1, 24, 24, 24),
    ),
}
TOGETHER, ROUNDS = 8, 7


def split(folder: Path, steps: int) -> dict[str, float]:
    """Seconds of processor time of the parts of a trial, the third of its process."""
    body = PhantomConfig(shape=(48, 64, 64), spacing_mm=(18.0, 8.0, 8.0))
    ingest(folder / "cohort", phantom_plans(5, body, LowDoseConfig(iterations=1), [20.0]), strict=True)
    fields = {
        "recipe.channels": 8,
        "recipe.patch": (1, 32, 32),
        "recipe.samples": 8 * steps,
        "feed.cases_per_step": 2,
        "cluster.workers": 1,
        "loop.picture_every": 0,
        "split.validation_fraction": 0.2,
    }
    base = configs.with_fields(configs.from_json({"recipe": {"name": "red_cnn", "defaults": "paper"}}), fields)
    job = TrialJob(
        cohort=str(folder / "cohort"),
        folder="",
        base=configs.to_json(base),
        settings={},
        objectives=("psnr_body",),
        rungs=1,
        factor=3,
    )
    profile = cProfile.Profile(time.process_time)
    for number in range(3):
        settings = {"recipe.lr": 1e-4 * (number + 1)}
        trial = TrialJob(**{**vars(job), "folder": str(folder / str(number)), "settings": settings})
        begin = time.process_time()
        if number == 2:
            profile.enable()
        train_and_score(trial, 0)
        profile.disable()
        whole = time.process_time() - begin
    found = dict.fromkeys(PARTS.values(), 0.0)
    for (file, _, name), told in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if part := PARTS.get((name, Path(file).name)):
            found[part] += told[3]
    return found | {"everything else": whole - sum(found.values()), "together": whole}


def gain(recipe: str, fields: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Milliseconds of one network's gradients alone, how many times faster eight are as one, and their difference."""
    nets: list[nn.Module] = []

    def make(net: nn.Module, optimizer: OptimizerFactory) -> Engine:
        nets.append(net)
        return plain_engine(net, optimizer)

    torch.manual_seed(0)
    for _ in range(TOGETHER):
        RECIPES[recipe].build(RECIPES[recipe].Config(**fields), make_engine=make, patches_per_step=shape[0])
    x = torch.rand(shape)
    target = torch.rand_like(nets[0](x))
    weights, buffers = stack_module_state(nets)
    frame = copy.deepcopy(nets[0]).to("meta")

    def loss(own: dict[str, Tensor], others: dict[str, Tensor]) -> Any:
        return (functional_call(frame, (own, others), (x,)) - target).square().mean()

    def alone() -> list[tuple[Tensor, ...]]:
        return [torch.autograd.grad((net(x) - target).square().mean(), list(net.parameters())) for net in nets]

    together = partial(vmap(grad(loss)), weights, buffers)
    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        single = alone()
        middle = time.process_time()
        fused = together()
        times.append((middle - begin, time.process_time() - middle))
    names = [name for name, _ in nets[0].named_parameters()]
    difference = max(
        float((fused[name][number] - one).detach().abs().max())
        for number, grads in enumerate(single)
        for name, one in zip(names, grads, strict=True)
    )
    one, eight = (sorted(spent)[ROUNDS // 2] for spent in zip(*times, strict=True))
    return 1000 * one / TOGETHER, one / eight, difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        parts = split(Path(folder), options.steps)
    print("| part of a trial | s of a core | share |\n|---|---|---|")
    for part, spent in parts.items():
        print(f"| {part} | {spent:.2f} | {spent / parts['together']:.0%} |")
    print("\n| network | ms of a core alone | eight as one: times faster | largest difference |\n|---|---|---|---|")
    for name, told in NETWORKS.items():
        alone, times, difference = gain(*told)
        print(f"| {name} | {alone:.1f} | {times:.2f} | {difference:.1e} |")


if __name__ == "__main__":
    main()
