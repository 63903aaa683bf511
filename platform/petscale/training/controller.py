"""Ray Train's controller in the driver's own process, for a private cluster's driver has nothing else to do.

Ray gives the controller a process, and another one to an actor that asks the autoscaler for room, which a private
cluster does not have: together a sixth of the processor time that a start costs.
"""

import asyncio
import importlib
import logging
import os
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from storage.internals import internal

LOG = "ray-train-controller.log"  # among the logs of Ray's session
STRUCTURED = "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING"


def run_here(**words: Any) -> Any:
    """Run the controller to its end and return Ray Train's result; ``words`` are what Ray gives to its actor.

    Raises:
        InputError: CFG_LIBRARY when Ray's parts are not those of the version that petscale rests on.
    """
    module = importlib.import_module("ray.train.v2._internal.execution.controller.controller")
    policy = words["scaling_policy"]
    for request in ("_send_resource_request", "_maybe_send_resource_request", "_cancel_resource_request"):
        internal(policy, request, "ray")
        setattr(policy, request, lambda: None)
    with _no_actor(), _logged_to_a_file():
        controller = internal(module, "TrainController", "ray")(**words)
        _complete(controller.run())
        return controller.get_result()


def _complete(work: Coroutine[Any, Any, None]) -> None:
    """Run it in a thread of its own, for in a notebook's thread an event loop runs already."""
    with closing(asyncio.new_event_loop()) as loop, ThreadPoolExecutor(1) as thread:
        task = loop.create_task(work)
        try:
            thread.submit(loop.run_until_complete, task).result()
        except BaseException:  # Ctrl-C reaches the main thread alone
            loop.call_soon_threadsafe(task.cancel)
            raise


@contextmanager
def _no_actor() -> Iterator[None]:
    """Give workers no handle of the controller: they would ask it for checkpoints, and it holds none of ours."""
    context = internal(importlib.import_module("ray.runtime_context"), "RuntimeContext", "ray")
    current = internal(context, "current_actor", "ray")
    context.current_actor = None
    try:
        yield
    finally:
        context.current_actor = current


@contextmanager
def _logged_to_a_file() -> Iterator[None]:
    """Keep what the controller logs with Ray's other logs, as its actor does, and off the screen."""
    node = internal(importlib.import_module("ray._private.worker"), "_global_node", "ray")
    logger = logging.getLogger("ray.train")
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers
    file = logging.FileHandler(Path(internal(node, "get_logs_dir_path", "ray")()) / LOG)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    os.environ[STRUCTURED] = "0"  # the controller would set handlers of its own, one of them the screen
    logger.setLevel(logging.INFO)
    logger.propagate, logger.handlers = False, [file]
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers
        del os.environ[STRUCTURED]
        file.close()
