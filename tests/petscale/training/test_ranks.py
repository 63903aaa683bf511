"""Workers of one machine find each other without a port that the network could reach."""

import ipaddress
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from petscale.cluster.session import runtime_env
from petscale.config import RunConfig

RANKS = 2


def _set(environment: Mapping[str, str]) -> None:
    os.environ |= environment


def _as_rank(rank: int, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """A function of Ray's set-up in a process that is no worker of Ray."""
    if function.__name__ == "_set_torch_distributed_env_vars":  # asks Ray who it is
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
        return None
    return function(**arguments)


def _exchange() -> tuple[list[Any], list[str], bool]:
    """What a rank gets from all, the addresses at which it listens, and whether DeepSpeed needs not look for MPI."""
    import psutil
    import torch.distributed as dist

    got: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(got, {"rank": dist.get_rank()})
    listening = [one.laddr.ip for one in psutil.Process().net_connections("inet") if one.status == "LISTEN"]
    return got, listening, {"MASTER_ADDR", "MASTER_PORT"} <= {*os.environ}


class Group:
    """Stands in for Ray's workers: a process each."""

    def __init__(self, pools: list[ProcessPoolExecutor]) -> None:
        self.pools = pools

    def __len__(self) -> int:
        return len(self.pools)

    def execute(self, function: Callable[..., Any], **arguments: Any) -> list[Any]:
        return [self.execute_single_async(rank, function, **arguments).result() for rank in range(RANKS)]

    def execute_single_async(self, rank: int, function: Callable[..., Any], **arguments: Any) -> "Future[Any]":
        return self.pools[rank].submit(_as_rank, rank, function, arguments)


@pytest.fixture
def group() -> Iterator[Group]:
    spawn = multiprocessing.get_context("spawn")
    environment = runtime_env(RunConfig())["env_vars"]
    with ExitStack() as stack:
        yield Group(
            [
                stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn, initializer=_set, initargs=(environment,)))
                for _ in range(RANKS)
            ]
        )


def test_ranks_meet_by_a_file_and_listen_on_loopback_alone(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petscale.training.ranks import ByFile

    monkeypatch.setattr("ray.get", lambda futures: [one.result() for one in futures])
    config = ByFile(backend="gloo", timeout_s=60, folder=str(tmp_path))
    config.backend_cls().on_start(group, config)
    asked = [pool.submit(_exchange) for pool in group.pools]
    for got, listening, named in [one.result() for one in asked]:
        assert got == [{"rank": 0}, {"rank": 1}]
        assert all(ipaddress.ip_address(ip).is_loopback for ip in listening), listening
        assert named
