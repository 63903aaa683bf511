"""Training through Ray Train with DeepSpeed engines: whole, killed and resumed, moved to another number of workers.

One uninterrupted run is the reference; everything else must end with its losses and its weights, bit for bit.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.numpy import load_file
from small_runs import CG_3DSRGAN, leave_group

from petscale import config as configs
from petscale.cli import main
from petscale.reporting.run import chosen_step
from petscale.training.planning import plan_run
from petscale.tuning.trial import train_until
from trainers import checkpoint

SETTINGS = [
    "recipe.patch=24,24,24",
    "recipe.patches_per_case=1",
    "recipe.critic_channels=2",
    "recipe.segmenter_channels=2",
    "recipe.context_patches=2",
    "recipe.phase_samples=12,8,8,4",
    "loop.log_every=1",
    "loop.save_every=4",
    "loop.picture_every=8",
    "feed.source=low_drf4",
]

pytestmark = pytest.mark.slow


def command(cohort: Path, run: Path, workers: int = 2, *settings: str) -> list[str]:
    chosen = ["--workers", str(workers), "--defaults", "paper", "--set", *SETTINGS, *settings]
    return [sys.executable, "-m", "petscale", "train", str(cohort), "--run", str(run), *chosen]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=HANGS_S)
    assert process.returncode == 0, err
    assert out.strip().endswith("weights.safetensors")


def records(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key == "step" or key.startswith("loss/")}
        for record in records(run)
        if record["event"] == "log"
    ]


def starts(run: Path) -> list[int]:
    return [record["step"] for record in records(run) if record["event"] == "start"]


HANGS_S = 600  # a start takes half a minute where nothing else runs; three streams of tests may share the cores


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    deadline = time.monotonic() + HANGS_S
    while not any(record["step"] >= step for record in losses(run)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.02)


def wait_for_start(process: subprocess.Popen[str], run: Path, count: int) -> None:
    deadline = time.monotonic() + HANGS_S
    while len(starts(run)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the workers do not start again"
        time.sleep(0.02)


@pytest.fixture(autouse=True, scope="module")
def process_group() -> Iterator[None]:
    """A run in this process leaves its process group behind; other files' tests must not find it."""
    yield
    leave_group()


def alone(cohort: Path, run: Path, recipe: str, settings: list[str], until: int | None = None) -> Path:
    """Train in this process alone, without Ray: what a run on a cluster of one worker must equal."""
    plan = plan_run(cohort, run, configs.override(configs.from_json({"recipe": recipe}), settings))
    train_until(plan, plan.num_steps if until is None else until)
    return run


@pytest.fixture(scope="module")
def reference(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alone(cohort, tmp_path_factory.mktemp("runs") / "reference", "sgsgan", SETTINGS)


def assert_same_end(run: Path, reference: Path) -> None:
    assert losses(run) == losses(reference)
    assert (run / "weights.safetensors").read_bytes() == (reference / "weights.safetensors").read_bytes()


def test_an_uninterrupted_run_leaves_what_it_promises(reference: Path) -> None:
    assert [record["step"] for record in losses(reference)] == list(range(1, 17))
    assert starts(reference) == [0]
    phases = {record["phase"] for record in records(reference) if record["event"] == "log"}
    assert phases == {"gan", "segmenter", "guided gan", "final segmenter"}
    assert [path.name for path in sorted((reference / "pictures").iterdir())] == [
        "step-0000008.png",
        "step-0000016.png",
    ]
    assert list((reference / "tb").glob("events.out.tfevents.*"))
    assert not (reference / "ray").exists()


def test_a_run_goes_on_with_another_number_of_workers_in_the_same_order(cohort: Path, tmp_path: Path) -> None:
    """The order of samples does not depend on the ranks, so losses differ by rounding and by the noise drawn only."""
    run = tmp_path / "run"
    process = start(command(cohort, run, 2, "recipe.use_noise=False"))
    wait_for_step(process, run, 5)
    process.send_signal(signal.SIGTERM)  # as a scheduler does; Ctrl-C is tried on a sweep
    _, told = process.communicate(timeout=HANGS_S)
    assert process.returncode == 143
    assert told.splitlines()[-1] == "petscale: stopped; run the same command again to continue"
    alone(cohort, run, "sgsgan", [*SETTINGS, "recipe.use_noise=False"])
    assert len(starts(run)) == 2
    whole = alone(cohort, tmp_path / "whole", "sgsgan", [*SETTINGS, "recipe.use_noise=False"])
    for moved, straight in zip(losses(run), losses(whole), strict=True):
        assert moved["step"] == straight["step"]
        # A ratio of small gradients and the critic's estimate near 0 amplify rounding: absolute bounds fit better.
        for name, value in straight.items():
            assert moved[name] == pytest.approx(value, rel=2e-2, abs=2e-2), (moved["step"], name)
    a, b = (load_file(folder / "weights.safetensors") for folder in (run, whole))
    assert a.keys() == b.keys()


@pytest.mark.usefixtures("no_ray")
def test_another_setting_in_a_run_folder_is_refused(
    cohort: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command(cohort, reference), "recipe.lambda_content=10"][3:])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert "CKPT_DRIFT" in err
    assert "lambda_content" in err


# ---- other systems: several stages in one command, killed in any, reused ------------------------------------------

S3PET = [
    "recipe.window=16",
    "recipe.slices=2",
    "recipe.patch_size=4",
    "recipe.decoder_channels=8,8,4",
    "recipe.dim=8",
    "recipe.heads=2",
    "recipe.blocks=1",
    "recipe.low_samples=160",
    "recipe.full_samples=160",
    "recipe.swap_samples=160",
    "split.unpaired_fraction=0.5",
]
LOOP = ["loop.log_every=1", "loop.save_every=2", "loop.picture_every=0"]


def chosen(settings: list[str], *more: str) -> list[str]:
    low = [] if any(setting.startswith("feed.source") for setting in settings) else ["feed.source=low_drf4"]
    return [*settings, *low, "feed.cases_per_step=4", *LOOP, *more]


def words(recipe: str, settings: list[str], cohort: Path, run: Path, *more: str, workers: int = 2) -> list[str]:
    start_of = command(cohort, run)[: -len(SETTINGS) - 3]
    return [*start_of, "--recipe", recipe, "--workers", str(workers), "--set", *chosen(settings, *more)]


@pytest.fixture(scope="module")
def s3pet(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alone(cohort, tmp_path_factory.mktemp("s3pet") / "reference", "s3pet", chosen(S3PET))


def test_one_command_runs_both_stages_and_keeps_the_encoders(s3pet: Path) -> None:
    phases = [record["phase"] for record in records(s3pet) if record["event"] == "log"]
    assert list(dict.fromkeys(phases)) == ["low encoder", "full encoder", "token swap"]
    facts = json.loads((s3pet / "config.json").read_bytes())
    assert (len(facts["train"]), len(facts["unpaired"]), len(facts["test"])) == (1, 2, 1)
    kept = load_file(s3pet / "encoders.safetensors")
    assert {name.split(".")[0] for name in kept} == {"low", "full", "settings"}


def test_a_run_killed_in_either_stage_ends_bit_equal(cohort: Path, s3pet: Path, tmp_path: Path) -> None:
    """One worker, so that what is begun by Ray may be compared with this process alone."""
    run = tmp_path / "run"
    for step in (10, 45):  # of three phases of 20 steps
        process = start(words("s3pet", S3PET, cohort, run, workers=1))
        wait_for_step(process, run, step)
        everyone = [*psutil.Process(process.pid).children(recursive=True), process]
        for one in everyone:  # workers that outlive their driver would reach the next stage
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.communicate()
    finish(start(words("s3pet", S3PET, cohort, run, workers=1)))
    assert 8 <= starts(run)[1] < 40 <= starts(run)[2]
    assert_same_end(run, s3pet)
    assert (run / "encoders.safetensors").read_bytes() == (s3pet / "encoders.safetensors").read_bytes()


def test_saved_encoders_replace_the_first_stage(cohort: Path, s3pet: Path, tmp_path: Path) -> None:
    reuse = f"recipe.encoders={s3pet / 'encoders.safetensors'}"
    run = alone(cohort, tmp_path / "run", "s3pet", chosen(S3PET, reuse))
    assert {record["phase"] for record in records(run) if record["event"] == "log"} == {"token swap"}
    assert len(json.loads((run / "config.json").read_bytes())["files"]["encoders"]) == 64


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (["split.seed=1"], "CKPT_LEAK"),
        (["feed.suv_scale=2"], "CKPT_SCALE"),
        (["feed.source=low_drf20"], "CKPT_DOSES"),
        (["recipe.dim=16"], "CKPT_CONFIG"),
    ],
)
def test_encoders_that_do_not_belong_to_a_run_are_refused_before_it_starts(
    cohort: Path, s3pet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], code: str
) -> None:
    reuse = f"recipe.encoders={s3pet / 'encoders.safetensors'}"
    with pytest.raises(SystemExit):
        main(words("s3pet", S3PET, cohort, tmp_path / "run", reuse, *settings)[3:])
    assert code in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_validation_steers_a_run_and_is_resumed(cohort: Path, tmp_path: Path) -> None:
    runs = alone(cohort, tmp_path / "straight", "cg_3dsrgan", chosen(CG_3DSRGAN)), tmp_path / "stopped"
    alone(cohort, runs[1], "cg_3dsrgan", chosen(CG_3DSRGAN), until=5)
    alone(cohort, runs[1], "cg_3dsrgan", chosen(CG_3DSRGAN))
    assert len(starts(runs[1])) == 2
    assert_same_end(runs[1], runs[0])
    heard = [[r["validation/squared_error"] for r in records(run) if r["event"] == "validation"] for run in runs]
    assert len(heard[0]) >= 3
    assert heard[0] == heard[1]
    assert {r["phase"] for r in records(runs[0]) if r["event"] == "log"} == {"backbone", "joint", "statistics"}
    assert len(losses(runs[0])) == 2 + 6 + 2


HABITS = [
    "recipe.channels=4",
    "recipe.patch=2,24,24",
    "recipe.patches_per_case=1",
    "recipe.samples=400",
    "recipe.lr=3e-3",
    "engine.ema_decay=0.9",
    "engine.warm_up_steps=4",
    "engine.lr_decay=cosine",
    "engine.gradient_clipping=1",
    "engine.zero_stage=2",
    "feed.augment=flips_and_turns",
    "loop.validate_every=5",
    "loop.validation_patches=3",
    "loop.patience=3",
    "split.validation_fraction=0.3",
]


@pytest.fixture(scope="module")
def habitual(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("habits") / "reference"
    finish(start(words("red_cnn", HABITS, cohort, run)))
    return run


def test_a_run_with_every_habit_exports_its_best_weights(cohort: Path, habitual: Path) -> None:
    scores = [r for r in records(habitual) if r["event"] == "validation"]
    best = max(scores, key=lambda r: (r["validation/gain_db"], -r["step"]))
    _, about = checkpoint.read_weights(habitual / "weights.safetensors")
    assert json.loads(about["chosen"]) == {"step": best["step"], "gain_db": best["validation/gain_db"]}
    assert chosen_step(about)[0].startswith(f"The weights are those of step {best['step']}, ")
    whole = losses(habitual)[-1]["step"] == 100
    assert whole or scores[-1]["step"] - best["step"] == 15  # three validations without a better one
    facts = json.loads((habitual / "config.json").read_bytes())
    assert facts["validation"]
    assert not {*facts["validation"]} & {*facts["train"], *facts["test"]}
    saved, _ = checkpoint.newest(habitual / "checkpoints")
    assert saved
    weights, _ = checkpoint.read_weights(habitual / "weights.safetensors")
    assert all(torch.equal(value, saved.state["validation"][f"weight/{name}"]) for name, value in weights.items())


def test_a_training_whose_ray_is_lost_says_so_and_resumes_bit_equal(
    cohort: Path, habitual: Path, tmp_path: Path
) -> None:
    """Ray alone waits without an end for its node process, and aborts a minute after its head."""
    run = tmp_path / "run"
    for step, name in ((6, "raylet"), (13, "gcs_server")):
        process = start(words("red_cnn", HABITS, cohort, run))
        wait_for_step(process, run, step)
        family = psutil.Process(process.pid).children(recursive=True)
        (vital,) = (one for one in family if one.name() == name)
        vital.kill()
        said, told = process.communicate(timeout=120)
        assert process.returncode == 2, told
        assert f"petscale: CLU_LOST this machine: Ray lost its {'node' if name == 'raylet' else 'head'} process" in told
        assert "Traceback" not in told
        assert "state-dump" not in said + told
        assert not list(Path(tempfile.gettempdir()).glob(f"petscale-ray-{process.pid}-*"))
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, "the lost cluster left processes behind"
    finish(start(words("red_cnn", HABITS, cohort, run)))
    assert_same_end(run, habitual)


def test_a_killed_worker_is_replaced_and_a_killed_driver_resumes_bit_equal(
    cohort: Path, habitual: Path, tmp_path: Path
) -> None:
    """One run of every habit meets both: Ray starts the workers again, then the user gives the same command again."""
    run = tmp_path / "run"
    process = start(words("red_cnn", HABITS, cohort, run))
    wait_for_step(process, run, 6)
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [p for p in family if p.cmdline() and "RayTrainWorker" in p.cmdline()[0]]
    assert len(workers) == 2
    assert not [p for p in family if p.cmdline() and "PlacementGroupCleaner" in p.cmdline()[0]], "it has nothing to do"
    assert not [p for p in family if any("monitor.py" in word for word in p.cmdline())], "neither has Ray's autoscaler"
    assert not [p for p in family if p.cmdline() and "TrainController" in p.cmdline()[0]], "the driver is it"
    assert not [p for p in family if p.cmdline() and "Autoscaling" in p.cmdline()[0]], "there is nobody to ask for room"
    os.kill(workers[1].pid, signal.SIGKILL)
    wait_for_start(process, run, 2)
    assert starts(run)[1] >= 4, "from its last checkpoint"
    wait_for_step(process, run, 13)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    finish(start(words("red_cnn", HABITS, cohort, run)))
    assert len(starts(run)) == 3
    assert starts(run)[-1] >= 12
    assert_same_end(run, habitual)
    heard = [[r for r in records(one) if r["event"] == "validation"] for one in (run, habitual)]
    assert heard[0] == heard[1]
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "the killed driver left processes behind"
