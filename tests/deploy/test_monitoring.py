"""The monitoring of docs/how-to-watch.md by real programs: every panel has data while a training and a trial run.

Grafana is not installed: its dashboard is checked for what Grafana needs to import it, and asked query by query.
"""

import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from small_runs import CG_3DSRGAN, S3PET

from petscale.training.metrics_export import TAGS

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
BOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
PAGE = (ROOT / "docs" / "how-to-watch.md").read_text()
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [pytest.param(t["expr"], id=f"{p['title']} {t['refId']}") for p in PANELS for t in p["targets"]]
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="needs Debian's package prometheus"
)

TRAINED = [
    *CG_3DSRGAN,
    "feed.cases_per_step=4",
    "loop.log_every=1",
    "loop.save_every=2",
    "loop.picture_every=0",
]
TRIED = [*S3PET, "loop.log_every=1", "loop.picture_every=0"]
# A cluster of its own with a dashboard; a run by Ray Train, then a sweep's trial in an actor, as Ray Tune holds it.
DRIVER = """
import json, sys
from pathlib import Path
import ray
from petscale import config as configs
from petscale.cluster.session import worker_environment
from petscale.training.driver import train_on_ray
from petscale.training.planning import plan_run
from petscale.tuning.search import SweepConfig
from petscale.tuning.sweep import sweep
from petscale.tuning.trial import TrialJob, train_and_score

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    cohort, folder = Path(asked["cohort"]), Path(asked["folder"])
    run = configs.override(configs.from_json({"recipe": "cg_3dsrgan"}), asked["trained"])
    trial = configs.override(configs.from_json({"recipe": "s3pet"}), asked["tried"])
    context = ray.init(
        num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=asked["dashboard"],
        _temp_dir=asked["ray"], _metrics_export_port=asked["metrics"], object_store_memory=100 * 2**20,
        log_to_driver=False, _system_config={"metrics_report_interval_ms": 1000},
        runtime_env={"env_vars": worker_environment(run)},
    )
    print(context.dashboard_url, flush=True)
    sys.stdin.readline()
    plan = plan_run(cohort, folder / "a_run", run)
    plan.run.mkdir(parents=True)
    plan.record("petscale train")
    train_on_ray(plan)

    @ray.remote(num_cpus=1)
    class Trial:
        def step(self, job):
            return train_and_score(job, 0)

    job = TrialJob(
        folder=str(folder / "a_study" / "trials" / "7"), cohort=str(cohort), rungs=1, factor=3,
        base=configs.to_json(trial), objectives=("psnr_body",), settings={},
    )
    actor = Trial.remote()
    print(json.dumps(ray.get(actor.step.remote(job))), flush=True)
    sys.stdin.readline()
"""


def command(program: str) -> list[str]:
    """The page's command line that begins with ``program``."""
    (line,) = re.findall(rf"^{program} .*$", PAGE, flags=re.M)
    return shlex.split(line)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(words: list[str], **settings: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process that ends with the context, and everything that it started."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, **settings
        )
        try:
            yield process
        except BaseException:
            errors.seek(0)
            print(errors.read()[-4000:])
            raise
        finally:
            assert process.stdin is not None
            tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.stdin.close()
            if words[0] != sys.executable:
                process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for left in psutil.wait_procs(tree, timeout=10)[1]:
                left.kill()


def told(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the process has ended"
    return line.strip()


def fetch(address: str, **query: str) -> Any:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{address}?{urllib.parse.urlencode(query)}", timeout=10) as page:
        text = page.read().decode()
        return json.loads(text) if text.startswith("{") else text


def listens(port: int) -> bool:
    """Whether the port of this machine takes connections.

    Raises:
        OSError: it does not.
    """
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


def until_answered(ask: Callable[[], Any], within_s: float = 30) -> Any:
    """What ``ask`` returns once it is something."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if found := ask():
                return found
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"nothing within {within_s:g} s")


@contextmanager
def prometheus(folder: Path, discovery: Path) -> Iterator[str]:
    """The page's Prometheus with the committed configuration: only its port, paths and pace are the test's own."""
    text = (MONITORING / "prometheus.yml").read_text()
    settings = yaml.safe_load(text)
    (scraped,) = settings["scrape_configs"]
    scraped["file_sd_configs"][0] |= {"files": [str(discovery)], "refresh_interval": "1s"}
    settings["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    own = {
        "--config.file=deploy/monitoring/prometheus.yml": f"--config.file={folder / 'prometheus.yml'}",
        "--web.listen-address=127.0.0.1:9090": f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.path=$HOME/prometheus": f"--storage.tsdb.path={folder / 'prometheus'}",
    }
    words = command("prometheus")
    assert set(own) <= set(words)
    with running([own.get(word, word) for word in words], cwd=ROOT) as process:
        address = f"http://127.0.0.1:{port}"
        until_answered(lambda: fetch(f"{address}/-/ready"))
        assert {where.laddr.ip for where in psutil.Process(process.pid).net_connections() if not where.raddr} == {
            "127.0.0.1"
        }
        yield address


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_dashboard_that_grafana_imports() -> None:
    """What the dashboard's JSON model asks for, and nothing that is bound to somebody's own Grafana."""
    assert BOARD["id"] is None
    assert "uid" not in BOARD
    assert BOARD["schemaVersion"] >= 36, "Grafana 10"
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert len({panel["title"] for panel in BOARD["panels"]}) == len(ids)
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(set(cells)) == len(cells), "two panels lie on each other"
    assert all(x < 24 for x, _ in cells)
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "run", "trial"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for holder in (*PANELS, *(target for panel in PANELS for target in panel["targets"]), variables["run"]):
        assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["type"] in ("timeseries", "table")
        assert panel["description"]
        assert [target["refId"] for target in panel["targets"]] == ["A", "B"][: len(panel["targets"])]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_what_is_sent_and_for_the_chosen_runs(query: str) -> None:
    own = re.findall(r"ray_(petscale_\w+)(\{[^}]*\})?", query)
    assert {name for name, _ in own} <= set(TAGS)
    assert all('run=~"$run",trial=~"$trial"' in chosen for _, chosen in own)
    for grouped in re.findall(r"by \(([^)]*)\)", query if own else ""):
        assert set(grouped.split(", ")) <= {"run", "trial", "recipe", *TAGS[own[0][0]]}


def test_every_gauge_and_every_panel_is_told() -> None:
    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    assert [name for name in TAGS if f"ray_{name}" not in shown] == []
    rows = " ".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| "))
    assert [panel["title"] for panel in PANELS if panel["title"] not in rows] == []


def test_nothing_listens_on_a_public_address_or_sends_anything_away() -> None:
    settings = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert set(settings) == {"global", "scrape_configs"}
    for program in ("promtool", "prometheus"):
        assert " ".join(command(program)) in (MONITORING / "prometheus.yml").read_text()
    assert {word for word in command("prometheus") if "listen" in word} == {"--web.listen-address=127.0.0.1:9090"}
    grafana = (MONITORING / "grafana.ini").read_text()
    assert re.findall(r"^http_addr *= *(.*)$", grafana, flags=re.M) == ["127.0.0.1"]
    assert "reporting_enabled = false" in grafana
    (source,) = yaml.safe_load((MONITORING / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://127.0.0.1:9090")
    (provider,) = yaml.safe_load((MONITORING / "provisioning/dashboards/petscale.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "$PETSCALE_MONITORING"
    assert "PETSCALE_MONITORING=$PWD/deploy/monitoring grafana server" in PAGE
    for file in MONITORING.rglob("*.*"):
        assert "0.0.0.0" not in file.read_text()


@needs_prometheus
def test_promtool_accepts_the_configuration_and_parses_every_query(tmp_path: Path) -> None:
    checked = subprocess.run(command("promtool"), cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    rules = [{"record": f"a{number}", "expr": filled(query.values[0])} for number, query in enumerate(QUERIES)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr


# ---- programs -------------------------------------------------------------------------------------------------------


def filled(query: Any) -> str:
    """A query as Grafana sends it: every run, every trial, the last ten minutes."""
    return str(query).replace("$run", ".*").replace("$trial", ".*").replace("$__range", "10m")


def answers(address: str, target: dict[str, Any], since: float) -> list[dict[str, Any]]:
    """Series that a panel's query finds."""
    if target["instant"]:
        found = fetch(f"{address}/api/v1/query", query=filled(target["expr"]))
    else:
        span = {"start": f"{since}", "end": f"{time.time()}", "step": "1"}
        found = fetch(f"{address}/api/v1/query_range", query=filled(target["expr"]), **span)
    assert found["status"] == "success"
    return list(found["data"]["result"])


def series(address: str, metric: str, since: float) -> list[dict[str, Any]]:
    target = {"expr": metric, "instant": False}
    return answers(address, target, since)


@needs_prometheus
@pytest.mark.slow
@pytest.mark.beside
def test_every_panel_has_data_while_a_run_and_a_trial_train(cohort: Path, tmp_path: Path) -> None:
    since, hidden = time.time(), tempfile.mkdtemp(prefix="p-", dir="/tmp")
    asked: dict[str, Any] = {
        "cohort": str(cohort),
        "folder": str(tmp_path / "patient_7"),
        "trained": TRAINED,
        "tried": TRIED,
    }
    asked |= {"ray": hidden, "dashboard": free_port(), "metrics": free_port()}
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    own |= {"AUTOSCALER_METRIC_PORT": f"{free_port()}", "DASHBOARD_METRIC_PORT": f"{free_port()}"}
    own["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's only word for "loopback only", on Linux too
    try:
        with ExitStack() as stack:
            driver = stack.enter_context(
                running([sys.executable, "-c", DRIVER, json.dumps(asked)], env=os.environ | own, cwd=tmp_path)
            )
            assert told(driver) == f"127.0.0.1:{asked['dashboard']}"
            discovery = Path(hidden) / "prom_metrics_service_discovery.json"
            until_answered(discovery.exists)
            address = stack.enter_context(prometheus(tmp_path, discovery))
            until_answered(lambda: series(address, 'up{job="ray"} == 1', since))
            assert driver.stdin is not None
            driver.stdin.write("\n")
            driver.stdin.flush()
            objectives = json.loads(told(driver))
            until_answered(lambda: series(address, 'ray_petscale_validation_score{of="volumes"}', since))

            gpu = torch.cuda.is_available()
            empty = [
                f"{panel['title']}: {target['expr']}"
                for panel in PANELS
                for target in panel["targets"]
                if not answers(address, target, since) and (gpu or not re.search("gpu|gram", target["expr"]))
            ]
            assert empty == []

            run, trial = {"run": "a_run", "recipe": "cg_3dsrgan"}, {"run": "a_study", "trial": "7", "recipe": "s3pet"}
            steps = {s["metric"]["run"]: s for s in series(address, "ray_petscale_step", since)}
            for of in (run, trial):
                assert of.items() <= steps[of["run"]]["metric"].items()
            assert "trial" not in steps["a_run"]["metric"]
            written = [json.loads(line) for line in (tmp_path / "patient_7/a_run/metrics.jsonl").open()]
            last = written[-1]["step"]
            assert float(steps["a_run"]["values"][-1][1]) == last
            losses = {key.removeprefix("loss/") for record in written for key in record if key.startswith("loss/")}
            sent = {s["metric"]["loss"] for s in series(address, 'ray_petscale_loss{run="a_run"}', since)}
            assert sent <= losses
            assert sent
            (score,) = series(address, 'ray_petscale_validation_score{of="volumes"}', since)
            assert (score["metric"]["score"], score["metric"]["trial"]) == ("psnr_body", "7")
            assert float(score["values"][-1][1]) == pytest.approx(objectives["psnr_body"])
            ages = series(address, 'time() - ray_petscale_checkpoint_timestamp_seconds{run="a_run"}', since)
            assert all(0 <= float(age) < 120 for _, age in ages[0]["values"])

            ports = (asked["metrics"], own["AUTOSCALER_METRIC_PORT"], own["DASHBOARD_METRIC_PORT"])
            assert json.loads(discovery.read_text())[0]["targets"] == [f"127.0.0.1:{port}" for port in ports]
            page = fetch(f"http://127.0.0.1:{asked['metrics']}/metrics")
            lines = [line for line in page.splitlines() if line.startswith("ray_petscale_")]
            cases = [case.name for case in (cohort / "cases").iterdir()]
            assert 0 < len(lines) < 100, "few series per run"
            assert not [line for line in lines if any(word in line for word in ("patient_7", *cases))]
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@needs_prometheus
@pytest.mark.skipif(not (shutil.which("sshd") and shutil.which("ssh-keygen")), reason="needs openssh-server")
def test_a_tunnel_reaches_what_listens_on_loopback(tmp_path: Path) -> None:
    """The page's ssh line, to an sshd of the test's own."""
    server, door = free_port(), free_port()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    settings = {
        "Port": server,
        "ListenAddress": "127.0.0.1",
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "user.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
    }
    (tmp_path / "sshd").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    own = ["-p", f"{server}", "-i", f"{tmp_path / 'user'}", "-F", "none", "-o", "StrictHostKeyChecking=no"]
    own += ["-o", f"UserKnownHostsFile={tmp_path / 'known'}", "-o", "ExitOnForwardFailure=yes"]
    with ExitStack() as stack:
        address = stack.enter_context(prometheus(tmp_path, tmp_path / "none.json"))
        Path("/run/sshd").mkdir(exist_ok=True)
        sshd = str(shutil.which("sshd"))
        stack.enter_context(running([sshd, "-D", "-e", "-f", str(tmp_path / "sshd")]))
        until_answered(lambda: listens(server))
        there = {"9090:127.0.0.1:9090": f"{door}:{urllib.parse.urlsplit(address).netloc}"}
        there |= {"3000:127.0.0.1:3000": f"{free_port()}:127.0.0.1:3000"}
        words = [there.get(word, word) for word in command("ssh")]
        user = psutil.Process().username()
        stack.enter_context(running([*words[:-1], *own, f"{user}@127.0.0.1"]))
        assert "Ready" in until_answered(lambda: fetch(f"http://127.0.0.1:{door}/-/ready"))
