"""Probe listening ports without a token and tell which of them answer.

Ray's services speak HTTP or gRPC; each is sent one request that changes nothing.  The token is never read.  Ports of
workers are not probed, since a request that they do not expect may disturb a run.
"""

import http.client
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from petscale.doctor.machine import ANYWHERE, WORKER, Facts, addresses

CONNECT_S, ANSWER_S = 3.0, 10.0  # a dashboard under load takes seconds

# None of the paths that Ray 2.60 answers to everybody by design ("/", "/static/...", health checks, those that take the
# token): whoever is not asked for a token here is let in, also where the answer is 404.
PATH = "/api/version"

GUARDED = (401, 403)

METRICS = ("text/plain; version=", "application/openmetrics-text")

# A question without content for each of Ray's gRPC services; none of them changes anything.  The object manager has
# only "push" and "pull", which should not be probed.
QUESTIONS = (
    "/ray.rpc.NodeInfoGcsService/CheckAlive",
    "/ray.rpc.NodeManagerService/GetSystemConfig",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.LogService/ListLogs",
)

OPEN, METRICS_ONLY, ASKS, UNTRIED, CLOSED = "open", "metrics", "asks for a token", "untried", "closed"

Target = tuple[str, int]


def targets(machine: Facts, node: str) -> list[Target]:
    """Return the addresses and ports at which other machines reach a machine's services.

    Args:
        machine: its facts.
        node: the address by which others know it; empty: the first of its own.
    """
    reached = node or next(iter(machine["addresses"]), "")
    return sorted({(where, one["port"]) for one in exposed(machine) if (where := _reachable(one["ip"], reached))})


def exposed(machine: Facts) -> list[dict[str, Any]]:
    """A machine's services that listen beyond its loopback."""
    return [
        one for one in machine["sockets"] if one["of"] != WORKER and not ipaddress.ip_address(one["ip"]).is_loopback
    ]


def _reachable(ip: str, node: str) -> str:
    return node if ip in ANYWHERE else ip


def probe(wanted: Mapping[str, Sequence[Target]]) -> list[list[Any]]:
    """Probe, from the machine that this runs on, its own services and those of the next machine.

    Args:
        wanted: node address -> its targets, of every node.

    Returns:
        [ip, port, what came back (one of OPEN, METRICS_ONLY, ASKS, UNTRIED, CLOSED)] of each, JSON.
    """
    nodes = sorted(wanted)
    mine = next((node for node in nodes if node in addresses()), nodes[0])
    following = nodes[(nodes.index(mine) + 1) % len(nodes)]
    ports = sorted({(ip, port) for node in (mine, following) for ip, port in wanted[node]})
    with ThreadPoolExecutor(8) as pool:
        return [[*target, came] for target, came in zip(ports, pool.map(_probe_port, ports), strict=True)]


def _probe_port(target: Target) -> str:
    connection = http.client.HTTPConnection(*target, timeout=CONNECT_S)
    try:
        connection.connect()
        connection.sock.settimeout(ANSWER_S)
    except OSError:  # refused, or a firewall between
        return CLOSED
    try:
        connection.request("GET", PATH)
        answer = connection.getresponse()
    except http.client.HTTPException:  # something else than HTTP came back
        return _ask_grpc(target, QUESTIONS)
    except OSError:  # it listens and says nothing
        return UNTRIED
    finally:
        connection.close()
    if answer.status in GUARDED:
        return ASKS
    return METRICS_ONLY if str(answer.getheader("Content-Type", "")).startswith(METRICS) else OPEN


def _ask_grpc(target: Target, questions: Iterable[str]) -> str:
    import grpc  # type: ignore[import-untyped,unused-ignore]  # comes with ray[default]

    ip, port = target
    where = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    with grpc.insecure_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
        for question in questions:
            try:
                channel.unary_unary(question)(b"", timeout=ANSWER_S)
            except grpc.RpcError as error:
                code = error.code()
                if code is grpc.StatusCode.UNIMPLEMENTED:
                    continue
                if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                    return ASKS
                if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return UNTRIED
            return OPEN  # answered, or refused what it understood
    return UNTRIED
