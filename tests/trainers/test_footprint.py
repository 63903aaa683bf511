"""Memory told by shapes equals what real networks hold; what a step holds grows with its patches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.engine import EngineConfig, plain_engine
from trainers.footprint import Build, held, step_peak
from trainers.recipe import EngineFactory, OptimizerFactory, Recipe
from trainers.systems import RECIPES

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"channels": (4, 4), "patch": (16, 16, 16), "margin": (4, 4, 4), "patches_per_case": 1, "samples": 8},
    "cycle_wgan": {"width": 2, "downs": 3, "critic_width": 2, "patch": (24, 24, 24), "samples": 6},  # RMSprop
    "dsg_gan": {
        "width": 2,
        "downs": 3,
        "critic_width": 2,
        "patch": (1, 32, 32),
        "structure_samples": 6,
        "texture_samples": 6,
    },
}

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def builder(name: str, **settings: Any) -> Build:
    config = RECIPES[name].Config(**{**SMALL[name], **settings})
    return lambda make: RECIPES[name].build(config, make_engine=make, patches_per_step=2)


def really(build: Build) -> tuple[int, int, int]:
    """Bytes of parameters and buffers, of gradients, and of moments of networks on the CPU, each updated once."""
    nets: list[nn.Module] = []
    optimizers: list[torch.optim.Optimizer] = []

    def make(net: nn.Module, optimizer: OptimizerFactory) -> Any:
        nets.append(net)

        def kept(parameters: Any) -> torch.optim.Optimizer:
            optimizers.append(optimizer(parameters))
            return optimizers[-1]

        return plain_engine(net, kept)

    build(make)
    gradients = 0
    for net in nets:
        sum(p.sum() for p in net.parameters()).backward()
        gradients += sum(size(p.grad) for p in net.parameters() if p.grad is not None)
    for optimizer in optimizers:
        optimizer.step()
    weights = sum(size(t) for net in nets for t in (*net.parameters(), *net.buffers()))
    moments = [t for one in optimizers for state in one.state.values() for name, t in state.items() if name != "step"]
    return weights, gradients, sum(map(size, moments))


def size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


@pytest.mark.parametrize("name", SMALL)
def test_weights_gradients_and_optimizer_state_are_what_real_networks_hold(name: str) -> None:
    found = held(builder(name), EngineConfig(), 1)
    assert (found.weights, found.gradients, found.optimizer) == really(builder(name))
    assert found.optimizer > 0
    assert found.total == sum(really(builder(name)))


def test_zero_divides_what_it_divides_and_an_average_is_one_more_copy() -> None:
    build = builder("unet")
    plain = held(build, EngineConfig(), 4)
    assert plain == held(build, EngineConfig(), 1)
    first, second = (held(build, EngineConfig(zero_stage=stage), 4) for stage in (1, 2))
    assert first.weights - plain.weights == plain.gradients // 4
    assert (first.gradients, first.optimizer) == (plain.gradients, plain.optimizer // 4)
    assert (second.weights, second.gradients, second.optimizer) == (
        first.weights,
        plain.gradients // 4,
        plain.optimizer // 4,
    )
    averaged = held(build, EngineConfig(ema_decay=0.9), 1)
    assert averaged == replace(plain, weights=plain.weights + plain.gradients)


def test_what_a_step_holds_grows_by_the_same_for_each_group_of_patches() -> None:
    one, two, three = (step_peak(builder("unet"), EngineConfig(), cases) for cases in (1, 2, 3))
    assert one is not None
    assert two is not None
    assert three is not None
    assert three - two == two - one
    # The source with its margin and the target at least; backward keeps a multiple of that.
    assert two - one > 4 * (24**3 + 16**3)


def test_what_a_step_of_one_convolution_holds_is_what_one_counts_by_hand() -> None:
    class One:
        num_steps, phase_starts = 4, {"only": 0}

        def __init__(self, make: EngineFactory) -> None:
            self.engine = make(nn.Conv3d(1, 8, 1, bias=False), lambda p: torch.optim.Adam(p))
            self.spec = (
                RECIPES["unet"]
                .build(RECIPES["unet"].Config(**SMALL["unet"]), make_engine=plain_engine, patches_per_step=1)
                .batch_spec(0)
            )

        def batch_spec(self, step: int) -> Any:
            return replace(self.spec, halo=(0, 0, 0), rois=(), marked=(), overview=0)

        def step(self, batch: Any, step: int) -> dict[str, Tensor]:
            loss = self.engine(batch.source).sum()
            self.engine.backward(loss)
            self.engine.step()
            return {"loss": loss.detach()}

    build: Callable[[EngineFactory], Recipe] = One  # type: ignore[assignment]
    voxels = 4 * 16**3
    found = step_peak(build, EngineConfig(), 1)
    assert found is not None
    # Source, target and the eight channels of the output; a sum keeps nothing, and its gradient is one number.
    whole = (1 + 1 + 8) * voxels
    assert whole <= found < 1.01 * whole


def test_a_system_that_decides_by_values_has_no_peak_by_shapes() -> None:
    config = RECIPES["restore"].Config(
        channels=(4, 4), patch=(16, 16, 16), margin=(4, 4, 4), patches_per_case=1, bank_samples=4, samples=8
    )
    build: Build = lambda make: RECIPES["restore"].build(config, make_engine=make, patches_per_step=2)  # noqa: E731
    assert step_peak(build, EngineConfig(), 2) is None
    assert held(build, EngineConfig(), 1).optimizer > 0
