"""restore_ct beside tables of SUV by HU on ten real pairs and on phantoms, and with one part changed at a time.

    python benchmarks/restore_ct.py DATA FOLDER [--samples 600] [--rows ...] > docs/results/restore_ct.md

DATA holds the ten patients with PET and CT of TCIA's Soft-tissue-Sarcoma as IBSI released them
(`ibsi_validation/nifti`): crops of 5 cm about the tumour.  Five folds: 8 patients train, 2 are tested.  The phantoms
are those of `petscale experiment cascade_table4`, one split.  Networks are trained in this process, on one core.  What
is in FOLDER already is not made again.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from petscale.data.phantom import phantom_plans
from petscale.evaluation.baselines import BY_HEIGHT, BY_HU, BY_ORGAN
from petscale.evaluation.fitting import anatomy_of, common_organs
from petscale.evaluation.from_ct import mean_suv_by_hu
from petscale.experiments import EXPERIMENTS
from petscale.experiments.design import PhantomCohort
from storage.ingest import ingest
from storage.reader import Case, open_cohort
from storage.source import HU
from trainers import loop
from trainers.engine import EngineConfig, plain_engines
from trainers.feed import Feed
from trainers.feed_config import FeedConfig, as_stored
from trainers.habits import Engines
from trainers.metrics.image import psnr
from trainers.recipe import Validated
from trainers.synthesize import InSuv, synthesize
from trainers.systems import RECIPES
from trainers.validation import Patches

ROOT = Path(__file__).parents[1]
FOLDS, HELD_PHANTOMS = 5, 6
CONSTANT, NETWORK, TABLE = "one SUV for all voxels", "restore_ct as it comes", "its table alone"
ROOTLESS = "restore_ct, SUV itself for its root"
Image = NDArray[np.float32]
Change = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # of the system, of the feed, of the loop
ROWS: dict[str, Change] = {
    NETWORK: ({}, {}, {}),
    TABLE: ({"samples": 1, "lr": 1e-12}, {}, {"validate_every": 0}),
    "starts at the table of HU alone": ({"start": "hu"}, {}, {}),
    "starts at no uptake": ({"start": "zero"}, {}, {}),
    ROOTLESS: ({"suv_curve": "linear"}, {}, {}),
    "no tilts and scales": ({}, {"tilt_deg": 0.0, "scaling": 0.0}, {}),
    "mirrored left and right too": ({}, {"augment": "left_right"}, {}),
    "trained to the end, no validation": ({}, {}, {"validate_every": 0}),
}


def real_pairs(data: Path, folder: Path) -> list[Case]:
    """Ingest the data set, and return the patients that have a CT."""
    words = ["ingest", data / "ibsi_validation/nifti", folder / "real", "--pet", "PET_image.nii.gz"]
    words += ["--ct", "CT_image.nii.gz", "--mask", "PET_mask.nii.gz", "--names", "folder"]
    subprocess.run([sys.executable, "-m", "petscale", *map(str, words)], check=True, stdout=sys.stderr)
    cohort = open_cohort(folder / "real")
    return [case for name in cohort.cases if "ct" in (case := cohort.case(name)).images]


def phantoms(folder: Path) -> list[Case]:
    """Make the phantoms of the experiments from CT."""
    made = EXPERIMENTS["cascade_table4"]("small").cohort
    assert isinstance(made, PhantomCohort)
    ingest(folder / "phantoms", phantom_plans(made.patients, made.body, made.scan, []), strict=True)
    cohort = open_cohort(folder / "phantoms")
    return [cohort.case(name) for name in cohort.cases]


def whole(case: Case, image: str) -> Image:
    """Read all voxels of an image."""
    return case.image(image).read(0, case.image(image).grid.shape[0])


def scores(case: Case, image: Image) -> tuple[float, float]:
    """PSNR [dB] and MAE [SUV] inside the body."""
    full, inside = whole(case, "full"), whole(case, "body") > 0.5
    clipped = np.maximum(image, 0)
    return (
        psnr(full, clipped, data_range=float(full[inside].max()), mask=inside),
        float(np.abs(full - clipped)[inside].mean()),
    )


def without_network(train: Sequence[Case], test: Sequence[Case]) -> dict[str, dict[str, tuple[float, float]]]:
    """Score what needs no network: row -> case -> scores."""
    values = [whole(case, "full")[whole(case, "body") > 0.5] for case in train]
    constant = float(np.concatenate(values).mean())
    organs = common_organs([*train, *test])
    pairs = ((case.image("ct"), case.image("full"), anatomy_of(case)) for case in train)
    table = mean_suv_by_hu(pairs, organs=organs)
    found: dict[str, dict[str, tuple[float, float]]] = {CONSTANT: {}}
    for case in test:
        shape = case.image("full").grid.shape
        found[CONSTANT][case.name] = scores(case, np.full(shape, constant, np.float32))
        for name, image in table.beside(case.image("ct"), anatomy_of(case)).items():
            found.setdefault(name, {})[case.name] = scores(case, image.read(0, shape[0]))
    return found


def trained(
    system: str,
    train: Sequence[Case],
    test: Sequence[Case],
    folder: Path,
    fields: Mapping[str, Any],
    feed: FeedConfig,
    engine: EngineConfig,
    led: loop.LoopConfig,
    seed: int,
) -> dict[str, Any]:
    """Train one network and score it; returns case -> scores, and the processor time in s of the training."""
    spec = RECIPES[system]
    config = spec.Config(**fields)
    cohort = open_cohort(train[0].folder.parents[1])
    engines = Engines(plain_engines(engine), engine)
    patches = config.patches_per_case * feed.cases_per_step
    torch.manual_seed(seed)
    recipe = spec.build(config, make_engine=engines.make, patches_per_step=patches)
    names = [case.name for case in train]
    kept = names[:: max(len(names) // 2, 1)][:2] if led.validate_every or isinstance(recipe, Validated) else []
    learnt = [name for name in names if name not in kept]

    def fed(cases: list[str], used: FeedConfig, needs: Callable[[int], Any]) -> Feed:
        return Feed(cohort, {"paired": cases}, used, needs, rank=0, world=1, device=torch.device("cpu"))

    validation = None
    if isinstance(recipe, Validated):
        spec_of_batch = recipe.validation_batch
        validation = fed(kept, as_stored(feed), lambda step: spec_of_batch)
    gains = None
    if led.validate_every:
        gains = Patches(cohort, kept, feed, led.validation_patches, rank=0, world=1, device=torch.device("cpu"))
    begin = time.process_time()
    best = loop.fit(
        recipe,
        fed(learnt, replace(feed, seed=seed), recipe.batch_spec),
        replace(led, save_every=1_000_000, picture_every=0, seed=seed),
        folder=folder,
        meta={},
        report=lambda record: None,
        picture=lambda step, synthesizer: None,
        patches_per_step=patches,
        engines=engines,
        validation=validation,
        gains=gains,
    )
    seconds = time.process_time() - begin
    alone = spec.weights_to_synthesizer(config, best.weights or recipe.weights())
    in_suv = InSuv(alone, feed.suv_scale, HU, feed.beyond)
    found = {}
    for case in test:
        slabs: dict[int, Image] = {}
        synthesize(in_suv, case, "ct", slabs.__setitem__, device=torch.device("cpu"))
        found[case.name] = scores(case, np.concatenate([slabs[z] for z in sorted(slabs)]))
    return {"scores": found, "seconds": seconds, "step": best.step, "steps": recipe.num_steps}


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """Return what a file holds, or make it and write it."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make()))
    return json.loads(file.read_text())


def merged(parts: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Put folds together: row -> case -> scores."""
    return {row: {name: value for part in parts for name, value in part[row].items()} for row in parts[0]}


def print_table(rows: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float]) -> None:
    """Print one row per way to a PET, beside the table of HU."""
    reference = rows[BY_HU]
    print(f"| | PSNR body [dB] | against {BY_HU}, mean and (median) [dB] | ahead in | MAE body [SUV] | processor s |")
    print("|---|---|---|---|---|---|")
    for name, found in rows.items():
        cases = sorted(found)
        db, mae = (np.array([found[case][i] for case in cases]) for i in (0, 1))
        gain = db - np.array([reference[case][0] for case in cases])
        beside = "" if name == BY_HU else f"{gain.mean():+.2f} ({np.median(gain):+.2f})"
        ahead = "" if name == BY_HU else f"{int((gain > 0.005).sum())} of {len(cases)}"
        spent = f"{seconds[name]:.0f}" if name in seconds else ""
        print(f"| {name} | {db.mean():.2f} | {beside} | {ahead} | {mae.mean():.3f} | {spent} |")
    print(flush=True)


def on_real(cases: Sequence[Case], folder: Path, names: Sequence[str], samples: int, seed: int) -> None:
    """Print the table of the ten real pairs."""
    spec: Any = RECIPES["restore_ct"]
    splits = [([c for i, c in enumerate(cases) if i % FOLDS != f], list(cases[f::FOLDS])) for f in range(FOLDS)]
    rows = merged(
        [
            kept(folder / f"scores/tables-{f}.json", lambda s=split: without_network(*s))  # type: ignore[misc]
            for f, split in enumerate(splits)
        ]
    )
    seconds = {}
    for name in names:
        fields, fed, led = ROWS[name]
        folds = []
        for f, (train, test) in enumerate(splits):
            stem = f"{name.replace(' ', '-').replace(',', '')}-{samples}-{seed}-{f}"

            def train_one(train: Sequence[Case] = train, test: Sequence[Case] = test, stem: str = stem) -> Any:
                return trained(
                    "restore_ct",
                    train,
                    test,
                    folder / "checkpoints" / stem,
                    {"samples": samples, **fields},  # noqa: B023
                    replace(spec.FEED, **fed),  # noqa: B023
                    spec.ENGINE,
                    replace(spec.LOOP, **led),  # noqa: B023
                    seed,
                )

            folds.append(kept(folder / f"scores/{stem}.json", train_one))
            print(name, f, folds[-1], file=sys.stderr, flush=True)
        rows[name] = merged([{name: fold["scores"]} for fold in folds])[name]
        seconds[name] = float(np.mean([fold["seconds"] for fold in folds]))
    print_table(rows, seconds)


def on_phantoms(cases: Sequence[Case], folder: Path, samples: int, published: int, seed: int) -> None:
    """Print the table of the phantoms: one split, the published systems at about the same processor time."""
    train, test = cases[HELD_PHANTOMS:], cases[:HELD_PHANTOMS]
    rows = kept(folder / "scores/phantoms-tables.json", lambda: without_network(train, test))
    rows = {name: rows[name] for name in (CONSTANT, BY_HU, BY_HEIGHT, BY_ORGAN) if name in rows}
    spec: Any = RECIPES["restore_ct"]
    rest = {"patches_per_case": 1, "epoch_samples": max(published // 4, 4), "validate_batches": 4}
    small = {"critic_width": 12, "critic_strides": (2, 2, 1), **rest}
    stages = {"mode": "2.5d", "patch": (3, 80, 112), "downs": 4, "width": 12, "epochs": 4, **small}
    blend = {"patch": (1, 96, 128), "fcn_widths": (16, 32, 64, 64), "fcn_fc": 64, "fcn_fc6_kernel": 3}
    blend |= {"fcn_norm": "batch", "fcn_lr": 1e-3, "generator_width": 12, "generator_downs": 5, "blend_levels": 2}
    blend |= {"suv_weight_floor": 0.1, "fcn_samples": published // 2, "cgan_samples": published // 2, **small}
    plain = FeedConfig(source=("ct",), cases_per_step=4)
    runs: dict[str, tuple[str, dict[str, Any], FeedConfig, EngineConfig, loop.LoopConfig]] = {
        NETWORK: ("restore_ct", {"samples": samples}, spec.FEED, spec.ENGINE, spec.LOOP),
        ROOTLESS: ("restore_ct", {"samples": samples, "suv_curve": "linear"}, spec.FEED, spec.ENGINE, spec.LOOP),
        "cascade of one stage": ("cascade", stages, plain, EngineConfig(), loop.LoopConfig()),
        "virtual PET, blended": ("virtual_pet", blend, plain, EngineConfig(), loop.LoopConfig()),
    }
    seconds = {}
    for name, (system, fields, fed, engine, led) in runs.items():
        number = samples if system == "restore_ct" else published
        stem = f"phantoms-{name.replace(' ', '-').replace(',', '')}-{number}-{seed}"

        def train_one(
            system: str = system,
            fields: Any = fields,
            fed: Any = fed,
            engine: Any = engine,
            led: Any = led,
            stem: str = stem,
        ) -> Any:
            return trained(system, train, test, folder / "checkpoints" / stem, fields, fed, engine, led, seed)

        found = kept(folder / f"scores/{stem}.json", train_one)
        print(name, found, file=sys.stderr, flush=True)
        rows[name], seconds[name] = found["scores"], found["seconds"]
    print_table(rows, seconds)


def main() -> None:
    """Make the cohorts, train, score, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=600, help="patches of restore_ct's network")
    parser.add_argument("--published", type=int, default=600, help="windows of the published systems on phantoms")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="rows of the table of real pairs")
    parser.add_argument("--skip", choices=("real", "phantoms"), help="leave one of the two tables out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    print("# restore_ct: a PET from a CT, beside tables\n")
    print(
        f"`python benchmarks/restore_ct.py DATA FOLDER --samples {given.samples} --published {given.published} --seed "
        f"{given.seed}`, commit {commit}, {datetime.datetime.now(datetime.UTC).date()}, one core of an "
        f"{platform.machine()} virtual machine, no GPU. Means over the test cases.\n"
    )
    if given.skip != "real":
        print("## Ten real pairs\n\nFive folds: 8 patients train, 2 are tested.\n")
        on_real(real_pairs(given.data, given.folder), given.folder, given.rows, given.samples, given.seed)
    if given.skip != "phantoms":
        print(f"## Phantoms\n\n24 phantoms, {HELD_PHANTOMS} of them tested.\n")
        on_phantoms(phantoms(given.folder), given.folder, given.samples, given.published, given.seed)


if __name__ == "__main__":
    main()
