"""Where work fits on a cluster: waiting for machines of a cluster that grows, and counting what fits at once."""

import importlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from petscale.cluster.nodes import joined
from storage.errors import InputError
from storage.internals import internal

SETTLE_S = 10.0  # workers that have just ended may hold their place for so long

SCALE_UP_S = "PETSCALE_SCALE_UP_S"  # set where the cluster grows: how long a new machine may take to come


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
def machines_for(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Wait, on a cluster that grows, until it holds all bundles at once or has had its time; they stay for the block.

    Raises:
        InputError: CFG_RANGE.
    """
    with asking(bundles) as patience_s:
        deadline = time.monotonic() + patience_s
        if patience_s and not _holds(bundles):
            from petscale.console import console

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


def room_for(counts: Sequence[int], bundle: Mapping[str, float], patience_s: float) -> int | None:
    """Wait until the cluster has room for one of several numbers of a bundle; None where it never had.

    Args:
        counts: the largest first.
        bundle: resource -> amount.
        patience_s: how long to wait for any of them.

    Returns:
        The largest number that there is room for beside others' work.  One that has no room although the nodes could
        hold it is waited for shortly: what has just ended may still be there.
    """
    began = time.monotonic()
    while True:
        now = _largest(counts, bundle, _free())
        waited_s = time.monotonic() - began
        if now is not None and (waited_s >= SETTLE_S or now == _largest(counts, bundle, _nodes())):
            return now
        if waited_s >= patience_s:
            return now
        time.sleep(0.5)


def _largest(counts: Sequence[int], bundle: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int | None:
    return next((count for count in counts if _fit([bundle] * count, nodes)), None)


def _free() -> list[dict[str, float]]:
    """What each node has left beside what works on it now."""
    state = importlib.import_module("ray._private.state")
    return [dict(node) for node in internal(state, "available_resources_per_node", "ray")().values()]


def _nodes() -> list[dict[str, float]]:
    """What each node that is there has."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _holds(bundles: Sequence[Mapping[str, float]]) -> bool:
    """Whether the nodes that are there could hold the bundles, were they idle."""
    return _fit(bundles, _nodes())


def _fit(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether nodes can hold the bundles, each on one of them; exact for bundles that are alike."""
    left = [dict(node) for node in nodes]
    for bundle in bundles:
        fit = next((one for one in left if all(one.get(name, 0) >= n for name, n in bundle.items())), None)
        if fit is None:
            return False
        fit |= {name: round(fit[name] - n, 4) for name, n in bundle.items()}  # Ray counts in ten-thousandths
    return True


def machine_cpus() -> int:
    """Cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0))


def fewest_cpus() -> int:
    """Cores of the smallest node that works at all."""
    import ray

    cores = (int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    return min(filter(None, cores), default=1)
