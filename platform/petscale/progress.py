"""What a run shows while it works: bars on a terminal, lines elsewhere; JSON lines, TensorBoard events and pictures."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from petscale.report.pictures import CT_HU
from storage import integrity
from storage.patches import draw
from storage.randomness import Stream, generator
from storage.reader import Case
from storage.source import HU
from trainers.feed import FeedConfig
from trainers.recipe import Synthesizer
from trainers.synthesize import case_context, fitted

METRICS = "metrics.jsonl"
console = Console(stderr=True, highlight=False)
Advance = Callable[[int, str], None]  # done so far, what is going on


@contextmanager
def bar(title: str, total: int) -> Iterator[Advance]:
    """Show one stage's progress: a bar on a terminal, elsewhere a line now and then."""
    if console.is_terminal:
        columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
            task = progress.add_task(title, total=total, note="")
            yield lambda done, note: progress.update(task, completed=done, note=note)
            return
    begin = said = time.monotonic()
    state = {"done": -1, "note": ""}

    def advance(done: int, note: str) -> None:
        nonlocal said
        if state["done"] == -1:  # not before: a refusal at the door is then the only line
            console.print(f"{title}: {done}/{total}", soft_wrap=True)
        state.update(done=done, note=note)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            console.print(f"{title}: {done}/{total} {note}", soft_wrap=True)

    yield advance
    if state["done"] == -1:
        return
    spent = time.monotonic() - begin
    console.print(f"{title}: {state['done']}/{total} in {spent:.0f} s {state['note']}", soft_wrap=True)


class Reporter:
    """Rank 0's records: one JSON line each, and TensorBoard events.  A full disk here never stops the training."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / METRICS
        self._open: Callable[[int], Any] = lambda step: SummaryWriter(str(folder / "tb"), purge_step=step)
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
            records.append(json.loads(line))
        except ValueError:
            continue
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
        with bar("train", self._total) as advance:
            advance(0, "")
            while True:
                ended = self._stop.wait(0.5)
                records = self._records.new()
                for warning in (w for r in records for w in r.get("warnings", ())):
                    if warning not in warned:
                        warned.add(warning)
                        console.print(f"warning: {warning}", soft_wrap=True, markup=False)
                last = next((r for r in reversed(records) if r["event"] == "log"), None)
                if last:
                    losses = "  ".join(f"{k.removeprefix('loss/')} {v:.3g}" for k, v in last.items() if "loss/" in k)
                    note = f"{last['phase']}  {last['patches_per_s']:.1f} patches/s  waiting {last['wait_share']:.0%}"
                    advance(int(last["step"]), f"{note}  {losses}")
                if ended:
                    return


def picture(
    folder: Path, case: Case, feed: FeedConfig, device: torch.device, window_suv: float = 7.0
) -> Callable[[int, Synthesizer], None]:
    """Return the loop's picture function: start | synthesized | full of one held-out patch, in fixed windows."""

    low, full, suv_scale = feed.low[0], feed.full, feed.suv_scale
    from_ct = case.image(low).units == HU

    def draw_picture(step: int, synthesizer: Synthesizer) -> None:
        _, tile = fitted(synthesizer.tiling, case.sampling_maps.shape)
        box = draw(case.sampling_maps, tile, {"uptake": 1.0}, generator(0, Stream.PREVIEW))
        with torch.no_grad():
            context = case_context(synthesizer, case, low, suv_scale=suv_scale, device=device)
            source = torch.from_numpy(case.image(low).patch(box.grown(synthesizer.tiling.halo)))[None, None]
            output = synthesizer(source.to(device) / suv_scale, context)[0, 0].cpu() * suv_scale
        pet = (0.0, window_suv)
        panels: dict[str, tuple[NDArray[np.float32], tuple[float, float], str]] = {
            low: (case.image(low).patch(box), *((CT_HU, "gray") if from_ct else (pet, "gray_r"))),
            "synthesized": (output.numpy(), pet, "gray_r"),
            full: (case.image(full).patch(box), pet, "gray_r"),
        }
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        for axes, (title, (voxels, (black, white), colours)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            axes.imshow(voxels[len(voxels) // 2], cmap=colours, vmin=black, vmax=white)
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
        figure.suptitle(f"step {step}, case {case.name}, SUV 0 to {window_suv:g}", fontsize=9)
        folder.mkdir(exist_ok=True)
        FigureCanvasAgg(figure).print_png(folder / f"step-{step:07d}.png")

    return draw_picture
