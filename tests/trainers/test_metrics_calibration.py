"""Calibration of a standard deviation: what is learned from made-up scans whose error is known holds on others."""

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.source import SUV, ArraySource, Grid
from trainers.metrics.calibration import EDGES_SUV, LEVELS, Band, Calibration, Counts, check, learn, tally

NOISE, FACTOR = 0.2, 3.0
SHAPE = (12, 60, 50)
GRID = Grid(SHAPE, np.diag([-4.0, -4.0, 4.0, 1.0]))
Scan = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def scan(seed: int, noise: float = NOISE, top_suv: float = 3.9) -> Scan:
    """Mean, deviation, full dose and body; the full dose differs by what noise and deviation say, of half the voxels.

    A third of the deviations is near 0, as that of two mirror images is by chance.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    mean = rng.uniform(0.1, top_suv, SHAPE)
    deviation = np.abs(rng.normal(0, 0.1, SHAPE)) * (rng.random(SHAPE) > 1 / 3)
    full = mean + rng.normal(0, 1, SHAPE) * np.hypot(noise, FACTOR * deviation)
    body = np.zeros(SHAPE)
    body[:, :30] = 1
    full[body == 0] = 50
    a, b, c, d = (one.astype(np.float32) for one in (mean, deviation, full, body))
    return a, b, c, d


def counted(one: Scan) -> Counts:
    mean, deviation, full, body = (ArraySource(voxels, GRID, SUV) for voxels in one)
    return tally(mean, deviation, full, body)


@pytest.fixture(scope="module")
def learned() -> Calibration:
    found = learn([counted(scan(seed)) for seed in range(6)])
    assert found is not None
    return found


def test_noise_and_factor_are_found_again(learned: Calibration) -> None:
    assert [band.low_suv for band in learned.bands] == [0, 0.5, 1, 2]  # no SUV above 4
    for band in learned.bands:
        assert band.noise_suv == pytest.approx(NOISE, rel=0.05)
        assert band.factor == pytest.approx(FACTOR, rel=0.06)
        assert band.patients == 6


def test_intervals_hold_what_they_say_on_other_patients_at_every_level(learned: Calibration) -> None:
    """Also where images happen to agree: there a factor alone would give no interval at all."""
    others = [scan(seed) for seed in range(20, 26)]
    for found in check(learned, [counted(one) for one in others]):
        np.testing.assert_allclose(found.observed, LEVELS, atol=0.015)
        assert found.within_aim
        assert found.least <= found.at_level <= found.most
    mean, deviation, full, body = (np.stack(parts)[:, :, :30] for parts in zip(*others, strict=True))
    assert body.all()
    held = np.abs(full - mean) <= 1.645 * learned.spread(mean, deviation)
    for part in (deviation == 0, (deviation > 0) & (deviation < 0.05), deviation > 0.15):
        assert held[part].mean() == pytest.approx(0.9, abs=0.01)


def test_coverage_is_that_of_the_voxels_themselves(learned: Calibration) -> None:
    """Counting in bins costs less than a hundredth."""
    one = scan(30, noise=0.5)
    mean, deviation, full, _ = (voxels[:, :30] for voxels in one)
    for found in check(learned, [counted(one)]):
        place = [band.low_suv for band in learned.bands].index(found.low_suv)
        high = (*(band.low_suv for band in learned.bands[1:]), np.inf)[place]
        inside = (mean >= found.low_suv) & (mean < high)
        held = np.abs(full - mean)[inside] <= 1.645 * learned.spread(mean, deviation)[inside]
        assert found.at_level == pytest.approx(held.mean(), abs=0.005)
        assert not found.within_aim
        assert found.patients == 1


def test_patients_count_alike_however_many_voxels_they_have(learned: Calibration) -> None:
    tallies = [counted(scan(seed)) for seed in range(6)]
    assert learn([tallies[0] * 10, *tallies[1:]]) == learned


def test_a_band_that_one_patient_has_is_learned_with_its_neighbour() -> None:
    calm, hot = counted(scan(0)), counted(scan(1, top_suv=12.0))
    found = learn([calm, hot])
    assert found is not None
    assert [band.low_suv for band in found.bands] == [0, 0.5, 1, 2]
    assert [one.patients for one in check(found, [calm, hot])] == [2, 2, 2, 2]
    both = learn([hot, counted(scan(2, top_suv=12.0))])
    assert both is not None
    assert tuple(band.low_suv for band in both.bands) == EDGES_SUV
    assert learn([calm]) is None
    assert learn([]) is None


def test_the_calibrated_deviation_by_hand_and_rising() -> None:
    two = Calibration((Band(0.0, 0.3, 4.0, 2), Band(1.0, 0.5, 0.0, 2)))
    mean = np.array([[[0.0, 0.99, 1.0, 40.0]]], np.float32)
    np.testing.assert_allclose(two.spread(mean, np.full_like(mean, 0.1)), [[[0.5, 0.5, 0.5, 0.5]]], rtol=1e-6)
    np.testing.assert_allclose(two.spread(mean, np.zeros_like(mean)), [[[0.3, 0.3, 0.5, 0.5]]], rtol=1e-6)
    deviations = np.linspace(0, 1, 50, dtype=np.float32)
    assert np.all(np.diff(two.spread(np.zeros_like(deviations), deviations)) > 0)


def test_images_without_any_difference_give_finite_numbers() -> None:
    mean, _, _, body = scan(0)
    same = [counted((mean, np.zeros_like(mean), mean, body))] * 2
    found = learn(same)
    assert found is not None
    assert all(np.isfinite([band.noise_suv, band.factor]).all() for band in found.bands)
    assert all(one.at_level == pytest.approx(1, abs=0.11) for one in check(found, same))
