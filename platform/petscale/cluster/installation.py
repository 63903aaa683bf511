"""This installation's code and library versions: what a cluster is sent, and the check that all nodes run the same."""

import atexit
import hashlib
import importlib.metadata
import importlib.util
import platform
import shutil
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import storage
from petscale.cluster.nodes import on_every_node
from storage.errors import InputError
from storage.integrity import scratch

ALIKE = ("ray", "torch", "deepspeed", "numpy", "zarr", "numcodecs", "dask", "optuna")

# The four of a checkout; in a wheel petscale holds the others (deploy/supply/wheel.py).
PACKAGES = ("petscale", "storage", "trainers", "tune_spaces") if storage.__name__ == "storage" else ("petscale",)

CODE = (".py", ".j2", ".js")
WEIGHTS = "weights"  # petscale's folder of those that come with it


def code() -> dict[str, Any]:
    """Ray's runtime environment that sends all packages together, so that no node keeps an older one.

    Modules alone and no working folder, and of them files of code alone: someone's folder may hold more than that.
    """
    return {"py_modules": [str(_copies() / package) for package in PACKAGES]}


@cache
def _copies() -> Path:
    """Folder of the packages' files of code, for as long as this process lives."""
    held = ExitStack()
    copies = held.enter_context(scratch(prefix="petscale-code-"))
    atexit.register(held.close)
    for package in PACKAGES:
        for path in _files(package):
            copy = copies / package / path.relative_to(_folder(package))
            copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copyfile(path, copy)
    return copies


def _files(package: str) -> list[Path]:
    """Return the package's files of code and the weights that come with it, in order."""
    found = [path for path in sorted(_folder(package).rglob("*")) if path.suffix in CODE and path.is_file()]
    return found + sorted((_folder(package) / WEIGHTS).glob("*.safetensors"))


def _folder(package: str) -> Path:
    """Without importing it: that would load torch on every node."""
    spec = importlib.util.find_spec(package)
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def code_digest() -> str:
    """Digest of petscale's own source as this process imports it."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        folder = _folder(package)
        for path in _files(package):
            digest.update(f"{package}/{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """What decides the digits of a result on this machine, and petscale's own code."""
    return {
        "petscale": code_digest(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ALIKE},
    }


def check_alike() -> None:
    """Refuse a cluster whose nodes run other code than this process.

    Raises:
        InputError: CLU_VERSIONS, CLU_NODE_SILENT.
    """
    ours = versions()
    for node, theirs in on_every_node(versions).items():
        if other := [f"{name} {theirs[name]}, here {ours[name]}" for name in ours if theirs[name] != ours[name]]:
            raise InputError(
                "CLU_VERSIONS",
                where=f"node {node}",
                found="; ".join(other),
                remedy="install the same versions on all nodes: ray down, ray up --no-config-cache with one checkout",
            )
