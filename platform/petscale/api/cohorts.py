"""Cohorts made and read: phantoms, examinations and simulated scans in, images with their grid and tables out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from petscale.data.inspection import Inspection, inspect_cohort
from petscale.images import Image
from storage import nifti, reader, suv
from storage.errors import InputError
from storage.ingest import Outcome
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from storage.source import Interpolation

if TYPE_CHECKING:
    from pandas import DataFrame

PathLike = str | Path


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
    labels: PathLike = "",
    grid: Literal["pet", "ct"] = "pet",
    units: nifti.Units | None = None,
    names: str | Sequence[str] = (),
    weight_kg: float | None = None,
    dose_mbq: float | None = None,
    injection_time: str | None = None,
    layout: str = "",
    low: Sequence[str] = (),
    relation: Literal["thinned", "separate"] = "thinned",
    other_grids: Literal["refuse", "resample"] = "refuse",
    interpolation: Interpolation = "linear",
    patient: str = "",
    series: Sequence[str] = (),
    frames: str = "",
    frame_pairs: Sequence[str] = (),
    table: PathLike | None = None,
    exclude: Sequence[str] = (),
    keep: Sequence[str] = (),
    part: str = "",
    strict: bool = False,
    workers: int | None = None,
) -> "IngestResult":
    """Read DICOM or NIfTI examinations into a cohort, in SUV, at their native resolution.

    Args:
        source: a DICOM series' folder, a NIfTI file, a folder of examinations, or a cohort's recipe (YAML or JSON).
        cohort: folder of the cohort; made or added to.
        case: name of a single case; without it a keyed hash is used.
        pet: name of the PET inside each sub-folder; says that ``source`` holds many examinations.
        ct: the CT of one examination, or its name inside each sub-folder.
        mask: a lesion mask on the grid chosen; or its name inside each sub-folder.
        labels: a label map, DICOM SEG or RTSTRUCT on the grid chosen; or its name inside each sub-folder.
        grid: ``pet`` keeps the PET as it is and resamples the CT onto it; ``ct`` does the reverse.
        units: unit of a NIfTI PET; None: that of the JSON file beside it, else what its values leave no doubt about.
            DICOM says its own.
        names: names of labels, as ``1=liver,5=brain``, ``totalsegmentator``, ``autopet`` or a BIDS table; and
            ``folder``, to keep the folders' names as names of cases where these identify nobody.
        weight_kg: used instead of the header's; recorded.
        dose_mbq: used instead of the header's; recorded.
        injection_time: used instead of the header's, HH:MM[:SS] or ISO date-time; recorded.
        layout: ``udpet``, ``autopet``, ``lung``, ``bids``, ``study``, ``patterns``; by itself folders with ``pet``,
            else one examination.
        low: low doses as ``DRF=name`` or ``DRF=path``; a word in place of the DRF where it is not known.
        relation: ``thinned``: low doses hold counts of the full dose's own scan; ``separate``: other scans.
        other_grids: what becomes of a low dose on another grid than the full dose's.
        interpolation: how an image is put on another grid: ``linear``, or ``cubic`` splines, which keep more of a
            PET's peaks.
        patient: who the patient of one NIfTI examination is; with ``patterns``, the wildcard that tells it.
        series: which of several DICOM series, by number or words of its description, as ``pet=3``, ``ct=soft``.
        frames: of a dynamic or gated PET, in order of time: ``3`` for the third frame, ``3-6``, ``1,3-5`` or ``all``
            for a sum.
        frame_pairs: frames that become a low dose each, as ``["2", "5-6"]``, beside a full dose of all the others.
        table: a CSV, TSV or XLSX file of what headers lack, a row per patient, case or file.
        exclude: examinations to leave out, by the name of their folder.
        keep: examinations to take in although the data set's own list leaves them out.
        part: ``3/20`` for the third of twenty parts, in any order, several at once.
        strict: refuse cases that carry a note of weight too, and stop at the first refused case.
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
    from petscale.data.layouts.options import Options, label_names
    from petscale.data.recipe import find_source, keep_recipe
    from petscale.data.sources import part_name, plans_of

    words = (names,) if isinstance(names, str) else tuple(names)
    options = Options(
        pet=pet,
        low=tuple(low),
        ct=str(ct),
        mask=str(mask),
        labels=str(labels),
        label_names=label_names(words),
        relation=relation,
        patient=patient,
        series=tuple(series),
        frames=frames,
        frame_pairs=tuple(frame_pairs),
        grid=grid,
        other_grids=other_grids,
        interpolation=interpolation,
        units=units or "",
        exclude=tuple(exclude),
        keep=tuple(keep),
        overrides=suv.Overrides(weight_kg=weight_kg, dose_mbq=dose_mbq, injection_time=injection_time),
    )
    rows = Path(table) if table is not None else None
    named, _, recipe = find_source(Path(source), layout, options, rows, case, words)
    outcome = fill_what_can_be(
        "ingest",
        Path(cohort),
        plans_of(named, part),
        strict=strict,
        workers=workers,
        part=part_name(part),
        doubts="refuse" if strict else "refuse impossible",
        hashes_patients=True,
    )
    if recipe is not None:
        keep_recipe(recipe, Path(cohort))
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


def inspect(cohort: PathLike, *, page: PathLike | None = None) -> Inspection:
    """Return what a cohort holds: patients, doses, tracers, scanners, grids, SUV, labels, notes, and what stands out.

    Only small files are read, no voxel; for a page every image that it pictures is.

    Args:
        cohort: folder of the cohort.
        page: write a page with pictures of every case there, one HTML file that needs no network.

    Returns:
        Facts of every case; ``summary()`` and ``to_json()`` as plain values.

    Raises:
        InputError: STORE_NONE, STORE_DAMAGED, STORE_SCHEMA.

    >>> found = petscale.inspect("cohort")
    >>> found.summary()["patients"], found.summary()["images"]["low_drf20"]["doses"]
    (4, [{'drf': 20.0, 'relation': 'simulated', 'shares_noise': True, 'cases': 4}])
    >>> found.outliers, found.doubts
    ((), ())
    """
    found = inspect_cohort(Path(cohort))
    if page is not None:
        from petscale.reporting.cohort import write_cohort_page

        write_cohort_page(Path(page), Path(cohort), found)
    return found


def remove(cohort: PathLike, cases: str | Sequence[str], runs: Sequence[PathLike] = ()) -> tuple[str, ...]:
    """Remove cases from a cohort, as when a consent is withdrawn, and what runs derived from them.

    Args:
        cohort: folder of the cohort.
        cases: names of the cases, or one name.
        runs: folders of runs, folds or studies: what they hold of the cases is removed; those trained on them are
            named, for weights cannot be cleaned.

    Returns:
        A sentence for each thing that was done, and for each run that saw a case.

    Raises:
        InputError: SET_NO_CASE, CFG_RUN_FOLDER, STORE_NONE, STORE_BUSY, CLU_URL.

    >>> petscale.ingest("scan.nii.gz", "ingested", case="withdrawn").committed
    ('withdrawn',)
    >>> petscale.remove("ingested", "withdrawn")
    ('ingested: removed withdrawn',)
    >>> petscale.open_cohort("ingested").cases
    ('first',)
    """
    from petscale.data.removal import remove_cases

    names = [cases] if isinstance(cases, str) else list(cases)
    return tuple(remove_cases(Path(cohort), names, [Path(run) for run in runs]))


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
        it is unknown or the image has no dose), ``dose_relation`` (``full``, ``thinned``, ``separate``, ``frames``,
        ``simulated``, or empty), ``labels`` (names of the labels of a label image, separated by commas).

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
            dose = image.dose
            row |= {"drf": dose.drf if dose else float("nan"), "dose_relation": dose.relation if dose else ""}
            found.append({**row, "labels": ", ".join(labels)})
        return found


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
