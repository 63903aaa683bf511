"""Processor time of `petscale --help` and `petscale verify`, beside the help of Ray's and Optuna's command lines.

    python benchmarks/start_up.py [--runs 9]

Each command is a process of its own, run in turn so that all meet the same machine.  The figure is user and system time
of the process (not the time on the clock), the median over the runs, after one run that is not counted.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from petscale.data.phantom import phantom_plans
from storage.ingest import ingest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig


def processor_s(words: list[str]) -> float:
    """User and system time of one process, in seconds."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    petscale = str(Path(sys.executable).with_name("petscale"))
    with tempfile.TemporaryDirectory() as folder:
        body = PhantomConfig(shape=(32, 24, 24), spacing_mm=(30.0, 15.0, 15.0))
        ingest(Path(folder), phantom_plans(2, body, LowDoseConfig(iterations=1), [20.0]), strict=True)
        commands = {
            "petscale --help": [petscale, "--help"],
            "petscale verify": [petscale, "verify", folder],
            "python -c 'import numpy'": [sys.executable, "-c", "import numpy"],
            "optuna --help": [str(Path(sys.executable).with_name("optuna")), "--help"],
            "ray --help": [str(Path(sys.executable).with_name("ray")), "--help"],
        }
        found: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(runs + 1):
            for name, words in commands.items():
                spent = processor_s(words)
                if number:
                    found[name].append(spent)
    peer = statistics.median(found["optuna --help"])
    print("| command | processor time [s], median (min to max) | of Optuna's |\n|---|---|---|")
    for name, spent in found.items():
        middle = statistics.median(spent)
        print(f"| `{name}` | {middle:.2f} ({min(spent):.2f} to {max(spent):.2f}) | {middle / peer:.2f} |")


if __name__ == "__main__":
    main()
