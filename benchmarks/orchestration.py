"""What Ray costs over torchrun for the same training on the same nodes: start-up, and steps once they run.

Both make the same steps by the same loop, engines and feed, with two gloo workers on the CPU; only who starts the
processes and watches over them differs.  They take turns, so that whatever else the machine does falls on both alike.

    python benchmarks/orchestration.py [--hosts] [--rounds 2] [--steps 40]

Without --hosts: `petscale train` with a private cluster, against `torchrun --standalone`, on this machine.
With --hosts (root; Linux network namespaces, tests/lab): two hosts, `ray up`, `petscale submit train` on the warm
cluster, against one torchrun per host.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/lab"))

PHANTOMS = ["--cases", "4", "--body.shape", "48", "48", "64", "--drf", "4"]
PORT = "29511"


def settings(steps: int, threads: int) -> list[str]:
    return [
        "recipe.patch=32,32,32",
        "recipe.critic_channels=8",
        f"recipe.phase_samples={2 * steps},0,0,0",
        "recipe.patches_per_case=1",
        "loop.log_every=1",
        "loop.picture_every=0",
        "loop.save_every=1000",
        "feed.source=low_drf4",
        f"cluster.cpus_per_worker={threads}",
    ]


def peer(path: Path) -> None:
    """What torchrun starts: the loop of a petscale worker, without Ray around it."""
    import torch.distributed as dist

    from petscale.training import worker

    dist.init_process_group("gloo")
    worker.sending = lambda run, recipe, report: nullcontext(report)  # type: ignore[assignment]
    worker.train_worker(json.loads(path.read_bytes()))
    dist.barrier()
    dist.destroy_process_group()


def measured(start: Callable[[Path], list[subprocess.Popen[bytes]]], run: Path) -> tuple[float, list[float]]:
    """Seconds until the first step is made, and each later step's."""
    begin = time.perf_counter()
    first = 0.0
    processes = start(run)
    while any(process.poll() is None for process in processes):
        if not first and (run / "metrics.jsonl").exists() and '"log"' in (run / "metrics.jsonl").read_text():
            first = time.perf_counter() - begin
        time.sleep(0.05)
    assert not any(process.returncode for process in processes), f"failed: {run.name}"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return first, [record["time_s"] for record in records if record["event"] == "log"][5:]


@contextmanager
def here(folder: Path, steps: int) -> Iterator[dict[str, Callable[[Path], list[subprocess.Popen[bytes]]]]]:
    """Two processes on this machine."""
    petscale = [sys.executable, "-m", "petscale"]
    subprocess.run([*petscale, "phantom", str(folder / "cohort"), *PHANTOMS], check=True)

    def with_ray(run: Path) -> list[subprocess.Popen[bytes]]:
        chosen = ["--workers", "2", "--set", *settings(steps, 1)]
        return [subprocess.Popen([*petscale, "train", str(folder / "cohort"), "--run", str(run), *chosen])]

    def with_torchrun(run: Path) -> list[subprocess.Popen[bytes]]:
        path, environment = planned(folder / "cohort", run, steps, 1)
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return [subprocess.Popen([*words, __file__, "--peer", str(path)], env={**os.environ, **environment})]

    yield {"petscale train": with_ray, "torchrun": with_torchrun}


@contextmanager
def hosts(folder: Path, steps: int) -> Iterator[dict[str, Callable[[Path], list[subprocess.Popen[bytes]]]]]:
    """Two hosts, a worker on each."""
    from hosts import laboratory

    cores = os.cpu_count() or 1
    with laboratory(2) as lab:
        lab.fill_in(str(folder))
        first, _ = (host.address for host in lab.hosts)
        done = lab.launch("sh", "-c", "umask 077; ray get-auth-token --generate; exec ray up --yes cluster.yaml")
        assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + 180
        while lab.hosts[0].run(". ~/.petscale.sh; ray list nodes --filter state=ALIVE").stdout.count("ALIVE") < 2:
            assert time.monotonic() < deadline, "the second host does not join"
            time.sleep(1)
        assert lab.launch("petscale", "submit", "phantom", "cohort", *PHANTOMS).returncode == 0

        def with_ray(run: Path) -> list[subprocess.Popen[bytes]]:
            words = ["petscale", "submit", "train", "cohort", "--run", run.name, "--workers", "2", "--set"]
            return [subprocess.Popen(lab.words(*words, *settings(steps, cores)), env=lab.environment())]

        def with_torchrun(run: Path) -> list[subprocess.Popen[bytes]]:
            plan, environment = planned(folder / "cohort", run, steps, cores)
            exports = " ".join(f"{k}={v}" for k, v in {**environment, "GLOO_SOCKET_IFNAME": "eth0"}.items())
            each = [
                f"cd {ROOT} && {exports} {sys.executable} -m torch.distributed.run --nnodes 2 --nproc-per-node 1 "
                f"--node-rank {rank} --master-addr {first} --master-port {PORT} {__file__} --peer {plan}"
                for rank in range(2)
            ]
            return [subprocess.Popen(host.words_for(line)) for host, line in zip(lab.hosts, each, strict=True)]

        yield {"petscale submit train": with_ray, "torchrun per host": with_torchrun}
        lab.launch("ray", "down", "--yes", "cluster.yaml")


def planned(cohort: Path, run: Path, steps: int, threads: int) -> tuple[Path, Mapping[str, str]]:
    """What torchrun's workers are told: a worker's settings, and its environment."""
    from petscale import config as configs
    from petscale.cluster.session import worker_environment
    from petscale.training.planning import plan_run

    config = configs.override(configs.from_json({"recipe": "sgsgan"}), [*settings(steps, threads), "cluster.workers=2"])
    plan = plan_run(cohort, run, config)
    run.mkdir()
    plan.record("benchmark")
    path = run.parent / f"{run.name}.json"
    path.write_text(json.dumps(plan.job.to_json()))
    return path, worker_environment(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--peer", type=Path)
    arguments = parser.parse_args()
    if arguments.peer:
        peer(arguments.peer)
        return
    found: dict[str, list[tuple[float, list[float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="orchestration-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with (hosts if arguments.hosts else here)(folder, arguments.steps) as ways:
            for number in range(arguments.rounds):
                for title, start in list(ways.items())[:: 1 if number % 2 else -1]:
                    result = measured(start, folder / f"{title.replace(' ', '-')}-{number}")
                    found.setdefault(title, []).append(result)
                    print(f"round {number + 1}: {title}: first step after {result[0]:.1f} s", flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, commit {commit.strip()}")
    print("\n| | first step after | step, median | 5 % to 95 % |\n|---|---|---|---|")
    medians: dict[str, float] = {}
    for title, results in found.items():
        times: list[Any] = sorted(seconds for _, each in results for seconds in each)
        medians[title] = statistics.median(times)
        low, high = times[len(times) // 20], times[-1 - len(times) // 20]
        begun = statistics.median(first for first, _ in results)
        print(f"| {title} | {begun:.1f} s | {medians[title] * 1e3:.0f} ms | {low * 1e3:.0f} to {high * 1e3:.0f} ms |")
    ours, theirs = (next(v for k, v in medians.items() if k.startswith(name)) for name in ("petscale", "torchrun"))
    print(f"\nsteady state: {ours / theirs:.3f} of torchrun")


if __name__ == "__main__":
    main()
