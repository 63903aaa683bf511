"""Scores of test cases: rows, summaries over cases, paired tests, terminal tables, and the files they are kept in."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from petscale.spreadsheet import csv_text
from storage.errors import InputError
from storage.integrity import json_safe, parse_json, write_bytes, write_json
from trainers.metrics.clinical import BIASES
from trainers.metrics.definitions import Score, ScoreDefinition, definition_from_json
from trainers.metrics.presets import BODY_PSNR
from trainers.metrics.statistics import Gain, mean_sd, paired_gain
from trainers.metrics.unet_score import GUIDE, UNET

SYNTHESIZED, REFERENCE = "synthesized", "full dose"
DIGEST = "digest"  # in scores.json: of all the rest


@dataclass(frozen=True)
class Summary:
    """One score over all cases.

    Args:
        image: which image.
        region: region's name, or ``lesions`` for all lesions together (mean over a case's lesions first).
        kind: what sort of region.
        definition: how each value was computed.
        mean: mean over cases; sd is over cases too (ddof 1; NaN for one case).
        num_cases: how many cases have the score.
    """

    image: str
    region: str
    kind: str
    definition: ScoreDefinition
    mean: float
    sd: float
    num_cases: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Every score of a run's test cases.

    Args:
        rows: the scores.
        images: scored images in order: the untreated input first, the network's last, filters between.
        cases: aliases of the test cases, in order.
        metadata: JSON-able facts about the run.
    """

    rows: tuple[Score, ...]
    images: tuple[str, ...]
    cases: tuple[str, ...]
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def synthesized(self) -> str:
        """Name of the image under test."""
        return self.images[-1]

    @cached_property
    def best_baseline(self) -> str:
        """The image without a network whose mean PSNR inside the body is best over the scored cases."""
        return self.best_by(BODY_PSNR, "body")

    def best_by(self, rule: ScoreDefinition, region: str) -> str:
        """Return the image without a network whose mean of one score is highest over the scored cases."""
        means = {}
        for name in self.images[:-1]:
            if values := self.values(name, rule, region):
                means[name] = float(np.mean(list(values.values())))
        return max(means, key=lambda name: means[name]) if means else self.images[0]

    @property
    def pictured(self) -> tuple[str, ...]:
        """The images that a report pictures: the input, the best baseline and the network's."""
        return tuple(dict.fromkeys((self.images[0], self.best_baseline, self.synthesized)))

    def values(self, image: str, rule: ScoreDefinition, region: str) -> dict[str, float]:
        """Return case -> value of one score; ``lesions`` stands for the mean over a case's lesions."""
        return {case: float(np.mean(values)) for case, values in self._index.get((image, rule, region), {}).items()}

    @cached_property
    def _index(self) -> dict[tuple[str, ScoreDefinition, str], dict[str, list[float]]]:
        found: dict[tuple[str, ScoreDefinition, str], dict[str, list[float]]] = {}
        for row in self.rows:
            if not math.isnan(row.value):
                cases = found.setdefault((row.image, row.definition, region_group(row)), {})
                cases.setdefault(row.case, []).append(row.value)
        return found

    def summary(self) -> list[Summary]:
        """Return mean and sd over cases of every score, in order of appearance."""
        keys = dict.fromkeys((row.image, region_group(row), row.kind, row.definition) for row in self.rows)
        found = []
        for image, region, kind, rule in keys:
            values = np.array(list(self.values(image, rule, region).values()))
            if values.size:
                mean, sd = mean_sd(values)
                found.append(Summary(image, region, kind, rule, mean, sd, values.size))
        return found

    def gain(self, over: str, rule: ScoreDefinition = BODY_PSNR, region: str = "body") -> Gain | None:
        """Return the network's gain over another image in one score; None when no case has both.

        Of a bias in per cent the absolute value counts, first averaged over a case's lesions, and less is a gain.
        """
        bias = rule in BIASES.values()
        read = self.sizes if bias else self.values
        ours, theirs = read(self.synthesized, rule, region), read(over, rule, region)
        return paired_gain(ours, theirs, over=over, sign=-1 if bias else 1)

    def sizes(self, image: str, rule: ScoreDefinition, region: str) -> dict[str, float]:
        """Case -> mean absolute value of one score."""
        found = self._index.get((image, rule, region), {})
        return {case: float(np.mean(np.abs(values))) for case, values in found.items()}

    def write(self, folder: Path) -> None:
        """Write ``scores.csv`` and ``scores.json`` into an existing folder, each whole or not at all."""
        write_bytes(folder / "scores.csv", self.csv().encode())
        self.write_json(folder)

    def write_json(self, folder: Path) -> None:
        """Write ``scores.json`` alone, from which ``read_evaluation`` reads all of it."""
        content = self.json()
        write_json(folder / "scores.json", content | {DIGEST: _digest(content)})

    def csv(self) -> str:
        """Return every score as one line of CSV, the rule's fields in columns of their own."""
        lines = [flat(row) for row in self.rows]
        return csv_text(list(lines[0]) if lines else ["case"], (list(line.values()) for line in lines))

    def json(self) -> dict[str, object]:
        """Return everything as JSON-able values, each rule once; numbers that are not finite become null."""
        rules = list(dict.fromkeys(row.definition for row in self.rows))
        number = {rule: index for index, rule in enumerate(rules)}
        gains = [gain for name in self.images[:-1] if (gain := self.gain(name)) is not None]
        content = {
            "metadata": dict(self.metadata),
            "cases": list(self.cases),
            "images": list(self.images),
            "best_baseline": self.best_baseline,
            "gain_in_psnr_inside_the_body_db": [asdict(gain) for gain in gains],
            "rules": [rule.to_json() for rule in rules],
            "summary": [_with_rule(line, number) for line in self.summary()],
            "scores": [_with_rule(row, number) for row in self.rows],
        }
        finite = json_safe(content)
        assert isinstance(finite, dict)
        return finite

    def table(self) -> Table:
        """Return case means ± sd of the project's own rules in the whole volume, the body and the lesions."""
        table = Table(title=f"{len(self.cases)} test case(s): mean ± sd over cases", title_justify="left")
        table.add_column("region")
        table.add_column("image")
        summaries = [s for s in self.summary() if s.definition.preset == "native" and s.kind != "organ"]
        metrics = list(dict.fromkeys(s.definition.metric for s in summaries))
        for metric in metrics:
            units = next(s.definition.units for s in summaries if s.definition.metric == metric)
            table.add_column(metric if units == "1" else f"{metric} [{units}]".replace("[", r"\["), justify="right")
        table.add_column(r"gain \[dB]", justify="right")
        for region in dict.fromkeys(s.region for s in summaries):
            for image in self.images:
                cells = {s.definition.metric: s for s in summaries if (s.region, s.image) == (region, image)}
                psnr = next((s.definition for s in cells.values() if s.definition.metric == "PSNR"), None)
                shown = [plus_minus(cells[m].mean, cells[m].sd, m) if m in cells else "" for m in metrics]
                table.add_row(region, image, *shown, self._gain_cell(image, psnr, region))
            table.add_section()
        if (gain := self.gain(self.best_baseline)) is not None:
            table.caption = f"{self.synthesized} against the best baseline: {gain_sentence(gain)}"
            table.caption_justify = "left"
        return table

    def unet_table(self, metric: str = UNET) -> Table | None:
        """Return case means ± sd of the Unet-score, the full dose first, or of the Unet-score-SG (``metric``).

        None where no organ segmenter was used.
        """
        summaries = [s for s in self.summary() if s.definition.metric == metric]
        if not summaries:
            return None
        regions = list(dict.fromkeys(s.region for s in summaries))
        title = f"{metric} of {len(self.cases)} test case(s): mean ± sd over cases"
        table = Table("image", title=title, title_justify="left")
        for region in regions:
            table.add_column(region, justify="right")
        for image in dict.fromkeys(s.image for s in summaries):
            cells = {s.region: plus_minus(s.mean, s.sd, s.definition.metric) for s in summaries if s.image == image}
            table.add_row(image, *(cells.get(region, "") for region in regions))
        return table

    def _gain_cell(self, image: str, psnr: ScoreDefinition | None, region: str) -> str:
        """The gain over the untreated input of any image, so that filter and network are compared in the same way."""
        if psnr is None or image == self.images[0]:
            return ""
        ours, theirs = self.values(image, psnr, region), self.values(self.images[0], psnr, region)
        return f"{np.mean([ours[case] - theirs[case] for case in ours if case in theirs]):+.2f}"


def gain_sentence(gain: Gain) -> str:
    """Say a gain of PSNR in words: mean and sd, in how many cases it is positive, and its test where there is one."""
    spread = "" if math.isnan(gain.sd) else f" ± {gain.sd:.2f}"
    of = "one case" if gain.num_cases == 1 else "mean ± sd"
    test = "" if gain.p_value is None else f", two-sided Wilcoxon p = {gain.p_value:.2g}"
    mean = f"{gain.mean:+.2f}".replace("-", "−")
    found = f"{of}; higher in {gain.num_better} of {gain.num_cases} cases{test}"
    return f"{mean}{spread} dB against {gain.over} ({found})."


def read_evaluation(folder: Path) -> Evaluation:
    """Read back what ``Evaluation.write`` wrote; values that were not finite come back as NaN.

    Raises:
        InputError: ``SET_EVALUATION`` if ``scores.json`` is missing, is not one, or does not agree with its digest.
    """
    try:
        content = parse_json((folder / "scores.json").read_bytes())
        if DIGEST in content and content[DIGEST] != _digest(content):
            raise ValueError("changed since they were written")
        rules = [definition_from_json(rule) for rule in content["rules"]]
        rows = [_score(row, rules) for row in content["scores"]]
        images, cases, metadata = content["images"], content["cases"], content["metadata"]
        if not (_words(images) and images and _words(cases) and isinstance(metadata, dict)):
            raise TypeError("no names")
        return Evaluation(tuple(rows), tuple(images), tuple(cases), metadata)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            "SET_EVALUATION", where="scores.json", found=type(error).__name__, remedy="run petscale evaluate first"
        ) from None


def _digest(content: Mapping[str, object]) -> str:
    """SHA-256 of scores as JSON, but for their digest."""
    others = {name: value for name, value in content.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _words(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(word, str) for word in content)


def _with_rule(line: Score | Summary, number: Mapping[ScoreDefinition, int]) -> dict[str, object]:
    """The fields of a line, its definition as a place in the file's ``rules``."""
    content = {**vars(line), "rule": number[line.definition]}
    del content["definition"]
    return content


def _score(content: Mapping[str, Any], rules: Sequence[ScoreDefinition]) -> Score:
    fields = {**content, "value": math.nan if content["value"] is None else float(content["value"])}
    rule = fields.pop("rule")
    if type(rule) is not int or rule < 0:
        raise IndexError("no rule")
    words = [fields[name] for name in ("case", "image", "region", "kind")]
    if not _words(words) or not _words([fields.get("image_rule", "")]):
        raise TypeError("no names")
    if fields.get("range_value") is not None:
        fields["range_value"] = float(fields["range_value"])
    return Score(definition=rules[rule], **fields)


def region_group(row: Score) -> str:
    """What a score is summed up under: its region, or ``lesions``, for no two patients share a lesion."""
    return "lesions" if row.kind == "lesion" else row.region


DECIMALS = {"PSNR": 2, "SSIM": 4, "MS-SSIM": 4, "MAE": 4, "NRMSE": 3, "NMSE": 4, "MAPE": 2, "SCORE": 2}
DECIMALS |= {"bias": 4, "variance": 4}
DECIMALS |= {UNET: 4, GUIDE: 4}


def plus_minus(mean: float, sd: float, metric: str) -> str:
    """Return ``mean ± sd`` with the digits a metric deserves."""
    places = DECIMALS.get(metric, 1)
    return f"{mean:.{places}f}" if math.isnan(sd) else f"{mean:.{places}f} ± {sd:.{places}f}"


def flat(row: Score) -> dict[str, object]:
    """Return a score as the columns of a CSV, the rule's fields in columns of their own."""
    told = row.definition.sentences()
    told["rule_region"] = told.pop("region")
    return {
        **{name: getattr(row, name) for name in ("case", "image", "region", "kind")},
        "metric": told.pop("metric"),
        "value": row.value,
        "units": told.pop("units"),
        "range_value": row.range_value,
        **told,
        "image_rule": row.image_rule,
    }
