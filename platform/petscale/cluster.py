"""Any petscale command as a job on a running cluster: sent once, detached, with logs and a status to come back to.

What it knows: how to reach a cluster's job service from a laptop, and what travels with a job.  What it refuses to
know: what a command does, and how a cluster is started (``ray up cluster.yaml``).
"""

import asyncio
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from petscale.nodes import SILENT, STORAGE, code
from petscale.progress import console
from storage.errors import InputError

CLUSTER = "cluster.yaml"
WORDS = (
    "@command.json"  # what a job's driver is told to do; a job's own entrypoint is shown to everybody, paths and all
)
DASHBOARD_PORT = 8265
LOOPBACK = "127.0.0.1"
TUNNEL_S = 30.0


def submit(words: Sequence[str], cluster: str, *, follow: bool) -> str:
    """Send a command to the cluster, and this installation's code with it.

    Args:
        words: the command as it would be typed on the cluster; relative paths start at the shared storage.
        cluster: a cluster file, or the URL of a dashboard, port 8265 of the head's loopback.
        follow: show the job's log until it ends; Ctrl-C leaves the job alone.

    Returns:
        The job's name.

    Raises:
        InputError: CLU_FILE, CLU_UNREACHABLE, CLU_TOKEN, CLU_VERSIONS; CLU_JOB_FAILED when a followed job did.
    """
    job = f"{words[0]}-{secrets.token_hex(3)}"
    with _client(cluster) as client, tempfile.TemporaryDirectory(prefix="petscale-job-") as folder:
        sent = [_sent(word, Path(folder)) for word in words]
        (Path(folder) / WORDS[1:]).write_text(json.dumps(sent))
        client.submit_job(
            entrypoint=f"python -m petscale {WORDS}",
            submission_id=job,
            runtime_env={**code(), "working_dir": folder},
            metadata={"command": words[0]},
        )
        console.print(f"job {job}: petscale logs {job} | petscale stop {job}", markup=False, soft_wrap=True)
        if follow:
            _follow(client, job)
    return job


def _sent(word: str, folder: Path) -> str:
    """A file of this machine travels along (a configuration); a folder does not: data lies on the shared storage."""
    path = Path(word).expanduser()
    if word.startswith("-") or not path.is_file() or path.suffix != ".json":
        return word
    shutil.copyfile(path, folder / path.name)
    return path.name


def received() -> list[str]:
    """The words of a job's command, on the cluster; the process is then at the shared storage.

    Raises:
        InputError: CLU_STORAGE where the cluster names a storage that is not there.
    """
    words: list[str] = json.loads(Path(WORDS[1:]).read_bytes())
    words = [str(Path(word).absolute()) if Path(word).is_file() else word for word in words]
    if storage := os.environ.get(STORAGE):
        try:
            os.chdir(storage)
        except OSError as error:
            raise InputError(
                "CLU_STORAGE",
                where=STORAGE,
                found=f"the shared storage cannot be entered on the head ({error.strerror})",
                remedy="mount it on every machine at the path that cluster.yaml names",
            ) from None
    return words


def status(job: str, cluster: str) -> None:
    """Show the cluster's jobs, newest last, or one of them.

    Raises:
        InputError: CLU_NO_JOB, and those of reaching the cluster.
    """
    with _client(cluster) as client:
        found = [client.get_job_info(_known(client, job))] if job else client.list_jobs()
    table = Table("job", "state", "began", "minutes")
    for one in sorted((one for one in found if one.submission_id), key=lambda one: one.start_time or 0):
        begin, end = (one.start_time or 0) / 1000, (one.end_time or 0) / 1000 or time.time()
        table.add_row(
            str(one.submission_id),
            str(one.status.value).lower(),
            f"{datetime.fromtimestamp(begin):%d %b %H:%M}",
            f"{(end - begin) / 60:.1f}",
        )
    console.print(table)


def logs(job: str, cluster: str, *, follow: bool) -> None:
    """Print what a job has said so far, or until it ends.

    Raises:
        InputError: CLU_NO_JOB, CLU_JOB_FAILED when a followed job did, and those of reaching the cluster.
    """
    with _client(cluster) as client:
        name = _known(client, job)
        if follow:
            _follow(client, name)
        else:
            print(client.get_job_logs(name), end="")


def stop(job: str, cluster: str) -> None:
    """End a job; the same command goes on from what it has committed.

    Raises:
        InputError: CLU_NO_JOB, and those of reaching the cluster.
    """
    with _client(cluster) as client:
        name = _known(client, job)
        client.stop_job(name)
        while not client.get_job_status(name).is_terminal():
            time.sleep(0.5)
        print(f"{name}: {client.get_job_status(name).value.lower()}")


def _known(client: Any, job: str) -> str:
    """A job's full name; without one, that of the newest."""
    names = [one.submission_id for one in sorted(client.list_jobs(), key=lambda one: one.start_time or 0)]
    found = [name for name in names if name and (not job or name == job)]
    if not found:
        raise InputError(
            "CLU_NO_JOB",
            where=job or "the cluster",
            found="no such job" if job else "no job was submitted yet",
            remedy="see petscale status",
        )
    return str(found[-1])


def _follow(client: Any, job: str) -> None:
    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        console.print(f"the job goes on: petscale logs {job}", markup=False)
        return
    while not (state := client.get_job_status(job)).is_terminal():  # the log's end comes before the job's
        time.sleep(0.5)
    if state.value != "SUCCEEDED":
        raise InputError(
            "CLU_JOB_FAILED",
            where=job,
            found=f"the job is {state.value.lower()}; its own words are above",
            remedy="mend what they say and submit the same command again: it continues",
        )


@contextmanager
def dashboard(cluster: str) -> Iterator[str]:
    """Where this machine reaches the cluster's Ray dashboard until the block ends; it has answered to our token.

    Raises:
        InputError: CLU_FILE, CLU_UNREACHABLE, CLU_TOKEN, CLU_REFUSED.
    """
    with _address(cluster) as address:
        with _answering(address, cluster):
            pass
        yield address


@contextmanager
def _client(cluster: str) -> Iterator[Any]:
    """A client of the cluster's job service, through an ssh tunnel where a cluster file says how."""
    with _address(cluster) as address, _answering(address, cluster) as client:
        yield client


@contextmanager
def _answering(address: str, cluster: str) -> Iterator[Any]:
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # before ray is imported: it looks once
    os.environ |= SILENT
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # they tell of every package and every socket
        yield client
    except ConnectionError:
        raise InputError(
            "CLU_UNREACHABLE",
            where=cluster,
            found="no dashboard answers there",
            remedy="start the cluster (ray up cluster.yaml), or name the right one with --cluster",
        ) from None
    except AuthenticationError:
        raise InputError(
            "CLU_TOKEN",
            where="~/.ray/auth_token",
            found="the cluster does not accept this machine's token, or there is none",
            remedy="use the token that the cluster was started with (docs/how-to-cluster.md)",
        ) from None
    except RuntimeError as error:  # what else the service answers, a stale Ray's protocol for instance
        raise InputError(
            "CLU_REFUSED",
            where=cluster,
            found=(str(error).splitlines() or [""])[0],
            remedy="petscale submit doctor tells whether versions differ; the head's logs tell the rest",
        ) from None


@contextmanager
def _address(cluster: str) -> Iterator[str]:
    if "://" in cluster:
        yield cluster
        return
    path = Path(cluster)
    try:
        content = yaml.safe_load(path.read_text())
        auth, provider = content["auth"], content["provider"]
        user, key = str(auth["ssh_user"]), str(auth.get("ssh_private_key", ""))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise InputError(
            "CLU_FILE",
            where=path.name,
            found="not there, or not a cluster file",
            remedy="run it beside cluster.yaml, or name a cluster file or a dashboard's address with --cluster",
        ) from None
    head = provider.get("external_head_ip") or provider.get("head_ip") or _cloud_head(path)
    proxy = ["-o", f"ProxyCommand={auth['ssh_proxy_command']}"] if auth.get("ssh_proxy_command") else []
    with _tunnel(user, head, [*(["-i", str(Path(key).expanduser())] if key else []), *proxy], path) as port:
        yield f"http://{LOOPBACK}:{port}"


def _cloud_head(path: Path) -> str:
    from ray.autoscaler.sdk import get_head_node_ip

    return str(get_head_node_ip(str(path)))


@contextmanager
def _tunnel(user: str, head: str, options: Sequence[str], path: Path) -> Iterator[int]:
    """Bring the dashboard, which listens on the head's loopback, to a port of this machine's loopback."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    forward = f"{LOOPBACK}:{port}:{LOOPBACK}:{DASHBOARD_PORT}"
    settings = ("BatchMode=yes", "ExitOnForwardFailure=yes", "StrictHostKeyChecking=accept-new", "ConnectTimeout=10")
    words = ["ssh", "-N", "-L", forward, *(word for one in settings for word in ("-o", one)), *options]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([*words, f"{user}@{head}"], stdin=subprocess.DEVNULL, stderr=said)  # noqa: S603
        try:
            deadline = time.monotonic() + TUNNEL_S
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    last = said.read().decode(errors="replace").strip().splitlines()[-1:] or ["no answer"]
                    raise InputError(
                        "CLU_UNREACHABLE",
                        where=path.name,
                        found=f"ssh to the head failed: {last[0]}",
                        remedy="check head_ip, ssh_user and ssh_private_key, and that the machine is on",
                    )
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0
