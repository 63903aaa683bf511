"""``petscale.systems`` gives systems outside the tree the modules and classes of the tree, one name for each."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from petscale import systems
from storage.ranges import Range
from trainers import assembly, recipe


def test_its_names_are_the_trees_own_things() -> None:
    assert systems.assembly is assembly
    assert systems.Range is Range
    assert all(getattr(systems, name) is not None for name in systems.__all__)
    assert {*systems.__all__} <= {*dir(systems)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = systems.nothing


def test_it_has_the_whole_contract() -> None:
    classes = {name: thing for name, thing in vars(recipe).items() if inspect.isclass(thing)}
    assert {name for name, thing in classes.items() if thing.__module__ == recipe.__name__} <= {*systems.__all__}


def test_a_checker_of_types_sees_what_is_there() -> None:
    """The imports that only a checker reads are of the modules that the names come from."""
    tree = ast.parse(Path(systems.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module
        for alias in node.names:
            module = importlib.import_module(node.module)
            part = f"{node.module}.{alias.name}"
            told[alias.name] = getattr(module, alias.name, None) or importlib.import_module(part)
    assert told == {name: getattr(systems, name) for name in systems.__all__}


def test_the_tree_does_not_import_it() -> None:
    """It is for others: in the tree a module is imported by its own name."""
    root = Path(__file__).parents[2]
    code = [path for room in ("platform", "storage", "trainers", "tune_spaces") for path in (root / room).rglob("*.py")]
    assert not [path for path in code if "petscale.systems import" in path.read_text() and path.name != "systems.py"]


def test_nothing_is_loaded_before_a_name_is_used() -> None:
    heavy = ("torch", "numpy", "trainers", "storage")
    program = f"import sys, petscale.systems; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
