"""Sums of frames are what one long frame would have given: weights, choices, pairs, and what is refused."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.errors import InputError
from storage.frames import (
    FrameImage,
    FrameSum,
    Timing,
    Wanted,
    choice_of,
    images_of,
    pair_name,
    told_durations,
)
from storage.source import SUV, ArraySource, Dose, Grid

F18_S = 6586.2
RATE = math.log(2) / F18_S
GRID = Grid((4, 3, 2), np.diag([2.0, 2.0, 2.0, 1.0]))


def timing(
    starts: list[float], durations: list[float], half_life_s: float | None = F18_S, *, gated: bool = False
) -> Timing:
    return Timing(np.array(starts)[:, None], np.array(durations)[:, None], half_life_s, gated)


def counts(start_s: float, duration_s: float) -> float:
    """Events of a source of 1 Bq at time 0, during a frame."""
    return (math.exp(-RATE * start_s) - math.exp(-RATE * (start_s + duration_s))) / RATE


def shares(wanted: Wanted, when: Timing) -> NDArray[np.float64]:
    return images_of(wanted, when, "scan")[0].shares[:, 0]


def code(wanted: Wanted, when: Timing) -> str:
    with pytest.raises(InputError) as error:
        images_of(wanted, when, "scan")
    assert "\n" not in str(error.value)
    return error.value.code


def test_weights_are_the_counts_of_a_decaying_source() -> None:
    starts, durations = [0.0, 60.0, 400.0, 4000.0], [60.0, 300.0, 600.0, 1800.0]  # gaps of 40 and 3000 s
    expected = np.array([counts(a, b) for a, b in zip(starts, durations, strict=True)])
    got = shares(Wanted("all"), timing(starts, durations))
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-12)
    later = [s + 1e4 for s in starts]  # where the clock starts does not matter
    np.testing.assert_allclose(shares(Wanted("all"), timing(later, durations)), got, rtol=1e-9)


@pytest.mark.parametrize("half_life_s", [75.45, F18_S, 82110000.0])
def test_one_share_each_adds_up_to_one(half_life_s: float) -> None:
    got = shares(Wanted("2-4"), timing([0, 10, 20, 30, 40], [10, 10, 10, 10, 10], half_life_s))
    assert got.sum() == pytest.approx(1)
    assert (np.diff(got) < 0).all()  # equal durations: a later frame counts less


def test_without_a_half_life_the_durations_are_the_weights() -> None:
    (image,) = images_of(Wanted("all"), timing([0, 60, 180], [60, 120, 300], None), "scan")
    np.testing.assert_allclose(image.shares[:, 0], np.array([60, 120, 300]) / 480)
    assert image.facts["weights"] == "durations, because no half-life is known"


def test_gates_count_alike_unless_their_durations_say_otherwise() -> None:
    unknown = [math.nan] * 4
    equal = timing([0.0] * 4, unknown, gated=True)
    np.testing.assert_allclose(shares(Wanted("all"), equal), [0.25] * 4)
    told = timing([0.0] * 3, [100.0, 100.0, 200.0], gated=True)
    np.testing.assert_allclose(shares(Wanted("all"), told), [0.25, 0.25, 0.5])
    low = images_of(Wanted(pairs=("3",)), told, "scan")[1]
    assert low.dose == Dose(1.0, "frames", False)
    assert low.notes == ("motion_differs_between_gates",)


def test_facts_hold_no_time_of_day() -> None:
    (image,) = images_of(Wanted("2,3"), timing([36000.0, 36060.0, 36300.0], [60, 240, 300]), "scan")
    assert image.facts["starts_s"] == [60.0, 300.0]
    assert image.facts["durations_s"] == [240.0, 300.0]
    assert (image.facts["of"], image.facts["used"]) == (3, [2, 3])


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_a_pair_is_disjoint_and_its_dose_is_the_ratio_of_counts() -> None:
    starts, durations = [0.0, 60.0, 360.0, 960.0], [60.0, 300.0, 600.0, 900.0]
    full, low, late = images_of(Wanted(pairs=("1", "3")), timing(starts, durations), "scan")
    assert (full.used, low.used, late.used) == ((1, 3), (0,), (2,))
    assert (full.name, low.name, late.name) == ("", "low_frame1", "low_frame3")
    whole = counts(60, 300) + counts(960, 900)
    assert full.dose is None
    for image, own in ((low, counts(0, 60)), (late, counts(360, 600))):
        assert image.dose is not None
        assert image.dose.drf == pytest.approx(whole / own, rel=1e-5)
        assert (image.dose.relation, image.dose.shares_noise) == ("frames", False)
        assert "uptake_may_differ_between_frames" in image.notes


def test_frames_left_out_are_in_neither() -> None:
    full, low = images_of(Wanted("2-5", ("3",)), timing([0, 1, 2, 3, 4, 5], [1.0] * 6), "scan")
    assert (full.used, low.used) == ((1, 3, 4), (2,))


@pytest.mark.parametrize(
    "wanted",
    [Wanted(pairs=("1", "1-2")), Wanted(pairs=("all",)), Wanted(pairs=("1-3",)), Wanted("1-2", ("3",))],
)
def test_a_pair_that_is_none(wanted: Wanted) -> None:
    assert code(wanted, timing([0, 1, 2], [1.0] * 3)) == "FRM_PAIR"


def test_noise_of_a_sum_falls_as_the_weights_say() -> None:
    """Frames with the variance of their counts: that of the sum is the one of all counts together."""
    rng = np.random.Generator(np.random.Philox(5))
    starts, durations = [0.0, 200.0, 1200.0, 5000.0], [200.0, 1000.0, 300.0, 1500.0]
    weights = np.array([counts(a, b) for a, b in zip(starts, durations, strict=True)])
    grid = Grid((40, 60, 60), np.eye(4))
    frames = [(2.0 + rng.standard_normal(grid.shape) / np.sqrt(w)).astype(np.float32) for w in weights]
    full, low = images_of(Wanted(pairs=("2",)), timing(starts, durations), "scan")

    def summed(image: FrameImage) -> NDArray[np.float32]:
        parts = tuple(ArraySource(frames[n], grid, SUV) for n in image.used)
        return FrameSum(parts, tuple(image.shares[:, 0]), {}).read(0, 40)

    assert summed(full).var() == pytest.approx(1 / weights[[0, 2, 3]].sum(), rel=0.02)
    assert low.dose is not None
    assert summed(low).var() / summed(full).var() == pytest.approx(low.dose.drf, rel=0.03)
    assert abs(np.corrcoef(summed(low).ravel(), summed(full).ravel())[0, 1]) < 0.01


# -- choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", (2,)), ("3-5", (2, 3, 4)), ("1,3-4", (0, 2, 3)), ("5, 1", (0, 4)), ("all", (0, 1, 2, 3, 4))],
)
def test_spelling(text: str, expected: tuple[int, ...]) -> None:
    (image,) = images_of(Wanted(text), timing([0, 1, 2, 3, 4], [1.0] * 5), "scan")
    assert image.used == expected


@pytest.mark.parametrize("text", ["0", "-1", "3-2", "a", "1,,2", "1.5", "1-", "1,1", "2,1-3", "٣"])
def test_no_choice(text: str) -> None:
    assert code(Wanted(text), timing([0, 1, 2], [1.0] * 3)) == "FRM_CHOICE"


def test_a_frame_that_is_not_there_says_how_many_are() -> None:
    with pytest.raises(InputError, match="FRM_RANGE --frames: frame 4 of a series of 3; choose among 1 to 3"):
        images_of(Wanted("2-4"), timing([0, 1, 2], [1.0] * 3), "scan")
    assert code(Wanted(pairs=("7",)), timing([0, 1, 2], [1.0] * 3)) == "FRM_RANGE"


def test_overlapping_frames_are_refused_with_a_choice_that_works() -> None:
    when = timing([0, 100, 150, 400], [100, 200, 200, 100])
    for wanted in (Wanted("all"), Wanted(pairs=("3",))):
        with pytest.raises(InputError, match="FRM_OVERLAP") as error:
            images_of(wanted, when, "scan")
        choice = error.value.remedy.split()[-1]
        assert images_of(Wanted(choice, wanted.pairs), when, "scan")
    assert images_of(Wanted("2"), when, "scan")  # one frame shares counts with nobody


def test_times_written_to_the_second_do_not_overlap() -> None:
    assert images_of(Wanted("all"), timing([0, 100, 199], [100.4, 100.0, 100.0]), "scan")


@pytest.mark.parametrize(("starts", "durations"), [([0, 1, 2], [math.nan] * 3), ([math.nan] * 3, [1.0] * 3)])
def test_a_sum_needs_times_and_one_frame_none(starts: list[float], durations: list[float]) -> None:
    assert code(Wanted("1-2"), timing(starts, durations)) == "FRM_TIMES"
    assert code(Wanted(pairs=("1",)), timing(starts, durations)) == "FRM_TIMES"
    assert shares(Wanted("2"), timing(starts, durations)) == pytest.approx([1.0])


def test_names_and_descriptions() -> None:
    assert [pair_name(t) for t in ("2", "3-6", "1,3-5")] == ["low_frame2", "low_frames3-6", "low_frames1_3-5"]
    assert choice_of([0, 1, 2, 4, 6, 7]) == "1-3,5,7-8"
    assert told_durations(6, [30.0] * 4 + [300.0] * 2) == "6 frames of 4 x 30, 2 x 300 s"
    assert told_durations(8, [12.0] * 8, gated=True) == "8 gates of 12 s each"
    assert told_durations(2, [None, 3.0]) == "2 frames of unknown duration"


def test_a_sum_reads_slabs_as_the_whole() -> None:
    rng = np.random.Generator(np.random.Philox(6))
    frames = [rng.random(GRID.shape, dtype=np.float32) for _ in range(3)]
    made = FrameSum(tuple(ArraySource(f, GRID, SUV) for f in frames), (0.2, 0.3, 0.5), {})
    whole = made.read(0, 4)
    np.testing.assert_allclose(whole, 0.2 * frames[0] + 0.3 * frames[1] + 0.5 * frames[2], rtol=1e-6)
    assert np.array_equal(made.read(1, 3), whole[1:3])
    assert whole.flags.c_contiguous
    assert (made.grid, made.units) == (GRID, SUV)
