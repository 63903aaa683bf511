"""The commands as functions for notebooks and scripts: paths and values in, images with their grid and tables out.

Each function is called as its command, has the command's options and defaults, and does what the command does.  Paths
are local, as text or ``Path``.  A mistake is an ``InputError`` with the code that docs/errors.md explains.
"""

import html
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from petscale.folders import BEST, METRICS, REPORT, WEIGHTS
from petscale.images import Image
from storage import nifti, reader, suv
from storage.errors import InputError
from storage.ingest import Outcome
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.source import HU

if TYPE_CHECKING:
    from pandas import DataFrame

    from petscale.config import RunConfig
    from petscale.evaluation.scores import Evaluation

PathLike = str | Path
NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


# ---- cohorts --------------------------------------------------------------------------------------------------------


def phantom(
    cohort: PathLike,
    cases: int = 6,
    *,
    body: PhantomConfig = PhantomConfig(),  # noqa: B008
    scan: LowDoseConfig = LowDoseConfig(),  # noqa: B008
    drf: Sequence[float] = (4.0, 20.0, 100.0),
    realisations: int = 1,
    workers: int | None = None,
) -> "IngestResult":
    """Make a cohort of phantom patients with simulated full-dose and low-dose scans.

    Args:
        cohort: folder of the cohort; made or added to.
        cases: patients; their seeds count up from ``body.seed``.
        body: the phantom.
        scan: the scanner and its counts; ``scan.drf`` is replaced by the values of ``drf``.
        drf: dose reduction factors, 1 or more; () for no low dose.
        realisations: noise realisations of each.
        workers: parallel tasks.

    Raises:
        InputError: CFG_RANGE, STORE_NOT_EMPTY, STORE_BUSY, DISK_FULL.

    A cohort so small that a network learns nothing from it, made in seconds:

    >>> import petscale
    >>> body = petscale.PhantomConfig(shape=(48, 40, 40), spacing_mm=(20.0, 11.0, 11.0), num_lesions=2)
    >>> scan = petscale.LowDoseConfig(million_prompts_per_bed=20.0, iterations=1)
    >>> made = petscale.phantom("cohort", 4, body=body, scan=scan, drf=[4, 20])
    >>> made.committed
    ('phantom-000', 'phantom-001', 'phantom-002', 'phantom-003')
    """
    from petscale.data.cohorts import fill_what_can_be
    from petscale.data.phantom import phantom_plans

    plans = phantom_plans(cases, body, scan, list(drf), realisations)
    outcome = fill_what_can_be("phantoms", Path(cohort), plans, strict=True, workers=workers)
    return IngestResult.of(cohort, outcome)


def ingest(
    source: PathLike,
    cohort: PathLike,
    *,
    case: str | None = None,
    pet: str = "",
    ct: PathLike = "",
    mask: PathLike = "",
    grid: Literal["pet", "ct"] = "pet",
    units: nifti.Units = "SUVbw",
    names: Literal["hash", "folder"] = "hash",
    weight_kg: float | None = None,
    dose_mbq: float | None = None,
    injection_time: str | None = None,
    strict: bool = False,
    workers: int | None = None,
) -> "IngestResult":
    """Read DICOM or NIfTI examinations into a cohort, in SUV, at their native resolution.

    Args:
        source: a DICOM series' folder, a NIfTI file, or a folder with one sub-folder per examination.
        cohort: folder of the cohort; made or added to.
        case: name of a single case; without it a keyed hash is used.
        pet: name of the PET inside each sub-folder; says that ``source`` holds many examinations.
        ct: the CT of one examination, or its name inside each sub-folder.
        mask: a mask on the grid chosen, value 1 a lesion; or its name inside each sub-folder.
        grid: ``pet`` keeps the PET as it is and resamples the CT onto it; ``ct`` does the reverse.
        units: unit of a NIfTI PET; DICOM says its own.
        names: what many cases are called: a keyed hash, or their folders' names where these identify nobody.
        weight_kg: used instead of the header's; recorded.
        dose_mbq: used instead of the header's; recorded.
        injection_time: used instead of the header's, HH:MM[:SS] or ISO date-time; recorded.
        strict: stop at the first refused case.
        workers: parallel tasks.

    Returns:
        The cohort with what was committed, what was there already, and what was refused and why.

    Raises:
        InputError: the first refusal where no case was committed, or where ``strict``; STORE_NOT_EMPTY, STORE_BUSY.

    >>> petscale.open_cohort("cohort")["phantom-000"]["full"].save("scan.nii.gz")
    >>> petscale.ingest("scan.nii.gz", "ingested", case="first").committed
    ('first',)
    >>> petscale.ingest("scan.nii.gz", "ingested", case="first").kept
    ('first',)
    """
    from petscale.data.cohorts import fill_what_can_be
    from petscale.data.ingest import ingest_plans

    overrides = suv.Overrides(weight_kg=weight_kg, dose_mbq=dose_mbq, injection_time=injection_time)
    plans = ingest_plans(
        Path(source),
        case=case,
        pet=pet,
        ct=str(ct),
        mask=str(mask),
        grid=grid,
        units=units,
        names=names,
        overrides=overrides,
    )
    outcome = fill_what_can_be("ingest", Path(cohort), plans, strict=strict, workers=workers)
    return IngestResult.of(cohort, outcome)


def simulate(
    source: PathLike,
    cohort: PathLike,
    *,
    drf: Sequence[float] = (4.0, 20.0, 100.0),
    truth: str = "full",
    scan: LowDoseConfig = LowDoseConfig(),  # noqa: B008
    realisations: int = 1,
    workers: int | None = None,
) -> "IngestResult":
    """Make a cohort of simulated scans whose truth is an image of another cohort.

    Args:
        source: folder of the cohort with the real or phantom scans.
        cohort: folder of the new cohort.
        drf: dose reduction factors, 1 or more.
        truth: name of the image that is taken as the true activity.
        scan: the scanner and its counts.
        realisations: noise realisations of each dose.
        workers: parallel tasks.

    Raises:
        InputError: STORE_NONE, SET_TOO_SMALL, SET_NO_IMAGE, CFG_RANGE.

    >>> quick = petscale.LowDoseConfig(million_prompts_per_bed=20.0, iterations=1)
    >>> simulated = petscale.simulate("ingested", "simulated", drf=[10], scan=quick)
    >>> simulated.cohort["first"].images
    ('body', 'full', 'low_drf10', 'truth')
    """
    from petscale.data.cohorts import fill_what_can_be
    from petscale.data.simulate import simulation_plans

    plans = simulation_plans(Path(source), truth, scan, list(drf), realisations)
    outcome = fill_what_can_be("simulate", Path(cohort), plans, strict=False, workers=workers)
    return IngestResult.of(cohort, outcome)


def open_cohort(folder: PathLike) -> "Cohort":
    """Open a cohort for reading.

    Args:
        folder: as ``petscale.phantom``, ``ingest`` or ``simulate``, or their commands, made it.

    Raises:
        InputError: STORE_NONE, STORE_DAMAGED, STORE_SCHEMA.

    >>> petscale.open_cohort("cohort")
    Cohort(folder=PosixPath('cohort'))
    """
    return Cohort(reader.open_cohort(Path(folder)).folder)


@dataclass(frozen=True)
class Cohort:
    """Committed examinations in one folder, by name; behaves as a dict from case name to ``Case``.

    Args:
        folder: of the cohort.

    >>> cohort = petscale.open_cohort("cohort")
    >>> len(cohort), list(cohort)[:2], "phantom-009" in cohort
    (4, ['phantom-000', 'phantom-001'], False)
    >>> cohort["phantom-000"]["low_drf20"].units
    'SUVbw'
    >>> cohort["phantom-009"]
    Traceback (most recent call last):
    storage.errors.InputError: SET_NO_CASE case phantom-009: ...
    """

    folder: Path

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the committed cases, sorted."""
        return reader.open_cohort(self.folder).cases

    def __getitem__(self, name: str) -> "Case":
        """Return one case.

        Raises:
            InputError: SET_NO_CASE, STORE_DAMAGED, STORE_UNCOMMITTED.
        """
        return Case(reader.open_cohort(self.folder).case(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __contains__(self, name: object) -> bool:
        return name in self.cases

    def table(self) -> "DataFrame":
        """Return one row per case and image.

        Columns: ``case``, ``subject`` (keyed hash of the patient), ``image``, ``units``, ``voxels_z``, ``voxels_y``,
        ``voxels_x``, ``spacing_z_mm``, ``spacing_y_mm``, ``spacing_x_mm``, ``drf`` (dose reduction factor, NaN where
        the image does not say it), ``labels`` (names of the labels of a label image, separated by commas).

        >>> table = petscale.open_cohort("cohort").table()
        >>> table.query("case == 'phantom-000' and units == 'SUVbw'")[["image", "voxels_z", "spacing_z_mm", "drf"]]
               image  voxels_z  spacing_z_mm   drf
        2       full        48          20.0   1.0
        4  low_drf20        48          20.0  20.0
        5   low_drf4        48          20.0   4.0
        6      truth        48          20.0   NaN
        """
        import pandas

        return pandas.DataFrame([row for name in self for row in self[name].rows()])


@dataclass(frozen=True)
class Case:
    """One examination: its images by name, all on one grid; behaves as a dict from image name to ``Image``.

    Args:
        stored: the committed case, for whoever reads slabs or patches instead of whole images.

    >>> case = petscale.open_cohort("cohort")["phantom-000"]
    >>> case.name, case.images
    ('phantom-000', ('body', 'ct', 'full', 'labels', 'low_drf20', 'low_drf4', 'truth'))
    >>> full = case["full"]
    >>> full.voxels.shape, full.grid.spacing_mm
    ((48, 40, 40), (20.0, 11.0, 11.0))
    >>> case.labels[3]
    'liver'
    >>> liver_suv = full.voxels[case["labels"].voxels == 3]
    >>> bool(1 < liver_suv.mean() < 3)
    True
    """

    stored: reader.Case

    @property
    def name(self) -> str:
        """Name of the case."""
        return self.stored.name

    @property
    def subject(self) -> str:
        """Keyed hash of the patient, equal for all of the patient's cases."""
        return self.stored.subject

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images, sorted."""
        return self.stored.images

    @property
    def labels(self) -> dict[int, str]:
        """Value in the image ``labels`` -> name; empty where there is none."""
        return self.stored.labels

    def __getitem__(self, image: str) -> Image:
        """Read one image whole.

        Raises:
            InputError: SET_NO_IMAGE, STORE_DAMAGED.
        """
        return Image.of(self.stored.image(image))

    def __iter__(self) -> Iterator[str]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __contains__(self, image: object) -> bool:
        return image in self.images

    def rows(self) -> list[dict[str, Any]]:
        """Return the case's part of ``Cohort.table``, a row per image."""
        found = []
        for name in self.images:
            image = self.stored.image(name)
            row: dict[str, Any] = {"case": self.name, "subject": self.subject, "image": name, "units": image.units}
            row |= {f"voxels_{axis}": n for axis, n in zip("zyx", image.grid.shape, strict=True)}
            row |= {f"spacing_{axis}_mm": mm for axis, mm in zip("zyx", image.grid.spacing_mm, strict=True)}
            labels = self.labels.values() if name == "labels" else ()
            found.append({**row, "drf": _drf(image), "labels": ", ".join(labels)})
        return found


def _drf(image: reader.StoredImage) -> float:
    """The dose reduction factor that an image says it has, else NaN."""
    simulated = image.provenance.get("config")
    drf = simulated.get("drf") if isinstance(simulated, Mapping) else None
    return float("nan") if drf is None else float(drf)


@dataclass(frozen=True)
class IngestResult:
    """What became of the cases that were to enter a cohort.

    Args:
        cohort: the cohort as it is now.
        committed: names of the new cases.
        kept: names of those that were there already, made of the same inputs.
        refused: name -> what was wrong.

    >>> result = petscale.ingest("scan.nii.gz", "ingested", case="second")
    >>> result.committed, result.kept, dict(result.refused), len(result.cohort)
    (('second',), (), {}, 2)
    """

    cohort: Cohort
    committed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    refused: Mapping[str, InputError] = field(default_factory=dict)

    @classmethod
    def of(cls, cohort: PathLike, outcome: Outcome) -> "IngestResult":
        """Take what the ingest of a folder told."""
        return cls(open_cohort(cohort), tuple(outcome.committed), tuple(outcome.kept), dict(outcome.refused))


# ---- training -------------------------------------------------------------------------------------------------------


def configure(
    fields: Mapping[str, Any] = NO_FIELDS,
    *,
    recipe: str | None = None,
    config: "RunConfig | PathLike | None" = None,
    workers: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
) -> "RunConfig":
    """Return a run's whole configuration.

    Args:
        fields: ``section.field`` -> value, for what differs from ``config``; the names are those of options and files.
        recipe: name of the system; it brings its own defaults.  None: that of ``config``, else sgsgan.
        config: where to start from: a configuration, or a YAML or JSON file, or the ``config.json`` of a run.
        workers: training processes, short for ``cluster.workers``.
        device: short for ``cluster.device``.

    Raises:
        InputError: CFG_RECIPE, CFG_SET, CFG_FIELD with the nearest name, CFG_VALUE, CFG_RANGE, CFG_CONTRADICTION.

    >>> small = petscale.configure({"recipe.patch": (32, 32, 32), "loop.log_every": 1}, recipe="sgsgan")
    >>> small.model.patch, small.loop.log_every, small.feed.cases_per_step
    ((32, 32, 32), 1, 2)
    >>> petscale.configure({"recipe.lambda_contents": 50})
    Traceback (most recent call last):
    storage.errors.InputError: CFG_FIELD --set recipe: unknown 'lambda_contents'; did you mean 'lambda_content'?
    """
    from petscale import config as configs

    if config is None:
        base = configs.from_json({"recipe.name": recipe} if recipe is not None else {})
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
    config: "RunConfig | PathLike | None" = None,
    workers: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
) -> "Run":
    """Train a system on a cohort; the same call continues an interrupted run.

    Args:
        cohort: folder of the cohort.
        run: folder of the run; made, or continued.
        fields: as in ``configure``, like those that follow.
        recipe: name of the system.
        config: where the configuration starts from.
        workers: training processes.
        device: cpu or cuda.

    Raises:
        InputError: those of ``configure``; any mistake before a process starts; TRAIN_FAILED, TRAIN_NONFINITE.

    >>> tiny = petscale.configure({
    ...     "recipe.patch": (24, 24, 24), "recipe.patches_per_case": 1, "recipe.context_patches": 2,
    ...     "recipe.critic_channels": 2, "recipe.rois": (), "recipe.phase_samples": (4, 0, 0, 0),
    ...     "loop.log_every": 1, "split.validation_fraction": 0.3,
    ... })
    >>> run = petscale.train("cohort", "run", config=tiny)
    >>> run.weights.name
    'weights.safetensors'
    """
    from petscale.training import driver

    chosen = configure(fields, recipe=recipe, config=config, workers=workers, device=device)
    driver.train(Path(cohort), Path(run), chosen, command=_called("train", cohort, run))
    return Run(Path(run))


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

        records = [record for record in read_metrics(self.folder / METRICS) if record["event"] == "log"]
        return pandas.DataFrame(records).drop(columns="event", errors="ignore")


# ---- tuning ---------------------------------------------------------------------------------------------------------


def tune(
    cohort: PathLike,
    study: PathLike,
    fields: Mapping[str, Any] = NO_FIELDS,
    *,
    recipe: str | None = None,
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
) -> "Study":
    """Search settings of a system by trials scored on validation patients; the same call continues a search.

    Args:
        cohort: folder of the cohort; its test patients are never read.
        study: folder of the study.
        fields: as in ``configure``, of the configuration that trials vary; ``recipe`` and ``config`` too.
        recipe: name of the system.
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

    Raises:
        InputError: those of ``configure``; the TUNE_ codes, SET_NO_VALIDATION, SET_NO_LABELS; CFG_RANGE.

    >>> study = petscale.tune("cohort", "study", config=tiny, spaces=["losses"], trials=2)
    """
    from petscale.tuning.search import SweepConfig
    from petscale.tuning.sweep import sweep

    chosen = configure(fields, recipe=recipe, config=config, workers=workers, device=device)
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
    sweep(Path(cohort), Path(study), chosen, searched, command=_called("tune", cohort, study))
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
        """Return the configuration of the best trial, by the first objective.

        Raises:
            InputError: CFG_NO_FILE while no trial is complete.
        """
        from petscale import config as configs

        return configs.read(self.folder / BEST)

    @property
    def report(self) -> "Page":
        """The page with every trial."""
        return Page(self.folder / REPORT)


# ---- results --------------------------------------------------------------------------------------------------------


def synthesize(
    run: Run | PathLike,
    source: Image | PathLike | Case | tuple[Cohort | PathLike, str],
    *,
    image: str | None = None,
    units: nifti.Units = "SUVbw",
    weight_kg: float | None = None,
    dose_mbq: float | None = None,
    injection_time: str | None = None,
) -> Image:
    """Estimate the full-dose PET of a low-dose PET or, by a run that starts from CT, of a CT.

    Args:
        run: a finished run, or its folder.
        source: an image in SUVbw (or HU) in memory; a NIfTI file; a DICOM series' folder; or a case of a cohort, as
            ``cohort["name"]`` or (cohort, name), whose result is kept in the run's folder.
        image: of a case, the image to start from; default: the first one that the run was trained on.
        units: unit of a NIfTI PET.
        weight_kg: used instead of the header's, and for a NIfTI PET in Bq/mL.
        dose_mbq: used instead of the header's, and for a NIfTI PET in Bq/mL.
        injection_time: used instead of the header's.

    Returns:
        The estimate in SUVbw, 0 or above, (z, y, x): on the grid of a PET, or for a CT over the same volume at the
        voxel size that the run was trained at.

    Raises:
        InputError: CKPT_NONE, CKPT_DAMAGED; SET_WRONG_UNITS; and whatever is wrong with the input.

    >>> low = petscale.open_cohort("cohort")["phantom-001"]["low_drf20"]
    >>> made = petscale.synthesize(run, low)
    >>> made.units, made.grid.matches(low.grid), bool(made.voxels.min() >= 0)
    ('SUVbw', True, True)
    >>> same = petscale.synthesize(run, ("cohort", "phantom-001"), image="low_drf20")
    >>> bool((same.voxels == made.voxels).all())
    True
    """
    from petscale.data.ingest import Files, open_ct, open_pet
    from petscale.inference import open_run as open_trained
    from petscale.inference import synthesize_case, synthesize_image

    folder = _folder(run)
    trained = open_trained(folder)
    if isinstance(source, tuple):
        cohort, name = source
        source = open_cohort(cohort.folder if isinstance(cohort, Cohort) else cohort)[name]
    if isinstance(source, Case):
        start = image or trained.config.feed.low[0]
        return Image.of(synthesize_case(trained, folder, source.stored, start))
    with tempfile.TemporaryDirectory(prefix="petscale-") as name:
        scratch = Path(name)
        if isinstance(source, Image):
            return Image.of(synthesize_image(trained, source, scratch))
        if trained.units == HU:
            return Image.of(synthesize_image(trained, open_ct(Path(source), scratch), scratch))
        overrides = suv.Overrides(weight_kg=weight_kg, dose_mbq=dose_mbq, injection_time=injection_time)
        scan, _ = open_pet(Files(pet=Path(source), units=units, overrides=overrides), scratch)
        return Image.of(synthesize_image(trained, scan, scratch))


def evaluate(
    run: Run | PathLike,
    cohort: Cohort | PathLike,
    *,
    unet_score: Sequence[str] = (),
    judge_samples: int = 20_000,
    judge_channels: int = 16,
    detect: str = "",
    within: Sequence[str] = (),
    threshold_suv: float = 2.5,
    tolerance_mm: float = 0.0,
) -> dict[str, "Scores"]:
    """Synthesize a run's test cases and score them beside what needs no network.

    That is the untreated low dose and the best Gaussian filter of it, or for a CT the mean SUV of every HU.

    Args:
        run: a finished run.
        cohort: the cohort it was trained on, or another one that holds its test cases.
        unet_score: organs whose Dice by a U-Net trained on the run's full-dose images is wanted too (SGSGAN).
        judge_samples: patches that this U-Net is trained on; the default is for a GPU.
        judge_channels: its width; its levels have 2, 4, 8 and 16 times as many.
        detect: label of lesions that are to be detected in the synthesized PET (lesion).
        within: labels of the organs that are searched (liver); without it the whole body is.
        threshold_suv: a lesion is seen above it, on the real and on the synthesized PET.
        tolerance_mm: how far from a lesion a hit may lie.

    Returns:
        Name of the image that the run starts from -> its scores.

    Raises:
        InputError: SET_NO_TEST, SET_NO_LABELS, SET_CASE_CHANGED, CKPT_NONE, STORE_DAMAGED, CFG_SET.

    >>> scores = petscale.evaluate(run, "cohort")
    >>> list(scores)
    ['low_drf20']
    """
    from petscale.evaluation.run import evaluate_run, make_judge
    from trainers.metrics.detection import DetectionConfig
    from trainers.metrics.unet_score import UnetScoreConfig

    folder, place = _folder(run), _folder(cohort)
    judge = None
    if unet_score:
        config = UnetScoreConfig(rois=tuple(unet_score), samples=judge_samples, channels=judge_channels)
        judge = make_judge(folder, place, config)
    lesions = None
    if detect:
        lesions = DetectionConfig(
            lesion=detect, organs=tuple(within), threshold_suv=threshold_suv, tolerance_mm=tolerance_mm
        )
    elif within:
        raise InputError("CFG_SET", where="--within", found="given alone", remedy="say what to find: --detect lesion")
    found = evaluate_run(folder, place, judged_by=judge, lesions=lesions)
    return {name: Scores(evaluation) for name, evaluation in found.items()}


@dataclass(frozen=True)
class Scores:
    """Every score of a run's test cases, started from one kind of image.

    Args:
        evaluation: the scores as the platform keeps them.

    >>> scores["low_drf20"].images[-1], scores["low_drf20"].cases
    ('synthesized', ('phantom-001',))
    """

    evaluation: "Evaluation"

    @property
    def images(self) -> tuple[str, ...]:
        """Scored images in order: the untreated input first, the network's last, baselines between."""
        return self.evaluation.images

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the test cases."""
        return self.evaluation.cases

    def scores(self) -> "DataFrame":
        """Return every score: a row per case, image, region and definition, with the columns of ``scores.csv``.

        ``value`` is in ``units`` (``1`` for a pure number, NaN where a score is not defined); the columns after it say
        how it was computed.  Only scores whose definitions are equal may be compared.

        >>> rows = scores["low_drf20"].scores()
        >>> psnr = rows.query("metric == 'PSNR' and region == 'body' and preset == 'native'")
        >>> psnr["case"].unique().item(), psnr["units"].unique().item(), len(psnr)
        ('phantom-001', 'dB', 3)
        """
        import pandas

        def number(text: str) -> float:
            return float(text or "nan")

        text = io.StringIO(self.evaluation.csv())
        table = pandas.read_csv(text, dtype=str, keep_default_na=False)
        return table.assign(**{name: table[name].map(number) for name in ("value", "range_value") if name in table})

    def summary(self) -> "DataFrame":
        """Return mean and standard deviation over cases of every score.

        Columns: ``image``, ``region`` (``lesions`` stands for the mean over a case's lesions), ``kind``, ``mean``,
        ``sd`` (ddof 1, NaN for one case), ``num_cases``, and those of the definition as in ``scores``.

        >>> lines = scores["low_drf20"].summary()
        >>> chosen = lines.query("metric == 'PSNR' and region == 'body' and preset == 'native'")
        >>> chosen[["image", "num_cases", "units"]].values.tolist()[-1]
        ['synthesized', 1, 'dB']
        """
        import pandas

        rows = []
        for line in self.evaluation.summary():
            about = {"image": line.image, "region": line.region, "kind": line.kind}
            definition = {one.name: getattr(line.rule, one.name) for one in fields(line.rule)}
            definition["rule_region"] = definition.pop("region")
            rows.append(about | {"mean": line.mean, "sd": line.sd, "num_cases": line.num_cases} | definition)
        return pandas.DataFrame(rows)


def report(run: Run | PathLike, cohort: Cohort | PathLike) -> "Page":
    """Write a run's report from its scores (evaluating it first if need be): one HTML file that needs no network.

    Args:
        run: an evaluated run.
        cohort: the cohort it was evaluated on.

    Returns:
        The page; of a run that starts from several images, the first one's.

    Raises:
        InputError: those of ``evaluate``.

    >>> page = petscale.report(run, "cohort")
    >>> page.path.name
    'report.html'
    """
    from petscale.evaluation.run import read_evaluations
    from petscale.reporting.run import report_run

    folder, place = _folder(run), _folder(cohort)
    return Page(report_run(folder, place, read_evaluations(folder, place)))


@dataclass(frozen=True)
class Page:
    """A self-contained HTML page; it shows itself in a notebook.

    Args:
        path: of the file.

    >>> page._repr_html_().startswith("<iframe")
    True
    """

    path: Path

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its styles stay its own."""
        content = html.escape(self.path.read_text("utf-8"), quote=True)
        return f'<iframe srcdoc="{content}" style="width: 100%; height: 800px; border: 0"></iframe>'


def _folder(place: Run | Cohort | PathLike) -> Path:
    return place.folder if isinstance(place, Run | Cohort) else Path(place)


def _called(function: str, cohort: PathLike, folder: PathLike) -> str:
    """The call for the record, paths by their last component, since folders above may name a patient."""
    names = ", ".join(repr(Path(path).name) for path in (cohort, folder))
    return f"petscale.{function}({names}, ...)"
