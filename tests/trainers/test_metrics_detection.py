"""Detection: numbers worked by hand, the ways a rule can be gamed, and regions that meet their lesions."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from storage.errors import InputError
from storage.source import BQML, LABEL, SUV, ArraySource, Grid
from trainers.metrics import detection as d
from trainers.metrics import detection_statistics as pooled
from trainers.metrics import realism as r
from trainers.metrics.slabs import slabs
from trainers.metrics.statistics import clopper_pearson, poisson_interval

NAMES = {1: "liver", 2: "lesion", 3: "spleen"}
BARE = d.DetectionConfig(smallest_focus_ml=0.0)


def line(values: Any) -> Any:
    return np.array(values, np.float32).reshape(1, 1, -1)


def everywhere(
    shape: tuple[int, int, int], lesions: Any, spacing_mm: tuple[float, float, float] = (10.0, 10.0, 10.0)
) -> Any:
    """A search of a whole array for lesions given as lists of voxels."""
    box: Any = tuple(slice(0, n) for n in shape)
    grid = Grid(shape, np.diag([*spacing_mm[::-1], 1.0]))
    return d.Search(box, np.ones(shape, dtype=bool), tuple(np.array(v) for v in lesions), grid)


def on_line(u: Any, *lesions: Any, y: Any = None, config: Any = BARE) -> Any:
    u = line(u)
    where = everywhere(u.shape, [[(0, 0, x) for x in lesion] for lesion in lesions])
    return d.detect(np.full_like(u, 9) if y is None else line(y), u, where, config)


def scan(hot: int = 3, cold: int = 0, extra: int = 0) -> tuple[NDArray[Any], Any, Any]:
    """Cubes of 8 voxels in a row: lesions hot or cold in the image, foci that are no lesion; (real, image, search)."""
    total = hot + cold + extra
    real = np.ones((4, 4, 4 * total + 4), np.float32)
    synthesized, lesions = real.copy(), []
    for index in range(total):
        at = np.argwhere(np.ones((2, 2, 2))) + np.array([1, 1, 4 * index + 1])
        if index < hot + cold:
            lesions.append(at)
            real[tuple(at.T)] = 6.0
        if not hot <= index < hot + cold:
            synthesized[tuple(at.T)] = 4.0
    return real, synthesized, everywhere(real.shape, lesions)


def found(*, config: Any = BARE, u: Any = None, **what: Any) -> Any:
    real, synthesized, where = scan(**what)
    return d.detect(real, synthesized if u is None else u(real), where, config)


# ---- one scan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["overlap", "peak"])
def test_the_line_worked_by_hand(rule: Literal["overlap", "peak"]) -> None:
    got = on_line([1, 2.6, 3, 1, 1, 2.7, 1, 2.5], [1, 2], [7])
    assert got.at.found(rule) == (True, False)  # 2.5 is not above 2.5
    assert got.at.false(rule) == 1
    summary = pooled.summarise([got], replace(BARE, rule=rule), seed=0)
    assert (summary.tpr, summary.false_per_scan) == (0.5, 1.0)
    assert got.at.hot_ml == pytest.approx(3.0)
    assert summary.hot_over_lesions == pytest.approx(1.0)
    assert [lesion.synthesized_suvmax for lesion in got.lesions] == [3.0, 2.5]


def test_a_lesion_the_real_pet_does_not_show_is_left_out_and_a_hot_prediction_there_is_false() -> None:
    got = on_line([1, 3, 1, 3], [1], [3], y=[1, 4, 1, 2.5])
    assert [lesion.shown for lesion in got.lesions] == [True, False]
    assert got.at.overlap == got.at.peak == (True,)
    assert got.at.false_overlap == got.at.false_peak == 1
    assert pooled.summarise([got], BARE, seed=0).num_left_out == 1


def test_two_lesions_joined_by_one_focus() -> None:
    got = on_line([1, 3, 3, 4, 1], [1], [3])
    assert got.at.overlap == (True, True)
    assert got.at.peak == (False, True)  # one focus serves one lesion
    assert got.at.false_overlap == got.at.false_peak == 0


def test_two_foci_in_one_lesion_are_both_hits() -> None:
    got = on_line([3, 1, 3], [0, 1, 2])
    assert (got.at.overlap, got.at.peak, got.at.false_peak) == ((True,), (True,), 0)


def test_a_focus_that_peaks_beside_the_lesion_it_touches_is_no_hit_by_peak() -> None:
    got = on_line([1, 3, 4, 1], [1])
    assert (got.at.overlap, got.at.false_overlap) == ((True,), 0)
    assert (got.at.peak, got.at.false_peak) == ((False,), 1)


def test_a_plateau_counts_by_its_centroid() -> None:
    assert on_line([1, 4, 4, 4, 1], [2]).at.peak == (True,)
    assert on_line([1, 4, 4, 4, 1], [1]).at.peak == (False,)


def test_three_everywhere_games_overlap_and_not_peak() -> None:
    for lesions in ([[1]], [[1], [5]], [[1], [5], [7]]):
        got = on_line([3.0] * 9, *lesions)
        assert all(got.at.overlap)
        assert got.at.false_overlap == 0
        assert not any(got.at.peak)  # the centroid is voxel 4
        assert got.at.false_peak == 1
        assert pooled.summarise([got], BARE, seed=0).hot_over_lesions == pytest.approx(9 / len(lesions))


@pytest.mark.parametrize("rule", ["overlap", "peak"])
def test_a_copy_finds_all_and_a_cold_image_nothing(rule: Literal["overlap", "peak"]) -> None:
    copy, cold = found(u=lambda y: y), found(u=np.zeros_like)
    assert (copy.at.found(rule), copy.at.false(rule)) == ((True,) * 3, 0)
    assert (cold.at.found(rule), cold.at.false(rule)) == ((False,) * 3, 0)


def test_the_tolerance_is_in_mm_along_every_axis() -> None:
    u = np.ones((5, 5, 5), np.float32)
    u[4, 2, 2] = 4  # 2 slices of 2 mm away
    where = everywhere(u.shape, [[(2, 2, 2)]], spacing_mm=(2.0, 5.0, 5.0))
    real = np.full_like(u, 9)
    for tolerance, hit in ((3.9, False), (4.0, True), (5.0, True)):
        got = d.detect(real, u, where, replace(BARE, tolerance_mm=tolerance))
        assert got.at.overlap == got.at.peak == (hit,)
        assert got.at.false_overlap == got.at.false_peak == (not hit)
        assert got.lesions[0].synthesized_suvmax == 1
        assert got.lesions[0].reached_suvmax == (4 if hit else 1)
    outside = where.region.copy()
    outside[4] = False  # beyond R nothing is reached
    got = d.detect(real, u, replace(where, region=outside), replace(BARE, tolerance_mm=5.0))
    assert (got.at.overlap, got.at.false_overlap, got.at.hot_ml) == ((False,), 0, 0)


def test_the_nearest_lesion_is_served_where_tolerances_meet() -> None:
    got = on_line([1, 1, 3, 1, 1, 1], [0], [3], config=replace(BARE, tolerance_mm=20.0))
    assert got.at.overlap == (True, True)
    assert got.at.peak == (False, True)
    got = on_line([1, 1, 3, 1, 1, 1], [3], [0], config=replace(BARE, tolerance_mm=20.0))
    assert got.at.peak == (True, False)


def test_small_foci_are_noise_but_a_lesions_own_maximum_counts() -> None:
    got = on_line([1, 3, 1, 3, 3, 1], [1], config=replace(BARE, smallest_focus_ml=2.0))
    assert (got.at.overlap, got.at.false_overlap) == ((True,), 1)
    assert (got.at.peak, got.at.false_peak) == ((False,), 1)
    assert on_line([1, 3, 1, 3, 3, 1], [1], config=replace(BARE, smallest_focus_ml=2.1)).at.false_overlap == 0


def test_foci_are_connected_over_corners() -> None:
    u = np.zeros((2, 2, 2), np.float32)
    u[0, 0, 0] = u[1, 1, 1] = 3
    assert d.detect(u, u, everywhere(u.shape, []), BARE).at.false_overlap == 1


def test_a_threshold_no_float32_holds_treats_lesion_and_focus_alike() -> None:
    got = on_line([1, 2.6, 1], [1], config=replace(BARE, threshold_suv=2.6))
    assert got.at.overlap == got.at.peak == (False,)


# ---- many scans -----------------------------------------------------------------------------------------------------


def cohort() -> list[Any]:
    """8 scans, 26 lesions of which 24 are hot, and 2 foci that are none; one scan has no lesion."""
    made = [{"hot": 4}] * 5 + [{"hot": 4, "cold": 1}, {"hot": 0, "cold": 1, "extra": 1}, {"hot": 0, "extra": 1}]
    return [found(**scan) for scan in made]


@pytest.mark.parametrize("rule", ["overlap", "peak"])
def test_the_papers_figures(rule: Literal["overlap", "peak"]) -> None:
    config = replace(BARE, rule=rule)
    got = pooled.summarise(cohort(), config, seed=1)
    assert (got.num_scans, got.num_lesions, got.num_found, got.num_false) == (8, 26, 24, 2)
    assert got.tpr == pytest.approx(0.923077, abs=1e-6)
    assert got.false_per_scan == 0.25
    assert got.tpr_interval == pytest.approx((0.7487, 0.9905), abs=5e-5)
    assert got.false_interval == pytest.approx((0.0303, 0.9031), abs=5e-5)
    for interval, value in ((got.tpr_bootstrap, got.tpr), (got.false_bootstrap, got.false_per_scan)):
        assert interval[0] <= value <= interval[1]
        assert interval[0] < interval[1]
    assert got == pooled.summarise(cohort(), config, seed=1)
    assert json.loads(json.dumps(got.json()))["tpr"] == got.tpr
    json.dumps([scan.json() for scan in cohort()], allow_nan=False)


def test_intervals_at_their_ends() -> None:
    assert clopper_pearson(0, 8) == (0.0, pytest.approx(1 - 0.025 ** (1 / 8)))
    assert clopper_pearson(8, 8) == (pytest.approx(0.025 ** (1 / 8)), 1.0)
    assert poisson_interval(0, 4) == (0.0, pytest.approx(-math.log(0.025) / 4))


def test_scans_of_one_patient_are_resampled_together() -> None:
    founds = cohort()
    alone = pooled.summarise(founds, BARE, seed=0, patients=["a"] * 8)
    assert alone.num_patients == 1
    assert alone.tpr_bootstrap == (alone.tpr, alone.tpr)
    assert pooled.summarise(founds, BARE, seed=0, patients=list("abcdefgh")) == pooled.summarise(founds, BARE, seed=0)


def test_scans_without_lesions_have_no_sensitivity_and_count_for_false_positives() -> None:
    got = pooled.summarise([found(hot=0, extra=1), found(hot=0, extra=3)], BARE, seed=0)
    assert got.tpr is got.tpr_interval is got.tpr_bootstrap is got.hot_over_lesions is None
    assert got.false_per_scan == 2.0
    curve = pooled.froc([found(hot=0, extra=1)], BARE)
    assert {tpr for _, tpr in curve.tpr_at} == {0.0}


def noisy_scans() -> Iterator[Any]:
    for seed in range(3):
        rng = np.random.Generator(np.random.Philox(seed))
        real, _, where = scan(hot=5)
        u = real * rng.uniform(0.1, 1.2) + 3 * gaussian_filter(rng.normal(0, 1, real.shape), 0.7)
        yield d.detect(real, u.astype(np.float32), where, BARE)


@pytest.mark.parametrize("rule", ["overlap", "peak"])
def test_froc(rule: Literal["overlap", "peak"]) -> None:
    founds, config = list(noisy_scans()), replace(BARE, rule=rule)
    curve, summary = pooled.froc(founds, config), pooled.summarise(founds, config, seed=0)
    assert [p.threshold_suv for p in curve.points] == np.arange(0.5, 10.25, 0.25).tolist()
    assert curve.operating in curve.points
    assert curve.operating == pooled.FrocPoint(2.5, summary.tpr, summary.false_per_scan)  # type: ignore[arg-type]
    if rule == "overlap":
        tprs = [p.tpr for p in curve.points]
        assert tprs == sorted(tprs, reverse=True)
        assert 0 < summary.tpr < 1
    assert list(curve.envelope) == sorted(curve.envelope)
    assert [t for _, t in curve.envelope] == sorted({t for _, t in curve.envelope})
    for point in curve.points:  # nothing lies above the envelope
        assert point.tpr <= max(t for f, t in curve.envelope if f <= point.false_per_scan)
    assert [rate for rate, _ in curve.tpr_at] == [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    assert [t for _, t in curve.tpr_at] == sorted(t for _, t in curve.tpr_at)
    json.dumps(curve.json(), allow_nan=False)


def test_every_threshold_is_found_afresh() -> None:
    got = on_line([1, 3, 2, 4, 1], [1], [3], config=replace(BARE, froc_thresholds_suv=(1.5, 3.5)))
    assert [count.threshold_suv for count in got.counts] == [1.5, 2.5, 3.5]
    assert [count.overlap for count in got.counts] == [(True, True), (True, True), (False, True)]
    assert [count.peak for count in got.counts] == [(False, True), (True, True), (False, True)]  # one focus, then two
    assert got.at is got.counts[1]


def test_mcnemar_counts_the_lesions_only_one_system_finds() -> None:
    all_found, none_found = [found(hot=6)], [found(hot=6, u=np.zeros_like)]
    assert pooled.mcnemar(all_found, none_found, "overlap") == pooled.Discordance(6, 0, pytest.approx(2 / 2**6))  # type: ignore[arg-type]
    assert pooled.mcnemar(none_found, all_found, "peak") == pooled.Discordance(0, 6, pytest.approx(2 / 2**6))  # type: ignore[arg-type]
    assert pooled.mcnemar(all_found, all_found, "peak").p_value == 1.0
    with pytest.raises(ValueError, match="zip"):
        pooled.mcnemar(all_found, [found(hot=5)], "peak")


def test_bias_of_suvmax() -> None:
    got = pooled.suvmax_bias([found(hot=1), found(hot=1, u=lambda y: y + 2)])
    assert (got.num_lesions, got.mean) == (2, 0.0)  # 4 against 6, and 8 against 6
    assert got.sd == pytest.approx(math.sqrt(8))
    assert got.limits == pytest.approx((-1.96 * math.sqrt(8), 1.96 * math.sqrt(8)))
    assert pooled.suvmax_bias([found(hot=1)]) == pooled.Agreement(1, -2.0, None, None)
    assert pooled.suvmax_bias([found(hot=0, extra=1)]) is None


# ---- where to look --------------------------------------------------------------------------------------------------

GRID = Grid((12, 20, 24), np.diag([-4.0, -4.0, 3.0, 1.0]))


def labelled() -> tuple[ArraySource, ArraySource]:
    """Liver with a lesion in a hole, one at its surface, one far away, and one beside a spleen."""
    labels = np.zeros(GRID.shape, np.float32)
    labels[2:9, 4:14, 4:12] = 1
    labels[9:11, 15:18, 18:22] = 3
    labels[4:7, 7:10, 6:9] = 2  # in the liver
    labels[9, 14:16, 12:14] = 2  # a corner touches the liver
    labels[1, 1, 20] = 2  # nowhere
    body = np.zeros(GRID.shape, np.float32)
    body[0:11, 1:19, 1:23] = 1
    return ArraySource(labels, GRID, LABEL), ArraySource(body, GRID, LABEL)


def look(*organs: Any, names: Any = NAMES) -> Any:
    labels, body = labelled()
    return d.search(replace(BARE, organs=organs), labels=labels, label_names=names, body=body)


def test_a_region_is_the_organ_with_the_lesions_that_touch_it() -> None:
    where = look("liver")
    labels, _ = labelled()
    assert where.box == (slice(2, 10), slice(4, 16), slice(4, 14))
    assert [len(lesion) for lesion in where.lesions] == [27, 4]
    marks = labels.voxels[where.box]
    for lesion in where.lesions:
        assert (marks[tuple(lesion.T)] == 2).all()
    assert np.array_equal(where.region, (marks == 1) | (marks == 2))
    assert where.grid is labels.grid
    assert [len(lesion) for lesion in look("spleen").lesions] == []


def test_a_lesion_of_one_voxel_beyond_a_neighbour_is_another_regions() -> None:
    labels, body = labelled()
    labels.voxels[9, 14:16, 12:14] = 0
    labels.voxels[10, 14, 12] = 2  # a slice between
    where = d.search(replace(BARE, organs=("liver",)), labels=labels, label_names=NAMES, body=body)
    assert [len(lesion) for lesion in where.lesions] == [27]


def test_several_organs_are_searched_as_one() -> None:
    both, liver, spleen = look("liver", "spleen"), look("liver"), look("spleen")
    assert both.region.sum() == liver.region.sum() + spleen.region.sum()
    assert len(both.lesions) == len(liver.lesions)
    assert "liver and spleen" in d.DetectionConfig(organs=("liver", "spleen")).text()


def test_the_whole_body_is_searched_only_where_said() -> None:
    where = look()
    _, body = labelled()
    assert len(where.lesions) == 3
    assert np.array_equal(where.region, body.voxels[where.box] > 0)
    assert "whole body" in d.DetectionConfig().text()
    assert "liver" in d.DetectionConfig(organs=("liver",)).text()
    assert "whole body" not in d.DetectionConfig(organs=("liver",)).text()


def test_a_focus_outside_the_organ_is_ignored() -> None:
    where = look("liver")
    u = np.ones(GRID.shape, np.float32)
    u[4:7, 7:10, 6:9] = 4
    u[9:11, 16:18, 19:22] = 8  # spleen
    u[9, 5:9, 5:9] = 8  # in the box, not in the liver
    full = ArraySource(np.full(GRID.shape, 5, np.float32), GRID, SUV)
    got = d.detect(where.read(full), where.read(ArraySource(u, GRID, SUV)), where, d.DetectionConfig(organs=("liver",)))
    assert got.at.overlap == got.at.peak == (True, False)
    assert got.at.false_overlap == got.at.false_peak == 0
    assert got.at.hot_ml == pytest.approx(27 * GRID.voxel_ml)
    assert got.lesions[0].volume_ml == pytest.approx(27 * GRID.voxel_ml)


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, u = (np.random.Generator(np.random.Philox(k)).gamma(4, 0.5, look("liver").region.shape) for k in range(2))
    whole, sharpness = look("liver"), r.realism(real, u, look("liver"))
    for module in (d, r):
        monkeypatch.setattr(module, "slabs", lambda shape: slabs(shape, 1))
    thin = look("liver")
    assert thin.box == whole.box
    assert np.array_equal(thin.region, whole.region)
    assert all(np.array_equal(a, b) for a, b in zip(thin.lesions, whole.lesions, strict=True))
    again = r.realism(real, u, thin)
    assert again.gradient_energy_ratio == pytest.approx(sharpness.gradient_energy_ratio, rel=1e-12)


def test_a_scan_without_a_lesion_is_searched_too() -> None:
    labels, body = labelled()
    healthy = replace(labels, voxels=np.where(labels.voxels == 2, 0, labels.voxels))
    where = d.search(replace(BARE, organs=("liver",)), labels=healthy, label_names=NAMES, body=body)
    assert where.lesions == ()
    flat = np.full(where.region.shape, 3, np.float32)
    copy = d.detect(flat, flat, where, BARE)
    assert (copy.at.overlap, copy.at.false_overlap, copy.at.false_peak) == ((), 1, 1)


@pytest.mark.parametrize(
    ("organ", "names", "told"),
    [
        ("liver", {1: "liver"}, "no label 'lesion'"),
        ("kidney", NAMES, "no label 'kidney'"),
        ("kidney", {**NAMES, 7: "kidney"}, "no voxel of kidney"),
    ],
)
def test_missing_labels_are_refused(organ: str, names: Any, told: str) -> None:
    with pytest.raises(InputError, match=f"SET_NO_LABELS.*{told}.*petscale ingest --mask"):
        look(organ, names=names)


def test_a_case_without_labels_is_refused() -> None:
    _, body = labelled()
    with pytest.raises(InputError, match="SET_NO_LABELS"):
        d.search(BARE, labels=None, label_names={}, body=body)
    empty = replace(body, voxels=np.zeros(GRID.shape, np.float32))
    with pytest.raises(InputError, match="SET_NO_LABELS body"):
        d.search(BARE, labels=labelled()[0], label_names=NAMES, body=empty)


def test_an_image_of_another_unit_or_grid_or_with_a_hole_is_refused() -> None:
    where = look("liver")
    voxels = np.ones(GRID.shape, np.float32)
    with pytest.raises(InputError, match="IMG_GRID"):
        where.read(ArraySource(voxels, Grid(GRID.shape, np.diag([4.0, 4.0, 3.1, 1.0])), SUV))
    with pytest.raises(InputError, match="IMG_UNITS"):
        where.read(ArraySource(voxels, GRID, BQML))
    voxels[5, 8, 8] = np.nan
    with pytest.raises(InputError, match="IMG_NAN"):
        where.read(ArraySource(voxels, GRID, SUV))


# ---- realism --------------------------------------------------------------------------------------------------------


def test_a_copy_is_as_real_and_a_blurred_one_is_not() -> None:
    where = look("liver")
    real = np.random.Generator(np.random.Philox(2)).gamma(4, 0.5, where.region.shape).astype(np.float32)
    copy, double = r.realism(real, real, where), r.realism(real, 2 * real + 1, where)
    assert (copy.gradient_energy_ratio, copy.high_frequency_ratio) == (1.0, 1.0)
    assert double.gradient_energy_ratio == pytest.approx(4.0, rel=1e-4)
    assert double.high_frequency_ratio == pytest.approx(4.0, rel=1e-4)
    blurred = r.realism(real, gaussian_filter(real, 1.0), where)
    assert blurred.gradient_energy_ratio < 0.2
    assert blurred.high_frequency_ratio < 0.1
    flat = r.realism(np.ones_like(real), real, where)
    assert flat == r.Realism(None, None)


def test_what_lies_outside_the_region_does_not_enter() -> None:
    where = look("liver")
    rng = np.random.Generator(np.random.Philox(2))
    real, u = (rng.gamma(4, 0.5, where.region.shape).astype(np.float32) for _ in range(2))
    other = np.where(where.region, u, 50).astype(np.float32)
    assert r.realism(real, u, where) == r.realism(real, other, where)


def test_the_gradient_is_per_mm_and_known_on_a_ramp() -> None:
    where = everywhere((3, 4, 5), [], spacing_mm=(2.0, 3.0, 4.0))
    along = [np.broadcast_to(np.arange(n, dtype=np.float32).reshape(np.roll((n, 1, 1), axis)), (3, 4, 5))
             for axis, n in enumerate((3, 4, 5))]  # fmt: skip
    pairs = [2 * 20, 3 * 15, 4 * 12]
    energy = [n / step**2 for n, step in zip(pairs, where.grid.spacing_mm, strict=True)]
    for axis in (1, 2):
        ratio = r.realism(along[0], along[axis], where).gradient_energy_ratio
        assert ratio == pytest.approx(energy[axis] / energy[0])
