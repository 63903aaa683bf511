"""A training on 64 GPUs, from parts measured on this machine: writes the results and docs/results/scale.md.

python -m benchmarks.scale [--page]
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import commit, hardware
from benchmarks.scale.page import KEPT, PAGE, page
from benchmarks.scale.parts import cold_read, make_cohort, parts
from benchmarks.scale.runs import RUNS, compare, configured
from petscale.cluster.session import worker_environment
from petscale.tuning.trial import _join_alone

PARTS = "parts"


def measured(wanted: Collection[str]) -> dict[str, Any]:
    """Measure trainings by name, and the parts."""
    _join_alone()
    found: dict[str, Any] = {"about": _about(), "runs": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cohort = make_cohort(folder / "cohort", 4, (128, 160, 160))
        for run in RUNS:
            if run in wanted:
                print(run, file=sys.stderr, flush=True)
                found["runs"][run] = compare(folder / "cohort", run)
        if PARTS in wanted:
            print(PARTS, file=sys.stderr, flush=True)
            found |= {PARTS: parts(cohort, folder), "cold_bytes_per_s": cold_read(folder, 2**28)}
    return found


def _about() -> dict[str, Any]:
    return {
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", action="store_true", help="make the page of the kept results, and measure nothing")
    parser.add_argument("--only", nargs="*", choices=[*RUNS, PARTS], help="measure these again, keep the others")
    options = parser.parse_args()
    if not options.page:
        wanted = worker_environment(configured("unet", {}))
        if any(os.environ.get(name) != value for name, value in wanted.items()):
            words = [sys.executable, "-m", "benchmarks.scale", *sys.argv[1:]]  # malloc reads its settings once
            os.execve(sys.executable, words, os.environ | wanted)
        torch.set_num_threads(1)
        kept = json.loads(KEPT.read_text()) if options.only else {"runs": {}}
        found = measured(options.only or [*RUNS, PARTS])
        runs = kept["runs"] | found["runs"]
        found = kept | found | {"runs": {name: runs[name] for name in RUNS if name in runs}}
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(json.loads(KEPT.read_text())))


if __name__ == "__main__":
    main()
