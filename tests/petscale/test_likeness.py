"""What is measured in scans, and when a scan is said to be unlike those trained on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from petscale import likeness
from petscale.likeness import (
    BEFOREHAND,
    MEASURES,
    Bounds,
    Likeness,
    Measured,
    differences,
    distances,
    from_json,
    learn,
    measure,
    summarised,
)
from petscale.plausibility import TrainedOn, check_scan, unlike
from storage.errors import InputError
from storage.ingest import CasePlan, ingest
from storage.reader import Cohort, open_cohort
from storage.source import HU, SUV, ArraySource, Grid

SPACING_MM = (6.0, 5.0, 5.0)
SHAPE = (25, 32, 37)
Voxels = NDArray[np.float32]


def patient(
    seed: int,
    *,
    noise: float = 0.1,
    hot: float = 6.0,
    hot_at: int = 12,
    slices: tuple[int, int] = (0, 25),
    radius: float = 10.0,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
) -> ArraySource:
    """A warm column with a hot place, whose size, uptake and noise differ a little from patient to patient."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    wide = radius * rng.normal(1, 0.05)
    inside = ((y - 16) / wide) ** 2 + ((x - 18) / wide) ** 2 < 1
    voxels = 0.9 * inside * rng.normal(1, 0.05)
    voxels[(z - hot_at) ** 2 + (y - 14) ** 2 + (x - 15) ** 2 < 16] = hot * rng.normal(1, 0.1)
    voxels = voxels * (1 + noise * rng.normal(1, 0.05) * rng.normal(size=SHAPE))
    voxels[: slices[0]], voxels[slices[1] :] = 0, 0
    return ArraySource(voxels.astype(np.float32), Grid(SHAPE, np.diag([*spacing_mm[::-1], 1.0])), SUV)


def ct(seed: int, *, lung: float = 5.0) -> ArraySource:
    """A body of water and fat with a lung and a bone."""
    rng = np.random.default_rng(seed)
    _, y, x = np.indices(SHAPE)
    away = np.hypot(y - 16, x - 18)
    hu = np.select([away < lung, away < 7, away < 8, away < 10], [-700.0, 40.0, 400.0, -90.0], -1000.0)
    hu = hu + rng.normal(0, 8, SHAPE)
    return ArraySource(hu.astype(np.float32), Grid(SHAPE, np.diag([*SPACING_MM[::-1], 1.0])), HU)


NOTHING = {"low": 0.0, "high": 0.0, "least": 0.0, "most": 0.0}
TRAINED = [measure(patient(seed)) for seed in range(8)]
KNOWN = summarised([TRAINED], len(TRAINED))
WRONG: Mapping[str, tuple[Mapping[str, object], str]] = {
    "noise": ({"noise": 0.4}, "noise in parts of the uptake"),
    "tracer": ({"hot": 40.0}, "uptake of the body's hottest hundredth"),
    "places": ({"hot_at": 2}, "hottest hundredth from the body's middle along it"),
    "anatomy": ({"slices": (9, 17)}, "length of the body"),
    "size": ({"radius": 4.5}, "mean cross-section"),
}


def test_a_scan_of_the_same_kind_is_silent_and_so_is_every_training_scan() -> None:
    for one in TRAINED:
        assert differences(KNOWN, one) == []
    for seed in range(100, 106):
        assert differences(KNOWN, measure(patient(seed))) == []


@pytest.mark.parametrize("kind", list(WRONG))
def test_each_wrong_kind_gives_its_note_with_value_and_range(kind: str) -> None:
    changed, word = WRONG[kind]
    found = measure(patient(200, **changed))  # type: ignore[arg-type]
    told = [sentence for sentence in differences(KNOWN, found) if word in sentence]
    assert len(told) == 1
    name = next(name for name, of in MEASURES.items() if word in of.words)
    low, high = (f"{value:.3g}" for value in (KNOWN.bounds[name].low, KNOWN.bounds[name].high))
    assert f"{found.numbers[name]:.3g}" in told[0]
    assert f"trained on {low if low == high else f'{low} to {high}'}" in told[0]


def test_the_farthest_number_is_told_first() -> None:
    found = measure(patient(200, noise=0.4, radius=4.5))
    by = distances(KNOWN, found)
    farthest = max(by, key=lambda name: by[name])
    assert differences(KNOWN, found)[0].startswith(MEASURES[farthest].words)
    assert len(differences(KNOWN, found)) == sum(distance > 1 for distance in by.values())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_number_depends_on_which_way_round_a_volume_is_stored(axis: int) -> None:
    for source in (patient(3, slices=(0, 20)), ct(3)):
        turned = replace(source, voxels=np.ascontiguousarray(np.flip(source.voxels, axis)))
        here, there = measure(source), measure(turned)
        assert here.numbers.keys() == there.numbers.keys()
        for name, value in here.numbers.items():
            assert there.numbers[name] == pytest.approx(value, rel=1e-4), name
        if here.classes is not None:
            assert there.classes is not None
            np.testing.assert_allclose(there.classes, here.classes, atol=2e-3)


def test_the_order_of_cases_changes_nothing(tmp_path: Path) -> None:
    cohort = stored(tmp_path, {f"p{seed}": patient(seed) for seed in range(3)})
    assert learn(cohort, ["p0", "p1", "p2"], ["pet"]) == learn(cohort, ["p2", "p0", "p1"], ["pet"])
    turned = summarised([TRAINED[::-1]], len(TRAINED))
    assert turned.bounds.keys() == KNOWN.bounds.keys()
    for name, bounds in KNOWN.bounds.items():
        assert vars(turned.bounds[name]) == pytest.approx(vars(bounds)), name


def test_of_many_scans_some_are_measured_whatever_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = stored(tmp_path, {f"p{seed}": patient(seed) for seed in range(5)})
    monkeypatch.setattr(likeness, "MOST_SCANS", 5)
    known = learn(cohort, [f"p{seed}" for seed in (4, 0, 3, 1, 2)], ["pet", "another"])
    assert known == learn(cohort, ["p0", "p2"], ["pet"])


def test_bounds_hold_the_range_and_are_wider_the_fewer_cases_there_are() -> None:
    widths = []
    for count in (1, 2, 4, 8):
        known = summarised([TRAINED[:count]], count)
        for bounds in known.bounds.values():
            assert bounds.least <= bounds.low <= bounds.high <= bounds.most
        noise = known.bounds["noise"]
        widths.append(np.log(noise.most / noise.least))
    assert widths == sorted(widths, reverse=True)


def test_the_bounds_of_one_patient_are_those_known_beforehand() -> None:
    # Nine measures share 0.01, half on either side: t of 2 degrees of freedom at 0.99944, between those of tables at
    # 0.999 and 0.9995.
    one = summarised([TRAINED[:1]], 1).bounds["noise"]
    assert one.low == one.high == TRAINED[0].numbers["noise"]
    reach = np.log(one.most / one.low) / (MEASURES["noise"].spread * np.sqrt(2))
    assert BEFOREHAND == 2
    assert 22.327 < reach < 31.599


def test_numbers_are_shown_as_people_write_them() -> None:
    known = Likeness(2, {"length": Bounds(1000.0, 1000.0, 900.0, 1100.0)}, (), SPACING_MM, SPACING_MM)
    found = Measured({"length": 2043.7}, None, SPACING_MM)
    assert differences(known, found) == ["length of the body in the scan 2044 mm, trained on 1000 mm"]


def test_doses_between_two_trained_ones_are_like_them() -> None:
    kinds = [[measure(patient(seed, noise=noise)) for seed in range(3)] for noise in (0.05, 0.4)]
    both = summarised(kinds, 3)
    between = measure(patient(50, noise=0.15))
    assert "noise" not in {name for name, far in distances(both, between).items() if far > 1}
    assert distances(KNOWN, measure(patient(50, noise=0.4)))["noise"] > 1


def test_a_ct_has_tissues_and_no_uptake() -> None:
    known = summarised([[measure(ct(seed)) for seed in range(6)]], 6)
    assert set(known.bounds) == {"noise_hu", "lung", "fat", "bone", "length", "section"}
    assert known.classes == ()
    assert differences(known, measure(ct(9))) == []
    assert any("as thin as lung" in told for told in differences(known, measure(ct(9, lung=0.0))))


def test_json_keeps_what_is_told() -> None:
    known = replace(KNOWN, tracers=frozenset({"FDG"}), nuclides=frozenset({"F-18"}))
    again = from_json(json.loads(json.dumps(known.to_json())))
    assert (again.tracers, again.nuclides, again.cases) == (known.tracers, known.nuclides, known.cases)
    assert (again.lowest_mm, again.highest_mm) == (SPACING_MM, SPACING_MM)
    found = measure(patient(200, noise=0.4))
    assert differences(again, found) == differences(known, found)
    for one in TRAINED:
        assert differences(again, one) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"bounds": []},
        {"bounds": {"noise": {"low": 1}}},
        {"bounds": {"noise": NOTHING}},
        {"classes": [[0.5]]},
        {"lowest_mm": [1, 2]},
        {"cases": None},
    ],
)
def test_what_is_no_likeness_is_not_taken_for_one(damage: Mapping[str, object]) -> None:
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        from_json({**KNOWN.to_json(), **damage})


def stored(folder: Path, scans: Mapping[str, ArraySource]) -> Cohort:
    def plan(name: str, source: ArraySource) -> Callable[[Path], CasePlan]:
        return lambda _: CasePlan({"pet": source}, name, name)

    plans = {name: plan(name, source) for name, source in scans.items()}
    ingest(folder, plans, strict=True, workers=1)
    return open_cohort(folder)


def test_a_scan_is_compared_with_the_range_of_voxels_and_what_training_scans_state(tmp_path: Path) -> None:
    at = {"a": SPACING_MM, "b": (9.0, 5.0, 5.0), "new": (9.5, 5.0, 5.0), "far": (14.0, 5.0, 5.0)}
    scans = {name: patient(number, spacing_mm=mm) for number, (name, mm) in enumerate(at.items())}
    scans["a"] = replace(scans["a"], provenance={"tracer": "FDG", "nuclide": "F-18"})
    scans["new"] = replace(scans["new"], provenance={"tracer": "PSMA", "nuclide": "F-18"})
    cohort = stored(tmp_path, scans)
    known = learn(cohort, ["a", "b"], ["pet", "another"])
    assert (known.cases, known.lowest_mm, known.highest_mm) == (2, SPACING_MM, (9.0, 5.0, 5.0))
    assert (known.tracers, known.nuclides) == ({"FDG"}, {"F-18"})
    run = TrainedOn(SUV, (7.5, 5.0, 5.0), tracers=known.tracers, nuclides=known.nuclides, like=known)
    for name in ("a", "b"):
        assert check_scan(run, cohort.case(name), "pet") == ()
    told = check_scan(run, cohort.case("new"), "pet")
    assert told[0] == "tracer PSMA, the run was trained on FDG"
    assert told[1:] == unlike(run, cohort.case("new"), "pet")
    with pytest.raises(InputError, match=r"IMG_VOXEL_SIZE .* trained at 6 x 5 x 5 to 9 x 5 x 5 mm: more than 50%"):
        check_scan(run, cohort.case("far"), "pet")
    assert unlike(TrainedOn(SUV), cohort.case("far"), "pet") == ()


def test_measured_scans_without_uptake_or_of_few_voxels_are_no_error() -> None:
    grid = Grid((1, 2, 3), np.diag([5.0, 5.0, 5.0, 1.0]))
    for level in (0.0, -1.0, 1.0):
        found = measure(ArraySource(np.full((1, 2, 3), level, np.float32), grid, SUV))
        assert isinstance(found, Measured)
        assert all(np.isfinite(value) for value in found.numbers.values())
        assert isinstance(summarised([[found]], 1), Likeness)
