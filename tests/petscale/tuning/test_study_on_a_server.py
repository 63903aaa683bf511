"""A study on a real PostgreSQL, started for the test on a socket of loopback."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from petscale.tuning.objectives import objective
from petscale.tuning.study import open_study
from petscale.tuning.trials import ask, finished, history, requeue, tell

pytest.importorskip("psycopg")
BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))
pytestmark = pytest.mark.skipif(
    not (BIN / "initdb").is_file() or os.geteuid() != 0, reason="needs Debian's postgresql, and root to become its user"
)

SESSION = """
import sys
from petscale.tuning.objectives import objective
from petscale.tuning.study import open_study
from petscale.tuning.trials import ask, requeue, tell
url, folder = sys.argv[1:]
from pathlib import Path
study = open_study(
    Path(folder), storage=url, identity={"cohort": "c0ffee"}, objectives=[objective("psnr_body")], sampler="tpe", seed=1
)
requeue(study)
space = lambda trial: {"recipe.x": trial.suggest_float("x", 0.0, 1.0)}
trial, _ = ask(study, space)
tell(study, trial, [30.0 + trial.params["x"]])
ask(study, space)
print("abandoned", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/var/tmp"))
    shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = [str(BIN / "initdb"), "-D", str(folder / "data"), "--auth=trust", "--no-sync"]
    subprocess.run(made, check=True, user="postgres", cwd=folder, capture_output=True)
    words = [str(BIN / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*words, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"], user="postgres", cwd=folder, stderr=log
        )
    try:
        deadline = time.monotonic() + 30
        ready = [str(BIN / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, capture_output=True).returncode:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # not SIGTERM: it waits for clients
        process.wait()
        shutil.rmtree(folder)


def test_killed_drivers_lose_and_repeat_nothing(server: str, tmp_path: Path) -> None:
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SESSION, server, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout
        assert process.stdout.readline() == b"abandoned\n"
        process.kill()
        process.wait()
    study = open_study(
        tmp_path,
        storage=server,
        identity={"cohort": "c0ffee"},
        objectives=[objective("psnr_body")],
        sampler="tpe",
        seed=1,
    )
    requeue(study)
    while study.get_trials(states=(TrialState.WAITING,)):
        trial, _settings = ask(study, lambda trial: {"recipe.x": trial.suggest_float("x", 0.0, 1.0)})
        tell(study, trial, [30.0])
    assert len(finished(study)) == 4  # one told by each driver, and the one that the last of them had asked for
    done = [line["params"]["x"] for line in history(study) if line["state"] == "COMPLETE"]
    assert len(set(done)) == len(done) == 4
    assert not study.get_trials(states=(TrialState.RUNNING,))
