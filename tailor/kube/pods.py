"""Pod templates: the head, the workers, and the submitter of a job."""

from __future__ import annotations

from typing import Any

from tailor.kube.check import RECIPE_FOLDER
from tailor.kube.names import bytes_of
from tailor.kube.spec import Cluster, Head, Toleration

Values = dict[str, Any]

USER = 1000
"""The images' user, and the group that may write on volumes."""

_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}


def head_group(cluster: Cluster, labels: Values, config_map: str | None) -> Values:
    """KubeRay's `headGroupSpec`."""
    start = _ray_start(cluster.head)
    if cluster.worker is not None:
        start["num-cpus"] = "0"  # neither tasks nor workers are placed beside Ray's control and the command
    ports = [{"name": name, "containerPort": port} for name, port in _PORTS.items()]
    return {
        "rayStartParams": start,
        "template": _template(cluster, cluster.head, "ray-head", labels, config_map, ports),
    }


def worker_group(
    cluster: Cluster, pods: int, labels: Values, config_map: str | None, *, least: int
) -> Values:
    """KubeRay's entry of `workerGroupSpecs`. `least`: pods that the autoscaler must leave."""
    pod, scaler = cluster.worker, cluster.autoscaler
    assert pod is not None
    least = max(scaler.min_pods, least) if scaler else pods
    return {
        "groupName": "worker",
        "replicas": least,  # the autoscaler brings the others
        "minReplicas": least,
        "maxReplicas": scaler.max_pods if scaler else pods,
        "rayStartParams": _ray_start(pod),
        "template": _template(
            cluster, pod, "ray-worker", labels, config_map, [{"name": "metrics", "containerPort": 8080}]
        ),
    }


def submitter(cluster: Cluster, labels: Values) -> Values:
    """The pod that sends the job to the cluster and follows its log. KubeRay fills in the command."""
    container: Values = {
        "name": "ray-job-submitter",
        "image": cluster.image,
        "imagePullPolicy": cluster.image_pull_policy,
        "securityContext": container_security(),
        "resources": {
            "requests": {"cpu": "500m", "memory": "512Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
    }
    if cluster.auth == "disabled":
        container["env"] = [{"name": "RAY_AUTH_MODE", "value": "disabled"}]
    return {
        "metadata": _metadata(cluster, labels),
        "spec": {**_pod(cluster, cluster.head), "restartPolicy": "Never", "containers": [container]},
    }


def _template(
    cluster: Cluster, pod: Head, name: str, labels: Values, config_map: str | None, ports: list[Values]
) -> Values:
    volumes, mounts = _volumes(cluster, pod, config_map)
    container: Values = {
        "name": name,
        "image": cluster.image,
        "imagePullPolicy": cluster.image_pull_policy,
        "workingDir": cluster.working_dir,
        "securityContext": container_security(),
        "ports": ports,
        "env": _env(cluster),
        "resources": _resources(pod),
        "volumeMounts": mounts,
    }
    if cluster.env_from:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in cluster.env_from]
    return {
        "metadata": _metadata(cluster, labels),
        "spec": {**_pod(cluster, pod), "containers": [container], "volumes": volumes},
    }


def _metadata(cluster: Cluster, labels: Values) -> Values:
    annotations = {"annotations": dict(cluster.annotations)} if cluster.annotations else {}
    return {"labels": {**labels, **cluster.labels}, **annotations}


def _pod(cluster: Cluster, pod: Head) -> Values:
    """What is a pod's and not its container's. It fits the `restricted` Pod Security Standard."""
    found: Values = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",  # a large cache is not walked at every start
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    }
    if cluster.service_account is not None:
        found["serviceAccountName"] = cluster.service_account
    if cluster.priority_class is not None:
        found["priorityClassName"] = cluster.priority_class
    if cluster.image_pull_secrets:
        found["imagePullSecrets"] = [{"name": secret} for secret in cluster.image_pull_secrets]
    if pod.node_selector:
        found["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        found["tolerations"] = [_toleration(toleration) for toleration in pod.tolerations]
    return found


def _toleration(toleration: Toleration) -> Values:
    values = {
        "key": toleration.key,
        "operator": toleration.operator,
        "value": toleration.value,
        "effect": toleration.effect,
        "tolerationSeconds": toleration.toleration_seconds,
    }
    return {key: value for key, value in values.items() if value is not None}


def container_security() -> Values:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _resources(pod: Head) -> Values:
    """Requests equal limits, so that a pod is never evicted for what it was promised."""
    amounts: Values = {"cpu": str(pod.cpu), "memory": pod.memory}
    if pod.ephemeral_storage is not None:
        amounts["ephemeral-storage"] = pod.ephemeral_storage
    if pod.gpu:
        amounts[pod.gpu_resource] = str(pod.gpu)
    return {"requests": amounts, "limits": amounts}


def _ray_start(pod: Head) -> Values:
    """Said outright: KubeRay knows GPUs by some resource names only, and Ray's object store fills `/dev/shm`."""
    found: Values = {"num-gpus": str(pod.gpu)}
    if pod.shared_memory is not None:
        size = bytes_of(pod.shared_memory)
        assert size is not None
        found["object-store-memory"] = str(size // 2)  # the rest is for NCCL and data loading
    return found


def _env(cluster: Cluster) -> list[Values]:
    plain = {
        "HF_HOME": f"{cluster.cache.mount.rstrip('/')}/huggingface",
        "TAILOR_CACHE": f"{cluster.cache.mount.rstrip('/')}/tailor",
        # Unset, Ray turns authentication on where it finds a token.
        **({"RAY_AUTH_MODE": "disabled"} if cluster.auth == "disabled" else {}),
        **cluster.env,
    }
    found: list[Values] = [{"name": name, "value": value} for name, value in plain.items()]
    for name, reference in cluster.secret_env.items():
        secret, _, key = reference.partition("/")
        found.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return found


def _volumes(cluster: Cluster, pod: Head, config_map: str | None) -> tuple[list[Values], list[Values]]:
    """Volumes of a pod, and where its container sees them."""
    cache = cluster.cache
    volumes = [_volume("cache", cache.claim, cache.size, read_only=False)]
    mounts: list[Values] = [{"name": "cache", "mountPath": cache.mount}]
    if pod.shared_memory is not None:
        medium = {"medium": "Memory", "sizeLimit": pod.shared_memory}
        volumes.append({"name": "shared-mem", "emptyDir": medium})
        mounts.append({"name": "shared-mem", "mountPath": "/dev/shm"})
    if config_map is not None:
        volumes.append({"name": "recipe", "configMap": {"name": config_map}})
        mounts.append({"name": "recipe", "mountPath": RECIPE_FOLDER, "readOnly": True})
    for volume in cluster.volumes:
        volumes.append(_volume(volume.name, volume.claim, volume.size, read_only=volume.read_only))
        read_only = {"readOnly": True} if volume.read_only else {}
        mounts.append({"name": volume.name, "mountPath": volume.mount, **read_only})
    return volumes, mounts


def _volume(name: str, claim: str | None, size: str | None, *, read_only: bool) -> Values:
    if claim is None:
        return {"name": name, "emptyDir": {"sizeLimit": size} if size is not None else {}}
    extra = {"readOnly": True} if read_only else {}
    return {"name": name, "persistentVolumeClaim": {"claimName": claim, **extra}}
