"""The unit of a NIfTI PET that nobody states, by its own values: SUV where they leave no doubt, else a refusal."""

from pathlib import Path
from typing import Literal

import numpy as np

from storage import geometry, nifti
from storage.errors import InputError
from storage.image_values import USUAL_MEDIAN_SUV
from storage.source import SUV

HIGHEST_SUV = (1.0, 300.0)  # of a body at least, and what a bladder or an injection site may come near
HU_BELOW = -200.0  # no PET, and every CT with air
BLOCK_MM = 5.0


def units_by_values(path: Path, scratch: Path) -> Literal["SUVbw"]:
    """Return ``SUVbw`` where the values can be nothing else; the volume is read once, slab by slab.

    The median inside the body is 0.3 to 1 for FDG in SUV and some thousands in Bq/mL.

    Raises:
        InputError: NII_UNITS; whatever is wrong with the file.
    """
    # Of a dynamic scan the last volume: uptake has come by then.
    source = nifti.open_volumes(path, units="SUVbw", workdir=scratch)[-1]
    edges = tuple(max(1, round(BLOCK_MM / mm)) for mm in source.grid.spacing_mm)
    step = edges[0] * max(1, 16 // edges[0])
    coarse, low, high = [], np.inf, -np.inf
    for z0 in range(0, source.grid.shape[0], step):
        slab = source.read(z0, min(z0 + step, source.grid.shape[0]))
        low, high = min(low, float(slab.min())), max(high, float(slab.max()))
        coarse.append(geometry.block_means(slab, (edges[0], edges[1], edges[2])))
    blocks = np.concatenate(coarse)
    z, y, x = (mm * edge for mm, edge in zip(source.grid.spacing_mm, edges, strict=True))
    median = float(np.median(blocks[geometry.body_mask(blocks, SUV, (z, y, x))]))
    if (
        USUAL_MEDIAN_SUV[0] <= median <= USUAL_MEDIAN_SUV[1]
        and HIGHEST_SUV[0] <= high <= HIGHEST_SUV[1]
        and low > HU_BELOW
    ):
        return "SUVbw"
    looks = "they look like HU" if low <= HU_BELOW else "they leave it open"
    raise InputError(
        "NII_UNITS",
        where=path.name,
        found=f"no unit is stated, and the values ({low:.3g} to {high:.3g}, a median of {median:.3g} inside the body): "
        + looks,
        remedy="give a PET here; petscale ingest takes the CT by --ct"
        if low <= HU_BELOW
        else "give --units SUVbw, or --units Bq/mL with --weight-kg and --dose-mbq",
    )
