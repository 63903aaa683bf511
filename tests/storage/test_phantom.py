"""The phantom: one patient per seed, the same in any slab, with organs, densities and lesions where they should be."""

import itertools
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from storage.errors import InputError
from storage.phantom import CYST, LABEL_NAMES, NEMA_DIAMETERS_MM, Lesion, PhantomConfig, facts_of, phantom

LABELS = {name: number for number, name in LABEL_NAMES.items()}
SMALL = PhantomConfig(shape=(48, 48, 48), spacing_mm=(8.0, 8.0, 8.0))


def volumes(config: PhantomConfig) -> list[Any]:
    p = phantom(config)
    return [image.read(0, config.shape[0]) for image in (p.activity, p.ct, p.labels)]


def centroid_ras(config: PhantomConfig, labels: NDArray[Any], name: str) -> NDArray[Any]:
    index = np.argwhere(labels == LABELS[name]).mean(axis=0)[::-1]
    return (phantom(config).activity.grid.affine @ [*index, 1])[:3]


def test_one_seed_is_one_patient_and_two_seeds_are_two() -> None:
    for first, again, other in zip(volumes(SMALL), volumes(SMALL), volumes(replace(SMALL, seed=1)), strict=True):
        assert first.tobytes() == again.tobytes()
        assert (first != other).any()


@pytest.mark.parametrize("arms", ["none", "up", "down"])
def test_a_slab_is_a_cut_of_the_volume(arms: Any) -> None:
    config = replace(SMALL, shape=(40, 48, 64), arms=arms, seed=4)
    p = phantom(config)
    for image in (p.activity, p.ct, p.labels):
        whole = image.read(0, 40)
        assert whole.dtype == np.float32
        assert whole.flags.c_contiguous
        for cuts in ((0, 1, 3, 40), (0, 17, 23, 24, 40)):
            parts = [image.read(a, b) for a, b in itertools.pairwise(cuts)]
            assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("shape", "spacing"), [((48, 48, 48), (8, 8, 8)), ((32, 32, 32), (8, 8, 8)), ((128, 96, 96), (4, 4, 4))]
)
def test_every_organ_is_there(shape: tuple[int, int, int], spacing: tuple[int, int, int], seed: int) -> None:
    config = PhantomConfig(shape=shape, spacing_mm=spacing, seed=seed)
    labels = phantom(config).labels.read(0, shape[0])
    assert set(np.unique(labels)) == {0, *LABEL_NAMES}


@pytest.mark.parametrize("seed", range(4))
def test_labels_agree_with_activity_and_ct(seed: int) -> None:
    config = PhantomConfig(shape=(160, 96, 96), spacing_mm=(6, 4, 4), seed=seed)
    activity, ct, labels = volumes(config)

    def suv(name: str) -> Any:
        return activity[labels == LABELS[name]].mean()

    def hu(name: str) -> Any:
        return np.median(ct[labels == LABELS[name]])

    assert -820 < hu("lungs") < -700
    assert hu("spine") > 150
    assert all(-20 < hu(name) < 120 for name in ("liver", "heart", "kidneys", "brain", "bladder", "spleen"))
    assert suv("bladder") > suv("brain") > suv("kidneys") > suv("liver") > suv("body") > suv("lungs") > 0.2
    assert 1.7 < suv("liver") < 2.7
    assert 4 < suv("brain") < 10
    assert 0.7 < activity[labels > 0].mean() < 1.5
    assert activity.min() >= 0
    air = labels == 0
    assert np.median(ct[air]) < -990
    assert np.median(activity[air]) == 0
    assert ct[air].max() < 0  # at least half of a voxel outside the body is air


def test_the_patient_lies_as_the_affine_says() -> None:
    _, _, labels = volumes(SMALL)
    at = {name: centroid_ras(SMALL, labels, name) for name in LABELS}
    assert at["liver"][0] > at["spleen"][0]  # RAS+: x grows to the patient's right
    assert at["heart"][1] > at["spine"][1]
    assert at["brain"][2] > at["heart"][2] > at["liver"][2] > at["bladder"][2]


def test_tissue_is_not_plastic_and_edges_are_soft() -> None:
    activity, _, labels = volumes(PhantomConfig(shape=(128, 96, 96), spacing_mm=(8, 4, 4)))
    liver = activity[labels == LABELS["liver"]]
    assert 0.04 < liver.std() / liver.mean() < 0.3
    skin = activity[(activity > 0) & (labels == 0)]
    assert skin.size > 1000


@pytest.mark.parametrize("seed", range(3))
def test_lesions_are_spheres_of_known_size_and_uptake(seed: int) -> None:
    config = PhantomConfig(shape=(240, 120, 120), spacing_mm=(3, 3, 3), seed=seed, num_lesions=8)
    p = phantom(config)
    activity, labels = p.activity.read(0, 240), p.labels.read(0, 240)
    assert len(p.lesions) == 8
    volume_ml = sum(np.pi / 6 * lesion.diameter_mm**3 / 1000 for lesion in p.lesions)
    assert (labels == LABELS["lesion"]).sum() * p.labels.grid.voxel_ml == pytest.approx(volume_ml, rel=0.04)
    for lesion in p.lesions:
        assert lesion.diameter_mm in NEMA_DIAMETERS_MM
        assert 2 <= lesion.contrast <= 8.001
        z, y, x = (round(c / d) for c, d in zip(lesion.centre_mm, config.spacing_mm, strict=True))
        assert activity[z, y, x] == pytest.approx(lesion.suv, rel=1e-5)
        assert labels[z, y, x] == LABELS["lesion"]


LIVER_ONLY = PhantomConfig(
    shape=(96, 64, 64),
    spacing_mm=(5.0, 5.0, 5.0),
    num_lesions=5,
    lesion_organs=("liver",),
    lesion_hu=(0.0, 40.0),
    num_cysts=3,
    liver_suv=(1.8, 2.2),
)


def voxel_of(config: PhantomConfig, sphere: Lesion) -> tuple[int, ...]:
    return tuple(round(c / d) for c, d in zip(sphere.centre_mm, config.spacing_mm, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_a_liver_holds_lesions_and_cysts_that_a_ct_shows(seed: int) -> None:
    config = replace(LIVER_ONLY, seed=seed)
    p = phantom(config)
    activity, ct, labels = volumes(config)
    assert sum(10 <= lesion.diameter_mm <= 28 for lesion in p.lesions) >= 3
    assert len(p.cysts) >= 2
    assert {sphere.organ for sphere in (*p.lesions, *p.cysts)} == {"liver"}
    assert len({lesion.hu for lesion in p.lesions}) == len(p.lesions), "each has a density of its own"
    assert all(0 <= lesion.hu <= 40 for lesion in p.lesions)
    assert all(0 <= cyst.hu <= 20 for cyst in p.cysts)
    assert all(1.8 <= lesion.suv / lesion.contrast <= 2.2 for lesion in p.lesions), "the liver around them"
    for sphere, label in [*((s, LABELS["lesion"]) for s in p.lesions), *((s, CYST) for s in p.cysts)]:
        at = voxel_of(config, sphere)
        assert labels[at] == label
        if sphere.diameter_mm > 2 * 5 * 3**0.5:  # else its middle voxel need not lie wholly within
            assert ct[at] == pytest.approx(sphere.hu, abs=1e-3)
            assert activity[at] == pytest.approx(sphere.suv, rel=1e-5)
    cold, hot = activity[labels == CYST].mean(), activity[labels == LABELS["lesion"]].mean()
    assert 2 * cold < activity[labels == LABELS["liver"]].mean() < hot / 2


@pytest.mark.parametrize("seed", range(3))
def test_cysts_and_lesions_lie_apart(seed: int) -> None:
    p = phantom(replace(LIVER_ONLY, seed=seed))
    for a, b in itertools.combinations((*p.lesions, *p.cysts), 2):
        gap = np.linalg.norm(np.subtract(a.centre_mm, b.centre_mm)) - (a.diameter_mm + b.diameter_mm) / 2
        assert gap > 10


@pytest.mark.parametrize("organ", ["lungs", "spine", "body"])
def test_lesions_lie_where_they_are_told(organ: str) -> None:
    p = phantom(replace(SMALL, lesion_organs=(organ,)))
    assert {lesion.organ for lesion in p.lesions} == {organ}


def test_what_came_later_leaves_a_seed_the_patient_it_was() -> None:
    """Cysts and densities draw on their own: without them the same patient, with them the same lesions and texture."""
    plain = replace(SMALL, seed=5)
    spelled = replace(plain, lesion_organs=(), lesion_hu=(45.0, 45.0), num_cysts=0, cyst_hu=(0.0, 20.0), liver_suv=None)
    named = replace(plain, lesion_organs=("body", "spine", "lungs", "liver"))
    for other in (spelled, named):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(volumes(plain), volumes(other), strict=True))
    assert phantom(plain).cysts == ()
    assert {lesion.hu for lesion in phantom(plain).lesions} == {45.0}

    richer = replace(plain, lesion_hu=(0.0, 40.0), num_cysts=3)
    (activity, ct, labels), (before, ct_before, labels_before) = volumes(richer), volumes(plain)
    near_cysts, near_spheres = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    for spheres, near in ((phantom(richer).cysts, near_cysts), (phantom(richer).lesions, near_spheres)):
        for sphere in spheres:
            reach = int(sphere.diameter_mm / 2 / 8) + 2
            near[tuple(slice(c - reach, c + reach + 1) for c in voxel_of(richer, sphere))] = True
    assert (activity == before)[~near_cysts].all()
    assert (labels == labels_before)[~near_cysts].all()
    assert (ct == ct_before)[~near_cysts & ~near_spheres].all()
    assert [replace(x, hu=0.0) for x in phantom(richer).lesions] == [replace(x, hu=0.0) for x in phantom(plain).lesions]


def test_detail_is_fine_texture_of_the_uptake_alone() -> None:
    plain = PhantomConfig(shape=(32, 128, 136), spacing_mm=(3.0, 3.0, 3.0), seed=5, axial_coverage=(0.4, 0.5))
    (activity, ct, labels), (before, ct_before, labels_before) = volumes(replace(plain, detail=0.2)), volumes(plain)
    assert (ct == ct_before).all()
    assert (labels == labels_before).all()
    assert (activity >= 0).all()
    body = (labels_before == 1) & (before > 0.2)
    ratio = activity[body] / before[body]
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert ratio.std() == pytest.approx(0.2, rel=0.15)
    smooth = ndimage.gaussian_filter(activity - before, 22 / 3)  # nothing is left of waves of 22 mm and less
    assert np.abs(smooth[body]).max() < 0.1 * np.abs(activity - before)[body].max()


def test_without_detail_a_phantom_is_recorded_as_by_earlier_versions() -> None:
    told = phantom(SMALL).activity.provenance["config"]
    assert isinstance(told, dict)
    assert "detail" not in told
    assert facts_of(replace(SMALL, detail=0.1))["detail"] == 0.1
    assert set(facts_of(replace(SMALL, detail=0.1))) == set(PhantomConfig.__dataclass_fields__)


def test_a_cyst_has_a_name_only_where_there_are_cysts() -> None:
    assert phantom(SMALL).label_names == LABEL_NAMES
    assert phantom(LIVER_ONLY).label_names == {**LABEL_NAMES, CYST: "cyst"}
    assert CYST not in LABEL_NAMES


def test_a_lesion_smaller_than_a_voxel_keeps_its_activity_and_its_label() -> None:
    config = replace(SMALL, num_lesions=10)
    p, without = phantom(config), phantom(replace(config, num_lesions=0))
    assert without.lesions == ()
    labels = p.labels.read(0, 48)
    for lesion in p.lesions:
        z, y, x = (round(c / 8) for c in lesion.centre_mm)
        assert (labels[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] == LABELS["lesion"]).any()


def test_coverage_cuts_the_body_and_long_scans_show_legs() -> None:
    head = PhantomConfig(shape=(40, 64, 64), spacing_mm=(5, 5, 5), axial_coverage=(0.8, 1.0))
    seen = set(np.unique(volumes(head)[2]))
    assert LABELS["brain"] in seen
    assert not {LABELS["liver"], LABELS["bladder"]} & seen
    long = PhantomConfig(shape=(200, 64, 64), spacing_mm=(9, 6, 6))
    labels = volumes(long)[2]
    assert (labels[5] > 0).any()
    assert np.argwhere(labels == LABELS["bladder"])[:, 0].mean() > 60


def test_memory_follows_the_slab_and_not_the_volume() -> None:
    config = PhantomConfig(shape=(644, 256, 256), spacing_mm=(1.65, 1.65, 1.65))
    tracemalloc.start()
    slab = phantom(config).activity.read(300, 364)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * slab.nbytes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", (4, 48, 48)),
        ("shape", (48, 48)),
        ("spacing_mm", (1.0, 1.0)),
        ("axial_coverage", (-0.1, 0.5)),
        ("liver_suv", (3.0, 2.0)),
        ("spacing_mm", (0.0, 1.0, 1.0)),
        ("seed", -1),
        ("num_lesions", 101),
        ("axial_coverage", (0.5, 0.5)),
        ("arms", "crossed"),
        ("lesion_organs", ("liver", "spleeen")),
        ("lesion_hu", (40.0, 0.0)),
        ("num_cysts", -1),
        ("cyst_hu", (0.0, 9000.0)),
        ("liver_suv", (0.0, 2.0)),
        ("detail", 0.3),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field) as error:
        replace(SMALL, **{field: value})
    assert error.value.code == "CFG_RANGE"
