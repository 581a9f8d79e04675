"""Randomly corrupted cluster files give problems, never a traceback."""

from __future__ import annotations

import copy
import random

from tailor.errors import RecipeError
from tailor.kube import check
from tailor.kube.spec import Cluster
from tailor.spec.load import judge
from tailor.spec.reading.source import parse
from tests.helpers.fuzzing import broken

FULL = """\
image: registry.example.org/tailor:1.0
name: x
namespace: y
ray_version: 2.60.0
image_pull_secrets: [a]
service_account: b
recipe_path: /a
working_dir: /b
image_files: [/c]
head: {cpu: 2, memory: 8Gi, shared_memory: 1Gi, node_selector: {a: b}}
worker:
  cpu: 4
  memory: 8Gi
  gpu: 2
  gpu_resource: amd.com/gpu
  ephemeral_storage: 1Gi
  tolerations: [{key: a, operator: Equal, value: b, effect: NoExecute, toleration_seconds: 3}]
env: {A: b}
secret_env: {C: d/e}
env_from: [f]
cache: {mount: /g, size: 1Gi}
volumes: [{name: h, mount: /h, claim: h, read_only: true}, {name: i, mount: /i, size: 1Gi}]
labels: {j: k}
annotations: {l: m}
priority_class: n
autoscaler: {min_pods: 1, max_pods: 2}
job: {ttl_seconds_after_finished: 1, backoff_limit: 2}
"""


def test_random_errors() -> None:
    generator = random.Random(0)
    good = parse(FULL, "c.yaml")
    judge(good, Cluster, (check.problems,))
    rejected = 0
    for _ in range(1000):
        document = copy.deepcopy(good)
        document.values = broken(good.values, generator)
        try:
            judge(document, Cluster, (check.problems,))
        except RecipeError as error:
            rejected += 1
            for problem in error.problems:
                assert "\n" not in str(problem)
                assert problem.line > 0
    assert 500 < rejected < 1000
