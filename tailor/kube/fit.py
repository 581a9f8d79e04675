"""Checks that a recipe can run on a cluster: the number of pods, their resources, and access to files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tailor.errors import Problem
from tailor.kube.spec import Cluster, Head
from tailor.spec import visibility
from tailor.spec.reading.source import Document
from tailor.spec.recipe import Recipe
from tailor.spec.rules.keys import Finding, path_of
from tailor.spec.visibility import Visibility


@dataclass(frozen=True)
class Size:
    """Number of pods that train, and of workers in each."""

    pods: int
    """Number of worker pods; 0 if the head trains."""
    workers_per_pod: int


def size(recipe: Recipe, cluster: Cluster) -> Size:
    """The number of worker pods for the recipe's `scale.workers`; its maximum if it is a range."""
    workers, pod = recipe.scale.max_workers, cluster.worker
    if pod is None:
        return Size(0, workers)
    per_pod = pod.gpu or min(pod.workers_per_pod or 1, workers)
    return Size(-(-workers // per_pod), per_pod)


def problems(recipe: Recipe, cluster: Cluster, document: Document) -> list[Problem]:
    """All reasons why the recipe cannot run on the cluster, with their position in the recipe."""
    reasons = []
    for findings in (_scale, _job, _names):
        for key, message in findings(recipe, cluster):
            reasons.append(document.at_value(path_of(key)).problem(path_of(key), message))
    return reasons


def notes(recipe: Recipe, cluster: Cluster, *, persistent: bool = False) -> list[str]:
    """Likely mistakes that do not prevent the run. `persistent`: for a RayCluster, on which runs request pods."""
    lines = _autoscaler_notes(recipe, cluster) if persistent else []
    urls = [recipe.save.to, recipe.data.store or "", recipe.model.path]
    urls += [source.path for _, source in visibility.sources(recipe)]
    credentials = any(name.startswith("AWS_") for name in cluster.secret_env)
    if any("s3://" in url for url in urls) and not (
        credentials or cluster.env_from or cluster.service_account
    ):
        lines.append(
            "the recipe uses s3://, but the cluster file has no AWS_… in secret_env, no env_from and no "
            "service_account; this works only if the nodes themselves have access"
        )
    environment = (*cluster.env, *cluster.secret_env)
    for tracker, section in recipe.track.chosen():
        prefix = section.environment_prefix
        if prefix and not cluster.env_from and not any(name.startswith(prefix) for name in environment):
            lines.append(
                f"track.{tracker} needs {prefix}… variables, but the cluster file has none in env or secret_env, and "
                "no env_from"
            )
    if cluster.job.backoff_limit and recipe.save.every is None:
        lines.append(
            "without save.every the only checkpoint is that of the last step, so a retry starts from step 0"
        )
    return lines


def _autoscaler_notes(recipe: Recipe, cluster: Cluster) -> list[str]:
    """Notes for a run that must request pods from the autoscaler."""
    scaler, pod, scale = cluster.autoscaler, cluster.worker, recipe.scale
    if scaler is None or pod is None or scaler.min_pods >= size(recipe, cluster).pods:
        return []
    if scaler.version == "v1":
        return [
            (
                "autoscaler.version: v1 does not report which pods it can add, so a run that lacks pods fails at "
                "once; use v2"
            )
        ]
    lines = []
    if pod.gpu and scale.gpu == "auto":
        lines.append(
            "with scale.gpu: auto, a run that finds no pod requests one before it knows that the pod has a GPU; "
            "with scale.gpu: true it requests all pods at once"
        )
    if scale.accelerator is not None:
        lines.append(
            "Ray's autoscaler learns the GPU type of a pod only when the pod runs, so a run that lacks pods with "
            f"scale.accelerator: {scale.accelerator} fails at once; select the GPU type with worker.node_selector"
        )
    return lines


def _scale(recipe: Recipe, cluster: Cluster) -> Iterator[Finding]:
    scale = recipe.scale
    pod, name = _trainer(cluster)
    if scale.address is not None:
        yield "scale.address", "cannot be set on Kubernetes, where a job joins its own cluster; remove it"
    if scale.gpu is True and not pod.gpu:
        yield (
            "scale.gpu",
            f"is true, but {name}.gpu in the cluster file is 0; set {name}.gpu, or scale.gpu: auto",
        )
    if scale.gpu is False and pod.gpu:
        yield (
            "scale.gpu",
            f"is false, but {name}.gpu in the cluster file is {pod.gpu}, so these GPUs would be unused",
        )
    if recipe.model.attention == "flash_attention_2" and not pod.gpu:
        yield (
            "model.attention",
            f"flash_attention_2 needs a GPU, but {name}.gpu in the cluster file is 0",
        )
    fit = size(recipe, cluster)
    room = pod.gpu * max(fit.pods, 1)
    if pod.gpu and fit.pods and room != scale.max_workers:
        pods = f"{fit.pods} pods" if fit.pods > 1 else "a pod"
        yield (
            "scale.workers",
            (
                f"{scale.max_workers} workers use only {scale.max_workers} of the {room} GPUs of {pods}; "
                f"set scale.workers: {room}, or worker.gpu: {_divisor(scale.max_workers, pod.gpu)} in the cluster file"
            ),
        )
    elif pod.gpu and room != scale.max_workers:
        yield (
            "scale.workers",
            (
                f"needs {scale.max_workers} GPUs, but head.gpu in the cluster file is {room}, and only the head "
                "trains without a worker section"
            ),
        )
    per_pod = fit.workers_per_pod
    needed = (scale.cpus_per_worker or 1) * per_pod
    if needed > pod.cpu:
        key = "scale.cpus_per_worker" if scale.cpus_per_worker else "scale.workers"
        workers = "1 worker" if per_pod == 1 else f"{per_pod} workers"
        yield (
            key,
            f"needs {needed} CPUs per pod ({workers}), but {name}.cpu in the cluster file is {pod.cpu}",
        )
    if cluster.autoscaler and cluster.autoscaler.max_pods < fit.pods:
        max_pods = cluster.autoscaler.max_pods
        yield (
            "scale.workers",
            f"needs {fit.pods} pods, but autoscaler.max_pods in the cluster file is {max_pods}",
        )


def _job(recipe: Recipe, cluster: Cluster) -> Iterator[Finding]:
    if cluster.job.backoff_limit and recipe.save.resume == "never":
        yield (
            "save.resume",
            (
                "never prevents retries from resuming the run; set save.resume: auto, "
                "or job.backoff_limit: 0 in the cluster file"
            ),
        )


def _names(recipe: Recipe, cluster: Cluster) -> Iterator[Finding]:
    view = pod_visibility(cluster)
    yield from visibility.check_writes(recipe, view)
    yield from visibility.check_reads(recipe, view, bundled=cluster.recipe_path is None)


def pod_visibility(cluster: Cluster) -> Visibility:
    """The folders that pods can access: claims, and `image_files` of the image."""
    claims = [volume for volume in cluster.volumes if volume.claim is not None]
    return Visibility(
        machines="pods",
        context="in a pod",
        working_dir=cluster.working_dir,
        shared=tuple(volume.mount for volume in claims if not volume.read_only),
        readable=(*(volume.mount for volume in claims), *cluster.image_files),
        read_only={
            volume.mount: f"is on the claim {volume.claim}, which the cluster file mounts read_only"
            for volume in claims
            if volume.read_only
        },
        write_hint="a folder on a claim in volumes of the cluster file",
        not_shared=(
            "is a separate folder in each pod, deleted with the pod; write s3://…, or a folder on a claim in "
            "volumes of the cluster file"
        ),
        read_hint="put it on s3://… or hf://…, on a claim in volumes, or in the image (image_files)",
    )


def _trainer(cluster: Cluster) -> tuple[Head, str]:
    """(spec of the pods that train, name of its section)."""
    return (cluster.worker, "worker") if cluster.worker is not None else (cluster.head, "head")


def _divisor(workers: int, max_gpus: int) -> int:
    """The largest number of GPUs per pod, up to `max_gpus`, that divides the number of workers."""
    return next(gpus for gpus in range(min(workers, max_gpus), 0, -1) if workers % gpus == 0)
