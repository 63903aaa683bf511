"""B5, a volume cut into overlapping windows and blended again, the network being the identity."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.performance.measure import Benchmark
from benchmarks.performance.volumes import Shape, cohort, missing, pet_like
from trainers.recipe import BatchSpec, Tiling
from trainers.synthesize import synthesize

MONAI = "MONAI: sliding_window_inference, Gaussian, in memory"


@dataclass(frozen=True)
class Identity:
    """A network that gives what it is given."""

    tiling: Tiling
    context_batch: BatchSpec | None = None

    def context(self, overview: torch.Tensor, source: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}

    def __call__(self, source: torch.Tensor, context: object) -> torch.Tensor:
        return source.clone()


def windows(folder: Path, shape: Shape, *, tile: int) -> Benchmark:
    """Make B5: ours reads from a cohort, and both end in an array."""
    voxels = pet_like(shape)
    case = cohort(folder / "cohort", {"a": {"full": voxels}}).case("a")
    half = tile // 2
    network = Identity(Tiling((tile, tile, tile), (0, 0, 0), (half, half, half)))
    tensor = torch.from_numpy(voxels)[None, None]
    absent = missing(monai=MONAI)

    def ours() -> NDArray[np.float32]:
        found = np.empty(shape, np.float32)

        def write(z0: int, slab: NDArray[np.float32]) -> None:
            found[z0 : z0 + len(slab)] = slab

        synthesize(network, case, "full", write, device=torch.device("cpu"))
        return found

    def by_monai() -> NDArray[np.float32]:
        infer: Any = import_module("monai.inferers").sliding_window_inference
        # It weighs what the network returns in place, which must not be its input.
        found: torch.Tensor = infer(tensor, (tile,) * 3, 1, torch.clone, overlap=0.5, mode="gaussian")
        return found[0, 0].numpy()

    return Benchmark(
        name="B5 windows",
        does=f"{' x '.join(map(str, shape))} float32, windows of {tile}^3 that overlap by half, blended; petscale "
        "reads them from a cohort",
        ours=ours,
        peers={} if absent else {MONAI: by_monai},
        bounds={"copy of the volume": voxels.copy},
        agree=lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5),
        others={},
        absent=absent,
    )
