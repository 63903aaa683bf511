"""Where the time of steps goes: the parts of a step sum to it, by a clock that only the work itself moves on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.engine import plain_engine
from trainers.feed import Feed
from trainers.loop import AS_THEY_ARE
from trainers.profiling import (
    ALL_REDUCE,
    BACKWARD,
    FORWARD,
    OPTIMIZER,
    WAIT,
    Stopwatch,
    phase_lengths,
    time_phase,
    timed,
)
from trainers.recipe import Batch, Engine, EngineFactory, Recipe


class Clock:
    """A time that goes on only when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Slow(nn.Module):
    """A weight, whose forward takes 3 s and whose backward takes 5."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.clock = clock

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now_s += 3
        y = x * self.weight
        y.register_hook(lambda gradient: setattr(self.clock, "now_s", self.clock.now_s + 5))
        return y


def slow_adam(parameters: Iterator[nn.Parameter], clock: Clock) -> torch.optim.Optimizer:
    """Updates of 7 s."""
    adam = torch.optim.Adam(parameters)
    adam.register_step_post_hook(lambda *_: setattr(clock, "now_s", clock.now_s + 7))
    return adam


class Toy:
    """Two networks, the second frozen inside the update of the first; 2 s of its own; its first step takes longer."""

    num_steps = 12

    def __init__(self, clock: Clock, make: EngineFactory) -> None:
        self.clock, self.steps = clock, list[int]()
        self.phase_starts = {"one": 0, "two": 11}
        self.engine, self.other = (make(Slow(clock), lambda p: slow_adam(p, clock)) for _ in range(2))

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        self.steps.append(step)
        self.clock.now_s += 2 if step else 100
        with self.other.frozen() as other:
            loss = other(self.engine(batch.source)).sum()
        self.engine.backward(loss)
        self.engine.step()
        return {"loss": loss.detach()}


class SlowFeed:
    """Batches that are waited for for 11 s."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def batch(self, step: int, last: int) -> Batch:
        self.clock.now_s += 11
        none = torch.zeros(1, 1, 0, 0, 0)
        return Batch(torch.ones(1, 1, 1, 1, 1), none, none, none, torch.ones(1), cases=1, places=("",))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> Stopwatch:
    return Stopwatch(now=clock)


@pytest.fixture
def toy(clock: Clock, watch: Stopwatch) -> Toy:
    return Toy(clock, timed(plain_engine, watch))


def measured(toy: Toy, clock: Clock, watch: Stopwatch, phase: str, count: int, **more: Any) -> Any:
    recipe: Recipe = toy  # type: ignore[assignment]
    feed: Feed = SlowFeed(clock)  # type: ignore[assignment]
    steps = phase_lengths(recipe)[phase]
    enough = lambda made, _: made >= count  # noqa: E731
    return time_phase(phase, steps, recipe, feed, AS_THEY_ARE, watch, enough=enough, **more)


def test_the_parts_of_a_step_sum_to_it_and_the_first_one_does_not_count(
    toy: Toy, clock: Clock, watch: Stopwatch
) -> None:
    found = measured(toy, clock, watch, "one", 4)
    # Two forwards and the backward through both networks; the losses' own 2 s belong to no part.
    expected = {WAIT: 11.0, FORWARD: 6.0, BACKWARD: 10.0, OPTIMIZER: 7.0, ALL_REDUCE: 0.0}
    assert found.parts_s == expected
    assert (found.step_s, found.other_s) == (36.0, 2.0)
    assert (found.steps, found.measured, toy.steps) == (11, 4, [0, 1, 2, 3, 4])


def test_a_phase_of_one_step_is_measured_by_that_step_made_again(toy: Toy, clock: Clock, watch: Stopwatch) -> None:
    found = measured(toy, clock, watch, "two", 4)
    assert (found.steps, found.measured, found.step_s, toy.steps) == (1, 1, 36.0, [11, 11])
    assert sum(found.parts_s.values()) == 34.0


def test_traced_steps_follow_and_do_not_count(toy: Toy, clock: Clock, watch: Stopwatch) -> None:
    seen: list[list[int]] = []

    @contextmanager
    def traced() -> Iterator[None]:
        clock.now_s += 1000
        before = len(toy.steps)
        yield
        seen.append(toy.steps[before:])

    found = measured(toy, clock, watch, "one", 3, traced=traced)
    assert seen == [[4, 5]]
    assert (found.measured, found.step_s, sum(found.parts_s.values())) == (3, 36.0, 34.0)


def test_a_part_inside_another_counts_for_itself_alone(clock: Clock, watch: Stopwatch) -> None:
    with watch.part("outer"):
        clock.now_s += 1
        with watch.part("inner"):
            clock.now_s += 10
        with watch.part("inner"):
            clock.now_s += 20
        clock.now_s += 2
    assert watch.seconds == {"outer": 3.0, "inner": 30.0}
    with pytest.raises(ValueError, match="lost"), watch.part("outer"):
        raise ValueError("lost")
    with watch.part("outer"):
        clock.now_s += 4
    assert watch.seconds["outer"] == 7.0


def test_a_timed_engine_trains_as_it_would_untimed(clock: Clock, watch: Stopwatch) -> None:
    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.1)

    def trained(make: EngineFactory) -> Engine:
        torch.manual_seed(0)
        engine = make(nn.Linear(2, 1), adam)
        engine.set_lr(0.2)
        for _ in range(3):
            engine.backward(engine(torch.ones(1, 2)).sum())
            engine.step()
        engine.clip_weights(0.3)
        return engine

    both: list[EngineFactory] = [plain_engine, timed(plain_engine, watch)]
    plain, other = (trained(make) for make in both)
    state = plain.state()
    assert state.keys() == other.state().keys()
    assert all(torch.equal(value, other.state()[name]) for name, value in state.items())
    fresh = timed(plain_engine, watch)(nn.Linear(2, 1), adam)
    fresh.load(state)
    assert torch.equal(fresh.state()["weight/weight"], state["weight/weight"])
