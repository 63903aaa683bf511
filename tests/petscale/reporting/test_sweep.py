"""A sweep's page: whole with any trials, honest in words, safe with strings, and right about the front."""

import base64
import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest

from petscale.reporting.sweep import SweepData, render, verdict, write_sweep
from petscale.reporting.sweep_charts import Scale
from petscale.reporting.sweep_trials import MIN_TRIALS, Objective, Trial, importances, paper_trial, pareto

HOSTILE = "</script><script>alert(1)</script> & <img src=x>"
PSNR = Objective("PSNR inside the body", "maximize", "dB")
BIAS = Objective("lesion SUVmax bias", "minimize", "%")


def told(number: int, state: str = "COMPLETE", values: list[float] | None = None, **more: Any) -> dict[str, Any]:
    """A line of a study's history."""
    params = more.pop("params", {"recipe.lr": 1e-4 * (number + 1)})
    common = {"settings": params, "intermediate": {}, "seconds": 12.5, "folder": number, "note": ""}
    return {"number": number, "state": state, "params": params, "values": values, **common, **more}


def data(trials: list[dict[str, Any]], *objectives: Objective, **more: Any) -> SweepData:
    facts = {"importances": {}, "command": "petscale tune s3pet cohort --study study", **more}
    return SweepData("A sweep", "s3pet", ("loss",), objectives or (PSNR,), trials, **facts)


def trial(number: int, *values: float, params: dict[str, Any] | None = None, state: str = "COMPLETE") -> Trial:
    return Trial(number, state, params or {"lr": number}, values, (), None, str(number), "")


def numbers(page: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    embedded = re.search(r'<script type="application/json" id="sweep-json">(.*?)</script>', page, re.S)
    table = re.search(r'href="data:text/csv;base64,([^"]*)"', page)
    assert embedded is not None
    assert table is not None
    rows = csv.DictReader(io.StringIO(base64.b64decode(table.group(1)).decode()))
    return json.loads(embedded.group(1)), list(rows)


MIXED = [
    told(0, values=[30.0], params={"recipe.lr": 1e-4, "recipe.norm": "batch", "on": True, "same": 3}),
    told(1, values=[30.5], params={"recipe.lr": 1e-1, "recipe.norm": "none", "on": False, "same": 3, "only": 0.5}),
    told(
        2, "PRUNED", params={"recipe.lr": 1e-3, "recipe.norm": "batch", "on": True, "same": 3}, intermediate={1: 27.0}
    ),
    told(3, "PRUNED", note="diverged: the objective is not finite"),
    told(4, "FAIL", params={"recipe.lr": 2e-3}, note="interrupted", seconds=None),
    told(5, "FAIL", params={}, note=HOSTILE),
    told(6, "RUNNING", intermediate={1: 28.0, 2: 29.0}, seconds=None),
    told(7, "WAITING", params={"recipe.lr": 5e-3}, seconds=None),
    told(8, values=[29.0], params={"recipe.lr": 1e-2, "recipe.norm": [1, 2], "on": None}, intermediate={1: math.nan}),
]
CASES = {
    "none": data([]),
    "one": data([told(0, values=[30.0])]),
    "no parameter": data([told(0, values=[30.0], params={})]),
    "failed only": data([told(0, "FAIL"), told(1, "FAIL")]),
    "pruned only": data([told(0, "PRUNED", intermediate={1: 27.0})]),
    "running": data([told(0, "RUNNING", seconds=None)]),
    "constant": data([told(number, values=[30.0], params={"lr": 1.0}) for number in range(4)]),
    "zero": data([told(number, values=[0.0]) for number in range(3)]),
    "mixed": data(MIXED),
    "two": data([told(number, values=[30.0 - number, 9.0 - number % 3]) for number in range(5)], PSNR, BIAS),
    "two, none complete": data([told(0, "FAIL")], PSNR, BIAS),
    "two, one": data([told(0, values=[30.0, 5.0])], PSNR, BIAS),
}


@pytest.mark.parametrize("name", CASES)
def test_the_page_is_whole_with_any_trials(name: str) -> None:
    page = render(CASES[name])
    for anchor in ("verdict", "best", "history", "parameters", "trials", "run", "claims", "numbers"):
        assert f'id="{anchor}"' in page
    content, rows = numbers(page)
    assert [line["number"] for line in content["trials"]] == [line["number"] for line in CASES[name].trials]
    assert [int(row["number"]) for row in rows] == [line["number"] for line in CASES[name].trials]
    assert not re.search(r"\bnan\b|\binf\b", re.sub(r"data:[^\"]*", "", page))
    assert ("No trial is complete" in page) == (not any(line["values"] for line in CASES[name].trials))


def test_the_page_loads_nothing_and_lets_no_string_become_markup(tmp_path: Path) -> None:
    hostile = data(
        [told(0, values=[1.0], params={HOSTILE: HOSTILE}, note=HOSTILE), told(1, values=[2.0], params={HOSTILE: "b"})],
        Objective(HOSTILE, "maximize", HOSTILE),
        importances={HOSTILE: {HOSTILE: 1.0}},
        command=HOSTILE,
        best_commands=[HOSTILE],
        environment={HOSTILE: HOSTILE},
        notes=[HOSTILE],
    )
    write_sweep(tmp_path / "report.html", hostile)
    page = (tmp_path / "report.html").read_text("utf-8")
    loads = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']([^"']*)""", page)
    assert loads
    assert all(load.startswith(("data:", "#")) for load in loads)
    assert not re.search(r"@import|https?://|<link|<iframe|url\(", page)
    assert "<script>alert" not in page
    assert "<img src=x>" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert numbers(page)[0]["trials"][0]["note"] == HOSTILE


def test_the_page_tells_what_became_of_every_trial_and_how_to_train_the_best() -> None:
    page = render(data(MIXED, best_commands=["petscale train cohort --config study/best.json --run best"]))
    assert "9 trials: 3 complete, 2 pruned, 1 failed, 1 interrupted, 1 running, 1 waiting." in page
    assert "Best PSNR inside the body: 30.5 dB (trial 1), 0.5 dB above the paper&#39;s values." in page
    assert "petscale train cohort --config study/best.json --run best" in page
    assert "small differences are noise" in page
    assert "No importances for PSNR inside the body" in page
    assert "off scale" not in page
    _, rows = numbers(page)
    assert [row["state"] for row in rows[4:6]] == ["interrupted", "failed"]
    assert rows[0]["only"] == ""
    assert rows[1]["only"] == "0.5"
    assert rows[2]["PSNR inside the body"] == ""


@pytest.mark.parametrize(
    ("goal", "values", "state", "said"),
    [
        (PSNR, (30.0, 31.0, 29.0), "better", "Best PSNR inside the body: 31 dB (trial 1), 1 dB above"),
        (BIAS, (30.0, 31.0, 29.0), "better", "Best lesion SUVmax bias: 29 % (trial 2), 1 % below"),
        (PSNR, (30.0, 30.0, 29.0), "mixed", "no trial beats the paper's values"),
    ],
)
def test_the_best_is_told_against_the_papers_trial(
    goal: Objective, values: tuple[float, ...], state: str, said: str
) -> None:
    found = verdict([goal], [trial(number, value) for number, value in enumerate(values)])
    assert found.state == state
    assert said in found.headline


def test_nothing_is_compared_with_a_papers_trial_that_is_not_complete() -> None:
    found = verdict([PSNR], [trial(0, state="FAIL"), trial(1, 30.0)])
    assert found.state == "mixed"
    assert "above" not in found.headline
    assert any("not complete" in sentence for sentence in found.sentences)


def test_the_papers_trial_is_found_in_its_repetition() -> None:
    interrupted = trial(0, state="FAIL", params={"lr": 5})
    assert paper_trial([interrupted, trial(1, 3.0), trial(2, 4.0, params={"lr": 5})]).number == 2
    assert paper_trial([interrupted, trial(1, 3.0)]) is None
    assert paper_trial([]) is None


def test_the_front_is_the_trials_that_none_beats() -> None:
    rng = np.random.Generator(np.random.Philox(7))
    values = np.round(rng.uniform(0, 1, (60, 2)), 1)
    trials = [trial(number, *map(float, pair)) for number, pair in enumerate(values)]
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials([optuna.create_trial(values=list(one.values)) for one in trials])
    assert {one.number for one in pareto(trials, [PSNR, BIAS])} == {one.number for one in study.best_trials}
    (best,) = pareto([trial(one.number, one.values[0]) for one in trials], [PSNR])
    assert best.number == int(np.argmax(values[:, 0]))  # of equals the first


def test_two_objectives_are_told_as_a_front() -> None:
    trials = [trial(0, 30.0, 10.0), trial(1, 31.0, 9.0), trial(2, 29.0, 5.0)]
    found = verdict([PSNR, BIAS], trials)
    assert found.headline.startswith("2 of 3 complete trials are on the Pareto front")
    assert "Best PSNR inside the body: 31 dB (trial 1); the paper's values reach 30 dB." in found.sentences
    assert "Best lesion SUVmax bias: 5 % (trial 2); the paper's values reach 10 %." in found.sentences
    assert "No worse than the paper's values in both: trial 1." in found.sentences


@pytest.mark.parametrize(
    ("values", "kind", "places"),
    [
        ([1e-5, 1e-3, 1e-1], "log", [0.0, 0.5, 1.0]),
        ([1.0, 2.0, 3.0], "linear", [0.0, 0.5, 1.0]),
        ([-1.0, 1e3], "linear", [0.0, 1.0]),
        ([4, 4], "linear", [0.5, 0.5]),
        (["b", "a"], "category", [0.75, 0.25]),
        ([True, False], "category", [0.75, 0.25]),
        ([(1, 2), None], "category", [0.75, 0.25]),
    ],
)
def test_every_kind_of_parameter_has_a_place_on_its_axis(values: list[Any], kind: str, places: list[float]) -> None:
    scale = Scale.of(values)
    assert scale.kind == kind
    assert [scale.place(value) for value in values] == pytest.approx(places)
    assert all(0 <= place <= 1 for place, _ in scale.ticks())


def studied(num: int, direction: Literal["minimize", "maximize"], *, noise: float = 0.0) -> optuna.Study:
    """``matters`` decides, ``idle`` does nothing, ``fixed`` never changes."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=3))

    def score(asked: optuna.Trial) -> float:
        matters = asked.suggest_float("matters", -1, 1)
        asked.suggest_float("idle", 0, 1)
        asked.suggest_categorical("fixed", ["only"])
        return noise * matters**2 + 1

    study.optimize(score, n_trials=num)
    return study


@pytest.mark.parametrize("goal", [PSNR, BIAS])
def test_importances_find_what_matters_whichever_way_is_better(goal: Objective) -> None:
    found = importances(studied(60, goal.direction, noise=-1.0 if goal is PSNR else 1.0), [goal])[goal.name]
    assert set(found) == {"matters", "idle"}
    assert sum(found.values()) == pytest.approx(1)
    assert found["matters"] > 0.7


def test_importances_are_not_told_from_few_trials_or_values_all_alike() -> None:
    assert importances(studied(MIN_TRIALS - 1, "maximize", noise=1.0), [PSNR]) == {}
    assert importances(studied(30, "maximize"), [PSNR]) == {}
    assert importances(optuna.create_study(direction="maximize"), [PSNR]) == {}


def test_importances_of_two_objectives_are_told_apart() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=5))
    study.optimize(lambda asked: (asked.suggest_float("a", 0, 1), asked.suggest_float("b", 0, 1)), n_trials=80)
    found = importances(study, [PSNR, BIAS])
    assert found[PSNR.name]["a"] > 0.7
    assert found[BIAS.name]["b"] > 0.7
