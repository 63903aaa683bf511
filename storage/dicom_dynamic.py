"""Frames of a dynamic or gated DICOM series as image sources in SUVbw: one frame, sums of frames, pairs of sums.

One reference time holds for all slices of the series, whichever frames are chosen: the scanner corrected all of them
to the start of the series, not to that of a frame.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.dicom import DicomSource, pet_header, source_of
from storage.dicom_fields import Fields
from storage.dicom_frames import Frames, acquired_s, frames_of, lacking_frames, told_frames
from storage.dicom_series import Volume, find_slices, series_error, stacked
from storage.dicom_slice import Slice
from storage.errors import InputError, of_file
from storage.frames import FrameImage, Timing, Wanted, check_wanted, images_of
from storage.suv import Frame, Overrides, Stated, apply_overrides, complete, mean_count_delay_s
from storage.suv import suv_conversion as convert

STATED = "ActualFrameDuration and AcquisitionTime in every header"


def open_frames(
    path: Path,
    wanted: Wanted,
    *,
    overrides: Overrides | None = None,
    stated: Stated | None = None,
    choice: str = "",
) -> tuple[tuple[FrameImage, DicomSource], ...]:
    """Open images made of the frames or gates of the one PET series below ``path``, in SUVbw.

    Args:
        path: a folder, or one file.
        wanted: which frames make which images.
        overrides: as for ``storage.dicom.open_series``; so ``stated`` and ``choice``.

    Returns:
        the full dose (or the only image) first, then the low doses; all on one grid.

    Raises:
        InputError: as ``open_series``; those of ``storage.frames.images_of``; ``FRM_GRID`` for frames that do not lie
            in one place; ``SER_PARTIAL_VOLUME`` where a frame that is wanted is not whole; ``SER_DYNAMIC`` where
            nothing tells frames apart; ``CFG_NO_EFFECT`` for a static series.
    """
    path = Path(path)
    check_wanted(wanted)
    meant = find_slices(path, "PT", None, choice)
    found = frames_of(meant.slices)
    if found is None:
        raise series_error(
            "SER_DYNAMIC",
            path.name,
            "several frames, and nothing says which slice is of which frame",
            "export it with AcquisitionTime or TemporalPositionIdentifier, or each frame as a series",
        )
    if len(found.frames) == 1:
        raise InputError(
            "CFG_NO_EFFECT",
            where="--frames" if wanted.frames else "--frame-pairs",
            found=f"{path.name} is a static series of one frame",
            remedy="leave it out",
        )
    every = [s for frame in found.frames for s in frame.slices]
    pet, timings = pet_header(every)
    times, known, time_notes = _timings(found, timings, pet.half_life_s)
    if not known and pet.decay_correction == "NONE":
        raise InputError(
            "FRM_TIMES",
            where=f"{path.name} (0008,0032) AcquisitionTime",
            found="the same in all frames, whose values are not corrected for decay",
            remedy="export the series with decay correction",
        )
    begun = [f.acquisition_s for f in times if f.acquisition_s is not None]
    pet = replace(pet, dynamic_s=0.0 if found.gated or not begun else max(begun) - min(begun))
    with of_file(path.name):
        conversion = convert(complete(apply_overrides(pet, overrides or Overrides()), stated or Stated()), times)
    timing = _timing(found, times, conversion.half_life_s, known)
    images = images_of(wanted, timing, path.name)
    lacking = set(lacking_frames(found))
    if missing := sorted(lacking & {n for image in images for n in image.used}):
        raise series_error("SER_PARTIAL_VOLUME", path.name, *told_frames(found, missing))
    notes = ("identical_slices_dropped",) * bool(found.copies) + ("incomplete_frames_left_out",) * bool(lacking)
    notes += time_notes
    factors = _split(conversion.factors, found)
    volumes = {n: stacked(found.frames[n].slices, (), meant, path.name) for image in images for n in image.used}
    first = images[0].used[0]
    for n, volume in sorted(volumes.items()):
        if not volume.grid.matches(volumes[first].grid):
            raise _grid_error(path.name, n, first)

    def source(image: FrameImage) -> DicomSource:
        parts = [
            (volumes[n].slices, tuple(float(f) for f in factors[n] * share))
            for n, share in zip(image.used, image.shares, strict=True)
        ]
        template = volumes[image.used[0]]
        volume = Volume(template.slices, template.grid, template.notes + notes + image.notes, meant.skipped)
        made = source_of(volume, "PT", replace(conversion, factors=parts[0][1]), {"frames": dict(image.facts)})
        return replace(made, added=tuple((_bare(slices), factors) for slices, factors in parts[1:]))

    return tuple((image, source(image)) for image in images)


def _bare(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    """Slices without their headers, which are 25 KB each and are read no more: there may be 30 000."""
    return tuple(replace(s, header=Fields()) for s in slices)


def _grid_error(where: str, number: int, first: int) -> InputError:
    return InputError(
        "FRM_GRID",
        where=where,
        found=f"frame {number + 1} does not lie where frame {first + 1} lies",
        remedy="choose frames of one place, or export all of them on one grid",
    )


def _split(values: Sequence[float], found: Frames) -> list[NDArray[np.float64]]:
    """Values per slice of all frames, frame by frame."""
    ends = np.cumsum([len(frame.slices) for frame in found.frames])
    return np.split(np.asarray(values, dtype=np.float64), ends[:-1])


def _timings(
    found: Frames, frames: Sequence[Frame], half_life_s: float | None
) -> tuple[list[Frame], bool, tuple[str, ...]]:
    """The timing of every slice, whether it says when each frame began, and notes.

    Some headers have the time of the first frame in all of them; FrameReferenceTime, the time of the mean count, then
    says how much later each one is.
    """
    every: list[Slice] = [s for frame in found.frames for s in frame.slices]
    timed = [replace(f, acquisition_s=acquired_s(s)) for f, s in zip(frames, every, strict=True)]
    starts = _split([np.nan if f.acquisition_s is None else f.acquisition_s for f in timed], found)
    if found.gated or len({float(part.min()) for part in starts if np.isfinite(part).all()}) == len(starts):
        return timed, True, ()

    def delay_s(frame: Frame) -> float:
        duration = frame.duration_s or 0.0
        return mean_count_delay_s(duration, half_life_s) if half_life_s else duration / 2

    begun = [f.reference_s - delay_s(f) for f in timed if f.reference_s is not None]
    if len(begun) < len(timed) or len({round(float(part.min()), 2) for part in _split(begun, found)}) < len(starts):
        return timed, False, ()
    later = [b - min(begun) for b in begun]
    first = min((f.acquisition_s for f in timed if f.acquisition_s is not None), default=None)
    return (
        [replace(f, acquisition_s=None if first is None else first + s) for f, s in zip(timed, later, strict=True)],
        True,
        ("frame_starts_from_frame_reference_time",),
    )


def _timing(found: Frames, frames: Sequence[Frame], half_life_s: float | None, known: bool) -> Timing:
    """Starts and durations as (frames, places); of a frame that is not whole, the median of what there is."""
    places = max(len(frame.slices) for frame in found.frames)

    def table(values: Sequence[float | None]) -> NDArray[np.float64]:
        rows = _split([np.nan if v is None else v for v in values], found)
        return np.stack([row if len(row) == places else np.full(places, np.median(row)) for row in rows])

    starts = table([f.acquisition_s for f in frames])
    if not known:
        starts = np.full(starts.shape, np.nan)
    earliest = float(np.nanmin(starts)) if np.isfinite(starts).any() else 0.0
    durations = table([f.duration_s for f in frames])
    return Timing(starts - earliest, durations, half_life_s, found.gated, STATED)
