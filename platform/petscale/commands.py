"""The commands: one function each, its signature the arguments, its body the call of the code behind it.

Nothing heavy is imported before a command runs: `petscale --help` and `petscale verify` load neither torch nor Ray.
"""

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from petscale.console import console
from petscale.shipped import located
from storage import nifti, suv
from storage.errors import InputError, printable
from storage.lowdose import SCANNERS, LowDoseConfig
from storage.phantom import ADULT, PhantomConfig
from storage.source import HU, Interpolation

if TYPE_CHECKING:
    from petscale.config import RunConfig


# Spelt --scan NAME, beside the options --scan.FIELD whose defaults it changes.
ScannerName = Annotated[Literal["generic", "quadra", "uexplorer"], arg(name="scan")]


def recorded() -> str:
    """What was typed, for the record: paths by their last component, since folders above may name a patient."""
    return "petscale " + shlex.join(_without_folders(word) for word in sys.argv[1:])


def _without_folders(word: str) -> str:
    before = word.partition(os.sep)[0]
    option = before[: before.rfind("=") + 1]  # --run=... and section.field=...
    value = word.removeprefix(option)
    return word if "://" in value else option + (Path(value).name or value)


def demo(folder: Path = Path("demo"), recipe: Literal["restore", "sgsgan"] = "restore", seed: int = 0) -> None:
    """Make a phantom cohort, simulate low dose, train, synthesize, evaluate and write a report, all in minutes.

    Args:
        folder: where everything is written; run the same command again to continue.
        recipe: the system that is trained.
        seed: random seed of patients, scans and training.
    """
    from petscale.data.cohorts import fill_cohort
    from petscale.data.phantom import phantom_plans
    from petscale.evaluation.run import evaluate_run
    from petscale.experiments import runs
    from petscale.experiments.runs import DEMO_DRFS, DEMO_PATIENTS, demo_phantom, demo_scan
    from petscale.reporting.run import report_run
    from petscale.training import driver

    plans = phantom_plans(DEMO_PATIENTS, demo_phantom(seed), demo_scan(seed), DEMO_DRFS)
    cohort, run = folder / "cohort", folder / "run"
    fill_cohort("phantoms", cohort, plans, strict=True, workers=None)
    driver.train(cohort, run, runs.DEMOS[recipe](seed), command=recorded())
    print(report_run(run, cohort, evaluate_run(run, cohort)).absolute())


def phantom(
    cohort: Positional[Annotated[Path, arg(metavar="COHORT")]],
    cases: int = 6,
    body: PhantomConfig = PhantomConfig(),  # noqa: B008
    scanner: ScannerName = "generic",
    scan: LowDoseConfig = LowDoseConfig(),  # noqa: B008
    drf: tuple[float, ...] = (4.0, 20.0, 100.0),
    realisations: int = 1,
    layout: Literal["", "udpet", "autopet", "lung", "bids"] = "",
    workers: int | None = None,
) -> None:
    """Make a cohort of phantom patients with simulated full-dose and low-dose scans.

    Args:
        cohort: folder of the cohort; made or added to.
        cases: patients; their seeds count up from body.seed.
        body: the phantom.
        scanner: whose noise is simulated: quadra and uexplorer set other defaults of --scan.*, fitted to these
            scanners' patients, and of --body.*, an adult of natural length in voxels of 1.65 mm, which takes an hour.
        scan: the scanner and its counts; scan.drf is replaced by the values of drf.
        drf: dose reduction factors; --drf without a value makes no low dose, for training from CT.
        realisations: noise realisations of each dose.
        layout: write files laid out as a public data set instead of a cohort, to be ingested by the same --layout.
        workers: parallel tasks.
    """
    from petscale.data.cohorts import fill_cohort
    from petscale.data.phantom import phantom_plans
    from petscale.data.trees import write_tree

    if layout:
        write_tree(layout, cohort, cases, body, scan, drf)
        print(cohort)
        return
    fill_cohort("phantoms", cohort, phantom_plans(cases, body, scan, drf, realisations), strict=True, workers=workers)


def simulate(
    source: Positional[Annotated[Path, arg(metavar="SOURCE")]],
    cohort: Positional[Annotated[Path, arg(metavar="COHORT")]],
    drf: tuple[float, ...] = (4.0, 20.0, 100.0),
    truth: str = "full",
    scanner: ScannerName = "generic",
    scan: LowDoseConfig = LowDoseConfig(),  # noqa: B008
    realisations: int = 1,
    workers: int | None = None,
) -> None:
    """Make a cohort of simulated scans whose truth is an image of another cohort.

    Args:
        source: the cohort with the real or phantom scans.
        cohort: the new cohort.
        drf: dose reduction factors.
        truth: image of the source cohort that is taken as the true activity.
        scanner: whose noise is simulated: quadra and uexplorer set other defaults of --scan.*, fitted to these
            scanners' patients in voxels of 1.65 mm.
        scan: the scanner and its counts.
        realisations: noise realisations of each dose.
        workers: parallel tasks.
    """
    from petscale.data.cohorts import fill_cohort
    from petscale.data.simulate import simulation_plans

    plans = simulation_plans(source, truth, scan, drf, realisations)
    fill_cohort("simulate", cohort, plans, strict=False, workers=workers)


def ingest(
    source: Positional[Annotated[Path, arg(metavar="SOURCE")]],
    cohort: Positional[Annotated[Path, arg(metavar="COHORT")]],
    case: str | None = None,
    pet: str = "",
    ct: str = "",
    mask: str = "",
    labels: str = "",
    grid: Literal["pet", "ct"] = "pet",
    units: nifti.Units | None = None,
    names: tuple[str, ...] = (),
    weight_kg: float | None = None,
    dose_mbq: float | None = None,
    injection_time: str | None = None,
    layout: str = "",
    low: tuple[str, ...] = (),
    relation: Literal["thinned", "separate"] = "thinned",
    other_grids: Literal["refuse", "resample"] = "refuse",
    interpolation: Interpolation = "linear",
    patient: str = "",
    series: tuple[str, ...] = (),
    frames: str = "",
    frame_pairs: tuple[str, ...] = (),
    table: Path | None = None,
    exclude: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
    part: str = "",
    dry_run: bool = False,
    strict: bool = False,
    workers: int | None = None,
) -> None:
    """Read DICOM or NIfTI examinations into a cohort, in SUV, at their native resolution.

    One examination: SOURCE is its PET (a DICOM folder or a NIfTI file), --ct and --mask are paths.
    Many: SOURCE is a folder of examinations in a --layout, or with one sub-folder each that names its files alike.

    Args:
        source: a DICOM series' folder, a NIfTI file, a folder of examinations, or a cohort's recipe (YAML or JSON).
        cohort: folder of the cohort; made or added to.
        case: name of a single case; without it a keyed hash is used.
        pet: name of the full dose's PET inside each sub-folder, or with --layout patterns its path below SOURCE.
        ct: the CT; where one folder holds PET and CT, name that folder again, or . inside each sub-folder.
        mask: a lesion mask on the chosen grid; every value above 0 is lesion.
        labels: a label map, DICOM SEG or RTSTRUCT on the chosen grid; --names says what its values are.
        grid: pet keeps the PET as it is and resamples the CT onto it; ct does the reverse.
        units: unit of a NIfTI PET; without it the file beside it is asked, then its values, which must leave no doubt.
        names: names of labels, as 1=liver,5=brain, totalsegmentator, autopet or a BIDS table; and folder, to keep the
            folders' names as names of cases where these identify no patient.
        weight_kg: replaces the header's value; recorded.
        dose_mbq: replaces the header's value; recorded.
        injection_time: replaces the header's value, HH:MM[:SS] or ISO date-time; recorded.
        layout: udpet, autopet, lung, bids, study, patterns; by itself folders with --pet, else one examination.
        low: low doses as DRF=name or DRF=path; a word in place of the DRF where it is not known.
        relation: thinned: low doses hold counts of the full dose's own scan; separate: other scans of the patient.
        other_grids: what becomes of a low dose on another grid than the full dose's.
        interpolation: how an image is put on another grid: linear, or cubic splines, which keep more of a PET's peaks.
        patient: who the patient of one NIfTI examination is; with --layout patterns, the wildcard that tells it.
        series: which of several DICOM series, by number or words of its description, as pet=3 ct=soft.
        frames: of a dynamic or gated PET, in order of time: 3 for the third frame, 3-6, 1,3-5 or all for a sum.
        frame_pairs: frames that become a low dose, as 2 or 2 5-6, beside a full dose of all the others.
        table: a CSV, TSV or XLSX file of what headers lack, a row per patient, case or file.
        exclude: examinations to leave out, by the name of their folder.
        keep: examinations to take in although the data set's own list leaves them out.
        part: 3/20 for the third of twenty parts, in any order, several at once.
        dry_run: show what would be ingested, and write nothing.
        strict: refuse cases that carry a note of weight too, and stop at the first case that is refused.
        workers: parallel tasks.
    """
    from petscale.data.cohorts import fill_cohort
    from petscale.data.layouts.options import Options, label_names
    from petscale.data.preview import preview
    from petscale.data.recipe import find_source, keep_recipe
    from petscale.data.sources import doubts, part_name, plans_of

    options = Options(
        pet=pet,
        low=low,
        ct=ct,
        mask=mask,
        labels=labels,
        label_names=label_names(names),
        relation=relation,
        patient=patient,
        series=series,
        frames=frames,
        frame_pairs=frame_pairs,
        grid=grid,
        other_grids=other_grids,
        interpolation=interpolation,
        units=units or "",
        exclude=exclude,
        keep=keep,
        overrides=suv.Overrides(weight_kg=weight_kg, dose_mbq=dose_mbq, injection_time=injection_time),
    )
    named, tree, recipe = find_source(source, layout, options, table, case, names)
    plans = plans_of(named, part)
    if dry_run:
        shown, refused = preview([one for one in named if one.case in plans], tree)
        for line in (*shown, f"{len(plans)} cases, {refused} of them would be refused; nothing was written"):
            console.print(line, markup=False, soft_wrap=True)
        return
    for line in doubts(named, tree):
        console.print(line, markup=False, soft_wrap=True)
    try:
        fill_cohort(
            "ingest",
            cohort,
            plans,
            strict=strict,
            workers=workers,
            part=part_name(part),
            folders={one.case: one.examination.key for one in named},
            doubts="refuse" if strict else "refuse impossible",
            hashes_patients=True,
        )
    finally:
        if recipe is not None and (cohort / "zarr.json").is_file():
            keep_recipe(recipe, cohort)


def verify(cohort: Positional[Annotated[Path, arg(metavar="COHORT")]]) -> None:
    """Read every byte of a cohort and name whatever is flipped, missing, truncated, swapped or foreign.

    Args:
        cohort: folder of the cohort.
    """
    from storage.reader import open_cohort
    from storage.verification import verify as prove

    names = open_cohort(cohort).cases
    damage = prove(cohort)
    for case, found in damage.items():
        for one in found:
            console.print(f"damaged: {printable(f'{case}/{one.key}: {one.problem}')}", markup=False, soft_wrap=True)
    if damage:
        raise InputError(
            "STORE_DAMAGED",
            where=cohort.name,
            found=f"{len(damage)} of {len(names)} cases are damaged: {', '.join(damage)}",
            remedy="restore them from a copy, or take them out with `petscale remove` and ingest them again",
        )
    for name in names:
        print(name)
    print(f"{cohort}: {len(names)} cases, whole")


def inspect(
    cohort: Positional[Annotated[Path, arg(metavar="COHORT")]],
    cases: bool = False,
    json: Path | None = None,
    page: Path | None = None,
) -> None:
    """Show what a cohort holds: patients, doses, tracers, scanners, grids, SUV, labels, notes, and what stands out.

    Only small files are read, no voxel; --page reads every image that it pictures.  Of a file of petscale card it shows
    what its weights are for, what they were trained on, how they did, and their limits.

    Args:
        cohort: folder of the cohort, a file of petscale card, or the name of weights that come with petscale
            (restore-small).
        cases: show a line per case too.
        json: write all of it into this file.
        page: write a page with pictures of every case, one HTML file that needs no network.
    """
    from petscale.data.inspection import inspect_cohort
    from petscale.data.inspection_table import screen, show
    from storage.integrity import write_json

    _check_new(json, page)
    cohort = located(cohort)
    if cohort.suffix == ".safetensors":
        from petscale.cards import table
        from petscale.cards.card import read_card

        if cases or page is not None:
            raise InputError(
                "CFG_NO_EFFECT",
                where="--cases" if cases else "--page",
                found=f"{cohort.name} is no cohort",
                remedy="leave it out",
            )
        card = read_card(cohort)
        table.show(cohort.name, card, screen())
        if json is not None:
            write_json(json, card.to_json())
        return
    found = inspect_cohort(cohort)
    show(found, screen(), each=cases)
    if json is not None:
        write_json(json, found.to_json())
    if page is not None:
        from petscale.reporting.cohort import write_cohort_page

        write_cohort_page(page, cohort, found)


def compare(
    first: Positional[Annotated[Path, arg(metavar="RUN|COHORT")]],
    second: Positional[Annotated[Path, arg(metavar="RUN|COHORT")]],
    others: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN")]] = (),
    external: str = "",
    json: Path | None = None,
    page: Path | None = None,
) -> None:
    """Compare runs and baselines on the patients that all were tested on; or say what two cohorts share.

    Of evaluated runs, or folds: means with 95 % intervals, every run tested against the best baseline and against the
    other runs, p corrected after Holm.  Of two cohorts: which cases and patients both have, and in what their images
    differ.

    Args:
        first: an evaluated run, a folder of petscale folds, or a cohort.
        second: another one of the same kind.
        others: further runs.
        external: of runs, the name of a cohort on which they were evaluated as on another one, to compare the scores
            of that; without it those of the runs' own test cases.
        json: write all of it into this file.
        page: of runs, write a page with all of it, one HTML file that needs no network.
    """
    from petscale.data import comparison
    from petscale.data.inspection_table import screen
    from storage.integrity import write_json

    _check_new(json, page)
    folders = [first, second, *others]
    if not comparison.are_runs(folders):
        comparison.check_effect(external, page)
        found = comparison.compare_cohorts(first, second)
        comparison.show(found, screen())
        if json is not None:
            write_json(json, found.to_json())
        return
    from petscale.evaluation.run_comparison import compare_runs
    from petscale.reporting.run_comparison import as_json, show, write_comparison_page

    compared = compare_runs(folders, external)
    show(compared, screen())
    if json is not None:
        write_json(json, as_json(compared))
    if page is not None:
        write_comparison_page(page, compared)


def export(
    folder: Positional[Annotated[Path, arg(metavar="COHORT|RUN|CARD")]],
    case: Positional[Annotated[str, arg(metavar="CASE|MODEL.onnx")]],
    file: Positional[Annotated[Path | None, arg(metavar="FILE")]] = None,
    image: str = "",
    tile: tuple[int, int, int] | None = None,
) -> None:
    """Write one image of a case as a file of another kind, or a card's network as an ONNX graph.

    An image keeps its own unit and grid; of a run, it is what the run has synthesized of the case.  A graph makes one
    tile, and runs with onnxruntime alone: docs/how-to-onnx.md.

    Args:
        folder: a cohort or a run, or a file of petscale card, or the name of weights that come with petscale.
        case: name of the case; after a card, a new .onnx file.
        file: a new .nii or .nii.gz, beside which a JSON file states the unit, a new .mha or .zarr, or a new folder for
            DICOM: a series, of labels a segmentation (SEG) over the series of full.
        image: name of the image; without it full, or the only one there is.
        tile: edges (z y x) of a graph's tiles in voxels, along axes where the system leaves them free.
    """
    from petscale.api import export

    for path in export(folder, case, file, image, tile):
        print(path)


def remove(
    cohort: Positional[Annotated[Path, arg(metavar="COHORT")]],
    cases: Positional[Annotated[tuple[str, ...], arg(metavar="CASE")]],
    runs: tuple[Path, ...] = (),
) -> None:
    """Remove cases from a cohort, as when a consent is withdrawn, and what runs derived from them.

    Also takes out a case whose folder was deleted by hand, and continues a removal that was killed.

    Args:
        cohort: folder of the cohort.
        cases: names of the cases.
        runs: folders of runs, folds or studies: what they hold of the cases is removed; those that were trained on them
            are named, for weights cannot be cleaned.
    """
    from petscale.data.removal import remove_cases

    for line in remove_cases(cohort, cases, runs):
        print(line)
    if not runs:
        console.print("copies in runs and the runs that saw the cases: name their folders with --runs", markup=False)


@dataclass(frozen=True, kw_only=True)
class SystemOptions:
    """What commands that work with a run's configuration share.

    Args:
        cohort: folder of the cohort.
        others: folders of further cohorts that are trained on too; a case name of several is written cohort.case.
        recipe: name of the system; each system has its own defaults.
        defaults: whose settings hold where none is given: practice, those that the system states, or the paper's; the
            same for a system that has none of practice.
        config: a YAML or JSON file with the same names, or the config.json of a run, to start from.
        set: settings of the form section.field=value, as in older commands.
        workers: training processes, short for --cluster.workers; 2:8 for as many from 2 to 8 as there is room for.
        device: cpu or cuda, short for --cluster.device.
    """

    cohort: Positional[Annotated[Path, arg(metavar="COHORT")]]
    others: Positional[Annotated[tuple[Path, ...], arg(metavar="COHORT")]] = ()
    recipe: str = "sgsgan"
    defaults: Literal["paper", "practice"] = "practice"
    config: Path | None = None
    set: tuple[str, ...] = ()
    workers: str | None = None
    device: Literal["cpu", "cuda"] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainOptions(SystemOptions):
    """Options of ``petscale train`` beside the fields of a run's configuration.

    Args:
        run: folder of the run; made, or continued.
        init: a file of petscale card, a run's weights.safetensors, or the name of weights that come with petscale, of
            the same system: its networks start from these instead of random ones; give it to continue too.
        time_limit: stop before so much time is over, for instance 3h50m, 90m or 1d2h; the same command continues.
    """

    run: Path
    init: Path | None = None
    time_limit: str | None = None


def train(options: TrainOptions, config: "RunConfig") -> None:
    """Train a system on a cohort; run the same command again to continue an interrupted run."""
    from petscale.training import driver

    limit_s, command = _seconds(options.time_limit), recorded()
    print(
        driver.train(
            options.cohort,
            options.run,
            config,
            command=command,
            others=options.others,
            time_limit_s=limit_s,
            init=None if options.init is None else located(options.init),
        )
    )


def _check_new(json: Path | None, page: Path | None = None) -> None:
    """Refuse, before any work, to write over a file that is there: it may be one of a cohort or a run."""
    from storage.integrity import check_new

    for option, file in (("--json", json), ("--page", page)):
        if file is not None:
            check_new(file, f"{option}, or remove it")


def _seconds(time_limit: str | None) -> float | None:
    from petscale.durations import seconds_of

    return None if time_limit is None else seconds_of(time_limit, "--time-limit")


@dataclass(frozen=True, kw_only=True)
class PlanOptions(SystemOptions):
    """Options of ``petscale plan``: those of ``petscale train``.

    Args:
        run: folder of a run that would be continued; it stays as it is.
        init: the weights that its networks would start from.
        time_limit: how much time the command would be given, for instance 3h50m, 90m or 1d2h.
        json: write all of it into this file.
    """

    run: Path | None = None
    init: Path | None = None
    time_limit: str | None = None
    json: Path | None = None


def plan(options: PlanOptions, config: "RunConfig") -> None:
    """Say what a training would take on this machine: memory, time per step, hours, and the largest patch that fits.

    Nothing is written; a few steps of every phase are made and forgotten.
    """
    from petscale.data.inspection_table import screen
    from petscale.doctor.machine import free_memory
    from petscale.training import forecast
    from storage.integrity import write_json

    _check_new(options.json)
    limit_s = _seconds(options.time_limit)
    init = None if options.init is None else located(options.init)
    found = forecast.forecast(
        options.cohort, config, others=options.others, run=options.run, init=init, free_memory=free_memory()
    )
    forecast.show(found, screen(), limit_s=limit_s)
    if options.json is not None:
        write_json(options.json, found.to_json())


@dataclass(frozen=True, kw_only=True)
class ProfileOptions(SystemOptions):
    """Options of ``petscale profile`` beside the fields of a run's configuration.

    Args:
        steps: that are measured of every phase.
        trace: write a trace of two more steps of every phase into this file, for Perfetto or chrome://tracing.
    """

    steps: int = 10
    trace: Path | None = None


def profile(options: ProfileOptions, config: "RunConfig") -> None:
    """Say where the time of a training's steps goes: data, forward, backward, optimizer, exchange, checkpoints.

    Nothing is written but the trace.
    """
    from petscale.data.inspection_table import screen
    from petscale.training import forecast

    measured = forecast.profile(options.cohort, config, steps=options.steps, others=options.others, trace=options.trace)
    forecast.show_profile(measured, screen())


@dataclass(frozen=True, kw_only=True)
class FoldsOptions(SystemOptions):
    """Options of ``petscale folds`` beside the fields of the runs' configuration.

    Args:
        run: folder of all folds, a run in each of its fold-0, fold-1, ...; made, or continued.
        k: number of folds; default: split.folds, or what the cohort states (split.fold-tag), or 5.
        time_limit: stop before so much time is over, for instance 3h50m, 90m or 1d2h; the same command continues.
    """

    run: Path
    k: int | None = None
    time_limit: str | None = None


def folds(options: FoldsOptions, config: "RunConfig") -> None:
    """Train a run per fold and score every patient once, by the run that never saw him or her.

    Run the same command again to continue; a fold that is trained is not trained again.
    """
    from petscale.crossvalidation.folds import train_folds

    limit_s, command, others = _seconds(options.time_limit), recorded(), options.others
    train_folds(options.cohort, options.run, config, k=options.k, command=command, others=others, time_limit_s=limit_s)
    print(options.run)


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Options of ``petscale tune`` beside the fields of the configuration that trials vary.

    Args:
        cohort: folder of the cohort; its test patients are never read.
        others: folders of further cohorts, read as one with the first.
        study: folder of the study: its journal, a run folder per trial, the best configuration, the report.
        recipe: name of the system; each system has its own defaults.
        defaults: whose settings hold where none is given: practice, those that the system states, or the paper's; the
            same for a system that has none of practice.
        config: a YAML or JSON file with the same names, or the config.json of a run, that trials vary.
        set: settings of the form section.field=value for every trial, as in older commands.
        spaces: what is searched: losses, training, masking (s3pet), depth (cascade); several are joined.
        objectives: one score on validation patients, or two for a Pareto front: psnr_body, suvmax_bias_lesions, ...,
            or metric:region:preset of any score that petscale evaluate stores.
        trials: finished trials wanted, those of earlier sessions included.
        sampler: tpe, random or nsga2.
        seed: random seed of the sampler.
        rungs: budgets after which a trial is scored, each factor times the one before; the last is the whole run.
        factor: between budgets; at each budget only the best 1 / factor of the trials continue (ASHA).
        at_once: trials that run at the same time; 0 for as many as fit.
        gpus: share of a GPU that a trial of one worker uses.
        storage: where the study is kept: empty for a journal file in its folder, sqlite, or a database's URL.
        workers: training processes of a trial, short for --cluster.workers.
        device: cpu or cuda, short for --cluster.device.
        time_limit: stop before so much time is over, for instance 3h50m, 90m or 1d2h; the same command continues.
    """

    cohort: Positional[Annotated[Path, arg(metavar="COHORT")]]
    others: Positional[Annotated[tuple[Path, ...], arg(metavar="COHORT")]] = ()
    study: Path
    recipe: str = "sgsgan"
    defaults: Literal["paper", "practice"] = "practice"
    config: Path | None = None
    set: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ("losses",)
    objectives: tuple[str, ...] = ("psnr_body",)
    trials: int = 16
    sampler: str = "tpe"
    seed: int = 0
    rungs: int = 1
    factor: int = 3
    at_once: int = 0
    gpus: float = 1.0
    storage: str = ""
    workers: int | None = None
    device: Literal["cpu", "cuda"] | None = None
    time_limit: str | None = None


def tune(options: TuneOptions, config: "RunConfig") -> None:
    """Search loss weights, masking ratios, depths or training settings; trials are scored on validation patients."""
    from petscale.tuning.search import SweepConfig
    from petscale.tuning.sweep import sweep

    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(SweepConfig)}
    searched = SweepConfig(**fields)
    limit_s, command, others = _seconds(options.time_limit), recorded(), options.others
    for path in sweep(
        options.cohort, options.study, config, searched, command=command, others=others, time_limit_s=limit_s
    ):
        print(path)


def synthesize(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    source: Positional[Annotated[Path, arg(metavar="SOURCE")]],
    output: Path | None = None,
    runs: tuple[Path, ...] = (),
    flips: tuple[Literal["z", "y", "x"], ...] = (),
    deviation: Path | None = None,
    case: str | None = None,
    image: str | None = None,
    units: nifti.Units = "SUVbw",
    weight_kg: float | None = None,
    dose_mbq: float | None = None,
    injection_time: str | None = None,
) -> None:
    """Estimate the full-dose PET of a low-dose PET or, by a run that starts from CT, of a CT.

    With several runs, or mirror images of the scan, the result is the mean of their images.

    Args:
        run: a finished run, or a folder of petscale folds, which stands for all of its folds.
        source: a NIfTI file or a DICOM series' folder of the run's kind of scan, or a cohort's folder with --case.
        output: the NIfTI file or DICOM folder to write, of the same kind as the input; --case writes into the run.
        runs: further runs to average over; a run that is named twice counts once.
        flips: axes along which the scan is mirrored too: x makes 2 images to average, y x make 4, z y x make 8.
        deviation: where to write the standard deviation of the averaged images (ddof 1), as the output; for a case a
            NIfTI file in SUV.
        case: name of a case when SOURCE is a cohort.
        image: the case's image to start from; default: the first one that the run was trained on.
        units: unit of a NIfTI PET and of its result; the result from a CT is in SUVbw.
        weight_kg: replaces the header's value.
        dose_mbq: replaces the header's value.
        injection_time: replaces the header's value.
    """
    from petscale.averages import check_deviation, open_estimator, tell_calibration
    from petscale.data.ingest import Files
    from petscale.inference import check_effect, synthesize_ct, synthesize_pet, synthesize_told
    from storage.reader import open_cohort

    estimator = open_estimator(run, runs, flips)
    overrides = suv.Overrides(weight_kg=weight_kg, dose_mbq=dose_mbq, injection_time=injection_time)
    check_effect(estimator, overrides, image=image, stored=case is not None)
    check_deviation(estimator, deviation)
    if deviation is not None:
        tell_calibration(estimator)
    if case is not None:
        if output is not None:
            raise InputError(
                "CFG_OUTPUT", where="--output", found="given with --case", remedy="a case's result goes into the run"
            )
        print(synthesize_told(estimator, run, open_cohort(source).case(case), image, deviation).folder)
        return
    if output is None:
        raise InputError("CFG_OUTPUT", where="--output", found="missing", remedy="name a new .nii.gz file or folder")
    if estimator.on.units == HU:
        synthesize_ct(estimator, source, output, deviation)
    else:
        files = Files(pet=source, units=units, units_from="layout", overrides=overrides)
        synthesize_pet(estimator, files, output, deviation)
    print(output)


def submission(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    source: Positional[Annotated[Path, arg(metavar="SOURCE")]],
    output: Positional[Annotated[Path, arg(metavar="OUTPUT")]],
    table: Path | None = None,
    runs: tuple[Path, ...] = (),
    flips: tuple[Literal["z", "y", "x"], ...] = (),
) -> None:
    """Estimate the full dose of every .nii.gz of a folder in Bq/mL, under the same names: a UDPET submission.

    Run the same command again to continue; files that are whole are kept.

    Args:
        run: a finished run that starts from low-dose PET, or a folder of petscale folds, which stands for all folds.
        source: a folder of .nii.gz files in Bq/mL.
        output: the folder to write.
        table: CSV with NiftiFileName, PatientWeight_kg and RadionuclideTotalDose_Bq; default: the only one in SOURCE.
        runs: further runs to average over.
        flips: axes along which every scan is mirrored too, and all images averaged.
    """
    from petscale.averages import open_estimator
    from petscale.submission import submit_folder

    for path in submit_folder(open_estimator(run, runs, flips), source, output, table):
        print(path)


def card(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    file: Positional[Annotated[Path, arg(metavar="FILE")]],
    cohort: tuple[Path, ...] = (),
    licence: str = "",
) -> None:
    """Write a finished run's weights, and what must be known to use them, into one file that names nobody.

    petscale inspect FILE shows it, petscale apply FILE applies it: neither needs the run or its cohort.

    Args:
        run: a finished run; its scores are taken in where petscale evaluate has made them.
        file: the new .safetensors file.
        cohort: the cohorts that the run was trained on, for tracers, scanners and the range of voxel sizes.
        licence: of the weights, as their owner states it.
    """
    from petscale.cards.making import make_card

    make_card(run, file, cohort, licence=licence)
    print(file)


def apply(
    card: Positional[Annotated[Path, arg(metavar="FILE")]],
    scans: Positional[Annotated[tuple[Path, ...], arg(metavar="SCAN")]],
    output: Path,
    units: nifti.Units | None = None,
    drf: float | None = None,
    table: Path | None = None,
    weight_kg: float | None = None,
    dose_mbq: float | None = None,
    injection_time: str | None = None,
) -> None:
    """Estimate the full-dose PET of scans by a file of petscale card, without any run or cohort.

    Every result has its scan's name and kind: a NIfTI file gives a NIfTI file, a DICOM series a DICOM series.  Run the
    same command again to continue.

    Args:
        card: a file of petscale card, or the name of weights that come with petscale (restore-small).
        scans: NIfTI files and folders of one DICOM series each: low-dose PET, or CT for weights that start from CT.
        output: the folder to write.
        units: unit of NIfTI PET; without it the file beside it is asked, then its values, which must leave no doubt.
        drf: dose reduction factor of all scans, where it is known.
        table: a CSV, TSV or XLSX file with weight and dose of NIfTI files in Bq/mL, a row per file.
        weight_kg: of one scan; replaces the header's value.
        dose_mbq: of one scan; replaces the header's value.
        injection_time: of one scan; replaces the header's value.
    """
    from petscale.cards.applying import Reading, apply_card
    from petscale.data.table import read_table

    reading = Reading(
        units=units,
        overrides=suv.Overrides(weight_kg=weight_kg, dose_mbq=dose_mbq, injection_time=injection_time),
        table=read_table(table) if table is not None else None,
        drf=drf,
    )
    for path in apply_card(located(card), scans, output, reading):
        print(path)


def evaluate(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    cohort: Positional[Annotated[Path, arg(metavar="COHORT")]],
    others: Positional[Annotated[tuple[Path, ...], arg(metavar="COHORT")]] = (),
    unet_score: tuple[str, ...] = (),
    unet_score_sg: bool = False,
    segmenter_samples: int = 20_000,
    segmenter_channels: int = 16,
    detect: str = "",
    within: tuple[str, ...] = (),
    threshold_suv: float = 2.5,
    tolerance_mm: float = 0.0,
    task: bool = False,
    lesion_mm: float = 12.0,
    lesion_contrast: float = 1.6,
    task_scans: int = 2,
    source: tuple[str, ...] = (),
    preset: tuple[str, ...] = (),
    runs: tuple[Path, ...] = (),
    flips: tuple[Literal["z", "y", "x"], ...] = (),
) -> None:
    """Synthesize a run's test cases and score them beside baselines that need no network.

    The baselines are the untreated low dose and its best filters, or for a CT the mean SUV by HU, height and organ.
    A cohort that holds none of the run's test cases is an external validation: every case that is new to the run is
    scored, and the results stand in the run's external/COHORT.

    Args:
        run: a finished run.
        cohort: the cohort it was trained on, or another one.
        others: further cohorts, read as one with the first: all those that the run was trained on.
        unet_score: organs whose Dice is scored too, by a U-Net trained on the run's full-dose images (SGSGAN).
        unet_score_sg: score organs in the synthesized image by the network that guided the run, too (SGSGAN).
        segmenter_samples: patches that the U-Net of --unet-score is trained on; the default is for a GPU.
        segmenter_channels: channels of this U-Net's first level; the other levels have 2, 4, 8 and 16 times as many.
        detect: label of the lesions to detect in the synthesized PET (lesion).
        within: labels of the organs that are searched (liver); without it the whole body is searched.
        threshold_suv: a lesion is detected above this SUV, on the real and on the synthesized PET.
        tolerance_mm: the largest distance between a detection and its lesion.
        task: on simulated scans, put lesions into the activity, scan it with and without them, and say how well an
            observer tells them apart in every image.
        lesion_mm: their diameter.
        lesion_contrast: their uptake over that around them, above 1.
        task_scans: pairs of scans of every case, with and without these lesions.
        source: images to start from, where the cohort calls them otherwise than the run's own.
        preset: conventions of scoring beside the run's own: udpet2022, s3pet, sgsgan, cascade.
        runs: further runs or folds: the mean of their images is scored, each case by the runs that never saw it.
        flips: axes along which every scan is mirrored too: the mean over all mirror images is scored.
    """
    from petscale import api

    api.evaluate(
        run,
        cohort,
        unet_score=unet_score,
        unet_score_sg=unet_score_sg,
        segmenter_samples=segmenter_samples,
        segmenter_channels=segmenter_channels,
        detect=detect,
        within=within,
        threshold_suv=threshold_suv,
        tolerance_mm=tolerance_mm,
        task=task,
        lesion_mm=lesion_mm,
        lesion_contrast=lesion_contrast,
        task_scans=task_scans,
        source=source,
        preset=preset,
        others=others,
        runs=runs,
        flips=flips,
    )


def calibrate(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    cohort: Positional[Annotated[Path, arg(metavar="COHORT")]],
    others: Positional[Annotated[tuple[Path, ...], arg(metavar="COHORT")]] = (),
    runs: tuple[Path, ...] = (),
    flips: tuple[Literal["z", "y", "x"], ...] = (),
) -> None:
    """Learn on validation patients how wide a standard deviation must be, and check it on test patients.

    From then on petscale synthesize --deviation of the same runs and mirror images writes the calibrated one: the image
    -+ 1.645 of it is to hold 90 % of the full-dose scan's voxels, that scan's own noise included.

    Args:
        run: a finished run that kept two patients or more for validation; it keeps the calibration.
        cohort: the cohort it was trained on.
        others: further cohorts that it was trained on.
        runs: further runs of the same split to average over.
        flips: axes along which every scan is mirrored too: x makes 2 images to average, y x make 4, z y x make 8.
    """
    from petscale import api
    from petscale.evaluation.calibrating import show

    made = api.calibrate(run, cohort, others=others, runs=runs, flips=flips)
    show(made.kept)
    print(made.path)


def best(
    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN")]],
    cohort: Path | None = None,
    json: Path | None = None,
) -> None:
    """Compare runs, or folds, of the same patients and name the best, by PSNR inside the body, with margin and p.

    Folds are compared by all patients, each scored by the run that never saw him or her; single runs by their test
    patients, which is then said, or with --cohort by their validation patients.  Means that petscale evaluate --runs
    or --flips has scored take part.

    Args:
        runs: folders of evaluated runs, or of petscale folds.
        cohort: the cohort of single runs, to score their validation patients on.
        json: write all of it into this file.
    """
    from petscale.crossvalidation.best import rank, show
    from storage.integrity import write_json

    _check_new(json)
    found = rank(runs, cohort)
    show(found)
    if json is not None:
        write_json(json, found.to_json())
    for folder in found.best.folders:
        print(folder)


def baseline(
    cohort: Positional[Annotated[Path, arg(metavar="COHORT")]],
    folds: int = 5,
    source: tuple[str, ...] = (),
    output: Path | None = None,
) -> None:
    """Fit and score what needs no network on a cohort, each patient by what was fitted on others.

    From a low dose: the best Gaussian, linear and adaptive filters, non-local means, total variation, and BM4D where
    you have installed it.  From a CT: the mean SUV by HU, by height and by organ.

    Args:
        cohort: full doses beside low doses or CTs.
        folds: parts that the patients are drawn into; 2 or more.
        source: images to start from; default: every low dose.
        output: folder for baselines.csv and baselines.json; default: COHORT-baselines, beside the cohort.
    """
    from petscale.evaluation import cohort_baselines

    place = output or cohort.resolve().parent / f"{cohort.resolve().name}-baselines"
    print(cohort_baselines.run(cohort, place, folds=folds, sources=source, command=recorded()))


def score(
    reference: Positional[Annotated[Path, arg(metavar="REFERENCE")]],
    candidates: Positional[Annotated[tuple[Path, ...], arg(metavar="CANDIDATE")]],
    labels: Path | None = None,
    names: tuple[str, ...] = (),
    units: nifti.Units | None = None,
    table: Path | None = None,
    patient: str = "",
    preset: tuple[str, ...] = (),
    output: Path | None = None,
    page: Path | None = None,
) -> None:
    """Score images that any tool made against full doses of the same names, and test the tools against each other.

    REFERENCE and each CANDIDATE hold one volume per name: a NIfTI file, or a sub-folder with a NIfTI file or a DICOM
    series; or each is one NIfTI file.  Nothing is resampled.

    Args:
        reference: folder of the full-dose images.
        candidates: folders of what is scored, one per tool; only what all of them have is scored.
        labels: folder of label maps, DICOM SEG or RTSTRUCT under the same names, for scores of organs and lesions.
        names: names of labels, as 1=liver,5=brain, totalsegmentator, autopet or a BIDS table; without them a map of one
            value is of lesions.
        units: unit of all NIfTI files; without it the file beside an image is asked, then its values.
        table: a CSV, TSV or XLSX file with weight and dose of NIfTI files in Bq/mL.
        patient: where several volumes are of one patient, a pattern of their names, as '{patient}_*'.
        preset: conventions of scoring beside the project's own: udpet2022, s3pet, sgsgan, cascade.
        output: new folder for scores.csv, means.csv, tests.csv and scores.json; default: REFERENCE-scores, beside it.
        page: write a page with the tables and pictures of every case, one new HTML file that needs no network.
    """
    from petscale import api
    from petscale.data.inspection_table import screen
    from petscale.reporting.candidates import show

    place = output or reference.resolve().parent / f"{reference.resolve().name}-scores"
    scored = api.score(
        reference,
        candidates,
        labels=labels,
        names=names,
        units=units,
        table=table,
        patient=patient,
        preset=preset,
        output=place,
        page=page,
    )
    show(scored.compared, screen())
    print(place)
    if scored.refused:
        number = len(scored.refused)
        made = place.name if page is None else f"{place.name} and {page.name}"
        raise InputError(
            "SET_REFUSED",
            where=reference.name,
            found=f"{number} volume{'' if number == 1 else 's'} refused, the others are scored",
            remedy=f"see the lines above, correct these images, remove {made} and run the same command again",
        )


def report(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    cohort: Positional[Annotated[Path, arg(metavar="COHORT")]],
    others: Positional[Annotated[tuple[Path, ...], arg(metavar="COHORT")]] = (),
    page_mb: float = 20.0,
    pdf: bool = False,
    deviations: Path | None = None,
) -> None:
    """Write a run's report, one HTML file that needs no network; a run without scores is evaluated first.

    Args:
        run: an evaluated run, or a folder of petscale folds: one page about all of its patients.
        cohort: the cohort it was evaluated on, its own or another one.
        others: further cohorts that it was evaluated on together with the first.
        page_mb: how large the page may become, in MB; its viewer takes what the rest leaves, 0 for no viewer.
        pdf: print the page as PDF beside it too; it needs Chromium, Chrome or Edge on this machine.
        deviations: folder of CASE.nii.gz, standard deviations by synthesize --deviation, for the viewer.
    """
    from petscale import api

    page = api.report(run, cohort, others=others, page_mb=page_mb, pdf=pdf, deviations=deviations).path
    print(page)
    if pdf:
        print(page.with_suffix(".pdf"))


def track(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    store: Positional[Annotated[Path, arg(metavar="STORE")]],
    tool: Literal["mlflow", "wandb"] = "mlflow",
    pictures: bool = False,
) -> None:
    """Copy a run's settings, records and scores into a folder of MLflow or, offline, of Weights & Biases.

    Nothing is sent anywhere, and no name of a case is copied.  Run the same command again to copy what has come since:
    the new copy takes the place of the old one.

    Args:
        run: a run, finished or still training.
        store: the tool's folder; several runs may share it.
        tool: mlflow or wandb; each is an extra of petscale.
        pictures: copy the pictures of training too: they show a patch of a patient.
    """
    from petscale.tracking.copying import track as copy_run
    from petscale.tracking.into_mlflow import open_mlflow
    from petscale.tracking.into_wandb import open_wandb

    copy_run(run, store, {"mlflow": open_mlflow, "wandb": open_wandb}[tool], pictures=pictures)
    print(store)


def dashboard(
    folder: Positional[Path | None] = None, storage: str = "", cluster: str = "", seconds: float | None = None
) -> None:
    """Start TensorBoard, the Optuna dashboard and Ray's dashboard on this machine's loopback until Ctrl-C.

    Args:
        folder: a run, or a study of petscale tune; may be left out with --cluster.
        storage: where the study is kept, as given to petscale tune.
        cluster: a cluster file, or the URL of a dashboard: that cluster's Ray dashboard.
        seconds: stop after this time.
    """
    from petscale.dashboards import serve

    serve(folder, storage, cluster=cluster, seconds=seconds)


def experiment(
    name: Positional[
        Literal[
            "sgsgan_table1",
            "sgsgan_table2",
            "sgsgan_table3",
            "sgsgan_table4",
            "sgsgan_table5",
            "sgsgan_table6",
            "sgsgan_table7",
            "sgsgan_table8",
            "sgsgan_table9",
            "cg_3dsrgan_table1",
            "cg_3dsrgan_table2",
            "s3pet_table1",
            "s3pet_table2",
            "sgsgan_resized",
            "cascade_table4",
            "virtual_pet",
        ]
    ],
    size: Literal["small", "laptop", "paper"] = "small",
    folder: Path = Path("experiments"),
    workers: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    cohort: Path | None = None,
    source: tuple[str, ...] = (),
    external: Path | None = None,
    seeds: int = 1,
) -> None:
    """Repeat a paper's ablation table on simulated patients: all rows and folds, scores and tests beside the paper's.

    Run the same command again to continue; tables share the runs that they have in common.

    Args:
        name: which table.
        size: small, minutes per run on one core; laptop, an evening per table on two cores; or the paper's networks
            and lengths, for GPUs.
        folder: where cohorts, runs and tables are written, in a sub-folder per size.
        workers: training processes.
        device: cpu or cuda.
        cohort: a cohort of yours that takes the place of the simulated patients.
        source: with --cohort, its images that take the place of the table's low doses, one per dose; default: images
            of the same doses.
        external: with --cohort, the cohort that a table of external validation is tested on.
        seeds: trainings of every row on every fold, from other initial weights; the rows are then also compared network
            by network.
    """
    from petscale.experiments import EXPERIMENTS, runner

    settings = [f"cluster.workers={workers}"] if workers is not None else []
    settings += [f"cluster.device={device}"] if device is not None else []
    chosen = dataclasses.replace(EXPERIMENTS[name](size), seeds=seeds)
    if seeds < 1:
        raise InputError("CFG_RANGE", where="--seeds", found=str(seeds), remedy="give 1 or more")
    if seeds > 1 and chosen.segmenters:
        found = f"{name} trains no system, and its segmenters have one seed"
        raise InputError("CFG_NO_EFFECT", where="--seeds", found=found, remedy="leave it out")
    if cohort is not None:
        made = runner.run_on_cohort(
            chosen, cohort, folder / size, command=recorded(), settings=settings, sources=source, external=external
        )
        print(made)
        return
    for option, given in (("--source", source), ("--external", external)):
        if given:
            raise InputError("CFG_SET", where=option, found="given alone", remedy="say of which cohort: --cohort PATH")
    print(runner.run_experiment(chosen, folder / size, command=recorded(), settings=settings))


def doctor(storage: Path | None = None) -> None:
    """Check this machine, or (`petscale submit doctor`) every node of a cluster, and print what to fix.

    Args:
        storage: the folder of cohorts and runs, on a cluster one that all nodes mount.
    """
    from petscale import doctor as doctors

    doctors.run(storage)


def submit(
    command: Positional[tuple[str, ...]] = (),
    cluster: str = "cluster.yaml",
    detach: bool = False,
) -> None:
    """Run another petscale command on a cluster, with this installation's code; closing the terminal does not end it.

    Args:
        command: the command and its arguments; relative paths start at the cluster's shared storage, a .json file of
            this machine is sent along.
        cluster: a cluster file, or the URL of a dashboard.
        detach: do not show the job's log.
    """
    from petscale.cluster import jobs

    jobs_can_run = [name for name, known in COMMANDS.items() if known.in_a_job]
    if not command or command[0] not in jobs_can_run:
        raise InputError(
            "CFG_COMMAND",
            where="submit",
            found=command[0] if command else "nothing to run",
            remedy=f"name one of {', '.join(jobs_can_run)}",
        )
    print(jobs.submit(command, cluster, follow=not detach))


def status(job: Positional[str] = "", cluster: str = "cluster.yaml") -> None:
    """Show the jobs of a cluster.

    Args:
        job: one of them.
        cluster: a cluster file, or the URL of a dashboard.
    """
    from petscale.cluster import jobs

    jobs.status(job, cluster)


def logs(job: Positional[str] = "", cluster: str = "cluster.yaml", follow: bool = False) -> None:
    """Print the log of a cluster's job.

    Args:
        job: its name; the newest without one.
        cluster: a cluster file, or the URL of a dashboard.
        follow: until the job ends.
    """
    from petscale.cluster import jobs

    jobs.logs(job, cluster, follow=follow)


def stop(job: Positional[str] = "", cluster: str = "cluster.yaml") -> None:
    """End a cluster's job; submit the same command again to continue from what was committed.

    Args:
        job: its name; the newest without one.
        cluster: a cluster file, or the URL of a dashboard.
    """
    from petscale.cluster import jobs

    jobs.stop(job, cluster)


def certificates(
    folder: Positional[Annotated[Path, arg(metavar="FOLDER")]],
    hosts: tuple[str, ...],
    days: int = 365,
) -> None:
    """Make the certificates by which the machines of a cluster encrypt Ray's traffic and know each other.

    Args:
        folder: where they are written: authority.crt, cluster.crt, cluster.key.
        hosts: addresses or names of all machines of the cluster.
        days: how long they are valid.
    """
    from petscale.cluster.certificates import make_certificates

    for path in make_certificates(folder, hosts, days=days):
        print(path)


# ---- the table ------------------------------------------------------------------------------------------------------


def _of_a_scanner(name: str) -> Mapping[str, Any]:
    """The parameters whose defaults a scanner changes; none for a name that is no scanner's."""
    return {"scan": SCANNERS[name], "body": ADULT} if name in SCANNERS else {}


@dataclass(frozen=True)
class Command:
    """A command as the command line knows it.

    Args:
        group: heading under which the help lists it.
        function: what runs.
        options: for a command that takes a run's configuration, the dataclass of its other options.
        writes: name of the argument that names the folder it writes into, empty for none.
        in_a_job: whether it can be submitted to a cluster.
        presets: for a command with presets, the option that names one, and what gives its defaults by parameter.
    """

    group: Literal["start", "data", "train", "evaluate", "cluster"]
    function: Callable[..., None]
    options: type | None = None
    writes: str = ""
    in_a_job: bool = True
    presets: tuple[str, Callable[[str], Mapping[str, Any]]] | None = None

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").split("\n")[0]


COMMANDS = {
    "demo": Command("start", demo, writes="folder"),
    "phantom": Command("data", phantom, writes="cohort", presets=("scan", _of_a_scanner)),
    "ingest": Command("data", ingest, writes="cohort"),
    "simulate": Command("data", simulate, writes="cohort", presets=("scan", _of_a_scanner)),
    "verify": Command("data", verify),
    "inspect": Command("data", inspect),
    "compare": Command("data", compare),
    "export": Command("data", export),
    "remove": Command("data", remove),
    "plan": Command("train", plan, PlanOptions, in_a_job=False),
    "train": Command("train", train, TrainOptions, writes="run"),
    "profile": Command("train", profile, ProfileOptions, in_a_job=False),
    "folds": Command("train", folds, FoldsOptions, writes="run"),
    "tune": Command("train", tune, TuneOptions, writes="study"),
    "experiment": Command("train", experiment, writes="folder"),
    "synthesize": Command("evaluate", synthesize, writes="run"),
    "submission": Command("evaluate", submission, writes="output"),
    "card": Command("evaluate", card),
    "apply": Command("evaluate", apply, writes="output"),
    "evaluate": Command("evaluate", evaluate, writes="run"),
    "calibrate": Command("evaluate", calibrate, writes="run"),
    "best": Command("evaluate", best),
    "baseline": Command("evaluate", baseline, writes="output"),
    "score": Command("evaluate", score, writes="output"),
    "report": Command("evaluate", report, writes="run"),
    "track": Command("evaluate", track, in_a_job=False),
    "dashboard": Command("evaluate", dashboard, in_a_job=False),
    "submit": Command("cluster", submit, in_a_job=False),
    "status": Command("cluster", status, in_a_job=False),
    "logs": Command("cluster", logs, in_a_job=False),
    "stop": Command("cluster", stop, in_a_job=False),
    "doctor": Command("cluster", doctor),
    "certificates": Command("cluster", certificates, in_a_job=False),
}
