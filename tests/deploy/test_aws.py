"""deploy/aws.yaml and the stack below it: Ray's own launcher asks a mock of AWS; we look at what it gets."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
CLUSTER, FOUNDATION = DEPLOY / "aws.yaml", DEPLOY / "aws-foundation.yaml"
REGION = "eu-central-1"


def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load(CLUSTER.read_text()))


class Template(yaml.SafeLoader):
    """CloudFormation's short forms as plain mappings: `!Ref Nodes` is {"Ref": "Nodes"}."""


def _short_form(loader: Template, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {suffix: loader.construct_scalar(node)}
    assert isinstance(node, yaml.SequenceNode)
    return {suffix: loader.construct_sequence(node, deep=True)}


Template.add_multi_constructor("!", _short_form)


def foundation() -> dict[str, Any]:
    return dict(yaml.load(FOUNDATION.read_text(), Template))  # a SafeLoader


class TestAsWritten:
    def test_ray_accepts_it(self) -> None:
        from ray.autoscaler._private.util import prepare_config, validate_config

        validate_config(prepare_config(cluster()))

    def test_nothing_is_open_to_the_internet(self) -> None:
        for path in (CLUSTER, FOUNDATION):
            assert "0.0.0.0" not in path.read_text()
            assert "::/0" not in path.read_text()
        resources = foundation()["Resources"]
        (ssh,) = resources["Nodes"]["Properties"]["SecurityGroupIngress"]
        assert ssh == {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": {"Ref": "AdminCidr"}}
        rules = [r for r in resources.values() if r["Type"].startswith("AWS::EC2::SecurityGroup")]
        assert len(rules) == 2
        assert resources["AmongThemselves"]["Properties"]["SourceSecurityGroupId"] == {"Ref": "Nodes"}

    @pytest.mark.parametrize(
        ("found", "good"),
        [("203.0.113.7/32", True), ("10.1.0.0/16", True), ("0.0.0.0/0", False), ("10.0.0.0/8", False)],
    )
    def test_ssh_may_not_come_from_everywhere(self, found: str, good: bool) -> None:
        assert bool(re.match(foundation()["Parameters"]["AdminCidr"]["AllowedPattern"], found)) is good

    def test_every_start_is_authenticated_silent_and_without_dumps(self) -> None:
        content = cluster()
        (shell,) = [command for command in content["setup_commands"] if "~/.petscale.sh <<" in command]
        for word in ("RAY_AUTH_MODE=token", "RAY_USAGE_STATS_REPORT_URL=none", "ulimit -c 0", "umask 077", "chmod 600"):
            assert word in shell
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            assert all(command.startswith(". ~/.petscale.sh && ") for command in content[key])
        assert "--dashboard-host=127.0.0.1" in content["head_start_ray_commands"][-1]

    def test_what_every_shell_is_told_works(self, tmp_path: Path) -> None:
        token = tmp_path / ".ray" / "auth_token"
        token.parent.mkdir()
        token.write_text("secret")
        token.chmod(0o644)
        key = tmp_path / ".config" / "petscale" / "site.key"
        key.parent.mkdir(parents=True)
        key.touch(0o644)
        content = cluster()
        (shell,) = [command for command in content["setup_commands"] if "~/.petscale.sh <<" in command]
        environment = {"HOME": str(tmp_path), "USER": tmp_path.name, "PATH": "/usr/bin:/bin"}
        subprocess.run(["bash", "-ec", f"({shell})"], env=environment, check=True)
        told = "umask; ulimit -c; stat -c %a $RAY_TMPDIR; env | grep -E '^(RAY_AUTH|RAY_USAGE|PETSCALE)' | sort"
        words = ["bash", "-c", f". ~/.petscale.sh && {{ {told}; rmdir $RAY_TMPDIR; }}"]
        assert subprocess.check_output(words, env=environment, text=True).splitlines() == [
            "0077",
            "0",
            "700",
            f"PETSCALE_SITE_KEY={key}",
            "PETSCALE_STORAGE=/srv/petscale",
            "RAY_AUTH_MODE=token",
            "RAY_USAGE_STATS_ENABLED=0",
            "RAY_USAGE_STATS_REPORT_URL=none",
        ]
        assert {path.stat().st_mode & 0o777 for path in (token, key)} == {0o600}
        commands = [c for key, value in content.items() if key.endswith("_commands") for c in value]
        for command in commands:
            assert subprocess.run(["bash", "-n", "-c", f"({command})"], capture_output=True).stderr == b""

    def test_it_installs_this_checkout_and_never_a_nightly_ray(self) -> None:
        content = cluster()
        commands = [c for key, value in content.items() if key.endswith("setup_commands") for c in value]
        assert "make -C ~/petscale .venv/.installed" in commands
        assert not [c for c in commands if "wheel" in c or "http" in c or "ray[" in c]
        assert all("-c ~/petscale/constraints.txt" in c for c in commands if "pip install" in c)
        assert content["file_mounts"]["~/petscale/pyproject.toml"] == "pyproject.toml"

    def test_all_that_is_filled_in_is_marked_and_printed_by_the_stack(self) -> None:
        text = CLUSTER.read_text()
        assert {*re.findall(r"# \((\d)\)|^      # \((\d)\)", text, re.M)} >= {(n, "") for n in "1245"}
        assert "(3) " in text
        assert "(6) " in text
        described = [output["Description"] for output in foundation()["Outputs"].values()]
        assert described == ["(4) of aws.yaml", "(5) of aws.yaml", "(6) of aws.yaml"]
        for placeholder in re.findall(r"(?:ami|subnet|sg|fs)-\w{17}", text):
            assert placeholder.endswith("0123456789abcdef0")  # an example, nobody's


@dataclass(frozen=True)
class Aws:
    """A mock of AWS on loopback, with what aws-foundation.yaml makes there."""

    ec2: Any
    config: dict[str, Any]
    environment: dict[str, str]


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    boto3 = pytest.importorskip("boto3", reason="needs boto3")
    server = pytest.importorskip("moto.server", reason="needs moto, flask and flask-cors")
    from moto.ec2.models import amis, instance_types
    from ray.autoscaler._private.aws import config as ray_aws
    from ray.autoscaler._private.aws import utils

    # Ray asks for all kinds of machines that there are, of which the mock would describe a thousand.
    wanted = {kind["node_config"]["InstanceType"] for kind in cluster()["available_node_types"].values()}
    kinds = {name: kind for name, kind in instance_types.INSTANCE_TYPES.items() if name in wanted}
    monkeypatch.setattr(instance_types, "INSTANCE_TYPES", kinds)
    monkeypatch.setattr(amis, "AMIS", amis.AMIS[:1])
    monkeypatch.setenv("MOTO_AMIS_PATH", "read already")  # else images of the region too, a thousand more
    mock = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    mock.start()
    host, port = mock.get_host_and_port()
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()  # its memory is the process's
    nobody = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    environment = nobody | {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "HOME": str(tmp_path)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    caches = (utils.resource_cache, utils.client_cache, ray_aws._get_subnets_or_die)
    for cache in caches:
        cache.cache_clear()
    try:
        ec2, iam = boto3.client("ec2", REGION), boto3.client("iam", REGION)
        subnet = ec2.describe_subnets()["Subnets"][0]
        group = ec2.create_security_group(GroupName="nodes", Description="nodes", VpcId=subnet["VpcId"])["GroupId"]
        ec2.create_key_pair(KeyName="petscale")
        for name in ("petscale-head", "petscale-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        key = tmp_path / "petscale.pem"
        key.touch(mode=0o600)
        content = cluster()
        assert content["provider"]["region"] == REGION
        # None of our code may probe the address that the mock invents for a machine.
        content["auth"] |= {"ssh_private_key": str(key), "ssh_proxy_command": "/bin/false"}
        content["file_mounts"] = {}
        image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        for kind in content["available_node_types"].values():
            kind["node_config"] |= {"SubnetIds": [subnet["SubnetId"]], "SecurityGroupIds": [group]}
            kind["node_config"]["ImageId"] = image
        yield Aws(ec2, content, environment)
    finally:
        mock.stop()
        for cache in caches:
            cache.cache_clear()


def instances(aws: Aws) -> list[dict[str, Any]]:
    return [machine for made in aws.ec2.describe_instances()["Reservations"] for machine in made["Instances"]]


def check_alike(machine: dict[str, Any], wanted: dict[str, Any], profile: str) -> None:
    assert machine["InstanceType"] == wanted["InstanceType"]
    assert machine["ImageId"] == wanted["ImageId"]
    assert machine["KeyName"] == wanted["KeyName"]
    assert machine["SubnetId"] == wanted["SubnetIds"][0]
    assert [group["GroupId"] for group in machine["SecurityGroups"]] == wanted["SecurityGroupIds"]
    assert machine["IamInstanceProfile"]["Arn"].endswith(f"/{profile}")
    assert machine["MetadataOptions"]["HttpTokens"] == "required"
    tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
    assert tags["ray-cluster-name"] == "petscale"  # what the head's role may end


def test_ray_up_asks_for_the_head_and_makes_no_group_and_no_role(aws: Aws, tmp_path: Path) -> None:
    import boto3

    before = aws.ec2.describe_security_groups()["SecurityGroups"]
    (tmp_path / "aws.yaml").write_text(yaml.safe_dump(aws.config))
    words = [str(Path(sys.executable).parent / "ray"), "up", "--yes", "--no-config-cache", str(tmp_path / "aws.yaml")]
    printed = tmp_path / "up.log"
    with printed.open("w") as log:
        launcher = subprocess.Popen(words, env=os.environ | aws.environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 90
            while "Launched instance" not in printed.read_text() and launcher.poll() is None and time.monotonic() < end:
                time.sleep(0.5)
        finally:
            launcher.kill()
            launcher.wait(10)
    assert len(instances(aws)) == 1, printed.read_text()
    (head,) = instances(aws)
    check_alike(head, aws.config["available_node_types"]["head"]["node_config"], "petscale-head")
    assert "InstanceLifecycle" not in head  # nobody takes the head back
    assert aws.ec2.describe_security_groups()["SecurityGroups"] == before
    assert boto3.client("iam", REGION).list_roles()["Roles"] == []
    (disk,) = aws.ec2.describe_volumes()["Volumes"]
    assert disk["Encrypted"] is True


def test_workers_are_spot_gpu_machines_that_the_heads_role_may_start_and_end(aws: Aws) -> None:
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    config = bootstrap_aws(prepare_config(aws.config))
    kinds = AWSNodeProvider.fillout_available_node_types_resources(config)["available_node_types"]
    assert kinds["head"]["resources"]["CPU"] == 0
    assert kinds["gpu_worker"]["resources"]["GPU"] == 1
    assert kinds["gpu_worker"]["resources"]["CPU"] == 8

    asked: list[str] = []
    boto3.DEFAULT_SESSION.events.register("before-call", lambda model, **_: asked.append(model.name))
    for cache in ("resource_cache", "client_cache"):  # clients made from here on are listened to
        getattr(sys.modules["ray.autoscaler._private.aws.utils"], cache).cache_clear()
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    tags = {"ray-node-kind": "worker", "ray-user-node-type": "gpu_worker", "ray-node-name": "worker"}
    for _ in range(2):
        provider.create_node(config["available_node_types"]["gpu_worker"]["node_config"], tags.copy(), 1)
    first, second = provider.non_terminated_nodes({"ray-node-kind": "worker"})
    provider.set_node_tags(first, {"ray-node-status": "up-to-date"})
    for machine in instances(aws):
        check_alike(machine, aws.config["available_node_types"]["gpu_worker"]["node_config"], "petscale-worker")
        assert machine["InstanceLifecycle"] == "spot"
    provider.terminate_node(first)
    assert provider.non_terminated_nodes({"ray-node-kind": "worker"}) == [second]

    statements = foundation()["Resources"]["HeadRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    allowed = {a for s in statements for a in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])}
    assert {"RunInstances", "TerminateInstances", "DescribeInstances"} <= {*asked}
    assert {f"ec2:{name}" for name in asked} <= allowed
