"""The doctor: each rule fires on its fault and is quiet without; a real Ray head with a token, and one without."""

import http.server
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from petscale import doctor
from petscale.cluster.nodes import SILENT, STORAGE
from petscale.doctor import machine, port_probe, rules
from petscale.doctor.port_probe import ASKS, CLOSED, METRICS_ONLY, OPEN, QUESTIONS, UNTRIED, targets
from petscale.doctor.rules import THIS, Finding
from storage.errors import InputError

HEAD, NODE = "192.0.2.10", "192.0.2.11"
GIB = 2**30
PLENTY = {"free": 200 * GIB, "total": 400 * GIB}
CARD = {
    "name": "NVIDIA H200",
    "driver": "580.65.06",
    "ecc": "Enabled",
    "mig": "Disabled",
    "persistence": "Enabled",
    "compute": "Default",
    "ecc_errors": "0",
}
CARDS = {"driver": "works", "cards": [CARD], "cuda": "13.0", "cudnn": 91501, "works": True, "driver_cuda": 13000}


def raylet(**changed: Any) -> dict[str, Any]:
    """A Ray that nobody has to fix."""
    return {
        "session": "session_x",
        "store_bytes": 2 * GIB,
        "store_in_memory": True,
        "believes_bytes": 12 * GIB,
        "believes_cpus": 8.0,
        "limits": {},
        "core_bytes": 0,
        "session_open": False,
        "disk": PLENTY,
        "auth": {"mode": "token", "in_environment": False, "file": {"mode": 0o600, "uid": 1000}, "uid": 1000},
        "telemetry": False,
        "says_it_is_off": False,
    } | changed


def healthy(**changed: Any) -> dict[str, Any]:
    """Facts of a node without a fault."""
    return {
        "versions": {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "petscale": "0123456789ab"},
        "ray": [raylet()],
        "sockets": [],
        "addresses": [HEAD],
        "name_s": 0.01,
        "token_shown": False,
        "token_file": None,
        "disk": {"the temporary folder": PLENTY, "the storage": PLENTY},
        "shared_memory": {"free": 8 * GIB, "total": 8 * GIB},
        "cpus": 8,
        "limits": {},
        "core_bytes": 0,
        "gpu": CARDS,
        "environment": {},
        "bf16_cpu": False,
    } | changed


def auth(**changed: Any) -> dict[str, Any]:
    return raylet(auth=raylet()["auth"] | changed)


def card(**changed: str) -> dict[str, Any]:
    return {"gpu": CARDS | {"cards": [CARD, CARD | changed]}}


def told(found: list[Finding], code: str) -> list[tuple[str, str]]:
    """Level and text of what a code says, the well ones left out."""
    return [(one.level, one.found) for one in found if one.code == code and one.level != "ok"]


def test_nothing_is_said_of_a_healthy_machine() -> None:
    found = rules.findings({THIS: healthy()})
    assert {one.level for one in found} == {"ok"}
    codes = [one.code for one in found]
    assert len(set(codes)) == len(codes) == 11, "each code says once that all is well"
    assert all(one.found for one in found)


@pytest.mark.parametrize(
    ("code", "level", "changed", "says"),
    [
        ("CLU_RAY", "fix", {"versions": {"ray": "2.51.1"}}, "2.51.1"),
        ("CLU_TOKEN", "fix", {"ray": [auth(mode="disabled")]}, "RAY_AUTH_MODE is disabled"),
        ("CLU_TOKEN", "fix", {"ray": [auth(mode="")]}, "not set"),
        ("CLU_TOKEN", "fix", {"ray": [auth(file={"mode": 0o644, "uid": 1000})]}, "0644"),
        ("CLU_TOKEN", "fix", {"ray": [auth(file={"mode": 0o600, "uid": 1001})]}, "another user"),
        ("CLU_TOKEN", "fix", {"token_shown": True}, "command line"),
        ("CLU_TOKEN", "note", {"ray": [raylet(auth=None)]}, "cannot be read"),
        ("CLU_TOKEN", "note", {"ray": [], "token_file": {"mode": 0o644, "uid": 0}}, "auth_token"),
        ("CLU_DISK", "fix", {"disk": {"the storage": {"free": 9 * GIB, "total": 20 * GIB}}}, "the storage has 9.0"),
        ("CLU_DISK", "fix", {"disk": {"the storage": {"free": 40 * GIB, "total": 1000 * GIB}}}, "4%"),
        ("CLU_DISK", "fix", {"ray": [raylet(disk={"free": GIB, "total": 20 * GIB})]}, "session folder"),
        ("CLU_SHM", "fix", {"shared_memory": {"free": GIB, "total": GIB}}, "1.0 GiB, Ray's object store 2.0"),
        ("CLU_SHM", "fix", {"ray": [raylet(store_in_memory=False)]}, "on a disk"),
        ("CLU_SHM", "note", {"ray": [], "shared_memory": {"free": 64 * 2**20, "total": 64 * 2**20}}, "64 MiB"),
        ("CLU_CORES", "fix", {"ray": [raylet(core_bytes=-1)]}, "Ray's processes"),
        ("CLU_CORES", "note", {"ray": [], "core_bytes": -1}, "core dumps are on"),
        ("CLU_TELEMETRY", "fix", {"ray": [raylet(telemetry=True, says_it_is_off=True)]}, "usage statistics are on"),
        ("CLU_NAMES", "note", {"name_s": machine.NAME_S}, "does not answer"),
        ("CLU_TELEMETRY", "note", {"ray": [raylet(says_it_is_off=True)]}, "usage statistics are off"),
        ("CLU_MEMORY", "fix", {"ray": [raylet(limits={"bytes": 8 * GIB})]}, "12.0 GiB, its control group grants 8.0"),
        ("CLU_MEMORY", "fix", {"ray": [raylet(limits={"cpus": 4.0})]}, "8 CPUs"),
        ("CLU_MEMORY", "note", {"ray": [], "limits": {"cpus": 2.0, "bytes": GIB}}, "1.0 GiB of memory and 2.0 of 8"),
        ("CLU_TEMP", "fix", {"ray": [raylet(session_open=True)]}, "every user"),
        ("CLU_GPU", "note", {"environment": {"NVIDIA_TF32_OVERRIDE": "1"}}, "NVIDIA_TF32_OVERRIDE"),
        ("CLU_GPU", "note", {"gpu": {"driver": "absent", "cuda": "13.0"}}, "no NVIDIA driver"),
        ("CLU_GPU", "note", {"gpu": {"driver": "absent", "cuda": None}, "bf16_cpu": True}, "bf16 conv3d is wrong"),
        ("CLU_GPU", "fix", {"gpu": CARDS | {"driver": "failed", "why": "version mismatch"}}, "version mismatch"),
        ("CLU_GPU", "note", {"gpu": {"driver": "failed", "why": "", "cuda": None}}, "nvidia-smi fails"),
        ("CLU_GPU", "fix", {"gpu": CARDS | {"cuda": None, "works": False}}, "without CUDA"),
        ("CLU_GPU", "fix", {"gpu": CARDS | {"cuda": None, "works": None, "driver_cuda": None}}, "does not start"),
        ("CLU_GPU", "fix", {"gpu": CARDS | {"works": False, "driver_cuda": 12080}}, "the driver knows CUDA 12.8"),
        ("CLU_GPU", "fix", {"gpu": CARDS | {"works": False}}, "sees no GPU"),
        ("CLU_GPU", "fix", {"gpu": CARDS | {"cudnn": 91002}}, "9.10.2: bf16 conv3d is silently wrong"),
        ("CLU_GPU", "fix", {"gpu": CARDS | {"cudnn": 91400}, "versions": {"torch": "2.9.0"}}, "4 times slower"),
        ("CLU_GPU", "fix", {"gpu": CARDS | {"cudnn": 8907}}, "cuDNN 8.9.7: no tensors"),
        ("CLU_GPU", "fix", card(compute="Prohibited"), "GPU 1: compute mode"),
        ("CLU_GPU", "fix", card(ecc_errors="3"), "GPU 1: memory errors"),
        ("CLU_GPU", "note", card(ecc="Disabled"), "GPU 1: ECC is off"),
        ("CLU_GPU", "note", card(mig="Enabled"), "GPU 1: MIG is on"),
        ("CLU_GPU", "note", card(persistence="Disabled"), "GPU 1: persistence"),
        ("CLU_GPU", "note", card(driver="570.1"), "2 GPU drivers"),
        ("CLU_GPU", "note", card(name="NVIDIA A100"), "2 kinds of GPUs"),
    ],
)
def test_a_fault_is_found_and_nothing_else(code: str, level: str, changed: dict[str, Any], says: str) -> None:
    found = rules.findings({THIS: healthy(**changed)})
    ((was, text),) = told(found, code)
    assert was == level
    assert says in text
    assert {one.code for one in found if one.level != "ok"} == {code}
    assert all(one.remedy for one in found if one.level == "fix")


@pytest.mark.parametrize(
    "changed",
    [
        {"ray": []},
        {"ray": [auth(in_environment=True, file=None)]},
        {"ray": [auth(file=None)]},
        {"ray": [auth(file={"mode": 0o400, "uid": 0})]},
        {"ray": [raylet(limits={"cpus": 7.5, "bytes": 12 * GIB})]},  # Ray rounds a quota up
        {"disk": {"the storage": None}},
        {"shared_memory": None},
        {"core_bytes": None, "ray": []},
        {"gpu": {"driver": "absent", "cuda": None}},
        {"gpu": CARDS | {"cudnn": 90300}},
        {"gpu": CARDS | {"cudnn": 91500}, "versions": {"torch": "2.9.1"}},
        {"gpu": CARDS | {"driver_cuda": 12080, "cuda": "12.6"}},
        card(ecc="[N/A]", mig="[N/A]", ecc_errors="[N/A]"),
        {"versions": {"ray": "2.61.0rc1"}},
        {"versions": {"python": "3.11.7"}},
    ],
)
def test_what_is_in_order_or_cannot_be_seen_is_not_complained_about(changed: dict[str, Any]) -> None:
    assert not [one for one in rules.findings({THIS: healthy(**changed)}) if one.level != "ok"]


def test_versions_must_be_alike_on_all_nodes() -> None:
    alike = {str(node): healthy() for node in range(3)}
    (well,) = rules.versions(alike)
    assert (well.level, well.where) == ("ok", rules.ALL)
    older = healthy()["versions"] | {"ray": "2.59.0", "petscale": "ffff"}
    del older["torch"]
    found = list(rules.versions({**alike, NODE: healthy(versions=older)}))
    assert {(one.level, one.where) for one in found} == {("fix", NODE)}
    texts = sorted(one.found for one in found)
    assert texts[0] == "petscale ffff, elsewhere 0123456789ab"
    assert texts[1] == "ray 2.59.0, elsewhere 2.60.0"
    assert texts[2] == "torch missing, elsewhere 2.13.0"


def served(*sockets: tuple[str, str, int]) -> dict[str, Any]:
    return healthy(sockets=[{"of": of, "ip": ip, "port": port} for of, ip, port in sockets])


def came(*answers: tuple[int, str]) -> dict[str, list[list[Any]]]:
    return {NODE: [[HEAD, port, what] for port, what in answers]}


@pytest.mark.parametrize(
    ("socket", "what", "level", "says"),
    [
        (("gcs_server", "::", 6379), OPEN, "fix", "gcs_server on port 6379 (all addresses) answers without a token"),
        (("node agent", HEAD, 52365), OPEN, "fix", "(the node's address) answers"),
        (("dashboard", "0.0.0.0", 8265), ASKS, "fix", "not on the loopback"),
        (("dashboard", HEAD, 8265), CLOSED, "fix", "not on the loopback"),
        (("Ray client server", HEAD, 10001), ASKS, "note", "among them the Ray client server"),
        (("gcs_server", "::", 6379), ASKS, "note", "ports 6379: ask for the token"),
        (("dashboard", "0.0.0.0", 44227), METRICS_ONLY, "note", "metrics"),
        (("raylet", "::", 4000), UNTRIED, "note", "did not tell"),
        (("raylet", "::", 4000), CLOSED, "note", "could not be reached"),
        (("worker", "::", 10002), CLOSED, "note", "1 ports of tasks"),
    ],
)
def test_who_is_let_in(socket: tuple[str, str, int], what: str, level: str, says: str) -> None:
    found = list(rules.ports({HEAD: served(socket)}, came((socket[2], what))))
    assert (found[0].code, found[0].level, found[0].where) == ("CLU_PORT_OPEN", level, HEAD)
    assert says in found[0].found
    assert found[0].remedy
    assert [one.level for one in found].count("fix") == (level == "fix")


def test_what_listens_on_the_loopback_alone_is_well() -> None:
    inside = served(("dashboard", "127.0.0.1", 8265), ("Ray client server", "::1", 10001), ("worker", "127.0.0.1", 1))
    (well,) = rules.ports({HEAD: inside}, {})
    assert well.level == "ok"
    assert targets(inside, HEAD) == []


def test_one_open_answer_counts_whoever_asked() -> None:
    probed = {HEAD: [[HEAD, 6379, OPEN]], NODE: [[HEAD, 6379, ASKS], [NODE, 6379, OPEN]]}
    found = list(rules.ports({HEAD: served(("gcs_server", "::", 6379))}, probed))
    assert [one.level for one in found] == ["fix"]


def test_a_public_address_is_named() -> None:
    exposed = served(("gcs_server", "::", 6379)) | {"addresses": ["8.8.8.8"]}
    (note,) = rules.ports({HEAD: exposed}, came((6379, ASKS)))
    assert "public address" in note.remedy


@pytest.mark.parametrize(
    ("offsets", "level"),
    [
        ({"a": (-0.02, 0.03), "b": (-0.05, 0.05)}, "ok"),
        ({"a": (-0.5, 0.3), "b": (-0.2, 0.6)}, "ok"),
        ({"a": (-0.02, 0.03), "b": (0.4, 0.5)}, "note"),
        ({"a": (-0.02, 0.03), "b": (-9.0, -8.0)}, "fix"),
        ({"a": (-0.02, 0.03), "b": (-3.0, 4.0)}, "note"),
        ({"a": (-0.02, 0.03)}, "ok"),
    ],
)
def test_clocks(offsets: dict[str, tuple[float, float]], level: str) -> None:
    assert rules.skew(offsets).level == level


def test_a_clock_is_bounded_however_slow_the_answer() -> None:
    """The true offset lies within the bounds, and the fastest round decides how close they are."""
    waits = iter([0.2, 0.02, 0.1])

    def ask(function: Callable[..., Any]) -> Mapping[str, Any]:
        wait = next(waits)
        time.sleep(wait / 2)
        now = function()
        time.sleep(wait / 2)
        return {HEAD: now, NODE: now + 2.5}

    bounds = doctor._clock_offsets(ask)
    assert bounds[HEAD][0] <= 0 <= bounds[HEAD][1]
    assert bounds[NODE][0] <= 2.5 <= bounds[NODE][1]
    assert bounds[NODE][1] - bounds[NODE][0] < 0.1
    assert rules.skew(bounds).level == "fix"


class Answers(http.server.BaseHTTPRequestHandler):
    """A server that answers as its class says."""

    status, kind = 200, "application/json"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def http_server(status: int, kind: str) -> Iterator[int]:
    handler = type("Handler", (Answers,), {"status": status, "kind": kind})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@contextmanager
def grpc_server(method: str, code: grpc.StatusCode | None) -> Iterator[int]:
    service, name = method.strip("/").split("/")

    def answer(request: bytes, context: Any) -> bytes:
        if code:
            context.abort(code, "no")
        return b""

    handler = grpc.method_handlers_generic_handler(service, {name: grpc.unary_unary_rpc_method_handler(answer)})
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[handler])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("status", "kind", "came"),
    [
        (401, "application/json", ASKS),
        (403, "text/plain", ASKS),
        (200, "application/json", OPEN),
        (404, "text/plain; charset=utf-8", OPEN),
        (200, "text/plain; version=0.0.4; charset=utf-8", METRICS_ONLY),
        (200, "application/openmetrics-text; version=1.0.0", METRICS_ONLY),
    ],
)
def test_probing_http(status: int, kind: str, came: str) -> None:
    with http_server(status, kind) as port:
        assert port_probe._probe_port(("127.0.0.1", port)) == came
    assert port_probe._probe_port(("127.0.0.1", port)) == CLOSED


@pytest.mark.parametrize(
    ("method", "code", "came"),
    [
        (QUESTIONS[0], None, OPEN),
        (QUESTIONS[-1], None, OPEN),
        (QUESTIONS[1], grpc.StatusCode.INVALID_ARGUMENT, OPEN),
        (QUESTIONS[1], grpc.StatusCode.UNAUTHENTICATED, ASKS),
        ("/ray.rpc.ObjectManagerService/Push", None, UNTRIED),
    ],
)
def test_probing_grpc(method: str, code: grpc.StatusCode | None, came: str) -> None:
    with grpc_server(method, code) as port:
        assert port_probe._probe_port(("127.0.0.1", port)) == came


def test_every_node_probes_itself_and_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_probe, "_probe_port", lambda target: OPEN)
    ports = {f"192.0.2.{n}": [(f"192.0.2.{n}", 1)] for n in range(10, 14)}
    probed = []
    for node in ports:
        monkeypatch.setattr(port_probe, "addresses", lambda node=node: ["10.0.0.1", node])
        answers = port_probe.probe(ports)
        assert [node, 1, OPEN] in answers
        probed += [ip for ip, _, _ in answers]
    assert sorted(probed) == sorted([*ports] * 2)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["/site-packages/ray/core/src/ray/gcs/gcs_server", "--log_dir=x"], "gcs_server"),
        (
            ["/x/ray/raylet/raylet", "--node_ip_address=x", "--dashboard_agent_command=python ray/dashboard/agent.py"],
            "raylet",
        ),
        (["python", "-u", "/x/ray/autoscaler/v2/monitor.py", "--logs-dir"], "autoscaler"),
        (["python", "/x/ray/dashboard/dashboard.py", "--host=x"], "dashboard"),
        (["ray-dashboard-JobHead-0 (python)"], "dashboard"),
        (["python", "-m", "ray.util.client.server", "--host=x"], "Ray client server"),
        (["ray::DashboardAgent"], "node agent"),
        (["ray::RuntimeEnvAgent"], "runtime environment agent"),
        (["ray::IDLE"], machine.WORKER),
        (["python", "train.py"], ""),
        ([], ""),
    ],
)
def test_a_service_is_known_by_its_command_line(words: list[str], kind: str) -> None:
    assert machine.service(words) == kind


def test_limits_are_those_of_the_closest_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "PROCESSES", tmp_path / "proc")
    (tmp_path / "proc" / "7").mkdir(parents=True)
    line = tmp_path / "proc" / "7" / "cgroup"
    assert machine.cgroup_limits("7") == {}

    line.write_text("0::/slurm/job_1\n")  # version 2
    job = tmp_path / "cgroup" / "slurm" / "job_1"
    job.mkdir(parents=True)
    (job / "memory.max").write_text("max\n")
    (job / "cpu.max").write_text("150000 100000\n")
    (job.parent / "memory.max").write_text("1048576\n")
    (job.parent / "cpu.max").write_text("max 100000\n")
    assert machine.cgroup_limits("7") == {"bytes": 2**20, "cpus": 1.5}

    line.write_text("4:memory:/docker/a\n1:cpu,cpuacct:/docker/a\n")  # version 1
    for name, content in {
        "memory/docker/a/memory.limit_in_bytes": "2097152",
        "memory/memory.limit_in_bytes": str(2**63 - 4096),
        "cpu/docker/a/cpu.cfs_quota_us": "200000",
        "cpu/docker/a/cpu.cfs_period_us": "100000",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
    }.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert machine.cgroup_limits("7") == {"bytes": 2**21, "cpus": 2.0}


@pytest.mark.parametrize(
    ("above", "below", "is_open"), [(0o755, 0o777, True), (0o755, 0o700, False), (0o700, 0o777, False)]
)
def test_a_folder_is_open_if_all_above_it_are(above: int, below: int, is_open: bool) -> None:
    folder = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else pytest.skip("no folder that all users can enter")
    outer = folder / f"p-{secrets.token_hex(4)}"
    (outer / "session").mkdir(parents=True)
    try:
        (outer / "session").chmod(below)
        outer.chmod(above)
        assert machine.open_to_others(outer / "session") is is_open
    finally:
        shutil.rmtree(outer)
    assert not machine.open_to_others(outer / "session")


def test_a_core_limit_is_read() -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, {})); from petscale.doctor import machine; "
    hard = psutil.Process().rlimit(psutil.RLIMIT_CORE)[1]
    read = subprocess.run(
        [sys.executable, "-c", code.format(hard) + "print(machine.core_limit('self'))"], capture_output=True, text=True
    )
    assert read.stdout.strip() == "0", read.stderr
    assert machine.core_limit("0") is None


def test_cards_are_read() -> None:
    table = "NVIDIA H200, 580.65.06, Enabled, Disabled, Enabled, Default, 0\n\nan unknown line\n"
    assert machine.cards(table) == [CARD]


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (True, ["bash", "-c", "export RAY_AUTH_TOKEN=0123456789abcdef0123; ray start"]),
        (False, ["bash", "-c", "export RAY_AUTH_TOKEN=$(cat token); ray start"]),
        (False, ["bash", "-c", "RAY_AUTH_TOKEN_PATH=~/.ray/auth_token ray start"]),
    ],
)
def test_a_token_in_a_command_line(shown: bool, line: list[str]) -> None:
    assert bool(machine._TOKEN_SHOWN.search(" ".join(line))) is shown


def test_facts_cross_to_another_machine_and_name_no_folder(tmp_path: Path) -> None:
    found = machine.facts(tmp_path)
    assert json.loads(json.dumps(found)) == found
    assert str(tmp_path.parent) not in json.dumps(found)
    assert f"{Path.home()}/" not in json.dumps(found)
    assert found["disk"]["the storage"]["total"] > 0
    assert found["versions"]["ray"]


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Ray and GPU, with enough space."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(()))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(machine, "space", lambda folder: PLENTY)


def test_a_laptop_ends_well(laptop: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = tmp_path / "cohorts"
    storage.mkdir()
    doctor.run(storage)
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert "This machine only" in first
    assert last == "Nothing to fix."
    assert {line.split()[0] for line in lines} <= {"ok", "note"}
    assert all(line.split()[1].startswith("CLU_") for line in lines)
    assert str(tmp_path) not in "".join(lines)
    assert not list(storage.iterdir())


def test_a_storage_that_is_not_there_is_to_fix(
    laptop: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError) as refused:
        doctor.run(tmp_path / "nowhere")
    assert refused.value.code == "CLU_DOCTOR"
    assert "1 to fix (CLU_STORAGE)" in refused.value.found
    assert "fix CLU_STORAGE this machine: nowhere: cannot be written to" in capsys.readouterr().out


def test_a_terminal_gets_a_table(
    laptop: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    doctor.run()
    out = capsys.readouterr().out
    assert "what to do" in out
    assert "\x1b[32mok" in out


class Cluster:
    """Stands in for a joined one: nodes of made-up facts; the functions asked for are kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, machines: dict[str, dict[str, Any]]) -> None:
        self.machines = machines
        self.asked: list[str] = []
        monkeypatch.setenv("RAY_ADDRESS", f"{HEAD}:6379")
        monkeypatch.delenv(STORAGE, raising=False)
        monkeypatch.setattr(doctor, "_joined", nullcontext)
        monkeypatch.setattr(doctor, "on_every_node", self.on_every_node)
        monkeypatch.setattr(doctor, "check_shared", self.check_shared)

    def on_every_node(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        self.asked.append(function.__name__)
        if function is machine.facts:
            return self.machines
        return {node: [] if function is port_probe.probe else function(*arguments) for node in self.machines}

    def check_shared(self, folder: Path) -> None:
        raise InputError("CLU_STORAGE", where=folder.name, found=f"not seen by {NODE}", remedy="mount it on every node")


def test_a_cluster_is_asked_node_by_node(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(monkeypatch, {HEAD: healthy(), NODE: healthy(token_shown=True, addresses=[NODE])})
    with pytest.raises(InputError) as refused:
        doctor.run(Path("/somewhere/cohorts"))
    assert cluster.asked[:2] == ["facts", "probe"]
    assert "2 to fix (CLU_STORAGE, CLU_TOKEN)" in refused.value.found
    out = capsys.readouterr().out
    assert f"fix CLU_TOKEN {NODE}: " in out
    assert f"fix CLU_STORAGE all nodes: cohorts: not seen by {NODE}; mount it on every node" in out
    assert "ok CLU_CLOCK all nodes" in out
    assert "somewhere" not in out
    assert [one.level for one in doctor.check() if one.code == "CLU_STORAGE"] == ["note"]
    monkeypatch.setenv(STORAGE, "/somewhere/else")
    assert [one.found for one in doctor.check() if one.code == "CLU_STORAGE"] == [f"else: not seen by {NODE}"]


def test_a_cluster_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_server(200, "") as port:
        pass
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(InputError) as refused:
        doctor.check()
    assert refused.value.code == "CLU_DOCTOR"
    assert refused.value.where == "RAY_ADDRESS"


def test_a_silent_name_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(machine, "NAME_S", 0.05)
    monkeypatch.setattr("socket.getnameinfo", lambda *_: let_go.wait(60))
    assert machine.name_s() >= 0.05
    let_go.set()
    monkeypatch.setattr(machine, "NAME_S", 60.0)
    assert machine.name_s() < 60


def test_what_is_alike_on_all_nodes_is_said_once() -> None:
    note = Finding("CLU_GPU", "note", HEAD, "ECC is off")
    other = Finding("CLU_GPU", "fix", NODE, "no driver")
    machines = {HEAD: healthy(), NODE: healthy()}
    assert rules.together([note, other], machines) == [note, other]
    (once,) = rules.together([note, replace(note, where=NODE)], machines)
    assert once == replace(note, where=rules.ALL)
    (twice,) = rules.together([note, replace(note, where=NODE)], {**machines, "192.0.2.12": healthy()})
    assert twice.where == f"{HEAD}, {NODE}"


# What runs in a network and process namespace of its own, so that nothing of it can be reached or left behind.
_HEAD = """
import json, os, subprocess, sys, time
from dataclasses import asdict
from pathlib import Path
for words in ("link set lo up", f"address add {sys.argv[1]}/24 dev lo", f"route add default dev lo src {sys.argv[1]}"):
    subprocess.run(["ip", *words.split()], check=True)
ray = Path(sys.executable).with_name("ray")
with open("log", "w") as log:
    subprocess.Popen([ray, "start", "--head", "--block", *sys.argv[2:]], stdout=log, stderr=log)
from petscale import doctor
late = {8265, 10001, 44217, 52365}  # of the dashboard, the client server, the autoscaler and the node agent
until = time.monotonic() + 90
found = doctor.facts()
while not late <= {one["port"] for one in found["sockets"]}:
    assert time.monotonic() < until, Path("log").read_text()
    time.sleep(0.5)
    found = doctor.facts()
print(json.dumps({"facts": found, "findings": [asdict(one) for one in doctor.check()]}))
"""
_SPACE = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Callable[..., tuple[dict[str, Any], list[Finding]]]]:
    """Start a Ray head apart from everything, examine it, and end it."""
    if subprocess.run([*_SPACE, "ip", "link"], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces, and iproute2")
    folder = Path("/tmp") / f"p-{secrets.token_hex(4)}"  # short: Ray's sockets lie below it
    folder.mkdir(mode=0o700)
    (folder / "ray_bootstrap_config.yaml").write_text("{}")  # or its dashboard looks for a cloud before it answers
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(secrets.token_hex(32))

    def examine(mode: str, *options: str) -> tuple[dict[str, Any], list[Finding]]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "HOME": str(folder),
            "RAY_AUTH_MODE": mode,
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            **SILENT,
            "OMP_NUM_THREADS": "1",
        }
        words = [f"--temp-dir={folder}/ray", "--port=0", "--num-cpus=1", "--object-store-memory=80000000", *options]
        ended = subprocess.run(
            [*_SPACE, sys.executable, "-c", _HEAD, HEAD, *words],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert ended.returncode == 0, ended.stderr
        said = json.loads(ended.stdout.splitlines()[-1])
        return said["facts"], [Finding(**one) for one in said["findings"]]

    yield examine
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_head_with_a_token_lets_nobody_in(head: Callable[..., tuple[dict[str, Any], list[Finding]]]) -> None:
    facts, found = head("token")
    (ray,) = facts["ray"]
    assert ray["auth"]["mode"] == "token"
    assert ray["auth"]["file"]["mode"] == 0o600
    assert ray["store_bytes"] == 80_000_000
    assert ray["believes_cpus"] == 1
    assert not ray["telemetry"]
    assert not ray["says_it_is_off"]
    assert not ray["session_open"], "Ray's folder is open, the one above it is not"
    listens = {(one["of"], one["ip"]) for one in facts["sockets"]}
    assert ("dashboard", "127.0.0.1") in listens
    assert ("gcs_server", "::") in listens
    assert ("Ray client server", HEAD) in listens
    assert not told(found, "CLU_TOKEN")
    ports = told(found, "CLU_PORT_OPEN")
    assert {level for level, _ in ports} == {"note"}
    assert any("10001" in text and "ask for the token" in text for _, text in ports)
    assert any("44217" in text and "metrics" in text for _, text in ports)


@pytest.mark.slow
def test_a_head_without_a_token_is_to_fix(head: Callable[..., tuple[dict[str, Any], list[Finding]]]) -> None:
    facts, found = head("disabled", "--dashboard-host=0.0.0.0")
    assert facts["ray"][0]["auth"]["mode"] == "disabled"
    assert ("fix", "RAY_AUTH_MODE is disabled: whoever reaches this Ray runs code on it") in told(found, "CLU_TOKEN")
    open_ = [text for level, text in told(found, "CLU_PORT_OPEN") if level == "fix"]
    services = {one["of"] for one in facts["sockets"]} - {"autoscaler", machine.WORKER}
    assert len(services) == 6
    for service in services:
        assert any(text.startswith(f"the {service} on port") and "without a token" in text for text in open_), service
