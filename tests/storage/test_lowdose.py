"""The simulated scan: an exact adjoint, the right physics, honest noise, and the same image in any slab."""

import itertools
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from storage.errors import InputError
from storage.lowdose import (
    CERTIFIED_SPACING_MM,
    REFERENCE_RADIUS_MM,
    SCANNERS,
    LowDoseConfig,
    LowDoseSource,
    mu_per_mm,
    osem,
    projector,
    scanner_of,
    sensitivity,
)
from storage.phantom import ADULT, PhantomConfig, phantom
from storage.source import BQML, HU, SUV, ArraySource, Grid

RNG_SEED = 20


def disc(
    shape: tuple[int, int],
    spacing: tuple[float, float],
    radius: float,
    centre: tuple[float, float] = (0.0, 0.0),
    oversample: int = 8,
) -> NDArray[Any]:
    """A disc with exact partial volume at its rim."""
    y, x = (
        ((np.arange(n * oversample) + 0.5) / oversample - n / 2) * d - c
        for n, d, c in zip(shape, spacing, centre, strict=True)
    )
    inside = (y[:, None] ** 2 + x[None, :] ** 2) <= radius**2
    return inside.reshape(shape[0], oversample, shape[1], oversample).mean(axis=(1, 3)).astype(np.float32)


def array_source(voxels: NDArray[Any], spacing_mm: tuple[float, float, float], units: Any = SUV) -> ArraySource:
    dz, dy, dx = spacing_mm
    return ArraySource(voxels.astype(np.float32), Grid(voxels.shape, np.diag([-dx, -dy, dz, 1.0])), units)


def cylinder(
    slices: int = 24, size: int = 40, spacing: float = 4.0, radius: float = 60.0, suv: float = 1.0
) -> ArraySource:
    plane = suv * disc((size, size), (spacing, spacing), radius)
    return array_source(np.repeat(plane[None], slices, axis=0), (spacing,) * 3)


PATIENT = phantom(PhantomConfig(shape=(40, 48, 48), spacing_mm=(8.0, 8.0, 8.0), seed=3))


def scan(**changes: Any) -> LowDoseSource:
    return LowDoseSource(PATIENT.activity, PATIENT.ct, replace(LowDoseConfig(), **changes))


# --- the projector ---


@pytest.mark.parametrize(("shape", "spacing"), [((24, 37), (4.0, 4.0)), ((31, 20), (2.0, 3.0))])
def test_back_is_the_adjoint_of_forward(shape: tuple[int, int], spacing: tuple[float, float]) -> None:
    system = projector(shape, spacing, num_angles=12, subsets=3)
    rng = np.random.default_rng(RNG_SEED)
    x = rng.normal(size=(shape[0] * shape[1], 5)).astype(np.float32)
    for s in range(3):
        forward = system.forward(x, s)
        y = rng.normal(size=forward.shape).astype(np.float32)
        left = np.vdot(forward.astype(np.float64), y.astype(np.float64))
        right = np.vdot(x.astype(np.float64), system.back(y, s).astype(np.float64))
        assert abs(left - right) < 1e-6 * float(np.linalg.norm(forward) * np.linalg.norm(y))


@pytest.mark.parametrize("spacing", [(1.5, 1.5), (1.5, 2.0)])
@pytest.mark.parametrize("centre", [(0.0, 0.0), (11.0, -17.0)])
def test_a_disc_casts_its_chords(spacing: tuple[float, float], centre: tuple[float, float]) -> None:
    shape, radius, angles = (80, 80), 30.0, 8
    system = projector(shape, spacing, num_angles=angles, subsets=1)
    lines = system.line_integrals(disc(shape, spacing, radius, centre).reshape(-1, 1), 0)
    for k in range(angles):
        angle = k * np.pi / angles
        offset = centre[1] * np.cos(angle) + centre[0] * np.sin(angle)
        s = (np.arange(system.num_bins) - (system.num_bins - 1) / 2) * system.bin_mm - offset
        chord = 2 * np.sqrt(np.maximum(radius**2 - s**2, 0))
        well_inside = abs(s) < 0.85 * radius
        np.testing.assert_allclose(lines[well_inside, k], chord[well_inside], rtol=0.02)
        assert not lines[abs(s) > radius + 2 * system.bin_mm, k].any()


def test_every_angle_sees_every_pixel_in_full() -> None:
    system = projector((30, 22), (3.0, 4.0), num_angles=20, subsets=4)
    for s in range(4):
        lines = system.line_integrals(np.eye(660, dtype=np.float32), s).reshape(system.num_bins, 5, 660)
        np.testing.assert_allclose(lines.sum(axis=0) * system.bin_mm, 12.0, rtol=1e-4)


def test_blurring_the_sinogram_is_blurring_the_image() -> None:
    shape, spacing, fwhm = (64, 64), (1.5, 1.5), 6.0
    image = disc(shape, spacing, 15.0, (5.0, -8.0))
    blurred = ndimage.gaussian_filter(image, fwhm / 2.3548 / 1.5)
    system = projector(shape, spacing, 12, 1, psf_fwhm_mm=fwhm)
    direct = system.line_integrals(blurred.reshape(-1, 1), 0)
    np.testing.assert_allclose(system.forward(image.reshape(-1, 1), 0), direct, atol=0.015 * direct.max())


def test_geometries_are_built_once_also_by_two_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: projector((19, 23), (4.0, 4.0), 12, 3), range(8)))
    assert all(system is built[0] for system in built)


# --- attenuation and counts ---


def test_mu_of_air_water_and_bone() -> None:
    hu = np.array([-2000, -1000, -500, 0, 46.99, 47.01, 1000], dtype=np.float32)
    mu = mu_per_mm(hu)
    assert mu.dtype == np.float32
    np.testing.assert_allclose(mu[[0, 1, 2, 3, 6]], [0, 0, 0.0048, 0.0096, 0.01491], rtol=1e-4)
    assert mu[4] == pytest.approx(mu[5], rel=1e-3)
    assert (np.diff(mu_per_mm(np.linspace(-1000, 3000, 500, dtype=np.float32))) >= 0).all()


def test_the_reference_patient_gives_the_prompts_that_were_asked_for() -> None:
    config = LowDoseConfig(million_prompts_per_bed=100.0)
    shape, spacing = (64, 64), (4.0, 4.0)
    patient = disc(shape, spacing, REFERENCE_RADIUS_MM).reshape(-1, 1)
    system = projector(shape, spacing, 24, 1, psf_fwhm_mm=0)
    trues = system.forward(patient, 0) * np.exp(-0.0096 * system.line_integrals(patient, 0))
    prompts = trues.sum() * system.bin_mm / 24 * 200.0 * sensitivity(config) * (1 + 0.35 + 0.5)
    assert prompts == pytest.approx(100e6, rel=0.01)


def test_the_matrix_around_the_patient_changes_nothing() -> None:
    voxels = cylinder(slices=8, size=48).voxels
    wide = np.pad(voxels, ((0, 0), (16, 16), (16, 16)))
    config = LowDoseConfig(drf=20)
    narrow_image = LowDoseSource(array_source(voxels, (4.0,) * 3), None, config).read(0, 8)
    wide_image = LowDoseSource(array_source(wide, (4.0,) * 3), None, config).read(0, 8)
    np.testing.assert_array_equal(wide_image[:, 16:-16, 16:-16], narrow_image)


# --- reconstruction ---


def noiseless(iterations: int, subsets: int = 4) -> float:
    """Relative error of the reconstruction of noiseless data, and the system it was made with."""
    shape, spacing = (32, 40), (4.0, 4.0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    truth = np.exp(-(((y - 15) / 8) ** 2) - ((x - 18) / 10) ** 2) + 2 * np.exp(
        -(((y - 18) / 3) ** 2) - ((x - 24) / 3) ** 2
    )
    truth = truth.astype(np.float32).reshape(-1, 1)
    system = projector(shape, spacing, 48, subsets, psf_fwhm_mm=5.0)
    forward = np.stack([system.forward(truth, s) for s in range(subsets)])
    gain = np.full_like(forward, 0.3)
    background = np.full_like(forward, 1.0)
    image = osem(system, gain * forward + background, gain, background, iterations)
    return float(np.linalg.norm(image - truth) / np.linalg.norm(truth))


def test_osem_of_noiseless_data_converges_to_the_truth() -> None:
    errors = [noiseless(n) for n in (1, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


def test_mlem_conserves_counts() -> None:
    shape = (24, 24)
    system = projector(shape, (4.0, 4.0), 24, 1)
    truth = disc(shape, (4.0, 4.0), 30.0).reshape(-1, 1)
    gain = np.random.default_rng(1).uniform(0.2, 1.0, (1, *system.forward(truth, 0).shape)).astype(np.float32)
    prompts = np.random.default_rng(2).poisson(gain * system.forward(truth, 0)[None]).astype(np.float32)
    prompts[:, gain[0, :, 0] == 0] = 0
    for iterations in (1, 2, 5):
        image = osem(system, prompts, gain, np.zeros_like(gain), iterations)
        assert (gain[0] * system.forward(image, 0)).sum() == pytest.approx(prompts.sum(), rel=1e-4)


@pytest.mark.parametrize("mode", ["thinning", "activity"])
@pytest.mark.parametrize("drf", [1, 5, 20])
def test_mean_suv_is_unbiased(drf: int, mode: str) -> None:
    body = PATIENT.labels.read(0, 40) > 0
    image = scan(drf=drf, mode=mode).read(0, 40)
    assert (image >= 0).all()
    assert image[body].mean() == pytest.approx(PATIENT.activity.read(0, 40)[body].mean(), rel=0.02)


def test_without_a_ct_the_body_is_water() -> None:
    body = PATIENT.labels.read(0, 40) > 0
    image = LowDoseSource(PATIENT.activity, None, LowDoseConfig()).read(0, 40)
    assert image[body].mean() == pytest.approx(PATIENT.activity.read(0, 40)[body].mean(), rel=0.02)


# --- noise ---


def noise(**changes: Any) -> NDArray[Any]:
    """Images of a cylinder minus their mean over z: (z, y, x) in its middle, where every slice is the same."""
    config = replace(LowDoseConfig(million_prompts_per_bed=2000.0), **changes)
    image = LowDoseSource(cylinder(slices=40), None, config).read(0, 40)[:, 12:28, 12:28]
    return image - image.mean(axis=0)


def test_variance_is_inverse_to_counts() -> None:
    few, many = noise(drf=16).var(), noise(drf=4).var()
    assert few / many == pytest.approx(4.0, rel=0.15)
    double = noise(drf=16, million_prompts_per_bed=4000.0).var()
    assert few / double == pytest.approx(2.0, rel=0.15)


def test_less_activity_loses_fewer_prompts_to_randoms_than_a_shorter_scan() -> None:
    # Total uptake of a slice by MLEM: at a fixed number of OSEM updates the background also slows convergence.
    config = LowDoseConfig(drf=8, randoms_fraction=20.0, subsets=1, num_angles=48, iterations=20)
    totals = [
        LowDoseSource(cylinder(slices=96), None, replace(config, mode=mode)).read(0, 96).sum(axis=(1, 2))
        for mode in ("activity", "thinning")
    ]
    # Variance goes as prompts over trues squared; the cylinder's lines hold about 4 randoms per true at drf 1.
    assert totals[1].var() / totals[0].var() == pytest.approx((1.35 + 4) / (1.35 + 4 / 8), rel=0.6)
    assert totals[1].var() > 1.5 * totals[0].var()


def test_thinning_keeps_a_part_of_the_same_prompts() -> None:
    def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
        return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    full, other = noise(drf=1), noise(drf=1, realisation=1)
    assert correlation(full, noise(drf=4)) == pytest.approx(0.5, abs=0.08)  # 1 / sqrt(4)
    assert abs(correlation(full, other)) < 0.08
    assert abs(correlation(other, noise(drf=4))) < 0.08
    assert abs(correlation(full, noise(drf=4, mode="activity"))) < 0.08


def test_slices_have_noise_of_their_own() -> None:
    image = noise(drf=4, post_filter_fwhm_mm=0.0)
    assert abs(np.corrcoef(image[10].ravel(), image[11].ravel())[0, 1]) < 0.25


# --- a source like any other ---


def test_the_same_numbers_give_the_same_bytes_and_others_do_not() -> None:
    first = scan().read(8, 24)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    assert first.shape == (16, 48, 48)
    assert scan().read(8, 24).tobytes() == first.tobytes()
    for changed in ({"seed": 1}, {"realisation": 1}, {"drf": 5.0}, {"mode": "activity"}):
        assert (scan(**changed).read(8, 24) != first).any()


@pytest.mark.parametrize("mode", ["thinning", "activity"])
def test_the_partition_into_slabs_does_not_matter(mode: str) -> None:
    source = scan(drf=10, mode=mode)
    whole = source.read(0, 40)
    for cuts in ((0, 7, 8, 40), (0, 20, 40)):
        parts = [source.read(a, b) for a, b in itertools.pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_threads_do_not_matter() -> None:
    slabs = [(0, 16), (16, 32), (32, 40)]
    with ThreadPoolExecutor(3) as pool:
        source = scan()
        together = list(pool.map(lambda slab: source.read(*slab), slabs))
    np.testing.assert_array_equal(np.concatenate(together), scan().read(0, 40))


def test_a_source_travels_to_another_process_with_its_box() -> None:
    source = scan()
    box = source.body_box()
    there = pickle.loads(pickle.dumps(source))
    assert there._box == [box]
    np.testing.assert_array_equal(there.read(8, 16), source.read(8, 16))


def test_the_matrix_of_a_whole_field_of_view_keeps_to_its_memory() -> None:
    grid = Grid((8, 440, 440), np.diag([-1.65, -1.65, 1.65, 1.0]))
    source = LowDoseSource(ArraySource(np.zeros((8, 8, 8), np.float32), grid, SUV), None, LowDoseConfig())
    assert source._num_angles((440, 440)) * 440 * 440 * 2.4 * 8 < 750e6
    assert source._num_angles((160, 256)) == 144


def test_empty_slices_stay_empty() -> None:
    voxels = cylinder(slices=24).voxels.copy()
    voxels[12:] = 0
    image = LowDoseSource(array_source(voxels, (4.0,) * 3), None, LowDoseConfig()).read(0, 24)
    assert np.isfinite(image).all()
    assert image[:8].max() > 0.5
    assert image[20:].max() < 1e-3


def test_provenance_tells_every_number() -> None:
    source = scan(drf=7.5)
    told = json.loads(json.dumps(source.provenance))
    assert told["config"]["drf"] == 7.5
    assert set(told["config"]) == set(LowDoseConfig.__dataclass_fields__)
    assert told["truth"]["kind"] == "phantom"
    assert source.units == SUV
    assert source.grid is PATIENT.activity.grid


# --- scanners ---


def test_the_scan_without_a_scanner_is_what_it_always_was() -> None:
    """Cohorts of earlier versions hold these numbers; the voxels are those of commit f1b1a37."""
    assert asdict(LowDoseConfig()) == {
        "drf": 4.0, "mode": "thinning", "seed": 0, "realisation": 0, "draw": 0, "million_prompts_per_bed": 370.0,
        "iterations": 3, "subsets": 12, "num_angles": None, "psf_fwhm_mm": 5.0, "post_filter_fwhm_mm": 4.0,
        "scatter_fraction": 0.35, "randoms_fraction": 0.5,
    }  # fmt: skip
    row = scan().read(8, 16)[4, 20, 20:26]
    np.testing.assert_allclose(row, [0.6851495, 0.7106194, 0.79574317, 0.6251519, 0.6013899, 0.52384377], rtol=1e-4)
    assert scanner_of(LowDoseConfig()) is None
    assert "scanner" not in scan().provenance


@pytest.mark.parametrize("name", SCANNERS)
def test_a_scanner_is_known_by_its_numbers(name: str) -> None:
    preset = SCANNERS[name]
    assert scanner_of(replace(preset, drf=20.0, mode="activity", seed=7, realisation=1, draw=2)) == name
    for changed in ({"iterations": 9}, {"psf_fwhm_mm": 6.5}, {"million_prompts_per_bed": 1.0}, {"scatter_fraction": 1}):
        assert scanner_of(replace(preset, **changed)) is None
    told = json.loads(json.dumps(LowDoseSource(PATIENT.activity, PATIENT.ct, replace(preset, drf=4)).provenance))
    assert told["scanner"] == name
    assert ADULT.spacing_mm == (CERTIFIED_SPACING_MM,) * 3


def test_no_two_scanners_are_alike() -> None:
    assert len({replace(preset, seed=0) for preset in SCANNERS.values()}) == len(SCANNERS)


# --- mistakes ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("drf", 0.5),
        ("mode", "other"),
        ("seed", -1),
        ("realisation", -1),
        ("million_prompts_per_bed", 0.0),
        ("iterations", 0),
        ("subsets", 0),
        ("num_angles", -12),
        ("draw", -1),
        ("drf", 10_001.0),
        ("num_angles", 50),
        ("psf_fwhm_mm", -1.0),
        ("post_filter_fwhm_mm", float("nan")),
        ("scatter_fraction", -0.1),
        ("randoms_fraction", -0.1),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field) as error:
        LowDoseConfig(**{field: value})
    assert error.value.code == "CFG_RANGE"


def test_images_that_do_not_belong_together_are_refused() -> None:
    truth = cylinder()
    shape = truth.grid.shape
    cases = {
        "PAIR_UNITS": (replace(truth, units=BQML), None),
        "PAIR_GRID": (truth, array_source(np.zeros((8, 8, 8)), (4.0,) * 3, HU)),
    }
    for code, (activity, ct) in cases.items():
        with pytest.raises(InputError) as error:
            LowDoseSource(activity, ct, LowDoseConfig())
        assert error.value.code == code
    with pytest.raises(InputError) as error:
        LowDoseSource(array_source(np.zeros(shape), (4.0,) * 3), None, LowDoseConfig()).read(0, 4)
    assert error.value.code == "IMG_EMPTY"
