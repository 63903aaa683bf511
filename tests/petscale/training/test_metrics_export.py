"""What records of the loop become as metrics, that they are sent again, and that no failure of theirs stops a run."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from petscale.training import metrics_export
from petscale.training.metrics_export import TAGS, named, readings, send_scores, sending

START = {"event": "start", "step": 200, "steps": 400, "world": 2, "warnings": []}
LOG = {
    "event": "log",
    "step": 210,
    "phase": "generator",
    "patches_per_s": 3.5,
    "wait_share": 0.02,
    "time_s": 8.0,
    "loss/content": 0.25,
    "loss/critic": -1.5,
}
VALIDATION = {"event": "validation", "step": 220, "validation/psnr": 31.0}
CHECKPOINT = {"event": "checkpoint", "step": 230}


class Heard:
    """Stands in for ``ray.util.metrics.Gauge``: what every metric was last set to, and how often."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self.times = 0

    def metric(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        heard = self

        class Gauge:
            def set(self, value: float, tags: dict[str, str]) -> None:
                assert set(tags) == set(tag_keys), "Ray refuses a value whose tags are not those declared"
                assert all(isinstance(tag, str) for tag in tags.values())
                heard.values[name, frozenset(tags.items())] = value
                heard.times += 1

        return Gauge()

    def of(self, name: str, **tags: str) -> list[float]:
        told = ((found, dict(its), value) for (found, its), value in self.values.items())
        return [value for found, its, value in told if found == name and tags.items() <= its.items()]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    from ray.util import metrics

    found = Heard()
    monkeypatch.setattr(metrics, "Gauge", found.metric)
    return found


def senders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "petscale-metrics"]


@pytest.mark.parametrize(
    ("run", "tags"),
    [
        ("runs/first", ("first", "")),
        ("studies/masking/trials/12", ("masking", "12")),
        ("trials/kept", ("kept", "")),
        ("12", ("12", "")),
    ],
)
def test_a_trial_is_told_by_its_study_and_number(run: str, tags: tuple[str, str], tmp_path: Path) -> None:
    assert named(tmp_path / run) == tags


def test_every_record_says_what_changed() -> None:
    before = time.time()
    start = readings(START)
    assert start["petscale_step"] == {(): 200}
    assert start["petscale_steps"] == {(): 400}
    assert before <= start["petscale_checkpoint_timestamp_seconds"][()] <= time.time()
    log = readings(LOG)
    assert log["petscale_step"] == {(): 210}
    assert log["petscale_loss"] == {("content", "generator"): 0.25, ("critic", "generator"): -1.5}
    assert log["petscale_patches_per_second"] == {("generator",): 3.5}
    assert log["petscale_wait_share"] == {("generator",): 0.02}
    assert "petscale_checkpoint_timestamp_seconds" not in log
    assert readings(VALIDATION)["petscale_validation_score"] == {("psnr", "patches"): 31.0}
    assert "petscale_checkpoint_timestamp_seconds" in readings(CHECKPOINT)
    for record in (START, LOG, VALIDATION, CHECKPOINT):
        for name, values in readings(record).items():
            assert all(len(own) == len(TAGS[name]) for own in values)


def test_a_run_is_sent_with_its_names_only(heard: Heard, tmp_path: Path) -> None:
    reported: list[dict[str, Any]] = []
    with sending(tmp_path / "patient_7" / "first", "sgsgan", reported.append) as report:
        for record in (START, LOG, VALIDATION, CHECKPOINT):
            report(record)
    assert reported == [START, LOG, VALIDATION, CHECKPOINT]
    assert {name for name, _ in heard.values} == set(TAGS) - {"petscale_gpu_memory_bytes"}
    for _, tags in heard.values:
        assert {"run": "first", "trial": "", "recipe": "sgsgan"}.items() <= dict(tags).items()
        assert "patient_7" not in str(tags)
    assert heard.of("petscale_step") == [230]
    assert heard.of("petscale_loss", loss="critic", phase="generator") == [-1.5]
    assert heard.of("petscale_validation_score", score="psnr", of="patches") == [31.0]


def test_values_are_said_again_until_the_run_ends(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_export, "RESEND_S", 0.01)
    with sending(tmp_path / "first", "sgsgan", lambda record: None) as report:
        report(LOG)
        report({**LOG, "phase": "critic"})
        heard.values.clear()
        until = time.monotonic() + 10
        while not heard.of("petscale_wait_share") and time.monotonic() < until:
            time.sleep(0.01)
        assert heard.of("petscale_wait_share", phase="critic") == [0.02]
        assert heard.of("petscale_loss", phase="generator") == [], "a phase that is over is not said again"
    assert not senders()
    told = heard.times
    time.sleep(0.05)
    assert heard.times == told


def test_a_training_that_fails_leaves_no_thread(heard: Heard, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sending(tmp_path / "first", "sgsgan", lambda record: None):
        raise ZeroDivisionError
    assert not senders()


def test_metrics_that_cannot_be_sent_are_told_once_and_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray.util import metrics

    def broken(*_: Any) -> Any:
        raise ConnectionError(f"no agent; {tmp_path}")

    monkeypatch.setattr(metrics, "Gauge", broken)
    reported: list[dict[str, Any]] = []
    with sending(tmp_path / "first", "sgsgan", reported.append) as report:
        report(START)
        report(LOG)
        report({"event": "log"})  # nothing that readings() knows how to read
    assert len(reported) == 3
    send_scores(tmp_path / "first", "sgsgan", {"psnr_body": 30.0})
    assert capsys.readouterr().err.splitlines() == ["petscale: metrics not sent (ConnectionError)"] * 2


def test_what_the_first_report_raises_is_raised(heard: Heard, tmp_path: Path) -> None:
    def full(record: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), sending(tmp_path / "first", "sgsgan", full) as report:
        report(START)


def test_a_trial_is_scored_on_whole_volumes(heard: Heard, tmp_path: Path) -> None:
    send_scores(tmp_path / "masking" / "trials" / "3", "s3pet", {"psnr_body": 30.0, "mae_body": 0.1})
    assert heard.of("petscale_validation_score", run="masking", trial="3", score="psnr_body", of="volumes") == [30.0]
    assert heard.of("petscale_validation_score", score="mae_body") == [0.1]


def test_what_ray_is_told_is_what_the_module_says() -> None:
    told = str(metrics_export.__doc__)
    for name, tags in TAGS.items():
        (row,) = (line for line in told.splitlines() if line.startswith(f"{name} "))
        assert ", ".join(tags) in row
