"""Generates the manifest of a RayService, which serves models (`tailor serve --manifest`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from tailor.errors import DataError
from tailor.kube import fit, names
from tailor.kube.manifest import made, metadata_of, own_labels, ray_cluster
from tailor.kube.spec import Autoscaler, Cluster
from tailor.spec import load
from tailor.spec.serving import KEY_VARIABLE, Limits

Values = dict[str, Any]

PORT = 8000
"""Port of Ray Serve's HTTP proxies, of which the Service of KubeRay makes one address."""
REPLICA_REQUESTS = 16
"""Requests per replica at which another replica is added: the rows of one batch."""
HTTP_CPUS = 0.5
"""CPUs of a process that reads and writes HTTP."""


@dataclass(frozen=True)
class Service:
    """What a RayService serves. runs: name -> URL. replicas: of the models, up to max_replicas by load."""

    runs: dict[str, str]
    replicas: int = 1
    max_replicas: int | None = None
    limits: Limits = field(default_factory=Limits)
    trust_remote_code: bool = False


def documents(service: Service, cluster: Cluster, *, open_to_all: bool = False) -> list[Values]:
    """The Kubernetes objects to apply. DataError when the cluster cannot serve the runs.

    open_to_all: allow a service without an API key.
    """
    _check(service, cluster, open_to_all)
    name = cluster.name or names.name_from(next(iter(service.runs)))
    labels, pod = own_labels(name), cluster.worker or cluster.head
    per_pod = max(pod.gpu, 1)  # a replica has a GPU, or all CPUs of its pod
    number = -(-service.replicas // per_pod)
    if service.max_replicas is not None:
        most = -(-service.max_replicas // per_pod)
        scaler = cluster.autoscaler.model_dump() if cluster.autoscaler else {}
        autoscaler = Autoscaler(**{**scaler, "min_pods": number, "max_pods": most})
        cluster = cluster.model_copy(update={"autoscaler": autoscaler})
    else:
        cluster = cluster.model_copy(update={"autoscaler": None})
    config = ray_cluster(cluster, labels, None, number=number, min_pods=number)
    for group in config.get("workerGroupSpecs", []):
        _add_probe(group["template"]["spec"]["containers"][0])
    spec: Values = {
        "serveConfigV2": yaml.dump(
            _serve_config(service, pod.cpu, pod.gpu, number),
            Dumper=load.Dumper,
            sort_keys=False,
            allow_unicode=True,
        ),
        "rayClusterConfig": config,
        # The old pods answer their last requests after a new version has taken over.
        "rayClusterDeletionDelaySeconds": max(60, int(service.limits.seconds)),
        "excludeHeadPodFromServeSvc": cluster.worker is not None,
    }
    return [made("RayService", metadata_of(cluster, name, labels), spec)]


def _serve_config(service: Service, cpus: int, gpus: int, pods: int) -> Values:
    """Ray Serve's configuration of the application that `tailor.onray.serve` builds. cpus, gpus: of a pod."""
    share: Values = {"num_cpus": max(HTTP_CPUS, cpus // max(gpus, 1) - 1), "num_gpus": 1 if gpus else 0}
    models: Values = {"name": "Models"}
    http: Values = {"name": "Http", "num_replicas": min(pods, 2)}
    if service.max_replicas is None:
        models["num_replicas"] = service.replicas
    else:
        models["autoscaling_config"] = {
            "min_replicas": service.replicas,
            "max_replicas": service.max_replicas,
            "target_ongoing_requests": REPLICA_REQUESTS,
        }
    return {
        "proxy_location": "EveryNode",
        # The application has its own time limit, whose error has OpenAI's form.
        "http_options": {"host": "0.0.0.0", "port": PORT, "request_timeout_s": service.limits.seconds + 30},
        "applications": [
            {
                "name": "tailor",
                "import_path": "tailor.onray.serve:application",
                "route_prefix": "/",
                "args": {
                    "runs": dict(service.runs),
                    **share,
                    "trust_remote_code": service.trust_remote_code,
                    "limits": asdict(service.limits),
                },
                "deployments": [http, models],
            }
        ],
    }


def _add_probe(container: Values) -> None:
    """Let a worker pod have requests when Ray Serve's proxy in it is ready. KubeRay adds the liveness probes."""
    container["ports"].append({"name": "serve", "containerPort": PORT})
    container["readinessProbe"] = {
        "httpGet": {"path": "/-/healthz", "port": PORT},
        "periodSeconds": 5,
        "timeoutSeconds": 2,
        "failureThreshold": 3,
    }


def _check(service: Service, cluster: Cluster, open_to_all: bool) -> None:
    visibility = fit.pod_visibility(cluster)
    for url in service.runs.values():
        if not visibility.is_reachable(url):
            raise DataError(f"{url}: the pods cannot read this folder", hint=visibility.read_hint)
    if not (open_to_all or KEY_VARIABLE in cluster.secret_env or cluster.env_from):
        raise DataError(
            "the cluster file gives the pods no API key, so everybody who reaches the service could use it",
            hint=f"add secret_env: {{{KEY_VARIABLE}: secret/key}}, or give --no-key",
        )
    if cluster.gang is not None:
        raise DataError(
            "the cluster file has gang, which reserves pods for jobs", hint="use a cluster file without gang"
        )
    if service.max_replicas is not None and service.max_replicas < service.replicas:
        raise DataError(
            f"--max-replicas {service.max_replicas} is less than --replicas {service.replicas}",
            hint="raise --max-replicas",
        )
    pod = cluster.worker or cluster.head
    most = service.max_replicas or service.replicas
    if cluster.worker is None and most > max(pod.gpu, 1):
        raise DataError(
            f"{most} replicas need worker pods, and the cluster file has no worker section",
            hint="add a worker section, or serve one replica",
        )
