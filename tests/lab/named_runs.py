"""A run that nobody trained whose every name could be a patient's, its scores, and the cohort that it is of."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from untrained_runs import prove, red_cnn

from petscale import config as configs
from petscale.evaluation.current import OF_WEIGHTS, weights_of
from petscale.evaluation.scores import Evaluation
from petscale.folders import CONFIG, EVALUATION, WEIGHTS
from storage.ingest import CasePlan, ingest
from storage.reader import open_cohort
from storage.source import SUV, ArraySource, Dose, Grid
from trainers import checkpoint
from trainers.metrics.definitions import Score
from trainers.metrics.presets import BODY_PSNR, LESION_PSNR

PATIENTS = ("doe-jane-1", "doe-jane-2", "roe-john")
TESTED = "roe-john"
SCANNER = {"tracer": "FDG", "nuclide": "F-18", "scanner": "SIEMENS Biograph64_Vision"}
THINNED = Dose(4.0, "thinned", True)


def fill(
    folder: Path,
    names: Sequence[str] = PATIENTS,
    provenance: Mapping[str, object] = MappingProxyType(SCANNER),
    low: Dose = THINNED,
    edge: int = 16,
) -> Path:
    """A cohort; cases that begin alike are of one patient, and the second case has thinner slices.

    Args:
        provenance: of all images.
        low: dose of the image low_drf4.
        edge: of the volumes, in voxels.
    """
    plans: dict[str, Callable[[Path], CasePlan]] = {}
    for seed, name in enumerate(names):
        spacing_mm = (24.0 if seed == 1 else 25.0, 15.0, 14.0)
        grid = Grid((edge, edge, edge), np.diag([*spacing_mm[::-1], 1.0]))
        voxels = np.random.default_rng(seed).gamma(1.0, 1.0, grid.shape).astype(np.float32)
        images = {one: ArraySource(voxels, grid, SUV, dict(provenance)) for one in ("full", "low_drf4")}
        doses = {"full": Dose(1.0, "full", None), "low_drf4": low}
        plan = CasePlan(images, f"patient of {name[:3]}", name, doses=doses)
        plans[name] = lambda _, plan=plan: plan  # type: ignore[misc]
    ingest(folder, plans, strict=True, workers=1)
    return folder


def score(run: Path) -> None:
    """Leave scores of the tested case, as `petscale evaluate` does: 3 dB for the network over a filter."""
    values = {"low-dose input": 30.0, "Gaussian": 33.0, "synthesized": 36.0}
    rows = [
        Score(TESTED, image, region, kind, rule, value)
        for image, value in values.items()
        for region, kind, rule in (("body", "body", BODY_PSNR), ("lesion-1", "lesion", LESION_PSNR))
    ]
    folder = run / EVALUATION / "low_drf4"
    folder.mkdir(parents=True)
    Evaluation(tuple(rows), tuple(values), (TESTED,), {OF_WEIGHTS: weights_of([run])}).write(folder)


def write_run(folder: Path, cohort: Path) -> Path:
    """A run of RED-CNN whose split and whose command name the patients, trained at 25 x 15 x 14 mm."""
    red_cnn(folder, 7, cohort=open_cohort(cohort), test=[TESTED])
    record = json.loads((folder / CONFIG).read_bytes())
    config = configs.from_json(record["config"])
    config = replace(config, split=replace(config.split, test=(TESTED,)))
    record |= {"config": configs.to_json(config), "command": "petscale train clinic-of-doe --run run-of-doe"}
    (folder / CONFIG).write_text(json.dumps(record))
    tensors, facts = checkpoint.read_weights(folder / WEIGHTS)
    starts = json.dumps({"units": SUV, "spacing_mm": [25.0, 15.0, 14.0]})
    checkpoint.write_weights(folder / WEIGHTS, tensors, {**facts, "starts_from": starts, "drfs": "[4.0, 20.0]"})
    prove(folder)
    return folder
