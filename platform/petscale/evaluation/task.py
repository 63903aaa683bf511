"""Can a lesion still be seen?  Lesions put into the truth of simulated scans, and an observer that looks for them.

PSNR says little of that.  Spheres of known size and contrast are added to the activity, and the scan is simulated with
and without them, with noise of its own each time.  Every method restores both, and a channelized Hotelling observer
(``trainers.metrics.observer``), trained on the other patients, tells them apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from petscale.console import console
from petscale.evaluation.baselines import Baseline
from petscale.evaluation.scores import REFERENCE, SYNTHESIZED
from petscale.evaluation.spectra import LIVER
from petscale.inference import Trained, synthesize_image
from storage import integrity
from storage.errors import InputError
from storage.lowdose import LowDoseConfig, LowDoseSource
from storage.ranges import Range, check_ranges
from storage.reader import Case
from storage.source import SUV, ArraySource, Grid, ImageSource
from trainers.metrics import observer
from trainers.metrics.slabs import slabs

TRUTH = "truth"
GUARD_MM = 6.0  # of the organ around a lesion
HALF_MM = 18.0  # of the cube that the observer sees
FIRST_REALISATION = 10_000  # noise that no training scan has
FEWEST = 4  # places in all
Offsets = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Which lesions are looked for.

    Args:
        lesion_mm: diameter of the spheres.
        lesion_contrast: their uptake over that of what they lie in.
        places: in a scan, at most; as many as the liver has room for (without a label of it: the body).
        scans: pairs of scans of each case, with and without lesions.
        seed: of the places.
    """

    lesion_mm: Annotated[float, Range(above=0)] = 12.0
    lesion_contrast: Annotated[float, Range(above=1)] = 1.6
    places: Annotated[int, Range(1)] = 12
    scans: Annotated[int, Range(1)] = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, "task")


@dataclass(frozen=True, eq=False)
class Planned:
    """Where lesions are put into a case.

    Args:
        case: the case.
        organ: what they lie in.
        scan: how its low dose was simulated.
        centres: (places, 3) voxels (z, y, x).
        levels: SUV of the truth there.
    """

    case: Case
    organ: str
    scan: LowDoseConfig
    centres: Offsets
    levels: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _WithLesions:
    """The truth with spheres in it."""

    truth: ImageSource
    centres: Offsets
    added: NDArray[np.float64]  # SUV
    diameter_mm: float

    @property
    def grid(self) -> Grid:
        return self.truth.grid

    @property
    def units(self) -> str:
        return self.truth.units

    @property
    def provenance(self) -> Mapping[str, object]:
        return self.truth.provenance

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        slab = np.array(self.truth.read(z0, z1), dtype=np.float32)
        ball = sphere(self.diameter_mm, self.grid.spacing_mm)
        half = np.array(ball.shape) // 2
        for centre, suv in zip(self.centres, self.added, strict=True):
            low, high = centre - half, centre + half + 1
            first, last = max(int(low[0]), z0), min(int(high[0]), z1)
            if first < last:
                part = ball[first - int(low[0]) : last - int(low[0])]
                slab[first - z0 : last - z0, low[1] : high[1], low[2] : high[2]] += part * np.float32(suv)
        return slab


def sphere(diameter_mm: float, spacing_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    """Return how much of every voxel lies in a sphere about the middle one: (z, y, x), odd edges, 0 to 1."""
    parts = (np.arange(5) - 2) / 5
    reach = [int(np.ceil(diameter_mm / 2 / mm)) for mm in spacing_mm]
    axes = [np.add.outer(np.arange(-r, r + 1), parts) * mm for r, mm in zip(reach, spacing_mm, strict=True)]
    z, y, x = (np.square(axis) for axis in axes)
    square = z[:, None, None, :, None, None] + y[None, :, None, None, :, None] + x[None, None, :, None, None, :]
    return np.asarray((square <= (diameter_mm / 2) ** 2).mean(axis=(3, 4, 5)), dtype=np.float32)


def plan_all(cases: Sequence[Case], source: str, config: TaskConfig) -> list[Planned]:
    """Choose where lesions are put into all cases; refused before anything is simulated.

    Raises:
        InputError: those of ``plan``; SET_TOO_SMALL for fewer than four places in all.
    """
    found = [plan(case, source, config) for case in cases]
    if (num := sum(len(one.centres) for one in found)) < FEWEST:
        raise InputError(
            "SET_TOO_SMALL",
            where="--task",
            found=f"{num} places for lesions",
            remedy="score more cases, or choose a smaller --lesion-mm",
        )
    return found


def plan(case: Case, source: str, config: TaskConfig) -> Planned:
    """Choose where lesions are put: inside one organ, apart from each other and from the case's own lesions.

    Args:
        case: a committed case.
        source: the low dose that methods start from.
        config: which lesions.

    Raises:
        InputError: SET_NO_IMAGE for a case that was not simulated; CFG_NO_EFFECT for a CT; SET_NO_LABELS where there is
            no room for a lesion.
    """
    low = case.image(source)
    if low.units != SUV:
        raise InputError("CFG_NO_EFFECT", where="--task", found="a run that starts from CT", remedy="leave it out")
    facts = low.provenance
    known = facts.get("config")
    lacking = facts.get("kind") != "simulated low dose" or not isinstance(known, Mapping) or TRUTH not in case.images
    if lacking or (facts.get("ct") is not None and "ct" not in case.images):
        raise InputError(
            "SET_NO_IMAGE",
            where=f"case {case.name}",
            found="no simulated scan with its truth, into which lesions could be put",
            remedy="use --task on cohorts of `petscale phantom` or `petscale simulate`",
        )
    assert isinstance(known, Mapping)
    names = {field.name for field in fields(LowDoseConfig)}
    scan = LowDoseConfig(**{name: value for name, value in known.items() if name in names})
    organ = next((label for label, name in case.labels.items() if name == LIVER), None)
    marks = case.image("body") if organ is None else case.image("labels")
    centres = places(marks, organ, config)
    if not len(centres):
        raise InputError(
            "SET_NO_LABELS",
            where=f"case {case.name}",
            found=f"no room for a lesion of {config.lesion_mm:g} mm in the {LIVER if organ else 'body'}",
            remedy="choose a smaller --lesion-mm",
        )
    truth = case.image(TRUTH)
    levels = [float(_cube(truth, centre, (1, 1, 1)).mean()) for centre in centres]
    return Planned(case, LIVER if organ is not None else "body", scan, centres, np.array(levels))


def places(marks: ImageSource, organ: int | None, config: TaskConfig) -> Offsets:
    """Return (places, 3) voxels whose surroundings lie in the organ, in an order that the seed draws.

    Args:
        marks: labels, or the body where ``organ`` is None.
        organ: its label.
        config: how large lesions are, and how many.
    """
    shape, spacing = marks.grid.shape, np.array(marks.grid.spacing_mm)
    inside = np.zeros(shape, dtype=bool)
    for z0, z1 in slabs(shape):
        slab = marks.read(z0, z1)
        inside[z0:z1] = slab > 0.5 if organ is None else np.rint(slab) == organ
    radius_mm = config.lesion_mm / 2 + max(GUARD_MM, *spacing)
    reach = np.minimum(radius_mm / spacing, max(shape)).astype(int)
    if (2 * reach + 1 > shape).any():
        return np.empty((0, 3), dtype=np.intp)
    at = np.argwhere(inside)
    order = np.random.Generator(np.random.Philox(config.seed)).permutation(len(at))
    at = at[order]
    for end in (*np.diag(reach), *-np.diag(reach)):  # most places fail already at the ball's six ends
        far = at + end
        there = ((far >= 0) & (far < shape)).all(axis=1)
        at = at[there]
        at = at[inside[tuple(far[there].T)]]
    offsets = _ball(radius_mm, spacing)
    chosen: list[Offsets] = []
    for centre in at:
        if len(chosen) == config.places:
            break
        away = [np.linalg.norm((centre - other) * spacing) for other in chosen]
        around = centre + offsets
        if min(away, default=np.inf) < 2 * HALF_MM or (around < 0).any() or (around >= shape).any():
            continue
        if inside[tuple(around.T)].all():
            chosen.append(centre)
    return np.array(chosen, dtype=np.intp).reshape(-1, 3)


def _ball(radius_mm: float, spacing_mm: NDArray[np.float64]) -> Offsets:
    reach = (radius_mm / spacing_mm).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    return np.asarray(grid[np.square(grid * spacing_mm).sum(axis=1) <= radius_mm**2])


def _cube(image: ImageSource, centre: Offsets, half: Sequence[int]) -> NDArray[np.float64]:
    """The voxels about a centre, those beyond a face repeated from it."""
    index = [
        np.clip(np.arange(c - h, c + h + 1), 0, n - 1) for c, h, n in zip(centre, half, image.grid.shape, strict=True)
    ]
    low, high = int(index[0].min()), int(index[0].max()) + 1
    return np.asarray(image.read(low, high)[np.ix_(index[0] - low, index[1], index[2])], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the observer sees of every image: outputs (places, channels) with and without lesions.

    Args:
        present, absent: image -> outputs.
        cases: of every place; numbers: its number in the case.
    """

    present: Mapping[str, NDArray[np.float64]]
    absent: Mapping[str, NDArray[np.float64]]
    cases: tuple[str, ...]
    numbers: tuple[int, ...]


def look(planned: Planned, source: str, trained: Trained, baseline: Baseline, config: TaskConfig) -> Seen:
    """Simulate, restore and look at a case's lesions and at their absence."""
    case = planned.case
    ct = case.image("ct") if case.image(source).provenance.get("ct") is not None else None
    truth = case.image(TRUTH)
    added = planned.levels * (config.lesion_contrast - 1)
    with_lesions = _WithLesions(truth, planned.centres, added, config.lesion_mm)
    outputs: tuple[dict[str, list[NDArray[np.float64]]], ...] = ({}, {})
    for number in range(config.scans):
        told = f"lesions put in: {case.name}, scan {number + 1} of {config.scans} with and without them"
        console.print(told, markup=False, soft_wrap=True)
        activities: tuple[ImageSource, ImageSource] = (with_lesions, truth)
        for kind, activity in enumerate(activities):
            scan = replace(planned.scan, realisation=FIRST_REALISATION + 2 * number + kind)
            for name, image in _images(activity, ct, scan, case, source, trained, baseline):
                outputs[kind].setdefault(name, []).append(_outputs(image, planned.centres))
    present, absent = ({name: np.concatenate(found) for name, found in one.items()} for one in outputs)
    places_of = tuple(range(len(planned.centres))) * config.scans
    return Seen(present, absent, (case.name,) * len(places_of), places_of)


def _images(
    activity: ImageSource,
    ct: ImageSource | None,
    scan: LowDoseConfig,
    case: Case,
    source: str,
    trained: Trained,
    baseline: Baseline,
) -> Iterator[tuple[str, ImageSource]]:
    """Give a scan's full dose, its low dose, and what every method makes of it."""
    yield REFERENCE, _kept(LowDoseSource(activity, ct, replace(scan, drf=1.0)))
    low = _kept(LowDoseSource(activity, ct, scan))
    yield from baseline.beside(low).items()
    with integrity.scratch() as scratch:
        yield SYNTHESIZED, synthesize_image(trained, low, scratch, dose=case.image(source).dose).mean


def _kept(image: ImageSource) -> ArraySource:
    return ArraySource(image.read(0, image.grid.shape[0]), image.grid, image.units, image.provenance)


def _outputs(image: ImageSource, centres: Offsets) -> NDArray[np.float64]:
    """The channels' outputs at every place: (places, channels)."""
    half = [max(1, round(HALF_MM / mm)) for mm in image.grid.spacing_mm]
    shape = (2 * half[0] + 1, 2 * half[1] + 1, 2 * half[2] + 1)
    templates = observer.channels(shape, image.grid.spacing_mm).reshape(observer.CHANNELS, -1)
    cubes = np.stack([_cube(image, centre, half).ravel() for centre in centres])
    return np.asarray(cubes @ templates.T)


def summarise(
    seen: Sequence[Seen], planned: Sequence[Planned], config: TaskConfig, best_baseline: str
) -> dict[str, Any]:
    """Return the detectability of every image as JSON-able values; None stands for what is not known."""
    cases = [case for one in seen for case in one.cases]
    by_case = len(dict.fromkeys(cases)) >= 3
    places_of = [f"{case} {number}" for one in seen for case, number in zip(one.cases, one.numbers, strict=True)]
    groups = cases if by_case else places_of
    rated = {}
    for name in seen[0].present:
        present, absent = (np.concatenate([getattr(one, kind)[name] for one in seen]) for kind in ("present", "absent"))
        rated[name] = observer.ratings(present, absent, groups)
    images = []
    for name, (present, absent) in rated.items():
        told = observer.detectability(present, absent, groups)
        images.append({"image": name, **asdict(told), "interval": list(told.interval)})
    gain, interval = observer.difference(rated[SYNTHESIZED], rated[best_baseline], groups)
    organs = " or ".join(sorted({one.organ for one in planned}))
    num_places, num_cases = len(dict.fromkeys(places_of)), len(dict.fromkeys(cases))
    others = "cases" if by_case else "places"
    return {
        "rule": (
            f"spheres of {config.lesion_mm:g} mm with {config.lesion_contrast:g} times the uptake of the {organs} "
            f"around them, in the activity before the scan; {len(cases)} with and as many without a lesion, at "
            f"{num_places} places of {num_cases} case(s), {config.scans} scans of each; channelized Hotelling "
            f"observer, trained on the other {others}; intervals: bootstrap over {others}"
        ),
        "best_baseline": best_baseline,
        "gain": {"auc": gain, "interval": list(interval)},
        "images": images,
    }


def lines(told: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return a line per image as text: its name, area, interval, d', false positives."""
    return [
        (
            one["image"],
            f"{one['auc']:.3f}",
            _span(one["interval"]),
            f"{one['d_prime']:.2f}".replace("-", "−"),
            f"{100 * one['false_at_80']:.0f} %",
        )
        for one in told["images"]
    ]


def gain_sentence(told: Mapping[str, Any]) -> str:
    """Say how the synthesized image compares with the best baseline."""
    span = _span(told["gain"]["interval"], "+.3f")
    gain = f"{told['gain']['auc']:+.3f}".replace("-", "−")
    return f"{SYNTHESIZED} against {told['best_baseline']}: {gain} ({span})"


def _span(interval: Sequence[float | None], form: str = ".3f") -> str:
    low, high = interval
    if low is None or high is None or np.isnan(low):
        return "–"
    return f"{low:{form}} to {high:{form}}".replace("-", "−")


HEADINGS = ("image", "area under the ROC curve", "95 % interval", "d'", "called a lesion where 80 % of lesions are")


def table(told: Mapping[str, Any]) -> Table:
    """Return what an observer finds for the terminal."""
    shown = Table(*HEADINGS, title="lesions put in: can they be told from none?", title_justify="left", box=SIMPLE_HEAD)
    for line in lines(told):
        shown.add_row(*line)
    shown.caption, shown.caption_justify = gain_sentence(told), "left"
    return shown
