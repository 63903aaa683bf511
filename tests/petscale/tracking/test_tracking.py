"""``petscale track``: what is copied of a run into MLflow and Weights & Biases; it names no case and no machine."""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import untrained_runs

from petscale.cli import main
from petscale.evaluation.scores import SYNTHESIZED, Evaluation
from petscale.folders import CONFIG, EVALUATION, METRICS, PICTURES
from petscale.tracking.copying import About, track
from storage.reader import open_cohort
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR

Refused = Callable[..., str]


class Kept:
    """A tool that keeps what it is given."""

    def __init__(self) -> None:
        self.about: list[About] = []
        self.told: list[tuple[int, dict[str, float]]] = []
        self.pictures: list[tuple[int, str, str]] = []
        self.closed = 0

    def __call__(self, store: Path, about: About) -> "Kept":
        self.about.append(about)
        return self

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append((step, dict(values)))

    def picture(self, step: int, name: str, file: Path) -> None:
        self.pictures.append((step, name, file.name))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def run(cohort: Path, tmp_path: Path) -> Path:
    """A run with a record of three steps, a picture, and scores of one test case."""
    folder = untrained_runs.red_cnn(tmp_path / "first", 0, cohort=open_cohort(cohort), test=("phantom-002",))
    record = json.loads((folder / CONFIG).read_bytes())
    record["config"]["split"]["test"] = ["phantom-002"]
    (folder / CONFIG).write_text(json.dumps(record))
    records: list[dict[str, Any]] = [
        {"event": "start", "step": 0, "steps": 20, "environment": {"torch": "2.13", "commit": "abc"}},
        {"event": "log", "step": 10, "phase": "network", "loss/x": 0.5, "time_s": float("nan")},
        {"event": "checkpoint", "step": 10},
        {"event": "log", "step": 20, "phase": "network", "loss/x": 0.25},
    ]
    (folder / METRICS).write_text("".join(json.dumps(one) + "\n" for one in records))
    (folder / PICTURES).mkdir()
    (folder / PICTURES / "step-0000010.png").write_bytes(b"png")
    rows = tuple(
        Score("phantom-002", image, "body", "body", BODY_PSNR, value)
        for image, value in (("in", 30.0), (SYNTHESIZED, 35.5))
    )
    place = folder / EVALUATION / "low_drf4"
    place.mkdir(parents=True)
    Evaluation(rows, ("in", SYNTHESIZED), ("phantom-002",), {}).write(place)
    return folder


def test_numbers_and_scores_are_copied_and_no_case_is_named(run: Path, tmp_path: Path) -> None:
    kept = Kept()
    track(run, tmp_path / "store", kept)
    (about,) = kept.about
    assert kept.told == [(10, {"loss/x": 0.5}), (20, {"loss/x": 0.25}), (20, {"test/low_drf4/PSNR body": 35.5})]
    assert (kept.pictures, kept.closed) == ([], 1)
    assert about.settings["recipe.name"] == "red_cnn"
    assert about.settings["feed.suv_scale"] == "5.0"
    assert about.tags["torch"] == "2.13"
    everything = json.dumps([about.name, dict(about.settings), dict(about.tags), kept.told])
    for secret in ("phantom-002", str(tmp_path), socket.gethostname()):
        assert secret not in everything
    track(run, tmp_path / "store", kept, pictures=True)
    assert kept.pictures == [(10, "training", "step-0000010.png")]
    assert kept.about[1].key == about.key
    run.rename(tmp_path / "second")
    track(tmp_path / "second", tmp_path / "store", kept)
    assert kept.about[2].key != about.key


def test_the_run_is_ended_when_a_tool_fails(run: Path, tmp_path: Path) -> None:
    kept = Kept()

    def fails(step: int, values: Mapping[str, float]) -> None:
        raise OSError("full")

    kept.numbers = fails  # type: ignore[method-assign]
    with pytest.raises(OSError, match="full"):
        track(run, tmp_path / "store", kept)
    assert kept.closed == 1


@pytest.mark.parametrize("tool", ["mlflow", "wandb"])
def test_a_tool_that_is_not_installed_and_a_run_without_steps_are_told(
    tool: str, run: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, tool, None)
    line = refused("track", run, tmp_path / "store", "--tool", tool)
    assert line == f'CFG_PACKAGE {tool}: not installed; install it: pip install "petscale[{tool}]"'
    (run / METRICS).unlink()
    assert refused("track", run, tmp_path / "store", "--tool", tool).startswith("CKPT_NONE metrics.jsonl: no record")


def test_mlflow_gets_a_local_store_and_the_newest_copy_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    client = MlflowDouble()
    tracking, entities = ModuleType("mlflow.tracking"), ModuleType("mlflow.entities")
    tracking.MlflowClient = client.at  # type: ignore[attr-defined]
    for name in ("Metric", "Param", "RunTag"):
        setattr(entities, name, lambda *values: values)
    for name, module in (("mlflow", ModuleType("mlflow")), ("alembic", ModuleType("alembic"))):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for _ in range(2):
        main(["track", str(run), str(tmp_path / "store"), "--pictures"])
    assert client.uri == f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert client.deleted == ["run-0"]
    assert client.ended == ["run-0", "run-1"]
    assert client.artifacts == [("run-0", "training"), ("run-1", "training")]
    metrics = [(name, value, step) for run_id, _, (name, value, _, step) in client.logged if run_id == "run-1"]
    assert metrics == [("loss/x", 0.5, 10), ("loss/x", 0.25, 20), ("test/low_drf4/PSNR body", 35.5, 20)]


class MlflowDouble:
    """What is used of MLflow's client."""

    def __init__(self) -> None:
        self.uri = ""
        self.runs: dict[str, str] = {}
        self.deleted: list[str] = []
        self.ended: list[str] = []
        self.artifacts: list[tuple[str, str]] = []
        self.logged: list[tuple[str, str, Any]] = []
        self.made = False

    def at(self, tracking_uri: str) -> "MlflowDouble":
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, _: str) -> Any:
        return SimpleNamespace(experiment_id="1") if self.made else None

    def create_experiment(self, _: str, artifact_location: str) -> str:
        assert artifact_location.startswith("file://")
        self.made = True
        return "1"

    def search_runs(self, _: list[str], filter_string: str) -> list[Any]:
        key = filter_string.split("'")[1]
        found = [run for run, known in self.runs.items() if known == key and run not in self.deleted]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in found]

    def delete_run(self, run: str) -> None:
        self.deleted.append(run)

    def create_run(self, _: str, run_name: str) -> Any:
        assert run_name == "first"
        self.runs[f"run-{len(self.runs)}"] = ""
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run-{len(self.runs) - 1}"))

    def log_batch(
        self, run: str, metrics: list[Any] | None = None, params: list[Any] | None = None, tags: list[Any] | None = None
    ) -> None:
        self.logged += [(run, "metric", one) for one in metrics or ()]
        assert len(params or ()) <= 100
        self.runs[run] = dict(tags).get("petscale.run", "") if tags else self.runs[run]

    def log_artifact(self, run: str, _: str, artifact_path: str) -> None:
        self.artifacts.append((run, artifact_path))

    def set_terminated(self, run: str) -> None:
        self.ended.append(run)


def test_weights_and_biases_stays_offline_and_learns_nothing_of_the_machine(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    begun: list[dict[str, Any]] = []
    logged: list[dict[str, Any]] = []
    module = ModuleType("wandb")

    def init(**given: Any) -> Any:
        begun.append(given)
        return SimpleNamespace(log=logged.append, finish=lambda: logged.append({}), define_metric=lambda *_, **__: None)

    for name, value in {"init": init, "Settings": lambda **given: given, "Image": lambda file: Path(file).name}.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "wandb", module)
    main(["track", str(run), str(tmp_path / "store"), "--tool", "wandb", "--pictures"])
    (given,) = begun
    assert (given["mode"], given["dir"], given["name"]) == ("offline", str(tmp_path / "store"), "first")
    assert given["settings"]["x_disable_meta"]
    assert given["settings"]["x_disable_stats"]
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert given["config"]["recipe.name"] == "red_cnn"
    assert "phantom-002" not in json.dumps(given["config"])
    assert logged[0] == {"step": 10, "loss/x": 0.5}
    assert logged[-2:] == [{"step": 10, "training": "step-0000010.png"}, {}]
