"""Series of real scanners: the SUV that others published for them, and pairs that belong together."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from storage.dicom import open_series
from storage.dicom_pairs import check_pair

real = pytest.mark.skipif("PETSCALE_REAL_DATA" not in os.environ, reason="PETSCALE_REAL_DATA names no data folder")


@real
def test_whole_body_series_gives_the_published_suv() -> None:
    import nibabel

    data = Path(os.environ["PETSCALE_REAL_DATA"])
    started = time.process_time()
    source = open_series(data / "mirp/sts_001_wholebody_pet/image", modality="PT")
    assert time.process_time() - started < 3
    assert source.grid.shape == (267, 128, 128)
    facts = source.provenance["reference_candidates_s"]
    assert facts["back_computed_last"] == pytest.approx(119.7, abs=0.1)
    assert facts["back_computed_first"] == pytest.approx(-1095.3, abs=0.1)

    published = nibabel.load(data / "ibsi/ibsi_validation/nifti/STS_001/PET_image.nii.gz")
    crop = np.asarray(published.dataobj, dtype=np.float32).T
    offset = np.linalg.solve(source.grid.affine, published.affine[:, 3])[:3]
    step = np.sign(np.diag(np.linalg.solve(source.grid.affine, published.affine))[:3]).astype(int)
    assert np.allclose(offset, np.rint(offset), atol=0.01)
    x, y, z = (
        o + s * np.arange(n) for o, s, n in zip(np.rint(offset).astype(int), step, crop.shape[::-1], strict=True)
    )
    ours = source.read(z.min(), z.max() + 1)[np.ix_(z - z.min(), y, x)]
    ratio = ours[crop > 0.5] / crop[crop > 0.5]
    assert np.median(ratio) == pytest.approx(1.0, abs=1e-6)
    assert np.quantile(ratio, [0.01, 0.99]) == pytest.approx([1.0, 1.0], abs=5e-4)


@real
def test_published_suv_series_and_its_ct_are_a_pair() -> None:
    data = Path(os.environ["PETSCALE_REAL_DATA"], "ibsi/ibsi_validation/dicom/STS_001")
    pet, ct = open_series(data / "PET", modality="PT"), open_series(data / "CT", modality="CT")
    check_pair(pet, ct)
    assert pet.provenance["stored_units"] == "GML"
    assert ct.read(0, 5).min() >= -1024
