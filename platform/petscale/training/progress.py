"""A run's records while it trains: JSON lines and TensorBoard events, and the bar that follows them."""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from petscale.console import bar, console
from petscale.folders import EVENTS, METRICS
from storage import integrity


class Reporter:
    """Rank 0's records: one JSON line each, and TensorBoard events.  A full disk here never stops the training."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / METRICS
        self._open: Callable[[int], Any] = lambda step: SummaryWriter(str(folder / EVENTS), purge_step=step)
        self._events: Any = None

    def __call__(self, record: dict[str, Any]) -> None:
        """Write one record of the loop."""
        try:
            if record["event"] == "start":
                self._forget_after(int(record["step"]))
                self._events = self._open(int(record["step"]))
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            for name, value in record.items():
                if isinstance(value, float):
                    self._events.add_scalar(name, value, record["step"])
        except OSError as error:
            print(f"petscale: metrics not written ({error.strerror})", file=sys.stderr)

    def _forget_after(self, step: int) -> None:
        """Drop what a crashed attempt logged beyond its last checkpoint, so that every step is recorded once."""
        if self._path.exists():
            kept = [r for r in read_metrics(self._path) if r["event"] == "start" or int(r["step"]) <= step]
            integrity.write_bytes(self._path, "".join(json.dumps(r) + "\n" for r in kept).encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records so far; a line that is still being written is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = integrity.parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict):
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
