"""The rules of the repository, run as tests: what the packages may hold, import and never contain."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
PACKAGES = ("platform", "storage", "trainers", "tune_spaces")
CODE = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
GROWN = (".git", ".venv", "demo", "runs", "dist", "site", "__pycache__")  # what tools and runs leave in a checkout


def committed() -> Iterator[Path]:
    """Text files of the repository; caches, environments and results are not."""
    for top in sorted(ROOT.iterdir()):
        if top.name in GROWN or top.name.endswith(("_cache", ".egg-info")) or top.name == ".hypothesis":
            continue
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".png", ".pyc"):
                yield path


@cache
def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_platform_holds_petscale_alone() -> None:
    """An ``__init__.py`` there would shadow the standard library's ``platform``, and with it ray and pytest."""
    assert {path.name for path in (ROOT / "platform").iterdir()} - {"__pycache__"} == {"petscale"}


def test_tests_hold_no_init() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_folder_is_named_like_a_library() -> None:
    """``platform/deepspeed`` would be importable as an empty namespace package."""
    libraries = {name.lower() for name in re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M)}
    libraries |= set(sys.stdlib_module_names) - {"platform"}
    folders = {path.name for top in (ROOT, ROOT / "platform") for path in top.iterdir() if path.is_dir()}
    assert not (folders - set(GROWN)) & libraries


def test_no_catch_all_module() -> None:
    assert not {path.stem for path in CODE} & {"utils", "util", "helpers", "helper", "common", "base", "misc", "core"}


@pytest.mark.parametrize(
    "pattern",
    [
        r"weights_only\s*=\s*False",
        r"allow_pickle\s*=\s*True",
        r"shell\s*=\s*True",
        r"\byaml\.(unsafe_|full_)?load\b",
        r"\bimport pickle\b|\bfrom pickle\b|\bpickle\.loads?\b",
        r"(?<![.\w])(eval|exec)\((?!\))",
        r"https?://(?!\{LOOPBACK\})",
        r"np\.random\.(seed|rand|randn|normal|default_rng)\b",
    ],
)
def test_code_never_says(pattern: str) -> None:
    """Foreign pickles, shells, the network and global random numbers; an address is cited by doi or arXiv number."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*CODE, *(ROOT / "platform").rglob("*.j2")]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found


def test_no_path_of_a_machine() -> None:
    """The folder of this checkout, this user's home and the like are nobody else's."""
    own = [str(path) for path in (ROOT, Path.home()) if len(path.parts) > 2]
    machine = re.compile("|".join([*map(re.escape, own), r"(?<![\w.*])/(work|root|Users|mnt)/\w"]))
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in committed()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if machine.search(line)
    ]
    assert not found


@pytest.mark.parametrize(
    ("library", "places"),
    [
        ("deepspeed", {"trainers/engine.py"}),
        (
            "ray",
            {
                *(f"platform/petscale/cluster/{name}.py" for name in ("connection", "nodes", "placement", "session")),
                "platform/petscale/cluster/shared_storage.py",
                "platform/petscale/doctor/__init__.py",
                "platform/petscale/training/driver.py",
                "platform/petscale/training/ranks.py",
                "platform/petscale/training/metrics_export.py",
                "platform/petscale/tuning/search.py",
            },
        ),
        (
            "pydicom",
            {
                *(f"storage/dicom_{part}.py" for part in ("dynamic", "header", "seg", "series", "slice", "write")),
                *("storage/dicom_seg_write.py", "storage/dicom.py", "storage/enhanced.py", "storage/rtstruct.py"),
            },
        ),
        ("highdicom", {"storage/dicom_seg.py", "storage/dicom_seg_write.py"}),
        (
            "nibabel",
            {
                f"{place}.py"
                for place in (
                    "storage/nifti",
                    "storage/ome_zarr",
                    "platform/petscale/images",
                    "platform/petscale/reporting/pictures",
                )
            },
        ),
        ("numcodecs", {"storage/layout.py", "storage/shards.py"}),
    ],
)
def test_a_library_is_imported_in_its_places_only(library: str, places: set[str]) -> None:
    assert {str(path.relative_to(ROOT)) for path in CODE if library in imported(path)} <= places


def test_imports_run_downwards(tmp_path: Path) -> None:
    """The contracts of pyproject.toml, as ``make lint`` checks them."""
    settings, cache = str(ROOT / "pyproject.toml"), str(tmp_path)
    assert lint_imports(config_filename=settings, cache_dir=cache) == 0
