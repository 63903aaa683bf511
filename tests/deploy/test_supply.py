"""The lock names what the constraints name, file by file; the bill of materials names what is installed."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]


def spelt(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {spelt(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}


def locked() -> dict[str, tuple[str, str]]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})", line) for line in lines]
    assert all(found)
    return {one[1]: (one[2], one[3]) for one in found if one}


def test_the_lock_has_the_versions_of_the_constraints_and_a_hash_of_each_file() -> None:
    lock, versions = locked(), pinned()
    assert {name: version for name, (version, _) in lock.items() if name in versions} == {
        name: versions[name] for name in lock if name in versions
    }
    # torch differs between CPUs and CUDA; the others are of extras and of builds.
    assert {*versions} - {*lock} <= {"torch", "pylibjpeg-libjpeg", "beartype", "tomlkit", "tzdata"}


def test_the_lock_is_written_from_pips_report(tmp_path: Path) -> None:
    def item(name: str, version: str) -> dict[str, object]:
        files = {"archive_info": {"hashes": {"sha256": "0" * 64}}}
        return {"metadata": {"name": name, "version": version}, "download_info": files}

    install = [
        item("Zarr", "3.1.6"),
        item("ruamel.yaml", "1"),
        item("torch", "2.13.0+cpu"),
        item("nvidia-nccl-cu13", "2"),
    ]
    report = {"install": install, "environment": {"python_version": "3.11"}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    words = [sys.executable, str(ROOT / "deploy/supply/lock.py"), "report.json"]
    subprocess.run(words, cwd=tmp_path, check=True)
    lines = (tmp_path / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if line[0] != "#"] == [
        f"{name} --hash=sha256:{'0' * 64}" for name in ("ruamel-yaml==1", "zarr==3.1.6")
    ]
    assert any(line.startswith("#   pip install torch==2.13.0 ") for line in lines)


def test_the_bill_names_every_package_that_is_installed_and_what_it_needs() -> None:
    bill = json.loads(subprocess.check_output([sys.executable, str(ROOT / "deploy/supply/bill.py")]))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    parts = {one["name"]: one for one in bill["components"]}
    for name in ("ray", "torch", "numpy"):
        assert parts[name]["version"] == metadata.version(name)
        assert parts[name]["purl"] == f"pkg:pypi/{name}@{metadata.version(name)}"
    refs = {one["bom-ref"] for one in (*bill["components"], bill["metadata"]["component"])}
    assert len(refs) == len(parts) + 1
    needs = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert {*needs} == refs
    assert all({*named} <= refs for named in needs.values())
    assert parts["numpy"]["bom-ref"] in needs[parts["scipy"]["bom-ref"]]
