"""What commit d3f2ffb wrote is read today, and the same commands still give the same bits.

That commit's own code makes the cohort, the runs and the study; nothing of it is stored here.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from at_commit import run_at
from safetensors.torch import load_file
from small_runs import leave_group

from petscale import config as configs
from petscale.evaluation.run import evaluate_run, read_evaluations
from petscale.folders import CONFIG, SCORED, SYNTHESIS, WEIGHTS
from petscale.inference import open_run, run_case
from petscale.reporting.run import report_run
from petscale.training.planning import plan_run
from petscale.tuning.objectives import objective
from petscale.tuning.study import open_study
from petscale.tuning.trial import train_until
from petscale.tuning.trials import history
from storage.reader import open_cohort
from storage.source import Dose
from trainers.metrics.clinical import ACTIVITY_BIAS, BIASES, QUANTITIES
from trainers.metrics.spectra import DETAIL, TEXTURE

COMMIT = "d3f2ffb"
# Scores that were not made then, by their metrics.
LATER = {
    *(rule.metric for quantity in ("MTV", "TLG41") for rule in (QUANTITIES[quantity], BIASES[quantity])),
    *(rule.metric for rule in (ACTIVITY_BIAS, DETAIL, TEXTURE)),
    "bias",
    "variance",
}
SYSTEMS = {
    name: settings.split()
    for name, settings in {
        "sgsgan": """
        recipe.patch=24,24,24 recipe.patches_per_case=1 recipe.context_patches=2
        recipe.critic_channels=2 recipe.segmenter_channels=2 recipe.phase_samples=4,4,4,4
    """,
        "cg_3dsrgan": """
        feed.low=low_drf4,low_drf20 recipe.doses=4,20 recipe.patch=32,32,32 recipe.mlnet_channels=2
        recipe.head_hidden=4 recipe.contextual_channels=2 recipe.epoch_samples=2
        recipe.discriminator_channels=2 recipe.perceptual=masked recipe.backbone_samples=4
        recipe.max_epochs=3 recipe.calibration_samples=4 recipe.validate_batches=1
    """,
        "s3pet": """
        feed.low=low_drf20 recipe.window=32 recipe.slices=2 recipe.dim=16 recipe.blocks=1 recipe.heads=2
        recipe.decoder_channels=8,4,4,4 recipe.low_samples=12 recipe.full_samples=12
        recipe.swap_samples=12 split.unpaired_fraction=0.8
    """,
        "cascade": """
        recipe.stages=2 recipe.dense=images recipe.loss_at=all recipe.patch=1,64,64 recipe.width=4
        recipe.downs=5 recipe.critic_width=4 recipe.critic_strides=2,1 recipe.epoch_samples=4
        recipe.epochs=2 recipe.validate_batches=1
    """,
        "virtual_pet": """
        recipe.patch=1,64,64 recipe.fcn_widths=4,4,8,8,8 recipe.fcn_fc=8 recipe.fcn_fc6_kernel=3
        recipe.generator_width=4 recipe.generator_downs=3 recipe.critic_width=4
        recipe.critic_strides=2,1 recipe.blend_levels=1 recipe.fcn_samples=6 recipe.cgan_samples=6
        recipe.epoch_samples=2 recipe.validate_batches=1
    """,
    }.items()
}
ALL = ["feed.cases_per_step=2", "loop.save_every=1", "loop.log_every=1", "loop.picture_every=0"]

SCRIPT = """
import json, shutil, sys
from dataclasses import replace
from pathlib import Path
from petscale import assess, config as configs, launch, prepare, study, tuning
from storage.ingest import ingest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig

systems, settings = json.loads(sys.argv[1])
cohort = Path("cohort").absolute()
body = PhantomConfig(shape=(48, 40, 40), spacing_mm=(20.0, 11.0, 11.0), num_lesions=2)
scan = LowDoseConfig(million_prompts_per_bed=20.0, iterations=1)
ingest(cohort, prepare.phantom_plans(6, body, scan, [4.0, 20.0]), strict=True, workers=1)
for name, own in systems.items():
    config = configs.override(configs.from_json({"recipe": name}), settings + own)
    whole, begun = Path("runs", name).absolute(), Path("begun", name).absolute()
    for run, share in ((begun, 2), (whole, 1)):
        plan = launch.plan_run(cohort, run, config)
        run.mkdir(parents=True)
        tuning.train_until(plan, max(1, plan.num_steps // share))
    (begun / launch.WEIGHTS).unlink(missing_ok=True)
    assess.evaluate_run(whole, cohort)
config = configs.from_json({"recipe": "s3pet"})
Path("configuration.json").write_text(json.dumps(configs.to_json(config)))
goals = [study.objective("psnr_body")]
identity = {"recipe": "s3pet", "spaces": ["practice"], "configuration": config.identity(), "budgets": [3]}
with study.hold(Path("study")):
    opened = study.open_study(Path("study"), identity=identity, objectives=goals, sampler="tpe", seed=0)
    trial, _ = study.ask(opened, lambda t: {"recipe.lr": t.suggest_float("recipe.lr", 1e-5, 1e-3)})
    study.tell(opened, trial, [30.0])
"""


@dataclass(frozen=True)
class Before:
    """Folders that the earlier commit wrote."""

    cohort: Path
    runs: Path
    begun: Path
    study: Path
    configuration: Path


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    folder = tmp_path_factory.mktemp("before")
    run_at(COMMIT, SCRIPT, folder, json.dumps([SYSTEMS, ALL]))
    return Before(*(folder / name for name in ("cohort", "runs", "begun", "study", "configuration.json")))


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    """A trial leaves its process group to the next one; other files' tests must not find it."""
    yield
    leave_group()


def same_tensors(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def values(evaluation: Any) -> dict[tuple[str, ...], float]:
    return {
        (r.case, r.image, r.region, r.definition.metric, r.definition.preset, r.definition.text()): r.value
        for r in evaluation.rows
    }


@pytest.mark.slow
def test_a_cohort_is_read_and_its_images_state_their_doses(before: Before) -> None:
    case = open_cohort(before.cohort).case("phantom-000")
    assert case.image("full").dose == Dose(1.0, "full", None)
    assert case.image("low_drf20").dose == Dose(20.0, "simulated", True)
    assert case.image("ct").dose is None


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_run_begun_then_ends_today_with_the_bits_of_then(name: str, before: Before, tmp_path: Path) -> None:
    """Networks, order of samples, losses, optimizers and checkpoints: all that decides a weight."""
    run = tmp_path / "begun" / name
    shutil.copytree(before.begun / name, run)
    config = configs.read(run / CONFIG)
    plan = plan_run(before.cohort, run, config)
    train_until(plan, plan.num_steps)
    assert same_tensors(run / WEIGHTS, before.runs / name / WEIGHTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_run_made_today_has_the_bits_of_then(name: str, before: Before, tmp_path: Path) -> None:
    """Settings under their former names, too."""
    config = configs.override(configs.from_json({"recipe": name}), [*ALL, *SYSTEMS[name]])
    plan = plan_run(before.cohort, tmp_path / name, config)
    (tmp_path / name).mkdir()
    train_until(plan, plan.num_steps)
    assert same_tensors(tmp_path / name / WEIGHTS, before.runs / name / WEIGHTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_runs_volumes_and_scores_are_those_of_then(name: str, before: Before, tmp_path: Path) -> None:
    run = tmp_path / name
    shutil.copytree(before.runs / name, run)
    then = read_evaluations(run, before.cohort)
    page = report_run(run, before.cohort, then)
    assert page.stat().st_size > 10_000
    source = next(iter(then))
    trained = open_run(run)
    test = then[source].cases[0]
    stored = open_cohort(run / SYNTHESIS / source).case(test).image(f"synth_{source}")
    volume = np.empty(stored.grid.shape, dtype=np.float32)

    def put(z0: int, slab: Any) -> None:
        volume[z0 : z0 + len(slab)] = np.maximum(slab, 0)

    run_case(trained, open_cohort(before.cohort).case(test), source, put)
    assert np.array_equal(volume, stored.read(0, stored.grid.shape[0]))
    now = evaluate_run(run, before.cohort)
    for image, evaluation in then.items():
        ours, theirs = values(now[image]), values(evaluation)
        ours = {key: value for key, value in ours.items() if LATER.isdisjoint(key)}
        assert ours.keys() == theirs.keys()
        # window means are summed up in another order since
        ssim = {key for key in ours if not {"SSIM", "MS-SSIM"}.isdisjoint(key)}
        assert ssim
        assert all(np.array_equal(ours[key], theirs[key], equal_nan=True) for key in ours.keys() - ssim)
        for key in ssim:
            np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=1e-13)


@pytest.mark.slow
def test_a_configuration_and_a_study_are_read(before: Before) -> None:
    config = configs.read(before.configuration)
    then = ["recipe.slices=4", "feed.cases_per_step=8", "split.unpaired_fraction=0.8"]  # defaults that are others today
    assert config == configs.override(configs.from_json({"recipe": {"name": "s3pet"}}), then)
    identity = {"recipe": "s3pet", "spaces": ["training"], "configuration": config.identity(), "budgets": [3]}
    study = open_study(before.study, identity=identity, objectives=[objective("psnr_body")], sampler="tpe", seed=0)
    assert [trial["state"] for trial in history(study)] == ["COMPLETE"]
    assert SCORED == "judged.json", "a trial's scores keep their place"
