"""The cluster file: what a platform's pods are like, beside the recipe that says what runs in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from tailor.spec.base import File, Section

RAY_VERSION = "2.60.0"
"""Ray's version in `constraints.txt`, and so in the images of `docker/`."""

REFERENCE = """\
# Cluster file reference

Written by `make docs` from the spec in `tailor/kube`; a test keeps the two equal.

`tailor manifest recipe.yaml --cluster FILE` reads a cluster file beside the recipe. It is YAML as recipes are: 1.2
scalars, unknown keys are errors, and `extends: other.yaml` takes the keys of another cluster file. `image` is the only
key without which nothing works.
"""


class Toleration(Section):
    """A taint that pods may be placed beside, as Kubernetes names it."""

    key: str | None = Field(None, min_length=1)
    """The taint's key. Default: every taint, which needs `operator: Exists`."""

    operator: Literal["Equal", "Exists"] = "Equal"
    """`Equal` compares the value, `Exists` takes any."""

    value: str | None = None
    """The taint's value."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect. Default: every one."""

    toleration_seconds: int | None = Field(None, ge=0)
    """How long a pod stays on a node that gets such a `NoExecute` taint. Default: for good."""


class Head(Section):
    """The head pod. It runs Ray's control and the `tailor run` command; with a `worker` section no training."""

    cpu: int = Field(2, ge=1)
    """Whole CPUs, requested and the limit."""

    memory: str = Field("8Gi", min_length=1)
    """Memory, requested and the limit, such as 64Gi."""

    gpu: int = Field(0, ge=0)
    """GPUs, for training on the head: without a `worker` section."""

    gpu_resource: str = Field("nvidia.com/gpu", min_length=1)
    """The name under which the cluster offers GPUs, such as `amd.com/gpu`."""

    shared_memory: str | None = Field(None, min_length=1)
    """Size of `/dev/shm`; it counts as memory. Ray's object store takes half. Default: KubeRay's, all memory."""

    ephemeral_storage: str | None = Field(None, min_length=1)
    """Local disk, requested and the limit."""

    node_selector: dict[str, str] = {}
    """Labels of the nodes to use."""

    tolerations: list[Toleration] = []
    """Taints of nodes that may be used nevertheless."""


class Worker(Head):
    """The pods that train. Their number follows from the recipe's `scale`."""

    cpu: int = Field(ge=1)
    """Whole CPUs of a pod, requested and the limit."""

    memory: str = Field(min_length=1)
    """Memory of a pod, requested and the limit, such as 64Gi."""

    gpu: int = Field(0, ge=0)
    """GPUs of a pod. Each is one of the recipe's `scale.workers`."""

    workers_per_pod: int | None = Field(None, ge=1)
    """Workers in a pod without GPUs. Default: 1."""


class Volume(Section):
    """A volume in every pod."""

    name: str = Field(min_length=1)
    """Its name in the manifest."""

    mount: str = Field(min_length=1)
    """The folder at which pods see it."""

    claim: str | None = Field(None, min_length=1)
    """A PersistentVolumeClaim of the namespace. Pods on several nodes need the access mode ReadWriteMany."""

    size: str | None = Field(None, min_length=1)
    """Limit of an emptyDir: a folder of each pod, lost with it."""

    read_only: bool = False
    """Pods may only read a claim."""


class Cache(Section):
    """Where pods keep downloads: the Hugging Face cache and remote files (`HF_HOME`, `TAILOR_CACHE`)."""

    mount: str = Field("/cache", min_length=1)
    """The folder at which pods see it."""

    claim: str | None = Field(None, min_length=1)
    """A PersistentVolumeClaim, so that a model is downloaded once. Default: an emptyDir in each pod."""

    size: str | None = Field(None, min_length=1)
    """Limit of the emptyDir. Default: the node's disk."""


class Autoscaler(Section):
    """Ray's autoscaler. A RayJob keeps the pods of its recipe; on a RayCluster a run asks for those that it lacks."""

    min_pods: int = Field(0, ge=0)
    """Worker pods that are always there."""

    max_pods: int = Field(ge=1)
    """Most worker pods."""

    idle_timeout_seconds: int = Field(60, ge=0)
    """How long an idle pod stays."""

    upscaling_mode: Literal["Default", "Conservative"] = "Default"
    """`Conservative`: never more pods pending than there are."""

    version: Literal["v1", "v2"] = "v2"
    """Which of Ray's autoscalers. `v1` doesn't say what it can bring, so a run that lacks pods is refused."""


class Gang(Section):
    """All pods start together or none does, by a queue of the cluster."""

    scheduler: Literal["kueue", "volcano"]
    """Who queues: Kueue, or Volcano with KubeRay's `batchScheduler.name=volcano`."""

    queue: str = Field(min_length=1)
    """Kueue's LocalQueue or Volcano's Queue."""

    priority_class: str | None = Field(None, min_length=1)
    """Priority in the queue: a WorkloadPriorityClass of Kueue, a PriorityClass with Volcano."""


class Job(Section):
    """How a RayJob ends and begins anew. A RayCluster has no job, and takes nothing of this."""

    shutdown_after_job_finishes: bool = True
    """Remove the pods when the job has ended."""

    ttl_seconds_after_finished: int = Field(0, ge=0)
    """How long the pods stay after the end, for a look at the dashboard."""

    backoff_limit: int = Field(0, ge=0)
    """Retries of a failed job. Each is a new cluster that goes on in the same run folder."""

    active_deadline_seconds: int | None = Field(None, ge=1)
    """The job fails after this time, whatever it does."""

    pre_running_deadline_seconds: int | None = Field(None, ge=1)
    """The job fails when it doesn't run after this time, for want of nodes."""


class Cluster(File):
    """A Kubernetes cluster with KubeRay, as pods of tailor see it."""

    noun: ClassVar[str] = "cluster file"
    folder: ClassVar[str] = "cluster"
    example: ClassVar[str] = "`image:` and `worker:`"
    start: ClassVar[str] = "cluster/k8s.yaml is one to begin with"
    secrets_location: ClassVar[str] = "a Kubernetes Secret that secret_env names ({HF_TOKEN: secret/key})"
    aliases: ClassVar[Mapping[str, str]] = {
        "headGroupSpec": "head",
        "workerGroupSpecs": "worker",
        "workers": "worker",
        "secrets": "secret_env",
        "envFrom": "env_from",
        "shm": "worker.shared_memory",
        "shm_size": "worker.shared_memory",
        "gpus": "worker.gpu",
        "schedulerName": "gang.scheduler",
        "priority": "priority_class",
        "autoscalerOptions": "autoscaler",
        "authOptions": "auth",
        "workingDir": "working_dir",
        "pvc": "volumes",
        "ttl": "job.ttl_seconds_after_finished",
        "retries": "job.backoff_limit",
    }
    migration_hints: ClassVar[Mapping[str, str]] = {
        "replicas": "the number of pods follows from the recipe's scale.workers",
        "resources": "write cpu, memory and gpu below head and worker",
        "limits": "write cpu, memory and gpu; they are requested, and the limit",
        "requests": "write cpu, memory and gpu; they are requested, and the limit",
        "rayStartParams": "they follow from cpu, gpu and shared_memory",
        "entrypoint": "it is `tailor run` of the recipe",
        "submissionMode": "it is K8sJobMode",
        "runtimeEnvYAML": "what pods need is in the image",
    }

    image: str = Field(min_length=1)
    """Container image with tailor, by a tag or digest that stays: a retry must run what ran before."""

    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When a node pulls the image."""

    image_pull_secrets: list[str] = []
    """Secrets with which the image is pulled."""

    ray_version: str = RAY_VERSION
    """Ray's version in the image, 2.53 or newer."""

    name: str | None = Field(None, min_length=1)
    """Name of the RayJob or RayCluster. Default: the recipe's file name."""

    namespace: str = "default"
    """Namespace of all that is made."""

    service_account: str | None = Field(None, min_length=1)
    """Service account of the pods, such as one that may read a bucket."""

    auth: Literal["token", "disabled"] = "token"
    """Whether Ray asks for a token, which KubeRay makes. `disabled`: whoever reaches the head runs code on it."""

    recipe_path: str | None = Field(None, min_length=1)
    """The recipe's file in the image. Default: a ConfigMap beside the job holds the resolved recipe."""

    working_dir: str = "/opt/tailor"
    """The folder of the image in which the command runs; relative paths of a recipe are seen from it."""

    image_files: list[str] = []
    """Folders of the image whose files a recipe may name: data, models, templates."""

    head: Head = Head()
    """The head pod."""

    worker: Worker | None = None
    """The pods that train. Without them the head trains."""

    env: dict[str, str] = {}
    """Environment variables of every pod, such as `AWS_ENDPOINT_URL`. No secrets."""

    secret_env: dict[str, str] = {}
    """Environment variables out of Secrets, as `HF_TOKEN: secret/key`."""

    env_from: list[str] = []
    """Secrets of which every key becomes an environment variable."""

    cache: Cache = Cache()
    """Where downloads are kept."""

    volumes: list[Volume] = []
    """Volumes of every pod."""

    labels: dict[str, str] = {}
    """Labels of everything that is made, and of its pods."""

    annotations: dict[str, str] = {}
    """Annotations of everything that is made, and of its pods."""

    priority_class: str | None = Field(None, min_length=1)
    """PriorityClass of the pods."""

    autoscaler: Autoscaler | None = None
    """Ray's autoscaler. Default: none, the number of pods stays."""

    gang: Gang | None = None
    """A queue that starts all pods together. Default: none."""

    job: Job = Job()
    """How a RayJob ends and begins anew."""
