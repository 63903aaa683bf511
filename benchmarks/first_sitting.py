"""A first sitting with petscale: from folders of DICOM files to a PDF in three commands, each timed.

    python -m benchmarks.first_sitting FOLDER [--cases 6]

FOLDER is made; first phantoms are written there as a UDPET download would hold them (DICOM series of the full dose and
of DRF 20 for every patient), which is not timed.  Then, as a new user would: ingest, train, report.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.conditions import commit, hardware
from petscale.experiments.runs import demo_phantom, demo_scan

SITTING = (
    "petscale ingest download pairs --layout udpet",
    "petscale train pairs --run run --recipe restore --feed.source low_drf20 --workers 2 "
    "--recipe.bank-samples 160 --recipe.samples 1350 --recipe.margin 4 4 4 --recipe.lr 0.002 --engine.warm-up-steps 40 "
    "--split.test-fraction 0.34",
    "petscale report run pairs --pdf",
)


def petscale(words: list[str], where: Path) -> None:
    """Run one command of this installation; stops where it fails."""
    subprocess.run([sys.executable, "-m", "petscale", *words], cwd=where, check=True)


def download(folder: Path, cases: int) -> None:
    """Write phantoms like the demo's as files of a public data set."""
    body, scan = demo_phantom(), demo_scan()
    size = ["--body.shape", *map(str, body.shape), "--body.spacing-mm", *map(str, body.spacing_mm)]
    counts = ["--scan.million-prompts-per-bed", str(scan.million_prompts_per_bed), "--drf", "20"]
    petscale(["phantom", "download", "--layout", "udpet", "--cases", str(cases), *size, *counts], folder)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=6)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    download(given.folder, given.cases)
    lines = []
    for command in SITTING:
        began = time.perf_counter()
        petscale(command.split()[1:], given.folder)
        lines.append(f"| `{command}` | {time.perf_counter() - began:.0f} |")
    files = sum(path.is_file() for path in (given.folder / "download").rglob("*"))
    print(f"{given.cases} patients, {files} files; commit {commit()}, {hardware()}\n")
    print("| command | on the clock [s] |\n|---|---|", *lines, sep="\n")
    for made in (given.folder / "run").glob("report.*"):
        print(f"{made.name}: {made.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
