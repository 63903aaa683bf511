"""``petscale submit``, ``status``, ``logs`` and ``stop``: a petscale command as a detached job of a running cluster."""

import asyncio
import json
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from petscale.cluster.connection import job_client
from petscale.cluster.installation import code
from petscale.cluster.nodes import STORAGE
from petscale.console import console
from storage.errors import InputError
from storage.integrity import scratch

CLUSTER = "cluster.yaml"

WORDS = (
    "@command.json"  # what a job's driver is told to do; a job's own entrypoint is shown to everybody, paths and all
)


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
    with job_client(cluster) as client, scratch(prefix="petscale-job-") as folder:
        sent = [_sent(word, folder) for word in words]
        (folder / WORDS[1:]).write_text(json.dumps(sent))
        client.submit_job(
            entrypoint=f"python -m petscale {WORDS}",
            submission_id=job,
            runtime_env={**code(), "working_dir": str(folder)},
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
    with job_client(cluster) as client:
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
    with job_client(cluster) as client:
        name = _known(client, job)
        if follow:
            _follow(client, name)
        else:
            print(client.get_job_logs(name), end="")


def stop(job: str, cluster: str) -> None:
    """End a job; the same command, submitted again, continues from what was committed.

    Raises:
        InputError: CLU_NO_JOB, and those of reaching the cluster.
    """
    with job_client(cluster) as client:
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
        console.print(f"the job continues: petscale logs {job}", markup=False)
        return
    while not (state := client.get_job_status(job)).is_terminal():  # the log's end comes before the job's
        time.sleep(0.5)
    if state.value != "SUCCEEDED":
        raise InputError(
            "CLU_JOB_FAILED",
            where=job,
            found=f"the job is {state.value.lower()}; its own words are above",
            remedy="fix what they name, then submit the same command again: it continues",
        )
