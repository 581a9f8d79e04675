"""Generates manifests for KubeRay 1.7 (`ray.io/v1`): a RayJob with its recipe, or a persistent RayCluster."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from typing import Any, Literal, get_args

import yaml

from tailor.errors import RecipeError
from tailor.kube import check, fit, names, pods
from tailor.kube.check import RECIPE_FOLDER
from tailor.kube.spec import Cluster
from tailor.layout import RECIPE
from tailor.spec import load, visibility
from tailor.spec.recipe import Recipe

Kind = Literal["RayJob", "RayCluster"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Values = dict[str, Any]

API_VERSION = "ray.io/v1"


def load_cluster(path: str) -> Cluster:
    """Load and check a cluster file. Raises RecipeError with all problems."""
    return load.judge(load.read(path, Cluster), Cluster, (check.problems,))


def load_recipe(path: str, cluster: Cluster, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe and check that it can run on the cluster. Raises RecipeError with all problems.

    Files are checked for access from the pods. They need not exist on this machine.
    """
    document = load.read(path, Recipe, overrides)
    recipe = load.judge(document, Recipe, load.RULES[:1])
    if problems := fit.problems(recipe, cluster, document):
        raise RecipeError(problems)
    return recipe


def documents(
    recipe: Recipe, cluster: Cluster, *, kind: Kind, stem: str, overrides: Sequence[str] = ()
) -> list[Values]:
    """The Kubernetes objects to apply, in order.

    `stem`: the recipe's file name without its ending, from which the name is derived if the cluster file has none.
    """
    name = cluster.name or names.name_from(stem)
    labels = own_labels(name)
    if kind == "RayCluster":
        metadata = metadata_of(cluster, name, {**labels, **_queue(cluster)})
        number = fit.size(recipe, cluster).pods
        return [made(kind, metadata, ray_cluster(cluster, labels, None, number=number, min_pods=0))]
    config_map = None
    if cluster.recipe_path is None:
        config_map = _config_map(recipe, cluster, name, labels)
    config_map_name = config_map["metadata"]["name"] if config_map else None
    number = fit.size(recipe, cluster).pods
    job = made(
        kind,
        metadata_of(cluster, name, {**labels, **_queue(cluster)}),
        {
            "entrypoint": _entrypoint(cluster, overrides),
            **_job_policy(cluster),
            "submissionMode": "K8sJobMode",
            # The submitter is not retried, because it would follow the same failed job. KubeRay's backoffLimit above
            # retries with a new cluster.
            "submitterConfig": {"backoffLimit": 0},
            "submitterPodTemplate": pods.submitter(cluster, labels),
            "rayClusterSpec": ray_cluster(cluster, labels, config_map_name, number=number, min_pods=number),
        },
    )
    return [config_map, job] if config_map else [job]


def text(objects: Sequence[Values], comment: str) -> str:
    """The objects as one YAML stream that starts with a comment."""
    parts = [f"# {line}\n" for line in comment.splitlines()]
    for value in objects:
        dumped = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
        parts.append(f"---\n{dumped}")
    return "".join(parts)


def own_labels(name: str) -> Values:
    """The labels of all objects and pods of this name."""
    return {
        "app.kubernetes.io/name": "tailor",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "tailor",
    }


def made(kind: str, metadata: Values, spec: Values) -> Values:
    """An object of KubeRay."""
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def metadata_of(cluster: Cluster, name: str, labels: Values) -> Values:
    """The metadata of an object, with the labels and annotations of the cluster file."""
    metadata: Values = {"name": name, "namespace": cluster.namespace, "labels": {**labels, **cluster.labels}}
    if cluster.annotations:
        metadata["annotations"] = dict(cluster.annotations)
    return metadata


def _queue(cluster: Cluster) -> Values:
    """The labels that assign the object to a queue of Kueue or Volcano."""
    gang = cluster.gang
    if gang is None:
        return {}
    queue, priority = {
        "kueue": ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"),
        "volcano": ("volcano.sh/queue-name", "ray.io/priority-class-name"),
    }[gang.scheduler]
    return {queue: gang.queue, **({priority: gang.priority_class} if gang.priority_class else {})}


def _entrypoint(cluster: Cluster, overrides: Sequence[str]) -> str:
    if cluster.recipe_path is None:
        return f"tailor run {RECIPE_FOLDER}/{RECIPE}"
    return shlex.join(["tailor", "run", cluster.recipe_path, *overrides])


def _job_policy(cluster: Cluster) -> Values:
    """The fields of a RayJob that control its end and its retries."""
    job = cluster.job
    policy: Values = {"shutdownAfterJobFinishes": job.shutdown_after_job_finishes}
    if job.shutdown_after_job_finishes:
        policy["ttlSecondsAfterFinished"] = job.ttl_seconds_after_finished
    policy["backoffLimit"] = job.backoff_limit
    if job.active_deadline_seconds is not None:
        policy["activeDeadlineSeconds"] = job.active_deadline_seconds
    if job.pre_running_deadline_seconds is not None:
        policy["preRunningDeadlineSeconds"] = job.pre_running_deadline_seconds
    return policy


def ray_cluster(
    cluster: Cluster, labels: Values, config_map: str | None, *, number: int, min_pods: int
) -> Values:
    """KubeRay's `rayClusterSpec`. config_map: name of the ConfigMap to mount, if any. number: of worker pods."""
    spec: Values = {"rayVersion": cluster.ray_version, "authOptions": {"mode": cluster.auth}}
    if scaler := cluster.autoscaler:
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = {
            "version": scaler.version,
            "idleTimeoutSeconds": scaler.idle_timeout_seconds,
            "upscalingMode": scaler.upscaling_mode,
            "securityContext": pods.container_security(),
        }
    spec["headGroupSpec"] = pods.head_group(cluster, labels, config_map)
    if cluster.worker is not None:
        spec["workerGroupSpecs"] = [pods.worker_group(cluster, number, labels, config_map, min_pods=min_pods)]
    return spec


def _config_map(recipe: Recipe, cluster: Cluster, name: str, labels: Values) -> Values:
    """A ConfigMap with the resolved recipe: with `extends`, the overrides and a chat template of this machine applied.

    Its name contains a hash of its content, and it is immutable, so that a retry runs the same recipe.
    """
    data = visibility.bundle(recipe, fit.pod_visibility(cluster), RECIPE_FOLDER)
    digest = hashlib.sha256("\0".join(data.values()).encode()).hexdigest()[:10]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata_of(cluster, f"{name}-{digest}", labels),
        "immutable": True,
        "data": data,
    }


class _Dumper(load.Dumper):
    """Writes multi-line strings as literal blocks (`|`), and no YAML aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, value: str) -> yaml.Node:
    if "\n" in value:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|")
    return load.represent_text(dumper, value)


_Dumper.add_representer(str, _represent_text)
