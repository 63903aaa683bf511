"""How much can be gained at all, where the truth is known: on simulated scans, and never on real ones.

No method can know the noise of the full dose, which every score against it holds.  The ceiling is what a method would
reach that knew everything else: the same simulated scan of the same truth, reconstructed without noise.  Where the low
dose is made of counts of the full dose itself, it holds the share 1/DRF of the full dose's noise, and the best answer
is low / DRF + (1 - 1/DRF) noise-free.  Scores against the truth itself stand beside those against the full dose.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from petscale.evaluation.filters import BlockedSource
from petscale.evaluation.scores import Evaluation, region_group
from petscale.evaluation.scoring import lesions_of
from storage.lowdose import LowDoseConfig, LowDoseSource
from storage.reader import Case
from storage.source import SUV, Grid, ImageSource
from trainers.metrics.clinical import BIASES, uptake_scores
from trainers.metrics.definitions import Region
from trainers.metrics.presets import BODY_PSNR
from trainers.metrics.streaming import stream_scores

IDEAL = "noise-free reconstruction"
SHARED = "noise-free, with the input's counts"
TRUTH, FULL = "truth", "full dose"
RULE = (
    "the truth scanned and reconstructed as the full dose was, from expected counts instead of drawn ones; with the "
    "input's counts: low / DRF + (1 - 1/DRF) of it, where the low dose is a part of the full dose's counts"
)


@dataclass(frozen=True, eq=False)
class _Mixed:
    """The noise-free image, with the share of the full dose's own noise that the low dose holds."""

    low: ImageSource
    ideal: ImageSource
    share: float

    @property
    def grid(self) -> Grid:
        return self.ideal.grid

    @property
    def units(self) -> str:
        return self.ideal.units

    @property
    def provenance(self) -> Mapping[str, object]:
        return {"rule": RULE}

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        mixed = self.share * self.low.read(z0, z1) + (1 - self.share) * self.ideal.read(z0, z1)
        return np.ascontiguousarray(mixed, dtype=np.float32)


def oracles(case: Case, source: str, target: str) -> dict[str, ImageSource]:
    """Return the images that know everything but noise, the best against the full dose last; {} on real scans.

    Args:
        case: a committed case; its truth, and how it was scanned, are known where it was simulated.
        source: what methods start from.
        target: the full dose.
    """
    facts = case.image(target).provenance
    config = facts.get("config")
    with_ct = facts.get("ct") is not None
    if facts.get("kind") != "simulated low dose" or not isinstance(config, Mapping) or TRUTH not in case.images:
        return {}
    if with_ct and "ct" not in case.images:
        return {}
    known = {field.name for field in fields(LowDoseConfig)}
    scan = LowDoseConfig(**{name: value for name, value in config.items() if name in known})
    ct = case.image("ct") if with_ct else None
    # Kept once computed, for it is read several times.
    ideal = BlockedSource(LowDoseSource(case.image(TRUTH), ct, scan, "expected"), lambda slab: slab, 0, RULE)
    found: dict[str, ImageSource] = {IDEAL: ideal}
    dose = case.image(source).dose
    if dose is not None and dose.shares_noise:
        found[SHARED] = _Mixed(case.image(source), ideal, 1 / dose.drf)
    return found


Row = dict[str, object]  # case, image, against, metric, region, value


def ceiling_rows(
    case: Case, source: str, target: str, candidates: Mapping[str, ImageSource], known: Sequence[Row] = ()
) -> list[Row]:
    """Score what knows everything but noise against the full dose, and it and every candidate against the truth.

    Args:
        case: a committed case.
        source: what the candidates start from.
        target: the full dose.
        candidates: name -> image.
        known: rows of earlier calls; those of this case and of images other than the candidates are taken over.

    Returns:
        PSNR inside the body, and against the truth the bias of SUVmean and SUVmax of every lesion; [] on real scans.

    Raises:
        InputError: as ``stream_scores``.
    """
    kept = [row for row in known if row["case"] == case.name and row["image"] not in candidates]
    best = {} if any(row["image"] == IDEAL for row in kept) else oracles(case, source, target)
    if not kept and not best:
        return []
    body, rows = case.image("body"), list(kept)

    def add(images: Mapping[str, ImageSource], reference: ImageSource, against: str, labelled: bool) -> None:
        scores = stream_scores(case.name, reference, images, [BODY_PSNR], [Region("body", "body")], body=body)
        if labelled and case.labels:
            names = [name for name in case.labels.values() if name.startswith("lesion")]
            labels, lesions = lesions_of(case.image("labels"), case.labels, names)
            found = uptake_scores(case.name, reference, images, lesions, labels=labels, reference_name=TRUTH)
            scores += [row for row in found if row.definition in (BIASES["SUVmean"], BIASES["SUVmax"])]
        rows.extend(
            {
                "case": case.name,
                "image": row.image,
                "against": against,
                "metric": row.definition.metric,
                "region": region_group(row),
                "value": None if math.isnan(row.value) else row.value,
            }
            for row in scores
        )

    if best:
        add(best, case.image(target), FULL, labelled=False)
    add({**best, **candidates}, case.image(TRUTH), TRUTH, labelled=True)
    return rows


@dataclass(frozen=True)
class Line:
    """One image in a table of ceilings; NaN where it is not known.

    Args:
        image: its name.
        psnr_full: mean PSNR inside the body against the full dose, dB.
        psnr_truth: the same against the truth.
        suv_mean, suv_max: mean magnitude of the lesions' biases against the truth, %.
        share: part of the attainable gain, mean over cases: (its PSNR - the input's) / (the best possible one - the
            input's), against the full dose.
        num_cases: over how many cases.
    """

    image: str
    psnr_full: float
    psnr_truth: float
    suv_mean: float
    suv_max: float
    share: float
    num_cases: int


def ceiling_lines(evaluation: Evaluation, start: str = "") -> list[Line]:
    """Return a line per image and per oracle; [] for an evaluation without ceilings.

    Args:
        evaluation: its metadata holds ``ceiling``, see ``as_json``.
        start: the untreated input; default: the first image.
    """
    about = evaluation.metadata.get("ceiling")
    if not isinstance(about, Mapping):
        return []
    rows: Sequence[Mapping[str, Any]] = about["rows"]
    names = list(dict.fromkeys([*evaluation.images, *(row["image"] for row in rows)]))

    def values(image: str, against: str, metric: str = "PSNR") -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for row in rows:
            if (row["image"], row["against"], row["metric"]) == (image, against, metric) and row["value"] is not None:
                found.setdefault(row["case"], []).append(float(row["value"]))
        return found

    def full(image: str) -> dict[str, float]:
        own = evaluation.values(image, BODY_PSNR, "body")
        return own or {case: found[0] for case, found in values(image, FULL).items()}

    top = full(SHARED) or full(IDEAL)
    low = full(start or evaluation.images[0]) if about["from_pet"] else {}
    lines = []
    for name in names:
        psnr = full(name)
        shares = [
            (psnr[case] - low[case]) / (top[case] - low[case])
            for case in psnr
            if case in low and case in top and top[case] > low[case]
        ]
        sizes = [
            _mean([float(np.mean(np.abs(found))) for found in values(name, TRUTH, BIASES[quantity].metric).values()])
            for quantity in ("SUVmean", "SUVmax")
        ]
        truth = [found[0] for found in values(name, TRUTH).values()]
        lines.append(Line(name, _mean([*psnr.values()]), _mean(truth), sizes[0], sizes[1], _mean(shares), len(psnr)))
    return lines


def _mean(values: Collection[float]) -> float:
    return float(np.mean([*values])) if values else math.nan


def as_json(rows: Sequence[Row], case: Case, source: str) -> dict[str, object]:
    """Return what an evaluation keeps of ceilings."""
    return {"rule": RULE, "from_pet": case.image(source).units == SUV, "rows": list(rows)}


def cells(line: Line) -> tuple[str, ...]:
    """Return a line as text: PSNR twice, biases, share."""

    def text(value: float, form: str) -> str:
        return "–" if math.isnan(value) else form.format(value)

    share = text(100 * line.share, "{:.0f} %").replace("-", "−")
    quality = (text(value, "{:.2f}") for value in (line.psnr_full, line.psnr_truth))
    return (line.image, *quality, text(line.suv_mean, "{:.1f}"), text(line.suv_max, "{:.1f}"), share)


HEADINGS = (
    "image",
    "PSNR against the full dose",
    "PSNR against the truth",
    "lesion SUVmean, magnitude of bias against the truth, %",
    "lesion SUVmax, the same, %",
    "share of what can be gained",
)


def table(evaluation: Evaluation) -> Table | None:
    """Return the ceilings of an evaluation for the terminal; None without."""
    lines = ceiling_lines(evaluation)
    if not lines:
        return None
    shown = Table(*HEADINGS, title="simulated data: what can be gained at all", title_justify="left", box=SIMPLE_HEAD)
    for line in lines:
        shown.add_row(*cells(line))
    return shown


def share_sentence(evaluation: Evaluation) -> str:
    """Say how much of what can be gained was gained, and by the best baseline; empty where it is not known."""
    lines = {line.image: line for line in ceiling_lines(evaluation)}
    ours = lines.get(evaluation.synthesized)
    if ours is None or math.isnan(ours.share):
        return ""
    best = lines[evaluation.best_baseline]
    top = lines.get(SHARED) or lines[IDEAL]
    ours_share, best_share = (f"{100 * line.share:.0f} %".replace("-", "−") for line in (ours, best))
    return (
        f"{ours_share} of what can be gained over the {evaluation.images[0]} was gained, by the best "
        f"baseline ({best.image}) {best_share}; the data are simulated, and an image without noise of "
        f"its own would reach {top.psnr_full:.2f} dB ({top.image})."
    )
