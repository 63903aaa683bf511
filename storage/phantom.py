"""An analytic whole-body phantom: activity (SUVbw), CT (HU), organ labels and known lesions, slab by slab.

The anatomy is stylised: tubes and ellipsoids whose sizes, places and uptakes vary with the seed.  Any slab is drawn at
any voxel size without holding the volume.  There is no noise and no scanner: ``storage.lowdose`` simulates scans.
Uptakes and densities are round values typical of FDG one hour after injection, not a measured population.  The phantom
serves tests and examples; nothing about patients follows from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError
from storage.randomness import Stream, generator
from storage.ranges import Range, check_ranges
from storage.source import AIR_HU, HU, LABEL, SUV, Grid, ImageSource

LABEL_NAMES: dict[int, str] = {
    1: "body",
    2: "lungs",
    3: "liver",
    4: "heart",
    5: "kidneys",
    6: "bladder",
    7: "spine",
    8: "brain",
    9: "spleen",
    10: "lesion",
}
BODY, LUNGS, LIVER, HEART, KIDNEYS, BLADDER, SPINE, BRAIN, SPLEEN, LESION = LABEL_NAMES
CYST = 11  # only in a phantom that has cysts: ``Phantom.label_names``
LESION_ORGANS = ("liver", "lungs", "spine", "body")
NEMA_DIAMETERS_MM = (10.0, 13.0, 17.0, 22.0, 28.0, 37.0)  # NEMA NU 2 image-quality spheres

_VERTEX_TO_THIGH_MM = 1000.0  # axial length of the stylised adult drawn below
_Mm3 = tuple[float, float, float]
_Row = tuple[float, float, float, float, float]
_HALF_WIDTH_MM = {"none": 200.0, "up": 200.0, "down": 255.0}  # widest part, from the midline
_HALF_DEPTH_MM = 128.0
_TEXTURE = 0.12  # standard deviation of the uptake inside an organ, relative
_TEXTURE_MM, _NUM_WAVES = (22.0, 140.0), 20  # shortest and longest wave
_DETAIL_MM, _NUM_FINE_WAVES = (7.0, 22.0), 24
_LESION_CONTRAST = (2.0, 8.0)
_CYST_CONTRAST = (0.15, 0.15)  # fluid without vessels takes up no FDG: SUV 0.3 in a liver of 2, as this phantom's fat
# mm below the vertex, half depth and half width of the trunk without its fat
_TRUNK = np.array(
    [
        (185, 52, 52), (235, 52, 54), (262, 58, 85), (285, 72, 135), (310, 84, 158), (350, 95, 162), (420, 103, 158),
        (500, 103, 152), (580, 98, 144), (650, 96, 142), (720, 100, 152), (790, 106, 166), (840, 106, 170),
        (880, 100, 170), (910, 84, 166), (930, 40, 150),
    ], dtype=np.float64,
)  # fmt: skip
# mm below the vertex, posterior, left: neck, axilla, mesentery, retroperitoneum, groin
_NODES = ((225, 0, 34), (225, 0, -34), (330, 5, 138), (330, 5, -138), (690, 0, 40), (700, 30, -40), (905, -40, 84))
_SLICES_AT_ONCE = 16  # bounds the temporaries of a slab, whatever its thickness


@dataclass(frozen=True)
class PhantomConfig:
    """One phantom.

    Args:
        shape: voxels along (z, y, x).
        spacing_mm: voxel edge lengths along (z, y, x) in mm.
        seed: everything that differs between two patients: body size, organ sizes, places, uptakes, texture, lesions.
        num_lesions: hot spheres; fewer are drawn where the body is too small to hold them apart.
        axial_coverage: the part of the body the axial extent shows, as fractions (from, to) of the way from mid-thigh
            (0) to vertex (1).  The body is stretched or squeezed along z to fit, up to 1.15 times natural length; a
            longer scan shows the legs.
        arms: not drawn (out of the field of view), beside the head, or beside the trunk.
        lesion_organs: tissues a lesion may lie in, of liver, lungs, spine and body (lymph nodes); none named: all.
        lesion_hu: range of a lesion's CT value; a liver of 60 HU hides it at 60 and shows it at 0 to 40.
        num_cysts: cold spheres in the liver, which a CT shows much as it shows a lesion; fewer where it is too small.
        cyst_hu: range of a cyst's CT value; a simple cyst has 20 HU at most (ACR, incidental liver lesions, 2017).
        liver_suv: range of the liver's uptake; without one it is 1.87 to 2.53.
        detail: relative standard deviation of a fine texture of the uptake, of 7 to 22 mm; without it organs are
            smoother than patients' (docs/results/simulator.md).

    Raises:
        InputError: ``CFG_RANGE`` when a value is outside its range.
    """

    shape: Annotated[tuple[int, int, int], Range(8)] = (128, 96, 96)
    spacing_mm: Annotated[tuple[float, float, float], Range(above=0, high=1000)] = (4.0, 4.0, 4.0)
    seed: Annotated[int, Range(0)] = 0
    num_lesions: Annotated[int, Range(0, 100)] = 6
    axial_coverage: Annotated[tuple[float, float], Range(0, 1)] = (0.0, 1.0)
    arms: Literal["none", "up", "down"] = "none"
    lesion_organs: tuple[str, ...] = ()
    lesion_hu: Annotated[tuple[float, float], Range(-1000, 3000)] = (45.0, 45.0)
    num_cysts: Annotated[int, Range(0, 100)] = 0
    cyst_hu: Annotated[tuple[float, float], Range(-1000, 3000)] = (0.0, 20.0)
    liver_suv: Annotated[tuple[float, float] | None, Range(0.1, 20)] = None
    detail: Annotated[float, Range(0, 0.25)] = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, "PhantomConfig")
        low, high = self.axial_coverage
        for name, good, wanted in (
            ("shape", len(self.shape) == 3, "three numbers (z, y, x)"),
            ("spacing_mm", len(self.spacing_mm) == 3, "three numbers (z, y, x)"),
            ("axial_coverage", low < high, "two fractions, from < to"),
            ("arms", self.arms in _HALF_WIDTH_MM, "none, up or down"),
            ("lesion_organs", {*self.lesion_organs} <= {*LESION_ORGANS}, f"names among {', '.join(LESION_ORGANS)}"),
            ("lesion_hu", _ascends(self.lesion_hu), "two HU, from <= to"),
            ("cyst_hu", _ascends(self.cyst_hu), "two HU, from <= to"),
            ("liver_suv", self.liver_suv is None or _ascends(self.liver_suv), "two SUV, from <= to"),
        ):
            if not good:
                found = str(getattr(self, name))
                raise InputError("CFG_RANGE", where=f"PhantomConfig.{name}", found=found, remedy=f"give {wanted}")


def _ascends(value: tuple[float, float]) -> bool:
    return len(value) == 2 and value[0] <= value[1]


def facts_of(config: PhantomConfig) -> dict[str, object]:
    """Return the fields of a phantom as they are recorded; ``detail`` only where there is some, as earlier versions."""
    return {name: value for name, value in asdict(config).items() if name != "detail" or value}


# An adult from mid-thigh to vertex at natural length, on the voxels of ``storage.lowdose.CERTIFIED_SPACING_MM``, with
# as much detail as patients have by their noise figures at full dose, where little of it is noise.
ADULT = PhantomConfig(shape=(606, 192, 272), spacing_mm=(1.65, 1.65, 1.65), detail=0.2)


@dataclass(frozen=True)
class Lesion:
    """A sphere of uniform uptake and density: a hot lesion, or a cold cyst.

    Args:
        centre_mm: distance along (z, y, x) in mm from the centre of voxel (0, 0, 0).
        diameter_mm: one of ``NEMA_DIAMETERS_MM``.
        suv: its uptake.
        contrast: its uptake over that of the tissue around it: 2 to 8 in a lesion, 0.15 in a cyst.
        organ: name of the tissue around it.
        hu: its CT value.
    """

    centre_mm: tuple[float, float, float]
    diameter_mm: float
    suv: float
    contrast: float
    organ: str
    hu: float


@dataclass(frozen=True, eq=False)
class Phantom:
    """The three images of a phantom on one grid, and the truth about its lesions and cysts."""

    activity: ImageSource
    ct: ImageSource
    labels: ImageSource
    lesions: tuple[Lesion, ...]
    cysts: tuple[Lesion, ...]
    config: PhantomConfig

    @property
    def label_names(self) -> Mapping[int, str]:
        """Value in ``labels`` -> name: ``LABEL_NAMES``, and the cyst's in a phantom that is to have some."""
        return {**LABEL_NAMES, CYST: "cyst"} if self.config.num_cysts else LABEL_NAMES


def phantom(config: PhantomConfig) -> Phantom:
    """Draw up the anatomy of ``config``; voxels are computed when a slab is read.

    The grid is centred on the world's origin, x runs to the patient's left, y to posterior, z to superior, as the
    slices of an axial DICOM series do.
    """
    anatomy = _anatomy(config)
    dz, dy, dx = config.spacing_mm
    nz, ny, nx = config.shape
    affine = np.diag([-dx, -dy, dz, 1.0])
    affine[:3, 3] = dx * (nx - 1) / 2, dy * (ny - 1) / 2, -dz * (nz - 1) / 2
    grid = Grid(config.shape, affine)
    activity, ct, labels = (_Image(grid, units, config, anatomy) for units in (SUV, HU, LABEL))
    return Phantom(activity, ct, labels, anatomy.lesions, anatomy.cysts, config)


@dataclass(frozen=True, eq=False)
class _Part:
    """A tissue between two soft surfaces: a tube along z given by knots, or an ellipsoid.

    ``knots`` of a tube: (n, 5) rows of z, centre y, centre x, half axis y, half axis x.
    ``knots`` of an ellipsoid: (2, 3) rows of centre and half axes along (z, y, x).  All in mm.
    """

    label: int
    suv: float
    hu: float
    knots: NDArray[np.float64]

    def fraction(
        self, z: NDArray[np.float32], y: NDArray[np.float32], x: NDArray[np.float32], edge_mm: float
    ) -> tuple[tuple[slice, slice, slice], NDArray[np.float32]] | None:
        """Return the box of voxels the part touches and the fraction of each it fills; None if it touches none."""
        if self.knots.shape[1] == 3:
            centre, half = (row.astype(np.float32) for row in self.knots)
            box = tuple(
                _span(axis, c - h - edge_mm, c + h + edge_mm)
                for axis, c, h in zip((z, y, x), centre, half, strict=True)
            )
        else:
            at = self.knots[:, 0]
            yc, xc, b, a = (np.interp(z, at, column).astype(np.float32) for column in self.knots[:, 1:].T)
            inside_z = (z >= at[0]) & (z <= at[-1])
            if not inside_z.any():
                return None
            first, last = np.flatnonzero(inside_z)[[0, -1]]
            yc, xc, b, a = (column[first : last + 1, None, None] for column in (yc, xc, b, a))
            box = (
                slice(int(first), int(last) + 1),
                _span(y, float((yc - b).min()) - edge_mm, float((yc + b).max()) + edge_mm),
                _span(x, float((xc - a).min()) - edge_mm, float((xc + a).max()) + edge_mm),
            )
        if any(s.start >= s.stop for s in box):
            return None
        zz, yy, xx = z[box[0], None, None], y[None, box[1], None], x[None, None, box[2]]
        if self.knots.shape[1] == 3:
            offsets = ((zz - centre[0], half[0]), (yy - centre[1], half[1]), (xx - centre[2], half[2]))
        else:
            offsets = ((yy - yc, b), (xx - xc, a))  # type: ignore[assignment]
        radius = np.sqrt(sum((d / h) ** 2 for d, h in offsets))
        slope = np.sqrt(sum((d / h**2) ** 2 for d, h in offsets))
        # First-order signed distance to the surface, exact for a sphere; the floor keeps 0/0 at the centre inside.
        depth = (1 - radius) * np.maximum(radius, 0.1) / np.maximum(slope, 1e-4)
        return box, np.clip(0.5 + depth / edge_mm, 0, 1, dtype=np.float32)  # type: ignore[return-value]


def _span(axis: NDArray[np.float32], low: float, high: float) -> slice:
    return slice(int(np.searchsorted(axis, low)), int(np.searchsorted(axis, high, side="right")))


@dataclass(frozen=True, eq=False)
class _Sphere:
    """A lesion or cyst as it is painted: its first voxel (z, y, x) and the fraction of each voxel it fills."""

    label: int
    suv: float
    hu: float
    first: tuple[int, int, int]
    fraction: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Anatomy:
    """What a slab is drawn from: parts in painting order, sinusoids (amplitude, frequency, phase), spheres."""

    parts: tuple[_Part, ...]
    waves: NDArray[np.float64]  # (num_waves, 7): amplitude; cycles/mm along z, y, x; phases along z, y, x
    fine_waves: NDArray[np.float64]  # alike; none without detail
    lesions: tuple[Lesion, ...]
    cysts: tuple[Lesion, ...]
    spheres: tuple[_Sphere, ...]


@dataclass(frozen=True, eq=False)
class _Image:
    """One of the phantom's three images."""

    grid: Grid
    units: str
    config: PhantomConfig
    anatomy: _Anatomy

    @property
    def provenance(self) -> Mapping[str, object]:
        """Everything needed to draw this phantom again."""
        lesions, cysts = ([asdict(x) for x in found] for found in (self.anatomy.lesions, self.anatomy.cysts))
        return {"kind": "phantom", "config": facts_of(self.config), "lesions": lesions, "cysts": cysts}

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1``."""
        slab = np.empty((z1 - z0, *self.grid.shape[1:]), dtype=np.float32)
        for start in range(z0, z1, _SLICES_AT_ONCE):
            stop = min(start + _SLICES_AT_ONCE, z1)
            self._paint(start, slab[start - z0 : stop - z0])
        return slab

    def _paint(self, z0: int, slab: NDArray[np.float32]) -> None:
        dz, dy, dx = self.config.spacing_mm
        nz, ny, nx = slab.shape
        z, y, x = ((np.arange(n) * d).astype(np.float32) for n, d in ((z0 + nz, dz), (ny, dy), (nx, dx)))
        z = z[z0:]
        edge_mm = float(np.cbrt(dz * dy * dx))
        slab[...] = AIR_HU if self.units == HU else 0.0
        for part in self.anatomy.parts:
            hit = part.fraction(z, y, x, edge_mm)
            if hit is None:
                continue
            box, fraction = hit
            if self.units == LABEL:
                slab[box][fraction > 0.5] = part.label
            else:
                slab[box] += fraction * ((part.hu if self.units == HU else part.suv) - slab[box])
        if self.units == SUV:
            slab *= 1 + _texture(self.anatomy.waves, z, y, x)
            if len(self.anatomy.fine_waves):  # rarely below -1, where an uptake ends at 0
                slab *= np.maximum(1 + _texture(self.anatomy.fine_waves, z, y, x), 0)
        elif self.units == HU:
            slab += 60 * _texture(self.anatomy.waves, z, y, x) * (slab > -900)
        for sphere in self.anatomy.spheres:
            (lz, ly, lx), fraction = sphere.first, sphere.fraction
            first, last = max(lz, z0), min(lz + fraction.shape[0], z0 + nz)
            if first >= last:
                continue
            part_of = fraction[first - lz : last - lz]
            view = slab[first - z0 : last - z0, ly : ly + fraction.shape[1], lx : lx + fraction.shape[2]]
            if self.units == LABEL:
                view[part_of >= min(0.5, float(fraction.max()))] = sphere.label
            else:
                view += part_of * ((sphere.hu if self.units == HU else sphere.suv) - view)


def _texture(
    w: NDArray[np.float64], z: NDArray[np.float32], y: NDArray[np.float32], x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return a field of mean 0: a sum of separable sinusoids, ``_Anatomy.waves``.

    Added wave by wave and not as a matrix product, whose last bits depend on the processor and its threads.
    """
    f, g, h = (
        np.sin(2 * np.pi * (axis[:, None] * w[:, 1 + i] + w[:, 4 + i])).astype(np.float32)
        for i, axis in enumerate((z, y, x))
    )
    rows = f[:, None, :] * g[None, :, :] * w[:, 0].astype(np.float32)
    field = np.zeros((len(z), len(y), len(x)), dtype=np.float32)
    for row, column in zip(np.moveaxis(rows, 2, 0), h.T, strict=True):
        field += row[:, :, None] * column
    return field


def _anatomy(config: PhantomConfig) -> _Anatomy:
    """Draw one patient: every random number of the phantom is drawn here, in this order.

    What came later draws from generators of its own, so that a seed remains the patient it was.
    """
    rng, for_liver, for_lesions, for_cysts, for_detail = (
        generator(config.seed, Stream.ANATOMY, *k) for k in ((), (1,), (2,), (3,), (4,))
    )
    (nz, ny, nx), (dz, dy, dx) = config.shape, config.spacing_mm
    low, high = config.axial_coverage
    axial = min(nz * dz / ((high - low) * _VERTEX_TO_THIGH_MM), 1.15)
    # A squeezed body is also made narrower, by less, so that it stays recognisable; and it must fit the matrix.
    across = rng.uniform(0.9, 1.06) * min(1.0, float(np.sqrt(axial)))
    across = min(across, 0.48 * nx * dx / _HALF_WIDTH_MM[config.arms], 0.48 * ny * dy / _HALF_DEPTH_MM)
    scale = np.array([axial, across, across])
    vertex = (nz - 0.5) * dz + (1 - high) * _VERTEX_TO_THIGH_MM * axial

    # The stylised adult is written in mm below the vertex, posterior and left of the midline.
    def place(below: float, y: float, x: float) -> NDArray[np.float64]:
        return np.array([vertex - below * axial, (ny - 1) * dy / 2 + y * across, (nx - 1) * dx / 2 + x * across])

    def vary(value: float, spread: float) -> float:
        return float(value * rng.uniform(1 - spread, 1 + spread))

    def organ(label: int, suv: float, hu: float, at: _Mm3, half: _Mm3) -> _Part:
        centre = place(at[0] + rng.uniform(-4, 4), at[1] + rng.uniform(-4, 4), at[2] + rng.uniform(-4, 4))
        return _Part(label, suv, hu, np.stack([centre, [vary(h, 0.08) * k for h, k in zip(half, scale, strict=True)]]))

    def tube(label: int, suv: float, hu: float, rows: Sequence[_Row]) -> _Part:
        """A tube through rows of (below, y, x, half depth, half width)."""
        knots = [(*place(s, y, x), b * across, a * across) for s, y, x, b, a in rows]
        return _Part(label, suv, hu, np.array(sorted(knots)))

    def limb(*rows: _Row) -> list[_Part]:
        flesh = [(s, y, x, b * 0.86, a * 0.86) for s, y, x, b, a in rows]
        bone = [(s, y, x, 13.0, 13.0) for s, y, x, _, _ in rows]
        return [tube(BODY, 0.35, -95, rows), tube(BODY, muscle, 50, flesh), tube(BODY, 0.6, 550, bone)]

    muscle, blood, marrow, cortex = vary(0.75, 0.12), vary(1.6, 0.12), vary(1.5, 0.15), vary(9.0, 0.2)
    fat_mm, girth = rng.uniform(6.0, 22.0), rng.uniform(0.94, 1.06)
    below = np.arange(185.0, 931.0, 6.0)
    box7 = np.ones(7) / 7
    depth, width = (
        girth * np.convolve(np.pad(np.interp(below, _TRUNK[:, 0], column), 3, "edge"), box7, "valid")
        for column in _TRUNK[:, 1:].T
    )
    trunk = [(s, 0.0, 0.0, b, a) for s, b, a in zip(below, depth, width, strict=True)]
    skin = [(s, y, x, min(b + fat_mm, _HALF_DEPTH_MM), a + 1.2 * fat_mm) for s, y, x, b, a in trunk]

    parts: list[_Part] = []
    for side in (-1, 1):
        parts += limb(
            (885, 5, side * 84, 80, 78), (1000, 5, side * 84, 78, 74), (1400, 5, side * 78, 52, 50),
            (1900, 5, side * 70, 36, 36),
        )  # fmt: skip
        if config.arms == "up":
            parts += limb((0, -5, side * 130, 34, 32), (150, 0, side * 165, 40, 38), (320, 10, side * 150, 48, 46))
        if config.arms == "down":
            parts += limb((275, 10, side * 165, 40, 40), (560, 10, side * 212, 38, 37), (800, -5, side * 212, 30, 30))
    head = organ(BODY, muscle, 40, (112, -4, 0), (110, 98, 78))
    brain = _Part(BRAIN, cortex, 38, np.stack([head.knots[0] + scale * (20, 0, 0), head.knots[1] * (0.7, 0.82, 0.82)]))
    parts += [tube(BODY, 0.3, -100, skin), tube(BODY, muscle, 50, trunk), head]
    parts += [_within(head, BODY, 0.9, 850, 0.93), _within(head, BODY, muscle, 40, 0.86)]
    parts += [brain, _within(brain, BRAIN, 0.45 * cortex, 30, 0.72)]
    parts += [organ(BRAIN, 0.95 * cortex, 38, (98, 0, side * 13), (14, 22, 9)) for side in (-1, 1)]  # thalami
    parts.append(organ(BRAIN, 0.8 * cortex, 38, (152, 36, 0), (22, 26, 42)))  # cerebellum
    parts.append(organ(BODY, vary(2.2, 0.3), 50, (190, -40, 0), (9, 16, 24)))  # tongue base

    lung = vary(0.45, 0.2)
    lungs = [organ(LUNGS, lung, -780, (410, 0, side * 80), (112, 76, 56)) for side in (-1, 1)]
    liver = vary(2.2, 0.15)
    if config.liver_suv is not None:
        liver = float(for_liver.uniform(*config.liver_suv))
    right_lobe = organ(LIVER, liver, 60, (548, -5, -70), (72, 76, 72))
    left_lobe = organ(LIVER, liver, 60, (530, -40, 0), (40, 44, 66))
    wall = organ(HEART, vary(3.6, 0.5), 45, (452, -36, 32), (44, 40, 48))
    spleen = organ(SPLEEN, vary(1.8, 0.15), 50, (560, 45, 104), (45, 34, 22))
    parts += lungs
    parts.append(tube(BODY, blood, 45, [(310, -5, 4, 30, 26), (360, -8, 2, 34, 30), (500, 0, 0, 40, 26)]))
    parts += [right_lobe, left_lobe, organ(BODY, vary(1.5, 0.4), 35, (570, -35, 72), (40, 34, 36)), spleen]  # stomach
    parts += [wall, _within(wall, HEART, blood, 45, 0.62)]
    parts.append(tube(BODY, blood, 45, [(345, 34, 16, 12, 12), (720, 34, 8, 10, 10)]))  # descending aorta
    for _ in range(14):  # bowel loops
        at = (rng.uniform(620, 800), rng.uniform(-55, 10), rng.uniform(-95, 95))
        half = (rng.uniform(12, 30), rng.uniform(12, 30), rng.uniform(12, 30))
        parts.append(organ(BODY, rng.uniform(0.7, 2.0), 35, at, half))
    for side in (-1, 1):
        kidney = organ(KIDNEYS, vary(3.2, 0.2), 35, (620, 48, side * 66), (52, 26, 28))
        parts += [kidney, _within(kidney, KIDNEYS, vary(9.0, 0.4), 25, 0.45)]
        parts.append(organ(BODY, marrow * 0.8, 330, (790, 42, side * 82), (52, 16, 42)))  # ilium
        parts.append(organ(BODY, marrow * 0.5, 450, (872, 8, side * 86), (24, 22, 22)))  # head of the femur
    vertebrae = np.arange(185.0, 850.0, 4.0)
    radius = (13 + 9 * (vertebrae - 200) / 650) * (1 + 0.1 * np.sin(2 * np.pi * vertebrae / 31))
    curve = 52 + 8 * np.sin((vertebrae - 300) / 110)
    spine = tube(SPINE, marrow, 260, [(s, c, 0.0, r, r) for s, c, r in zip(vertebrae, curve, radius, strict=True)])
    parts += [spine, organ(BLADDER, vary(22.0, 0.4), 8, (858, -30, 0), (34, 34, 40))]

    sites = [right_lobe, right_lobe, *lungs]  # ellipsoids a lesion may lie in, each standing for its tissue
    for row in spine.knots[30:-10:12]:  # the centre of a metastasis lies in the vertebra, its rim need not
        sites.append(_Part(SPINE, marrow, 260, np.stack([row[:3], scale * 24])))
    for node in _NODES:
        sites.append(_Part(BODY, muscle, 50, np.stack([place(*node), scale * 24])))
    named = [site for site in sites if not config.lesion_organs or LABEL_NAMES[site.label] in config.lesion_organs]
    lesions = _place(config, rng, parts, named, config.num_lesions, _LESION_CONTRAST, for_lesions, config.lesion_hu)
    lobes = [right_lobe, left_lobe]
    cysts = _place(
        config, for_cysts, parts, lobes, config.num_cysts, _CYST_CONTRAST, for_cysts, config.cyst_hu, lesions
    )

    waves = _waves(rng, _TEXTURE, _TEXTURE_MM, _NUM_WAVES)
    fine_waves = _waves(for_detail, config.detail, _DETAIL_MM, _NUM_FINE_WAVES if config.detail else 0)
    spheres = [_sphere(config, LESION, lesion) for lesion in lesions] + [_sphere(config, CYST, cyst) for cyst in cysts]
    return _Anatomy(tuple(parts), waves, fine_waves, lesions, cysts, tuple(spheres))


def _waves(
    rng: np.random.Generator, deviation: float, wavelengths_mm: tuple[float, float], count: int
) -> NDArray[np.float64]:
    wavelength = np.geomspace(*wavelengths_mm, count)
    direction = rng.uniform(0.1, 1.0, (count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    amplitude = np.full(count, deviation * np.sqrt(8 / max(count, 1)))  # sin^2 averages 1/2 along each of three axes
    return np.column_stack([amplitude, direction / wavelength[:, None], rng.uniform(0, 1, (count, 3))])


def _within(outer: _Part, label: int, suv: float, hu: float, share: float) -> _Part:
    """An ellipsoid inside another, with the same centre."""
    return _Part(label, suv, hu, np.stack([outer.knots[0], outer.knots[1] * share]))


def _place(
    config: PhantomConfig,
    rng: np.random.Generator,
    parts: Sequence[_Part],
    sites: Sequence[_Part],
    count: int,
    contrasts: tuple[float, float],
    for_hu: np.random.Generator,
    hu: tuple[float, float],
    others: Sequence[Lesion] = (),
) -> tuple[Lesion, ...]:
    """Put spheres into the sites: wholly inside the matrix, centred in the site's tissue, apart from all others."""
    found: list[Lesion] = []
    end = [(n - 1) * d for n, d in zip(config.shape, config.spacing_mm, strict=True)]
    for _ in range(200 * count):
        if len(found) == count:
            break
        site = sites[int(rng.integers(len(sites)))]
        diameter = float(rng.choice(NEMA_DIAMETERS_MM))
        contrast = float(rng.uniform(*contrasts))
        ray = rng.normal(size=3)
        ray *= rng.uniform() ** (1 / 3) / np.linalg.norm(ray)
        centre, half = site.knots
        at = centre + ray * (half - diameter / 2)
        apart = all(
            np.linalg.norm(at - np.array(other.centre_mm)) > (diameter + other.diameter_mm) / 2 + 10
            for other in (*found, *others)
        )
        inside = all(diameter / 2 <= c <= e - diameter / 2 for c, e in zip(at, end, strict=True))
        if (half > diameter / 2).all() and apart and inside and _label_at(parts, at) == site.label:
            z, y, x = (float(c) for c in at)
            suv = round(site.suv * contrast, 3)
            organ, density = LABEL_NAMES[site.label], float(for_hu.uniform(*hu))
            found.append(Lesion((z, y, x), diameter, suv, suv / site.suv, organ, density))
    return tuple(found)


def _label_at(parts: Sequence[_Part], point: NDArray[np.float64]) -> int:
    z, y, x = (np.array([c], dtype=np.float32) for c in point)
    label = 0
    for part in parts:
        hit = part.fraction(z, y, x, 1.0)
        if hit is not None and hit[1].size and hit[1].max() > 0.5:
            label = part.label
    return label


def _sphere(config: PhantomConfig, label: int, lesion: Lesion) -> _Sphere:
    """Find the voxels of a sphere's box and the fraction of each that it fills, from 5 points per axis."""
    radius = lesion.diameter_mm / 2
    first, axes = [], []
    for centre, spacing, count in zip(lesion.centre_mm, config.spacing_mm, config.shape, strict=True):
        start = max(int(np.floor((centre - radius) / spacing)), 0)
        stop = min(int(np.ceil((centre + radius) / spacing)) + 1, count)
        first.append(start)
        points = (np.arange(start, stop)[:, None] + np.linspace(-0.4, 0.4, 5)) * spacing - centre
        axes.append(points.ravel() ** 2)
    z, y, x = axes
    inside = (z[:, None, None] + y[:, None] + x) <= radius**2
    nz, ny, nx = (n // 5 for n in inside.shape)
    fraction = inside.reshape(nz, 5, ny, 5, nx, 5).mean(axis=(1, 3, 5), dtype=np.float32)
    return _Sphere(label, lesion.suv, lesion.hu, (first[0], first[1], first[2]), fraction)
