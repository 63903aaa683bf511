"""All folds by one command: each trained once, every patient scored once by the run that never saw him or her."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import leave_group

from petscale import config as configs
from petscale.cli import main
from petscale.cluster import session as sessions
from petscale.config import RunConfig
from petscale.crossvalidation import folds as crossvalidation
from petscale.crossvalidation.folds import _splits
from petscale.evaluation.scores import read_evaluation
from petscale.folders import EVALUATION, FOLDS, WEIGHTS
from petscale.reporting import ReportData
from petscale.reporting import folds as reporting
from petscale.splits import Roles, SplitConfig
from petscale.training import driver, worker
from petscale.training.planning import Plan, plan_run
from petscale.tuning import trial
from storage.errors import InputError
from trainers import checkpoint, time_limit
from trainers.engine import plain_engine, plain_engines
from trainers.metrics.presets import BODY_PSNR
from trainers.systems import RECIPES
from trainers.time_limit import Pieces

OPTIONS = [
    "--recipe",
    "red_cnn",
    "--recipe.channels",
    "2",
    "--recipe.patch",
    "1",
    "32",
    "32",
    "--feed.source",
    "low_drf4",
]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were asked to be trained; they get weights that nobody trained."""
    asked: list[str] = []

    def train(
        cohort: Path,
        run: Path,
        config: RunConfig,
        *,
        command: str,
        others: Sequence[Path],
        roles: Roles,
        time_limit_s: float | None,
    ) -> Path:
        plan = plan_run(cohort, run, config, others=others, roles=roles)
        run.mkdir(parents=True)
        plan.record(command)
        asked.append(run.name)
        torch.manual_seed(len(asked))
        recipe = RECIPES["red_cnn"].build(config.model, make_engine=plain_engine, patches_per_step=4)
        start = json.dumps({"units": "SUVbw", "spacing_mm": None})
        told = {"recipe": "red_cnn", "config": json.dumps(configs.to_json(config)), "starts_from": start}
        checkpoint.write_weights(run / WEIGHTS, recipe.weights(), told | dict(plan.job.proof))
        return run / WEIGHTS

    monkeypatch.setattr(driver, "train", train)
    return asked


def folds(cohort: Path, folder: Path, *options: str) -> list[str]:
    return ["folds", str(cohort), "--run", str(folder), *OPTIONS, *options]


def test_every_patient_is_scored_once_by_the_run_that_never_saw_him_or_her(
    cohort: Path,
    tmp_path: Path,
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "cv"
    main(folds(cohort, folder, "--k", "2"))
    said = capsys.readouterr()
    assert said.out.split() == [str(folder)]
    assert trained == ["fold-0", "fold-1"]
    assert "2 folds, from low_drf4: 4 patients, each scored once" in said.err
    whole = read_evaluation(folder / EVALUATION / "low_drf4")
    assert sorted(whole.cases) == [f"phantom-00{n}" for n in range(4)]
    values = whole.values("synthesized", BODY_PSNR, "body")
    for name in trained:
        facts = json.loads((folder / name / "config.json").read_bytes())
        assert not {*facts["train"], *facts["validation"]} & {*facts["test"]}
        alone = read_evaluation(folder / name / EVALUATION / "low_drf4")
        assert {case: values[case] for case in facts["test"]} == alone.values("synthesized", BODY_PSNR, "body")
        assert {case for case, fold in dict(whole.metadata["folds"]).items() if fold == name} == {*facts["test"]}  # type: ignore[call-overload]
    assert whole.images[0] == "low-dose input"
    assert all(len(whole.values(image, BODY_PSNR, "body")) == 4 for image in whole.images)
    assert len((folder / EVALUATION / "low_drf4" / "scores.csv").read_text().splitlines()) == len(whole.rows) + 1

    pages: list[ReportData] = []
    monkeypatch.setattr(reporting, "write_report", lambda path, data: pages.append(data))
    main(["report", str(folder), str(cohort)])
    assert pages[0].evaluation.rows == whole.rows
    assert list(pages[0].images) == list(whole.cases)
    assert {tuple(shown.candidates) for shown in pages[0].images.values()} == {whole.pictured}
    assert pages[0].notes[0].startswith("4 patients in 2 folds, each scored by the run that never saw him or her")
    capsys.readouterr()

    # What is there is neither trained nor scored again; what is not is.
    before = (folder / EVALUATION / "low_drf4" / "scores.json").read_bytes()
    main(folds(cohort, folder, "--k", "2"))
    assert trained == ["fold-0", "fold-1"]
    assert (folder / EVALUATION / "low_drf4" / "scores.json").read_bytes() == before


def test_folds_that_were_drawn_stay_when_the_cohort_grows_in_between(
    cohort: Path, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    copied, folder, apart = tmp_path / "cohort", tmp_path / "cv", tmp_path / "apart"
    shutil.copytree(cohort, copied)
    shutil.move(copied / "cases" / "phantom-003", apart)
    real = driver.train

    def killed(cohort: Path, run: Path, *rest: Any, **more: Any) -> Path:
        if run.name == "fold-1":
            raise KeyboardInterrupt
        return real(cohort, run, *rest, **more)

    monkeypatch.setattr(driver, "train", killed)
    with pytest.raises(SystemExit) as ended:
        main(folds(copied, folder))
    assert ended.value.code == 2  # five folds of three patients
    assert not folder.exists()
    with pytest.raises(SystemExit) as ended:
        main(folds(copied, folder, "--k", "3"))
    assert ended.value.code == 130
    drawn = json.loads((folder / FOLDS).read_bytes())["roles"]
    shutil.move(apart, copied / "cases" / "phantom-003")
    monkeypatch.setattr(driver, "train", real)
    main(folds(copied, folder, "--k", "3"))
    assert trained == ["fold-0", "fold-1", "fold-2"]
    tested = [json.loads((folder / name / "config.json").read_bytes())["test"] for name in trained]
    assert tested == [drawn[name]["test"] for name in trained]
    assert sorted(read_evaluation(folder / EVALUATION / "low_drf4").cases) == sorted(
        name for names in tested for name in names
    )
    for more, code in ((["--k", "2"], "CKPT_DRIFT"), (["--k", "3", "--recipe.lr", "0.5"], "CKPT_DRIFT")):
        assert refused(*folds(copied, folder, *more)).startswith(code)


@pytest.mark.usefixtures("no_ray")
def test_folds_that_cannot_be_are_refused_before_anything_is_written(
    cohort: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = tmp_path / "cv"
    for options, told in (
        (["--k", "5"], "SET_TOO_SMALL --k: 5 folds of 4 patients"),
        (["--k", "1"], "CFG_RANGE --k"),
        (["--k", "0"], "CFG_RANGE --k"),
        (["--k", "3", "--split.folds", "2"], "CFG_CONTRADICTION --k"),
        (["--k", "2", "--split.test", "phantom-000"], "CFG_CONTRADICTION split.test"),
        (["--split.folds", "2", "--split.fold", "1"], "CFG_CONTRADICTION split.fold"),
        (["--split.fold-tag", "fold"], "SET_NO_FACT split.fold_tag=fold"),
        (["--k", "2", "--feed.source", "low_drf7"], "SET_NO_IMAGE"),
    ):
        assert refused(*folds(cohort, folder, *options)).startswith(told)
        assert not folder.exists()
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    assert refused(*folds(cohort, folder, "--k", "2")).startswith("CFG_RUN_FOLDER cv")
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Training is real, in this process; names of the runs that were asked for their scores, which are left out."""
    asked: list[str] = []

    def here(plan: Plan, *, left_s: float | None) -> None:
        trial._join_alone()
        worker.train_worker(replace(plan.job, stop_in_s=left_s, told_at=time.time()).to_json())
        driver.raise_refusal(plan.run)

    def read(run: Path, cohort: Path, *, others: Sequence[Path], pieces: Pieces) -> dict[str, Any]:
        assert (run / WEIGHTS).is_file()
        asked.append(run.name)
        return {}

    monkeypatch.setattr(driver, "train_on_ray", here)
    monkeypatch.setattr(sessions, "session", lambda *_: nullcontext())
    monkeypatch.setattr(worker, "deepspeed_engines", lambda config, device: plain_engines(config))
    monkeypatch.setattr(crossvalidation, "read_evaluations", read)
    yield asked
    leave_group()


def test_folds_within_a_time_limit_go_on_and_end_as_without(
    cohort: Path, tmp_path: Path, scored: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--k", "2", "--recipe.samples", "16", "--feed.cases-per-step", "2", "--loop.picture-every", "0"]
    main(folds(cohort, tmp_path / "straight", *short))
    assert scored == ["fold-0", "fold-1"]
    scored.clear()
    capsys.readouterr()
    folder = tmp_path / "limited"
    told: list[str] = []
    while len(told) < 20 and scored[-1:] != ["fold-1"]:
        main(folds(cohort, folder, *short, "--time-limit", "1s"))  # near from the beginning: a step in each command
        said = capsys.readouterr()
        assert said.out.split() == [str(folder)]
        told.append(said.err.splitlines()[-1])
    within = "stopped in time after step 1 of 2; the same command continues"
    apart = "stopped in time before the scores of fold {} of 2; the same command continues"
    # Scores are made at the beginning of the next command, which goes on to another fold.
    assert told == [within, apart.format(1), within, apart.format(2), told[-1]]
    assert "stopped" not in told[-1]
    assert scored == ["fold-0"] * 3 + ["fold-1"]
    for name in ("fold-0", "fold-1"):
        ours, theirs = (checkpoint.read_weights(place / name / WEIGHTS)[0] for place in (folder, tmp_path / "straight"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


SHORT = ["--k", "2", "--recipe.samples", "8", "--loop.picture-every", "0", "--time-limit", "1d"]


def test_near_its_time_limit_no_other_fold_begins(
    cohort: Path,
    tmp_path: Path,
    scored: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def read(run: Path, cohort: Path, *, others: Sequence[Path], pieces: Pieces) -> dict[str, Any]:
        scored.append(run.name)
        monkeypatch.setattr(time_limit, "END_S", 1e9)  # the time is over now
        return {}

    monkeypatch.setattr(crossvalidation, "read_evaluations", read)
    main(folds(cohort, tmp_path / "cv", *SHORT))
    assert scored == ["fold-0"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "stopped in time before fold 2 of 2; the same command continues"
    assert not (tmp_path / "cv" / "fold-1").exists()


def test_scores_that_are_not_ready_in_time_are_gone_on_with(
    cohort: Path,
    tmp_path: Path,
    scored: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = 2

    def read(run: Path, cohort: Path, *, others: Sequence[Path], pieces: Pieces) -> dict[str, Any]:
        nonlocal left
        while left:
            pieces.begin()
            left -= 1
            scored.append(run.name)
            monkeypatch.setattr(time_limit, "END_S", 1e9)  # the time is over now
        return {}

    monkeypatch.setattr(crossvalidation, "read_evaluations", read)
    main(folds(cohort, tmp_path / "cv", *SHORT))
    assert scored == ["fold-0"]
    assert not (tmp_path / "cv" / "fold-1").exists()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "stopped in time in the scores of fold 1 of 2; the same command continues"
    main(folds(cohort, tmp_path / "cv", *SHORT))
    assert scored == ["fold-0"] * 2, "one case at least in every command"
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "stopped in time before fold 2 of 2; the same command continues"


class Tagged:
    """Cases that state their folds."""

    name = "cohort"

    def __init__(self, folds: Sequence[str]) -> None:
        self.folds = {f"case-{n}": fold for n, fold in enumerate(folds)}
        self.cases = tuple(self.folds)

    def case(self, name: str) -> Any:
        return SimpleNamespace(name=name, tags={"fold": self.folds[name]})


def test_a_cohort_that_states_its_folds_says_how_many_there_are() -> None:
    split = SplitConfig(fold_tag="fold", seed=3)
    found = _splits(Tagged(["2", "0", "1", "0"]), split, None)
    assert [(one.fold, one.fold_tag, one.seed) for one in found] == [(n, "fold", 3) for n in range(3)]
    with pytest.raises(InputError, match="CFG_CONTRADICTION --k: 5, where the cohort states 3"):
        _splits(Tagged(["2", "0", "1"]), split, 5)
    with pytest.raises(InputError, match=r"SET_NO_FACT .*: fold 'a' is no number"):
        _splits(Tagged(["0", "a"]), split, None)
    assert np.array([one.folds for one in _splits(Tagged(["0", "1"]), SplitConfig(), None)]).tolist() == [5] * 5
