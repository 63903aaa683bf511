"""What an experiment is: its cohort, rows, columns, orderings and the paper's numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from petscale.config import RunConfig
from petscale.evaluation.baselines import INPUT
from petscale.evaluation.detection import FALSE, HITS, LESIONS, PRESET, SHARPNESS, TPR
from storage.layout import low_name
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig
from trainers.feed_config import FeedConfig
from trainers.metrics.detection import DetectionConfig, Matching
from trainers.organ_segmenter import OrganSegmenterConfig

GAUSSIAN = "best Gaussian"

CONTENT = "CD"  # by a VGG-16 trained on ImageNet, which is not here: such a column holds the paper's values alone

Scores = dict[str, dict[str, dict[str, float]]]  # image or row -> column label -> patient -> score, in our units
Networks = Mapping[str, Mapping[str, Scores]]  # row -> fold and seed -> the scores by that network and beside it

Published = tuple[float, float | None]  # mean, and standard deviation where the paper prints one

METRICS = {  # direction of the better, digits, units
    "PSNR": (1, 2, "dB"),
    "SSIM": (1, 4, ""),
    "MAE": (-1, 4, "SUVbw"),
    "MAE, cascade": (-1, 4, ""),  # of images in [0, 1]
    "NRMSE": (-1, 3, "%"),  # of the range, as udpet2022 has it
    "NMSE": (-1, 4, ""),
    "NRMSE, native": (-1, 4, ""),  # of the root mean square
    "bias": (-1, 4, "SUVbw"),
    "variance": (-1, 4, "SUVbw^2"),
    CONTENT: (-1, 4, ""),
    "Unet-score": (1, 4, ""),
    "Unet-score-SG": (1, 4, ""),
    "MS-SSIM": (1, 4, ""),
    "CB 2": (-1, 1, "dB"),
    "CB 4": (-1, 1, "dB"),
    TPR: (1, 3, ""),
    FALSE: (-1, 2, "per scan"),
    SHARPNESS: (1, 2, "of the real PET's"),
    HITS: (1, 1, "per scan"),
    LESIONS: (1, 1, "per scan"),
}


@dataclass(frozen=True, kw_only=True)
class PhantomCohort:
    """Phantom patients, one case each, with simulated scans.

    Args:
        name: what its folder is called.
        patients: how many.
        body: the phantom; seeds count up from ``body.seed``.
        scan: the scanner and its counts.
        drfs: dose reduction factors.
        realisations: independent low-dose images of each patient and dose.
    """

    name: str
    patients: int
    body: PhantomConfig
    scan: LowDoseConfig
    drfs: tuple[float, ...]
    realisations: int = 1

    def sources_at(self, drf: float) -> tuple[str, ...]:
        """Names of the low-dose images of one dose."""
        return tuple(low_name(drf, number) for number in range(self.realisations))


@dataclass(frozen=True, kw_only=True)
class UserCohort:
    """A cohort of the user's, on which a table is repeated.

    Args:
        name: of its folder.
        patients: how many; folds and tests are over these.
        cases: how many.
        low_doses: how its low-dose images relate to the full dose, as ``Dose.relation`` has it; empty for CT.
        digest: of all its cases.
    """

    name: str
    patients: int
    cases: int
    low_doses: tuple[str, ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Column:
    """One score of a table.

    Args:
        label: what the table calls it.
        metric: ``ScoreDefinition.metric`` of the scores it is read from.
        region: ``Score.region`` of these.
        preset: ``ScoreDefinition.preset`` of these, empty for any.
        mask: ``ScoreDefinition.mask`` of these, empty for any.
        data_range: ``ScoreDefinition.data_range`` of these, empty for any.
        source: the image that networks start from there, one of ``Experiment.sources``; empty for the mean over all.
    """

    label: str
    metric: str
    region: str = "whole volume"
    preset: str = ""
    mask: str = ""
    data_range: str = ""
    source: str = ""

    @property
    def _facts(self) -> tuple[int, int, str]:
        return METRICS.get(f"{self.metric}, {self.preset}", METRICS[self.metric])

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return self._facts[0]

    @property
    def places(self) -> int:
        """Digits after the point."""
        return self._facts[1]

    @property
    def units(self) -> str:
        """Ours; the paper's may be unknown."""
        return self._facts[2]


BEST_BY = Column(label="PSNR inside the body, of all baselines", metric="PSNR", region="body", preset="native")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trained system of a table.

    Args:
        name: the paper's name of it.
        config: its run; folds are filled in from the experiment.
        paper: column label -> published value.
        against: the row that it is tested against, or what needs no network: the low-dose input, or the mean SUV by HU.
        resized: train on whole volumes resized to this edge length (by area) and score at the native grid; None for
            native patches.
    """

    name: str
    config: RunConfig
    paper: Mapping[str, Published]
    against: str = INPUT
    resized: int | None = None


@dataclass(frozen=True, kw_only=True)
class SegmenterRow:
    """One organ segmenter of a table that trains no system: its Dice on the full dose is what is scored.

    Args:
        name: the paper's name of it.
        config: the network and its training.
        like: a run that such a network scores; training patients, feed and device are its, and it is not trained.
        paper: column label -> published value.
        against: the row that it is tested against; empty for none.
    """

    name: str
    config: OrganSegmenterConfig
    like: RunConfig
    paper: Mapping[str, Published]
    against: str = ""


@dataclass(frozen=True)
class Order:
    """The paper (or its open question) has ``better`` ahead of ``worse`` in ``column``."""

    better: str
    worse: str
    column: str


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One table.

    Args:
        name: the key in ``EXPERIMENTS``.
        title: what it asks.
        published_in: where the paper's numbers stand.
        cohort: whom it is asked of.
        sources: images that networks start from and whose scores enter the table; where a column is of none of them, a
            patient's scores are averaged over them first.
        columns: scores.
        rows: trained systems, in the paper's order.
        external: whom the rows are tested on, each by the networks of all folds, none of which has seen any of them;
            None for the test patients of ``cohort``.
        segmenters: organ segmenters in the place of ``rows``, which are then none; ``sources`` is the full dose.
        untrained: images that nobody trained, the low-dose input among them: column label -> published value.
        orders: the paper's orderings, each tested over patients.
        folds: parts of the cross-validation; every patient is tested once.
        seeds: trainings of every row on every fold, from other initial weights and with other noise; a patient's scores
            are averaged over them before patients are compared.  The order of the patches is one.
        unet_score: the organ segmenter of the Unet-score, None for none.  The tables of one cohort name the same,
            whether they show it or not, since they share runs and scores.
        lesions: what is to be detected where, None for nothing.
        caveats: what a reader of the table must know, one sentence each.
        of_phantoms: those of the caveats that hold for phantoms only.
    """

    name: str
    title: str
    published_in: str
    cohort: PhantomCohort | UserCohort
    sources: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    untrained: Mapping[str, Mapping[str, Published]]
    orders: tuple[Order, ...]
    folds: int
    seeds: int = 1
    external: PhantomCohort | UserCohort | None = None
    segmenters: tuple[SegmenterRow, ...] = ()
    unet_score: OrganSegmenterConfig | None = None
    lesions: DetectionConfig | None = None
    caveats: tuple[str, ...] = ()
    of_phantoms: tuple[str, ...] = ()

    @property
    def feed(self) -> FeedConfig:
        """The images and their scale of the first row, whose full dose is every row's."""
        return self.rows[0].config.feed if self.rows else self.segmenters[0].like.feed

    @property
    def trained(self) -> tuple[Row | SegmenterRow, ...]:
        """All rows that are trained."""
        return (*self.rows, *self.segmenters)

    @property
    def collected(self) -> tuple[Column, ...]:
        """The columns shown, what tells the best baseline, and the counts that are pooled over patients."""
        if self.lesions is None:
            return (*self.columns, BEST_BY)
        return (*self.columns, BEST_BY, *(count for rule in MATCHINGS for count in counted(self.lesions, rule)))


MATCHINGS: tuple[Matching, ...] = ("overlap", "peak")


def counted(lesions: DetectionConfig, rule: Matching) -> tuple[Column, Column, Column]:
    """Lesions found, lesions, and false positives of a patient by one rule."""
    key = replace(lesions, rule=rule).key
    region = " and ".join(lesions.organs) or "body"
    hits, number, false = (
        Column(label=f"{metric}, {rule}", metric=metric, region=region, preset=PRESET, mask=key)
        for metric in (HITS, LESIONS, FALSE)
    )
    return hits, number, false
