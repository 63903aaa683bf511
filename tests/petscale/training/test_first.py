"""A run that starts from the weights of another one: it does, it says so, and resumes bit for bit; or is refused."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from named_runs import PATIENTS, TESTED, fill, write_run
from small_runs import leave_group

from petscale import config as configs
from petscale import likeness
from petscale.cards.making import make_card
from petscale.cli import main
from petscale.cluster import session as sessions
from petscale.evaluation.external import choose_cases
from petscale.evaluation.run import run_facts
from petscale.folders import CONFIG, WEIGHTS
from petscale.inference import load_run
from petscale.training import driver, worker
from petscale.training.first import check_init
from petscale.training.planning import Plan
from petscale.tuning import trial
from storage import integrity
from storage.errors import InputError
from storage.reader import open_cohort
from storage.source import SUV
from trainers import checkpoint
from trainers.engine import plain_engines

Refused = Callable[..., str]
SMALL = ["--recipe", "red_cnn", "--recipe.channels", "2", "--recipe.patch", "1", "24", "24", "--recipe.samples", "32"]
SMALL += ["--feed.source", "low_drf4", "--feed.cases-per-step", "2", "--loop.picture-every", "0"]


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort that the first run was trained on; read only."""
    return fill(tmp_path_factory.mktemp("clinic"), edge=24)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another cohort, of other patients; read only."""
    return fill(tmp_path_factory.mktemp("ours") / "ours", ("ann-1", "bob-1", "cid-1"), edge=24)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory, clinic: Path) -> Path:
    folder = tmp_path_factory.mktemp("card")
    make_card(write_run(folder / "run", clinic), folder / "card.safetensors")
    return folder / "card.safetensors"


@pytest.fixture
def until(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int | None]]:
    """Training is real, in this process; the last number is the step that it stops after."""
    steps: list[int | None] = [None]

    def here(plan: Plan, *, left_s: float | None) -> None:
        trial._join_alone()
        worker.train_worker(replace(plan.job, until=steps[-1], stop_in_s=left_s, told_at=time.time()).to_json())
        driver.raise_refusal(plan.run)

    monkeypatch.setattr(driver, "train_on_ray", here)
    monkeypatch.setattr(sessions, "session", lambda *_: nullcontext())
    monkeypatch.setattr(worker, "deepspeed_engines", lambda config, device: plain_engines(config))
    yield steps
    if "deepspeed" in sys.modules:
        leave_group()
    else:
        dist.destroy_process_group()


def words(cohort: Path, run: Path, *more: object) -> list[str]:
    return ["train", str(cohort), "--run", str(run), *SMALL, *map(str, more)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(run / WEIGHTS)[0]


def test_it_starts_there_and_resumes_bit_for_bit(
    card: Path, ours: Path, tmp_path: Path, until: list[int | None], refused: Refused
) -> None:
    first = checkpoint.read_weights(card)[0]
    still = ["--recipe.lr", "1e-9", "--init", card]
    main(words(ours, tmp_path / "still", *still))
    assert all(torch.allclose(value, first[name], atol=1e-6) for name, value in weights(tmp_path / "still").items())
    main(words(ours, tmp_path / "anew", *still[:2]))
    assert not all(torch.allclose(value, first[name], atol=1e-2) for name, value in weights(tmp_path / "anew").items())

    tuned = ["--recipe.lr", "1e-3", "--init", card]
    main(words(ours, tmp_path / "straight", *tuned))
    until.append(2)
    main(words(ours, tmp_path / "stopped", *tuned))
    until.append(None)
    for wrong in (tuned[:2], [*tuned[:2], "--init", tmp_path / "still" / WEIGHTS]):
        assert refused(*words(ours, tmp_path / "stopped", *wrong)).startswith("CKPT_DRIFT checkpoint")
    main(words(ours, tmp_path / "stopped", *tuned))
    straight, stopped = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)
    assert not all(torch.equal(straight[name], first[name]) for name in straight)


def test_what_it_started_from_is_told(
    card: Path, ours: Path, clinic: Path, tmp_path: Path, until: list[int | None]
) -> None:
    run = tmp_path / "run"
    main(words(ours, run, "--init", card))
    before = json.loads(checkpoint.read_weights(card)[1]["trained_on"])
    record = json.loads((run / CONFIG).read_bytes())
    assert record["files"]["init"] == integrity.file_digest(card)
    assert record["trained_before"] == before
    seen = json.loads(checkpoint.read_weights(run / WEIGHTS)[1]["trained_on"])
    assert set(before) < set(seen)
    assert {record["cases"][name] for name in record["train"]} < set(seen)
    assert load_run(run).notes == ()  # its weights are its own
    like = load_run(run).on.like
    assert like is not None
    assert like == likeness.from_json(
        likeness.learn(open_cohort(ours), record["train"], load_run(run).config.feed.source).to_json()
    )
    chosen = choose_cases(run, run_facts(run)[1], open_cohort(clinic))
    assert chosen.cases == (TESTED,)  # the others are not new to these weights
    assert set(chosen.left_out) == {*PATIENTS} - {TESTED}
    # And so on: what is trained from this run knows its grandparent's cases.
    shutil.rmtree(run / "checkpoints")
    main(words(ours, tmp_path / "next", "--init", run / WEIGHTS))
    assert json.loads((tmp_path / "next" / CONFIG).read_bytes())["trained_before"] == sorted(seen)


def test_weights_of_something_else_are_refused(card: Path, tmp_path: Path) -> None:
    def edited(name: str, **facts: str) -> Path:
        tensors, told = checkpoint.read_weights(card)
        checkpoint.write_weights(tmp_path / name, tensors, told | facts)
        return tmp_path / name

    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(card.read_bytes()[:-4] + b"\0\0\0\1")
    tensors, facts = checkpoint.read_weights(card)
    bare = {name: value for name, value in facts.items() if name != "trained_on"}
    checkpoint.write_weights(tmp_path / "bare", tensors, bare)
    config = configs.from_json(json.loads(facts["config"]))
    seen = check_init(card, config, SUV, ())
    assert list(seen) == json.loads(facts["trained_on"])
    wide = replace(config, model=replace(config.model, channels=3))
    unscaled = replace(config, feed=replace(config.feed, suv_scale=1.0))
    other = configs.RunConfig(recipe="unet")
    for init, wanted, told in (
        (tmp_path / "absent", config, "IMG_NO_FILE absent"),
        (tmp_path, config, "CKPT_CONFIG"),
        (damaged, config, "CKPT_DAMAGED damaged.safetensors"),
        (tmp_path / "bare", config, "CKPT_PROOF bare"),
        (edited("odd", trained_on="7"), config, "CKPT_CONFIG odd"),
        (edited("from_ct", starts_from='{"units": "HU", "spacing_mm": null}'), config, "SET_WRONG_UNITS from_ct"),
        (card, wide, "CKPT_CONFIG card.safetensors: weights of other networks"),
        (card, unscaled, "CKPT_SCALE card.safetensors"),
        (card, other, "CKPT_RECIPE card.safetensors: weights of 'red_cnn', this run is 'unet'"),
    ):
        with pytest.raises(InputError, match=f"^{told}"):
            check_init(init, wanted, SUV, ())
    with pytest.raises(InputError, match=r"^CKPT_LEAK card\.safetensors"):
        check_init(card, config, SUV, seen[:1])


@pytest.mark.usefixtures("no_ray")
def test_a_run_never_tests_what_its_first_weights_have_seen(
    card: Path, clinic: Path, tmp_path: Path, refused: Refused
) -> None:
    leaking = words(clinic, tmp_path / "run", "--init", card, "--split.test", PATIENTS[0])
    assert refused(*leaking).startswith("CKPT_LEAK card.safetensors")
    assert not (tmp_path / "run").exists()
