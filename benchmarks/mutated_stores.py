"""Damaged small files of cohorts, runs and studies, read as commands read them: what is refused, what passes.

    python benchmarks/mutated_stores.py 10000 [--first-seed 0] > docs/results/mutated_stores.md

Manifests, catalogs, metadata, a run's record, scores, the header of weights, checkpoints' index and a study's journal
(tests/lab/mutated_stores.py makes them and compares what is read).  Half of the kinds change bytes, the others the
parsed content, of these one half with every digest over it made anew.  One process reads them one after another.  What
fails is listed as (seed, kind, base): put it into FOUND of tests/test_mutated_stores.py, where it is read for ever.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/lab"))
os.environ.setdefault("DS_ACCELERATOR", "cpu")


def machine() -> str:
    """Processor and cores, as Linux names them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()


def main() -> None:
    """Read all mutations and print the page."""
    import mutated_stores as mutated

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("count", type=int)
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    by_file: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    codes: Counter[str] = Counter()
    failed: list[mutated.Finding] = []
    began, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        for found in mutated.run(mutated.triples(given.count, given.first_seed), Path(folder)):
            by_file[found.triple[2]][found.outcome] += 1
            by_kind[found.triple[1]][found.outcome] += 1
            codes[found.detail] += found.outcome == mutated.REFUSED
            if found.outcome in mutated.FAILED:
                failed.append(found)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    words = (mutated.REFUSED, mutated.EQUAL, mutated.OLDER, mutated.OWN, *mutated.FAILED)
    print("# Damaged cohorts, runs and studies\n")
    print(
        f"`python benchmarks/mutated_stores.py {given.count} --first-seed {given.first_seed}`, commit {commit}, "
        f"{datetime.datetime.now(datetime.UTC).date()}, {machine()}, one process: {time.process_time() - used:.0f} s "
        f"of one core in {time.perf_counter() - began:.0f} s.\n"
    )
    print(__doc__.split("\n\n")[2].replace("\n", " ").strip() if __doc__ else "")
    for title, table in (("file", by_file), ("mutation", by_kind)):
        print(f"\n| {title} | " + " | ".join(words) + " |\n|" + "---|" * (len(words) + 1))
        for name, counts in sorted(table.items()):
            print(f"| {name} | " + " | ".join(str(counts[word]) for word in words) + " |")
    print(
        '\n"The file\'s own" is another value in a file whose digests were made anew after the change, or in one that '
        "has none: a study's journal, and what of a run's record the weights do not prove.\n"
    )
    print("Refusals: " + ", ".join(f"`{code}` {count}" for code, count in codes.most_common() if count) + ".")
    for finding in failed:
        print(f"\n- {finding.outcome}: {finding.triple}, {finding.detail}")


if __name__ == "__main__":
    main()
