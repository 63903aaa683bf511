"""Baselines that turn a CT into a PET without a network: the mean SUV of every range of HU, alone, by height, by organ.

Tables are sums over voxels, hence over cases.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from petscale.evaluation.baselines import BY_HEIGHT, BY_HU, BY_ORGAN, TRAINING, Anatomy, no_training_case, told
from storage.source import SUV, Grid, ImageSource
from trainers import hu_table
from trainers.hu_table import RANGES, Sums
from trainers.metrics.slabs import slabs

HEIGHTS = 12  # parts of equal length from the lowest slice of the body to the highest
FEWEST = 100  # voxels of an organ or part that a mean of its own needs
ELSEWHERE = "elsewhere"  # what lies in no organ


@dataclass(frozen=True)
class HuTable:
    """Mean SUV of every range of HU: what a CT value alone tells of uptake, without any anatomy.

    Args:
        suv: mean SUV in ``hu_table.HU_EDGES[i]`` to ``[i + 1]``; values beyond the edges belong to the outermost
            ranges, and ranges that no training voxel has take the nearest one that has.
        num_cases: how many cases were asked.
        of: which cases these are.
        heights: the same in every twelfth of the body's height, from the feet up; () where it was not fitted.
        organs: the same in every organ and elsewhere; {} where a case has no organs.
    """

    suv: tuple[float, ...]
    num_cases: int
    of: str = TRAINING
    heights: tuple[tuple[float, ...], ...] = ()
    organs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """How it was fitted, in words."""
        return f"mean SUV of the voxels of each of {len(self.suv)} ranges of HU in {self.num_cases} {self.of}"

    def beside(self, source: ImageSource, anatomy: Anatomy | None = None) -> dict[str, ImageSource]:
        """Return the CT turned into SUV by the table and, where the case's anatomy is given, by its finer ones."""
        found: dict[str, ImageSource] = {BY_HU: _LookedUp(source, np.array([self.suv]), BY_HU, self.rule)}
        if anatomy is None:
            return found
        if self.heights:
            rule = f"{self.rule}, in each of {len(self.heights)} parts of the body's height"
            places = _Heights(source.grid, anatomy.body, len(self.heights))
            found[BY_HEIGHT] = _LookedUp(source, np.array(self.heights), BY_HEIGHT, rule, places)
        if self.organs and anatomy.labels is not None:
            rule = f"{self.rule}, in each of {len(self.organs)} organs and elsewhere"
            places_of = _Organs(anatomy.labels, anatomy.names, tuple(self.organs))
            found[BY_ORGAN] = _LookedUp(source, np.array(list(self.organs.values())), BY_ORGAN, rule, places_of)
        return found

    def to_json(self) -> dict[str, object]:
        """Return what ``table_from_json`` takes."""
        content: dict[str, object] = {"suv_by_hu": list(self.suv), "num_cases": self.num_cases, **told(self.of)}
        if self.heights:
            content["suv_by_height"] = [list(row) for row in self.heights]
        if self.organs:
            content["suv_by_organ"] = {name: list(row) for name, row in self.organs.items()}
        return content


def table_from_json(content: Mapping[str, Any]) -> HuTable:
    """Inverse of ``HuTable.to_json``; tables of earlier versions know no height and no organs."""
    return HuTable(
        tuple(content["suv_by_hu"]),
        content["num_cases"],
        str(content.get("of", TRAINING)),
        tuple(tuple(row) for row in content.get("suv_by_height", ())),
        {name: tuple(row) for name, row in content.get("suv_by_organ", {}).items()},
    )


def organs_of(names: Mapping[int, str]) -> tuple[str, ...]:
    """Return the organs among a case's labels: all but the body and the lesions, which a CT does not tell."""
    return tuple(sorted({name for name in names.values() if name != "body" and not name.startswith("lesion")}))


def mean_suv_by_hu(
    pairs: Iterable[tuple[ImageSource, ImageSource] | tuple[ImageSource, ImageSource, Anatomy]],
    *,
    of: str = TRAINING,
    organs: Sequence[str] = (),
) -> HuTable:
    """Fit the table and, of cases whose anatomy is given, that by height and that by organ.

    Args:
        pairs: (CT in HU, PET in SUVbw, anatomy or nothing) of TRAINING cases, each on one grid.
        of: which cases these are, where they are no training cases.
        organs: what is told apart; every case has them.

    Raises:
        InputError: ``SET_EMPTY`` without a training case.
    """
    parts = {"plain": 1, BY_HEIGHT: HEIGHTS, BY_ORGAN: len(organs) + 1}
    found = {name: hu_table.no_voxels((rows, RANGES)) for name, rows in parts.items()}
    num_cases, placed = 0, True
    for num_cases, (ct, pet, *known) in enumerate(pairs, 1):  # noqa: B007
        anatomy = known[0] if known and isinstance(known[0], Anatomy) else None
        placed &= anatomy is not None
        places: dict[str, _Places] = {"plain": _Nowhere()}
        if anatomy is not None:
            places[BY_HEIGHT] = _Heights(ct.grid, anatomy.body, HEIGHTS)
            if organs and anatomy.labels is not None:
                places[BY_ORGAN] = _Organs(anatomy.labels, anatomy.names, (*organs, ELSEWHERE))
        for z0, z1 in slabs(ct.grid.shape):
            within, suv = _range_of(ct.read(z0, z1)), pet.read(z0, z1)
            for name, place in places.items():
                cells = place.at(z0, z1) * RANGES + within
                found[name] += hu_table.sums(cells, suv, found[name].suv.shape)
    if num_cases == 0:
        raise no_training_case()
    alone = hu_table.means(found["plain"].over(0))
    heights = _rows(found[BY_HEIGHT], alone) if placed else ()
    finer = dict(zip((*organs, ELSEWHERE), _rows(found[BY_ORGAN], alone), strict=True)) if organs else {}
    return HuTable(tuple(alone.tolist()), num_cases, of, heights, finer)


def _rows(finer: Sums, alone: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """Means of a finer table, those of HU alone where there are few voxels."""
    return tuple(map(tuple, hu_table.finer_means(finer, alone, FEWEST).tolist()))


def _range_of(hu: NDArray[np.float32]) -> NDArray[np.intp]:
    return hu_table.ranges(torch.from_numpy(hu)).numpy()


# ---- where a voxel lies ---------------------------------------------------------------------------------------------


class _Nowhere:
    """All voxels in one place."""

    def at(self, z0: int, z1: int) -> NDArray[np.intp]:
        return np.zeros((1, 1, 1), dtype=np.intp)


class _Heights:
    """Slices by their place between the lowest and the highest slice of the body."""

    def __init__(self, grid: Grid, body: ImageSource, parts: int) -> None:
        depth = grid.shape[0]
        inside = [body.read(z0, z1).max(axis=(1, 2)) > 0.5 for z0, z1 in slabs(grid.shape)]
        at = np.flatnonzero(np.concatenate(inside))
        start, stop = (int(at[0]), int(at[-1]) + 1) if at.size else (0, depth)
        relative = (np.arange(depth) - start + 0.5) / (stop - start)
        if grid.affine[2, 2] < 0:  # the first slice is nearest to the head
            relative = 1 - relative
        self._part = np.clip((relative * parts).astype(np.intp), 0, parts - 1)

    def at(self, z0: int, z1: int) -> NDArray[np.intp]:
        return self._part[z0:z1, None, None]


class _Organs:
    """Voxels by their organ; the last place is elsewhere."""

    def __init__(self, labels: ImageSource, names: Mapping[int, str], organs: Sequence[str]) -> None:
        self._labels = labels
        self._place = np.full(max(names, default=0) + 2, len(organs) - 1, dtype=np.intp)
        for number, name in names.items():
            if name in organs:
                self._place[number] = organs.index(name)

    def at(self, z0: int, z1: int) -> NDArray[np.intp]:
        label = np.rint(self._labels.read(z0, z1)).astype(np.intp)
        return self._place[np.clip(label, 0, len(self._place) - 1)]


_Places = _Nowhere | _Heights | _Organs


@dataclass(frozen=True, eq=False)
class _LookedUp:
    """A CT as SUV by a table of (places, ranges of HU)."""

    ct: ImageSource
    suv: NDArray[np.float64]
    kind: str
    rule: str
    places: _Places = field(default_factory=_Nowhere)
    units: str = SUV

    @property
    def grid(self) -> Grid:
        return self.ct.grid

    @property
    def provenance(self) -> Mapping[str, object]:
        return {"kind": self.kind, "rule": self.rule}

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        return self.suv.astype(np.float32)[self.places.at(z0, z1), _range_of(self.ct.read(z0, z1))]
