"""Spectra: what agrees, how fine noise is, and that neither slabs nor the image's unit change them."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from storage.source import LABEL, SUV, ArraySource, Grid
from trainers.metrics import spectra as s
from trainers.metrics.definitions import Region

SHAPE, EDGE_MM = (6, 64, 64), 3.0
GRID = Grid(SHAPE, np.diag([-EDGE_MM, -EDGE_MM, EDGE_MM, 1.0]))
LIVER = Region("liver", "organ", 1)
NYQUIST = 0.5 / EDGE_MM


def source(voxels: NDArray[np.floating]) -> ArraySource:
    return ArraySource(voxels.astype(np.float32), GRID, SUV)


def mask(where: NDArray[np.bool_]) -> ArraySource:
    return ArraySource(where.astype(np.float32), GRID, LABEL)


@pytest.fixture(scope="module")
def noise() -> NDArray[np.float64]:
    return np.random.Generator(np.random.Philox(5)).normal(size=(2, *SHAPE))


@pytest.fixture(scope="module")
def body() -> ArraySource:
    inside = np.zeros(SHAPE, dtype=bool)
    inside[1:5, 4:60, 6:62] = True
    return mask(inside)


@pytest.fixture(scope="module")
def liver() -> ArraySource:
    inside = np.zeros(SHAPE, dtype=bool)
    inside[1:5, 12:52, 14:54] = True
    return mask(inside)


def test_an_image_agrees_with_its_double_up_to_the_nyquist_frequency(
    noise: NDArray[np.float64], body: ArraySource
) -> None:
    full = source(noise[0] + 3)
    found = s.stream_spectra(full, {"full dose": full, "double": source(2 * (noise[0] + 3))}, [], body=body)
    known = np.isfinite(found["double"].correlation)
    assert found["double"].correlation[known] == pytest.approx(1)
    assert found["double"].detail_mm == pytest.approx(2 * EDGE_MM)
    assert s.FREQUENCIES_PER_MM[known].max() < NYQUIST + s.BIN_PER_MM
    assert np.isnan(found["full dose"].correlation).all()
    assert np.isnan(found["full dose"].detail_mm)


def test_independent_images_do_not_agree(noise: NDArray[np.float64], body: ArraySource) -> None:
    found = s.stream_spectra(source(noise[0]), {"other": source(noise[1])}, [], body=body)["other"]
    assert np.nanmax(np.abs(found.correlation[2:])) < 0.35
    assert np.isnan(found.detail_mm)


def test_agreement_ends_where_noise_is_as_strong_as_detail(noise: NDArray[np.float64], body: ArraySource) -> None:
    """Of signal power S and independent noise N in one image, correlation is sqrt(S / (S + N)): 0.5 at N = 3 S."""
    frequency = s._frequency(SHAPE[1:], (EDGE_MM, EDGE_MM))
    shared = 0.08
    signal = np.fft.ifft2(np.fft.fft2(noise[0]) * (frequency < shared)).real
    other = np.fft.ifft2(np.fft.fft2(noise[1]) * (frequency >= shared)).real
    found = s.stream_spectra(source(noise[0]), {"cut": source(signal + other)}, [], body=body)["cut"]
    assert 1 / found.detail_mm == pytest.approx(shared, abs=s.BIN_PER_MM)


@pytest.mark.parametrize(
    ("curve", "mm"),
    [([0.9, 0.7, 0.3, 0.6], 1 / 0.02), ([0.9, np.nan, 0.1], 1 / 0.015), ([0.4, 0.9], np.nan), ([0.9, 0.8], 10.0)],
)
def test_detail_is_read_where_the_curve_first_crosses_half(curve: list[float], mm: float) -> None:
    padded = np.full(s.BINS, np.nan)
    padded[: len(curve)] = curve
    assert s.detail_mm(padded, 0.1) == pytest.approx(mm, nan_ok=True)


def test_white_noise_has_a_flat_spectrum_whose_level_is_its_variance(
    noise: NDArray[np.float64], body: ArraySource
) -> None:
    whole = mask(np.ones(SHAPE, dtype=bool))
    found = s.stream_spectra(source(noise[0]), {"x": source(2 * noise[0] + 7)}, [LIVER], body=body, labels=whole)["x"]
    level = found.noise["liver"][2:16]
    assert level.mean() == pytest.approx(4 * EDGE_MM**2, rel=0.05)
    assert level.std() < 0.15 * level.mean()


def test_smoothing_makes_noise_coarser_and_a_slope_is_no_noise(
    noise: NDArray[np.float64], body: ArraySource, liver: ArraySource
) -> None:
    slope = np.arange(64)[None, None] * 0.5 + np.arange(64)[None, :, None] * 0.3
    images = {
        "raw": source(noise[0]),
        "tilted": source(noise[0] + slope),
        "smooth": source(gaussian_filter(noise[0], (0, 1, 1))),
    }
    found = s.stream_spectra(images["raw"], images, [LIVER], body=body, labels=liver)
    assert found["smooth"].noise_per_mm["liver"] < 0.7 * found["raw"].noise_per_mm["liver"]
    assert found["tilted"].noise_per_mm["liver"] == pytest.approx(found["raw"].noise_per_mm["liver"], rel=1e-4)
    assert (found["smooth"].noise["liver"][8:16] < found["raw"].noise["liver"][8:16]).all()


def test_slabs_change_nothing_and_small_regions_have_no_spectrum(
    noise: NDArray[np.float64], body: ArraySource, liver: ArraySource
) -> None:
    images = {"x": source(noise[1] + noise[0])}
    whole, sliced = (
        s.stream_spectra(source(noise[0]), images, [LIVER], body=body, labels=liver, slab_voxels=voxels)["x"]
        for voxels in (10**6, 1)
    )
    np.testing.assert_array_equal(whole.correlation, sliced.correlation)
    assert whole.noise_per_mm == sliced.noise_per_mm
    tiny = np.zeros(SHAPE, dtype=bool)
    tiny[2, 10:17, 10:17] = True
    none = s.stream_spectra(source(noise[0]), images, [LIVER], body=mask(tiny), labels=mask(tiny))["x"]
    assert np.isnan(none.detail_mm)
    assert none.noise == {}
    rows = s.spectral_scores("c", images, {"full dose": none, "x": whole})
    assert [(row.image, row.definition.metric, row.region) for row in rows] == [
        ("x", "finest common detail", "body"),
        ("x", "noise frequency", "liver"),
    ]


def test_many_slices_are_thinned_evenly() -> None:
    grid = Grid((200, 20, 20), np.eye(4))
    inside = np.zeros((200, 20, 20), np.float32)
    inside[10:190] = 1
    image, body = ArraySource(inside, grid, SUV), ArraySource(inside, grid, LABEL)
    met = list(s._slices(image, {}, body, None, 800))
    assert len(met) == s.MOST_SLICES
