"""The benchmark suite measures what it says: equal results or none, ratios by hand, and a gate that closes."""

import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.performance.__main__ import KEPT, PAGE, run
from benchmarks.performance.accuracy import TOLERANCE_DB, of_run, worse
from benchmarks.performance.loading import _pairs_of_one_kind
from benchmarks.performance.measure import Benchmark, measure, ratio_of
from benchmarks.performance.results import below, page
from benchmarks.performance.suite import quick_suite, suite
from benchmarks.performance.volumes import missing
from petscale.evaluation.scores import Evaluation
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR, LESION_PSNR


def test_the_suite_runs_and_its_results_agree_at_small_sizes() -> None:
    found = run(quick_suite(), rounds=2)
    assert list(found["benchmarks"]) == list(suite())
    for one in found["benchmarks"].values():
        assert one["seconds"] > 0
        assert all(r["low"] <= r["median"] <= r["high"] for kind in ("peers", "bounds") for r in one[kind].values())
    assert all(f"## {name}" in page(found) for name in found["benchmarks"])


def test_a_peer_without_its_library_is_left_out_and_said_to_be() -> None:
    kept: dict[str, Any] = json.loads(KEPT.read_text())
    name = next(iter(kept["benchmarks"]))
    found = copy.deepcopy(kept)
    peer, _ = found["benchmarks"][name]["peers"].popitem()
    assert below(kept, found) == [f"{name}: {peer}"]
    found["benchmarks"][name]["absent"] = [peer]
    assert below(kept, found) == []
    assert f"Left out, because the library was not installed: {peer}." in page(found)
    assert missing(numpy="ours", no_such_library="theirs") == ("theirs",)


@pytest.mark.parametrize("change", ["another place", "not a pair", "half of the pairs"])
def test_pairs_that_are_none_are_not_timed(change: str) -> None:
    good = [(torch.arange(8.0).reshape(2, 1, 2, 2, 1), 2 * torch.arange(8.0).reshape(2, 1, 2, 2, 1))]
    _pairs_of_one_kind(good, good)
    (source, target) = good[0]
    other = {
        "another place": [(source.roll(1), target)],
        "not a pair": [(torch.zeros_like(source), torch.zeros_like(target))],
        "half of the pairs": [(source[:1], target[:1])],
    }[change]
    with pytest.raises(AssertionError):
        _pairs_of_one_kind(good, other)


def test_the_page_is_made_of_the_kept_results() -> None:
    assert PAGE.read_text() == page(json.loads(KEPT.read_text()))


def test_ratios_by_hand() -> None:
    ours = np.array([[1.0, 2.0], [2.0, 2.0], [4.0, 2.0]])
    found = ratio_of(np.array([[3.0, 1.0], [6.0, 1.0], [12.0, 1.0]]), ours)
    assert (found.median, found.low, found.high, found.clock, found.seconds) == (3.0, 3.0, 3.0, 0.5, 3.0)
    spread = ratio_of(np.array([[1.0, 2.0], [4.0, 2.0], [12.0, 2.0]]), ours)
    assert (spread.median, spread.low, spread.high) == (2.0, 1.0, 3.0)


def _sleeping(seconds: float) -> float:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return 1.0


@pytest.fixture
def twice_as_slow() -> Benchmark:
    def agree(ours: float, theirs: float) -> None:
        assert ours == theirs

    peers = {"peer": lambda: _sleeping(0.02)}
    return Benchmark("B0", "waits", lambda: _sleeping(0.01), peers, {}, agree, {})


def test_a_peer_that_takes_twice_the_time_has_ratio_two(twice_as_slow: Benchmark) -> None:
    seconds, ratios = measure(twice_as_slow, 3)
    assert seconds == pytest.approx(0.01, rel=0.2)
    assert ratios["peer"].median == pytest.approx(2.0, rel=0.2)


def test_nothing_is_timed_where_results_differ(twice_as_slow: Benchmark) -> None:
    calls = []
    wrong = replace(twice_as_slow, ours=lambda: calls.append(1), peers={"peer": lambda: 2.0})
    with pytest.raises(AssertionError):
        measure(wrong, 3)
    assert len(calls) == 1


def test_the_gate_closes_below_a_twentieth_less() -> None:
    kept: dict[str, Any] = json.loads(KEPT.read_text())
    assert below(kept, kept) == []
    name = next(iter(kept["benchmarks"]))
    peer = next(iter(kept["benchmarks"][name]["peers"]))
    for factor, lost in ((0.96, []), (0.94, [f"{name}: {peer}"])):
        found = copy.deepcopy(kept)
        found["benchmarks"][name]["peers"][peer]["high"] = factor * kept["benchmarks"][name]["peers"][peer]["median"]
        assert below(kept, found) == lost
    assert f"{name}: {peer}" in below(kept, {"benchmarks": {}})


def test_a_worse_demo_closes_the_gate() -> None:
    kept: dict[str, Any] = json.loads(KEPT.read_text())["accuracy"]
    assert worse(kept, kept) == []
    assert set(kept["psnr_db"]) == {f"{image}, {at}" for image in ("restore", "best baseline") for at in TOLERANCE_DB}
    for name, before in kept["psnr_db"].items():
        tolerance = TOLERANCE_DB[name.rpartition(", ")[2]]
        for fall, closed in ((0.9, False), (1.1, True), (-5.0, False), (float("nan"), True)):
            found = {"psnr_db": {**kept["psnr_db"], name: before - fall * tolerance}}
            assert [line.startswith(f"demo, {name}: ") for line in worse(kept, found)] == [True] * closed
    assert worse(kept, {"psnr_db": {}})
    assert "| restore, body |" in page(json.loads(KEPT.read_text()))


def test_the_figures_of_a_demo_are_means_over_its_patients(tmp_path: Path) -> None:
    values = {("in", 0): (30.0, 20.0), ("filter", 0): (35.0, 24.0), ("net", 0): (36.0, 22.0)}
    values |= {("narrow filter", 0): (33.0, 25.0)}
    values |= {(name, 1): (body + 1, lesion + 3) for (name, _), (body, lesion) in values.items()}
    rows = [
        Score(case=f"p{case}", image=name, region=region, kind=kind, definition=rule, value=value)
        for (name, case), (body, lesion) in values.items()
        for region, kind, rule, value in (
            ("body", "body", BODY_PSNR, body),
            ("lesion 1", "lesion", LESION_PSNR, lesion - 1),
            ("lesion 2", "lesion", LESION_PSNR, lesion + 1),
        )
    ]
    Evaluation(tuple(rows), ("in", "filter", "narrow filter", "net"), ("p0", "p1")).write(tmp_path)
    assert of_run(tmp_path) == {
        "best_baselines": {"body": "filter", "lesions": "narrow filter"},
        "psnr_db": {
            "restore, body": 36.5,
            "restore, lesions": 23.5,
            "best baseline, body": 35.5,
            "best baseline, lesions": 26.5,
        },
    }
