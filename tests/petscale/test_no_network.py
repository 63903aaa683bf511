"""Nothing on the way asks the network for anything: a machine that would hear every name and every outer address."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from small_runs import S3PET

from petscale.cluster.nodes import SILENT

# Runs in a network, mount and process namespace of its own.  The only outer address is the one at which clouds tell a
# machine about itself; here it is this machine's and serves names, too.  Put down is who asks for one, or connects, and
# every port that answers at the machine's address, as to a neighbour in its network; its name has that address.
_APART = """
import os, socket, subprocess, sys, threading, time
from pathlib import Path
OUTSIDE, here, work = "169.254.169.254", "192.0.2.10", Path(sys.argv[1])
for words in ("link set lo up", f"address add {OUTSIDE}/32 dev lo", f"address add {here}/24 dev lo",
              f"route add default dev lo src {here}"):
    subprocess.run(["ip", *words.split()], check=True)
for name, text in (("resolv.conf", f"nameserver {OUTSIDE}"),
                   ("hosts", f"127.0.0.1 localhost{chr(10)}{here} {socket.gethostname()}")):
    (work / name).write_text(text + chr(10))
    subprocess.run(["mount", "--bind", work / name, f"/etc/{name}"], check=True)
log = (work / "heard").open("a", buffering=1)
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind((OUTSIDE, 53))
def resolve():
    while True:
        asked, who = names.recvfrom(4096)
        labels, at = [], 12
        while asked[at]:
            labels.append(asked[at + 1 : at + 1 + asked[at]].decode())
            at += 1 + asked[at]
        print("name", ".".join(labels), file=log)
        question, is_a = asked[12 : at + 5], asked[at + 2] == 1
        answer = bytes([192, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, *map(int, OUTSIDE.split("."))]) if is_a else b""
        names.sendto(asked[:2] + bytes([129, 128, 0, 1, 0, is_a, 0, 0, 0, 0]) + question + answer, who)
def serve(port):
    door = socket.create_server((OUTSIDE, port))
    while True:
        visitor, _ = door.accept()
        print("port", port, file=log)
        visitor.close()
def knock():
    found = set()
    while True:
        for line in [l for f in ("tcp", "tcp6") for l in Path("/proc/net", f).read_text().splitlines()[1:]]:
            address, _, port = line.split()[1].partition(":")
            if line.split()[3] == "0A" and port not in found:
                try:
                    socket.create_connection((here, int(port, 16)), timeout=1).close()
                    found.add(port)
                    print("open", int(port, 16), address, file=log)
                except OSError:
                    pass
        time.sleep(0.3)
for one in ((resolve, ()), (serve, (80,)), (serve, (443,)), (knock, ())):
    threading.Thread(target=one[0], args=one[1], daemon=True).start()
exec(sys.argv[2])
time.sleep(0.5)  # what was said last is still on its way to the log
"""

# Until a dashboard has answered twice, for what Ray does at its start blocks it.
_WAIT = """
import http.client, time
def wait_for(port):
    until, answers = time.monotonic() + 90, 0
    while answers < 2:
        assert time.monotonic() < until
        dashboard = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            dashboard.request("GET", "/api/version")
            answers += bool(dashboard.getresponse().status)
        except OSError:
            time.sleep(0.5)
    time.sleep(2)
"""

_PRIVATE = """
import json
from petscale.cluster.session import session
from petscale.config import RunConfig
with session(RunConfig(), 1, work, dashboard=True):
    import ray
    homes = [os.environ["HOME"], ray.get(ray.remote(lambda: os.environ["HOME"]).remote())]
    (shown,) = Path(os.environ["TMPDIR"]).glob("petscale-ray-*/dashboard.json")
    wait_for(json.loads(shown.read_text())["port"])
(work / "homes").write_text(json.dumps(homes))
"""

_TRAINED = """
import json
from petscale.cli import main
asked = json.loads(sys.argv[3])
run = ["--run", str(work / "run"), "--workers", "2", "--recipe", "s3pet", "--set", *asked["tiny"]]
main(["train", asked["cohort"], *run])
sweep = ["--study", str(work / "sweep"), "--recipe", "s3pet", "--spaces", "losses", "--trials", "2", "--rungs", "2"]
main(["tune", asked["cohort"], *sweep, "--set", *asked["tiny"]])
main(["report", str(work / "run"), asked["cohort"]])
"""

_STARTED = """
ray = Path(sys.executable).with_name("ray")
with (work / "log").open("w") as said:
    subprocess.Popen([ray, "start", "--head", "--block", "--num-cpus=1", "--object-store-memory=80000000",
                      f"--temp-dir={work}/r", "--dashboard-port=8265"], stdout=said, stderr=said)
wait_for(8265)
"""


def heard(script: str, work: Path, environment: Mapping[str, str], **asked: object) -> list[str]:
    """What a script asked of the network."""
    space = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*space, "ip", "link"], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces, and iproute2")
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [*space, sys.executable, "-c", _APART, work, _WAIT + script, json.dumps(asked)],
        env=bare | {"RAY_worker_niceness": "0"} | {**environment},  # as in conftest.py: other tests share the cores
        capture_output=True,
        text=True,
        timeout=500,  # of something that hangs
    )
    assert ended.returncode == 0, ended.stderr
    return (work / "heard").read_text().splitlines()


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="p-") as folder:
        yield Path(folder)


def test_the_machine_hears(work: Path) -> None:
    script = """
import socket, time
socket.create_connection(('a.example.org', 443)).close()
doors = [socket.create_server(("::", 4711), family=socket.AF_INET6, dualstack_ipv6=True),
         socket.create_server((here, 4712)), socket.create_server(("127.0.0.1", 4713))]
time.sleep(0.5)
"""
    said = [line.rsplit(" ", 1)[0] if line.startswith("open") else line for line in heard(script, work, {})]
    assert {"name a.example.org", "port 443", "open 4711", "open 4712"} <= {*said}
    assert "open 4713" not in said


@pytest.mark.slow
@pytest.mark.beside
def test_a_private_cluster_asks_for_nothing(work: Path) -> None:
    assert heard(_PRIVATE, work, {"TMPDIR": str(work)}) == []
    assert json.loads((work / "homes").read_text()) == [os.environ["HOME"]] * 2


@pytest.mark.slow
@pytest.mark.beside
def test_training_tuning_and_a_report_ask_for_nothing_and_let_nobody_in(cohort: Path, work: Path) -> None:
    # torch may look for a name of the peer that it talks to, the loopback, to have it for its log.
    asked = heard(_TRAINED, work, {"TMPDIR": str(work)}, cohort=str(cohort), tiny=S3PET)
    assert {*asked} <= {"name 1.0.0.127.in-addr.arpa"}
    assert (work / "run" / "report.html").exists()
    assert (work / "sweep" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.beside
def test_a_started_cluster_reports_nothing(work: Path) -> None:
    (work / "ray_bootstrap_config.yaml").write_text("{}")  # `ray up` leaves one in the head's home
    environment = {"HOME": str(work), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    said = heard(_STARTED, work, environment | SILENT)
    assert [line for line in said if not line.startswith("open")] == []  # its ports are for the cluster's machines
    assert "name usage-stats.ray.io" in heard(_STARTED, work, environment | {"RAY_USAGE_STATS_ENABLED": "0"})
