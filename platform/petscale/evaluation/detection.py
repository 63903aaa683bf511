"""Lesions found on a run's test scans: every image searched alike, summed up for terminal, files and report.

``trainers.metrics.detection`` defines what counts as found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from storage.reader import Case
from storage.source import ImageSource
from trainers.metrics.definitions import Score, ScoreDefinition
from trainers.metrics.detection import DetectionConfig, Found, Search, detect, search
from trainers.metrics.detection_statistics import froc, mcnemar, summarise, suvmax_bias
from trainers.metrics.identifiers import GRADIENT_ENERGY, HIGH_FREQUENCY_POWER
from trainers.metrics.realism import Realism, realism

PRESET = "detection"
BOOTSTRAP_SEED = 0
TPR, HITS, LESIONS, FALSE = "TPR", "lesions found", "lesions", "false positives"
SHARPNESS, NOISE_POWER = "gradient energy", "high-frequency power"


@dataclass(frozen=True, eq=False)
class Scan:
    """What was found on one scan: image -> findings and realism."""

    case: str
    subject: str
    founds: Mapping[str, Found]
    realism: Mapping[str, Realism]


def search_case(case: Case, config: DetectionConfig) -> Search:
    """Find where in a case lesions are looked for.

    Raises:
        InputError: ``SET_NO_LABELS``.
    """
    labels = case.image("labels") if case.labels else None
    return search(config, labels=labels, label_names=case.labels, body=case.image("body"))


def detect_case(case: Case, reference: ImageSource, images: Mapping[str, ImageSource], config: DetectionConfig) -> Scan:
    """Search every image of a case; ``reference`` is the real PET.

    Raises:
        InputError: as ``search_case`` and ``Search.read``.
    """
    where = search_case(case, config)
    real = where.read(reference)
    read = {name: where.read(image) for name, image in images.items()}
    founds = {name: detect(real, voxels, where, config) for name, voxels in read.items()}
    return Scan(case.name, case.subject, founds, {name: realism(real, voxels, where) for name, voxels in read.items()})


def scores(scan: Scan, config: DetectionConfig) -> list[Score]:
    """Return one scan's findings as scores: by both rules of matching, and how real every image looks."""
    region, kind = (" and ".join(config.organs), "organ") if config.organs else ("body", "body")
    rows = []

    def add(image: str, metric: str, units: str, value: float | None, mask: str) -> None:
        rule = ScoreDefinition(metric, "ROI" if config.organs else "body", mask, units, preset=PRESET)
        if value is not None:
            rows.append(Score(scan.case, image, region, kind, rule, value))

    for image, found in scan.founds.items():
        for matching in ("overlap", "peak"):
            key = replace(config, rule=matching).key
            hits = found.at.found(matching)
            add(image, TPR, "1", sum(hits) / len(hits) if hits else None, key)
            add(image, HITS, "per scan", sum(hits), key)
            add(image, LESIONS, "per scan", len(hits), key)
            add(image, FALSE, "per scan", found.at.false(matching), key)
        like = scan.realism[image]
        add(image, SHARPNESS, "of the real PET's", like.gradient_energy_ratio, GRADIENT_ENERGY)
        add(image, NOISE_POWER, "of the real PET's", like.high_frequency_ratio, HIGH_FREQUENCY_POWER)
    return rows


def as_json(scans: Sequence[Scan], config: DetectionConfig) -> dict[str, Any]:
    """Return all that is told of at least one scan, the last image compared with each of the others."""
    images = list(scans[0].founds)
    subjects = [scan.subject for scan in scans]
    told: dict[str, Any] = {}
    for image in images:
        founds = [scan.founds[image] for scan in scans]
        bias = suvmax_bias(founds)
        told[image] = {
            **{
                rule: summarise(founds, replace(config, rule=rule), seed=BOOTSTRAP_SEED, patients=subjects).json()
                for rule in ("overlap", "peak")
            },
            "froc": froc(founds, config).json(),
            "suvmax_bias": asdict(bias) if bias else None,
            "gradient_energy_ratio": _mean([scan.realism[image].gradient_energy_ratio for scan in scans]),
            "high_frequency_ratio": _mean([scan.realism[image].high_frequency_ratio for scan in scans]),
        }
    ours = [scan.founds[images[-1]] for scan in scans]
    against = {
        other: asdict(mcnemar(ours, [scan.founds[other] for scan in scans], config.rule)) for other in images[:-1]
    }
    return {"rule": config.text(), "images": told, "lesions_only_it_finds": against}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def table(found: Mapping[str, Any]) -> Table:
    """Return what ``as_json`` tells for the terminal."""
    shown = Table(title=f"Lesion detection; {found['rule']}", title_justify="left")
    for name in ("image", "TPR", "false positives per scan", "TPR by peak", "sharpness"):
        shown.add_column(name, justify="left" if name == "image" else "right")
    for line in lines(found):
        shown.add_row(line["image"], line["tpr"], line["false"], line["peak"], line["sharpness"])
    return shown


def lines(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the cells of a table of ``as_json``, a line per image, intervals of 95 % in brackets."""
    cells = []
    for image, told in found["images"].items():
        by_overlap, by_peak, bias = told["overlap"], told["peak"], told["suvmax_bias"]
        cells.append(
            {
                "image": image,
                "tpr": _share(by_overlap),
                "false": f"{by_overlap['false_per_scan']:.2f} {_interval(by_overlap['false_interval'])}",
                "peak": f"{_share(by_peak)}, {by_peak['false_per_scan']:.2f} per scan",
                "at_one": f"{dict(told['froc']['tpr_at'])[1.0]:.2f}",
                "bias": "–" if bias is None else f"{bias['mean']:+.2f}",
                "hot": _ratio(by_overlap["hot_over_lesions"]),
                "sharpness": _ratio(told["gradient_energy_ratio"]),
                "noise": _ratio(told["high_frequency_ratio"]),
            }
        )
    return cells


def _share(told: Mapping[str, Any]) -> str:
    if told["tpr"] is None:
        return "no lesion"
    return f"{told['num_found']}/{told['num_lesions']} {_interval(told['tpr_interval'])}"


def _interval(interval: Sequence[float]) -> str:
    return f"({interval[0]:.2f} to {interval[1]:.2f})"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
