"""What may be chosen of a report: the size of its pages, pages as PDF, standard deviations to be shown."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated

from petscale.calibrations import NOT_CALIBRATED
from petscale.inference import Lazy
from petscale.reporting.page import PAGE_MB
from petscale.reporting.pdf import find_browser
from storage import nifti
from storage.errors import InputError, no_file
from storage.ranges import Range, check_ranges
from storage.source import Grid, ImageSource

ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class ReportOptions:
    """What may be chosen of a report.

    Args:
        page_mb: how large a page may become in MB (10^6 bytes).  Its viewer takes what the rest leaves, and is left out
            where that is too little: with 0 always.
        pdf: print every page as PDF beside it, without the viewer.
        deviations: folder of NIfTI files CASE.nii.gz, the standard deviation of the synthesized image in SUV, as
            ``petscale synthesize --case --deviation`` writes them; the viewer shows those of the pictured cases.

    Raises:
        InputError: CFG_RANGE; IMG_NO_FILE for a folder that is not there; CFG_BROWSER without a browser to print.
    """

    page_mb: Annotated[float, Range(0, 1000)] = PAGE_MB
    pdf: bool = False
    deviations: Path | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "report")
        if self.deviations is not None and not self.deviations.is_dir():
            raise no_file(self.deviations)
        if self.pdf:
            find_browser()  # before minutes are spent on the page

    def check_cases(self, cases: Sequence[str]) -> None:
        """Refuse a folder that holds the deviation of none of the scored cases.

        Raises:
            InputError: IMG_NO_FILE.
        """
        if self.deviations is not None and not any(self._file(case) for case in cases):
            raise InputError(
                "IMG_NO_FILE",
                where=self.deviations.name,
                found=f"no standard deviation of a scored case, for instance {cases[0]}{ENDINGS[0]}",
                remedy="make them by `petscale synthesize RUN COHORT --case CASE --deviation FOLDER/CASE.nii.gz` with "
                "further --runs or --flips",
            )

    def deviation(self, case: str, grid: Grid, scratch: Path) -> ImageSource | None:
        """Return a case's standard deviation, read when it is first asked for; None where the folder has none.

        Args:
            case: its name.
            grid: of its images.
            scratch: takes inflated copies, which the caller removes.

        Raises:
            InputError: IMG_GRID, and those of ``open_nifti``.
        """
        path = self._file(case)
        if path is None:
            return None
        if not nifti.grid_of(path).matches(grid):
            raise InputError(
                "IMG_GRID",
                where=path.name,
                found="a standard deviation on another grid than the case",
                remedy="write it for this case again",
            )
        place = scratch / case
        place.mkdir(exist_ok=True)
        opened: Callable[[], ImageSource] = cache(partial(nifti.open_nifti, path, units="SUVbw", workdir=place))
        return Lazy(grid, {}, opened)

    def said(self, cases: Sequence[str]) -> list[str]:
        """Return what the files of these cases say of their calibration, each sentence once with the cases' number."""
        counted = Counter(
            nifti.comment_of(path).removeprefix("standard deviation ") or NOT_CALIBRATED
            for case in cases
            if (path := self._file(case))
        )
        return [f"Standard deviation of {number} case(s): {told}." for told, number in counted.items()]

    def _file(self, case: str) -> Path | None:
        if self.deviations is None:
            return None
        named = (self.deviations / f"{case}{ending}" for ending in ENDINGS)
        return next((path for path in named if path.is_file()), None)
