"""What is measured as a step's products alone is every convolution and matrix product of it, and nothing else."""

import json

import torch
from torch import nn

from benchmarks.roofline.page import KEPT, PAGE, page
from benchmarks.roofline.products import Recorded, adam_updates, again, in_turns


def test_every_product_of_a_step_is_kept_and_nothing_else() -> None:
    net = nn.Sequential(
        nn.Conv3d(1, 2, 3, padding=1),
        nn.InstanceNorm3d(2),
        nn.ReLU(),
        nn.Conv3d(2, 1, 3),
        nn.Flatten(),
        nn.Linear(8, 1),
    )
    with Recorded() as recorded:
        net(torch.ones(1, 1, 4, 4, 4)).sum().backward()
    names = [func.name() for func, _, _ in recorded.calls]
    # Forward: two convolutions and a linear layer; backward: one call for each convolution, the linear layer's two.
    assert names.count("aten::convolution") == names.count("aten::convolution_backward") == 2
    assert names.count("aten::addmm") == 1
    assert names.count("aten::mm") == 2
    assert len(names) == 7


def test_recording_changes_no_bit_and_products_can_be_made_again() -> None:
    torch.manual_seed(0)
    net, x = nn.Conv3d(2, 3, 3), torch.randn(1, 2, 5, 5, 5)
    bare = net(x)
    with Recorded() as recorded:
        seen = net(x)
    assert torch.equal(bare, seen)
    ((func, args, kwargs),) = recorded.calls
    assert torch.equal(func(*args, **kwargs), bare)
    weight = net.weight.detach().clone()
    again(recorded.calls)
    assert torch.equal(net.weight, weight)


def test_ways_take_turns() -> None:
    order: list[str] = []
    found = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}


def test_updates_are_compared_on_the_same_gradients() -> None:
    found = adam_updates(1000, 3)
    assert 0 <= found["differs"] < 1e-6
    assert found["ms"] > 0


def test_the_page_is_made_of_the_kept_results() -> None:
    assert PAGE.read_text() == page(json.loads(KEPT.read_text()))
