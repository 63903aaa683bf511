"""Objectives, and studies that survive whatever ends the process that drives them."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import BaseTrial, TrialState

from petscale.evaluation.scores import Evaluation
from petscale.evaluation.scoring import score_case
from petscale.tuning import objectives, study
from petscale.tuning.objectives import OBJECTIVES, Objective, objective, value_of
from petscale.tuning.samplers import SAMPLERS
from petscale.tuning.study import hold, open_study, read_study, repair_journal
from petscale.tuning.trials import (
    RETRIES,
    ask,
    best,
    enqueue_first,
    finished,
    folder_of,
    history,
    report,
    requeue,
    tell,
)
from storage.errors import InputError
from storage.source import LABEL, SUV, ArraySource, Grid
from trainers.metrics.clinical import BIASES
from trainers.metrics.definitions import Score, ScoreDefinition
from trainers.metrics.presets import PRESETS
from trainers.metrics.unet_score import MEAN, UNION

STORAGES = ("", "sqlite")
PSNR, MAE = objective("psnr_body"), objective("mae_body")
IDENTITY = {"recipe": "s3pet", "space": "masking", "cohort": "c0ffee", "configuration": "beef", "budget": {"steps": 9}}
PAPER = {"x": 0.5, "kind": "b", "depth": 2}


def space(trial: BaseTrial) -> dict[str, Any]:
    kind = trial.suggest_categorical("kind", ["a", "b"])
    settings: dict[str, Any] = {"recipe.x": trial.suggest_float("x", 0.0, 1.0), "recipe.patch": (8, 8, 8)}
    if kind == "b":
        settings["recipe.depth"] = trial.suggest_int("depth", 1, 3)
    return settings


def opened(
    folder: Path,
    storage: str = "",
    *,
    objectives: Sequence[Objective] = (PSNR,),
    sampler: str = "tpe",
    seed: int = 1,
    **facts: Any,
) -> optuna.Study:
    identity = {**IDENTITY, **facts}
    return open_study(folder, storage=storage, identity=identity, objectives=objectives, sampler=sampler, seed=seed)


def score_of(trial: optuna.Trial) -> float:
    return float(30 - (trial.params["x"] - 0.3) ** 2)


def run(study: optuna.Study, trials: int) -> None:
    for _ in range(trials):
        trial, _settings = ask(study, space)
        tell(study, trial, [score_of(trial)] * len(study.directions))


def refused(code: str, call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- objectives -----------------------------------------------------------------------------------------------------


def test_handy_names_are_their_explicit_forms() -> None:
    for name, named in OBJECTIVES.items():
        assert objective(name) == named
        assert replace(objective(named.key), name=name) == named
        assert objective(name.upper()) == named
    assert (PSNR.direction, MAE.direction) == ("maximize", "minimize")
    assert objective("PSNR:body").key == PSNR.key == "PSNR:body:native"
    bias = objective("suvmax_bias_lesions")
    assert (bias.absolute, bias.direction) == (True, "minimize")
    assert objective("suvmax_bias:Liver").region == "liver"
    assert objective("psnr:whole:udpet2022").preset == "udpet2022"
    assert objective("ms-ssim:whole").preset == "cascade"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("psnr_bdy", "psnr_body"),
        ("suvmax_lesions", "suvmax_bias_lesions"),
        ("PSRN:body", "PSNR:body"),
        ("PSNR:lesion", "PSNR:lesions"),
        ("PSNR:bdy", "PSNR:body"),
        ("PSNR:body:natve", "PSNR:body:native"),
        ("PSNR:body:udpet2022", "PSNR:whole:udpet2022"),
        ("SUVmean:lesions", "SUVmean bias:lesions"),
        ("TLG bias:body", "TLG bias:lesions"),
        ("PSNR:", "metric:region"),
        ("a:b:c:d", "metric:region"),
        ("", "handy name"),
    ],
)
def test_an_unknown_objective_names_the_nearest(typed: str, hint: str) -> None:
    assert hint in refused("TUNE_OBJECTIVE", objective, typed)


def test_every_stored_score_can_be_an_objective() -> None:
    grid = Grid((24, 24, 24), np.diag([4.0, 4.0, 4.0, 1.0]))
    labels = np.zeros(grid.shape, np.float32)
    labels[4:20, 4:20, 4:20] = 1
    labels[5:9, 5:9, 5:9], labels[12:15, 12:15, 12:15], labels[5:7, 14:16, 14:16] = 2, 3, 3
    rng = np.random.Generator(np.random.Philox(1))
    full = np.choose(labels.astype(int), (0.1, 1.0, 3.0, 8.0)) + 0.1 * rng.random(grid.shape)
    images = {"low": full * 1.2 + rng.random(grid.shape), "net": full * 0.9 + 0.3 * rng.random(grid.shape)}
    rows = score_case(
        "case-1",
        ArraySource(full.astype(np.float32), grid, SUV),
        {name: ArraySource(voxels.astype(np.float32), grid, SUV) for name, voxels in images.items()},
        body=ArraySource((labels > 0).astype(np.float32), grid, LABEL),
        labels=ArraySource(labels, grid, LABEL),
        label_names={1: "body", 2: "liver", 3: "lesion"},
        presets=list(PRESETS),
    )
    unet_score = ScoreDefinition("Unet-score", "ROI", "Dice", "1", preset="sgsgan")
    rows += [Score("case-1", "net", name, "organ", unet_score, value)
             for name, value in (("liver", 0.8), (UNION, 0.1), (MEAN, 0.8))]  # fmt: skip
    summary = Evaluation(tuple(rows), ("low", "net"), ("case-1",)).summary()
    seen = 0
    for line in (line for line in summary if line.image == "net" and line.definition.metric not in objectives._AIMLESS):
        wanted = objective(
            f"{line.definition.metric}:{line.kind if line.kind == 'whole' else line.region}:{line.definition.preset}"
        )
        value = value_of(wanted, rows, "net")
        named = [s for s in summary if (s.image, s.kind, s.region) == ("net", line.kind, line.region)]
        same = [s.mean for s in named if (s.definition.metric, s.definition.preset) == (wanted.metric, wanted.preset)]
        if not wanted.absolute:
            assert value == pytest.approx(same[0], nan_ok=True), wanted
        assert wanted.direction == ("maximize" if line.definition.higher_is_better else "minimize")
        seen += 1
    assert seen > 40
    assert all(math.isfinite(value_of(named, rows, "net")) for named in OBJECTIVES.values())
    assert value_of(objective("Unet-score:organs"), rows, "net") == 0.8


def lesion(case: str, name: str, value: float, image: str = "net") -> Score:
    return Score(case, image, name, "lesion", BIASES["SUVmax"], value)


def test_opposite_biases_do_not_cancel_and_lesions_are_averaged_within_a_case() -> None:
    rows = [lesion("a", "lesion 1", 20.0), lesion("a", "lesion 2", -20.0), lesion("b", "lesion 1", -5.0)]
    assert value_of(objective("suvmax_bias_lesions"), rows, "net") == (20 + 5) / 2
    signed = replace(objective("suvmax_bias_lesions"), absolute=False)
    assert value_of(signed, rows, "net") == -2.5


def test_what_no_image_defines_is_left_out_and_what_one_image_loses_is_not() -> None:
    rows = [lesion("a", "lesion 1", 10.0), lesion("a", "lesion 2", math.nan), lesion("a", "lesion 2", math.nan, "low")]
    wanted = objective("suvmax_bias_lesions")
    assert value_of(wanted, rows, "net") == 10
    assert math.isnan(value_of(wanted, [*rows[:2], lesion("a", "lesion 2", 3.0, "low")], "net"))
    assert "not defined" in refused("TUNE_NO_SCORE", value_of, wanted, rows[1:], "net")


def test_a_score_that_is_missing_says_what_is_missing() -> None:
    rule = next(rule for rule in PRESETS["native"] if (rule.metric, rule.region) == ("PSNR", "ROI"))
    rows = [Score("a", "net", "liver", "organ", rule, 30.0)]
    assert "no lesions are labelled" in refused("TUNE_NO_SCORE", value_of, objective("psnr_lesions"), rows, "net")
    assert "labelled: liver" in refused("TUNE_NO_SCORE", value_of, objective("PSNR:spleen"), rows, "net")
    assert "image low" in refused("TUNE_NO_SCORE", value_of, objective("PSNR:liver"), rows, "low")
    assert "preset s3pet" in refused("TUNE_NO_SCORE", value_of, objective("NMSE:whole"), rows, "net")
    assert "segmenter" in refused("TUNE_NO_SCORE", value_of, objective("unet_score"), rows, "net")


# ---- opening --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [*STORAGES, "url"])
def test_a_study_is_opened_again_with_everything_it_had(tmp_path: Path, storage: str) -> None:
    if storage == "url":
        storage = f"sqlite:///{tmp_path}/elsewhere.db"
    study = opened(tmp_path / "study", storage)
    assert study.study_name == "petscale"
    enqueue_first(study, PAPER)
    run(study, 4)
    told = history(study)
    assert json.loads(json.dumps(told[0]))["settings"] == {
        "recipe.x": 0.5,
        "recipe.patch": [8, 8, 8],
        "recipe.depth": 2,
    }
    assert told[0]["params"] == PAPER
    again = opened(tmp_path / "study", storage)
    enqueue_first(again, PAPER)
    assert history(again) == told == history(read_study(tmp_path / "study", storage))
    assert [trial.number for trial in finished(again)] == [0, 1, 2, 3]
    assert best(again)[0].values[0] == max(line["values"][0] for line in told)


@pytest.mark.parametrize(
    ("field", "storage"), [(field, "") for field in (*IDENTITY, "objectives", "extra")] + [("cohort", "sqlite")]
)
def test_a_study_of_anything_else_is_refused_by_name(tmp_path: Path, field: str, storage: str) -> None:
    run(opened(tmp_path, storage), 1)
    changed = {"objectives": (PSNR, MAE)} if field == "objectives" else {field: "another"}
    message = refused("TUNE_STUDY", opened, tmp_path, storage, **changed)
    assert f"differs in {field};" in message
    assert "another --study folder" in message
    assert len(finished(opened(tmp_path, storage))) == 1


def test_a_study_made_before_a_space_was_renamed_goes_on(tmp_path: Path) -> None:
    run(opened(tmp_path, spaces=["losses", "practice"]), 1)
    again = opened(tmp_path, spaces=["losses", "training"])
    assert len(finished(again)) == 1
    assert again.user_attrs["identity"]["spaces"] == ["losses", "practice"], "what is stored stays as it was written"
    assert "differs in spaces;" in refused("TUNE_STUDY", opened, tmp_path, spaces=["training"])


def test_sampler_seed_and_the_way_an_objective_is_typed_may_change(tmp_path: Path) -> None:
    run(opened(tmp_path), 1)
    run(opened(tmp_path, sampler="random", seed=5, objectives=[objective("PSNR:body")]), 1)
    assert len(finished(opened(tmp_path))) == 2


def test_a_study_made_by_someone_else_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="petscale", storage=url).enqueue_trial({"x": 1.0})
    refused("TUNE_STUDY", opened, tmp_path, "sqlite")


def test_a_study_that_died_at_birth_is_finished(tmp_path: Path) -> None:
    opened(tmp_path)
    journal = tmp_path / "study.journal"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    assert opened(tmp_path).user_attrs["identity"]["recipe"] == "s3pet"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    assert "directions" in refused("TUNE_STUDY", opened, tmp_path, objectives=[MAE])


def test_a_database_belongs_to_one_folder(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    run(opened(tmp_path / "one", url), 1)
    assert "folder" in refused("TUNE_STUDY", opened, tmp_path / "two", url)
    (tmp_path / "one").rename(tmp_path / "moved")
    assert len(finished(opened(tmp_path / "moved", url))) == 1


@pytest.mark.parametrize(
    "storage",
    [
        "postgresql://someone:s3cr3t@127.0.0.1:1/db",
        "postgresql+psycopg://someone:s3cr3t@127.0.0.1:1/db?password=s3cr3t",
        "nodatabase://someone:s3cr3t@127.0.0.1/db",
        "sqlite:////nowhere/s3cr3t/study.db",
        "postgresql://someone:s3cr3t@127.0.0.1:port/db",
        "postgresql://someone:s3cr3t@[::1/db",
        "someone:s3cr3t",
        "://s3cr3t",
    ],
)
def test_a_store_out_of_reach_is_told_without_its_secrets(tmp_path: Path, storage: str) -> None:
    for call in (opened, read_study):
        message = refused("TUNE_STORAGE", call, tmp_path, storage)
        assert "s3cr3t" not in message
        assert "someone" not in message


def test_what_a_driver_says_is_told_without_the_password() -> None:
    url = "postgresql://me:a%20b@host/db?sslpassword=zz9"
    assert study._without_secrets("FATAL: 'a b' or a%20b or zz9 wrong", url) == "FATAL: '***' or *** or *** wrong"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"not a database at all" * 100)
    assert "not a database" in refused("TUNE_STORAGE", opened, tmp_path, "sqlite")


def test_there_is_nothing_to_look_at_where_no_study_is(tmp_path: Path) -> None:
    for storage in STORAGES:
        refused("TUNE_STUDY", read_study, tmp_path, storage)
    refused("TUNE_STUDY", read_study, tmp_path, f"sqlite:///{tmp_path}/new.db")
    assert not (tmp_path / "study.journal").exists()


def test_one_or_two_different_objectives(tmp_path: Path) -> None:
    for asked in ((), (PSNR, objective("PSNR:body")), (PSNR, MAE, objective("ssim_body"))):
        refused("TUNE_OBJECTIVE", opened, tmp_path, objectives=asked)
    assert not list(tmp_path.iterdir())


def test_an_unknown_sampler_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    assert "tpe" in refused("TUNE_SAMPLER", opened, tmp_path / "study", sampler="tpee")
    assert not (tmp_path / "study").exists()


def test_a_second_driver_is_kept_out(tmp_path: Path) -> None:
    with hold(tmp_path / "study"):
        refused("STORE_BUSY", hold(tmp_path / "study").__enter__)
    with hold(tmp_path / "study"):
        pass


# ---- samplers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objectives", [(PSNR,), (PSNR, MAE)])
def test_a_sweep_is_the_same_again_also_when_it_was_closed_between_trials(
    tmp_path: Path, sampler: str, objectives: tuple[Objective, ...]
) -> None:
    whole = opened(tmp_path / "whole", sampler=sampler, objectives=objectives)
    run(whole, 16)
    for _ in range(4):
        run(opened(tmp_path / "parts", sampler=sampler, objectives=objectives), 4)
    first, second = (history(read_study(tmp_path / name)) for name in ("whole", "parts"))
    assert [line["params"] for line in first] == [line["params"] for line in second]
    if sampler != "nsga2":  # whose crossover may give a parent again
        assert len({json.dumps(line["params"]) for line in first}) == 16
    other = opened(tmp_path / "other", sampler=sampler, objectives=objectives, seed=2)
    run(other, 1)
    assert history(other)[0]["params"] != first[0]["params"]


def test_tpe_finds_what_random_misses(tmp_path: Path) -> None:
    def near(sampler: str) -> float:
        study = opened(tmp_path / sampler, sampler=sampler)
        run(study, 40)
        return float(np.mean([abs(line["params"]["x"] - 0.3) for line in history(study)[20:]]))

    assert near("tpe") < 0.7 * near("random")


def test_the_front_of_two_objectives_holds_what_nothing_beats(tmp_path: Path) -> None:
    study = opened(tmp_path, objectives=(PSNR, MAE), sampler="nsga2")
    assert best(study) == []
    for values in ([30.0, 0.2], [31.0, 0.3], [29.0, 0.4], [32.0, math.nan]):
        tell(study, ask(study, space)[0], values)
    assert [trial.number for trial in best(study)] == [1, 0]


# ---- trials ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("objectives", [(PSNR,), (PSNR, MAE)])
def test_five_interruptions_lose_nothing_and_repeat_nothing(
    tmp_path: Path, storage: str, objectives: tuple[Objective, ...]
) -> None:
    for session in range(6):
        study = opened(tmp_path, storage, objectives=objectives)
        enqueue_first(study, PAPER)
        before = [trial.number for trial in study.get_trials(states=(TrialState.RUNNING,))]
        assert requeue(study) == before
        assert requeue(study) == []
        tell(study, one := ask(study, space)[0], [score_of(one)] * len(objectives))
        for _ in range(2):  # abandoned, as by kill -9
            trial, _settings = ask(study, space)
            report(trial, session, 20.0 + session)
    study = opened(tmp_path, storage, objectives=objectives)
    requeue(study)
    while study.get_trials(states=(TrialState.WAITING,)):
        run(study, 1)
    told = history(study)
    done = [line for line in told if line["state"] == "COMPLETE"]
    assert len({json.dumps(line["params"], sort_keys=True) for line in done}) == len(done) == 8
    assert {json.dumps(line["params"], sort_keys=True) for line in told} == {
        json.dumps(line["params"], sort_keys=True) for line in done
    }
    assert done[0]["params"] == PAPER
    for line in told:
        if line["state"] == "FAIL":
            assert (line["note"], line["seconds"]) == ("interrupted", None)
            heirs = [heir for heir in done if heir["folder"] == line["folder"]]
            assert len(heirs) == 1
            assert heirs[0]["params"] == line["params"]
            assert line["intermediate"].items() <= heirs[0]["intermediate"].items()
            first = told[line["folder"]]
            assert (first["number"], first["folder"]) == (line["folder"], line["folder"])
    assert len(finished(study)) == 8


def test_a_death_between_queueing_and_telling_queues_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(tmp_path)
    ask(study, space)

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", die)
        with pytest.raises(KeyboardInterrupt):
            requeue(study)
    study = opened(tmp_path)
    assert requeue(study) == []
    assert [line["state"] for line in history(study)] == ["FAIL", "WAITING"]


def test_a_trial_that_died_before_it_was_asked_anything_is_not_taken_up(tmp_path: Path) -> None:
    study = opened(tmp_path)
    study.ask()
    assert requeue(opened(tmp_path)) == []
    assert [line["state"] for line in history(opened(tmp_path))] == ["FAIL"]
    assert finished(study) == []


def test_a_trial_that_died_while_it_was_asked_keeps_what_it_had(tmp_path: Path) -> None:
    study = opened(tmp_path)
    enqueue_first(study, {"x": 0.25})
    study.ask().suggest_categorical("kind", ["a", "b"])
    requeue(study)
    trial, _settings = ask(study, space)
    assert trial.params["x"] == 0.25


def test_the_trials_of_this_driver_are_left_alone(tmp_path: Path) -> None:
    study = opened(tmp_path)
    mine, _ = ask(study, space)
    ask(study, space)
    assert requeue(study, alive={mine.number}) == [1]
    tell(study, mine, [30.0])
    assert [line["state"] for line in history(study)] == ["COMPLETE", "FAIL", "WAITING"]


def test_a_trial_that_fails_is_tried_once_more_in_its_folder(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for attempt in range(RETRIES + 1):
        trial, _settings = ask(study, space)
        assert folder_of(trial) == 0
        assert tell(study, trial, state="FAIL", note="TRAIN_FAILED") == "FAIL"
        study = opened(tmp_path)
        assert requeue(study) == ([trial.number] if attempt < RETRIES else [])
        assert requeue(study) == []
    assert [trial.number for trial in finished(study)] == [RETRIES]
    assert {line["note"] for line in history(study)} == {"TRAIN_FAILED"}
    assert best(study) == []


@pytest.mark.parametrize("objectives", [(PSNR,), (PSNR, MAE)])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_trial_has_no_value_is_not_tried_again_and_stops_no_sampler(
    tmp_path: Path, objectives: tuple[Objective, ...], sampler: str, value: float
) -> None:
    study = opened(tmp_path, objectives=objectives, sampler=sampler)
    for _ in range(12):
        trial, _settings = ask(study, space)
        assert tell(study, trial, [30.0, value][-len(objectives) :]) == "PRUNED"
    line = history(study)[0]
    assert (line["state"], line["values"]) == ("PRUNED", None)
    assert "diverged" in line["note"]
    assert requeue(study) == []
    assert len(finished(study)) == 12
    run(study, 2)
    assert best(study)[0].number >= 12
    json.dumps(history(study), allow_nan=False)


def test_tpe_keeps_away_from_where_trials_diverge(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for _ in range(30):
        trial, _settings = ask(study, space)
        tell(study, trial, [math.nan if trial.params["x"] > 0.5 else 30.0 + trial.number % 3])
    late = [line["params"]["x"] for line in history(study)[12:]]
    assert np.mean(np.array(late) > 0.5) < 0.35


@pytest.mark.parametrize("objectives", [(PSNR,), (PSNR, MAE)])
def test_a_trial_stopped_early_keeps_its_rungs_and_no_value(tmp_path: Path, objectives: tuple[Objective, ...]) -> None:
    study = opened(tmp_path, objectives=objectives)
    trial, _settings = ask(study, space)
    for rung, value in ((1, 20.0), (2, 21.0), (2, 99.0), (3, math.nan)):
        report(trial, rung, value)
    assert tell(study, trial, state="PRUNED", note="stopped at rung 2") == "PRUNED"
    line = history(opened(tmp_path, objectives=objectives))[0]
    assert (line["state"], line["values"], line["intermediate"]) == ("PRUNED", None, {1: 20.0, 2: 21.0})
    assert line["seconds"] >= 0
    assert best(study) == []


# ---- damage ---------------------------------------------------------------------------------------------------------


def test_a_whole_journal_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    assert repair_journal(path) is None
    path.touch()
    assert repair_journal(path) is None
    run(opened(tmp_path), 2)
    before, when = path.read_bytes(), path.stat().st_mtime_ns
    assert repair_journal(path) is None
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, when)
    assert list(tmp_path.glob("*.torn-*")) == []


def test_a_journal_torn_at_any_byte_of_its_last_line_goes_on(tmp_path: Path) -> None:
    run(opened(tmp_path), 2)
    path = tmp_path / "study.journal"
    content = path.read_bytes()
    whole = content[: content[:-1].rindex(b"\n") + 1]
    for cut in range(len(whole) + 1, len(content)):
        path.write_bytes(content[:cut])
        backup = repair_journal(path)
        assert backup is not None
        assert backup.name == f"study.journal.torn-{cut - len(whole)}"
        assert backup.read_bytes() == content[:cut]
        assert path.read_bytes() == whole
    for cut in range(len(whole), len(content), 12):  # the last line told trial 1 complete: it is taken up again
        path.write_bytes(content[:cut])
        study = opened(tmp_path)
        assert requeue(study) == [1]
        run(study, 2)
        again = history(opened(tmp_path))
        assert [line["state"] for line in again] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
        assert again[2]["params"] == again[1]["params"]


@pytest.mark.parametrize(
    "tail", [b"\x00" * 40, b"\x00" * 40 + b"\n", b"garbage\n", b"\xff\xfe", b"17\n", b"{}\n", b"\n"]
)
def test_garbage_at_the_end_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    run(opened(tmp_path), 1)
    path = tmp_path / "study.journal"
    content = path.read_bytes()
    path.write_bytes(content + tail)
    assert repair_journal(path).read_bytes() == content + tail
    assert path.read_bytes() == content
    run(opened(tmp_path), 1)
    assert len(finished(opened(tmp_path))) == 2


def test_damage_before_the_last_line_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run(opened(tmp_path), 2)
    path = tmp_path / "study.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines[:-1]):
        content = b"".join([*lines[:number], line[: len(line) // 2] + b"\n", *lines[number + 1 :]])
        path.write_bytes(content)
        assert f"line {number + 1} " in refused("TUNE_JOURNAL", opened, tmp_path)
        assert path.read_bytes() == content
    # every line whole, but not one story
    path.write_bytes(b"".join(lines[:2]) + lines[2].replace(b'"study_id"', b'"study_ID"') + b"".join(lines[3:]))
    refused("TUNE_JOURNAL", opened, tmp_path)


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(tmp_path)
    trial, _settings = ask(study, space)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused("DISK_FULL", tell, study, trial, [30.0])


KILLED = """
import os, signal, sys, time
from pathlib import Path
from petscale.tuning.objectives import objective
from petscale.tuning.study import hold, open_study
from petscale.tuning.trials import ask, finished, requeue, tell

folder, storage = Path(sys.argv[1]), sys.argv[2]


def opened():
    return open_study(folder, storage=storage, identity={}, objectives=[objective("psnr_body")], sampler="tpe", seed=1)


def drive():
    with hold(folder):
        study = opened()
        requeue(study)
        while True:
            trial, settings = ask(study, lambda trial: {"x": trial.suggest_float("x", 0, 1)})
            with (folder / "ran").open("a") as file:
                print(trial.params["x"], file=file)
            tell(study, trial, [trial.params["x"]])


done = {}
for kill in range(5):
    driver = os.fork()
    if not driver:
        try:
            drive()
        finally:
            os._exit(1)
    while not (folder / "ran").exists() or len((folder / "ran").read_text().splitlines()) < 3 * (kill + 1):
        assert os.waitpid(driver, os.WNOHANG) == (0, 0), "the driver died by itself"
        time.sleep(0.001)
    time.sleep(0.002 * kill)
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    with hold(folder):
        study = opened()
        told = {trial.number: trial.params["x"] for trial in finished(study)}
        assert done.items() <= told.items(), "a finished trial was lost"
        assert len(set(told.values())) == len(told), "a finished trial was repeated"
        done = told
started = [float(x) for x in (folder / "ran").read_text().splitlines()]
assert set(done.values()) <= set(started)
assert len(started) - len(set(started)) <= 5, "more was begun twice than was interrupted"
print("finished", len(done))
"""


@pytest.mark.parametrize("storage", STORAGES)
def test_a_driver_killed_at_any_moment_loses_and_repeats_no_finished_trial(tmp_path: Path, storage: str) -> None:
    words = [sys.executable, "-c", KILLED, str(tmp_path), storage]
    told = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert told.returncode == 0, told.stderr
    assert int(told.stdout.split()[-1]) >= 10
