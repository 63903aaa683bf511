"""petscale beside other libraries: `make bench` writes the results and their page, `make bench-gate` compares.

    OMP_NUM_THREADS=1 python -m benchmarks.performance [--gate] [--rounds 7] [--only "B1 patches"]

One thread each, as a training process of petscale has unless `--cluster.cpus-per-worker` gives it more.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import commit, hardware
from benchmarks.performance import accuracy
from benchmarks.performance.measure import measure
from benchmarks.performance.results import below, page
from benchmarks.performance.suite import Suite, suite

KEPT = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[2] / "docs/results/performance.md"
LIBRARIES = ("numpy", "scipy", "torch", "scikit-image", "zarr", "numcodecs", "pydicom", "nibabel")
PEERS = ("tensorstore", "blosc2", "monai", "torchio", "SimpleITK")


def run(benchmarks: Suite, rounds: int) -> dict[str, Any]:
    """Measure and return what is kept."""
    found = {}
    for name, make in benchmarks.items():
        print(name, file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="petscale-bench-") as folder:
            one = make(Path(folder))
            seconds, ratios = measure(one, rounds)
        kinds = {"peers": one.peers, "others": one.others, "bounds": one.bounds}
        told = {kind: {way: asdict(ratios[way]) for way in ways} for kind, ways in kinds.items()}
        found[name] = {"does": one.does, "seconds": seconds, "absent": list(one.absent), **told, **_when()}
    return {"about": _about(rounds), "benchmarks": found}


def _when() -> dict[str, Any]:
    return {"commit": commit(), "date": datetime.date.today().isoformat(), "load": os.getloadavg()[0]}


def _about(rounds: int) -> dict[str, Any]:
    return {
        "command": "make bench",
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "threads": "One thread for every way.",
        "rounds": rounds,
        "versions": {name: _version(name) for name in LIBRARIES + PEERS},
    }


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gate", action="store_true", help="compare with the results that are kept, and write nothing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=list(suite()), help="measure these, and keep the others' results")
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1, as make bench does")
    torch.set_num_threads(1)
    wanted = {name: make for name, make in suite().items() if name in (options.only or suite())}
    kept = json.loads(KEPT.read_text())
    kept["benchmarks"] = {name: one for name, one in kept["benchmarks"].items() if name in suite()}
    found = run(wanted, options.rounds)
    found["accuracy"] = kept["accuracy"]
    if not options.only:
        print("demo", file=sys.stderr)
        found["accuracy"] = {"commit": _when()["commit"], "hardware": found["about"]["hardware"], **accuracy.of_demo()}
    if not options.gate:
        measured = {**kept["benchmarks"], **found["benchmarks"]}
        found["benchmarks"] = {name: measured[name] for name in suite() if name in measured}
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(page(found))
        return 0
    kept["benchmarks"] = {name: one for name, one in kept["benchmarks"].items() if name in wanted}
    lost = below(kept, found)
    if lost:  # another process may have had the memory for a while: what is lost twice is lost
        again = below(kept, run(wanted, options.rounds))
        lost = [one for one in lost if one in again]
    for name, one in found["benchmarks"].items():
        for peer, r in one["peers"].items():
            before = kept["benchmarks"].get(name, {"peers": {}})["peers"].get(peer, {"median": float("nan")})["median"]
            print(f"{name}, {peer}: {r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f}), kept {before:.2f}")
    print("\n".join(f"slower than kept: {one}" for one in lost) or "no ratio fell below 0.95 of the kept one")
    for name, value in found["accuracy"]["psnr_db"].items():
        print(f"demo, {name}: {value:.3f} dB")
    fell = accuracy.worse(kept["accuracy"], found["accuracy"])
    print("\n".join(f"worse than kept: {one}" for one in fell) or "no figure of the demo fell below the kept one")
    return bool(lost or fell)


if __name__ == "__main__":
    sys.exit(main())
