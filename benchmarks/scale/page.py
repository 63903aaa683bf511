"""docs/results/scale.md, made of what was measured here and of the simulation of the large training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale.simulation import Outcome, Setup, ring_all_reduce_s, simulate, spread_like

KEPT = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[2] / "docs/results/scale.md"
GB = 1e9
SUBJECTS, IMAGES, COHORT_BYTES = 1447, 6, 3.4e12
GPUS, PER_NODE = 64, 8
STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class Large:
    """The large training: what is assumed of its machines, none of it measured.

    Args:
        pairs_per_s: 64^3 pairs a second of one GPU that never waits.
        pairs_per_step: of one GPU.
        cores: of a node that make batches.
        storage_bytes_per_s: of the storage that all nodes share.
        node_bytes_per_s: of one node's network.
        request_s: of one request to the storage.
        link_bytes_per_s: of the links that gradients go through.
        link_s: latency of one of them.
        save_every: steps between checkpoints, the loop's default.
    """

    pairs_per_s: float = 700.0
    pairs_per_step: int = 16
    cores: int = 96
    storage_bytes_per_s: float = 40 * GB
    node_bytes_per_s: float = 40 * GB
    request_s: float = 1e-3
    link_bytes_per_s: float = 40 * GB
    link_s: float = 1e-5
    save_every: int = 200

    @property
    def step_s(self) -> float:
        """Time of one GPU's step."""
        return self.pairs_per_step / self.pairs_per_s


@dataclass(frozen=True)
class Need:
    """One part of the large training: what it must deliver, and what there is.

    Args:
        part: in words.
        must: in ``unit``.
        has: in ``unit``, larger is better.
        unit: of both.
        how: measured, or an assumption.
    """

    part: str
    must: float
    has: float
    unit: str
    how: str

    @property
    def short(self) -> float:
        """How many times more is needed than there is; up to 1 where it suffices."""
        return self.must / self.has


@dataclass(frozen=True)
class Cost:
    """Something that every step of the large training pays beside its own work.

    Args:
        part: in words.
        per_step_s: of a step, on average.
        how: measured, or an assumption.
    """

    part: str
    per_step_s: float
    how: str


def needs(large: Large, parts: Mapping[str, Any]) -> list[Need]:
    """Return what brings batches, part by part, the shortest first."""
    patches, pairs = parts["patches"], parts["pairs"]
    cores = large.cores // PER_NODE
    loader = pairs["per_core_s"]
    bytes_per_s = 2 * large.pairs_per_s * patches["bytes"]
    alone = f"loader of a worker on {cores} cores that do not hold one another up"
    found = [
        Need("loader of a worker, two threads at best", large.pairs_per_s, 2 * loader, "pairs/s", "measured per core"),
        Need(alone, large.pairs_per_s, loader * cores, "pairs/s", "measured per core"),
        Need("shared storage", GPUS * bytes_per_s / GB, large.storage_bytes_per_s / GB, "GB/s", "assumption"),
        Need("network of a node", PER_NODE * bytes_per_s / GB, large.node_bytes_per_s / GB, "GB/s", "assumption"),
    ]
    return sorted(found, key=lambda need: -need.short)


def costs(large: Large, parts: Mapping[str, Any]) -> list[Cost]:
    """Return what a step pays beside its own work, the largest first."""
    saved = parts["checkpoint"]
    reduce_s = ring_all_reduce_s(4.0 * saved["weights"], GPUS, large.link_bytes_per_s, large.link_s)
    found = [
        Cost(f"a checkpoint every {large.save_every} steps, which wait for it", saved["save_s"] / large.save_every,
             "measured"),
        Cost("gradients exchanged after the step", reduce_s, "assumption"),
        Cost("DeepSpeed's engine", parts["engine"]["added_s"], "measured"),
    ]  # fmt: skip
    return sorted(found, key=lambda cost: -cost.per_step_s)


def variants(large: Large, parts: Mapping[str, Any]) -> dict[str, tuple[Setup, float]]:
    """Return the large training as the code is now, and with one limit after another taken away.

    Returns:
        What was changed -> machines, and the time in which one thread makes a batch.
    """
    pairs, saved = parts["pairs"], parts["checkpoint"]
    read_s = large.pairs_per_step / pairs["per_core_s"]
    cores = large.cores // PER_NODE
    now = Setup(
        ranks=GPUS,
        ranks_per_node=PER_NODE,
        readers=2,
        read_ahead=2,
        batch_bytes=large.pairs_per_step * 2 * parts["patches"]["bytes"],
        storage_bytes_per_s=large.storage_bytes_per_s,
        node_bytes_per_s=large.node_bytes_per_s,
        latency_s=large.request_s,
        all_reduce_s=ring_all_reduce_s(4.0 * saved["weights"], GPUS, large.link_bytes_per_s, large.link_s),
        save_every=large.save_every,
        save_s=saved["save_s"],
    )
    local = replace(now, storage_bytes_per_s=large.storage_bytes_per_s * GPUS / PER_NODE)
    wide = replace(local, readers=cores, read_ahead=cores)
    behind = replace(wide, save_s=saved["copy_s"], write_s=saved["save_s"])
    named = {
        "as the code is: two threads of each worker, shared storage": now,
        "the cohort on a disk of every node, each as fast as the storage was": local,
        f"and {cores} threads of each worker that do not hold one another up": wide,
        "and checkpoints written in the background": behind,
    }
    return {name: (setup, read_s) for name, setup in named.items()}


def outcome(setup: Setup, read_s: float, step_s: float, spread: Sequence[float]) -> Outcome:
    """Simulate ``STEPS`` steps; ranks' steps are spread as the middle nine tenths of those measured here."""
    low, high = np.quantile(spread, [0.05, 0.95])
    kept = np.array([one for one in spread if low <= one <= high])
    steps = spread_like(kept, step_s, setup.ranks, 0)
    return simulate(setup, STEPS, step_s=steps, read_s=lambda step: np.full(setup.ranks, read_s))


def page(results: Mapping[str, Any]) -> str:
    """Return docs/results/scale.md."""
    return "\n".join([*_head(results), *_parts(results), *_runs(results), *_large(results), *_list(results), ""])


def _head(results: Mapping[str, Any]) -> list[str]:
    about = results["about"]
    return [
        "# A training on 64 GPUs, on paper and by simulation",
        "",
        f"`python -m benchmarks.scale`, rows measured one after the other, the last on commit {about['commit']},",
        f"{about['date']}, {about['hardware']}; the machine was shared: {about['load']:.0f} processes wanted its",
        f"{about['cores']} cores at the last.",
        "**No GPU and no cluster was at hand: what is said of them is an assumption, and is called so.** What was",
        "measured is one worker's parts on a CPU, in processor time of all of its threads where it says `per core`.",
        "",
        f"The cohort: {SUBJECTS} subjects with {IMAGES} images each (UDPET), {COHORT_BYTES / 1e12:.1f} TB of float32",
        f"voxels, {COHORT_BYTES / SUBJECTS / IMAGES / 1e6:.0f} MB an image. The training: {GPUS} GPUs in nodes of"
        f" {PER_NODE}, pairs of 64^3 patches,",
        "all of which are decoded anew: the reader keeps nothing decoded.",
        "",
    ]


def _parts(results: Mapping[str, Any]) -> list[str]:
    parts = results["parts"]
    patches, pairs = parts["patches"], parts["pairs"]
    saved, store, opened = parts["checkpoint"], parts["store"], parts["open"]
    images = SUBJECTS * IMAGES
    voxels = COHORT_BYTES / images / 4
    rows = [
        ("patches of 64^3", f"{patches['per_core_s']:.0f}/s per core; in a cohort so large that no file is open, "
         f"{patches['bytes'] / 1e6:.2f} MB and {patches['requests']:.0f} requests of the storage each, for "
         f"{patches['voxel_bytes'] / 1e6:.2f} MB of voxels"),
        ("loader: pairs of 64^3, flipped", f"{pairs['per_core_s']:.0f} pairs/s per core; on this "
         f"busy machine two threads deliver {pairs['two_threads']:.1f} times one"),
        ("a file not in the page cache", f"{results['cold_bytes_per_s'] / 1e6:.0f} MB/s from this machine's disk"),
        ("writing the store, digests and fsync included", f"{store['bytes_per_core_s'] / 1e6:.0f} MB/s per core of "
         f"float32 voxels, stored in {store['stored']:.0%} of their bytes: {COHORT_BYTES / 1e12:.1f} TB take "
         f"{COHORT_BYTES / store['bytes_per_core_s'] / 3600:.0f} core hours and "
         f"{COHORT_BYTES * store['stored'] / 1e12:.1f} TB"),
        ("opening a case, before its first patch", f"{1000 * opened['s']:.1f} ms of a core, {opened['files']} files "
         f"looked at: {SUBJECTS * opened['s']:.0f} s a worker for {SUBJECTS} cases, and where each look asks a server "
         f"for 1 ms, {SUBJECTS * opened['files'] / 1000:.0f} s"),
        ("maps of where to draw patches, without labels", f"{opened['maps_bytes'] * voxels / 1e6:.1f} MB a case held "
         f"by every worker: {opened['maps_bytes'] * voxels * SUBJECTS / GB:.1f} GB a worker, "
         f"{PER_NODE * opened['maps_bytes'] * voxels * SUBJECTS / GB:.0f} GB a node"),
        ("a checkpoint of SGSGAN at the paper's size", f"{saved['bytes'] / 1e6:.0f} MB ({saved['weights'] / 1e6:.1f} "
         f"million weights): copied in {saved['copy_s']:.2f} s, committed in {saved['save_s']:.2f} s"),
        ("DeepSpeed's engine beside a step", f"{1000 * parts['engine']['added_s']:.1f} ms of a core (a step of "
         f"{1000 * parts['engine']['plain_s']:.0f} ms)"),
    ]  # fmt: skip
    table = [f"| {part} | {told} |" for part, told in rows]
    return ["## What was measured, part by part", "", "| part | delivers |", "|---|---|", *table, ""]


def _runs(results: Mapping[str, Any]) -> list[str]:
    lines = [
        "## The simulation beside trainings of this machine",
        "",
        "Every step's batch and work and a checkpoint are measured with nothing side by side; the simulation reads",
        "ahead, steps and saves as `petscale train` is told to, and says the total and what steps wait for batches.",
        "The training is one worker of petscale, started without Ray, in pieces between which the same steps are",
        "measured alone, for the machine changes: totals are of all pieces, the range in brackets is the middle half",
        "of single pieces' errors.",
        "",
        "| training | batch, step, checkpoint [ms] | trained [s] | predicted [s] | error of the total | waited [s], "
        "share | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in results["runs"].items():
        trained, predicted = one["trained"], one["predicted"]
        total, guess = sum(trained["total_s"]), sum(predicted["total_s"])
        waited, told = sum(trained["wait_s"]), sum(predicted["wait_s"])
        errors = np.array(predicted["total_s"]) / np.array(trained["total_s"]) - 1
        low, high = np.quantile(errors, [0.25, 0.75])
        own = " / ".join(f"{1000 * one[key]:.0f}" for key in ("read_s", "step_s", "save_s"))
        lines.append(
            f"| {name} ({one['steps']} steps) | {own} | {total:.1f} | {guess:.1f} | {guess / total - 1:+.0%} "
            f"({low:+.0%} to {high:+.0%}) | {waited:.1f}, {waited / total:.0%} | {told:.1f}, {told / guess:.0%} |"
        )
    lines += [
        "",
        "On the clock, trainings are slower than predicted: threads take cores from one another, two that read and",
        "one that steps, and other processes take them from all. Processor time, which can be compared where nothing",
        "is read ahead, knows neither. Steps, checkpoints and reading at need are held to trainings by this; a feed",
        "that is the slowest part, and several ranks, are held to cases worked out by hand alone.",
    ]
    return [*lines, ""]


def _large(results: Mapping[str, Any]) -> list[str]:
    large, parts = Large(), results["parts"]
    order, paid = needs(large, parts), costs(large, parts)
    lines = [
        "## What 64 GPUs ask of each part, and where it breaks first",
        "",
        f"If every GPU makes {large.pairs_per_s:.0f} pairs of 64^3 a second (an assumption, see below), batches need:",
        "",
        "| part | must deliver | there is | of it | short by |",
        "|---|---|---|---|---|",
    ]
    for need in order:
        short = f"**{need.short:.1f} times**" if need.short > 1 else f"suffices ({need.short:.0%} of it is used)"
        lines.append(f"| {need.part} | {need.must:,.0f} {need.unit} | {need.has:,.0f} | {need.how} | {short} |")
    lines += [
        "",
        f"And a step of {1000 * large.step_s:.0f} ms pays beside its own work:",
        "",
        "| part | ms a step | of the step | |",
        "|---|---|---|---|",
    ]
    for cost in paid:
        told = f"{1000 * cost.per_step_s:.1f} | {cost.per_step_s / large.step_s:.0%}"
        lines.append(f"| {cost.part} | {told} | {cost.how} |")
    lines += [
        "",
        f"**It breaks first at: {order[0].part} ({order[0].how}), {order[0].short:.1f} times short; then "
        f"{order[1].part},",
        f"{order[1].short:.1f} times.** Of what a step pays, {paid[0].part}, costs most.",
        "",
        f"Simulated, {STEPS:,} steps of {large.pairs_per_step} pairs a GPU, each change on top of those",
        "above it:",
        "",
        "| | pairs/s, all GPUs | of what the GPUs could make | waiting for batches | for slower ranks | exchange | "
        "checkpoints |",
        "|---|---|---|---|---|---|---|",
    ]
    spread = parts["engine"]["spread"]
    for name, (setup, read_s) in variants(large, parts).items():
        found = outcome(setup, read_s, large.step_s, spread)
        rate = STEPS * GPUS * large.pairs_per_step / found.total_s
        shares = (found.wait_s, found.behind_s, found.all_reduce_s, found.save_s)
        told = " | ".join(f"{share / found.total_s:.0%}" for share in shares)
        lines.append(f"| {name} | {rate:,.0f} | {rate / (GPUS * large.pairs_per_s):.0%} | {told} |")
    lines += [
        "",
        "The speed of the GPU is what is known least. As the code is, with other speeds of it:",
        "",
        "| pairs/s of a GPU (assumption) | pairs/s, all GPUs | of what they could make | what brings batches | "
        "checkpoints take |",
        "|---|---|---|---|---|",
    ]
    for pairs_per_s in (20.0, 70.0, 200.0, 700.0):
        other = replace(large, pairs_per_s=pairs_per_s)
        setup, read_s = next(iter(variants(other, parts).values()))
        found = outcome(setup, read_s, other.step_s, spread)
        rate = STEPS * GPUS * other.pairs_per_step / found.total_s
        worst = needs(other, parts)[0]
        what = f"{worst.part}: {worst.short:.1f} times short" if worst.short > 1 else "suffices"
        share = found.save_s / found.total_s
        lines.append(f"| {pairs_per_s:.0f} | {rate:,.0f} | {rate / (GPUS * pairs_per_s):.0%} | {what} | {share:.0%} |")
    return [*lines, ""]


def _list(results: Mapping[str, Any]) -> list[str]:
    large = Large()
    return [
        "## Assumptions, none of them measured",
        "",
        f"- A GPU makes {large.pairs_per_s:.0f} pairs of 64^3 a second, {large.pairs_per_step} in a step of "
        f"{1000 * large.step_s:.0f} ms. This is arithmetic from",
        "  published speeds of 3D U-Nets, no measurement of any system of petscale on any GPU.",
        f"- {large.cores} cores of a node make batches, each as fast as a core of this machine; the storage brings "
        f"{large.storage_bytes_per_s / GB:.0f} GB/s",
        f"  to all nodes together, a node's network {large.node_bytes_per_s / GB:.0f} GB/s, a request takes "
        f"{1000 * large.request_s:.0f} ms; gradients of 4 bytes",
        f"  go round one ring at {large.link_bytes_per_s / GB:.0f} GB/s, {1e6 * large.link_s:.0f} microseconds a hop, "
        "after the step and not during it.",
        "- The steps of ranks are spread as those of a CPU were here in processor time, the outer tenth left out;",
        "  a GPU's may be closer.",
        "- Ranks have equal shares of storage and network at all times. Nothing is in a page cache, nothing fails.",
        "- Patients' images compress as these phantoms' do. Batches take what they took here on average, each alike.",
        "- Threads do not slow one another down. Those of one process share an interpreter and a memory, so that a",
        "  real loader is slower; how much cannot be told on a machine this busy.",
        "",
        "`benchmarks/scale/simulation.py` says what is computed; `tests/test_scale.py` holds it to cases worked out by",
        "hand. The figures are kept in `benchmarks/scale/results.json`, and this page is made of them.",
    ]
