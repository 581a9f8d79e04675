"""Rules for cluster files: dependencies between keys, and the syntax of Kubernetes names and quantities."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tailor.errors import Problem
from tailor.kube import names
from tailor.kube.spec import Cache, Head
from tailor.redaction import is_secret_variable
from tailor.spec.reading.source import Document, Path
from tailor.spec.rules.keys import Finding, Keys, path_of
from tailor.spec.visibility import below

RECIPE_FOLDER = "/etc/tailor"
"""Folder of the recipe in the pods."""
MIN_SHARED_MEMORY = 256 << 20
MIN_RAY_VERSION = (2, 53)
"""Older versions have no HTTP health endpoints. KubeRay then probes pods with commands that an image may not contain."""

_RESERVED_ENV = {
    "HF_HOME": "set cache.mount instead",
    "TAILOR_CACHE": "set cache.mount instead",
    "RAY_AUTH_MODE": "set auth instead",
    "RAY_AUTH_TOKEN": "KubeRay generates the token",
    "RAY_JOB_STOP_WAIT_TIME_S": "set stop_seconds instead",
    "RAY_ADDRESS": "a job always joins its own cluster",
}
_RESERVED_LABELS = {
    "kueue.x-k8s.io/queue-name": "set gang: {scheduler: kueue, queue: …} instead",
    "kueue.x-k8s.io/priority-class": "set gang.priority_class instead",
    "volcano.sh/queue-name": "set gang: {scheduler: volcano, queue: …} instead",
    "ray.io/priority-class-name": "set gang.priority_class instead",
    "app.kubernetes.io/name": "tailor sets it to tailor",
    "app.kubernetes.io/instance": "tailor sets it to the job's name",
    "app.kubernetes.io/managed-by": "tailor sets it to tailor",
}
_RESERVED_MOUNTS = {"/dev/shm": "shared_memory", RECIPE_FOLDER: "the recipe", "/tmp/ray": "Ray's logs"}
_RESERVED_VOLUMES = ("shared-mem", "recipe", "cache", "ray-logs")

PathFinding = tuple[Path, str]
"""(path of the key, message). A tuple as path, because names of labels and variables may contain dots."""


def problems(document: Document, wrong: set[str]) -> list[Problem]:
    """Every violated rule. `wrong`: the keys that already have a problem, such as a wrong type; rules skip them."""
    keys = Keys(document.values, wrong)
    found: list[PathFinding] = [
        (path_of(key), message)
        for findings in (_names, _sizes, _volumes, _pods, _job)
        for key, message in findings(keys)
    ]
    found += [finding for findings in (_env, _labels) for finding in findings(keys)]
    return [
        (document.at_key if path[0] in ("env", "secret_env") else document.at_value)(path).problem(path, text)
        for path, text in found
    ]


def _names(keys: Keys) -> Iterator[Finding]:
    name, namespace, image = keys("name"), keys("namespace"), keys("image")
    if name is not None and not (names.NAME.fullmatch(name) and len(name) <= names.MAX_NAME_LENGTH):
        yield (
            "name",
            (
                f"{name} is not a valid name: KubeRay allows up to {names.MAX_NAME_LENGTH} characters of a-z, 0-9 and -, "
                f"starting with a letter, such as {names.name_from(name)}"
            ),
        )
    if namespace is not None and not names.LABEL.fullmatch(namespace):
        yield "namespace", f"{namespace} is not a valid namespace: use up to 63 characters of a-z, 0-9 and -"
    if image is not None:
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            what = "has no tag" if not tag else "has the tag latest, which changes"
            yield (
                "image",
                f"{image} {what}, so a retry may run another version; use a version's tag or a digest",
            )
        if any(sign.isspace() for sign in image):
            yield "image", f"{image} contains a space"
    version = keys("ray_version")
    if version is not None:
        match = re.fullmatch(r"([0-9]{1,6})\.([0-9]{1,6})\.[0-9]{1,6}", version)
        if not match:
            yield "ray_version", f"{version} is not a version of Ray, such as 2.60.0"
        elif (int(match[1]), int(match[2])) < MIN_RAY_VERSION:
            yield (
                "ray_version",
                f"{version} is too old: KubeRay needs Ray 2.53.0 or newer for its health checks over HTTP",
            )
    for key in ("service_account", "priority_class", "gang.queue", "gang.priority_class", "cache.claim"):
        if keys(key) is not None and not names.is_subdomain(keys(key)):
            yield key, _invalid_name(keys(key))
    for key in ("image_pull_secrets", "env_from"):
        for index, secret in _items(keys, key):
            if isinstance(secret, str) and not names.is_subdomain(secret):
                yield f"{key}.{index}", _invalid_name(secret)
    for key in ("recipe_path", "working_dir", "cache.mount"):
        if keys(key) is not None and not _absolute(keys(key)):
            yield key, _invalid_path(keys(key))
    for index, folder in _items(keys, "image_files"):
        if isinstance(folder, str) and not _absolute(folder):
            yield f"image_files.{index}", _invalid_path(folder)


def _sizes(keys: Keys) -> Iterator[Finding]:
    sizes = ["cache.size"]
    sizes += [
        f"{pod}.{key}"
        for pod in ("head", "worker")
        for key in ("memory", "shared_memory", "ephemeral_storage")
    ]
    sizes += [f"volumes.{index}.size" for index, _ in _items(keys, "volumes")]
    for key in sizes:
        text = keys(key)
        if text is not None and names.bytes_of(text) is None:
            yield key, f"{text} is not a Kubernetes quantity; write for example 64Gi, 500Mi or 1.5G"
    for pod in ("head", "worker"):
        shared = names.bytes_of(keys(f"{pod}.shared_memory") or "")
        memory = names.bytes_of(keys(f"{pod}.memory") or Head.model_fields["memory"].default)
        if shared is not None and shared < MIN_SHARED_MEMORY:
            yield (
                f"{pod}.shared_memory",
                f"{keys(f'{pod}.shared_memory')} is too small for Ray's object store; set at least 256Mi",
            )
        elif shared is not None and memory is not None and shared > memory:
            yield f"{pod}.shared_memory", f"is larger than {pod}.memory, which includes it"


def _volumes(keys: Keys) -> Iterator[Finding]:
    mounts = {**_RESERVED_MOUNTS}
    if not keys.is_wrong("cache.mount"):
        mounts[keys("cache.mount") or Cache().mount] = "the cache"
    if keys("cache.claim") is not None and keys("cache.size") is not None:
        yield "cache.size", "has no effect with cache.claim: a PersistentVolumeClaim has its own size"
    known_names: set[str] = set()
    for index, volume in _items(keys, "volumes"):
        if not isinstance(volume, dict):
            continue
        key = f"volumes.{index}"
        name, mount, claim, size = (keys(f"{key}.{part}") for part in ("name", "mount", "claim", "size"))
        if name is not None:
            if not names.LABEL.fullmatch(name):
                yield (
                    f"{key}.name",
                    f"{name} is not a valid name of a volume: use up to 63 characters of a-z, 0-9 and -",
                )
            elif name in known_names or name in _RESERVED_VOLUMES:
                yield f"{key}.name", f"the name {name} is already in use; choose another one"
            known_names.add(name)
        if mount is not None and not _absolute(mount):
            yield f"{key}.mount", _invalid_path(mount)
        elif mount is not None:
            other = next((other for other in mounts if below(mount, other) or below(other, mount)), None)
            if other is not None:
                yield f"{key}.mount", f"{mount} overlaps with {other}, the mount of {mounts[other]}"
            mounts[mount] = key
            for folder in (folder for _, folder in _items(keys, "image_files") if isinstance(folder, str)):
                if below(folder, mount):
                    yield (
                        f"{key}.mount",
                        f"{mount} would hide the image's folder {folder}, listed in image_files",
                    )
        if claim is not None and not names.is_subdomain(claim):
            yield f"{key}.claim", _invalid_name(claim)
        if claim is not None and size is not None:
            yield f"{key}.size", "has no effect with claim: a PersistentVolumeClaim has its own size"
        if keys.absent(f"{key}.claim") and keys(f"{key}.read_only"):
            yield f"{key}.read_only", "has no effect without claim: an emptyDir is always writable"


def _pods(keys: Keys) -> Iterator[Finding]:
    for pod in ("head", "worker"):
        for index, toleration in _items(keys, f"{pod}.tolerations"):
            key = f"{pod}.tolerations.{index}"
            if not isinstance(toleration, dict):
                continue
            exists = keys(f"{key}.operator") == "Exists"
            if exists and keys(f"{key}.value") is not None:
                yield f"{key}.value", "has no effect with operator: Exists"
            if not exists and not keys.is_wrong(f"{key}.operator") and keys.absent(f"{key}.key"):
                yield key, "a toleration without key needs operator: Exists"
            if keys(f"{key}.toleration_seconds") is not None and keys(f"{key}.effect") != "NoExecute":
                yield f"{key}.toleration_seconds", "applies only to effect: NoExecute"
        if keys(f"{pod}.gpu_resource") is not None:
            if keys.absent(f"{pod}.gpu") or keys(f"{pod}.gpu") == 0:
                yield f"{pod}.gpu_resource", f"has no effect without {pod}.gpu"
            elif not names.is_qualified(keys(f"{pod}.gpu_resource")):
                yield (
                    f"{pod}.gpu_resource",
                    f"{keys(f'{pod}.gpu_resource')} is not a Kubernetes resource, such as nvidia.com/gpu",
                )
    if keys("worker") is not None and keys("head.gpu"):
        yield "head.gpu", "would be unused: the head does not train when there is a worker section"
    if keys("worker.gpu") and keys("worker.workers_per_pod") is not None:
        yield "worker.workers_per_pod", "has no effect with worker.gpu: each GPU is one worker"


def _job(keys: Keys) -> Iterator[Finding]:
    pods_stay = keys("job.shutdown_after_job_finishes") is False
    if pods_stay and keys("job.ttl_seconds_after_finished"):
        yield (
            "job.ttl_seconds_after_finished",
            "has no effect with job.shutdown_after_job_finishes: false, which never removes the pods",
        )
    if pods_stay and keys("gang.scheduler") == "kueue":
        yield (
            "job.shutdown_after_job_finishes",
            "must be true with Kueue: pods that stay would use its quota forever",
        )
    if keys("autoscaler") is not None:
        min_pods, max_pods = keys("autoscaler.min_pods"), keys("autoscaler.max_pods")
        if min_pods is not None and max_pods is not None and min_pods > max_pods:
            yield "autoscaler.min_pods", f"{min_pods} is more than autoscaler.max_pods: {max_pods}"
        if keys("worker") is None and not keys.is_wrong("worker"):
            yield "autoscaler", "needs a worker section: the autoscaler adds and removes worker pods only"
        if keys("gang") is not None:
            yield (
                "autoscaler",
                "cannot be combined with gang, which reserves a fixed number of pods; remove one",
            )


def _env(keys: Keys) -> Iterator[PathFinding]:
    plain, secret = keys("env"), keys("secret_env")
    for section, values in (("env", plain), ("secret_env", secret)):
        for name, value in values.items() if isinstance(values, dict) else ():
            path = (section, name)
            if keys.is_wrong(f"{section}.{name}") or not isinstance(value, str):
                continue
            if not names.VARIABLE.fullmatch(name):
                yield (
                    path,
                    f"{name} is not a valid variable name: use letters, digits and _, and no digit first",
                )
            elif name in _RESERVED_ENV:
                yield path, f"cannot be set here: {_RESERVED_ENV[name]}"
            elif section == "env" and isinstance(secret, dict) and name in secret:
                yield path, "is also in secret_env; remove one of the two"
            elif section == "env" and is_secret_variable(name):
                yield (
                    path,
                    (
                        "the name is that of a secret, and secrets must not be in this file; "
                        f"write secret_env: {{{name}: secret/key}}"
                    ),
                )
            elif section == "secret_env" and not _is_reference(value):
                yield (
                    path,
                    (
                        "is not a reference to a key of a Kubernetes Secret; write secret/key, "
                        "never the secret value itself"
                    ),
                )


def _labels(keys: Keys) -> Iterator[PathFinding]:
    for section in ("labels", "annotations", "head.node_selector", "worker.node_selector"):
        values = keys(section)
        for name, value in values.items() if isinstance(values, dict) else ():
            path = (*path_of(section), name)
            if not isinstance(value, str):
                continue
            if not names.is_qualified(name):
                yield path, f"{name} is not a valid Kubernetes key: write name or prefix/name"
            elif section != "annotations" and not names.is_label_value(value):
                yield (
                    path,
                    f"{value} is not a valid label value: use up to 63 letters, digits, -, _ and .",
                )
            elif section == "labels" and (name in _RESERVED_LABELS or name.startswith("ray.io/")):
                why = _RESERVED_LABELS.get(name, "KubeRay sets the labels with ray.io/")
                yield path, f"cannot be set here: {why}"


def _items(keys: Keys, key: str) -> Iterator[tuple[int, Any]]:
    """(index, item) of a list; nothing if the key is absent or not a list."""
    value = keys(key)
    return enumerate(value if isinstance(value, list) else ())


def _absolute(path: str) -> bool:
    return path.startswith("/") and path != "/" and ".." not in path.split("/")


def _is_reference(text: str) -> bool:
    secret, slash, key = text.partition("/")
    return bool(slash) and names.is_subdomain(secret) and bool(names.SECRET_KEY.fullmatch(key))


def _invalid_name(text: str) -> str:
    return f"{text} is not a valid Kubernetes name: use a-z, 0-9, - and ."


def _invalid_path(path: str) -> str:
    return f"{path} is not valid here: write an absolute path without .., such as /data"
