"""The machines of the Ray cluster that this process has joined: asked alike, and trusted with work only when alike.

What it knows: how to run one function on every node, and what all nodes must agree on before a run starts.  What it
refuses to know: what is trained, and how a cluster comes into being.
"""

import hashlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from storage.errors import InputError

STORAGE = "PETSCALE_STORAGE"  # names the folder that all nodes mount, where cluster.yaml says one
SCALE_UP_S = "PETSCALE_SCALE_UP_S"  # set where the cluster grows: how long a new machine may take to come
# Ray tells its makers even that it reports nothing, unless the place to tell it to is none.
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_REPORT_URL": "none"}
ALIKE = ("ray", "torch", "deepspeed", "numpy", "zarr", "tensorstore", "dask", "optuna")
ROOMS = ("petscale", "storage", "trainers", "tune_spaces")
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


@contextmanager
def asking(bundles: Sequence[Mapping[str, float]]) -> Iterator[float]:
    """Ask a cluster that grows for machines that hold all bundles at once, until the block ends.

    The last who asks is the only one heard; machines that another's work keeps busy stay nonetheless.  A process that
    is killed leaves its request behind, until the next one's takes its place.

    Args:
        bundles: resource -> amount, each of one machine.

    Yields:
        Seconds that machines may take to come; 0 where nobody was asked, as the cluster does not grow.

    Raises:
        InputError: CFG_RANGE.
    """
    patience_s = _patience_s() if joined() else 0.0
    if not patience_s:
        yield 0.0
        return
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(one) for one in bundles])
    try:
        yield patience_s
    finally:
        request_resources(bundles=[])


@contextmanager
def room(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Wait, on a cluster that grows, until it holds all bundles at once or has had its time; they stay for the block.

    Raises:
        InputError: CFG_RANGE.
    """
    with asking(bundles) as patience_s:
        deadline = time.monotonic() + patience_s
        if patience_s and not _holds(bundles):
            from petscale.progress import console  # here: it would load torch on every node

            wanted = " + ".join(sorted({" ".join(f"{n:g} {name}" for name, n in one.items()) for one in bundles}))
            told = f"waiting up to {patience_s:g} s for machines: {len(bundles)} x {wanted}"
            console.print(told, markup=False, soft_wrap=True)
            while not _holds(bundles) and time.monotonic() < deadline:
                time.sleep(1.0)
        yield


def _patience_s() -> float:
    found = os.environ.get(SCALE_UP_S, "")
    try:
        patience_s = float(found or 0)
    except ValueError:
        patience_s = math.nan
    if not 0 <= patience_s < math.inf:
        raise InputError("CFG_RANGE", where=SCALE_UP_S, found=repr(found), remedy="give seconds, or leave it out")
    return patience_s


def times(bundles: Sequence[Mapping[str, float]]) -> int:
    """How many times the nodes that are there could hold all bundles at once, were they idle."""
    found = 0
    while _holds([*bundles] * (found + 1)):
        found += 1
    return found


def _holds(bundles: Sequence[Mapping[str, float]]) -> bool:
    """Whether the nodes that are there could hold the bundles, were they idle; exact for bundles that are alike."""
    import ray

    left = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for bundle in bundles:
        fit = next((one for one in left if all(one.get(name, 0) >= n for name, n in bundle.items())), None)
        if fit is None:
            return False
        fit |= {name: round(fit[name] - n, 4) for name, n in bundle.items()}  # Ray counts in ten-thousandths
    return True


def fewest_cpus() -> int:
    """Cores of the smallest node that works at all."""
    import ray

    cores = (int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    return min(filter(None, cores), default=1)


def code() -> dict[str, Any]:
    """What brings this installation's code to a cluster: all rooms together, so that no node's older one is left.

    Modules alone and no working folder: someone's folder may hold more than code.
    """
    return {"py_modules": [str(_folder(room)) for room in ROOMS]}


def _folder(room: str) -> Path:
    """Without importing it: that would load torch on every node."""
    spec = importlib.util.find_spec(room)
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def code_digest() -> str:
    """Digest of petscale's own source as this process imports it."""
    digest = hashlib.sha256()
    for room in ROOMS:
        folder = _folder(room)
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".j2"):
                digest.update(f"{room}/{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """What decides the digits of a result on this machine, and petscale's own code."""
    return {
        "petscale": code_digest(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ALIKE},
    }


def check_alike() -> None:
    """Refuse a cluster whose nodes run other code than this process.

    Raises:
        InputError: CLU_VERSIONS, CLU_NODE_SILENT.
    """
    ours = versions()
    for node, theirs in on_every_node(versions).items():
        if other := [f"{name} {theirs[name]}, here {ours[name]}" for name in ours if theirs[name] != ours[name]]:
            raise InputError(
                "CLU_VERSIONS",
                where=f"node {node}",
                found="; ".join(other),
                remedy="install the same versions on all nodes: ray down, ray up --no-config-cache with one checkout",
            )


def require_path(*folders: Path) -> None:
    """Refuse, on a cluster, mirrors of what lies at an URL where every node needs the thing itself.

    Raises:
        InputError: CLU_URL.
    """
    from storage import remote  # here: every worker process of a cluster loads this module, and most need no store

    for folder in folders:
        if joined() and remote.origin(folder):
            raise InputError(
                "CLU_URL",
                where=folder.name,
                found="many runs on many nodes share one folder, and an object store is none",
                remedy="keep cohort and study on storage that all nodes mount; petscale train takes URLs",
            )


def check_shared(folder: Path, *read: Path) -> None:
    """Prove that every node writes to ``folder`` what the others read there.

    Args:
        folder: exists for this process.
        read: files that every node must find with the same content, for instance a cohort's.

    Raises:
        InputError: CLU_STORAGE, CLU_NODE_SILENT.
    """
    token = secrets.token_hex(8)
    try:
        probe = folder / f".probe-{token}-driver"
        probe.write_text(token)
        contents = {str(path): _content(path) for path in read}
        missing = {
            node: found
            for node, found in on_every_node(_look, str(folder), token, contents).items()
            if found or not (folder / f".probe-{token}-{node}").is_file()
        }
        # The others' files, by a second look: what a node wrote must have reached every other node.
        missing |= {} if missing else {n: f for n, f in on_every_node(_count, str(folder), token).items() if f}
    finally:
        for path in folder.glob(f".probe-{token}-*"):
            path.unlink(missing_ok=True)
    if missing:
        node, found = next(iter(missing.items()))
        raise InputError(
            "CLU_STORAGE",
            where=f"node {node}",
            found=found or f"what it writes to '{folder.name}' is not seen elsewhere",
            remedy="put cohorts and runs on a file system that all nodes mount at the same path, or on an object store",
        )


def _look(folder: str, token: str, contents: Mapping[str, str]) -> str:
    """On a node: what is missing, empty when nothing is; leaves a probe of its own."""
    import ray

    here = Path(folder)
    if not here.is_dir() or not (here / f".probe-{token}-driver").is_file():
        return f"the folder '{here.name}' is not there, or is another one"
    for name, content in contents.items():
        if _content(Path(name)) != content:
            return f"'{Path(name).parent.name}' is not there, or is another one"
    with suppress(OSError):
        (here / f".probe-{token}-{ray.util.get_node_ip_address()}").write_text(token)
        return ""
    return f"may not write to '{here.name}'"


def _count(folder: str, token: str) -> str:
    """On a node: whether every node's probe is there to be read."""
    import ray

    expected = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    found = {path.name.removeprefix(f".probe-{token}-") for path in Path(folder).glob(f".probe-{token}-*")}
    return f"does not see what {', '.join(sorted(expected - found))} wrote" if expected - found else ""


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def use_cluster_network() -> None:
    """Let workers talk over the interface that Ray talks over: gloo asks what the host's own name resolves to, and that
    is a loopback address on many a Debian."""
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
