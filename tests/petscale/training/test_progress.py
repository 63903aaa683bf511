"""What the bar says while a run trains."""

import json
from pathlib import Path
from typing import Any

import pytest

from petscale.folders import METRICS
from petscale.training import progress

LOG = {"event": "log", "step": 10, "phase": "train", "patches_per_s": 4.0, "wait_share": 0.1, "loss/mse": 0.5}
SCORED = {"event": "validation", "step": 10, "validation/gain_db": 1.234, "best_step": 5}


class Bar:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []

    def __call__(self, title: str, total: int) -> "Bar":
        return self

    def __enter__(self) -> Any:
        return lambda step, text: self.told.append((step, text))

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("records", "told"), [([LOG], "mse 0.5"), ([LOG, SCORED], "mse 0.5  validation +1.23 dB, best at step 5")]
)
def test_the_bar_shows_losses_and_the_last_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[dict[str, Any]], told: str
) -> None:
    bar = Bar()
    monkeypatch.setattr(progress, "bar", bar)
    (tmp_path / METRICS).write_text("".join(json.dumps(record) + "\n" for record in records))
    with progress.Watch(tmp_path, 20):
        pass
    step, text = bar.told[-1]
    assert step == 10
    assert text.endswith(told)


def test_tensorboard_reads_the_events_and_no_file_names_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr("socket.gethostname", lambda: "radiology-pc-7")
    report = progress.Reporter(tmp_path)
    report({"event": "start", "step": 0})
    report(LOG)
    report(LOG | {"step": 20, "loss/mse": 0.25})
    report(LOG | {"step": 30, "loss/mse": 0.75})
    again = progress.Reporter(tmp_path)  # of an attempt that goes on at step 10
    again({"event": "start", "step": 10})
    again(LOG | {"step": 20, "loss/mse": 0.125})
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    shown = EventAccumulator(str(folder))
    shown.Reload()
    assert [(one.step, one.value) for one in shown.Scalars("loss/mse")] == [(10, 0.5), (20, 0.125)]
    for path in folder.iterdir():
        assert "radiology" not in path.name
        assert b"radiology" not in path.read_bytes()


def test_a_start_says_with_what_steps_are_taken_and_a_change_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step, torch in ((0, "1"), (10, "1"), (20, "2")):
        monkeypatch.setattr(progress, "environment", lambda torch=torch: {"torch": torch})
        progress.Reporter(tmp_path)({"event": "start", "step": step})
    told = progress.taken_with(progress.read_metrics(tmp_path / METRICS))
    assert told == [(0, {"torch": "1"}), (20, {"torch": "2"})]
    assert progress.taken_with([{"event": "start", "step": 0}, LOG]) == []


def test_the_environments_of_several_runs_are_told_once_each_with_the_runs_that_had_them() -> None:
    def start(torch: str, step: int = 0) -> dict[str, object]:
        return {"event": "start", "step": step, "environment": {"torch": torch}}

    one, other = {"torch": "2.13"}, {"torch": "2.14"}
    assert progress.told_apart({"": [start("2.13"), LOG]}) == [("", one)]
    assert progress.told_apart({"": [start("2.13"), start("2.14", 40)]}) == [
        ("from step 0", one),
        ("from step 40", other),
    ]
    assert progress.told_apart({"fold-0": [start("2.13")], "fold-1": [start("2.13")]}) == [("", one)]
    mixed = {"fold-0": [start("2.13")], "fold-1": [start("2.13"), start("2.14", 40)], "fold-2": [start("2.14")]}
    assert progress.told_apart(mixed) == [("fold-0, fold-1 from step 0", one), ("fold-1 from step 40, fold-2", other)]
    assert progress.told_apart({"fold-0": [start("2.13")], "fold-1": [LOG]}) == [("fold-0", one)]  # one says nothing
    assert progress.told_apart({"": [LOG]}) == []
