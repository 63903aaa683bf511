"""deploy/slurm/petscale.sbatch on a real Slurm: one controller and two node daemons of this machine, as root.

The job's command is a probe that looks at the cluster from inside; Slurm, Ray and the script are the real ones.
"""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "petscale.sbatch"
DAEMONS = ("munged", "slurmctld", "slurmd")
needs_slurm = [
    pytest.mark.beside,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") for name in DAEMONS),
        reason="needs Debian's packages slurm-wlm and munge",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons need root"),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
"""

# Stands where the petscale command would: looks around, and waits to be stopped; the second time it ends by itself.
PROBE = """
import json, os, resource, stat, sys, time
from pathlib import Path
import psutil, ray

def around():
    mask = os.umask(0o077)
    node = ray._private.worker._global_node
    return {
        "node": ray.get_runtime_context().get_node_id(),
        "umask": mask,
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "folder": str(Path(node.get_temp_dir_path()).parent),
        "mode": stat.S_IMODE(Path(node.get_temp_dir_path()).parent.stat().st_mode),
        "usage": os.environ.get("RAY_USAGE_STATS_ENABLED"),
    }

out = Path(os.environ["PROBE"])
if out.exists():
    print("went on:", *sys.argv[1:])
    sys.exit(0)
ray.init(log_to_driver=False, logging_level="ERROR")
token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
port = int(os.environ["DASHBOARD_PORT"])
listening = [(c.laddr, c.status) for c in psutil.net_connections("tcp")]
facts = {
    "nodes": ray.get([ray.remote(around).remote() for _ in range(2)]),  # one core each: a task per node
    "token": str(token),
    "token_mode": stat.S_IMODE(token.stat().st_mode),
    "token_length": len(token.read_text()),
    "mode": os.environ["RAY_AUTH_MODE"],
    "site_key": os.environ["PETSCALE_SITE_KEY"],
    "address": os.environ["RAY_ADDRESS"],
    "dashboard": sorted({at.ip for at, status in listening if status == "LISTEN" and at.port == port}),
}
Path(f"{out}.part").write_text(json.dumps(facts))
Path(f"{out}.part").rename(out)
time.sleep(600)
"""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm and what a user of it needs."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """What the controller says of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


def until(done: Callable[[], bool], *, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """munged with a key of its own, slurmctld and two slurmd, all below one short folder; stopped by their ids."""
    host, folder = socket.gethostname().split(".")[0], Path(tempfile.mkdtemp(prefix="p-slurm-", dir="/tmp"))
    folder.chmod(0o755)  # munged refuses a socket that others could not reach
    for name in ("state", "spool-n1", "spool-n2", "munge", "home", "install/.venv/bin"):
        (folder / name).mkdir(parents=True, mode=0o700)
    (folder / "munge/key").write_bytes(os.urandom(128))
    (folder / "munge/key").chmod(0o600)
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=free_ports(3)))
    (folder / "probe.py").write_text(PROBE)
    here = Path(sys.executable).parent
    for name, program in (
        ("python", sys.executable),
        ("ray", here / "ray"),
        ("petscale", f"{sys.executable} {folder / 'probe.py'}"),
    ):
        (folder / "install/.venv/bin" / name).write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        (folder / "install/.venv/bin" / name).chmod(0o755)
    munge = {"key-file": "munge/key", "socket": "munge.socket", "pid-file": "munge/pid"}
    munge |= {"log-file": "munge/log", "seed-file": "munge/seed"}
    commands = [
        ["munged", "--foreground", *(f"--{name}={folder / path}" for name, path in munge.items())],
        ["slurmctld", "-D", "-f", str(configuration)],
        *(["slurmd", "-D", "-N", name, "-f", str(configuration)] for name in ("n1", "n2")),
    ]
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder / "home"),
        "SLURM_CONF": str(configuration),
        "PETSCALE_HOME": str(folder / "install"),
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
    }
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}-{len(running)}.log").open("w")
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            log.close()
            if command[0] == "munged":
                until((folder / "munge.socket").exists, seconds=10, what="munged")
        user = Slurm(folder, environment)
        both = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        until(lambda: user.run(*both).strip() == "2", seconds=20, what="two idle nodes")
        yield user
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(20)
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Job:
    """A submitted job, what its probe found and what it printed."""

    number: str
    probe: Path
    log: Path

    @property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.probe.read_text()))


def start(slurm: Slurm, name: str, *command: str) -> Job:
    probe, log = slurm.folder / f"{name}.json", slurm.folder / f"{name}.log"
    words = ["--parsable", "--nodes=2", "--cpus-per-task=1", f"--output={log}", f"--export=ALL,PROBE={probe}"]
    return Job(slurm.run("sbatch", *words, str(SCRIPT), *command).strip(), probe, log)


def check_cluster(facts: dict[str, Any]) -> None:
    first, second = facts["nodes"]
    assert first["node"] != second["node"]
    for node in facts["nodes"]:
        assert node["umask"] == 0o077
        assert node["core"][0] == 0
        assert node["mode"] == 0o700
        assert node["usage"] == "0"
    assert facts["mode"] == "token"
    assert facts["site_key"] == str(Path(facts["token"]).parent / ".config/petscale/site.key")
    assert facts["token_mode"] == stat.S_IRUSR | stat.S_IWUSR
    assert facts["token_length"] == 64
    assert facts["dashboard"] == ["127.0.0.1"]


def check_gone(facts: dict[str, Any]) -> None:
    assert not Path(facts["token"]).exists()
    folders = [node["folder"] for node in facts["nodes"]]
    assert not [path for path in folders if Path(path).exists()]
    words = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in words if any(path in line for path in folders)]


class TestOnARealSlurm:
    pytestmark = needs_slurm

    def test_two_jobs_share_nodes_one_is_cancelled_and_one_goes_on_after_its_limit(self, slurm: Slurm) -> None:
        stays, goes = (start(slurm, name, "train", "a cohort") for name in ("stays", "goes"))
        for job in (stays, goes):
            until(job.probe.exists, seconds=120, what="both nodes' facts")
            check_cluster(job.facts)
        assert stays.facts["address"] != goes.facts["address"]
        assert slurm.state(stays.number)["Requeue"] == "1"

        slurm.run("scancel", goes.number)
        until(lambda: slurm.state(goes.number)["JobState"] == "CANCELLED", seconds=30, what="the cancelled job's end")
        check_gone(goes.facts)

        # What Slurm sends two minutes before the limit; the same command then runs again, with all its words.
        slurm.run("scancel", "--batch", "--signal=USR1", stays.number)
        until(lambda: slurm.state(stays.number)["Restarts"] == "1", seconds=60, what="a second part")
        until(
            lambda: "COMPLETING" not in slurm.state(stays.number)["JobState"], seconds=30, what="the first part's end"
        )
        check_gone(stays.facts)
        # Slurm would wait for two minutes, so that no node takes the second part's credential for the first's.
        time.sleep(3)
        slurm.run("scontrol", "update", f"JobId={stays.number}", "StartTime=now")
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        until(lambda: slurm.state(stays.number)["JobState"] in ended, seconds=90, what="the job's end")
        assert slurm.state(stays.number)["JobState"] == "COMPLETED", stays.log.read_text()
        assert "went on: train a cohort" in stays.log.read_text()
        assert not list((slurm.folder / "home").glob(".petscale-token-*"))


def test_no_command_is_refused_before_a_cluster_starts() -> None:
    done = subprocess.run(["bash", SCRIPT], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch petscale.sbatch")


def test_its_words_are_bash() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], capture_output=True).stderr == b""


def test_two_jobs_of_one_node_have_ports_of_their_own() -> None:
    line = next(line for line in SCRIPT.read_text().splitlines() if line.startswith("first_port="))
    jobs = range(4_000_000, 4_001_000)
    command = f"for SLURM_JOB_ID in {{{jobs[0]}..{jobs[-1]}}}; do {line}; echo $first_port; done"
    ports = [int(word) for word in subprocess.check_output(["bash", "-c", command], text=True).split()]
    assert len({*ports}) == len(jobs)
    assert min(b - a for a, b in zip(sorted(ports), sorted(ports)[1:], strict=False)) >= 3  # it uses three
    assert min(ports) >= 1024
    assert max(ports) + 3 < 32768  # below what Linux hands out to clients


def test_nothing_in_it_opens_a_door() -> None:
    text = SCRIPT.read_text()
    assert "0.0.0.0" not in text
    assert "--dashboard-host=127.0.0.1" in text
    for word in ("RAY_AUTH_MODE=token", "RAY_USAGE_STATS_REPORT_URL=none", "ulimit -c 0", "umask 077"):
        assert word in text
    assert "ray stop" not in text  # it would end the Ray of everybody's job on the node
