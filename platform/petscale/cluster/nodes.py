"""The nodes of the Ray cluster that this process has joined: run one function on each, or spread work over them."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from storage.errors import InputError

STORAGE = "PETSCALE_STORAGE"  # names the folder that all nodes mount, where cluster.yaml says one

# Ray tells its makers even that it reports nothing, unless the place to tell it to is none.
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_REPORT_URL": "none"}

ASK_AGAIN_S = 5.0

ANSWER_S = 120.0  # a node's first answer may wait for the code to arrive and torch to load


def joined() -> str:
    """Address of the cluster that this process belongs to, empty on a machine by itself; Ray tells a job's driver."""
    return os.environ.get("RAY_ADDRESS", "")


def on_every_node(function: Callable[..., Any], *arguments: Any, timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """Run ``function`` once on every living node of the connected cluster.

    Args:
        function: an importable one; what it returns must be plain data.
        arguments: of the function.
        timeout_s: how long the slowest may take.

    Returns:
        Node's address -> result.

    Raises:
        InputError: CLU_NODE_SILENT naming those that did not answer; whatever ``function`` refused.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask(node: Mapping[str, Any]) -> Any:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        return task.options(scheduling_strategy=there).remote(*arguments)

    deadline = time.monotonic() + timeout_s
    asked = {ask(node): node for node in ray.nodes() if node["Alive"]}
    answers: dict[str, Any] = {}
    why: dict[str, str] = {}
    while asked and (left := deadline - time.monotonic()) > 0:
        again = []
        for one in ray.wait(list(asked), timeout=left)[0]:
            node = asked.pop(one)
            try:
                answers[node["NodeManagerAddress"]] = ray.get(one)
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, InputError):
                    raise
                raise error.cause from None
            except ray.exceptions.RayError as error:  # no process could be started there: its disk was full, say
                why[node["NodeManagerAddress"]] = f" ({type(error).__name__})"
                again.append(node)
        if again:
            time.sleep(ASK_AGAIN_S)
            asked |= {ask(node): node for node in again}
    if asked:
        for one in asked:
            ray.cancel(one, force=True)
        silent = sorted(node["NodeManagerAddress"] for node in asked.values())
        raise InputError(
            "CLU_NODE_SILENT",
            where=", ".join(silent),
            found=f"no answer within {timeout_s:g} s{why.get(silent[0], '')}",
            remedy="look at its disk and its network, start Ray there again (ray up), or take it out of the cluster",
        )
    return dict(sorted(answers.items()))


def use_cluster_network() -> None:
    """Let workers talk over the interface that Ray talks over: gloo asks what the host's own name resolves to, and that
    is a loopback address on many a Debian."""
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    for interface, held in psutil.net_if_addrs().items():
        if any(one.address == address for one in held):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def spread(work: Callable[[str], Any], names: Sequence[str], *, cpus: int) -> Iterator[tuple[str, Any]]:
    """Do ``work(name)`` for every name, spread over the connected cluster's nodes.

    Args:
        work: a function whose result is plain data; done again elsewhere when its node is lost.
        cpus: cores that one may use.

    Yields:
        Each name with its result, or with the ``InputError`` that it ended in, as they come.
    """
    import ray

    task = ray.remote(num_cpus=cpus, max_retries=3, scheduling_strategy="SPREAD")(_apply)
    sent = ray.put(work)  # once, however many names
    open_tasks = {task.remote(sent, name, os.getcwd()): name for name in names}
    try:
        while open_tasks:
            for one in ray.wait(list(open_tasks))[0]:
                name = open_tasks.pop(one)
                try:
                    yield name, ray.get(one)
                except ray.exceptions.RayTaskError as error:
                    if not isinstance(error.cause, InputError):
                        raise
                    yield name, error.cause
    finally:
        for one in open_tasks:
            ray.cancel(one, force=True)


def _apply(work: Callable[[str], Any], name: str, folder: str) -> Any:
    os.chdir(folder)  # relative paths mean what they mean to the driver
    return work(name)
