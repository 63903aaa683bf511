"""Image sources: a grid, a unit, facts about the image's origin, and voxels slab by slab; and the dose of a PET.

A DICOM series, a NIfTI file, the phantom, a simulated low-dose scan and a resampled CT are all sources, so ingest reads
them alike and never holds a whole volume in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Interpolation = Literal["linear", "cubic"]  # of an image that is put on another grid
SUV, BQML, HU, LABEL = "SUVbw", "Bq/mL", "HU", "label"  # the units an image may be in
AIR_HU = -1000.0
BODY_SUV = 0.1  # uptake above this is body: air and table lie below it at every dose, once an image is smoothed


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an image lie in the patient.

    Args:
        shape: number of voxels along (z, y, x); arrays are indexed in this order everywhere.
        affine: (4, 4) float64, maps the voxel index written as (x, y, z, 1) to RAS+ millimetres, as NIfTI does.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge lengths along (z, y, x) in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in mL."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000.0)

    def matches(self, other: "Grid", tolerance_mm: float = 0.05) -> bool:
        """Whether both grids have one shape and every corner voxel agrees within ``tolerance_mm``."""
        if self.shape != other.shape:
            return False
        z, y, x = (n - 1 for n in self.shape)
        corners = np.array([(i, j, k, 1) for i in (0, x) for j in (0, y) for k in (0, z)], dtype=np.float64)
        gap = corners @ (self.affine - other.affine).T
        return bool(np.abs(gap).max() <= tolerance_mm)


@dataclass(frozen=True)
class Dose:
    """With how many counts a PET was measured, beside the full dose of its case.

    Args:
        drf: dose reduction factor, counts of the full dose over those of this image; 1 for the full dose itself, NaN
            when it is unknown.
        relation: where its counts come from.  ``full``: all counts of the full dose; the full dose itself, or another
            reconstruction of it.  ``thinned``: list-mode events of the full-dose scan, resampled.  ``separate``:
            another scan of the patient.  ``frames``: other frames or gates of the same scan, on one SUV scale with the
            full dose.  ``simulated``: a simulation.
        shares_noise: whether its counts are a part of the full dose's own, so that both images share noise; None when
            it is unknown, and for the full dose itself.
    """

    drf: float
    relation: Literal["full", "thinned", "separate", "frames", "simulated"]
    shares_noise: bool | None


def simulated_dose(provenance: Mapping[str, object]) -> Dose | None:
    """Return the dose of a simulated scan by its provenance, None for any other image.

    Args:
        provenance: of ``storage.lowdose.LowDoseSource``, also as cohorts keep it that store no dose of their own.
    """
    config = provenance.get("config")
    if provenance.get("kind") != "simulated low dose" or not isinstance(config, Mapping):
        return None
    if config["drf"] == 1:
        return Dose(1.0, "full", None)
    # Every full dose that petscale simulates is realisation 0; thinning keeps counts of its own realisation.
    thinned = config["mode"] == "thinning"
    unknown = thinned and config.get("realisation", 0) != 0
    return Dose(float(config["drf"]), "simulated", None if unknown else thinned)


class ImageSource(Protocol):
    """An image that is read slab by slab.

    ``provenance`` holds allow-listed, JSON-able facts only: no name, identifier, UID, date, time, free text or path.
    ``read(z0, z1)`` returns C-contiguous float32 of shape (z1 - z0, y, x) in ``units`` (labels as float32 integers),
    is pure (same slab, same values, whatever was read before) and may be called from several threads.
    """

    @property
    def grid(self) -> Grid: ...
    @property
    def units(self) -> str: ...
    @property
    def provenance(self) -> Mapping[str, object]: ...
    def read(self, z0: int, z1: int) -> NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A volume already in memory, as a source.

    Args:
        voxels: (z, y, x) float32.
    """

    voxels: NDArray[np.float32]
    grid: Grid
    units: str
    provenance: Mapping[str, object] = field(default_factory=dict)

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1``."""
        return np.ascontiguousarray(self.voxels[z0:z1], dtype=np.float32)
