"""A cluster of three hosts brought up by ``ray up cluster.yaml`` and worked through ``petscale submit``.

The hosts are network namespaces of this machine (tests/hosts.py); everything else is what a user has and types.  What a
cluster makes is compared with what this machine makes alone.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hosts import CHECKOUT, HOME, SUBNET, VENV, Host, Laboratory, laboratory, why_not

from petscale.training.progress import read_metrics
from storage import integrity

pytestmark = [
    pytest.mark.slow,
    pytest.mark.beside,
    pytest.mark.timeout(1500),  # other tests run beside these
    pytest.mark.skipif(bool(why_not()), reason=f"hosts on one machine: {why_not()}"),
]

PHANTOMS = ["--cases", "4", "--body.shape", "24", "24", "40", "--drf", "4"]
SETTINGS = [
    "recipe.patch=24,24,24",
    "recipe.patches_per_case=1",
    "recipe.critic_channels=2",
    "recipe.segmenter_channels=2",
    "recipe.context_patches=2",
    "recipe.phase_samples=64,4,4,4",
    "loop.log_every=1",
    "loop.save_every=4",
    "loop.picture_every=0",
    "feed.source=low_drf4",
    # As many as a host has, so that two workers are on two hosts.
    f"cluster.cpus_per_worker={os.cpu_count()}",
]
PAPER = ["--defaults", "paper"]  # whose phases SETTINGS are
STORE = [
    f"AWS_ENDPOINT_URL=http://{SUBNET}.254:5000",
    "AWS_ACCESS_KEY_ID=key",
    "AWS_SECRET_ACCESS_KEY=secret",
    "AWS_DEFAULT_REGION=us-east-1",
]
NOT_NICE = "RAY_worker_niceness=0"  # as the other tests' processes, beside which a training would get next to nothing
OUR_WORDS = "the code of this laptop"


@dataclass(frozen=True)
class Cluster:
    """A laptop and three hosts, the first of them the head."""

    lab: Laboratory

    @property
    def head(self) -> Host:
        return self.lab.hosts[0]

    def up(self) -> None:
        done = self.lab.launch("ray", "up", "--yes", "--no-config-cache", "cluster.yaml", timeout_s=240)
        assert done.returncode == 0, done.stdout + done.stderr
        self.wait_for_nodes(3)

    def wait_for_nodes(self, count: int) -> None:
        # The page that `ray list nodes` asks too, without a Python started every time.
        ask = 'curl -s -H "Authorization: Bearer $(cat ~/.ray/auth_token)" http://127.0.0.1:8265/api/v0/nodes'

        def joined() -> bool:
            said = self.head.run(ask).stdout
            nodes = json.loads(said)["data"]["result"]["result"] if said.startswith("{") else []
            return sum(node["state"] == "ALIVE" for node in nodes) == count

        wait_for(joined, 180, f"{count} nodes")

    def petscale(self, *words: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        return self.lab.launch("petscale", *words, timeout_s=timeout_s)

    def submit(self, *words: str, timeout_s: float = 240) -> str:
        """Run a command to its good end; returns the job's name."""
        done = self.petscale("submit", *words, timeout_s=timeout_s)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.split()[-1]

    def detach(self, *words: str) -> str:
        return self.submit("--detach", *words)

    def state(self, job: str) -> str:
        said = self.petscale("status", job)
        table = said.stdout + said.stderr
        found = re.search(rf"{job}\W+(\w+)", table)
        assert found, table
        return found[1]

    def wait_for_end(self, job: str, seconds: float) -> str:
        self.petscale("logs", job, "--follow", timeout_s=seconds)  # one process, however long it takes
        return self.state(job)

    def training(self) -> list[Host]:
        """Hosts on which workers train."""
        return [host for host in self.lab.hosts if host.processes("ray::RayTrainWorker")]


def wait_for(met: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.5)


def train(run: str, *settings: str) -> list[str]:
    return ["train", "cohort", "--run", run, "--workers", "2", *PAPER, "--set", *SETTINGS, *settings]


def losses(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key == "step" or key.startswith("loss/")}
        for record in read_metrics(run / "metrics.jsonl")
        if record["event"] == "log"
    ]


def alone(*words: str, cwd: Path) -> None:
    """The same command on this machine alone, which takes itself for as large as all hosts together."""
    large = "import os; os.sched_getaffinity = lambda process: range(4096); from petscale.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", large, *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with laboratory() as lab:
        home = lab.folder / f"laptop{CHECKOUT}"
        lab.fill_in(f"{lab.shared} {' '.join([*STORE, NOT_NICE])}")
        package = home / "platform/petscale/__init__.py"
        package.write_text(f'{package.read_text()}\nprint("{OUR_WORDS}")\n')
        secrets = "umask 077; ray get-auth-token --generate; mkdir -p ~/.config/petscale && head -c 32 /dev/urandom"
        assert lab.launch("sh", "-c", f"{secrets} > ~/.config/petscale/site.key").returncode == 0
        made = Cluster(lab)
        made.up()
        yield made
        lab.launch("ray", "down", "--yes", "cluster.yaml")


@pytest.fixture(scope="module")
def cohort(cluster: Cluster) -> Path:
    """Phantoms drawn and scanned on the cluster."""
    cluster.submit("phantom", "cohort", *PHANTOMS)
    return cluster.lab.shared / "cohort"


@pytest.fixture(scope="module")
def reference(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training by this machine alone."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "cohort").symlink_to(cohort)
    alone(*train("reference"), cwd=folder)
    return folder / "reference"


def test_only_the_holder_of_the_secret_is_answered(cluster: Cluster) -> None:
    ask = "curl -s -o /dev/null -w '%{http_code}' http://"
    assert cluster.head.run(f"{ask}127.0.0.1:8265/api/jobs/").stdout == "401"
    token = cluster.head.run("cat ~/.ray/auth_token").stdout.strip()
    shown = f"-H 'Authorization: Bearer {token}'"
    assert cluster.head.run(f"{ask}127.0.0.1:8265/api/jobs/ {shown}").stdout == "200"
    assert cluster.lab.hosts[1].run(f"{ask}{cluster.head.address}:8265/api/jobs/ {shown}").returncode != 0
    for host in cluster.lab.hosts:
        assert (
            host.run("stat -c %a ~/.ray/auth_token $(dirname $(ls -d /tmp/petscale-root/ray))").stdout == "600\n700\n"
        )
        (raylet,) = host.processes("raylet/raylet ")
        limits = Path(f"/proc/{raylet.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 ", limits)


def test_what_the_cluster_ingests_is_what_one_machine_ingests(cluster: Cluster, cohort: Path, tmp_path: Path) -> None:
    alone("phantom", "cohort", *PHANTOMS, cwd=tmp_path)
    ours, theirs = (
        {path.name: integrity.manifest(path)["root"] for path in sorted((folder / "cases").glob("phantom-*"))}
        for folder in (tmp_path / "cohort", cohort)
    )
    assert len(ours) == 4
    assert ours == theirs
    assert not list(cohort.glob(".probe*"))
    assert not list(cohort.glob(".staging*"))


def test_two_hosts_train_as_one_machine_does(cluster: Cluster, reference: Path) -> None:
    run = cluster.lab.shared / "run"
    job = cluster.detach(*train("run"))
    seen: set[str] = set()

    def ended() -> bool:
        seen.update(host.name for host in cluster.training())
        return (run / "weights.safetensors").is_file()

    wait_for(ended, 200, "the weights")
    assert cluster.wait_for_end(job, 60) == "succeeded"
    assert len(seen) == 2
    ours, theirs = losses(reference), losses(run)
    assert len(ours) == 38
    for mine, other in zip(ours, theirs, strict=True):
        assert other == pytest.approx(mine, abs=1e-5)
    said = cluster.petscale("logs", job)
    assert OUR_WORDS in said.stdout
    assert "38/38" in said.stdout
    # What Ray shows to everybody names neither cohort nor run.
    assert "cohort" not in cluster.head.run(". ~/.petscale.sh; ray list jobs --detail").stdout


def test_synthesis_and_evaluation_on_the_cluster(cluster: Cluster, cohort: Path) -> None:
    test_case = json.loads((cluster.lab.shared / "run/config.json").read_text())["test"][0]
    cluster.submit("synthesize", "run", "cohort", "--case", test_case)
    cluster.submit("evaluate", "run", "cohort")
    assert list((cluster.lab.shared / "run/evaluation").glob("*"))


def test_an_object_store_instead_of_a_shared_folder(cluster: Cluster, reference: Path) -> None:
    """Each host has its own mirror; what rank 0 publishes is what the head fetches in the end."""
    pytest.importorskip("s3fs")
    store = subprocess.Popen(
        cluster.lab.words("moto_server", "-H", f"{SUBNET}.254", "-p", "5000"),
        env=cluster.lab.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        bucket = "import boto3; boto3.client('s3').create_bucket(Bucket='pet')"
        wait_for(lambda: cluster.lab.launch("env", *STORE, "python", "-c", bucket).returncode == 0, 60, "the store")
        cluster.submit("phantom", "s3://pet/cohort", *PHANTOMS)
        words = train("s3://pet/run")
        cluster.submit(words[0], "s3://pet/cohort", *words[2:])
        shown = "import s3fs; print(s3fs.S3FileSystem().cat('pet/run/metrics.jsonl').decode())"
        (cluster.lab.folder / "metrics.jsonl").write_text(
            cluster.lab.launch("env", *STORE, "python", "-c", shown).stdout
        )
    finally:
        store.terminate()
        store.wait()
    (cluster.lab.folder / "run").mkdir()
    (cluster.lab.folder / "metrics.jsonl").rename(cluster.lab.folder / "run/metrics.jsonl")
    assert losses(cluster.lab.folder / "run") == losses(reference)


def test_a_sweep(cluster: Cluster, cohort: Path) -> None:
    words = [
        "tune",
        "cohort",
        "--study",
        "study",
        "--trials",
        "3",
        *PAPER,
        "--set",
        *SETTINGS[:-1],
        "recipe.phase_samples=4,0,0,0",
    ]
    cluster.submit(*words, timeout_s=400)
    study = cluster.lab.shared / "study"
    assert (study / "best.json").is_file()
    assert (study / "report.html").is_file()
    assert not list(study.glob(".tune*"))
    before = {path: path.stat().st_mtime_ns for path in study.glob("trials/*/*")}
    assert len({path.parent for path in before}) == 3
    cluster.submit(*words, timeout_s=200)  # finished: nothing is repeated
    assert {path: path.stat().st_mtime_ns for path in study.glob("trials/*/*")} == before


def test_the_clusters_dashboard_comes_to_the_laptop(cluster: Cluster) -> None:
    shown = cluster.petscale("dashboard", "--cluster", "cluster.yaml", "--seconds", "0")
    assert re.search(r"Ray dashboard: http://127\.0\.0\.1:\d+ ", shown.stdout), shown.stderr


def test_a_job_is_stopped(cluster: Cluster, cohort: Path) -> None:
    job = cluster.detach(*train("stopped"))
    wait_for(lambda: bool(losses(cluster.lab.shared / "stopped")), 200, "a step")
    assert "stopped" in cluster.petscale("stop", job).stdout
    wait_for(lambda: not cluster.training(), 60, "the end of the workers")


def test_mistakes_are_told_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    for words, code in (
        (["submit", "train", "nowhere", "--run", "r"], "CLU_JOB_FAILED"),
        (["submit", "walk"], "CFG_COMMAND"),
        (["submit", "--cluster", "none.yaml", "verify", "x"], "CLU_FILE"),
        (["status", "--cluster", "http://127.0.0.1:1"], "CLU_UNREACHABLE"),
        (["logs", "walk-123"], "CLU_NO_JOB"),
    ):
        done = cluster.petscale(*words)
        assert done.returncode == 2, done.stdout + done.stderr
        told = [line for line in done.stderr.splitlines() if line.startswith("petscale: ")]
        assert [line.split()[1] for line in told] == [code], done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    too_many = cluster.petscale("submit", *train("many", "cluster.cpus_per_worker=64"))
    assert "CFG_RESOURCES" in too_many.stdout


def test_a_wrong_secret(cluster: Cluster) -> None:
    done = cluster.lab.launch("petscale", "status", env={"RAY_AUTH_TOKEN": "0" * 64})
    assert done.returncode == 2
    assert "CLU_TOKEN" in done.stderr


def test_storage_that_is_not_shared(cluster: Cluster) -> None:
    """A folder of the head's own: refused before anything starts."""
    done = cluster.petscale("submit", "phantom", f"{HOME}/cohort", *PHANTOMS)
    assert done.returncode == 2
    assert "CLU_STORAGE" in done.stdout
    assert not (cluster.head.folder / "home/root/cohort/cases").exists()


def test_the_driver_is_killed(cluster: Cluster, cohort: Path, reference: Path) -> None:
    run = cluster.lab.shared / "driver"
    job = cluster.detach(*train("driver"))
    wait_for(lambda: len(losses(run)) > 8, 200, "8 steps")
    for process in cluster.head.processes("-m petscale @command.json"):
        process.send_signal(signal.SIGKILL)
    assert cluster.wait_for_end(job, 60) == "failed"
    cluster.submit(*train("driver"))
    assert losses(run) == losses(reference)


def test_a_node_dies_in_mid_training(cluster: Cluster, cohort: Path, reference: Path) -> None:
    """Its power is cut; the others go on from the last checkpoint, and the node is taken in again when it is back."""
    run = cluster.lab.shared / "node"
    job = cluster.detach(*train("node"))
    wait_for(lambda: len(losses(run)) > 8, 200, "8 steps")
    lost = next(host for host in cluster.training() if host is not cluster.head)
    lost.kill()
    assert cluster.wait_for_end(job, 600) == "succeeded"
    assert losses(run) == losses(reference)
    lost.start()
    cluster.wait_for_nodes(3)  # Ray on the head looks for it


def test_a_node_dies_in_mid_sweep(cluster: Cluster, cohort: Path) -> None:
    """Its trial continues elsewhere from its last checkpoint; no finished trial is lost or repeated."""
    study = cluster.lab.shared / "nodesweep"
    settings = [*SETTINGS, "recipe.phase_samples=128,0,0,0"]
    words = ["tune", "cohort", "--study", study.name, "--trials", "4", "--at-once", "3", *PAPER, "--set", *settings]
    job = cluster.detach(*words)
    training: list[Host] = []

    def under_way() -> bool:
        """Whether trials train, past their first checkpoint, and where beside the head."""
        if any(8 < len(losses(run)) < 40 for run in study.glob("trials/*")):
            training[:] = (host for host in cluster.lab.hosts[1:] if host.processes("ray::ResourceTrainable"))
        return bool(training)

    wait_for(under_way, 200, "a trial on a host that is not the head")
    lost = training[0]
    lost.kill()
    assert cluster.wait_for_end(job, 700) == "succeeded", cluster.petscale("logs", job).stdout
    runs = sorted(study.glob("trials/*"))
    assert len(runs) == 4
    for run in runs:
        assert [one["step"] for one in losses(run)] == list(range(1, 65)), "every step once"
    assert "4 of 4 trials over" in cluster.petscale("logs", job).stdout
    lost.start()
    cluster.wait_for_nodes(3)


def test_a_node_is_cut_off(cluster: Cluster, cohort: Path, reference: Path) -> None:
    """It lives on behind a dead cable, and the storage is still there: no two attempts may write the same run."""
    run = cluster.lab.shared / "cable"
    job = cluster.detach(*train("cable"))
    wait_for(lambda: len(losses(run)) > 8, 200, "8 steps")
    lost = next(host for host in cluster.training() if host is not cluster.head)
    cluster.lab.link(lost, "down")
    try:
        assert cluster.wait_for_end(job, 800) == "succeeded"
    finally:
        cluster.lab.link(lost, "up")
    assert losses(run) == losses(reference)
    wait_for(lambda: not lost.processes("ray::RayTrainWorker"), 120, "the end of the lost workers")
    cluster.wait_for_nodes(3)


def test_a_full_disk_on_one_node(cluster: Cluster, cohort: Path, reference: Path) -> None:
    """Ray's own folder is full on a node that trains: what is committed lies elsewhere."""
    host = cluster.lab.hosts[2]
    full = host.run("dd if=/dev/zero of=/tmp/petscale-root/filler bs=1M; df /tmp | tail -1")
    assert "100%" in full.stdout
    try:
        job = cluster.detach(*train("full"))
        state = cluster.wait_for_end(job, 700)
    finally:
        host.run("rm -f /tmp/petscale-root/filler")
    if state == "failed":
        assert re.search(r"petscale: [A-Z]+_[A-Z_]+ ", cluster.petscale("logs", job).stdout)
        cluster.up()  # Ray's own processes do not get over a full disk
        cluster.submit(*train("full"))
    assert losses(cluster.lab.shared / "full") == losses(reference)


def test_the_head_is_lost(cluster: Cluster, cohort: Path, reference: Path) -> None:
    run = cluster.lab.shared / "head"
    cluster.detach(*train("head"))
    wait_for(lambda: len(losses(run)) > 8, 200, "8 steps")
    cluster.head.kill()
    assert "CLU_UNREACHABLE" in cluster.petscale("status").stderr
    wait_for(lambda: not cluster.training(), 120, "the end of the workers")
    cluster.head.start()
    cluster.up()
    cluster.submit(*train("head"))
    assert losses(run) == losses(reference)


def test_nothing_is_left_behind(cluster: Cluster) -> None:
    """The last test: ``ray down``; the workers notice in a while that their head is gone."""
    assert cluster.lab.launch("ray", "down", "--yes", "cluster.yaml").returncode == 0

    def left() -> list[str]:
        return [f"{host.name}: {p.cmdline()}" for host in cluster.lab.hosts for p in host.processes("ray")]

    wait_for(lambda: not left(), 150, f"the end of Ray: {left()}")
    kept = {place.parts[2] for place in (VENV, Path(sys.base_prefix)) if place.is_relative_to("/tmp")}
    for host in cluster.lab.hosts:
        assert not {*host.run("ls /tmp").stdout.split()} - kept
