"""The convolutions and matrix products of a step, forward and backward, made again without anything between them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}
Call = tuple[Any, tuple[Any, ...], Mapping[str, Any]]


class Recorded(TorchDispatchMode):
    """Keeps every convolution and matrix product that is made meanwhile, with its tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in PRODUCTS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def again(calls: Sequence[Call]) -> None:
    """Make recorded products again; what they give is dropped."""
    with torch.no_grad():
        for func, args, kwargs in calls:
            func(*args, **kwargs)


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of every way in every round; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            found[name].append(time.process_time() - begin)
    return found


def adam_updates(weights: int, rounds: int) -> dict[str, float]:
    """Milliseconds of Adam's update of so many weights, as it is used and fused, and how far weights then differ."""
    kept: dict[bool, torch.Tensor] = {}
    times: dict[bool, list[float]] = {False: [], True: []}
    steps = {}
    for fused in times:
        torch.manual_seed(0)
        kept[fused] = torch.randn(weights, requires_grad=True)
        steps[fused] = torch.optim.Adam([kept[fused]], fused=fused)
    for step in range(rounds):
        for fused, optimizer in steps.items():
            torch.manual_seed(step)
            kept[fused].grad = torch.randn(weights)
            begin = time.process_time()
            optimizer.step()
            times[fused].append(time.process_time() - begin)
    usual, one = (1000 * statistics.median(times[fused]) for fused in (False, True))
    differs = float((kept[False] - kept[True]).detach().abs().max())
    return {"weights": weights, "updates": rounds, "ms": usual, "fused_ms": one, "differs": differs}
