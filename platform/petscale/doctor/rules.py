"""Rules that turn facts into findings: what is well, what is worth knowing, what to fix; one function per code.

The limits are here, and the known faults of drivers, cuDNN and Ray with their versions.  A fact that could not be seen
leads to no finding, or to a note that says so.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import permutations
from typing import Any, Literal

from petscale.cluster.nodes import SILENT
from petscale.doctor.machine import NAME_S, SHARED_MEMORY, WORKER, Facts
from petscale.doctor.port_probe import ASKS, CLOSED, METRICS_ONLY, OPEN, UNTRIED, exposed, targets

GIB = 2**30
LEAST_FREE_BYTES, LEAST_FREE_SHARE = 10 * GIB, 0.05  # Ray places no objects on a disk that is 95 % full
SKEW_FIX_S, SKEW_NOTE_S = 1.0, 0.1
PRIVATE_STORE_BYTES = 100 * 2**20  # what `petscale train` on one machine asks of /dev/shm
OLDEST_RAY = (2, 60)
_SILENT = " ".join(f"{name}={value}" for name, value in SILENT.items())

Level = Literal["ok", "note", "fix"]
Machines = Mapping[str, Facts]  # by address, or by THIS alone
THIS = "this machine"
ALL = "all nodes"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Args:
        code: stable, of the family ``CLU_``.
        level: "fix" makes the command end in exit code 2; "note" is worth knowing; "ok" was looked at and is well.
        where: a node's address, or "this machine".
        found: what was there; no path beyond its last component.
        remedy: what to do about it; empty if nothing is to be done.
    """

    code: str
    level: Level
    where: str
    found: str
    remedy: str = ""


Said = tuple[Level, str, str]  # level, found, remedy


def findings(machines: Machines) -> list[Finding]:
    """Apply every rule that looks at machines alone."""
    told = [*versions(machines), *ray_version(machines), *alike_gpus(machines)]
    for code, rule, well in PER_MACHINE:
        said = [Finding(code, *_placed(where, one)) for where, machine in machines.items() for one in rule(machine)]
        told += said or [Finding(code, "ok", _everywhere(machines), well)]
    return told


def together(found: Sequence[Finding], machines: Machines) -> list[Finding]:
    """Say once what is alike on several nodes."""
    places: dict[Finding, list[str]] = {}
    for one in found:
        places.setdefault(replace(one, where=""), []).append(one.where)
    return [replace(one, where=ALL if {*machines} <= {*where} else ", ".join(where)) for one, where in places.items()]


def _placed(where: str, said: Said) -> tuple[Level, str, str, str]:
    level, found, remedy = said
    return level, where, found, remedy


def _everywhere(machines: Machines) -> str:
    return THIS if set(machines) == {THIS} else ALL


def versions(machines: Machines) -> Iterator[Finding]:
    """Python, the libraries and petscale's own code (a digest) must be alike on all nodes: ``CLU_VERSIONS``."""
    names = list(dict.fromkeys(name for machine in machines.values() for name in machine["versions"]))
    odd = False
    for name in names:
        held = {where: machine["versions"].get(name, "missing") for where, machine in machines.items()}
        usual, _ = Counter(held.values()).most_common(1)[0]
        for where, version in held.items():
            if version != usual:
                odd = True
                remedy = "install the same versions everywhere (constraints.txt), then start the cluster again"
                if name == "petscale":
                    remedy = "send the same code to every node (`petscale submit` does), or install it again"
                yield Finding("CLU_VERSIONS", "fix", where, f"{name} {version}, elsewhere {usual}", remedy)
    if not odd:
        first = next(iter(machines.values()))["versions"]
        alike = "" if _everywhere(machines) == THIS else "alike: "
        told = ", ".join(f"{name} {version}" for name, version in first.items())
        yield Finding("CLU_VERSIONS", "ok", _everywhere(machines), alike + told)


def ray_version(machines: Machines) -> Iterator[Finding]:
    """A Ray with known holes: ``CLU_RAY``."""
    well = True
    for where, machine in machines.items():
        version = machine["versions"].get("ray", "")
        if version and _numbers(version) < OLDEST_RAY:
            well = False
            known = "open to CVE-2025-62593 (before 2.52), CVE-2026-27482 (before 2.54) or untried with token and ports"
            yield Finding("CLU_RAY", "fix", where, f"Ray {version}: {known}", "install the Ray of constraints.txt")
    if well:
        yield Finding("CLU_RAY", "ok", _everywhere(machines), "no version of Ray with known holes")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def token(machine: Facts) -> Iterator[Said]:
    """Whoever has no token must not get in: ``CLU_TOKEN``."""
    again = "stop the cluster, `ray get-auth-token --generate`, start every node with RAY_AUTH_MODE=token exported"
    if machine["token_shown"]:
        shown = "the token stands in a command line, which every user of the machine can read"
        yield "fix", shown, "make a new token and name its file with RAY_AUTH_TOKEN_PATH"
    for raylet in machine["ray"]:
        auth = raylet.get("auth")
        if auth is None:
            yield "note", "Ray runs here as another user, and its settings cannot be read", "run doctor as that user"
        elif auth["mode"] != "token":
            mode = auth["mode"] or "not set"
            yield "fix", f"RAY_AUTH_MODE is {mode}: whoever reaches this Ray runs code on it", again
        elif not auth["in_environment"] and auth["file"]:
            if auth["file"]["mode"] & 0o077:
                readable = f"the token file has mode {auth['file']['mode']:04o}: others can read it"
                yield "fix", readable, "chmod 600 the token file; if others have an account here, make a new token"
            if auth["file"]["uid"] not in (auth["uid"], 0):
                yield "fix", "the token file belongs to another user", "make a token of the user who runs Ray"
    if not machine["ray"] and machine["token_file"] and machine["token_file"]["mode"] & 0o077:
        yield "note", "others can read the token file auth_token", "chmod 600 ~/.ray/auth_token"


def disk(machine: Facts) -> Iterator[Said]:
    """Free space of the temporary folder, Ray's session folders and the storage: ``CLU_DISK``."""
    places = [*machine["disk"].items(), *(("Ray's session folder", raylet["disk"]) for raylet in machine["ray"])]
    for name, held in places:
        if held is None:
            continue
        share = held["free"] / max(held["total"], 1)
        if held["free"] < LEAST_FREE_BYTES or share < LEAST_FREE_SHARE:
            left = f"{name} has {held['free'] / GIB:.1f} GiB free ({share:.0%})"
            yield "fix", left, "free some space: Ray stops placing objects when a disk is 95 % full"


def shared_memory(machine: Facts) -> Iterator[Said]:
    """Ray's objects belong into memory that all processes share: ``CLU_SHM``."""
    held, name = machine["shared_memory"], str(SHARED_MEMORY)
    remedy = f"give {name} more (docker: --shm-size; Kubernetes: an emptyDir of medium Memory), or Ray a smaller store"
    for raylet in machine["ray"]:
        if not raylet["store_in_memory"]:
            yield "fix", "Ray keeps its objects on a disk, for shared memory is too small: slow", remedy
        elif held and held["total"] < raylet["store_bytes"]:
            short = f"{name} has {held['total'] / GIB:.1f} GiB, Ray's object store {raylet['store_bytes'] / GIB:.1f}"
            yield "fix", short, remedy
    if not machine["ray"] and held and held["free"] < PRIVATE_STORE_BYTES:
        left = f"{name} has {held['free'] / 2**20:.0f} MiB free, training asks for {PRIVATE_STORE_BYTES / 2**20:.0f}"
        yield "note", left, remedy


def cores(machine: Facts) -> Iterator[Said]:
    """A core dump holds voxels and the token: ``CLU_CORES``."""
    dumped = "a crash writes its memory, patients' voxels and the token included, into a core file"
    if any(raylet["core_bytes"] for raylet in machine["ray"]):
        yield "fix", f"core dumps are on in Ray's processes: {dumped}", "`ulimit -c 0` before `ray start`"
    elif not machine["ray"] and machine["core_bytes"]:
        yield "note", f"core dumps are on: {dumped}", "`ulimit -c 0` before petscale"


def telemetry(machine: Facts) -> Iterator[Said]:
    """Ray reports its use to its makers unless told not to: ``CLU_TELEMETRY``."""
    if any(raylet.get("telemetry") for raylet in machine["ray"]):
        yield "fix", "Ray's usage statistics are on", f"start every node with {_SILENT} exported"
    elif any(raylet.get("says_it_is_off") for raylet in machine["ray"]):
        yield "note", "Ray told its makers, once, that its usage statistics are off", f"export {_SILENT}"


def names(machine: Facts) -> Iterator[Said]:
    """A name server that does not answer: ``CLU_NAMES``."""
    if machine["name_s"] >= NAME_S:
        found = "the name server does not answer: each connection between workers waits ten seconds or more for a name"
        yield (
            "note",
            found,
            "correct /etc/resolv.conf, or write each node into /etc/hosts, as `::ffff:192.0.2.11 node1`",
        )


def memory(machine: Facts) -> Iterator[Said]:
    """Control groups that grant less than what is believed: ``CLU_MEMORY``."""
    for raylet in machine["ray"]:
        limits = raylet["limits"]
        if limits.get("bytes", raylet["believes_bytes"]) < raylet["believes_bytes"]:
            less = f"Ray counts on {raylet['believes_bytes'] / GIB:.1f} GiB, its control group grants"
            remedy = "start Ray with --memory and --object-store-memory that fit, or grant more"
            yield "fix", f"{less} {limits['bytes'] / GIB:.1f}: processes will be killed", remedy
        # Ray rounds a quota up to whole cores.
        if limits.get("cpus", raylet["believes_cpus"]) + 1 <= raylet["believes_cpus"]:
            less = f"Ray counts on {raylet['believes_cpus']:g} CPUs, its control group grants {limits['cpus']:.1f}"
            yield "fix", less, "start Ray with --num-cpus that fits, or grant more"
    if not machine["ray"]:
        limits = machine["limits"]
        granted = [f"{limits['bytes'] / GIB:.1f} GiB of memory"] if "bytes" in limits else []
        if limits.get("cpus", machine["cpus"]) < machine["cpus"]:
            granted.append(f"{limits['cpus']:.1f} of {machine['cpus']} CPUs")
        if granted:
            yield "note", f"a control group grants {' and '.join(granted)}", "ask for no more workers than that"


def temporary(machine: Facts) -> Iterator[Said]:
    """Ray makes its folders open to all users (mode 0777, whatever the umask): ``CLU_TEMP``."""
    for raylet in machine["ray"]:
        if raylet["session_open"]:
            shown = "every user of the machine can read Ray's logs and write into its session folder"
            yield "fix", shown, "`ray start --temp-dir` below a folder of mode 0700, and a short path"


def gpu(machine: Facts) -> Iterator[Said]:
    """Drivers, cuDNN and the state of the cards: ``CLU_GPU``."""
    held = machine["gpu"]
    if "NVIDIA_TF32_OVERRIDE" in machine["environment"]:
        yield "note", "NVIDIA_TF32_OVERRIDE is set: fp32 results depend on it", "unset it, or set it on all nodes"
    if held["driver"] == "absent":
        if held["cuda"] is not None:
            yield "note", f"torch is built for CUDA {held['cuda']}, and there is no NVIDIA driver", ""
        if machine["bf16_cpu"]:
            wrong = "torch's bf16 conv3d is wrong on this CPU (AVX512-BF16) where an output is one voxel wide"
            yield "note", wrong, "train in fp32 on CPUs (engine.precision)"
        return
    if held["driver"] == "failed":
        said = held["why"] or "no reason given"
        level: Level = "fix" if held["cuda"] else "note"  # a torch that asks for no GPU misses none
        yield level, f"nvidia-smi fails: {said}", "restart the machine, or install the driver again"
        return
    yield from _unused_gpu(held)
    yield from _cudnn(held["cudnn"] or 0, machine["versions"].get("torch", ""))
    yield from _cards(held["cards"])


def _unused_gpu(held: Mapping[str, Any]) -> Iterator[Said]:
    """A card that torch cannot use."""
    if not held["cards"] or held["works"]:
        return
    if held["works"] is None:
        yield "fix", "torch does not start beside the GPU's driver", "install torch again (constraints.txt)"
    elif held["cuda"] is None:
        yield "fix", "there is a GPU, and torch is built without CUDA", "install torch for CUDA"
    elif 0 < held["driver_cuda"] // 1000 < int(held["cuda"].partition(".")[0]):
        knows = f"{held['driver_cuda'] // 1000}.{held['driver_cuda'] % 1000 // 10}"
        older = f"the driver knows CUDA {knows}, torch is built for {held['cuda']}"
        yield "fix", older, "install a newer driver, or torch for an older CUDA"
    else:
        yield "fix", "torch sees no GPU where nvidia-smi does", "check /dev/nvidia* and the container's GPU option"


def _cudnn(version: int, torch: str) -> Iterator[Said]:
    """Releases that are wrong or slow for 3D convolutions (pytorch issues 163539, 166122, 95024)."""
    if not version:
        return
    base = 10_000 if version >= 90_000 else 1_000
    major, minor, patch = version // base, version % base // 100, version % 100
    name, remedy = (
        f"cuDNN {major}.{minor}.{patch}",
        "install torch 2.10 or newer, with cuDNN 9.15 or newer",
    )
    if (major, minor, patch) == (9, 10, 2):
        yield "fix", f"{name}: bf16 conv3d is silently wrong on large inputs", remedy
    if _numbers(torch) == (2, 9) and (major, minor) < (9, 15):
        yield "fix", f"torch {torch} with {name}: 3D convolutions under autocast are 4 times slower", remedy
    if (major, minor) < (9, 3):
        yield "fix", f"{name}: no tensors of more than 2^31 elements, which a whole body needs", remedy


def _cards(cards: Sequence[Mapping[str, str]]) -> Iterator[Said]:
    def those(name: str, accept: Callable[[str], bool]) -> str:
        """Which cards, by number; empty if none."""
        return ", ".join(str(number) for number, card in enumerate(cards) if accept(card[name]))

    if found := those("compute", lambda state: state == "Prohibited"):
        yield "fix", f"GPU {found}: compute mode Prohibited", "nvidia-smi --compute-mode=DEFAULT"
    if found := those("ecc_errors", lambda count: count.isdigit() and int(count) > 0):
        yield "fix", f"GPU {found}: memory errors that were not corrected", "take it out of use until it is replaced"
    if found := those("ecc", lambda state: state == "Disabled"):
        yield "note", f"GPU {found}: ECC is off; flipped bits go unseen", "nvidia-smi --ecc-config=1, then restart"
    if found := those("mig", lambda state: state == "Enabled"):
        yield "note", f"GPU {found}: MIG is on; a worker gets one slice, and slices do not train together", ""
    if found := those("persistence", lambda state: state == "Disabled"):
        yield "note", f"GPU {found}: persistence mode is off; every start waits for the driver", "nvidia-persistenced"


def alike_gpus(machines: Machines) -> Iterator[Finding]:
    """Cards and drivers that differ: ``CLU_GPU``."""
    held = [card for machine in machines.values() for card in machine["gpu"].get("cards", ())]
    for name, differing in (
        ("name", "kinds of GPUs, of which the slowest sets the pace"),
        ("driver", "GPU drivers, on which results depend"),
    ):
        found = sorted({card[name] for card in held})
        if len(found) > 1:
            remedy = "compare only runs of nodes that are alike"
            yield Finding(
                "CLU_GPU", "note", _everywhere(machines), f"{len(found)} {differing}: {', '.join(found)}", remedy
            )


PER_MACHINE: tuple[tuple[str, Callable[[Facts], Iterator[Said]], str], ...] = (
    ("CLU_TOKEN", token, "no Ray without a token, no token that others can read"),
    ("CLU_DISK", disk, "enough free space"),
    ("CLU_SHM", shared_memory, "shared memory is large enough"),
    ("CLU_CORES", cores, "core dumps are off"),
    ("CLU_TELEMETRY", telemetry, "no usage statistics are sent"),
    ("CLU_NAMES", names, "the names of addresses are told at once"),
    ("CLU_MEMORY", memory, "memory and CPUs are what they seem"),
    ("CLU_TEMP", temporary, "no session folder of Ray that others can read"),
    ("CLU_GPU", gpu, "no GPU, or nothing wrong with it"),
)


def ports(machines: Machines, probed: Mapping[str, Sequence[Sequence[Any]]]) -> Iterator[Finding]:
    """Services that answer without a token: ``CLU_PORT_OPEN``.

    Args:
        machines: facts by address.
        probed: by address of the machine that probed, what came back (see ``port_probe.probe``).
    """
    quiet = True
    for where, machine in machines.items():
        served = exposed(machine)
        came = _came_back(where, machine, probed)
        said = [*_let_in(served, came), *_firewall(machine, served, came)]
        if traffic := sum(one["of"] == WORKER and not ip_address(one["ip"]).is_loopback for one in machine["sockets"]):
            plain = f"{traffic} ports of tasks and drivers, not probed: what they send each other is not encrypted"
            said.append(("note", plain, "keep the cluster on a private network"))
        quiet = quiet and not said
        yield from (Finding("CLU_PORT_OPEN", *_placed(where, one)) for one in said)
    if quiet:
        yield Finding("CLU_PORT_OPEN", "ok", _everywhere(machines), "nothing of Ray listens beyond the loopback")


def _came_back(where: str, machine: Facts, probed: Mapping[str, Sequence[Sequence[Any]]]) -> dict[int, set[str]]:
    """Port -> what came back from it to any machine that probed it."""
    ports_here = set(targets(machine, "" if where == THIS else where))
    came: dict[int, set[str]] = {port: set() for _, port in ports_here}
    for answers in probed.values():
        for ip, port, what in answers:
            if (ip, port) in ports_here:
                came[port].add(what)
    return came


def _let_in(served: Sequence[Mapping[str, Any]], came: Mapping[int, set[str]]) -> Iterator[Said]:
    """Services that answer without a token, and a dashboard that other machines can reach."""
    for one in served:
        what = came.get(one["port"], set())
        bound = "all addresses" if ip_address(one["ip"]).is_unspecified else "the node's address"
        name = f"the {one['of']} on port {one['port']} ({bound})"
        if OPEN in what:
            remedy = "start every node with RAY_AUTH_MODE=token exported, and close the port by a firewall"
            yield "fix", f"{name} answers without a token", remedy
        elif one["of"] == "dashboard" and METRICS_ONLY not in what:
            loopback = "`ray start --head --dashboard-host=127.0.0.1`, and reach it by `ray dashboard cluster.yaml`"
            yield "fix", f"{name} is not on the loopback", loopback


def _firewall(machine: Facts, served: Sequence[Mapping[str, Any]], came: Mapping[int, set[str]]) -> Iterator[Said]:
    """What Ray cannot be told to keep to itself."""
    public = any(ip_address(ip).is_global for ip in machine["addresses"])
    admit = "a firewall that admits the cluster's nodes alone" + ("; this node has a public address" if public else "")
    clients = {one["port"] for one in served if one["of"] == "Ray client server"}
    heard = {port: what - {CLOSED} for port, what in came.items() if OPEN not in what}
    for kind, says in (
        (METRICS_ONLY, "give Ray's metrics (addresses, job numbers, loads) to whoever asks"),
        (ASKS, "ask for the token, which travels unencrypted"),
        (UNTRIED, "did not tell whether they ask for a token"),
    ):
        if found := sorted(port for port, what in heard.items() if kind in what):
            client = ", among them the Ray client server, which Ray always starts" if clients & {*found} else ""
            yield "note", f"ports {', '.join(map(str, found))}{client}: {says}", admit
    if unheard := sorted(port for port, what in heard.items() if not what):
        yield "note", f"ports {', '.join(map(str, unheard))} listen and could not be reached to try them", admit


def skew(offsets: Mapping[str, tuple[float, float]]) -> Finding:
    """Clocks that differ: ``CLU_CLOCK``.

    Args:
        offsets: by node, the bounds between which its clock is ahead of the one that asked, s.
    """
    apart, behind, ahead = max(
        ((offsets[b][0] - offsets[a][1], a, b) for a, b in permutations(offsets, 2)), default=(0.0, "", "")
    )
    remedy = "let chrony or systemd-timesyncd set the clocks of all nodes"
    if apart > SKEW_NOTE_S:
        level: Level = "fix" if apart > SKEW_FIX_S else "note"
        return Finding("CLU_CLOCK", level, f"{behind}, {ahead}", f"clocks at least {apart:.2f} s apart", remedy)
    unsure = max((high - low for low, high in offsets.values()), default=0.0)
    if unsure > SKEW_FIX_S:
        return Finding("CLU_CLOCK", "note", ALL, f"clocks could be compared to {unsure:.1f} s only", "try again")
    return Finding("CLU_CLOCK", "ok", ALL, f"clocks agree, as far as {unsure:.2f} s tell")
