"""Versions and hardware as runs and reports state them; nothing that names the machine or its user."""

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Return versions, the checkout's commit where there is one, and hardware."""
    import torch  # not needed by those who only read what a run was trained with

    packages = ("petscale", "torch", "deepspeed", "ray", "zarr", "numcodecs")
    found = commit()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **({"commit": found} if found else {}),
        "processor": platform.machine(),
        "cores": str(psutil.cpu_count()),
        **({"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }


def commit(checkout: Path = CHECKOUT) -> str:
    """Return a checkout's commit, and whether tracked files have changed since; empty where there is no checkout.

    Args:
        checkout: the folder that holds the code's repository, if any does.
    """
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return ""

    def asked(*words: str) -> str:
        command = [git, "--no-optional-locks", "-C", str(checkout), *words]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=20)  # noqa: S603  (our own words)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return ended.stdout.strip() if ended.returncode == 0 else ""

    found = asked("rev-parse", "--short=12", "HEAD")
    changed = ", with changes" if asked("status", "--porcelain", "--untracked-files=no") else ""
    return f"{found}{changed}" if found else ""
