"""What a report's headline may say: PSNR inside the body and in lesions against the best baseline."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from petscale.evaluation.ceiling import share_sentence
from petscale.evaluation.scores import Evaluation, gain_sentence
from trainers.metrics.clinical import BIASES
from trainers.metrics.presets import LESION_PSNR
from trainers.metrics.statistics import FEWEST_FOR_A_TEST, Gain

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Verdict:
    """What the headline scores allow to be said: ``better``, ``mixed`` or ``worse``, and why."""

    state: str
    headline: str
    sentences: tuple[str, ...]


def verdict(evaluation: Evaluation) -> Verdict:
    """Compare the network by PSNR inside the body with the best baseline, the one test that is made, and the input.

    Being better than weak baselines does not count: the state is ``better`` only against the best one, by a test, and
    ``worse`` where the untreated input is not worse than the network.  Fewer cases never allow more to be said.
    """
    first, best = evaluation.images[0], evaluation.best_baseline
    over_input, over_best = evaluation.gain(first), evaluation.gain(best)
    if over_input is None or over_best is None:
        return Verdict("mixed", "No case has both images: nothing can be said", ())
    found = compared(over_best)
    said = f"{found} the best baseline ({best})"
    state = "better" if found == "better than" else "mixed"
    word = "higher" if untested(over_best) else "better"
    if over_input.mean <= 0:
        state = "worse"
        said += "" if best == first else f", and not {word} than the {first}"
    elif found not in ("better than", "higher than") and best != first:
        said += f", but {word} than the {first}"
    sentences = [gain_sentence(over_best)]
    if share := share_sentence(evaluation):
        sentences.insert(0, share)
    if best != first:
        sentences.append(f"Mean PSNR is {_signed(over_input.mean, 2)} dB against the {first}.")
    if untested(over_best):
        needed = f"With {over_best.num_cases} test case(s) no significance test is made: it needs {FEWEST_FOR_A_TEST}."
        sentences.append(needed)
    elif over_best.p_value is not None and over_best.p_value >= SIGNIFICANT:
        sentences.append(f"The difference from {best} is not statistically significant.")
    sentences += _lesion_sentences(evaluation, best)
    said = f"not testable with {over_best.num_cases} test case(s): {said}" if untested(over_best) else said
    return Verdict(state, f"{said[0].upper()}{said[1:]} in PSNR inside the body.", tuple(sentences))


def untested(gain: Gain) -> bool:
    """Whether a test had too few cases."""
    return gain.num_cases < FEWEST_FOR_A_TEST


def compared(gain: Gain) -> str:
    """Say in words what a gain allows: only one that a test bears out is called better."""
    if untested(gain):
        return "higher than" if gain.mean > 0 else "not higher than"
    if gain.p_value is None or gain.p_value >= SIGNIFICANT:
        return "no clear difference from"
    return "better than" if gain.mean > 0 else "not better than"


def _lesion_sentences(evaluation: Evaluation, best: str) -> list[str]:
    """Say how lesions fare, which PSNR inside the body does not show: PSNR against the baseline that is best there."""
    there = evaluation.best_by(LESION_PSNR, "lesions")
    gain = evaluation.gain(there, LESION_PSNR, "lesions")
    if gain is None:
        return []
    named = there if there == best else f"the baseline that is best in them ({there})"
    sentences = [f"In lesions: {compared(gain)} {named} in PSNR, {gain_sentence(gain)}"]
    for quantity in ("SUVmax", "SUVmean"):
        sizes: Mapping[str, float] = {
            name: float(np.nanmean(values))
            for name in (evaluation.synthesized, best)
            if (values := _sizes(evaluation, name, quantity))
        }
        gain = evaluation.gain(best, BIASES[quantity], "lesions")
        if gain is None or len(sizes) < 2:
            continue
        nearer = compared(gain).startswith(("better", "higher"))
        lesions = len(_sizes(evaluation, evaluation.synthesized, quantity))
        said = f"{'closer' if nearer else 'no closer'} to the full dose than in {best}"
        if compared(gain).startswith("no clear"):
            said = f"not clearly different from that in {best}"
        p_value = ", not testable" if gain.p_value is None else f", p = {gain.p_value:.2g}"
        sentences.append(
            f"Lesion {quantity} is {said}: mean absolute bias {sizes[evaluation.synthesized]:.1f} % against "
            f"{sizes[best]:.1f} % ({lesions} lesions{p_value})."
        )
    return sentences


def _sizes(evaluation: Evaluation, image: str, quantity: str) -> list[float]:
    """Absolute biases of every lesion in one image."""
    return [
        abs(row.value)
        for row in evaluation.rows
        if row.image == image and row.definition == BIASES[quantity] and row.kind == "lesion"
    ]


def _signed(value: float, places: int) -> str:
    return f"{value:+.{places}f}".replace("-", "−")
