"""Layouts: how the files of many examinations lie below one folder.  One file each, all found by name here."""

from collections.abc import Callable, Mapping
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

Layout = Callable[[Path, Options], Tree]

LAYOUTS: Mapping[str, Layout] = {
    "one": one_examination,
    "folders": many_examinations,
    "patterns": by_patterns,
    "study": studies,
    "udpet": udpet,
    "autopet": autopet,
    "lung": lung,
    "bids": bids,
}
