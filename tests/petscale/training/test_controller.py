"""Ray Train's controller in the driver: it is run beside a running event loop, is interrupted, and is not on screen."""

import asyncio
import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.runtime_context import RuntimeContext

from petscale.training import controller
from storage.errors import InputError


def test_it_runs_to_its_end_where_an_event_loop_runs_already() -> None:
    ran: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        ran.append(threading.current_thread().name)

    async def notebook() -> None:
        controller._complete(work())

    asyncio.run(notebook())
    assert ran
    assert ran[0] != threading.current_thread().name


def test_what_it_raises_is_raised() -> None:
    async def work() -> None:
        raise InputError("CLU_NO_ROOM", where="run", found="no room", remedy="wait")

    with pytest.raises(InputError, match="CLU_NO_ROOM"):
        controller._complete(work())


def test_an_interrupted_driver_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()

    def interrupted(self: object, timeout: float | None = None) -> None:
        assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        controller._complete(work())
    assert ended.is_set()


def test_its_words_go_to_rays_logs_and_everything_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = SimpleNamespace(get_logs_dir_path=lambda: str(tmp_path))
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    logger, current = logging.getLogger("ray.train"), RuntimeContext.current_actor
    before = logger.level, logger.propagate, logger.handlers
    with controller._no_actor(), controller._logged_to_a_file():
        assert RuntimeContext.current_actor is None
        logging.getLogger("ray.train.v2.anything").info("a worker died")
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert RuntimeContext.current_actor is current
    assert (tmp_path / controller.LOG).read_text().endswith(" INFO a worker died\n")
    assert capsys.readouterr() == ("", "")
