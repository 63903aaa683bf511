"""Fine-tuning: networks that begin with the weights of an earlier run, whatever the system.

A system exports weights under names of its own (``Recipe.weights``), and its engines know their networks by parameter
names.  Which is which is not written down anywhere: it is found by marking every tensor of every network with a number
of its own, and reading the numbers in what is exported.  The weights are then put into the networks before their
engines are made, so that averages, ZeRO's partitions and masters in DeepSpeed all begin with them.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Size, Tensor, nn

from storage.errors import InputError
from trainers.engine import plain_engine
from trainers.recipe import Engine, EngineFactory, OptimizerFactory, Recipe

MARK = 2**20  # the first number: a float32 holds whole numbers up to 2^24, and no system starts at any of these


@dataclass(frozen=True)
class Place:
    """Where an exported tensor comes from.

    Args:
        network: its number, in the order in which a system makes its engines.
        key: in the network's ``state_dict``.
        shape: of the tensor.
    """

    network: int
    key: str
    shape: Size


def places(build: Callable[[EngineFactory], Recipe]) -> tuple[dict[str, Place], frozenset[str]]:
    """Find where the exported weights of a system live; the generator of random numbers is left as it was.

    Args:
        build: makes the system with its networks on the CPU.

    Returns:
        name of an exported tensor -> its place; and the names of those that are in no network, as a fitted filter's
        coefficients, which every run fits itself.
    """
    networks: list[nn.Module] = []

    def make(network: nn.Module, optimizer: OptimizerFactory) -> Engine:
        networks.append(network)
        return plain_engine(network, optimizer)

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        recipe = build(make)
        marked = [(number, *named) for number, net in enumerate(networks) for named in net.state_dict().items()]
        for mark, (_, _, value) in enumerate(marked, MARK):
            value.fill_(mark)
        exported = recipe.weights()
    found: dict[str, Place] = {}
    for name, tensor in exported.items():
        first = float(tensor.flatten()[0]) if tensor.numel() else 0.0
        index = int(first) - MARK if MARK <= first < MARK + len(marked) else len(marked)
        if index < len(marked) and bool((tensor == first).all()):
            network, key, value = marked[index]
            if value.shape == tensor.shape:
                found[name] = Place(network, key, value.shape)
    return found, frozenset(exported.keys() - found.keys())


def check_fits(weights: Mapping[str, Tensor], placed: Mapping[str, Place], others: frozenset[str], where: str) -> None:
    """Refuse weights of other networks than a run has.

    Raises:
        InputError: CKPT_CONFIG.
    """
    wrong = [f"{name} is missing" for name in placed if name not in weights]
    wrong += [f"{name} is in no network" for name in weights if name not in placed and name not in others]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, here {tuple(place.shape)}"
        for name, place in placed.items()
        if name in weights and weights[name].shape != place.shape
    ]
    if wrong or not placed:
        raise InputError(
            "CKPT_CONFIG",
            where=where,
            found=f"weights of other networks than this run has: {wrong[0] if wrong else 'it exports none'}",
            remedy="use the settings of the run that made them (petscale train --config), or other weights",
        )


def starting_from(make: EngineFactory, weights: Mapping[str, Tensor], placed: Mapping[str, Place]) -> EngineFactory:
    """Return a factory of engines for one build of a system, whose networks begin with weights.

    Args:
        make: the factory of the engines that train.
        weights: exported by a run of the same system and networks.
        placed: what ``places`` found.
    """
    number = itertools.count()

    def made(network: nn.Module, optimizer: OptimizerFactory) -> Engine:
        mine = next(number)
        own = {place.key: weights[name] for name, place in placed.items() if place.network == mine}
        if own:
            network.load_state_dict({**network.state_dict(), **own})
        return make(network, optimizer)

    return made
