"""Recovery coefficients: 1 in a perfect image, 0 where nothing is seen, and what theory and pynemaiqpet say between."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.special import erf

from storage.errors import InputError
from storage.nema import NemaPhantom, nema_phantom
from storage.source import ArraySource
from trainers.metrics.recovery import Recovery, recoveries

PHANTOM = nema_phantom(2.0, contrast=4.0)
FWHM_MM = 6.0


def perfect() -> ArraySource:
    """Every voxel whose centre lies in a sphere is wholly hot, every other wholly warm."""
    activity = PHANTOM.activity
    z, y, x = np.ogrid[tuple(slice(n) for n in activity.grid.shape)]
    voxels = np.ones(activity.grid.shape, dtype=np.float32)
    for sphere in PHANTOM.spheres:
        away = [axis * 2.0 - centre for axis, centre in zip((z, y, x), sphere.centre_mm, strict=True)]
        voxels[sum(mm**2 for mm in away) <= (sphere.diameter_mm / 2) ** 2] = 4.0
    return replace(activity, voxels=voxels)


def blurred(phantom: NemaPhantom, spacing_mm: float) -> ArraySource:
    sigma = FWHM_MM / np.sqrt(8 * np.log(2)) / spacing_mm
    return replace(phantom.activity, voxels=ndimage.gaussian_filter(phantom.activity.voxels, sigma))


def measured(image: ArraySource, phantom: NemaPhantom = PHANTOM) -> list[Recovery]:
    return recoveries(
        image, phantom.spheres, background_suv=phantom.background_suv, background_mm=phantom.background_mm
    )


def test_a_perfect_image_recovers_everything() -> None:
    for found, sphere in zip(measured(perfect()), PHANTOM.spheres, strict=True):
        assert found.diameter_mm == sphere.diameter_mm
        # The slice nearest to the centres may lie half a voxel off them: only 10 mm across does it matter.
        assert found.contrast == pytest.approx(1, abs=0.04 if sphere.diameter_mm == 10 else 0.03)
        assert found.mean_a50 == pytest.approx(1, abs=1e-6)
        assert found.maximum == pytest.approx(1, abs=1e-6)
        assert found.variability == pytest.approx(0, abs=1e-6)


def test_an_image_without_spheres_recovers_no_contrast() -> None:
    flat = replace(PHANTOM.activity, voxels=np.ones(PHANTOM.activity.grid.shape, dtype=np.float32))
    for found in measured(flat):
        assert found.contrast == pytest.approx(0, abs=1e-6)
        assert found.maximum == pytest.approx(0.25)


def test_scaling_an_image_leaves_contrast_and_variability_and_scales_the_rest() -> None:
    image = blurred(PHANTOM, 2.0)
    double = replace(image, voxels=2 * image.voxels)
    for one, two in zip(measured(image), measured(double), strict=True):
        assert two.contrast == pytest.approx(one.contrast, rel=1e-6)
        assert (two.mean_a50, two.maximum) == pytest.approx((2 * one.mean_a50, 2 * one.maximum), rel=1e-6)


def test_blur_takes_more_from_smaller_spheres_as_theory_says() -> None:
    """At the centre of a sphere of radius R blurred by s: erf(Z) - 2 Z exp(-Z^2) / sqrt(pi), Z = R / (sqrt(2) s)."""
    fine = nema_phantom(1.0)  # the centre of a sphere lies half a voxel from a voxel's at most
    found = measured(blurred(fine, 1.0), fine)
    for one in found:
        z = one.diameter_mm / 2 / (np.sqrt(2) * FWHM_MM / np.sqrt(8 * np.log(2)))
        centre = erf(z) - 2 * z * np.exp(-(z**2)) / np.sqrt(np.pi)
        assert one.maximum == pytest.approx((1 + 3 * centre) / 4, abs=0.012)
    for name in ("contrast", "mean_a50", "maximum"):
        values = [getattr(one, name) for one in found]
        assert values == sorted(values, reverse=True)


def test_variability_is_that_of_the_means_of_regions() -> None:
    rng = np.random.default_rng(1)
    noise = 0.2 * rng.normal(size=PHANTOM.activity.grid.shape)
    noisy = replace(PHANTOM.activity, voxels=(perfect().voxels + noise).astype(np.float32))
    for one in measured(noisy):
        voxels = np.pi * (one.diameter_mm / 2) ** 2 / 4
        assert one.variability == pytest.approx(0.2 / np.sqrt(voxels), rel=0.3)


def test_slices_beyond_the_image_are_refused() -> None:
    short = nema_phantom(2.0, length_mm=50)
    voxels = short.activity.voxels[:20]
    cut = replace(short.activity, voxels=voxels, grid=replace(short.activity.grid, shape=voxels.shape))
    with pytest.raises(InputError) as error:
        measured(cut, short)
    assert error.value.code == "IMG_TOO_SMALL"


def test_the_coefficients_are_those_of_pynemaiqpet() -> None:
    """Its own sub-volume, background and search; only where somebody has installed it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs_of = pytest.importorskip("pynemaiqpet.nema_wb").fitspheresubvolume

    fine = nema_phantom(2.0, contrast=4.0)
    image = blurred(fine, 2.0)
    for one, sphere in zip(measured(image, fine), fine.spheres, strict=True):
        z, y, x = (round(mm / 2.0) for mm in sphere.centre_mm)
        reach = int(np.ceil((sphere.diameter_mm / 2 + 9) / 2.0))
        cut = image.voxels[z - reach : z + reach + 1, y - reach : y + reach + 1, x - reach : x + reach + 1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = theirs_of(
                cut.astype(np.float64).T, np.full(3, 2.0), Rfix=sphere.diameter_mm / 2, dfix=0.0, Sfix=4.0, Bfix=1.0
            )
        assert one.mean_a50 == pytest.approx(theirs.mean_a50 / 4.0, rel=0.01)
        assert one.maximum == pytest.approx(theirs.max / 4.0, rel=1e-6)
        assert theirs.values["FWHM"] == pytest.approx(FWHM_MM, rel=0.05)
