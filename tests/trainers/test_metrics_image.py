"""Scores of arrays against scikit-image and MONAI."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity

from trainers.metrics import image as m
from trainers.metrics.identifiers import SSIM_WINDOW, UNIFORM_WINDOW
from trainers.metrics.ssim import WINDOWS, blur, ssim, ssim_map


def volumes() -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.Generator(np.random.Philox(7))
    x = rng.gamma(2.0, 1.0, (23, 17, 19)).astype(np.float32)
    return x, (x + rng.normal(0, 0.5, x.shape)).astype(np.float32)


def test_plain_scores_equal_scikit_image() -> None:
    x, y = volumes()
    x, y = x.astype(np.float64), y.astype(np.float64)
    assert m.psnr(x, y, data_range=9.0) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=9.0))
    assert m.nrmse(x, y) == pytest.approx(normalized_root_mse(x, y, normalization="euclidean"))
    _, theirs = structural_similarity(
        x, y, data_range=9.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    np.testing.assert_allclose(ssim_map(x, y, data_range=9.0), theirs, atol=1e-10)


@pytest.mark.parametrize("data_range", [1.0, 4000.0])
def test_ssim_of_large_values_equals_scikit_image(data_range: float) -> None:
    """A CT in HU: variances are small differences of large squares."""
    x, y = (1000 + 50 * v.astype(np.float64) for v in volumes())
    _, theirs = structural_similarity(
        x, y, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    np.testing.assert_allclose(ssim_map(x, y, data_range=data_range), theirs, atol=1e-9)


@pytest.mark.parametrize("name", [SSIM_WINDOW, UNIFORM_WINDOW])
@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 4, 6), (9, 15, 17), (20, 16, 33)])
def test_window_means_are_those_of_scipy(name: str, shape: tuple[int, int, int]) -> None:
    """Along axes shorter than the window too, and where blocks of the band end."""
    window = WINDOWS[name]
    x = np.random.default_rng(3).normal(size=shape)
    expected = x
    for axis in range(3):
        expected = correlate1d(expected, window.taps, axis=axis, mode="reflect")
    padded = np.pad(x, ((window.radius, window.radius), (0, 0), (0, 0)), mode="symmetric")
    np.testing.assert_allclose(blur(padded, window), expected, atol=1e-13)


def test_ssim_equals_monai_where_windows_lie_inside() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics.regression")
    x, y = volumes()
    theirs, _ = metrics.compute_ssim_and_cs(
        torch.from_numpy(x)[None, None],
        torch.from_numpy(y)[None, None],
        spatial_dims=3,
        kernel_size=(11, 11, 11),
        kernel_sigma=(1.5, 1.5, 1.5),
        data_range=9.0,
        kernel_type=metrics.KernelType.GAUSSIAN,
    )
    ours = ssim_map(x, y, data_range=9.0)[5:-5, 5:-5, 5:-5]
    np.testing.assert_allclose(ours, theirs[0, 0].numpy(), atol=2e-4)  # MONAI computes in float32


def test_known_values() -> None:
    x, y = np.full((4, 4, 4), 2.0), np.full((4, 4, 4), 3.0)
    assert m.mae(x, y) == 1.0
    assert m.nrmse(x, y) == 0.5
    assert m.psnr(x, y, data_range=10.0) == pytest.approx(20.0)
    assert m.psnr(x, x, data_range=10.0) == math.inf
    assert ssim(x, x, data_range=10.0) == pytest.approx(1.0)
