"""Results of the suite: one JSON file, the page made of it, and the comparison with results that are kept."""

from collections.abc import Mapping
from typing import Any

from benchmarks.performance.accuracy import TOLERANCE_DB

GATE = 0.95  # of a kept ratio


def below(kept: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the peers against which petscale has lost more than a twentieth for sure, ``benchmark: peer`` each.

    For sure: the whole interval of the new ratio lies below, for on a shared machine a median alone moves by a tenth.
    A benchmark or a peer that is kept and no longer found is one too, unless its library is not installed.
    """
    lost = []
    for name, before in kept["benchmarks"].items():
        measured = found["benchmarks"].get(name, {"peers": {}, "absent": []})
        now = measured["peers"]
        for peer, ratio in before["peers"].items():
            if peer not in now and any(peer.startswith(one) for one in measured["absent"]):
                continue
            if peer not in now or now[peer]["high"] < GATE * ratio["median"]:
                lost.append(f"{name}: {peer}")
    return lost


def page(results: Mapping[str, Any]) -> str:
    """Return docs/results/performance.md."""
    about = results["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# Speed beside other libraries",
        "",
        f"`make bench`, {about['hardware']}. {about['threads']}",
        f"{versions}.",
        "",
        "A ratio says how many times petscale's processor time another way takes: above 1, petscale is faster.",
        f"It is the median over {about['rounds']} rounds in which all ways took turns, with its bootstrap 95 %",
        "interval; the ratio of times on the clock stands beside it. That results are equal is asserted before",
        "anything is timed; `another result` marks ways that do less. A bound is what no way can beat.",
        "",
    ]
    for name, one in results["benchmarks"].items():
        lines += [
            f"## {name}",
            "",
            f"{one['does'][0].upper()}{one['does'][1:]}. petscale: {one['seconds']:.3f} s of processor time.",
            f"Commit {one['commit']}, {one['date']}, on a shared machine: {one['load']:.1f} processes wanted its "
            f"{about['cores']} cores on average.",
            "",
        ]
        lines += ["| way | processor time [s], least | ratio (95 %) | on the clock |", "|---|---|---|---|"]
        for kind, mark in (("peers", ""), ("others", " (another result)"), ("bounds", " (bound)")):
            for way, r in one[kind].items():
                interval = f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
                lines.append(f"| {way}{mark} | {r['seconds']:.3f} | {interval} | {r['clock']:.2f} |")
        lines.append("")
        if one["absent"]:
            lines += [f"Left out, because the library was not installed: {'; '.join(one['absent'])}.", ""]
    if "accuracy" in results:
        lines += _accuracy(results["accuracy"])
    lines += [
        "`make bench-gate` measures again and fails where the whole interval lies below 0.95 of the ratio kept in",
        "`benchmarks/performance/results.json`, twice in a row. A peer whose library is not installed is left out",
        "of both: `make` installs all but blosc2 and TorchIO, and dcm2niix is a program of its own. Training steps and",
        "sweeps are not in this suite yet.",
        "",
    ]
    return "\n".join(lines)


def _accuracy(found: Mapping[str, Any]) -> list[str]:
    best = found["best_baselines"]
    within = " and ".join(f"{db:g} dB ({region})" for region, db in TOLERANCE_DB.items())
    return [
        "## Accuracy of the demo",
        "",
        f"PSNR of the two test patients of `make demo`, mean; the best baseline is the {best['body']}",
        f"in the body, and the {best['lesions']} in lesions.",
        f"Commit {found['commit']}, {found['hardware']}.",
        "",
        "| image, region | PSNR [dB] |",
        "|---|---|",
        *(f"| {name} | {value:.3f} |" for name, value in found["psnr_db"].items()),
        "",
        f"The gate makes the demo anew, and fails where a figure falls by more than {within}. One machine gives",
        "the same bits again; another processor sums in another order, and a training carries the last digits on.",
        "",
    ]
