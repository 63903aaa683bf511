"""The lines of docs/how-to-cluster.md as they stand there, on three hosts of this machine (tests/lab/hosts.py).

    python benchmarks/cluster_as_printed.py
    python benchmarks/cluster_as_printed.py --certificates

With ``--certificates`` the cluster is started as docs/security.md says of certificates for Ray: the page's line makes
them, and ``cluster.yaml`` copies them.  Ray's head must then answer who has them, and nobody else.

What the page says to fill in is filled in; the first line, which clones and installs, is replaced by a copy of this
checkout and its environment.  The page's trainings and its sweep take hours on two cores: each is given up by the lines
that the page has for it once it has logged a step, or a trial its first, and its job must then be gone from every host.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/lab"))
from hosts import CHECKOUT, Laboratory, laboratory  # noqa: E402

EXIT_DOCTOR = 2
PAGE = ROOT / "docs/how-to-cluster.md"
SECURITY = ROOT / "docs/security.md"
TLS_LINE = '  # "~/.config/petscale/tls"'  # of cluster.yaml, to be uncommented


@dataclass
class Laptop:
    """The shell of the page: what was exported stays; every line that ran is a row of the table."""

    lab: Laboratory
    certificates: bool = False
    exported: list[str] = field(default_factory=list)
    rows: list[tuple[str, str, float]] = field(default_factory=list)

    def words(self, line: str) -> list[str]:
        """What runs a line of the page."""
        return self.lab.words("bash", "-c", "\n".join([*self.exported, line]))

    def run(self, line: str, *, typed: str = "", exit_code: int = 0, timeout_s: float = 900.0) -> str:
        """Run a line to its end; returns what it printed."""
        began = time.monotonic()
        keyboard, stdin = os.openpty()  # a terminal, as ray asks none but a person
        os.write(keyboard, typed.encode())
        try:
            done = subprocess.run(
                self.words(line),
                stdin=stdin,
                env=self.lab.environment(),
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        finally:
            os.close(keyboard)
            os.close(stdin)
        said = done.stdout + done.stderr
        assert done.returncode == exit_code, f"{line}: {done.returncode}\n{said}"
        self.seen(line, f"exit {exit_code}{', after y' if typed else ''}", began)
        return said

    def until(self, line: str, met: Callable[[], bool], what: str, timeout_s: float = 900.0) -> str:
        """Run a line until something is seen, then press Ctrl-C; returns what it printed."""
        began = time.monotonic()
        words, pieces = self.words(line), self.lab.folder / "printed.txt"
        with pieces.open("w+") as output:
            process = subprocess.Popen(
                words, env=self.lab.environment(), stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            try:
                while not met():
                    assert process.poll() is None, f"{line}: ended\n{pieces.read_text()}"
                    assert time.monotonic() - began < timeout_s, f"{line}: no {what}\n{pieces.read_text()}"
                    time.sleep(1)
                self.seen(line, what, began)
            finally:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(30)
        return pieces.read_text()

    def seen(self, line: str, what: str, began: float) -> None:
        """Note a line, and say it."""
        self.rows.append((line, what, time.monotonic() - began))
        print(f"{self.rows[-1][2]:6.0f} s  {line}: {what}", file=sys.stderr, flush=True)


def lines(page: Path) -> list[str]:
    """A page's lines, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def steps_of(run: Path) -> int:
    """Steps that a run has logged."""
    path = run / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return sum(one.get("event") == "log" for one in found)


def follow(laptop: Laptop, printed: list[str]) -> None:
    """Run the page's lines one after the other.

    Raises:
        AssertionError: a line that does not do what the page says.
    """
    for number, line in enumerate(printed):
        words = shlex.split(line, comments=True)
        if words[:2] == ["git", "clone"]:
            continue
        if words[0] == "export":
            laptop.exported.append(line)
            laptop.seen(line, "set", time.monotonic())
            continue
        kind = next((kind for kind in KINDS if words[: len(kind)] == list(kind)), ())
        KINDS.get(kind, _plain)(laptop, line)
        # Whatever trains is given up: by the page's own line where that follows, else by the same line here.
        if {"train", "tune"} & {*words} and "petscale stop" not in printed[number : number + 4]:
            if "tune" in words:
                _running(laptop, "petscale status")
            _given_up(laptop, "petscale stop")


def _plain(laptop: Laptop, line: str) -> None:
    laptop.run(line)


def _up(laptop: Laptop, line: str) -> None:
    laptop.lab.fill_in(str(laptop.lab.shared))
    if laptop.certificates:
        _certified(laptop)
    laptop.run(line, typed="y\n")
    if laptop.certificates:
        wait_for(lambda: _cores(laptop.run(STATUS)) == len(laptop.lab.hosts) * (os.cpu_count() or 1), 180, "all hosts")
        _encrypted(laptop)


STATUS = "ray exec cluster.yaml 'ray status'"


def _certified(laptop: Laptop) -> None:
    """Make the certificates by the page's line, with the hosts' addresses, and let ``cluster.yaml`` copy them."""
    (line,) = [line for line in lines(SECURITY) if line.startswith("petscale certificates")]
    words = line[: line.index("--hosts")]
    laptop.run(f"{words}--hosts {' '.join(host.address for host in laptop.lab.hosts)}")
    place = laptop.lab.folder / f"laptop{CHECKOUT}/cluster.yaml"
    text = place.read_text()
    assert TLS_LINE in text
    place.write_text(text.replace(TLS_LINE, TLS_LINE.replace("# ", "")))


def _encrypted(laptop: Laptop) -> None:
    """Ask Ray's head with a certificate, without one, and without encryption."""
    head = laptop.lab.hosts[0]
    ask = f"openssl s_client -connect {head.address}:6379 -verify_return_error -CAfile {TLS}/authority.crt"
    ours = f"-cert {TLS}/cluster.crt -key {TLS}/cluster.key"
    for options, answered, what in (
        (f"{ours} -alpn h2", True, "answers with its certificate"),
        ("-alpn h2", False, "refuses who has none"),
    ):
        line = f"(sleep 2) | timeout 20 {ask} {options} 2>&1 | tr -cd '[:print:]\\n'; true"
        said = laptop.run(line)
        assert "Verify return code: 0 (ok)" in said, said
        closed = re.search("alert|unexpected eof", said)  # by the head, before the two seconds are over
        assert (closed is None) is answered, said
        laptop.rows[-1] = (f"openssl s_client -connect HEAD:6379 {options.split()[0]}", what, laptop.rows[-1][2])
    ask = f"timeout 60 ray status --address {head.address}:6379"
    for variables, answered in (("", True), ("unset RAY_USE_TLS; ", False)):
        began = time.monotonic()
        done = head.run(f". ~/.petscale.sh; {variables}{ask}")
        assert (done.returncode == 0) is answered, done.stdout + done.stderr
        assert ("CPU" in done.stdout) is answered, done.stdout + done.stderr
        laptop.seen(f"{variables}ray status, on the head", "answered" if answered else "refused", began)


TLS = "~/.config/petscale/tls"


def _down(laptop: Laptop, line: str) -> None:
    laptop.run(line, typed="y\n")


def _joined(laptop: Laptop, line: str) -> None:
    wait_for(lambda: _cores(laptop.run(line)) == len(laptop.lab.hosts) * (os.cpu_count() or 1), 180, "all hosts")


def _doctor(laptop: Laptop, line: str) -> None:
    """A host's /tmp is small here: the doctor has to say so, and the page says to correct it and ask again."""
    said = laptop.run(line, exit_code=EXIT_DOCTOR)
    assert {*re.findall(r"^fix (\S+)", said, re.MULTILINE)} == {"CLU_DISK"}, said
    for host in laptop.lab.hosts:
        assert host.run("mount -o remount,size=16g /tmp").returncode == 0
    laptop.run(line)


def _training(laptop: Laptop, line: str) -> None:
    words = shlex.split(line)
    run = laptop.lab.shared / words[words.index("--run") + 1]
    laptop.until(line, lambda: steps_of(run) >= 1, "a step was logged; Ctrl-C")
    workers = [len(host.processes("ray::RayTrainWorker")) for host in laptop.lab.hosts]
    assert any(workers), "Ctrl-C ended the job"
    what = f"a step was logged by {sum(workers)} workers on {sum(map(bool, workers))} hosts; Ctrl-C"
    laptop.rows[-1] = (line, what, laptop.rows[-1][2])
    print(f"          workers of each host: {workers}", file=sys.stderr, flush=True)


def _logs(laptop: Laptop, line: str) -> None:
    began = time.monotonic()
    said = laptop.until(line, lambda: time.monotonic() > began + 20, "20 s of it; Ctrl-C")
    assert "train" in said, said


def _running(laptop: Laptop, line: str) -> None:
    said = laptop.run(line)
    assert "running" in said, said


def _given_up(laptop: Laptop, line: str) -> None:
    said = laptop.run(line)
    assert "stopped" in said, said
    lab = laptop.lab
    wait_for(lambda: not any(host.processes("ray::RayTrainWorker") for host in lab.hosts), 120, "the workers' end")


def _sweep(laptop: Laptop, line: str) -> None:
    laptop.run(line)
    words = shlex.split(line)
    trials = laptop.lab.shared / words[words.index("--study") + 1] / "trials"
    wait_for(lambda: any(steps_of(one) for one in trials.glob("*")), 900, "a trial's first step")


def _dashboard(laptop: Laptop, line: str) -> None:
    ask = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/jobs/"
    laptop.until(
        line, lambda: laptop.lab.launch("sh", "-c", ask).stdout == "401", "port 8265 asks for the secret; Ctrl-C"
    )


KINDS: Mapping[tuple[str, ...], Callable[[Laptop, str], None]] = {
    ("ray", "up"): _up,
    ("ray", "down"): _down,
    ("ray", "exec"): _joined,
    ("ray", "dashboard"): _dashboard,
    ("petscale", "submit", "doctor"): _doctor,
    ("petscale", "submit", "train"): _training,
    ("petscale", "submit", "--detach", "tune"): _sweep,
    ("petscale", "logs"): _logs,
    ("petscale", "stop"): _given_up,
}


def _cores(status: str) -> float:
    """All cores of a cluster, of what ``ray status`` prints of their use."""
    found = re.search(r"/([\d.]+) CPU", status)
    return float(found[1]) if found else 0.0


def wait_for(met: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(5)


def main() -> None:
    """Follow the page, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--certificates", action="store_true", help="encrypt Ray's traffic")
    certificates = parser.parse_args().certificates
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else Ctrl-C does nothing to what a job of a shell starts
    printed = lines(PAGE)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    with laboratory() as lab:
        laptop = Laptop(lab, certificates)
        try:
            follow(laptop, printed)
            time.sleep(100)  # the workers notice the head's end within a minute and a half
            left = [process.name() for host in lab.hosts for process in host.processes("ray")]
            assert not left, left
        finally:
            print(f"commit {commit}, {os.cpu_count()} cores\n\n| line | seen | s |\n|---|---|---|")
            for line, what, seconds in laptop.rows:
                print(f"| `{line.replace('|', chr(92) + '|')}` | {what} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
