"""A run's records while it trains: JSON lines and TensorBoard events, and the bar that follows them."""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from petscale.console import bar, console
from petscale.environment import environment
from petscale.folders import EVENTS, METRICS
from storage import integrity

TAKEN_WITH = "environment"  # in a record of a start


def taken_with(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, str]]]:
    """Return (step, facts) of every start after which steps were taken in another environment than before it.

    Args:
        records: of ``read_metrics``; starts of runs of before say nothing.
    """
    found: list[tuple[int, Mapping[str, str]]] = []
    for record in records:
        facts = record.get(TAKEN_WITH)
        if record.get("event") == "start" and isinstance(facts, Mapping) and (not found or found[-1][1] != facts):
            found.append((int(record["step"]), facts))
    return found


def told_apart(trained: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, str]]]:
    """Return (what, facts) of every environment that runs were trained in, each environment once.

    Args:
        trained: name of a run -> its records; the name is empty where there is one run alone.

    Returns:
        ``what`` is empty where all was trained in one environment; else ``from step 40``, or ``fold-0, fold-2 from step
        40``, as ``taken_with`` tells them.
    """
    found: list[tuple[Mapping[str, str], list[str]]] = []
    for name, records in trained.items():
        environments = taken_with(records)
        for step, facts in environments:
            words = [name] * bool(name) + [f"from step {step}"] * (len(environments) > 1)
            known = next((told for same, told in found if same == facts), None)
            if known is None:
                found.append((facts, known := []))
            known.append(" ".join(words))
    known_runs = sum(bool(taken_with(records)) for records in trained.values())
    if len(found) == 1 and known_runs == len(trained):
        return [("", found[0][0])]
    return [(", ".join(filter(None, told)), facts) for facts, told in found]


class Events:
    """A file of TensorBoard events.  TensorBoard's own writer would name it after this machine.

    Args:
        folder: where the file is made.
        step: what earlier files hold of later steps is no longer shown.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = folder / f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{os.getpid()}.{step}"
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers by name."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        if values:
            self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())


class Reporter:
    """Rank 0's records: one JSON line each, and TensorBoard events.  A full disk here never stops the training.

    A record of a start says with which versions and on what the steps after it are taken.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._folder = folder / METRICS, folder / EVENTS
        self._events: Events | None = None

    def __call__(self, record: dict[str, Any]) -> None:
        """Write one record of the loop."""
        try:
            if record["event"] == "start":
                self._forget_after(int(record["step"]))
                self._events = Events(self._folder, int(record["step"]))
                record = {**record, TAKEN_WITH: environment()}
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            if self._events:
                numbers = {name: value for name, value in record.items() if isinstance(value, float)}
                self._events.add(int(record["step"]), numbers)
        except OSError as error:
            print(f"petscale: metrics not written ({error.strerror})", file=sys.stderr)

    def _forget_after(self, step: int) -> None:
        """Drop what a crashed attempt logged beyond its last checkpoint, so that every step is recorded once."""
        if self._path.exists():
            kept = [r for r in read_metrics(self._path) if r.get("event") == "start" or int(r["step"]) <= step]
            integrity.write_bytes(self._path, "".join(json.dumps(r) + "\n" for r in kept).encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records so far; a line that is still being written is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = integrity.parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


class Records:
    """A run's records as they come."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def new(self) -> list[dict[str, Any]]:
        """Records since the last look; from the start again when a resumed run has cut the file."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._read:
                self._read = 0
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]  # a line that is still being written waits
        self._read += len(whole) + bool(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Watch:
    """Follow a run's records from the driver and show them as one bar."""

    def __init__(self, folder: Path, total: int) -> None:
        self._records, self._total = Records(folder / METRICS), total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        warned: set[str] = set()
        scored: dict[str, Any] | None = None
        with bar("train", self._total) as advance:
            advance(0, "")
            while True:
                ended = self._stop.wait(0.5)
                records = self._records.new()
                for warning in (w for r in records for w in r.get("warnings", ())):
                    if warning not in warned:
                        warned.add(warning)
                        console.print(f"warning: {warning}", soft_wrap=True, markup=False)
                scored = next((r for r in reversed(records) if "best_step" in r), scored)
                last = next((r for r in reversed(records) if r["event"] == "log"), None)
                if last:
                    losses = "  ".join(f"{k.removeprefix('loss/')} {v:.3g}" for k, v in last.items() if "loss/" in k)
                    note = f"{last['phase']}  {last['patches_per_s']:.1f} patches/s  waiting {last['wait_share']:.0%}"
                    advance(int(last["step"]), f"{note}  {losses}{_told(scored)}")
                if ended:
                    return


def _told(scored: Mapping[str, Any] | None) -> str:
    """What the bar says of the last validation of ``trainers.loop``."""
    if scored is None:
        return ""
    return f"  validation {scored['validation/gain_db']:+.2f} dB, best at step {scored['best_step']}"
