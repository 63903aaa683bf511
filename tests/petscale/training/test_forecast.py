"""petscale plan and petscale profile: few steps told in parts that sum, memory in parts, and nothing left behind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from petscale import config as configs
from petscale.cli import main, parse
from petscale.commands import PlanOptions, TrainOptions
from petscale.config import RunConfig
from petscale.training import forecast, measuring, worker
from petscale.training.forecast import Forecast, largest, patches_like, shares, show, show_profile
from petscale.training.measuring import Beside, Measured, Memory
from storage.errors import InputError
from trainers.engine import plain_engine, plain_engines
from trainers.footprint import Held
from trainers.profiling import PARTS, PhaseTime
from trainers.systems import RECIPES

SMALL = ["recipe.channels=(4,4)", "recipe.patch=16,16,16", "recipe.margin=4,4,4", "recipe.patches_per_case=1"]
SMALL += ["recipe.samples=40", "feed.source=low_drf4", "loop.save_every=10", "split.test_fraction=0.25"]
SMALL += ["feed.cases_per_step=2", "loop.picture_every=0"]

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process, without DeepSpeed, whose process group can be left but once."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    threads = torch.get_num_threads()

    def run(folder: Path, *_: object) -> list[int]:
        try:
            measuring.main(folder, 0)
        finally:
            torch.set_num_threads(threads)
        return [0]

    monkeypatch.setattr(measuring, "_run", run)
    monkeypatch.setattr(measuring, "ENOUGH_S", 0.0)
    monkeypatch.setattr(worker, "deepspeed_engines", lambda config, device: plain_engines(config))


def small(*settings: str) -> RunConfig:
    return configs.override(RunConfig(recipe="unet"), [*SMALL, *settings])


def printed(show_it: Callable[[Console], None]) -> str:
    screen = Console(width=160, record=True, highlight=False)
    show_it(screen)
    return screen.export_text()


def test_a_profile_tells_steps_in_parts_and_writes_a_trace(cohort: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    found = forecast.profile(cohort, small(), steps=3, trace=trace)
    (phase,) = found.phases
    assert (phase.name, phase.steps, phase.measured) == ("train", 20, 3)
    parts = shares(found)["train"]
    assert list(parts) == [*PARTS, "checkpoint", "other"]
    assert min(parts.values()) >= 0
    (checkpoint,) = found.beside
    assert sum(parts.values()) * 20 == pytest.approx(found.total_s)
    assert sum(parts.values()) - phase.step_s == pytest.approx(2 * checkpoint.seconds / 20)
    assert parts["forward"] + parts["backward"] > 0.3 * phase.step_s
    operations = found.operations["train"]
    assert 0 < operations["convolutions"] < 1
    assert len(operations) == 1 + measuring.LARGEST

    seen = json.loads(trace.read_text())
    names = [event.get("name") for event in seen["traceEvents"]]
    for part in (*PARTS[:4], "phase train"):
        assert part in names, part
    assert names.count("forward") >= 2
    assert any("convolution_backward" in str(name) for name in names)
    assert str(tmp_path) not in trace.read_text()

    told = printed(lambda screen: show_profile(found, screen))
    for word in (*parts, "convolutions", "mean of 3"):
        assert word in told, word


@pytest.mark.usefixtures("in_this_process")
def test_a_plan_tells_memory_time_and_the_largest_and_writes_nothing(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(cohort.rglob("*"))
    found = forecast.forecast(cohort, small("loop.picture_every=5"), free_memory=2**40)
    assert sorted(cohort.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []
    config = RECIPES["unet"].Config(channels=(4, 4), patch=(16, 16, 16), margin=(4, 4, 4), patches_per_case=1)
    recipe = RECIPES["unet"].build(config, make_engine=plain_engine, patches_per_step=2)
    assert found.held.gradients == 4 * sum(value.numel() for value in recipe.weights().values())
    assert found.measured is not None
    assert found.need is not None
    assert found.need.is_measured
    assert found.fits
    assert found.left_s == found.measured.total_s > 0
    assert found.patch == (40, 40, 40)  # of the cohort's 48 x 40 x 40 voxels
    assert found.cases_per_step == forecast.MOST_CASES
    told = printed(lambda screen: show(found, screen, limit_s=1e-6 + found.left_s / 2 if found.left_s else None))
    for words in (
        "20 steps",
        "optimizer state",
        "memory suffices",
        "steps: train",
        "to the end",
        "2 starts",
        "40,40",
        "pictures",
    ):
        assert words in told, words
    assert json.loads(json.dumps(found.to_json()))["memory_bytes"]["fits"] is True


def test_what_is_known_not_to_fit_is_not_tried(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a step was made")

    monkeypatch.setattr(forecast, "measure", never)
    found = forecast.forecast(cohort, small(), free_memory=forecast.RAY + 2**18)
    assert not found.fits
    assert found.left_s is None
    assert found.need is not None
    assert found.patch is None or found.patch < (16, 16, 16)
    told = printed(lambda screen: show(found, screen))
    assert "memory does not suffice" in told
    assert "time: not measured" in told


def made_up(need: forecast.Need, free: int, *, workers: int = 1, made: int = 0) -> Forecast:
    phase = PhaseTime("train", 100, 2, 3.0, dict.fromkeys(PARTS, 0.5))
    measured = Measured((phase,), (Beside("checkpoint", 5, 12.0),), Memory(0, 0, 0), {})
    return Forecast(small(), workers, 100, made, need.held, need, free, 0.0, measured, None, None)


def test_hours_and_memory_are_sums() -> None:
    need = forecast.Need(Held(1000, 500, 2000), 5000, 1000, 500, is_measured=True)
    assert need.total == 10_000
    found = made_up(need, forecast.RAY + 20_000)
    assert found.left_s == 100 * 3.0 + 5 * 12.0
    assert replace(found, made=75).left_s == pytest.approx(90.0)
    assert found.fits
    assert found.measured is not None
    first = PhaseTime("first", 50, 2, 1.0, dict.fromkeys(PARTS, 0.1))
    both = replace(found.measured, phases=(first, *found.measured.phases))
    assert [both.left_s(made) for made in (0, 20, 50, 90, 150)] == pytest.approx(
        [50 + 300 + 60, 30 + 300 + 52, 300 + 40, 180 + 24, 0]
    )
    assert replace(found, workers=2).fits
    assert not replace(found, workers=3).fits


def test_a_run_at_its_end_has_nothing_left() -> None:
    found = made_up(forecast.Need(Held(0, 0, 0), 0, 0, 0, is_measured=True), forecast.RAY, made=100)
    told = printed(lambda screen: show(found, screen, limit_s=60.0))
    assert "nothing, this run has made all of its steps" in told
    assert "--time-limit" not in told


def test_it_is_said_that_a_machine_is_busy() -> None:
    found = made_up(forecast.Need(Held(0, 0, 0), 0, 0, 0, is_measured=True), forecast.RAY)
    assert "other processes" not in printed(lambda screen: show(found, screen))
    busy = replace(found, load=100.0)
    assert "look at: 100.0 other processes" in printed(lambda screen: show(busy, screen))


def test_the_largest_that_fits_is_found_by_proportion() -> None:
    need = forecast.Need(Held(0, 0, 0), 24**3, 0, 0, is_measured=True)  # a byte per voxel, the margin of 4 included
    config = small()
    spec = forecast._largest_spec(forecast._builder(config))
    assert spec.halo == (4, 4, 4)
    for edge in range(24, 60, 4):
        free = int((edge + 8) ** 3 / (1 - forecast.RESERVE)) + 1
        found = forecast._largest_patch(config, spec, (1000, 1000, 1000), need, free)
        assert found is not None
        assert config.model.__class__(**{**vars(config.model), "patch": found}).patch == found
        assert found[0] <= edge
        assert found[0] > edge - 4
    three_times = int(24**3 * 3 / (1 - forecast.RESERVE)) + 1
    assert forecast._largest_cases(config, 1, need, three_times) == 3 * config.feed.cases_per_step


def test_candidates_keep_proportions_and_bounds() -> None:
    assert list(patches_like((1, 8, 8), (9, 3, 9))) == [(1, 1, 1), (1, 2, 2), (1, 3, 3)]
    assert list(patches_like((8, 16, 16), (4, 9, 9))) == [(1, 2, 2), (2, 4, 4), (3, 6, 6), (4, 8, 8)]
    assert list(patches_like((1, 1, 1), (4, 4, 4))) == []
    for limit in range(7):
        assert largest(range(1, 7), lambda n: n <= limit) == (limit or None)  # noqa: B023


def test_a_plan_takes_the_options_of_train_and_needs_no_run() -> None:
    words = ["cohort", "--recipe", "unet", "--run", "r", "--time-limit", "1h", "--workers", "2", "--loop.seed", "3"]
    (_, train), (_, plan) = (parse([name, *words]) for name in ("train", "plan"))
    assert train["config"] == plan["config"]
    fields = set(vars(train["options"]))
    assert fields == set(TrainOptions.__dataclass_fields__)
    assert fields | {"json"} == set(PlanOptions.__dataclass_fields__)
    assert parse(["plan", "cohort"])[1]["options"].run is None
    with pytest.raises(InputError, match=r"CFG_ARGUMENT .*--run"):
        parse(["train", "cohort"])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("IMG_TOO_SMALL", ["--set", "recipe.patch=64,64,64"]),
        ("CFG_WORKERS", ["--workers", "3"]),
        ("CFG_RESOURCES", ["--cluster.cpus-per-worker", "5000"]),
        ("SET_NO_IMAGE", ["--set", "feed.source=low_drf9"]),
    ],
)
@pytest.mark.parametrize("command", ["plan", "profile"])
def test_bad_settings_are_refused_as_train_refuses_them(
    command: str, code: str, words: list[str], cohort: Path, refused: Callable[..., str]
) -> None:
    settings = [one for one in SMALL if one.split("=")[0] not in " ".join(words)]
    assert refused(command, cohort, "--recipe", "unet", "--set", *settings, *words).startswith(code)


def test_a_profile_of_no_steps_or_with_a_trace_nowhere_is_refused(cohort: Path, refused: Callable[..., str]) -> None:
    line = refused("profile", cohort, "--recipe", "unet", "--set", *SMALL, "--steps", "0")
    assert line.startswith("CFG_RANGE --steps")
    line = refused("profile", cohort, "--recipe", "unet", "--set", *SMALL, "--trace", cohort / "none" / "trace.json")
    assert line.startswith("CFG_OUTPUT --trace")


def test_a_limit_that_is_no_time_is_refused_first(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert refused("plan", tmp_path / "none", "--time-limit", "soon").startswith("CFG_DURATION")


def test_steps_that_do_not_fit_or_fail_end_in_one_line(
    cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: object) -> list[int]:
        return [-9]

    def failed(folder: Path, *_: object) -> list[int]:
        (folder / "0.log").write_text("Traceback\nRuntimeError: no such device\n")
        return [1]

    monkeypatch.setattr(measuring, "_run", killed)
    with pytest.raises(InputError, match="CFG_RESOURCES"):
        forecast.profile(cohort, small(), steps=2)
    found = forecast.forecast(cohort, configs.override(small(), ["engine.precision=bf16"]), free_memory=2**40)
    assert found.measured is None
    assert not found.fits
    assert "memory does not suffice: no step could be made" in printed(lambda screen: show(found, screen))
    monkeypatch.setattr(measuring, "_run", failed)
    with pytest.raises(InputError, match=r"TRAIN_FAILED.*no such device"):
        forecast.profile(cohort, small(), steps=2)
    words = ["profile", str(cohort), "--recipe", "unet", "--set", *SMALL]
    with pytest.raises(SystemExit):
        main(words)
    assert "TRAIN_FAILED" in capsys.readouterr().err
