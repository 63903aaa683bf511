"""How a benchmark is measured: parity first, then rounds in which every contender takes its turn, then ratios.

The machine may be shared.  So contenders alternate, a ratio is made within a round, and it is one of processor time
(user and system, all threads of the process and of what it starts); time on the clock is recorded beside it.
"""

import math
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALL_S = 0.1  # a timing lasts at least about this long: short calls are repeated
DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True)
class Benchmark:
    """One comparison.

    Args:
        name: short, as in the table: ``B4 order 1``.
        does: one sentence.
        ours: petscale's way.
        peers: other ways to the same result, by name.
        bounds: what cannot be beaten, by name; their results are not compared.
        agree: raises AssertionError unless the results of ours (first) and of a peer are the same.
        others: ways whose results differ by intent, timed beside the rest, by name.
        absent: ways that are left out because their library is not installed, by name.
    """

    name: str
    does: str
    ours: Callable[[], Any]
    peers: Mapping[str, Callable[[], Any]]
    bounds: Mapping[str, Callable[[], Any]]
    agree: Callable[[Any, Any], None]
    others: Mapping[str, Callable[[], Any]]
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """How many times ours a contender takes: the median over the rounds, and its 95 % interval.

    Args:
        clock: the median ratio of times on the clock.
        seconds: the least processor time of a call.
    """

    median: float
    low: float
    high: float
    clock: float
    seconds: float


def measure(benchmark: Benchmark, rounds: int) -> tuple[float, dict[str, Ratio]]:
    """Return the least processor seconds of a call of ours, and the ratio of every contender to it.

    Raises:
        AssertionError: a peer's result is another one; nothing is timed then.
    """
    expected = benchmark.ours()
    for peer in benchmark.peers.values():
        benchmark.agree(expected, peer())
    del expected
    ways = {"": benchmark.ours, **benchmark.peers, **benchmark.others, **benchmark.bounds}
    calls = {name: math.ceil(CALL_S / max(_timed(way, 1)[0], 1e-4)) for name, way in ways.items()}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    order = list(ways)
    for number in range(rounds):
        first = number % len(order)
        for name in order[first:] + order[:first]:
            spent[name].append(_timed(ways[name], calls[name]))
    ours = np.array(spent.pop(""))
    found = {name: ratio_of(np.array(times), ours) for name, times in spent.items()}
    return float(ours[:, 0].min()), found


def _timed(way: Callable[[], Any], calls: int) -> tuple[float, float]:
    """Processor time and time on the clock of a call, in seconds."""
    processor, clock = _processor_s(), time.perf_counter()
    for _ in range(calls):
        way()
    return (_processor_s() - processor) / calls, (time.perf_counter() - clock) / calls


def _processor_s() -> float:
    """Processor time of this process and of those that it has started and that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def ratio_of(theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> Ratio:
    """Return the ratio of two contenders' (rounds, 2) processor and clock seconds."""
    ratios = theirs / ours
    drawn = np.random.Generator(np.random.Philox(0)).integers(len(ratios), size=(DRAWS, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn, 0], axis=1), [2.5, 97.5])
    middle, clock = np.median(ratios, axis=0)
    return Ratio(float(middle), float(low), float(high), float(clock), float(theirs[:, 0].min()))
