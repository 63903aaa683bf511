"""B6, SSIM of whole volumes.  Phantom-like noise, fixed seed."""

from functools import partial

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from benchmarks.performance.measure import Benchmark
from trainers.metrics.ssim import ssim_map

Shape = tuple[int, int, int]


def similarity(shape: Shape) -> Benchmark:
    """B6: the map of SSIM, Gaussian window of 11 voxels, of two float32 volumes; peers compute in float64 too."""
    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, 1.0, shape).astype(np.float32)
    y = (x + rng.normal(0, 0.5, shape)).astype(np.float32)

    def by_scikit_image() -> NDArray[np.float64]:
        a, b = x.astype(np.float64), y.astype(np.float64)
        known = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        found: NDArray[np.float64] = structural_similarity(a, b, data_range=9.0, full=True, **known)[1]
        return found

    return Benchmark(
        name="B6 SSIM",
        does=f"the SSIM map of two volumes of {' x '.join(map(str, shape))} float32, Gaussian window, float64 inside",
        ours=lambda: ssim_map(x, y, data_range=9.0),
        peers={"scikit-image": by_scikit_image},
        bounds={"copy of both volumes": lambda: (x.copy(), y.copy())},
        agree=partial(np.testing.assert_allclose, atol=1e-6),
        others={},
    )
