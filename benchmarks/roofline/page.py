"""docs/results/roofline.md, made of kept results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEPT = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[2] / "docs/results/roofline.md"
GOAL = 1.15


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    about = results["about"]
    lines = [
        "# A training step beside its convolutions alone",
        "",
        f"`python -m benchmarks.roofline`, rows measured one after the other, the last on commit {about['commit']},",
        f"{about['date']}, {about['hardware']}, torch {about['torch']}, one thread, fp32, DeepSpeed's engine; the",
        f"machine was shared, {about['load']:.0f} processes wanted its {about['cores']} cores, so that all times are",
        "processor time.",
        "",
        "The convolutions and matrix products of one step, forward and backward, are kept with their tensors and made",
        f"again with nothing between them, in turns with whole steps, {about['rounds']} rounds. The ratio is the",
        f"median over rounds; {GOAL} is the goal. The step's batch is read before. The rest is what",
        "`torch.profiler` saw beside the products, each operation's own share of all operations, the largest few.",
        "",
        "| system | phase | step [ms] | products alone [ms] | ratio | the rest |",
        "|---|---|---|---|---|---|",
    ]
    for name, phases in results["systems"].items():
        for phase, one in phases.items():
            rest = ", ".join(f"`{what}` {share:.0%}" for what, share in one["rest"].items() if share >= 0.005)
            ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
            ratio = f"**{ratio}**" if one["ratio"] and one["ratio"] > GOAL else ratio
            times = f"{1000 * one['step_s']:.1f} | {1000 * one['products_s']:.1f}"
            lines.append(f"| {name} | {phase} | {times} | {ratio} | {rest} |")
    adam = results["adam"]
    lines += [
        "",
        "Steps are of one or two patches, which a CPU makes in a second, so that what does not grow with the batch",
        "weighs more here than in a training: Adam's update above all (`sqrt`, `div`, `lerp_`, `addcmul_`,",
        "`addcdiv_`). "
        f"PyTorch's fused Adam takes {adam['fused_ms']:.1f} ms where the one in use takes {adam['ms']:.1f}",
        f"(a million weights), and leaves other last bits: weights differ by up to {adam['differs']:.0e} after",
        f"{adam['updates']} updates. The one in use stays, for results are to be the same bits as before. No generator",
        "of these systems runs twice in a step, and gradients are set to none, not to 0, between updates.",
    ]
    return "\n".join([*lines, ""])
