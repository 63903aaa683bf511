"""The unit of a NIfTI that nobody states: SUV where its values can be nothing else."""

from pathlib import Path

import numpy as np
import pytest

from petscale.data.units import units_by_values
from storage.errors import InputError
from storage.nifti import write_nifti
from storage.phantom import PhantomConfig, phantom

BODY = phantom(PhantomConfig(shape=(40, 32, 36), spacing_mm=(16.0, 14.0, 14.0)))


def saved(path: Path, factor: float) -> Path:
    write_nifti(path, BODY.activity.grid, lambda z0, z1: BODY.activity.read(z0, z1) * np.float32(factor))
    return path


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_values_of_suv_are_taken_for_suv(tmp_path: Path, factor: float) -> None:
    assert units_by_values(saved(tmp_path / "a.nii.gz", factor), tmp_path / "scratch") == "SUVbw"


@pytest.mark.parametrize("factor", [1e-4, 0.01, 30.0, 4000.0, 1e6])
def test_what_may_be_something_else_is_refused_with_the_option_that_says_it(tmp_path: Path, factor: float) -> None:
    with pytest.raises(InputError, match=r"NII_UNITS a\.nii: .*--units SUVbw, or --units Bq/mL with --weight-kg"):
        units_by_values(saved(tmp_path / "a.nii", factor), tmp_path / "scratch")


def test_a_ct_is_told_as_one(tmp_path: Path) -> None:
    write_nifti(tmp_path / "ct.nii", BODY.ct.grid, BODY.ct.read)
    with pytest.raises(InputError, match=r"NII_UNITS .*look like HU.*--ct"):
        units_by_values(tmp_path / "ct.nii", tmp_path / "scratch")
