"""What is done to every engine: the average by its formula, the schedule on any learning rate, both exactly resumed."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers import assembly
from trainers.engine import EngineConfig, plain_engine, plain_engines
from trainers.habits import Engines
from trainers.recipe import Engine

Optimizer = Callable[[Any], torch.optim.Optimizer]


def normed() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv3d(1, 3, 3), nn.BatchNorm3d(3), nn.Conv3d(3, 1, 1))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def led(optimizer: Optimizer = adam, **settings: Any) -> tuple[Engines, Engine]:
    config = EngineConfig(**settings)
    engines = Engines(plain_engines(config), config)
    return engines, engines.make(normed(), optimizer)


def update(engine: Engine, step: int) -> None:
    x = torch.rand(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(step))
    engine.backward((engine(x) - 3).square().mean())
    engine.step()


def current(engine: Engine) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in engine.module.named_parameters()}


def test_without_a_habit_an_engine_is_the_one_that_trains() -> None:
    config = EngineConfig()
    engine = Engines(plain_engine, config).make(normed(), adam)
    assert type(engine) is type(plain_engine(normed(), adam))
    assert not [key for key in engine.state() if key.startswith("average")]


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_follows_its_formula(decay: float) -> None:
    _, engine = led(ema_decay=decay)
    expected = current(engine)
    for n in range(12):
        update(engine, n)
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: d * old + (1 - d) * current(engine)[name] for name, old in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(engine.state()[f"average/{name}"], value)


def test_training_itself_is_the_same_with_and_without_an_average() -> None:
    (_, averaged), (_, bare) = led(ema_decay=0.9), led()
    for step in range(4):
        update(averaged, step)
        update(bare, step)
    state = averaged.state()
    assert all(torch.equal(value, state[key]) for key, value in bare.state().items())


def test_exported_weights_are_averaged_and_statistics_are_the_current_ones() -> None:
    _, engine = led(ema_decay=0.9)
    for step in range(4):
        update(engine, step)
    weights, state = assembly.weights_of(engine), engine.state()
    assert weights.keys() == engine.module.state_dict().keys()
    for name, _ in engine.module.named_parameters():
        assert torch.equal(weights[name], state[f"average/{name}"])
        assert not torch.equal(weights[name], state[f"weight/{name}"])
    for name, value in engine.module.named_buffers():
        assert torch.equal(weights[name], value)
    part = assembly.weights_of(engine, under="0.")
    assert part.keys() == {"weight", "bias"}
    assert torch.equal(part["weight"], weights["0.weight"])


def test_averaged_weights_are_lent_and_the_current_ones_come_back_bit_for_bit() -> None:
    engines, engine = led(ema_decay=0.9)
    for step in range(3):
        update(engine, step)
    weights, before = assembly.weights_of(engine), current(engine)
    with suppress(KeyError), engines.averaged():
        assert all(torch.equal(value, weights[name]) for name, value in current(engine).items())
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in current(engine).items())
    _, straight = led(ema_decay=0.9)
    for step in range(4):
        update(straight, step)
    update(engine, 3)
    assert all(torch.equal(value, engine.state()[key]) for key, value in straight.state().items())


def test_an_average_is_resumed_bit_for_bit() -> None:
    engines, straight = led(ema_decay=0.9, warm_up_steps=4, lr_decay="cosine")
    again, resumed = led(ema_decay=0.9, warm_up_steps=4, lr_decay="cosine")
    for step in range(3):
        engines.begin(step, 8)
        update(straight, step)
    update(resumed, 77)  # whatever happened before a load must not matter
    resumed.load(straight.state())
    for step in range(3, 8):
        engines.begin(step, 8)
        again.begin(step, 8)
        update(straight, step)
        update(resumed, step)
    found = resumed.state()
    assert straight.state().keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in straight.state().items())


def test_replaced_weights_start_the_average_anew() -> None:
    _, engine = led(ema_decay=0.9)
    for step in range(5):
        update(engine, step)
    assembly.set_weights(engine, {"0.bias": torch.full((3,), 7.0)})
    assert torch.equal(assembly.weights_of(engine)["0.bias"], torch.full((3,), 7.0))
    assert all(torch.equal(value, assembly.weights_of(engine)[name]) for name, value in current(engine).items())
    update(engine, 9)
    expected = 0.1 * 7.0 + 0.9 * current(engine)["0.bias"]  # (1 + 0) / (10 + 0) of what was set
    torch.testing.assert_close(assembly.weights_of(engine)["0.bias"], expected)


def test_a_clipped_weight_is_clipped_in_the_average() -> None:
    _, engine = led(ema_decay=0.9)
    update(engine, 0)
    engine.clip_weights(0.01)
    assert all(value.abs().max() <= 0.01 for key, value in engine.state().items() if key.startswith("average/"))


def test_the_schedule_is_a_factor_on_whatever_rate_the_system_sets() -> None:
    engines, engine = led(sgd, warm_up_steps=4, lr_decay="cosine")
    bare = plain_engine(normed(), sgd)
    for step, (lr, factor) in enumerate([(0.5, 0.25), (0.5, 0.5), (0.2, 0.75), (0.2, 1.0), (0.2, 1.0), (0.2, None)]):
        engines.begin(step, 8)
        factor = (1 + math.cos(math.pi / 4)) / 2 if factor is None else factor
        engine.set_lr(lr)
        bare.set_lr(lr * factor)
        update(engine, step)
        update(bare, step)
    for name, value in current(bare).items():
        assert torch.equal(value, current(engine)[name])


def test_a_network_that_is_first_updated_late_warms_up_then_also_after_a_resume() -> None:
    engines, engine = led(sgd, warm_up_steps=4)
    _, resumed = led(sgd, warm_up_steps=4)
    bare = plain_engine(normed(), sgd)
    engines.begin(100, 200)
    for number, factor in enumerate([0.25, 0.5, 0.75, 1.0, 1.0]):
        bare.set_lr(0.2 * factor)
        engine.set_lr(0.2)
        update(bare, number)
        update(engine, number)
        if number == 1:
            resumed.load(engine.state())
    assert all(torch.equal(value, current(engine)[name]) for name, value in current(bare).items())
    assert int(resumed.state()["updates/count"]) == 2
    before = {key: value for key, value in engine.state().items() if key != "updates/count"}
    resumed.load(before)  # of a run from before networks counted
    assert int(resumed.state()["updates/count"]) == 4


@pytest.mark.parametrize("bound", [0.5, 1e6])
def test_the_norm_of_the_gradient_is_bounded_and_a_smaller_one_is_left_alone(bound: float) -> None:
    nets = [normed() for _ in range(2)]
    engines = [
        plain_engines(EngineConfig(gradient_clipping=b))(net, sgd) for net, b in zip(nets, (bound, 0.0), strict=True)
    ]
    changes = []
    for engine in engines:
        before = current(engine)
        x = torch.rand(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))
        engine.backward(1000 * (engine(x) - 3).square().mean())
        engine.step()
        changes.append(torch.cat([(before[name] - v).flatten() for name, v in current(engine).items()]) / 0.5)
    clipped, whole = changes
    if bound < whole.norm():
        assert clipped.norm() == pytest.approx(bound, rel=1e-4)
        torch.testing.assert_close(clipped / clipped.norm(), whole / whole.norm(), rtol=1e-3, atol=1e-5)
    else:
        assert torch.equal(clipped, whole)
