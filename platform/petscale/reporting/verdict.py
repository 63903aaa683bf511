"""What a report's headline may say: PSNR inside the body against the input and every baseline, and lesion bias."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from petscale.evaluation.scores import Evaluation
from trainers.metrics.clinical import BIASES
from trainers.metrics.statistics import Gain

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Verdict:
    """What the headline scores allow to be said: ``better``, ``mixed`` or ``worse``, and why."""

    state: str
    headline: str
    sentences: tuple[str, ...]


def verdict(evaluation: Evaluation) -> Verdict:
    """Compare the network by PSNR inside the body, against the untreated input and against every filter beside it."""
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
