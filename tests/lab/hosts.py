"""Hosts on one machine: Linux network namespaces on a bridge, each with an own address, sshd, processes, /tmp, home.

Between them lies what a hospital's cluster has: a private network, ssh by key, one folder that all of them mount.
Nothing leaves the namespaces: they have a default route (else Ray binds to loopback) that ends at the bridge.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from petscale.cluster.nodes import SILENT

NEEDED = ("ip", "unshare", "nsenter", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")
VENV = Path(sys.prefix)
SUBNET = "10.201.77"
HOME = "/home/root"  # everywhere; what it holds is another folder on every machine
CHECKOUT = f"{HOME}/petscale"
KEY = "home/root/.ssh/id_ed25519"


def why_not() -> str:
    """Why hosts cannot be made here; empty where they can."""
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        return f"needs {', '.join(missing)}"
    if os.geteuid() != 0:
        return "needs root"
    probe = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True)
    return "" if probe.returncode == 0 else "may not make namespaces"


@dataclass
class Host:
    """One machine of the laboratory: its home lies in ``folder``, its /tmp is 1 GiB that a reboot empties."""

    name: str
    address: str
    folder: Path
    words: Sequence[str]
    process: subprocess.Popen[bytes] | None = None  # whose end is the end of the whole machine

    def start(self) -> None:
        """Switch it on; what it had in its folders is still there."""
        with (self.folder / "sshd.log").open("w") as log:
            self.process = subprocess.Popen(self.words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        """Pull the plug: every process there is gone at once."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def run(self, command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a shell command there, as someone at its console would."""
        return subprocess.run(self.words_for(command), capture_output=True, text=True, timeout=timeout_s)

    def words_for(self, command: str) -> list[str]:
        """What runs a shell command there."""
        inside = ["nsenter", f"--target={self._first().pid}", "--net", "--mount", "--pid", "--uts"]
        return [*inside, "env", "-i", f"HOME={HOME}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "bash", "-c", command]

    def _first(self) -> psutil.Process:
        assert self.process
        return psutil.Process(self.process.pid).children()[0]

    def processes(self, part: str) -> list[psutil.Process]:
        """What runs there with ``part`` in its command line."""
        found: list[psutil.Process] = []
        if not self.process or self.process.poll() is not None:
            return found
        # By the namespace, not by descent: a daemon whose parent ends while the tree is read is missing from the tree.
        first = self._first()
        home = os.readlink(f"/proc/{first.pid}/ns/pid")
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, OSError):  # ended meanwhile, or not ours to look at
                if os.readlink(f"/proc/{process.pid}/ns/pid") != home or process == first:
                    continue
                if part in " ".join(process.cmdline()):
                    found.append(process)
        return found


@dataclass(frozen=True)
class Laboratory:
    """Hosts, the launcher that stands for a laptop, and the folder that all of them mount."""

    tag: str
    folder: Path
    hosts: Sequence[Host]
    shared: Path

    def launch(
        self, *words: str, timeout_s: float = 300.0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the virtual environment on the launcher."""
        return subprocess.run(
            self.words(*words), capture_output=True, text=True, timeout=timeout_s, env=self.environment(env)
        )

    def words(self, *words: str) -> list[str]:
        """What runs a command on the launcher."""
        own = self.folder / "laptop"
        private = f'{_private(own)} && cd {CHECKOUT} && exec "$@"'
        inside = ["ip", "netns", "exec", f"{self.tag}lan", "unshare", "--mount", "sh", "-c", private, "sh"]
        return [*inside, *words]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The launcher's environment: its own home, no trace of the test's."""
        code = f"{CHECKOUT}:{CHECKOUT}/platform"
        base = {"HOME": HOME, "PYTHONPATH": code, "PATH": f"{VENV / 'bin'}:{os.defpath}:/usr/sbin", "USER": "root"}
        quiet = {"RAY_AUTH_MODE": "token", **SILENT}
        return {**base, **quiet, "LANG": "C.UTF-8", "COLUMNS": "200", **(more or {})}

    def fill_in(self, storage: str) -> None:
        """Fill in the four marked places of the laptop's ``cluster.yaml``; the first host is the head.

        Args:
            storage: the folder that all hosts mount; further variables of the hosts' shells may follow.
        """
        place = self.folder / f"laptop{CHECKOUT}/cluster.yaml"
        text = place.read_text()
        head, *workers = (host.address for host in self.hosts)
        for blank, ours in (
            ("192.0.2.10", head),
            ("[192.0.2.11, 192.0.2.12]", f"[{', '.join(workers)}]"),
            ("ssh_user: petscale", "ssh_user: root"),
            ("PETSCALE_STORAGE=/srv/petscale", f"PETSCALE_STORAGE={storage}"),
        ):
            assert blank in text, blank
            text = text.replace(blank, ours)
        place.write_text(text)

    def link(self, host: Host, state: str) -> None:
        """Plug a host's cable in (``up``) or out (``down``)."""
        _ip("-n", f"{self.tag}lan", "link", "set", f"to-{host.name}", state)


def _check_out(to: Path) -> None:
    """A copy of this checkout, as someone would clone it, that ``make`` finds older than the virtual environment."""
    root = Path(__file__).parents[2]
    for name in ("platform", "storage", "trainers", "tune_spaces"):
        shutil.copytree(root / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "deploy", to / "deploy")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "cluster.yaml"):
        shutil.copy(root / name, to / name)
        os.utime(to / name, (0, 0))


def _furnish(own: Path) -> None:
    """A machine's own folders; ssh takes the home from the list of users, whatever the environment says."""
    for part in ("tmp", "home/root"):
        (own / part).mkdir(parents=True)
    (own / "tmp").chmod(0o1777)
    users = f"root:x:0:0:root:{HOME}:/bin/bash\nsshd:x:74:65534::/run/sshd:/usr/sbin/nologin\n"
    (own / "passwd").write_text(users)
    # Else whoever wants a name waits for a name server that is not there.  torch asks for IPv4 in IPv6's clothes.
    names = {"127.0.0.1": "localhost"} | {f"{SUBNET}.{number}": f"host{number}" for number in range(1, 10)}
    more = "".join(f"{ip} {name}\n::ffff:{ip} {name}\n" for ip, name in names.items())
    (own / "hosts").write_text(Path("/etc/hosts").read_text() + more)


def _private(own: Path, *more: str) -> str:
    """Shell words that put a machine's own folders in place, in its own mount namespace.

    The interpreter and its environment stay where they are, also below a folder that is another one now.
    """
    kept = {VENV: own / "venv", Path(sys.base_prefix): own / "python"}
    pairs = {"home": "/home", "passwd": "/etc/passwd", "hosts": "/etc/hosts", "tmp": "/tmp"}
    return " && ".join(
        [
            *(f"mkdir -p {held} && mount --bind {place} {held}" for place, held in kept.items()),
            *(f"mount --bind {own / inside} {outside}" for inside, outside in pairs.items()),
            *more,
            *(f"mkdir -p {place} && mount --bind {held} {place}" for place, held in kept.items()),
        ]
    )


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def laboratory(count: int = 3) -> Iterator[Laboratory]:
    """Make ``count`` hosts for as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/var/tmp"))  # /tmp itself is another one on every host
    folder.chmod(0o755)
    tag = f"ps{os.getpid()}-"
    (shared := folder / "shared").mkdir()
    _furnish(folder / "laptop")
    (folder / "laptop" / KEY).parent.mkdir(mode=0o700)
    _check_out(folder / f"laptop{CHECKOUT}")
    for key in (f"laptop/{KEY}", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    lan, hosts = f"{tag}lan", []
    try:
        _ip("netns", "add", lan)
        for words in (
            ["link", "add", "lan", "type", "bridge"],
            ["addr", "add", f"{SUBNET}.254/24", "dev", "lan"],
            ["link", "set", "lan", "up"],
            ["link", "set", "lo", "up"],
        ):
            _ip("-n", lan, *words)
        for number in range(1, count + 1):
            hosts.append(_host(tag, number, folder))
            hosts[-1].start()
        for host in hosts:
            _wait_for_ssh(folder, lan, host)
        yield Laboratory(tag, folder, hosts, shared)
    finally:
        for host in hosts:
            host.kill()
        for number in range(1, count + 1):
            subprocess.run(["ip", "netns", "del", f"{tag}{number}"], capture_output=True)
        for pid in subprocess.run(["ip", "netns", "pids", lan], capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", lan], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def _host(tag: str, number: int, folder: Path) -> Host:
    name, lan, address = f"{tag}{number}", f"{tag}lan", f"{SUBNET}.{number}"
    own = folder / f"host{number}"
    _furnish(own)
    (own / "home/root/petscale/.venv").mkdir(parents=True)
    (own / "sshd.conf").write_text(
        f"ListenAddress {address}\nHostKey {folder / 'host_key'}\nAuthorizedKeysFile {folder}/laptop/{KEY}.pub\n"
        "StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nPidFile none\n"
    )
    _ip("netns", "add", name)
    _ip("-n", lan, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("-n", lan, "link", "set", f"to-{name}", "master", "lan", "up")
    for words in (
        ["addr", "add", f"{address}/24", "dev", "eth0"],
        ["link", "set", "eth0", "up"],
        ["link", "set", "lo", "up"],
        ["route", "add", "default", "via", f"{SUBNET}.254"],
    ):
        _ip("-n", name, *words)
    # The virtual environment is the tests' own: installing torch three times would take longer than all the tests.
    environment = f"mount --bind {own}/venv {CHECKOUT}/.venv && mount -o remount,ro,bind {CHECKOUT}/.venv"
    small = "mount -t tmpfs -o size=9g tmpfs /dev/shm && mount -t tmpfs -o size=1g tmpfs /tmp"
    boot = (
        f"{_private(own, environment, small)} && mkdir -p /run/sshd && hostname host{number} && "
        f"exec /usr/sbin/sshd -D -e -f {own}/sshd.conf"
    )
    namespaces = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
    words = ["ip", "netns", "exec", name, *namespaces, "env", "-i", f"PATH={os.defpath}:/usr/sbin:/sbin"]
    return Host(name, address, own, [*words, "sh", "-c", boot])


def _wait_for_ssh(folder: Path, lan: str, host: Host) -> None:
    key = folder / "laptop" / KEY
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=2"]
    deadline = time.monotonic() + 30
    while True:
        words = ["ip", "netns", "exec", lan, "ssh", "-i", str(key), *options, f"root@{host.address}", "true"]
        tried = subprocess.run(words, capture_output=True, text=True)
        if tried.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(tried.stderr + (host.folder / "sshd.log").read_text())
        time.sleep(0.3)
