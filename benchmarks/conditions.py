"""Of which commit and on which processor something is measured, as results keep it."""

import os
import subprocess
from pathlib import Path


def commit() -> str:
    """Return the checkout's commit, short; empty outside of a checkout."""
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return told.stdout.strip()


def hardware() -> str:
    """Return the number of cores and the processor's name."""
    cpu = Path("/proc/cpuinfo")
    models = [line.partition(": ")[2] for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {models[0] if models else 'a processor'}"
