"""The dose is a fact of an image: written, read back, told by provenance in old cohorts, never by the image's name."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import layout
from storage.ingest import CasePlan, ingest
from storage.lowdose import LowDoseConfig, LowDoseSource
from storage.phantom import PhantomConfig, phantom
from storage.reader import StoredImage, open_cohort
from storage.source import HU, SUV, ArraySource, Dose, Grid, simulated_dose

SHAPE = (20, 12, 12)
GRID = Grid(SHAPE, np.diag([-8.0, -8.0, 8.0, 1.0]))
factors = st.one_of(st.just(math.nan), st.floats(1e-3, 1e4))
doses = st.builds(
    Dose,
    drf=factors,
    relation=st.sampled_from(["full", "thinned", "separate", "simulated"]),
    shares_noise=st.sampled_from([True, False, None]),
)


def noise(seed: int = 0, units: str = SUV) -> ArraySource:
    scale = 1000.0 if units == HU else 1.0
    voxels = np.random.default_rng(seed).random(SHAPE, dtype=np.float32) * np.float32(scale)
    return ArraySource(voxels - np.float32(scale / 2 if units == HU else 0), GRID, units)


def planned(plan: CasePlan) -> Callable[[Path], CasePlan]:
    return lambda scratch: plan


def same(found: Dose | None, wanted: Dose | None) -> bool:
    """Equal, where an unknown factor equals another."""
    if found is None or wanted is None or not math.isnan(wanted.drf):
        return found == wanted
    return math.isnan(found.drf) and (found.relation, found.shares_noise) == (wanted.relation, wanted.shares_noise)


@given(st.none() | doses)
def test_an_attribute_is_strict_json_and_comes_back(dose: Dose | None) -> None:
    facts = json.loads(json.dumps({"dose": layout.dose_attribute(dose)}, allow_nan=False))
    assert same(layout.read_dose(facts), dose)


def test_doses_come_back_from_a_cohort(tmp_path: Path) -> None:
    wanted: dict[str, Dose | None] = {
        "full": Dose(1.0, "full", None),
        "short": Dose(7.5, "thinned", True),
        "other": Dose(math.nan, "separate", None),
        "simulated": Dose(20.0, "simulated", False),
        "truth": None,
    }
    images = {name: noise(seed) for seed, name in enumerate(wanted)}
    plan = CasePlan({**images, "more": noise(9), "ct": noise(8, HU)}, "s", "f", doses=wanted)
    ingest(tmp_path, {"p": planned(plan)}, strict=True)
    case = open_cohort(tmp_path).case("p")
    assert all(same(case.image(name).dose, dose) for name, dose in wanted.items())
    assert case.image("more").dose is None
    assert case.image("ct").dose is None
    assert case.image("body").dose is None


@pytest.mark.parametrize(
    ("drf", "mode", "realisation", "wanted"),
    [
        (1.0, "thinning", 0, Dose(1.0, "full", None)),
        (1.0, "activity", 0, Dose(1.0, "full", None)),
        (20.0, "thinning", 0, Dose(20.0, "simulated", True)),
        (20.0, "thinning", 1, Dose(20.0, "simulated", None)),
        (2.5, "activity", 0, Dose(2.5, "simulated", False)),
    ],
)
def test_old_cohorts_tell_the_dose_of_a_simulation_by_its_provenance(
    tmp_path: Path, drf: float, mode: str, realisation: int, wanted: Dose
) -> None:
    config = LowDoseConfig(drf=drf, mode=mode, realisation=realisation)  # type: ignore[arg-type]
    provenance = json.loads(json.dumps(LowDoseSource(noise(), None, config).provenance))
    source = ArraySource(noise().voxels, GRID, SUV, provenance)
    plan = CasePlan({"any_name": source, "low_drf4": noise(1)}, "s", "f")
    ingest(tmp_path, {"p": planned(plan)}, strict=True)
    folder = tmp_path / "cases" / "p"
    for name in ("any_name", "low_drf4"):
        content = json.loads((folder / name / "zarr.json").read_bytes())
        del content["attributes"]["petscale"]["dose"]  # as cohorts were before there was a dose
        (folder / name / "zarr.json").write_text(json.dumps(content))
    assert StoredImage("p", "any_name", folder / "any_name").dose == wanted
    assert StoredImage("p", "low_drf4", folder / "low_drf4").dose is None, "no name is parsed"


@given(
    st.dictionaries(
        st.sampled_from(["kind", "config", "resampled"]), st.sampled_from([None, "phantom", {}, {"drf": 4.0}])
    )
)
def test_other_provenance_tells_no_dose(provenance: dict[str, object]) -> None:
    assert simulated_dose(provenance) is None


@pytest.mark.parametrize("names", [*itertools.permutations(["a", "full", "low_drf4"])])
def test_the_best_pet_is_that_of_the_highest_dose_whatever_it_is_called(
    tmp_path: Path, names: tuple[str, str, str]
) -> None:
    best, middle, worst = names
    images = {name: noise(seed) for seed, name in enumerate(sorted(names))}
    told = {best: Dose(2.0, "simulated", True), middle: Dose(9.0, "separate", False)}
    told[worst] = Dose(math.nan, "separate", None)
    ingest(tmp_path, {"p": planned(CasePlan(images, "s", "f", doses=told))}, strict=True)
    uptake = open_cohort(tmp_path).case("p").sampling_maps.uptake
    assert uptake[0, 0, 0] == pytest.approx(images[best].voxels[:8, :8, :8].mean(), rel=1e-5)


def test_a_pet_without_a_dose_counts_as_full_dose_and_names_break_ties(tmp_path: Path) -> None:
    images = {name: noise(seed) for seed, name in enumerate(("b", "c", "a"))}
    plan = CasePlan(images, "s", "f", doses={"a": Dose(4.0, "simulated", True), "c": Dose(1.0, "full", None)})
    ingest(tmp_path, {"p": planned(plan)}, strict=True)
    uptake = open_cohort(tmp_path).case("p").sampling_maps.uptake
    assert uptake[0, 0, 0] == pytest.approx(images["b"].voxels[:8, :8, :8].mean(), rel=1e-5)


def test_a_simulation_that_is_not_named_is_ordered_by_its_own_factor(tmp_path: Path) -> None:
    body = phantom(PhantomConfig(shape=(16, 16, 16), spacing_mm=(50.0, 25.0, 25.0)))
    scan = LowDoseConfig(iterations=1, subsets=2, num_angles=8)
    low, full = (LowDoseSource(body.activity, None, replace(scan, drf=drf)) for drf in (50.0, 1.0))
    ingest(tmp_path, {"p": planned(CasePlan({"a": low, "z": full}, "s", "f"))}, strict=True)
    case = open_cohort(tmp_path).case("p")
    assert case.image("a").dose == Dose(50.0, "simulated", True)
    assert case.image("z").dose == Dose(1.0, "full", None)
    means = full.read(0, 16)[:8, :8, :8].mean()
    assert case.sampling_maps.uptake[0, 0, 0] == pytest.approx(means, rel=1e-4, abs=1e-6)
