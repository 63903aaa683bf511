"""Commands killed at random moments, each followed by the same command: what differs from an undisturbed run.

    python benchmarks/chaos.py 300 [--seed 0] [--commands ingest simulate ...] > docs/results/reliability.md
    make chaos                        300 kills, hours on two cores; make chaos KILLS=30 for a part

A result is made by a command that is killed one to three times, each time at a random moment of the time that it takes
by itself, and then runs to its end.  SIGKILL hits the command, all its processes at once or, where they train, any one
of them.  Cohorts must have the same digests, weights and losses the same bits, scores and pages the same content, a
study as many finished trials with the same scores; no file, process or temporary folder may be left.
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


def main() -> None:
    """Kill, compare, print the table."""
    import chaos

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=[*chaos.STAGES], default=[*chaos.STAGES])
    given = parser.parse_args()
    results: Counter[str] = Counter()
    by_target: dict[str, Counter[str]] = defaultdict(Counter)
    wrong: list[chaos.Finding] = []
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="c") as folder:
        for found in chaos.findings_of(Path(folder), given.kills, given.seed, given.commands):
            results[found.stage] += 1
            by_target[found.stage].update(target for target, _ in found.kills)
            if found.wrong:
                wrong.append(found)
            print(found, file=sys.stderr, flush=True)
    print(
        f"`python benchmarks/chaos.py {given.kills} --seed {given.seed}`, commit {commit}, "
        f"{datetime.datetime.now(datetime.UTC).date()}, {os.cpu_count()} cores ({platform.machine()}), "
        f"{(time.perf_counter() - began) / 60:.0f} min.\n"
    )
    targets = (chaos.COMMAND, chaos.ALL, chaos.ONE)
    print("| command | kills of " + " | of ".join(targets) + " | results | right | wrong |\n|" + "---|" * 7)
    for name, count in results.items():
        bad = sum(found.stage == name for found in wrong)
        killed = " | ".join(str(by_target[name][target]) for target in targets)
        print(f"| `petscale {name}` | {killed} | {count} | {count - bad} | {bad} |")
    for found in wrong:
        print(f"\n- {found.stage}, {found.kills}: {'; '.join(found.wrong)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
