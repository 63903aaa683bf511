"""What leaves a checkout in which patients' scans lie: nothing of them by `ray up`, `petscale submit` or git."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from petscale.cluster import installation, jobs
from petscale.cluster.installation import PACKAGES
from petscale.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "deploy/README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BESIDE = (
    "scans/DOE_JOHN/pet/IM0001",
    "scan.nii.gz",
    "cohort/zarr.json",
    "lowdose/cases/phantom-000/zarr.json",
    "runs/first/weights.safetensors",
    "restored/IM0001.dcm",
    "studies/weights/study.db",
    "anything at all/patients.xlsx",
    ".env",
    "site.key",
    "best.json",
)
needs_git = pytest.mark.skipif(
    not shutil.which("git") or not (ROOT / ".git").exists(), reason="needs git and a checkout of it"
)


def tracked() -> set[str]:
    return {*subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this checkout as someone uses it, in a home of its own."""
    here = tmp_path / "checkout"
    for name in tracked():
        if (ROOT / name).is_file():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, here / name)
    for name in (*BESIDE, "storage/__pycache__/suv.cpython-311.pyc"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).touch()
    for name in (".ray/auth_token", ".config/petscale/site.key"):
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(here)
    return here


def carried(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(place on a machine, file here) as rsync would copy them, asked as Ray asks it."""
    from ray.autoscaler._private.command_runner import SSHCommandRunner
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(content)
    filters = SSHCommandRunner._create_rsync_filter_args(None, config)
    for there, name in config["file_mounts"].items():
        source = Path(name).expanduser()
        words = ["rsync", "-avzn", "--out-format=%n", *filters, f"{source}/" if source.is_dir() else str(source)]
        done = subprocess.run([*words, "/nowhere/at/all/"], capture_output=True, text=True)
        for line in done.stdout.splitlines():
            if line and not line.endswith("/") and not re.match("sending incremental|sent |total size|created ", line):
                yield there, str(source / line) if source.is_dir() else str(source)


@needs_git
@pytest.mark.skipif(not shutil.which("rsync"), reason="needs rsync")
@pytest.mark.parametrize("file", ["cluster.yaml", "deploy/aws.yaml"])
def test_ray_up_carries_code_by_name_and_two_secrets(checkout: Path, file: str) -> None:
    content = yaml.safe_load(Path(file).read_text())
    found = [*carried(content)]
    secrets = {there: name for there, name in found if name.startswith(str(checkout.parent / "home"))}
    assert {*secrets} == {"~/.ray/auth_token", "~/.config/petscale/site.key"}
    names = {name for _, name in found} - {*secrets.values()}
    assert names <= tracked()
    packages = ("platform/", "storage/", "trainers/", "tune_spaces/")
    assert {name for name in tracked() if name.startswith(packages)} <= names
    assert {"Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= names
    hook = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]
    assert hook["custom"]["path"] in names  # the installation fails without it
    assert not [name for name in names if any(name.startswith(one.split("/")[0]) for one in BESIDE)]


@needs_git
def test_what_lies_beside_the_code_would_be_seen(checkout: Path) -> None:
    """The same question of a file that mounts the whole folder."""
    if not shutil.which("rsync"):
        pytest.skip("needs rsync")
    content = yaml.safe_load(Path("cluster.yaml").read_text()) | {"file_mounts": {"~/petscale": "."}}
    assert {name for _, name in carried(content)} >= {*BESIDE}


def test_a_job_brings_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What someone put between the modules stays here."""
    for package in PACKAGES:
        (tmp_path / package / "deep").mkdir(parents=True)
        for name in ("a.py", "deep/b.py", "page.j2", "deep/scan.nii.gz", "deep/IM0001", "zarr.json"):
            (tmp_path / package / name).touch()
    monkeypatch.setattr(installation, "_folder", lambda package: tmp_path / package)
    installation._copies.cache_clear()
    try:
        modules = [Path(name) for name in installation.code()["py_modules"]]
        sent = {str(path.relative_to(one)) for one in modules for path in one.rglob("*") if path.is_file()}
    finally:
        installation._copies.cache_clear()
    assert [one.name for one in modules] == [*PACKAGES]
    assert sent == {"a.py", "deep/b.py", "page.j2"}


SUBMITTING = """
import sys, time
from contextlib import nullcontext
from types import SimpleNamespace
from petscale.cluster import installation, jobs

def submitted(**_):
    print("there", flush=True)
    time.sleep(600)

installation.PACKAGES = ("tune_spaces",)
jobs.job_client = lambda cluster: nullcontext(SimpleNamespace(submit_job=submitted))
jobs.submit(["verify", "cohort"], "cluster.yaml", follow=False)
"""


@needs_git
def test_a_job_brings_all_that_a_package_reads() -> None:
    """A report's scripts and the weights that come with petscale too: whatever git holds of the four packages."""
    places = {"petscale": "platform/petscale", **{name: name for name in PACKAGES if name != "petscale"}}
    held = subprocess.run(["git", "ls-files", "-z", *places.values()], cwd=ROOT, capture_output=True, check=True)
    for package, place in places.items():
        ours = {ROOT / name for name in held.stdout.decode().split("\0") if name.startswith(f"{place}/")}
        assert {*installation._files(package)} == {path for path in ours if path.exists()}
    sent = {path.name for path in installation._files("petscale")}
    assert {"page.js", "viewer.js", "restore-small.safetensors"} <= sent


def test_what_a_killed_submission_leaves_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    client = SimpleNamespace(submit_job=lambda **job: sent.append(job["runtime_env"]))
    monkeypatch.setattr(jobs, "job_client", lambda cluster: nullcontext(client))
    monkeypatch.setattr(installation, "PACKAGES", ("tune_spaces",))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def folders() -> set[str]:
        return {re.sub("-[^-]*$", "", path.name) for path in tmp_path.iterdir() if path not in ours()}

    def ours() -> set[Path]:
        return {Path(name).parent for one in sent for name in one["py_modules"]}

    def submit() -> None:
        installation._copies.cache_clear()
        jobs.submit(["verify", "cohort"], "cluster.yaml", follow=False)

    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", SUBMITTING]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == "there\n"
            submit()
            assert folders() == {"petscale-code", "petscale-job"}, "those of a living process stay"
            assert not Path(sent[0]["working_dir"]).exists()
        finally:
            child.kill()
    submit()
    assert folders() == set()
    assert all(one.is_dir() for one in ours()), "a process that lives may send its code again"
    installation._copies.cache_clear()


def written() -> set[str]:
    """What the commands of the pages read and write in the folder that they are typed in."""
    found = set()
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.DOTALL):
            for line in block.splitlines():
                line = line.removeprefix("$ ").partition(" #")[0]
                if not line.startswith(("petscale ", ".venv/bin/petscale ")):
                    continue
                words = shlex.split(line)[1:]
                options = {"--run", "--output", "--folder", "--study", "--runs", "--deviation"}
                found |= {word for before, word in itertools.pairwise(words) if before in options}
                command = next((word for word in words if word in COMMANDS), "")
                if command in ("ingest", "simulate", "phantom", "synthesize", "submission", "experiment"):
                    after = words[words.index(command) + 1 :]
                    found |= {word for word in after if re.fullmatch(r"[\w./-]*[a-z]\w*", word) and word[0] not in "-/"}
    return {name for name in found if not name.startswith(("/", "~", "-")) and ":" not in name}


@needs_git
def test_git_ignores_what_the_pages_commands_make() -> None:
    names = written()
    assert {"scans", "cohort", "lowdose", "runs/first", "restored", "restored.nii.gz", "scan.nii.gz"} <= names
    asked = "".join(f"{name}\n{name}/inside\n" for name in (*names, *BESIDE))
    words = ["git", "check-ignore", "--no-index", "--stdin"]
    ignored = subprocess.run(words, cwd=ROOT, input=asked, capture_output=True, text=True).stdout.splitlines()
    assert not {*asked.splitlines()} - {*ignored}


@needs_git
def test_git_ignores_nothing_that_it_holds() -> None:
    words = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.check_output(words, cwd=ROOT, text=True) == ""


def test_the_ssh_of_ray_up_refuses_a_key_that_has_changed(tmp_path: Path) -> None:
    if not Path("/usr/bin/ssh").exists():
        pytest.skip("needs ssh")
    from ray.autoscaler._private.command_runner import SSHOptions

    rays = SSHOptions(None).to_ssh_options_list()
    words = [str(ROOT / "deploy/ssh/ssh"), *rays, "-G", "192.0.2.10"]
    told = subprocess.check_output(words, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, text=True).splitlines()
    assert "stricthostkeychecking accept-new" in told
    assert f"userknownhostsfile {tmp_path}/.ssh/known_hosts" in told
