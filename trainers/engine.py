"""A network and its optimizer become an engine.  The only file that imports DeepSpeed.

Precision ``bf16`` means bf16 autocast over fp32 weights: the optimizer, WGAN's weight clipping and the checkpoint see
the exact numbers, and there is no second copy of the weights that could drift away from them.

An engine's state is its whole fp32 weights and optimizer moments by parameter name, whatever the ZeRO stage and the
number of ranks, so that one safetensors file replaces DeepSpeed's pickles and a run may go on at another world size.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from storage.internals import internal
from storage.ranges import Range, check_ranges
from trainers.batch_norm import over_ranks
from trainers.compiler import postpone_compiler
from trainers.recipe import Engine, EngineFactory, OptimizerFactory

postpone_compiler()


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How networks are trained, whatever they are.

    Args:
        zero_stage: DeepSpeed ZeRO stage; 3 is not offered: gradients through a frozen critic are silently wrong there.
        precision: fp32, or bf16 autocast over fp32 weights.
        gradient_clipping: global gradient norm bound, 0 for none (DeepSpeed's own default would be 1).
        ema_decay: d of an exponential moving average of every network's weights, 0 for none.  Pictures, validation and
            exported weights then use the average; running statistics of batch norm are the current network's.  After n
            updates the decay is min(d, (1 + n) / (10 + n)).
        warm_up_steps: first updates of every network, in which its learning rate rises linearly to what the system
            sets.
        lr_decay: what becomes of the learning rate after that: it stays what the system sets, or falls along a half
            cosine to 0 at the end of the run (of all its phases together).
    """

    zero_stage: Literal[0, 1, 2] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_clipping: Annotated[float, Range(0)] = 0.0
    ema_decay: Annotated[float, Range(0, below=1)] = 0.0
    warm_up_steps: Annotated[int, Range(0)] = 0
    lr_decay: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        check_ranges(self, "engine")


class _InPrecision(nn.Module):
    """A network run under autocast, its output (a tensor, or a tuple of tensors) back in fp32."""

    def __init__(self, net: nn.Module, precision: str) -> None:
        super().__init__()
        self.net, self.precision = net, precision

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        device = inputs[0].device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.net(*inputs, **options)
        return tuple(part.float() for part in output) if isinstance(output, tuple) else output.float()


@contextmanager
def _frozen(runner: _InPrecision) -> Iterator[Callable[..., Any]]:
    runner.requires_grad_(False)
    try:
        yield runner
    finally:
        runner.requires_grad_(True)


@dataclass(frozen=True)
class _Plain:
    runner: _InPrecision
    optimizer: torch.optim.Optimizer
    gradient_clipping: float

    @property
    def module(self) -> nn.Module:
        return self.runner.net

    def __call__(self, *inputs: Tensor, **options: Any) -> Any:
        return self.runner(*inputs, **options)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        if self.gradient_clipping:
            nn.utils.clip_grad_norm_(self.runner.parameters(), self.gradient_clipping)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def clip_weights(self, bound: float) -> None:
        for weight in self.runner.parameters():
            weight.clamp_(-bound, bound)

    def set_lr(self, lr: float) -> None:
        _set_lr(self.optimizer, lr)

    def frozen(self) -> Any:
        return _frozen(self.runner)

    def state(self) -> dict[str, Tensor]:
        return _export(self.runner.net, self.optimizer)

    def load(self, state: Mapping[str, Tensor]) -> None:
        _restore(self.runner.net, self.optimizer, state)


def plain_engines(config: EngineConfig) -> EngineFactory:
    """Return the factory of engines of PyTorch alone in one process: what DeepSpeed is tested and measured against.

    Nothing is shared between ranks, so that every ZeRO stage is the same.
    """

    def make(net: nn.Module, optimizer: OptimizerFactory) -> Engine:
        runner = _InPrecision(net, config.precision)
        return _Plain(runner, optimizer(net.parameters()), config.gradient_clipping)

    return make


def plain_engine(net: nn.Module, optimizer: OptimizerFactory) -> Engine:
    """Return ``net`` trained by PyTorch alone in one process, in fp32, gradients as they are."""
    return plain_engines(EngineConfig())(net, optimizer)


@dataclass(frozen=True)
class _DeepSpeed:
    runner: _InPrecision
    engine: Any
    stage: int

    @property
    def module(self) -> nn.Module:
        return self.runner.net

    def __call__(self, *inputs: Tensor, **options: Any) -> Any:
        return self.engine(*inputs, **options)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self) -> None:
        self.engine.step()

    @torch.no_grad()
    def clip_weights(self, bound: float) -> None:
        # Stages 1 and 2 step on an fp32 master partition and copy it over the weights, so both must be clipped;
        # clamping is elementwise: every rank does its own part and no communication is needed.
        if self.stage:
            for master in self.engine.optimizer.single_partition_of_fp32_groups:
                master.data.clamp_(-bound, bound)
        for weight in self.runner.parameters():
            weight.clamp_(-bound, bound)

    def set_lr(self, lr: float) -> None:
        _set_lr(self.engine.basic_optimizer, lr)  # what ZeRO's wrapper steps with, too

    def frozen(self) -> Any:
        # The bare network, never the engine: its hooks would fire inside the other network's backward.
        return _frozen(self.runner)

    def state(self) -> dict[str, Tensor]:
        if self.stage == 0:
            return _export(self.runner.net, self.engine.basic_optimizer)
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        state = {f"weight/{k}": v.detach().clone() for k, v in self.runner.net.state_dict().items()}
        moments = self._partitions()[0][1]
        for name, parameter in self.runner.net.named_parameters():
            state[f"weight/{name}"] = safe_get_full_fp32_param(parameter)
            for key in sorted(moments):  # collective: ranks that were loaded hold them in any order
                value = moments[key]
                whole = safe_get_full_optimizer_state(parameter, key) if value.ndim else value.clone()
                state[f"{key}/{name}"] = whole
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        if self.stage == 0:
            _restore(self.runner.net, self.engine.basic_optimizer, state)
            return
        _load_weights(self.runner.net, state)
        zero = self.engine.optimizer
        for group, (flat, moments) in zip(zero.bit16_groups, self._partitions(), strict=True):
            moments.clear()
            named = {id(p): name for name, p in self.runner.net.named_parameters()}
            for parameter in group:
                mapping = internal(parameter, "_hp_mapping", "deepspeed")
                if mapping is None:
                    continue  # this parameter lies in another rank's partition
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                for key, value in _moments(named[id(parameter)], state).items():
                    if not value.ndim:
                        moments[key] = value.clone()
                        continue
                    whole = moments.setdefault(key, torch.zeros_like(flat))
                    part = value.to(flat.device).flatten()[here.start : here.start + here.numel]
                    whole[there.start : there.start + there.numel] = part
                fp32 = parameter.detach().flatten()[here.start : here.start + here.numel]
                flat.data[there.start : there.start + there.numel] = fp32
        if any(moments for _, moments in self._partitions()):
            link = internal(zero, "_lazy_init_hp_params_optimizer_state", "deepspeed")
            zero._hp_optimizer_states_linked = False
            link()

    def _partitions(self) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """This rank's flat fp32 masters, each with its optimizer state."""
        zero = self.engine.optimizer
        return [(flat, zero.optimizer.state[flat]) for flat in zero.single_partition_of_fp32_groups]


def deepspeed_engines(config: EngineConfig, *, device: torch.device) -> EngineFactory:
    """Return the factory a recipe builds its engines with; the process group must be up (Ray Train or the caller)."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel("WARNING")
    # A C++ operator for inference only, which DeepSpeed would compile at start-up on a CPU; petscale needs no compiler.
    internal(deepspeed.ops, "__compatible_ops__", "deepspeed")["deepspeed_shm_comm"] = False
    _load_muon()
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # unused: recipes form their own batches
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.gradient_clipping,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }

    def make(net: nn.Module, optimizer: OptimizerFactory) -> Engine:
        runner = _InPrecision(over_ranks(net).to(device), config.precision)
        # A client torch optimizer: needs no compilation, and "Adam" in DeepSpeed's own config would mean AdamW.
        engine, *_ = deepspeed.initialize(model=runner, optimizer=optimizer(net.parameters()), config=settings)
        return _DeepSpeed(runner, engine, config.zero_stage)

    return make


def _load_muon() -> None:
    """Import an optimizer that no system here has, before ZeRO does so to ask whether an engine's is it.

    Its functions are marked to be compiled, for which torch's compiler would be loaded: three seconds of each process.
    """
    compiler = importlib.import_module("deepspeed.runtime.compiler")
    marked, plain = (internal(compiler, name, "deepspeed") for name in ("compile", "dummy_decorator"))
    compiler.compile = lambda: plain  # type: ignore[attr-defined]
    try:
        with suppress(ImportError):  # a version without it asks for none
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = marked  # type: ignore[attr-defined]


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _export(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = {f"weight/{name}": value.detach().clone() for name, value in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{key}/{name}"] = torch.as_tensor(value).detach().clone()
    return state


def _moments(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Optimizer tensors of the parameter ``name``: keys are ``<moment>/<name>``, and no name holds a slash."""
    pairs = ((key.split("/", 1), value) for key, value in state.items())
    return {moment: value for (moment, owner), value in pairs if owner == name and moment != "weight"}


def _load_weights(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    net.load_state_dict({k.removeprefix("weight/"): v for k, v in state.items() if k.startswith("weight/")})


@torch.no_grad()
def _restore(net: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    _load_weights(net, state)
    for name, parameter in net.named_parameters():
        moments = _moments(name, state)
        if moments:  # torch keeps step counts on the CPU whatever the parameter's device
            optimizer.state[parameter] = {k: v.clone() if k == "step" else v.to(parameter) for k, v in moments.items()}
