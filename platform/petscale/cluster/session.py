"""A Ray cluster for as long as work lasts: the one this process was submitted to, or a private one on this machine."""

import fcntl
import importlib
import json
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from petscale.cluster.installation import check_alike, code
from petscale.cluster.nodes import SILENT, joined, on_every_node
from petscale.cluster.placement import machines_for
from petscale.cluster.shared_storage import check_shared
from petscale.cluster.watchdog import ending_with, vital_of
from petscale.config import RunConfig
from storage import integrity, remote
from storage.errors import InputError, printable
from storage.internals import internal

IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the driver of a submitted job

SOCKET_BYTES = 107  # that Linux takes as the path of a socket

START_PAUSES_S = (0.0, 2.0, 10.0)  # before each try to start Ray on this machine

SESSION, DASHBOARD, TOKEN = "petscale-ray-", "dashboard.json", "token"  # a private cluster's folder, and files in it
# Folder -> the handle that claims it: the number of a process means nothing in another container that shares /tmp.
_claims: dict[str, int] = {}


def worker_environment(config: RunConfig) -> dict[str, str]:
    """Environment of the workers: threads and accelerator fixed, no telemetry."""
    threads = str(config.cluster.cpus_per_worker)
    return {
        "DS_ACCELERATOR": config.cluster.device,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **SILENT,
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # glibc would return every large tensor to the system and fault its pages in again: a third of a step on a CPU.
        # One arena, for a worker trains in a thread, whose own arena would be cut into pieces of 64 MB.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
        "MALLOC_TOP_PAD_": str(256 * 2**20),
    }


def runtime_env(config: RunConfig) -> dict[str, Any]:
    """What a worker needs: its environment, and on a cluster the driver's code unless its job has brought it."""
    environment: dict[str, Any] = {"env_vars": worker_environment(config)}
    if joined():
        environment["worker_process_setup_hook"] = "petscale.cluster.nodes.use_cluster_network"
        if key := os.environ.get("PETSCALE_SITE_KEY"):  # the file's name: patients are hashed alike everywhere
            environment["env_vars"]["PETSCALE_SITE_KEY"] = key
        environment |= {} if os.environ.get(IN_JOB) else code()
    else:
        environment["env_vars"]["HOME"] = str(Path.home())  # not Ray's, see ``_homeless``
        # Else gloo and NCCL listen on the address that the machine's name has.
        environment["env_vars"] |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    return environment


@contextmanager
def session(config: RunConfig, cpus: int, folder: Path, *read: Path, dashboard: bool = False) -> Iterator[None]:
    """A Ray cluster for as long as the block lasts: the one that this process was submitted to, else a private one.

    Args:
        cpus: cores of a private one.
        folder: where work will be written, which every node of a cluster must see.
        read: files that every node must be able to read.
        dashboard: whether a private one has Ray's, which ``ray_dashboard`` finds; a cluster has its own.

    Raises:
        InputError: CFG_RESOURCES; CLU_VERSIONS, CLU_STORAGE, CLU_NODE_SILENT: all before any work starts.  A cluster
            that grows (``SCALE_UP_S``) has had its time to by then.

    A private cluster's folder stays behind, for its logs, when the block ends in an error that is not a user's mistake.
    """
    os.environ |= {**SILENT, "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    address = joined()
    if not address:
        # A private cluster of one secret of its own; an existing one brings its own token.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Ray's name for it: every socket on loopback.  Its metrics would else be open to the whole network.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        # Ray would start a process per core at once; ours need an environment of their own, so it could use none.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    import ray

    environment = runtime_env(config)
    if address:
        temporary = own_folder()
        try:
            with _keeping_sigterm():
                started = ray.init(
                    address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR
                )
        except ConnectionError:
            raise InputError(
                "CLU_UNREACHABLE",
                where="RAY_ADDRESS",
                found="no Ray cluster answers there",
                remedy="start it, or unset the variable to work on this machine alone",
            ) from None
        vital: list[psutil.Process] = []  # the job's own end says that its cluster is gone
    else:
        started, temporary, vital = _start_private(environment, cpus, dashboard)
    logging.getLogger("ray").setLevel(logging.ERROR)
    if dashboard and not address:
        (Path(temporary) / TOKEN).touch(0o600)
        (Path(temporary) / TOKEN).write_text(os.environ["RAY_AUTH_TOKEN"])
        shown = {"folder": str(folder.absolute()), "port": int(started.dashboard_url.rpartition(":")[2])}
        integrity.write_json(Path(temporary) / DASHBOARD, shown)
    keep = True
    worker = {"CPU": config.cluster.cpus_per_worker} | ({"GPU": 1} if config.cluster.device == "cuda" else {})
    try:
        with _watched(vital) if vital else nullcontext(), machines_for([worker] * config.cluster.workers):
            require_resources(ray.cluster_resources(), config)
            if address:
                check_alike()
                read = tuple(path.absolute() for path in read if not remote.origin(path.parent))
                if url := remote.origin(folder):
                    on_every_node(remote.check_writable, url)
                else:
                    check_shared(folder.absolute(), *read)
            yield
        keep = False
    except InputError as error:
        keep = error.code == "TRAIN_FAILED"
        raise
    finally:
        ray.shutdown()
        if not keep:
            _remove(temporary)
        _forget_killed(Path(temporary).parent)


def _start_private(environment: Mapping[str, Any], cpus: int, dashboard: bool) -> tuple[Any, str, list[psutil.Process]]:
    """Start Ray on this machine; returns its context, the folder that it works in, and the processes it rests on.

    One of its processes may not come up where memory or time is short for a moment, as it is just after a cluster was
    killed, so it is tried again after a pause.

    Raises:
        InputError: CLU_START; CLU_SOCKET_PATH.
    """
    import ray

    told = ""
    for pause_s in START_PAUSES_S:
        time.sleep(pause_s)
        temporary = own_folder()
        ours = set(psutil.Process().children(recursive=True))
        try:
            with _homeless(), _without_needless(dashboard), _keeping_sigterm():
                started = ray.init(
                    address="local",
                    runtime_env=dict(environment),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    num_cpus=cpus,
                    include_dashboard=dashboard,
                    object_store_memory=100 * 2**20,
                    _temp_dir=f"{temporary}/r",  # Ray opens this folder to all users; the one above it stays ours
                )
        except Exception as error:  # Ray raises what it is raised, and a plain Exception
            told = (str(error).strip().splitlines() or [""])[-1][:200]
            ray.shutdown()
            for left in set(psutil.Process().children(recursive=True)) - ours:
                with suppress(psutil.NoSuchProcess):
                    left.kill()
            _remove(temporary)
        else:
            return started, temporary, vital_of(set(psutil.Process().children(recursive=True)) - ours)
    raise InputError(
        "CLU_START",
        where="this machine",
        found=f"Ray did not start ({printable(told)})",
        remedy="see whether memory, disk (TMPDIR) or processes (ulimit -u) are short, and run the same command again",
    )


def ray_dashboard(folder: Path) -> tuple[int, Path] | None:
    """Port of Ray's dashboard, and the file with its token, of the private cluster that works in ``folder`` now."""
    for place in (found for folders in _places() for found in folders.glob(f"{SESSION}*")):
        if place.stat().st_uid == os.getuid() and psutil.pid_exists(_owner(place)) and (place / DASHBOARD).exists():
            shown = json.loads((place / DASHBOARD).read_bytes())
            if shown["folder"] == str(folder.absolute()):
                return int(shown["port"]), place / TOKEN
    return None


def _owner(session_folder: Path) -> int:
    pid = session_folder.name.removeprefix(SESSION).split("-")[0]
    return int(pid) if pid.isdecimal() else 0  # somebody else's idea of a name: nobody's process


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Leave the handler of SIGTERM as it was: Ray's prints a stack and aborts, and what was begun is not ended."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _homeless() -> Iterator[None]:
    """Start processes that have no home: Ray's dashboard looks there for the cloud that it is in, and where it finds no
    file it asks the network."""
    home = os.environ.get("HOME")
    os.environ["HOME"] = os.devnull
    try:
        yield
    finally:
        del os.environ["HOME"]
        os.environ |= {} if home is None else {"HOME": home}


@contextmanager
def _without_needless(dashboard: bool) -> Iterator[None]:
    """Start no process that a private cluster has no use for: one that prints its workers' logs, and the autoscaler,
    for this machine is all there is.  Ray's dashboard shows what the autoscaler finds."""
    module = importlib.import_module("ray._private.parameter")
    params = internal(module, "RayParams", "ray")
    module.RayParams = partial(params, no_monitor=not dashboard, include_log_monitor=False)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.RayParams = params  # type: ignore[attr-defined]


def own_folder() -> str:
    """Make a folder that only this user may enter and that names this process, so that a killed one's can be removed.

    Ray's sockets lie below it, and the kernel takes no long path of a socket: where ``TMPDIR`` is too long, it is in
    ``/tmp``.

    Raises:
        InputError: CLU_SOCKET_PATH.
    """
    pid = os.getpid()
    longest = len(f"/{SESSION}{pid}-abcdefgh/r/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store")
    for place in _places():
        if len(os.fsencode(place)) + longest <= SOCKET_BYTES:
            _forget_killed(place)
            with suppress(OSError):
                folder, handle = integrity.claimed_folder(place, f"{SESSION}{pid}-", suffix="")
                _claims[str(folder)] = handle
                return str(folder)
    raise InputError(
        "CLU_SOCKET_PATH",
        where="TMPDIR",
        found=f"Ray's sockets leave it {SOCKET_BYTES - longest} characters, it has more, and /tmp takes no folder",
        remedy="let TMPDIR name a folder with a shorter path, or make /tmp writable",
    )


def _remove(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder in _claims:
        os.close(_claims.pop(folder))


@contextmanager
def _watched(vital: Sequence[psutil.Process]) -> Iterator[None]:
    """End with one line where Ray loses a process that it rests on; what Ray prints of its own processes, pages of
    their logs among it, is not shown."""
    module = importlib.import_module("ray._private.worker")
    said = internal(module, "print_to_stdstream", "ray")
    module.print_to_stdstream = lambda *_, **__: None  # type: ignore[attr-defined]
    try:
        with ending_with(vital, _remove_all):
            yield
    finally:
        module.print_to_stdstream = said  # type: ignore[attr-defined]


def _remove_all() -> None:
    for folder in [*_claims]:
        _remove(folder)


def _forget_killed(place: Path) -> None:
    """Remove the folders of killed processes; Ray's own may still have written there when it was done last."""
    for folder in place.glob(f"{SESSION}*"):
        with suppress(OSError):  # claimed, another user's, or a file system without locks
            if not psutil.pid_exists(_owner(folder)):
                handle = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(handle)


def _places() -> list[Path]:
    return list(dict.fromkeys([Path(tempfile.gettempdir()), Path("/tmp")]))  # noqa: S108  (our folder there is private)


def require_resources(found: Mapping[str, float], config: RunConfig) -> None:
    """Ray would wait for ever for cores that do not exist.

    Raises:
        InputError: CFG_RESOURCES.
    """
    cluster = config.cluster
    fewest = config.worker_counts[-1]
    wanted = {"CPU": fewest * cluster.cpus_per_worker}
    if cluster.device == "cuda":
        wanted["GPU"] = fewest
    for name, amount in wanted.items():
        if found.get(name, 0) < amount:
            raise InputError(
                "CFG_RESOURCES",
                where="cluster.workers",
                found=f"{amount} {name} wanted, the cluster has {found.get(name, 0):g}",
                remedy="ask for fewer workers or a bigger cluster",
            )
