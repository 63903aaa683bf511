"""A run goes on with the cases that it recorded, whatever became of its cohort; who is left out is said."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from petscale import config as configs
from petscale.cli import main
from petscale.cluster import session as sessions
from petscale.data.phantom import phantom_plans
from petscale.data.removal import remove_cases
from petscale.folders import CONFIG, ROLES
from petscale.splits import Roles
from petscale.training import driver
from petscale.training.planning import Plan, _notes, plan_run
from petscale.tuning import sweep as sweeps
from petscale.tuning.search import SweepConfig
from petscale.tuning.sweep import sweep
from petscale.tuning.trial import TrialJob
from storage.errors import InputError
from storage.ingest import ingest
from storage.integrity import root_digest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.reader import open_cohort

SMALL = ["recipe.patch=24,24,24", "recipe.rois=()", "feed.source=low_drf4"]

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of one more patient, like those of ``cohort``."""
    folder = tmp_path_factory.mktemp("newcomer")
    body = PhantomConfig(shape=(48, 40, 40), spacing_mm=(20.0, 11.0, 11.0), num_lesions=2, seed=50)
    scan = LowDoseConfig(million_prompts_per_bed=20.0, iterations=1)
    ingest(folder, phantom_plans(1, body, scan, [4.0]), strict=True)
    return folder


@pytest.fixture
def copied(cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cohort, tmp_path / "cohort"))


def grown(cohort: Path, newcomer: Path) -> None:
    """Let one more patient enter, as an ingest would."""
    (name,) = open_cohort(newcomer).cases
    shutil.copytree(newcomer / "cases" / name, cohort / "cases" / name)
    ingest(cohort, {}, strict=True)  # the catalog


def planned(cohort: Path, run: Path, *settings: str, **more: Any) -> Plan:
    return plan_run(cohort, run, configs.override(configs.RunConfig(), [*SMALL, *settings]), **more)


@pytest.fixture
def begun(copied: Path, tmp_path: Path) -> Plan:
    """A run that was started and not finished."""
    plan = planned(copied, tmp_path / "run")
    plan.run.mkdir()
    plan.record("petscale train")
    return plan


def test_a_run_over_a_cohort_that_grew_goes_on_with_the_roles_it_recorded(
    copied: Path, newcomer: Path, begun: Plan
) -> None:
    assert begun.notes == ()
    grown(copied, newcomer)
    again = planned(copied, begun.run)
    assert again.job == begun.job
    assert again.facts == begun.facts
    assert again.notes == ("1 case(s) of the cohort are not part of this run, which goes on with those it recorded",)
    # A new run draws among all of them.
    assert len(planned(copied, begun.run.with_name("new")).job.roles.everyone) == 5


def test_it_is_said_on_the_screen(
    copied: Path, newcomer: Path, begun: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grown(copied, newcomer)
    monkeypatch.setattr(sessions, "session", lambda *_: nullcontext())
    monkeypatch.setattr(driver, "train_on_ray", lambda plan, **_: None)
    main(["train", str(copied), "--run", str(begun.run), "--defaults", "paper", "--set", *SMALL])
    assert "1 case(s) of the cohort are not part of this run" in capsys.readouterr().err


def test_a_recorded_case_that_was_removed_is_named(copied: Path, begun: Plan) -> None:
    gone = begun.job.roles.train[0]
    remove_cases(copied, [gone])
    with pytest.raises(InputError, match=f"SET_CASE_REMOVED case {gone}"):
        planned(copied, begun.run)


def test_other_voxels_and_another_split_are_refused_as_before(copied: Path, newcomer: Path, begun: Plan) -> None:
    with pytest.raises(InputError, match=r"CKPT_DRIFT.*split.seed"):
        planned(copied, begun.run, "split.seed=1")
    with pytest.raises(InputError, match=r"CKPT_DRIFT.*split.leave_out"):
        planned(copied, begun.run, "split.leave_out=phantom-003")
    name = begun.job.roles.train[0]
    (other,) = open_cohort(newcomer).cases
    shutil.rmtree(copied / "cases" / name)
    shutil.copytree(newcomer / "cases" / other, copied / "cases" / name)
    manifest = copied / "cases" / name / "MANIFEST.json"
    content = json.loads(manifest.read_bytes())
    content["facts"]["case"] = name
    content["root"] = root_digest(content["files"], content["facts"])
    manifest.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"CKPT_DRIFT.*cases.{name}"):
        planned(copied, begun.run)


def test_a_record_of_before_there_were_more_roles_is_read(copied: Path, begun: Plan) -> None:
    record = json.loads((begun.run / CONFIG).read_bytes())
    for role in ("unpaired", "validation"):
        del record[role]
    for field in ("leave_out", "stratify", "fold_tag"):
        del record["config"]["split"][field]
    (begun.run / CONFIG).write_text(json.dumps(record))
    assert planned(copied, begun.run).job.roles == begun.job.roles


def test_a_case_that_is_too_thin_can_be_left_out(copied: Path, tmp_path: Path) -> None:
    thin = PhantomConfig(shape=(16, 40, 40), spacing_mm=(60.0, 11.0, 11.0), num_lesions=2, seed=60)
    scan = LowDoseConfig(million_prompts_per_bed=20.0, iterations=1)
    ingest(copied, phantom_plans(1, thin, scan, [4.0]), strict=True)
    with pytest.raises(InputError) as refused:
        planned(copied, tmp_path / "run", "split.test=phantom-000")
    assert refused.value.code == "IMG_TOO_SMALL"
    setting = refused.value.remedy.rpartition("--set ")[2].rstrip(")")
    plan = planned(copied, tmp_path / "run", "split.test=phantom-000", setting)
    assert setting == "split.leave_out=phantom-060"
    assert "phantom-060" not in plan.facts["cases"]
    assert plan.facts["config"]["split"]["leave_out"] == ["phantom-060"]
    assert plan.notes == ("left out: phantom-060",)


def test_a_share_of_validation_patients_that_nothing_asks_for_is_told(cohort: Path, tmp_path: Path) -> None:
    plan = planned(cohort, tmp_path / "run", "split.validation_fraction=0.3")
    assert plan.facts["validation"] == ()
    (note,) = plan.notes
    assert note.startswith("split.validation_fraction=0.3 keeps nobody apart")
    # Followed scores, no share at all, and the default: nothing to tell.
    asked = planned(cohort, tmp_path / "asked", "split.validation_fraction=0.3", "loop.validate_every=100")
    assert asked.facts["validation"] != ()
    assert asked.notes == ()
    assert planned(cohort, tmp_path / "default").notes == ()


def test_names_that_look_like_one_patient_are_pointed_out(cohort: Path, newcomer: Path, tmp_path: Path) -> None:
    class Renamed:
        name = "renamed"
        cases = ("p01-baseline", "p01-followup", "p02")

        def case(self, name: str) -> Any:
            return open_cohort(cohort).case(dict(zip(self.cases, open_cohort(cohort).cases, strict=False))[name])

    roles = Roles(train=("p01-baseline", "p02"), unpaired=(), validation=(), test=("p01-followup",))
    (note,) = _notes(Renamed(), roles, configs.RunConfig())
    assert note.startswith("p01-baseline, p01-followup look like scans of one patient")


# ---- studies --------------------------------------------------------------------------------------------------------


def searched(cohort: Path, folder: Path, seen: list[TrialJob], trials: int) -> None:
    def work(job: TrialJob, rung: int) -> dict[str, float]:
        raise AssertionError("trials are not run here")

    def run_trials(study: Any, space: Any, base: Any, config: Any, common: TrialJob, *rest: Any) -> None:
        seen.append(common)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sweeps, "run_trials", run_trials)
        base = configs.override(configs.RunConfig(), [*SMALL, "split.validation_fraction=0.3"])
        sweep(cohort, folder, base, SweepConfig(trials=trials), command="petscale tune", work=work)


def test_a_study_over_a_cohort_that_grew_goes_on(
    copied: Path, newcomer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs: list[TrialJob] = []
    searched(copied, tmp_path / "study", jobs, 2)
    grown(copied, newcomer)
    capsys.readouterr()
    searched(copied, tmp_path / "study", jobs, 3)
    assert "1 case(s) of the cohort are not part of this run" in capsys.readouterr().err
    assert jobs[1].roles == jobs[0].roles
    assert jobs[0].roles is not None
    assert len(jobs[0].roles["validation"]) == 1
    # A new trial of the study has the study's roles, not a draw of its own.
    config = configs.override(configs.RunConfig(), [*SMALL, "split.validation_fraction=0.3"])
    roles = Roles.recorded(jobs[1].roles or {})
    assert plan_run(copied, tmp_path / "study/trials/7", config, validation=True, roles=roles).job.roles == roles
    gone = jobs[0].roles["validation"][0]
    remove_cases(copied, [gone])
    with pytest.raises(InputError, match=f"SET_CASE_REMOVED case {gone}"):
        searched(copied, tmp_path / "study", jobs, 3)


def test_a_study_of_before_it_recorded_roles_continues_on_its_cohort(copied: Path, tmp_path: Path) -> None:
    jobs: list[TrialJob] = []
    searched(copied, tmp_path / "study", jobs, 2)
    (tmp_path / "study" / ROLES).unlink()
    searched(copied, tmp_path / "study", jobs, 3)
    assert jobs[1].roles == jobs[0].roles
    assert (tmp_path / "study" / ROLES).is_file()


def test_a_train_command_takes_what_is_left_out(cohort: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    words = ("train", cohort, "--run", tmp_path / "run", "--split.leave-out", "nobody", "--set", *SMALL)
    assert refused(*words).startswith("SET_NO_CASE split.leave_out: nobody")


S3PET_SMALL = ["recipe.window=16", "recipe.slices=1", "feed.source=low_drf4", "split.unpaired_fraction=0.4"]
RESTORE = ["recipe.patch=8,8,8", "recipe.samples=8", "recipe.bank_samples=4", "feed.source=low_drf4"]
RED_CNN = ["recipe.patch=2,24,24", "recipe.samples=8", "feed.source=low_drf4"]
CYCLE_GAN = ["recipe.patch=1,24,24", "recipe.samples=32", "feed.source=low_drf4"]
SMALL_OF = {"sgsgan": SMALL, "s3pet": S3PET_SMALL, "red_cnn": RED_CNN, "restore": RESTORE}
SMALL_OF |= {"cycle_gan": CYCLE_GAN, "semipet": CYCLE_GAN}


def followed(cohort: Path, run: Path, recipe: str, *settings: str) -> Plan:
    wanted = [*SMALL_OF.get(recipe, []), *settings]
    return plan_run(cohort, run, configs.override(configs.from_json({"recipe": recipe}), wanted))


def test_validation_by_the_loop_keeps_patients_apart(cohort: Path, tmp_path: Path) -> None:
    plain = followed(cohort, tmp_path, "red_cnn")
    plan = followed(cohort, tmp_path, "red_cnn", "loop.validate_every=2", "loop.patience=3")
    assert plain.job.roles.validation == ()
    assert plan.job.roles.validation
    assert plan.job.roles.test == plain.job.roles.test
    assert sorted((*plan.job.roles.train, *plan.job.roles.validation)) == sorted(plain.job.roles.train)


@pytest.mark.parametrize(
    ("recipe", "settings", "told"),
    [
        ("red_cnn", ["split.validation_fraction=0"], "SET_NO_VALIDATION split: loop.validate_every asks"),
        ("cascade", ["recipe.patch=1,64,64", "recipe.downs=5"], "CFG_SCHEDULE loop.validate_every: 2; cascade follows"),
        ("s3pet", ["recipe.swap_samples=0"], "CFG_SCHEDULE loop.validate_every: 2; no phase"),
        ("sgsgan", ["recipe.rois=liver", "loop.patience=2"], "CFG_SCHEDULE loop.patience: 2; sgsgan trains"),
    ],
)
def test_validation_that_cannot_be_is_refused_before_anything_starts(
    cohort: Path, tmp_path: Path, recipe: str, settings: list[str], told: str
) -> None:
    with pytest.raises(InputError) as refusal:
        followed(cohort, tmp_path / "run", recipe, "loop.validate_every=2", *settings)
    assert str(refusal.value).startswith(told)
    assert not (tmp_path / "run").exists()


def test_systems_whose_last_phase_alone_sees_pairs_may_end_early(cohort: Path, tmp_path: Path) -> None:
    for recipe in ("s3pet", "sgsgan", "red_cnn", "restore", "cycle_gan", "semipet"):
        assert followed(cohort, tmp_path / recipe, recipe, "loop.validate_every=2", "loop.patience=2").num_steps


def test_no_pair_is_given_away_unless_asked(cohort: Path, tmp_path: Path) -> None:
    roles = followed(cohort, tmp_path / "s3pet", "s3pet", "split.unpaired_fraction=0").job.roles
    assert roles.unpaired == ()
    assert roles.streams["target"] == roles.train, "full doses alone are those of the pairs"
    assert configs.from_json({"recipe": "s3pet"}).split.unpaired_fraction == 0
    asked = followed(cohort, tmp_path / "asked", "s3pet", "split.unpaired_fraction=0.4").job.roles
    assert asked.streams["target"] == asked.unpaired != ()


def test_a_system_without_pairs_needs_a_second_patient_also_where_only_some_steps_do(
    cohort: Path, tmp_path: Path
) -> None:
    """Two patients train: one gives low and full dose, the other full dose alone; semipet's second step needs it."""
    for recipe in ("cycle_gan", "semipet"):
        plan = followed(cohort, tmp_path / recipe, recipe, "split.test_fraction=0.5", "split.unpaired_fraction=0.5")
        assert (len(plan.job.roles.train), len(plan.job.roles.unpaired)) == (1, 1)
        everyone = followed(cohort, tmp_path / recipe, recipe, "split.unpaired_fraction=0").job.roles
        assert (len(everyone.train), everyone.unpaired) == (3, ())
        with pytest.raises(InputError, match=r"SET_NO_UNPAIRED train: .* beside the image full of another patient"):
            followed(cohort, tmp_path / recipe, recipe, "split.test_fraction=0.75")


def test_settings_that_do_not_suit_the_voxel_size_are_told_when_a_run_is_planned(copied: Path, tmp_path: Path) -> None:
    config = configs.override(configs.from_json({"recipe": "s3pet"}), ["feed.source=low_drf4", "recipe.window=24"])
    coarse = plan_run(copied, tmp_path / "coarse", config).notes
    assert any(note.startswith("a token of 8 x 8 voxels is ") for note in coarse)
    finer = configs.override(config, ["recipe.patch_size=4", "recipe.decoder_channels=256,128,64"])
    assert plan_run(copied, tmp_path / "finer", finer).notes == ()


def test_settings_left_to_the_voxel_size_are_recorded_as_it_has_them(copied: Path, tmp_path: Path) -> None:
    practice = configs.from_json({"recipe": {"name": "s3pet", "defaults": "practice"}})
    assert practice.model.patch_size == 0
    coarse = configs.override(practice, ["feed.source=low_drf4", "recipe.window=24"])
    plan = plan_run(copied, tmp_path / "coarse", coarse)
    assert plan.notes == ()
    stated = configs.override(coarse, ["recipe.patch_size=4", "recipe.decoder_channels=256,128,64"])
    assert plan.config == plan_run(copied, tmp_path / "coarse", stated).config
    for kept in (plan.facts["config"], plan.job.used):
        assert (kept["recipe"]["patch_size"], kept["recipe"]["decoder_channels"]) == (4, [256, 128, 64])
    assert configs.defaults_said(plan.config) == [
        "s3pet with a size of tokens that follows the voxels, which its paper does not have."
    ]
    paper = configs.override(coarse, ["recipe.patch_size=8"])
    assert plan_run(copied, tmp_path / "paper", paper).config.model.patch_size == 8
