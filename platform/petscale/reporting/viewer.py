"""The voxels that a report's viewer shows: cut to the body, as integers of a stated step, within a number of bytes."""

import base64
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from petscale.evaluation.scoring import lesions_of
from petscale.reporting.pictures import DIVERGING, GREY, Frame
from storage.source import Grid, ImageSource
from trainers.metrics.definitions import Region
from trainers.metrics.slabs import SLAB_VOXELS, Box, slabs

Kind = Literal["SUV", "HU", "sd"]
Blocks = tuple[int, int, int]

STEP: Mapping[Kind, float] = {"SUV": 0.01, "HU": 8.0, "sd": 0.01}  # what 1 of a stored integer is
HIGHEST = 32767  # of int16
MARGIN_MM = 15.0  # around the body
MOST_VOXELS_IN_ONE = 4096  # a mean over more shows nothing
COLOURS = {"grey": GREY, "diverging": DIVERGING, "ct": "gray", "hot": "inferno"}  # all are told apart by colour-blind


@dataclass(frozen=True, eq=False)
class Viewed:
    """A case as the viewer may show it, every image on one grid.

    Args:
        name: of the case.
        why: in a few words, why this case is shown.
        images: PETs in SUV, in order; names as in the rest of the page.
        synthesized: which of them the network made.
        reference: which of them is the full dose.
        body: greater than 0.5 inside the patient.
        ct: a CT in HU, to lie under a PET.
        deviation: the standard deviation of the synthesized image, in SUV.
        labels: integers naming organs and lesions.
        label_names: what each label is.
    """

    name: str
    why: str
    images: Mapping[str, ImageSource]
    synthesized: str
    reference: str
    body: ImageSource
    ct: ImageSource | None = None
    deviation: ImageSource | None = None
    labels: ImageSource | None = None
    label_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Embedded:
    """What goes into the page.

    Args:
        content: for JSON: the cases, their voxels and colours.
        notes: what a reader must know of it: a sentence each.
    """

    content: Mapping[str, object]
    notes: tuple[str, ...]


def embed(cases: Sequence[Viewed], limit_bytes: int) -> Embedded:
    """Embed as many cases as there is room for, the first one in blocks of voxels if it must be.

    Real voxels of one case are worth more than means over blocks of two: a further case is embedded only whole.

    Args:
        cases: the first one is embedded before any other.
        limit_bytes: how much text all voxels and places together may take.
    """
    left = limit_bytes
    shown: list[dict[str, object]] = []
    notes = []
    for case in cases:
        box = body_box(case.body)
        spacing = case.body.grid.spacing_mm
        blocks: Blocks = (1, 1, 1)
        places = _places(case, box)
        lesions = _lesions(case, box, blocks)
        beside = left - len(json.dumps(_told(places, blocks)))
        found = _encoded(case, box, blocks, beside - len(lesions))
        while isinstance(found, float) and not shown and math.prod(blocks) < MOST_VOXELS_IN_ONE:
            blocks = coarser(blocks, spacing, wanted=1.2 * found)  # means have less noise: they take less room each
            lesions = _lesions(case, box, blocks)
            found = _encoded(case, box, blocks, beside - len(lesions))
        if isinstance(found, float):
            notes.append(f"{case.name} is left out of the viewer: the page has no room for its voxels.")
            continue
        left = beside - len(lesions) - sum(len(image["voxels"]) for image in found)
        notes += _case_notes(case, blocks, found)
        frame = Frame.of(case.body.grid)
        shown.append(
            {
                "name": case.name,
                "why": case.why,
                "shape": [math.ceil((s.stop - s.start) / b) for s, b in zip(box, blocks, strict=True)],
                "axes": frame.axes,
                "positive": frame.positive,
                "spacing_mm": [mm * b for mm, b in zip(spacing, blocks, strict=True)],
                "images": found,
                "synthesized": case.synthesized,
                "reference": case.reference,
                "places": _told(places, blocks),
                "lesions": lesions,
            }
        )
    colours = {name: base64.b64encode(_palette(colours)).decode() for name, colours in COLOURS.items()}
    return Embedded({"cases": shown, "colours": colours}, tuple(notes))


def _case_notes(case: Viewed, blocks: Blocks, found: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    if blocks != (1, 1, 1):
        z, y, x = (mm * b for mm, b in zip(case.body.grid.spacing_mm, blocks, strict=True))
        notes.append(
            f"{case.name} is shown in means over {blocks[0]} x {blocks[1]} x {blocks[2]} voxels (z, y, x), "
            f"{z:.3g} x {y:.3g} x {x:.3g} mm, so that the page keeps its size: lesions of this size look weaker than "
            "they are, and noise too. The scores are of the voxels themselves. --page-mb makes room."
        )
    for image in found:
        if image["clipped"]:
            most = HIGHEST * STEP["SUV"]
            notes.append(f"{case.name}, {image['name']}: values beyond ±{most:.4g} are shown as ±{most:.4g}.")
    return notes


def body_box(body: ImageSource) -> Box:
    """Return the box around a body mask with a margin of 15 mm, or the whole grid where there is no body."""
    filled = [np.zeros(length, dtype=np.bool_) for length in body.grid.shape]
    for z0, z1 in slabs(body.grid.shape):
        inside = body.read(z0, z1) > 0.5
        filled[0][z0:z1] |= inside.any(axis=(1, 2))
        filled[1] |= inside.any(axis=(0, 2))
        filled[2] |= inside.any(axis=(0, 1))
    z, y, x = (_span(line, mm) for line, mm in zip(filled, body.grid.spacing_mm, strict=True))
    return z, y, x


def _span(filled: NDArray[np.bool_], mm: float) -> slice:
    found = np.flatnonzero(filled)
    if not found.size:
        return slice(0, len(filled))
    margin = int(MARGIN_MM / mm)
    return slice(max(int(found[0]) - margin, 0), min(int(found[-1]) + 1 + margin, len(filled)))


def coarser(blocks: Blocks, spacing_mm: tuple[float, float, float], wanted: float = 1.0) -> Blocks:
    """Return larger blocks: the shortest edge doubled, again and again, until a share ``wanted`` of the voxels is left.

    Args:
        blocks: voxels per block along (z, y, x).
        spacing_mm: edge lengths of a voxel along (z, y, x).
        wanted: the share that may be left of the present blocks; the edges are doubled once at least.
    """
    edges = list(blocks)
    while True:
        axis = min(range(3), key=lambda a: edges[a] * spacing_mm[a])
        edges[axis] *= 2
        if math.prod(blocks) / math.prod(edges) <= wanted or math.prod(edges) >= MOST_VOXELS_IN_ONE:
            return edges[0], edges[1], edges[2]


def _encoded(case: Viewed, box: Box, blocks: Blocks, limit: int) -> list[dict[str, Any]] | float:
    """Every image of a case as text; or, once that takes more than ``limit``, the share of voxels that had room."""
    sources: list[tuple[str, Kind, ImageSource]] = [(name, "SUV", image) for name, image in case.images.items()]
    if case.deviation is not None:
        sources.append(("standard deviation", "sd", case.deviation))
    if case.ct is not None:
        sources.append(("CT", "HU", case.ct))
    found = []
    left = limit
    for number, (name, kind, source) in enumerate(sources):
        packer = zlib.compressobj(6)
        parts: list[bytes] = []
        size, clipped = 0, False
        for planes, share in _planes(source, box, blocks):
            values = np.rint(planes / STEP[kind])
            clipped |= bool((np.abs(values) > HIGHEST).any())
            parts.append(packer.compress(packed(np.clip(values, -HIGHEST, HIGHEST).astype("<i2"))))
            size += len(parts[-1])
            if size * 4 > left * 3:  # four characters of text for three bytes
                return (number + share) / len(sources)
        parts.append(packer.flush())
        text = base64.b64encode(b"".join(parts)).decode()
        left -= len(text)
        if left < 0:
            return (number + 1) / len(sources)
        found.append({"name": name, "kind": kind, "step": STEP[kind], "voxels": text, "clipped": clipped})
    return found


def _planes(source: ImageSource, box: Box, blocks: Blocks) -> Iterator[tuple[NDArray[np.float64], float]]:
    """The means over blocks inside a box, some planes at a time, and the share of the box that they end at."""
    z, y, x = box
    _, height, width = source.grid.shape
    depth = blocks[0] * max(1, SLAB_VOXELS // (height * width) // blocks[0])
    for z0 in range(z.start, z.stop, depth):
        z1 = min(z0 + depth, z.stop)
        slab = source.read(z0, z1)[:, y, x].astype(np.float64)
        yield block_means(slab, blocks), (z1 - z.start) / (z.stop - z.start)


def block_means(values: NDArray[np.float64], blocks: Blocks) -> NDArray[np.float64]:
    """Means over blocks; at the far faces over what is left of them.

    >>> block_means(np.arange(5.0).reshape(1, 1, 5), (1, 1, 2)).tolist()
    [[[0.5, 2.5, 4.0]]]
    """
    for axis, block in enumerate(blocks):
        length = values.shape[axis]
        starts = np.arange(0, length, block)
        counts = np.minimum(block, length - starts).reshape([-1 if a == axis else 1 for a in range(3)])
        values = np.add.reduceat(values, starts, axis=axis) / counts
    return values


def packed(values: NDArray[np.int16]) -> bytes:
    """The bytes of (z, y, x) int16: of each plane all low bytes, then all high bytes, which compresses better."""
    pairs = np.ascontiguousarray(values, dtype="<i2").view(np.uint8).reshape(len(values), -1, 2)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1)).tobytes()


def unpacked(content: bytes, shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """What ``packed`` was given; the viewer does the same."""
    pairs = np.frombuffer(content, np.uint8).reshape(shape[0], 2, -1)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1)).view("<i2").reshape(shape)


def _lesions(case: Viewed, box: Box, blocks: Blocks) -> str:
    """Where any lesion is, 1 in every block that holds a voxel of one, as the images' text; empty without lesions."""
    wanted = [number for number, name in case.label_names.items() if name.startswith("lesion")]
    if case.labels is None or not wanted:
        return ""
    packer = zlib.compressobj(6)
    parts = [
        packer.compress(packed((planes > 0).astype("<i2")))
        for planes, _ in _planes(Marked(case.labels, tuple(wanted)), box, blocks)
    ]
    return base64.b64encode(b"".join([*parts, packer.flush()])).decode()


@dataclass(frozen=True)
class Marked:
    """An image that is 1 where a label image holds one of some values, and 0 elsewhere.

    Args:
        labels: the label image.
        wanted: the values.
    """

    labels: ImageSource
    wanted: tuple[int, ...]

    @property
    def grid(self) -> Grid:
        """That of the labels."""
        return self.labels.grid

    @property
    def units(self) -> str:
        """That of the labels."""
        return self.labels.units

    @property
    def provenance(self) -> Mapping[str, object]:
        """That of the labels."""
        return self.labels.provenance

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1``."""
        return np.isin(np.rint(self.labels.read(z0, z1)), self.wanted).astype(np.float32)


def _places(case: Viewed, box: Box) -> list[tuple[Region, list[int]]]:
    """Lesions and organs, named as in the tables, and the voxel in the box of each that is nearest to its centre."""
    if case.labels is None:
        return []
    lesions = [name for name in case.label_names.values() if name.startswith("lesion")]
    labels, regions = lesions_of(case.labels, dict(case.label_names), lesions)
    organs = [(n, name) for n, name in case.label_names.items() if name not in lesions and name != "body"]
    regions += [Region(name, "organ", n) for n, name in organs]
    centres = centres_of(labels, [region.label for region in regions])
    return [
        (region, [min(max(c, s.start), s.stop - 1) - s.start for c, s in zip(centres[region.label], box, strict=True)])
        for region in regions
        if region.label in centres
    ]


def _told(places: Sequence[tuple[Region, list[int]]], blocks: Blocks) -> list[dict[str, object]]:
    return [
        {"name": region.name, "kind": region.kind, "at": [a // b for a, b in zip(at, blocks, strict=True)]}
        for region, at in places
    ]


def centres_of(labels: ImageSource, wanted: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """Return label -> the voxel (z, y, x) of it that is nearest to its centre, for labels that are there."""
    sums: dict[int, NDArray[np.float64]] = {}
    for mark, at in _marked(labels, wanted):
        moments = np.concatenate([at, np.ones((len(at), 1))], axis=1)
        for label in np.unique(mark).tolist():
            sums[label] = sums.get(label, np.zeros(4)) + moments[mark == label].sum(axis=0)
    centres = {label: moments[:3] / moments[3] for label, moments in sums.items()}
    nearest: dict[int, tuple[float, tuple[int, int, int]]] = {}
    scale = np.array(labels.grid.spacing_mm)
    for mark, at in _marked(labels, wanted):
        for label in np.unique(mark).tolist():
            own = at[mark == label]
            far = np.square((own - centres[label]) * scale).sum(axis=1)
            best = int(far.argmin())
            if label not in nearest or far[best] < nearest[label][0]:
                z, y, x = own[best].tolist()
                nearest[label] = float(far[best]), (z, y, x)
    return {label: at for label, (_, at) in nearest.items()}


def _marked(labels: ImageSource, wanted: Sequence[int]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Labels and places (n, 3) of the wanted voxels, slab by slab."""
    for z0, z1 in slabs(labels.grid.shape):
        mark = np.rint(labels.read(z0, z1)).astype(np.int64)
        inside = np.isin(mark, wanted)
        yield mark[inside], np.argwhere(inside) + np.array([z0, 0, 0])


def _palette(name: str) -> bytes:
    colours: NDArray[np.float64] = colormaps[name](np.arange(256))[:, :3]
    return np.rint(255 * colours).astype(np.uint8).tobytes()
