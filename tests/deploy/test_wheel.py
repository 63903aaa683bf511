"""A wheel holds petscale alone, and works where the user has a storage, a trainers and a tune_spaces of their own."""

import ast
import base64
import csv
import doctest
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np
import pytest

import petscale
from petscale.cluster.installation import PACKAGES
from petscale.images import Image
from storage.reader import open_cohort
from storage.verification import verify

pytest.importorskip("hatchling", reason="needs hatchling, which builds the wheel")

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PYPROJECT["project"]["version"]
PAGE = ROOT / "docs/how-to-add-a-system.md"
ROOMS = {"storage", "trainers", "tune_spaces"}
INSIDE = "petscale._rooms"
MODULES = {"storage", "storage.suv", "storage.remote", "storage.remote.store", "trainers", "trainers.loop"}
CODE = {".py", ".j2", ".js", ".safetensors"}
BESIDE = (
    "storage/patients.xlsx",
    "deploy/supply/key.txt",
    "patients.csv",
    "storage/pet/IM0001",
    "trainers/weights.safetensors",
    "platform/petscale/scan.nii.gz",
)
HOSTILE = "raise SystemExit('the user has a {} too, and it was imported')\n"


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """The build hook, loaded as hatchling loads it."""
    spec = importlib.util.spec_from_file_location("hook", ROOT / "deploy/supply/wheel.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout in which more lies than code."""
    copy = tmp_path_factory.mktemp("checkout")
    target = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in target["packages"]:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    facts = [PYPROJECT["project"]["readme"], *PYPROJECT["project"]["license-files"]]
    for name in ("pyproject.toml", target["hooks"]["custom"]["path"], *facts):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for name in BESIDE:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    return copy


def built(kind: str, folder: Path) -> Path:
    """The wheel or sdist that hatchling makes of a folder."""
    words = [sys.executable, "-m", "hatchling", "build", "-t", kind]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(built("wheel", checkout))


def test_an_sdist_holds_code_alone_and_gives_the_same_wheel(
    checkout: Path, wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    with tarfile.open(built("sdist", checkout)) as archive:
        names = {PurePosixPath(name).relative_to(f"petscale-{VERSION}") for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    beside = {str(name) for name in names if name.suffix not in CODE}
    assert beside <= {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}
    assert not {str(name) for name in names} & set(BESIDE)
    again = zipfile.ZipFile(built("wheel", tmp_path / f"petscale-{VERSION}"))
    assert again.namelist() == wheel.namelist()
    assert all(again.read(name) == wheel.read(name) for name in wheel.namelist())


class Installed:
    """An environment with the wheel and this one's libraries; a folder in which the user has modules of our names."""

    def __init__(self, folder: Path, wheel: zipfile.ZipFile) -> None:
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv/bin/python"
        self.site = folder / "venv/lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        wheel.extractall(self.site)
        # A folder that is named so is not asked for .pth files of its own: nothing leads to the checkout.
        libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site / "libraries.pth").write_text("\n".join(sorted(libraries)))
        self.desk = folder / "desk"
        for name in ("storage/__init__.py", "trainers.py", "tune_spaces/__init__.py"):
            (self.desk / name).parent.mkdir(parents=True, exist_ok=True)
            (self.desk / name).write_text(HOSTILE.format(name))
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(self, *words: str) -> str:
        """Run Python with ``words`` in the user's folder, which is the first place that modules are looked for in."""
        command = [str(self.python), "-W", "ignore", *words]
        done = subprocess.run(command, cwd=self.desk, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def petscale(self, *words: str | Path) -> str:
        return self.run("-m", "petscale", *map(str, words))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: zipfile.ZipFile) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


@pytest.mark.parametrize(
    "after",
    [
        "from @storage.suv import x as y",
        "from @trainers import loop",
        "from  @storage.suv import (\n    x,  # from storage import\n)",
        "from \\\n  @storage.suv import x",
        "if True: from @trainers import loop; y = 1",
        "if TYPE_CHECKING:\n    from @trainers.loop import x",
        "import os, @storage.suv as y, re",
        "é = 1; from @storage import suv",
        'x = {"a": "@trainers.loop"}',
        "import_module('@storage.remote.store')",
        'def f():\n    """é, as ``@storage.suv.x``.\n\n    >>> from @storage.suv import x\n    """',
        '"""\n>>> from @trainers import (\n...     loop,\n... )\n>>> x()\n@storage.suv.E: no\n"""',
        '"""\n>>> import os; import @trainers.loop as l\n"""',
    ],
)
def test_names_of_the_moved_modules_are_completed(hook: ModuleType, after: str) -> None:
    assert hook.completed(after.replace("@", ""), MODULES) == after.replace("@", f"{INSIDE}.")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import storage", "import @storage as storage"),
        ("import storage.suv", "import @storage.suv as storage, @storage as storage"),
        ("import re, trainers.loop as l", "import re, @trainers.loop as l"),
    ],
)
def test_an_import_binds_what_it_bound(hook: ModuleType, before: str, after: str) -> None:
    assert hook.completed(before, MODULES) == after.replace("@", f"{INSIDE}.")


@pytest.mark.parametrize(
    "source",
    [
        "from . import storage\nfrom .storage import suv\nfrom mine.storage import suv",
        "import storage_of_mine, my.trainers",
        "storage = 1\nstorage.suv = f'{storage.suv}'",
        "x = ['storage', '--storage', 'trainers/loop.py', 'my.storage.suv', 'the storage. And', 'storage.zip']",
        '"""Of storage.  In trainers/loop.py, by ``my.storage.suv``; --storage.tsdb, storage.nothing, from storage."""',
        "# from storage import suv",
    ],
)
def test_what_is_no_name_of_theirs_stays(hook: ModuleType, source: str) -> None:
    assert hook.completed(source, MODULES) == source


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = 1\ny = 'python -m trainers.loop'", 2),
        ("x = f'storage.suv{1}'", 1),
        ("x = f'{1} trainers.loop'", 1),
        ("x = 'from storage import suv'", 1),
        ("x = ('a'\n  'b; import trainers')", 1),
        ("x = 'storage' '.suv'", 1),
        ("x = r'storage.suv'", 1),
        ("x: 'storage.suv.Name'", 1),
        ("\nimport_module('storage')", 2),
        ("importlib.util.find_spec('trainers')", 1),
        ("'''\n>>> import os, storage\n'''", 2),
    ],
)
def test_what_cannot_be_completed_is_refused_by_its_line(hook: ModuleType, source: str, line: int) -> None:
    with pytest.raises(ValueError, match=rf"^room/file\.py:{line}: "):
        hook.completed(source, MODULES, "room/file.py")


def test_a_wheel_that_cannot_be_written_anew_does_not_stay(hook: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("petscale/__init__.py", "")
        made.writestr("storage/suv.py", "command = 'python -m storage.suv'")
        made.writestr("a.dist-info/RECORD", "")
    before = path.read_bytes()
    wheel = hook.Wheel(str(tmp_path), {}, None, None, str(tmp_path), "wheel")
    wheel.finalize("editable", {}, str(path))
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match=r"^storage/suv\.py:1: "):
        wheel.finalize("standard", {}, str(path))
    assert not path.exists()


def test_the_page_names_the_wheel(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename
    assert f"wheelhouse/{Path(wheel.filename).name}" in (ROOT / "docs/how-to-python.md").read_text()


def test_the_wheel_holds_petscale_alone_and_every_file_of_the_checkout(wheel: zipfile.ZipFile) -> None:
    names = {PurePosixPath(name) for name in wheel.namelist()}
    assert {name.parts[0] for name in names} == {"petscale", f"petscale-{VERSION}.dist-info"}
    code = {name for name in names if name.parts[0] == "petscale"}
    tops = {"petscale": ROOT / "platform/petscale"} | {f"petscale/_rooms/{room}": ROOT / room for room in ROOMS}
    expected = {
        PurePosixPath(place) / path.relative_to(top)
        for place, top in tops.items()
        for path in top.rglob("*")
        if path.suffix in CODE
    }
    assert code - expected == {PurePosixPath("petscale/_rooms/__init__.py")}
    assert expected <= code


def test_the_record_has_every_file_with_its_digest(wheel: zipfile.ZipFile) -> None:
    rows = [*csv.reader(io.StringIO(wheel.read(f"petscale-{VERSION}.dist-info/RECORD").decode()))]
    assert [name for name, _, _ in rows] == wheel.namelist()
    assert len({*wheel.namelist()}) == len(rows)
    for name, digest, size in rows[:-1]:
        data = wheel.read(name)
        plain = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        assert (digest, size) == (f"sha256={plain}", str(len(data))), name
    assert rows[-1] == [f"petscale-{VERSION}.dist-info/RECORD", "", ""]


def imported(source: str) -> Iterator[str]:
    """Top-level names that Python would import, also in examples and where a string is a dotted name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"\w+(\.\w+)+", node.value):
                yield node.value.split(".")[0]
            for example in doctest.DocTestParser().get_examples(node.value) if ">>>" in node.value else ():
                yield from imported(example.source)


def test_nothing_in_it_imports_a_module_by_the_checkouts_name(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        if name.endswith(".py"):
            assert not ROOMS & {*imported(wheel.read(name).decode())}, name


def test_only_lines_that_name_a_module_differ_from_the_checkout(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        place = "platform" if not name.startswith("petscale/_rooms") else "."
        here = ROOT / place / name.removeprefix("petscale/_rooms/")
        if here.is_file() and name != "petscale/_rooms/__init__.py":
            assert wheel.read(name).replace(f"{INSIDE}.".encode(), b"") in (
                here.read_bytes(),
                here.read_bytes().replace(b"import storage\n", b"import storage as storage\n"),
            ), name


def test_it_is_what_a_cluster_is_sent(installed: Installed) -> None:
    program = "from petscale.cluster.installation import *; import json; print(json.dumps([code(), PACKAGES]))"
    code, packages = json.loads(installed.run("-c", program))
    assert [Path(name).name for name in code["py_modules"]] == packages == ["petscale"]
    assert {*PACKAGES} == {"petscale", *ROOMS}, "of a checkout, all four"


def test_cohorts_and_weights_of_a_checkout_work_in_it_and_its_own_in_a_checkout(
    installed: Installed, cohort: Path
) -> None:
    assert installed.petscale("--version") == f"petscale {VERSION}\n", "no commit: it knows no checkout"
    assert f"{cohort}: 4 cases, whole" in installed.petscale("verify", cohort)
    shape = ["--body.shape", "16", "40", "48", "--body.spacing-mm", "4", "4", "4"]
    slab = ["--body.axial-coverage", "0.5", "0.55"]
    scan = ["--drf", "20", "--scan", "uexplorer", "--scan.iterations", "1"]
    installed.petscale("phantom", "cohort", "--cases", "1", *scan, *shape, *slab)
    assert verify(installed.desk / "cohort") == {}
    (case,) = open_cohort(installed.desk / "cohort").cases
    low = petscale.open_cohort(installed.desk / "cohort")[case]["low_drf20"]
    low.save(installed.desk / "low.nii.gz")
    installed.petscale("apply", "restore-small", "low.nii.gz", "--drf", "20", "--output", "restored")
    restored = Image.open(installed.desk / "restored/low.nii.gz")
    assert np.array_equal(restored.voxels, petscale.apply("restore-small", low, drf=20).voxels)


def test_a_users_error_is_one_line_there_too(installed: Installed) -> None:
    program = """if True:
        import petscale
        try:
            petscale.open_cohort("nothing")
        except petscale.InputError as error:
            print(error)
    """
    assert installed.run("-c", program).startswith("STORE_NONE nothing: ")


def test_a_system_from_outside_is_written_alike_for_both(installed: Installed) -> None:
    """The page's own, beside the wheel; tests/trainers/test_how_to_add_a_system.py trains it in a checkout."""
    toml, python = (
        re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.S | re.M)[0] for kind in ("toml", "python")
    )
    project = tomllib.loads(toml)["project"]
    ((system, module),) = project["entry-points"]["petscale.systems"].items()
    facts = installed.site / f"{project['name']}-{project['version']}.dist-info"
    facts.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (facts / "METADATA").write_text(head)
    (facts / "entry_points.txt").write_text(f"[petscale.systems]\n{system} = {module}\n")
    (installed.site / f"{module}.py").write_text(python)
    program = f"""if True:
        from petscale import systems
        parts = [getattr(systems, name) for name in systems.__all__]
        found = systems.RECIPES["{system}"]
        print(found.caveats(found.Config())[0])
        print(systems.RECIPES["restore"].__name__)
    """
    told, restore = installed.run("-c", program).splitlines()
    assert told.startswith("A residual U-Net of 16 channels")
    assert restore == f"{INSIDE}.trainers.systems.restore"
