"""The machines of a cluster: asked to come where it grows, alike in all that decides digits, told whole commands."""

import dataclasses
import importlib.metadata
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from petscale import cli
from petscale.cluster import installation, jobs, placement
from petscale.cluster.installation import ALIKE, PACKAGES, code_digest, versions
from petscale.cluster.jobs import received
from petscale.cluster.nodes import SILENT, STORAGE
from petscale.cluster.placement import SCALE_UP_S
from petscale.data import cohorts
from storage.errors import InputError

Bundle = Mapping[str, float]
PAIR = [{"CPU": 4, "GPU": 1}] * 2


@pytest.mark.parametrize("hashes_patients", [False, True])
def test_only_what_hashes_patients_needs_the_sites_key_on_a_cluster(
    hashes_patients: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.10:6379")
    monkeypatch.delenv("PETSCALE_SITE_KEY")
    read: list[tuple[Path, ...]] = []

    @contextmanager
    def session(config: object, cpus: int, folder: Path, *files: Path) -> Iterator[None]:
        read.append(files)
        yield

    monkeypatch.setattr("petscale.cluster.session.session", session)
    spread = cohorts._spread(tmp_path / "cohort", 1, hashes_patients)
    if hashes_patients:
        with pytest.raises(InputError, match="CLU_SITE_KEY"), spread:
            pass
        monkeypatch.setenv("PETSCALE_SITE_KEY", str(tmp_path / "site.key"))
        with cohorts._spread(tmp_path / "cohort", 1, hashes_patients):
            assert read == [(tmp_path / "site.key",)]
    else:
        with spread:
            assert read == [()]


@dataclasses.dataclass
class Growing:
    """Stands in for a joined cluster: machines come when time passes, if anybody has asked."""

    monkeypatch: dataclasses.InitVar[pytest.MonkeyPatch]
    machines: list[Bundle]
    coming: list[Bundle]
    requests: list[list[Bundle]] = dataclasses.field(default_factory=list)
    now_s: float = 0.0

    def __post_init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "192.0.2.10:6379")
        monkeypatch.setenv(SCALE_UP_S, "900")
        monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": one} for one in self.machines])
        monkeypatch.setattr("ray.autoscaler.sdk.request_resources", self.request)
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)
        monkeypatch.setattr("time.sleep", self.sleep)

    def request(self, *, bundles: list[Bundle]) -> None:
        assert all(type(one) is dict for one in bundles)  # Ray takes nothing else
        self.requests.append(bundles)

    def sleep(self, s: float) -> None:
        self.now_s += s
        if self.requests[-1] and self.coming:
            self.machines.append(self.coming.pop())


HEAD, MACHINE = {"CPU": 0.0}, {"CPU": 8.0, "GPU": 1.0}


def test_machines_are_asked_for_waited_for_and_let_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = Growing(monkeypatch, [HEAD], [MACHINE, MACHINE])
    with placement.machines_for(PAIR):
        assert len(grown.machines) == 3
        assert grown.requests == [PAIR]
    assert grown.requests == [PAIR, []]
    assert capsys.readouterr().err == "waiting up to 900 s for machines: 2 x 4 CPU 1 GPU\n"


def test_a_cluster_that_has_room_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = Growing(monkeypatch, [{"CPU": 8.0, "GPU": 2.0}], [])
    with placement.machines_for(PAIR):
        assert grown.requests == [PAIR]  # so that it stays
    assert grown.now_s == 0
    assert capsys.readouterr() == ("", "")


def test_time_is_over_at_last_and_the_request_is_withdrawn_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    grown = Growing(monkeypatch, [HEAD], [MACHINE])
    with pytest.raises(KeyboardInterrupt), placement.machines_for(PAIR):
        raise KeyboardInterrupt
    assert grown.now_s == 900
    assert len(grown.machines) == 2
    assert grown.requests == [PAIR, []]


@pytest.mark.parametrize(
    ("machines", "bundles", "holds"),
    [
        ([], [], True),
        ([], [{"CPU": 1}], False),
        ([{"CPU": 4.0}, {"CPU": 4.0}], [{"CPU": 2}] * 4, True),
        ([{"CPU": 3.0}, {"CPU": 5.0}], [{"CPU": 4}] * 2, False),  # 8 cores in all, but no machine for the second
        ([{"CPU": 8.0}], [{"CPU": 1, "GPU": 1}], False),
        ([{"CPU": 8.0, "GPU": 1.0}], [{"CPU": 1, "GPU": 0.5}] * 2, True),
    ],
)
def test_what_machines_hold(
    machines: list[Bundle], bundles: Sequence[Bundle], holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Growing(monkeypatch, machines, [])
    assert placement._holds(bundles) is holds
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": False, "Resources": one} for one in machines])
    assert placement._holds(bundles) is (not bundles)  # the dead hold nothing


@pytest.mark.parametrize(
    ("machines", "bundles", "times"),
    [
        ([{"CPU": 2.0}] * 3, [{"CPU": 1}] * 2, 3),
        ([{"CPU": 3.0}] * 3, [{"CPU": 2}] * 2, 1),  # 9 cores in all, but each machine holds one worker
        ([{"CPU": 16.0, "GPU": 1.0}], [{"CPU": 1, "GPU": 0.1}], 10),  # whatever 1 - 10 * 0.1 is in floating point
        ([{"CPU": 16.0, "GPU": 1.0}], [{"CPU": 1, "GPU": 1}] * 2, 0),
    ],
)
def test_how_often_machines_hold_a_trials_workers(
    machines: list[Bundle], bundles: Sequence[Bundle], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Growing(monkeypatch, machines, [])
    assert placement.times(bundles) == times


@pytest.mark.parametrize(("variable", "address"), [("", "192.0.2.10:6379"), ("0", "192.0.2.10:6379"), ("900", "")])
def test_a_cluster_that_does_not_grow_is_not_asked(
    variable: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = Growing(monkeypatch, [HEAD], [])
    monkeypatch.setenv(SCALE_UP_S, variable)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with placement.machines_for(PAIR):
        assert grown.requests == []
    assert grown.now_s == 0


@pytest.mark.parametrize("found", ["soon", "-1", "inf", "nan"])
def test_a_patience_that_is_no_number_of_seconds(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grown = Growing(monkeypatch, [HEAD], [])
    monkeypatch.setenv(SCALE_UP_S, found)
    with pytest.raises(InputError) as refused, placement.machines_for(PAIR):
        raise AssertionError("it must not begin")
    assert (refused.value.code, refused.value.where) == ("CFG_RANGE", SCALE_UP_S)
    assert grown.requests == []


# ---- Ray's own autoscaler -------------------------------------------------------------------------------------------

# What runs in namespaces of its own: the port is fixed, and nothing must be left behind.  The request is read back as
# the autoscaler keeps it.
_ALONE = """
import json, os, subprocess, sys, time
from pathlib import Path
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
config = {
    "cluster_name": "fake",
    "max_workers": 2,
    "provider": {
        "type": "external",  # by its module: the wheel of Ray lacks the defaults of "fake_multinode"
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "gcs_address": "127.0.0.1:6379",
        "head_node_id": os.environ["RAY_CLOUD_INSTANCE_ID"],
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1, "object_store_memory": 80_000_000}, "node_config": {}, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "file_mounts": {},
    **{name: [] for name in ("cluster_synced_files", "setup_commands", "head_setup_commands", "worker_setup_commands")},
}
Path("config.json").write_text(json.dumps(config))
ray_program = Path(sys.executable).with_name("ray")
words = ["--head", "--block", "--port=6379", "--num-cpus=0", "--node-ip-address=127.0.0.1", "--include-dashboard=false",
         "--object-store-memory=80000000", f"--temp-dir={os.getcwd()}/ray", "--autoscaling-config=config.json"]
with open("log", "w") as log:
    subprocess.Popen([ray_program, "start", *words], stdout=log, stderr=log)
import ray
from petscale.cluster import placement
for _ in range(60):
    try:
        ray.init(address="127.0.0.1:6379", log_to_driver=False, logging_level="ERROR")
        break
    except ConnectionError:
        time.sleep(1)
from ray.autoscaler.v2.sdk import get_cluster_status
def asked():
    wanted = get_cluster_status("127.0.0.1:6379").resource_demands.cluster_constraint_demand
    return sum(one.count for demand in wanted for one in demand.bundles_by_count)
def alive():
    return sum(one["Alive"] for one in ray.nodes())
said = {"before": [alive(), asked()]}
with placement.machines_for([{"CPU": 1}]):
    said["within"] = [alive(), asked(), ray.cluster_resources().get("CPU", 0)]
said["after"] = [alive(), asked()]
print(json.dumps(said))
"""
_SPACE = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path("/tmp") / f"p-{secrets.token_hex(4)}"  # short: Ray's sockets lie below it
    made.mkdir(mode=0o700)
    yield made
    shutil.rmtree(made)


@pytest.mark.slow
def test_rays_autoscaler_hears_it(folder: Path) -> None:
    if subprocess.run([*_SPACE, "ip", "link"], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces, and iproute2")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_ADDRESS": "127.0.0.1:6379",
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": "f" * 51 + "00000",  # how Ray's fake provider names the head
        "RAY_enable_autoscaler_v2": "1",  # as ray up and KubeRay do
        **SILENT,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "OMP_NUM_THREADS": "1",
        SCALE_UP_S: "100",
    }
    words = [*_SPACE, sys.executable, "-c", _ALONE]
    ended = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, timeout=170)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said == {"before": [1, 0], "within": [2, 1, 1.0], "after": [2, 0]}
    assert "waiting up to 100 s for machines: 1 x 1 CPU" in ended.stderr


# ---- alike ----------------------------------------------------------------------------------------------------------


def test_the_code_digest_is_that_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES:
        (tmp_path / package / "inner").mkdir(parents=True)
        (tmp_path / package / "inner" / "one.py").write_text(f"ROOM = {package!r}\n")
        (tmp_path / package / "page.j2").write_text("<p>")
    monkeypatch.setattr(installation, "_folder", lambda package: tmp_path / package)
    digest = code_digest()
    assert code_digest() == digest
    (tmp_path / "storage" / "__pycache__").mkdir()
    (tmp_path / "storage" / "__pycache__" / "one.pyc").write_bytes(b"made here")
    assert code_digest() == digest
    seen = {digest}
    source = tmp_path / "storage" / "inner" / "one.py"
    source.write_text("ROOM = 'other'\n")
    seen.add(code_digest())
    (tmp_path / "storage" / "page.j2").write_text("<b>")
    seen.add(code_digest())
    source.rename(tmp_path / "storage" / "one.py")
    seen.add(code_digest())
    source.parent.joinpath("two.py").touch()
    seen.add(code_digest())
    assert len(seen) == 5


def test_versions_name_all_that_must_be_alike() -> None:
    found = versions()
    assert {*found} == {"petscale", "python", *ALIKE}
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["petscale"] == code_digest()


# ---- a command that travels -----------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A laptop with a configuration, a cohort and a report; the working folder of a job; the cluster's storage."""
    for name in ("laptop/cohort", "job", "storage"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "laptop" / "best.json").write_text('{"lr": 1}')
    (tmp_path / "laptop" / "report.html").touch()
    monkeypatch.chdir(tmp_path / "laptop")
    monkeypatch.setenv(STORAGE, str(tmp_path / "storage"))
    return tmp_path


def travelled(words: Sequence[str], job: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    sent = [jobs._sent(word, job / "job") for word in words]
    (job / "job" / "command.json").write_text(json.dumps(sent))
    monkeypatch.chdir(job / "job")
    return received()


def test_a_command_arrives_with_its_configuration(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "cohort", "--run", "runs/a b", "--set", "loop.seed=1", "--config", "./best.json", "report.html"]
    *plain, config, report = travelled(words, job, monkeypatch)
    assert [*plain, report] == [*words[:-2], words[-1]]
    assert config == str(job / "job" / "best.json")
    assert Path(config).read_text() == '{"lr": 1}'
    assert Path.cwd() == job / "storage"  # where "cohort" and "runs" start
    assert {path.name for path in (job / "job").iterdir()} == {"best.json", "command.json"}


def test_a_configuration_that_is_not_here_is_meant_there(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "cohort", "--config", "study/best.json", "--set=best.json"]
    assert travelled(words, job, monkeypatch) == words


def test_a_storage_that_is_not_there(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job / "storage").rmdir()
    with pytest.raises(InputError) as refused:
        travelled(["doctor"], job, monkeypatch)
    assert (refused.value.code, refused.value.where) == ("CLU_STORAGE", STORAGE)
    assert str(job) not in str(refused.value)


def test_without_a_storage_a_job_stays_where_it_is(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORAGE)
    assert travelled(["doctor"], job, monkeypatch) == ["doctor"]
    assert Path.cwd() == job / "job"


@pytest.mark.parametrize(
    ("words", "apart"),
    [
        ("submit train cohort --run r", "submit -- train cohort --run r"),
        ("submit --cluster c.yaml train cohort --help", "submit --cluster c.yaml -- train cohort --help"),
        ("submit -- train cohort", "submit -- train cohort"),
        ("submit --help", "submit --help"),
        ("submit", "submit --"),
        ("train cohort --run submit", "train cohort --run submit"),
        ("", ""),
    ],
)
def test_options_of_a_submitted_command_are_its_own(words: str, apart: str) -> None:
    assert " ".join(cli.apart(words.split())) == apart
