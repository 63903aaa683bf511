"""Configurations and training runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from petscale.api.cohorts import PathLike
from petscale.folders import METRICS, WEIGHTS
from petscale.shipped import located
from storage.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

    from petscale.api.results import Scores
    from petscale.config import Defaults, RunConfig

NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


def configure(
    fields: Mapping[str, Any] = NO_FIELDS,
    *,
    recipe: str | None = None,
    defaults: "Defaults | None" = None,
    config: "RunConfig | PathLike | None" = None,
    workers: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
) -> "RunConfig":
    """Return a run's whole configuration.

    Args:
        fields: ``section.field`` -> value, for what differs from ``config``; the names are those of options and files.
        recipe: name of the system; it brings its own defaults.  None: that of ``config``, else sgsgan.
        defaults: whose settings hold where none is given: ``practice``, those measured to serve better (None without
            ``config``), or the ``paper``'s; the same for a system that has none of practice.  Not beside ``config``.
        config: where to start from: a configuration, or a YAML or JSON file, or the ``config.json`` of a run.
        workers: training processes, short for ``cluster.workers``.
        device: short for ``cluster.device``.

    Raises:
        InputError: CFG_RECIPE, CFG_SET, CFG_FIELD with the nearest name, CFG_VALUE, CFG_RANGE, CFG_CONTRADICTION,
            CFG_NO_EFFECT.

    >>> small = petscale.configure({"recipe.patch": (32, 32, 32), "loop.log_every": 1}, recipe="sgsgan")
    >>> small.model.patch, small.loop.log_every, small.feed.cases_per_step
    ((32, 32, 32), 1, 2)
    >>> petscale.configure({"recipe.lambda_contents": 50})
    Traceback (most recent call last):
    storage.errors.InputError: CFG_FIELD --set recipe: unknown 'lambda_contents'; did you mean 'lambda_content'?
    """
    from petscale import config as configs

    if config is None:
        named = {"name": recipe} if recipe is not None else {}
        base = configs.from_json({"recipe": {**named, "defaults": "practice" if defaults is None else defaults}})
    elif defaults is not None:
        raise InputError("CFG_NO_EFFECT", where="defaults", found="given beside config", remedy="give one of the two")
    else:
        base = config if isinstance(config, configs.RunConfig) else configs.read(Path(config))
        if recipe is not None and recipe != base.recipe:
            raise configs.contradiction("recipe", recipe, base.recipe)
    chosen = dict(fields)
    for name, short in (("cluster.workers", workers), ("cluster.device", device)):
        if short is not None and chosen.setdefault(name, short) != short:
            raise configs.contradiction(name, short, chosen[name])
    return configs.with_fields(base, chosen) if chosen else base


def train(
    cohort: PathLike,
    run: PathLike,
    fields: Mapping[str, Any] = NO_FIELDS,
    *,
    recipe: str | None = None,
    defaults: "Defaults | None" = None,
    config: "RunConfig | PathLike | None" = None,
    workers: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    others: Sequence[PathLike] = (),
    time_limit: str | None = None,
    init: PathLike | None = None,
) -> "Run":
    """Train a system on a cohort; the same call continues an interrupted run.

    Args:
        cohort: folder of the cohort.
        run: folder of the run; made, or continued.
        fields: as in ``configure``, like those that follow.
        recipe: name of the system.
        defaults: ``practice`` or ``paper``.
        config: where the configuration starts from.
        workers: training processes.
        device: cpu or cuda.
        others: folders of further cohorts that are trained on too.
        time_limit: stop before so much time is over (``3h50m``, ``90m``, ``1d2h``), with a checkpoint and without
            weights; the same call continues.
        init: a file of ``card``, a run's weights or the name of weights that come with petscale, of the same system:
            the networks start from them.

    Raises:
        InputError: those of ``configure``; CFG_DURATION; any mistake before a process starts; TRAIN_FAILED,
            TRAIN_NONFINITE.

    >>> tiny = petscale.configure({
    ...     "recipe.patch": (24, 24, 24), "recipe.patches_per_case": 1, "recipe.context_patches": 2,
    ...     "recipe.critic_channels": 2, "recipe.rois": (), "recipe.phase_samples": (4, 0, 0, 0),
    ...     "loop.log_every": 1, "split.validation_fraction": 0.3,
    ... }, defaults="paper")
    >>> run = petscale.train("cohort", "run", config=tiny)
    >>> run.weights.name
    'weights.safetensors'
    """
    from petscale.training import driver

    limit_s = seconds(time_limit)
    chosen = configure(fields, recipe=recipe, defaults=defaults, config=config, workers=workers, device=device)
    driver.train(
        Path(cohort),
        Path(run),
        chosen,
        command=called("train", cohort, run),
        others=[Path(other) for other in others],
        time_limit_s=limit_s,
        init=None if init is None else located(Path(init)),
    )
    return Run(Path(run))


def folds(
    cohort: PathLike,
    run: PathLike,
    fields: Mapping[str, Any] = NO_FIELDS,
    *,
    k: int | None = None,
    recipe: str | None = None,
    defaults: "Defaults | None" = None,
    config: "RunConfig | PathLike | None" = None,
    workers: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    others: Sequence[PathLike] = (),
    time_limit: str | None = None,
) -> "dict[str, Scores]":
    """Train a run per fold and score every patient once, by the run that never saw him or her.

    The same call continues; a fold that is trained is not trained again.

    Args:
        cohort: folder of the cohort.
        run: folder of all folds; ``open_run(f"{run}/fold-0")`` opens one, ``synthesize(run, ...)`` averages all.
        fields: as in ``configure``, like those that follow ``k``.
        k: number of folds; None for ``split.folds``, for those that the cohort states (``split.fold_tag``), or 5.
        recipe: name of the system.
        defaults: ``practice`` or ``paper``.
        config: where the configuration starts from.
        workers: training processes.
        device: cpu or cuda.
        others: folders of further cohorts, read as one with the first.
        time_limit: stop before so much time is over (``3h50m``), with a checkpoint; the same call continues.

    Returns:
        Image that the runs start from -> scores of all patients; a patient's scans are averaged.  Empty where the time
        was over before.

    Raises:
        InputError: CFG_CONTRADICTION, CFG_RANGE, SET_NO_FACT, SET_TOO_SMALL, CKPT_DRIFT, and those of ``train``.

    >>> petscale.folds("cohort", "folds", config=tiny, k=9)
    Traceback (most recent call last):
    storage.errors.InputError: SET_TOO_SMALL --k: 9 folds of 4 patients: one would test nobody; make fewer folds, ...
    """
    from petscale.api.results import Scores
    from petscale.crossvalidation.folds import train_folds

    limit_s = seconds(time_limit)
    chosen = configure(fields, recipe=recipe, defaults=defaults, config=config, workers=workers, device=device)
    found = train_folds(
        Path(cohort),
        Path(run),
        chosen,
        k=k,
        command=called("folds", cohort, run),
        others=[Path(other) for other in others],
        time_limit_s=limit_s,
    )
    return {source: Scores(evaluation) for source, evaluation in found.items()}


def open_run(folder: PathLike) -> "Run":
    """Open a run that an earlier session or ``petscale train`` has made.

    Raises:
        InputError: CFG_NO_FILE, CFG_RUN_FOLDER.

    >>> petscale.open_run("run") == run
    True
    """
    from petscale.evaluation.run import run_facts

    run_facts(Path(folder))
    return Run(Path(folder))


@dataclass(frozen=True)
class Run:
    """A training run in its folder.

    Args:
        folder: of the run.

    >>> run.config.recipe, run.config.model.patch
    ('sgsgan', (24, 24, 24))
    >>> run.roles["test"], sum(len(cases) for cases in run.roles.values())
    (('phantom-001',), 4)
    """

    folder: Path

    @property
    def config(self) -> "RunConfig":
        """Its whole configuration."""
        from petscale.evaluation.run import run_facts

        return run_facts(self.folder)[0]

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """``train``, ``unpaired``, ``validation`` and ``test`` -> names of the cases; no patient has two roles."""
        from petscale.evaluation.run import run_facts

        _, facts = run_facts(self.folder)
        return {role: tuple(facts.get(role, ())) for role in ("train", "unpaired", "validation", "test")}

    @property
    def weights(self) -> Path:
        """The file that inference needs; it is there when the training has ended."""
        return self.folder / WEIGHTS

    def metrics(self) -> "DataFrame":
        """Return the log records so far: a row per logged step.

        Columns: ``step``, ``phase``, ``loss/...`` in the units of the system, ``patches_per_s`` and what else the
        system logs.

        >>> metrics = run.metrics()
        >>> metrics[["step", "phase"]]
           step phase
        0     1   gan
        1     2   gan
        >>> bool((metrics["loss/content"] > 0).all())
        True
        """
        import pandas

        from petscale.training.progress import read_metrics

        records = [record for record in read_metrics(self.folder / METRICS) if record.get("event") == "log"]
        return pandas.DataFrame(records).drop(columns="event", errors="ignore")


def seconds(time_limit: str | None) -> float | None:
    """The seconds of a ``time_limit``, None for none.

    Raises:
        InputError: CFG_DURATION.
    """
    from petscale.durations import seconds_of

    return None if time_limit is None else seconds_of(time_limit, "time_limit")


def called(function: str, cohort: PathLike, folder: PathLike) -> str:
    """The call for the record, paths by their last component, since folders above may name a patient."""
    names = ", ".join(repr(Path(path).name) for path in (cohort, folder))
    return f"petscale.{function}({names}, ...)"
