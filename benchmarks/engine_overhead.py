"""What petscale's training step costs over a bare PyTorch loop of the same networks, one worker, in one process.

Four ways to make the same step take turns on the same batches, so that whatever else the machine does falls on all of
them alike: (1) bare PyTorch, written out below; (2) the recipe on plain engines; (3) the recipe on DeepSpeed engines;
(4) what `petscale train` does: (3) with the feed, the check for finite losses, the agreement of the ranks and the log.
The ratio of (4) to (1) is the figure; the differences between neighbours say where the rest goes.

    python benchmarks/engine_overhead.py [--patch 32] [--steps 30] [--critic 16] [--threads 1] [--device cpu]
"""

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from petscale.data.phantom import phantom_plans
from storage.ingest import ingest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.reader import open_cohort
from trainers.engine import EngineConfig, deepspeed_engines, plain_engine
from trainers.feed import Feed
from trainers.feed_config import FeedConfig
from trainers.loop import _agree, _finite
from trainers.recipe import Batch
from trainers.systems import sgsgan
from trainers.systems.sgsgan.networks import Critic


def bare_loop(config: sgsgan.Config, device: torch.device) -> Callable[[Batch, int], None]:
    """Phase 1 of SGSGAN as one would write it in a notebook."""
    G, D = sgsgan.generator(config).to(device), Critic(config.critic_channels).to(device)
    G_optimizer = torch.optim.RMSprop(G.parameters(), lr=config.lr)
    D_optimizer = torch.optim.RMSprop(D.parameters(), lr=config.lr)

    def step(batch: Batch, number: int) -> None:
        torch.manual_seed(number)
        fake = G(batch.source, batch.overview, cases=batch.cases)
        real_score, fake_score = D(torch.cat([batch.target, fake.detach()])).chunk(2)
        (fake_score.mean() - real_score.mean()).backward()
        D_optimizer.step()
        D_optimizer.zero_grad()
        with torch.no_grad():
            for weight in D.parameters():
                weight.clamp_(-config.clip, config.clip)
        D.requires_grad_(False)
        loss = config.lambda_content * F.l1_loss(fake, batch.target) - D(fake).mean()
        loss.backward()
        D.requires_grad_(True)
        G_optimizer.step()
        G_optimizer.zero_grad()
        float(loss.detach())  # a loop that watches its loss waits for the device as ours does

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--patches", type=int, default=4)
    parser.add_argument("--critic", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--zero", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    os.environ |= {"DS_ACCELERATOR": options.device, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    dist.init_process_group("nccl" if options.device == "cuda" else "gloo", rank=0, world_size=1)

    edge = options.patch
    config = sgsgan.Config(
        patch=(edge, edge, edge),
        patches_per_case=options.patches,
        critic_channels=options.critic,
        rois=(),
        phase_samples=(10**9, 0, 0, 0),
    )
    with tempfile.TemporaryDirectory() as folder:
        shape = (max(96, edge), max(80, edge), max(80, edge))
        body = PhantomConfig(shape=shape, spacing_mm=(9.0, 5.5, 5.5))
        ingest(Path(folder), phantom_plans(2, body, LowDoseConfig(iterations=1), [20.0]), strict=True)
        cohort = open_cohort(Path(folder))

        makers = {
            "recipe, plain engines": plain_engine,
            "recipe, DeepSpeed engines": deepspeed_engines(EngineConfig(zero_stage=options.zero), device=device),
            "petscale train": deepspeed_engines(EngineConfig(zero_stage=options.zero), device=device),
        }
        recipes = {}
        for name, make in makers.items():
            torch.manual_seed(0)
            recipes[name] = sgsgan.build(config, make_engine=make, patches_per_step=options.patches)
            recipes[name].G.module.to(device)
            recipes[name].D.module.to(device)
        torch.manual_seed(0)
        bare = bare_loop(config, device)
        some = next(iter(recipes.values()))
        feeds = [
            Feed(
                cohort,
                {"paired": cohort.cases},
                FeedConfig(cases_per_step=1),
                some.batch_spec,
                rank=0,
                world=1,
                device=device,
            )
            for _ in range(2)
        ]

        def whole(number: int) -> None:
            batch = feeds[1].batch(number, 10**9)
            _agree(None, 1)
            torch.manual_seed(number)
            metrics = recipes["petscale train"].step(batch, number)
            assert _finite(metrics, number, batch.places) is None

        spent: dict[str, list[float]] = {"bare PyTorch": [], **{name: [] for name in recipes}}
        for number in range(options.steps + 3):
            batch = feeds[0].batch(number, 10**9)
            ways: dict[str, Callable[[], object]] = {"bare PyTorch": lambda b=batch, n=number: bare(b, n)}
            for name in list(recipes)[:2]:
                ways[name] = lambda b=batch, n=number, r=recipes[name]: (torch.manual_seed(n), r.step(b, n))
            ways["petscale train"] = lambda n=number: whole(n)
            order = list(ways)
            for name in order[number % 4 :] + order[: number % 4]:
                begin = time.perf_counter()
                ways[name]()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number >= 3:  # the first steps allocate
                    spent[name].append(time.perf_counter() - begin)
        for feed in feeds:
            feed.close()

    reference = statistics.median(spent["bare PyTorch"])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(f"commit {commit.stdout.strip()}, {platform.machine()}, torch {torch.__version__}, {options}")
    print(f"{'step':28} {'median ms':>10} {'min ms':>8} {'max ms':>8} {'ratio':>6}   paired median ratio")
    for name, times in spent.items():
        paired = statistics.median(t / b for t, b in zip(times, spent["bare PyTorch"], strict=True))
        low, middle, high = min(times), statistics.median(times), max(times)
        line = f"{name:28} {1e3 * middle:10.1f} {1e3 * low:8.1f} {1e3 * high:8.1f} {middle / reference:6.3f}"
        print(f"{line}   {paired:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
