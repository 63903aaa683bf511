"""A report's score tables: image quality by preset, organs, lesions, cases."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from petscale.evaluation.detection import PRESET
from petscale.evaluation.scores import REFERENCE, Evaluation, Summary, plus_minus
from petscale.evaluation.spectra import noise_organ
from trainers.metrics.clinical import ACTIVITY_BIAS, BIASES, NOISE, QUANTITIES, VOLUME
from trainers.metrics.definitions import ScoreDefinition
from trainers.metrics.presets import BODY_PSNR, BODY_SSIM
from trainers.metrics.spectra import DETAIL, TEXTURE
from trainers.metrics.statistics import Interval, agreement, mean_interval

AGREEING = (("SUVmax", "SUVpeak", "SUVmean"), ("MTV", "TLG41"))  # a table each, as wide as the page
MOST_LESIONS = 40  # rows of the lesion table; the CSV holds all


def headline_scores(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """The figures of the header strip: label, and one text per image."""
    lines = []
    for label, rule, region, form in (
        ("PSNR inside the body [dB]", BODY_PSNR, "body", "{:.2f}"),
        ("SSIM inside the body", BODY_SSIM, "body", "{:.4f}"),
        ("Lesion SUVmax bias [%]", BIASES["SUVmax"], "lesions", "{:+.1f}"),
        ("Lesion SUVmean bias [%]", BIASES["SUVmean"], "lesions", "{:+.1f}"),
    ):
        texts = [_mean_text(evaluation.values(name, rule, region), form) for name in evaluation.images]
        if set(texts) != {"–"}:
            lines.append((label, texts))
    return lines


@dataclass(frozen=True)
class ScoreTable:
    """One kind of region by one preset: a column per rule, a line per region and image."""

    preset: str
    title: str
    columns: tuple[tuple[str, str], ...]  # heading, letter of its rule
    lines: tuple[dict[str, object], ...]
    rules: tuple[tuple[str, str], ...]  # letter, text


KINDS = {
    "whole": "Whole volume",
    "body": "Inside the body",
    "organ": "Organs",
    "lesion": "Lesions (mean over a case's lesions, then over cases)",
}


def score_tables(evaluation: Evaluation) -> list[ScoreTable]:
    """Lay out the image-quality scores; the clinical ones have tables of their own."""
    summaries = [line for line in evaluation.summary() if line.definition.preset not in ("clinical", PRESET)]
    letters = iter(_letters())
    tables = []
    for preset in dict.fromkeys(line.definition.preset for line in summaries):
        for kind, title in KINDS.items():
            mine = [line for line in summaries if line.kind == kind and line.definition.preset == preset]
            if not mine:
                continue
            rules = {rule: next(letters) for rule in dict.fromkeys(line.definition for line in mine)}
            lines = _score_lines(evaluation, mine, list(rules))
            columns = tuple((_heading(rule), letter) for rule, letter in rules.items())
            told = tuple((letter, rule.text()) for rule, letter in rules.items())
            tables.append(ScoreTable(preset, title, columns, tuple(lines), told))
    return tables


def _score_lines(
    evaluation: Evaluation, summaries: list[Summary], rules: list[ScoreDefinition]
) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    by_key = {(line.region, line.image, line.definition): line for line in summaries}
    for region in dict.fromkeys(line.region for line in summaries):
        best: dict[ScoreDefinition, float] = {}
        for rule in rules:
            means = [by_key[key].mean for name in evaluation.images if (key := (region, name, rule)) in by_key]
            if means:
                best[rule] = max(means) if rule.higher_is_better else min(means)
        for index, name in enumerate(evaluation.images):
            cells = []
            for rule in rules:
                line = by_key.get((region, name, rule))
                text = "" if line is None else plus_minus(line.mean, line.sd, rule.metric)
                cells.append({"text": text, "best": line is not None and line.mean == best[rule]})
            num = max((by_key[key].num_cases for rule in rules if (key := (region, name, rule)) in by_key), default=0)
            lines.append(
                {
                    "region": region if index == 0 else "",
                    "span": len(evaluation.images),
                    "image": name,
                    "num": num,
                    "cells": cells,
                    "ours": name == evaluation.synthesized,
                }
            )
    return lines


def _heading(rule: ScoreDefinition) -> str:
    return rule.metric if rule.units == "1" else f"{rule.metric} [{rule.units}]"


def _letters() -> Iterable[str]:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    yield from alphabet
    for first in alphabet:
        for second in alphabet:
            yield first + second


def organ_table(evaluation: Evaluation) -> list[dict[str, object]]:
    """Per organ: full-dose SUVmean and noise, and per image the bias of SUVmean and the noise, means over cases."""
    regions = dict.fromkeys(row.region for row in evaluation.rows if row.kind == "organ" and row.definition == VOLUME)
    lines: list[dict[str, object]] = []
    for region in regions:
        lines.append(
            {
                "region": region,
                "mean": _mean_text(evaluation.values(REFERENCE, QUANTITIES["SUVmean"], region), "{:.2f}"),
                "noise": _mean_text(evaluation.values(REFERENCE, NOISE, region), "{:.0f}"),
                "images": [
                    {
                        "mean": _mean_text(evaluation.values(name, BIASES["SUVmean"], region), "{:+.1f}"),
                        "max": _mean_text(evaluation.values(name, BIASES["SUVmax"], region), "{:+.1f}"),
                        "noise": _mean_text(evaluation.values(name, NOISE, region), "{:.0f}"),
                    }
                    for name in evaluation.pictured
                ],
            }
        )
    return lines


def lesion_agreement(evaluation: Evaluation, quantities: Sequence[str]) -> list[dict[str, object]]:
    """Per image: bias of the lesions' uptake against the full dose, its 95 % interval and the limits of agreement."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    quantity_of = {rule: quantity for quantity, rule in BIASES.items()}
    for row in evaluation.rows:
        if row.kind == "lesion" and row.definition in quantity_of and math.isfinite(row.value):
            of_case = found.setdefault((row.image, quantity_of[row.definition]), {})
            of_case.setdefault(row.case, []).append(row.value)
    lines: list[dict[str, object]] = []
    for name in evaluation.images:
        cells = []
        for quantity in quantities:
            values = found.get((name, quantity))
            told = agreement([np.array(own) for own in values.values()]) if values else None
            cells.append(
                {
                    "mean": _text(told.mean if told else None, "{:+.1f}"),
                    "interval": _span(told.interval if told else None),
                    "limits": _span(told.limits if told else None),
                }
            )
        if any(cell["mean"] != "–" for cell in cells):
            lines.append({"image": name, "cells": cells, "ours": name == evaluation.synthesized})
    return lines


def _span(interval: Interval | None, form: str = "{:+.1f}") -> str:
    if interval is None or math.isnan(interval[0]):
        return "–"
    return " to ".join(map(form.format, interval)).replace("-", "−")


def appearance_organ(evaluation: Evaluation) -> str:
    """Return the organ whose noise ``appearance_table`` tells; empty where none is labelled."""
    return noise_organ(list(dict.fromkeys(row.region for row in evaluation.rows if row.kind == "organ")))


def appearance_table(evaluation: Evaluation) -> list[dict[str, object]]:
    """Per image, and of the full dose: bias of the total activity, finest common detail, level and frequency of noise.

    Every cell has the mean over cases and its 95 % interval.
    """
    organ = appearance_organ(evaluation)
    columns = (
        (ACTIVITY_BIAS, "body", "{:+.2f}"),
        (DETAIL, "body", "{:.1f}"),
        (NOISE, organ, "{:.1f}"),
        (TEXTURE, organ, "{:.3f}"),
    )
    lines: list[dict[str, object]] = []
    for name in (*evaluation.images, REFERENCE):
        cells = []
        for rule, region, form in columns:
            values = evaluation.values(name, rule, region)
            interval = mean_interval(np.array(list(values.values()))) if len(values) > 1 else None
            cells.append({"mean": _mean_text(values, form), "interval": _span(interval, form)})
        lines.append({"image": name, "cells": cells, "ours": name == evaluation.synthesized})
    measured = any(row.definition in (ACTIVITY_BIAS, DETAIL) for row in evaluation.rows)
    return lines if measured else []


def lesion_table(evaluation: Evaluation) -> dict[str, object]:
    """Return the lesion table: a line per case and lesion, at most ``MOST_LESIONS``."""
    found: dict[tuple[str, str], dict[tuple[str, ScoreDefinition], float]] = {}
    for row in evaluation.rows:
        if row.kind == "lesion":
            found.setdefault((row.case, row.region), {})[row.image, row.definition] = row.value
    lines = []
    for (case, region), values in list(found.items())[:MOST_LESIONS]:
        lines.append(
            {
                "case": case,
                "region": region,
                "volume": _text(values.get((REFERENCE, VOLUME)), "{:.2f}"),
                "max": _text(values.get((REFERENCE, QUANTITIES["SUVmax"])), "{:.2f}"),
                "mean": _text(values.get((REFERENCE, QUANTITIES["SUVmean"])), "{:.2f}"),
                "images": [
                    {
                        quantity: _text(values.get((name, BIASES[quantity])), "{:+.1f}")
                        for quantity in ("SUVmax", "SUVmean", "SUVpeak")
                    }
                    for name in evaluation.pictured
                ],
            }
        )
    return {"lines": lines, "total": len(found)}


def case_table(evaluation: Evaluation) -> list[dict[str, object]]:
    """PSNR and SSIM inside the body per case and image, and the gain over the input."""
    psnr = {name: evaluation.values(name, BODY_PSNR, "body") for name in evaluation.images}
    similar = {name: evaluation.values(name, BODY_SSIM, "body") for name in evaluation.images}
    ours, theirs = psnr[evaluation.synthesized], psnr[evaluation.images[0]]
    return [
        {
            "case": case,
            "images": [
                (_text(psnr[n].get(case), "{:.2f}"), _text(similar[n].get(case), "{:.4f}")) for n in evaluation.images
            ],
            "gain": _text(ours[case] - theirs[case] if case in ours and case in theirs else None, "{:+.2f}"),
        }
        for case in evaluation.cases
    ]


def _mean_text(values: Mapping[str, float], form: str) -> str:
    return _text(float(np.mean(list(values.values()))) if values else None, form)


def _text(value: float | None, form: str) -> str:
    return "–" if value is None or math.isnan(value) else form.format(value).replace("-", "−")


def image_rules(evaluation: Evaluation) -> dict[str, str]:
    """Return image -> how it was made, for images that say so."""
    return {row.image: row.image_rule for row in evaluation.rows if row.image_rule}
