"""Searches of settings: a study, its trials as a table, the best configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from petscale.api.cohorts import PathLike
from petscale.api.results import Page
from petscale.api.training import NO_FIELDS, called, configure, seconds
from petscale.folders import BEST, REPORT

if TYPE_CHECKING:
    from pandas import DataFrame

    from petscale.config import Defaults, RunConfig


def tune(
    cohort: PathLike,
    study: PathLike,
    fields: Mapping[str, Any] = NO_FIELDS,
    *,
    recipe: str | None = None,
    defaults: "Defaults | None" = None,
    config: "RunConfig | PathLike | None" = None,
    spaces: Sequence[str] = ("losses",),
    objectives: Sequence[str] = ("psnr_body",),
    trials: int = 16,
    sampler: str = "tpe",
    seed: int = 0,
    rungs: int = 1,
    factor: int = 3,
    at_once: int = 0,
    gpus: float = 1.0,
    storage: str = "",
    workers: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    others: Sequence[PathLike] = (),
    time_limit: str | None = None,
) -> "Study":
    """Search settings of a system by trials scored on validation patients; the same call continues a search.

    Args:
        cohort: folder of the cohort; its test patients are never read.
        study: folder of the study.
        fields: as in ``configure``, of the configuration that trials vary; ``recipe`` and ``config`` too.
        recipe: name of the system.
        defaults: ``practice`` or ``paper``.
        config: where the configuration starts from.
        spaces: names of what is searched, of ``tune_spaces``; several are joined.
        objectives: one score on validation patients, or two for a Pareto front.
        trials: finished trials wanted, those of earlier sessions included.
        sampler: tpe, random or nsga2.
        seed: of the sampler.
        rungs: budgets after which a trial is scored, each ``factor`` times the one before; the last is the whole run.
        factor: of budgets; at each all but the best 1 / factor of the trials are stopped (ASHA).
        at_once: trials side by side; 0 for as many as fit.
        gpus: share of a GPU that a trial of one worker has.
        storage: of the study: a journal file in its folder, sqlite, or a database's URL.
        workers: training processes of a trial.
        device: cpu or cuda.
        others: folders of further cohorts that are searched on too.
        time_limit: stop before so much time is over (``3h50m``), every trial with a checkpoint; the same call
            continues.

    Raises:
        InputError: those of ``configure``; the TUNE_ codes, SET_NO_VALIDATION, SET_NO_LABELS; CFG_RANGE;
            CFG_DURATION.

    >>> study = petscale.tune("cohort", "study", config=tiny, spaces=["losses"], trials=2)
    """
    from petscale.tuning.search import SweepConfig
    from petscale.tuning.sweep import sweep

    limit_s = seconds(time_limit)
    chosen = configure(fields, recipe=recipe, defaults=defaults, config=config, workers=workers, device=device)
    searched = SweepConfig(
        spaces=tuple(spaces),
        objectives=tuple(objectives),
        trials=trials,
        sampler=sampler,
        seed=seed,
        rungs=rungs,
        factor=factor,
        at_once=at_once,
        gpus=gpus,
        storage=storage,
    )
    sweep(
        Path(cohort),
        Path(study),
        chosen,
        searched,
        command=called("tune", cohort, study),
        others=[Path(other) for other in others],
        time_limit_s=limit_s,
    )
    return Study(Path(study), storage)


def open_study(folder: PathLike, storage: str = "") -> "Study":
    """Open a study that an earlier session or ``petscale tune`` has made, also while it is searching.

    Raises:
        InputError: TUNE_STUDY, TUNE_STORAGE, TUNE_JOURNAL.

    >>> petscale.open_study("study") == study
    True
    """
    from petscale.tuning.study import read_study

    read_study(Path(folder), storage)
    return Study(Path(folder), storage)


@dataclass(frozen=True)
class Study:
    """A search of settings in its folder.

    Args:
        folder: of the study.
        storage: where its trials are recorded, as given to ``tune``.

    >>> study.best().model.patch
    (24, 24, 24)
    >>> study.report
    Page(path=PosixPath('study/report.html'))
    """

    folder: Path
    storage: str = ""

    def trials(self) -> "DataFrame":
        """Return a row per trial.

        Columns: ``number``, ``state`` (COMPLETE, PRUNED, FAIL, RUNNING), a column per objective as
        ``metric:region:preset`` (NaN where the trial is not complete), a column per setting as ``section.field``,
        ``seconds``, ``folder`` (number of its run's folder), ``note``.

        >>> trials = study.trials()
        >>> trials[["number", "state", "recipe.lambda_seg"]].head(1)
           number     state  recipe.lambda_seg
        0       0  COMPLETE                1.0
        """
        import pandas

        from petscale.tuning.study import read_study
        from petscale.tuning.trials import history

        opened = read_study(self.folder, self.storage)
        objectives = opened.user_attrs["identity"]["objectives"]
        rows = []
        for trial in history(opened):
            values = trial["values"] or [float("nan")] * len(objectives)
            row = {"number": trial["number"], "state": trial["state"]}
            row |= dict(zip(objectives, values, strict=True)) | trial["settings"]
            rows.append(row | {name: trial[name] for name in ("seconds", "folder", "note")})
        return pandas.DataFrame(rows)

    def best(self) -> "RunConfig":
        """Return the configuration of the best trial, by the first objective, of the last search that ended.

        Raises:
            InputError: CFG_NO_FILE while no search has ended, or no trial is complete.
        """
        from petscale import config as configs

        return configs.read(self.folder / BEST)

    @property
    def report(self) -> "Page":
        """The page with every trial."""
        return Page(self.folder / REPORT)
