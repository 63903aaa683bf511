"""How this machine reaches a cluster's dashboard and job service: an ssh tunnel, a token, a client."""

import logging
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from petscale.cluster.nodes import SILENT
from storage.errors import InputError

DASHBOARD_PORT = 8265

LOOPBACK = "127.0.0.1"

TUNNEL_S = 30.0


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
def job_client(cluster: str) -> Iterator[Any]:
    """A client of the cluster's job service, through an ssh tunnel where a cluster file says how."""
    with _address(cluster) as address, _answering(address, cluster) as client:
        yield client


@contextmanager
def _answering(address: str, cluster: str) -> Iterator[Any]:
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # before ray is imported: it looks once
    os.environ |= SILENT
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient
    from requests import RequestException

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
    except (RuntimeError, RequestException) as error:  # any other answer, a stale Ray's protocol for instance
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
