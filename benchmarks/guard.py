"""How well ``petscale.likeness`` tells scans that a run was not trained for from those that it was: AUROC.

    python benchmarks/guard.py DATA FOLDER [--jobs 2]

DATA holds the 39 crops of TCIA's Soft-tissue-Sarcoma and their CTs as IBSI released them (`ibsi_validation/nifti`) and
the whole-body series of STS_001 (`sts_001_wholebody_pet/image`).  What was measured in a scan stays in FOLDER, so that
the same command continues; docs/results/guard.md has its tables.  A scan's score is the largest of its distances, 1 at
a bound; its voxel edges count too, as ``petscale.plausibility`` compares them.
"""

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy import stats

from petscale.likeness import Measured, distances, measure, summarised
from petscale.plausibility import VOXEL_WARNING
from storage import dicom, nifti, phantom
from storage.geometry import block_means
from storage.lowdose import LowDoseConfig, LowDoseSource
from storage.source import ArraySource, Grid, ImageSource

ROOT = Path(__file__).parents[1]
SHAPE, SPACING_MM = (160, 80, 96), (6.25, 5.0, 5.0)  # as the phantoms of `petscale demo` when these were measured
PHANTOM = phantom.PhantomConfig(shape=SHAPE, spacing_mm=SPACING_MM)
SCAN = LowDoseConfig(drf=20.0, million_prompts_per_bed=100.0)
REFERENCE, UNLIKE = 28, 8  # phantoms
PATIENTS = (4, 8, 16)  # trained on
DRAWS = 50  # of who is trained on
FDG = "reference"

# Factors on the phantom's uptake, by organ: round values after what these tracers show, no measurement.
TRACERS: Mapping[str, Mapping[str, float]] = {
    "fluoride": {"spine": 5.0, "brain": 0.05, "heart": 0.3, "liver": 0.3, "spleen": 0.3},
    "PSMA": {"kidneys": 5.0, "bladder": 2.0, "liver": 2.0, "spleen": 3.0, "brain": 0.05, "heart": 0.5},
}


# Scans


def changed_uptake(person: phantom.Phantom, factors: Mapping[str, float]) -> ImageSource:
    """A phantom's activity with some organs' uptake multiplied."""
    activity, labels = (one.read(0, one.grid.shape[0]) for one in (person.activity, person.labels))
    for value, name in person.label_names.items():
        activity = np.where(labels == value, np.float32(factors.get(name, 1.0)) * activity, activity)
    return ArraySource(activity.astype(np.float32), person.activity.grid, person.activity.units)


def phantom_scan(config: phantom.PhantomConfig, scan: LowDoseConfig, factors: Mapping[str, float]) -> ImageSource:
    person = phantom.phantom(config)
    truth = changed_uptake(person, factors) if factors else person.activity
    return whole(LowDoseSource(truth, person.ct, replace(scan, seed=config.seed)))


def phantom_ct(config: phantom.PhantomConfig) -> ImageSource:
    return whole(phantom.phantom(config).ct)


def whole(source: ImageSource) -> ImageSource:
    return ArraySource(source.read(0, source.grid.shape[0]), source.grid, source.units)


def coarser(source: ImageSource, edges: tuple[int, int, int]) -> ImageSource:
    """A volume on voxels that are longer by whole factors."""
    voxels = block_means(source.read(0, source.grid.shape[0]), edges)
    affine = source.grid.affine @ np.diag([*edges[::-1], 1.0])
    return ArraySource(voxels, Grid((voxels.shape[0], voxels.shape[1], voxels.shape[2]), affine), source.units)


def part(source: ImageSource, first: float, last: float) -> ImageSource:
    """The slices from one share of a volume's length to another."""
    z0, z1 = (round(share * source.grid.shape[0]) for share in (first, last))
    grid = Grid((z1 - z0, *source.grid.shape[1:]), source.grid.affine)
    return ArraySource(source.read(z0, z1), grid, source.units)


def stored(file: Path, units: nifti.Units) -> ImageSource:
    with TemporaryDirectory() as scratch:
        return whole(nifti.open_nifti(file, units=units, workdir=Path(scratch)))


def real_scan(file: Path, drf: float, edges: tuple[int, int, int]) -> ImageSource:
    truth = stored(file, "SUVbw")
    made = whole(LowDoseSource(truth, None, replace(SCAN, drf=drf)))
    return coarser(made, edges) if max(edges) > 1 else made


def real_ct(file: Path) -> ImageSource:
    return stored(file, "HU")


def whole_body(folder: Path, first: float, last: float) -> ImageSource:
    made = whole(LowDoseSource(whole(dicom.open_series(folder, modality="PT")), None, SCAN))
    return part(made, first, last)


def groups_of(data: Path) -> dict[str, list[Callable[[], ImageSource]]]:
    """Every group's scans, each to be made in a process of its own."""
    seeds = range(1000, 1000 + UNLIKE)

    def phantoms(
        numbers: Sequence[int], scan: LowDoseConfig = SCAN, factors: Mapping[str, float] | None = None, **fields: object
    ) -> list[Callable[[], ImageSource]]:
        return [partial(phantom_scan, replace(PHANTOM, seed=seed, **fields), scan, factors or {}) for seed in numbers]  # type: ignore[arg-type]

    found = {f"phantom {FDG}": phantoms(range(REFERENCE))}
    found |= {f"phantom dose DRF {drf:g}": phantoms(seeds, replace(SCAN, drf=drf)) for drf in (4.0, 10.0, 40.0, 100.0)}
    found |= {f"phantom tracer {name}": phantoms(seeds, SCAN, factors) for name, factors in TRACERS.items()}
    for name, extent in {"head and neck": (0.72, 1.0), "trunk": (0.3, 0.7), "pelvis and thighs": (0.0, 0.3)}.items():
        slices = round(SHAPE[0] * (extent[1] - extent[0]))
        found[f"phantom anatomy {name}"] = phantoms(seeds, shape=(slices, *SHAPE[1:]), axial_coverage=extent)
    found["phantom anatomy arms down"] = phantoms(seeds, arms="down", shape=(160, 80, 120))
    wider = tuple(round(1.3 * mm, 3) for mm in SPACING_MM)
    found["phantom voxels 30 % longer"] = phantoms(seeds, shape=(123, 62, 74), spacing_mm=wider)
    crops = sorted((data / "ibsi_validation/nifti").glob("*/PET_image.nii.gz"))
    for drf in (20.0, 4.0, 10.0, 40.0, 100.0):
        name = f"real {FDG}" if drf == SCAN.drf else f"real dose DRF {drf:g}"
        found[name] = [partial(real_scan, file, drf, (1, 1, 1)) for file in crops]
    found["real voxels twice as long in plane"] = [partial(real_scan, file, 20.0, (1, 2, 2)) for file in crops]
    series = data / "sts_001_wholebody_pet/image"
    cuts = [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.0, 0.33), (0.33, 0.66), (0.66, 1.0)]
    found["real anatomy whole body and its parts"] = [partial(whole_body, series, *cut) for cut in cuts]
    found["real tracer, anatomy, scanner: phantoms"] = phantoms(seeds)
    found[f"CT phantom {FDG}"] = [partial(phantom_ct, replace(PHANTOM, seed=seed)) for seed in range(REFERENCE)]
    found["CT phantom trunk"] = [
        partial(phantom_ct, replace(PHANTOM, seed=seed, shape=(64, 80, 96), axial_coverage=(0.3, 0.7)))
        for seed in seeds
    ]
    cts = sorted((data / "ibsi_validation/nifti").glob("*/CT_image.nii.gz"))
    found["CT phantom real crops"] = [partial(real_ct, file) for file in cts]
    return found


# Measuring


def measured(make: Callable[[], ImageSource]) -> dict[str, object]:
    source = make()
    found = measure(source)
    shares = None if found.classes is None else found.classes.tolist()
    return {"numbers": dict(found.numbers), "classes": shares, "spacing_mm": list(source.grid.spacing_mm)}


def all_measured(data: Path, folder: Path, jobs: int) -> dict[str, list[Measured]]:
    folder.mkdir(parents=True, exist_ok=True)
    result = {}
    with ProcessPoolExecutor(jobs) as pool:
        for name, makes in groups_of(data).items():
            file = folder / f"{name.replace(' ', '_')}.json"
            if not file.is_file():
                file.write_text(json.dumps(list(pool.map(measured, makes))))
                print(f"{name}: {len(makes)} scans", file=sys.stderr)
            result[name] = [
                Measured(
                    one["numbers"],
                    None if one["classes"] is None else np.array(one["classes"]),
                    tuple(one["spacing_mm"]),
                )
                for one in json.loads(file.read_text())
            ]
    return result


# Scores


def scores(trained: Sequence[Measured], scans: Sequence[Measured]) -> list[tuple[float, str]]:
    """Every scan's largest distance, and which number has it."""
    known = summarised([trained], len(trained))
    found = []
    for scan in scans:
        each = distances(known, scan)
        beyond = max(
            max(a / mm, mm / b) for mm, a, b in zip(scan.spacing_mm, known.lowest_mm, known.highest_mm, strict=True)
        )
        each["voxels"] = max(0.0, math.log(beyond)) / math.log(1 + VOXEL_WARNING)
        name = max(each, key=lambda one: each[one])
        found.append((each[name], name))
    return found


def auroc(like: Sequence[float], unlike: Sequence[float]) -> float:
    """Share of pairs in which the scan of another kind has the higher score; of ties half."""
    ranks = stats.rankdata([*like, *unlike])[len(like) :]
    return float((ranks.sum() - len(unlike) * (len(unlike) + 1) / 2) / (len(like) * len(unlike)))


@dataclass(frozen=True)
class Row:
    """What draws of the training patients gave, on average.

    Args:
        area: AUROC.
        noted: share of the scans of another kind that get a note; like: of those of the same kind.
        measured: of those of the same kind, by another number than their voxel edges.
        by: which number is farthest off most often.
    """

    area: float
    noted: float
    like: float
    measured: float
    by: str


def compared(reference: Sequence[Measured], unlike: Sequence[Measured], patients: int, paired: bool) -> Row:
    """Train on some reference scans, and compare the others with scans of another kind.

    Args:
        paired: whether both are scans of the same patients, of whom those trained on are left out.
    """
    rng = np.random.default_rng(patients)
    areas, noted, like, seen, by = [], [], [], [], []
    for _ in range(DRAWS):
        order = rng.permutation(len(reference))
        held = order[patients:]
        told = scores([reference[i] for i in order[:patients]], [reference[i] for i in held])
        same = [score for score, _ in told]
        others = [unlike[i] for i in held] if paired else unlike
        other = scores([reference[i] for i in order[:patients]], others)
        areas.append(auroc(same, [score for score, _ in other]))
        noted.append(np.mean([score > 1 for score, _ in other]))
        like.append(np.mean([score > 1 for score in same]))
        seen.append(np.mean([score > 1 and name != "voxels" for score, name in told]))
        by += [name for _, name in other]
    most = max(set(by), key=by.count)
    return Row(*(float(np.mean(one)) for one in (areas, noted, like, seen)), most)


def table(found: Mapping[str, list[Measured]], kind: str, patients: Sequence[int]) -> str:
    reference = found[f"{kind} {FDG}"]
    lines = [f"| | {' | '.join(f'AUROC, {n} patients' for n in patients)} | noted at {patients[-1]} | by |"]
    lines.append("|---|" + "---|" * (len(patients) + 2))
    rows: list[Row] = []
    for name, scans in found.items():
        if not name.startswith(f"{kind} ") or name == f"{kind} {FDG}":
            continue
        paired = name.startswith(("real dose", "real voxels"))
        rows = [compared(reference, scans, n, paired) for n in patients]
        areas = " | ".join(f"**{row.area:.3f}**" if row.area < 0.95 else f"{row.area:.3f}" for row in rows)
        lines.append(f"| {name.removeprefix(kind + ' ')} | {areas} | {rows[-1].noted:.0%} | {rows[-1].by} |")
    like = " | ".join(f"noted {row.like:.1%}, {row.measured:.1%} not by voxels" for row in rows)
    return "\n".join([*lines, f"| of the same kind, not trained on | {like} | | |"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    found = all_measured(given.data, given.folder, given.jobs)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    print(f"commit {commit.stdout.strip()}, {datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}\n")
    for kind, patients in (("phantom", PATIENTS), ("real", PATIENTS), ("CT phantom", PATIENTS)):
        print(f"## {kind}\n\n{table(found, kind, patients)}\n")


if __name__ == "__main__":
    main()
