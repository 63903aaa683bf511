"""Processes of one test that form a group: forked from one server, so that torch and DeepSpeed are imported once."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

# The first keeps torch's compiler out of what comes after it; torch.testing asks for the last but one.
LOADED = ["trainers.engine", "trainers.habits", "trainers.assembly", "deepspeed", "torch.distributed.tensor", "pytest"]


def run_ranks(body: Callable[..., None], world: int, *arguments: Any) -> None:
    """Call ``body(rank, *arguments)`` in ``world`` processes, and raise what any of them raised."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(LOADED)
    mp.start_processes(body, arguments, world, start_method="forkserver")  # type: ignore[attr-defined,no-untyped-call]
