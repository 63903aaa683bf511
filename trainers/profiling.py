"""What steps cost: where the time of a few of them goes, part by part, without a change to what they compute."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.feed import Feed
from trainers.loop import Leading
from trainers.recipe import Engine, EngineFactory, OptimizerFactory, Recipe

WAIT, FORWARD, BACKWARD, OPTIMIZER, ALL_REDUCE = "wait for data", "forward", "backward", "optimizer", "all-reduce"
PARTS = (WAIT, FORWARD, BACKWARD, OPTIMIZER, ALL_REDUCE)


def _nothing() -> None:
    """A CPU has done what was asked when the call returns."""


class Stopwatch:
    """Seconds by part; a part inside another counts for itself alone.

    Args:
        now: the time, s.
        settle: waits until a device has done all that was asked of it.
    """

    def __init__(self, now: Callable[[], float] = perf_counter, settle: Callable[[], None] = _nothing) -> None:
        self._now, self._settle = now, settle
        self._inside: list[float] = []
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block for ``name``, in a trace of ``torch.profiler`` too."""
        begin = self.read()
        self._inside.append(0.0)
        try:
            with torch.profiler.record_function(name):
                yield
                end = self.read()
        except BaseException:
            self._inside.pop()
            raise
        self.seconds[name] += end - begin - self._inside.pop()  # type: ignore[assignment]
        if self._inside:
            self._inside[-1] += end - begin

    def read(self) -> float:
        """Return the time, s, once the device has done what was asked of it."""
        self._settle()
        return self._now()


class Timed:
    """An engine whose forward, backward and update a stopwatch tells apart."""

    def __init__(self, inner: Engine, watch: Stopwatch) -> None:
        self._inner, self._watch = inner, watch

    @property
    def module(self) -> nn.Module:
        return self._inner.module

    def __call__(self, *inputs: Tensor, **options: Any) -> Any:
        with self._watch.part(FORWARD):
            return self._inner(*inputs, **options)

    def backward(self, loss: Tensor) -> None:
        with self._watch.part(BACKWARD):
            self._inner.backward(loss)

    def step(self) -> None:
        with self._watch.part(OPTIMIZER):
            self._inner.step()

    def clip_weights(self, bound: float) -> None:
        with self._watch.part(OPTIMIZER):
            self._inner.clip_weights(bound)

    def set_lr(self, lr: float) -> None:
        self._inner.set_lr(lr)

    @contextmanager
    def frozen(self) -> Iterator[Callable[..., Any]]:
        with self._inner.frozen() as runner:

            def timed(*inputs: Tensor, **options: Any) -> Any:
                with self._watch.part(FORWARD):
                    return runner(*inputs, **options)

            yield timed

    def state(self) -> dict[str, Tensor]:
        return self._inner.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._inner.load(state)


def timed(make: EngineFactory, watch: Stopwatch) -> EngineFactory:
    """Return the factory of the same engines, timed."""

    def made(net: nn.Module, optimizer: OptimizerFactory) -> Engine:
        return Timed(make(net, optimizer), watch)

    return made


@contextmanager
def all_reduce_timed(watch: Stopwatch) -> Iterator[None]:
    """Count what ranks exchange for itself while the block lasts, also where DeepSpeed asks for it."""
    own = dist.all_reduce

    def counted(*tensors: Any, **options: Any) -> Any:
        with watch.part(ALL_REDUCE):
            return own(*tensors, **options)

    dist.all_reduce = counted
    try:
        yield
    finally:
        dist.all_reduce = own


@dataclass(frozen=True)
class PhaseTime:
    """What a step of one phase takes.

    Args:
        name: of the phase.
        steps: that the phase has.
        measured: steps that were measured.
        step_s: mean time of a step.
        parts_s: part -> its mean time in a step; what no part has is the system's own work between them.
    """

    name: str
    steps: int
    measured: int
    step_s: float
    parts_s: Mapping[str, float]

    @property
    def other_s(self) -> float:
        """Losses, metrics and whatever else lies between the parts."""
        return self.step_s - sum(self.parts_s.values())


def phase_lengths(recipe: Recipe) -> dict[str, range]:
    """Return phase -> its steps, in order.

    >>> from types import SimpleNamespace
    >>> phase_lengths(SimpleNamespace(phase_starts={"fit": 0, "train": 4}, num_steps=10))
    {'fit': range(0, 4), 'train': range(4, 10)}
    """
    starts = [*recipe.phase_starts.values(), recipe.num_steps]
    return {name: range(*starts[i : i + 2]) for i, name in enumerate(recipe.phase_starts)}


def time_phase(
    name: str,
    steps: range,
    recipe: Recipe,
    feed: Feed,
    engines: Leading,
    watch: Stopwatch,
    *,
    enough: Callable[[int, float], bool],
    traced: Callable[[], AbstractContextManager[Any]] | None = None,
) -> PhaseTime:
    """Make the first steps of a phase; the very first is not counted: it is slower, for it reserves memory.

    Args:
        name: of the phase.
        steps: of the phase.
        watch: that of the recipe's engines.
        enough: told the steps measured so far and their seconds together, says whether they suffice.
        traced: where given, what two more steps are made in, uncounted.

    Raises:
        InputError: STORE_DAMAGED.
    """

    def make(step: int) -> None:
        with watch.part(WAIT):
            batch = feed.batch(step, steps.stop)
        engines.begin(step, recipe.num_steps)
        metrics = recipe.step(batch, step)
        bool(torch.isfinite(torch.stack([value.float() for value in metrics.values()])).all())  # as the loop looks

    ahead = iter(steps)
    warm_up = next(ahead)
    make(warm_up)
    watch.seconds.clear()
    count, spent = 0, 0.0
    for step in ahead:
        begin = watch.read()
        make(step)
        spent += watch.read() - begin
        count += 1
        if enough(count, spent):
            break
    if not count:  # a phase of one step
        begin = watch.read()
        make(warm_up)
        count, spent = 1, watch.read() - begin
    parts = {part: watch.seconds[part] / count for part in PARTS}
    if traced is not None:
        with traced():
            for _, step in zip(range(2), ahead, strict=False):
                make(step)
    return PhaseTime(name, len(steps), count, spent / count, parts)
