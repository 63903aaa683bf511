"""One case scored: image quality by every preset, uptake in organs and lesions, the Unet-score."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from petscale.evaluation.scores import REFERENCE
from storage.errors import InputError
from storage.reader import Case
from storage.source import ImageSource
from trainers.metrics.clinical import ACTIVITY_BIAS, separate, uptake_scores
from trainers.metrics.definitions import Region, Score
from trainers.metrics.presets import PRESETS
from trainers.metrics.slices import slice_scores
from trainers.metrics.streaming import stream_scores
from trainers.metrics.udpet import udpet_scores
from trainers.metrics.unet_score import OrganFinder, unet_scores


def presets_of(system: str, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The conventions of scoring: the project's, the system's, and those asked for.

    Raises:
        InputError: CFG_CHOICE.
    """
    for name in asked:
        if name not in PRESETS:
            raise InputError("CFG_CHOICE", where="--preset", found=f"'{name}'", remedy=f"one of {', '.join(PRESETS)}")
    return tuple(dict.fromkeys(("native", system, *asked)))


def score_stored_case(
    case: Case,
    target: str,
    candidates: Mapping[str, ImageSource],
    *,
    presets: Sequence[str],
    segmenter: OrganFinder | None = None,
    alias: str = "",
) -> list[Score]:
    """Score a committed case, with the labels that it holds.

    Args:
        case: a committed case.
        target: name of its full-dose image in SUVbw.
        candidates: as for ``score_case``.
        presets: as for ``score_case``: ``native``, the project's own, and that of the system.
        segmenter: as for ``score_case``.
        alias: what the scores call the case; default: its name.

    Raises:
        InputError: as ``score_case``.
    """
    return score_case(
        alias or case.name,
        case.image(target),
        candidates,
        body=case.image("body"),
        labels=case.image("labels") if case.labels else None,
        label_names=case.labels,
        lesions=[label for label in case.labels.values() if label.startswith("lesion")],
        presets=presets,
        segmenter=segmenter,
    )


def score_case(
    case: str,
    reference: ImageSource,
    candidates: Mapping[str, ImageSource],
    *,
    body: ImageSource,
    labels: ImageSource | None = None,
    label_names: Mapping[int, str] | None = None,
    lesions: Collection[str] = ("lesion",),
    presets: Sequence[str] = ("native",),
    segmenter: OrganFinder | None = None,
) -> list[Score]:
    """Score one case: image quality by every preset, total activity, uptake in organs and lesions, the Unet-score.

    Args:
        case: alias of the case.
        reference: the full-dose image in SUVbw.
        candidates: name to image, in the order low-dose input, Gaussian, synthesized.
        body: greater than 0.5 inside the patient.
        labels: integers naming organs and lesions, on the reference's grid.
        label_names: what each label is; labels without a name, and those named ``body``, are no region.
        lesions: names whose label holds lesions; each connected one becomes a region of its own, the largest first.
        presets: keys of ``trainers.metrics.presets.PRESETS``; ``udpet2022`` brings its organ errors where there are
            labels, ``cascade`` MS-SSIM and checkerboards.
        segmenter: a network that was not trained on the case, for the Unet-score of every image and of the full dose
            itself; it needs labels.

    Raises:
        InputError: as ``stream_scores``, ``stream_uptake`` and ``unet_scores`` do.
    """
    found = []
    if segmenter is not None and labels is not None:
        found = unet_scores(segmenter, case, {REFERENCE: reference, **candidates}, labels, label_names or {})
    rules = [*(rule for preset in presets for rule in PRESETS[preset]), ACTIVITY_BIAS]
    regions = [Region("whole volume", "whole"), Region("body", "body")]
    names = dict(label_names or {})
    if labels is not None:
        regions += [Region(name, "organ", n) for n, name in names.items() if name not in lesions and name != "body"]
        labels, found_lesions = lesions_of(labels, names, lesions)
        regions += found_lesions
    # Each measure reads the images slab by slab itself; the first takes as long as the others together.
    with ThreadPoolExecutor(2, thread_name_prefix="score") as pool:
        streamed = pool.submit(stream_scores, case, reference, candidates, rules, regions, body=body, labels=labels)
        by_slice = pool.submit(slice_scores, case, reference, candidates, body=body) if "cascade" in presets else None
        uptake = (
            pool.submit(uptake_scores, case, reference, candidates, regions, labels=labels, reference_name=REFERENCE)
            if labels is not None
            else None
        )
        scores = streamed.result()  # what it refuses is told first
        if labels is not None and "udpet2022" in presets:
            organs = [region for region in regions if region.kind == "organ"]
            scores += udpet_scores(case, reference, candidates, organs, scores, labels=labels)
        for others in (uptake, by_slice):
            scores += others.result() if others is not None else []
    return scores + found


def lesions_of(
    labels: ImageSource, names: Mapping[int, str], lesions: Collection[str]
) -> tuple[ImageSource, list[Region]]:
    """Return labels in which every connected lesion has a number of its own, and the lesions, the largest first."""
    regions = []
    for label, name in names.items():
        if name in lesions:
            labels = separated = separate(labels, label)
            numbers = np.unique(separated.numbers).tolist()
            regions += [Region(f"{name} {i + 1}", "lesion", number) for i, number in enumerate(numbers)]
    return labels, regions
