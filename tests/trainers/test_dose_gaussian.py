"""The Gaussian of every dose: chosen by the error it leaves, interpolated between doses, whole after a resume."""

import math

import pytest
import torch

from trainers import dose_gaussian
from trainers.dose_gaussian import FWHMS_MM, Errors, Widths, fitted, smoothed
from trainers.recipe import Batch

MM = torch.tensor([[4.0, 3.0, 2.0]])


def batch_of(source: torch.Tensor, target: torch.Tensor, drf: float) -> Batch:
    b = len(source)
    return Batch(
        source=source,
        target=target,
        masks=torch.zeros(b, 0, *target.shape[2:]),
        overview=torch.zeros(b, 1, 0, 0, 0),
        drf=torch.full((b,), drf),
        cases=b,
        places=("",) * b,
        spacing_mm=MM.expand(b, -1),
        peak=torch.ones(b),
    )


@pytest.mark.parametrize("halo", [0, 2, 6, 8])
def test_an_even_image_stays_even_and_loses_its_halo(halo: int) -> None:
    image = torch.full((2, 1, 8 + 2 * halo, 9 + 2 * halo, 10 + 2 * halo), 3.0)
    found = smoothed(image, MM.expand(2, -1), halo)
    assert found.shape == (2, len(FWHMS_MM), 8, 9, 10)
    torch.testing.assert_close(found, torch.full_like(found, 3.0))


def test_a_short_halo_repeats_the_outermost_voxels() -> None:
    image = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    repeated = torch.nn.functional.pad(image, (dose_gaussian.REACH,) * 6, mode="replicate")
    torch.testing.assert_close(smoothed(image, MM, 0), smoothed(repeated, MM, dose_gaussian.REACH))


def test_each_dose_has_the_width_that_its_target_was_made_with() -> None:
    errors = Errors()
    source = torch.rand(1, 1, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    for drf, width in ((4.0, 4.0), (20.0, 7.0), (math.nan, 5.0)):
        target = smoothed(source, MM, 6, (width,))
        mean = errors.add(smoothed(source, MM, 6), batch_of(source, target, drf))
        assert mean.argmin() == FWHMS_MM.index(width)
    widths = fitted(errors.state())
    assert (widths.at(4.0), widths.at(20.0), widths.at(math.nan)) == (4.0, 7.0, 5.0)
    assert widths.at(math.sqrt(4 * 20)) == pytest.approx(5.5)  # half way over the logarithm
    assert (widths.at(1.5), widths.at(100.0)) == (4.0, 7.0)
    wanted = smoothed(source, MM, 6, (7.0,))
    assert torch.equal(widths.smooth(source, MM, torch.tensor([20.0]), 6), wanted)


def test_a_dose_that_was_never_named_takes_the_median_and_no_patch_a_middle_width() -> None:
    known = Widths(torch.tensor([4.0, 20.0, 100.0]), torch.tensor([4.0, 5.0, 8.0]))
    assert known.at(math.nan) == 5.0
    assert fitted(Errors().state()).at(20.0) == dose_gaussian.UNFITTED_MM


def test_errors_go_on_where_they_were() -> None:
    errors, resumed = Errors(), Errors()
    source = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    images = smoothed(source, MM.expand(2, -1), 6)
    for drf in (20.0, math.nan, 4.0):
        errors.add(images, batch_of(source, images[:, :1], drf))
    resumed.load(errors.state())
    for one in (errors, resumed):
        one.add(images, batch_of(source, images[:, 3:4], 4.0))
    for name, value in errors.own().items():
        assert torch.equal(value.nan_to_num(-1), resumed.state()[name].nan_to_num(-1))
    assert errors.own()["drf"][:2].tolist() == [4.0, 20.0]
