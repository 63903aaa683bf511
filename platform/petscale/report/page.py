"""The report: what a reader must see about a run, put on one HTML page that loads nothing.

What it knows: which table, picture and sentence the scores allow.  What it refuses to know: how anything was computed,
and any claim beyond what the scores support.
"""

import base64
import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from petscale import detection
from petscale.evaluate import REFERENCE, Evaluation, Summary, plus_minus
from petscale.report import pictures
from storage.integrity import write_bytes
from storage.source import ImageSource
from trainers.metrics.clinical import BIASES, NOISE, QUANTITIES, VOLUME
from trainers.metrics.definitions import ScoreDefinition
from trainers.metrics.presets import BODY_PSNR, BODY_SSIM
from trainers.metrics.statistics import Gain

SIGNIFICANT = 0.05
MOST_LESIONS = 40  # rows of the lesion table; the CSV holds all
HISTOGRAM_TOP_SUV = 10.0


@dataclass(frozen=True, eq=False)
class CaseImages:
    """The images of a case to be pictured, all on one grid.

    Args:
        reference: full dose.
        candidates: as given to ``score_case``, in order.
        body: greater than 0.5 inside the patient.
        ct: what the network started from, where it was a CT; shown, never scored.
    """

    reference: ImageSource
    candidates: Mapping[str, ImageSource]
    body: ImageSource
    ct: ImageSource | None = None


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything a report says.

    Args:
        title: heading of the page.
        evaluation: the scores.
        images: case -> sources, for any of the evaluation's cases; the median and the worst are pictured.
        command: the exact command that made the run; the page shows it as given, so it must name no patient.
        config: the resolved configuration, shown as given.
        metrics: training log, one mapping per line as read by ``read_metrics``.
        environment: name -> fact: versions, hardware, data kind.
        cohort_digest: root digest of the cohort.
        suv_rules: case -> the rule by which its SUV reference time was found.
        suv_window: SUV drawn white and black in every panel.
        difference_window: SUV drawn in the strongest colours of the difference.
        notes: limits of this run to be said beside the verdict, for instance that the data are simulated.
    """

    title: str
    evaluation: Evaluation
    images: Mapping[str, CaseImages]
    command: str
    config: Mapping[str, object]
    metrics: Sequence[Mapping[str, object]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    cohort_digest: str = ""
    suv_rules: Mapping[str, str] = field(default_factory=dict)
    suv_window: tuple[float, float] = (0.0, 7.0)
    difference_window: float = 2.0
    notes: Sequence[str] = ()


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to ``path`` (.html), whole or not at all.

    Raises:
        InputError: ``DISK_FULL`` and its kin, if the file cannot be written.
    """
    write_bytes(path, render(data).encode())


def render(data: ReportData) -> str:
    """Return the page as HTML text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("petscale.report").joinpath("template.html.j2").read_text("utf-8"))
    evaluation = data.evaluation
    content, table = _numbers(evaluation)
    chosen = _chosen(data)
    return template.render(
        data=data,
        evaluation=evaluation,
        verdict=verdict(evaluation),
        headline_scores=_headline_scores(evaluation),
        tables=score_tables(evaluation),
        organs=_organ_table(evaluation),
        lesions=_lesion_table(evaluation),
        cases=_case_table(evaluation),
        shown=[_pictured(data, case, why) for case, why in chosen.items()],
        noise_bias=_noise_bias(evaluation),
        bland_altman=_bland_altman(evaluation),
        histogram=_histogram([data.images[case] for case in chosen]),
        grey_bar=pictures.colour_bar(pictures.GREY),
        difference_bar=pictures.colour_bar(pictures.DIVERGING),
        detection=_detection(evaluation),
        from_ct=any(images.ct for images in data.images.values()),
        ct_window=_window(pictures.CT_HU),
        bone_window=_window(pictures.BONE_HU),
        curves=_curves(data.metrics),
        image_rules=_image_rules(evaluation),
        config=json.dumps(data.config, indent=2, sort_keys=True, default=str),
        numbers=_script_json(content),
        csv_uri="data:text/csv;base64," + base64.b64encode(table.encode()).decode(),
    )


def read_metrics(path: Path) -> list[dict[str, object]]:
    """Read a training log of one JSON object per line; a line cut off by a crash is left out."""
    lines: list[dict[str, object]] = []
    for text in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


# ---- words ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What the headline scores allow to be said: ``better``, ``mixed`` or ``worse``, and why."""

    state: str
    headline: str
    sentences: tuple[str, ...]


def verdict(evaluation: Evaluation) -> Verdict:
    """Judge the network by PSNR inside the body, against the untreated input and against every filter beside it."""
    first, *filters = evaluation.images[:-1]
    over_input = evaluation.gain(first)
    if over_input is None:
        return Verdict("mixed", "No case has both images: nothing can be said", ())
    over_filters = [gain for name in filters if (gain := evaluation.gain(name)) is not None]
    gains = (over_input, *over_filters)
    quiet = [gain.over for gain in gains if gain.p_value is not None and gain.p_value >= SIGNIFICANT]
    better = [gain.over for gain in gains if gain.mean > 0 and gain.over not in quiet]
    worse = [gain.over for gain in gains if gain.mean <= 0 and gain.over not in quiet]
    said = [f"better than {_listed(better)}"] if better else []
    said += [f"no clear difference from {_listed(quiet)}"] if quiet else []
    said += [f"not better than {_listed(worse)}"] if worse else []
    headline = ", ".join(said)
    state = "worse" if first in worse else "mixed" if quiet or worse else "better"
    sentences = [_gain_sentence(gain) for gain in gains]
    if over_input.p_value is None:
        sentences.append(f"With {over_input.num_cases} test case(s) no significance test is made.")
    elif quiet:
        sentences.append(f"The difference from {_listed(quiet)} is not statistically significant.")
    sentences += _bias_sentences(evaluation, first)
    return Verdict(state, f"{headline[0].upper()}{headline[1:]} in PSNR inside the body.", tuple(sentences))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"the {name}" if name == "low-dose input" else name for name in names)


def _gain_sentence(gain: Gain) -> str:
    spread = "" if math.isnan(gain.sd) else f" ± {gain.sd:.2f}"
    of = "one case" if gain.num_cases == 1 else "mean ± sd"
    test = "" if gain.p_value is None else f", two-sided Wilcoxon p = {gain.p_value:.2g}"
    return (
        f"{_signed(gain.mean, 2)}{spread} dB against {gain.over} ({of}; "
        f"higher in {gain.num_better} of {gain.num_cases} cases{test})."
    )


def _bias_sentences(evaluation: Evaluation, first: str) -> list[str]:
    """Say how far lesion uptake is from the full dose, before and after: PSNR does not show it."""
    sentences = []
    for quantity in ("SUVmax", "SUVmean"):
        ours, theirs = (
            [
                abs(row.value)
                for row in evaluation.rows
                if row.image == name and row.definition == BIASES[quantity] and row.kind == "lesion"
            ]
            for name in (evaluation.synthesized, first)
        )
        if ours and theirs:
            after, before = float(np.nanmean(ours)), float(np.nanmean(theirs))
            sentences.append(
                f"Lesion {quantity} is {'closer to' if after < before else 'farther from'} the full dose than in the "
                f"{first}: mean absolute bias {after:.1f} % against {before:.1f} % ({len(ours)} lesions)."
            )
    return sentences


def _signed(value: float, places: int) -> str:
    return f"{value:+.{places}f}".replace("-", "−")


def _headline_scores(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
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


# ---- tables ---------------------------------------------------------------------------------------------------------


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
    summaries = [line for line in evaluation.summary() if line.definition.preset not in ("clinical", detection.PRESET)]
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


def _organ_table(evaluation: Evaluation) -> list[dict[str, object]]:
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
                    for name in evaluation.images
                ],
            }
        )
    return lines


def _lesion_table(evaluation: Evaluation) -> dict[str, object]:
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
                    for name in evaluation.images
                ],
            }
        )
    return {"lines": lines, "total": len(found)}


def _case_table(evaluation: Evaluation) -> list[dict[str, object]]:
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


def _image_rules(evaluation: Evaluation) -> dict[str, str]:
    return {row.image: row.image_rule for row in evaluation.rows if row.image_rule}


# ---- pictures -------------------------------------------------------------------------------------------------------


def _chosen(data: ReportData) -> dict[str, str]:
    """Which cases to picture and why: the median and the worst by PSNR inside the body, never a chosen best."""
    psnr = data.evaluation.values(data.evaluation.synthesized, BODY_PSNR, "body")
    ranked = sorted((case for case in data.images if case in psnr), key=lambda case: psnr[case])
    match ranked:
        case []:
            return {}
        case [only]:
            return {only: "only case"}
        case [worse, better]:
            return {worse: "worse of the two", better: "better of the two"}
        case [worst, *_]:
            return {ranked[len(ranked) // 2]: "median case", worst: "worst case"}
    raise AssertionError("every length is listed")


def _pictured(data: ReportData, case: str, why: str) -> dict[str, object]:
    """Draw one case."""
    images = data.images[case]
    synthesized = list(images.candidates)[-1]
    rows = pictures.case_rows(
        {**images.candidates, REFERENCE: images.reference},
        images.body,
        image=synthesized,
        reference=REFERENCE,
        window=data.suv_window,
        difference_window=data.difference_window,
        ct=images.ct,
    )
    return {
        "case": case,
        "why": why,
        "rows": rows,
        "columns": list(rows[0].images),
        "psnr": f"{data.evaluation.values(data.evaluation.synthesized, BODY_PSNR, 'body')[case]:.2f}",
        "widest_mm": max(row.width_mm for row in rows),
        "difference": f"{synthesized} − {REFERENCE}",
        "suv_rule": data.suv_rules.get(case, ""),
    }


def _window(hu: tuple[float, float]) -> str:
    return f"{hu[0]:g} to {hu[1]:g}".replace("-", "−")


def _detection(evaluation: Evaluation) -> dict[str, object] | None:
    """Lay out what was found of lesions; None where nobody looked."""
    found = evaluation.metadata.get("detection")
    if not isinstance(found, Mapping):
        return None
    curves = {
        image: ([point[0] for point in told["froc"]["envelope"]], [point[1] for point in told["froc"]["envelope"]])
        for image, told in found["images"].items()
    }
    marks = {
        image: (told["froc"]["operating"]["false_per_scan"], told["froc"]["operating"]["tpr"])
        for image, told in found["images"].items()
    }
    return {
        "rule": found["rule"],
        "lines": detection.lines(found),
        "against": found["lesions_only_it_finds"],
        "froc": pictures.draw_froc(curves, marks),
    }


def _bland_altman(evaluation: Evaluation) -> str:
    """Draw the agreement of SUVmean with the full dose over all organs and lesions; empty without regions."""
    truth = {
        (row.case, row.region): row.value
        for row in evaluation.rows
        if row.image == REFERENCE and row.definition == QUANTITIES["SUVmean"]
    }
    points = {}
    for name in evaluation.images:
        pairs = [
            (truth[row.case, row.region], row.value)
            for row in evaluation.rows
            if row.image == name and row.definition == BIASES["SUVmean"] and not math.isnan(row.value)
        ]
        if pairs:
            reference, percent = np.array(pairs).T
            points[name] = (reference, percent)
    return pictures.draw_bland_altman(points, "SUVmean") if points else ""


def _noise_bias(evaluation: Evaluation) -> str:
    """Draw the noise of the liver (or the first organ) against the bias of lesion SUVmax; empty without both."""
    organs = list(dict.fromkeys(row.region for row in evaluation.rows if row.kind == "organ"))
    organ = "liver" if "liver" in organs else next(iter(organs), "")
    points = {}
    for name in (*evaluation.images, REFERENCE):
        noise = list(evaluation.values(name, NOISE, organ).values())
        bias = [0.0] if name == REFERENCE else list(evaluation.values(name, BIASES["SUVmax"], "lesions").values())
        if noise and bias:
            points[name] = (float(np.mean(bias)), float(np.mean(noise)))
    return pictures.draw_noise_bias(points, organ) if len(points) > 1 else ""


def _histogram(cases: Sequence[CaseImages]) -> str:
    """Draw the joint histogram of every image with the full dose over the voxels of ``cases``."""
    total: dict[str, NDArray[np.float64]] = {}
    for images in cases:
        counts = pictures.joint_histogram(images.candidates, images.reference, images.body, HISTOGRAM_TOP_SUV)
        for name, count in counts.items():
            total[name] = total.get(name, np.zeros((100, 100))) + count
    return pictures.draw_histograms(total, HISTOGRAM_TOP_SUV) if total else ""


def _curves(metrics: Sequence[Mapping[str, object]]) -> str:
    """Draw every loss, the patches per second and the share of time spent waiting for data over the step."""
    panels = []
    losses = dict.fromkeys(key for line in metrics for key in line if key.startswith("loss/"))
    known = {"patches_per_s": "patches per second", "wait_share": "share of time waiting for data"}
    for key in (*losses, *known):
        curves: dict[str, tuple[list[float], list[float]]] = {}
        for line in metrics:
            step, value = line.get("step"), line.get(key)
            if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value):
                steps, values = curves.setdefault(str(line.get("phase", "")), ([], []))
                steps.append(step)
                values.append(value)
        if curves:
            panels.append((known.get(key, key), [(phase, *curve) for phase, curve in curves.items()]))
    return pictures.draw_curves(panels) if panels else ""


def _numbers(evaluation: Evaluation) -> tuple[dict[str, object], str]:
    """Every number as JSON and as CSV, a rule named by its place in the JSON's ``rules`` to spare space."""
    content = evaluation.json()
    columns = ("case", "image", "region", "kind", "rule", "value", "range_value")
    rows = [[row[column] for column in columns] for row in _dicts(content["scores"])]
    rules = _dicts(content["rules"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*columns, "metric", "units", "preset"))
    writer.writerows((*row, *(rules[row[4]][name] for name in ("metric", "units", "preset"))) for row in rows)
    return {**content, "scores": {"columns": columns, "rows": rows}}, text.getvalue()


def _dicts(content: object) -> list[dict[str, Any]]:
    assert isinstance(content, list)
    return content


def _script_json(content: object) -> str:
    """JSON that cannot end its script element, whatever strings it holds."""
    return (
        json.dumps(content, allow_nan=False, separators=(",", ":"))
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
