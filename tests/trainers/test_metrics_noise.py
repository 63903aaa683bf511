"""The noise figure against its published definition, and noise power spectra against what theory says of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from storage.errors import InputError
from storage.lowdose import SCANNERS, LowDoseSource
from storage.phantom import ADULT, phantom
from storage.source import BQML, SUV, ArraySource, Grid
from trainers.metrics.noise import (
    PUBLISHED,
    coefficient_of_variation,
    figure_of,
    figure_sums,
    noise_figure,
    noise_of_pair,
    power_spectrum,
    radial_spectrum,
)


def source(voxels: NDArray[Any]) -> ArraySource:
    return ArraySource(voxels.astype(np.float32), Grid(voxels.shape, np.diag([-1.65, -1.65, 1.65, 1.0])), SUV)


def patient(seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    body = np.zeros((40, 30, 34), dtype=np.float32)
    body[4:36, 6:24, 5:29] = rng.gamma(4.0, 0.5, (32, 18, 24))
    return body


def as_published(voxels: NDArray[Any]) -> float:
    """KUL-recon-lab/2025_ud_pet_kul:noise_metric.py, of the logarithm that its data.py makes."""
    values = np.log1p(voxels.astype(np.float64))
    smooth = ndimage.gaussian_filter(values, 2.0)
    return float(np.abs(values - smooth).sum() / (smooth > 0.1).sum())


# --- the figure ---


@pytest.mark.parametrize("slab_voxels", [3_000_000, 7 * 30 * 34, 1])
def test_the_figure_is_the_published_one_in_any_slabs(slab_voxels: int) -> None:
    voxels = patient()
    assert noise_figure(source(voxels), slab_voxels=slab_voxels) == pytest.approx(as_published(voxels), rel=1e-12)


def test_the_figure_of_one_bright_voxel_is_what_hand_arithmetic_gives() -> None:
    """v = 1 in one voxel; s there is g(0)^3, elsewhere it sums to the rest: |1 - g0^3| + 1 - g0^3, and s < 0.1."""
    voxels = np.zeros((41, 41, 41), dtype=np.float32)
    voxels[20, 20, 20] = np.e - 1
    taps = np.exp(-0.5 * (np.arange(-8, 9) / 2.0) ** 2)
    centre = (1 / taps.sum()) ** 3
    total, counted = figure_sums(source(voxels), 0, 41)
    assert total == pytest.approx(2 * (1 - centre), rel=1e-6)
    assert counted == 0
    with pytest.raises(InputError, match="no voxel") as error:
        figure_of(total, counted)
    assert error.value.code == "IMG_EMPTY"


def test_sums_of_slabs_add_up() -> None:
    image = source(patient())
    parts = [figure_sums(image, a, b) for a, b in ((0, 13), (13, 14), (14, 40))]
    assert figure_of(sum(p[0] for p in parts), sum(p[1] for p in parts)) == pytest.approx(
        noise_figure(image), rel=1e-12
    )


def test_a_uniform_image_has_no_noise_and_noise_raises_the_figure() -> None:
    flat = np.full((24, 24, 24), 2.0)
    rng = np.random.default_rng(1)
    figures = [noise_figure(source(flat + sd * rng.normal(size=flat.shape))) for sd in (0.0, 0.05, 0.1, 0.2)]
    assert figures[0] == pytest.approx(0, abs=1e-6)
    # white noise: |v - s| has a mean of sqrt(2 / pi) sd / (1 + 2), but for the little that the Gaussian keeps
    assert figures[2] == pytest.approx(np.sqrt(2 / np.pi) * 0.1 / 3, rel=0.03)
    assert figures[3] / figures[2] == pytest.approx(2.0, rel=0.05)


def test_air_counts_in_the_sum_and_not_in_the_number() -> None:
    voxels = np.pad(patient(), ((0, 0), (0, 40), (0, 0)))
    noisy = voxels.copy()
    noisy[:, 50:] += 0.02 * np.random.default_rng(2).random((40, 20, 34))
    (before, counted), (after, counted_too) = (figure_sums(source(one), 0, 40) for one in (voxels, noisy))
    assert after > before
    assert counted_too == counted


def test_published_bands_hold_their_medians_and_rise_with_the_dose_reduction() -> None:
    for bands in PUBLISHED.values():
        assert list(bands) == [1, 4, 10, 20, 50, 100]
        assert all(band.holds(band.median) and not band.holds(band.low / 2) for band in bands.values())
        medians = [band.median for band in bands.values()]
        assert medians == sorted(medians)


@pytest.mark.parametrize(("value", "code"), [(np.nan, "IMG_NAN"), (np.inf, "IMG_NAN"), (-1.0, "IMG_NAN")])
def test_values_without_a_logarithm_are_refused(value: float, code: str) -> None:
    voxels = patient()
    voxels[20, 10, 10] = value
    with pytest.raises(InputError) as error:
        noise_figure(source(voxels))
    assert error.value.code == code


def test_another_unit_is_refused() -> None:
    with pytest.raises(InputError) as error:
        noise_figure(replace(source(patient()), units=BQML))
    assert error.value.code == "IMG_UNITS"


@pytest.mark.parametrize(("scanner", "drf"), [("quadra", 20.0), ("uexplorer", 4.0), ("uexplorer", 50.0)])
def test_a_scanner_s_noise_is_that_of_its_patients(scanner: str, drf: float) -> None:
    """Four slices of the abdomen, whose figures are near the body's; benchmarks/simulator_certificate.py has all."""
    body = phantom(replace(ADULT, seed=1))
    first = round(0.42 * ADULT.shape[0]) - 12
    grid = Grid((28, *ADULT.shape[1:]), body.activity.grid.affine)
    activity, ct = (ArraySource(one.read(first, first + 28), grid, one.units) for one in (body.activity, body.ct))
    scan = LowDoseSource(activity, ct, replace(SCANNERS[scanner], drf=drf, seed=1))
    assert PUBLISHED[scanner][drf].holds(figure_of(*figure_sums(scan, 12, 16)))


# --- pairs of scans ---


def test_a_pair_gives_the_noise_of_one_scan_without_its_object() -> None:
    rng = np.random.default_rng(3)
    object_ = np.linspace(1, 3, 30)[:, None, None] * np.ones((30, 30, 30))
    first, second = (object_ + 0.2 * rng.normal(size=object_.shape) for _ in range(2))
    everywhere = np.ones(object_.shape, dtype=bool)
    assert noise_of_pair(first, second).std() == pytest.approx(0.2, rel=0.02)
    assert coefficient_of_variation(first, second, everywhere) == pytest.approx(10.0, rel=0.02)
    with pytest.raises(InputError) as error:
        coefficient_of_variation(first, second, ~everywhere)
    assert error.value.code == "IMG_EMPTY"


# --- noise power spectra ---


def test_the_integral_of_the_spectrum_is_the_variance() -> None:
    noise = np.random.default_rng(4).normal(size=(6, 20, 33))
    for spacing in ((2.0, 3.0), (1.65, 2.0, 3.0)):
        power = power_spectrum(noise, spacing)
        axes = tuple(range(-len(spacing), 0))
        step = np.prod([1 / (n * d) for n, d in zip(power.shape, spacing, strict=True)])
        variance = np.var(noise, axis=axes).mean()
        assert power.sum() * step == pytest.approx(variance, rel=1e-12)


def test_the_spectrum_of_white_noise_is_flat() -> None:
    noise = 0.3 * np.random.default_rng(5).normal(size=(800, 64, 64))
    frequency, power = radial_spectrum(power_spectrum(noise, (1.65, 1.65)), (1.65, 1.65))
    np.testing.assert_allclose(power, 0.09 * 1.65**2, rtol=0.06)
    assert (np.diff(frequency) > 0).all()
    assert frequency[-1] <= 0.5 / 1.65


@pytest.mark.parametrize("axes", [2, 3])
def test_filtered_noise_follows_the_transfer_function_squared(axes: int) -> None:
    sigma_mm, spacing = 3.0, (1.5,) * axes
    white = np.random.default_rng(6).normal(size=(120, 48, 48) if axes == 2 else (4, 48, 48, 48))
    sigmas = (0.0, *(sigma_mm / d for d in spacing))
    filtered = ndimage.gaussian_filter(white, sigmas, mode="wrap")
    frequency, power = radial_spectrum(power_spectrum(filtered, spacing), spacing)
    low = frequency < 0.12  # above it the sampled, truncated Gaussian is no longer the continuous one
    theory = np.prod(spacing) * np.exp(-4 * np.pi**2 * sigma_mm**2 * frequency**2)
    np.testing.assert_allclose(power[low], theory[low], rtol=0.15)


def test_a_spectrum_needs_its_axes() -> None:
    with pytest.raises(InputError) as error:
        power_spectrum(np.zeros(8), (1.0, 1.0))
    assert error.value.code == "IMG_SHAPE"
