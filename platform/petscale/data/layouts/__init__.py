"""Layouts: how the files of many examinations lie below one folder.  One file each, all found by name here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from petscale.data.examination import Tree
from petscale.data.layouts.autopet import autopet
from petscale.data.layouts.bids import bids
from petscale.data.layouts.folders import many_examinations, one_examination
from petscale.data.layouts.lung import lung
from petscale.data.layouts.options import Options
from petscale.data.layouts.patterns import by_patterns
from petscale.data.layouts.study import studies
from petscale.data.layouts.udpet import udpet
from storage.errors import InputError
from storage.frames import check_wanted

ALWAYS = {"exclude", "interpolation", "overrides"}  # looked at after the layout
FRAMES = {"frames", "frame_pairs"}
FILES = {"low", "ct", "mask", "labels", "label_names", "relation", "series", "grid", "other_grids", "units", *FRAMES}
NEEDS = {"relation": "low", "other_grids": "low", "label_names": "labels"}  # says nothing without the other


@dataclass(frozen=True)
class Layout:
    """A layout.

    Args:
        find: finds the examinations below a source.
        reads: the options that it looks at.
    """

    find: Callable[[Path, Options], Tree]
    reads: frozenset[str]


LAYOUTS: Mapping[str, Layout] = {
    "one": Layout(one_examination, frozenset(FILES | {"patient"})),
    "folders": Layout(many_examinations, frozenset(FILES | {"pet"})),
    "patterns": Layout(by_patterns, frozenset(FILES | {"pet", "patient"})),
    "study": Layout(studies, frozenset({"series", "grid", *FRAMES})),
    "udpet": Layout(udpet, frozenset({"series", "other_grids", "keep"})),
    "autopet": Layout(autopet, frozenset({"series", "grid"})),
    "lung": Layout(lung, frozenset({"series", "grid"})),
    "bids": Layout(bids, frozenset({"relation", "grid", "other_grids", *FRAMES})),
}


def check_options(name: str, options: Options) -> None:
    """Refuse an option that a layout does not look at: a user who gives it expects something of it.

    Raises:
        InputError: CFG_NO_EFFECT; CFG_CONTRADICTION for low doses of two kinds; FRM_CHOICE, FRM_PAIR.
    """
    reads, plain = LAYOUTS[name].reads, Options()
    given = [field.name for field in fields(Options) if getattr(options, field.name) != getattr(plain, field.name)]
    for option in given:
        lacking = NEEDS.get(option, "") if NEEDS.get(option) in reads else ""
        if option not in reads | ALWAYS or (lacking and lacking not in given):
            spelt = "names" if option == "label_names" else option.replace("_", "-")
            raise InputError(
                "CFG_NO_EFFECT",
                where=f"--{spelt}",
                found=f"without --{lacking}" if lacking else f"the layout {name} does not look at it",
                remedy=f"leave it out, or give --{lacking}" if lacking else "leave it out, or choose another --layout",
            )
    by_itself = "grid" in reads and "ct" not in reads  # finds a CT without being told of one
    if "interpolation" in given and not by_itself and not {"ct", "other_grids"} & {*given}:
        raise InputError(
            "CFG_NO_EFFECT",
            where="--interpolation",
            found="neither a CT nor --other-grids resample: no image is put on another grid",
            remedy="leave it out, or give --ct",
        )
    if "low" in reads:
        known = {"pet", *options.lows(), *(["ct"] if options.ct else [])}
        if unknown := sorted(set(options.choices()) - known):
            raise InputError(
                "CFG_NO_EFFECT",
                where=f"--series {unknown[0]}=...",
                found=f"no image of this name is asked for (there are {', '.join(sorted(known))})",
                remedy="name one of these, or give --ct or --low",
            )
    check_wanted(options.wanted)
    if options.wanted and options.low:
        raise InputError(
            "CFG_CONTRADICTION",
            where="--low",
            found="with frames of a dynamic PET, whose low doses are made of its own frames",
            remedy="leave --low out, or give the frames as files of their own, without --frames and --frame-pairs",
        )
