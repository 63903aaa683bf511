"""Time of `petscale inspect` on a cohort of many cases: the whole process, and the reading alone.

    python benchmarks/inspection.py [--cases 1000] [--runs 5]

The cohort is generated: one phantom patient with CT, labels and three doses, whose metadata files are copied once per
case, with the provenance of a DICOM examination.  There are no voxels; none are read.  The figures are user and system
time of the process, not the time on the clock, which depends on what else runs; the median over the runs, after one
run that is not counted.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from petscale.data.inspection import inspect_cohort
from petscale.data.phantom import phantom_plans
from storage.ingest import ingest
from storage.lowdose import LowDoseConfig
from storage.phantom import PhantomConfig

PROVENANCE = {
    "format": "dicom",
    "modality": "PT",
    "slices": 644,
    "stored_units": "BQML",
    "decay_correction": "START",
    "nuclide": "F-18",
    "half_life_s": 6586.2,
    "tracer": "FDG",
    "scanner": "one of a hundred",
    "reference_rule": "series time",
    "reference_candidates_s": {"series": 0.0, "earliest acquisition": 1.25, "content": 2.5},
    "reference_spread_percent": 0.026,
    "notes": ["fewer_slices_than_header_says"],
}


def generate(folder: Path, cases: int) -> None:
    """Make a cohort of metadata alone."""
    body = PhantomConfig(shape=(32, 24, 24), spacing_mm=(30.0, 15.0, 15.0))
    ingest(folder, phantom_plans(1, body, LowDoseConfig(iterations=1), [4.0, 20.0]), strict=True)
    template = folder / "cases" / "phantom-000"
    for path in template.glob("*/zarr.json"):
        content = json.loads(path.read_bytes())
        if "petscale" in content["attributes"]:
            content["attributes"]["petscale"]["provenance"] = PROVENANCE
            path.write_text(json.dumps(content, indent=1))
    files = [path for path in template.rglob("*.json") if "aids" not in path.parts]
    catalog = json.loads((folder / "CATALOG.json").read_bytes())
    for number in range(1, cases):
        name = f"phantom-{number:04}"
        for path in files:
            target = folder / "cases" / name / path.relative_to(template)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        catalog[name] = catalog["phantom-000"]
    (folder / "CATALOG.json").write_text(json.dumps(catalog))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cohort"
        generate(folder, given.cases)
        command, reading = [], []
        for _ in range(given.runs + 1):
            process = subprocess.Popen([sys.executable, "-m", "petscale", "inspect", folder], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0
            command.append(usage.ru_utime + usage.ru_stime)
            begin = time.process_time()
            inspect_cohort(folder).summary()
            reading.append(time.process_time() - begin)
        print(f"| {given.cases} cases | processor time [s], median (min to max) |\n|---|---|")
        for told, found in (("petscale inspect, whole process", command), ("reading and summing", reading)):
            counted = found[1:]
            print(f"| {told} | {statistics.median(counted):.2f} ({min(counted):.2f} to {max(counted):.2f}) |")


if __name__ == "__main__":
    main()
