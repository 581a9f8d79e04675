"""Generates the pod templates of the head, the workers and a job's submitter."""

from __future__ import annotations

from typing import Any

from tailor.kube.check import RECIPE_FOLDER
from tailor.kube.names import bytes_of
from tailor.kube.spec import Cluster, Head, Toleration

Values = dict[str, Any]

USER = 1000
"""User ID of the images, also used as group ID (fsGroup) with write access to volumes."""

STOP_MARGIN_SECONDS = 30
"""Time for Ray to shut down after the run has saved its checkpoint."""
STOP_RUNS = (
    "for f in /proc/[0-9]*/cmdline; do grep -qaz 'bin/tailor$' $f 2>/dev/null && p=${f%/*} && pids=\"$pids ${p##*/}\"; done; "
    "kill -TERM $pids 2>/dev/null; for p in $pids; do while kill -0 $p 2>/dev/null; do sleep 1; done; done"
)
"""Before the head is stopped: `tailor run` saves a checkpoint and exits with 143, so that KubeRay retries the job. After
`ray job stop` it would not."""
WAIT_FOR_TRAINING = "while cat /proc/[0-9]*/comm 2>/dev/null | grep -q '^ray::RayTrainWo'; do sleep 1; done"
"""Before a worker pod is stopped: wait until its training processes (`ray::RayTrainWorker`) have ended. Kubernetes deletes
the pods of a cluster all at once, and the run needs its workers for the checkpoint. Linux shows 15 characters of a name."""

_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}


def head_group(cluster: Cluster, labels: Values, config_map: str | None) -> Values:
    """KubeRay's `headGroupSpec`."""
    start = _ray_start(cluster.head)
    if cluster.worker is not None:
        start["num-cpus"] = "0"  # no tasks or workers on the head, which runs `tailor run`
    ports = [{"name": name, "containerPort": port} for name, port in _PORTS.items()]
    return {
        "rayStartParams": start,
        "template": _template(cluster, cluster.head, "ray-head", labels, config_map, ports),
    }


def worker_group(
    cluster: Cluster, pods: int, labels: Values, config_map: str | None, *, min_pods: int
) -> Values:
    """An entry of KubeRay's `workerGroupSpecs`. `min_pods`: pods that the autoscaler must never remove."""
    pod, scaler = cluster.worker, cluster.autoscaler
    assert pod is not None
    min_replicas = max(scaler.min_pods, min_pods) if scaler else pods
    return {
        "groupName": "worker",
        "replicas": min_replicas,  # the autoscaler adds more on demand
        "minReplicas": min_replicas,
        "maxReplicas": scaler.max_pods if scaler else pods,
        "rayStartParams": _ray_start(pod),
        "template": _template(
            cluster, pod, "ray-worker", labels, config_map, [{"name": "metrics", "containerPort": 8080}]
        ),
    }


def submitter(cluster: Cluster, labels: Values) -> Values:
    """Template of the pod that submits the job to the cluster and follows its log. KubeRay adds the command."""
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
    is_head = name == "ray-head"
    before_stop = STOP_RUNS if is_head else WAIT_FOR_TRAINING
    container: Values = {
        "name": name,
        "image": cluster.image,
        "imagePullPolicy": cluster.image_pull_policy,
        "workingDir": cluster.working_dir,
        "securityContext": container_security(),
        "ports": ports,
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", before_stop]}}},
        "env": _env(cluster),
        "resources": _resources(pod),
        "volumeMounts": mounts,
    }
    if cluster.env_from:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in cluster.env_from]
    return {
        "metadata": _metadata(cluster, labels),
        "spec": {
            **_pod(cluster, pod, uses_api=is_head and cluster.autoscaler is not None),
            "terminationGracePeriodSeconds": cluster.stop_seconds + STOP_MARGIN_SECONDS,
            "containers": [container],
            "volumes": volumes,
        },
    }


def _metadata(cluster: Cluster, labels: Values) -> Values:
    annotations = {"annotations": dict(cluster.annotations)} if cluster.annotations else {}
    return {"labels": {**labels, **cluster.labels}, **annotations}


def _pod(cluster: Cluster, pod: Head, *, uses_api: bool = False) -> Values:
    """The fields of a pod's spec except containers and volumes. They meet the `restricted` Pod Security Standard.

    uses_api: whether the pod calls the Kubernetes API, as Ray's autoscaler on the head does, and so needs the token of its
    service account.
    """
    spec: Values = {
        "automountServiceAccountToken": uses_api,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "fsGroup": USER,
            # The default, Always, changes the owner of every file of a large cache at every start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if cluster.service_account is not None:
        spec["serviceAccountName"] = cluster.service_account
    if cluster.priority_class is not None:
        spec["priorityClassName"] = cluster.priority_class
    if cluster.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in cluster.image_pull_secrets]
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        spec["tolerations"] = [_toleration(toleration) for toleration in pod.tolerations]
    return spec


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
    """The `securityContext` of every container, for the `restricted` Pod Security Standard."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _resources(pod: Head) -> Values:
    """Requests equal to limits (QoS class Guaranteed): a node short of memory evicts such pods last."""
    amounts: Values = {"cpu": str(pod.cpu), "memory": pod.memory}
    if pod.ephemeral_storage is not None:
        amounts["ephemeral-storage"] = pod.ephemeral_storage
    if pod.gpu:
        amounts[pod.gpu_resource] = str(pod.gpu)
    return {"requests": amounts, "limits": amounts}


def _ray_start(pod: Head) -> Values:
    """The pod's `rayStartParams`.

    The number of GPUs is explicit, because KubeRay detects only some resource names. The size of the object store is
    explicit, because Ray would otherwise use all of `/dev/shm`.
    """
    params: Values = {"num-gpus": str(pod.gpu)}
    if pod.shared_memory is not None:
        size = bytes_of(pod.shared_memory)
        assert size is not None
        params["object-store-memory"] = str(size // 2)  # the rest is for NCCL and data loading
    return params


def _env(cluster: Cluster) -> list[Values]:
    variables = {
        "HF_HOME": f"{cluster.cache.mount.rstrip('/')}/huggingface",
        "TAILOR_CACHE": f"{cluster.cache.mount.rstrip('/')}/tailor",
        "RAY_JOB_STOP_WAIT_TIME_S": str(cluster.stop_seconds),
        # Explicit, because Ray turns authentication on by itself where it finds a token.
        **({"RAY_AUTH_MODE": "disabled"} if cluster.auth == "disabled" else {}),
        **cluster.env,
    }
    env: list[Values] = [{"name": name, "value": value} for name, value in variables.items()]
    for name, reference in cluster.secret_env.items():
        secret, _, key = reference.partition("/")
        env.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return env


def _volumes(cluster: Cluster, pod: Head, config_map: str | None) -> tuple[list[Values], list[Values]]:
    """(volumes of a pod, volumeMounts of its container)."""
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
