"""The commands as functions for notebooks and scripts: paths and values in, images with their grid and tables out.

Each function is called as its command, has the command's options and defaults, and does what the command does.  Paths
are local, as text or ``Path``.  A mistake is an ``InputError`` with the code that docs/errors.md explains.
"""

from petscale.api.cards import apply, card
from petscale.api.cohorts import (
    Case,
    Cohort,
    IngestResult,
    ingest,
    inspect,
    open_cohort,
    phantom,
    remove,
    simulate,
)
from petscale.api.comparing import Candidates, compare, score
from petscale.api.results import (
    Average,
    Calibration,
    Choice,
    Page,
    Scores,
    average,
    best,
    calibrate,
    evaluate,
    export,
    report,
    synthesize,
)
from petscale.api.training import Run, configure, folds, open_run, train
from petscale.api.tuning import Study, open_study, tune

__all__ = [
    "Average",
    "Calibration",
    "Candidates",
    "Case",
    "Choice",
    "Cohort",
    "IngestResult",
    "Page",
    "Run",
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
