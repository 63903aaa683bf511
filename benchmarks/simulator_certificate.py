"""The simulator's certificate: is its noise that of a scanner's patients?

    python benchmarks/simulator_certificate.py search --to trials.json         # half an hour and more of one core
    python benchmarks/simulator_certificate.py measure --to measured.json      # half an hour
    python benchmarks/simulator_certificate.py page --trials trials.json --measured measured.json \
        > docs/results/simulator.md

The first searches for presets, the second measures those of storage/lowdose.py.  The measure is the noise figure of
1371 published scans at six doses (trainers/metrics/noise.py).  A whole adult of 1.65 mm voxels takes minutes per dose,
so six slabs of eight slices stand for it, spread from thigh to head, each with the halo that the figure's Gaussian
needs; their sums are added, as the figure adds those of a whole scan.

A thinned scan at a dose of 1/DRF is a scan with 1/DRF of the counts, so one reconstruction per number of counts serves
every dose and every preset that differs in counts alone; and filters are applied to images that are reconstructed once.
"""

import argparse
import datetime
import itertools
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from storage.lowdose import SCANNERS, SIGMA_PER_FWHM, LowDoseConfig, LowDoseSource
from storage.nema import nema_phantom
from storage.phantom import ADULT, LIVER, phantom
from storage.source import SUV, ArraySource, Grid
from trainers.metrics.noise import (
    PUBLISHED,
    coefficient_of_variation,
    figure_of,
    figure_sums,
    noise_figure,
    noise_of_pair,
    power_spectrum,
    radial_spectrum,
)
from trainers.metrics.recovery import recoveries

ROOT = Path(__file__).parents[1]
SPACING = ADULT.spacing_mm[0]
HEIGHTS = (0.08, 0.25, 0.42, 0.55, 0.70, 0.90)  # of the slabs, from mid-thigh (0) to vertex (1)
THICK, HALO, FILTER_REACH = 8, 8, 4  # slices
DOSES = (1.0, 4.0, 10.0, 20.0, 50.0, 100.0)

# what the search goes through: detail of the phantom, PSF in mm, iterations and subsets; then counts and filters
SETTINGS = ((0.2, 3.0, 5, 12), (0.0, 3.0, 5, 12), (0.15, 4.0, 3, 12), (0.0, 4.0, 3, 12))
MILLION_PROMPTS = (450.0, 45.0, 150.0, 15.0, 5.0, 1500.0)
FILTERS_MM = (0.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
TRIED = ("seed", "detail", "psf_mm", "iterations", "subsets", "million_prompts")
SEARCHED, SHOWN = (1,), (1, 2)  # seeds of the phantoms that are searched on, and that the page measures


def starts():
    return [round(height * ADULT.shape[0]) for height in HEIGHTS]


INTRODUCTION = """
Is the noise of a simulated scan that of a scanner's patients? The measure is public: KUL computed a noise figure of
994 scans of a uEXPLORER and 377 of a Biograph Vision Quadra at six doses each (UDPET challenge;
`KUL-recon-lab/2025_ud_pet_kul:data_stats/data_stats.csv`). The figure is the sum of |v - s| over all voxels over the
number of voxels with s > 0.1; v = log1p(SUV) in voxels of 1.65 mm, s = v after a Gaussian of 2 voxels standard
deviation. How to use the presets, and what they cannot give: [the simulation](../simulation.md#scanners).

## The noise figure

An adult phantom from mid-thigh to vertex, 606 x 192 x 272 voxels of 1.65 mm. Six slabs of 8 slices stand for all of
it, at 8, 25, 42, 55, 70 and 90 % of the way up; their sums are added. No scan is of the whole."""

PRESETS = """
## The presets

They are fitted to the figures above, not taken from the scanners. Without time of flight, more counts stand for what
it gains.
"""

SEARCH = """
## What was tried

{count} reconstructions at full dose with 1.3 to 1500 million prompts (phantom {seeds}), each with nine filters. A
dose of 1/DRF is read off at 1/DRF of the counts. Depth is 1 where all six figures are the medians, 0 where one is at
the edge of its band, negative outside. Per reconstruction the best filter and counts, the deepest first. Detail is
that of the phantom; without it full dose has too small a figure where 1/20 has too large a one. Counts of a preset
are a little above the deepest here, because other phantoms have larger figures than this one."""

NOISE = """
## Coefficient of variation

Noise of a voxel over the mean, from two independent scans: in the middle of a water cylinder (radius 114.5 mm, SUV
1), and in the phantom's liver.
"""

TEXTURE = """
## Noise power spectrum

In transaxial slices of the cylinder at 1/20, averaged over directions.
"""

RECOVERY = """
## Recovery of the NEMA spheres

Image-quality phantom at full dose; definitions in `trainers/metrics/recovery.py`. On the scanner, with time of flight
and resolution model, a Quadra's contrast ranged from 69.6 to 86.9 % at 4:1 and from 77.7 to 92.6 % at 8:1 (Prenosil
et al., J. Nucl. Med. 63 (2022) 476, doi 10.2967/jnumed.121.261972). Simulated, the largest spheres reach that and the
smallest shows less.
"""

LIMITS = """
## What this does not show

- One figure per dose is matched, and it is a sum over the body. Where in the body and at which frequencies the noise
  lies is not certified.
- The phantom's fine texture was chosen so that the figure at full dose fits; a patient's detail is not a texture of
  organs alone. How much of a patient's figure is noise is not known.
- Between the ends the simulated figure is more like the square root of DRF: both presets lie below the median at full
  dose and above it at 1/20.
- Slices in two dimensions: noise is correlated along the axis only by the post filter and the blur of the truth, less
  than across.
- The bands are of the challenge's scans, and of their protocols and reconstructions."""


# ---- search ---------------------------------------------------------------------------------------------------------


def filtered_figure(slabs, fwhm_mm):
    """The noise figure of unfiltered slabs after the post filter, as LowDoseSource applies it."""
    sigma = fwhm_mm * SIGMA_PER_FWHM / SPACING
    total, counted = 0.0, 0
    for slab in slabs:
        for axis, mode in ((2, "constant"), (1, "constant"), (0, "nearest")):
            slab = ndimage.gaussian_filter1d(slab, sigma, axis=axis, mode=mode, truncate=3.0) if sigma else slab
        image = ArraySource(slab, Grid(slab.shape, np.diag([-SPACING, -SPACING, SPACING, 1.0])), SUV)
        difference, voxels = figure_sums(image, HALO + FILTER_REACH, HALO + FILTER_REACH + THICK)
        total, counted = total + difference, counted + voxels
    return figure_of(total, counted)


def search(to):
    """Figures by (psf, updates, filter) against counts, saved after every reconstruction; what is there is kept."""
    trials = json.loads(to.read_text()) if to.is_file() else []
    done = {tuple(t[name] for name in TRIED) for t in trials}
    reach = HALO + FILTER_REACH
    for seed, setting, prompts in itertools.product(SEARCHED, SETTINGS, MILLION_PROMPTS):
        tried = dict(zip(TRIED, (seed, *setting, prompts), strict=True))
        _, detail, psf, iterations, subsets, _ = tried.values()
        if tuple(tried.values()) in done:
            continue
        start = time.perf_counter()
        body = phantom(replace(ADULT, seed=seed, detail=detail))
        config = LowDoseConfig(
            drf=1.0, seed=seed, million_prompts_per_bed=prompts, iterations=iterations, subsets=subsets,
            psf_fwhm_mm=psf, post_filter_fwhm_mm=0.0,
        )  # fmt: skip
        source = LowDoseSource(body.activity, body.ct, config)
        slabs = [source.read(z - reach, z + THICK + reach) for z in starts()]
        figures = {str(fwhm): filtered_figure(slabs, fwhm) for fwhm in FILTERS_MM}
        trials.append(tried | {"figures": figures, "seconds": round(time.perf_counter() - start, 1)})
        to.write_text(json.dumps(trials, indent=0))
        print(trials[-1], file=sys.stderr, flush=True)


def curves(trials):
    """(detail, psf, iterations, subsets, filter) -> logs of counts, and figures there."""
    found = {}
    for trial in trials:
        for fwhm, figure in trial["figures"].items():
            key = (*(trial[name] for name in TRIED[1:5]), float(fwhm))
            found.setdefault(key, {}).setdefault(np.log(trial["million_prompts"]), []).append(figure)
    return {
        key: (np.array(sorted(points)), np.array([np.mean(points[x]) for x in sorted(points)]))
        for key, points in found.items()
    }


def depth_in_bands(figures, scanner):
    """How deep the figures lie in the bands: the least over doses, 1 at the median, 0 at an edge, below 0 outside."""
    bands = [PUBLISHED[scanner][dose] for dose in DOSES]
    return min(
        (figure - band.low) / (band.median - band.low)
        if figure < band.median
        else (band.high - figure) / (band.high - band.median)
        for figure, band in zip(figures, bands, strict=True)
    )


def best(trials, scanner):
    """Settings in order of how deep in the bands they come, with the counts that do it."""
    found = []
    for key, (at, figures) in curves(trials).items():
        if len(at) < 4:
            continue
        # The log of the figure is smooth in the log of counts; nothing is extrapolated.
        for prompts in np.geomspace(100, 1500, 80):
            wanted = np.log(prompts / np.array(DOSES))
            if wanted.min() < at.min() - 0.05:
                continue
            along = np.exp(np.interp(wanted, at, np.log(figures)))
            found.append((depth_in_bands(along, scanner), *key, prompts, along))
    best_of = {}
    for one in sorted(found, key=lambda one: -one[0]):
        best_of.setdefault(one[1:6], one)
    return list(best_of.values())


# ---- page -----------------------------------------------------------------------------------------------------------


def scan_of(scanner, **changes):
    return replace(SCANNERS.get(scanner, LowDoseConfig()), **changes)


def figures_of(scanner, seed):
    """The figure at every dose, by the simulator as it is used."""
    body = phantom(replace(ADULT, seed=seed))
    found = []
    for dose in DOSES:
        source = LowDoseSource(body.activity, body.ct, scan_of(scanner, drf=dose, seed=seed))
        sums = [figure_sums(source, z, z + THICK) for z in starts()]
        found.append(figure_of(*(sum(part) for part in zip(*sums, strict=True))))
        print(scanner, seed, dose, round(found[-1], 4), file=sys.stderr, flush=True)
    return found


def slabs_and_whole(seed):
    """The figure of the phantom itself, without a scan, from the slabs and from all slices: are they alike?"""
    truth = phantom(replace(ADULT, seed=seed)).activity
    sums = [figure_sums(truth, z, z + THICK) for z in starts()]
    return figure_of(*(sum(part) for part in zip(*sums, strict=True))), noise_figure(truth)


def cylinder(slices=32, pixels=152, radius_mm=114.5):
    """The reference patient: uniform water of SUV 1."""
    at = (np.arange(pixels * 4) + 0.5) / 4 - pixels / 2
    inside = (at[:, None] ** 2 + at**2) * SPACING**2 <= radius_mm**2
    plane = inside.reshape(pixels, 4, pixels, 4).mean(axis=(1, 3), dtype=np.float32)
    grid = Grid((slices, pixels, pixels), np.diag([-SPACING, -SPACING, SPACING, 1.0]))
    return ArraySource(np.repeat(plane[None], slices, axis=0), grid, SUV)


def pair(truth, ct, config, z0, z1):
    """Two independent scans of one object."""
    return [LowDoseSource(truth, ct, replace(config, realisation=number)).read(z0, z1) for number in (0, 1)]


def noise_of(scanner):
    """CoV of the cylinder and of the liver by dose, and what the cylinder's noise looks like at 1/20."""
    water, body = cylinder(), phantom(replace(ADULT, seed=1))
    z = round(0.46 * ADULT.shape[0])
    liver = body.labels.read(z, z + 16) == LIVER
    middle = (slice(None), slice(40, 112), slice(40, 112))
    found = {"cov": {}}
    for dose in (1.0, 4.0, 20.0, 100.0):
        config = scan_of(scanner, drf=dose)
        first, second = (image[middle] for image in pair(water, None, config, 0, 32))
        in_water = coefficient_of_variation(first, second, np.ones(first.shape, dtype=bool))
        in_liver = coefficient_of_variation(*pair(body.activity, body.ct, config, z, z + 16), liver)
        found["cov"][str(dose)] = in_water, in_liver
        if dose == 20:
            noise = noise_of_pair(first, second)
            spectrum = radial_spectrum(power_spectrum(noise, (SPACING,) * 2), (SPACING,) * 2)
            found["spectrum"] = [part.tolist() for part in spectrum]
            for name, along in (("axial", 0), ("across", 2)):
                lines = np.moveaxis(noise, along, 0)
                found[name] = [float(np.mean(lines[k:] * lines[:-k]) / noise.var()) for k in (1, 2, 3, 4)]
    return found


def nema(scanner, contrast):
    """Recovery of the six spheres at full dose, and the largest difference from pynemaiqpet where that is installed."""
    made = nema_phantom(SPACING, contrast=contrast)
    image = LowDoseSource(made.activity, made.ct, scan_of(scanner, drf=1.0))
    voxels = image.read(0, image.grid.shape[0])
    stored = ArraySource(voxels, image.grid, SUV)
    found = recoveries(stored, made.spheres, background_suv=made.background_suv, background_mm=made.background_mm)
    try:
        from pynemaiqpet.nema_wb import fitspheresubvolume
    except ImportError:
        return {"spheres": [asdict(one) for one in found], "difference": None}
    differences = []
    for one, sphere in zip(found, made.spheres, strict=True):
        at, reach = [round(mm / SPACING) for mm in sphere.centre_mm], int((sphere.diameter_mm / 2 + 9) / SPACING) + 1
        cut = voxels[tuple(slice(k - reach, k + reach + 1) for k in at)].astype(np.float64)
        theirs = fitspheresubvolume(
            cut.T, np.full(3, SPACING), Rfix=sphere.diameter_mm / 2, dfix=0.0, Sfix=sphere.suv, Bfix=1.0
        )
        differences.append(abs(one.mean_a50 - theirs.mean_a50 / sphere.suv))
        differences.append(abs(one.maximum - theirs.max / sphere.suv))
    return {"spheres": [asdict(one) for one in found], "difference": float(max(differences))}


def in_band(scanner, figures):
    return sum(PUBLISHED[scanner][dose].holds(figure) for dose, figure in zip(DOSES, figures, strict=True))


def table(head, rows):
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)])


def dose_name(dose):
    return "full" if dose == 1 else f"1/{dose:.0f}"


def measurements():
    """What the page needs, by name, each as a function that takes minutes; what is likeliest to fail comes first."""
    for scanner, contrast in itertools.product(SCANNERS, (4.0, 8.0)):
        yield f"nema {scanner} {contrast:.0f}", lambda scanner=scanner, contrast=contrast: nema(scanner, contrast)
    for scanner in SCANNERS:
        yield f"noise {scanner}", lambda scanner=scanner: noise_of(scanner)
    for seed in SHOWN:
        yield f"slabs {seed}", lambda seed=seed: slabs_and_whole(seed)
    for seed, scanner in itertools.product(SHOWN, SCANNERS):
        yield f"figures {scanner} {seed}", lambda scanner=scanner, seed=seed: figures_of(scanner, seed)


def measure(to):
    """Measure the presets; saved after every part, and what is there is kept."""
    found = json.loads(to.read_text()) if to.is_file() else {"minutes": 0.0}
    head = ["git", "rev-parse", "--short", "HEAD"]
    found.setdefault(
        "commit", subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    )
    found["date"] = str(datetime.datetime.now(datetime.UTC).date())
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    found["processor"] = next((line.split(":")[1].strip() for line in cpus if "model name" in line), platform.machine())
    for name, part in measurements():
        if name not in found:
            start = time.perf_counter()
            found[name] = part()
            found["minutes"] += (time.perf_counter() - start) / 60
            to.write_text(json.dumps(found, indent=0))
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)


def page(trials, found):
    """Print the page of what was measured and tried."""
    measured = {scanner: [found[f"figures {scanner} {seed}"] for seed in SHOWN] for scanner in SCANNERS}
    noise = {scanner: found[f"noise {scanner}"] for scanner in SCANNERS}
    spheres = {(scanner, contrast): found[f"nema {scanner} {contrast}"] for scanner in SCANNERS for contrast in (4, 8)}
    print("# The simulator's certificate\n")
    print(
        "`benchmarks/simulator_certificate.py`, stages `measure` and `page`; "
        f"commit {found['commit']}, {found['date']}, "
        f"one core of an {found['processor']} (virtual machine), {found['minutes']:.0f} minutes, while others worked "
        "on the machine. No speed is measured here."
    )
    print(INTRODUCTION)
    told = "; ".join(
        "phantom {}: {:.4f} from the slabs, {:.4f} from all slices".format(seed, *found[f"slabs {seed}"])
        for seed in SHOWN
    )
    print(f"Of the phantom itself, before any scan, the figure is, {told}.")
    for scanner, figures in measured.items():
        mean = np.mean(figures, axis=0)
        held, each = in_band(scanner, mean), [in_band(scanner, one) for one in figures]
        print(f"\n### {scanner}: {held} of 6 doses within the band of its patients\n")
        rows = []
        for number, dose in enumerate(DOSES):
            band, values = PUBLISHED[scanner][dose], [one[number] for one in figures]
            outside = (
                "" if band.holds(mean[number]) else f"by {max(band.low - mean[number], mean[number] - band.high):.4f}"
            )
            rows.append([
                dose_name(dose), f"{band.median:.4f} ({band.low:.3f} to {band.high:.3f})",
                f"{mean[number]:.4f} ({min(values):.4f} to {max(values):.4f})", outside or "inside",
            ])  # fmt: skip
        print(
            table(
                ["dose", "patients: median (5 to 95 %)", f"simulated: mean of {len(SHOWN)} phantoms (range)", ""], rows
            )
        )
        told = ", ".join(f"{count} for phantom {seed}" for count, seed in zip(each, SHOWN, strict=True))
        print(f"\nDoses inside, of 6: {told}. The preset was searched for on phantom {SEARCHED[0]} alone.")
    print(PRESETS)
    names = ("million_prompts_per_bed", "iterations", "subsets", "psf_fwhm_mm", "post_filter_fwhm_mm")
    everyone = {"generic": LowDoseConfig(), **SCANNERS}
    print(table(["", *everyone], [[f"`{name}`", *(f"{getattr(one, name):g}" for one in everyone.values())]
                                  for name in names]))  # fmt: skip
    if trials:
        print(SEARCH.format(count=len(trials), seeds=", ".join(map(str, SEARCHED))))
        for scanner in PUBLISHED:
            print(f"\n{scanner}:\n")
            ranked = best(trials, scanner)
            kept = {}
            for one in ranked:
                kept.setdefault(one[1:5], one)
            print(table(
                ["detail", "PSF [mm]", "iterations x subsets", "filter [mm]", "prompts [M]", "depth",
                 "figures, full to 1/100"],
                [[f"{detail:g}", f"{psf:g}", f"{n} x {m}", f"{fwhm:g}", f"{prompts:.0f}", f"{depth:.2f}",
                  ", ".join(f"{value:.4f}" for value in along)]
                 for depth, detail, psf, n, m, fwhm, prompts, along in kept.values()],
            ))  # fmt: skip
    print(NOISE)
    rows = [
        [dose_name(float(dose)), *(f"{noise[scanner]['cov'][dose][of]:.1f} %" for scanner in SCANNERS for of in (0, 1))]
        for dose in noise["quadra"]["cov"]
    ]
    print(table(["dose", *(f"{scanner}, {what}" for scanner in SCANNERS for what in ("water", "liver"))], rows))
    print(TEXTURE)
    rows = []
    for low, high in itertools.pairwise(np.arange(0.0, 0.31, 0.05)):
        row = [f"{low:.2f} to {high:.2f}"]
        for scanner in SCANNERS:
            frequency, power = np.array(noise[scanner]["spectrum"])
            row.append(f"{power[(frequency >= low) & (frequency < high)].mean():.3f}")
        rows.append(row)
    print(table(["frequency [1/mm]", *(f"{scanner} [SUV^2 mm^2]" for scanner in SCANNERS)], rows))
    print("\nCorrelation of a voxel's noise with that of its neighbours, the first to the fourth:\n")
    rows = [
        [f"{scanner}, {name}", *(f"{value:.2f}" for value in noise[scanner][key])]
        for scanner, (name, key) in itertools.product(SCANNERS, (("across (x)", "across"), ("along (z)", "axial")))
    ]
    print(table(["", *(f"{k * SPACING:.2f} mm" for k in (1, 2, 3, 4))], rows))
    print(RECOVERY)
    rows = [
        [f"{scanner}, {contrast}:1, {what}", *(f"{100 * one[what]:{form}} %" for one in reversed(made["spheres"]))]
        for (scanner, contrast), made in spheres.items()
        for what, form in (("contrast", ".0f"), ("mean_a50", ".0f"), ("maximum", ".0f"), ("variability", ".1f"))
    ]
    print(table(["", *(f"{one['diameter_mm']:.0f} mm" for one in reversed(spheres["quadra", 4]["spheres"]))], rows))
    differences = [made["difference"] for made in spheres.values()]
    if None not in differences:
        print(
            "\nLargest difference of `mean_a50` and `maximum` from those of pynemaiqpet 0.5.4, which finds the "
            f"spheres' centres itself in the same sub-volumes: {max(differences):.3f}."
        )
    print(LIMITS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    for stage in ("search", "measure"):
        stages.add_parser(stage).add_argument("--to", type=Path, required=True, help="JSON file; continued if there")
    stages.add_parser("rank").add_argument("--trials", type=Path, required=True, help="what search wrote")
    printed = stages.add_parser("page")
    printed.add_argument("--trials", type=Path, required=True, help="what search wrote")
    printed.add_argument("--measured", type=Path, required=True, help="what measure wrote")
    arguments = parser.parse_args()
    if arguments.stage == "search":
        search(arguments.to)
    if arguments.stage == "measure":
        measure(arguments.to)
    if arguments.stage == "page":
        page(*(json.loads(file.read_text()) for file in (arguments.trials, arguments.measured)))
    if arguments.stage == "rank":
        for scanner in PUBLISHED:
            for one in best(json.loads(arguments.trials.read_text()), scanner)[:12]:
                print(scanner, f"{one[0]:.2f}", one[1:6], f"{one[6]:.0f} M", np.round(one[7], 4))


if __name__ == "__main__":
    main()
