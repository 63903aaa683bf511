"""What a run gives: synthesized images, scores as tables, a report that shows itself."""

import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from petscale.api.cohorts import Case, Cohort, PathLike, open_cohort
from petscale.api.training import Run
from petscale.folders import FOLDS
from petscale.images import Image
from petscale.shipped import located
from storage import integrity, nifti, suv
from storage.errors import InputError
from storage.source import HU

if TYPE_CHECKING:
    from pandas import DataFrame

    from petscale.calibrations import Kept
    from petscale.crossvalidation.best import Ranking
    from petscale.evaluation.scores import Evaluation
    from petscale.inference import Estimate, Estimator


Source = Image | PathLike | Case | tuple[Cohort | PathLike, str]


def synthesize(
    run: Run | PathLike,
    source: Source,
    *,
    runs: Sequence[Run | PathLike] = (),
    flips: Sequence[Literal["z", "y", "x"]] = (),
    image: str | None = None,
    units: nifti.Units = "SUVbw",
    weight_kg: float | None = None,
    dose_mbq: float | None = None,
    injection_time: str | None = None,
) -> Image:
    """Estimate the full-dose PET of a low-dose PET or, by a run that starts from CT, of a CT.

    With several runs, or mirror images of the scan, the result is the mean of their images; ``average`` gives their
    standard deviation beside it.

    Args:
        run: a finished run, or its folder; or a folder of ``petscale folds``, which stands for all of its folds.
        source: an image in SUVbw (or HU) in memory; a NIfTI file; a DICOM series' folder; or a case of a cohort, as
            ``cohort["name"]`` or (cohort, name), whose result is kept in the run's folder.
        runs: further runs to average over; a run that is named twice counts once.
        flips: axes along which the scan is mirrored too: one makes 2 images to average, two make 4, three make 8.
        image: of a case, the image to start from; default: the first one that the run was trained on.
        units: unit of a NIfTI PET.
        weight_kg: used instead of the header's, and for a NIfTI PET in Bq/mL.
        dose_mbq: used instead of the header's, and for a NIfTI PET in Bq/mL.
        injection_time: used instead of the header's.

    Returns:
        The estimate in SUVbw, 0 or above, (z, y, x): on the grid of a PET, or for a CT over the same volume at the
        voxel size that the run was trained at.  Its provenance holds, as ``differs_from_training``, in what the scan
        differs from those that the run was trained on.

    Raises:
        InputError: CKPT_NONE, CKPT_DAMAGED; SET_WRONG_UNITS, IMG_VOXEL_SIZE or IMG_UNITS for a scan that is too
            different from those trained on; SET_RUNS_DIFFER; CFG_NO_EFFECT; and whatever is wrong with the input.

    >>> low = petscale.open_cohort("cohort")["phantom-001"]["low_drf20"]
    >>> made = petscale.synthesize(run, low)
    >>> made.units, made.grid.matches(low.grid), bool(made.voxels.min() >= 0)
    ('SUVbw', True, True)
    >>> same = petscale.synthesize(run, ("cohort", "phantom-001"), image="low_drf20")
    >>> bool((same.voxels == made.voxels).all())
    True
    """
    from petscale.inference import synthesize_told

    options = (image, units, suv.Overrides(weight_kg=weight_kg, dose_mbq=dose_mbq, injection_time=injection_time))
    estimator = _opened(run, runs, flips)
    scan = _scan(source)
    if isinstance(scan, Case):
        _check(estimator, scan, *options)
        return Image.of(synthesize_told(estimator, folder_of(run), scan.stored, image))
    with _estimated(estimator, scan, *options) as estimate:
        return Image.of(estimate.mean)


def average(
    run: Run | PathLike,
    source: Source,
    *,
    runs: Sequence[Run | PathLike] = (),
    flips: Sequence[Literal["z", "y", "x"]] = (),
    image: str | None = None,
    units: nifti.Units = "SUVbw",
    weight_kg: float | None = None,
    dose_mbq: float | None = None,
    injection_time: str | None = None,
) -> "Average":
    """Do what ``synthesize`` does with several runs or mirror images, and give their standard deviation too.

    Nothing is kept, also of a case.  The arguments are those of ``synthesize``.

    Raises:
        InputError: CFG_NO_EFFECT for one run without flips, whose single image has no deviation; those of
            ``synthesize``.

    >>> both = petscale.average(run, ("cohort", "phantom-001"), flips=["x"])
    >>> both.mean.units, both.deviation.units, both.deviation.grid.matches(both.mean.grid)
    ('SUVbw', 'SUVbw', True)
    >>> bool((both.deviation.voxels >= 0).all()), both.mean.provenance["images_averaged"]
    (True, 2)
    """
    from petscale.averages import check_deviation

    estimator = _opened(run, runs, flips)
    check_deviation(estimator, Path("deviation"))
    overrides = suv.Overrides(weight_kg=weight_kg, dose_mbq=dose_mbq, injection_time=injection_time)
    with _estimated(estimator, _scan(source), image, units, overrides) as estimate:
        assert estimate.deviation is not None, "just checked"
        return Average(Image.of(estimate.mean), Image.of(estimate.deviation))


@dataclass(frozen=True)
class Average:
    """Several images of one scan, averaged.

    Args:
        mean: in SUVbw, 0 or above.
        deviation: standard deviation of the images in SUVbw (ddof 1), on the same grid.

    >>> float(both.deviation.voxels.max()) < float(both.mean.voxels.max())
    True
    """

    mean: Image
    deviation: Image


def _opened(
    run: Run | PathLike, runs: Sequence[Run | PathLike], flips: Sequence[Literal["z", "y", "x"]]
) -> "Estimator":
    from petscale.averages import open_estimator

    return open_estimator(folder_of(run), [folder_of(other) for other in runs], flips)


def _scan(source: Source) -> Image | PathLike | Case:
    if isinstance(source, tuple):
        cohort, name = source
        return open_cohort(cohort.folder if isinstance(cohort, Cohort) else cohort)[name]
    return source


def _check(
    estimator: "Estimator",
    scan: Image | PathLike | Case,
    image: str | None,
    units: nifti.Units,
    overrides: suv.Overrides,
) -> None:
    from petscale.inference import check_effect

    check_effect(estimator, overrides, image=image, stored=isinstance(scan, Case), read=isinstance(scan, Image))


@contextmanager
def _estimated(
    estimator: "Estimator",
    scan: Image | PathLike | Case,
    image: str | None,
    units: nifti.Units,
    overrides: suv.Overrides,
) -> Iterator["Estimate"]:
    """What is made of a scan, as long as its files lie on disk."""
    from petscale.data.ingest import Files, open_ct, open_pet
    from petscale.inference import synthesize_image
    from petscale.plausibility import tell

    _check(estimator, scan, image, units, overrides)
    with integrity.scratch() as scratch:
        if isinstance(scan, Case):
            start = image or estimator.config.feed.source[0]
            differences = estimator.check(scan.stored, start)
            tell(f"case {scan.stored.name}", differences)
            yield estimator.estimate(scan.stored, start, scratch, differences)
        elif isinstance(scan, Image):
            if scan.units != estimator.on.units:
                raise InputError(
                    "SET_WRONG_UNITS",
                    where="image",
                    found=f"in {scan.units}, this run starts from {estimator.on.units}",
                    remedy="give the kind of scan that the run was trained on, in that unit",
                )
            yield synthesize_image(estimator, scan, scratch)
        elif estimator.on.units == HU:
            yield synthesize_image(estimator, open_ct(Path(scan), scratch), scratch)
        else:
            files = Files(pet=Path(scan), units=units, units_from="layout", overrides=overrides)
            yield synthesize_image(estimator, open_pet(files, scratch)[0], scratch)


def evaluate(
    run: Run | PathLike,
    cohort: Cohort | PathLike,
    *,
    unet_score: Sequence[str] = (),
    unet_score_sg: bool = False,
    segmenter_samples: int = 20_000,
    segmenter_channels: int = 16,
    detect: str = "",
    within: Sequence[str] = (),
    threshold_suv: float = 2.5,
    tolerance_mm: float = 0.0,
    task: bool = False,
    lesion_mm: float = 12.0,
    lesion_contrast: float = 1.6,
    task_scans: int = 2,
    source: Sequence[str] = (),
    preset: Sequence[str] = (),
    others: Sequence[Cohort | PathLike] = (),
    runs: Sequence[Run | PathLike] = (),
    flips: Sequence[Literal["z", "y", "x"]] = (),
) -> dict[str, "Scores"]:
    """Synthesize a run's test cases and score them beside what needs no network.

    That is the untreated low dose and its best filters, or for a CT the mean SUV of every HU.
    A cohort that holds none of the run's test cases is an external validation: every case that is new to the run is
    scored, and the results stand in the run's ``external`` folder.

    Args:
        run: a finished run.
        cohort: the cohort it was trained on, or another one.
        unet_score: organs whose Dice by a U-Net trained on the run's full-dose images is wanted too (SGSGAN).
        unet_score_sg: whether the network that guided the run finds organs in the synthesized image, too (SGSGAN).
        segmenter_samples: patches that the U-Net of ``unet_score`` is trained on; the default is for a GPU.
        segmenter_channels: its width; its levels have 2, 4, 8 and 16 times as many.
        detect: label of lesions that are to be detected in the synthesized PET (lesion).
        within: labels of the organs that are searched (liver); without it the whole body is.
        threshold_suv: a lesion is seen above it, on the real and on the synthesized PET.
        tolerance_mm: how far from a lesion a hit may lie.
        task: whether lesions are put into the truth of simulated scans, and looked for by an observer.
        lesion_mm: their diameter.
        lesion_contrast: their uptake over that around them, above 1.
        task_scans: pairs of scans of every case, with and without these lesions.
        source: images to start from, where the cohort calls them otherwise than the run's own.
        preset: conventions of scoring beside the run's own: udpet2022, s3pet, sgsgan, cascade.
        others: further cohorts, as they were given to ``train``.
        runs: further runs or folds: the mean of their images is scored, each case by the runs that never saw it.
        flips: axes along which every scan is mirrored too: the mean over all mirror images is scored.

    Returns:
        Name of the image that the run starts from -> its scores; of a mean, patient by patient.

    Raises:
        InputError: SET_NO_TEST, SET_NO_LABELS, SET_CASE_CHANGED, CKPT_NONE, STORE_DAMAGED, CFG_SET, CFG_CHOICE;
            SET_RUNS_DIFFER, and CFG_NO_EFFECT for ``unet_score``, ``unet_score_sg``, ``detect`` or
            ``task`` of a mean;
            for another cohort SET_NO_IMAGE, IMG_VOXEL_SIZE, SET_COHORT_NAME.

    >>> scores = petscale.evaluate(run, "cohort")
    >>> list(scores)
    ['low_drf20']
    """
    from petscale.evaluation.averages import evaluate_average
    from petscale.evaluation.run import evaluate_run, guide_of_run, make_segmenter
    from petscale.evaluation.task import TaskConfig
    from trainers.metrics.detection import DetectionConfig
    from trainers.organ_segmenter import OrganSegmenterConfig

    folder, place, rest = folder_of(run), folder_of(cohort), [folder_of(other) for other in others]
    if runs or flips or (folder / FOLDS).is_file():
        for option, given in (
            ("--unet-score", unet_score),
            ("--unet-score-sg", unet_score_sg),
            ("--detect", detect),
            ("--within", within),
            ("--task", task),
        ):
            if given:
                raise InputError(
                    "CFG_NO_EFFECT", where=option, found="not scored for a mean of runs", remedy="leave it out"
                )
        means = evaluate_average(
            [folder, *map(folder_of, runs)], place, flips=flips, others=rest, sources=source, presets=preset
        )
        return {name: Scores(evaluation) for name, evaluation in means.items()}
    guide = guide_of_run(folder) if unet_score_sg else None
    segmenter = None
    if unet_score:
        config = OrganSegmenterConfig(rois=tuple(unet_score), samples=segmenter_samples, channels=segmenter_channels)
        segmenter = make_segmenter(folder, place, config, others=rest)
    lesions = None
    if detect:
        lesions = DetectionConfig(
            lesion=detect, organs=tuple(within), threshold_suv=threshold_suv, tolerance_mm=tolerance_mm
        )
    elif within:
        raise InputError("CFG_SET", where="--within", found="given alone", remedy="say what to find: --detect lesion")
    put_in = TaskConfig(lesion_mm=lesion_mm, lesion_contrast=lesion_contrast, scans=task_scans)
    if not task and put_in != TaskConfig():
        where = "--lesion-mm, --lesion-contrast, --task-scans"
        raise InputError("CFG_SET", where=where, found="given without --task", remedy="add --task: it puts lesions in")
    found = evaluate_run(
        folder,
        place,
        others=rest,
        segmenter=segmenter,
        guide=guide,
        lesions=lesions,
        put_in=put_in if task else None,
        sources=source,
        presets=preset,
    )
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
        ('phantom-001', 'dB', 7)
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
            about: dict[str, object] = {"image": line.image, "region": line.region, "kind": line.kind}
            definition = line.definition.sentences()
            definition["rule_region"] = definition.pop("region")
            rows.append(about | {"mean": line.mean, "sd": line.sd, "num_cases": line.num_cases} | definition)
        return pandas.DataFrame(rows)


def export(
    folder: Run | Cohort | PathLike,
    case: PathLike,
    file: PathLike | None = None,
    image: str = "",
    tile: tuple[int, int, int] | None = None,
) -> tuple[Path, ...]:
    """Write one image of a case as NIfTI, MHA, OME-Zarr or DICOM, in its own unit and on its own grid; or a graph.

    Args:
        folder: of a cohort, or of a run for what it has synthesized; or a file of ``card``, or the name of weights that
            come with petscale.
        case: name of the case; after a card, a new ``.onnx`` file, and nothing else but ``tile``.
        file: a new ``.nii`` or ``.nii.gz``, beside which a JSON file states the unit, a new ``.mha`` or ``.zarr``, or a
            new folder for DICOM: a series, of labels a segmentation (SEG) over the series of ``full``.
        image: name of the image; empty for ``full``, or the only one there is.
        tile: edges (z, y, x) of a graph's tiles in voxels, along axes where the system leaves them free.

    Returns:
        What was written.

    Raises:
        InputError: SET_NO_CASE, SET_NO_IMAGE, IMG_FORMAT, LBL_VALUES, DISK_EXISTS, STORE_NONE; DISK_FULL and its kin;
            CFG_ARGUMENT, CFG_NO_EFFECT; those of ``cards.graph.export_graph``.

    >>> petscale.export("cohort", "phantom-001", "ct.nii.gz", "ct")
    (PosixPath('ct.nii.gz'), PosixPath('ct.json'))
    >>> petscale.export(run, "phantom-001", "restored.nii.gz", "synth_low_drf20")[0].name
    'restored.nii.gz'
    """
    from petscale.data.export import export_image

    if file is None:
        from petscale.cards.graph import export_graph

        model = _graph_file(Path(case), image)
        export_graph(located(folder_of(folder)), model, tile)
        return (model,)
    if tile is not None:
        raise InputError("CFG_NO_EFFECT", where="--tile", found="an image has no tiles", remedy="leave it out")
    return export_image(folder_of(folder), str(case), Path(file), image)


def _graph_file(file: Path, image: str) -> Path:
    """The file of a graph, from words that name no image's file."""
    if file.suffix != ".onnx":
        raise InputError(
            "CFG_ARGUMENT",
            where="FILE",
            found="missing",
            remedy="petscale export COHORT CASE FILE for an image, petscale export CARD MODEL.onnx for a graph",
        )
    if image:
        raise InputError("CFG_NO_EFFECT", where="--image", found="a graph is of no image", remedy="leave it out")
    return file


def calibrate(
    run: Run | PathLike,
    cohort: Cohort | PathLike,
    *,
    others: Sequence[Cohort | PathLike] = (),
    runs: Sequence[Run | PathLike] = (),
    flips: Sequence[Literal["z", "y", "x"]] = (),
) -> "Calibration":
    """Learn on validation patients how wide a standard deviation must be, and check it on test patients.

    From then on ``average`` and ``petscale synthesize --deviation`` of the same runs and mirror images give the
    calibrated one.

    Args:
        run: a finished run that kept two patients or more for validation; it keeps the calibration.
        cohort: the cohort it was trained on.
        others: further cohorts that it was trained on.
        runs: further runs of the same split.
        flips: axes along which every scan is mirrored too.

    Raises:
        InputError: SET_NO_VALIDATION, CFG_NO_EFFECT for one run without flips, SET_RUNS_DIFFER, SET_CASE_CHANGED.

    >>> petscale.calibrate(run, "cohort", flips=["x"])
    Traceback (most recent call last):
    ...
    storage.errors.InputError: SET_NO_VALIDATION calibrate: the run kept no patients for validation; train with ...
    """
    from petscale import calibrations
    from petscale.evaluation import calibrating

    home = folder_of(run)
    folders = [home, *(folder_of(one) for one in runs)]
    name, kept = calibrating.calibrate(
        folders, folder_of(cohort), flips=flips, others=[folder_of(one) for one in others]
    )
    return Calibration(calibrations.write(home, name, kept), kept)


@dataclass(frozen=True)
class Calibration:
    """A calibration of standard deviations.

    Args:
        path: of its file, in the run's folder.
        kept: what it holds.

    Example, of five validation patients and no test patient:

    >>> from pathlib import Path
    >>> from petscale.calibrations import Kept
    >>> from trainers.metrics import calibration
    >>> numbers = calibration.Calibration((calibration.Band(0.0, 0.1, 2.0, 5),))
    >>> kept = Kept(numbers, "", (), "2 mirror images", ("low_drf20",), 5, (), (), 0)
    >>> found = petscale.Calibration(Path("calibration/mean.json"), kept)
    >>> found.verdict.partition(".")[0]
    'Not checked: no test patient'
    >>> found.table()[["low_suv", "noise_suv", "factor"]].values.tolist()
    [[0.0, 0.1, 2.0]]
    """

    path: Path
    kept: "Kept"

    @property
    def verdict(self) -> str:
        """Whether the intervals hold as much of the test patients' scans as they should."""
        from petscale.evaluation.calibrating import verdict

        return verdict(self.kept)

    def table(self) -> "DataFrame":
        """Return a row per band of SUV: ``low_suv``, ``noise_suv``, ``factor``, ``validation`` and ``test`` coverage.

        Coverage is the share of voxels that intervals of 90 % hold, mean over patients; NaN where none was looked at.
        """
        import pandas

        held = [{one.low_suv: one.at_level for one in some} for some in (self.kept.learned, self.kept.checked)]
        rows = [
            {
                "low_suv": band.low_suv,
                "noise_suv": band.noise_suv,
                "factor": band.factor,
                "validation": held[0].get(band.low_suv, float("nan")),
                "test": held[1].get(band.low_suv, float("nan")),
            }
            for band in self.kept.calibration.bands
        ]
        return pandas.DataFrame(rows)


def best(runs: Sequence[Run | PathLike], *, cohort: Cohort | PathLike | None = None) -> "Choice":
    """Compare runs, or folds, of the same patients and name the best, by PSNR inside the body.

    Folds are compared by all patients, each scored by the run that never saw him or her; single runs by their test
    patients, which ``statement`` then says, or with a cohort by their validation patients.  Means that ``evaluate`` has
    scored with ``runs`` or ``flips`` take part.

    Args:
        runs: evaluated runs, or folders of folds.
        cohort: the cohort of single runs, to score their validation patients on.

    Raises:
        InputError: SET_RUNS_DIFFER, SET_EVALUATION, SET_NO_VALIDATION, CFG_NO_EFFECT, CFG_RUN_FOLDER, CFG_RANGE.

    >>> _ = petscale.evaluate(run, "cohort", flips=["x"])
    >>> found = petscale.best([run])
    >>> sorted(found.table()["name"]), found.table()["patients"].tolist()
    (['run', 'run, mirrored along x'], [1, 1])
    >>> found.statement[:57]
    'WARNING: compared by the 1 test patient of a single split'
    """
    from petscale.crossvalidation.best import rank

    return Choice(rank([folder_of(run) for run in runs], None if cohort is None else folder_of(cohort)))


@dataclass(frozen=True)
class Choice:
    """Runs or folds from the best to the worst.

    Args:
        ranking: the comparison as the platform keeps it.

    >>> found.verdict.split(":")[0]
    'best'
    """

    ranking: "Ranking"

    @property
    def best(self) -> tuple[Path, ...]:
        """Folders of the best; several for a mean."""
        return self.ranking.best.folders

    @property
    def verdict(self) -> str:
        """Which is the best, by how much, and whether that may be chance."""
        return self.ranking.verdict()

    @property
    def statement(self) -> str:
        """Whose scores these are, and what follows from that."""
        return self.ranking.statement

    def table(self) -> "DataFrame":
        """Return a row per candidate, the best first.

        Columns: ``name``, ``patients``, ``psnr_body_db`` and ``psnr_lesions_db`` (means over patients, NaN without
        lesions), and of all but the best ``best_over_it_db`` with ``p_value`` (Wilcoxon, NaN for fewer than six).

        >>> found.table().columns.tolist()
        ['name', 'patients', 'psnr_body_db', 'psnr_lesions_db', 'best_over_it_db', 'p_value']
        """
        import numpy as np
        import pandas

        rows = []
        for one, gain in zip(self.ranking.candidates, (None, *self.ranking.margins), strict=True):
            lesions = list(one.lesions_db.values())
            rows.append(
                {
                    "name": one.name,
                    "patients": len(one.psnr_db),
                    "psnr_body_db": float(np.mean(list(one.psnr_db.values()))),
                    "psnr_lesions_db": float(np.mean(lesions)) if lesions else float("nan"),
                    "best_over_it_db": gain.mean if gain else float("nan"),
                    "p_value": float("nan") if gain is None or gain.p_value is None else gain.p_value,
                }
            )
        return pandas.DataFrame(rows)


def report(
    run: Run | PathLike,
    cohort: Cohort | PathLike,
    *,
    others: Sequence[Cohort | PathLike] = (),
    page_mb: float = 20.0,
    pdf: bool = False,
    deviations: PathLike | None = None,
) -> "Page":
    """Write a run's report from its scores (evaluating it first if need be): one HTML file that needs no network.

    Args:
        run: an evaluated run, or a folder of folds: one page about all of its patients.
        cohort: the cohort it was evaluated on, its own or another one.
        others: further cohorts, as they were given to ``evaluate``.
        page_mb: how large a page may become in MB (10^6 bytes): its viewer takes what the rest leaves; 0 for no viewer.
        pdf: print every page as PDF beside it too, by a Chromium, Chrome or Edge of this machine.
        deviations: folder of CASE.nii.gz, standard deviations in SUV for the viewer, as synthesize writes them.

    Returns:
        The page; of a run that starts from several images, the first one's.

    Raises:
        InputError: those of ``evaluate``; CFG_RANGE, CFG_BROWSER, IMG_NO_FILE, IMG_GRID.

    >>> page = petscale.report(run, "cohort")
    >>> page.path.name
    'report.html'
    """
    from petscale.evaluation.run import read_evaluations
    from petscale.reporting.folds import report_folds
    from petscale.reporting.options import ReportOptions
    from petscale.reporting.run import report_run

    options = ReportOptions(page_mb, pdf, None if deviations is None else Path(deviations))

    folder, place, rest = folder_of(run), folder_of(cohort), [folder_of(other) for other in others]
    if (folder / FOLDS).is_file():
        return Page(report_folds(folder, place, others=rest, options=options))
    evaluations = read_evaluations(folder, place, others=rest)
    return Page(report_run(folder, place, evaluations, others=rest, options=options))


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


def folder_of(place: Run | Cohort | PathLike) -> Path:
    """Return the folder of a run or a cohort, opened or named."""
    return place.folder if isinstance(place, Run | Cohort) else Path(place)
