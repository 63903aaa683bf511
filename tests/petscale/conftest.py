"""The command line from inside, small scans in every kind of file, and a run that nobody trained."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from untrained_runs import prove

from petscale import config as configs
from petscale.cli import main
from petscale.cluster import session as sessions
from petscale.folders import CONFIG, WEIGHTS
from storage import dicom_write, nifti
from storage.phantom import PhantomConfig, phantom
from trainers import checkpoint
from trainers.engine import plain_engine
from trainers.feed_config import FeedConfig
from trainers.systems import RECIPES, sgsgan

SHAPE, SPACING_MM = (32, 28, 30), (25.0, 15.0, 14.0)
WEIGHT_KG, DOSE_MBQ = 70.0, 300.0
TINY = sgsgan.Config(
    patch=(24, 24, 24), patches_per_case=1, context_patches=2, critic_channels=2, rois=(), phase_samples=(4, 0, 0, 0)
)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end in one coded line, exit 2; returns the code and the rest of the line."""

    def run(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        told = [line for line in err.splitlines() if line.startswith("petscale: ")]
        assert ended.value.code == 2, err
        assert len(told) == 1, err
        assert "Traceback" not in err
        assert out == ""
        # Beside the one line there may be a bar's first line, the other cases of a batch, notes, and nothing else.
        beside = [line.split(":")[0].split()[0] for line in err.splitlines() if line != told[0]]
        assert {*beside} <= {"ingest", "simulate", "synthesize", "refused", "note"}, err
        line = told[0].removeprefix("petscale: ")
        code, _, rest = line.partition(" ")
        assert code.isupper(), line
        assert "; " in rest, line
        return line

    return run


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One phantom patient as files: pet/ and ct/ (DICOM), suv.nii.gz, bqml.nii, mask.nii.gz; read only."""
    folder = tmp_path_factory.mktemp("scans")
    body = phantom(PhantomConfig(shape=SHAPE, spacing_mm=SPACING_MM, num_lesions=2))
    fine = phantom(PhantomConfig(shape=(40, 56, 60), spacing_mm=(20.0, 7.5, 7.0), num_lesions=2))
    dicom_write.write_series(folder / "pet", body.activity, patient_id="P1")
    dicom_write.write_series(folder / "ct", fine.ct, patient_id="P1", series_number=2)
    grid, voxels = body.activity.grid, body.activity.read(0, SHAPE[0])
    bqml = DOSE_MBQ * 1e6 / (WEIGHT_KG * 1000)
    nifti.write_nifti(folder / "suv.nii.gz", grid, lambda a, b: voxels[a:b])
    nifti.write_nifti(folder / "bqml.nii", grid, lambda a, b: voxels[a:b] * np.float32(bqml))
    nifti.write_nifti(folder / "mask.nii.gz", grid, lambda a, b: (voxels[a:b] > 4).astype(np.float32))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What `petscale train` leaves behind, its weights fresh; no test cases."""
    folder = tmp_path / "run"
    torch.manual_seed(0)
    config = configs.RunConfig(model=TINY, feed=FeedConfig(source=("low_drf4",)))
    recipe = RECIPES["sgsgan"].build(TINY, make_engine=plain_engine, patches_per_step=config.patches_per_step)
    folder.mkdir()
    whole = configs.to_json(config)
    facts = {"config": whole, "command": "petscale train", "cohort": "cohort", "train": [], "test": [], "cases": {}}
    (folder / CONFIG).write_text(json.dumps(facts))
    checkpoint.write_weights(folder / WEIGHTS, recipe.weights(), {"recipe": "sgsgan", "config": json.dumps(whole)})
    prove(folder)
    return folder


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake must be seen before a cluster starts."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the cluster was started")

    monkeypatch.setattr(sessions, "session", never)
