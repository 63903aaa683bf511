"""The observer: its channels, the area under its curve, and that it knows only what it was shown."""

import itertools

import numpy as np
import pytest

from trainers.metrics import observer


def test_channels_see_no_uniform_level_and_no_direction() -> None:
    found = observer.channels((9, 9, 9), (4.0, 4.0, 4.0))
    assert found.shape == (observer.CHANNELS, 9, 9, 9)
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), 0, atol=1e-12)
    for axes in itertools.permutations(range(3)):
        np.testing.assert_allclose(found, found.transpose(0, *(1 + axis for axis in axes)), atol=1e-12)
    np.testing.assert_allclose(found, found[:, ::-1, ::-1, ::-1], atol=1e-12)
    assert (found.reshape(observer.CHANNELS, -1).argmax(axis=1) == 9**3 // 2).all()


def test_the_area_is_the_share_of_pairs_that_are_rated_rightly() -> None:
    rng = np.random.Generator(np.random.Philox(1))
    present, absent = rng.integers(0, 6, 17).astype(float), rng.integers(0, 5, 11).astype(float)
    pairs = [(p > a) + 0.5 * (p == a) for p in present for a in absent]
    assert observer.auc(present, absent) == pytest.approx(np.mean(pairs))
    assert observer.auc(absent, present) == pytest.approx(1 - np.mean(pairs))


def draws(shift: float, num: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Outputs of correlated channels with a lesion that is ``shift`` standard deviations away for the best observer."""
    rng = np.random.Generator(np.random.Philox(7))
    mixing = np.eye(channels) + 0.5
    signal = np.zeros(channels)
    signal[0] = shift
    present, absent = (rng.normal(size=(num, channels)) + one for one in (signal, 0))
    return present @ mixing, absent @ mixing, [f"case-{n % 5}" for n in range(num)]


def test_the_detectability_of_a_known_difference_is_found() -> None:
    present, absent, groups = draws(1.5, 600)
    found = observer.detectability(*observer.ratings(present, absent, groups), groups)
    assert found.d_prime == pytest.approx(1.5, abs=0.2)
    assert found.interval[0] < found.auc < found.interval[1]
    assert 0 < found.false_at_80 < 0.5


def test_where_there_is_no_difference_none_is_found_for_the_judged_are_not_among_those_trained_on() -> None:
    present, absent, groups = draws(0.0, 20, channels=6)
    assert observer.auc(*observer.ratings(present, absent, groups)) < 0.7
    alone = [str(n) for n in range(20)]
    assert observer.auc(*observer.ratings(present, absent, alone)) < 0.7


def test_the_best_linear_observer_does_not_depend_on_how_channels_are_mixed_or_shifted() -> None:
    present, absent, groups = draws(1.0, 60)
    rng = np.random.Generator(np.random.Philox(3))
    other = rng.normal(size=(3, 3))
    plain = observer.ratings(present, absent, groups)
    mixed = observer.ratings(present @ other + 5, absent @ other + 5, groups)
    np.testing.assert_allclose(plain[0], mixed[0], atol=1e-3)
    np.testing.assert_allclose(plain[1], mixed[1], atol=1e-3)


def test_two_methods_are_compared_on_the_same_places() -> None:
    present, absent, groups = draws(2.0, 100)
    ours = observer.ratings(present, absent, groups)
    rng = np.random.Generator(np.random.Philox(4))
    worse = (ours[0] + rng.normal(size=100) * 2, ours[1] + rng.normal(size=100) * 2)
    gain, (low, high) = observer.difference(ours, worse, groups)
    assert 0 < low < gain < high
    assert observer.difference(ours, ours, groups) == (0, (0, 0))
    few = [group if group == "case-0" else "case-1" for group in groups]
    assert np.isnan(observer.difference(ours, worse, few)[1]).all()
    assert np.isnan(observer.detectability(*ours, few).interval).all()
