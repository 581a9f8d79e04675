"""The rules of a cluster file, between its keys and of Kubernetes' names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tailor.errors import Problem
from tailor.kube import names
from tailor.kube.spec import Cache, Head
from tailor.spec.reading.source import Document, Path
from tailor.spec.rules.keys import Finding, Keys, path_of
from tailor.spec.visibility import below

RECIPE_FOLDER = "/etc/tailor"
"""Where pods see the recipe."""
MIN_SHARED_MEMORY = 256 << 20
OLDEST_RAY = (2, 53)
"""KubeRay probes the pods of older versions by commands that need not be in an image."""

# A URL with such a query or a token is refused by spec.secrets; these are secrets by their name alone.
_SECRET_PARTS = {
    "TOKEN",
    "SECRET",
    "SECRETS",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
}
_SECRET_PARTS |= {"KEY", "APIKEY", "PAT"}
_NO_SECRET = ("_FILE", "_PATH", "_DIR")  # they say where the secret stands
_OWN_ENV = {
    "HF_HOME": "cache.mount says it",
    "TAILOR_CACHE": "cache.mount says it",
    "RAY_AUTH_MODE": "auth says it",
    "RAY_AUTH_TOKEN": "KubeRay makes the token",
    "RAY_ADDRESS": "a job joins its own cluster",
}
_OWN_LABELS = {
    "kueue.x-k8s.io/queue-name": "write gang: {scheduler: kueue, queue: …}",
    "kueue.x-k8s.io/priority-class": "write gang.priority_class",
    "volcano.sh/queue-name": "write gang: {scheduler: volcano, queue: …}",
    "ray.io/priority-class-name": "write gang.priority_class",
    "app.kubernetes.io/name": "it is tailor",
    "app.kubernetes.io/instance": "it is the name",
    "app.kubernetes.io/managed-by": "it is tailor",
}
_OWN_MOUNTS = {"/dev/shm": "shared_memory", RECIPE_FOLDER: "the recipe", "/tmp/ray": "Ray's logs"}
_OWN_VOLUMES = ("shared-mem", "recipe", "cache", "ray-logs")

Place = tuple[Path, str]
"""A path, because labels and variables may have dots in their names, and what is wrong there."""


def problems(document: Document, wrong: set[str]) -> list[Problem]:
    """Every broken rule. `wrong` are the keys that have a problem already."""
    keys = Keys(document.values, wrong)
    found: list[Place] = [
        (path_of(key), message)
        for findings in (_names, _sizes, _volumes, _pods, _job)
        for key, message in findings(keys)
    ]
    found += [place for places in (_env, _labels) for place in places(keys)]
    return [
        (document.at_key if path[0] in ("env", "secret_env") else document.at_value)(path).problem(path, text)
        for path, text in found
    ]


def _names(keys: Keys) -> Iterator[Finding]:
    name, namespace, image = keys("name"), keys("namespace"), keys("image")
    if name is not None and not (names.NAME.fullmatch(name) and len(name) <= names.LONGEST_NAME):
        yield (
            "name",
            (
                f"{name} is no name for KubeRay: up to {names.LONGEST_NAME} of a-z, 0-9 and -, a letter first, "
                f"such as {names.name_from(name)}"
            ),
        )
    if namespace is not None and not names.LABEL.fullmatch(namespace):
        yield "namespace", f"{namespace} is no namespace: up to 63 of a-z, 0-9 and -"
    if image is not None:
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            what = "has no tag" if not tag else "has a tag that moves"
            yield "image", f"{image} {what}, so a retry may run another version; name a version or a digest"
        if any(sign.isspace() for sign in image):
            yield "image", f"{image} holds a space"
    version = keys("ray_version")
    if version is not None:
        match = re.fullmatch(r"(\d+)\.(\d+)\.\d+", version)
        if not match:
            yield "ray_version", f"{version} is no version of Ray, such as 2.60.0"
        elif (int(match[1]), int(match[2])) < OLDEST_RAY:
            yield "ray_version", f"{version} is too old; 2.53.0 is the first that KubeRay probes over HTTP"
    for key in ("service_account", "priority_class", "gang.queue", "gang.priority_class", "cache.claim"):
        if keys(key) is not None and not names.is_subdomain(keys(key)):
            yield key, _no_name(keys(key))
    for key in ("image_pull_secrets", "env_from"):
        for index, secret in _items(keys, key):
            if isinstance(secret, str) and not names.is_subdomain(secret):
                yield f"{key}.{index}", _no_name(secret)
    for key in ("recipe_path", "working_dir", "cache.mount"):
        if keys(key) is not None and not _absolute(keys(key)):
            yield key, f"{keys(key)} is no folder of a pod; write an absolute path without .."
    for index, folder in _items(keys, "image_files"):
        if isinstance(folder, str) and not _absolute(folder):
            yield f"image_files.{index}", f"{folder} is no folder of a pod; write an absolute path without .."


def _sizes(keys: Keys) -> Iterator[Finding]:
    places = ["cache.size"]
    places += [
        f"{pod}.{key}"
        for pod in ("head", "worker")
        for key in ("memory", "shared_memory", "ephemeral_storage")
    ]
    places += [f"volumes.{index}.size" for index, _ in _items(keys, "volumes")]
    for key in places:
        text = keys(key)
        if text is not None and names.bytes_of(text) is None:
            yield key, f"{text} is no quantity of Kubernetes; write 64Gi, 500Mi or 1.5G"
    for pod in ("head", "worker"):
        shared = names.bytes_of(keys(f"{pod}.shared_memory") or "")
        whole = names.bytes_of(keys(f"{pod}.memory") or Head.model_fields["memory"].default)
        if shared is not None and shared < MIN_SHARED_MEMORY:
            yield f"{pod}.shared_memory", "under 256Mi, too little for Ray's object store"
        elif shared is not None and whole is not None and shared > whole:
            yield f"{pod}.shared_memory", f"is more than {pod}.memory, and counts as memory"


def _volumes(keys: Keys) -> Iterator[Finding]:
    taken = {**_OWN_MOUNTS}
    if not keys.is_wrong("cache.mount"):
        taken[keys("cache.mount") or Cache().mount] = "the cache"
    if keys("cache.claim") is not None and keys("cache.size") is not None:
        yield "cache.size", "has no effect on a claim, which has its own size"
    known: set[str] = set()
    for index, volume in _items(keys, "volumes"):
        if not isinstance(volume, dict):
            continue
        key = f"volumes.{index}"
        name, mount, claim, size = (keys(f"{key}.{part}") for part in ("name", "mount", "claim", "size"))
        if name is not None:
            if not names.LABEL.fullmatch(name):
                yield f"{key}.name", f"{name} is no name of a volume: up to 63 of a-z, 0-9 and -"
            elif name in known or name in _OWN_VOLUMES:
                yield f"{key}.name", f"{name} is taken; each volume needs a name of its own"
            known.add(name)
        if mount is not None and not _absolute(mount):
            yield f"{key}.mount", f"{mount} is no folder of a pod; write an absolute path without .."
        elif mount is not None:
            inside = next((other for other in taken if below(mount, other) or below(other, mount)), None)
            if inside is not None:
                yield f"{key}.mount", f"{mount} overlaps with {inside}, which is for {taken[inside]}"
            taken[mount] = key
            for folder in (folder for _, folder in _items(keys, "image_files") if isinstance(folder, str)):
                if below(folder, mount):
                    yield f"{key}.mount", f"{mount} would hide {folder} of the image, which image_files names"
        if claim is not None and not names.is_subdomain(claim):
            yield f"{key}.claim", _no_name(claim)
        if claim is not None and size is not None:
            yield f"{key}.size", "has no effect on a claim, which has its own size"
        if keys.absent(f"{key}.claim") and keys(f"{key}.read_only"):
            yield f"{key}.read_only", "has no effect on an emptyDir; it is for a claim"


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
                yield key, "without a key it needs operator: Exists"
            if keys(f"{key}.toleration_seconds") is not None and keys(f"{key}.effect") != "NoExecute":
                yield f"{key}.toleration_seconds", "has no effect but with effect: NoExecute"
        if keys(f"{pod}.gpu_resource") is not None:
            if keys.absent(f"{pod}.gpu") or keys(f"{pod}.gpu") == 0:
                yield f"{pod}.gpu_resource", f"has no effect without {pod}.gpu"
            elif not names.is_qualified(keys(f"{pod}.gpu_resource")):
                yield f"{pod}.gpu_resource", "is no resource of Kubernetes, such as nvidia.com/gpu"
    if keys("worker") is not None and keys("head.gpu"):
        yield "head.gpu", "would stay idle: with a worker section the head doesn't train"
    if keys("worker.gpu") and keys("worker.workers_per_pod") is not None:
        yield "worker.workers_per_pod", "has no effect with worker.gpu: each GPU is one worker"


def _job(keys: Keys) -> Iterator[Finding]:
    kept = keys("job.shutdown_after_job_finishes") is False
    if kept and keys("job.ttl_seconds_after_finished"):
        yield "job.ttl_seconds_after_finished", "needs job.shutdown_after_job_finishes: true"
    if kept and keys("gang.scheduler") == "kueue":
        yield "job.shutdown_after_job_finishes", "must be true for Kueue, which would count the pods for ever"
    if keys("autoscaler") is not None:
        least, most = keys("autoscaler.min_pods"), keys("autoscaler.max_pods")
        if least is not None and most is not None and least > most:
            yield "autoscaler.min_pods", f"{least} is more than autoscaler.max_pods: {most}"
        if keys("worker") is None and not keys.is_wrong("worker"):
            yield "autoscaler", "needs a worker section: only worker pods come and go"
        if keys("gang") is not None:
            yield "autoscaler", "has no place beside gang, which reserves a fixed number of pods"


def _env(keys: Keys) -> Iterator[Place]:
    plain, secret = keys("env"), keys("secret_env")
    for section, values in (("env", plain), ("secret_env", secret)):
        for name, value in values.items() if isinstance(values, dict) else ():
            path = (section, name)
            if keys.is_wrong(f"{section}.{name}") or not isinstance(value, str):
                continue
            if not names.VARIABLE.fullmatch(name):
                yield path, "is no name of a variable: letters, digits and _"
            elif name in _OWN_ENV:
                yield path, f"is set already; {_OWN_ENV[name]}"
            elif section == "env" and isinstance(secret, dict) and name in secret:
                yield path, "stands in secret_env too; give it once"
            elif (
                section == "env"
                and _SECRET_PARTS & set(name.upper().split("_"))
                and not name.upper().endswith(_NO_SECRET)
            ):
                yield path, f"a secret stands in no file; write secret_env: {{{name}: secret/key}}"
            elif section == "secret_env" and not _is_reference(value):
                yield path, "is no reference to a Secret; write secret/key, never the value itself"


def _labels(keys: Keys) -> Iterator[Place]:
    for section in ("labels", "annotations", "head.node_selector", "worker.node_selector"):
        values = keys(section)
        for name, value in values.items() if isinstance(values, dict) else ():
            path = (*path_of(section), name)
            if not isinstance(value, str):
                continue
            if not names.is_qualified(name):
                yield path, f"{name} is no key of Kubernetes: name or prefix/name"
            elif section != "annotations" and not names.is_label_value(value):
                yield path, f"{value} is no label's value: up to 63 letters, digits, - _ and ."
            elif section == "labels" and (name in _OWN_LABELS or name.startswith("ray.io/")):
                yield path, f"is not for you to set; {_OWN_LABELS.get(name, 'KubeRay sets its own labels')}"


def _items(keys: Keys, key: str) -> Iterator[tuple[int, Any]]:
    found = keys(key)
    return enumerate(found if isinstance(found, list) else ())


def _absolute(path: str) -> bool:
    return path.startswith("/") and path != "/" and ".." not in path.split("/")


def _is_reference(text: str) -> bool:
    secret, slash, key = text.partition("/")
    return bool(slash) and names.is_subdomain(secret) and bool(names.SECRET_KEY.fullmatch(key))


def _no_name(text: str) -> str:
    return f"{text} is no name in Kubernetes: a-z, 0-9, - and ."
