"""Validation of manifests: pydantic models of KubeRay 1.7's objects, and Kubernetes' schemas for the pods.

The fields and limits are those of the v1 types and of the operator's validation.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import kubernetes_validate
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

KUBERNETES = ("1.29", "1.37")
"""The versions against whose schemas the pods are validated."""

Label = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
Count = Annotated[int, Field(ge=0, strict=True)]
Seconds = Annotated[int, Field(ge=1, strict=True)]


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Outer):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=53)]
    namespace: str
    labels: dict[str, Label] = {}
    annotations: dict[str, str] = {}


class Head(Outer):
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class WorkerGroup(Head):
    groupName: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    replicas: Count
    minReplicas: Count
    maxReplicas: Count

    @model_validator(mode="after")
    def _order(self) -> WorkerGroup:
        assert self.minReplicas <= self.replicas <= self.maxReplicas, "minReplicas <= replicas <= maxReplicas"
        return self


class Autoscaler(Outer):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: Count
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    securityContext: dict[str, Any]


class Auth(Outer):
    mode: Literal["token", "disabled"]


class ClusterSpec(Outer):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler | None = None
    headGroupSpec: Head
    workerGroupSpecs: list[WorkerGroup] = []

    @model_validator(mode="after")
    def _rules(self) -> ClusterSpec:
        version = tuple(map(int, self.rayVersion.split(".")))
        assert version >= (2, 53, 0), "httpGet probes need Ray 2.53"
        assert self.enableInTreeAutoscaling or self.autoscalerOptions is None, "options of no autoscaler"
        if self.workerGroupSpecs:
            assert self.headGroupSpec.rayStartParams["num-cpus"] == "0", "the head would take work"
        for group in (self.headGroupSpec, *self.workerGroupSpecs):
            assert "labels" not in group.rayStartParams, "rayStartParams.labels"
            if self.autoscalerOptions and self.autoscalerOptions.version == "v2":
                restart = group.template["spec"].get("restartPolicy", "Never")
                assert restart == "Never", "autoscaler v2 restarts no pods"
        return self


class RayCluster(Outer):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec

    @model_validator(mode="after")
    def _kueue(self) -> RayCluster:
        queued = "kueue.x-k8s.io/queue-name" in self.metadata.labels
        assert not (queued and self.spec.enableInTreeAutoscaling), "Kueue reserves a fixed number of pods"
        return self


class SubmitterConfig(Outer):
    backoffLimit: Literal[0]


class JobSpec(Outer):
    entrypoint: Annotated[str, StringConstraints(min_length=1)]
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Count = 0
    backoffLimit: Count
    activeDeadlineSeconds: Seconds | None = None
    preRunningDeadlineSeconds: Seconds | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "SidecarMode"]
    submitterConfig: SubmitterConfig | None = None
    submitterPodTemplate: dict[str, Any] | None = None
    rayClusterSpec: ClusterSpec

    @model_validator(mode="after")
    def _rules(self) -> JobSpec:
        assert self.shutdownAfterJobFinishes or not self.ttlSecondsAfterFinished, "ttl needs shutdown"
        if self.submissionMode == "SidecarMode":
            assert self.submitterPodTemplate is None, "SidecarMode takes no submitterPodTemplate"
            assert self.submitterConfig is None, "SidecarMode takes no submitterConfig"
        return self


class RayJob(Outer):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec

    @model_validator(mode="after")
    def _rules(self) -> RayJob:
        assert len(self.metadata.name) <= 47, "the name of a RayJob is too long"
        if "kueue.x-k8s.io/queue-name" in self.metadata.labels:
            assert self.spec.shutdownAfterJobFinishes, "Kueue needs shutdownAfterJobFinishes"
            assert not self.spec.rayClusterSpec.enableInTreeAutoscaling, "Kueue reserves a fixed number"
        return self


class ServiceSpec(Outer):
    serveConfigV2: Annotated[str, StringConstraints(min_length=1)]
    rayClusterConfig: ClusterSpec
    rayClusterDeletionDelaySeconds: Count | None = None
    excludeHeadPodFromServeSvc: bool = False


class RayService(Outer):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec

    @model_validator(mode="after")
    def _rules(self) -> RayService:
        assert len(self.metadata.name) <= 47, "the name of a RayService is too long"
        return self


KINDS: dict[str, type[RayJob] | type[RayCluster] | type[RayService]] = {
    "RayJob": RayJob,
    "RayCluster": RayCluster,
    "RayService": RayService,
}


def pods(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a RayJob, RayCluster or RayService."""
    spec = value["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    found = [group["template"] for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", []))]
    return found + ([spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else [])


def problems(value: dict[str, Any]) -> list[str]:
    """The errors for which KubeRay or Kubernetes would reject an object."""
    if value["kind"] not in KINDS:
        return _schema(value)
    try:
        KINDS[value["kind"]].model_validate(value)
    except ValidationError as error:
        return [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
    return [problem for template in pods(value) for problem in _pod(template)]


def _pod(template: dict[str, Any]) -> list[str]:
    metadata = {"name": "pod", **template["metadata"]}
    found = _schema({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    spec = template["spec"]
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    for container in spec["containers"]:
        for name in _twice(volumes):
            found.append(f"volume {name} is there twice")
        for name in _twice([entry["name"] for entry in container.get("env", [])]):
            found.append(f"variable {name} is there twice")
        mounts = container.get("volumeMounts", [])
        found += [f"{mount} is mounted twice" for mount in _twice([mount["mountPath"] for mount in mounts])]
        found += [f"no volume {mount['name']}" for mount in mounts if mount["name"] not in volumes]
        # The schemas know a quantity as text only.
        for amounts in container["resources"].values():
            found += [
                f"{name}: {amount} is no quantity"
                for name, amount in amounts.items()
                if not re.fullmatch(r"\d+(\.\d+)?(m|[KMGTP]i?|k)?", amount)
            ]
    return found


def _twice(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _schema(value: dict[str, Any]) -> list[str]:
    found = []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(value, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{'.'.join(map(str, error.path))}: {error.message}")
    return found
