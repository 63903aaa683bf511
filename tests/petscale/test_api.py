"""The Python API: its examples run as they are written, a name costs nothing before it is used, mistakes have codes."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import petscale
from petscale import api, commands
from petscale import config as configs
from petscale.images import Image
from storage.errors import InputError
from storage.source import Grid

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to-python.md"
MODULES = (
    "storage.ranges",
    "storage.internals",
    "storage.randomness",
    "petscale.splits",
    "petscale.config",
    "petscale.images",
    "petscale.api.cohorts",
    "petscale.api.training",
    "petscale.api.results",
    "petscale.api.comparing",
    "petscale.api.cards",
    "petscale.api.tuning",
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FIRST_SLOW = "petscale.api.training.configure"  # from here on Ray starts


def examples() -> list[doctest.DocTest]:
    """Examples of all modules that there are, in the order in which they are written."""
    found: list[doctest.DocTest] = []
    for name in MODULES:
        if importlib.util.find_spec(name) is not None:
            tests = [test for test in doctest.DocTestFinder().find(importlib.import_module(name)) if test.examples]
            assert tests, f"{name} has no example"
            found += sorted(tests, key=lambda test: test.lineno or 0)
    return found


@dataclass
class Desk:
    """A folder and the names that examples share."""

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self, tests: list[doctest.DocTest], monkeypatch: pytest.MonkeyPatch) -> str:
        """Run examples in the folder; returns what differs from what is written."""
        monkeypatch.chdir(self.folder)
        told: list[str] = []
        runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
        for test in tests:
            if test.name.startswith(("petscale.api", "petscale.images")):
                test.globs = self.names  # others have their module's own
            runner.run(test, out=told.append, clear_globs=False)
        return "".join(told)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


def test_examples_of_images_and_cohorts(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = examples()
    first_slow = [test.name for test in tests].index(FIRST_SLOW)
    assert not desk.run(tests[:first_slow], monkeypatch)


@pytest.mark.slow
def test_examples_of_training_and_results_and_the_page(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the examples before them: in the same folder, with the same names."""
    tests = examples()
    first_slow = [test.name for test in tests].index(FIRST_SLOW)
    if "made" not in desk.names:
        assert not desk.run(tests[:first_slow], monkeypatch)
    assert not desk.run(tests[first_slow:], monkeypatch)
    monkeypatch.chdir(desk.folder)
    blocks = re.findall(r"(<!-- not run:[^>]*-->\n)?```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert sum(not skip for skip, _ in blocks) > 3
    names: dict[str, Any] = {}
    for skip, block in blocks:
        compiled = compile(block, str(PAGE.name), "exec")
        if not skip:
            exec(compiled, names)


def test_every_name_is_there_and_has_an_example() -> None:
    written = " ".join(test.name for test in examples())
    for name in petscale.__all__:
        thing = getattr(petscale, name)
        assert inspect.getdoc(thing), name
        if thing.__module__.startswith(("petscale.api", "petscale.images")):
            assert f"{thing.__module__}.{name}" in written, name
    assert set(petscale.__all__) <= set(dir(petscale))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = petscale.nothing


def test_the_functions_are_no_modules_whatever_was_imported_before() -> None:
    """A folder of petscale with the name of a function would take its place once it is imported."""
    importlib.import_module("petscale.cli")
    importlib.import_module("petscale.reporting.run")
    importlib.import_module("petscale.tuning.sweep")
    assert not [name for name in petscale.__all__ if inspect.ismodule(getattr(petscale, name))]


def test_an_import_costs_nothing() -> None:
    heavy = ("torch", "ray", "numpy", "pandas", "nibabel", "zarr", "storage", "petscale.api")
    code = f"import sys, petscale; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_cohort_is_opened_without_torch() -> None:
    code = "import sys, petscale; petscale.open_cohort, petscale.Image; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


FOR_A_TERMINAL = {  # what files and a screen need
    "phantom": {"layout", "scanner"},  # in Python the scanner's scan itself is given
    "simulate": {"scanner"},
    "ingest": {"dry_run"},
    "synthesize": {"output", "case", "deviation"},
    "inspect": {"cases", "json"},
    "compare": {"json"},
    "best": {"json"},
}


@pytest.mark.parametrize(
    "name",
    [
        "phantom",
        "simulate",
        "ingest",
        "inspect",
        "compare",
        "export",
        "remove",
        "synthesize",
        "card",
        "evaluate",
        "calibrate",
        "best",
        "report",
        "score",
    ],
)
def test_options_and_defaults_are_the_command_s(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (api, commands))
    assert set(theirs) - set(ours) == FOR_A_TERMINAL.get(name, set())
    assert set(ours) <= set(theirs)
    for option, parameter in ours.items():
        assert parameter.default == theirs[option].default, option


def test_a_card_is_applied_to_one_scan_with_the_command_s_options() -> None:
    ours, theirs = (inspect.signature(module.apply).parameters for module in (api, commands))
    assert set(theirs) - set(ours) == {"scans", "output", "table"}
    assert set(ours) - set(theirs) == {"scan"}
    assert all(ours[option].default == theirs[option].default for option in set(ours) & set(theirs))


@pytest.mark.parametrize(
    ("name", "options"),
    [("train", commands.TrainOptions), ("folds", commands.FoldsOptions), ("tune", commands.TuneOptions)],
)
def test_options_and_defaults_of_training_are_the_command_s(name: str, options: type) -> None:
    ours, theirs = inspect.signature(getattr(api, name)).parameters, inspect.signature(options).parameters
    assert set(theirs) - set(ours) == {"set"}  # fields, as values
    assert set(ours) - set(theirs) == {"fields"}
    for option in set(ours) & set(theirs) - {"recipe", "defaults"}:  # None: that of the configuration, else the same
        assert ours[option].default == theirs[option].default, option


def test_a_configuration_starts_from_a_file_a_value_or_a_system(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("recipe: {name: s3pet, dim: 48}\nloop.log_every: 5\n")
    for base in (tmp_path / "mine.yaml", str(tmp_path / "mine.yaml"), configs.read(tmp_path / "mine.yaml")):
        made = petscale.configure({"loop.seed": 3}, config=base, workers=2)
        assert (made.recipe, made.model.dim, made.loop.log_every, made.loop.seed) == ("s3pet", 48, 5, 3)
        assert made.cluster.workers == 2
    assert petscale.configure(defaults="paper") == petscale.RunConfig()
    assert petscale.configure() == configs.from_json({"recipe": {"name": "sgsgan", "defaults": "practice"}})
    assert petscale.configure(recipe="red_cnn") == configs.from_json({"recipe": "red_cnn"})
    with pytest.raises(petscale.InputError, match="CFG_NO_EFFECT defaults"):
        petscale.configure(config=petscale.RunConfig(), defaults="practice")


@pytest.mark.parametrize(
    ("fields", "options", "code"),
    [
        ({"loop.log_every": 0}, {}, "CFG_RANGE"),
        ({"loop.log_evry": 1}, {}, "CFG_FIELD"),
        ({"loop": {"log_every": 1}}, {}, "CFG_SET"),
        ({}, {"recipe": "sgsgun"}, "CFG_RECIPE"),
        ({}, {"recipe": "s3pet", "config": configs.RunConfig()}, "CFG_CONTRADICTION"),
        ({"cluster.workers": 1}, {"workers": 2}, "CFG_CONTRADICTION"),
        ({}, {"workers": 3}, "CFG_WORKERS"),
        ({}, {"config": "nowhere.json"}, "CFG_NO_FILE"),
    ],
)
def test_a_wrong_configuration_is_refused(fields: dict[str, Any], options: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as refused:
        petscale.configure(fields, **options)
    assert refused.value.code == code


def test_a_batch_tells_what_was_refused(tmp_path: Path) -> None:
    """One good and one damaged examination: the first is committed, the second is named with its code."""
    for name in ("a", "b"):
        (tmp_path / "scans" / name).mkdir(parents=True)
    voxels = np.random.default_rng(0).gamma(2.0, 1.0, (32, 24, 24)).astype(np.float32)
    image = Image(voxels, Grid((32, 24, 24), np.diag([10.0, 10.0, 10.0, 1.0])))
    image.save(tmp_path / "scans/a/pet.nii.gz")
    (tmp_path / "scans/b/pet.nii.gz").write_bytes(b"")
    result = petscale.ingest(tmp_path / "scans", tmp_path / "cohort", pet="pet.nii.gz", names="folder")
    assert (result.committed, result.kept, list(result.cohort)) == (("a",), (), ["a"])
    assert {name: error.code for name, error in result.refused.items()} == {"b": "NII_EMPTY"}
    np.testing.assert_array_equal(result.cohort["a"]["full"].voxels, image.voxels)
    with pytest.raises(InputError, match="NII_EMPTY"):
        petscale.ingest(tmp_path / "scans/b/pet.nii.gz", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_cohort_behaves_as_a_dict(cohort: Path) -> None:
    opened = petscale.open_cohort(cohort)
    assert list(opened) == list(opened.cases)
    assert len(opened) == 4
    case = opened[opened.cases[0]]
    assert list(case) == list(case.images)
    assert ("full" in case, "none" in case, len(case)) == (True, False, len(case.images))
    table = opened.table()
    assert len(table) == 4 * len(case)
    assert set(table[table["image"] == "labels"]["labels"]) == {", ".join(case.labels.values())}
    full = table[(table["case"] == case.name) & (table["image"] == "full")].iloc[0]
    assert (full["voxels_z"], full["voxels_y"], full["voxels_x"]) == case["full"].grid.shape
    for wrong in (lambda: opened["nobody"], lambda: case["nothing"]):
        with pytest.raises(InputError, match="SET_NO_"):
            wrong()


def test_synthesize_takes_files_and_images_alike(run: Path, scans: Path, tmp_path: Path) -> None:
    from petscale.cli import main

    main(["synthesize", str(run), str(scans / "suv.nii.gz"), "--output", str(tmp_path / "out.nii.gz")])
    written = Image.open(tmp_path / "out.nii.gz")
    for source in (scans / "suv.nii.gz", str(scans / "suv.nii.gz"), Image.open(scans / "suv.nii.gz")):
        made = petscale.synthesize(run, source)
        np.testing.assert_array_equal(made.voxels, written.voxels)
        assert made.grid.matches(written.grid)
        assert made.units == "SUVbw"
    activity = petscale.synthesize(run, scans / "bqml.nii", units="Bq/mL", weight_kg=70, dose_mbq=300)
    np.testing.assert_allclose(activity.voxels, written.voxels, rtol=1e-3, atol=0.02 * written.voxels.mean())
    series = petscale.synthesize(run, scans / "pet")
    assert series.grid.matches(written.grid)
    with pytest.raises(InputError, match="SET_WRONG_UNITS"):
        petscale.synthesize(run, Image(written.voxels, written.grid, "HU"))


def test_detection_without_its_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CFG_SET"):
        petscale.evaluate(tmp_path, tmp_path, within=["liver"])


def test_a_page_is_framed_whole(tmp_path: Path) -> None:
    import html

    text = '<html><body title="a & b">\'x\' "y" <script>1 < 2</script></body></html>'
    (tmp_path / "page.html").write_text(text)
    shown = petscale.Page(tmp_path / "page.html")._repr_html_()
    found = re.fullmatch(r'<iframe srcdoc="([^"]*)" style="[^"]*"></iframe>', shown)
    assert found
    assert html.unescape(found.group(1)) == text
