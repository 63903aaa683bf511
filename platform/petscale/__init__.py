"""Low-dose PET restored to full-dose quality: the command line ``petscale``, and the same steps as Python functions.

    import petscale
    made = petscale.phantom("cohort", cases=8, drf=[20])            # patients with full-dose and low-dose scans
    made.cohort.table()                                             # what is there, as a pandas data frame
    made.cohort["phantom-000"]["low_drf20"]                         # voxels (z, y, x) in SUVbw with their grid
    run = petscale.train("cohort", "run", {"recipe.rois": ["liver"]}, recipe="sgsgan")
    run.metrics().plot(x="step", y="loss/content")
    scores = petscale.evaluate(run, "cohort")                       # patients that the training never saw
    scores["low_drf20"].summary()
    petscale.report(run, "cohort")                                  # a page that shows itself in a notebook
    petscale.synthesize(run, "scan.nii.gz").save("restored.nii.gz")

Nothing is loaded before a name is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petscale.api import (
        Average,
        Calibration,
        Candidates,
        Case,
        Choice,
        Cohort,
        IngestResult,
        Page,
        Run,
        Scores,
        Study,
        apply,
        average,
        best,
        calibrate,
        card,
        compare,
        configure,
        evaluate,
        export,
        folds,
        ingest,
        inspect,
        open_cohort,
        open_run,
        open_study,
        phantom,
        remove,
        report,
        score,
        simulate,
        synthesize,
        train,
        tune,
    )
    from petscale.config import RunConfig
    from petscale.images import Image
    from storage.errors import InputError
    from storage.lowdose import LowDoseConfig
    from storage.phantom import PhantomConfig
    from storage.source import Grid

__all__ = [
    "Average",
    "Calibration",
    "Candidates",
    "Case",
    "Choice",
    "Cohort",
    "Grid",
    "Image",
    "IngestResult",
    "InputError",
    "LowDoseConfig",
    "Page",
    "PhantomConfig",
    "Run",
    "RunConfig",
    "Scores",
    "Study",
    "apply",
    "average",
    "best",
    "calibrate",
    "card",
    "compare",
    "configure",
    "evaluate",
    "export",
    "folds",
    "ingest",
    "inspect",
    "open_cohort",
    "open_run",
    "open_study",
    "phantom",
    "remove",
    "report",
    "score",
    "simulate",
    "synthesize",
    "train",
    "tune",
]

_ELSEWHERE = {
    "Grid": "storage.source",
    "Image": "petscale.images",
    "InputError": "storage.errors",
    "LowDoseConfig": "storage.lowdose",
    "PhantomConfig": "storage.phantom",
    "RunConfig": "petscale.config",
}  # every other name is in petscale.api


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'petscale' has no attribute '{name}'")
    return getattr(import_module(_ELSEWHERE.get(name, "petscale.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
