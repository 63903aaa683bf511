"""Damaged NIfTI files and DICOM series, read as ingest reads them: what is refused, what passes, what passes wrongly.

    python benchmarks/mutated_files.py [--count 10000] [--first-seed 0] > docs/results/mutated_files.md

Half are NIfTI, half are series of which one slice is damaged (tests/lab/mutated.py makes them and compares what is
read).  One process reads them one after another, with 1.5 GiB of address space and 20 s each.  What fails is listed as
(seed, kind, base): put it into FOUND of tests/test_mutated_files.py, where it is read for ever.
"""

import argparse
import datetime
import platform
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/lab"))


def machine() -> str:
    """Processor and cores, as Linux names them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()


def main() -> None:
    """Read all mutations and print the page."""
    import mutated

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    codes: Counter[str] = Counter()
    failed: list[mutated.Finding] = []
    began, slowest, peak = time.perf_counter(), 0.0, 0
    for found in mutated.run(list(mutated.triples(given.count, given.first_seed))):
        kind = "DICOM" if found.triple[2].startswith("dcm") else "NIfTI"
        outcomes[f"{kind}, {found.triple[1]}"][found.outcome] += 1
        outcomes[f"{kind}, all"][found.outcome] += 1
        codes[found.detail] += found.outcome == mutated.REFUSED
        slowest, peak = max(slowest, found.seconds), max(peak, found.peak_kb)
        if found.outcome in mutated.FAILED:
            failed.append(found)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    words = (mutated.REFUSED, mutated.EQUAL, mutated.OWN, mutated.CODEC, mutated.SHORT, *mutated.FAILED)
    print("# Damaged files\n")
    print(
        f"`python benchmarks/mutated_files.py --count {given.count} --first-seed {given.first_seed}`, commit {commit}, "
        f"{datetime.datetime.now(datetime.UTC).date()}, {machine()}, one process: "
        f"{time.perf_counter() - began:.0f} s, at most {slowest:.2f} s a file, {peak / 1024:.0f} MiB resident.\n"
    )
    print(__doc__.split("\n\n")[2].replace("\n", " ") if __doc__ else "")
    print("\n| mutation | " + " | ".join(words) + " |\n|" + "---|" * (len(words) + 1))
    for name, counts in sorted(outcomes.items()):
        print(f"| {name} | " + " | ".join(str(counts[word]) for word in words) + " |")
    print(
        '\n"The file\'s own" is a difference that the file itself states without another field against it, for '
        "instance a bit of an uncompressed voxel, a digit of a slope, an origin. Compressed pixels carry no checksum: "
        "of lossless JPEG, JPEG 2000 and RLE some damage decodes to another image, which nobody can tell from it.\n"
    )
    print("Refusals: " + ", ".join(f"`{code}` {count}" for code, count in codes.most_common() if count) + ".")
    for finding in failed:
        print(f"\n- {finding.outcome}: {finding.triple}, {finding.detail}")


if __name__ == "__main__":
    main()
