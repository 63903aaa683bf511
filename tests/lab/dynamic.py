"""Dynamic and gated PET made up for tests: the values of every frame follow from the equations of decay alone."""

import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from storage.dicom_write import write_series
from storage.source import SUV, ArraySource, Grid

F18_S = 6586.2
RATE = math.log(2) / F18_S
UPTAKE_S = 1800.0  # from the injection to the start of the series
BEGINS = datetime.datetime(2020, 1, 1, 12)  # of the series, as ``write_series`` has it
GRID = Grid((5, 6, 7), np.array([[-4.0, 0, 0, 30], [0, -5.0, 0, 20], [0, 0, 3.0, -100], [0, 0, 0, 1]]))
Correction = Literal["START", "ADMIN", "NONE"]


@dataclass(frozen=True)
class Made:
    """A frame: s after the series' start, its length in s, and the SUV that every moment of it has, decay undone."""

    start_s: float
    duration_s: float
    suv: NDArray[np.float32]

    @property
    def counts(self) -> float:
        """Integral over the frame of the activity of a source of 1 Bq at the series' start."""
        return (math.exp(-RATE * self.start_s) - math.exp(-RATE * (self.start_s + self.duration_s))) / RATE


def uniform(values: Sequence[float], starts: Sequence[float], durations: Sequence[float]) -> list[Made]:
    """Frames of one pattern with another level each; every slice has a maximum of its own, and so a slope."""
    shape = GRID.shape
    pattern = np.linspace(1, 3, np.prod(shape), dtype=np.float32).reshape(shape)
    return [Made(s, d, pattern * np.float32(v)) for v, s, d in zip(values, starts, durations, strict=True)]


def long_frame(frames: Sequence[Made]) -> NDArray[np.float64]:
    """What one frame over the time of all would give: all its counts, over those of a source of constant SUV."""
    total = sum(frame.counts * frame.suv.astype(np.float64) for frame in frames)
    return np.asarray(total / sum(frame.counts for frame in frames))


def write_dynamic(
    folder: Path,
    frames: Sequence[Made],
    correction: Correction = "START",
    *,
    begins: datetime.datetime = BEGINS,
    uptake_s: float = UPTAKE_S,
    kind: Literal["DYNAMIC", "GATED"] = "DYNAMIC",
    edit: Callable[[int, int, Dataset], None] | None = None,
) -> Path:
    """Write frames as one classic series of Bq/mL; ``edit`` is called with frame, slice and data set."""
    for number, frame in enumerate(frames):
        # activity per mL at the series' start -> what the scanner states of it
        stated = {
            "START": 1.0,
            "ADMIN": math.exp(RATE * uptake_s),
            "NONE": frame.counts / frame.duration_s,
        }[correction]

        def of_frame(z: int, ds: Dataset, number: int = number, frame: Made = frame, stated: float = stated) -> None:
            mean = frame.counts / frame.duration_s
            moment = begins + datetime.timedelta(seconds=frame.start_s)
            injected = begins - datetime.timedelta(seconds=uptake_s)
            drug = ds.RadiopharmaceuticalInformationSequence[0]
            drug.RadiopharmaceuticalStartDateTime = injected.strftime("%Y%m%d%H%M%S.%f")
            drug.RadiopharmaceuticalStartTime = injected.strftime("%H%M%S.%f")
            ds.SeriesDate, ds.SeriesTime = begins.strftime("%Y%m%d"), begins.strftime("%H%M%S.%f")
            ds.AcquisitionDate, ds.AcquisitionTime = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")
            ds.SOPInstanceUID = generate_uid(entropy_srcs=["dynamic", str(number), str(z)])
            ds.SeriesType, ds.DecayCorrection = [kind, "IMAGE"], correction
            ds.ActualFrameDuration = round(frame.duration_s * 1000)
            half = math.log(RATE * frame.duration_s / -math.expm1(-RATE * frame.duration_s)) / RATE
            ds.FrameReferenceTime = f"{(frame.start_s + half) * 1000:.3f}"
            ds.DecayFactor = f"{1 / mean:.6f}" if correction == "START" else "1"
            ds.NumberOfTimeSlices, ds.NumberOfSlices = len(frames), GRID.shape[0]
            ds.InstanceNumber = ds.ImageIndex = number * GRID.shape[0] + z + 1
            ds.RescaleSlope = f"{float(ds.RescaleSlope) * stated:.9g}"
            if correction == "NONE":
                ds.CorrectedImage = ["ATTN", "SCAT", "DTIM", "RAN", "NORM"]
            if edit is not None:
                edit(number, z, ds)

        part = folder.with_name(f"{folder.name}_{number}")
        write_series(part, ArraySource(frame.suv, GRID, SUV), uptake_s=uptake_s, edit=of_frame)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(part.iterdir()):
            file.rename(folder / f"f{number:02d}_{file.name}")
        part.rmdir()
    return folder


def change(file: Path, edit: Callable[[Dataset], None]) -> None:
    """Edit one saved slice in place."""
    ds = pydicom.dcmread(file)
    edit(ds)
    ds.save_as(file)
