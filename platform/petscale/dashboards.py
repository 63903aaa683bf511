"""Dashboards of a run or a study: TensorBoard and Optuna's, served on this machine only and stopped again; and Ray's.

Each server ends with the process that started it, and is shown once it answers.  The servers listen on 127.0.0.1 only.
They have no password, so every user of the machine can read them.
"""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from petscale.cluster.connection import dashboard
from petscale.cluster.session import ray_dashboard
from petscale.folders import CONFIG, EVENTS, TRIALS
from petscale.tuning.study import DATABASE, JOURNAL, read_study
from storage.errors import InputError

LOOPBACK = "127.0.0.1"
TENSORBOARD, OPTUNA, RAY = "TensorBoard", "Optuna dashboard", "Ray dashboard"
START_S = 90.0  # importing takes seconds, on a machine that trains many
STOP_S = 10.0

# A child waits for the end of its standard input, which comes with its parent's end, kill -9 included, so that no
# orphan is left on any system.  Its arguments come by the same pipe: the URL of a storage may hold a password, and
# every user may read a command line.
_CHILD = """
import json, os, runpy, signal, sys, threading, time
module, *arguments = json.loads(sys.stdin.readline())
def end_with_parent():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@contextmanager
def serving(folder: Path, storage: str = "") -> Iterator[dict[str, str]]:
    """Serve the dashboards of a run or a study while the context lasts.

    Args:
        folder: of a run (TensorBoard only) or of a study.
        storage: where the study is kept, as for ``open_study``; empty: the journal or the database in the folder.

    Returns:
        name -> address, each of which answers; Optuna's is left out where ``missing`` says why.

    Raises:
        InputError: ``CFG_RUN_FOLDER`` where the folder is neither; ``TUNE_STUDY``, ``TUNE_STORAGE`` and
            ``TUNE_JOURNAL`` where the study cannot be read; ``CFG_DASHBOARD`` where a server does not start.
    """
    is_study = _is_study(folder, storage)
    logs = folder / (TRIALS if is_study else EVENTS)
    commands = {TENSORBOARD: ["tensorboard.main", "--logdir", str(logs.resolve()), "--load_fast", "false"]}
    store = _store(folder, storage) if is_study else ""
    if store:
        read_study(folder, storage or ("sqlite" if store.startswith("sqlite:") else "journal"))
    if store and _installed():
        commands[OPTUNA] = ["optuna_dashboard._cli", store, "--server", "wsgiref", "--quiet"]
    with ExitStack() as stack:
        yield {name: stack.enter_context(_server(name, command)) for name, command in commands.items()}


def missing(folder: Path, storage: str = "") -> str:
    """Why ``serving`` starts no Optuna dashboard for a study, and what to do about it; empty where it does."""
    if not _is_study(folder, storage):
        return ""
    if not _installed():
        return 'not installed; pip install "petscale[dashboard]"'
    return "" if _store(folder, storage) else "no study in the folder; name its database with --storage"


def serve(folder: Path | None, storage: str = "", *, cluster: str = "", seconds: float | None = None) -> None:
    """Print the addresses and serve until Ctrl-C, SIGTERM or the given time; then stop every server.

    Args:
        folder: of a run or of a study; None for the cluster's dashboard alone.
        storage: as for ``serving``.
        cluster: a cluster file or the URL of a dashboard, whose Ray dashboard is brought to this machine; without it
            that of the sweep which works in ``folder`` on this machine is told.
        seconds: how long; None until told to stop.

    Raises:
        InputError: as ``serving``, as ``cluster.dashboard``; ``CFG_DASHBOARD`` where there is nothing to show.
    """
    if folder is None and not cluster:
        raise InputError(
            "CFG_DASHBOARD", where="dashboard", found="nothing to show", remedy="name a run, a study or --cluster"
        )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            told = dict(stack.enter_context(serving(folder, storage))) if folder else {}
            if folder and (why := missing(folder, storage)):
                told[OPTUNA] = why
            if cluster:
                told[RAY] = f"{stack.enter_context(dashboard(cluster))} (token: ~/.ray/auth_token)"
            elif folder and (shown := ray_dashboard(folder)):
                told[RAY] = f"http://{LOOPBACK}:{shown[0]}/ (token: {shown[1]})"
            elif folder and _is_study(folder, storage):
                told[RAY] = "no sweep of this study runs on this machine; for a cluster's: --cluster cluster.yaml"
            for name, address in told.items():
                print(f"{name}: {address}", flush=True)
            until = time.monotonic() + seconds if seconds is not None else float("inf")
            while (left := until - time.monotonic()) > 0:
                time.sleep(min(left, 3600.0))
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_study(folder: Path, storage: str) -> bool:
    """Tell a study's folder from a run's.

    Raises:
        InputError: ``CFG_RUN_FOLDER`` if it is neither.
    """
    if storage or any((folder / name).exists() for name in (JOURNAL, DATABASE, TRIALS)):
        return True
    if not (folder / CONFIG).is_file():
        raise InputError(
            "CFG_RUN_FOLDER",
            where=folder.name,
            found="neither a run nor a study" if folder.is_dir() else "no such folder",
            remedy="name the folder of a run of `petscale train` or of a study of `petscale tune`",
        )
    return False


def _store(folder: Path, storage: str) -> str:
    """The study's storage as the Optuna dashboard takes it; empty where the folder holds none."""
    if "://" in storage:
        return storage
    if storage != "sqlite" and (folder / JOURNAL).is_file():
        return str((folder / JOURNAL).resolve())
    return f"sqlite:///{(folder / DATABASE).resolve()}" if (folder / DATABASE).is_file() else ""


def _installed() -> bool:
    return importlib.util.find_spec("optuna_dashboard") is not None


# ---- servers --------------------------------------------------------------------------------------------------------


@contextmanager
def _server(name: str, command: Sequence[str]) -> Iterator[str]:
    """Run a module as a server on a free port while the context lasts; return its address when it answers."""
    port = _free_port()
    with tempfile.TemporaryFile() as output:  # not a pipe, which would fill
        child = subprocess.Popen(  # noqa: S603  (our own words)
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is the parent's to handle
        )
        assert child.stdin is not None
        try:
            words = [*command, "--host", LOOPBACK, "--port", str(port)]
            with suppress(BrokenPipeError):
                child.stdin.write(json.dumps(words).encode() + b"\n")
                child.stdin.flush()
            address = f"http://{LOOPBACK}:{port}/"
            _wait(name, address, child)
            yield address
        finally:
            with suppress(BrokenPipeError):
                child.stdin.close()
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait(name: str, address: str, child: "subprocess.Popen[bytes]") -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches this machine's loopback
    until = time.monotonic() + START_S
    while time.monotonic() < until and child.poll() is None:
        try:
            with direct.open(address, timeout=START_S):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    found = "it ended" if child.poll() is not None else f"it did not answer within {START_S:g} s"
    raise InputError("CFG_DASHBOARD", where=name, found=found, remedy="see whether it starts by itself; try again")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
