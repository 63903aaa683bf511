"""A training as events: patches are read ahead, ranks step together, checkpoints are written.

Ranks are alike and start every step together, so each has an equal share of what they read from.  All times are sums
and maxima of other times, in a fixed order: whatever becomes faster makes nothing else slower.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Draw = Callable[[int], NDArray[np.float64]]  # step -> seconds of each rank


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a training runs on.

    Args:
        ranks: processes that step together.
        ranks_per_node: of them on one node; they share its network.
        readers: threads of a rank that make batches, each on a core of its own.
        read_ahead: batches asked for before the one that a step needs, as ``feed.read_ahead``.
        batch_bytes: what a rank reads from the storage for one batch.
        storage_bytes_per_s: what the storage gives to all nodes together.
        node_bytes_per_s: what the network of one node brings.
        latency_s: of one batch's requests, beside the bytes; batches that are read side by side wait side by side.
        all_reduce_s: what a step exchanges between ranks, after all have done their part.
        save_every: steps between checkpoints; there is one after the last step too.  0 for none.
        save_s: what the steps wait for a checkpoint: all of its writing, or its copy in memory.
        write_s: what is written of it in the background afterwards; the next checkpoint waits for its end.
    """

    ranks: int = 1
    ranks_per_node: int = 1
    readers: int = 2
    read_ahead: int = 2
    batch_bytes: float = 0.0
    storage_bytes_per_s: float = math.inf
    node_bytes_per_s: float = math.inf
    latency_s: float = 0.0
    all_reduce_s: float = 0.0
    save_every: int = 0
    save_s: float = 0.0
    write_s: float = 0.0

    @property
    def transfer_s(self) -> float:
        """Time in which a rank's share of storage and network brings one batch."""
        share = min(self.storage_bytes_per_s / self.ranks, self.node_bytes_per_s / self.ranks_per_node)
        return self.batch_bytes / share


@dataclass(frozen=True)
class Outcome:
    """What a training took; the parts sum to the total.

    Args:
        total_s: from the first request to the last byte of the last checkpoint.
        wait_s: for batches that were not ready, the mean of the ranks.
        step_s: of the ranks' own work, the mean of the ranks.
        behind_s: for slower ranks, the mean of the ranks.
        all_reduce_s: for what is exchanged.
        save_s: for checkpoints.
    """

    total_s: float
    wait_s: float
    step_s: float
    behind_s: float
    all_reduce_s: float
    save_s: float


def simulate(setup: Setup, steps: int, *, step_s: Draw, read_s: Draw) -> Outcome:
    """Run ``steps`` steps.

    Args:
        setup: the machines.
        steps: at least 1.
        step_s: a rank's own work in a step.
        read_s: what one thread takes to make a rank's batch of a step from bytes that are there.
    """
    free = np.zeros((setup.readers, setup.ranks))  # when each reader has made its batch
    brought = np.zeros(setup.ranks)  # when each rank's share of the storage is free again
    begins: deque[float] = deque(maxlen=setup.read_ahead + 1)  # of the last steps; the oldest asks for what is next
    everyone = np.arange(setup.ranks)
    now = written = waited = worked = behind = saved = 0.0
    for step in range(steps):
        begins.append(now)
        reader = free.argmin(axis=0)
        begin = np.maximum(free[reader, everyone], begins[0])
        brought = np.maximum(begin, brought) + setup.transfer_s
        ready = brought + setup.latency_s + read_s(step)
        free[reader, everyone] = ready
        start = np.maximum(ready, now)
        work = step_s(step)
        end = float((start + work).max())
        waited += float((start - now).mean())
        worked += float(work.mean())
        behind += end - float((start + work).mean())
        now = end + setup.all_reduce_s
        if setup.save_every and ((step + 1) % setup.save_every == 0 or step + 1 == steps):
            begun, now = now, max(now, written) + setup.save_s
            saved += now - begun
            written = now + setup.write_s
    total = max(now, written)
    return Outcome(total, waited, worked, behind, steps * setup.all_reduce_s, saved + total - now)


def ring_all_reduce_s(size: float, ranks: int, bytes_per_s: float, latency_s: float) -> float:
    """Time in which ranks in a ring sum ``size`` bytes: each sends every part but its own twice.

    >>> ring_all_reduce_s(100.0, 4, 10.0, 0.5)
    18.0
    >>> ring_all_reduce_s(100.0, 1, 10.0, 0.5)
    0.0
    """
    return 2 * (ranks - 1) * (size / ranks / bytes_per_s + latency_s)


def replayed(seconds: NDArray[np.float64]) -> Draw:
    """Return what was measured of one rank, step by step."""
    return lambda step: seconds[step : step + 1]


def spread_like(measured: NDArray[np.float64], mean_s: float, ranks: int, seed: int) -> Draw:
    """Return times of ``ranks`` around ``mean_s``, spread as measured ones are relative to their mean."""
    relative = measured / measured.mean()

    def drawn(step: int) -> NDArray[np.float64]:
        rng = np.random.default_rng((seed, step))
        times: NDArray[np.float64] = mean_s * rng.choice(relative, ranks)
        return times

    return drawn
