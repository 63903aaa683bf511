"""The registry knows names without importing systems, and finds systems of other distributions."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import InputError
from trainers.systems import BUILT_IN, GROUP, RECIPES

Install = Callable[..., None]

COMPLETE = """
Config = FEED = PRESET = object
ROLES = frozenset()
def check(config, feed): ...
def files(config): return {}
def caveats(config): return ("outside",)
def build(config, *, make_engine, patches_per_step): ...
def weights_to_synthesizer(config, weights): ...
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with one module and its entry points on ``sys.path``."""

    def put(distribution: str, entries: dict[str, str], **modules: str) -> None:
        site = tmp_path / distribution
        facts = site / f"{distribution}-1.0.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}\n" for name, value in entries.items()]
        (facts / "entry_points.txt").write_text(f"[{GROUP}]\n{''.join(lines)}")
        for name, text in modules.items():
            (site / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(str(site))

    return put


def test_names_are_known_without_torch_or_any_system() -> None:
    program = (
        "import sys; from trainers.systems import RECIPES;"
        "assert len(RECIPES) == len(list(RECIPES)) and 'sgsgan' in RECIPES and 'nothing' not in RECIPES;"
        "print([m for m in sys.modules if m == 'torch' or m.startswith('trainers.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['trainers.systems']"


def test_built_in_systems_come_first_in_their_order() -> None:
    assert list(RECIPES)[: len(BUILT_IN)] == list(BUILT_IN)
    for name, module in BUILT_IN.items():
        assert RECIPES[name] is sys.modules[module]
    with pytest.raises(KeyError):
        RECIPES["nothing"]


def test_a_system_from_outside_is_found(install: Install) -> None:
    before = len(RECIPES)
    install("outside_one", {"outsider": "outsider_module"}, outsider_module=COMPLETE)
    assert "outsider" in RECIPES
    assert list(RECIPES)[-1] == "outsider"
    assert len(RECIPES) == before + 1
    assert "outsider_module" not in sys.modules, "listing imports nothing"
    assert list(RECIPES["outsider"].caveats(None)) == ["outside"]


@pytest.mark.parametrize(
    ("entries", "text", "found"),
    [
        ({"broken": "broken_module"}, "import no_such_library_anywhere", "ModuleNotFoundError"),
        ({"broken": "broken_module"}, "raise RuntimeError('two\\nlines')", "RuntimeError: two"),
        ({"broken": "broken_module"}, COMPLETE.replace("def files", "def other"), "it lacks files"),
        ({"broken": "broken_module"}, COMPLETE.replace("FEED = PRESET", "OTHER"), "it lacks FEED, PRESET"),
        ({"broken": "no_such_module_anywhere"}, COMPLETE, "ModuleNotFoundError"),
    ],
)
def test_a_system_that_cannot_be_used_is_refused_when_it_is_used(
    entries: dict[str, str], text: str, found: str, install: Install
) -> None:
    install("outside_broken", entries, broken_module=text)
    assert "broken" in RECIPES
    assert set(BUILT_IN) < set(RECIPES)
    assert RECIPES["sgsgan"].PRESET == "sgsgan"
    with pytest.raises(InputError, match=r"^CFG_SYSTEM system 'broken' of outside_broken: ") as refusal:
        RECIPES["broken"]
    assert found in refusal.value.found
    assert "\n" not in str(refusal.value)


def test_a_name_that_is_taken_is_refused_and_the_others_go_on(install: Install) -> None:
    install("outside_thief", {"sgsgan": "thief_module"}, thief_module=COMPLETE)
    assert list(RECIPES).count("sgsgan") == 1
    with pytest.raises(InputError, match="CFG_SYSTEM system 'sgsgan' of outside_thief: petscale itself"):
        RECIPES["sgsgan"]
    assert RECIPES["cascade"].PRESET == "cascade"


def test_two_distributions_with_one_name_are_refused(install: Install) -> None:
    install("outside_a", {"shared": "shared_module"}, shared_module=COMPLETE)
    install("outside_b", {"shared": "shared_module"}, shared_module=COMPLETE)
    with pytest.raises(InputError, match=r"CFG_SYSTEM system 'shared' .*several have that name"):
        RECIPES["shared"]
