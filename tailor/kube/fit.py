"""A recipe on a cluster: how many pods it needs, and whether they see what it names."""

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
    """Pods that train, and the workers in each."""

    pods: int
    """0: the head trains."""
    workers_per_pod: int


def size(recipe: Recipe, cluster: Cluster) -> Size:
    """How many worker pods the recipe's workers fill."""
    workers, pod = recipe.scale.max_workers, cluster.worker
    if pod is None:
        return Size(0, workers)
    per_pod = pod.gpu or min(pod.workers_per_pod or 1, workers)
    return Size(-(-workers // per_pod), per_pod)


def problems(recipe: Recipe, cluster: Cluster, document: Document) -> list[Problem]:
    """What keeps the recipe from running on the cluster, each at its place in the recipe."""
    found = []
    for findings in (_scale, _job, _names):
        for key, message in findings(recipe, cluster):
            found.append(document.at_value(path_of(key)).problem(path_of(key), message))
    return found


def notes(recipe: Recipe, cluster: Cluster, *, stays: bool = False) -> list[str]:
    """What is worth knowing and may be meant. `stays`: of a RayCluster, on which runs ask for pods."""
    found = _asking(recipe, cluster) if stays else []
    named = [recipe.save.to, recipe.data.store or "", recipe.model.path]
    named += [source.path for _, source in visibility.sources(recipe)]
    credentials = any(name.startswith("AWS_") for name in cluster.secret_env)
    if any("s3://" in name for name in named) and not (
        credentials or cluster.env_from or cluster.service_account
    ):
        found.append(
            "the recipe names s3://, but the cluster file has no AWS_… in secret_env, no env_from and no "
            "service_account: the nodes themselves must have access"
        )
    environment = (*cluster.env, *cluster.secret_env)
    for tracker, section in recipe.track.chosen():
        prefix = section.environment_prefix
        if prefix and not cluster.env_from and not any(name.startswith(prefix) for name in environment):
            found.append(
                f"track.{tracker}, but the cluster file has no {prefix}… in env or secret_env, and no env_from"
            )
    if cluster.job.backoff_limit and recipe.save.every is None:
        found.append("without save.every the only checkpoint is the last step's: a retry starts over")
    return found


def _asking(recipe: Recipe, cluster: Cluster) -> list[str]:
    """What a run should know before it asks the autoscaler for pods."""
    scaler, pod, scale = cluster.autoscaler, cluster.worker, recipe.scale
    if scaler is None or pod is None or scaler.min_pods >= size(recipe, cluster).pods:
        return []
    if scaler.version == "v1":
        return [
            "autoscaler.version v1 does not say what it can bring, so a run that lacks pods is refused; v2 does"
        ]
    found = []
    if pod.gpu and scale.gpu == "auto":
        found.append(
            "with scale.gpu: auto a run that finds no pod asks for one before it knows that it has a GPU; "
            "with scale.gpu: true it asks for all at once"
        )
    if scale.accelerator is not None:
        found.append(
            "Ray's autoscaler learns the kind of a GPU from pods that are there, so a run that lacks pods with "
            f"scale.accelerator: {scale.accelerator} is refused; choose the kind by worker.node_selector"
        )
    return found


def _scale(recipe: Recipe, cluster: Cluster) -> Iterator[Finding]:
    scale = recipe.scale
    pod, name = _trainer(cluster)
    if scale.address is not None:
        yield "scale.address", "has no place on Kubernetes: the job joins the cluster that it is given"
    if scale.gpu is True and not pod.gpu:
        yield "scale.gpu", f"is true, but {name}.gpu of the cluster file is 0; set it, or scale.gpu: auto"
    if scale.gpu is False and pod.gpu:
        yield "scale.gpu", f"is false, and {name}.gpu of the cluster file is {pod.gpu}: GPUs would stay idle"
    if recipe.model.attention == "flash_attention_2" and not pod.gpu:
        yield "model.attention", f"flash_attention_2 needs a GPU; {name}.gpu of the cluster file is 0"
    fit = size(recipe, cluster)
    room = pod.gpu * max(fit.pods, 1)
    if pod.gpu and fit.pods and room != scale.max_workers:
        pods = f"{fit.pods} pods" if fit.pods > 1 else "a pod"
        yield (
            "scale.workers",
            (
                f"{scale.max_workers} of the {room} GPUs of {pods} would train, and the others stay idle; "
                f"set scale.workers: {room}, or worker.gpu: {_divisor(scale.max_workers, pod.gpu)} in the cluster file"
            ),
        )
    elif pod.gpu and room != scale.max_workers:
        yield "scale.workers", f"needs {scale.max_workers} GPUs, and the head, which trains, has {room}"
    per_pod = fit.workers_per_pod
    asked = (scale.cpus_per_worker or 1) * per_pod
    if asked > pod.cpu:
        key = "scale.cpus_per_worker" if scale.cpus_per_worker else "scale.workers"
        yield (
            key,
            f"asks for {asked} CPUs in a pod ({per_pod} workers); {name}.cpu of the cluster file is {pod.cpu}",
        )
    if cluster.autoscaler and cluster.autoscaler.max_pods < fit.pods:
        most = cluster.autoscaler.max_pods
        yield "scale.workers", f"needs {fit.pods} pods; autoscaler.max_pods of the cluster file is {most}"


def _job(recipe: Recipe, cluster: Cluster) -> Iterator[Finding]:
    if cluster.job.backoff_limit and recipe.save.resume == "never":
        yield "save.resume", "never refuses what a retry must go on with; write auto, or job.backoff_limit: 0"


def _names(recipe: Recipe, cluster: Cluster) -> Iterator[Finding]:
    view = seen(cluster)
    yield from visibility.check_writes(recipe, view)
    yield from visibility.check_reads(recipe, view, bundled=cluster.recipe_path is None)


def seen(cluster: Cluster) -> Visibility:
    """What the pods see: claims, and the image's own files."""
    claims = [volume for volume in cluster.volumes if volume.claim is not None]
    return Visibility(
        machines="pods",
        context="in a pod",
        working_dir=cluster.working_dir,
        shared=tuple(volume.mount for volume in claims if not volume.read_only),
        readable=(*(volume.mount for volume in claims), *cluster.image_files),
        read_only={
            volume.mount: f"lies on {volume.claim}, which the cluster file mounts read_only"
            for volume in claims
            if volume.read_only
        },
        write_hint="a folder below a claim of the cluster file",
        not_shared=(
            "is a folder of each pod for itself, lost with it; write s3://…, or a folder below the mount of a "
            "claim in volumes of the cluster file"
        ),
        read_hint="put it on s3://… or hf://…, on a claim in volumes, or in the image (image_files)",
    )


def _trainer(cluster: Cluster) -> tuple[Head, str]:
    """The pod that trains, and its section."""
    return (cluster.worker, "worker") if cluster.worker is not None else (cluster.head, "head")


def _divisor(workers: int, most: int) -> int:
    """The most GPUs of a pod that leave none idle."""
    return next(gpus for gpus in range(min(workers, most), 0, -1) if workers % gpus == 0)
