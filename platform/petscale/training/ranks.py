"""How the workers of a training on one machine find each other: by a file of their user's, so that no port is opened.

torch's default is a store of rank 0 that listens on all addresses and asks for no secret, and what ranks exchange is
partly pickled: who can write into the store can run code in them.
"""

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train.torch.config as ray_torch
from ray.train.torch import TorchConfig

from storage.internals import internal


class _Backend(internal(ray_torch, "_TorchBackend", "ray")):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Form the process group as Ray does, by a file that this attempt alone knows."""
        worker_group.execute(internal(ray_torch, "_set_torch_distributed_env_vars", "ray"))
        worker_group.execute(_name_no_address)
        store = Path(backend_config.folder) / uuid.uuid4().hex
        form = internal(ray_torch, "_setup_torch_process_group", "ray")
        group = {
            "backend": backend_config.backend,
            "world_size": len(worker_group),
            "init_method": f"file://{store}",
            "timeout_s": backend_config.timeout_s,
        }
        ray.get(
            [worker_group.execute_single_async(i, form, world_rank=i, **group) for i in range(len(worker_group))],
        )


@dataclass
class ByFile(TorchConfig):  # type: ignore[misc,unused-ignore]
    """Ray Train's process group on one machine, by files.

    Args:
        folder: where they are made; only this user may enter it, and whoever starts the training removes it.
    """

    folder: str = ""

    @property
    def backend_cls(self) -> Any:
        return _Backend


def _name_no_address() -> None:
    """DeepSpeed would look for MPI where these are missing; it reads no more than that, for the group is there."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
