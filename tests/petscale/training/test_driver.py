"""A range of workers: how many there is room for is asked whenever workers start; what ends a run is a coded line."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.train import ControllerError, WorkerGroupError

from petscale import config as configs
from petscale.cli import main
from petscale.cluster import placement
from petscale.cluster import session as sessions
from petscale.folders import WEIGHTS
from petscale.training import driver
from petscale.training.planning import Plan, plan_run
from storage.errors import InputError

SMALL = ["recipe.patch=24,24,24", "recipe.rois=()", "feed.source=low_drf4", "feed.cases_per_step=8"]
DIED, CROWDED = WorkerGroupError("a node is lost", {}), ControllerError(RuntimeError("no room"))

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture
def plan(cohort: Path, tmp_path: Path) -> Plan:
    settings = [*SMALL, "cluster.workers=6", "cluster.least_workers=2", "cluster.max_failures=2"]
    made = plan_run(cohort, tmp_path / "run", configs.override(configs.RunConfig(), settings))
    made.run.mkdir()
    return made


class Cluster:
    """Stands in for Ray: what rooms there are at each start, how each attempt ends, and what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rooms: list[int | None] = []
        self.ends: list[Exception | None] = []
        self.asked: list[tuple[int, Any]] = []
        monkeypatch.setattr(driver, "room_for", self.room_for)
        monkeypatch.setattr(driver, "_attempt", self.attempt)

    def room_for(self, counts: tuple[int, ...], worker: dict[str, float], patience_s: float) -> int | None:
        assert (counts, worker) == ((4, 2), {"CPU": 1}), "those of 2 to 6 that divide 8"
        return self.rooms.pop(0)

    def attempt(self, plan: Plan, workers: int, retries: Any, *, guarded: bool) -> Exception | None:
        self.asked.append((workers, plan.job.stop_in_s))
        assert (retries.max_failures, retries.controller_failure_limit) == (0, 0), "Ray starts none of them again"
        return self.ends.pop(0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_a_run_goes_on_with_as_many_workers_as_there_is_room_for(
    plan: Plan, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.rooms, cluster.ends = [4, 2, 2, 4], [DIED, CROWDED, DIED, None]
    driver.train_on_ray(plan, left_s=100.0)
    assert cluster.asked == [(count, 100.0) for count in (4, 2, 2, 4)]
    assert [line for line in capsys.readouterr().err.splitlines() if line] == [
        f"{count} workers, of 2 to 6" for count in (4, 2, 2, 4)
    ]


@pytest.mark.parametrize(
    ("rooms", "ends", "code"),
    [
        ([4, 4, 2], [DIED] * 3, "TRAIN_FAILED run: workers died 3 times"),
        ([4] * driver.ROOM_TRIES, [CROWDED] * driver.ROOM_TRIES, "CLU_NO_ROOM run: 2 workers could not be started"),
        ([None], [], "CLU_NO_ROOM run: 2 workers could not be started"),
        ([4, None], [DIED], "CLU_NO_ROOM run: 2 workers could not be started"),
    ],
)
def test_a_run_that_cannot_go_on_says_why(
    rooms: list[int | None], ends: list[Exception | None], code: str, plan: Plan, cluster: Cluster
) -> None:
    cluster.rooms, cluster.ends = rooms, ends
    with pytest.raises(InputError) as refused:
        driver.train_on_ray(plan)
    assert str(refused.value).startswith(code)
    assert (plan.run / "failure.log").is_file()
    assert rooms == ends == [], "every try was made"


def test_one_number_of_workers_is_left_to_ray(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, int, int]] = []

    def attempt(plan: Plan, workers: int, retries: Any, *, guarded: bool) -> None:
        tried.append((workers, retries.max_failures, retries.controller_failure_limit))

    monkeypatch.setattr(driver, "_attempt", attempt)
    config = configs.override(configs.RunConfig(), [*SMALL, "cluster.workers=4"])
    driver.train_on_ray(plan_run(cohort, tmp_path / "run", config))
    assert tried == [(4, 3, driver.ROOM_TRIES - 1)]


def test_the_largest_number_that_fits_is_taken_and_what_just_ended_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    free: list[list[dict[str, float]]] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if len(free) > 1:
            free.pop(0)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(placement, "_free", lambda: free[0])
    whole = [{"CPU": 5.0}, {"CPU": 3.0}]
    monkeypatch.setattr(placement, "_nodes", lambda: whole)

    def room(*states: list[dict[str, float]]) -> tuple[int | None, float]:
        nonlocal now
        now, free[:] = 0.0, states
        return placement.room_for((8, 4, 3, 2), {"CPU": 2.0}, 60.0), now

    assert room(whole) == (3, 0.0), "two on one node, one on the other"
    assert room([{"CPU": 1.0}], [{"CPU": 5.0}], whole) == (3, 1.0), "what has just ended gives its place back"
    assert room([{"CPU": 5.0}]) == (2, placement.SETTLE_S), "others work on the rest"
    assert room(*[[{"CPU": 3.0}]] * 80, [{"CPU": 4.0}]) == (2, 40.0), "a lost node may come back"
    assert room([{"CPU": 3.0}]) == (None, 60.0)


@pytest.mark.parametrize(
    ("typed", "least", "most"),
    [(["2:6"], 2, 6), (["4"], 0, 4), (["2:6", "--cluster.least-workers", "2"], 2, 6), (["3:8"], 3, 8)],
)
def test_a_range_is_typed_as_the_fewest_and_the_most(
    typed: list[str], least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[configs.RunConfig] = []
    monkeypatch.setattr(driver, "train", lambda cohort, run, config, **_: seen.append(config))
    main(["train", "c", "--run", "r", "--feed.cases-per-step", "8", "--workers", *typed])
    assert (seen[0].cluster.least_workers, seen[0].cluster.workers) == (least, most)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--workers", "8:2"], "CFG_RANGE cluster.least_workers: 8, and cluster.workers is 2"),
        (["--workers", "0:2"], "CFG_RANGE --workers: 0:2"),
        (["--workers", "2-8"], "CFG_VALUE --workers: '2-8'"),
        (["--workers", "5:7"], "CFG_WORKERS cluster.workers: 8 groups per step cannot be shared evenly by 5 to 7"),
        (["--workers", "4", "--cluster.least-workers", "2"], "CFG_CONTRADICTION --workers: both 0 and 2"),
        (["--workers", "64:128", "--feed.cases-per-step", "64"], "CFG_RESOURCES cluster.workers: 64 CPU wanted"),
    ],
)
def test_a_range_that_cannot_be_is_refused(
    words: list[str], line: str, cohort: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    settings = ["--recipe.patch", "24", "24", "24", "--recipe.rois", "--feed.source", "low_drf4"]
    settings += [] if "--feed.cases-per-step" in words else ["--feed.cases-per-step", "8"]
    assert refused("train", cohort, "--run", tmp_path / "run", *settings, *words).startswith(line)
    assert not (tmp_path / "run").exists()


def test_a_sweep_takes_one_number(cohort: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    words = [
        "--recipe",
        "red_cnn",
        "--feed.source",
        "low_drf4",
        "--set",
        "cluster.workers=2",
        "cluster.least_workers=1",
    ]
    assert refused("tune", cohort, "--study", tmp_path / "s", *words).startswith("CFG_RANGE cluster.least_workers: 1")


def test_a_private_cluster_has_the_cores_that_this_machine_gives(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    @contextmanager
    def session(config: configs.RunConfig, cpus: int, *_: Path) -> Iterator[None]:
        asked.append(cpus)
        yield

    monkeypatch.setattr(sessions, "session", session)
    monkeypatch.setattr(driver, "machine_cpus", lambda: 7)
    monkeypatch.setattr(driver, "train_on_ray", lambda plan, **_: None)
    config = configs.override(configs.RunConfig(), [*SMALL, "cluster.workers=8", "cluster.least_workers=2"])
    made = driver.train(cohort, tmp_path / "run", config, command="petscale train")
    assert (asked, made.name) == ([4], WEIGHTS)
    record = json.loads((tmp_path / "run" / "config.json").read_bytes())["config"]["cluster"]
    assert (record["least_workers"], record["workers"]) == (2, 8)


def test_a_range_is_no_part_of_what_a_run_is() -> None:
    plain = configs.override(configs.RunConfig(), SMALL)
    ranged = configs.override(plain, ["cluster.workers=8", "cluster.least_workers=2"])
    assert plain.identity() == ranged.identity()
    assert plain.patches_per_step == ranged.patches_per_step
    before = configs.to_json(plain)
    del before["cluster"]["least_workers"]  # as it was written before
    assert configs.from_json(before) == plain
