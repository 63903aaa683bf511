"""The frames of a dynamic DICOM series and the gates of a gated one: which slices belong together, and in what order.

No field is reliable by itself: TemporalPositionIdentifier is often absent, ImageIndex often counts the slices of one
frame again and again, the acquisition time differs between the beds of one frame.  Each is tried; the one that makes
most frames whole counts, and as a last resort the order of the slices at each place.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from storage.dicom_header import date_and_clock, integer_of, number_of, text_of
from storage.dicom_slice import Slice, pixels_of
from storage.frames import CHOOSE, choice_of, told_durations
from storage.suv import DAY_S

SAME_PLACE_MM = 1e-2
HALF_DAY_S = DAY_S / 2

Key = Callable[[Slice], Hashable | None]  # what the slices of one frame have in common; None where it is not stated


@dataclass(frozen=True, eq=False)
class FrameSlices:
    """One frame or gate: its slices by increasing position, and how many fewer there are than of other frames."""

    slices: tuple[Slice, ...] = field(repr=False)
    lacking: int


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of a series in order of time, gates in order of their trigger time.

    Args:
        frames: at least one; one alone is a static series.
        gated: gates of the heartbeat or the breath.
        copies: how many slices were exact copies of others and were dropped.
    """

    frames: tuple[FrameSlices, ...]
    gated: bool
    copies: int


def frames_of(slices: Sequence[Slice]) -> Frames | None:
    """Group the slices of one series into frames; None where nothing tells which slice belongs to which.

    Args:
        slices: of one shape and orientation, in any order; exact copies are dropped.

    Raises:
        InputError: ``DCM_BAD_TIME``, ``DCM_BAD_NUMBER``; of reading pixels, where slices may be copies.
    """
    places = places_of(slices)
    kind = text_of(slices[0].header, "SeriesType").upper()
    times_alone: tuple[Key, ...] = (_temporal_position, _image_index, acquired_s, _reference_ms)
    # Of a series that does not say what it is, a trigger time may also be the time of a frame: gates share theirs.
    unsaid = not kind.startswith(("GATED", "DYNAMIC"))
    gates = kind.startswith("GATED") or (
        unsaid and _differ_by(places, _trigger_ms) and not _differ_by(places, acquired_s)
    )
    best: list[list[Slice]] | None = None
    best_whole = 0.0
    for key in ((_trigger_ms,) if gates else ()) + times_alone:
        if (groups := _grouped(places, key)) is None:
            continue
        whole = sum(len(group) == len(places) for group in groups) / len(groups)
        if len(groups) == integer_of(slices[0].header, "NumberOfTimeSlices") > 1:
            whole = max(whole, 1e-3)  # frames that lie in several places are still so many
        if whole > best_whole:
            best, best_whole = groups, whole
    if best is None or best_whole < 1:
        ranked = _ranked(places)
        best = ranked if ranked is not None else best
    if best is None:
        return None
    best.sort(key=_gate_order if gates else _time_order)
    most = max(len(group) for group in best)
    frames = tuple(FrameSlices(tuple(group), most - len(group)) for group in best)
    return Frames(frames, gates, len(slices) - sum(len(group) for group in best))


def lacking_frames(found: Frames) -> tuple[int, ...]:
    """Return the frames that are not whole, counted from 0."""
    return tuple(number for number, frame in enumerate(found.frames) if frame.lacking)


def told_frames(found: Frames, lacking: Sequence[int]) -> tuple[str, str]:
    """Return what an error says of several frames, and its remedy.

    Args:
        lacking: the frames that are not whole, counted from 0.
    """
    told = told_durations(len(found.frames), [_duration_s(frame) for frame in found.frames], found.gated)
    listed = "; ".join(
        f"{'gate' if found.gated else 'frame'} {number + 1} lacks {found.frames[number].lacking} slices"
        for number in lacking[:5]
    )
    if not listed:
        return told, CHOOSE
    whole = choice_of([number for number in range(len(found.frames)) if number not in lacking])
    choose = f", or choose whole frames: petscale ingest --frames {whole}" if whole else ""
    return f"{told}; {listed}", f"copy the whole series{choose}"


def _duration_s(frame: FrameSlices) -> float | None:
    values = [number_of(s.header, "ActualFrameDuration", s.file) for s in frame.slices]
    known = [value / 1000.0 for value in values if value is not None and value > 0]
    return round(float(np.median(known)), 3) if len(known) == len(values) else None


def places_of(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Return the slices at each place along the normal, places in increasing order."""
    ordered = sorted(slices, key=lambda s: s.along)
    places = [[ordered[0]]]
    for s in ordered[1:]:
        if s.along - places[-1][0].along < SAME_PLACE_MM:
            places[-1].append(s)
        else:
            places.append([s])
    return places


def distinct(place: Sequence[Slice]) -> list[Slice]:
    """Return the slices without those whose values and factors are those of an earlier one.

    Raises:
        InputError: of reading pixels.
    """
    if len(place) < 2:
        return list(place)
    kept: dict[Hashable, Slice] = {}
    scales = [(s.slope, s.intercept) for s in place]
    for s, scale in zip(place, scales, strict=True):
        content: Hashable = id(s)
        if scales.count(scale) > 1:
            pixels = pixels_of(s)
            content = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
        kept.setdefault((scale, content), s)
    return list(kept.values())


def acquired_s(s: Slice) -> float | None:
    """Return when a slice's acquisition began, s on the clock of ``storage.suv``.

    A scan that passes midnight: some write the date of its start into every slice, or none at all; a time of day more
    than half a day before that of the series is then the next day's.
    """
    series_date = text_of(s.header, "SeriesDate")
    date = text_of(s.header, "AcquisitionDate") or series_date
    acquired = date_and_clock(date, text_of(s.header, "AcquisitionTime"), s.file)
    begun = date_and_clock(series_date, text_of(s.header, "SeriesTime"), s.file)
    if acquired is not None and begun is not None and date == series_date and acquired < begun - HALF_DAY_S:
        return acquired + DAY_S
    return acquired


def _grouped(places: Sequence[Sequence[Slice]], key: Key) -> list[list[Slice]] | None:
    """Slices of each frame by place; None where the key is not stated everywhere, or a frame has a place twice."""
    groups: dict[Hashable, list[Slice]] = defaultdict(list)
    for place in places:
        here: dict[Hashable, list[Slice]] = defaultdict(list)
        for s in place:
            value = key(s)
            if value is None:
                return None
            here[value].append(s)
        for value, alike in here.items():
            kept = distinct(alike)
            if len(kept) > 1:
                return None
            groups[value] += kept
    return list(groups.values())


def _ranked(places: Sequence[Sequence[Slice]]) -> list[list[Slice]] | None:
    """The first slices of all places, the second ones, and so on, where each place has as many and a rank tells."""
    kept = [distinct(place) for place in places]
    if len({len(place) for place in kept}) > 1:
        return None
    for rank in (acquired_s, _reference_ms, _instance_rank):
        ranks = [[rank(s) for s in place] for place in kept]
        if all(None not in some and len(set(some)) == len(some) for some in ranks):
            ordered = [sorted(place, key=partial(_known, rank)) for place in kept]
            return [list(group) for group in zip(*ordered, strict=True)]
    return None


def _known(rank: Callable[[Slice], float | None], s: Slice) -> float:
    value = rank(s)
    assert value is not None
    return value


def _differ_by(places: Sequence[Sequence[Slice]], key: Key) -> bool:
    return all(len({key(s) for s in place} - {None}) > 1 for place in places)


def _trigger_ms(s: Slice) -> float | None:
    return number_of(s.header, "TriggerTime", s.file)


def _temporal_position(s: Slice) -> float | None:
    return number_of(s.header, "TemporalPositionIdentifier", s.file)


def _image_index(s: Slice) -> int | None:
    """ImageIndex = (frame - 1) * NumberOfSlices + slice (PS3.3 C.8.9.4.1.9)."""
    index, count = integer_of(s.header, "ImageIndex"), integer_of(s.header, "NumberOfSlices")
    return (index - 1) // count if index > 0 and count > 0 else None


def _reference_ms(s: Slice) -> float | None:
    return number_of(s.header, "FrameReferenceTime", s.file)


def _instance_rank(s: Slice) -> float | None:
    return number_of(s.header, "InstanceNumber", s.file)


def _mean(group: Sequence[Slice], key: Callable[[Slice], float | None]) -> float:
    values = [value for s in group if (value := key(s)) is not None]
    return float(np.mean(values)) if values else 0.0


def _time_order(group: Sequence[Slice]) -> tuple[float, ...]:
    return tuple(
        _mean(group, key) for key in (acquired_s, _reference_ms, _temporal_position, _image_index, _instance_rank)
    )


def _gate_order(group: Sequence[Slice]) -> tuple[float, ...]:
    return (_mean(group, _trigger_ms), *_time_order(group))
