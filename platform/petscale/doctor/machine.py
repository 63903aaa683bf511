"""What a machine is like, as one JSON object: versions, Ray's processes and sockets, limits, free space, GPUs.

They are read where a Linux machine and Ray 2.60 keep them; a fact that cannot be seen is left out.  Nothing is rated
here, the token itself is not read, and of a path only the last component is kept.
"""

import ipaddress
import json
import math
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from petscale.cluster.installation import versions

Facts = Mapping[str, Any]

ANYWHERE = ("0.0.0.0", "::")  # noqa: S104  (looked for, not listened on)
NAME_S = 2.0  # a name server that lives answers at once, and glibc asks a dead one for ten seconds
WORKER = "worker"  # tasks, actors and job drivers: the services below are Ray's own
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (where Ray keeps its objects)
CGROUPS = Path("/sys/fs/cgroup")
PROCESSES = Path("/proc")

_SERVICES = (  # how a command line tells what it serves
    (r"/gcs_server$", "gcs_server"),
    (r"/raylet$", "raylet"),
    (r"ray/dashboard/dashboard\.py$|^ray-dashboard-", "dashboard"),
    (r"ray/autoscaler/(_private|v2)/monitor\.py$", "autoscaler"),
    (r"^ray\.util\.client\.server", "Ray client server"),
    (r"^ray::DashboardAgent|ray/dashboard/agent\.py$", "node agent"),
    (r"^ray::RuntimeEnvAgent|ray/_private/runtime_env/agent/main\.py$", "runtime environment agent"),
    (r"^ray::", WORKER),
)
_TOKEN_SHOWN = re.compile(r"""RAY_AUTH_TOKEN=["']?[0-9A-Za-z_-]{16,}""")

_SMI = {  # our name -> nvidia-smi's
    "name": "name",
    "driver": "driver_version",
    "ecc": "ecc.mode.current",
    "mig": "mig.mode.current",
    "persistence": "persistence_mode",
    "compute": "compute_mode",
    "ecc_errors": "ecc.errors.uncorrected.volatile.total",
}
# In a process of its own: Ray hides the GPUs from a task that asked for none, and a context would stay in this one.
_TORCH = """
import ctypes, json, warnings
warnings.simplefilter("ignore")
import torch
driver = ctypes.c_int(0)
try:
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(driver))
except OSError:
    pass
print(json.dumps({
    "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
    "works": torch.cuda.is_available(), "driver_cuda": driver.value,
}))
"""


def facts(storage: Path | None = None) -> dict[str, Any]:
    """Gather what this machine is like; takes a second, starts nothing that stays.

    Args:
        storage: a folder whose free space counts too.
    """
    processes = list(_ray_processes())
    raylets = [process for process, kind in processes if kind == "raylet"]
    return {
        "versions": versions(),
        "ray": [seen for process in raylets if (seen := _raylet(process))],
        "sockets": [one for process, kind in processes for one in _sockets(process, kind)],
        "addresses": addresses(),
        "name_s": name_s(),
        "token_shown": any(_TOKEN_SHOWN.search(" ".join(words)) for words in _command_lines()),
        "token_file": _secret(Path.home() / ".ray" / "auth_token"),
        "disk": {"the temporary folder": space(Path(tempfile.gettempdir()))}
        | ({"the storage": space(storage)} if storage else {}),
        "shared_memory": space(SHARED_MEMORY),
        "cpus": os.cpu_count() or 1,
        "limits": cgroup_limits("self"),
        "core_bytes": core_limit("self"),
        "gpu": gpu(),
        "environment": {name: os.environ[name] for name in ("NVIDIA_TF32_OVERRIDE",) if name in os.environ},
        "bf16_cpu": "avx512_bf16" in _first_lines(PROCESSES / "cpuinfo"),
    }


def clock() -> float:
    """This machine's time, s since 1970."""
    return time.time()


def addresses() -> list[str]:
    """This machine's addresses that others may reach: neither loopback nor link-local; IPv4 first."""
    found = {
        one.address
        for interface in psutil.net_if_addrs().values()
        for one in interface
        if one.family in (socket.AF_INET, socket.AF_INET6)
    }
    known = sorted((ipaddress.ip_address(text.partition("%")[0]) for text in found), key=lambda a: (a.version, str(a)))
    return [str(one) for one in known if not (one.is_loopback or one.is_link_local)]


def name_s() -> float:
    """How long this machine takes to tell the name, or that there is none, of one of its addresses, s; at most NAME_S.

    Asked as torch asks for each connection between workers: for the IPv4 address inside an IPv6 one, which /etc/hosts
    answers only where it is written in this form.
    """
    address = next((one for one in addresses() if ":" not in one), "127.0.0.1")

    def ask() -> None:
        with suppress(OSError):
            socket.getnameinfo((f"::ffff:{address}", 0, 0, 0), 0)

    begin = time.monotonic()
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(NAME_S)
    return time.monotonic() - begin


def service(words: Sequence[str]) -> str:
    """What a process of Ray serves, from its command line; empty if it is none of Ray's."""
    # Not the whole line: a raylet's names its agents, too.
    for word in words[:4]:
        for pattern, kind in _SERVICES:
            if re.search(pattern, word):
                return kind
    return ""


def _ray_processes() -> Iterator[tuple[psutil.Process, str]]:
    """Ray's processes in this network namespace, and what was started by them (job drivers and what these start)."""
    here = _namespace("self")
    kinds: dict[int, str] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if kind := service(process.cmdline()) or (WORKER if process.ppid() in kinds else ""):
                kinds[process.pid] = kind  # parents come before their children, for pids count up
                if _namespace(str(process.pid)) == here:
                    yield process, kind


def _namespace(pid: str) -> str:
    """Which network a process sees; empty where that cannot be told."""
    try:
        return os.readlink(PROCESSES / pid / "ns" / "net")
    except OSError:
        return ""


def _sockets(process: psutil.Process, kind: str) -> list[dict[str, Any]]:
    try:
        found = process.net_connections("inet")
    except psutil.Error:
        return []
    listening = {(one.laddr.ip.removeprefix("::ffff:"), one.laddr.port) for one in found if one.status == "LISTEN"}
    return [{"of": kind, "ip": ip, "port": port} for ip, port in sorted(listening)]


def _command_lines() -> Iterator[list[str]]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            yield process.cmdline()


def _raylet(process: psutil.Process) -> dict[str, Any]:
    """What a raylet was told at its start; without its environment where that is another user's; empty if it ended."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return {}
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    listed = options.get("static_resource_list", "").split(",")
    resources = dict(zip(listed[::2], listed[1::2], strict=False))
    session = Path(options.get("session_dir", ""))
    store = int(options.get("object_store_memory", 0))
    found: dict[str, Any] = {
        "session": session.name,
        "store_bytes": store,
        "store_in_memory": Path(options.get("plasma_directory", "")) == SHARED_MEMORY,
        "believes_bytes": store + int(float(resources.get("memory", 0))),
        "believes_cpus": float(resources.get("CPU", 0)),
        "limits": cgroup_limits(str(process.pid)),
        "core_bytes": core_limit(str(process.pid)),
        "session_open": open_to_others(session),
        "disk": space(session),
    }
    with suppress(psutil.Error):
        environment = process.environ()
        home = Path(environment.get("HOME", str(Path.home())))
        found["auth"] = {
            "mode": environment.get("RAY_AUTH_MODE", ""),
            "in_environment": "RAY_AUTH_TOKEN" in environment,
            "file": _secret(Path(environment.get("RAY_AUTH_TOKEN_PATH", home / ".ray" / "auth_token"))),
            "uid": process.uids().real,
        }
        config = Path(environment.get("RAY_USAGE_STATS_CONFIG_PATH", home / ".ray" / "config.json"))
        found["telemetry"] = environment.get("RAY_USAGE_STATS_ENABLED", "") != "0" and not _switched_off(config)
        found["says_it_is_off"] = "RAY_USAGE_STATS_REPORT_URL" not in environment
    return found


def _secret(path: Path) -> dict[str, int] | None:
    """Mode and owner of a file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid}


def _switched_off(config: Path) -> bool:
    try:
        return json.loads(config.read_bytes()).get("usage_stats") is False
    except (OSError, ValueError, AttributeError):
        return False


def open_to_others(folder: Path) -> bool:
    """Whether other users of the machine can look into a folder: it and all above let them pass."""
    try:
        modes = [path.stat().st_mode for path in (folder, *folder.resolve().parents)]
    except OSError:
        return False
    return all(mode & stat.S_IXOTH for mode in modes) and bool(modes[0] & (stat.S_IROTH | stat.S_IWOTH))


def space(folder: Path) -> dict[str, int] | None:
    """Free and total bytes where a folder lies; None if it is not there."""
    try:
        found = shutil.disk_usage(folder)
    except OSError:
        return None
    return {"free": found.free, "total": found.total}


def core_limit(pid: str) -> int | None:
    """Largest core dump of a process in bytes, -1 for any size; None where that cannot be seen."""
    found = re.search(r"^Max core file size +(\S+)", _first_lines(PROCESSES / pid / "limits"), flags=re.M)
    return None if found is None else -1 if found[1] == "unlimited" else int(found[1])


def cgroup_limits(pid: str) -> dict[str, float]:
    """The least memory and CPUs that the control groups of a process, version 1 or 2, grant; only what is limited.

    A group's parents limit it too, and Ray reads the topmost alone.

    Returns:
        ``bytes`` and ``cpus``.
    """
    least: dict[str, float] = {}
    for line in _first_lines(PROCESSES / pid / "cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        for controller in controllers.split(","):  # version 2 has one line, without controllers
            group = CGROUPS / controller / name.lstrip("/")
            for folder in (group, *group.parents):
                if not folder.is_relative_to(CGROUPS / controller):
                    break
                for key, value in _limits_of(folder).items():
                    least[key] = min(value, least.get(key, value))
    return least


def free_memory() -> int:
    """Bytes that new processes may take: what the machine has free, and no more than their control groups grant."""
    return int(min(psutil.virtual_memory().available, cgroup_limits("self").get("bytes", math.inf)))


def _limits_of(folder: Path) -> dict[str, float]:
    def words(name: str) -> list[str]:
        return _first_lines(folder / name).split()

    found: dict[str, float] = {}
    for memory in (*words("memory.max"), *words("memory.limit_in_bytes")):
        if memory.isdigit() and int(memory) < psutil.virtual_memory().total:  # version 1 says 2^63 for no limit
            found["bytes"] = int(memory)
    cpu = words("cpu.max") or [*words("cpu.cfs_quota_us"), *words("cpu.cfs_period_us")]
    if len(cpu) == 2 and cpu[0].isdigit() and int(cpu[1]):
        found["cpus"] = int(cpu[0]) / int(cpu[1])
    return found


def gpu() -> dict[str, Any]:
    """What the driver and torch say of the GPUs.

    Returns:
        ``driver``: "absent", "failed" (``why`` says more) or "works"; ``cards``: what nvidia-smi says of each; and of
        torch ``cuda`` and ``cudnn`` (versions or None), where there is a driver also ``works`` and ``driver_cuda``
        (1000 major + 10 minor), None if torch does not start.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        import torch

        return {"driver": "absent", "cuda": torch.version.cuda, "cudnn": None}
    told = _output([command, f"--query-gpu={','.join(_SMI.values())}", "--format=csv,noheader,nounits"])
    asked = _output([sys.executable, "-c", _TORCH])
    silent = {"cuda": None, "cudnn": None, "works": None, "driver_cuda": None}
    torch_says = json.loads(asked[1]) if asked[0] == 0 else silent
    if told[0]:
        return {"driver": "failed", "why": told[1].strip().partition("\n")[0][:120], **torch_says}
    return {"driver": "works", "cards": cards(told[1]), **torch_says}


def cards(table: str) -> list[dict[str, str]]:
    """Read nvidia-smi's answer: a line for each card."""
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines() if line.strip()]
    return [dict(zip(_SMI, row, strict=True)) for row in rows if len(row) == len(_SMI)]


def _output(command: Sequence[str]) -> tuple[int, str]:
    """Exit status and standard output of a command that may take a minute."""
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        ended = subprocess.run(command, env=visible, capture_output=True, text=True, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return 1, "it does not answer"
    return ended.returncode, ended.stdout


def _first_lines(path: Path) -> str:
    try:
        with path.open(errors="replace") as file:
            return file.read(16384)
    except OSError:
        return ""
