"""What is done to every network of a run, whatever its system: averaged weights, and the learning rate's schedule.

An ``Engine`` is put around the one that trains, so that no system knows of it.  The average is part of the engine's
state and whole on every rank, and so is exact after a resume at any ZeRO stage and number of workers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn, optim

from trainers.assembly import AVERAGE
from trainers.engine import EngineConfig
from trainers.recipe import Engine, EngineFactory, OptimizerFactory
from trainers.schedule import lr_factor

UPDATES = "average_updates/count"  # how many updates an average has seen, in an engine's state
MADE = "updates/count"  # how many updates were made, where the rate warms up


class Engines:
    """The engines of one run as its configuration asks for, made for a system and led by the loop.

    Args:
        make: the factory of the engines that train.
        config: how networks are trained.
    """

    def __init__(self, make: EngineFactory, config: EngineConfig) -> None:
        self._make, self._config = make, config
        self._led: list[_Led] = []
        self._factor = 1.0

    def make(self, net: nn.Module, optimizer: OptimizerFactory) -> Engine:
        """Return a network's engine: ``trainers.recipe.EngineFactory``."""
        c = self._config
        if not (c.ema_decay or c.warm_up_steps or c.lr_decay != "constant"):
            return self._make(net, optimizer)
        made: list[optim.Optimizer] = []

        def kept(parameters: Iterator[nn.Parameter]) -> optim.Optimizer:
            made.append(optimizer(parameters))
            return made[0]

        led = _Led(self._make(net, kept), made[0], lambda: self._factor, c.warm_up_steps, c.ema_decay)
        self._led.append(led)
        return led

    def begin(self, step: int, num_steps: int) -> None:
        """Set the factor on the learning rate of the updates of ``step``, of a run of ``num_steps`` steps."""
        c = self._config
        self._factor = lr_factor(step, num_steps, warm_up_steps=c.warm_up_steps, decay=c.lr_decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let every network hold its averaged weights, on this rank alone; then the current ones again, bit for bit."""
        with ExitStack() as stack:
            for engine in self._led:
                stack.enter_context(engine.averaged())
            yield


class _Led:
    """An engine whose updates follow a schedule, and whose weights are averaged where ``decay`` is above 0.

    A network that is first updated late in a run warms up then: its first steps are as large as any other's.
    """

    def __init__(
        self,
        inner: Engine,
        optimizer: optim.Optimizer,
        factor: Callable[[], float],
        warm_up_steps: int,
        decay: float,
    ) -> None:
        self._inner, self._optimizer, self._factor, self._decay = inner, optimizer, factor, decay
        self._warm_up_steps = warm_up_steps
        self._average: dict[str, Tensor] = {}
        self._updates = self._made = 0
        self._start_average()

    @property
    def module(self) -> nn.Module:
        return self._inner.module

    def __call__(self, *inputs: Tensor, **options: Any) -> Any:
        return self._inner(*inputs, **options)

    def backward(self, loss: Tensor) -> None:
        self._inner.backward(loss)

    def step(self) -> None:
        # The recipe's own learning rate stays in the optimizer between updates: ``set_lr`` and the factor never mix.
        groups = self._optimizer.param_groups
        own = [group["lr"] for group in groups]
        warm = min((self._made + 1) / max(self._warm_up_steps, 1), 1.0)
        for group in groups:
            group["lr"] *= min(self._factor(), warm)
        self._inner.step()
        for group, lr in zip(groups, own, strict=True):
            group["lr"] = lr
        self._made += 1
        self._update_average()

    @torch.no_grad()
    def clip_weights(self, bound: float) -> None:
        self._inner.clip_weights(bound)
        for value in self._average.values():
            value.clamp_(-bound, bound)

    def set_lr(self, lr: float) -> None:
        self._inner.set_lr(lr)

    def frozen(self) -> AbstractContextManager[Callable[..., Any]]:
        return self._inner.frozen()

    def state(self) -> dict[str, Tensor]:
        state = self._inner.state()
        if self._decay:
            state |= {f"{AVERAGE}{name}": value.clone() for name, value in self._average.items()}
            state[UPDATES] = torch.tensor(self._updates)
        if self._warm_up_steps:
            state[MADE] = torch.tensor(self._made)
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        own = {key: value for key, value in state.items() if key.startswith(AVERAGE)}
        self._inner.load({key: value for key, value in state.items() if key not in (*own, UPDATES, MADE)})
        self._start_average()
        for key, value in own.items():
            self._average[key.removeprefix(AVERAGE)].copy_(value)
        self._updates = int(state[UPDATES]) if own else 0
        if self._warm_up_steps:  # states of before do not tell it: their networks have warmed up
            self._made = int(state[MADE]) if MADE in state else self._warm_up_steps

    @contextmanager
    def averaged(self) -> Iterator[None]:
        named = self._named()
        current = {name: named[name].detach().clone() for name in self._average}
        with torch.no_grad():
            for name, value in self._average.items():
                named[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in current.items():
                    named[name].copy_(value)

    def _named(self) -> dict[str, nn.Parameter]:
        # A weight that two modules share is exported under both names.
        return dict(self._inner.module.named_parameters(remove_duplicate=False))

    def _start_average(self) -> None:
        self._updates = 0
        if self._decay:
            self._average = {name: value.detach().clone() for name, value in self._named().items()}

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        named = self._named()
        for name, value in self._average.items():
            value.lerp_(named[name], 1 - decay)
        self._updates += 1
