"""A network and its optimizer become an engine.  The only file that knows DeepSpeed.

Precision ``bf16`` means bf16 autocast over fp32 weights: the optimizer, WGAN's weight clipping and the checkpoint see
the exact numbers, and no second copy of the weights can drift away from them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainers.recipe import Engine, OptimizerFactory


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How networks are trained, whatever they are.

    Args:
        zero_stage: DeepSpeed ZeRO stage; 3 is not offered: gradients through a frozen critic are silently wrong there.
        precision: fp32, or bf16 autocast over fp32 weights.
        gradient_clipping: global gradient norm bound, 0 for none (DeepSpeed's own default would be 1).
    """

    zero_stage: Literal[0, 1, 2] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_clipping: float = 0.0


@dataclass(frozen=True)
class PlainEngine:
    """PyTorch alone, one process: the reference that the DeepSpeed engine is tested and measured against."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Literal["fp32", "bf16"] = "fp32"

    def __call__(self, *inputs: Tensor, **options: Any) -> Tensor:
        with _autocast(self.module, self.precision):
            output: Tensor = self.module(*inputs, **options)
        return output.float()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def clip_weights(self, bound: float) -> None:
        for weight in self.module.parameters():
            weight.clamp_(-bound, bound)

    @contextmanager
    def frozen(self) -> Iterator[Callable[..., Tensor]]:
        with _frozen(self.module, self.precision) as forward:
            yield forward

    def state(self) -> dict[str, Tensor]:
        return _export(self.module, self.optimizer)

    def load(self, state: Mapping[str, Tensor]) -> None:
        _restore(self.module, self.optimizer, state)


def plain_engine(net: nn.Module, optimizer: OptimizerFactory) -> Engine:
    """Return ``net`` trained by PyTorch alone."""
    return PlainEngine(net, optimizer(net.parameters()))


def _autocast(module: nn.Module, precision: str) -> torch.autocast:
    device = next(module.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def _frozen(module: nn.Module, precision: str) -> Iterator[Callable[..., Tensor]]:
    def forward(*inputs: Tensor, **options: Any) -> Tensor:
        with _autocast(module, precision):
            output: Tensor = module(*inputs, **options)
        return output.float()

    module.requires_grad_(False)
    try:
        yield forward
    finally:
        module.requires_grad_(True)


def _export(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name every weight, buffer and optimizer tensor: ``weight/<name>`` and ``<optimizer key>/<name>``."""
    state = {f"weight/{name}": value.detach().clone() for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{key}/{name}"] = torch.as_tensor(value).detach().clone()
    return state


@torch.no_grad()
def _restore(module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    module.load_state_dict({k.removeprefix("weight/"): v for k, v in state.items() if k.startswith("weight/")})
    for name, parameter in module.named_parameters():
        moments = {k.rsplit("/", 1)[0]: v for k, v in state.items() if k.endswith(f"/{name}") and k != f"weight/{name}"}
        optimizer.state[parameter] = {
            key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
            for key, value in moments.items()
            if key + "/" + name in state
        }
