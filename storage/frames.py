"""Frames of a dynamic PET and gates of a gated one: which are chosen, how each is weighted, and their sum as a source.

The sum of frames is the image that one frame over their time would have given.  With l = ln 2 / half-life, frame j
counts N_j = A_j w_j events, where w_j is the integral over the frame of exp(-l (t - t0)) dt and A_j its voxels,
decay-corrected to t0.  One frame over all of them counts the sum of N_j, so its decay-corrected voxels are

    A = sum_j w_j A_j / sum_j w_j

whatever t0 is: another one scales all A_j and all 1 / w_j alike.  Gaps between frames count nothing and are allowed.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError
from storage.source import Dose, Grid, ImageSource

TOLERANCE_S = 1.0  # times in headers are written to the second: frames that overlap by less do not
PART = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?")
CHOOSE = "choose with petscale ingest: --frames 3 for one, --frames 3-6 or all for their sum"


@dataclass(frozen=True)
class Wanted:
    """Which images are made of the frames of one series.

    Args:
        frames: ``3``, ``3-6``, ``1,3-5`` or ``all``, counted from 1 in order of time, gates in order of trigger time;
            empty: all.
        pairs: low doses, each frames in the same spelling; the full dose is then the sum of all the others.
    """

    frames: str = ""
    pairs: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.frames or self.pairs)


@dataclass(frozen=True, eq=False)
class Timing:
    """When the frames of one series were measured, in their order.

    Args:
        starts_s: (frames, slices) float64, s after the earliest; NaN unknown.  One column where all slices are alike.
        durations_s: as ``starts_s``.
        half_life_s: of the nuclide, None if it is unknown.
        gated: gates of one acquisition, which lie in the same time.
        stated: where times are stated, for an error's remedy.
    """

    starts_s: NDArray[np.float64]
    durations_s: NDArray[np.float64]
    half_life_s: float | None = None
    gated: bool = False
    stated: str = "FrameTimesStart and FrameDuration in the JSON file beside it"

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.starts_s)


@dataclass(frozen=True, eq=False)
class FrameImage:
    """One image as a weighted mean of frames.

    Args:
        name: of the image; empty for the one that is not a low dose.
        used: its frames, counted from 0.
        shares: (frames used, slices or 1) float64, a sum of 1 along the first axis.
        dose: of a low dose; None for the other.
        facts: for the provenance, without dates and times of day.
        notes: for the provenance.
    """

    name: str
    used: tuple[int, ...]
    shares: NDArray[np.float64]
    dose: Dose | None
    facts: Mapping[str, object]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class FrameSum:
    """A weighted mean of sources on one grid, as a source; a slab of two of them is in memory at a time.

    Args:
        shares: one per part, a sum of 1.
    """

    parts: tuple[ImageSource, ...] = field(repr=False)
    shares: tuple[float, ...]
    provenance: Mapping[str, object]

    @property
    def grid(self) -> Grid:
        return self.parts[0].grid

    @property
    def units(self) -> str:
        return self.parts[0].units

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1`` as (z, y, x)."""
        total = self.parts[0].read(z0, z1)
        if len(self.parts) == 1:
            return total
        total = total * np.float32(self.shares[0])
        for part, share in zip(self.parts[1:], self.shares[1:], strict=True):
            total += part.read(z0, z1) * np.float32(share)
        return total


def spans(text: str, where: str) -> tuple[tuple[int, int], ...]:
    """Return the first and last number of every part of a choice of frames; none for ``all``.

    Raises:
        InputError: ``FRM_CHOICE``.
    """
    if text == "all":
        return ()
    found = []
    for part in text.split(","):
        match = PART.fullmatch(part.strip())
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise _choice_error(where, f"'{text}' is no choice of frames")
        found.append((int(match[1]), int(match[2] or match[1])))
    numbers = [n for first, last in found for n in range(first, last + 1)]
    if len(set(numbers)) < len(numbers):
        raise _choice_error(where, f"'{text}' names a frame twice")
    return tuple(found)


def check_wanted(wanted: Wanted) -> None:
    """Refuse what is no choice of frames, before any file is opened.

    Raises:
        InputError: ``FRM_CHOICE``, ``FRM_PAIR``.
    """
    if wanted.frames:
        spans(wanted.frames, "--frames")
    seen: set[int] = set()
    for text in wanted.pairs:
        numbers = {n for first, last in spans(text, "--frame-pairs") for n in range(first, last + 1)}
        if text == "all":
            raise _pair_error("'all' leaves no frame for the full dose")
        if seen & numbers:
            raise _pair_error(f"frame {min(seen & numbers)} is in two low doses")
        seen |= numbers


def pair_name(text: str) -> str:
    """Return what the low dose of some frames is called: ``low_frame2``, ``low_frames3-6``, ``low_frames1_3-5``."""
    plain = re.sub(r"\s", "", text).replace(",", "_")
    return f"low_frame{'' if plain.isdigit() else 's'}{plain}"


def images_of(wanted: Wanted, timing: Timing, where: str) -> tuple[FrameImage, ...]:
    """Return the images that are wanted of a series: the full dose first, then the low doses.

    Weights: the integrals w_j of the module's docstring; the durations where no half-life is known, and those of
    gates, which share their time; one each for gates whose durations nobody states.  The dose reduction factor of a
    low dose is the sum of the weights of the full dose's frames over that of its own.

    Args:
        where: what errors call the series.

    Raises:
        InputError: ``FRM_CHOICE``, ``FRM_RANGE``, ``FRM_PAIR``, ``FRM_TIMES``, ``FRM_OVERLAP``.
    """
    check_wanted(wanted)
    pool = _numbers(wanted.frames or "all", timing.count, "--frames")
    lows = {pair_name(text): _numbers(text, timing.count, "--frame-pairs") for text in wanted.pairs}
    taken = {n for used in lows.values() for n in used}
    if taken - set(pool):
        raise _pair_error(f"frame {min(taken - set(pool)) + 1} is not among those of --frames {wanted.frames}")
    full = tuple(n for n in pool if n not in taken)
    if not full:
        raise _pair_error("no frame is left for the full dose")
    weights, rule = np.ones(timing.starts_s.shape), ""
    if lows or len(full) > 1:
        weights, rule = _weights(timing, sorted({*full, *taken}), where)
        _check_overlap(timing, full, sorted(taken), where)
    differs = "motion_differs_between_gates" if timing.gated else "uptake_may_differ_between_frames"
    notes = (differs,) * bool(lows)

    def image(name: str, used: tuple[int, ...], dose: Dose | None) -> FrameImage:
        own = weights[list(used)]
        return FrameImage(name, used, own / own.sum(axis=0), dose, _facts(timing, used, rule), notes)

    total = float(weights[list(full)].sum())
    return (
        image("", full, None),
        *(
            image(name, used, Dose(float(f"{total / weights[list(used)].sum():.6g}"), "frames", False))
            for name, used in lows.items()
        ),
    )


def told_durations(count: int, durations_s: Sequence[float | None], gated: bool = False) -> str:
    """Return how many frames there are and how long each is, for an error: ``6 frames of 4 x 30, 2 x 300 s``."""
    kind = "gates" if gated else "frames"
    known = [value for value in durations_s if value is not None]
    if len(known) < count:
        return f"{count} {kind} of unknown duration"
    runs = [(value, len(list(group))) for value, group in itertools.groupby(known)]
    if len(runs) == 1:
        return f"{count} {kind} of {known[0]:g} s each"
    listed = [f"{n} x {value:g}" if n > 1 else f"{value:g}" for value, n in runs[:12]] + ["..."] * (len(runs) > 12)
    return f"{count} {kind} of {', '.join(listed)} s"


def choice_of(numbers: Sequence[int]) -> str:
    """Return the spelling of frames counted from 0: ``1-3,5``; empty for none."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and runs[-1][1] == n:
            runs[-1][1] = n + 1
        else:
            runs.append([n + 1, n + 1])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _numbers(text: str, count: int, option: str) -> tuple[int, ...]:
    """The chosen frames, counted from 0, in order."""
    parts = spans(text, option) or ((1, count),)
    last = max(end for _, end in parts)
    if last > count:
        raise InputError(
            "FRM_RANGE",
            where=option,
            found=f"frame {last} of a series of {count}",
            remedy=f"choose among 1 to {count}",
        )
    return tuple(sorted(n - 1 for first, end in parts for n in range(first, end + 1)))


def _weights(timing: Timing, used: Sequence[int], where: str) -> tuple[NDArray[np.float64], str]:
    durations, starts = timing.durations_s, timing.starts_s
    known = bool(np.isfinite(durations[used]).all())
    if timing.gated:
        return (durations, "durations of the gates") if known else (np.ones(durations.shape), "equal")
    if not known:
        raise InputError(
            "FRM_TIMES",
            where=where,
            found="the durations of the frames are not stated, so their sum is not defined",
            remedy=f"state {timing.stated}, or choose one frame (--frames 1)",
        )
    if timing.half_life_s is None:
        return durations, "durations, because no half-life is known"
    if not np.isfinite(starts[used]).all():
        raise InputError(
            "FRM_TIMES",
            where=where,
            found="the times at which the frames start are not stated, so their sum is not defined",
            remedy=f"state {timing.stated}, or choose one frame (--frames 1)",
        )
    rate = math.log(2.0) / timing.half_life_s
    # w_j = integral of exp(-l t) over the frame; t0 is the earliest start
    return np.exp(-rate * starts) * -np.expm1(-rate * durations) / rate, "counts: integral of exp(-l t) over the frame"


def _check_overlap(timing: Timing, full: Sequence[int], lows: Sequence[int], where: str) -> None:
    """Refuse frames that share counts: their sum would count some twice, and a pair would share noise."""
    used = sorted({*full, *lows})
    late = next(((a, b) for a, b in itertools.pairwise(used) if _over_s(timing, a, b) > TOLERANCE_S), None)
    if timing.gated or late is None:
        return
    apart: list[int] = []
    for n in (*lows, *full):  # in a pair the low dose stays
        if all(_over_s(timing, min(n, m), max(n, m)) <= TOLERANCE_S for m in apart):
            apart.append(n)
    raise InputError(
        "FRM_OVERLAP",
        where=where,
        found=f"frame {late[1] + 1} starts {_over_s(timing, *late):.1f} s before frame {late[0] + 1} ends",
        remedy=f"choose frames that do not overlap, for instance --frames {choice_of(apart)}",
    )


def _over_s(timing: Timing, before: int, after: int) -> float:
    """How long after the start of a frame an earlier one ends, the most of all slices; below 0 for a gap."""
    over = timing.starts_s[before] + timing.durations_s[before] - timing.starts_s[after]
    return float(np.nanmax(np.append(over, -np.inf)))


def _typical(row: NDArray[np.float64]) -> float | None:
    return round(float(np.median(row)), 3) if np.isfinite(row).all() else None


def _facts(timing: Timing, used: Sequence[int], rule: str) -> dict[str, object]:
    facts: dict[str, object] = {
        "kind": "gates" if timing.gated else "frames",
        "of": timing.count,
        "used": [n + 1 for n in used],
        "durations_s": [_typical(timing.durations_s[n]) for n in used],
    }
    if not timing.gated:
        first = timing.starts_s[0]
        facts["starts_s"] = [_typical(timing.starts_s[n] - first) for n in used]
    if rule:
        facts["weights"] = rule
    return facts


def _choice_error(where: str, found: str) -> InputError:
    return InputError("FRM_CHOICE", where=where, found=found, remedy="write 3, 3-6, 1,3-5 or all, counted from 1")


def _pair_error(found: str) -> InputError:
    return InputError(
        "FRM_PAIR",
        where="--frame-pairs",
        found=found,
        remedy="name the few frames of each low dose; all the others are the full dose",
    )
