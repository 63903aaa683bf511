"""``petscale baseline``: what needs no network, fitted and scored on a cohort by cross-validation over patients.

What a network has to beat is thus known before one is trained.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from petscale.console import bar, console
from petscale.evaluation import ceiling
from petscale.evaluation.baselines import Baseline
from petscale.evaluation.fitting import (
    Measured,
    Strengths,
    anatomy_of,
    fit_baseline,
    fit_filters,
    measure,
    strengths,
)
from petscale.evaluation.scores import Evaluation, flat, plus_minus
from petscale.evaluation.scoring import score_stored_case
from petscale.splits import SplitConfig, split_cases
from petscale.spreadsheet import csv_text
from storage.errors import InputError
from storage.integrity import json_safe, write_bytes, write_json
from storage.reader import Case, Cases, open_cohort
from storage.source import HU, SUV
from trainers.metrics.clinical import BIASES
from trainers.metrics.definitions import ScoreDefinition
from trainers.metrics.presets import BODY_PSNR, BODY_SSIM, LESION_PSNR, PRESETS
from trainers.metrics.statistics import Gain, paired_gain

BEST_GAUSSIAN = "best Gaussian"  # whatever the width that a fold chose
CSV, JSON = "baselines.csv", "baselines.json"
SHOWN: Mapping[str, tuple[ScoreDefinition, str]] = {
    "PSNR": (BODY_PSNR, "body"),
    "SSIM": (BODY_SSIM, "body"),
    "NRMSE": (PRESETS["native"][7], "body"),
    "lesion PSNR": (LESION_PSNR, "lesions"),
}


@dataclass(frozen=True, eq=False)
class Scored:
    """Baselines of one image of a cohort.

    Args:
        source: the image that they start from.
        evaluation: the scores of every case, each fitted without the case's patient; its images are baselines alone.
        rules: how each fold's were fitted.
        left_out: cases that lack an image.
    """

    source: str
    evaluation: Evaluation
    rules: tuple[str, ...]
    left_out: tuple[str, ...]

    def best(self) -> str:
        """The baseline of the best mean PSNR inside the body."""
        means = {name: np.mean([*self._psnr(name).values()]) for name in self.evaluation.images}
        return max(means, key=lambda name: float(means[name]))

    def behind(self, name: str) -> Gain | None:
        """How much better the best baseline is than another, in PSNR inside the body, with its paired test."""
        return paired_gain(self._psnr(self.best()), self._psnr(name), over=name)

    def _psnr(self, name: str) -> dict[str, float]:
        return self.evaluation.values(name, BODY_PSNR, "body")

    def lines(self) -> Iterator[tuple[str, ...]]:
        """One line of text per baseline: mean scores, how far behind the best it is, share of what can be gained."""
        best = self.best()
        lines = ceiling.ceiling_lines(self.evaluation)
        shares, tops = {line.image: line.share for line in lines}, {line.image: line.psnr_full for line in lines}
        for name in self.evaluation.images:
            gain = self.behind(name)
            p_value = "" if gain is None or gain.p_value is None else f", p {gain.p_value:.0e}"
            behind = "best" if name == best or gain is None else f"−{gain.mean:.2f}{p_value}"
            share = shares.get(name, math.nan)
            gained = "" if math.isnan(share) else f"{100 * share:.0f} %".replace("-", "−")
            biases = [self._mean(name, BIASES[quantity], "lesions") for quantity in ("SUVmean", "SUVmax")]
            scores = (self._mean(name, *shown) for shown in SHOWN.values())
            yield (name, *scores, ", ".join(filter(None, biases)), behind, gained)
        for name in (ceiling.IDEAL, ceiling.SHARED):
            if name in tops:
                yield (name, f"{tops[name]:.2f}")

    def _mean(self, name: str, rule: ScoreDefinition, region: str) -> str:
        values = [*self.evaluation.values(name, rule, region).values()]
        return plus_minus(float(np.mean(values)), math.nan, rule.metric) if values else ""


def baseline_scores(
    cohort: Cases, *, folds: int = 5, sources: Sequence[str] = (), target: str = "full"
) -> dict[str, Scored]:
    """Fit and score what needs no network; each patient by what was fitted on the patients of the other folds.

    Args:
        cohort: full doses beside low doses or CTs.
        folds: parts that the patients are drawn into, by the seed of ``SplitConfig``.
        sources: images to start from; () for every low dose.
        target: the full dose.

    Returns:
        Image -> its baselines' scores by the project's own rules.

    Raises:
        InputError: SET_NO_IMAGE where no case has the images; SET_TOO_SMALL for fewer patients than folds; or as
            ``fit_baseline`` and ``score_case``.
    """
    cases = {name: cohort.case(name) for name in cohort.cases}
    return {
        source: _scored(cohort, cases, source, target, folds)
        for source in sources or _low_doses(cohort.name, cases.values(), target)
    }


def _low_doses(where: str, cases: Any, target: str) -> tuple[str, ...]:
    """Names of the low doses, the one with most counts first."""
    found: dict[str, float] = {}
    for case in cases:
        for name in case.images:
            image = case.image(name)
            if name != target and image.units == SUV and image.dose and image.dose.relation != "full":
                found.setdefault(name, image.dose.drf)
    if not found:
        raise InputError(
            "SET_NO_IMAGE",
            where=where,
            found="no case has a low dose",
            remedy="make them by `petscale simulate`, or name what to start from by --source",
        )
    return tuple(sorted(found, key=lambda name: (np.nan_to_num(found[name], nan=np.inf), name)))


def _scored(cohort: Cases, cases: Mapping[str, Case], source: str, target: str, folds: int) -> Scored:
    lacking = tuple(name for name, case in cases.items() if not {source, target} <= {*case.images})
    if len(lacking) == len(cases):
        raise InputError(
            "SET_NO_IMAGE",
            where=cohort.name,
            found=f"no case has both '{source}' and '{target}'",
            remedy="choose an image of the cohort by --source; petscale inspect lists them",
        )
    whole = [name for name in cases if name not in lacking]
    patients = len({cases[name].subject for name in whole})
    if patients < folds:
        raise InputError(
            "SET_TOO_SMALL",
            where=f"cohort {cohort.name}",
            found=f"{patients} patient(s) with '{source}' and '{target}' for {folds} folds",
            remedy=f"ingest more patients, or give --folds {max(patients, 2)}",
        )

    @cache
    def measured(name: str) -> Measured:
        case = cases[name]
        return measure(case.image(source), case.image(target), case.image("body"))

    @cache
    def tuned(name: str) -> Mapping[str, Strengths]:
        case = cases[name]
        return strengths(case.image(source), case.image(target), case.image("body"))

    rows, rules, done = [], [], 0
    ceilings: list[ceiling.Row] = []
    images: tuple[str, ...] = ()
    with bar(f"baselines of {source}", len(whole)) as advance:
        for fold in range(folds):
            roles = split_cases(cohort, SplitConfig(folds=folds, fold=fold, leave_out=lacking))
            train, test = ([cases[name] for name in names] for names in (roles.train, roles.test))
            fitted: Baseline
            if cases[whole[0]].image(source).units == HU:
                fitted = fit_baseline(train, source, target, scored=[cases[name] for name in whole])
            else:
                fitted = fit_filters([case.name for case in train], measured, tuned)
            rules.append(fitted.rule)
            for case in test:
                advance(done, case.name)
                beside = fitted.beside(case.image(source), anatomy_of(case))
                named = {BEST_GAUSSIAN if n.startswith("Gaussian ") else n: image for n, image in beside.items()}
                rows += score_stored_case(case, target, named, presets=("native",))
                ceilings += ceiling.ceiling_rows(case, source, target, named)
                images, done = tuple(named), done + 1
        advance(len(whole), "")
    about = {"ceiling": ceiling.as_json(ceilings, cases[whole[0]], source)} if ceilings else {}
    return Scored(source, Evaluation(tuple(rows), images, tuple(whole), about), tuple(rules), lacking)


def write_baselines(folder: Path, scored: Mapping[str, Scored], about: Mapping[str, object]) -> None:
    """Write every score as CSV, and scores, means and rules as JSON, each file whole or not at all."""
    lines = [{"source": source, **flat(row)} for source, found in scored.items() for row in found.evaluation.rows]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_bytes(folder / CSV, csv_text(list(lines[0]), (list(line.values()) for line in lines)).encode())
    content: dict[str, object] = {"metadata": dict(about)}
    for source, found in scored.items():
        told = found.evaluation.json()
        del told["gain_in_psnr_inside_the_body_db"]  # of a network, and there is none
        told |= {"best_baseline": found.best(), "fitted": list(found.rules), "left_out": list(found.left_out)}
        gains = [gain for name in found.evaluation.images if (gain := found.behind(name)) and name != found.best()]
        told["gain_of_the_best_in_psnr_inside_the_body_db"] = [json_safe(asdict(gain)) for gain in gains]
        content[source] = told
    write_json(folder / JSON, content)


def table(scored: Mapping[str, Scored], folds: int) -> Table:
    """Return one table of all images: means over cases, and how far behind the best baseline each is."""
    title = f"baselines without a network, {folds} folds by patient: means over cases"
    headings = (*SHOWN, "SUVmean, SUVmax bias %", "behind best", "gained")
    shown = Table("baseline", *headings, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.columns[0].width = 15
    for source, found in scored.items():
        shown.add_row(f"{source}, {len(found.evaluation.cases)} cases", style="bold")
        for line in found.lines():
            shown.add_row(*line)
        shown.add_section()
    return shown


def run(cohort: Path, output: Path, *, folds: int, sources: Sequence[str], command: str) -> Path:
    """Score a cohort's baselines, print the table and write it; returns the JSON file's path.

    Raises:
        InputError: as ``baseline_scores``.
    """
    opened = open_cohort(cohort)
    scored = baseline_scores(opened, folds=folds, sources=sources)
    for found in scored.values():
        if found.left_out:
            console.print(f"left out for want of an image: {', '.join(found.left_out)}", markup=False, soft_wrap=True)
    console.print(table(scored, folds))
    write_baselines(output, scored, {"command": command, "cohort": opened.name, "folds": folds})
    return output / JSON
