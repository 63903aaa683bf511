"""What a library does not promise to keep is asked for in one way, and its absence is a coded error."""

import ast
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.errors import InputError
from storage.internals import internal

ROOT = Path(__file__).parents[2]
LIBRARIES = ("ray", "deepspeed", "optuna", "zarr", "dask", "numcodecs")


def test_an_attribute_is_found_by_its_path() -> None:
    owner = SimpleNamespace(a=SimpleNamespace(_b=3))
    assert internal(owner, "a._b", "numpy") == 3


def test_what_is_missing_is_told_by_library_version_and_name() -> None:
    with pytest.raises(InputError, match=r"CFG_LIBRARY numpy [\d.]+: it has no a\._b") as refused:
        internal(SimpleNamespace(a=SimpleNamespace()), "a._b", "numpy")
    assert "constraints.txt" in refused.value.remedy


def test_private_modules_of_libraries_are_imported_nowhere_else() -> None:
    """An ``import ray.x._internal`` would end in a traceback with another version."""
    found = []
    for path in (p for top in ("platform", "storage", "trainers", "tune_spaces") for p in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [f"{path.name}: {name}" for name in names if re.match(rf"({'|'.join(LIBRARIES)})\b.*\._", name)]
    assert not found


@pytest.mark.parametrize(
    ("module", "path", "library"),
    [
        ("ray.train.v2._internal.callbacks.placement_group_callback", "PlacementGroupCleanerCallback", "ray"),
        ("ray.train.v2._internal.callbacks.datasets", "DatasetsCallback", "ray"),
        ("ray._private.state", "available_resources_per_node", "ray"),
        ("ray.train.torch", "TorchTrainer._create_default_callbacks", "ray"),
        ("deepspeed.ops", "__compatible_ops__", "deepspeed"),
    ],
)
def test_the_pinned_versions_have_what_is_asked_for(module: str, path: str, library: str) -> None:
    assert internal(importlib.import_module(module), path, library) is not None
