"""How good the images of `make demo` are, kept and compared beside the speeds: a faster way that is worse is no gain.

One machine gives the same bits again.  Another processor sums in another order: its last digits differ, and a training
carries them on, by 0.1 dB in the body between an AMD EPYC and an Intel Xeon: the gate compares with figures of the same
kind of processor.  ``TOLERANCE_DB`` is below what ``restore`` gains over the best baseline in the body and in lesions.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from petscale.evaluation.scores import read_evaluation
from petscale.folders import EVALUATION
from trainers.metrics.presets import BODY_PSNR, LESION_PSNR

RULES = {"body": BODY_PSNR, "lesions": LESION_PSNR}
TOLERANCE_DB = {"body": 0.05, "lesions": 0.2}


def of_demo() -> dict[str, Any]:
    """Make the demo anew, by the command that a user types, and return its figures."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory(prefix="petscale-demo-") as folder:
        words = [sys.executable, "-m", "petscale", "demo", "--folder", folder]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment)
        return of_run(Path(folder) / "run" / EVALUATION / "low_drf20")


def of_run(evaluated: Path) -> dict[str, Any]:
    """Return the mean PSNR [dB] over the test patients of the network and of the best image without one,
    which is another one in lesions than in the body.

    Args:
        evaluated: the folder of a run's scores for one dose.
    """
    evaluation = read_evaluation(evaluated)
    best = {region: evaluation.best_by(rule, region) for region, rule in RULES.items()}
    images = {"restore": dict.fromkeys(RULES, evaluation.synthesized), "best baseline": best}
    psnr_db = {
        f"{image}, {region}": float(np.mean(list(evaluation.values(names[region], rule, region).values())))
        for image, names in images.items()
        for region, rule in RULES.items()
    }
    return {"best_baselines": best, "psnr_db": psnr_db}


def worse(kept: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the figures that are kept and fell by more than ``TOLERANCE_DB``, or are no longer found."""
    lost = []
    for name, before in kept["psnr_db"].items():
        now = found["psnr_db"].get(name)
        tolerance = TOLERANCE_DB[name.rpartition(", ")[2]]
        if now is None or not now >= before - tolerance:
            lost.append(f"demo, {name}: {now} dB, kept {before:.3f} dB (tolerance {tolerance:g} dB)")
    return lost
