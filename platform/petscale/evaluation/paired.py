"""Candidates that were scored on the same patients: means with 95 % intervals, and pairs of candidates tested.

The unit is the patient.  A pair is tested by the two-sided Wilcoxon signed-rank test on the patients' differences; the
p values of one score are corrected together for the number of pairs, after Holm.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from rich.table import Table

from petscale.evaluation.scores import DECIMALS, Evaluation, region_group
from petscale.spreadsheet import csv_text
from storage.integrity import json_safe, write_bytes, write_json
from trainers.metrics.clinical import BIASES
from trainers.metrics.definitions import ScoreDefinition
from trainers.metrics.presets import BODY_PSNR, LESION_PSNR, PRESETS
from trainers.metrics.statistics import FEWEST_FOR_A_TEST, Gain, holm, mean_interval, mean_sd, paired_gain

BODY, LESIONS = "body", "lesions"
TESTED: tuple[tuple[ScoreDefinition, str], ...] = (
    *((rule, BODY) for rule in PRESETS["native"] if rule.region == BODY),
    (LESION_PSNR, LESIONS),
    (BIASES["SUVmean"], LESIONS),
    (BIASES["SUVmax"], LESIONS),
)
CHANCE = 0.05
Pair = tuple[str, str]


@dataclass(frozen=True)
class Mean:
    """One score of one candidate over the patients.

    Args:
        candidate: whose.
        region: where; ``lesions`` for all lesions of a patient together.
        definition: how each value was computed.
        mean: over patients.
        sd: over patients (ddof 1; NaN for one).
        low: lower end of the mean's 95 % interval (Student's t; NaN for one patient, or where a value is infinite).
        high: its upper end.
        num_patients: how many have the score.
    """

    candidate: str
    region: str
    definition: ScoreDefinition
    mean: float
    sd: float
    low: float
    high: float
    num_patients: int


@dataclass(frozen=True)
class PairTest:
    """How much better one candidate is than another in one score, patient by patient.

    Args:
        candidate: the one.
        gain: over the other; above 0 where the first is better, whatever the score.  Of a bias the size counts.
        region: where.
        definition: of the score.
        low: lower end of the 95 % interval of the mean difference.
        high: its upper end.
        p_holm: the gain's p value, corrected for all pairs tested by this score; None where there is none.
    """

    candidate: str
    gain: Gain
    region: str
    definition: ScoreDefinition
    low: float
    high: float
    p_holm: float | None


@dataclass(frozen=True, eq=False)
class Compared:
    """Candidates beside each other.

    Args:
        scores: of the candidates, a row of every score per patient.
        means: of every score.
        tests: of the scores in ``TESTED`` that the patients have, by score.
    """

    scores: Evaluation
    means: tuple[Mean, ...]
    tests: tuple[PairTest, ...]

    def remarks(self) -> list[str]:
        """Say what the tests rest on, and what cannot be said."""
        number = len(self.scores.cases)
        if number == 1:
            return ["one patient: no interval and no test"]
        if number < FEWEST_FOR_A_TEST:
            return [f"{number} patients: no test, which needs {FEWEST_FOR_A_TEST}; the intervals are wide"]
        if all(one.p_holm is None for one in self.tests):
            return []
        return ["p: two-sided Wilcoxon signed-rank test over patients; p (Holm): corrected for all pairs of one score"]

    def mean_tables(self) -> Iterator[Table]:
        """Return a table per region, the body and the lesions, with a row per candidate: means and their intervals.

        No text in it is rich's markup: names of folders are shown as they are (``markup=False``).
        """
        number = len(self.scores.cases)
        for region in (BODY, LESIONS):
            shown = {(o.candidate, o.definition): o for o in self.means if (o.definition, o.region) in TESTED}
            rules = [rule for rule, of in TESTED if of == region and any(rule == other for _, other in shown)]
            if not rules:
                continue
            said = f"{region}, {number} patient{'' if number == 1 else 's'}: mean and 95 % interval over patients"
            table = Table("candidate", title=said, title_justify="left")
            for rule in rules:
                unit = "%" if rule.units.startswith("%") else rule.units
                table.add_column(rule.metric if unit == "1" else f"{rule.metric} [{unit}]", justify="right")
            for name in self.scores.images:
                table.add_row(name, *(_cell(shown[name, rule]) if (name, rule) in shown else "" for rule in rules))
            yield table

    def test_table(self) -> Table | None:
        """Return a row per score and pair; None where nothing was compared."""
        if not self.tests:
            return None
        table = Table("score", "pair", title="differences, above 0 where the first is better", title_justify="left")
        for name in ("difference", "95 % interval", "better in", "p", "p (Holm)"):
            table.add_column(name, justify="right")
        for (_, region), tests in _grouped(self.tests).items():
            for one in tests:
                gain, places = one.gain, DECIMALS.get(one.definition.metric, 1)
                interval = "" if np.isnan(one.low) else f"{one.low:+.{places}f} to {one.high:+.{places}f}"
                table.add_row(
                    f"{one.definition.metric}, {region}",
                    f"{one.candidate} against {gain.over}",
                    f"{gain.mean:+.{places}f}",
                    interval,
                    f"{gain.num_better} of {gain.num_cases}",
                    *("-" if p is None else f"{p:.3g}" for p in (gain.p_value, one.p_holm)),
                )
            table.add_section()
        return table

    def verdict(self) -> str:
        """Name the candidate with the highest mean PSNR inside the body, and those that may be as good."""
        means = {one.candidate: one.mean for one in self.means if (one.definition, one.region) == (BODY_PSNR, BODY)}
        tests = [one for one in self.tests if (one.definition, one.region) == (BODY_PSNR, BODY)]
        if not tests:
            return ""
        best = max(means, key=lambda name: means[name])
        told = f"highest mean PSNR inside the body: {best} ({means[best]:.2f} dB)"
        pairs = {other: one for one in tests for other in {one.candidate, one.gain.over} - {best}
                 if best in (one.candidate, one.gain.over)}  # fmt: skip
        if all(one.p_holm is None for one in pairs.values()):
            return f"{told}; untested"
        alike = [name for name, one in pairs.items() if one.p_holm is None or one.p_holm >= CHANCE]
        if not alike:
            return f"{told}; every difference from it has p (Holm) < {CHANCE:g}"
        return f"{told}; its difference from {', '.join(alike)} may be chance (p (Holm) >= {CHANCE:g}, or untested)"

    def json(self) -> dict[str, object]:
        """Return everything as JSON-able values, each definition once; numbers that are not finite become null."""
        rules = list(dict.fromkeys(row.definition for row in self.scores.rows))  # means and tests have no others
        number = {rule: index for index, rule in enumerate(rules)}
        content = json_safe(
            {
                "metadata": dict(self.scores.metadata),
                "patients": list(self.scores.cases),
                "candidates": list(self.scores.images),
                "remarks": self.remarks(),
                "verdict": self.verdict(),
                "rules": [rule.to_json() for rule in rules],
                "means": [_numbered(one, number) for one in self.means],
                "tests": [{**_numbered(one, number), "gain": asdict(one.gain)} for one in self.tests],
                "scores": [_numbered(row, number) for row in self.scores.rows],
            }
        )
        assert isinstance(content, dict)
        return content

    def write(self, folder: Path) -> None:
        """Write ``scores.csv``, ``means.csv``, ``tests.csv`` and ``scores.json`` into a folder, made if need be."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(folder / "scores.csv", self.scores.csv().encode())
        write_bytes(folder / "means.csv", means_csv(self.means).encode())
        write_bytes(folder / "tests.csv", tests_csv(self.tests).encode())
        write_json(folder / "scores.json", self.json())


def compare_images(evaluation: Evaluation, pairs: Sequence[Pair] | None = None) -> Compared:
    """Compare the images of an evaluation over the patients that all of them have scores of.

    Args:
        evaluation: a row of every score per patient (``folds.gather``); its images are the candidates.
        pairs: of candidates, the better known as the first, to be tested; default: all.
    """
    scores = on_shared_patients(evaluation)
    found = tuple(combinations(evaluation.images, 2)) if pairs is None else tuple(pairs)
    return Compared(scores, tuple(_means(scores)), tuple(_tests(scores, found)))


def on_shared_patients(evaluation: Evaluation) -> Evaluation:
    """Return the scores of those patients whose every image has a PSNR inside the body."""
    held = [set(evaluation.values(name, BODY_PSNR, BODY)) for name in evaluation.images]
    shared = set.intersection(*held) if held else set()
    patients = tuple(case for case in evaluation.cases if case in shared)
    rows = tuple(row for row in evaluation.rows if row.case in shared and row.image in evaluation.images)
    return replace(evaluation, rows=rows, cases=patients)


def _means(scores: Evaluation) -> Iterator[Mean]:
    for image, region, rule in dict.fromkeys((row.image, region_group(row), row.definition) for row in scores.rows):
        values = np.array(list(scores.values(image, rule, region).values()))
        if values.size:
            mean, sd = mean_sd(values)
            yield Mean(image, region, rule, mean, sd, *mean_interval(values), values.size)


def _tests(scores: Evaluation, pairs: Sequence[Pair]) -> Iterator[PairTest]:
    for rule, region in TESTED:
        bias = rule in BIASES.values()
        read = scores.sizes if bias else scores.values
        sign = 1 if rule.higher_is_better else -1
        found = []
        for first, second in pairs:
            ours, theirs = read(first, rule, region), read(second, rule, region)
            if (gain := paired_gain(ours, theirs, over=second, sign=sign)) is not None:
                differences = np.array([sign * (ours[case] - theirs[case]) for case in ours if case in theirs])
                found.append(PairTest(first, gain, region, rule, *mean_interval(differences), None))
        tested = [place for place, one in enumerate(found) if one.gain.p_value is not None]
        corrected = holm([found[place].gain.p_value or 0.0 for place in tested])
        for place, p_holm in zip(tested, corrected, strict=True):
            found[place] = replace(found[place], p_holm=p_holm)
        yield from found


def means_csv(means: Sequence[Mean]) -> str:
    """Return a line per candidate, region and score."""
    columns = (
        "candidate",
        "region",
        "metric",
        "units",
        "mean",
        "sd",
        "low_95",
        "high_95",
        "patients",
        "preset",
        "rule",
    )
    lines = (
        (one.candidate, one.region, one.definition.metric, one.definition.units, one.mean, one.sd, one.low, one.high,
         one.num_patients, one.definition.preset, one.definition.text())
        for one in means
    )  # fmt: skip
    return csv_text(columns, lines)


def tests_csv(tests: Sequence[PairTest]) -> str:
    """Return a line per score and pair."""
    columns = ("candidate", "over", "region", "metric", "units", "difference", "sd", "low_95", "high_95", "better_in",
               "patients", "p", "p_holm")  # fmt: skip
    lines = (
        (one.candidate, one.gain.over, one.region, one.definition.metric, one.definition.units, one.gain.mean,
         one.gain.sd, one.low, one.high, one.gain.num_better, one.gain.num_cases,
         *("" if p is None else p for p in (one.gain.p_value, one.p_holm)))
        for one in tests
    )  # fmt: skip
    return csv_text(columns, lines)


def _cell(one: Mean) -> str:
    places = DECIMALS.get(one.definition.metric, 1)
    interval = "" if np.isnan(one.low) else f" [{one.low:.{places}f}, {one.high:.{places}f}]"
    return f"{one.mean:.{places}f}{interval}"


def _grouped(tests: Sequence[PairTest]) -> dict[tuple[ScoreDefinition, str], list[PairTest]]:
    found: dict[tuple[ScoreDefinition, str], list[PairTest]] = {}
    for one in tests:
        found.setdefault((one.definition, one.region), []).append(one)
    return found


def _numbered(line: object, number: Mapping[ScoreDefinition, int]) -> dict[str, object]:
    """The fields of a line, its definition as a place among the rules."""
    content = dict(vars(line))
    content["rule"] = number[content.pop("definition")]
    return content
