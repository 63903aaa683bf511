"""Definitions of scores: identifiers that outlive their sentences, and files of earlier versions."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.metrics import clinical, detection, identifiers, slices, spectra, udpet
from trainers.metrics.definitions import ScoreDefinition, definition_from_json
from trainers.metrics.detection import DetectionConfig
from trainers.metrics.identifiers import SENTENCES, sentence
from trainers.metrics.presets import PRESETS, SUV_CEILING
from trainers.metrics.unet_score import unet_score_definition
from trainers.organ_segmenter import OrganSegmenterConfig

EVERY = [
    *(definition for definitions in PRESETS.values() for definition in definitions),
    *clinical.QUANTITIES.values(),
    *clinical.BIASES.values(),
    clinical.VOLUME,
    clinical.NOISE,
    clinical.ACTIVITY_BIAS,
    spectra.DETAIL,
    spectra.TEXTURE,
    udpet.ORGAN_MAPE,
    udpet.MAPE,
    udpet.SCORE,
    *slices.CHECKERBOARDS.values(),
    *(slices.ms_ssim_definition(scales) for scales in range(6)),
    OrganSegmenterConfig().definition,
    *(
        ScoreDefinition("TPR", "ROI", config.key, "1", preset="detection")
        for config in (
            DetectionConfig(),
            DetectionConfig(organs=("liver",), rule="peak"),
            DetectionConfig(organs=("liver", "cyst"), lesion="tumour; hot", threshold_suv=0.5, tolerance_mm=7.25),
        )
    ),
]


def before_identifiers(definition: ScoreDefinition) -> dict[str, str]:
    """What an earlier version stored: sentences of what there was, and the segmenter under another name."""
    later = (identifiers.ABOVE_41, identifiers.RING_CORRELATION, identifiers.INSIDE_POWER)
    own = definition.to_json()
    told = {name: own[name] if own[name] in later else text for name, text in definition.sentences().items()}
    return {("judge" if name == "segmenter" else name): text for name, text in told.items()}


@pytest.mark.parametrize("definition", EVERY, ids=lambda definition: definition.metric)
def test_definitions_are_read_back_and_so_are_those_stored_as_sentences(definition: ScoreDefinition) -> None:
    assert definition_from_json(json.loads(json.dumps(definition.to_json()))) == definition
    assert definition_from_json(before_identifiers(definition)) == definition


def test_sentences_that_earlier_versions_stored_are_known_word_by_word() -> None:
    checkerboard = (
        "power of the residual at period 4 over the mean power 3 to 6 bins around it; residual: image - full dose, its "
        "slice's mean removed, Hann window; spectra averaged over slices; none with fewer than 16 slices or a side "
        "below 28 voxels; above 6 dB is a pattern"
    )
    stored = {
        "metric": "CB 4",
        "region": "body",
        "mask": "the body's bounding box, sides cut to multiples of 8",
        "units": "dB",
        "data_range": "",
        "normalisation": "",
        "window": "",
        "clip": "SUV from 0 to 20",
        "scale": "SUV / 20",
        "dimensionality": "2D, axial slices",
        "aggregation": checkerboard,
        "judge": "",
        "preset": "cascade",
    }
    assert definition_from_json(stored) == slices.CHECKERBOARDS[4]
    patch = "64 x 64 x 64"
    judge = (
        "3D U-Net of 32 to 256 channels for liver, brain, kidneys, bladder, trained with BCE + Dice and RMSprop at "
        f"0.0001 on 20000 full-dose patches of {patch} voxels of the training cases, then fixed; windows of {patch} "
        "voxels, halo 8"
    )
    unet = {"metric": "Unet-score", "region": "ROI", "units": "1", "judge": judge, "preset": "sgsgan"}
    mask = "Dice of p > 0.5 against the organ's mask, whole volume"
    assert definition_from_json({**unet, "mask": mask}) == OrganSegmenterConfig().definition
    found = (
        "peak: SUV above 2.5 in liver and cyst with the lesions that touch it; lesions: label lesion, 26-connected, "
        "real SUVmax above 2.5; tolerance 0 mm; foci of 0.2 mL or more"
    )
    told = {"metric": "TPR", "region": "ROI", "units": "1", "mask": found}
    key = DetectionConfig(organs=("liver", "cyst"), rule="peak").key
    assert key == "peak>2.5;liver+cyst;lesion;0mm;0.2ml"
    assert definition_from_json(told).mask == key
    everywhere = (
        "overlap: SUV above 2.5 in the whole body mask; lesions: label lesion, 26-connected, real SUVmax above 2.5"
    )
    whole = definition_from_json({**told, "mask": f"{everywhere}; tolerance 0 mm; foci of 0.2 mL or more"})
    assert whole.mask == DetectionConfig().key
    range_of_two = "2 (the default of older scikit-image for floating-point images)"
    own = {"window": SENTENCES[identifiers.UNIFORM_WINDOW], "scale": "each image divided by its own maximum"}
    ssim = {"metric": "SSIM", "region": "whole", "mask": "none", "units": "1", "data_range": range_of_two}
    assert definition_from_json({**ssim, **own, "preset": "udpet2022"}) == PRESETS["udpet2022"][1]


@pytest.mark.parametrize("definition", EVERY, ids=lambda definition: definition.metric)
def test_rewording_changes_what_is_shown_and_nothing_else(
    definition: ScoreDefinition, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, current = before_identifiers(definition), definition.to_json()
    reworded = {identifier: f"reworded {identifier}" for identifier in SENTENCES}
    monkeypatch.setattr(identifiers, "SENTENCES", reworded)
    patterns = tuple((pattern, lambda found: "reworded") for pattern, _ in identifiers.SENTENCES_WITH_SETTINGS)
    monkeypatch.setattr(identifiers, "SENTENCES_WITH_SETTINGS", patterns)
    assert "reworded" in definition.text()
    assert definition_from_json(stored) == definition_from_json(current) == definition
    assert definition.to_json() == current


NAMES = st.text("abcdefgh ()+-_", min_size=1, max_size=8)
CONFIGS = st.builds(
    DetectionConfig,
    threshold_suv=st.floats(0.1, 50),
    organs=st.lists(NAMES, max_size=3).map(tuple),
    lesion=NAMES,
    rule=st.sampled_from(["overlap", "peak"]),
    tolerance_mm=st.floats(0, 30),
    smallest_focus_ml=st.floats(0, 5),
)


@settings(deadline=None)
@given(CONFIGS, CONFIGS)
def test_detection_keys_are_equal_for_equal_settings_and_tell_them(a: DetectionConfig, b: DetectionConfig) -> None:
    assert replace(a).key == a.key
    if (a.rule, a.lesion, len(a.organs)) != (b.rule, b.lesion, len(b.organs)) and "+" not in "".join(
        a.organs + b.organs
    ):
        assert a.key != b.key
    if not any("+" in name for name in a.organs):  # read from what an earlier version stored
        stored = {"metric": "TPR", "region": "ROI", "units": "1", "mask": a.text()}
        assert definition_from_json(stored).mask == a.key
    assert a.text() != a.key


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=3, unique=True), st.floats(1e-6, 1.0), st.integers(1, 10**6))
def test_segmenter_keys_are_read_from_their_sentences(rois: list[str], lr: float, samples: int) -> None:
    definition = OrganSegmenterConfig(rois=tuple(rois), lr=lr, samples=samples).definition
    if not any("+" in name for name in rois):
        assert definition_from_json(before_identifiers(definition)) == definition


def test_sentences_tell_the_constants_that_are_computed_with() -> None:
    for period, definition in slices.CHECKERBOARDS.items():
        told = sentence(definition.aggregation)
        assert f"period {period} " in told
        assert f"{slices.FEWEST_SLICES} slices or a side below {7 * period} " in told
        assert f"{slices.ALARM_DB:g} dB" in told
    assert all(f"{name} {weight:.2f}" in sentence(udpet.MAPE.aggregation) for name, weight in udpet.WEIGHTS.items())
    assert f"to {SUV_CEILING:g}" in sentence(identifiers.CLIP_0_TO_20)
    assert sentence(identifiers.SUV_OVER_20) == f"SUV / {SUV_CEILING:g}"
    assert sentence(slices.ms_ssim_definition(4).window).endswith(f"4 of {len(slices.SCALE_WEIGHTS)} scales")


def test_identifiers_are_short_and_every_sentence_is_anothers() -> None:
    assert len(set(SENTENCES.values())) == len(SENTENCES)
    assert all(len(identifier) < 40 and " " not in identifier for identifier in SENTENCES)
    assert unet_score_definition("x").segmenter == sentence("x") == "x"
    assert detection.DetectionConfig().key == "overlap>2.5;*;lesion;0mm;0.2ml"


def test_a_definition_with_a_field_nobody_knows_is_refused() -> None:
    with pytest.raises(TypeError):
        definition_from_json({"metric": "PSNR", "region": "body", "mask": "none", "units": "dB", "colour": "red"})
