"""Phantoms written as four public data sets: ingested, trained on, evaluated and reported by the commands a user types.

    python benchmarks/public_trees.py FOLDER [--layouts udpet autopet lung bids] [--cases 6] [--parts 20]

Every command is a process of its own; its time is that on the clock, imports and Ray's start included.  A UDPET
tree of two examinations per part is then ingested in parts, in three orders, and each cohort is compared byte by byte
with the one that a single command made.  The lines are those of a table in Markdown.
"""

import argparse
import filecmp
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from petscale.evaluation.scores import read_evaluation
from storage.reader import open_cohort
from trainers.metrics.presets import BODY_PSNR

BODY = "--body.shape 96 64 72 --body.spacing-mm 9 6 6 --scan.million-prompts-per-bed 60"
FROM_CT = (
    "--recipe virtual_pet --recipe.patch 1 64 64 --recipe.fcn-widths 16 32 64 64 --recipe.fcn-fc 64 "
    "--recipe.fcn-fc6-kernel 3 --recipe.fcn-norm batch --recipe.fcn-lr 1e-3 --recipe.generator-width 12 "
    "--recipe.generator-downs 5 --recipe.critic-width 12 --recipe.critic-strides 2 2 1 --recipe.blend-levels 2 "
    "--recipe.fcn-samples 4000 --recipe.cgan-samples 4000 --recipe.epoch-samples 800 --recipe.validate-batches 4"
)
SGSGAN = (
    "--recipe sgsgan --recipe.patch 32 32 32 --recipe.patches-per-case 2 --recipe.critic-channels 8 --recipe.rois "
    "--recipe.phase-samples 800 0 0 0 --feed.source low_drf20"
)
RED_CNN = "--recipe red_cnn --recipe.samples 8000 --recipe.channels 32 --recipe.lr 1e-3 --feed.source low_drf20"
LAYOUTS = {
    "udpet": ("--drf 4 20", SGSGAN),
    "autopet": ("--drf", FROM_CT),
    "lung": ("--drf", FROM_CT),
    "bids": ("--drf 20", RED_CNN),
}
SHARED = "--split.test-fraction 0.34 --loop.log-every 50 --loop.picture-every 0 --cluster.workers 1"


def run(words: Iterable[object]) -> float:
    """Run one command of petscale; what it prints goes where this script's errors go.  Return its seconds."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "petscale", *map(str, words)], check=True, stdout=sys.stderr)
    return time.perf_counter() - begin


def body_psnr(trained: Path) -> str:
    """Mean PSNR inside the body over the test cases: of what needs no network, the input too, and synthesized."""
    scores = read_evaluation(next((trained / "evaluation").glob("*/scores.json")).parent)
    means = {image: statistics.mean(scores.values(image, BODY_PSNR, "body").values()) for image in scores.images}
    return ", ".join(f"{image} {mean:.2f}" for image, mean in means.items())


def walk(folder: Path, layout: str, cases: int) -> None:
    """All commands of one data set; prints a line of the table."""
    doses, recipe = LAYOUTS[layout]
    tree, cohort, trained = folder / layout, folder / f"{layout}-cohort", folder / f"{layout}-run"
    run(["phantom", tree, "--layout", layout, "--cases", cases, *doses.split(), *BODY.split()])
    dry = run(["ingest", tree, cohort, "--layout", layout, "--dry-run"])
    ingest = run(["ingest", tree, cohort, "--layout", layout])
    train = run(["train", cohort, "--run", trained, *shlex.split(recipe), *SHARED.split()])
    evaluate = run(["evaluate", trained, cohort])
    report = run(["report", trained, cohort])
    seconds = " | ".join(f"{value:.0f} s" for value in (dry, ingest, train, evaluate, report))
    print(f"| {layout} | {len(open_cohort(cohort).cases)} | {seconds} | {body_psnr(trained)} |", flush=True)


def same(one: Path, two: Path) -> bool:
    """Whether two cohorts hold the same files with the same bytes; a lock file has none."""
    files = [sorted(p.relative_to(c) for p in c.rglob("*") if p.is_file() and p.name != ".lock") for c in (one, two)]
    return files[0] == files[1] and not any(filecmp.cmpfiles(one, two, map(str, files[0]), shallow=False)[1:])


def in_parts(folder: Path, parts: int) -> None:
    """Ingest a UDPET tree of small examinations, two per part, at once and in parts in three orders."""
    tree, whole = folder / "many", folder / "many-cohort"
    small = "--drf 4 20 --body.shape 24 32 32 --body.spacing-mm 40 14 14 --scan.iterations 1"
    run(["phantom", tree, "--layout", "udpet", "--cases", 2 * parts, *small.split()])
    seconds = run(["ingest", tree, whole, "--layout", "udpet"])
    print(f"| one command | {seconds:.0f} s | {len(open_cohort(whole).cases)} cases |", flush=True)
    forward = list(range(1, parts + 1))
    drawn = random.Random(0).sample(forward, parts)
    for name, order in (("forward", forward), ("backward", forward[::-1]), ("drawn", drawn)):
        cohort = folder / f"many-{name}"
        begin = time.perf_counter()
        for part in order:
            run(["ingest", tree, cohort, "--layout", "udpet", "--part", f"{part}/{parts}"])
        seconds = time.perf_counter() - begin
        equal = "equal" if same(whole, cohort) else "DIFFERENT"
        print(f"| {parts} parts, {name} | {seconds:.0f} s | {equal} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layouts", nargs="*", choices=[*LAYOUTS], default=list(LAYOUTS))
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--parts", type=int, default=20)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    print("| layout | cases | dry run | ingest | train | evaluate | report | PSNR body [dB] |")
    print("|---|---|---|---|---|---|---|---|")
    for layout in given.layouts:
        walk(given.folder, layout, given.cases)
    if given.parts:
        print("\n| UDPET's tree | time | against one command |\n|---|---|---|")
        in_parts(given.folder, given.parts)


if __name__ == "__main__":
    main()
