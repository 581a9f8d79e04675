"""Manifests for KubeRay 1.7 (`ray.io/v1`): a RayJob with its recipe, or a RayCluster that stays."""

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
    """A cluster file, judged. Raises RecipeError with every problem."""
    return load.judge(load.read(path, Cluster), Cluster, (check.problems,))


def load_recipe(path: str, cluster: Cluster, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe, judged as one that runs on the cluster: its files are the pods', not this machine's."""
    document = load.read(path, Recipe, overrides)
    recipe = load.judge(document, Recipe, load.RULES[:1])
    if problems := fit.problems(recipe, cluster, document):
        raise RecipeError(problems)
    return recipe


def documents(
    recipe: Recipe, cluster: Cluster, *, kind: Kind, stem: str, overrides: Sequence[str] = ()
) -> list[Values]:
    """The objects to apply, in order. `stem`: the recipe's file name, for a cluster file without a name."""
    name = cluster.name or names.name_from(stem)
    labels = {
        "app.kubernetes.io/name": "tailor",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "tailor",
    }
    if kind == "RayCluster":
        metadata = _metadata(cluster, name, {**labels, **_queue(cluster)})
        return [_object(kind, metadata, _ray_cluster(recipe, cluster, labels, None, least=0))]
    carried = None
    if cluster.recipe_path is None:
        carried = _config_map(recipe, cluster, name, labels)
    config_map = carried["metadata"]["name"] if carried else None
    job = _object(
        kind,
        _metadata(cluster, name, {**labels, **_queue(cluster)}),
        {
            "entrypoint": _entrypoint(cluster, overrides),
            **_ending(cluster),
            "submissionMode": "K8sJobMode",
            # A submitter that is started anew would follow a job that has failed. KubeRay retries with backoffLimit.
            "submitterConfig": {"backoffLimit": 0},
            "submitterPodTemplate": pods.submitter(cluster, labels),
            "rayClusterSpec": _ray_cluster(
                recipe, cluster, labels, config_map, least=fit.size(recipe, cluster).pods
            ),
        },
    )
    return [carried, job] if carried else [job]


def text(objects: Sequence[Values], head: str) -> str:
    """The objects as one YAML stream, below a comment."""
    parts = [f"# {line}\n" for line in head.splitlines()]
    for value in objects:
        dumped = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
        parts.append(f"---\n{dumped}")
    return "".join(parts)


def _object(kind: Kind, metadata: Values, spec: Values) -> Values:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def _metadata(cluster: Cluster, name: str, labels: Values) -> Values:
    found: Values = {"name": name, "namespace": cluster.namespace, "labels": {**labels, **cluster.labels}}
    if cluster.annotations:
        found["annotations"] = dict(cluster.annotations)
    return found


def _queue(cluster: Cluster) -> Values:
    """The labels by which a queue finds what it starts as a whole."""
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


def _ending(cluster: Cluster) -> Values:
    job = cluster.job
    found: Values = {"shutdownAfterJobFinishes": job.shutdown_after_job_finishes}
    if job.shutdown_after_job_finishes:
        found["ttlSecondsAfterFinished"] = job.ttl_seconds_after_finished
    found["backoffLimit"] = job.backoff_limit
    if job.active_deadline_seconds is not None:
        found["activeDeadlineSeconds"] = job.active_deadline_seconds
    if job.pre_running_deadline_seconds is not None:
        found["preRunningDeadlineSeconds"] = job.pre_running_deadline_seconds
    return found


def _ray_cluster(
    recipe: Recipe, cluster: Cluster, labels: Values, config_map: str | None, *, least: int
) -> Values:
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
        wanted = fit.size(recipe, cluster).pods
        spec["workerGroupSpecs"] = [pods.worker_group(cluster, wanted, labels, config_map, least=least)]
    return spec


def _config_map(recipe: Recipe, cluster: Cluster, name: str, labels: Values) -> Values:
    """The resolved recipe: what it extends, the overrides and a chat template of this machine are in it.

    Its name holds a hash of its content and it never changes, so that a retry runs what ran before.
    """
    data = visibility.bundle(recipe, fit.seen(cluster), RECIPE_FOLDER)
    digest = hashlib.sha256("\0".join(data.values()).encode()).hexdigest()[:10]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(cluster, f"{name}-{digest}", labels),
        "immutable": True,
        "data": data,
    }


class _Dumper(load.Dumper):
    """Texts of several lines stand as they are; nothing is an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, value: str) -> yaml.Node:
    if "\n" in value:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|")
    return load.represent_text(dumper, value)


_Dumper.add_representer(str, _represent_text)
