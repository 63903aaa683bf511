"""Options made from configurations: one language for the command line, files and ``--set``, and no contradiction."""

import dataclasses
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from petscale import config as configs
from petscale.cli import main, parse
from petscale.commands import COMMANDS, ScannerName
from petscale.config import RunConfig
from storage.errors import InputError
from storage.lowdose import SCANNERS, LowDoseConfig
from storage.phantom import ADULT, PhantomConfig
from trainers.systems import BUILT_IN, RECIPES

LIGHT = {"torch", "ray", "deepspeed", "zarr", "dask", "scipy", "numcodecs", "nibabel", "pydicom", "optuna", "pandas"}


def composed(*words: str) -> RunConfig:
    """What a command composes, without running it."""
    _, arguments = parse(["train", "c", "--run", "r", *words])
    config = arguments["config"]
    assert isinstance(config, RunConfig)
    return config


def test_without_options_a_command_composes_the_systems_defaults() -> None:
    for name in BUILT_IN:
        paper = configs.from_json({"recipe": name})
        practice = configs.from_json({"recipe": {"name": name, "defaults": "practice"}})
        assert composed("--recipe", name) == composed("--recipe", name, "--defaults", "practice") == practice
        assert composed("--recipe", name, "--defaults", "paper") == paper
        assert (practice == paper) == (not configs.practice_of(name))
    assert composed() == composed("--recipe", "sgsgan")


def test_a_file_states_its_own_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: {name: sgsgan, lambda_content: 50}")
    paper = composed("--config", str(file))
    assert paper == composed("--defaults", "paper", "--recipe.lambda-content", "50")
    file.write_text("recipe: {name: sgsgan, lambda_content: 50, defaults: practice}\nfeed.beyond: air")
    assert composed("--config", str(file)) == composed("--recipe.lambda-content", "50", "--feed.beyond", "air")


def test_an_option_a_setting_and_a_file_say_the_same(tmp_path: Path) -> None:
    wanted = configs.with_fields(
        configs.from_json({"recipe": "cg_3dsrgan"}),
        {
            "recipe.doses": (4.0, 20.0),
            "recipe.classify": False,
            "recipe.lambda_l1": 50.0,
            "feed.source": ("low_drf4", "low_drf20"),
            "loop.log_every": 3,
        },
    )
    recipe = ["--recipe", "cg_3dsrgan"]
    options = ["--recipe.doses", "4", "20", "--recipe.classify", "False", "--recipe.lambda-l1", "50"]
    options += ["--feed.source", "low_drf4", "low_drf20", "--loop.log-every", "3"]
    assert composed(*recipe, *options) == wanted
    settings = ["recipe.doses=4,20", "recipe.classify=False", "recipe.lambda_l1=50"]
    assert composed(*recipe, "--set", *settings, "feed.source=low_drf4,low_drf20", "loop.log_every=3") == wanted
    content = {
        "recipe": {"name": "cg_3dsrgan", "doses": [4, 20], "classify": False, "lambda_l1": 50},
        "feed.source": ["low_drf4", "low_drf20"],
        "loop": {"log_every": 3},
    }
    for name, text in (("a.json", json.dumps(content)), ("a.yaml", yaml.safe_dump(content))):
        (tmp_path / name).write_text(text)
        assert composed("--config", str(tmp_path / name)) == wanted
        assert composed(*recipe, "--config", str(tmp_path / name), "--loop.log-every", "5").loop.log_every == 5


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_field_of_every_system_has_an_option_that_takes_its_value_back(name: str) -> None:
    model = RECIPES[name].Config()
    words = ["--recipe", name]
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        told = [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
        words += [f"--recipe.{field.name.replace('_', '-')}", *told]
    assert composed(*words).model == model


def test_what_a_run_records_is_read_back_under_the_same_names(tmp_path: Path) -> None:
    config = composed("--recipe", "s3pet", "--recipe.gamma", "2")
    (tmp_path / "config.json").write_text(json.dumps({"config": configs.to_json(config), "command": "petscale train"}))
    assert composed("--config", str(tmp_path / "config.json")) == config
    assert configs.to_json(config)["recipe"]["name"] == "s3pet"
    assert configs.to_json(config)["recipe"]["gamma"] == 2.0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--recipe", "s3pet", "--config", "{file}"], "CFG_CONTRADICTION --recipe: both 's3pet' and 'sgsgan'"),
        (["--set", "loop.log_every=3", "--loop.log-every", "4"], "CFG_CONTRADICTION loop.log_every: both 3 and 4"),
        (["--workers", "2", "--cluster.workers", "1"], "CFG_CONTRADICTION --workers: both 2 and 1"),
        (["--recipe", "s3pett"], "CFG_RECIPE recipe: unknown 's3pett'; did you mean 's3pet'?"),
        (["--feed.cases-per-step", "0"], "CFG_RANGE feed.cases_per_step: 0; give 1 or more"),
        (["--split.test-fraction", "1"], "CFG_RANGE split.test_fraction: 1.0; give from 0 to below 1"),
        (["--cluster.workers", "3"], "CFG_WORKERS cluster.workers"),
        (["--set", "loop.log_evry=3"], "CFG_FIELD --set loop: unknown 'log_evry'; did you mean 'log_every'?"),
        (["--config", "absent.yaml"], "CFG_NO_FILE absent.yaml"),
        (["--config", "{file}", "--defaults", "paper"], "CFG_NO_EFFECT --defaults: given beside --config"),
        (["--defaults", "practise"], "CFG_VALUE recipe.defaults: unknown 'practise'; did you mean 'practice'?"),
        (["--config", "{broken}"], "CFG_JSON broken.yaml: not YAML"),
    ],
)
def test_contradictions_and_mistakes_are_coded(words: list[str], line: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"recipe": "sgsgan"}')
    (tmp_path / "broken.yaml").write_text("a: [")
    places = {"{file}": str(tmp_path / "mine.json"), "{broken}": str(tmp_path / "broken.yaml")}
    with pytest.raises(InputError) as refused:
        composed(*(places.get(word, word) for word in words))
    assert str(refused.value).startswith(line)


def test_saying_the_same_twice_is_no_contradiction() -> None:
    assert composed("--set", "loop.log_every=4", "--loop.log-every", "4").loop.log_every == 4
    assert composed("--workers", "2", "--cluster.workers", "2").cluster.workers == 2


def test_an_unknown_option_is_told_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"^CFG_ARGUMENT .*did you mean --recipe\.lambda-content"):
        composed("--recipe.lambda-contnt", "3")


def test_the_help_of_a_system_shows_its_fields_defaults_ranges_and_sections(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["train", "--recipe", "s3pet", "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--recipe.lambda-rec FLOAT" in shown
    assert "(default: 5.0)" in shown
    assert "lambda_2 of Eq. 5 (Sec. IV-A)" in shown
    assert "(1 or more)" in shown
    assert "--recipe.lambda-content" not in shown  # SGSGAN's


@pytest.mark.parametrize("words", [["phantom", "c"], ["simulate", "a", "b"]])
def test_a_scanner_sets_the_defaults_and_options_of_their_own_win(words: list[str]) -> None:
    for name, preset in SCANNERS.items():
        for spelt in (["--scan", name], [f"--scan={name}"]):
            assert parse([*words, *spelt])[1]["scan"] == preset
        _, given = parse([*words, "--scan.seed", "3", "--scan", name, "--scan.psf-fwhm-mm", "6.5"])
        assert given["scan"] == dataclasses.replace(preset, seed=3, psf_fwhm_mm=6.5)
        assert given.get("body", ADULT) == ADULT
    for generic in ([], ["--scan", "generic"]):
        _, given = parse([*words, *generic, "--scan.iterations", "1"])
        assert given["scan"] == LowDoseConfig(iterations=1)
        assert given.get("body", PhantomConfig()) == PhantomConfig()


def test_every_scanner_has_its_name_and_another_is_refused() -> None:
    with pytest.raises(InputError, match=r"^CFG_ARGUMENT .*'mct'.*'generic'"):
        parse(["phantom", "c", "--scan", "mct"])
    assert set(typing.get_args(typing.get_args(ScannerName)[0])) == {"generic", *SCANNERS}


def test_the_help_of_a_scanner_shows_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["phantom", "--scan", "quadra", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--scan {generic,quadra,uexplorer}" in shown
    assert f"(default: {SCANNERS['quadra'].million_prompts_per_bed})" in shown


def test_the_help_says_what_petscale_is_for_and_groups_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].startswith("Restore full-dose quality to low-dose PET")
    places = [shown.index(title) for title in ("\nData", "\nTrain", "\nEvaluate", "\nCluster")]
    assert places == sorted(places)
    assert all(f"\n  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("words", [["--help"], ["verify", "{cohort}"]])
def test_help_and_verify_load_no_heavy_library(words: list[str], cohort: Path) -> None:
    script = """if True:
        import sys
        from petscale.cli import main
        main(sys.argv[1:])
        print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
    """
    given = [str(cohort) if word == "{cohort}" else word for word in words]
    ended = subprocess.run([sys.executable, "-c", script, *given], capture_output=True, text=True, check=True)
    assert not LIGHT & set(ended.stderr.split())


@pytest.mark.parametrize(
    ("command", "options", "code"),
    [("ingest", [], "IMG_NO_FILE"), ("simulate", ["--scan", "quadra", "--drf", "4"], "STORE_NONE")],
)
def test_what_makes_a_cohort_loads_nothing_that_trains(
    command: str, options: list[str], code: str, tmp_path: Path
) -> None:
    script = """if True:
        import sys
        from petscale.cli import main
        try:
            main(sys.argv[1:])
        except SystemExit as refused:
            assert refused.code == 2
        print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
    """
    words = [command, str(tmp_path / "none"), str(tmp_path / "cohort"), *options]
    ended = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert code in ended.stderr
    loaded = set(ended.stderr.split())
    assert "dask" in loaded
    assert not {"torch", "ray", "deepspeed"} & loaded
