"""Every system that restores a low dose, at equal processor time, beside every baseline and the ceiling.

    python benchmarks/leaderboard.py measure DATA FOLDER --cohort sarcoma --minutes 4
    python benchmarks/leaderboard.py measure DATA FOLDER --cohort quadra --minutes 4
    python benchmarks/leaderboard.py measure DATA FOLDER --cohort sarcoma --minutes 2 --entries seeds parts
    python benchmarks/leaderboard.py page FOLDER      the tables of docs/results/leaderboard.md
    python benchmarks/leaderboard.py parts FOLDER     those of restore's parts, for docs/results/restore.md

DATA as for benchmarks/restore.py; the cohorts of phantoms need none.  Training runs in this process, on one thread,
with the loop, feed and habits of ``petscale train``; its length is a number of patches that takes the processor time
asked for, which is measured first.  So other work on the machine changes no row.  What FOLDER holds is not made again.
"""

import argparse
import datetime
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from petscale.evaluation import ceiling
from petscale.evaluation.fitting import baseline_from_json, fit_baseline
from petscale.evaluation.scoring import lesions_of
from petscale.experiments.runs import sarcoma
from storage.errors import InputError
from storage.reader import Case, Cases, open_cohort
from storage.source import ArraySource, ImageSource
from trainers import feed, loop
from trainers.engine import EngineConfig, plain_engines
from trainers.feed_config import FeedConfig
from trainers.habits import Engines
from trainers.loop import LoopConfig
from trainers.metrics.clinical import BIASES, uptake_scores
from trainers.metrics.definitions import Region
from trainers.metrics.presets import BODY_PSNR, PRESETS
from trainers.metrics.statistics import paired_gain
from trainers.metrics.streaming import stream_scores
from trainers.recipe import BatchSpec, Synthesizer, Validated
from trainers.synthesize import InSuv, synthesize
from trainers.systems import (
    RECIPES,
    ar_gan,
    auto_context,
    cg_3dsrgan,
    cgan_3d,
    cvt_gan,
    cycle_gan,
    cycle_gan_3d,
    cycle_wgan,
    medgan,
    red_cnn,
    restore,
    s3pet,
    semipet,
    sgsgan,
    unet,
    unet_3d,
)

ROOT = Path(__file__).parents[1]
DRFS = (4, 20, 100)
SOURCES = tuple(f"low_drf{drf}" for drf in DRFS)
CPU = torch.device("cpu")
LESION_PSNR = next(rule for rule in PRESETS["native"] if (rule.metric, rule.region) == ("PSNR", "ROI"))
PHANTOMS = {"quadra": 12, "uexplorer": 12}
OURS = "restore"
PLAIN = EngineConfig()
Scores = dict[str, float]  # "body", "lesions" in dB; "SUVmean", "SUVmax": bias of the lesions in %


@dataclass(frozen=True)
class Entry:
    """One row: a system and its settings, whose length is yet to be found.

    Args:
        recipe: its key.
        sized: number of patches, smallest volume -> its configuration.
        feed: what its networks are fed.
        engine: how they are trained.
        sources: the images that one network is trained on; the row is scored at these.
        target: the image that it is to give; scores are always against the full dose.
        seed: of weights, order and places.
        changed: what is exchanged while it trains.
    """

    recipe: str
    sized: Callable[[int, tuple[int, ...]], Any]
    feed: FeedConfig
    engine: EngineConfig = PLAIN
    sources: tuple[str, ...] = SOURCES
    target: str = "full"
    seed: int = 0
    changed: Callable[[], AbstractContextManager[Any]] = nullcontext


def _edges(least: tuple[int, ...], most: Sequence[int], multiple: int) -> tuple[int, int, int]:
    z, y, x = (min(edge, size // multiple * multiple) for edge, size in zip(most, least, strict=True))
    return z, y, x


def _sgsgan(samples: int, least: tuple[int, ...]) -> Any:
    patch = _edges(least, (32, 32, 32), 8)
    phases = (samples, 0, 0, 0)
    return sgsgan.Config(patch=patch, patches_per_case=2, critic_channels=8, rois=(), phase_samples=phases)


def _cg(samples: int, least: tuple[int, ...], **switches: Any) -> Any:
    lengths = {"epoch_samples": max(samples // 10, 8), "max_epochs": 8, "backbone_samples": samples // 8}
    return cg_3dsrgan.Config(
        doses=tuple(map(float, DRFS)),
        mlnet_channels=8,
        contextual_channels=8,
        discriminator_channels=8,
        patch=(32, 32, 32),
        perceptual="masked",
        lr=1e-3,
        stop_lr=1e-5,
        calibration_samples=max(samples // 20, 8),
        validate_batches=4,
        **lengths,
        **switches,
    )


def _s3pet(samples: int, least: tuple[int, ...], **switches: Any) -> Any:
    window = min(48, min(least[1:]) // 8 * 8)
    parts = {"low_samples": samples // 8, "full_samples": samples // 4, "swap_samples": samples * 5 // 8}
    small = {"dim": 64, "blocks": 2, "heads": 4, "decoder_channels": (32, 16, 16, 8)}
    return s3pet.Config(**{"window": window, "slices": 1, "lr": 1e-3, **small, **parts, **switches})


def _red_cnn(samples: int, least: tuple[int, ...]) -> Any:
    return red_cnn.Config(channels=32, patch=(1, *_edges(least, (64, 64, 64), 8)[1:]), samples=samples)


# Comparison methods: widths between 8 and 16, so that four minutes of one core are some hundred steps; patches of 32^3
# voxels or slices of 48 x 48, smaller where a volume is.  All else as published, but for the two rates named.


def _slice(least: tuple[int, ...], multiple: int = 4) -> tuple[int, int, int]:
    return 1, *_edges(least, (1, 48, 48), multiple)[1:]


def _unet(samples: int, least: tuple[int, ...]) -> Any:
    return unet.Config(patch=_edges(least, (32, 32, 32), 4), samples=samples)


def _unet_3d(samples: int, _: tuple[int, ...]) -> Any:
    patch = (32, 32, 32)
    return unet_3d.Config(channels=8, critic_channels=8, patch=patch, patches_per_case=2, samples=samples)


def _cgan_3d(samples: int, least: tuple[int, ...]) -> Any:
    return cgan_3d.Config(width=8, downs=4, critic_width=8, patch=_edges(least, (32, 32, 32), 16), samples=samples)


def _cycle_wgan(samples: int, least: tuple[int, ...]) -> Any:
    return cycle_wgan.Config(width=8, downs=3, critic_width=8, patch=_edges(least, (32, 32, 32), 8), samples=samples)


def _cycle_gan(samples: int, least: tuple[int, ...]) -> Any:
    halves = {"samples": samples // 2, "decay_samples": samples // 2}
    return cycle_gan.Config(width=16, blocks=3, critic_width=16, patch=_slice(least), **halves)


def _cycle_gan_3d(samples: int, least: tuple[int, ...]) -> Any:
    halves = {"samples": samples // 2, "decay_samples": samples // 2}
    return cycle_gan_3d.Config(width=8, blocks=3, critic_width=8, patch=_edges(least, (32, 32, 32), 4), **halves)


def _auto_context(samples: int, least: tuple[int, ...]) -> Any:
    quarters = {"stage_samples": max(samples // 4, 1), "joint_samples": samples // 4}
    return auto_context.Config(channels=16, lr=1e-3, patch=_slice(least, 1), **quarters)


def _ar_gan(samples: int, _: tuple[int, ...]) -> Any:
    patch = (1, 48, 48)  # may pass a volume
    return ar_gan.Config(width=16, downs=4, rectifier_width=16, critic_width=16, patch=patch, samples=samples)


def _cvt_gan(samples: int, least: tuple[int, ...]) -> Any:
    patch = _edges(least, (48, 48, 48), 16)
    return cvt_gan.Config(width=16, critic_width=4, lr=1e-3, patch=patch, patches_per_case=2, samples=samples)


def _semipet(samples: int, least: tuple[int, ...]) -> Any:
    return semipet.Config(width=16, blocks=3, critic_width=16, patch=(4, *_slice(least)[1:]), samples=samples)


def _medgan(samples: int, _: tuple[int, ...]) -> Any:
    no_vgg16 = {"lambda_style": 0.0, "lambda_content": 0.0}
    patch = (1, 48, 48)  # may pass a volume
    return medgan.Config(width=8, downs=4, critic_width=8, patch=patch, samples=samples, **no_vgg16)


def _restore(samples: int, least: tuple[int, ...], **switches: Any) -> Any:
    return restore.Config(**{"samples": samples, "bank_samples": 800, "patch": (24, 24, 24), **switches})


SYSTEMS: dict[str, Entry] = {
    "residual U-Net": Entry("unet", _unet, unet.FEED),
    "RED-CNN, 32 channels": Entry("red_cnn", _red_cnn, red_cnn.FEED),
    "3D-UNet": Entry("unet_3d", _unet_3d, unet_3d.FEED),
    "3D-cGAN": Entry("cgan_3d", _cgan_3d, cgan_3d.FEED),
    "Auto-Context CNN": Entry("auto_context", _auto_context, auto_context.FEED),
    "AR-GAN": Entry("ar_gan", _ar_gan, ar_gan.FEED),
    "CVT-GAN": Entry("cvt_gan", _cvt_gan, cvt_gan.FEED),
    "SemiPET-like": Entry("semipet", _semipet, semipet.FEED),
    "MedGAN, without VGG16": Entry("medgan", _medgan, medgan.FEED),
    "CycleWGAN": Entry("cycle_wgan", _cycle_wgan, cycle_wgan.FEED),
    "3D-CycleGAN, no pairs": Entry("cycle_gan_3d", _cycle_gan_3d, cycle_gan_3d.FEED),
    "Cycle-GAN, no pairs": Entry("cycle_gan", _cycle_gan, cycle_gan.FEED),
    "SGSGAN": Entry("sgsgan", _sgsgan, FeedConfig()),
    "SGSGAN, averaged weights, mirrored faces": Entry(
        "sgsgan", _sgsgan, FeedConfig(beyond="mirror"), EngineConfig(ema_decay=0.995)
    ),
    "CG-3DSRGAN": Entry("cg_3dsrgan", _cg, FeedConfig(suv_scale=10.0, cases_per_step=2)),
    "CG-3DSRGAN, residual": Entry(
        "cg_3dsrgan", partial(_cg, residual="gaussian"), FeedConfig(suv_scale=10.0, cases_per_step=2)
    ),
    "S3PET": Entry("s3pet", _s3pet, FeedConfig(suv_scale=5.0, cases_per_step=8)),
    "S3PET, residual": Entry("s3pet", partial(_s3pet, residual="low"), FeedConfig(suv_scale=5.0, cases_per_step=8)),
    "S3PET, residual, tokens of 4 voxels": Entry(
        "s3pet",
        partial(_s3pet, residual="low", patch_size=4, decoder_channels=(32, 16, 16)),
        FeedConfig(suv_scale=5.0, cases_per_step=8),
    ),
    OURS: Entry("restore", _restore, restore.FEED, restore.ENGINE),
}


def _log_difference(image: Tensor, target: Tensor, g: Tensor, noise: Tensor, weight: Tensor, _: Any) -> Any:
    """Squared errors of log(1 + SUV)."""
    logs = image.clamp(min=0).log1p() - target.clamp(min=0).log1p()
    return {"difference": (weight * logs.square()).mean()}


def _part(_only: str = "", **switches: Any) -> Entry:
    """One part of restore changed: a field of the recipe, of the feed or of the engine."""
    entry = SYSTEMS[OURS]
    fields = {"feed": entry.feed, "engine": entry.engine}
    for kind in fields:
        own = {name: switches.pop(name) for name in list(switches) if hasattr(fields[kind], name)}
        fields[kind] = replace(fields[kind], **own)
    sized = lambda samples, least: _restore(samples, least, **switches)  # noqa: E731
    sources = (_only,) if _only else SOURCES
    return replace(entry, sized=sized, sources=sources, **fields)


SYSTEMS["restore, CT beside"] = _part(beside="ct")
PARTS: dict[str, Entry] = {
    "as it comes": _part(),
    "starts at the linear filter": _part(start="linear"),
    "starts at the low dose": _part(start="low"),
    "with additive constants": _part(constants="additive"),
    "without the count gate": _part(count_gate="off"),
    "L1 instead of squares": _part(loss="l1"),
    "squares of log(1 + SUV)": replace(
        _part(), changed=lambda: mock.patch.object(restore, "difference", _log_difference)
    ),
    "with local means and maxima (0.2)": _part(quantification=0.2),
    "lesions weigh as all else": _part(lesion_weight=0.0),
    "zeros beyond the faces": _part(beyond="air"),
    "no mirror images and turns": _part(augment="none"),
    "current weights, not averaged": _part(ema_decay=0.0),
    "doses drawn 1 : 3 : 5": replace(_part(), sources=(SOURCES[0], *(SOURCES[1],) * 3, *(SOURCES[2],) * 5)),
    "DRF 4 alone": _part(SOURCES[0]),
    "DRF 20 alone": _part(SOURCES[1]),
    "DRF 100 alone": _part(SOURCES[2]),
}
SEEDS: dict[str, Entry] = {f"seed {seed}": replace(_part(), seed=seed) for seed in range(1, 5)}
WITHOUT: dict[str, Entry] = {  # of the cohort "twice", which holds two draws of DRF 20
    "from the full dose": _part(SOURCES[1]),
    "from another low dose": replace(_part(SOURCES[1]), target="low_drf20_r1"),
}
ENTRIES = {"systems": SYSTEMS, "seeds": SEEDS, "parts": PARTS, "without": WITHOUT}


# Cohorts


def cohort(name: str, data: Path, folder: Path) -> tuple[Cases, list[str], list[str]]:
    """Return a cohort, made where it is not there yet, and its training and test cases."""
    made = folder / name
    if not (made / "CATALOG.json").exists():
        if name in PHANTOMS:
            body = ("--body.shape", 72, 96, 128, "--body.spacing-mm", 3, 3, 3, "--body.axial-coverage", 0.45, 0.66)
            _petscale("phantom", made, "--cases", PHANTOMS[name], "--scan", name, "--drf", *DRFS, *body)
        else:
            real = folder / "real"
            if not real.exists():
                files = ("--pet", "PET_image.nii.gz", "--ct", "CT_image.nii.gz", "--mask", "PET_mask.nii.gz")
                _petscale("ingest", data / "ibsi_validation/nifti", real, *files, "--names", "folder")
                _petscale("ingest", data / "sts_001_wholebody_pet/image", real, "--case", "sts_001_wholebody")
            doses = (20, "--realisations", 2) if name == "twice" else DRFS
            _petscale("simulate", real, made, "--drf", *doses, "--scan.million-prompts-per-bed", 100)
    opened = open_cohort(made)
    names = sorted(opened.cases)
    held = names[1::2] if name in PHANTOMS else [case for case in names if case in sarcoma().split.test]
    return opened, [case for case in names if case not in held], held


def _petscale(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "petscale", *map(str, words)], check=True, stdout=sys.stderr)


# Training


def trained(entry: Entry, cases: Cases, train: Sequence[str], samples: int) -> tuple[Synthesizer, float, int]:
    """Train one entry; returns what it made, the processor seconds of it, and its number of weights."""
    least = tuple(min(cases.case(name).image("full").grid.shape[axis] for name in train) for axis in range(3))
    fed = replace(entry.feed, source=entry.sources, target=entry.target, seed=entry.seed)
    config = entry.sized(samples, least)
    system = RECIPES[entry.recipe]
    torch.manual_seed(entry.seed)
    engines = Engines(plain_engines(entry.engine), entry.engine)
    spec = system.build(config, make_engine=engines.make, patches_per_step=8).batch_spec(0)
    patches = spec.patches_per_case * fed.cases_per_step
    torch.manual_seed(entry.seed)
    engines = Engines(plain_engines(entry.engine), entry.engine)
    recipe = system.build(config, make_engine=engines.make, patches_per_step=patches)
    kept = list(train[-1:]) if isinstance(recipe, Validated) else []
    learnt = [name for name in train if name not in kept]
    streams = dict.fromkeys(("paired", "source", "target", "unpaired"), learnt)
    needs: list[BatchSpec] = [recipe.batch_spec(start) for start in recipe.phase_starts.values()]
    feed.check_cases(cases, streams, fed, needs)
    reads = {"rank": 0, "world": 1, "device": CPU}
    source = feed.Feed(cases, streams, fed, recipe.batch_spec, **reads)
    validation = None
    if isinstance(recipe, Validated):
        wanted = recipe.validation_batch
        validation = feed.Feed(cases, {"paired": kept}, replace(fed, augment="none"), lambda step: wanted, **reads)
    config_of_loop = LoopConfig(log_every=10**6, save_every=10**6, picture_every=0, seed=entry.seed)
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as scratch, entry.changed():
        loop.fit(
            recipe,
            source,
            config_of_loop,
            folder=Path(scratch),
            meta={},
            report=lambda record: None,
            picture=lambda step, made: None,
            patches_per_step=patches,
            engines=engines,
            validation=validation,
        )
    seconds = time.process_time() - begin
    weights = recipe.weights()
    made = system.weights_to_synthesizer(config, {name: value.clone() for name, value in weights.items()})
    count = sum(value.numel() for name, value in weights.items() if value.is_floating_point())
    return InSuv(made, fed.suv_scale, beyond=fed.beyond), seconds, count


def length(entry: Entry, cases: Cases, train: Sequence[str], seconds: float) -> int:
    """Return the number of patches that takes so much processor time: longer runs, until a tenth of it was measured."""
    samples = 32
    trained(entry, cases, train, samples)  # libraries choose their ways on first use
    _, least, _ = trained(entry, cases, train, samples)
    per_patch = 0.0
    while per_patch * samples < 0.1 * seconds:
        samples *= 3
        _, took, _ = trained(entry, cases, train, samples)
        per_patch = max(took - least, 0.0) / (samples - 32)
    return int(32 + (seconds - least) / per_patch)


# Scores


def scores(case: Case, images: Mapping[str, ImageSource]) -> dict[str, Scores]:
    """Score images of one case against its full dose."""
    full, body = case.image("full"), case.image("body")
    labels, lesions = None, []
    if case.labels:
        names = [name for name in case.labels.values() if name.startswith("lesion")]
        labels, lesions = lesions_of(case.image("labels"), case.labels, names)
    rules, regions = [BODY_PSNR, LESION_PSNR], [Region("body", "body"), *lesions]
    found: dict[str, Scores] = {name: {} for name in images}
    for row in stream_scores(case.name, full, images, rules, regions, body=body, labels=labels):
        key = "body" if row.kind == "body" else "lesions"
        found[row.image].setdefault(key, row.value)
        if key == "lesions":
            found[row.image].setdefault("all lesions", []).append(row.value)  # type: ignore[arg-type,union-attr]
    for own in found.values():
        if "all lesions" in own:
            own["lesions"] = float(np.mean(own.pop("all lesions")))
    if labels is not None and lesions:
        rows = uptake_scores(case.name, full, images, lesions, labels=labels, reference_name="full")
        for quantity in ("SUVmean", "SUVmax"):
            for name in images:
                biases = [r.value for r in rows if r.image == name and r.definition == BIASES[quantity]]
                found[name][quantity] = float(np.mean(biases))
    return found


def restored(made: Synthesizer, case: Case, source: str) -> tuple[ImageSource, float]:
    """Synthesize a whole volume; returns it and the processor seconds."""
    slabs: dict[int, NDArray[np.float32]] = {}
    begin = time.process_time()
    synthesize(made, case, source, slabs.__setitem__, device=CPU)
    seconds = time.process_time() - begin
    voxels = np.maximum(np.concatenate([slabs[z] for z in sorted(slabs)]), 0)
    image = case.image(source)
    return ArraySource(voxels, image.grid, image.units), seconds


def baselines(cases: Cases, train: Sequence[str], held: Sequence[str], source: str, kept: Path) -> dict[str, Any]:
    """Return case -> image -> scores of what needs no network, and of the ceiling."""
    if not kept.exists():
        fitted = fit_baseline([cases.case(name) for name in train], source, "full")
        kept.write_text(json.dumps(fitted.to_json()))
    fitted = baseline_from_json(json.loads(kept.read_text()))
    found = {}
    for name in held:
        case = cases.case(name)
        images = {
            "best Gaussian" if image.startswith("Gaussian") else image: made
            for image, made in fitted.beside(case.image(source)).items()
        }
        found[name] = scores(case, {**images, **ceiling.oracles(case, source, "full")})
    return found


# What is kept


def measure(name: str, data: Path, folder: Path, minutes: float, kinds: Sequence[str], only: Sequence[str]) -> None:
    """Make every row that is not there yet; one file each."""
    cases, train, held = cohort(name, data, folder)
    results = folder / "results" / name
    results.mkdir(parents=True, exist_ok=True)
    doses = SOURCES if name != "twice" else SOURCES[1:2]
    for source in doses:
        if not (place := results / f"baselines {source}.json").exists():
            found = baselines(cases, train, held, source, results / f"filters {source}.json")
            _keep(place, found)
    for kind in kinds:
        for row, entry in ENTRIES[kind].items():
            place = results / f"{kind} {row}.json".replace("/", "-")
            if place.exists() or (only and row not in only):
                continue
            try:
                samples = length(entry, cases, train, 60 * minutes)
                made, seconds, count = trained(entry, cases, train, samples)
            except InputError as error:
                _keep(place, {"refused": str(error)})
                continue
            found, took = {}, []
            for source in dict.fromkeys(entry.sources):
                found[source] = {}
                for held_out in held:
                    image, spent = restored(made, cases.case(held_out), source)
                    took.append(1e6 * spent / math.prod(image.grid.shape))
                    found[source][held_out] = scores(cases.case(held_out), {row: image})[row]
            about = {"samples": samples, "seconds": seconds, "minutes": minutes, "weights": count, "commit": _commit()}
            about |= {"us_per_voxel": float(np.median(took)), "date": f"{datetime.datetime.now(datetime.UTC).date()}"}
            _keep(place, {**about, "scores": found})
            print(name, row, f"{samples} patches, {seconds:.0f} s", _means(found), file=sys.stderr, flush=True)


def _keep(place: Path, content: object) -> None:
    begun = place.with_suffix(".part")
    begun.write_text(json.dumps(content))
    begun.replace(place)


def _means(found: Mapping[str, Mapping[str, Scores]]) -> str:
    means = {source: np.mean([own["body"] for own in by_case.values()]) for source, by_case in found.items()}
    return " ".join(f"{source} {mean:.2f}" for source, mean in means.items())


def _commit() -> str:
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


# The page


TITLES = {
    "sarcoma": "Real PET at simulated low doses: 39 sarcoma patients' crops and one whole body",
    "quadra": "Phantoms in a simulated Biograph Vision Quadra",
    "uexplorer": "Phantoms in a simulated uEXPLORER",
}
NEEDS_NONE = (
    "low-dose input",
    "best Gaussian",
    "linear filter",
    "adaptive filter",
    "non-local means",
    "total variation",
)
Table = dict[str, dict[str, dict[str, Scores]]]  # row -> source -> case -> scores


def rows_of(results: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return name and content of every row of a kind that was measured, in order."""
    for row in ENTRIES[kind]:
        place = results / f"{kind} {row}.json".replace("/", "-")
        if place.exists():
            yield row, json.loads(place.read_text())


def table_of(results: Path, kind: str) -> Table:
    """Return every baseline, every measured row of a kind, and the ceiling, in this order."""
    table: Table = {}
    found = {place.stem.split()[-1]: json.loads(place.read_text()) for place in results.glob("baselines *.json")}
    for source in sorted(found, key=lambda name: int(name.removeprefix("low_drf"))):
        for case, images in found[source].items():
            for image, own in images.items():
                table.setdefault(image, {}).setdefault(source, {})[case] = own
    for row, content in rows_of(results, kind):
        if "scores" in content:
            table[row] = content["scores"]
    ceilings = [name for name in table if name.startswith("noise-free")]
    return {**{name: rows for name, rows in table.items() if name not in ceilings}, **{n: table[n] for n in ceilings}}


def column(by_case: Mapping[str, Scores], key: str) -> dict[str, float]:
    """Return case -> score, of the cases that have it."""
    return {case: own[key] for case, own in by_case.items() if key in own and math.isfinite(own[key])}


def _mean(by_case: Mapping[str, Scores], key: str) -> float:
    values = list(column(by_case, key).values())
    return float(np.mean(values)) if values else math.nan


def best_baseline(table: Table, source: str) -> str:
    """Return the baseline of the highest mean PSNR inside the body."""
    return max((name for name in NEEDS_NONE if name in table), key=lambda name: _mean(table[name][source], "body"))


def _printed(rows: Sequence[Sequence[str]]) -> None:
    for number, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if number == 0:
            print("|---" * len(row) + "|")
    print(flush=True)


def _sources(table: Table) -> list[str]:
    return list(next(iter(table.values())))


def _headed(sources: Sequence[str]) -> list[str]:
    return ["", *(source.replace("low_drf", "DRF ") for source in sources)]


def quality(table: Table, key: str, form: str = "{:.2f}") -> None:
    """Print one mean score of every row at every dose."""
    sources = _sources(table)
    rows = [_headed(sources)]
    for name, by_source in table.items():
        means = [_mean(by_source.get(source, {}), key) for source in sources]
        if any(map(math.isfinite, means)):
            rows.append([name, *("" if math.isnan(mean) else form.format(mean) for mean in means)])
    _printed(rows)


def against_the_best(table: Table, names: Sequence[str]) -> None:
    """Print the gain of networks over the best baseline, and the share of what can be gained."""
    sources = _sources(table)
    best = {source: best_baseline(table, source) for source in sources}
    rows = [["", *(f"{source.replace('low_drf', 'DRF ')}, over the {best[source]}" for source in sources)]]
    for name in names:
        cells = []
        for source in sources:
            ours = column(table[name].get(source, {}), "body")
            gain = paired_gain(ours, column(table[best[source]][source], "body"), over=best[source])
            if gain is None:
                cells.append("")
                continue
            p = "" if gain.p_value is None else f", p = {gain.p_value:.2g}"
            top = next((n for n in (ceiling.SHARED, ceiling.IDEAL) if source in table.get(n, {})), None)
            share = ""
            if top:
                low, high = column(table["low-dose input"][source], "body"), column(table[top][source], "body")
                parts = [(ours[case] - low[case]) / (high[case] - low[case]) for case in ours]
                share = f"; {100 * np.mean(parts):.0f} % of the gain"
            cells.append(f"{gain.mean:+.2f} dB, {gain.num_better} of {gain.num_cases}{p}{share}")
        rows.append([name, *cells])
    _printed(rows)


def page(folder: Path) -> None:
    """Print the tables of all that was measured."""
    for name, title in TITLES.items():
        results = folder / "results" / name
        if not results.exists():
            continue
        table, about = table_of(results, "systems"), dict(rows_of(results, "systems"))
        if not any("minutes" in content for content in about.values()):
            continue
        commits = sorted({content["commit"] for content in about.values() if "commit" in content})
        print(f"## {title}\n")
        minutes = next(content["minutes"] for content in about.values() if "minutes" in content)
        print(
            f"{minutes:g} min of processor time per training, commit {', '.join(commits)}. PSNR inside the body [dB], "
            f"mean of {len(table['low-dose input'][SOURCES[0]])} cases:\n"
        )
        quality(table, "body")
        print("Against the best baseline, case by case, in PSNR inside the body:\n")
        against_the_best(table, [row for row in about if row in table])
        print("PSNR inside the lesions [dB]:\n")
        quality(table, "lesions")
        for quantity in ("SUVmean", "SUVmax"):
            print(f"Bias of the lesions' {quantity} [%], mean:\n")
            quality(table, quantity, "{:+.1f}")
        print("What each took:\n")
        rows = [["", "weights", "patches seen", "processor time [s]", "per voxel at synthesis [us]"]]
        for row, content in about.items():
            if "refused" in content:
                rows.append([row, "", "", f"refused: {content['refused'].split(';')[0]}", ""])
                continue
            cells = (f"{content['weights']:,}", f"{content['samples']:,}", f"{content['seconds']:.0f}")
            rows.append([row, *cells, f"{content['us_per_voxel']:.1f}"])
        _printed(rows)


def spread(table: Table, names: Sequence[str]) -> None:
    """Print mean and standard deviation of every score over trainings that differ by their seed alone."""
    sources = _sources(table)
    rows = [_headed(sources)]
    scores = {"body": "PSNR, body [dB]", "lesions": "PSNR, lesions [dB]"}
    scores |= {quantity: f"bias of {quantity} [%]" for quantity in ("SUVmean", "SUVmax")}
    for key, title in scores.items():
        found = {source: [_mean(table[name][source], key) for name in names] for source in sources}
        cells = [f"{np.mean(values):.2f} +- {np.std(values, ddof=1):.2f}" for values in found.values()]
        rows.append([title, *cells])
    _printed(rows)


def told_of(results: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a kind that were measured and not refused."""
    return {row: content for row, content in rows_of(results, kind) if "samples" in content}


def parts(folder: Path) -> None:
    """Print the tables of restore's seeds and parts."""
    results = folder / "results" / "sarcoma"
    for kind in ("seeds", "parts"):
        whole = table_of(results, kind)
        kept = [OURS] if kind == "seeds" else []
        if not told_of(results, kind):
            continue
        if kept:
            whole[OURS] = table_of(results, "systems")[OURS]
        names = ["adaptive filter", *kept, *(row for row in ENTRIES[kind] if row in whole)]
        if kept:
            print("Gain over the best baseline, by seed:\n")
            against_the_best(whole, names[1:])
            print("Over the seeds, mean and standard deviation:\n")
            spread(whole, names[1:])
        table = {name: whole[name] for name in names}
        seen = sorted({content["samples"] for content in told_of(results, kind).values()})
        print(f"{kind}: {seen[0]} to {seen[-1]} patches; PSNR inside the body [dB]:\n")
        quality(table, "body")
        print("Lesions' SUVmean bias [%]:\n")
        quality(table, "SUVmean", "{:+.1f}")
        print("PSNR inside the lesions [dB]:\n")
        quality(table, "lesions")
    if (folder / "results" / "twice").exists():
        print("without any full dose:\n")
        quality(table_of(folder / "results" / "twice", "without"), "body")


def main() -> None:
    """Measure, or print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "page", "parts"))
    parser.add_argument("folders", type=Path, nargs="+", metavar="DATA FOLDER")
    parser.add_argument("--cohort", choices=("sarcoma", "twice", *PHANTOMS), default="quadra")
    parser.add_argument("--minutes", type=float, default=4.0, help="processor time of one training")
    parser.add_argument("--entries", nargs="+", choices=list(ENTRIES), default=["systems"])
    parser.add_argument("--rows", nargs="+", default=[], help="these rows alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what in ("page", "parts"):
        {"page": page, "parts": parts}[given.what](given.folders[-1])
    else:
        data, folder = given.folders[0], given.folders[-1]
        measure(given.cohort, data, folder, given.minutes, given.entries, given.rows)


if __name__ == "__main__":
    main()
