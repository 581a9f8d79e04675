"""The manifest of `tailor serve --manifest`: what KubeRay and Ray Serve accept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tailor.cli.main import main
from tests.kube.helpers import CLUSTER, write
from tests.kube.kuberay import problems

KEYED = CLUSTER + "secret_env: {TAILOR_API_KEY: serving/key}\n"
RUN = "chat=s3://bucket/runs/chat"


def rendered(
    folder: Path, capsys: pytest.CaptureFixture[str], *words: str, cluster: str = KEYED
) -> dict[str, Any]:
    file = str(write(folder, cluster, "cluster.yaml"))
    assert main(["serve", *words, "--manifest", file]) == 0
    (service,) = yaml.safe_load_all(capsys.readouterr().out)
    assert problems(service) == []
    return dict(service)


def serve_config(service: dict[str, Any]) -> dict[str, Any]:
    return dict(yaml.safe_load(service["spec"]["serveConfigV2"]))


def test_a_fixed_number_of_replicas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = rendered(
        tmp_path, capsys, RUN, "s3://bucket/runs/code", "--replicas", "2", "--max-tokens", "99"
    )
    (application,) = serve_config(service)["applications"]
    assert application["args"]["runs"] == {"chat": "s3://bucket/runs/chat", "code": "s3://bucket/runs/code"}
    assert application["args"]["limits"]["max_tokens"] == 99
    assert application["deployments"][1] == {"name": "Models", "num_replicas": 2}
    cluster = service["spec"]["rayClusterConfig"]
    assert "enableInTreeAutoscaling" not in cluster
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["maxReplicas"]) == (2, 2)
    (container,) = group["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": 8000}
    names = [entry["name"] for entry in container["env"] if "valueFrom" in entry]
    assert names == ["TAILOR_API_KEY"], "the key is a reference to a Secret"


def test_autoscaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = KEYED.replace("memory: 8Gi", "memory: 8Gi, gpu: 2")
    service = rendered(tmp_path, capsys, RUN, "--replicas", "2", "--max-replicas", "7", cluster=gpus)
    (application,) = serve_config(service)["applications"]
    scaling = application["deployments"][1]["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 7)
    assert application["args"]["num_gpus"] == 1
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 4), "two replicas per pod of two GPUs"


def test_one_pod(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = "image: x:1\nhead: {cpu: 8, memory: 8Gi}\nenv_from: [keys]\n"
    service = rendered(tmp_path, capsys, RUN, cluster=alone)
    assert service["spec"]["excludeHeadPodFromServeSvc"] is False


@pytest.mark.parametrize(
    ("words", "cluster", "message"),
    [
        ([RUN], CLUSTER, "gives the pods no API key"),
        (["runs/chat"], KEYED, "the pods cannot read this folder"),
        ([RUN, "--replicas", "3", "--max-replicas", "2"], KEYED, "--max-replicas 2 is less"),
        ([RUN], KEYED + "gang: {scheduler: kueue, queue: q}\n", "the cluster file has gang"),
        ([RUN, "--replicas", "2"], "image: x:1\nenv_from: [keys]\n", "no worker section"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], cluster: str, message: str
) -> None:
    file = str(write(tmp_path, cluster, "cluster.yaml"))
    assert main(["serve", *words, "--manifest", file]) == 2
    assert message in capsys.readouterr().err


def test_the_validation_can_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = rendered(tmp_path, capsys, RUN)
    for change in ({"serveConfig": ""}, {"rayClusterDeletionDelaySeconds": -1}, {"rayClusterConfig": {}}):
        assert problems({**service, "spec": {**service["spec"], **change}})
