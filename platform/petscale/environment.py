"""Versions and hardware as runs and reports state them; nothing that names the machine or its user."""

import platform
import subprocess
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psutil

UNKNOWN = "unknown"


def environment() -> dict[str, str]:
    """Return versions, the checkout's commit where there is one, and hardware."""
    import torch  # not needed by those who only read what a run was trained with

    packages = ("petscale", "torch", "deepspeed", "ray", "zarr", "tensorstore")
    found = commit()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **({"commit": found} if found != UNKNOWN else {}),
        "processor": platform.machine(),
        "cores": str(psutil.cpu_count()),
        **({"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }


def commit() -> str:
    """Return the commit of this very file's checkout; ``unknown`` for an installed package, even inside another one."""
    git: Callable[..., str] = partial(
        subprocess.check_output, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL
    )
    try:
        git(["git", "ls-files", "--error-unmatch", Path(__file__).name])
        return git(["git", "describe", "--always", "--dirty"]).strip()
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
