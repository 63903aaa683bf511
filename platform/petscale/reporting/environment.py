"""Versions and hardware as every report states them; nothing that names the machine or its user."""

import platform
from importlib.metadata import version

import psutil
import torch


def environment() -> dict[str, str]:
    """Versions and hardware, nothing that names the machine or its user."""
    packages = ("petscale", "torch", "deepspeed", "ray", "zarr", "tensorstore")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "processor": platform.machine(),
        "cores": str(psutil.cpu_count()),
        **({"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }
