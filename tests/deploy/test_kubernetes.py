"""deploy/kubernetes: every field is one that KubeRay or Kubernetes documents, of that type, and doors are shut.

There is no Kubernetes here: the field lists below stand for its API server, which refuses (KubeRay's) or drops what it
does not know.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"

# Quantities are written as strings, numbers of seconds and replicas as integers.
TEXT, WHOLE, YES_NO = str, int, bool
TEXTS: dict[str, Any] = {"*": TEXT}

# core/v1 and meta/v1 of Kubernetes: the fields of a pod that these files may use.
METADATA = {"name": TEXT, "namespace": TEXT, "labels": TEXTS, "annotations": TEXTS}
QUANTITIES = {"requests": TEXTS, "limits": TEXTS}
SECCOMP = {"type": TEXT, "localhostProfile": TEXT}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": YES_NO,
    "capabilities": {"add": [TEXT], "drop": [TEXT]},
    "privileged": YES_NO,
    "readOnlyRootFilesystem": YES_NO,
    "runAsGroup": WHOLE,
    "runAsNonRoot": YES_NO,
    "runAsUser": WHOLE,
    "seccompProfile": SECCOMP,
}
POD_SECURITY = {
    "fsGroup": WHOLE,
    "fsGroupChangePolicy": TEXT,
    "runAsGroup": WHOLE,
    "runAsNonRoot": YES_NO,
    "runAsUser": WHOLE,
    "seccompProfile": SECCOMP,
    "supplementalGroups": [WHOLE],
}
CONTAINER = {
    "args": [TEXT],
    "command": [TEXT],
    "env": [{"name": TEXT, "value": TEXT, "valueFrom": {"secretKeyRef": {"name": TEXT, "key": TEXT}}}],
    "image": TEXT,
    "imagePullPolicy": TEXT,
    "name": TEXT,
    "ports": [{"name": TEXT, "containerPort": WHOLE, "protocol": TEXT}],
    "resources": QUANTITIES,
    "securityContext": CONTAINER_SECURITY,
    "volumeMounts": [{"name": TEXT, "mountPath": TEXT, "subPath": TEXT, "readOnly": YES_NO}],
}
VOLUME = {
    "name": TEXT,
    "emptyDir": {"medium": TEXT, "sizeLimit": TEXT},
    "persistentVolumeClaim": {"claimName": TEXT, "readOnly": YES_NO},
    "secret": {"secretName": TEXT, "defaultMode": WHOLE, "optional": YES_NO},
}
TOLERATION = {"key": TEXT, "operator": TEXT, "value": TEXT, "effect": TEXT, "tolerationSeconds": WHOLE}
POD = {
    "automountServiceAccountToken": YES_NO,
    "containers": [CONTAINER],
    "imagePullSecrets": [{"name": TEXT}],
    "nodeSelector": TEXTS,
    "restartPolicy": TEXT,
    "securityContext": POD_SECURITY,
    "serviceAccountName": TEXT,
    "terminationGracePeriodSeconds": WHOLE,
    "tolerations": [TOLERATION],
    "volumes": [VOLUME],
}
POD_TEMPLATE = {"metadata": METADATA, "spec": POD}

# ray.io/v1 of KubeRay 1.7 (ray-operator/apis/ray/v1), but for what needs more than the operator: history server, TLS
# and a fault-tolerant GCS.  Of these fields the files use those that 1.5.1 has already, which brought authOptions.
AUTOSCALER = {
    "args": [TEXT],
    "command": [TEXT],
    "env": CONTAINER["env"],
    "idleTimeoutSeconds": WHOLE,
    "image": TEXT,
    "imagePullPolicy": TEXT,
    "resources": QUANTITIES,
    "securityContext": CONTAINER_SECURITY,
    "upscalingMode": {"Default", "Aggressive", "Conservative"},
    "version": {"v1", "v2"},
    "volumeMounts": CONTAINER["volumeMounts"],
}
HEAD = {
    "enableIngress": YES_NO,
    "labels": TEXTS,
    "rayStartParams": TEXTS,
    "resources": TEXTS,
    "serviceType": TEXT,
    "template": POD_TEMPLATE,
}
WORKERS = {
    "groupName": TEXT,
    "idleTimeoutSeconds": WHOLE,
    "labels": TEXTS,
    "maxReplicas": WHOLE,
    "minReplicas": WHOLE,
    "numOfHosts": WHOLE,
    "priority": WHOLE,
    "rayStartParams": TEXTS,
    "replicas": WHOLE,
    "resources": TEXTS,
    "scaleStrategy": {"workersToDelete": [TEXT]},
    "suspend": YES_NO,
    "template": POD_TEMPLATE,
}
CLUSTER = {
    "authOptions": {"enableK8sTokenAuth": YES_NO, "mode": {"disabled", "token"}, "secretName": TEXT},
    "autoscalerOptions": AUTOSCALER,
    "enableInTreeAutoscaling": YES_NO,
    "headGroupSpec": HEAD,
    "headServiceAnnotations": TEXTS,
    "managedBy": TEXT,
    "rayVersion": TEXT,
    "suspend": YES_NO,
    "upgradeStrategy": {"type": {"Recreate", "None"}},
    "workerGroupSpecs": [WORKERS],
}
JOB = {
    "activeDeadlineSeconds": WHOLE,
    "backoffLimit": WHOLE,
    "clusterSelector": TEXTS,
    "entrypoint": TEXT,
    "entrypointNumCpus": float,
    "entrypointNumGpus": float,
    "entrypointResources": TEXT,
    "jobId": TEXT,
    "managedBy": TEXT,
    "metadata": TEXTS,
    "rayClusterSpec": CLUSTER,
    "runtimeEnvYAML": TEXT,
    "shutdownAfterJobFinishes": YES_NO,
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "submitterConfig": {"backoffLimit": WHOLE},
    "submitterPodTemplate": POD_TEMPLATE,
    "suspend": YES_NO,
    "ttlSecondsAfterFinished": WHOLE,
}

# core/v1 and networking.k8s.io/v1.
SELECTOR = {"matchLabels": TEXTS}
PEERS = [{"podSelector": SELECTOR, "namespaceSelector": SELECTOR, "ipBlock": {"cidr": TEXT, "except": [TEXT]}}]
PORTS = [{"protocol": {"TCP", "UDP"}, "port": WHOLE, "endPort": WHOLE}]
POLICY = {
    "podSelector": SELECTOR,
    "policyTypes": [{"Ingress", "Egress"}],
    "ingress": [{"from": PEERS, "ports": PORTS}],
    "egress": [{"to": PEERS, "ports": PORTS}],
}
CLAIM = {"accessModes": [TEXT], "storageClassName": TEXT, "resources": QUANTITIES, "volumeName": TEXT}
DOCUMENTED = {
    ("ray.io/v1", "RayCluster"): CLUSTER,
    ("ray.io/v1", "RayJob"): JOB,
    ("v1", "Namespace"): {},
    ("v1", "PersistentVolumeClaim"): CLAIM,
    ("networking.k8s.io/v1", "NetworkPolicy"): POLICY,
}


def wrong(found: Any, documented: Any, where: str) -> list[str]:
    """What of a value is not as documented; every entry names the field."""
    if isinstance(documented, dict):
        if not isinstance(found, dict):
            return [f"{where}: not a mapping"]
        known = {key: documented.get(key, documented.get("*")) for key in found}
        unknown = [f"{where}.{key}: not documented" for key, kind in known.items() if kind is None]
        inner = [wrong(found[key], kind, f"{where}.{key}") for key, kind in known.items() if kind is not None]
        return unknown + [line for lines in inner for line in lines]
    if isinstance(documented, list):
        if not isinstance(found, list):
            return [f"{where}: not a list"]
        return [line for i, one in enumerate(found) for line in wrong(one, documented[0], f"{where}[{i}]")]
    if isinstance(documented, set):
        return [] if found in documented else [f"{where}: {found!r} is none of {sorted(documented)}"]
    return [] if type(found) is documented else [f"{where}: {found!r} is no {documented.__name__}"]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def cluster() -> dict[str, Any]:
    return dict(documents("cluster.yaml")[0]["spec"])


def job() -> dict[str, Any]:
    return dict(documents("train-job.yaml")[0]["spec"])


def templates() -> list[Any]:
    """The pod templates of both files, the submitter's included."""
    found = [pytest.param(job()["submitterPodTemplate"], id="submitter")]
    for name, spec in (("cluster", cluster()), ("job", job()["rayClusterSpec"])):
        found.append(pytest.param(spec["headGroupSpec"]["template"], id=f"{name} head"))
        found += [pytest.param(group["template"], id=f"{name} workers") for group in spec["workerGroupSpecs"]]
    return found


class TestFields:
    @pytest.mark.parametrize("name", ["base.yaml", "cluster.yaml", "train-job.yaml"])
    def test_every_field_is_documented(self, name: str) -> None:
        for document in documents(name):
            kind = (document["apiVersion"], document["kind"])
            assert {*document} <= {"apiVersion", "kind", "metadata", "spec"}
            assert wrong(document["metadata"], METADATA, "metadata") == []
            assert wrong(document.get("spec", {}), DOCUMENTED[kind], document["kind"]) == []

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"workerGroupSpec": []}, "spec.workerGroupSpec: not documented"),
            ({"rayVersion": 2.6}, "spec.rayVersion: 2.6 is no str"),
            ({"authOptions": {"mode": "on"}}, "spec.authOptions.mode: 'on' is none of ['disabled', 'token']"),
            ({"workerGroupSpecs": [{"replicas": "1"}]}, "spec.workerGroupSpecs[0].replicas: '1' is no int"),
            (
                {"headGroupSpec": {"rayStartParams": {"num-cpus": 0}}},
                "spec.headGroupSpec.rayStartParams.num-cpus: 0 is",
            ),
        ],
    )
    def test_a_slip_is_seen(self, change: dict[str, Any], told: str) -> None:
        (line,) = wrong(cluster() | change, CLUSTER, "spec")
        assert line.startswith(told)

    def test_all_that_must_be_there_is(self) -> None:
        for spec in (cluster(), job()["rayClusterSpec"]):
            assert {*spec["headGroupSpec"]} >= {"rayStartParams", "template"}
            for group in spec["workerGroupSpecs"]:
                assert {*group} >= {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"}
                assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]

    @pytest.mark.parametrize("template", templates())
    def test_volumes_are_mounted_once_and_exist(self, template: dict[str, Any]) -> None:
        volumes = [volume["name"] for volume in template["spec"].get("volumes", [])]
        for container in template["spec"]["containers"]:
            mounts = [mount["name"] for mount in container.get("volumeMounts", [])]
            assert sorted(mounts) == sorted(volumes)


class TestTheJobIsTheCluster:
    def test_but_for_the_number_of_workers(self) -> None:
        stays, once = cluster(), job()["rayClusterSpec"]
        for key in ("enableInTreeAutoscaling", "autoscalerOptions"):
            assert key in stays
            assert key not in once
            del stays[key]
        for spec in (stays, once):
            for group in spec["workerGroupSpecs"]:
                for key in ("replicas", "minReplicas", "maxReplicas"):
                    del group[key]
        assert stays == once

    def test_it_asks_for_as_many_workers_as_there_are(self) -> None:
        (group,) = job()["rayClusterSpec"]["workerGroupSpecs"]
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        assert f"--workers {group['replicas']} " in job()["entrypoint"]

    def test_it_is_repeated_and_taken_away(self) -> None:
        assert job()["backoffLimit"] > 0
        assert job()["shutdownAfterJobFinishes"] is True
        assert job()["ttlSecondsAfterFinished"] > 0  # KubeRay minds it only with the line before

    def test_its_command_is_one_of_petscale(self, capsys: pytest.CaptureFixture[str]) -> None:
        from petscale.cli import main

        words = job()["entrypoint"].split()
        assert words[:3] == ["python", "-m", "petscale"]
        with pytest.raises(SystemExit) as ended:  # the cohort is not here, and that is all that is wrong with it
            main(words[3:])
        assert ended.value.code == 2
        assert "cohort" in capsys.readouterr().err


class TestDoors:
    @pytest.mark.parametrize("name", ["base.yaml", "cluster.yaml", "train-job.yaml"])
    def test_no_file_opens_an_address(self, name: str) -> None:
        text = (FOLDER / name).read_text()
        assert not re.search(r"0\.0\.0\.0|LoadBalancer|NodePort|hostNetwork|hostPath|enableIngress|privileged:", text)

    @pytest.mark.parametrize("template", templates())
    def test_pods_are_what_the_restricted_standard_wants(self, template: dict[str, Any]) -> None:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {*container["resources"]["requests"]} >= {"cpu", "memory"}
            assert {*container["resources"]["limits"]} >= {"cpu", "memory"}

    def test_so_is_the_container_that_kuberay_adds_for_scaling(self) -> None:
        added = cluster()["autoscalerOptions"]["securityContext"]
        assert added == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}

    def test_both_clusters_want_the_token_and_send_no_telemetry(self) -> None:
        for spec in (cluster(), job()["rayClusterSpec"]):
            assert spec["authOptions"] == {"mode": "token"}
            for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                for container in group["template"]["spec"]["containers"]:
                    assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
                    assert {"name": "RAY_USAGE_STATS_REPORT_URL", "value": "none"} in container["env"]

    @pytest.mark.parametrize("template", templates())
    def test_every_pod_is_behind_the_policies(self, template: dict[str, Any]) -> None:
        """KubeRay adds ray.io/node-type to the labels of its pods."""
        inside = {"app.kubernetes.io/name": "petscale"}
        into, out = (d["spec"] for d in documents("base.yaml") if d["kind"] == "NetworkPolicy")
        assert template["metadata"]["labels"] == inside
        assert into["podSelector"]["matchLabels"] == inside
        assert out["podSelector"]["matchLabels"] == inside | {"ray.io/node-type": "worker"}

    def test_only_the_operator_comes_in_from_outside_and_workers_reach_only_names(self) -> None:
        into, out = (d["spec"] for d in documents("base.yaml") if d["kind"] == "NetworkPolicy")
        assert (into["policyTypes"], out["policyTypes"]) == (["Ingress"], ["Egress"])
        among, operator = into["ingress"]
        pods = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "petscale"}}}
        assert among == {"from": [pods]}
        assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
        assert [peer["podSelector"]["matchLabels"] for peer in operator["from"]] == [
            {"app.kubernetes.io/name": "kuberay-operator"}
        ]
        assert out["egress"][0] == {"to": [pods]}
        assert {port["port"] for rule in out["egress"][1:] for port in rule["ports"]} == {53}


def test_everything_lies_in_one_namespace_on_storage_that_all_pods_share() -> None:
    base = {document["kind"]: document for document in documents("base.yaml")}
    namespace = base["Namespace"]["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for document in [d for n in ("base.yaml", "cluster.yaml", "train-job.yaml") for d in documents(n)]:
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == namespace["name"]
    claim = base["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for spec in (cluster(), job()["rayClusterSpec"]):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
            mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
            assert mounts["shm"] == "/dev/shm"
            told = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
            assert told["PETSCALE_STORAGE"] == mounts["storage"]
            assert told["PETSCALE_SITE_KEY"] == f"{mounts['site-key']}/site.key"
            assert volumes["site-key"]["secret"]["defaultMode"] == 0o440  # its owner is root, its group fsGroup
            assert not mounts["site-key"].startswith(mounts["storage"])
            assert int(group["rayStartParams"]["object-store-memory"]) < 4 * 2**30  # the sizeLimit of shm


def test_ray_is_the_one_of_the_constraints() -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned
    assert cluster()["rayVersion"] == pinned[1]


class TestDockerfile:
    LINES = (FOLDER / "Dockerfile").read_text().splitlines()

    def test_it_installs_all_packages_of_the_checkout_with_the_constraints(self) -> None:
        copied = [word for line in self.LINES if line.startswith("COPY") for word in line.split()[1:-1]]
        assert all((ROOT / name).exists() for name in copied)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
        assert {package.split("/")[0] for package in wheel["packages"]} <= {*copied}
        assert wheel["hooks"]["custom"]["path"] in copied  # read by an editable installation too
        assert {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]} <= {*copied}
        installed = [line for line in self.LINES if "pip install" in line]
        assert all("-c constraints.txt" in line for line in installed)
        assert installed[0].endswith(" torch")  # first, as in the Makefile

    def test_a_head_asks_no_network_for_its_cloud(self) -> None:
        home = self.LINES.index("WORKDIR /home/petscale")
        assert "RUN echo '{}' > ray_bootstrap_config.yaml" in self.LINES[home:]
        assert any("RAY_USAGE_STATS_REPORT_URL=none" in line for line in self.LINES if line.startswith("ENV"))

    def test_its_user_is_nobody_special_and_leaves_no_dumps(self) -> None:
        assert "USER 1000:1000" in self.LINES
        assert any("ulimit -c 0" in line and "umask 077" in line for line in self.LINES)
