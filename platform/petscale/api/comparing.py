"""Images, runs and cohorts beside each other: what other tools made scored, runs tested, cohorts compared."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from petscale.api.cohorts import Cohort, PathLike
from petscale.api.results import folder_of
from petscale.api.training import Run
from petscale.data.comparison import Comparison
from storage import nifti
from storage.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

    from petscale.evaluation.paired import Compared


def compare(
    first: Run | Cohort | PathLike,
    second: Run | Cohort | PathLike,
    others: Sequence[Run | PathLike] = (),
    *,
    external: str = "",
    page: PathLike | None = None,
) -> "Comparison | dict[str, Candidates]":
    """Compare runs and baselines on the patients that all were tested on; or say what two cohorts share.

    Args:
        first: an evaluated run, a folder of ``petscale folds``, or a cohort.
        second: another one of the same kind.
        others: further runs.
        external: of runs, the name of a cohort on which they were evaluated as on another one; empty for the runs' own
            test cases.
        page: of runs, write a page with all of it there: a new HTML file.

    Returns:
        Of cohorts a ``Comparison``: which cases and patients both have, and in what their images differ.  Of runs: name
        of the image that all start from -> runs and baselines as ``Candidates``.

    Raises:
        InputError: CFG_KINDS for runs and cohorts together; of cohorts STORE_NONE, STORE_DAMAGED, STORE_SCHEMA; of runs
            SET_NOT_SHARED, SET_EVALUATION, SET_RUNS_DIFFER, CFG_RANGE, CFG_NAME, CFG_RUN_FOLDER, DISK_EXISTS;
            CFG_NO_EFFECT.

    >>> found = petscale.compare("ingested", "simulated")
    >>> found.changed, len(found.patients)
    ({'first': ('body', 'case', 'full', 'low_drf10', 'truth')}, 1)
    >>> [one.second for one in found.differences if one.fact == "low_drf10: doses"]
    ['DRF 10, simulated']
    >>> import shutil
    >>> same = petscale.open_run(shutil.copytree("run", "again"))
    >>> petscale.compare(run, same)["low_drf20"].verdict[0][:34]
    'not testable with 1 patient(s), fe'
    """
    from petscale.data.comparison import are_runs, check_effect, compare_cohorts

    folders = [folder_of(place) for place in (first, second, *others)]
    target = None if page is None else Path(page)
    if not are_runs(folders):
        check_effect(external, target)
        return compare_cohorts(*folders)
    from petscale.evaluation.run_comparison import compare_runs
    from petscale.reporting.run_comparison import sentences, write_comparison_page
    from storage.integrity import check_new

    if target is not None:
        check_new(target, "page")
    found = compare_runs(folders, external)
    if target is not None:
        write_comparison_page(target, found)
    return {
        source: Candidates(one.compared, tuple(sentences(one)), one.left_out, doubts=one.doubts)
        for source, one in found.items()
    }


@dataclass(frozen=True)
class Candidates:
    """Runs and baselines, or the images of several tools, scored on the same patients.

    Args:
        compared: the comparison as the platform keeps it.
        verdict: what the tests of PSNR inside the body allow to be said, a sentence each.
        left_out: what was not compared -> why.
        refused: of images, those with something wrong -> what it is.
        doubts: what a reader must know of the comparison, a sentence each.

    >>> found = petscale.compare(run, "again")["low_drf20"]
    >>> found.names[-2:], found.patients, dict(found.left_out)
    (('run', 'again'), ('phantom-001',), {})
    """

    compared: "Compared"
    verdict: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, InputError] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what is compared."""
        return self.compared.scores.images

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients whom all were scored on, by the names of their cases."""
        return self.compared.scores.cases

    def means(self) -> "DataFrame":
        """Return a row per candidate, region and score: mean over patients, sd, 95 % interval (Student's t).

        Columns: ``candidate``, ``region``, ``metric``, ``units``, ``mean``, ``sd``, ``low_95``, ``high_95``,
        ``patients``, ``preset``, ``rule``; NaN where there is no interval.

        >>> means = found.means().query("region == 'body' and metric == 'PSNR' and preset == 'native'")
        >>> bool((means["mean"] > 10).all()), means["patients"].unique().tolist(), means["units"].unique().tolist()
        (True, [1], ['dB'])
        """
        from petscale.evaluation.paired import means_csv

        return _frame(means_csv(self.compared.means))

    def tests(self) -> "DataFrame":
        """Return a row per score and pair, ``difference`` above 0 where ``candidate`` is better than ``over``.

        Columns: ``candidate``, ``over``, ``region``, ``metric``, ``units``, ``difference``, ``sd``, ``low_95``,
        ``high_95``, ``better_in``, ``patients``, ``p``, ``p_holm``; p is NaN with fewer than six patients.

        >>> found.tests().query("candidate == 'run' and over == 'again'")["difference"].tolist()[:2]
        [0.0, 0.0]
        """
        from petscale.evaluation.paired import tests_csv

        return _frame(tests_csv(self.compared.tests))


def _frame(text: str) -> "DataFrame":
    import pandas

    return pandas.read_csv(io.StringIO(text))


def score(
    reference: PathLike,
    candidates: PathLike | Sequence[PathLike],
    *,
    labels: PathLike | None = None,
    names: str | Sequence[str] = (),
    units: nifti.Units | None = None,
    table: PathLike | None = None,
    patient: str = "",
    preset: Sequence[str] = (),
    output: PathLike | None = None,
    page: PathLike | None = None,
) -> Candidates:
    """Score images that any tool made against full doses of the same names, and test the tools against each other.

    The reference and each candidate hold one volume per name: a NIfTI file, or a sub-folder with a NIfTI file or a
    DICOM series; or each is one NIfTI file.  Nothing is resampled.

    Args:
        reference: folder of the full-dose images.
        candidates: folders of what is scored, one per tool, or one folder; only what all of them have is scored.
        labels: folder of label maps, DICOM SEG or RTSTRUCT under the same names, for scores of organs and lesions.
        names: names of labels, as ``1=liver,5=brain``, ``totalsegmentator``, ``autopet`` or a BIDS table; without them
            a map of one value is of lesions.
        units: unit of all NIfTI files; None: the file beside an image is asked, then its values.
        table: a CSV, TSV or XLSX file with weight and dose of NIfTI files in Bq/mL.
        patient: where several volumes are of one patient, a pattern of their names, as ``{patient}_*``.
        preset: conventions of scoring beside the project's own: udpet2022, s3pet, sgsgan, cascade.
        output: a new folder for scores.csv, means.csv, tests.csv and scores.json; None: nothing is written.
        page: write a page with the tables and pictures of every case there: a new HTML file.

    Returns:
        The tools beside each other, over patients.  Volumes with something wrong are in ``refused``; the others are
        scored.

    Raises:
        InputError: DISK_EXISTS, SET_NO_COUNTERPART, SET_VOLUMES, IMG_NO_FILE, CFG_NO_EFFECT, CFG_PATTERN, CFG_NAME;
            what is wrong with the first volume where every one is refused.

    >>> case = petscale.open_cohort("cohort")["phantom-000"]
    >>> for name in ("full", "low_drf4", "low_drf20"):
    ...     case[name].save(f"{name}.nii.gz")
    >>> tools = petscale.score("full.nii.gz", ["low_drf4.nii.gz", "low_drf20.nii.gz"], units="SUVbw")
    >>> tools.names, tools.patients
    (('low_drf4.nii.gz', 'low_drf20.nii.gz'), ('full',))
    >>> (psnr,) = tools.tests().query("metric == 'PSNR'")["difference"]
    >>> bool(psnr > 1)  # a fifth of the dose is noisier
    True
    """
    from petscale.data.table import read_table
    from petscale.evaluation.files import Reading, check_unwritten, score_files
    from petscale.reporting.candidates import picture, show, write_candidates_page
    from petscale.reporting.cohort import Pictured
    from storage.label_names import names_from

    tools = [candidates] if isinstance(candidates, str | Path) else candidates
    words = (names,) if isinstance(names, str) else tuple(names)
    if words and labels is None:
        raise InputError("CFG_NO_EFFECT", where="--names", found="given without --labels", remedy="leave it out")
    full, place, paper = Path(reference), *(None if one is None else Path(one) for one in (output, page))
    check_unwritten(place, paper)
    reading = Reading(
        units=units,
        table=read_table(Path(table)) if table is not None else None,
        label_names=names_from(",".join(words), where="--names") if words else None,
        patient=patient,
        presets=tuple(preset),
    )
    drawn: dict[str, list[Pictured]] = {}
    scored = score_files(
        full,
        [Path(one) for one in tools],
        reading,
        labels=None if labels is None else Path(labels),
        show=(lambda name, images: drawn.update({name: picture(images)})) if paper is not None else None,
    )
    found = scored.compared
    if place is not None:
        found.write(place)
    if paper is not None:
        title = f"Scores against {full.resolve().name}"
        write_candidates_page(paper, title, lambda console: show(found, console), drawn)
    return Candidates(found, tuple(filter(None, [found.verdict()])), scored.left_out, scored.refused)
