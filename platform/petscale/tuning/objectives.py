"""Objectives by name: which stored score a trial is compared by, and its value on validation cases."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np

from storage.errors import InputError
from trainers.metrics.clinical import ACTIVITY_BIAS, BIASES, NOISE, QUANTITIES, VOLUME
from trainers.metrics.definitions import Score, ScoreDefinition
from trainers.metrics.presets import PRESETS
from trainers.metrics.slices import CHECKERBOARDS, SCALE_WEIGHTS, ms_ssim_definition
from trainers.metrics.udpet import MAPE, ORGAN_MAPE, SCORE
from trainers.metrics.unet_score import MEAN, UNION


@dataclass(frozen=True)
class Objective:
    """What a trial is scored by: one stored score, as a mean over validation cases.

    Args:
        name: as the user typed it.
        metric: ``ScoreDefinition.metric`` of the score.
        region: ``whole``, ``body``, ``lesions``, ``organs`` (each averaged within a case first) or an organ's name.
        preset: ``ScoreDefinition.preset`` of the score.
        direction: which way is better.
        absolute: whether a value's magnitude counts, as for biases: +20 % and -20 % do not make a good image.
    """

    name: str
    metric: str
    region: str
    preset: str
    direction: Literal["maximize", "minimize"]
    absolute: bool

    @property
    def key(self) -> str:
        """The explicit form, the same for every way of typing it."""
        return f"{self.metric}:{self.region}:{self.preset}"


# The segmenter's own key is known when it has scored; beside every organ it scores their union and their mean.
_UNET_SCORE = ScoreDefinition("Unet-score", "ROI", "", "1", preset="sgsgan")

_STORED = (
    *(rule for rules in PRESETS.values() for rule in rules),
    *BIASES.values(),
    ACTIVITY_BIAS,
    NOISE,
    ORGAN_MAPE,
    MAPE,
    SCORE,
    ms_ssim_definition(len(SCALE_WEIGHTS)),
    *CHECKERBOARDS.values(),
    _UNET_SCORE,
)

_AIMLESS = [rule.metric for rule in (*QUANTITIES.values(), VOLUME)]  # neither more nor less is better

_REGIONS = ("whole", "body", "lesions", "organs")


def _objective(name: str, rule: ScoreDefinition, region: str) -> Objective:
    direction: Literal["maximize", "minimize"] = "maximize" if rule.higher_is_better else "minimize"
    return Objective(name, rule.metric, region, rule.preset, direction, rule in (*BIASES.values(), ACTIVITY_BIAS))


_PSNR, _SSIM, _MAE, _NRMSE = PRESETS["native"][:4]

OBJECTIVES: dict[str, Objective] = {
    name: _objective(name, rule, region)
    for name, rule, region in (
        *((f"{r.metric.lower()}_{region}", r, region) for region in _REGIONS for r in (_PSNR, _SSIM, _MAE, _NRMSE)),
        *((f"{quantity.lower()}_bias_lesions", rule, "lesions") for quantity, rule in BIASES.items()),
        *((f"{quantity.lower()}_bias_organs", BIASES[quantity], "organs") for quantity in ("SUVmean", "SUVmax")),
        ("noise_organs", NOISE, "organs"),
        ("noise_liver", NOISE, "liver"),
        ("unet_score", _UNET_SCORE, MEAN),
    )
}


def objective(name: str) -> Objective:
    """Return an objective by its handy name or as ``metric:region[:preset]``, in any case, with ``_`` for a space.

    The preset is the first that has the metric there, ``native`` before any other.  Where a preset scores a metric in
    several ways, the first of ``PRESETS`` counts.

    Raises:
        InputError: ``TUNE_OBJECTIVE`` for an unknown name, metric or preset, a region that the preset does not score,
            and quantities that are no better for being larger or smaller.
    """
    typed = name.strip()
    if ":" not in typed:
        if found := OBJECTIVES.get(typed.lower().replace("-", "_")):
            return found
        raise _unknown(typed, "no such objective", list(OBJECTIVES))
    parts = [part.strip() for part in typed.split(":")]
    if len(parts) > 3 or not all(parts):
        raise _unknown(typed, "not of the form metric:region[:preset]", [])
    metric, region, preset = _plain(parts[0]), parts[1].lower(), parts[2].lower() if len(parts) == 3 else ""
    if metric in map(_plain, _AIMLESS):
        raise _unknown(typed, "neither a larger nor a smaller value is better", [f"{parts[0]} bias:{region}"])
    of_metric = [rule for rule in _STORED if _plain(rule.metric) == metric]
    if not of_metric:
        near = get_close_matches(metric, list(map(_plain, (rule.metric for rule in _STORED))), n=1, cutoff=0)
        best = next(rule.metric for rule in _STORED if _plain(rule.metric) == near[0])
        raise _unknown(typed, "no such metric is stored", [f"{best}:{region}"])
    known = (*_REGIONS, UNION, MEAN)
    if region not in known and (near := get_close_matches(region, _REGIONS, n=1, cutoff=0.7)):
        raise _unknown(typed, f"no region {region}", [f"{parts[0]}:{near[0]}"])
    place = region if region in ("whole", "body") else "ROI"
    fitting = [rule for rule in of_metric if rule.region == place and preset in ("", rule.preset)]
    if not fitting:
        forms = [f"{r.metric}:{'lesions' if r.region == 'ROI' else r.region}:{r.preset}" for r in of_metric]
        raise _unknown(typed, "no preset scores it so", forms)
    return _objective(typed, fitting[0], region)


def value_of(objective: Objective, rows: Sequence[Score], image: str) -> float:
    """Return a trial's value: the mean over cases of a case's value, which is the mean over its lesions or organs.

    Of an ``absolute`` objective every lesion's or organ's magnitude enters, so that opposite biases do not cancel.
    A score that is not defined for any image of a case (a lesion whose full dose is not positive) is left out; one
    that is undefined for ``image`` alone makes the result NaN, so that a failed image cannot look better by the cases
    it leaves out.

    Args:
        objective: what is asked for.
        rows: scores of the validation cases, of every image.
        image: the name of the image that is scored.

    Raises:
        InputError: ``TUNE_NO_SCORE`` if no row has the score, telling what is missing.
    """
    rows = [
        row for row in rows if (row.definition.metric, row.definition.preset) == (objective.metric, objective.preset)
    ]
    inside = [row for row in rows if _inside(objective.region, row)]
    first = next(
        (rule for rule in PRESETS.get(objective.preset, ()) if any(r.definition == rule for r in inside)), None
    )
    if first is not None:
        inside = [row for row in inside if row.definition == first]
    others = [row for row in inside if row.image != image]
    undefined = {(row.case, row.region) for row in others}
    undefined -= {(row.case, row.region) for row in others if not math.isnan(row.value)}
    cases: dict[str, list[float]] = {}
    for row in inside:
        if row.image == image and not (math.isnan(row.value) and (row.case, row.region) in undefined):
            cases.setdefault(row.case, []).append(abs(row.value) if objective.absolute else row.value)
    if not cases:
        raise _no_score(objective, rows, inside, image)
    return float(np.mean([np.mean(values) for values in cases.values()]))


def _plain(text: str) -> str:
    return text.lower().replace("_", " ").replace("-", " ")


def _inside(region: str, row: Score) -> bool:
    if region == "organs":
        return row.kind == "organ" and row.region not in (UNION, MEAN)
    return region in (row.kind, f"{row.kind}s", row.region.lower() if row.kind == "organ" else "")


def _unknown(typed: str, found: str, candidates: Sequence[str]) -> InputError:
    by_name = {candidate.lower(): candidate for candidate in candidates}
    near = get_close_matches(typed.lower(), by_name, n=1, cutoff=0) if typed else []
    forms = "metric:region[:preset]"
    return InputError(
        "TUNE_OBJECTIVE",
        where=f"objective {typed}",
        found=found,
        remedy=f"did you mean {by_name[near[0]]}? Any {forms} will do" if near else f"give {forms} or a handy name",
    )


def _no_score(objective: Objective, rows: Sequence[Score], inside: Sequence[Score], image: str) -> InputError:
    region = objective.region
    if any(row.image == image for row in inside):
        found, remedy = "not defined in any validation case", "choose another objective"
    elif inside:
        found, remedy = f"no score of the image {image}", "score that image"
    elif region in ("whole", "body"):
        found, remedy = f"no score by preset {objective.preset}", f"score with the preset {objective.preset}"
    elif objective.metric == "Unet-score":
        found, remedy = "no organ segmenter has scored there", "train one, or choose another objective"
    elif region in ("lesions", "organs"):
        found = f"no {region} are labelled in the validation cases"
        if objective.preset not in ("native", "clinical") and not rows:
            found += f", or nothing was scored by preset {objective.preset}"
        remedy = f"ingest labels that name {region}, or choose an objective of the body"
    else:
        known = ", ".join(dict.fromkeys(row.region for row in rows if row.kind == "organ"))
        found = f"no organ of that name is labelled in the validation cases (labelled: {known or 'none'})"
        remedy = "choose one that is labelled, or an objective of the body"
    return InputError("TUNE_NO_SCORE", where=f"objective {objective.name}", found=found, remedy=remedy)
