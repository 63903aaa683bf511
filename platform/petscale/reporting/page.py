"""The report: what a reader must see about a run, on one HTML page that loads nothing from a network."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petscale.calibrations import Kept
from petscale.evaluation import calibrating, detection, task
from petscale.evaluation.ceiling import HEADINGS, RULE, ceiling_lines, cells
from petscale.evaluation.scores import REFERENCE, Evaluation
from petscale.reporting.calibration import calibration_facts
from petscale.reporting.charts import (
    draw_bland_altman,
    draw_curves,
    draw_froc,
    draw_histograms,
    draw_noise_bias,
    draw_spectra,
    joint_histogram,
)
from petscale.reporting.pictures import BONE_HU, DIVERGING, GREY, case_rows, colour_bar
from petscale.reporting.score_tables import (
    AGREEING,
    appearance_organ,
    appearance_table,
    case_table,
    headline_scores,
    image_rules,
    lesion_agreement,
    lesion_table,
    organ_table,
    score_tables,
)
from petscale.reporting.templates import packaged, template
from petscale.reporting.verdict import verdict
from petscale.reporting.viewer import Viewed, embed
from petscale.spreadsheet import csv_text
from petscale.training.pictures import CT_HU
from storage.integrity import write_bytes
from storage.source import ImageSource
from trainers.metrics.clinical import BIASES, NOISE, QUANTITIES
from trainers.metrics.presets import BODY_PSNR

HISTOGRAM_TOP_SUV = 10.0
PAGE_MB = 20.0  # what most mail servers let pass
VIEWER_WITHOUT_VOXELS = 30_000  # bytes: its controls, colours, notes and names


@dataclass(frozen=True, eq=False)
class CaseImages:
    """The images of a case to be pictured, all on one grid.

    Args:
        reference: full dose.
        candidates: those of ``score_case`` to be pictured, in order, the network's last.
        body: greater than 0.5 inside the patient.
        ct: what the network started from, where it was a CT; shown, never scored.
        anatomy: a CT for the viewer, whether the network started from it or not.
        deviation: the standard deviation of the network's image in SUV, for the viewer.
        labels: integers naming organs and lesions, where the viewer goes to.
        label_names: what each label is.
    """

    reference: ImageSource
    candidates: Mapping[str, ImageSource]
    body: ImageSource
    ct: ImageSource | None = None
    anatomy: ImageSource | None = None
    deviation: ImageSource | None = None
    labels: ImageSource | None = None
    label_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything a report says.

    Args:
        title: heading of the page.
        evaluation: the scores.
        images: case -> sources, for any of the evaluation's cases; the median and the worst are pictured.
        command: the exact command that made the run; the page shows it as given, so it must name no patient.
        config: the resolved configuration, shown as given.
        metrics: training log and validations, one mapping per line as read by ``read_metrics``.
        environment: name -> fact: versions and hardware that made the page.
        trained_with: (which steps, or which runs; the same facts of what trained them), as ``told_apart`` returns it;
            None where training was not recorded as steps at all.
        cohort_digest: root digest of the cohort.
        suv_rules: case -> the rule by which its SUV reference time was found.
        suv_window: SUV drawn white and black in every panel.
        difference_window: SUV drawn in the strongest colours of the difference.
        notes: limits of this run to be said beside the verdict, for instance that the data are simulated.
        page_mb: how large the page may become in MB (10^6 bytes): the viewer takes what the rest leaves, and is left
            out where that is too little.
        data: headings and lines of the table of what it was trained and scored on, as ``data_table`` returns them.
        doubts: what was noted of the images that were scored, when they were ingested: a sentence each.
        calibrations: of the standard deviation of means in which the run takes part.
        deviations_said: what the standard deviations that the viewer shows say of themselves: a sentence each.
    """

    title: str
    evaluation: Evaluation
    images: Mapping[str, CaseImages]
    command: str
    config: Mapping[str, object]
    metrics: Sequence[Mapping[str, object]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    trained_with: Sequence[tuple[str, Mapping[str, str]]] | None = None
    cohort_digest: str = ""
    suv_rules: Mapping[str, str] = field(default_factory=dict)
    suv_window: tuple[float, float] = (0.0, 7.0)
    difference_window: float = 2.0
    notes: Sequence[str] = ()
    doubts: Sequence[str] = ()
    data: tuple[Sequence[str], Sequence[tuple[str, Sequence[str]]]] = ((), ())
    page_mb: float = PAGE_MB
    calibrations: Sequence[Kept] = ()
    deviations_said: Sequence[str] = ()


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to ``path`` (.html), whole or not at all.

    Raises:
        InputError: ``DISK_FULL`` and its kin, if the file cannot be written.
    """
    write_bytes(path, render(data).encode())


def render(data: ReportData) -> str:
    """Return the page as HTML text."""
    evaluation = data.evaluation
    content, table = _numbers(evaluation)
    chosen = _chosen(data)
    script = f"\n{packaged('page.js')}{packaged('viewer.js')}"
    page = partial(
        template("template.html.j2").render,
        data=data,
        evaluation=evaluation,
        verdict=verdict(evaluation),
        headline_scores=headline_scores(evaluation),
        tables=score_tables(evaluation),
        ceiling=[cells(line) for line in ceiling_lines(evaluation)],
        ceiling_headings=HEADINGS,
        ceiling_rule=RULE,
        organs=organ_table(evaluation),
        lesions=lesion_table(evaluation),
        agreement=[(quantities, lesion_agreement(evaluation, quantities)) for quantities in AGREEING],
        cases=case_table(evaluation),
        shown=[_pictured(data, case, why) for case, why in chosen.items()],
        appearance=appearance_table(evaluation),
        appearance_organ=appearance_organ(evaluation),
        spectra=_spectra(evaluation),
        noise_bias=_noise_bias(evaluation),
        bland_altman=_bland_altman(evaluation),
        histogram=_histogram([data.images[case] for case in chosen]),
        grey_bar=colour_bar(GREY),
        difference_bar=colour_bar(DIVERGING),
        detection=_detection(evaluation),
        task=_task(evaluation),
        calibrations=[calibration_facts(kept) for kept in data.calibrations],
        calibration_headings=calibrating.HEADINGS,
        from_ct=any(images.ct for images in data.images.values()),
        ct_window=_window(CT_HU),
        bone_window=_window(BONE_HU),
        curves=_curves(data.metrics),
        image_rules=image_rules(evaluation),
        config=json.dumps(data.config, indent=2, sort_keys=True, default=str),
        numbers=script_json(content),
        csv_uri="data:text/csv;base64," + base64.b64encode(table.encode()).decode(),
        script=script,
        policy=policy(script),
    )
    bare = page(viewer=None)
    viewer = _viewer(data, chosen, len(bare.encode()))
    return page(viewer=viewer) if viewer else bare


def policy(script: str) -> str:
    """Return the page's rules for browsers: one script, this one; pictures that are in the page; no address at all."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; img-src data:; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def _viewer(data: ReportData, chosen: Mapping[str, str], taken: int) -> dict[str, object] | None:
    """What the viewer shows of the pictured cases, the worst first; None without cases, or without room for one.

    Args:
        chosen: case -> why it is pictured.
        taken: bytes of the page without it.
    """
    psnr = data.evaluation.values(data.evaluation.synthesized, BODY_PSNR, "body")
    cases = [_viewed(data, case, chosen[case]) for case in sorted(chosen, key=lambda case: psnr[case])]
    room = int(data.page_mb * 1e6) - taken - VIEWER_WITHOUT_VOXELS
    if not cases or room <= 0:
        return None
    found = embed(cases, room)
    if not found.content["cases"]:
        return None
    pet = {"suv_window": data.suv_window, "difference_window": data.difference_window}
    content = {**found.content, **pet, "ct_window": CT_HU, "bone_window": BONE_HU}
    return {"text": script_json(content), "notes": found.notes}


def _viewed(data: ReportData, case: str, why: str) -> Viewed:
    """Lay out a case for the viewer."""
    images = data.images[case]
    return Viewed(
        case,
        why,
        {**images.candidates, REFERENCE: images.reference},
        synthesized=list(images.candidates)[-1],
        reference=REFERENCE,
        body=images.body,
        ct=images.anatomy or images.ct,
        deviation=images.deviation,
        labels=images.labels,
        label_names=images.label_names,
    )


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
    rows = case_rows(
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
        "froc": draw_froc(curves, marks),
    }


def _task(evaluation: Evaluation) -> dict[str, object] | None:
    """Lay out how well lesions that were put in are told from none; None where none were."""
    told = evaluation.metadata.get("task")
    if not isinstance(told, Mapping):
        return None
    return {"rule": told["rule"], "lines": task.lines(told), "gain": task.gain_sentence(told)}


def _bland_altman(evaluation: Evaluation) -> str:
    """Draw the agreement of SUVmean with the full dose over all organs and lesions; empty without regions."""
    truth = {
        (row.case, row.region): row.value
        for row in evaluation.rows
        if row.image == REFERENCE and row.definition == QUANTITIES["SUVmean"]
    }
    points = {}
    for name in evaluation.pictured:
        pairs = [
            (truth[row.case, row.region], row.value)
            for row in evaluation.rows
            if row.image == name and row.definition == BIASES["SUVmean"] and not math.isnan(row.value)
        ]
        if pairs:
            reference, percent = np.array(pairs).T
            points[name] = (reference, percent)
    return draw_bland_altman(points, "SUVmean") if points else ""


def _spectra(evaluation: Evaluation) -> str:
    """Draw the spectra of the pictured images, and of the full dose's noise; empty where none were measured."""
    found = evaluation.metadata.get("spectra")
    if not isinstance(found, Mapping):
        return ""
    names = [*evaluation.pictured, REFERENCE]
    organ = next(iter(found["noise"]), "")
    powers = found["noise"].get(organ, {})
    correlation = {name: found["correlation"][name] for name in names if found["correlation"].get(name)}
    noise = {name: powers[name] for name in names if powers.get(name)}
    return draw_spectra(found["frequency_per_mm"], correlation, noise, organ) if correlation else ""


def _noise_bias(evaluation: Evaluation) -> str:
    """Draw the noise of the liver (or the first organ) against the bias of lesion SUVmax; empty without both."""
    organ = appearance_organ(evaluation)
    points = {}
    for name in (*evaluation.images, REFERENCE):
        noise = list(evaluation.values(name, NOISE, organ).values())
        bias = [0.0] if name == REFERENCE else list(evaluation.values(name, BIASES["SUVmax"], "lesions").values())
        if noise and bias:
            points[name] = (float(np.mean(bias)), float(np.mean(noise)))
    return draw_noise_bias(points, organ) if len(points) > 1 else ""


def _histogram(cases: Sequence[CaseImages]) -> str:
    """Draw the joint histogram of every image with the full dose over the voxels of ``cases``."""
    total: dict[str, NDArray[np.float64]] = {}
    for images in cases:
        counts = joint_histogram(images.candidates, images.reference, images.body, HISTOGRAM_TOP_SUV)
        for name, count in counts.items():
            total[name] = total.get(name, np.zeros((100, 100))) + count
    return draw_histograms(total, HISTOGRAM_TOP_SUV) if total else ""


def _curves(metrics: Sequence[Mapping[str, object]]) -> str:
    """Draw every loss, what validation gains, patches per second and the share of time spent waiting, over the step."""
    panels = []
    losses = dict.fromkeys(key for line in metrics for key in line if key.startswith("loss/"))
    known = {"validation/gain_db": "validation: PSNR gained [dB]"}
    scored = dict.fromkeys(key for line in metrics for key in line if key.startswith("validation/"))
    known = {key: f"validation: {key.removeprefix('validation/')}" for key in scored} | known
    known |= {"patches_per_s": "patches per second", "wait_share": "share of time waiting for data"}
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
    return draw_curves(panels) if panels else ""


def _numbers(evaluation: Evaluation) -> tuple[dict[str, object], str]:
    """Every number as JSON and as CSV, a rule named by its place in the JSON's ``rules`` to spare space."""
    content = evaluation.json()
    columns = ("case", "image", "region", "kind", "rule", "value", "range_value")
    rows = [[row[column] for column in columns] for row in _dicts(content["scores"])]
    rules = _dicts(content["rules"])
    told = ("metric", "units", "preset")
    table = csv_text((*columns, *told), ((*row, *(rules[row[4]][name] for name in told)) for row in rows))
    return {**content, "scores": {"columns": columns, "rows": rows}}, table


def _dicts(content: object) -> list[dict[str, Any]]:
    assert isinstance(content, list)
    return content


def script_json(content: object) -> str:
    """JSON that cannot end its script element, whatever strings it holds."""
    return (
        json.dumps(content, allow_nan=False, separators=(",", ":"))
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
